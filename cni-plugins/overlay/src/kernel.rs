//! This host: the underlay's device, the tunnel's device, and the tables of routes and neighbours.

use std::io;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use gantry_net::ip::{add_address, delete_address};
use gantry_net::link::{self, Change, Kind, Vxlan};
use gantry_net::{Link, Neighbour, Prefix, Route, Socket};
use gantry_sys::ethtool;

use crate::config::{Backend, Flags};
use crate::node::derived_mac;
use crate::plan::{Action, PROTOCOL};

/// Bytes of the tunnel's headers, over IPv4 and IPv6.
const HEADERS: (u32, u32) = (50, 70);

/// The device by which other nodes are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Device.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
}

impl Underlay {
    /// The address of a family that other nodes shall use.
    pub fn address(&self, four: bool) -> Option<IpAddr> {
        let usable = |p: &&Prefix| p.ip.is_ipv4() == four && !link_local(p.ip);
        self.addresses.iter().find(usable).map(|p| p.ip)
    }
}

fn link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfe80)
}

/// Finds the underlay's device: by name or address, by the address that others use, or by the default route.
///
/// # Errors
/// There is none, or it has no address.
pub fn underlay(socket: &mut Socket, flags: &Flags) -> Result<Underlay> {
    let addresses = socket.addresses(None).context("read addresses")?;
    let having = |ip: IpAddr| addresses.iter().find(|(_, p)| p.ip == ip).map(|(index, _)| *index);
    let link = match (&flags.iface, flags.public_ip) {
        (Some(text), _) => match text.parse::<IpAddr>() {
            Ok(ip) => by_index(socket, having(ip))?.with_context(|| format!("--iface: no device has address {ip}"))?,
            Err(_) => socket.link(text)?.with_context(|| format!("--iface: there is no device {text}"))?,
        },
        (None, Some(ip)) if having(ip).is_some() => by_index(socket, having(ip))?.context("its device is gone")?,
        _ => {
            let routes = socket.routes().context("read routes")?;
            let default = routes.iter().filter(|r| r.to.length == 0 && r.device != 0).min_by_key(|r| r.priority);
            let index = default.context("there is no default route: name the underlay's device with --iface")?.device;
            by_index(socket, Some(index))?.context("the default route's device is gone")?
        }
    };
    let addresses = addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, p)| *p).collect();
    Ok(Underlay { index: link.index, name: link.name, mtu: link.mtu, addresses })
}

fn by_index(socket: &mut Socket, index: Option<u32>) -> io::Result<Option<Link>> {
    index.map_or(Ok(None), |index| socket.link_by_index(index))
}

/// The MTU of pods' devices.
pub fn mtu(backend: Backend, underlay: &Underlay, four: bool) -> u32 {
    match backend {
        Backend::HostGw => underlay.mtu,
        Backend::Vxlan { mtu: Some(mtu), .. } => mtu,
        Backend::Vxlan { .. } => underlay.mtu.saturating_sub(if four { HEADERS.0 } else { HEADERS.1 }),
    }
}

/// The tunnel device's name, as flannel has it.
pub fn tunnel_name(vni: u32, four: bool) -> String {
    if four { format!("flannel.{vni}") } else { format!("flannel-v6.{vni}") }
}

/// Finds or makes the tunnel's device, with these settings, up, and with the first address of this node's network.
///
/// # Errors
/// The kernel refuses.
pub fn tunnel(socket: &mut Socket, node: &str, settings: &Vxlan, mtu: u32, subnet: Prefix) -> Result<Link> {
    let four = subnet.ip.is_ipv4();
    let name = tunnel_name(settings.vni, four);
    if let Some(old) = socket.link(&name)? {
        if old.kind != "vxlan" {
            bail!("device {name} is in the way: it is no tunnel");
        }
        if Vxlan::of(&old).as_ref() != Some(settings) {
            tracing::info!(device = name, "the tunnel's settings have changed: making it anew");
            socket.request(link::delete(old.index)).with_context(|| format!("remove {name}"))?;
        }
    }
    if socket.link(&name)?.is_none() {
        let create =
            link::create(&name, &Kind::Vxlan(settings.clone()), Some(mtu), Some(derived_mac(node, settings.vni, four)));
        socket.request(create).with_context(|| format!("make tunnel device {name}"))?;
        if !four {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
        }
    }
    let link = socket.link(&name)?.with_context(|| format!("{name} is gone as soon as it was made"))?;
    if !link.is_up() || link.mtu != mtu {
        let change = Change { up: Some(true), mtu: Some(mtu), ..Change::default() };
        socket.request(link::change(link.index, &change)).with_context(|| format!("set {name} up"))?;
    }
    let address = Prefix::host(subnet.network().ip);
    let there = socket.addresses(Some(link.index))?;
    for (_, other) in there.iter().filter(|(_, p)| *p != address && p.ip.is_ipv4() == four && !link_local(p.ip)) {
        socket.request(delete_address(link.index, *other)).with_context(|| format!("remove {other} from {name}"))?;
    }
    if !there.iter().any(|(_, p)| *p == address) {
        socket.request(add_address(link.index, address)).with_context(|| format!("add {address} to {name}"))?;
    }
    socket.link(&name)?.with_context(|| format!("{name} is gone"))
}

