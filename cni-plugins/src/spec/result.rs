//! Results: one form in memory, written in whichever version the configuration asks for and read from any.

use gantry_net::Prefix;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{Code, Error};
use super::version::Version;

/// What an ADD made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Devices, on the host and in the container.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes in the container.
    pub routes: Vec<RouteConfig>,
    /// Name servers.
    pub dns: Dns,
}

/// A device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU (since 1.1.0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The container's network namespace; empty for devices of the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Index into the interfaces.
    pub interface: Option<usize>,
    /// Address and prefix length.
    pub address: Prefix,
    /// Router.
    pub gateway: Option<std::net::IpAddr>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteConfig {
    /// Destination.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub dst: Prefix,
    /// Router; the gateway of the address when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<std::net::IpAddr>,
    /// MTU (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Advertised MSS (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Table (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

fn as_text<S: serde::Serializer>(prefix: &Prefix, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(prefix)
}

fn from_text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Prefix, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

/// Name servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Own domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

const V0_3: Version = Version::new(0, 3, 0);
const V1_0: Version = Version::new(1, 0, 0);
const V1_1: Version = Version::new(1, 1, 0);

impl CniResult {
    /// The object for standard output.
    pub fn to_value(&self, version: Version) -> Value {
        let mut out = Map::new();
        out.insert("cniVersion".into(), json!(version.to_string()));
        if version < V0_3 {
            self.write_legacy(&mut out);
        } else {
            self.write_current(&mut out, version);
        }
        out.insert("dns".into(), json!(self.dns));
        Value::Object(out)
    }

    fn write_current(&self, out: &mut Map<String, Value>, version: Version) {
        if !self.interfaces.is_empty() {
            let mut interfaces = self.interfaces.clone();
            if version < V1_1 {
                interfaces.iter_mut().for_each(|i| i.mtu = None);
            }
            out.insert("interfaces".into(), json!(interfaces));
        }
        let ips = self.ips.iter().map(|ip| {
            let mut one = json!({"address": ip.address.to_string()});
            if let Some(index) = ip.interface {
                one["interface"] = json!(index);
            }
            if let Some(gateway) = ip.gateway {
                one["gateway"] = json!(gateway);
            }
            if version < V1_0 {
                one["version"] = json!(if ip.address.ip.is_ipv4() { "4" } else { "6" });
            }
            one
        });
        let ips: Vec<Value> = ips.collect();
        if !ips.is_empty() {
            out.insert("ips".into(), ips.into());
        }
        if !self.routes.is_empty() {
            let plain = |r: &RouteConfig| RouteConfig {
                mtu: None,
                advmss: None,
                priority: None,
                table: None,
                scope: None,
                ..r.clone()
            };
            let routes: Vec<_> =
                self.routes.iter().map(|r| if version < V1_1 { plain(r) } else { r.clone() }).collect();
            out.insert("routes".into(), json!(routes));
        }
    }

    /// One address of each family, its routes inside it.
    fn write_legacy(&self, out: &mut Map<String, Value>) {
        for (key, four) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.ip.is_ipv4() == four) else { continue };
            let mut one = json!({"ip": ip.address.to_string()});
            if let Some(gateway) = ip.gateway {
                one["gateway"] = json!(gateway);
            }
            let routes: Vec<Value> = self
                .routes
                .iter()
                .filter(|r| r.dst.ip.is_ipv4() == four)
                .map(|r| match r.gw {
                    Some(gw) => json!({"dst": r.dst.to_string(), "gw": gw}),
                    None => json!({"dst": r.dst.to_string()}),
                })
                .collect();
            if !routes.is_empty() {
                one["routes"] = routes.into();
            }
            out.insert(key.into(), one);
        }
    }

    /// Reads a result of any version.
    ///
    /// # Errors
    /// A field is of the wrong form (code 6, naming it).
    pub fn from_value(value: &Value) -> Result<Self, Error> {
        let wrong = |field: &str, why: String| Error::new(Code::Decoding, format!("result.{field}: {why}"));
        let mut result = Self::default();
        if let Some(list) = value.get("interfaces").filter(|v| !v.is_null()) {
            result.interfaces = Vec::deserialize(list).map_err(|e| wrong("interfaces", e.to_string()))?;
        }
        if let Some(list) = value.get("routes").filter(|v| !v.is_null()) {
            result.routes = Vec::deserialize(list).map_err(|e| wrong("routes", e.to_string()))?;
        }
        if let Some(dns) = value.get("dns").filter(|v| !v.is_null()) {
            result.dns = Dns::deserialize(dns).map_err(|e| wrong("dns", e.to_string()))?;
        }
        for (i, ip) in value["ips"].as_array().into_iter().flatten().enumerate() {
            let ip = read_ip(ip, "address").map_err(|why| wrong(&format!("ips[{i}]"), why))?;
            if ip.interface.is_some_and(|index| index >= result.interfaces.len()) {
                return Err(wrong(&format!("ips[{i}].interface"), "there is no such interface".into()));
            }
            result.ips.push(ip);
        }
        for key in ["ip4", "ip6"] {
            let Some(old) = value.get(key).filter(|v| !v.is_null()) else { continue };
            result.ips.push(read_ip(old, "ip").map_err(|why| wrong(key, why))?);
            if let Some(list) = old.get("routes").filter(|v| !v.is_null()) {
                let routes: Vec<RouteConfig> = Vec::deserialize(list).map_err(|e| wrong(key, e.to_string()))?;
                result.routes.extend(routes);
            }
        }
        Ok(result)
    }
}

