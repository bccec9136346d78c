//! Nodes as the overlay sees them: read from Node objects or a file, and what a node says about itself. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use gantry_net::Prefix;
use gantry_net::link::{mac_text, parse_mac};
use k8s_openapi::api::core::v1::Node;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::Backend;

const PREFIX: &str = "flannel.alpha.coreos.com";

/// Another node, or this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Name.
    pub name: String,
    /// Its pods' networks, at most one of each family.
    pub subnets: Vec<Prefix>,
    /// Address on the underlay for tunnels and routes of IPv4 pods.
    pub public_ip: Option<IpAddr>,
    /// The same for IPv6 pods.
    pub public_ipv6: Option<IpAddr>,
    /// `vxlan`, `host-gw`; empty while its agent has not said yet.
    pub backend: String,
    /// Hardware address of its tunnel's end for IPv4.
    pub mac: Option<[u8; 6]>,
    /// The same for IPv6.
    pub mac_v6: Option<[u8; 6]>,
    /// Network identifier of its tunnel.
    pub vni: Option<u32>,
}

impl Peer {
    /// The address to send to for pods of a network.
    pub fn underlay(&self, subnet: Prefix) -> Option<IpAddr> {
        if subnet.ip.is_ipv4() { self.public_ip } else { self.public_ipv6 }
    }

    /// The tunnel end for pods of a network.
    pub fn vtep(&self, subnet: Prefix) -> Option<[u8; 6]> {
        if subnet.ip.is_ipv4() { self.mac } else { self.mac_v6 }
    }
}

fn key(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

/// VNI and hardware address of a `backend-data` annotation.
fn tunnel(text: Option<&String>) -> (Option<u32>, Option<[u8; 6]>) {
    let value: Value = text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
    let vni = value["VNI"].as_u64().and_then(|v| u32::try_from(v).ok());
    (vni, value["VtepMAC"].as_str().and_then(parse_mac))
}

/// Reads a Node: its pod networks and its agent's annotations.
pub fn read(node: &Node) -> Peer {
    let none = BTreeMap::new();
    let annotations = node.metadata.annotations.as_ref().unwrap_or(&none);
    let get = |name: &str| annotations.get(&key(name));
    let spec = node.spec.as_ref();
    let one = spec.and_then(|s| s.pod_cidr.clone()).into_iter().collect::<Vec<_>>();
    let cidrs = spec.and_then(|s| s.pod_cidrs.clone()).filter(|c| !c.is_empty()).unwrap_or(one);
    let mut subnets: Vec<Prefix> = Vec::new();
    for subnet in cidrs.iter().filter_map(|c| c.parse::<Prefix>().ok()).map(Prefix::network) {
        if !subnets.iter().any(|s| s.ip.is_ipv4() == subnet.ip.is_ipv4()) {
            subnets.push(subnet);
        }
    }
    let (vni, mac) = tunnel(get("backend-data"));
    let (_, mac_v6) = tunnel(get("backend-v6-data"));
    Peer {
        name: node.metadata.name.clone().unwrap_or_default(),
        subnets,
        public_ip: get("public-ip").and_then(|t| t.parse().ok()),
        public_ipv6: get("public-ipv6").and_then(|t| t.parse().ok()),
        backend: get("backend-type").cloned().unwrap_or_default(),
        mac,
        mac_v6,
        vni,
    }
}

/// The address that an administrator has set in the place of what the agent would find.
pub fn overwritten_ip(node: &Node) -> Option<IpAddr> {
    node.metadata.annotations.as_ref()?.get(&key("public-ip-overwrite"))?.parse().ok()
}

/// The annotations by which a node says how it is reached.
pub fn annotations(own: &Peer, backend: Backend) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    out.insert(key("kube-subnet-manager"), "true".to_owned());
    out.insert(key("backend-type"), backend.name().to_owned());
    let data = |mac: Option<[u8; 6]>| match (backend, mac) {
        (Backend::Vxlan { vni, .. }, Some(mac)) => json!({"VNI": vni, "VtepMAC": mac_text(&mac)}).to_string(),
        _ => "null".to_owned(),
    };
    if let Some(ip) = own.public_ip {
        out.insert(key("public-ip"), ip.to_string());
        out.insert(key("backend-data"), data(own.mac));
    }
    if let Some(ip) = own.public_ipv6 {
        out.insert(key("public-ipv6"), ip.to_string());
        out.insert(key("backend-v6-data"), data(own.mac_v6));
    }
    out
}

