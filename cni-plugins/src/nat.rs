//! The one nf_tables table of the plugins: masquerading and host ports, one map element per pod and port.
//!
//! A packet costs one look into a hash however many pods there are, and so does a change. Elements carry their owner
//! (container and device) as comment: what a crash left is found by it. What needs more than the pod's address (is the
//! destination in the pod's own network?) stands in one chain per network, named after it. Every change is one
//! transaction on the generation that was looked at, so that plugins running at once cannot undo each other's work; the
//! table goes with its last element.

use std::io;
use std::net::IpAddr;

use gantry_net::nft::{Batch, Element, Expr, Hook, R0, Set, Type, VERDICT};
use gantry_net::{Prefix, Socket};

use crate::spec::{Context, Result};

/// The table's name.
pub const TABLE: &str = "gantry-cni";

const IPV4: u8 = 2;
const IPV6: u8 = 10;
const LOCAL: u32 = 2;
/// Bit of the connection's status: its destination was translated.
const DNAT_STATUS: u32 = 1 << 5;

/// Maps that several plugins write to; each one's DEL and GC looks at its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Sources whose traffic to other networks is masqueraded.
    Masquerade,
    /// Host ports and what belongs to them.
    Ports,
}

impl Part {
    fn sets(self) -> Vec<Set<'static>> {
        match self {
            Self::Masquerade => {
                vec![map("masq4", &[Type::Ipv4], &[Type::Verdict]), map("masq6", &[Type::Ipv6], &[Type::Verdict])]
            }
            Self::Ports => vec![
                map("ports4", &[Type::Protocol, Type::Port], &[Type::Ipv4, Type::Port]),
                map("ports6", &[Type::Protocol, Type::Port], &[Type::Ipv6, Type::Port]),
                map("hostips4", &[Type::Ipv4, Type::Protocol, Type::Port], &[Type::Ipv4, Type::Port]),
                map("hostips6", &[Type::Ipv6, Type::Protocol, Type::Port], &[Type::Ipv6, Type::Port]),
                map("hairpin4", &[Type::Ipv4], &[Type::Verdict]),
                map("hairpin6", &[Type::Ipv6], &[Type::Verdict]),
                map("snat4", &[Type::Ipv4], &[]),
                map("snat6", &[Type::Ipv6], &[]),
            ],
        }
    }

    fn names(self) -> Vec<&'static str> {
        self.sets().iter().map(|s| s.name).collect()
    }
}

fn map(name: &'static str, key: &'static [Type], value: &'static [Type]) -> Set<'static> {
    Set { name, key, value, interval: false }
}

/// What one plugin wants for one attachment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    elements: Vec<(&'static str, Element)>,
    /// Networks whose chains the elements jump to.
    networks: Vec<(Purpose, Prefix)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Masquerade,
    Hairpin,
}

/// Whose elements they are, as comment.
pub fn owner(container: &str, ifname: &str) -> String {
    format!("{container} {ifname}")
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn by_family(ip: IpAddr, four: &'static str, six: &'static str) -> &'static str {
    if ip.is_ipv4() { four } else { six }
}

