//! Flags that are fields of the configuration file under another name: the table, and how a flag's text becomes a value.
//!
//! Upstream calls all of them deprecated in favour of `--config`; unit files of real nodes pass them nevertheless.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// What a flag's text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As it is.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`; the flag alone means `true`.
    Bool,
    /// Texts between commas.
    List,
    /// `key=value` pairs (`key<value` for thresholds) between commas.
    Map,
    /// As a map with `true` and `false` as values.
    Switches,
    /// `key=value:effect` between commas.
    Taints,
    /// `key:value` between commas, several values a key.
    Headers,
    /// `numa:resource=amount,resource=amount;...`
    Memory,
}

use Kind::{Bool, Headers, List, Memory, Number, Switches, Taints, Text};

/// Flag, field (with a path for nested ones), kind.
pub(crate) const TABLE: &[(&str, &str, Kind)] = &[
    ("address", "address", Text),
    ("allowed-unsafe-sysctls", "allowedUnsafeSysctls", List),
    ("anonymous-auth", "authentication.anonymous.enabled", Bool),
    ("authentication-token-webhook", "authentication.webhook.enabled", Bool),
    ("authentication-token-webhook-cache-ttl", "authentication.webhook.cacheTTL", Text),
    ("authorization-mode", "authorization.mode", Text),
    ("authorization-webhook-cache-authorized-ttl", "authorization.webhook.cacheAuthorizedTTL", Text),
    ("authorization-webhook-cache-unauthorized-ttl", "authorization.webhook.cacheUnauthorizedTTL", Text),
    ("cgroup-driver", "cgroupDriver", Text),
    ("cgroup-root", "cgroupRoot", Text),
    ("cgroups-per-qos", "cgroupsPerQOS", Bool),
    ("client-ca-file", "authentication.x509.clientCAFile", Text),
    ("cluster-dns", "clusterDNS", List),
    ("cluster-domain", "clusterDomain", Text),
    ("container-log-max-files", "containerLogMaxFiles", Number),
    ("container-log-max-size", "containerLogMaxSize", Text),
    ("container-runtime-endpoint", "containerRuntimeEndpoint", Text),
    ("contention-profiling", "enableContentionProfiling", Bool),
    ("cpu-cfs-quota", "cpuCFSQuota", Bool),
    ("cpu-cfs-quota-period", "cpuCFSQuotaPeriod", Text),
    ("cpu-manager-policy", "cpuManagerPolicy", Text),
    ("cpu-manager-policy-options", "cpuManagerPolicyOptions", Kind::Map),
    ("cpu-manager-reconcile-period", "cpuManagerReconcilePeriod", Text),
    ("enable-controller-attach-detach", "enableControllerAttachDetach", Bool),
    ("enable-debugging-handlers", "enableDebuggingHandlers", Bool),
    ("enable-server", "enableServer", Bool),
    ("enforce-node-allocatable", "enforceNodeAllocatable", List),
    ("event-burst", "eventBurst", Number),
    ("event-qps", "eventRecordQPS", Number),
    ("eviction-hard", "evictionHard", Kind::Map),
    ("eviction-max-pod-grace-period", "evictionMaxPodGracePeriod", Number),
    ("eviction-minimum-reclaim", "evictionMinimumReclaim", Kind::Map),
    ("eviction-pressure-transition-period", "evictionPressureTransitionPeriod", Text),
    ("eviction-soft", "evictionSoft", Kind::Map),
    ("eviction-soft-grace-period", "evictionSoftGracePeriod", Kind::Map),
    ("fail-cgroupv1", "failCgroupV1", Bool),
    ("fail-swap-on", "failSwapOn", Bool),
    ("feature-gates", "featureGates", Switches),
    ("file-check-frequency", "fileCheckFrequency", Text),
    ("hairpin-mode", "hairpinMode", Text),
    ("healthz-bind-address", "healthzBindAddress", Text),
    ("healthz-port", "healthzPort", Number),
    ("http-check-frequency", "httpCheckFrequency", Text),
    ("image-gc-high-threshold", "imageGCHighThresholdPercent", Number),
    ("image-gc-low-threshold", "imageGCLowThresholdPercent", Number),
    ("image-service-endpoint", "imageServiceEndpoint", Text),
    ("kernel-memcg-notification", "kernelMemcgNotification", Bool),
    ("kube-api-burst", "kubeAPIBurst", Number),
    ("kube-api-content-type", "contentType", Text),
    ("kube-api-qps", "kubeAPIQPS", Number),
    ("kube-reserved", "kubeReserved", Kind::Map),
    ("kube-reserved-cgroup", "kubeReservedCgroup", Text),
    ("kubelet-cgroups", "kubeletCgroups", Text),
    ("local-storage-capacity-isolation", "localStorageCapacityIsolation", Bool),
    ("logging-format", "logging.format", Text),
    ("make-iptables-util-chains", "makeIPTablesUtilChains", Bool),
    ("manifest-url", "staticPodURL", Text),
    ("manifest-url-header", "staticPodURLHeader", Headers),
    ("max-open-files", "maxOpenFiles", Number),
    ("max-pods", "maxPods", Number),
    ("memory-manager-policy", "memoryManagerPolicy", Text),
    ("minimum-image-ttl-duration", "imageMinimumGCAge", Text),
    ("node-status-max-images", "nodeStatusMaxImages", Number),
    ("node-status-update-frequency", "nodeStatusUpdateFrequency", Text),
    ("oom-score-adj", "oomScoreAdj", Number),
    ("pod-cidr", "podCIDR", Text),
    ("pod-manifest-path", "staticPodPath", Text),
    ("pod-max-pids", "podPidsLimit", Number),
    ("pods-per-core", "podsPerCore", Number),
    ("port", "port", Number),
    ("protect-kernel-defaults", "protectKernelDefaults", Bool),
    ("provider-id", "providerID", Text),
    ("qos-reserved", "qosReserved", Kind::Map),
    ("read-only-port", "readOnlyPort", Number),
    ("register-node", "registerNode", Bool),
    ("register-with-taints", "registerWithTaints", Taints),
    ("registry-burst", "registryBurst", Number),
    ("registry-qps", "registryPullQPS", Number),
    ("reserved-cpus", "reservedSystemCPUs", Text),
    ("reserved-memory", "reservedMemory", Memory),
    ("resolv-conf", "resolvConf", Text),
    ("rotate-certificates", "rotateCertificates", Bool),
    ("rotate-server-certificates", "serverTLSBootstrap", Bool),
    ("runonce", "runOnce", Bool),
    ("runtime-request-timeout", "runtimeRequestTimeout", Text),
    ("seccomp-default", "seccompDefault", Bool),
    ("serialize-image-pulls", "serializeImagePulls", Bool),
    ("streaming-connection-idle-timeout", "streamingConnectionIdleTimeout", Text),
    ("sync-frequency", "syncFrequency", Text),
    ("system-cgroups", "systemCgroups", Text),
    ("system-reserved", "systemReserved", Kind::Map),
    ("system-reserved-cgroup", "systemReservedCgroup", Text),
    ("tls-cert-file", "tlsCertFile", Text),
    ("tls-cipher-suites", "tlsCipherSuites", List),
    ("tls-min-version", "tlsMinVersion", Text),
    ("tls-private-key-file", "tlsPrivateKeyFile", Text),
    ("topology-manager-policy", "topologyManagerPolicy", Text),
    ("topology-manager-policy-options", "topologyManagerPolicyOptions", Kind::Map),
    ("topology-manager-scope", "topologyManagerScope", Text),
    ("volume-plugin-dir", "volumePluginDir", Text),
    ("volume-stats-agg-period", "volumeStatsAggPeriod", Text),
];

