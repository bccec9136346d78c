//! Which ConfigMaps and Secrets a pod's volumes show: a change of one wakes exactly the pods that have it (pure).

use k8s_openapi::api::core::v1::{Pod, Volume};

/// An object that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// A Secret, else a ConfigMap.
    pub(crate) secret: bool,
    /// `namespace/name`
    pub(crate) key: String,
}

/// Whether a volume of the pod shows the object.
pub(crate) fn shows(pod: &Pod, changed: &Changed) -> bool {
    let Some((namespace, name)) = changed.key.split_once('/') else { return false };
    let mut volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    super::namespace(pod) == namespace && volumes.any(|v| of_volume(v, changed.secret, name))
}

fn of_volume(volume: &Volume, secret: bool, name: &str) -> bool {
    let parts = || volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    if secret {
        volume.secret.as_ref().is_some_and(|s| s.secret_name.as_deref() == Some(name))
            || parts().any(|p| p.secret.as_ref().is_some_and(|s| s.name == name))
    } else {
        volume.config_map.as_ref().is_some_and(|m| m.name == name)
            || parts().any(|p| p.config_map.as_ref().is_some_and(|m| m.name == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_that_show_it_are_woken() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [], "volumes": [
                {"name": "a", "configMap": {"name": "map"}},
                {"name": "b", "secret": {"secretName": "secret"}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "part"}}, {"secret": {"name": "hidden"}}]}},
                {"name": "d", "emptyDir": {}},
            ]},
        }))
        .unwrap();
        for (secret, key, want) in [
            (false, "n/map", true),
            (true, "n/map", false),
            (true, "n/secret", true),
            (false, "n/part", true),
            (true, "n/hidden", true),
            (false, "other/map", false),
            (false, "n/none", false),
        ] {
            assert_eq!(shows(&pod, &Changed { secret, key: key.into() }), want, "{secret} {key}");
        }
    }
}
