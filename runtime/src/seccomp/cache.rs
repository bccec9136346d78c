//! Compiled filters on disk, by what they were compiled from: most containers of a host have the same profile.
//!
//! A filter that somebody else could change would be no filter. So the folder and the files must be this user's and nobody
//! else's to enter or write, they are opened without following links, and a file must be whole. Whatever is not so is passed over,
//! and the profile compiled.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use gantry_sys::seccomp::Instruction;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};
use sha2::{Digest, Sha256};

use super::compile;
use crate::error::Result;
use crate::spec::Seccomp;

/// The folder, beside the containers': hidden, and with a sign that no container's id has.
const FOLDER: &str = ".seccomp~";

/// More filters than these are not kept: the ones longest unused go.
const MOST_FILTERS: usize = 32;

/// Profiles that name fewer calls are compiled in the time that looking for their filters takes.
const FEWEST_CALLS: usize = 64;

/// An instruction's bytes.
const WIDTH: usize = size_of::<Instruction>();

/// Tells compilers apart: a filter of another one is never found.
const COMPILER: u64 = {
    const fn mix(mut sum: u64, text: &[u8]) -> u64 {
        let mut i = 0;
        while i < text.len() {
            sum = (sum ^ text[i] as u64).wrapping_mul(0x100_0000_01b3);
            i += 1;
        }
        sum
    }
    let sum = mix(0xcbf2_9ce4_8422_2325, include_bytes!("compile.rs"));
    mix(mix(mix(sum, include_bytes!("machine.rs")), include_bytes!("profile.rs")), include_bytes!("table.rs"))
};

/// As [`compile`], from the cache below `store` where the filter is there, which has it afterwards.
///
/// # Errors
/// As [`compile`].
pub(crate) fn compiled(store: &Path, profile: &Seccomp) -> Result<Vec<Instruction>> {
    if profile.syscalls.iter().map(|rule| rule.names.len()).sum::<usize>() < FEWEST_CALLS {
        return compile(profile);
    }
    let name = name_of(profile);
    let folder = open(store);
    if let Some(code) = folder.as_ref().and_then(|folder| read(folder, &name)) {
        return Ok(code);
    }
    let code = compile(profile)?;
    if let Some(folder) = folder.or_else(|| make(store)) {
        // A filter that could not be kept is compiled again.
        let _ = keep(&folder, &name, &code);
    }
    Ok(code)
}

/// The name of a profile's filter: a digest of all that goes into it.
fn name_of(profile: &Seccomp) -> String {
    let mut all = Vec::with_capacity(8192);
    let mut text = |text: &str| {
        all.extend_from_slice(&(text.len() as u32).to_le_bytes());
        all.extend_from_slice(text.as_bytes());
    };
    let number = |n: Option<u32>| n.map_or(u64::MAX, u64::from);
    text(std::env::consts::ARCH);
    text(&profile.default_action);
    let mut numbers = vec![COMPILER, number(profile.default_errno_ret), profile.architectures.len() as u64];
    profile.architectures.iter().for_each(|name| text(name));
    for rule in &profile.syscalls {
        text(&rule.action);
        numbers.extend([number(rule.errno_ret), rule.names.len() as u64, rule.args.len() as u64]);
        rule.names.iter().for_each(|name| text(name));
        for arg in &rule.args {
            text(&arg.op);
            numbers.extend([u64::from(arg.index), arg.value, arg.value_two]);
        }
    }
    let mut digest = Sha256::new();
    digest.update((all.len() as u64).to_le_bytes());
    digest.update(&all);
    all.clear();
    numbers.iter().for_each(|n| all.extend_from_slice(&n.to_le_bytes()));
    digest.update(&all);
    let hex = |n: u8| char::from_digit(n.into(), 16).unwrap_or('0');
    digest.finalize().iter().flat_map(|byte| [hex(byte >> 4), hex(byte & 15)]).collect()
}

/// The folder, if it is this user's alone.
fn open(store: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(store.join(FOLDER), flags, Mode::empty()).ok()?;
    own(&folder, FileType::Directory)?;
    Some(folder)
}

fn make(store: &Path) -> Option<OwnedFd> {
    rustix::fs::mkdir(store.join(FOLDER), Mode::from_raw_mode(0o700)).ok()?;
    open(store)
}

