//! Where firewalld keeps the host's rules, containers' addresses become sources of one of its zones, as with the reference
//! plugin. It forgets them when it reloads or restarts; what it should hold is remembered below /run, so that STATUS puts it
//! back and DEL needs no result of ADD.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_dbus::{Call, Connection, Encoder, Error as BusError, Message};
use gantry_files::{Access, Outlives};
use serde::{Deserialize, Serialize};

use crate::spec::{Context, Result};
use crate::table;

const NAME: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const ZONE: &str = "org.fedoraproject.FirewallD1.zone";
/// A reload of firewalld takes seconds on a host with many rules.
const PATIENCE: Duration = Duration::from_secs(30);

/// The conversation with a firewalld that runs.
#[derive(Debug)]
pub struct Firewalld(Connection);

/// What one owner has in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    owner: String,
    zone: String,
    sources: Vec<String>,
}

/// An address as a source.
fn source(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

/// The socket in a bus address such as `unix:path=/run/dbus/system_bus_socket,guid=1`; that of the system without one.
fn bus(address: &str) -> PathBuf {
    let first = address.split(';').find_map(|a| a.strip_prefix("unix:"));
    let path = first.and_then(|a| a.split(',').find_map(|pair| pair.strip_prefix("path=")));
    path.unwrap_or("/run/dbus/system_bus_socket").into()
}

impl Firewalld {
    /// The one that runs on this host; none when there is no system bus, or none on it.
    ///
    /// # Errors
    /// The bus refuses.
    pub fn running() -> Result<Option<Self>> {
        let path = bus(&std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default());
        if !path.exists() {
            return Ok(None);
        }
        let Ok(mut bus) = Connection::open(&path, "the system bus", PATIENCE) else { return Ok(None) };
        let ask = |bus: &mut Connection| -> std::result::Result<bool, BusError> {
            bus.hello()?;
            let mut body = Encoder::default();
            body.text(NAME);
            let (name, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
            // Asked for its name it is not started, as it would be by a call.
            let call = Call { destination: name, path, interface: name, member: "NameHasOwner", signature: "s" };
            Ok(bus.call(&call, &body)?.number(0) == Some(1))
        };
        let runs = ask(&mut bus).doing(|| "ask the system bus for firewalld".into())?;
        Ok(runs.then_some(Self(bus)))
    }

    fn call(&mut self, member: &str, zone: &str, source: &str) -> std::result::Result<Message, BusError> {
        let mut body = Encoder::default();
        body.text(zone);
        body.text(source);
        self.0.call(&Call { destination: NAME, path: PATH, interface: ZONE, member, signature: "ss" }, &body)
    }

    fn take_in(&mut self, zone: &str, source: &str) -> Result<()> {
        let added = match self.call("addSource", zone, source) {
            Err(e) if says(&e, "ZONE_ALREADY_SET") => Ok(()),
            other => other.map(drop),
        };
        added.doing(|| format!("add the address {source} to firewalld's zone {zone}"))
    }

    fn leave_out(&mut self, zone: &str, source: &str) -> Result<()> {
        let removed = match self.call("removeSource", zone, source) {
            // Gone, moved to another zone by somebody, or the zone is no more.
            Err(e) if ["UNKNOWN_SOURCE", "ZONE_CONFLICT", "INVALID_ZONE"].iter().any(|word| says(&e, word)) => Ok(()),
            other => other.map(drop),
        };
        removed.doing(|| format!("remove the address {source} from firewalld's zone {zone}"))
    }

    /// Gives addresses of an owner to a zone.
    ///
    /// # Errors
    /// It refuses; nothing is kept then.
    pub fn add(&mut self, owner: &str, zone: &str, ips: &[IpAddr]) -> Result<()> {
        let sources: Vec<_> = ips.iter().map(|ip| source(*ip)).collect();
        let kept = Kept { owner: owner.to_owned(), zone: zone.to_owned(), sources };
        kept.write().doing(|| "remember what firewalld shall hold".into())?;
        let added = kept.sources.iter().try_for_each(|source| self.take_in(zone, source));
        if added.is_err() {
            let _ = self.forget(&kept);
        }
        added
    }

    fn forget(&mut self, kept: &Kept) -> Result<()> {
        kept.sources.iter().try_for_each(|source| self.leave_out(&kept.zone, source))?;
        kept.remove();
        Ok(())
    }

    /// Which of these addresses is not in a zone.
    ///
    /// # Errors
    /// It refuses.
    pub fn missing(&mut self, zone: &str, ips: &[IpAddr]) -> Result<Option<IpAddr>> {
        for ip in ips {
            let there = self.call("querySource", zone, &source(*ip));
            let there = there.doing(|| format!("look for the address {ip} in firewalld's zone {zone}"))?;
            if there.number(0) != Some(1) {
                return Ok(Some(*ip));
            }
        }
        Ok(None)
    }
}

fn says(error: &BusError, word: &str) -> bool {
    matches!(error, BusError::Refused { text, name, .. } if text.contains(word) || name.contains(word))
}

/// Takes from firewalld what is remembered of owners that are not to be kept. One that does not run holds nothing.
///
/// # Errors
/// It refuses.
pub fn retain(keep: impl Fn(&str) -> bool) -> Result<()> {
    let gone: Vec<_> = Kept::all().into_iter().filter(|kept| !keep(&kept.owner)).collect();
    if gone.is_empty() {
        return Ok(());
    }
    match Firewalld::running()? {
        Some(mut firewalld) => gone.iter().try_for_each(|kept| firewalld.forget(kept)),
        None => {
            gone.iter().for_each(Kept::remove);
            Ok(())
        }
    }
}

/// Puts back what a reload or restart of firewalld has taken away.
///
/// # Errors
/// It refuses.
pub fn restore() -> Result<()> {
    let all = Kept::all();
    if all.is_empty() {
        return Ok(());
    }
    let Some(mut firewalld) = Firewalld::running()? else { return Ok(()) };
    all.iter().try_for_each(|kept| kept.sources.iter().try_for_each(|source| firewalld.take_in(&kept.zone, source)))
}

impl Kept {
    fn folder() -> Option<PathBuf> {
        table::remembered().map(|folder| folder.join("firewalld"))
    }

    fn path(&self, folder: &Path) -> PathBuf {
        let hash = self
            .owner
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        folder.join(format!("{hash:016x}"))
    }

    fn write(&self) -> io::Result<()> {
        let folder = Self::folder().ok_or_else(|| io::Error::from(ErrorKind::Unsupported))?;
        fs::create_dir_all(&folder)?;
        gantry_files::replace(&self.path(&folder), &serde_json::to_vec(self)?, Access::Umask, Outlives::Program)
    }

    /// The folders go with their last file.
    fn remove(&self) {
        let Some(folder) = Self::folder() else { return };
        if fs::remove_file(self.path(&folder)).is_ok() && fs::remove_dir(&folder).is_ok() {
            let _ = folder.parent().map(fs::remove_dir);
        }
    }

    fn all() -> Vec<Self> {
        let files = Self::folder().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        files.filter_map(|file| serde_json::from_slice(&fs::read(file.path()).ok()?).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_found_by_its_address() {
        for (address, path) in [
            ("", "/run/dbus/system_bus_socket"),
            ("unix:path=/tmp/bus", "/tmp/bus"),
            ("tcp:host=x;unix:guid=1,path=/tmp/bus", "/tmp/bus"),
            ("unix:abstract=/tmp/bus", "/run/dbus/system_bus_socket"),
        ] {
            assert_eq!(bus(address), Path::new(path), "{address}");
        }
    }

    #[test]
    fn an_address_is_a_source_of_its_own() {
        assert_eq!(source("10.1.2.3".parse().unwrap()), "10.1.2.3/32");
        assert_eq!(source("fd00::3".parse().unwrap()), "fd00::3/128");
    }
}
