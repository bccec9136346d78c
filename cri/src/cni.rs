//! Pod networks: runs CNI plugins by the CNI protocol for one configuration list.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;

use crate::error::{Error, Result};

const SLOW: Duration = Duration::from_secs(60);
/// What the first interface of a pod is called.
const INTERFACE: &str = "eth0";
/// Most bytes that a plugin may write to one of its outputs.
const LONGEST: u64 = 4 << 20;

/// Who is attached to what.
#[derive(Debug, Clone)]
pub struct Attachment<'a> {
    /// Container id for CNI (the sandbox id).
    pub id: &'a str,
    /// Pinned network namespace; none when it is gone already.
    pub netns: Option<&'a Path>,
    /// Further `CNI_ARGS`.
    pub args: String,
    /// Runtime capabilities, such as `portMappings`.
    pub capabilities: Map<String, Value>,
    /// Folders with plugins.
    pub bin_dirs: Vec<PathBuf>,
}

/// The first configuration list of a folder, by file name.
///
/// # Errors
/// There is none, or the first is broken (both in words for NetworkReady).
pub fn load(folder: &Path) -> Result<Value, String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|e| format!("no network configuration in {}: {e}", folder.display()))?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json"))
        .collect();
    files.sort();
    let path = files.first().ok_or_else(|| format!("no network configuration in {}", folder.display()))?;
    let text = std::fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    as_list(value).map_err(|why| format!("{}: {why}", path.display()))
}

fn as_list(value: Value) -> Result<Value, &'static str> {
    let name = value["name"].as_str().filter(|n| !n.is_empty()).ok_or("the name is missing")?;
    if value["plugins"].as_array().is_some_and(|p| !p.is_empty() && p.iter().all(|p| p["type"].is_string())) {
        return Ok(value);
    }
    if value["type"].is_string() {
        let version = value.get("cniVersion").cloned().unwrap_or_else(|| json!("1.0.0"));
        return Ok(json!({"cniVersion": version, "name": name, "plugins": [value]}));
    }
    Err("neither plugins nor a type with each plugin")
}

/// The standard input of plugin `index`.
fn plugin_config(list: &Value, index: usize, previous: Option<&Value>, capabilities: &Map<String, Value>) -> Value {
    let mut config = list["plugins"][index].clone();
    if let Some(config) = config.as_object_mut() {
        config.insert("name".into(), list["name"].clone());
        config.insert("cniVersion".into(), list.get("cniVersion").cloned().unwrap_or_else(|| json!("1.0.0")));
        if let Some(wanted) = config.remove("capabilities") {
            let given: Map<String, Value> = capabilities
                .iter()
                .filter(|(name, _)| wanted[name.as_str()] == json!(true))
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect();
            if !given.is_empty() {
                config.insert("runtimeConfig".into(), Value::Object(given));
            }
        }
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.clone());
        }
    }
    config
}

/// Sets the loopback device up and attaches to every plugin of the list in order; on failure what was attached is detached again.
///
/// # Errors
/// A plugin is missing or fails (in its own words).
pub async fn add(list: &Value, to: &Attachment<'_>) -> Result<Value> {
    let added = try_add(list, to).await;
    if added.is_err() {
        for fault in del(list, None, to).await {
            tracing::warn!(sandbox = to.id, %fault, "undo of a failed network attachment");
        }
    }
    added
}

async fn try_add(list: &Value, to: &Attachment<'_>) -> Result<Value> {
    // What the loopback plugin would do, without a process for it.
    if let Some(netns) = to.netns.map(Path::to_path_buf) {
        let up = move || gantry_sys::namespaces::within_network(&netns, gantry_sys::namespaces::loopback_up);
        tokio::task::spawn_blocking(up).await?.map_err(Error::failed("set lo up"))?;
    }
    let mut result = None;
    for index in 0..list["plugins"].as_array().map_or(0, Vec::len) {
        let config = plugin_config(list, index, result.as_ref(), &to.capabilities);
        result = Some(invoke("ADD", INTERFACE, &config, to).await?);
    }
    Ok(result.unwrap_or_default())
}

/// Detaches from every plugin in reverse order; never stops early, answers what failed. Without a result no ADD of the whole
/// list succeeded: a plugin that is not there then has nothing to detach.
pub async fn del(list: &Value, result: Option<&Value>, to: &Attachment<'_>) -> Vec<String> {
    let mut faults = Vec::new();
    for index in (0..list["plugins"].as_array().map_or(0, Vec::len)).rev() {
        let config = plugin_config(list, index, result, &to.capabilities);
        let kind = config["type"].as_str().unwrap_or_default();
        if result.is_none() && program(kind, to).is_none() {
            tracing::debug!(sandbox = to.id, plugin = kind, "no DEL: the plugin is missing and attached nothing");
            continue;
        }
        if let Err(e) = invoke("DEL", INTERFACE, &config, to).await {
            faults.push(e.to_string());
        }
    }
    faults
}

