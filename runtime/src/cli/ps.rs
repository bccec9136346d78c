//! `ps`: the processes of a container.

use std::process::Command;

use super::Globals;
use super::args::Words;
use crate::cgroups;
use crate::error::{Context, Result};
use crate::fail;

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::before_program(words, &["format,f=", "help,h"])?;
    let Some((id, options)) = words.rest().split_first() else { fail!("a container id is needed") };
    let container = globals.store.open(id)?;
    let pids = match cgroups::find(&container.state.place.cgroup)? {
        Some(group) => group.procs().context(|| "list the container's processes".to_owned())?,
        None => vec![container.state.pid],
    };
    match words.value("format").unwrap_or("table") {
        "json" => say!("{}", serde_json::json!(pids)),
        "table" => {
            let options = if options.is_empty() { vec!["-ef".to_owned()] } else { options.to_vec() };
            let output = Command::new("ps").args(&options).output().context(|| "run ps".to_owned())?;
            let text = String::from_utf8_lossy(&output.stdout);
            let mut lines = text.lines();
            let Some(title) = lines.next() else { fail!("ps printed nothing") };
            let Some(column) = title.split_whitespace().position(|w| w == "PID") else {
                fail!("ps {} prints no PID", options.join(" "))
            };
            say!("{title}");
            for line in lines {
                let pid = line.split_whitespace().nth(column).and_then(|w| w.parse().ok());
                if pid.is_some_and(|p: i32| pids.contains(&p)) {
                    say!("{line}");
                }
            }
        }
        other => fail!("--format: unknown format {other:?}, want table or json"),
    }
    Ok(0)
}
