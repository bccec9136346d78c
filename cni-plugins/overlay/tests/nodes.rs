//! Three nodes in namespaces, joined by an underlay, each with the real agent.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

fn sh(text: &str) -> String {
    let out = Command::new("sh").args(["-c", text]).output().unwrap();
    assert!(out.status.success(), "{text}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn eventually(what: &str, mut probe: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(()) => return,
            Err(why) if start.elapsed() > Duration::from_secs(30) => panic!("{what}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Nodes 1 to 3 with addresses 192.0.2.N and pod networks 10.244.N.0/24; the pods' bridge has the first address.
struct Nodes {
    prefix: String,
    folder: tempfile::TempDir,
    agents: Vec<Option<Child>>,
    settings: String,
}

impl Nodes {
    fn new(name: &str, backend: serde_json::Value) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        let prefix = format!("ov{}{name}", std::process::id());
        let settings = json!({"Network": "10.244.0.0/16", "Backend": backend}).to_string();
        let nodes =
            Self { prefix, folder: tempfile::tempdir().unwrap(), agents: vec![None, None, None, None], settings };
        let switch = nodes.name(0);
        sh(&format!(
            "ip netns add {switch} && ip -n {switch} link add sw type bridge && ip -n {switch} link set sw up"
        ));
        for n in 1..=3 {
            let node = nodes.name(n);
            sh(&format!(
                "ip netns add {node} && ip -n {node} link set lo up && \
                 ip -n {node} link add eth0 type veth peer name p{n} netns {switch} && \
                 ip -n {node} addr add 192.0.2.{n}/24 dev eth0 && ip -n {node} link set eth0 up && \
                 ip -n {switch} link set p{n} master sw up && \
                 ip -n {node} link add pods type bridge && ip -n {node} addr add 10.244.{n}.1/24 dev pods && \
                 ip -n {node} link set pods up && ip -n {node} route add default via 192.0.2.254"
            ));
        }
        Some(nodes)
    }

    fn name(&self, n: usize) -> String {
        format!("{}-{n}", self.prefix)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the list of nodes: number and underlay address.
    fn list(&self, nodes: &[(usize, &str)]) {
        let list: Vec<_> = nodes
            .iter()
            .map(|(n, ip)| json!({"name": format!("n{n}"), "subnets": [format!("10.244.{n}.0/24")], "publicIp": ip}))
            .collect();
        let fresh = self.file("peers.new");
        fs::write(&fresh, json!(list).to_string()).unwrap();
        fs::rename(fresh, self.file("peers.json")).unwrap();
    }

    fn command(&self, n: usize) -> Command {
        let settings = self.file("net-conf.json");
        // Not while another agent reads it: that one would find it empty and end.
        if fs::read_to_string(&settings).ok().as_ref() != Some(&self.settings) {
            fs::write(&settings, &self.settings).unwrap();
        }
        let mut agent = Command::new("nsenter");
        agent.arg(format!("--net=/run/netns/{}", self.name(n))).arg(env!("CARGO_BIN_EXE_gantry-overlay"));
        agent.arg("--peers").arg(self.file("peers.json")).arg("--net-config-path").arg(settings);
        agent.arg("--subnet-file").arg(self.file(&format!("subnet-{n}.env"))).args(["--iface", "eth0", "--ip-masq"]);
        agent.arg("--node-name").arg(format!("n{n}")).stderr(Stdio::null()).stdout(Stdio::null());
        agent
    }

    fn start(&mut self, n: usize) {
        self.agents[n] = Some(self.command(n).spawn().unwrap());
    }

    fn kill(&mut self, n: usize) {
        if let Some(mut agent) = self.agents[n].take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    fn inside<T: Send + 'static>(
        &self,
        n: usize,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        gantry_sys::namespaces::within_network(&PathBuf::from("/run/netns").join(self.name(n)), work)
    }

    /// From a pod of one node to a pod of another; answers which address the other sees.
    fn reach(&self, from: usize, to: usize) -> Result<String, String> {
        let target: SocketAddr = format!("10.244.{to}.1:0").parse().unwrap();
        let listener = self.inside(to, move || TcpListener::bind(target)).map_err(|e| e.to_string())?;
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let source: SocketAddr = format!("10.244.{from}.1:0").parse().unwrap();
        let connected = self.inside(from, move || connect_from(source, address));
        connected.map_err(|e| format!("{from} to {to}: {e}"))?;
        let (_, peer) = listener.accept().map_err(|e| e.to_string())?;
        Ok(peer.ip().to_string())
    }

    fn all_reach_all(&self, nodes: &[usize]) {
        for from in nodes {
            for to in nodes.iter().filter(|t| *t != from) {
                eventually(&format!("{from} reaches {to}"), || {
                    let seen = self.reach(*from, *to)?;
                    (seen == format!("10.244.{from}.1")).then_some(()).ok_or(format!("seen as {seen}"))
                });
            }
        }
    }

    fn show(&self, n: usize, what: &str) -> String {
        sh(&format!("ip -n {} {what}", self.name(n)))
    }

    /// Removes something behind the agent's back and waits until it is back.
    fn repaired(&self, n: usize, harm: &str, look: &str, wanted: &str) {
        let node = self.name(n);
        let look = || sh(&format!("ip netns exec {node} {look}"));
        assert!(look().contains(wanted), "{wanted} is not in\n{}", look());
        let start = Instant::now();
        sh(&format!("ip netns exec {node} {harm}"));
        eventually(harm, || look().contains(wanted).then_some(()).ok_or(look()));
        // A second is what users are promised; tests also run where the machine has other things to do.
        println!("{harm}: repaired after {} ms", start.elapsed().as_millis());
    }
}

/// Connects from an address within three seconds.
fn connect_from(source: SocketAddr, to: SocketAddr) -> std::io::Result<()> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(1, 0))?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(source))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    drop(TcpStream::from(fd));
    Ok(())
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for n in 1..=3 {
            self.kill(n);
        }
        for n in 0..=3 {
            let _ = Command::new("ip").args(["netns", "delete", &self.name(n)]).status();
        }
    }
}

