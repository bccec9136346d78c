//! The files of a data folder: authority, certificates, the key that signs tokens, and kubeconfigs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use gantry_kube::pki::{self, Pair, Usage};
use serde_json::json;

const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::STANDARD;

/// What the server needs of the folder `pki`.
#[derive(Debug)]
pub struct Pki {
    /// The authority.
    pub ca: Pair,
    /// The server's own certificate.
    pub server: Pair,
    /// The certificate towards kubelets.
    pub kubelet_client: Pair,
    /// The key that signs service account tokens, PKCS#8.
    pub sa_key: Vec<u8>,
}

fn pair(dir: &Path, name: &str, make: impl FnOnce() -> Result<Pair>) -> Result<Pair> {
    let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    if cert.exists() && key.exists() {
        let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        return Ok(Pair { cert: read(&cert)?, key: read(&key)? });
    }
    let made = make()?;
    // The certificate comes last: a crash between leaves a key without certificate, and both are made anew.
    pki::write_private(&key, &made.key).with_context(|| format!("write {}", key.display()))?;
    pki::write_private(&cert, &made.cert).with_context(|| format!("write {}", cert.display()))?;
    Ok(made)
}

fn authority(dir: &Path) -> Result<Pair> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    pair(dir, "ca", || Ok(pki::new_ca("gantry")?))
}

/// Reads the folder, making what is missing. `names` are the server's own names and addresses.
pub fn load(data: &Path, names: &[String]) -> Result<Pki> {
    let dir = data.join("pki");
    let ca = authority(&dir)?;
    let issue = || Ok(pki::issue(&ca, "kube-apiserver", &[], &Usage::Server(names.to_vec()))?);
    let mut server = pair(&dir, "apiserver", issue)?;
    let covered = pki::inspect(&server.cert).is_ok_and(|facts| names.iter().all(|name| facts.names.contains(name)));
    if !covered {
        fs::remove_file(dir.join("apiserver.crt")).context("replace the server's certificate")?;
        server = pair(&dir, "apiserver", issue)?;
    }
    let kubelet_client = pair(&dir, "apiserver-kubelet-client", || {
        Ok(pki::issue(&ca, "kube-apiserver-kubelet-client", &["system:masters".into()], &Usage::Client)?)
    })?;
    let path = dir.join("sa.key");
    if !path.exists() {
        let random = ring::rand::SystemRandom::new();
        let key =
            ring::signature::EcdsaKeyPair::generate_pkcs8(&ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                .map_err(|_| anyhow::anyhow!("generate the key that signs tokens"))?;
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64.encode(key.as_ref()));
        pki::write_private(&path, &pem).with_context(|| format!("write {}", path.display()))?;
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let inner: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let sa_key = BASE64.decode(inner.trim()).with_context(|| format!("decode {}", path.display()))?;
    Ok(Pki { ca, server, kubelet_client, sa_key })
}

/// Writes a kubeconfig (0600) of a new client certificate.
pub fn write_kubeconfig(data: &Path, user: &str, groups: &[String], server: &str, out: &Path) -> Result<()> {
    let ca = authority(&data.join("pki"))?;
    let client = pki::issue(&ca, user, groups, &Usage::Client)?;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "gantry",
        "clusters": [{"name": "gantry", "cluster": {"server": server, "certificate-authority-data": BASE64.encode(&ca.cert)}}],
        "users": [{"name": user, "user": {"client-certificate-data": BASE64.encode(&client.cert), "client-key-data": BASE64.encode(&client.key)}}],
        "contexts": [{"name": "gantry", "context": {"cluster": "gantry", "user": user}}],
    });
    let text = serde_json::to_string_pretty(&config).context("encode a kubeconfig")?;
    pki::write_private(out, &format!("{text}\n")).with_context(|| format!("write {}", out.display()))
}
