//! Tests of reading the configuration; most go over the table of upstream's fields.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::*;

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
/// Every field of upstream's type with its type and default, as `struct<TAB>field<TAB>type<TAB>default`.
const REFERENCE: &str = include_str!("reference.tsv");

fn parse(text: &str) -> Result<Loaded> {
    finish(read(&format!("{HEAD}{text}\n"))?.0)
}

fn rows() -> Vec<(&'static str, &'static str, &'static str, &'static str)> {
    REFERENCE
        .lines()
        .skip(1)
        .map(|line| {
            let mut parts = line.split('\t');
            let mut next = || parts.next().unwrap_or_default();
            (next(), next(), next(), next())
        })
        .collect()
}

/// Where each nested type is found in the file.
const NESTED: &[(&str, &str)] = &[
    ("KubeletConfiguration", ""),
    ("KubeletAuthorization", "authorization"),
    ("KubeletWebhookAuthorization", "authorization.webhook"),
    ("KubeletAuthentication", "authentication"),
    ("KubeletX509Authentication", "authentication.x509"),
    ("KubeletWebhookAuthentication", "authentication.webhook"),
    ("KubeletAnonymousAuthentication", "authentication.anonymous"),
    ("MemorySwapConfiguration", "memorySwap"),
    ("CrashLoopBackOffConfig", "crashLoopBackOff"),
    ("UserNamespaces", "userNamespaces"),
];

fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').filter(|p| !p.is_empty()).fold(value, |v, part| &v[part])
}

#[test]
fn every_field_of_upstream_is_known() {
    let ours = serde_json::to_value(KubeletConfiguration::default()).unwrap();
    let mut count = 0;
    for (of, field, ..) in rows() {
        let Some((_, path)) = NESTED.iter().find(|(name, _)| *name == of) else { continue };
        let skipped_when_empty = field == "swapBehavior";
        assert!(skipped_when_empty || at(&ours, path).get(field).is_some(), "{of}.{field} is missing");
        count += 1;
    }
    assert!(count > 130, "{count}");
    for text in [
        "memorySwap: {swapBehavior: LimitedSwap}",
        "reservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}]",
        "shutdownGracePeriodByPodPriority: [{priority: 1, shutdownGracePeriodSeconds: 10}]",
    ] {
        parse(text).unwrap();
    }
}

#[test]
fn no_field_is_ours_alone() {
    let ours = serde_json::to_value(KubeletConfiguration::default()).unwrap();
    let theirs: Vec<&str> = rows().iter().filter(|r| r.0 == "KubeletConfiguration").map(|r| r.1).collect();
    for field in ours.as_object().unwrap().keys().filter(|f| !["apiVersion", "kind"].contains(&f.as_str())) {
        assert!(theirs.contains(&field.as_str()), "{field}");
    }
    for (field, why) in effect::NONE {
        let top = field.split('.').next().unwrap_or_default();
        assert!(theirs.contains(&top) && !why.is_empty(), "{field} of the table of fields without effect");
    }
}

