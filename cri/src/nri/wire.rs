//! One plugin's socket: ttrpc in both directions over one multiplexed stream.
//!
//! The stream (the trunk) carries frames: connection number and length, 4 bytes each, most significant first, then as many
//! bytes. Connection 1 is where we call the plugin, connection 2 where it calls us. Inside a connection each ttrpc message is
//! length and stream number (4 bytes each), type, flags, and a protobuf envelope.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use prost::Message;
use proto::ttrpc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::daemon::lock;

/// The plugin's service: requests from here.
const TO_PLUGIN: u32 = 1;
/// The runtime's service: requests from the plugin.
const TO_RUNTIME: u32 = 2;
/// Longest ttrpc message of the protocol.
pub(super) const LONGEST: usize = 4 << 20;
const HEADER: usize = 10;
/// Peers read through a buffer of this size and take a longer frame only where it ends what they read just then: so a message
/// is one frame of at most this many bytes and one with the rest.
const FIRST_FRAME: usize = 4096;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
/// gRPC codes.
pub(super) const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The plugin said so.
    #[error("{message} (code {code})")]
    Refused {
        /// gRPC code.
        code: i32,
        /// In words.
        message: String,
    },
    /// No answer in time.
    #[error("no answer after {} s", .0.as_secs_f32())]
    Late(Duration),
    /// The connection is gone.
    #[error("the connection is closed")]
    Closed,
    /// More than a ttrpc message can hold.
    #[error("a message of {0} bytes is longer than ttrpc allows")]
    TooLong(usize),
    /// The answer is no message of its type.
    #[error("the answer cannot be read: {0}")]
    Garbled(#[from] prost::DecodeError),
}

/// A request from the plugin.
pub(super) struct Incoming {
    /// Full name of the service.
    pub(super) service: String,
    /// Name of the call.
    pub(super) method: String,
    /// The encoded message.
    pub(super) payload: Vec<u8>,
    stream: u32,
}

type Answer = Result<Vec<u8>, (i32, String)>;

/// A connection to a plugin.
pub(super) struct Connection {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Mutex<HashMap<u32, oneshot::Sender<ttrpc::Response>>>,
    next: AtomicU32,
    closed: watch::Sender<bool>,
}

/// A ttrpc message with its header.
fn message(stream: u32, kind: u8, body: &[u8]) -> Result<Vec<u8>, CallError> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= LONGEST);
    let length = length.ok_or(CallError::TooLong(body.len()))?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(body);
    Ok(bytes)
}

/// A message as frames of a connection. Pure.
fn frames(connection: u32, message: &[u8]) -> Vec<u8> {
    let (first, rest) = message.split_at(message.len().min(FIRST_FRAME));
    let mut bytes = Vec::with_capacity(message.len() + 16);
    for part in [first, rest].into_iter().filter(|p| !p.is_empty()) {
        bytes.extend(connection.to_be_bytes());
        bytes.extend((part.len() as u32).to_be_bytes());
        bytes.extend(part);
    }
    bytes
}

/// What of a ttrpc message has come so far.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    /// What has been taken. Moving the rest forward for each message would take minutes where a frame is full of empty ones.
    taken: usize,
}

impl Partial {
    /// Takes in what a frame brought.
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the first whole message out: stream, type and body.
    fn take(&mut self) -> Result<Option<(u32, u8, Vec<u8>)>, String> {
        let Some((header, rest)) = self.bytes[self.taken..].split_first_chunk::<HEADER>() else { return Ok(None) };
        let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (length, stream, kind) = (number(0) as usize, number(4), header[8]);
        if length > LONGEST {
            return Err(format!("a message of {length} bytes"));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let body = rest[..length].to_vec();
        self.taken += HEADER + length;
        Ok(Some((stream, kind, body)))
    }
}

impl Connection {
    /// Takes a socket over; what the plugin asks comes out of the receiver, which ends with the connection.
    pub(super) fn start(stream: UnixStream) -> (std::sync::Arc<Self>, mpsc::Receiver<Incoming>) {
        let (reader, writer) = stream.into_split();
        let connection = std::sync::Arc::new(Self {
            writer: tokio::sync::Mutex::new(writer),
            waiting: Mutex::default(),
            next: AtomicU32::new(1),
            closed: watch::Sender::new(false),
        });
        let (asked, incoming) = mpsc::channel(16);
        let own = connection.clone();
        tokio::spawn(async move {
            let mut closed = own.closed.subscribe();
            tokio::select! {
                end = own.read(reader, asked) => if let Err(error) = end {
                    tracing::debug!(%error, "a plugin's connection ends");
                },
                _ = closed.wait_for(|c| *c) => {}
            }
            own.close();
        });
        (connection, incoming)
    }

