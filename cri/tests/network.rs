//! Where the daemon meets its surroundings: networks that change under it, and a socket that it is handed.

mod common;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{Client, Daemon, remove_pod, start_pod, until};
use proto::cri;

async fn addresses(client: &mut Client, sandbox: &str) -> Vec<std::net::IpAddr> {
    let ask = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
    let status = client.pod_sandbox_status(ask).await.unwrap().into_inner().status.unwrap();
    let network = status.network.unwrap();
    let more = network.additional_ips.into_iter().map(|a| a.ip);
    [network.ip].into_iter().chain(more).map(|a| a.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_network_counts_at_once_with_both_families_and_limits_of_bandwidth() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let (old, _) = start_pod(&mut client, "old", "exec /bin/busybox sleep 1000").await.unwrap();
    assert_eq!(addresses(&mut client, &old).await.len(), 1);
    let dir = daemon.path("").display().to_string();
    let list = format!(
        r#"{{"cniVersion": "1.1.0", "name": "both", "plugins": [
            {{"type": "bridge", "bridge": "cni1", "isGateway": true, "ipam": {{"type": "host-local", "dataDir": "{dir}/addresses",
              "ranges": [[{{"subnet": "10.97.0.0/24"}}], [{{"subnet": "fd00:97::/64"}}]]}}}},
            {{"type": "bandwidth", "capabilities": {{"bandwidth": true}}}}]}}"#
    );
    fs::write(daemon.path("net.d/05-both.conflist"), list).unwrap();
    let mut config = common::pod("new");
    config.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "8M".into());
    let (new, id) = common::start_configured(&mut client, config, "exec /bin/busybox sleep 1000").await.unwrap();
    let found = addresses(&mut client, &new).await;
    assert!(found.len() == 2 && found[0].is_ipv4() && found[1].is_ipv6(), "{found:?}");
    let cmd = ["/bin/busybox", "ip", "address", "show", "dev", "eth0"].map(str::to_owned).to_vec();
    let ask = cri::ExecSyncRequest { container_id: id, cmd, timeout: 60 };
    let inside = String::from_utf8(client.exec_sync(ask).await.unwrap().into_inner().stdout).unwrap();
    assert!(found.iter().all(|a| inside.contains(&a.to_string())), "{inside}");
    let limits = daemon.run("tc", &["qdisc", "show"]);
    assert!(limits.contains("tbf") && limits.contains("8Mbit"), "{limits}");
    let ask = cri::PodSandboxStatsRequest { pod_sandbox_id: new.clone() };
    let stats = client.pod_sandbox_stats(ask).await.unwrap().into_inner().stats.unwrap().linux.unwrap();
    assert_eq!(stats.network.unwrap().default_interface.unwrap().name, "eth0");
    // Each leaves the network that it came into.
    for pod in [old, new] {
        remove_pod(&mut client, &pod).await.unwrap();
    }
    for network in ["test", "both"] {
        let names = fs::read_dir(daemon.path("addresses").join(network)).unwrap().flatten();
        let held: Vec<_> =
            names.map(|e| e.file_name()).filter(|n| n.to_string_lossy().starts_with(['1', 'f'])).collect();
        assert!(held.is_empty(), "{network} still has {held:?}");
    }
    daemon.assert_clean();
}

/// A plugin that gives the pod a second interface, `net1`, with addresses of its own, as others are written: it answers what came
/// before with its own added.
const SECOND: &str = r#"#!/usr/bin/python3
import json, os, subprocess, sys
asked = json.load(sys.stdin)
netns, command = os.environ.get("CNI_NETNS", ""), os.environ["CNI_COMMAND"]
own = ["10.96.0.2/24", "fd00:96::2/64"]
def ip(*words):
    return subprocess.check_output(["nsenter", "--net=" + netns, "ip", *words], text=True)
if command == "ADD":
    ip("link", "add", "net1", "type", "veth", "peer", "name", "host1", "netns", str(os.getpid()))
    ip("link", "set", "net1", "up")
    result = asked["prevResult"]
    result["interfaces"].insert(0, {"name": "net1", "sandbox": netns})
    for entry in result["ips"]:
        entry["interface"] += 1
    for address in own:
        ip("address", "add", address, "dev", "net1")
        result["ips"].insert(0, {"address": address, "interface": 0})
    print(json.dumps(result))
