//! What the fuzz targets of this crate run: one function a target, from bytes that a client may send.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

use crate::server::Pending;
use crate::session::{Wanted, forward_over_spdy, over_spdy};
use crate::spdy::{HeaderBlocks, control, data};
use crate::{AttachRequest, Duplex, ExecRequest, Io, Runtime, StreamError, websocket};

/// Sends back what comes.
struct Echo;

impl Runtime for Echo {
    fn exec(&self, _: ExecRequest, mut io: Io) -> BoxFuture<'_, Result<i32, StreamError>> {
        async move {
            if let (Some(from), Some(to)) = (&mut io.stdin, &mut io.stdout) {
                tokio::io::copy(from, to).await.map_err(|e| StreamError(e.to_string()))?;
            }
            Ok(7)
        }
        .boxed()
    }

    fn attach(&self, _: AttachRequest, _: Io) -> BoxFuture<'_, Result<(), StreamError>> {
        async { Ok(()) }.boxed()
    }

    fn port_forward(&self, _: &str, _: u16, stream: Box<dyn Duplex>) -> BoxFuture<'_, Result<(), StreamError>> {
        async move {
            let (mut from, mut to) = split(stream);
            let copied = tokio::io::copy(&mut from, &mut to).await.and(to.shutdown().await);
            copied.map_err(|e| StreamError(e.to_string()))
        }
        .boxed()
    }
}

fn pending() -> (Pending, Wanted) {
    let request =
        ExecRequest { container_id: "c".into(), cmd: vec![], tty: true, stdin: true, stdout: true, stderr: false };
    let pending = Pending::Exec(request);
    let wanted = Wanted::of(&pending).expect("a session with streams");
    (pending, wanted)
}

/// What a session is, and over what.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    Exec,
    ExecWebSocket,
    Forward,
    ForwardWebSocket,
}

async fn serve(way: Way, socket: DuplexStream) -> std::io::Result<()> {
    let (pending, wanted) = pending();
    match way {
        Way::Exec => over_spdy(socket, Arc::new(Echo), pending, wanted, true).await,
        Way::ExecWebSocket => websocket::session(socket, Arc::new(Echo), pending, wanted).await,
        Way::Forward => forward_over_spdy(socket, Arc::new(Echo), "s".into()).await,
        Way::ForwardWebSocket => forward_over_spdy(websocket::tunnel(socket).await, Arc::new(Echo), "s".into()).await,
    }
}

/// What the server says to a client that sends these pieces and then is gone; panics if the session does not end.
pub(crate) fn talk(way: Way, pieces: &[&[u8]]) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let (client, server) = duplex(1 << 20);
        let session = tokio::spawn(serve(way, server));
        let (mut from, mut to) = split(client);
        let reading = tokio::spawn(async move {
            let mut said = Vec::new();
            let _ = from.read_to_end(&mut said).await;
            said
        });
        for piece in pieces {
            let _ = to.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        let _ = to.shutdown().await;
        // The clock stands still while anything can go on: this is no limit on the machine's speed.
        let ended = tokio::time::timeout(Duration::from_secs(3600), session).await;
        let _ = ended.expect("the session does not end").expect("the session panics");
        drop(to);
        let said = tokio::time::timeout(Duration::from_secs(3600), reading).await;
        said.expect("something holds the connection").expect("reading panics")
    })
}

/// A client's frame, masked as the protocol wants it.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match u16::try_from(payload.len()) {
        Ok(short @ 0..126) => bytes.push(0x80 | short as u8),
        Ok(short) => {
            bytes.push(0x80 | 126);
            bytes.extend(short.to_be_bytes());
        }
        Err(_) => {
            bytes.push(0x80 | 127);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    bytes.extend([1, 2, 3, 4]);
    bytes.extend(payload.iter().enumerate().map(|(i, b)| b ^ (i as u8 % 4 + 1)));
    bytes
}

/// The parts of an input: a byte that says what it is, two bytes of length, content.
fn parts(mut data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [what, high, low, rest @ ..] = data else { return None };
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (part, after) = rest.split_at(length);
        data = after;
        Some((*what, part))
    })
}

/// What a client sends over SPDY. Header blocks are packed here: nobody guesses those.
fn spdy_frames(input: &[u8]) -> Vec<u8> {
    let mut blocks = HeaderBlocks::new();
    let mut bytes = Vec::new();
    for (what, part) in parts(input).take(64) {
        let (stream, flags) = (u32::from(what >> 4), what >> 3 & 1);
        bytes.extend(match what & 7 {
            // A stream, with its headers as they are before they are packed.
            0 => control(1, flags, &[&stream.to_be_bytes(), &[0; 6], &blocks.pack(part)]),
            // The same, with plain text between commas for headers, which is soon found.
            1 => control(1, flags, &[&stream.to_be_bytes(), &[0; 6], &blocks.pack(&header_block(part))]),
            2 | 3 => data(stream, flags, part),
            4 => control(stream, flags, &[part]),
            5 => control(3, flags, &[&stream.to_be_bytes(), part]),
            _ => part.to_vec(),
        });
    }
    bytes
}

fn header_block(text: &[u8]) -> Vec<u8> {
    let words: Vec<&[u8]> = text.split(|b| *b == b',').collect();
    let mut block = (words.len() as u32 / 2).to_be_bytes().to_vec();
    for word in words {
        block.extend((word.len() as u32).to_be_bytes());
        block.extend_from_slice(word);
    }
    block
}

/// What a client sends over WebSocket: whole frames, or bytes as they are.
fn websocket_frames(input: &[u8]) -> Vec<u8> {
    parts(input).take(64).flat_map(|(what, part)| if what == 0 { part.to_vec() } else { frame(what, part) }).collect()
}

/// An exec session and a port-forward over SPDY.
pub fn spdy(data: &[u8]) {
    let Some((way, input)) = data.split_first() else { return };
    let way = if way & 1 == 0 { Way::Exec } else { Way::Forward };
    talk(way, &[&spdy_frames(input)]);
}

/// An exec session and a port-forward over WebSocket; the latter is SPDY inside.
pub fn websocket(data: &[u8]) {
    match data.split_first() {
        Some((0, input)) => talk(Way::ForwardWebSocket, &[&frame(0x82, &spdy_frames(input))]),
        Some((1, input)) => talk(Way::ForwardWebSocket, &[&websocket_frames(input)]),
        Some((_, input)) => talk(Way::ExecWebSocket, &[&websocket_frames(input)]),
        None => return,
    };
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[("cri_spdy", spdy), ("cri_websocket", websocket)]);
}
