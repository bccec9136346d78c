//! How long tasks of a group waited for a resource (pressure stall information), and what they read and wrote by device.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Who waited: one line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waited {
    /// Microseconds so far.
    pub total_us: u64,
    /// Percent of the last 10, 60 and 300 seconds.
    pub averages: [f64; 3],
}

/// One resource's pressure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Waited,
    /// All tasks waited at the same time.
    pub full: Waited,
}

/// What a group read from and wrote to one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// Major and minor number to what was read and written.
pub type Devices = BTreeMap<(u32, u32), DeviceIo>;

/// A pressure file's text; `None` when it has no line `some`.
fn parse(text: &str) -> Option<Pressure> {
    let line = |kind: &str| {
        let rest = text.lines().find_map(|l| l.strip_prefix(kind)?.strip_prefix(' '))?;
        let field = |key: &str| rest.split_whitespace().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| field(key).and_then(|v| v.parse().ok()).unwrap_or(0.0);
        Some(Waited {
            total_us: field("total")?.parse().ok()?,
            averages: [average("avg10"), average("avg60"), average("avg300")],
        })
    };
    // Old kernels have no `full` for the CPU.
    Some(Pressure { some: line("some")?, full: line("full").unwrap_or_default() })
}

/// Reads `<resource>.pressure`; `None` where the kernel does not count it.
pub(crate) fn read(folder: &Path, resource: &str) -> Option<Pressure> {
    parse(&fs::read_to_string(folder.join(format!("{resource}.pressure"))).ok()?)
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A version 2 `io.stat`.
pub(crate) fn devices_v2(text: &str) -> Devices {
    let one = |line: &str| {
        let mut words = line.split_whitespace();
        let device = device(words.next()?)?;
        let mut io = DeviceIo::default();
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.written_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        Some((device, io))
    };
    text.lines().filter_map(one).collect()
}

/// The version 1 files of bytes and of operations.
pub(crate) fn devices_v1(bytes: &str, operations: &str) -> Devices {
    let mut all = Devices::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [at, kind, count] = words[..] else { continue };
            let (Some(at), Ok(count)) = (device(at), count.parse::<u64>()) else { continue };
            let io = all.entry(at).or_default();
            match (kind, is_bytes) {
                ("Read", true) => io.read_bytes = count,
                ("Write", true) => io.written_bytes = count,
                ("Read", false) => io.reads = count,
                ("Write", false) => io.writes = count,
                _ => {}
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_as_the_kernel_writes_it() {
        let text =
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=4572\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let p = parse(text).unwrap();
        assert_eq!(p.some, Waited { total_us: 4572, averages: [1.5, 0.25, 0.0] });
        assert_eq!(p.full.total_us, 7);
        assert_eq!(parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=3\n").unwrap().full, Waited::default());
        for bad in ["", "some", "some total=x", "full total=1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn devices_are_read_in_both_versions() {
        let io = DeviceIo { read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 };
        let v2 = devices_v2("8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16\nnonsense\n");
        assert_eq!(v2, Devices::from([((8, 0), io), ((8, 16), DeviceIo::default())]));
        let bytes = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 5\n8:0 Total 30\nTotal 30\n";
        assert_eq!(devices_v1(bytes, "8:0 Read 1\n8:0 Write 2\nTotal 3\n"), Devices::from([((8, 0), io)]));
    }
}