/// The text of the kubelet's source, without the files that only read, check and list fields.
fn source(folder: &Path, out: &mut String) {
    const ABOUT_FIELDS: [&str; 5] = ["fields.rs", "check.rs", "effect.rs", "settings.rs", "file_tests.rs"];
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            source(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") && !ABOUT_FIELDS.iter().any(|f| name == *f) {
            out.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_field_is_honoured_or_warned_about_by_name() {
    let mut text = String::new();
    source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let is_read = |field: &str| {
        let at = format!(".{field}");
        text.match_indices(&at).any(|(i, _)| {
            let next = text[i + at.len()..].chars().next().unwrap_or(' ');
            !next.is_alphanumeric() && next != '_'
        })
    };
    for (of, wire, ..) in rows().into_iter().filter(|r| r.0 == "KubeletConfiguration") {
        let (_, field) = super::super::fields::NAMES.iter().find(|(name, _)| *name == wire).unwrap();
        // Whoever sets runOnce is refused, as upstream does since it is gone.
        let useless = wire == "runOnce" || effect::NONE.iter().any(|(name, _)| *name == wire);
        assert!(is_read(field) || useless, "{of}.{wire}: nothing reads {field}, and nobody is warned");
    }
}

#[test]
fn whoever_sets_a_field_of_no_use_is_told() {
    let set = [
        ("readOnlyPort", "10255"),
        ("enableContentionProfiling", "true"),
        ("enableProfilingHandler", "false"),
        ("kubeletCgroups", "/k"),
        ("systemCgroups", "/s"),
        ("qosReserved", "{memory: 50%}"),
        ("hairpinMode", "hairpin-veth"),
        ("contentType", "application/vnd.kubernetes.protobuf"),
        ("enableControllerAttachDetach", "false"),
        ("makeIPTablesUtilChains", "false"),
        ("iptablesMasqueradeBit", "3"),
        ("iptablesDropBit", "4"),
        ("showHiddenMetricsForVersion", "'1.35'"),
        ("defaultPodSysctls", "{net.ipv4.ip_forward: '1'}"),
        ("volumePluginDir", "/x"),
        ("kernelMemcgNotification", "true"),
        ("memoryThrottlingFactor", "0.5"),
        ("memoryReservationPolicy", "TieredReservation"),
        ("tracing", "{samplingRatePerMillion: 5}"),
        ("logging.flushFrequency", "7s"),
        ("logging.options", "{json: {splitStream: true}}"),
    ];
    for (field, _) in effect::NONE {
        let (_, value) = set.iter().find(|(name, _)| name == field).unwrap_or_else(|| panic!("{field} is not tried"));
        let text = match field.split_once('.') {
            Some((of, part)) => format!("{of}: {{{part}: {value}}}"),
            None => format!("{field}: {value}"),
        };
        let idle: Vec<String> = parse(&text).unwrap().idle.into_iter().map(|(f, _)| f).collect();
        assert_eq!(idle, [*field], "{text}");
    }
}

/// Defaults that differ from upstream's.
const DIFFERENT: &[(&str, &str)] = &[
    ("containerRuntimeEndpoint", "our own runtime's socket"),
    ("contentType", "JSON is what is spoken"),
    ("serializeImagePulls", "one slow pull must not hold back others"),
    ("failCgroupV1", "hosts are taken as they are"),
    ("singleProcessOOMKill", "decided by the version of the control groups"),
    ("mergeDefaultEvictionSettings", "the table tells none; upstream's is false"),
    ("crashLoopBackOff", "the table tells none"),
    ("logging", "told by its parts"),
    ("authentication", "told by its parts"),
    ("authorization", "told by its parts"),
    ("memorySwap", "the table tells none"),
    ("userNamespaces", "told by its parts"),
    ("cpuManagerPolicy", "the table says None, upstream's code none"),
    ("memoryManagerPolicy", "the table says none, upstream's code None"),
    ("memoryThrottlingFactor", "the table says nil, upstream's code 0.9"),
    ("evictionHard", "told by its own test"),
];

#[test]
fn defaults_are_upstreams() {
    let ours = serde_json::to_value(KubeletConfiguration::default()).unwrap();
    for (of, field, kind, default) in rows() {
        if of != "KubeletConfiguration" || DIFFERENT.iter().any(|(name, _)| *name == field) {
            continue;
        }
        let value = &ours[field];
        let default = default.split(" (").next().unwrap_or_default().trim_matches('"');
        let same = match (kind, default) {
            // Where the table tells no default it is upstream's code that was read.
            (_, "") if value.is_string() => {
                ["podLogsDir", "cgroupRoot", "volumePluginDir", "imagePullCredentialsVerificationPolicy"]
                    .contains(&field)
                    || value == ""
            }
            (_, "" | "nil" | "[]") => value.is_null() || value == &json!([]) || value == &json!({}) || value == false,
            ("metav1.Duration" | "*metav1.Duration", text) => {
                let spans =
                    (super::super::span::Span::parse(text), value.as_str().and_then(super::super::span::Span::parse));
                spans.0.is_some() && spans.0 == spans.1
            }
            ("[]string", text) => serde_json::from_str::<Value>(text).is_ok_and(|v| &v == value),
            (_, text) => value.as_str().map_or_else(|| value.to_string(), str::to_owned) == text,
        };
        assert!(same, "{field}: upstream has {default:?}, ours is {value}");
    }
    let config = parse("").unwrap().config;
    let hard: BTreeMap<String, String> = [
        ("memory.available", "100Mi"),
        ("nodefs.available", "10%"),
        ("nodefs.inodesFree", "5%"),
        ("imagefs.available", "15%"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    assert_eq!(config.eviction_hard, hard);
    let auth = &config.authentication;
    assert!(!auth.anonymous.enabled && auth.webhook.enabled && auth.webhook.cache_ttl.0 == Duration::from_secs(120));
    assert_eq!(config.authorization.mode, "Webhook");
    assert_eq!(config.authorization.webhook.cache_authorized_ttl.0, Duration::from_secs(300));
    assert_eq!(config.authorization.webhook.cache_unauthorized_ttl.0, Duration::from_secs(30));
}

#[test]
fn wrong_values_are_named() {
    for (text, want) in [
        ("maxPods: many", "maxPods"),
        ("syncFrequency: soon", "syncFrequency"),
        ("port: 70000", "port"),
        ("nodeLeaseDurationSeconds: -1", "nodeLeaseDurationSeconds"),
        ("imageGCLowThresholdPercent: 90", "imageGCLowThresholdPercent"),
        ("maxParallelImagePulls: 0", "maxParallelImagePulls"),
        ("serializeImagePulls: true\nmaxParallelImagePulls: 2", "maxParallelImagePulls"),
        ("cpuCFSQuotaPeriod: 2s", "cpuCFSQuotaPeriod"),
        ("authorization: {mode: Deny}", "authorization.mode"),
        ("address: here", "address"),
        ("clusterDNS: [dns]", "clusterDNS"),
        ("runOnce: true", "runOnce"),
        ("registerWithTaints: [{key: a, effect: Never}]", "registerWithTaints"),
        ("evictionHard: {memory.free: 1Gi}", "evictionHard"),
        ("evictionHard: {memory.available: much}", "evictionHard.memory.available"),
        ("evictionSoft: {memory.available: 1Gi}", "evictionSoftGracePeriod"),
        ("systemReserved: {cpus: 1}", "systemReserved"),
        ("enforceNodeAllocatable: [pods, pods]", "enforceNodeAllocatable"),
        ("enforceNodeAllocatable: [system-reserved]", "systemReservedCgroup"),
        ("cgroupsPerQOS: false", "cgroupsPerQOS"),
        ("reservedSystemCPUs: a-b", "reservedSystemCPUs"),
        ("shutdownGracePeriodCriticalPods: 10s", "shutdownGracePeriodCriticalPods"),
        ("shutdownGracePeriod: 100ms", "shutdownGracePeriod"),
        (
            "shutdownGracePeriod: 10s\nshutdownGracePeriodByPodPriority: [{priority: 1}]",
            "shutdownGracePeriodByPodPriority",
        ),
        ("podLogsDir: logs", "podLogsDir"),
        ("containerLogMaxSize: big", "containerLogMaxSize"),
        ("containerLogMonitorInterval: 1s", "containerLogMonitorInterval"),
        ("tlsCertFile: /x", "tlsPrivateKeyFile"),
        ("tlsCipherSuites: [TLS_FAST]", "tlsCipherSuites"),
        ("tlsMinVersion: SSL3", "tlsMinVersion"),
        ("tlsCurvePreferences: [1]", "tlsCurvePreferences"),
        ("userNamespaces: {idsPerPod: 100}", "userNamespaces.idsPerPod"),
        ("featureGates: {NoSuchGate: true}", "NoSuchGate"),
        ("logging: {format: xml}", "logging.format"),
        ("logging: {vmodule: [{filePattern: 'a=b', verbosity: 1}]}", "logging.vmodule"),
        ("cgroupDriver: none", "cgroupDriver"),
        ("cgroupDriver: openrc", "cgroupDriver"),
    ] {
        let error = format!("{:#}", parse(text).unwrap_err());
        assert!(error.contains(want), "{text}: {error}");
    }
}

#[test]
fn fields_without_effect_are_reported_when_they_say_something_else() {
    let idle = |text: &str| parse(text).unwrap().idle.into_iter().map(|(f, _)| f).collect::<Vec<_>>();
    assert_eq!(idle("hairpinMode: hairpin-veth\nport: 1"), ["hairpinMode"]);
    assert_eq!(idle("hairpinMode: promiscuous-bridge\nkubeAPIQPS: 50"), [""; 0]);
    assert_eq!(idle("featureGates: {CRIListStreaming: true}"), ["featureGates.CRIListStreaming"]);
    assert_eq!(idle("memoryThrottlingFactor: 0.8"), ["memoryThrottlingFactor"]);
    assert_eq!(idle("memoryThrottlingFactor: 0.8\nfeatureGates: {MemoryQoS: true}"), [""; 0]);
}

#[test]
fn a_file_of_kubeadm_means_the_defaults() {
    let text = "authentication: {anonymous: {enabled: false}, webhook: {cacheTTL: 0s, enabled: true}, x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}}
authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}}
cgroupDriver: cgroupfs
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: \"\"
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
logging: {flushFrequency: 0, options: {json: {infoBufferSize: \"0\"}, text: {infoBufferSize: \"0\"}}, verbosity: 0}
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s";
    let Loaded { config, idle } = parse(text).unwrap();
    assert!(idle.is_empty(), "{idle:?}");
    assert_eq!(config.runtime_request_timeout.0, Duration::from_secs(120));
    assert_eq!(config.node_status_update_frequency.0, Duration::from_secs(10));
    assert_eq!(config.node_status_report_frequency.0, Duration::from_secs(300));
    assert_eq!(config.container_runtime_endpoint, KubeletConfiguration::default().container_runtime_endpoint);
    assert!(config.rotate_certificates && config.cluster_dns == ["10.96.0.10"]);
}

#[test]
fn an_explicit_update_frequency_is_the_report_frequency_too() {
    let config = parse("nodeStatusUpdateFrequency: 4s").unwrap().config;
    assert_eq!(config.node_status_report_frequency.0, Duration::from_secs(4));
}

#[test]
fn default_thresholds_stay_only_when_asked_for() {
    let hard = |text: &str| parse(text).unwrap().config.eviction_hard.len();
    assert_eq!(hard("evictionHard: {pid.available: 5%}"), 1);
    assert_eq!(hard("mergeDefaultEvictionSettings: true\nevictionHard: {pid.available: 5%}"), 5);
}

#[test]
fn drop_ins_are_merged_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{HEAD}{text}\n")).unwrap();
    };
    put("main.yaml", "maxPods: 1\nclusterDNS: [1.1.1.1]\nauthentication: {x509: {clientCAFile: /a}}\nport: 5");
    put("d/20-b.conf", "maxPods: 3\nclusterDNS: [2.2.2.2]\nport: null");
    put("d/10-a.conf", "maxPods: 2\nauthentication: {anonymous: {enabled: true}}");
    put("d/30-c.txt", "maxPods: 4");
    let load = || load(Some(&dir.path().join("main.yaml")), Some(&dir.path().join("d")), &[]);
    let config = load().unwrap().config;
    assert_eq!((config.max_pods, config.port), (3, 10250));
    assert_eq!(config.cluster_dns, ["2.2.2.2"]);
    assert_eq!(config.authentication.x509.client_ca_file, "/a");
    assert!(config.authentication.anonymous.enabled);
    put("d/40-d.conf", "noSuchField: 1\nmaxPods: 5");
    let Loaded { config, idle } = load().unwrap();
    assert_eq!((config.max_pods, idle.len(), idle[0].0.as_str()), (5, 1, "noSuchField"));
    assert!(idle[0].1.contains("40-d.conf"), "{idle:?}");
    put("d/50-e.conf", "maxPods: many");
    let error = format!("{:#}", load().unwrap_err());
    assert!(error.contains("50-e.conf") && error.contains("maxPods"), "{error}");
}

#[test]
fn unknown_fields_are_left_out_and_named() {
    for (text, want) in [
        ("noSuchField: 1", "noSuchField"),
        ("authentication: {x509: {caFile: /x, clientCAFile: /y}}", "authentication.x509.caFile"),
        ("reservedMemory: [{numaNode: 0, limits: {memory: 1Gi}, kind: big}]", "reservedMemory[0].kind"),
        ("memorySwap: {swapBehavior: NoSwap, size: 3}", "memorySwap.size"),
    ] {
        let (fields, strange) = read(&format!("{HEAD}maxPods: 7\n{text}\n")).unwrap();
        assert_eq!(strange, [want], "{text}");
        assert_eq!(finish(fields).unwrap().config.max_pods, 7);
    }
    let (_, strange) = read(&format!("{HEAD}a: 1\nb: 2\nlogging: {{c: 3}}\n")).unwrap();
    assert_eq!(strange.len(), 3, "{strange:?}");
}

#[test]
fn what_is_shown_can_be_read_again() {
    let config = parse("maxPods: 7\nmemorySwap: {swapBehavior: NoSwap}").unwrap().config;
    let again = finish(shown(&config).as_object().unwrap().clone()).unwrap().config;
    assert_eq!(shown(&again), shown(&config));
}
