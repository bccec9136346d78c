//! Certificate signing requests: made by a kubelet, read and signed by an apiserver.
//!
//! What may be asked for is the signer's rule; here is only what a request says and how a certificate is made of it.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rsa::pkcs8::{EncodePrivateKey as _, LineEnding};

use crate::pki::{Pair, PkiError, distinguished_name, failed, inspect};

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The subject's common name.
    pub common_name: String,
    /// The subject's organizations.
    pub organizations: Vec<String>,
    /// Alternative names: DNS.
    pub dns: Vec<String>,
    /// Alternative names: addresses.
    pub ips: Vec<IpAddr>,
    /// Alternative names of other kinds (e-mail addresses, URIs and what has no name here), as text.
    pub others: Vec<String>,
}

/// A new private key, PEM.
///
/// # Errors
/// Key generation fails.
pub fn new_key() -> Result<String, PkiError> {
    Ok(KeyPair::generate().map_err(failed("generate a key"))?.serialize_pem())
}

/// Types of keys that [`new_key_of`] can make, in the words of a pod certificate's `keyType`.
pub const KEY_TYPES: [&str; 5] = ["ECDSAP256", "ECDSAP384", "ED25519", "RSA3072", "RSA4096"];

/// A new private key of a type of [`KEY_TYPES`], PKCS#8 PEM. An RSA key takes a second or so.
///
/// # Errors
/// There is no such type, or none that can be made here (P-521: the TLS library knows no such keys).
pub fn new_key_of(kind: &str) -> Result<String, PkiError> {
    let algorithm = match kind {
        "ECDSAP256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ECDSAP384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "ED25519" => &rcgen::PKCS_ED25519,
        "RSA3072" => return new_rsa_key(3072),
        "RSA4096" => return new_rsa_key(4096),
        _ => {
            let why = format!("this type cannot be made here; supported: {}", KEY_TYPES.join(", "));
            return Err(PkiError::new(format!("generate a key of type {kind:?}"), why));
        }
    };
    Ok(KeyPair::generate_for(algorithm).map_err(failed("generate a key"))?.serialize_pem())
}

/// A new RSA key of so many bits, PKCS#8 PEM: our TLS library signs with such keys, but makes none.
fn new_rsa_key(bits: usize) -> Result<String, PkiError> {
    let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, bits);
    let key = key.map_err(|e| PkiError::new("generate an RSA key", e))?;
    let text = key.to_pkcs8_pem(LineEnding::LF).map_err(|e| PkiError::new("write an RSA key", e))?;
    Ok(text.to_string())
}

/// A DER request that says nothing but which key it is for: the `stubPKCS10Request` of a pod certificate.
///
/// # Errors
/// The key does not parse.
pub fn stub_request(key: &str) -> Result<Vec<u8>, PkiError> {
    let pair = KeyPair::from_pem(key).map_err(failed("read the key of a request"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&pair).map_err(failed("sign the request for a pod's certificate"))?;
    Ok(request.der().to_vec())
}

/// Whether a DER request is signed by its own key.
///
/// # Errors
/// It is not, or it is no request.
pub fn check_der(der: &[u8]) -> Result<(), PkiError> {
    use x509_parser::prelude::FromDer;
    let (rest, csr) = x509_parser::certification_request::X509CertificationRequest::from_der(der).map_err(wrong)?;
    if !rest.is_empty() {
        return Err(wrong("there are bytes behind it"));
    }
    csr.verify_signature().map_err(|e| wrong(format!("its signature: {e}")))
}

/// The public half of a private key, PEM: the same text for the same key.
///
/// # Errors
/// The key does not parse.
pub fn public_key(key: &str) -> Result<String, PkiError> {
    let pair = KeyPair::from_pem(key).map_err(failed("read a key"))?;
    Ok(pair.public_key_pem())
}

/// A PEM request, signed with `key`, for a certificate of `name`, of a group, that answers under `names` (DNS names and addresses).
///
/// # Errors
/// The key does not parse, or a name is no DNS name or address.
pub fn request(key: &str, name: &str, groups: &[String], names: &[String]) -> Result<String, PkiError> {
    let pair = KeyPair::from_pem(key).map_err(failed("read the key of a request"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(name, groups)?;
    params.subject_alt_names = alternative_names(names)?;
    let request = params.serialize_request(&pair).map_err(failed(format!("sign the request for {name}")))?;
    request.pem().map_err(failed(format!("encode the request for {name}")))
}

pub(crate) fn alternative_names(names: &[String]) -> Result<Vec<SanType>, PkiError> {
    let one = |name: &String| {
        Ok(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(failed(format!("server name {name:?}")))?),
        })
    };
    names.iter().map(one).collect()
}

fn wrong(why: impl ToString) -> PkiError {
    PkiError::new("read a certificate signing request", why)
}

/// Reads a PEM request and checks that whoever made it has its key.
///
/// # Errors
/// It does not parse, is not signed by its own key, or its key is of no kind that can be certified.
pub fn read(pem: &str) -> Result<Asked, PkiError> {
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    use x509_parser::prelude::FromDer;
    let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(wrong)?;
    if !matches!(parsed.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
        return Err(wrong(format!("the PEM block is {:?}", parsed.label)));
    }
    let (_, csr) =
        x509_parser::certification_request::X509CertificationRequest::from_der(&parsed.contents).map_err(wrong)?;
    csr.verify_signature().map_err(|e| wrong(format!("its signature: {e}")))?;
    let subject = &csr.certification_request_info.subject;
    let mut out = Asked {
        common_name: subject.iter_common_name().find_map(|a| a.as_str().ok()).unwrap_or_default().to_owned(),
        organizations: subject.iter_organization().filter_map(|a| a.as_str().ok()).map(str::to_owned).collect(),
        ..Asked::default()
    };
    for extension in csr.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => out.dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => match crate::pki::ip_of(bytes) {
                    Some(ip) => out.ips.push(ip),
                    None => return Err(wrong("an address has neither 4 nor 16 bytes")),
                },
                other => out.others.push(other.to_string()),
            }
        }
    }
    Ok(out)
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purposes {
    /// To sign (TLS handshakes).
    pub digital_signature: bool,
    /// To encipher keys.
    pub key_encipherment: bool,
    /// As a client.
    pub client: bool,
    /// As a server.
    pub server: bool,
}

