//! Keys of configurations, capabilities and arguments that no other test is about: what each does.

use std::fs;

use serde_json::{Value, json};

use crate::net::{Net, sh, with};

/// With one IPv4 range.
fn simple(net: &Net) -> Value {
    let mut config = net.bridge();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/24"}]]);
    config["ipam"]["routes"] = json!([]);
    config
}

fn device(net: &Net, short: &str) -> String {
    sh(&format!("ip -n {} -d link show eth0", net.name(short)))
}

fn message(answer: Result<Value, Value>) -> String {
    answer.expect_err("refused")["msg"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_bridges_keys_do_what_they_say() {
    let Some(net) = Net::new(&["a", "b", "c"]) else { return };
    let host = net.name("host");
    sh(&format!("ip -n {host} link add br0 type bridge && ip -n {host} addr add 10.77.0.254/24 dev br0"));
    // Its foreign address stays unless that is wished otherwise.
    let refused = message(net.call("bridge", "ADD", "a", &simple(&net)));
    assert!(refused.contains("different from 10.77.0.1/24"), "{refused}");
    let mut config = with(simple(&net), "forceAddress", json!(true));
    config["mtu"] = json!(1400);
    config["isGateway"] = json!(false);
    config["isDefaultGateway"] = json!(true);
    config["mac"] = json!("02:11:22:33:44:55");
    for backend in ["iptables", "nftables", ""] {
        config["ipMasqBackend"] = json!(backend);
        let added = net.call("bridge", "ADD", "a", &config).unwrap();
        assert_eq!(added["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.77.0.1"}]), "{added}");
        assert_eq!((&added["interfaces"][2]["mtu"], &added["interfaces"][2]["mac"]), (&json!(1400), &config["mac"]));
        let addresses = sh(&format!("ip -n {host} -4 -o addr show dev br0"));
        assert!(addresses.contains("10.77.0.1/24") && !addresses.contains("10.77.0.254"), "{addresses}");
        assert!(device(&net, "a").contains("mtu 1400") && device(&net, "a").contains("02:11:22:33:44:55"));
        net.call("bridge", "DEL", "a", &config).unwrap();
    }
    let refused = message(net.call("bridge", "ADD", "b", &with(config.clone(), "ipMasqBackend", json!("odd"))));
    assert!(refused.contains("odd"), "{refused}");
    // The capability wins over the arguments of the network, these over those of the call, these over the configuration.
    let here = format!("/run/netns/{}", net.name("b"));
    let mac = [("CNI_ARGS", "MAC=02:00:00:00:00:01;IgnoreUnknown=1")];
    for (section, expected) in [
        (json!({}), "02:00:00:00:00:01"),
        (json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}}), "02:00:00:00:00:02"),
        (
            json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}, "runtimeConfig": {"mac": "02:00:00:00:00:03"}}),
            "02:00:00:00:00:03",
        ),
    ] {
        let mut asked = config.clone();
        asked["ipMasqBackend"] = json!("");
        section.as_object().unwrap().iter().for_each(|(key, value)| asked[key] = value.clone());
        net.call_with("bridge", "ADD", "b", &here, &asked.to_string(), &mac).unwrap();
        assert!(device(&net, "b").contains(expected), "{expected}: {}", device(&net, "b"));
        net.call_with("bridge", "DEL", "b", &here, &asked.to_string(), &mac).unwrap();
    }
    // A device that something in the container sets up, such as a virtual machine.
    let mut off = with(config, "disableContainerInterface", json!(true));
    let refused = message(net.call("bridge", "ADD", "c", &off));
    assert!(refused.contains("IPAM"), "{refused}");
    off["ipam"] = json!({});
    off["isDefaultGateway"] = json!(false);
    off["ipMasqBackend"] = json!("");
    net.call("bridge", "ADD", "c", &off).unwrap();
    assert!(device(&net, "c").contains("state DOWN"), "{}", device(&net, "c"));
    net.call("bridge", "DEL", "c", &off).unwrap();
    net.without("veth");
}

