//! One volume, from its source to its place on disk: first what it shall be (`plan`), then making it so (`apply`).

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_kube::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, Pod, PodCertificateProjection, ProjectedVolumeSource, Volume,
};

use crate::atomic::{self, Payload};
use crate::certificate::{Certificates, Held};
use crate::empty_dir::{self, Medium};
use crate::kind::{Kind, kind_of};
use crate::token::{self, Tokens};
use crate::{Layout, Objects, PodContext, fs_group, host_path, payload, trust};

/// What was issued to pods and is renewed: it lives in memory and in the pods' files.
#[derive(Clone, Default)]
pub(crate) struct Issued {
    /// Service account tokens.
    pub(crate) tokens: Arc<Tokens>,
    /// Certificates.
    pub(crate) certificates: Arc<Certificates>,
}

/// What a volume shall be.
#[derive(Debug)]
pub(crate) enum Contents {
    /// A directory for the containers.
    Empty { medium: Medium, group: Option<Group> },
    /// A path of the host.
    Host { path: PathBuf, kind: String },
    /// Nothing on this side: the runtime brings it.
    Nothing,
    /// Files that the kubelet keeps.
    Files { plugin: &'static str, in_memory: bool, files: Payload, gid: Option<u32> },
}

/// The pod's fsGroup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) gid: u32,
    pub(crate) on_root_mismatch: bool,
}

/// Reads what the volume's source refers to.
pub(crate) async fn plan(
    pod: &Pod,
    volume: &Volume,
    ctx: &PodContext,
    objects: &dyn Objects,
    issued: &Issued,
) -> Result<Contents, String> {
    if volume.name.is_empty() || volume.name.contains(['/', '\0']) || volume.name.starts_with("..") {
        return Err(format!("invalid volume name {:?}", volume.name));
    }
    let kind = kind_of(volume)?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let group = group_of(pod);
    let files = match &kind {
        Kind::EmptyDir(source) => return Ok(Contents::Empty { medium: medium(pod, source, ctx)?, group }),
        Kind::HostPath(source) => {
            return Ok(Contents::Host {
                path: PathBuf::from(&source.path),
                kind: source.type_.clone().unwrap_or_default(),
            });
        }
        Kind::ConfigMap(source) => {
            let map = objects.config_map(namespace, &source.name).await.map_err(|e| e.to_string())?;
            let mode = source.default_mode.unwrap_or(payload::DEFAULT_MODE);
            let optional = source.optional == Some(true);
            payload::of_config_map(&source.name, map.as_ref(), source.items.as_deref(), mode, optional)?
        }
        Kind::Secret(source) => {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let secret = objects.secret(namespace, name).await.map_err(|e| e.to_string())?;
            let mode = source.default_mode.unwrap_or(payload::DEFAULT_MODE);
            let optional = source.optional == Some(true);
            payload::of_secret(name, secret.as_ref(), source.items.as_deref(), mode, optional)?
        }
        Kind::DownwardApi(source) => {
            let mode = source.default_mode.unwrap_or(payload::DEFAULT_MODE);
            payload::of_downward(pod, ctx, source.items.as_deref(), mode)?
        }
        Kind::Image => return Ok(Contents::Nothing),
        Kind::Csi(_) | Kind::Claim => return Err("the volume's contents are not the kubelet's".into()),
        Kind::Projected(source) => projected(pod, &volume.name, source, ctx, objects, issued).await?,
    };
    payload::check_nesting(&files)?;
    Ok(Contents::Files { plugin: kind.plugin(), in_memory: kind.in_memory(), files, gid: group.map(|g| g.gid) })
}

