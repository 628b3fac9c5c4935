//! `cargo xtask sim`: runs seeds until one breaks a promise, and says which, and how to see it again.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to the person who typed it")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_schemas::deliberate::Bug;
use tidings_simulator::options::Options;
use tidings_simulator::run::{Outcome, run, run_with};
use tidings_simulator::{exhaustive, interleave};

/// Seeds within which each deliberate bug must be caught.
const CAUGHT_WITHIN: u64 = 200;

/// Steps within which a world that a deliberate bug breaks must be judged: beyond it the judgement is too patient.
const JUDGED_WITHIN: u64 = 5_000_000;

/// New seeds lie below it.
const SEEDS_BELOW: u64 = 1_000_000_000_000;

/// Seeds that once failed: they are run first.
const REGRESSIONS: &str = include_str!("../regressions.txt");

const USAGE: &str = "\
usage: cargo xtask sim [--seed S] [--seeds N] [--minutes M] [--of-commit] [--from S] [--decide] [--meta]
                       [--bugs [NAME]] [--exhaustive [RUNS]] [--interleave [ACTS]]

  --seed S       this seed, with its trace
  --seeds N      so many new seeds (100)
  --minutes M    new seeds for so long
  --of-commit    new seeds are those of the commit: the same ones each time, and others at the next commit
  --from S       new seeds are S and those after it
  --decide       their worlds without deliver and record
  --meta         each seed twice, and the whole traces compared
  --bugs [NAME]  proves that each deliberate bug, or this one, is caught within 200 seeds
  --exhaustive   every crash point of small worlds, alone and in pairs of which RUNS are run in each world (500)
  --interleave [ACTS]
                 every order in which up to ACTS (3) deaths, stand-stills, awakenings and compactions come between up to
                 three generations of tiny worlds; up to 2 take less than a minute";

struct Wanted {
    seed: Option<u64>,
    seeds: u64,
    minutes: Option<u64>,
    of_commit: bool,
    from: Option<u64>,
    decide: bool,
    meta: bool,
    bugs: Option<String>,
    exhaustive: Option<usize>,
    interleave: Option<usize>,
}

impl Wanted {
    fn run(&self, seed: u64, with_trace: bool) -> Outcome {
        let mut options = Options::draw(seed);
        options.deliver.runs &= !self.decide;
        run_with(options, BTreeMap::new(), None, with_trace)
    }
}

fn wanted() -> Option<Wanted> {
    let mut wanted = Wanted {
        seed: None,
        seeds: 100,
        minutes: None,
        of_commit: false,
        from: None,
        decide: false,
        meta: false,
        bugs: None,
        exhaustive: None,
        interleave: None,
    };
    let mut args = std::env::args().skip(1).peekable();
    while let Some(arg) = args.next() {
        if arg == "--bugs" {
            wanted.bugs = Some(args.next_if(|name| !name.starts_with('-')).unwrap_or_default());
            continue;
        }
        let mut number = || -> Option<u64> {
            let number = args.peek()?.parse().ok()?;
            args.next();
            Some(number)
        };
        match arg.as_str() {
            "--seed" => wanted.seed = Some(number()?),
            "--seeds" => wanted.seeds = number()?,
            "--minutes" => wanted.minutes = Some(number()?),
            "--of-commit" => wanted.of_commit = true,
            "--from" => wanted.from = Some(number()?),
            "--decide" => wanted.decide = true,
            "--meta" => wanted.meta = true,
            "--exhaustive" => {
                wanted.exhaustive = Some(number().map_or(500, |runs| usize::try_from(runs).unwrap_or(500)))
            }
            "--interleave" => wanted.interleave = Some(number().map_or(3, |acts| usize::try_from(acts).unwrap_or(3))),
            _ => return None,
        }
    }
    Some(wanted)
}

