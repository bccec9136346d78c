//! `kubelet check`: whether the configuration is right and this machine can run pods, before anything is started.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::local;
use crate::certificates;
use crate::config::{Flags, KubeletConfiguration, Loaded};
use crate::cri::Cri;
use crate::node::{facts, limits};
use crate::sources::manifest::Origin;

const LIMIT: Duration = Duration::from_secs(5);
/// Less free space than this on a file system of the kubelet's is worth a word.
const LITTLE_SPACE: u64 = 2 << 30;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// The kubelet works; something may not.
    Warn,
    /// The kubelet does not work.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) check: String,
    /// How it is.
    pub(crate) state: State,
    /// What was found, and what to do.
    pub(crate) detail: String,
}

fn found(check: &str, state: State, detail: impl Into<String>) -> Finding {
    Finding { check: check.into(), state, detail: detail.into() }
}

/// As JSON.
pub(crate) fn json(found: &[Finding]) -> Value {
    let list: Vec<Value> =
        found.iter().map(|f| json!({"check": f.check, "state": word(f.state), "detail": f.detail})).collect();
    let worst =
        [State::Fail, State::Warn].into_iter().find(|s| found.iter().any(|f| f.state == *s)).unwrap_or(State::Ok);
    json!({"state": word(worst), "checks": list})
}

fn word(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Warn => "warn",
        State::Fail => "fail",
    }
}

/// For people.
pub(crate) fn text(found: &[Finding]) -> String {
    let mut out = String::new();
    for f in found {
        let _ = writeln!(out, "{:4}  {:14} {}", word(f.state), f.check, f.detail);
    }
    let count = |state: State| found.iter().filter(|f| f.state == state).count();
    let _ = writeln!(out, "{} ok, {} to know, {} wrong", count(State::Ok), count(State::Warn), count(State::Fail));
    out
}

/// Everything.
pub(crate) async fn check(flags: &Flags) -> Vec<Finding> {
    let Loaded { config, idle } = match flags.load() {
        Ok(loaded) => loaded,
        Err(e) => return vec![found("configuration", State::Fail, format!("{e:#}"))],
    };
    let mut out = vec![found(
        "configuration",
        State::Ok,
        match &flags.config {
            Some(path) => format!("{} is right", path.display()),
            None => "the defaults are used: no --config".into(),
        },
    )];
    for (field, why) in idle {
        out.push(found("configuration", State::Warn, format!("{field} changes nothing: {why}")));
    }
    for (flag, why) in &flags.idle {
        out.push(found("flags", State::Warn, format!("--{flag} changes nothing: {why}")));
    }
    out.push(name(&flags.hostname_override.clone().unwrap_or_else(facts::host_name)));
    out.push(root());
    out.extend(cgroups(&config));
    out.push(swap(&config, &std::fs::read_to_string("/proc/swaps").unwrap_or_default()));
    out.extend(kernel(&config));
    out.extend(space(flags, &config));
    out.extend(files(&config));
    out.extend(manifests(&config));
    let running = local::get(&flags.root_dir, "/healthz").await;
    out.extend(ports(&config, running.is_ok()));
    match running {
        Ok(body) => {
            let text = String::from_utf8_lossy(&body).trim().replace('\n', ", ");
            out.push(found("kubelet", State::Ok, format!("it runs: {text}")));
        }
        Err(e) if local::socket(&flags.root_dir).exists() => out.push(found("kubelet", State::Warn, format!("{e:#}"))),
        Err(_) => out.push(found("kubelet", State::Ok, "it does not run")),
    }
    out.extend(runtime(&config).await);
    out.extend(apiserver(flags, &config).await);
    out
}

fn name(name: &str) -> Finding {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if !name.is_empty()
        && name.len() <= 253
        && name.chars().all(fine)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
    {
        return found("node name", State::Ok, name);
    }
    let help = "is no DNS name in lower case: say another with --hostname-override";
    found("node name", State::Fail, format!("{name:?} {help}"))
}

fn root() -> Finding {
    if nix::unistd::geteuid().is_root() {
        found("user", State::Ok, "root")
    } else {
        found("user", State::Fail, "the kubelet needs root: it mounts volumes and makes control groups")
    }
}

