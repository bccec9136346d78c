//! Signals as a new program should find them.

use std::io;

/// Gives every signal its default action and blocks none: what a program that replaces this one starts with. (Rust's
/// start-up ignores SIGPIPE, and ignored signals stay ignored across exec.)
///
/// # Errors
/// The kernel's.
pub fn reset() -> io::Result<()> {
    const LAST: i32 = 64;
    // What the kernel calls a sigaction: handler (0 is the default), flags, restorer, mask.
    let default = [0_u64; 4];
    for number in 1..=LAST {
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
                let _ = reset();
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
