//! Cases of [`super::adjust`].

use proto::nri;
use serde_json::json;

use super::adjust::{Owners, apply};

fn env(key: &str, value: &str) -> nri::KeyValue {
    nri::KeyValue { key: key.to_owned(), value: value.to_owned() }
}

fn mount(to: &str) -> nri::Mount {
    nri::Mount { destination: to.to_owned(), r#type: "bind".into(), source: "/s".into(), options: vec!["rbind".into()] }
}

#[test]
fn names_are_set_replaced_and_removed() {
    let mut oci = json!({"process": {"env": ["A=1", "B=2"], "args": ["x"]}, "mounts": [{"destination": "/a/b"}, {"destination": "/c"}],
        "annotations": {"k": "v"}, "linux": {}});
    let adjustment = nri::ContainerAdjustment {
        annotations: [("-k".to_owned(), String::new()), ("n".to_owned(), "w".to_owned())].into(),
        env: vec![env("-A", ""), env("B", "3"), env("C", "4")],
        mounts: vec![mount("-/c"), mount("/a")],
        args: vec!["y".into(), "z".into()],
        ..Default::default()
    };
    apply(&mut oci, &adjustment, "10-a", &mut Owners::default()).unwrap();
    assert_eq!(oci["process"], json!({"env": ["B=3", "C=4"], "args": ["y", "z"]}));
    assert_eq!(oci["annotations"], json!({"n": "w"}));
    let places: Vec<_> = oci["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
    assert_eq!(places, ["/a", "/a/b"]);
}

#[test]
fn two_plugins_must_not_set_the_same_but_may_replace_it_after_removing() {
    let (mut oci, mut owners) = (json!({"process": {}}), Owners::default());
    let set = |value: &str, more: &[nri::KeyValue]| nri::ContainerAdjustment {
        env: more.iter().cloned().chain([env("A", value)]).collect(),
        ..Default::default()
    };
    apply(&mut oci, &set("1", &[]), "10-a", &mut owners).unwrap();
    apply(&mut oci, &set("2", &[]), "10-a", &mut owners).unwrap();
    let error = apply(&mut oci, &set("3", &[]), "20-b", &mut owners).unwrap_err();
    assert!(error.contains("10-a") && error.contains("20-b") && error.contains("\"A\""), "{error}");
    let mut owners = Owners::default();
    apply(&mut oci, &set("1", &[]), "10-a", &mut owners).unwrap();
    apply(&mut oci, &set("4", &[env("-A", "")]), "20-b", &mut owners).unwrap();
    assert_eq!(oci["process"]["env"], json!(["A=4"]));
    let told = owners.for_validation("c");
    assert_eq!(told.owners["c"].compound[&(nri::Field::Env as i32)].owners["A"], "20-b");
}

#[test]
fn limits_and_kernel_settings_arrive_where_a_runtime_reads_them() {
    let mut oci = json!({"process": {}, "linux": {"resources": {"memory": {"limit": 5, "swap": 9}, "devices": []}}});
    let resources = nri::LinuxResources {
        memory: Some(nri::LinuxMemory { limit: Some(nri::OptionalInt64 { value: 4096 }), ..Default::default() }),
        cpu: Some(nri::LinuxCpu {
            shares: Some(nri::OptionalUInt64 { value: 7 }),
            cpus: "1".into(),
            ..Default::default()
        }),
        pids: Some(nri::LinuxPids { limit: 3 }),
        unified: [("memory.high".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    let linux = nri::LinuxContainerAdjustment {
        resources: Some(resources),
        oom_score_adj: Some(nri::OptionalInt { value: 500 }),
        devices: vec![nri::LinuxDevice {
            path: "/dev/x".into(),
            r#type: "c".into(),
            major: 1,
            minor: 3,
            ..Default::default()
        }],
        sysctl: [("net.x".to_owned(), "1".to_owned())].into(),
        namespaces: vec![nri::LinuxNamespace { r#type: "cgroup".into(), path: String::new() }],
        io_priority: Some(nri::LinuxIoPriority { class: nri::IoPrioClass::IoprioClassIdle.into(), priority: 0 }),
        ..Default::default()
    };
    let adjustment = nri::ContainerAdjustment {
        linux: Some(linux),
        rlimits: vec![nri::PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 9, soft: 8 }],
        ..Default::default()
    };
    apply(&mut oci, &adjustment, "10-a", &mut Owners::default()).unwrap();
    assert_eq!(oci["linux"]["resources"]["memory"], json!({"limit": 4096, "swap": 4096}));
    assert_eq!(oci["linux"]["resources"]["cpu"], json!({"shares": 7, "cpus": "1"}));
    assert_eq!(oci["linux"]["resources"]["pids"], json!({"limit": 3}));
    assert_eq!(oci["linux"]["devices"], json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}]));
    assert_eq!(oci["linux"]["resources"]["devices"][0]["access"], "rwm");
    assert_eq!(oci["linux"]["namespaces"], json!([{"type": "cgroup"}]));
    assert_eq!(
        oci["process"],
        json!({"oomScoreAdj": 500, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}],
               "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0}})
    );
    assert!(oci["linux"].get("netDevices").is_none() && oci["linux"].get("seccomp").is_none());
}

#[test]
fn classes_that_nobody_defined_are_refused_by_name() {
    let resources =
        nri::LinuxResources { rdt_class: Some(nri::OptionalString { value: "gold".into() }), ..Default::default() };
    let linux = nri::LinuxContainerAdjustment { resources: Some(resources), ..Default::default() };
    let adjustment = nri::ContainerAdjustment { linux: Some(linux), ..Default::default() };
    let error = apply(&mut json!({}), &adjustment, "10-a", &mut Owners::default()).unwrap_err();
    assert!(error.contains("rdt_class \"gold\""), "{error}");
}
