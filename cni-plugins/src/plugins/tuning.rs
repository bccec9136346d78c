//! tuning: sysctls of the container's network and properties of its device.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use gantry_net::link::{self, ALLMULTI, Change, PROMISC, mac_text, parse_mac};
use gantry_net::{Link, Socket};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Plugin, field};
use crate::netns::{Netns, read_small, set_sysctl};
use crate::spec::{CniResult, Code, Context, Error, Request, Result};

const DATA: &str = "/run/cni/tuning";
/// Where an administrator says which sysctls configurations may set, each line a pattern.
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";

/// The plugin.
#[derive(Debug)]
pub(super) struct Tuning;

/// What is to be set; only what is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Config {
    sysctl: BTreeMap<String, String>,
    device: Device,
    data: PathBuf,
}

/// Properties of the device, as they are kept for DEL too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Device {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
}

impl Config {
    fn read(request: &Request) -> Result<Self> {
        let value = &request.config.value;
        let mut device: Device =
            serde_json::from_value(value.clone()).map_err(|e| Error::config(format!("tuning: {e}")))?;
        // 0 and false mean "leave it", as the reference plugin has it.
        device.mtu = device.mtu.filter(|m| *m > 0);
        device.promisc = device.promisc.filter(|p| *p);
        for section in [&["args", "cni"][..], &["runtimeConfig"]] {
            if let Some(mac) =
                request.config.section(section).get("mac").and_then(Value::as_str).filter(|m| !m.is_empty())
            {
                mac.clone_into(&mut device.mac);
            }
        }
        if let Some(mac) = request.args.get("MAC").filter(|m| !m.is_empty()) {
            device.mac.clone_from(mac);
        }
        if !device.mac.is_empty() && parse_mac(&device.mac).is_none() {
            return Err(Error::config(format!("mac: {:?} is not a hardware address", device.mac)));
        }
        let mut sysctl = BTreeMap::new();
        for (name, value) in field::<BTreeMap<String, String>>(value, "sysctl")? {
            sysctl.insert(sysctl_name(&name, &request.ifname)?, value);
        }
        let data: String = field(value, "dataDir")?;
        Ok(Self { sysctl, device, data: if data.is_empty() { DATA.into() } else { data.into() } })
    }

    fn kept(&self, request: &Request) -> PathBuf {
        self.data.join(format!("{}_{}.json", request.container, request.ifname))
    }
}

/// `net.ipv4.conf.IFNAME.arp_notify` as the file below /proc/sys. Only names below `net` belong to the container's network;
/// any other would change the host.
fn sysctl_name(name: &str, ifname: &str) -> Result<String> {
    let slashed = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let placed = slashed.replace("IFNAME", ifname);
    let whole =
        placed.starts_with("net/") && !placed.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if whole { Ok(placed) } else { Err(Error::config(format!("invalid net sysctl key: \"{name}\""))) }
}

/// Asks the administrator's list, if there is one. What was set before it was written can still be given back.
fn ask_administrator(request: &Request) -> Result<()> {
    let wanted = field::<BTreeMap<String, String>>(&request.config.value, "sysctl")?;
    if wanted.is_empty() || !Path::new(ALLOWED).exists() {
        return Ok(());
    }
    let list = read_small(Path::new(ALLOWED))?;
    wanted.keys().try_for_each(|name| permitted(&list, name))
}

/// Whether an administrator's list has a sysctl, as the configuration writes it. Patterns match anywhere in a name.
fn permitted(list: &str, name: &str) -> Result<()> {
    let lines: Vec<_> = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    for line in &lines {
        let pattern = regex_lite::Regex::new(line).map_err(|e| Error::config(format!("{ALLOWED}: {line:?}: {e}")))?;
        if pattern.is_match(name) {
            return Ok(());
        }
    }
    let text = format!("Sysctl {name} is not allowed. Only the following sysctls are allowed: [{}]", lines.join(" "));
    Err(Error::config(text).details(format!("{ALLOWED} decides")))
}

fn find(request: &Request, socket: &mut Socket) -> Result<Link> {
    let link = socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))?;
    link.ok_or_else(|| Error::internal(format!("there is no {} in the container", request.ifname)))
}

/// What of the device is now, where `wanted` would change it.
fn present(link: &Link, wanted: &Device) -> Device {
    Device {
        mac: if wanted.mac.is_empty() { String::new() } else { link.mac_text() },
        promisc: wanted.promisc.map(|_| link.flags & PROMISC != 0),
        mtu: wanted.mtu.map(|_| link.mtu),
        allmulti: wanted.allmulti.map(|_| link.flags & ALLMULTI != 0),
        queue: wanted.queue.map(|_| link.queue),
    }
}

