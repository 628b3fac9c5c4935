//! One contract, every log: what `sinks::log` promises, asked of the log in memory, of the embedded
//! one, and of a real Kafka.
//!
//! Kafka is asked where `TIDINGS_TEST_KAFKA` names a broker (`host:port`); without it those tests say
//! on stderr that they were skipped. CI always sets it. What only one kind of log has is asked in rooms of its own.

mod broker;
mod local;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tidings_schemas::time::Instant;
use tidings_sinks::log::embedded::EmbeddedLog;
use tidings_sinks::log::kafka::{Instance, KafkaLog, KafkaParams};
use tidings_sinks::log::memory::MemoryLog;
use tidings_sinks::log::{
    Append, Assignment, Batch, Clock, Commit, GroupReader, Log, LogError, RECORD_BYTES_MAX, Reader, Record, Retention,
    TopicPartition, TopicSpec,
};

/// Longer than anything takes; whoever waits it out has failed.
const LONG: Duration = Duration::from_secs(30);
const EIGHT_DAYS: Duration = Duration::from_secs(8 * 86_400);

/// A log, and a prefix that keeps a test's topics and groups apart on a shared one.
struct World {
    log: Arc<dyn Log>,
    prefix: String,
    _directory: tempfile::TempDir,
}

static WORLDS: AtomicU32 = AtomicU32::new(0);

impl World {
    fn new(open: impl FnOnce(&std::path::Path) -> Arc<dyn Log>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let random = directory.path().file_name().unwrap().to_string_lossy().trim_start_matches('.').to_owned();
        let prefix = format!("{random}-{}", WORLDS.fetch_add(1, Ordering::Relaxed));
        Self { log: open(directory.path()), prefix, _directory: directory }
    }

    fn topic(&self, name: &str, partitions: u32) -> String {
        self.topic_kept(name, partitions, Retention::For(EIGHT_DAYS))
    }

    fn topic_kept(&self, name: &str, partitions: u32, retention: Retention) -> String {
        let name = format!("{}.{name}", self.prefix);
        self.log.create(&[TopicSpec::one_copy(&name, partitions, retention)]).unwrap();
        name
    }

    fn group(&self) -> String {
        format!("{}-group", self.prefix)
    }
}

fn at(topic: &str, partition: u32) -> TopicPartition {
    TopicPartition { topic: topic.into(), partition }
}

fn say(to: &TopicPartition, text: &str) -> Append {
    Append {
        to: to.clone(),
        key: Some("k".into()),
        value: Some(Bytes::copy_from_slice(text.as_bytes())),
        headers: vec![],
    }
}

fn append(log: &dyn Log, to: &TopicPartition, texts: &[&str]) -> Vec<u64> {
    log.append(&texts.iter().map(|text| say(to, text)).collect::<Vec<_>>()).unwrap()
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.clone().unwrap_or_default().to_vec()).unwrap()
}

/// Everything from `reader` up to the end.
fn to_end(reader: &mut dyn Reader) -> (Vec<Record>, u64) {
    let mut records = Vec::new();
    loop {
        let batch = reader.poll(7, LONG).unwrap();
        records.extend(batch.records);
        if batch.at_end {
            return (records, batch.position);
        }
    }
}

