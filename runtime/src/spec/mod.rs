//! The OCI runtime configuration (config.json, specification 1.3, Linux) as plain data.
//!
//! Only what this runtime acts on is here; everything else in a file is ignored, as the specification asks. What is kept of
//! a configuration is its text; only the parts that go into a container's state are written again.

mod linux;
mod locate;
mod process;
mod validate;

pub use linux::*;
pub(crate) use locate::parse;
pub use process::*;
pub use validate::validate;
pub(crate) use validate::{process as validate_process, resources as validate_resources};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result};

/// The specification version that this runtime writes and reports.
pub const VERSION: &str = "1.3.0";

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Version of the specification that the file was written for.
    pub oci_version: String,
    /// The container's program; may be missing until `start`.
    pub process: Option<Process>,
    /// The root file system.
    pub root: Option<Root>,
    /// Host name in the container's UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name in the container's UTS namespace.
    pub domainname: Option<String>,
    /// Mounts, in order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Programs to run at points of the life cycle.
    pub hooks: Option<Hooks>,
    /// Free texts of the engine.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Everything about Linux.
    pub linux: Option<Linux>,
}

/// The root file system.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Root {
    /// Its folder, relative to the bundle or absolute.
    pub path: PathBuf,
    /// Whether the container may not write to it.
    #[serde(default)]
    pub readonly: bool,
}

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Where, inside the root.
    pub destination: PathBuf,
    /// File system type; none (or `bind`) for a bind mount.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    /// What: a host path, a device, or a name.
    pub source: Option<PathBuf>,
    /// Options as fstab(5) has them, and those of the specification.
    #[serde(default)]
    pub options: Vec<String>,
    /// User ids of an idmapped mount.
    #[serde(default)]
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids of an idmapped mount.
    #[serde(default)]
    pub gid_mappings: Vec<IdMapping>,
}

/// Programs to run at points of the life cycle.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Deprecated: as `create_runtime`, before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    /// In the runtime's namespaces, after the container's are made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before its root is entered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    /// In the container, before its program starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    /// In the runtime's namespaces, after the program started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// In the runtime's namespaces, after the container is deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// A program to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path.
    pub path: PathBuf,
    /// Arguments, the program's name first; only the path when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// A bundle: its folder and its configuration, as text and as data.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute, without links.
    pub folder: PathBuf,
    /// The configuration file.
    pub text: Vec<u8>,
    /// What is in it.
    pub spec: Spec,
}

impl Bundle {
    /// Reads and checks `config.json` of a bundle.
    ///
    /// # Errors
    /// The file is missing or no valid configuration; the message names the field.
    pub fn read(folder: &Path) -> Result<Self> {
        let folder = std::fs::canonicalize(folder).context(|| format!("bundle {}", folder.display()))?;
        let path = folder.join("config.json");
        let text = std::fs::read(&path).context(|| format!("open {}", path.display()))?;
        let spec: Spec = parse(&text).context(|| format!("parse {}", path.display()))?;
        validate(&spec).map_err(|e| crate::Error::new(format!("{}: {e}", path.display())))?;
        Ok(Self { folder, text, spec })
    }
}

impl Spec {
    /// The Linux part, empty where the file has none.
    pub fn linux(&self) -> std::borrow::Cow<'_, Linux> {
        match &self.linux {
            Some(linux) => std::borrow::Cow::Borrowed(linux),
            None => std::borrow::Cow::Owned(Linux::default()),
        }
    }
}
