//! One log format for all daemons: events with fields, on standard error.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// How log events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line for programs.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("unknown log format {other:?}: want text or json")),
        }
    }
}

/// Starts logging for this process at `level`, which is a level (`info`) or a filter (`info,kubelet::pleg=debug`).
///
/// Libraries that log on every request are held at `warn` unless the filter names them. A second call changes nothing.
///
/// # Errors
/// The filter does not parse.
pub fn init(level: &str, format: Format) -> Result<(), String> {
    let filter = filter(level)?;
    let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
    let ansi = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = CHANGE.set(Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string())));
    }
    Ok(())
}

type Change = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// How the filter of the running log is replaced.
static CHANGE: OnceLock<Change> = OnceLock::new();

fn filter(level: &str) -> Result<EnvFilter, String> {
    let quiet = "hyper=warn,h2=warn,tower=warn,rustls=warn,kube_client=warn,tonic=warn";
    EnvFilter::try_new(format!("{quiet},{level}")).map_err(|e| format!("log level {level:?}: {e}"))
}

/// Changes the level (or filter) of the running log.
///
/// # Errors
/// The filter does not parse, or [`init`] was not called before.
pub fn set_level(level: &str) -> Result<(), String> {
    let change = CHANGE.get().ok_or("this process has no log of its own")?;
    change(filter(level)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_named_as_upstream_names_them() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("text".parse(), Ok(Format::Text));
        assert!("xml".parse::<Format>().unwrap_err().contains("xml"));
    }

    #[test]
    fn a_wrong_filter_is_an_error_that_quotes_it() {
        assert!(init("kubelet=loud", Format::Text).unwrap_err().contains("kubelet=loud"));
    }
}