/// GC and STATUS came with version 1.1.0, CHECK with 0.4.0.
fn at_least(list: &Value, wanted: (u32, u32)) -> bool {
    let version = list["cniVersion"].as_str().unwrap_or_default();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

/// A call that is about the network and no attachment.
fn network_itself(bin_dirs: &[PathBuf]) -> Attachment<'static> {
    Attachment { id: "", netns: None, args: String::new(), capabilities: Map::new(), bin_dirs: bin_dirs.to_vec() }
}

/// Whether plugins say that ADD would work now (where the configuration's version lets them be asked).
///
/// # Errors
/// A plugin says why not.
pub async fn status(list: &Value, bin_dirs: &[PathBuf]) -> Result<()> {
    let to = network_itself(bin_dirs);
    for index in 0..list["plugins"].as_array().map_or(0, Vec::len) {
        let config = plugin_config(list, index, None, &to.capabilities);
        let kind = config["type"].as_str().unwrap_or_default();
        // One that is not there is named by the pod that needs it, as other failures of ADD are.
        if at_least(list, (1, 1)) && program(kind, &to).is_some() {
            invoke("STATUS", "", &config, &to).await?;
        }
    }
    Ok(())
}

/// Has plugins let go of every attachment but those of these containers. Answers what failed.
pub async fn collect(list: &Value, valid: &[String], bin_dirs: &[PathBuf]) -> Vec<String> {
    if !at_least(list, (1, 1)) || list["disableGC"] == json!(true) {
        return Vec::new();
    }
    let attachments: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": INTERFACE})).collect();
    let to = network_itself(bin_dirs);
    let mut faults = Vec::new();
    for index in 0..list["plugins"].as_array().map_or(0, Vec::len) {
        let mut config = plugin_config(list, index, None, &to.capabilities);
        config["cni.dev/valid-attachments"] = json!(attachments);
        if let Err(e) = invoke("GC", "", &config, &to).await {
            faults.push(e.to_string());
        }
    }
    faults
}

/// Whether an attachment is still as ADD left it.
///
/// # Errors
/// What a plugin misses.
pub async fn check(list: &Value, result: &Value, to: &Attachment<'_>) -> Result<()> {
    if !at_least(list, (0, 4)) || list["disableCheck"] == json!(true) {
        return Ok(());
    }
    for index in 0..list["plugins"].as_array().map_or(0, Vec::len) {
        let config = plugin_config(list, index, Some(result), &to.capabilities);
        invoke("CHECK", INTERFACE, &config, to).await?;
    }
    Ok(())
}

fn program(kind: &str, to: &Attachment<'_>) -> Option<PathBuf> {
    let bad = kind.is_empty() || kind.contains('/');
    to.bin_dirs.iter().map(|d| d.join(kind)).find(|p| !bad && p.exists())
}

async fn invoke(command: &str, interface: &str, config: &Value, to: &Attachment<'_>) -> Result<Value> {
    let kind = config["type"].as_str().unwrap_or_default();
    let program =
        program(kind, to).ok_or_else(|| Error::Failed(format!("CNI plugin {kind:?} is not in {:?}", to.bin_dirs)))?;
    let what = format!("CNI plugin {kind} {command}");
    let path: Vec<_> = to.bin_dirs.iter().map(|d| d.to_string_lossy()).collect();
    let mut child = tokio::process::Command::new(&program)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", to.id)
        .env("CNI_NETNS", to.netns.map(Path::as_os_str).unwrap_or_default())
        .env("CNI_IFNAME", interface)
        .env("CNI_ARGS", &to.args)
        .env("CNI_PATH", path.join(":"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::failed(&what))?;
    let pid = child.id();
    // Dropping the child kills it.
    let (status, output, error) = tokio::time::timeout(SLOW, converse(&mut child, config.to_string()))
        .await
        .map_err(|_| {
            let at = pid.map(whereabouts).unwrap_or_default();
            Error::Timeout(format!("{what}: no end after {} s{at}", SLOW.as_secs()))
        })?
        .map_err(Error::failed(&what))?;
    if status.success() {
        return answer(command, &output).map_err(|why| Error::Failed(format!("{what}: {why}")));
    }
    let said: Value = serde_json::from_slice(&output).unwrap_or_default();
    let why = match said["msg"].as_str() {
        Some(text) => match said["details"].as_str().filter(|d| !d.is_empty()) {
            Some(details) => format!("{text}: {details}"),
            None => text.to_owned(),
        },
        None => format!("{status}: {}", String::from_utf8_lossy(&error).trim()),
    };
    Err(Error::Failed(format!("{what}: {why}")))
}

/// What a process that does not end is at, for whoever looks for the reason: its state, how long it has computed, and the
/// kernel's function that it waits in.
fn whereabouts(pid: u32) -> String {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let stat = read("stat");
    // Its name may have any character; what follows the last parenthesis has a fixed order.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let (Some(state), Some(user), Some(system)) = (fields.first(), fields.get(11), fields.get(12)) else {
        return String::new();
    };
    let ticks: u64 = [user, system].iter().filter_map(|t| t.parse::<u64>().ok()).sum();
    let wchan = read("wchan");
    let place = if matches!(wchan.trim(), "" | "0") { String::new() } else { format!(" in {}", wchan.trim()) };
    // Linux tells times to programs in hundredths of a second on every architecture that we build for.
    format!(" (state {state}{place}, {}.{:02} s of processor time)", ticks / 100, ticks % 100)
}

