//! `list`: the containers of this root.

use std::os::unix::fs::MetadataExt;

use super::Globals;
use super::args::Words;
use crate::error::Result;
use crate::fail;
use crate::state::Container;

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &["format,f=", "quiet,q", "help,h"])?;
    let containers: Vec<_> = globals.store.ids().iter().filter_map(|id| globals.store.open(id).ok()).collect();
    if words.is_set("quiet") {
        containers.iter().for_each(|c| say!("{}", c.state.id));
        return Ok(0);
    }
    match words.value("format").unwrap_or("table") {
        "json" => {
            let one = |c: &Container| {
                let mut one: serde_json::Value = serde_json::from_str(&c.public(c.status())).ok()?;
                one["owner"] = owner(c).into();
                Some(one)
            };
            let all: Vec<serde_json::Value> = containers.iter().filter_map(one).collect();
            say!("{}", serde_json::Value::Array(all));
        }
        "table" => {
            say!("{:<36} {:<8} {:<10} {:<44} {:<32} OWNER", "ID", "PID", "STATUS", "BUNDLE", "CREATED");
            for c in &containers {
                let (s, status) = (&c.state, c.status());
                let pid = if c.is_alive() { s.pid } else { 0 };
                say!(
                    "{:<36} {pid:<8} {:<10} {:<44} {:<32} {}",
                    s.id,
                    status.name(),
                    s.bundle.display(),
                    s.created,
                    owner(c)
                );
            }
        }
        other => fail!("--format: unknown format {other:?}, want table or json"),
    }
    Ok(0)
}

/// Who made a container: the name of the user, or `#` and a number where it has none.
fn owner(container: &Container) -> String {
    let Ok(folder) = std::fs::metadata(&container.folder) else { return String::new() };
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut users = users.lines().map(|line| line.split(':'));
    let uid = folder.uid().to_string();
    let user = users.find_map(|mut user| user.next().filter(|_| user.nth(1) == Some(&uid)));
    user.map_or_else(|| format!("#{uid}"), str::to_owned)
}
