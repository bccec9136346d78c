//! The program `kubelet`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match kubelet::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kubelet: {e:#}");
            ExitCode::FAILURE
        }
    }
}
