//! The systemd driver: groups that are slices and scopes of a systemd manager.
//!
//! systemd makes and removes the group and knows its limits; the limits themselves are written to the group's files by
//! [`Cgroup`](crate::Cgroup) as under the other driver, since systemd has no property for many of them.

mod bus;
mod name;
mod properties;

use std::path::PathBuf;

use bus::Bus;
use gantry_dbus::{Encoder, Property, Value};
pub use name::Unit;

use crate::error::{Error, Result};
use crate::host::Version;
use crate::resources::Resources;

/// A manager that answers.
#[derive(Debug)]
pub struct Systemd {
    bus: Bus,
    /// Its own group, which all its units are below.
    root: PathBuf,
}

impl Systemd {
    /// Connects to the system's manager, or to the calling user's.
    ///
    /// # Errors
    /// No systemd runs here, or it refuses.
    pub fn connect(user: bool) -> Result<Self> {
        let mut bus = Bus::connect(user)?;
        let root = if user { bus.manager_property("ControlGroup")? } else { String::new() };
        Ok(Self { bus, root: PathBuf::from("/").join(root) })
    }

    /// A unit's group.
    pub fn group(&self, unit: &Unit) -> PathBuf {
        let path = unit.path();
        self.root.join(path.strip_prefix("/").unwrap_or(&path))
    }

    /// Starts a scope that a process is moved into. The group below is handed over: nothing but its own limits is systemd's.
    ///
    /// # Errors
    /// A scope of that name runs already, the process is gone, or systemd refuses a limit.
    pub fn start_scope(
        &mut self,
        unit: &Unit,
        what: &str,
        pid: i32,
        limits: &Resources,
        version: Version,
    ) -> Result<()> {
        let pid = u32::try_from(pid).map_err(|_| Error::Invalid(format!("{pid} is no process id")))?;
        let mut p = vec![
            ("Description", Value::Text(what.to_owned())),
            ("Slice", Value::Text(unit.parent().to_owned())),
            ("PIDs", Value::U32s(vec![pid])),
            ("Delegate", Value::Bool(true)),
        ];
        p.extend(common());
        p.extend(properties::of(limits, version)?);
        match self.start(unit, &p) {
            // A unit that failed (its processes were killed for want of memory) keeps its name until it is reset.
            Err(error) if error.is_taken() => {
                let _ = self.named("ResetFailedUnit", unit, None);
                self.start(unit, &p)
            }
            other => other,
        }
    }

    /// Starts a slice, or sets the limits of one that runs.
    ///
    /// # Errors
    /// systemd refuses.
    pub fn start_slice(&mut self, unit: &Unit, what: &str, limits: &Resources, version: Version) -> Result<()> {
        let mut p = vec![("Description", Value::Text(what.to_owned()))];
        p.extend(common());
        // Above it, so that stopping a parent ends what is below.
        p.extend((unit.parent() != "-.slice").then(|| ("Wants", Value::Texts(vec![unit.parent().to_owned()]))));
        p.extend(properties::of(limits, version)?);
        match self.start(unit, &p) {
            Err(error) if error.is_taken() => self.set(unit, limits, version),
            other => other,
        }
    }

    fn start(&mut self, unit: &Unit, properties: &[Property]) -> Result<()> {
        let mut body = Encoder::default();
        body.text(unit.name());
        body.text("replace");
        body.properties(properties);
        body.no_structures();
        let job = self.bus.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", &body)?.text(0).to_owned();
        match self.bus.wait_for(&job)?.as_str() {
            "done" => Ok(()),
            how => {
                let _ = self.named("ResetFailedUnit", unit, None);
                Err(Error::Systemd(format!("systemd could not start {}: the job ended as {how:?}", unit.name())))
            }
        }
    }

    /// Sets limits until the next boot; what is `None` stays as it is.
    ///
    /// # Errors
    /// The unit does not run, or systemd refuses a limit.
    pub fn set(&mut self, unit: &Unit, limits: &Resources, version: Version) -> Result<()> {
        let p = properties::of(limits, version)?;
        if p.is_empty() {
            return Ok(());
        }
        let mut body = Encoder::default();
        body.text(unit.name());
        body.bool(true);
        body.properties(&p);
        self.bus.manager("SetUnitProperties", "sba(sv)", &body).map(drop)
    }

    /// Stops a unit and forgets it; one that does not run is stopped already. Kill what is in it first: systemd waits for
    /// processes that do not end.
    ///
    /// # Errors
    /// systemd refuses, or does not come to an end.
    pub fn stop(&mut self, unit: &Unit) -> Result<()> {
        let unknown = |e: &Error| matches!(e, Error::Unit { name, .. } if name.ends_with(".NoSuchUnit"));
        match self.named("StopUnit", unit, Some("replace")) {
            Ok(job) => drop(self.bus.wait_for(&job)?),
            Err(error) if unknown(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        let _ = self.named("ResetFailedUnit", unit, None);
        Ok(())
    }

    fn named(&mut self, member: &str, unit: &Unit, mode: Option<&str>) -> Result<String> {
        let mut body = Encoder::default();
        body.text(unit.name());
        let signature = mode.map_or("s", |mode| {
            body.text(mode);
            "ss"
        });
        Ok(self.bus.manager(member, signature, &body)?.text(0).to_owned())
    }
}

/// What every unit of ours has.
fn common() -> Vec<Property> {
    let accounting = ["CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"];
    let mut p: Vec<Property> = accounting.into_iter().map(|name| (name, Value::Bool(true))).collect();
    // Not ended by the first step of a shutdown: the kubelet gives pods their time.
    p.push(("DefaultDependencies", Value::Bool(false)));
    p
}
