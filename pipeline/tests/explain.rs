//! Stories of events that the real chain decided, and of deliveries as their rows are written.

use std::time::Duration;

use tidings_operators::calendar::Calendar;
use tidings_operators::script::{Told, tell};
use tidings_pipeline::explain::record::{ClickHouseRows, Older};
use tidings_pipeline::explain::rows::{Query, Rows, event_of};
use tidings_pipeline::explain::{Context, Story, explain};
use tidings_schemas::block::Block;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{DeliveryId, EventId, LegId, NotificationId};
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, Stage, State, Unit};
use tidings_schemas::profile::Profile;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_sinks::log::TopicPartition;
use tidings_sinks::record::clickhouse::{ClickHouse, ClickHouseParams};
use tidings_sinks::record::files::Files;
use tidings_sinks::record::history::{HISTORY_ROWS_MAX, History};
use tidings_sinks::record::index::RecordIndex;
use tidings_sinks::record::{CheckedBlock, RecordBatch, RecordStore};

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

/// An order that is known by its number, and a comment.
const ORDER_AND_COMMENT: &str = "addresses u1 push\nat 2026-06-01 10:00\n\
    event o1 u1 order_shipped {\"data\":{\"order_id\":4412}}\nevent c1 u1 comment Bob p1\nat 10:01";

