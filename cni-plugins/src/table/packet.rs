//! Where the things are in a packet that rules look at.

use std::net::IpAddr;

use gantry_net::Prefix;
use gantry_net::nft::{Expr, R0};

const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// Bit of the connection's status: its destination was translated.
const DNAT_STATUS: u32 = 1 << 5;

/// Where a family's addresses are in its header.
pub(super) struct Family {
    pub(super) number: u8,
    pub(super) source: u32,
    pub(super) destination: u32,
    pub(super) length: u32,
    /// Mask and bits of groups.
    pub(super) multicast: (Vec<u8>, Vec<u8>),
}

pub(super) fn family(four: bool) -> Family {
    if four {
        let multicast = (vec![0xf0, 0, 0, 0], vec![0xe0, 0, 0, 0]);
        Family { number: IPV4, source: 12, destination: 16, length: 4, multicast }
    } else {
        let mask = [&[0xff][..], &[0; 15]].concat();
        Family { number: IPV6, source: 8, destination: 24, length: 16, multicast: (mask.clone(), mask) }
    }
}

/// Goes on for packets of the family.
pub(super) fn of_family(family: &Family) -> Vec<Expr<'static>> {
    vec![Expr::Meta(15, R0), Expr::Compare(R0, true, vec![family.number])]
}

/// Goes on when an address of the packet is (or is not) in a network.
pub(super) fn address_in(family: &Family, offset: u32, network: Prefix, inside: bool) -> Vec<Expr<'static>> {
    let bits = family.length as usize * 8;
    let mask: Vec<u8> = (0..bits / 8)
        .map(|i| {
            let ones = usize::from(network.length).saturating_sub(i * 8).min(8);
            0xffu16.checked_shl(8 - ones as u32).unwrap_or(0) as u8
        })
        .collect();
    vec![
        Expr::Payload(1, offset, family.length, R0),
        Expr::Mask(R0, mask),
        Expr::Compare(R0, inside, octets(network.network().ip)),
    ]
}

/// Goes on for connections whose destination was translated.
pub(super) fn translated() -> Vec<Expr<'static>> {
    let bit = DNAT_STATUS.to_ne_bytes().to_vec();
    vec![Expr::CtStatus(R0), Expr::Mask(R0, bit), Expr::Compare(R0, false, vec![0; 4])]
}

/// An address in network order.
pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A device's name as rules compare it.
pub(super) fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// A key or value of several parts; each takes whole 32-bit words.
pub(super) fn parts(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_follow_the_prefix() {
        let mask = |text: &str| {
            let network: Prefix = text.parse().unwrap();
            match &address_in(&family(true), 12, network, true)[1] {
                Expr::Mask(_, mask) => mask.clone(),
                _ => Vec::new(),
            }
        };
        assert_eq!(mask("10.0.0.0/8"), [255, 0, 0, 0]);
        assert_eq!(mask("10.1.2.128/25"), [255, 255, 255, 128]);
        assert_eq!(mask("0.0.0.0/0"), [0, 0, 0, 0]);
    }
}
