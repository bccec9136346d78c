//! What the fuzz targets of this crate run: one function a target, from bytes that anybody may have written.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::Error;
use crate::cgroups::Place;
use crate::init::{Channel, Message};
use crate::plan::{capabilities, devices, mounts, namespaces, process as words, resources};
use crate::seccomp::interpret::{Call, check, run};
use crate::seccomp::{AARCH64, Machine, RISCV64, X86_64, compile, compile_for, flags};
use crate::spec::{Mount, Process, Resources, Seccomp, Spec, parse, validate, validate_process, validate_resources};
use crate::state::Store;

/// What people read: text that says something.
pub(crate) fn check_error(error: &Error) {
    let text = error.to_string();
    assert!(!text.trim().is_empty());
    assert!(!text.contains('\0'), "{text:?}");
}

/// A `config.json`, as far as `create` takes it before its first system call.
pub fn config(data: &[u8]) {
    let spec = match parse::<Spec>(data).and_then(|spec| validate(&spec).map(|()| spec)) {
        Err(error) => return check_error(&error),
        Ok(spec) => spec,
    };
    let linux = spec.linux();
    let namespaces = namespaces::plan(&linux);
    for kind in &linux.namespaces {
        assert!(namespaces::kind_of(&kind.kind).is_some(), "{:?} passed", kind.kind);
    }
    assert!(namespaces.joined.iter().all(|(_, path)| path.is_absolute()));
    if let Err(error) = resources::plan(linux.resources.as_ref()) {
        check_error(&error);
    }
    for mount in &spec.mounts {
        planned(mount);
    }
    let _ = linux.devices.iter().filter(|d| devices::is_default(d)).count();
    if let Some(process) = &spec.process {
        program(process);
    }
    if let Some(profile) = &linux.seccomp {
        flags(profile).expect("what passed is known");
        if let Err(error) = compile(profile) {
            check_error(&error);
        }
    }
    let place = Place::find(linux.cgroups_path.as_ref(), "c", false).expect("a path");
    assert!(place.cgroup.is_absolute());
    if let Some(path) = &linux.cgroups_path {
        let _ = gantry_cgroup::Unit::parse(&path.to_string_lossy(), false);
    }
}

fn planned(mount: &Mount) {
    let plan = mounts::plan(mount);
    // A mount that is asked to be read-only is never planned as writable: the last of `ro` and `rw` counts.
    let last = mount.options.iter().rev().find(|o| *o == "ro" || *o == "rw");
    if last.is_some_and(|o| o == "ro") {
        assert!(plan.attributes.set & gantry_sys::mount::RDONLY != 0, "{:?}", mount.options);
    }
}

fn program(process: &Process) {
    let plan = capabilities::plan(process.capabilities.as_ref(), u64::MAX);
    assert_eq!(plan, capabilities::plan(process.capabilities.as_ref(), u64::MAX));
    for limit in &process.rlimits {
        words::rlimit_of(&limit.kind).unwrap_or_else(|e| panic!("{:?} passed: {e}", limit.kind));
    }
    if let Some(name) = process.args.first() {
        let _ = words::candidates(name, &process.env);
    }
}

/// The `process` of `exec --process` up to the first NUL byte, and the resources of `update` behind it.
pub fn process(data: &[u8]) {
    let (process, rest) = data.split_at(data.iter().position(|b| *b == 0).unwrap_or(data.len()));
    match parse::<Process>(process).and_then(|p| validate_process("process", &p).map(|()| p)) {
        Err(error) => check_error(&error),
        Ok(process) => program(&process),
    }
    let Some(rest) = rest.get(1..) else { return };
    match parse::<Resources>(rest).and_then(|r| validate_resources("resources", &r).map(|()| r)) {
        Err(error) => check_error(&error),
        Ok(resources) => drop(resources::plan(Some(&resources))),
    }
}

