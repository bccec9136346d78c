//! HTTPS registries: own authorities, skip_verify, client certificates, and refusal without them.

mod common;

use std::fs;
use std::sync::Arc;

use common::{documents, gzip, leftovers, root};
use cri_images::build::BuildConfig;
use cri_images::{Config, Digest, Images};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

struct Authority {
    params: rcgen::CertificateParams,
    key: rcgen::KeyPair,
    pem: String,
    der: rustls::pki_types::CertificateDer<'static>,
}

fn authority() -> Authority {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    Authority { pem: cert.pem(), der: cert.der().clone(), params, key }
}

fn leaf(ca: &Authority, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::from_params(&ca.params, &ca.key);
    let cert = rcgen::CertificateParams::new(vec![name.to_string()]).unwrap().signed_by(&key, &issuer).unwrap();
    (cert, key)
}

/// Serves one image over TLS on loopback; asks for a client certificate of `ca` when `clients`.
async fn serve(ca: &Authority, clients: bool) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (cert, key) = leaf(ca, "localhost");
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = if clients {
        let mut roots = RootCertStore::empty();
        roots.add(ca.der.clone()).unwrap();
        builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap(),
        )
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![cert.der().clone()], key).unwrap()));
    let layer = gzip(&[("secret", "1")]);
    let (config, manifest) = documents(std::slice::from_ref(&layer), &BuildConfig::default());
    let blobs = [config, layer.bytes];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, manifest, blobs) = (acceptor.clone(), manifest.clone(), blobs.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match tls.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8(head).unwrap();
                let body = blobs.iter().find(|b| head.contains(&Digest::of(b).to_string())).unwrap_or(&manifest);
                let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = tls.write_all(answer.as_bytes()).await;
                let _ = tls.write_all(body).await;
                let _ = tls.shutdown().await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_as_hosts_toml_says() {
    if !root() {
        return;
    }
    let ca = authority();
    let other = authority();
    let open_port = serve(&ca, false).await;
    let closed_port = serve(&ca, true).await;
    let t = tempfile::tempdir().unwrap();
    fs::write(t.path().join("ca.crt"), &ca.pem).unwrap();
    fs::write(t.path().join("other.crt"), &other.pem).unwrap();
    let (cert, key) = leaf(&ca, "client");
    fs::write(t.path().join("c.cert"), cert.pem()).unwrap();
    fs::write(t.path().join("c.key"), key.serialize_pem()).unwrap();
    let d = t.path().display();
    let cases = [
        (open_port, "".to_string(), Err("certificate")),
        (open_port, format!("ca = \"{d}/other.crt\""), Err("certificate")),
        (open_port, format!("ca = \"{d}/ca.crt\""), Ok(())),
        (open_port, "skip_verify = true".to_string(), Ok(())),
        (open_port, format!("ca = \"{d}/missing.crt\""), Err("missing.crt")),
        (closed_port, format!("ca = \"{d}/ca.crt\""), Err("")),
        (closed_port, format!("ca = [\"{d}/ca.crt\"]\nclient = [[\"{d}/c.cert\", \"{d}/c.key\"]]"), Ok(())),
    ];
    for (n, (port, settings, want)) in cases.into_iter().enumerate() {
        let mut config = Config::new(t.path().join(format!("store{n}")));
        config.timeouts.attempts = 1;
        config.config_path = t.path().join(format!("certs{n}"));
        let dir = config.config_path.join(format!("localhost:{port}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("hosts.toml"), format!("server = \"https://localhost:{port}\"\n{settings}\n")).unwrap();
        let images = Images::open(config).unwrap();
        let got = images.pull(&format!("localhost:{port}/app:1"), None, None).await;
        match (want, got) {
            (Ok(()), got) => assert!(got.is_ok(), "{settings}: {got:?}"),
            (Err(text), Err(e)) => {
                assert!(e.to_string().to_lowercase().contains(text), "{settings}: {e}");
                assert_eq!(leftovers(&t.path().join(format!("store{n}"))), Vec::<std::path::PathBuf>::new());
            }
            (Err(_), Ok(_)) => panic!("{settings}: pulled without being allowed to"),
        }
    }
}
