//! The nf_tables table of the plugins: masquerading, host ports and firewall, one map element per pod and port.
//!
//! A packet costs one look into a hash however many pods there are, and so does a change. Elements carry their owner
//! (container and device) as comment: what a crash left is found by it. What needs more than the pod's address (is the
//! destination in the pod's own network?) stands in one chain per network or bridge, named after it. Every change is one
//! transaction on the generation that was looked at, so that plugins running at once cannot undo each other's work; a
//! table goes with its last element. What bridges forward has a table of the same name in its own family.

mod chains;
pub mod conditions;
pub mod iptables;
mod layout;
mod packet;
mod record;
mod removal;
mod wanted;

use std::io;
use std::path::PathBuf;

use gantry_net::nft::{Batch, Element, Expr, Rule, Table};
use gantry_net::{Prefix, Socket};

use self::chains::Chain;
use self::layout::{CONDITIONAL, GROUPS, Group};
use self::packet::{name_bytes, octets, parts};
use self::record::{Place, Records};
use self::removal::service;
pub use self::removal::{release, retain};
pub use self::wanted::{HostPort, Wanted};
use crate::afterwards::{self, Later};
use crate::spec::{Context, Error, Request, Result};

/// The tables' name.
pub const TABLE: &str = "gantry-cni";

/// Sets that one plugin writes to; each one's DEL and GC looks at its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Sources whose traffic to other networks is masqueraded.
    Masquerade,
    /// Host ports and what belongs to them.
    Ports,
    /// Who may send to pods.
    Firewall,
    /// Devices that may only send under their own hardware address.
    Spoofing,
}

impl Part {
    fn has(self, set: &str) -> bool {
        let stem = set.trim_end_matches(['4', '6']);
        match self {
            Self::Masquerade => stem == "masq",
            Self::Ports => matches!(stem, "ports" | "hostips" | "hairpin" | "snat"),
            Self::Firewall => matches!(stem, "pods" | "ingress" | "isolated"),
            Self::Spoofing => matches!(stem, "checked" | "macs"),
        }
    }
}

/// Whose elements and devices they are, as comment: container, device and network.
pub fn owner(request: &Request) -> String {
    format!("{} {} {}", short(&request.container), request.ifname, short(&request.config.name))
}

