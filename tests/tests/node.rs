//! A pod's life on a whole node, with real parts: kubectl, a registry, the kernel.

use std::process::ExitCode;

use gantry_tests::node::Node;
use gantry_tests::runner;

#[path = "node/admission.rs"]
mod admission;
#[path = "node/bad_input.rs"]
mod bad_input;
#[path = "node/churn.rs"]
mod churn;
#[path = "node/crash.rs"]
mod crash;
#[path = "node/csi.rs"]
mod csi;
#[path = "node/debug.rs"]
mod debug;
#[path = "node/eviction.rs"]
mod eviction;
#[path = "node/images.rs"]
mod images;
#[path = "node/kubectl.rs"]
mod kubectl;
#[path = "node/leaks.rs"]
mod leaks;
#[path = "node/lifecycle.rs"]
mod lifecycle;
#[path = "node/network.rs"]
mod network;
#[path = "node/pod.rs"]
mod pod;
#[path = "node/projected.rs"]
mod projected;
#[path = "node/resize.rs"]
mod resize;
#[path = "node/server.rs"]
mod server;
#[path = "node/users.rs"]
mod users;
#[path = "node/wrong.rs"]
mod wrong;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((csi::PROGRAM, rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        // A process of its own for the tests' CSI driver.
        return match gantry_test_csi::main(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("the CSI driver ended: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if !nix::unistd::geteuid().is_root() {
        println!("\nrunning 1 tests\ntest node ... ignored, needs root");
        println!("\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n");
        return ExitCode::SUCCESS;
    }
    let node = match Node::start() {
        Ok(node) => node,
        Err(error) => {
            println!("\nrunning 1 tests\ntest the_node_comes_up ... FAILED\n    {error:?}");
            println!("\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n");
            return ExitCode::FAILURE;
        }
    };
    let foreign = gantry_tests::node::runtime() != gantry_tests::node::GANTRY;
    let groups = [
        pod::cases(),
        users::cases(),
        network::cases(),
        lifecycle::cases(),
        admission::cases(),
        debug::cases(),
        csi::cases(),
        resize::cases(),
        server::cases(),
        kubectl::cases(),
        images::cases(),
        projected::cases(),
        bad_input::cases(),
        wrong::cases(),
        eviction::cases(),
        crash::cases(),
        churn::cases(),
        leaks::cases(),
    ];
    // What is about our own runtime's insides cannot be tried on another one.
    let own = |name: &str| {
        ["bad_input::", "crash::", "leaks::"].iter().any(|g| name.starts_with(g)) || name.contains("corrupt_layer")
    };
    let cases: Vec<_> = groups.into_iter().flatten().filter(|c| !foreign || !own(c.name)).collect();
    let code = runner::run(&node, &cases, |node, _| println!("{}", node.logs()));
    match node.end() {
        Ok(left) if left.is_empty() => code,
        Ok(left) => {
            println!("left on the host:\n    {}", left.join("\n    "));
            println!("\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("the node did not go down: {error:?}");
            println!("\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n");
            ExitCode::FAILURE
        }
    }
}
