//! Promises 1, 2 and 8 of the decide stage, under a crash at each numbered step of the protocol.
//!
//! A crash is a log and a store that die together at a chosen moment: nothing after it has any
//! effect. Then another generation starts on what is left, with another number of workers. In the
//! end everything that was ever said is compared with a plain recomputation along the logged cuts:
//! byte for byte, nothing missing, nothing else, nothing twice.

mod dying;
mod world;

use dying::{Death, Moment};
use world::World;

/// Runs a world that dies at `moment`, as often as it takes, and compares.
fn dies_at(name: &str, deaths: &[Death]) {
    let mut world = World::new();
    let mut workers = 1;
    let mut died = 0;
    for death in deaths {
        workers = workers % 3 + 1;
        if world.run(Some(death.clone()), workers) {
            died += 1;
        }
    }
    assert_eq!(died, deaths.len(), "{name}: a death did not happen, so nothing was proved");
    assert!(!world.run(None, 2), "{name}: the last run must end by itself");
    world.compare(name);
}

fn at(topic: &str, nth: u64, moment: Moment) -> Vec<Death> {
    vec![Death::Append { topic: topic.to_owned(), nth, moment }]
}

#[test]
fn without_a_crash() {
    dies_at("no crash", &[]);
}

#[test]
fn around_the_begin() {
    for moment in [Moment::Before, Moment::After] {
        dies_at("begin", &at("notifications.cuts", 1, moment));
    }
}

#[test]
fn around_a_cut() {
    for (nth, moment) in
        [(2, Moment::Before), (2, Moment::After), (5, Moment::Before), (5, Moment::After), (9, Moment::After)]
    {
        dies_at("cut", &at("notifications.cuts", nth, moment));
    }
}

#[test]
fn while_outputs_are_said() {
    for (nth, moment) in
        [(1, Moment::Before), (1, Moment::Torn(1)), (2, Moment::Torn(3)), (2, Moment::After), (4, Moment::Torn(2))]
    {
        dies_at("outputs", &at("notifications.lifecycle", nth, moment));
    }
}

#[test]
fn around_a_mark() {
    for moment in [Moment::Before, Moment::Torn(1), Moment::After] {
        dies_at("mark", &[Death::Mark { nth: 1, moment }]);
    }
}

#[test]
fn around_a_checkpoint() {
    for moment in [Moment::Before, Moment::After] {
        // The chunk, the manifest, and the entry that makes them count.
        dies_at("chunk", &[Death::Put { prefix: "chunks".to_owned(), nth: 1, moment }]);
        dies_at("manifest", &[Death::Put { prefix: "manifests".to_owned(), nth: 1, moment }]);
        dies_at("entry", &[Death::Checkpoint { nth: 1, moment }]);
        dies_at("second entry", &[Death::Checkpoint { nth: 2, moment }]);
    }
}

#[test]
fn again_and_again() {
    let deaths = [
        at("notifications.cuts", 4, Moment::After),
        at("notifications.lifecycle", 2, Moment::Torn(2)),
        vec![Death::Checkpoint { nth: 1, moment: Moment::Before }],
        at("notifications.cuts", 3, Moment::Before),
        vec![Death::Put { prefix: "manifests".to_owned(), nth: 1, moment: Moment::After }],
    ];
    dies_at("five deaths", &deaths.concat());
}

#[test]
fn the_newest_checkpoint_is_damaged() {
    let mut world = World::new();
    assert!(world.run(Some(Death::Checkpoint { nth: 3, moment: Moment::After }), 2));
    world.damage_newest_manifest();
    assert!(!world.run(None, 1));
    world.compare("damaged checkpoint");
}

#[test]
fn acknowledgements_that_are_lost() {
    // The append happened and nobody heard: the writer must ask, and not append twice.
    let mut world = World::new();
    for nth in [4, 9, 30] {
        world.lose_acknowledgement("notifications.cuts", nth);
    }
    assert!(!world.run(None, 2));
    world.compare("lost acknowledgement");
}

#[test]
fn an_operator_that_held_state_must_not_vanish() {
    let mut world = World::new();
    assert!(!world.run(None, 1));
    let error = world.start_without("dedup").unwrap_err();
    let expected = "the checkpoint holds state of operator `dedup`, which the topology does not have: put it back, \
                    or start with `--drop-state dedup`";
    assert_eq!(error, expected);
}
