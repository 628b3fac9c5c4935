//! What a user can get wrong, and what can be away: a clear message, and nothing lost.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tidings_schemas::channel::Priority;
use tidings_sinks::log::{Log as _, TopicPartition};

use crate::workload::{To, Written};
use crate::world::{PATIENCE, Running, World, until};

pub(crate) const RUN: [&str; 7] = ["run", "-c", "topology.yaml", "--admin", "127.0.0.1:0", "--ca", "keys/ca.pem"];

/// Runs it to its end: the exit code, and what it said.
fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// One-time codes and orders, for people whom nobody knows.
pub(crate) fn events(count: usize) -> Vec<Written> {
    let event = |number: usize| {
        let user = format!("u{number}");
        let value = format!(
            r#"{{"id":"e{number}","type":"order_shipped","user_id":"{user}","data":{{"order_id":"o{number}"}}}}"#
        );
        Written { to: To::Events(Priority::High), key: user, value: value.into_bytes() }
    };
    (0..count).map(event).collect()
}

pub(crate) fn recorded(world: &World, events: u64) -> bool {
    let asked = world.try_ask("SELECT countIf(is_created AND fate != 'unaccounted') FROM event_fates");
    asked.is_ok_and(|answer| answer[0][0] == events.to_string())
}

#[test]
fn a_missing_topic_is_named_and_refused() {
    let Some(mut world) = World::new("a_missing_topic_is_named_and_refused") else { return };
    let _providers = world.providers();
    let (code, said) = refused(world.tidings(&RUN));
    let missing = format!(
        "topic `{}` does not exist; create it with `tidings topics create`",
        world.topics.events(Priority::High)
    );
    assert!(said.contains(&missing), "{said}");
    assert_eq!(code, Some(78), "{said}");
}

#[test]
fn a_kafka_that_is_not_there_is_named() {
    let Some(mut world) = World::new("a_kafka_that_is_not_there_is_named") else { return };
    // Nobody listens on port 1.
    world.set("KAFKA", "127.0.0.1:1".to_owned());
    let (code, said) = refused(world.tidings(&["topics", "check", "-c", "topology.yaml"]));
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("the log cannot be reached"), "{said}");
}

#[test]
fn wrong_yaml_is_refused_with_its_line() {
    let Some(world) = World::new("wrong_yaml_is_refused_with_its_line") else { return };
    world.write_topology(|text| text.replace("kind: dedup,", "kind: deduplicate,"));
    let (code, said) = refused(world.tidings(&RUN));
    assert_eq!(code, Some(78), "{said}");
    let text = std::fs::read_to_string(world.path("topology.yaml")).unwrap();
    let line = 1 + text.lines().position(|line| line.contains("deduplicate")).unwrap();
    assert!(said.contains(&format!("topology.yaml:{line}:")) && said.contains("dedup"), "{said}");
    world.write_topology(|text| text.replace("/?database=", "/?databse=").replace("${CLICKHOUSE:-", "${NONE:-tcp://"));
    let (code, said) = refused(world.tidings(&RUN));
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("no address of ClickHouse"), "{said}");
}

#[test]
fn rows_wait_for_a_clickhouse_that_comes_late() {
    let Some(mut world) = World::new("rows_wait_for_a_clickhouse_that_comes_late") else { return };
    world.create_topics();
    let _providers = world.providers();
    // Nothing listens at the port until the events are decided.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.set("CLICKHOUSE", format!("http://{port}/?database={}", world.database));
    world.write(&events(200));
    let running = Running::start(world.tidings(&RUN));
    let cut = || world.metric(&running, "tidings_source_records_total").unwrap_or(0);
    until("the events are decided", PATIENCE, || running.said(), || cut() >= 200);
    let waits = "ClickHouse's schema cannot be brought up to date; the log keeps the rows";
    running.until("it says what it waits for", |heard| heard.said.contains(waits));
    let _bridge = Bridge::between(port, &world.services.clickhouse);
    until("the rows arrive", PATIENCE, || running.said(), || recorded(&world, 200));
    let (status, said) = running.stop();
    assert!(status.success(), "{said}");
    assert_eq!(world.number("SELECT count() - uniqExact(row_id) FROM lifecycle FINAL"), 0);
}

#[test]
fn checkpoints_that_cannot_be_written_lose_nothing() {
    let Some(mut world) = World::new("checkpoints_that_cannot_be_written_lose_nothing") else { return };
    world.create_topics();
    let _providers = world.providers();
    world.write(&events(100));
    let running = Running::start(world.tidings(&RUN));
    until("the events are recorded", PATIENCE, || running.said(), || recorded(&world, 100));
    // Root may write anywhere; a file where a folder was stops root too.
    let (folder, aside) = (world.path("data/checkpoints"), world.path("data/aside"));
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "full").unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o400)).unwrap();
    world.write(&events(300)[100..]);
    let failures = || world.metric(&running, "tidings_checkpoint_failures_total").unwrap_or(0);
    until("a checkpoint fails", PATIENCE, || running.said(), || failures() > 0);
    until("events are decided all the same", PATIENCE, || running.said(), || recorded(&world, 300));
    assert!(running.said().contains("checkpoint"), "{}", running.said());
    running.kill();
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    let running = Running::start(world.tidings(&RUN));
    world.write(&events(400)[300..]);
    until("all are recorded, once", PATIENCE, || running.said(), || recorded(&world, 400));
    assert_eq!(world.number("SELECT count() FROM event_fates"), 400);
    let (status, said) = running.stop();
    assert!(status.success(), "{said}");
}

