//! The project's own commands, run as `cargo xtask …`: one word for each thing that a person or CI does here.
//!
//! This crate is what installs the system packages that the rest needs, so it needs none itself. Data goes to stdout,
//! talk to stderr. Exit codes are those of `tidings`: 0 ok, 1 findings, 64 usage, 69 something is missing that we may
//! not install.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to the person who typed it")]

mod build;
mod kill;
mod packages;
mod services;
mod test;
mod tidy;
mod workspace;

use std::fmt;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo [ARGS]            build tidings and run `tidings demo ARGS`: everything embedded, a page in the browser
  test [--only STEP]     everything that CI runs: tidy fmt clippy doc services test sim deny
  services up|down|kill NAME|start NAME|status [--dir DIR] [--wipe]
                         real Kafka, Redis and ClickHouse on free ports, without a container engine
  bench [NAME] [--json]  the benchmarks, in release, with services of their own where none are named or up
  tidy                   the house rules that are code
  sim [--seed S] [--seeds N] [--minutes M] [--meta] [--bugs] [--exhaustive [RUNS]]
                         the seeded simulator: the decide stage under every fault, in release
  kill [--fault NAME] [--layout 1x2|2x1] [--rounds N] [--seed S] [--events N] [--report FILE] [--dir DIR]
                         real processes on real services, killed, frozen, cut off and filled up, in rounds";

/// An error that decides the exit code; all others exit with 1.
#[derive(Debug)]
enum Refusal {
    /// The command line makes no sense.
    Usage(String),
    /// Something is missing that we may not install ourselves.
    Unavailable(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Usage(message) => write!(f, "{message}\n\n{USAGE}"),
            Refusal::Unavailable(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Refusal {}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            match error.downcast_ref::<Refusal>() {
                Some(Refusal::Usage(_)) => ExitCode::from(64),
                Some(Refusal::Unavailable(_)) => ExitCode::from(69),
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let Some((command, rest)) = arguments.split_first() else {
        return Err(Refusal::Usage("no command given".to_owned()).into());
    };
    match *command {
        "demo" => build::demo(rest),
        "bench" => build::bench(rest),
        "test" => test::command(rest),
        "services" => services::command(rest),
        "tidy" => tidy::command(rest),
        "sim" => build::sim(rest),
        "kill" => kill::command(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        unknown => Err(Refusal::Usage(format!("unknown command `{unknown}`")).into()),
    }
}
