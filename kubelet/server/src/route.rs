//! Which request means what: paths and methods to a route, and paths to what authorization is asked for.

use http::Method;

use crate::{ContainerRef, PodRef};

/// A request, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// All checks, or one.
    Healthz(Option<String>),
    Pods,
    RunningPods,
    Metrics(Metrics),
    StatsSummary,
    ContainerLogs(ContainerRef),
    Exec(ContainerRef),
    Attach(ContainerRef),
    PortForward(PodRef),
    Run(ContainerRef),
    Configz,
    Checkpoint(ContainerRef),
    Flagz,
    Statusz,
    /// Sets the verbosity of the log.
    Verbosity,
    /// A profile of the process by name; empty for the list of them.
    Profile(String),
    /// A path below the system's logs, decoded; ends in `/` or is empty for a folder.
    SystemLogs(String),
}

/// Which metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metrics {
    Kubelet,
    Cadvisor,
    Resource,
    Probes,
    Slis,
}

impl Route {
    /// The path's first part, for metrics, and whether requests may last as long as they like.
    pub(crate) fn label(&self) -> (&'static str, bool) {
        match self {
            Self::Healthz(_) => ("healthz", false),
            Self::Pods => ("pods", false),
            Self::RunningPods => ("runningpods", false),
            Self::Metrics(Metrics::Kubelet) => ("metrics", false),
            Self::Metrics(Metrics::Cadvisor) => ("metrics/cadvisor", false),
            Self::Metrics(Metrics::Resource) => ("metrics/resource", false),
            Self::Metrics(Metrics::Probes) => ("metrics/probes", false),
            Self::Metrics(Metrics::Slis) => ("metrics/slis", false),
            Self::StatsSummary => ("stats", false),
            Self::ContainerLogs(_) => ("containerLogs", true),
            Self::Exec(_) => ("exec", true),
            Self::Attach(_) => ("attach", true),
            Self::PortForward(_) => ("portForward", true),
            Self::Run(_) => ("run", false),
            Self::Configz => ("configz", false),
            Self::Checkpoint(_) => ("checkpoint", false),
            Self::Flagz => ("flagz", false),
            Self::Statusz => ("statusz", false),
            Self::Verbosity => ("debug", false),
            Self::Profile(_) => ("pprof", false),
            Self::SystemLogs(_) => ("logs", false),
        }
    }
}

/// Why a request has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    NotFound,
    MethodNotAllowed,
}

impl Route {
    /// Whether the route runs or shows what containers do, and so can be switched off.
    pub(crate) fn is_debugging(&self) -> bool {
        matches!(
            self,
            Self::RunningPods
                | Self::ContainerLogs(_)
                | Self::Exec(_)
                | Self::Attach(_)
                | Self::PortForward(_)
                | Self::Run(_)
                | Self::Configz
                | Self::Flagz
                | Self::Verbosity
                | Self::Profile(_)
                | Self::SystemLogs(_)
        )
    }
}

