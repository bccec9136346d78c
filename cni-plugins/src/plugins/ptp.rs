//! ptp: a veth pair whose host end routes to the container, without a bridge.

use gantry_net::ip::{Route, add_address};
use gantry_net::link::{self, Change};
use gantry_net::{Prefix, Socket};
use serde::Deserialize;

use super::Plugin;
use crate::attach::{self, Made, Pair, Setup};
use crate::ipam::delegate;
use crate::netns::{Netns, let_forward};
use crate::spec::{CniResult, Command, Context, Dns, Error, IpConfig, Request, Result, RouteConfig};
use crate::table::{self, Part, Wanted};

/// The plugin.
#[derive(Debug)]
pub(super) struct Ptp;

#[derive(Debug, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    ip_masq: bool,
    mtu: u32,
    dns: Option<Dns>,
}

impl Config {
    fn read(request: &Request) -> Result<Self> {
        if delegate::kind(request).is_none() {
            return Err(Error::config("ptp needs an ipam"));
        }
        serde_json::from_value(request.config.value.clone())
            .map_err(|e| Error::config(format!("ptp configuration: {e}")))
    }
}

/// What the container sees: its address alone, the gateway beside it, everything by the gateway.
fn inside(result: &CniResult) -> Result<CniResult> {
    let mut seen = CniResult { dns: result.dns.clone(), ..CniResult::default() };
    let route = |dst: Prefix, gw: Option<std::net::IpAddr>, scope: Option<u32>| RouteConfig {
        dst,
        gw,
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope,
    };
    for ip in &result.ips {
        let gateway =
            ip.gateway.ok_or_else(|| Error::config(format!("the address {} came without a gateway", ip.address)))?;
        seen.ips.push(IpConfig { interface: None, address: Prefix::host(ip.address.ip), gateway: None });
        seen.routes.push(route(Prefix::host(gateway), None, Some(253)));
        seen.routes.push(route(ip.address.network(), Some(gateway), None));
    }
    for wanted in &result.routes {
        let own = result.ips.iter().filter(|ip| ip.address.ip.is_ipv4() == wanted.dst.ip.is_ipv4());
        let gw = wanted.gw.or_else(|| own.clone().find_map(|ip| ip.gateway));
        seen.routes.push(RouteConfig { gw, ..wanted.clone() });
    }
    Ok(seen)
}

fn wanted(config: &Config, result: &CniResult) -> Wanted {
    let mut wanted = Wanted::default();
    if config.ip_masq {
        // What goes to other containers of the same network keeps its address.
        result.ips.iter().for_each(|ip| wanted.masquerade(ip.address));
    }
    wanted
}

fn attach(
    request: &Request,
    config: &Config,
    netns: &Netns,
    socket: &mut Socket,
    made: &mut Made,
) -> Result<CniResult> {
    let mut result = delegate::add(request)?;
    made.addresses = true;
    if result.ips.is_empty() {
        return Err(Error::internal("IPAM plugin returned missing IP config"));
    }
    let seen = inside(&result)?;
    let name = attach::host_name(request);
    let pair = Pair { mtu: (config.mtu > 0).then_some(config.mtu), mac: None };
    let host = attach::make_pair(request, netns, socket, &name, &pair)?;
    made.pair = Some(host.index);
    let owner = table::owner(request);
    let up = Change { up: Some(true), alias: Some(&owner), ..Change::default() };
    let mut batch = vec![link::change(host.index, &up)];
    for ip in &result.ips {
        batch.extend(ip.gateway.map(|gateway| add_address(host.index, Prefix::host(gateway))));
        let mut route = Route::new(Prefix::host(ip.address.ip), None, host.index);
        route.link_scope = ip.address.ip.is_ipv4();
        batch.push(route.replace());
        let_forward(socket, ip.address.ip.is_ipv4())?;
    }
    socket.batch(batch).map_err(|(_, e)| Error::internal(format!("configure {name} on the host: {e}")))?;
    let container = attach::configure(request, netns, &seen, Setup { announce: false, ..Setup::announced() })?;
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(1));
    result.interfaces = vec![attach::described(&host, ""), attach::described(&container, &netns.text())];
    if let Some(dns) = config.dns.clone() {
        result.dns = dns;
    }
    table::add(request, &wanted(config, &result))?;
    Ok(result)
}

impl Plugin for Ptp {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        let netns = Netns::open(request)?;
        let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
        let mut made = Made::default();
        let added = attach(request, &config, &netns, &mut socket, &mut made);
        if added.is_err() {
            let _ = made.undo(request, &mut socket);
        }
        added
    }

    fn del(&self, request: &Request) -> Result<()> {
        // What was added is known by its result; whatever else there is of a half-done ADD is looked for.
        let known =
            Config::read(request).map(|config| wanted(&config, &request.config.previous.clone().unwrap_or_default()));
        let known = known.unwrap_or_default();
        let masquerade = table::release(&table::owner(request), Part::Masquerade, &known).map(drop);
        let device = attach::remove_pair(request);
        let addresses = if device.is_ok() { delegate::pass(Command::Del, request) } else { Ok(()) };
        masquerade.and(device).and(addresses)
    }

    fn check(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        delegate::pass(Command::Check, request)?;
        let previous = request.config.previous.clone().unwrap_or_default();
        let mut seen = inside(&previous)?;
        seen.interfaces.clone_from(&previous.interfaces);
        attach::check(request, &seen)?;
        table::check(&table::owner(request), &wanted(&config, &previous))
    }

    fn status(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        // Runtimes ask every few seconds: what somebody has flushed meanwhile comes back.
        table::restore()?;
        delegate::pass(Command::Status, request)
    }

    fn gc(&self, request: &Request) -> Result<()> {
        let valid = table::valid(request)?;
        table::retain(Part::Masquerade, &valid)?;
        attach::remove_others(&valid)?;
        delegate::pass(Command::Gc, request)
    }
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    let config = Config::read(request)?;
    let previous = request.config.previous.clone().unwrap_or_default();
    wanted(&config, &inside(&previous)?);
    Ok(())
}
