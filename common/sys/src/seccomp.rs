//! Loading a compiled seccomp filter.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// One classic BPF instruction, as the kernel reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the test holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Filters the calling thread's system calls from now on. `flags` are `SECCOMP_FILTER_FLAG_*`; with `NEW_LISTENER` the
/// answer is the notification descriptor.
///
/// # Errors
/// The filter is empty, too long or invalid, or the caller has neither no-new-privileges nor CAP_SYS_ADMIN.
pub fn load(filter: &[Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const Instruction,
    }
    let length = u16::try_from(filter.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "seccomp filter is longer than 65535 instructions"))?;
    let program = Program { length, filter: filter.as_ptr() };
    const SET_MODE_FILTER: u32 = 1;
    const NEW_LISTENER: u32 = 8;
    // SAFETY: the program and the instructions that it points to live across the call; the kernel checks the filter.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with NEW_LISTENER a non-negative answer is a new descriptor that nothing else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(answer as i32) }))
}
