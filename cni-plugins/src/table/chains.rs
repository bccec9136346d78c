//! Chains that elements jump to, one per network or bridge. What one decides stands in its name, so that it can be filled
//! again after somebody has flushed it.

use std::net::IpAddr;

use gantry_net::Prefix;
use gantry_net::nft::{Expr, R0};

use super::packet::{address_in, family, name_bytes, octets};

/// What is decided, for which network or bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Chain {
    /// Traffic from a pod of the network to anything but the network and groups is masqueraded.
    Masquerade(Prefix),
    /// Traffic to a pod of the network through a host port, from the network itself or the host, is masqueraded.
    Hairpin(Prefix),
    /// Traffic to a pod of the bridge from other pods' bridges is dropped.
    Same(String),
    /// Traffic to a pod of the bridge from any pods' bridge is dropped.
    Alone(String),
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(hex.get(i..i + 2)?, 16).ok()).collect()
}

impl Chain {
    /// `masq-0a580000-16`, `same-62723061`.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Masquerade(network) => format!("masq-{}-{}", hex(&octets(network.ip)), network.length),
            Self::Hairpin(network) => format!("hairpin-{}-{}", hex(&octets(network.ip)), network.length),
            Self::Same(bridge) => format!("same-{}", hex(bridge.as_bytes())),
            Self::Alone(bridge) => format!("alone-{}", hex(bridge.as_bytes())),
        }
    }

    /// Reads a name; none when it is not one of these.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut words = name.split('-');
        let (purpose, what) = (words.next()?, bytes(words.next()?)?);
        let bridge = || String::from_utf8(what.clone()).ok().filter(|b| (1..16).contains(&b.len()));
        match purpose {
            "same" => return bridge().map(Self::Same),
            "alone" => return bridge().map(Self::Alone),
            _ => {}
        }
        let ip = <[u8; 4]>::try_from(what.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(what.as_slice()).map(IpAddr::from))
            .ok()?;
        let network = Prefix::new(ip, words.next()?.parse().ok()?)?;
        match purpose {
            "masq" => Some(Self::Masquerade(network)),
            "hairpin" => Some(Self::Hairpin(network)),
            _ => None,
        }
    }

    /// The bridge that stands in the set of pods' bridges for as long as the chain is there.
    pub(super) fn bridge(&self) -> Option<&str> {
        match self {
            Self::Same(bridge) | Self::Alone(bridge) => Some(bridge),
            Self::Masquerade(_) | Self::Hairpin(_) => None,
        }
    }

    /// Its rules.
    pub(super) fn rules(&self) -> Vec<Vec<Expr<'static>>> {
        let from_pods = |mut rule: Vec<Expr<'static>>| {
            rule.extend([Expr::Meta(6, R0), Expr::Lookup("bridges", R0, true), Expr::Drop]);
            rule
        };
        match self {
            Self::Masquerade(network) => {
                let f = family(network.ip.is_ipv4());
                let mut rule = address_in(&f, f.destination, *network, false);
                let (mask, group) = f.multicast.clone();
                rule.push(Expr::Payload(1, f.destination, f.length, R0));
                rule.extend([Expr::Mask(R0, mask), Expr::Compare(R0, false, group), Expr::Masquerade]);
                vec![rule]
            }
            Self::Hairpin(network) => {
                let f = family(network.ip.is_ipv4());
                let loopback = if network.ip.is_ipv4() {
                    Prefix { ip: [127, 0, 0, 0].into(), length: 8 }
                } else {
                    Prefix::host(std::net::Ipv6Addr::LOCALHOST.into())
                };
                let from = |from: Prefix| [address_in(&f, f.source, from, true), vec![Expr::Masquerade]].concat();
                vec![from(*network), from(loopback)]
            }
            Self::Same(bridge) => {
                vec![from_pods(vec![Expr::Meta(6, R0), Expr::Compare(R0, false, name_bytes(bridge))])]
            }
            Self::Alone(_) => vec![from_pods(Vec::new())],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chains_name_tells_what_it_decides() {
        for text in ["10.88.0.0/16", "fd00:1::/64"] {
            let network: Prefix = text.parse().unwrap();
            for chain in [Chain::Masquerade(network), Chain::Hairpin(network)] {
                assert_eq!(Chain::parse(&chain.name()), Some(chain));
            }
        }
        for chain in [Chain::Same("cni0".into()), Chain::Alone("a-b".into())] {
            assert_eq!(Chain::parse(&chain.name()), Some(chain));
        }
        let others = ["postrouting", "host-ports", "masq", "masq-zz-1", "masq-0a-99", "same-", "CNI-ADMIN", "alone-zz"];
        for other in others {
            assert_eq!(Chain::parse(other), None, "{other}");
        }
    }
}