#[test]
fn any_id_finds_the_story() {
    let script = ORDER_AND_COMMENT;
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

fn batch(rows: &[Row]) -> RecordBatch {
    let bytes = bytes::Bytes::from(Block::encode(Stage::Deliver, 0, rows));
    let partition = TopicPartition { topic: "notifications.lifecycle".into(), partition: 0 };
    RecordBatch { partition, range: 0..1, blocks: vec![CheckedBlock::check(0, &bytes).expect("a block")] }
}

/// A database to oneself, with the schema, on the server that the environment names.
struct Database {
    params: ClickHouseParams,
    server: ClickHouseParams,
    runtime: tokio::runtime::Runtime,
}

impl Database {
    #[expect(clippy::disallowed_methods, reason = "where the real server is comes from outside")]
    fn new(test: &str) -> Option<Self> {
        use std::io::Write as _;
        let Ok(url) = std::env::var("TIDINGS_TEST_CLICKHOUSE") else {
            // Past the harness's capture: a run without a server must not look like one with it.
            let said = format!("SKIPPED {test}: set TIDINGS_TEST_CLICKHOUSE to run it against a real server");
            let _ = writeln!(std::io::stderr(), "{said}");
            return None;
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let name = format!("tidings_explain_{test}_{}", std::process::id());
        let server = ClickHouseParams::new(&url, "default");
        runtime.block_on(server.client().query(&format!("CREATE DATABASE {name}")).execute()).expect("a database");
        Some(Self { params: ClickHouseParams::new(&url, &name), server, runtime })
    }

    fn write(&self, rows: &[Row]) {
        let mut store = ClickHouse::new(&self.params).expect("a store");
        store.migrate().expect("a schema");
        // The scripts' days are fixed, and some day older than the record keeps.
        let keep = self.params.client();
        let keep = keep.query("ALTER TABLE lifecycle REMOVE TTL");
        self.runtime.block_on(keep.execute()).expect("no TTL");
        store.write(&batch(rows)).expect("written");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let remove = format!("DROP DATABASE {} SYNC", self.params.database);
        let _ = self.runtime.block_on(self.server.client().query(&remove).execute());
    }
}

#[test]
fn any_id_finds_the_story_in_clickhouse() {
    let Some(database) = Database::new("ids") else { return };
    let script = format!("{ORDER_AND_COMMENT}\nraw {{\"user_id\":\"u1\"\nraw {{\"type\":\"x\"");
    let mut case = Case::new(&script, "UTC").delivered(Channel::Push, "apns", ACCEPTED);
    database.write(&case.told.rows);
    // What the record does not have the story from it cannot have either.
    case.context = Context::default();
    let rows = ClickHouseRows::new(&database.params);
    let find = |query: &Query| database.runtime.block_on(rows.find(query)).expect("rows");
    let story = case.story("c1");
    let ids = story.ids.notifications.iter().chain(&story.ids.legs).chain(&story.ids.deliveries);
    for id in ids.chain(&story.ids.intent).chain([&story.ids.event]) {
        let query = Query::parse(id, "", None).expect("an id");
        let found = find(&query);
        assert_eq!(event_of(&found, &query), Some(case.id("c1")), "{id}");
        assert_eq!(explain(&found, case.id("c1"), &case.context).as_ref(), Some(&story), "{id}");
    }
    for (own, name) in [("c1", "c1"), ("4412", "o1")] {
        let query = Query::parse(own, "", Some("u1")).expect("a query");
        assert_eq!(event_of(&find(&query), &query), Some(case.id(name)), "{own}");
    }
    for (id, user) in [("e_00000000000000000000000000000001", None), ("c1", Some("u2")), ("c9", Some("u1"))] {
        assert_eq!(find(&Query::parse(id, "", user).expect("a query")), [], "{id}");
    }
    // A record that names nobody is found alone, not with all the others that name nobody.
    let refused: Vec<&Row> = case.told.rows.iter().filter(|row| row.user.is_empty()).collect();
    assert_eq!(refused.len(), 2);
    let query = Query::parse(&refused[0].event.to_string(), "", None).expect("an id");
    assert_eq!(find(&query), [refused[0].clone()]);
}

#[test]
fn a_person_of_whom_much_was_said_is_read_in_part() {
    let Some(database) = Database::new("bound") else { return };
    let start = Instant(1_780_308_000_000);
    let count = HISTORY_ROWS_MAX as u64 + 50;
    let row = |n: u64| {
        let at = start.after(Duration::from_secs(n));
        let event = EventId::new("s", 0, n);
        Row { states: vec![State::Created], event, user: "u1".to_owned(), at, created_at: at, ..Row::default() }
    };
    database.write(&(0..count).map(|n| row(n).sealed()).collect::<Vec<_>>());
    let history = History::new(&database.params);
    let found = database.runtime.block_on(async {
        let owner = history.owner(&EventId::new("s", 0, count - 1).to_string()).await?.expect("known");
        history.rows(&owner).await
    });
    let found = found.expect("rows");
    let oldest = found.iter().map(|row| row.at).min();
    assert_eq!((found.len(), oldest), (HISTORY_ROWS_MAX, Some(start.after(Duration::from_secs(50)))));
}

/// What the binary answers in `folder`.
fn tidings(folder: &std::path::Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidings"));
    let output = command.current_dir(folder).args(arguments).env_clear().output().expect("an answer");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn without_a_process_the_record_is_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = include_str!("../../examples/small.yaml");
    let put = |name: &str, record: &str| {
        let text = small.replace("embedded: { path: ./data }", "embedded: { path: ./data } }\nrecord: { RECORD");
        std::fs::write(folder.path().join(name), text.replace("RECORD", record)).expect("written");
    };
    put("files.yaml", "files: ./record");
    put("away.yaml", "clickhouse: \"http://127.0.0.1:1\"");
    let case = Case::new(ORDER_AND_COMMENT, "UTC").delivered(Channel::Push, "apns", ACCEPTED);
    Files::new(folder.path().join("record")).write(&batch(&case.told.rows)).expect("written");
    let mut places = vec!["files.yaml"];
    let database = Database::new("binary");
    if let Some(database) = &database {
        database.write(&case.told.rows);
        let (url, name) = (&database.params.url, &database.params.database);
        put("clickhouse.yaml", &format!("clickhouse: \"{url}/?database={name}\""));
        places.push("clickhouse.yaml");
    }
    let id = case.id("c1").to_string();
    for place in places {
        let (code, said, talk) = tidings(folder.path(), &["explain", &id, "-c", place]);
        assert_eq!(code, Some(0), "{place}: {talk}");
        assert!(said.contains("APNs accepted it"), "{place}: {said}");
        let (code, again, _) = tidings(folder.path(), &["explain", "c1", "--user", "u1", "-c", place]);
        assert_eq!((code, again), (Some(0), said), "{place}");
        let (code, _, talk) = tidings(folder.path(), &["explain", "c9", "--user", "u1", "-c", place]);
        assert_eq!((code, talk.as_str()), (Some(1), "nothing is known of `c9` in the record\n"), "{place}");
    }
    let (code, _, talk) = tidings(folder.path(), &["explain", &id, "-c", "away.yaml"]);
    assert_eq!(code, Some(69), "{talk}");
    assert!(talk.contains("the record's ClickHouse at http://127.0.0.1:1 cannot be reached"), "{talk}");
    let (code, _, talk) = tidings(folder.path(), &["explain", &id, "--admin", "127.0.0.1:1"]);
    assert_eq!(code, Some(1));
    assert!(talk.contains("nothing answers at 127.0.0.1:1"), "{talk}");
}

#[test]
fn a_wait_that_is_put_off_to_another_day_says_which() {
    // At 11:39 there is room again, but it is quiet: the group waits for the next morning.
    let quiet = r#"{"time_zone":"UTC","quiet_hours":{"from":"11:00","to":"09:00"}}"#;
    let script = "addresses u1 push\nat 2026-06-01 10:39\nevent f1 u1 comment Bob p1\n\
         at 10:45\nevent f2 u1 comment Eve p2\nat 10:50\nevent f3 u1 comment Joe p3\nat 10:55";
    let chain = CHAIN.replace("2/h", "1/h");
    let ends = |script: &str| {
        let told = tell(&format!("{chain}\n{script}"));
        let story = |name: &str| explain(&told.rows, told.events[name].0, &Context::default()).expect("a story");
        ["f2", "f3"].map(|name| story(name).end.text)
    };
    let [waits, joined] = ends(script);
    assert_eq!((&*waits, &*joined), ("waits until 11:39", "with 0 others, waits until 11:39"));
    let [waits, joined] = ends(&format!("{script}\nprofile u1 {quiet}\nat 11:45"));
    assert_eq!((&*waits, &*joined), ("waits until 09:00 on 2 Jun", "with 0 others, waits until 09:00 on 2 Jun"));
}