/// What somebody does to topics behind the pipeline's back.
struct Meddler {
    runtime: tokio::runtime::Runtime,
    admin: AdminClient<DefaultClientContext>,
}

impl Meddler {
    fn new(world: &World) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &world.services.kafka);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, admin: config.create().unwrap() }
    }

    fn set(&self, topic: &str, settings: &[(&str, &str)]) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic));
        let change = settings.iter().fold(change, |change, (name, value)| change.set(name, value));
        self.runtime.block_on(self.admin.alter_configs([&change], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    }

    fn delete(&self, world: &World, topic: &str) {
        self.runtime.block_on(self.admin.delete_topics(&[topic], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
        let gone = || world.log.describe(&[topic.to_owned()]).is_ok_and(|found| found.is_empty());
        until("the topic is gone", PATIENCE, String::new, gone);
    }

    fn create(&self, world: &World, topic: &str, partitions: i32) {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let new = new.set("retention.ms", "691200000").set("max.message.bytes", "8454144");
        // A name that was deleted just now may be taken for a moment longer.
        let create = || {
            let created = self.runtime.block_on(self.admin.create_topics([&new], &AdminOptions::new()));
            created.is_ok_and(|created| created[0].is_ok())
        };
        until("the topic is there again", PATIENCE, String::new, create);
        let at = TopicPartition { topic: topic.into(), partition: 0 };
        until("it can be asked", PATIENCE, String::new, || world.log.range(&at).is_ok());
    }

    fn add_partitions(&self, topic: &str, count: usize) {
        let new = NewPartitions::new(topic, count);
        let made = self.runtime.block_on(self.admin.create_partitions([&new], &AdminOptions::new())).unwrap();
        made[0].as_ref().unwrap();
    }
}

#[test]
fn topics_that_changed_while_nobody_ran_are_told_and_nothing_is_skipped() {
    let Some(mut world) = World::new("topics_that_changed_while_nobody_ran_are_told_and_nothing_is_skipped") else {
        return;
    };
    world.create_topics();
    let _providers = world.providers();
    let meddler = Meddler::new(&world);
    let (high, low) = (world.topics.events(Priority::High), world.topics.events(Priority::Low));
    let refuses = |expected: &str| {
        let (code, said) = refused(world.tidings(&RUN));
        assert!(code != Some(0) && said.contains(expected), "{code:?}: {expected}\n{said}");
    };
    world.write(&events(100));
    let running = Running::start(world.tidings(&RUN));
    until("the events are recorded", PATIENCE, || running.said(), || recorded(&world, 100));
    let (status, said) = running.stop();
    assert!(status.success(), "{said}");

    // A compacted topic whose older records may be gone before a replay reads them.
    let compacted =
        |lag| [("cleanup.policy", "compact"), ("min.compaction.lag.ms", lag), ("delete.retention.ms", "691200000")];
    let large = ("max.message.bytes", "8454144");
    let preferences = world.topics.preferences();
    meddler.set(&preferences, &[&compacted("1000")[..], &[large]].concat());
    refuses(&format!(
        "topic `{preferences}` is kept compacted after 1 s, expected compacted after 691200 s; a replay must meet the \
         records that were read; set cleanup.policy to compact and raise min.compaction.lag.ms and delete.retention.ms"
    ));
    meddler.set(&preferences, &[&compacted("691200000")[..], &[large]].concat());

    // Retention that is shorter than the outage.
    let at = TopicPartition { topic: high.as_str().into(), partition: 0 };
    let read = world.log.range(&at).unwrap().end;
    world.write(&events(200)[100..]);
    world.log.trim(&at, read + 5).unwrap();
    let given_up = read + 5;
    refuses(&format!("source `high`, {at}: records {read}..{given_up} were given up before anything was decided"));

    // Another topic under the same name.
    meddler.delete(&world, &high);
    meddler.create(&world, &high, 2);
    refuses(&format!("source `high`, {at}: its end is 0, and it was read up to {read}: the topic was recreated"));

    // What the message says can be done.
    world.write_topology(|text| {
        text.replace("  high:     {", "  fresh:    {").replace("input: [high,", "input: [fresh,")
    });
    world.write(&events(250)[200..]);
    let running = Running::start(world.tidings(&RUN));
    until("the new topic's events are recorded", PATIENCE, || running.said(), || recorded(&world, 150));
    let (status, said) = running.stop();
    assert!(status.success(), "{said}");

    meddler.add_partitions(&low, 3);
    let added = || world.partitions(&low) == 3;
    until("the partitions are there", PATIENCE, String::new, added);
    refuses(&format!("topic `{low}` has 3 partitions, expected 1; records are placed by their count"));
}

/// Carries connections to a port on to a server, as a server that comes late would answer them.
#[expect(dead_code, reason = "held for its end")]
struct Bridge(tokio::runtime::Runtime);

impl Bridge {
    fn between(port: std::net::SocketAddr, server: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = server.trim_start_matches("http://").to_owned();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(port)).unwrap();
        runtime.handle().spawn(async move {
            let mut carried = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let server = server.clone();
                carried.spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(server).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self(runtime)
    }
}
