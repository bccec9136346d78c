//! Frames and header blocks.

use std::collections::BTreeMap;
use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::dictionary::DICTIONARY;

/// Largest control frame that is read; clients' are some hundred bytes.
const LARGEST_CONTROL: usize = 64 * 1024;
/// Largest header block after decompression.
const LARGEST_HEADERS: usize = 64 * 1024;
/// Largest data frame that is read; clients send 32 KiB at most.
const LARGEST_DATA: usize = 4 * 1024 * 1024;

/// Flag of the last frame of a stream's direction.
pub(super) const FIN: u8 = 1;

/// A frame from the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        headers: BTreeMap<String, String>,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Vec<u8>,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Settings, window updates and what later versions may add: nothing to do.
    Other,
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("spdy: {}", why.into()))
}

/// Reads frames; keeps the state of the header compression.
pub(super) struct Reader<R> {
    from: R,
    inflate: Decompress,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, inflate: Decompress::new(true) }
    }

    /// The next frame; nothing when the client has closed the connection between two frames.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 8];
        match self.from.read_exact(&mut head[..1]).await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        };
        self.from.read_exact(&mut head[1..]).await?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (first, flags, length) = (word(0), head[4], (word(4) & 0xff_ffff) as usize);
        let control = first & 0x8000_0000 != 0;
        if length > if control { LARGEST_CONTROL } else { LARGEST_DATA } {
            return Err(invalid(format!("a frame of {length} bytes is too long")));
        }
        let mut body = vec![0; length];
        self.from.read_exact(&mut body).await?;
        if !control {
            return Ok(Some(Frame::Data { stream: first & 0x7fff_ffff, fin: flags & FIN != 0, bytes: body }));
        }
        if first >> 16 & 0x7fff != 3 {
            return Err(invalid(format!("version {} is not 3", first >> 16 & 0x7fff)));
        }
        let number = |at: usize| {
            let bytes = body.get(at..at + 4).ok_or_else(|| invalid("a frame is cut short"))?;
            Ok::<_, io::Error>(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & 0x7fff_ffff)
        };
        Ok(Some(match first & 0xffff {
            1 => {
                let stream = number(0)?;
                let block = body.get(10..).ok_or_else(|| invalid("a frame is cut short"))?;
                let headers = parse_headers(&self.inflate(block)?)?;
                Frame::SynStream { stream, fin: flags & FIN != 0, headers }
            }
            3 => Frame::Reset { stream: number(0)? },
            6 => Frame::Ping { id: number(0)? },
            7 => Frame::GoAway,
            8 => {
                // Headers share the compression's state, so they must be read though nothing is done with them.
                self.inflate(body.get(4..).unwrap_or_default())?;
                Frame::Other
            }
            _ => Frame::Other,
        }))
    }

    fn inflate(&mut self, mut block: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(1024);
        loop {
            if out.len() > LARGEST_HEADERS {
                return Err(invalid("the headers are too long"));
            }
            out.reserve(1024);
            let (consumed, produced) = (self.inflate.total_in(), self.inflate.total_out());
            let result = self.inflate.decompress_vec(block, &mut out, FlushDecompress::Sync);
            block = &block[(self.inflate.total_in() - consumed) as usize..];
            match result {
                Ok(Status::StreamEnd) => return Ok(out),
                Ok(_) if block.is_empty() && out.len() < out.capacity() => return Ok(out),
                Ok(_) if self.inflate.total_in() == consumed && self.inflate.total_out() == produced => return Ok(out),
                Ok(_) => {}
                Err(e) if e.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&DICTIONARY).map_err(|e| invalid(format!("header dictionary: {e}")))?;
                }
                Err(e) => return Err(invalid(format!("headers: {e}"))),
            }
        }
    }
}

fn parse_headers(block: &[u8]) -> io::Result<BTreeMap<String, String>> {
    let cut = || invalid("the headers are cut short");
    let mut rest = block;
    let mut headers = BTreeMap::new();
    for _ in 0..number(&mut rest).ok_or_else(cut)? {
        let name = text(&mut rest).ok_or_else(cut)?.to_ascii_lowercase();
        headers.insert(name, text(&mut rest).ok_or_else(cut)?);
    }
    Ok(headers)
}

