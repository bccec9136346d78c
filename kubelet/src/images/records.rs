//! Who may use an image that is on the node already: records of how each was pulled, so that a pod without the right
//! login does not get a private image because another pod had pulled it (`imagePullCredentialsVerificationPolicy`).
//!
//! `image_manager/pulling` has a file for each pull at work: an image that came while the kubelet died is known to be
//! pulled, though not with what. `image_manager/pulled` has one for each image, in upstream's form.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use gantry_files::{Access, Outlives};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::login::Login;
use super::name;
use super::providers::Account;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";

/// Whose login an image was pulled with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The node's, or none was needed: every pod may use the image.
    Node,
    /// A pull secret's.
    Secret {
        /// The secret's uid.
        uid: String,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Names the login in it.
        hash: String,
    },
    /// A service account's, of a credential provider that got its token.
    Account(Account),
}

/// The file of an image that was pulled.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pulled {
    kind: String,
    api_version: String,
    last_updated_time: String,
    image_ref: String,
    /// By image name without tag.
    #[serde(default)]
    credential_mapping: BTreeMap<String, Credentials>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Credentials {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<Secret>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<Account>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Secret {
    uid: String,
    namespace: String,
    name: String,
    credential_hash: String,
}

/// Secrets, and accounts, that are kept of one image; the oldest goes when there are more, as upstream.
const MOST: usize = 100;

/// When logins are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Whoever is on the node may use what is on the node.
    Never,
    /// Images that the kubelet did not pull are everybody's.
    NotPreloaded,
    /// Images that the kubelet did not pull and that these patterns name are everybody's.
    NotListed(Vec<String>),
    /// Each image is asked for.
    Always,
}

impl Policy {
    /// By its name in the configuration.
    pub(crate) fn named(name: &str, list: &[String]) -> Self {
        match name {
            "NeverVerify" => Self::Never,
            "AlwaysVerify" => Self::Always,
            "NeverVerifyAllowlistedImages" => Self::NotListed(list.to_vec()),
            _ => Self::NotPreloaded,
        }
    }

    /// Whether an image may be used by everyone, before anything is looked up; `pulled` says whether the kubelet did.
    fn free(&self, image: &str, pulled: bool) -> bool {
        match self {
            Self::Never => true,
            Self::NotPreloaded => !pulled,
            Self::NotListed(list) => !pulled && list.iter().any(|pattern| listed(pattern, image)),
            Self::Always => false,
        }
    }
}

/// A pattern is an image name without tag, or `prefix/*`.
fn listed(pattern: &str, image: &str) -> bool {
    let repository = name::repository(image);
    match pattern.strip_suffix("/*") {
        Some(prefix) => repository.starts_with(&format!("{prefix}/")),
        None => name::repository(pattern) == repository,
    }
}

/// The records.
#[derive(Debug)]
pub(crate) struct Records {
    folder: PathBuf,
    policy: Policy,
    /// Pulls at work, by image.
    pulling: Mutex<HashMap<String, usize>>,
}

/// A pull at work; [`Records::succeeded`] or [`Records::failed`] ends it.
#[must_use]
#[derive(Debug)]
pub(crate) struct Intent(String);

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn file_of(name: &str) -> String {
    format!("sha256-{}", hex(&Sha256::digest(name)))
}

impl Records {
    /// Records below the kubelet's root.
    pub(crate) fn new(root: &Path, policy: Policy) -> Self {
        Self { folder: root.join("image_manager"), policy, pulling: Mutex::default() }
    }

    fn pulled_path(&self, image_ref: &str) -> PathBuf {
        self.folder.join("pulled").join(file_of(image_ref))
    }

    fn pulling_path(&self, image: &str) -> PathBuf {
        self.folder.join("pulling").join(file_of(image))
    }

    fn read(&self, image_ref: &str) -> Option<Pulled> {
        serde_json::from_slice(&fs::read(self.pulled_path(image_ref)).ok()?).ok()
    }

    /// Says that an image is about to be pulled, before it is.
    ///
    /// # Errors
    /// It cannot be written; then nothing must be pulled.
    pub(crate) fn begin(&self, image: &str) -> io::Result<Intent> {
        let mut pulling = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        let count = pulling.entry(image.to_owned()).or_default();
        let value = serde_json::json!({"kind": "ImagePullIntent", "apiVersion": API_VERSION, "image": image});
        write(&self.pulling_path(image), value.to_string().as_bytes())?;
        *count += 1;
        Ok(Intent(image.to_owned()))
    }

    /// The pull failed: nothing came.
    pub(crate) fn failed(&self, intent: Intent) {
        let mut pulling = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        let left = pulling.get_mut(&intent.0).map_or(0, |n| {
            *n = n.saturating_sub(1);
            *n
        });
        if left == 0 {
            pulling.remove(&intent.0);
            let _ = fs::remove_file(self.pulling_path(&intent.0));
        }
    }

