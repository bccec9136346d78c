//! Renewing certificates while the kubelet runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};

use super::client::{Changing, Identity};
use super::request::{self, Outcome, Wanted};
use super::store::{Pair, Store, until};
use crate::metrics::own;

/// After a failure: at first this, then twice as long each time, up to [`SLOWEST`].
const FIRST_RETRY: Duration = Duration::from_secs(2);
const SLOWEST: Duration = Duration::from_secs(64);
/// The longest sleep: a clock that jumps must not put a renewal off.
const NAP: Duration = Duration::from_secs(600);

/// A number between 0 and 1 that differs from node to node and from time to time, so that nodes do not all renew at once.
fn chance() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let number = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (number >> 11) as f64 / (1u64 << 53) as f64
}

async fn sleep_until(time: SystemTime) {
    loop {
        let left = until(time);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(NAP)).await;
    }
}

async fn ask(client: &kube::Client, node: &str, wanted: &Wanted, store: &Store) -> Result<Pair> {
    let key = gantry_kube::csr::new_key()?;
    let name = request::put(client, node, &key, wanted, None).await?;
    match request::wait(client, &name).await? {
        Outcome::Issued(cert) => store.put(&cert, &key),
        Outcome::Refused(why) => bail!("{why}"),
    }
}

/// Tries until it succeeds.
async fn insist<F: Future<Output = Result<Pair>>>(mut attempt: impl FnMut() -> F, what: &str, failed: fn()) -> Pair {
    let mut pause = FIRST_RETRY;
    loop {
        match attempt().await {
            Ok(pair) => return pair,
            Err(e) => tracing::warn!(error = format!("{e:#}"), "no {what} certificate; asking again"),
        }
        failed();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SLOWEST);
    }
}

/// Keeps the client certificate alive, for ever. One that has died is asked for anew with the bootstrap kubeconfig.
pub(crate) async fn client(changing: Changing, identity: Identity, bootstrap: Option<PathBuf>, node: String) {
    let Some(store) = identity.store.clone() else { return };
    let attempt = async || {
        let dead = identity.pair().is_some_and(|p| !p.lives());
        let client = match bootstrap.as_ref().filter(|b| dead && b.exists()) {
            Some(path) => Identity { kubeconfig: path.clone(), store: None }.client().await?,
            None => changing.client(),
        };
        ask(&client, &node, &Wanted::Client, &store).await
    };
    loop {
        if let Some(pair) = identity.pair() {
            let at = pair.renewal(chance());
            tracing::info!(in_seconds = until(at).as_secs(), "the client certificate will be renewed");
            sleep_until(at).await;
        }
        insist(attempt, "client", || own::RENEW_ERRORS.count(&[])).await;
        changing.refresh().await;
        tracing::info!("the client certificate was renewed");
    }
}

/// Gets a serving certificate for `names` and keeps it alive, for ever. The server reads the file when it changes.
pub(crate) async fn serving(client: kube::Client, node: String, names: Vec<String>, store: Arc<Store>) {
    let wanted = Wanted::Serving(names.clone());
    loop {
        let fits = |p: &Pair| names.iter().all(|n| p.facts.names.contains(n));
        let before = store.current().filter(|p| p.lives() && fits(p));
        if let Some(pair) = &before {
            sleep_until(pair.renewal(chance())).await;
        }
        let pair =
            insist(|| ask(&client, &node, &wanted, &store), "serving", || own::SERVER_RENEW_ERRORS.count(&[])).await;
        if let Some(before) = before {
            let lived = SystemTime::now().duration_since(before.facts.not_before).unwrap_or_default();
            own::SERVER_ROTATION.observe(&[], lived);
        }
        tracing::info!(names = ?pair.facts.names, "got a serving certificate");
    }
}
