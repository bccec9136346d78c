//! A tar reader for hostile input: bounded memory, checked headers, nothing written anywhere.
//!
//! Understands ustar, GNU long names, sparse files in all their forms (see `sparse`) and PAX headers (path, linkpath, size, uid,
//! gid, mtime, SCHILY.xattr). Field parsing is the `tar` crate's; the stream is ours, because long names and PAX records must
//! be bounded before they are read.

use std::io::{self, BufRead};

use tar::{EntryType, Header};

use super::sparse::{Asked, Sparse};

/// Bytes of a PAX record block or a GNU long name.
const MAX_EXTENSION: u64 = 1 << 20;
const BLOCK: usize = 512;

/// One entry, with long names and PAX records applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the content belongs in a file with holes.
    pub(crate) sparse: Option<Sparse>,
}

/// Kinds that can be in a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    File,
    Directory,
    Symlink,
    Hardlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// Reads entries one after another from `R`.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Content of the current entry not yet read.
    left: u64,
    /// Padding after it.
    pad: u64,
    globals: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(super) fn bad(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(inner: R) -> TarReader<R> {
        TarReader { inner, left: 0, pad: 0, globals: Vec::new() }
    }

    /// The stream below, after the last entry.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end of the archive. What is unread of the one before is skipped.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut long_path = None;
        let mut long_link = None;
        let mut pax: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                if long_path.is_some() || long_link.is_some() || !pax.is_empty() {
                    return Err(bad("the archive ends after an extension header"));
                }
                return Ok(None);
            };
            let size = header.entry_size()?;
            match header.entry_type() {
                EntryType::GNULongName => long_path = Some(self.extension(size)?),
                EntryType::GNULongLink => long_link = Some(self.extension(size)?),
                EntryType::XHeader => pax = parse_pax(&self.extension(size)?)?,
                EntryType::XGlobalHeader => self.globals = parse_pax(&self.extension(size)?)?,
                kind => {
                    let mut entry = base_entry(&header, kind, size)?;
                    if let Some(path) = long_path.take() {
                        entry.path = until_nul(path);
                    }
                    if let Some(link) = long_link.take() {
                        entry.link = until_nul(link);
                    }
                    let globals = std::mem::take(&mut self.globals);
                    let mut asked = Asked::default();
                    let mut records = globals.iter().chain(&pax);
                    let applied = records.try_for_each(|(k, v)| apply_pax(&mut entry, &mut asked, k, v));
                    self.globals = globals;
                    applied?;
                    if let Some(name) = asked.name.take() {
                        entry.path = name;
                    }
                    // Pre-POSIX archives mark directories by a trailing slash only.
                    if header.as_old().linkflag == [0] && entry.path.ends_with(b"/") {
                        entry.kind = Kind::Directory;
                    }
                    if entry.kind != Kind::File {
                        // Some writers give links and directories a size, but no content follows (Go reads it so too).
                        entry.size = 0;
                    }
                    self.left = entry.size;
                    self.pad = padding(entry.size);
                    if kind == EntryType::GNUSparse {
                        entry.sparse = Some(Sparse::of_header(&header, || self.block())?);
                    } else if entry.kind == Kind::File && !asked.is_empty() {
                        entry.sparse = Some(asked.finish(|| self.content_block())?);
                        // The map stood before the content.
                        entry.size = self.left;
                    }
                    if let Some(sparse) = &entry.sparse {
                        sparse.check(entry.size)?;
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads content of the current entry; 0 at its end.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let piece = self.piece(buf.len() as u64)?;
        let n = piece.len();
        buf[..n].copy_from_slice(piece);
        self.consume(n);
        Ok(n)
    }

    /// At most `most` bytes of the current entry's content, as far as they are there; none at its end. What of it was used is to
    /// be told to [`TarReader::consume`].
    pub(crate) fn piece(&mut self, most: u64) -> io::Result<&[u8]> {
        let want = usize::try_from(self.left.min(most)).unwrap_or(usize::MAX);
        if want == 0 {
            return Ok(&[]);
        }
        let piece = self.inner.fill_buf()?;
        if piece.is_empty() {
            return Err(bad(format!("the archive ends {} bytes before the end of this entry", self.left)));
        }
        Ok(&piece[..want.min(piece.len())])
    }

    /// Takes `n` bytes of the content as used.
    pub(crate) fn consume(&mut self, n: usize) {
        self.inner.consume(n);
        self.left = self.left.saturating_sub(n as u64);
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        loop {
            let n = self.piece(u64::MAX)?.len();
            if n == 0 {
                break;
            }
            self.consume(n);
        }
        let mut block = [0u8; BLOCK];
        let pad = usize::try_from(std::mem::take(&mut self.pad)).unwrap_or(BLOCK);
        self.inner.read_exact(&mut block[..pad])
    }

    /// A block that belongs to a header.
    fn block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0u8; BLOCK];
        self.inner.read_exact(&mut block).map(|()| block)
    }

    /// A block of an entry's content.
    fn content_block(&mut self) -> io::Result<[u8; BLOCK]> {
        self.left = self.left.checked_sub(BLOCK as u64).ok_or_else(|| bad("a sparse file's map is cut off"))?;
        self.block()
    }

    /// A checked header, or `None` at the end: a zero block or the end of the stream at a block boundary.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0u8; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.inner.read(&mut block[have..])? {
                0 if have == 0 => return Ok(None),
                0 => return Err(bad("the archive ends inside a header")),
                n => have += n,
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 =
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        if header.cksum().map_err(|_| bad("not a tar header"))? != sum {
            return Err(bad("the checksum of a tar header is wrong"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(bad(format!("an extension header of {size} bytes, more than {MAX_EXTENSION}")));
        }
        self.left = size;
        self.pad = padding(size);
        let mut out = vec![0u8; usize::try_from(size).unwrap_or(0)];
        let mut have = 0;
        while have < out.len() {
            have += self.read(&mut out[have..])?;
        }
        Ok(out)
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(at);
    }
    bytes
}

