//! Stories of events that the real chain decided, and of deliveries as their rows are written.

use std::time::Duration;

use tidings_operators::calendar::Calendar;
use tidings_operators::script::{Told, tell};
use tidings_pipeline::explain::rows::{Query, Rows, event_of};
use tidings_pipeline::explain::{Context, Story, explain};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{DeliveryId, EventId, LegId, NotificationId};
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, Stage, State, Unit};
use tidings_schemas::profile::Profile;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_sinks::record::index::RecordIndex;

const CHAIN: &str = r#"chain validate | dedup | schedule | preferences | aggregate {"window":"5m"} when type == "like" | route | quiet_hours | rate_limit {"levels":[{"per":["channel"],"push":"2/h"}]}"#;
const BERLIN: &str = r#"{"time_zone":"Europe/Berlin","quiet_hours":{"from":"22:00","to":"07:00"}}"#;

struct Case {
    told: Told,
    context: Context,
}

impl Case {
    fn new(script: &str, zone: &str) -> Self {
        let told = tell(&format!("{CHAIN}\n{script}"));
        let mut context = Context { zone: Calendar::bundled().zone(zone).cloned(), ..Context::default() };
        for (id, event) in told.events.values() {
            context.events.insert(*id, event.clone());
        }
        told.lanes.iter().for_each(|lane| context.observe_lane(lane));
        Self { told, context }
    }

    /// Delivery rows for every lane record of `channel`, some seconds after it was released.
    fn delivered(mut self, channel: Channel, provider: &str, answers: &[(&[State], Option<Reason>, &str)]) -> Self {
        let lanes: Vec<_> = self.told.lanes.iter().filter(|lane| lane.channel == channel).cloned().collect();
        for lane in lanes {
            let mut at = lane.ready_at;
            for (number, (states, reason, code)) in answers.iter().enumerate() {
                at = Instant(at.0 + 2_000);
                self.told.rows.push(delivery(&lane, provider, at, number, states, *reason, code));
            }
        }
        self
    }

    fn id(&self, name: &str) -> EventId {
        self.told.events[name].0
    }

    fn story(&self, name: &str) -> Story {
        explain(&self.told.rows, self.id(name), &self.context).expect("a story")
    }
}

fn delivery(
    lane: &LaneRecord,
    provider: &str,
    at: Instant,
    number: usize,
    states: &[State],
    reason: Option<Reason>,
    code: &str,
) -> Row {
    let address = if lane.channel == Channel::InApp { lane.user.clone() } else { "phone".to_owned() };
    Row {
        at,
        stage: Stage::Deliver,
        states: states.to_vec(),
        unit: Unit::Delivery,
        event: lane.event,
        notification: lane.notification,
        group: lane.group,
        leg: lane.leg,
        silent: lane.silent,
        delivery: DeliveryId::new(lane.notification, lane.channel.as_str(), &address, 0),
        user: lane.user.clone(),
        event_type: lane.event_type.clone(),
        category: lane.category.clone(),
        priority: Some(lane.priority),
        channel: Some(lane.channel),
        provider: provider.to_owned(),
        code: code.to_owned(),
        reason,
        attempt: u32::try_from(number + 1).unwrap_or(1),
        created_at: lane.created_at,
        ready_at: Some(lane.ready_at),
        ..Row::default()
    }
    .sealed()
}

const ACCEPTED: &[(&[State], Option<Reason>, &str)] =
    &[(&[State::Created, State::Rendered, State::Sent, State::Delivered], None, "200")];

#[test]
fn a_night_of_likes_is_told_in_the_morning() {
    let script = format!(
        "addresses u1 push email\nprofile u1 {BERLIN}\nat 2026-03-28 22:10 Europe/Berlin\n\
         event like-1 u1 like Bob photo7\nat 22:40\nevent like-2 u1 like Alice photo7\nat 23:00\n\
         event like-3 u1 like Carol photo7\nat 23:10\nretract unlike-3 u1 like Carol photo7\nat 2026-03-29 07:12"
    );
    let case = Case::new(&script, "Europe/Berlin").delivered(Channel::Push, "apns", ACCEPTED).delivered(
        Channel::InApp,
        "inbox",
        ACCEPTED,
    );
    insta::assert_snapshot!("night_bob", case.story("like-1").text(tidings_pipeline::explain::Colour::Off));
    insta::assert_snapshot!("night_alice", case.story("like-2"));
    insta::assert_snapshot!("night_carol_took_it_back", case.story("like-3"));
    insta::assert_snapshot!("night_the_unlike", case.story("unlike-3"));
}

