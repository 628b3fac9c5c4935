//! From the example topology to chains, plans and topics.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidings_operators::calendar::Calendar;
use tidings_operators::harness::dataflow::Transport;
use tidings_operators::registry::Input;
use tidings_pipeline::assemble::{
    RunSettings, TopicsError, check_topics, critical_plan, older, partitions, plan, topics,
};
use tidings_pipeline::topology::{Config, FixedEnvironment, Loader, OperatorKinds, ProviderKinds, SourceText};
use tidings_schemas::channel::Channel;
use tidings_schemas::time::Instant;
use tidings_sinks::log::memory::MemoryLog;
use tidings_sinks::log::{Log, Retention};

fn text() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/topology.yaml")).unwrap()
}

fn config(text: &str) -> Config {
    let (operators, providers) = (OperatorKinds::standard(), ProviderKinds::standard());
    let (calendar, environment) = (Calendar::bundled(), FixedEnvironment::default());
    let loader =
        Loader { operators: &operators, providers: &providers, calendar: &calendar, environment: &environment };
    loader
        .check(SourceText::new("topology.yaml", text))
        .unwrap_or_else(|refused| panic!("{}", refused.render(false)))
        .config
}

fn settings() -> RunSettings {
    RunSettings {
        build: [7; 32],
        workers: 2,
        transport: Transport::Memory,
        epoch_min: Duration::from_millis(100),
        idle_max: Duration::from_secs(1),
        checkpoint_every: Duration::from_secs(5),
    }
}

fn memory() -> MemoryLog {
    MemoryLog::new(Arc::new(|| Instant(0))).unwrap()
}

#[test]
fn the_example_becomes_two_chains_over_numbered_sources() {
    let config = config(&text());
    let counts = BTreeMap::from([("notifications.events.high".to_owned(), 12)]);
    let (plan, assembly) = plan(&config, Calendar::bundled(), counts, &settings()).unwrap();
    let sources: Vec<_> = plan
        .sources
        .iter()
        .map(|source| (source.id.as_str(), source.partitions, source.rank, source.at_least_permille, source.side_input))
        .collect();
    assert_eq!(
        sources,
        [
            ("high", 12, 2, 200, false),
            ("medium", 1, 3, 100, false),
            ("low", 1, 4, 50, false),
            ("returned", 1, 2, 0, false),
            ("profiles", 1, 0, 0, true),
            ("addresses", 1, 0, 0, true),
        ]
    );
    let dedup = &plan.wiring.operators[1];
    assert_eq!((&*dedup.id, dedup.inputs.as_slice()), ("dedup", &[Input::Operator(0), Input::Source(3)][..]));
    let lanes: Vec<&str> = plan.wiring.operators.iter().filter(|it| it.to_lanes).map(|it| &*it.id).collect();
    assert_eq!(lanes, ["rate_limit"]);
    assert_eq!(plan.rules.spread, Duration::from_secs(1_800));
    assert!(plan.rules.provided.contains(Channel::Push) && !plan.rules.provided.contains(Channel::Sms));
    let critical = critical_plan(&plan, &assembly, 1).unwrap();
    let ids: Vec<&str> = critical.wiring.operators.iter().map(|it| &*it.id).collect();
    assert_eq!(ids, ["validate", "preferences", "route"]);
    let ids: Vec<&str> = critical.wiring.sources.iter().map(|it| &*it.id).collect();
    assert_eq!(ids, ["critical", "profiles", "addresses"]);
}

