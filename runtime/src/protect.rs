//! The runtime's own program is out of the container's reach (CVE-2019-5736).
//!
//! A container can reach the program of a process in it through `/proc/PID/exe`, or make the runtime execute itself through
//! `#!/proc/self/exe`. So whatever enters a container runs from a place that nobody can write to: the program seen through a
//! read-only mount that hangs nowhere. The mount is let go of before any container exists: then the kernel changes nothing
//! about it any more, for nobody (while it is held, mount_setattr(2) in a user namespace could make it writable). Where such a
//! mount cannot be made the program is copied into a sealed memory file. An engine that starts the runtime from either already
//! saves this step.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use gantry_sys::{fd, mount};
use rustix::fs::CWD;

use crate::cli::log_descriptor;
use crate::error::{Context, Result};

const PROGRAM: &str = "/proc/self/exe";

/// Goes on in a protected view of this program, unless that is what runs; closes what this process inherited beyond
/// `preserved` descriptors after standard error, so that nothing of it can be reached from inside a container
/// (CVE-2024-21626).
///
/// # Errors
/// The view cannot be made or started.
pub(crate) fn enter_protected(preserved: i32) -> Result<()> {
    let program = File::open(PROGRAM).context(|| format!("open {PROGRAM}"))?;
    if fd::is_sealed(&program) || fd::is_on_read_only_mount(&program) {
        drop(program);
        let first = preserved.saturating_add(3);
        return fd::close_inherited(first, log_descriptor()).context(|| "close inherited descriptors".to_owned());
    }
    let view = read_only(Path::new(PROGRAM)).or_else(|_| copy(program));
    let view = view.context(|| "protect the runtime's program".to_owned())?;
    let c = |bytes: Vec<u8>| CString::new(bytes).context(|| "pass arguments on".to_owned());
    let argv = std::env::args_os().map(|a| c(a.into_vec())).collect::<Result<Vec<_>>>()?;
    let pair = |(k, v): (std::ffi::OsString, std::ffi::OsString)| c([k.as_bytes(), b"=", v.as_bytes()].concat());
    let envp = std::env::vars_os().map(pair).collect::<Result<Vec<_>>>()?;
    let error = gantry_sys::process::exec_fd(view.as_fd(), &argv, &envp);
    Err(error).context(|| "run the protected runtime".to_owned())
}

fn read_only(program: &Path) -> io::Result<OwnedFd> {
    let tree = mount::clone_tree(CWD, program, false)?;
    let attributes = mount::Attributes { set: mount::RDONLY, ..mount::Attributes::default() };
    mount::set_attributes(tree.as_fd(), attributes, false, None)?;
    Ok(tree)
}

fn copy(mut program: File) -> io::Result<OwnedFd> {
    let mut file = fd::memory_file("gantry-run")?;
    io::copy(&mut program, &mut file)?;
    fd::seal(&file)?;
    Ok(file.into())
}
