//! A log as a stream of bytes for a client, with or without following.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{BoxStream, StreamExt};
use inotify::{EventStream, Inotify, WatchMask};
use tokio::sync::mpsc;

use super::LogOptions;
use super::session::{Session, Step};
use crate::LogFile;

/// A look at the file without a notification: the safety net for file systems that give none.
const SAFETY_NET: Duration = Duration::from_secs(5);
/// The same where inotify is exhausted.
const WITHOUT_INOTIFY: Duration = Duration::from_millis(500);
/// How long after an exit the last lines may still arrive on disk.
const SETTLE: Duration = Duration::from_millis(50);

/// Opens the log and gives its bytes; with `follow` until the container has exited and the log is drained, or the
/// stream is dropped.
///
/// # Errors
/// The log cannot be opened or its start not be found.
pub async fn stream(file: LogFile, options: LogOptions) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
    let LogFile { path, exited } = file;
    let follow = options.follow;
    let session = {
        let path = path.clone();
        blocking(move || Session::open(&path, &options)).await?
    };
    let (tx, rx) = mpsc::channel(4);
    tokio::spawn(async move {
        let result = if follow { follow_log(session, exited, &tx).await } else { read_log(session, &tx).await };
        if let Err(e) = result {
            let _ = tx.send(Err(e)).await;
        }
    });
    Ok(futures::stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|item| (item, rx)) }).boxed())
}

type Sender = mpsc::Sender<io::Result<Bytes>>;

/// Where a run of steps stopped.
enum Stop {
    /// At the present end.
    End,
    /// The client has all it asked for, or is gone.
    Done,
}

async fn read_log(session: Session, tx: &Sender) -> io::Result<()> {
    let (mut session, stop) = drain(session, false, tx).await?;
    if matches!(stop, Stop::End) {
        let _ = send(tx, session.finish()).await;
    }
    Ok(())
}

async fn follow_log(session: Session, exited: BoxFuture<'static, ()>, tx: &Sender) -> io::Result<()> {
    // The watch first, then the read: what is written in between is seen by one of them.
    let mut changes = Changes::of(session.live());
    let mut exited = exited.fuse();
    let mut session = session;
    loop {
        let stop;
        (session, stop) = drain(session, false, tx).await?;
        if matches!(stop, Stop::Done) {
            return Ok(());
        }
        tokio::select! {
            () = tx.closed() => return Ok(()),
            () = changes.next() => {}
            () = &mut exited => break,
        }
    }
    for _ in 0..2 {
        let stop;
        (session, stop) = drain(session, true, tx).await?;
        if matches!(stop, Stop::Done) {
            return Ok(());
        }
        tokio::time::sleep(SETTLE).await;
    }
    let (mut session, stop) = drain(session, true, tx).await?;
    if matches!(stop, Stop::End) {
        let _ = send(tx, session.finish()).await;
    }
    Ok(())
}

/// Sends everything up to the present end.
async fn drain(mut session: Session, exited: bool, tx: &Sender) -> io::Result<(Session, Stop)> {
    loop {
        let step;
        (session, step) = blocking(move || {
            let step = session.step(exited)?;
            Ok((session, step))
        })
        .await?;
        let (data, stop) = match step {
            Step::Data(data) => (data, None),
            Step::End(data) => (data, Some(Stop::End)),
            Step::Full(data) => (data, Some(Stop::Done)),
        };
        if !send(tx, data).await {
            return Ok((session, Stop::Done));
        }
        if let Some(stop) = stop {
            return Ok((session, stop));
        }
    }
}

