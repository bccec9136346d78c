//! Objects in memory, for this crate's tests.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use serde_json::json;

use crate::{ObjectError, Objects, Token};

#[derive(Default)]
pub(crate) struct FakeObjects {
    maps: Mutex<BTreeMap<(String, String), ConfigMap>>,
    secrets: Mutex<BTreeMap<(String, String), Secret>>,
    services: Vec<(String, Service)>,
    claims: Vec<(String, PersistentVolumeClaim)>,
    volumes: Vec<PersistentVolume>,
    bundles: Vec<ClusterTrustBundle>,
    pub(crate) requests: Mutex<Vec<PodCertificateRequest>>,
    pub(crate) tokens: Mutex<u32>,
    pub(crate) token_life: Mutex<Option<i64>>,
}

impl FakeObjects {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn put_config_map(&self, ns: &str, name: &str, data: &[(&str, &str)]) {
        let data = data.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        self.maps
            .lock()
            .unwrap()
            .insert((ns.into(), name.into()), ConfigMap { data: Some(data), ..ConfigMap::default() });
    }

    pub(crate) fn config_map(self, ns: &str, name: &str, data: &[(&str, &str)]) -> Self {
        self.put_config_map(ns, name, data);
        self
    }

    pub(crate) fn secret(self, ns: &str, name: &str, data: &[(&str, &str)]) -> Self {
        let data = data.iter().map(|&(k, v)| (k.to_owned(), ByteString(v.into()))).collect();
        self.secrets.lock().unwrap().insert((ns.into(), name.into()), Secret { data: Some(data), ..Secret::default() });
        self
    }

    pub(crate) fn service(mut self, ns: &str, name: &str, ip: &str, port: u16) -> Self {
        let service =
            json!({"metadata": {"name": name, "namespace": ns}, "spec": {"clusterIP": ip, "ports": [{"port": port}]}});
        self.services.push((ns.into(), serde_json::from_value(service).unwrap()));
        self
    }

    pub(crate) fn bundle(mut self, bundle: ClusterTrustBundle) -> Self {
        self.bundles.push(bundle);
        self
    }

    pub(crate) fn claim_and_volume(mut self, ns: &str, claim: PersistentVolumeClaim, volume: PersistentVolume) -> Self {
        self.claims.push((ns.into(), claim));
        self.volumes.push(volume);
        self
    }
}

impl Objects for FakeObjects {
    fn claim<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolumeClaim>, ObjectError>> {
        let named =
            |(ns, c): &&(String, PersistentVolumeClaim)| ns == namespace && c.metadata.name.as_deref() == Some(name);
        let got = self.claims.iter().find(named).map(|(_, c)| c.clone());
        async move { Ok(got) }.boxed()
    }

    fn persistent_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<PersistentVolume>, ObjectError>> {
        let got = self.volumes.iter().find(|v| v.metadata.name.as_deref() == Some(name)).cloned();
        async move { Ok(got) }.boxed()
    }

    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ConfigMap>, ObjectError>> {
        let got = self.maps.lock().unwrap().get(&(namespace.to_owned(), name.to_owned())).cloned();
        async move { Ok(got) }.boxed()
    }

    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, ObjectError>> {
        let got = self.secrets.lock().unwrap().get(&(namespace.to_owned(), name.to_owned())).cloned();
        async move { Ok(got) }.boxed()
    }

    fn trust_bundle<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<ClusterTrustBundle>, ObjectError>> {
        let got = self.bundles.iter().find(|b| b.metadata.name.as_deref() == Some(name)).cloned();
        async move { Ok(got) }.boxed()
    }

    fn trust_bundles<'a>(&'a self, signer: &'a str) -> BoxFuture<'a, Result<Vec<ClusterTrustBundle>, ObjectError>> {
        let of_signer = |b: &&ClusterTrustBundle| b.spec.signer_name.as_deref() == Some(signer);
        let got = self.bundles.iter().filter(of_signer).cloned().collect();
        async move { Ok(got) }.boxed()
    }

    fn request_certificate<'a>(
        &'a self,
        _: &'a Pod,
        spec: PodCertificateRequestSpec,
    ) -> BoxFuture<'a, Result<String, ObjectError>> {
        let mut requests = self.requests.lock().unwrap();
        let name = format!("req-{}", requests.len());
        let mut request = PodCertificateRequest { spec, ..PodCertificateRequest::default() };
        request.metadata.name = Some(name.clone());
        requests.push(request);
        async move { Ok(name) }.boxed()
    }

    fn certificate_request<'a>(
        &'a self,
        _: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PodCertificateRequest>, ObjectError>> {
        let requests = self.requests.lock().unwrap();
        let got = requests.iter().find(|r| r.metadata.name.as_deref() == Some(name)).cloned();
        async move { Ok(got) }.boxed()
    }

    fn token<'a>(
        &'a self,
        _: &'a Pod,
        audience: Option<&'a str>,
        seconds: i64,
    ) -> BoxFuture<'a, Result<Token, ObjectError>> {
        let life = self.token_life.lock().unwrap().unwrap_or(seconds);
        let mut count = self.tokens.lock().unwrap();
        *count += 1;
        let token = format!("token-{}-{}", audience.unwrap_or("api"), *count);
        async move {
            let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(life);
            Ok(Token { token, expires })
        }
        .boxed()
    }

    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Service>, ObjectError>> {
        let got = self.services.iter().filter(|(ns, _)| ns == namespace).map(|(_, s)| s.clone()).collect();
        async move { Ok(got) }.boxed()
    }
}
