//! The door to the apiserver: ConfigMaps, Secrets, tokens and Services, so that this crate needs no client.

use futures::future::BoxFuture;
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};

use crate::resize::Resize;

/// Why an object could not be read (not: that it does not exist).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ObjectError {
    message: String,
}

impl ObjectError {
    /// An error with the text that a user will see in the pod's events.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// A service account token for a pod.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The JWT.
    pub token: String,
    /// When it stops being valid.
    pub expires: jiff::Timestamp,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Where objects that pods refer to come from: the apiserver (through a cache) or, for a standalone kubelet, nowhere.
///
/// `Ok(None)` means that the object does not exist. Implementations bound their own waits.
pub trait Objects: Send + Sync {
    /// A ConfigMap.
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ConfigMap>, ObjectError>>;

    /// A Secret.
    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, ObjectError>>;

    /// A new token of the pod's service account, bound to the pod. `audience` `None` means the apiserver's own.
    fn token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: Option<&'a str>,
        expiration_seconds: i64,
    ) -> BoxFuture<'a, Result<Token, ObjectError>>;

    /// The Services of a namespace, for the environment of containers.
    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Service>, ObjectError>>;

    /// A service account.
    fn service_account<'a>(
        &'a self,
        _namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ServiceAccount>, ObjectError>> {
        refuse(&format!("serviceaccount {name:?}"))
    }

    /// A ClusterTrustBundle by its name.
    fn trust_bundle<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<ClusterTrustBundle>, ObjectError>> {
        refuse(&format!("clustertrustbundle {name:?}"))
    }

    /// All ClusterTrustBundles of a signer.
    fn trust_bundles<'a>(&'a self, signer: &'a str) -> BoxFuture<'a, Result<Vec<ClusterTrustBundle>, ObjectError>> {
        refuse(&format!("clustertrustbundles of {signer:?}"))
    }

    /// Makes a PodCertificateRequest of the pod and gives its name. `spec` has the signer, the key's request and what
    /// the volume says; who the pod, its service account and its node are is filled in.
    fn request_certificate<'a>(
        &'a self,
        pod: &'a Pod,
        _spec: PodCertificateRequestSpec,
    ) -> BoxFuture<'a, Result<String, ObjectError>> {
        refuse(&format!("a certificate of pod {:?}", pod.metadata.name.as_deref().unwrap_or_default()))
    }

    /// A PodCertificateRequest.
    fn certificate_request<'a>(
        &'a self,
        _namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PodCertificateRequest>, ObjectError>> {
        refuse(&format!("podcertificaterequest {name:?}"))
    }

    /// A PersistentVolumeClaim.
    fn claim<'a>(
        &'a self,
        _namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolumeClaim>, ObjectError>> {
        refuse(&format!("persistentvolumeclaim {name:?}"))
    }

    /// A PersistentVolume.
    fn persistent_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<PersistentVolume>, ObjectError>> {
        refuse(&format!("persistentvolume {name:?}"))
    }

    /// What the cluster says about a CSI driver.
    fn csi_driver<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<CSIDriver>, ObjectError>> {
        refuse(&format!("csidriver {name:?}"))
    }

    /// The attachment of a volume to this node.
    fn volume_attachment<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<VolumeAttachment>, ObjectError>> {
        refuse(&format!("volumeattachment {name:?}"))
    }

    /// Says in the claim's status how far the expansion of its file system is ([`crate::status_patch`]).
    fn claim_resize<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
        _what: &'a Resize,
    ) -> BoxFuture<'a, Result<(), ObjectError>> {
        refuse(&format!("persistentvolumeclaim {:?}", claim.metadata.name))
    }
}

fn refuse<T: Send + 'static>(what: &str) -> BoxFuture<'static, Result<T, ObjectError>> {
    let e = ObjectError::new(format!("{what} needs an apiserver, and this kubelet runs without one"));
    Box::pin(std::future::ready(Err(e)))
}

/// The objects of a kubelet without an apiserver: no Services, and an error for everything else.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standalone;

impl Objects for Standalone {
    fn config_map<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, ObjectError>> {
        refuse(&format!("configmap {name:?}"))
    }

    fn secret<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, ObjectError>> {
        refuse(&format!("secret {name:?}"))
    }

    fn token<'a>(&'a self, _: &'a Pod, _: Option<&'a str>, _: i64) -> BoxFuture<'a, Result<Token, ObjectError>> {
        refuse("a service account token")
    }

    fn services<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<Service>, ObjectError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}
