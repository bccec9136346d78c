//! From a container's volumeMounts to the bind mounts that the runtime makes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};

use crate::backed::Backing;
use crate::expand::expand_with;
use crate::kind::{Kind, kind_of};
use crate::{Layout, VolumeError, subpath};

/// How mounts travel between the host and the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    #[default]
    Private,
    /// Later host mounts appear in the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// Whether mounts below a read-only mount are read-only, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recursive {
    /// They are as they are.
    #[default]
    Disabled,
    /// If the runtime can.
    IfPossible,
    /// Or the container must not start.
    Enabled,
}

/// One bind mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// File or directory on the host; exists (but for a hostPath without a type, which the runtime may create).
    pub host_path: PathBuf,
    /// Absolute path in the container.
    pub container_path: String,
    /// Mount read-only.
    pub read_only: bool,
    /// Make mounts below read-only, too (only with `read_only`).
    pub recursive_read_only: Recursive,
    /// Mount propagation.
    pub propagation: Propagation,
    /// The runtime may give the files the container's SELinux label.
    pub selinux_relabel: bool,
    /// The files are an image's, not the host's (`host_path` is empty then).
    pub image: Option<ImageFiles>,
}

/// Files of an image volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFiles {
    /// The pod's volume that names the image.
    pub volume: String,
    /// The path in the image; empty for all of it.
    pub sub_path: String,
}

/// A device of the host that a container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// The device on the host.
    pub host_path: PathBuf,
    /// Its path in the container.
    pub container_path: String,
    /// Not to be written.
    pub read_only: bool,
}

/// The path in a container of its termination log where the spec names none.
pub(crate) const TERMINATION_LOG: &str = "/dev/termination-log";

/// A container's mounts of the pod's volumes.
pub(crate) fn of_volumes(
    layout: &Layout,
    pod: &Pod,
    container: &Container,
    env: &[(String, String)],
) -> Result<Vec<MountSpec>, VolumeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let env: HashMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let mut out = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let spec = one(layout, uid, container, index, mount, volumes, &env).map_err(|reason| VolumeError::Mount {
            container: container.name.clone(),
            volume: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            reason,
        })?;
        out.push(spec);
    }
    Ok(out)
}

/// A container's raw devices.
pub(crate) fn devices(layout: &Layout, pod: &Pod, container: &Container) -> Result<Vec<DeviceSpec>, VolumeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let mut out = Vec::new();
    for device in container.volume_devices.iter().flatten() {
        let fail = |reason: String| VolumeError::Mount {
            container: container.name.clone(),
            volume: device.name.clone(),
            mount_path: device.device_path.clone(),
            reason,
        };
        if !volumes.iter().any(|v| v.name == device.name) {
            return Err(fail("the pod has no such volume".into()));
        }
        let backing = Backing::read(layout, uid, &device.name).map_err(fail)?;
        out.push(DeviceSpec {
            host_path: backing.path,
            container_path: absolute(&device.device_path),
            read_only: backing.read_only,
        });
    }
    Ok(out)
}

fn one(
    layout: &Layout,
    uid: &str,
    container: &Container,
    index: usize,
    mount: &VolumeMount,
    volumes: &[Volume],
    env: &HashMap<&str, &str>,
) -> Result<MountSpec, String> {
    let volume = volumes.iter().find(|v| v.name == mount.name).ok_or("the pod has no such volume")?;
    let kind = kind_of(volume)?;
    let backing = match kind {
        Kind::Csi(_) | Kind::Claim => Some(Backing::read(layout, uid, &volume.name)?),
        _ => None,
    };
    let mut host_path = match &backing {
        Some(backing) => backing.path.clone(),
        None => volume_path(layout, uid, volume, &kind),
    };
    let sub_path = sub_path(mount, env)?;
    if matches!(kind, Kind::Image) {
        if !sub_path.is_empty() {
            subpath::check(&sub_path)?;
        }
        return Ok(MountSpec {
            host_path: PathBuf::new(),
            container_path: absolute(&mount.mount_path),
            read_only: true,
            recursive_read_only: Recursive::Disabled,
            propagation: Propagation::Private,
            selinux_relabel: true,
            image: Some(ImageFiles { volume: volume.name.clone(), sub_path }),
        });
    }
    if !sub_path.is_empty() {
        subpath::check(&sub_path)?;
        let shown = |e: std::io::Error| format!("failed to create subPath {sub_path:?}: {e}");
        let fd = subpath::open(&host_path, &sub_path).map_err(shown)?;
        let pin = layout.subpath(uid, &volume.name, &container.name, index);
        subpath::pin(&fd, &pin)
            .map_err(|e| format!("failed to bind subPath {sub_path:?} to {}: {e}", pin.display()))?;
        host_path = pin;
    }
    let read_only = mount.read_only == Some(true) || kind.is_payload() || backing.as_ref().is_some_and(|b| b.read_only);
    let propagation = match mount.mount_propagation.as_deref() {
        None | Some("" | "None") => Propagation::Private,
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        Some(other) => return Err(format!("invalid MountPropagation mode: {other:?}")),
    };
    let recursive = match mount.recursive_read_only.as_deref() {
        None | Some("" | "Disabled") => Recursive::Disabled,
        Some(mode @ ("IfPossible" | "Enabled")) => {
            if !read_only {
                return Err("recursiveReadOnly needs readOnly".into());
            }
            if propagation != Propagation::Private {
                return Err("recursiveReadOnly needs mountPropagation None".into());
            }
            if mode == "Enabled" { Recursive::Enabled } else { Recursive::IfPossible }
        }
        Some(other) => return Err(format!("invalid recursiveReadOnly mode: {other:?}")),
    };
    Ok(MountSpec {
        host_path,
        container_path: absolute(&mount.mount_path),
        read_only,
        recursive_read_only: recursive,
        propagation,
        selinux_relabel: !matches!(kind, Kind::HostPath(_)),
        image: None,
    })
}

/// The sub-path of a mount with its variables replaced; an unknown variable is an error.
fn sub_path(mount: &VolumeMount, env: &HashMap<&str, &str>) -> Result<String, String> {
    if let Some(path) = mount.sub_path.as_deref().filter(|p| !p.is_empty()) {
        return Ok(path.to_owned());
    }
    let Some(expression) = mount.sub_path_expr.as_deref().filter(|p| !p.is_empty()) else { return Ok(String::new()) };
    let missing = std::cell::RefCell::new(None);
    let path = expand_with(expression, |name| {
        let value = env.get(name).map(|v| (*v).to_owned());
        if value.is_none() {
            missing.replace(Some(name.to_owned()));
        }
        value
    });
    match missing.into_inner() {
        Some(name) => Err(format!("failed to expand subPathExpr {expression:?}: variable {name:?} is not set")),
        None if path.is_empty() => Err(format!("subPathExpr {expression:?} is empty")),
        None => Ok(path),
    }
}

/// Where a volume's files are on the host.
pub(crate) fn volume_path(layout: &Layout, uid: &str, volume: &Volume, kind: &Kind<'_>) -> PathBuf {
    match kind {
        Kind::HostPath(source) => PathBuf::from(&source.path),
        other => layout.volume(uid, other.plugin(), &volume.name),
    }
}

/// Whether the container brings its own mount for `path`.
pub(crate) fn mounts_over(container: &Container, path: &str) -> bool {
    container.volume_mounts.iter().flatten().any(|m| Path::new(&absolute(&m.mount_path)) == Path::new(path))
}

pub(crate) fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}
