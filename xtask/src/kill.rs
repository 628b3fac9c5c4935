//! `cargo xtask kill`: rounds of one fault each, on real processes and on services of their own.
//!
//! A round is a program (`pipeline/tests/kill`), because it needs clients of Kafka and ClickHouse, and this crate
//! needs no system library. It is given a fault and a seed, kills and starts services through `cargo xtask services`,
//! and ends with 0 and one line of JSON if all that must hold held. Rounds go through the faults in turn, so that a
//! run that is interrupted has tried all of them. The report is written anew after each round.
//!
//! Both programs are copied first: a build during a long run changes nothing in it, and what decides is the same file
//! in every round.

#![expect(clippy::disallowed_methods, reason = "rounds are timed, and dated in the report")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::services::{Endpoints, Services};
use crate::workspace::{Workspace, cargo};
use crate::{Refusal, packages};

/// What a round can be about: the round's program knows how.
const FAULTS: &[&str] = &["sigkill", "sigstop", "broker", "redis", "clickhouse", "disk", NETWORK];
/// The fault that needs two processes.
const NETWORK: &str = "network";
/// Processes × workers of each.
const LAYOUTS: &[&str] = &[ONE, TWO];
const ONE: &str = "1x2";
const TWO: &str = "2x1";
/// Rounds of each fault where nobody says: enough to see whether it works.
const ROUNDS: u64 = 1;
/// Events of a round where nobody says: every kind of event some dozen times, settled in well under a minute.
const EVENTS: u64 = 2_500;
/// Services are fresh after so many rounds. A round creates some 60 topics, and a broker that was killed reads all
/// of its partitions before it answers: with hundreds of topics that takes longer than the round.
const FRESH_AFTER: usize = 5;
/// Lines of a failed round's talk that the report keeps.
const TALK_LINES: usize = 60;

struct Options {
    faults: Vec<&'static str>,
    layouts: Vec<&'static str>,
    rounds: u64,
    seed: u64,
    events: u64,
    report: Option<PathBuf>,
    folder: Option<PathBuf>,
}

/// How a round ended.
struct Outcome {
    fault: &'static str,
    layout: &'static str,
    seed: u64,
    /// The round's own line, or the end of its talk.
    ended: Result<Value, String>,
    seconds: u64,
}

/// `cargo xtask kill [--fault NAME]… [--layout 1x2|2x1]… [--rounds N] [--seed S] [--events N] [--report FILE] [--dir DIR]`
pub(crate) fn command(arguments: &[&str]) -> Result<ExitCode> {
    let mut options = options(arguments)?;
    if !rustix::process::geteuid().is_root() && options.faults.contains(&"disk") {
        eprintln!("disk is left out: a small file system has to be mounted, which only root may do");
        options.faults.retain(|fault| *fault != "disk");
    }
    packages::ensure(packages::BUILD, "building tidings")?;
    let workspace = Workspace::load()?;
    let folder = options.folder.clone().unwrap_or_else(|| workspace.target.join("services/kill"));
    let programs = Programs::build(&workspace, &folder)?;
    let services = Services::new(&workspace, folder.clone());
    Services::new(&workspace, folder.clone()).end_on_signal()?;
    let outcomes = rounds(&options, &programs, &services, &folder);
    let down = services.down(true);
    let outcomes = outcomes?;
    down?;
    let failed = outcomes.iter().filter(|outcome| outcome.ended.is_err()).count();
    println!("{}", summary(&options.kinds(), &outcomes));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn options(arguments: &[&str]) -> Result<Options> {
    let usage = |message: String| anyhow::Error::from(Refusal::Usage(format!("kill: {message}")));
    let mut options = Options {
        faults: Vec::new(),
        layouts: Vec::new(),
        rounds: ROUNDS,
        seed: 1,
        events: EVENTS,
        report: None,
        folder: None,
    };
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        let value = rest.next().ok_or_else(|| usage(format!("{option} needs a value")))?;
        let number = || value.parse().map_err(|_| usage(format!("{option}: `{value}` is no number")));
        match *option {
            "--fault" => {
                let known = FAULTS.iter().find(|fault| *fault == value);
                let unknown = || usage(format!("unknown fault `{value}`; there are {}", FAULTS.join(", ")));
                options.faults.push(known.ok_or_else(unknown)?);
            }
            "--layout" => {
                let known = LAYOUTS.iter().find(|layout| *layout == value);
                let unknown = || usage(format!("unknown layout `{value}`; there are {}", LAYOUTS.join(", ")));
                options.layouts.push(known.ok_or_else(unknown)?);
            }
            "--rounds" => options.rounds = number()?,
            "--seed" => options.seed = number()?,
            "--events" => options.events = number()?,
            "--report" => options.report = Some(PathBuf::from(value)),
            "--dir" => options.folder = Some(std::path::absolute(value).with_context(|| format!("--dir {value}"))?),
            unknown => return Err(usage(format!("unknown option `{unknown}`"))),
        }
    }
    if options.faults.is_empty() {
        options.faults = FAULTS.to_vec();
    }
    if options.layouts.is_empty() {
        options.layouts = vec![ONE];
    }
    Ok(options)
}

