//! When a provider is called: leases, rates, retries, a provider that pauses, a lane beside it that is stuck.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidings_schemas::channel::{Channel, Priority};

use super::crash::Crash;
use super::provider::{Answer, busy, ok};
use super::world::World;
use super::{CALL_MAX, MEDIUM, T0, limits};
use crate::lane::wire::DeadLetter;
use crate::lane::{Limits, Line};
use crate::outcome::{Code, Outcome};

#[tokio::test(start_paused = true)]
async fn a_stuck_delivery_holds_nothing_back_and_ends_in_the_dlq_on_schedule() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.device("u2", "b").await;
    world.provider.set("u1", [busy()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    world.say(&world.leg("u2", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    // The lane is committed past it once its first retry failed.
    world.done(&MEDIUM[..1]).await;
    assert_eq!((world.provider.times("u1").len(), world.provider.times("u2").len()), (2, 1));
    world.until(|| !world.records(&world.topics.dlq()).is_empty()).await;
    world.done(&MEDIUM).await;
    process.stop().await;
    let times = world.provider.times("u1");
    let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // The reader looks every 50 ms.
    let ranges = [(1000, 1600), (5000, 5200), (20_000, 20_200), (90_000, 90_200)];
    assert_eq!(waits.len(), ranges.len(), "{waits:?}");
    assert!(waits.iter().zip(ranges).all(|(wait, (from, to))| (from..to).contains(wait)), "{waits:?}");
    let retry = "retry";
    let expected = ["created rendered sent retry", retry, retry, retry, "failed dlq attempts_exhausted"];
    assert_eq!(world.said("u1"), expected);
    let letters: Vec<DeadLetter> = world.json(&world.topics.dlq());
    assert_eq!((letters[0].attempts, letters[0].unknown, &*letters[0].code), (5, false, "503 ServiceUnavailable"));
}

#[tokio::test(start_paused = true)]
async fn a_call_keeps_its_lease_however_fast_the_clock_runs() {
    for speed in [1, 60, 600, 36_000] {
        let world = World::of(Channel::Push, 1, speed).await;
        world.device("u1", "a").await;
        let accepted = Outcome::accepted(Code::new(200, ""), "id");
        world.provider.set("u1", [Answer::After(CALL_MAX - Duration::from_millis(1), accepted)]);
        let critical = [Line::Lane(Priority::Critical)];
        let process = world.start(&critical, Crash::never(), "p", limits()).await;
        let leg = world.leg("u1", Priority::Critical);
        world.say(&leg, None);
        world.until(|| !world.provider.calls.lock().unwrap().is_empty()).await;
        // A repeat comes while the first is being called, and waits for its lease.
        tokio::time::advance(CALL_MAX / 2).await;
        world.say(&leg, None);
        world.done(&critical).await;
        process.stop().await;
        assert_eq!(world.said("u1"), ["created rendered sent delivered"], "at {speed} times the machine's time");
        assert_eq!(world.provider.calls.lock().unwrap().len(), 1, "at {speed} times the machine's time");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_and_a_cap_are_kept_to_and_critical_waits_for_neither() {
    for (rate, cap) in [(Some("10/s"), None), (None, Some("600/m")), (Some("10/s"), Some("36000/h")), (None, None)] {
        let mut world = World::new(Channel::Push).await;
        (world.rate, world.cap) = (rate.map(|it| it.parse().unwrap()), cap.map(|it| it.parse().unwrap()));
        let lines = [Priority::Critical, Priority::High, Priority::Low].map(Line::Lane);
        for n in 0..100 {
            let user = format!("low{n}");
            world.device(&user, "phone").await;
            // One of them wants nothing any more: its token is another's.
            if n == 50 {
                world.profile(&user, r#"{"channels":{"push":false}}"#).await;
            }
            world.say(&world.leg(&user, Priority::Low), Some(1));
        }
        let process = world.start(&lines, Crash::never(), "p", limits()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (user, priority) in [("code", Priority::Critical), ("order", Priority::High)] {
            world.device(user, "phone").await;
            world.say(&world.leg(user, priority), (priority != Priority::Critical).then_some(1));
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = world.provider.times("code")[0] - 500;
        assert!(after < 150, "{rate:?} {cap:?}: a critical call after {after} ms");
        tokio::time::sleep(Duration::from_secs(20)).await;
        let mut times: Vec<i64> = world.provider.calls.lock().unwrap().iter().map(|call| call.2.0 - T0.0).collect();
        times.sort_unstable();
        assert_eq!(times.len(), 101, "{rate:?} {cap:?}: nothing is dropped, nothing is called twice");
        let high = world.provider.times("order")[0] - 500;
        let most_in_a_second =
            times.iter().map(|from| times.iter().filter(|at| (*from..from + 1000).contains(at)).count());
        let (last, most) = (times[100], most_in_a_second.max().unwrap());
        if rate.or(cap).is_some() {
            // A second's worth at once, and a second's worth as it comes; a critical one beside them.
            assert!(
                (9_000..10_500).contains(&last) && most <= 21,
                "{rate:?} {cap:?}: {most} in a second, last at {last}"
            );
            assert!(high < 500, "{rate:?} {cap:?}: high goes before what waits, after {high} ms");
            assert!(process.metrics[2].paced.load(Ordering::Relaxed) >= 89);
        } else {
            assert!(last < 1_000 && process.metrics[2].paced.load(Ordering::Relaxed) == 0, "{last}");
        }
        process.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn critical_does_not_feel_a_bulk_lane_that_is_stuck() {
    let world = World::new(Channel::Push).await;
    for n in 0..20 {
        world.device(&format!("bulk{n}"), "d").await;
        world.provider.set(&format!("bulk{n}"), [Answer::Never]);
        world.say(&world.leg(&format!("bulk{n}"), Priority::Low), Some(1));
    }
    world.device("u1", "a").await;
    let lines = [Line::Lane(Priority::Low), Line::Lane(Priority::Critical)];
    let process = world.start(&lines, Crash::never(), "p", Limits { records_max: 4, ..limits() }).await;
    world.until(|| process.metrics[0].in_flight.load(Ordering::Relaxed) == 4).await;
    let asked = (world.clock)();
    world.say(&world.leg("u1", Priority::Critical), None);
    world.until(|| !world.said("u1").is_empty()).await;
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
    let took = world.provider.times("u1")[0] - (asked.0 - T0.0);
    assert!(took <= 60, "{took} ms");
    // The bound holds: no more than four of the bulk are called at a time.
    let before = world.provider.calls.lock().unwrap().iter().filter(|call| call.2 < T0.after(CALL_MAX)).count();
    assert_eq!(before, 4 + 1);
    world.kill(process).await;
}

#[tokio::test(start_paused = true)]
async fn a_paused_provider_burns_no_attempts_and_an_opt_out_reaches_what_waits_for_it() {
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "d").await;
        world
            .provider
            .set(user, [Answer::Is(Outcome::paused(Code::new(403, "InvalidProviderToken"), "check the key"))]);
        world.say(&world.leg(user, Priority::Medium), Some(1));
    }
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.until(|| world.provider.times("u1").len() + world.provider.times("u2").len() > 5).await;
    assert_eq!(&*process.deliverer.paused()["scripted"].reason, "check the key");
    assert!(world.rows().is_empty(), "no row, no attempt: {:?}", world.rows());
    let calls = world.provider.times("u1").len();
    world.profile("u1", r#"{"categories":{"social":{"push":false}}}"#).await;
    world.provider.set("u2", [ok()]);
    world.done(&MEDIUM).await;
    assert!(process.deliverer.paused().is_empty());
    process.stop().await;
    assert_eq!(world.provider.times("u1").len(), calls);
    assert_eq!(world.said("u1"), ["created suppressed opted_out"]);
    assert_eq!(world.said("u2"), ["created rendered sent delivered"]);
}

// A wish that comes while a claim waits for the ledger is heeded: the profile is looked up again.
#[tokio::test(start_paused = true)]
async fn an_opt_out_during_a_ledgers_outage_reaches_what_waits_to_be_claimed() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let crash = Crash::never();
    crash.claimless.store(10, Ordering::SeqCst);
    let process = world.start(&MEDIUM, crash, "p", limits()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.profile("u1", r#"{"channels":{"push":false}}"#).await;
    world.done(&MEDIUM).await;
    assert_eq!(world.said("u1"), ["created suppressed opted_out"]);
    assert!(world.provider.times("u1").is_empty());
    process.stop().await;
}
