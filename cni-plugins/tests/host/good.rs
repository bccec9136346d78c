//! Configurations that work.

use serde_json::{Value, json};

/// A configuration for each plugin that would work, but for the result of the plugins before.
pub(crate) fn good(data: &std::path::Path) -> Vec<(&'static str, Value)> {
    let ipam = json!({"type": "host-local", "dataDir": data, "routes": [{"dst": "0.0.0.0/0"}],
        "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]});
    let previous = json!({"cniVersion": "1.1.0",
        "interfaces": [{"name": "br0"}, {"name": "veth0"}, {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/ns"}],
        "ips": [{"address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 2}], "routes": [{"dst": "0.0.0.0/0"}]});
    let mut all = vec![
        (
            "bridge",
            json!({"bridge": "br0", "isGateway": true, "ipMasq": true, "macspoofchk": true, "vlan": 5, "mtu": 1400}),
        ),
        ("ptp", json!({"ipMasq": true, "mtu": 1400})),
        ("macvlan", json!({"master": "up0", "mode": "bridge"})),
        ("host-device", json!({"device": "up0"})),
        ("host-local", json!({})),
        ("static", json!({})),
        ("loopback", json!({})),
        ("vxlan", json!({"subnetFile": "/no/such/file", "dataDir": data.join("kept"), "delegate": {"bridge": "br0"}})),
        (
            "portmap",
            json!({"snat": true, "markMasqBit": 14, "conditionsV4": ["-s", "10.0.0.0/8"], "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]}}),
        ),
        ("firewall", json!({"ingressPolicy": "open", "backend": "nftables"})),
        ("bandwidth", json!({"ingressRate": 1000, "ingressBurst": 1000, "unshapedSubnets": ["10.0.0.0/8"]})),
        ("tuning", json!({"dataDir": data.join("tuning"), "mtu": 1300, "sysctl": {"net.core.somaxconn": "300"}})),
        ("sbr", json!({"table": 100})),
    ];
    for (name, config) in &mut all {
        config["cniVersion"] = json!("1.1.0");
        config["name"] = json!("net");
        config["type"] = json!(name);
        match *name {
            "portmap" | "firewall" | "bandwidth" | "tuning" | "sbr" => config["prevResult"] = previous.clone(),
            "static" => config["ipam"] = json!({"type": "static", "addresses": [{"address": "10.77.0.9/24"}]}),
            "vxlan" => config["ipam"] = json!({"dataDir": data}),
            _ => config["ipam"] = ipam.clone(),
        }
    }
    all
}
