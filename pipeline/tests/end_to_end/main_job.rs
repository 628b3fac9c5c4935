//! Events of every kind go all the way, through a SIGKILL in the middle; then everything adds up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::lane::{HEADER_EPOCH, HEADER_MARK, HEADER_ORDINAL};

use crate::workload::{Expected, Workload};
use crate::world::{PATIENCE, Providers, Running, World, environment, now, until};

/// How many events where nobody says: what CI has time for.
const EVENTS: usize = 10_000;
/// How long all of it may take, beside two milliseconds an event.
const SETTLED_WITHIN: Duration = Duration::from_secs(240);

#[test]
fn every_event_has_one_fate_through_a_kill_in_the_middle() {
    let Some(mut world) = World::new("every_event_has_one_fate_through_a_kill_in_the_middle") else { return };
    let given = |name: &str, default: usize| environment(name).map_or(default, |text| text.parse().unwrap());
    let events = given("TIDINGS_E2E_EVENTS", EVENTS);
    let seed = given("TIDINGS_E2E_SEED", 1) as u64;
    let clock = Stopwatch::start(format!("{events} events, TIDINGS_E2E_SEED={seed}"));
    let Workload { people, stream, expected } = Workload::new(seed, events, now());
    let records = (people.len() + stream.len()) as u64;
    world.create_topics();
    clock.lap("topics created");
    let providers = world.providers();
    world.post_json(&format!("{}/api/faults", providers.inbox), &faults());
    world.write(&people);

    let running = world.run();
    clock.lap("people written, running");
    let cut = |running: &Running| world.metric(running, "tidings_source_records_total").unwrap_or(0);
    // More than half is there when half was cut, and the rest comes while nobody runs.
    let (before, after) = stream.split_at(stream.len() * 2 / 3);
    world.write(before);
    until("half of the records are cut", PATIENCE, || running.said(), || cut(&running) * 2 >= records);
    let cut_before = cut(&running);
    running.kill();
    clock.lap(&format!("killed after {cut_before} of {records} source records"));

    world.write(after);
    let running = world.run();
    let within = SETTLED_WITHIN + Duration::from_millis(2 * events as u64);
    until(
        "all is decided and delivered",
        within,
        || story(&world, &running, expected),
        || unsettled(&world, expected).next().is_none(),
    );
    clock.lap("all decided, delivered and recorded");
    let replayed = world.metric(&running, "tidings_replayed_epochs_total").unwrap();
    assert!(replayed > 0, "the second run replayed nothing: the kill proved nothing\n{}", running.said());
    clock.lap(&format!("{replayed} epochs were replayed"));
    let (status, said) = running.stop();
    assert!(status.success(), "{status}\n{said}");
    clock.lap(&format!("stopped:\n{said}"));

    fates_add_up(&world, expected, &clock);
    decisions_were_taken_once(&world);
    providers_and_record_agree(&world, &providers, &clock);
    seed_queries_are_right(&world, &clock);
}

/// What providers do wrong: often enough to be met, seldom enough to be over soon.
fn faults() -> Value {
    json!({ "rules": [
        { "provider": "apns", "every": 97, "fault": { "kind": "server_error", "status": 503 } },
        { "provider": "apns", "every": 211, "fault": { "kind": "invalid_address" } },
        { "provider": "fcm", "every": 89, "fault": { "kind": "too_many_requests", "retry_after": "1" } },
        { "provider": "ses", "every": 13, "fault": { "kind": "server_error", "status": 500 } },
    ] })
}

/// What is still to come, in words; nothing once all is settled. The cheapest question comes first.
fn unsettled(world: &World, expected: Expected) -> impl Iterator<Item = String> {
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
fn story(world: &World, running: &Running, expected: Expected) -> String {
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
        world.get(&format!("{}/metrics", running.console)).unwrap_or_default(),
        running.said(),
    )
}

/// The one query, and what the workload knows.
fn fates_add_up(world: &World, expected: Expected, clock: &Stopwatch) {
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
    for fate in ["notified", "merged", "parked", "retracted", "suppressed"] {
        assert!(of("event", fate) > 0, "no event was {fate}: the workload shows less than it should");
    }
}

