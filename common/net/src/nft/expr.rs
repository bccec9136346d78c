//! The steps of rules, and how they stand on the wire.

use super::JUMP;
use crate::message::Message;

/// `NFT_RETURN`.
const RETURN: u32 = (-5i32).cast_unsigned();

/// A register of 32 bits: 8 is the first; 1 to 4 would be the same memory by 128 bits.
pub type Register = u32;

/// The first 32-bit register.
pub const R0: Register = 8;

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr<'a> {
    /// Loads meta data: 6 the name of the device it came by, 7 by which it leaves (16 bytes each), 15 the network protocol,
    /// 16 the transport protocol.
    Meta(u32, Register),
    /// Loads packet bytes: base (0 link layer, 1 network, 2 transport header), offset, length.
    Payload(u32, u32, u32, Register),
    /// Goes on when a register equals (or not) these bytes.
    Compare(Register, bool, Vec<u8>),
    /// Goes on when a register is from the first to the second of these (or not), both of them in it.
    Range(Register, bool, Vec<u8>, Vec<u8>),
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
    /// Drops the packet.
    Drop,
    /// Goes back to the chain that jumped here.
    Return,
    /// Counts packets and bytes.
    Counter,
    /// Goes on when the connection has one of these states: bits of `NF_CT_STATE_BIT`, 2 established, 4 related.
    CtState(u32),
    /// Loads these bytes.
    Load(Register, Vec<u8>),
    /// Loads the packet mark.
    Mark(Register),
    /// A match of iptables' by its name, revision and structure: in tables that iptables also reads, nothing else is
    /// understood.
    Xtables(&'a str, u32, Vec<u8>),
    /// Goes on in another chain and comes back.
    Jump(&'a str),
    /// Sets the packet mark to bits of a register: loads mark, ors, stores.
    OrMark(u32),
}

impl Expr<'_> {
    pub(super) fn write(&self, list: &mut Message) {
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
            Self::Range(register, inside, from, to) => add("range", &|m| {
                m.put_be32(1, *register).put_be32(2, u32::from(!*inside));
                m.nest(3, |d| d.put(1, from)).nest(4, |d| d.put(1, to))
            }),
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
            Self::Drop => add("immediate", &|m| m.put_be32(1, 0).nest(2, |d| d.nest(2, |v| v.put_be32(1, 0)))),
            Self::Return => add("immediate", &|m| m.put_be32(1, 0).nest(2, |d| d.nest(2, |v| v.put_be32(1, RETURN)))),
            Self::Counter => add("counter", &|m| m.put(1, &[0; 8]).put(2, &[0; 8])),
            Self::CtState(bits) => {
                add("ct", &|m| m.put_be32(2, 0).put_be32(1, R0));
                add("bitwise", &|m| {
                    m.put_be32(1, R0).put_be32(2, R0).put_be32(3, 4);
                    m.nest(4, |d| d.put(1, &bits.to_ne_bytes())).nest(5, |d| d.put(1, &[0; 4]))
                });
                add("cmp", &|m| m.put_be32(1, R0).put_be32(2, 1).nest(3, |d| d.put(1, &[0; 4])));
            }
            Self::Load(to, bytes) => add("immediate", &|m| m.put_be32(1, *to).nest(2, |d| d.put(1, bytes))),
            Self::Mark(to) => add("meta", &|m| m.put_be32(2, 3).put_be32(1, *to)),
            Self::Xtables(name, revision, info) => {
                add("match", &|m| m.put_text(1, name).put_be32(2, *revision).put(3, info));
            }
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
