//! Any sequence of ADD, DEL, GC and crashes: no address is handed out twice, and none is lost.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

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
