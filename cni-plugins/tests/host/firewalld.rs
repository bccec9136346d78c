//! The firewall plugin beside a firewalld that runs on a bus of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::net::{Net, sh};

const BUS: &str = r#"<busconfig><type>system</type><listen>unix:path=SOCKET</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy>
</busconfig>"#;

/// Ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Host {
    net: Net,
    socket: PathBuf,
    firewalld: Option<Ended>,
    _bus: Ended,
}

impl Host {
    /// None where something lacks.
    fn new(containers: &[&str]) -> Option<Self> {
        if !["/usr/bin/dbus-daemon", "/usr/sbin/firewalld"].iter().all(|p| fs::exists(p).unwrap_or(false)) {
            println!("skipped: needs firewalld and dbus-daemon");
            return None;
        }
        let net = Net::new(containers)?;
        let folder = net.data().with_file_name("bus");
        fs::create_dir_all(&folder).unwrap();
        let (socket, config) = (folder.join("socket"), folder.join("bus.conf"));
        fs::write(&config, BUS.replace("SOCKET", socket.to_str().unwrap())).unwrap();
        let bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { net, socket, firewalld: None, _bus: Ended(bus) })
    }

    fn start(&mut self) {
        let log = self.socket.with_file_name("log");
        let start = "mount -t tmpfs t /etc/firewalld && mkdir /etc/firewalld/zones && mount -t tmpfs t /run && \
                     exec firewalld --nofork --nopid --log-file";
        let firewalld = Command::new("unshare")
            .args(["--mount", "nsenter"])
            .arg(format!("--net=/run/netns/{}", self.net.name("host")))
            .args(["sh", "-c", &format!("{start} {}", log.display())])
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.firewalld = Some(Ended(firewalld));
        let begin = Instant::now();
        while self.client(&["--state"]).as_deref() != Some("running") {
            let text = fs::read_to_string(&log).unwrap_or_default();
            assert!(begin.elapsed() < Duration::from_secs(120), "firewalld does not start: {text}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    /// What firewalld's own client says; none when it fails.
    fn client(&self, arguments: &[&str]) -> Option<String> {
        let mut client = Command::new("firewall-cmd");
        let out = client.args(arguments).env("DBUS_SYSTEM_BUS_ADDRESS", self.address()).output().unwrap();
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    fn sources(&self, zone: &str) -> Vec<String> {
        let text = self.client(&[&format!("--zone={zone}"), "--list-sources"]).unwrap();
        let mut sources: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        sources.sort();
        sources
    }

    fn call(&self, command: &str, short: &str, config: &Value) -> Result<Value, Value> {
        let netns = format!("/run/netns/{}", self.net.name(short));
        let address = self.address();
        let bus = [("DBUS_SYSTEM_BUS_ADDRESS", address.as_str())];
        self.net.call_with("firewall", command, short, &netns, &config.to_string(), &bus)
    }

    fn config(&self, backend: &str, zone: &str, number: u8) -> Value {
        let address = |text: String| json!({"address": text});
        let ips = [address(format!("10.77.0.{number}/24")), address(format!("fd77::{number}/64"))];
        let previous = json!({"cniVersion": "1.1.0", "interfaces": [], "ips": ips});
        json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall", "backend": backend, "firewalldZone": zone,
               "prevResult": previous})
    }
}

#[test]
fn firewalld_keeps_the_rules_where_it_runs() {
    let Some(mut host) = Host::new(&["a", "b"]) else { return };
    let nothing: [&str; 0] = [];
    let refused = host.call("ADD", "a", &host.config("firewalld", "", 2)).unwrap_err();
    assert!(refused["msg"].as_str().unwrap().contains("does not run"), "{refused}");
    host.start();

    // Nobody said who: the one that runs. Its zone is that of the reference plugin.
    let config = host.config("", "", 2);
    assert_eq!(host.call("ADD", "a", &config).unwrap()["ips"], config["prevResult"]["ips"]);
    assert_eq!(host.sources("trusted"), ["10.77.0.2/32", "fd77::2/128"]);
    assert!(!host.net.nft().contains("gantry-cni"), "the rules are firewalld's");
    host.call("CHECK", "a", &config).unwrap();
    let other = host.config("firewalld", "work", 3);
    host.call("ADD", "b", &other).unwrap();
    host.call("ADD", "b", &other).unwrap();
    assert_eq!(host.sources("work"), ["10.77.0.3/32", "fd77::3/128"]);

    // It forgets what is not permanent when it reloads.
    host.client(&["--reload"]).unwrap();
    assert_eq!(host.sources("trusted"), nothing);
    let lost = host.call("CHECK", "a", &config).unwrap_err();
    assert!(lost["msg"].as_str().unwrap().contains("10.77.0.2 is not in firewalld's zone trusted"), "{lost}");
    host.call("STATUS", "a", &json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall"})).unwrap();
    host.call("CHECK", "a", &config).unwrap();

    // Without the result of ADD, too, and once more.
    let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall"});
    host.call("DEL", "a", &bare).unwrap();
    host.call("DEL", "a", &bare).unwrap();
    assert_eq!(host.sources("trusted"), nothing);
    host.call(
        "GC",
        "b",
        &json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall", "cni.dev/valid-attachments": []}),
    )
    .unwrap();
    assert_eq!(host.sources("work"), nothing);

    // With it everything it held is gone.
    host.call("ADD", "a", &config).unwrap();
    host.firewalld = None;
    host.call("DEL", "a", &config).unwrap();
    sh(&format!("ip netns exec {} nft flush ruleset", host.net.name("host")));
    host.call("ADD", "a", &config).unwrap();
    assert!(host.net.nft().contains("pods4"), "without firewalld the rules are ours");
    host.call("DEL", "a", &config).unwrap();
    assert_eq!(host.net.nft().trim(), "");
}
