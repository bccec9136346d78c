//! Who holds which devices, on disk, in the layout of upstream's `kubelet_internal_checkpoint`.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use proto::deviceplugin::ContainerAllocateResponse;
use serde::{Deserialize, Serialize};

use super::book::{Book, Held, Holder, Resource};
use crate::state_file;

/// The file in the folder of device plugins.
pub(crate) const FILE: &str = "kubelet_internal_checkpoint";

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
struct Checkpoint {
    data: Data,
    checksum: u64,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
struct Data {
    pod_device_entries: Option<Vec<Entry>>,
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    /// By NUMA node; -1 for none.
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<String, Vec<String>>,
    alloc_resp: Option<String>,
    /// Ours: an init container's devices that the pod's other containers take over.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    passes_on: bool,
}

/// Writes it.
///
/// # Errors
/// The disk refuses.
pub(crate) fn save(folder: &Path, book: &Book) -> std::io::Result<()> {
    let mut entries = Vec::new();
    for (holder, held) in &book.held {
        let mut by_node: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for id in &held.ids {
            let device = book.resources.get(&holder.resource).and_then(|r| r.devices.get(id));
            let node = device.and_then(|d| d.nodes.iter().next()).map_or(-1, i64::from);
            by_node.entry(node.to_string()).or_default().push(id.clone());
        }
        entries.push(Entry {
            pod_uid: holder.uid.clone(),
            container_name: holder.container.clone(),
            resource_name: holder.resource.clone(),
            device_ids: by_node,
            alloc_resp: held.response.as_ref().map(|r| STANDARD.encode(r.encode_to_vec())),
            passes_on: held.passes_on,
        });
    }
    let registered =
        book.resources.iter().map(|(n, r)| (n.clone(), Some(r.devices.keys().cloned().collect()))).collect();
    let data = Data { pod_device_entries: Some(entries), registered_devices: Some(registered) };
    state_file::save(&folder.join(FILE), &Checkpoint { data, checksum: 0 })
}

/// Reads it. Devices themselves are only known again when their plugins come back.
pub(crate) fn load(folder: &Path) -> Book {
    book_of(state_file::load::<Checkpoint>(&folder.join(FILE)).unwrap_or_default().data)
}

/// What a file's text says.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read(text: &[u8]) -> Option<Book> {
    serde_json::from_slice::<Checkpoint>(text).ok().map(|file| book_of(file.data))
}

fn book_of(data: Data) -> Book {
    let mut book = Book::default();
    for name in data.registered_devices.into_iter().flatten().map(|(name, _)| name) {
        book.resources.insert(name, Resource::default());
    }
    for entry in data.pod_device_entries.into_iter().flatten() {
        let response = entry.alloc_resp.and_then(|text| {
            let bytes = STANDARD.decode(text).ok()?;
            ContainerAllocateResponse::decode(&*bytes).ok()
        });
        let holder = Holder { uid: entry.pod_uid, container: entry.container_name, resource: entry.resource_name };
        let ids = entry.device_ids.into_values().flatten().collect();
        book.resources.entry(holder.resource.clone()).or_default();
        book.held.insert(holder, Held { ids, response, passes_on: entry.passes_on });
    }
    book
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_survive_and_resources_are_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::default();
        book.told(
            "x/dev",
            vec![proto::deviceplugin::Device { id: "a".into(), health: "Healthy".into(), topology: None }],
        );
        let holder = Holder { uid: "u".into(), container: "c".into(), resource: "x/dev".into() };
        book.reserve(&holder, 1, None, false).unwrap();
        let envs = [("K".to_owned(), "v".to_owned())].into();
        book.answered(&holder, ContainerAllocateResponse { envs, ..Default::default() });
        save(dir.path(), &book).unwrap();
        let back = load(dir.path());
        assert_eq!(back.held, book.held);
        assert!(back.knows("x/dev") && !back.resources["x/dev"].told);
    }

    #[test]
    fn upstreams_file_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"x/dev",
            "DeviceIDs":{"-1":["a"]},"AllocResp":"CgYKAUsSAXY="}],"RegisteredDevices":{"x/dev":["a","b"]}},"Checksum":1234}"#;
        std::fs::write(dir.path().join(FILE), text).unwrap();
        let book = load(dir.path());
        let held = book.of("u", "c").next().unwrap().1.clone();
        assert_eq!((held.ids.len(), held.response.unwrap().envs["K"].as_str()), (1, "v"));
    }
}
