//! What a driver is told about a volume, besides where it shall be (pure but for secrets and tokens).

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Pod, SecretReference};
use k8s_openapi::api::storage::v1::CSIDriver;
use proto::csi::VolumeCapability;
use proto::csi::volume_capability::access_mode::Mode;
use proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

use super::{Csi, Wanted};
use crate::Objects;

const DEFAULT_TOKEN_LIFE: i64 = 3600;

/// The access mode that CSI has for a persistent volume's first one. `many` is whether the driver tells one pod on the
/// node from several.
fn mode(modes: &[String], many: bool) -> Mode {
    match (modes.first().map(String::as_str), many) {
        (Some("ReadOnlyMany"), _) => Mode::MultiNodeReaderOnly,
        (Some("ReadWriteMany"), _) => Mode::MultiNodeMultiWriter,
        (Some("ReadWriteOncePod"), true) => Mode::SingleNodeSingleWriter,
        (Some("ReadWriteOnce"), true) => Mode::SingleNodeMultiWriter,
        _ => Mode::SingleNodeWriter,
    }
}

/// The volume as CSI describes it. `group` is the pod's fsGroup where the driver gives it to the files itself.
pub(super) fn capability(wanted: &Wanted, many: bool, group: Option<u32>) -> VolumeCapability {
    let access = if wanted.block {
        AccessType::Block(BlockVolume {})
    } else {
        AccessType::Mount(MountVolume {
            fs_type: wanted.fs_type.clone(),
            mount_flags: wanted.mount_flags.clone(),
            volume_mount_group: group.map(|g| g.to_string()).unwrap_or_default(),
        })
    };
    VolumeCapability {
        access_type: Some(access),
        access_mode: Some(AccessMode { mode: mode(&wanted.access_modes, many).into() }),
    }
}

/// Whether the kubelet shall give the volume's files to the pod's fsGroup.
pub(super) fn gives_group(wanted: &Wanted, info: Option<&CSIDriver>) -> bool {
    if wanted.block || wanted.read_only {
        return false;
    }
    match info.and_then(|d| d.spec.fs_group_policy.as_deref()).unwrap_or("ReadWriteOnceWithFSType") {
        "None" => false,
        "File" => true,
        _ => {
            let once = wanted.access_modes.iter().any(|m| m == "ReadWriteOnce" || m == "ReadWriteOncePod");
            !wanted.fs_type.is_empty() && once
        }
    }
}

/// Why the driver may not have volumes of this life, if so.
pub(super) fn wrong_life(wanted: &Wanted, info: Option<&CSIDriver>) -> Option<String> {
    let life = if wanted.ephemeral { "Ephemeral" } else { "Persistent" };
    let modes = info.and_then(|d| d.spec.volume_lifecycle_modes.clone()).filter(|m| !m.is_empty());
    let modes = modes.unwrap_or_else(|| vec!["Persistent".to_owned()]);
    (!modes.iter().any(|m| m == life))
        .then(|| format!("volume mode {life:?} not supported by driver {} (only supports {modes:?})", wanted.driver))
}

/// Whether a controller has to attach the volume to the node first.
pub(super) fn needs_attachment(wanted: &Wanted, info: Option<&CSIDriver>) -> bool {
    !wanted.ephemeral && info.and_then(|d| d.spec.attach_required) != Some(false)
}

