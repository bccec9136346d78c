//! Whatever a plugin is given, it answers a CNI error with the right code, soon, and makes nothing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::good::good;
use crate::net::{Net, sh, with};

struct Checked<'a> {
    net: &'a Net,
    links: String,
}

impl Checked<'_> {
    /// The call fails with one of these codes, at once, and nothing is there that was not before.
    fn fails(&self, what: &str, codes: &[u64], call: impl Fn() -> Result<Value, Value>) {
        let mut error = call().expect_err(what);
        let took = || *self.net.took.lock().unwrap();
        // A busy disk is not the plugin's doing: it may answer late once, not each time.
        for _ in 0..3 {
            if took() > Duration::from_secs(1) {
                error = call().expect_err(what);
            }
        }
        assert!(took() < Duration::from_secs(1), "{what} took {:?}", took());
        let code = error["code"].as_u64().unwrap_or_else(|| panic!("{what}: no error object but {error}"));
        assert!(codes.contains(&code), "{what}: {error}");
        assert!(error["msg"].as_str().is_some_and(|m| !m.is_empty()), "{what}: {error}");
        assert_eq!(self.net.links(), self.links, "{what}");
        assert_eq!((self.net.nft().trim(), self.net.taken().len()), ("", 0), "{what}");
    }
}

#[test]
fn input_that_is_no_configuration_is_refused_by_every_plugin() {
    let Some(mut net) = Net::new(&["a"]) else { return };
    net.limited = true;
    let checked = Checked { net: &net, links: net.links() };
    let here = format!("/run/netns/{}", net.name("a"));
    let huge = format!("{{\"name\": \"{}\"}}", "x".repeat(5 << 20));
    let deep = "[".repeat(200_000);
    for (plugin, config) in good(&net.data()) {
        let changed = |key: &str, value: Value| with(config.clone(), key, value).to_string();
        let cases = [
            ("nothing", String::new(), 6),
            ("half an object", "{\"cniVersion\": ".to_owned(), 6),
            ("a list", "[]".to_owned(), 6),
            ("null", "null".to_owned(), 6),
            ("words", "no json at all".to_owned(), 6),
            ("huge", huge.clone(), 6),
            ("deep", deep.clone(), 6),
            ("a number as name", changed("name", json!(5)), 6),
            ("a list as ipam", changed("ipam", json!([])), 6),
            ("a text as prevResult", changed("prevResult", json!("x")), 6),
            ("a number as runtimeConfig", changed("runtimeConfig", json!(3)), 6),
            ("a number as cniVersion", changed("cniVersion", json!(1)), 6),
            ("an unknown version", changed("cniVersion", json!("9.9.9")), 1),
            ("a name with a path", changed("name", json!("../x")), 7),
            ("no name", changed("name", Value::Null), 7),
        ];
        for (what, input, code) in cases {
            let what = format!("{plugin}: {what}");
            checked.fails(&what, &[code], || net.call_in(plugin, "ADD", "a", &here, &input));
        }
    }
}

#[test]
fn a_field_of_the_wrong_type_is_named_by_the_plugin_that_reads_it() {
    let Some(mut net) = Net::new(&["a"]) else { return };
    net.limited = true;
    let checked = Checked { net: &net, links: net.links() };
    let good = good(&net.data());
    for (plugin, key, value) in [
        ("bridge", "mtu", json!("x")),
        ("bridge", "vlan", json!(5000)),
        ("bridge", "vlanTrunk", json!([{"minID": 9, "maxID": 3}])),
        ("bridge", "macspoofchk", json!("yes")),
        ("bridge", "bridge", json!("a-name-that-is-too-long")),
        ("ptp", "mtu", json!([])),
        ("macvlan", "mode", json!("odd")),
        ("host-device", "device", json!(5)),
        ("host-local", "ipam", json!({"type": "host-local", "dataDir": net.data(), "subnet": "10.0.0.0/33"})),
        ("host-local", "ipam", json!({"type": "host-local", "dataDir": net.data(), "ranges": "x"})),
        ("static", "ipam", json!({"type": "static", "addresses": [{"address": "10.0.0.1"}]})),
        ("vxlan", "delegate", json!({"type": 5})),
        ("portmap", "runtimeConfig", json!({"portMappings": [{"hostPort": 1, "containerPort": 99999}]})),
        ("portmap", "snat", json!("yes")),
        ("portmap", "markMasqBit", json!(32)),
        ("portmap", "externalSetMarkChain", json!(5)),
        ("portmap", "conditionsV4", json!("-s x")),
        ("portmap", "conditionsV6", json!(["--odd"])),
        ("firewall", "ingressPolicy", json!("odd")),
        ("bandwidth", "ingressRate", json!(-1)),
        ("bandwidth", "unshapedSubnets", json!(["10.0.0.0"])),
        ("bandwidth", "shapedSubnets", json!(["10.0.0.0/8"])),
        ("tuning", "sysctl", json!({"kernel.hostname": "x"})),
        ("tuning", "mac", json!("x")),
        ("sbr", "table", json!("x")),
    ] {
        let config = &good.iter().find(|(name, _)| *name == plugin).unwrap().1;
        let what = format!("{plugin}: {key} {value}");
        checked.fails(&what, &[7], || net.call(plugin, "ADD", "a", &with(config.clone(), key, value.clone())));
    }
}

#[test]
fn a_missing_or_wrong_variable_is_told() {
    let Some(mut net) = Net::new(&["a"]) else { return };
    net.limited = true;
    let checked = Checked { net: &net, links: net.links() };
    let here = format!("/run/netns/{}", net.name("a"));
    for (plugin, config) in good(&net.data()) {
        let input = config.to_string();
        for (name, value) in [
            ("CNI_COMMAND", "ODD"),
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../../x"),
            ("CNI_NETNS", ""),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", "../eth0"),
            ("CNI_IFNAME", "a-name-that-is-too-long"),
            ("CNI_PATH", ""),
            ("CNI_ARGS", "no pair"),
        ] {
            let what = format!("{plugin}: {name}={value:?}");
            checked.fails(&what, &[4], || net.call_with(plugin, "ADD", "a", &here, &input, &[(name, value)]));
        }
    }
}

#[test]
fn a_path_that_is_no_network_namespace_is_refused_before_anything_is_made() {
    let Some(mut net) = Net::new(&["a"]) else { return };
    net.limited = true;
    let checked = Checked { net: &net, links: net.links() };
    let pipe = net.folder.path().join("pipe").display().to_string();
    sh(&format!("mkfifo {pipe}"));
    let folder = net.folder.path().display().to_string();
    for (plugin, mut config) in good(&net.data()) {
        // These look at no namespace, or not before they know the node's network.
        if matches!(plugin, "host-local" | "static" | "portmap" | "firewall" | "vxlan") {
            continue;
        }
        if plugin == "bridge" {
            config["bridge"] = json!("br-none");
        }
        for (path, code) in [
            ("/no/such/path", 3),
            (pipe.as_str(), 4),
            (folder.as_str(), 4),
            ("/etc/passwd", 4),
            ("/dev/null", 4),
            ("/proc/self/ns/mnt", 4),
        ] {
            let what = format!("{plugin}: {path}");
            checked.fails(&what, &[code], || net.call_in(plugin, "ADD", "a", path, &config.to_string()));
        }
    }
}
