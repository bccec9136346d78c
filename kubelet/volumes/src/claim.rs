//! From a pod's volume to what shall be mounted for it: through its claim to the persistent volume, if it has one.

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, CSIVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
    SecretReference, Volume,
};

use crate::Objects;
use crate::csi::Wanted;
use crate::kind::Kind;

/// A claim that is bound, and its volume.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) claim: PersistentVolumeClaim,
    pub(crate) volume: PersistentVolume,
    read_only: bool,
}

/// What a bound claim or an inline CSI source means on the node.
#[derive(Clone, Debug)]
pub(crate) enum Backing {
    /// A driver brings it.
    Csi(Box<Wanted>),
    /// It is on the host already: path, the hostPath's type, read-only, and whether it must be a disk of the node.
    Host { path: String, kind: String, read_only: bool, local: bool },
}

/// The name of the claim behind a volume, and whether the pod must own it.
pub(crate) fn claim_name(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), false));
    }
    volume.ephemeral.as_ref()?;
    Some((format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name), true))
}

/// Reads the claim of a volume and the persistent volume it is bound to.
pub(crate) async fn bound(pod: &Pod, volume: &Volume, objects: &dyn Objects) -> Result<Bound, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let (name, owned) = claim_name(pod, volume).ok_or("the volume has no claim")?;
    let fail = |why: String| format!("error processing PVC {namespace}/{name}: {why}");
    let claim = objects
        .claim(namespace, &name)
        .await
        .map_err(|e| fail(format!("failed to fetch PVC from API server: {e}")))?
        .ok_or_else(|| fail(format!("persistentvolumeclaim {name:?} not found")))?;
    if owned && !is_owner(pod, &claim) {
        let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
        return Err(fail(format!("PVC was not created for pod {namespace}/{pod_name} (pod is not owner)")));
    }
    if claim.metadata.deletion_timestamp.is_some() && claim.metadata.finalizers.iter().flatten().next().is_none() {
        return Err(fail("PVC is being deleted".into()));
    }
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    let bound_to = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|n| !n.is_empty());
    let Some(volume_name) = bound_to.filter(|_| phase == "Bound") else {
        return Err(fail(format!("PVC is not bound (phase {phase})")));
    };
    let found = objects
        .persistent_volume(volume_name)
        .await
        .map_err(|e| fail(format!("failed to fetch PV {volume_name:?} from API server: {e}")))?
        .ok_or_else(|| fail(format!("persistentvolume {volume_name:?} not found")))?;
    let reference = found.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let ours = |r: &ObjectReference| {
        r.uid.as_ref().is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
            && r.name.as_ref().is_none_or(|n| *n == name)
            && r.namespace.as_ref().is_none_or(|n| n == namespace)
    };
    if !reference.is_some_and(ours) {
        return Err(fail(format!("PV {volume_name:?} is not bound to this PVC")));
    }
    let read_only = volume.persistent_volume_claim.as_ref().and_then(|s| s.read_only) == Some(true);
    Ok(Bound { claim, volume: found, read_only })
}

fn is_owner(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|o| o.controller == Some(true) && Some(&o.uid) == pod.metadata.uid.as_ref())
}

/// How the pod's containers use the volume: as files, as a raw device.
fn uses(pod: &Pod, name: &str) -> (bool, bool) {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    containers.fold((false, false), |(files, device), c| {
        (
            files || c.volume_mounts.iter().flatten().any(|m| m.name == name),
            device || c.volume_devices.iter().flatten().any(|d| d.name == name),
        )
    })
}

impl Bound {
    /// What to mount.
    pub(crate) fn backing(&self, pod: &Pod, volume: &Volume) -> Result<Backing, String> {
        let name = &volume.name;
        let spec = self.volume.spec.as_ref().ok_or("the persistent volume has no spec")?;
        let pv = self.volume.metadata.name.clone().unwrap_or_default();
        let block = spec.volume_mode.as_deref() == Some("Block");
        let (files, device) = uses(pod, name);
        if block && files {
            return Err(format!("volume {name} has volumeMode Block, but is specified in volumeMounts"));
        }
        if !block && device {
            return Err(format!("volume {name} has volumeMode Filesystem, but is specified in volumeDevices"));
        }
        if let Some(csi) = &spec.csi {
            return Ok(Backing::Csi(Box::new(self.csi(pv, csi, block)?)));
        }
        if let Some(host) = &spec.host_path {
            let kind = host.type_.clone().unwrap_or_default();
            return Ok(Backing::Host { path: host.path.clone(), kind, read_only: self.read_only, local: false });
        }
        if let Some(local) = &spec.local {
            let kind = if block { "BlockDevice" } else { "Directory" }.to_owned();
            return Ok(Backing::Host { path: local.path.clone(), kind, read_only: self.read_only, local: true });
        }
        let value = serde_json::to_value(spec).unwrap_or_default();
        const COMMON: [&str; 9] = [
            "accessModes",
            "capacity",
            "claimRef",
            "mountOptions",
            "nodeAffinity",
            "persistentVolumeReclaimPolicy",
            "storageClassName",
            "volumeMode",
            "volumeAttributesClassName",
        ];
        let kind = value.as_object().and_then(|m| m.keys().find(|k| !COMMON.contains(&k.as_str())).cloned());
        Err(format!(
            "persistent volume {pv:?} is of kind {}, which this kubelet does not support",
            kind.unwrap_or_default()
        ))
    }

