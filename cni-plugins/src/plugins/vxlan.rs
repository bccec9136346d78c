//! vxlan (and flannel): a bridge, by default, with this node's network as the overlay's agent wrote it down.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use gantry_net::Prefix;
use serde_json::{Map, Value, json};

use super::{Plugin, field, find};
use crate::netns::read_small;
use crate::spec::{CniResult, Code, Context, Error, NetConfig, Request, Result};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA: &str = "/var/lib/cni/flannel";

/// The plugin.
#[derive(Debug)]
pub(super) struct Vxlan;

/// What the agent wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Subnets {
    networks: Vec<Prefix>,
    own: Vec<Prefix>,
    mtu: u32,
    masquerades: bool,
}

impl Subnets {
    fn parse(text: &str) -> Result<Self, String> {
        let values: HashMap<&str, &str> = text.lines().filter_map(|l| l.trim().split_once('=')).collect();
        let mut read = Self { networks: Vec::new(), own: Vec::new(), mtu: 0, masquerades: false };
        for (network, subnet) in
            [("FLANNEL_NETWORK", "FLANNEL_SUBNET"), ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET")]
        {
            let prefix = |key: &str, text: &&str| text.parse::<Prefix>().map_err(|e| format!("{key}: {e}"));
            if let Some(text) = values.get(network) {
                // Several networks may stand here, divided by commas.
                for one in text.split(',') {
                    read.networks.push(prefix(network, &one)?);
                }
            }
            if let Some(text) = values.get(subnet) {
                read.own.push(prefix(subnet, text)?.network());
            }
        }
        if read.own.is_empty() {
            return Err("FLANNEL_SUBNET is missing".into());
        }
        let mtu = values.get("FLANNEL_MTU").ok_or("FLANNEL_MTU is missing")?;
        read.mtu = mtu.parse().map_err(|_| format!("FLANNEL_MTU: {mtu:?} is no number"))?;
        let masquerades = values.get("FLANNEL_IPMASQ").ok_or("FLANNEL_IPMASQ is missing")?;
        read.masquerades = *masquerades == "true";
        Ok(read)
    }

    fn load(path: &Path) -> Result<Self> {
        let text = read_small(path).map_err(|e| {
            let text = format!("loadFlannelSubnetEnv failed: {e}");
            Error::new(Code::TryAgain, text).details("does gantry-overlay or flanneld run on this node?")
        })?;
        Self::parse(&text).map_err(|why| Error::internal(format!("{}: {why}", path.display())))
    }
}

struct Config {
    subnet_file: PathBuf,
    data: PathBuf,
    delegate: Map<String, Value>,
    ipam: Map<String, Value>,
}

impl Config {
    fn read(request: &Request) -> Result<Self> {
        let value = &request.config.value;
        let path = |key: &str, otherwise: &str| -> Result<PathBuf> {
            let text: String = field(value, key)?;
            Ok(if text.is_empty() { otherwise.into() } else { text.into() })
        };
        let delegate: Map<String, Value> = field(value, "delegate")?;
        if delegate.get("type").is_some_and(|t| !t.is_string()) {
            return Err(Error::config("'delegate' dictionary, if present, must have (string) 'type' field"));
        }
        for key in ["name", "ipam"] {
            if delegate.contains_key(key) {
                return Err(Error::config(format!(
                    "'delegate' dictionary must not have '{key}' field, it'll be set by vxlan"
                )));
            }
        }
        Ok(Self {
            subnet_file: path("subnetFile", SUBNET_FILE)?,
            data: path("dataDir", DATA)?,
            delegate,
            ipam: field(value, "ipam")?,
        })
    }

    /// The file that keeps what was asked of the delegate, for DEL.
    fn kept(&self, request: &Request) -> PathBuf {
        self.data.join(&request.container)
    }
}

/// The delegate's configuration. Pure.
fn delegate(config: &Config, name: &str, version: &str, runtime: Option<&Value>, subnets: &Subnets) -> Value {
    let mut out = config.delegate.clone();
    let defaults = [("type", json!("bridge")), ("ipMasq", json!(!subnets.masquerades)), ("mtu", json!(subnets.mtu))];
    for (key, value) in defaults {
        out.entry(key).or_insert(value);
    }
    if out["type"] == "bridge" {
        out.entry("isGateway").or_insert(json!(true));
    }
    out.insert("name".into(), json!(name));
    out.insert("cniVersion".into(), json!(version));
    if let Some(runtime) = runtime {
        out.insert("runtimeConfig".into(), runtime.clone());
    }
    let mut ipam = config.ipam.clone();
    ipam.entry("type").or_insert(json!("host-local"));
    let ranges: Vec<Value> = subnets.own.iter().map(|s| json!([{"subnet": s.to_string()}])).collect();
    ipam.insert("ranges".into(), json!(ranges));
    let mut routes: Vec<Value> = ipam.get("routes").and_then(Value::as_array).cloned().unwrap_or_default();
    routes.extend(subnets.networks.iter().map(|n| json!({"dst": n.to_string()})));
    ipam.insert("routes".into(), json!(routes));
    out.insert("ipam".into(), Value::Object(ipam));
    Value::Object(out)
}

/// The request, as the delegate gets it.
fn passed(request: &Request, mut value: Value) -> Result<Request> {
    if let Some(previous) = request.config.value.get("prevResult") {
        value["prevResult"] = previous.clone();
    }
    if let Some(valid) = request.config.value.get("cni.dev/valid-attachments") {
        value["cni.dev/valid-attachments"] = valid.clone();
    }
    let config = NetConfig::parse(value.to_string().as_bytes())?;
    Ok(Request { config, ..request.clone() })
}

fn plugin(value: &Value) -> Result<&'static dyn Plugin> {
    let kind = value["type"].as_str().unwrap_or_default();
    let known = find(kind).filter(|_| !matches!(kind, "vxlan" | "flannel"));
    known.ok_or_else(|| Error::config(format!("delegate.type: {kind:?} is none of this program's plugins")))
}

