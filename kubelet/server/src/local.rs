//! A socket in the kubelet's own folder, for tools on the same machine: what the kubelet knows, to read only.
//!
//! It is root's alone (0600) and so needs neither certificates nor an apiserver that decides: whoever is root here can
//! read all of it elsewhere too.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::handler::pod_list;
use crate::reply::{Reply, failure, json, metrics, text};
use crate::route::{self, Metrics, Route};
use crate::server::serve_connection;
use crate::{Node, health};

/// Serves `/pods`, `/configz`, `/stats/summary`, `/metrics` and `/healthz` on a socket until `stop`.
///
/// # Errors
/// The socket cannot be made.
pub async fn serve_local(path: &Path, node: Arc<dyn Node>, stop: CancellationToken) -> std::io::Result<()> {
    // What a killed predecessor left; a living one would have kept us from the ports before.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    // Bound under another name first: there must be no moment in which others may connect.
    let hidden = folder.join(format!(".kubelet-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (node, stop) = (node.clone(), stop.clone());
        tokio::spawn(async move {
            let answer = move |request: Request<Incoming>| {
                let node = node.clone();
                async move { answer(&*node, &request).await }
            };
            serve_connection(stream, &stop, answer).await;
        });
    }
    let _ = std::fs::remove_file(path);
    Ok(())
}

async fn answer(node: &dyn Node, request: &Request<Incoming>) -> Reply {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    }
    match route::find(request.method(), request.uri().path()) {
        Ok(Route::Pods) => pod_list(node.pods()),
        Ok(Route::Configz) => json(&serde_json::json!({"kubeletconfig": node.configz()})),
        Ok(Route::StatsSummary) => node.stats_summary(false).await.map_or_else(|e| failure(&e), |v| json(&v)),
        Ok(Route::Metrics(Metrics::Kubelet)) => metrics(node.metrics().await),
        Ok(Route::Healthz(one)) => health::healthz(node, one.as_deref(), true),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}