/// Signs a request: the certificate has the subject and the DNS names and addresses of `asked`, which [`read`] gave.
/// It lives for `lifetime`, and never longer than the authority.
///
/// # Errors
/// The authority or the request does not parse, or the subject has more organizations than one.
pub fn sign(ca: &Pair, pem: &str, asked: &Asked, purposes: Purposes, lifetime: Duration) -> Result<String, PkiError> {
    let ca_key = KeyPair::from_pem(&ca.key).map_err(failed("read the authority's key"))?;
    let issuer = Issuer::from_ca_cert_pem(&ca.cert, ca_key).map_err(failed("read the authority's certificate"))?;
    let mut request = CertificateSigningRequestParams::from_pem(pem).map_err(|e| wrong(e.to_string()))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(&asked.common_name, &asked.organizations)?;
    if asked.common_name.is_empty() {
        params.distinguished_name.remove(DnType::CommonName);
    }
    let addresses = asked.ips.iter().map(ToString::to_string);
    params.subject_alt_names = alternative_names(&asked.dns.iter().cloned().chain(addresses).collect::<Vec<_>>())?;
    let usage = |wanted: bool, usage: KeyUsagePurpose| wanted.then_some(usage);
    params.key_usages = [
        usage(purposes.digital_signature, KeyUsagePurpose::DigitalSignature),
        usage(purposes.key_encipherment, KeyUsagePurpose::KeyEncipherment),
    ]
    .into_iter()
    .flatten()
    .collect();
    if purposes.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    if purposes.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    // A little back, so that a peer whose clock is behind accepts a fresh certificate.
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(300).min(lifetime / 20)).into();
    params.not_after = (now + lifetime).min(inspect(&ca.cert)?.not_after).into();
    request.params = params;
    let signed = request.signed_by(&issuer);
    Ok(signed.map_err(failed(format!("sign the certificate of {}", asked.common_name)))?.pem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rsa_key_signs_requests_that_its_public_half_confirms() {
        // Smaller than any that is asked for: the arithmetic is slow in tests.
        let key = new_rsa_key(2048).unwrap();
        let der = stub_request(&key).unwrap();
        check_der(&der).unwrap();
        assert!(public_key(&key).unwrap().contains("PUBLIC KEY"));
    }
    use crate::pki::new_ca;

    const NODES: &str = "system:nodes";

    #[test]
    fn a_request_becomes_a_certificate_of_its_key() {
        let ca = new_ca("test").unwrap();
        let names = ["n1".to_owned(), "192.0.2.7".to_owned(), "2001:db8::7".to_owned()];
        let made = request(&new_key().unwrap(), "system:node:n1", &[NODES.into()], &names).unwrap();
        let asked = read(&made).unwrap();
        assert_eq!(
            (asked.common_name.as_str(), asked.organizations.as_slice()),
            ("system:node:n1", &[NODES.into()][..])
        );
        assert_eq!((asked.dns.as_slice(), asked.ips.len()), (&["n1".to_owned()][..], 2));
        let purposes = Purposes { digital_signature: true, server: true, ..Purposes::default() };
        let cert = sign(&ca, &made, &asked, purposes, Duration::from_secs(3600)).unwrap();
        let facts = inspect(&cert).unwrap();
        assert_eq!((facts.common_name.as_str(), facts.names), ("system:node:n1", names.to_vec()));
        let left = facts.not_after.duration_since(SystemTime::now()).unwrap();
        assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left:?}");
        let long = sign(&ca, &made, &asked, purposes, Duration::from_secs(100 * 365 * 86400)).unwrap();
        assert!(inspect(&long).unwrap().not_after <= inspect(&ca.cert).unwrap().not_after, "not beyond the authority");
    }

    #[test]
    fn keys_of_each_type_sign_stubs() {
        // RSA keys have their own test: the arithmetic is slow in tests.
        for kind in KEY_TYPES.into_iter().filter(|kind| !kind.starts_with("RSA")) {
            let der = stub_request(&new_key_of(kind).unwrap()).unwrap();
            check_der(&der).unwrap();
            let mut other = der.clone();
            other.push(0);
            assert!(check_der(&other).is_err(), "{kind}: something is behind it");
            // A letter of the signature changed.
            let at = der.len() - 3;
            other = der;
            other[at] ^= 1;
            assert!(check_der(&other).is_err(), "{kind}");
        }
        let error = new_key_of("ECDSAP521").unwrap_err().to_string();
        assert!(error.contains("ECDSAP521") && error.contains("ECDSAP256"), "{error}");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let made = request(&new_key().unwrap(), "x", &[], &[]).unwrap();
        assert!(read("hello").is_err());
        assert!(read(&new_ca("test").unwrap().cert).unwrap_err().to_string().contains("CERTIFICATE"));
        // A letter in the middle changed: the signature no longer fits, or it is no request at all.
        let at = made.len() / 2;
        let other = if made.as_bytes()[at] == b'A' { "B" } else { "A" };
        let mut broken = made.clone();
        broken.replace_range(at..=at, other);
        assert!(read(&broken).is_err());
    }
}
