//! Checkpoints: a container's processes written to files and made again from them, by criu (<https://criu.org>).
//!
//! criu runs as a child, `criu swrk`, and is told what to do over a socket in messages of protobuf: `wire` writes and reads
//! these, `session` talks. `places` says which mounts of a container are not its own; `dump` and `restore` are the two works.

mod dump;
mod places;
mod restore;
mod session;
mod wire;

use std::fs::File;
use std::path::{Path, PathBuf};

pub(crate) use dump::dump;
pub(crate) use restore::{Restore, restore};

use crate::error::{Context, Result};
use crate::fail;
use crate::spec::Spec;
use wire::Message;

/// The file beside the images that tells what the program's standard descriptors were.
const DESCRIPTORS: &str = "descriptors.json";

/// How criu treats cgroups, by runc's words and criu's numbers.
const CGROUP_MODES: [(&str, u64); 5] = [("", 6), ("ignore", 0), ("soft", 3), ("full", 4), ("strict", 5)];

/// What both works are told, as criu's own options are called.
#[derive(Debug, Default)]
pub(crate) struct Options<'a> {
    /// criu's program where not the one on the path.
    pub(crate) program: Option<&'a str>,
    pub(crate) images: PathBuf,
    /// Where logs go; with the images where not given.
    pub(crate) work: Option<&'a Path>,
    /// Below `images`: those of the dump before this one.
    pub(crate) parent: Option<&'a Path>,
    pub(crate) leave_running: bool,
    pub(crate) tcp_established: bool,
    pub(crate) tcp_skip_in_flight: bool,
    pub(crate) link_remap: bool,
    pub(crate) ext_unix_sk: bool,
    pub(crate) shell_job: bool,
    pub(crate) lazy_pages: bool,
    pub(crate) file_locks: bool,
    pub(crate) pre_dump: bool,
    pub(crate) auto_dedup: bool,
    /// Gets a byte once lazy pages can be asked for.
    pub(crate) status: Option<File>,
    pub(crate) page_server: Option<(&'a str, u16)>,
    /// As criu numbers them.
    pub(crate) cgroup_mode: u64,
    pub(crate) lsm_profile: Option<&'a str>,
    pub(crate) lsm_mount_context: Option<&'a str>,
}

/// The number of a way to treat cgroups.
///
/// # Errors
/// It is none.
pub(crate) fn cgroup_mode(word: &str) -> Result<u64> {
    match CGROUP_MODES.iter().find(|(name, _)| *name == word) {
        Some((_, number)) => Ok(*number),
        None => fail!("--manage-cgroups-mode: {word:?} is none of soft, full, strict, ignore"),
    }
}

/// `ADDRESS:PORT`, the address in brackets where it is of IPv6.
///
/// # Errors
/// It is not of that form.
pub(crate) fn page_server(text: &str) -> Result<(&str, u16)> {
    let parts = text.rsplit_once(':').and_then(|(address, port)| Some((address, port.parse().ok()?)));
    let bare = |address: &'_ str| match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
        Some(inner) => (!inner.is_empty()).then_some(1),
        None => (!address.is_empty() && !address.contains(':')).then_some(0),
    };
    match parts.and_then(|(address, port)| Some((address, port, bare(address)?))) {
        Some((address, port, cut)) => Ok((&address[cut..address.len() - cut], port)),
        None => fail!("--page-server: {text:?} is not ADDRESS:PORT"),
    }
}

/// Opened folders and what both works say alike.
struct Asked {
    options: Message,
    /// Looked up by criu through this process: open until it is done.
    _folders: Vec<File>,
    log: PathBuf,
}

impl Options<'_> {
    /// The part of criu's options that both works share.
    fn message(&self, spec: &Spec, log: &str) -> Result<Asked> {
        let folder = |path: &Path| File::open(path).context(|| format!("open {}", path.display()));
        let mut folders = vec![folder(&self.images)?];
        let mut options = Message::default();
        options.descriptor(wire::IMAGES_DIR_FD, &folders[0]);
        if let Some(work) = self.work {
            std::fs::create_dir_all(work).context(|| format!("create {}", work.display()))?;
            let work = folder(work)?;
            options.descriptor(wire::WORK_DIR_FD, &work);
            folders.push(work);
        }
        options.number(wire::LOG_LEVEL, 4).text(wire::LOG_FILE, log);
        let switches = [
            (wire::NOTIFY_SCRIPTS, true),
            (wire::ORPHAN_PTS_MASTER, true),
            (wire::MANAGE_CGROUPS, true),
            (wire::SHELL_JOB, self.shell_job),
            (wire::EXT_UNIX_SK, self.ext_unix_sk),
            (wire::TCP_ESTABLISHED, self.tcp_established),
            (wire::FILE_LOCKS, self.file_locks),
            (wire::AUTO_DEDUP, self.auto_dedup),
            (wire::LAZY_PAGES, self.lazy_pages),
        ];
        for (field, on) in switches {
            options.number(field, u64::from(on));
        }
        options.number(wire::MANAGE_CGROUPS_MODE, self.cgroup_mode);
        // Links and addresses of a network are the engine's to make, not criu's.
        options.number(wire::EMPTY_NS, libc::CLONE_NEWNET as u64);
        match spec.annotations.get("org.criu.config").map(String::as_str) {
            None => drop(options.text(wire::CONFIG_FILE, "/etc/criu/runc.conf")),
            Some("") => {}
            Some(file) => drop(options.text(wire::CONFIG_FILE, file)),
        }
        let log = self.work.unwrap_or(&self.images).join(log);
        Ok(Asked { options, _folders: folders, log })
    }
}

/// The word by which criu knows a namespace that the engine made.
fn outside_key(kind: gantry_sys::namespaces::Kind) -> &'static str {
    if kind == gantry_sys::namespaces::Kind::Pid { "extRootPidNS" } else { "extRootNetNS" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_servers_are_an_address_and_a_port() {
        for (text, wanted) in [
            ("10.0.0.1:27", Some(("10.0.0.1", 27))),
            ("host:1", Some(("host", 1))),
            ("[fd00::1]:99", Some(("fd00::1", 99))),
            ("fd00::1:99", None),
            (":1", None),
            ("[]:1", None),
            ("host", None),
            ("host:", None),
            ("host:70000", None),
        ] {
            assert_eq!(page_server(text).ok(), wanted, "{text}");
        }
    }

    #[test]
    fn ways_to_treat_cgroups_are_runcs() {
        assert_eq!(["", "soft", "full", "strict", "ignore"].map(|w| cgroup_mode(w).unwrap()), [6, 3, 4, 5, 0]);
        assert!(cgroup_mode("Soft").unwrap_err().to_string().contains("--manage-cgroups-mode"));
    }
}
