//! gantry-run: an OCI runtime with runc's command line.

fn main() {
    std::process::exit(runtime::cli::main());
}
