//! Flags, and the network's settings in flannel's `net-conf.json`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gantry_net::Prefix;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Connects this node's pods with those of other nodes.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "gantry-overlay", version)]
pub struct Flags {
    /// How to reach the apiserver; nodes and their pod networks are read from it
    #[arg(long, value_name = "FILE", alias = "kubeconfig-file")]
    pub kubeconfig: Option<PathBuf>,
    /// Nodes in a file, for clusters without an apiserver; read again when it changes
    #[arg(long, value_name = "FILE", conflicts_with = "kubeconfig")]
    pub peers: Option<PathBuf>,
    /// This node's name [default: NODE_NAME, else the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// The network's settings, as flannel's net-conf.json
    #[arg(long, value_name = "FILE", default_value = "/etc/kube-flannel/net-conf.json")]
    pub net_config_path: PathBuf,
    /// Device of the underlay, by name or address [default: that of the default route, or of --public-ip]
    #[arg(long, value_name = "DEVICE")]
    pub iface: Option<String>,
    /// Address that other nodes reach this one by [default: the device's first]
    #[arg(long, value_name = "IP")]
    pub public_ip: Option<IpAddr>,
    /// Where the CNI plugin finds this node's network
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub subnet_file: PathBuf,
    /// Give traffic of pods that leaves the cluster the node's address
    #[arg(long)]
    pub ip_masq: bool,
    /// Whether the kernel may leave checksums of packets in the tunnel to the device below; `probe` tries it at start
    #[arg(long, value_name = "probe|on|off", default_value = "probe")]
    pub tx_checksum: TxChecksum,
    /// Try it, tell the outcome, and end
    #[arg(long, hide = true)]
    pub probe_checksums: bool,
    /// Address for /healthz; none without
    #[arg(long, value_name = "ADDRESS")]
    pub healthz_address: Option<std::net::SocketAddr>,
    /// Remove everything that this agent made on this host, and end
    #[arg(long)]
    pub clean: bool,
    /// Log level or filter
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// Log format: text or json
    #[arg(long, default_value = "text")]
    pub log_format: String,
}

/// Whether checksums of packets in the tunnel are left to the device below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TxChecksum {
    /// As the probe tells.
    Probe,
    /// As the kernel has it.
    On,
    /// The kernel computes them.
    Off,
}

/// How nodes reach each other's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A tunnel; with `direct` nodes on the same network are reached without it.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
        /// Routes instead of the tunnel where the other node is a neighbour.
        direct: bool,
        /// MTU of the pods' network, where it is not the underlay's less the tunnel's header.
        mtu: Option<u32>,
    },
    /// Routes to nodes that are all neighbours.
    HostGw,
}

impl Backend {
    /// Its name in annotations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vxlan { .. } => "vxlan",
            Self::HostGw => "host-gw",
        }
    }
}

/// The network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// All pods' addresses.
    pub ipv4: Option<Prefix>,
    /// All pods' IPv6 addresses.
    pub ipv6: Option<Prefix>,
    /// How nodes reach each other.
    pub backend: Backend,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Written {
    #[serde(default)]
    network: String,
    #[serde(rename = "EnableIPv4", default = "yes")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6", default)]
    enable_ipv6: bool,
    #[serde(rename = "EnableNFTables", default)]
    _enable_nftables: bool,
    #[serde(rename = "IPv6Network", default)]
    ipv6_network: String,
    // How flannel would divide the network itself: here nodes have their podCIDR.
    #[serde(default, rename = "SubnetLen")]
    _length: IgnoredAny,
    #[serde(default, rename = "SubnetMin")]
    _min: IgnoredAny,
    #[serde(default, rename = "SubnetMax")]
    _max: IgnoredAny,
    #[serde(default, rename = "IPv6SubnetLen")]
    _length6: IgnoredAny,
    #[serde(default, rename = "IPv6SubnetMin")]
    _min6: IgnoredAny,
    #[serde(default, rename = "IPv6SubnetMax")]
    _max6: IgnoredAny,
    #[serde(default)]
    backend: WrittenBackend,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
struct WrittenBackend {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "VNI")]
    vni: u32,
    port: u16,
    direct_routing: bool,
    #[serde(rename = "MTU")]
    mtu: u32,
    learning: bool,
    #[serde(rename = "GBP")]
    gbp: bool,
    #[serde(rename = "MacPrefix")]
    _mac_prefix: IgnoredAny,
}

