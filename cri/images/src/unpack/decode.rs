//! Decompression with a bound on what comes out, hashed on the way.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// Log2 of the largest zstd window accepted: 128 MiB of memory, what `zstd --ultra -22` needs.
const ZSTD_WINDOW_LOG: u32 = 27;

/// The plain bytes of `input`, which is gzip, zstd or not compressed; told by its first bytes because media types lie.
pub(crate) fn decoder<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(128 << 10, input);
    let head = input.fill_buf()?;
    if head.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(input)));
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || (head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18])
    {
        let mut zstd = zstd::stream::read::Decoder::with_buffer(input)?;
        zstd.window_log_max(ZSTD_WINDOW_LOG)?;
        return Ok(Box::new(zstd));
    }
    Ok(Box::new(input))
}

/// Bytes that are decompressed, hashed and handed on at a time.
const PIECE: usize = 256 << 10;

/// Hashes what is read, piece by piece; stops with an error beyond `limit` bytes or when `stop` is set.
pub(crate) struct Checked<'a, R> {
    inner: R,
    piece: Box<[u8]>,
    /// What of the piece is not handed on yet.
    left: std::ops::Range<usize>,
    hasher: Sha256,
    count: u64,
    limit: u64,
    stop: &'a AtomicBool,
}

impl<'a, R: Read> Checked<'a, R> {
    pub(crate) fn new(inner: R, limit: u64, stop: &'a AtomicBool) -> Checked<'a, R> {
        let piece = vec![0; PIECE].into_boxed_slice();
        Checked { inner, piece, left: 0..0, hasher: Sha256::new(), count: 0, limit, stop }
    }

    /// Reads what is left (padding after a tar's end) and returns digest and length of everything.
    pub(crate) fn finish(mut self) -> io::Result<(Digest, u64)> {
        loop {
            let n = self.fill_buf()?.len();
            if n == 0 {
                return Ok((Digest::finish(self.hasher), self.count));
            }
            self.consume(n);
        }
    }
}

impl<R: Read> BufRead for Checked<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left.is_empty() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "given up"));
            }
            let n = self.inner.read(&mut self.piece)?;
            self.left = 0..n;
            self.hasher.update(&self.piece[..n]);
            self.count += n as u64;
            if self.count > self.limit {
                self.left = 0..0;
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("more than {} uncompressed bytes, the limit for a layer", self.limit),
                ));
            }
        }
        Ok(&self.piece[self.left.clone()])
    }

    fn consume(&mut self, n: usize) {
        self.left.start = self.left.end.min(self.left.start + n);
    }
}

impl<R: Read> Read for Checked<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let n = piece.len().min(buf.len());
        buf[..n].copy_from_slice(&piece[..n]);
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn plain(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        decoder(bytes).unwrap().read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn gzip_zstd_and_plain_give_the_same_bytes() {
        let text = b"some text some text some text".repeat(100);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&text).unwrap();
        let gz = gz.finish().unwrap();
        let two = [gz.clone(), gz.clone()].concat();
        assert_eq!(plain(&text), text);
        assert_eq!(plain(&gz), text);
        assert_eq!(plain(&two), text.repeat(2), "members of a multi-member gzip are joined");
        assert_eq!(plain(&zstd::encode_all(&text[..], 3).unwrap()), text);
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let bomb = zstd::encode_all(io::repeat(0).take(100 << 20), 3).unwrap();
        assert!(bomb.len() < 100_000);
        let stop = AtomicBool::new(false);
        let mut r = Checked::new(decoder(&bomb[..]).unwrap(), 1 << 20, &stop);
        let mut buf = vec![0; 65536];
        let mut seen = 0u64;
        let error = loop {
            match r.read(&mut buf) {
                Ok(n) => seen += n as u64,
                Err(e) => break e,
            }
        };
        assert!(seen <= 1 << 20);
        assert!(error.to_string().contains("limit"));
    }
}
