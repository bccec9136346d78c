//! The filters that gantry-run compiles beside those of libseccomp, which runc and crun use: for engines' default profiles and
//! for random ones both give the same verdict on random and boundary inputs.
#![allow(unused_crate_dependencies, missing_docs)]

#[path = "../src/seccomp/interpret.rs"]
mod interpret;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use gantry_sys::seccomp::Instruction;
use interpret::{Call, check, run};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use runtime::seccomp::{OPERATORS, X86_64, compile_for};
use runtime::spec::{Seccomp, SeccompArg};
use serde_json::{Value, json};

const X86_64_AUDIT: u32 = 0xc000_003e;
const X86_AUDIT: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;
const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;
const ENOSYS: u32 = 0x0005_0000 | 38;

/// A filter of libseccomp's and the names that it does not know; nothing where it refuses a rule because of one before.
type Theirs = Option<(Vec<Instruction>, Vec<String>)>;

/// What libseccomp makes of profiles; nothing where there is none (said on standard output).
fn theirs(profiles: &[Value]) -> Option<Vec<Theirs>> {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: libseccomp compiles for the machine it runs on, and the comparison is for x86-64");
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libseccomp.py");
    let child = Command::new("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        println!("skipped: needs python3");
        return None;
    };
    let mut input = child.stdin.take().unwrap();
    let text: String = profiles.iter().map(|p| format!("{p}\n")).collect();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let done = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    if done.status.code() == Some(3) {
        println!("skipped: needs libseccomp (libseccomp2)");
        return None;
    }
    assert!(done.status.success(), "libseccomp.py failed");
    let answers = String::from_utf8(done.stdout).unwrap();
    let answers = answers.lines().map(|line| {
        let answer: Value = serde_json::from_str(line).unwrap();
        if answer["refused"] != json!([]) {
            return None;
        }
        let number = |v: &Value, i: usize| v[i].as_u64().unwrap();
        let instruction = |v: &Value| Instruction {
            code: number(v, 0) as u16,
            jt: number(v, 1) as u8,
            jf: number(v, 2) as u8,
            k: number(v, 3) as u32,
        };
        let code = answer["filter"].as_array().unwrap().iter().map(instruction).collect();
        Some((code, serde_json::from_value(answer["unknown"].clone()).unwrap()))
    });
    Some(answers.collect())
}

/// The profile without calls that are newer than the libseccomp here.
fn known(profile: &Value, unknown: &[String]) -> Seccomp {
    let mut profile: Seccomp = serde_json::from_value(profile.clone()).unwrap();
    for rule in &mut profile.syscalls {
        rule.names.retain(|name| !unknown.contains(name));
    }
    profile
}

/// Inputs that matter: every number that may be named and those around, with arguments at and beside what rules compare with.
fn calls(profile: &Seccomp, rng: &mut TestRng) -> Vec<Call> {
    let mut values: Vec<u64> = vec![0, 1, u64::MAX, 1 << 32, u64::from(u32::MAX), 1 << 63];
    for arg in profile.syscalls.iter().flat_map(|rule| &rule.args) {
        for v in [arg.value, arg.value_two, arg.value & arg.value_two] {
            values.extend([
                v,
                v.wrapping_add(1),
                v.wrapping_sub(1),
                v ^ 1 << 32,
                v ^ 1 << 63,
                v | !arg.value,
                v & 0xffff_ffff,
            ]);
        }
    }
    let mut calls = Vec::new();
    let edges = [X32_BIT - 1, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX];
    let random = [rng.next_u32(), rng.next_u32(), rng.next_u32()];
    for number in (0..560).chain(edges).chain(random) {
        for (arch, bit) in [(X86_64_AUDIT, 0), (X86_64_AUDIT, X32_BIT), (X86_AUDIT, 0), (0x1234, 0)] {
            let rounds = if number < 560 && arch != 0x1234 { 6 } else { 1 };
            for _ in 0..rounds {
                let mut value = || match rng.next_u32() % 8 {
                    0 => rng.next_u64(),
                    // The doors of x86, which take small numbers first.
                    1 => u64::from(rng.next_u32() % 32),
                    _ => values[rng.next_u32() as usize % values.len()],
                };
                let mut args = [value(), value(), value(), value(), value(), value()];
                if arch == X86_AUDIT {
                    // A 32-bit program's registers have no upper halves.
                    args = args.map(|a| a & 0xffff_ffff);
                }
                calls.push(Call { arch, number: number | bit, args });
            }
        }
    }
    calls
}

