//! What values fields may have. Every refusal names its field.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use gantry_kube::quantity::Quantity;

use super::fields::KubeletConfiguration;

type Config = KubeletConfiguration;

/// Checks everything.
///
/// # Errors
/// The first value that cannot be; the text begins with `field NAME:`.
pub(crate) fn all(c: &Config) -> Result<()> {
    numbers(c)?;
    words(c)?;
    amounts(c)?;
    allocatable(c)?;
    shutdown(c)?;
    logs(c)?;
    tls(c)
}

fn within(field: &str, value: i64, low: i64, high: i64) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    if high == i64::MAX {
        bail!("field {field}: {value} is less than {low}");
    }
    bail!("field {field}: {value} is not between {low} and {high}")
}

fn numbers(c: &Config) -> Result<()> {
    const MOST: i64 = i64::MAX;
    for (field, value, low, high) in [
        ("port", i64::from(c.port), 1, 65535),
        ("readOnlyPort", i64::from(c.read_only_port), 0, 65535),
        ("healthzPort", i64::from(c.healthz_port), 0, 65535),
        ("nodeLeaseDurationSeconds", i64::from(c.node_lease_duration_seconds), 1, MOST),
        ("eventBurst", i64::from(c.event_burst), 0, MOST),
        ("eventRecordQPS", i64::from(c.event_record_qps), 0, MOST),
        ("imageGCHighThresholdPercent", i64::from(c.image_gc_high_threshold_percent), 0, 100),
        ("imageGCLowThresholdPercent", i64::from(c.image_gc_low_threshold_percent), 0, 100),
        ("iptablesDropBit", i64::from(c.iptables_drop_bit), 0, 31),
        ("iptablesMasqueradeBit", i64::from(c.iptables_masquerade_bit), 0, 31),
        ("kubeAPIBurst", i64::from(c.kube_api_burst), 0, MOST),
        ("kubeAPIQPS", i64::from(c.kube_api_qps), 0, MOST),
        ("nodeStatusMaxImages", i64::from(c.node_status_max_images), -1, MOST),
        ("maxOpenFiles", c.max_open_files, 0, MOST),
        ("maxPods", i64::from(c.max_pods), 0, MOST),
        ("podsPerCore", i64::from(c.pods_per_core), 0, MOST),
        ("oomScoreAdj", i64::from(c.oom_score_adj), -1000, 1000),
        ("registryBurst", i64::from(c.registry_burst), 0, MOST),
        ("registryPullQPS", i64::from(c.registry_pull_qps), 0, MOST),
        ("maxParallelImagePulls", i64::from(c.max_parallel_image_pulls.unwrap_or(1)), 1, MOST),
        ("containerLogMaxFiles", i64::from(c.container_log_max_files), 2, MOST),
        ("containerLogMaxWorkers", i64::from(c.container_log_max_workers), 1, MOST),
        ("evictionMaxPodGracePeriod", i64::from(c.eviction_max_pod_grace_period), -1, MOST),
    ] {
        within(field, value, low, high)?;
    }
    if c.image_gc_low_threshold_percent >= c.image_gc_high_threshold_percent {
        bail!(
            "field imageGCLowThresholdPercent: {} is not less than imageGCHighThresholdPercent {}",
            c.image_gc_low_threshold_percent,
            c.image_gc_high_threshold_percent
        );
    }
    if c.max_parallel_image_pulls.is_some_and(|n| n > 1) && c.serialize_image_pulls == Some(true) {
        bail!("field maxParallelImagePulls: it cannot be larger than 1 while serializeImagePulls is true");
    }
    let aged = c.image_maximum_gc_age.0;
    if !aged.is_zero() && aged <= c.image_minimum_gc_age.0 {
        bail!("field imageMaximumGCAge: it must be longer than imageMinimumGCAge");
    }
    let period = c.cpu_cfs_quota_period.0;
    if !(Duration::from_millis(1)..=Duration::from_secs(1)).contains(&period) {
        bail!("field cpuCFSQuotaPeriod: it must be between 1ms and 1s");
    }
    let restart = c.crash_loop_back_off.max_container_restart_period.0;
    if !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&restart) {
        bail!("field crashLoopBackOff.maxContainerRestartPeriod: it must be between 1s and 300s");
    }
    if !(c.memory_throttling_factor > 0.0 && c.memory_throttling_factor <= 1.0) {
        bail!("field memoryThrottlingFactor: {} is not above 0 and at most 1", c.memory_throttling_factor);
    }
    let ids = c.user_namespaces.ids_per_pod;
    if ids < 65536 || ids % 65536 != 0 {
        bail!("field userNamespaces.idsPerPod: {ids} is not a multiple of 65536");
    }
    Ok(())
}

