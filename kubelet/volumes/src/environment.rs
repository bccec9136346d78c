//! A container's environment.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, FileKeySelector, Pod, Secret};

use crate::expand::expand_with;
use crate::volumes::blocking;
use crate::{EnvError, Objects, PodContext, downward, env_file, service_links};

/// Where the files of a pod's volume are on the host, by the volume's name.
pub type Places<'a> = dyn Fn(&str) -> Option<PathBuf> + Sync + 'a;

/// The environment of a container: `env` wins over `envFrom`, both over service links; later entries win over earlier
/// ones, and each name appears once, in the order of its first definition.
///
/// # Errors
/// A ConfigMap, Secret or key that is not optional is missing, or a field does not exist.
pub async fn environment(
    pod: &Pod,
    container: &Container,
    ctx: &PodContext,
    objects: &dyn Objects,
    volumes: &Places<'_>,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut source = Source {
        volumes,
        pod,
        namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
        ctx,
        objects,
        config_maps: HashMap::new(),
        secrets: HashMap::new(),
    };
    let services: HashMap<String, String> = source.services().await?;
    let mut own = Ordered::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let entries = if let Some(reference) = &from.config_map_ref {
            source.all_of_config_map(&reference.name, reference.optional).await?
        } else if let Some(reference) = &from.secret_ref {
            source.all_of_secret(&reference.name, reference.optional).await?
        } else {
            Vec::new()
        };
        for (key, value) in entries {
            let name = format!("{prefix}{key}");
            if valid_name(&name) {
                own.set(name, value);
            } else {
                tracing::warn!(pod = pod.metadata.name.as_deref(), container = %container.name, %name, "skip invalid environment variable name");
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (_, Some(_)) if var.value.as_deref().is_none_or(str::is_empty) => source.value_from(var, container).await?,
            (text, _) => {
                let text = text.as_deref().unwrap_or_default();
                Some(expand_with(text, |name| own.get(name).or_else(|| services.get(name)).cloned()))
            }
        };
        if let Some(value) = value {
            own.set(var.name.clone(), value);
        }
    }
    let mut links: Vec<(String, String)> = services.into_iter().filter(|(name, _)| own.get(name).is_none()).collect();
    links.sort();
    own.entries.extend(links);
    Ok(own.entries)
}

/// Names that a process can be given (relaxed validation): printable ASCII without `=`.
fn valid_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

