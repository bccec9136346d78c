//! nf_tables: transactions that are done as a whole or not at all, without the `nft` program.
//!
//! Numbers are those of linux/netfilter/nf_tables.h and, for the types of set keys (which only `nft list` reads), of nft.
//! Integers of this family are in network order.

mod expr;
mod read;

use std::io;

pub use expr::{Expr, R0, Register};
use read::commented;
pub use read::{Element, Rule, changed};

use crate::message::{APPEND, CREATE, EXCL, Message};
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

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4; iptables' tables are of this family.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// Frames that a bridge forwards.
    Bridge,
}

/// A table: its name in its family. A name alone is one of [`Family::Inet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table<'a> {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: &'a str,
}

impl<'a> From<&'a str> for Table<'a> {
    fn from(name: &'a str) -> Self {
        Self { family: Family::Inet, name }
    }
}

impl<'a> Table<'a> {
    /// A table of a family.
    pub const fn new(family: Family, name: &'a str) -> Self {
        Self { family, name }
    }

    /// A request about it or something in it: all begin with its name.
    fn message(self, kind: u16, flags: u16) -> Message {
        let family = match self.family {
            Family::Inet => 1,
            Family::Ipv4 => 2,
            Family::Ipv6 => 10,
            Family::Bridge => 7,
        };
        let mut m = Message::new(kind, flags, &[family, 0, 0, 0]);
        m.put_text(1, self.name);
        m
    }
}

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
    /// `ether_addr`.
    Ether,
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
            Self::Ether => 9,
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
            Self::Ether => 6,
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

/// A transaction.
#[derive(Debug, Default)]
pub struct Batch {
    messages: Vec<Message>,
}

impl Batch {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a table; with `exclusive` it must not be there yet (EEXIST).
    pub fn table<'t>(&mut self, table: impl Into<Table<'t>>, exclusive: bool) -> &mut Self {
        let mut m = table.into().message(NEW_TABLE, CREATE | if exclusive { EXCL } else { 0 });
        m.put_be32(2, 0);
        self.push(m)
    }

    /// Removes a table with all that is in it.
    pub fn delete_table<'t>(&mut self, table: impl Into<Table<'t>>) -> &mut Self {
        self.push(table.into().message(DELETE_TABLE, 0))
    }

    /// Makes a chain if it is not there; one without a hook is only jumped to.
    pub fn chain<'t>(&mut self, table: impl Into<Table<'t>>, name: &str, hook: Option<Hook>) -> &mut Self {
        let mut m = table.into().message(NEW_CHAIN, CREATE);
        m.put_text(3, name);
        if let Some(hook) = hook {
            m.nest(4, |h| h.put_be32(1, hook.number).put_be32(2, hook.priority.cast_unsigned()));
            m.put_be32(5, 1).put_text(7, hook.kind);
        }
        self.push(m)
    }

    /// Removes a chain with its rules; nothing may jump to it any more (EBUSY).
    pub fn delete_chain<'t>(&mut self, table: impl Into<Table<'t>>, name: &str) -> &mut Self {
        let mut m = table.into().message(DELETE_CHAIN, 0);
        m.put_text(3, name);
        self.push(m)
    }

    /// Removes all rules of a table; its chains and sets stay.
    pub fn flush_rules<'t>(&mut self, table: impl Into<Table<'t>>) -> &mut Self {
        self.push(table.into().message(DELETE_RULE, 0))
    }

    /// Makes a set or map if it is not there.
    pub fn set<'t>(&mut self, table: impl Into<Table<'t>>, set: &Set<'_>) -> &mut Self {
        let mut m = table.into().message(NEW_SET, CREATE);
        let (key, key_length) = concatenated(set.key);
        let concatenation = set.interval && set.key.len() > 1;
        let mut flags = 0;
        for (wanted, bit) in [(set.interval, 4), (!set.value.is_empty(), 8), (concatenation, 0x80)] {
            flags |= if wanted { bit } else { 0 };
        }
        m.put_text(2, set.name).put_be32(3, flags).put_be32(4, key).put_be32(5, key_length);
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
    pub fn element<'t>(&mut self, table: impl Into<Table<'t>>, set: &str, element: &Element) -> &mut Self {
        self.push(element.message(NEW_ELEMENT, CREATE, table.into(), set))
    }

    /// Adds an element whose key must not be there yet (EEXIST).
    pub fn new_element<'t>(&mut self, table: impl Into<Table<'t>>, set: &str, element: &Element) -> &mut Self {
        self.push(element.message(NEW_ELEMENT, CREATE | EXCL, table.into(), set))
    }

    /// Removes an element; one that is not there fails the transaction (ENOENT).
    pub fn delete_element<'t>(&mut self, table: impl Into<Table<'t>>, set: &str, element: &Element) -> &mut Self {
        self.push(element.message(DELETE_ELEMENT, 0, table.into(), set))
    }

    /// Adds a rule at the end of a chain.
    pub fn rule<'t>(&mut self, table: impl Into<Table<'t>>, chain: &str, steps: &[Expr<'_>]) -> &mut Self {
        self.rule_of(table, chain, steps, "", false)
    }

    /// Adds a rule at the end of a chain, or (`first`) at its beginning, with a word of whose it is (at most 200 bytes).
    pub fn rule_of<'t>(
        &mut self,
        table: impl Into<Table<'t>>,
        chain: &str,
        steps: &[Expr<'_>],
        comment: &str,
        first: bool,
    ) -> &mut Self {
        let mut m = table.into().message(NEW_RULE, CREATE | if first { 0 } else { APPEND });
        m.put_text(2, chain).nest(4, |list| {
            for step in steps {
                step.write(list);
            }
            list
        });
        if !comment.is_empty() {
            m.put(7, &commented(comment));
        }
        self.push(m)
    }

    /// Removes one rule; not there fails the transaction (ENOENT).
    pub fn delete_rule<'t>(&mut self, table: impl Into<Table<'t>>, rule: &Rule) -> &mut Self {
        let mut m = table.into().message(DELETE_RULE, 0);
        m.put_text(2, &rule.chain).put(3, &rule.handle.to_be_bytes());
        self.push(m)
    }

    /// Removes all rules of a chain.
    pub fn flush_chain<'t>(&mut self, table: impl Into<Table<'t>>, chain: &str) -> &mut Self {
        let mut m = table.into().message(DELETE_RULE, 0);
        m.put_text(2, chain);
        self.push(m)
    }

    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Does what another one does after it.
    pub fn append(&mut self, other: Self) -> &mut Self {
        self.messages.extend(other.messages);
        self
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
