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

/// Leaves the kernel's settings as they are if it is set to `keep`: for a kubelet that shares its machine with others, as tests
/// do.
const KEEP: &str = "GANTRY_KERNEL_SETTINGS";

/// Brings the settings that are others in line, each for itself; those that cannot be written stay, with a warning. A setting
/// that the kernel does not have is left out.
fn adjust(root: &Path) {
    for (path, want) in SETTINGS {
        let file = root.join(path);
        let Some(now) = std::fs::read_to_string(&file).ok().and_then(|t| t.trim().parse::<i64>().ok()) else {
            continue;
        };
        if now == want {
            continue;
        }
        let name = path.replace('/', ".");
        match std::fs::write(&file, want.to_string()) {
            Ok(()) => tracing::info!(setting = name, before = now, now = want, "kernel setting changed"),
            Err(e) => tracing::warn!(setting = name, now, wanted = want, error = %e, "kernel setting not changed"),
        }
    }
}

/// How many files may be open: as many as asked for, or as the process may have.
fn files(asked: u64, (soft, hard): (u64, u64)) -> u64 {
    asked.min(hard).max(soft)
}

/// Looks at the machine, brings the kernel's settings in line unless they are protected, and raises the limit of open files as
/// far as it goes.
///
/// # Errors
/// The configuration does not want to run on such a machine.
pub(crate) fn prepare(config: &KubeletConfiguration) -> Result<()> {
    let v1 = gantry_cgroup::Host::detect().is_ok_and(|h| h.version() != gantry_cgroup::Version::V2);
    if v1 && config.fail_cgroup_v1 {
        bail!("kubelet is configured to not run on a host using cgroup v1: failCgroupV1 is true");
    }
    settings(Path::new("/proc/sys"), config.protect_kernel_defaults, std::env::var(KEEP).is_ok_and(|v| v == "keep"))?;
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

fn settings(root: &Path, protected: bool, keep: bool) -> Result<()> {
    let wrong = different(root);
    if protected && !wrong.is_empty() {
        bail!(
            "protectKernelDefaults is true and the kernel's settings are others: {} (set them with sysctl)",
            wrong.join("; ")
        );
    }
    if keep && !wrong.is_empty() {
        tracing::info!(settings = wrong.join("; "), "the kernel's settings stay as they are: {KEEP} is keep");
    } else {
        adjust(root);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_changed_unless_they_are_protected() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let read = |path: &str| std::fs::read_to_string(root.path().join(path)).unwrap_or_default();
        let ours = [("vm/overcommit_memory", "0\n"), ("kernel/panic", "0\n"), ("kernel/panic_on_oops", "1\n")];
        ours.iter().for_each(|(path, text)| write(path, text));
        let refused = settings(root.path(), true, false).unwrap_err().to_string();
        assert!(refused.contains("vm.overcommit_memory is 0, expected 1"), "{refused}");
        assert!(refused.contains("kernel.panic is 0, expected 10"), "{refused}");
        settings(root.path(), false, true).unwrap();
        assert_eq!((read("vm/overcommit_memory").trim(), read("kernel/panic").trim()), ("0", "0"));
        settings(root.path(), false, false).unwrap();
        assert_eq!((read("vm/overcommit_memory").trim(), read("kernel/panic").trim()), ("1", "10"));
        assert!(!root.path().join("vm/panic_on_oom").exists(), "what the kernel does not have is not made");
        settings(root.path(), true, false).unwrap();
    }

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