async fn send(tx: &Sender, data: Vec<u8>) -> bool {
    data.is_empty() || tx.send(Ok(data.into())).await.is_ok()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Notifications about the folder of a log.
struct Changes {
    events: Option<EventStream<[u8; 4096]>>,
}

impl Changes {
    fn of(live: &std::path::Path) -> Self {
        let events = || -> io::Result<_> {
            let inotify = Inotify::init()?;
            let dir = live.parent().unwrap_or(live);
            let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE;
            inotify.watches().add(dir, mask)?;
            inotify.into_event_stream([0; 4096])
        };
        match events() {
            Ok(events) => Self { events: Some(events) },
            Err(e) => {
                tracing::warn!(path = %live.display(), error = %e, "no inotify for this log, looking twice a second");
                Self { events: None }
            }
        }
    }

    /// Ready when something may have changed.
    async fn next(&mut self) {
        match &mut self.events {
            Some(events) => {
                if let Ok(None | Some(Err(_))) = tokio::time::timeout(SAFETY_NET, events.next()).await {
                    self.events = None;
                }
            }
            None => tokio::time::sleep(WITHOUT_INOTIFY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    fn line(n: usize) -> String {
        format!("2026-01-01T00:00:00.{n:09}Z stdout F line {n}\n")
    }

    fn options() -> LogOptions {
        LogOptions { follow: true, ..LogOptions::default() }
    }

    async fn collect(mut stream: BoxStream<'static, io::Result<Bytes>>) -> String {
        let mut all = Vec::new();
        while let Some(part) = stream.next().await {
            all.extend(part.unwrap());
        }
        String::from_utf8(all).unwrap()
    }

    /// Writes lines, rotating as a kubelet and its runtime do: rename, then (a moment later) open the new file.
    fn write_with_rotation(live: &Path, lines: usize, every: usize, compress: bool, pause: Duration) {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(live).unwrap();
        for n in 0..lines {
            if n > 0 && n % every == 0 {
                let old = live.with_file_name(format!("0.log.20260101-{n:06}"));
                fs::rename(live, old).unwrap();
                // The writer still has the old file.
                file.write_all(format!("2026-01-01T00:00:00.{n:09}Z stdout P li").as_bytes()).unwrap();
                file.write_all(b"ne \n").unwrap();
                file.write_all(format!("2026-01-01T00:00:00.{n:09}Z stdout F {n}\n").as_bytes()).unwrap();
                file = fs::OpenOptions::new().append(true).create(true).open(live).unwrap();
                if compress {
                    let plain =
                        super::super::files::rotated(live).into_iter().filter(|p| p.extension().unwrap() != "gz");
                    let plain: Vec<_> = plain.collect();
                    for old in &plain[..plain.len().saturating_sub(1)] {
                        gzip(old);
                    }
                }
                continue;
            }
            let line = line(n);
            let (a, b) = line.split_at(line.len() / 2);
            file.write_all(a.as_bytes()).unwrap();
            file.write_all(b.as_bytes()).unwrap();
            if n % 50 == 0 && !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    }

    fn gzip(old: &Path) {
        let name = old.file_name().unwrap().to_str().unwrap();
        let (temporary, done) = (old.with_file_name(format!("{name}.tmp")), old.with_file_name(format!("{name}.gz")));
        let mut gz = flate2::write::GzEncoder::new(fs::File::create(&temporary).unwrap(), flate2::Compression::fast());
        gz.write_all(&fs::read(old).unwrap()).unwrap();
        gz.finish().unwrap();
        fs::rename(temporary, done).unwrap();
        fs::remove_file(old).unwrap();
    }

    async fn follow_rotations(lines: usize, every: usize, compress: bool, pause: Duration) {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        fs::write(&live, "").unwrap();
        let (done_tx, done) = tokio::sync::oneshot::channel::<()>();
        let file = LogFile { path: live.clone(), exited: async { drop(done.await) }.boxed() };
        let reader = tokio::spawn(collect(stream(file, options()).await.unwrap()));
        tokio::task::spawn_blocking(move || write_with_rotation(&live, lines, every, compress, pause)).await.unwrap();
        done_tx.send(()).unwrap();
        let all = tokio::time::timeout(Duration::from_secs(60), reader).await.unwrap().unwrap();
        for (n, got) in all.lines().enumerate() {
            assert_eq!(got, format!("line {n}"));
        }
        assert_eq!(all.lines().count(), lines);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_line_is_lost_over_rotations() {
        follow_rotations(5000, 97, false, Duration::from_millis(1)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_line_is_lost_when_rotation_outruns_the_reader() {
        follow_rotations(20_000, 113, false, Duration::ZERO).await;
        follow_rotations(5000, 97, true, Duration::ZERO).await;
    }

    #[tokio::test]
    async fn new_lines_come_at_once_and_the_exit_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        fs::write(&live, line(1) + &line(2)).unwrap();
        let (done_tx, done) = tokio::sync::oneshot::channel::<()>();
        let file = LogFile { path: live.clone(), exited: async { drop(done.await) }.boxed() };
        let mut stream = stream(file, LogOptions { tail_lines: Some(1), ..options() }).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "line 2\n");
        let mut log = fs::OpenOptions::new().append(true).open(&live).unwrap();
        log.write_all(line(3).as_bytes()).unwrap();
        let next = tokio::time::timeout(Duration::from_secs(2), stream.next()).await.expect("inotify tells");
        assert_eq!(next.unwrap().unwrap(), "line 3\n");
        log.write_all(line(4).as_bytes()).unwrap();
        done_tx.send(()).unwrap();
        let rest = tokio::time::timeout(Duration::from_secs(2), collect(stream)).await.unwrap();
        assert_eq!(rest, "line 4\n");
    }

    #[tokio::test]
    async fn a_dead_containers_log_ends_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        fs::write(&live, line(1)).unwrap();
        let file = LogFile { path: live, exited: futures::future::ready(()).boxed() };
        assert_eq!(collect(stream(file, options()).await.unwrap()).await, "line 1\n");
    }

    #[tokio::test]
    async fn limits_end_a_follower() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        fs::write(&live, line(1) + &line(2)).unwrap();
        let file = LogFile { path: live, exited: futures::future::pending().boxed() };
        let limited = LogOptions { limit_bytes: Some(3), ..options() };
        assert_eq!(collect(stream(file, limited).await.unwrap()).await, "lin");
    }
}
