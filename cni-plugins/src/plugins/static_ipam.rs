//! static: addresses that the configuration or the runtime names.

use std::net::IpAddr;

use gantry_net::Prefix;
use serde::Deserialize;
use serde_json::Value;

use super::{Plugin, field};
use crate::spec::{CniResult, Dns, Error, IpConfig, Request, Result, RouteConfig};

/// The plugin.
#[derive(Debug)]
pub(super) struct Static;

#[derive(Debug, Deserialize)]
struct Written {
    address: String,
    gateway: Option<IpAddr>,
}

fn prefix(text: &str) -> Result<Prefix> {
    text.parse().map_err(|e| Error::config(format!("the 'address' field is expected to be in CIDR notation: {e}")))
}

fn plain(text: &str) -> Result<IpConfig> {
    Ok(IpConfig { interface: None, address: prefix(text)?, gateway: None })
}

/// The addresses: the capability `ips` wins over `args.cni.ips`, that over `IP` of `CNI_ARGS`, that over the configuration.
fn addresses(request: &Request, ipam: &Value) -> Result<Vec<IpConfig>> {
    let texts = |section: &[&str]| field::<Vec<String>>(&Value::Object(request.config.section(section)), "ips");
    for section in [&["runtimeConfig"][..], &["args", "cni"]] {
        let given = texts(section)?;
        if !given.is_empty() {
            return given.iter().map(|t| plain(t)).collect();
        }
    }
    if let Some(text) = request.args.get("IP").filter(|t| !t.is_empty()) {
        let mut ips = text.split(',').map(plain).collect::<Result<Vec<_>>>()?;
        for gateway in request.args.get("GATEWAY").into_iter().flat_map(|g| g.split(',')) {
            let ip: IpAddr = gateway
                .parse()
                .map_err(|_| Error::config(format!("GATEWAY of CNI_ARGS: {gateway:?} is not an address")))?;
            for config in ips.iter_mut().filter(|c| c.address.contains(ip)) {
                config.gateway = Some(ip);
            }
        }
        return Ok(ips);
    }
    let written: Vec<Written> = field(ipam, "addresses")?;
    written.iter().map(|w| Ok(IpConfig { interface: None, address: prefix(&w.address)?, gateway: w.gateway })).collect()
}

fn read(request: &Request) -> Result<CniResult> {
    let ipam = &request.config.value["ipam"];
    if !ipam.is_object() {
        return Err(Error::config("IPAM config missing 'ipam' key"));
    }
    let ips = addresses(request, ipam)?;
    let routes: Vec<Value> = field(ipam, "routes")?;
    let routes = routes
        .into_iter()
        .map(|r| RouteConfig::deserialize(&r).map_err(|e| Error::config(format!("ipam.routes: {e}"))))
        .collect::<Result<_>>()?;
    Ok(CniResult { ips, routes, dns: field::<Dns>(ipam, "dns")?, ..CniResult::default() })
}

impl Plugin for Static {
    fn add(&self, request: &Request) -> Result<CniResult> {
        read(request)
    }

    fn del(&self, _request: &Request) -> Result<()> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<()> {
        let wanted = read(request)?;
        let there = request.config.previous.clone().unwrap_or_default();
        match wanted.ips.iter().find(|w| !there.ips.iter().any(|ip| ip.address == w.address)) {
            Some(missing) => Err(Error::internal(format!("static: address {} is not in the result", missing.address))),
            None => Ok(()),
        }
    }
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    read(request).map(drop)
}
