//! A pod's resolv.conf by its DNS policy.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use proto::cri::DnsConfig;

use super::{host_network, namespace, spec};

const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
/// Characters of all search domains together, with the spaces between them.
const MAX_SEARCH_LENGTH: usize = 2048;

/// What pods may inherit.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeDns {
    /// The cluster's DNS servers.
    pub(crate) cluster: Vec<String>,
    /// The cluster's domain; may be empty.
    pub(crate) domain: String,
    /// The node's own configuration.
    pub(crate) node: NodeResolv,
}

/// The node's resolv.conf: read again when a pod needs it, since DHCP and people change it while the kubelet runs.
#[derive(Clone, Debug)]
pub(crate) enum NodeResolv {
    /// As it is.
    #[cfg(test)]
    Known(DnsConfig),
    /// A file; an empty path is an empty configuration.
    File(PathBuf),
}

impl Default for NodeResolv {
    fn default() -> Self {
        Self::File(PathBuf::new())
    }
}

impl NodeResolv {
    fn read(&self) -> DnsConfig {
        match self {
            #[cfg(test)]
            Self::Known(config) => config.clone(),
            Self::File(path) if path.as_os_str().is_empty() => DnsConfig::default(),
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => parse_resolv_conf(&text),
                Err(e) => {
                    let path = path.display();
                    tracing::warn!(%path, error = %e, "resolvConf not read: pods with dnsPolicy Default get no servers");
                    DnsConfig::default()
                }
            },
        }
    }
}

/// Reads a resolv.conf file.
fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut out = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
            Some("search") => out.searches = words.map(str::to_owned).collect(),
            Some("options") => out.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    out
}

/// The DNS configuration of a pod.
pub(crate) fn dns_config(pod: &Pod, dns: &NodeDns) -> DnsConfig {
    formed(pod, dns).0
}

/// What the user should know of a pod's DNS configuration: reasons and messages of events, in upstream's words.
pub(crate) fn dns_warnings(pod: &Pod, dns: &NodeDns) -> Vec<(&'static str, String)> {
    formed(pod, dns).1
}

fn formed(pod: &Pod, dns: &NodeDns) -> (DnsConfig, Vec<(&'static str, String)>) {
    let mut warnings = Vec::new();
    let spec = spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut out = if policy == "None" {
        DnsConfig::default()
    } else if cluster && !dns.cluster.is_empty() {
        let mut searches = Vec::new();
        if !dns.domain.is_empty() {
            searches.push(format!("{}.svc.{}", namespace(pod), dns.domain));
            searches.push(format!("svc.{}", dns.domain));
            searches.push(dns.domain.clone());
        }
        searches.extend(dns.node.read().searches);
        DnsConfig { servers: dns.cluster.clone(), searches, options: vec!["ndots:5".into()] }
    } else {
        if cluster {
            let text = format!(
                "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. \
                 Falling back to \"Default\" policy.",
                super::full(pod)
            );
            warnings.push(("MissingClusterDNS", text));
        }
        dns.node.read()
    };
    if let Some(more) = spec.dns_config {
        out.servers.extend(more.nameservers.unwrap_or_default());
        out.searches.extend(more.searches.unwrap_or_default());
        for option in more.options.into_iter().flatten() {
            let Some(name) = option.name else { continue };
            out.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            out.options.push(option.value.map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut cut = unique(&mut out.servers, MAX_SERVERS);
    if cut {
        let line = out.servers.join(" ");
        let text = format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}"
        );
        warnings.push(("DNSConfigForming", text));
    }
    cut = unique(&mut out.searches, MAX_SEARCHES);
    while out.searches.iter().map(|s| s.len() + 1).sum::<usize>() > MAX_SEARCH_LENGTH + 1 {
        out.searches.pop();
        cut = true;
    }
    if cut {
        let line = out.searches.join(" ");
        let text = format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}"
        );
        warnings.push(("DNSConfigForming", text));
    }
    (out, warnings)
}

