//! What may have been sent is `unknown`, and nothing is lost: a process that dies, a provider that is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::lane::{LaneRecord, Returned};
use tidings_schemas::lifecycle::{State, Unit};

use super::crash::Crash;
use super::provider::{Answer, busy, ok};
use super::world::World;
use super::{MEDIUM, limits};
use crate::lane::wire::DeadLetter;
use crate::outcome::{Code, Outcome};

#[tokio::test(start_paused = true)]
async fn a_timeout_is_unknown_and_is_tried_again() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.provider.set("u1", [Answer::Never, ok()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.done(&MEDIUM).await;
    assert_eq!(process.metrics[0].unknown.load(Ordering::Relaxed), 1);
    process.stop().await;
    assert_eq!(world.said("u1"), ["created rendered sent retry unknown", "delivered"]);
    assert!(world.provider.times("u1")[1] >= 6000);
}

/// Promise 1: nothing is lost. Promise 3: a duplicate has an unknown. Every row repeats itself exactly.
fn ends_once(world: &World, point: i64, crashed: bool) {
    let rows = world.rows();
    let mut distinct = BTreeMap::new();
    for row in &rows {
        let states = distinct.entry(row.row_id).or_insert_with(|| row.states.clone());
        assert_eq!(states, &row.states, "point {point}: two rows under one id");
    }
    let deliveries: BTreeSet<_> =
        rows.iter().filter(|row| row.unit == Unit::Delivery).map(|row| row.delivery).collect();
    assert_eq!(deliveries.len(), 5, "point {point}");
    let accepted = world.provider.accepted.lock().unwrap().clone();
    for delivery in deliveries {
        let mut seen = BTreeSet::new();
        let own: Vec<_> = rows.iter().filter(|row| row.delivery == delivery && seen.insert(row.row_id)).collect();
        let count = |state| own.iter().filter(|row| row.states.contains(&state)).count();
        let unknown = count(State::Unknown) > 0;
        let times = accepted.iter().filter(|it| **it == delivery).count();
        assert_eq!((count(State::Created), count(State::Sent)), (1, 1), "point {point}: {own:#?}");
        if own[0].user == "u4" {
            assert_eq!((count(State::Failed), count(State::Dlq), times), (1, 1, 0), "point {point}: {own:#?}");
        } else {
            assert_eq!((count(State::Delivered), times > 0), (1, true), "point {point}: {own:#?}");
            assert!(times == 1 || unknown, "point {point}: sent {times} times, and nobody says so: {own:#?}");
        }
        // No crash, no unknown.
        assert!(crashed || !unknown, "point {point}: {own:#?}");
    }
    let returned: BTreeSet<_> = world.json::<Returned>(&world.topics.returned()).iter().map(|it| it.leg.leg).collect();
    let dead: BTreeSet<_> = world.json::<DeadLetter>(&world.topics.dlq()).iter().map(|it| it.delivery).collect();
    assert_eq!((returned.len(), dead.len()), (1, 1), "point {point}");
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_step_nothing_is_lost_and_every_duplicate_is_an_unknown() {
    let mut crashes = 0;
    for point in 0.. {
        let world = World::new(Channel::Push).await;
        for (user, device) in [("u1", "a"), ("u1", "b"), ("u2", "c"), ("u3", "d"), ("u4", "e")] {
            world.device(user, device).await;
        }
        world.provider.set("u2", [busy(), ok()]);
        world.provider.set("u3", [busy(), busy(), ok()]);
        world.provider.set("u4", [Answer::Is(Outcome::permanent(Code::new(400, "BadPath"), "a bug"))]);
        for user in ["u1", "u2", "u3", "u4"] {
            let fallback_channels = if user == "u4" { vec![Channel::Email] } else { Vec::new() };
            world.say(&LaneRecord { fallback_channels, ..world.leg(user, Priority::Medium) }, Some(1));
        }
        world.mark(Priority::Medium, 1);

        let first = world.start(&MEDIUM, Crash::at(point), "first", limits()).await;
        world.until(|| first.crash.is_dead() || world.is_done(&MEDIUM)).await;
        let crashed = first.crash.is_dead();
        world.kill(first).await;
        let second = world.start(&MEDIUM, Crash::never(), "second", limits()).await;
        world.done(&MEDIUM).await;
        second.stop().await;

        ends_once(&world, point, crashed);
        crashes += i32::from(crashed);
        if !crashed {
            break;
        }
    }
    assert!(crashes > 30, "only {crashes} points were met");
}

/// Found on real services: two phones were called, the process was killed, and one of them was struck by another message's
/// answer. Whoever came next saw the one that lives, and nobody said what had become of the other one's.
#[tokio::test(start_paused = true)]
async fn a_call_to_an_address_that_died_since_is_accounted_for_though_another_lives() {
    let world = World::new(Channel::Push).await;
    let dead = world.device("u1", "a").await;
    world.device("u1", "b").await;
    world.provider.set("u1", [Answer::Never, Answer::Never, ok()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let first = world.start(&MEDIUM, Crash::never(), "first", limits()).await;
    world.until(|| world.provider.times("u1").len() == 2).await;
    world.kill(first).await;
    world.strike(dead).await;
    let second = world.start(&MEDIUM, Crash::never(), "second", limits()).await;
    world.done(&MEDIUM).await;
    second.stop().await;
    let lost = "created sent retry unknown lease_expired";
    let mut said = world.said("u1");
    said.sort();
    assert_eq!(said, [lost, lost, "delivered", "failed unreachable"]);
}