fn cgroups(config: &KubeletConfiguration) -> Vec<Finding> {
    const CHECK: &str = "cgroups";
    let host = match gantry_cgroup::Host::detect() {
        Ok(host) => host,
        Err(e) => return vec![found(CHECK, State::Fail, e.to_string())],
    };
    let mut out = vec![found(
        CHECK,
        State::Ok,
        format!("version {:?}, controllers {}", host.version(), host.controllers().join(" ")),
    )];
    for (controller, state) in
        [("cpu", State::Fail), ("memory", State::Fail), ("pids", State::Warn), ("cpuset", State::Warn)]
    {
        if !host.has(controller) {
            let help = "switch it on in the kernel's command line, or delegate it to this group";
            out.push(found(CHECK, state, format!("the controller {controller} is missing: {help}")));
        }
    }
    if config.fail_cgroup_v1 && host.version() != gantry_cgroup::Version::V2 {
        out.push(found(CHECK, State::Fail, "failCgroupV1 is true and this host does not use version 2 alone"));
    }
    out
}

fn swap(config: &KubeletConfiguration, swaps: &str) -> Finding {
    let on = swaps.lines().count() > 1;
    match (on, config.fail_swap_on) {
        (false, _) => found("swap", State::Ok, "off"),
        (true, false) => found("swap", State::Ok, "on, and failSwapOn is false"),
        (true, true) => found("swap", State::Fail, "on: turn it off (swapoff -a) or set failSwapOn to false"),
    }
}

/// Settings of the kernel that pods need: path, least value, what for.
const SYSCTLS: &[(&str, i64, &str)] = &[
    ("net/ipv4/ip_forward", 1, "pods reach other machines only when packets are forwarded"),
    ("fs/inotify/max_user_instances", 256, "each pod takes some; programs in pods fail without"),
    ("fs/inotify/max_user_watches", 8192, "each watched file takes one"),
    ("kernel/pid_max", 32768, "all pods share it"),
];

fn kernel(config: &KubeletConfiguration) -> Vec<Finding> {
    let mut out = Vec::new();
    if config.protect_kernel_defaults {
        let wrong = limits::different(Path::new("/proc/sys"));
        out.extend(
            wrong.into_iter().map(|text| found("kernel", State::Fail, format!("protectKernelDefaults: {text}"))),
        );
    }
    for (path, least, what) in SYSCTLS {
        let text = std::fs::read_to_string(Path::new("/proc/sys").join(path)).unwrap_or_default();
        let Ok(value) = text.trim().parse::<i64>() else { continue };
        if value < *least {
            let name = path.replace('/', ".");
            out.push(found("kernel", State::Warn, format!("{name} is {value}, should be at least {least}: {what}")));
        }
    }
    if out.is_empty() {
        out.push(found("kernel", State::Ok, "its settings are as they should be"));
    }
    out
}

fn existing(path: &Path) -> &Path {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"))
}

fn space(flags: &Flags, config: &KubeletConfiguration) -> Vec<Finding> {
    let mut out = Vec::new();
    for (what, path) in [("--root-dir", flags.root_dir.as_path()), ("podLogsDir", Path::new(&config.pod_logs_dir))] {
        match nix::sys::statvfs::statvfs(existing(path)) {
            Err(e) => out.push(found("disk", State::Fail, format!("{what} {}: {e}", path.display()))),
            Ok(disk) => {
                let free = disk.blocks_available() * disk.fragment_size();
                let read_only = disk.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY);
                let state = match (read_only, free < LITTLE_SPACE) {
                    (true, _) => State::Fail,
                    (false, true) => State::Warn,
                    _ => State::Ok,
                };
                let word = if read_only { ", read-only" } else { "" };
                out.push(found("disk", state, format!("{what} {}: {} MiB free{word}", path.display(), free >> 20)));
            }
        }
    }
    out
}

