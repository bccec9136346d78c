//! Which columns each resource has.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::workload::{CRON_JOBS, DAEMON_SETS, DEPLOYMENTS, JOBS, REPLICA_SETS, STATEFUL_SETS};
use super::{AGE, Column, NAME, col, labels, list, or_none, pod, since, text, wide};
use crate::resource::Resource;

pub(super) fn of(resource: &Resource) -> &'static [Column] {
    match (resource.group, resource.plural) {
        ("", "pods") => pod::COLUMNS,
        ("", "nodes") => NODES,
        ("", "namespaces") => NAMESPACES,
        ("", "configmaps") => CONFIG_MAPS,
        ("", "secrets") => SECRETS,
        ("", "serviceaccounts") => SERVICE_ACCOUNTS,
        ("", "services") => SERVICES,
        ("", "endpoints") => ENDPOINTS,
        ("", "persistentvolumes") => VOLUMES,
        ("", "persistentvolumeclaims") => CLAIMS,
        ("", "limitranges") => LIMIT_RANGES,
        ("", "replicationcontrollers") | ("apps", "replicasets") => REPLICA_SETS,
        (_, "events") => EVENTS,
        ("apps", "deployments") => DEPLOYMENTS,
        ("apps", "daemonsets") => DAEMON_SETS,
        ("apps", "statefulsets") => STATEFUL_SETS,
        ("apps", "controllerrevisions") => REVISIONS,
        ("batch", "jobs") => JOBS,
        ("batch", "cronjobs") => CRON_JOBS,
        ("certificates.k8s.io", _) => SIGNING_REQUESTS,
        ("coordination.k8s.io", "leases") => LEASES,
        ("discovery.k8s.io", "endpointslices") => SLICES,
        ("networking.k8s.io", "ingresses") => INGRESSES,
        ("networking.k8s.io", "ingressclasses") => INGRESS_CLASSES,
        ("networking.k8s.io", "networkpolicies") => POLICIES,
        ("node.k8s.io", "runtimeclasses") => RUNTIME_CLASSES,
        ("policy", "poddisruptionbudgets") => BUDGETS,
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") => ROLES,
        ("rbac.authorization.k8s.io", _) => BINDINGS,
        ("scheduling.k8s.io", "priorityclasses") => PRIORITY_CLASSES,
        ("storage.k8s.io", "storageclasses") => STORAGE_CLASSES,
        ("storage.k8s.io", "csidrivers") => CSI_DRIVERS,
        ("storage.k8s.io", "csinodes") => CSI_NODES,
        ("storage.k8s.io", "volumeattachments") => ATTACHMENTS,
        _ => &[NAME, AGE],
    }
}

const CREATED_AT: Column = col("Created At", "string", |o, _| o["metadata"]["creationTimestamp"].clone());

const NODES: &[Column] = &[
    NAME,
    col("Status", "string", |node, _| {
        let ready = list(&node["status"], "conditions").iter().find(|c| text(c, "type") == "Ready");
        let mut out = match ready.map(|condition| text(condition, "status")) {
            Some("True") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }
        .to_owned();
        if node["spec"]["unschedulable"] == true {
            out += ",SchedulingDisabled";
        }
        json!(out)
    }),
    col("Roles", "string", |node, _| {
        let mut roles: Vec<&str> = Vec::new();
        for (key, value) in node["metadata"]["labels"].as_object().into_iter().flatten() {
            match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) if !role.is_empty() => roles.push(role),
                _ if key == "kubernetes.io/role" => roles.extend(value.as_str().filter(|role| !role.is_empty())),
                _ => {}
            }
        }
        roles.sort_unstable();
        roles.dedup();
        or_none(roles.join(","))
    }),
    AGE,
    col("Version", "string", |node, _| json!(text(&node["status"]["nodeInfo"], "kubeletVersion"))),
    wide("Internal-IP", "string", |node, _| address(node, "InternalIP")),
    wide("External-IP", "string", |node, _| address(node, "ExternalIP")),
    wide("OS-Image", "string", |node, _| info(node, "osImage")),
    wide("Kernel-Version", "string", |node, _| info(node, "kernelVersion")),
    wide("Container-Runtime", "string", |node, _| info(node, "containerRuntimeVersion")),
];

