//! The D-Bus wire format, as far as calls to systemd's manager and logind need it: little-endian messages. Pure. (D-Bus specification 0.43, "Message Protocol".)

use std::os::fd::OwnedFd;

use crate::error::{Error, Result};

/// A message larger than this is refused: the answers of systemd's manager that are read here are a few hundred bytes.
const MAX_MESSAGE: usize = 1 << 20;
const HEADER: usize = 16;

/// A property's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A truth value.
    Bool(bool),
    /// A large number.
    U64(u64),
    /// Process ids.
    U32s(Vec<u32>),
    /// A bit mask of processors or memory nodes.
    Bytes(Vec<u8>),
    /// Texts.
    Texts(Vec<String>),
    /// Paths of devices and what may be done with them.
    Pairs(Vec<(String, String)>),
}

/// A named property.
pub type Property = (&'static str, Value);

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Text(_) => "s",
            Self::Bool(_) => "b",
            Self::U64(_) => "t",
            Self::U32s(_) => "au",
            Self::Bytes(_) => "ay",
            Self::Texts(_) => "as",
            Self::Pairs(_) => "a(ss)",
        }
    }
}

/// Writes values one after another, each at its alignment.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    /// A number.
    pub fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    /// A text or an object path.
    pub fn text(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.bytes.push(text.len() as u8);
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    /// An array: its length in bytes goes before its elements, without the padding up to the first.
    fn array(&mut self, element: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(element);
        let start = self.bytes.len();
        fill(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Text(text) => self.text(text),
            Value::Bool(on) => self.bool(*on),
            Value::U64(n) => {
                self.align(8);
                self.bytes.extend(n.to_le_bytes());
            }
            Value::U32s(numbers) => self.array(4, |e| numbers.iter().for_each(|n| e.u32(*n))),
            Value::Bytes(bytes) => self.array(1, |e| e.bytes.extend(bytes)),
            Value::Texts(texts) => self.array(4, |e| texts.iter().for_each(|t| e.text(t))),
            Value::Pairs(pairs) => self.array(8, |e| {
                for (a, b) in pairs {
                    e.align(8);
                    e.text(a);
                    e.text(b);
                }
            }),
        }
    }

    /// Properties as `a(sv)`.
    pub fn properties(&mut self, properties: &[Property]) {
        self.array(8, |e| {
            for (name, value) in properties {
                e.align(8);
                e.text(name);
                e.variant(value);
            }
        });
    }

    /// A large number as a variant.
    pub fn number_variant(&mut self, value: u64) {
        self.variant(&Value::U64(value));
    }

    /// An array of structures without any.
    pub fn no_structures(&mut self) {
        self.array(8, |_| ());
    }
}

/// A method to call.
#[derive(Debug)]
pub struct Call<'a> {
    /// Whom it is for; empty at a private socket or in a signal.
    pub destination: &'a str,
    /// The object.
    pub path: &'a str,
    /// The interface.
    pub interface: &'a str,
    /// The method.
    pub member: &'a str,
    /// The types of the body.
    pub signature: &'a str,
}

impl Call<'_> {
    /// The whole message.
    pub fn message(&self, serial: u32, body: &Encoder) -> Vec<u8> {
        message(1, serial, None, self, 0, body)
    }

    /// A signal with these names, for everyone.
    pub fn signal(&self, serial: u32, body: &Encoder) -> Vec<u8> {
        message(4, serial, None, self, 0, body)
    }

    /// The answer to a call, with this many descriptors beside it; only the destination and the signature count.
    pub fn answer(&self, serial: u32, to: u32, fds: u32, body: &Encoder) -> Vec<u8> {
        message(2, serial, Some(to), self, fds, body)
    }
}

fn message(kind: u8, serial: u32, reply_to: Option<u32>, names: &Call<'_>, fds: u32, body: &Encoder) -> Vec<u8> {
    let mut e = Encoder::default();
    e.bytes.extend([b'l', kind, 0, 1]);
    e.u32(body.bytes.len() as u32);
    e.u32(serial);
    e.array(8, |e| {
        for (code, kind, text) in [
            (1, "o", names.path),
            (2, "s", names.interface),
            (3, "s", names.member),
            (6, "s", names.destination),
            (8, "g", names.signature),
        ] {
            if text.is_empty() {
                continue;
            }
            e.align(8);
            e.bytes.push(code);
            e.signature(kind);
            if kind == "g" { e.signature(text) } else { e.text(text) }
        }
        for (code, number) in [(5, reply_to), (9, Some(fds).filter(|n| *n > 0))] {
            if let Some(number) = number {
                e.align(8);
                e.bytes.push(code);
                e.signature("u");
                e.u32(number);
            }
        }
    });
    e.align(8);
    e.bytes.extend(&body.bytes);
    e.bytes
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call.
    Call,
    /// The answer to a call.
    Return,
    /// The error that answers a call.
    Error,
    /// A signal.
    Signal,
    /// What later versions may bring.
    Other,
}

/// A message that came.
#[derive(Debug)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// The call that it answers.
    pub reply_to: u32,
    /// Its own number, which an answer names.
    pub serial: u32,
    /// Who sent it, as the bus knows it.
    pub sender: String,
    /// The interface of the call or signal.
    pub interface: String,
    /// The name of the call or signal.
    pub member: String,
    /// The name of the error.
    pub error: String,
    /// How many file descriptors belong to it.
    pub fd_count: u32,
    /// Them.
    pub fds: Vec<OwnedFd>,
    /// The texts, object paths and numbers of the body, in order; what stands after another type is left out.
    pub fields: Vec<Field>,
}

/// A field of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// A text or an object path.
    Text(String),
    /// A number, a truth value or the place of a file descriptor.
    Number(u32),
    /// A large number.
    Large(u64),
}