fn files(config: &KubeletConfiguration) -> Vec<Finding> {
    let x509 = &config.authentication.x509.client_ca_file;
    let mut out = Vec::new();
    for (field, path, pem) in [
        ("authentication.x509.clientCAFile", x509, true),
        ("tlsCertFile", &config.tls_cert_file, true),
        ("tlsPrivateKeyFile", &config.tls_private_key_file, false),
        ("resolvConf", &config.resolv_conf, false),
    ] {
        if path.is_empty() {
            continue;
        }
        let state = if field == "resolvConf" { State::Warn } else { State::Fail };
        match std::fs::read_to_string(path) {
            Err(e) => out.push(found("files", state, format!("{field}: {path}: {e}"))),
            Ok(text) if pem => match gantry_kube::pki::inspect(&text) {
                Ok(facts) => out.push(life("files", &format!("{field} {path}"), facts.not_after)),
                Err(e) => out.push(found("files", State::Fail, format!("{field}: {path}: {e}"))),
            },
            Ok(_) => {}
        }
    }
    if config.enable_server
        && x509.is_empty()
        && !config.authentication.webhook.enabled
        && !config.authentication.anonymous.enabled
    {
        let text = "nobody can use :10250: there is no clientCAFile, and webhook and anonymous are off";
        out.push(found("files", State::Warn, text));
    }
    out
}

fn life(check: &str, what: &str, end: SystemTime) -> Finding {
    let days = |d: Duration| d.as_secs() / 86400;
    match end.duration_since(SystemTime::now()) {
        Ok(left) if days(left) < 7 => {
            found(check, State::Warn, format!("{what}: the certificate ends in {} h", left.as_secs() / 3600))
        }
        Ok(left) => found(check, State::Ok, format!("{what}: the certificate lives for {} days", days(left))),
        Err(past) => {
            found(check, State::Fail, format!("{what}: the certificate ended {} days ago", days(past.duration())))
        }
    }
}

fn manifests(config: &KubeletConfiguration) -> Vec<Finding> {
    const CHECK: &str = "static pods";
    let path = Path::new(&config.static_pod_path);
    if config.static_pod_path.is_empty() {
        return Vec::new();
    }
    let mut files: Vec<_> = match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(_) if path.is_file() => vec![path.to_owned()],
        Err(e) => return vec![found(CHECK, State::Warn, format!("staticPodPath {}: {e}", path.display()))],
    };
    files.retain(|p| p.is_file() && !p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')));
    files.sort();
    let mut out = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).map_err(|e| e.to_string());
        let now = jiff::Timestamp::now();
        let strict = config.feature_gates.get("PreventStaticPodAPIReferences") != Some(&false);
        let place = file.to_string_lossy().into_owned();
        let origin = Origin { source: "file", place, node: "node".to_owned(), references: !strict };
        let parsed = text.and_then(|t| crate::sources::manifest::parse(&t, &origin, now));
        if let Err(e) = parsed {
            out.push(found(CHECK, State::Warn, format!("{}: {e}", file.display())));
        }
    }
    let bad = out.len();
    out.push(found(
        CHECK,
        State::Ok,
        format!("{} manifests in {}, {} of use", files.len(), path.display(), files.len() - bad),
    ));
    out
}

fn ports(config: &KubeletConfiguration, running: bool) -> Vec<Finding> {
    let mut out = Vec::new();
    let server = config.enable_server.then_some((&config.address, config.port));
    let healthz = (config.healthz_port > 0).then_some((&config.healthz_bind_address, config.healthz_port));
    for (ip, port) in server.into_iter().chain(healthz) {
        let address =
            ip.parse::<IpAddr>().ok().zip(u16::try_from(port).ok()).map(|(ip, port)| SocketAddr::new(ip, port));
        let Some(address) = address else {
            out.push(found("ports", State::Fail, format!("{ip}:{port} is no address to listen on")));
            continue;
        };
        match TcpListener::bind(address) {
            Ok(_) => out.push(found("ports", State::Ok, format!("{address} is free"))),
            Err(e) if running && e.kind() == std::io::ErrorKind::AddrInUse => {
                out.push(found("ports", State::Ok, format!("{address} is the running kubelet's")));
            }
            Err(e) => out.push(found("ports", State::Fail, format!("{address}: {e}"))),
        }
    }
    out
}

