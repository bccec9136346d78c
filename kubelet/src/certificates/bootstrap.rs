//! The first client certificate: asked for with the bootstrap kubeconfig, then named by a kubeconfig of the node's own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::Kubeconfig;
use serde_json::{Value, json};

use super::client::{Identity, pair_of};
use super::request::{self, Outcome, Wanted};
use super::store::{self, Store};

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(5);

/// Whether a kubeconfig can be used as it is: a certificate in it, if any, must still live.
fn usable(kubeconfig: &Path) -> bool {
    if !kubeconfig.exists() {
        return false;
    }
    match pair_of(kubeconfig) {
        Ok(pair) => pair.is_none_or(|p| p.lives()),
        Err(e) => {
            tracing::warn!(error = format!("{e:#}"), "the kubeconfig cannot be used");
            false
        }
    }
}

/// Gets a client certificate and writes `kubeconfig`, unless that is of use already.
///
/// # Errors
/// There is no bootstrap kubeconfig either, or the request is refused.
pub(crate) async fn run(bootstrap: &Path, kubeconfig: &Path, node: &str, folder: &Path) -> Result<()> {
    let store = Store::new(folder, "kubelet-client");
    if usable(kubeconfig) {
        return Ok(());
    }
    // A certificate that was got before the kubeconfig could be written needs no second request.
    if kubeconfig.exists() && store.current().is_some_and(|p| p.lives()) {
        return Ok(());
    }
    let source = Identity { kubeconfig: bootstrap.to_owned(), store: None };
    if !bootstrap.exists() {
        bail!(
            "neither the kubeconfig {} nor the bootstrap kubeconfig {} is of use",
            kubeconfig.display(),
            bootstrap.display()
        );
    }
    tracing::info!(bootstrap = %bootstrap.display(), "asking for a client certificate");
    loop {
        match first(&source, &store, node, folder).await {
            Ok(Outcome::Issued(_)) => break,
            Ok(Outcome::Refused(why)) => bail!("{why}"),
            Err(e) => tracing::warn!(error = format!("{e:#}"), "no client certificate yet"),
        }
        tokio::time::sleep(AGAIN).await;
    }
    write_kubeconfig(bootstrap, kubeconfig, &store)?;
    tracing::info!(kubeconfig = %kubeconfig.display(), "got a client certificate");
    Ok(())
}

async fn first(source: &Identity, store: &Store, node: &str, folder: &Path) -> Result<Outcome> {
    if store.current().is_some_and(|p| p.lives()) {
        return Ok(Outcome::Issued(String::new()));
    }
    let client = source.client().await?;
    let path = folder.join("kubelet-client.key.tmp");
    let key = store::key_at(&path)?;
    let name = request::lasting_name(node, &key)?;
    request::put(&client, node, &key, &Wanted::Client, Some(&name)).await?;
    let answered = request::wait(&client, &name).await;
    if let Ok(Outcome::Issued(cert)) = &answered {
        store.put(cert, &key)?;
    }
    if answered.is_ok() {
        // The key of a refused request, or of one that is done, is not asked with again.
        let _ = std::fs::remove_file(&path);
    }
    answered
}

/// A kubeconfig with the server of the bootstrap kubeconfig and the client certificate in the store.
fn write_kubeconfig(bootstrap: &Path, kubeconfig: &Path, store: &Store) -> Result<()> {
    let what = || format!("write the kubeconfig {}", kubeconfig.display());
    let file = Kubeconfig::read_from(bootstrap).with_context(what)?;
    let document = document(&file, &store.current_path()).with_context(what)?;
    if let Some(folder) = kubeconfig.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(what)?;
    }
    let text = serde_json::to_string_pretty(&document).with_context(what)?;
    gantry_kube::pki::write_private(kubeconfig, &format!("{text}\n")).with_context(what)
}

fn document(bootstrap: &Kubeconfig, current: &Path) -> Result<Value> {
    let name = bootstrap.current_context.as_deref().context("the bootstrap kubeconfig has no current-context")?;
    let context = bootstrap.contexts.iter().find(|c| c.name == name).and_then(|c| c.context.as_ref());
    let cluster = &context.context("the bootstrap kubeconfig lacks its current context")?.cluster;
    let cluster = bootstrap.clusters.iter().find(|c| &c.name == cluster).and_then(|c| c.cluster.as_ref());
    let cluster = cluster.context("the bootstrap kubeconfig lacks the cluster of its context")?;
    Ok(json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "default-context",
        "clusters": [{"name": "default-cluster", "cluster": cluster}],
        "users": [{"name": "default-auth", "user": {"client-certificate": current, "client-key": current}}],
        "contexts": [{"name": "default-context",
            "context": {"cluster": "default-cluster", "namespace": "default", "user": "default-auth"}}],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_kube::pki::{Usage, issue, new_ca};

    #[test]
    fn the_kubeconfig_names_the_server_and_the_link() {
        let dir = tempfile::tempdir().unwrap();
        let bootstrap = dir.path().join("bootstrap");
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- {name: k, cluster: {server: 'https://192.0.2.1:6443', \
                    certificate-authority-data: Y2E=}}\ncontexts:\n- {name: c, context: {cluster: k, user: t}}\nusers:\n- {name: t, user: {token: abc}}\n";
        std::fs::write(&bootstrap, text).unwrap();
        let (own, store) = (dir.path().join("etc/kubelet.conf"), Store::new(&dir.path().join("pki"), "kubelet-client"));
        write_kubeconfig(&bootstrap, &own, &store).unwrap();
        assert!(!usable(&own), "its certificate is missing");
        let ca = new_ca("test").unwrap();
        let pair = issue(&ca, "system:node:n1", &[], &Usage::Client).unwrap();
        store.put(&pair.cert, &pair.key).unwrap();
        assert!(usable(&own));
        let written = std::fs::read_to_string(&own).unwrap();
        assert!(
            written.contains("https://192.0.2.1:6443") && written.contains("kubelet-client-current.pem"),
            "{written}"
        );
        assert!(!written.contains("abc"), "the token stays where it is");
        assert!(usable(&bootstrap) && !usable(&dir.path().join("none")));
    }
}
