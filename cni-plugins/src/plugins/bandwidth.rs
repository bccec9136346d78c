//! bandwidth: limits what a container receives and sends.

use gantry_net::link::{self, Change, Kind};
use gantry_net::{Link, Prefix, Socket, qdisc};
use serde::Deserialize;
use sha2::{Digest, Sha512};

use super::{Plugin, field};
use crate::afterwards::{self, Later};
use crate::attach;
use crate::netns::Netns;
use crate::spec::{CniResult, Context, Error, Request, Result};
use crate::table;

/// How long a packet may wait.
const LATENCY_MS: u64 = 25;

/// The plugin.
#[derive(Debug)]
pub(super) struct Bandwidth;

/// Rates in bits a second, bursts in bits.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
struct Limits {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

/// One direction: bytes a second, bytes at once.
type Bucket = (u64, u32);

fn bucket(name: &str, rate: u64, burst: u64) -> Result<Option<Bucket>> {
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, _) => Err(Error::config(format!("{name}Burst is set without {name}Rate"))),
        (_, 0) => Err(Error::config(format!("{name}Rate is set without {name}Burst"))),
        _ => match u32::try_from(burst / 8) {
            Ok(bytes) if bytes > 0 => Ok(Some((rate / 8, bytes))),
            _ => Err(Error::config(format!("{name}Burst: {burst} is less than 8 bits or more than 4 GiB"))),
        },
    }
}

/// What of the traffic is limited.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    All,
    /// With these networks only.
    With(Vec<Prefix>),
    /// With all networks but these.
    But(Vec<Prefix>),
}

/// What is limited: to the container, from it.
#[derive(Debug)]
struct Config {
    to: Option<Bucket>,
    from: Option<Bucket>,
    scope: Scope,
}

const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// What the configuration says; only when it says nothing, what the runtime asks for.
fn read(request: &Request) -> Result<Config> {
    let value = &request.config.value;
    let runtime = serde_json::Value::Object(request.config.section(&["runtimeConfig", "bandwidth"]));
    let chosen = if KEYS.iter().any(|key| value.get(key).is_some()) { value } else { &runtime };
    let limits = Limits::deserialize(chosen).map_err(|e| Error::config(format!("bandwidth: {e}")))?;
    let networks = |key: &str| -> Result<Vec<Prefix>> {
        let mut texts: Vec<String> = field(&runtime, key)?;
        if texts.is_empty() {
            texts = field(value, key)?;
        }
        texts.iter().map(|t| t.parse().map_err(|e| Error::config(format!("{key}: {e}")))).collect()
    };
    let scope = match (networks("shapedSubnets")?, networks("unshapedSubnets")?) {
        (with, but) if with.is_empty() && but.is_empty() => Scope::All,
        (with, but) if but.is_empty() => Scope::With(with),
        (with, but) if with.is_empty() => Scope::But(but),
        _ => return Err(Error::config("shapedSubnets and unshapedSubnets exclude each other")),
    };
    Ok(Config {
        to: bucket("ingress", limits.ingress_rate, limits.ingress_burst)?,
        from: bucket("egress", limits.egress_rate, limits.egress_burst)?,
        scope,
    })
}

/// The device that what the container sends goes through; its name follows from the attachment.
fn shaper_name(request: &Request) -> String {
    attach::host_name(request).replacen("veth", "bwp", 1)
}

