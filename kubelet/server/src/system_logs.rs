//! `/logs/`: the node's log folder, listed and read.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::StreamExt;
use http::{Response, StatusCode, header};

use crate::reply::{Reply, full, html, stream_of_text, text};

/// The answer for `path` below `root`; `url` is the request's path (folders get a trailing slash by redirect).
pub(crate) async fn serve(root: &Path, path: &str, url: &str) -> Reply {
    let (root, wanted) = (root.to_owned(), path.to_owned());
    let found = tokio::task::spawn_blocking(move || find(&root, &wanted)).await.map_err(io::Error::other);
    match found.and_then(|f| f) {
        Ok(Found::Folder(_)) if !url.ends_with('/') => {
            let mut reply = Response::new(full(""));
            *reply.status_mut() = StatusCode::MOVED_PERMANENTLY;
            let last = url.rsplit('/').next().unwrap_or_default();
            if let Ok(value) = header::HeaderValue::from_str(&format!("{last}/")) {
                reply.headers_mut().insert(header::LOCATION, value);
            }
            reply
        }
        Ok(Found::Folder(names)) => html(listing(&names)),
        Ok(Found::File(file)) => {
            let chunks = futures::stream::unfold(Some(file), |file| async move {
                let mut file = file?;
                let read = tokio::task::spawn_blocking(move || {
                    let mut chunk = vec![0; 64 * 1024];
                    let n = file.read(&mut chunk)?;
                    chunk.truncate(n);
                    Ok((chunk, file))
                });
                match read.await.map_err(io::Error::other).and_then(|r: io::Result<_>| r) {
                    Ok((chunk, _)) if chunk.is_empty() => None,
                    Ok((chunk, file)) => Some((Ok(Bytes::from(chunk)), Some(file))),
                    Err(e) => Some((Err(e), None)),
                }
            });
            stream_of_text(chunks.boxed())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => text(StatusCode::FORBIDDEN, "403 Forbidden\n"),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("read {path:?}: {e}\n")),
    }
}

#[derive(Debug)]
enum Found {
    /// Names in it, folders with a slash.
    Folder(Vec<String>),
    File(fs::File),
}

fn find(root: &Path, path: &str) -> io::Result<Found> {
    let root = fs::canonicalize(root)?;
    let wanted: PathBuf = fs::canonicalize(root.join(path.trim_start_matches('/')))?;
    if !wanted.starts_with(&root) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let meta = fs::metadata(&wanted)?;
    if meta.is_dir() {
        let mut names = Vec::new();
        for entry in fs::read_dir(&wanted)?.flatten() {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
        }
        names.sort();
        return Ok(Found::Folder(names));
    }
    if !meta.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    fs::File::open(&wanted).map(Found::File)
}

fn listing(names: &[String]) -> String {
    let escape =
        |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
    let mut out = String::from("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n");
    for name in names {
        let link = percent_encoding::utf8_percent_encode(name, LINK).to_string();
        out.push_str(&format!("<a href=\"{link}\">{}</a>\n", escape(name)));
    }
    out.push_str("</pre>\n");
    out
}

const LINK: &percent_encoding::AsciiSet =
    &percent_encoding::CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'?').add(b'#').add(b'%').add(b':');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_folder_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        fs::create_dir_all(root.join("pods")).unwrap();
        fs::write(root.join("a.log"), "x").unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
        assert!(matches!(find(&root, ""), Ok(Found::Folder(names)) if names == ["a.log", "link", "pods/"]));
        assert!(matches!(find(&root, "a.log"), Ok(Found::File(_))));
        for bad in ["../secret", "link", "pods/../../secret"] {
            assert_eq!(find(&root, bad).unwrap_err().kind(), io::ErrorKind::PermissionDenied, "{bad}");
        }
        assert_eq!(find(&root, "none").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(listing(&["a<b ".into()]).contains("<a href=\"a%3Cb%20\">a&lt;b </a>"));
    }
}
