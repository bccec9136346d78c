//! `update`: change the limits of a container.

use std::io::Read;

use super::Globals;
use super::args::Words;
use crate::cgroups;
use crate::error::{Context, Result};
use crate::fail;
use crate::plan::resources;
use crate::spec::{BlockIo, Cpu, Memory, Pids, Resources};

const OPTIONS: [&str; 16] = [
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
    "help,h",
];

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &OPTIONS)?;
    if words.is_set("help") {
        println!(
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
    let Some(group) = cgroups::find(&container.state.cgroup)? else { fail!("this host has no cgroups") };
    let mut limits = resources::plan(Some(&asked))?;
    // Devices change only when they are named: the rules of `create` stay.
    if asked.devices.is_empty() {
        limits.devices = None;
    }
    group.apply(&limits).context(|| "update".to_owned())?;
    let linux = container.state.spec.linux.get_or_insert_with(Default::default);
    let kept = linux.resources.get_or_insert_with(Default::default);
    for (new, old) in [(asked.memory.is_some(), 0), (asked.cpu.is_some(), 1), (asked.pids.is_some(), 2)] {
        match (new, old) {
            (true, 0) => kept.memory.clone_from(&asked.memory),
            (true, 1) => kept.cpu.clone_from(&asked.cpu),
            (true, 2) => kept.pids.clone_from(&asked.pids),
            _ => {}
        }
    }
    container.save().map(|()| 0)
}

fn asked(words: &Words) -> Result<Resources> {
    if let Some(path) = words.value("resources") {
        let mut text = String::new();
        if path == "-" {
            std::io::stdin().read_to_string(&mut text).context(|| "--resources: read standard input".to_owned())?;
        } else {
            text = std::fs::read_to_string(path).context(|| format!("--resources: read {path}"))?;
        }
        return serde_json::from_str(&text).context(|| format!("--resources {path}"));
    }
    let memory = Memory {
        limit: words.number("memory")?,
        reservation: words.number("memory-reservation")?,
        swap: words.number("memory-swap")?,
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
