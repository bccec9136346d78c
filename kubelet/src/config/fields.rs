//! Every field of the KubeletConfiguration (`kubelet.config.k8s.io/v1beta1`) with upstream's default.
//!
//! The few defaults that differ on purpose are listed in the tests of [`super::file`], each with its reason.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

use super::span::Span;

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

/// `memorySwap`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MemorySwap {
    /// Empty (as `NoSwap`), `NoSwap` or `LimitedSwap`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) swap_behavior: String,
}

/// One of `shutdownGracePeriodByPodPriority`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ShutdownGrace {
    /// Pods of this priority and above, below the next one's.
    pub(crate) priority: i32,
    /// Their time.
    pub(crate) shutdown_grace_period_seconds: i64,
}

/// One of `reservedMemory`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MemoryReservation {
    /// The node of memory.
    pub(crate) numa_node: i32,
    /// What is kept free of it: `memory`, `hugepages-2Mi`.
    pub(crate) limits: BTreeMap<String, Quantity>,
}

/// `userNamespaces`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct UserNamespaces {
    /// Ids of each pod, a multiple of 65536.
    pub(crate) ids_per_pod: i64,
}

impl Default for UserNamespaces {
    fn default() -> Self {
        Self { ids_per_pod: 65536 }
    }
}

/// `tracing`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Tracing {
    /// Where the collector is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    /// Of a million.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sampling_rate_per_million: Option<i32>,
}

/// `logging`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Logging {
    /// `text` or `json`.
    pub(crate) format: String,
    /// Nothing is held back here, so that there is nothing to flush: a duration or nanoseconds.
    pub(crate) flush_frequency: serde_json::Value,
    /// Upstream's number: 0-3 info, 4-5 debug, 6 and more trace.
    pub(crate) verbosity: u32,
    /// Verbosity by file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) vmodule: Vec<Vmodule>,
    /// Buffers of the formats.
    pub(crate) options: serde_json::Value,
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: "text".into(),
            flush_frequency: "5s".into(),
            verbosity: 0,
            vmodule: Vec::new(),
            options: serde_json::json!({"text": {"infoBufferSize": "0"}, "json": {"infoBufferSize": "0"}}),
        }
    }
}

/// One of `logging.vmodule`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Vmodule {
    /// Files of our source, by upstream's rules ([`gantry_telemetry::log::matches`]).
    pub(crate) file_pattern: String,
    /// Their verbosity.
    pub(crate) verbosity: u32,
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

        /// Each field's name in the file and in this program.
        #[cfg(test)]
        pub(super) const NAMES: &[(&str, &str)] = &[$(($wire, stringify!($field))),*];

        impl Default for KubeletConfiguration {
            fn default() -> Self {
                Self { api_version: API_VERSION.into(), kind: KIND.into(), $($field: $default,)* }
            }
        }
    };
}

/// The version of the file.
pub(crate) const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// The kind of the file.
pub(crate) const KIND: &str = "KubeletConfiguration";

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
    "cpuManagerPolicy" cpu_manager_policy: String = "none".into();
    "singleProcessOOMKill" single_process_oom_kill: Option<bool> = None;
    "cpuManagerPolicyOptions" cpu_manager_policy_options: BTreeMap<String, String> = BTreeMap::new();
    "cpuManagerReconcilePeriod" cpu_manager_reconcile_period: Span = Span::seconds(10);
    "memoryManagerPolicy" memory_manager_policy: String = "None".into();
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
    "memorySwap" memory_swap: MemorySwap = MemorySwap::default();
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
    "volumePluginDir" volume_plugin_dir: String = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/".into();
    "providerID" provider_id: String = String::new();
    "kernelMemcgNotification" kernel_memcg_notification: bool = false;
    "logging" logging: Logging = Logging::default();
    "enableSystemLogHandler" enable_system_log_handler: bool = true;
    "enableSystemLogQuery" enable_system_log_query: bool = false;
    "shutdownGracePeriod" shutdown_grace_period: Span = Span::seconds(0);
    "shutdownGracePeriodCriticalPods" shutdown_grace_period_critical_pods: Span = Span::seconds(0);
    "shutdownGracePeriodByPodPriority" shutdown_grace_period_by_pod_priority: Vec<ShutdownGrace> = Vec::new();
    "crashLoopBackOff" crash_loop_back_off: CrashLoopBackOff = CrashLoopBackOff::default();
    "reservedMemory" reserved_memory: Vec<MemoryReservation> = Vec::new();
    "enableProfilingHandler" enable_profiling_handler: bool = true;
    "enableDebugFlagsHandler" enable_debug_flags_handler: bool = true;
    "seccompDefault" seccomp_default: bool = false;
    "memoryThrottlingFactor" memory_throttling_factor: f64 = 0.9;
    "memoryReservationPolicy" memory_reservation_policy: String = "None".into();
    "registerWithTaints" register_with_taints: Vec<Taint> = Vec::new();
    "registerNode" register_node: bool = true;
    "tracing" tracing: Option<Tracing> = None;
    "localStorageCapacityIsolation" local_storage_capacity_isolation: bool = true;
    "containerRuntimeEndpoint" container_runtime_endpoint: String = "unix:///run/gantry/cri.sock".into();
    "imageServiceEndpoint" image_service_endpoint: String = String::new();
    "failCgroupV1" fail_cgroup_v1: bool = false;
    "userNamespaces" user_namespaces: UserNamespaces = UserNamespaces::default();
}