/// A key or value of several parts; each takes whole 32-bit words.
fn parts(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
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

impl Wanted {
    /// Traffic of this address to anything but its own network leaves under the host's address.
    pub fn masquerade(&mut self, address: Prefix) {
        let chain = chain_name(Purpose::Masquerade, address.network());
        self.networks.push((Purpose::Masquerade, address.network()));
        let element = Element { key: octets(address.ip), jump: Some(chain), ..Element::default() };
        self.elements.push((by_family(address.ip, "masq4", "masq6"), element));
    }

    /// A host port leads to this address.
    pub fn host_port(&mut self, address: Prefix, port: &HostPort) {
        let value = Some(parts(&[&octets(address.ip), &port.pod_port.to_be_bytes()]));
        let service = [&[port.protocol][..], &port.port.to_be_bytes()];
        let (set, key) = match port.host_ip {
            None => (by_family(address.ip, "ports4", "ports6"), parts(&service)),
            Some(host) => {
                (by_family(address.ip, "hostips4", "hostips6"), parts(&[&octets(host), service[0], service[1]]))
            }
        };
        self.elements.push((set, Element { key, value, ..Element::default() }));
    }

    /// Who reaches this address through a host port from its own network or from the host itself appears as the host, so
    /// that answers come back the same way.
    pub fn hairpin(&mut self, address: Prefix) {
        let chain = chain_name(Purpose::Hairpin, address.network());
        self.networks.push((Purpose::Hairpin, address.network()));
        let element = Element { key: octets(address.ip), jump: Some(chain), ..Element::default() };
        self.elements.push((by_family(address.ip, "hairpin4", "hairpin6"), element));
    }

    /// Everyone who reaches this address through a host port appears as the host.
    pub fn source_nat(&mut self, address: Prefix) {
        let element = Element { key: octets(address.ip), ..Element::default() };
        self.elements.push((by_family(address.ip, "snat4", "snat6"), element));
    }

    /// Nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }
}

/// `masq-0a580000-16`: the network stands in the name, so that a flushed chain can be filled again.
fn chain_name(purpose: Purpose, network: Prefix) -> String {
    let hex: String = octets(network.ip).iter().map(|b| format!("{b:02x}")).collect();
    let purpose = match purpose {
        Purpose::Masquerade => "masq",
        Purpose::Hairpin => "hairpin",
    };
    format!("{purpose}-{hex}-{}", network.length)
}

fn chain_of(name: &str) -> Option<(Purpose, Prefix)> {
    let mut words = name.split('-');
    let purpose = match words.next()? {
        "masq" => Purpose::Masquerade,
        "hairpin" => Purpose::Hairpin,
        _ => return None,
    };
    let hex = words.next()?;
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(hex.get(i..i + 2)?, 16).ok()).collect::<Option<_>>()?;
    let ip = <[u8; 4]>::try_from(bytes.as_slice())
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
        .ok()?;
    Some((purpose, Prefix::new(ip, words.next()?.parse().ok()?)?))
}

/// Where a family's addresses are in its header.
struct Family {
    number: u8,
    source: u32,
    destination: u32,
    length: u32,
    multicast: (Vec<u8>, Vec<u8>),
}

fn family(four: bool) -> Family {
    if four {
        let multicast = (vec![0xf0, 0, 0, 0], vec![0xe0, 0, 0, 0]);
        Family { number: IPV4, source: 12, destination: 16, length: 4, multicast }
    } else {
        let mask = [&[0xff][..], &[0; 15]].concat();
        Family { number: IPV6, source: 8, destination: 24, length: 16, multicast: (mask.clone(), mask) }
    }
}

/// Goes on for packets of the family.
fn of_family(family: &Family) -> Vec<Expr<'static>> {
    vec![Expr::Meta(15, R0), Expr::Compare(R0, true, vec![family.number])]
}

/// Goes on when an address of the packet is (or is not) in a network.
fn address_in(family: &Family, offset: u32, network: Prefix, inside: bool) -> Vec<Expr<'static>> {
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
fn translated() -> Vec<Expr<'static>> {
    let bit = DNAT_STATUS.to_ne_bytes().to_vec();
    vec![Expr::CtStatus(R0), Expr::Mask(R0, bit), Expr::Compare(R0, false, vec![0; 4])]
}

/// The rules that do not depend on pods, by chain.
fn base_rules() -> Vec<(&'static str, Vec<Expr<'static>>)> {
    let local = || vec![Expr::FibDestination(R0), Expr::Compare(R0, true, LOCAL.to_ne_bytes().to_vec())];
    let mut rules = Vec::new();
    for chain in ["prerouting", "output"] {
        let mut rule = local();
        rule.push(Expr::Jump("host-ports"));
        rules.push((chain, rule));
    }
    for four in [true, false] {
        let f = family(four);
        let pick = |a, b| if four { a } else { b };
        // Registers are 32 bits wide: an address takes one or four of them.
        let (proto, port) = if four { (R0 + 1, R0 + 2) } else { (R0 + 4, R0 + 5) };
        let mut by_address = of_family(&f);
        by_address.extend([
            Expr::Payload(1, f.destination, f.length, R0),
            Expr::Meta(16, proto),
            Expr::Payload(2, 2, 2, port),
            Expr::Map(pick("hostips4", "hostips6"), R0, R0),
            Expr::Dnat(f.number, R0, proto),
        ]);
        rules.push(("host-ports", by_address));
        let mut by_port = of_family(&f);
        by_port.extend([
            Expr::Meta(16, R0),
            Expr::Payload(2, 2, 2, R0 + 1),
            Expr::Map(pick("ports4", "ports6"), R0, R0),
            Expr::Dnat(f.number, R0, proto),
        ]);
        rules.push(("host-ports", by_port));

        let mut hairpin = [of_family(&f), translated()].concat();
        hairpin.push(Expr::Payload(1, f.destination, f.length, R0));
        let mut snat = hairpin.clone();
        hairpin.push(Expr::Map(pick("hairpin4", "hairpin6"), R0, VERDICT));
        rules.push(("postrouting", hairpin));
        snat.extend([Expr::Lookup(pick("snat4", "snat6"), R0, true), Expr::Masquerade]);
        rules.push(("postrouting", snat));
        let mut masquerade = of_family(&f);
        masquerade.push(Expr::Payload(1, f.source, f.length, R0));
        masquerade.push(Expr::Map(pick("masq4", "masq6"), R0, VERDICT));
        rules.push(("postrouting", masquerade));
    }
    rules
}

