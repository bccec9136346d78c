//! `update`: change the limits of a container.

use std::io::Read;

use super::Globals;
use super::args::Words;
use crate::cgroups;
use crate::error::{Context, Result};
use crate::fail;
use crate::plan::{rdt, resources};
use crate::rdt::Group;
use crate::spec::{BlockIo, Cpu, Memory, Pids, Resources, validate_resources};

const OPTIONS: [&str; 20] = [
    "resources,r=",
    "cpu-period=",
    "cpu-quota=",
    "cpu-burst=",
    "cpu-share=",
    "cpu-rt-period=",
    "cpu-rt-runtime=",
    "cpuset-cpus=",
    "cpuset-mems=",
    "cpu-idle=",
    "memory=",
    "memory-reservation=",
    "memory-swap=",
    "pids-limit=",
    "blkio-weight=",
    "l3-cache-schema=",
    "mem-bw-schema=",
    "kernel-memory=",
    "kernel-memory-tcp=",
    "help,h",
];

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &OPTIONS)?;
    if words.is_set("help") {
        say!(
            "usage: gantry-run update [options] ID\n  --resources FILE|-  limits as the specification writes them\n  options: {}",
            OPTIONS.join(" ")
        );
        return Ok(0);
    }
    let mut container = globals.store.open(words.id()?)?;
    if !container.is_alive() {
        fail!("container not running");
    }
    let asked = asked(&words)?;
    let Some(group) = cgroups::find(&container.state.place.cgroup)? else { fail!("this host has no cgroups") };
    let shares = shares(&words, container.state.rdt.as_ref())?;
    let mut limits = resources::plan(Some(&asked))?;
    // Devices change only when they are named: the rules of `create` stay.
    if asked.devices.is_empty() {
        limits.devices = None;
    }
    cgroups::update(&group, &container.state.place, &limits)?;
    if let Some(group) = &container.state.rdt {
        group.write(&shares)?;
    }
    let old = container.state.resources.take().unwrap_or_default();
    container.state.resources = Some(merged(old, asked));
    container.save().map(|()| 0)
}

/// The limits that hold now: the old ones, with the new ones field by field in their place.
fn merged(old: Resources, new: Resources) -> Resources {
    fn both<T: Default>(old: Option<T>, new: Option<T>, merge: fn(T, T) -> T) -> Option<T> {
        match (old, new) {
            (Some(old), Some(new)) => Some(merge(old, new)),
            (old, new) => new.or(old),
        }
    }
    fn list<T>(old: Vec<T>, new: Vec<T>) -> Vec<T> {
        if new.is_empty() { old } else { new }
    }
    let memory = |old: Memory, new: Memory| Memory {
        limit: new.limit.or(old.limit),
        reservation: new.reservation.or(old.reservation),
        swap: new.swap.or(old.swap),
        swappiness: new.swappiness.or(old.swappiness),
        disable_oom_killer: new.disable_oom_killer.or(old.disable_oom_killer),
        check_before_update: new.check_before_update.or(old.check_before_update),
    };
    let cpu = |old: Cpu, new: Cpu| Cpu {
        shares: new.shares.or(old.shares),
        quota: new.quota.or(old.quota),
        burst: new.burst.or(old.burst),
        period: new.period.or(old.period),
        realtime_runtime: new.realtime_runtime.or(old.realtime_runtime),
        realtime_period: new.realtime_period.or(old.realtime_period),
        cpus: new.cpus.or(old.cpus),
        mems: new.mems.or(old.mems),
        idle: new.idle.or(old.idle),
    };
    let block_io = |old: BlockIo, new: BlockIo| BlockIo {
        weight: new.weight.or(old.weight),
        weight_device: list(old.weight_device, new.weight_device),
        throttle_read_bps_device: list(old.throttle_read_bps_device, new.throttle_read_bps_device),
        throttle_write_bps_device: list(old.throttle_write_bps_device, new.throttle_write_bps_device),
        throttle_read_iops_device: list(old.throttle_read_iops_device, new.throttle_read_iops_device),
        throttle_write_iops_device: list(old.throttle_write_iops_device, new.throttle_write_iops_device),
    };
    Resources {
        devices: list(old.devices, new.devices),
        memory: both(old.memory, new.memory, memory),
        cpu: both(old.cpu, new.cpu, cpu),
        pids: new.pids.or(old.pids),
        block_io: both(old.block_io, new.block_io, block_io),
        hugepage_limits: list(old.hugepage_limits, new.hugepage_limits),
        network: new.network.or(old.network),
        rdma: old.rdma.into_iter().chain(new.rdma).collect(),
        unified: old.unified.into_iter().chain(new.unified).collect(),
    }
}

