//! What a runtime asks: the environment, and the configuration on standard input.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::error::{Code, Error};
use super::result::CniResult;
use super::version::Version;

/// The verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Is it attached as it should be?
    Check,
    /// Which versions are spoken?
    Version,
    /// Would ADD work?
    Status,
    /// Free what belongs to no attachment of the list.
    Gc,
}

impl Command {
    fn parse(text: &str) -> Result<Self, Error> {
        Ok(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "VERSION" => Self::Version,
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            _ => return Err(Error::new(Code::InvalidEnvironment, format!("unknown CNI_COMMAND: {text}"))),
        })
    }
}

/// The `CNI_*` variables.
#[derive(Debug, Clone, Default)]
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// The process's own.
    pub fn of_process() -> Self {
        Self(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect())
    }

    /// One for tests and for calls within the process.
    pub fn of(pairs: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }
}

/// The configuration on standard input: the fields of all plugins, and the rest for each plugin to read.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Version.
    pub version: Version,
    /// Name of the network.
    pub name: String,
    /// The whole object.
    pub value: Value,
    /// The result of the plugins before.
    pub previous: Option<CniResult>,
}

impl NetConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// It is no JSON object (6), of an unknown version (1), or its name is missing or wrong (7).
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let mut value: Value = serde_json::from_slice(text)
            .map_err(|e| Error::new(Code::Decoding, format!("decode the network configuration: {e}")))?;
        if !value.is_object() {
            return Err(Error::new(Code::Decoding, "the network configuration is not a JSON object"));
        }
        if let Some(given) = value.get_mut("runtimeConfig") {
            small_first_letters(given);
        }
        let version = match &value["cniVersion"] {
            Value::Null => Version::parse("")?,
            Value::String(text) => Version::parse(text)?,
            _ => return Err(Error::new(Code::Decoding, "cniVersion is not a text")),
        };
        check_kinds(&value)?;
        let name = value["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Error::config("missing network name"));
        }
        if !is_name(&name) {
            return Err(Error::config("invalid characters found in network name").details(name));
        }
        let previous = match value.get("prevResult") {
            None | Some(Value::Null) => None,
            Some(given) => Some(CniResult::from_value(given)?),
        };
        Ok(Self { version, name, value, previous })
    }

    /// A map below `args.cni`, `runtimeConfig` or another key; empty when it is not there.
    pub fn section(&self, keys: &[&str]) -> Map<String, Value> {
        let mut at = &self.value;
        for key in keys {
            at = &at[*key];
        }
        at.as_object().cloned().unwrap_or_default()
    }
}

/// The fields that every plugin shares must be of their kind: an `ipam` that is a text would else count as none.
fn check_kinds(value: &Value) -> Result<(), Error> {
    const OBJECTS: [&str; 7] = ["ipam", "runtimeConfig", "args", "capabilities", "dns", "prevResult", "delegate"];
    let wrong = |field: &str, kind: &str| {
        let text = format!("decode the network configuration: {field} is not {kind}");
        Err(Error::new(Code::Decoding, text))
    };
    for field in OBJECTS {
        if !value[field].is_null() && !value[field].is_object() {
            return wrong(field, "an object");
        }
    }
    for (field, given) in [("name", &value["name"]), ("type", &value["type"]), ("ipam.type", &value["ipam"]["type"])] {
        if !given.is_null() && !given.is_string() {
            return wrong(field, "a text");
        }
    }
    Ok(())
}

/// containerd writes `HostPort` where the specification has `hostPort`, and Go programs read both.
fn small_first_letters(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(small_first_letters),
        Value::Object(map) => {
            let old = std::mem::take(map);
            for (key, mut value) in old {
                small_first_letters(&mut value);
                let mut letters = key.chars();
                let first = letters.next().map(|c| c.to_ascii_lowercase());
                map.insert(first.into_iter().chain(letters).collect(), value);
            }
        }
        _ => {}
    }
}

