//! Configurations with parts that were replaced, taken away or cut off: no plugin panics or hangs on them, and what ADD made
//! of one, DEL takes away. Inside the process, on a thread with namespaces of its own and a file system that it cannot harm.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use cni_plugins::spec::{Command, Environment};
use cni_plugins::{dispatch, plugins, table};
use gantry_net::link::{self, Kind};
use gantry_net::{Socket, nft};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

#[path = "host/good.rs"]
mod good;

const NONE: Option<&str> = None;

/// New namespaces for this thread: the files of the machine can only be read, and what is written is gone with it.
fn shut_in() -> File {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let container = File::open("/proc/thread-self/ns/net").unwrap();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
    for folder in ["/tmp", "/run", "/var/lib"] {
        mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
    }
    mount(Some("/"), "/", NONE, MsFlags::MS_BIND, NONE).unwrap();
    mount(NONE, "/", NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE).unwrap();
    nix::unistd::chdir("/tmp").unwrap();
    let mut socket = Socket::route().unwrap();
    // A port of the host for macvlan and host-device.
    socket
        .request(link::create("up0", &Kind::Bridge { vlan_filtering: false, mcast_snooping: true }, None, None))
        .unwrap();
    container
}

/// A small value of any type, among them such as a plugin could take for what it wants.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..5000u32).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9./:-]{0,18}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec![
            "eth0",
            "lo",
            "br0",
            "10.77.0.0/30",
            "::/0",
            "0.0.0.0/0",
            "fd00::1",
            "../..",
            "/",
            "1.0.0"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map("[a-zA-Z]{1,8}", inner, 0..3).prop_map(|m| m.into_iter().collect()),
        ]
    })
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// Replaces the value at a place (in depth-first order), or takes it away.
fn change(value: &mut Value, place: &mut usize, by: &Option<Value>) {
    let mut here = |child: &mut Value| {
        let found = *place == 0;
        *place = place.wrapping_sub(1);
        if !found {
            change(child, place, by);
        } else if let Some(by) = by {
            *child = by.clone();
        }
        found && by.is_none()
    };
    match value {
        Value::Array(list) => list.retain_mut(|child| !here(child)),
        Value::Object(map) => {
            let gone: Vec<String> = map.iter_mut().filter_map(|(k, v)| here(v).then(|| k.clone())).collect();
            gone.iter().for_each(|key| drop(map.remove(key)));
        }
        _ => {}
    }
}

#[derive(Debug, Clone)]
struct Case {
    plugin: Index,
    changes: Vec<(Index, Option<Value>)>,
    cut: Option<Index>,
    noise: Option<Vec<u8>>,
}

fn case() -> impl Strategy<Value = Case> {
    let changes = prop::collection::vec((any::<Index>(), prop::option::weighted(0.8, value())), 0..4);
    let cut = prop::option::weighted(0.1, any::<Index>());
    let noise = prop::option::weighted(0.1, prop::collection::vec(any::<u8>(), 0..200));
    (any::<Index>(), changes, cut, noise).prop_map(|(plugin, changes, cut, noise)| Case { plugin, changes, cut, noise })
}

fn input(case: &Case) -> (&'static str, Vec<u8>) {
    let all = good::good(Path::new("/tmp/data"));
    let (plugin, mut config) = all[case.plugin.index(all.len())].clone();
    for (place, by) in &case.changes {
        let places = count(&config) - 1;
        if places > 0 {
            change(&mut config, &mut place.index(places), by);
        }
    }
    let mut bytes = config.to_string().into_bytes();
    if let Some(cut) = &case.cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    (plugin, case.noise.clone().unwrap_or(bytes))
}

fn call(plugin: &str, command: Command, netns: &str, input: &[u8]) -> Result<Option<Value>, String> {
    let environment = Environment::of([
        ("CNI_CONTAINERID", "c1".to_owned()),
        ("CNI_NETNS", netns.to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_PATH", "/no/such/folder".to_owned()),
    ]);
    let start = Instant::now();
    let answer = dispatch::run(plugins::find(plugin).unwrap(), command, environment, input);
    assert!(start.elapsed() < Duration::from_secs(8), "{plugin} {command:?} took {:?}", start.elapsed());
    answer.map_err(|error| {
        let code = error.code.number();
        assert!([1, 3, 4, 5, 6, 7, 11, 50, 999].contains(&code) && !error.message.is_empty(), "{error:?}");
        error.to_string()
    })
}

/// Files named like addresses, anywhere below a folder.
fn taken(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.extend(taken(&entry.path()));
        } else if entry.file_name().to_string_lossy().parse::<IpAddr>().is_ok() {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

/// What is there that was not before; bridges stay, as they do after the reference plugin.
fn left() -> Vec<String> {
    let mut socket = Socket::route().unwrap();
    let links = socket.links().unwrap().into_iter().filter(|l| l.kind != "bridge" && l.name != "lo");
    let mut all: Vec<String> = links.map(|l| l.name).collect();
    let mut netfilter = Socket::netfilter().unwrap();
    for family in [nft::Family::Inet, nft::Family::Bridge] {
        let table = nft::Table::new(family, table::TABLE);
        all.extend(netfilter.nft_rules(table).unwrap().into_iter().map(|r| format!("rule in {}", r.chain)));
    }
    ["/tmp", "/run", "/var/lib"].iter().for_each(|folder| all.extend(taken(Path::new(folder))));
    all
}

#[test]
fn what_add_made_of_a_changed_configuration_del_takes_away() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let run = || {
        let container = shut_in();
        let netns = format!("/proc/{}/fd/{}", std::process::id(), container.as_raw_fd());
        let config = ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let outcome = runner.run(&case(), |case| {
            let (plugin, input) = input(&case);
            let shown = String::from_utf8_lossy(&input).into_owned();
            let added = call(plugin, Command::Add, &netns, &input);
            for verb in [Command::Check, Command::Status] {
                let _ = call(plugin, verb, &netns, &input);
            }
            let removed = call(plugin, Command::Del, &netns, &input);
            prop_assert!(added.is_err() || removed.is_ok(), "{plugin} {shown}: added, but {removed:?}");
            let left = left();
            prop_assert!(left.is_empty(), "{plugin} {shown}: {added:?}, {removed:?}, and still there: {left:?}");
            let gc: Value = serde_json::from_slice(&input).unwrap_or(json!(5));
            if let Value::Object(mut gc) = gc {
                gc.insert("cni.dev/valid-attachments".to_owned(), json!([]));
                let _ = call(plugin, Command::Gc, &netns, Value::Object(gc).to_string().as_bytes());
            }
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
    };
    std::thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

proptest! {
    #[test]
    fn random_bytes_are_refused_by_every_plugin(input in prop::collection::vec(any::<u8>(), 0..300)) {
        for plugin in plugins::names() {
            for verb in [Command::Add, Command::Del, Command::Check, Command::Status, Command::Gc] {
                prop_assert!(call(plugin, verb, "/no/such/netns", &input).is_err());
            }
        }
    }
}
