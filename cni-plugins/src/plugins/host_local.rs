//! host-local: addresses from ranges, remembered in files on this host.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use gantry_net::Prefix;
use serde_json::Value;

use super::{Plugin, field};
use crate::ipam::ranges::{self, RangeSet};
use crate::ipam::store::{Owner, Store};
use crate::netns::read_small;
use crate::spec::{CniResult, Code, Context, Dns, Error, IpConfig, Request, Result, RouteConfig};

const DATA: &str = "/var/lib/cni/networks";

/// The plugin.
#[derive(Debug)]
pub(super) struct HostLocal;

struct Config {
    data: PathBuf,
    sets: Vec<RangeSet>,
    routes: Vec<RouteConfig>,
    resolv_conf: String,
    asked: Vec<IpAddr>,
}

impl Config {
    fn read(request: &Request) -> Result<Self> {
        let ipam = &request.config.value["ipam"];
        if !ipam.is_object() {
            return Err(Error::config("IPAM config missing 'ipam' key"));
        }
        let runtime = request.config.section(&["runtimeConfig"]);
        let data: String = field(ipam, "dataDir")?;
        Ok(Self {
            data: if data.is_empty() { DATA.into() } else { data.into() },
            sets: ranges::read(ipam, runtime.get("ipRanges"))?,
            routes: field::<Vec<RouteConfigField>>(ipam, "routes")?.into_iter().map(|r| r.0).collect(),
            resolv_conf: field(ipam, "resolvConf")?,
            asked: asked(request)?,
        })
    }

    fn store(&self, request: &Request) -> Result<Store> {
        Store::open(&self.data, &request.config.name)
            .map_err(|e| Error::new(Code::Io, format!("open {}/{}: {e}", self.data.display(), request.config.name)))
    }
}

/// A route in a configuration; wrapped because a list of them has a default.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct RouteConfigField(RouteConfig);

/// Addresses that the runtime asks for: `ips` as capability, in `args.cni`, or `IP` in `CNI_ARGS`; with or without prefix.
fn asked(request: &Request) -> Result<Vec<IpAddr>> {
    let mut texts: Vec<String> = Vec::new();
    texts.extend(request.args.get("IP").filter(|ip| !ip.is_empty()).cloned());
    for section in [&["args", "cni"][..], &["runtimeConfig"]] {
        let section = Value::Object(request.config.section(section));
        texts.extend(field::<Vec<String>>(&section, "ips")?);
    }
    texts
        .iter()
        .map(|text| {
            let ip = text.split('/').next().unwrap_or_default();
            ip.parse().map_err(|_| Error::config(format!("ips: {text:?} is not an IP address")))
        })
        .collect()
}

fn owner(request: &Request) -> Owner {
    Owner { container: request.container.clone(), ifname: request.ifname.clone() }
}

/// Picks one address of each set: those that were asked for, else the next free one.
fn pick(store: &Store, sets: &[RangeSet], mut asked: Vec<IpAddr>) -> Result<Vec<(usize, Prefix, IpAddr)>> {
    let read = |ip: IpAddr| store.owner_of(ip).doing(|| format!("read the owner of {ip}"));
    let mut picked = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        let wanted = asked.iter().position(|ip| set.range_of(*ip).is_some()).map(|i| asked.remove(i));
        let found = match wanted {
            Some(ip) => {
                let range = set.range_of(ip).ok_or_else(|| Error::internal("the range of an address is gone"))?;
                if ip == range.gateway {
                    return Err(Error::internal(format!("requested ip {ip} is subnet's gateway")));
                }
                if let Some(owner) = read(ip)? {
                    let text = format!("requested IP address {ip} is not available in range set {set}");
                    return Err(Error::internal(text).details(format!("{} {} has it", owner.container, owner.ifname)));
                }
                Some((ip, range))
            }
            None => {
                let mut free = None;
                for (ip, range) in set.candidates(store.last(number)) {
                    if read(ip)?.is_none() {
                        free = Some((ip, range));
                        break;
                    }
                }
                free
            }
        };
        let Some((ip, range)) = found else { return Err(exhausted(store, set)?) };
        let prefix = Prefix { ip, length: range.subnet.length };
        picked.push((number, prefix, range.gateway));
    }
    if let Some(ip) = asked.first() {
        return Err(Error::internal(format!("failed to allocate all requested IPs: {ip} is in no range")));
    }
    Ok(picked)
}

