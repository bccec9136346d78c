//! Pod networks of nodes: each node gets one of the cluster's, until controllers of their own exist (upstream's
//! node-ipam-controller). One task decides, so no network is given twice; a deleted node's is free again.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::router::Api;

/// A network of one family, of which nodes get parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    ip: IpAddr,
    length: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a network such as 10.244.0.0/16");
        let (ip, length) = text.split_once('/').ok_or_else(wrong)?;
        let (ip, length): (IpAddr, u8) = (ip.parse().map_err(|_| wrong())?, length.parse().map_err(|_| wrong())?);
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        if length > bits {
            return Err(wrong());
        }
        Ok(Self { ip: masked(ip, length), length })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

fn masked(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            Ipv4Addr::from_bits(ip.to_bits() & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)).into()
        }
        IpAddr::V6(ip) => {
            Ipv6Addr::from_bits(ip.to_bits() & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).into()
        }
    }
}

impl Cidr {
    fn overlaps(self, other: Self) -> bool {
        let length = self.length.min(other.length);
        self.ip.is_ipv4() == other.ip.is_ipv4() && masked(self.ip, length) == masked(other.ip, length)
    }

    /// Its parts of a length, in order.
    fn parts(self, length: u8) -> impl Iterator<Item = Self> {
        let count = 1u64 << u32::from(length.saturating_sub(self.length)).min(24);
        (0..count).map(move |i| {
            let ip = match self.ip {
                IpAddr::V4(ip) => {
                    let step = u32::try_from(i << (32 - u32::from(length))).unwrap_or(0);
                    Ipv4Addr::from_bits(ip.to_bits() + step).into()
                }
                IpAddr::V6(ip) => {
                    Ipv6Addr::from_bits(ip.to_bits() + (u128::from(i) << (128 - u32::from(length)))).into()
                }
            };
            Self { ip, length }
        })
    }
}

/// The cluster's networks (at most one of each family) and how long a node's prefix is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    ranges: Vec<(Cidr, u8)>,
}

impl Plan {
    /// Checks the flags: networks, and the prefix lengths of nodes for IPv4 and IPv6.
    ///
    /// # Errors
    /// Two networks of a family, or no room for a node in one.
    pub fn new(cidrs: &[Cidr], ipv4_length: u8, ipv6_length: u8) -> Result<Self, String> {
        let mut ranges: Vec<(Cidr, u8)> = Vec::new();
        for cidr in cidrs {
            let length = if cidr.ip.is_ipv4() { ipv4_length } else { ipv6_length };
            if ranges.iter().any(|(other, _)| other.ip.is_ipv4() == cidr.ip.is_ipv4()) {
                return Err(format!("--cluster-cidr: {cidr} is the second network of its family"));
            }
            let bits = if cidr.ip.is_ipv4() { 32 } else { 128 };
            if length < cidr.length || length > bits {
                return Err(format!("a node's network of prefix length {length} does not fit into {cidr}"));
            }
            ranges.push((*cidr, length));
        }
        Ok(Self { ranges })
    }

    /// A network of each family that overlaps with none of those taken; none when one family is used up. Pure.
    fn next(&self, taken: &[Cidr]) -> Option<Vec<String>> {
        let exact: HashSet<String> = taken.iter().map(ToString::to_string).collect();
        self.ranges
            .iter()
            .map(|(range, length)| {
                let odd: Vec<&Cidr> = taken.iter().filter(|t| t.length != *length).collect();
                let free = |part: &Cidr| !exact.contains(&part.to_string()) && !odd.iter().any(|t| t.overlaps(*part));
                range.parts(*length).find(free).map(|part| part.to_string())
            })
            .collect()
    }
}

fn cidrs_of(node: &Value) -> Vec<Cidr> {
    let list = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
    list.chain([&node["spec"]["podCIDR"]]).filter_map(|c| c.as_str()?.parse().ok()).collect()
}

/// Gives networks to nodes until the server stops.
pub async fn run(api: Arc<Api>, plan: Plan) {
    let mut told: HashSet<String> = HashSet::new();
    loop {
        let revision = api.store.revision();
        let nodes = api.store.range("/core/nodes/", "", 0, 0).map(|page| page.items).unwrap_or_default();
        let mut taken: Vec<Cidr> = nodes.iter().flat_map(|(_, entry)| cidrs_of(&entry.value)).collect();
        for (key, entry) in nodes.iter().filter(|(_, entry)| cidrs_of(&entry.value).is_empty()) {
            let Some(chosen) = plan.next(&taken) else {
                if told.insert(key.clone()) {
                    tracing::error!(node = key, "no pod network is left for this node: --cluster-cidr is used up");
                }
                continue;
            };
            let mut node = entry.value.clone();
            node["spec"]["podCIDR"] = json!(chosen[0]);
            node["spec"]["podCIDRs"] = json!(chosen);
            // Whoever changed the node meanwhile makes another pass.
            if api.store.replace(key, entry.revision, node).await.is_ok() {
                taken.extend(chosen.iter().filter_map(|c| c.parse::<Cidr>().ok()));
                told.remove(key);
                tracing::info!(node = key, networks = ?chosen, "gave the node a pod network");
            }
        }
        if !api.changed("/core/nodes/", revision).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(texts: &[&str]) -> Plan {
        let cidrs: Vec<Cidr> = texts.iter().map(|t| t.parse().unwrap()).collect();
        Plan::new(&cidrs, 24, 64).unwrap()
    }

    fn taken(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn the_lowest_free_network_is_given() {
        let plan = plan(&["10.244.0.0/16", "fd00:244::/48"]);
        assert_eq!(plan.next(&[]).unwrap(), ["10.244.0.0/24", "fd00:244::/64"]);
        let some = taken(&["10.244.0.0/24", "10.244.2.0/24", "fd00:244::/64"]);
        assert_eq!(plan.next(&some).unwrap(), ["10.244.1.0/24", "fd00:244:0:1::/64"]);
        assert_eq!(plan.next(&taken(&["10.244.0.0/23"])).unwrap()[0], "10.244.2.0/24", "of another length, by hand");
    }

    #[test]
    fn a_used_up_cluster_gives_nothing() {
        let plan = plan(&["10.244.0.0/23"]);
        assert_eq!(plan.next(&taken(&["10.244.0.0/24", "10.244.1.0/24"])), None);
    }

    #[test]
    fn wrong_flags_are_named() {
        let cidr = |t: &str| t.parse::<Cidr>();
        assert!(cidr("10.0.0.0").unwrap_err().contains("10.0.0.0"));
        assert!(cidr("10.0.0.0/33").is_err());
        let two = [cidr("10.0.0.0/8").unwrap(), cidr("10.1.0.0/16").unwrap()];
        assert!(Plan::new(&two, 24, 64).unwrap_err().contains("second"));
        assert!(Plan::new(&two[1..], 12, 64).unwrap_err().contains("does not fit"));
    }
}