#[test]
fn addresses_are_given_as_they_are_asked_for() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let resolv = net.folder.path().join("resolv.conf");
    fs::write(
        &resolv,
        "# here\nnameserver 192.0.2.53\nsearch example.test test\ndomain example.test\noptions ndots:2\n",
    )
    .unwrap();
    let ipam = json!({"type": "host-local", "dataDir": net.data(), "resolvConf": resolv,
        "ranges": [[{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.20", "rangeEnd": "10.77.0.21", "gateway": "10.77.0.9"}]],
        "routes": [{"dst": "192.0.2.0/24", "mtu": 1300, "advmss": 1200, "priority": 77},
                   {"dst": "198.51.100.0/24", "gw": "10.77.0.7", "table": 99}]});
    let mut config = net.bridge();
    config["ipam"] = ipam;
    let a = net.call("bridge", "ADD", "a", &config).unwrap();
    assert_eq!((&a["ips"][0]["address"], &a["ips"][0]["gateway"]), (&json!("10.77.0.20/24"), &json!("10.77.0.9")));
    let dns = json!({"nameservers": ["192.0.2.53"], "domain": "example.test", "search": ["example.test", "test"], "options": ["ndots:2"]});
    assert_eq!(a["dns"], dns);
    let routes = sh(&format!("ip -n {} route show table all", net.name("a")));
    let route = routes.lines().find(|l| l.starts_with("192.0.2.0/24")).unwrap_or_default();
    assert!(["via 10.77.0.9", "metric 77", "mtu 1300", "advmss 1200"].iter().all(|p| route.contains(p)), "{routes}");
    assert!(routes.contains("198.51.100.0/24 via 10.77.0.7 dev eth0 table 99"), "{routes}");
    net.call("bridge", "CHECK", "a", &with(config.clone(), "prevResult", a)).unwrap();
    net.call("bridge", "ADD", "b", &config).unwrap();
    let full = message(net.call("host-local", "ADD", "c", &config));
    assert!(full.contains("10.77.0.20") && full.contains("10.77.0.21"), "names the range: {full}");
    for id in ["a", "b"] {
        net.call("bridge", "DEL", id, &config).unwrap();
    }
    // What a runtime asks for: an address, or ranges of its own before those of the configuration.
    let mut config = simple(&net);
    let here = format!("/run/netns/{}", net.name("a"));
    for (section, arguments, expected) in [
        (json!({"runtimeConfig": {"ips": ["10.77.0.50"]}}), "", "10.77.0.50/24"),
        (json!({"args": {"cni": {"ips": ["10.77.0.51/24"]}}}), "", "10.77.0.51/24"),
        (json!({}), "IP=10.77.0.52", "10.77.0.52/24"),
        (json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.99.0.0/24"}]]}}), "", "10.99.0.2/24"),
    ] {
        let mut asked = config.clone();
        section.as_object().unwrap().iter().for_each(|(key, value)| asked[key] = value.clone());
        let answer =
            net.call_with("host-local", "ADD", "a", &here, &asked.to_string(), &[("CNI_ARGS", arguments)]).unwrap();
        assert_eq!(answer["ips"][0]["address"], expected);
        net.call("host-local", "DEL", "a", &asked).unwrap();
    }
    let outside = with(config.clone(), "runtimeConfig", json!({"ips": ["10.78.0.1"]}));
    assert!(message(net.call("host-local", "ADD", "a", &outside)).contains("10.78.0.1"));
    config["ipam"] = json!({"type": "static"});
    let arguments = [("CNI_ARGS", "IP=10.77.0.60/24;GATEWAY=10.77.0.1")];
    let answer = net.call_with("static", "ADD", "a", &here, &config.to_string(), &arguments).unwrap();
    let first = &answer["ips"][0];
    assert_eq!((&first["address"], &first["gateway"]), (&json!("10.77.0.60/24"), &json!("10.77.0.1")), "{answer}");
    assert_eq!(net.taken(), Vec::<String>::new());
}

#[test]
fn host_ports_and_the_device_are_tuned_as_written() {
    let Some(net) = Net::new(&["a"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    net.serve("a", 80);
    let mapped = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "prevResult": a,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    for (keys, from) in [
        (json!({"masqAll": true}), "10.77.0.1"),
        (json!({"snat": false, "markMasqBit": 7}), "192.0.2.2"),
        (json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}), "192.0.2.2"),
    ] {
        let mut config = mapped.clone();
        keys.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        net.call("portmap", "ADD", "a", &config).unwrap();
        assert_eq!(net.get("out", "192.0.2.1:8080").unwrap(), from, "{keys}");
        assert_eq!(net.nft().contains("hairpin4 {\n\t\ttype ipv4_addr : verdict\n\t\telements"), keys["snat"] != false);
        net.call("portmap", "CHECK", "a", &config).unwrap();
        net.call("portmap", "DEL", "a", &config).unwrap();
    }
    let both = with(with(mapped, "markMasqBit", json!(1)), "externalSetMarkChain", json!("X"));
    assert_eq!(net.call("portmap", "ADD", "a", &both).unwrap_err()["code"], 7);
    let tuned = json!({"cniVersion": "1.1.0", "name": "net", "type": "tuning", "prevResult": a, "dataDir": net.data(),
        "allmulti": true, "promisc": true, "txQLen": 77, "mtu": 1380, "capabilities": {"mac": true},
        "runtimeConfig": {"mac": "02:00:00:00:07:07"}});
    let before = device(&net, "a");
    let result = net.call("tuning", "ADD", "a", &tuned).unwrap();
    let shown = device(&net, "a");
    let wanted = ["ALLMULTI", "PROMISC", "qlen 77", "mtu 1380", "02:00:00:00:07:07"];
    assert!(wanted.iter().all(|part| shown.contains(part)), "{shown}");
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:07:07");
    net.call("tuning", "CHECK", "a", &with(tuned.clone(), "prevResult", result)).unwrap();
    net.call("tuning", "DEL", "a", &tuned).unwrap();
    assert!(wanted.iter().all(|part| !device(&net, "a").contains(part)), "{}", device(&net, "a"));
    let mac = before.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    assert!(device(&net, "a").contains(mac));
}

#[test]
fn devices_are_found_and_made_as_written() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let (host, a) = (net.name("host"), net.name("a"));
    sh(&format!("ip -n {host} link add ext0 address 02:00:00:00:09:09 type veth peer name ext1"));
    let moved = json!({"cniVersion": "1.1.0", "name": "net", "type": "host-device", "hwaddr": "02:00:00:00:09:09"});
    net.call("host-device", "ADD", "a", &moved).unwrap();
    assert!(device(&net, "a").contains("02:00:00:00:09:09") && !net.links().contains("ext0"));
    net.call("host-device", "DEL", "a", &moved).unwrap();
    assert!(net.links().contains("ext0"), "{}", net.links());
    for wrong in [
        json!({"hwaddr": "02:00:00:00:0a:0a"}),
        json!({"kernelpath": "/sys/none"}),
        json!({"pciBusID": "0000:00:00.9"}),
    ] {
        let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "host-device"});
        wrong.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        assert!(
            message(net.call("host-device", "ADD", "a", &config)).contains("failed to find host device"),
            "{wrong}"
        );
    }
    let probe = format!("ip -n {host} link add link ext0 name mv0 type macvlan && ip -n {host} link del mv0");
    if !std::process::Command::new("sh").args(["-c", &probe]).output().is_ok_and(|o| o.status.success()) {
        println!("skipped: this kernel has no macvlan");
        return;
    }
    let macvlan = |mode: &str| json!({"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "master": "ext0", "mode": mode, "mtu": 1450});
    for mode in ["private", "vepa", "passthru", ""] {
        net.call("macvlan", "ADD", "a", &macvlan(mode)).unwrap();
        let shown = device(&net, "a");
        let expected = if mode.is_empty() { "bridge" } else { mode };
        assert!(shown.contains(&format!("macvlan mode {expected}")) && shown.contains("mtu 1450"), "{shown}");
        net.call("macvlan", "DEL", "a", &macvlan(mode)).unwrap();
    }
    assert!(message(net.call("macvlan", "ADD", "a", &with(macvlan(""), "mtu", json!(9000)))).contains("9000"));
    // Its device is in the container.
    sh(&format!("ip -n {host} link set ext1 netns {a} && ip -n {a} link set ext1 up"));
    let mut inner = with(macvlan(""), "linkInContainer", json!(true));
    inner["master"] = json!("ext1");
    net.call("macvlan", "ADD", "a", &inner).unwrap();
    assert!(device(&net, "a").contains("eth0@ext1"), "{}", device(&net, "a"));
    net.call("macvlan", "DEL", "a", &inner).unwrap();
}
