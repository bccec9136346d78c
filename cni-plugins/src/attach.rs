//! What plugins that give a container a device share: veth pairs, addresses and routes inside, and looking at them again.

use std::time::{Duration, Instant};

use gantry_net::ip::{self, Checked, Route, add_address, add_checked_address};
use gantry_net::link::{self, Change, Ipv4Setting, Kind};
use gantry_net::{Link, Socket};

use crate::afterwards::{self, Later};
use crate::ipam::delegate;
use crate::netns::{Netns, set_sysctl};
use crate::spec::{CniResult, Code, Command, Context, Error, Interface, IpConfig, Request, Result, RouteConfig};

/// The name of the host's end of a pair. It follows from the attachment, so that what a crash left is found again.
pub fn host_name(request: &Request) -> String {
    let text = [request.container.as_bytes(), b"/", request.ifname.as_bytes()].concat();
    // FNV-1a, of which 44 bits fit into a device's name.
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    format!("veth{:011x}", hash >> 20)
}

/// A device as results describe it.
pub fn described(link: &Link, sandbox: &str) -> Interface {
    Interface { name: link.name.clone(), mac: link.mac_text(), mtu: Some(link.mtu), sandbox: sandbox.to_owned() }
}

/// Settings of a pair.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pair {
    /// MTU of both ends.
    pub mtu: Option<u32>,
    /// Hardware address in the container.
    pub mac: Option<[u8; 6]>,
}

/// What this ADD has made: only that is undone when it fails, not an attachment that was there before.
#[derive(Debug, Default)]
pub struct Made {
    /// The addresses were given.
    pub addresses: bool,
    /// The pair's end on the host.
    pub pair: Option<u32>,
}

impl Made {
    /// What cannot be undone now will be by the DEL that follows every failed ADD. False when there was nothing.
    pub fn undo(self, request: &Request, socket: &mut Socket) -> bool {
        let removed = self.pair.is_none_or(|index| socket.request(link::delete(index)).is_ok());
        if self.addresses && removed {
            let _ = delegate::pass(Command::Del, request);
        }
        self.pair.is_some()
    }
}

/// Makes a pair of devices: `name` on the host, the request's in the container.
///
/// # Errors
/// The container has such a device, or the kernel refuses.
pub fn make_pair(request: &Request, netns: &Netns, socket: &mut Socket, name: &str, wanted: &Pair) -> Result<Link> {
    let veth = Kind::Veth { peer: &request.ifname, netns: netns.place(), mac: wanted.mac };
    let create = link::create(name, &veth, wanted.mtu, None);
    let text = || format!("make veth pair {name} and {} in {}", request.ifname, netns.text());
    match socket.make(create.clone(), name) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        made => return made.doing(text),
    }
    // Left by an ADD or a DEL that was killed (or does not wait for the end), unless the container uses it.
    let old = socket.link(name).doing(text)?;
    let there = netns.socket()?.link(&request.ifname).doing(text)?;
    if there.is_some() && old.as_ref().is_none_or(Link::is_up) {
        return Err(Error::internal(format!("container already has a device {}", request.ifname)));
    }
    if let Some(old) = old {
        Later::Remove(Socket::route().doing(text)?, old.index).do_now().doing(text)?;
    }
    socket.make(create, name).doing(text)
}

/// What happens to the container's device besides addresses and routes.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// It is set up.
    pub up: bool,
    /// Neighbours learn at once who has an address that another device may have had before.
    pub announce: bool,
    /// IPv6 addresses are looked for on the link before they are used; see [`unique`].
    pub check: bool,
}

impl Setup {
    /// Up and announced: what a device on somebody else's network wants.
    pub const fn announced() -> Self {
        Self { up: true, announce: true, check: false }
    }
}

/// Addresses and routes of the container's device.
///
/// # Errors
/// The kernel refuses; which address or route is told.
pub fn configure(request: &Request, netns: &Netns, result: &CniResult, setup: Setup) -> Result<Link> {
    let has = |four: bool| result.ips.iter().any(|ip| ip.address.ip.is_ipv4() == four);
    let mut socket = netns.within(|| {
        if setup.announce && has(false) {
            let _ = set_sysctl(&format!("net/ipv6/conf/{}/ndisc_notify", request.ifname), "1");
        }
        Socket::route().doing(|| "open a netlink socket in the container".into())
    })?;
    let link = socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))?;
    let mut link = link.ok_or_else(|| Error::internal(format!("{} is gone", request.ifname)))?;
    let mut batch = Vec::new();
    let announced = setup.announce && has(true);
    if announced {
        let ipv4 = &[Ipv4Setting::ArpNotify];
        batch.push(link::change(link.index, &Change { ipv4, ..Change::default() }));
    }
    let add = if setup.check { add_checked_address } else { add_address };
    batch.extend(result.ips.iter().map(|ip| add(link.index, ip.address)));
    if setup.up {
        batch.push(link::change(link.index, &Change { up: Some(true), ..Change::default() }));
    }
    let addresses = result.ips.len();
    batch.extend(result.routes.iter().map(|r| route(r, &result.ips, link.index).add()));
    socket.batch(batch).map_err(|(index, error)| {
        let what = match index.checked_sub(usize::from(announced)) {
            None => format!("let {} announce its addresses", link.name),
            Some(i) if i < addresses => format!("add address {} to {}", result.ips[i].address, link.name),
            Some(i) if i == addresses && setup.up => format!("set {} up", link.name),
            Some(i) => {
                let at = i - addresses - usize::from(setup.up);
                let dst = result.routes.get(at).map_or_else(String::new, |r| r.dst.to_string());
                format!("add route {dst}")
            }
        };
        Error::internal(format!("{what}: {error}"))
    })?;
    if setup.up {
        link.flags |= link::UP;
    }
    Ok(link)
}

