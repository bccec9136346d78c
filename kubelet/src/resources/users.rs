//! Pods with user ids of their own (`hostUsers: false`): which ids of the host stand for those of which pod.
//!
//! Each pod gets a part of the same length, of the ids that the host's administrator set aside for the user `kubelet`, else
//! of all above the first part. What a pod has is written down in its folder before the pod's sandbox is made, so that no
//! two pods share ids whenever the kubelet begins anew; the ids are free again when the folder is gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use gantry_files::{Access, Outlives};
use k8s_openapi::api::core::v1::Pod;
use proto::cri;
use serde::{Deserialize, Serialize};

use crate::pod;

const FILE: &str = "userns";
/// The user whose subordinate ids pods get, where there is one.
const OWNER: &str = "kubelet";

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// As upstream has it on disk.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

/// Ids of the host: `length` from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    /// The id that is the pod's root.
    pub(crate) first: u32,
    /// How many.
    pub(crate) length: u32,
}

/// Who has which ids.
#[derive(Debug)]
pub(crate) struct Users {
    pods: PathBuf,
    /// What all pods may have together.
    all: Ids,
    /// What one gets.
    each: u32,
    given: Mutex<BTreeMap<String, Ids>>,
}

/// The ids of a user in the text of /etc/subuid or /etc/subgid: `name:first:count`.
fn subordinate(text: &str, user: &str) -> Option<Ids> {
    text.lines().find_map(|line| {
        let mut parts = line.trim().split(':');
        (parts.next()? == user).then_some(())?;
        Some(Ids { first: parts.next()?.parse().ok()?, length: parts.next()?.parse().ok()? })
    })
}

/// What pods may have together, by the two files (pure).
///
/// # Errors
/// The files set aside what cannot be used.
fn range(uids: &str, gids: &str, each: u32) -> Result<Ids, String> {
    match (subordinate(uids, OWNER), subordinate(gids, OWNER)) {
        (None, None) => Ok(Ids { first: each, length: (u32::MAX - each) / each * each }),
        (Some(uids), Some(gids)) if uids != gids => {
            Err(format!("/etc/subuid and /etc/subgid differ for user {OWNER:?}: they must set aside the same ids"))
        }
        (Some(ids), Some(_)) if ids.first < 65536 || !ids.first.is_multiple_of(65536) || ids.length < each => {
            Err(format!(
                "/etc/subuid: the ids of user {OWNER:?} must begin at a multiple of 65536 that is not 0, and be {each} at least"
            ))
        }
        (Some(ids), Some(_)) => Ok(Ids { length: ids.length / each * each, ..ids }),
        _ => Err(format!("user {OWNER:?} is in one of /etc/subuid and /etc/subgid and not in the other")),
    }
}

/// The first part of `all` that nobody has (pure).
fn free(all: Ids, each: u32, taken: impl Fn(Ids) -> bool) -> Option<Ids> {
    let parts = (0..all.length / each).map(|n| Ids { first: all.first + n * each, length: each });
    parts.into_iter().find(|part| !taken(*part))
}

impl Ids {
    fn meets(self, other: Self) -> bool {
        let end = |ids: Self| u64::from(ids.first) + u64::from(ids.length);
        u64::from(self.first) < end(other) && u64::from(other.first) < end(self)
    }

    /// As the runtime takes them.
    fn options(self) -> cri::UserNamespace {
        let one = vec![cri::IdMapping { host_id: self.first, container_id: 0, length: self.length }];
        cri::UserNamespace { mode: cri::NamespaceMode::Pod as i32, uids: one.clone(), gids: one }
    }

    /// Gives a sandbox these ids.
    pub(crate) fn sandbox(self, config: &mut cri::PodSandboxConfig) {
        let security = config.linux.as_mut().and_then(|l| l.security_context.as_mut());
        if let Some(options) = security.and_then(|s| s.namespace_options.as_mut()) {
            options.userns_options = Some(self.options());
        }
    }

    /// Gives a container these ids, and its mounts, whose files keep the owners that they have on the host.
    pub(crate) fn container(self, config: &mut cri::ContainerConfig) {
        let security = config.linux.as_mut().and_then(|l| l.security_context.as_mut());
        if let Some(options) = security.and_then(|s| s.namespace_options.as_mut()) {
            options.userns_options = Some(self.options());
        }
        for mount in config.mounts.iter_mut().filter(|m| m.image.is_none()) {
            (mount.uid_mappings, mount.gid_mappings) = (self.options().uids, self.options().gids);
        }
    }
}

/// The folders of a pod that lead to what its containers mount. What volumes hold is not among them: it keeps its owners.
fn folders(pod: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
    };
    let (containers, volumes) = (pod.join("containers"), pod.join("volumes"));
    let mut out = vec![pod.to_owned()];
    out.extend(below(&containers));
    out.extend(below(&volumes));
    out.extend([containers, volumes].into_iter().filter(|f| f.is_dir()));
    out
}

fn read(file: &Path) -> Option<Ids> {
    let written: Written = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let first = written.uid_mappings.first()?;
    Some(Ids { first: first.host_id, length: first.length })
}

fn write(folder: &Path, ids: Ids) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let one = || vec![Mapping { host_id: ids.first, container_id: 0, length: ids.length }];
    let bytes = serde_json::to_vec(&Written { uid_mappings: one(), gid_mappings: one() })?;
    gantry_files::replace(&folder.join(FILE), &bytes, Access::Umask, Outlives::Crash)
}

