//! What must hold once everything settled, whatever died on the way: each event, leg and delivery has one
//! fate, a decision is one record, and what providers counted is what the record says.

#![allow(dead_code, reason = "each program takes what it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::lane::{HEADER_EPOCH, HEADER_MARK, HEADER_ORDINAL};

use crate::workload::Expected;
use crate::world::{PATIENCE, Providers, Running, World, until};

/// What providers do wrong: often enough to be met, seldom enough to be over soon.
pub(crate) fn faults() -> Value {
    json!({ "rules": [
        { "provider": "apns", "every": 97, "fault": { "kind": "server_error", "status": 503 } },
        { "provider": "apns", "every": 211, "fault": { "kind": "invalid_address" } },
        { "provider": "fcm", "every": 89, "fault": { "kind": "too_many_requests", "retry_after": "1" } },
        { "provider": "ses", "every": 13, "fault": { "kind": "server_error", "status": 500 } },
    ] })
}

/// What is still to come, in words; nothing once all is settled. The cheapest question comes first.
pub(crate) fn unsettled(world: &World, expected: Expected) -> impl Iterator<Item = String> {
    let asked = [
        (
            "events with a fate",
            "SELECT countIf(is_created AND fate != 'unaccounted') FROM event_fates",
            expected.events,
        ),
        // What waits for minutes or more (quiet hours, limits, later schedules) stays parked.
        (
            "legs and events parked for a moment",
            "SELECT (SELECT count() FROM (SELECT leg, argMax(until, (at, row_id)) AS due FROM lifecycle FINAL \
             WHERE unit = 'leg' AND until IS NOT NULL GROUP BY leg) WHERE due < now() + 60 \
             AND leg IN (SELECT leg FROM leg_fates WHERE fate = 'parked')) + \
             (SELECT count() FROM (SELECT event, argMax(until, (at, row_id)) AS due FROM lifecycle FINAL \
             WHERE unit = 'event' AND until IS NOT NULL GROUP BY event) WHERE due < now() + 60 \
             AND event IN (SELECT event FROM event_fates WHERE fate = 'parked') \
             AND event NOT IN (SELECT event FROM lifecycle WHERE unit = 'leg'))",
            0,
        ),
        (
            "legs in a lane",
            "SELECT count() FROM leg_fates WHERE fate IN ('queued', 'returned', 'unaccounted') AND is_created \
             AND (fate != 'queued' OR leg NOT IN (SELECT leg FROM lifecycle WHERE stage = 'deliver'))",
            0,
        ),
        // A mail is delivered when its receipt says so, and nobody sends receipts here: it is under way until
        // its newest attempt is not tried again.
        (
            "deliveries under way",
            "SELECT count() FROM (SELECT delivery, any(channel) AS on, groupUniqArrayArray(states) AS all, \
             argMax(states, (attempt, at)) AS newest FROM lifecycle FINAL WHERE unit = 'delivery' GROUP BY delivery) \
             WHERE NOT hasAny(all, ['delivered', 'failed', 'dlq', 'suppressed', 'expired']) \
             AND NOT (on = 'email' AND has(all, 'sent') AND NOT has(newest, 'retry'))",
            0,
        ),
    ];
    asked.into_iter().filter_map(move |(what, sql, wanted)| match world.try_ask(sql) {
        Ok(answer) if answer[0][0] == wanted.to_string() => None,
        Ok(answer) => Some(format!("{what}: {}, expected {wanted}\n", answer[0][0])),
        Err(error) => Some(format!("{what}: {error}\n")),
    })
}

/// Where it stands: what is to come, and whatever deliveries that are under way have met.
pub(crate) fn story(world: &World, running: &Running, expected: Expected) -> String {
    let sql = "SELECT count(), on, priority, all, reasons FROM (SELECT delivery, any(channel) AS on, any(priority) AS priority, \
               arraySort(groupUniqArrayArray(states)) AS all, groupUniqArray(concat(provider, ' ', code, ' ', reason, ' ', toString(attempt))) AS reasons \
               FROM lifecycle FINAL WHERE unit = 'delivery' GROUP BY delivery) \
               WHERE NOT hasAny(all, ['delivered', 'failed', 'dlq', 'suppressed', 'expired']) GROUP BY ALL ORDER BY 1 DESC LIMIT 20";
    let met: Vec<String> = world.try_ask(sql).unwrap_or_default().iter().map(|line| line.join(" ")).collect();
    let epochs = world.try_ask(
        "SELECT (SELECT epoch FROM closed_epoch), max(epoch), uniqExactIf(event, unit = 'event') FROM lifecycle",
    );
    format!(
        "{}deliveries under way:\n{}\nclosed epoch, newest epoch, events with rows: {epochs:?}\n{}\n{}",
        unsettled(world, expected).collect::<String>(),
        met.join("\n"),
        world.get(&format!("{}/metrics", running.console().unwrap_or_default())).unwrap_or_default(),
        running.said(),
    )
}

