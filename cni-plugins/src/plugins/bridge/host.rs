//! The host's side: the bridge, its port, its gateway addresses.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use gantry_net::ip::{add_address, delete_address};
use gantry_net::link::{self, BorrowedFdKey, BridgePort, Change, Kind};
use gantry_net::message::Message;
use gantry_net::{Link, Neighbour, Prefix, Socket};

use super::config::Config;
use crate::netns::{let_forward, set_sysctl};
use crate::spec::{Context, Error, IpConfig, Result};

/// The bridge of a name.
pub(super) fn existing(socket: &mut Socket, name: &str) -> Result<Link> {
    let link = socket.link(name).doing(|| format!("find {name}"))?;
    let link = link.ok_or_else(|| Error::internal(format!("there is no bridge {name}")))?;
    if link.kind == "bridge" {
        Ok(link)
    } else {
        Err(Error::internal(format!("\"{name}\" already exists but is not a bridge")))
    }
}

/// Finds the bridge, or makes it; it is up then.
pub(super) fn ensure_bridge(socket: &mut Socket, config: &Config) -> Result<Link> {
    let name = &config.bridge;
    let there = socket.link(name).doing(|| format!("find {name}"))?.filter(|link| link.kind == "bridge");
    let bridge = match there {
        Some(bridge) => bridge,
        None => make_bridge(socket, config)?,
    };
    let promisc = config.promisc.then_some(true).filter(|_| bridge.flags & link::PROMISC == 0);
    if !bridge.is_up() || promisc.is_some() {
        let change = Change { up: Some(true), promisc, ..Change::default() };
        socket.request(link::change(bridge.index, &change)).doing(|| format!("set {name} up"))?;
    }
    Ok(bridge)
}

fn make_bridge(socket: &mut Socket, config: &Config) -> Result<Link> {
    let name = &config.bridge;
    // Snooping decides nothing where nobody asks who listens, and makes each ADD and DEL dearer with every port.
    let kind = Kind::Bridge { vlan_filtering: config.vlans(), mcast_snooping: false };
    // An address of its own: otherwise it changes with the ports, and pods send to one that is gone.
    let mac = random_mac().doing(|| "read random bytes".into())?;
    match socket.request(link::create(name, &kind, config.mtu, Some(mac))) {
        // Another ADD was faster; or it is something else, which is found out next.
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
        other => other.doing(|| format!("make bridge {name}"))?,
    }
    let bridge = existing(socket, name)?;
    // Pods configure their addresses by us, not by what some router announces.
    let _ = set_sysctl(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
    Ok(bridge)
}

/// A locally administered address of one station.
fn random_mac() -> std::io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut mac)?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

/// The hardware address that goes with an IP address in a container: whoever gets the address next has the same one, so what
/// neighbours remember of it stays right and nothing needs to be announced to every port of the bridge.
pub(super) fn mac_of(ip: IpAddr) -> [u8; 6] {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [0x0a, 0x58, a, b, c, d]
        }
        IpAddr::V6(ip) => {
            let hash = ip
                .octets()
                .iter()
                .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
            let [.., a, b, c, d, e, f] = hash.to_be_bytes();
            // Locally administered, of one station, and not of the kind above.
            [a & 0xf0 | 0x06, b, c, d, e, f]
        }
    }
}

/// The VLANs that a port is in.
fn vlans(config: &Config, port: u32) -> Vec<Message> {
    let mut messages = Vec::new();
    if config.vlans() && !config.preserve_default_vlan {
        messages.push(link::vlan(port, (1, 1), false, false, true));
    }
    if config.vlan > 0 {
        messages.push(link::vlan(port, (config.vlan, config.vlan), true, false, false));
    }
    messages.extend(config.trunk.iter().map(|range| link::vlan(port, *range, false, false, false)));
    messages
}

/// Makes the host's end of the pair a port of the bridge.
pub(super) fn join(socket: &mut Socket, config: &Config, bridge: &Link, port: &Link, owner: &str) -> Result<()> {
    // While it is down nobody is told. A port has no use for an address, which costs routes and messages to the container.
    let before = Change { alias: Some(owner), no_link_local: true, ..Change::default() };
    let up = Change { up: Some(true), master: Some(bridge.index), ..Change::default() };
    let mut batch = vec![link::change(port.index, &before), link::change(port.index, &up)];
    if config.hairpin || config.isolated {
        let options = BridgePort { hairpin: config.hairpin.then_some(true), isolated: config.isolated.then_some(true) };
        batch.push(link::bridge_port(port.index, options));
    }
    batch.extend(vlans(config, port.index));
    socket
        .batch(batch)
        .map_err(|(_, e)| Error::internal(format!("connect {} to bridge {}: {e}", port.name, bridge.name)))
}

