//! host-device: one of the host's devices moves into the container, and back.

use std::fs;

use gantry_net::link::{self, Change, mac_text, parse_mac};
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
pub(super) struct HostDevice;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    device: String,
    hwaddr: String,
    kernelpath: String,
    #[serde(rename = "pciBusID")]
    pci: String,
}

impl Config {
    fn read(request: &Request) -> Result<Self> {
        let mut config: Self = serde_json::from_value(request.config.value.clone())
            .map_err(|e| Error::config(format!("host-device configuration: {e}")))?;
        if let Some(id) = request.config.section(&["runtimeConfig"]).get("deviceID").and_then(Value::as_str) {
            id.clone_into(&mut config.pci);
        }
        if [&config.device, &config.hwaddr, &config.kernelpath, &config.pci].iter().all(|t| t.is_empty()) {
            return Err(Error::config("specify either \"device\", \"hwaddr\", \"kernelpath\" or \"pciBusID\""));
        }
        for (key, path) in [("kernelpath", &config.kernelpath), ("pciBusID", &config.pci)] {
            if path.split('/').any(|part| part == "..") {
                return Err(Error::config(format!("{key}: {path:?} leaves its folder")));
            }
        }
        Ok(config)
    }

    fn find(&self, socket: &mut Socket) -> Result<Link> {
        let missing = |what: &str| Error::internal(format!("failed to find host device: {what}"));
        let named = |socket: &mut Socket, name: &str| {
            socket.link(name).doing(|| format!("find {name}"))?.ok_or_else(|| missing(name))
        };
        if !self.device.is_empty() {
            return named(socket, &self.device);
        }
        if !self.hwaddr.is_empty() {
            let mac = parse_mac(&self.hwaddr).ok_or_else(|| Error::config(format!("hwaddr: {:?}", self.hwaddr)))?;
            let all = socket.links().doing(|| "list devices".into())?;
            return all.into_iter().find(|l| l.mac == mac).ok_or_else(|| missing(&mac_text(&mac)));
        }
        let folder = if self.kernelpath.is_empty() {
            format!("/sys/bus/pci/devices/{}/net", self.pci)
        } else {
            format!("{}/net", self.kernelpath)
        };
        let first = fs::read_dir(&folder).ok().and_then(|mut d| d.next()?.ok());
        let name = first.ok_or_else(|| missing(&folder))?.file_name().to_string_lossy().into_owned();
        named(socket, &name)
    }
}

/// Moves the device in under the container's name for it; its own name is kept in the alias.
fn move_in(request: &Request, socket: &mut Socket, netns: &Netns, device: &Link) -> Result<()> {
    let what = || format!("move {} into {}", device.name, netns.text());
    let down = Change { up: Some(false), alias: Some(&device.name), ..Change::default() };
    let place = netns.place();
    let go = Change { netns: Some(place.0), name: Some(&request.ifname), ..Change::default() };
    socket.request(link::change(device.index, &down)).doing(what)?;
    if let Err(error) = socket.request(link::change(device.index, &go)) {
        let _ = socket.request(link::change(device.index, &Change { alias: Some(""), ..Change::default() }));
        return Err(error).doing(what);
    }
    Ok(())
}

/// Moves the device back under its own name.
fn move_out(request: &Request, netns: &Netns) -> Result<()> {
    let mut socket = netns.socket()?;
    let Some(device) = socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))? else {
        return Ok(());
    };
    if device.alias.is_empty() {
        return Err(Error::internal(format!("{} has no alias that says its name on the host", device.name)));
    }
    let what = || format!("move {} back", device.name);
    let host = fs::File::open("/proc/thread-self/ns/net").doing(what)?;
    let down = Change { up: Some(false), ..Change::default() };
    socket.request(link::change(device.index, &down)).doing(what)?;
    use std::os::fd::AsFd;
    let go = Change { netns: Some(host.as_fd()), name: Some(&device.alias), alias: Some(""), ..Change::default() };
    socket.request(link::change(device.index, &go)).doing(what)
}

impl Plugin for HostDevice {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        let netns = Netns::open(request)?;
        let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
        let device = config.find(&mut socket)?;
        let layer3 = delegate::kind(request).is_some();
        let mut result = if layer3 { delegate::add(request)? } else { CniResult::default() };
        let moved = move_in(request, &mut socket, &netns, &device)
            .and_then(|()| attach::configure(request, &netns, &result, Setup::announced()));
        match moved {
            Ok(container) => {
                result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
                result.interfaces = vec![attach::described(&container, &netns.text())];
                Ok(result)
            }
            Err(error) => {
                let _ = move_out(request, &netns);
                if layer3 {
                    let _ = delegate::pass(Command::Del, request);
                }
                Err(error)
            }
        }
    }

    fn del(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        if let Some(netns) = Netns::open_if_there(request)? {
            move_out(request, &netns)?;
        }
        delegate::pass(Command::Del, request)
    }

    fn check(&self, request: &Request) -> Result<()> {
        Config::read(request)?;
        delegate::pass(Command::Check, request)?;
        attach::check(request, &request.config.previous.clone().unwrap_or_default())
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
