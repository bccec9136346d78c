//! `pause` and `resume`: freeze a container's processes, let them go on.

use super::Globals;
use super::args::Words;
use crate::cgroups;
use crate::error::{Context, Result};
use crate::fail;
use crate::state::Status;

pub(super) fn main(globals: &Globals, words: Vec<String>, freeze: bool) -> Result<i32> {
    let words = Words::anywhere(words, &[])?;
    let container = globals.store.open(words.id()?)?;
    let Some(group) = cgroups::find(&container.state.place.cgroup)? else { fail!("this host has no cgroups") };
    match (container.status(), freeze) {
        (Status::Running | Status::Created, true) => group.freeze().context(|| "pause".to_owned())?,
        (Status::Paused, false) => group.thaw().context(|| "resume".to_owned())?,
        (status, true) => fail!("cannot pause a container in the {} state", status.name()),
        (status, false) => fail!("cannot resume a container in the {} state", status.name()),
    }
    Ok(0)
}
