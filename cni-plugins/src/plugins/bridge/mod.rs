//! bridge: a veth pair, one end in the container, the other a port of a bridge on the host.

mod config;
mod host;

use gantry_net::ip::{Route, add_address};
use gantry_net::link::{self, Change, Kind};
use gantry_net::{Link, Prefix, Socket};

use self::config::Config;
use super::Plugin;
use crate::ipam::delegate;
use crate::nat::{self, Part, Wanted};
use crate::netns::{Netns, set_sysctl};
use crate::spec::{CniResult, Command, Context, Error, Interface, IpConfig, Request, Result, RouteConfig};

/// The plugin.
#[derive(Debug)]
pub(super) struct Bridge;

impl Plugin for Bridge {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        let netns = Netns::open(request)?;
        let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
        let bridge = host::ensure_bridge(&mut socket, &config)?;
        let mut made = Made::default();
        let added = attach(request, &config, &netns, &mut socket, &bridge, &mut made);
        if added.is_err() {
            made.undo(request, &mut socket);
        }
        added
    }

    fn del(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        detach(request)
    }

    fn check(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        delegate::pass(Command::Check, request)?;
        let previous = request.config.previous.clone().unwrap_or_default();
        let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
        let bridge = host::existing(&mut socket, &config.bridge)?;
        let name = host_name(request);
        let port = socket.link(&name).doing(|| format!("find {name}"))?;
        if port.is_none_or(|p| p.master != Some(bridge.index)) {
            return Err(Error::internal(format!("{name} is not a port of {}", config.bridge)));
        }
        check_container(request, &previous)?;
        let missing = nat::missing(&nat::owner(&request.container, &request.ifname), &wanted(&config, &previous))?;
        if missing.is_empty() {
            Ok(())
        } else {
            Err(Error::internal(format!("nf_tables table lacks {}", missing.join(", "))))
        }
    }

    fn status(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        delegate::pass(Command::Status, request)
    }

    fn gc(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        let valid: Vec<_> = request.valid_attachments()?.iter().map(|(c, i)| nat::owner(c, i)).collect();
        nat::retain(Part::Masquerade, |owner| valid.iter().any(|v| v == owner))?;
        delegate::pass(Command::Gc, request)
    }
}

/// The name of the host's end. It follows from the attachment, so that what a crash left is found again.
fn host_name(request: &Request) -> String {
    let text = [request.container.as_bytes(), b"/", request.ifname.as_bytes()].concat();
    // FNV-1a, of which 44 bits fit into a device's name.
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    format!("veth{:011x}", hash >> 20)
}

/// What this ADD has made: only that is undone when it fails, not an attachment that was there before.
#[derive(Debug, Default)]
struct Made {
    addresses: bool,
    pair: Option<u32>,
}

impl Made {
    /// What cannot be undone now will be by the DEL that follows every failed ADD.
    fn undo(self, request: &Request, socket: &mut Socket) {
        let removed = self.pair.is_none_or(|index| socket.request(link::delete(index)).is_ok());
        if self.addresses && removed {
            let _ = delegate::pass(Command::Del, request);
        }
    }
}

fn attach(
    request: &Request,
    config: &Config,
    netns: &Netns,
    socket: &mut Socket,
    bridge: &Link,
    made: &mut Made,
) -> Result<CniResult> {
    let mut result = if config.layer3 { delegate::add(request)? } else { CniResult::default() };
    made.addresses = config.layer3;
    if config.layer3 && result.ips.is_empty() {
        return Err(Error::internal("IPAM plugin returned missing IP config"));
    }
    let name = host_name(request);
    let port = make_pair(request, config, netns, socket, &name)?;
    made.pair = Some(port.index);
    host::join(socket, config, bridge, &port)?;
    default_routes(config, &mut result);
    if config.layer3 && config.gateway {
        host::gateway(socket, config, bridge, &result.ips)?;
    }
    let container = configure_container(request, config, netns, &result)?;
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(2));
    let bridge = host::existing(socket, &config.bridge)?;
    result.interfaces = vec![described(&bridge, ""), described(&port, ""), described(&container, &netns.text())];
    nat::add(&nat::owner(&request.container, &request.ifname), &wanted(config, &result))?;
    Ok(result)
}

