//! The kubelet's own port: every path answers those who may, and a container is checkpointed through it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_tests::command::run;
use gantry_tests::node::{GANTRY, Node, runtime};
use gantry_tests::runner::{Case, Verdict};
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case<Node>> {
    vec![
        Case { name: "server::every_path_answers_those_who_may", run: paths },
        Case { name: "server::a_container_is_checkpointed", run: checkpoint },
    ]
}

/// The administrator's certificate and key, each in a file.
struct Login([PathBuf; 2]);

impl Login {
    fn new(node: &Node) -> Result<Self> {
        let folder = node.scratch("login")?;
        let mut files = [folder.join("cert.pem"), folder.join("key.pem")];
        for (file, field) in files.iter_mut().zip(["client-certificate-data", "client-key-data"]) {
            let path = format!("-ojsonpath={{.users[0].user.{field}}}");
            let data = node.kubectl(&["config", "view", "--raw", &path])?.ok()?;
            let pem = run(std::process::Command::new("base64").arg("-d"), &data, Duration::from_secs(10))?.ok()?;
            fs::write(&file, pem)?;
        }
        Ok(Self(files))
    }

    /// Status and body of a request.
    fn ask(&self, node: &Node, method: &str, path: &str, body: &str) -> Result<(String, String)> {
        let mut curl = node.inside("curl");
        curl.args(["-sk", "--max-time", "60", "-w", "\n%{http_code}", "-X", method, "--data-binary", body]);
        curl.arg("--cert").arg(&self.0[0]).arg("--key").arg(&self.0[1]);
        let said = run(curl.arg(format!("https://127.0.0.1:10250{path}")), "", Duration::from_secs(70))?.stdout;
        let (body, status) = said.rsplit_once('\n').context("no status")?;
        Ok((status.to_owned(), body.to_owned()))
    }
}

fn paths(node: &Node) -> Result<Verdict> {
    let login = Login::new(node)?;
    for (method, path, status, part) in [
        ("GET", "/healthz", "200", "ok"),
        ("GET", "/healthz/syncloop", "200", "ok"),
        ("GET", "/healthz/no-such", "404", ""),
        ("GET", "/pods", "200", "PodList"),
        ("GET", "/runningpods/", "200", "PodList"),
        ("GET", "/metrics", "200", "kubelet_node_name{node=\"node-1\"} 1"),
        ("GET", "/metrics/cadvisor", "200", "machine_cpu_cores"),
        ("GET", "/metrics/resource", "200", "node_memory_working_set_bytes"),
        ("GET", "/metrics/probes", "200", ""),
        ("GET", "/metrics/slis", "200", "kubernetes_healthcheck"),
        ("GET", "/stats/summary", "200", "\"nodeName\""),
        ("GET", "/stats/summary?only_cpu_and_memory=true", "200", "\"memory\""),
        ("GET", "/configz", "200", "kubeletconfig"),
        ("GET", "/logs/", "200", "<pre>"),
        ("GET", "/flagz", "200", "kubelet flagz"),
        ("GET", "/statusz", "200", "kubelet statusz"),
        ("GET", "/debug/pprof/", "200", "cmdline"),
        ("GET", "/debug/pprof/cmdline", "200", "kubelet"),
        ("GET", "/debug/pprof/heap", "501", "perf"),
        ("GET", "/debug/flags/v", "405", ""),
        ("PUT", "/debug/flags/v", "400", "number"),
        ("GET", "/containerLogs/default/no-such/c", "404", "no-such"),
        ("POST", "/run/default/no-such/c?cmd=id", "404", ""),
        ("POST", "/checkpoint/default/no-such/c", "404", "pod does not exist"),
        ("DELETE", "/pods", "405", ""),
        ("GET", "/no-such", "404", ""),
    ] {
        let (got, body) = login.ask(node, method, path, "")?;
        ensure!(got == status && body.contains(part), "{method} {path}: {got} {body}");
    }
    Ok(Verdict::Passed)
}

/// A runtime whose `checkpoint` writes something without criu, which does not work on every kernel. The container runs on.
fn stand_in(node: &Node) -> Result<PathBuf> {
    let program = node.scratch("stand-in")?.join("runtime");
    let own = node.programs.join("gantry-run");
    let script = format!(
        "#!/bin/sh\nfor a; do\n  case \"$last\" in --image-path) images=$a;; --work-path) work=$a;; esac\n  \
         [ \"$a\" = checkpoint ] && is=1\n  last=$a\ndone\n[ \"${{is-}}\" ] || exec {} \"$@\"\n\
         echo whole >\"$images/pages-1.img\"; echo done >\"$work/dump.log\"\n",
        own.display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

fn checkpoint(node: &Node) -> Result<Verdict> {
    if runtime() != GANTRY {
        return Ok(Verdict::Skipped("the stand-in for criu is a runtime of gantry-cri's".to_owned()));
    }
    let (login, program, config) = (Login::new(node)?, stand_in(node)?, node.state().join("cri.toml"));
    let before = fs::read_to_string(&config)?;
    fs::write(&config, format!("{before}[runtime_handlers]\nstand-in = \"{}\"\n", program.display()))?;
    let tried = node
        .kill_daemon("gantry-cri")
        .and_then(|()| node.start_daemon("gantry-cri"))
        .and_then(|()| with_handler(node, &login));
    // A handler that nobody names any more harms no one until the daemon begins anew.
    fs::write(&config, &before)?;
    tried.map(|()| Verdict::Passed)
}

fn with_handler(node: &Node, login: &Login) -> Result<()> {
    node.apply(
        "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: stand-in}\nhandler: stand-in\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: kept}\nspec:\n  runtimeClassName: stand-in\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - {name: c, image: 'gantry.local/busybox:latest', \
         imagePullPolicy: Never, command: [sleep, '1000']}\n",
    )?;
    node.wait_pod("kept", 60)?;
    let (status, body) = login.ask(node, "POST", "/checkpoint/default/kept/c?timeout=60", "")?;
    ensure!(status == "200", "{status} {body}");
    let said: Value = serde_json::from_str(&body)?;
    let file = said["items"][0].as_str().context("no archive is named")?;
    let name = file.rsplit('/').next().unwrap_or_default();
    ensure!(name.starts_with("checkpoint-kept_default-c-") && name.ends_with(".tar"), "{file}");
    let mode = fs::metadata(file)?.permissions().mode();
    ensure!(mode & 0o077 == 0, "others may read the memory of the container: {mode:o}");
    let list = run(std::process::Command::new("tar").args(["-tf", file]), "", Duration::from_secs(30))?.ok()?;
    for part in ["checkpoint/pages-1.img", "config.dump", "spec.dump", "dump.log"] {
        ensure!(list.lines().any(|l| l.trim_start_matches("./") == part), "{part} is not in {list}");
    }
    let status = node.get(&["pod", "kept"])?["status"]["containerStatuses"][0].clone();
    ensure!(status["ready"] == true && status["restartCount"] == json!(0), "it does not run on: {status}");
    let (status, body) = login.ask(node, "POST", "/checkpoint/default/kept/no-such", "")?;
    ensure!(status == "404" && body.contains("no-such"), "{status} {body}");
    fs::remove_file(file)?;
    node.delete(&["pod/kept", "runtimeclass/stand-in"])?;
    Ok(())
}
