//! What the host holds, before and after: processes, mounts, namespaces, cgroups, links, nft rules, addresses, files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::command::run;

/// Everything that a node could leave behind, each line one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings(BTreeSet<String>);

impl Holdings {
    /// Looks at the host. `netns` is the node's network namespace by name, `folders` are those whose files count, and
    /// `programs` the folder whose programs' processes count.
    ///
    /// # Errors
    /// `ip` or `nft` cannot be run.
    pub fn look(netns: &str, folders: &[&Path], programs: &Path) -> Result<Self> {
        let mut held = BTreeSet::new();
        processes(&mut held, programs);
        mounts(&mut held);
        cgroups(&mut held);
        for folder in folders {
            files(&mut held, folder);
        }
        for (what, command) in [
            ("link", "ip -o link show | awk -F': ' '{print $2}'"),
            ("address", "ip -o addr show | awk '{print $2, $4}'"),
            ("route", "ip route show table all | grep -v ' lo '"),
            ("nft", "nft list ruleset"),
        ] {
            let mut shell = Command::new("nsenter");
            shell.arg(format!("--net=/run/netns/{netns}")).args(["sh", "-c", command]);
            let output = run(&mut shell, "", Duration::from_secs(10))?;
            held.extend(output.stdout.lines().map(|l| format!("{what} {}", l.trim_end())));
        }
        Ok(Self(held))
    }

    /// What is here that `before` does not have.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

fn processes(held: &mut BTreeSet<String>, programs: &Path) {
    for process in entries(Path::new("/proc")) {
        let Ok(program) = fs::read_link(process.join("exe")) else { continue };
        if program.starts_with(programs) || program.starts_with("/memfd:gantry") {
            let words = fs::read(process.join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            held.insert(format!("process {} {words}", process.display()));
        }
    }
}

fn mounts(held: &mut BTreeSet<String>) {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    held.extend(text.lines().filter_map(|l| l.split(' ').nth(1)).map(|m| format!("mount {m}")));
}

fn cgroups(held: &mut BTreeSet<String>) {
    let mut stack = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = stack.pop() {
        for child in entries(&folder) {
            if child.is_dir() && !child.is_symlink() {
                held.insert(format!("cgroup {}", child.display()));
                stack.push(child);
            }
        }
    }
}

fn files(held: &mut BTreeSet<String>, folder: &Path) {
    for child in entries(folder) {
        held.insert(format!("file {}", child.display()));
        if child.is_dir() && !child.is_symlink() {
            files(held, &child);
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map(|e| e.filter_map(|e| e.ok().map(|e| e.path())).collect()).unwrap_or_default()
}
