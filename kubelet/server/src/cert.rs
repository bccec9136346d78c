//! The serving certificate of a kubelet that was given none: self-signed, kept on disk, made anew when it no longer
//! fits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gantry_kube::pki;

/// A certificate with less life left is replaced.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// It could not be made.
    #[error("make a self-signed certificate for {names}: {source}")]
    Make {
        /// The wanted names.
        names: String,
        /// Why not.
        source: pki::PkiError,
    },
    /// It could not be stored.
    #[error("store the certificate in {path}: {source}", path = path.display())]
    Store {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Paths of a certificate and key for `names` (DNS names and addresses; the first is the subject) in `dir`
/// (`kubelet.crt`, `kubelet.key`). What is there is used if it covers the names and lives for another month.
///
/// # Errors
/// The certificate cannot be made or stored.
pub fn self_signed(names: &[String], dir: &Path) -> Result<(PathBuf, PathBuf), CertError> {
    let (cert, key) = (dir.join("kubelet.crt"), dir.join("kubelet.key"));
    if fits(&cert, &key, names) {
        return Ok((cert, key));
    }
    let subject = names.first().map_or("kubelet", String::as_str);
    let pair =
        pki::self_signed(subject, names).map_err(|source| CertError::Make { names: names.join(", "), source })?;
    let store = |path: &Path, text: &str| {
        pki::write_private(path, text).map_err(|source| CertError::Store { path: path.into(), source })
    };
    fs::create_dir_all(dir).map_err(|source| CertError::Store { path: dir.into(), source })?;
    // A crash in between leaves a pair that does not match; `fits` sees that.
    store(&key, &pair.key)?;
    store(&cert, &pair.cert)?;
    Ok((cert, key))
}

fn fits(cert: &Path, key: &Path, names: &[String]) -> bool {
    let (Ok(cert), Ok(key)) = (fs::read_to_string(cert), fs::read_to_string(key)) else { return false };
    let Ok(facts) = pki::inspect(&cert) else { return false };
    let lives = facts.not_after > SystemTime::now() + RENEW_BEFORE;
    lives && names.iter().all(|name| facts.names.contains(name)) && is_pair(&cert, &key)
}

fn is_pair(cert: &str, key: &str) -> bool {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let (Ok(cert), Ok(key)) =
        (CertificateDer::from_pem_slice(cert.as_bytes()), PrivateKeyDer::from_pem_slice(key.as_bytes()))
    else {
        return false;
    };
    rustls::sign::CertifiedKey::from_der(vec![cert], key, &rustls::crypto::ring::default_provider()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fitting_certificate_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["node-1".to_owned(), "127.0.0.1".to_owned()];
        let (cert, key) = self_signed(&names, dir.path()).unwrap();
        let first = fs::read_to_string(&cert).unwrap();
        self_signed(&names, dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&cert).unwrap(), first);
        self_signed(&["node-2".to_owned()], dir.path()).unwrap();
        let second = fs::read_to_string(&cert).unwrap();
        assert_ne!(second, first, "other names need another certificate");
        fs::write(&cert, &first).unwrap();
        assert!(!fits(&cert, &key, &names), "the key is another's");
        self_signed(&names, dir.path()).unwrap();
        assert!(fits(&cert, &key, &names));
    }
}
