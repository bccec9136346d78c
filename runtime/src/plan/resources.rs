//! From the configuration's limits to those of `gantry_cgroup`.

use gantry_cgroup::{BlockIo, HugepageLimit, Resources, Throttle};

use crate::error::Result;
use crate::spec::{self, ThrottleDevice};

/// The limits that a configuration asks for.
///
/// # Errors
/// A device rule is wrong.
pub(crate) fn plan(asked: Option<&spec::Resources>) -> Result<Resources> {
    let default = spec::Resources::default();
    let asked = asked.unwrap_or(&default);
    let cpu = asked.cpu.clone().unwrap_or_default();
    let memory = asked.memory.clone().unwrap_or_default();
    let network = asked.network.clone().unwrap_or_default();
    Ok(Resources {
        cpu_shares: cpu.shares,
        cpu_quota: cpu.quota,
        cpu_period: cpu.period,
        cpu_burst: cpu.burst,
        cpu_rt_runtime: cpu.realtime_runtime,
        cpu_rt_period: cpu.realtime_period,
        cpu_idle: cpu.idle,
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        memory_limit: memory.limit,
        memory_swap: memory.swap,
        memory_reservation: memory.reservation,
        memory_swappiness: memory.swappiness,
        memory_disable_oom_killer: memory.disable_oom_killer,
        memory_check_before_update: memory.check_before_update,
        pids_limit: asked.pids.as_ref().and_then(|p| p.limit),
        hugepages: asked
            .hugepage_limits
            .iter()
            .map(|h| HugepageLimit { page_size: h.page_size.clone(), limit: h.limit })
            .collect(),
        block_io: block_io(asked.block_io.as_ref()),
        net_class: network.class_id,
        net_priorities: network.priorities.into_iter().map(|p| (p.name, p.priority)).collect(),
        rdma: asked.rdma.iter().map(|(k, v)| (k.clone(), (v.hca_handles, v.hca_objects))).collect(),
        devices: Some(super::devices::rules(&asked.devices)?),
        unified: asked.unified.clone(),
    })
}

fn block_io(asked: Option<&spec::BlockIo>) -> BlockIo {
    let Some(b) = asked else { return BlockIo::default() };
    let throttles = |list: &[ThrottleDevice]| {
        list.iter().map(|t| Throttle { major: t.major, minor: t.minor, rate: t.rate }).collect()
    };
    BlockIo {
        weight: b.weight,
        weight_devices: b.weight_device.iter().filter_map(|w| Some((w.major, w.minor, w.weight?))).collect(),
        read_bps: throttles(&b.throttle_read_bps_device),
        write_bps: throttles(&b.throttle_write_bps_device),
        read_iops: throttles(&b.throttle_read_iops_device),
        write_iops: throttles(&b.throttle_write_iops_device),
    }
}
