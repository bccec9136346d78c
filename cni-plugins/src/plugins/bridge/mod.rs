//! bridge: a veth pair, one end in the container, the other a port of a bridge on the host.

mod config;
mod host;

use gantry_net::{Prefix, Socket, link};

use self::config::Config;
use super::Plugin;
use crate::attach::{self, Made, Pair, Setup};
use crate::ipam::delegate;
use crate::netns::Netns;
use crate::spec::{CniResult, Command, Context, Error, Request, Result, RouteConfig};
use crate::table::{self, Part, Wanted};

/// The plugin.
#[derive(Debug)]
pub(super) struct Bridge;

impl Plugin for Bridge {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        let netns = Netns::open(request)?;
        let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
        let mut made = Made::default();
        let added = attach(request, &config, &netns, &mut socket, &mut made);
        if added.is_err() && made.undo(request, &mut socket) {
            let owner = table::owner(request);
            for part in [Part::Masquerade, Part::Spoofing] {
                let there = table::may_have(&owner, part);
                let _ = there.then(|| table::release(&owner, part, &Wanted::default()));
            }
        }
        added
    }

    fn del(&self, request: &Request) -> Result<()> {
        detach(request, &Config::read(request)?)
    }

    fn check(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        delegate::pass(Command::Check, request)?;
        let previous = attach::own(request, &request.config.previous.clone().unwrap_or_default());
        let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
        let bridge = host::existing(&mut socket, &config.bridge)?;
        let name = attach::host_name(request);
        let port = socket.link(&name).doing(|| format!("find {name}"))?;
        if port.is_none_or(|p| p.master != Some(bridge.index)) {
            return Err(Error::internal(format!("{name} is not a port of {}", config.bridge)));
        }
        attach::check(request, &previous)?;
        table::check(&table::owner(request), &wanted(&config, &previous, &name))
    }

    fn status(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        // Runtimes ask every few seconds: what somebody has flushed meanwhile comes back.
        table::restore()?;
        delegate::pass(Command::Status, request)
    }

    fn gc(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        let valid = table::valid(request)?;
        for part in [Part::Masquerade, Part::Spoofing] {
            table::retain(part, &valid)?;
        }
        // Before their addresses: nobody may get one that a device still has.
        attach::remove_others(&valid)?;
        delegate::pass(Command::Gc, request)
    }
}

fn attach(
    request: &Request,
    config: &Config,
    netns: &Netns,
    socket: &mut Socket,
    made: &mut Made,
) -> Result<CniResult> {
    let mut result = if config.layer3 { delegate::add(request)? } else { CniResult::default() };
    made.addresses = config.layer3;
    if config.layer3 && result.ips.is_empty() {
        return Err(Error::internal("IPAM plugin returned missing IP config"));
    }
    // Not before there are addresses: a configuration that gives none leaves no bridge.
    let bridge = &host::ensure_bridge(socket, config)?;
    let name = attach::host_name(request);
    let mac = config.mac.or(result.ips.first().map(|ip| host::mac_of(ip.address.ip)));
    let pair = Pair { mtu: config.mtu, mac };
    let port = attach::make_pair(request, netns, socket, &name, &pair)?;
    made.pair = Some(port.index);
    host::join(socket, config, bridge, &port, &table::owner(request))?;
    default_routes(config, &mut result);
    let mut router = None;
    if config.layer3 && config.gateway {
        let device = host::gateway_device(socket, config, bridge)?;
        host::gateway(socket, config, &device, &result.ips)?;
        if let Some(mac) = mac {
            host::acquaint(socket, &device, &result.ips, mac);
        }
        router = Some(device).filter(|device| device.index != bridge.index);
    }
    let setup = Setup { up: config.enabled, announce: config.mac.is_some(), check: config.check_addresses };
    let container = attach::configure(request, netns, &result, setup)?;
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(2));
    let bridge = host::existing(socket, &config.bridge)?;
    result.interfaces = vec![
        attach::described(&bridge, ""),
        attach::described(&port, ""),
        attach::described(&container, &netns.text()),
    ];
    result.interfaces.extend(router.map(|device| attach::described(&device, "")));
    table::add(request, &wanted(config, &result, &name))?;
    if config.enabled {
        host::forwarding(socket, &port)?;
        if setup.announce {
            attach::announce(netns, &container)?;
        }
        if setup.check {
            attach::unique(netns, &container)?;
        }
    }
    Ok(result)
}

fn wanted(config: &Config, result: &CniResult, port: &str) -> Wanted {
    let mut wanted = Wanted::default();
    if config.check_sender {
        let inside = result.interfaces.iter().find(|i| !i.sandbox.is_empty()).and_then(|i| link::parse_mac(&i.mac));
        inside.into_iter().for_each(|mac| wanted.sender(port, mac));
    }
    if config.masquerade {
        result.ips.iter().for_each(|ip| wanted.masquerade(ip.address));
    }
    wanted
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

/// Gives back everything that an ADD, whole or not, made for this attachment.
fn detach(request: &Request, config: &Config) -> Result<()> {
    let owner = table::owner(request);
    let previous = attach::own(request, &request.config.previous.clone().unwrap_or_default());
    let known = wanted(config, &previous, &attach::host_name(request));
    let release = |part: Part, configured: bool| {
        let any = configured || table::may_have(&owner, part);
        if any { table::release(&owner, part, &known).map(drop) } else { Ok(()) }
    };
    let masquerade = release(Part::Masquerade, config.masquerade);
    let device = attach::remove_pair(request);
    // Checked for as long as the device is there.
    let sender = if device.is_ok() { release(Part::Spoofing, config.check_sender) } else { Ok(()) };
    // Addresses last: nobody may get one that a device still has.
    let addresses = if device.is_ok() { delegate::pass(Command::Del, request) } else { Ok(()) };
    masquerade.and(device).and(sender).and(addresses)
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    let config = Config::read(request)?;
    let mut previous = request.config.previous.clone().unwrap_or_default();
    wanted(&config, &previous, &attach::host_name(request));
    default_routes(&config, &mut previous);
    config.vlans();
    Ok(())
}