fn pairs<'a>(text: &'a str, signs: &[char]) -> Result<Vec<(&'a str, &'a str)>> {
    let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
    parts.map(|p| p.split_once(signs).with_context(|| format!("{p:?} is not key=value"))).collect()
}

fn value(kind: Kind, text: &str) -> Result<Value> {
    Ok(match kind {
        Text => text.into(),
        Number => text.parse::<i64>().with_context(|| format!("{text:?} is not a number"))?.into(),
        Bool => text.parse::<bool>().with_context(|| format!("{text:?} is neither true nor false"))?.into(),
        List => text.split(',').filter(|t| !t.is_empty()).collect(),
        Kind::Map => {
            let pairs = pairs(text, &['=', '<'])?.into_iter();
            pairs.map(|(k, v)| (k.to_owned(), Value::from(v))).collect::<Map<_, _>>().into()
        }
        Switches => {
            let mut out = Map::new();
            for (name, on) in pairs(text, &['='])? {
                out.insert(name.to_owned(), value(Bool, on)?);
            }
            out.into()
        }
        Taints => {
            let mut out = Vec::new();
            for taint in text.split(',').filter(|t| !t.is_empty()) {
                let Some((what, effect)) = taint.rsplit_once(':') else { bail!("{taint:?} is not key=value:effect") };
                let (key, content) = what.split_once('=').unwrap_or((what, ""));
                let mut one = serde_json::json!({"key": key, "effect": effect});
                if !content.is_empty() {
                    one["value"] = content.into();
                }
                out.push(one);
            }
            out.into()
        }
        Headers => {
            let mut out = Map::new();
            for (name, content) in pairs(text, &[':'])? {
                let list = out.entry(name.to_owned()).or_insert_with(|| Value::Array(Vec::new()));
                list.as_array_mut().into_iter().for_each(|l| l.push(content.into()));
            }
            out.into()
        }
        Memory => {
            let mut out = Vec::new();
            for one in text.split(';').filter(|t| !t.is_empty()) {
                let Some((node, limits)) = one.split_once(':') else { bail!("{one:?} is not node:resource=amount") };
                out.push(serde_json::json!({"numaNode": value(Number, node)?, "limits": value(Kind::Map, limits)?}));
            }
            out.into()
        }
    })
}

