//! A host with cgroup version 2 alone, made in a mount namespace of the test.

mod common;

use common::{Case, finish, ours, usable};
use serde_json::json;

#[test]
fn containers_run_where_only_version_2_is_mounted() {
    if !usable() || !ours() {
        return;
    }
    let mut case =
        Case::new("cat /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.procs; cat /dev/kmsg2 2>/dev/null || echo denied");
    case.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    // The kernel's log, which the device rules do not allow.
    case.config["linux"]["devices"] = json!([{"path": "/dev/kmsg2", "type": "c", "major": 1, "minor": 11}]);
    let group = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]});
    case.config["mounts"].as_array_mut().unwrap().push(group);
    case.write();
    let command = case.command();
    let mut host = std::process::Command::new("unshare");
    let script = "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"";
    host.args(["-m", "sh", "-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    host.args(["run", "--bundle"]).arg(case.dir.path()).arg(&case.id);
    let ran = finish(&mut host);
    let unified = ran.out.lines().any(|l| l == "0::/");
    assert!(unified && ran.out.ends_with("/sys/fs/cgroup/cgroup.procs\ndenied\n"), "{ran:?}");
    assert_eq!(case.remains(), Vec::<String>::new());
}