impl Options {
    /// What is tried with each seed: every fault in every layout; a network needs two processes, whoever asks.
    fn kinds(&self) -> Vec<(&'static str, &'static str)> {
        let of = |fault: &'static str| -> Vec<_> {
            if fault == NETWORK {
                return vec![(fault, TWO)];
            }
            self.layouts.iter().map(|layout| (fault, *layout)).collect()
        };
        self.faults.iter().flat_map(|fault| of(fault)).collect()
    }
}

/// The round and the binary that it runs, where no build changes them.
struct Programs {
    round: PathBuf,
    tidings: PathBuf,
    xtask: PathBuf,
    commit: String,
}

impl Programs {
    fn build(workspace: &Workspace, folder: &Path) -> Result<Self> {
        let package = ["--package", "tidings-pipeline"];
        // Builds the binary as well, as for every test of that package.
        let mut command = cargo();
        command.arg("test").args(package).args(["--test", "kill", "--no-run", "--message-format=json"]);
        let built = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
        if !built.status.success() {
            bail!("the round's program does not build");
        }
        let lines = String::from_utf8_lossy(&built.stdout);
        let messages = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_round = |message: &Value| message["target"]["name"] == "kill";
        let round = messages.filter(is_round).find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
        let round = round.context("cargo does not say where it built the round's program")?;
        let commit = Command::new("git").args(["describe", "--always", "--dirty"]).output();
        let own = std::env::current_exe().context("this program's own file is unknown")?;
        let programs = folder.join("programs");
        fs::create_dir_all(&programs).with_context(|| format!("cannot create {}", programs.display()))?;
        let copied = |from: &Path, name: &str| -> Result<PathBuf> {
            let to = programs.join(name);
            // Another file, not other bytes in this one: it may be running.
            let _ = fs::remove_file(&to);
            fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            Ok(to)
        };
        Ok(Self {
            round: copied(&round, "round")?,
            tidings: copied(&workspace.target.join("debug/tidings"), "tidings")?,
            xtask: copied(&own, "xtask")?,
            commit: commit.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned()).unwrap_or_default(),
        })
    }
}

fn rounds(options: &Options, programs: &Programs, services: &Services, folder: &Path) -> Result<Vec<Outcome>> {
    let seeds = options.seed..options.seed + options.rounds;
    let kinds = options.kinds();
    let all: Vec<(u64, (&'static str, &'static str))> =
        seeds.flat_map(|seed| kinds.iter().map(move |kind| (seed, *kind))).collect();
    let mut outcomes = Vec::new();
    let mut endpoints = None;
    let mut after_failure = false;
    for (number, (seed, kind)) in all.iter().enumerate() {
        // A failed round may leave a service killed.
        if number % FRESH_AFTER == 0 || after_failure {
            services.down(true)?;
            endpoints = Some(services.up()?);
        }
        let Some(endpoints) = &endpoints else { continue };
        let outcome = round(options, programs, endpoints, folder, *kind, *seed)?;
        after_failure = outcome.ended.is_err();
        println!("{}", row(&outcome));
        outcomes.push(outcome);
        if let Some(report) = &options.report {
            let text = markdown(options, programs, &outcomes);
            fs::write(report, text).with_context(|| format!("cannot write {}", report.display()))?;
        }
    }
    Ok(outcomes)
}