/// Comments have at most 250 bytes: of a long name its beginning and a hash stand for it.
fn short(name: &str) -> String {
    if name.len() <= 100 {
        return name.to_owned();
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{}-{hash:016x}", &name[..name.floor_char_boundary(80)])
}

/// For GC: tells of an owner whether it is still there. Those of other networks stay, but for containers that ended without
/// a DEL: nobody may ever ask for the GC of a network that is no longer configured.
///
/// # Errors
/// The list of valid attachments is malformed (7).
pub fn valid(request: &Request) -> Result<impl Fn(&str) -> bool + use<>> {
    let network = short(&request.config.name);
    let valid = request.valid_attachments()?;
    let valid: Vec<_> = valid.iter().map(|(container, ifname)| format!("{} {ifname}", short(container))).collect();
    let vanished = Records::here().map(|records| records.vanished()).unwrap_or_default();
    Ok(move |owner: &str| match owner.rsplit_once(' ') {
        Some((attachment, of)) if of == network => valid.iter().any(|v| v == attachment),
        _ => !vanished.iter().any(|v| v == owner),
    })
}

/// Adds to a transaction what a group's table lacks: the table itself, and rules that somebody flushed.
fn complete(socket: &mut Socket, batch: &mut Batch, group: Group, wanted: &Wanted, seen: &mut Seen) -> io::Result<()> {
    let table = group.table();
    let rules = seen.rules(socket, group)?;
    let stand = |name: &str| rules.iter().filter(|r| r.chain == name).count();
    let mut admins: Vec<String> = match group {
        Group::Filter => rules.iter().filter(|r| r.chain == "forward").filter_map(Rule::jump).collect(),
        _ => Vec::new(),
    };
    let known = wanted.admin.as_ref().is_none_or(|a| group != Group::Filter || admins.contains(a));
    let base = group.rules(&admins);
    let whole = group.chains().iter().filter(|(chain, _)| *chain != CONDITIONAL).all(|(chain, _)| {
        let wanted = base.iter().filter(|(c, _)| c == chain).count();
        wanted == stand(chain)
    });
    let chains = if known && whole { None } else { Some(socket.nft_chains(table)?) };
    if let Some(there) = &chains {
        batch.table(table, false);
        for set in group.sets() {
            batch.set(table, &set);
        }
        for (chain, hook) in group.chains() {
            if chain != CONDITIONAL && there.iter().any(|c| c == chain) {
                batch.flush_chain(table, chain);
            }
            batch.chain(table, chain, hook);
        }
        if group == Group::Filter {
            admins.extend(wanted.admin.clone());
            admins.sort();
            admins.dedup();
            for admin in &admins {
                batch.chain(table, admin, None);
            }
        }
        for (chain, rule) in group.rules(&admins) {
            batch.rule(table, chain, &rule);
        }
    }
    let mut needed: Vec<Chain> = wanted.chains.iter().filter(|(g, _)| *g == group).map(|(_, c)| c.clone()).collect();
    needed.extend(chains.iter().flatten().filter_map(|name| Chain::parse(name)).filter(|c| group_of(c) == group));
    fill(batch, group, needed, rules);
    Ok(())
}

/// The rules of tables as they stood when a transaction began: each table is read once.
#[derive(Debug, Default)]
struct Seen(Vec<(Table<'static>, Vec<Rule>)>);

impl Seen {
    fn rules(&mut self, socket: &mut Socket, group: Group) -> io::Result<&[Rule]> {
        let table = group.table();
        let place = match self.0.iter().position(|(t, _)| *t == table) {
            Some(place) => place,
            None => {
                self.0.push((table, socket.nft_rules(table)?));
                self.0.len() - 1
            }
        };
        Ok(&self.0[place].1)
    }
}

fn group_of(chain: &Chain) -> Group {
    if chain.bridge().is_some() { Group::Filter } else { Group::Nat }
}

/// Makes the chains that elements jump to, and fills those that somebody emptied.
fn fill(batch: &mut Batch, group: Group, needed: Vec<Chain>, rules: &[Rule]) {
    let table = group.table();
    let mut done = Vec::new();
    for chain in needed {
        let (name, content) = (chain.name(), chain.rules());
        if done.contains(&name) {
            continue;
        }
        if let Some(bridge) = chain.bridge() {
            batch.element(table, "bridges", &Element { key: name_bytes(bridge), ..Element::default() });
        }
        let stand = rules.iter().filter(|r| r.chain == name).count();
        if stand != content.len() {
            if stand > 0 {
                batch.flush_chain(table, &name);
            }
            batch.chain(table, &name, None);
            for rule in content {
                batch.rule(table, &name, &rule);
            }
        }
        done.push(name);
    }
}

/// Repeats `work`, which takes something away, while others change the ruleset under it.
fn removing<T>(work: impl FnMut(&mut Socket, u32) -> io::Result<T>) -> io::Result<T> {
    let mut socket = Socket::netfilter()?;
    let before = socket.nft_generation()?;
    let done = repeat(&mut socket, work)?;
    let took = socket.nft_generation()? != before;
    afterwards::leave(Later::Close(socket, took))?;
    Ok(done)
}

/// Repeats `work` while others change the ruleset under it.
fn exclusively<T>(work: impl FnMut(&mut Socket, u32) -> io::Result<T>) -> io::Result<T> {
    repeat(&mut Socket::netfilter()?, work)
}

fn repeat<T>(socket: &mut Socket, mut work: impl FnMut(&mut Socket, u32) -> io::Result<T>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        let generation = socket.nft_generation()?;
        match work(socket, generation) {
            Err(e) if e.raw_os_error() == Some(libc::ERESTART) && tries < 200 => {
                tries += 1;
                // Whoever was first is done within a millisecond.
                std::thread::sleep(std::time::Duration::from_micros(200 * (1 + u64::from(std::process::id() % 8))));
            }
            other => return other,
        }
    }
}

/// Puts elements of a request's attachment into the tables. What a crash left under the same address is replaced: the address would not
/// have been given again, had its owner still been there. A host port is not taken from another container.
///
/// # Errors
/// The kernel refuses, or a host port is another container's (which is named); nothing is changed then.
pub fn add(request: &Request, wanted: &Wanted) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let owner = &owner(request);
    let place = request.netns.as_deref().and_then(Place::of);
    let records = Records::here();
    let kept = records.as_ref().map_or(Ok(()), |records| records.keep(owner, place.as_ref(), wanted));
    kept.doing(|| "remember what the nf_tables table shall hold".into())?;
    let added = put(owner, wanted, records.as_ref());
    if let (Err(_), Some(records)) = (&added, &records) {
        for part in [Part::Masquerade, Part::Ports, Part::Firewall, Part::Spoofing] {
            if wanted.elements.iter().any(|(_, set, _)| part.has(set)) {
                records.forget(part, owner);
            }
        }
    }
    added
}

/// Puts back what somebody has flushed with the whole ruleset. Nothing remembered, or nothing flushed, is nothing to do.
///
/// # Errors
/// The kernel refuses; nothing is changed then.
pub fn restore() -> Result<()> {
    let Some(records) = Records::here() else { return Ok(()) };
    let all = records.all();
    let look = || {
        let mut socket = Socket::netfilter()?;
        let mut lost = false;
        for group in GROUPS.into_iter().filter(|g| all.needs(*g)) {
            lost |= socket.nft_chains(group.table())?.is_empty();
        }
        io::Result::Ok(lost)
    };
    if all.is_empty() || !io::Result::doing(look(), || format!("read nf_tables table {TABLE}"))? {
        return Ok(());
    }
    put("", &Wanted::default(), Some(&records))
}

/// All that is remembered, if a table is gone that something is wanted of (or, when nothing is wanted, any).
fn lost(socket: &mut Socket, wanted: &Wanted, records: Option<&Records>, seen: &mut Seen) -> io::Result<Wanted> {
    let Some(records) = records else { return Ok(Wanted::default()) };
    let all = if wanted.is_empty() { records.all() } else { Wanted::default() };
    for group in GROUPS.into_iter().filter(|g| wanted.needs(*g) || all.needs(*g)) {
        if seen.rules(socket, group)?.is_empty() && socket.nft_chains(group.table())?.is_empty() {
            return Ok(records.all());
        }
    }
    Ok(Wanted::default())
}

/// One transaction with what is wanted and, where a table is gone, everything that was in it.
fn put(owner: &str, wanted: &Wanted, records: Option<&Records>) -> Result<()> {
    exclusively(|socket, generation| {
        let mut replace = false;
        let mut seen = Seen::default();
        let mut whole = lost(socket, wanted, records, &mut seen)?;
        whole.elements.retain(|(_, set, e)| {
            e.comment != owner && !wanted.elements.iter().any(|(_, other, new)| other == set && new.key == e.key)
        });
        whole.elements.extend(
            wanted.elements.iter().map(|(g, s, e)| (*g, *s, Element { comment: owner.to_owned(), ..e.clone() })),
        );
        whole.chains.extend(wanted.chains.iter().cloned());
        whole.rules.clone_from(&wanted.rules);
        whole.admin = wanted.admin.clone().or(whole.admin);
        loop {
            let mut batch = Batch::new();
            for group in GROUPS.into_iter().filter(|g| whole.needs(*g)) {
                complete(socket, &mut batch, group, &whole, &mut seen)?;
            }
            for (group, set, element) in &whole.elements {
                if replace {
                    clear(socket, &mut batch, *group, set, &element.key, &element.comment)?;
                }
                batch.new_element(group.table(), set, element);
            }
            for rule in &wanted.rules {
                batch.rule_of(TABLE, CONDITIONAL, rule, owner, false);
            }
            match batch.commit_after(socket, Some(generation)) {
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) && !replace => replace = true,
                other => return other,
            }
        }
    })
    .doing(|| format!("change nf_tables table {TABLE}"))
}

