//! Events end some time after they last happened, and requests for certificates of pods some time after they were made;
//! without that they would fill the store.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::jumps::Jumps;
use crate::router::Api;

const PREFIX: &str = "/core/events/";
const REQUESTS: &str = "/certificates.k8s.io/podcertificaterequests/";
/// How long a PodCertificateRequest stays, as kube-controller-manager's cleaner has it.
const REQUEST_LIFE: SignedDuration = SignedDuration::from_mins(15);

/// When an event last happened. Pure.
fn happened(event: &Value) -> Option<Timestamp> {
    let times = [
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["series"]["lastObservedTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    times.into_iter().filter_map(|t| t.as_str()?.parse().ok()).max()
}

/// Removes what is older than `life` below a prefix.
async fn sweep(api: &Api, prefix: &str, life: SignedDuration) {
    let now = Timestamp::now();
    for (key, entry) in api.store.range(prefix, "", 0, 0).map(|page| page.items).unwrap_or_default() {
        let age = happened(&entry.value).map(|at| now.duration_since(at));
        if age.is_some_and(|age| age > life) {
            // Whoever wrote it meanwhile keeps it.
            let _ = api.store.delete(&key, entry.revision).await;
        }
    }
}

/// Removes events that are older than `ttl`, and old requests, until the server stops.
pub async fn run(api: Arc<Api>, ttl: Duration) {
    let (mut events, mut requests) = (Jumps::new(ttl), Jumps::new(REQUEST_LIFE.unsigned_abs()));
    let (ttl, pause) =
        (SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX), (ttl / 20).max(Duration::from_secs(1)));
    loop {
        if events.believable() {
            sweep(&api, PREFIX, ttl).await;
        }
        if requests.believable() {
            sweep(&api, REQUESTS, REQUEST_LIFE).await;
        }
        tokio::select! {
            () = api.stop.cancelled() => return,
            () = tokio::time::sleep(pause.min(Duration::from_secs(60))) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_time_counts() {
        let at = |text: &str| text.parse::<Timestamp>().ok();
        let event =
            json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "lastTimestamp": "2026-01-01T02:00:00Z"});
        assert_eq!(happened(&event), at("2026-01-01T02:00:00Z"));
        let new = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "eventTime": "2026-01-01T00:00:00.5Z",
            "series": {"lastObservedTime": "2026-01-01T03:00:00.000001Z"}, "lastTimestamp": null});
        assert_eq!(happened(&new), at("2026-01-01T03:00:00.000001Z"));
        assert_eq!(happened(&json!({})), None);
    }
}