fn texts(log: &dyn Log, from: &TopicPartition, offset: u64) -> String {
    let (records, _) = to_end(&mut *log.reader(from, offset).unwrap());
    records.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// Keeps what it hears, and commits what it was told to when it is asked.
#[derive(Default)]
struct Ears {
    assigned: Mutex<BTreeMap<TopicPartition, Option<Commit>>>,
    read_to: Mutex<BTreeMap<TopicPartition, u64>>,
    revoked: AtomicU32,
}

impl Assignment for Ears {
    fn assigned(&self, partitions: &[(TopicPartition, Option<Commit>)]) {
        self.assigned.lock().unwrap().extend(partitions.iter().cloned());
    }

    fn revoked(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, Commit)> {
        let (mut assigned, mut read_to) = (self.assigned.lock().unwrap(), self.read_to.lock().unwrap());
        self.revoked.fetch_add(1, Ordering::Relaxed);
        let mut commits = Vec::new();
        for partition in partitions {
            assert!(assigned.remove(partition).is_some(), "{partition} revoked without having been assigned");
            if let Some(offset) = read_to.remove(partition) {
                commits.push((partition.clone(), Commit { offset, metadata: "revoked".to_owned() }));
            }
        }
        commits
    }
}

impl Ears {
    fn owned(&self) -> BTreeSet<u32> {
        self.assigned.lock().unwrap().keys().map(|it| it.partition).collect()
    }

    /// Polls once and notes how far it read.
    fn hear(&self, member: &mut dyn GroupReader, wait: Duration) -> Vec<String> {
        let found = member.poll(100, wait).unwrap();
        let mut read_to = self.read_to.lock().unwrap();
        for (partition, record) in &found {
            read_to.insert(partition.clone(), record.offset + 1);
        }
        found.iter().map(|(_, record)| text(record)).collect()
    }

    #[expect(clippy::disallowed_methods, reason = "who waits for the end of a session has failed")]
    fn hear_until(&self, member: &mut dyn GroupReader, count: usize) -> Vec<String> {
        let (mut heard, began) = (Vec::new(), std::time::Instant::now());
        while heard.len() < count {
            assert!(began.elapsed() < LONG, "heard {heard:?} only");
            heard.extend(self.hear(member, LONG));
        }
        heard
    }
}

/// Polls `members` in turn until `done`.
fn settle(members: &mut [(&mut dyn GroupReader, &Ears)], done: impl Fn() -> bool) -> Vec<String> {
    let mut heard = Vec::new();
    for _ in 0..600 {
        for (member, ears) in members.iter_mut() {
            heard.extend(ears.hear(&mut **member, Duration::from_millis(50)));
        }
        if done() {
            return heard;
        }
    }
    panic!("the group did not settle");
}

fn records_come_back_as_they_were(world: &World) {
    let topic = world.topic("t", 2);
    let (zero, one) = (at(&topic, 0), at(&topic, 1));
    let headers = vec![("g".to_owned(), Bytes::from_static(b"\x00\xff")), ("e".to_owned(), Bytes::new())];
    let full = Append { to: one.clone(), key: Some("u1".into()), value: Some("v".into()), headers: headers.clone() };
    let bare = Append { to: one.clone(), key: None, value: None, headers: vec![] };
    let offsets = world.log.append(&[say(&zero, "a"), full, say(&zero, "b"), bare]).unwrap();
    assert_eq!(offsets, [0, 0, 1, 1]);
    assert_eq!(texts(&*world.log, &zero, 0), "a b");
    assert_eq!(texts(&*world.log, &zero, 1), "b");
    let (records, position) = to_end(&mut *world.log.reader(&one, 0).unwrap());
    assert_eq!(position, 2);
    assert_eq!(
        (&records[0].key, &records[0].value, &records[0].headers),
        (&Some("u1".into()), &Some("v".into()), &headers)
    );
    assert_eq!((&records[1].key, &records[1].value, records[1].offset), (&None, &None, 1));
    assert_eq!(world.log.range(&one).unwrap(), 0..2);
    assert_eq!(world.log.append(&[]).unwrap(), Vec::<u64>::new());
}

fn the_end_is_known_without_a_record(world: &World) {
    let partition = at(&world.topic("t", 1), 0);
    let end = |batch: Batch| (batch.records.len(), batch.position, batch.at_end);
    assert_eq!(to_end(&mut *world.log.reader(&partition, 0).unwrap()), (vec![], 0));
    append(&*world.log, &partition, &["a", "b", "c"]);
    assert_eq!(to_end(&mut *world.log.reader(&partition, 3).unwrap()), (vec![], 3));
    let mut reader = world.log.reader(&partition, 1).unwrap();
    assert_eq!(end(reader.poll(1, LONG).unwrap()), (1, 2, false));
}

fn a_reader_that_waits_is_woken(world: &World) {
    let partition = at(&world.topic("t", 1), 0);
    let mut reader = world.log.reader(&partition, 0).unwrap();
    to_end(&mut *reader);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            let mut records = Vec::new();
            while records.is_empty() {
                records = reader.poll(10, LONG).unwrap().records;
            }
            text(&records[0])
        });
        append(&*world.log, &partition, &["news"]);
        assert_eq!(waiting.join().unwrap(), "news");
    });
}