const ALL: [(usize, &str); 3] = [(1, "192.0.2.1"), (2, "192.0.2.2"), (3, "192.0.2.3")];

#[test]
fn pods_reach_each_other_through_tunnels_and_what_is_harmed_is_repaired() {
    let Some(mut nodes) = Nodes::new("v", json!({"Type": "vxlan"})) else { return };
    nodes.list(&ALL);
    (1..=3).for_each(|n| nodes.start(n));
    nodes.all_reach_all(&[1, 2, 3]);
    let device = nodes.show(1, "-d link show flannel.1");
    assert!(
        device.contains("vxlan id 1") && device.contains("dstport 8472") && device.contains("mtu 1450"),
        "{device}"
    );
    let file = fs::read_to_string(nodes.file("subnet-1.env")).unwrap();
    assert!(file.contains("FLANNEL_SUBNET=10.244.1.1/24") && file.contains("FLANNEL_MTU=1450"), "{file}");

    nodes.repaired(1, "ip route del 10.244.2.0/24", "ip route", "10.244.2.0/24 via 10.244.2.0");
    nodes.repaired(1, "ip neigh del 10.244.2.0 dev flannel.1", "ip neigh show dev flannel.1", "10.244.2.0");
    nodes.repaired(1, "bridge fdb flush dev flannel.1", "bridge fdb show dev flannel.1", "192.0.2.2");
    // Also what was not taken away but changed.
    let neighbours = nodes.show(1, "neigh show dev flannel.1");
    let known = neighbours.lines().find(|l| l.starts_with("10.244.2.0 ")).unwrap().to_owned();
    let mac = known.split_whitespace().nth(2).unwrap();
    let wrong = "lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent";
    nodes.repaired(1, &format!("ip neigh replace 10.244.2.0 {wrong}"), "ip neigh show dev flannel.1", known.trim());
    let place = format!("{mac} dst 192.0.2.2 ");
    let moved = format!("bridge fdb replace {mac} dev flannel.1 dst 198.51.100.9");
    nodes.repaired(1, &moved, "bridge fdb show dev flannel.1", &place);
    let astray = "ip route replace 10.244.2.0/24 via 10.244.3.0 dev flannel.1 onlink";
    nodes.repaired(1, astray, "ip route", "10.244.2.0/24 via 10.244.2.0");
    nodes.repaired(1, "ip addr flush dev flannel.1", "ip addr show dev flannel.1", "10.244.1.0/32");
    nodes.repaired(1, "ip link set flannel.1 mtu 1300", "ip link show flannel.1", "mtu 1450");
    nodes.repaired(1, "nft flush ruleset", "nft list ruleset", "masquerade");
    nodes.repaired(1, "ip link del flannel.1", "ip route", "10.244.3.0/24 via 10.244.3.0");
    nodes.repaired(1, "ip link set flannel.1 down", "ip route", "10.244.3.0/24 via 10.244.3.0");
    nodes.all_reach_all(&[1, 2, 3]);
    // Routes of others stay as they are.
    nodes.show(1, "route add 198.51.100.0/24 via 192.0.2.9");

    // A node goes, another gets a new address while an agent is dead.
    nodes.kill(1);
    nodes.all_reach_all(&[1, 2]);
    nodes.show(3, "addr del 192.0.2.3/24 dev eth0");
    nodes.show(3, "addr add 192.0.2.33/24 dev eth0");
    nodes.list(&[(1, "192.0.2.1"), (3, "192.0.2.33")]);
    nodes.start(1);
    nodes.all_reach_all(&[1, 3]);
    eventually("nothing of the lost node remains", || {
        let left = nodes.show(1, "route")
            + &nodes.show(1, "neigh show dev flannel.1")
            + &sh(&format!("ip netns exec {} bridge fdb show dev flannel.1", nodes.name(1)));
        if left.contains("10.244.2.") || left.contains("192.0.2.2 ") || left.contains("192.0.2.3 ") {
            Err(left)
        } else {
            Ok(())
        }
    });
    assert!(nodes.show(1, "route").contains("198.51.100.0/24"));

    nodes.kill(1);
    let cleaned = nodes.command(1).arg("--clean").status().unwrap();
    assert!(cleaned.success());
    let left = nodes.show(1, "route") + &nodes.show(1, "link");
    assert!(!left.contains("flannel") && !left.contains("10.244.3.") && left.contains("198.51.100.0/24"), "{left}");
    assert_eq!(sh(&format!("ip netns exec {} nft list ruleset", nodes.name(1))).trim(), "");
}

