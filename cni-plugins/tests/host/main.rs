//! The real program on a real kernel: a host namespace with an uplink, containers, and someone outside.

mod firewall;
mod firewalld;
mod garbage;
mod good;
mod keys;
mod leftovers;
mod net;
mod options;
mod ports;
mod versions;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use net::{Net, sh, with};

#[test]
fn containers_reach_each_other_and_the_outside() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let b = net.call("bridge", "ADD", "b", &net.bridge()).unwrap();
    assert_eq!(a["ips"][0]["address"], "10.77.0.2/24");
    assert_eq!(b["ips"][1]["address"], "fd77::3/64");
    assert_eq!(a["interfaces"][2]["sandbox"], format!("/run/netns/{}", net.name("a")));
    net.serve("b", 80);
    assert_eq!(net.get("a", "10.77.0.3:80").unwrap(), "10.77.0.2");
    assert_eq!(net.get("a", "[fd77::3]:80").unwrap(), "fd77::2");
    // Else each ADD would begin timers for all ports.
    let bridge = sh(&format!("ip -n {} -d link show br0", net.name("host")));
    assert!(bridge.contains("mcast_snooping 0"), "{bridge}");
    let device = sh(&format!("ip -n {} -d link show eth0", net.name("a")));
    assert!(device.contains("numtxqueues 1 numrxqueues 1 "), "{device}");
    net.serve("out", 81);
    assert_eq!(net.get("a", "192.0.2.2:81").unwrap(), "192.0.2.1", "masqueraded");
    assert_eq!(net.get("a", "[2001:db8::2]:81").unwrap(), "2001:db8::1", "masqueraded");
    assert_eq!(net.call("bridge", "CHECK", "a", &with(net.bridge(), "prevResult", a)).unwrap(), Value::Null);
}

#[test]
fn what_was_added_is_gone_after_del_and_del_can_be_repeated() {
    let Some(mut net) = Net::new(&["a", "b"]) else { return };
    for id in ["a", "b"] {
        net.call("bridge", "ADD", id, &net.bridge()).unwrap();
    }
    assert_eq!(net.taken().len(), 4);
    net.call("bridge", "DEL", "a", &net.bridge()).unwrap();
    net.call("bridge", "DEL", "a", &net.bridge()).unwrap();
    assert_eq!(net.taken(), ["10.77.0.3", "fd77::3"]);
    assert!(net.nft().contains("10.77.0.3") && !net.nft().contains("10.77.0.2"));
    // The namespace goes first, as after a crash of the runtime.
    net.delete_namespace("b");
    net.call("bridge", "DEL", "b", &net.bridge()).unwrap();
    assert_eq!(net.taken(), Vec::<String>::new());
    assert_eq!(net.nft().trim(), "");
    net.without("veth");
}

#[test]
fn a_container_gets_one_attachment_and_a_failed_add_leaves_nothing() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let error = net.call("bridge", "ADD", "a", &net.bridge()).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("duplicate"), "{error}");
    assert!(net.nft().contains("\"a eth0 net\"") && net.taken().len() == 2, "the first attachment stands");
    // A device of that name is in the way.
    sh(&format!("ip -n {} link add eth0 type bridge", net.name("b")));
    let error = net.call("bridge", "ADD", "b", &net.bridge()).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("eth0"), "{error}");
    assert_eq!(net.taken().len(), 2, "{:?}", net.taken());
    assert!(sh(&format!("ip -n {} link", net.name("b"))).contains("eth0"), "what was there stays");
    assert!(!net.nft().contains("\"b eth0 net\""));
}

