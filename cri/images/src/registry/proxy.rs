//! HTTP proxies, by the rules that Go programs (containerd, docker) follow for `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`.

use std::io;
use std::net::IpAddr;

use base64::Engine as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

use crate::config::Proxy;

/// Bytes of a proxy's answer to CONNECT.
const MAX_ANSWER: usize = 8 << 10;

/// The proxy to use for `host:port`, if any; this machine is always reached directly.
pub(crate) fn choose(rules: &Proxy, secure: bool, host: &str, port: u16) -> io::Result<Option<Url>> {
    let text = if secure { &rules.https } else { &rules.http };
    let address = host.parse::<IpAddr>().ok();
    if text.is_empty() || host == "localhost" || address.is_some_and(|a| a.is_loopback()) {
        return Ok(None);
    }
    if rules.no_proxy.split(',').any(|rule| matches(rule.trim(), host, address, port)) {
        return Ok(None);
    }
    let whole = if text.contains("://") { text.clone() } else { format!("http://{text}") };
    match Url::parse(&whole) {
        Ok(url) if url.scheme() == "http" && url.host_str().is_some() => Ok(Some(url)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the proxy is not an http:// URL (others are not supported)",
        )),
    }
}

fn matches(rule: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if rule == "*" {
        return true;
    }
    if let (Some((net, bits)), Some(address)) = (rule.split_once('/'), address) {
        return in_network(net, bits, address);
    }
    let (name, wanted) = match rule.rsplit_once(':') {
        Some((name, p)) if !name.contains(':') => (name, p.parse::<u16>().ok()),
        _ => (rule, None),
    };
    if name.is_empty() || wanted.is_some_and(|p| p != port) {
        return false;
    }
    let (name, host) = (name.to_ascii_lowercase(), host.to_ascii_lowercase());
    let suffix = name.trim_start_matches('*').trim_start_matches('.');
    let below = host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    below || (host == suffix && !name.starts_with(['.', '*']))
}

fn in_network(net: &str, bits: &str, address: IpAddr) -> bool {
    let (Ok(net), Ok(bits)) = (net.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    match (net, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            n.to_bits() & mask == a.to_bits() & mask
        }
        (IpAddr::V6(n), IpAddr::V6(a)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            n.to_bits() & mask == a.to_bits() & mask
        }
        _ => false,
    }
}

/// Opens a connection to the proxy itself.
pub(crate) async fn dial(proxy: &Url) -> io::Result<TcpStream> {
    let host = proxy.host_str().unwrap_or("").trim_start_matches('[').trim_end_matches(']');
    let port = proxy.port_or_known_default().unwrap_or(80);
    TcpStream::connect((host, port)).await.map_err(|e| io::Error::new(e.kind(), format!("proxy {host}:{port}: {e}")))
}

/// Asks the proxy for a tunnel to `host:port`.
pub(crate) async fn tunnel(tcp: &mut TcpStream, proxy: &Url, host: &str, port: u16) -> io::Result<()> {
    let target = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if !proxy.username().is_empty() {
        let decode = |t: &str| percent_encoding::percent_decode_str(t).decode_utf8_lossy().into_owned();
        let pair = format!("{}:{}", decode(proxy.username()), decode(proxy.password().unwrap_or("")));
        let pair = base64::engine::general_purpose::STANDARD.encode(pair);
        request += &format!("Proxy-Authorization: Basic {pair}\r\n");
    }
    request += "\r\n";
    tcp.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_ANSWER {
            return Err(io::Error::other("the proxy's answer is too long"));
        }
        head.push(tcp.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&head);
    let line = line.lines().next().unwrap_or("");
    if line.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let shown: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("the proxy refuses a tunnel to {target}: {shown}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_chosen_like_go_does() {
        let rules = Proxy {
            http: "plain.lan:3128".into(),
            https: "http://u:p%40@secure.lan:8080".into(),
            no_proxy: "10.0.0.0/8, .internal, exact.io,port.io:5000,fd00::/8, *.star.io".into(),
        };
        let get =
            |secure, host, port| choose(&rules, secure, host, port).unwrap().map(|u| u.host_str().unwrap().to_string());
        let secure = Some("secure.lan".to_string());
        for (host, port, want) in [
            ("quay.io", 443, &secure),
            ("localhost", 443, &None),
            ("127.0.0.1", 5000, &None),
            ("10.1.2.3", 443, &None),
            ("11.1.2.3", 443, &secure),
            ("a.internal", 443, &None),
            ("internal", 443, &secure),
            ("exact.io", 443, &None),
            ("sub.exact.io", 443, &None),
            ("inexact.io", 443, &secure),
            ("port.io", 5000, &None),
            ("port.io", 443, &secure),
            ("fd00::1", 443, &None),
            ("x.star.io", 443, &None),
        ] {
            assert_eq!(get(true, host, port), *want, "{host}:{port}");
        }
        assert_eq!(get(false, "quay.io", 80).as_deref(), Some("plain.lan"));
        assert_eq!(choose(&Proxy::default(), true, "quay.io", 443).unwrap(), None);
        let socks = Proxy { https: "socks5://x".into(), ..Default::default() };
        assert!(choose(&socks, true, "quay.io", 443).is_err());
    }
}
