//! The only program of the demo image, so that the demo needs neither a registry nor a distribution's files.
//!
//! Each verb shows one thing that a container sees: files, environment, network, limits, signals. It is static, uses the
//! standard library only, and reads nothing but its arguments.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use std::{env, fs, thread};

const USAGE: &str = "usage: gantry-demo VERB
  serve PORT DIR          answer HTTP GET with the files below DIR; /env and /hostname too
  write FILE SECONDS      append a line to FILE and to standard output every SECONDS
  count N [MILLISECONDS]  print N numbered lines, then exit 0
  cat FILE...             print files
  ls DIR                  list a folder
  env                     print the environment
  id                      print user, groups and capabilities
  hostname                print the host name
  get URL                 print what an http:// URL answers
  hog MEBIBYTES           touch that much memory, then wait
  echo WORD...            print words
  sleep SECONDS           wait
  exit CODE               leave with CODE
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gantry-demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<ExitCode> {
    match words {
        ["serve", port, dir] => serve(number(port)?, Path::new(dir))?,
        ["write", file, seconds] => write_forever(Path::new(file), number(seconds)?)?,
        ["count", n] => count(number(n)?, 0)?,
        ["count", n, pause] => count(number(n)?, number(pause)?)?,
        ["cat", files @ ..] => {
            for file in files {
                io::copy(&mut fs::File::open(file)?, &mut io::stdout())?;
            }
        }
        ["ls", dir] => {
            for entry in fs::read_dir(dir)? {
                println!("{}", entry?.file_name().to_string_lossy());
            }
        }
        ["env"] => env::vars().for_each(|(k, v)| println!("{k}={v}")),
        ["id"] => print!("{}", identity()?),
        ["hostname"] => print!("{}", fs::read_to_string("/proc/sys/kernel/hostname")?),
        ["get", url] => print!("{}", get(url)?),
        ["hog", mebibytes] => hog(number(mebibytes)?),
        ["echo", rest @ ..] => println!("{}", rest.join(" ")),
        ["sleep", seconds] => thread::sleep(Duration::from_secs(number(seconds)?)),
        ["exit", code] => return Ok(ExitCode::from(number::<u8>(code)?)),
        _ => {
            eprint!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is no number in range")))
}

fn serve(port: u16, dir: &Path) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("serving {} on port {port}", dir.display());
    for stream in listener.incoming() {
        let (mut stream, dir) = (stream?, dir.to_owned());
        thread::spawn(move || {
            if let Err(error) = answer(&mut stream, &dir) {
                eprintln!("gantry-demo: a request failed: {error}");
            }
        });
    }
    Ok(())
}

fn answer(stream: &mut TcpStream, dir: &Path) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // To the end of the headers: what is closed with unread bytes is reset, and the client may lose its answer.
    let mut lines = BufReader::new(stream.try_clone()?.take(8192)).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
    let body = match path.as_str() {
        "/healthz" => Some(b"ok\n".to_vec()),
        "/hostname" => fs::read("/proc/sys/kernel/hostname").ok(),
        "/env" => Some(env::vars().map(|(k, v)| format!("{k}={v}\n")).collect::<String>().into_bytes()),
        path => below(dir, path).and_then(|file| fs::read(file).ok()),
    };
    println!("{} {path}", if body.is_some() { 200 } else { 404 });
    let (status, body) = body.map_or(("404 Not Found", b"not found\n".to_vec()), |body| ("200 OK", body));
    let length = body.len();
    let mut whole = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").into_bytes();
    whole.extend_from_slice(&body);
    stream.write_all(&whole)
}

/// The file that a request path names, or none where the path would leave `dir`.
fn below(dir: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path.trim_start_matches('/'));
    let plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
    let file = if path == "/" { "index.html".as_ref() } else { relative };
    plain.then(|| dir.join(file))
}

fn write_forever(file: &Path, seconds: u64) -> io::Result<()> {
    for n in 1_u64.. {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let line = format!("line {n} at {now}");
        println!("{line}");
        writeln!(fs::OpenOptions::new().create(true).append(true).open(file)?, "{line}")?;
        thread::sleep(Duration::from_secs(seconds));
    }
    Ok(())
}

fn count(n: u64, pause: u64) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for i in 1..=n {
        writeln!(out, "{i}")?;
        if pause > 0 {
            out.flush()?;
            thread::sleep(Duration::from_millis(pause));
        }
    }
    out.flush()
}

fn identity() -> io::Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let wanted = ["Uid:", "Gid:", "Groups:", "NoNewPrivs:", "Seccomp:", "CapEff:", "CapBnd:"];
    Ok(status.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w))).map(|l| format!("{l}\n")).collect())
}

fn get(url: &str) -> io::Result<String> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{url:?}: {why}"));
    let rest = url.strip_prefix("http://").ok_or_else(|| wrong("want http://HOST[:PORT]/PATH"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).ok_or_else(|| wrong("no HTTP answer"))
}

fn hog(mebibytes: usize) {
    let mut held = Vec::new();
    for i in 1..=mebibytes {
        held.push(vec![u8::try_from(i % 251).unwrap_or(1) + 1; 1 << 20]);
        if i % 8 == 0 {
            println!("touched {i} MiB");
        }
    }
    loop {
        thread::sleep(Duration::from_secs(3600));
        std::hint::black_box(&held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_survives_a_client_that_sends_its_request_in_pieces() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || answer(&mut listener.accept().unwrap().0, Path::new("/nowhere")).unwrap());
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
        thread::sleep(Duration::from_millis(50));
        client.write_all(b"Host: x\r\n\r\n").unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        server.join().unwrap();
        assert!(text.ends_with("\r\n\r\nok\n"), "{text}");
    }

    #[test]
    fn request_paths_stay_below_the_folder() {
        assert_eq!(below(Path::new("/srv"), "/a/b"), Some("/srv/a/b".into()));
        assert_eq!(below(Path::new("/srv"), "/"), Some("/srv/index.html".into()));
        assert_eq!(below(Path::new("/srv"), "/../etc/passwd"), None);
        assert_eq!(below(Path::new("/srv"), "/a/../../x"), None);
    }
}