fn one_of(field: &str, value: &str, allowed: &[&str]) -> Result<()> {
    if allowed.contains(&value) {
        return Ok(());
    }
    bail!("field {field}: {value:?} is none of {}", allowed.join(", "))
}

fn words(c: &Config) -> Result<()> {
    for (field, value, allowed) in [
        ("authorization.mode", &c.authorization.mode, &["Webhook", "AlwaysAllow"][..]),
        ("cgroupDriver", &c.cgroup_driver, &["cgroupfs", "systemd"]),
        ("cpuManagerPolicy", &c.cpu_manager_policy, &["none", "None", "static"]),
        ("memoryManagerPolicy", &c.memory_manager_policy, &["None", "none", "Static"]),
        (
            "topologyManagerPolicy",
            &c.topology_manager_policy,
            &["none", "best-effort", "restricted", "single-numa-node"],
        ),
        ("topologyManagerScope", &c.topology_manager_scope, &["container", "pod"]),
        ("hairpinMode", &c.hairpin_mode, &["promiscuous-bridge", "hairpin-veth", "none"]),
        ("memorySwap.swapBehavior", &c.memory_swap.swap_behavior, &["", "NoSwap", "LimitedSwap"]),
        ("memoryReservationPolicy", &c.memory_reservation_policy, &["None", "TieredReservation"]),
        (
            "configMapAndSecretChangeDetectionStrategy",
            &c.config_map_and_secret_change_detection_strategy,
            &["Get", "Cache", "Watch"],
        ),
        (
            "imagePullCredentialsVerificationPolicy",
            &c.image_pull_credentials_verification_policy,
            &["NeverVerify", "NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "AlwaysVerify"],
        ),
        ("tlsMinVersion", &c.tls_min_version, &["", "VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"]),
        ("logging.format", &c.logging.format, &["text", "json"]),
    ] {
        one_of(field, value, allowed)?;
    }
    for (field, ip) in [("address", &c.address), ("healthzBindAddress", &c.healthz_bind_address)] {
        if ip.parse::<std::net::IpAddr>().is_err() {
            bail!("field {field}: {ip:?} is not an IP address");
        }
    }
    for ip in &c.cluster_dns {
        if ip.parse::<std::net::IpAddr>().is_err() {
            bail!("field clusterDNS: {ip:?} is not an IP address");
        }
    }
    if c.run_once {
        bail!("field runOnce: running pods once and ending is no longer part of Kubernetes");
    }
    if !c.preloaded_images_verification_allowlist.is_empty()
        && c.image_pull_credentials_verification_policy != "NeverVerifyAllowlistedImages"
    {
        bail!(
            "field preloadedImagesVerificationAllowlist: it needs imagePullCredentialsVerificationPolicy NeverVerifyAllowlistedImages"
        );
    }
    if !c.system_cgroups.is_empty() && c.cgroup_root.is_empty() {
        bail!("field systemCgroups: it needs cgroupRoot");
    }
    if c.enable_system_log_query && !c.enable_system_log_handler {
        bail!("field enableSystemLogQuery: it needs enableSystemLogHandler");
    }
    if !c.static_pod_url.is_empty() && !["http://", "https://"].iter().any(|s| c.static_pod_url.starts_with(s)) {
        bail!("field staticPodURL: {:?} is not an http or https URL", c.static_pod_url);
    }
    for taint in &c.register_with_taints {
        if taint.key.is_empty() || !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&taint.effect.as_str()) {
            bail!(
                "field registerWithTaints: {:?} with effect {:?} is not a taint (NoSchedule, PreferNoSchedule, NoExecute)",
                taint.key,
                taint.effect
            );
        }
    }
    Ok(())
}