fn read_ip(value: &Value, key: &str) -> Result<IpConfig, String> {
    let address = value[key].as_str().ok_or_else(|| format!("{key} is missing"))?.parse()?;
    let gateway = match value["gateway"].as_str().filter(|g| !g.is_empty()) {
        Some(text) => Some(text.parse().map_err(|_| format!("gateway {text:?} is not an address"))?),
        None => None,
    };
    let interface = value["interface"].as_u64().and_then(|i| usize::try_from(i).ok());
    Ok(IpConfig { interface, address, gateway })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::SUPPORTED;

    fn sample() -> CniResult {
        CniResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: Some(1400),
                sandbox: "/ns".into(),
            }],
            ips: vec![
                IpConfig {
                    interface: Some(0),
                    address: "10.1.0.2/24".parse().unwrap(),
                    gateway: Some("10.1.0.1".parse().unwrap()),
                },
                IpConfig { interface: Some(0), address: "fd00::2/64".parse().unwrap(), gateway: None },
            ],
            routes: vec![RouteConfig {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: None,
                mtu: Some(1300),
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            }],
            dns: Dns { nameservers: vec!["10.1.0.1".into()], ..Dns::default() },
        }
    }

    #[test]
    fn what_is_written_in_a_version_is_read_back() {
        for version in SUPPORTED {
            let version = Version::parse(version).unwrap();
            let read = CniResult::from_value(&sample().to_value(version)).unwrap();
            assert_eq!(read.ips.len(), 2, "{version}");
            assert_eq!(read.ips[0].address, sample().ips[0].address);
            assert_eq!(read.routes[0].dst, sample().routes[0].dst);
            assert_eq!(read.routes[0].mtu, (version >= V1_1).then_some(1300));
            assert_eq!(read.interfaces.len(), usize::from(version >= V0_3));
        }
    }

    #[test]
    fn each_version_has_its_own_form() {
        let of = |v: &str| sample().to_value(Version::parse(v).unwrap());
        assert_eq!(of("0.2.0")["ip4"]["routes"][0]["dst"], "0.0.0.0/0");
        assert_eq!(of("0.4.0")["ips"][1]["version"], "6");
        assert_eq!(of("1.0.0")["ips"][1].get("version"), None);
        assert_eq!(of("1.0.0")["interfaces"][0].get("mtu"), None);
        assert_eq!(of("1.1.0")["interfaces"][0]["mtu"], 1400);
    }

    #[test]
    fn wrong_fields_are_named() {
        for (text, field) in [
            (json!({"ips": [{"address": "x"}]}), "ips[0]"),
            (json!({"ips": [{"address": "10.0.0.1/8", "interface": 3}]}), "ips[0].interface"),
            (json!({"routes": 5}), "routes"),
            (json!({"ip4": {}}), "ip4"),
        ] {
            let error = CniResult::from_value(&text).unwrap_err();
            assert!(error.message.contains(field), "{error}");
        }
    }
}