/// Compares the filters of a profile; answers the number of inputs, and for how many of them libseccomp is wrong.
fn compare(name: &str, value: &Value, theirs: &[Instruction], unknown: &[String], rng: &mut TestRng) -> (usize, usize) {
    let profile = known(value, unknown);
    let ours = compile_for(&X86_64, &profile).unwrap();
    check(&ours);
    let listed = |arch: &str| profile.architectures.iter().any(|a| a == arch);
    let calls = calls(&profile, rng);
    let highest = [(X86_64_AUDIT, 0), (X86_64_AUDIT, X32_BIT), (X86_AUDIT, 0)]
        .map(|(arch, bit)| ((arch, bit), highest(&profile, arch, bit)));
    let newer = |call: &Call| {
        let bit = if call.arch == X86_64_AUDIT && call.number >= X32_BIT { X32_BIT } else { 0 };
        let highest = highest.iter().find(|(kind, _)| *kind == (call.arch, bit)).and_then(|(_, n)| *n);
        highest.is_some_and(|highest| call.number > highest | bit)
    };
    let mut wrong = 0;
    for (i, call) in calls.iter().enumerate() {
        let (us, them) = (run(&ours, call), run(theirs, call));
        let foreign = match call.arch {
            X86_64_AUDIT => call.number >= X32_BIT && !listed("SCMP_ARCH_X32"),
            X86_AUDIT => !listed("SCMP_ARCH_X86"),
            _ => true,
        };
        let same = match (us, them) {
            _ if us == them => true,
            // Programs of architectures that the profile does not list are killed: with us all threads of them.
            (KILL_PROCESS, KILL_THREAD) if foreign => true,
            // Calls newer than all that the profile names: runc answers so too, in a part that it puts before libseccomp's.
            (ENOSYS, default) if default & 0xffff_0000 == 0x0005_0000 => newer(call),
            // libseccomp 2.5.4 is wrong about some sets of conditions on halves of 64-bit arguments.
            _ if us == meaning(&profile, call) => {
                wrong += 1;
                true
            }
            _ => false,
        };
        let text = || serde_json::to_string(value).unwrap();
        assert!(same, "{name}: {call:x?}: {us:#x} here, {them:#x} by libseccomp, in {}", text());
        // Where both agree, now and then: reading all rules takes its time.
        let plain = i % 16 != 0 || foreign || newer(call) || us == meaning(&profile, call);
        assert!(plain, "{name}: {call:x?}: {us:#x} by both, in {}", text());
    }
    (calls.len(), wrong)
}

