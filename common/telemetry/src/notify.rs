//! The service manager's notification protocol (sd_notify(3)): readiness, status, watchdog.
//!
//! Without `NOTIFY_SOCKET` every call is a no-op, so daemons call these unconditionally.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

/// Tells the service manager that start-up is complete.
///
/// # Errors
/// The socket exists but does not accept the message.
pub fn ready() -> io::Result<()> {
    send("READY=1")
}

/// Tells the service manager that the daemon is going down.
///
/// # Errors
/// As [`ready`].
pub fn stopping() -> io::Result<()> {
    send("STOPPING=1")
}

/// Sets the one line that `systemctl status` shows.
///
/// # Errors
/// As [`ready`].
pub fn status(line: &str) -> io::Result<()> {
    send(&format!("STATUS={}", line.replace('\n', " ")))
}

/// Feeds the watchdog.
///
/// # Errors
/// As [`ready`].
pub fn watchdog() -> io::Result<()> {
    send("WATCHDOG=1")
}

/// Feeds the watchdog for as long as tasks get their turn; where the service manager does not watch us, it is over at once.
pub async fn feed_watchdog() {
    let Some(every) = watchdog_interval() else { return };
    loop {
        let _ = watchdog();
        tokio::time::sleep(every).await;
    }
}

/// How often to feed the watchdog: half of what the service manager allows, or nothing where it does not watch us.
pub fn watchdog_interval() -> Option<Duration> {
    interval(
        std::env::var("WATCHDOG_USEC").ok().as_deref(),
        std::env::var("WATCHDOG_PID").ok().as_deref(),
        std::process::id(),
    )
}

fn interval(usec: Option<&str>, pid: Option<&str>, me: u32) -> Option<Duration> {
    let usec: u64 = usec?.parse().ok().filter(|&u| u > 0)?;
    if pid.is_some_and(|p| p.parse() != Ok(me)) {
        return None;
    }
    Some(Duration::from_micros(usec / 2))
}

fn send(message: &str) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(Path::new(&path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_at_half_of_its_limit_and_only_when_it_watches_this_process() {
        assert_eq!(interval(Some("30000000"), Some("7"), 7), Some(Duration::from_secs(15)));
        assert_eq!(interval(Some("30000000"), None, 7), Some(Duration::from_secs(15)));
        assert_eq!(interval(Some("30000000"), Some("8"), 7), None);
        assert_eq!(interval(Some("0"), None, 7), None);
        assert_eq!(interval(None, None, 7), None);
    }
}
