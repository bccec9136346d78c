//! `exec`: one more program in a running container.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::Globals;
use super::args::Words;
use super::create::preserved;
use super::foreground;
use crate::error::{Context, Result};
use crate::fail;
use crate::init::{self, Exec};
use crate::protect;
use crate::spec::{Capabilities, Process};
use crate::state::Status;

const OPTIONS: [&str; 18] = [
    "tty,t",
    "detach,d",
    "process,p=",
    "pid-file=",
    "console-socket=",
    "user,u=",
    "additional-gids,g=",
    "cwd=",
    "env,e=",
    "cap,c=",
    "no-new-privs",
    "preserve-fds=",
    "cgroup=",
    "ignore-paused",
    "apparmor=",
    "process-label=",
    "console-size=",
    "help,h",
];

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::before_program(words, &OPTIONS)?;
    if words.is_set("help") {
        say!(
            "usage: gantry-run exec [options] ID PROGRAM [ARGUMENTS]\n       gantry-run exec [options] --process FILE ID\n  options: {}",
            OPTIONS.join(" ")
        );
        return Ok(0);
    }
    let Some((id, program)) = words.rest().split_first() else { fail!("a container id is needed") };
    let preserved = preserved(&words)?;
    protect::enter_protected(preserved)?;
    let container = globals.store.open(id)?;
    match container.status() {
        Status::Running | Status::Created => {}
        Status::Paused if words.is_set("ignore-paused") => {}
        Status::Paused => fail!("cannot exec in a paused container (use --ignore-paused)"),
        status => fail!("cannot exec in a container in the {} state", status.name()),
    }
    let mut spec = container.spec()?;
    let process = process(&words, program, spec.process.take().unwrap_or_default())?;
    let detach = words.is_set("detach");
    let socket = words.value("console-socket").map(Path::new);
    let (console, own) = match (process.terminal, socket) {
        (true, None) if detach => fail!("a detached process with a terminal needs --console-socket"),
        (true, None) => {
            let (theirs, ours) = UnixStream::pair().context(|| "make a socket pair".to_owned())?;
            (Some(theirs), Some(ours))
        }
        (true, Some(_)) => (init::console(socket)?, None),
        (false, _) => (None, None),
    };
    let ask = Exec {
        spec: &spec,
        process: &process,
        console,
        pid_file: words.value("pid-file").map(Path::new),
        preserved,
        sub_cgroup: words.value("cgroup").map(Path::new),
    };
    let pid = init::exec(&container, ask)?;
    drop(container);
    if detach { Ok(0) } else { foreground::wait_for(pid, own.as_ref()) }
}

/// The process to start: a file's, or the container's own with what the options change.
fn process(words: &Words, program: &[String], base: Process) -> Result<Process> {
    if let Some(path) = words.value("process") {
        let bytes = std::fs::read(path).context(|| format!("--process: read {path}"))?;
        let process: Process = crate::spec::parse(&bytes).context(|| format!("--process {path}"))?;
        crate::spec::validate_process("process", &process).context(|| format!("--process {path}"))?;
        return Ok(process);
    }
    if program.is_empty() {
        fail!("a program to run is needed");
    }
    let mut process = Process { args: program.to_vec(), terminal: words.is_set("tty"), ..base };
    process.env.extend(words.values("env").iter().cloned());
    if let Some(cwd) = words.value("cwd") {
        process.cwd = cwd.into();
    }
    if let Some(user) = words.value("user") {
        let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
        let number = |text: &str| text.parse().context(|| format!("--user: {text:?} is not a number"));
        process.user.uid = number(uid)?;
        if !gid.is_empty() {
            process.user.gid = number(gid)?;
        }
    }
    for gid in words.values("additional-gids") {
        process.user.additional_gids.push(gid.parse().context(|| format!("--additional-gids: {gid:?}"))?);
    }
    if words.is_set("no-new-privs") {
        process.no_new_privileges = true;
    }
    if let Some(profile) = words.value("apparmor") {
        process.apparmor_profile = Some(profile.to_owned());
    }
    if let Some(label) = words.value("process-label") {
        process.selinux_label = Some(label.to_owned());
    }
    let caps = process.capabilities.get_or_insert_with(Capabilities::default);
    for cap in words.values("cap") {
        for set in [&mut caps.bounding, &mut caps.effective, &mut caps.permitted] {
            set.push(cap.clone());
        }
    }
    Ok(process)
}
