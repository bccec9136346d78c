//! Any sequence of ADD, DEL, GC and crashes: no address is handed out twice, and none is lost.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use cni_plugins::dispatch;
use cni_plugins::plugins;
use cni_plugins::spec::{Command, Environment};
use proptest::prelude::*;
use serde_json::{Value, json};

const OWNERS: u8 = 12;
/// One range of 6 addresses less the gateway, and one of IPv6: exhaustion is part of the game.
const POOL: &str = "10.1.0.0/29";

fn call(data: &Path, command: Command, owner: u8, more: Value) -> Result<Option<Value>, String> {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "host-local",
        "ipam": {"type": "host-local", "dataDir": data, "ranges": [[{"subnet": POOL}], [{"subnet": "fd00::/64"}]]}});
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    let environment = Environment::of([
        ("CNI_CONTAINERID", format!("c{owner}")),
        ("CNI_NETNS", "/x".to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_PATH", "/x".to_owned()),
    ]);
    let plugin = plugins::find("host-local").unwrap();
    dispatch::run(plugin, command, environment, config.to_string().as_bytes()).map_err(|e| e.to_string())
}

fn files(data: &Path) -> Vec<String> {
    let all = fs::read_dir(data.join("net")).into_iter().flatten().flatten();
    let mut names: Vec<_> = all.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|n| n.parse::<std::net::IpAddr>().is_ok());
    names
}

#[derive(Debug, Clone)]
enum Op {
    Add(u8),
    Del(u8),
    /// The plugin is killed in ADD after it wrote its intent and this many of its files; the runtime calls DEL later, or GC.
    Crash(u8, usize),
    /// Only owners that are known to live are valid.
    Gc,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..OWNERS).prop_map(Op::Add),
        3 => (0..OWNERS).prop_map(Op::Del),
        1 => (0..OWNERS, 0..3usize).prop_map(|(o, n)| Op::Crash(o, n)),
        1 => Just(Op::Gc),
    ]
}

/// Calls the real program and kills it after a while, or lets it finish.
fn call_and_kill(program: &Path, data: &Path, verb: &str, owner: usize, after: Option<Duration>) -> Option<Value> {
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "host-local",
        "ipam": {"type": "host-local", "dataDir": data, "ranges": [[{"subnet": "10.1.0.0/26"}], [{"subnet": "fd00::/64"}]]}});
    let mut child = std::process::Command::new(program)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("c{owner}"))
        .env("CNI_NETNS", "/x")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/x")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    if let Some(after) = after {
        std::thread::sleep(after);
        let _ = child.kill();
    }
    let out = child.wait_with_output().unwrap();
    // What was not told to the end did not happen for the runtime: it calls DEL.
    out.status.success().then(|| serde_json::from_slice(&out.stdout).unwrap_or(Value::Null))
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

#[test]
fn killed_programs_neither_share_nor_lose_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let (data, program) = (folder.path().join("data"), folder.path().join("host-local"));
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_gantry-cni"), &program).unwrap();
    let mut live: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for round in 0..150usize {
        let owner = round % 12;
        // Spread over the time that a call takes; the machine does the rest.
        let after = Duration::from_micros((round as u64 * 397) % 4000);
        let verb = if live.contains_key(&owner) { "DEL" } else { "ADD" };
        let done = call_and_kill(&program, &data, verb, owner, Some(after));
        match (verb, done) {
            ("ADD", Some(result)) => drop(live.insert(owner, addresses(&result))),
            ("DEL", Some(_)) => drop(live.remove(&owner)),
            // Killed: the runtime tries DEL until it succeeds.
            _ => {
                assert!(call_and_kill(&program, &data, "DEL", owner, None).is_some());
                live.remove(&owner);
            }
        }
        let all: Vec<&String> = live.values().flatten().collect();
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "an address twice: {live:?}");
        let mut there = files(&data);
        there.sort();
        let mut wanted: Vec<String> = all.into_iter().cloned().collect();
        wanted.sort();
        assert_eq!(there, wanted, "after {verb} of {owner}");
    }
}

#[test]
fn an_owners_file_that_a_crash_of_the_machine_emptied_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    call(data, Command::Add, 1, json!({})).unwrap();
    fs::write(data.join("net/.owners/c1.eth0"), "").unwrap();
    call(data, Command::Del, 1, json!({})).unwrap();
    assert_eq!(files(data), Vec::<String>::new());
    // An address whose owner is not known any more is free.
    call(data, Command::Add, 2, json!({})).unwrap();
    for name in files(data) {
        fs::write(data.join("net").join(name), "").unwrap();
    }
    call(data, Command::Gc, 0, json!({"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}))
        .unwrap();
    assert_eq!(files(data), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn addresses_are_neither_shared_nor_lost(ops in prop::collection::vec(op(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        let mut live: BTreeMap<u8, Vec<String>> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Add(owner) => match call(data, Command::Add, owner, json!({})) {
                    Ok(result) => {
                        let ips: Vec<String> = result.unwrap()["ips"].as_array().unwrap().iter()
                            .map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect();
                        prop_assert!(!live.contains_key(&owner), "a second attachment of {owner}");
                        for ip in &ips {
                            prop_assert!(live.values().flatten().all(|other| other != ip), "{ip} twice");
                        }
                        live.insert(owner, ips);
                    }
                    Err(text) => {
                        let known = text.contains("duplicate") || text.contains("no IP addresses available");
                        prop_assert!(known, "{text}");
                    }
                },
                Op::Del(owner) => {
                    call(data, Command::Del, owner, json!({})).unwrap();
                    live.remove(&owner);
                }
                Op::Crash(owner, written) => {
                    if live.contains_key(&owner) || call(data, Command::Add, owner, json!({})).is_err() {
                        continue;
                    }
                    // Take away what the killed process would not have written any more.
                    let own = |n: &String| fs::read_to_string(data.join("net").join(n)).unwrap().starts_with(&format!("c{owner}\r"));
                    for name in files(data).iter().filter(|n| own(n)).skip(written) {
                        fs::remove_file(data.join("net").join(name)).unwrap();
                    }
                }
                Op::Gc => {
                    let valid: Vec<Value> = live.keys().map(|o| json!({"containerID": format!("c{o}"), "ifname": "eth0"})).collect();
                    call(data, Command::Gc, 0, json!({"cni.dev/valid-attachments": valid})).unwrap();
                    prop_assert_eq!(files(data).len(), live.values().map(Vec::len).sum::<usize>());
                }
            }
            for ip in live.values().flatten() {
                prop_assert!(files(data).contains(ip), "{ip} is lost");
            }
        }
        for owner in 0..OWNERS {
            call(data, Command::Del, owner, json!({})).unwrap();
        }
        prop_assert_eq!(files(data), Vec::<String>::new());
    }
}
