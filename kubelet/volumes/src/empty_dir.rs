//! emptyDir volumes and the tmpfs behind secrets and tokens.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::mount_table;

/// Where an emptyDir's files live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    Disk,
    /// tmpfs with an upper size in bytes.
    Memory {
        size: Option<u64>,
    },
    /// hugetlbfs with this page size (bytes) and an upper size.
    HugePages {
        page: u64,
        size: Option<u64>,
    },
}

/// The size of a memory volume: the least of its limit, the pod's memory limit and the node's allocatable memory.
pub(crate) fn memory_size(limit: Option<i64>, pod_limit: Option<i64>, allocatable: i64) -> Option<u64> {
    [limit, pod_limit, Some(allocatable)]
        .into_iter()
        .flatten()
        .filter(|v| *v > 0)
        .min()
        .and_then(|v| u64::try_from(v).ok())
}

/// Makes `dir` an emptyDir. Tells whether it is new (so its ownership is to be set).
pub(crate) fn ensure(dir: &Path, medium: &Medium) -> io::Result<bool> {
    let existed = dir.is_dir();
    fs::create_dir_all(dir)?;
    let fresh = match medium {
        Medium::Disk => !existed,
        Medium::Memory { size } => mount_once(dir, "tmpfs", size.map(|s| format!("size={s}")))?,
        Medium::HugePages { page, size } => {
            let size = size.map(|s| format!(",size={s}")).unwrap_or_default();
            mount_once(dir, "hugetlbfs", Some(format!("pagesize={page}{size}")))?
        }
    };
    if fresh {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
    }
    Ok(fresh)
}

fn mount_once(dir: &Path, kind: &str, options: Option<String>) -> io::Result<bool> {
    if mount_table::is_mount_point(dir)? {
        return Ok(false);
    }
    let attempt = |options: Option<&str>| mount(Some(kind), dir, Some(kind), MsFlags::empty(), options);
    // Secrets must not reach a swap device. Kernels before 6.4 do not know the option, and say so in their log.
    if kind == "tmpfs" && gantry_sys::kernel::at_least(6, 4) {
        let without_swap = options.iter().map(String::as_str).chain(["noswap"]).collect::<Vec<_>>().join(",");
        if attempt(Some(&without_swap)).is_ok() {
            return Ok(true);
        }
    }
    attempt(options.as_deref())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_bound_wins() {
        assert_eq!(memory_size(Some(10), Some(20), 30), Some(10));
        assert_eq!(memory_size(Some(40), Some(20), 30), Some(20));
        assert_eq!(memory_size(None, None, 30), Some(30));
        assert_eq!(memory_size(Some(0), None, 0), None);
    }
}