fn round(
    options: &Options,
    programs: &Programs,
    endpoints: &Endpoints,
    folder: &Path,
    (fault, layout): (&'static str, &'static str),
    seed: u64,
) -> Result<Outcome> {
    let talk = folder.join("talk").join(format!("{fault}-{layout}-{seed}"));
    fs::create_dir_all(folder.join("talk")).context("cannot keep what rounds say")?;
    let file = fs::File::create(&talk).with_context(|| format!("cannot create {}", talk.display()))?;
    let started = Instant::now();
    let mut command = Command::new(&programs.round);
    command
        .envs(endpoints.test_variables())
        .env("TIDINGS_TEST_BINARY", &programs.tidings)
        .env("TIDINGS_KILL_FAULT", fault)
        .env("TIDINGS_KILL_LAYOUT", layout)
        .env("TIDINGS_KILL_SEED", seed.to_string())
        .env("TIDINGS_KILL_EVENTS", options.events.to_string())
        .env("TIDINGS_KILL_XTASK", &programs.xtask)
        .env("TIDINGS_KILL_DIR", folder);
    let output = command.stdin(Stdio::null()).stderr(file).output().context("cannot run the round's program")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let ended = match said.lines().last().and_then(|line| serde_json::from_str(line).ok()) {
        Some(line) if output.status.success() => Ok(line),
        _ => {
            let text = fs::read_to_string(&talk).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            // What it panicked with comes first; what it shows of the process comes after.
            let from = lines.iter().position(|line| line.contains("panicked at"));
            let from = from.unwrap_or_else(|| lines.len().saturating_sub(TALK_LINES));
            Err(lines[from..].iter().take(TALK_LINES).map(|line| format!("{line}\n")).collect())
        }
    };
    Ok(Outcome { fault, layout, seed, ended, seconds: started.elapsed().as_secs() })
}

/// One line a round, for whoever looks on; a failure with its talk.
fn row(outcome: &Outcome) -> String {
    let Outcome { fault, layout, seed, seconds, .. } = outcome;
    match &outcome.ended {
        Ok(_) => format!("{fault:<11} {layout}  seed {seed:>4}  {seconds:>4} s  holds"),
        Err(talk) => format!("{fault:<11} {layout}  seed {seed:>4}  {seconds:>4} s  FAILED\n{talk}"),
    }
}

/// Rounds by fault.
fn summary(kinds: &[(&'static str, &'static str)], outcomes: &[Outcome]) -> String {
    let mut text =
        "| fault | layout | rounds | hold | epochs replayed | deliveries received | more than once | unknown |\n\
                    |---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for (fault, layout) in kinds {
        let is = |outcome: &&Outcome| (outcome.fault, outcome.layout) == (*fault, *layout);
        let of: Vec<&Outcome> = outcomes.iter().filter(is).collect();
        let held: Vec<&Value> = of.iter().filter_map(|outcome| outcome.ended.as_ref().ok()).collect();
        let sum = |name: &str| held.iter().filter_map(|line| line[name].as_u64()).sum::<u64>();
        let again = sum("received_again");
        let _ = writeln!(
            text,
            "| {fault} | {layout} | {} | {} | {} | {} | {again} | {} |",
            of.len(),
            held.len(),
            sum("replayed"),
            sum("received_once") + again,
            sum("unknown"),
        );
    }
    text
}

