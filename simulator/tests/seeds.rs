//! A few seeds in every test run; many run with `cargo xtask sim`.

use tidings_simulator::exhaustive;
use tidings_simulator::interleave::{self, WORLDS};
use tidings_simulator::run::run;

#[test]
fn the_first_seeds_break_no_promise() {
    for seed in 1..=8 {
        let outcome = run(seed, None, false);
        assert!(outcome.epochs > 0, "seed {seed} decided nothing, which proves nothing");
        assert_eq!(outcome.broken, None, "seed {seed}: see it with `cargo xtask sim --seed {seed}`");
    }
}

#[test]
fn a_seed_is_the_same_world_each_time() {
    let (one, two) = (run(43, None, true), run(43, None, true));
    assert!(one.generations > 1, "seed 43 knows no crash any more: take another one");
    assert_eq!(one.trace, two.trace);
}

#[test]
fn a_small_world_survives_each_crash_point_that_is_tried() {
    let searched = exhaustive::search(1..2, 20);
    assert!(searched.runs > 100, "{} runs prove little", searched.runs);
    assert_eq!(searched.broken, None);
}

#[test]
fn whatever_one_act_does_to_a_tiny_world_it_keeps_its_promises() {
    for world in WORLDS {
        let searched = interleave::search(world, 1, None);
        assert_eq!(searched.broken, None, "{world}");
        assert!(searched.runs >= interleave::floor(1), "{world}: {} schedules prove little", searched.runs);
    }
}