async fn projected(
    pod: &Pod,
    volume: &str,
    source: &ProjectedVolumeSource,
    ctx: &PodContext,
    objects: &dyn Objects,
    issued: &Issued,
) -> Result<Payload, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mode = source.default_mode.unwrap_or(payload::DEFAULT_MODE);
    let mut files = Payload::new();
    // All sources are tried, so that one event names everything that is missing.
    let mut errors = Vec::new();
    for (index, part) in source.sources.iter().flatten().enumerate() {
        let result = if let Some(p) = &part.config_map {
            match objects.config_map(namespace, &p.name).await {
                Ok(map) => {
                    let optional = p.optional == Some(true);
                    payload::of_config_map(&p.name, map.as_ref(), p.items.as_deref(), mode, optional)
                }
                Err(e) => Err(e.to_string()),
            }
        } else if let Some(p) = &part.secret {
            match objects.secret(namespace, &p.name).await {
                Ok(secret) => {
                    let optional = p.optional == Some(true);
                    payload::of_secret(&p.name, secret.as_ref(), p.items.as_deref(), mode, optional)
                }
                Err(e) => Err(e.to_string()),
            }
        } else if let Some(p) = &part.downward_api {
            payload::of_downward(pod, ctx, p.items.as_deref(), mode)
        } else if let Some(p) = &part.service_account_token {
            let seconds = p.expiration_seconds.unwrap_or(token::DEFAULT_EXPIRATION);
            match issued.tokens.get(objects, pod, p.audience.as_deref(), seconds).await {
                Ok(text) => private_file(pod, &p.path, &text, mode),
                Err(e) => Err(e),
            }
        } else if let Some(p) = &part.cluster_trust_bundle {
            trust::of_projection(objects, p, mode).await
        } else if let Some(p) = &part.pod_certificate {
            match issued.certificates.get(objects, pod, (volume, index), p).await {
                Ok(held) => certificate_files(pod, p, &held, mode),
                Err(e) => Err(e),
            }
        } else {
            let value = serde_json::to_value(part).unwrap_or_default();
            let kind = value.as_object().and_then(|m| m.keys().next().cloned()).unwrap_or_else(|| "none".into());
            Err(format!("projected source of kind {kind} is not supported by this kubelet"))
        };
        match result {
            Ok(more) => files.extend(more),
            Err(e) => errors.push(e),
        }
    }
    match errors.len() {
        0 => Ok(files),
        1 => Err(errors.remove(0)),
        _ => Err(format!("[{}]", errors.join(", "))),
    }
}

/// The files of a pod's certificate that its volume names.
fn certificate_files(pod: &Pod, source: &PodCertificateProjection, held: &Held, mode: i32) -> Result<Payload, String> {
    let both = format!("{}{}", held.key, held.chain);
    let mut out = Payload::new();
    for (path, text) in [
        (&source.credential_bundle_path, &both),
        (&source.key_path, &held.key),
        (&source.certificate_chain_path, &held.chain),
    ] {
        if let Some(path) = path.as_deref().filter(|p| !p.is_empty()) {
            out.extend(private_file(pod, path, text, mode)?);
        }
    }
    if out.is_empty() {
        return Err("podCertificate names none of credentialBundlePath, keyPath and certificateChainPath".into());
    }
    Ok(out)
}

/// A file with a secret of the pod is the user's alone when the pod has one user or a group.
fn private_file(pod: &Pod, path: &str, text: &str, mode: i32) -> Result<Payload, String> {
    let user = common_user(pod);
    let mode = if user.is_some() || group_of(pod).is_some() { 0o600 } else { mode };
    let mut out = Payload::new();
    payload::put(&mut out, path, text.as_bytes(), mode)?;
    if let Some(file) = out.get_mut(path) {
        file.uid = user;
    }
    Ok(out)
}

/// The user that all containers of the pod run as, where the spec says so.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let default = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let of = |c: &Container| c.security_context.as_ref().and_then(|s| s.run_as_user).or(default);
    let mut users = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(of);
    let first = users.next()??;
    if users.all(|user| user == Some(first)) { u32::try_from(first).ok() } else { None }
}

pub(crate) fn group_of(pod: &Pod) -> Option<Group> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    let gid = u32::try_from(context.fs_group?).ok()?;
    Some(Group { gid, on_root_mismatch: context.fs_group_change_policy.as_deref() == Some("OnRootMismatch") })
}

fn medium(pod: &Pod, source: &EmptyDirVolumeSource, ctx: &PodContext) -> Result<Medium, String> {
    let bytes = |text: &str| Quantity::parse(text).map(|q| q.value()).map_err(|e| e.to_string());
    let limit = source.size_limit.as_ref().map(|q| bytes(&q.0)).transpose()?.filter(|v| *v > 0);
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(Medium::Disk),
        "Memory" => {
            let pod_limit = pod_memory_limit(pod);
            Ok(Medium::Memory { size: empty_dir::memory_size(limit, pod_limit, ctx.allocatable.memory_bytes) })
        }
        "HugePages" => {
            let mut sizes = huge_page_sizes(pod);
            match (sizes.pop(), sizes.pop()) {
                (Some(page), None) => Ok(Medium::HugePages { page, size: limit.and_then(|v| u64::try_from(v).ok()) }),
                (None, _) => Err("medium HugePages needs a container that asks for huge pages".into()),
                _ => Err("medium HugePages is ambiguous: containers ask for several page sizes".into()),
            }
        }
        other => match other.strip_prefix("HugePages-") {
            Some(page) => {
                let page = u64::try_from(bytes(page)?).map_err(|_| format!("unknown storage medium {other:?}"))?;
                Ok(Medium::HugePages { page, size: limit.and_then(|v| u64::try_from(v).ok()) })
            }
            None => Err(format!("unknown storage medium {other:?}")),
        },
    }
}

