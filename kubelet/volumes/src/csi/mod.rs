//! CSI volumes: what a driver stages for the node and publishes for a pod.
//!
//! The notes on disk are the truth about who uses what. They are written before the driver is asked, so a crash leaves
//! nothing that nobody remembers; all calls may be repeated, as CSI promises.

mod driver;
mod drivers;
mod mount;
mod places;
mod request;
mod stats;
mod unmount;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::SecretReference;

pub use drivers::{DriverNode, Drivers};
pub(crate) use places::{hex, in_use};

use crate::token::Tokens;
use crate::{Layout, Objects};

/// A CSI volume that a pod shall have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    /// The persistent volume's name, or that of the pod's volume where the source is inline.
    pub(crate) spec_name: String,
    pub(crate) driver: String,
    pub(crate) handle: String,
    /// Inline in the pod: the driver makes it for the pod, and nothing is staged.
    pub(crate) ephemeral: bool,
    pub(crate) fs_type: String,
    pub(crate) mount_flags: Vec<String>,
    pub(crate) access_modes: Vec<String>,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) read_only: bool,
    /// A raw device instead of a file system.
    pub(crate) block: bool,
    pub(crate) stage_secret: Option<SecretReference>,
    pub(crate) publish_secret: Option<SecretReference>,
    pub(crate) expand_secret: Option<SecretReference>,
}

/// All CSI volumes of the node.
pub(crate) struct Csi {
    layout: Layout,
    objects: Arc<dyn Objects>,
    tokens: Arc<Tokens>,
    pub(crate) drivers: Drivers,
    /// One at a time for each volume of a driver, so that nobody unstages what another is about to publish.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    sweeping: tokio::sync::Mutex<()>,
}

impl Csi {
    pub(crate) fn new(layout: Layout, objects: Arc<dyn Objects>, tokens: Arc<Tokens>) -> Self {
        Self {
            layout,
            objects,
            tokens,
            drivers: Drivers::default(),
            busy: Mutex::default(),
            sweeping: tokio::sync::Mutex::default(),
        }
    }

    /// The turn to work on one volume. Every call to a driver has a limit, so every turn ends.
    async fn turn(&self, driver: &str, handle: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| Arc::strong_count(lock) > 1);
            busy.entry(format!("{driver}^{handle}")).or_default().clone()
        };
        lock.lock_owned().await
    }
}
