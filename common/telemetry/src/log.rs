//! One log format for all daemons: events with fields, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

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
    let quiet = "hyper=warn,h2=warn,tower=warn,rustls=warn,kube_client=warn,tonic=warn";
    let filter = EnvFilter::try_new(format!("{quiet},{level}")).map_err(|e| format!("log level {level:?}: {e}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Text => builder.try_init().ok(),
        Format::Json => builder.json().flatten_event(true).try_init().ok(),
    };
    Ok(())
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