elif command == "CHECK" and own[0] not in ip("address", "show", "dev", "net1"):
    print(json.dumps({"cniVersion": "1.1.0", "code": 100, "msg": "net1 has lost its address"}))
    sys.exit(1)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_two_interfaces_has_the_addresses_of_the_first_and_fsck_asks_after_both() {
    if !Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: there is no /usr/bin/python3");
        return;
    }
    let Some(daemon) = Daemon::start() else { return };
    let mut client = daemon.client().await;
    let dir = daemon.path("").display().to_string();
    fs::write(daemon.path("cni/second"), SECOND).unwrap();
    fs::set_permissions(daemon.path("cni/second"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let list = format!(
        r#"{{"cniVersion": "1.1.0", "name": "both", "plugins": [
            {{"type": "bridge", "bridge": "cni1", "isGateway": true, "ipam": {{"type": "host-local", "dataDir": "{dir}/addresses",
              "ranges": [[{{"subnet": "10.97.0.0/24"}}], [{{"subnet": "fd00:97::/64"}}]]}}}},
            {{"type": "second"}}]}}"#
    );
    fs::write(daemon.path("net.d/05-both.conflist"), list).unwrap();
    let (pod, id) = start_pod(&mut client, "two", "exec /bin/busybox sleep 1000").await.unwrap();
    // Two of one family would be no pod's that the Kubernetes API takes.
    let found: Vec<String> = addresses(&mut client, &pod).await.iter().map(ToString::to_string).collect();
    assert!(found.len() == 2 && found[0].starts_with("10.97.") && found[1].starts_with("fd00:97::"), "{found:?}");
    let mut exec = async |script: &str| {
        let cmd = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
        let ask = cri::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 60 };
        String::from_utf8(client.exec_sync(ask).await.unwrap().into_inner().stdout).unwrap()
    };
    let inside = exec("/bin/busybox ip address").await;
    for address in found.iter().map(String::as_str).chain(["10.96.0.2/24", "fd00:96::2/64"]) {
        assert!(inside.contains(address), "{address} is not in {inside}");
    }
    let ask = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
    let stats =
        client.pod_sandbox_stats(ask).await.unwrap().into_inner().stats.unwrap().linux.unwrap().network.unwrap();
    let mut names: Vec<_> = stats.interfaces.iter().map(|i| i.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!((stats.default_interface.unwrap().name.as_str(), names), ("eth0", vec!["eth0", "net1"]));
    // Nobody sees from outside what becomes of an attachment: fsck asks the plugins (CHECK).
    daemon.assert_clean();
    let netns = format!("/run/gt/cri/sandboxes/{pod}/ns/net");
    let change = |words: &[&str]| {
        let output = daemon.inside(Path::new("nsenter")).arg(format!("--net={netns}")).arg("ip").args(words).output();
        assert!(output.as_ref().unwrap().status.success(), "{words:?}: {output:?}");
    };
    let finds = |why: &str| {
        let output = daemon.command(&["fsck"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text.contains(&format!("network of sandbox {pod}: CNI plugin {why}")), "{text}");
    };
    change(&["address", "del", "10.96.0.2/24", "dev", "net1"]);
    finds("second CHECK: net1 has lost its address");
    change(&["address", "add", "10.96.0.2/24", "dev", "net1"]);
    daemon.assert_clean();
    change(&["address", "flush", "dev", "eth0"]);
    finds("bridge CHECK: ");
    // A pod whose network is not what it was goes all the same.
    remove_pod(&mut client, &pod).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_handed_over_is_served_and_stays() {
    let Some(mut daemon) = Daemon::start() else { return };
    daemon.stop();
    let path = daemon.path("cri.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // Who calls before there is a daemon waits for it.
    let mut client = daemon.client().await;
    let early = tokio::spawn(async move { client.version(cri::VersionRequest::default()).await });
    let log = fs::File::options().append(true).open(daemon.path("log")).unwrap();
    let mut command = daemon.inside(Path::new("/bin/sh"));
    command
        .args(["-c", "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"", "sh"])
        .arg(daemon.programs().join("gantry-cri"))
        .args(["--config".as_ref(), daemon.path("cri.toml").as_path()])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let mut running = command.spawn().unwrap();
    // What started it holds the socket no longer.
    drop(command);
    let answer = tokio::time::timeout(Duration::from_secs(60), early).await.expect("no answer").unwrap().unwrap();
    assert_eq!(answer.into_inner().runtime_name, "gantry-cri");
    let pid =
        until("the daemon's process", Duration::from_secs(20), || common::children(running.id()).first().copied());
    common::kill(pid, nix::sys::signal::Signal::SIGTERM);
    running.wait().unwrap();
    assert!(path.exists(), "whoever handed it over goes on listening");
    daemon.launch();
    daemon.assert_clean();
}
