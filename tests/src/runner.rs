//! Runs cases in order on one node and reports them in libtest's format, skips counted with their reasons.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// What a case needs and does.
pub struct Case<C> {
    /// What a user would notice when it fails, as a name.
    pub name: &'static str,
    /// The test itself.
    pub run: fn(&C) -> Result<Verdict>,
}

/// How a case that did not fail ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It held.
    Passed,
    /// It could not be tried here, and why.
    Skipped(String),
}

/// Runs all cases whose name contains the first command-line word (all without one), calling `on_failure` after each
/// failure so that the node's logs can be kept. Prints libtest's closing line.
pub fn run<C>(context: &C, cases: &[Case<C>], on_failure: impl Fn(&C, &str)) -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen: Vec<_> =
        cases.iter().filter(|c| filters.is_empty() || filters.iter().any(|f| c.name.contains(f.as_str()))).collect();
    println!("\nrunning {} tests", chosen.len());
    let start = Instant::now();
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for case in &chosen {
        let begun = Instant::now();
        match (case.run)(context) {
            Ok(Verdict::Passed) => {
                passed += 1;
                println!("test {} ... ok ({:.1} s)", case.name, begun.elapsed().as_secs_f32());
            }
            Ok(Verdict::Skipped(why)) => {
                skipped += 1;
                println!("test {} ... ignored, {why}", case.name);
            }
            Err(error) => {
                println!("test {} ... FAILED ({:.1} s)", case.name, begun.elapsed().as_secs_f32());
                for cause in error.chain() {
                    println!("    {}", cause.to_string().replace('\n', "\n    "));
                }
                on_failure(context, case.name);
                failed.push(case.name);
            }
        }
    }
    if !failed.is_empty() {
        println!("\nfailures:\n    {}", failed.join("\n    "));
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed; {skipped} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
        cases.len() - chosen.len(),
        start.elapsed().as_secs_f32()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
