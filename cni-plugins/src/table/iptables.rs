//! Pods' traffic in the tables of iptables: where `FORWARD` drops by policy, as Docker and others have it, no rule in a
//! table of our own can let a packet through. Only what iptables itself would write is put there, so that it still reads
//! its tables; the chain is ours, the jump to it is all that is added to a foreign one. Kernels' older xtables are not read.

use std::io;
use std::net::IpAddr;

use gantry_net::Socket;
use gantry_net::nft::{Batch, Expr, Family, R0, Table};

use super::packet::{family, octets};
use super::{exclusively, removing};
use crate::spec::{Context, Result};

const CHAIN: &str = "GANTRY-FORWARD";
const TABLES: [Table<'static>; 2] = [Table::new(Family::Ipv4, "filter"), Table::new(Family::Ipv6, "filter")];

/// `-m conntrack --ctstate RELATED,ESTABLISHED`: `xt_conntrack_mtinfo3`, of which only flags and states are set.
fn answers() -> Expr<'static> {
    let mut info = vec![0; 168];
    // Addresses, expiry and ports come before; then match_flags (1: states), invert_flags, state_mask.
    info[146..148].copy_from_slice(&1u16.to_ne_bytes());
    info[150..152].copy_from_slice(&6u16.to_ne_bytes());
    Expr::Xtables("conntrack", 3, info)
}

/// Lets packets of these addresses, and answers to them, through `FORWARD`, where iptables has such a chain.
///
/// # Errors
/// The kernel refuses; nothing is changed then.
pub fn accept(owner: &str, ips: &[IpAddr]) -> Result<()> {
    exclusively(|socket, generation| {
        let mut batch = Batch::new();
        for table in TABLES {
            let own: Vec<_> = ips.iter().filter(|ip| ip.is_ipv4() == (table.family == Family::Ipv4)).collect();
            let chains = if own.is_empty() { Vec::new() } else { socket.nft_chains(table)? };
            if !chains.iter().any(|c| c == "FORWARD") {
                continue;
            }
            batch.chain(table, CHAIN, None);
            let rules = socket.nft_rules(table)?;
            if !rules.iter().any(|r| r.chain == "FORWARD" && r.jump().as_deref() == Some(CHAIN)) {
                batch.rule_of(table, "FORWARD", &[Expr::Counter, Expr::Jump(CHAIN)], "", true);
            }
            for ip in own {
                let f = family(ip.is_ipv4());
                let address = |offset| [Expr::Payload(1, offset, f.length, R0), Expr::Compare(R0, true, octets(*ip))];
                let mut to = address(f.destination).to_vec();
                to.extend([answers(), Expr::Counter, Expr::Accept]);
                let mut from = address(f.source).to_vec();
                from.extend([Expr::Counter, Expr::Accept]);
                batch.rule_of(table, CHAIN, &to, owner, false).rule_of(table, CHAIN, &from, owner, false);
            }
        }
        batch.commit_after(socket, Some(generation))
    })
    .doing(|| "let pods through the chain FORWARD of iptables".into())
}

/// Removes the rules whose owner is not to be kept, and the chain with its last rule.
///
/// # Errors
/// The kernel refuses.
pub fn retain(keep: impl Fn(&str) -> bool) -> Result<()> {
    removing(|socket, generation| {
        let mut batch = Batch::new();
        TABLES.iter().try_for_each(|table| retain_in(socket, &mut batch, *table, &keep))?;
        batch.commit_after(socket, Some(generation))
    })
    .doing(|| format!("remove rules from the chain {CHAIN} of iptables"))
}

fn retain_in(
    socket: &mut Socket,
    batch: &mut Batch,
    table: Table<'static>,
    keep: &impl Fn(&str) -> bool,
) -> io::Result<()> {
    if !socket.nft_chains(table)?.iter().any(|c| c == CHAIN) {
        return Ok(());
    }
    let rules = socket.nft_rules(table)?;
    let (stay, go): (Vec<_>, Vec<_>) = rules.iter().filter(|r| r.chain == CHAIN).partition(|r| keep(&r.comment));
    if !stay.is_empty() {
        for rule in go {
            batch.delete_rule(table, rule);
        }
        return Ok(());
    }
    for jump in rules.iter().filter(|r| r.chain != CHAIN && r.jump().as_deref() == Some(CHAIN)) {
        batch.delete_rule(table, jump);
    }
    batch.flush_chain(table, CHAIN).delete_chain(table, CHAIN);
    Ok(())
}

/// Whether the rules of an owner are there, where iptables has a chain `FORWARD`.
///
/// # Errors
/// The kernel's.
pub fn stands(owner: &str, ips: &[IpAddr]) -> Result<bool> {
    let look = || {
        let mut socket = Socket::netfilter()?;
        for table in TABLES {
            let wanted = 2 * ips.iter().filter(|ip| ip.is_ipv4() == (table.family == Family::Ipv4)).count();
            let rules = socket.nft_rules(table)?;
            let own = rules.iter().filter(|r| r.chain == CHAIN && r.comment == owner).count();
            if own < wanted && socket.nft_chains(table)?.iter().any(|c| c == "FORWARD") {
                return Ok(false);
            }
        }
        Ok(true)
    };
    io::Result::doing(look(), || "read the tables of iptables".into())
}