impl Message {
    /// How long the message is that starts with these bytes, once enough of it is there to tell.
    ///
    /// # Errors
    /// It is no message that this end understands.
    pub fn length(start: &[u8]) -> Result<Option<usize>> {
        let Some(header) = start.get(..HEADER) else { return Ok(None) };
        if header[0] != b'l' || header[3] != 1 {
            return Err(bad("a message of another byte order or version"));
        }
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
        let (body, fields) = (word(4), word(12));
        if body > MAX_MESSAGE || fields > MAX_MESSAGE {
            return Err(bad("a message that is too long"));
        }
        Ok(Some((HEADER + fields).next_multiple_of(8) + body))
    }

    /// Reads one whole message.
    ///
    /// # Errors
    /// It is cut off or makes no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut d = Decoder { bytes, at: 8 };
        let serial = d.u32()?;
        let kind = match bytes.get(1) {
            Some(1) => Kind::Call,
            Some(2) => Kind::Return,
            Some(3) => Kind::Error,
            Some(4) => Kind::Signal,
            _ => Kind::Other,
        };
        let mut message = Self {
            kind,
            reply_to: 0,
            serial,
            sender: String::new(),
            interface: String::new(),
            member: String::new(),
            error: String::new(),
            fd_count: 0,
            fds: Vec::new(),
            fields: Vec::new(),
        };
        let mut signature = String::new();
        let end = d.u32()? as usize + HEADER;
        while d.at < end {
            d.align(8);
            let code = d.u8()?;
            let of = d.signature()?;
            match (code, of.as_str()) {
                (5, "u") => message.reply_to = d.u32()?,
                (9, "u") => message.fd_count = d.u32()?,
                (2, "s") => message.interface = d.text()?,
                (3, "s") => message.member = d.text()?,
                (7, "s") => message.sender = d.text()?,
                (4, "s") => message.error = d.text()?,
                (8, "g") => signature = d.signature()?,
                (_, "s" | "o") => drop(d.text()?),
                (_, "g") => drop(d.signature()?),
                (_, "u") => drop(d.u32()?),
                _ => return Err(bad("a header field of an unknown type")),
            }
        }
        d.align(8);
        for letter in signature.chars() {
            let field = match letter {
                's' | 'o' => Field::Text(d.text()?),
                'u' | 'b' | 'h' => Field::Number(d.u32()?),
                't' => Field::Large(d.u64()?),
                'v' => match d.signature()?.as_str() {
                    "s" | "o" => Field::Text(d.text()?),
                    "u" | "b" => Field::Number(d.u32()?),
                    "t" => Field::Large(d.u64()?),
                    _ => break,
                },
                _ => break,
            };
            message.fields.push(field);
        }
        Ok(message)
    }

    /// The body's field of that place, where it is a number.
    pub fn number(&self, at: usize) -> Option<u64> {
        match self.fields.get(at) {
            Some(Field::Number(n)) => Some(u64::from(*n)),
            Some(Field::Large(n)) => Some(*n),
            _ => None,
        }
    }

    /// The body's field of that place, where it is a text.
    pub fn text(&self, at: usize) -> &str {
        match self.fields.get(at) {
            Some(Field::Text(text)) => text,
            _ => "",
        }
    }
}

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Decoder<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, n: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(n).ok_or_else(|| bad("a length out of range"))?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| bad("a message that is cut off"))?;
        self.at = end;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        self.align(4);
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self) -> Result<u64> {
        self.align(8);
        let b = self.take(8)?;
        Ok(b.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u32()? as usize;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(text)
    }

    fn signature(&mut self) -> Result<String> {
        let length = usize::from(self.u8()?);
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(text)
    }
}

fn bad(what: &str) -> Error {
    Error::Connection(format!("the other end sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signal(unit: &str, result: &str) -> Vec<u8> {
        let mut body = Encoder::default();
        body.u32(7);
        body.text("/org/freedesktop/systemd1/job/7");
        body.text(unit);
        body.text(result);
        let call = Call { destination: "", path: "/p", interface: "i.f", member: "JobRemoved", signature: "uoss" };
        let mut bytes = call.message(3, &body);
        bytes[1] = 4;
        bytes
    }

    #[test]
    fn what_is_written_is_read_back() {
        let bytes = signal("a.scope", "done");
        assert_eq!(Message::length(&bytes[..8]).unwrap(), None);
        assert_eq!(Message::length(&bytes).unwrap(), Some(bytes.len()));
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (Kind::Signal, "JobRemoved"));
        assert_eq!(message.fields[0], Field::Number(7));
        assert_eq!((message.text(2), message.text(3), message.text(9)), ("a.scope", "done", ""));
    }

    #[test]
    fn properties_lie_at_their_alignment() {
        let mut e = Encoder::default();
        e.properties(&[("Delegate", Value::Bool(true)), ("PIDs", Value::U32s(vec![258]))]);
        let want: &[u8] = &[
            48, 0, 0, 0, 0, 0, 0, 0, // length, padding
            8, 0, 0, 0, b'D', b'e', b'l', b'e', b'g', b'a', b't', b'e', 0, 1, b'b', 0, 1, 0, 0, 0, // a property
            0, 0, 0, 0, 4, 0, 0, 0, b'P', b'I', b'D', b's', 0, 2, b'a', b'u', 0, 0, 0, 0, 4, 0, 0, 0, 2, 1, 0, 0,
        ];
        assert_eq!(e.bytes, want);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200, at in 0_usize..200, to in any::<u8>()) {
            let _ = Message::parse(&bytes);
            let _ = Message::length(&bytes);
            bytes = signal("a.scope", "done");
            bytes.truncate(cut.max(1));
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = Message::parse(&bytes);
            let _ = Message::length(&bytes);
        }
    }
}
