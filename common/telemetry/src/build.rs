//! Which build this is.

/// The version that `--version`, CRI `Version` and node info report.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The Kubernetes minor release whose behaviour the programs match.
pub const KUBERNETES_VERSION: &str = "v1.36.0";

/// `vMAJOR.MINOR.PATCH+gantry`, the form in which Kubernetes clients parse a server's version.
pub fn git_version() -> String {
    format!("{KUBERNETES_VERSION}+gantry-{VERSION}")
}