/// Writes a plugin's input and reads its output at the same time, each as fast as the plugin takes and gives it.
async fn converse(child: &mut Child, input: String) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut to) = stdin {
            // A plugin that does not read its input says what it wants by its exit.
            let _ = to.write_all(input.as_bytes()).await;
        }
        Ok(())
    };
    let ((), output, error) = tokio::try_join!(write, limited(stdout), limited(stderr))?;
    Ok((child.wait().await?, output, error))
}

async fn limited(from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(LONGEST + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other(format!("it writes more than {LONGEST} bytes")));
    }
    Ok(bytes)
}

/// What a plugin that succeeded answers; only ADD must answer something. Pure.
fn answer(command: &str, output: &[u8]) -> Result<Value, String> {
    match serde_json::from_slice::<Value>(output) {
        Ok(value) if value.is_object() || command != "ADD" => Ok(value),
        Ok(_) => Err("its result is no object".to_owned()),
        Err(_) if command != "ADD" => Ok(Value::Null),
        Err(error) => Err(format!("its result is not JSON: {error}")),
    }
}

/// The addresses of a result that are the pod's, in order: those of its first interface, which we name. Plugins may give it more
/// interfaces, for networks of their own: a pod that had two addresses of one family would be refused by the Kubernetes API.
pub fn addresses(result: &Value) -> Vec<String> {
    let interfaces = result["interfaces"].as_array();
    let of = |ip: &Value| ip["interface"].as_u64().and_then(|index| interfaces?.get(index as usize)).cloned();
    let inside = |i: &Value| i["sandbox"].as_str().is_some_and(|s| !s.is_empty());
    let pods = |wanted: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let ips = result["ips"].as_array().into_iter().flatten();
        let ips = ips.filter(|ip| of(ip).is_none_or(|interface| inside(&interface) && wanted(&interface)));
        ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse::<IpAddr>().ok())
            .map(|ip| ip.to_string())
            .collect()
    };
    let first = pods(&|interface| interface["name"] == INTERFACE);
    if first.is_empty() { pods(&|_| true) } else { first }
}

