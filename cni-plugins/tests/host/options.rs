//! Options of the bridge plugin that change who hears whom.

use std::time::Duration;

use serde_json::{Value, json};

use crate::net::{Net, sh, with};

const SOON: Duration = Duration::from_millis(500);

#[test]
fn isolated_ports_reach_the_node_and_the_outside_but_not_each_other() {
    let Some(net) = Net::new(&["a", "b", "c"]) else { return };
    let isolated = with(net.bridge(), "portIsolation", json!(true));
    net.call("bridge", "ADD", "a", &isolated).unwrap();
    net.call("bridge", "ADD", "b", &isolated).unwrap();
    net.call("bridge", "ADD", "c", &net.bridge()).unwrap();
    for id in ["a", "b", "c", "host"] {
        net.serve(id, 80);
    }
    net.serve("out", 81);
    // The node first: neighbours are known then, and what fails fails because of the isolation.
    for from in ["a", "b"] {
        assert!(net.get(from, "10.77.0.1:80").is_ok() && net.get(from, "[fd77::1]:80").is_ok(), "{from} to the node");
        assert!(net.get(from, "192.0.2.2:81").is_ok() && net.get(from, "[2001:db8::2]:81").is_ok(), "{from} outside");
        assert!(net.get(from, "10.77.0.4:80").is_ok(), "{from} to a port that is not isolated");
    }
    assert!(net.get("c", "10.77.0.2:80").is_ok(), "from a port that is not isolated");
    for (from, to) in [("a", "10.77.0.3:80"), ("b", "10.77.0.2:80"), ("a", "[fd77::3]:80")] {
        assert!(net.get_within(from, to, SOON).is_err(), "{from} reaches {to}");
    }
}

#[test]
fn a_container_reaches_itself_by_its_host_port_whatever_the_mode() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    for (id, key, address) in [("a", "hairpinMode", "10.77.0.2"), ("b", "promiscMode", "10.77.0.3")] {
        if id == "b" {
            // Kernels since 6.9 forget a frame's translation where a promiscuous bridge takes it, if bridges ask netfilter.
            let off = "for f in /proc/sys/net/bridge/bridge-nf-call-ip*; do ! test -e $f || echo 0 >$f; done";
            sh(&format!("ip netns exec {} sh -c '{off}'", net.name("host")));
        }
        let mut config = net.bridge();
        (config["hairpinMode"], config["promiscMode"]) = (json!(false), json!(false));
        config[key] = json!(true);
        let result = net.call("bridge", "ADD", id, &config).unwrap();
        let port = if id == "a" { 8080 } else { 8081 };
        let portmap = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "prevResult": result,
            "runtimeConfig": {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}});
        net.call("portmap", "ADD", id, &portmap).unwrap();
        net.serve(id, 80);
        assert_eq!(
            net.get(id, &format!("192.0.2.1:{port}")).map_err(|e| format!("{key}: {e}")),
            Ok("10.77.0.1".to_owned())
        );
        assert_eq!(
            net.get(id, &format!("[2001:db8::1]:{port}")).map_err(|e| format!("{key}: {e}")),
            Ok("fd77::1".to_owned())
        );
        assert_eq!(result["ips"][0]["address"], format!("{address}/24"));
        let shown = sh(&format!("ip -n {0} -d link show br0; bridge -n {0} -d link", net.name("host")));
        let on = if id == "a" { shown.contains("hairpin on") } else { shown.contains("PROMISC") };
        assert!(on, "{shown}");
        net.call("bridge", "CHECK", id, &with(config, "prevResult", result)).unwrap();
    }
}

/// A container's own configuration on the bridge, without gateway and addresses of IPv6.
fn in_vlan(net: &Net, key: &str, value: Value) -> Value {
    let mut config = net.bridge();
    config["isGateway"] = json!(false);
    config["ipMasq"] = json!(false);
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/24"}]]);
    config["ipam"]["routes"] = json!([]);
    with(config, key, value)
}

