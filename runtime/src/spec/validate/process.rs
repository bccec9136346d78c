//! The program's part of a configuration; `exec --process` takes the same.

use std::collections::BTreeSet;

use super::{absolute, environment, plain_text};
use crate::error::{Error, Result};
use crate::fail;
use crate::plan::process::{io_class_of, numbers_of, rlimit_of, scheduler_flags, scheduler_of};
use crate::spec::{Process, Scheduler, User};

/// Checks a program's configuration, which stands at `field`.
///
/// # Errors
/// The first wrong field, by name.
pub(crate) fn process(field: &str, p: &Process) -> Result<()> {
    if p.args.is_empty() {
        fail!("{field}.args: empty");
    }
    for (i, argument) in p.args.iter().enumerate() {
        plain_text(&format!("{field}.args[{i}]"), argument)?;
    }
    absolute(&format!("{field}.cwd"), &p.cwd)?;
    environment(&format!("{field}.env"), &p.env)?;
    user(&format!("{field}.user"), &p.user)?;
    let mut seen = BTreeSet::new();
    for (i, limit) in p.rlimits.iter().enumerate() {
        rlimit_of(&limit.kind).map_err(|e| Error::new(format!("{field}.rlimits[{i}].type: {e}")))?;
        if limit.soft > limit.hard {
            fail!("{field}.rlimits[{i}]: soft {} is above hard {}", limit.soft, limit.hard);
        }
        if !seen.insert(&limit.kind) {
            fail!("{field}.rlimits[{i}].type: {} is there twice", limit.kind);
        }
    }
    for (name, label) in [("apparmorProfile", &p.apparmor_profile), ("selinuxLabel", &p.selinux_label)] {
        if let Some(label) = label {
            plain_text(&format!("{field}.{name}"), label)?;
        }
    }
    if p.oom_score_adj.is_some_and(|o| !(-1000..=1000).contains(&o)) {
        fail!("{field}.oomScoreAdj: out of range -1000 to 1000");
    }
    if let Some(s) = &p.scheduler {
        scheduler(&format!("{field}.scheduler"), s)?;
    }
    if let Some(affinity) = &p.exec_cpu_affinity {
        for (name, list) in [("initial", &affinity.initial), ("final", &affinity.last)] {
            if numbers_of(list).is_none() {
                fail!("{field}.execCPUAffinity.{name}: {list:?} is no list like 0-3,7");
            }
        }
    }
    if let Some(io) = &p.io_priority {
        io_class_of(&io.class)?;
        if !(0..=7).contains(&io.priority) {
            fail!("{field}.ioPriority.priority: {} is out of range 0 to 7", io.priority);
        }
    }
    Ok(())
}

fn user(field: &str, u: &User) -> Result<()> {
    // The highest number means "leave it as it is" to the kernel: a program would keep the runtime's id.
    for (name, id) in [("uid", u.uid), ("gid", u.gid)] {
        if id == u32::MAX {
            fail!("{field}.{name}: {id} is no id");
        }
    }
    if let Some(i) = u.additional_gids.iter().position(|g| *g == u32::MAX) {
        fail!("{field}.additionalGids[{i}]: {} is no id", u32::MAX);
    }
    if u.umask.is_some_and(|m| m > 0o777) {
        fail!("{field}.umask: out of range 0 to 0777");
    }
    Ok(())
}

/// Each policy has fields of its own; a field of another policy would do nothing, which cannot be what was meant.
fn scheduler(field: &str, s: &Scheduler) -> Result<()> {
    scheduler_of(&s.policy)?;
    scheduler_flags(&s.flags)?;
    let realtime = matches!(s.policy.as_str(), "SCHED_FIFO" | "SCHED_RR");
    if !(-20..=19).contains(&s.nice) {
        fail!("{field}.nice: {} is out of range -20 to 19", s.nice);
    }
    if realtime && !(1..=99).contains(&s.priority) {
        fail!("{field}.priority: {} is out of range 1 to 99", s.priority);
    }
    if !realtime && s.priority != 0 {
        fail!("{field}.priority: only for SCHED_FIFO and SCHED_RR");
    }
    if s.policy != "SCHED_DEADLINE" && (s.runtime, s.deadline, s.period) != (0, 0, 0) {
        fail!("{field}: runtime, deadline and period are only for SCHED_DEADLINE");
    }
    Ok(())
}
