//! nf_tables: transactions that are done as a whole or not at all, without the `nft` program.
//!
//! Numbers are those of linux/netfilter/nf_tables.h and, for the types of set keys (which only `nft list` reads), of nft.
//! Integers of this family are in network order.

use std::io;

use crate::message::{ACK, APPEND, Attributes, CREATE, DUMP, EXCL, Message, Received, text};
use crate::socket::Socket;

const SUBSYSTEM: u16 = 10 << 8;
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
const GET_ELEMENT: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENT: u16 = SUBSYSTEM | 14;

const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;

/// Tables for IPv4 and IPv6 together.
const INET: u8 = 1;
/// `NFT_JUMP`.
const JUMP: u32 = (-3i32).cast_unsigned();
/// The register that decides about the packet.
pub const VERDICT: Register = 0;

/// Types of set keys and values, as `nft` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `ipv4_addr`.
    Ipv4,
    /// `ipv6_addr`.
    Ipv6,
    /// `inet_proto`.
    Protocol,
    /// `inet_service`: a port.
    Port,
    /// `ifname`.
    Interface,
    /// `verdict`: what becomes of the packet, as value of a map.
    Verdict,
}

impl Type {
    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Interface => 41,
            Self::Verdict => 0xffff_ff00,
        }
    }

    fn length(self) -> u32 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 | Self::Interface => 16,
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Verdict => 0,
        }
    }
}

/// Number and length of a concatenation; each part takes whole 32-bit registers.
fn concatenated(types: &[Type]) -> (u32, u32) {
    match types {
        [one] => (one.number(), one.length()),
        many => many
            .iter()
            .fold((0, 0), |(number, length), t| (number << 6 | t.number(), length + t.length().next_multiple_of(4))),
    }
}

/// A set or map.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    /// Name.
    pub name: &'a str,
    /// The parts of its key.
    pub key: &'a [Type],
    /// The parts of its values; empty for a set.
    pub value: &'a [Type],
    /// Keys are ranges.
    pub interval: bool,
}

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub number: u32,
    /// Lower runs first.
    pub priority: i32,
}

/// A register of 32 bits: 8 is the first; 1 to 4 would be the same memory by 128 bits.
pub type Register = u32;

/// The first 32-bit register.
pub const R0: Register = 8;

