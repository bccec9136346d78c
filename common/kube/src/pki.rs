//! Certificates of a cluster: an authority, and the server and client certificates that it issues.
//!
//! Keys are ECDSA P-256. Everything is PEM text in memory; the only I/O is [`write_private`].

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use gantry_files::{Access, Outlives};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// How long an authority is valid: ten years, as kubeadm's.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long an issued certificate is valid: one year, as kubeadm's.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// A certificate (chain) and its private key, both PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its private key; never logged (`Debug` leaves it out).
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// What went wrong while making or reading a certificate.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct PkiError {
    what: String,
    why: String,
}

impl PkiError {
    pub(crate) fn new(what: impl Into<String>, why: impl ToString) -> Self {
        Self { what: what.into(), why: why.to_string() }
    }
}

pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |e| PkiError { what: what.into(), why: e.to_string() }
}

/// What a certificate is for.
#[derive(Clone, Debug)]
pub enum Usage {
    /// A server that answers under these names and addresses.
    Server(Vec<String>),
    /// A client; its name is the user and its organization is the group.
    Client,
}

/// Makes a new certificate authority called `name`.
///
/// # Errors
/// Key generation or signing fails.
pub fn new_ca(name: &str) -> Result<Pair, PkiError> {
    let key = KeyPair::generate().map_err(failed("generate the authority's key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(name, &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    set_lifetime(&mut params, CA_LIFETIME);
    let cert = params.self_signed(&key).map_err(failed(format!("sign authority {name}")))?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

/// Issues a certificate for `name`, who may be in one of `groups`, signed by `ca`.
///
/// # Errors
/// `ca` does not parse, a server name is no DNS name or address, there is more than one group,
/// or signing fails.
pub fn issue(ca: &Pair, name: &str, groups: &[String], usage: &Usage) -> Result<Pair, PkiError> {
    let ca_key = KeyPair::from_pem(&ca.key).map_err(failed("read the authority's key"))?;
    let issuer = Issuer::from_ca_cert_pem(&ca.cert, ca_key).map_err(failed("read the authority's certificate"))?;
    let key = KeyPair::generate().map_err(failed(format!("generate the key of {name}")))?;
    let params = leaf(name, groups, usage)?;
    let cert = params.signed_by(&key, &issuer).map_err(failed(format!("sign the certificate of {name}")))?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

/// Makes a certificate that vouches for itself, as a kubelet without a serving certificate does.
///
/// # Errors
/// As [`issue`].
pub fn self_signed(name: &str, names: &[String]) -> Result<Pair, PkiError> {
    let key = KeyPair::generate().map_err(failed(format!("generate the key of {name}")))?;
    let params = leaf(name, &[], &Usage::Server(names.to_vec()))?;
    let cert = params.self_signed(&key).map_err(failed(format!("sign the certificate of {name}")))?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

/// What an existing certificate says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The subject's common name: the user of a client certificate.
    pub common_name: String,
    /// The subject's organizations: the groups of a client certificate.
    pub organizations: Vec<String>,
    /// DNS names and addresses of a server certificate.
    pub names: Vec<String>,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

/// Reads the first certificate of a PEM text.
///
/// # Errors
/// There is no certificate in the text or it does not parse.
pub fn inspect(pem: &str) -> Result<Facts, PkiError> {
    let wrong = |why: String| PkiError { what: "read a certificate".to_owned(), why };
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|e| wrong(e.to_string()))?;
    facts_of_der(&pem.contents).map_err(|e| wrong(e.to_string()))
}

/// As [`inspect`] for a DER certificate, as TLS hands it over.
///
/// # Errors
/// It does not parse.
pub fn facts_of_der(der: &[u8]) -> Result<Facts, PkiError> {
    use x509_parser::extensions::GeneralName;
    let wrong = |why: String| PkiError { what: "read a certificate".to_owned(), why };
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|e| wrong(e.to_string()))?;
    let subject = cert.subject();
    let mut names = Vec::new();
    if let Ok(Some(san)) = cert.subject_alternative_name() {
        for name in &san.value.general_names {
            match name {
                GeneralName::DNSName(n) => names.push((*n).to_owned()),
                GeneralName::IPAddress(b) => names.extend(ip_of(b).map(|ip| ip.to_string())),
                _ => {}
            }
        }
    }
    let time = |at: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(at).unwrap_or(0));
    Ok(Facts {
        common_name: subject.iter_common_name().find_map(|a| a.as_str().ok()).unwrap_or_default().to_owned(),
        organizations: subject.iter_organization().filter_map(|a| a.as_str().ok()).map(str::to_owned).collect(),
        names,
        not_before: time(cert.validity().not_before.timestamp()),
        not_after: time(cert.validity().not_after.timestamp()),
    })
}

/// The DER contents of the PEM blocks of a text; what stands between the blocks and in their headers is passed over.
///
/// # Errors
/// A block does not parse.
pub fn blocks(text: &str) -> Result<Vec<Vec<u8>>, PkiError> {
    let mut out = Vec::new();
    for block in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()) {
        match block {
            Ok(block) => out.push(block.contents),
            Err(e) => return Err(PkiError::new("read PEM blocks", e)),
        }
    }
    Ok(out)
}

/// A certificate as a PEM block.
pub fn certificate_block(der: &[u8]) -> String {
    block("CERTIFICATE", der)
}

/// A PEM block.
fn block(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// Writes `text` to `path` with mode 0600, whole or not at all (temporary file, fsync, rename).
///
/// # Errors
/// The folder does not exist or does not take the file.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    gantry_files::replace(path, text.as_bytes(), Access::Owner, Outlives::Crash)
}

pub(crate) fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn leaf(name: &str, groups: &[String], usage: &Usage) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(name, groups)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let (names, purposes) = match usage {
        Usage::Server(names) => (names.as_slice(), vec![ExtendedKeyUsagePurpose::ServerAuth]),
        Usage::Client => (&[][..], vec![ExtendedKeyUsagePurpose::ClientAuth]),
    };
    params.extended_key_usages = purposes;
    params.subject_alt_names = crate::csr::alternative_names(names)?;
    set_lifetime(&mut params, LEAF_LIFETIME);
    Ok(params)
}