#[test]
fn neighbours_are_reached_by_routes_with_host_gw() {
    let Some(mut nodes) = Nodes::new("h", json!({"Type": "host-gw"})) else { return };
    nodes.list(&ALL);
    (1..=3).for_each(|n| nodes.start(n));
    nodes.all_reach_all(&[1, 2, 3]);
    assert!(nodes.show(1, "route").contains("10.244.2.0/24 via 192.0.2.2 dev eth0"));
    assert!(!nodes.show(1, "link").contains("flannel"));
    nodes.repaired(1, "ip route del 10.244.2.0/24", "ip route", "10.244.2.0/24 via 192.0.2.2");
    // Rules tell of themselves: nothing else changes here.
    for harm in ["nft flush ruleset", "nft flush table inet gantry-overlay", "nft delete table inet gantry-overlay"] {
        nodes.repaired(1, harm, "nft list ruleset", "masquerade");
    }

    // A node goes and comes back, another gets a new address, with all agents running.
    nodes.kill(3);
    nodes.list(&ALL[..2]);
    eventually("the route to the lost node is gone", || {
        let routes = nodes.show(1, "route");
        if routes.contains("10.244.3.") { Err(routes) } else { Ok(()) }
    });
    nodes.all_reach_all(&[1, 2]);
    nodes.show(2, "addr add 192.0.2.22/24 dev eth0");
    nodes.show(2, "addr del 192.0.2.2/24 dev eth0");
    // The kernel takes the other address with the first of the same network, and its routes.
    nodes.show(2, "addr replace 192.0.2.22/24 dev eth0");
    nodes.list(&[ALL[0], (2, "192.0.2.22"), ALL[2]]);
    nodes.start(3);
    nodes.all_reach_all(&[1, 2, 3]);
    assert!(nodes.show(1, "route").contains("10.244.2.0/24 via 192.0.2.22 dev eth0"));
}

