//! The registry client against a scripted server: authentication, redirects, breaks, mirrors, hostile answers.

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Scripted, Seen, answer, documents, gzip, leftovers, root};
use cri_images::build::BuildConfig;
use cri_images::{Auth, Config, Digest, Images};

/// An image as a map from path below `/v2/repo/` to content.
fn image() -> (HashMap<String, Vec<u8>>, Digest) {
    let noise: String =
        (0u32..60_000).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)).collect();
    let layer = gzip(&[("file", &noise)]);
    let (config, manifest) = documents(std::slice::from_ref(&layer), &BuildConfig::default());
    let digest = Digest::of(&layer.bytes);
    let blob = |b: &[u8]| format!("blobs/{}", Digest::of(b));
    let map = HashMap::from([
        ("manifests/1".to_string(), manifest.clone()),
        (blob(&config), config),
        (blob(&layer.bytes), layer.bytes),
    ]);
    (map, digest)
}

fn content<'a>(map: &'a HashMap<String, Vec<u8>>, seen: &Seen) -> Option<&'a Vec<u8>> {
    let path = seen.path.split('?').next().unwrap_or("");
    map.get(path.strip_prefix("/v2/repo/")?)
}

fn plain(map: &HashMap<String, Vec<u8>>, seen: &Seen, s: &mut TcpStream) -> std::io::Result<()> {
    match content(map, seen) {
        Some(bytes) => answer(s, "200 OK", "", bytes),
        None => answer(s, "404 Not Found", "", b""),
    }
}

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir.join("store"));
    config.config_path = dir.join("certs.d");
    config.timeouts.backoff = Duration::from_millis(10);
    config
}

fn nothing_left(dir: &Path) {
    assert_eq!(leftovers(&dir.join("store")), Vec::<PathBuf>::new());
}

