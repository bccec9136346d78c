//! The daemon's own metrics over HTTP: one document at /metrics.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::daemon::Daemon;

/// Longest request head.
const LARGEST: usize = 8 << 10;
/// How long a client may take.
const SLOW: Duration = Duration::from_secs(10);

/// Serves at the configured address until aborted; nothing to do without one.
///
/// # Errors
/// The address cannot be had.
pub async fn serve(daemon: &Arc<Daemon>) -> io::Result<()> {
    let address = daemon.config.metrics_address.clone();
    if address.is_empty() {
        return Ok(());
    }
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|e| io::Error::new(e.kind(), format!("metrics_address {address:?}: {e}")))?;
    let daemon = daemon.clone();
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let daemon = daemon.clone();
                    tokio::spawn(async move {
                        let _ = tokio::time::timeout(SLOW, answer(&daemon, stream)).await;
                    });
                }
                // Out of descriptors: others will be closed.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

async fn answer(daemon: &Arc<Daemon>, mut stream: TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut buffer).await?;
        if n == 0 || head.len() > LARGEST {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..n]);
    }
    let (status, body) = match path(&head) {
        Some("/metrics") => {
            let daemon = daemon.clone();
            let text = tokio::task::spawn_blocking(move || crate::metrics::of_daemon(&daemon)).await;
            ("200 OK", text.map_err(io::Error::other)?)
        }
        Some(_) => ("404 Not Found", "only /metrics is here\n".to_owned()),
        None => ("405 Method Not Allowed", "only GET is answered\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// The path of a GET request, without its query.
fn path(head: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(head.split(|b| *b == b'\r').next()?).ok()?;
    line.strip_prefix("GET ")?.split([' ', '?']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_get_has_a_path() {
        assert_eq!(path(b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"), Some("/metrics"));
        assert_eq!(path(b"GET / HTTP/1.0\r\n\r\n"), Some("/"));
        assert_eq!(path(b"POST /metrics HTTP/1.1\r\n\r\n"), None);
        assert_eq!(path(b"\xff\r\n"), None);
    }
}
