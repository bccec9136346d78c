//! All pages against Prometheus' own parser, where its promtool is installed (Debian: prometheus).

use std::io::Write;
use std::process::{Command, Stdio};

use super::resource::tests::container;
use super::{CadvisorSource, Page, cadvisor, own, put_process, resource};

/// promtool ends with 1 for what it cannot parse and with 3 for names that it finds unusual, as some of upstream's are.
fn accepted(page: &str) -> Result<(), String> {
    let program = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".into());
    let mut child = Command::new(program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("run promtool: {e}"))?;
    let mut input = child.stdin.take().ok_or("no input")?;
    let text = page.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let _ = writer.join();
    match output.status.code() {
        Some(0 | 3) => Ok(()),
        code => Err(format!(
            "{code:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

#[test]
fn prometheus_reads_every_page() {
    let program = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".into());
    if Command::new(program).arg("--version").output().is_err() {
        println!("skipped: promtool is not installed");
        return;
    }
    own::runtime_called("RunPodSandbox", std::time::Duration::from_millis(12), false);
    own::IMAGE_PULL.observe(&[("image_size_in_bytes", "N/A")], std::time::Duration::from_secs(3));
    own::PROBES.count(&[("probe_type", "Liveness"), ("pod", "a\"b\\c\nd")]);
    own::POD_WORKER.observe(&[("operation_type", "sync")], std::time::Duration::from_millis(3));
    own::stored("volume_mount", std::time::Duration::from_millis(3), true);
    own::EVICTIONS.count(&[("eviction_signal", "memory.available")]);
    own::REST.count(&[("code", "<error>"), ("host", "192.0.2.1:6443"), ("method", "GET")]);
    let mut own_page = Page::default();
    own::put(&mut own_page, false);
    put_process(&mut own_page);
    let mut probes = Page::default();
    own::put(&mut probes, true);
    let (stats, start) = ([container("app"), container("side")], (["ns".into(), "web".into(), "app".into()], 7.5));
    let source = CadvisorSource { metrics: &[], descriptors: &[], containers: &stats, sandboxes: &[] };
    for (name, page) in [
        ("metrics", own_page.render() + &crate::config::gates::metric(&Default::default())),
        ("probes", probes.render()),
        ("cadvisor", cadvisor(&source, (1.0, 2), 3, 4)),
        ("resource", resource((1.0, 2), 3, &stats, &[], &[start], false)),
    ] {
        assert!(page.contains("# TYPE "), "{name}: {page}");
        accepted(&page).unwrap_or_else(|e| panic!("{name}: {e}\n{page}"));
    }
    assert!(accepted("no metric at all {").is_err());
}
