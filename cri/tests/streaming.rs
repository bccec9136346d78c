//! Exec, attach and port-forward sessions on real containers: many at once, much through them, and their ends.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Client, Daemon, remove_pod, start_pod, until};
use futures::{SinkExt, StreamExt};
use proto::cri;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Bytes, Message};

type Socket = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

/// A connection made in the network namespace of the daemon.
fn connect(init: u32, address: &str) -> std::io::Result<TcpStream> {
    let address = address.to_owned();
    let connecting = std::thread::spawn(move || {
        let space = fs::File::open(format!("/proc/{init}/ns/net"))?;
        nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET)?;
        TcpStream::connect(address)
    });
    connecting.join().unwrap()
}

async fn exec_url(client: &mut Client, id: &str, script: &str, tty: bool) -> String {
    let cmd = vec!["/bin/busybox".into(), "sh".into(), "-c".into(), script.into()];
    let ask = cri::ExecRequest { container_id: id.to_owned(), cmd, tty, stdin: true, stdout: true, stderr: !tty };
    client.exec(ask).await.unwrap().into_inner().url
}

/// Opens a session at an address; the server's refusal otherwise.
async fn open(init: u32, url: &str, protocol: &str) -> Result<Socket, String> {
    let address = url.split('/').nth(2).unwrap();
    let stream = connect(init, address).map_err(|e| e.to_string())?;
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let opened = tokio_tungstenite::client_async(request, stream).await;
    opened.map(|(socket, _)| socket).map_err(|e| e.to_string())
}

async fn say(socket: &mut Socket, channel: u8, text: &[u8]) {
    socket.send(Message::Binary(Bytes::from([&[channel], text].concat()))).await.unwrap();
}

/// Reads output until it has this in it.
async fn hear(socket: &mut Socket, wanted: &str) -> String {
    let mut heard = String::new();
    let end = tokio::time::timeout(Duration::from_secs(120), async {
        while !heard.contains(wanted) {
            match socket.next().await {
                Some(Ok(Message::Binary(bytes))) if bytes.len() > 1 => {
                    heard.push_str(&String::from_utf8_lossy(&bytes[1..]));
                }
                Some(Ok(_)) => {}
                other => panic!("the session ended with {other:?} after {heard:?}"),
            }
        }
    });
    end.await.unwrap_or_else(|_| panic!("{wanted:?} does not come"));
    heard
}

/// The status that ends a session.
async fn outcome(socket: &mut Socket) -> serde_json::Value {
    let ended = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Binary(bytes))) if bytes.first() == Some(&3) => {
                    return serde_json::from_slice(&bytes[1..]).unwrap();
                }
                Some(Ok(_)) => {}
                other => panic!("the session ended with {other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), ended).await.expect("the session does not end")
}