/// What the reference plugin calls it, which does not tell a container's devices apart.
fn reference_name(request: &Request) -> String {
    let hash = Sha512::digest(format!("{}{}", request.config.name, request.container));
    hash.iter().take(6).fold("bwp".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// The host's end of the container's device.
fn host_end(request: &Request, socket: &mut Socket) -> Result<Link> {
    let netns = Netns::open(request)?;
    let inside = netns.socket()?.link(&request.ifname).doing(|| format!("find {}", request.ifname))?;
    let peer =
        inside.and_then(|l| l.peer).ok_or_else(|| Error::internal(format!("{} has no other end", request.ifname)))?;
    let host = socket.link_by_index(peer).doing(|| "find the host's end".into())?;
    host.filter(|l| l.kind == "veth").ok_or_else(|| Error::internal("the container's device is no veth pair"))
}

/// Limits what a device sends: all of it, or what goes to (or, `sources`, comes from) some networks.
fn limit(socket: &mut Socket, device: &Link, bucket: Bucket, scope: &Scope, sources: bool) -> Result<()> {
    let (networks, limited) = match scope {
        Scope::All => {
            let request = qdisc::token_bucket(device.index, bucket.0, bucket.1, LATENCY_MS);
            return socket.request(request).doing(|| format!("limit {}", device.name));
        }
        Scope::With(networks) => (networks, true),
        Scope::But(networks) => (networks, false),
    };
    let limits = (bucket.0, bucket.1, LATENCY_MS);
    let requests = qdisc::by_network(device.index, networks, limited, sources, limits);
    socket
        .batch(requests)
        .map_err(|(step, e)| Error::internal(format!("limit {} by network (step {step}): {e}", device.name)))
}

/// Sends what comes from the container through a device of its own, where it can be held back.
fn shape(request: &Request, socket: &mut Socket, host: &Link, bucket: Bucket, scope: &Scope) -> Result<Link> {
    let name = shaper_name(request);
    let find = |socket: &mut Socket| socket.link(&name).doing(|| format!("find {name}"));
    if let Some(old) = find(socket)? {
        let own = Socket::route().doing(|| "open a netlink socket".into())?;
        Later::Remove(own, old.index).do_now().doing(|| format!("remove {name}"))?;
    }
    socket.request(link::create(&name, &Kind::Ifb, Some(host.mtu), None)).doing(|| format!("make {name}"))?;
    let shaper = find(socket)?.ok_or_else(|| Error::internal(format!("{name} is gone")))?;
    let owner = table::owner(request);
    let up = Change { up: Some(true), alias: Some(&owner), ..Change::default() };
    socket.request(link::change(shaper.index, &up)).doing(|| format!("set {name} up"))?;
    limit(socket, &shaper, bucket, scope, false)?;
    let batch = vec![qdisc::ingress(host.index), qdisc::redirect(host.index, shaper.index)];
    socket.batch(batch).map_err(|(_, e)| Error::internal(format!("redirect {} to {name}: {e}", host.name)))?;
    Ok(shaper)
}

impl Plugin for Bandwidth {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let Config { to, from, scope } = read(request)?;
        let mut result =
            request.config.previous.clone().ok_or_else(|| Error::config("must be called as chained plugin"))?;
        if to.is_none() && from.is_none() {
            return Ok(result);
        }
        let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
        let host = host_end(request, &mut socket)?;
        if let Some(bucket) = to {
            limit(&mut socket, &host, bucket, &scope, true)?;
        }
        if let Some(bucket) = from {
            match shape(request, &mut socket, &host, bucket, &scope) {
                Ok(shaper) => result.interfaces.push(attach::described(&shaper, "")),
                Err(error) => {
                    let _ = self.del(request);
                    return Err(error);
                }
            }
        }
        Ok(result)
    }

    fn del(&self, request: &Request) -> Result<()> {
        // The limit on what the container receives goes with its device.
        let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
        // One of the reference plugin is taken over.
        for name in [shaper_name(request), reference_name(request)] {
            let found = socket.link(&name).doing(|| format!("find {name}"))?;
            if let Some(shaper) = found.filter(|l| l.kind == "ifb") {
                let own = Socket::route().doing(|| "open a netlink socket".into())?;
                afterwards::leave(Later::Remove(own, shaper.index)).doing(|| format!("remove {name}"))?;
            }
        }
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<()> {
        attach::remove_others(table::valid(request)?)
    }

    fn check(&self, request: &Request) -> Result<()> {
        let Config { from, .. } = read(request)?;
        let mut socket = Socket::route().doing(|| "open a netlink socket".into())?;
        host_end(request, &mut socket)?;
        let name = shaper_name(request);
        if from.is_some() && socket.link(&name).doing(|| format!("find {name}"))?.is_none() {
            return Err(Error::internal(format!("{name}, which limits what the container sends, is missing")));
        }
        Ok(())
    }
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    read(request)?;
    assert!(shaper_name(request).len() < 16 && reference_name(request).len() < 16);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_bursts_come_in_pairs() {
        assert_eq!(bucket("ingress", 0, 0).unwrap(), None);
        assert_eq!(bucket("ingress", 8000, 800).unwrap(), Some((1000, 100)));
        for (rate, burst, part) in
            [(1, 0, "without ingressBurst"), (0, 1, "without ingressRate"), (1, 7, "8 bits"), (1, 1 << 40, "4 GiB")]
        {
            assert!(bucket("ingress", rate, burst).unwrap_err().message.contains(part));
        }
    }
}
