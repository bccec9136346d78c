//! How much memory the C library's allocator keeps. Long-lived programs of several threads call this; elsewhere nothing is gained.

/// Has all threads allocate from one arena. Each thread that allocates would otherwise get one of its own, and what it frees
/// stays there. To be called before the first thread is started. Without glibc it does nothing.
pub fn one_arena() {
    // SAFETY: mallopt takes two integers and has no preconditions.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives what was freed back to the kernel. Without glibc it does nothing.
pub fn give_back() {
    // SAFETY: malloc_trim takes an integer, locks what it touches, and frees nothing that is in use.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_goes_back() {
        // Small pieces, of which one stays at the end: without a trim the allocator keeps the rest.
        let mut pieces: Vec<Box<[u8]>> = (0..40_000).map(|_| vec![1; 1000].into_boxed_slice()).collect();
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
        };
        let full = resident();
        let last = pieces.pop();
        drop(pieces);
        give_back();
        if cfg!(target_env = "gnu") {
            assert!(resident() + 20_000_000 / 4096 < full, "{} of {full} pages", resident());
        }
        drop(last);
    }
}
