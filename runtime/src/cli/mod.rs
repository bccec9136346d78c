//! The command line: runc's, word for word. One file a verb; this one knows the global options and reports errors.

/// Prints a line; whoever stopped reading (`| head -n 1`) is no reason to panic.
macro_rules! say {
    ($($words:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($words)*)));
    }};
}

/// The same on standard error.
macro_rules! complain {
    ($($words:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($words)*)));
    }};
}

mod args;
mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod foreground;
mod freeze;
mod kill;
mod list;
mod log;
mod ps;
mod restore;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::path::PathBuf;

use args::Words;
pub(crate) use log::{log_descriptor, warn};

use crate::error::{Error, Result};
use crate::state::Store;

const USAGE: &str = "gantry-run: an OCI container runtime with runc's command line

usage: gantry-run [global options] VERB [options] [ID] [arguments]

verbs:
  create ID        make a container from the bundle in --bundle (.), up to the point where `start` sets it off
  start ID         run the container's program
  run ID           create, start, wait, delete
  exec ID PROGRAM  run one more program in a container
  kill ID [SIGNAL] send a signal (TERM) to the container's first process; --all: to all
  delete ID        forget a stopped container; --force: kill it first
  state ID         print the container's state as JSON
  list, ps         list containers, or the processes of one
  pause, resume    freeze a container, let it go on
  update ID        change limits
  events ID        print what a container uses, and word of the OOM killer
  checkpoint ID    write a container's processes to files (needs criu)
  restore ID       make a container whose processes are those of such files
  spec             write an example config.json
  features         print what this runtime can do, as JSON

global options:
  --root DIR              where containers are kept (default /run/gantry-run)
  --log FILE              write errors and warnings there too
  --log-format text|json  the form of that file (default text)
  --log-level LEVEL       debug, info (default), warning or error
  --debug                 the same as --log-level debug
  --systemd-cgroup        take cgroup paths as SLICE:PREFIX:NAME (needs systemd)
  --rootless BOOL|auto    accepted
  --criu PROGRAM          the criu to use (default: the one on the path)
  --resctrl DIR           where shares of caches and memory bandwidth are set (default /sys/fs/resctrl)
  --help, --version

`gantry-run VERB --help` tells a verb's options.
";

/// What every verb may use.
pub(crate) struct Globals {
    pub(crate) store: Store,
    /// Where resctrl is mounted.
    pub(crate) resctrl: PathBuf,
    /// Whether systemd makes the cgroups.
    pub(crate) systemd: bool,
    /// criu's program, where not the one on the path.
    pub(crate) criu: Option<String>,
}

/// Runs the program; answers its exit code.
pub fn main() -> i32 {
    let words: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<String> = words.into_iter().map(|w| w.to_string_lossy().into_owned()).collect();
    match dispatch(words) {
        Ok(code) => code,
        Err(error) => {
            log::error(&error.to_string());
            1
        }
    }
}

fn dispatch(words: Vec<String>) -> Result<i32> {
    let globals = [
        "root=",
        "log=",
        "log-format=",
        "log-level=",
        "debug",
        "systemd-cgroup",
        "rootless=",
        "criu=",
        "resctrl=",
        "help,h",
        "version,v",
    ];
    let words = Words::leading(words, &globals)?;
    log::set_up(
        words.value("log"),
        words.value("log-format"),
        if words.is_set("debug") { "debug" } else { words.value("log-level").unwrap_or("info") },
    )?;
    if words.is_set("version") {
        say!("gantry-run version {}\nspec: {}", env!("CARGO_PKG_VERSION"), crate::spec::VERSION);
        return Ok(0);
    }
    let Some((verb, rest)) = words.rest().split_first() else {
        say!("{}", USAGE.trim_end());
        return Ok(0);
    };
    if words.is_set("help") || verb == "help" {
        say!("{}", USAGE.trim_end());
        return Ok(0);
    }
    if words.is_set("systemd-cgroup") {
        crate::cgroups::require_systemd()?;
    }
    let root = PathBuf::from(words.value("root").unwrap_or("/run/gantry-run"));
    let globals = Globals {
        store: Store::new(root),
        resctrl: PathBuf::from(words.value("resctrl").unwrap_or(crate::rdt::USUAL)),
        systemd: words.is_set("systemd-cgroup"),
        criu: words.value("criu").map(str::to_owned),
    };
    let rest = rest.to_vec();
    match verb.as_str() {
        "create" => create::main(&globals, rest),
        "start" => start::main(&globals, rest),
        "run" => run::main(&globals, rest),
        "exec" => exec::main(&globals, rest),
        "kill" => kill::main(&globals, rest),
        "delete" => delete::main(&globals, rest),
        "state" => state::main(&globals, rest),
        "list" => list::main(&globals, rest),
        "ps" => ps::main(&globals, rest),
        "pause" => freeze::main(&globals, rest, true),
        "resume" => freeze::main(&globals, rest, false),
        "update" => update::main(&globals, rest),
        "spec" => spec::main(rest),
        "features" => features::main(rest),
        "events" => events::main(&globals, rest),
        "checkpoint" => checkpoint::main(&globals, rest),
        "restore" => restore::main(&globals, rest),
        other => Err(Error::new(format!("unknown verb {other:?}: gantry-run --help lists them"))),
    }
}
