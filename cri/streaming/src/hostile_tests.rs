//! Random and mutated bytes from clients: every session ends, without a panic, once its client is gone; and what a good
//! client sends comes out whole however it is cut into pieces.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};

use crate::server::Pending;
use crate::session::{Wanted, forward_over_spdy, over_spdy};
use crate::spdy::{data, ping, syn_streams};
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
    let wanted = Wanted::of(&pending).unwrap();
    (pending, wanted)
}

#[derive(Debug, Clone, Copy)]
enum Way {
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
fn talk(way: Way, pieces: &[&[u8]]) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
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
        said.expect("something holds the connection").unwrap()
    })
}

/// A client's frame, masked as the protocol wants it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
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

const BINARY: u8 = 0x82;

fn conversation(way: Way, text: &[u8]) -> Vec<u8> {
    let exec = || {
        let streams = [
            (1, &[("streamtype", "error")][..]),
            (3, &[("streamtype", "stdin")]),
            (5, &[("streamtype", "stdout")]),
            (7, &[("streamtype", "resize")]),
        ];
        [syn_streams(&streams), data(7, 0, b"{\"Width\":80,\"Height\":24}"), ping(2), data(3, 0, text), data(3, 1, b"")]
            .concat()
    };
    let forward = || {
        let streams = [
            (1, &[("streamtype", "error"), ("port", "80"), ("requestid", "0")][..]),
            (3, &[("streamtype", "data"), ("port", "80"), ("requestid", "0")]),
        ];
        [syn_streams(&streams), data(1, 1, b""), data(3, 0, text), data(3, 1, b"")].concat()
    };
    match way {
        Way::Exec => exec(),
        Way::Forward => forward(),
        Way::ForwardWebSocket => frame(BINARY, &forward()),
        Way::ExecWebSocket => {
            let channel = |number: u8, bytes: &[u8]| frame(BINARY, &[&[number][..], bytes].concat());
            let size = channel(4, b"{\"Width\":80,\"Height\":24}");
            [size, frame(0x89, b"ping"), channel(0, text), channel(255, &[0])].concat()
        }
    }
}

fn way() -> impl Strategy<Value = Way> {
    prop::sample::select(vec![Way::Exec, Way::ExecWebSocket, Way::Forward, Way::ForwardWebSocket])
}

#[test]
fn a_forward_without_a_port_is_told_so() {
    let streams = [(1, &[("streamtype", "error")][..]), (3, &[("streamtype", "data")])];
    let said = talk(Way::Forward, &[&syn_streams(&streams)]);
    let why = data(1, 0, b"no port in the stream's headers");
    assert!(said.windows(why.len()).any(|w| w == why), "{said:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_bytes_end(way in way(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        talk(way, &[&bytes]);
    }

    #[test]
    fn mutated_conversations_end(
        way in way(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..5),
        end in any::<Index>(),
    ) {
        let mut bytes = conversation(way, b"some text");
        for (at, by) in changes {
            let at = at.index(bytes.len());
            bytes[at] ^= by;
        }
        bytes.truncate(end.index(bytes.len() + 1));
        talk(way, &[&bytes]);
    }

    #[test]
    fn a_conversation_means_the_same_in_any_pieces(
        exec in any::<bool>(),
        text in prop::collection::vec(any::<u8>(), 1..3000),
        cuts in prop::collection::vec(any::<Index>(), 0..6),
    ) {
        // Where nothing is compressed or masked, the echo is seen as it is.
        let way = if exec { Way::Exec } else { Way::Forward };
        let bytes = conversation(way, &text);
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len())).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        let said = talk(way, &pieces);
        let echo = data(if exec { 5 } else { 3 }, 0, &text);
        prop_assert!(said.windows(echo.len()).any(|w| w == echo), "{said:?}");
    }
}