/// The rules of a network's chain.
fn network_rules(purpose: Purpose, network: Prefix) -> Vec<Vec<Expr<'static>>> {
    let f = family(network.ip.is_ipv4());
    match purpose {
        Purpose::Masquerade => {
            let mut rule = address_in(&f, f.destination, network, false);
            let (mask, group) = f.multicast.clone();
            rule.push(Expr::Payload(1, f.destination, f.length, R0));
            rule.extend([Expr::Mask(R0, mask), Expr::Compare(R0, false, group), Expr::Masquerade]);
            vec![rule]
        }
        Purpose::Hairpin => {
            let loopback = if network.ip.is_ipv4() {
                Prefix { ip: [127, 0, 0, 0].into(), length: 8 }
            } else {
                Prefix::host(std::net::Ipv6Addr::LOCALHOST.into())
            };
            [network, loopback]
                .into_iter()
                .map(|from| {
                    let mut rule = address_in(&f, f.source, from, true);
                    rule.push(Expr::Masquerade);
                    rule
                })
                .collect()
        }
    }
}

/// Adds to a transaction what the table lacks: the table itself, rules that somebody flushed, chains of networks.
fn complete(socket: &mut Socket, batch: &mut Batch, wanted: &Wanted) -> io::Result<()> {
    let rules = socket.nft_rules(TABLE)?;
    let base = base_rules();
    let stand = |name: &str| rules.iter().filter(|c| *c == name).count();
    let mut networks = wanted.networks.clone();
    let whole = base.iter().all(|(chain, _)| stand(chain) == base.iter().filter(|(c, _)| c == chain).count());
    if !whole {
        batch.table(TABLE, false);
        let chains = socket.nft_chains(TABLE)?;
        networks.extend(chains.iter().filter_map(|name| chain_of(name)));
        if !rules.is_empty() {
            batch.flush_rules(TABLE);
        }
        for part in [Part::Masquerade, Part::Ports] {
            for set in part.sets() {
                batch.set(TABLE, &set);
            }
        }
        let nat = |number, priority| Some(Hook { kind: "nat", number, priority });
        batch.chain(TABLE, "host-ports", None);
        batch.chain(TABLE, "prerouting", nat(0, -100)).chain(TABLE, "output", nat(3, -100));
        batch.chain(TABLE, "postrouting", nat(4, 100));
        for (chain, rule) in &base {
            batch.rule(TABLE, chain, rule);
        }
    }
    let mut done = Vec::new();
    for (purpose, network) in networks {
        let name = chain_name(purpose, network);
        if done.contains(&name) || (whole && stand(&name) > 0) {
            continue;
        }
        batch.chain(TABLE, &name, None);
        for rule in network_rules(purpose, network) {
            batch.rule(TABLE, &name, &rule);
        }
        done.push(name);
    }
    Ok(())
}

/// Repeats `work` while others change the ruleset under it.
fn exclusively<T>(mut work: impl FnMut(&mut Socket, u32) -> io::Result<T>) -> io::Result<T> {
    let mut socket = Socket::netfilter()?;
    let mut tries = 0;
    loop {
        let generation = socket.nft_generation()?;
        match work(&mut socket, generation) {
            Err(e) if e.raw_os_error() == Some(libc::ERESTART) && tries < 200 => {
                tries += 1;
                // Whoever was first is done within a millisecond.
                std::thread::sleep(std::time::Duration::from_micros(200 * (1 + u64::from(std::process::id() % 8))));
            }
            other => return other,
        }
    }
}