fn quantity(field: &str, key: &str, text: &str) -> Result<()> {
    match Quantity::parse(text) {
        Ok(q) if q.milli_value() >= 0 => Ok(()),
        _ => bail!("field {field}.{key}: {text:?} is not a quantity"),
    }
}

const SIGNALS: &[&str] = &[
    "memory.available",
    "allocatableMemory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "containerfs.available",
    "containerfs.inodesFree",
    "pid.available",
];

fn thresholds(field: &str, map: &BTreeMap<String, String>) -> Result<()> {
    for (signal, text) in map {
        if !SIGNALS.contains(&signal.as_str()) {
            bail!("field {field}: {signal:?} is none of {}", SIGNALS.join(", "));
        }
        match text.strip_suffix('%') {
            Some(percent) if percent.parse::<f64>().is_ok_and(|p| (0.0..=100.0).contains(&p)) => {}
            Some(_) => bail!("field {field}.{signal}: {text:?} is not between 0% and 100%"),
            None => quantity(field, signal, text)?,
        }
    }
    Ok(())
}

fn amounts(c: &Config) -> Result<()> {
    for (field, map) in [("systemReserved", &c.system_reserved), ("kubeReserved", &c.kube_reserved)] {
        for (key, text) in map {
            one_of(field, key, &["cpu", "memory", "ephemeral-storage", "pid"])?;
            quantity(field, key, text)?;
        }
    }
    thresholds("evictionHard", &c.eviction_hard)?;
    thresholds("evictionSoft", &c.eviction_soft)?;
    thresholds("evictionMinimumReclaim", &c.eviction_minimum_reclaim)?;
    for (signal, text) in &c.eviction_soft_grace_period {
        if super::span::Span::parse(text).is_none() {
            bail!("field evictionSoftGracePeriod.{signal}: {text:?} is not a duration such as 1m30s");
        }
    }
    if let Some(signal) = c.eviction_soft.keys().find(|s| !c.eviction_soft_grace_period.contains_key(*s)) {
        bail!("field evictionSoftGracePeriod: there is none for the soft threshold of {signal}");
    }
    for (key, text) in &c.qos_reserved {
        if key != "memory" || !text.strip_suffix('%').is_some_and(|p| p.parse::<u8>().is_ok_and(|p| p <= 100)) {
            bail!("field qosReserved: {key}={text} is not memory with a percentage");
        }
    }
    for reservation in &c.reserved_memory {
        for (key, amount) in &reservation.limits {
            quantity("reservedMemory.limits", key, &amount.0)?;
        }
    }
    quantity("containerLogMaxSize", "", &c.container_log_max_size)
        .map_err(|_| anyhow::anyhow!("field containerLogMaxSize: {:?} is not a quantity", c.container_log_max_size))
}