/// Tells the neighbours again who has the container's addresses, now that what it sends arrives: the kernel does that when a
/// device gets its hardware address.
///
/// # Errors
/// The kernel refuses.
pub fn announce(netns: &Netns, container: &Link) -> Result<()> {
    let mac = container.mac.as_slice().try_into().ok();
    let again = link::change(container.index, &Change { mac, ..Change::default() });
    netns.socket()?.request(again).doing(|| format!("announce the addresses of {}", container.name))
}

/// Waits until the container may use its addresses of IPv6.
///
/// # Errors
/// Somebody else has one, or the kernel does not find out within ten seconds.
pub fn unique(netns: &Netns, container: &Link) -> Result<()> {
    let patience = Duration::from_secs(10);
    let start = Instant::now();
    let what = || format!("look for others that have the addresses of {}", container.name);
    let mut changes = netns.within(|| Socket::subscribe(ip::CHANGES_OF_IPV6_ADDRESSES).doing(what))?;
    let mut socket = netns.socket()?;
    loop {
        match socket.checked(container.index).doing(what)? {
            Checked::Unique => return Ok(()),
            Checked::Duplicate(ip) => {
                return Err(Error::internal(format!(
                    "another host on the link of {} has address {ip}",
                    container.name
                )));
            }
            Checked::Pending => {}
        }
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() || !changes.wait(left).doing(what)? {
            let text = format!("{} still has tentative addresses after {patience:?}", container.name);
            return Err(Error::new(Code::TryAgain, text));
        }
        changes.heard(|_| {}).doing(what)?;
    }
}

/// A route as the kernel takes it; without a router it goes to that of the address.
pub fn route(config: &RouteConfig, ips: &[IpConfig], device: u32) -> Route {
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

/// Removes the pair of an attachment, from whichever end is found. Not there is fine.
///
/// # Errors
/// The kernel refuses.
pub fn remove_pair(request: &Request) -> Result<()> {
    let name = host_name(request);
    let gone = |outcome: std::io::Result<()>| match outcome {
        Err(e) if e.raw_os_error() != Some(libc::ENODEV) => Err(e),
        _ => Ok(()),
    };
    let mut host = Socket::route().doing(|| "open a netlink socket".into())?;
    if let Some(link) = host.link(&name).doing(|| format!("find {name}"))? {
        // Down it disturbs nobody any more, also not who gets its address next: its bridge has forgotten what was behind it.
        let off = Change { up: Some(false), ..Change::default() };
        return gone(host.request(link::change(link.index, &off)))
            .and_then(|()| afterwards::leave(Later::Remove(host, link.index)))
            .doing(|| format!("remove {name}"));
    }
    // A pair under another name: made by the reference plugin before us.
    let Some(netns) = Netns::open_if_there(request)? else { return Ok(()) };
    let mut socket = netns.socket()?;
    match socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))? {
        Some(link) => gone(socket.request(link::delete(link.index))).doing(|| format!("remove {}", link.name)),
        None => Ok(()),
    }
}

/// Removes devices on the host that carry an owner's name which is not to be kept.
///
/// # Errors
/// The kernel refuses.
pub fn remove_others(keep: impl Fn(&str) -> bool) -> Result<()> {
    let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
    for link in socket.links().doing(|| "list devices".into())? {
        let owned = matches!(link.kind.as_str(), "veth" | "ifb") && !link.alias.is_empty();
        if !owned || keep(&link.alias) {
            continue;
        }
        match socket.request(link::delete(link.index)) {
            // Its container's namespace ended meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            other => other.doing(|| format!("remove {}", link.name))?,
        }
    }
    Ok(())
}

/// What of a result is about this attachment's own device in the container: plugins of the same list may have given it others.
pub fn own(request: &Request, result: &CniResult) -> CniResult {
    let mut own = result.clone();
    let others = |i: &Interface| !i.sandbox.is_empty() && i.name != request.ifname;
    own.ips.retain(|ip| ip.interface.and_then(|index| result.interfaces.get(index)).is_none_or(|i| !others(i)));
    own.ips.iter_mut().for_each(|ip| ip.interface = None);
    own.interfaces.retain(|i| !others(i));
    own
}

/// Looks whether the container's device has the addresses and routes of a result.
///
/// # Errors
/// What it does not have.
pub fn check(request: &Request, previous: &CniResult) -> Result<()> {
    let netns = Netns::open(request)?;
    let mut socket = netns.socket()?;
    let link = socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))?;
    let link = link.ok_or_else(|| Error::internal(format!("there is no {} in the container", request.ifname)))?;
    let described = previous.interfaces.iter().find(|i| i.name == request.ifname && !i.sandbox.is_empty());
    if described.is_some_and(|d| !d.mac.is_empty() && d.mac != link.mac_text()) {
        return Err(Error::internal(format!("{} has another hardware address than it was given", link.name)));
    }
    let addresses = socket.addresses(Some(link.index)).doing(|| "read the container's addresses".into())?;
    for ip in &own(request, previous).ips {
        if !addresses.contains(&(link.index, ip.address)) {
            return Err(Error::internal(format!("{} does not have address {}", link.name, ip.address)));
        }
    }
    let routes = socket.all_routes().doing(|| "read the container's routes".into())?;
    for wanted in &previous.routes {
        // Where nothing is said, a chained plugin such as sbr may have moved it from the main table to one of its own.
        let there = |r: &Route| wanted.table.is_none_or(|table| r.table == table);
        let is = |r: &Route| r.to == wanted.dst && there(r) && (wanted.gw.is_none() || r.gateway == wanted.gw);
        if !routes.iter().any(is) {
            return Err(Error::internal(format!("the container has no route to {}", wanted.dst)));
        }
    }
    Ok(())
}
