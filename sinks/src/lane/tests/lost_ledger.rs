//! The ledger lost everything: what it would have known is `unknown`, and nothing else.

use std::sync::atomic::Ordering;

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::{RetryClass, RetryDelay};

use super::crash::Crash;
use super::provider::{Answer, busy, ok};
use super::world::World;
use super::{CALL_MAX, MEDIUM, limits};
use crate::lane::Line;
use crate::outcome::{Code, Outcome};

#[tokio::test(start_paused = true)]
async fn a_lost_ledger_makes_what_was_in_flight_unknown_and_nothing_else() {
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "a").await;
    }
    world.provider.set("u1", [Answer::Never, ok()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let first = world.start(&MEDIUM, Crash::never(), "first", limits()).await;
    world.until(|| !world.provider.times("u1").is_empty()).await;
    world.kill(first).await;
    world.ledger.lose();
    let second = world.start(&MEDIUM, Crash::never(), "second", limits()).await;
    world.done(&MEDIUM).await;
    world.say(&world.leg("u2", Priority::Medium), Some(2));
    world.done(&MEDIUM).await;
    second.stop().await;
    assert_eq!(world.said("u1"), ["created sent retry unknown ledger_unreachable", "delivered"]);
    assert_eq!(world.said("u2"), ["created rendered sent delivered"]);
}

// The log had taken a retry record and not said so, and it was appended again. Or a lane record was read again, met
// its scheduled attempt, and waited once more.
#[tokio::test(start_paused = true)]
async fn a_retry_record_that_stands_twice_is_an_unknown_where_the_ledger_was_lost_in_between() {
    for lost in [false, true] {
        let world = World::new(Channel::Push).await;
        for user in ["u1", "u2", "u3"] {
            world.device(user, "a").await;
        }
        world.provider.set("u1", [busy(), busy(), ok()]);
        world.provider.set("u3", [busy(), busy(), ok()]);
        world.say(&world.leg("u1", Priority::Medium), Some(1));
        let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
        world.done(&MEDIUM).await;
        assert_eq!(world.said("u1"), ["created rendered sent retry", "retry", "delivered"]);
        if lost {
            world.ledger.lose();
        }
        // Another lane hears of the loss before the second one is read.
        world.say(&world.leg("u2", Priority::Medium), Some(2));
        world.done(&MEDIUM).await;
        world.again(&world.topics.retry(Channel::Push, RetryClass::Normal, RetryDelay::Seconds5));
        // One that is retried after the loss is told from it.
        world.say(&world.leg("u3", Priority::Medium), Some(3));
        world.done(&MEDIUM).await;
        process.stop().await;
        let first = ["created rendered sent retry", "retry", "delivered"];
        let second: &[&str] = if lost { &["retry unknown ledger_unreachable", "delivered"] } else { &[] };
        assert_eq!(world.said("u1"), [&first[..], second].concat(), "lost: {lost}");
        assert_eq!(world.provider.has("u1"), if lost { 2 } else { 1 });
        assert_eq!(world.said("u3"), first, "lost: {lost}");
    }
}

/// Whether `user` has something twice; it is never lost, and never twice without an `unknown`.
fn is_doubled(world: &World, user: &str, place: &str) -> bool {
    let (times, said) = (world.provider.has(user), world.said(user));
    let unknown = said.iter().any(|row| row.contains("unknown"));
    assert!(times > 0, "{place}: {user} is lost: {said:?}");
    assert!(times == 1 || unknown, "{place}: {user} has it {times} times, and nobody says so: {said:?}");
    times > 1
}

// Whoever wrote it, at whatever step the one before had died: the word that it names is never younger than the attempt
// that it may repeat.
#[tokio::test(start_paused = true)]
async fn killed_at_any_step_a_retry_record_that_is_repeated_after_a_loss_is_an_unknown() {
    let (mut crashes, mut doubled) = (0, 0);
    for lost in [false, true] {
        for point in 0.. {
            let world = World::new(Channel::Push).await;
            for user in ["u1", "u2"] {
                world.device(user, "a").await;
            }
            world.provider.set("u1", [busy(), busy(), ok()]);
            world.say(&world.leg("u1", Priority::Medium), Some(1));
            let first = world.start(&MEDIUM, Crash::at(point), "first", limits()).await;
            world.until(|| first.crash.is_dead() || world.is_done(&MEDIUM)).await;
            let crashed = first.crash.is_dead();
            world.kill(first).await;
            if lost {
                world.ledger.lose();
            }
            let second = world.start(&MEDIUM, Crash::never(), "second", limits()).await;
            world.done(&MEDIUM).await;
            world.ledger.lose();
            world.say(&world.leg("u2", Priority::Medium), Some(2));
            world.done(&MEDIUM).await;
            world.again(&world.topics.retry(Channel::Push, RetryClass::Normal, RetryDelay::Seconds5));
            world.done(&MEDIUM).await;
            second.stop().await;

            doubled += i32::from(is_doubled(&world, "u1", &format!("lost {lost}, point {point}")));
            crashes += i32::from(crashed);
            if !crashed {
                break;
            }
        }
    }
    assert!(crashes > 40 && doubled > 40, "only {crashes} points were met, and {doubled} duplicates");
}

// As `a_call_to_an_address_that_died_since_is_accounted_for_though_another_lives`, and nobody knows any more whether it
// was called.
#[tokio::test(start_paused = true)]
async fn a_call_to_an_address_that_died_since_is_accounted_for_though_the_ledger_was_lost() {
    for others in [&["b"][..], &[]] {
        let world = World::new(Channel::Push).await;
        let dead = [world.device("u1", "a").await, world.device("u2", "c").await];
        for other in others {
            world.device("u1", other).await;
            world.device("u2", "d").await;
        }
        world.provider.set("u1", [vec![Answer::Never; 1 + others.len()], vec![ok()]].concat());
        world.say(&world.leg("u1", Priority::Medium), Some(1));
        let first = world.start(&MEDIUM, Crash::never(), "first", limits()).await;
        world.until(|| world.provider.times("u1").len() == 1 + others.len()).await;
        world.kill(first).await;
        for address in dead {
            world.strike(address).await;
        }
        world.ledger.lose();
        let second = world.start(&MEDIUM, Crash::never(), "second", limits()).await;
        world.done(&MEDIUM).await;
        world.say(&world.leg("u2", Priority::Medium), Some(2));
        world.done(&MEDIUM).await;
        second.stop().await;
        let lost = "created sent retry unknown ledger_unreachable";
        let mut said = world.said("u1");
        said.sort();
        // What was read after the loss was not called before it: the address that is dead has no part in it.
        match others {
            [] => {
                assert_eq!(said, [lost, "failed unreachable"]);
                assert_eq!(world.said("u2"), ["leg: suppressed unreachable"]);
            }
            _ => {
                assert_eq!(said, [lost, lost, "delivered", "failed unreachable"]);
                assert_eq!(world.said("u2"), ["created rendered sent delivered"]);
            }
        }
    }
}

// Found by the simulator: a reader called at once after it had first heard of the ledger, died before it committed, and
// the ledger was lost with it. The next one knew of no other ledger.
#[tokio::test(start_paused = true)]
async fn killed_at_any_step_with_the_ledger_lost_just_then_every_duplicate_is_an_unknown() {
    let critical = [Line::Lane(Priority::Critical), Line::Retry(tidings_schemas::topics::RetryClass::Critical)];
    let (mut crashes, mut doubled) = (0, 0);
    for (lines, priority) in [(&MEDIUM[..], Priority::Medium), (&critical[..], Priority::Critical)] {
        // The ledger may come later than the reader, and go before or after the next one comes.
        for (wordless, after) in [(0, false), (0, true), (1, false), (1, true)] {
            for point in 0.. {
                let world = World::new(Channel::Push).await;
                for user in ["u1", "u2", "u3"] {
                    world.device(user, "a").await;
                }
                world.provider.set("u2", [busy(), ok()]);
                let record =
                    |user| world.say(&world.leg(user, priority), (priority != Priority::Critical).then_some(5));
                record("u1");
                let first = Crash::at(point);
                first.wordless.store(wordless, Ordering::SeqCst);
                let first = world.start(lines, first, "first", limits()).await;
                world.until(|| first.crash.is_dead() || world.is_done(lines)).await;
                record("u2");
                world.until(|| first.crash.is_dead() || world.is_done(lines)).await;
                let crashed = first.crash.is_dead();
                world.kill(first).await;
                if !after {
                    world.ledger.lose();
                }
                let second = world.start(lines, Crash::never(), "second", limits()).await;
                if after {
                    world.ledger.lose();
                }
                world.done(lines).await;
                // Repeats of what was committed before, by whoever had not heard that it was appended.
                ["u1", "u2", "u3"].into_iter().for_each(record);
                world.done(lines).await;
                second.stop().await;

                let place = format!("{priority}, wordless {wordless}, after {after}, point {point}");
                for user in ["u1", "u2", "u3"] {
                    doubled += i32::from(is_doubled(&world, user, &place));
                }
                crashes += i32::from(crashed);
                if !crashed {
                    break;
                }
            }
        }
    }
    assert!(crashes > 60 && doubled > 60, "only {crashes} points were met, and {doubled} duplicates");
}

// Found by `cargo xtask kill`: another lane of the channel learned of the loss first, and the settlement of a call
// that was under way met an empty ledger that it took for its own.
#[tokio::test(start_paused = true)]
async fn a_call_under_way_when_the_ledger_is_lost_is_settled_whoever_hears_of_the_loss() {
    let lines = [Line::Lane(Priority::High), Line::Lane(Priority::Medium)];
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "a").await;
    }
    let accepted = Outcome::accepted(Code::new(200, ""), "id");
    world.provider.set("u1", [Answer::After(CALL_MAX / 2, accepted)]);
    world.say(&world.leg("u1", Priority::High), Some(1));
    let process = world.start(&lines, Crash::never(), "p", limits()).await;
    world.until(|| !world.provider.times("u1").is_empty()).await;
    world.ledger.lose();
    world.say(&world.leg("u2", Priority::Medium), Some(1));
    world.done(&lines).await;
    process.stop().await;
    assert_eq!(world.provider.times("u1").len(), 1, "{:?}", world.said("u1"));
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
}

