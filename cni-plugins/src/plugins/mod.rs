//! The plugins by name.

mod bandwidth;
mod bridge;
mod firewall;
mod host_device;
mod host_local;
mod loopback;
mod macvlan;
mod portmap;
mod ptp;
mod sbr;
mod static_ipam;
mod tuning;
mod vxlan;

use crate::spec::{CniResult, Request, Result};

/// What a plugin does for each verb. DEL and GC are idempotent and complete after a half-done ADD.
pub trait Plugin {
    /// Attaches a container.
    ///
    /// # Errors
    /// It could not; nothing is left of the attempt.
    fn add(&self, request: &Request) -> Result<CniResult>;

    /// Detaches a container; what is not there is no error.
    ///
    /// # Errors
    /// Something is still there.
    fn del(&self, request: &Request) -> Result<()>;

    /// Looks whether the attachment is as ADD made it.
    ///
    /// # Errors
    /// What is not.
    fn check(&self, request: &Request) -> Result<()>;

    /// Looks whether ADD would work.
    ///
    /// # Errors
    /// Why it would not (code 50).
    fn status(&self, _request: &Request) -> Result<()> {
        Ok(())
    }

    /// Frees what belongs to no valid attachment.
    ///
    /// # Errors
    /// Something could not be freed.
    fn gc(&self, _request: &Request) -> Result<()> {
        Ok(())
    }

    /// Whether CHECK makes no sense without the result of ADD.
    fn needs_previous(&self) -> bool {
        true
    }
}

static PLUGINS: [(&str, &(dyn Plugin + Sync)); 14] = [
    ("bandwidth", &bandwidth::Bandwidth),
    ("bridge", &bridge::Bridge),
    ("firewall", &firewall::Firewall),
    ("host-device", &host_device::HostDevice),
    ("host-local", &host_local::HostLocal),
    ("loopback", &loopback::Loopback),
    ("macvlan", &macvlan::Macvlan),
    ("portmap", &portmap::Portmap),
    ("ptp", &ptp::Ptp),
    ("sbr", &sbr::Sbr),
    ("static", &static_ipam::Static),
    ("tuning", &tuning::Tuning),
    ("vxlan", &vxlan::Vxlan),
    ("flannel", &vxlan::Vxlan),
];

/// The plugin of a name.
pub fn find(name: &str) -> Option<&'static dyn Plugin> {
    PLUGINS.iter().find(|(n, _)| *n == name).map(|(_, p)| *p as &dyn Plugin)
}

/// All names.
pub fn names() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().map(|(n, _)| *n)
}

/// As far as a plugin decides on a request before it looks at anything.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn planned(name: &str, request: &Request) -> Result<()> {
    match name {
        "bandwidth" => bandwidth::planned(request),
        "bridge" => bridge::planned(request),
        "firewall" => firewall::planned(request),
        "host-device" => host_device::planned(request),
        "host-local" => host_local::planned(request),
        "macvlan" => macvlan::planned(request),
        "portmap" => portmap::planned(request),
        "ptp" => ptp::planned(request),
        "sbr" => sbr::planned(request),
        "static" => static_ipam::planned(request),
        "tuning" => tuning::planned(request),
        "vxlan" | "flannel" => vxlan::planned(request),
        _ => Ok(()),
    }
}

/// A field of a configuration that has a type of its own.
///
/// # Errors
/// It has another type (7, naming it).
pub fn field<T: serde::de::DeserializeOwned + Default>(value: &serde_json::Value, name: &str) -> Result<T> {
    match value.get(name) {
        None | Some(serde_json::Value::Null) => Ok(T::default()),
        Some(given) => {
            serde_json::from_value(given.clone()).map_err(|e| crate::spec::Error::config(format!("{name}: {e}")))
        }
    }
}
