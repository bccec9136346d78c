//! Conditions on host ports: arguments of iptables, or expressions of nft. What both can say about a packet stands here, and
//! how it is said in files of their own; what has no translation is an error that names it. Pure.

mod arguments;
mod expressions;

use gantry_net::Prefix;
use gantry_net::nft::{Expr, R0};

use super::packet::{address_in, family, octets, of_family};
use crate::spec::{Error, Result};

/// Steps that a packet must pass.
pub type Steps = Vec<Expr<'static>>;

/// Alternatives become a rule each, for each port: more than these are a mistake.
const MOST: usize = 64;

/// Reads conditions for packets of a family: the alternatives of which a packet must pass one. Without conditions none.
///
/// # Errors
/// Something is not understood, or a value is wrong (7, naming it).
pub fn read(key: &str, words: &[String], four: bool) -> Result<Vec<Steps>> {
    let Some(first) = words.iter().map(|w| w.trim()).find(|w| !matches!(*w, "" | "!")) else {
        return if words.iter().any(|w| w.trim() == "!") {
            Err(Error::config(format!("{key}: nothing follows \"!\"")))
        } else {
            Ok(Vec::new())
        };
    };
    let tests =
        if first.starts_with('-') { arguments::read(key, words)? } else { expressions::read(key, &words.join(" "))? };
    let mut alternatives = vec![Steps::new()];
    for test in tests {
        let steps =
            test.steps(four).map_err(|value| Error::config(format!("{key}: {} {value:?} is wrong", test.said)))?;
        alternatives = alternatives.iter().flat_map(|a| steps.iter().map(|s| [&a[..], s].concat())).collect();
        if alternatives.len() > MOST {
            return Err(Error::config(format!("{key}: more than {MOST} combinations")));
        }
    }
    // Passed by every packet: then nothing is asked.
    let all = alternatives.iter().all(Vec::is_empty);
    Ok(if all { Vec::new() } else { alternatives })
}

/// What of a packet is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Source,
    Destination,
    /// The device it came by; a name that ends in `*` is the beginning of one.
    Device,
    /// IPv4 or IPv6.
    Family,
    Protocol,
    SourcePort,
    DestinationPort,
    /// The bits of its mark in this mask.
    Mark(u32),
    /// What kind of address it has: of this host, of a group, ...
    SourceKind,
    DestinationKind,
    /// What conntrack thinks of it.
    State,
}

/// A field is one of these values, or (not `wanted`) none of them.
#[derive(Debug)]
struct Test {
    field: Field,
    values: Vec<String>,
    wanted: bool,
    /// As the user wrote the field.
    said: String,
}

impl Test {
    /// The alternatives of it, or the value that is wrong.
    fn steps(&self, four: bool) -> std::result::Result<Vec<Steps>, String> {
        if self.field == Field::State {
            let bits = self.values.iter().map(|v| state(v).ok_or_else(|| v.clone()));
            let bits = bits.collect::<std::result::Result<Vec<_>, _>>()?.into_iter().fold(0, |all, bit| all | bit);
            return Ok(vec![vec![Expr::CtState(if self.wanted { bits } else { STATES & !bits })]]);
        }
        let one = |value: &String| steps(self.field, value, four, self.wanted).ok_or_else(|| value.clone());
        let each = self.values.iter().map(one).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(if self.wanted { each } else { vec![each.concat()] })
    }
}

/// Every state: invalid, established, related, new, untracked.
const STATES: u32 = 0b100_1111;

fn state(name: &str) -> Option<u32> {
    match name.to_ascii_lowercase().as_str() {
        "invalid" => Some(1),
        "established" => Some(2),
        "related" => Some(4),
        "new" => Some(8),
        "untracked" => Some(64),
        _ => None,
    }
}

