//! Service account tokens of pods, renewed before they end.

use std::collections::HashMap;
use std::sync::Mutex;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::{Objects, Token};

/// Seconds a token is asked for where the volume says nothing.
pub(crate) const DEFAULT_EXPIRATION: i64 = 3600;
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

/// Tokens by pod, audience and asked life.
#[derive(Default)]
pub(crate) struct Tokens {
    known: Mutex<HashMap<Key, Held>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    account: String,
    audience: Option<String>,
    seconds: i64,
}

#[derive(Clone)]
struct Held {
    token: Token,
    since: Timestamp,
}

/// Whether a token held since `since` should be renewed: past 80 % of its life, or older than a day; or one of the
/// future, since the clock was set back and its age is unknown.
pub(crate) fn is_due(since: Timestamp, expires: Timestamp, now: Timestamp) -> bool {
    let life = expires.duration_since(since);
    let age = now.duration_since(since);
    now < since || now >= expires || age > MAX_AGE || age.as_millis() > life.as_millis() / 10 * 8
}

impl Tokens {
    /// A valid token's text; a failed renewal is forgiven while the old token lives.
    pub(crate) async fn get(
        &self,
        objects: &dyn Objects,
        pod: &Pod,
        audience: Option<&str>,
        seconds: i64,
    ) -> Result<String, String> {
        self.whole(objects, pod, audience, seconds).await.map(|t| t.token)
    }

    /// A valid token with its end.
    pub(crate) async fn whole(
        &self,
        objects: &dyn Objects,
        pod: &Pod,
        audience: Option<&str>,
        seconds: i64,
    ) -> Result<Token, String> {
        let audience = audience.filter(|a| !a.is_empty());
        let key = Key {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            account: pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
            audience: audience.map(str::to_owned),
            seconds,
        };
        let held = self.lock().get(&key).cloned();
        let now = Timestamp::now();
        if let Some(held) = held.as_ref().filter(|h| !is_due(h.since, h.token.expires, now)) {
            return Ok(held.token.clone());
        }
        match objects.token(pod, audience, seconds).await {
            Ok(token) => {
                self.lock().insert(key, Held { token: token.clone(), since: now });
                Ok(token)
            }
            Err(e) => match held.filter(|h| h.token.expires > now) {
                Some(held) => {
                    tracing::warn!(error = %e, pod = pod.metadata.name.as_deref(), "token not renewed, the old one still lives");
                    Ok(held.token)
                }
                None => Err(format!("failed to fetch token: {e}")),
            },
        }
    }

    /// Forgets a pod's tokens.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().retain(|key, _| key.uid != uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Held>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;

    #[test]
    fn renewal_is_at_four_fifths_or_a_day() {
        let at = |s: i64| Timestamp::from_second(1_000_000 + s).unwrap();
        for (life, age, due) in [
            (3600, 0, false),
            (3600, 2879, false),
            (3600, 2881, true),
            (3600, 4000, true),
            (1_000_000, 86_399, false),
            (1_000_000, 86_401, true),
            (3600, -1, true),
            (3600, -86_400, true),
        ] {
            assert_eq!(is_due(at(0), at(life), at(age)), due, "{life} {age}");
        }
    }

    #[tokio::test]
    async fn a_living_token_is_kept_and_an_old_one_renewed() {
        let objects = FakeObjects::new();
        let tokens = Tokens::default();
        let pod = Pod::default();
        assert_eq!(tokens.get(&objects, &pod, None, 600).await.unwrap(), "token-api-1");
        assert_eq!(tokens.get(&objects, &pod, None, 600).await.unwrap(), "token-api-1");
        assert_eq!(tokens.get(&objects, &pod, Some("vault"), 600).await.unwrap(), "token-vault-2");
        *objects.token_life.lock().unwrap() = Some(0);
        assert_eq!(tokens.get(&objects, &pod, None, 700).await.unwrap(), "token-api-3");
        assert_eq!(tokens.get(&objects, &pod, None, 700).await.unwrap(), "token-api-4", "expired at once");
        tokens.forget("");
        assert!(tokens.lock().is_empty());
    }
}
