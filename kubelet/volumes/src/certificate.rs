//! Certificates of pods (podCertificate projections): a key made here, a PodCertificateRequest for it, and the chain that
//! a signer puts into the request's status; renewed when the signer says so.
//!
//! What is here lives in memory only, as upstream: after a restart a pod keeps the files that it has until it got new ones.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use gantry_kube::{csr, pki};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Pod, PodCertificateProjection};

use crate::Objects;
use crate::notes::Notes;

/// A request that is gone for this long was deleted, and is made anew; upstream waits as long.
const LOST_AFTER: Duration = Duration::from_secs(600);
/// A certificate that was to be renewed so long ago is overdue, as upstream counts it.
const OVERDUE_AFTER: SignedDuration = SignedDuration::from_secs(600);
/// How long a pod's first certificate is waited for before the volume is tried again later.
const PATIENCE: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A private key and the certificates for it, PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) key: String,
    pub(crate) chain: String,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// The pod, its volume, and the source in it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    volume: String,
    source: usize,
}

#[derive(Clone)]
struct Pending {
    key: String,
    request: String,
    since: Instant,
}

/// How far one certificate is.
#[derive(Clone, Default)]
struct Record {
    held: Option<Held>,
    renew_at: Option<Timestamp>,
    not_after: Option<Timestamp>,
    pending: Option<Pending>,
    /// The signer said no, for good: the state that this is, and the text.
    refused: Option<(&'static str, String)>,
    signer: String,
    /// What its pod's events have told already.
    told: Vec<&'static str>,
}

impl Record {
    /// Its state in the metric; none while the first certificate is waited for.
    fn state(&self, now: Timestamp) -> Option<&'static str> {
        let since = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        let overdue = self.renew_at.and_then(|at| at.checked_add(OVERDUE_AFTER).ok());
        match (&self.refused, &self.held) {
            (Some((state, _)), _) => Some(state),
            (None, None) => None,
            (None, Some(_)) if since(self.not_after) => Some("expired"),
            (None, Some(_)) if since(overdue) => Some("overdue_for_refresh"),
            (None, Some(_)) => Some("fresh"),
        }
    }
}

/// What a request's status says.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Waiting,
    /// The state that this is, and the text.
    Refused(&'static str, String),
    Issued {
        chain: String,
        renew_at: Option<Timestamp>,
        not_after: Option<Timestamp>,
    },
}

fn verdict(request: &PodCertificateRequest) -> Result<Verdict, String> {
    let status = request.status.clone().unwrap_or_default();
    for condition in status.conditions.iter().flatten().filter(|c| c.status != "False") {
        let why = || format!("reason={:?} message={:?}", condition.reason, condition.message);
        match condition.type_.as_str() {
            "Denied" => {
                let text = format!("PodCertificateRequest was permanently denied: {}", why());
                return Ok(Verdict::Refused("denied", text));
            }
            "Failed" => {
                let text = format!("PodCertificateRequest was permanently failed: {}", why());
                return Ok(Verdict::Refused("failed", text));
            }
            "Issued" => {
                let text = status.certificate_chain.as_deref().unwrap_or_default();
                let blocks = pki::blocks(text).map_err(|e| format!("the issued certificate chain: {e}"))?;
                if blocks.is_empty() {
                    return Err("the issued certificate chain is empty".into());
                }
                let chain = blocks.iter().map(|der| pki::certificate_block(der)).collect();
                let (renew_at, not_after) = (status.begin_refresh_at.map(|t| t.0), status.not_after.map(|t| t.0));
                return Ok(Verdict::Issued { chain, renew_at, not_after });
            }
            _ => {}
        }
    }
    Ok(Verdict::Waiting)
}

/// All certificates of the node's pods.
#[derive(Default)]
pub(crate) struct Certificates {
    /// What their pods' events shall tell.
    pub(crate) notes: Notes,
    known: Mutex<HashMap<Key, Record>>,
}

impl Certificates {
    /// The key and the chain of a source (`place`: volume and index), asked for where they are not there or are to be
    /// renewed. A renewal that does not come leaves what is there.
    pub(crate) async fn get(
        &self,
        objects: &dyn Objects,
        pod: &Pod,
        place: (&str, usize),
        source: &PodCertificateProjection,
    ) -> Result<Held, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let at = Key { uid, volume: place.0.to_owned(), source: place.1 };
        let record = self.lock().get(&at).cloned().unwrap_or_default();
        if let Some((_, why)) = record.refused {
            return Err(why);
        }
        self.tell_late(&at, Timestamp::now());
        let due = record.renew_at.is_some_and(|t| t <= Timestamp::now());
        match record.held {
            Some(held) if !due => return Ok(held),
            Some(held) => {
                // One look; whoever renews comes again soon.
                let renewed = match self.step(objects, pod, &at, source).await {
                    Err(e) => Err(e),
                    Ok(()) => self.ready(&at, true),
                };
                return Ok(match renewed {
                    Ok(Some(new)) => new,
                    Ok(None) => held,
                    Err(e) => {
                        tracing::warn!(pod = pod.metadata.name, error = %e, "certificate not renewed");
                        held
                    }
                });
            }
            None => {}
        }
        // The key and the request are not given up when patience ends.
        self.step(objects, pod, &at, source).await?;
        let wait = async {
            loop {
                if let Some(held) = self.ready(&at, false)? {
                    return Ok(held);
                }
                tokio::time::sleep(LOOK_EVERY).await;
                self.step(objects, pod, &at, source).await?;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| {
            let name = self.lock().get(&at).and_then(|r| Some(r.pending.as_ref()?.request.clone())).unwrap_or_default();
            Err(format!(
                "credential bundle is not issued yet: PodCertificateRequest {name:?} waits for {}",
                source.signer_name
            ))
        })
    }

