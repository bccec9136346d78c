//! Every plugin under every version of the specification: ADD, CHECK and DEL on a real kernel, and each version's form of
//! results.

use serde_json::{Value, json};

use crate::good::good;
use crate::net::{Net, sh, with};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn legacy(version: &str) -> bool {
    version < "0.3.0"
}

/// The result has the version's form, with these addresses.
fn has_form(version: &str, what: &str, result: &Value, addresses: &[&str]) {
    let text = format!("{what} {version}: {result}");
    assert_eq!(result["cniVersion"], version, "{text}");
    assert!(result["dns"].is_object() || result.get("dns").is_none(), "{text}");
    if legacy(version) {
        for key in ["ips", "interfaces", "routes"] {
            assert!(result.get(key).is_none(), "{text}");
        }
        for address in addresses {
            let part = &result[if address.contains(':') { "ip6" } else { "ip4" }];
            assert_eq!(part["ip"], *address, "{text}");
        }
        return;
    }
    assert!(result.get("ip4").is_none() && result.get("ip6").is_none(), "{text}");
    let ips = result["ips"].as_array().map_or(&[][..], Vec::as_slice);
    assert_eq!(ips.iter().map(|ip| ip["address"].as_str().unwrap()).collect::<Vec<_>>(), addresses, "{text}");
    for (ip, address) in ips.iter().zip(addresses) {
        let family = if address.contains(':') { "6" } else { "4" };
        assert_eq!(ip.get("version"), (version < "1.0.0").then(|| json!(family)).as_ref(), "{text}");
    }
    for interface in result["interfaces"].as_array().map_or(&[][..], Vec::as_slice) {
        assert!(interface.get("mtu").is_none() || version >= "1.1.0", "{text}");
    }
}

/// One plugin's ADD, and CHECK where the version has it.
fn add(net: &Net, plugin: &str, config: &Value) -> Value {
    let version = config["cniVersion"].as_str().unwrap();
    let result = net.call(plugin, "ADD", "a", config).unwrap_or_else(|e| panic!("{plugin} {version}: {e}"));
    let checked = net.call(plugin, "CHECK", "a", &with(config.clone(), "prevResult", result.clone()));
    if version < "0.4.0" {
        assert_eq!(checked.unwrap_err()["code"], 1, "{plugin} {version}");
    } else {
        checked.unwrap_or_else(|e| panic!("{plugin} CHECK {version}: {e}"));
    }
    result
}

fn del(net: &Net, plugin: &str, config: &Value) {
    for _ in 0..2 {
        net.call(plugin, "DEL", "a", config).unwrap_or_else(|e| panic!("{plugin} DEL {}: {e}", config["cniVersion"]));
    }
}

#[test]
fn plugins_that_attach_speak_every_version() {
    let Some(net) = Net::new(&["a"]) else { return };
    let subnet = net.data().with_file_name("subnet.env");
    std::fs::write(
        &subnet,
        "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.0.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n",
    )
    .unwrap();
    sh(&format!("ip -n {} link add spare type veth peer name other", net.name("host")));
    for version in VERSIONS {
        for (plugin, mut config) in good(&net.data()) {
            if matches!(plugin, "portmap" | "firewall" | "bandwidth" | "tuning" | "sbr") {
                continue;
            }
            config["cniVersion"] = json!(version);
            let one = |address: &str| json!([[{"subnet": address}]]);
            // Fresh ranges: the next address is the first.
            let name = format!("{plugin}-{version}");
            config["name"] = json!(name);
            let dual = ["10.77.0.2/24", "fd77::2/64"];
            let addresses: &[&str] = match plugin {
                "bridge" => {
                    config["vlan"] = json!(0);
                    &dual
                }
                "macvlan" => {
                    config["ipam"]["ranges"] = one("198.51.100.0/24");
                    &["198.51.100.2/24"]
                }
                "host-device" => {
                    config["device"] = json!("spare");
                    &dual
                }
                "static" => &["10.77.0.9/24"],
                "vxlan" => {
                    config["subnetFile"] = json!(subnet);
                    &["10.77.0.2/24"]
                }
                "loopback" => &["127.0.0.1/8", "::1/128"],
                _ => &dual,
            };
            let result = add(&net, plugin, &config);
            has_form(version, plugin, &result, addresses);
            if plugin == "bridge" && legacy(version) {
                assert_eq!(result["ip4"]["gateway"], "10.77.0.1", "{result}");
                assert_eq!(result["ip4"]["routes"], json!([{"dst": "0.0.0.0/0"}]), "{result}");
            }
            del(&net, plugin, &config);
            assert!(net.nft().trim().is_empty(), "{name}: {}", net.nft());
            let data = net.data().join(&name);
            let left = std::fs::read_dir(&data).into_iter().flatten().flatten();
            let left = left.filter(|e| e.file_name().to_string_lossy().parse::<std::net::IpAddr>().is_ok());
            assert_eq!(left.count(), 0, "{name}");
        }
    }
    net.without("veth0");
    assert!(net.links().contains("spare@"), "{}", net.links());
}

#[test]
fn chained_plugins_speak_every_version() {
    let Some(net) = Net::new(&["a"]) else { return };
    for version in VERSIONS {
        let bridge = with(with(net.bridge(), "cniVersion", json!(version)), "name", json!(format!("net-{version}")));
        let mut result = add(&net, "bridge", &bridge);
        let addresses = ["10.77.0.2/24", "fd77::2/64"];
        let mut done = Vec::new();
        for (plugin, mut config) in good(&net.data()) {
            // Without the devices of the result, which old versions do not tell, these know none.
            let needs_devices = matches!(plugin, "bandwidth" | "sbr");
            if !matches!(plugin, "portmap" | "firewall" | "tuning") && (!needs_devices || legacy(version)) {
                continue;
            }
            config["cniVersion"] = json!(version);
            config["name"] = bridge["name"].clone();
            config["prevResult"] = result.clone();
            if plugin == "sbr" {
                config["table"] = Value::Null;
            }
            result = add(&net, plugin, &config);
            has_form(version, plugin, &result, &addresses);
            done.push((plugin, config));
        }
        for (plugin, config) in done.iter().rev() {
            del(&net, plugin, config);
        }
        del(&net, "bridge", &bridge);
        assert!(net.nft().trim().is_empty(), "{version}: {}", net.nft());
        net.without("bwp");
    }
}
