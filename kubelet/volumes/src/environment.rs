//! A container's environment.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{EnvError, Objects, PodContext};

/// The environment of a container, in the order in which upstream defines it: service links, `envFrom`, `env`.
///
/// # Errors
/// A ConfigMap, Secret or key that is not optional is missing, or a field does not exist.
pub async fn environment(
    pod: &Pod,
    container: &Container,
    ctx: &PodContext,
    objects: &dyn Objects,
) -> Result<Vec<(String, String)>, EnvError> {
    let _ = (pod, container, ctx, objects);
    Err(EnvError::Field("the environment is not built yet".into()))
}
