//! Which pod goes first (pure). Source of the order: upstream's pkg/kubelet/eviction/helpers.go.

use std::cmp::Ordering;

use super::signal::Signal;

/// Bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    /// Bytes.
    pub(crate) bytes: i64,
    /// Inodes.
    pub(crate) inodes: i64,
}

/// What one pod takes. What could not be measured is `None`; such a pod goes before those that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// The pod's uid.
    pub(crate) uid: String,
    /// Its priority.
    pub(crate) priority: i32,
    /// Its working set.
    pub(crate) memory: Option<i64>,
    /// The memory that it requested.
    pub(crate) memory_request: i64,
    /// Its processes.
    pub(crate) processes: Option<i64>,
    /// Writable layers of its containers.
    pub(crate) layers: Option<Space>,
    /// Its logs.
    pub(crate) logs: Space,
    /// Its volumes on the node's disk.
    pub(crate) volumes: Space,
    /// The local storage that it requested.
    pub(crate) storage_request: i64,
}

/// How file systems are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disks {
    /// Images are not where volumes and logs are.
    pub(crate) images_apart: bool,
    /// Writable layers are where volumes and logs are, although images are apart.
    pub(crate) split: bool,
}

/// Which of a pod's files are on the file system of a signal: layers, logs and volumes.
fn counted(signal: Signal, disks: Disks) -> (bool, bool) {
    let nodefs = matches!(signal, Signal::NodeFs | Signal::NodeFsInodes);
    let imagefs = matches!(signal, Signal::ImageFs | Signal::ImageFsInodes);
    match (disks.images_apart, disks.split) {
        (false, _) => (true, true),
        (true, false) => (!nodefs, nodefs),
        // Only images are apart: no pod's files are with them, yet its end makes images removable.
        (true, true) => (true, !imagefs),
    }
}

fn taken(of: &Use, signal: Signal, disks: Disks) -> Option<i64> {
    let (layers, others) = counted(signal, disks);
    let pick = |s: Space| if signal.inodes() { s.inodes } else { s.bytes };
    let mut sum = 0;
    if layers {
        sum += pick(of.layers?);
    }
    if others {
        sum += pick(of.logs) + pick(of.volumes);
    }
    Some(sum)
}

/// More than was asked for comes first, and what is not known before everything.
fn more(a: Option<i64>, b: Option<i64>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a), Some(b)) => b.cmp(&a),
    }
}

/// Orders pods by who is to be ended first for the sake of `signal`.
pub(crate) fn rank(pods: &mut [Use], signal: Signal, disks: Disks) {
    let over = |used: Option<i64>, request: i64| used.map(|u| i64::from(u > request));
    pods.sort_by(|a, b| match signal {
        Signal::Memory | Signal::AllocatableMemory => {
            let above = |p: &Use| p.memory.map(|m| m - p.memory_request);
            more(over(a.memory, a.memory_request), over(b.memory, b.memory_request))
                .then(a.priority.cmp(&b.priority))
                .then_with(|| more(above(a), above(b)))
        }
        Signal::Pid => a.priority.cmp(&b.priority).then_with(|| more(a.processes, b.processes)),
        _ => {
            let request = |p: &Use| if signal.inodes() { 0 } else { p.storage_request };
            let (used_a, used_b) = (taken(a, signal, disks), taken(b, signal, disks));
            more(over(used_a, request(a)), over(used_b, request(b)))
                .then(a.priority.cmp(&b.priority))
                .then_with(|| more(used_a.map(|u| u - request(a)), used_b.map(|u| u - request(b))))
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, priority: i32, memory: i64, request: i64) -> Use {
        Use {
            uid: uid.into(),
            priority,
            memory: (memory >= 0).then_some(memory),
            memory_request: request,
            layers: Some(Space::default()),
            ..Default::default()
        }
    }

    fn order(mut pods: Vec<Use>, signal: Signal, disks: Disks) -> String {
        rank(&mut pods, signal, disks);
        pods.iter().map(|p| p.uid.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn memory_goes_by_excess_then_priority_then_size_of_the_excess() {
        for (pods, want) in [
            (vec![pod("within", 0, 50, 100), pod("over", 10, 150, 100)], "over within"),
            (vec![pod("high", 10, 300, 100), pod("low", 0, 150, 100)], "low high"),
            (vec![pod("little", 0, 110, 100), pod("much", 0, 300, 200)], "much little"),
            (vec![pod("known", 0, 300, 100), pod("unknown", 10, -1, 0)], "unknown known"),
            (vec![pod("all", 0, 100, 100), pod("half", 0, 50, 100)], "all half"),
        ] {
            assert_eq!(order(pods, Signal::Memory, Disks::default()), want);
        }
    }

    #[test]
    fn processes_go_by_priority_then_number() {
        let with = |uid: &str, priority, n| Use { processes: Some(n), ..pod(uid, priority, 0, 0) };
        let pods = vec![with("few", 0, 3), with("many", 0, 30), with("high", 1, 300)];
        assert_eq!(order(pods, Signal::Pid, Disks::default()), "many few high");
    }

    #[test]
    fn disk_counts_what_is_on_the_file_system_that_fills() {
        let with = |uid: &str, layers, logs, volumes| Use {
            layers: Some(Space { bytes: layers, inodes: 1 }),
            logs: Space { bytes: logs, inodes: 1 },
            volumes: Space { bytes: volumes, inodes: layers },
            ..pod(uid, 0, 0, 0)
        };
        let pods = || vec![with("layer", 90, 0, 0), with("log", 0, 50, 0), with("volume", 0, 0, 70)];
        let (together, apart, split) =
            (Disks::default(), Disks { images_apart: true, split: false }, Disks { images_apart: true, split: true });
        for (signal, disks, want) in [
            (Signal::NodeFs, together, "layer volume log"),
            (Signal::NodeFs, apart, "volume log layer"),
            (Signal::NodeFs, split, "layer volume log"),
            (Signal::NodeFsInodes, together, "layer log volume"),
        ] {
            assert_eq!(order(pods(), signal, disks), want, "{signal:?} {disks:?}");
        }
        assert!(order(pods(), Signal::ImageFs, apart).starts_with("layer"));
        let mut asked = pods();
        asked[0].storage_request = 100;
        assert_eq!(order(asked, Signal::NodeFs, together), "volume log layer");
    }
}