impl Users {
    /// `pods` is the folder of pods' folders; `each` is what one pod gets.
    pub(crate) fn new(pods: PathBuf, each: u32) -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let all = range(&text("/etc/subuid"), &text("/etc/subgid"), each).unwrap_or_else(|why| {
            tracing::error!(error = %why, "pods with hostUsers: false cannot run");
            Ids { first: each, length: 0 }
        });
        Self::within(pods, all, each)
    }

    fn within(pods: PathBuf, all: Ids, each: u32) -> Self {
        let entries = std::fs::read_dir(&pods).into_iter().flatten().flatten();
        let given = entries.filter_map(|e| Some((e.file_name().to_str()?.to_owned(), read(&e.path().join(FILE))?)));
        Self { given: Mutex::new(given.collect()), pods, all, each }
    }

    /// The ids of a pod; `None` for one that has the host's.
    ///
    /// # Errors
    /// All are taken, or it cannot be written down.
    pub(crate) fn of(&self, pod: &Pod) -> Result<Option<Ids>, String> {
        if pod.spec.as_ref().and_then(|s| s.host_users) != Some(false) {
            return Ok(None);
        }
        let uid = pod::uid(pod);
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ids) = given.get(uid) {
            return Ok(Some(*ids));
        }
        // Other lengths may have been given before the configuration was changed.
        let ids = free(self.all, self.each, |part| given.values().any(|other| part.meets(*other)))
            .ok_or_else(|| "no user ids are left for another pod with hostUsers: false".to_owned())?;
        let folder = self.pods.join(uid);
        write(&folder, ids).map_err(|e| format!("write down the user ids of the pod in {}: {e}", folder.display()))?;
        given.insert(uid.to_owned(), ids);
        Ok(Some(ids))
    }

    /// Lets the pod's root, by its group, through the folders that lead to its volumes: a runtime may open them as that user.
    ///
    /// # Errors
    /// A folder's group cannot be changed.
    pub(crate) fn let_through(&self, pod: &Pod) -> Result<(), String> {
        let Some(ids) = self.of(pod)? else { return Ok(()) };
        for folder in folders(&self.pods.join(pod::uid(pod))) {
            std::os::unix::fs::chown(&folder, None, Some(ids.first))
                .map_err(|e| format!("give {} to the pod's group: {e}", folder.display()))?;
        }
        Ok(())
    }

    /// Frees the ids of a pod whose folder is gone.
    pub(crate) fn forget(&self, uid: &str) {
        if !self.pods.join(uid).join(FILE).exists() {
            self.given.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_set_aside_is_used_and_nothing_else() {
        let line = "root:100000:65536\nkubelet:131072:262144\n";
        assert_eq!(range(line, line, 65536), Ok(Ids { first: 131_072, length: 262_144 }));
        let none = range("root:100000:65536\n", "", 65536).unwrap();
        assert_eq!((none.first, u64::from(none.first) + u64::from(none.length) <= 1 << 32), (65536, true));
        for (uids, gids) in [
            (line, ""),
            (line, "kubelet:196608:262144"),
            ("kubelet:1000:262144", "kubelet:1000:262144"),
            ("kubelet:65536:1000", "kubelet:65536:1000"),
        ] {
            assert!(range(uids, gids, 65536).is_err(), "{uids} {gids}");
        }
    }

    #[test]
    fn no_two_pods_share_ids_and_they_keep_them() {
        let dir = tempfile::tempdir().unwrap();
        let all = Ids { first: 65536, length: 3 * 65536 };
        let users = || Users::within(dir.path().to_owned(), all, 65536);
        let pod = |uid: &str, own: bool| -> Pod {
            let value = json!({"metadata": {"name": uid, "uid": uid}, "spec": {"containers": [], "hostUsers": !own}});
            serde_json::from_value(value).unwrap()
        };
        let first = |users: &Users, uid: &str| users.of(&pod(uid, true)).map(|ids| ids.unwrap().first);
        let one = users();
        assert_eq!(one.of(&pod("h", false)), Ok(None));
        assert_eq!((first(&one, "a"), first(&one, "b"), first(&one, "a")), (Ok(65536), Ok(131_072), Ok(65536)));
        // A kubelet that begins anew.
        let two = users();
        assert_eq!((first(&two, "b"), first(&two, "c")), (Ok(131_072), Ok(196_608)));
        assert!(first(&two, "d").unwrap_err().contains("no user ids"));
        // Ids are taken as long as the folder is there.
        two.forget("a");
        assert!(first(&two, "d").is_err());
        std::fs::remove_dir_all(dir.path().join("a")).unwrap();
        two.forget("a");
        assert_eq!(first(&two, "d"), Ok(65536));
    }

    #[test]
    fn what_volumes_hold_is_not_given_away() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["containers/c", "volumes/kubernetes.io~empty-dir/data/deep"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("etc-hosts"), "").unwrap();
        let mut got: Vec<String> =
            folders(dir.path()).iter().map(|f| f.strip_prefix(dir.path()).unwrap().display().to_string()).collect();
        got.sort();
        assert_eq!(got, ["", "containers", "containers/c", "volumes", "volumes/kubernetes.io~empty-dir"]);
    }

    #[test]
    fn the_runtime_is_told_the_ids_of_pod_and_mounts() {
        let ids = Ids { first: 65536, length: 65536 };
        let mut config = cri::ContainerConfig {
            mounts: vec![cri::Mount::default(), cri::Mount { image: Some(Default::default()), ..Default::default() }],
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(Default::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        ids.container(&mut config);
        let told: Vec<usize> = config.mounts.iter().map(|m| m.uid_mappings.len() + m.gid_mappings.len()).collect();
        assert_eq!(told, [2, 0]);
        let security = config.linux.unwrap().security_context.unwrap();
        let options = security.namespace_options.unwrap().userns_options.unwrap();
        assert_eq!((options.mode(), options.uids[0].host_id), (cri::NamespaceMode::Pod, 65536));
    }
}
