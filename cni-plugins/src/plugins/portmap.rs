//! portmap: ports of the host lead to ports of the container.

use std::net::IpAddr;

use gantry_net::link::{self, Change, Ipv4Setting};
use gantry_net::{Prefix, Socket, conntrack};
use serde::Deserialize;

use super::{Plugin, field};
use crate::spec::{CniResult, Context, Error, Request, Result};
use crate::table::conditions::{self, Steps};
use crate::table::{self, HostPort, Part, Wanted};

/// The plugin.
#[derive(Debug)]
pub(super) struct Portmap;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    #[serde(default)]
    host_port: i64,
    #[serde(default)]
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

struct Config {
    ports: Vec<HostPort>,
    snat: bool,
    masq_all: bool,
    /// For packets of IPv4 and of IPv6, of which one must be met; without any, ports stand in a map.
    conditions: (Vec<Steps>, Vec<Steps>),
}

impl Config {
    fn read(request: &Request) -> Result<Self> {
        let value = &request.config.value;
        let conditions = |key: &str, four: bool| -> Result<Vec<Steps>> {
            conditions::read(key, &field::<Vec<String>>(value, key)?, four)
        };
        let conditions = (conditions("conditionsV4", true)?, conditions("conditionsV6", false)?);
        if let Some(backend) = value["backend"].as_str().filter(|b| !matches!(*b, "" | "nftables" | "iptables")) {
            return Err(Error::config(format!("unrecognized backend {backend:?}")));
        }
        // Both name a mark by which the reference plugin masquerades; here no mark is needed.
        let (bit, chain) =
            (field::<Option<i64>>(value, "markMasqBit")?, field::<Option<String>>(value, "externalSetMarkChain")?);
        if bit.is_some_and(|b| !(0..32).contains(&b)) {
            return Err(Error::config("markMasqBit must be between 0 and 31"));
        }
        if bit.is_some() && chain.is_some() {
            return Err(Error::config("cannot specify externalSetMarkChain and markMasqBit"));
        }
        let runtime = serde_json::Value::Object(request.config.section(&["runtimeConfig"]));
        let mappings: Vec<Mapping> = field(&runtime, "portMappings")?;
        let ports = mappings.iter().map(port).collect::<Result<Vec<_>>>()?;
        let snat = field::<Option<bool>>(value, "snat")?.unwrap_or(true);
        Ok(Self { ports, snat, masq_all: field(value, "masqAll")?, conditions })
    }

    /// The table's elements for these mappings of a container.
    fn wanted(&self, result: &CniResult) -> Wanted {
        let mut wanted = Wanted::default();
        for address in addresses(result) {
            let four = address.ip.is_ipv4();
            let mut any = false;
            for port in self.ports.iter().filter(|p| p.host_ip.is_none_or(|ip| ip.is_ipv4() == four)) {
                let host_ip = port.host_ip.filter(|ip| !ip.is_unspecified());
                let port = HostPort { host_ip, ..*port };
                match if four { &self.conditions.0 } else { &self.conditions.1 } {
                    none if none.is_empty() => wanted.host_port(address, &port),
                    alternatives => {
                        alternatives.iter().for_each(|steps| wanted.conditional_port(address, &port, steps));
                    }
                }
                any = true;
            }
            if any && self.snat {
                wanted.hairpin(address);
            }
            if any && self.masq_all {
                wanted.source_nat(address);
            }
        }
        wanted
    }

    fn udp(&self) -> Vec<u16> {
        self.ports.iter().filter(|p| p.protocol == 17).map(|p| p.port).collect()
    }
}

fn port(mapping: &Mapping) -> Result<HostPort> {
    let wrong =
        |what: &str, value: &dyn std::fmt::Debug| Error::config(format!("invalid {what} in portMappings: {value:?}"));
    let number =
        |what: &str, value: i64| u16::try_from(value).ok().filter(|p| *p > 0).ok_or_else(|| wrong(what, &value));
    let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => 6,
        "udp" => 17,
        "sctp" => 132,
        _ => return Err(wrong("protocol", &mapping.protocol)),
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(text.parse::<IpAddr>().map_err(|_| wrong("hostIP", &text))?),
    };
    Ok(HostPort {
        host_ip,
        protocol,
        port: number("hostPort", mapping.host_port)?,
        pod_port: number("containerPort", mapping.container_port)?,
    })
}

