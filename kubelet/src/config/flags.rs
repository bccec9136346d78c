//! The command line. Flags win over the configuration file.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser};
use tracing::Level;

use super::settings::{self, Kind};
use super::{KubeletConfiguration, file};

/// Runs the pods of one node: those that an apiserver binds to it and those of a manifest folder.
#[derive(Clone, Debug, Parser)]
#[command(name = "kubelet", version = gantry_telemetry::build::VERSION, disable_version_flag = true)]
pub(crate) struct Flags {
    /// KubeletConfiguration file (kubelet.config.k8s.io/v1beta1)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder of further configuration files (*.conf), merged over --config in the order of their names
    #[arg(long, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// How to reach the apiserver; without it the kubelet runs static pods only
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// How to ask for a client certificate while the file of --kubeconfig is missing; that file is then written
    #[arg(long, value_name = "FILE")]
    pub(crate) bootstrap_kubeconfig: Option<PathBuf>,
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
    /// Folder of the certificates that the kubelet makes or is given
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/pki")]
    pub(crate) cert_dir: PathBuf,
    /// `external`: another program sets the node's cloud facts; the node is tainted until it has
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) cloud_provider: String,
    /// CredentialProviderConfig (kubelet.config.k8s.io/v1): a file, or a folder of them
    #[arg(long, value_name = "PATH")]
    pub(crate) image_credential_provider_config: Option<PathBuf>,
    /// Folder of the programs that --image-credential-provider-config names
    #[arg(long, value_name = "DIR")]
    pub(crate) image_credential_provider_bin_dir: Option<PathBuf>,
    /// File that only one kubelet at a time may hold
    #[arg(long, value_name = "FILE")]
    pub(crate) lock_file: Option<PathBuf>,
    /// Upstream's verbosity: 0-3 info, 4-5 debug, 6 and more trace
    #[arg(long, short, value_name = "N")]
    pub(crate) v: Option<u32>,
    /// Verbosity by source file (worker=5,sync/*=4)
    #[arg(long, value_name = "PATTERN=N", value_delimiter = ',')]
    pub(crate) vmodule: Vec<String>,
    /// Log level or filter (info, debug, info,kubelet::pleg=debug)
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Log format: text or json
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<String>,
    /// Print the version
    #[arg(long)]
    pub(crate) version: bool,
    /// Flags that are fields of the configuration, with their texts.
    #[arg(skip)]
    pub(crate) said: Vec<(String, String)>,
    /// Flags that were given and change nothing, with the reason.
    #[arg(skip)]
    pub(crate) idle: Vec<(String, &'static str)>,
}

/// Flags of upstream's that are accepted so that unit files of real nodes work, and why each changes nothing.
const IDLE: &[(&str, bool, &str)] = &[
    ("pod-infra-container-image", true, "the runtime has its own sandbox; it needs no pause image"),
    ("container-runtime", true, "the runtime is always reached by CRI, at containerRuntimeEndpoint"),
    ("runtime-cgroups", true, "the runtime's control group is its own matter"),
    ("log-flush-frequency", true, "log lines are written at once"),
    ("exit-on-lock-contention", false, "the lock is asked for once, at the start"),
    ("minimum-container-ttl-duration", true, "deprecated upstream; dead containers go with their successors"),
    ("maximum-dead-containers-per-container", true, "deprecated upstream; one dead container is kept"),
    ("maximum-dead-containers", true, "deprecated upstream; one dead container is kept"),
    ("experimental-mounter-path", true, "deprecated upstream; the kernel mounts"),
    ("keep-terminated-pod-volumes", false, "deprecated upstream; volumes go with their pod"),
    ("housekeeping-interval", true, "there is no cAdvisor: usage is read when it is asked for"),
    ("global-housekeeping-interval", true, "there is no cAdvisor: usage is read when it is asked for"),
    ("log-cadvisor-usage", false, "there is no cAdvisor"),
    ("enable-load-reader", false, "there is no cAdvisor"),
    ("application-metrics-count-limit", true, "there is no cAdvisor"),
    ("event-storage-age-limit", true, "there is no cAdvisor"),
    ("event-storage-event-limit", true, "there is no cAdvisor"),
    ("boot-id-file", true, "there is no cAdvisor: the kernel tells it"),
    ("machine-id-file", true, "there is no cAdvisor: /etc/machine-id tells it"),
    ("log-json-split-stream", false, "log lines go to one stream"),
    ("log-json-info-buffer-size", true, "log lines are written at once"),
    ("log-text-split-stream", false, "log lines go to one stream"),
    ("log-text-info-buffer-size", true, "log lines are written at once"),
    ("experimental-allocatable-ignore-eviction", false, "deprecated upstream; thresholds count"),
];