#[test]
fn a_plan_is_made_again_of_what_was_stored() {
    let config = config(&text());
    let (plan, _) = plan(&config, Calendar::bundled(), BTreeMap::new(), &settings()).unwrap();
    // Its own topics are asked for: a newer topology may know fewer.
    let log = MemoryLog::new(Arc::new(|| Instant(0))).unwrap();
    log.create(&topics(&config)).unwrap();
    let again = older(&plan.topology, Calendar::bundled(), &log, &settings()).unwrap();
    assert_eq!(again.outlets.partitions, partitions(&log, &config).unwrap());
    let counts = again.sources.iter().map(|source| (source.topic.as_str(), source.partitions));
    assert!(counts.clone().any(|count| count == ("notifications.events.high", 12)), "{:?}", counts.collect::<Vec<_>>());
    assert_eq!(again.topology, plan.topology);
    assert_eq!(again.rules.hash, plan.rules.hash);
    assert_eq!(format!("{:?}", again.wiring), format!("{:?}", plan.wiring));
    let changed = self::config(&text().replace("priority: medium, channels: [push, email]", "priority: medium"));
    let (changed, _) = self::plan(&changed, Calendar::bundled(), BTreeMap::new(), &settings()).unwrap();
    assert_ne!(changed.topology_hash(), plan.topology_hash(), "policies decide too");
    let error = older(b"{}", Calendar::bundled(), &log, &settings()).err().unwrap().to_string();
    assert!(error.starts_with("the stored topology cannot be read by this build: "), "{error}");
}

#[test]
fn topics_are_as_the_model_says() {
    // The example is for one broker; the model is for three.
    let mut text = text();
    let start = text.find("topics: {").unwrap();
    let end = start + text[start..].find('\n').unwrap();
    text.replace_range(start..end, "");
    let config = config(&text);
    let all: BTreeMap<_, _> = topics(&config).into_iter().map(|topic| (topic.name.clone(), topic)).collect();
    let kept = Duration::from_secs(8 * 86_400);
    for (name, partitions, retention) in [
        ("notifications.events.critical", 24, Retention::For(kept)),
        ("notifications.events.low", 4, Retention::For(kept)),
        ("notifications.preferences", 8, Retention::Compacted(kept)),
        ("notifications.addresses", 8, Retention::Compacted(kept)),
        ("notifications.push.high", 12, Retention::For(kept)),
        ("notifications.email.retry.bulk.15m", 4, Retention::For(kept)),
        ("notifications.dlq", 8, Retention::For(Duration::from_secs(30 * 86_400))),
        ("notifications.cuts", 1, Retention::Forever),
    ] {
        let topic = all.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!((topic.partitions, topic.retention), (partitions, retention), "{name}");
        assert_eq!((topic.replication, topic.min_insync), (3, 2), "{name}");
    }
    assert!(!all.contains_key("notifications.sms.high"), "no sink, no lane");
    let small =
        text.replace("version: 1", "version: 1\ntopics: { replication: 1, partitions: { critical: 2, high: 1 } }");
    let small = topics(&self::config(&small));
    let lane = small.iter().find(|topic| topic.name == "notifications.push.critical").unwrap();
    assert_eq!((lane.partitions, lane.replication, lane.min_insync), (2, 1, 1));
}

#[test]
fn a_missing_or_weaker_topic_is_refused_by_name() {
    let text = text().replace("kafka: { brokers: \"${KAFKA:-127.0.0.1:9092}\" }", "embedded: { path: ./data }");
    let (config, log) = (config(&text), memory());
    let mut wanted = topics(&config);
    let lane = wanted.iter_mut().find(|topic| topic.name == "notifications.push.high").unwrap();
    lane.partitions += 1;
    wanted.retain(|topic| topic.name != "notifications.dlq");
    log.create(&wanted).unwrap();
    let Err(TopicsError::Weak(weak)) = check_topics(&log, &config) else { panic!("not refused") };
    assert_eq!(
        weak.0,
        [
            "topic `notifications.dlq` does not exist; create it with `tidings topics create`",
            "topic `notifications.push.high` has 5 partitions, expected 4; records are placed by their count",
        ]
    );
    let log = memory();
    log.create(&topics(&config)).unwrap();
    check_topics(&log, &config).unwrap();
    assert_eq!(partitions(&log, &config).unwrap()["notifications.events.high"], 4);
}