#[test]
fn containers_hear_those_of_their_vlan_only() {
    let Some(net) = Net::new(&["a", "b", "c", "d"]) else { return };
    let a = net.call("bridge", "ADD", "a", &in_vlan(&net, "vlan", json!(100)));
    if let Err(error) = &a {
        // What the kernel cannot do is told, and leaves nothing.
        println!("skipped: this kernel's bridges know no VLANs: {error}");
        assert!(error["msg"].as_str().is_some_and(|m| m.contains("br0")), "{error}");
        assert_eq!(net.taken(), Vec::<String>::new());
        net.without("veth");
        return;
    }
    let alone = with(in_vlan(&net, "vlan", json!(200)), "preserveDefaultVlan", json!(false));
    net.call("bridge", "ADD", "b", &in_vlan(&net, "vlan", json!(100))).unwrap();
    net.call("bridge", "ADD", "c", &alone).unwrap();
    let trunk = json!([{"minID": 100, "maxID": 102}, {"id": 300}]);
    net.call("bridge", "ADD", "d", &in_vlan(&net, "vlanTrunk", trunk)).unwrap();
    ["a", "b", "c"].iter().for_each(|id| net.serve(id, 80));
    assert!(net.get("a", "10.77.0.3:80").is_ok(), "the same VLAN");
    assert!(net.get_within("a", "10.77.0.4:80", SOON).is_err(), "another VLAN");
    assert!(net.get_within("c", "10.77.0.2:80", SOON).is_err(), "another VLAN");
    let shown = sh(&format!("bridge -n {} vlan show", net.name("host")));
    for id in ["100 PVID Egress Untagged", "200 PVID Egress Untagged", "101", "102", "300"] {
        assert!(shown.contains(id), "{id} is not in {shown}");
    }
    // With tags of its own the trunk's container is in each of its VLANs.
    let d = net.name("d");
    let tagged = format!("ip -n {d} link add link eth0 name v100 type vlan id 100");
    if std::process::Command::new("sh").args(["-c", &tagged]).status().unwrap().success() {
        sh(&format!(
            "ip -n {d} addr flush dev eth0 && ip -n {d} addr add 10.77.0.5/24 dev v100 && ip -n {d} link set v100 up"
        ));
        assert_eq!(net.get("d", "10.77.0.2:80").unwrap(), "10.77.0.5");
        assert!(net.get_within("d", "10.77.0.4:80", SOON).is_err(), "a VLAN that it is not in");
    }
    for id in ["a", "b", "c", "d"] {
        net.call("bridge", "DEL", id, &net.bridge()).unwrap();
    }
    net.without("veth");
}

/// Megabits a second by iperf3, as its receiver counts them.
fn iperf(net: &Net, from: &str, to: &str, address: &str) -> f64 {
    let mut server = std::process::Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", net.name(to)))
        .args(["iperf3", "--server", "--one-off", "--forceflush", "--bind", address])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut lines = std::io::BufReader::new(server.stdout.take().unwrap());
    while !said.contains("listening") {
        assert!(std::io::BufRead::read_line(&mut lines, &mut said).unwrap() > 0, "iperf3 ended: {said}");
    }
    let out = std::process::Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", net.name(from)))
        .args(["timeout", "60", "iperf3", "--client", address, "--time", "4", "--omit", "1", "--json"])
        .output()
        .unwrap();
    let _ = server.kill();
    server.wait().unwrap();
    let answer: Value = serde_json::from_slice(&out.stdout).unwrap();
    let rate = answer["end"]["sum_received"]["bits_per_second"].as_f64();
    rate.unwrap_or_else(|| panic!("iperf3: {answer}")) / 1e6
}

#[test]
fn limits_are_kept_within_a_tenth_as_iperf3_measures() {
    let Some(net) = Net::new(&["a"]) else { return };
    if std::process::Command::new("iperf3").arg("--version").output().is_err() {
        println!("skipped: there is no iperf3");
        return;
    }
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let limits =
        json!({"ingressRate": 20_000_000, "ingressBurst": 400_000, "egressRate": 10_000_000, "egressBurst": 400_000});
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "prevResult": a,
        "runtimeConfig": {"bandwidth": limits}});
    net.call("bandwidth", "ADD", "a", &config).unwrap();
    for (from, to, address, limit) in [("host", "a", "10.77.0.2", 20.0), ("a", "host", "10.77.0.1", 10.0)] {
        // Never more; less only where the machine had no time to send, which another try may have.
        let within = (0..3).any(|_| {
            let rate = iperf(&net, from, to, address);
            assert!(rate < limit * 1.1, "{rate:.1} Mbit/s of {limit}");
            rate > limit * 0.9
        });
        assert!(within, "{from} to {to} stays below the limit of {limit} Mbit/s");
    }
}

/// An address that is asked for, under a hardware address or none.
fn at(net: &Net, ip: &str, mac: Option<&str>) -> Value {
    let config = with(net.bridge(), "runtimeConfig", json!({"ips": [ip], "mac": mac.unwrap_or_default()}));
    with(config, "capabilities", json!({"ips": true, "mac": true}))
}

