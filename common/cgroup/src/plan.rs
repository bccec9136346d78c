//! From limits to the files and texts of each cgroup version. Pure.

use crate::convert::shares_to_weight;
use crate::error::{Error, Result};
use crate::resources::{BlockIo, Resources, Throttle};

/// One text for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    /// The controller that the file belongs to.
    pub(crate) controller: &'static str,
    /// The file's name.
    pub(crate) file: String,
    /// What to write.
    pub(crate) value: String,
}

fn write(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Write {
    Write { controller, file: file.into(), value: value.to_string() }
}

/// What version 1 wants, in order. Devices and the memory pair are the caller's.
pub(crate) fn v1(r: &Resources) -> Vec<Write> {
    let mut w = Vec::new();
    let mut add = |controller, file: &str, value: Option<String>| {
        if let Some(value) = value {
            w.push(write(controller, file, value));
        }
    };
    add("cpu", "cpu.shares", r.cpu_shares.filter(|&s| s != 0).map(|s| s.to_string()));
    add("cpu", "cpu.cfs_period_us", r.cpu_period.filter(|&p| p != 0).map(|p| p.to_string()));
    add("cpu", "cpu.cfs_quota_us", r.cpu_quota.filter(|&q| q != 0).map(|q| q.to_string()));
    add("cpu", "cpu.cfs_burst_us", r.cpu_burst.map(|b| b.to_string()));
    add("cpu", "cpu.rt_period_us", r.cpu_rt_period.filter(|&p| p != 0).map(|p| p.to_string()));
    add("cpu", "cpu.rt_runtime_us", r.cpu_rt_runtime.filter(|&p| p != 0).map(|p| p.to_string()));
    add("cpu", "cpu.idle", r.cpu_idle.map(|i| i.to_string()));
    add("cpuset", "cpuset.cpus", r.cpuset_cpus.clone().filter(|s| !s.is_empty()));
    add("cpuset", "cpuset.mems", r.cpuset_mems.clone().filter(|s| !s.is_empty()));
    add("memory", "memory.soft_limit_in_bytes", r.memory_reservation.filter(|&m| m != 0).map(|m| m.to_string()));
    add("memory", "memory.swappiness", r.memory_swappiness.map(|s| s.to_string()));
    add("memory", "memory.oom_control", r.memory_disable_oom_killer.filter(|&d| d).map(|_| "1".to_owned()));
    add("pids", "pids.max", r.pids_limit.map(|p| if p > 0 { p.to_string() } else { "max".to_owned() }));
    for page in &r.hugepages {
        add("hugetlb", &format!("hugetlb.{}.limit_in_bytes", page.page_size), Some(page.limit.to_string()));
    }
    add("net_cls", "net_cls.classid", r.net_class.map(|c| c.to_string()));
    for (interface, priority) in &r.net_priorities {
        add("net_prio", "net_prio.ifpriomap", Some(format!("{interface} {priority}")));
    }
    w.extend(rdma(r));
    w.extend(v1_block_io(&r.block_io));
    w
}

fn v1_block_io(b: &BlockIo) -> Vec<Write> {
    let mut w = Vec::new();
    if let Some(weight) = b.weight.filter(|&x| x != 0) {
        w.push(write("blkio", "blkio.bfq.weight", weight));
    }
    for (major, minor, weight) in &b.weight_devices {
        w.push(write("blkio", "blkio.bfq.weight_device", format!("{major}:{minor} {weight}")));
    }
    let mut throttles = |file: &str, list: &[Throttle]| {
        for t in list {
            w.push(write("blkio", file, format!("{}:{} {}", t.major, t.minor, t.rate)));
        }
    };
    throttles("blkio.throttle.read_bps_device", &b.read_bps);
    throttles("blkio.throttle.write_bps_device", &b.write_bps);
    throttles("blkio.throttle.read_iops_device", &b.read_iops);
    throttles("blkio.throttle.write_iops_device", &b.write_iops);
    w
}

/// The version 1 memory limit and memory-and-swap limit, which must be written in the right order.
pub(crate) fn v1_memory(r: &Resources) -> (Option<String>, Option<String>) {
    let text = |m: i64| m.to_string();
    // Without a limit on swap named, lifting the memory limit lifts both, or the kernel would refuse.
    let swap = match (r.memory_limit, r.memory_swap.filter(|&s| s != 0)) {
        (Some(-1), None) => Some(-1),
        (_, swap) => swap,
    };
    (r.memory_limit.filter(|&m| m != 0).map(text), swap.map(text))
}

/// What version 2 wants, in order, `unified` last.
///
/// # Errors
/// The swap limit is below the memory limit, or a unified key is no file name.
pub(crate) fn v2(r: &Resources) -> Result<Vec<Write>> {
    let mut w = Vec::new();
    let limit = |m: i64| if m < 0 { "max".to_owned() } else { m.to_string() };
    if let Some(shares) = r.cpu_shares.filter(|&s| s != 0) {
        w.push(write("cpu", "cpu.weight", shares_to_weight(shares)));
    }
    if r.cpu_quota.is_some_and(|q| q != 0) || r.cpu_period.is_some_and(|p| p != 0) {
        let period = r.cpu_period.filter(|&p| p != 0).unwrap_or(100_000);
        let quota = r.cpu_quota.filter(|&q| q > 0).map_or_else(|| "max".to_owned(), |q| q.to_string());
        w.push(write("cpu", "cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = r.cpu_burst {
        w.push(write("cpu", "cpu.max.burst", burst));
    }
    if let Some(idle) = r.cpu_idle {
        w.push(write("cpu", "cpu.idle", idle));
    }
    if let Some(cpus) = r.cpuset_cpus.as_ref().filter(|s| !s.is_empty()) {
        w.push(write("cpuset", "cpuset.cpus", cpus));
    }
    if let Some(mems) = r.cpuset_mems.as_ref().filter(|s| !s.is_empty()) {
        w.push(write("cpuset", "cpuset.mems", mems));
    }
    w.extend(v2_swap(r)?.map(|swap| write("memory", "memory.swap.max", swap)));
    if let Some(m) = r.memory_limit.filter(|&m| m != 0) {
        w.push(write("memory", "memory.max", limit(m)));
    }
    if let Some(m) = r.memory_reservation.filter(|&m| m != 0) {
        w.push(write("memory", "memory.low", limit(m)));
    }
    if let Some(p) = r.pids_limit {
        w.push(write("pids", "pids.max", if p > 0 { p.to_string() } else { "max".to_owned() }));
    }
    for page in &r.hugepages {
        w.push(write("hugetlb", format!("hugetlb.{}.max", page.page_size), page.limit));
    }
    w.extend(rdma(r));
    w.extend(v2_block_io(&r.block_io));
    for (file, value) in &r.unified {
        let controller = file.split('.').next().unwrap_or_default();
        if file.contains('/') || file == ".." || !file.contains('.') {
            return Err(Error::Invalid(format!("unified resource {file:?} is no cgroup file name")));
        }
        let known = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb", "rdma", "misc", "cgroup"];
        let controller = known.into_iter().find(|k| *k == controller).unwrap_or("cgroup");
        w.push(write(controller, file, value));
    }
    Ok(w)
}

/// Version 2 limits swap alone where the specification limits memory and swap together.
fn v2_swap(r: &Resources) -> Result<Option<String>> {
    let Some(both) = r.memory_swap.filter(|&s| s != 0) else {
        return Ok(r.memory_limit.filter(|&m| m == -1).map(|_| "max".to_owned()));
    };
    match r.memory_limit {
        _ if both < 0 => Ok(Some("max".to_owned())),
        Some(memory) if memory > 0 && both >= memory => Ok(Some((both - memory).to_string())),
        Some(memory) if memory > 0 => {
            Err(Error::Invalid(format!("memory+swap limit {both} is below the memory limit {memory}")))
        }
        _ => Err(Error::Invalid("a memory+swap limit needs a memory limit".to_owned())),
    }
}

fn v2_block_io(b: &BlockIo) -> Vec<Write> {
    let mut w = Vec::new();
    if let Some(weight) = b.weight.filter(|&x| x != 0) {
        w.push(write("io", "io.bfq.weight", weight));
    }
    for (major, minor, weight) in &b.weight_devices {
        w.push(write("io", "io.bfq.weight", format!("{major}:{minor} {weight}")));
    }
    let mut throttles = |key: &str, list: &[Throttle]| {
        for t in list {
            let rate = if t.rate == 0 { "max".to_owned() } else { t.rate.to_string() };
            w.push(write("io", "io.max", format!("{}:{} {key}={rate}", t.major, t.minor)));
        }
    };
    throttles("rbps", &b.read_bps);
    throttles("wbps", &b.write_bps);
    throttles("riops", &b.read_iops);
    throttles("wiops", &b.write_iops);
    w
}

fn rdma(r: &Resources) -> Vec<Write> {
    let text = |n: Option<u32>| n.map_or_else(|| "max".to_owned(), |n| n.to_string());
    r.rdma
        .iter()
        .map(|(device, (handles, objects))| {
            write("rdma", "rdma.max", format!("{device} hca_handle={} hca_object={}", text(*handles), text(*objects)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(writes: Vec<Write>) -> Vec<String> {
        writes.into_iter().map(|w| format!("{}={}", w.file, w.value)).collect()
    }

    #[test]
    fn limits_become_the_files_of_each_version() {
        let r = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(25_000),
            cpu_period: Some(100_000),
            memory_limit: Some(1 << 20),
            memory_swap: Some(3 << 20),
            pids_limit: Some(0),
            ..Resources::default()
        };
        let want =
            ["cpu.weight=100", "cpu.max=25000 100000", "memory.swap.max=2097152", "memory.max=1048576", "pids.max=max"];
        assert_eq!(texts(v2(&r).unwrap()), want);
        let want = ["cpu.shares=1024", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=25000", "pids.max=max"];
        assert_eq!(texts(v1(&r)), want);
        assert_eq!(v1_memory(&r), (Some("1048576".to_owned()), Some("3145728".to_owned())));
    }

    #[test]
    fn nothing_asked_writes_nothing() {
        assert_eq!(v1(&Resources::default()), []);
        assert_eq!(v2(&Resources::default()).unwrap(), []);
        assert_eq!(v1_memory(&Resources::default()), (None, None));
    }

    #[test]
    fn limits_that_contradict_are_errors() {
        let r = Resources { memory_limit: Some(10), memory_swap: Some(5), ..Resources::default() };
        assert!(v2(&r).unwrap_err().to_string().contains("below the memory limit"));
        let unified = [("../x.y".to_owned(), "1".to_owned())].into();
        let r = Resources { unified, ..Resources::default() };
        assert!(v2(&r).is_err());
    }
}
