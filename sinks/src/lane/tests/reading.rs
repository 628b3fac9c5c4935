//! How a lane is read and committed: repeats, a stop, a partition that goes, a log that fails.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::lane_partition;
use tidings_schemas::lifecycle::State;
use tidings_schemas::topics::Topics;

use super::crash::Crash;
use super::provider::{Answer, busy, ok};
use super::world::World;
use super::{CALL_MAX, MEDIUM, limits};
use crate::lane::Limits;
use crate::log::Log;
use crate::log::memory::CrashPoint;
use crate::outcome::{Code, Outcome};

#[tokio::test(start_paused = true)]
async fn repeats_behind_a_mark_are_dropped_and_others_are_met_in_the_ledger() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    world.mark(Priority::Medium, 1);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.done(&MEDIUM).await;
    assert_eq!(process.metrics[0].repeats.load(Ordering::Relaxed), 1);
    let reached = process.metrics[0].reached();
    process.stop().await;
    assert_eq!(reached[&world.lane(Priority::Medium)].position, 4);
    assert_eq!(world.provider.times("u1").len(), 1);
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
    // The mark stands beside the offset, for the next owner.
    let commit = world
        .log
        .committed(&MEDIUM[0].group(&Topics::default(), Channel::Push), &world.lane(Priority::Medium))
        .unwrap()
        .unwrap();
    assert!(commit.offset == 4 && commit.metadata.starts_with(r#"{"mark":1,"#), "{commit:?}");
}

// Found by the simulator: they were dropped, and the next commit went past them.
#[tokio::test(start_paused = true)]
async fn records_that_come_with_their_partition_outlive_a_log_that_fails_to_say_how_far_it_goes() {
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "a").await;
        world.say(&world.leg(user, Priority::Medium), Some(1));
    }
    let crash = Crash::never();
    crash.rangeless.store(2, Ordering::SeqCst);
    let process = world.start(&MEDIUM, crash, "p", limits()).await;
    world.done(&MEDIUM).await;
    for user in ["u1", "u2"] {
        assert_eq!(world.said(user), ["created rendered sent delivered"], "{user}");
    }
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_committed_while_the_log_takes_no_rows() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    for n in 1..=6 {
        world.log.fail_topic_at(&world.topics.lifecycle(), CrashPoint::Before, n);
    }
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.until(|| !world.provider.accepted.lock().unwrap().is_empty()).await;
    // The sixth refusal comes after 50 + 100 + … + 800 ms.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!world.is_done(&MEDIUM) && world.rows().is_empty());
    world.done(&MEDIUM).await;
    process.stop().await;
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
    assert_eq!(world.provider.times("u1").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_takes_what_calls_under_way_need_and_what_waits_is_read_again() {
    let world = World::new(Channel::Push).await;
    for user in ["called", "again", "away", "held1", "held2"] {
        world.device(user, "d").await;
    }
    let accepted = Outcome::accepted(Code::new(200, ""), "id");
    world.provider.set("called", [Answer::After(CALL_MAX / 2, accepted)]);
    world.provider.set("again", [busy(), ok()]);
    world.provider.set("away", [Answer::Never, ok()]);
    for user in ["called", "again", "away"] {
        world.say(&world.leg(user, Priority::Medium), Some(1));
    }
    let process = world.start(&MEDIUM, Crash::never(), "p", Limits { records_max: 3, ..limits() }).await;
    world.until(|| world.provider.times("again").len() == 1).await;
    for user in ["held1", "held2"] {
        world.say(&world.leg(user, Priority::Medium), Some(1));
    }
    world.until(|| process.metrics[0].in_flight.load(Ordering::Relaxed) == 3).await;
    let asked = (world.clock)();
    process.stop().await;
    let took = (world.clock)().since(asked);
    assert!(took <= CALL_MAX, "{took:?}: the longest call takes {CALL_MAX:?}");
    let times = |user: &str| world.provider.times(user).len();
    assert_eq!((times("called"), times("again"), times("held1")), (1, 1, 0), "nothing was begun");
    assert_eq!(world.said("called"), ["created rendered sent delivered"]);
    let process = world.start(&MEDIUM, Crash::never(), "q", limits()).await;
    world.done(&MEDIUM).await;
    process.stop().await;
    for user in ["again", "away", "held1", "held2"] {
        assert!(world.said(user).last().is_some_and(|said| said.contains("delivered")), "{:?}", world.said(user));
    }
    assert_eq!((times("called"), times("again"), times("away"), times("held1")), (1, 2, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_calls_land_and_commits_them() {
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "a").await;
    }
    // One call is under way and lands by its timeout, one delivery waits for its first retry and is left.
    world.provider.set("u2", [busy()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    world.say(&world.leg("u2", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.until(|| !world.said("u2").is_empty() && !world.said("u1").is_empty()).await;
    let before = (world.clock)();
    process.stop().await;
    assert!((world.clock)().since(before) < Duration::from_secs(1), "a wait does not hold a stop up");
    let commit = world
        .log
        .committed(&MEDIUM[0].group(&Topics::default(), Channel::Push), &world.lane(Priority::Medium))
        .unwrap();
    assert_eq!(commit.map(|it| it.offset), Some(1), "u2 is read again by the next owner");
}

// Real time: the drain waits on a thread of its own.
#[tokio::test]
async fn a_partition_that_goes_is_drained_before_it_is_someone_elses() {
    let world = World::of(Channel::Push, 2, 1).await;
    let users = ["u1", "u2", "u3", "u4", "u5", "u6"];
    let partitions: BTreeSet<_> = users.iter().map(|user| lane_partition(user, 2)).collect();
    assert_eq!(partitions.len(), 2, "both partitions are used");
    for user in users {
        world.device(user, "a").await;
        world
            .provider
            .set(user, [Answer::After(Duration::from_millis(300), Outcome::accepted(Code::new(200, ""), "id"))]);
        world.say(&world.leg(user, Priority::Medium), Some(1));
    }
    let lines = &MEDIUM[..1];
    let first = world.start(lines, Crash::never(), "first", limits()).await;
    world.until(|| world.provider.calls.lock().unwrap().len() == users.len()).await;
    let second = world.start(lines, Crash::never(), "second", limits()).await;
    let taken = world.until(|| second.metrics[0].reached().len() == 1);
    tokio::time::timeout(Duration::from_secs(10), taken).await.unwrap();
    // What the second one takes over was settled and committed by the first.
    assert_eq!(world.provider.accepted.lock().unwrap().len(), users.len());
    world.done(lines).await;
    first.stop().await;
    second.stop().await;
    assert_eq!(world.provider.calls.lock().unwrap().len(), users.len());
    assert!(world.rows().iter().all(|row| !row.states.contains(&State::Unknown)));
}