fn described(link: &Link, sandbox: &str) -> Interface {
    Interface { name: link.name.clone(), mac: link.mac_text(), mtu: Some(link.mtu), sandbox: sandbox.to_owned() }
}

fn wanted(config: &Config, result: &CniResult) -> Wanted {
    let mut wanted = Wanted::default();
    if config.masquerade {
        result.ips.iter().for_each(|ip| wanted.masquerade(ip.address));
    }
    wanted
}

fn make_pair(request: &Request, config: &Config, netns: &Netns, socket: &mut Socket, name: &str) -> Result<Link> {
    let veth = Kind::Veth { peer: &request.ifname, netns: netns.place(), mac: config.mac };
    let create = link::create(name, &veth, config.mtu, None);
    if let Err(error) = socket.request(create.clone()) {
        let text = || format!("make veth pair {name} and {} in {}", request.ifname, netns.text());
        if error.raw_os_error() != Some(libc::EEXIST) {
            return Err(error).doing(text);
        }
        // Left by an ADD that was killed, unless the container has the device.
        let there = netns.socket()?.link(&request.ifname).doing(text)?;
        if there.is_some() {
            return Err(Error::internal(format!("container already has a device {}", request.ifname)));
        }
        if let Some(old) = socket.link(name).doing(text)? {
            socket.request(link::delete(old.index)).doing(text)?;
        }
        socket.request(create).doing(text)?;
    }
    let link = socket.link(name).doing(|| format!("find {name}"))?;
    link.ok_or_else(|| Error::internal(format!("{name} is gone as soon as it was made")))
}

/// Default routes by the gateways, where `isDefaultGateway` asks for them and the addresses came without.
fn default_routes(config: &Config, result: &mut CniResult) {
    if !config.default_gateway {
        return;
    }
    for four in [true, false] {
        let gateway = result.ips.iter().filter(|ip| ip.address.ip.is_ipv4() == four).find_map(|ip| ip.gateway);
        let all = if four { [0, 0, 0, 0].into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
        let dst = Prefix { ip: all, length: 0 };
        if let (Some(gateway), false) = (gateway, result.routes.iter().any(|r| r.dst == dst)) {
            let route = RouteConfig {
                dst,
                gw: Some(gateway),
                mtu: None,
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            };
            result.routes.push(route);
        }
    }
}

/// Addresses and routes of the container's end, and up with it.
fn configure_container(request: &Request, config: &Config, netns: &Netns, result: &CniResult) -> Result<Link> {
    let mut socket = netns.within(|| {
        // Neighbours learn at once who has an address that another container had before.
        for (family, name) in [("ipv4", "arp_notify"), ("ipv6", "ndisc_notify")] {
            if result.ips.iter().any(|ip| ip.address.ip.is_ipv4() == (family == "ipv4")) {
                let _ = set_sysctl(&format!("net/{family}/conf/{}/{name}", request.ifname), "1");
            }
        }
        Socket::route().doing(|| "open a netlink socket in the container".into())
    })?;
    let find = |socket: &mut Socket| -> Result<Link> {
        let link = socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))?;
        link.ok_or_else(|| Error::internal(format!("{} is gone", request.ifname)))
    };
    let link = find(&mut socket)?;
    let mut batch: Vec<_> = result.ips.iter().map(|ip| add_address(link.index, ip.address)).collect();
    if config.enabled {
        batch.push(link::change(link.index, &Change { up: Some(true), ..Change::default() }));
    }
    let addresses = result.ips.len();
    batch.extend(result.routes.iter().map(|r| route(r, &result.ips, link.index).add()));
    socket.batch(batch).map_err(|(index, error)| {
        let what = match index.checked_sub(addresses) {
            None => format!("add address {} to {}", result.ips[index].address, link.name),
            Some(0) if config.enabled => format!("set {} up", link.name),
            Some(i) => {
                let at = i - usize::from(config.enabled);
                let dst = result.routes.get(at).map_or_else(String::new, |r| r.dst.to_string());
                format!("add route {dst}")
            }
        };
        Error::internal(format!("{what}: {error}"))
    })?;
    find(&mut socket)
}

