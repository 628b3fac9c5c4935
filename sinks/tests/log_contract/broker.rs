//! What only Kafka has: transactions, its own time, names of members, foreign topics, brokers that are killed.

use std::cell::Cell;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tidings_sinks::log::kafka::{KafkaLog, KafkaParams};
use tidings_sinks::log::{Commit, LogError, Retention, TopicSpec};

use crate::{
    EIGHT_DAYS, Ears, LONG, World, append, at, given, kafka, kafka_named, kafka_params, kafka_with, say, settle,
    skipped, text, texts, to_end,
};

#[test]
fn an_end_that_holds_no_record_is_reached_by_position() {
    let Some(world) = kafka("an_end_that_holds_no_record_is_reached_by_position") else { return };
    let topic = world.topic("t", 1);
    let partition = at(&topic, 0);
    let brokers = given("TIDINGS_TEST_KAFKA").unwrap();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("transactional.id", &world.prefix);
    let producer: BaseProducer = config.create().unwrap();
    producer.init_transactions(LONG).unwrap();
    let transaction = |word: &str| {
        producer.begin_transaction().unwrap();
        producer.send(BaseRecord::<str, str>::to(&topic).payload(word)).map_err(|(error, _)| error).unwrap();
        producer.flush(LONG).unwrap();
    };
    transaction("a");
    producer.commit_transaction(LONG).unwrap();
    transaction("given up");
    producer.abort_transaction(LONG).unwrap();
    // Offsets: the record, a marker, the aborted record, a marker.
    // The last marker is written after the answer: ask until it stands there.
    while world.log.range(&partition).unwrap() != (0..4) {
        std::thread::yield_now();
    }
    for (from, expected) in [(0, "a"), (1, ""), (3, ""), (4, "")] {
        let (records, position) = to_end(&mut *world.log.reader(&partition, from).unwrap());
        assert_eq!((records.iter().map(text).collect::<String>().as_str(), position), (expected, 4), "from {from}");
    }
    // While a transaction is open, the end is before it, and nothing of it is passed over.
    transaction("b");
    assert_eq!(world.log.range(&partition).unwrap(), 0..4);
    let mut reader = world.log.reader(&partition, 1).unwrap();
    assert_eq!(to_end(&mut *reader), (vec![], 4));
    producer.commit_transaction(LONG).unwrap();
    let (records, position) = to_end(&mut *reader);
    assert_eq!((text(&records[0]), records.len(), position), ("b".to_owned(), 1, 6));
}

#[test]
fn kafka_tells_its_time_after_an_append_it_stamped() {
    let Some(world) = kafka("kafka_tells_its_time_after_an_append_it_stamped") else { return };
    let (events, cuts) = (world.topic("t", 1), world.topic_kept("cuts", 1, Retention::Forever));
    append(&*world.log, &at(&events, 0), &["a"]);
    let refused = world.log.time();
    assert!(matches!(&refused, Err(LogError::Refused(why)) if why.contains("LogAppendTime")), "{refused:?}");
    append(&*world.log, &at(&cuts, 0), &["a"]);
    let (records, _) = to_end(&mut *world.log.reader(&at(&cuts, 0), 0).unwrap());
    assert_eq!(world.log.time().unwrap(), records[0].timestamp);
}