/// A seccomp profile, up to the first NUL byte, and behind it system calls for its filter to judge.
pub fn seccomp(data: &[u8]) {
    let (profile, calls) = data.split_at(data.iter().position(|b| *b == 0).unwrap_or(data.len()));
    // Whatever parses, checked or not.
    let profile: Seccomp = match parse(profile) {
        Err(error) => return check_error(&error),
        Ok(profile) => profile,
    };
    for machine in [&X86_64, &AARCH64, &RISCV64] as [&Machine; 3] {
        let code = match compile_for(machine, &profile) {
            Err(error) => {
                check_error(&error);
                continue;
            }
            Ok(code) => code,
        };
        check(&code);
        let mut natives = machine.others.iter().chain(&machine.x32).map(|abi| abi.audit).collect::<Vec<_>>();
        natives.push(machine.native.audit);
        // Programs of a kind that the machine does not run end at once.
        assert_eq!(run(&code, &Call { arch: 0, number: 0, args: [0; 6] }), 0x8000_0000);
        for call in calls.chunks(16) {
            let byte = |i: usize| call.get(i).copied().unwrap_or(0);
            let number = u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)]);
            let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| byte(4 + (i + b) % 12)));
            let args: [u64; 6] = std::array::from_fn(word);
            for arch in &natives {
                // Near the numbers of real calls too, which four random bytes hardly ever are.
                for number in [number, number % 512, 0x4000_0000 | (number % 600)] {
                    run(&code, &Call { arch: *arch, number, args });
                }
            }
        }
    }
}

/// A folder of this thread's own for what must be files; emptied by whoever uses it.
fn scratch(name: &str) -> PathBuf {
    let thread = std::thread::current().id();
    std::env::temp_dir().join(format!("gantry-fuzz-{}-{thread:?}-{name}", std::process::id()))
}

/// A container's state file as another version, or a disk that lost a part of it, may leave it.
pub fn state(data: &[u8]) {
    let root = scratch("state");
    fs::create_dir_all(root.join("c")).and_then(|()| fs::write(root.join("c/state.json"), data)).expect("write there");
    let store = Store::new(root.clone());
    match store.open("c") {
        Err(error) => check_error(&error),
        Ok(container) => {
            let public = container.public(container.status());
            let public: serde_json::Value = serde_json::from_str(&public).expect("JSON");
            assert!(public["status"].is_string() && public["ociVersion"].is_string());
            assert!(container.spec().is_err(), "there is no configuration");
            // What is read is written again as it is understood.
            container.save().expect("write there");
            drop(container);
            store.open("c").expect("what was written is read");
        }
    }
    // A container that nobody can read can still be got rid of.
    assert!(store.remove_remains("c").expect("remove it") && store.ids().is_empty());
    let _ = fs::remove_dir_all(root);
}

/// What a container's first process may write to the runtime: packets, each with its length and a number of descriptors.
pub fn messages(mut data: &[u8]) {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket pair");
    let channel = Channel::from(ours);
    let mut first = true;
    while let [low, high, rest @ ..] = data {
        let length = usize::from(u16::from_le_bytes([*low, high & 0x3f])).min(rest.len());
        let fds = usize::from(high >> 6);
        let (packet, rest) = rest.split_at(length);
        data = rest;
        if gantry_sys::fd::send_with_fds(theirs.as_fd(), packet, &vec![theirs.as_fd(); fds]).is_err() {
            continue;
        }
        if std::mem::take(&mut first) && packet.len() % 2 == 1 {
            assert_eq!(channel.wait_go().is_ok(), packet[0] == b'G');
            continue;
        }
        match channel.receive() {
            Ok(Message::Listener(_)) => assert!(fds > 0 && packet[0] == b'L'),
            Ok(Message::Go) => assert_eq!(packet[0], b'G'),
            Ok(Message::Warning(text)) => assert!(packet[0] == b'W' && text.len() <= 3 * packet.len()),
            Ok(Message::Failed(text)) => assert!(packet[0] == b'E' && text.len() <= 3 * packet.len()),
            Err(error) => check_error(&error),
        }
    }
    drop(theirs);
    assert!(channel.receive().is_err(), "nobody is there any more");
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[
        ("runtime_config", config),
        ("runtime_process", process),
        ("runtime_seccomp", seccomp),
        ("runtime_state", state),
        ("runtime_messages", messages),
    ]);
}
