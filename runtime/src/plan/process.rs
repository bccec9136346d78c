//! Names of limits, policies and classes; where a program is found.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The number of a resource limit.
///
/// # Errors
/// The name is unknown.
pub(crate) fn rlimit_of(name: &str) -> Result<u32> {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let short = name.strip_prefix("RLIMIT_").unwrap_or("");
    let number = NAMES.iter().position(|n| *n == short);
    number.map(|n| n as u32).ok_or_else(|| Error::new(format!("unknown limit {name:?}")))
}

/// The number of a scheduling policy.
///
/// # Errors
/// The name is unknown.
pub(crate) fn scheduler_of(name: &str) -> Result<u32> {
    Ok(match name {
        "SCHED_OTHER" | "" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => return Err(Error::new(format!("process.scheduler.policy: unknown policy {other:?}"))),
    })
}

/// The bits of scheduling flags.
///
/// # Errors
/// A name is unknown.
pub(crate) fn scheduler_flags(names: &[String]) -> Result<u64> {
    let bit = |name: &String| {
        Ok(match name.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => return Err(Error::new(format!("process.scheduler.flags: unknown flag {other:?}"))),
        })
    };
    names.iter().map(bit).try_fold(0, |all, b| Ok(all | b?))
}

/// The numbers in a list like `0-3,7`; nothing for what is no such list, or names more than the kernel can.
pub(crate) fn numbers_of(list: &str) -> Option<Vec<u32>> {
    const MOST: u32 = 8192;
    let mut numbers = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |n: &str| n.parse::<u32>().ok().filter(|v| *v < MOST && n.bytes().all(|b| b.is_ascii_digit()));
        let (first, last) = number(first).zip(number(last)).filter(|(first, last)| first <= last)?;
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// The number of a memory policy's mode, and whether it is about nodes.
///
/// # Errors
/// The name is unknown.
pub(crate) fn memory_mode_of(name: &str) -> Result<(i32, bool)> {
    MEMORY_MODES
        .iter()
        .find(|(mode, ..)| *mode == name)
        .map(|(_, number, nodes)| (*number, *nodes))
        .ok_or_else(|| Error::new(format!("linux.memoryPolicy.mode: unknown mode {name:?}")))
}

/// Modes of a memory policy: name, number, whether they are about nodes.
pub(crate) const MEMORY_MODES: [(&str, i32, bool); 7] = [
    ("MPOL_DEFAULT", 0, false),
    ("MPOL_PREFERRED", 1, true),
    ("MPOL_BIND", 2, true),
    ("MPOL_INTERLEAVE", 3, true),
    ("MPOL_LOCAL", 4, false),
    ("MPOL_PREFERRED_MANY", 5, true),
    ("MPOL_WEIGHTED_INTERLEAVE", 6, true),
];

/// Flags of a memory policy.
pub(crate) const MEMORY_FLAGS: [(&str, i32); 3] =
    [("MPOL_F_NUMA_BALANCING", 1 << 13), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_STATIC_NODES", 1 << 15)];

/// The bits of a memory policy's flags.
///
/// # Errors
/// A name is unknown.
pub(crate) fn memory_flags_of(names: &[String]) -> Result<i32> {
    let bit = |name: &String| {
        let known = MEMORY_FLAGS.iter().find(|(flag, _)| flag == name);
        known.map(|(_, bit)| *bit).ok_or_else(|| Error::new(format!("linux.memoryPolicy.flags: unknown flag {name:?}")))
    };
    names.iter().map(bit).try_fold(0, |all, b| Ok(all | b?))
}

/// The number of an I/O priority class.
///
/// # Errors
/// The name is unknown.
pub(crate) fn io_class_of(name: &str) -> Result<i32> {
    Ok(match name {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => return Err(Error::new(format!("process.ioPriority.class: unknown class {other:?}"))),
    })
}

/// Where to look for a program: itself where it has a slash, else each folder of PATH (an empty entry is the working folder).
pub(crate) fn candidates(program: &str, env: &[String]) -> Vec<PathBuf> {
    if program.contains('/') {
        return vec![PathBuf::from(program)];
    }
    const DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path = env.iter().rev().find_map(|v| v.strip_prefix("PATH=")).unwrap_or(DEFAULT);
    path.split(':').map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(program)).collect()
}

/// The home folder of a user from the text of a passwd file; `/` where it has none.
pub(crate) fn home_of(passwd: &str, uid: u32) -> String {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() > 5 && fields[2].parse() == Ok(uid) && !fields[5].is_empty()).then(|| fields[5].to_owned())
    };
    passwd.lines().find_map(of_line).unwrap_or_else(|| "/".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_as_a_shell_does() {
        let text = |p: &str, env: &[&str]| {
            let env: Vec<String> = env.iter().map(|s| (*s).to_owned()).collect();
            candidates(p, &env).iter().map(|p| p.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(text("/bin/x", &[]), ["/bin/x"]);
        assert_eq!(text("./x", &["PATH=/a"]), ["./x"]);
        assert_eq!(text("x", &["PATH=/a::/b"]), ["/a/x", "./x", "/b/x"]);
        assert!(text("x", &[]).contains(&"/usr/bin/x".to_owned()));
    }

    #[test]
    fn homes_come_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nuser:x:1000:1000::/home/user:/bin/sh\n";
        assert_eq!(home_of(passwd, 1000), "/home/user");
        assert_eq!(home_of(passwd, 7), "/");
    }
}
