//! The life cycle through the command line.

mod common;

use std::fs;

use common::{Case, usable, wait_until};
use serde_json::json;

#[test]
fn a_container_is_created_started_killed_and_deleted() {
    if !usable() {
        return;
    }
    let case = Case::new("echo started; sleep 100");
    let pid_file = case.path("pid");
    assert_eq!(case.create_with(&["--pid-file", pid_file.to_str().unwrap()]).code, 0);
    let state = case.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], case.id.as_str());
    assert_eq!(state["bundle"], case.dir.path().to_str().unwrap());
    assert_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file).unwrap());
    assert_eq!(case.output(), "", "the program must wait for start");
    let twice = case.run(&["create", "--bundle", case.dir.path().to_str().unwrap(), &case.id]);
    assert!(twice.code != 0 && twice.err.contains("exist"), "{twice:?}");
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    assert_eq!(case.status(), "running");
    let all: serde_json::Value = serde_json::from_str(&case.run(&["list", "--format", "json"]).out).unwrap();
    assert_eq!((&all[0]["id"], &all[0]["owner"]), (&json!(case.id), &json!("root")));
    wait_until("output", || case.output() == "started\n");
    assert_ne!(case.run(&["start", &case.id]).code, 0, "it runs already");
    let refused = case.run(&["delete", &case.id]);
    assert!(refused.code != 0 && refused.err.contains("not stopped"), "{refused:?}");
    let wrong = case.run(&["kill", &case.id, "NOPE"]);
    assert_ne!(wrong.code, 0);
    assert_eq!(case.run(&["kill", &case.id, "KILL"]).code, 0);
    case.wait_status("stopped");
    let late = case.run(&["kill", &case.id, "KILL"]);
    assert!(late.code != 0 && late.err.contains("not running"), "{late:?}");
    assert_eq!(case.run(&["delete", &case.id]).code, 0);
    let gone = case.run(&["delete", &case.id]);
    assert!(gone.code != 0 && gone.err.contains("does not exist"), "{gone:?}");
    assert_eq!(case.run(&["delete", "--force", &case.id]).code, 0);
    assert!(case.run(&["state", &case.id]).err.contains("does not exist"));
    assert_eq!(case.remains(), Vec::<String>::new());
}

#[test]
fn force_deletes_a_running_and_a_created_container() {
    if !usable() {
        return;
    }
    for start in [true, false] {
        let case = Case::new("sleep 100 & sleep 100");
        assert_eq!(case.create().code, 0);
        if start {
            assert_eq!(case.run(&["start", &case.id]).code, 0);
        }
        assert_eq!(case.run(&["delete", "--force", &case.id]).code, 0);
        assert_eq!(case.remains(), Vec::<String>::new());
    }
}

#[test]
fn run_answers_the_programs_code_and_leaves_nothing() {
    if !usable() {
        return;
    }
    let case = Case::new("echo out; echo err >&2; exit 7");
    let ran = case.once();
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (7, "out\n", "err\n"));
    assert_eq!(case.remains(), Vec::<String>::new());
    let killed = Case::new("kill -9 $$; kill -TERM $$; exit 3");
    assert_eq!(killed.once().code, 3, "a first process is not killed from inside");
}

#[test]
fn bad_configurations_say_why_and_leave_nothing() {
    if !usable() {
        return;
    }
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 8] = [
        ("no-such-rootfs", |c| c["root"]["path"] = json!("no-such-rootfs")),
        ("executable file not found in $PATH", |c| c["process"]["args"] = json!(["no-such-program"])),
        ("no such file or directory", |c| c["process"]["args"] = json!(["/no/such/program"])),
        ("/data", |c| {
            c["mounts"][0] = json!({"destination": "/data", "type": "bind", "source": "/no/such", "options": ["bind"]})
        }),
        ("/data", |c| c["mounts"][0] = json!({"destination": "/data", "type": "no-such-fs", "source": "x"})),
        ("no_such", |c| c["linux"]["sysctl"] = json!({"kernel.no_such": "1"})),
        ("RLIMIT_NO", |c| c["process"]["rlimits"][0]["type"] = json!("RLIMIT_NO")),
        ("SCMP_ACT_NO", |c| c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NO"})),
    ];
    for (words, change) in changes {
        let mut case = Case::new("true");
        change(&mut case.config);
        let ran = case.create();
        assert_ne!(ran.code, 0, "{words}");
        if std::env::var_os("OCI_RUNTIME").is_none() {
            assert!(ran.err.contains(words), "{words}: {}", ran.err);
            assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        }
        assert_eq!(case.remains(), Vec::<String>::new(), "{words}");
    }
}

