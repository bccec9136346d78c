//! What the tables hold independently of pods: sets, base chains and the rules in them.

use gantry_net::nft::{Expr, Family, Hook, R0, Set, Table, Type, VERDICT};

use super::packet::{family, of_family, translated};

const LOCAL: u32 = 2;

/// What is put there together, as soon as something of it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// Masquerading and host ports.
    Nat,
    /// Who may send to pods.
    Filter,
    /// What a bridge forwards.
    Frames,
}

pub(super) const GROUPS: [Group; 3] = [Group::Nat, Group::Filter, Group::Frames];

/// The chain with a rule for each host port that has conditions.
pub(super) const CONDITIONAL: &str = "conditional-ports";

fn map(name: &'static str, key: &'static [Type], value: &'static [Type]) -> Set<'static> {
    Set { name, key, value, interval: false }
}

impl Group {
    pub(super) fn table(self) -> Table<'static> {
        match self {
            Self::Nat | Self::Filter => Table::new(Family::Inet, super::TABLE),
            Self::Frames => Table::new(Family::Bridge, super::TABLE),
        }
    }

    pub(super) fn sets(self) -> Vec<Set<'static>> {
        match self {
            Self::Nat => vec![
                map("masq4", &[Type::Ipv4], &[Type::Verdict]),
                map("masq6", &[Type::Ipv6], &[Type::Verdict]),
                map("ports4", &[Type::Protocol, Type::Port], &[Type::Ipv4, Type::Port]),
                map("ports6", &[Type::Protocol, Type::Port], &[Type::Ipv6, Type::Port]),
                map("hostips4", &[Type::Ipv4, Type::Protocol, Type::Port], &[Type::Ipv4, Type::Port]),
                map("hostips6", &[Type::Ipv6, Type::Protocol, Type::Port], &[Type::Ipv6, Type::Port]),
                map("hairpin4", &[Type::Ipv4], &[Type::Verdict]),
                map("hairpin6", &[Type::Ipv6], &[Type::Verdict]),
                map("snat4", &[Type::Ipv4], &[]),
                map("snat6", &[Type::Ipv6], &[]),
            ],
            Self::Filter => vec![
                map("pods4", &[Type::Ipv4], &[]),
                map("pods6", &[Type::Ipv6], &[]),
                map("ingress4", &[Type::Ipv4], &[Type::Verdict]),
                map("ingress6", &[Type::Ipv6], &[Type::Verdict]),
                map("bridges", &[Type::Interface], &[]),
            ],
            Self::Frames => vec![
                map("checked", &[Type::Interface], &[]),
                map("macs", &[Type::Interface, Type::Ether], &[]),
                map("isolated", &[Type::Interface], &[]),
            ],
        }
    }

    pub(super) fn chains(self) -> Vec<(&'static str, Option<Hook>)> {
        let hook = |kind, number, priority| Some(Hook { kind, number, priority });
        match self {
            Self::Nat => vec![
                (CONDITIONAL, None),
                ("host-ports", None),
                ("prerouting", hook("nat", 0, -100)),
                ("output", hook("nat", 3, -100)),
                ("postrouting", hook("nat", 4, 100)),
            ],
            Self::Filter => vec![("forward", hook("filter", 2, 0))],
            Self::Frames => vec![("prerouting", hook("filter", 0, -300)), ("forward", hook("filter", 2, 0))],
        }
    }

    /// The rules by chain; `admins` are chains that an administrator fills.
    pub(super) fn rules<'a>(self, admins: &'a [String]) -> Vec<(&'static str, Vec<Expr<'a>>)> {
        match self {
            Self::Nat => nat(),
            Self::Filter => filter(admins),
            Self::Frames => frames(),
        }
    }
}

