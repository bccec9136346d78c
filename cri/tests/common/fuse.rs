//! A file system with one file, whatever its name, that never gets an answer when it is read or written: what an NFS server that
//! is gone looks like. Whoever waits for it cannot be killed, as the request is in the server's hands.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// What the file says when its server answers.
const TEXT: &[u8] = b"at last\n";

/// The server; dropping it aborts the connection, which ends every wait for it.
pub struct Silent {
    answers: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    held: Arc<AtomicUsize>,
    server: Option<JoinHandle<()>>,
}

impl Silent {
    /// Mounts one at this path of the mount namespace of the process `init`; none where there is no FUSE.
    pub fn mount(init: u32, target: &Path) -> Option<Self> {
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            eprintln!("skipped: there is no /dev/fuse");
            return None;
        };
        std::fs::create_dir_all(target).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let (answers, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let held = Arc::new(AtomicUsize::new(0));
        let server = {
            let (answers, over, held) = (answers.clone(), over.clone(), held.clone());
            std::thread::spawn(move || serve(device, &answers, &over, &held))
        };
        let silent = Self { answers, over, held, server: Some(server) };
        // A thread can leave its process' mount namespace only when its working folder is its own.
        let target = target.to_path_buf();
        let mounting = std::thread::spawn(move || {
            let space = File::open(format!("/proc/{init}/ns/mnt"))?;
            unshare(CloneFlags::CLONE_FS)?;
            setns(space, CloneFlags::CLONE_NEWNS)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("silent"), &target, Some("fuse"), flags, Some(options.as_str()))?;
            Ok::<_, std::io::Error>(())
        });
        match mounting.join().unwrap() {
            Ok(()) => Some(silent),
            Err(error) => {
                eprintln!("skipped: mount a FUSE file system: {error}");
                None
            }
        }
    }

    /// How many requests wait for ever.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// The server is back: it answers what waits and all that comes.
    pub fn answer(&self) {
        self.answers.store(true, Ordering::SeqCst);
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// Serves until it is over; the device closes with it.
fn serve(mut device: File, answers: &AtomicBool, over: &AtomicBool, held: &AtomicUsize) {
    let mut buffer = vec![0; 256 << 10];
    let mut waiting: Vec<(u64, Vec<u8>)> = Vec::new();
    while !over.load(Ordering::SeqCst) {
        if answers.load(Ordering::SeqCst) {
            for (unique, body) in waiting.drain(..) {
                let _ = reply(&mut device, unique, 0, &body);
            }
        }
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&device), PollFlags::POLLIN)];
        let some = poll(&mut fds, PollTimeout::from(50_u8)).unwrap_or(0);
        if some == 0 {
            continue;
        }
        let Ok(length) = device.read(&mut buffer) else { continue };
        let request = &buffer[..length];
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        let (code, unique, node) = (word(4), long(8), long(16));
        let body = match code {
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            READ | WRITE => {
                let body = if code == WRITE {
                    words(&[word(56), 0])
                } else {
                    TEXT.get(usize::try_from(long(48)).unwrap()..).unwrap_or_default().to_vec()
                };
                waiting.push((unique, body));
                held.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            INIT => {
                let mut body = words(&[7, 31, 64 << 10, 0, 0, 64 << 10, 1, 0]);
                body.resize(64, 0);
                Some(body)
            }
            LOOKUP => Some([longs(&[2, 0, 3600, 3600]), words(&[0, 0]), attributes(2)].concat()),
            GETATTR | SETATTR => Some([longs(&[3600]), words(&[0, 0]), attributes(node)].concat()),
            OPEN | OPENDIR => Some(vec![0; 16]),
            STATFS => Some(vec![0; 80]),
            RELEASE | RELEASEDIR | FLUSH => Some(Vec::new()),
            _ => None,
        };
        let error = if body.is_some() { 0 } else { -nix::libc::ENOSYS };
        let _ = reply(&mut device, unique, error, &body.unwrap_or_default());
    }
}

fn words(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn longs(all: &[u64]) -> Vec<u8> {
    all.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// The root is node 1, the file is node 2.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = if node == 1 { (0o40_755, 0) } else { (0o100_644, TEXT.len() as u64) };
    [longs(&[node, size, 1, 0, 0, 0]), words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
}

fn reply(device: &mut File, unique: u64, error: i32, body: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(16 + body.len()).unwrap();
    let mut message = length.to_le_bytes().to_vec();
    message.extend(error.to_le_bytes());
    message.extend(unique.to_le_bytes());
    message.extend(body);
    device.write_all(&message)
}

/// Whether a process waits for something that no signal ends.
pub fn is_uninterruptible(pid: u32) -> bool {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    std::fs::read_to_string(path).is_ok_and(|s| s.rsplit(')').next().is_some_and(|r| r.trim_start().starts_with('D')))
}
