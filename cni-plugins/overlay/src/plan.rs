//! From the nodes of a cluster to the routes and neighbours of this one, and from what the kernel has to what must change.
//! Pure.

use std::net::IpAddr;

use gantry_net::{Neighbour, Prefix, Route};

use crate::config::{Backend, Network};
use crate::node::Peer;

/// Marks routes as ours, on devices that are not (`rtm_protocol`).
pub const PROTOCOL: u8 = 116;

/// One family of this node: its pods' network and how it reaches others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Its name.
    pub name: String,
    /// Its pods' network of this family.
    pub subnet: Prefix,
    /// Device of the underlay.
    pub underlay: u32,
    /// Addresses of that device: what is in their networks is a neighbour.
    pub neighbours: Vec<Prefix>,
    /// The tunnel's device; none with host-gw.
    pub tunnel: Option<u32>,
}

/// What the kernel shall have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Routes to other nodes' pods.
    pub routes: Vec<Route>,
    /// Tunnel ends and where they are.
    pub neighbours: Vec<Neighbour>,
    /// Why a node is not reached, in words.
    pub problems: Vec<String>,
}

enum Way {
    Direct(IpAddr),
    Tunnel { device: u32, to: IpAddr, mac: [u8; 6] },
}

/// How one of a peer's networks is reached.
fn way(own: &Own, peer: &Peer, subnet: Prefix, backend: Backend) -> Result<Way, String> {
    let to = peer.underlay(subnet).ok_or("it has told no address yet")?;
    let neighbour = own.neighbours.iter().any(|n| n.contains(to));
    match backend {
        Backend::HostGw if neighbour => Ok(Way::Direct(to)),
        Backend::HostGw => Err(format!("host-gw needs a common network, and {to} is in none of this node's")),
        Backend::Vxlan { direct: true, .. } if neighbour => Ok(Way::Direct(to)),
        Backend::Vxlan { vni, .. } => {
            let mac = peer.vtep(subnet).ok_or("it has told no hardware address of its tunnel's end yet")?;
            if let Some(other) = peer.vni.filter(|v| *v != vni) {
                return Err(format!("it is in tunnel {other}, this node in {vni}"));
            }
            let device = own.tunnel.ok_or("this node has no tunnel device")?;
            Ok(Way::Tunnel { device, to, mac })
        }
    }
}

/// What the kernel shall have for one family.
pub fn plan(own: &Own, peers: &[Peer], network: &Network) -> Wanted {
    let mut wanted = Wanted::default();
    let four = own.subnet.ip.is_ipv4();
    let all = if four { network.ipv4 } else { network.ipv6 };
    let mut taken: Vec<(Prefix, &str)> = vec![(own.subnet, own.name.as_str())];
    for peer in peers.iter().filter(|p| p.name != own.name) {
        let Some(subnet) = peer.subnets.iter().copied().find(|s| s.ip.is_ipv4() == four) else { continue };
        // No annotation at all: the node has just come, and its agent will say.
        if peer.backend.is_empty() {
            continue;
        }
        let mut problem =
            |text: String| wanted.problems.push(format!("pods of node {} are not reached: {text}", peer.name));
        if peer.backend != network.backend.name() {
            problem(format!("its backend is {:?}, this node's {:?}", peer.backend, network.backend.name()));
            continue;
        }
        if all.is_some_and(|all| !all.contains(subnet.ip) || subnet.length < all.length) {
            problem(format!("its network {subnet} is not in the cluster's"));
            continue;
        }
        if let Some((other, who)) = taken.iter().find(|(t, _)| t.contains(subnet.ip) || subnet.contains(t.ip)) {
            problem(format!("its network {subnet} overlaps with {other} of node {who}"));
            continue;
        }
        taken.push((subnet, &peer.name));
        match way(own, peer, subnet, network.backend) {
            Ok(Way::Direct(gateway)) => {
                let mut route = Route::new(subnet, Some(gateway), own.underlay);
                route.protocol = PROTOCOL;
                wanted.routes.push(route);
            }
            Ok(Way::Tunnel { device, to, mac }) => {
                // Every node's tunnel end has the first address of its network.
                let mut route = Route::new(subnet, Some(subnet.ip), device);
                (route.onlink, route.protocol) = (true, PROTOCOL);
                wanted.routes.push(route);
                wanted.neighbours.push(Neighbour::Arp { device, ip: subnet.ip, mac });
                wanted.neighbours.push(Neighbour::Fdb { device, mac, to });
            }
            Err(text) => problem(text),
        }
    }
    wanted
}

