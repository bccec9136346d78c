//! A connection: streams as they are opened, and a way to write to them. One task reads, one writes.

use std::collections::{BTreeMap, HashMap};
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::sync::mpsc;

use super::frame::{self, Encoder, FIN, Frame, Reader};

/// Bytes held for a stream whose reader is slow; then the connection waits.
const BUFFER: usize = 64 * 1024;
/// Frames that wait for a slow client before whoever writes them waits, too: a quarter of a megabyte with what is being written.
const QUEUE: usize = 6;
/// Streams that one client may have open.
const MOST_STREAMS: usize = 1024;

/// A stream that the client opened.
pub(crate) struct Stream {
    /// Its number.
    pub(crate) id: u32,
    /// Its headers, names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// What the client sends on it.
    pub(crate) from_client: DuplexStream,
}

/// Writes to the client.
#[derive(Clone)]
pub(crate) struct Writer {
    frames: mpsc::Sender<Vec<u8>>,
}

impl Writer {
    /// Sends bytes on a stream, waiting while the client is slow.
    pub(crate) async fn send(&self, stream: u32, bytes: &[u8]) -> io::Result<()> {
        self.put(frame::data(stream, 0, bytes)).await
    }

    /// Tells the client that nothing more comes on a stream.
    pub(crate) async fn finish(&self, stream: u32) -> io::Result<()> {
        self.put(frame::data(stream, FIN, &[])).await
    }

    async fn put(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.frames.send(bytes).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// A stream's writing end; a task carries what is written there to the client.
    pub(crate) fn output(&self, stream: u32) -> (DuplexStream, tokio::task::JoinHandle<()>) {
        let (near, mut far) = duplex(BUFFER);
        let writer = self.clone();
        let carry = tokio::spawn(async move {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(n @ 1..) = far.read(&mut buffer).await {
                if writer.send(stream, &buffer[..n]).await.is_err() {
                    return;
                }
            }
            let _ = writer.finish(stream).await;
        });
        (near, carry)
    }
}

/// A client's connection.
pub(crate) struct Connection {
    /// Streams as the client opens them; ends with the connection.
    pub(crate) streams: mpsc::Receiver<Stream>,
    /// For writing.
    pub(crate) writer: Writer,
    writing: tokio::task::JoinHandle<()>,
    reading: tokio::task::JoinHandle<()>,
}

impl Connection {
    /// Serves `socket`.
    pub(crate) fn new(socket: impl AsyncRead + AsyncWrite + Send + 'static) -> io::Result<Self> {
        let (from, mut to) = split(socket);
        let (frames, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        let (opened, streams) = mpsc::channel(MOST_STREAMS);
        let encoder = Encoder::new()?;
        let writing = tokio::spawn(async move {
            while let Some(bytes) = queue.recv().await {
                if to.write_all(&bytes).await.is_err() || (queue.is_empty() && to.flush().await.is_err()) {
                    return;
                }
            }
            let _ = to.shutdown().await;
        });
        let answers = frames.clone();
        let reading = tokio::spawn(async move {
            if let Err(error) = read(Reader::new(from), encoder, opened, answers).await {
                tracing::debug!(%error, "stream connection ended");
            }
        });
        Ok(Self { streams, writer: Writer { frames }, writing, reading })
    }

    /// Waits until nothing more can come: the client has gone, or was silent for too long.
    pub(crate) async fn lost(&mut self) {
        let _ = (&mut self.reading).await;
    }

    /// Writes out what is queued and closes the connection.
    pub(crate) async fn close(self) {
        self.reading.abort();
        drop((self.writer, self.streams));
        // A client that reads nothing more must not hold the connection.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(10), self.writing).await;
    }
}

async fn read<R: AsyncRead + Unpin>(
    mut reader: Reader<R>,
    mut encoder: Encoder,
    opened: mpsc::Sender<Stream>,
    answers: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut open: HashMap<u32, DuplexStream> = HashMap::new();
    let broken = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    while let Some(frame) = reader.next().await? {
        match frame {
            Frame::SynStream { stream, fin, headers } => {
                if open.len() >= MOST_STREAMS {
                    return Err(io::Error::other("too many streams"));
                }
                let (near, far) = duplex(BUFFER);
                if !fin {
                    open.insert(stream, near);
                }
                answers.send(encoder.syn_reply(stream)?).await.map_err(broken)?;
                if opened.send(Stream { id: stream, headers, from_client: far }).await.is_err() {
                    return Ok(());
                }
            }
            Frame::Data { stream, fin, bytes } => {
                let gone = match open.get_mut(&stream) {
                    Some(to) => to.write_all(&bytes).await.is_err() || fin,
                    None => false,
                };
                if gone {
                    open.remove(&stream);
                }
            }
            Frame::Reset { stream } => drop(open.remove(&stream)),
            Frame::Ping { id } => answers.send(frame::ping(id)).await.map_err(broken)?,
            Frame::GoAway | Frame::Other => {}
        }
    }
    Ok(())
}
