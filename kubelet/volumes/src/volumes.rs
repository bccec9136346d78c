//! The owner of all volumes on the node.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use crate::backed::Looked;
use crate::contents::{self, Issued};
use crate::csi::Csi;
use crate::kind::{Kind, kind_of};
use crate::notes::{Note, Notes};
use crate::{
    DeviceSpec, Drivers, Layout, MountSpec, Objects, PodContext, Propagation, Recursive, Usage, VolumeError, hosts,
    mounts, teardown, usage,
};

/// Sets up, refreshes and removes what lies below `pods/<uid>`. All state is on disk: a new value on the same root goes
/// on where the last one stopped. One pod's calls must not overlap (its worker owns it); pods are independent.
pub struct Volumes {
    layout: Layout,
    pub(crate) objects: Arc<dyn Objects>,
    issued: Issued,
    pub(crate) csi: Csi,
    pub(crate) looked: Looked,
    pub(crate) notes: Notes,
}

impl Volumes {
    /// Volumes below the kubelet's `root` (`/var/lib/kubelet`).
    pub fn new(root: impl Into<PathBuf>, objects: Arc<dyn Objects>) -> Self {
        let (layout, issued) = (Layout::new(root), Issued::default());
        let csi = Csi::new(layout.clone(), objects.clone(), issued.tokens.clone());
        let notes = issued.certificates.notes.clone();
        Self { layout, objects, issued, csi, looked: Looked::default(), notes }
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Prepares all volumes of a pod and its directories; safe to repeat (it then also does what [`Volumes::refresh`]
    /// does).
    ///
    /// # Errors
    /// The first volume that failed, after all were tried; calling again retries what is missing.
    pub async fn setup(&self, pod: &Pod, ctx: &PodContext) -> Result<(), VolumeError> {
        let uid = uid_of(pod)?.to_owned();
        let layout = self.layout.clone();
        blocking(move || pod_dirs(&layout, &uid)).await??;
        self.bring_up_to_date(pod, ctx, true, |_| true).await.map(|_| ())
    }

    /// What the pod's events shall tell of its volumes since this was asked last.
    pub fn notes(&self, uid: &str) -> Vec<Note> {
        self.notes.take(uid)
    }

    /// How many certificates of pods there are, by signer and by state (`fresh`, `overdue_for_refresh`, `expired`,
    /// `failed`, `denied`).
    pub fn certificates(&self) -> BTreeMap<(String, &'static str), usize> {
        self.issued.certificates.states(jiff::Timestamp::now())
    }

    /// The CSI drivers of the node; whoever finds one registers it here.
    pub fn drivers(&self) -> &Drivers {
        &self.csi.drivers
    }

    /// Brings configMap, secret, downwardAPI and projected volumes up to date (atomically) and renews tokens that are
    /// past 80 % of their life or older than 24 h. Now and then it also lets grown volumes of CSI drivers use their new
    /// size, and publishes again what drivers want so. Tells whether any file changed.
    ///
    /// # Errors
    /// A volume could not be refreshed; it keeps its old contents.
    pub async fn refresh(&self, pod: &Pod, ctx: &PodContext) -> Result<bool, VolumeError> {
        uid_of(pod)?;
        let renewed = |kind: Kind<'_>| kind.is_payload() || matches!(kind, Kind::Csi(_) | Kind::Claim);
        self.bring_up_to_date(pod, ctx, false, |volume| kind_of(volume).is_ok_and(renewed)).await
    }

    async fn bring_up_to_date(
        &self,
        pod: &Pod,
        ctx: &PodContext,
        first: bool,
        wanted: impl Fn(&Volume) -> bool,
    ) -> Result<bool, VolumeError> {
        let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        let work = volumes.iter().filter(|v| wanted(v)).map(|volume| async move {
            let fail = |reason| VolumeError::SetUp { volume: volume.name.clone(), reason };
            if let Ok(kind @ (Kind::Csi(_) | Kind::Claim)) = kind_of(volume) {
                let done = if first {
                    self.back(pod, volume, &kind, ctx).await.map_err(fail)
                } else {
                    self.tend(pod, volume, &kind, ctx).await
                };
                return done.map(|()| false);
            }
            let contents = contents::plan(pod, volume, ctx, &*self.objects, &self.issued).await.map_err(fail)?;
            let layout = self.layout.clone();
            let (uid, name) = (uid_of(pod)?.to_owned(), volume.name.clone());
            blocking(move || contents::apply(&layout, &uid, &name, &contents)).await?.map_err(fail)
        });
        let mut changed = false;
        let mut first = None;
        for result in join_all(work).await {
            match result {
                Ok(this) => changed |= this,
                Err(e) if first.is_none() => first = Some(e),
                Err(e) => tracing::warn!(pod = pod.metadata.name.as_deref(), error = %e, "volume failed, too"),
            }
        }
        first.map_or(Ok(changed), Err)
    }

    /// The mounts of a container: its volumeMounts (sub-paths resolved and pinned), the hosts file and the termination
    /// log of this `attempt`. `env` is the container's environment, for `subPathExpr`. For an ephemeral container pass
    /// its common part as a [`Container`]. Call it after [`Volumes::setup`], shortly before the container is created.
    ///
    /// # Errors
    /// A mount names an unknown volume, or a sub-path leaves its volume.
    pub fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        env: &[(String, String)],
        attempt: u32,
    ) -> Result<Vec<MountSpec>, VolumeError> {
        let uid = uid_of(pod)?;
        check_component(pod, &container.name)?;
        let mut out = mounts::of_volumes(&self.layout, pod, container, env)?;
        let file = |host_path, container_path: &str| MountSpec {
            host_path,
            container_path: mounts::absolute(container_path),
            read_only: false,
            recursive_read_only: Recursive::Disabled,
            propagation: Propagation::Private,
            selinux_relabel: true,
            image: None,
        };
        let hosts = self.layout.hosts(uid);
        if hosts.exists() && !mounts::mounts_over(container, "/etc/hosts") {
            out.push(file(hosts, "/etc/hosts"));
        }
        let log = container.termination_message_path.as_deref().unwrap_or(mounts::TERMINATION_LOG);
        if !log.is_empty() && !mounts::mounts_over(container, log) {
            let path = self.layout.termination_log(uid, &container.name, attempt);
            make_writable_file(&path).map_err(|source| path_error("create the termination log", &path, source))?;
            out.push(file(path, log));
        }
        Ok(out)
    }

    /// The raw devices of a container (volumeDevices). Call it after [`Volumes::setup`].
    ///
    /// # Errors
    /// A device names an unknown volume, or one that is not set up.
    pub fn devices(&self, pod: &Pod, container: &Container) -> Result<Vec<DeviceSpec>, VolumeError> {
        uid_of(pod)?;
        mounts::devices(&self.layout, pod, container)
    }

    /// Writes the pod's hosts file ([`Volumes::mounts`] includes it once it exists). `domain` is the pod's
    /// `subdomain.namespace.svc.clusterDomain`, or empty.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_hosts(&self, pod: &Pod, pod_ips: &[String], hostname: &str, domain: &str) -> Result<(), VolumeError> {
        let path = self.layout.hosts(uid_of(pod)?);
        let spec = pod.spec.as_ref();
        let aliases = spec.and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
        let host_network = spec.and_then(|s| s.host_network) == Some(true);
        hosts::write_hosts(&path, pod_ips, hostname, domain, aliases, host_network)
            .map_err(|source| path_error("write the hosts file", &path, source))
    }

