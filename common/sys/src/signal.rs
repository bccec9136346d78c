//! Signals as a new program should find them.

use std::io;

/// The signals that this process ignores (bit n-1 is signal n); all where that cannot be told.
pub fn ignored() -> u64 {
    crate::process::status_mask("SigIgn:").unwrap_or(u64::MAX)
}

/// Gives signals their default action and blocks none: what a program that replaces this one starts with. `ignored` are those
/// to reset: ignored signals stay ignored across exec, all others return to their default there. (Rust's start-up ignores
/// SIGPIPE, which is reset always.)
///
/// # Errors
/// The kernel's.
pub fn reset(ignored: u64) -> io::Result<()> {
    // What the kernel calls a sigaction: handler (0 is the default), flags, restorer, mask.
    let default = [0_u64; 4];
    for number in (1..=64).filter(|n| ignored & 1 << (n - 1) != 0 || *n == libc::SIGPIPE) {
        // SAFETY: the default action runs no code of this process, and the structure lives across the call. Past the C
        // library, which keeps two signals for itself and would leave those ignored. SIGKILL and SIGSTOP refuse, which is
        // fine: they cannot be ignored either.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    Ok(nix::sys::signal::SigSet::empty().thread_set_mask()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_reset_process_dies_of_a_broken_pipe() {
        // In a child: the test process needs its own signals.
        match crate::process::clone3(0, None) {
            Ok(crate::process::Cloned::Child) => {
                let _ = reset(ignored());
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGPIPE);
                crate::process::exit_now(0)
            }
            Ok(crate::process::Cloned::Parent(pid, _)) => {
                assert_eq!(crate::process::wait(pid).unwrap(), crate::process::Exit::Signal(libc::SIGPIPE));
            }
            // The test harness has several threads, where clone3 refuses.
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
                let status = std::process::Command::new("sh").args(["-c", "kill -PIPE $$"]).status().unwrap();
                assert_eq!(status.signal(), Some(libc::SIGPIPE));
            }
        }
    }
}