/// A route as the kernel takes it; without a router it goes to that of the address.
fn route(config: &RouteConfig, ips: &[IpConfig], device: u32) -> Route {
    let own = ips.iter().filter(|ip| ip.address.ip.is_ipv4() == config.dst.ip.is_ipv4()).find_map(|ip| ip.gateway);
    let gateway = config.gw.or(own).filter(|_| config.scope != Some(253));
    let mut route = Route::new(config.dst, gateway, device);
    route.mtu = config.mtu;
    route.advmss = config.advmss;
    route.priority = config.priority.unwrap_or(0);
    route.table = config.table.unwrap_or(route.table);
    route.link_scope = config.scope == Some(253);
    route.protocol = 3;
    route
}

/// Gives back everything that an ADD, whole or not, made for this attachment.
fn detach(request: &Request) -> Result<()> {
    let owner = nat::owner(&request.container, &request.ifname);
    let masquerade = nat::retain(Part::Masquerade, |other| other != owner).map(drop);
    let device = remove_pair(request);
    // Addresses last: nobody may get one that a device still has.
    let addresses = if device.is_ok() { delegate::pass(Command::Del, request) } else { Ok(()) };
    masquerade.and(device).and(addresses)
}

fn remove_pair(request: &Request) -> Result<()> {
    let name = host_name(request);
    let gone = |outcome: std::io::Result<()>| match outcome {
        Err(e) if e.raw_os_error() != Some(libc::ENODEV) => Err(e),
        _ => Ok(()),
    };
    let mut host = Socket::route().doing(|| "open a netlink socket".into())?;
    if let Some(link) = host.link(&name).doing(|| format!("find {name}"))? {
        return gone(host.request(link::delete(link.index))).doing(|| format!("remove {name}"));
    }
    // A pair under another name: made by the reference plugin before us.
    let Some(netns) = Netns::open_if_there(request)? else { return Ok(()) };
    let mut socket = netns.socket()?;
    match socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))? {
        Some(link) => gone(socket.request(link::delete(link.index))).doing(|| format!("remove {}", link.name)),
        None => Ok(()),
    }
}

/// The container's device has its addresses and routes.
fn check_container(request: &Request, previous: &CniResult) -> Result<()> {
    let netns = Netns::open(request)?;
    let mut socket = netns.socket()?;
    let link = socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))?;
    let link = link.ok_or_else(|| Error::internal(format!("there is no {} in the container", request.ifname)))?;
    let described = previous.interfaces.iter().find(|i| i.name == request.ifname && !i.sandbox.is_empty());
    if described.is_some_and(|d| !d.mac.is_empty() && d.mac != link.mac_text()) {
        return Err(Error::internal(format!("{} has another hardware address than it was given", link.name)));
    }
    let addresses = socket.addresses(Some(link.index)).doing(|| "read the container's addresses".into())?;
    for ip in &previous.ips {
        if !addresses.contains(&(link.index, ip.address)) {
            return Err(Error::internal(format!("{} does not have address {}", link.name, ip.address)));
        }
    }
    let routes = socket.routes().doing(|| "read the container's routes".into())?;
    for wanted in &previous.routes {
        if !routes.iter().any(|r| r.to == wanted.dst && (wanted.gw.is_none() || r.gateway == wanted.gw)) {
            return Err(Error::internal(format!("the container has no route to {}", wanted.dst)));
        }
    }
    Ok(())
}