/// Puts elements of an owner into the table.
///
/// # Errors
/// The kernel refuses; nothing is changed then.
pub fn add(owner: &str, wanted: &Wanted) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    exclusively(|socket, generation| {
        let mut batch = Batch::new();
        complete(socket, &mut batch, wanted)?;
        for (set, element) in &wanted.elements {
            batch.element(TABLE, set, &Element { comment: owner.to_owned(), ..element.clone() });
        }
        batch.commit_after(socket, Some(generation))
    })
    .doing(|| format!("change nf_tables table {TABLE}"))
}

/// Removes the elements of `part` whose owner is not to be kept, chains that nothing jumps to any more, and the table with
/// its last element. Returns the UDP ports of the host that lead nowhere now.
///
/// # Errors
/// The kernel refuses.
pub fn retain(part: Part, keep: impl Fn(&str) -> bool) -> Result<Vec<u16>> {
    exclusively(|socket, generation| {
        let mut batch = Batch::new();
        let (mut left, mut removed, mut udp) = (0, 0, Vec::new());
        let mut jumps: Vec<(String, bool)> = Vec::new();
        for of in [Part::Masquerade, Part::Ports] {
            for set in of.names() {
                for element in socket.nft_elements(TABLE, set)? {
                    let stays = of != part || keep(&element.comment);
                    jumps.extend(element.jump.clone().map(|chain| (chain, stays)));
                    if stays {
                        left += 1;
                        continue;
                    }
                    removed += 1;
                    udp.extend(udp_port(set, &element.key));
                    batch.delete_element(TABLE, set, &element);
                }
            }
        }
        if removed == 0 {
            return Ok(udp);
        }
        if left == 0 {
            batch = Batch::new();
            batch.delete_table(TABLE);
        } else {
            let mut empty: Vec<_> = jumps.iter().filter(|(_, stays)| !stays).map(|(chain, _)| chain).collect();
            empty.sort();
            empty.dedup();
            for chain in empty {
                if !jumps.iter().any(|(c, stays)| c == chain && *stays) {
                    batch.delete_chain(TABLE, chain);
                }
            }
        }
        batch.commit_after(socket, Some(generation))?;
        Ok(udp)
    })
    .doing(|| format!("change nf_tables table {TABLE}"))
}

fn udp_port(set: &str, key: &[u8]) -> Option<u16> {
    // Protocol and port are the last two words of the key.
    (set.starts_with("ports") || set.starts_with("hostips")).then_some(())?;
    let words = key.get(key.len().checked_sub(8)?..)?;
    (words[0] == 17).then(|| u16::from_be_bytes([words[4], words[5]]))
}

/// Which of the wanted elements are not there for their owner.
///
/// # Errors
/// The kernel's.
pub fn missing(owner: &str, wanted: &Wanted) -> Result<Vec<&'static str>> {
    let look = || {
        let mut socket = Socket::netfilter()?;
        let mut missing = Vec::new();
        for (set, element) in &wanted.elements {
            let there = socket.nft_elements(TABLE, set)?;
            if !there.iter().any(|e| e.key == element.key && e.value == element.value && e.comment == owner) {
                missing.push(*set);
            }
        }
        let rules = socket.nft_rules(TABLE)?;
        if rules.len() < base_rules().len() && !wanted.is_empty() {
            missing.push("rules");
        }
        Ok(missing)
    };
    io::Result::doing(look(), || format!("read nf_tables table {TABLE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chains_name_tells_its_network() {
        for text in ["10.88.0.0/16", "fd00:1::/64"] {
            let network: Prefix = text.parse().unwrap();
            for purpose in [Purpose::Masquerade, Purpose::Hairpin] {
                assert_eq!(chain_of(&chain_name(purpose, network)), Some((purpose, network)));
            }
        }
        for other in ["postrouting", "host-ports", "masq", "masq-zz-1", "masq-0a-99"] {
            assert_eq!(chain_of(other), None, "{other}");
        }
    }

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

    #[test]
    fn udp_ports_are_found_in_keys() {
        let mut wanted = Wanted::default();
        let port = |protocol, host_ip| HostPort { host_ip, protocol, port: 5353, pod_port: 53 };
        let address = "10.1.0.2/24".parse().unwrap();
        wanted.host_port(address, &port(17, None));
        wanted.host_port(address, &port(17, "192.0.2.1".parse().ok()));
        wanted.host_port(address, &port(6, None));
        let found: Vec<_> = wanted.elements.iter().map(|(set, e)| udp_port(set, &e.key)).collect();
        assert_eq!(found, [Some(5353), Some(5353), None]);
    }
}
