//! The kubelet's certificates: the first by bootstrap, then renewed in time, for the client and for the server.

mod bootstrap;
mod client;
mod request;
mod rotate;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::config::{Flags, KubeletConfiguration};
use crate::throttle::Throttle;
use client::{Changing, Identity};
use store::{Pair, Store};

/// The kubelet's identity towards the apiserver.
#[derive(Clone)]
pub(crate) struct Apiserver {
    changing: Changing,
    identity: Identity,
}

impl Apiserver {
    /// A client for everyone, which follows renewals.
    pub(crate) fn client(&self) -> kube::Client {
        self.changing.client()
    }
}

/// Gets a certificate if there is none yet, and connects. None without a kubeconfig: the kubelet is alone.
///
/// # Errors
/// A file is missing or wrong, or the request for a certificate is refused.
pub(crate) async fn connect(flags: &Flags, config: &KubeletConfiguration, node: &str) -> Result<Option<Apiserver>> {
    let Some(kubeconfig) = &flags.kubeconfig else {
        anyhow::ensure!(
            flags.bootstrap_kubeconfig.is_none(),
            "--bootstrap-kubeconfig needs --kubeconfig, the file that is then written"
        );
        return Ok(None);
    };
    if let Some(bootstrap) = &flags.bootstrap_kubeconfig {
        bootstrap::run(bootstrap, kubeconfig, node, &flags.cert_dir).await.context("get a client certificate")?;
    }
    let identity = identity(flags, config)?;
    let rate = Throttle::new(config.kube_api_qps, config.kube_api_burst);
    let changing = Changing::new(identity.clone(), rate).await?;
    Ok(Some(Apiserver { changing, identity }))
}

fn identity(flags: &Flags, config: &KubeletConfiguration) -> Result<Identity> {
    let kubeconfig = flags.kubeconfig.clone().context("no --kubeconfig")?;
    let store = config.rotate_certificates.then(|| Store::new(&flags.cert_dir, "kubelet-client"));
    Ok(Identity { kubeconfig, store })
}

/// When the client certificate in use ends, where there is one.
pub(crate) fn ends(flags: &Flags, config: &KubeletConfiguration) -> Option<SystemTime> {
    identity(flags, config).ok()?.pair().map(|p| p.facts.not_after)
}

/// A client of what the files say now, for one question.
///
/// # Errors
/// A file is missing or wrong.
pub(crate) async fn client_of(flags: &Flags, config: &KubeletConfiguration) -> Result<kube::Client> {
    identity(flags, config)?.client().await
}

fn server_store(folder: &Path) -> Store {
    Store::new(folder, "kubelet-server")
}

/// Where the serving certificate that the apiserver issues is found, when one is asked for.
pub(crate) fn issued_serving(flags: &Flags, config: &KubeletConfiguration) -> Option<std::path::PathBuf> {
    config.server_tls_bootstrap.then(|| server_store(&flags.cert_dir).current_path())
}

/// Renews what is to be renewed, for ever.
pub(crate) fn keep(flags: &Flags, config: &KubeletConfiguration, api: &Apiserver, node: &str, names: Vec<String>) {
    if config.rotate_certificates {
        tokio::spawn(rotate::client(
            api.changing.clone(),
            api.identity.clone(),
            flags.bootstrap_kubeconfig.clone(),
            node.to_owned(),
        ));
    }
    if config.server_tls_bootstrap {
        let store = Arc::new(server_store(&flags.cert_dir));
        tokio::spawn(rotate::serving(api.client(), node.to_owned(), names, store));
    }
}

/// Seconds that certificates still live, for metrics; infinite for one that is not used.
#[derive(Clone)]
pub(crate) struct Lives {
    client: Option<Identity>,
    server: Option<Store>,
}

impl Lives {
    /// Of what this kubelet uses.
    pub(crate) fn new(flags: &Flags, config: &KubeletConfiguration, api: Option<&Apiserver>) -> Self {
        Self {
            client: api.map(|a| a.identity.clone()),
            server: config.server_tls_bootstrap.then(|| server_store(&flags.cert_dir)),
        }
    }

    /// Of the client's and the server's.
    pub(crate) fn seconds(&self) -> (f64, f64) {
        let left = |pair: Option<Pair>| match pair {
            Some(pair) => match pair.facts.not_after.duration_since(SystemTime::now()) {
                Ok(left) => left.as_secs_f64().floor(),
                Err(past) => -past.duration().as_secs_f64().floor(),
            },
            None => f64::INFINITY,
        };
        (left(self.client.as_ref().and_then(Identity::pair)), left(self.server.as_ref().and_then(Store::current)))
    }
}