/// Names of networks and containers: an alphanumeric, then alphanumerics, dots, dashes and underscores.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Verb.
    pub command: Command,
    /// The container; empty for STATUS and GC.
    pub container: String,
    /// Path of its network namespace; none when it is gone.
    pub netns: Option<PathBuf>,
    /// Name of the device in the container.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: HashMap<String, String>,
    /// Folders of other plugins.
    pub path: Vec<PathBuf>,
    /// Configuration.
    pub config: NetConfig,
    /// The variables themselves, for plugins that call others.
    pub environment: Environment,
}

impl Request {
    /// The verb that the environment asks for.
    ///
    /// # Errors
    /// It is unknown (4).
    pub fn command(environment: &Environment) -> Result<Option<Command>, Error> {
        environment.get("CNI_COMMAND").map(Command::parse).transpose()
    }

    /// Puts a request together and checks it.
    ///
    /// # Errors
    /// A variable that the verb needs is missing or malformed (4), or the configuration is wrong.
    pub fn parse(command: Command, environment: Environment, input: &[u8]) -> Result<Self, Error> {
        let attached = matches!(command, Command::Add | Command::Del | Command::Check);
        let needed: &[&str] = match command {
            Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Command::Gc | Command::Status => &["CNI_PATH"],
            Command::Version => &[],
        };
        let missing: Vec<&str> = needed.iter().copied().filter(|n| environment.get(n).is_none()).collect();
        if !missing.is_empty() {
            let text = format!("required env variables [{}] missing", missing.join(","));
            return Err(Error::new(Code::InvalidEnvironment, text));
        }
        let own = |name: &str| environment.get(name).unwrap_or_default().to_owned();
        let (container, ifname) = (own("CNI_CONTAINERID"), own("CNI_IFNAME"));
        if attached && !is_name(&container) {
            let text = "invalid characters in containerID";
            return Err(Error::new(Code::InvalidEnvironment, text).details(container));
        }
        if attached {
            check_ifname(&ifname)?;
        }
        let args = parse_args(environment.get("CNI_ARGS").unwrap_or_default())?;
        let config = NetConfig::parse(input)?;
        if command == Command::Check && config.version < Version::new(0, 4, 0) {
            return Err(Error::new(Code::IncompatibleVersion, "config version does not allow CHECK"));
        }
        if matches!(command, Command::Gc | Command::Status) && config.version < Version::new(1, 1, 0) {
            let text =
                format!("config version does not allow {command:?}").replace("Gc", "GC").replace("Status", "STATUS");
            return Err(Error::new(Code::IncompatibleVersion, text));
        }
        let path = environment.get("CNI_PATH").map(|p| std::env::split_paths(p).collect()).unwrap_or_default();
        let netns = environment.get("CNI_NETNS").map(PathBuf::from);
        Ok(Self { command, container, netns, ifname, args, path, config, environment })
    }

    /// The attachments that are still there, as GC names them: container and device.
    ///
    /// # Errors
    /// The list is malformed (7).
    pub fn valid_attachments(&self) -> Result<Vec<(String, String)>, Error> {
        let wrong = || Error::config("cni.dev/valid-attachments must be a list of {containerID, ifname}");
        let list = &self.config.value["cni.dev/valid-attachments"];
        // libcni writes an empty list as null, and none at all when everything shall go (`cnitool gc`).
        if list.is_null() {
            return Ok(Vec::new());
        }
        let read = |v: &Value| Some((v["containerID"].as_str()?.to_owned(), v["ifname"].as_str()?.to_owned()));
        list.as_array().ok_or_else(wrong)?.iter().map(|v| read(v).ok_or_else(wrong)).collect()
    }
}

fn check_ifname(name: &str) -> Result<(), Error> {
    let why = match name {
        "" => "interface name is empty",
        "." | ".." => "interface name is . or ..",
        _ if name.len() > 15 => "interface name is too long; interface name should be less than 16 characters",
        _ if name.contains(['/', ':']) || name.contains(char::is_whitespace) => {
            "interface name contains / or : or whitespace characters"
        }
        _ => return Ok(()),
    };
    Err(Error::new(Code::InvalidEnvironment, why).details(name))
}

