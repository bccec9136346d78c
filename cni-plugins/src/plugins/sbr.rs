//! sbr: source based routing: what a container sends from the addresses of this device leaves by this device.

use std::net::IpAddr;

use gantry_net::ip::{Route, Rule};
use gantry_net::{Prefix, Socket};

use super::{Plugin, field};
use crate::netns::Netns;
use crate::spec::{CniResult, Context, Error, IpConfig, Request, Result};

/// The first routing table that is looked at; one is used per address.
const FIRST_TABLE: u32 = 100;

/// The plugin.
#[derive(Debug)]
pub(super) struct Sbr;

struct Config {
    table: Option<u32>,
    hints: bool,
}

impl Config {
    fn read(request: &Request) -> Result<Self> {
        let value = &request.config.value;
        Ok(Self { table: field(value, "table")?, hints: field(value, "addSourceHints")? })
    }
}

/// The addresses of the request's device in the container.
fn own<'a>(request: &Request, result: &'a CniResult) -> Result<Vec<&'a IpConfig>> {
    let inside = |ip: &&IpConfig| {
        let device = ip.interface.and_then(|i| result.interfaces.get(i));
        device.is_some_and(|d| d.name == request.ifname && !d.sandbox.is_empty())
    };
    let own: Vec<_> = result.ips.iter().filter(inside).collect();
    if own.is_empty() {
        return Err(Error::config(format!("prevResult has no address of {} in the container", request.ifname)));
    }
    Ok(own)
}

/// Whether a route of the device is one for traffic from this address.
fn concerns(route: &Route, ip: &IpConfig) -> bool {
    let family = route.to.ip.is_ipv4() == ip.address.ip.is_ipv4();
    let near = |other: Option<IpAddr>| other.is_some_and(|o| ip.address.contains(o));
    family && (near(route.source) || near(route.gateway) || (route.source.is_none() && route.gateway.is_none()))
}

/// The first table from `from` on that no rule leads to and that has no routes.
fn free_table(from: u32, rules: &[Rule], routes: &[Route]) -> u32 {
    let taken = |t: &u32| rules.iter().any(|r| r.table == *t) || routes.iter().any(|r| r.table == *t);
    (from..u32::MAX).find(|t| !taken(t)).unwrap_or(from)
}

/// What an address gets: its table's routes, the most general last so that gateways are reachable when they are named.
fn table_of(ip: &IpConfig, table: u32, device: u32, main: &[Route], hints: bool) -> Vec<Route> {
    let hint = |mut route: Route| {
        route.source = route.source.or(hints.then_some(ip.address.ip));
        Route { table, ..route }
    };
    let mut routes: Vec<Route> = main.iter().filter(|r| concerns(r, ip)).cloned().map(hint).collect();
    if let Some(gateway) = ip.gateway {
        let all = Prefix { ip: ip.address.ip, length: 0 }.network();
        routes.retain(|r| r.to != all);
        routes.push(hint(Route::new(all, Some(gateway), device)));
    }
    routes.sort_by_key(|r| std::cmp::Reverse((r.gateway.is_none(), r.to.length)));
    routes
}