/// The one query, and what the workload knows.
pub(crate) fn fates_add_up(world: &World, expected: Expected, clock: &Stopwatch) -> BTreeMap<(String, String), u64> {
    // A process that was stopped or killed hears no more of an insert that the server still works on.
    let under_way =
        "SELECT count() FROM system.processes WHERE query_kind = 'Insert' AND current_database = currentDatabase()";
    let ended = || world.try_ask(under_way).is_ok_and(|answer| answer[0][0] == "0");
    until("no insert is under way", PATIENCE, String::new, ended);
    let mut fates: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in world.ask("SELECT unit, fate, units, created, adds_up FROM fates ORDER BY unit, fate") {
        let [unit, fate, units, created, adds_up] = &line[..] else { panic!("{line:?}") };
        if units != "0" {
            clock.lap(&format!("{unit:>9} {fate:<14} {units:>8} of {created}"));
        }
        assert!(matches!(adds_up.as_str(), "1" | "true"), "{unit} does not add up: {line:?}");
        fates.insert((unit.clone(), fate.clone()), units.parse().unwrap());
    }
    let of = |unit: &str, fate: &str| fates[&(unit.to_owned(), fate.to_owned())];
    for unit in ["event", "leg", "delivery"] {
        assert_eq!(of(unit, "orphans"), 0, "{unit}");
    }
    assert_eq!((of("event", "unaccounted"), of("leg", "unaccounted"), of("event", "lost")), (0, 0, 0));
    let found = Expected {
        events: world.number("SELECT uniqExact(event) FROM event_fates"),
        rejected: of("event", "rejected"),
        deduplicated: of("event", "deduplicated"),
        cancelled: of("event", "cancelled"),
    };
    assert_eq!(found, expected);
    assert_eq!(world.number("SELECT count() FROM event_fates"), expected.events, "an event has two fates");
    fates
}

/// One output of decide is one record, however often it was said: the same place, the same bytes.
pub(crate) fn decisions_were_taken_once(world: &World) {
    let mut said: BTreeMap<(Vec<u8>, Vec<u8>), Vec<u8>> = BTreeMap::new();
    for channel in [Channel::Push, Channel::Email, Channel::InApp] {
        for priority in Priority::ALL {
            let topic = world.topics.lane(channel, *priority);
            for (partition, record) in world.read(&topic) {
                if record.header(HEADER_MARK).is_some() {
                    continue;
                }
                let Some(epoch) = record.header(HEADER_EPOCH) else {
                    assert_eq!(*priority, Priority::Critical, "{topic}[{partition}] has no epoch");
                    continue;
                };
                let ordinal = record.header(HEADER_ORDINAL).unwrap_or_else(|| panic!("{topic}: no ordinal"));
                let place = (epoch.to_vec(), ordinal.to_vec());
                let value = record.value.unwrap_or_default().to_vec();
                if let Some(before) = said.insert(place, value.clone()) {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    assert_eq!(text(&before), text(&value), "{topic}[{partition}]: said twice, and differently");
                }
            }
        }
    }
    assert!(!said.is_empty());
}

/// Messages by delivery, as the providers counted them.
fn received(counts: &Value) -> BTreeMap<String, u64> {
    let mut received = BTreeMap::new();
    for (_, address) in counts["addresses"].as_object().unwrap() {
        for (delivery, messages) in address["deliveries"].as_object().unwrap() {
            *received.entry(delivery.clone()).or_insert(0) += messages.as_u64().unwrap();
        }
    }
    received
}

/// How many deliveries the providers received, how many of them more than once, and how many the record doubts.
pub(crate) struct Received {
    pub(crate) once: usize,
    pub(crate) again: usize,
    pub(crate) unknown: usize,
}