fn base_entry(header: &Header, kind: EntryType, size: u64) -> io::Result<Entry> {
    let path = header.path_bytes().into_owned();
    let name = String::from_utf8_lossy(&path).into_owned();
    let kind = match kind {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::Hardlink,
        EntryType::Char => Kind::CharDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Fifo => Kind::Fifo,
        EntryType::GNUSparse => Kind::File,
        other => return Err(bad(format!("{name}: unknown entry type {:#04x}", other.as_byte()))),
    };
    let old = header.as_old();
    let number = |v: io::Result<u64>| v.map_err(|e| bad(format!("{name}: {e}")));
    Ok(Entry {
        link: header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default(),
        kind,
        mode: u32::try_from(number(blank(&old.mode, header.mode().map(u64::from)))?).unwrap_or(0),
        uid: number(blank(&old.uid, header.uid()))?,
        gid: number(blank(&old.gid, header.gid()))?,
        size,
        mtime: (i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0),
        device: match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0))
            }
            _ => (0, 0),
        },
        xattrs: Vec::new(),
        sparse: None,
        path,
    })
}

/// Some writers leave numbers that they do not know empty; that means zero.
fn blank(field: &[u8], value: io::Result<u64>) -> io::Result<u64> {
    if field.iter().all(|b| matches!(b, 0 | b' ')) { Ok(0) } else { value }
}

/// Splits `<length> <key>=<value>\n` records.
fn parse_pax(mut bytes: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let malformed = || bad("malformed PAX record");
    let mut out = Vec::new();
    while !bytes.is_empty() && bytes[0] != 0 {
        let space = bytes.iter().take(20).position(|b| *b == b' ').ok_or_else(malformed)?;
        let length: usize =
            std::str::from_utf8(&bytes[..space]).ok().and_then(|t| t.parse().ok()).ok_or_else(malformed)?;
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(malformed());
        }
        let record = &bytes[space + 1..length - 1];
        let eq = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
        out.push((record[..eq].to_vec(), record[eq + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(out)
}

fn apply_pax(entry: &mut Entry, asked: &mut Asked, key: &[u8], value: &[u8]) -> io::Result<()> {
    let number = || {
        std::str::from_utf8(value)
            .ok()
            .and_then(|t| t.parse::<u64>().ok())
            .ok_or_else(|| bad(format!("PAX {} is not a number", String::from_utf8_lossy(key))))
    };
    match key {
        b"path" => entry.path = value.to_vec(),
        b"linkpath" => entry.link = value.to_vec(),
        b"size" => entry.size = number()?,
        b"uid" => entry.uid = number()?,
        b"gid" => entry.gid = number()?,
        b"mtime" => entry.mtime = parse_time(value),
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                entry.xattrs.push((name.to_vec(), value.to_vec()));
            } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                asked.record(name, value)?;
            }
        }
    }
    Ok(())
}