/// What upstream tells a driver of the pod.
fn pod_info(pod: &Pod, wanted: &Wanted) -> [(&'static str, String); 5] {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default();
    [
        ("csi.storage.k8s.io/pod.name", text(&pod.metadata.name)),
        ("csi.storage.k8s.io/pod.namespace", text(&pod.metadata.namespace)),
        ("csi.storage.k8s.io/pod.uid", text(&pod.metadata.uid)),
        ("csi.storage.k8s.io/serviceAccount.name", account),
        ("csi.storage.k8s.io/ephemeral", wanted.ephemeral.to_string()),
    ]
}

impl Csi {
    /// The attributes of the volume, and what the driver's object asks for besides.
    pub(super) async fn volume_context(
        &self,
        pod: &Pod,
        wanted: &Wanted,
        info: Option<&CSIDriver>,
    ) -> Result<HashMap<String, String>, String> {
        let mut context: HashMap<String, String> = wanted.attributes.clone().into_iter().collect();
        let Some(spec) = info.map(|d| &d.spec) else { return Ok(context) };
        if spec.pod_info_on_mount == Some(true) {
            context.extend(pod_info(pod, wanted).map(|(k, v)| (k.to_owned(), v)));
        }
        let mut tokens = BTreeMap::new();
        for request in spec.token_requests.iter().flatten() {
            let audience = Some(request.audience.as_str()).filter(|a| !a.is_empty());
            let seconds = request.expiration_seconds.unwrap_or(DEFAULT_TOKEN_LIFE);
            let token = self.tokens.whole(&*self.objects, pod, audience, seconds).await?;
            let value = serde_json::json!({"token": token.token, "expirationTimestamp": token.expires.to_string()});
            tokens.insert(request.audience.clone(), value);
        }
        if !tokens.is_empty() {
            let text = serde_json::to_string(&tokens).map_err(|e| format!("write the tokens: {e}"))?;
            context.insert("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), text);
        }
        Ok(context)
    }
}

/// The contents of a secret that a volume names.
pub(super) async fn secrets(
    reference: Option<&SecretReference>,
    objects: &dyn Objects,
) -> Result<HashMap<String, String>, String> {
    let Some(reference) = reference else { return Ok(HashMap::new()) };
    let (name, namespace) = (reference.name.as_deref(), reference.namespace.as_deref());
    let (name, namespace) = (name.unwrap_or_default(), namespace.unwrap_or_default());
    let fail = |why: &str| format!("fetching secret {namespace}/{name} of the volume failed: {why}");
    let secret = objects.secret(namespace, name).await.map_err(|e| fail(&e.to_string()))?;
    let secret = secret.ok_or_else(|| fail("not found"))?;
    let data = secret.data.unwrap_or_default();
    Ok(data.into_iter().map(|(k, v)| (k, String::from_utf8_lossy(&v.0).into_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn wanted(modes: &[&str], fs_type: &str) -> Wanted {
        let access_modes = modes.iter().map(|m| (*m).to_owned()).collect();
        Wanted { access_modes, fs_type: fs_type.into(), driver: "d".into(), ..Wanted::default() }
    }

    fn info(spec: Value) -> CSIDriver {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap()
    }

    #[test]
    fn access_modes_depend_on_what_the_driver_can_tell_apart() {
        for (modes, many, want) in [
            (&["ReadWriteOnce"][..], false, Mode::SingleNodeWriter),
            (&["ReadWriteOnce"], true, Mode::SingleNodeMultiWriter),
            (&["ReadWriteOncePod"], true, Mode::SingleNodeSingleWriter),
            (&["ReadWriteOncePod"], false, Mode::SingleNodeWriter),
            (&["ReadOnlyMany"], true, Mode::MultiNodeReaderOnly),
            (&["ReadWriteMany", "ReadWriteOnce"], false, Mode::MultiNodeMultiWriter),
            (&[], false, Mode::SingleNodeWriter),
        ] {
            assert_eq!(mode(&wanted(modes, "").access_modes, many), want, "{modes:?} {many}");
        }
    }

    #[test]
    fn the_group_is_given_as_the_drivers_policy_says() {
        for (policy, modes, fs_type, read_only, want) in [
            (None, &["ReadWriteOnce"][..], "ext4", false, true),
            (None, &["ReadWriteOnce"], "", false, false),
            (None, &["ReadWriteMany"], "ext4", false, false),
            (Some("File"), &["ReadWriteMany"], "", false, true),
            (Some("File"), &["ReadWriteMany"], "", true, false),
            (Some("None"), &["ReadWriteOnce"], "ext4", false, false),
        ] {
            let driver = policy.map(|p| info(json!({"fsGroupPolicy": p})));
            let wanted = Wanted { read_only, ..wanted(modes, fs_type) };
            assert_eq!(gives_group(&wanted, driver.as_ref()), want, "{policy:?} {modes:?} {fs_type:?} {read_only}");
        }
    }

    #[test]
    fn a_driver_without_an_object_has_attached_persistent_volumes() {
        let persistent = wanted(&["ReadWriteOnce"], "");
        let inline = Wanted { ephemeral: true, ..persistent.clone() };
        assert!(needs_attachment(&persistent, None) && !needs_attachment(&inline, None));
        assert!(!needs_attachment(&persistent, Some(&info(json!({"attachRequired": false})))));
        assert_eq!(wrong_life(&persistent, None), None);
        assert_eq!(
            wrong_life(&inline, None).unwrap(),
            "volume mode \"Ephemeral\" not supported by driver d (only supports [\"Persistent\"])"
        );
        assert_eq!(wrong_life(&inline, Some(&info(json!({"volumeLifecycleModes": ["Ephemeral"]})))), None);
    }
}
