//! `list`: the containers of this root.

use super::Globals;
use super::args::Words;
use crate::error::Result;
use crate::fail;

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &["format,f=", "quiet,q", "help,h"])?;
    let containers: Vec<_> = globals.store.ids().iter().filter_map(|id| globals.store.open(id).ok()).collect();
    if words.is_set("quiet") {
        containers.iter().for_each(|c| println!("{}", c.state.id));
        return Ok(0);
    }
    match words.value("format").unwrap_or("table") {
        "json" => {
            let all: Vec<serde_json::Value> =
                containers.iter().filter_map(|c| serde_json::from_str(&c.public(c.status())).ok()).collect();
            println!("{}", serde_json::Value::Array(all));
        }
        "table" => {
            println!("{:<36} {:<8} {:<10} {:<44} {:<32} OWNER", "ID", "PID", "STATUS", "BUNDLE", "CREATED");
            for c in &containers {
                let (s, status) = (&c.state, c.status());
                let pid = if c.is_alive() { s.pid } else { 0 };
                println!(
                    "{:<36} {pid:<8} {:<10} {:<44} {:<32} root",
                    s.id,
                    status.name(),
                    s.bundle.display(),
                    s.created
                );
            }
        }
        other => fail!("--format: unknown format {other:?}, want table or json"),
    }
    Ok(0)
}
