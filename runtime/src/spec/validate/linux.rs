//! The Linux part of a configuration.

use std::collections::BTreeSet;

use super::{absolute, plain_text, resources, seccomp, sysctl};
use crate::error::{Error, Result};
use crate::fail;
use crate::plan::mounts::propagation_of;
use crate::plan::namespaces::kind_of;
use crate::plan::process::{memory_flags_of, memory_mode_of, numbers_of};
use crate::plan::rdt::line;
use crate::spec::{Device, IdMapping, IntelRdt, Linux, MemoryPolicy, Spec};

/// Checks everything about Linux.
///
/// # Errors
/// The first wrong field, by name.
pub(super) fn linux(spec: &Spec) -> Result<()> {
    let linux = spec.linux();
    namespaces(spec, &linux)?;
    let has = |name: &str| linux.namespaces.iter().any(|n| n.kind == name);
    if let Some(word) = linux.rootfs_propagation.as_deref().filter(|p| !p.is_empty())
        && propagation_of(word).is_none()
    {
        fail!("linux.rootfsPropagation: unknown propagation {word:?}");
    }
    for (name, list) in [("maskedPaths", &linux.masked_paths), ("readonlyPaths", &linux.readonly_paths)] {
        if !list.is_empty() && !has("mount") {
            fail!("linux.{name}: needs a mount namespace");
        }
        for (i, path) in list.iter().enumerate() {
            absolute(&format!("linux.{name}[{i}]"), path)?;
        }
    }
    for (i, d) in linux.devices.iter().enumerate() {
        device(&format!("linux.devices[{i}]"), d)?;
    }
    for (key, value) in &linux.sysctl {
        sysctl::sysctl(key, has, spec.hostname.as_ref().is_some_and(|h| !h.is_empty()))?;
        plain_text(&format!("linux.sysctl.{key}"), value)?;
    }
    if let Some(label) = &linux.mount_label {
        plain_text("linux.mountLabel", label)?;
    }
    if let Some(p) = linux.personality.as_ref().filter(|p| !matches!(p.domain.as_str(), "LINUX" | "LINUX32")) {
        fail!("linux.personality.domain: unknown domain {:?}", p.domain);
    }
    if let Some(policy) = &linux.memory_policy {
        memory_policy(policy)?;
    }
    net_devices(&linux)?;
    if let Some(rdt) = &linux.intel_rdt {
        intel_rdt(rdt)?;
    }
    if let Some(r) = &linux.resources {
        resources::resources("linux.resources", r)?;
    }
    match &linux.seccomp {
        Some(s) => seccomp::seccomp(s),
        None => Ok(()),
    }
}

fn memory_policy(policy: &MemoryPolicy) -> Result<()> {
    let field = "linux.memoryPolicy";
    let (_, about_nodes) = memory_mode_of(&policy.mode)?;
    memory_flags_of(&policy.flags)?;
    let Some(nodes) = numbers_of(&policy.nodes) else {
        fail!("{field}.nodes: {:?} is no list like 0-3,7", policy.nodes)
    };
    match (about_nodes, nodes.is_empty()) {
        // Preferring no node means the nearest one.
        (true, true) if policy.mode != "MPOL_PREFERRED" => fail!("{field}.nodes: {} needs nodes", policy.mode),
        (false, false) => fail!("{field}.nodes: {} has no nodes", policy.mode),
        _ => Ok(()),
    }
}

/// A group's name is one part of a path, and none of the kernel's own; each line is as the kernel reads it.
fn intel_rdt(rdt: &IntelRdt) -> Result<()> {
    let field = "linux.intelRdt";
    if let Some(clos) = rdt.clos_id.as_deref().filter(|clos| !matches!(*clos, "" | "/")) {
        let taken = matches!(clos, "." | ".." | "info" | "mon_groups" | "mon_data");
        if taken || clos.len() > 255 || clos.contains(['/', '\n', '\0']) {
            fail!("{field}.closID: {clos:?} is no name of a group");
        }
    }
    let check = |name: &str, text: &str| line(text).map(drop).map_err(|e| Error::new(format!("{field}.{name}: {e}")));
    for text in rdt.l3_cache_schema.iter().flat_map(|schema| schema.lines()) {
        check("l3CacheSchema", text)?;
    }
    if let Some(schema) = rdt.mem_bw_schema.as_deref().filter(|schema| !schema.is_empty()) {
        if !schema.starts_with("MB:") || schema.contains('\n') {
            fail!("{field}.memBwSchema: {schema:?} is no line that starts with MB:");
        }
        check("memBwSchema", schema)?;
    }
    for (i, text) in rdt.schemata.iter().enumerate() {
        if text.contains('\n') {
            fail!("{field}.schemata[{i}]: more than one line");
        }
        check(&format!("schemata[{i}]"), text)?;
    }
    Ok(())
}

