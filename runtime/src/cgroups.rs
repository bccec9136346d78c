//! The container's cgroup: found, made, limited and removed through `gantry_cgroup`, by its files or by systemd.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gantry_cgroup::{Cgroup, Host, Resources, Systemd, Unit};
use gantry_sys::process::{Cloned, clone3, exit_now, set_parent_death_signal, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::fail;

/// Where a container's group is, and the unit that it belongs to under the systemd driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Below every mount of a cgroup file system.
    pub(crate) cgroup: PathBuf,
    /// `SLICE:PREFIX:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<String>,
}

impl Place {
    /// What the configuration asks for: a path, below `/` where relative, `/ID` without a word of it; or a unit under the
    /// systemd driver, without a word of it `system.slice:gantry:ID`.
    ///
    /// # Errors
    /// It is no unit under the systemd driver; a user's systemd does not answer.
    pub(crate) fn find(asked: Option<&PathBuf>, id: &str, systemd: bool) -> Result<Self> {
        let asked = asked.filter(|path| !path.as_os_str().is_empty());
        if !systemd {
            let path = asked.map_or_else(|| Path::new("/").join(id), |path| Path::new("/").join(path));
            return Ok(Self { cgroup: path, unit: None });
        }
        let text = asked.map_or_else(|| format!(":gantry:{id}"), |path| path.to_string_lossy().into_owned());
        let unit = Unit::parse(&text, by_user()).context(|| "linux.cgroupsPath".to_owned())?;
        let cgroup = if by_user() { connect()?.group(&unit) } else { unit.path() };
        Ok(Self { cgroup, unit: Some(text) })
    }

    /// That no other container holds the unit, asked before this one is known: deleting it would stop theirs.
    ///
    /// # Errors
    /// Processes are in the unit's group.
    pub(crate) fn require_free(&self) -> Result<()> {
        let Some(unit) = self.unit()? else { return Ok(()) };
        match find(&self.cgroup)? {
            Some(group) if group.procs().is_ok_and(|pids| !pids.is_empty()) => {
                fail!(
                    "linux.cgroupsPath {}: {} exists and has processes",
                    self.unit.as_deref().unwrap_or(""),
                    unit.name()
                )
            }
            _ => Ok(()),
        }
    }

    fn unit(&self) -> Result<Option<Unit>> {
        let parsed = self.unit.as_ref().map(|text| Unit::parse(text, by_user())).transpose();
        parsed.context(|| "the container's unit".to_owned())
    }
}

/// Whether the manager to ask is that of a user.
fn by_user() -> bool {
    !nix::unistd::geteuid().is_root()
}

fn connect() -> Result<Systemd> {
    Systemd::connect(by_user()).context(|| "--systemd-cgroup".to_owned())
}

/// The host's cgroup mounts, looked up once.
///
/// # Errors
/// There are none.
pub(crate) fn host() -> gantry_cgroup::Result<&'static Host> {
    static HOST: OnceLock<Host> = OnceLock::new();
    match HOST.get() {
        Some(host) => Ok(host),
        None => Host::detect().map(|host| HOST.get_or_init(|| host)),
    }
}

/// The group at `path` on this host. Hosts without any cgroup file system have none.
///
/// # Errors
/// The path is not allowed.
pub(crate) fn find(path: &Path) -> Result<Option<Cgroup>> {
    let Ok(host) = host() else { return Ok(None) };
    host.cgroup(path).map(Some).context(|| format!("linux.cgroupsPath {}", path.display()))
}

/// The limits that this process may set: rules of devices are root's alone, and a user can make no device that they would stop.
fn allowed(limits: &Resources) -> Cow<'_, Resources> {
    match by_user() && limits.devices.is_some() {
        true => Cow::Owned(Resources { devices: None, ..limits.clone() }),
        false => Cow::Borrowed(limits),
    }
}

/// Whether a user's container goes without a group: none is delegated to the user, and the configuration asks for none.
pub(crate) fn goes_without(group: &Cgroup, asked: Option<&PathBuf>, limits: &Resources) -> bool {
    let nothing_asked = asked.is_none_or(|path| path.as_os_str().is_empty())
        && Resources { devices: None, ..limits.clone() } == Resources::default();
    if !by_user() || !nothing_asked {
        return false;
    }
    let denied = group.create().is_err_and(|error| error.is_denied());
    if denied {
        let _ = group.destroy();
    }
    denied
}

