//! The program `kubelet`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let tool = kubelet::tool(&std::env::args_os().collect::<Vec<_>>());
    if let Some(result) = tool {
        return result.unwrap_or_else(|e| {
            eprintln!("kubelet: {e:#}");
            ExitCode::FAILURE
        });
    }
    match kubelet::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kubelet: {e:#}");
            ExitCode::FAILURE
        }
    }
}