const FIELDS: &str = "Fields of the configuration file (better said there)";

fn command() -> clap::Command {
    let mut command = Flags::command();
    for (flag, field, kind) in settings::TABLE {
        let kind = *kind;
        let mut arg = Arg::new(*flag).long(*flag).help(format!("{field} of the configuration")).help_heading(FIELDS);
        arg = match kind {
            Kind::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
            Kind::Number => arg.allow_hyphen_values(true).value_name("N"),
            Kind::List => arg.value_name("A,B"),
            Kind::Map | Kind::Switches => arg.value_name("KEY=VALUE"),
            Kind::Taints => arg.value_name("KEY=VALUE:EFFECT"),
            Kind::Headers => arg.value_name("NAME:VALUE"),
            Kind::Memory => arg.value_name("NODE:RESOURCE=N"),
            Kind::Text => arg.value_name("TEXT"),
        };
        command = command.arg(arg.action(ArgAction::Append));
    }
    for (flag, takes, _) in IDLE {
        let arg = Arg::new(*flag).long(*flag).hide(true).action(ArgAction::Append);
        let arg = if *takes {
            arg.allow_hyphen_values(true)
        } else {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true")
        };
        command = command.arg(arg.value_parser(NonEmptyStringValueParser::new()));
    }
    command
}

/// `--cluster_dns` means `--cluster-dns`, as with upstream's.
fn with_dashes(arg: OsString) -> OsString {
    let Some(text) = arg.to_str().filter(|t| t.starts_with("--") && t.contains('_')) else { return arg };
    let (name, rest) = text.split_once('=').map_or((text, None), |(n, r)| (n, Some(r)));
    let name = name.replace('_', "-");
    rest.map_or_else(|| name.clone(), |rest| format!("{name}={rest}")).into()
}

impl Flags {
    /// Reads a command line; the first word is the program.
    ///
    /// # Errors
    /// It is wrong, or asks for help.
    pub(crate) fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        // An empty text is as no flag at all: unit files expand unset variables to such.
        let args = args.into_iter().map(with_dashes).filter(|a| a != "--pod-infra-container-image=");
        let matches = command().try_get_matches_from(args)?;
        let mut flags = Self::from_arg_matches(&matches)?;
        let texts = |m: &ArgMatches, flag: &str| -> Vec<String> {
            m.get_many::<String>(flag).into_iter().flatten().cloned().collect()
        };
        for (flag, ..) in settings::TABLE {
            flags.said.extend(texts(&matches, flag).into_iter().map(|text| ((*flag).to_owned(), text)));
        }
        for (flag, _, why) in IDLE {
            if !texts(&matches, flag).is_empty() {
                flags.idle.push(((*flag).to_owned(), why));
            }
        }
        Ok(flags)
    }

    /// The configuration that files and flags make together.
    ///
    /// # Errors
    /// See [`file::load`].
    pub(crate) fn load(&self) -> anyhow::Result<file::Loaded> {
        if !matches!(self.cloud_provider.as_str(), "" | "external") {
            anyhow::bail!("--cloud-provider: {:?} is neither empty nor \"external\"", self.cloud_provider);
        }
        file::load(self.config.as_deref(), self.config_dir.as_deref(), &self.said)
    }

    /// The log filter.
    pub(crate) fn level(&self, config: &KubeletConfiguration) -> String {
        if let Some(level) = &self.log_level {
            return level.clone();
        }
        level_of(self.v.unwrap_or(config.logging.verbosity)).to_owned()
    }

    /// Source files that say more than the rest; the flag's come over the file's.
    ///
    /// # Errors
    /// The flag is not of patterns and numbers.
    pub(crate) fn modules(&self, config: &KubeletConfiguration) -> anyhow::Result<Vec<(String, Level)>> {
        let mut said = Vec::new();
        for one in &self.vmodule {
            let pair = one.split_once('=').filter(|(pattern, _)| !pattern.is_empty());
            match pair.and_then(|(pattern, n)| Some((pattern.to_owned(), n.parse().ok()?))) {
                Some(pair) => said.push(pair),
                None => anyhow::bail!("--vmodule: {one:?} is not PATTERN=N"),
            }
        }
        if said.is_empty() {
            said.extend(config.logging.vmodule.iter().map(|v| (v.file_pattern.clone(), v.verbosity)));
        }
        Ok(said.into_iter().filter_map(|(pattern, n)| Some((pattern, level_of(n).parse().ok()?))).collect())
    }

    /// What the command line said, for whoever asks the running kubelet.
    pub(crate) fn told(&self) -> Vec<(String, String)> {
        let text = |p: &Option<PathBuf>| p.as_ref().map(|p| p.display().to_string());
        let own = [
            ("bootstrap-kubeconfig", text(&self.bootstrap_kubeconfig)),
            ("cert-dir", Some(self.cert_dir.display().to_string())),
            ("cloud-provider", Some(self.cloud_provider.clone())),
            ("config", text(&self.config)),
            ("config-dir", text(&self.config_dir)),
            ("hostname-override", self.hostname_override.clone()),
            ("kubeconfig", text(&self.kubeconfig)),
            ("lock-file", text(&self.lock_file)),
            ("node-ip", Some(self.node_ip.join(","))),
            ("node-labels", Some(self.node_labels.join(","))),
            ("root-dir", Some(self.root_dir.display().to_string())),
            ("v", self.v.map(|v| v.to_string())),
        ];
        let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.filter(|v| !v.is_empty())?)));
        let mut out: Vec<(String, String)> = own.chain(self.said.iter().cloned()).collect();
        out.sort();
        out
    }
}