/// `K=V;K=V`.
fn parse_args(text: &str) -> Result<HashMap<String, String>, Error> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            pair.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .ok_or_else(|| Error::new(Code::InvalidEnvironment, format!("CNI_ARGS: invalid pair {pair:?}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn environment(changes: &[(&'static str, &str)]) -> Environment {
        let mut all = vec![
            ("CNI_CONTAINERID", "c1".to_owned()),
            ("CNI_NETNS", "/run/netns/x".to_owned()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/opt/cni/bin:/x".to_owned()),
        ];
        for (name, value) in changes {
            all.retain(|(n, _)| n != name);
            all.push((name, (*value).to_owned()));
        }
        Environment::of(all)
    }

    const CONFIG: &[u8] = br#"{"cniVersion": "1.0.0", "name": "net", "type": "bridge"}"#;

    #[test]
    fn what_is_wrong_is_told_with_its_code() {
        let config = |text: &'static str| text.as_bytes();
        type Case<'a> = (&'a [(&'static str, &'a str)], &'a [u8], Code, &'a str);
        let cases: &[Case<'_>] = &[
            (&[("CNI_IFNAME", "")], CONFIG, Code::InvalidEnvironment, "CNI_IFNAME"),
            (
                &[("CNI_CONTAINERID", ""), ("CNI_NETNS", "")],
                CONFIG,
                Code::InvalidEnvironment,
                "CNI_CONTAINERID,CNI_NETNS",
            ),
            (&[("CNI_CONTAINERID", "../x")], CONFIG, Code::InvalidEnvironment, "containerID"),
            (&[("CNI_IFNAME", "much-too-long-name")], CONFIG, Code::InvalidEnvironment, "too long"),
            (&[("CNI_IFNAME", "a/b")], CONFIG, Code::InvalidEnvironment, "/ or :"),
            (&[("CNI_ARGS", "novalue")], CONFIG, Code::InvalidEnvironment, "CNI_ARGS"),
            (&[], config("{"), Code::Decoding, "decode"),
            (&[], config("[]"), Code::Decoding, "object"),
            (&[], config(r#"{"cniVersion": 1, "name": "x"}"#), Code::Decoding, "cniVersion"),
            (&[], config(r#"{"cniVersion": "9.0.0", "name": "x"}"#), Code::IncompatibleVersion, "incompatible"),
            (&[], config(r#"{"cniVersion": "1.0.0"}"#), Code::InvalidConfig, "network name"),
            (&[], config(r#"{"cniVersion": "1.0.0", "name": "../x"}"#), Code::InvalidConfig, "network name"),
        ];
        for (changes, input, code, part) in cases {
            let error = Request::parse(Command::Add, environment(changes), input).unwrap_err();
            assert_eq!(error.code, *code, "{error}");
            assert!(error.to_string().contains(part), "{error} does not say {part}");
        }
    }

    #[test]
    fn a_request_is_read_whole() {
        let request = Request::parse(Command::Add, environment(&[("CNI_ARGS", "IP=10.0.0.9;K=V")]), CONFIG).unwrap();
        assert_eq!(request.args["IP"], "10.0.0.9");
        assert_eq!(request.path.len(), 2);
        assert!(Request::parse(Command::Del, environment(&[("CNI_NETNS", "")]), CONFIG).unwrap().netns.is_none());
    }

    #[test]
    fn capabilities_are_read_as_containerd_writes_them() {
        let text = br#"{"name": "n", "runtimeConfig": {"portMappings": [{"HostPort": 1, "HostIP": "::"}]}}"#;
        let config = NetConfig::parse(text).unwrap();
        let mapping = &config.value["runtimeConfig"]["portMappings"][0];
        assert_eq!((&mapping["hostPort"], &mapping["hostIP"]), (&Value::from(1), &Value::from("::")));
    }

    #[test]
    fn newer_verbs_need_newer_versions() {
        for (command, version) in [(Command::Check, "0.3.1"), (Command::Gc, "1.0.0"), (Command::Status, "1.0.0")] {
            let input = format!(r#"{{"cniVersion": "{version}", "name": "x"}}"#);
            let error = Request::parse(command, environment(&[]), input.as_bytes()).unwrap_err();
            assert_eq!(error.code, Code::IncompatibleVersion);
        }
    }

    proptest! {
        #[test]
        fn any_input_is_an_answer_not_a_panic(input in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(Command::Add, environment(&[]), &input);
        }
    }
}