fn field(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_commands_run_at_once_each_with_its_own_streams() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let (sandbox, id) = start_pod(&mut client, "many", "exec /bin/busybox sleep 1000").await.unwrap();
    let threads = field(daemon.pid(), "Threads:");
    let mut urls = Vec::new();
    for _ in 0..100 {
        let script = "while read -r line; do echo \"<$line>\"; done; exit 7";
        urls.push(exec_url(&mut client, &id, script, false).await);
    }
    let opening = urls.iter().map(|url| open(daemon.init(), url, "v5.channel.k8s.io"));
    let opened: Vec<_> = futures::stream::iter(opening).buffered(8).collect().await;
    let mut open_now: Vec<(usize, Socket)> = opened.into_iter().map(Result::unwrap).enumerate().collect();
    for (n, socket) in &mut open_now {
        say(socket, 0, format!("line {n}\n").as_bytes()).await;
    }
    for (n, socket) in &mut open_now {
        assert_eq!(hear(socket, ">\n").await, format!("<line {n}>\n"));
    }
    // None of them keeps a thread: hundreds that stay open would use up those that other calls need.
    until("threads that go", Duration::from_secs(60), || {
        (field(daemon.pid(), "Threads:") < threads + 30).then_some(())
    });
    let ask =
        cri::ExecSyncRequest { container_id: id.clone(), cmd: vec!["/bin/busybox".into(), "true".into()], timeout: 60 };
    assert_eq!(client.exec_sync(ask).await.unwrap().into_inner().exit_code, 0);
    for (_, socket) in &mut open_now {
        say(socket, 255, &[0]).await;
    }
    for (_, socket) in &mut open_now {
        let status = outcome(socket).await;
        assert_eq!(status["details"]["causes"][0]["message"], "7", "{status}");
    }
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_good_once_a_terminal_gets_its_sizes_and_silence_ends_a_session() {
    let Some(daemon) = Daemon::start_with("streaming_idle_seconds = 5") else { return };
    let mut client = daemon.client().await;
    let (sandbox, id) = start_pod(&mut client, "ends", "exec /bin/busybox sleep 1000").await.unwrap();
    let url = exec_url(&mut client, &id, "while :; do /bin/busybox stty size; read -r line; done", true).await;
    let mut socket = open(daemon.init(), &url, "v4.channel.k8s.io").await.unwrap();
    let again = open(daemon.init(), &url, "v4.channel.k8s.io").await.err().unwrap();
    assert!(again.contains("404"), "{again}");
    let unknown = url.rsplit_once('/').unwrap().0.to_owned() + "/0123456789abcdef0123456789abcdef";
    assert!(open(daemon.init(), &unknown, "v4.channel.k8s.io").await.err().unwrap().contains("404"));
    for (rows, columns) in [(17, 71), (42, 99)] {
        say(&mut socket, 4, format!("{{\"Width\":{columns},\"Height\":{rows}}}").as_bytes()).await;
        // The size and the line take different ways: asked again until both have come.
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            say(&mut socket, 0, b"\n").await;
            if hear(&mut socket, "\n").await.contains(&format!("{rows} {columns}")) {
                break;
            }
            assert!(Instant::now() < end, "the terminal does not get its size");
        }
    }
    // Nothing is said any more: the command is ended with its session.
    let marked = |word: &str| {
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter(|e| fs::read_to_string(e.path().join("cmdline")).is_ok_and(|c| c.contains(word))).count()
    };
    assert_eq!(marked("while :; do /bin/busybox stty size"), 1);
    until("the end of the silent session", Duration::from_secs(60), || {
        (marked("while :; do /bin/busybox stty size") == 0).then_some(())
    });
    drop(socket);
    // Whoever hangs up ends what ran.
    let url = exec_url(&mut client, &id, "exec /bin/busybox sleep 27183", false).await;
    let socket = open(daemon.init(), &url, "v5.channel.k8s.io").await.unwrap();
    until("the command", Duration::from_secs(60), || (marked("27183") == 1).then_some(()));
    drop(socket);
    until("the end of the command", Duration::from_secs(60), || (marked("27183") == 0).then_some(()));
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}