#[test]
fn whoever_gets_an_address_next_is_reached_at_once() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    net.serve("b", 80);
    let macs = [None, None, Some("02:00:00:00:00:b1"), Some("02:00:00:00:00:b2")];
    for (round, mac) in macs.into_iter().enumerate() {
        let config = at(&net, "10.77.0.50", mac);
        let result = net.call("bridge", "ADD", "b", &config).unwrap();
        let given = result["interfaces"][2]["mac"].as_str().unwrap();
        assert_eq!(given, mac.unwrap_or("0a:58:0a:4d:00:32"), "round {round}");
        let inside = sh(&format!("ip -n {} link show eth0", net.name("b")));
        assert!(inside.contains(given), "{inside}");
        // Both remember who had the address the last time.
        for from in ["a", "host"] {
            assert!(net.get(from, "10.77.0.50:80").is_ok(), "round {round}: from {from}");
        }
        net.call("bridge", "DEL", "b", &config).unwrap();
    }
}

#[test]
fn duplicate_addresses_are_found_where_that_is_wanted() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let checked = |ip: &str| with(at(&net, ip, None), "enabledad", json!(true));
    net.call("bridge", "ADD", "a", &checked("fd77::50")).unwrap();
    let there = sh(&format!("ip -n {} -6 addr show dev eth0 scope global", net.name("a")));
    assert!(there.contains("fd77::50/64") && !there.contains("tentative"), "{there}");
    let taken = net.taken();
    // The same address once more, of another network on the same bridge.
    let mut other = checked("fd77::50");
    other["name"] = json!("other");
    other["ipam"]["ranges"] = json!([[{"subnet": "fd77::/64"}]]);
    other["ipam"]["routes"] = json!([{"dst": "::/0"}]);
    let error = net.call("bridge", "ADD", "b", &other).unwrap_err();
    assert!(error["msg"].as_str().is_some_and(|m| m.contains("has address fd77::50")), "{error}");
    assert_eq!(net.taken(), taken);
    assert!(!net.nft().contains("other"), "{}", net.nft());
}

#[test]
fn a_vlan_has_a_gateway_of_its_own() {
    let Some(net) = Net::new(&["a", "b", "c"]) else { return };
    let gateway = |number: u8| {
        let mut config = with(net.bridge(), "vlan", json!(100 * u16::from(number)));
        config["preserveDefaultVlan"] = json!(number == 1);
        config["name"] = json!(format!("net{number}"));
        config["ipam"]["ranges"] = json!([[{"subnet": format!("10.77.{number}.0/24")}]]);
        config["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
        config
    };
    let a = match net.call("bridge", "ADD", "a", &gateway(1)) {
        Ok(result) => result,
        Err(error) => {
            println!("skipped: this kernel's bridges know no VLANs: {error}");
            net.without("veth");
            assert!(!net.links().contains("br0.100"), "{}", net.links());
            return;
        }
    };
    assert_eq!((&a["interfaces"][2]["name"], &a["interfaces"][3]["name"]), (&json!("eth0"), &json!("br0.100")), "{a}");
    net.call("bridge", "ADD", "b", &gateway(1)).unwrap();
    net.call("bridge", "ADD", "c", &gateway(2)).unwrap();
    ["host", "a", "b"].iter().for_each(|id| net.serve(id, 80));
    net.serve("out", 81);
    for (from, number) in [("a", 1), ("b", 1), ("c", 2)] {
        assert!(net.get(from, &format!("10.77.{number}.1:80")).is_ok(), "{from} to its gateway");
        assert!(net.get(from, "192.0.2.2:81").is_ok(), "{from} outside");
    }
    assert!(net.get("a", "10.77.1.3:80").is_ok(), "the same VLAN");
    // To another VLAN it goes through the node.
    assert!(net.get("c", "10.77.1.2:80").is_ok(), "another VLAN");
    // The device that leads to the container is the VLAN's, not the bridge.
    let mapped = json!({"cniVersion": "1.1.0", "name": "net1", "type": "portmap", "prevResult": a,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    net.call("portmap", "ADD", "a", &mapped).unwrap();
    assert_eq!(net.get("host", "127.0.0.1:8080").unwrap(), "10.77.1.1", "the host to itself");
    assert!(net.get("out", "192.0.2.1:8080").is_ok(), "from outside");
    net.call("portmap", "DEL", "a", &mapped).unwrap();
    for (id, number) in [("a", 1), ("b", 1), ("c", 2)] {
        net.call("bridge", "DEL", id, &gateway(number)).unwrap();
    }
    // As the bridge, the gateways are there for who comes next.
    let again = net.call("bridge", "ADD", "a", &gateway(1)).unwrap();
    assert_eq!(again["interfaces"][3], a["interfaces"][3]);
    assert!(net.get("a", "10.77.1.1:80").is_ok());
}
