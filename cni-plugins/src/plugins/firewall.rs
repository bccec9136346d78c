//! firewall: pods' traffic is let through, and pods of other bridges are kept out where the policy says so.

use std::net::IpAddr;

use gantry_net::Socket;
use serde::Deserialize;

use super::Plugin;
use crate::firewalld::{self, Firewalld};
use crate::spec::{CniResult, Context, Error, Request, Result};
use crate::table::{self, Part, Wanted, iptables};

/// Where an administrator's own rules stand, unless the configuration names another chain.
const ADMIN: &str = "CNI-ADMIN";

/// The zone of firewalld that containers' addresses belong to, unless the configuration names another.
const ZONE: &str = "trusted";

/// The plugin.
#[derive(Debug)]
pub(super) struct Firewall;

/// Who may send to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// Everyone.
    Open,
    /// Not the containers of other bridges.
    SameBridge,
    /// No other container.
    Isolated,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    backend: String,
    firewalld_zone: String,
    iptables_admin_chain_name: String,
    ingress_policy: String,
}

/// Who keeps the rules that let containers' traffic through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    /// firewalld where it runs, else we.
    Whoever,
    /// We, in nf_tables; a chain FORWARD of iptables lets the traffic through, too.
    Own,
    /// firewalld.
    Firewalld,
}

struct Config {
    backend: Backend,
    zone: String,
    policy: Policy,
    admin: String,
}

impl Config {
    fn read(request: &Request) -> Result<Self> {
        let written = Written::deserialize(&request.config.value)
            .map_err(|e| Error::config(format!("firewall configuration: {e}")))?;
        let backend = match written.backend.as_str() {
            "" => Backend::Whoever,
            "iptables" | "nftables" => Backend::Own,
            "firewalld" => Backend::Firewalld,
            other => return Err(Error::config(format!("unrecognized firewall backend {other:?}"))),
        };
        let policy = match written.ingress_policy.as_str() {
            "" | "open" => Policy::Open,
            "same-bridge" => Policy::SameBridge,
            "isolated" => Policy::Isolated,
            other => return Err(Error::config(format!("unknown ingress policy: {other:?}"))),
        };
        let admin = if written.iptables_admin_chain_name.is_empty() {
            ADMIN.to_owned()
        } else {
            written.iptables_admin_chain_name
        };
        if admin.len() > 28 || !admin.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
            return Err(Error::config(format!("iptablesAdminChainName: {admin:?} is not the name of a chain")));
        }
        // Ours, and of what decides about networks and bridges.
        if matches!(admin.as_str(), "forward" | "prerouting" | "postrouting" | "output" | "host-ports") {
            return Err(Error::config(format!("iptablesAdminChainName: {admin:?} is a chain of the plugins")));
        }
        let zone = if written.firewalld_zone.is_empty() { ZONE.to_owned() } else { written.firewalld_zone };
        Ok(Self { backend, zone, policy, admin })
    }

    /// The firewalld that is to be asked.
    fn firewalld(&self) -> Result<Option<Firewalld>> {
        if self.backend == Backend::Own {
            return Ok(None);
        }
        let running = Firewalld::running()?;
        if running.is_none() && self.backend == Backend::Firewalld {
            return Err(Error::internal("backend firewalld: it does not run, or is not on the system bus"));
        }
        Ok(running)
    }
}

fn previous(request: &Request) -> Result<CniResult> {
    request.config.previous.clone().ok_or_else(|| Error::config("missing prevResult from earlier plugin"))
}

fn ips(result: &CniResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.ip).collect()
}

/// The host's devices of a result: the bridge, and the container's port of it.
fn devices(result: &CniResult) -> Result<(String, Option<String>)> {
    let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
    let mut bridge = None;
    let mut port = None;
    for device in result.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        match socket.link(&device.name).doing(|| format!("find {}", device.name))? {
            Some(link) if link.kind == "bridge" => bridge = bridge.or(Some(link.name)),
            Some(link) if link.master.is_some() => port = port.or(Some(link.name)),
            _ => {}
        }
    }
    let bridge =
        bridge.ok_or_else(|| Error::config("ingressPolicy: the result of the plugins before has no bridge"))?;
    Ok((bridge, port))
}

/// What our tables hold; with firewalld only what the policy forbids.
fn wanted(config: &Config, result: &CniResult, firewalld: bool) -> Result<Wanted> {
    let mut wanted = Wanted::default();
    let ips = ips(result);
    if !firewalld {
        ips.iter().for_each(|ip| wanted.pod(*ip, &config.admin));
    }
    if config.policy != Policy::Open {
        let (bridge, port) = devices(result)?;
        let alone = config.policy == Policy::Isolated;
        ips.iter().for_each(|ip| wanted.ingress(*ip, &bridge, alone));
        port.iter().filter(|_| alone).for_each(|port| wanted.isolated(port));
    }
    Ok(wanted)
}

impl Plugin for Firewall {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        let result = previous(request)?;
        let owner = table::owner(request);
        let firewalld = config.firewalld()?;
        table::add(request, &wanted(&config, &result, firewalld.is_some())?)?;
        let accepted = match firewalld {
            Some(mut firewalld) => firewalld.add(&owner, &config.zone, &ips(&result)),
            None => iptables::retain(|other| other != owner).and_then(|()| iptables::accept(&owner, &ips(&result))),
        };
        if accepted.is_err() {
            let _ = self.del(request);
        }
        accepted.map(|()| result)
    }

    fn del(&self, request: &Request) -> Result<()> {
        let owner = table::owner(request);
        let own = table::retain(Part::Firewall, |other| other != owner).map(drop);
        let accepted = iptables::retain(|other| other != owner);
        own.and(accepted).and(firewalld::retain(|other| other != owner))
    }

    fn check(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        let result = previous(request)?;
        let owner = table::owner(request);
        let firewalld = config.firewalld()?;
        table::check(&owner, &wanted(&config, &result, firewalld.is_some())?)?;
        if let Some(mut firewalld) = firewalld {
            return match firewalld.missing(&config.zone, &ips(&result))? {
                Some(ip) => {
                    Err(Error::internal(format!("the address {ip} is not in firewalld's zone {}", config.zone)))
                }
                None => Ok(()),
            };
        }
        if !iptables::stands(&owner, &ips(&result))? {
            return Err(Error::internal("the chain FORWARD of iptables does not let the container's traffic through"));
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        firewalld::restore()
    }

    fn gc(&self, request: &Request) -> Result<()> {
        let valid = table::valid(request)?;
        table::retain(Part::Firewall, &valid)?;
        iptables::retain(&valid).and(firewalld::retain(&valid))
    }
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    let config = Config::read(request)?;
    let open = Config { policy: Policy::Open, ..config };
    wanted(&open, &previous(request)?, false).map(drop)
}
