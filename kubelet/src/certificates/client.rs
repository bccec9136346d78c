//! The client of the apiserver, made anew when its kubeconfig or certificates change: a renewed certificate is used
//! without a restart, and nobody who holds the client notices.
//!
//! Requests at work end on their old connection, whose certificate is still valid for a while; new ones use the new.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use base64::Engine as _;
use http::{Request, Response};
use kube::client::Body;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};

use super::store::{Pair, Store};
use crate::metrics::own;
use crate::throttle::Throttle;

/// How often the files are looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(10);

/// Where the kubelet's identity comes from.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The kubeconfig.
    pub(crate) kubeconfig: PathBuf,
    /// Renewed certificates, which win over the kubeconfig's; none when they are not renewed.
    pub(crate) store: Option<Store>,
}

type Stamps = Vec<Option<(SystemTime, u64)>>;

struct State {
    client: kube::Client,
    /// `host:port` of the apiserver, for metrics.
    host: String,
    stamps: Stamps,
    looked: Instant,
}

struct Inner {
    identity: Identity,
    state: Mutex<State>,
    loading: tokio::sync::Mutex<()>,
    /// How many requests begin a second.
    rate: Throttle,
}

/// A handle that hands requests to the client of the day.
#[derive(Clone)]
pub(crate) struct Changing(Arc<Inner>);

fn read(path: &Path) -> Result<Kubeconfig> {
    Kubeconfig::read_from(path).with_context(|| format!("kubeconfig {}", path.display()))
}

/// The user of the current context.
fn user(file: &mut Kubeconfig) -> Option<&mut AuthInfo> {
    let name = file.current_context.clone()?;
    let context = file.contexts.iter().find(|c| c.name == name)?.context.clone()?;
    let user = context.user?;
    file.auth_infos.iter_mut().find(|a| a.name == user)?.auth_info.as_mut()
}

fn set_pair(user: &mut AuthInfo, pair: &Pair) {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    user.client_certificate = None;
    user.client_key = None;
    user.client_certificate_data = Some(encode(&pair.cert));
    user.client_key_data = Some(encode(&pair.key).into());
}

/// The certificate in a kubeconfig, if it has one that can be used.
pub(crate) fn pair_of(path: &Path) -> Result<Option<Pair>> {
    let mut file = read(path)?;
    let Some(user) = user(&mut file) else { return Ok(None) };
    pair_of_user(user).with_context(|| format!("kubeconfig {}", path.display()))
}

fn pair_of_user(user: &AuthInfo) -> Result<Option<Pair>> {
    use secrecy::ExposeSecret as _;
    let text = |path: &Option<String>, data: Option<&str>, what: &str| -> Result<Option<String>> {
        if let Some(data) = data {
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(data).with_context(|| format!("read {what}"))?;
            return Ok(Some(String::from_utf8(bytes).with_context(|| format!("read {what}"))?));
        }
        path.as_ref().map(|p| std::fs::read_to_string(p).with_context(|| format!("read {what} {p}"))).transpose()
    };
    let cert = text(&user.client_certificate, user.client_certificate_data.as_deref(), "client-certificate")?;
    let key = user.client_key_data.as_ref().map(|k| k.expose_secret());
    let key = text(&user.client_key, key, "client-key")?;
    let Some((cert, key)) = cert.zip(key) else { return Ok(None) };
    Pair::new(&cert, &key).map(Some)
}

impl Identity {
    /// Every file that a client is made of.
    fn stamps(&self) -> Stamps {
        let mut paths = vec![self.kubeconfig.clone()];
        if let Ok(mut file) = read(&self.kubeconfig) {
            let clusters = file.clusters.iter().filter_map(|c| c.cluster.as_ref()?.certificate_authority.clone());
            paths.extend(clusters.map(PathBuf::from).collect::<Vec<_>>());
            if let Some(user) = user(&mut file) {
                paths.extend(user.client_certificate.iter().chain(&user.client_key).map(PathBuf::from));
            }
        }
        paths.extend(self.store.as_ref().map(Store::current_path));
        let stamp = |path: PathBuf| std::fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
        paths.into_iter().map(stamp).collect()
    }

