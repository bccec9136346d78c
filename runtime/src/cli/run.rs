//! `run`: create, start, wait for the program, delete.

use std::path::Path;

use gantry_sys::process::set_child_subreaper;

use super::Globals;
use super::args::Words;
use super::{create, delete, foreground, start};
use crate::error::{Context, Result};
use crate::init::{self, Create};
use crate::protect;
use crate::spec::Bundle;

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let known = [&create::OPTIONS[..], &["detach,d", "keep", "no-subreaper"]].concat();
    let words = Words::anywhere(words, &known)?;
    if words.is_set("help") {
        say!(
            "usage: gantry-run run [options] ID\n  -d, --detach  do not wait\n  --keep        keep the container after its end\n  --no-subreaper, and the options of create"
        );
        return Ok(0);
    }
    let id = words.id()?;
    let preserved = create::preserved(&words)?;
    protect::enter_protected(preserved)?;
    let detach = words.is_set("detach");
    let bundle = Bundle::read(Path::new(words.value("bundle").unwrap_or(".")))?;
    let socket = words.value("console-socket").map(Path::new);
    let (console, own) = foreground::console(&bundle, socket, detach)?;
    if !detach && !words.is_set("no-subreaper") {
        set_child_subreaper(true).context(|| "become a subreaper".to_owned())?;
    }
    let ask = Create {
        id,
        bundle,
        console,
        pid_file: words.value("pid-file").map(Path::new),
        preserved,
        no_pivot: words.is_set("no-pivot"),
        resctrl: &globals.resctrl,
        systemd: globals.systemd,
    };
    let container = init::create(&globals.store, ask)?;
    let pid = container.state.pid;
    let started = start::start(&container);
    drop(container);
    if let Err(error) = started {
        let _ = delete::delete(&globals.store, id, true);
        return Err(error);
    }
    if detach {
        return Ok(0);
    }
    let code = foreground::wait_for(pid, own.as_ref())?;
    if !words.is_set("keep") {
        delete::delete(&globals.store, id, true)?;
    }
    Ok(code)
}
