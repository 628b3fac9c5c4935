//! Critical does not wait for a ledger that is away or slow: it goes out, and is told once all the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::time::Instant;

use super::crash::Crash;
use super::provider::{busy, ok};
use super::world::World;
use super::{T0, limits};
use crate::lane::Line;
use crate::ledger::{Claim, Claimed, Entry, Incarnation, Key, Ledger, LedgerError, Settle};
use crate::log::TopicPartition;

/// A ledger that is down.
struct Down;

#[async_trait]
impl Ledger for Down {
    async fn incarnation(&self, _: Instant) -> Result<Incarnation, LedgerError> {
        Err(LedgerError::Unreachable("down".to_owned()))
    }
    async fn claim(&self, _: &Incarnation, _: &[Claim], _: Instant) -> Result<Vec<Claimed>, LedgerError> {
        Err(LedgerError::Unreachable("down".to_owned()))
    }
    async fn settle(&self, _: &Incarnation, _: &[Settle], _: Instant) -> Result<Vec<bool>, LedgerError> {
        std::future::pending().await
    }
    async fn look(&self, _: &Incarnation, _: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        std::future::pending().await
    }
    async fn passed(&self, _: &Incarnation, _: &TopicPartition, _: u64, _: Instant) -> Result<(), LedgerError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_ledger_critical_goes_out_as_unknown_and_the_rest_waits() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.device("u2", "b").await;
    world.say(&world.leg("u1", Priority::Critical), None);
    world.say(&world.leg("u2", Priority::Medium), Some(1));
    let lines = [Line::Lane(Priority::Critical), Line::Lane(Priority::Medium)];
    let process = world.start_with(Arc::new(Down), &lines).await;
    world.done(&lines[..1]).await;
    let doubt = "created unknown ledger_unreachable";
    assert_eq!(world.said("u1"), [doubt, "created rendered sent delivered unknown ledger_unreachable"]);
    assert!(world.provider.times("u1")[0] <= 400, "{:?}", world.provider.times("u1"));
    assert!(world.provider.times("u2").is_empty());
    process.stop().await;
}

/// A ledger that takes no settlement while it sulks.
struct Sulking(Arc<dyn Ledger>, std::sync::atomic::AtomicBool);

#[async_trait]
impl Ledger for Sulking {
    async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
        self.0.incarnation(now).await
    }
    async fn claim(&self, by: &Incarnation, claims: &[Claim], now: Instant) -> Result<Vec<Claimed>, LedgerError> {
        self.0.claim(by, claims, now).await
    }
    async fn settle(&self, by: &Incarnation, settles: &[Settle], now: Instant) -> Result<Vec<bool>, LedgerError> {
        if self.1.load(Ordering::SeqCst) {
            return Err(LedgerError::Unreachable("sulks".to_owned()));
        }
        self.0.settle(by, settles, now).await
    }
    async fn look(&self, by: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        self.0.look(by, keys).await
    }
    async fn passed(
        &self,
        by: &Incarnation,
        lane: &TopicPartition,
        through: u64,
        now: Instant,
    ) -> Result<(), LedgerError> {
        self.0.passed(by, lane, through, now).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_critical_repeat_leaves_the_telling_to_what_it_repeats() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.provider.set("u1", [busy(), ok()]);
    let critical = [Line::Lane(Priority::Critical)];
    let process = world.start(&critical, Crash::never(), "first", limits()).await;
    let code = world.leg("u1", Priority::Critical);
    // The producer says the same again later: another event, the same notification.
    let repeat =
        LaneRecord { event: EventId::new("u1", 0, 1), created_at: T0.after(Duration::from_secs(7)), ..code.clone() };
    for record in [&code, &repeat, &repeat] {
        world.say(record, None);
    }
    world.done(&critical).await;
    world.say(&repeat, None);
    world.done(&critical).await;
    process.stop().await;
    assert_eq!(world.provider.accepted.lock().unwrap().len(), 1);
    assert_eq!(world.said("u1"), ["created rendered sent retry", "delivered"]);
    assert_eq!(world.created("u1"), BTreeSet::from([T0]));
}

#[tokio::test(start_paused = true)]
async fn a_critical_repeat_meets_a_call_that_the_ledger_heard_of_late() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    let critical = [Line::Lane(Priority::Critical)];
    let ledger = Arc::new(Sulking(world.ledger.clone(), true.into()));
    let process = world.start_with(ledger.clone(), &critical).await;
    let code = world.leg("u1", Priority::Critical);
    world.say(&code, None);
    // The message and its rows do not wait for the ledger.
    world.done(&critical).await;
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
    ledger.1.store(false, Ordering::SeqCst);
    world.say(&code, None);
    world.done(&critical).await;
    process.stop().await;
    assert_eq!(world.provider.accepted.lock().unwrap().len(), 1);
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
}

#[tokio::test(start_paused = true)]
async fn killed_without_the_ledger_a_critical_duplicate_is_an_unknown_all_the_same() {
    let critical = [Line::Lane(Priority::Critical)];
    let (mut crashes, mut doubled) = (0, 0);
    for point in 0.. {
        let world = World::new(Channel::Push).await;
        world.device("u1", "a").await;
        world.say(&world.leg("u1", Priority::Critical), None);
        let first = world.run(Arc::new(Down), &critical, Crash::at(point), "first", limits()).await;
        world.until(|| first.crash.is_dead() || world.is_done(&critical)).await;
        let crashed = first.crash.is_dead();
        world.kill(first).await;
        // The ledger is back, and knows nothing of what the first one did.
        let second = world.start(&critical, Crash::never(), "second", limits()).await;
        world.done(&critical).await;
        second.stop().await;

        let said = world.said("u1");
        let times = world.provider.accepted.lock().unwrap().len();
        assert!(times > 0, "point {point}: lost");
        assert!(times == 1 || said.iter().any(|row| row.contains("unknown")), "point {point}: {times} times, {said:?}");
        doubled += i32::from(times > 1);
        crashes += i32::from(crashed);
        if !crashed {
            break;
        }
    }
    assert!(crashes > 3 && doubled > 0, "{crashes} points were met, {doubled} of them sent twice");
}
