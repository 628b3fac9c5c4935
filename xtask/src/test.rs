//! `cargo xtask test`: everything that CI runs, in one order, on a clean machine as on a laptop.
//!
//! The quick steps come first; the first failure ends the run. Tests find the services in the variables
//! `TIDINGS_TEST_KAFKA`, `TIDINGS_TEST_REDIS` and `TIDINGS_TEST_CLICKHOUSE`. Where all three are set already, those are
//! used; otherwise real ones are started in a folder of their own, fresh, and ended and wiped however the run ends.

#![expect(clippy::disallowed_methods, reason = "steps are timed")]

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::services::{self, Endpoints, Services};
use crate::workspace::{Workspace, cargo, run};
use crate::{Refusal, build, packages, tidy};

/// In the order in which they run.
const STEPS: &[Step] = &[
    Step { name: "tidy", run: |_| tidy::check() },
    Step { name: "fmt", run: |_| run(cargo().args(["fmt", "--all", "--check"])) },
    Step {
        name: "clippy",
        run: |_| run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])),
    },
    Step {
        name: "doc",
        run: |_| run(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings")),
    },
    Step { name: SERVICES, run: Run::bring_up },
    Step {
        name: TEST,
        run: |test| {
            let mut command = cargo();
            command.args(["test", "--workspace"]);
            if let Some(endpoints) = &test.endpoints {
                command.envs(endpoints.test_variables());
            }
            run(&mut command)
        },
    },
    Step {
        name: "sim",
        run: |_| {
            let sim =
                |arguments: &[&str]| -> Result<()> { run(build::simulator(build::Profile::Dev)?.args(arguments)) };
            // The seeds are the commit's: it passes or fails each time, and the next commit meets others.
            sim(&["--decide", "--of-commit", "--seeds", "250"])?;
            // Of whole worlds about one in a thousand still finds what is not mended: the same ones each time.
            sim(&["--from", "50300", "--seeds", "60"])?;
            sim(&["--from", "50300", "--seeds", "3", "--meta"])?;
            // Every order of up to two acts; of three it takes an hour (`cargo xtask sim --interleave`).
            sim(&["--interleave", "2"])?;
            run(build::simulator(build::Profile::Dev)?.arg("--bugs"))
        },
    },
    Step { name: "deny", run: |_| deny() },
];
const SERVICES: &str = "services";
const TEST: &str = "test";

struct Step {
    name: &'static str,
    run: fn(&mut Run) -> Result<()>,
}

/// One run of the steps.
struct Run {
    services: Services,
    /// Of the services that this run started.
    endpoints: Option<Endpoints>,
}

/// `cargo xtask test [--only STEP]`
pub(crate) fn command(arguments: &[&str]) -> Result<ExitCode> {
    let only = match arguments {
        [] => None,
        ["--only", name] => Some(step_named(name)?),
        _ => return Err(Refusal::Usage("test: takes nothing but `--only STEP`".to_owned()).into()),
    };
    let workspace = Workspace::load()?;
    let folder = workspace.target.join("services/test");
    let mut test = Run { services: Services::new(&workspace, folder.clone()), endpoints: None };
    if only.is_none_or(|step| step.name != "tidy" && step.name != "fmt") {
        packages::ensure(packages::BUILD, "building tidings")?;
    }
    components()?;
    Services::new(&workspace, folder).end_on_signal()?;

    let started = Instant::now();
    let mut timings = Vec::new();
    let outcome = STEPS
        .iter()
        // Tests need the services; asked for alone they bring them along.
        .filter(|step| only.is_none_or(|only| step.name == only.name || only.name == TEST && step.name == SERVICES))
        .try_for_each(|step| timed(step, &mut test, &mut timings));
    let down = test.take_down();

    for (name, took) in &timings {
        eprintln!("  {name:<10} {:>7.1} s", took.as_secs_f64());
    }
    eprintln!("  {:<10} {:>7.1} s", "all", started.elapsed().as_secs_f64());
    outcome.and(down)?;
    Ok(ExitCode::SUCCESS)
}

fn step_named(name: &str) -> Result<&'static Step> {
    let names = || STEPS.iter().map(|step| step.name).collect::<Vec<_>>().join(", ");
    let unknown = || Refusal::Usage(format!("test: unknown step `{name}`; there are {}", names()));
    Ok(STEPS.iter().find(|step| step.name == name).ok_or_else(unknown)?)
}

fn timed(step: &Step, test: &mut Run, timings: &mut Vec<(&'static str, Duration)>) -> Result<()> {
    eprintln!("== {}", step.name);
    let started = Instant::now();
    let result = (step.run)(test);
    timings.push((step.name, started.elapsed()));
    result.with_context(|| format!("step {} failed; again alone: cargo xtask test --only {}", step.name, step.name))
}

impl Run {
    fn bring_up(&mut self) -> Result<()> {
        if services::named_by_environment() {
            eprintln!("using the services that the environment names");
            return Ok(());
        }
        // A run that was killed leaves services with old data behind.
        self.services.down(true)?;
        self.endpoints = Some(self.services.up()?);
        Ok(())
    }

    fn take_down(&self) -> Result<()> {
        self.services.down(true)
    }
}

/// A toolchain of the minimal profile lacks these two.
fn components() -> Result<()> {
    for component in ["rustfmt", "clippy"] {
        let subcommand = component.trim_start_matches("rust");
        let present = cargo()
            .args([subcommand, "--version"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if present {
            continue;
        }
        if !packages::on_path("rustup") {
            return Err(Refusal::Unavailable(format!("this toolchain has no {component}; install it")).into());
        }
        run(Command::new("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}

fn deny() -> Result<()> {
    let present = cargo().args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !present.is_ok_and(|status| status.success()) {
        eprintln!("skipped: cargo-deny is not installed (`cargo install --locked cargo-deny`)");
        return Ok(());
    }
    // Not `advisories`: its database comes from the network and changes by itself, so a green commit would turn red.
    run(cargo().args(["deny", "check", "bans", "licenses", "sources"]))
}
