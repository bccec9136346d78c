//! From limits to properties of a unit. Pure.
//!
//! The same limits are written to the group's files as well; systemd has to know them so that it does not undo them when it
//! is reloaded. What systemd has no property for (huge pages, RDMA) it leaves alone.

use crate::convert::shares_to_weight;
use crate::device::{DeviceKind, DeviceRule};
use crate::error::{Error, Result};
use crate::host::Version;
use crate::resources::Resources;
use gantry_dbus::{Property, Value};

const INFINITY: u64 = u64::MAX;
/// systemd rounds quotas per second to this many microseconds.
const QUOTA_STEP: u64 = 10_000;

/// What a unit with these limits is set to.
///
/// # Errors
/// A list of processors or a `unified` value cannot be read.
pub(super) fn of(r: &Resources, version: Version) -> Result<Vec<Property>> {
    let mut p = Vec::new();
    let limit = |n: i64| u64::try_from(n).unwrap_or(INFINITY);
    let v2 = version == Version::V2;
    if let Some(shares) = r.cpu_shares.filter(|&s| s != 0) {
        p.push(if v2 {
            ("CPUWeight", Value::U64(shares_to_weight(shares)))
        } else {
            ("CPUShares", Value::U64(shares))
        });
    }
    if r.cpu_quota.is_some_and(|q| q != 0) || r.cpu_period.is_some_and(|q| q != 0) {
        p.extend(quota(r.cpu_quota.unwrap_or(-1), r.cpu_period.filter(|&p| p != 0)));
    }
    if let Some(memory) = r.memory_limit.filter(|&m| m != 0) {
        p.push((if v2 { "MemoryMax" } else { "MemoryLimit" }, Value::U64(limit(memory))));
    }
    if let Some(tasks) = r.pids_limit {
        p.push(("TasksMax", Value::U64(if tasks > 0 { tasks.unsigned_abs() } else { INFINITY })));
    }
    if v2 {
        if let Some(memory) = r.memory_reservation.filter(|&m| m != 0) {
            p.push(("MemoryLow", Value::U64(limit(memory))));
        }
        match (r.memory_limit, r.memory_swap.filter(|&s| s != 0)) {
            (_, Some(both)) if both < 0 => p.push(("MemorySwapMax", Value::U64(INFINITY))),
            (Some(memory), Some(both)) if memory > 0 => {
                p.push(("MemorySwapMax", Value::U64(limit((both - memory).max(0)))))
            }
            _ => {}
        }
        if let Some(cpus) = r.cpuset_cpus.as_ref().filter(|s| !s.is_empty()) {
            p.push(("AllowedCPUs", Value::Bytes(mask("cpuset.cpus", cpus)?)));
        }
        if let Some(mems) = r.cpuset_mems.as_ref().filter(|s| !s.is_empty()) {
            p.push(("AllowedMemoryNodes", Value::Bytes(mask("cpuset.mems", mems)?)));
        }
        for (key, value) in &r.unified {
            p.extend(unified(key, value)?);
        }
    }
    if let Some(rules) = &r.devices {
        p.extend(devices(rules));
    }
    Ok(p)
}

/// CPU time as systemd counts it: microseconds per second.
fn quota(quota: i64, period: Option<u64>) -> Vec<Property> {
    let of_second = match u64::try_from(quota) {
        Ok(quota) if quota > 0 => {
            (quota.saturating_mul(1_000_000) / period.unwrap_or(100_000)).next_multiple_of(QUOTA_STEP)
        }
        _ => INFINITY,
    };
    let mut p = vec![("CPUQuotaPerSecUSec", Value::U64(of_second))];
    p.extend(period.map(|period| ("CPUQuotaPeriodUSec", Value::U64(period))));
    p
}

/// The properties that stand for files of version 2.
fn unified(key: &str, value: &str) -> Result<Vec<Property>> {
    let wrong = || Error::Invalid(format!("unified resource {key}: {value:?} cannot be read"));
    let amount = || match value.trim() {
        "max" => Ok(INFINITY),
        number => number.parse().map_err(|_| wrong()),
    };
    let name = match key {
        "cpu.weight" => "CPUWeight",
        "memory.max" => "MemoryMax",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpuset.cpus" => return Ok(vec![("AllowedCPUs", Value::Bytes(mask(key, value)?))]),
        "cpuset.mems" => return Ok(vec![("AllowedMemoryNodes", Value::Bytes(mask(key, value)?))]),
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let limit = match words.next() {
                Some("max") => -1,
                other => other.and_then(|n| n.parse().ok()).ok_or_else(wrong)?,
            };
            let period =
                words.next().map(|n| n.parse::<u64>().ok().filter(|&n| n > 0).ok_or_else(wrong)).transpose()?;
            return Ok(quota(limit, period));
        }
        // The rest systemd neither knows nor touches.
        _ => return Ok(Vec::new()),
    };
    Ok(vec![(name, Value::U64(amount()?))])
}

/// `0-2,7` as a mask, the lowest number in the lowest bit of the first byte.
fn mask(key: &str, list: &str) -> Result<Vec<u8>> {
    let wrong = || Error::Invalid(format!("{key}: {list:?} is no list of processors or memory nodes such as 0-2,7"));
    let mut mask = Vec::new();
    for part in list.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&n| n < 8192).ok_or_else(wrong);
        let (from, to) = (number(from)?, number(to)?);
        if from > to {
            return Err(wrong());
        }
        for bit in from..=to {
            if mask.len() <= bit / 8 {
                mask.resize(bit / 8 + 1, 0);
            }
            mask[bit / 8] |= 1 << (bit % 8);
        }
    }
    Ok(mask)
}