fn two_readers_of_one_partition_do_not_meet(world: &World) {
    let partition = at(&world.topic("t", 1), 0);
    append(&*world.log, &partition, &["a", "b", "c", "d"]);
    let (mut first, mut second) = (world.log.reader(&partition, 0).unwrap(), world.log.reader(&partition, 2).unwrap());
    let first_text = |reader: &mut dyn Reader| loop {
        if let Some(record) = reader.poll(1, LONG).unwrap().records.first() {
            return text(record);
        }
    };
    let heard = [first_text(&mut *first), first_text(&mut *second), first_text(&mut *first), first_text(&mut *second)];
    assert_eq!(heard.join(" "), "a c b d");
    drop(first);
    assert_eq!(texts(&*world.log, &partition, 1), "b c d");
    assert_eq!(texts(&*world.log, &partition, 3), "d");
}

fn what_was_trimmed_is_out_of_range(world: &World) {
    let partition = at(&world.topic("t", 1), 0);
    append(&*world.log, &partition, &["a", "b", "c"]);
    world.log.trim(&partition, 2).unwrap();
    world.log.trim(&partition, 1).unwrap();
    assert_eq!(world.log.range(&partition).unwrap(), 2..3);
    assert_eq!(texts(&*world.log, &partition, 2), "c");
    for from in [0, 1, 4] {
        let mut reader = world.log.reader(&partition, from).unwrap();
        let error = loop {
            match reader.poll(10, LONG) {
                Ok(batch) => assert_eq!((batch.records, batch.at_end), (vec![], false), "from {from}"),
                Err(error) => break error,
            }
        };
        let expected = LogError::OutOfRange { partition: partition.clone(), offset: from, oldest: 2, end: 3 };
        assert_eq!(error, expected);
    }
    assert_eq!(append(&*world.log, &partition, &["d"]), [3]);
    world.log.trim(&partition, 4).unwrap();
    assert_eq!(world.log.range(&partition).unwrap(), 4..4);
    assert_eq!(append(&*world.log, &partition, &["e"]), [4]);
}

fn a_missing_topic_is_named(world: &World) {
    let topic = world.topic("t", 1);
    let nowhere = format!("{}.nowhere", world.prefix);
    for partition in [at(&nowhere, 0), at(&topic, 1)] {
        let errors = [
            world.log.append(&[say(&partition, "x")]).err(),
            world.log.reader(&partition, 0).err(),
            world.log.range(&partition).err(),
        ];
        for error in errors {
            assert!(matches!(&error, Some(LogError::MissingTopic(it)) if it.contains(&*partition.topic)), "{error:?}");
        }
    }
    let joined = world.log.join(&world.group(), &[topic, nowhere.clone()], Arc::new(Ears::default()));
    assert_eq!(joined.err(), Some(LogError::MissingTopic(nowhere)));
}

fn topics_are_as_they_were_made(world: &World) {
    let spec = |name: &str, partitions, retention| {
        TopicSpec::one_copy(format!("{}.{name}", world.prefix), partitions, retention)
    };
    let specs = [
        spec("a", 3, Retention::For(EIGHT_DAYS)),
        spec("b", 1, Retention::Forever),
        spec("c", 2, Retention::Compacted(EIGHT_DAYS)),
    ];
    world.log.create(&specs[..2]).unwrap();
    world.log.create(&specs).unwrap();
    let another = TopicSpec { partitions: 9, ..specs[0].clone() };
    world.log.create(&[another]).unwrap();
    let mut names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    names.push(format!("{}.nowhere", world.prefix));
    let mut found = world.log.describe(&names).unwrap();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(found, specs);
}

fn a_weaker_topic_is_told_in_words(world: &World) {
    let day = |days: u64| Retention::For(Duration::from_secs(days * 86_400));
    let topic = world.topic_kept("t", 2, day(3));
    let spec = TopicSpec::one_copy(&topic, 2, day(3));
    let missing = format!("{}.nowhere", world.prefix);
    let said = |want: TopicSpec| world.log.weaknesses(&[want]).unwrap().join("\n").replace(&topic, "T");
    assert_eq!(said(spec.clone()), "");
    assert_eq!(said(TopicSpec { retention: day(2), ..spec.clone() }), "");
    let eight = TopicSpec { retention: day(8), partitions: 4, ..spec.clone() };
    assert_eq!(
        said(eight),
        "topic `T` has 2 partitions, expected 4; records are placed by their count\n\
         topic `T` is kept for 259200 s, expected for 691200 s; after a longer outage nobody could read on; \
         set cleanup.policy to delete and raise retention.ms"
    );
    let compacted = TopicSpec { retention: Retention::Compacted(EIGHT_DAYS), ..spec.clone() };
    assert_eq!(
        said(compacted),
        "topic `T` is kept for 259200 s, expected compacted after 691200 s; a replay must meet the records that were \
         read; set cleanup.policy to compact and raise min.compaction.lag.ms and delete.retention.ms"
    );
    assert!(said(TopicSpec { name: missing, ..spec }).contains("does not exist"));
}