/// Says who holds the addresses, so that someone can act.
fn exhausted(store: &Store, set: &RangeSet) -> Result<Error> {
    let mut holders = Vec::new();
    for (ip, _) in set.candidates(None).take(16) {
        if let Some(owner) = store.owner_of(ip).doing(|| format!("read the owner of {ip}"))? {
            holders.push(format!("{ip} {}", owner.container));
        }
    }
    let text = format!("no IP addresses available in range set: {set}");
    Ok(Error::internal(text).details(format!("held by, among others: {}", holders.join(", "))))
}

impl Plugin for HostLocal {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        let store = config.store(request)?;
        let owner = owner(request);
        let already = store.of_owner(&owner, false).doing(|| "read the owner's addresses".into())?;
        if let Some(ip) = already.first() {
            let text = format!("{ip} has been allocated to {}, duplicate allocation is not allowed", owner.container);
            return Err(Error::internal(text));
        }
        let dns = resolv_conf(&config.resolv_conf)?;
        let picked = pick(&store, &config.sets, config.asked.clone())?;
        let ips: Vec<_> = picked.iter().map(|(set, prefix, _)| (*set, prefix.ip)).collect();
        store
            .take(&owner, &ips)
            .map_err(|e| Error::new(Code::Io, format!("reserve an address in {}: {e}", config.data.display())))?;
        let ips = picked.into_iter().map(|(_, address, gateway)| IpConfig {
            interface: None,
            address,
            gateway: Some(gateway),
        });
        let ips = ips.collect();
        Ok(CniResult { ips, routes: config.routes, dns, ..CniResult::default() })
    }

    fn del(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        let store = config.store(request)?;
        let owner = owner(request);
        let ips = store.of_owner(&owner, true).doing(|| "look for the owner's addresses".into())?;
        store.release(&owner, &ips).doing(|| format!("release the addresses of {}", owner.container))
    }

    fn check(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        let store = config.store(request)?;
        let ips = store.of_owner(&owner(request), true).doing(|| "look for the owner's addresses".into())?;
        if ips.is_empty() {
            return Err(Error::internal(format!(
                "host-local: Failed to find address added by container {}",
                request.container
            )));
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<()> {
        let refuse = |e: Error| Error::new(Code::NotAvailable, e.to_string());
        let config = Config::read(request).map_err(refuse)?;
        let store = config.store(request).map_err(refuse)?;
        pick(&store, &config.sets, Vec::new()).map(drop).map_err(refuse)
    }

    fn gc(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        let valid: HashSet<_> =
            request.valid_attachments()?.into_iter().map(|(container, ifname)| Owner { container, ifname }).collect();
        let store = config.store(request)?;
        store.keep_only(&valid).map(drop).doing(|| "free addresses that no container has".into())
    }

    fn needs_previous(&self) -> bool {
        false
    }
}

/// Name servers from a file in resolv.conf's form.
fn resolv_conf(path: &str) -> Result<Dns> {
    if path.is_empty() {
        return Ok(Dns::default());
    }
    let text = read_small(Path::new(path))?;
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let (key, rest): (_, Vec<String>) = (words.next(), words.map(str::to_owned).collect());
        match key {
            Some("nameserver") => dns.nameservers.extend(rest.into_iter().take(1)),
            Some("domain") => dns.domain = rest.into_iter().next().unwrap_or_default(),
            Some("search") => dns.search.extend(rest),
            Some("options") => dns.options.extend(rest),
            _ => {}
        }
    }
    Ok(dns)
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    let config = Config::read(request)?;
    for set in &config.sets {
        let last = config.asked.first().copied().or_else(|| set.candidates(None).next().map(|(ip, _)| ip));
        for (ip, range) in set.candidates(last).take(300) {
            assert!(range.contains(ip) && ip != range.gateway, "{ip} of {set}");
        }
    }
    Ok(())
}