/// Who received what is what the record says; who received it twice is `unknown`.
pub(crate) fn providers_and_record_agree(world: &World, providers: &Providers, clock: &Stopwatch) -> Received {
    let received = received(&world.counts(providers));
    let of = |channel, state| in_state(world, channel, state);
    let doubled: BTreeSet<&String> = received.iter().filter(|(_, times)| **times > 1).map(|(id, _)| id).collect();
    let (mut sent, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    for channel in ["push", "email"] {
        let (delivered, failed) = (of(channel, "delivered"), of(channel, "failed"));
        let (called, doubtful) = (of(channel, "sent"), of(channel, "unknown"));
        for delivery in &called {
            let arrived = received.contains_key(delivery);
            // A mail is delivered when its receipt says so, and nobody sends receipts here.
            let is_accepted = if channel == "push" { delivered.contains(delivery) } else { !failed.contains(delivery) };
            let in_doubt = doubtful.contains(delivery);
            let story = || histories(world, &[delivery]);
            assert!(arrived || !is_accepted, "accepted in the record, and never arrived:\n{}", story());
            assert!(!arrived || is_accepted || in_doubt, "arrived, and nobody says so:\n{}", story());
            let contradicts = delivered.contains(delivery) && failed.contains(delivery);
            assert!(!contradicts || in_doubt, "delivered, and failed:\n{}", story());
        }
        sent.extend(called);
        unknown.extend(doubtful);
    }
    clock.lap(&format!("{} deliveries received, {} twice, {} unknown", received.len(), doubled.len(), unknown.len()));
    // Whoever died between a critical call without the ledger and its row left the doubt that it said before;
    // the next owner may find that nothing is to be sent any more.
    let is_told = |id: &&String| sent.contains(*id) || unknown.contains(*id);
    let silent: Vec<&str> = received.keys().filter(|id| !is_told(id)).map(String::as_str).collect();
    assert!(silent.is_empty(), "arrived, and the record does not say that it was sent:\n{}", histories(world, &silent));
    let hidden: Vec<&str> = doubled.iter().filter(|id| !unknown.contains(**id)).map(|id| id.as_str()).collect();
    assert!(hidden.is_empty(), "arrived more than once, and is not unknown:\n{}", histories(world, &hidden));
    Received { once: received.len() - doubled.len(), again: doubled.len(), unknown: unknown.len() }
}

/// Deliveries on `channel` of which a row says `state`.
pub(crate) fn in_state(world: &World, channel: &str, state: &str) -> BTreeSet<String> {
    let sql = format!(
        "SELECT DISTINCT concat('d_', lower(hex(delivery))) FROM lifecycle \
         WHERE unit = 'delivery' AND channel = '{channel}' AND has(states, '{state}')"
    );
    world.ask(&sql).into_iter().map(|mut line| line.remove(0)).collect()
}

/// What the record says of deliveries, row by row: for whoever has to find out why.
pub(crate) fn histories(world: &World, deliveries: &[&str]) -> String {
    let names: Vec<String> = deliveries.iter().take(5).map(|id| format!("unhex('{}')", &id[2..])).collect();
    let sql = format!(
        "SELECT lower(hex(delivery)), channel, priority, attempt, created_at, at, arrayStringConcat(states, '+'), provider, code, \
         reason, caused_by, lower(hex(row_id)) FROM lifecycle WHERE delivery IN ({}) ORDER BY delivery, at, attempt, row_id",
        names.join(", ")
    );
    let rows: String = world.ask(&sql).iter().map(|line| line.join(" ") + "\n").collect();
    format!("{} deliveries, among them {:?}\n{rows}", deliveries.len(), &deliveries[..deliveries.len().min(5)])
}

/// Says what took how long, for whoever runs it by hand with `--nocapture`.
pub(crate) struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "a report of how long it took")]
    pub(crate) fn start(what: String) -> Self {
        let watch = Self(std::time::Instant::now());
        watch.lap(&what);
        watch
    }

    #[expect(clippy::print_stderr, reason = "captured by the test harness")]
    pub(crate) fn lap(&self, what: &str) {
        eprintln!("{:>7.1} s  {what}", self.elapsed().as_secs_f64());
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
