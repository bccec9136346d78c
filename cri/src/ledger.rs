//! What was decided, on disk: one JSON file per sandbox and container, written before anything is done about it.
//!
//! A killed daemon finds every record that it wrote. That a record outlives a power failure ([`Ledger::sync`]) is waited for once
//! per sandbox, before anyone is told of it, and once per container, before it starts: namespaces, mounts and processes do not
//! outlive one, so that later changes need not either.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_files::{Access, Outlives, remove};
use gantry_monitor::record::ExitRecord;
use prost::Message;
use proto::cri;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A protobuf message inside a record.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wire<T>(pub T);

impl<T: Message> Serialize for Wire<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0.encode_to_vec()))
    }
}

impl<'de, T: Message + Default> Deserialize<'de> for Wire<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        T::decode(bytes.as_slice()).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A pod sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Id.
    pub id: String,
    /// What was asked for.
    pub config: Wire<cri::PodSandboxConfig>,
    /// RuntimeClass handler.
    pub handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The boot in which it was made.
    pub boot: String,
    /// All parts were made; false while being made.
    pub complete: bool,
    /// Stopped (or lost to a reboot).
    pub stopped: bool,
    /// Pod addresses, the first the main one.
    pub ips: Vec<String>,
    /// The CNI configuration list used, for DEL.
    pub cni_config: Option<serde_json::Value>,
    /// The last CNI result.
    pub cni_result: Option<serde_json::Value>,
    /// Init of the pod's PID namespace.
    pub pid_init: Option<i32>,
    /// Somebody asked for its removal, which could not be finished yet.
    #[serde(default)]
    pub doomed: bool,
}

/// A container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Id.
    pub id: String,
    /// Its sandbox.
    pub sandbox: String,
    /// What was asked for.
    pub config: Wire<cri::ContainerConfig>,
    /// Image id.
    pub image_id: String,
    /// Image reference with digest, where known.
    pub image_ref: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0 when not started.
    pub started_at: i64,
    /// All parts were made.
    pub complete: bool,
    /// Cgroup path.
    pub cgroup: String,
    /// Full log path, empty for none.
    pub log_path: String,
    /// Signal for stopping, as the image or the request says.
    pub stop_signal: String,
    /// User id, group id and further groups it runs as.
    pub user: (u32, u32, Vec<u32>),
    /// Current resources.
    pub resources: Wire<cri::LinuxContainerResources>,
    /// How it ended.
    pub exit: Option<ExitRecord>,
    /// Why, when it is not the exit code that says it.
    pub reason: String,
    /// In words.
    pub message: String,
    /// Snapshots of image volumes.
    #[serde(default)]
    pub views: Vec<String>,
    /// The checkpoint that it starts from, until it has started.
    #[serde(default)]
    pub restore: Option<PathBuf>,
    /// A checkpoint of it is being written.
    #[serde(default)]
    pub checkpoint: Option<Checkpointing>,
    /// Somebody asked for its removal, which could not be finished yet.
    #[serde(default)]
    pub doomed: bool,
}

/// What has to be let go of when a checkpoint is written, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpointing {
    /// The folder of its parts.
    pub parts: PathBuf,
    /// Somebody else had stopped the processes before.
    pub frozen: bool,
}

/// The folders of the ledger.
#[derive(Debug, Clone)]
pub struct Ledger {
    root: PathBuf,
}