/// What the rules say of a call, read one by one: the judge between two filters.
fn meaning(profile: &Seccomp, call: &Call) -> u32 {
    let number = |action: &str, errno: Option<u32>| match action {
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        "SCMP_ACT_ERRNO" => 0x0005_0000 | errno.unwrap_or(1),
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | errno.unwrap_or(1),
        "SCMP_ACT_TRAP" => 0x0003_0000,
        _ => KILL_THREAD,
    };
    let x32 = X86_64.x32.as_ref().unwrap();
    let (abi, bit) = match call.arch {
        X86_AUDIT => (&X86_64.others[0], 0),
        _ if call.number >= X32_BIT => (x32, X32_BIT),
        _ => (&X86_64.native, 0),
    };
    let wide = call.arch == X86_64_AUDIT && bit == 0;
    let seen = if wide { u64::MAX } else { u64::from(u32::MAX) };
    let is = |name: &str| abi.number_of(name).is_some_and(|n| n | bit == call.number);
    let holds = |arg: &SeccompArg| {
        let (got, value) = (call.args[arg.index as usize] & seen, arg.value & seen);
        match arg.op.as_str() {
            "SCMP_CMP_EQ" => got == value,
            "SCMP_CMP_NE" => got != value,
            "SCMP_CMP_LT" => got < value,
            "SCMP_CMP_LE" => got <= value,
            "SCMP_CMP_GT" => got > value,
            "SCMP_CMP_GE" => got >= value,
            _ => got & value == arg.value_two & value,
        }
    };
    let default = number(&profile.default_action, profile.default_errno_ret);
    // (whether it holds, whether it always does, what it says) of each rule in turn.
    let mut said: Vec<(bool, bool, u32)> = Vec::new();
    for rule in &profile.syscalls {
        let verdict = number(&rule.action, rule.errno_ret);
        if verdict == default {
            continue;
        }
        let counts = |arg: &&SeccompArg| arg.op != "SCMP_CMP_MASKED_EQ" || arg.value & seen != 0;
        let same = rule.args.iter().enumerate().any(|(i, a)| rule.args[..i].iter().any(|b| a.index == b.index));
        let alternatives: Vec<&[SeccompArg]> = if same { rule.args.chunks(1).collect() } else { vec![&rule.args] };
        for name in &rule.names {
            for args in &alternatives {
                let args: Vec<&SeccompArg> = args.iter().filter(counts).collect();
                if is(name) {
                    said.push((args.iter().all(|a| holds(a)), args.is_empty(), verdict));
                }
                let doors =
                    X86_64.through.iter().filter(|(n, door, _)| call.arch == X86_AUDIT && n == name && is(door));
                for (_, _, first) in doors {
                    let rest = args.iter().all(|a| a.index == 0 || holds(a));
                    said.push((call.args[0] & seen == u64::from(*first) && rest, false, verdict));
                }
            }
        }
    }
    let always = said.iter().find(|(_, always, _)| *always);
    always.or(said.iter().find(|(holds, ..)| *holds)).map_or(default, |(.., verdict)| *verdict)
}

/// The highest number that the profile names for an architecture (`bit` tells x32), nothing where it names none.
fn highest(profile: &Seccomp, arch: u32, bit: u32) -> Option<u32> {
    let default = (profile.default_action.clone(), profile.default_errno_ret.unwrap_or(1));
    let mut open = profile.clone();
    // The same calls with another answer than all the rest.
    open.syscalls.retain(|rule| (rule.action.clone(), rule.errno_ret.unwrap_or(1)) != default);
    open.default_action = "SCMP_ACT_ALLOW".to_owned();
    open.default_errno_ret = None;
    for rule in &mut open.syscalls {
        rule.action = "SCMP_ACT_TRAP".to_owned();
        rule.errno_ret = None;
        rule.args.clear();
    }
    let code = compile_for(&X86_64, &open).unwrap();
    let named = |number: &u32| run(&code, &Call { arch, number: number | bit, args: [0; 6] }) == 0x0003_0000;
    (0..0x400).rev().find(named)
}

/// gantry-cri's profile: the names from its source, with the conditions that engines have beside them.
fn gantry() -> Option<Value> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cri/src/oci/seccomp.rs");
    let text = std::fs::read_to_string(source).ok()?;
    let (_, names) = text.split_once("const ALLOWED: &str = \"")?;
    let (names, _) = names.split_once("\";")?;
    let names: Vec<&str> = names.split_whitespace().filter(|word| *word != "\\").collect();
    assert!(names.len() > 300, "{names:?}");
    let allow = |names: &[&str], args: Value| json!({"names": names, "action": "SCMP_ACT_ALLOW", "args": args});
    let one = |op: &str, value: u64, two: u64| json!([{"index": 0, "op": op, "value": value, "valueTwo": two}]);
    let mut rules = vec![allow(&names, json!([]))];
    rules.extend([0, 8, 0x20000, 0x20008, 0xffff_ffff].map(|v| allow(&["personality"], one("SCMP_CMP_EQ", v, 0))));
    rules.extend(["SCMP_CMP_LT", "SCMP_CMP_GT"].map(|op| allow(&["socket"], one(op, 40, 0))));
    rules.push(allow(&["clone"], one("SCMP_CMP_MASKED_EQ", 0x7e02_0000, 0)));
    rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
    let architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
    Some(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": architectures, "syscalls": rules}))
}