#[test]
fn while_it_waits_the_story_says_until_when() {
    let script = format!(
        "addresses u1 push email\nprofile u1 {BERLIN}\nat 2026-03-28 22:10 Europe/Berlin\n\
         event like-1 u1 like Bob photo7\nat 22:20"
    );
    insta::assert_snapshot!("waits", Case::new(&script, "Europe/Berlin").story("like-1"));
}

#[test]
fn a_window_gathers_people() {
    let script = "addresses u1 push email\nat 2026-06-01 10:00\nevent a u1 like John p\nevent b u1 like Alice p\n\
         event c u1 like Bob p\nevent d u1 like Carol p\nevent e u1 like Dave p\nat 10:06";
    let case = Case::new(script, "UTC").delivered(Channel::Push, "fcm", ACCEPTED);
    insta::assert_snapshot!("window", case.story("a"));
}

#[test]
fn an_opt_out_is_no_failure() {
    let profile = r#"{"categories":{"social":{"push":false}}}"#;
    let script = format!(
        "addresses u1 push email\nprofile u1 {profile}\nat 2026-06-01 10:00\nevent c1 u1 like Bob photo7\nat 10:06\n\
         event m1 u1 like Eve photo8 {{\"channels\":[\"push\"]}}\nat 10:20"
    );
    let mut case = Case::new(&script, "UTC").delivered(Channel::Email, "ses", ACCEPTED);
    case.context.profile = Profile::from_json(Some(profile.as_bytes())).ok();
    insta::assert_snapshot!("opted_out_by_mail", case.story("c1"));
    insta::assert_snapshot!("opted_out_by_name", case.story("m1"));
}

#[test]
fn an_opt_out_reaches_what_is_parked() {
    let script = format!(
        "addresses u1 push\nprofile u1 {BERLIN}\nat 2026-03-28 23:10 Europe/Berlin\nevent e1 u1 like Bob photo7\nat 23:16\n\
         profile u1 {{\"time_zone\":\"Europe/Berlin\",\"categories\":{{\"social\":{{\"push\":false}}}}}}\nat 2026-03-29 08:00"
    );
    insta::assert_snapshot!("opt_out_reaches_parked", Case::new(&script, "Europe/Berlin").story("e1"));
}

#[test]
fn what_a_producer_does_wrong_or_twice() {
    let script = "addresses u1 push\nat 2026-06-01 10:00\nevent o1 u1 order_shipped {\"data\":{\"order_id\":4412}}\n\
         at 10:01\nevent o2 u1 order_shipped {\"data\":{\"order_id\":4412}}\nraw {\"user_id\":\"u1\"";
    let case = Case::new(script, "UTC").delivered(Channel::Push, "apns", ACCEPTED);
    insta::assert_snapshot!("order", case.story("o1"));
    insta::assert_snapshot!("repeat", case.story("o2"));
    let broken = case.told.rows.iter().find(|row| row.states.contains(&State::Rejected)).expect("a refusal").event;
    insta::assert_snapshot!("refused", explain(&case.told.rows, broken, &case.context).expect("a story"));
}

#[test]
fn a_repeat_on_the_critical_path_is_known_by_the_first() {
    let (first, again, notification) = (EventId([1; 16]), EventId([2; 16]), NotificationId([3; 16]));
    let at = Instant(1_780_308_000_000);
    let row = |event, states: &[State], after_s: u64| {
        let at = at.after(Duration::from_secs(after_s));
        Row {
            stage: Stage::Critical,
            states: states.to_vec(),
            unit: Unit::Event,
            event,
            notification,
            user: "u1".to_owned(),
            event_type: "login_code".to_owned(),
            category: "security".to_owned(),
            priority: Some(Priority::Critical),
            at,
            created_at: at,
            ..Row::default()
        }
        .sealed()
    };
    let leg = |event, after_s| {
        let (leg, channel) = (LegId([4; 16]), Some(Channel::Sms));
        Row { unit: Unit::Leg, leg, channel, ..row(event, &[State::Created, State::Queued], after_s) }.sealed()
    };
    let accepted = &[State::Created, State::Validated];
    // In the order in which a partition may have them: the repeat's first.
    let rows = [leg(again, 70), row(again, accepted, 70), row(first, accepted, 0), leg(first, 0)];
    let story = |event| explain(&rows, event, &Context::default()).expect("a story");
    insta::assert_snapshot!("critical_first", story(first));
    insta::assert_snapshot!("critical_repeat", story(again));
}

