//! One log format for all daemons: events with fields, on standard error.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt, FilterFn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
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
    init_with(level, format, Vec::new())
}

/// As [`init`], with source files that say more than the rest: a pattern ([`matches`]) and the level of each.
///
/// # Errors
/// The filter does not parse.
pub fn init_with(level: &str, format: Format, files: Vec<(String, Level)>) -> Result<(), String> {
    let filter = filter(level)?;
    let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
    let registry = tracing_subscriber::registry();
    let begun = match files.iter().map(|(_, level)| *level).max() {
        None => registry.with(filter).with(lines(format)).try_init(),
        Some(most) => {
            let says = move |of: &Metadata<'_>| {
                let level = |file| files.iter().filter(|(p, _)| matches(p, file)).map(|(_, level)| *level).max();
                of.file().and_then(level).is_some_and(|level| *of.level() <= level)
            };
            let files = FilterFn::new(says).with_max_level_hint(most);
            registry.with(lines(format).with_filter(filter.or(files))).try_init()
        }
    };
    if begun.is_ok() {
        let _ = CHANGE.set(Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string())));
    }
    Ok(())
}

fn lines<S>(format: Format) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    }
}

/// Whether a source file (`kubelet/src/sync/worker.rs`) is meant by a pattern, by the rules of upstream's `vmodule`: without
/// a slash it is for the file's name without its ending (`worker`; a folder's `mod.rs` has the folder's name), with one for
/// the end of its path; `*` and `?` stand for other signs.
pub fn matches(pattern: &str, file: &str) -> bool {
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    let parts = pattern.matches('/').count() + 1;
    let from = stem.rmatch_indices('/').nth(parts - 1).map_or(0, |(at, _)| at + 1);
    is_like(pattern.as_bytes(), &stem.as_bytes()[from..])
}

fn is_like(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        // A star does not go over a slash, as with file names.
        Some((b'*', rest)) => {
            let most = text.iter().position(|c| *c == b'/').unwrap_or(text.len());
            (0..=most).any(|n| is_like(rest, &text[n..]))
        }
        Some((sign, rest)) => {
            text.split_first().is_some_and(|(c, text)| (*sign == b'?' || sign == c) && is_like(rest, text))
        }
    }
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
    fn patterns_mean_files_as_upstreams_do() {
        let worker = "kubelet/src/sync/worker.rs";
        for (pattern, file, want) in [
            ("worker", worker, true),
            ("work*", worker, true),
            ("w?rker", worker, true),
            ("work", worker, false),
            ("sync", worker, false),
            ("sync/worker", worker, true),
            ("s*/*", worker, true),
            ("probe/worker", worker, false),
            ("probe", "kubelet/src/probe/mod.rs", true),
            ("mod", "kubelet/src/probe/mod.rs", false),
            ("*", worker, true),
            ("a/b/c/d/e/worker", worker, false),
        ] {
            assert_eq!(matches(pattern, file), want, "{pattern} {file}");
        }
    }

    #[test]
    fn a_wrong_filter_is_an_error_that_quotes_it() {
        assert!(init("kubelet=loud", Format::Text).unwrap_err().contains("kubelet=loud"));
    }
}