/// The length of what only this user can write or enter.
fn own(fd: &OwnedFd, kind: FileType) -> Option<usize> {
    let stat = rustix::fs::fstat(fd).ok()?;
    let right = FileType::from_raw_mode(stat.st_mode) == kind
        && stat.st_mode & 0o077 == 0
        && stat.st_uid == rustix::process::geteuid().as_raw();
    right.then_some(stat.st_size as usize)
}

fn read(folder: &OwnedFd, name: &str) -> Option<Vec<Instruction>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::empty()).ok()?;
    // A check word, and what the kernel takes at most.
    let length = own(&file, FileType::RegularFile).filter(|l| (2 * WIDTH..=4097 * WIDTH).contains(l))?;
    let mut bytes = vec![0; length];
    if rustix::io::read(&file, &mut bytes[..]).ok()? != length {
        return None;
    }
    let code = decode(&bytes)?;
    // Used now: others go first.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let _ = rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now });
    Some(code)
}

/// The bytes of a file: the instructions, and a word that tells whether all of them are there.
fn encode(code: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((code.len() + 1) * WIDTH);
    for i in code {
        bytes.extend_from_slice(&i.code.to_le_bytes());
        bytes.extend_from_slice(&[i.jt, i.jf]);
        bytes.extend_from_slice(&i.k.to_le_bytes());
    }
    let sum = check(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Vec<Instruction>> {
    let (code, sum) = bytes.split_last_chunk::<WIDTH>()?;
    if !code.len().is_multiple_of(WIDTH) || check(code) != u64::from_le_bytes(*sum) {
        return None;
    }
    let instruction = |b: &[u8; WIDTH]| Instruction {
        code: u16::from_le_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    };
    Some(code.as_chunks::<WIDTH>().0.iter().map(instruction).collect())
}

fn check(code: &[u8]) -> u64 {
    let words = code.as_chunks::<WIDTH>().0.iter().map(|word| u64::from_le_bytes(*word));
    words.fold(COMPILER, |sum, word| (sum.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Puts a filter in the folder, whole or not at all, and throws out those longest unused where they are too many.
fn keep(folder: &OwnedFd, name: &str, code: &[Instruction]) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            let stat = rustix::fs::statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            let used = stat.map_or((0, 0), |stat| (stat.st_mtime, stat.st_mtime_nsec));
            others.push((used, OsString::from_vec(entry.file_name().to_bytes().to_vec())));
        }
    }
    others.sort();
    for (_, old) in others.iter().take((others.len() + 1).saturating_sub(MOST_FILTERS)) {
        let _ = rustix::fs::unlinkat(folder, old.as_os_str(), AtFlags::empty());
    }
    let new = format!("{name}.{}", std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder.as_fd(), &new, flags, Mode::from_raw_mode(0o600))?;
    let written = File::from(file).write_all(&encode(code));
    let done = written.and_then(|()| Ok(rustix::fs::renameat(folder, &new, folder, name)?));
    if done.is_err() {
        let _ = rustix::fs::unlinkat(folder, &new, AtFlags::empty());
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{SeccompArg, SeccompRule};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    fn profile(errno: u32) -> Seccomp {
        let names = super::super::table::TABLE.iter().take(FEWEST_CALLS).map(|row| row.0.to_owned()).collect();
        Seccomp {
            default_action: "SCMP_ACT_ERRNO".to_owned(),
            default_errno_ret: Some(errno),
            syscalls: vec![SeccompRule { names, action: "SCMP_ACT_ALLOW".to_owned(), ..SeccompRule::default() }],
            ..Seccomp::default()
        }
    }

    fn files(store: &Path) -> Vec<PathBuf> {
        fs::read_dir(store.join(FOLDER)).map_or(Vec::new(), |all| all.map(|e| e.unwrap().path()).collect())
    }

    #[test]
    fn a_profile_is_compiled_once() {
        let store = tempfile::tempdir().unwrap();
        let (first, other) = (profile(1), compile(&profile(2)).unwrap());
        let right = compile(&first).unwrap();
        assert_eq!(compiled(store.path(), &first).unwrap(), right);
        let [file] = &files(store.path())[..] else { panic!("not one file") };
        assert_eq!(compiled(store.path(), &first).unwrap(), right);
        // Another filter in its place shows that the file is what is used.
        fs::write(file, encode(&other)).unwrap();
        assert_eq!(compiled(store.path(), &first).unwrap(), other);
        let small = Seccomp { default_action: "SCMP_ACT_ALLOW".to_owned(), ..Seccomp::default() };
        assert_eq!(compiled(store.path(), &small).unwrap(), compile(&small).unwrap());
        assert_eq!(files(store.path()).len(), 1);
    }

    #[test]
    fn what_others_could_change_is_passed_over() {
        let store = tempfile::tempdir().unwrap();
        let (first, wrong) = (profile(1), encode(&compile(&profile(2)).unwrap()));
        let right = compile(&first).unwrap();
        compiled(store.path(), &first).unwrap();
        let file = files(store.path()).remove(0);
        let folder = store.path().join(FOLDER);
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let check = |what: &str| assert!(compiled(store.path(), &first).unwrap() == right, "{what}");
        fs::write(&file, &wrong).unwrap();
        mode(&file, 0o620);
        check("a file that a group writes");
        for (what, bytes) in [("empty", &[][..]), ("cut", &wrong[..wrong.len() - WIDTH]), ("odd", &wrong[1..])] {
            let _ = fs::remove_file(&file);
            fs::write(&file, bytes).unwrap();
            mode(&file, 0o600);
            check(what);
        }
        let elsewhere = store.path().join("elsewhere");
        fs::write(&elsewhere, &wrong).unwrap();
        mode(&elsewhere, 0o600);
        fs::remove_file(&file).unwrap();
        symlink(&elsewhere, &file).unwrap();
        check("a link");
        assert_eq!(fs::read(&elsewhere).unwrap(), wrong, "nothing is written through a link");
        fs::write(&file, &wrong).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(1), None).unwrap();
            check("a file of another user");
            fs::write(&file, &wrong).unwrap();
        }
        mode(&folder, 0o770);
        check("a folder that a group enters");
        fs::rename(&folder, store.path().join("moved")).unwrap();
        mode(&store.path().join("moved"), 0o700);
        symlink("moved", &folder).unwrap();
        check("a folder behind a link");
    }

    #[test]
    fn the_longest_unused_go() {
        let store = tempfile::tempdir().unwrap();
        let first = name_of(&profile(0));
        for errno in 0..MOST_FILTERS as u32 {
            compiled(store.path(), &profile(errno)).unwrap();
        }
        let folder = store.path().join(FOLDER);
        // All but the first were used long ago.
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(1000);
        for file in files(store.path()) {
            fs::File::open(file).unwrap().set_modified(long_ago).unwrap();
        }
        compiled(store.path(), &profile(0)).unwrap();
        compiled(store.path(), &profile(100)).unwrap();
        assert_eq!(files(store.path()).len(), MOST_FILTERS);
        assert!(folder.join(first).exists() && folder.join(name_of(&profile(100))).exists());
    }

    #[test]
    fn everything_counts_in_a_name() {
        let arg = |index, value, value_two, op: &str| SeccompArg { index, value, value_two, op: op.to_owned() };
        let changes: [fn(&mut Seccomp); 8] = [
            |_| {},
            |p| p.default_action = "SCMP_ACT_KILL".to_owned(),
            |p| p.default_errno_ret = None,
            |p| p.architectures = vec!["SCMP_ARCH_X86".to_owned()],
            |p| p.syscalls[0].action = "SCMP_ACT_LOG".to_owned(),
            |p| p.syscalls[0].errno_ret = Some(0),
            |p| drop(p.syscalls[0].names.pop()),
            |p| p.syscalls.insert(0, p.syscalls[0].clone()),
        ];
        let mut names: Vec<String> = Vec::new();
        for change in changes {
            let mut changed = profile(1);
            change(&mut changed);
            names.push(name_of(&changed));
        }
        for one in [
            arg(0, 1, 2, "SCMP_CMP_EQ"),
            arg(1, 1, 2, "SCMP_CMP_EQ"),
            arg(0, 2, 1, "SCMP_CMP_EQ"),
            arg(0, 1, 2, "SCMP_CMP_NE"),
        ] {
            let mut changed = profile(1);
            changed.syscalls[0].args = vec![one];
            names.push(name_of(&changed));
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 12);
        assert!(names.iter().all(|n| n.len() == 64));
    }
}