fn main() -> ExitCode {
    let Some(wanted) = wanted() else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    let clock = SystemClock::default();
    let ok = if let Some(seed) = wanted.seed {
        one(seed, &wanted)
    } else if let Some(name) = &wanted.bugs {
        bugs(name)
    } else if let Some(runs) = wanted.exhaustive {
        search(runs)
    } else if let Some(acts) = wanted.interleave {
        interleave(acts, &clock)
    } else {
        many(&wanted, &clock)
    };
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One seed, with all that happened.
fn one(seed: u64, wanted: &Wanted) -> bool {
    let outcome = wanted.run(seed, true);
    println!("{}", outcome.options);
    for line in &outcome.trace {
        println!("{line}");
    }
    summary(&outcome);
    (!wanted.meta || same_twice(wanted, seed)) && !fails(wanted, seed, &outcome)
}

/// Old seeds that failed, then new ones.
fn many(wanted: &Wanted, clock: &SystemClock) -> bool {
    let kept = REGRESSIONS.lines().filter_map(|line| line.split('#').next()?.trim().parse().ok());
    let first = wanted.from.unwrap_or_else(|| match wanted.of_commit {
        true => xxhash_rust::xxh3::xxh3_64(commit().as_bytes()),
        false => clock.wall().0.cast_unsigned(),
    });
    // Short enough to be typed.
    let first = first % SEEDS_BELOW;
    let until = wanted.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let seeds: Vec<u64> = kept.collect();
    let most = if until.is_some() { u64::MAX } else { seeds.len() as u64 + wanted.seeds };
    let seed = |number: u64| {
        let place = usize::try_from(number).unwrap_or(usize::MAX);
        seeds.get(place).copied().unwrap_or_else(|| first + (number - seeds.len() as u64))
    };
    let (next, tally) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            // Every seed before one that fails is run, so that it is the first one that is told of.
            let beyond = tally.lock().unwrap_or_else(PoisonError::into_inner).failed.is_some_and(|(it, _)| it < number);
            if number >= most || beyond || until.is_some_and(|until| clock.elapsed() >= until) {
                return;
            }
            let before = clock.elapsed();
            let outcome = wanted.run(seed(number), false);
            let fails = outcome.broken.is_some() || (wanted.meta && differs(wanted, seed(number)).is_some());
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.slowest = tally.slowest.max((clock.elapsed() - before, seed(number)));
            if fails && tally.failed.is_none_or(|(it, _)| number < it) {
                tally.failed = Some((number, seed(number)));
            }
            tally.seeds += 1;
            tally.epochs += outcome.epochs;
            tally.said += outcome.said;
            tally.generations += outcome.generations;
            tally.idle_cuts = tally.idle_cuts.max(outcome.idle_cuts);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, seed)) = tally.failed {
        if !fails(wanted, seed, &wanted.run(seed, false)) && same_twice(wanted, seed) {
            println!("FAILED seed {seed} once, and not again: what ran beside it decides something");
        }
        return false;
    }
    let Tally { seeds, epochs, said, generations, idle_cuts, slowest: (slowest, which), .. } = tally;
    let took = clock.elapsed().as_secs_f64();
    let rate = seeds as f64 / took.max(0.001);
    println!(
        "{seeds} seeds, from {first}, pass: {generations} generations, {epochs} epochs, {said} lane records, up to \
         {idle_cuts} cuts in a row for nothing; {rate:.1} seeds/s, the slowest {which} in {:.1} s",
        slowest.as_secs_f64()
    );
    true
}

/// What a run of many seeds came to.
#[derive(Default)]
struct Tally {
    /// The first that failed, by its number in the run.
    failed: Option<(u64, u64)>,
    slowest: (Duration, u64),
    seeds: u64,
    epochs: usize,
    said: usize,
    generations: usize,
    idle_cuts: u64,
}

fn summary(outcome: &Outcome) {
    let Outcome { steps, writes, epochs, said, generations, idle_cuts, struck, .. } = outcome;
    println!(
        "{steps} steps, {writes} writes, {epochs} epochs, {said} lane records, {generations} generations, up to {idle_cuts} \
         cuts in a row for nothing; {struck:?}"
    );
}

#[expect(clippy::disallowed_methods, reason = "a binary's own environment: `cargo xtask` names the commit")]
fn commit() -> String {
    std::env::var("TIDINGS_COMMIT").unwrap_or_else(|_| "unknown".to_owned())
}

/// Says what failed, if it did, and how to see it again.
fn fails(wanted: &Wanted, seed: u64, outcome: &Outcome) -> bool {
    let Some(broken) = &outcome.broken else { return false };
    println!("{}", outcome.options);
    let again = wanted.run(seed, true);
    let last = again.trace.len().saturating_sub(40);
    for (number, line) in again.trace.iter().enumerate() {
        // What it is about, wherever it happened; and how it ended.
        if number >= last || ids(&broken.what).any(|id| line.contains(id)) {
            println!("{line}");
        }
    }
    summary(outcome);
    let commit = commit();
    let decide = if wanted.decide { " --decide" } else { "" };
    println!("FAILED seed {seed} at commit {commit}: {broken}\nreplay: cargo xtask sim{decide} --seed {seed}");
    true
}

/// The ids that a message names.
fn ids(words: &str) -> impl Iterator<Item = &str> {
    let words = words.split(|it: char| !it.is_ascii_alphanumeric() && it != '_');
    words.filter(|word| word.len() == 34 && ["e_", "n_", "l_", "d_"].iter().any(|kind| word.starts_with(kind)))
}

