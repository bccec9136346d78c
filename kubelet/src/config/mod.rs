//! What the kubelet is told: the configuration file, drop-ins and the flags.

mod check;
mod effect;
mod fields;
mod file;
mod flags;
pub(crate) mod gates;
mod settings;
mod span;

pub(crate) use fields::KubeletConfiguration;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use file::fuzzed;
pub(crate) use file::{Loaded, shown, yaml};
pub(crate) use flags::{Flags, level_of};
pub(crate) use span::Span;

/// What the configuration says of TLS, for the server.
pub(crate) fn tls_policy(config: &KubeletConfiguration) -> kubelet_server::TlsPolicy {
    kubelet_server::TlsPolicy {
        min_version: config.tls_min_version.clone(),
        cipher_suites: config.tls_cipher_suites.clone(),
        curve_preferences: config.tls_curve_preferences.clone(),
    }
}
