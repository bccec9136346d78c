//! Sessions over SPDY: which streams a client must open, and what becomes of them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, join};
use tokio::sync::mpsc;

use crate::server::Pending;
use crate::spdy::{Connection, Stream, Writer};
use crate::{AttachRequest, ExecRequest, Io, Runtime, StreamError, TermSize, status};

/// How long a client may take to open the streams it asked for.
const OPENING: Duration = Duration::from_secs(30);

/// How long what runs may take to end by itself once its client has said its last: with the end of its input, say.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Which streams a session has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

impl Wanted {
    pub(crate) fn of(pending: &Pending) -> Option<Self> {
        let (stdin, stdout, stderr, tty) = match pending {
            Pending::Exec(ExecRequest { stdin, stdout, stderr, tty, .. })
            | Pending::Attach(AttachRequest { stdin, stdout, stderr, tty, .. }) => (*stdin, *stdout, *stderr, *tty),
            Pending::PortForward(..) => return None,
        };
        // A terminal has one output.
        Some(Self { stdin, stdout, stderr: stderr && !tty, tty })
    }
}

/// Runs what was asked for on these streams; attach sessions end with code 0.
pub(crate) async fn run(runtime: &Arc<dyn Runtime>, pending: Pending, io: Io) -> Result<i32, StreamError> {
    match pending {
        Pending::Exec(request) => runtime.exec(request, io).await,
        Pending::Attach(request) => runtime.attach(request, io).await.map(|()| 0),
        Pending::PortForward(..) => Err(StreamError("not an exec or attach session".to_owned())),
    }
}

/// Turns the texts of a resize stream into sizes.
pub(crate) fn sizes(mut from: impl AsyncRead + Send + Unpin + 'static, to: mpsc::Sender<TermSize>) {
    tokio::spawn(async move {
        let mut held = Vec::new();
        let mut buffer = [0; 256];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            held.extend_from_slice(&buffer[..n]);
            while let Some(end) = held.iter().position(|b| *b == b'}') {
                let text: Vec<u8> = held.drain(..=end).collect();
                if let Some(size) = status::size_of(text.trim_ascii_start()) {
                    let _ = to.send(size).await;
                }
            }
            if held.len() > 1024 {
                return;
            }
        }
    });
}

/// An exec or attach session over SPDY. `structured`: the error stream carries a Status (protocol v4), not plain text.
pub(crate) async fn over_spdy(
    socket: impl AsyncRead + AsyncWrite + Send + 'static,
    runtime: Arc<dyn Runtime>,
    pending: Pending,
    wanted: Wanted,
    structured: bool,
) -> io::Result<()> {
    let mut connection = Connection::new(socket)?;
    let mut kinds = vec!["error"];
    kinds.extend(
        [("stdin", wanted.stdin), ("stdout", wanted.stdout), ("stderr", wanted.stderr), ("resize", wanted.tty)]
            .iter()
            .filter(|(_, on)| *on)
            .map(|(name, _)| *name),
    );
    let mut streams: HashMap<String, Stream> = HashMap::new();
    let opened = tokio::time::timeout(OPENING, async {
        // Older clients open no resize stream: the others are enough once all of them are there.
        while !kinds.iter().filter(|k| **k != "resize").all(|k| streams.contains_key(*k)) {
            let stream = connection.streams.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?;
            let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
            streams.insert(kind, stream);
        }
        Ok::<_, io::Error>(())
    });
    opened.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let Some(error) = streams.remove("error") else { return Ok(()) };
    let (sizes_to, resize) = mpsc::channel(4);
    if let Some(stream) = streams.remove("resize") {
        sizes(stream.from_client, sizes_to);
    } else if wanted.tty {
        let later = connection.streams;
        connection.streams = mpsc::channel(1).1;
        late_resize(later, sizes_to);
    }
    let mut carrying = Vec::new();
    let mut output = |name: &str| {
        streams.remove(name).map(|s| {
            let (near, carry) = connection.writer.output(s.id);
            carrying.push(carry);
            Box::new(near) as crate::Output
        })
    };
    let (stdout, stderr) = (output("stdout"), output("stderr"));
    let stdin = streams.remove("stdin").map(|s| Box::new(s.from_client) as crate::Input);
    let io = Io { stdin, stdout, stderr, resize };
    let mut running = std::pin::pin!(run(&runtime, pending, io));
    let outcome = tokio::select! {
        outcome = &mut running => outcome,
        // Dropping the session's future ends what it ran: nobody could ever end it otherwise.
        () = connection.lost() => match tokio::time::timeout(LAST_WORDS, running).await {
            Ok(outcome) => outcome,
            Err(_) => return Ok(()),
        },
    };
    for carry in carrying {
        // All output goes before the outcome: a client stops reading when it has that.
        let _ = tokio::time::timeout(Duration::from_secs(30), carry).await;
    }
    report(&connection.writer, error.id, &outcome, structured).await?;
    connection.close().await;
    Ok(())
}

