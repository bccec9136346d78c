//! What a container uses, and word of the OOM killer.

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::{Case, usable, wait_until};
use serde_json::{Value, json};

#[test]
fn stats_are_printed_once() {
    if !usable() {
        return;
    }
    let mut case = Case::new("sleep 100");
    case.config["linux"]["resources"]["memory"] = json!({"limit": 67_108_864});
    let created = case.create();
    assert_eq!(created.code, 0, "{created:?}");
    // Before the start other runtimes have threads of their own in the container.
    let started = case.run(&["start", &case.id]);
    assert_eq!(started.code, 0, "{started:?}");
    wait_until("the program runs alone", || {
        let ran = case.run(&["events", "--stats", &case.id]);
        serde_json::from_str::<Value>(&ran.out).is_ok_and(|e| e["data"]["pids"]["current"] == json!(1))
    });
    let ran = case.run(&["events", "--stats", &case.id]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let event: Value = serde_json::from_str(ran.out.trim()).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(case.id)));
    assert_eq!(event["data"]["memory"]["usage"]["limit"], json!(67_108_864));
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    assert_eq!(event["data"]["pids"]["current"], json!(1));
}

#[test]
fn the_oom_killer_is_told_of_and_the_end_ends_it() {
    // Debian's runc 1.1.5 did not get through this on a hybrid host: its `events` was still running after 20 s.
    if !usable() || !common::ours() {
        return;
    }
    // The shell waits to be told, then grows until it is killed; its parent goes on a moment and leaves.
    let mut case =
        Case::new("while [ ! -e /tmp/go ]; do sleep 0.1; done; sh -c 'x=1; while :; do x=$x$x; done'; exit 0");
    case.config["linux"]["resources"]["memory"] = json!({"limit": 33_554_432, "swap": 33_554_432});
    case.config["root"]["readonly"] = json!(false);
    let created = case.create();
    assert_eq!(created.code, 0, "{created:?}");
    let started = case.run(&["start", &case.id]);
    assert_eq!(started.code, 0, "{started:?}");
    let mut command = case.command();
    command.args(["events", "--interval", "200ms", &case.id]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut events = command.spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["type"], json!("stats"));
    let gone = case.run(&["exec", &case.id, "sh", "-c", ": > /tmp/go"]);
    assert_eq!(gone.code, 0, "{gone:?}");
    let kinds: Vec<Value> =
        lines.map(|l| serde_json::from_str::<Value>(&l.unwrap()).unwrap()["type"].clone()).collect();
    assert!(kinds.contains(&json!("oom")), "{kinds:?}");
    events.wait().unwrap();
}