/// Leaves each item once, and no more than `most`; tells whether some were too many.
fn unique(list: &mut Vec<String>, most: usize) -> bool {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
    let many = list.len() > most;
    list.truncate(most);
    many
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies_give_their_resolv_conf() {
        let node = parse_resolv_conf("# x\nnameserver 192.0.2.1\nsearch lan\noptions edns0\n");
        let dns = NodeDns {
            cluster: vec!["10.96.0.10".into()],
            domain: "cluster.local".into(),
            node: NodeResolv::Known(node),
        };
        let pod = |spec| serde_json::from_value::<Pod>(json!({"metadata": {"namespace": "ns"}, "spec": spec})).unwrap();
        let first = dns_config(&pod(json!({"containers": []})), &dns);
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(first.searches, ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"]);
        assert_eq!(first.options, ["ndots:5"]);
        for spec in [json!({"containers": [], "dnsPolicy": "Default"}), json!({"containers": [], "hostNetwork": true})]
        {
            assert_eq!(dns_config(&pod(spec), &dns).servers, ["192.0.2.1"]);
        }
        let own = json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"],
            "searches": ["a"], "options": [{"name": "ndots", "value": "3"}, {"name": "rotate"}]}});
        let none = dns_config(&pod(own), &dns);
        assert_eq!(
            (none.servers, none.options),
            (vec!["192.0.2.53".to_owned()], vec!["ndots:3".to_owned(), "rotate".to_owned()])
        );
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_told() {
        let cluster = |cluster: &[&str]| NodeDns {
            cluster: cluster.iter().map(|s| (*s).to_owned()).collect(),
            domain: "cluster.local".into(),
            ..NodeDns::default()
        };
        let pod = |dns: serde_json::Value| -> Pod {
            let spec = json!({"containers": [], "dnsConfig": dns});
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})).unwrap()
        };
        let words = |pod: &Pod, dns: &NodeDns| dns_warnings(pod, dns).into_iter().map(|w| w.0).collect::<Vec<_>>();
        let plain = pod(json!({}));
        assert_eq!(words(&plain, &cluster(&["10.0.0.1"])), [""; 0]);
        assert_eq!(words(&plain, &cluster(&[])), ["MissingClusterDNS"]);
        let four = cluster(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert_eq!(words(&plain, &four), ["DNSConfigForming"]);
        let text = &dns_warnings(&plain, &four)[0].1;
        assert!(text.ends_with("nameserver line is: 10.0.0.1 10.0.0.2 10.0.0.3"), "{text}");
        let many: Vec<String> = (0..40).map(|n| format!("s{n}")).collect();
        assert_eq!(dns_config(&pod(json!({ "searches": many })), &four).searches.len(), 32);
        let long: Vec<String> = (0..20).map(|n| format!("{n}{}", "x".repeat(200))).collect();
        let formed = dns_config(&pod(json!({ "searches": long })), &four);
        assert!(formed.searches.join(" ").len() <= 2048 && formed.searches.len() > 5);
        // A static pod's node network needs no DNS of the cluster.
        let mut host = plain;
        host.spec.as_mut().unwrap().host_network = Some(true);
        assert_eq!(words(&host, &cluster(&[])), [""; 0]);
    }

    #[test]
    fn a_changed_resolv_conf_is_used() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let dns = NodeDns { node: NodeResolv::File(file.path().to_owned()), ..NodeDns::default() };
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "dnsPolicy": "Default"}})).unwrap();
        for server in ["192.0.2.1", "192.0.2.2"] {
            std::fs::write(file.path(), format!("nameserver {server}\n")).unwrap();
            assert_eq!(dns_config(&pod, &dns).servers, [server]);
        }
        assert_eq!(dns_config(&pod, &NodeDns::default()).servers, Vec::<String>::new());
    }
}
