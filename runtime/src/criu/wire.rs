//! criu's messages: as much of protobuf as they need, and the numbers of the fields (criu's `rpc.proto`).

use std::os::fd::{AsFd, AsRawFd};

// Fields of criu_opts.
pub(super) const IMAGES_DIR_FD: u32 = 1;
pub(super) const PID: u32 = 2;
pub(super) const LEAVE_RUNNING: u32 = 3;
pub(super) const EXT_UNIX_SK: u32 = 4;
pub(super) const TCP_ESTABLISHED: u32 = 5;
pub(super) const EVASIVE_DEVICES: u32 = 6;
pub(super) const SHELL_JOB: u32 = 7;
pub(super) const FILE_LOCKS: u32 = 8;
pub(super) const LOG_LEVEL: u32 = 9;
pub(super) const LOG_FILE: u32 = 10;
pub(super) const PAGE_SERVER: u32 = 11;
pub(super) const NOTIFY_SCRIPTS: u32 = 12;
pub(super) const ROOT: u32 = 13;
pub(super) const PARENT_IMG: u32 = 14;
pub(super) const TRACK_MEM: u32 = 15;
pub(super) const AUTO_DEDUP: u32 = 16;
pub(super) const WORK_DIR_FD: u32 = 17;
pub(super) const LINK_REMAP: u32 = 18;
pub(super) const EXT_MNT: u32 = 23;
pub(super) const MANAGE_CGROUPS: u32 = 24;
pub(super) const CG_ROOT: u32 = 25;
pub(super) const RST_SIBLING: u32 = 26;
pub(super) const INHERIT_FD: u32 = 27;
pub(super) const MANAGE_CGROUPS_MODE: u32 = 34;
pub(super) const EXTERNAL: u32 = 37;
pub(super) const EMPTY_NS: u32 = 38;
pub(super) const JOIN_NS: u32 = 39;
pub(super) const FREEZE_CGROUP: u32 = 44;
pub(super) const TCP_SKIP_IN_FLIGHT: u32 = 46;
pub(super) const LAZY_PAGES: u32 = 48;
pub(super) const ORPHAN_PTS_MASTER: u32 = 50;
pub(super) const CONFIG_FILE: u32 = 51;
pub(super) const LSM_PROFILE: u32 = 53;
pub(super) const LSM_MOUNT_CONTEXT: u32 = 63;

/// What criu is asked to do (criu_req_type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Dump = 1,
    Restore = 2,
    PreDump = 4,
}

const NOTIFY: u64 = 6;

/// A message that is being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(super) fn number(&mut self, field: u32, value: u64) -> &mut Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) -> &mut Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn text(&mut self, field: u32, text: &str) -> &mut Self {
        self.bytes(field, text.as_bytes())
    }

    pub(super) fn message(&mut self, field: u32, message: &Self) -> &mut Self {
        self.bytes(field, &message.0)
    }

    pub(super) fn descriptor(&mut self, field: u32, fd: impl AsFd) -> &mut Self {
        self.number(field, fd.as_fd().as_raw_fd() as u64)
    }

    /// Two texts, as a message of their own.
    pub(super) fn pair(&mut self, field: u32, first: &str, second: &str) -> &mut Self {
        let mut pair = Self::default();
        pair.text(1, first).text(2, second);
        self.message(field, &pair)
    }

    /// A descriptor that criu has inherited, under the name by which the images know it.
    pub(super) fn inherited(&mut self, key: &str, fd: impl AsFd) -> &mut Self {
        let mut inherited = Self::default();
        inherited.text(1, key).descriptor(2, fd);
        self.message(INHERIT_FD, &inherited)
    }
}

/// A whole request.
pub(super) fn request(work: Work, options: &Message) -> Vec<u8> {
    let mut request = Message::default();
    request.number(1, work as u64).message(2, options);
    request.0
}

/// What a notification is answered with.
pub(super) fn answer(success: bool) -> Vec<u8> {
    let mut answer = Message::default();
    answer.number(1, NOTIFY).number(3, u64::from(success));
    answer.0
}