#[test]
fn more_than_the_limits_allow_is_merged() {
    let script = "addresses u1 push\nat 2026-06-01 10:00\nevent f1 u1 comment Bob p1\nevent f2 u1 comment Eve p2\n\
         at 10:02\nevent f3 u1 comment Joe p3\nat 10:03\nevent f4 u1 comment Ann p4\nat 11:10";
    let case = Case::new(script, "UTC").delivered(Channel::Push, "apns", ACCEPTED);
    insta::assert_snapshot!("overflow_first", case.story("f3"));
    insta::assert_snapshot!("overflow_joined", case.story("f4"));
}

#[test]
fn high_priority_in_quiet_hours_stays_in_the_inbox() {
    let script = format!(
        "addresses u1 push\nprofile u1 {BERLIN}\nat 2026-03-28 23:10 Europe/Berlin\n\
         event o1 u1 order_shipped {{\"data\":{{\"order_id\":1}}}}\nat 23:11"
    );
    let case = Case::new(&script, "Europe/Berlin").delivered(Channel::InApp, "inbox", ACCEPTED);
    insta::assert_snapshot!("high_in_quiet_hours", case.story("o1"));
}

#[test]
fn scheduled_and_cancelled() {
    let script = "addresses u1 push\nat 2026-06-01 10:00\n\
         event r1 u1 reminder {\"scheduled_at\":\"2026-06-01T12:00:00Z\",\"cancel_key\":\"k\"}\n\
         event r2 u1 reminder {\"scheduled_at\":\"2026-06-01T12:00:00Z\"}\nat 11:00\n\
         cancel c1 u1 reminder {\"cancel_key\":\"k\"}\nat 12:01";
    let case = Case::new(script, "UTC").delivered(Channel::Push, "apns", ACCEPTED);
    insta::assert_snapshot!("cancelled", case.story("r1"));
    insta::assert_snapshot!("the_cancellation", case.story("c1"));
    insta::assert_snapshot!("scheduled", case.story("r2"));
}

#[test]
fn a_provider_that_fails() {
    let script = "addresses u1 push\nat 2026-06-01 10:00\nevent f1 u1 comment Bob p1\nat 10:01";
    let answers: &[(&[State], Option<Reason>, &str)] = &[
        (&[State::Created, State::Rendered, State::Sent, State::Retry, State::Unknown], None, "timeout"),
        (&[State::Retry], None, "503 ServiceUnavailable"),
        (&[State::Failed, State::Dlq], Some(Reason::AttemptsExhausted), "503 ServiceUnavailable"),
    ];
    insta::assert_snapshot!(
        "dead_letter",
        Case::new(script, "UTC").delivered(Channel::Push, "apns", answers).story("f1")
    );
    let answers: &[(&[State], Option<Reason>, &str)] = &[(
        &[State::Created, State::Rendered, State::Sent, State::Failed],
        Some(Reason::InvalidAddress),
        "410 Unregistered",
    )];
    insta::assert_snapshot!(
        "dead_phone",
        Case::new(script, "UTC").delivered(Channel::Push, "apns", answers).story("f1")
    );
}

#[test]
fn any_id_finds_the_story() {
    let script = "addresses u1 push\nat 2026-06-01 10:00\nevent o1 u1 order_shipped {\"data\":{\"order_id\":4412}}\n\
         event c1 u1 comment Bob p1\nat 10:01";
    let case = Case::new(script, "UTC").delivered(Channel::Push, "apns", ACCEPTED);
    let mut index = RecordIndex::default();
    case.told.rows.iter().cloned().for_each(|row| index.add(row));
    let story = case.story("c1");
    let ids = story.ids.notifications.iter().chain(&story.ids.legs).chain(&story.ids.deliveries);
    for id in ids.chain(&story.ids.intent).chain([&story.ids.event]) {
        let query = Query::parse(id, "", None).expect("an id");
        let rows = index.find(&query);
        assert_eq!(event_of(&rows, &query), Some(case.id("c1")), "{id}");
    }
    // By the producer's own id, and by the value of the type's expression.
    for (own, name) in [("c1", "c1"), ("4412", "o1")] {
        let query = Query::parse(own, "", Some("u1")).expect("a query");
        assert_eq!(event_of(&index.find(&query), &query), Some(case.id(name)), "{own}");
    }
    let error = Query::parse("c1", "", None).unwrap_err().to_string();
    assert!(error.contains("for a producer's own id give the user as well"), "{error}");
}