/// Rules as systemd's list of what is allowed. It knows no denials: where the rules end in a state that no list describes,
/// systemd is told to leave devices alone, and the group's own program or files decide.
fn devices(rules: &[DeviceRule]) -> Vec<Property> {
    let alone = || vec![("DevicePolicy", Value::Text("auto".into())), ("DeviceAllow", Value::Pairs(Vec::new()))];
    let mut allowed: Option<Vec<&DeviceRule>> = None;
    for rule in rules {
        let all = rule.kind == DeviceKind::All || (rule.major.is_none() && rule.minor.is_some());
        match (&mut allowed, rule.allow, all) {
            (_, true, true) => allowed = None,
            (_, false, true) => allowed = Some(Vec::new()),
            (Some(list), true, false) => list.push(rule),
            (Some(list), false, false) => {
                let before = list.len();
                list.retain(|r| (r.kind, r.major, r.minor) != (rule.kind, rule.major, rule.minor));
                if list.len() == before {
                    return alone();
                }
            }
            (None, ..) => return alone(),
        }
    }
    let Some(list) = allowed else { return alone() };
    let pairs = list.into_iter().map(|rule| {
        let kind = if rule.kind == DeviceKind::Block { "block" } else { "char" };
        let path = match (rule.major, rule.minor) {
            (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
            (Some(major), None) => format!("{kind}-{major}"),
            (None, _) => format!("{kind}-*"),
        };
        (path, rule.access.text())
    });
    vec![("DevicePolicy", Value::Text("strict".into())), ("DeviceAllow", Value::Pairs(pairs.collect()))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Access;

    #[test]
    fn limits_become_properties_of_each_version() {
        let r = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(25_500),
            cpu_period: Some(100_000),
            memory_limit: Some(1 << 20),
            memory_swap: Some(3 << 20),
            pids_limit: Some(0),
            cpuset_cpus: Some("0-2,9".into()),
            ..Resources::default()
        };
        let want = [
            ("CPUWeight", Value::U64(100)),
            ("CPUQuotaPerSecUSec", Value::U64(260_000)),
            ("CPUQuotaPeriodUSec", Value::U64(100_000)),
            ("MemoryMax", Value::U64(1 << 20)),
            ("TasksMax", Value::U64(u64::MAX)),
            ("MemorySwapMax", Value::U64(2 << 20)),
            ("AllowedCPUs", Value::Bytes(vec![0b111, 0b10])),
        ];
        assert_eq!(of(&r, Version::V2).unwrap(), want);
        let names: Vec<_> = of(&r, Version::Hybrid).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["CPUShares", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "MemoryLimit", "TasksMax"]);
        assert_eq!(of(&Resources::default(), Version::V2).unwrap(), []);
        let unified = [("cpu.max", "max 50000"), ("memory.high", "4096"), ("hugetlb.2MB.max", "0")];
        let unified = unified.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let want = [
            ("CPUQuotaPerSecUSec", Value::U64(u64::MAX)),
            ("CPUQuotaPeriodUSec", Value::U64(50_000)),
            ("MemoryHigh", Value::U64(4096)),
        ];
        assert_eq!(of(&Resources { unified, ..Resources::default() }, Version::V2).unwrap(), want);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for cpus in ["x", "3-1", "1,,2", "99999"] {
            let error =
                of(&Resources { cpuset_cpus: Some(cpus.into()), ..Resources::default() }, Version::V2).unwrap_err();
            assert!(error.to_string().contains("cpuset.cpus"), "{cpus}: {error}");
        }
        let unified = [("memory.max".to_owned(), "lots".to_owned())].into();
        let error = of(&Resources { unified, ..Resources::default() }, Version::V2).unwrap_err().to_string();
        assert!(error.contains("memory.max"), "{error}");
    }

    #[test]
    fn device_rules_become_a_list_or_are_left_to_the_group() {
        let rule = |allow, kind, major, minor| DeviceRule { allow, kind, major, minor, access: Access::ALL };
        let none = rule(false, DeviceKind::All, None, None);
        let null = rule(true, DeviceKind::Char, Some(1), Some(3));
        let pts = rule(true, DeviceKind::Char, Some(136), None);
        let nodes = DeviceRule {
            access: Access { mknod: true, ..Access::default() },
            ..rule(true, DeviceKind::Block, None, None)
        };
        let pairs = [("/dev/char/1:3", "rwm"), ("char-136", "rwm"), ("block-*", "m")];
        let pairs = pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
        let want = vec![("DevicePolicy", Value::Text("strict".into())), ("DeviceAllow", Value::Pairs(pairs))];
        assert_eq!(devices(&[none, null, pts, nodes]), want);
        let auto = ("DevicePolicy", Value::Text("auto".into()));
        for open in [
            &[none, rule(true, DeviceKind::All, None, None)][..],
            &[rule(false, DeviceKind::Char, Some(1), Some(1))],
            &[],
        ] {
            assert_eq!(devices(open)[0], auto);
        }
    }
}
