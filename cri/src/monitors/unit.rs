//! Monitors live longer than the daemon, so they do not stay in the cgroup of its unit: systemd ends everything in there when
//! the unit stops.
//!
//! Only the hierarchy by which systemd finds a unit's processes matters: the unified one, or the one named systemd. Where the
//! daemon runs in no unit (the root group) nothing is moved, because a move costs milliseconds.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Group of all monitors, beside the slices.
const GROUP: &str = "gantry-monitors";

/// Mount points of the hierarchies in which a process with this `/proc/self/cgroup` belongs to a unit. Pure.
fn hierarchies(own: &str, unified: &Path, named: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(name), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let mount = match (number, name) {
            ("0", "") => unified,
            (_, "name=systemd") => named,
            _ => continue,
        };
        if path != "/" && !path.trim_start_matches('/').starts_with(GROUP) {
            found.push(mount.to_path_buf());
        }
    }
    found
}

fn unified() -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.procs").exists() { root.to_path_buf() } else { root.join("unified") }
}

fn move_to(mount: &Path, pid: u32) -> io::Result<()> {
    let group = mount.join(GROUP);
    // Whoever ends the last monitor removes the group: it may go between the two steps.
    for _ in 0..3 {
        match fs::create_dir(&group) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        match fs::write(group.join("cgroup.procs"), pid.to_string()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Moves a monitor out of the daemon's unit. What fails is told and changes nothing else: with `KillMode=process` in the unit
/// it does not matter.
pub(super) fn leave(pid: u32) {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for mount in hierarchies(&own, &unified(), Path::new("/sys/fs/cgroup/systemd")) {
        if let Err(error) = move_to(&mount, pid) {
            tracing::warn!(group = %mount.join(GROUP).display(), %error, "a monitor stays in the daemon's cgroup");
        }
    }
}

/// Removes the group of monitors where it is empty.
pub(crate) fn tidy() {
    for mount in [unified(), "/sys/fs/cgroup/systemd".into()] {
        // Busy or absent: not ours to remove.
        let _ = fs::remove_dir(mount.join(GROUP));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hierarchies_that_tell_units_matter_and_only_inside_a_unit() {
        let find = |text: &str| hierarchies(text, Path::new("/u"), Path::new("/s"));
        assert_eq!(find("0::/system.slice/gantry-cri.service\n"), [Path::new("/u")]);
        assert_eq!(
            find(
                "4:memory:/system.slice/x.service\n1:name=systemd:/system.slice/x.service\n0::/system.slice/x.service\n"
            ),
            [Path::new("/s"), Path::new("/u")]
        );
        assert!(find("4:memory:/x\n1:name=systemd:/\n0::/\n").is_empty());
        assert!(find("0::/gantry-monitors\n").is_empty());
    }

    #[test]
    fn a_process_is_moved_and_the_empty_group_goes() {
        let unified = unified();
        if !rustix::process::geteuid().is_root() || fs::create_dir(unified.join("gantry-unit-probe")).is_err() {
            eprintln!("skipped: needs root and a writable cgroup tree");
            return;
        }
        let _ = fs::remove_dir(unified.join("gantry-unit-probe"));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let moved = move_to(&unified, child.id());
        let group = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        let _ = child.kill();
        let _ = child.wait();
        tidy();
        moved.unwrap();
        assert!(group.lines().any(|l| l == format!("0::/{GROUP}")), "{group}");
    }
}
