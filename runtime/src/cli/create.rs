//! `create`: make a container up to the point where its program waits for `start`.

use std::path::Path;

use super::Globals;
use super::args::Words;
use crate::error::Result;
use crate::fail;
use crate::init::{self, Create};
use crate::protect;
use crate::spec::Bundle;

pub(super) const OPTIONS: [&str; 7] =
    ["bundle,b=", "console-socket=", "pid-file=", "no-pivot", "no-new-keyring", "preserve-fds=", "help,h"];

const USAGE: &str = "usage: gantry-run create [options] ID
  -b, --bundle DIR       the bundle (default: the working folder)
  --console-socket PATH  unix socket that gets the terminal
  --pid-file FILE        where to write the first process's id
  --no-pivot             chroot instead of pivot_root
  --no-new-keyring       accepted
  --preserve-fds N       keep N descriptors after standard error open
";

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &OPTIONS)?;
    if words.is_set("help") {
        say!("{}", USAGE.trim_end());
        return Ok(0);
    }
    let id = words.id()?;
    let preserved = preserved(&words)?;
    protect::enter_protected(preserved)?;
    let console = init::console(words.value("console-socket").map(Path::new))?;
    let bundle = Bundle::read(Path::new(words.value("bundle").unwrap_or(".")))?;
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
    init::create(&globals.store, ask).map(|_| 0)
}

/// How many descriptors after standard error the program keeps.
pub(super) fn preserved(words: &Words) -> Result<i32> {
    let asked: i32 = words.number("preserve-fds")?.unwrap_or(0);
    if !(0..=65_536).contains(&asked) {
        fail!("--preserve-fds: {asked} is not a number in range");
    }
    Ok(asked)
}
