//! Capability sets of the calling thread, as 64-bit masks (bit n is capability number n).

use std::io;

use crate::process::check;

/// The three sets that capset(2) sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// What counts for permission checks.
    pub effective: u64,
    /// What may become effective.
    pub permitted: u64,
    /// What a program with file capabilities may keep.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// The calling thread's sets.
///
/// # Errors
/// The kernel's.
pub fn get() -> io::Result<Sets> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 has two data elements; both live across the call.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |f: fn(&Data) -> u32| u64::from(f(&data[0])) | u64::from(f(&data[1])) << 32;
    Ok(Sets {
        effective: join(|d| d.effective),
        permitted: join(|d| d.permitted),
        inheritable: join(|d| d.inheritable),
    })
}

/// Sets the calling thread's sets.
///
/// # Errors
/// A capability is not permitted.
pub fn set(sets: Sets) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 has two data elements; both live across the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) })
}

/// The bounding set: what exec can ever give this thread.
pub fn bounding() -> u64 {
    // One file tells at once what takes a call for each capability.
    crate::process::status_mask("CapBnd:").unwrap_or_else(|| {
        // The kernel answers with an error from the first number on that is no capability.
        (0..64).map_while(|n| held(n).map(|held| u64::from(held) << n)).fold(0, |set, bit| set | bit)
    })
}

/// Whether a capability is in the bounding set; nothing where the kernel knows none of this number.
fn held(capability: u64) -> Option<bool> {
    // SAFETY: plain integers.
    match unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0_u64, 0_u64, 0_u64) } {
        answer @ 0.. => Some(answer == 1),
        _ => None,
    }
}

/// Removes every capability outside `keep` from the bounding set.
///
/// # Errors
/// The caller lacks CAP_SETPCAP.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    for n in (0..64).filter(|n| keep & (1 << n) == 0) {
        // What is not in the set may be dropped too: no need to ask for each.
        match crate::process::prctl(libc::PR_CAPBSET_DROP, n) {
            Ok(()) => {}
            // From the first number on that is no capability.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => break,
            // Without the right to drop, what is not there need not be dropped.
            Err(e) if held(n) == Some(true) => return Err(e),
            Err(_) => {}
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `set` (each must be permitted and inheritable).
///
/// # Errors
/// A capability is not permitted and inheritable.
pub fn set_ambient(set: u64) -> io::Result<()> {
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for n in (0..64).filter(|n| set & (1 << n) != 0) {
        ambient(libc::PR_CAP_AMBIENT_RAISE, n)?;
    }
    Ok(())
}

fn ambient(operation: i32, capability: u64) -> io::Result<()> {
    // SAFETY: plain integers.
    check(i64::from(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation as u64, capability, 0_u64, 0_u64) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_effective_is_permitted() {
        let sets = get().unwrap();
        assert_eq!(sets.effective & !sets.permitted, 0);
    }
}
