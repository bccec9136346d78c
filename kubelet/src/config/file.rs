//! From files and flags to one configuration: drop-ins merged, zeros replaced by defaults, every value checked.
//!
//! An unknown field is left out and named in a warning, as upstream does since its strict reading gave way to a lenient one:
//! a file for a newer kubelet must not keep a node down. So is a known field that changes nothing here, so that nobody
//! believes in a setting that is not there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::fields::{API_VERSION, KIND, KubeletConfiguration};
use super::{check, effect, gates, settings};

/// Reads YAML as Kubernetes does: only `true` and `false` are booleans (`y` is a letter).
///
/// # Errors
/// It is not YAML.
pub(crate) fn yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
}

/// A configuration and what its author should know.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What is in effect.
    pub(crate) config: KubeletConfiguration,
    /// Fields that were set and change nothing, each with the reason.
    pub(crate) idle: Vec<(String, String)>,
}

/// Fields whose zero (`0`, `0s`, an empty text) stands for the default, as it does upstream; kubeadm writes such files.
const ZERO_IS_DEFAULT: &[&str] = &[
    "syncFrequency",
    "fileCheckFrequency",
    "httpCheckFrequency",
    "address",
    "port",
    "authentication.webhook.cacheTTL",
    "authorization.mode",
    "authorization.webhook.cacheAuthorizedTTL",
    "authorization.webhook.cacheUnauthorizedTTL",
    "registryBurst",
    "eventBurst",
    "healthzBindAddress",
    "streamingConnectionIdleTimeout",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "nodeLeaseDurationSeconds",
    "imageMinimumGCAge",
    "volumeStatsAggPeriod",
    "cgroupRoot",
    "cgroupDriver",
    "cpuManagerPolicy",
    "cpuManagerReconcilePeriod",
    "memoryManagerPolicy",
    "topologyManagerPolicy",
    "topologyManagerScope",
    "runtimeRequestTimeout",
    "hairpinMode",
    "maxPods",
    "maxOpenFiles",
    "contentType",
    "kubeAPIBurst",
    "evictionPressureTransitionPeriod",
    "containerLogMaxSize",
    "configMapAndSecretChangeDetectionStrategy",
    "volumePluginDir",
    "memoryReservationPolicy",
    "containerRuntimeEndpoint",
    "podLogsDir",
    "imagePullCredentialsVerificationPolicy",
    "logging.format",
];

/// Reads the file, the drop-ins of a folder over it, and flags over both.
///
/// # Errors
/// A file cannot be read, is not YAML, has an unknown field or a value that a field cannot have; it names the field.
pub(crate) fn load(file: Option<&Path>, drop_ins: Option<&Path>, said: &[(String, String)]) -> Result<Loaded> {
    let mut all = Map::new();
    let (mut sources, mut unknown) = (Vec::new(), Vec::new());
    for path in file.map(Path::to_path_buf).into_iter().chain(match drop_ins {
        Some(folder) => {
            configs(folder).with_context(|| format!("read the configuration folder {}", folder.display()))?
        }
        None => Vec::new(),
    }) {
        let what = || format!("kubelet configuration {}", path.display());
        let text = std::fs::read_to_string(&path).with_context(|| format!("read the {}", what()))?;
        let (fields, strange) = read(&text).with_context(what)?;
        let why = format!("{} has this field, which this kubelet does not know", path.display());
        unknown.extend(strange.into_iter().map(|field| (field, why.clone())));
        merge(&mut all, fields);
        sources.push(path.display().to_string());
    }
    settings::apply(said, &mut all)?;
    let mut loaded = finish(all).with_context(|| match sources.as_slice() {
        [] => "kubelet configuration from flags".to_owned(),
        some => format!("kubelet configuration {}", some.join(", ")),
    })?;
    loaded.idle.extend(unknown);
    Ok(loaded)
}

/// The drop-ins of a folder and the folders in it, sorted by name.
fn configs(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            out.extend(configs(&path)?);
        } else if path.extension().is_some_and(|e| e == "conf") {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

/// What a file alone makes of the configuration.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzzed(text: &str) -> Result<Loaded> {
    finish(read(text)?.0)
}

/// One file's fields, and those of them that nobody knows.
fn read(text: &str) -> Result<(Map<String, Value>, Vec<String>)> {
    let value: Value = yaml(text).context("not valid YAML")?;
    let Value::Object(mut fields) = value else { bail!("it is not a mapping of fields to values") };
    let of = |field: &str| fields.get(field).and_then(Value::as_str).unwrap_or_default();
    if of("apiVersion") != API_VERSION || of("kind") != KIND {
        bail!("it is {:?} {:?}, not {API_VERSION} {KIND}", of("apiVersion"), of("kind"));
    }
    let strange = take_unknown(&mut fields);
    // Checked by itself, so that the error names this file.
    finish(fields.clone())?;
    Ok((fields, strange))
}