    /// What there is; a `renewal` that was refused says so, while the old certificate is still there.
    fn ready(&self, at: &Key, renewal: bool) -> Result<Option<Held>, String> {
        let known = self.lock();
        let Some(record) = known.get(at) else { return Ok(None) };
        match &record.refused {
            Some((_, why)) => Err(why.clone()),
            None if renewal && record.pending.is_some() => Ok(None),
            None => Ok(record.held.clone()),
        }
    }

    /// Makes the request, or looks what became of it.
    async fn step(
        &self,
        objects: &dyn Objects,
        pod: &Pod,
        at: &Key,
        source: &PodCertificateProjection,
    ) -> Result<(), String> {
        let pending = self.lock().get(at).and_then(|r| r.pending.clone());
        let Some(pending) = pending else {
            let kind = source.key_type.clone();
            // Some keys take a second.
            let made = tokio::task::spawn_blocking(move || csr::new_key_of(&kind)).await.map_err(|e| e.to_string())?;
            let key = made.map_err(|e| e.to_string())?;
            let spec = PodCertificateRequestSpec {
                signer_name: source.signer_name.clone(),
                max_expiration_seconds: source.max_expiration_seconds,
                stub_pkc_s10_request: ByteString(csr::stub_request(&key).map_err(|e| e.to_string())?),
                unverified_user_annotations: source.user_annotations.clone(),
                ..PodCertificateRequestSpec::default()
            };
            let request = objects
                .request_certificate(pod, spec)
                .await
                .map_err(|e| format!("create a PodCertificateRequest for signer {:?}: {e}", source.signer_name))?;
            let made = Pending { key, request, since: Instant::now() };
            self.lock().entry(at.clone()).or_default().pending = Some(made);
            return Ok(());
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let found = objects.certificate_request(namespace, &pending.request).await.map_err(|e| e.to_string())?;
        let Some(found) = found else {
            if pending.since.elapsed() > LOST_AFTER {
                self.lock().entry(at.clone()).or_default().pending = None;
                return Err(format!("PodCertificateRequest {:?} appears to have been deleted", pending.request));
            }
            return Ok(());
        };
        let verdict = verdict(&found)?;
        let mut known = self.lock();
        let record = known.entry(at.clone()).or_default();
        match verdict {
            Verdict::Waiting => {}
            Verdict::Refused(state, why) => {
                record.pending = None;
                record.refused = Some((state, why.clone()));
                let reason = if state == "denied" { "Denied" } else { "Failed" };
                self.notes.put(&at.uid, true, reason, format!("{namespace}/{}: {why}", pending.request));
            }
            Verdict::Issued { chain, renew_at, not_after } => {
                let held = Some(Held { key: pending.key, chain });
                *record = Record { held, renew_at, not_after, ..Record::default() };
            }
        }
        record.signer.clone_from(&source.signer_name);
        Ok(())
    }

    /// Says once of each certificate that its renewal does not come, and that it has expired.
    fn tell_late(&self, at: &Key, now: Timestamp) {
        let mut known = self.lock();
        let Some(record) = known.get_mut(at) else { return };
        let (reason, text) = match record.state(now) {
            Some("expired") => ("CertificateExpired", "PodCertificate expired"),
            Some("overdue_for_refresh") => ("CertificateOverdueForRefresh", "PodCertificate refresh overdue"),
            _ => return,
        };
        if !record.told.contains(&reason) {
            record.told.push(reason);
            self.notes.put(&at.uid, true, reason, text.to_owned());
        }
    }

    /// How many there are by signer and state.
    pub(crate) fn states(&self, now: Timestamp) -> BTreeMap<(String, &'static str), usize> {
        let mut out = BTreeMap::new();
        for record in self.lock().values() {
            if let Some(state) = record.state(now) {
                *out.entry((record.signer.clone(), state)).or_default() += 1;
            }
        }
        out
    }

    /// Forgets a pod's certificates.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().retain(|key, _| key.uid != uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Record>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "certificate_tests.rs"]
mod tests;