fn address(node: &Value, kind: &str) -> Value {
    let found = list(&node["status"], "addresses").iter().find(|address| text(address, "type") == kind);
    or_none(found.map_or("", |address| text(address, "address")))
}

fn info(node: &Value, key: &str) -> Value {
    match text(&node["status"]["nodeInfo"], key) {
        "" => json!("<unknown>"),
        known => json!(known),
    }
}

const NAMESPACES: &[Column] = &[NAME, col("Status", "string", |o, _| json!(text(&o["status"], "phase"))), AGE];

fn size(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len)
}

const CONFIG_MAPS: &[Column] =
    &[NAME, col("Data", "string", |o, _| json!((size(&o["data"]) + size(&o["binaryData"])).to_string())), AGE];
const SECRETS: &[Column] = &[
    NAME,
    col("Type", "string", |o, _| json!(text(o, "type"))),
    col("Data", "string", |o, _| json!(size(&o["data"]).to_string())),
    AGE,
];
const SERVICE_ACCOUNTS: &[Column] =
    &[NAME, col("Secrets", "string", |o, _| json!(list(o, "secrets").len().to_string())), AGE];

const SERVICES: &[Column] = &[
    NAME,
    col("Type", "string", |o, _| json!(text(&o["spec"], "type"))),
    col("Cluster-IP", "string", |o, _| {
        let ips: Vec<&str> = list(&o["spec"], "clusterIPs").iter().filter_map(Value::as_str).collect();
        or_none(ips.first().copied().unwrap_or(text(&o["spec"], "clusterIP")))
    }),
    col("External-IP", "string", |o, _| {
        let mut out: Vec<&str> = list(&o["spec"], "externalIPs").iter().filter_map(Value::as_str).collect();
        for ingress in list(&o["status"]["loadBalancer"], "ingress") {
            out.push(if text(ingress, "ip").is_empty() { text(ingress, "hostname") } else { text(ingress, "ip") });
        }
        match (text(&o["spec"], "type"), out.is_empty()) {
            ("ExternalName", _) => json!(text(&o["spec"], "externalName")),
            ("LoadBalancer", true) => json!("<pending>"),
            _ => or_none(out.join(",")),
        }
    }),
    col("Port(s)", "string", |o, _| {
        let port = |p: &Value| {
            let (number, protocol) = (p["port"].as_i64().unwrap_or(0), text(p, "protocol"));
            match p["nodePort"].as_i64() {
                Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        };
        or_none(list(&o["spec"], "ports").iter().map(port).collect::<Vec<_>>().join(","))
    }),
    AGE,
    wide("Selector", "string", |o, _| labels(&o["spec"]["selector"])),
];

fn some_of(mut all: Vec<String>, limit: usize) -> Value {
    let more = all.len().saturating_sub(limit);
    all.truncate(limit);
    let more = if more > 0 { format!(" + {more} more...") } else { String::new() };
    or_none(all.join(",") + &more)
}

const ENDPOINTS: &[Column] = &[
    NAME,
    col("Endpoints", "string", |o, _| {
        let mut out = Vec::new();
        for subset in list(o, "subsets") {
            for address in list(subset, "addresses") {
                let ip = text(address, "ip");
                let ports = list(subset, "ports");
                if ports.is_empty() {
                    out.push(ip.to_owned());
                }
                out.extend(ports.iter().map(|port| format!("{ip}:{}", port["port"])));
            }
        }
        some_of(out, 3)
    }),
    AGE,
];

const SLICES: &[Column] = &[
    NAME,
    col("AddressType", "string", |o, _| json!(text(o, "addressType"))),
    col("Ports", "string", |o, _| {
        let ports = list(o, "ports").iter().map(|p| p["port"].as_i64().map_or("*".to_owned(), |n| n.to_string()));
        match some_of(ports.collect(), 3) {
            none if none == "<none>" => json!("<unset>"),
            some => some,
        }
    }),
    col("Endpoints", "string", |o, _| {
        let all = list(o, "endpoints").iter().flat_map(|e| list(e, "addresses"));
        match some_of(all.filter_map(|a| a.as_str().map(str::to_owned)).collect(), 3) {
            none if none == "<none>" => json!("<unset>"),
            some => some,
        }
    }),
    AGE,
];

const EVENTS: &[Column] = &[
    col("Last Seen", "string", |o, now| {
        let first = [&o["series"]["lastObservedTime"], &o["lastTimestamp"], &o["eventTime"], &o["firstTimestamp"]];
        let seen = first.into_iter().find(|time| time.is_string());
        json!(since(seen.unwrap_or(&o["metadata"]["creationTimestamp"]), now))
    }),
    col("Type", "string", |o, _| json!(text(o, "type"))),
    col("Reason", "string", |o, _| json!(text(o, "reason"))),
    col("Object", "string", |o, _| {
        let about = if o["involvedObject"].is_object() { &o["involvedObject"] } else { &o["regarding"] };
        let kind = text(about, "kind").to_lowercase();
        let name = text(about, "name");
        json!(if name.is_empty() { kind } else { format!("{kind}/{name}") })
    }),
    wide("Subobject", "string", |o, _| json!(text(&o["involvedObject"], "fieldPath"))),
    wide("Source", "string", |o, _| {
        let (component, host) = (text(&o["source"], "component"), text(&o["source"], "host"));
        json!(match (component, host) {
            ("", _) => text(o, "reportingComponent").to_owned(),
            (component, "") => component.to_owned(),
            (component, host) => format!("{component}, {host}"),
        })
    }),
    col("Message", "string", |o, _| {
        let message = if text(o, "message").is_empty() { text(o, "note") } else { text(o, "message") };
        json!(message.trim())
    }),
    wide("First Seen", "string", |o, now| {
        let first = if o["firstTimestamp"].is_string() { &o["firstTimestamp"] } else { &o["eventTime"] };
        json!(since(if first.is_string() { first } else { &o["metadata"]["creationTimestamp"] }, now))
    }),
    wide("Count", "string", |o, _| {
        let count = o["series"]["count"].as_i64().or(o["count"].as_i64()).filter(|count| *count > 0);
        json!(count.unwrap_or(1).to_string())
    }),
    Column { priority: 1, ..NAME },
];

const LEASES: &[Column] = &[NAME, col("Holder", "string", |o, _| json!(text(&o["spec"], "holderIdentity"))), AGE];
const REVISIONS: &[Column] = &[
    NAME,
    col("Controller", "string", |o, _| {
        let owner = list(&o["metadata"], "ownerReferences").iter().find(|owner| owner["controller"] == true);
        or_none(owner.map_or(String::new(), |owner| {
            let (group, _) = crate::resource::split_api_version(text(owner, "apiVersion"));
            let kind = text(owner, "kind").to_lowercase();
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", text(owner, "name"))
        }))
    }),
    col("Revision", "string", |o, _| json!(o["revision"].as_i64().unwrap_or(0))),
    AGE,
];

fn modes(spec: &Value) -> String {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    };
    list(spec, "accessModes").iter().map(short).collect::<Vec<_>>().join(",")
}

