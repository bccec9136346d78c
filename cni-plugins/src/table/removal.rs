//! Taking elements away: those of one owner, or of all that are not to be kept; chains that nothing jumps to any more and
//! a table with its last element go with them.

use std::io;

use gantry_net::Socket;
use gantry_net::nft::{Batch, Element};

use super::chains::Chain;
use super::layout::{CONDITIONAL, Group};
use super::packet::name_bytes;
use super::record::Records;
use super::{Part, TABLE, Wanted, removing};
use crate::spec::{Context, Result};

/// Removes the elements of `part` that an owner has. Where all that are remembered (or else `wanted`) are there, and others
/// have such elements too, nothing else is looked at: however many pods there are, this takes the same time. Returns the UDP
/// ports of the host that lead nowhere now.
///
/// # Errors
/// The kernel refuses.
pub fn release(owner: &str, part: Part, wanted: &Wanted) -> Result<Vec<u16>> {
    let remembered = Records::here().and_then(|records| records.of(part, owner)).filter(|_| wanted.rules.is_empty());
    let wanted = remembered.as_ref().unwrap_or(wanted);
    let quick = removing(|socket, generation| {
        let Some((batch, udp)) = known(socket, owner, part, wanted)? else { return Ok(None) };
        batch.commit_after(socket, Some(generation))?;
        Ok(Some(udp))
    });
    let udp = match quick.doing(|| format!("change nf_tables table {TABLE}"))? {
        Some(udp) => udp,
        None => remove(part, |other| other != owner)?,
    };
    if let Some(records) = Records::here() {
        records.forget(part, owner);
    }
    Ok(udp)
}

/// The removal of what is wanted, if it is there and leaves no chain and no table empty.
fn known(socket: &mut Socket, owner: &str, part: Part, wanted: &Wanted) -> io::Result<Option<(Batch, Vec<u16>)>> {
    let (mut batch, mut udp) = (Batch::new(), Vec::new());
    let mut jumps: Vec<(Group, String, u32)> = Vec::new();
    if !wanted.rules.is_empty() {
        return Ok(None);
    }
    for (group, set, element) in wanted.elements.iter().filter(|(_, set, _)| part.has(set)) {
        let there = socket.nft_element(group.table(), set, &element.key)?;
        let Some(own) = there.filter(|e| e.comment == owner) else { return Ok(None) };
        if let Some(chain) = &own.jump {
            match jumps.iter_mut().find(|(_, known, _)| known == chain) {
                Some((.., count)) => *count += 1,
                None => jumps.push((*group, chain.clone(), 1)),
            }
        }
        udp.extend(udp_port(set, &own.key));
        batch.delete_element(group.table(), set, &own);
    }
    for (group, name, own) in &jumps {
        let content = Chain::parse(name).map_or(0, |chain| chain.rules().len());
        let uses = socket.nft_chain_uses(group.table(), name)?.unwrap_or(0);
        if uses as usize <= content + *own as usize {
            return Ok(None);
        }
    }
    Ok((!jumps.is_empty()).then_some((batch, udp)))
}

/// Removes the elements of `part` whose owner is not to be kept, chains that nothing jumps to any more, and a table with
/// its last element. Returns the UDP ports of the host that lead nowhere now.
///
/// # Errors
/// The kernel refuses.
pub fn retain(part: Part, keep: impl Fn(&str) -> bool) -> Result<Vec<u16>> {
    let removed = remove(part, &keep)?;
    if let Some(records) = Records::here() {
        records.retain(part, keep);
    }
    Ok(removed)
}

fn remove(part: Part, keep: impl Fn(&str) -> bool) -> Result<Vec<u16>> {
    removing(|socket, generation| {
        let mut batch = Batch::new();
        let mut udp = Vec::new();
        for groups in [&[Group::Nat, Group::Filter][..], &[Group::Frames]] {
            // Only the firewall has something in both tables.
            if !groups.iter().flat_map(|g| g.sets()).any(|set| part.has(set.name)) {
                continue;
            }
            retain_in(socket, &mut batch, groups, part, &keep, &mut udp)?;
        }
        batch.commit_after(socket, Some(generation))?;
        Ok(udp)
    })
    .doing(|| format!("change nf_tables table {TABLE}"))
}