/// What is done to see whether a field is, or is not, a value.
fn steps(field: Field, value: &str, four: bool, wanted: bool) -> Option<Steps> {
    let f = family(four);
    let same = |bytes: Vec<u8>| Expr::Compare(R0, wanted, bytes);
    Some(match field {
        Field::Source => address(f.source, value, four, wanted)?,
        Field::Destination => address(f.destination, value, four, wanted)?,
        Field::Device => {
            let (name, end) = value.strip_suffix('*').map_or((value, &b"\0"[..]), |begin| (begin, b""));
            if name.len() > 15 || name.is_empty() && (!wanted || value.is_empty()) {
                return None;
            }
            if name.is_empty() {
                return Some(Steps::new());
            }
            vec![Expr::Meta(6, R0), same([name.as_bytes(), end].concat())]
        }
        Field::Family => match value {
            "ipv4" | "ipv6" if (value == "ipv4") == (four == wanted) => Steps::new(),
            // Never: a packet of this family is of none other.
            "ipv4" | "ipv6" => of_family(&family(!four)),
            _ => return None,
        },
        Field::Protocol => vec![Expr::Meta(16, R0), same(vec![protocol(value)?])],
        Field::SourcePort => ports(0, value, wanted)?,
        Field::DestinationPort => ports(2, value, wanted)?,
        Field::Mark(mask) => {
            let mark = number(value)?;
            vec![Expr::Mark(R0), Expr::Mask(R0, mask.to_ne_bytes().to_vec()), same(mark.to_ne_bytes().to_vec())]
        }
        Field::SourceKind => vec![Expr::FibSource(R0), same(kind(value)?)],
        Field::DestinationKind => vec![Expr::FibDestination(R0), same(kind(value)?)],
        Field::State => return None,
    })
}

/// An address, a network of the family, or the addresses from one to another.
fn address(offset: u32, text: &str, four: bool, wanted: bool) -> Option<Steps> {
    let f = family(four);
    if let Some((from, to)) = text.split_once('-') {
        let (from, to): (std::net::IpAddr, std::net::IpAddr) = (from.parse().ok()?, to.parse().ok()?);
        if from.is_ipv4() != four || to.is_ipv4() != four || from > to {
            return None;
        }
        return Some(vec![Expr::Payload(1, offset, f.length, R0), Expr::Range(R0, wanted, octets(from), octets(to))]);
    }
    let prefix: Prefix = text.parse().ok().or_else(|| text.parse().ok().map(Prefix::host))?;
    (prefix.ip.is_ipv4() == four).then(|| address_in(&f, offset, prefix.network(), wanted))
}

/// A port, or those from one to another.
fn ports(offset: u32, text: &str, wanted: bool) -> Option<Steps> {
    let port = |text: &str| text.parse::<u16>().ok();
    let (from, to) = match text.split_once(['-', ':']) {
        Some((from, to)) => (port(from)?, port(to)?),
        None => (port(text)?, port(text)?),
    };
    let compare = if from == to {
        Expr::Compare(R0, wanted, from.to_be_bytes().to_vec())
    } else {
        Expr::Range(R0, wanted, from.to_be_bytes().to_vec(), to.to_be_bytes().to_vec())
    };
    (from <= to).then(|| vec![Expr::Payload(2, offset, 2, R0), compare])
}

fn protocol(name: &str) -> Option<u8> {
    match name.to_ascii_lowercase().as_str() {
        "icmp" => Some(1),
        "tcp" => Some(6),
        "udp" => Some(17),
        "dccp" => Some(33),
        "icmpv6" | "ipv6-icmp" => Some(58),
        "sctp" => Some(132),
        "udplite" => Some(136),
        number => number.parse().ok(),
    }
}

/// A number as marks are written: decimal, or hexadecimal after `0x`.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A kind of address as the kernel's routes have it (`RTN_*`).
fn kind(name: &str) -> Option<Vec<u8>> {
    let kind: u32 = match name.to_ascii_lowercase().as_str() {
        "unicast" => 1,
        "local" => 2,
        "broadcast" => 3,
        "anycast" => 4,
        "multicast" => 5,
        "blackhole" => 6,
        "unreachable" => 7,
        "prohibit" => 8,
        _ => return None,
    };
    Some(kind.to_ne_bytes().to_vec())
}
