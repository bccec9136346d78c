//! What keeps itself: default namespaces, what each namespace holds, and the end of namespaces.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::delete::empty_namespace;
use crate::http_util::now;
use crate::router::Api;
use crate::store::StoreError;

async fn ensure(api: &Api, key: &str, mut object: Value) -> Result<(), StoreError> {
    if api.store.get(key).is_some() {
        return Ok(());
    }
    object["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
    object["metadata"]["creationTimestamp"] = json!(now());
    match api.store.create(key, object).await {
        Ok(_) | Err(StoreError::Exists) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn furnish(api: &Api, namespace: &str) -> Result<(), StoreError> {
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
    ensure(api, &format!("/core/serviceaccounts/{namespace}/default"), account).await?;
    let authority = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt", "namespace": namespace,
        "annotations": {"kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."}},
        "data": {"ca.crt": api.ca}});
    ensure(api, &format!("/core/configmaps/{namespace}/kube-root-ca.crt"), authority).await
}

/// Makes the default namespaces and what they hold, and the roles with which nodes join.
pub async fn bootstrap(api: &Api) -> Result<(), StoreError> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        ensure(api, &format!("/core/namespaces/{name}"), namespace).await?;
        furnish(api, name).await?;
    }
    for (key, object) in crate::bootstrap_tokens::roles() {
        ensure(api, &key, object).await?;
    }
    Ok(())
}

/// Furnishes new namespaces and empties those that end.
pub async fn namespaces(api: Arc<Api>) {
    loop {
        let revision = api.store.revision();
        let mut ending = false;
        let page = api.store.range("/core/namespaces/", "", 0, 0).map(|page| page.items).unwrap_or_default();
        for (_, entry) in page {
            let name = entry.value["metadata"]["name"].as_str().unwrap_or_default();
            let outcome = if entry.value["metadata"]["deletionTimestamp"].is_string() {
                ending = true;
                empty_namespace(&api, &entry).await
            } else {
                furnish(&api, name).await
            };
            if let Err(error) = outcome {
                tracing::debug!(namespace = name, %error, "look after a namespace");
            }
        }
        let pause = if ending { Duration::from_millis(300) } else { Duration::from_secs(30) };
        let Ok((past, mut events)) = api.store.watch("/core/namespaces/", revision) else { continue };
        if !past.is_empty() {
            continue;
        }
        tokio::select! {
            () = api.stop.cancelled() => return,
            _ = events.recv() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}
