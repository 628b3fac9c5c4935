//! The oracle and the engine say the same of random lives: users in zones whose clocks change that
//! night, actors, repeats, retractions, schedules, cancellations, expiry, opt-outs against parked work,
//! caps, returns. The engine runs here as any recomputation runs it: `Chain::epoch`, one worker, no
//! timely. The first difference is printed with all that its user lived through.

mod lives;

use lives::{Life, Stage, check};
use tidings_simulator::oracle::Slips;

/// Seeds of each stage in CI: some seconds in all.
const SEEDS: u64 = 40;

fn agree(stage: Stage) {
    for seed in 0..SEEDS {
        let life = Life::draw(stage, seed);
        if let Err(difference) = check(life, Slips::default()) {
            panic!("{difference}");
        }
    }
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