/// Takes away what stands under a key.
fn clear(socket: &mut Socket, batch: &mut Batch, group: Group, set: &str, key: &[u8], owner: &str) -> io::Result<()> {
    let there = socket.nft_elements(group.table(), set)?;
    let Some(old) = there.iter().find(|e| e.key == key) else { return Ok(()) };
    if let Some((protocol, port)) = service(set, key).filter(|_| old.comment != owner) {
        let protocol = match protocol {
            6 => "tcp",
            17 => "udp",
            132 => "sctp",
            _ => "other",
        };
        return Err(io::Error::other(format!("host port {port}/{protocol} belongs to container {}", old.comment)));
    }
    batch.delete_element(group.table(), set, old);
    Ok(())
}

/// The folder below /run with what must outlive a flush of the rules of this network namespace; none where the kernel does not
/// tell namespaces apart.
pub fn remembered() -> Option<PathBuf> {
    record::folder()
}

/// Whether an owner may have elements of `part`: they are remembered, or nothing can be in this namespace.
pub fn may_have(owner: &str, part: Part) -> bool {
    Records::here().is_none_or(|records| records.has(part, owner))
}

/// Whether all that is wanted is there for its owner.
///
/// # Errors
/// Something is not, or the kernel's.
pub fn check(owner: &str, wanted: &Wanted) -> Result<()> {
    let missing = missing(owner, wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::internal(format!("nf_tables table lacks {}", missing.join(", "))))
}

/// Which of the wanted elements are not there for their owner.
///
/// # Errors
/// The kernel's.
pub fn missing(owner: &str, wanted: &Wanted) -> Result<Vec<&'static str>> {
    let look = || {
        let mut socket = Socket::netfilter()?;
        let mut missing = Vec::new();
        for (group, set, element) in &wanted.elements {
            let there = socket.nft_elements(group.table(), set)?;
            let is = |e: &Element| {
                e.key == element.key && e.value == element.value && e.jump == element.jump && e.comment == owner
            };
            if !there.iter().any(is) {
                missing.push(*set);
            }
        }
        for group in GROUPS.into_iter().filter(|g| wanted.needs(*g)) {
            let rules = socket.nft_rules(group.table())?;
            let base = group.rules(&[]);
            let short = |(chain, _): &(&str, _)| {
                rules.iter().filter(|r| r.chain == *chain).count() < base.iter().filter(|(c, _)| c == chain).count()
            };
            if group.chains().iter().any(short) {
                missing.push("rules");
            }
            let own = rules.iter().filter(|r| r.chain == CONDITIONAL && r.comment == owner).count();
            if group == Group::Nat && own < wanted.rules.len() {
                missing.push(CONDITIONAL);
            }
        }
        Ok(missing)
    };
    io::Result::doing(look(), || format!("read nf_tables table {TABLE}"))
}