    async fn read(&self, mut reader: OwnedReadHalf, asked: mpsc::Sender<Incoming>) -> Result<(), String> {
        let (mut answers, mut requests) = (Partial::default(), Partial::default());
        loop {
            let connection = reader.read_u32().await.map_err(|e| e.to_string())?;
            let length = reader.read_u32().await.map_err(|e| e.to_string())? as usize;
            if length > LONGEST + HEADER {
                return Err(format!("a frame of {length} bytes"));
            }
            let mut bytes = vec![0; length];
            reader.read_exact(&mut bytes).await.map_err(|e| e.to_string())?;
            match connection {
                TO_PLUGIN => {
                    answers.add(&bytes);
                    while let Some((stream, kind, body)) = answers.take()? {
                        if kind == RESPONSE
                            && let Some(waiting) = lock(&self.waiting).remove(&stream)
                        {
                            let _ = waiting.send(ttrpc::Response::decode(&*body).map_err(|e| e.to_string())?);
                        }
                    }
                }
                TO_RUNTIME => {
                    requests.add(&bytes);
                    while let Some((stream, kind, body)) = requests.take()? {
                        if kind == REQUEST {
                            let r = ttrpc::Request::decode(&*body).map_err(|e| e.to_string())?;
                            let (service, method, payload) = (r.service, r.method, r.payload);
                            let ask = Incoming { service, method, payload, stream };
                            asked.send(ask).await.map_err(|_| "nobody serves the plugin any more".to_owned())?;
                        }
                    }
                }
                // Nobody listens there.
                _ => {}
            }
        }
    }

    async fn write(&self, connection: u32, stream: u32, kind: u8, body: &[u8]) -> Result<(), CallError> {
        let bytes = frames(connection, &message(stream, kind, body)?);
        let mut closed = self.closed.subscribe();
        let written = async { self.writer.lock().await.write_all(&bytes).await };
        let written = tokio::select! {
            written = written => written.is_ok(),
            _ = closed.wait_for(|c| *c) => false,
        };
        if !written {
            self.close();
            return Err(CallError::Closed);
        }
        Ok(())
    }

    /// Calls the plugin.
    ///
    /// # Errors
    /// It refuses, is gone, or does not answer in time; the connection is closed when a request could be written only in part.
    pub(super) async fn call<T: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
        limit: Duration,
    ) -> Result<T, CallError> {
        let stream = self.next.fetch_add(2, Ordering::Relaxed);
        let envelope = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
            metadata: Vec::new(),
        };
        let body = envelope.encode_to_vec();
        if body.len() > LONGEST {
            return Err(CallError::TooLong(body.len()));
        }
        let (send, answer) = oneshot::channel();
        lock(&self.waiting).insert(stream, send);
        let mut closed = self.closed.subscribe();
        let exchange = async {
            self.write(TO_PLUGIN, stream, REQUEST, &body).await?;
            tokio::select! {
                answer = answer => answer.map_err(|_| CallError::Closed),
                _ = closed.wait_for(|c| *c) => Err(CallError::Closed),
            }
        };
        let answer = tokio::time::timeout(limit, exchange).await;
        lock(&self.waiting).remove(&stream);
        let answer = answer.map_err(|_| {
            // What was sent of a request cannot be taken back, and what comes of its answer means nothing.
            self.close();
            CallError::Late(limit)
        })??;
        match answer.status.filter(|s| s.code != 0) {
            Some(status) => Err(CallError::Refused { code: status.code, message: status.message }),
            None => Ok(T::decode(&*answer.payload)?),
        }
    }

    /// Answers what the plugin asked.
    pub(super) async fn answer(&self, to: &Incoming, answer: Answer) {
        let response = match answer {
            Ok(payload) => ttrpc::Response { status: None, payload },
            Err((code, message)) => {
                ttrpc::Response { status: Some(ttrpc::Status { code, message }), payload: Vec::new() }
            }
        };
        if let Err(error) = self.write(TO_RUNTIME, to.stream, RESPONSE, &response.encode_to_vec()).await {
            tracing::debug!(%error, "a plugin's request is not answered");
        }
    }

    /// Closes the connection; what waits fails.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
        lock(&self.waiting).clear();
    }

    /// Whether it is closed.
    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Returns when it is closed.
    pub(super) async fn closed(&self) {
        let _ = self.closed.subscribe().wait_for(|c| *c).await;
    }
}

