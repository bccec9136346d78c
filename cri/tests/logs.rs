//! Container logs under load: nothing lost and nothing doubled while files are rotated and the daemon dies.
//!
//! 64 MiB in a run of all tests; `GANTRY_LOG_MIB=200` and more show the same for longer.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Client, Daemon, remove_pod};
use proto::cri;

/// Reads the text of files in this order, one after another, without what the log puts before it. Lines keep their ends.
fn texts(files: &[PathBuf], stream: &str, mut each: impl FnMut(&[u8])) {
    let mut text = Vec::new();
    for file in files {
        let mut from = BufReader::with_capacity(1 << 20, fs::File::open(file).unwrap());
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).unwrap() > 0 {
            assert_eq!(line.last(), Some(&b'\n'), "a line is torn at the end of {}", file.display());
            let head: Vec<&[u8]> = line.splitn(4, |b| *b == b' ').collect();
            assert!(head.len() == 4 && head[0].ends_with(b"Z"), "{:?}", String::from_utf8_lossy(&line[..60]));
            if head[1] == stream.as_bytes() {
                let partial = head[2] == b"P";
                assert!(partial || head[2] == b"F");
                text.extend_from_slice(if partial { &head[3][..head[3].len() - 1] } else { head[3] });
                if !partial {
                    each(&text);
                    text.clear();
                }
            }
            line.clear();
        }
    }
    if !text.is_empty() {
        each(&text);
    }
}

async fn writer(
    client: &mut Client,
    sandbox: &str,
    config: &cri::PodSandboxConfig,
    name: &str,
    script: &str,
) -> String {
    let mut container = common::container(name, script);
    container.log_path = format!("{name}.log");
    common::create_and_start(client, sandbox, config, container).await.unwrap()
}

/// Moves a log away, as the kubelet does, and has it opened anew. A daemon that is away is asked again the next time.
async fn rotate(client: &mut Client, id: &str, log: &Path, rotated: &mut Vec<PathBuf>) {
    let aside = log.with_extension(format!("{}", rotated.len()));
    if fs::rename(log, &aside).is_ok() {
        rotated.push(aside);
    }
    let _ = client.reopen_container_log(cri::ReopenContainerLogRequest { container_id: id.to_owned() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_doubled_whatever_happens_around_it() {
    let Some(mut daemon) = Daemon::start() else { return };
    let mib: usize = std::env::var("GANTRY_LOG_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(64);
    let lines = mib * 1024;
    let logs = daemon.path("logs");
    let mut client = daemon.client().await;
    let mut config = common::pod("loud");
    config.log_directory = logs.display().to_string();
    let sandbox = common::run_pod(&mut client, &config, "").await.unwrap();
    // Lines of 1 KiB, of which some are longer than a line of the log may be; the last has no end. The other stream meanwhile.
    let script = format!(
        "/bin/busybox awk 'BEGIN {{ pad = sprintf(\"%1012s\", \"\"); long = sprintf(\"%40000s\", \"\"); \
         for (i = 0; i < {lines}; i++) {{ printf \"%010d %s\\n\", i, i % 5000 == 4999 ? long : pad; \
         if (i % 1000 == 0) {{ printf \"%010d\\n\", i >\"/dev/stderr\" }} }} printf \"the end\" }}'"
    );
    let id = writer(&mut client, &sandbox, &config, "main", &script).await;
    let other = writer(&mut client, &sandbox, &config, "other", "while :; do echo x; done").await;
    let log = logs.join("main.log");
    let (mut rotated, begun, mut deaths) = (Vec::new(), Instant::now(), 0);
    loop {
        assert!(begun.elapsed() < Duration::from_secs(300), "the writer does not come to its end");
        rotate(&mut client, &id, &log, &mut rotated).await;
        if deaths < 2 && rotated.len() > 3 * (deaths + 1) {
            deaths += 1;
            daemon.kill();
            // Away for a while, in which the disk gets a new file nobody tells the monitor of.
            rotate(&mut client, &id, &log, &mut rotated).await;
            daemon.launch();
            client = daemon.client().await;
        }
        if common::state(&mut client, &id).await.state() == cri::ContainerState::ContainerExited {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = begun.elapsed();
    let all: Vec<PathBuf> = rotated.iter().cloned().chain([log].into_iter().filter(|l| l.exists())).collect();
    let mut next = 0;
    texts(&all, "stdout", |text| {
        if next == lines {
            assert_eq!(text, b"the end");
        } else {
            let wanted = if next % 5000 == 4999 { 40_012 } else { 1024 };
            assert_eq!((&text[..10], text.len()), (format!("{next:010}").as_bytes(), wanted), "after {next} lines");
        }
        next += 1;
    });
    assert_eq!(next, lines + 1);
    let mut next = 0;
    texts(&all, "stderr", |text| {
        assert_eq!(text, format!("{:010}\n", next * 1000).as_bytes());
        next += 1;
    });
    assert_eq!(next, lines.div_ceil(1000));
    eprintln!("{mib} MiB in {:.1} s, {} files, {deaths} deaths of the daemon", took.as_secs_f64(), all.len());
    assert_eq!(common::state(&mut client, &other).await.state(), cri::ContainerState::ContainerRunning);
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}