fn late_resize(mut streams: mpsc::Receiver<Stream>, to: mpsc::Sender<TermSize>) {
    tokio::spawn(async move {
        while let Some(stream) = streams.recv().await {
            if stream.headers.get("streamtype").is_some_and(|t| t == "resize") {
                sizes(stream.from_client, to.clone());
            }
        }
    });
}

async fn report(writer: &Writer, stream: u32, outcome: &Result<i32, StreamError>, structured: bool) -> io::Result<()> {
    let text = match outcome {
        _ if structured => status::of(outcome).to_string(),
        Ok(0) => String::new(),
        Ok(code) => format!("command terminated with exit code {code}"),
        Err(error) => error.0.clone(),
    };
    if !text.is_empty() {
        writer.send(stream, text.as_bytes()).await?;
    }
    writer.finish(stream).await
}

/// A port-forward session over SPDY: pairs of an error and a data stream, one pair per forwarded connection.
pub(crate) async fn forward_over_spdy(
    socket: impl AsyncRead + AsyncWrite + Send + 'static,
    runtime: Arc<dyn Runtime>,
    sandbox: String,
) -> io::Result<()> {
    let mut connection = Connection::new(socket)?;
    let mut halves: HashMap<String, Stream> = HashMap::new();
    // A server in the pod that says nothing would hold its connection for ever: all end with the client's.
    let mut forwards = tokio::task::JoinSet::new();
    while let Some(stream) = connection.streams.recv().await {
        let header = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
        let request = header("requestid");
        let Some(other) = halves.remove(&request) else {
            if halves.len() < 256 {
                halves.insert(request, stream);
            }
            continue;
        };
        let (error, data) = if header("streamtype") == "data" { (other, stream) } else { (stream, other) };
        let port = data.headers.get("port").and_then(|p| p.parse::<u16>().ok());
        let (writer, runtime, sandbox) = (connection.writer.clone(), runtime.clone(), sandbox.clone());
        while forwards.try_join_next().is_some() {}
        forwards.spawn(async move {
            let (near, carry) = writer.output(data.id);
            let outcome = match port {
                Some(port) => forward(&runtime, &sandbox, port, data.from_client, near).await,
                None => {
                    // Nothing will be written to it: what carries it waits for its end.
                    drop(near);
                    Err(StreamError("no port in the stream's headers".to_owned()))
                }
            };
            let _ = carry.await;
            if let Err(e) = outcome {
                let _ = writer.send(error.id, e.0.as_bytes()).await;
            }
            let _ = writer.finish(error.id).await;
        });
    }
    let _ = tokio::time::timeout(LAST_WORDS, async { while forwards.join_next().await.is_some() {} }).await;
    forwards.shutdown().await;
    connection.close().await;
    Ok(())
}

async fn forward(
    runtime: &Arc<dyn Runtime>,
    sandbox: &str,
    port: u16,
    from: DuplexStream,
    to: DuplexStream,
) -> Result<(), StreamError> {
    runtime.port_forward(sandbox, port, Box::new(join(from, to))).await
}
