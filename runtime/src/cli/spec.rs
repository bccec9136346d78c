//! `spec`: write an example configuration.

use std::path::Path;

use super::args::Words;
use crate::error::{Context, Result};
use crate::fail;
use crate::spec::VERSION;

pub(super) fn main(words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &["bundle,b=", "rootless", "help,h"])?;
    if words.is_set("help") {
        say!("usage: gantry-run spec [--bundle DIR] [--rootless]");
        return Ok(0);
    }
    let path = Path::new(words.value("bundle").unwrap_or(".")).join("config.json");
    if path.exists() {
        fail!("{} exists already: remove it first", path.display());
    }
    let text = example(words.is_set("rootless"));
    std::fs::write(&path, text).context(|| format!("write {}", path.display()))?;
    Ok(0)
}

/// The example, in the form that people read and change. A user's own container has a user namespace instead of a network of its
/// own, and no limits.
fn example(rootless: bool) -> String {
    let word = |text: &str| format!("\"{text}\"");
    let list = |words: &[&str], indent: &str| -> String {
        let lines: Vec<String> = words.iter().map(|w| format!("\n{indent}  {}", word(w))).collect();
        format!("[{}\n{indent}]", lines.join(","))
    };
    let caps = list(&["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"], "      ");
    let mounts: Vec<String> = MOUNTS
        .iter()
        .map(|(place, kind, source, options)| {
            let options: Vec<String> = options.iter().map(|o| word(o)).collect();
            let options = match &options[..] {
                [] => String::new(),
                options => format!(",\n      \"options\": [{}]", options.join(", ")),
            };
            format!(
                "    {{\n      \"destination\": \"{place}\",\n      \"type\": \"{kind}\",\n      \"source\": \"{source}\"{options}\n    }}"
            )
        })
        .collect();
    let spaces = ["pid", if rootless { "user" } else { "network" }, "ipc", "uts", "mount", "cgroup"];
    let spaces: Vec<String> = spaces.iter().map(|n| format!("\n      {{ \"type\": \"{n}\" }}")).collect();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let map =
        |name: &str, id: u32| format!("    \"{name}\": [{{ \"containerID\": 0, \"hostID\": {id}, \"size\": 1 }}],\n");
    let first = match rootless {
        true => map("uidMappings", uid) + &map("gidMappings", gid),
        false => {
            "    \"resources\": {\n      \"devices\": [{ \"allow\": false, \"access\": \"rwm\" }]\n    },\n".to_owned()
        }
    };
    format!(
        r#"{{
  "ociVersion": "{VERSION}",
  "process": {{
    "terminal": true,
    "user": {{ "uid": 0, "gid": 0 }},
    "args": ["sh"],
    "env": [
      "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      "TERM=xterm"
    ],
    "cwd": "/",
    "capabilities": {{
      "bounding": {caps},
      "effective": {caps},
      "permitted": {caps}
    }},
    "rlimits": [{{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }}],
    "noNewPrivileges": true
  }},
  "root": {{ "path": "rootfs", "readonly": true }},
  "hostname": "gantry",
  "mounts": [
{mounts}
  ],
  "linux": {{
{first}    "namespaces": [{spaces}
    ],
    "maskedPaths": {masked},
    "readonlyPaths": {readonly}
  }}
}}
"#,
        mounts = mounts.join(",\n"),
        spaces = spaces.join(","),
        masked = list(&MASKED, "    "),
        readonly = list(&READONLY, "    "),
    )
}

/// Place, type, source, options.
const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &[]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
];

const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
];

const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Spec, parse, validate};

    #[test]
    fn the_examples_are_valid() {
        for rootless in [false, true] {
            let spec: Spec = parse(example(rootless).as_bytes()).unwrap();
            validate(&spec).unwrap();
            assert_eq!(spec.mounts.len(), MOUNTS.len());
            assert_eq!(spec.linux().uid_mappings.len(), usize::from(rootless));
        }
    }
}