/// A network's configuration, and behind NUL bytes what its plugins answer, as far as they are read here.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn understood(data: &[u8]) {
    let mut parts = data.split(|b| *b == 0);
    let value = serde_json::from_slice::<Value>(parts.next().unwrap_or_default());
    let list = value.ok().and_then(|value| as_list(value).ok());
    let capabilities: Map<String, Value> = Map::from_iter([("portMappings".to_owned(), json!([{"hostPort": 80}]))]);
    let mut previous = None;
    for (index, output) in parts.enumerate().take(8) {
        for command in ["ADD", "CHECK"] {
            match answer(command, output) {
                Err(why) => assert!(!why.is_empty()),
                Ok(result) => {
                    assert!(addresses(&result).iter().all(|ip| ip.parse::<IpAddr>().is_ok()));
                    previous = Some(result);
                }
            }
        }
        if let Some(list) = list.as_ref().filter(|l| l["plugins"].as_array().is_some_and(|p| index < p.len())) {
            let config = plugin_config(list, index, previous.as_ref(), &capabilities);
            assert_eq!(config["name"], list["name"]);
            let _ = at_least(list, (1, 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_what_a_plugin_without_an_end_is_at() {
        let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let (end, mut seen) = (std::time::Instant::now() + std::time::Duration::from_secs(20), String::new());
        // It sleeps when it has come to it.
        while !seen.starts_with(" (state S") && std::time::Instant::now() < end {
            seen = whereabouts(sleeper.id());
        }
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(seen.starts_with(" (state S") && seen.ends_with(" s of processor time)"), "{seen}");
        assert_eq!(whereabouts(sleeper.id()), "");
    }

    #[test]
    fn only_asked_capabilities_are_given_and_the_previous_result_is_passed() {
        let list = json!({"name": "n", "cniVersion": "1.0.0", "plugins": [
            {"type": "portmap", "capabilities": {"portMappings": true}}]});
        let mut given = Map::new();
        given.insert("portMappings".into(), json!([1]));
        given.insert("bandwidth".into(), json!({}));
        let config = plugin_config(&list, 0, Some(&json!({"ips": []})), &given);
        assert_eq!(
            config,
            json!({"type": "portmap", "name": "n", "cniVersion": "1.0.0",
                   "runtimeConfig": {"portMappings": [1]}, "prevResult": {"ips": []}})
        );
    }

    #[test]
    fn newer_commands_need_newer_configurations() {
        let list = |version: &str| json!({"cniVersion": version});
        assert!(at_least(&list("1.1.0"), (1, 1)) && at_least(&list("2.0.0"), (1, 1)));
        assert!(!at_least(&list("1.0.0"), (1, 1)) && !at_least(&json!({}), (0, 4)));
        assert!(at_least(&list("0.4.0"), (0, 4)) && !at_least(&list("0.3.1"), (0, 4)));
    }

    #[test]
    fn pod_addresses_are_those_of_interfaces_inside() {
        let result = json!({"interfaces": [{"name": "br"}, {"name": INTERFACE, "sandbox": "/x"}],
            "ips": [{"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1}]});
        assert_eq!(addresses(&result), ["10.0.0.2"]);
        let mut result = json!({"interfaces": [{"name": "net1", "sandbox": "/x"}, {"name": INTERFACE, "sandbox": "/x"}],
            "ips": [{"address": "10.1.0.2/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1},
                {"address": "fd00::2/64", "interface": 1}]});
        assert_eq!(addresses(&result), ["10.0.0.2", "fd00::2"], "another network's are not the pod's");
        result["ips"].as_array_mut().unwrap().truncate(1);
        assert_eq!(addresses(&result), ["10.1.0.2"], "unless there are no others");
    }

    #[test]
    fn an_attachment_without_a_result_is_none() {
        assert_eq!(answer("ADD", b"{}"), Ok(json!({})));
        assert_eq!(answer("DEL", b""), Ok(Value::Null));
        for bad in ["", "{", "[]", "null", "noise {}"] {
            assert!(answer("ADD", bad.as_bytes()).is_err(), "{bad}");
            assert!(answer("CHECK", bad.as_bytes()).is_ok(), "{bad}");
        }
    }

    /// A plugin that is this script.
    fn plugin(dir: &Path, script: &str) -> Attachment<'static> {
        // Written by another process: a child of this one that holds it open just then would make it busy.
        let text = format!("#!/bin/sh\n{script}");
        let write = "printf '%s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\"";
        let written = std::process::Command::new("/bin/sh").args(["-c", write]).arg(dir.join("odd")).arg(text).status();
        assert!(written.unwrap().success());
        network_itself(&[dir.to_owned()])
    }

    #[tokio::test]
    async fn plugins_that_write_without_end_or_never_read_are_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"type": "odd", "padding": "x".repeat(300_000)});
        let endless =
            plugin(dir.path(), "while :; do echo '{\"a\": \"0123456789012345678901234567890123456789\"}'; done");
        let error = invoke("ADD", INTERFACE, &config, &endless).await.unwrap_err().to_string();
        assert!(error.contains("writes more than"), "{error}");
        let deaf = plugin(dir.path(), "echo '{\"code\": 7, \"msg\": \"no thanks\"}'; exit 1");
        let error = invoke("ADD", INTERFACE, &config, &deaf).await.unwrap_err().to_string();
        assert!(error.contains("no thanks"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_result_gives_addresses_or_none(
            index in proptest::option::of(proptest::num::i64::ANY),
            address in "([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9a-f:]{2,12}|.{0,10})(/[0-9]{0,3})?",
            interfaces in proptest::sample::select(vec![json!([]), json!({}), json!(null), json!([null, {"sandbox": 1}]), json!([{"sandbox": "x"}])]),
            wrap in 0..4,
        ) {
            let ip = match wrap {
                0 => json!(address),
                1 => json!({"address": [address], "interface": index}),
                _ => json!({"address": address, "interface": index}),
            };
            let result = if wrap == 3 { json!({"ips": ip}) } else { json!({"ips": [ip], "interfaces": interfaces}) };
            for found in addresses(&result) {
                proptest::prop_assert!(found.parse::<IpAddr>().is_ok(), "{found}");
            }
            let answered = answer("ADD", address.as_bytes());
            proptest::prop_assert!(answered.is_err() || answered.unwrap().is_object());
        }
    }

    #[test]
    fn a_folder_without_configuration_says_so() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap_err().contains("no network configuration"));
        std::fs::write(dir.path().join("a.conflist"), r#"{"name":"x"}"#).unwrap();
        assert!(load(dir.path()).unwrap_err().contains("a.conflist"));
    }
}
