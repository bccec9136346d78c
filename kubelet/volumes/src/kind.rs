//! Which kind a volume is; one place that knows what this kubelet supports.

use k8s_openapi::api::core::v1::{
    CSIVolumeSource, ConfigMapVolumeSource, DownwardAPIVolumeSource, EmptyDirVolumeSource, HostPathVolumeSource,
    ProjectedVolumeSource, SecretVolumeSource, Volume,
};

/// A supported volume source.
#[derive(Debug)]
pub(crate) enum Kind<'a> {
    EmptyDir(&'a EmptyDirVolumeSource),
    HostPath(&'a HostPathVolumeSource),
    ConfigMap(&'a ConfigMapVolumeSource),
    Secret(&'a SecretVolumeSource),
    DownwardApi(&'a DownwardAPIVolumeSource),
    Projected(&'a ProjectedVolumeSource),
    /// An image's files; the runtime mounts them.
    Image,
    /// A CSI driver makes it for this pod.
    Csi(&'a CSIVolumeSource),
    /// Whatever a claim is bound to; of the pod's own claim, too (`ephemeral`).
    Claim,
}

impl Kind<'_> {
    /// The plugin's name in paths.
    pub(crate) fn plugin(&self) -> &'static str {
        match self {
            Self::EmptyDir(_) => "empty-dir",
            Self::HostPath(_) => "host-path",
            Self::ConfigMap(_) => "configmap",
            Self::Secret(_) => "secret",
            Self::DownwardApi(_) => "downward-api",
            Self::Projected(_) => "projected",
            Self::Image => "image",
            Self::Csi(_) => "csi",
            Self::Claim => "claim",
        }
    }

    /// Whether the kubelet writes the contents (so containers get them read-only).
    pub(crate) fn is_payload(&self) -> bool {
        !matches!(self, Self::EmptyDir(_) | Self::HostPath(_) | Self::Image | Self::Csi(_) | Self::Claim)
    }

    /// Whether the contents must stay in memory.
    pub(crate) fn in_memory(&self) -> bool {
        matches!(self, Self::Secret(_) | Self::DownwardApi(_) | Self::Projected(_))
    }
}

/// The kind of a volume, or a text naming the kind that is not supported.
pub(crate) fn kind_of(volume: &Volume) -> Result<Kind<'_>, String> {
    if let Some(v) = &volume.empty_dir {
        return Ok(Kind::EmptyDir(v));
    }
    if let Some(v) = &volume.host_path {
        return Ok(Kind::HostPath(v));
    }
    if let Some(v) = &volume.config_map {
        return Ok(Kind::ConfigMap(v));
    }
    if let Some(v) = &volume.secret {
        return Ok(Kind::Secret(v));
    }
    if let Some(v) = &volume.downward_api {
        return Ok(Kind::DownwardApi(v));
    }
    if let Some(v) = &volume.projected {
        return Ok(Kind::Projected(v));
    }
    if volume.image.is_some() {
        return Ok(Kind::Image);
    }
    if let Some(v) = &volume.csi {
        return Ok(Kind::Csi(v));
    }
    if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() {
        return Ok(Kind::Claim);
    }
    let value = serde_json::to_value(volume).unwrap_or_default();
    match value.as_object().and_then(|map| map.keys().find(|key| *key != "name")) {
        Some(kind) => Err(format!("volume {:?} is of kind {kind}, which this kubelet does not support", volume.name)),
        None => Err(format!("volume {:?} has no source", volume.name)),
    }
}