fn markdown(options: &Options, programs: &Programs, outcomes: &[Outcome]) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let command = format!(
        "cargo xtask kill --rounds {} --seed {} --events {}{}",
        options.rounds,
        options.seed,
        options.events,
        if options.faults.len() == FAULTS.len() {
            String::new()
        } else {
            options.faults.iter().map(|fault| format!(" --fault {fault}")).collect()
        } + &options
            .layouts
            .iter()
            .filter(|_| options.layouts != [ONE])
            .map(|layout| format!(" --layout {layout}"))
            .collect::<String>(),
    );
    let mut text = format!(
        "# Rounds of `cargo xtask kill`\n\n{}, commit {}, {}:\n\n    {command}\n\n{}\n## Round by round\n\n\
         | fault | layout | seed | s | what was done | ended by itself | replayed | received | again | unknown | result |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
        date(seconds),
        programs.commit,
        machine(),
        summary(&options.kinds(), outcomes)
    );
    let mut failures = String::new();
    for Outcome { fault, layout, seed, ended, seconds } in outcomes {
        match ended {
            Ok(line) => {
                let list = |name: &str| {
                    let all: Vec<&str> =
                        line[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                    all.join("; ").replace('|', "/")
                };
                let number = |name: &str| line[name].as_u64().unwrap_or_default();
                let _ = writeln!(
                    text,
                    "| {fault} | {layout} | {seed} | {seconds} | {} | {} | {} | {} | {} | {} | holds |",
                    list("steps"),
                    list("ended"),
                    number("replayed"),
                    number("received_once") + number("received_again"),
                    number("received_again"),
                    number("unknown"),
                );
            }
            Err(talk) => {
                let _ = writeln!(text, "| {fault} | {layout} | {seed} | {seconds} |  |  |  |  |  |  | **failed** |");
                let _ = writeln!(failures, "\n### {fault}, {layout}, seed {seed}\n\n```\n{talk}```");
            }
        }
    }
    if !failures.is_empty() {
        let _ = write!(text, "\n## What failed\n{failures}");
    }
    text
}

/// Processor, cores and load: what a time means depends on them.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    format!("{}, {cores} cores, load {load} at the end", model.unwrap_or("an unknown processor"))
}

/// Days since 1970 as a date: the proleptic Gregorian calendar, from eras of 400 years.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{:02}", day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_fault_is_refused_with_those_that_there_are() {
        let refused = options(&["--fault", "flood"]).err().expect("a refusal").to_string();
        assert!(refused.contains("unknown fault `flood`; there are sigkill, sigstop"), "{refused}");
        assert!(options(&["--rounds"]).is_err() && options(&["--rounds", "x"]).is_err());
        let asked = options(&["--fault", "disk", "--rounds", "3", "--fault", "redis"]).expect("options");
        assert_eq!((&asked.faults[..], asked.rounds, asked.seed), (&["disk", "redis"][..], 3, 1));
        assert_eq!(asked.kinds(), [("disk", "1x2"), ("redis", "1x2")]);
    }

    #[test]
    fn a_network_is_between_two_processes_and_other_faults_are_tried_in_each_layout() {
        let asked = options(&["--fault", "sigkill", "--fault", "network", "--layout", "1x2", "--layout", "2x1"]);
        let kinds = asked.expect("options").kinds();
        assert_eq!(kinds, [("sigkill", "1x2"), ("sigkill", "2x1"), ("network", "2x1")]);
        assert!(options(&["--layout", "3x3"]).is_err());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_774_656_000, "2026-03-28"),
            (4_107_456_000, "2100-02-28"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn a_failed_round_counts_and_shows_its_talk() {
        let layout = ONE;
        let held = serde_json::json!({"received_once": 7, "received_again": 1, "unknown": 2, "replayed": 3});
        let outcomes = [
            Outcome { fault: "disk", layout, seed: 1, ended: Ok(held), seconds: 20 },
            Outcome { fault: "disk", layout, seed: 2, ended: Err("it panicked\n".to_owned()), seconds: 9 },
        ];
        assert!(summary(&[("disk", layout)], &outcomes).contains("| disk | 1x2 | 2 | 1 | 3 | 8 | 1 | 2 |"));
        assert!(row(&outcomes[1]).contains("FAILED\nit panicked"));
    }
}