/// The groups of one table.
fn retain_in(
    socket: &mut Socket,
    batch: &mut Batch,
    groups: &[Group],
    part: Part,
    keep: &impl Fn(&str) -> bool,
    udp: &mut Vec<u16>,
) -> io::Result<()> {
    let Some(table) = groups.first().map(|g| g.table()) else { return Ok(()) };
    let (mut left, mut gone) = (0, Batch::new());
    let mut jumps: Vec<(String, bool)> = Vec::new();
    for set in groups.iter().flat_map(|g| g.sets()).map(|s| s.name).filter(|s| *s != "bridges") {
        for element in socket.nft_elements(table, set)? {
            let stays = !part.has(set) || keep(&element.comment);
            jumps.extend(element.jump.clone().map(|chain| (chain, stays)));
            if stays {
                left += 1;
                continue;
            }
            udp.extend(udp_port(set, &element.key));
            gone.delete_element(table, set, &element);
        }
    }
    // Few hosts have conditions on their ports: only then the rules are looked at.
    let rules = if gone.is_empty() && part != Part::Ports { Vec::new() } else { socket.nft_rules(table)? };
    for rule in rules.iter().filter(|r| r.chain == CONDITIONAL && groups.contains(&Group::Nat)) {
        if part != Part::Ports || keep(&rule.comment) {
            left += 1;
        } else {
            gone.delete_rule(table, rule);
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    let administered = rules.iter().any(|r| {
        !groups.iter().any(|g| g.chains().iter().any(|(n, _)| *n == r.chain)) && Chain::parse(&r.chain).is_none()
    });
    if left == 0 && !administered {
        batch.delete_table(table);
        return Ok(());
    }
    batch.append(gone);
    let stays = |chain: &str| jumps.iter().any(|(c, stays)| c == chain && *stays);
    let mut empty: Vec<_> = jumps.iter().map(|(chain, _)| chain).filter(|c| !stays(c)).collect();
    empty.sort();
    empty.dedup();
    for name in empty {
        batch.delete_chain(table, name);
        let Some(bridge) = Chain::parse(name).and_then(|c| c.bridge().map(str::to_owned)) else { continue };
        let other = [Chain::Same(bridge.clone()), Chain::Alone(bridge.clone())].iter().any(|c| stays(&c.name()));
        if !other {
            batch.delete_element(table, "bridges", &Element { key: name_bytes(&bridge), ..Element::default() });
        }
    }
    Ok(())
}

/// Protocol and port of a host port's key.
pub(super) fn service(set: &str, key: &[u8]) -> Option<(u8, u16)> {
    // They are the last two words of the key.
    (set.starts_with("ports") || set.starts_with("hostips")).then_some(())?;
    let words = key.get(key.len().checked_sub(8)?..)?;
    Some((words[0], u16::from_be_bytes([words[4], words[5]])))
}

fn udp_port(set: &str, key: &[u8]) -> Option<u16> {
    service(set, key).filter(|(protocol, _)| *protocol == 17).map(|(_, port)| port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::HostPort;

    #[test]
    fn udp_ports_are_found_in_keys() {
        let mut wanted = Wanted::default();
        let port = |protocol, host_ip| HostPort { host_ip, protocol, port: 5353, pod_port: 53 };
        let address = "10.1.0.2/24".parse().unwrap();
        wanted.host_port(address, &port(17, None));
        wanted.host_port(address, &port(17, "192.0.2.1".parse().ok()));
        wanted.host_port(address, &port(6, None));
        let found: Vec<_> = wanted.elements.iter().map(|(_, set, e)| udp_port(set, &e.key)).collect();
        assert_eq!(found, [Some(5353), Some(5353), None]);
    }
}
