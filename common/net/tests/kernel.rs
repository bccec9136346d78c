//! Requests against a real kernel, each test in a network namespace of its own.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;

use gantry_net::Neighbour;
use gantry_net::ip::{self, Prefix, Route};
use gantry_net::link::{self, BorrowedFdKey, Change, Kind};
use gantry_net::nft::{Batch, Element, Expr, Hook, R0, Set, Type};
use gantry_net::socket::Socket;

/// Runs `test` on a thread in new network namespaces (its own, and one to make peers in); they end with it.
fn in_namespace(test: impl FnOnce(&File) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    std::thread::spawn(move || {
        let new = || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        new();
        let other = File::open("/proc/thread-self/ns/net").unwrap();
        new();
        test(&other);
    })
    .join()
    .unwrap();
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

#[test]
fn a_bridge_with_a_port_addresses_and_routes() {
    in_namespace(|other| {
        let mut socket = Socket::route().unwrap();
        socket
            .request(link::create(
                "br0",
                &Kind::Bridge { vlan_filtering: false, mcast_snooping: true },
                Some(1400),
                None,
            ))
            .unwrap();
        let bridge = socket.link("br0").unwrap().unwrap();
        assert_eq!((bridge.kind.as_str(), bridge.mtu, bridge.is_up()), ("bridge", 1400, false));
        let again = link::create("br0", &Kind::Bridge { vlan_filtering: false, mcast_snooping: true }, None, None);
        assert_eq!(socket.request(again).unwrap_err().raw_os_error(), Some(libc::EEXIST));

        let netns = BorrowedFdKey(other.as_fd());
        let veth = Kind::Veth { peer: "eth0", netns, mac: Some([2, 0, 0, 0, 0, 9]) };
        socket.request(link::create("veth0", &veth, Some(1400), None)).unwrap();
        let port = socket.link("veth0").unwrap().unwrap();
        let up = |index| link::change(index, &Change { up: Some(true), ..Change::default() });
        let join = Change { up: Some(true), master: Some(bridge.index), ..Change::default() };
        let hairpin = link::BridgePort { hairpin: Some(true), isolated: None };
        let batch = vec![
            up(bridge.index),
            ip::add_address(bridge.index, prefix("10.1.0.1/24")),
            ip::add_address(bridge.index, prefix("fd00::1/64")),
            link::change(port.index, &join),
            link::bridge_port(port.index, hairpin),
        ];
        socket.batch(batch).unwrap();
        assert_eq!(socket.link("veth0").unwrap().unwrap().master, Some(bridge.index));
        let addresses = socket.addresses(Some(bridge.index)).unwrap();
        assert!(addresses.contains(&(bridge.index, prefix("10.1.0.1/24"))), "{addresses:?}");
        assert!(addresses.contains(&(bridge.index, prefix("fd00::1/64"))), "{addresses:?}");

        let gateway: IpAddr = "10.1.0.9".parse().unwrap();
        let route = Route::new(prefix("10.2.0.0/16"), Some(gateway), bridge.index);
        socket.request(route.replace()).unwrap();
        socket.request(route.replace()).unwrap();
        assert_eq!(socket.routes().unwrap().iter().filter(|r| r.to == route.to).count(), 1);
        socket.request(route.delete()).unwrap();
        assert!(socket.routes().unwrap().iter().all(|r| r.to != route.to));

        socket.request(link::delete(port.index)).unwrap();
        assert_eq!(socket.link("veth0").unwrap(), None);
    });
}

#[test]
fn a_failing_request_of_a_batch_is_named_and_the_others_are_done() {
    in_namespace(|_| {
        let mut socket = Socket::route().unwrap();
        let lo = socket.link("lo").unwrap().unwrap();
        let up = link::change(lo.index, &Change { up: Some(true), ..Change::default() });
        let (index, error) = socket.batch(vec![link::delete(9999), up]).unwrap_err();
        assert_eq!((index, error.raw_os_error()), (0, Some(libc::ENODEV)));
        assert!(socket.link("lo").unwrap().unwrap().is_up());
    });
}

#[test]
fn a_tunnel_end_with_its_neighbours() {
    in_namespace(|_| {
        let mut socket = Socket::route().unwrap();
        socket
            .request(link::create("under", &Kind::Bridge { vlan_filtering: false, mcast_snooping: true }, None, None))
            .unwrap();
        let under = socket.link("under").unwrap().unwrap().index;
        let settings = link::Vxlan {
            vni: 1,
            port: 8472,
            parent: under,
            local: "192.0.2.1".parse().unwrap(),
            learning: false,
            checksum: false,
        };
        socket.request(link::create("flannel.1", &Kind::Vxlan(settings.clone()), Some(1450), None)).unwrap();
        let device = socket.link("flannel.1").unwrap().unwrap();
        assert_eq!(link::Vxlan::of(&device), Some(settings));
        let up = Change { up: Some(true), ..Change::default() };
        socket.request(link::change(device.index, &up)).unwrap();
        let (mac, ip) = ([2, 0, 0, 0, 0, 7], "10.244.1.0".parse().unwrap());
        let arp = Neighbour::Arp { device: device.index, ip, mac };
        let fdb = Neighbour::Fdb { device: device.index, mac, to: "192.0.2.7".parse().unwrap() };
        let moved = Neighbour::Fdb { device: device.index, mac, to: "192.0.2.8".parse().unwrap() };
        socket.batch(vec![arp.replace(), fdb.replace(), moved.replace()]).unwrap();
        let mut found = socket.neighbours(device.index).unwrap();
        found.sort();
        assert_eq!(found, [arp, moved]);
        socket.batch(vec![arp.delete(), moved.delete()]).unwrap();
        assert_eq!(socket.neighbours(device.index).unwrap(), []);
    });
}

#[test]
fn changes_are_heard() {
    in_namespace(|_| {
        const LINKS: u32 = 1;
        let mut news = Socket::subscribe(LINKS).unwrap();
        let mut socket = Socket::route().unwrap();
        socket
            .request(link::create("br0", &Kind::Bridge { vlan_filtering: false, mcast_snooping: true }, None, None))
            .unwrap();
        let mut seen = Vec::new();
        assert!(news.heard(|m| seen.extend(link::Link::heard(m))).unwrap());
        assert!(seen.iter().any(|(l, gone)| l.name == "br0" && !gone));
    });
}

const MASQ: Set<'_> = Set { name: "masq4", key: &[Type::Ipv4], value: &[], interval: false };
const PAIRS: Set<'_> = Set { name: "pairs4", key: &[Type::Ipv4, Type::Ipv4], value: &[], interval: true };
const PORTS: Set<'_> =
    Set { name: "ports4", key: &[Type::Protocol, Type::Port], value: &[Type::Ipv4, Type::Port], interval: false };

#[test]
fn a_table_with_sets_maps_and_rules_is_read_back() {
    in_namespace(|_| {
        let mut socket = Socket::netfilter().unwrap();
        let mut batch = Batch::new();
        batch.table("t", true).set("t", &MASQ).set("t", &PAIRS).set("t", &PORTS);
        batch.chain("t", "post", Some(Hook { kind: "nat", number: 4, priority: 100 }));
        batch.chain("t", "pre", Some(Hook { kind: "nat", number: 0, priority: -100 }));
        let ipv4 = [Expr::Meta(15, R0), Expr::Compare(R0, true, vec![2])];
        let mut masq = ipv4.to_vec();
        masq.extend([Expr::Payload(1, 12, 4, R0), Expr::Lookup("masq4", R0, true), Expr::Masquerade]);
        batch.rule("t", "post", &masq);
        let mut dnat = ipv4.to_vec();
        dnat.extend([Expr::FibDestination(R0), Expr::Compare(R0, true, 2u32.to_ne_bytes().to_vec())]);
        dnat.extend([Expr::Meta(16, R0), Expr::Payload(2, 2, 2, R0 + 1), Expr::Map("ports4", R0, R0)]);
        dnat.push(Expr::Dnat(2, R0, R0 + 1));
        batch.rule("t", "pre", &dnat);
        let mine = Element { key: vec![10, 1, 0, 5], comment: "container eth0".into(), ..Element::default() };
        let port = Element {
            key: vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0],
            value: Some(vec![10, 1, 0, 5, 0, 80, 0, 0]),
            comment: "container eth0".into(),
            ..Element::default()
        };
        let pair = Element {
            key: vec![10, 1, 0, 0, 10, 1, 0, 0],
            key_end: Some(vec![10, 1, 0, 255, 10, 1, 0, 255]),
            ..Element::default()
        };
        batch.element("t", "masq4", &mine).element("t", "pairs4", &pair).element("t", "ports4", &port);
        batch.commit(&mut socket).unwrap();

        assert_eq!(socket.nft_elements("t", "masq4").unwrap(), std::slice::from_ref(&mine));
        assert_eq!(socket.nft_elements("t", "pairs4").unwrap(), [pair]);
        assert_eq!(socket.nft_elements("t", "ports4").unwrap(), std::slice::from_ref(&port));
        assert_eq!(socket.nft_rules("t").unwrap().len(), 2);
        assert_eq!(socket.nft_rules("none").unwrap().len(), 0);
        let shown = std::process::Command::new("nft").args(["list", "ruleset"]).output();
        if let Ok(shown) = shown {
            let text = String::from_utf8_lossy(&shown.stdout).into_owned();
            for wanted in [
                "10.1.0.5",
                "comment \"container eth0\"",
                "tcp . 8080",
                "10.1.0.5 . 80",
                "masquerade",
                "fib daddr type local",
            ] {
                assert!(text.contains(wanted), "{wanted} is not in\n{text}{}", String::from_utf8_lossy(&shown.stderr));
            }
        }

        // A transaction with one impossible part changes nothing.
        let mut batch = Batch::new();
        batch.delete_element("t", "masq4", &mine).delete_element(
            "t",
            "masq4",
            &Element { key: vec![9; 4], ..Element::default() },
        );
        assert_eq!(batch.commit(&mut socket).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert_eq!(socket.nft_elements("t", "masq4").unwrap().len(), 1);

        let mut batch = Batch::new();
        batch.delete_table("t");
        batch.commit(&mut socket).unwrap();
        assert_eq!(socket.nft_elements("t", "masq4").unwrap().len(), 0);
    });
}
