//! Limits; `update --resources` takes the same.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::fail;
use crate::spec::{BlockIo, Cpu, Memory, Resources};

/// Checks limits, which stand at `field`. 0 (and an empty text) is no limit, as engines write it.
///
/// # Errors
/// The first wrong field, by name.
pub(crate) fn resources(field: &str, r: &Resources) -> Result<()> {
    if let Some(m) = &r.memory {
        memory(&format!("{field}.memory"), m)?;
    }
    if let Some(c) = &r.cpu {
        cpu(&format!("{field}.cpu"), c)?;
    }
    if let Some(b) = &r.block_io {
        block_io(&format!("{field}.blockIO"), b)?;
    }
    let mut sizes = BTreeSet::new();
    for (i, page) in r.hugepage_limits.iter().enumerate() {
        let number = ["KB", "MB", "GB"].iter().find_map(|unit| page.page_size.strip_suffix(unit));
        if number.is_none_or(|n| n.starts_with('0') || n.parse::<u32>().is_err()) {
            fail!("{field}.hugepageLimits[{i}].pageSize: {:?} is no size like 2MB", page.page_size);
        }
        if !sizes.insert(&page.page_size) {
            fail!("{field}.hugepageLimits[{i}].pageSize: {} is there twice", page.page_size);
        }
    }
    for (i, p) in r.network.iter().flat_map(|n| &n.priorities).enumerate() {
        if p.name.is_empty() || p.name.contains(|c: char| c.is_whitespace() || c == '/' || c == '\0') {
            fail!("{field}.network.priorities[{i}].name: {:?} is no interface", p.name);
        }
    }
    for (name, limit) in &r.rdma {
        if limit.hca_handles.is_none() && limit.hca_objects.is_none() {
            fail!("{field}.rdma.{name}: needs hcaHandles or hcaObjects");
        }
    }
    for key in r.unified.keys() {
        if !key.contains('.') || key.contains(['/', '\0']) || key.contains("..") {
            fail!("{field}.unified: {key:?} is no cgroup file name");
        }
    }
    crate::plan::devices::rules(&r.devices).map(drop)
}

fn memory(field: &str, m: &Memory) -> Result<()> {
    for (name, value) in [("limit", m.limit), ("reservation", m.reservation), ("swap", m.swap)] {
        if value.is_some_and(|v| v < -1) {
            fail!("{field}.{name}: {} is below -1 (no limit)", value.unwrap_or_default());
        }
    }
    let above_zero = |v: Option<i64>| v.filter(|v| *v > 0);
    if let (Some(limit), Some(swap)) = (above_zero(m.limit), above_zero(m.swap))
        && swap < limit
    {
        fail!("{field}.swap: {swap} (memory and swap together) is below the memory limit {limit}");
    }
    if m.limit == Some(-1) && above_zero(m.swap).is_some() {
        fail!("{field}.swap: needs a memory limit");
    }
    if m.swappiness.is_some_and(|s| s > 100) {
        fail!("{field}.swappiness: out of range 0 to 100");
    }
    Ok(())
}

fn cpu(field: &str, c: &Cpu) -> Result<()> {
    if c.shares.is_some_and(|s| s > 262_144) {
        fail!("{field}.shares: above the kernel's 262144");
    }
    let time = |name: &str, value: Option<u64>, least: u64, most: u64| match value {
        Some(v) if v != 0 && !(least..=most).contains(&v) => {
            fail!("{field}.{name}: {v} is out of range {least} to {most}")
        }
        _ => Ok(()),
    };
    time("period", c.period, 1_000, 1_000_000)?;
    time("realtimePeriod", c.realtime_period, 1, u64::from(u32::MAX))?;
    match c.quota {
        Some(q) if q < -1 || (1..1_000).contains(&q) => {
            fail!("{field}.quota: {q} is neither -1 (no limit) nor 1000 or more")
        }
        _ => {}
    }
    if let (Some(burst), Some(quota @ 1..)) = (c.burst, c.quota)
        && burst > quota.unsigned_abs()
    {
        fail!("{field}.burst: {burst} is above quota {quota}");
    }
    if c.realtime_runtime.is_some_and(|r| r < -1) {
        fail!("{field}.realtimeRuntime: below -1");
    }
    if c.idle.is_some_and(|i| !(0..=1).contains(&i)) {
        fail!("{field}.idle: neither 0 nor 1");
    }
    for (name, list) in [("cpus", &c.cpus), ("mems", &c.mems)] {
        if list.as_ref().is_some_and(|l| !is_list(l)) {
            fail!("{field}.{name}: {:?} is no list like 0-3,7", list.as_deref().unwrap_or_default());
        }
    }
    Ok(())
}

/// Numbers and ranges with commas between, as the kernel writes sets of processors.
pub(crate) fn is_list(text: &str) -> bool {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |n: &str| n.parse::<u32>().ok().filter(|_| n.bytes().all(|b| b.is_ascii_digit()));
        number(first).zip(number(last)).is_some_and(|(first, last)| first <= last)
    };
    let text = text.trim();
    text.is_empty() || text.split(',').all(|part| range(part.trim()))
}

fn block_io(field: &str, b: &BlockIo) -> Result<()> {
    let weight = |at: &str, w: Option<u16>| match w {
        Some(w) if w != 0 && !(10..=1000).contains(&w) => fail!("{field}.{at}: {w} is out of range 10 to 1000"),
        _ => Ok(()),
    };
    weight("weight", b.weight)?;
    let number = |at: String, major: i64, minor: i64| match u32::try_from(major).and(u32::try_from(minor)) {
        Ok(_) => Ok(()),
        Err(_) => fail!("{field}.{at}: {major}:{minor} is no device"),
    };
    for (i, d) in b.weight_device.iter().enumerate() {
        weight(&format!("weightDevice[{i}].weight"), d.weight)?;
        number(format!("weightDevice[{i}]"), d.major, d.minor)?;
    }
    let lists = [
        ("throttleReadBpsDevice", &b.throttle_read_bps_device),
        ("throttleWriteBpsDevice", &b.throttle_write_bps_device),
        ("throttleReadIOPSDevice", &b.throttle_read_iops_device),
        ("throttleWriteIOPSDevice", &b.throttle_write_iops_device),
    ];
    for (name, list) in lists {
        for (i, d) in list.iter().enumerate() {
            number(format!("{name}[{i}]"), d.major, d.minor)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_the_kernels() {
        for good in ["", "0", "0-3", "0-3,7", "1, 2", "0\n"] {
            assert!(is_list(good), "{good:?}");
        }
        for bad in ["x", "3-1", "1-", "-1", "1,,2", "+1", "1-2-3"] {
            assert!(!is_list(bad), "{bad:?}");
        }
    }
}