impl Default for WrittenBackend {
    fn default() -> Self {
        Self {
            kind: "vxlan".into(),
            vni: 1,
            port: 0,
            direct_routing: false,
            mtu: 0,
            learning: false,
            gbp: false,
            _mac_prefix: IgnoredAny,
        }
    }
}

impl Network {
    /// Reads the settings.
    ///
    /// # Errors
    /// A field is unknown or wrong, by name.
    pub fn parse(text: &str) -> Result<Self> {
        let written: Written = serde_json::from_str(text)?;
        let prefix = |name: &str, text: &str| -> Result<Prefix> {
            text.parse::<Prefix>().map(Prefix::network).map_err(|e| anyhow::anyhow!("{name}: {e}"))
        };
        for (name, on) in [("GBP", written.backend.gbp), ("Learning", written.backend.learning)] {
            if on {
                bail!("Backend.{name} is not supported");
            }
        }
        let backend = match written.backend.kind.as_str() {
            "vxlan" => Backend::Vxlan {
                vni: written.backend.vni,
                // Linux's own default would be 8472 too; flannel writes 0 for it.
                port: if written.backend.port == 0 { 8472 } else { written.backend.port },
                direct: written.backend.direct_routing,
                mtu: (written.backend.mtu > 0).then_some(written.backend.mtu),
            },
            "host-gw" => Backend::HostGw,
            other => bail!("Backend.Type: {other:?} is neither vxlan nor host-gw"),
        };
        if let Backend::Vxlan { vni, .. } = backend
            && vni >= 1 << 24
        {
            bail!("Backend.VNI: {vni} has more than 24 bits");
        }
        let ipv4 = written.enable_ipv4.then(|| prefix("Network", &written.network)).transpose()?;
        let ipv6 = written.enable_ipv6.then(|| prefix("IPv6Network", &written.ipv6_network)).transpose()?;
        if ipv4.is_none() && ipv6.is_none() {
            bail!("neither EnableIPv4 nor EnableIPv6 is true");
        }
        Ok(Self { ipv4, ipv6, backend })
    }

    /// Reads the settings from a file.
    ///
    /// # Errors
    /// It cannot be read, or a field is unknown or wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannels_settings_are_read_with_their_defaults() {
        let network = Network::parse(r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
        assert_eq!(network.backend, Backend::Vxlan { vni: 1, port: 8472, direct: false, mtu: None });
        let text = r#"{"Network": "10.244.0.0/16", "SubnetLen": 24, "SubnetMin": "10.244.1.0", "Backend": {"Learning": false}}"#;
        assert!(Network::parse(text).is_ok());
        let text =
            r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "host-gw"}}"#;
        let network = Network::parse(text).unwrap();
        assert_eq!((network.ipv4, network.backend), (None, Backend::HostGw));
    }

    #[test]
    fn wrong_fields_are_named() {
        for (text, part) in [
            ("{}", "Network"),
            (r#"{"Network": "10.0.0.0"}"#, "Network"),
            (r#"{"Network": "10.0.0.0/8", "Netwerk": 1}"#, "Netwerk"),
            (r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "udp"}}"#, "Backend.Type"),
            (r#"{"Network": "10.0.0.0/8", "Backend": {"VNI": 16777216}}"#, "Backend.VNI"),
            (r#"{"EnableIPv4": false}"#, "EnableIPv6"),
            (r#"{"Network": "10.0.0.0/8", "Backend": {"GBP": true}}"#, "Backend.GBP"),
        ] {
            let error = format!("{:#}", Network::parse(text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