/// Devices to move: names that the kernel takes, no two with one name in the container.
fn net_devices(linux: &Linux) -> Result<()> {
    if linux.net_devices.is_empty() {
        return Ok(());
    }
    if !linux.namespaces.iter().any(|n| n.kind == "network") {
        fail!("linux.netDevices: needs a network namespace");
    }
    let good = |name: &str| {
        let plain = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':' | '\0');
        (1..16).contains(&name.len()) && name != "." && name != ".." && name.chars().all(plain)
    };
    let mut seen = BTreeSet::new();
    for (name, device) in &linux.net_devices {
        let inside = if device.name.is_empty() { name } else { &device.name };
        if !good(name) {
            fail!("linux.netDevices: {name:?} is no name of a network device");
        }
        if !good(inside) || inside == "lo" {
            fail!("linux.netDevices.{name}.name: {inside:?} is no name of a network device");
        }
        if !seen.insert(inside) {
            fail!("linux.netDevices.{name}.name: {inside} is there twice");
        }
    }
    Ok(())
}

fn namespaces(spec: &Spec, linux: &Linux) -> Result<()> {
    let mut seen = BTreeSet::new();
    for (i, namespace) in linux.namespaces.iter().enumerate() {
        let Some(kind) = kind_of(&namespace.kind) else {
            fail!("linux.namespaces[{i}].type: unknown namespace {:?}", namespace.kind)
        };
        if !seen.insert(kind) {
            fail!("linux.namespaces[{i}].type: {} is there twice", namespace.kind);
        }
        if let Some(path) = &namespace.path {
            absolute(&format!("linux.namespaces[{i}].path"), path)?;
        }
    }
    let has = |name: &str| linux.namespaces.iter().find(|n| n.kind == name);
    for (field, name) in [("hostname", &spec.hostname), ("domainname", &spec.domainname)] {
        let Some(name) = name.as_deref().filter(|n| !n.is_empty()) else { continue };
        if has("uts").is_none() {
            fail!("{field}: needs a uts namespace");
        }
        if name.len() > 64 {
            fail!("{field}: longer than 64 bytes");
        }
        plain_text(field, name)?;
    }
    let new_user = has("user").is_some_and(|n| n.path.is_none());
    for (field, maps) in [("linux.uidMappings", &linux.uid_mappings), ("linux.gidMappings", &linux.gid_mappings)] {
        if new_user && maps.is_empty() {
            fail!("{field}: a new user namespace needs uidMappings and gidMappings");
        }
        if has("user").is_none() && !maps.is_empty() {
            fail!("{field}: given without a user namespace");
        }
        mappings(field, maps)?;
    }
    for (name, offset) in &linux.time_offsets {
        if !matches!(name.as_str(), "monotonic" | "boottime") || has("time").is_none_or(|n| n.path.is_some()) {
            fail!("linux.timeOffsets: {name:?} needs a new time namespace and a known clock");
        }
        if offset.nanosecs >= 1_000_000_000 {
            fail!("linux.timeOffsets.{name}.nanosecs: {} is a second or more", offset.nanosecs);
        }
    }
    Ok(())
}

/// Ranges of ids: none empty, none past the end of the numbers, none over another on either side.
pub(super) fn mappings(field: &str, maps: &[IdMapping]) -> Result<()> {
    for (i, map) in maps.iter().enumerate() {
        if map.size == 0 {
            fail!("{field}[{i}].size: must be above 0");
        }
        for (side, first) in [("containerID", map.container_id), ("hostID", map.host_id)] {
            if first.checked_add(map.size).is_none() {
                fail!("{field}[{i}].{side}: {first} and {} more are past the last id", map.size);
            }
        }
        let over = |a: u32, b: u32, size: u32| a < b + size && b < a + map.size;
        for other in &maps[..i] {
            if over(map.container_id, other.container_id, other.size) || over(map.host_id, other.host_id, other.size) {
                fail!("{field}[{i}]: overlaps with one before it");
            }
        }
    }
    Ok(())
}

fn device(field: &str, d: &Device) -> Result<()> {
    if !matches!(d.kind.as_str(), "c" | "b" | "u" | "p") {
        fail!("{field}.type: {:?} is none of c, b, u, p", d.kind);
    }
    absolute(&format!("{field}.path"), &d.path)?;
    // The kernel keeps 12 bits of major and 20 of minor numbers.
    for (name, number, last) in [("major", d.major, (1 << 12) - 1), ("minor", d.minor, (1 << 20) - 1)] {
        if d.kind != "p" && !(0..=last).contains(&number) {
            fail!("{field}.{name}: {number} is out of range 0 to {last}");
        }
    }
    // Engines give the file type's bits with the permissions.
    if d.file_mode.is_some_and(|m| m > 0o17_7777) {
        fail!("{field}.fileMode: {} is no file mode", d.file_mode.unwrap_or_default());
    }
    Ok(())
}
