//! From the program's name and environment to a plugin's verb, and from its outcome to standard output.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::afterwards;
use crate::install;
use crate::plugins::{self, Plugin};
use crate::spec::{Code, Command, Environment, Error, LATEST, Request, Result, SUPPORTED};

/// Configurations are small; more than this is no configuration.
const INPUT_LIMIT: u64 = 4 << 20;

const HELP: &str = "gantry-cni: CNI plugins in one program.

Runtimes call it under a plugin's name by the CNI protocol. By its own name:
  gantry-cni install DIR     link every plugin's name in DIR to this program
  gantry-cni --list          print the plugins' names
  gantry-cni --version       print the version
";

/// Runs the plugin that the program was called as. Returns the exit code: 0, or 1 after an error object.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let called = args.first().map(|a| Path::new(a).file_name().unwrap_or_default().to_string_lossy().into_owned());
    let name = called.unwrap_or_default();
    match plugins::find(&name) {
        Some(plugin) => as_plugin(&name, plugin, Environment::of_process()),
        None => by_itself(&args),
    }
}

fn by_itself(args: &[OsString]) -> ExitCode {
    let words: Vec<_> = args.iter().skip(1).map(|a| a.to_string_lossy()).collect();
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.as_slice() {
        ["--version" | "-V"] => println!("gantry-cni {}", env!("CARGO_PKG_VERSION")),
        ["--list"] => plugins::names().for_each(|n| println!("{n}")),
        ["install", folder] => match install::into(Path::new(folder)) {
            Ok(count) => println!("{count} plugins in {folder}"),
            Err(error) => {
                eprintln!("gantry-cni: {error}");
                return ExitCode::FAILURE;
            }
        },
        ["--help" | "-h"] => print!("{HELP}"),
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn as_plugin(name: &str, plugin: &dyn Plugin, environment: Environment) -> ExitCode {
    let mut version = LATEST.to_string();
    let answer = match Request::command(&environment) {
        Ok(None) => {
            let spoken = SUPPORTED.join(", ");
            eprintln!(
                "CNI {name} plugin of Gantry {}\nCNI protocol versions supported: {spoken}",
                env!("CARGO_PKG_VERSION")
            );
            return ExitCode::SUCCESS;
        }
        Ok(Some(command)) => input().and_then(|input| {
            if let Some(asked) =
                serde_json::from_slice::<Value>(&input).ok().and_then(|v| v["cniVersion"].as_str().map(str::to_owned))
            {
                version = asked;
            }
            if command == Command::Del {
                afterwards::begin();
            }
            run(plugin, command, environment, &input)
        }),
        Err(error) => Err(error),
    };
    let (text, code) = match answer {
        Ok(None) => (None, ExitCode::SUCCESS),
        Ok(Some(value)) => (Some(value), ExitCode::SUCCESS),
        Err(error) => (Some(error.to_value(&version)), ExitCode::FAILURE),
    };
    let mut out = std::io::stdout();
    let told = text.map_or(Ok(()), |text| writeln!(out, "{text}").and_then(|()| out.flush()));
    afterwards::finish();
    if told.is_ok() { code } else { ExitCode::FAILURE }
}

fn input() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(INPUT_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::new(Code::Io, format!("read the network configuration: {e}")))?;
    if bytes.len() as u64 > INPUT_LIMIT {
        return Err(Error::new(Code::Decoding, "the network configuration is larger than 4 MiB"));
    }
    Ok(bytes)
}

/// Does one verb of a plugin.
///
/// # Errors
/// The request is wrong or the plugin fails.
pub fn run(plugin: &dyn Plugin, command: Command, environment: Environment, input: &[u8]) -> Result<Option<Value>> {
    if command == Command::Version {
        return Ok(Some(json!({"cniVersion": LATEST.to_string(), "supportedVersions": SUPPORTED})));
    }
    let request = Request::parse(command, environment, input)?;
    match command {
        Command::Add => {
            let version = request.config.version;
            plugin.add(&request).map(|result| Some(result.to_value(version)))
        }
        Command::Del => plugin.del(&request).map(|()| None),
        Command::Check => {
            if request.config.previous.is_none() && plugin.needs_previous() {
                return Err(Error::config("required prevResult missing"));
            }
            plugin.check(&request).map(|()| None)
        }
        Command::Status => plugin.status(&request).map(|()| None),
        Command::Gc => plugin.gc(&request).map(|()| None),
        Command::Version => Ok(None),
    }
}
