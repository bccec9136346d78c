//! Statistics from cgroups.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use gantry_cgroup::{Pressure, Waited};
use proto::cri;

use crate::daemon::{Container, Daemon, Sandbox, lock, now};

/// Spans shorter than this say little about how much of the processors is used.
const SHORTEST: i64 = 1_000_000_000;

/// How much of the processors is used, between two looks at what was used so far.
#[derive(Debug)]
pub struct Rate {
    at: i64,
    used: u64,
    nano_cores: Option<u64>,
}

/// Nanoseconds on a clock that nobody sets.
fn ticks() -> i64 {
    static BEGUN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    i64::try_from(BEGUN.elapsed().as_nanos()).unwrap_or(i64::MAX)
}

impl Rate {
    /// Of what was made at this time (nanoseconds since the epoch).
    pub fn of(created_at: i64) -> Self {
        Self::since(ticks() - (now() - created_at).max(0))
    }

    /// Of what has used nothing at this time (see [`ticks`]).
    fn since(at: i64) -> Self {
        Self { at, used: 0, nano_cores: None }
    }

    /// Takes what was used so far, answers the use since the last look that was long enough ago.
    fn sample(&mut self, at: i64, used: u64) -> Option<u64> {
        let span = at - self.at;
        if span >= SHORTEST {
            let more = u128::from(used.saturating_sub(self.used)) * 1_000_000_000;
            let rate = more.checked_div(u128::from(span.unsigned_abs())).and_then(|n| u64::try_from(n).ok());
            *self = Self { at, used, nano_cores: rate };
        } else if span < 0 {
            (self.at, self.used) = (at, used);
        }
        self.nano_cores
    }
}

/// A walk through a writable layer is good for so long, or for as many times its own time as [`WORTH`].
const FRESH: Duration = Duration::from_secs(10);
const WORTH: u32 = 20;

/// What a writable layer held.
#[derive(Debug)]
pub struct Layer {
    usage: cri_images::Usage,
    walked: Instant,
    took: Duration,
    /// Nanoseconds since the epoch.
    at: i64,
}

impl Container {
    /// What its writable layer holds, and when that was found out. Blocking: walks it now and then.
    pub(crate) fn layer(&self, daemon: &Daemon) -> (cri_images::Usage, i64) {
        // Held while walking: who asks at the same time gets the same answer.
        let mut known = lock(&self.layer);
        if let Some(layer) = known.as_ref().filter(|l| l.walked.elapsed() < FRESH.max(l.took * WORTH)) {
            return (layer.usage, layer.at);
        }
        let (begun, at) = (Instant::now(), now());
        let usage = daemon.images.snapshot_usage(&self.id).unwrap_or_default();
        *known = Some(Layer { usage, walked: Instant::now(), took: begun.elapsed(), at });
        (usage, at)
    }
}

fn number(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

fn psi(p: Option<Pressure>) -> Option<cri::PsiStats> {
    let data = |w: Waited| cri::PsiData {
        total: w.total_us * 1000,
        avg10: w.averages[0],
        avg60: w.averages[1],
        avg300: w.averages[2],
    };
    p.map(|p| cri::PsiStats { full: Some(data(p.full)), some: Some(data(p.some)) })
}

/// What a cgroup uses.
struct Usage {
    cpu: cri::CpuUsage,
    memory: cri::MemoryUsage,
    swap: cri::SwapUsage,
    io: cri::IoUsage,
    processes: u64,
}

fn usage(daemon: &Daemon, path: &str, rate: &Mutex<Rate>) -> Usage {
    let timestamp = now();
    let cgroup = daemon.host.cgroup(path).ok();
    let s = cgroup.as_ref().map(|c| c.stats()).unwrap_or_default();
    let pressure = |resource: &str| psi(cgroup.as_ref().and_then(|c| c.pressure(resource)));
    let available = s.swap_limit.and_then(|l| number(l.saturating_sub(s.swap)));
    Usage {
        cpu: cri::CpuUsage {
            timestamp,
            usage_core_nano_seconds: number(s.cpu_ns),
            usage_nano_cores: lock(rate).sample(ticks(), s.cpu_ns).and_then(number),
            psi: pressure("cpu"),
        },
        memory: cri::MemoryUsage {
            timestamp,
            working_set_bytes: number(s.working_set),
            available_bytes: s.memory_limit.and_then(|l| number(l.saturating_sub(s.working_set))),
            usage_bytes: number(s.memory),
            rss_bytes: number(s.rss),
            page_faults: number(s.page_faults),
            major_page_faults: number(s.major_page_faults),
            psi: pressure("memory"),
        },
        swap: cri::SwapUsage { timestamp, swap_available_bytes: available, swap_usage_bytes: number(s.swap) },
        io: cri::IoUsage { timestamp, psi: pressure("io") },
        processes: s.pids,
    }
}

/// Of a container. Blocking: may walk its writable layer.
pub fn container(daemon: &Daemon, container: &Container) -> cri::ContainerStats {
    let record = container.record();
    let used = usage(daemon, &record.cgroup, &container.rate);
    let (layer, measured_at) = container.layer(daemon);
    let config = record.config.0;
    let mountpoint = daemon.images.fs_usage().mountpoint.display().to_string();
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: record.id,
            metadata: config.metadata,
            labels: config.labels,
            annotations: config.annotations,
        }),
        cpu: Some(used.cpu),
        memory: Some(used.memory),
        writable_layer: Some(cri::FilesystemUsage {
            timestamp: measured_at,
            fs_id: Some(cri::FilesystemIdentifier { mountpoint }),
            used_bytes: number(layer.bytes),
            inodes_used: number(layer.inodes),
        }),
        swap: Some(used.swap),
        io: Some(used.io),
    }
}

