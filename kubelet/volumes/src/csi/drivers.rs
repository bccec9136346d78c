//! The CSI drivers that have registered with this kubelet.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::Driver;

/// What a driver says of this node when it registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverNode {
    /// The node's name in the driver's storage system.
    pub node_id: String,
    /// How many of its volumes the node can hold; 0 for the driver's own choice.
    pub max_volumes: i64,
    /// Where the node is, for the scheduler: labels of the node.
    pub topology: BTreeMap<String, String>,
}

/// Drivers by name; cloning is cheap.
#[derive(Clone, Default)]
pub struct Drivers(Arc<Mutex<HashMap<String, Driver>>>);

impl Drivers {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Driver>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a driver that listens on `socket`, once it has told about this node. A driver of the same name is replaced.
    ///
    /// # Errors
    /// The driver does not answer as it should; it is not taken.
    pub async fn register(&self, name: &str, socket: &Path) -> Result<DriverNode, String> {
        let driver = Driver::new(name, socket);
        let info = driver.info().await.map_err(|e| e.to_string())?;
        if info.node_id.is_empty() {
            return Err(format!("NodeGetInfo of driver {name}: node_id is empty"));
        }
        self.lock().insert(name.to_owned(), driver);
        Ok(DriverNode {
            node_id: info.node_id,
            max_volumes: info.max_volumes_per_node,
            topology: info.accessible_topology.map(|t| t.segments.into_iter().collect()).unwrap_or_default(),
        })
    }

    /// Forgets a driver, unless another has taken its place on another socket. Tells whether it was forgotten.
    pub fn unregister(&self, name: &str, socket: &Path) -> bool {
        let mut drivers = self.lock();
        if drivers.get(name).is_some_and(|d| d.socket() == socket) {
            drivers.remove(name);
            return true;
        }
        false
    }

    pub(crate) fn get(&self, name: &str) -> Result<Driver, String> {
        let found = self.lock().get(name).cloned();
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }
}