    /// The pull brought `image_ref`, with a login of `owner`.
    pub(crate) fn succeeded(&self, intent: Intent, image_ref: &str, owner: &Owner) {
        match self.note(&intent.0, image_ref, owner) {
            Ok(()) => self.failed(intent),
            // The intent stays: the image is known to be pulled, with nobody's login.
            Err(e) => tracing::warn!(image = intent.0, error = %e, "how the image was pulled is not on disk"),
        }
    }

    fn note(&self, image: &str, image_ref: &str, owner: &Owner) -> io::Result<()> {
        let _one = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        let mut record = self.read(image_ref).unwrap_or_default();
        let mapping = record.credential_mapping.entry(name::repository(image)).or_default();
        match owner {
            Owner::Node => *mapping = Credentials { node_pods_accessible: true, ..Credentials::default() },
            Owner::Secret { .. } | Owner::Account(_) if mapping.node_pods_accessible => return Ok(()),
            Owner::Account(account) => {
                let accounts = &mut mapping.kubernetes_service_accounts;
                accounts.retain(|known| known != account);
                accounts.push(account.clone());
                let over = accounts.len().saturating_sub(MOST);
                accounts.drain(..over);
            }
            Owner::Secret { uid, namespace, name, hash } => {
                let same = |s: &Secret| s.uid == *uid && s.namespace == *namespace && s.name == *name;
                let secrets = &mut mapping.kubernetes_secrets;
                secrets.retain(|s| !same(s));
                secrets.push(Secret {
                    uid: uid.clone(),
                    namespace: namespace.clone(),
                    name: name.clone(),
                    credential_hash: hash.clone(),
                });
                let over = secrets.len().saturating_sub(MOST);
                secrets.drain(..over);
            }
        }
        record.kind = "ImagePulledRecord".into();
        record.api_version = API_VERSION.into();
        record.last_updated_time =
            jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default().to_string();
        record.image_ref = image_ref.to_owned();
        write(&self.pulled_path(image_ref), &serde_json::to_vec(&record)?)
    }

    /// Whether a pod with these logins may use an image that is here, or has to show at the registry that it may.
    ///
    /// `named` says that the runtime has the image under this very name: what somebody put on the node stays usable
    /// under its name although the same content was pulled under another one, too.
    pub(crate) fn may_use(&self, image: &str, image_ref: &str, named: bool, logins: &[Login]) -> bool {
        let record = self.read(image_ref);
        let of_name = record.as_ref().is_some_and(|r| r.credential_mapping.contains_key(&name::repository(image)));
        let pulled = of_name || (record.is_some() && !named) || self.pulling_path(image).exists();
        if self.policy.free(image, pulled) {
            return true;
        }
        let known = record.and_then(|mut r| r.credential_mapping.remove(&name::repository(image)));
        let Some(known) = known else { return false };
        if known.node_pods_accessible {
            return true;
        }
        for login in logins {
            let Owner::Secret { uid, namespace, name, hash } = &login.owner else {
                if matches!(&login.owner, Owner::Account(a) if known.kubernetes_service_accounts.contains(a)) {
                    return true;
                }
                continue;
            };
            let same = |s: &Secret| s.uid == *uid && s.namespace == *namespace && s.name == *name;
            let found = known.kubernetes_secrets.iter().find(|s| s.credential_hash == *hash || same(s));
            let Some(found) = found else { continue };
            // The same login in another secret, or a new one in the same: both are remembered.
            if (!same(found) || found.credential_hash != *hash)
                && let Err(e) = self.note(image, image_ref, &login.owner)
            {
                tracing::warn!(image, error = %e, "who may use the image is not on disk");
            }
            return true;
        }
        false
    }

    /// Whether anything of a pod has to be known before it may use an image.
    pub(crate) fn asks(&self) -> bool {
        self.policy != Policy::Never
    }