/// Where two runs of a seed part, if they do.
fn differs(wanted: &Wanted, seed: u64) -> Option<String> {
    let (one, two) = (wanted.run(seed, true), wanted.run(seed, true));
    let differs = one.trace.iter().zip(&two.trace).find(|(one, two)| one != two);
    let same = differs.is_none() && one.trace.len() == two.trace.len() && one.steps == two.steps;
    (!same).then(|| format!("{differs:?}"))
}

fn same_twice(wanted: &Wanted, seed: u64) -> bool {
    let Some(where_) = differs(wanted, seed) else { return true };
    println!(
        "FAILED seed {seed}: it runs differently the second time: {where_}\nreplay: cargo xtask sim --seed {seed} --meta"
    );
    false
}

/// Each deliberate bug, or the one of this name, is caught within so many seeds.
fn bugs(name: &str) -> bool {
    if !cfg!(feature = "deliberate-bugs") {
        eprintln!("this build has no deliberate bugs: build it with `--features deliberate-bugs`");
        return false;
    }
    let mut all = true;
    let is_named = |bug: &Bug| name.is_empty() || format!("{bug:?}") == name;
    let named: Vec<Bug> = Bug::ALL.into_iter().filter(is_named).collect();
    let searched: Vec<Bug> = Bug::SEARCHED.into_iter().filter(is_named).collect();
    if named.is_empty() && searched.is_empty() {
        eprintln!("there is no bug `{name}`; there are {:?} and {:?}", Bug::ALL, Bug::SEARCHED);
        return false;
    }
    // On all cores, as seeds are: a bug is one thread's.
    let (next, caught) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some(bug) = named.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            // A seed that fails without the bug proves nothing about it.
            let by = (1..=CAUGHT_WITHIN).find_map(|seed| {
                let Outcome { broken, steps, .. } = run(seed, Some(bug), false);
                let broken = broken?;
                run(seed, None, false).broken.is_none().then_some((seed, steps, broken))
            });
            caught.lock().unwrap_or_else(PoisonError::into_inner).insert(bug, by);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    for (bug, by) in caught.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match by {
            Some((seed, steps, broken)) => {
                if steps > JUDGED_WITHIN {
                    println!("{bug:?}: JUDGED after {steps} steps, which are more than {JUDGED_WITHIN}");
                    all = false;
                }
                let what: String = broken.what.chars().take(90).collect();
                println!("{bug:?}: caught at seed {seed} by {}: {}", broken.promise, what.lines().next().unwrap_or(""));
            }
            None => {
                println!("{bug:?}: NOT CAUGHT within {CAUGHT_WITHIN} seeds");
                all = false;
            }
        }
    }
    for bug in searched {
        match interleave::catch(bug) {
            Some((world, schedule, broken)) => {
                let what: String = broken.what.chars().take(90).collect();
                let acts: Vec<String> = schedule.iter().map(|(point, act)| format!("{act} at point {point}")).collect();
                println!("{bug:?}: caught in {world} ({}) by {}: {what}", acts.join(", "), broken.promise);
            }
            None => {
                println!("{bug:?}: NOT CAUGHT by any schedule of two acts");
                all = false;
            }
        }
    }
    all
}

fn search(runs: usize) -> bool {
    let searched = exhaustive::search(1..5, runs);
    println!("{} runs of {} that there are", searched.runs, searched.all);
    let Some((seed, script, broken)) = searched.broken else { return true };
    let again = tidings_simulator::run::run_with(exhaustive::small(seed), script.clone(), None, true);
    for line in again.trace {
        println!("{line}");
    }
    println!("FAILED small world {seed} under {script:?}: {broken}\nreplay: cargo xtask sim --exhaustive {runs}");
    false
}

/// Every schedule of up to so many acts, in each tiny world.
fn interleave(acts: usize, clock: &SystemClock) -> bool {
    for world in interleave::WORLDS {
        let before = clock.elapsed();
        let searched = interleave::search(world, acts, None);
        let interleave::Searched { runs, same, points, broken } = searched;
        println!(
            "{world}: {runs} schedules of up to {acts} acts, {points} points; {same} more come to the same as one of them; {:.1} s",
            (clock.elapsed() - before).as_secs_f64()
        );
        if let Some((schedule, broken)) = broken {
            tell(world, &schedule, None, &broken);
            return false;
        }
        let floor = interleave::floor(acts);
        if runs < floor {
            println!("FAILED: {runs} schedules are fewer than {floor}: something is not searched any more");
            return false;
        }
    }
    true
}

/// Says what a schedule breaks, and how.
fn tell(world: &str, schedule: &interleave::Schedule, bug: Option<Bug>, broken: &tidings_simulator::checks::Broken) {
    for line in interleave::trace(world, schedule, bug) {
        println!("{line}");
    }
    println!("FAILED {world} under {schedule:?} at commit {}: {broken}", commit());
}
