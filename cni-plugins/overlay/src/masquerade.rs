//! The rules that give traffic between pods and the outside the node's address, in a table of our own.

use std::io;
use std::net::IpAddr;

use gantry_net::nft::{Batch, Expr, Hook, R0};
use gantry_net::{Prefix, Socket};

use crate::config::Network;

/// The table's name.
pub const TABLE: &str = "gantry-overlay";
const CHAIN: &str = "postrouting";

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Goes on when the source (or destination) is, or is not, in a network.
fn matches(network: Prefix, source: bool, inside: bool) -> Vec<Expr<'static>> {
    let four = network.ip.is_ipv4();
    let length: u32 = if four { 4 } else { 16 };
    let offset = match (four, source) {
        (true, true) => 12,
        (true, false) => 16,
        (false, true) => 8,
        (false, false) => 24,
    };
    let mask =
        Prefix { ip: if four { [255; 4].into() } else { [255; 16].into() }, length: network.length }.network().ip;
    vec![
        Expr::Payload(1, offset, length, R0),
        Expr::Mask(R0, octets(mask)),
        Expr::Compare(R0, inside, octets(network.network().ip)),
    ]
}

/// The rules for one family: traffic among pods stays as it is; pods appear as the node outside; who comes from outside to
/// another node's pod appears as this node, so that answers come back through it.
fn rules(all: Prefix, own: Prefix) -> Vec<Vec<Expr<'static>>> {
    let four = all.ip.is_ipv4();
    let family = || vec![Expr::Meta(15, R0), Expr::Compare(R0, true, vec![if four { 2 } else { 10 }])];
    let multicast: Prefix = if four {
        Prefix { ip: [224, 0, 0, 0].into(), length: 4 }
    } else {
        Prefix { ip: std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), length: 8 }
    };
    let rule = |parts: &[Vec<Expr<'static>>], end: Expr<'static>| {
        let mut rule = family();
        parts.iter().for_each(|part| rule.extend(part.iter().cloned()));
        rule.push(end);
        rule
    };
    vec![
        rule(&[matches(all, true, true), matches(all, false, true)], Expr::Accept),
        rule(&[matches(all, true, true), matches(multicast, false, false)], Expr::Masquerade),
        rule(&[matches(all, true, false), matches(own, false, true)], Expr::Accept),
        rule(&[matches(all, true, false), matches(all, false, true)], Expr::Masquerade),
    ]
}

/// Puts the rules there when they are not. Answers whether something was missing.
///
/// # Errors
/// The kernel refuses.
pub fn ensure(network: &Network, subnets: &[Prefix]) -> io::Result<bool> {
    let mut wanted = Vec::new();
    for own in subnets {
        let all = if own.ip.is_ipv4() { network.ipv4 } else { network.ipv6 };
        wanted.extend(all.map(|all| rules(all, *own)).unwrap_or_default());
    }
    let mut socket = Socket::netfilter()?;
    // What the rules are for stands in their comments: a node whose network changes needs others, as many as before.
    let purpose = subnets.iter().map(Prefix::to_string).collect::<Vec<_>>().join(" ");
    let all: Vec<_> = [network.ipv4, network.ipv6].iter().flatten().map(Prefix::to_string).collect();
    let purpose = format!("{purpose} of {}", all.join(" "));
    let there = socket.nft_rules(TABLE)?;
    if there.len() == wanted.len() && there.iter().all(|rule| rule.comment == purpose) {
        return Ok(false);
    }
    let mut batch = Batch::new();
    batch.table(TABLE, false).flush_rules(TABLE);
    batch.chain(TABLE, CHAIN, Some(Hook { kind: "nat", number: 4, priority: 100 }));
    for rule in &wanted {
        batch.rule_of(TABLE, CHAIN, rule, &purpose, false);
    }
    batch.commit(&mut socket)?;
    Ok(true)
}

/// Removes the table.
///
/// # Errors
/// The kernel refuses; not there is fine.
pub fn remove() -> io::Result<()> {
    let mut batch = Batch::new();
    batch.delete_table(TABLE);
    match batch.commit(&mut Socket::netfilter()?) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