fn too_large_a_record_is_refused_whole(world: &World) {
    let partition = at(&world.topic("t", 1), 0);
    let of = |bytes| Append { value: Some(vec![b'x'; bytes].into()), ..say(&partition, "") };
    let error = world.log.append(&[say(&partition, "a"), of(RECORD_BYTES_MAX)]).unwrap_err();
    assert_eq!(error, LogError::TooLarge { partition: partition.clone(), bytes: RECORD_BYTES_MAX + 1 });
    assert_eq!(world.log.append(&[of(RECORD_BYTES_MAX - 1), say(&partition, "b")]).unwrap(), [0, 1]);
    let (records, _) = to_end(&mut *world.log.reader(&partition, 0).unwrap());
    assert_eq!(
        records.iter().map(|it| it.value.as_ref().map_or(0, Bytes::len)).collect::<Vec<_>>(),
        [RECORD_BYTES_MAX - 1, 1]
    );
}

fn appends_from_many_threads_keep_their_order(world: &World) {
    let topic = world.topic("t", 2);
    let (threads, calls) = (4, 25);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (log, topic) = (&world.log, &topic);
            scope.spawn(move || {
                for call in 0..calls {
                    let of = |index: u32| say(&at(topic, index % 2), &format!("{thread} {call:03} {index}"));
                    let offsets = log.append(&(0..6).map(of).collect::<Vec<_>>()).unwrap();
                    assert!(offsets[0] < offsets[2] && offsets[2] < offsets[4], "{offsets:?}");
                }
            });
        }
    });
    for partition in 0..2 {
        let (records, position) = to_end(&mut *world.log.reader(&at(&topic, partition), 0).unwrap());
        assert_eq!(position, threads * calls * 3);
        for thread in 0..threads {
            let mine: Vec<_> = records.iter().map(text).filter(|it| it.starts_with(&format!("{thread} "))).collect();
            assert!(mine.is_sorted() && mine.len() as u64 == calls * 3, "{mine:?}");
        }
    }
}

