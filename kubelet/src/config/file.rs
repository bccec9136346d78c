//! The KubeletConfiguration file (`kubelet.config.k8s.io/v1beta1`): every field with its upstream default.
//!
//! An unknown field is an error. A known field that changes nothing here yet is accepted and named in a warning, so that
//! files written for upstream's kubelet can be used and nobody believes in a setting that is not there.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Taint;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// Reads YAML as Kubernetes does: only `true` and `false` are booleans (`y` is a letter).
///
/// # Errors
/// It is not YAML.
pub(crate) fn yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
}

/// A duration as Go writes it: `1m30s`, `250ms`, `2h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    const fn seconds(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }

    const fn millis(n: u64) -> Self {
        Self(Duration::from_millis(n))
    }

    fn parse(text: &str) -> Option<Self> {
        if text == "0" {
            return Some(Self(Duration::ZERO));
        }
        let (mut rest, mut nanos) = (text, 0f64);
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let number: f64 = rest[..end].parse().ok()?;
            rest = &rest[end..];
            let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let unit = match &rest[..unit_end] {
                "h" => 3.6e12,
                "m" => 6e10,
                "s" => 1e9,
                "ms" => 1e6,
                "us" | "µs" => 1e3,
                "ns" => 1.0,
                _ => return None,
            };
            nanos += number * unit;
            rest = &rest[unit_end..];
        }
        (nanos < 1e18).then(|| Self(Duration::from_nanos(nanos as u64)))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.0.as_millis();
        if !ms.is_multiple_of(1000) {
            return write!(f, "{ms}ms");
        }
        let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        match (h, m) {
            (0, 0) => write!(f, "{s}s"),
            (0, _) => write!(f, "{m}m{s}s"),
            _ => write!(f, "{h}h{m}m{s}s"),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a duration such as 1m30s")))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// `authentication`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Authentication {
    /// Client certificates.
    pub(crate) x509: X509,
    /// Bearer tokens.
    pub(crate) webhook: TokenWebhook,
    /// Requests without credentials.
    pub(crate) anonymous: Anonymous,
}

/// `authentication.x509`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct X509 {
    /// PEM bundle.
    #[serde(rename = "clientCAFile")]
    pub(crate) client_ca_file: String,
}

/// `authentication.webhook`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TokenWebhook {
    /// Ask the apiserver.
    pub(crate) enabled: bool,
    /// For how long an answer holds.
    #[serde(rename = "cacheTTL")]
    pub(crate) cache_ttl: Span,
}

impl Default for TokenWebhook {
    fn default() -> Self {
        Self { enabled: true, cache_ttl: Span::seconds(120) }
    }
}

/// `authentication.anonymous`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Anonymous {
    /// Let them in as system:anonymous.
    pub(crate) enabled: bool,
}

/// `authorization`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Authorization {
    /// `AlwaysAllow` or `Webhook`.
    pub(crate) mode: String,
    /// How long answers hold.
    pub(crate) webhook: AccessWebhook,
}

impl Default for Authorization {
    fn default() -> Self {
        Self { mode: "Webhook".into(), webhook: AccessWebhook::default() }
    }
}

/// `authorization.webhook`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AccessWebhook {
    /// An allowed one.
    #[serde(rename = "cacheAuthorizedTTL")]
    pub(crate) cache_authorized_ttl: Span,
    /// A denied one.
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub(crate) cache_unauthorized_ttl: Span,
}

impl Default for AccessWebhook {
    fn default() -> Self {
        Self { cache_authorized_ttl: Span::seconds(300), cache_unauthorized_ttl: Span::seconds(30) }
    }
}

/// `crashLoopBackOff`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CrashLoopBackOff {
    /// The longest wait before a restart (1 s to 300 s).
    pub(crate) max_container_restart_period: Span,
}

impl Default for CrashLoopBackOff {
    fn default() -> Self {
        Self { max_container_restart_period: Span::seconds(300) }
    }
}

