//! ConfigMaps, Secrets, Services and tokens for pods, from the apiserver through a short-lived cache.

mod read;
mod standalone;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kubelet_volumes::{ObjectError, Objects, Resize, Token, status_patch};
use tokio::sync::mpsc;

pub(crate) use self::read::Strategy;
use self::read::{Cache, FRESH, bounded, by_strategy, current, one};
pub(crate) use self::standalone::Nowhere;
use crate::config::gates;
use crate::pod::{self, Changed};
use crate::watched::Watched;

const FRESH_SERVICES: Duration = Duration::from_secs(30);

/// Objects of a cluster.
pub(crate) struct FromApi {
    client: kube::Client,
    strategy: Strategy,
    watched_maps: Watched<ConfigMap>,
    watched_secrets: Watched<Secret>,
    config_maps: Cache<Option<ConfigMap>>,
    secrets: Cache<Option<Secret>>,
    services: Cache<Vec<Service>>,
    drivers: Cache<Option<CSIDriver>>,
    /// By signer.
    bundles: Cache<Vec<ClusterTrustBundle>>,
    projections: Projections,
}

/// Sources of projected volumes that a feature gate brings; both are off in Kubernetes 1.36 unless set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Projections {
    trust_bundles: bool,
    certificates: bool,
}

impl Projections {
    /// As the feature gates say.
    pub(crate) fn of(gates: &BTreeMap<String, bool>) -> Self {
        let on = |name| gates::is_set(name, gates);
        Self { trust_bundles: on(gates::TRUST_BUNDLES), certificates: on(gates::CERTIFICATES) }
    }
}

fn off<T: Send + 'static>(what: &str, gate: &str) -> BoxFuture<'static, Result<T, ObjectError>> {
    let error = ObjectError::new(format!(
        "{what} projected volume sources need the feature gate {gate}, which is off (featureGates in the kubelet's \
         configuration)"
    ));
    Box::pin(std::future::ready(Err(error)))
}

impl FromApi {
    /// Reads with the kubelet's own identity.
    /// What is watched and changes is told to `changes`.
    pub(crate) fn new(
        client: kube::Client,
        strategy: Strategy,
        projections: Projections,
        changes: mpsc::Sender<Changed>,
    ) -> Self {
        let told = |secret| {
            let changes = changes.clone();
            // When too many wait, the rest is found by the volumes' own regular looks.
            move |key: &str| drop(changes.try_send(Changed { secret, key: key.to_owned() }))
        };
        Self {
            client,
            strategy,
            watched_maps: Watched::new(|map| map.immutable == Some(true), told(false)),
            watched_secrets: Watched::new(|secret| secret.immutable == Some(true), told(true)),
            config_maps: Cache::new(),
            secrets: Cache::new(),
            services: Cache::new(),
            drivers: Cache::new(),
            bundles: Cache::new(),
            projections,
        }
    }
}

impl Objects for FromApi {
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ConfigMap>, ObjectError>> {
        Box::pin(async move {
            let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
            by_strategy(self.strategy, api, &self.watched_maps, &self.config_maps, namespace, name).await
        })
    }

    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, ObjectError>> {
        Box::pin(async move {
            let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
            by_strategy(self.strategy, api, &self.watched_secrets, &self.secrets, namespace, name).await
        })
    }