fn allocatable(c: &Config) -> Result<()> {
    let has = |what: &str| c.enforce_node_allocatable.iter().any(|e| e == what);
    let allowed = [
        "none",
        "pods",
        "system-reserved",
        "system-reserved-compressible",
        "kube-reserved",
        "kube-reserved-compressible",
    ];
    for (i, one) in c.enforce_node_allocatable.iter().enumerate() {
        if !one.is_empty() {
            one_of("enforceNodeAllocatable", one, &allowed)?;
        }
        if c.enforce_node_allocatable[..i].contains(one) {
            bail!("field enforceNodeAllocatable: {one:?} is there twice");
        }
    }
    if has("none") && c.enforce_node_allocatable.len() > 1 {
        bail!("field enforceNodeAllocatable: \"none\" goes with nothing else");
    }
    for (kind, field, cgroup) in [
        ("system-reserved", "systemReservedCgroup", &c.system_reserved_cgroup),
        ("kube-reserved", "kubeReservedCgroup", &c.kube_reserved_cgroup),
    ] {
        let compressible = format!("{kind}-compressible");
        if has(kind) && has(&compressible) {
            bail!("field enforceNodeAllocatable: {kind:?} and {compressible:?} exclude each other");
        }
        if (has(kind) || has(&compressible)) && cgroup.is_empty() {
            bail!("field {field}: it must be set when enforceNodeAllocatable has {kind:?}");
        }
    }
    if !c.cgroups_per_qos && c.enforce_node_allocatable.iter().any(|e| !e.is_empty() && e != "none") {
        bail!(
            "field cgroupsPerQOS: it must be true while enforceNodeAllocatable has something to enforce (set [none])"
        );
    }
    if !c.reserved_system_cpus.is_empty() {
        if !c.system_reserved_cgroup.is_empty() || !c.kube_reserved_cgroup.is_empty() {
            bail!("field reservedSystemCPUs: it excludes systemReservedCgroup and kubeReservedCgroup");
        }
        let number = |t: &str| t.trim().parse::<u32>().ok();
        let good = c.reserved_system_cpus.split(',').all(|part| match part.split_once('-') {
            Some((a, b)) => number(a).zip(number(b)).is_some_and(|(a, b)| a <= b),
            None => number(part).is_some(),
        });
        if !good {
            bail!("field reservedSystemCPUs: {:?} is not a list of CPUs such as 0-3,8", c.reserved_system_cpus);
        }
    }
    Ok(())
}

fn shutdown(c: &Config) -> Result<()> {
    let (all, critical) = (c.shutdown_grace_period.0, c.shutdown_grace_period_critical_pods.0);
    if critical > all {
        bail!("field shutdownGracePeriodCriticalPods: it is longer than shutdownGracePeriod");
    }
    for (field, span) in [("shutdownGracePeriod", all), ("shutdownGracePeriodCriticalPods", critical)] {
        if !span.is_zero() && span < Duration::from_secs(1) {
            bail!("field {field}: it must be 0s or at least 1s");
        }
    }
    if !c.shutdown_grace_period_by_pod_priority.is_empty() && (!all.is_zero() || !critical.is_zero()) {
        bail!("field shutdownGracePeriodByPodPriority: it excludes shutdownGracePeriod");
    }
    if c.shutdown_grace_period_by_pod_priority.iter().any(|g| g.shutdown_grace_period_seconds < 0) {
        bail!("field shutdownGracePeriodByPodPriority.shutdownGracePeriodSeconds: it is negative");
    }
    Ok(())
}

fn logs(c: &Config) -> Result<()> {
    if c.container_log_monitor_interval.0 < Duration::from_secs(3) {
        bail!("field containerLogMonitorInterval: it must be at least 3s");
    }
    for one in &c.logging.vmodule {
        if one.file_pattern.is_empty() || one.file_pattern.contains(['=', ',']) {
            bail!("field logging.vmodule: filePattern {:?} must be a name without '=' and ','", one.file_pattern);
        }
    }
    let path = &c.pod_logs_dir;
    let normal = std::path::Path::new(path)
        .components()
        .all(|p| matches!(p, std::path::Component::RootDir | std::path::Component::Normal(_)));
    if !path.starts_with('/') || !normal || !path.is_ascii() || path.contains("//") {
        bail!("field podLogsDir: {path:?} is not an absolute and normal path");
    }
    Ok(())
}

fn tls(c: &Config) -> Result<()> {
    if c.tls_cert_file.is_empty() != c.tls_private_key_file.is_empty() {
        bail!("field tlsPrivateKeyFile: it goes with tlsCertFile; set both or none");
    }
    let policy = super::tls_policy(c);
    policy.check().map_err(|(field, why)| anyhow::anyhow!("field {field}: {why}"))
}