    /// `host:port` of the current context's server.
    fn host(&self) -> String {
        let server = || {
            let file = read(&self.kubeconfig).ok()?;
            let name = file.current_context.as_ref()?;
            let context = file.contexts.iter().find(|c| &c.name == name)?.context.as_ref()?;
            let cluster = file.clusters.iter().find(|c| c.name == context.cluster)?;
            cluster.cluster.as_ref()?.server.as_ref()?.parse::<http::Uri>().ok()?.authority().map(ToString::to_string)
        };
        server().unwrap_or_default()
    }

    /// The certificate in use.
    pub(crate) fn pair(&self) -> Option<Pair> {
        let renewed = self.store.as_ref().and_then(Store::current).filter(Pair::lives);
        renewed.or_else(|| pair_of(&self.kubeconfig).ok().flatten())
    }

    /// A client of what the files say now.
    ///
    /// # Errors
    /// A file is missing or wrong.
    pub(crate) async fn client(&self) -> Result<kube::Client> {
        let what = || format!("kubeconfig {}", self.kubeconfig.display());
        let mut file = read(&self.kubeconfig)?;
        if let Some(user) = user(&mut file) {
            let renewed = self.store.as_ref().and_then(Store::current).filter(Pair::lives);
            let found = match renewed {
                Some(pair) => Some(pair),
                None => pair_of_user(user).with_context(what)?,
            };
            // As texts of their own: the file that holds both would be sent twice.
            if let Some(pair) = found {
                set_pair(user, &pair);
            }
        }
        let mut config =
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(what)?;
        config.connect_timeout = Some(CONNECT);
        kube::Client::try_from(config).with_context(what)
    }
}

impl Inner {
    fn host(&self) -> String {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).host.clone()
    }
}

impl Changing {
    /// A client that follows its files.
    ///
    /// # Errors
    /// A file is missing or wrong at the start; later that leaves the old client in use.
    pub(crate) async fn new(identity: Identity, rate: Throttle) -> Result<Self> {
        let stamps = identity.stamps();
        let client = identity.client().await?;
        let state = Mutex::new(State { client, host: identity.host(), stamps, looked: Instant::now() });
        Ok(Self(Arc::new(Inner { identity, state, rate, loading: tokio::sync::Mutex::new(()) })))
    }

    /// As a client for everyone.
    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    fn known(&self) -> (kube::Client, bool) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.looked.elapsed() >= LOOK_AGAIN;
        if due {
            state.looked = Instant::now();
        }
        (state.client.clone(), due)
    }

    async fn current(&self) -> kube::Client {
        let (client, due) = self.known();
        if !due {
            return client;
        }
        self.refresh().await;
        self.known().0
    }

    /// Looks at the files now.
    pub(crate) async fn refresh(&self) {
        let _one = self.0.loading.lock().await;
        let stamps = self.0.identity.stamps();
        if self.0.state.lock().unwrap_or_else(PoisonError::into_inner).stamps == stamps {
            return;
        }
        match self.0.identity.client().await {
            Ok(client) => {
                let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
                (state.client, state.stamps, state.host) = (client, stamps, self.0.identity.host());
                tracing::info!("the kubelet's identity was read again");
            }
            Err(e) => {
                tracing::warn!(error = format!("{e:#}"), "the changed identity cannot be used, keeping the old one");
            }
        }
    }
}

/// Events are held back by themselves, and a lease must never wait behind other requests.
fn has_own_limit(path: &str) -> bool {
    path.contains("/events") || path.contains("/leases")
}

impl tower::Service<Request<Body>> for Changing {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            if !has_own_limit(request.uri().path()) {
                this.0.rate.turn().await;
            }
            let (method, start) = (request.method().clone(), Instant::now());
            let client = this.current().await;
            let host = this.0.host();
            let answer = client.send(request).await;
            let code = answer.as_ref().map_or_else(|_| "<error>".to_owned(), |a| a.status().as_str().to_owned());
            own::REST.count(&[("code", &code), ("host", &host), ("method", method.as_str())]);
            own::REST_SECONDS.observe(&[("host", &host), ("verb", method.as_str())], start.elapsed());
            answer
        })
    }
}
