//! What the fuzz targets of this crate run: one function a target, from bytes that a runtime, another plugin or another version
//! may give.
//!
//! Compiled for fuzzing and for tests only. The tests run what `fuzz/corpus` holds, so that an input that once found a fault is
//! tried by everyone; `fuzz/README.md` says how to look for new ones.

use std::fs;

use serde_json::{Value, json};

use crate::plugins::{self, planned};
use crate::spec::{CniResult, Command, Environment, Error, NetConfig, Request, SUPPORTED, Version};

/// What a runtime reads: an error object with a code and a message that says something.
fn check_error(error: &Error) {
    let value = error.to_value("1.1.0");
    assert!(value["code"].as_u64().is_some_and(|code| code > 0), "{value}");
    assert!(value["msg"].as_str().is_some_and(|text| !text.trim().is_empty()), "{value}");
}

fn environment(args: &str) -> Environment {
    Environment::of([
        ("CNI_CONTAINERID", "c1".to_owned()),
        ("CNI_NETNS", "/nonexistent/netns".to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_PATH", "/nonexistent/bin".to_owned()),
        ("CNI_ARGS", args.to_owned()),
    ])
}

/// The parts of an input, divided by NUL bytes.
fn parts(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|b| *b == 0)
}

/// A plugin's standard input, and behind a NUL byte `CNI_ARGS`: read and decided on by every plugin, before any looks at the
/// host.
pub fn stdin(data: &[u8]) {
    let mut parts = parts(data);
    let input = parts.next().unwrap_or_default();
    let args = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    for command in [Command::Add, Command::Check, Command::Del, Command::Gc, Command::Status] {
        let request = match Request::parse(command, environment(&args), input) {
            Err(error) => {
                check_error(&error);
                continue;
            }
            Ok(request) => request,
        };
        if let Err(error) = request.valid_attachments() {
            check_error(&error);
        }
        if command != Command::Add {
            continue;
        }
        for name in plugins::names() {
            if let Err(error) = planned(name, &request) {
                check_error(&error);
            }
        }
    }
}

/// A result of a plugin before, read in its version and told on in every version.
pub fn result(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    match CniResult::from_value(&value) {
        Err(error) => check_error(&error),
        Ok(result) => {
            for version in SUPPORTED.map(|text| Version::parse(text).expect("it is supported")) {
                let told = result.to_value(version);
                assert_eq!(told["cniVersion"].as_str(), Some(version.to_string().as_str()));
                let again = CniResult::from_value(&told).unwrap_or_else(|e| panic!("{told} is not read again: {e}"));
                // An older version has no place for some of it; what it has stays the same.
                assert_eq!(again.to_value(version), told);
            }
        }
    }
    let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "prevResult": value}).to_string();
    if let Err(error) = NetConfig::parse(config.as_bytes()) {
        check_error(&error);
    }
}

/// host-local over a data folder that others wrote: its configuration, then a file after the other, its name in a line.
pub fn host_local(data: &[u8]) {
    let mut parts = parts(data);
    let Ok(mut config) = serde_json::from_slice::<Value>(parts.next().unwrap_or_default()) else { return };
    let thread = std::thread::current().id();
    let dir = std::env::temp_dir().join(format!("gantry-fuzz-{}-{thread:?}-ipam", std::process::id()));
    let name = config["name"].as_str().filter(|n| !n.is_empty() && !n.contains('/') && !n.starts_with('.'));
    let folder = dir.join(name.unwrap_or("net"));
    let owners = folder.join(".owners");
    fs::create_dir_all(&owners).expect("make a folder");
    for file in parts.take(32) {
        let end = file.iter().position(|b| *b == b'\n').unwrap_or(file.len());
        let (name, content) = (String::from_utf8_lossy(&file[..end]), file.get(end + 1..).unwrap_or_default());
        let plain = !name.is_empty() && name.len() < 200 && !name.contains('/') && !name.starts_with('.');
        let place = if name.starts_with("c1.") { owners.join(&*name) } else { folder.join(&*name) };
        if plain {
            fs::write(place, content).expect("write a file");
        }
    }
    let Some(fields) = config.as_object_mut() else { return };
    if let Some(ipam) = fields.get_mut("ipam").and_then(Value::as_object_mut) {
        ipam.insert("dataDir".into(), json!(dir));
        // A path of its own choice is not what is tried here.
        if ipam.get("resolvConf").is_some_and(|text| text != "") {
            fs::write(dir.join("resolv.conf"), data).expect("write a file");
            ipam.insert("resolvConf".into(), json!(dir.join("resolv.conf")));
        }
    }
    let input = config.to_string().into_bytes();
    let plugin = plugins::find("host-local").expect("it is there");
    let run = |command| crate::dispatch::run(plugin, command, environment(""), &input);
    match run(Command::Add) {
        Err(error) => check_error(&error),
        Ok(answer) => {
            // What was given is held, and given to nobody else.
            let given = CniResult::from_value(&answer.expect("a result")).expect("it is read again");
            assert!(!given.ips.is_empty());
            for ip in &given.ips {
                let held = fs::read_to_string(folder.join(ip.address.ip.to_string())).expect("its file");
                assert!(held.starts_with("c1"), "{held:?}");
            }
            run(Command::Del).expect("what was given is taken back");
            for ip in &given.ips {
                assert!(!folder.join(ip.address.ip.to_string()).exists(), "{} stays", ip.address);
            }
        }
    }
    for command in [Command::Status, Command::Check, Command::Gc, Command::Del] {
        if let Err(error) = run(command) {
            check_error(&error);
        }
    }
    let _ = fs::remove_dir_all(dir);
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
#[test]
fn what_fuzzing_found_and_starts_from() {
    replay::corpus(&[("cni_stdin", stdin), ("cni_result", result), ("cni_host_local", host_local)]);
}
