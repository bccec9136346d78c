//! The program behind every plugin's name.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::dispatch::main(std::env::args_os().collect())
}