#[test]
fn a_node_that_is_lost_returns_and_addresses_change_while_agents_run() {
    let Some(mut nodes) = Nodes::new("l", json!({"Type": "vxlan"})) else { return };
    nodes.list(&ALL);
    (1..=3).for_each(|n| nodes.start(n));
    nodes.all_reach_all(&[1, 2, 3]);
    let all_of = |nodes: &Nodes, n: usize| {
        nodes.show(n, "route")
            + &nodes.show(n, "neigh show dev flannel.1")
            + &sh(&format!("ip netns exec {} bridge fdb show dev flannel.1", nodes.name(n)))
    };
    nodes.kill(3);
    nodes.list(&ALL[..2]);
    eventually("nothing of the lost node is left", || {
        let left = all_of(&nodes, 1);
        if left.contains("10.244.3.") || left.contains("192.0.2.3 ") { Err(left) } else { Ok(()) }
    });
    nodes.all_reach_all(&[1, 2]);
    nodes.list(&ALL);
    nodes.start(3);
    nodes.all_reach_all(&[1, 2, 3]);

    // Its own address changes under a running agent: packets must leave under the new one.
    nodes.show(2, "addr add 192.0.2.22/24 dev eth0");
    nodes.show(2, "addr del 192.0.2.2/24 dev eth0");
    nodes.show(2, "addr replace 192.0.2.22/24 dev eth0");
    nodes.list(&[ALL[0], (2, "192.0.2.22"), ALL[2]]);
    eventually("the tunnel's end moves", || {
        let device = nodes.show(2, "-d link show type vxlan");
        device.contains("local 192.0.2.22 ").then_some(()).ok_or(device)
    });
    nodes.all_reach_all(&[1, 2, 3]);
    let left = all_of(&nodes, 1);
    assert!(!left.contains("192.0.2.2 "), "{left}");
}

#[test]
fn an_agent_killed_in_the_middle_of_changes_ends_where_it_should() {
    let Some(mut nodes) = Nodes::new("k", json!({"Type": "vxlan"})) else { return };
    let peers = |round: usize| -> Vec<(usize, String)> {
        let other = |n: usize| (n, format!("192.0.{}.{n}", 2 + (round + n) % 7));
        std::iter::once((1, "192.0.2.1".to_owned()))
            .chain((2..200).filter(|n| !(n + round).is_multiple_of(5)).map(other))
            .collect()
    };
    for round in 0..12 {
        let list = peers(round);
        nodes.list(&list.iter().map(|(n, ip)| (*n, ip.as_str())).collect::<Vec<_>>());
        nodes.start(1);
        // Ever later, so that every part of the work is met; the last one is left to finish.
        std::thread::sleep(Duration::from_millis(3 * round as u64));
        if round < 11 {
            nodes.kill(1);
        }
    }
    let wanted = peers(11);
    let node = nodes.name(1);
    eventually("exactly the last list", || {
        let routes = nodes.show(1, "route show dev flannel.1");
        let fdb = sh(&format!("ip netns exec {node} bridge fdb show dev flannel.1"));
        let ways = wanted.iter().skip(1).all(|(n, ip)| {
            routes.contains(&format!("10.244.{n}.0/24 via 10.244.{n}.0 ")) && fdb.contains(&format!("dst {ip} "))
        });
        let counts = (routes.lines().count(), fdb.lines().filter(|l| l.contains(" dst ")).count());
        let all = wanted.len() - 1;
        (ways && counts == (all, all)).then_some(()).ok_or(format!("{counts:?} of {all}"))
    });
}

#[test]
fn both_families_have_tunnels_of_their_own() {
    let Some(mut nodes) = Nodes::new("6", json!({"Type": "vxlan"})) else { return };
    nodes.settings = json!({"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48",
        "Backend": {"Type": "vxlan"}})
    .to_string();
    let list: Vec<_> = (1..=2)
        .map(|n| {
            json!({"name": format!("n{n}"), "subnets": [format!("10.244.{n}.0/24"), format!("fd00:244:0:{n}::/64")],
                "publicIp": format!("192.0.2.{n}"), "publicIPv6": format!("2001:db8::{n}")})
        })
        .collect();
    fs::write(nodes.file("peers.json"), json!(list).to_string()).unwrap();
    for n in 1..=2 {
        nodes.show(n, &format!("-6 addr add 2001:db8::{n}/64 dev eth0 nodad"));
        nodes.show(n, &format!("-6 addr add fd00:244:0:{n}::1/64 dev pods nodad"));
        nodes.start(n);
    }
    nodes.all_reach_all(&[1, 2]);
    let device = nodes.show(1, "-d link show flannel-v6.1");
    assert!(device.contains("mtu 1430") && device.contains("local 2001:db8::1"), "{device}");
    let target: SocketAddr = "[fd00:244:0:2::1]:0".parse().unwrap();
    let listener = nodes.inside(2, move || TcpListener::bind(target)).unwrap();
    let address = listener.local_addr().unwrap();
    eventually("the other family", || {
        let connect = move || TcpStream::connect_timeout(&address, Duration::from_secs(1)).map(drop);
        nodes.inside(1, connect).map_err(|e| format!("{e}\n{}", nodes.show(1, "-6 route")))
    });
    let file = fs::read_to_string(nodes.file("subnet-1.env")).unwrap();
    assert!(file.contains("FLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64") && file.contains("FLANNEL_MTU=1430"), "{file}");
    nodes.repaired(1, "ip -6 route del fd00:244:0:2::/64", "ip -6 route", "fd00:244:0:2::/64 via fd00:244:0:2::");
}