fn fresh(request: &Request, config: &Config) -> Result<Value> {
    let subnets = Subnets::load(&config.subnet_file)?;
    let runtime = request.config.value.get("runtimeConfig");
    Ok(delegate(config, &request.config.name, &request.config.version.to_string(), runtime, &subnets))
}

impl Plugin for Vxlan {
    fn add(&self, request: &Request) -> Result<CniResult> {
        let config = Config::read(request)?;
        let value = fresh(request, &config)?;
        let plugin = plugin(&value)?;
        let kept = config.kept(request);
        // The network of this node may change before DEL: what was asked for is kept first.
        fs::create_dir_all(&config.data).doing(|| format!("make {}", config.data.display()))?;
        let new = config.data.join(format!(".{}.new", request.container));
        fs::write(&new, value.to_string())
            .and_then(|()| fs::rename(&new, &kept))
            .doing(|| format!("write {}", kept.display()))?;
        let added = plugin.add(&passed(request, value)?);
        if added.is_err() {
            let _ = fs::remove_file(&kept);
        }
        added
    }

    fn del(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        let kept = config.kept(request);
        let value = match fs::read(&kept) {
            // A crash of the machine may have emptied it: then what would be asked for now is the best that is known.
            Ok(bytes) => serde_json::from_slice(&bytes).or_else(|_| fresh(request, &config))?,
            Err(e) if e.kind() == ErrorKind::NotFound => match fresh(request, &config) {
                Ok(value) => value,
                // Without a network of this node there was no ADD.
                Err(_) => return Ok(()),
            },
            Err(e) => return Err(Error::new(Code::Io, format!("read {}: {e}", kept.display()))),
        };
        plugin(&value)?.del(&passed(request, value)?)?;
        gantry_files::remove(&kept).map_err(|e| Error::new(Code::Io, format!("remove {}: {e}", kept.display())))
    }

    fn check(&self, request: &Request) -> Result<()> {
        let value = fresh(request, &Config::read(request)?)?;
        plugin(&value)?.check(&passed(request, value)?)
    }

    fn status(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        let value = fresh(request, &config).map_err(|e| Error::new(Code::NotAvailable, e.to_string()))?;
        plugin(&value)?.status(&passed(request, value)?)
    }

    fn gc(&self, request: &Request) -> Result<()> {
        let config = Config::read(request)?;
        let value = fresh(request, &config)?;
        plugin(&value)?.gc(&passed(request, value)?)?;
        let valid: Vec<_> = request.valid_attachments()?.into_iter().map(|(container, _)| container).collect();
        for entry in fs::read_dir(&config.data).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = fs::read(entry.path()).unwrap_or_default();
            let of = serde_json::from_slice::<Value>(&text).map(|v| v["name"] == request.config.name).unwrap_or(true);
            if of && !valid.contains(&name) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// As far as a request is decided on before anything is looked at.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn planned(request: &Request) -> Result<()> {
    let config = Config::read(request)?;
    // The file of the node's network, as a text of the same input.
    let text = request.config.value["subnetFile"].as_str().unwrap_or_default();
    let subnets = Subnets::parse(text).map_err(Error::config)?;
    let value = delegate(&config, &request.config.name, &request.config.version.to_string(), None, &subnets);
    let kind = value["type"].as_str().unwrap_or_default().to_owned();
    plugin(&value)?;
    super::planned(&kind, &passed(request, value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn the_delegate_is_a_bridge_with_the_nodes_network() {
        let config = Config { subnet_file: "".into(), data: "".into(), delegate: Map::new(), ipam: Map::new() };
        let value = delegate(&config, "cbr0", "1.0.0", None, &Subnets::parse(FILE).unwrap());
        assert_eq!((&value["type"], &value["mtu"], &value["ipMasq"]), (&json!("bridge"), &json!(1450), &json!(false)));
        assert_eq!(value["isGateway"], true);
        assert_eq!(value["ipam"]["ranges"], json!([[{"subnet": "10.244.3.0/24"}]]));
        assert_eq!(value["ipam"]["routes"], json!([{"dst": "10.244.0.0/16"}]));
    }

    #[test]
    fn what_the_configuration_says_wins() {
        let Value::Object(given) = json!({"mtu": 9000, "isDefaultGateway": true, "hairpinMode": true}) else { return };
        let config = Config { subnet_file: "".into(), data: "".into(), delegate: given, ipam: Map::new() };
        let value = delegate(&config, "cbr0", "1.0.0", Some(&json!({"mac": "x"})), &Subnets::parse(FILE).unwrap());
        assert_eq!((&value["mtu"], &value["hairpinMode"]), (&json!(9000), &json!(true)));
        assert_eq!(value["runtimeConfig"]["mac"], "x");
    }

    #[test]
    fn a_broken_file_names_its_field() {
        for (text, part) in [
            ("", "FLANNEL_SUBNET"),
            ("FLANNEL_SUBNET=x\n", "FLANNEL_SUBNET"),
            ("FLANNEL_SUBNET=10.0.0.1/24\n", "FLANNEL_MTU"),
            ("FLANNEL_SUBNET=10.0.0.1/24\nFLANNEL_MTU=1450\n", "FLANNEL_IPMASQ"),
        ] {
            assert!(Subnets::parse(text).unwrap_err().contains(part), "{text}");
        }
    }
}