    /// The last `limit` bytes of the message that a container left; empty when it left none.
    pub fn termination_message(&self, uid: &str, container: &str, attempt: u32, limit: usize) -> String {
        use std::io::{Read, Seek, SeekFrom};
        if !is_component(uid) || !is_component(container) {
            return String::new();
        }
        let read = || -> io::Result<Vec<u8>> {
            let mut file = fs::File::open(self.layout.termination_log(uid, container, attempt))?;
            let start = file.metadata()?.len().saturating_sub(limit as u64);
            file.seek(SeekFrom::Start(start))?;
            let mut out = Vec::new();
            file.take(limit as u64).read_to_end(&mut out)?;
            Ok(out)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// Unmounts and removes the volumes of a pod of which nothing runs any more, and keeps what is known of its
    /// containers until [`Volumes::teardown`]. Repeating it is fine.
    ///
    /// # Errors
    /// Everything that could not be removed.
    pub async fn release(&self, uid: &str) -> Result<(), Vec<VolumeError>> {
        self.take_down(uid, vec![self.layout.subpaths(uid), self.layout.volumes(uid)]).await
    }

    /// Unmounts and removes everything of a pod. Repeating it is fine; it goes on after errors and never deletes across
    /// a mount.
    ///
    /// # Errors
    /// Everything that could not be removed.
    pub async fn teardown(&self, uid: &str) -> Result<(), Vec<VolumeError>> {
        self.take_down(uid, vec![self.layout.pod(uid)]).await
    }

    async fn take_down(&self, uid: &str, dirs: Vec<PathBuf>) -> Result<(), Vec<VolumeError>> {
        if !is_component(uid) {
            return Err(vec![VolumeError::BadUid { pod: String::new(), uid: uid.to_owned() }]);
        }
        self.issued.tokens.forget(uid);
        self.issued.certificates.forget(uid);
        self.looked.forget(uid);
        self.notes.take(uid);
        let subpaths = self.layout.subpaths(uid);
        let mut faults = blocking(move || teardown::unmount_below(&subpaths)).await.unwrap_or_else(|e| vec![e]);
        if faults.is_empty() {
            faults = self.csi.unmount_all(uid).await;
        }
        if !faults.is_empty() {
            // What a driver still holds is not torn out of its hands.
            return Err(faults);
        }
        let faults = blocking(move || {
            let mut faults = Vec::new();
            for dir in dirs {
                faults.extend(teardown::unmount_below(&dir));
                faults.extend(teardown::delete(&dir));
            }
            faults
        })
        .await
        .unwrap_or_else(|e| vec![e]);
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Uids of pods that have a directory.
    pub fn pods_on_disk(&self) -> Vec<String> {
        let entries = fs::read_dir(self.layout.pods()).into_iter().flatten().flatten();
        let mut uids: Vec<String> = entries
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        uids.sort();
        uids
    }

    /// Takes away what a kubelet that died left of CSI volumes that no pod has any more.
    pub async fn sweep(&self) {
        self.csi.sweep().await;
    }

    /// Attached volumes that pods of the node have, in the words of a node's status (`volumesInUse`): the controller must
    /// not detach them.
    pub fn in_use(&self) -> Vec<String> {
        crate::csi::in_use(&self.layout, &self.pods_on_disk())
    }

    /// What each of the pod's local volumes holds. Walks the files: call it from a blocking thread, about once a minute.
    pub fn usage(&self, uid: &str) -> Vec<Usage> {
        let mut out = Vec::new();
        if !is_component(uid) {
            return out;
        }
        // What a driver brings is counted by the driver.
        let own = |e: &fs::DirEntry| e.file_name() != "kubernetes.io~csi";
        for plugin in fs::read_dir(self.layout.volumes(uid)).into_iter().flatten().flatten().filter(own) {
            for volume in fs::read_dir(plugin.path()).into_iter().flatten().flatten() {
                out.push(usage::measure(&volume.file_name().to_string_lossy(), &volume.path()));
            }
        }
        out.sort_by(|a, b| a.volume.cmp(&b.volume));
        out
    }

    /// The directory of a named volume of the pod on the host; for hostPath the path itself. `None` if there is no such
    /// volume or its kind is not supported.
    pub fn host_path(&self, pod: &Pod, volume: &str) -> Option<PathBuf> {
        let found = pod.spec.as_ref()?.volumes.iter().flatten().find(|v| v.name == volume)?;
        let kind = kind_of(found).ok()?;
        let uid = pod.metadata.uid.as_deref()?;
        if matches!(kind, Kind::Csi(_) | Kind::Claim) {
            return crate::backed::Backing::read(&self.layout, uid, volume).ok().map(|b| b.path);
        }
        Some(mounts::volume_path(&self.layout, uid, found, &kind))
    }
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, VolumeError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| VolumeError::Path {
        action: "run work on",
        path: "a thread".into(),
        source: io::Error::other(e),
    })
}

fn pod_dirs(layout: &Layout, uid: &str) -> Result<(), VolumeError> {
    for dir in [layout.pods(), layout.pod(uid), layout.volumes(uid), layout.pod(uid).join("containers")] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&dir)
            .map_err(|source| path_error("create", &dir, source))?;
    }
    Ok(())
}

fn make_writable_file(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
    }
    let file = fs::OpenOptions::new().append(true).create(true).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o666))
}

fn path_error(action: &'static str, path: &Path, source: io::Error) -> VolumeError {
    VolumeError::Path { action, path: path.display().to_string(), source }
}

/// Whether a name can be one directory level.
fn is_component(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn check_component(pod: &Pod, name: &str) -> Result<(), VolumeError> {
    if is_component(name) { Ok(()) } else { Err(bad_uid(pod, name)) }
}

fn uid_of(pod: &Pod) -> Result<&str, VolumeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    check_component(pod, uid)?;
    Ok(uid)
}

fn bad_uid(pod: &Pod, uid: &str) -> VolumeError {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    VolumeError::BadUid {
        pod: format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name)),
        uid: uid.to_owned(),
    }
}