#[test]
fn host_ports_lead_to_the_container_from_everywhere() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    net.call("bridge", "ADD", "b", &net.bridge()).unwrap();
    let ports = json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"}
    ]});
    let portmap =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "runtimeConfig": ports, "prevResult": a});
    assert_eq!(net.call("portmap", "ADD", "a", &portmap).unwrap(), a, "the result is passed on");
    net.serve("a", 80);
    assert_eq!(net.get("out", "192.0.2.1:8080").unwrap(), "192.0.2.2", "the source is kept");
    assert_eq!(net.get("out", "192.0.2.1:8081").unwrap(), "192.0.2.2");
    assert_eq!(net.get("out", "[2001:db8::1]:8080").unwrap(), "2001:db8::2");
    assert_eq!(net.get("b", "192.0.2.1:8080").unwrap(), "10.77.0.1", "answers come back through the host");
    assert_eq!(net.get("a", "192.0.2.1:8080").unwrap(), "10.77.0.1", "hairpin");
    assert_eq!(net.get("host", "127.0.0.1:8080").unwrap(), "10.77.0.1", "the host's own loopback");
    assert!(net.get("host", "192.0.2.1:8080").is_ok());
    let udp = net.inside("a", || UdpSocket::bind("0.0.0.0:53")).unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let client = net.inside("out", || UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.send_to(b"hi", "192.0.2.1:5353").unwrap();
    let mut bytes = [0; 8];
    assert_eq!(udp.recv(&mut bytes).unwrap(), 2);

    net.call("portmap", "CHECK", "a", &portmap).unwrap();
    net.call("portmap", "DEL", "a", &portmap).unwrap();
    net.call("portmap", "DEL", "a", &portmap).unwrap();
    assert!(net.call("portmap", "CHECK", "a", &portmap).is_err());
    assert!(net.get("out", "192.0.2.1:8080").is_err());
    // The flow that was open goes nowhere now, although its client sends on.
    client.send_to(b"hi", "192.0.2.1:5353").unwrap();
    udp.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(udp.recv(&mut bytes).is_err());
}

#[test]
fn the_reference_plugins_data_is_taken_over() {
    let Some(net) = Net::new(&["a"]) else { return };
    let folder = net.data().join("net");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("10.77.0.2"), "old\r\neth0").unwrap();
    fs::write(folder.join("10.77.0.3"), "older").unwrap();
    // A crash of the reference plugin leaves a file without an owner: the address is free.
    fs::write(folder.join("10.77.0.4"), "").unwrap();
    fs::write(folder.join("last_reserved_ip.0"), "10.77.0.2").unwrap();
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    assert_eq!(a["ips"][0]["address"], "10.77.0.4/24");
    assert_eq!(fs::read_to_string(folder.join("10.77.0.4")).unwrap(), "a\r\neth0");
    let ipam = net.bridge();
    net.call_in("host-local", "DEL", "old", "", &ipam.to_string()).unwrap();
    net.call_in("host-local", "DEL", "older", "", &ipam.to_string()).unwrap();
    assert_eq!(net.taken(), ["10.77.0.4", "fd77::2"]);
}

#[test]
fn exhaustion_says_which_range_and_who_holds_it() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let mut config = net.bridge();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/30"}]]);
    net.call("host-local", "ADD", "a", &config).unwrap();
    let error = net.call("host-local", "ADD", "b", &config).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("10.77.0.1-10.77.0.2") && text.contains("10.77.0.2 a"), "{text}");
    let status = net.call("host-local", "STATUS", "b", &config).unwrap_err();
    assert_eq!(status["code"], 50);
}

#[test]
fn plugins_running_at_once_never_share_an_address_and_lose_no_rule() {
    let Some(net) = Net::new(&[]) else { return };
    let mut net = net;
    let ids: Vec<String> = (0..12).map(|i| format!("c{i}")).collect();
    ids.iter().for_each(|id| net.namespace(id));
    let net = &net;
    let mut addresses: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = ids
            .iter()
            .map(|id| {
                scope.spawn(move || {
                    net.call("bridge", "ADD", id, &net.bridge()).unwrap()["ips"][0]["address"].to_string()
                })
            })
            .collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    });
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), ids.len());
    let nft = net.nft();
    assert!(ids.iter().all(|id| nft.contains(&format!("\"{id} eth0 net\""))), "{nft}");
    std::thread::scope(|scope| {
        for id in &ids {
            scope.spawn(move || net.call("bridge", "DEL", id, &net.bridge()).unwrap());
        }
    });
    assert_eq!((net.nft().trim(), net.taken().len()), ("", 0));
}