/// Finds the route.
pub(crate) fn find(method: &Method, path: &str) -> Result<Route, NoRoute> {
    let mut parts = Vec::new();
    for part in path.split('/').filter(|p| !p.is_empty()) {
        let part = percent_encoding::percent_decode_str(part).decode_utf8().map_err(|_| NoRoute::NotFound)?;
        parts.push(part.into_owned());
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let get = &[Method::GET][..];
    let stream = &[Method::GET, Method::POST][..];
    let (route, methods) = match parts[..] {
        ["healthz"] => (Route::Healthz(None), get),
        ["healthz", check] => (Route::Healthz(Some(check.to_owned())), get),
        ["pods"] => (Route::Pods, get),
        ["runningpods"] => (Route::RunningPods, get),
        ["metrics"] => (Route::Metrics(Metrics::Kubelet), get),
        ["metrics", "cadvisor"] => (Route::Metrics(Metrics::Cadvisor), get),
        ["metrics", "resource"] => (Route::Metrics(Metrics::Resource), get),
        ["metrics", "probes"] => (Route::Metrics(Metrics::Probes), get),
        ["metrics", "slis"] => (Route::Metrics(Metrics::Slis), get),
        ["stats", "summary"] => (Route::StatsSummary, stream),
        ["containerLogs", namespace, pod, container] => {
            (Route::ContainerLogs(container_ref(namespace, pod, None, container)), get)
        }
        ["exec", namespace, pod, container] => (Route::Exec(container_ref(namespace, pod, None, container)), stream),
        ["exec", namespace, pod, uid, container] => {
            (Route::Exec(container_ref(namespace, pod, Some(uid), container)), stream)
        }
        ["attach", namespace, pod, container] => {
            (Route::Attach(container_ref(namespace, pod, None, container)), stream)
        }
        ["attach", namespace, pod, uid, container] => {
            (Route::Attach(container_ref(namespace, pod, Some(uid), container)), stream)
        }
        ["portForward", namespace, pod] => (Route::PortForward(pod_ref(namespace, pod, None)), stream),
        ["portForward", namespace, pod, uid] => (Route::PortForward(pod_ref(namespace, pod, Some(uid))), stream),
        ["run", namespace, pod, container] => {
            (Route::Run(container_ref(namespace, pod, None, container)), &[Method::POST][..])
        }
        ["run", namespace, pod, uid, container] => {
            (Route::Run(container_ref(namespace, pod, Some(uid), container)), &[Method::POST][..])
        }
        ["configz"] => (Route::Configz, get),
        ["flagz"] => (Route::Flagz, get),
        ["statusz"] => (Route::Statusz, get),
        ["debug", "flags", "v"] => (Route::Verbosity, &[Method::PUT][..]),
        ["checkpoint", namespace, pod, container] => {
            (Route::Checkpoint(container_ref(namespace, pod, None, container)), &[Method::POST][..])
        }
        ["logs", ref rest @ ..] => {
            let slash = if path.ends_with('/') && !rest.is_empty() { "/" } else { "" };
            (Route::SystemLogs(format!("{}{slash}", rest.join("/"))), get)
        }
        ["debug", "pprof"] => (Route::Profile(String::new()), get),
        ["debug", "pprof", name] => (Route::Profile(name.to_owned()), get),
        _ => return Err(NoRoute::NotFound),
    };
    let allowed = methods.contains(method) || (*method == Method::HEAD && methods.contains(&Method::GET));
    if allowed { Ok(route) } else { Err(NoRoute::MethodNotAllowed) }
}

fn pod_ref(namespace: &str, name: &str, uid: Option<&str>) -> PodRef {
    PodRef { namespace: namespace.into(), name: name.into(), uid: uid.map(str::to_owned) }
}

fn container_ref(namespace: &str, pod: &str, uid: Option<&str>, container: &str) -> ContainerRef {
    ContainerRef { pod: pod_ref(namespace, pod, uid), container: container.into() }
}

/// The verb of the authorization check.
pub(crate) fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// The subresources of `nodes/<name>` of which one must be allowed.
pub(crate) fn subresources(path: &str) -> &'static [&'static str] {
    let below = |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    if below("/stats") {
        &["stats"]
    } else if below("/metrics") {
        &["metrics"]
    } else if below("/logs") {
        &["log"]
    } else if below("/checkpoint") {
        &["checkpoint"]
    } else if below("/pods") || below("/runningpods") {
        &["pods", "proxy"]
    } else if below("/healthz") {
        &["healthz", "proxy"]
    } else if below("/configz") {
        &["configz", "proxy"]
    } else if below("/statusz") {
        &["statusz"]
    } else if below("/flagz") {
        &["configz"]
    } else {
        &["proxy"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_their_routes() {
        let c = |uid| container_ref("ns", "p", uid, "c");
        for (method, path, want) in [
            ("GET", "/healthz", Ok(Route::Healthz(None))),
            ("GET", "/healthz/syncloop", Ok(Route::Healthz(Some("syncloop".into())))),
            ("POST", "/healthz", Err(NoRoute::MethodNotAllowed)),
            ("GET", "/pods", Ok(Route::Pods)),
            ("GET", "/pods/", Ok(Route::Pods)),
            ("GET", "/runningpods/", Ok(Route::RunningPods)),
            ("GET", "/metrics", Ok(Route::Metrics(Metrics::Kubelet))),
            ("GET", "/metrics/cadvisor", Ok(Route::Metrics(Metrics::Cadvisor))),
            ("GET", "/metrics/resource", Ok(Route::Metrics(Metrics::Resource))),
            ("GET", "/metrics/probes", Ok(Route::Metrics(Metrics::Probes))),
            ("GET", "/metrics/other", Err(NoRoute::NotFound)),
            ("GET", "/stats/summary", Ok(Route::StatsSummary)),
            ("POST", "/stats/summary", Ok(Route::StatsSummary)),
            ("GET", "/containerLogs/ns/p/c", Ok(Route::ContainerLogs(c(None)))),
            ("POST", "/containerLogs/ns/p/c", Err(NoRoute::MethodNotAllowed)),
            ("GET", "/containerLogs/ns/p", Err(NoRoute::NotFound)),
            ("GET", "/exec/ns/p/c", Ok(Route::Exec(c(None)))),
            ("POST", "/exec/ns/p/u/c", Ok(Route::Exec(c(Some("u"))))),
            ("DELETE", "/exec/ns/p/c", Err(NoRoute::MethodNotAllowed)),
            ("GET", "/attach/ns/p/u/c", Ok(Route::Attach(c(Some("u"))))),
            ("POST", "/portForward/ns/p", Ok(Route::PortForward(pod_ref("ns", "p", None)))),
            ("GET", "/portForward/ns/p/u", Ok(Route::PortForward(pod_ref("ns", "p", Some("u"))))),
            ("POST", "/run/ns/p/c", Ok(Route::Run(c(None)))),
            ("GET", "/run/ns/p/c", Err(NoRoute::MethodNotAllowed)),
            ("GET", "/configz", Ok(Route::Configz)),
            ("GET", "/logs/", Ok(Route::SystemLogs(String::new()))),
            ("GET", "/logs/pods/a%20b", Ok(Route::SystemLogs("pods/a b".into()))),
            ("GET", "/logs/pods/", Ok(Route::SystemLogs("pods/".into()))),
            ("GET", "/", Err(NoRoute::NotFound)),
            ("GET", "/checkpoint/ns/p/c", Err(NoRoute::MethodNotAllowed)),
            ("POST", "/checkpoint/ns/p/c", Ok(Route::Checkpoint(c(None)))),
            ("PUT", "/debug/flags/v", Ok(Route::Verbosity)),
            ("GET", "/debug/pprof/", Ok(Route::Profile(String::new()))),
            ("GET", "/debug/pprof/heap", Ok(Route::Profile("heap".into()))),
            ("POST", "/debug/pprof/heap", Err(NoRoute::MethodNotAllowed)),
            ("GET", "/metrics/slis", Ok(Route::Metrics(Metrics::Slis))),
            ("GET", "/statusz", Ok(Route::Statusz)),
        ] {
            assert_eq!(find(&method.parse().unwrap(), path), want, "{method} {path}");
        }
    }

    #[test]
    fn subresources_follow_the_path() {
        for (path, want) in [
            ("/pods", &["pods", "proxy"][..]),
            ("/runningpods/", &["pods", "proxy"]),
            ("/healthz/ping", &["healthz", "proxy"]),
            ("/configz", &["configz", "proxy"]),
            ("/metrics/cadvisor", &["metrics"]),
            ("/stats/summary", &["stats"]),
            ("/logs/", &["log"]),
            ("/statusz", &["statusz"]),
            ("/flagz", &["configz"]),
            ("/checkpoint/ns/p/c", &["checkpoint"]),
            ("/exec/ns/p/c", &["proxy"]),
            ("/metricsx", &["proxy"]),
            ("/", &["proxy"]),
        ] {
            assert_eq!(subresources(path), want, "{path}");
        }
    }
}
