//! What gantry-cri and a monitor say to each other: one request per frame, one or more answers.
//!
//! Frames are JSON with a length before them ([`crate::frame`]); descriptors travel beside the frame that names them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::record::ExitRecord;

/// A request to the monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Answers [`Answer::Done`]: the monitor is alive.
    Ping,
    /// Makes a container: the runtime's `create`, or its `run` where [`Create::start`] says so. Answers [`Answer::Created`], or
    /// [`Answer::Running`] of one that is started; made already is fine.
    Create(Box<Create>),
    /// Starts a created container; started already is fine. Answers [`Answer::Done`].
    Start {
        /// Container id.
        id: String,
    },
    /// Asks how far a container has come. Answers [`Answer::Created`] or [`Answer::Running`], also of one that has ended since;
    /// refused where it is not made.
    Look {
        /// Container id.
        id: String,
    },
    /// Signals a container's init. Answers [`Answer::Done`], also when it has ended already.
    Kill {
        /// Container id.
        id: String,
        /// Signal number.
        signal: i32,
        /// Every process of the container.
        all: bool,
    },
    /// Deletes the runtime's container, by force when it still runs. Answers [`Answer::Done`]; unknown is fine.
    Delete {
        /// Container id.
        id: String,
    },
    /// Runs one more process in a container. Up to three descriptors come along: standard input, output and error
    /// (only without a terminal; absent means /dev/null). Answers [`Answer::Started`] (with the terminal's master as
    /// descriptor) and, when the process ends, [`Answer::Exited`]. Closing the connection earlier kills it with all its
    /// descendants.
    Exec {
        /// Container id.
        id: String,
        /// The OCI process to run.
        process: serde_json::Value,
        /// It gets a terminal.
        terminal: bool,
        /// Which of input, output and error come as descriptors, in that order.
        streams: [bool; 3],
    },
    /// Joins a container's streams. Descriptors: where output and error go (as far as `streams` says). Answers
    /// [`Answer::Attached`]; the descriptor beside it is standard input or the terminal, if there is one.
    Attach {
        /// Container id.
        id: String,
        /// Which of output and error come as descriptors.
        streams: [bool; 2],
    },
    /// Closes a container's standard input (stdin_once).
    CloseStdin {
        /// Container id.
        id: String,
    },
    /// Opens the log file anew at its path (after rotation).
    ReopenLog {
        /// Container id.
        id: String,
    },
    /// Answers [`Answer::Exit`] for every container that has ended already and for each that ends from now on.
    Subscribe,
    /// Makes a PID namespace with a reaping init in it. Answers [`Answer::Created`] with that init's pid.
    PidNamespace {
        /// Pinned user namespace that it shall belong to.
        #[serde(default)]
        user: Option<PathBuf>,
    },
    /// Ends the monitor; refused while a container runs.
    Shutdown,
}

/// A container to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Create {
    /// Container id.
    pub id: String,
    /// OCI bundle folder; the runtime's log and pid file are written there.
    pub bundle: PathBuf,
    /// It gets a terminal.
    pub terminal: bool,
    /// Keep standard input open.
    pub stdin: bool,
    /// CRI log file; none drops the output.
    pub log: Option<PathBuf>,
    /// Where the exit record goes.
    pub exit_file: PathBuf,
    /// Cgroup path, to see kills by the memory limit.
    pub cgroup: PathBuf,
    /// The folder of a checkpoint (its images in `checkpoint`) from which its processes go on; they run when this is answered.
    #[serde(default)]
    pub restore: Option<PathBuf>,
    /// Start it, too. A monitor of an older version only makes it, and says so by its answer.
    #[serde(default)]
    pub start: bool,
}

/// The monitor's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// Not done, and why.
    Failed {
        /// What went wrong, in the runtime's own words where it said any.
        message: String,
    },
    /// The container (or init) exists with this pid.
    Created {
        /// Host pid.
        pid: i32,
    },
    /// The container was started.
    Running {
        /// Host pid.
        pid: i32,
        /// When, in nanoseconds since the epoch.
        since: i64,
    },
    /// The exec'd process runs with this pid.
    Started {
        /// Host pid.
        pid: i32,
        /// The terminal's master comes along.
        terminal: bool,
    },
    /// The exec'd process ended.
    Exited {
        /// Exit code, 128 + signal when killed.
        code: i32,
    },
    /// Attached.
    Attached {
        /// A descriptor for standard input (or the terminal) comes along.
        input: bool,
        /// That descriptor is a terminal.
        terminal: bool,
    },
    /// A container ended.
    Exit {
        /// Container id.
        id: String,
        /// How.
        record: ExitRecord,
    },
}
