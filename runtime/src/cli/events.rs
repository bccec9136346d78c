//! `events`: what a container uses, now or again and again, and word of the OOM killer, one JSON object a line.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use gantry_cgroup::{Cgroup, Stats};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::Globals;
use super::args::Words;
use crate::cgroups;
use crate::error::{Context, Result};
use crate::fail;
use crate::state::Status;

const USAGE: &str = "usage: gantry-run events [options] ID
  --stats           print what it uses once, and end
  --interval TIME   between two prints (default 5s; s, m, h, ms)
Without --stats it goes on until the container ends, and tells of the OOM killer at once.";

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &["stats", "interval=", "help,h"])?;
    if words.is_set("help") {
        say!("{USAGE}");
        return Ok(0);
    }
    let id = words.id()?.to_owned();
    let interval = duration(words.value("interval").unwrap_or("5s"))?;
    let container = globals.store.open(&id)?;
    if matches!(container.status(), Status::Stopped | Status::Creating) {
        fail!("container with id {id} is not running");
    }
    let Some(group) = cgroups::find(&container.state.place.cgroup)? else { fail!("this host has no cgroups") };
    if words.is_set("stats") {
        return print(&json!({"type": "stats", "id": id, "data": data(&group.stats())})).map(|_| 0);
    }
    let init = gantry_sys::process::pidfd_open(container.state.pid).context(|| "watch the container".to_owned())?;
    let alive = container.is_alive();
    // Others must be able to work on the container meanwhile.
    drop(container);
    if !alive {
        fail!("container with id {id} is not running");
    }
    follow(&id, &group, init.as_fd(), interval).map(|()| 0)
}

fn follow(id: &str, group: &Cgroup, init: std::os::fd::BorrowedFd<'_>, interval: Duration) -> Result<()> {
    let oom = group.watch_oom().context(|| "watch for the OOM killer".to_owned())?;
    let mut killed = group.oom_kills();
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let patience = Timespec::try_from(left).context(|| "--interval".to_owned())?;
        let mut fds = vec![PollFd::from_borrowed_fd(init, PollFlags::IN)];
        fds.extend(oom.as_ref().map(|o| PollFd::from_borrowed_fd(o.as_fd(), PollFlags::IN)));
        match poll(&mut fds, Some(&patience)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context(|| "wait for events".to_owned())?,
        };
        let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
        // Version 1 counts a kill a moment after it tells: the count is looked at again on every wake-up.
        let now = group.oom_kills();
        if now > killed && !print(&json!({"type": "oom", "id": id}))? {
            return Ok(());
        }
        killed = now.max(killed);
        if ready[0] {
            return Ok(());
        }
        if let (Some(oom), true) = (&oom, ready.get(1) == Some(&true)) {
            oom.clear();
        }
        if Instant::now() >= next {
            next = Instant::now() + interval;
            if !print(&json!({"type": "stats", "id": id, "data": data(&group.stats())}))? {
                return Ok(());
            }
        }
    }
}

/// Prints a line; false when nobody reads any more.
fn print(event: &Value) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{event}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).context(|| "print an event".to_owned()),
    }
}

/// The figures under runc's names.
fn data(s: &Stats) -> Value {
    let mut memory = json!({"cache": s.cache, "usage": {"usage": s.memory, "max": s.memory_peak, "failcnt": 0},
        "raw": {"rss": s.rss, "cache": s.cache, "mapped_file": s.mapped_file, "pgfault": s.page_faults,
            "pgmajfault": s.major_page_faults}});
    let mut put = |pointer: &str, value: Value| {
        if let Some((map, key)) = pointer.rsplit_once('/')
            && let Some(Value::Object(map)) = memory.pointer_mut(map)
        {
            map.insert(key.to_owned(), value);
        }
    };
    if let Some(limit) = s.memory_limit {
        put("/usage/limit", json!(limit));
    }
    let mut swap = json!({"usage": s.swap, "failcnt": 0});
    if let (Some(limit), Value::Object(swap)) = (s.swap_limit, &mut swap) {
        swap.insert("limit".to_owned(), json!(limit));
    }
    put("/swap", swap);
    let mut pids = json!({"current": s.pids});
    if let (Some(limit), Value::Object(pids)) = (s.pids_limit, &mut pids) {
        pids.insert("limit".to_owned(), json!(limit));
    }
    json!({
        "cpu": {
            "usage": {"total": s.cpu_ns, "kernel": s.cpu_system_ns, "user": s.cpu_user_ns},
            "throttling": {"periods": s.cpu_periods, "throttledPeriods": s.cpu_throttled_periods,
                "throttledTime": s.cpu_throttled_ns},
        },
        "memory": memory,
        "pids": pids,
        "blkio": {"ioServiceBytesRecursive": [{"op": "Read", "value": s.io_read_bytes},
            {"op": "Write", "value": s.io_write_bytes}]},
    })
}

/// A time span as Go writes it, one number and one unit.
fn duration(text: &str) -> Result<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => fail!("--interval: {text:?} has no unit (ms, s, m, h)"),
    };
    match number.parse::<f64>().map(|n| n * seconds) {
        Ok(n) if n > 0.0 && n <= 1e9 => Ok(Duration::from_secs_f64(n)),
        _ => fail!("duration interval must be greater than 0: {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_go_writes_them() {
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        for wrong in ["", "5", "0s", "-1s", "s", "1e99h", "nans", "5 parsecs"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_limit_stands_where_there_is_one() {
        let none = data(&Stats::default());
        assert_eq!(none.pointer("/memory/usage/limit"), None);
        let some = data(&Stats { memory_limit: Some(7), pids_limit: Some(9), ..Stats::default() });
        assert_eq!((&some["memory"]["usage"]["limit"], &some["pids"]["limit"]), (&json!(7), &json!(9)));
    }
}
