//! Writing a container's processes to files.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gantry_sys::namespaces::Kind;
use gantry_sys::root::Root;

use super::session::Session;
use super::wire::{self, Message, Work};
use super::{DESCRIPTORS, Options, outside_key, places};
use crate::cgroups;
use crate::error::{Context, Result};
use crate::fail;
use crate::plan::namespaces;
use crate::spec::Spec;
use crate::state::{Container, Status};

/// Writes the processes of a running container. They go on where that was asked for, and when anything goes wrong.
///
/// # Errors
/// It does not run, or criu cannot write it: in criu's words, with the name of its log.
pub(crate) fn dump(container: &Container, spec: &Spec, mut asked: Options<'_>) -> Result<()> {
    let before = container.status();
    if !matches!(before, Status::Running | Status::Paused) {
        fail!("cannot checkpoint a container in the {} state", before.name());
    }
    let pid = container.state.pid;
    let mut all = asked.message(spec, "dump.log")?;
    let options = &mut all.options;
    options.text(wire::ROOT, &container.state.rootfs.to_string_lossy()).number(wire::PID, pid as u64);
    options.number(wire::LEAVE_RUNNING, u64::from(asked.leave_running));
    options.number(wire::TCP_SKIP_IN_FLIGHT, u64::from(asked.tcp_skip_in_flight));
    options.number(wire::LINK_REMAP, u64::from(asked.link_remap));
    if let Some(parent) = asked.parent {
        options.text(wire::PARENT_IMG, &parent.to_string_lossy()).number(wire::TRACK_MEM, 1);
    }
    if let Some((address, port)) = asked.page_server {
        let mut server = Message::default();
        server.text(1, address).number(2, port.into());
        options.message(wire::PAGE_SERVER, &server);
    }
    let namespaces = namespaces::plan(&spec.linux());
    for kind in [Kind::Network, Kind::Pid] {
        let Some(path) = namespaces.joins(kind) else { continue };
        let inode = fs::metadata(path).context(|| format!("find {}", path.display()))?.ino();
        options.text(wire::EXTERNAL, &format!("{}[{inode}]:{}", kind.proc_name(), outside_key(kind)));
    }
    let group = cgroups::find(&container.state.place.cgroup)?;
    // Processes that are stopped together cannot make others while criu looks at them one after another.
    let freezer = group.as_ref().and_then(|g| g.folder("freezer").or_else(|| g.unified_folder()));
    if let Some(folder) = freezer.filter(|f| f.join("freezer.state").exists() || f.join("cgroup.freeze").exists()) {
        options.text(wire::FREEZE_CGROUP, &folder.to_string_lossy());
    }
    if !asked.pre_dump {
        name_outside(options, container, spec, &namespaces)?;
        let path = asked.images.join(DESCRIPTORS);
        let text = serde_json::to_vec(&descriptors(pid)).context(|| "list descriptors".to_owned())?;
        fs::write(&path, text).context(|| format!("write {}", path.display()))?;
    }
    let mut status = asked.status.take();
    let reached = |point: &str, _: i32, _| {
        if let Some(mut status) = status.take_if(|_| point == "status-ready") {
            status.write_all(&[0]).context(|| "write to --status-fd".to_owned())?;
        }
        Ok(())
    };
    let work = if asked.pre_dump { Work::PreDump } else { Work::Dump };
    let session = Session::start(asked.program, &[], true)?;
    let done = session.work(work, options, &all.log, reached);
    // Killed in the middle, criu leaves the group frozen.
    if let (Err(_), Some(group)) = (&done, group.filter(|g| before == Status::Running && g.is_frozen())) {
        group.thaw().context(|| "let the container go on".to_owned())?;
    }
    done.map(drop)
}

/// Tells what the images shall not hold: it comes from outside.
fn name_outside(
    options: &mut Message,
    container: &Container,
    spec: &Spec,
    namespaces: &namespaces::Namespaces,
) -> Result<()> {
    let state = &container.state;
    let path = format!("/proc/{}/root", state.pid);
    let root = Root::open(Path::new(&path)).context(|| format!("open {path}"))?;
    for outside in places::outside(spec, &state.bundle, &state.place.cgroup, namespaces)? {
        let place = places::resolved(&root, Path::new("/"), &outside.destination);
        let place = place.to_string_lossy();
        options.pair(wire::EXT_MNT, &place, &place);
    }
    for file in places::masked_files(spec, &root) {
        options.pair(wire::EXT_MNT, &file.to_string_lossy(), "/dev/null");
    }
    Ok(())
}

/// What the program's standard descriptors are, as the kernel names them.
fn descriptors(pid: i32) -> [String; 3] {
    let name = |fd: i32| fs::read_link(format!("/proc/{pid}/fd/{fd}")).map(|l| l.to_string_lossy().into_owned());
    [0, 1, 2].map(|fd| name(fd).unwrap_or_default())
}