/// Makes the group and sets its limits; on failure nothing of it stays. Under the systemd driver the answer keeps the scope
/// alive until the container's first process is in it.
///
/// # Errors
/// The group cannot be made or a limit cannot be set.
pub(crate) fn create(group: &Cgroup, place: &Place, id: &str, limits: &Resources) -> Result<Option<Holder>> {
    let limits = allowed(limits);
    let limits = limits.as_ref();
    let Some(unit) = place.unit()? else {
        let made = group.create().and_then(|()| group.apply(limits));
        if made.is_err() {
            let _ = group.destroy();
        }
        return made.map(|()| None).context(|| format!("set up cgroup {}", group.path().display()));
    };
    let holder = Holder::new(limits.pids_limit)?;
    // The holder is a process too: a limit on their number waits until it is gone.
    let limits = Resources { pids_limit: None, ..limits.clone() };
    let mut systemd = connect()?;
    let what = format!("gantry container {id}");
    let started = systemd.start_scope(&unit, &what, holder.pid, &limits, group.version());
    if started.as_ref().is_err_and(gantry_cgroup::Error::is_taken) {
        // Somebody else's: what stops here must not be theirs.
        return started.map(|()| None).context(|| format!("set up {}", unit.name()));
    }
    let made = started.and_then(|()| group.create()).and_then(|()| group.apply(&limits));
    if made.is_err() {
        drop(holder);
        let _ = systemd.stop(&unit);
        let _ = group.destroy();
        return made.map(|()| None).context(|| format!("set up {}", unit.name()));
    }
    Ok(Some(holder))
}

/// Changes limits of a running container.
///
/// # Errors
/// A limit cannot be set.
pub(crate) fn update(group: &Cgroup, place: &Place, limits: &Resources) -> Result<()> {
    let limits = allowed(limits);
    let limits = limits.as_ref();
    if let Some(unit) = place.unit()? {
        connect()?.set(&unit, limits, group.version()).context(|| "update".to_owned())?;
    }
    group.apply(limits).context(|| "update".to_owned())
}

/// Removes the group, whose processes are gone, and its unit.
///
/// # Errors
/// It stays busy, or systemd does not stop the unit.
pub(crate) fn remove(group: Option<&Cgroup>, place: &Place) -> Result<()> {
    let stopped = match place.unit()? {
        Some(unit) => connect().and_then(|mut systemd| systemd.stop(&unit).context(|| format!("stop {}", unit.name()))),
        None => Ok(()),
    };
    if let Some(group) = group {
        group.destroy().context(|| "remove the cgroup".to_owned())?;
    }
    stopped
}

/// A process that does nothing but be in a scope: systemd starts none that is empty, and the container's first process is
/// cloned right into its group.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: i32,
    pids_limit: Option<i64>,
}

impl Holder {
    fn new(pids_limit: Option<i64>) -> Result<Self> {
        let runtime = nix::unistd::getpid();
        match clone3(0, None).context(|| "clone a process to hold the scope".to_owned())? {
            Cloned::Parent(pid, _) => Ok(Self { pid, pids_limit }),
            Cloned::Child => {
                // Ends with the runtime, however that ends.
                let _ = set_parent_death_signal(Signal::SIGKILL as i32);
                while nix::unistd::getppid() == runtime {
                    nix::unistd::pause();
                }
                exit_now(0)
            }
        }
    }

    /// Lets go of the scope once another process is in it, and sets what had to wait for that.
    ///
    /// # Errors
    /// The limit on processes cannot be set.
    pub(crate) fn leave(mut self, group: &Cgroup, place: &Place) -> Result<()> {
        let limits = Resources { pids_limit: self.pids_limit.take(), ..Resources::default() };
        drop(self);
        if limits.pids_limit.is_some() { update(group, place, &limits) } else { Ok(()) }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = wait(self.pid);
    }
}

/// That there is a systemd to drive cgroups with, before anything is made.
///
/// # Errors
/// There is none.
pub(crate) fn require_systemd() -> Result<()> {
    let there = by_user() || Path::new("/run/systemd/system").is_dir();
    if there {
        Ok(())
    } else {
        Err(Error::new("--systemd-cgroup: systemd is not running on this host (no /run/systemd/system)"))
    }
}