#[test]
fn wrong_input_is_a_cni_error_at_once() {
    let Some(net) = Net::new(&["a"]) else { return };
    let good = net.bridge().to_string();
    let here = format!("/run/netns/{}", net.name("a"));
    for (netns, input, code) in [
        (here.as_str(), "{", 6),
        (here.as_str(), "[]", 6),
        (here.as_str(), r#"{"cniVersion": "7.0.0", "name": "n"}"#, 1),
        (here.as_str(), r#"{"cniVersion": "1.0.0", "name": "n", "type": "bridge", "mtu": "x"}"#, 7),
        (here.as_str(), r#"{"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": {"type": "host-local"}}"#, 7),
        (here.as_str(), r#"{"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": {"type": "../x"}}"#, 7),
        ("/no/such/netns", good.as_str(), 3),
        ("/etc/passwd", good.as_str(), 4),
    ] {
        let error = net.call_in("bridge", "ADD", "a", netns, input).unwrap_err();
        assert_eq!(error["code"], code, "{input}: {error}");
        assert!(error["cniVersion"].is_string() && error["msg"].is_string(), "{error}");
    }
    assert_eq!((net.nft().trim(), net.taken().len()), ("", 0));
    net.without("veth");
    let versions = net.call_in("bridge", "VERSION", "", "", "{}").unwrap();
    assert!(versions["supportedVersions"].as_array().unwrap().len() >= 7);
}

#[test]
fn loopback_is_up_after_add() {
    let Some(net) = Net::new(&["a"]) else { return };
    let lo = || sh(&format!("ip -n {} -o link show lo", net.name("a")));
    sh(&format!("ip -n {} link set lo down", net.name("a")));
    let config = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
    let result = net.call("loopback", "ADD", "a", &config).unwrap();
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    assert!(lo().contains("UP"));
    net.call("loopback", "CHECK", "a", &config).unwrap();
}

#[test]
fn ptp_routes_to_the_container_without_a_bridge() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let mut config = net.bridge();
    config["type"] = json!("ptp");
    let a = net.call("ptp", "ADD", "a", &config).unwrap();
    net.call("ptp", "ADD", "b", &config).unwrap();
    net.serve("b", 80);
    assert_eq!(net.get("a", "10.77.0.3:80").unwrap(), "10.77.0.2");
    assert_eq!(net.get("a", "[fd77::3]:80").unwrap(), "fd77::2");
    net.serve("out", 81);
    assert_eq!(net.get("a", "192.0.2.2:81").unwrap(), "192.0.2.1", "masqueraded");
    net.call("ptp", "CHECK", "a", &with(config.clone(), "prevResult", a)).unwrap();
    assert!(!net.links().contains("br0"));
    for id in ["a", "b"] {
        net.call("ptp", "DEL", id, &config).unwrap();
        net.call("ptp", "DEL", id, &config).unwrap();
    }
    assert_eq!((net.nft().trim(), net.taken().len()), ("", 0));
    net.without("veth");
}

#[test]
fn static_gives_the_addresses_that_are_written_down() {
    let Some(net) = Net::new(&["a"]) else { return };
    let mut config = net.bridge();
    config["ipam"] = json!({"type": "static", "routes": [{"dst": "0.0.0.0/0"}],
        "addresses": [{"address": "10.77.0.9/24", "gateway": "10.77.0.1"}]});
    let a = net.call("bridge", "ADD", "a", &config).unwrap();
    assert_eq!(a["ips"][0]["address"], "10.77.0.9/24");
    net.call("bridge", "DEL", "a", &config).unwrap();
    config["runtimeConfig"] = json!({"ips": ["10.77.0.10/24"]});
    let a = net.call("bridge", "ADD", "a", &config).unwrap();
    assert_eq!(a["ips"][0]["address"], "10.77.0.10/24");
}

#[test]
fn vxlan_makes_a_bridge_with_the_nodes_network() {
    let Some(net) = Net::new(&["a"]) else { return };
    let file = net.folder.path().join("subnet.env");
    let config = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "flannel", "subnetFile": file,
        "dataDir": net.folder.path().join("kept"), "ipam": {"dataDir": net.data()},
        "delegate": {"bridge": "br0", "isDefaultGateway": true, "hairpinMode": true}
    });
    let early = net.call("vxlan", "ADD", "a", &config).unwrap_err();
    assert_eq!(early["code"], 11, "{early}");
    net.call("vxlan", "DEL", "a", &config).unwrap();
    let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write(&file, text).unwrap();
    let a = net.call("vxlan", "ADD", "a", &config).unwrap();
    assert_eq!((&a["ips"][0]["address"], &a["interfaces"][2]["mtu"]), (&json!("10.244.7.2/24"), &json!(1450)));
    let routes = sh(&format!("ip -n {} route", net.name("a")));
    assert!(routes.contains("default via 10.244.7.1") && routes.contains("10.244.0.0/16 via 10.244.7.1"), "{routes}");
    net.call("vxlan", "CHECK", "a", &with(config.clone(), "prevResult", a)).unwrap();
    // The node gets another network before the container goes.
    fs::write(&file, text.replace("10.244.7.", "10.244.8.")).unwrap();
    net.call("vxlan", "DEL", "a", &config).unwrap();
    let left = fs::read_dir(net.data().join("cbr0"))
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("10."));
    assert_eq!(left.count(), 0);
    assert_eq!(fs::read_dir(net.folder.path().join("kept")).unwrap().count(), 0);
}

