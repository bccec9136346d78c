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

/// Unmaps the code and constants of the program and its libraries, which stay in the page cache: what runs on comes back page
/// by page, without a read from disk, and what only the start or a burst of work needed no longer counts as the program's.
pub fn give_back_code() {
    /// Advises on each part of one loaded object that nobody can have written to.
    unsafe extern "C" fn object(info: *mut libc::dl_phdr_info, _: usize, _: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the loader hands a valid description of an object that it has mapped, and as many headers as it says.
        let (base, headers) = unsafe {
            let info = &*info;
            if info.dlpi_phdr.is_null() {
                return 0;
            }
            (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
        };
        let page = page_size() as u64;
        for part in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
            let begin = (base + part.p_vaddr) & !(page - 1);
            let end = (base + part.p_vaddr + part.p_memsz).next_multiple_of(page);
            // SAFETY: a private mapping of a file that was never writable holds what the file holds, before and after. What
            // is no such mapping (the kernel's vDSO) is refused, which changes nothing.
            unsafe { libc::madvise(begin as *mut libc::c_void, (end - begin) as usize, libc::MADV_DONTNEED) };
        }
        0
    }
    // SAFETY: the callback keeps nothing that it is given, and unwinds never.
    unsafe { libc::dl_iterate_phdr(Some(object), std::ptr::null_mut()) };
}

fn page_size() -> usize {
    // SAFETY: sysconf takes an integer and has no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kilobytes of this program's own file that are mapped, from smaps.
    fn code() -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let own = std::env::current_exe().unwrap();
        let (mut mine, mut sum) = (false, 0);
        for line in smaps.lines() {
            if line.split(' ').next().is_some_and(|range| range.contains('-')) {
                mine = line.ends_with(own.to_str().unwrap());
            } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| mine) {
                sum += size.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn code_that_does_not_run_is_given_back() {
        // Through all of the program's file as it is mapped, so that all of it counts.
        let whole = code();
        give_back_code();
        let left = code();
        assert!(left < whole, "{left} of {whole} kB");
        // And all runs on.
        assert_eq!(format!("{:.3}", 2f64.sqrt()), "1.414");
    }

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