/// What criu says (criu_resp).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A point is reached; criu waits for an answer.
    Reached {
        point: String,
        pid: i32,
    },
    /// The work is done; restoring made this process.
    Done {
        pid: i32,
    },
    Failed {
        errno: i32,
        message: String,
    },
}

/// Reads what criu says.
pub(super) fn said(bytes: &[u8]) -> Option<Said> {
    let (mut kind, mut success, mut errno) = (0, false, 0);
    let (mut point, mut pid, mut message) = (String::new(), 0, String::new());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for field in Fields(bytes) {
        match field? {
            (1, Value::Number(n)) => kind = n,
            (2, Value::Number(n)) => success = n != 0,
            (7, Value::Number(n)) => errno = n as i32,
            (9, Value::Bytes(b)) => message = text(b),
            (4, Value::Bytes(restored)) => {
                for field in Fields(restored) {
                    if let (1, Value::Number(n)) = field? {
                        pid = n as i32;
                    }
                }
            }
            (5, Value::Bytes(notify)) => {
                for field in Fields(notify) {
                    match field? {
                        (1, Value::Bytes(b)) => point = text(b),
                        (2, Value::Number(n)) => pid = n as i32,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(match (success, kind) {
        (false, _) => Said::Failed { errno, message },
        (true, NOTIFY) => Said::Reached { point, pid },
        (true, _) => Said::Done { pid },
    })
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message; nothing for one that is cut off or of no known form, which is the last.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            kind => {
                let length = match kind {
                    1 => 8,
                    5 => 4,
                    2 => usize::try_from(self.varint()?).ok()?,
                    _ => return None,
                };
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Value::Bytes(bytes)
            }
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_protobuf_writes_them() {
        let mut options = Message::default();
        options.number(IMAGES_DIR_FD, 300).text(LOG_FILE, "l").pair(EXT_MNT, "/a", "/b").number(EMPTY_NS, 0x4000_0000);
        let wanted = [
            &[8, 0xac, 2][..],
            &[82, 1, b'l'],
            &[0xba, 1, 8, 10, 2, b'/', b'a', 18, 2, b'/', b'b'],
            &[0xb0, 2, 0x80, 0x80, 0x80, 0x80, 4],
        ]
        .concat();
        assert_eq!(options.0, wanted);
        let request = request(Work::Restore, &options);
        assert_eq!(request[..4], [8, 2, 18, wanted.len() as u8]);
        assert_eq!(request[4..], wanted);
        assert_eq!(answer(true), [8, 6, 24, 1]);
    }

    #[test]
    fn what_criu_says_is_read() {
        let reached = [8, 6, 16, 1, 42, 8, 10, 3, b'a', b'-', b'b', 16, 0x90, 1];
        assert_eq!(said(&reached), Some(Said::Reached { point: "a-b".to_owned(), pid: 144 }));
        assert_eq!(said(&[8, 2, 16, 1, 34, 2, 8, 7]), Some(Said::Done { pid: 7 }));
        // Fields that are not known here are passed over.
        assert_eq!(said(&[8, 1, 16, 1, 0x9d, 6, 1, 2, 3, 4]), Some(Said::Done { pid: 0 }));
        let failed = Said::Failed { errno: 17, message: "no".to_owned() };
        assert_eq!(said(&[8, 2, 16, 0, 56, 17, 74, 2, b'n', b'o']), Some(failed));
    }

    #[test]
    fn what_is_cut_off_is_not_taken_for_something() {
        let reached = [8, 6, 16, 1, 42, 8, 10, 3, b'a', b'-', b'b', 16, 0x90, 1];
        for length in 5..reached.len() {
            assert_eq!(said(&reached[..length]), None, "{length}");
        }
        assert_eq!(said(&[0xff; 16]), None);
        assert_eq!(said(&[8, 6, 16, 1, 43]), None);
    }
}