/// Puts what flags say over a file's fields. `said` has each flag with its text, in the order of the command line.
///
/// # Errors
/// A text is not what its flag needs; the error names the flag.
pub(crate) fn apply(said: &[(String, String)], fields: &mut Map<String, Value>) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for (flag, text) in said {
        let Some((_, path, kind)) = TABLE.iter().find(|(name, ..)| name == flag) else { continue };
        let new = value(*kind, text).with_context(|| format!("flag --{flag}"))?;
        let mut parts: Vec<&str> = path.split('.').collect();
        let last = parts.pop().unwrap_or_default();
        let mut inner = &mut *fields;
        for part in parts {
            let next = inner.entry(part.to_owned()).or_insert_with(|| Map::new().into());
            if !next.is_object() {
                *next = Map::new().into();
            }
            let Value::Object(object) = next else { bail!("flag --{flag}: field {part} is not an object") };
            inner = object;
        }
        // A repeated flag adds to itself. Over the file a list wins whole, but gates are joined, as upstream does it.
        let again = !seen.insert(flag.clone());
        match (inner.get_mut(last), new) {
            (Some(Value::Array(old)), Value::Array(more)) if again => old.extend(more),
            (Some(Value::Object(old)), Value::Object(more)) if again || *kind == Switches => old.extend(more),
            (_, new) => {
                inner.insert(last.to_owned(), new);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn applied(file: Value, said: &[(&str, &str)]) -> Result<Value> {
        let Value::Object(mut fields) = file else { unreachable!() };
        let said: Vec<_> = said.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        apply(&said, &mut fields)?;
        Ok(fields.into())
    }

    #[test]
    fn texts_become_values() {
        for (flag, text, want) in [
            ("port", "1", json!({"port": 1})),
            ("enable-server", "false", json!({"enableServer": false})),
            ("cluster-dns", "10.0.0.1,10.0.0.2", json!({"clusterDNS": ["10.0.0.1", "10.0.0.2"]})),
            ("client-ca-file", "/ca", json!({"authentication": {"x509": {"clientCAFile": "/ca"}}})),
            (
                "eviction-hard",
                "memory.available<1Gi,nodefs.available<10%",
                json!({"evictionHard": {"memory.available": "1Gi", "nodefs.available": "10%"}}),
            ),
            ("system-reserved", "cpu=1,memory=1Gi", json!({"systemReserved": {"cpu": "1", "memory": "1Gi"}})),
            (
                "register-with-taints",
                "a=b:NoSchedule,c:NoExecute",
                json!({"registerWithTaints": [{"key": "a", "effect": "NoSchedule", "value": "b"}, {"key": "c", "effect": "NoExecute"}]}),
            ),
            ("manifest-url-header", "a:b,a:c", json!({"staticPodURLHeader": {"a": ["b", "c"]}})),
            (
                "reserved-memory",
                "0:memory=1Gi;1:memory=2Gi,hugepages-2Mi=4Mi",
                json!({"reservedMemory": [{"numaNode": 0, "limits": {"memory": "1Gi"}}, {"numaNode": 1, "limits": {"memory": "2Gi", "hugepages-2Mi": "4Mi"}}]}),
            ),
        ] {
            assert_eq!(applied(json!({}), &[(flag, text)]).unwrap(), want, "{flag}");
        }
    }

    #[test]
    fn flags_win_and_gates_are_joined() {
        let file =
            json!({"clusterDNS": ["1.1.1.1"], "featureGates": {"A": true, "B": true}, "evictionHard": {"x": "1"}});
        let said = [
            ("cluster-dns", "2.2.2.2"),
            ("cluster-dns", "3.3.3.3"),
            ("feature-gates", "B=false"),
            ("eviction-hard", "y<2"),
        ];
        assert_eq!(
            applied(file, &said).unwrap(),
            json!({"clusterDNS": ["2.2.2.2", "3.3.3.3"], "featureGates": {"A": true, "B": false}, "evictionHard": {"y": "2"}})
        );
    }

    #[test]
    fn a_wrong_text_names_its_flag() {
        for (flag, text) in
            [("port", "x"), ("enable-server", "yes"), ("system-reserved", "cpu"), ("register-with-taints", "a")]
        {
            let error = format!("{:#}", applied(json!({}), &[(flag, text)]).unwrap_err());
            assert!(error.contains(&format!("--{flag}")), "{error}");
        }
    }
}