/// The container's first address of each family.
fn addresses(result: &CniResult) -> Vec<Prefix> {
    let inside = |index: Option<usize>| {
        index.and_then(|i| result.interfaces.get(i)).is_none_or(|interface| !interface.sandbox.is_empty())
    };
    let of = |four: bool| {
        result.ips.iter().find(|ip| ip.address.ip.is_ipv4() == four && inside(ip.interface)).map(|ip| ip.address)
    };
    [of(true), of(false)].into_iter().flatten().collect()
}

/// Flows that began before would go on to where they went.
fn forget_flows(ports: &[u16]) -> Result<()> {
    if ports.is_empty() {
        return Ok(());
    }
    let what = || "forget flows to UDP ports of the host".to_owned();
    let mut socket = Socket::netfilter().doing(what)?;
    conntrack::forget_udp(&mut socket, ports).map(drop).doing(what)
}

fn previous(request: &Request) -> Result<CniResult> {
    request.config.previous.clone().ok_or_else(|| Error::config("must be called as chained plugin"))
}

/// Lets connections of the host to itself, which have a loopback address, leave by the device behind which a container is.
fn route_localnet(container: IpAddr) -> Result<()> {
    let what = || format!("find the device that leads to {container}");
    let mut socket = Socket::route().doing(what)?;
    // Without a way to the container there is nobody whom it could help.
    let Some(index) = socket.way_to(container).doing(what)? else { return Ok(()) };
    let Some(link) = socket.link_by_index(index).doing(what)? else { return Ok(()) };
    if link.ipv4_setting(Ipv4Setting::RouteLocalnet) == Some(1) {
        return Ok(());
    }
    let ipv4 = &[Ipv4Setting::RouteLocalnet];
    let change = link::change(link.index, &Change { ipv4, ..Change::default() });
    socket.request(change).doing(|| format!("set route_localnet of {}", link.name))
}

impl Plugin for Portmap {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        let result = previous(request)?;
        if config.ports.is_empty() {
            return Ok(result);
        }
        if result.ips.is_empty() {
            return Err(Error::internal("got no container IPs, cannot map ports"));
        }
        let wanted = config.wanted(&result);
        table::add(request, &wanted)?;
        let four = addresses(&result).into_iter().find(|a| a.ip.is_ipv4());
        if let Some(container) = four.filter(|_| config.snat) {
            route_localnet(container.ip)?;
        }
        forget_flows(&config.udp())?;
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<()> {
        let config = Config::read(request).ok();
        let known = config.as_ref().zip(request.config.previous.as_ref()).map(|(c, p)| c.wanted(p)).unwrap_or_default();
        let mut udp = table::release(&table::owner(request), Part::Ports, &known)?;
        // Rules with conditions do not tell their ports.
        if let Some(config) = config.filter(|c| c.conditions != Default::default()) {
            udp.extend(config.udp());
        }
        forget_flows(&udp)
    }

    fn check(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        let wanted = config.wanted(&previous(request)?);
        let missing = table::missing(&table::owner(request), &wanted)?;
        if missing.is_empty() {
            Ok(())
        } else {
            Err(Error::internal(format!("host ports are missing in {}", missing.join(", "))))
        }
    }

    fn gc(&self, request: &Request) -> Result<()> {
        let valid = table::valid(request)?;
        let udp = table::retain(Part::Ports, &valid)?;
        forget_flows(&udp)
    }
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    let config = Config::read(request)?;
    config.wanted(&previous(request)?);
    config.udp();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_mappings_are_named() {
        let mapping = |text: &str| -> Result<HostPort> { port(&serde_json::from_str(text).unwrap()) };
        assert_eq!(
            mapping(r#"{"hostPort": 8080, "containerPort": 80, "protocol": "UDP"}"#).unwrap(),
            HostPort { host_ip: None, protocol: 17, port: 8080, pod_port: 80 }
        );
        for (text, part) in [
            (r#"{"hostPort": 0, "containerPort": 80}"#, "hostPort"),
            (r#"{"hostPort": 70000, "containerPort": 80}"#, "hostPort"),
            (r#"{"hostPort": 1, "containerPort": -1}"#, "containerPort"),
            (r#"{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}"#, "protocol"),
            (r#"{"hostPort": 1, "containerPort": 1, "hostIP": "x"}"#, "hostIP"),
        ] {
            let error = mapping(text).unwrap_err();
            assert!(error.message.contains(part), "{error}");
        }
    }
}