/// One change of the kernel's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Set a neighbour.
    Set(Neighbour),
    /// Remove a neighbour.
    Unset(Neighbour),
    /// Set a route.
    Route(Route),
    /// Remove a route.
    Unroute(Route),
}

fn same(a: &Route, b: &Route) -> bool {
    (a.to, a.gateway, a.device, a.onlink) == (b.to, b.gateway, b.device, b.onlink)
}

/// What must change: what is stale goes first, so that an address that moved from one node to another ends where it is now;
/// routes come last, when what they lead over stands. `routes` and `neighbours` are those that are ours.
pub fn changes(wanted: &Wanted, routes: &[Route], neighbours: &[Neighbour]) -> Vec<Action> {
    let mut actions = Vec::new();
    let replaced = |old: &Neighbour| {
        wanted.neighbours.iter().any(|new| match (old, new) {
            (Neighbour::Arp { ip: a, .. }, Neighbour::Arp { ip: b, .. }) => a == b,
            (Neighbour::Fdb { mac: a, .. }, Neighbour::Fdb { mac: b, .. }) => a == b,
            _ => false,
        })
    };
    for route in routes {
        if !wanted.routes.iter().any(|w| w.to == route.to) {
            actions.push(Action::Unroute(route.clone()));
        }
    }
    for old in neighbours {
        if !wanted.neighbours.contains(old) && !replaced(old) {
            actions.push(Action::Unset(*old));
        }
    }
    for new in &wanted.neighbours {
        if !neighbours.contains(new) {
            actions.push(Action::Set(*new));
        }
    }
    for route in &wanted.routes {
        if !routes.iter().any(|r| same(r, route)) {
            actions.push(Action::Route(route.clone()));
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> Peer {
        Peer {
            name: format!("n{n}"),
            subnets: vec![format!("10.244.{n}.0/24").parse().unwrap()],
            public_ip: Some([192, 0, 2, n].into()),
            public_ipv6: None,
            backend: "vxlan".into(),
            mac: Some([2, 0, 0, 0, 0, n]),
            mac_v6: None,
            vni: Some(1),
        }
    }

    fn own() -> Own {
        Own {
            name: "n1".into(),
            subnet: "10.244.1.0/24".parse().unwrap(),
            underlay: 2,
            neighbours: vec!["192.0.2.1/26".parse().unwrap()],
            tunnel: Some(9),
        }
    }

    fn network(backend: Backend) -> Network {
        Network { ipv4: "10.244.0.0/16".parse().ok(), ipv6: None, backend }
    }

    const VXLAN: Backend = Backend::Vxlan { vni: 1, port: 8472, direct: false, mtu: None };
    const DIRECT: Backend = Backend::Vxlan { vni: 1, port: 8472, direct: true, mtu: None };

    #[test]
    fn a_peer_is_a_route_an_address_and_a_place() {
        let wanted = plan(&own(), &[peer(1), peer(2)], &network(VXLAN));
        assert_eq!((wanted.routes.len(), wanted.neighbours.len(), wanted.problems.len()), (1, 2, 0));
        let route = &wanted.routes[0];
        assert_eq!((route.gateway, route.device, route.onlink), (Some([10, 244, 2, 0].into()), 9, true));
    }

    #[test]
    fn neighbours_are_reached_without_a_tunnel_where_that_is_wished() {
        let wanted = plan(&own(), &[peer(2), peer(200)], &network(DIRECT));
        assert_eq!(wanted.routes[0].gateway, Some([192, 0, 2, 2].into()));
        assert_eq!(wanted.routes[0].device, 2);
        assert_eq!(wanted.routes[1].device, 9, "192.0.2.200 is no neighbour");
        let mut near = peer(2);
        near.backend = "host-gw".into();
        let mut far = peer(200);
        far.backend = "host-gw".into();
        let wanted = plan(&own(), &[near, far], &network(Backend::HostGw));
        assert_eq!((wanted.routes.len(), wanted.neighbours.len()), (1, 0));
        assert!(wanted.problems[0].contains("n200") && wanted.problems[0].contains("common network"));
    }

    #[test]
    fn nodes_that_cannot_be_reached_are_told_with_the_reason() {
        type Spoil = fn(&mut Peer);
        let cases: &[(Spoil, &str)] = &[
            (|p| p.backend = "host-gw".into(), "backend"),
            (|p| p.mac = None, "hardware address"),
            (|p| p.public_ip = None, "no address"),
            (|p| p.vni = Some(2), "tunnel 2"),
            (|p| p.subnets = vec!["10.9.0.0/24".parse().unwrap()], "not in the cluster's"),
            (|p| p.subnets = vec!["10.244.1.128/25".parse().unwrap()], "overlaps"),
        ];
        for (spoil, part) in cases {
            let mut bad = peer(2);
            spoil(&mut bad);
            let wanted = plan(&own(), &[bad, peer(3)], &network(VXLAN));
            assert_eq!(wanted.routes.len(), 1, "the other node is reached all the same");
            assert!(wanted.problems[0].contains(part), "{:?} does not say {part}", wanted.problems);
        }
        let mut fresh = peer(2);
        fresh.backend = String::new();
        assert!(plan(&own(), &[fresh], &network(VXLAN)).problems.is_empty(), "a new node is no problem");
    }

    /// Applies actions to tables as the kernel does.
    fn apply(actions: &[Action], routes: &mut Vec<Route>, neighbours: &mut Vec<Neighbour>) {
        for action in actions {
            match action {
                Action::Unroute(r) => routes.retain(|x| x != r),
                Action::Unset(n) => neighbours.retain(|x| x != n),
                Action::Route(r) => {
                    routes.retain(|x| x.to != r.to);
                    routes.push(r.clone());
                }
                Action::Set(n) => {
                    neighbours.retain(|old| match (old, n) {
                        (Neighbour::Arp { ip: a, .. }, Neighbour::Arp { ip: b, .. }) => a != b,
                        (Neighbour::Fdb { mac: a, .. }, Neighbour::Fdb { mac: b, .. }) => a != b,
                        _ => true,
                    });
                    neighbours.push(*n);
                }
            }
        }
    }

    #[test]
    fn whatever_changed_the_tables_end_as_wanted_and_stay() {
        let mut moved = peer(2);
        moved.public_ip = Some([192, 0, 2, 77].into());
        let mut new_mac = peer(3);
        new_mac.mac = Some([2, 0, 0, 0, 0, 33]);
        let mut swapped = (peer(4), peer(5));
        std::mem::swap(&mut swapped.0.mac, &mut swapped.1.mac);
        let before = plan(&own(), &[peer(2), peer(3), peer(4), peer(5), peer(6)], &network(VXLAN));
        let after = plan(&own(), &[moved, new_mac, swapped.0, swapped.1, peer(7)], &network(VXLAN));
        let (mut routes, mut neighbours) = (before.routes.clone(), before.neighbours.clone());
        apply(&changes(&after, &routes, &neighbours), &mut routes, &mut neighbours);
        assert_eq!(changes(&after, &routes, &neighbours), []);
        assert_eq!((routes.len(), neighbours.len()), (after.routes.len(), after.neighbours.len()));
        assert_eq!(changes(&before, &before.routes, &before.neighbours), []);
    }
}
