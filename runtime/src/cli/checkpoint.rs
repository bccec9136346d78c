//! `checkpoint`: write a container's processes to files, from which `restore` makes them again.

use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_getfl};

use super::args::Words;
use super::{Globals, delete};
use crate::criu::{self, Options};
use crate::error::{Context, Result};
use crate::fail;

const OPTIONS: [&str; 18] = [
    "image-path=",
    "work-path=",
    "parent-path=",
    "leave-running",
    "tcp-established",
    "tcp-skip-in-flight",
    "link-remap",
    "ext-unix-sk",
    "shell-job",
    "lazy-pages",
    "status-fd=",
    "page-server=",
    "file-locks",
    "pre-dump",
    "manage-cgroups-mode=",
    "empty-ns=",
    "auto-dedup",
    "help,h",
];

const USAGE: &str = "usage: gantry-run checkpoint [options] ID
  --image-path DIR        where the images go (checkpoint)
  --work-path DIR         where criu's log goes (with the images)
  --parent-path DIR       images of the dump before, relative to --image-path
  --leave-running         let the container run on
  --pre-dump              write its memory only and let it run on
  --tcp-established, --tcp-skip-in-flight, --ext-unix-sk, --file-locks, --shell-job, --link-remap, --auto-dedup
                          criu's options of these names
  --lazy-pages            leave memory to be asked for; --status-fd N gets a byte once it can be
  --page-server ADDRESS:PORT  send memory there
  --manage-cgroups-mode soft|full|strict|ignore (soft)
  --empty-ns network      accepted: networks are left to the engine
";

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &OPTIONS)?;
    if words.is_set("help") {
        say!("{}", USAGE.trim_end());
        return Ok(0);
    }
    let id = words.id()?;
    let mut asked = options(globals, &words)?;
    asked.leave_running = words.is_set("leave-running");
    asked.tcp_skip_in_flight = words.is_set("tcp-skip-in-flight");
    asked.link_remap = words.is_set("link-remap");
    asked.pre_dump = words.is_set("pre-dump");
    asked.page_server = words.value("page-server").map(criu::page_server).transpose()?;
    std::fs::create_dir_all(&asked.images).context(|| format!("create {}", asked.images.display()))?;
    if let Some(parent) = words.value("parent-path").filter(|p| !p.is_empty()) {
        let parent = Path::new(parent);
        if parent.is_absolute() || !asked.images.join(parent).is_dir() {
            fail!("--parent-path {}: not a folder relative to --image-path", parent.display());
        }
        asked.parent = Some(parent);
    }
    if let Some(number) = words.number("status-fd")?.filter(|n| *n >= 0) {
        let fd = gantry_sys::fd::inherited(number).context(|| format!("--status-fd {number}"))?;
        let flags = fcntl_getfl(&fd).context(|| format!("--status-fd {number}"))?;
        if !flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
            fail!("--status-fd {number}: not writable");
        }
        asked.status = Some(fd.into());
    }
    let goes_on = asked.leave_running || asked.pre_dump;
    let container = globals.store.open(id)?;
    let spec = container.spec()?;
    criu::dump(&container, &spec, asked)?;
    drop(container);
    if !goes_on {
        delete::delete(&globals.store, id, true)?;
    }
    Ok(0)
}

/// What `checkpoint` and `restore` have in common.
pub(super) fn options<'a>(globals: &'a Globals, words: &'a Words) -> Result<Options<'a>> {
    if let Some(other) = words.values("empty-ns").iter().find(|n| *n != "network") {
        fail!("--empty-ns: namespace {other:?} is not supported");
    }
    let images = PathBuf::from(words.value("image-path").filter(|p| !p.is_empty()).unwrap_or("checkpoint"));
    let images = std::path::absolute(&images).context(|| format!("--image-path {}", images.display()))?;
    Ok(Options {
        program: globals.criu.as_deref(),
        images,
        work: words.value("work-path").filter(|p| !p.is_empty()).map(Path::new),
        tcp_established: words.is_set("tcp-established"),
        ext_unix_sk: words.is_set("ext-unix-sk"),
        shell_job: words.is_set("shell-job"),
        lazy_pages: words.is_set("lazy-pages"),
        file_locks: words.is_set("file-locks"),
        auto_dedup: words.is_set("auto-dedup"),
        cgroup_mode: criu::cgroup_mode(words.value("manage-cgroups-mode").unwrap_or(""))?,
        lsm_profile: words.value("lsm-profile"),
        lsm_mount_context: words.value("lsm-mount-context"),
        ..Options::default()
    })
}