#[test]
fn checksums_are_computed_by_the_kernel_where_that_is_wished() {
    let Some(mut nodes) = Nodes::new("c", json!({"Type": "vxlan"})) else { return };
    nodes.list(&ALL);
    let mut agent = nodes.command(1);
    nodes.agents[1] = Some(agent.args(["--tx-checksum", "off"]).spawn().unwrap());
    nodes.start(2);
    nodes.all_reach_all(&[1, 2]);
    let left_to_the_device = |nodes: &Nodes, n: usize| {
        nodes.inside(n, || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
            gantry_sys::ethtool::tx_checksum(&socket, "flannel.1")
        })
    };
    assert!(!left_to_the_device(&nodes, 1).unwrap());
    // Also of a device that was made anew.
    nodes.repaired(1, "ip link del flannel.1", "ip route", "10.244.3.0/24 via 10.244.3.0");
    eventually("the new device", || {
        let left = left_to_the_device(&nodes, 1).map_err(|e| e.to_string())?;
        (!left).then_some(()).ok_or("it computes none".to_owned())
    });
}

#[test]
fn direct_routing_takes_the_tunnel_only_where_it_must() {
    let Some(mut nodes) = Nodes::new("d", json!({"Type": "vxlan", "DirectRouting": true})) else { return };
    nodes.list(&[(1, "192.0.2.1"), (2, "192.0.2.2"), (3, "198.51.100.3")]);
    nodes.start(1);
    eventually("both routes", || {
        let routes = nodes.show(1, "route");
        let both = routes.contains("10.244.2.0/24 via 192.0.2.2 dev eth0")
            && routes.contains("10.244.3.0/24 via 10.244.3.0 dev flannel.1");
        both.then_some(()).ok_or(routes)
    });
}

#[test]
fn five_hundred_peers_are_programmed_at_once_and_a_change_of_one_is_one_change() {
    let Some(mut nodes) = Nodes::new("m", json!({"Type": "vxlan"})) else { return };
    let all: Vec<_> = (1..=500)
        .map(|n| {
            let name = if n == 1 { "n1".to_owned() } else { format!("peer{n}") };
            let ip = format!("192.0.{}.{}", 2 + n / 250, n % 250 + 1);
            json!({"name": name, "subnets": [format!("10.{}.{}.0/24", 244 + n / 250, n % 250)], "publicIp": ip})
        })
        .collect();
    fs::write(nodes.file("peers.json"), json!(all).to_string()).unwrap();
    let count = |nodes: &Nodes| nodes.show(1, "route").lines().filter(|l| l.contains("flannel.1")).count();
    nodes.settings = json!({"Network": "10.240.0.0/12", "Backend": {"Type": "vxlan"}}).to_string();
    nodes.start(1);
    eventually("all peers", || {
        let routes = count(&nodes);
        (routes == 499).then_some(()).ok_or(format!("{routes} routes"))
    });
    let moved = {
        let fresh = nodes.file("peers.json");
        let text = fs::read_to_string(&fresh).unwrap().replace("192.0.2.78", "198.51.100.9");
        fs::write(nodes.file("peers.new"), text).unwrap();
        fs::rename(nodes.file("peers.new"), fresh).unwrap();
        "198.51.100.9"
    };
    eventually("the moved peer", || {
        let fdb = sh(&format!("ip netns exec {} bridge fdb show dev flannel.1", nodes.name(1)));
        (fdb.contains(moved) && !fdb.contains("192.0.2.78 ")).then_some(()).ok_or("not yet".to_owned())
    });
}
