//! `features`: what this runtime can do, in the specification's form.

use serde_json::json;

use super::args::Words;
use crate::error::Result;
use crate::plan::capabilities::NAMES;
use crate::plan::mounts;
use crate::plan::process::{MEMORY_FLAGS, MEMORY_MODES};
use crate::seccomp::{ACTIONS, FLAGS, HERE, OPERATORS};
use crate::spec::VERSION;

pub(super) fn main(words: Vec<String>) -> Result<i32> {
    Words::anywhere(words, &[])?;
    let modes: Vec<&str> = MEMORY_MODES.iter().map(|(name, ..)| *name).collect();
    let flags: Vec<&str> = MEMORY_FLAGS.iter().map(|(name, _)| *name).collect();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mounts::words(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": &NAMES[..],
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": ACTIONS,
                "operators": OPERATORS,
                "archs": HERE.architectures(),
                "knownFlags": FLAGS,
                "supportedFlags": FLAGS,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {"modes": modes, "flags": flags},
            "netDevices": {"enabled": true},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
        "annotations": {
            "io.gantry.run.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.runc.checkpoint.enabled": "true",
        },
        "potentiallyUnsafeConfigAnnotations": [],
    });
    say!("{}", serde_json::to_string_pretty(&features).unwrap_or_default());
    Ok(0)
}
