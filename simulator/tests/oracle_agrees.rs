//! The oracle and the engine say the same of random lives: users in zones whose clocks change that
//! night, actors, repeats, retractions, schedules, cancellations, expiry, opt-outs against parked work,
//! caps, returns. The engine runs here as any recomputation runs it: `Chain::epoch`, one worker, no
//! timely. The first difference is printed with all that its user lived through.

mod lives;

use lives::{Life, Lived, Stage, check};
use tidings_simulator::oracle::Slips;

/// Seeds of each stage in CI: some seconds in all.
const SEEDS: u64 = 40;

/// The seeds to run, from `ORACLE_SEEDS=first+count` where one looks further.
fn seeds() -> (u64, u64) {
    let asked = std::env::var("ORACLE_SEEDS").ok();
    let asked = asked.as_deref().and_then(|text| text.split_once('+'));
    asked.and_then(|(first, count)| Some((first.parse().ok()?, count.parse().ok()?))).unwrap_or((0, SEEDS))
}

fn agree(stage: Stage) {
    let (first, count) = seeds();
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
fn any_topology_whole() {
    agree(Stage::Whole);
}