#[derive(Default)]
struct Ordered {
    entries: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Ordered {
    fn set(&mut self, name: String, value: String) {
        match self.index.get(&name) {
            Some(&at) => self.entries[at].1 = value,
            None => {
                self.index.insert(name.clone(), self.entries.len());
                self.entries.push((name, value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&String> {
        self.index.get(name).map(|&at| &self.entries[at].1)
    }
}

/// Reads each object at most once per container.
struct Source<'a> {
    volumes: &'a Places<'a>,
    pod: &'a Pod,
    namespace: &'a str,
    ctx: &'a PodContext,
    objects: &'a dyn Objects,
    config_maps: HashMap<String, Option<ConfigMap>>,
    secrets: HashMap<String, Option<Secret>>,
}

impl Source<'_> {
    async fn services(&self) -> Result<HashMap<String, String>, EnvError> {
        let links = self.pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        let (master_namespace, master_name) = service_links::MASTER;
        let mut chosen = Vec::new();
        if links {
            chosen = self.list(self.namespace).await?;
        }
        if !chosen.iter().any(|s| s.metadata.name.as_deref() == Some(master_name)) {
            let masters = self.list(master_namespace).await?;
            chosen.extend(masters.into_iter().filter(|s| s.metadata.name.as_deref() == Some(master_name)));
        }
        Ok(service_links::variables(&chosen).into_iter().collect())
    }

    async fn list(&self, namespace: &str) -> Result<Vec<k8s_openapi::api::core::v1::Service>, EnvError> {
        self.objects.services(namespace).await.map_err(|e| EnvError::Unavailable {
            kind: "services",
            namespace: namespace.into(),
            name: "*".into(),
            reason: e.to_string(),
        })
    }

    async fn config_map(&mut self, name: &str) -> Result<Option<&ConfigMap>, EnvError> {
        if !self.config_maps.contains_key(name) {
            let got = self
                .objects
                .config_map(self.namespace, name)
                .await
                .map_err(|e| self.unavailable("configmap", name, &e))?;
            self.config_maps.insert(name.to_owned(), got);
        }
        Ok(self.config_maps.get(name).and_then(Option::as_ref))
    }

    async fn secret(&mut self, name: &str) -> Result<Option<&Secret>, EnvError> {
        if !self.secrets.contains_key(name) {
            let got =
                self.objects.secret(self.namespace, name).await.map_err(|e| self.unavailable("secret", name, &e))?;
            self.secrets.insert(name.to_owned(), got);
        }
        Ok(self.secrets.get(name).and_then(Option::as_ref))
    }

    fn unavailable(&self, kind: &'static str, name: &str, e: &crate::ObjectError) -> EnvError {
        EnvError::Unavailable { kind, namespace: self.namespace.into(), name: name.into(), reason: e.to_string() }
    }

    async fn all_of_config_map(
        &mut self,
        name: &str,
        optional: Option<bool>,
    ) -> Result<Vec<(String, String)>, EnvError> {
        match self.config_map(name).await? {
            Some(map) => Ok(map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()),
            None if optional == Some(true) => Ok(Vec::new()),
            None => Err(EnvError::ConfigMapNotFound { name: name.into() }),
        }
    }

    async fn all_of_secret(&mut self, name: &str, optional: Option<bool>) -> Result<Vec<(String, String)>, EnvError> {
        match self.secret(name).await? {
            Some(secret) => Ok(secret.data.iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect()),
            None if optional == Some(true) => Ok(Vec::new()),
            None => Err(EnvError::SecretNotFound { name: name.into() }),
        }
    }

    async fn of_file(&self, reference: &FileKeySelector) -> Result<Option<String>, String> {
        let (key, path, volume) = (&reference.key, &reference.path, &reference.volume_name);
        if key.len() > env_file::KEY_MOST {
            return Err(format!(
                "the environment variable key {key:?} is longer than {} characters",
                env_file::KEY_MOST
            ));
        }
        let root = (self.volumes)(volume)
            .ok_or_else(|| format!("cannot find the volume {volume:?} referenced by FileKeyRef"))?;
        let (of, name) = (path.clone(), key.clone());
        match blocking(move || env_file::read(&root, &of, &name)).await.map_err(|e| e.to_string())?? {
            None if reference.optional != Some(true) => {
                Err(format!("environment variable key {key:?} not found in file {path:?} of volume {volume:?}"))
            }
            found => Ok(found),
        }
    }

    /// `Ok(None)`: an optional source is missing, the variable is left out.
    async fn value_from(&mut self, var: &EnvVar, container: &Container) -> Result<Option<String>, EnvError> {
        let Some(from) = &var.value_from else { return Ok(None) };
        let (pod, ctx, namespace) = (self.pod, self.ctx, self.namespace.to_owned());
        if let Some(reference) = &from.field_ref {
            return downward::field(pod, ctx, &reference.field_path).map(Some).map_err(EnvError::Field);
        }
        if let Some(reference) = &from.resource_field_ref {
            return downward::resource(pod, Some(container), ctx, reference).map(Some).map_err(EnvError::Field);
        }
        if let Some(key) = &from.config_map_key_ref {
            let optional = key.optional == Some(true);
            let Some(map) = self.config_map(&key.name).await? else {
                return if optional { Ok(None) } else { Err(EnvError::ConfigMapNotFound { name: key.name.clone() }) };
            };
            return match map.data.as_ref().and_then(|d| d.get(&key.key)) {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => {
                    Err(EnvError::NoKey { kind: "ConfigMap", namespace, name: key.name.clone(), key: key.key.clone() })
                }
            };
        }
        if let Some(key) = &from.secret_key_ref {
            let optional = key.optional == Some(true);
            let Some(secret) = self.secret(&key.name).await? else {
                return if optional { Ok(None) } else { Err(EnvError::SecretNotFound { name: key.name.clone() }) };
            };
            return match secret.data.as_ref().and_then(|d| d.get(&key.key)) {
                Some(value) => Ok(Some(text(value))),
                None if optional => Ok(None),
                None => {
                    Err(EnvError::NoKey { kind: "Secret", namespace, name: key.name.clone(), key: key.key.clone() })
                }
            };
        }
        if let Some(key) = &from.file_key_ref {
            return self.of_file(key).await.map_err(EnvError::Field);
        }
        Err(EnvError::Field(format!("environment variable {:?} has a valueFrom of an unsupported kind", var.name)))
    }
}

fn text(bytes: &ByteString) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;
    use serde_json::{Value, json};

    fn objects() -> FakeObjects {
        FakeObjects::new()
            .config_map("ns", "cm", &[("color", "red"), ("bad=name", "x")])
            .secret("ns", "sec", &[("pw", "s3cret")])
            .service("default", "kubernetes", "10.1.0.1", 443)
            .service("ns", "web", "10.1.0.2", 80)
    }

    async fn env(container: Value, links: bool) -> Result<Vec<(String, String)>, EnvError> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"},
            "spec": {"enableServiceLinks": links, "containers": [container]}}))
        .unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        let ctx = PodContext { pod_ips: vec!["10.0.0.4".into()], ..PodContext::default() };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("env"), "A='from file'\n").unwrap();
        let places = |volume: &str| (volume == "v").then(|| dir.path().to_owned());
        environment(&pod, &container, &ctx, &objects(), &places).await
    }

    fn own(vars: &[(String, String)]) -> Vec<String> {
        vars.iter().filter(|(k, _)| !k.starts_with("KUBERNETES_")).map(|(k, v)| format!("{k}={v}")).collect()
    }

    #[tokio::test]
    async fn all_sources_combine_in_order() {
        let vars = env(
            json!({"name": "c",
            "envFrom": [{"prefix": "CM_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "sec"}},
                {"configMapRef": {"name": "none", "optional": true}}],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(CM_color)-$(LATER)-$$(A)-$(KUBERNETES_SERVICE_HOST)"},
                {"name": "pw", "value": "over"}, {"name": "LATER", "value": "z"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "color"}}},
                {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "pw"}}},
                {"name": "OPT", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "none", "optional": true}}},
                {"name": "OPT2", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "none", "optional": true}}},
                {"name": "FILE", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "env", "key": "A"}}},
                {"name": "FILE2", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "env", "key": "B", "optional": true}}},
                {"name": "FILE3", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "none", "key": "A", "optional": true}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}}]}),
            false,
        )
        .await
        .unwrap();
        assert_eq!(
            own(&vars),
            [
                "CM_color=red",
                "pw=over",
                "A=1",
                "B=1-red-$(LATER)-$(A)-10.1.0.1",
                "LATER=z",
                "IP=10.0.0.4",
                "KEY=red",
                "PW=s3cret",
                "FILE=from file",
                "CPU=0"
            ]
        );
        assert!(vars.contains(&("KUBERNETES_SERVICE_PORT".into(), "443".into())));
    }

    #[tokio::test]
    async fn service_links_name_the_namespaces_services() {
        let with = env(json!({"name": "c"}), true).await.unwrap();
        assert!(with.contains(&("WEB_SERVICE_HOST".into(), "10.1.0.2".into())));
        assert!(with.contains(&("KUBERNETES_SERVICE_HOST".into(), "10.1.0.1".into())));
        let without = env(json!({"name": "c"}), false).await.unwrap();
        assert!(!without.iter().any(|(k, _)| k.starts_with("WEB_")));
    }

    #[tokio::test]
    async fn missing_things_are_named_as_upstream_does() {
        for (entry, want) in [
            (
                json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "k"}}}]}),
                "configmap \"x\" not found",
            ),
            (
                json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k"}}}]}),
                "secret \"x\" not found",
            ),
            (
                json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}),
                "couldn't find key k in ConfigMap ns/cm",
            ),
            (
                json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k"}}}]}),
                "couldn't find key k in Secret ns/sec",
            ),
            (
                json!({"env": [{"name": "X", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "env", "key": "B"}}}]}),
                "environment variable key \"B\" not found in file \"env\" of volume \"v\"",
            ),
            (
                json!({"env": [{"name": "X", "valueFrom": {"fileKeyRef": {"volumeName": "w", "path": "env", "key": "B"}}}]}),
                "cannot find the volume \"w\" referenced by FileKeyRef",
            ),
            (json!({"envFrom": [{"secretRef": {"name": "x"}}]}), "secret \"x\" not found"),
            (
                json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "no.such"}}}]}),
                "unsupported fieldPath: no.such",
            ),
        ] {
            let mut container = entry;
            container["name"] = json!("c");
            assert_eq!(env(container, false).await.unwrap_err().to_string(), want);
        }
    }
}
