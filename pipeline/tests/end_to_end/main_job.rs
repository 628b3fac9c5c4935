//! Events of every kind go all the way, through a SIGKILL in the middle; then everything adds up.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checks::{
    Stopwatch, decisions_were_taken_once, fates_add_up, faults, histories, in_state, providers_and_record_agree, story,
    unsettled,
};
use crate::workload::Workload;
use crate::world::{PATIENCE, Running, World, environment, now, until};

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

    let fates = fates_add_up(&world, expected, &clock);
    for fate in ["notified", "merged", "parked", "retracted", "suppressed"] {
        let units = fates[&("event".to_owned(), fate.to_owned())];
        assert!(units > 0, "no event was {fate}: the workload shows less than it should");
    }
    decisions_were_taken_once(&world);
    providers_and_record_agree(&world, &providers, &clock);
    seed_queries_are_right(&world, &clock);
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
            // Both interpolate between two whole numbers, and round in other places.
            let (low, high) = (at_rank(all, level - slack) - 0.001, at_rank(all, level + slack) + 0.001);
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