/// Takes fields out that the configuration does not have, wherever they are; gives their paths.
fn take_unknown(fields: &mut Map<String, Value>) -> Vec<String> {
    let mut out = Vec::new();
    // Bounded by what there is: each turn takes one out.
    while let Err(e) = serde_path_to_error::deserialize::<_, KubeletConfiguration>(Value::Object(fields.clone())) {
        let (path, text) = (e.path().clone(), e.inner().to_string());
        let name = text.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        let segments: Vec<&Segment> = path.iter().collect();
        let Some(name) = name.filter(|name| take(fields, &segments, name)) else { break };
        // The path may end with the field's own name, or with what it is in.
        let above = path.to_string();
        let own = above == name || above.ends_with(&format!(".{name}"));
        out.push(match above.as_str() {
            "." => name.to_owned(),
            _ if own => above,
            _ => format!("{above}.{name}"),
        });
    }
    out
}

/// Takes a field out of the object that a path leads to, or to whose field it leads.
fn take(fields: &mut Map<String, Value>, path: &[&Segment], name: &str) -> bool {
    let [Segment::Map { key }, rest @ ..] = path else { return fields.remove(name).is_some() };
    if rest.is_empty() && key == name {
        return fields.remove(name).is_some();
    }
    let (mut at, mut rest) = (fields.get_mut(key), rest);
    while let Some(Value::Array(list)) = at {
        let [Segment::Seq { index }, further @ ..] = rest else { return false };
        (at, rest) = (list.get_mut(*index), further);
    }
    match at {
        Some(Value::Object(inner)) => take(inner, rest, name),
        _ => false,
    }
}

/// A later file over an earlier one: objects are joined, everything else is replaced, null means the default.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (_, Value::Null) => {
                into.remove(&key);
            }
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Number(n) => n.as_f64() == Some(0.0),
        _ => false,
    }
}

fn without_nulls(fields: &mut Map<String, Value>) {
    fields.retain(|_, v| !v.is_null());
    fields.values_mut().filter_map(Value::as_object_mut).for_each(without_nulls);
}

fn drop_zeros(fields: &mut Map<String, Value>) {
    for path in ZERO_IS_DEFAULT {
        let (folders, last) = path.rsplit_once('.').unwrap_or(("", path));
        let inner = folders
            .split('.')
            .filter(|f| !f.is_empty())
            .try_fold(&mut *fields, |at, part| at.get_mut(part).and_then(Value::as_object_mut));
        if let Some(inner) = inner
            && inner.get(last).is_some_and(is_zero)
        {
            inner.remove(last);
        }
    }
}

/// Fields to a configuration: defaults, checks, and what has no effect.
fn finish(mut fields: Map<String, Value>) -> Result<Loaded> {
    without_nulls(&mut fields);
    drop_zeros(&mut fields);
    let set = fields.clone();
    let mut config: KubeletConfiguration = serde_path_to_error::deserialize(Value::Object(fields)).map_err(|e| {
        let path = e.path().to_string();
        let why = e.into_inner().to_string();
        if path == "." { anyhow::anyhow!(why) } else { anyhow::anyhow!("field {path}: {why}") }
    })?;
    // A file that says how often to look, but not how often to tell, means both.
    if set.contains_key("nodeStatusUpdateFrequency") && !set.contains_key("nodeStatusReportFrequency") {
        config.node_status_report_frequency = config.node_status_update_frequency;
    }
    if config.merge_default_eviction_settings {
        for (signal, threshold) in KubeletConfiguration::default().eviction_hard {
            config.eviction_hard.entry(signal).or_insert(threshold);
        }
    }
    if config.pod_pids_limit < 0 {
        config.pod_pids_limit = -1;
    }
    check::all(&config)?;
    let defaults = serde_json::to_value(KubeletConfiguration::default()).context("encode the defaults")?;
    let now = serde_json::to_value(&config).context("encode the configuration")?;
    let mut idle: Vec<(String, String)> = Vec::new();
    let set = Value::Object(set);
    for (field, why) in effect::none(&config.feature_gates) {
        let own = |of| effect::at(of, field);
        let parts = field.contains('.') && own(&set).is_some_and(effect::is_empty);
        if own(&set).is_some() && !parts && own(&now) != own(&defaults) {
            idle.push((field.to_owned(), why.to_owned()));
        }
    }
    for gate in gates::check(&config.feature_gates)? {
        idle.push((format!("featureGates.{gate}"), "what this kubelet can do needs no gate".to_owned()));
    }
    Ok(Loaded { config, idle })
}

/// As it is shown: without what was never set.
pub(crate) fn shown(config: &KubeletConfiguration) -> Value {
    let mut value = serde_json::to_value(config).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        without_nulls(fields);
    }
    value
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