/// One step of a rule.
#[derive(Debug, Clone)]
pub enum Expr<'a> {
    /// Loads meta data: 15 is the network protocol, 16 the transport protocol.
    Meta(u32, Register),
    /// Loads packet bytes: base (1 network, 2 transport header), offset, length.
    Payload(u32, u32, u32, Register),
    /// Goes on when a register equals (or not) these bytes.
    Compare(Register, bool, Vec<u8>),
    /// Goes on when the set has the key (or not).
    Lookup(&'a str, Register, bool),
    /// Loads the key's value from a map, or ends the rule.
    Map(&'a str, Register, Register),
    /// Loads a bit mask of a register into itself.
    Mask(Register, Vec<u8>),
    /// Loads the connection's status.
    CtStatus(Register),
    /// Loads the type of the destination address (2: local).
    FibDestination(Register),
    /// Loads the type of the source address.
    FibSource(Register),
    /// Translates the destination: family, register of the address, register of the port.
    Dnat(u8, Register, Register),
    /// Gives the packet the address of the device by which it leaves.
    Masquerade,
    /// Accepts the packet.
    Accept,
    /// Goes on in another chain and comes back.
    Jump(&'a str),
    /// Sets the packet mark to bits of a register: loads mark, ors, stores.
    OrMark(u32),
}

/// A transaction.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<Message>,
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(kind, flags, &[INET, 0, 0, 0])
}

impl Batch {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a table; with `exclusive` it must not be there yet (EEXIST).
    pub fn table(&mut self, name: &str, exclusive: bool) -> &mut Self {
        let mut m = message(NEW_TABLE, CREATE | if exclusive { EXCL } else { 0 });
        m.put_text(1, name).put_be32(2, 0);
        self.push(m)
    }

    /// Removes a table with all that is in it.
    pub fn delete_table(&mut self, name: &str) -> &mut Self {
        let mut m = message(DELETE_TABLE, 0);
        m.put_text(1, name);
        self.push(m)
    }

    /// Makes a chain if it is not there; one without a hook is only jumped to.
    pub fn chain(&mut self, table: &str, name: &str, hook: Option<Hook>) -> &mut Self {
        let mut m = message(NEW_CHAIN, CREATE);
        m.put_text(1, table).put_text(3, name);
        if let Some(hook) = hook {
            m.nest(4, |h| h.put_be32(1, hook.number).put_be32(2, hook.priority.cast_unsigned()));
            m.put_be32(5, 1).put_text(7, hook.kind);
        }
        self.push(m)
    }

    /// Removes a chain with its rules; nothing may jump to it any more (EBUSY).
    pub fn delete_chain(&mut self, table: &str, name: &str) -> &mut Self {
        let mut m = message(DELETE_CHAIN, 0);
        m.put_text(1, table).put_text(3, name);
        self.push(m)
    }

    /// Removes all rules of a table; its chains and sets stay.
    pub fn flush_rules(&mut self, table: &str) -> &mut Self {
        let mut m = message(DELETE_RULE, 0);
        m.put_text(1, table);
        self.push(m)
    }

    /// Makes a set or map if it is not there.
    pub fn set(&mut self, table: &str, set: &Set<'_>) -> &mut Self {
        let mut m = message(NEW_SET, CREATE);
        let (key, key_length) = concatenated(set.key);
        let concatenation = set.interval && set.key.len() > 1;
        let mut flags = 0;
        for (wanted, bit) in [(set.interval, 4), (!set.value.is_empty(), 8), (concatenation, 0x80)] {
            flags |= if wanted { bit } else { 0 };
        }
        m.put_text(1, table).put_text(2, set.name).put_be32(3, flags).put_be32(4, key).put_be32(5, key_length);
        if !set.value.is_empty() {
            let (value, length) = concatenated(set.value);
            m.put_be32(6, value);
            if length > 0 {
                m.put_be32(7, length);
            }
        }
        if concatenation {
            m.nest(9, |description| {
                description.nest(2, |fields| {
                    for part in set.key {
                        fields.nest(1, |field| field.put_be32(1, part.length()));
                    }
                    fields
                })
            });
        }
        // An id is required; nothing refers to it, because elements name their set.
        let id = u32::try_from(self.messages.len()).unwrap_or(0) + 1;
        m.put_be32(10, id);
        self.push(m)
    }

    /// Adds an element, or keeps an equal one that is there. `comment` says whose it is (at most 120 bytes).
    pub fn element(&mut self, table: &str, set: &str, element: &Element) -> &mut Self {
        self.push(element.message(NEW_ELEMENT, CREATE, table, set))
    }

    /// Removes an element; one that is not there fails the transaction (ENOENT).
    pub fn delete_element(&mut self, table: &str, set: &str, element: &Element) -> &mut Self {
        self.push(element.message(DELETE_ELEMENT, 0, table, set))
    }

    /// Adds a rule at the end of a chain.
    pub fn rule(&mut self, table: &str, chain: &str, steps: &[Expr<'_>]) -> &mut Self {
        let mut m = message(NEW_RULE, CREATE | APPEND);
        m.put_text(1, table).put_text(2, chain).nest(4, |list| {
            for step in steps {
                step.write(list);
            }
            list
        });
        self.push(m)
    }

    fn push(&mut self, m: Message) -> &mut Self {
        self.messages.push(m);
        self
    }

    /// Does it all, or nothing.
    ///
    /// # Errors
    /// The kernel's errno for the first part that it refuses.
    pub fn commit(self, socket: &mut Socket) -> io::Result<()> {
        self.commit_after(socket, None)
    }

    /// Does it all, or nothing, and only when nobody has changed anything since `generation` was read.
    ///
    /// # Errors
    /// ERESTART when somebody has; else the kernel's errno for the first part that it refuses.
    pub fn commit_after(self, socket: &mut Socket, generation: Option<u32>) -> io::Result<()> {
        if self.messages.is_empty() {
            return Ok(());
        }
        // The subsystem stands in network order in the header of begin and end.
        let fence = |kind| Message::new(kind, 0, &[0, 0, 0, 10]);
        let mut begin = fence(BEGIN);
        if let Some(generation) = generation {
            begin.put_be32(1, generation);
        }
        let mut all = vec![begin];
        all.extend(self.messages);
        all.push(fence(END));
        socket.transaction(all).map_err(|(_, e)| e)
    }
}

/// An element of a set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// Key, each part padded to 32 bits when there are several.
    pub key: Vec<u8>,
    /// Last key of a range in a set of concatenated ranges.
    pub key_end: Option<Vec<u8>>,
    /// Value of a map.
    pub value: Option<Vec<u8>>,
    /// The chain that a map of verdicts jumps to.
    pub jump: Option<String>,
    /// Whose it is.
    pub comment: String,
}

impl Element {
    fn message(&self, kind: u16, flags: u16, table: &str, set: &str) -> Message {
        let mut m = message(kind, flags);
        m.put_text(1, table).put_text(2, set).nest(3, |list| {
            list.nest(1, |e| {
                e.nest(1, |key| key.put(1, &self.key));
                if let Some(end) = &self.key_end {
                    e.nest(10, |key| key.put(1, end));
                }
                if let (Some(value), true) = (&self.value, kind == NEW_ELEMENT) {
                    e.nest(2, |data| data.put(1, value));
                }
                if let (Some(chain), true) = (&self.jump, kind == NEW_ELEMENT) {
                    e.nest(2, |data| data.nest(2, |v| v.put_be32(1, JUMP).put_text(2, chain)));
                }
                if !self.comment.is_empty() && kind == NEW_ELEMENT {
                    // As nft writes comments, so that `nft list` shows them: type 0, length, text, zero.
                    let length = u8::try_from(self.comment.len() + 1).unwrap_or(u8::MAX);
                    e.put(6, &[&[0, length], self.comment.as_bytes(), b"\0"].concat());
                }
                e
            })
        });
        m
    }

    fn read(attributes: Attributes<'_>) -> Option<Self> {
        let value = |kind| attributes.nested(kind).find(1).map(<[u8]>::to_vec);
        let comment = attributes.find(6).and_then(|u| u.get(2..)).map(text).unwrap_or_default();
        let jump = attributes.nested(2).nested(2).find(2).map(text);
        Some(Self { key: value(1)?, key_end: value(10), value: value(2), jump, comment })
    }
}

impl Expr<'_> {
    fn write(&self, list: &mut Message) {
        let mut add = |name: &str, fill: &dyn Fn(&mut Message) -> &mut Message| {
            list.nest(1, |e| e.put_text(1, name).nest(2, fill));
        };
        match self {
            Self::Meta(key, to) => add("meta", &|m| m.put_be32(2, *key).put_be32(1, *to)),
            Self::Payload(base, offset, length, to) => {
                add("payload", &|m| m.put_be32(1, *to).put_be32(2, *base).put_be32(3, *offset).put_be32(4, *length))
            }
            Self::Compare(from, equal, bytes) => {
                add("cmp", &|m| m.put_be32(1, *from).put_be32(2, u32::from(!*equal)).nest(3, |d| d.put(1, bytes)))
            }
            Self::Lookup(set, from, there) => add("lookup", &|m| {
                m.put_text(1, set).put_be32(2, *from);
                if *there { m } else { m.put_be32(5, 1) }
            }),
            Self::Map(map, from, to) => {
                add("lookup", &|m| m.put_text(1, map).put_be32(2, *from).put_be32(3, *to));
            }
            Self::Mask(register, mask) => add("bitwise", &|m| {
                let length = u32::try_from(mask.len()).unwrap_or(0);
                m.put_be32(1, *register).put_be32(2, *register).put_be32(3, length);
                m.nest(4, |d| d.put(1, mask)).nest(5, |d| d.put(1, &vec![0; mask.len()]))
            }),
            Self::CtStatus(to) => add("ct", &|m| m.put_be32(2, 2).put_be32(1, *to)),
            Self::FibDestination(to) => add("fib", &|m| m.put_be32(1, *to).put_be32(2, 3).put_be32(3, 2)),
            Self::FibSource(to) => add("fib", &|m| m.put_be32(1, *to).put_be32(2, 3).put_be32(3, 1)),
            Self::Dnat(family, ip, port) => {
                add("nat", &|m| m.put_be32(1, 1).put_be32(2, u32::from(*family)).put_be32(3, *ip).put_be32(5, *port))
            }
            Self::Masquerade => add("masq", &|m| m),
            Self::Accept => add("immediate", &|m| m.put_be32(1, 0).nest(2, |d| d.nest(2, |v| v.put_be32(1, 1)))),
            Self::Jump(chain) => add("immediate", &|m| {
                m.put_be32(1, 0).nest(2, |d| d.nest(2, |v| v.put_be32(1, JUMP).put_text(2, chain)))
            }),
            Self::OrMark(bits) => {
                add("meta", &|m| m.put_be32(2, 3).put_be32(1, R0));
                add("bitwise", &|m| {
                    m.put_be32(1, R0).put_be32(2, R0).put_be32(3, 4);
                    m.nest(4, |d| d.put(1, &(!*bits).to_ne_bytes()));
                    m.nest(5, |d| d.put(1, &bits.to_ne_bytes()))
                });
                add("meta", &|m| m.put_be32(2, 3).put_be32(3, R0));
            }
        }
    }
}

