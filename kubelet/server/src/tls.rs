//! TLS with the serving certificate and client certificates, both read again when their files change.
//!
//! A client certificate is asked for, not required. The handshake proves only that the client holds its key; whether
//! the certificate is one of ours is decided afterwards, so that a wrong one gets a 401 that says so and not a broken
//! connection.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};

use crate::user::User;
use crate::{ServeError, TlsPolicy};

/// How often the files are looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the peer of a connection has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// No certificate.
    Unknown,
    /// A certificate of one of our CAs.
    Verified(User),
    /// Another certificate, and why it is not accepted.
    Rejected(String),
}

/// Certificates in use.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) server: Arc<ServerConfig>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Current {
    /// Judges the certificates of a finished handshake.
    pub(crate) fn peer(&self, certificates: Option<&[CertificateDer<'static>]>) -> Peer {
        let (Some([first, rest @ ..]), Some(verifier)) = (certificates, &self.clients) else { return Peer::Unknown };
        if let Err(e) = verifier.verify_client_cert(first, rest, UnixTime::now()) {
            return Peer::Rejected(e.to_string());
        }
        match gantry_kube::pki::facts_of_der(first) {
            Ok(facts) if facts.common_name.is_empty() => Peer::Rejected("the certificate names no user".into()),
            Ok(facts) => Peer::Verified(User::new(facts.common_name, facts.organizations)),
            Err(e) => Peer::Rejected(e.to_string()),
        }
    }
}

/// The files that everything is read from.
pub(crate) struct Files {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Certificate and key in one; wins over the two once it is there.
    pub(crate) issued: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
}

type Stamps = Vec<Option<(SystemTime, u64)>>;

impl Files {
    fn stamps(&self) -> Stamps {
        let stamp = |path: &PathBuf| fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
        [Some(&self.cert), Some(&self.key), self.issued.as_ref(), self.ca.as_ref()]
            .into_iter()
            .map(|path| path.and_then(stamp))
            .collect()
    }

    /// Where certificate and key are read from.
    fn serving(&self) -> (&Path, &Path) {
        match self.issued.as_deref().filter(|p| p.exists()) {
            Some(path) => (path, path),
            None => (&self.cert, &self.key),
        }
    }
}

/// The files and what was last read from them.
pub(crate) struct Certificates {
    files: Files,
    policy: TlsPolicy,
    state: Mutex<State>,
}

struct State {
    current: Current,
    stamps: Stamps,
    looked: Instant,
}

impl Certificates {
    pub(crate) fn load(files: Files, policy: TlsPolicy) -> Result<Self, ServeError> {
        let stamps = files.stamps();
        let current = read(&files, &policy)?;
        let state = Mutex::new(State { current, stamps, looked: Instant::now() });
        Ok(Self { files, policy, state })
    }

    /// What to use for a new connection; changed files that cannot be read leave the old ones in use.
    pub(crate) fn current(&self) -> Current {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_AGAIN {
            state.looked = Instant::now();
            let now = self.files.stamps();
            if now != state.stamps {
                match read(&self.files, &self.policy) {
                    Ok(current) => {
                        tracing::info!("certificates of the server read again");
                        state.current = current;
                        state.stamps = now;
                    }
                    Err(e) => tracing::warn!(error = %e, "changed certificates cannot be used, keeping the old ones"),
                }
            }
        }
        state.current.clone()
    }
}

fn read(files: &Files, policy: &TlsPolicy) -> Result<Current, ServeError> {
    let ((cert, key), ca) = (files.serving(), files.ca.as_deref());
    let wrong = |what: &'static str, path: &Path, reason: String| ServeError::Tls { what, path: path.into(), reason };
    let provider = policy.provider().map_err(|(_, why)| wrong("serving certificate", cert, why))?;
    let provider = Arc::new(provider);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|e| wrong("serving certificate", cert, e.to_string()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong("serving key", key, e.to_string()))?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(policy.versions())
        .map_err(|e| wrong("serving certificate", cert, e.to_string()))?;
    let (builder, clients) = match ca {
        None => (builder.with_no_client_auth(), None),
        Some(path) => {
            let wrong = |reason: String| wrong("client CA", path, reason);
            let mut roots = RootCertStore::empty();
            for root in CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))? {
                roots.add(root.map_err(|e| wrong(e.to_string()))?).map_err(|e| wrong(e.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|e| wrong(e.to_string()))?;
            let hints = verifier.root_hint_subjects().to_vec();
            (builder.with_client_cert_verifier(Arc::new(KeyHolder { provider, hints })), Some(verifier))
        }
    };
    let mut server =
        builder.with_single_cert(chain, private).map_err(|e| wrong("serving certificate", cert, e.to_string()))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Current { server: Arc::new(server), clients })
}

/// Checks that the client holds the key of the certificate it shows, nothing more.
#[derive(Debug)]
struct KeyHolder {
    provider: Arc<CryptoProvider>,
    hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for KeyHolder {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