fn set(socket: &mut Socket, link: &Link, device: &Device) -> Result<()> {
    let change = Change {
        mac: parse_mac(&device.mac),
        promisc: device.promisc,
        allmulti: device.allmulti,
        mtu: device.mtu,
        queue: device.queue,
        ..Change::default()
    };
    socket.request(link::change(link.index, &change)).doing(|| format!("change {}", link.name))
}

impl Plugin for Tuning {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        ask_administrator(request)?;
        let mut result = request.config.previous.clone().ok_or_else(|| Error::config("required prevResult missing"))?;
        let netns = Netns::open(request)?;
        netns.within(|| config.sysctl.iter().try_for_each(|(name, value)| set_sysctl(name, value)))?;
        if config.device == Device::default() {
            return Ok(result);
        }
        let mut socket = netns.socket()?;
        let link = find(request, &mut socket)?;
        let (kept, before) = (config.kept(request), present(&link, &config.device));
        fs::create_dir_all(&config.data)
            .and_then(|()| fs::write(&kept, serde_json::to_vec(&before)?))
            .map_err(|e| Error::new(Code::Io, format!("write {}: {e}", kept.display())))?;
        set(&mut socket, &link, &config.device)?;
        for own in result.interfaces.iter_mut().filter(|i| i.name == request.ifname && !i.sandbox.is_empty()) {
            if let Some(mac) = parse_mac(&config.device.mac) {
                own.mac = mac_text(&mac);
            }
            own.mtu = config.device.mtu.or(own.mtu);
        }
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        let kept = config.kept(request);
        let bytes = match fs::read(&kept) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.doing(|| format!("read {}", kept.display()))?,
        };
        // A device that outlives the container (host-device) gets back what it had.
        if let (Ok(before), Some(netns)) = (serde_json::from_slice::<Device>(&bytes), Netns::open_if_there(request)?) {
            let mut socket = netns.socket()?;
            if let Some(link) = socket.link(&request.ifname).doing(|| format!("find {}", request.ifname))? {
                set(&mut socket, &link, &before)?;
            }
        }
        fs::remove_file(&kept).doing(|| format!("remove {}", kept.display()))
    }

    fn check(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        let netns = Netns::open(request)?;
        let wrong = netns.within(|| {
            let differs = |(name, value): &(&String, &String)| {
                let now = fs::read_to_string(PathBuf::from("/proc/sys").join(name)).unwrap_or_default();
                now.split_whitespace().ne(value.split_whitespace())
            };
            Ok(config.sysctl.iter().find(differs).map(|(name, _)| name.clone()))
        })?;
        if let Some(name) = wrong {
            return Err(Error::internal(format!("sysctl {name} has another value than it was given")));
        }
        let mut socket = netns.socket()?;
        let link = find(request, &mut socket)?;
        let mut wanted = config.device.clone();
        wanted.mac = parse_mac(&wanted.mac).map(|m| mac_text(&m)).unwrap_or_default();
        if present(&link, &config.device) == wanted {
            Ok(())
        } else {
            Err(Error::internal(format!("{} is not as it was set", link.name)))
        }
    }
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    Config::read(request).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_administrator_says_which_sysctls_may_be_set() {
        let list = "# what pods may have\n^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n\nnet.core";
        for (name, allowed) in [
            ("net.ipv4.conf.IFNAME.arp_filter", true),
            ("net.ipv4.conf.eth0.arp_filter", false),
            ("net.core.somaxconn", true),
            ("net.ipv4.ip_forward", false),
        ] {
            assert_eq!(permitted(list, name).is_ok(), allowed, "{name}");
        }
        assert!(permitted("", "net.core.somaxconn").is_err(), "an empty list allows nothing");
        assert!(permitted("[", "net.core.somaxconn").unwrap_err().to_string().contains("allowlist.conf"));
    }

    #[test]
    fn only_sysctls_of_the_network_are_taken() {
        assert_eq!(sysctl_name("net.ipv4.conf.IFNAME.arp_filter", "eth0").unwrap(), "net/ipv4/conf/eth0/arp_filter");
        assert_eq!(sysctl_name("net/ipv4/conf/eth0.1/arp_filter", "x").unwrap(), "net/ipv4/conf/eth0.1/arp_filter");
        for wrong in ["kernel.hostname", "net/../kernel/hostname", "net//core", "../net/core", ""] {
            assert!(sysctl_name(wrong, "eth0").is_err(), "{wrong}");
        }
    }
}
