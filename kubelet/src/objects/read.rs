//! How single objects are read: each time, from a short-lived cache, or by watching; never for longer than a bound.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kubelet_volumes::ObjectError;

use crate::watched::Watched;

pub(super) const FRESH: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(10);

/// What was read a moment ago.
pub(super) struct Cache<T>(Mutex<HashMap<String, (Instant, T)>>);

impl<T: Clone> Cache<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    pub(super) async fn get(
        &self,
        key: String,
        fresh: Duration,
        read: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ObjectError> {
        {
            let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            entries.retain(|_, (at, _)| at.elapsed() < fresh);
            if let Some((_, value)) = entries.get(&key) {
                return Ok(value.clone());
            }
        }
        let value = bounded(read).await?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (Instant::now(), value.clone()));
        Ok(value)
    }
}

/// Waits for an answer, but not for ever, and says what is wrong in the words of the apiserver.
pub(super) async fn bounded<T>(read: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ObjectError> {
    match tokio::time::timeout(LIMIT, read).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) => Err(ObjectError::new(status.message.clone())),
        Ok(Err(e)) => Err(ObjectError::new(e.to_string())),
        Err(_) => Err(ObjectError::new("timed out waiting for the apiserver")),
    }
}

/// How changes of ConfigMaps and Secrets are noticed (`configMapAndSecretChangeDetectionStrategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// Each object is watched while a pod has it.
    Watch,
    /// What was read is good for a while.
    Cache,
    /// Read whenever it is needed.
    Get,
}

impl Strategy {
    /// By its name in the configuration; what else it could be was refused there.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "Get" => Self::Get,
            "Cache" => Self::Cache,
            _ => Self::Watch,
        }
    }
}

/// One object as it is now.
pub(super) fn current<'a, T>(api: Api<T>, name: &'a str) -> BoxFuture<'a, Result<Option<T>, ObjectError>>
where
    T: Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    Box::pin(async move { bounded(api.get_opt(name)).await })
}

/// One object, in the way of the strategy.
pub(super) async fn by_strategy<T>(
    strategy: Strategy,
    api: Api<T>,
    watched: &Watched<T>,
    cache: &Cache<Option<T>>,
    namespace: &str,
    name: &str,
) -> Result<Option<T>, ObjectError>
where
    T: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
    T::DynamicType: Default,
{
    match strategy {
        Strategy::Get => current(api, name).await,
        Strategy::Cache => one(cache, namespace, name, api.get_opt(name)).await,
        Strategy::Watch => {
            let lean = |mut object: T| {
                object.meta_mut().managed_fields = None;
                object
            };
            let objects = watcher::watch_object(api, name).default_backoff();
            let follow = || objects.map(move |e| e.map(|o| o.map(lean)).map_err(|e| e.to_string()));
            watched.get(&format!("{namespace}/{name}"), follow).await.map_err(ObjectError::new)
        }
    }
}

/// What does not exist is asked for again at once: somebody waits for it to be made.
pub(super) async fn one<T: Clone>(
    cache: &Cache<Option<T>>,
    namespace: &str,
    name: &str,
    read: impl Future<Output = Result<Option<T>, kube::Error>>,
) -> Result<Option<T>, ObjectError> {
    let key = format!("{namespace}/{name}");
    let found = cache.get(key.clone(), FRESH, read).await?;
    if found.is_none() {
        cache.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
    Ok(found)
}