/// The hardware address that a node gives its tunnel's end: it follows from the node's name, so that it is the same after a
/// reboot, and others know it without being told.
pub fn derived_mac(node: &str, vni: u32, four: bool) -> [u8; 6] {
    let text = format!("{node}/{vni}/{four}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let bytes = hash.to_be_bytes();
    [bytes[0] & 0xfc | 0x02, bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Listed {
    name: String,
    subnets: Vec<String>,
    public_ip: Option<IpAddr>,
    #[serde(rename = "publicIPv6")]
    public_ipv6: Option<IpAddr>,
    #[serde(default)]
    mac: String,
    #[serde(rename = "macV6", default)]
    mac_v6: String,
}

/// Reads the nodes of a peers file: a JSON list of `{name, subnets, publicIp, publicIPv6, mac, macV6}`. The hardware
/// addresses may be left out where the node's agent is ours ([`derived_mac`]).
///
/// # Errors
/// A field is unknown or wrong, by node and name.
pub fn read_list(text: &str, backend: Backend) -> Result<Vec<Peer>> {
    let listed: Vec<Listed> = serde_json::from_str(text)?;
    let vni = if let Backend::Vxlan { vni, .. } = backend { Some(vni) } else { None };
    let read = |one: Listed| -> Result<Peer> {
        let mac = |field: &str, text: &str| match text {
            "" => Ok(vni.map(|vni| derived_mac(&one.name, vni, field == "mac"))),
            _ => parse_mac(text).map(Some).with_context(|| format!("{field}: {text:?} is no hardware address")),
        };
        let subnet = |t: &String| t.parse::<Prefix>().map(Prefix::network).map_err(|e| anyhow::anyhow!("subnets: {e}"));
        Ok(Peer {
            subnets: one.subnets.iter().map(subnet).collect::<Result<_>>()?,
            public_ip: one.public_ip,
            public_ipv6: one.public_ipv6,
            backend: backend.name().to_owned(),
            mac: mac("mac", &one.mac)?,
            mac_v6: mac("macV6", &one.mac_v6)?,
            vni,
            name: one.name,
        })
    };
    listed
        .into_iter()
        .map(|one| {
            let name = one.name.clone();
            read(one).with_context(|| format!("node {name}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flannels_node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n2", "annotations": {
                "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"12:34:56:78:9a:bc\"}",
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/public-ip": "192.0.2.2"}},
            "spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24", "fd00:2::/64"]}
        }))
        .unwrap()
    }

    #[test]
    fn a_node_of_flannels_is_understood_and_ours_is_written_the_same_way() {
        let peer = read(&flannels_node());
        assert_eq!(peer.subnets.len(), 2);
        assert_eq!(peer.mac, parse_mac("12:34:56:78:9a:bc"));
        assert_eq!(peer.public_ip, "192.0.2.2".parse().ok());
        let backend = Backend::Vxlan { vni: 1, port: 8472, direct: false, mtu: None };
        let written = annotations(&peer, backend);
        let theirs = flannels_node().metadata.annotations.unwrap();
        assert_eq!(written, theirs);
    }

    #[test]
    fn a_node_whose_agent_has_not_spoken_has_nothing_to_offer() {
        let mut node = flannels_node();
        let overwrite = (key("public-ip-overwrite"), "198.51.100.7".to_owned());
        node.metadata.annotations = Some(BTreeMap::from([overwrite]));
        assert_eq!(overwritten_ip(&node), "198.51.100.7".parse().ok());
        node.metadata.annotations = None;
        assert_eq!(overwritten_ip(&node), None);
        let peer = read(&node);
        assert_eq!((peer.public_ip, peer.mac, peer.backend.as_str()), (None, None, ""));
    }

    #[test]
    fn a_peers_file_is_read_and_its_errors_name_the_node() {
        let good =
            r#"[{"name": "n2", "subnets": ["10.244.2.0/24"], "publicIp": "192.0.2.2", "mac": "12:34:56:78:9a:bc"}]"#;
        assert_eq!(read_list(good, Backend::HostGw).unwrap()[0].name, "n2");
        for (text, part) in [
            (r#"[{"name": "n2", "subnets": ["x"]}]"#, "n2"),
            (r#"[{"name": "n2", "subnets": [], "mac": "x"}]"#, "mac"),
            (r#"[{"name": "n2", "subnets": [], "makk": "x"}]"#, "makk"),
        ] {
            let error = format!("{:#}", read_list(text, Backend::HostGw).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
