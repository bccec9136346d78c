//! Asking the running kubelet over its socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;

const LIMIT: Duration = Duration::from_secs(10);

/// The socket below a kubelet's folder.
pub(crate) fn socket(root: &Path) -> PathBuf {
    root.join("kubelet.sock")
}

/// The body of a GET.
///
/// # Errors
/// The kubelet does not run, does not answer in time, or answers no.
pub(crate) async fn get(root: &Path, path: &str) -> Result<Vec<u8>> {
    let socket = socket(root);
    let ask = async {
        let stream = tokio::net::UnixStream::connect(&socket).await.context("it does not run")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "kubelet").body(Empty::<bytes::Bytes>::new())?;
        let reply = sender.send_request(request).await?;
        let status = reply.status();
        let body = reply.into_body().collect().await?.to_bytes().to_vec();
        if !status.is_success() {
            bail!("{status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Ok(body)
    };
    let answer = tokio::time::timeout(LIMIT, ask).await.map_err(|_| anyhow::anyhow!("no answer in time"));
    answer.and_then(|a| a).with_context(|| format!("ask the kubelet at {} for {path}", socket.display()))
}