macro_rules! configuration {
    ($($wire:literal $field:ident: $type:ty = $default:expr;)*) => {
        /// The configuration of one node's kubelet.
        #[derive(Clone, Debug, Deserialize, Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct KubeletConfiguration {
            /// `kubelet.config.k8s.io/v1beta1`
            #[serde(rename = "apiVersion")]
            pub(crate) api_version: String,
            /// `KubeletConfiguration`
            pub(crate) kind: String,
            $(#[doc = concat!("`", $wire, "`")] #[serde(rename = $wire)] pub(crate) $field: $type,)*
        }

        impl Default for KubeletConfiguration {
            fn default() -> Self {
                Self { api_version: API_VERSION.into(), kind: KIND.into(), $($field: $default,)* }
            }
        }
    };
}

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

configuration! {
    "enableServer" enable_server: bool = true;
    "staticPodPath" static_pod_path: String = String::new();
    "podLogsDir" pod_logs_dir: String = "/var/log/pods".into();
    "syncFrequency" sync_frequency: Span = Span::seconds(60);
    "fileCheckFrequency" file_check_frequency: Span = Span::seconds(20);
    "httpCheckFrequency" http_check_frequency: Span = Span::seconds(20);
    "staticPodURL" static_pod_url: String = String::new();
    "staticPodURLHeader" static_pod_url_header: BTreeMap<String, Vec<String>> = BTreeMap::new();
    "address" address: String = "0.0.0.0".into();
    "port" port: i32 = 10250;
    "readOnlyPort" read_only_port: i32 = 0;
    "tlsCertFile" tls_cert_file: String = String::new();
    "tlsPrivateKeyFile" tls_private_key_file: String = String::new();
    "tlsCipherSuites" tls_cipher_suites: Vec<String> = Vec::new();
    "tlsCurvePreferences" tls_curve_preferences: Vec<i32> = Vec::new();
    "tlsMinVersion" tls_min_version: String = String::new();
    "rotateCertificates" rotate_certificates: bool = false;
    "serverTLSBootstrap" server_tls_bootstrap: bool = false;
    "authentication" authentication: Authentication = Authentication::default();
    "authorization" authorization: Authorization = Authorization::default();
    "registryPullQPS" registry_pull_qps: i32 = 5;
    "registryBurst" registry_burst: i32 = 10;
    "imagePullCredentialsVerificationPolicy" image_pull_credentials_verification_policy: String = "NeverVerifyPreloadedImages".into();
    "preloadedImagesVerificationAllowlist" preloaded_images_verification_allowlist: Vec<String> = Vec::new();
    "eventRecordQPS" event_record_qps: i32 = 50;
    "eventBurst" event_burst: i32 = 100;
    "enableDebuggingHandlers" enable_debugging_handlers: bool = true;
    "enableContentionProfiling" enable_contention_profiling: bool = false;
    "healthzPort" healthz_port: i32 = 10248;
    "healthzBindAddress" healthz_bind_address: String = "127.0.0.1".into();
    "oomScoreAdj" oom_score_adj: i32 = -999;
    "clusterDomain" cluster_domain: String = String::new();
    "clusterDNS" cluster_dns: Vec<String> = Vec::new();
    "streamingConnectionIdleTimeout" streaming_connection_idle_timeout: Span = Span::seconds(14400);
    "nodeStatusUpdateFrequency" node_status_update_frequency: Span = Span::seconds(10);
    "nodeStatusReportFrequency" node_status_report_frequency: Span = Span::seconds(300);
    "nodeLeaseDurationSeconds" node_lease_duration_seconds: i32 = 40;
    "imageMinimumGCAge" image_minimum_gc_age: Span = Span::seconds(120);
    "imageMaximumGCAge" image_maximum_gc_age: Span = Span::seconds(0);
    "imageGCHighThresholdPercent" image_gc_high_threshold_percent: i32 = 85;
    "imageGCLowThresholdPercent" image_gc_low_threshold_percent: i32 = 80;
    "volumeStatsAggPeriod" volume_stats_agg_period: Span = Span::seconds(60);
    "kubeletCgroups" kubelet_cgroups: String = String::new();
    "systemCgroups" system_cgroups: String = String::new();
    "cgroupRoot" cgroup_root: String = "/".into();
    "cgroupsPerQOS" cgroups_per_qos: bool = true;
    "cgroupDriver" cgroup_driver: String = "cgroupfs".into();
    "cpuManagerPolicy" cpu_manager_policy: String = "None".into();
    "singleProcessOOMKill" single_process_oom_kill: Option<bool> = None;
    "cpuManagerPolicyOptions" cpu_manager_policy_options: BTreeMap<String, String> = BTreeMap::new();
    "cpuManagerReconcilePeriod" cpu_manager_reconcile_period: Span = Span::seconds(10);
    "memoryManagerPolicy" memory_manager_policy: String = "none".into();
    "topologyManagerPolicy" topology_manager_policy: String = "none".into();
    "topologyManagerScope" topology_manager_scope: String = "container".into();
    "topologyManagerPolicyOptions" topology_manager_policy_options: BTreeMap<String, String> = BTreeMap::new();
    "qosReserved" qos_reserved: BTreeMap<String, String> = BTreeMap::new();
    "runtimeRequestTimeout" runtime_request_timeout: Span = Span::seconds(120);
    "hairpinMode" hairpin_mode: String = "promiscuous-bridge".into();
    "maxPods" max_pods: i32 = 110;
    "podCIDR" pod_cidr: String = String::new();
    "podPidsLimit" pod_pids_limit: i64 = -1;
    "resolvConf" resolv_conf: String = "/etc/resolv.conf".into();
    "runOnce" run_once: bool = false;
    "cpuCFSQuota" cpu_cfs_quota: bool = true;
    "cpuCFSQuotaPeriod" cpu_cfs_quota_period: Span = Span::millis(100);
    "nodeStatusMaxImages" node_status_max_images: i32 = 50;
    "maxOpenFiles" max_open_files: i64 = 1_000_000;
    "contentType" content_type: String = "application/json".into();
    "kubeAPIQPS" kube_api_qps: i32 = 50;
    "kubeAPIBurst" kube_api_burst: i32 = 100;
    "serializeImagePulls" serialize_image_pulls: Option<bool> = None;
    "maxParallelImagePulls" max_parallel_image_pulls: Option<i32> = None;
    "evictionHard" eviction_hard: BTreeMap<String, String> = [("memory.available", "100Mi"), ("nodefs.available", "10%"), ("nodefs.inodesFree", "5%"), ("imagefs.available", "15%")].map(|(k, v)| (k.into(), v.into())).into();
    "evictionSoft" eviction_soft: BTreeMap<String, String> = BTreeMap::new();
    "evictionSoftGracePeriod" eviction_soft_grace_period: BTreeMap<String, String> = BTreeMap::new();
    "evictionPressureTransitionPeriod" eviction_pressure_transition_period: Span = Span::seconds(300);
    "evictionMaxPodGracePeriod" eviction_max_pod_grace_period: i32 = 0;
    "evictionMinimumReclaim" eviction_minimum_reclaim: BTreeMap<String, String> = BTreeMap::new();
    "mergeDefaultEvictionSettings" merge_default_eviction_settings: bool = false;
    "podsPerCore" pods_per_core: i32 = 0;
    "enableControllerAttachDetach" enable_controller_attach_detach: bool = true;
    "protectKernelDefaults" protect_kernel_defaults: bool = false;
    "makeIPTablesUtilChains" make_iptables_util_chains: bool = true;
    "iptablesMasqueradeBit" iptables_masquerade_bit: i32 = 14;
    "iptablesDropBit" iptables_drop_bit: i32 = 15;
    "featureGates" feature_gates: BTreeMap<String, bool> = BTreeMap::new();
    "failSwapOn" fail_swap_on: bool = true;
    "memorySwap" memory_swap: Value = Value::Null;
    "containerLogMaxSize" container_log_max_size: String = "10Mi".into();
    "containerLogMaxFiles" container_log_max_files: i32 = 5;
    "containerLogMaxWorkers" container_log_max_workers: i32 = 1;
    "containerLogMonitorInterval" container_log_monitor_interval: Span = Span::seconds(10);
    "configMapAndSecretChangeDetectionStrategy" config_map_and_secret_change_detection_strategy: String = "Watch".into();
    "systemReserved" system_reserved: BTreeMap<String, String> = BTreeMap::new();
    "kubeReserved" kube_reserved: BTreeMap<String, String> = BTreeMap::new();
    "reservedSystemCPUs" reserved_system_cpus: String = String::new();
    "showHiddenMetricsForVersion" show_hidden_metrics_for_version: String = String::new();
    "systemReservedCgroup" system_reserved_cgroup: String = String::new();
    "kubeReservedCgroup" kube_reserved_cgroup: String = String::new();
    "enforceNodeAllocatable" enforce_node_allocatable: Vec<String> = vec!["pods".into()];
    "allowedUnsafeSysctls" allowed_unsafe_sysctls: Vec<String> = Vec::new();
    "defaultPodSysctls" default_pod_sysctls: BTreeMap<String, String> = BTreeMap::new();
    "volumePluginDir" volume_plugin_dir: String = String::new();
    "providerID" provider_id: String = String::new();
    "kernelMemcgNotification" kernel_memcg_notification: bool = false;
    "logging" logging: Value = Value::Null;
    "enableSystemLogHandler" enable_system_log_handler: bool = true;
    "enableSystemLogQuery" enable_system_log_query: bool = false;
    "shutdownGracePeriod" shutdown_grace_period: Span = Span::seconds(0);
    "shutdownGracePeriodCriticalPods" shutdown_grace_period_critical_pods: Span = Span::seconds(0);
    "shutdownGracePeriodByPodPriority" shutdown_grace_period_by_pod_priority: Value = Value::Null;
    "crashLoopBackOff" crash_loop_back_off: CrashLoopBackOff = CrashLoopBackOff::default();
    "reservedMemory" reserved_memory: Value = Value::Null;
    "enableProfilingHandler" enable_profiling_handler: bool = true;
    "enableDebugFlagsHandler" enable_debug_flags_handler: bool = true;
    "seccompDefault" seccomp_default: bool = false;
    "memoryThrottlingFactor" memory_throttling_factor: Option<f64> = None;
    "memoryReservationPolicy" memory_reservation_policy: String = "None".into();
    "registerWithTaints" register_with_taints: Vec<Taint> = Vec::new();
    "registerNode" register_node: bool = true;
    "tracing" tracing: Value = Value::Null;
    "localStorageCapacityIsolation" local_storage_capacity_isolation: bool = true;
    "containerRuntimeEndpoint" container_runtime_endpoint: String = "unix:///run/gantry/cri.sock".into();
    "imageServiceEndpoint" image_service_endpoint: String = String::new();
    "failCgroupV1" fail_cgroup_v1: bool = false;
    "userNamespaces" user_namespaces: Value = Value::Null;
}

