//! How legs and deliveries end, and what follows from it: a returned leg, a dead letter, an address, the next lane.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::lane::{LaneRecord, ReturnCause, Returned};
use tidings_schemas::profile::{Address, AddressStatus};
use tidings_schemas::time::Instant;

use super::crash::Crash;
use super::provider::{Answer, busy, ok};
use super::world::World;
use super::{MEDIUM, limits};
use crate::lane::wire::{self, DeadLetter};
use crate::lane::{Limits, Line};
use crate::log::{Append, Log};
use crate::outcome::{Code, Outcome};

#[tokio::test(start_paused = true)]
async fn the_inbox_needs_no_address_and_mail_is_not_delivered_by_acceptance() {
    for (channel, expected) in
        [(Channel::InApp, "created rendered sent delivered"), (Channel::Email, "created rendered sent")]
    {
        let world = World::new(channel).await;
        if channel != Channel::InApp {
            world.device("u1", "a").await;
        }
        world.say(&world.leg("u1", Priority::Medium), Some(1));
        let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
        world.done(&MEDIUM).await;
        process.stop().await;
        assert_eq!(world.said("u1"), [expected]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_holds_up_no_commit_no_probe_and_no_rate() {
    const HOURS_2: i64 = 2 * 3_600_000;
    let mut world = World::new(Channel::Push).await;
    world.rate = Some("1/s".parse().unwrap());
    let paused = Outcome::paused(Code::new(403, "InvalidProviderToken"), "check the key");
    world.provider.set("paused", [Answer::Is(paused), ok()]);
    let say = async |user: &str| {
        world.device(user, "d").await;
        world.say(&LaneRecord { fresh_until: Instant::NEVER, ..world.leg(user, Priority::Medium) }, Some(1));
    };
    world.ahead_ms.store(HOURS_2, Ordering::Relaxed);
    let seldom = Limits { commit_every: Duration::from_millis(250), ..limits() };
    let process = world.start(&MEDIUM, Crash::never(), "p", seldom).await;
    // A commit, a token that was taken, and a gate that closes, all at the wrong hour.
    say("before").await;
    world.done(&MEDIUM).await;
    say("paused").await;
    world.until(|| !process.deliverer.paused().is_empty()).await;
    world.ahead_ms.store(0, Ordering::Relaxed);
    let asked = (world.elapsed)();
    for user in ["after1", "after2"] {
        say(user).await;
    }
    world.done(&MEDIUM).await;
    let took = (world.elapsed)() - asked;
    assert!(took < Duration::from_secs(10), "{took:?}: a probe, three tokens and a commit take seconds");
    process.stop().await;
    for user in ["before", "paused", "after1", "after2"] {
        assert_eq!(world.said(user), ["created rendered sent delivered"], "{user}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_came_too_late_twice_in_one_batch_is_settled_twice() {
    for (expires, said) in [(false, "leg: returned stale"), (true, "leg: expired expired")] {
        let world = World::new(Channel::Push).await;
        let now = (world.clock)();
        world.device("u", "d").await;
        world.device("u", "e").await;
        let leg = LaneRecord { fresh_until: now, ..world.leg("u", Priority::Medium) };
        let leg = LaneRecord { expires_at: expires.then_some(now), ..leg };
        // An append whose acknowledgement was lost is made again.
        world.say(&leg, Some(1));
        world.say(&leg, Some(1));
        let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
        world.done(&MEDIUM).await;
        process.stop().await;
        assert_eq!(world.said("u"), [said]);
        let returned: Vec<Returned> = world.json(&world.topics.returned());
        let whole = returned.iter().filter(|it| it.leg.only_address.is_none()).count();
        assert_eq!((whole, returned.len()), if expires { (0, 0) } else { (2, 2) });
    }
}

#[tokio::test(start_paused = true)]
async fn what_ends_before_a_call_ends_on_the_leg_or_goes_back() {
    let world = World::new(Channel::Push).await;
    let now = (world.clock)();
    for user in ["stale", "expired", "stopped", "broken"] {
        world.device(user, "d").await;
    }
    world.profile("stopped", r#"{"stops":[{"channel":"push","source":"STOP","at":"2026-01-03T00:00:00Z"}]}"#).await;
    let leg = |user: &str| world.leg(user, Priority::Medium);
    world.say(&LaneRecord { fresh_until: now, ..leg("stale") }, Some(1));
    world.say(&LaneRecord { expires_at: Some(now), ..leg("expired") }, Some(1));
    world.say(&leg("stopped"), Some(1));
    world.say(&LaneRecord { template_id: Some("broken".into()), ..leg("broken") }, Some(1));
    world.say(&leg("nowhere"), Some(1));
    world.say(&LaneRecord { fallback_channels: vec![Channel::Email], ..leg("elsewhere") }, Some(1));
    world
        .log
        .append(&[Append { value: Some("{".into()), ..wire::leg(world.lane(Priority::Medium), &leg("x"), None) }])
        .unwrap();
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.done(&MEDIUM).await;
    process.stop().await;
    let cases = [
        ("stale", "leg: returned stale"),
        ("expired", "leg: expired expired"),
        ("stopped", "created suppressed legal_stop"),
        ("broken", "created dlq render_failed"),
        ("nowhere", "leg: suppressed unreachable"),
        ("elsewhere", "leg: returned unreachable"),
    ];
    for (user, expected) in cases {
        assert_eq!(world.said(user), [expected], "{user}");
    }
    assert!(world.provider.calls.lock().unwrap().is_empty());
    let returned: Vec<Returned> = world.json(&world.topics.returned());
    let mut returned: Vec<_> = returned.iter().map(|it| (it.leg.user.as_str(), it.cause)).collect();
    returned.sort_unstable_by_key(|it| it.0);
    assert_eq!(returned, [("elsewhere", ReturnCause::Undeliverable), ("stale", ReturnCause::Stale)]);
    let dead: Vec<DeadLetter> = world.json(&world.topics.dlq());
    let details: BTreeSet<_> = dead.iter().map(|it| (it.reason.as_str(), it.raw.as_deref())).collect();
    assert_eq!(details, BTreeSet::from([("invalid_json", Some("{")), ("render_failed", None)]));
}

#[tokio::test(start_paused = true)]
async fn a_dead_address_goes_to_the_topic_and_the_fallback_waits_for_all_addresses() {
    let invalid = || Answer::Is(Outcome::invalid_address(Code::new(410, "Unregistered"), "gone"));
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.device("u1", "b").await;
    // The first call's address dies at once; the other is tried again and dies in a retry topic.
    world.provider.set("u1", [invalid(), busy(), busy(), invalid()]);
    let leg = LaneRecord { fallback_channels: vec![Channel::Email], ..world.leg("u1", Priority::Medium) };
    world.say(&leg, Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.done(&MEDIUM[..1]).await;
    assert!(world.records(&world.topics.returned()).is_empty(), "one address may still answer");
    world.done(&MEDIUM).await;
    process.stop().await;
    let struck: Vec<Address> = world.json(&world.topics.addresses());
    assert_eq!(struck.iter().map(|it| &*it.address_id).collect::<BTreeSet<_>>(), BTreeSet::from(["a", "b"]));
    assert!(struck.iter().all(|it| it.status == AddressStatus::Invalid && it.reason.as_deref() == Some("scripted: 410 Unregistered")));
    let returned: Vec<Returned> = world.json(&world.topics.returned());
    assert_eq!(returned.iter().map(|it| it.cause).collect::<Vec<_>>(), [ReturnCause::Undeliverable]);
}

#[tokio::test(start_paused = true)]
async fn a_critical_failure_goes_on_to_the_fallbacks_own_lane() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.provider.set("u1", [Answer::Is(Outcome::permanent(Code::new(413, "PayloadTooLarge"), "shorten it"))]);
    let leg = LaneRecord {
        fallback_channels: vec![Channel::Sms, Channel::Email],
        fresh_until: Instant(0),
        ..world.leg("u1", Priority::Critical)
    };
    world.say(&leg, None);
    let lines = [Line::Lane(Priority::Critical)];
    let process = world.start(&lines, Crash::never(), "p", limits()).await;
    world.done(&lines).await;
    process.stop().await;
    let onward: Vec<LaneRecord> = world.json(&world.topics.lane(Channel::Sms, Priority::Critical));
    assert_eq!((onward[0].channel, &onward[0].fallback_channels), (Channel::Sms, &vec![Channel::Email]));
    assert_eq!(world.said("u1"), ["created rendered sent failed dlq refused", "leg: created queued"]);
    assert!(world.records(&world.topics.returned()).is_empty());
}
