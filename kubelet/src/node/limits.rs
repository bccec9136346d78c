//! What the kubelet wants of the machine before it takes pods: kernel settings, the version of control groups, open files.

use std::path::Path;

use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::KubeletConfiguration;

/// Settings of the kernel that upstream's kubelet relies on: path below /proc/sys, value.
pub(crate) const SETTINGS: [(&str, i64); 6] = [
    ("kernel/keys/root_maxbytes", 25_000_000),
    ("kernel/keys/root_maxkeys", 1_000_000),
    ("kernel/panic", 10),
    ("kernel/panic_on_oops", 1),
    ("vm/overcommit_memory", 1),
    ("vm/panic_on_oom", 0),
];

/// The settings that are others, each in words. A setting that the kernel does not have is none.
pub(crate) fn different(root: &Path) -> Vec<String> {
    let one = |(path, want): (&str, i64)| {
        let now: i64 = std::fs::read_to_string(root.join(path)).ok()?.trim().parse().ok()?;
        (now != want).then(|| format!("{} is {now}, expected {want}", path.replace('/', ".")))
    };
    SETTINGS.into_iter().filter_map(one).collect()
}

/// How many files may be open: as many as asked for, or as the process may have.
fn files(asked: u64, (soft, hard): (u64, u64)) -> u64 {
    asked.min(hard).max(soft)
}

/// Looks at the machine, and raises the limit of open files as far as it goes.
///
/// # Errors
/// The configuration does not want to run on such a machine.
pub(crate) fn prepare(config: &KubeletConfiguration) -> Result<()> {
    let v1 = gantry_cgroup::Host::detect().is_ok_and(|h| h.version() != gantry_cgroup::Version::V2);
    if v1 && config.fail_cgroup_v1 {
        bail!("kubelet is configured to not run on a host using cgroup v1: failCgroupV1 is true");
    }
    let wrong = different(Path::new("/proc/sys"));
    if config.protect_kernel_defaults && !wrong.is_empty() {
        bail!(
            "protectKernelDefaults is true and the kernel's settings are others: {} (set them with sysctl)",
            wrong.join("; ")
        );
    }
    if let Ok(now) = getrlimit(Resource::RLIMIT_NOFILE) {
        let want = files(u64::try_from(config.max_open_files).unwrap_or(0), now);
        // Whoever may raise the hard limit does; others have the hard limit.
        let asked = u64::try_from(config.max_open_files).unwrap_or(0).max(now.1);
        if setrlimit(Resource::RLIMIT_NOFILE, asked, asked).is_err()
            && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, want, now.1)
        {
            tracing::debug!(error = %e, "limit of open files not raised");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_compared_with_what_they_should_be() {
        let root = tempfile::tempdir().unwrap();
        for (path, value) in SETTINGS {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{value}\n")).unwrap();
        }
        assert!(different(root.path()).is_empty());
        std::fs::write(root.path().join("vm/overcommit_memory"), "0\n").unwrap();
        std::fs::remove_file(root.path().join("kernel/panic")).unwrap();
        assert_eq!(different(root.path()), ["vm.overcommit_memory is 0, expected 1"]);
    }

    #[test]
    fn as_many_files_as_asked_for_or_allowed() {
        assert_eq!(files(1_000_000, (1024, 524_288)), 524_288);
        assert_eq!(files(1_000_000, (1024, 1 << 30)), 1_000_000);
        assert_eq!(files(0, (1024, 4096)), 1024);
    }
}