fn nat() -> Vec<(&'static str, Vec<Expr<'static>>)> {
    let local = || vec![Expr::FibDestination(R0), Expr::Compare(R0, true, LOCAL.to_ne_bytes().to_vec())];
    let mut rules = Vec::new();
    for chain in ["prerouting", "output"] {
        let mut rule = local();
        rule.push(Expr::Jump("host-ports"));
        rules.push((chain, rule));
    }
    rules.push(("host-ports", vec![Expr::Jump(CONDITIONAL)]));
    for four in [true, false] {
        let f = family(four);
        let pick = |a, b| if four { a } else { b };
        // Registers are 32 bits wide: an address takes one or four of them.
        let (proto, port) = if four { (R0 + 1, R0 + 2) } else { (R0 + 4, R0 + 5) };
        let mut by_address = of_family(&f);
        by_address.extend([
            Expr::Payload(1, f.destination, f.length, R0),
            Expr::Meta(16, proto),
            Expr::Payload(2, 2, 2, port),
            Expr::Map(pick("hostips4", "hostips6"), R0, R0),
            Expr::Dnat(f.number, R0, proto),
        ]);
        rules.push(("host-ports", by_address));
        let mut by_port = of_family(&f);
        by_port.extend([
            Expr::Meta(16, R0),
            Expr::Payload(2, 2, 2, R0 + 1),
            Expr::Map(pick("ports4", "ports6"), R0, R0),
            Expr::Dnat(f.number, R0, proto),
        ]);
        rules.push(("host-ports", by_port));

        let mut hairpin = [of_family(&f), translated()].concat();
        hairpin.push(Expr::Payload(1, f.destination, f.length, R0));
        let mut snat = hairpin.clone();
        hairpin.push(Expr::Map(pick("hairpin4", "hairpin6"), R0, VERDICT));
        rules.push(("postrouting", hairpin));
        snat.extend([Expr::Lookup(pick("snat4", "snat6"), R0, true), Expr::Masquerade]);
        rules.push(("postrouting", snat));
        let mut masquerade = of_family(&f);
        masquerade.push(Expr::Payload(1, f.source, f.length, R0));
        masquerade.push(Expr::Map(pick("masq4", "masq6"), R0, VERDICT));
        rules.push(("postrouting", masquerade));
    }
    rules
}

/// Isolation first, then what the administrator says, then pods' own traffic and the answers to it.
fn filter(admins: &[String]) -> Vec<(&'static str, Vec<Expr<'_>>)> {
    /// Established and related.
    const ANSWERS: u32 = 2 | 4;
    let mut rules = Vec::new();
    for four in [true, false] {
        let f = family(four);
        let mut rule = of_family(&f);
        rule.push(Expr::Payload(1, f.destination, f.length, R0));
        rule.push(Expr::Map(if four { "ingress4" } else { "ingress6" }, R0, VERDICT));
        rules.push(("forward", rule));
    }
    rules.extend(admins.iter().map(|name| ("forward", vec![Expr::Jump(name)])));
    for four in [true, false] {
        let f = family(four);
        let set = if four { "pods4" } else { "pods6" };
        let of = |offset| [Expr::Payload(1, offset, f.length, R0), Expr::Lookup(set, R0, true), Expr::Accept];
        let mut answers = of_family(&f);
        answers.push(Expr::CtState(ANSWERS));
        answers.extend(of(f.destination));
        rules.push(("forward", answers));
        let mut own = of_family(&f);
        own.extend(of(f.source));
        rules.push(("forward", own));
    }
    rules
}

fn frames() -> Vec<(&'static str, Vec<Expr<'static>>)> {
    let spoofed = vec![
        Expr::Meta(6, R0),
        Expr::Lookup("checked", R0, true),
        // The name takes four registers of 32 bits; the sender's address follows.
        Expr::Payload(0, 6, 6, R0 + 4),
        Expr::Lookup("macs", R0, false),
        Expr::Drop,
    ];
    let isolated = vec![Expr::Meta(7, R0), Expr::Lookup("isolated", R0, true), Expr::Drop];
    vec![("prerouting", spoofed), ("forward", isolated)]
}
