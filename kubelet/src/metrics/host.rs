//! Numbers about the machine and about this process, from /proc.

use super::text::Page;

/// The node's CPU seconds and working set.
pub(crate) fn node_usage() -> (f64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|w| w.parse().ok()).collect();
    // All but idle and iowait; a tick is a hundredth of a second on every Linux that we run on.
    let busy: u64 = ticks.iter().enumerate().filter(|(i, _)| *i < 8 && *i != 3 && *i != 4).map(|(_, t)| t).sum();
    (busy as f64 / 100.0, meminfo("MemTotal").saturating_sub(meminfo("MemAvailable")))
}

/// A line of /proc/meminfo in bytes.
pub(crate) fn meminfo(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(':')));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// When the machine started, in seconds since 1970.
pub(crate) fn boot_time() -> i64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    stat.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0)
}

/// Processes at work and the most that there may be.
pub(crate) fn processes() -> (u64, u64) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let now = read("/proc/loadavg").split('/').nth(1).and_then(|t| number(t.split(' ').next()?));
    let most = [read("/proc/sys/kernel/pid_max"), read("/proc/sys/kernel/threads-max")];
    (now.unwrap_or(0), most.iter().filter_map(|t| number(t)).min().unwrap_or(0))
}

/// Bytes and errors of one interface since it came up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    /// The name.
    pub(crate) name: String,
    /// Bytes received.
    pub(crate) rx_bytes: u64,
    /// Errors while receiving.
    pub(crate) rx_errors: u64,
    /// Bytes sent.
    pub(crate) tx_bytes: u64,
    /// Errors while sending.
    pub(crate) tx_errors: u64,
}

fn interfaces_of(text: &str) -> Vec<Interface> {
    let mut out = Vec::new();
    for (name, numbers) in text.lines().skip(2).filter_map(|l| l.split_once(':')) {
        let n: Vec<u64> = numbers.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        let name = name.trim();
        if n.len() > 10 && name != "lo" && !name.starts_with("veth") {
            out.push(Interface {
                name: name.to_owned(),
                rx_bytes: n[0],
                rx_errors: n[2],
                tx_bytes: n[8],
                tx_errors: n[10],
            });
        }
    }
    out
}

/// The machine's interfaces but for loopback and pods' ends.
pub(crate) fn interfaces() -> Vec<Interface> {
    interfaces_of(&std::fs::read_to_string("/proc/net/dev").unwrap_or_default())
}

/// The interface of the default route.
pub(crate) fn default_interface() -> Option<String> {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let line = routes.lines().skip(1).find(|l| l.split('\t').nth(1) == Some("00000000"))?;
    line.split('\t').next().map(str::to_owned)
}

/// What every program that Prometheus reads tells of itself.
pub(crate) fn put_process(page: &mut Page) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit_once(") ")
        .map(|(_, r)| r.split(' ').map(|w| w.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    let field = |n: usize| fields.get(n - 3).copied().unwrap_or(0.0);
    let help = "Processor time of the process in seconds, user's and system's.";
    page.put("process_cpu_seconds_total", help, super::text::Kind::Counter, "", (field(14) + field(15)) / 100.0);
    page.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", field(24) * 4096.0);
    page.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", field(23));
    let start = boot_time() as f64 + field(22) / 100.0;
    page.gauge("process_start_time_seconds", "When the process was started, in seconds since 1970.", start);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    page.gauge("process_open_fds", "Files that the process has open.", open as f64);
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        page.gauge("process_max_fds", "Maximum number of open file descriptors.", soft as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_without_loopback_and_pods_ends() {
        let text = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:       1       1    0    0    0     0          0         0        1       1    0    0    0     0       0          0\n  eth0:     100       2    3    0    0     0          0         0      200       5    6    0    0     0       0          0\nveth12:       1       1    0    0    0     0          0         0        1       1    0    0    0     0       0          0\n";
        let want = Interface { name: "eth0".into(), rx_bytes: 100, rx_errors: 3, tx_bytes: 200, tx_errors: 6 };
        assert_eq!(interfaces_of(text), [want]);
    }

    #[test]
    fn this_machine_has_numbers() {
        assert!(node_usage().0 > 0.0 && meminfo("MemTotal") > 0 && boot_time() > 1_600_000_000);
        let (now, most) = processes();
        assert!(now > 0 && most > now);
        let mut page = Page::default();
        put_process(&mut page);
        assert!(page.render().contains("process_resident_memory_bytes "));
    }
}
