//! Authentication and authorization of requests, with the apiserver's help where configured.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;

use crate::route;
use crate::tls::Peer;
use crate::user::User;
use crate::{Authorization, ServerConfig};

/// How long the apiserver may take to answer.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Remembered answers, at most.
const CACHE_MAX: usize = 4096;

/// Decides about requests.
pub(crate) struct Access {
    node_name: String,
    anonymous: bool,
    token_webhook: Option<kube::Client>,
    token_ttl: Duration,
    authorization: Authorization,
    tokens: Cache<String, Option<User>>,
    decisions: Cache<(User, &'static str, &'static str), bool>,
}

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 401
    Unauthorized,
    /// 403 with upstream's text
    Forbidden(String),
    /// 500: the decision could not be had
    Failed(String),
}

impl Access {
    pub(crate) fn new(config: &ServerConfig) -> Self {
        Self {
            node_name: config.node_name.clone(),
            anonymous: config.anonymous,
            token_webhook: config.token_webhook.clone(),
            token_ttl: config.token_ttl,
            authorization: config.authorization.clone(),
            tokens: Cache::default(),
            decisions: Cache::default(),
        }
    }

    /// Who asks: by certificate, then by token; without either anonymous, if that is on. Wrong credentials are refused
    /// even then.
    pub(crate) async fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<User, Refusal> {
        if let Peer::Verified(user) = peer {
            return Ok(user.clone());
        }
        if let Some(token) = bearer(headers) {
            return self.review_token(token).await.ok_or(Refusal::Unauthorized);
        }
        match peer {
            Peer::Rejected(reason) => {
                tracing::info!(%reason, "client certificate refused");
                Err(Refusal::Unauthorized)
            }
            _ if self.anonymous => Ok(User::anonymous()),
            _ => Err(Refusal::Unauthorized),
        }
    }

    async fn review_token(&self, token: &str) -> Option<User> {
        let client = self.token_webhook.clone()?;
        if let Some(known) = self.tokens.get(&token.to_owned()) {
            return known;
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let api = kube::Api::<TokenReview>::all(client);
        let answer = tokio::time::timeout(WEBHOOK_TIMEOUT, api.create(&PostParams::default(), &review)).await;
        let status = match answer {
            Ok(Ok(review)) => review.status?,
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "token review failed");
                return None;
            }
            Err(_) => {
                tracing::warn!("token review timed out");
                return None;
            }
        };
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|info| {
            let mut user = User::new(info.username.unwrap_or_default(), info.groups.unwrap_or_default());
            user.uid = info.uid.unwrap_or_default();
            user.extra = info.extra.unwrap_or_default();
            user
        });
        self.tokens.put(token.to_owned(), user.clone(), self.token_ttl);
        user
    }

    /// Whether the user may do this.
    pub(crate) async fn authorize(&self, user: &User, method: &Method, path: &str) -> Result<(), Refusal> {
        let Authorization::Webhook { client, allowed_ttl, denied_ttl } = &self.authorization else { return Ok(()) };
        let verb = route::verb(method);
        let subresources = route::subresources(path);
        for &subresource in subresources {
            let key = (user.clone(), verb, subresource);
            let allowed = match self.decisions.get(&key) {
                Some(known) => known,
                None => {
                    let allowed = self.review_access(client, user, verb, subresource).await?;
                    self.decisions.put(key, allowed, if allowed { *allowed_ttl } else { *denied_ttl });
                    allowed
                }
            };
            if allowed {
                return Ok(());
            }
        }
        Err(Refusal::Forbidden(format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            subresources.join(" ")
        )))
    }

    async fn review_access(
        &self,
        client: &kube::Client,
        user: &User,
        verb: &str,
        subresource: &str,
    ) -> Result<bool, Refusal> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.node_name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api = kube::Api::<SubjectAccessReview>::all(client.clone());
        let answer = tokio::time::timeout(WEBHOOK_TIMEOUT, api.create(&PostParams::default(), &review)).await;
        let reason = match answer {
            Ok(Ok(review)) => return Ok(review.status.is_some_and(|s| s.allowed && s.denied != Some(true))),
            Ok(Err(e)) => e.to_string(),
            Err(_) => "the apiserver did not answer in time".to_owned(),
        };
        tracing::warn!(user = %user.name, error = %reason, "access review failed");
        Err(Refusal::Failed(format!(
            "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
            user.name
        )))
    }
}

/// The token of an `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Answers with an end of life.
struct Cache<K, V> {
    entries: Mutex<HashMap<K, (V, Instant)>>,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self { entries: Mutex::new(HashMap::new()) }
    }
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(_, until)| Instant::now() < *until).map(|(value, _)| value.clone())
    }

    fn put(&self, key: K, value: V, ttl: Duration) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= CACHE_MAX {
            let now = Instant::now();
            entries.retain(|_, (_, until)| now < *until);
            if entries.len() >= CACHE_MAX {
                entries.clear();
            }
        }
        entries.insert(key, (value, Instant::now() + ttl));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens_are_read() {
        for (value, want) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc", Some("abc")),
            ("Basic abc", None),
            ("Bearer ", None),
            ("x", None),
        ] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(bearer(&headers), want, "{value}");
        }
    }

    #[test]
    fn answers_are_forgotten_in_time() {
        let cache = Cache::default();
        cache.put("a", 1, Duration::from_secs(60));
        cache.put("b", 2, Duration::ZERO);
        assert_eq!((cache.get(&"a"), cache.get(&"b")), (Some(1), None));
    }
}
