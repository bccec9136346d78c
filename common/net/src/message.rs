//! Netlink messages: building them attribute by attribute, and reading them without trusting a length.
//!
//! The kernel aligns messages and attributes to four bytes (netlink(7)); numbers are in host order except where a family
//! says otherwise (nf_tables uses network order).

use std::io;

/// Length of `nlmsghdr`.
pub const HEADER: usize = 16;

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 1;
/// `NLM_F_ACK`: the kernel answers also when all is well.
pub const ACK: u16 = 4;
/// `NLM_F_ECHO`: the kernel tells who asked what became of it.
pub const ECHO: u16 = 8;
/// `NLM_F_DUMP`: all objects.
pub const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`: must not be there yet.
pub const EXCL: u16 = 0x200;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;

/// A request that is being built.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
    oversized: bool,
}

impl Message {
    /// A request of a type with flags and its family's fixed header.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(fixed);
        let mut message = Self { bytes, oversized: false };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// An attribute with these bytes. One that is larger than an attribute can be is left out, and the message is not sent.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let Ok(length) = u16::try_from(4 + value.len()) else {
            self.oversized = true;
            return self;
        };
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// An attribute with a text, ended by a zero byte.
    pub fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.put(kind, &[text.as_bytes(), b"\0"].concat())
    }

    /// One byte.
    pub fn put_u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.put(kind, &[value])
    }

    /// 16 bits in host order.
    pub fn put_u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// 32 bits in host order.
    pub fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// 32 bits in network order.
    pub fn put_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// An attribute that holds what `fill` adds (it gives the message back, so that calls can be chained).
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        fill(self);
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
        self
    }

    /// Raw bytes inside a nest, for the fixed headers that some nests begin with.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    pub(crate) fn add_flags(&mut self, flags: u16) {
        let now = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(now | flags).to_ne_bytes());
    }

    /// Bytes on the wire under a sequence number.
    ///
    /// # Errors
    /// An attribute is larger than 64 KiB: what follows it would be read as something else.
    pub(crate) fn finish(mut self, sequence: u32) -> io::Result<Vec<u8>> {
        let length = u32::try_from(self.bytes.len()).ok().filter(|_| !self.oversized);
        let length =
            length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "netlink attribute over 64 KiB"))?;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        Ok(self.bytes)
    }
}

/// A message as it was received.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

impl<'a> Received<'a> {
    /// The family's fixed header of `length` bytes and the attributes after it; nothing when it is cut short.
    pub fn split(&self, length: usize) -> Option<(&'a [u8], Attributes<'a>)> {
        let (fixed, rest) = self.body.split_at_checked(length)?;
        let skip = length.next_multiple_of(4) - length;
        Some((fixed, Attributes(rest.get(skip..).unwrap_or_default())))
    }
}

/// The messages in a datagram. Ends at the first one whose length does not fit.
#[derive(Debug, Clone)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Received<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..HEADER)?;
        let length = usize::try_from(u32_at(header, 0)?).ok()?;
        let body = self.0.get(HEADER..length)?;
        let received =
            Received { kind: u16_at(header, 4)?, flags: u16_at(header, 6)?, sequence: u32_at(header, 8)?, body };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    }
}

/// Attributes in a row: type (without its flag bits) and value. Ends at the first one whose length does not fit.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & KIND;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of a type.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(k, v)| (k == kind).then_some(v))
    }

    /// The attributes nested in the first attribute of a type; none when it is not there.
    pub fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.find(kind).unwrap_or_default())
    }
}

/// 16 bits in host order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// 32 bits in host order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A text without its closing zero byte.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_built_can_be_read() {
        let mut message = Message::new(16, ACK, &[0; 16]);
        message.put_text(3, "eth0").nest(18, |m| m.put_text(1, "veth"));
        let bytes = message.finish(7).unwrap();
        let all: Vec<_> = Messages(&bytes).collect();
        assert_eq!((all.len(), all[0].kind, all[0].sequence), (1, 16, 7));
        let (_, attributes) = all[0].split(16).unwrap();
        assert_eq!(text(attributes.find(3).unwrap()), "eth0");
        assert_eq!(text(attributes.nested(18).find(1).unwrap()), "veth");
    }

    #[test]
    fn what_does_not_fit_an_attribute_is_not_sent() {
        let fits = |length: usize| {
            let mut message = Message::new(16, ACK, &[]);
            message.put(3, &vec![1; length]);
            message.finish(1).is_ok()
        };
        assert!(fits(65_531) && !fits(65_532));
        let mut nested = Message::new(16, ACK, &[]);
        nested.nest(1, |m| m.put(2, &[0; 40_000]).put(3, &[0; 40_000]));
        assert!(nested.finish(1).is_err());
    }

    proptest! {
        #[test]
        fn garbage_neither_panics_nor_loops(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for message in Messages(&bytes) {
                if let Some((_, attributes)) = message.split(16) {
                    for (_, value) in attributes {
                        let _ = Attributes(value).count();
                    }
                }
            }
        }
    }
}