/// What works here when it is set; all else is warned about.
const EFFECTIVE: &[&str] = &[
    "apiVersion",
    "kind",
    "enableServer",
    "staticPodPath",
    "podLogsDir",
    "syncFrequency",
    "fileCheckFrequency",
    "address",
    "port",
    "tlsCertFile",
    "tlsPrivateKeyFile",
    "authentication",
    "authorization",
    "enableDebuggingHandlers",
    "healthzPort",
    "healthzBindAddress",
    "oomScoreAdj",
    "clusterDomain",
    "clusterDNS",
    "nodeStatusUpdateFrequency",
    "nodeStatusReportFrequency",
    "nodeLeaseDurationSeconds",
    "cgroupRoot",
    "cgroupsPerQOS",
    "cgroupDriver",
    "runtimeRequestTimeout",
    "maxPods",
    "podCIDR",
    "podPidsLimit",
    "resolvConf",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "nodeStatusMaxImages",
    "serializeImagePulls",
    "maxParallelImagePulls",
    "evictionHard",
    "failSwapOn",
    "containerLogMaxSize",
    "containerLogMaxFiles",
    "containerLogMonitorInterval",
    "systemReserved",
    "kubeReserved",
    "providerID",
    "enableSystemLogHandler",
    "crashLoopBackOff",
    "seccompDefault",
    "registerWithTaints",
    "registerNode",
    "containerRuntimeEndpoint",
    "imageServiceEndpoint",
    "imageMinimumGCAge",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
];