/// A crictl that talks to this daemon, in its namespaces.
fn crictl(daemon: &Daemon, arguments: &[&str]) -> Option<Command> {
    let found = std::env::var_os("CRICTL")
        .filter(|p| !p.is_empty())
        .map(std::path::PathBuf::from)
        .or_else(|| std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join("crictl")).find(|p| p.exists()));
    let Some(program) = found else {
        eprintln!("skipped: there is no crictl (it is built where Go is found)");
        return None;
    };
    let mut command = daemon.inside(&program);
    command.args(["--runtime-endpoint", &format!("unix://{}", daemon.path("cri.sock").display()), "--timeout", "60s"]);
    command.args(arguments).stderr(Stdio::null());
    Some(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn much_goes_through_commands_and_ports_over_both_protocols_in_little_memory() {
    let Some(daemon) = Daemon::start() else { return };
    if crictl(&daemon, &[]).is_none() {
        return;
    }
    let size = std::env::var("GANTRY_STREAM_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(48_usize) << 20;
    let mut client = daemon.client().await;
    let serve = "exec /bin/busybox nc -ll -p 7777 -e /bin/busybox cat";
    let (sandbox, id) = start_pod(&mut client, "much", serve).await.unwrap();
    let mut rss = 0;
    for transport in ["spdy", "websocket"] {
        // What goes in comes out, and the end of what goes in is heard of.
        for amount in [1 << 20, size] {
            let mut command = crictl(&daemon, &["exec", "-i", "-r", transport, &id, "/bin/busybox", "cat"]).unwrap();
            let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let (to, from) = (running.stdin.take().unwrap(), running.stdout.take().unwrap());
            assert_eq!(echoed(to, from, amount), amount, "{transport}");
            assert!(running.wait().unwrap().success(), "{transport}");
            rss = if rss == 0 { field(daemon.pid(), "VmHWM:") } else { rss };
        }
        let mut command = crictl(&daemon, &["port-forward", "-r", transport, &sandbox, "0:7777"]).unwrap();
        let mut forwarding = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut said = std::io::BufReader::new(forwarding.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        let port =
            line.split("127.0.0.1:").nth(1).and_then(|r| r.split(' ').next()).unwrap_or_else(|| panic!("{line}"));
        let address = format!("127.0.0.1:{port}");
        let forwarded = until("a forwarded connection", Duration::from_secs(60), || {
            let mut stream = connect(daemon.init(), &address).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            // The server in the pod takes one connection after another.
            stream.write_all(b"?").ok()?;
            let mut byte = [0];
            (stream.read(&mut byte).ok()? == 1).then_some(stream)
        });
        let from = forwarded.try_clone().unwrap();
        assert_eq!(echoed(Half(forwarded), from, size), size, "{transport}");
        common::kill(common::children(forwarding.id())[0], nix::sys::signal::Signal::SIGTERM);
        let _ = forwarding.wait();
    }
    let grown = field(daemon.pid(), "VmHWM:").saturating_sub(rss);
    eprintln!("{} MiB each way, four times: daemon's largest RSS grew by {grown} KiB", size >> 20);
    assert!(grown < 16 << 10, "the daemon's memory grew by {grown} KiB");
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_beyond_loopback_are_encrypted_or_refused() {
    let Some(mut daemon) = Daemon::start() else { return };
    let (certificate, key) = (daemon.path("streams.crt"), daemon.path("streams.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=node", "-addext", "subjectAltName=IP:10.97.0.1", "-out"])
        .args([&certificate, &std::path::PathBuf::from("-keyout"), &key])
        .output();
    if !made.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: there is no openssl");
        return;
    }
    if crictl(&daemon, &[]).is_none() {
        return;
    }
    daemon.run("ip", &["address", "add", "10.97.0.1/32", "dev", "lo"]);
    let mut client = daemon.client().await;
    let (sandbox, id) = start_pod(&mut client, "far", "exec /bin/busybox sleep 1000").await.unwrap();
    daemon.stop();
    let plain = fs::read_to_string(daemon.path("cri.toml")).unwrap();
    let with = |more: &str| fs::write(daemon.path("cri.toml"), format!("{plain}{more}\n")).unwrap();
    let address = "streaming_address = \"10.97.0.1:0\"";
    with(address);
    let refused = daemon.command(&[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("certificate"), "{said}");
    let files = |key: &std::path::Path| {
        let (certificate, key) = (certificate.display(), key.display());
        format!("{address}\nstreaming_tls_cert_file = \"{certificate}\"\nstreaming_tls_key_file = \"{key}\"")
    };
    with(&files(&daemon.path("nowhere")));
    let refused = daemon.command(&[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("nowhere"), "{said}");
    with(&files(&key));
    daemon.launch();
    let mut client = daemon.client().await;
    assert!(exec_url(&mut client, &id, "true", false).await.starts_with("https://10.97.0.1:"));
    for transport in ["spdy", "websocket"] {
        let mut command = crictl(&daemon, &["exec", "-r", transport, &id, "/bin/busybox", "echo", "hidden"]).unwrap();
        let output = command.stderr(Stdio::piped()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "hidden\n", "{transport}: {output:?}");
    }
    remove_pod(&mut client, &sandbox).await.unwrap();
    daemon.assert_clean();
}

/// A connection of which dropping ends one direction only.
struct Half(TcpStream);

impl Write for Half {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
    }
}

/// Sends so many bytes, says that there are no more, and counts those that come back as they were sent.
fn echoed(mut to: impl Write + Send + 'static, mut from: impl Read, amount: usize) -> usize {
    let piece: Vec<u8> = (0..64 << 10).map(|n: u32| (n % 251) as u8).collect();
    let sent = piece.clone();
    let writing = std::thread::spawn(move || {
        let mut left = amount;
        while left > 0 {
            let n = left.min(sent.len());
            to.write_all(&sent[..n]).unwrap();
            left -= n;
        }
    });
    let (mut got, mut buffer) = (0, vec![0; 64 << 10]);
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        for (at, byte) in buffer[..n].iter().enumerate() {
            assert_eq!(*byte, piece[(got + at) % piece.len()], "at {}", got + at);
        }
        got += n;
    }
    writing.join().unwrap();
    got
}