    fn token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: Option<&'a str>,
        expiration_seconds: i64,
    ) -> BoxFuture<'a, Result<Token, ObjectError>> {
        Box::pin(async move {
            let account = pod::spec(pod).service_account_name.unwrap_or_else(|| "default".into());
            let request = TokenRequest {
                spec: Some(TokenRequestSpec {
                    audiences: audience.map(|a| vec![a.to_owned()]),
                    expiration_seconds: Some(expiration_seconds),
                    bound_object_ref: Some(BoundObjectReference {
                        api_version: Some("v1".into()),
                        kind: Some("Pod".into()),
                        name: pod.metadata.name.clone(),
                        uid: pod.metadata.uid.clone(),
                    }),
                }),
                ..Default::default()
            };
            let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), pod::namespace(pod));
            let made = bounded(api.create_token_request(&account, &PostParams::default(), &request)).await?;
            let token = made.status.and_then(|s| Some(Token { token: s.token?, expires: s.expiration_timestamp?.0 }));
            token.ok_or_else(|| ObjectError::new("the apiserver gave an empty token"))
        })
    }

    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Service>, ObjectError>> {
        Box::pin(async move {
            let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
            let read = async {
                match api.list(&ListParams::default()).await {
                    Ok(list) => Ok(list.items),
                    // An apiserver without services has none.
                    Err(kube::Error::Api(e)) if e.code == 404 => Ok(Vec::new()),
                    Err(e) => Err(e),
                }
            };
            self.services.get(namespace.to_owned(), FRESH_SERVICES, read).await
        })
    }

    fn trust_bundle<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<ClusterTrustBundle>, ObjectError>> {
        if !self.projections.trust_bundles {
            return off("clusterTrustBundle", gates::TRUST_BUNDLES);
        }
        current(Api::all(self.client.clone()), name)
    }

    fn trust_bundles<'a>(&'a self, signer: &'a str) -> BoxFuture<'a, Result<Vec<ClusterTrustBundle>, ObjectError>> {
        if !self.projections.trust_bundles {
            return off("clusterTrustBundle", gates::TRUST_BUNDLES);
        }
        let api: Api<ClusterTrustBundle> = Api::all(self.client.clone());
        let fields = format!("spec.signerName={signer}");
        Box::pin(async move {
            let params = ListParams::default().fields(&fields);
            let read = async { api.list(&params).await.map(|list| list.items) };
            self.bundles.get(signer.to_owned(), FRESH, read).await
        })
    }

    fn request_certificate<'a>(
        &'a self,
        pod: &'a Pod,
        mut spec: PodCertificateRequestSpec,
    ) -> BoxFuture<'a, Result<String, ObjectError>> {
        if !self.projections.certificates {
            return off("podCertificate", gates::CERTIFICATES);
        }
        Box::pin(async move {
            let (namespace, told) = (pod::namespace(pod), pod::spec(pod));
            let account = told.service_account_name.unwrap_or_else(|| "default".into());
            let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
            let account_uid = bounded(accounts.get(&account)).await?.metadata.uid;
            spec.node_name = told.node_name.unwrap_or_default();
            let nodes: Api<Node> = Api::all(self.client.clone());
            spec.node_uid = bounded(nodes.get(&spec.node_name)).await?.metadata.uid.unwrap_or_default();
            spec.pod_name = pod::name(pod).to_owned();
            spec.pod_uid = pod.metadata.uid.clone().unwrap_or_default();
            spec.service_account_name = account;
            spec.service_account_uid = account_uid.unwrap_or_default();
            let owner = OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: spec.pod_name.clone(),
                uid: spec.pod_uid.clone(),
                ..OwnerReference::default()
            };
            let metadata = ObjectMeta {
                generate_name: Some("req-".into()),
                namespace: Some(namespace.to_owned()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            };
            let request = PodCertificateRequest { metadata, spec, ..PodCertificateRequest::default() };
            let api: Api<PodCertificateRequest> = Api::namespaced(self.client.clone(), namespace);
            let made = bounded(api.create(&PostParams::default(), &request)).await?;
            made.metadata.name.ok_or_else(|| ObjectError::new("the apiserver gave a request without a name"))
        })
    }

    fn certificate_request<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PodCertificateRequest>, ObjectError>> {
        current(Api::namespaced(self.client.clone(), namespace), name)
    }

    fn service_account<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ServiceAccount>, ObjectError>> {
        current(Api::namespaced(self.client.clone(), namespace), name)
    }

    fn claim<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolumeClaim>, ObjectError>> {
        current(Api::namespaced(self.client.clone(), namespace), name)
    }

    fn persistent_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<PersistentVolume>, ObjectError>> {
        current(Api::all(self.client.clone()), name)
    }

    fn csi_driver<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<CSIDriver>, ObjectError>> {
        let api: Api<CSIDriver> = Api::all(self.client.clone());
        Box::pin(async move { one(&self.drivers, "", name, api.get_opt(name)).await })
    }

    fn volume_attachment<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<VolumeAttachment>, ObjectError>> {
        current(Api::all(self.client.clone()), name)
    }

    fn claim_resize<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
        what: &'a Resize,
    ) -> BoxFuture<'a, Result<(), ObjectError>> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let patch = status_patch(claim, what, jiff::Timestamp::now());
        Box::pin(async move {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let params = PatchParams::default();
            bounded(api.patch_status(name, &params, &Patch::Merge(&patch))).await.map(drop)
        })
    }
}
