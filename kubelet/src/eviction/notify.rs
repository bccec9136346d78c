//! Hears from the kernel that memory is short, so that nobody waits for the next look: a trigger on pressure stall
//! information, which kernels have with both versions of control groups.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;

/// Where the kernel tells of it.
const FILE: &str = "/proc/pressure/memory";
/// Tasks waited for memory for 150 ms within 2 s. Windows that are multiples of 2 s need no privilege.
const TRIGGER: &str = "some 150000 2000000";
/// The least time between two alarms: a look takes some work, too.
const LEAST: Duration = Duration::from_secs(1);

/// Rings when memory is short; never where the kernel does not tell.
pub(crate) struct Alarm(Arc<Notify>);

impl Alarm {
    /// Asks the kernel; a thread of its own waits for the answer.
    pub(crate) fn start() -> Self {
        let bell = Arc::new(Notify::new());
        let open = || -> std::io::Result<File> {
            let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
            let mut file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(FILE)?;
            file.write_all(format!("{TRIGGER}\0").as_bytes())?;
            Ok(file)
        };
        let rings = bell.clone();
        let started = open().and_then(|file| {
            std::thread::Builder::new()
                .name("memory-alarm".into())
                .stack_size(64 << 10)
                .spawn(move || wait(&file, &rings))
        });
        if let Err(e) = started {
            tracing::info!(error = %e, "no alarm about memory, looking now and then");
        }
        Self(bell)
    }

    /// Waits for the next alarm.
    pub(crate) async fn rung(&self) {
        tokio::time::sleep(LEAST).await;
        self.0.notified().await;
    }
}

fn wait(file: &File, bell: &Notify) {
    loop {
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
        }
        let events = fds[0].revents().unwrap_or(PollFlags::empty());
        if events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return;
        }
        bell.notify_one();
    }
}
