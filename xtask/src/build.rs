//! `demo` and `bench`: build one program, then become it.
//!
//! Becoming it (exec) instead of starting it means that Ctrl-C, the terminal and the exit code are the program's own.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::packages;
use crate::services::{self, Services};
use crate::workspace::{Workspace, cargo, run, shown};

/// `cargo xtask demo [ARGS]`
pub(crate) fn demo(arguments: &[&str]) -> Result<ExitCode> {
    packages::ensure(packages::BUILD, "building tidings")?;
    // The dev profile: dependencies are optimised there anyway (`opt-level = 1`), the demo's few hundred events are
    // nothing for it, and a clean build takes 2 to 3 minutes on two cores where release takes 6.
    run(cargo().args(["build", "--package", "tidings-pipeline", "--bin", "tidings"]))?;
    let binary = Workspace::load()?.target.join("debug/tidings");
    become_it(Command::new(binary).arg("demo").args(arguments))
}

/// `cargo xtask bench [NAME] [--json]`
pub(crate) fn bench(arguments: &[&str]) -> Result<ExitCode> {
    packages::ensure(packages::BUILD, "building tidings")?;
    run(cargo().args(["build", "--release", "--package", "tidings-benches"]))?;
    let workspace = Workspace::load()?;
    let mut command = Command::new(workspace.target.join("release/tidings-benches"));
    if !services::named_by_environment() {
        // Not started here: a bench shares the machine with what it finds, and must not be the one to warm it up.
        match Services::new(&workspace, workspace.target.join("services")).running()? {
            Some(endpoints) => drop(command.envs(endpoints.test_variables())),
            None => {
                eprintln!("without Kafka, Redis and ClickHouse; for benches that need them: cargo xtask services up")
            }
        }
    }
    become_it(command.args(arguments))
}

fn become_it(command: &mut Command) -> Result<ExitCode> {
    Err(command.exec()).with_context(|| format!("cannot start `{}`", shown(command)))
}