impl Ledger {
    /// Opens (makes) the ledger below the persistent root.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root.join("sandboxes"))?;
        fs::create_dir_all(root.join("containers"))?;
        Ok(Self { root: root.to_path_buf() })
    }

    /// Removes what a killed daemon left half written, and ends of containers that are forgotten. For a start only: what is
    /// being written looks the same.
    pub fn tidy(&self) {
        for kind in ["sandboxes", "containers"] {
            for path in fs::read_dir(self.root.join(kind)).into_iter().flatten().flatten().map(|e| e.path()) {
                let half = path.to_string_lossy().ends_with(".json.tmp");
                let orphan = path.extension().is_some_and(|e| e == "exit") && !path.with_extension("json").exists();
                if half || orphan {
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }

    fn file(&self, kind: &str, id: &str) -> PathBuf {
        self.root.join(kind).join(format!("{id}.json"))
    }

    /// Where a container's exit record goes.
    pub fn exit_file(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(format!("{id}.exit"))
    }

    /// Writes a sandbox.
    ///
    /// # Errors
    /// The file system's.
    pub fn put_sandbox(&self, record: &SandboxRecord) -> io::Result<()> {
        replace(&self.file("sandboxes", &record.id), &serde_json::to_vec(record)?)
    }

    /// Writes a container.
    ///
    /// # Errors
    /// The file system's.
    pub fn put_container(&self, record: &ContainerRecord) -> io::Result<()> {
        replace(&self.file("containers", &record.id), &serde_json::to_vec(record)?)
    }

    /// Waits until the record of a sandbox or container as it is now would outlive a power failure. Blocking.
    ///
    /// # Errors
    /// The file system's; a record that is gone meanwhile is fine.
    pub fn sync(&self, id: &str) -> io::Result<()> {
        for kind in ["sandboxes", "containers"] {
            match fs::File::open(self.file(kind, id)) {
                Ok(file) => return file.sync_data(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Forgets a sandbox.
    ///
    /// # Errors
    /// The file system's; not there is fine.
    pub fn remove_sandbox(&self, id: &str) -> io::Result<()> {
        remove(&self.file("sandboxes", id))
    }

    /// Forgets a container with its exit record.
    ///
    /// # Errors
    /// The file system's; not there is fine.
    pub fn remove_container(&self, id: &str) -> io::Result<()> {
        remove(&self.exit_file(id)).and_then(|()| remove(&self.file("containers", id)))
    }

    /// All sandboxes; unreadable records are told.
    pub fn sandboxes(&self) -> (Vec<SandboxRecord>, Vec<String>) {
        read_all(&self.root.join("sandboxes"))
    }

    /// All containers; unreadable records are told.
    pub fn containers(&self) -> (Vec<ContainerRecord>, Vec<String>) {
        read_all(&self.root.join("containers"))
    }
}

/// That it outlives a power failure is what [`Ledger::sync`] waits for.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    gantry_files::replace(path, bytes, Access::Umask, Outlives::Program)
}

fn read_all<T: DeserializeOwned>(folder: &Path) -> (Vec<T>, Vec<String>) {
    let (mut records, mut faults) = (Vec::new(), Vec::new());
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()) {
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let read = fs::read(&path);
        if read.as_ref().is_ok_and(Vec::is_empty) {
            // Written just before a power failure; what it described is gone with that.
            let _ = fs::remove_file(&path);
            continue;
        }
        match read.map_err(|e| e.to_string()).and_then(|b| serde_json::from_slice(&b).map_err(|e| e.to_string())) {
            Ok(record) => records.push(record),
            Err(e) => faults.push(format!("{}: {e}", path.display())),
        }
    }
    (records, faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_broken_ones_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let config = cri::PodSandboxConfig { hostname: "h".into(), ..Default::default() };
        let record = SandboxRecord {
            id: "a".into(),
            config: Wire(config),
            handler: String::new(),
            created_at: 1,
            boot: "b".into(),
            complete: true,
            stopped: false,
            ips: vec![],
            cni_config: None,
            cni_result: None,
            pid_init: None,
            doomed: false,
        };
        ledger.put_sandbox(&record).unwrap();
        fs::write(dir.path().join("sandboxes/broken.json"), "{").unwrap();
        let (records, faults) = ledger.sandboxes();
        assert_eq!((records.len(), faults.len()), (1, 1));
        assert_eq!(records[0].config.0.hostname, "h");
        ledger.sync("a").unwrap();
        ledger.sync("never written").unwrap();
        // What a power failure leaves of a file that was not waited for.
        fs::write(dir.path().join("sandboxes/empty.json"), "").unwrap();
        assert_eq!(ledger.sandboxes().1.len(), 1);
        assert!(!dir.path().join("sandboxes/empty.json").exists());
        ledger.remove_sandbox("a").unwrap();
        ledger.remove_sandbox("a").unwrap();
    }

    #[test]
    fn what_a_killed_daemon_left_goes_and_ends_of_known_containers_stay() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let names = [
            "sandboxes/a.json.tmp",
            "containers/b.json.tmp",
            "containers/c.exit",
            "containers/d.json",
            "containers/d.exit",
        ];
        for name in names {
            fs::write(dir.path().join(name), "{").unwrap();
        }
        ledger.tidy();
        let left: Vec<_> = names.into_iter().filter(|n| dir.path().join(n).exists()).collect();
        assert_eq!(left, ["containers/d.json", "containers/d.exit"]);
    }
}
