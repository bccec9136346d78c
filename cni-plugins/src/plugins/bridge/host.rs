//! The host's side: the bridge, its port, its gateway addresses.

use std::io::Read;

use gantry_net::ip::{add_address, delete_address};
use gantry_net::link::{self, BridgePort, Change, Kind};
use gantry_net::{Link, Prefix, Socket};

use super::config::Config;
use crate::netns::set_sysctl;
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
    if socket.link(name).doing(|| format!("find {name}"))?.is_none() {
        let kind = Kind::Bridge { vlan_filtering: config.vlans() };
        // An address of its own: otherwise it changes with the ports, and pods send to one that is gone.
        let mac = random_mac().doing(|| "read random bytes".into())?;
        match socket.request(link::create(name, &kind, config.mtu, Some(mac))) {
            // Another ADD was faster.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            other => other.doing(|| format!("make bridge {name}"))?,
        }
        // Pods configure their addresses by us, not by what some router announces.
        let _ = set_sysctl(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
    }
    let bridge = existing(socket, name)?;
    let promisc = config.promisc.then_some(true).filter(|_| bridge.flags & link::PROMISC == 0);
    if !bridge.is_up() || promisc.is_some() {
        let change = Change { up: Some(true), promisc, ..Change::default() };
        socket.request(link::change(bridge.index, &change)).doing(|| format!("set {name} up"))?;
    }
    Ok(bridge)
}

/// A locally administered address of one station.
fn random_mac() -> std::io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut mac)?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

/// Makes the host's end of the pair a port of the bridge.
pub(super) fn join(socket: &mut Socket, config: &Config, bridge: &Link, port: &Link, owner: &str) -> Result<()> {
    let change = Change { up: Some(true), master: Some(bridge.index), alias: Some(owner), ..Change::default() };
    let mut batch = vec![link::change(port.index, &change)];
    if config.hairpin || config.isolated {
        let options = BridgePort { hairpin: config.hairpin.then_some(true), isolated: config.isolated.then_some(true) };
        batch.push(link::bridge_port(port.index, options));
    }
    if config.vlans() {
        if !config.preserve_default_vlan {
            batch.push(link::vlan(port.index, (1, 1), false, false, true));
        }
        if config.vlan > 0 {
            batch.push(link::vlan(port.index, (config.vlan, config.vlan), true, false, false));
        }
        batch.extend(config.trunk.iter().map(|range| link::vlan(port.index, *range, false, false, false)));
    }
    socket
        .batch(batch)
        .map_err(|(_, e)| Error::internal(format!("connect {} to bridge {}: {e}", port.name, bridge.name)))
}

/// Gives the bridge the gateways' addresses and lets the host forward.
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
        if gateway.is_ipv4() {
            set_sysctl("net/ipv4/ip_forward", "1")?;
        } else {
            set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
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
