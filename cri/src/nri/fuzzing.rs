//! What the fuzz targets of NRI run: what a plugin sends, and what becomes of a container.

use prost::Message as _;
use proto::nri;
use serde_json::{Value, json};

use super::{adjust, plugin, wire};

/// One direction of a plugin's connection.
pub(crate) fn frames(data: &[u8]) {
    wire::put_together(data);
    let _ = plugin::file_identity(&String::from_utf8_lossy(data));
}

/// Changes that a plugin wants of a container: two plugins with the same wish, one after the other.
pub(crate) fn adjustment(data: &[u8]) {
    let Ok(wish) = nri::ContainerAdjustment::decode(data) else { return };
    let mut oci = json!({
        "ociVersion": "1.2.0", "annotations": {"a": "b"}, "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "process": {
            "args": ["sh"], "env": ["A=1"], "cwd": "/", "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 5, "soft": 5}],
        },
        "linux": {"namespaces": [{"type": "pid"}], "sysctl": {"net.x": "1"}, "resources": {"memory": {"limit": 5}}},
    });
    let mut owners = adjust::Owners::default();
    for plugin in ["10-a", "20-b"] {
        let said = adjust::apply(&mut oci, &wish, plugin, &mut owners);
        assert!(said.err().is_none_or(|why| !why.is_empty()));
    }
    owners.for_validation("c");
    // What the runtime gets is still a configuration.
    assert!(oci["process"]["args"].is_array() && oci["mounts"].is_array() && oci["linux"].is_object());
    let text = oci.to_string();
    assert_eq!(serde_json::from_str::<Value>(&text).expect("it is read again"), oci);
}