fn absent(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

impl Socket {
    /// The elements of a set; none when there is no such set.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn nft_elements(&mut self, table: &str, set: &str) -> io::Result<Vec<Element>> {
        let mut request = message(GET_ELEMENT, DUMP | ACK);
        request.put_text(1, table).put_text(2, set);
        let mut found = Vec::new();
        let each = |m: &Received<'_>| {
            let Some((_, attributes)) = m.split(4) else { return };
            found.extend(attributes.nested(3).filter_map(|(_, e)| Element::read(Attributes(e))));
        };
        absent(self.query(request, each))?;
        Ok(found)
    }

    /// The ruleset's generation: it counts every change in the network namespace.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn nft_generation(&mut self) -> io::Result<u32> {
        let mut generation = None;
        self.query(message(GET_GENERATION, 0), |m| {
            let read = || u32::from_be_bytes(m.split(4)?.1.find(1)?.try_into().ok()?).into();
            generation = generation.or(if m.kind == NEW_GENERATION { read() } else { None });
        })?;
        generation.ok_or_else(|| io::Error::other("the kernel told no nf_tables generation"))
    }

    /// The chains of a table; none when there is no such table.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn nft_chains(&mut self, table: &str) -> io::Result<Vec<String>> {
        let mut chains = Vec::new();
        let each = |m: &Received<'_>| {
            let Some((_, attributes)) = m.split(4) else { return };
            if attributes.find(1).map(text).as_deref() == Some(table) {
                chains.extend(attributes.find(3).map(text));
            }
        };
        absent(self.query(message(GET_CHAIN, DUMP | ACK), each))?;
        Ok(chains)
    }

    /// The chain of each rule of a table; none when there is no such table.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn nft_rules(&mut self, table: &str) -> io::Result<Vec<String>> {
        let mut request = message(GET_RULE, DUMP | ACK);
        request.put_text(1, table);
        let mut chains = Vec::new();
        let each = |m: &Received<'_>| {
            let Some((_, attributes)) = m.split(4) else { return };
            // The kernel ignores the filter by table when it is asked in some versions: look again.
            if attributes.find(1).map(text).as_deref() == Some(table) {
                chains.extend(attributes.find(2).map(text));
            }
        };
        absent(self.query(request, each))?;
        Ok(chains)
    }
}