    /// Forgets images that are gone. `there` are the images' ids; what was written since `before` stays.
    pub(crate) fn keep(&self, there: &HashSet<String>, before: std::time::SystemTime) {
        for entry in fs::read_dir(self.folder.join("pulled")).into_iter().flatten().flatten() {
            let old = entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| at < before);
            let record: Option<Pulled> = fs::read(entry.path()).ok().and_then(|t| serde_json::from_slice(&t).ok());
            if old && record.is_none_or(|r| !there.contains(&r.image_ref)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let pulling = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
        let busy: HashSet<String> = pulling.keys().map(|image| file_of(image)).collect();
        for entry in fs::read_dir(self.folder.join("pulling")).into_iter().flatten().flatten() {
            let old = entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| at < before);
            let name = entry.file_name().to_string_lossy().into_owned();
            // Left by a kubelet that died. While images are there that might be its, it has to stay.
            if old && !busy.contains(&name) && there.is_empty() {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    gantry_files::replace(path, bytes, Access::Umask, Outlives::Crash)
}

#[cfg(test)]
mod tests {
    use proto::cri::AuthConfig;

    use super::*;

    fn secret(uid: &str, hash: &str) -> Login {
        let owner = Owner::Secret { uid: uid.into(), namespace: "n".into(), name: uid.into(), hash: hash.into() };
        Login { auth: AuthConfig::default(), owner }
    }

    fn records(policy: &str) -> (tempfile::TempDir, Records) {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path(), Policy::named(policy, &["r.io/free/*".into(), "r.io/one".into()]));
        (dir, records)
    }

    #[test]
    fn a_private_image_is_not_for_everyone() {
        let (dir, records) = records("NeverVerifyPreloadedImages");
        assert!(records.may_use("r.io/a:1", "id", true, &[]), "it was there before the kubelet");
        let intent = records.begin("r.io/a:1").unwrap();
        assert!(!records.may_use("r.io/a:1", "id", true, &[]), "it is being pulled, nobody knows with what");
        records.succeeded(intent, "id", &secret("s", "h").owner);
        assert!(!records.may_use("r.io/a:1", "id", true, &[]));
        assert!(!records.may_use("r.io/a:1", "id", true, &[secret("other", "x")]));
        assert!(records.may_use("r.io/a:2", "id", true, &[secret("s", "h")]), "another tag of the same");
        assert!(!records.may_use("sha256:id", "id", false, &[secret("s", "h")]), "the same image by its id");
        assert!(records.may_use("r.io/b:1", "id", true, &[]), "the same content, put here under another name");
        assert!(records.may_use("r.io/a:1", "id", true, &[secret("other", "h")]), "the same login in another secret");
        assert!(records.may_use("r.io/a:1", "id", true, &[secret("other", "new")]), "which counts from then on");
        let again = Records::new(dir.path(), Policy::NotPreloaded);
        assert!(again.may_use("r.io/a:1", "id", true, &[secret("s", "h")]), "a new kubelet knows it, too");
        let intent = records.begin("r.io/a:1").unwrap();
        records.succeeded(intent, "id", &Owner::Node);
        assert!(records.may_use("r.io/a:1", "id", true, &[]), "it can be had without a login");
    }

    #[test]
    fn what_came_by_an_accounts_token_is_for_that_account() {
        let (_dir, records) = records("NeverVerifyPreloadedImages");
        let of = |uid: &str| Account { uid: uid.into(), namespace: "n".into(), name: "builder".into() };
        let login = |uid: &str| Login { auth: AuthConfig::default(), owner: Owner::Account(of(uid)) };
        let intent = records.begin("r.io/a:1").unwrap();
        records.succeeded(intent, "id", &Owner::Account(of("one")));
        assert!(!records.may_use("r.io/a:1", "id", true, &[]));
        assert!(!records.may_use("r.io/a:1", "id", true, &[login("two")]), "another account of the same name");
        assert!(records.may_use("r.io/a:1", "id", true, &[login("one")]));
    }

    #[test]
    fn policies_differ_in_what_was_there_before() {
        for (policy, image, want) in [
            ("NeverVerify", "r.io/a", true),
            ("AlwaysVerify", "r.io/a", false),
            ("NeverVerifyPreloadedImages", "r.io/a", true),
            ("NeverVerifyAllowlistedImages", "r.io/a", false),
            ("NeverVerifyAllowlistedImages", "r.io/one:7", true),
            ("NeverVerifyAllowlistedImages", "r.io/free/x", true),
        ] {
            let (_dir, records) = records(policy);
            assert_eq!(records.may_use(image, "id", true, &[]), want, "{policy} {image}");
        }
    }

    #[test]
    fn a_kubelet_that_died_in_a_pull_leaves_a_trace_and_images_that_go_take_theirs_along() {
        let (dir, records) = records("NeverVerifyPreloadedImages");
        let _died = records.begin("r.io/a:1").unwrap();
        let again = Records::new(dir.path(), Policy::NotPreloaded);
        assert!(!again.may_use("r.io/a:1", "id", true, &[]));
        let intent = again.begin("r.io/b").unwrap();
        again.succeeded(intent, "b-id", &Owner::Node);
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
        again.keep(&HashSet::from(["b-id".to_owned()]), later);
        assert!(again.read("b-id").is_some());
        again.keep(&HashSet::new(), later);
        assert!(again.read("b-id").is_none());
    }
}