/// Upstream's verbosity as a log level.
pub(crate) fn level_of(verbosity: u32) -> &'static str {
    match verbosity {
        0..=3 => "info",
        4..=5 => "debug",
        _ => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Flags {
        Flags::read(std::iter::once("kubelet").chain(line.split_whitespace()).map(OsString::from)).unwrap()
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(
            &file,
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nport: 7\nmaxPods: 9\n",
        )
        .unwrap();
        let line =
            format!("--config={} --port=1 --register-node=false --cluster_dns=10.0.0.1,10.0.0.2", file.display());
        let config = flags(&line).load().unwrap().config;
        assert_eq!((config.port, config.register_node, config.max_pods), (1, false, 9));
        assert_eq!(config.cluster_dns, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(config.healthz_port, 10248);
    }

    #[test]
    fn a_line_of_kubeadm_is_taken() {
        let flags = flags(
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
             --container-runtime-endpoint=unix:///run/x.sock --pod-infra-container-image=registry.k8s.io/pause:3.10 \
             --hostname-override n7 --node-ip=192.0.2.7,2001:db8::7 --node-labels=a=b,c=d --cloud-provider=external \
             --register-with-taints=x=y:NoSchedule --fail-swap-on=false --enable-server --oom-score-adj -500 -v=4",
        );
        let loaded = flags.load().unwrap();
        assert_eq!(loaded.config.container_runtime_endpoint, "unix:///run/x.sock");
        assert_eq!((loaded.config.oom_score_adj, loaded.config.fail_swap_on), (-500, false));
        assert_eq!(loaded.config.register_with_taints[0].effect, "NoSchedule");
        assert_eq!((flags.node_ip.len(), flags.node_labels.len(), flags.cloud_provider.as_str()), (2, 2, "external"));
        assert_eq!(flags.idle.iter().map(|(f, _)| f.as_str()).collect::<Vec<_>>(), ["pod-infra-container-image"]);
        assert_eq!(flags.level(&loaded.config), "debug");
    }

    #[test]
    fn wrong_lines_are_refused() {
        assert!(Flags::read(["kubelet", "--no-such-flag"].map(OsString::from)).is_err());
        assert!(flags("--cloud-provider=aws").load().unwrap_err().to_string().contains("--cloud-provider"));
        assert!(format!("{:#}", flags("--port=many").load().unwrap_err()).contains("--port"));
        assert!(format!("{:#}", flags("--feature-gates=Nope=true").load().unwrap_err()).contains("Nope"));
    }

    #[test]
    fn verbosity_becomes_a_level() {
        let level = |line: &str| flags(line).level(&KubeletConfiguration::default());
        assert_eq!((level(""), level("--v=2"), level("-v 4")), ("info".into(), "info".into(), "debug".into()));
        assert_eq!(level("--v=9 --log-level=warn"), "warn");
    }

    #[test]
    fn single_files_may_say_more() {
        let mut config = KubeletConfiguration::default();
        config.logging.vmodule.push(serde_json::from_str(r#"{"filePattern": "pleg", "verbosity": 6}"#).unwrap());
        let modules = |line: &str| flags(line).modules(&config);
        assert_eq!(modules("").unwrap(), [("pleg".to_owned(), Level::TRACE)]);
        let said = [("worker".to_owned(), Level::DEBUG), ("sync/*".to_owned(), Level::INFO)];
        assert_eq!(modules("--vmodule=worker=5,sync/*=2").unwrap(), said);
        for wrong in ["--vmodule=worker", "--vmodule==3", "--vmodule=worker=much"] {
            assert!(modules(wrong).unwrap_err().to_string().contains("--vmodule"), "{wrong}");
        }
    }

    #[test]
    fn the_help_can_be_made() {
        command().debug_assert();
    }
}