/// containers-common's profile (podman, buildah, CRI-O) for a set of capabilities.
fn podman(capabilities: &[&str]) -> Option<Value> {
    let text = std::fs::read_to_string("/usr/share/containers/seccomp.json").ok()?;
    let mut profile: Value = serde_json::from_str(&text).ok()?;
    let has = |rule: &Value, which: &str, what: &str, all: &[&str]| -> Option<bool> {
        let words = rule[which][what].as_array().filter(|w| !w.is_empty())?;
        Some(words.iter().any(|w| all.contains(&w.as_str().unwrap_or_default())))
    };
    let machines = ["amd64", "x86", "x32"];
    let mut rules = profile["syscalls"].as_array()?.clone();
    rules.retain(|rule| {
        has(rule, "includes", "caps", capabilities).unwrap_or(true)
            && has(rule, "includes", "arches", &machines).unwrap_or(true)
            && !has(rule, "excludes", "caps", capabilities).unwrap_or(false)
            && !has(rule, "excludes", "arches", &machines).unwrap_or(false)
    });
    for rule in &mut rules {
        let rule = rule.as_object_mut()?;
        rule.retain(|key, value| matches!(key.as_str(), "names" | "action" | "args" | "errnoRet") && !value.is_null());
    }
    profile["syscalls"] = Value::Array(rules);
    profile["architectures"] = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    Some(profile)
}

#[test]
fn engines_default_profiles_mean_the_same() {
    let mut profiles = Vec::new();
    profiles.extend(gantry().map(|p| ("gantry-cri", p)));
    profiles.extend(podman(&["CAP_CHOWN"]).map(|p| ("containers-common", p)));
    profiles.extend(podman(&["CAP_SYS_ADMIN", "CAP_AUDIT_WRITE"]).map(|p| ("containers-common with capabilities", p)));
    if profiles.is_empty() {
        println!("skipped: no engine's profile is here");
        return;
    }
    let all: Vec<Value> = profiles.iter().map(|(_, profile)| profile.clone()).collect();
    let Some(theirs) = theirs(&all) else { return };
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for ((name, profile), theirs) in profiles.iter().zip(&theirs) {
        let (code, unknown) = theirs.as_ref().unwrap();
        let (inputs, wrong) = compare(name, profile, code, unknown, &mut rng);
        assert!(inputs > 5000 && wrong == 0, "{name}: {wrong} of {inputs} differ");
    }
}

/// Names for random rules: plain ones, some that x86 reaches through other calls, some with other numbers everywhere.
const NAMES: [&str; 24] = [
    "read",
    "write",
    "open",
    "openat",
    "socket",
    "connect",
    "accept",
    "accept4",
    "sendto",
    "socketcall",
    "semget",
    "shmat",
    "ipc",
    "clone",
    "clone3",
    "personality",
    "ptrace",
    "ioctl",
    "execve",
    "rt_sigaction",
    "mmap",
    "mmap2",
    "getuid32",
    "openat2",
];

fn condition(index: u32) -> impl Strategy<Value = Value> {
    let value = prop_oneof![
        Just(0),
        Just(1),
        0_u64..64,
        Just(u64::MAX),
        Just(1 << 32),
        Just(u64::from(u32::MAX)),
        Just(1 << 63),
        Just(0x7e02_0000),
        any::<u64>(),
    ];
    (prop::sample::select(OPERATORS.to_vec()), value.clone(), value)
        .prop_map(move |(op, value, two)| json!({"index": index, "op": op, "value": value, "valueTwo": two}))
}

fn action() -> impl Strategy<Value = (&'static str, Option<u32>)> {
    prop_oneof![
        3 => Just(("SCMP_ACT_ALLOW", None)),
        2 => (0_u32..4096).prop_map(|n| ("SCMP_ACT_ERRNO", Some(n))),
        1 => Just(("SCMP_ACT_ERRNO", None)),
        1 => Just(("SCMP_ACT_KILL", None)),
        1 => Just(("SCMP_ACT_KILL_PROCESS", None)),
        1 => Just(("SCMP_ACT_LOG", None)),
        1 => (0_u32..4096).prop_map(|n| ("SCMP_ACT_TRACE", Some(n))),
        1 => Just(("SCMP_ACT_TRAP", None)),
    ]
}