    fn csi(&self, pv: String, csi: &CSIPersistentVolumeSource, block: bool) -> Result<Wanted, String> {
        let spec = self.volume.spec.as_ref();
        if csi.volume_handle.is_empty() {
            return Err(format!("persistent volume {pv:?}: spec.csi.volumeHandle is empty"));
        }
        Ok(Wanted {
            spec_name: pv,
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            ephemeral: false,
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            mount_flags: spec.and_then(|s| s.mount_options.clone()).unwrap_or_default(),
            access_modes: spec.and_then(|s| s.access_modes.clone()).unwrap_or_default(),
            attributes: csi.volume_attributes.clone().unwrap_or_default(),
            read_only: self.read_only || csi.read_only == Some(true),
            block,
            stage_secret: csi.node_stage_secret_ref.clone(),
            publish_secret: csi.node_publish_secret_ref.clone(),
            expand_secret: csi.node_expand_secret_ref.clone(),
        })
    }
}

/// An inline CSI volume; its handle is made of the pod and the volume, as upstream makes it.
pub(crate) fn inline(pod: &Pod, name: &str, source: &CSIVolumeSource) -> Wanted {
    let namespace = pod.metadata.namespace.clone();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    Wanted {
        spec_name: name.to_owned(),
        driver: source.driver.clone(),
        handle: format!("csi-{}", crate::csi::hex(&format!("{uid}{name}"))),
        ephemeral: true,
        fs_type: source.fs_type.clone().unwrap_or_default(),
        mount_flags: Vec::new(),
        access_modes: vec!["ReadWriteOnce".to_owned()],
        attributes: source.volume_attributes.clone().unwrap_or_default(),
        read_only: source.read_only == Some(true),
        block: false,
        stage_secret: None,
        publish_secret: source
            .node_publish_secret_ref
            .as_ref()
            .map(|s| SecretReference { name: Some(s.name.clone()), namespace }),
        expand_secret: None,
    }
}

/// What a volume of one of these kinds means; `None` for all other kinds.
pub(crate) async fn resolve(
    pod: &Pod,
    volume: &Volume,
    kind: &Kind<'_>,
    objects: &dyn Objects,
) -> Result<Option<(Backing, Option<Bound>)>, String> {
    match kind {
        Kind::Csi(source) => Ok(Some((Backing::Csi(Box::new(inline(pod, &volume.name, source))), None))),
        Kind::Claim => {
            let bound = bound(pod, volume, objects).await?;
            Ok(Some((bound.backing(pod, volume)?, Some(bound))))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;
    use serde_json::{Value, json};

    fn pod(volume: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "volumes": [volume]}}))
        .unwrap()
    }

    fn objects(claim: Value, spec: Value) -> FakeObjects {
        let claim = serde_json::from_value(claim).unwrap();
        let volume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap();
        FakeObjects::new().claim_and_volume("n", claim, volume)
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_claim_is_named() {
        let good = json!({"metadata": {"name": "data", "uid": "c1"}, "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
        let owned = json!({"metadata": {"name": "web-v", "uid": "c1",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "u", "controller": true}]},
            "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
        let mut foreign = owned.clone();
        foreign["metadata"]["ownerReferences"][0]["uid"] = json!("other");
        let mut pending = good.clone();
        pending["status"]["phase"] = json!("Pending");
        let pv = json!({"claimRef": {"uid": "c1"}, "hostPath": {"path": "/d"}});
        let block = json!({"claimRef": {"uid": "c1"}, "hostPath": {"path": "/d"}, "volumeMode": "Block"});
        let claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}});
        let generic = json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
        for (volume, object, spec, want) in [
            (&claim, &good, pv.clone(), None),
            (&claim, &owned, pv.clone(), Some("\"data\" not found")),
            (&claim, &pending, pv.clone(), Some("PVC is not bound")),
            (&claim, &good, json!({"hostPath": {"path": "/d"}}), Some("is not bound to this PVC")),
            (
                &claim,
                &good,
                json!({"claimRef": {"uid": "c2"}, "hostPath": {"path": "/d"}}),
                Some("is not bound to this PVC"),
            ),
            (&claim, &good, block, Some("has volumeMode Block, but is specified in volumeMounts")),
            (
                &claim,
                &good,
                json!({"claimRef": {"uid": "c1"}, "iscsi": {"targetPortal": "x", "iqn": "y", "lun": 1}}),
                Some("\"pv\" is of kind iscsi"),
            ),
            (&generic, &owned, pv.clone(), None),
            (&generic, &foreign, pv, Some("pod is not owner")),
        ] {
            let pod = pod(volume.clone());
            let objects = objects(object.clone(), spec);
            let volume = &pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
            let got = resolve(&pod, volume, &Kind::Claim, &objects).await;
            match want {
                None => assert!(matches!(got, Ok(Some((Backing::Host { .. }, Some(_))))), "{got:?}"),
                Some(text) => {
                    let error = got.unwrap_err();
                    assert!(error.contains(text), "{error}");
                }
            }
        }
    }
}
