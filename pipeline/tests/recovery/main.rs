//! Promises 1, 2 and 8 of the decide stage, under a crash at each numbered step of the protocol.
//!
//! A crash is a log and a store that die together at a chosen moment: nothing after it has any
//! effect. Then another generation starts on what is left, with another number of workers. In the
//! end everything that was ever said is compared with a plain recomputation along the logged cuts:
//! byte for byte, nothing missing, nothing else, nothing twice.

#[path = "../real/child.rs"]
mod child;
mod cluster;
mod deaths;
mod dying;
mod poison;
#[path = "../real/proxy.rs"]
mod proxy;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use dying::{Death, Moment};
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_schemas::reason::Reason;
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
fn a_stop_that_is_there_before_the_workers_are() {
    let world = World::new();
    for _ in 0..50 {
        world.start_without(&[]).unwrap();
    }
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

#[test]
fn hours_of_downtime_are_caught_up_in_bounded_epochs() {
    let mut world = World::new();
    world.pause_after(4);
    assert!(!world.run(None, 1));
    let parked = world.rows();
    // Over the end of everybody's night; meanwhile producers went on, and what they said may be too late.
    let back = world.stay_down("2026-03-29T12:30:00Z", 6_000);
    world.go_on();
    assert!(!world.run(None, 2));
    world.compare("downtime");
    let most = world.records_per_cut(back).into_iter().max().unwrap();
    assert!(most > 500 && most <= 4_096, "{most} records in one epoch");
    let rows = world.rows();
    let expired = rows.iter().filter(|row| row.at > back && row.states.contains(&State::Expired)).count();
    assert!(expired >= 1_000, "only {expired} were too late");
    // Deferred before the outage, and their turn came in it.
    let mut last: BTreeMap<_, &Row> = BTreeMap::new();
    for row in parked.iter().filter(|row| row.unit == Unit::Leg) {
        let newest = last.entry(row.leg).or_insert(row);
        if (newest.epoch, newest.at) <= (row.epoch, row.at) {
            *newest = row;
        }
    }
    let waits = last.into_values().filter(|row| row.states.contains(&State::Deferred));
    let deferred: BTreeSet<_> = waits.map(|row| row.leg).collect();
    let ended = |row: &&Row| row.at > back && deferred.contains(&row.leg);
    let ended: BTreeSet<_> = rows.iter().filter(ended).map(|row| row.leg).collect();
    assert!(!deferred.is_empty() && ended == deferred, "{} of {} deferred legs went on", ended.len(), deferred.len());
    for sum in Fates::of(rows.iter()).sums() {
        assert!(sum.adds_up() && sum.unaccounted == 0, "{sum:?}");
    }
}

/// What kills, in the order of the workload: two records, a timer, a profile, what a timer lets go.
fn killed(world: &World) -> Vec<String> {
    let letters = world.dead_letters().into_iter().map(|bytes| serde_json::from_slice(&bytes).unwrap());
    let letters = letters.filter(|letter: &serde_json::Value| letter["reason"] == "panicked");
    let mut problems: Vec<String> = letters.map(|letter| letter["problem"].as_str().unwrap().to_owned()).collect();
    problems.sort();
    problems
}

#[test]
fn what_kills_its_operator_is_set_aside_and_the_stream_goes_on() {
    let cuts = |nth| Death::Append { topic: "notifications.cuts".to_owned(), nth, moment: Moment::After };
    let deaths = [
        (vec![], 1),
        (vec![], 2),
        // The skip is not logged; is logged, and nobody heard; so of a second one, and of a timer's.
        (vec![Death::Skip { nth: 1, moment: Moment::Before }], 1),
        (vec![Death::Skip { nth: 1, moment: Moment::After }], 2),
        (vec![Death::Skip { nth: 2, moment: Moment::After }, Death::Skip { nth: 1, moment: Moment::Before }], 2),
        (vec![Death::Skip { nth: 4, moment: Moment::After }], 1),
        (vec![Death::Skip { nth: 5, moment: Moment::Before }], 2),
        // The run after it dies at its begin, at a cut, while it says what it decided without the record, or
        // at a checkpoint.
        (vec![Death::Skip { nth: 1, moment: Moment::After }, cuts(1)], 1),
        (vec![Death::Skip { nth: 1, moment: Moment::After }, cuts(3)], 2),
        (
            vec![
                Death::Skip { nth: 2, moment: Moment::After },
                Death::Append { topic: "notifications.dlq".to_owned(), nth: 1, moment: Moment::Torn(2) },
            ],
            1,
        ),
        (
            vec![
                Death::Skip { nth: 2, moment: Moment::After },
                Death::Append { topic: "notifications.lifecycle".to_owned(), nth: 1, moment: Moment::Torn(1) },
                Death::Checkpoint { nth: 1, moment: Moment::Before },
                Death::Checkpoint { nth: 2, moment: Moment::After },
            ],
            2,
        ),
    ];
    for (deaths, workers) in deaths {
        let name = format!("{deaths:?}, {workers} workers");
        let mut world = World::poisoned(false);
        for death in deaths {
            assert!(world.run(Some(death), workers), "{name}");
        }
        assert!(!world.run(None, 3 - workers), "{name}");
        world.compare(&name);
        let problems = [
            "it killed operator `poison`: poisoned by a look",
            "it killed operator `poison`: poisoned by u3",
            "it killed operator `poison`: poisoned by u7",
            "it killed operator `poison`: poisoned by u8",
            "it killed operator `poison`: poisoned slowly: slow_poison",
        ];
        assert_eq!(killed(&world), problems, "{name}");
        let rows = world.rows();
        let panicked = rows.iter().filter(|row| row.reason == Some(Reason::Panicked));
        assert!(panicked.clone().all(|row| row.unit == Unit::Event && row.states.contains(&State::Rejected)), "{name}");
        assert_eq!(panicked.count(), problems.len(), "{name}");
        for sum in Fates::of(rows.iter()).sums() {
            assert!(sum.adds_up() && sum.unaccounted == 0, "{name}: {sum:?}");
        }
    }
}

#[test]
fn where_too_many_kill_it_ends_and_says_so() {
    let mut world = World::poisoned(true);
    let (died, ended) = world.live(None, 2);
    let error = ended.unwrap_err().to_string();
    let ends = "cannot be left out, because too many died of theirs within the last hour: mend what kills \
                (`it killed` says where), or start again to set further ones aside: it killed operator `poison`: ";
    assert!(!died && error.starts_with("the record at offset ") && error.contains(ends), "{error}");
    // Which is what a supervisor does.
    assert!(!world.run(None, 1));
    world.compare("too many");
    assert_eq!(killed(&world).len(), 45);
}