/// Sends from one namespace to another for two seconds; answers megabits a second.
fn throughput(net: &Net, from: &str, to: &str, address: &str) -> f64 {
    let address: std::net::SocketAddr = address.parse().unwrap();
    let listener = net.inside(to, move || TcpListener::bind(address)).unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut total) = (vec![0; 65536], 0usize);
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            match stream.read(&mut buffer) {
                Ok(n) if n > 0 => total += n,
                _ => break,
            }
        }
        total as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64()
    });
    let mut stream = net.inside(from, move || TcpStream::connect(address)).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let block = vec![0; 65536];
    while stream.write_all(&block).is_ok() && !receiver.is_finished() {}
    receiver.join().unwrap()
}

#[test]
fn bandwidth_limits_both_directions() {
    let Some(net) = Net::new(&["a"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let limits =
        json!({"ingressRate": 16_000_000, "ingressBurst": 400_000, "egressRate": 8_000_000, "egressBurst": 400_000});
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "prevResult": a,
        "runtimeConfig": {"bandwidth": limits}});
    let result = net.call("bandwidth", "ADD", "a", &config).unwrap();
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 4);
    net.call("bandwidth", "CHECK", "a", &config).unwrap();
    let received = throughput(&net, "host", "a", "10.77.0.2:9000");
    let sent = throughput(&net, "a", "host", "10.77.0.1:9001");
    assert!((12.0..19.0).contains(&received), "{received} Mbit/s of 16 received");
    assert!((6.0..10.0).contains(&sent), "{sent} Mbit/s of 8 sent");
    net.call("bandwidth", "DEL", "a", &config).unwrap();
    net.call("bandwidth", "DEL", "a", &config).unwrap();
    net.without("bwp");
    assert!(net.call("bandwidth", "CHECK", "a", &config).is_err());
}

