//! `restore`: a container whose processes go on from where `checkpoint` wrote them.

use std::path::Path;

use gantry_sys::process::set_child_subreaper;

use super::args::Words;
use super::{Globals, checkpoint, delete, foreground};
use crate::criu::{self, Restore};
use crate::error::{Context, Result};
use crate::init;
use crate::spec::Bundle;

const OPTIONS: [&str; 18] = [
    "bundle,b=",
    "console-socket=",
    "image-path=",
    "work-path=",
    "tcp-established",
    "ext-unix-sk",
    "shell-job",
    "file-locks",
    "manage-cgroups-mode=",
    "detach,d",
    "pid-file=",
    "no-subreaper",
    "no-pivot",
    "empty-ns=",
    "auto-dedup",
    "lazy-pages",
    "lsm-profile=",
    "help,h",
];

const USAGE: &str = "usage: gantry-run restore [options] ID
  -b, --bundle DIR        the bundle (default: the working folder)
  --image-path DIR        where `checkpoint` wrote the images (checkpoint)
  --work-path DIR         where criu's log goes (with the images)
  -d, --detach            do not wait for the program's end
  --pid-file FILE         where to write the first process's id
  --console-socket PATH   unix socket that gets the terminal
  --tcp-established, --ext-unix-sk, --shell-job, --file-locks, --auto-dedup, --lazy-pages, --lsm-profile TYPE:NAME,
  --lsm-mount-context LABEL
                          criu's options of these names
  --manage-cgroups-mode soft|full|strict|ignore (soft)
  --empty-ns network, --no-pivot  accepted
  --no-subreaper          leave processes whose parent ends to others
";

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &[&OPTIONS[..], &["lsm-mount-context="]].concat())?;
    if words.is_set("help") {
        say!("{}", USAGE.trim_end());
        return Ok(0);
    }
    let id = words.id()?;
    let options = checkpoint::options(globals, &words)?;
    let detach = words.is_set("detach");
    let bundle = Bundle::read(Path::new(words.value("bundle").filter(|b| !b.is_empty()).unwrap_or(".")))?;
    let socket = words.value("console-socket").filter(|s| !s.is_empty()).map(Path::new);
    let (console, own) = foreground::console(&bundle, socket, detach)?;
    if !detach && !words.is_set("no-subreaper") {
        set_child_subreaper(true).context(|| "become a subreaper".to_owned())?;
    }
    let ask = Restore { id, bundle, console, resctrl: &globals.resctrl, systemd: globals.systemd, options };
    let container = criu::restore(&globals.store, ask)?;
    let pid = container.state.pid;
    drop(container);
    if let Err(error) = init::write_pid_file(words.value("pid-file").map(Path::new), pid) {
        let _ = delete::delete(&globals.store, id, true);
        return Err(error);
    }
    if detach {
        return Ok(0);
    }
    let code = foreground::wait_for(pid, own.as_ref())?;
    delete::delete(&globals.store, id, true)?;
    Ok(code)
}
