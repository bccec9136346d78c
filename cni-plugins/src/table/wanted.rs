//! What a plugin wants for one attachment, as elements of the tables' sets.

use std::net::IpAddr;

use super::{Chain, Element, Expr, Group, Prefix, name_bytes, octets, parts};
use crate::table::packet::{family, of_family};

/// What one plugin wants for one attachment.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub(super) elements: Vec<(Group, &'static str, Element)>,
    /// Chains that the elements jump to.
    pub(super) chains: Vec<(Group, Chain)>,
    /// Host ports with conditions.
    pub(super) rules: Vec<Vec<Expr<'static>>>,
    /// The administrator's chain.
    pub(super) admin: Option<String>,
}

/// A port of the host that leads to one of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// Only on this address of the host.
    pub host_ip: Option<IpAddr>,
    /// 6 TCP, 17 UDP, 132 SCTP.
    pub protocol: u8,
    /// Port of the host.
    pub port: u16,
    /// Port of the pod.
    pub pod_port: u16,
}

fn by_family(ip: IpAddr, four: &'static str, six: &'static str) -> &'static str {
    if ip.is_ipv4() { four } else { six }
}

impl Wanted {
    fn element(&mut self, group: Group, set: &'static str, key: Vec<u8>) -> &mut Element {
        let place = self.elements.len();
        self.elements.push((group, set, Element { key, ..Element::default() }));
        &mut self.elements[place].2
    }

    fn jump(&mut self, group: Group, set: &'static str, key: Vec<u8>, chain: Chain) {
        self.element(group, set, key).jump = Some(chain.name());
        self.chains.push((group, chain));
    }

    /// Traffic of this address to anything but its own network leaves under the host's address.
    pub fn masquerade(&mut self, address: Prefix) {
        let set = by_family(address.ip, "masq4", "masq6");
        self.jump(Group::Nat, set, octets(address.ip), Chain::Masquerade(address.network()));
    }

    /// A host port leads to this address.
    pub fn host_port(&mut self, address: Prefix, port: &HostPort) {
        let service = [&[port.protocol][..], &port.port.to_be_bytes()];
        let (set, key) = match port.host_ip {
            None => (by_family(address.ip, "ports4", "ports6"), parts(&service)),
            Some(host) => {
                (by_family(address.ip, "hostips4", "hostips6"), parts(&[&octets(host), service[0], service[1]]))
            }
        };
        let value = parts(&[&octets(address.ip), &port.pod_port.to_be_bytes()]);
        self.element(Group::Nat, set, key).value = Some(value);
    }

    /// A host port leads to this address for packets that meet conditions.
    pub fn conditional_port(&mut self, address: Prefix, port: &HostPort, conditions: &[Expr<'static>]) {
        use gantry_net::nft::R0;
        let f = family(address.ip.is_ipv4());
        let mut rule = of_family(&f);
        if let Some(host) = port.host_ip {
            rule.push(Expr::Payload(1, f.destination, f.length, R0));
            rule.push(Expr::Compare(R0, true, octets(host)));
        }
        rule.extend([Expr::Meta(16, R0), Expr::Compare(R0, true, vec![port.protocol])]);
        rule.extend([Expr::Payload(2, 2, 2, R0), Expr::Compare(R0, true, port.port.to_be_bytes().to_vec())]);
        rule.extend_from_slice(conditions);
        let after = R0 + f.length / 4;
        rule.push(Expr::Load(R0, octets(address.ip)));
        rule.push(Expr::Load(after, port.pod_port.to_be_bytes().to_vec()));
        rule.push(Expr::Dnat(f.number, R0, after));
        self.rules.push(rule);
    }

    /// Who reaches this address through a host port from its own network or from the host itself appears as the host, so
    /// that answers come back the same way.
    pub fn hairpin(&mut self, address: Prefix) {
        let set = by_family(address.ip, "hairpin4", "hairpin6");
        self.jump(Group::Nat, set, octets(address.ip), Chain::Hairpin(address.network()));
    }

    /// Everyone who reaches this address through a host port appears as the host.
    pub fn source_nat(&mut self, address: Prefix) {
        self.element(Group::Nat, by_family(address.ip, "snat4", "snat6"), octets(address.ip));
    }

    /// The firewall knows this address; the administrator's chain of a name is asked about its traffic.
    pub fn pod(&mut self, ip: IpAddr, admin: &str) {
        self.element(Group::Filter, by_family(ip, "pods4", "pods6"), octets(ip));
        self.admin = Some(admin.to_owned());
    }

    /// Pods of other bridges, or (`alone`) of any bridge, may not send to this address, which is behind `bridge`.
    pub fn ingress(&mut self, ip: IpAddr, bridge: &str, alone: bool) {
        let chain = if alone { Chain::Alone(bridge.to_owned()) } else { Chain::Same(bridge.to_owned()) };
        self.jump(Group::Filter, by_family(ip, "ingress4", "ingress6"), octets(ip), chain);
    }

    /// The bridge forwards nothing to this port.
    pub fn isolated(&mut self, port: &str) {
        self.element(Group::Frames, "isolated", name_bytes(port));
    }

    /// What comes by this port of a bridge must have this hardware address as its sender.
    pub fn sender(&mut self, port: &str, mac: [u8; 6]) {
        self.element(Group::Frames, "checked", name_bytes(port));
        self.element(Group::Frames, "macs", parts(&[&name_bytes(port), &mac]));
    }

    /// Nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty() && self.rules.is_empty()
    }

    /// Something of a group is wanted.
    pub(super) fn needs(&self, group: Group) -> bool {
        self.elements.iter().any(|(g, ..)| *g == group) || (group == Group::Nat && !self.rules.is_empty())
    }
}
