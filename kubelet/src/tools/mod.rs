//! What people run: `kubelet explain pod NAME` and `kubelet check`.

mod check;
mod explain;
mod host;
mod local;
mod reasons;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::config::Flags;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Tells what the node holds for a pod, and why the pod is in its state.
#[derive(Debug, Parser)]
#[command(name = "kubelet explain", after_help = AFTER)]
struct ExplainArgs {
    /// What to explain
    #[arg(value_parser = ["pod"])]
    kind: String,
    /// Name of the pod, or NAMESPACE/NAME
    name: String,
    /// Namespace of the pod
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// How to write it
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// The running kubelet's own flags (--config, --root-dir, ...), after --
    #[arg(last = true)]
    kubelet: Vec<OsString>,
}

const AFTER: &str = "It asks the running kubelet (by its socket, as root), the container runtime and the kernel; a kubelet that \
                     does not run leaves out what only it knows. Flags of the kubelet that differ from the usual ones follow --, \
                     as in: kubelet explain pod web -- --config /etc/kubelet.yaml --root-dir /data/kubelet";

/// Runs one of the tools, if the command line names one.
pub(crate) fn run(args: &[OsString]) -> Option<Result<ExitCode>> {
    let word = args.get(1)?.to_str()?;
    match word {
        "explain" => Some(explain(args)),
        "check" => Some(check(args)),
        _ => None,
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")
}

fn explain(args: &[OsString]) -> Result<ExitCode> {
    let args = ExplainArgs::try_parse_from(&args[1..]).unwrap_or_else(|e| e.exit());
    debug_assert_eq!(args.kind, "pod");
    let flags =
        Flags::read(std::iter::once(OsString::from("kubelet")).chain(args.kubelet)).unwrap_or_else(|e| e.exit());
    let (namespace, name) = args.name.split_once('/').unwrap_or((&args.namespace, &args.name));
    let config = usual(&flags)?;
    let found = runtime()?.block_on(explain::explain(&flags, &config, namespace, name))?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&found)?),
        Output::Text => print!("{}", explain::text(&found)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration of the flags; where they name none, that of the place where it usually is.
fn usual(flags: &Flags) -> Result<crate::config::KubeletConfiguration> {
    let mut flags = flags.clone();
    if flags.config.is_none() {
        let places = ["/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet.yaml"];
        flags.config = places.iter().map(std::path::PathBuf::from).find(|p| p.exists());
    }
    Ok(flags.load()?.config)
}

fn check(args: &[OsString]) -> Result<ExitCode> {
    // The output is the only flag of its own; all others are the kubelet's.
    let mut output = Output::Text;
    let mut rest = vec![OsString::from("kubelet")];
    let mut words = args[2..].iter();
    while let Some(word) = words.next() {
        let text = word.to_str().unwrap_or_default();
        let value = match text {
            "--output" | "-o" => words.next().and_then(|w| w.to_str()).unwrap_or_default(),
            _ => match text.strip_prefix("--output=") {
                Some(value) => value,
                None => {
                    rest.push(word.clone());
                    continue;
                }
            },
        };
        output = Output::from_str(value, true).map_err(|e| anyhow::anyhow!("--output: {e}: text or json"))?;
    }
    if rest.iter().any(|w| w == "--help" || w == "-h") {
        println!(
            "Checks the kubelet's configuration and whether this machine can run pods.\n\nUsage: kubelet check [--output text|json] [the \
             kubelet's flags, such as --config FILE and --kubeconfig FILE]\n\nIt ends with 1 when something keeps the kubelet from \
             working."
        );
        return Ok(ExitCode::SUCCESS);
    }
    let flags = Flags::read(rest).unwrap_or_else(|e| e.exit());
    let found = runtime()?.block_on(check::check(&flags));
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&check::json(&found))?),
        Output::Text => print!("{}", check::text(&found)),
    }
    Ok(if found.iter().any(|f| f.state == check::State::Fail) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
