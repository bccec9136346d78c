//! Files with holes in a tar: where their pieces of content belong.
//!
//! Writers have four ways to say it: GNU's own header with further blocks, and PAX records in the versions 0.0 (a record for each
//! number), 0.1 (one record) and 1.0 (a map in front of the content). All become one checked list. Pure but for the blocks
//! that are read through a closure.

use std::io;

use tar::Header;

use super::tarball::bad;

/// Pieces of one file.
const MAX_PIECES: usize = 1 << 17;

/// A file's size and what of it is in the archive, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Bytes of the file, holes included.
    pub(crate) size: u64,
    /// Where each piece of content begins, and how long it is.
    pub(crate) pieces: Vec<(u64, u64)>,
}

/// What PAX records say so far.
#[derive(Debug, Default)]
pub(super) struct Asked {
    size: Option<u64>,
    numbers: Vec<u64>,
    /// Version 1.0: the map is in the content.
    inline: bool,
    any: bool,
    /// The file's own name: the one of the entry is made up for readers that do not know sparse files.
    pub(super) name: Option<Vec<u8>>,
}

fn malformed() -> io::Error {
    bad("malformed map of a sparse file")
}

fn number(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or_else(malformed)
}

impl Sparse {
    /// From GNU's header, whose further blocks `next` reads.
    pub(super) fn of_header(header: &Header, mut next: impl FnMut() -> io::Result<[u8; 512]>) -> io::Result<Sparse> {
        let gnu = header.as_gnu().ok_or_else(malformed)?;
        let mut sparse = Sparse { size: gnu.real_size().map_err(|_| malformed())?, pieces: Vec::new() };
        let mut add = |piece: &tar::GnuSparseHeader| -> io::Result<()> {
            if !piece.is_empty() {
                let numbers = (piece.offset().map_err(|_| malformed())?, piece.length().map_err(|_| malformed())?);
                sparse.push(numbers)?;
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            block.as_mut_bytes().copy_from_slice(&next()?);
            block.sparse().iter().try_for_each(&mut add)?;
            more = block.is_extended();
        }
        Ok(sparse)
    }

    fn push(&mut self, piece: (u64, u64)) -> io::Result<()> {
        if self.pieces.len() >= MAX_PIECES {
            return Err(bad(format!("a sparse file of more than {MAX_PIECES} pieces")));
        }
        self.pieces.push(piece);
        Ok(())
    }

    /// Whether the pieces are in order, inside the file, and together the `stored` bytes of content.
    pub(super) fn check(&self, stored: u64) -> io::Result<()> {
        let (mut end, mut sum) = (0u64, 0u64);
        for (offset, length) in &self.pieces {
            let next = offset.checked_add(*length).filter(|_| *offset >= end).ok_or_else(malformed)?;
            (end, sum) = (next, sum + length);
        }
        if end <= self.size && sum == stored { Ok(()) } else { Err(malformed()) }
    }
}

impl Asked {
    pub(super) fn is_empty(&self) -> bool {
        !self.any
    }

    /// Takes a record `GNU.sparse.<name>`.
    pub(super) fn record(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        self.any = true;
        match name {
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"major" => self.inline = value == b"1",
            b"offset" | b"numbytes" => self.numbers.push(number(value)?),
            b"map" if !value.is_empty() => {
                for text in value.split(|b| *b == b',') {
                    self.numbers.push(number(text)?);
                }
            }
            _ => {}
        }
        if self.numbers.len() > 2 * MAX_PIECES { Err(malformed()) } else { Ok(()) }
    }

    /// The list; `next` reads a block of the content.
    pub(super) fn finish(mut self, mut next: impl FnMut() -> io::Result<[u8; 512]>) -> io::Result<Sparse> {
        if self.inline {
            self.numbers = inline(&mut next)?;
        }
        let mut sparse = Sparse { size: self.size.ok_or_else(malformed)?, pieces: Vec::new() };
        for pair in self.numbers.chunks(2) {
            sparse.push((pair[0], *pair.get(1).ok_or_else(malformed)?))?;
        }
        Ok(sparse)
    }
}

/// The map in front of the content: how many pieces, then two numbers for each, a line each, in whole blocks.
fn inline(next: &mut impl FnMut() -> io::Result<[u8; 512]>) -> io::Result<Vec<u64>> {
    let (mut numbers, mut wanted, mut digits) = (Vec::new(), None, Vec::new());
    loop {
        for byte in next()? {
            if byte != b'\n' {
                digits.push(byte);
                if digits.len() > 20 {
                    return Err(malformed());
                }
                continue;
            }
            let value = number(&digits)?;
            digits.clear();
            match wanted {
                None => {
                    let count = usize::try_from(value).ok().filter(|n| *n <= MAX_PIECES).ok_or_else(malformed)?;
                    wanted = Some(2 * count);
                }
                Some(_) => numbers.push(value),
            }
            if wanted == Some(numbers.len()) {
                return Ok(numbers);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> [u8; 512] {
        let mut block = [0; 512];
        block[..text.len()].copy_from_slice(text.as_bytes());
        block
    }

    fn asked(records: &[(&str, &str)], content: &str) -> io::Result<Sparse> {
        let mut asked = Asked::default();
        for (name, value) in records {
            asked.record(name.as_bytes(), value.as_bytes())?;
        }
        asked.finish(|| Ok(block(content)))
    }

    #[test]
    fn all_versions_say_the_same() {
        let want = Sparse { size: 100, pieces: vec![(0, 5), (50, 7)] };
        let v00 = [("size", "100"), ("offset", "0"), ("numbytes", "5"), ("offset", "50"), ("numbytes", "7")];
        assert_eq!(asked(&v00, "").unwrap(), want);
        assert_eq!(asked(&[("size", "100"), ("map", "0,5,50,7")], "").unwrap(), want);
        let v10 = [("major", "1"), ("minor", "0"), ("realsize", "100")];
        assert_eq!(asked(&v10, "2\n0\n5\n50\n7\n").unwrap(), want);
        want.check(12).unwrap();
    }

    #[test]
    fn maps_that_lie_are_refused() {
        for (records, content) in [
            (vec![("map", "0,5")], ""),
            (vec![("size", "9"), ("map", "0,5,7")], ""),
            (vec![("size", "9"), ("map", "0,x")], ""),
            (vec![("size", "9"), ("major", "1")], "99999999999\n"),
            (vec![("size", "9"), ("major", "1")], "no number\n"),
        ] {
            assert!(asked(&records, content).is_err(), "{records:?}");
        }
        for (size, pieces, stored) in [
            (10, vec![(0, 11)], 11),
            (10, vec![(5, 2), (4, 2)], 4),
            (10, vec![(0, 2)], 3),
            (u64::MAX, vec![(1, u64::MAX)], 0),
        ] {
            assert!(Sparse { size, pieces: pieces.clone() }.check(stored).is_err(), "{pieces:?}");
        }
    }
}
