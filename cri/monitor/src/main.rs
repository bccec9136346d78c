//! gantry-monitor: see the library. Started by gantry-cri with its listening socket as standard input.

use std::path::PathBuf;
use std::process::ExitCode;

use gantry_monitor::daemon::{self, Settings};

const USAGE: &str = "usage: gantry-monitor --socket PATH --runtime PROGRAM --root FOLDER [--systemd-cgroup]
       gantry-monitor pause
       gantry-monitor namespaces <REQUEST

The parent of one pod's containers; gantry-cri starts it with the listening socket as standard input.
`pause` is the init of a pod's PID namespace: it only reaps.
`namespaces` makes a pod's namespaces inside a user namespace, as the JSON on standard input says.";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "gantry-monitor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let (mut socket, mut runtime, mut root, mut systemd) = (None, None, None, false);
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let slot = match argument.to_str() {
            Some("pause") => return Ok(daemon::pause()?),
            Some("namespaces") => return gantry_monitor::namespaces::make(std::io::stdin().lock()),
            Some("--help" | "-h") => {
                use std::io::Write;
                let _ = writeln!(std::io::stdout(), "{USAGE}");
                return Ok(());
            }
            Some("--systemd-cgroup") => {
                systemd = true;
                continue;
            }
            Some("--socket") => &mut socket,
            Some("--runtime") => &mut runtime,
            Some("--root") => &mut root,
            _ => anyhow::bail!("unknown argument {}\n{USAGE}", argument.display()),
        };
        *slot = Some(PathBuf::from(arguments.next().ok_or_else(|| anyhow::anyhow!("a value is missing\n{USAGE}"))?));
    }
    let missing = |name: &str| anyhow::anyhow!("--{name} is missing\n{USAGE}");
    daemon::run(Settings {
        socket: socket.ok_or_else(|| missing("socket"))?,
        runtime: runtime.ok_or_else(|| missing("runtime"))?,
        root: root.ok_or_else(|| missing("root"))?,
        systemd,
    })
}