const VOLUMES: &[Column] = &[
    NAME,
    col("Capacity", "string", |o, _| json!(text(&o["spec"]["capacity"], "storage"))),
    col("Access Modes", "string", |o, _| json!(modes(&o["spec"]))),
    col("Reclaim Policy", "string", |o, _| json!(text(&o["spec"], "persistentVolumeReclaimPolicy"))),
    col("Status", "string", |o, _| json!(phase(o))),
    col("Claim", "string", |o, _| {
        let claim = &o["spec"]["claimRef"];
        json!(if claim.is_object() {
            format!("{}/{}", text(claim, "namespace"), text(claim, "name"))
        } else {
            String::new()
        })
    }),
    col("StorageClass", "string", |o, _| json!(text(&o["spec"], "storageClassName"))),
    col("VolumeAttributesClass", "string", |o, _| match text(&o["spec"], "volumeAttributesClassName") {
        "" => json!("<unset>"),
        name => json!(name),
    }),
    col("Reason", "string", |o, _| json!(text(&o["status"], "reason"))),
    AGE,
    wide("VolumeMode", "string", |o, _| json!(text(&o["spec"], "volumeMode"))),
];

fn phase(object: &Value) -> &str {
    if object["metadata"]["deletionTimestamp"].is_string() { "Terminating" } else { text(&object["status"], "phase") }
}