/// Lines for the container's group of resctrl, which it must have from its start.
fn shares(words: &Words, group: Option<&Group>) -> Result<Vec<String>> {
    let (l3, bandwidth) = (words.value("l3-cache-schema"), words.value("mem-bw-schema"));
    let option = if l3.is_some() { "--l3-cache-schema" } else { "--mem-bw-schema" };
    let lines = rdt::lines(l3, bandwidth);
    if bandwidth.is_some_and(|line| !line.starts_with("MB:")) {
        fail!("--mem-bw-schema: {:?} is no line that starts with MB:", bandwidth.unwrap_or_default());
    }
    for line in &lines {
        rdt::line(line).context(|| option.to_owned())?;
    }
    if !lines.is_empty() && group.is_none() {
        fail!("{option}: the container was made without linux.intelRdt");
    }
    Ok(lines)
}

fn asked(words: &Words) -> Result<Resources> {
    if let Some(path) = words.value("resources") {
        let mut text = String::new();
        if path == "-" {
            std::io::stdin().read_to_string(&mut text).context(|| "--resources: read standard input".to_owned())?;
        } else {
            text = std::fs::read_to_string(path).context(|| format!("--resources: read {path}"))?;
        }
        let asked: Resources = crate::spec::parse(text.as_bytes()).context(|| format!("--resources {path}"))?;
        return validate_resources("resources", &asked).map(|()| asked).context(|| format!("--resources {path}"));
    }
    let memory = Memory {
        limit: size(words, "memory")?,
        reservation: size(words, "memory-reservation")?,
        swap: size(words, "memory-swap")?,
        ..Memory::default()
    };
    let cpu = Cpu {
        shares: words.number("cpu-share")?,
        quota: words.number("cpu-quota")?,
        burst: words.number("cpu-burst")?,
        period: words.number("cpu-period")?,
        realtime_runtime: words.number("cpu-rt-runtime")?,
        realtime_period: words.number("cpu-rt-period")?,
        cpus: words.value("cpuset-cpus").map(str::to_owned),
        mems: words.value("cpuset-mems").map(str::to_owned),
        idle: words.number("cpu-idle")?,
    };
    let weight = words.number("blkio-weight")?;
    let pids = words.number("pids-limit")?;
    Ok(Resources {
        memory: (memory != Memory::default()).then_some(memory),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        pids: pids.map(|limit| Pids { limit: Some(limit) }),
        block_io: weight.map(|w| BlockIo { weight: Some(w), ..BlockIo::default() }),
        ..Resources::default()
    })
}

/// A number of bytes, with a unit of 1024 (`k`, `m`, `g`, `t`, with or without `b` or `ib`) or none; -1 for no limit.
fn size(words: &Words, option: &str) -> Result<Option<i64>> {
    words.value(option).map(|text| bytes(text).context(|| format!("--{option}"))).transpose()
}

fn bytes(text: &str) -> Result<i64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => fail!("{text:?}: unknown unit {unit:?}"),
    };
    match number.trim().parse::<i64>() {
        Ok(-1) if shift == 0 => Ok(-1),
        Ok(n) if n >= 0 && n <= i64::MAX >> shift => Ok(n << shift),
        _ => fail!("{text:?} is not a number of bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_have_units() {
        for (text, want) in [("-1", -1), ("0", 0), ("64m", 64 << 20), ("1GiB", 1 << 30), ("5kb", 5120)] {
            assert_eq!(bytes(text).unwrap(), want, "{text}");
        }
        for wrong in ["", "m", "-2", "-1m", "5x", "9999999999t"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn new_limits_replace_old_ones_field_by_field() {
        let memory = |limit, swap| Resources {
            memory: Some(Memory { limit, swap, ..Memory::default() }),
            ..Resources::default()
        };
        let all = merged(memory(Some(1), Some(2)), memory(Some(3), None));
        assert_eq!(all, memory(Some(3), Some(2)));
        assert_eq!(merged(memory(Some(1), None), Resources::default()), memory(Some(1), None));
    }
}