fn a_group_goes_on_where_it_committed(world: &World) {
    let topic = world.topic("t", 1);
    let (partition, group) = (at(&topic, 0), world.group());
    append(&*world.log, &partition, &["a", "b", "c"]);
    assert_eq!(world.log.committed(&group, &partition).unwrap(), None);
    let ears = Arc::new(Ears::default());
    let mut member = world.log.join(&group, std::slice::from_ref(&topic), ears.clone()).unwrap();
    assert_eq!(ears.hear_until(&mut *member, 3).join(" "), "a b c");
    assert_eq!(ears.assigned.lock().unwrap().get(&partition), Some(&None));
    let commit = Commit { offset: 2, metadata: r#"{"mark":7}"#.to_owned() };
    member.commit(&[(partition.clone(), commit.clone())]).unwrap();
    assert_eq!(world.log.committed(&group, &partition).unwrap(), Some(commit.clone()));
    // Nothing more is committed when it leaves.
    ears.read_to.lock().unwrap().clear();
    drop(member);
    assert_eq!((ears.revoked.load(Ordering::Relaxed), ears.owned().len()), (1, 0));
    let ears = Arc::new(Ears::default());
    let mut member = world.log.join(&group, std::slice::from_ref(&topic), ears.clone()).unwrap();
    assert_eq!(ears.hear_until(&mut *member, 1).join(" "), "c");
    assert_eq!(ears.assigned.lock().unwrap().get(&partition), Some(&Some(commit)));
    drop(member);
    let left = world.log.committed(&group, &partition).unwrap();
    assert_eq!(left, Some(Commit { offset: 3, metadata: "revoked".to_owned() }));
}

fn partitions_move_between_members(world: &World) {
    let topic = world.topic("t", 4);
    let group = world.group();
    let all = |round: &str| {
        for partition in 0..4 {
            append(&*world.log, &at(&topic, partition), &[&format!("{round}{partition}")]);
        }
    };
    all("x");
    let (first_ears, second_ears) = (Arc::new(Ears::default()), Arc::new(Ears::default()));
    let mut first = world.log.join(&group, std::slice::from_ref(&topic), first_ears.clone()).unwrap();
    let mut heard = first_ears.hear_until(&mut *first, 4);
    heard.sort();
    assert_eq!(heard.join(" "), "x0 x1 x2 x3");

    let mut second = world.log.join(&group, std::slice::from_ref(&topic), second_ears.clone()).unwrap();
    let even = || first_ears.owned().len() == 2 && second_ears.owned().len() == 2;
    let heard = settle(&mut [(&mut *first, &first_ears), (&mut *second, &second_ears)], even);
    assert_eq!(heard, Vec::<String>::new(), "what was committed on the way is not read again");
    assert!(first_ears.owned().is_disjoint(&second_ears.owned()));
    assert_eq!(
        world.log.committed(&group, &at(&topic, *second_ears.owned().first().unwrap())).unwrap().unwrap().offset,
        1
    );

    all("y");
    let done = || {
        first_ears.read_to.lock().unwrap().len() == 2
            && second_ears.read_to.lock().unwrap().len() == 2
            && second_ears.read_to.lock().unwrap().values().all(|offset| *offset == 2)
            && first_ears.read_to.lock().unwrap().values().all(|offset| *offset == 2)
    };
    let mut heard = settle(&mut [(&mut *first, &first_ears), (&mut *second, &second_ears)], done);
    heard.sort();
    assert_eq!(heard.join(" "), "y0 y1 y2 y3", "each record went to one member");

    drop(first);
    all("z");
    let mut heard = second_ears.hear_until(&mut *second, 4);
    heard.sort();
    assert_eq!(heard.join(" "), "z0 z1 z2 z3");
    assert_eq!(second_ears.owned(), BTreeSet::from([0, 1, 2, 3]));
}

fn a_paused_partition_keeps_its_place(world: &World) {
    let topic = world.topic("t", 2);
    let (zero, one) = (at(&topic, 0), at(&topic, 1));
    let ears = Arc::new(Ears::default());
    let mut member = world.log.join(&world.group(), std::slice::from_ref(&topic), ears.clone()).unwrap();
    settle(&mut [(&mut *member, &ears)], || ears.owned().len() == 2);
    member.pause(std::slice::from_ref(&zero)).unwrap();
    append(&*world.log, &zero, &["a", "b"]);
    append(&*world.log, &one, &["c"]);
    assert_eq!(ears.hear_until(&mut *member, 1).join(" "), "c");
    assert_eq!(ears.hear(&mut *member, Duration::from_millis(300)), Vec::<String>::new());
    member.resume(std::slice::from_ref(&zero)).unwrap();
    assert_eq!(ears.hear_until(&mut *member, 2).join(" "), "a b");
    // Paused with records fetched and not yet handed out: nothing is lost, nothing comes twice.
    append(&*world.log, &zero, &["d", "e", "f"]);
    let mut heard = Vec::new();
    while heard.is_empty() {
        heard = member.poll(1, LONG).unwrap();
    }
    member.pause(std::slice::from_ref(&zero)).unwrap();
    assert!(member.poll(10, Duration::from_millis(300)).unwrap().is_empty());
    member.resume(std::slice::from_ref(&zero)).unwrap();
    // Nothing is nothing: it touches no partition and is no mistake.
    member.pause(&[]).and_then(|()| member.resume(&[])).unwrap();
    while heard.len() < 3 {
        heard.extend(member.poll(10, LONG).unwrap());
    }
    assert_eq!(heard.iter().map(|(_, record)| text(record)).collect::<Vec<_>>().join(" "), "d e f");
    let refused = member.pause(&[at(&topic, 7)]);
    assert!(matches!(refused, Err(LogError::Refused(_))), "{refused:?}");
}

fn a_group_that_fell_behind_the_log_is_told(world: &World) {
    let topic = world.topic("t", 2);
    let (partition, other, group) = (at(&topic, 0), at(&topic, 1), world.group());
    append(&*world.log, &partition, &["a", "b", "c"]);
    let ears = Arc::new(Ears::default());
    let mut member = world.log.join(&group, std::slice::from_ref(&topic), ears.clone()).unwrap();
    ears.hear_until(&mut *member, 3);
    ears.read_to.lock().unwrap().insert(partition.clone(), 1);
    drop(member);
    world.log.trim(&partition, 2).unwrap();
    append(&*world.log, &other, &["x", "y", "z"]);
    let expected = LogError::OutOfRange { partition, offset: 1, oldest: 2, end: 3 };
    let ears = Arc::new(Ears::default());
    let mut member = world.log.join(&group, &[topic], ears).unwrap();
    // It is told, and what the other partition holds is not lost with it.
    let (mut told, mut heard) = (false, Vec::new());
    while !told || heard.len() < 3 {
        match member.poll(10, LONG) {
            Ok(found) => heard.extend(found.iter().map(|(_, record)| text(record))),
            Err(error) => {
                assert_eq!(error, expected);
                told = true;
            }
        }
    }
    assert_eq!(heard.join(" "), "x y z");
}

macro_rules! contract {
    ($($scenario:ident)*) => {
        mod memory {
            $(#[test] fn $scenario() { super::$scenario(&super::in_memory()) })*
        }
        mod embedded {
            $(#[test] fn $scenario() { super::$scenario(&super::embedded()) })*
        }
        mod kafka {
            $(#[test] fn $scenario() {
                if let Some(world) = super::kafka(stringify!($scenario)) {
                    super::$scenario(&world);
                }
            })*
        }
        /// Members with names, and sessions longer than a test waits: nobody's partitions may wait for an end of session.
        mod kafka_named {
            $(#[test] fn $scenario() {
                if let Some(world) = super::kafka_named(stringify!($scenario), "one") {
                    super::$scenario(&world);
                }
            })*
        }
    };
}

contract! {
    records_come_back_as_they_were
    the_end_is_known_without_a_record
    a_reader_that_waits_is_woken
    two_readers_of_one_partition_do_not_meet
    what_was_trimmed_is_out_of_range
    a_missing_topic_is_named
    topics_are_as_they_were_made
    a_weaker_topic_is_told_in_words
    too_large_a_record_is_refused_whole
    appends_from_many_threads_keep_their_order
    a_group_goes_on_where_it_committed
    partitions_move_between_members
    a_paused_partition_keeps_its_place
    a_group_that_fell_behind_the_log_is_told
}

fn noon() -> Clock {
    Arc::new(|| Instant(1_774_735_800_000))
}

/// Said past the test harness, which would swallow it.
fn skipped(scenario: &str, variable: &str) {
    let line = format!("SKIPPED {scenario}: {variable} is not set, so no Kafka was asked\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

fn kafka_params(brokers: String) -> KafkaParams {
    let properties = BTreeMap::from([("heartbeat.interval.ms".to_owned(), "300".to_owned())]);
    KafkaParams { brokers, linger: Duration::ZERO, patience: Duration::from_secs(20), instance: None, properties }
}

/// What the environment says of the real services.
#[expect(clippy::disallowed_methods, reason = "where the real services are comes from outside")]
fn given(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

fn kafka(scenario: &str) -> Option<World> {
    kafka_with(scenario, &[])
}

fn kafka_named(scenario: &str, name: &str) -> Option<World> {
    // Twice as long as `LONG`.
    kafka_of(scenario, Some(name), &[("session.timeout.ms", "60000")])
}

fn kafka_with(scenario: &str, properties: &[(&str, &str)]) -> Option<World> {
    kafka_of(scenario, None, properties)
}

fn kafka_of(scenario: &str, name: Option<&str>, properties: &[(&str, &str)]) -> Option<World> {
    let Some(brokers) = given("TIDINGS_TEST_KAFKA") else {
        skipped(scenario, "TIDINGS_TEST_KAFKA");
        return None;
    };
    let mut params = kafka_params(brokers);
    params.instance = name.map(|name| Arc::new(Instance::new(name.to_owned())));
    params.properties.extend(properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Some(World::new(|_| Arc::new(KafkaLog::open(params).unwrap())))
}

fn in_memory() -> World {
    World::new(|_| Arc::new(MemoryLog::new(noon()).unwrap()))
}

fn embedded() -> World {
    World::new(|directory| Arc::new(EmbeddedLog::open(directory, noon()).unwrap()))
}