const CLAIMS: &[Column] = &[
    NAME,
    col("Status", "string", |o, _| json!(phase(o))),
    col("Volume", "string", |o, _| json!(text(&o["spec"], "volumeName"))),
    col("Capacity", "string", |o, _| json!(text(&o["status"]["capacity"], "storage"))),
    col("Access Modes", "string", |o, _| json!(modes(&o["status"]))),
    col("StorageClass", "string", |o, _| json!(text(&o["spec"], "storageClassName"))),
    col("VolumeAttributesClass", "string", |o, _| match text(&o["spec"], "volumeAttributesClassName") {
        "" => json!("<unset>"),
        name => json!(name),
    }),
    AGE,
    wide("VolumeMode", "string", |o, _| json!(text(&o["spec"], "volumeMode"))),
];

const LIMIT_RANGES: &[Column] = &[NAME, CREATED_AT];
const ROLES: &[Column] = &[NAME, CREATED_AT];
const BINDINGS: &[Column] = &[
    NAME,
    col("Role", "string", |o, _| json!(format!("{}/{}", text(&o["roleRef"], "kind"), text(&o["roleRef"], "name")))),
    AGE,
    wide("Users", "string", |o, _| subjects(o, "User")),
    wide("Groups", "string", |o, _| subjects(o, "Group")),
    wide("ServiceAccounts", "string", |o, _| subjects(o, "ServiceAccount")),
];

fn subjects(binding: &Value, kind: &str) -> Value {
    let of_kind = list(binding, "subjects").iter().filter(|subject| text(subject, "kind") == kind);
    let names = of_kind.map(|subject| match text(subject, "namespace") {
        "" => text(subject, "name").to_owned(),
        namespace => format!("{namespace}/{}", text(subject, "name")),
    });
    json!(names.collect::<Vec<_>>().join(", "))
}

const SIGNING_REQUESTS: &[Column] = &[
    NAME,
    AGE,
    col("SignerName", "string", |o, _| json!(text(&o["spec"], "signerName"))),
    col("Requestor", "string", |o, _| json!(text(&o["spec"], "username"))),
    col("RequestedDuration", "string", |o, _| match o["spec"]["expirationSeconds"].as_i64() {
        Some(seconds) => json!(super::duration(seconds)),
        None => json!("<none>"),
    }),
    col("Condition", "string", |o, _| {
        let mut out: Vec<&str> = list(&o["status"], "conditions").iter().map(|c| text(c, "type")).collect();
        if out.is_empty() {
            out.push("Pending");
        }
        if !text(&o["status"], "certificate").is_empty() {
            out.push("Issued");
        }
        json!(out.join(","))
    }),
];

