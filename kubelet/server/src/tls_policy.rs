//! Which versions, cipher suites and key exchanges the server offers, from the names that a configuration file uses.

use rustls::crypto::{CryptoProvider, ring};
use rustls::{CipherSuite, NamedGroup, SupportedProtocolVersion, version};

/// TLS settings as KubeletConfiguration has them; empty means what is good today.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsPolicy {
    /// `VersionTLS12` or `VersionTLS13`; older names mean `VersionTLS12`, the oldest that is spoken.
    pub min_version: String,
    /// Cipher suites of TLS 1.2 by IANA name; those of TLS 1.3 are always on, as upstream.
    pub cipher_suites: Vec<String>,
    /// Key exchange groups by number (23 P-256, 24 P-384, 29 X25519), the most liked first.
    pub curve_preferences: Vec<i32>,
}

/// Suites that upstream knows and that are not spoken here, since none of them is safe enough today.
const UNSPOKEN: &[&str] = &[
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

static NEWEST: &[&SupportedProtocolVersion] = &[&version::TLS13];

type Wrong = (&'static str, String);

fn suite(name: &str) -> Option<CipherSuite> {
    Some(match name {
        "TLS_AES_128_GCM_SHA256" => CipherSuite::TLS13_AES_128_GCM_SHA256,
        "TLS_AES_256_GCM_SHA384" => CipherSuite::TLS13_AES_256_GCM_SHA384,
        "TLS_CHACHA20_POLY1305_SHA256" => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => {
            CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        }
        _ => return None,
    })
}

fn group(number: i32) -> Result<Option<NamedGroup>, String> {
    match number {
        23 => Ok(Some(NamedGroup::secp256r1)),
        24 => Ok(Some(NamedGroup::secp384r1)),
        29 => Ok(Some(NamedGroup::X25519)),
        // P-521 and the hybrid of X25519 and ML-KEM: known, but not spoken by our TLS library.
        25 | 4587..=4589 => Ok(None),
        other => Err(format!("{other} is no known key exchange (23 P-256, 24 P-384, 29 X25519)")),
    }
}

impl TlsPolicy {
    /// Checks the names.
    ///
    /// # Errors
    /// The field and why its value cannot be.
    pub fn check(&self) -> Result<(), Wrong> {
        self.provider().map(drop)
    }

    /// Protocol versions.
    pub(crate) fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        if self.min_version == "VersionTLS13" { NEWEST } else { rustls::DEFAULT_VERSIONS }
    }

    /// The library's algorithms, less those that are not wanted.
    pub(crate) fn provider(&self) -> Result<CryptoProvider, Wrong> {
        let mut provider = ring::default_provider();
        if !self.cipher_suites.is_empty() {
            let mut wanted = Vec::new();
            for name in &self.cipher_suites {
                match suite(name) {
                    Some(suite) => wanted.push(suite),
                    None if UNSPOKEN.contains(&name.as_str()) => {}
                    None => return Err(("tlsCipherSuites", format!("{name:?} is no known cipher suite"))),
                }
            }
            provider.cipher_suites.retain(|s| s.version() == &version::TLS13 || wanted.contains(&s.suite()));
            if wanted.is_empty() && self.min_version != "VersionTLS13" {
                return Err(("tlsCipherSuites", "none of these is spoken here; name one with GCM or CHACHA20".into()));
            }
        }
        if !self.curve_preferences.is_empty() {
            let mut groups = Vec::new();
            for number in &self.curve_preferences {
                let found = group(*number).map_err(|why| ("tlsCurvePreferences", why))?;
                groups.extend(found.and_then(|g| provider.kx_groups.iter().find(|k| k.name() == g).copied()));
            }
            if groups.is_empty() {
                return Err(("tlsCurvePreferences", "none of these is spoken here (23, 24 and 29 are)".into()));
            }
            provider.kx_groups = groups;
        }
        Ok(provider)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(suites: &[&str], curves: &[i32]) -> TlsPolicy {
        TlsPolicy {
            cipher_suites: suites.iter().map(|s| (*s).to_owned()).collect(),
            curve_preferences: curves.to_vec(),
            ..TlsPolicy::default()
        }
    }

    #[test]
    fn named_suites_and_groups_are_the_only_ones() {
        let got = policy(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA"], &[24, 29, 25])
            .provider()
            .unwrap();
        let old: Vec<_> =
            got.cipher_suites.iter().filter(|s| s.version() != &version::TLS13).map(|s| s.suite()).collect();
        assert_eq!(old, [CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]);
        assert!(got.cipher_suites.len() > 1, "those of TLS 1.3 stay");
        let groups: Vec<_> = got.kx_groups.iter().map(|g| g.name()).collect();
        assert_eq!(groups, [NamedGroup::secp384r1, NamedGroup::X25519]);
        assert_eq!(TlsPolicy { min_version: "VersionTLS13".into(), ..TlsPolicy::default() }.versions().len(), 1);
    }

    #[test]
    fn wrong_names_are_told_with_their_field() {
        for (policy, field) in [
            (policy(&["TLS_X"], &[]), "tlsCipherSuites"),
            (policy(&["TLS_RSA_WITH_RC4_128_SHA"], &[]), "tlsCipherSuites"),
            (policy(&[], &[1]), "tlsCurvePreferences"),
            (policy(&[], &[25]), "tlsCurvePreferences"),
        ] {
            assert_eq!(policy.check().unwrap_err().0, field);
        }
    }
}