/// An encoded answer, or that the request cannot be read.
pub(super) fn decoded<T: Message + Default>(payload: &[u8]) -> Result<T, (i32, String)> {
    T::decode(payload).map_err(|e| (INTERNAL, e.to_string()))
}

/// Bytes of one direction, in frames of any size: every message that was sent comes out.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn put_together(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    let read = |size: usize| {
        let (mut partial, mut found) = (Partial::default(), Vec::new());
        for chunk in bytes.chunks(size) {
            partial.add(chunk);
            loop {
                match partial.take() {
                    Ok(Some(one)) => found.push(one),
                    Ok(None) => break,
                    Err(why) => return (found, Some(why)),
                }
            }
        }
        (found, None)
    };
    let whole = read(bytes.len().max(1));
    assert!(whole == read(usize::from(*size) + 1));
    for (stream, kind, body) in whole.0 {
        assert!(message(stream, kind, &body).is_ok_and(|bytes| bytes.len() == HEADER + body.len()));
        if let Ok(request) = ttrpc::Request::decode(&*body) {
            let _ = decoded::<proto::nri::RegisterPluginRequest>(&request.payload);
        }
        if let Ok(response) = ttrpc::Response::decode(&*body) {
            let _ = decoded::<proto::nri::CreateContainerResponse>(&response.payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_put_together_from_any_frames() {
        let long = vec![7u8; 9000];
        let bytes = [message(1, REQUEST, b"abc").unwrap(), message(3, RESPONSE, &long).unwrap()].concat();
        for size in [1, 3, 10, 4096, bytes.len()] {
            let (mut partial, mut found) = (Partial::default(), Vec::new());
            for chunk in bytes.chunks(size) {
                partial.add(chunk);
                while let Some(one) = partial.take().unwrap() {
                    found.push(one);
                }
            }
            assert_eq!(found, [(1, REQUEST, b"abc".to_vec()), (3, RESPONSE, long.clone())], "frames of {size}");
        }
    }

    #[test]
    fn a_long_message_is_one_frame_of_the_readers_buffer_and_one_with_the_rest() {
        let sent = frames(2, &[1; 5000]);
        assert_eq!(sent[..8], [0, 0, 0, 2, 0, 0, 0x10, 0]);
        assert_eq!(sent[8 + 4096..][..8], [0, 0, 0, 2, 0, 0, 0x03, 0x88]);
        assert_eq!(frames(1, b"x"), [0, 0, 0, 1, 0, 0, 0, 1, b'x']);
    }

    #[test]
    fn messages_that_are_too_long_are_refused_both_ways() {
        assert!(matches!(message(1, REQUEST, &vec![0; LONGEST + 1]), Err(CallError::TooLong(_))));
        assert!(Partial { bytes: vec![0xff; 10], taken: 0 }.take().is_err());
    }

    #[test]
    fn a_frame_full_of_empty_messages_is_read_at_once() {
        let (mut partial, mut count) = (Partial::default(), 0);
        partial.add(&message(1, REQUEST, b"").unwrap().repeat(LONGEST / HEADER));
        let start = std::time::Instant::now();
        while partial.take().unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, LONGEST / HEADER);
        // Where each message moved the rest this took minutes.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn calls_end_when_the_peer_is_silent_or_gone() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (connection, _incoming) = Connection::start(ours);
        let limit = Duration::from_millis(100);
        let late: Result<ttrpc::Status, _> = connection.call("s", "m", &ttrpc::Status::default(), limit).await;
        assert!(matches!(late, Err(CallError::Late(_))) && connection.is_closed());
        drop(theirs);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (connection, _incoming) = Connection::start(ours);
        drop(theirs);
        let limit = Duration::from_secs(60);
        let gone: Result<ttrpc::Status, _> = connection.call("s", "m", &ttrpc::Status::default(), limit).await;
        assert!(matches!(gone, Err(CallError::Closed)));
    }

    #[tokio::test]
    async fn random_bytes_from_a_plugin_end_its_connection_and_nothing_else() {
        for seed in 0..50u64 {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let (connection, mut incoming) = Connection::start(ours);
            let bytes: Vec<u8> =
                (0..200u64).map(|n| (n.wrapping_mul(seed * 2 + 1).wrapping_add(seed) >> 1) as u8).collect();
            let _ = theirs.write_all(&bytes).await;
            drop(theirs);
            while incoming.recv().await.is_some() {}
            tokio::time::timeout(Duration::from_secs(20), connection.closed()).await.unwrap();
        }
    }
}