/// Rules for one call that do not contradict each other, which libseccomp refuses or orders as it likes: one action for what has
/// conditions, and perhaps rules without. Several conditions are in one rule only: where the first of a rule holds and its second
/// does not, libseccomp looks at no other rule (2.5.4).
fn rules_of(name: &'static str) -> impl Strategy<Value = Vec<Value>> {
    let one = prop::sample::subsequence(vec![0_u32, 1, 2, 3, 4, 5], 0..=4).prop_map(|indices| vec![indices]);
    let several = prop::collection::vec((0_u32..6).prop_map(|index| vec![index]), 2..5);
    let conditions = prop_oneof![one, several].prop_flat_map(|rules| {
        let rules = rules.into_iter().filter(|indices| !indices.is_empty());
        rules.map(|indices| indices.into_iter().map(condition).collect::<Vec<_>>()).collect::<Vec<_>>()
    });
    (conditions, action(), prop::collection::vec(action(), 0..3)).prop_map(
        move |(mut conditions, (act, errno), mut plain)| {
            match name {
                // Rules for the calls behind these are conditions on them, with actions of their own.
                "socketcall" | "ipc" => conditions.clear(),
                // And behind those each call has one rule only.
                "socket" | "connect" | "accept" | "accept4" | "sendto" | "semget" | "shmat" => {
                    plain.truncate(usize::from(conditions.is_empty()));
                }
                _ => {}
            }

            // Rules for the calls behind these are conditions on them, with actions of their own.
            if matches!(name, "socketcall" | "ipc") {
                conditions.clear();
            }
            let rule = |(act, errno): (&str, Option<u32>), args: Value| {
                let mut rule = json!({"names": [name], "action": act, "args": args});
                if let Some(errno) = errno {
                    rule["errnoRet"] = json!(errno);
                }
                rule
            };
            let conditional = conditions.iter().map(|c| rule((act, errno), json!(c)));
            // Only now and then a rule without conditions: it makes the others idle.
            let plain = plain.into_iter().filter(|_| conditions.len() != 1).map(|p| rule(p, json!([])));
            conditional.chain(plain).collect()
        },
    )
}

fn profile() -> impl Strategy<Value = Value> {
    let rules = prop::sample::subsequence(NAMES.to_vec(), 0..=NAMES.len())
        .prop_flat_map(|names| names.into_iter().map(rules_of).collect::<Vec<_>>());
    let architectures = prop::sample::subsequence(vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], 0..=3);
    (action(), rules, architectures).prop_map(|((act, errno), rules, architectures)| {
        let rules: Vec<Value> = rules.into_iter().flatten().collect();
        let mut profile = json!({"defaultAction": act, "architectures": architectures, "syscalls": rules});
        if let Some(errno) = errno {
            profile["defaultErrnoRet"] = json!(errno);
        }
        profile
    })
}

#[test]
fn random_profiles_mean_the_same() {
    let count = std::env::var("PROFILES").ok().and_then(|n| n.parse().ok()).unwrap_or(40_usize);
    let seed = std::env::var("SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(7_u8);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let profiles: Vec<Value> =
        (0..count).map(|_| profile().new_tree(&mut runner).map(|tree| tree.current()).unwrap()).collect();
    let Some(theirs) = theirs(&profiles) else { return };
    let (mut compared, mut inputs, mut differing) = (0, 0, 0);
    for (i, (profile, theirs)) in profiles.iter().zip(&theirs).enumerate() {
        if let Some((code, unknown)) = theirs {
            let (all, wrong) = compare(&format!("profile {i}"), profile, code, unknown, runner.rng());
            (compared, inputs, differing) = (compared + 1, inputs + all, differing + wrong);
        }
    }
    assert!(compared * 2 > count, "{compared} of {count} profiles were comparable");
    println!("{compared} profiles, {inputs} inputs, {differing} of which libseccomp answers against the rules");
    assert!(differing * 100 < inputs, "{differing} of {inputs} differ");
}
