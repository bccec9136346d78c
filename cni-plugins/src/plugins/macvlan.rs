//! macvlan: a device in the container with a hardware address of its own on one of the host's.

use gantry_net::link::{self, Kind, parse_mac};
use gantry_net::{Link, Socket};
use serde::Deserialize;
use serde_json::Value;

use super::Plugin;
use crate::attach::{self, Setup};
use crate::ipam::delegate;
use crate::netns::Netns;
use crate::spec::{CniResult, Command, Context, Error, Request, Result};

/// The plugin.
#[derive(Debug)]
pub(super) struct Macvlan;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    master: String,
    mode: String,
    mtu: u32,
    mac: String,
    link_in_container: bool,
    /// Broadcasts that wait for delivery.
    bcqueuelen: u32,
}

impl Config {
    fn read(request: &Request) -> Result<Self> {
        let mut config: Self = serde_json::from_value(request.config.value.clone())
            .map_err(|e| Error::config(format!("macvlan configuration: {e}")))?;
        for section in [&["args", "cni"][..], &["runtimeConfig"]] {
            if let Some(mac) =
                request.config.section(section).get("mac").and_then(Value::as_str).filter(|m| !m.is_empty())
            {
                mac.clone_into(&mut config.mac);
            }
        }
        if let Some(mac) = request.args.get("MAC").filter(|m| !m.is_empty()) {
            config.mac.clone_from(mac);
        }
        if !config.mac.is_empty() && parse_mac(&config.mac).is_none() {
            return Err(Error::config(format!("mac: {:?} is not a hardware address", config.mac)));
        }
        config.mode()?;
        Ok(config)
    }

    fn mode(&self) -> Result<u32> {
        Ok(match self.mode.as_str() {
            "private" => 1,
            "vepa" => 2,
            "" | "bridge" => 4,
            "passthru" => 8,
            other => return Err(Error::config(format!("unknown macvlan mode: {other:?}"))),
        })
    }

    /// The device below: by name, or that of the default route.
    fn master(&self, socket: &mut Socket) -> Result<Link> {
        let found = if self.master.is_empty() {
            let routes = socket.routes().doing(|| "read routes".into())?;
            let default = routes.iter().find(|r| r.to.length == 0 && r.device != 0);
            let device =
                default.ok_or_else(|| Error::config("master is missing, and there is no default route"))?.device;
            socket.link_by_index(device)
        } else {
            socket.link(&self.master)
        };
        let found = found.doing(|| format!("find {}", self.master))?;
        found.ok_or_else(|| Error::internal(format!("failed to lookup master \"{}\": Link not found", self.master)))
    }
}

fn attach(request: &Request, config: &Config, netns: &Netns, made: &mut bool) -> Result<CniResult> {
    let open = || Socket::route().doing(|| "open a netlink socket".into());
    let mut socket = if config.link_in_container { netns.socket()? } else { open()? };
    let master = config.master(&mut socket)?;
    let mtu = (config.mtu > 0).then_some(config.mtu);
    if mtu.is_some_and(|mtu| mtu > master.mtu) {
        return Err(Error::config(format!("invalid MTU {}, must be [0, master MTU({})]", config.mtu, master.mtu)));
    }
    let layer3 = delegate::kind(request).is_some();
    let mut result = if layer3 { delegate::add(request)? } else { CniResult::default() };
    *made = layer3;
    if layer3 && result.ips.is_empty() {
        return Err(Error::internal("IPAM plugin returned missing IP config"));
    }
    let queue = (config.bcqueuelen > 0).then_some(config.bcqueuelen);
    let kind = Kind::Macvlan { parent: master.index, mode: config.mode()?, queue, netns: netns.place() };
    let create = link::create(&request.ifname, &kind, Some(mtu.unwrap_or(master.mtu)), parse_mac(&config.mac));
    socket.request(create).doing(|| format!("make {} on {}", request.ifname, master.name))?;
    let configured = attach::configure(request, netns, &result, Setup::announced());
    let container = match configured {
        Ok(container) => container,
        Err(error) => {
            let _ = remove(request, netns);
            return Err(error);
        }
    };
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
    result.interfaces = vec![attach::described(&container, &netns.text())];
    Ok(result)
}

fn remove(request: &Request, netns: &Netns) -> Result<()> {
    let mut socket = netns.socket()?;
    match socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))? {
        Some(link) => socket.request(link::delete(link.index)).doing(|| format!("remove {}", link.name)),
        None => Ok(()),
    }
}

impl Plugin for Macvlan {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        let netns = Netns::open(request)?;
        let mut addresses = false;
        let added = attach(request, &config, &netns, &mut addresses);
        if added.is_err() && addresses {
            let _ = delegate::pass(Command::Del, request);
        }
        added
    }

    fn del(&self, request: &Request) -> Result<()> {
        if let Some(netns) = Netns::open_if_there(request)? {
            remove(request, &netns)?;
        }
        delegate::pass(Command::Del, request)
    }

    fn check(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        delegate::pass(Command::Check, request)?;
        attach::check(request, &request.config.previous.clone().unwrap_or_default())
    }

    fn status(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        delegate::pass(Command::Status, request)
    }

    fn gc(&self, request: &Request) -> Result<()> {
        delegate::pass(Command::Gc, request)
    }
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    Config::read(request).map(drop)
}
