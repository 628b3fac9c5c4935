//! Promises 1, 2 and 8 of the decide stage, under a crash at each numbered step of the protocol.
//!
//! A crash is a log and a store that die together at a chosen moment: nothing after it has any
//! effect. Then another generation starts on what is left, with another number of workers. In the
//! end everything that was ever said is compared with a plain recomputation along the logged cuts:
//! byte for byte, nothing missing, nothing else, nothing twice.

mod dying;
mod world;

use dying::{Death, Moment};
use tidings_schemas::lifecycle::{State, Unit};
use tidings_sinks::record::fates::{Fate, Fates};
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
fn what_dies_in_the_middle_of_a_checkpoint_leaves_no_garbage_for_ever() {
    let mut world = World::new();
    // A chunk that no manifest names, a manifest that no entry names, an entry whose predecessors were
    // not deleted; each a run's end.
    for death in [
        Death::Put { prefix: "chunks".to_owned(), nth: 3, moment: Moment::After },
        Death::Put { prefix: "manifests".to_owned(), nth: 2, moment: Moment::After },
        Death::Checkpoint { nth: 3, moment: Moment::After },
        Death::Put { prefix: "chunks".to_owned(), nth: 2, moment: Moment::After },
    ] {
        assert!(world.run(Some(death), 2));
    }
    assert!(!world.run(None, 1));
    world.compare("garbage");
    let (manifests, chunks) = world.needed();
    assert_eq!(world.objects("manifests"), manifests);
    // A merge that this run's end overtook is the next one's to sweep.
    let own = manifests[1].strip_prefix("manifests/").and_then(|name| name.split('-').next()).unwrap();
    let overtaken = |name: &String| name.starts_with(&format!("chunks/{own}")) && name.ends_with("-merged");
    let left: Vec<_> = world.objects("chunks").into_iter().filter(|name| !chunks.contains(name)).collect();
    assert!(left.len() <= 1 && left.iter().all(overtaken), "{left:?}");
}

#[test]
fn a_chunk_of_the_newest_checkpoint_is_damaged() {
    let mut world = World::new();
    assert!(world.run(Some(Death::Checkpoint { nth: 3, moment: Moment::After }), 2));
    world.damage_newest_chunk();
    assert!(!world.run(None, 1));
    world.compare("damaged chunk");
}

#[test]
fn a_checkpoint_that_was_damaged_and_written_again_is_one_to_fall_back_to() {
    // Nothing was decided after the damaged one: the next run writes another of the same epoch.
    let mut world = World::new();
    world.pause_after(3);
    assert!(!world.run(None, 2));
    world.damage_newest_manifest();
    assert!(!world.run(None, 1));
    world.pause_after(4);
    assert!(!world.run(None, 1));
    world.damage_newest_manifest();
    world.go_on();
    assert!(!world.run(None, 3));
    world.compare("written again");
}

#[test]
fn the_checkpoint_between_two_topologies_is_damaged() {
    // Beyond the one that is left lie cuts of both: each is replayed under its own.
    let mut world = World::new();
    world.pause_after(3);
    assert!(!world.run(None, 2));
    world.take_out(GONE, GONE);
    assert!(
        world.run(Some(Death::Append { topic: "notifications.cuts".to_owned(), nth: 4, moment: Moment::After }), 1)
    );
    world.damage_newest_manifest();
    assert!(!world.run(None, 3));
    world.compare("damaged between two topologies");
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
    let error = world.start_without(&["dedup"]).unwrap_err();
    let expected = "the checkpoint holds state of operator `dedup`, which the topology does not have: put it back, \
                    or start with `--allow-dropped-state dedup`, which gives up what it holds";
    assert_eq!(error, expected);
}

/// Parked events in the one, parked legs in the other.
const GONE: &[&str] = &["schedule", "quiet_hours"];

#[test]
fn what_a_vanished_operator_held_is_lost_by_an_explicit_word_and_accounted_for() {
    let deaths = [
        None,
        // The first cut upon the dropped state: not there, there and not said, half said.
        Some(Death::Append { topic: "notifications.cuts".to_owned(), nth: 2, moment: Moment::Before }),
        Some(Death::Append { topic: "notifications.cuts".to_owned(), nth: 2, moment: Moment::After }),
        Some(Death::Append { topic: "notifications.lifecycle".to_owned(), nth: 1, moment: Moment::Torn(1) }),
        // The checkpoint that holds it no longer.
        Some(Death::Checkpoint { nth: 1, moment: Moment::Before }),
        Some(Death::Checkpoint { nth: 1, moment: Moment::After }),
    ];
    for death in deaths {
        let name = format!("{death:?}");
        let mut world = World::new();
        world.pause_after(3);
        assert!(!world.run(None, 1), "{name}");
        assert!(world.operators_with_state().is_superset(&GONE.iter().map(|kind| (*kind).to_owned()).collect()));
        // Images are met in the order of the operators' names.
        for (allowed, refused) in [(&[][..], "quiet_hours"), (&["quiet_hours"][..], "schedule")] {
            world.take_out(GONE, allowed);
            let error = world.start_without(GONE).unwrap_err();
            assert!(error.contains(&format!("`--allow-dropped-state {refused}`")), "{name}: {error}");
        }
        world.take_out(GONE, GONE);
        let durable = !matches!(&death, Some(Death::Append { moment: Moment::Before, .. }));
        assert_eq!(world.run(death.clone(), 2), death.is_some(), "{name}");
        // Once a cut was made upon it the word was given.
        world.take_out(GONE, if durable { &[] } else { GONE });
        assert!(!world.run(None, 3), "{name}");
        world.compare(&name);
        let held = world.operators_with_state();
        assert!(GONE.iter().all(|kind| !held.contains(*kind)), "{name}: {held:?}");
        let rows = world.rows();
        let lost = |unit| rows.iter().filter(|row| row.unit == unit && row.states.contains(&State::Lost)).count();
        assert!(lost(Unit::Event) > 0 && lost(Unit::Leg) > 0, "{name}: too little was parked to prove anything");
        for sum in Fates::of(rows.iter()).sums() {
            assert!(sum.adds_up() && sum.unaccounted == 0, "{name}: {sum:?}");
            let of = |wanted| sum.fates.iter().find(|(fate, _)| *fate == wanted).map_or(0, |(_, units)| *units);
            // A parked leg of one event that is lost ends as suppressed.
            assert_eq!(of(Fate::Lost), if sum.unit == Unit::Event { lost(Unit::Event) as u64 } else { 0 }, "{name}");
        }
    }
}