/// `seconds[.fraction]`, negative allowed; nonsense is the epoch.
fn parse_time(value: &[u8]) -> (i64, u32) {
    let Ok(text) = std::str::from_utf8(value) else { return (0, 0) };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let Ok(seconds) = whole.parse::<i64>() else { return (0, 0) };
    let digits: String = fraction.chars().take(9).filter(char::is_ascii_digit).collect();
    let nanos = format!("{digits:0<9}").parse::<u32>().unwrap_or(0);
    if text.starts_with('-') && nanos > 0 { (seconds - 1, 1_000_000_000 - nanos) } else { (seconds, nanos) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, kind: EntryType, size: u64) -> Header {
        let mut h = Header::new_ustar();
        h.set_path(name).unwrap();
        h.set_entry_type(kind);
        h.set_size(size);
        h.set_mode(0o644);
        h.set_uid(1);
        h.set_gid(2);
        h.set_mtime(3);
        h.set_cksum();
        h
    }

    #[test]
    fn entries_and_contents_are_read() {
        let mut b = tar::Builder::new(Vec::new());
        b.append(&header("a", EntryType::Regular, 3), &b"abc"[..]).unwrap();
        b.append_pax_extensions([("path", "long/name".as_bytes()), ("SCHILY.xattr.user.k", b"v"), ("mtime", b"5.25")])
            .unwrap();
        b.append(&header("x", EntryType::Regular, 0), &b""[..]).unwrap();
        let bytes = b.into_inner().unwrap();
        let mut r = TarReader::new(&bytes[..]);
        let e = r.next().unwrap().unwrap();
        assert_eq!((e.path.as_slice(), e.size, e.uid, e.gid, e.mtime), (&b"a"[..], 3, 1, 2, (3, 0)));
        let mut buf = [0; 10];
        assert_eq!(r.read(&mut buf).unwrap(), 3);
        assert_eq!(r.read(&mut buf).unwrap(), 0);
        let e = r.next().unwrap().unwrap();
        assert_eq!(e.path, b"long/name");
        assert_eq!(e.mtime, (5, 250_000_000));
        assert_eq!(e.xattrs, [(b"user.k".to_vec(), b"v".to_vec())]);
        assert_eq!(r.next().unwrap(), None);
    }

    #[test]
    fn broken_archives_are_errors_not_panics() {
        let mut long = Header::new_gnu();
        long.set_entry_type(EntryType::GNULongName);
        long.set_size(1 << 40);
        long.set_cksum();
        let mut cut = header("a", EntryType::Regular, 100).as_bytes().to_vec();
        cut.extend_from_slice(b"short");
        let mut flipped = header("a", EntryType::Regular, 0).as_bytes().to_vec();
        flipped[0] ^= 1;
        for (what, bytes) in [
            ("huge long name", long.as_bytes().to_vec()),
            ("cut content", cut),
            ("flipped bit", flipped),
            ("half header", vec![1; 100]),
            ("noise", vec![0x55; 2048]),
        ] {
            let mut r = TarReader::new(&bytes[..]);
            let result = r.next().and_then(|_| r.next());
            assert!(result.is_err(), "{what}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end_in_entries_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048)) {
            let mut r = TarReader::new(&bytes[..]);
            while let Ok(Some(_)) = r.next() {}
        }

        #[test]
        fn any_pax_block_ends(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..256)) {
            let _ = parse_pax(&bytes);
        }
    }
}
