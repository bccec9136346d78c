//! The command line. Flags win over the configuration file.

use std::path::PathBuf;

use clap::Parser;

use super::KubeletConfiguration;

/// Runs the pods of one node: those that an apiserver binds to it and those of a manifest folder.
#[derive(Clone, Debug, Parser)]
#[command(name = "kubelet", version = gantry_telemetry::build::VERSION, disable_version_flag = true)]
pub(crate) struct Flags {
    /// KubeletConfiguration file (kubelet.config.k8s.io/v1beta1)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// How to reach the apiserver; without it the kubelet runs static pods only
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The node's name, if not the host name
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname_override: Option<String>,
    /// The node's addresses, one or two (IPv4, IPv6)
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(crate) node_ip: Vec<String>,
    /// Labels to register the node with
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub(crate) node_labels: Vec<String>,
    /// Folder of pods' volumes and of the kubelet's state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub(crate) root_dir: PathBuf,
    /// Folder of the self-signed serving certificate
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/pki")]
    pub(crate) cert_dir: PathBuf,
    /// Socket of the container runtime
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) container_runtime_endpoint: Option<String>,
    /// Socket of the image service, if not the runtime's
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) image_service_endpoint: Option<String>,
    /// Folder (or one file) of static pods' manifests
    #[arg(long, value_name = "PATH")]
    pub(crate) pod_manifest_path: Option<String>,
    /// Create the Node object
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) register_node: Option<bool>,
    /// Address to serve on
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<String>,
    /// Port to serve on
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<i32>,
    /// Port of the local health check; 0 turns it off
    #[arg(long, value_name = "PORT")]
    pub(crate) healthz_port: Option<i32>,
    /// DNS servers of pods
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(crate) cluster_dns: Vec<String>,
    /// DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) cluster_domain: Option<String>,
    /// Cgroup below which pods are put
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup_root: Option<String>,
    /// Most pods on this node
    #[arg(long, value_name = "N")]
    pub(crate) max_pods: Option<i32>,
    /// Upstream's verbosity: 0-3 info, 4-5 debug, 6 and more trace
    #[arg(long, short, value_name = "N")]
    pub(crate) v: Option<u8>,
    /// Log level or filter (info, debug, info,kubelet::pleg=debug)
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Log format: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: String,
    /// Print the version
    #[arg(long)]
    pub(crate) version: bool,
}

impl Flags {
    /// Puts what was said on the command line over the file's values.
    pub(crate) fn apply(&self, config: &mut KubeletConfiguration) {
        let texts = [
            (&self.container_runtime_endpoint, &mut config.container_runtime_endpoint),
            (&self.image_service_endpoint, &mut config.image_service_endpoint),
            (&self.pod_manifest_path, &mut config.static_pod_path),
            (&self.address, &mut config.address),
            (&self.cluster_domain, &mut config.cluster_domain),
            (&self.cgroup_root, &mut config.cgroup_root),
        ];
        for (flag, field) in texts {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        }
        let numbers = [
            (self.port, &mut config.port),
            (self.healthz_port, &mut config.healthz_port),
            (self.max_pods, &mut config.max_pods),
        ];
        for (flag, field) in numbers {
            if let Some(value) = flag {
                *field = value;
            }
        }
        if let Some(register) = self.register_node {
            config.register_node = register;
        }
        if !self.cluster_dns.is_empty() {
            config.cluster_dns.clone_from(&self.cluster_dns);
        }
    }

    /// The log filter.
    pub(crate) fn level(&self) -> String {
        match (&self.log_level, self.v) {
            (Some(level), _) => level.clone(),
            (None, None | Some(0..=3)) => "info".to_owned(),
            (None, Some(4..=5)) => "debug".to_owned(),
            (None, Some(_)) => "trace".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file() {
        let flags =
            Flags::parse_from(["kubelet", "--port=1", "--register-node=false", "--cluster-dns=10.0.0.1,10.0.0.2"]);
        let mut config = KubeletConfiguration::default();
        flags.apply(&mut config);
        assert_eq!((config.port, config.register_node), (1, false));
        assert_eq!(config.cluster_dns, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(config.healthz_port, 10248);
    }

    #[test]
    fn verbosity_becomes_a_level() {
        let level = |args: &[&str]| Flags::parse_from([&["kubelet"], args].concat()).level();
        assert_eq!(
            (level(&[]), level(&["--v=2"]), level(&["-v", "4"])),
            ("info".into(), "info".into(), "debug".into())
        );
        assert_eq!(level(&["--v=9", "--log-level=warn"]), "warn");
    }
}