fn number(rest: &mut &[u8]) -> Option<usize> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_be_bytes(*number) as usize)
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let (text, after) = number(rest).and_then(|length| rest.split_at_checked(length))?;
    *rest = after;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Writes frames; keeps the state of the header compression.
pub(super) struct Encoder {
    deflate: Compress,
}

impl Encoder {
    pub(super) fn new() -> io::Result<Self> {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&DICTIONARY).map_err(|e| invalid(format!("header dictionary: {e}")))?;
        Ok(Self { deflate })
    }

    /// Accepts a stream, without headers.
    pub(super) fn syn_reply(&mut self, stream: u32) -> io::Result<Vec<u8>> {
        let mut block = Vec::with_capacity(256);
        let deflated = self.deflate.compress_vec(&0_u32.to_be_bytes(), &mut block, FlushCompress::Sync);
        deflated.map_err(|e| invalid(format!("headers: {e}")))?;
        Ok(control(2, 0, &[&stream.to_be_bytes(), &block]))
    }
}

pub(crate) fn data(stream: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + bytes.len());
    frame.extend_from_slice(&(stream & 0x7fff_ffff).to_be_bytes());
    frame.extend_from_slice(&(u32::from(flags) << 24 | bytes.len() as u32).to_be_bytes());
    frame.extend_from_slice(bytes);
    frame
}

pub(crate) fn ping(id: u32) -> Vec<u8> {
    control(6, 0, &[&id.to_be_bytes()])
}

pub(crate) fn control(kind: u32, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut frame = Vec::with_capacity(8 + length);
    frame.extend_from_slice(&(0x8003_0000 | kind).to_be_bytes());
    frame.extend_from_slice(&(u32::from(flags) << 24 | length as u32).to_be_bytes());
    parts.iter().for_each(|p| frame.extend_from_slice(p));
    frame
}

/// Packs header blocks as a client does, all of a connection with one dictionary that grows.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) struct HeaderBlocks(Encoder);

#[cfg(any(test, feature = "fuzzing"))]
impl HeaderBlocks {
    pub(crate) fn new() -> Self {
        Self(Encoder::new().expect("the dictionary is right"))
    }

    pub(crate) fn pack(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(plain.len() + 4096);
        self.0.deflate.compress_vec(plain, &mut block, FlushCompress::Sync).expect("memory is compressed");
        block
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A client's SYN_STREAM frames, sharing one compression as a connection does.
    pub(crate) fn syn_streams(all: &[(u32, &[(&str, &str)])]) -> Vec<u8> {
        let mut blocks = HeaderBlocks::new();
        let mut bytes = Vec::new();
        for (stream, headers) in all {
            let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
            for text in headers.iter().flat_map(|(n, v)| [n, v]) {
                plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
                plain.extend_from_slice(text.as_bytes());
            }
            bytes.extend(control(1, 0, &[&stream.to_be_bytes(), &[0; 6], &blocks.pack(&plain)]));
        }
        bytes
    }

    #[tokio::test]
    async fn streams_are_opened_with_their_headers() {
        let bytes = syn_streams(&[(1, &[("streamType", "error")]), (3, &[("streamtype", "stdout"), ("port", "80")])]);
        let mut reader = Reader::new(&bytes[..]);
        for (id, name) in [(1, "error"), (3, "stdout")] {
            match reader.next().await.unwrap().unwrap() {
                Frame::SynStream { stream, headers, .. } => {
                    assert_eq!((stream, headers["streamtype"].as_str()), (id, name))
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn data_comes_back_as_it_was_sent() {
        let bytes = [data(5, FIN, b"hello"), ping(7)].concat();
        let mut reader = Reader::new(&bytes[..]);
        let want = Frame::Data { stream: 5, fin: true, bytes: b"hello".to_vec() };
        assert_eq!(reader.next().await.unwrap(), Some(want));
        assert_eq!(reader.next().await.unwrap(), Some(Frame::Ping { id: 7 }));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut reader = Reader::new(&bytes[..]);
                while let Ok(Some(_)) = reader.next().await {}
            });
        }
    }
}