/// One output of decide is one record, however often it was said: the same place, the same bytes.
fn decisions_were_taken_once(world: &World) {
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

/// Who received what is what the record says; who received it twice is `unknown`.
fn providers_and_record_agree(world: &World, providers: &Providers, clock: &Stopwatch) {
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
}

/// Deliveries on `channel` of which a row says `state`.
fn in_state(world: &World, channel: &str, state: &str) -> BTreeSet<String> {
    let sql = format!(
        "SELECT DISTINCT concat('d_', lower(hex(delivery))) FROM lifecycle \
         WHERE unit = 'delivery' AND channel = '{channel}' AND has(states, '{state}')"
    );
    world.ask(&sql).into_iter().map(|mut line| line.remove(0)).collect()
}

/// What the record says of deliveries, row by row: for whoever has to find out why.
fn histories(world: &World, deliveries: &[&str]) -> String {
    let names: Vec<String> = deliveries.iter().take(5).map(|id| format!("unhex('{}')", &id[2..])).collect();
    let sql = format!(
        "SELECT lower(hex(delivery)), channel, priority, attempt, created_at, at, arrayStringConcat(states, '+'), provider, code, \
         reason, caused_by, lower(hex(row_id)) FROM lifecycle WHERE delivery IN ({}) ORDER BY delivery, at, attempt, row_id",
        names.join(", ")
    );
    world.ask(&sql).iter().map(|line| line.join(" ") + "\n").collect()
}

const RATES: &str = include_str!("../../../schemas/queries/delivery_rates.sql");
const ENGAGEMENT: &str = include_str!("../../../schemas/queries/email_engagement.sql");
const LATENCY: &str = include_str!("../../../schemas/queries/delivery_latency.sql");

/// The second seed's three queries, word for word.
fn seed_queries_are_right(world: &World, clock: &Stopwatch) {
    let mut rates: BTreeMap<String, (u64, u64, u64, String)> = BTreeMap::new();
    for line in world.ask(RATES) {
        clock.lap(&format!("rates: {}", line.join(" ")));
        let number = |index: usize| line[index].parse().unwrap();
        rates.insert(line[0].clone(), (number(1), number(2), number(3), line[4].clone()));
    }
    for (channel, (sent, delivered, failed, rate)) in &rates {
        let count = |state| in_state(world, channel, state).len() as u64;
        assert_eq!((*sent, *delivered, *failed), (count("sent"), count("delivered"), count("failed")), "{channel}");
        let expected = (*delivered as f64 / *sent as f64 * 10_000.0).round() / 100.0;
        assert!((rate.parse::<f64>().unwrap() - expected).abs() < 0.011, "{channel}: {rate} is not {expected}");
    }
    assert_eq!(rates.keys().collect::<Vec<_>>(), ["email", "in_app", "push"]);
    // What is stored is delivered. One that was not answered in time may be unwanted when it is tried again.
    let (sent, delivered, failed, _) = &rates["in_app"];
    assert_eq!(*sent, delivered + failed, "what is stored is delivered");
    let (failed, retried) = (in_state(world, "in_app", "failed"), in_state(world, "in_app", "retry"));
    let at_once: Vec<&str> = failed.difference(&retried).map(String::as_str).collect();
    assert!(at_once.is_empty(), "failed at the first attempt:\n{}", histories(world, &at_once));
    for line in world.ask(ENGAGEMENT) {
        assert_eq!(line[1..4], ["0", "0", "0"], "nobody reports on mails here: {line:?}");
    }

    // By delivery first, so that whoever differs can be named.
    let by_delivery = |sql: &str| -> BTreeMap<String, Vec<String>> {
        world.ask(sql).into_iter().map(|mut line| (line.remove(0), line)).collect()
    };
    let rows = by_delivery(
        "SELECT concat('d_', lower(hex(delivery))), channel, priority, \
         toUnixTimestamp64Milli(min(at)) - toUnixTimestamp64Milli(min(created_at)) \
         FROM lifecycle WHERE unit = 'delivery' AND has(states, 'delivered') GROUP BY delivery, channel, priority",
    );
    let view = by_delivery(
        "SELECT delivery_id, channel, priority, dateDiff('millisecond', created_at, delivered_at) \
         FROM notification_deliveries WHERE delivered_at IS NOT NULL",
    );
    let differs = |id: &&String| rows.get(*id) != view.get(*id);
    let differing: Vec<&str> = rows.keys().chain(view.keys()).filter(differs).map(String::as_str).collect();
    assert!(differing.is_empty(), "the view tells other latencies than the rows:\n{}", histories(world, &differing));
    let mut latencies: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for line in rows.into_values() {
        let [channel, priority, latency] = &line[..] else { panic!("{line:?}") };
        latencies.entry((channel.clone(), priority.clone())).or_default().push(latency.parse().unwrap());
    }
    let answer = world.ask(LATENCY);
    assert_eq!(answer.len(), latencies.len());
    for line in answer {
        clock.lap(&format!("latency: {}", line.join(" ")));
        let all = latencies.get_mut(&(line[0].clone(), line[1].clone())).unwrap();
        all.sort_by(f64::total_cmp);
        for (level, found) in [0.5, 0.95, 0.99].into_iter().zip(&line[2..]) {
            let found: f64 = found.parse().unwrap();
            // ClickHouse's `quantile` takes a sample of 8192: where there are more, it is near the rank, not at it.
            let slack = if all.len() <= 8192 { 0.0 } else { 0.02 };
            let (low, high) = (at_rank(all, level - slack).floor(), at_rank(all, level + slack).ceil());
            assert!((low..=high).contains(&found), "{line:?}: {level} is not within {low}..={high}");
        }
    }
}

/// The value at `level`, between its neighbours where it falls between two.
fn at_rank(sorted: &[f64], level: f64) -> f64 {
    let place = level.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

/// Says what took how long, for whoever runs it by hand with `--nocapture`.
struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "a report of how long it took")]
    fn start(what: String) -> Self {
        let watch = Self(std::time::Instant::now());
        watch.lap(&what);
        watch
    }

    #[expect(clippy::print_stderr, reason = "captured by the test harness")]
    fn lap(&self, what: &str) {
        eprintln!("{:>7.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}
