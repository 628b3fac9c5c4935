//! `demo`, `bench` and `sim`: build one program, then become it.
//!
//! Becoming it (exec) instead of starting it means that Ctrl-C, the terminal and the exit code are the program's own.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
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

/// Benches that measure real services; without a name all are run.
const WITH_SERVICES: [&str; 5] = ["decide_kafka", "record", "first_send", "p0_latency", PEERS];

/// The comparison; it runs only where it is named, because it needs Maven and a Java compiler.
const PEERS: &str = "peers";

/// `cargo xtask bench [NAME] [--json]`
pub(crate) fn bench(arguments: &[&str]) -> Result<ExitCode> {
    packages::ensure(packages::BUILD, "building tidings")?;
    let packages = ["--package", "tidings-benches", "--package", "tidings-pipeline"];
    run(cargo().args(["build", "--release", "--bins"]).args(packages))?;
    let workspace = Workspace::load()?;
    let mut command = Command::new(workspace.target.join("release/tidings-benches"));
    command.args(arguments);
    let named = arguments.iter().find(|argument| !argument.starts_with("--"));
    if named == Some(&PEERS) {
        command.env("TIDINGS_PEERS_FLINK", flink(&workspace)?);
    }
    if services::named_by_environment() || named.is_some_and(|name| !WITH_SERVICES.contains(name)) {
        return become_it(&mut command);
    }
    // Services that somebody keeps running are as good, and warm.
    if let Some(endpoints) = Services::new(&workspace, workspace.target.join("services")).running()? {
        return become_it(command.envs(endpoints.test_variables()));
    }
    let folder = workspace.target.join("services/bench");
    let services = Services::new(&workspace, folder.clone());
    Services::new(&workspace, folder).end_on_signal()?;
    // A run that was killed leaves services with old data behind.
    services.down(true)?;
    let measured = services.up().and_then(|endpoints| run(command.envs(endpoints.test_variables())));
    let down = services.down(true);
    measured.and(down)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds Flink's job of the comparison; says where it lies.
fn flink(workspace: &Workspace) -> Result<PathBuf> {
    packages::ensure(packages::PEERS, "building Flink's job")?;
    let job = workspace.root.join("benches/peers/flink");
    let built = workspace.target.join("peers/flink");
    let into = format!("-Dbuilt={}", built.display());
    run(Command::new("mvn")
        .args(["--quiet", "--batch-mode", &into, "package"])
        .current_dir(job)
        .stdout(std::io::stderr()))?;
    Ok(built)
}

/// `cargo xtask sim …`
pub(crate) fn sim(arguments: &[&str]) -> Result<ExitCode> {
    become_it(simulator(Profile::Release)?.args(arguments))
}

/// How a program is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As tests are: most of it lies there when they ran.
    Dev,
    /// Minutes more to build, and several times as fast: for long runs.
    Release,
}

/// The simulator, built. Its deliberate bugs are built in and asleep, so that what proves that it finds
/// them is the same program.
pub(crate) fn simulator(profile: Profile) -> Result<Command> {
    packages::ensure(packages::BUILD, "building tidings")?;
    let (flag, folder): (&[&str], _) = match profile {
        Profile::Dev => (&[], "debug"),
        Profile::Release => (&["--release"], "release"),
    };
    let features = ["--features", "deliberate-bugs"];
    run(cargo().args(["build", "--package", "tidings-simulator"]).args(features).args(flag))?;
    let mut command = Command::new(Workspace::load()?.target.join(folder).join("tidings-simulator"));
    // In full: seeds are drawn from it, and how short a short one is depends on the clone.
    let commit = Command::new("git").args(["rev-parse", "HEAD"]).output();
    if let Some(commit) = commit.ok().filter(|commit| commit.status.success()) {
        command.env("TIDINGS_COMMIT", String::from_utf8_lossy(&commit.stdout).trim());
    }
    Ok(command)
}

fn become_it(command: &mut Command) -> Result<ExitCode> {
    Err(command.exec()).with_context(|| format!("cannot start `{}`", shown(command)))
}
