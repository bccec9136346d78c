//! What a verb leaves to be done when its caller has the answer: the kernel takes some 20 ms to remove a device and 10 ms to
//! forget what a transaction took away, and nobody needs to wait for either. A process of its own stays behind for that; it
//! holds nothing of the container. When it is killed, a device remains that is down, which GC, the next ADD and the end of
//! the container's namespace take away.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io;
use std::time::Duration;

use gantry_net::{Socket, link};
use gantry_sys::process::{Cloned, clone3, exit_now};

/// Closing any netfilter socket waits for the kernel's worker, under a lock that others' transactions need: its work is done
/// by itself within this time.
const WORKER: Duration = Duration::from_millis(50);

/// One thing to do.
#[derive(Debug)]
pub enum Later {
    /// Remove a device.
    Remove(Socket, u32),
    /// Close a netfilter socket, by which something was taken away or not.
    Close(Socket, bool),
}

impl Later {
    /// Does it. A device that is gone is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn do_now(self) -> io::Result<()> {
        match self {
            Self::Remove(mut socket, index) => match socket.request(link::delete(index)) {
                Err(e) if e.raw_os_error() != Some(libc::ENODEV) => Err(e),
                _ => Ok(()),
            },
            Self::Close(..) => Ok(()),
        }
    }
}

thread_local! {
    static LEFT: RefCell<Option<Vec<Later>>> = const { RefCell::new(None) };
}

/// From now on [`leave`] leaves things to [`finish`]; without this it does them at once.
pub fn begin() {
    LEFT.set(Some(Vec::new()));
}

/// Leaves something to be done later, or does it.
///
/// # Errors
/// It was done, and the kernel refuses.
pub fn leave(later: Later) -> io::Result<()> {
    let refused = LEFT.with_borrow_mut(|left| match left {
        Some(list) => {
            list.push(later);
            None
        }
        None => Some(later),
    });
    refused.map_or(Ok(()), Later::do_now)
}

/// Does what was left, in another process; in this one when there can be no other. The caller has its answer already.
pub fn finish() {
    let left = LEFT.take().unwrap_or_default();
    if left.iter().all(|later| matches!(later, Later::Close(_, false))) {
        return;
    }
    let child = match clone3(0, None) {
        Ok(Cloned::Parent(..)) => return,
        Ok(Cloned::Child) => true,
        Err(_) => false,
    };
    if child && let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        // The caller reads until nobody has its pipes any more.
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    let mut sockets = Vec::new();
    for later in left {
        match later {
            Later::Close(socket, _) => sockets.push(socket),
            remove @ Later::Remove(..) => drop(remove.do_now()),
        }
    }
    if child {
        if !sockets.is_empty() {
            std::thread::sleep(WORKER);
        }
        exit_now(0);
    }
}