/// Of a sandbox with its containers. Blocking.
pub fn sandbox(daemon: &Daemon, sandbox: &Sandbox) -> cri::PodSandboxStats {
    let record = sandbox.record();
    let parent = crate::sandbox::cgroup(daemon, &record).unwrap_or_default();
    let config = record.config.0;
    let used = usage(daemon, &parent, &sandbox.rate);
    let running = |c: &std::sync::Arc<Container>| c.state() == cri::ContainerState::ContainerRunning;
    let containers = daemon.containers_of(&record.id).into_iter().filter(running);
    let interfaces: Vec<cri::NetworkInterfaceUsage> =
        interfaces(daemon, &record.id).into_iter().map(Into::into).collect();
    let linux = cri::LinuxPodSandboxStats {
        cpu: Some(used.cpu),
        memory: Some(used.memory),
        network: Some(cri::NetworkUsage {
            timestamp: now(),
            default_interface: interfaces.iter().find(|i| i.name == "eth0").cloned(),
            interfaces,
        }),
        process: Some(cri::ProcessUsage { timestamp: now(), process_count: number(used.processes) }),
        containers: containers.map(|c| container(daemon, &c)).collect(),
        io: Some(used.io),
    };
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: record.id,
            metadata: config.metadata,
            labels: config.labels,
            annotations: config.annotations,
        }),
        linux: Some(linux),
        windows: None,
    }
}

/// What one direction of an interface carried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

/// An interface's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) received: Traffic,
    pub(crate) sent: Traffic,
}

impl From<Interface> for cri::NetworkInterfaceUsage {
    fn from(i: Interface) -> Self {
        Self {
            name: i.name,
            rx_bytes: number(i.received.bytes),
            rx_errors: number(i.received.errors),
            tx_bytes: number(i.sent.bytes),
            tx_errors: number(i.sent.errors),
        }
    }
}

/// Counters of the pod's interfaces but the loopback.
pub(crate) fn interfaces(daemon: &Daemon, sandbox: &str) -> Vec<Interface> {
    let path = daemon.sandbox_dir(sandbox).join("ns/net");
    if !gantry_sys::namespaces::is_pinned(&path) {
        return Vec::new();
    }
    let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
    parse_net_dev(&gantry_sys::namespaces::within_network(&path, read).unwrap_or_default())
}

fn parse_net_dev(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let n: Vec<u64> = rest.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let way = |at: usize| Traffic { bytes: n[at], packets: n[at + 1], errors: n[at + 2], dropped: n[at + 3] };
        let all = n.len() >= 12 && name.trim() != "lo";
        all.then(|| Interface { name: name.trim().to_owned(), received: way(0), sent: way(8) })
    };
    text.lines().filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_come_from_the_right_columns() {
        let text = "Inter-| Receive\n face |bytes\n  lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let received = Traffic { bytes: 1, packets: 2, errors: 3, dropped: 4 };
        let sent = Traffic { bytes: 5, packets: 6, errors: 7, dropped: 8 };
        assert_eq!(parse_net_dev(text), [Interface { name: "eth0".into(), received, sent }]);
    }

    #[test]
    fn the_use_of_processors_is_counted_over_a_second_or_more() {
        let second = 1_000_000_000;
        let mut rate = Rate::since(10 * second);
        assert_eq!(rate.sample(10 * second, 0), None, "nothing can be said yet");
        assert_eq!(rate.sample(12 * second, 1_000_000_000), Some(500_000_000));
        assert_eq!(rate.sample(12 * second + 1, 2_000_000_000), Some(500_000_000), "too soon for another");
        assert_eq!(rate.sample(13 * second, 3_000_000_000), Some(2_000_000_000));
        assert_eq!(rate.sample(14 * second, 1_000_000), Some(0), "a new cgroup begins at nothing");
        assert_eq!(rate.sample(2 * second, 2_000_000), Some(0), "the clock was set back");
        assert_eq!(rate.sample(4 * second, 4_000_000), Some(1_000_000));
    }
}
