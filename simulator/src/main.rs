//! `cargo xtask sim`: runs seeds until one breaks a promise.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to the person who typed it")]

use std::process::ExitCode;

use tidings_simulator::run::run;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let from: u64 = args.next().and_then(|text| text.parse().ok()).unwrap_or(1);
    let count: u64 = args.next().and_then(|text| text.parse().ok()).unwrap_or(1);
    let trace = args.next().is_some();
    for seed in from..from + count {
        let outcome = run(seed, None, trace);
        if trace {
            println!("{}", outcome.options);
            for line in &outcome.trace {
                println!("{line}");
            }
        }
        if count < 50 || outcome.broken.is_some() {
            println!(
                "{seed}: {} steps {} epochs {} said {} generations {:?}",
                outcome.steps, outcome.epochs, outcome.said, outcome.generations, outcome.struck
            );
        }
        if let Some(broken) = outcome.broken {
            let again = run(seed, None, true);
            println!("{}", again.options);
            for line in again.trace.iter().rev().take(60).rev() {
                println!("{line}");
            }
            eprintln!("seed {seed}: {broken}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