async fn runtime(config: &KubeletConfiguration) -> Vec<Finding> {
    const CHECK: &str = "runtime";
    let endpoint = &config.container_runtime_endpoint;
    let cri = Cri::new(endpoint, &config.image_service_endpoint, LIMIT);
    let version = match tokio::time::timeout(LIMIT, cri.version()).await {
        Ok(Ok(version)) => version,
        Ok(Err(e)) => return vec![found(CHECK, State::Fail, format!("{endpoint}: {e}"))],
        Err(_) => return vec![found(CHECK, State::Fail, format!("{endpoint}: no answer in {} s", LIMIT.as_secs()))],
    };
    let words = format!("{endpoint}: {} {}", version.runtime_name, version.runtime_version);
    let mut out = vec![found(CHECK, State::Ok, words)];
    if let Ok(Ok(answer)) = tokio::time::timeout(LIMIT, cri.status()).await {
        for condition in answer.status.unwrap_or_default().conditions.iter().filter(|c| !c.status) {
            let text = format!("{} is false: {}: {}", condition.r#type, condition.reason, condition.message);
            // A network that comes later, as from a daemon set, is usual.
            let state = if condition.r#type == "NetworkReady" { State::Warn } else { State::Fail };
            out.push(found(CHECK, state, text));
        }
    }
    if let Ok(Ok(Some(driver))) = tokio::time::timeout(LIMIT, cri.cgroup_driver()).await {
        let own = format!("{driver:?}").to_lowercase();
        if own != config.cgroup_driver {
            let text = format!("its cgroup driver {own} is used, not cgroupDriver {}", config.cgroup_driver);
            out.push(found(CHECK, State::Warn, text));
        }
    }
    out
}

async fn apiserver(flags: &Flags, config: &KubeletConfiguration) -> Vec<Finding> {
    const CHECK: &str = "apiserver";
    let Some(path) = &flags.kubeconfig else {
        return vec![found(CHECK, State::Ok, "none: only static pods run (no --kubeconfig)")];
    };
    if !path.exists() {
        let bootstrap = flags.bootstrap_kubeconfig.as_ref().filter(|b| b.exists());
        return vec![match bootstrap {
            Some(b) => {
                found(CHECK, State::Ok, format!("{} will be written with the help of {}", path.display(), b.display()))
            }
            None => found(
                CHECK,
                State::Fail,
                format!("{} is missing, and there is no --bootstrap-kubeconfig", path.display()),
            ),
        }];
    }
    let mut out = Vec::new();
    if let Some(end) = certificates::ends(flags, config) {
        out.push(life(CHECK, &path.display().to_string(), end));
    }
    let ask = async {
        let client = certificates::client_of(flags, config).await?;
        let request = http::Request::get("/readyz").body(Vec::new())?;
        Ok::<String, anyhow::Error>(client.request_text(request).await?)
    };
    out.push(match tokio::time::timeout(LIMIT, ask).await {
        Ok(Ok(text)) => found(CHECK, State::Ok, format!("it answers: {}", text.trim())),
        Ok(Err(e)) => found(CHECK, State::Fail, format!("{}: {e:#}", path.display())),
        Err(_) => found(CHECK, State::Fail, format!("{}: no answer in {} s", path.display(), LIMIT.as_secs())),
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_swap_and_certificates_are_judged() {
        assert_eq!(name("n1.example").state, State::Ok);
        for bad in ["", "N1", "a_b", "-a", "a."] {
            assert_eq!(name(bad).state, State::Fail, "{bad}");
        }
        let mut config = KubeletConfiguration { fail_swap_on: true, ..KubeletConfiguration::default() };
        let on = "Filename Type\n/swap file\n";
        assert_eq!((swap(&config, "Filename\n").state, swap(&config, on).state), (State::Ok, State::Fail));
        config.fail_swap_on = false;
        assert_eq!(swap(&config, on).state, State::Ok);
        let now = SystemTime::now();
        let day = Duration::from_secs(86400);
        assert_eq!(life("x", "y", now + day * 30).state, State::Ok);
        assert_eq!(life("x", "y", now + day).state, State::Warn);
        assert_eq!(life("x", "y", now - day).state, State::Fail);
    }

    #[test]
    fn manifests_are_read_as_the_kubelet_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("a.yaml"),
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("b.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {}\n")
            .unwrap();
        let config = KubeletConfiguration {
            static_pod_path: dir.path().display().to_string(),
            ..KubeletConfiguration::default()
        };
        let got = manifests(&config);
        assert_eq!(got.len(), 2);
        assert!(
            got[0].state == State::Warn && got[0].detail.contains("b.yaml") && got[0].detail.contains("containers"),
            "{got:?}"
        );
        assert!(got[1].detail.starts_with("2 manifests"));
    }

    #[test]
    fn the_worst_counts() {
        let list = [found("a", State::Ok, "x"), found("b", State::Warn, "y")];
        assert_eq!(json(&list)["state"], "warn");
        assert!(text(&list).contains("1 ok, 1 to know, 0 wrong"));
    }
}