pub(crate) fn distinguished_name(name: &str, groups: &[String]) -> Result<DistinguishedName, PkiError> {
    // rcgen keeps one value per attribute type, so a second group would silently replace the first.
    if groups.len() > 1 {
        let why = format!("at most one group fits into a certificate here, got {}", groups.join(", "));
        return Err(PkiError::new(format!("describe the certificate of {name}"), why));
    }
    let mut dn = DistinguishedName::new();
    for group in groups {
        dn.push(DnType::OrganizationName, group.as_str());
    }
    dn.push(DnType::CommonName, name);
    Ok(dn)
}

fn set_lifetime(params: &mut CertificateParams, lifetime: Duration) {
    // Five minutes back, so that a peer whose clock is a little behind accepts a fresh certificate.
    let start = SystemTime::now() - Duration::from_secs(300);
    params.not_before = start.into();
    params.not_after = (start + lifetime).into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issued_certificate_says_who_it_is_for() {
        let ca = new_ca("gantry-ca").unwrap();
        let pair = issue(&ca, "system:node:n1", &["system:nodes".to_owned()], &Usage::Client).unwrap();
        let facts = inspect(&pair.cert).unwrap();
        assert_eq!(facts.common_name, "system:node:n1");
        assert_eq!(facts.organizations, ["system:nodes"]);
        assert!(facts.not_after > SystemTime::now() + Duration::from_secs(300 * 24 * 3600));
    }

    #[test]
    fn server_names_may_be_addresses() {
        let pair = self_signed("n1", &["127.0.0.1".to_owned(), "localhost".to_owned(), "::1".to_owned()]).unwrap();
        assert_eq!(inspect(&pair.cert).unwrap().names, ["127.0.0.1", "localhost", "::1"]);
    }

    #[test]
    fn blocks_come_out_as_they_went_in() {
        let (one, two) = (new_ca("one").unwrap().cert, new_ca("two").unwrap().cert);
        let found = blocks(&format!("a word before\n{one}between\n{two}")).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(inspect(&certificate_block(&found[1])).unwrap().common_name, "two");
        assert_eq!(certificate_block(&found[0]).replace("\r\n", "\n"), one.replace("\r\n", "\n"));
        assert!(blocks("nothing").unwrap().is_empty());
        assert!(blocks("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n").is_err());
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        assert!(inspect("hello").is_err());
        assert!(issue(&Pair { cert: String::new(), key: String::new() }, "x", &[], &Usage::Client).is_err());
    }

    #[test]
    fn a_private_file_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, "secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