// It was claimed under the ledger that was lost, and so is what may have followed from it there.
#[tokio::test(start_paused = true)]
async fn what_is_retried_after_a_call_that_was_under_way_when_the_ledger_was_lost_is_an_unknown() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    let Answer::Is(later) = busy() else { panic!("an outcome") };
    world.provider.set("u1", [busy(), Answer::After(CALL_MAX / 2, later), ok()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.until(|| world.provider.times("u1").len() == 2).await;
    world.ledger.lose();
    world.done(&MEDIUM).await;
    process.stop().await;
    assert_eq!(world.provider.times("u1").len(), 3);
    let expected = ["created rendered sent retry", "retry", "retry unknown ledger_unreachable", "delivered"];
    assert_eq!(world.said("u1"), expected);
}

// Found by `cargo xtask kill`: the critical path had said a message again that it had not committed, and the ledger
// that would have known it was emptied in between.
#[tokio::test(start_paused = true)]
async fn a_critical_repeat_from_before_a_loss_is_an_unknown_and_what_comes_later_is_none() {
    let critical = [Line::Lane(Priority::Critical)];
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "a").await;
    }
    world.say(&world.leg("u1", Priority::Critical), None);
    let first = world.start(&critical, Crash::never(), "first", limits()).await;
    world.done(&critical).await;
    world.kill(first).await;
    world.ledger.lose();
    let second = world.start(&critical, Crash::never(), "second", limits()).await;
    world.until(|| !second.metrics[0].reached().is_empty()).await;
    world.say(&world.leg("u1", Priority::Critical), None);
    let later = Instant(i64::MAX);
    world.say(&LaneRecord { created_at: later, ..world.leg("u2", Priority::Critical) }, None);
    world.done(&critical).await;
    second.stop().await;
    assert_eq!(world.provider.times("u1").len(), 2);
    assert!(world.said("u1").iter().any(|row| row.contains("unknown")), "{:?}", world.said("u1"));
    assert_eq!(world.said("u2"), ["created rendered sent delivered"]);
}