/// Waits until the bridge forwards what the container sends: the kernel lets it when it comes to it, mostly at once.
pub(super) fn forwarding(socket: &mut Socket, port: &Link) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let what = || format!("wait for {}", port.name);
    let start = Instant::now();
    let mut changes: Option<Socket> = None;
    loop {
        let now = socket.link_by_index(port.index).doing(what)?;
        if now.ok_or_else(|| Error::internal(format!("{} is gone", port.name)))?.is_running() {
            return Ok(());
        }
        // From before the next look: what changes after it is heard.
        let Some(changes) = &mut changes else {
            changes = Some(Socket::subscribe(link::CHANGES).doing(what)?);
            continue;
        };
        let left = PATIENCE.saturating_sub(start.elapsed());
        if left.is_zero() || !changes.wait(left).doing(what)? {
            return Err(Error::internal(format!("{} passes nothing after {PATIENCE:?}", port.name)));
        }
        changes.heard(|_| {}).doing(what)?;
    }
}

/// Tells the host which hardware address the container's addresses have: what it remembers of a container that had them
/// before is replaced, and it need not ask all ports. Where it refuses, it has no use for the address.
pub(super) fn acquaint(socket: &mut Socket, bridge: &Link, ips: &[IpConfig], mac: [u8; 6]) {
    let known = ips.iter().map(|ip| Neighbour::Arp { device: bridge.index, ip: ip.address.ip, mac }.heard_of());
    let _ = socket.batch(known.collect());
}

/// The device that has the gateways' addresses. What the bridge itself sends is in no VLAN: there it is one end of a pair,
/// named as the reference plugin names it, whose other end is a port of that VLAN. Like the bridge it stays.
pub(super) fn gateway_device(socket: &mut Socket, config: &Config, bridge: &Link) -> Result<Link> {
    if config.vlan == 0 {
        return Ok(bridge.clone());
    }
    let name = format!("{}.{}", bridge.name, config.vlan);
    let what = || format!("connect {name} to bridge {}", bridge.name);
    let port = format!("vl{:x}-{}", bridge.index, config.vlan);
    if socket.link(&name).doing(what)?.is_none() {
        let own = File::open("/proc/thread-self/ns/net").doing(|| "open the own network namespace".into())?;
        let mac = Some(random_mac().doing(|| "read random bytes".into())?);
        let pair = Kind::Veth { peer: &name, netns: BorrowedFdKey(own.as_fd()), mac };
        match socket.request(link::create(&port, &pair, Some(bridge.mtu), None)) {
            // Another ADD was faster.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            other => other.doing(|| format!("make {name}"))?,
        }
    }
    let gone = || Error::internal(format!("{name} is gone"));
    let device = socket.link(&name).doing(what)?.ok_or_else(gone)?;
    let port = socket.link(&port).doing(what)?.filter(|port| Some(port.index) == device.peer);
    let port = port.ok_or_else(|| Error::internal(format!("\"{name}\" already exists but is not the bridge's")))?;
    let mut batch = Vec::new();
    if port.master != Some(bridge.index) {
        let joined = Change { up: Some(true), master: Some(bridge.index), ..Change::default() };
        let before = Change { no_link_local: true, ..Change::default() };
        batch.extend([link::change(port.index, &before), link::change(port.index, &joined)]);
        batch.extend(vlans(config, port.index));
    }
    if !device.is_up() {
        batch.push(link::change(device.index, &Change { up: Some(true), ..Change::default() }));
    }
    socket.batch(batch).map_err(|(_, e)| e).doing(what)?;
    Ok(device)
}

/// Gives the device of the gateways their addresses and lets the host forward.
pub(super) fn gateway(socket: &mut Socket, config: &Config, bridge: &Link, ips: &[IpConfig]) -> Result<()> {
    let mut there = Vec::new();
    for four in [true, false] {
        if ips.iter().any(|ip| ip.address.ip.is_ipv4() == four && ip.gateway.is_some()) {
            let found = socket.addresses_in(four, Some(bridge.index));
            there.extend(found.doing(|| format!("read the addresses of {}", bridge.name))?);
        }
    }
    for ip in ips {
        let Some(gateway) = ip.gateway else { continue };
        let wanted = Prefix { ip: gateway, length: ip.address.length };
        if !there.iter().any(|(_, p)| *p == wanted) {
            clear_others(socket, config, bridge, wanted, &there)?;
            match socket.request(add_address(bridge.index, wanted)) {
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                other => other.doing(|| format!("add gateway address {wanted} to {}", bridge.name))?,
            }
        }
        let_forward(socket, gateway.is_ipv4())?;
    }
    Ok(())
}

/// Another address in the same network would answer in the gateway's place: an error, or removed with `forceAddress`.
fn clear_others(
    socket: &mut Socket,
    config: &Config,
    bridge: &Link,
    wanted: Prefix,
    there: &[(u32, Prefix)],
) -> Result<()> {
    let overlaps = |p: &Prefix| p.contains(wanted.ip) || wanted.contains(p.ip);
    for (_, other) in there.iter().filter(|(_, p)| p.ip.is_ipv4() == wanted.ip.is_ipv4() && overlaps(p)) {
        if !config.force_address {
            let text = format!("\"{}\" already has an IP address different from {wanted}", bridge.name);
            return Err(Error::internal(text).details(format!("it has {other}; forceAddress would replace it")));
        }
        socket
            .request(delete_address(bridge.index, *other))
            .doing(|| format!("remove address {other} from {}", bridge.name))?;
    }
    Ok(())
}
