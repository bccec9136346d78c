//! Our own requests beside CRI, on a second socket: image work for people, with progress, one JSON line per step.

use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use cri_images::{Phase, Progress, ProgressSink};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::daemon::Daemon;

/// Serves requests at `path` until aborted.
///
/// # Errors
/// The socket cannot be bound.
pub fn serve(daemon: &Arc<Daemon>, path: &Path) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let daemon = daemon.clone();
    Ok(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let daemon = daemon.clone();
            tokio::spawn(async move {
                if let Err(error) = answer(&daemon, stream).await {
                    tracing::debug!(%error, "an image request broke off");
                }
            });
        }
    }))
}

async fn answer(daemon: &Arc<Daemon>, mut stream: UnixStream) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).await?;
    let request: Value = serde_json::from_str(&line)?;
    let (send, mut steps) = tokio::sync::mpsc::unbounded_channel();
    let sink: ProgressSink = Arc::new(move |p: &Progress| {
        let phase = match p.phase {
            Phase::Resolving => "resolving",
            Phase::Layers => "layers",
            Phase::Done => "done",
        };
        let _ = send.send(json!({"phase": phase, "done": p.bytes_done, "total": p.bytes_total}));
    });
    let work = perform(daemon, &request, sink);
    tokio::pin!(work);
    let last = loop {
        tokio::select! {
            done = &mut work => break done,
            Some(step) = steps.recv() => writer.write_all(format!("{step}\n").as_bytes()).await?,
        }
    };
    let last = match last {
        Ok(found) if request["verb"] == "fsck" => json!({"findings": found}),
        Ok(images) => json!({"images": images}),
        Err(e) => json!({"error": format!("{e:#}")}),
    };
    writer.write_all(format!("{last}\n").as_bytes()).await?;
    Ok(())
}

async fn perform(daemon: &Arc<Daemon>, request: &Value, sink: ProgressSink) -> anyhow::Result<Vec<Value>> {
    let images = &daemon.images;
    let subject = request["subject"].as_str().unwrap_or_default();
    let list = match request["verb"].as_str() {
        Some("fsck") => {
            let found = crate::fsck::run(daemon, request["repair"] == true).await?;
            return Ok(found.into_iter().map(Value::String).collect());
        }
        Some("ls") => images.list(),
        Some("pull") => vec![images.pull(subject, None, Some(sink)).await?],
        Some("import") => images.import(Path::new(subject), request["name"].as_str(), Some(sink)).await?,
        Some("export") => {
            images.export(request["name"].as_str().unwrap_or_default(), Path::new(subject)).await?;
            Vec::new()
        }
        Some("rm") => {
            anyhow::ensure!(images.remove(subject).await?, "image {subject:?} not found");
            Vec::new()
        }
        _ => anyhow::bail!("unknown request"),
    };
    Ok(list
        .into_iter()
        .map(|i| json!({"id": i.id, "tags": i.repo_tags, "digests": i.repo_digests, "size": i.size}))
        .collect())
}

/// Asks the daemon whose socket is `path` what it finds wrong; without a daemon looks itself (`alone`). Prints it and answers
/// how many things there are.
///
/// # Errors
/// It cannot be looked at, or not be repaired.
pub async fn fsck(
    path: &Path,
    repair: bool,
    alone: impl AsyncFnOnce() -> anyhow::Result<Vec<String>>,
) -> anyhow::Result<usize> {
    let findings = if UnixStream::connect(path).await.is_ok() {
        let mut lines = send(path, &json!({"verb": "fsck", "repair": repair})).await?;
        let line = lines.next_line().await?.context("the daemon hung up")?;
        let answer: Value = serde_json::from_str(&line)?;
        if let Some(error) = answer["error"].as_str() {
            anyhow::bail!("{error}");
        }
        let texts = answer["findings"].as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    } else {
        eprintln!("no daemon answers at {}: looking without it", path.display());
        alone().await?
    };
    match (findings.is_empty(), repair) {
        (true, _) => println!("nothing found"),
        (false, false) => findings.iter().for_each(|f| println!("{f}")),
        (false, true) => findings.iter().for_each(|f| println!("repaired: {f}")),
    }
    Ok(findings.len())
}

/// Sends a request; the answer comes in lines.
async fn send(path: &Path, request: &Value) -> anyhow::Result<tokio::io::Lines<BufReader<UnixStream>>> {
    let mut stream = UnixStream::connect(path)
        .await
        .with_context(|| format!("connect to {} (does gantry-cri run?)", path.display()))?;
    stream.write_all(format!("{request}\n").as_bytes()).await?;
    Ok(BufReader::new(stream).lines())
}

/// Asks the daemon whose socket is `path`, shows progress on a terminal and prints the images of the answer (`quiet`: their
/// ids alone).
///
/// # Errors
/// The daemon is not there, or says why not.
pub async fn ask(path: &Path, verb: &str, subject: &str, name: Option<&str>, quiet: bool) -> anyhow::Result<()> {
    let mut lines = send(path, &json!({"verb": verb, "subject": subject, "name": name})).await?;
    let bar = std::io::stderr().is_terminal().then(|| indicatif::ProgressBar::new(0));
    while let Some(line) = lines.next_line().await? {
        let step: Value = serde_json::from_str(&line)?;
        if let Some(error) = step["error"].as_str() {
            anyhow::bail!("{error}");
        }
        if let Some(images) = step["images"].as_array() {
            if let Some(bar) = &bar {
                bar.finish_and_clear();
            }
            for image in images {
                if quiet {
                    println!("{}", image["id"].as_str().unwrap_or_default());
                    continue;
                }
                let tags: Vec<&str> =
                    image["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                println!("{}  {:>12}  {}", image["id"].as_str().unwrap_or_default(), image["size"], tags.join(" "));
            }
            return Ok(());
        }
        if let Some(bar) = &bar {
            bar.set_length(step["total"].as_u64().unwrap_or(0));
            bar.set_position(step["done"].as_u64().unwrap_or(0));
        }
    }
    anyhow::bail!("the daemon hung up in the middle")
}
