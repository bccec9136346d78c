//! The objects of a kubelet without an apiserver: none.

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kubelet_volumes::{ObjectError, Objects, Token};

use crate::pod;

/// A standalone kubelet has no objects.
pub(crate) struct Nowhere;

impl Nowhere {
    fn none<T>(kind: &str, name: &str) -> BoxFuture<'static, Result<T, ObjectError>> {
        let error = ObjectError::new(format!(
            "{kind} {name:?} cannot be read: this kubelet runs standalone, without an apiserver"
        ));
        Box::pin(async move { Err(error) })
    }
}

impl Objects for Nowhere {
    fn config_map<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, ObjectError>> {
        Self::none("configmap", name)
    }

    fn secret<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, ObjectError>> {
        Self::none("secret", name)
    }

    fn token<'a>(&'a self, pod: &'a Pod, _: Option<&'a str>, _: i64) -> BoxFuture<'a, Result<Token, ObjectError>> {
        Self::none("service account token of", pod::name(pod))
    }

    fn services<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<Service>, ObjectError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