const INGRESSES: &[Column] = &[
    NAME,
    col("Class", "string", |o, _| or_none(text(&o["spec"], "ingressClassName"))),
    col("Hosts", "string", |o, _| {
        let hosts = list(&o["spec"], "rules").iter().map(|rule| text(rule, "host").to_owned());
        match some_of(hosts.filter(|host| !host.is_empty()).collect(), 3) {
            none if none == "<none>" => json!("*"),
            some => some,
        }
    }),
    col("Address", "string", |o, _| {
        let ingress = list(&o["status"]["loadBalancer"], "ingress").iter();
        let addresses = ingress.map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") });
        json!(addresses.collect::<Vec<_>>().join(","))
    }),
    col("Ports", "string", |o, _| json!(if list(&o["spec"], "tls").is_empty() { "80" } else { "80, 443" })),
    AGE,
];
const INGRESS_CLASSES: &[Column] = &[
    NAME,
    col("Controller", "string", |o, _| json!(text(&o["spec"], "controller"))),
    col("Parameters", "string", |o, _| {
        let parameters = &o["spec"]["parameters"];
        match (text(parameters, "apiGroup"), text(parameters, "kind"), text(parameters, "name")) {
            (_, "", _) => json!("<none>"),
            ("", kind, name) => json!(format!("{kind}/{name}")),
            (group, kind, name) => json!(format!("{kind}.{group}/{name}")),
        }
    }),
    AGE,
];
const POLICIES: &[Column] =
    &[NAME, col("Pod-Selector", "string", |o, _| labels(&o["spec"]["podSelector"]["matchLabels"])), AGE];
const RUNTIME_CLASSES: &[Column] = &[NAME, col("Handler", "string", |o, _| json!(text(o, "handler"))), AGE];

fn int_or_text(value: &Value) -> Value {
    match value {
        Value::Null => json!("N/A"),
        Value::String(text) => json!(text),
        other => json!(other.to_string()),
    }
}

const BUDGETS: &[Column] = &[
    NAME,
    col("Min Available", "string", |o, _| int_or_text(&o["spec"]["minAvailable"])),
    col("Max Unavailable", "string", |o, _| int_or_text(&o["spec"]["maxUnavailable"])),
    col("Allowed Disruptions", "integer", |o, _| json!(o["status"]["disruptionsAllowed"].as_i64().unwrap_or(0))),
    AGE,
];
const PRIORITY_CLASSES: &[Column] = &[
    NAME,
    col("Value", "integer", |o, _| json!(o["value"].as_i64().unwrap_or(0))),
    col("Global-Default", "boolean", |o, _| json!(o["globalDefault"] == true)),
    AGE,
    col("PreemptionPolicy", "string", |o, _| json!(text(o, "preemptionPolicy"))),
];
const STORAGE_CLASSES: &[Column] = &[
    Column {
        cell: |o, _| {
            let default = &o["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"];
            let name = text(&o["metadata"], "name");
            json!(if default == "true" { format!("{name} (default)") } else { name.to_owned() })
        },
        ..NAME
    },
    col("Provisioner", "string", |o, _| json!(text(o, "provisioner"))),
    col("ReclaimPolicy", "string", |o, _| json!(text(o, "reclaimPolicy"))),
    col("VolumeBindingMode", "string", |o, _| json!(text(o, "volumeBindingMode"))),
    col("AllowVolumeExpansion", "string", |o, _| json!(o["allowVolumeExpansion"] == true)),
    AGE,
];
const CSI_DRIVERS: &[Column] = &[
    NAME,
    col("AttachRequired", "boolean", |o, _| json!(o["spec"]["attachRequired"] != false)),
    col("PodInfoOnMount", "boolean", |o, _| json!(o["spec"]["podInfoOnMount"] == true)),
    col("StorageCapacity", "boolean", |o, _| json!(o["spec"]["storageCapacity"] == true)),
    col("Modes", "string", |o, _| {
        let modes: Vec<&str> = list(&o["spec"], "volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
        or_none(modes.join(","))
    }),
    AGE,
];
const CSI_NODES: &[Column] = &[NAME, col("Drivers", "integer", |o, _| json!(list(&o["spec"], "drivers").len())), AGE];
const ATTACHMENTS: &[Column] = &[
    NAME,
    col("Attacher", "string", |o, _| json!(text(&o["spec"], "attacher"))),
    col("PV", "string", |o, _| json!(text(&o["spec"]["source"], "persistentVolumeName"))),
    col("Node", "string", |o, _| json!(text(&o["spec"], "nodeName"))),
    col("Attached", "boolean", |o, _: Timestamp| json!(o["status"]["attached"] == true)),
    AGE,
];