/// Has the kernel compute checksums of what a tunnel's device sends.
///
/// # Errors
/// The device is gone, or does not let itself be set.
pub fn compute_checksums(socket: &Socket, name: &str) -> Result<()> {
    let doing = || format!("set the checksums of {name}");
    if ethtool::tx_checksum(socket, name).with_context(doing)? {
        ethtool::set_tx_checksum(socket, name, false).with_context(doing)?;
        tracing::info!(device = name, "the kernel computes checksums of packets in the tunnel");
    }
    Ok(())
}

/// The routes of one family that are ours: on the tunnel's device, or with our mark.
///
/// # Errors
/// The kernel's errno.
pub fn routes(socket: &mut Socket, tunnel: Option<u32>, four: bool) -> io::Result<Vec<Route>> {
    const KERNEL: u8 = 2;
    let mut routes = socket.routes()?;
    // What the kernel makes for a device's own addresses, or for multicast, is not ours.
    let tunnels = |r: &Route| Some(r.device) == tunnel && r.protocol != KERNEL && r.gateway.is_some();
    routes.retain(|r| r.to.ip.is_ipv4() == four && (r.protocol == PROTOCOL || tunnels(r)));
    Ok(routes)
}

/// Does the changes in one system call. Answers what the kernel refused, in words.
pub fn apply(socket: &mut Socket, actions: &[Action]) -> Vec<String> {
    let mut faults = Vec::new();
    // The kernel goes on after a refusal, but only the first is told: small pieces tell more.
    for piece in actions.chunks(256) {
        let messages = piece.iter().map(|action| match action {
            Action::Set(n) => n.replace(),
            Action::Unset(n) => n.delete(),
            Action::Route(r) => r.replace(),
            Action::Unroute(r) => r.delete(),
        });
        if let Err((index, error)) = socket.batch(messages.collect()) {
            let gone = matches!(piece.get(index), Some(Action::Unset(_) | Action::Unroute(_)));
            if !gone {
                faults.push(format!("{:?}: {error}", piece.get(index)));
            }
        }
    }
    faults
}

/// The neighbours of the tunnel's device.
///
/// # Errors
/// The kernel's errno.
pub fn neighbours(socket: &mut Socket, tunnel: Option<u32>) -> io::Result<Vec<Neighbour>> {
    tunnel.map_or(Ok(Vec::new()), |device| socket.neighbours(device))
}

/// Lets the host forward packets of a family.
///
/// # Errors
/// The setting cannot be written.
pub fn forward(four: bool) -> io::Result<()> {
    let path = if four { "/proc/sys/net/ipv4/ip_forward" } else { "/proc/sys/net/ipv6/conf/all/forwarding" };
    if std::fs::read_to_string(path)?.trim() == "1" { Ok(()) } else { std::fs::write(path, "1") }
}

/// Removes the tunnels of a VNI and every route with our mark.
///
/// # Errors
/// The kernel refuses.
pub fn clean(vni: Option<u32>) -> Result<()> {
    let mut socket = Socket::route()?;
    for route in socket.routes()?.iter().filter(|r| r.protocol == PROTOCOL) {
        socket.request(route.delete()).with_context(|| format!("remove the route to {}", route.to))?;
    }
    for four in [true, false] {
        let Some(vni) = vni else { continue };
        if let Some(link) = socket.link(&tunnel_name(vni, four))? {
            socket.request(link::delete(link.index)).with_context(|| format!("remove {}", link.name))?;
        }
    }
    Ok(())
}
