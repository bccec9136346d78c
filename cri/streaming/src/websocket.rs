//! Sessions over WebSocket: one byte before each message names its channel.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::server::Pending;
use crate::session::{Wanted, run, sizes};
use crate::{Io, Runtime, status};

const BUFFER: usize = 64 * 1024;
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the message's second byte names a channel on which the client sends nothing more.
const CLOSE: u8 = 255;

async fn accept<S: AsyncRead + AsyncWrite + Unpin>(socket: S) -> WebSocketStream<S> {
    let limits = WebSocketConfig::default().max_message_size(Some(4 << 20)).max_frame_size(Some(4 << 20));
    WebSocketStream::from_raw_socket(socket, Role::Server, Some(limits)).await
}

/// An exec or attach session over `v4.channel.k8s.io` or `v5.channel.k8s.io`.
pub(crate) async fn session(
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    runtime: Arc<dyn Runtime>,
    pending: Pending,
    wanted: Wanted,
) -> io::Result<()> {
    let (mut to, mut from) = accept(socket).await.split();
    let (messages, mut queue) = mpsc::channel::<Message>(6);
    let writing = tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            let last = message.is_close();
            if to.send(message).await.is_err() || last {
                break;
            }
        }
        let _ = to.close().await;
    });
    let mut carrying = Vec::new();
    let mut output = |channel: u8, on: bool| {
        on.then(|| {
            let (near, far) = duplex(BUFFER);
            carrying.push(tokio::spawn(carry(far, channel, messages.clone())));
            Box::new(near) as crate::Output
        })
    };
    // Clients wait for an empty message on each output channel before they believe it is there.
    let (stdout, stderr) = (output(STDOUT, wanted.stdout), output(STDERR, wanted.stderr));
    let (mut to_stdin, stdin) = match wanted.stdin.then(|| duplex(BUFFER)) {
        Some((near, far)) => (Some(near), Some(Box::new(far) as crate::Input)),
        None => (None, None),
    };
    let (sizes_to, resize) = mpsc::channel(4);
    let (mut to_sizes, from_sizes) = duplex(1024);
    sizes(from_sizes, sizes_to);
    let pongs = messages.clone();
    let reading = async move {
        while let Some(Ok(message)) = from.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Ping(payload) => {
                    let _ = pongs.send(Message::Pong(payload)).await;
                    continue;
                }
                Message::Close(_) => break,
                _ => continue,
            };
            let Some((channel, rest)) = bytes.split_first() else { continue };
            match *channel {
                STDIN => {
                    if let Some(stdin) = &mut to_stdin
                        && stdin.write_all(rest).await.is_err()
                    {
                        to_stdin = None;
                    }
                }
                RESIZE => drop(to_sizes.write_all(rest).await),
                CLOSE if rest.first() == Some(&STDIN) => to_stdin = None,
                _ => {}
            }
        }
    };
    let io = Io { stdin, stdout, stderr, resize };
    let outcome = tokio::select! {
        outcome = run(&runtime, pending, io) => outcome,
        // The client has gone: dropping the session's future ends what it ran.
        () = reading => {
            writing.abort();
            return Ok(());
        }
    };
    for carry in carrying {
        let _ = tokio::time::timeout(Duration::from_secs(30), carry).await;
    }
    let mut last = vec![ERROR];
    last.extend_from_slice(status::of(&outcome).to_string().as_bytes());
    let _ = messages.send(Message::Binary(Bytes::from(last))).await;
    // Clients take a close without this code for a broken connection.
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = messages.send(Message::Close(Some(normal))).await;
    drop(messages);
    let _ = tokio::time::timeout(Duration::from_secs(10), writing).await;
    Ok(())
}

async fn carry(mut from: DuplexStream, channel: u8, to: mpsc::Sender<Message>) {
    let mut buffer = vec![0; 32 * 1024];
    buffer[0] = channel;
    while let Ok(n @ 1..) = from.read(&mut buffer[1..]).await {
        if to.send(Message::Binary(Bytes::copy_from_slice(&buffer[..=n]))).await.is_err() {
            return;
        }
    }
}

/// A byte stream carried in binary messages, in which newer clients speak SPDY to forward ports.
pub(crate) async fn tunnel(socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> DuplexStream {
    let (near, far) = duplex(BUFFER);
    let (mut read_half, mut write_half) = tokio::io::split(far);
    let (mut to, mut from) = accept(socket).await.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = from.next().await {
            match message {
                Message::Binary(bytes) if write_half.write_all(&bytes).await.is_ok() => {}
                Message::Ping(_) | Message::Pong(_) => {}
                _ => break,
            }
        }
        let _ = write_half.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 32 * 1024];
        while let Ok(n @ 1..) = read_half.read(&mut buffer).await {
            if to.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                return;
            }
        }
        let _ = to.close().await;
    });
    near
}