#[test]
fn errors_go_to_the_log_file_as_json() {
    if !usable() {
        return;
    }
    let case = Case::new("true");
    let log = case.path("log");
    let ran = common::finish(case.command().arg("--log").arg(&log).args(["--log-format", "json", "start", "nobody"]));
    assert_eq!(ran.code, 1);
    let text = fs::read_to_string(log).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("does not exist"), "{line}");
    assert!(line["time"].is_string());
}

#[test]
fn two_commands_at_once_do_not_disturb_each_other() {
    if !usable() {
        return;
    }
    let case = Case::new("sleep 100");
    case.write();
    assert_eq!(case.create().code, 0);
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    let mut children: Vec<_> =
        (0..6).map(|_| case.command().args(["delete", "--force", &case.id]).spawn().unwrap()).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(case.remains(), Vec::<String>::new());
}

#[test]
fn a_create_that_was_killed_leaves_nothing_after_delete() {
    if !usable() || !common::ours() {
        return;
    }
    // Whatever moment the creator dies at, delete --force must leave nothing.
    for delay in [0, 3, 6, 10, 15, 25] {
        let case = Case::new("sleep 100");
        case.write();
        let mut command = case.command();
        let null = || std::process::Stdio::null();
        let mut child = command
            .args(["create", "--bundle"])
            .arg(case.dir.path())
            .arg(&case.id)
            .stdout(null())
            .stderr(null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let _ = child.kill();
        let _ = child.wait();
        let deleted = case.run(&["delete", "--force", &case.id]);
        assert_eq!(deleted.code, 0, "{deleted:?}");
        assert_eq!(case.remains(), Vec::<String>::new(), "killed after {delay} ms");
    }
}

#[test]
fn hooks_run_at_their_points_with_the_state() {
    if !usable() {
        return;
    }
    let mut case = Case::new("cat /hook-start; echo program");
    let log = case.path("hooks");
    fs::write(&log, "").unwrap();
    let hook = |name: &str| {
        let script = format!("read -r line; echo {name} >> {}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 10}])
    };
    case.config["hooks"] = json!({
        "prestart": hook("prestart"),
        "createRuntime": hook("createRuntime"),
        "createContainer": hook("createContainer"),
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "echo inside > /hook-start"], "env": ["PATH=/bin"]}],
        "poststart": hook("poststart"),
        "poststop": hook("poststop"),
    });
    let ran = case.once();
    assert_eq!((ran.code, ran.out.as_str()), (0, "inside\nprogram\n"), "{ran:?}");
    let order = fs::read_to_string(&log).unwrap();
    assert_eq!(order, "prestart\ncreateRuntime\ncreateContainer\npoststart\npoststop\n");
    let mut failing = Case::new("true");
    failing.config["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
    let ran = failing.create();
    assert!(ran.code != 0 && ran.err.contains("hook"), "{ran:?}");
    assert_eq!(failing.remains(), Vec::<String>::new());
}

#[test]
fn pause_and_resume_freeze_and_thaw() {
    if !usable() {
        return;
    }
    let case = Case::new("while true; do echo x; sleep 0.05; done");
    assert_eq!(case.create().code, 0);
    assert_eq!(case.run(&["start", &case.id]).code, 0);
    assert_eq!(case.run(&["pause", &case.id]).code, 0);
    assert_eq!(case.status(), "paused");
    let before = case.output().len();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(case.output().len(), before);
    assert_ne!(case.run(&["exec", &case.id, "true"]).code, 0);
    assert_eq!(case.run(&["resume", &case.id]).code, 0);
    wait_until("more output", || case.output().len() > before);
    assert_eq!(case.run(&["pause", &case.id]).code, 0);
    assert_eq!(case.run(&["delete", "--force", &case.id]).code, 0);
    assert_eq!(case.remains(), Vec::<String>::new());
}

#[test]
fn a_log_has_what_its_level_asks_for() {
    if !usable() || !common::ours() {
        return;
    }
    let mut case = Case::new("true");
    // No host has all of these to give.
    case.config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_OF_NO_KERNEL"]);
    case.write();
    for (level, warned, shown) in [("debug", true, true), ("info", true, false), ("error", false, false)] {
        let log = case.path(level);
        let mut command = case.command();
        command
            .arg("--log")
            .arg(&log)
            .args(["--log-level", level, "run", "--bundle"])
            .arg(case.dir.path())
            .arg(&case.id);
        let ran = common::finish(&mut command);
        let log = fs::read_to_string(&log).unwrap_or_default();
        assert_eq!((ran.code, log.contains("CAP_OF_NO_KERNEL")), (0, warned), "{level}: {ran:?} {log}");
        assert_eq!(ran.err.contains("CAP_OF_NO_KERNEL"), shown, "{level}: {ran:?}");
    }
    let mut command = case.command();
    let ran = common::finish(command.args(["--log-level", "loud", "list"]));
    assert!(ran.code != 0 && ran.err.contains("--log-level"), "{ran:?}");
}
