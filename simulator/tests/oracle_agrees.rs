//! The oracle and the engine say the same of random lives: users in zones whose clocks change that
//! night, actors, repeats, retractions, schedules, cancellations, expiry, opt-outs against parked work,
//! caps, returns. The engine runs here as any recomputation runs it: `Chain::epoch`, one worker, no
//! timely. The first difference is printed with all that its user lived through.

mod lives;

use std::time::Duration;

use lives::{Life, Lived, Stage, check};
use tidings_operators::calendar::Calendar;
use tidings_pipeline::topology::{FixedEnvironment, Loader, OperatorKinds, ProviderKinds, SourceText};
use tidings_simulator::oracle::{Slips, Topology};

/// Seeds of each stage in CI: some seconds in all. A crowd is large, the whole is where faults are.
const fn seeds_of(stage: Stage) -> u64 {
    match stage {
        Stage::Dedup | Stage::Schedule => 15,
        Stage::Crowd => 4,
        Stage::Aggregate | Stage::Quiet | Stage::Limits => 40,
        Stage::Whole => 120,
    }
}

/// The seeds to run, from `ORACLE_SEEDS=first+count` where one looks further.
fn seeds(stage: Stage) -> (u64, u64) {
    let asked = std::env::var("ORACLE_SEEDS").ok();
    let asked = asked.as_deref().and_then(|text| text.split_once('+'));
    asked.and_then(|(first, count)| Some((first.parse().ok()?, count.parse().ok()?))).unwrap_or((0, seeds_of(stage)))
}

fn agree(stage: Stage) {
    let (first, count) = seeds(stage);
    let mut lived = Lived::default();
    for seed in first..first + count {
        match check(Life::draw(stage, seed), Slips::default()) {
            Ok(one) => lived.add(&one),
            Err(difference) => panic!("{difference}"),
        }
    }
    eprintln!("{stage:?}: {lived:?}");
}

#[test]
fn what_comes_in_once() {
    agree(Stage::Dedup);
}

#[test]
fn what_is_scheduled() {
    agree(Stage::Schedule);
}

#[test]
fn what_is_gathered() {
    agree(Stage::Aggregate);
}

#[test]
fn what_waits_for_the_morning() {
    agree(Stage::Quiet);
}

#[test]
fn what_waits_for_budget() {
    agree(Stage::Limits);
}

#[test]
fn a_thousand_people() {
    agree(Stage::Crowd);
}

#[test]
fn any_topology_whole() {
    agree(Stage::Whole);
}

/// How many seeds a mistake may survive.
const CAUGHT_WITHIN: u64 = 25;

/// A comparison that could not fail would prove nothing.
#[track_caller]
fn caught(mistake: &str, stage: Stage, make: impl Fn(Life) -> (Life, Slips)) {
    let differs = |seed: &u64| {
        let (life, slips) = make(Life::draw(stage, *seed));
        check(life, slips).is_err()
    };
    assert!((0..CAUGHT_WITHIN).any(|seed| differs(&seed)), "{mistake}: not noticed within {CAUGHT_WITHIN} seeds");
}

#[test]
fn each_mistake_is_noticed() {
    let slips = Slips::default();
    let millisecond = Duration::from_millis(1);
    caught("a dedup window that is too long by a millisecond", Stage::Dedup, |life| (life.slower(millisecond), slips));
    caught("a window that is too long by a millisecond", Stage::Aggregate, |life| (life.slower(millisecond), slips));
    for (mistake, slips) in [
        ("a send counted twice", Slips { counts_twice: true, ..slips }),
        ("a forgotten retraction", Slips { forgets_retractions: true, ..slips }),
        ("an opt-out that does not reach the parked", Slips { forgets_the_parked: true, ..slips }),
        ("timers before side inputs", Slips { timers_first: true, ..slips }),
    ] {
        caught(mistake, Stage::Limits, |life| (life, slips));
    }
}

#[test]
fn the_example_is_understood_and_a_branch_is_refused() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/topology.yaml");
    let text = std::fs::read_to_string(path).expect("the example");
    let loader = Loader {
        operators: &OperatorKinds::standard(),
        providers: &ProviderKinds::standard(),
        calendar: &Calendar::bundled(),
        environment: &FixedEnvironment { variables: Default::default(), files: Default::default() },
    };
    let mut config = loader.check(SourceText::new("topology.yaml", &text)).expect("it is right").config;
    let provided = config.topology.sinks.keys().copied().collect();
    Topology::of_config(&config.topology, provided).expect("the oracle models the default topology");
    let skipped = config.topology.operators.remove(3);
    let refused = Topology::of_config(&config.topology, provided).expect_err("a chain with a gap");
    assert_eq!(
        refused.to_string(),
        format!(
            "the oracle does not model operator `aggregate`: it reads `{}`, which is not the one before it",
            skipped.id
        )
    );
}