fn apply(socket: &mut Socket, request: &Request, config: &Config, own: &[&IpConfig]) -> Result<()> {
    let device = socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))?;
    let device =
        device.ok_or_else(|| Error::internal(format!("there is no {} in the container", request.ifname)))?.index;
    let rules = socket.rules().doing(|| "read the container's routing rules".into())?;
    let all = socket.all_routes().doing(|| "read the container's routes".into())?;
    // IPv6 link-local and multicast routes are the kernel's and belong to the device whatever the address.
    let of_kernel = |r: &&Route| matches!(r.to.ip, IpAddr::V6(ip) if ip.is_unicast_link_local() || ip.is_multicast());
    let main: Vec<Route> =
        all.iter().filter(|r| r.table == 254 && r.device == device).filter(|r| !of_kernel(r)).cloned().collect();
    let mut table = config.table.unwrap_or_else(|| free_table(FIRST_TABLE, &rules, &all));
    for ip in own {
        for route in table_of(ip, table, device, &main, config.hints) {
            socket.request(route.replace()).doing(|| format!("add route {} to table {table}", route.to))?;
        }
        let rule = Rule { from: Prefix::host(ip.address.ip), table };
        match socket.request(rule.add()) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            other => other.doing(|| format!("add the rule from {} to table {table}", rule.from))?,
        }
        if config.table.is_none() {
            table = free_table(table + 1, &rules, &all);
        }
    }
    for route in main.iter().filter(|r| own.iter().any(|ip| concerns(r, ip))) {
        match socket.request(route.delete()) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            other => other.doing(|| format!("remove route {} from the main table", route.to))?,
        }
    }
    Ok(())
}

impl Plugin for Sbr {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        let result = request
            .config
            .previous
            .clone()
            .ok_or_else(|| Error::config("this plugin must be called as chained plugin"))?;
        let own = own(request, &result)?;
        let mut socket = Netns::open(request)?.socket()?;
        apply(&mut socket, request, &config, &own)?;
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<()> {
        let Some(netns) = Netns::open_if_there(request)? else { return Ok(()) };
        let mut socket = netns.socket()?;
        let Some(device) = socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))? else {
            return Ok(());
        };
        // Routes go with the device; rules would stay.
        let addresses = socket.addresses(Some(device.index)).doing(|| "read the container's addresses".into())?;
        for rule in socket.rules().doing(|| "read the container's routing rules".into())? {
            if addresses.iter().any(|(_, a)| Prefix::host(a.ip) == rule.from) {
                match socket.request(rule.delete()) {
                    Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                    other => other.doing(|| format!("remove the rule from {}", rule.from))?,
                }
            }
        }
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<()> {
        let result = request.config.previous.clone().unwrap_or_default();
        let own = own(request, &result)?;
        let mut socket = Netns::open(request)?.socket()?;
        let rules = socket.rules().doing(|| "read the container's routing rules".into())?;
        match own.iter().find(|ip| !rules.iter().any(|r| r.from == Prefix::host(ip.address.ip))) {
            Some(ip) => Err(Error::internal(format!("the container has no routing rule from {}", ip.address.ip))),
            None => Ok(()),
        }
    }
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    Config::read(request)?;
    let previous = request.config.previous.clone().unwrap_or_default();
    own(request, &previous).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_free_when_neither_rule_nor_route_names_it() {
        let route = |table| Route { table, ..Route::new("10.0.0.0/8".parse().unwrap(), None, 1) };
        let rule = |table| Rule { from: "10.0.0.1/32".parse().unwrap(), table };
        assert_eq!(free_table(100, &[], &[]), 100);
        assert_eq!(free_table(100, &[rule(100)], &[route(101), route(103)]), 102);
    }

    #[test]
    fn routes_of_the_addresss_network_move_and_the_gateway_comes_last() {
        let ip =
            IpConfig { interface: None, address: "10.1.0.5/24".parse().unwrap(), gateway: "10.1.0.1".parse().ok() };
        let prefix = |t: &str| t.parse::<Prefix>().unwrap();
        let main = [
            Route::new(prefix("0.0.0.0/0"), "10.1.0.9".parse().ok(), 2),
            Route::new(prefix("10.1.0.0/24"), None, 2),
            Route::new(prefix("10.9.0.0/16"), "10.2.0.1".parse().ok(), 2),
            Route::new(prefix("fd00::/64"), None, 2),
        ];
        let table: Vec<_> = table_of(&ip, 100, 2, &main, true).iter().map(|r| (r.to, r.gateway)).collect();
        assert_eq!(table, [(prefix("10.1.0.0/24"), None), (prefix("0.0.0.0/0"), "10.1.0.1".parse().ok())]);
    }
}