/// The sum of the containers' memory limits (or the pod's own), where every container has one.
fn pod_memory_limit(pod: &Pod) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let parse =
        |q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| Quantity::parse(&q.0).ok().map(|q| q.value());
    if let Some(limit) = spec.resources.as_ref().and_then(|r| r.limits.as_ref()?.get("memory").and_then(parse)) {
        return Some(limit);
    }
    let of = |c: &Container| c.resources.as_ref()?.limits.as_ref()?.get("memory").and_then(parse);
    let main = spec.containers.iter().map(of).try_fold(0_i64, |sum, limit| Some(sum.saturating_add(limit?)))?;
    let init = spec.init_containers.iter().flatten().map(of).try_fold(0_i64, |max, limit| Some(max.max(limit?)))?;
    Some(main.max(init))
}

fn huge_page_sizes(pod: &Pod) -> Vec<u64> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut sizes: Vec<u64> = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .filter_map(|c| c.resources.as_ref()?.limits.as_ref())
        .flat_map(|limits| limits.keys())
        .filter_map(|name| Quantity::parse(name.strip_prefix("hugepages-")?).ok())
        .filter_map(|q| u64::try_from(q.value()).ok())
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Makes the volume so. Tells whether files changed.
pub(crate) fn apply(layout: &Layout, uid: &str, name: &str, contents: &Contents) -> Result<bool, String> {
    match contents {
        Contents::Nothing => Ok(false),
        Contents::Host { path, kind } => host_path::check(path, kind).map(|()| false),
        Contents::Empty { medium, group } => {
            let dir = layout.volume(uid, "empty-dir", name);
            let shown = |e: io::Error| format!("prepare {}: {e}", dir.display());
            let ready = layout.volume_state(uid, "empty-dir", name).join("ready");
            make_parent(&dir).map_err(shown)?;
            let fresh = empty_dir::ensure(&dir, medium).map_err(shown)?;
            // The marker is written last, so that a crash before it repeats the ownership walk.
            if fresh || !ready.exists() {
                if let Some(group) = group {
                    fs_group::apply(&dir, group.gid, group.on_root_mismatch).map_err(shown)?;
                }
                make_parent(&ready).and_then(|()| fs::write(&ready, "")).map_err(shown)?;
            }
            Ok(false)
        }
        Contents::Files { plugin, in_memory, files, gid } => {
            let dir = layout.volume(uid, plugin, name);
            let shown = |e: io::Error| format!("write {}: {e}", dir.display());
            make_parent(&dir).map_err(shown)?;
            let medium = if *in_memory { Medium::Memory { size: None } } else { Medium::Disk };
            let fresh = empty_dir::ensure(&dir, &medium).map_err(shown)?;
            if let Some(gid) = gid.filter(|_| fresh) {
                fs_group::apply(&dir, gid, false).map_err(shown)?;
            }
            atomic::write(&dir, files, *gid).map_err(shown)
        }
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::DirBuilder::new().recursive(true).mode(0o750).create(parent),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn each_medium_has_its_size() {
        let of = |empty: Value, limits: &[Value]| {
            let containers: Vec<Value> =
                limits.iter().map(|l| json!({"name": "c", "resources": {"limits": l}})).collect();
            let pod: Pod = serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap();
            let mut ctx = PodContext::default();
            ctx.allocatable.memory_bytes = 1 << 30;
            medium(&pod, &serde_json::from_value(empty).unwrap(), &ctx)
        };
        let (small, large) = (json!({"hugepages-2Mi": "4Mi"}), json!({"hugepages-1Gi": "1Gi"}));
        let memory = json!({"memory": "64Mi"});
        let size = |mi: u64| Some(mi << 20);
        for (empty, limits, want) in [
            (json!({}), vec![], Medium::Disk),
            (json!({"medium": "Memory"}), vec![], Medium::Memory { size: size(1024) }),
            (json!({"medium": "Memory"}), vec![memory.clone()], Medium::Memory { size: size(64) }),
            (json!({"medium": "Memory", "sizeLimit": "8Mi"}), vec![memory.clone()], Medium::Memory { size: size(8) }),
            (json!({"medium": "HugePages"}), vec![small.clone()], Medium::HugePages { page: 2 << 20, size: None }),
            (
                json!({"medium": "HugePages-1Gi", "sizeLimit": "1Gi"}),
                vec![small.clone(), large.clone()],
                Medium::HugePages { page: 1 << 30, size: size(1024) },
            ),
        ] {
            assert_eq!(of(empty.clone(), &limits), Ok(want), "{empty}");
        }
        for (empty, limits, why) in [
            (json!({"medium": "HugePages"}), vec![memory], "asks for huge pages"),
            (json!({"medium": "HugePages"}), vec![small, large], "ambiguous"),
            (json!({"medium": "HugePages-many"}), vec![], ""),
            (json!({"medium": "Tape"}), vec![], "unknown storage medium"),
        ] {
            assert!(of(empty.clone(), &limits).unwrap_err().contains(why), "{empty}");
        }
    }
}