#[test]
fn a_full_queue_holds_the_caller_back() {
    let Some(world) = kafka_with("a_full_queue_holds_the_caller_back", &[("queue.buffering.max.messages", "7")]) else {
        return;
    };
    let partition = at(&world.topic("t", 1), 0);
    let words: Vec<String> = (0..300).map(|index| index.to_string()).collect();
    let offsets = append(&*world.log, &partition, &words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(offsets, (0..300).collect::<Vec<_>>());
    assert_eq!(texts(&*world.log, &partition, 0), words.join(" "));
}

/// Two processes of one name: what a restart after a crash looks like to the broker, and to a zombie.
#[test]
fn who_comes_back_under_a_name_has_its_partitions_at_once_and_the_one_before_commits_nothing() {
    let scenario = "who_comes_back_under_a_name_has_its_partitions_at_once_and_the_one_before_commits_nothing";
    let (Some(world), Some(after)) = (kafka_named(scenario, "one"), kafka_named(scenario, "one")) else { return };
    let (topic, group) = (world.topic("t", 1), world.group());
    let partition = at(&topic, 0);
    append(&*world.log, &partition, &["a"]);
    let (old_ears, new_ears) = (Arc::new(Ears::default()), Arc::new(Ears::default()));
    let mut old = world.log.join(&group, std::slice::from_ref(&topic), old_ears.clone()).unwrap();
    assert_eq!(old_ears.hear_until(&mut *old, 1).join(" "), "a");
    let mut new = after.log.join(&group, std::slice::from_ref(&topic), new_ears.clone()).unwrap();
    assert_eq!(new_ears.hear_until(&mut *new, 1).join(" "), "a");
    let fenced = LogError::Fenced(group.clone());
    let commit = || Commit { offset: 1, metadata: String::new() };
    // First the broker refuses it, then a heartbeat tells the member, and from then on librdkafka refuses everything.
    for _ in 0..15 {
        assert_eq!(old.commit(&[(partition.clone(), commit())]), Err(fenced.clone()));
        assert_eq!(new.poll(1, Duration::from_millis(100)).unwrap(), vec![]);
    }
    let error = loop {
        match old.poll(1, LONG) {
            Ok(found) => assert_eq!(found, vec![]),
            Err(error) => break error,
        }
    };
    assert_eq!(error, fenced);
    assert_eq!(old_ears.owned().len(), 0);
    drop(old);
    assert_eq!(world.log.committed(&group, &partition).unwrap(), None);
    append(&*world.log, &partition, &["b"]);
    assert_eq!(new_ears.hear_until(&mut *new, 1).join(" "), "b");

    // The one before was told that somebody else has its name: it comes again without, and throws nobody out.
    let mut again = world.log.join(&group, std::slice::from_ref(&topic), old_ears.clone()).unwrap();
    let rounds = Cell::new(0);
    let heard = settle(&mut [(&mut *again, &old_ears), (&mut *new, &new_ears)], || {
        rounds.set(rounds.get() + 1);
        rounds.get() > 20 && old_ears.owned().len() + new_ears.owned().len() == 1
    });
    assert_eq!(heard, Vec::<String>::new());
}

#[test]
fn settings_of_a_foreign_topic_that_lose_records_are_named() {
    let Some(world) = kafka("settings_of_a_foreign_topic_that_lose_records_are_named") else { return };
    let brokers = given("TIDINGS_TEST_KAFKA").unwrap();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let name = format!("{}.foreign", world.prefix);
    let topic = NewTopic::new(&name, 1, TopicReplication::Fixed(1)).set("unclean.leader.election.enable", "true");
    let topic = topic.set("min.insync.replicas", "1").set("retention.ms", "60000").set("retention.bytes", "4096");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    let retention = Retention::For(EIGHT_DAYS);
    let want = TopicSpec { name: name.clone(), partitions: 1, retention, replication: 3, min_insync: 2 };
    let said = loop {
        let said = world.log.weaknesses(std::slice::from_ref(&want)).unwrap();
        // The broker hears of a new topic a little later than the controller.
        if !said[0].contains("does not exist") {
            break said.join("\n").replace(&name, "T");
        }
    };
    let expected = [
        "topic `T` is kept for 60 s, expected for 691200 s; after a longer outage nobody could read on; \
         set cleanup.policy to delete and raise retention.ms",
        "topic `T` has replication factor 1, expected 3",
        "topic `T` acknowledges with 1 copies (min.insync.replicas), expected 2",
        "topic `T`: unclean.leader.election.enable is true, so acknowledged records can vanish; set it to false",
        "topic `T`: retention.bytes is 4096, so a burst shortens retention; set it to -1",
        "topic `T`: max.message.bytes is 1048588, a record may have more; set it to at least 8454144",
    ];
    assert_eq!(said, expected.join("\n"));
}

/// A broker of the test's own, from a folder of Kafka's jars: one that may be killed.
struct Broker {
    directory: tempfile::TempDir,
    jars: String,
    port: u16,
    process: Option<Child>,
}

impl Broker {
    fn new(jars: String) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (directory, port, controller) = (tempfile::tempdir().unwrap(), free(), free());
        let path = directory.path().display();
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\nlog.dirs={path}/data\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
             group.initial.rebalance.delay.ms=0\nauto.create.topics.enable=false\n\
             log.cleaner.dedupe.buffer.size=4194304\nbroker.session.timeout.ms=2000\n\
             broker.heartbeat.interval.ms=500\n"
        );
        std::fs::write(directory.path().join("server.properties"), properties).unwrap();
        let mut broker = Self { directory, jars, port, process: None };
        let format = ["format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"];
        assert!(broker.java("kafka.tools.StorageTool", &format).wait().unwrap().success());
        broker.start();
        broker
    }

    fn java(&self, class: &str, arguments: &[&str]) -> Child {
        let mut java = Command::new("java");
        java.args(["-Xmx384m", "-cp", &format!("{}/*", self.jars), class]).args(arguments);
        java.arg(self.directory.path().join("server.properties")).stdout(Stdio::null()).stderr(Stdio::null());
        java.spawn().unwrap()
    }

    fn start(&mut self) {
        self.process = Some(self.java("kafka.Kafka", &[]));
    }

    /// SIGKILL, and wait until it is gone.
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn a_killed_broker_keeps_what_it_acknowledged() {
    let Some(jars) = given("TIDINGS_TEST_KAFKA_JARS") else {
        return skipped("a_killed_broker_keeps_what_it_acknowledged", "TIDINGS_TEST_KAFKA_JARS");
    };
    let mut broker = Broker::new(jars);
    let patience = Duration::from_secs(3);
    let world = World::new(|_| {
        let params = kafka_params(format!("127.0.0.1:{}", broker.port));
        Arc::new(KafkaLog::open(KafkaParams { patience, ..params }).unwrap())
    });
    // The first calls fail until the broker is up; each waits for it.
    while world.log.describe(&[]).is_err() {}
    let partition = at(&world.topic("t", 1), 0);
    let mut reader = world.log.reader(&partition, 0).unwrap();
    append(&*world.log, &partition, &["a", "b"]);

    let ears = Arc::new(Ears::default());
    let topics = [partition.topic.to_string()];
    let mut member = world.log.join(&world.group(), &topics, ears.clone()).unwrap();
    assert_eq!(ears.hear_until(&mut *member, 2).join(" "), "a b");

    broker.kill();
    // A member that leaves has something to commit, and nobody takes it: it does not wait for ever.
    let (done, left) = std::sync::mpsc::sync_channel(1);
    let leaving = std::thread::spawn(move || {
        drop(member);
        done.send(()).unwrap();
    });
    left.recv_timeout(LONG).unwrap();
    leaving.join().unwrap();
    let lost = world.log.append(&[say(&partition, "maybe"), say(&partition, "perhaps")]).unwrap_err();
    assert!(lost.is_transient(), "{lost}");
    let mut heard = Vec::new();
    let gone = loop {
        match reader.poll(10, patience) {
            Ok(batch) => heard.extend(batch.records.iter().map(text)),
            Err(error) => break error,
        }
    };
    assert!(matches!(gone, LogError::Unreachable(_)), "{gone}");

    broker.start();
    let offsets = loop {
        match world.log.append(&[say(&partition, "c"), say(&partition, "d")]) {
            Ok(offsets) => break offsets,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    };
    let all = texts(&*world.log, &partition, 0);
    assert!(all.starts_with("a b") && all.ends_with("c d"), "{all}");
    assert_eq!(texts(&*world.log, &partition, offsets[0]), "c d");
    // The reader that saw the broker go reads on.
    while heard.last().is_none_or(|last| last != "d") {
        match reader.poll(10, patience) {
            Ok(batch) => heard.extend(batch.records.iter().map(text)),
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
    assert_eq!(heard.join(" "), all);
}
