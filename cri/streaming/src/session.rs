//! One exec or attach over WebSocket: each message starts with its channel's number.

use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

use crate::server::Request;
use crate::{Io, Runtime, StreamError};

const BUFFER: usize = 32 * 1024;

pub(crate) async fn run(socket: WebSocket, req: Request, runtime: Arc<dyn Runtime>) {
    let (want_in, want_out, want_err) = match &req {
        Request::Exec(r) => (r.stdin, r.stdout, r.stderr && !r.tty),
        Request::Attach(r) => (r.stdin, r.stdout, r.stderr && !r.tty),
        Request::PortForward => return,
    };
    let (mut sink, mut source) = socket.split();
    let (to_client, mut outgoing) = mpsc::channel::<Vec<u8>>(8);
    let (resize_tx, resize) = mpsc::channel(4);
    let (in_near, in_far) = duplex(BUFFER);
    let out = want_out.then(|| pump(1, to_client.clone()));
    let err = want_err.then(|| pump(2, to_client.clone()));
    let (stdout, out_task) = out.unzip();
    let (stderr, err_task) = err.unzip();
    let io = Io {
        stdin: want_in.then(|| Box::new(in_far) as _),
        stdout: stdout.map(|s| Box::new(s) as _),
        stderr: stderr.map(|s| Box::new(s) as _),
        resize,
    };
    let writer = tokio::spawn(async move {
        while let Some(data) = outgoing.recv().await {
            if sink.send(Message::Binary(Bytes::from(data))).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    let mut stdin = want_in.then_some(in_near);
    let reader = async {
        while let Some(Ok(message)) = source.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Close(_) => break,
                _ => continue,
            };
            match data.split_first() {
                Some((0, rest)) => {
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(rest).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some((4, rest)) => {
                    if let Ok(size) = serde_json::from_slice(rest) {
                        let _ = resize_tx.try_send(size);
                    }
                }
                Some((255, [0])) => stdin = None,
                _ => {}
            }
        }
    };
    let work = async {
        match req {
            Request::Exec(r) => runtime.exec(r, io).await,
            Request::Attach(r) => runtime.attach(r, io).await.map(|()| 0),
            Request::PortForward => Err(StreamError("port-forward is not supported yet".into())),
        }
    };
    tokio::pin!(work, reader);
    let result = tokio::select! {
        result = &mut work => Some(result),
        () = &mut reader => None,
    };
    if let Some(result) = result {
        for task in [out_task, err_task].into_iter().flatten() {
            let _ = task.await;
        }
        let mut message = vec![3];
        message.extend(status(&result).to_string().bytes());
        let _ = to_client.send(message).await;
    }
    drop(to_client);
    let _ = writer.await;
}

fn pump(channel: u8, to: mpsc::Sender<Vec<u8>>) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (near, mut far) = duplex(BUFFER);
    let task = tokio::spawn(async move {
        let mut buf = vec![0; BUFFER];
        while let Ok(n @ 1..) = far.read(&mut buf).await {
            let mut message = Vec::with_capacity(n + 1);
            message.push(channel);
            message.extend_from_slice(&buf[..n]);
            if to.send(message).await.is_err() {
                return;
            }
        }
    });
    (near, task)
}

fn status(result: &Result<i32, StreamError>) -> Value {
    match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        Err(e) => json!({"metadata": {}, "status": "Failure", "reason": "InternalError",
            "message": e.to_string(), "code": 500}),
    }
}