impl KubeletConfiguration {
    /// Reads a file; gives the names of fields that were set and change nothing.
    ///
    /// # Errors
    /// The file cannot be read, is not YAML, or has an unknown field or a value that a field cannot have.
    pub(crate) fn load(path: &Path) -> Result<(Self, Vec<String>)> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the kubelet configuration {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("kubelet configuration {}", path.display()))
    }

    /// As [`KubeletConfiguration::load`], from text.
    ///
    /// # Errors
    /// See there.
    pub(crate) fn parse(text: &str) -> Result<(Self, Vec<String>)> {
        let value: Value = yaml(text).context("not valid YAML")?;
        let Value::Object(fields) = &value else { bail!("it is not a mapping of fields to values") };
        // An explicit null means the default, as for upstream.
        let set: serde_json::Map<String, Value> =
            fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
        let ignored = set.keys().filter(|k| !EFFECTIVE.contains(&k.as_str())).cloned().collect();
        let config: Self = serde_path_to_error::deserialize(Value::Object(set)).map_err(|e| {
            let path = e.path().to_string();
            let why = e.into_inner().to_string();
            if path == "." { anyhow::anyhow!(why) } else { anyhow::anyhow!("field {path}: {why}") }
        })?;
        if config.api_version != API_VERSION || config.kind != KIND {
            bail!("it is {} {}, not {API_VERSION} {KIND}", config.api_version, config.kind);
        }
        config.check()?;
        Ok((config, ignored))
    }

    fn check(&self) -> Result<()> {
        if !matches!(self.authorization.mode.as_str(), "Webhook" | "AlwaysAllow") {
            bail!("field authorization.mode: {:?} is neither Webhook nor AlwaysAllow", self.authorization.mode);
        }
        if !matches!(self.cgroup_driver.as_str(), "cgroupfs" | "systemd") {
            bail!("field cgroupDriver: {:?} is neither cgroupfs nor systemd", self.cgroup_driver);
        }
        for (field, port) in [("port", self.port), ("healthzPort", self.healthz_port)] {
            if !(0..=65535).contains(&port) {
                bail!("field {field}: {port} is not a port");
            }
        }
        if gantry_kube::quantity::Quantity::parse(&self.container_log_max_size).is_err() {
            bail!("field containerLogMaxSize: {:?} is not a quantity", self.container_log_max_size);
        }
        let period = self.crash_loop_back_off.max_container_restart_period.0;
        if !(1..=300).contains(&period.as_secs()) {
            bail!("field crashLoopBackOff.maxContainerRestartPeriod: it must be between 1s and 300s");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    #[test]
    fn defaults_are_upstreams() {
        let (config, ignored) = KubeletConfiguration::parse(HEAD).unwrap();
        assert_eq!((config.port, config.healthz_port, config.max_pods), (10250, 10248, 110));
        assert_eq!(config.node_status_update_frequency.0, Duration::from_secs(10));
        assert_eq!(config.cpu_cfs_quota_period.0, Duration::from_millis(100));
        assert_eq!(config.eviction_hard["memory.available"], "100Mi");
        assert!(config.enable_server && !config.authentication.anonymous.enabled && ignored.is_empty());
    }

    #[test]
    fn unknown_fields_and_wrong_values_are_named() {
        for (text, want) in [
            ("noSuchField: 1", "noSuchField"),
            ("maxPods: many", "maxPods"),
            ("authentication: {x509: {caFile: /x}}", "authentication.x509"),
            ("syncFrequency: soon", "syncFrequency"),
            ("cgroupDriver: openrc", "cgroupDriver"),
        ] {
            let error = format!("{:#}", KubeletConfiguration::parse(&format!("{HEAD}{text}\n")).unwrap_err());
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn fields_without_effect_are_reported() {
        let (_, ignored) =
            KubeletConfiguration::parse(&format!("{HEAD}topologyManagerPolicy: none\nport: 1\n")).unwrap();
        assert_eq!(ignored, ["topologyManagerPolicy"]);
    }

    #[test]
    fn durations_read_as_go_writes_them() {
        for (text, millis) in [("1m30s", 90_000), ("250ms", 250), ("2h", 7_200_000), ("1.5s", 1500), ("0s", 0)] {
            assert_eq!(Span::parse(text), Some(Span::millis(millis)), "{text}");
        }
        assert!(Span::parse("5").is_none() && Span::parse("").is_none() && Span::parse("1y").is_none());
    }
}
