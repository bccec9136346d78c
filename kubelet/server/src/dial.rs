//! The connection to the runtime's streaming server, as its URL has it: plain, or by TLS that is verified.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How long the runtime may take to accept and to answer the handshake.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The authorities that the machine trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).
///
/// # Errors
/// There are none, or they cannot be read.
pub(crate) fn machine_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(format!("the machine trusts no certificate authority: {}", why.join("; ")));
    }
    Ok(roots)
}

/// TLS to `host` (a name or an address), whose certificate must be of one of the `roots`.
async fn secure(
    stream: TcpStream,
    host: &str,
    roots: RootCertStore,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Sends the request on to `target`, the runtime's URL, and gives the answer, which may switch protocols.
///
/// The certificate of an `https` URL must be of an authority that `trusted` gives, and for the URL's host, as upstream's
/// kubelet has it, which verifies by the machine's authorities: what is typed goes over this connection.
pub(crate) async fn dial<B>(
    request: &Request<B>,
    target: &str,
    trusted: fn() -> Result<RootCertStore, String>,
) -> Result<http::Response<Incoming>, String> {
    let url = url::Url::parse(target).map_err(|e| format!("bad streaming URL {target:?}: {e}"))?;
    let secured = match url.scheme() {
        "http" => false,
        "https" => true,
        other => return Err(format!("streaming URL {target:?}: scheme {other:?} is not supported")),
    };
    let host = url.host_str().ok_or_else(|| format!("streaming URL {target:?} has no host"))?;
    let port = url.port_or_known_default().unwrap_or(80);
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let refused = |e: &dyn std::fmt::Display| format!("connect to {host}:{port}: {e}");
    let connect = async {
        let stream = TcpStream::connect((address, port)).await.map_err(|e| refused(&e))?;
        let _ = stream.set_nodelay(true);
        if !secured {
            return Ok::<Box<dyn Stream>, String>(Box::new(stream));
        }
        // Some hundred files may have to be read.
        let roots = tokio::task::spawn_blocking(trusted).await.map_err(|e| refused(&e))?.map_err(|e| refused(&e))?;
        Ok(Box::new(secure(stream, address, roots).await.map_err(|e| refused(&e))?))
    };
    let stream = tokio::time::timeout(DIAL_TIMEOUT, connect).await.map_err(|_| refused(&"timed out"))??;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|e| refused(&e))?;
    tokio::spawn(connection.with_upgrades());
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let mut onward = Request::builder()
        .method(request.method())
        .uri(path)
        .header(header::HOST, format!("{host}:{port}"))
        .body(Empty::new())
        .map_err(|e| format!("bad streaming URL {target:?}: {e}"))?;
    for (name, value) in request.headers() {
        // The runtime must not see the caller's credentials, and no body is sent on.
        let dropped =
            [header::HOST, header::AUTHORIZATION, header::COOKIE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
        if !dropped.contains(name) {
            onward.headers_mut().append(name, value.clone());
        }
    }
    tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(onward))
        .await
        .map_err(|_| "the streaming server did not answer in time".to_owned())?
        .map_err(|e| format!("ask the streaming server: {e}"))
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use gantry_kube::pki::{self, Pair, Usage};
    use http_body_util::BodyExt;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::net::TcpListener;

    use super::*;

    fn ca() -> &'static Pair {
        static CA: OnceLock<Pair> = OnceLock::new();
        CA.get_or_init(|| pki::new_ca("streaming").unwrap())
    }

    fn trusting_it() -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca().cert.as_bytes()).unwrap()).unwrap();
        Ok(roots)
    }

    fn trusting_another() -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        let other = pki::new_ca("another").unwrap();
        roots.add(CertificateDer::from_pem_slice(other.cert.as_bytes()).unwrap()).unwrap();
        Ok(roots)
    }

    fn trusting_nobody() -> Result<RootCertStore, String> {
        Err("the machine trusts no certificate authority: none".to_owned())
    }

    /// A streaming server with a certificate for `name`, that answers with the path and the query; its port.
    async fn server(name: &str) -> u16 {
        let pair = pki::issue(ca(), "runtime", &[], &Usage::Server(vec![name.to_owned()])).unwrap();
        let cert = CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
                    let told = request.uri().to_string();
                    Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::new(
                        bytes::Bytes::from(told),
                    )))
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn the_streaming_server_has_to_be_who_it_says() {
        let (right, wrong) = (server("127.0.0.1").await, server("elsewhere").await);
        type Trusted = fn() -> Result<RootCertStore, String>;
        let cases: [(String, Trusted, Result<&str, &str>); 6] = [
            (format!("https://127.0.0.1:{right}/exec/t?x=y"), trusting_it, Ok("/exec/t?x=y")),
            (format!("https://127.0.0.1:{right}/exec/t"), trusting_another, Err("UnknownIssuer")),
            (format!("https://127.0.0.1:{right}/exec/t"), trusting_nobody, Err("trusts no certificate authority")),
            (format!("https://127.0.0.1:{wrong}/exec/t"), trusting_it, Err("not valid for name")),
            ("ftp://127.0.0.1/x".to_owned(), trusting_it, Err("scheme \"ftp\" is not supported")),
            ("/exec/t".to_owned(), trusting_it, Err("bad streaming URL")),
        ];
        for (target, trusted, want) in cases {
            let request = Request::builder().method("GET").header("authorization", "Bearer mine").body(()).unwrap();
            match (dial(&request, &target, trusted).await, want) {
                (Ok(answer), Ok(want)) => {
                    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), want, "{target}");
                }
                (Err(e), Err(want)) => assert!(e.contains(want), "{target}: {e}"),
                (got, want) => panic!("{target}: {:?} instead of {want:?}", got.map(|a| a.status())),
            }
        }
    }
}