#[test]
fn tuning_sets_sysctls_and_the_device_and_gives_back_what_was() {
    let Some(net) = Net::new(&["a"]) else { return };
    let a = net.call("bridge", "ADD", "a", &net.bridge()).unwrap();
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "tuning", "prevResult": a,
        "dataDir": net.folder.path().join("tuning"), "mac": "02:00:00:00:00:77", "mtu": 1300, "promisc": true,
        "sysctl": {"net.core.somaxconn": "777", "net.ipv4.conf.IFNAME.arp_filter": "1"}});
    let result = net.call("tuning", "ADD", "a", &config).unwrap();
    assert_eq!(
        (&result["interfaces"][2]["mac"], &result["interfaces"][2]["mtu"]),
        (&json!("02:00:00:00:00:77"), &json!(1300))
    );
    let shown =
        || sh(&format!("ip -n {0} -d link show eth0; ip netns exec {0} sysctl -n net.core.somaxconn", net.name("a")));
    assert!(
        shown().contains("02:00:00:00:00:77") && shown().contains("mtu 1300") && shown().contains("777"),
        "{}",
        shown()
    );
    net.call("tuning", "CHECK", "a", &config).unwrap();
    net.call("tuning", "DEL", "a", &config).unwrap();
    net.call("tuning", "DEL", "a", &config).unwrap();
    assert!(shown().contains("mtu 1500") && !shown().contains("02:00:00:00:00:77"), "{}", shown());
    let host = with(config, "sysctl", json!({"kernel.hostname": "x"}));
    assert_eq!(net.call("tuning", "ADD", "a", &host).unwrap_err()["code"], 7);
}

#[test]
fn macvlan_gives_the_container_a_device_on_one_of_the_hosts() {
    let Some(net) = Net::new(&["a", "b"]) else { return };
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "master": "up0", "bcqueuelen": 500, "ipam": {
        "type": "host-local", "dataDir": net.data(), "ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.10"}]]}});
    let probe = net.call("macvlan", "ADD", "a", &config);
    if probe.as_ref().is_err_and(|e| e["msg"].as_str().is_some_and(|m| m.contains("not supported"))) {
        println!("skipped: this kernel has no macvlan");
        return;
    }
    let a = probe.unwrap();
    net.call("macvlan", "ADD", "b", &config).unwrap();
    assert_eq!(a["ips"][0]["address"], "192.0.2.10/24");
    let device = sh(&format!("ip -n {} -d link show eth0", net.name("a")));
    assert!(device.contains("mode bridge bcqueuelen 500"), "{device}");
    net.serve("out", 81);
    assert_eq!(net.get("a", "192.0.2.2:81").unwrap(), "192.0.2.10");
    net.serve("b", 80);
    assert_eq!(net.get("a", "192.0.2.11:80").unwrap(), "192.0.2.10");
    net.call("macvlan", "CHECK", "a", &with(config.clone(), "prevResult", a)).unwrap();
    for id in ["a", "b"] {
        net.call("macvlan", "DEL", id, &config).unwrap();
        net.call("macvlan", "DEL", id, &config).unwrap();
    }
    assert_eq!(net.taken().len(), 0);
    let wrong = net.call("macvlan", "ADD", "a", &with(config, "mode", json!("odd"))).unwrap_err();
    assert_eq!(wrong["code"], 7);
}

#[test]
fn a_host_device_moves_in_and_comes_back_under_its_name() {
    let Some(net) = Net::new(&["a"]) else { return };
    sh(&format!("ip -n {} link add name spare type bridge", net.name("host")));
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "host-device", "device": "spare", "ipam": {
        "type": "static", "addresses": [{"address": "10.5.0.1/24"}]}});
    // A bridge may not leave its namespace: what cannot be done changes nothing.
    assert!(net.call("host-device", "ADD", "a", &config).is_err());
    assert!(net.links().contains("spare"));
    sh(&format!("ip -n {0} link del spare && ip -n {0} link add spare type veth peer name other", net.name("host")));
    let a = net.call("host-device", "ADD", "a", &config).unwrap();
    assert!(!net.links().contains("spare"));
    assert_eq!(a["interfaces"][0]["name"], "eth0");
    net.call("host-device", "CHECK", "a", &with(config.clone(), "prevResult", a)).unwrap();
    net.call("host-device", "DEL", "a", &config).unwrap();
    net.call("host-device", "DEL", "a", &config).unwrap();
    assert!(net.links().contains("spare@"), "{}", net.links());
}
