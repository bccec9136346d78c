//! The runtime's own program is out of the container's reach (CVE-2019-5736).
//!
//! A container can reach the program of a process in it through `/proc/PID/exe`, or make the runtime execute itself through
//! `#!/proc/self/exe`. So whatever enters a container runs from a sealed memory file: nobody can write to that, and the
//! program on disk is never its image. An engine that starts the runtime from such a file already saves this step.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::error::{Context, Result};

/// Goes on in a sealed copy of this program, unless that is what runs.
///
/// # Errors
/// The copy cannot be made or started.
pub(crate) fn reexec_sealed() -> Result<()> {
    let mut program = File::open("/proc/self/exe").context(|| "open /proc/self/exe".to_owned())?;
    if gantry_sys::fd::is_sealed(&program) {
        return Ok(());
    }
    let mut copy = || -> io::Result<File> {
        let mut file = gantry_sys::fd::memory_file("gantry-run")?;
        io::copy(&mut program, &mut file)?;
        gantry_sys::fd::seal(&file)?;
        Ok(file)
    };
    let sealed = copy().context(|| "copy the runtime into a sealed memory file".to_owned())?;
    let c = |bytes: Vec<u8>| CString::new(bytes).context(|| "pass arguments on".to_owned());
    let argv = std::env::args_os().map(|a| c(a.into_vec())).collect::<Result<Vec<_>>>()?;
    let pair = |(k, v): (std::ffi::OsString, std::ffi::OsString)| c([k.as_bytes(), b"=", v.as_bytes()].concat());
    let envp = std::env::vars_os().map(pair).collect::<Result<Vec<_>>>()?;
    let error = gantry_sys::process::exec_fd(sealed.as_fd(), &argv, &envp);
    Err(error).context(|| "run the sealed copy of the runtime".to_owned())
}