fn user(name: &str) -> Option<Auth> {
    Some(Auth { username: name.into(), password: "secret".into(), ..Default::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn bearer_tokens_are_fetched_with_the_callers_credentials() {
    if !root() {
        return;
    }
    let (map, _) = image();
    let server = Scripted::start(move |seen, s| {
        let basic = "Basic dTpzZWNyZXQ="; // u:secret
        let auth = seen.headers.get("authorization").map(String::as_str);
        if seen.path.starts_with("/token") {
            let refreshed = seen.method == "POST" && seen.body.contains("refresh_token=refresh");
            assert!(refreshed || seen.path.contains("scope=repository%3Arepo%3Apull"), "{}", seen.path);
            return if refreshed || auth == Some(basic) {
                answer(s, "200 OK", "", br#"{"access_token":"good"}"#)
            } else {
                answer(s, "401 Unauthorized", "", br#"{"details":"incorrect username or password"}"#)
            };
        }
        if auth == Some("Bearer good") || auth == Some("Bearer direct") {
            return plain(&map, seen, s);
        }
        let host = &seen.headers["host"];
        let header = format!(
            "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"reg\",scope=\"repository:repo:pull\"\r\n"
        );
        answer(
            s,
            "401 Unauthorized",
            &header,
            br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
        )
    });
    let t = tempfile::tempdir().unwrap();
    let images = Images::open(config(t.path())).unwrap();
    let name = format!("127.0.0.1:{}/repo:1", server.port);
    for auth in [None, user("wrong")] {
        let error = images.pull(&name, auth, None).await.unwrap_err();
        assert!(error.is_auth() && error.to_string().contains("incorrect username or password"), "{error}");
    }
    let identity = Auth { identity_token: "refresh".into(), ..Default::default() };
    let direct = Auth { registry_token: "direct".into(), ..Default::default() };
    for auth in [user("u"), Some(identity), Some(direct)] {
        let image = images.pull(&name, auth, None).await.unwrap();
        images.remove(&image.id).await.unwrap();
    }
    let bad = Auth { registry_token: "bad".into(), ..Default::default() };
    let error = images.pull(&name, Some(bad), None).await.unwrap_err();
    assert!(error.is_auth() && error.to_string().contains("authentication required (401)"), "{error}");
    nothing_left(t.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_authentication_stays_with_the_registry_on_redirects() {
    if !root() {
        return;
    }
    let (map, _) = image();
    let blobs = map.clone();
    let elsewhere = Scripted::start(move |seen, s| plain(&blobs, seen, s));
    let port = elsewhere.port;
    let server = Scripted::start(move |seen, s| {
        if seen.headers.get("authorization").map(String::as_str) != Some("Basic dTpzZWNyZXQ=") {
            return answer(s, "401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", b"");
        }
        if seen.path.contains("/blobs/") {
            // "localhost" is another host than 127.0.0.1.
            return answer(
                s,
                "307 Temporary Redirect",
                &format!("Location: http://localhost:{port}{}\r\n", seen.path),
                b"",
            );
        }
        plain(&map, seen, s)
    });
    let t = tempfile::tempdir().unwrap();
    let mut config = config(t.path());
    config.docker_config = Some(t.path().join("config.json"));
    let docker = format!(r#"{{"auths":{{"127.0.0.1:{}":{{"auth":"dTpzZWNyZXQ="}}}}}}"#, server.port);
    fs::write(t.path().join("config.json"), docker).unwrap();
    let images = Images::open(config).unwrap();
    let name = format!("127.0.0.1:{}/repo:1", server.port);
    assert!(images.pull(&name, user("wrong"), None).await.unwrap_err().is_auth());
    images.pull(&name, None, None).await.unwrap();
    let seen = elsewhere.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|s| !s.headers.contains_key("authorization")));
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_downloads_are_resumed() {
    if !root() {
        return;
    }
    for ranges in [true, false] {
        let (map, layer) = image();
        let size = map[&format!("blobs/{layer}")].len();
        let tries = AtomicUsize::new(0);
        let server = Scripted::start(move |seen, s| {
            if !seen.path.contains(&layer.to_string()) {
                return plain(&map, seen, s);
            }
            let bytes = &map[&format!("blobs/{layer}")];
            let n = tries.fetch_add(1, Ordering::SeqCst);
            if n == 0 {
                return answer(s, "503 Service Unavailable", "", b"");
            }
            let from = seen.headers.get("range").map_or(0, |r| r[6..r.len() - 1].parse().unwrap());
            if from > 0 && ranges {
                let range = format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
                return answer(s, "206 Partial Content", &range, &bytes[from..]);
            }
            if n == 1 {
                // Half of it, then the line breaks.
                write!(s, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len())?;
                return s.write_all(&bytes[..bytes.len() / 2]);
            }
            answer(s, "200 OK", "", bytes)
        });
        let t = tempfile::tempdir().unwrap();
        let images = Images::open(config(t.path())).unwrap();
        images.pull(&format!("127.0.0.1:{}/repo:1", server.port), None, None).await.unwrap();
        let asked: Vec<_> = server.seen().iter().filter_map(|s| s.headers.get("range").cloned()).collect();
        assert_eq!(asked, [format!("bytes={}-", size / 2)], "ranges {ranges}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_may_fail() {
    if !root() {
        return;
    }
    let (map, layer) = image();
    let rotten = {
        let mut map = map.clone();
        map.get_mut(&format!("blobs/{layer}")).unwrap()[50] ^= 1;
        map
    };
    let bad_mirror = Scripted::start(|_, s| answer(s, "500 Internal Server Error", "", b""));
    let mirror = Scripted::start(move |seen, s| plain(&rotten, seen, s));
    let server = Scripted::start(move |seen, s| plain(&map, seen, s));
    let t = tempfile::tempdir().unwrap();
    let hosts = t.path().join("certs.d/reg.example");
    fs::create_dir_all(&hosts).unwrap();
    let toml = format!(
        "server = \"http://127.0.0.1:{}\"\n[host.\"http://127.0.0.1:{}\"]\n[host.\"http://127.0.0.1:{}\"]\n",
        server.port, bad_mirror.port, mirror.port
    );
    fs::write(hosts.join("hosts.toml"), toml).unwrap();
    let mut config = config(t.path());
    config.timeouts.attempts = 2;
    let images = Images::open(config).unwrap();
    let image = images.pull("reg.example/repo:1", user("u"), None).await.unwrap();
    assert_eq!(image.repo_tags, ["reg.example/repo:1"]);
    assert!(mirror.seen().iter().all(|s| s.path.ends_with("?ns=reg.example")));
    assert!(mirror.seen().iter().chain(&bad_mirror.seen()).all(|s| !s.headers.contains_key("authorization")));
    // The mirror's layer is rotten, so it came from the registry.
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_and_dead_servers_are_given_up() {
    if !root() {
        return;
    }
    let (map, layer) = image();
    let layer_path = format!("/v2/repo/blobs/{layer}");
    type Case = (&'static str, &'static str, fn(&Seen, &mut TcpStream) -> std::io::Result<()>);
    let cases: [Case; 7] = [
        ("manifests/", "no progress", |_, _| {
            std::thread::sleep(Duration::from_secs(4));
            Ok(())
        }),
        ("manifests/", "allowed", |_, s| {
            write!(s, "HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                s.write_all(&[b' '; 65536])?;
            }
        }),
        ("manifests/", "redirects", |seen, s| answer(s, "302 Found", &format!("Location: {}x\r\n", seen.path), b"")),
        ("manifests/", "digest mismatch", |_, s| {
            let digest = format!("Docker-Content-Digest: {}\r\n", Digest::of(b"x"));
            answer(s, "200 OK", &digest, br#"{"schemaVersion":2}"#)
        }),
        ("blobs/layer", "no progress", |_, s| {
            write!(s, "HTTP/1.1 200 OK\r\n\r\nabc")?;
            std::thread::sleep(Duration::from_secs(4));
            Ok(())
        }),
        ("blobs/layer", "useful rate", |_, s| {
            write!(s, "HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                s.write_all(b"x")?;
                s.flush()?;
                std::thread::sleep(Duration::from_millis(100));
            }
        }),
        ("blobs/layer", "allowed", |_, s| {
            write!(s, "HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                s.write_all(&[0; 65536])?;
            }
        }),
    ];
    for (at, text, script) in cases {
        let (map, layer_path) = (map.clone(), layer_path.clone());
        let server = Scripted::start(move |seen, s| {
            let here = seen.path.contains(at) || (at == "blobs/layer" && seen.path == layer_path);
            if here { script(seen, s) } else { plain(&map, seen, s) }
        });
        let t = tempfile::tempdir().unwrap();
        let mut config = config(t.path());
        config.limits.manifest_bytes = 1 << 20;
        config.timeouts.attempts = 1;
        config.timeouts.headers = Duration::from_secs(1);
        config.timeouts.idle = Duration::from_secs(1);
        config.timeouts.rate_window = Duration::from_secs(2);
        let images = Images::open(config).unwrap();
        let start = Instant::now();
        let error = images.pull(&format!("127.0.0.1:{}/repo:1", server.port), None, None).await.unwrap_err();
        assert!(error.to_string().contains(text), "{at} {text}: {error}");
        assert!(start.elapsed() < Duration::from_secs(5), "{at} {text}");
        nothing_left(t.path());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_leaves_nothing() {
    if !root() {
        return;
    }
    let (map, layer) = image();
    let server = Scripted::start(move |seen, s| {
        if seen.path.contains(&layer.to_string()) {
            write!(s, "HTTP/1.1 200 OK\r\n\r\nabc")?;
            std::thread::sleep(Duration::from_secs(3));
            return Ok(());
        }
        plain(&map, seen, s)
    });
    let t = tempfile::tempdir().unwrap();
    let images = Images::open(config(t.path())).unwrap();
    let name = format!("127.0.0.1:{}/repo:1", server.port);
    let pull = tokio::time::timeout(Duration::from_millis(700), images.pull(&name, None, None)).await;
    assert!(pull.is_err(), "it hangs until cancelled");
    let start = Instant::now();
    while !leftovers(&t.path().join("store")).is_empty() && start.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    nothing_left(t.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_are_used_for_other_machines() {
    if !root() {
        return;
    }
    let (map, _) = image();
    let proxy = Scripted::start(move |seen, s| {
        if seen.method == "CONNECT" {
            return answer(s, "403 Forbidden", "", b"");
        }
        let mut seen = seen.clone();
        seen.path = seen.path.strip_prefix("http://reg.invalid").unwrap_or("").to_string();
        plain(&map, &seen, s)
    });
    let t = tempfile::tempdir().unwrap();
    let mut config = config(t.path());
    config.timeouts.attempts = 1;
    config.plain_http_hosts = vec!["reg.invalid".into()];
    config.proxy.http = format!("127.0.0.1:{}", proxy.port);
    config.proxy.https = format!("http://u:p%40@127.0.0.1:{}", proxy.port);
    let images = Images::open(config).unwrap();
    images.pull("reg.invalid/repo:1", None, None).await.unwrap();
    let error = images.pull("secure.invalid/repo:1", None, None).await.unwrap_err();
    assert!(error.to_string().contains("refuses a tunnel to secure.invalid:443"), "{error}");
    let last = proxy.seen().pop().unwrap();
    assert_eq!(
        (last.path.as_str(), last.headers["proxy-authorization"].as_str()),
        ("secure.invalid:443", "Basic dTpwQA==")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_do_only_what_the_default_file_lets_them() {
    if !root() {
        return;
    }
    let (map, _) = image();
    let (blobs, documents) = (map.clone(), map.clone());
    let blobs = Scripted::start(move |seen, s| plain(&blobs, seen, s));
    let tags = Scripted::start(move |seen, s| {
        let mut seen = seen.clone();
        seen.path = seen.path.replace("/some/path/", "/v2/");
        plain(&documents, &seen, s)
    });
    let server = Scripted::start(move |seen, s| plain(&map, seen, s));
    let t = tempfile::tempdir().unwrap();
    let hosts = t.path().join("certs.d/_default");
    fs::create_dir_all(&hosts).unwrap();
    let toml = format!(
        "server = \"http://127.0.0.1:{}\"\n[host.\"http://127.0.0.1:{}\"]\ncapabilities = [\"pull\"]\n\
         [host.\"http://127.0.0.1:{}/some/path\"]\ncapabilities = [\"resolve\"]\noverride_path = true\n",
        server.port, blobs.port, tags.port
    );
    fs::write(hosts.join("hosts.toml"), toml).unwrap();
    let images = Images::open(config(t.path())).unwrap();
    images.pull("reg.example/repo:1", None, None).await.unwrap();
    let asked = |s: &Scripted| s.seen().into_iter().map(|s| s.path).collect::<Vec<_>>();
    assert_eq!(asked(&tags), ["/some/path/repo/manifests/1?ns=reg.example"], "it may say what a tag means");
    let pulled = asked(&blobs);
    assert!(
        pulled.len() == 2 && pulled.iter().all(|p| p.contains("/blobs/")),
        "and the other has the rest: {pulled:?}"
    );
    assert_eq!(asked(&server), Vec::<String>::new());
}
