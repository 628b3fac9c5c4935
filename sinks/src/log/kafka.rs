//! The log on Kafka, over librdkafka.
//!
//! # Protocol of an append
//! The producer is idempotent, waits for all in-sync copies and is not transactional. librdkafka's own
//! timeout is off, because it drops single records and goes on with the next ones; instead
//! 1. a call puts its records into the producer's queue, in order, waiting while it is full;
//! 2. it waits for all delivery reports, at most [`KafkaParams::patience`];
//! 3. then, or when a record fails, it throws the producer with everything in it away, so that
//!    nothing follows a record that failed. Other calls under way fail with it, as ambiguous. The
//!    next append makes a new producer.
//!
//! # Reading
//! Readers of single partitions share a consumer, each with a queue of its own (`PartitionEOF` names no
//! topic, so a shared queue could not tell whose end was reached). An end is a fact of one fetch: a
//! position moves over a gap at the end (compacted records, transaction markers) only where an
//! end of partition is seen *after* the watermark was asked. Members of a group are consumers of
//! their own. They use `cooperative-sticky`: a member that joins takes partitions from others, and
//! those that stay where they are never stop. Partitions come and go between polls, not
//! within librdkafka's callback: an error there could be told to nobody.
//!
//! # Not promised
//! [`Log::time`] is the broker's time of the newest record that was appended here to a topic with
//! `LogAppendTime` (topics kept for ever get it when we create them; the cut log is one). Kafka has
//! no request that asks for the time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Header, Headers as _, Message as _, OwnedHeaders, Timestamp};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tidings_schemas::time::Instant;

use super::{
    Append, Assignment, Batch, Commit, GroupReader, Log, LogError, READ_BYTES_MAX, RECORD_BYTES_MAX, Reader, Record,
    Retention, TopicPartition, TopicSpec, bytes_of,
};

/// How long a client that is let go may take to say goodbye. `rd_kafka_destroy` was seen to hang;
/// beyond this it is left behind with a warning, and the process may exit.
const GOODBYE_MAX: Duration = Duration::from_secs(10);
/// How long a full producer queue is left to drain before it is tried again.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);
/// How long a new topic's leaders or a group's coordinator are left to settle before they are
/// asked for again.
const MOVE_PAUSE: Duration = Duration::from_millis(50);
/// Room for a batch's own bytes around the largest record.
const BATCH_BYTES_MAX: usize = RECORD_BYTES_MAX + 64 * 1024;

/// Properties that this module's promises rest on; nobody else sets them.
const RESERVED: [&str; 16] = [
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
    "linger.ms",
    "message.timeout.ms",
    "partition.assignment.strategy",
    "request.required.acks",
    "transactional.id",
];

/// A topic's settings, by Kafka's names.
type Settings = BTreeMap<String, String>;

/// How to reach the brokers.
#[derive(Clone, Debug)]
pub struct KafkaParams {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// How long a record may wait for others to share its request: zero on the critical path, a few
    /// milliseconds elsewhere.
    pub linger: Duration,
    /// How long any call waits for the brokers. Beyond it an append is ambiguous, anything else
    /// unreachable.
    pub patience: Duration,
    /// Further properties of librdkafka, by its own names.
    pub properties: BTreeMap<String, String>,
}

/// A log on Kafka. Clones share its connections.
#[derive(Clone)]
pub struct KafkaLog {
    kafka: Arc<Kafka>,
}

struct Kafka {
    params: KafkaParams,
    /// Asks for watermarks and metadata.
    desk: BaseConsumer<Quiet>,
    admin: AdminClient<DefaultClientContext>,
    producer: Mutex<Option<Arc<ThreadedProducer<Reports>>>>,
    /// Partition counts of topics that were seen.
    topics: Mutex<BTreeMap<Arc<str>, u32>>,
    /// Consumers that readers share; several only where readers share a partition.
    desks: Mutex<Vec<Arc<Shared>>>,
    /// One consumer per group whose commits were asked for; none of them joins.
    groups: Mutex<BTreeMap<String, Arc<BaseConsumer<Quiet>>>>,
    broker_time: Arc<AtomicI64>,
}

impl KafkaLog {
    /// Clients for the brokers of `params`; connects when it is first used.
    ///
    /// # Errors
    /// When a property is not librdkafka's, has no such value, or is ours to set.
    pub fn open(params: KafkaParams) -> Result<Self, LogError> {
        if let Some(name) = params.properties.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(LogError::Refused(format!("property `{name}`: tidings sets it; leave it out")));
        }
        let refused = |error: KafkaError| LogError::Refused(error.to_string());
        let desk = consumer(&params, None, false).create_with_context(Quiet).map_err(refused)?;
        let admin = base(&params).create().map_err(refused)?;
        let broker_time = Arc::new(AtomicI64::new(i64::MIN));
        let (producer, topics, desks, groups) =
            (Mutex::default(), Mutex::default(), Mutex::default(), Mutex::default());
        let kafka = Kafka { params, desk, admin, producer, topics, desks, groups, broker_time };
        kafka.producer()?;
        Ok(Self { kafka: Arc::new(kafka) })
    }
}

fn base(params: &KafkaParams) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &params.brokers);
    config.set("client.id", "tidings");
    // A broker that comes back is found within a second, not ten.
    config.set("reconnect.backoff.max.ms", "1000");
    for (name, value) in &params.properties {
        config.set(name, value);
    }
    config
}

fn consumer(params: &KafkaParams, group: Option<&str>, eof: bool) -> ClientConfig {
    let mut config = base(params);
    let defaults = [
        // An end of partition is known when a fetch comes back empty.
        ("fetch.wait.max.ms", "100"),
        // Per partition; what is read ahead beyond it is fetched later.
        ("queued.max.messages.kbytes", "4096"),
        ("fetch.queue.backoff.ms", "10"),
    ];
    for (name, value) in defaults {
        if !params.properties.contains_key(name) {
            config.set(name, value);
        }
    }
    if let Some(group) = group {
        config.set("group.id", group);
    }
    config.set("enable.auto.commit", "false");
    config.set("enable.auto.offset.store", "false");
    config.set("auto.offset.reset", "error");
    config.set("enable.partition.eof", if eof { "true" } else { "false" });
    config.set("partition.assignment.strategy", "cooperative-sticky");
    config
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says goodbye to a client on a thread of its own and waits for it, within reason.
fn let_go(goodbye: impl FnOnce() + Send + 'static) {
    let (done, gone) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("kafka-goodbye".to_owned()).spawn(move || {
        goodbye();
        let _ = done.send(());
    });
    if thread.is_err() || gone.recv_timeout(GOODBYE_MAX).is_err() {
        tracing::warn!(waited_ms = GOODBYE_MAX.as_millis(), "a Kafka client did not close; left behind");
    }
}

/// Waits for one of rdkafka's futures; its own thread completes it within the request timeout.
fn wait_for<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let (mut cx, mut future) = (std::task::Context::from_waker(&waker), std::pin::pin!(future));
    loop {
        match future.as_mut().poll(&mut cx) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

fn unreachable(error: &KafkaError) -> LogError {
    LogError::Unreachable(error.to_string())
}

fn native(partition: u32) -> Result<i32, LogError> {
    i32::try_from(partition).map_err(|_| LogError::MissingTopic(format!("partition {partition}")))
}

fn unsigned(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or(0)
}

fn raw(offset: u64) -> Offset {
    Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX))
}

fn list<'a>(entries: impl IntoIterator<Item = (&'a TopicPartition, Offset)>) -> Result<TopicPartitionList, LogError> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in entries {
        (list.add_partition_offset(&partition.topic, native(partition.partition)?, offset))
            .map_err(|error| LogError::Refused(error.to_string()))?;
    }
    Ok(list)
}

fn partitions_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
    let of = |topic: &str, partition: i32| TopicPartition {
        topic: topic.into(),
        partition: u32::try_from(partition).unwrap_or(0),
    };
    list.elements().iter().map(|it| of(it.topic(), it.partition())).collect()
}

fn record_of(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        let of = |header: Header<'_, &[u8]>| {
            (header.key.to_owned(), Bytes::copy_from_slice(header.value.unwrap_or_default()))
        };
        headers.iter().map(of).collect()
    });
    Record {
        offset: unsigned(message.offset()),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers,
        timestamp: Instant(message.timestamp().to_millis().unwrap_or(0)),
    }
}

fn record_bytes(record: &Record) -> usize {
    bytes_of(record.key.as_ref(), record.value.as_ref(), &record.headers)
}

/// A context that lets librdkafka log and nothing more.
#[derive(Clone)]
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ConsumerContext for Quiet {}

/// What the records of one append came to.
struct Call {
    answers: Mutex<Answers>,
    done: Condvar,
}

struct Answers {
    left: usize,
    offsets: Vec<Option<u64>>,
    failed: Vec<(usize, RDKafkaErrorCode)>,
}

struct Ticket {
    call: Arc<Call>,
    index: usize,
}

struct Reports {
    broker_time: Arc<AtomicI64>,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka producer");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let mut answers = lock(&ticket.call.answers);
        answers.left -= 1;
        match result {
            Ok(message) => {
                answers.offsets[ticket.index] = Some(unsigned(message.offset()));
                if let Timestamp::LogAppendTime(time) = message.timestamp() {
                    self.broker_time.fetch_max(time, Ordering::Relaxed);
                }
            }
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                answers.failed.push((ticket.index, code));
            }
        }
        if answers.left == 0 || !answers.failed.is_empty() {
            ticket.call.done.notify_all();
        }
    }
}

impl Kafka {
    fn producer(&self) -> Result<Arc<ThreadedProducer<Reports>>, LogError> {
        let mut kept = lock(&self.producer);
        if let Some(producer) = &*kept {
            return Ok(Arc::clone(producer));
        }
        let mut config = base(&self.params);
        config.set("acks", "all");
        config.set("enable.idempotence", "true");
        config.set("enable.gapless.guarantee", "true");
        config.set("message.timeout.ms", "0");
        config.set("linger.ms", self.params.linger.as_millis().to_string());
        if !self.params.properties.contains_key("message.max.bytes") {
            config.set("message.max.bytes", BATCH_BYTES_MAX.to_string());
        }
        let reports = Reports { broker_time: Arc::clone(&self.broker_time) };
        let made: Result<ThreadedProducer<Reports>, _> = config.create_with_context(reports);
        let producer = Arc::new(made.map_err(|error| LogError::Refused(error.to_string()))?);
        *kept = Some(Arc::clone(&producer));
        Ok(producer)
    }

    /// Step 3: everything in `producer` fails, and nobody uses it again.
    fn discard(&self, producer: &Arc<ThreadedProducer<Reports>>) {
        let mut kept = lock(&self.producer);
        if kept.as_ref().is_some_and(|it| Arc::ptr_eq(it, producer)) {
            *kept = None;
        }
        drop(kept);
        producer.purge(PurgeConfig::default().queue().inflight());
    }

    /// How many partitions `topic` has.
    fn partitions(&self, topic: &str, least: u32) -> Result<u32, LogError> {
        if let Some(count) = lock(&self.topics).get(topic).filter(|count| **count >= least) {
            return Ok(*count);
        }
        let metadata = self.desk.fetch_metadata(Some(topic), self.params.patience);
        let metadata = metadata.map_err(|error| unreachable(&error))?;
        let found = metadata.topics().iter().find(|it| it.name() == topic);
        match found.map(|it| (it.error(), it.partitions().len())) {
            Some((None, count)) if count > 0 => {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                lock(&self.topics).insert(topic.into(), count);
                Ok(count)
            }
            Some((Some(error), _)) if !is_missing(error.into()) => {
                Err(LogError::Unreachable(format!("topic `{topic}`: {}", RDKafkaErrorCode::from(error))))
            }
            _ => Err(LogError::MissingTopic(topic.to_owned())),
        }
    }

    fn exists(&self, partition: &TopicPartition) -> Result<(), LogError> {
        if self.partitions(&partition.topic, partition.partition.saturating_add(1))? <= partition.partition {
            return Err(LogError::MissingTopic(partition.to_string()));
        }
        Ok(())
    }

    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        for record in records {
            let bytes = record.bytes();
            if bytes > RECORD_BYTES_MAX {
                return Err(LogError::TooLarge { partition: record.to.clone(), bytes });
            }
            self.exists(&record.to)?;
        }
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let producer = self.producer()?;
        let answers = Answers { left: 0, offsets: vec![None; records.len()], failed: Vec::new() };
        let call = Arc::new(Call { answers: Mutex::new(answers), done: Condvar::new() });
        // Steps 1 and 2.
        let queued = self.enqueue(&producer, &call, records);
        let waiting = |answers: &mut Answers| answers.left > 0 && answers.failed.is_empty();
        let (answers, waited) = (call.done.wait_timeout_while(lock(&call.answers), self.params.patience, waiting))
            .unwrap_or_else(PoisonError::into_inner);
        if queued.is_ok() && answers.left == 0 && answers.failed.is_empty() {
            return Ok(answers.offsets.iter().copied().flatten().collect());
        }
        drop(answers);
        // Step 3. Purging answers for all records that are left.
        self.discard(&producer);
        let purging = |answers: &mut Answers| answers.left > 0;
        let (answers, _) = (call.done.wait_timeout_while(lock(&call.answers), GOODBYE_MAX, purging))
            .unwrap_or_else(PoisonError::into_inner);
        let answer = failure(records, &answers, queued.err(), waited.timed_out(), self.params.patience);
        drop(answers);
        // The last call that uses it lets it go.
        if let Some(producer) = Arc::into_inner(producer) {
            let_go(move || drop(producer));
        }
        Err(answer)
    }

    /// Step 1. After an error no further record of the call is in the queue.
    fn enqueue(
        &self,
        producer: &ThreadedProducer<Reports>,
        call: &Arc<Call>,
        records: &[Append],
    ) -> Result<(), RDKafkaErrorCode> {
        let mut pauses_left = self.params.patience.as_millis() / QUEUE_FULL_PAUSE.as_millis();
        for (index, record) in records.iter().enumerate() {
            let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
            for (name, value) in &record.headers {
                headers = headers.insert(Header { key: name, value: Some(value.as_ref()) });
            }
            let ticket = Box::new(Ticket { call: Arc::clone(call), index });
            let mut message = BaseRecord::<[u8], [u8], _>::with_opaque_to(&record.to.topic, ticket).headers(headers);
            message.partition = i32::try_from(record.to.partition).ok();
            (message.key, message.payload) = (record.key.as_deref(), record.value.as_deref());
            lock(&call.answers).left += 1;
            while let Err((error, back)) = producer.send(message) {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                if code != RDKafkaErrorCode::QueueFull || pauses_left == 0 {
                    lock(&call.answers).left -= 1;
                    return Err(code);
                }
                pauses_left -= 1;
                producer.poll(QUEUE_FULL_PAUSE);
                message = back;
            }
        }
        Ok(())
    }

    fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError> {
        self.exists(partition)?;
        // A topic that was made a moment ago has no leader yet, and the client's first guess at one may
        // be wrong: both pass by themselves within seconds.
        let mut asks = WITHOUT_LEADER_ASKS_MAX;
        loop {
            let found =
                self.desk.fetch_watermarks(&partition.topic, native(partition.partition)?, self.params.patience);
            match found {
                Ok((oldest, end)) => return Ok(unsigned(oldest)..unsigned(end)),
                Err(error) if asks > 0 && is_without_leader(&error) => {
                    asks -= 1;
                    std::thread::sleep(WITHOUT_LEADER_PAUSE);
                }
                Err(error) => return Err(unreachable(&error)),
            }
        }
    }

    fn out_of_range(&self, partition: &TopicPartition, offset: u64) -> LogError {
        match self.range(partition) {
            Ok(Range { start: oldest, end }) => {
                LogError::OutOfRange { partition: partition.clone(), offset, oldest, end }
            }
            Err(error) => error,
        }
    }

    /// A shared consumer in which `partition` has no reader yet.
    fn shared(&self, partition: &TopicPartition) -> Result<Arc<Shared>, LogError> {
        let mut desks = lock(&self.desks);
        if let Some(free) = desks.iter().find(|desk| lock(&desk.taken).insert(partition.clone())) {
            return Ok(Arc::clone(free));
        }
        // The group's name is needed to assign; nobody joins it and nothing is committed.
        let made = consumer(&self.params, Some("tidings-readers"), true).create_with_context(Quiet);
        let consumer = Arc::new(made.map_err(|error| LogError::Refused(error.to_string()))?);
        let taken = Mutex::new(BTreeSet::from([partition.clone()]));
        let desk = Arc::new(Shared { consumer, taken, down: AtomicBool::new(false) });
        desks.push(Arc::clone(&desk));
        Ok(desk)
    }

    fn options(&self) -> AdminOptions {
        let patience = Some(self.params.patience);
        AdminOptions::new().request_timeout(patience).operation_timeout(patience)
    }

    /// The settings of the topics that exist among `names`.
    fn settings(&self, names: &[String]) -> Result<BTreeMap<String, Settings>, LogError> {
        let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        if resources.is_empty() {
            return Ok(BTreeMap::new());
        }
        let found = wait_for(self.admin.describe_configs(&resources, &self.options()));
        let mut settings = BTreeMap::new();
        for (name, resource) in names.iter().zip(found.map_err(|error| unreachable(&error))?) {
            match resource {
                Ok(resource) => {
                    let entries = resource.entries.into_iter();
                    let of = entries.map(|entry| (entry.name, entry.value.unwrap_or_default())).collect();
                    settings.insert(name.clone(), of);
                }
                Err(code) if is_missing(code) => {}
                Err(code) => return Err(LogError::Unreachable(format!("topic `{name}`: {code}"))),
            }
        }
        Ok(settings)
    }

    fn describe(&self, names: &[String]) -> Result<Vec<(TopicSpec, Settings)>, LogError> {
        let metadata = self.desk.fetch_metadata(None, self.params.patience).map_err(|error| unreachable(&error))?;
        let found =
            |name: &String| metadata.topics().iter().find(|it| it.name() == name && !it.partitions().is_empty());
        let existing: Vec<String> = names.iter().filter(|name| found(name).is_some()).cloned().collect();
        let mut settings = self.settings(&existing)?;
        let mut topics = Vec::new();
        for name in existing {
            let (Some(topic), Some(settings)) = (found(&name), settings.remove(&name)) else { continue };
            let copies = topic.partitions().iter().map(|it| it.replicas().len()).min().unwrap_or(0);
            let spec = TopicSpec {
                name,
                partitions: u32::try_from(topic.partitions().len()).unwrap_or(u32::MAX),
                retention: retention_of(&settings),
                replication: u16::try_from(copies).unwrap_or(u16::MAX),
                min_insync: number(&settings, "min.insync.replicas").and_then(|it| u16::try_from(it).ok()).unwrap_or(1),
            };
            topics.push((spec, settings));
        }
        Ok(topics)
    }

    fn create(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        let settings: Vec<_> = topics.iter().map(settings_for).collect();
        let mut new = Vec::new();
        for (topic, settings) in topics.iter().zip(&settings) {
            let partitions = native(topic.partitions)?;
            let mut it = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(i32::from(topic.replication)));
            for (name, value) in settings {
                it = it.set(name, value);
            }
            new.push(it);
        }
        if new.is_empty() {
            return Ok(());
        }
        let results = wait_for(self.admin.create_topics(&new, &self.options())).map_err(|error| unreachable(&error))?;
        for result in results {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => return Err(LogError::Refused(format!("topic `{name}`: {code}"))),
            }
        }
        self.leaders_of(topics)
    }

    /// Waits until each partition has a leader: the brokers hear of a new topic after its creation.
    fn leaders_of(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        let mut pauses_left = self.params.patience.as_millis() / MOVE_PAUSE.as_millis();
        loop {
            let metadata = self.desk.fetch_metadata(None, self.params.patience).map_err(|error| unreachable(&error))?;
            let led = |topic: &&TopicSpec| {
                let found = metadata.topics().iter().find(|it| it.name() == topic.name);
                found.is_some_and(|it| !it.partitions().is_empty() && it.partitions().iter().all(|it| it.leader() >= 0))
            };
            match topics.iter().find(|topic| !led(topic)) {
                None => return Ok(()),
                Some(topic) if pauses_left == 0 => {
                    return Err(LogError::Unreachable(format!("topic `{}` has no leader yet", topic.name)));
                }
                Some(_) => {}
            }
            pauses_left -= 1;
            std::thread::sleep(MOVE_PAUSE);
        }
    }

    fn trim(&self, partition: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.exists(partition)?;
        let offsets = list([(partition, raw(before))])?;
        let done =
            wait_for(self.admin.delete_records(&offsets, &self.options())).map_err(|error| unreachable(&error))?;
        match done.elements().first().map(|it| it.error()) {
            Some(Err(KafkaError::OffsetFetch(RDKafkaErrorCode::OffsetOutOfRange))) => {
                Err(self.out_of_range(partition, before))
            }
            Some(Err(error)) => Err(LogError::Unreachable(error.to_string())),
            _ => Ok(()),
        }
    }

    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError> {
        self.exists(partition)?;
        let consumer = {
            let mut groups = lock(&self.groups);
            match groups.get(group) {
                Some(consumer) => Arc::clone(consumer),
                None => {
                    let made = consumer(&self.params, Some(group), false).create_with_context(Quiet);
                    let made = Arc::new(made.map_err(|error| LogError::Refused(error.to_string()))?);
                    groups.insert(group.to_owned(), Arc::clone(&made));
                    made
                }
            }
        };
        let mut commits = self.commits(&consumer, std::slice::from_ref(partition))?;
        Ok(commits.pop().and_then(|(_, commit)| commit))
    }
}

impl Kafka {
    /// What the consumer's group committed for `partitions`. The group's coordinator may be on the
    /// move, or still loading: it is asked again.
    fn commits<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        partitions: &[TopicPartition],
    ) -> Result<Vec<(TopicPartition, Option<Commit>)>, LogError> {
        let mut pauses_left = self.params.patience.as_millis() / MOVE_PAUSE.as_millis();
        loop {
            let asked = list(partitions.iter().map(|partition| (partition, Offset::Invalid)))?;
            match consumer.committed_offsets(asked, self.params.patience) {
                Ok(found) => return commits_of(&found),
                Err(error) if pauses_left == 0 || !is_moving(error.rdkafka_error_code()) => {
                    return Err(unreachable(&error));
                }
                Err(_) => {}
            }
            pauses_left -= 1;
            std::thread::sleep(MOVE_PAUSE);
        }
    }
}

const fn is_moving(code: Option<RDKafkaErrorCode>) -> bool {
    matches!(
        code,
        Some(
            RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::WaitingForCoordinator
        )
    )
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if let Some(producer) = lock(&self.producer).take() {
            let_go(move || drop(producer));
        }
        for desk in std::mem::take(&mut *lock(&self.desks)) {
            let_go(move || drop(desk));
        }
        for (_, consumer) in std::mem::take(&mut *lock(&self.groups)) {
            let_go(move || drop(consumer));
        }
    }
}

/// What the call answers that did not get all of its records through.
fn failure(
    records: &[Append],
    answers: &Answers,
    queued: Option<RDKafkaErrorCode>,
    timed_out: bool,
    patience: Duration,
) -> LogError {
    let definite = |code: &RDKafkaErrorCode| {
        matches!(code, RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::TopicAuthorizationFailed)
            || is_missing(*code)
    };
    let none_there = answers.left == 0 && answers.offsets.iter().all(Option::is_none);
    let all_refused = none_there && !timed_out && answers.failed.iter().all(|(_, code)| definite(code));
    let first = answers.failed.iter().min_by_key(|(index, _)| *index).copied();
    match (first, queued) {
        (Some((index, code)), _) if all_refused => refusal(&records[index], code),
        (None, Some(code)) if all_refused => refusal(&records[0], code),
        _ if timed_out => LogError::Ambiguous(format!("no answer within {} ms", patience.as_millis())),
        (Some((_, code)), _) | (None, Some(code)) => LogError::Ambiguous(code.to_string()),
        (None, None) => LogError::Ambiguous("a record without a report".to_owned()),
    }
}

fn refusal(record: &Append, code: RDKafkaErrorCode) -> LogError {
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge => {
            LogError::TooLarge { partition: record.to.clone(), bytes: record.bytes() }
        }
        RDKafkaErrorCode::TopicAuthorizationFailed => LogError::Refused(format!("append to {}: {code}", record.to)),
        code if is_missing(code) => LogError::MissingTopic(record.to.to_string()),
        // A queue that stayed full, or a producer that is done for: nothing went out.
        code => LogError::Unreachable(code.to_string()),
    }
}

const fn is_missing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownPartition
    )
}

fn number(settings: &Settings, name: &str) -> Option<i64> {
    settings.get(name)?.parse().ok()
}

fn span(millis: i64) -> Duration {
    Duration::from_millis(unsigned(millis))
}

fn retention_of(settings: &Settings) -> Retention {
    let policy = settings.get("cleanup.policy").map_or("delete", String::as_str);
    if policy.split(',').any(|it| it.trim() == "compact") {
        let lag = number(settings, "min.compaction.lag.ms").unwrap_or(0);
        return Retention::Compacted(span(lag.min(number(settings, "delete.retention.ms").unwrap_or(0))));
    }
    match number(settings, "retention.ms").unwrap_or(0) {
        ..0 => Retention::Forever,
        millis => Retention::For(span(millis)),
    }
}

fn settings_for(topic: &TopicSpec) -> Vec<(&'static str, String)> {
    let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX).to_string();
    let mut settings = vec![
        ("min.insync.replicas", topic.min_insync.to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("max.message.bytes", BATCH_BYTES_MAX.to_string()),
        ("retention.bytes", "-1".to_owned()),
    ];
    settings.extend(match topic.retention {
        Retention::For(span) => vec![("cleanup.policy", "delete".to_owned()), ("retention.ms", millis(span))],
        Retention::Forever => vec![
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", "-1".to_owned()),
            ("message.timestamp.type", "LogAppendTime".to_owned()),
        ],
        Retention::Compacted(lag) => vec![
            ("cleanup.policy", "compact".to_owned()),
            ("min.compaction.lag.ms", millis(lag)),
            ("delete.retention.ms", millis(lag)),
        ],
    });
    settings
}

/// Settings of Kafka's own that make a topic weaker, whatever it should be like.
fn own_weaknesses(name: &str, settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    let setting = |name: &str| settings.get(name).map_or("", String::as_str);
    if setting("unclean.leader.election.enable") == "true" {
        found.push(format!(
            "topic `{name}`: unclean.leader.election.enable is true, so acknowledged records can vanish; set it to false"
        ));
    }
    if number(settings, "retention.bytes").is_some_and(|bytes| bytes >= 0) {
        let bytes = setting("retention.bytes");
        found.push(format!("topic `{name}`: retention.bytes is {bytes}, so a burst shortens retention; set it to -1"));
    }
    let policy = setting("cleanup.policy");
    if policy.contains("compact") && policy.contains("delete") {
        found.push(format!(
            "topic `{name}`: cleanup.policy is {policy}, so newest records vanish by age; set it to compact"
        ));
    }
    if number(settings, "max.message.bytes").is_some_and(|bytes| unsigned(bytes) < BATCH_BYTES_MAX as u64) {
        let bytes = setting("max.message.bytes");
        found.push(format!(
            "topic `{name}`: max.message.bytes is {bytes}, a record may have more; set it to at least {BATCH_BYTES_MAX}"
        ));
    }
    found
}

fn commits_of(list: &TopicPartitionList) -> Result<Vec<(TopicPartition, Option<Commit>)>, LogError> {
    let mut commits = Vec::new();
    for (partition, element) in partitions_of(list).into_iter().zip(list.elements()) {
        element.error().map_err(|error| unreachable(&error))?;
        let commit = match element.offset() {
            Offset::Offset(offset) => {
                Some(Commit { offset: unsigned(offset), metadata: element.metadata().to_owned() })
            }
            _ => None,
        };
        commits.push((partition, commit));
    }
    Ok(commits)
}

impl Log for KafkaLog {
    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        self.kafka.append(records)
    }

    fn reader(&self, partition: &TopicPartition, from: u64) -> Result<Box<dyn Reader>, LogError> {
        self.kafka.exists(partition)?;
        let shared = self.kafka.shared(partition)?;
        Ok(Box::new(KafkaReader::new(Arc::clone(&self.kafka), shared, partition.clone(), from)?))
    }

    fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError> {
        self.kafka.range(partition)
    }

    fn describe(&self, names: &[String]) -> Result<Vec<TopicSpec>, LogError> {
        Ok(self.kafka.describe(names)?.into_iter().map(|(spec, _)| spec).collect())
    }

    fn create(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        self.kafka.create(topics)
    }

    fn weaknesses(&self, wanted: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
        let (have, settings): (Vec<_>, Vec<_>) = self.kafka.describe(&names)?.into_iter().unzip();
        let own = have.iter().zip(&settings).flat_map(|(topic, settings)| own_weaknesses(&topic.name, settings));
        Ok(super::all_weaknesses(&have, wanted).into_iter().chain(own).collect())
    }

    fn trim(&self, partition: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.kafka.trim(partition, before)
    }

    fn join(
        &self,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Box<dyn GroupReader>, LogError> {
        Ok(Box::new(KafkaMember::join(Arc::clone(&self.kafka), group, topics, assignment)?))
    }

    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError> {
        self.kafka.committed(group, partition)
    }

    fn time(&self) -> Result<Instant, LogError> {
        match self.kafka.broker_time.load(Ordering::Relaxed) {
            i64::MIN => Err(LogError::Refused(
                "Kafka tells its time only in answer to an append to a topic with \
                 message.timestamp.type=LogAppendTime, and there was none yet"
                    .to_owned(),
            )),
            millis => Ok(Instant(millis)),
        }
    }
}

/// A consumer that readers share.
struct Shared {
    consumer: Arc<BaseConsumer<Quiet>>,
    taken: Mutex<BTreeSet<TopicPartition>>,
    /// Whether all brokers were gone when last heard.
    down: AtomicBool,
}

/// How often a partition without a leader is asked again: for about ten seconds in all, longer than an
/// election takes on a healthy cluster.
const WITHOUT_LEADER_ASKS_MAX: u32 = 50;
/// The pause between two such asks.
const WITHOUT_LEADER_PAUSE: Duration = Duration::from_millis(200);

fn is_without_leader(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::NotLeaderForPartition | RDKafkaErrorCode::LeaderNotAvailable)
    )
}

struct KafkaReader {
    kafka: Arc<Kafka>,
    shared: Arc<Shared>,
    partition: TopicPartition,
    native: i32,
    queue: Option<PartitionQueue<Quiet>>,
    position: u64,
    /// Asked before an end that is still to come: then the position is at least this.
    end_min: Option<u64>,
    /// Whether the position is the true end's whenever an end is seen: so after one that was
    /// confirmed, as long as records follow without a gap.
    exact: bool,
    /// Waits for the next poll, because this one had records.
    error: Option<LogError>,
}

impl KafkaReader {
    fn new(kafka: Arc<Kafka>, shared: Arc<Shared>, partition: TopicPartition, from: u64) -> Result<Self, LogError> {
        let native = native(partition.partition)?;
        // The queue is split off before the partition is assigned: librdkafka then keeps its hands off.
        let queue = shared.consumer.split_partition_queue(&partition.topic, native);
        let start = list([(&partition, raw(from))])?;
        let (position, end_min, exact, error) = (from, None, false, None);
        let reader = Self { kafka, shared, partition, native, queue, position, end_min, exact, error };
        (reader.shared.consumer.incremental_assign(&start)).map_err(|error| LogError::Refused(error.to_string()))?;
        Ok(reader)
    }

    /// What the next message or event of this partition says; nothing within `wait` is `None`.
    fn next(&mut self, wait: Duration) -> Result<Option<News>, LogError> {
        let Some(queue) = &self.queue else { return Err(LogError::MissingTopic(self.partition.to_string())) };
        let news = match queue.poll(wait) {
            None => return Ok(None),
            Some(Ok(message)) => News::Record(record_of(&message)),
            Some(Err(KafkaError::PartitionEOF(_))) => News::End,
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                    return Err(self.kafka.out_of_range(&self.partition, self.position));
                }
                Some(code) if is_missing(code) => return Err(LogError::MissingTopic(self.partition.to_string())),
                _ => return Err(unreachable(&error)),
            },
        };
        self.shared.down.store(false, Ordering::Relaxed);
        Ok(Some(news))
    }

    /// An end was seen; whether it is the position's.
    fn confirm(&mut self) -> Result<bool, LogError> {
        if let Some(end) = self.end_min.take() {
            // Nothing lies between the position and an end seen later.
            self.position = self.position.max(end);
            return Ok(true);
        }
        if self.exact {
            return Ok(true);
        }
        let end = self.kafka.range(&self.partition)?.end;
        if end <= self.position {
            self.exact = true;
            return Ok(true);
        }
        // Records came since, or the end holds none: another end, or a record, will tell.
        (self.shared.consumer)
            .seek(&self.partition.topic, self.native, raw(self.position), self.kafka.params.patience)
            .map_err(|error| unreachable(&error))?;
        self.end_min = Some(end);
        Ok(false)
    }

    /// Serves the shared consumer's own events, and asks a broker where all seemed gone.
    fn reachable(&self) -> Result<(), LogError> {
        while let Some(event) = self.shared.consumer.poll(Duration::ZERO) {
            match event {
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) => {
                    self.shared.down.store(true, Ordering::Relaxed);
                }
                Err(error) => tracing::debug!(%error, "kafka readers"),
                Ok(stray) => {
                    let (topic, partition) = (stray.topic(), stray.partition());
                    return Err(LogError::Store(format!("a record of {topic}/{partition} left its queue")));
                }
            }
        }
        if self.shared.down.load(Ordering::Relaxed) {
            self.kafka.range(&self.partition)?;
            self.shared.down.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}

enum News {
    Record(Record),
    End,
}

impl KafkaReader {
    /// Fills `batch` until it is full, at the end, or `wait` is over.
    fn fill(&mut self, batch: &mut Batch, records_max: usize, mut wait: Duration) -> Result<(), LogError> {
        let mut bytes = 0;
        while batch.records.len() < records_max && bytes < READ_BYTES_MAX && !batch.at_end {
            match self.next(wait)? {
                Some(News::Record(record)) if record.offset < self.position => {}
                Some(News::Record(record)) => {
                    self.exact &= record.offset == self.position;
                    self.end_min = self.end_min.filter(|end| record.offset + 1 < *end);
                    self.position = record.offset + 1;
                    bytes += record_bytes(&record);
                    batch.records.push(record);
                    wait = Duration::ZERO;
                }
                Some(News::End) => batch.at_end = self.confirm()?,
                None => break,
            }
        }
        if batch.records.is_empty() && !batch.at_end { self.reachable() } else { Ok(()) }
    }
}

impl Reader for KafkaReader {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Batch, LogError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let mut batch = Batch::default();
        if let Err(error) = self.fill(&mut batch, records_max, wait) {
            if batch.records.is_empty() {
                return Err(error);
            }
            self.error = Some(error);
        }
        batch.position = self.position;
        Ok(batch)
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.queue = None;
        if let Ok(mine) = list([(&self.partition, Offset::Invalid)])
            && let Err(error) = self.shared.consumer.incremental_unassign(&mine)
        {
            tracing::warn!(partition = %self.partition, %error, "could not let a partition go");
        }
        lock(&self.shared.taken).remove(&self.partition);
    }
}

/// What the group wants of a member.
enum Change {
    Take(Vec<TopicPartition>),
    Give { partitions: Vec<TopicPartition>, lost: bool },
}

#[derive(Default)]
struct Changes {
    waiting: Mutex<Vec<Change>>,
    leaving: AtomicBool,
}

#[derive(Clone, Default)]
struct MemberContext {
    changes: Arc<Changes>,
}

impl ClientContext for MemberContext {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka group member");
    }
}

impl ConsumerContext for MemberContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = partitions_of(list);
        let leaving = self.changes.leaving.load(Ordering::Relaxed);
        let done = match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS if !leaving => {
                lock(&self.changes.waiting).push(Change::Take(partitions));
                Ok(())
            }
            _ if !leaving => {
                lock(&self.changes.waiting).push(Change::Give { partitions, lost: consumer.assignment_lost() });
                Ok(())
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => consumer.incremental_assign(list),
            _ => consumer.incremental_unassign(list),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "could not answer the group while leaving it");
        }
    }
}

struct KafkaMember {
    kafka: Arc<Kafka>,
    consumer: Option<BaseConsumer<MemberContext>>,
    changes: Arc<Changes>,
    group: String,
    assignment: Arc<dyn Assignment>,
    /// What it owns, and the next offset of each.
    positions: BTreeMap<TopicPartition, u64>,
    /// Waits for the next poll, because this one had records.
    error: Option<LogError>,
    fenced: bool,
}

impl KafkaMember {
    fn join(
        kafka: Arc<Kafka>,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Self, LogError> {
        for topic in topics {
            kafka.partitions(topic, 1)?;
        }
        let context = MemberContext::default();
        let changes = Arc::clone(&context.changes);
        let made = consumer(&kafka.params, Some(group), false).create_with_context(context);
        let consumer: BaseConsumer<MemberContext> = made.map_err(|error| LogError::Refused(error.to_string()))?;
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&names).map_err(|error| LogError::Refused(error.to_string()))?;
        let (group, positions) = (group.to_owned(), BTreeMap::new());
        Ok(Self { kafka, consumer: Some(consumer), changes, group, assignment, positions, error: None, fenced: false })
    }

    fn consumer(&self) -> Result<&BaseConsumer<MemberContext>, LogError> {
        match &self.consumer {
            Some(consumer) if !self.fenced => Ok(consumer),
            _ => Err(LogError::Fenced(self.group.clone())),
        }
    }

    /// Takes and gives what the group wants, in its order. What fails is tried again by the next poll.
    fn settle(&mut self) -> Result<(), LogError> {
        loop {
            let change = {
                let mut waiting = lock(&self.changes.waiting);
                if waiting.is_empty() {
                    return Ok(());
                }
                waiting.remove(0)
            };
            match change {
                Change::Take(partitions) => {
                    if let Err(error) = self.take(&partitions) {
                        lock(&self.changes.waiting).insert(0, Change::Take(partitions));
                        return Err(error);
                    }
                }
                Change::Give { partitions, lost: false } => self.give(&partitions)?,
                Change::Give { lost: true, .. } => {
                    self.lose();
                    return Err(LogError::Fenced(self.group.clone()));
                }
            }
        }
    }

    fn take(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let consumer = self.consumer()?;
        if partitions.is_empty() {
            return consumer.incremental_assign(&TopicPartitionList::new()).map_err(|error| unreachable(&error));
        }
        let commits = self.kafka.commits(consumer, partitions)?;
        let mut positions = Vec::new();
        for (partition, commit) in &commits {
            let from = match commit {
                Some(commit) => commit.offset,
                None => self.kafka.range(partition)?.start,
            };
            positions.push((partition.clone(), from));
        }
        let starts = list(positions.iter().map(|(partition, from)| (partition, raw(*from))))?;
        consumer.incremental_assign(&starts).map_err(|error| unreachable(&error))?;
        self.positions.extend(positions);
        self.assignment.assigned(&commits);
        Ok(())
    }

    /// A commit that fails here costs repeats, not records: the partitions go either way.
    fn give(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let owned: Vec<_> = partitions.iter().filter(|it| self.positions.contains_key(*it)).cloned().collect();
        let commits = if owned.is_empty() { Vec::new() } else { self.assignment.revoked(&owned) };
        let committed = self.commit(&commits);
        for partition in &owned {
            self.positions.remove(partition);
        }
        let gone = list(partitions.iter().map(|partition| (partition, Offset::Invalid)))?;
        self.consumer()?.incremental_unassign(&gone).map_err(|error| unreachable(&error))?;
        committed
    }

    /// The group gave everything away: nothing can be committed any more.
    fn lose(&mut self) {
        self.fenced = true;
        let lost: Vec<_> = std::mem::take(&mut self.positions).into_keys().collect();
        if !lost.is_empty() {
            self.assignment.revoked(&lost);
        }
    }

    /// What an error that librdkafka handed out means; `None` where it goes on by itself.
    fn error_of(&mut self, error: &KafkaError) -> Option<LogError> {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                // It does not say whose offset: the one that lies outside of its partition's range.
                let outside = |(partition, position): (&TopicPartition, &u64)| match self.kafka.range(partition) {
                    Ok(range) if range.start <= *position && *position <= range.end => None,
                    Ok(_) => Some(self.kafka.out_of_range(partition, *position)),
                    Err(error) => Some(error),
                };
                self.positions.iter().find_map(outside)
            }
            Some(RDKafkaErrorCode::PollExceeded | RDKafkaErrorCode::FencedInstanceId | RDKafkaErrorCode::Fatal) => {
                self.lose();
                Some(LogError::Fenced(self.group.clone()))
            }
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::NodeUpdate,
            ) => {
                tracing::debug!(%error, group = self.group, "a broker went away");
                None
            }
            Some(code) if is_missing(code) => Some(LogError::MissingTopic(error.to_string())),
            _ => Some(unreachable(error)),
        }
    }

    fn owned(&self, partitions: &[TopicPartition]) -> Result<TopicPartitionList, LogError> {
        if let Some(other) = partitions.iter().find(|partition| !self.positions.contains_key(*partition)) {
            return Err(LogError::Refused(format!("{other} is not assigned to this member")));
        }
        list(partitions.iter().map(|partition| (partition, Offset::Invalid)))
    }
}

impl GroupReader for KafkaMember {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, LogError> {
        self.consumer()?;
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.settle()?;
        let (mut found, mut bytes, mut wait) = (Vec::new(), 0, wait);
        let mut down = None;
        let mut names: BTreeSet<Arc<str>> = self.positions.keys().map(|it| Arc::clone(&it.topic)).collect();
        while found.len() < records_max && bytes < READ_BYTES_MAX {
            let next = match self.consumer()?.poll(wait) {
                None => break,
                Some(Ok(message)) => Ok((message.topic().to_owned(), message.partition(), record_of(&message))),
                Some(Err(error)) => Err(error),
            };
            wait = Duration::ZERO;
            match next {
                Ok((topic, partition, record)) => {
                    let topic = names.get(topic.as_str()).cloned().unwrap_or_else(|| topic.into());
                    names.insert(Arc::clone(&topic));
                    bytes += record_bytes(&record);
                    let partition = u32::try_from(partition).unwrap_or(0);
                    found.push((TopicPartition { topic, partition }, record));
                }
                // One for each try of an outage, hundreds of them: whoever took them one by one, and paused after each,
                // would not read for minutes after the brokers are back.
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) => {
                    down = Some(unreachable(&error));
                }
                Err(error) => {
                    if let Some(error) = self.error_of(&error) {
                        self.error = Some(error);
                        break;
                    }
                }
            }
        }
        // What was given away meanwhile is its next owner's.
        let settled = self.settle();
        found.retain(|(partition, _)| self.positions.contains_key(partition));
        for (partition, record) in &found {
            self.positions.insert(partition.clone(), record.offset + 1);
        }
        match (settled, found.is_empty()) {
            (Err(error), true) => return Err(error),
            (Err(error), false) => self.error = Some(error),
            (Ok(()), true) => {
                if let Some(error) = self.error.take().or(down) {
                    return Err(error);
                }
            }
            (Ok(()), false) => {}
        }
        Ok(found)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let list = self.owned(partitions)?;
        self.consumer()?.pause(&list).map_err(|error| LogError::Refused(error.to_string()))
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        if partitions.is_empty() {
            // librdkafka takes a seek of nothing for a mistake.
            return Ok(());
        }
        let asked = self.owned(partitions)?;
        let consumer = self.consumer()?;
        consumer.resume(&asked).map_err(|error| LogError::Refused(error.to_string()))?;
        // A partition that was paused before its first record forgets where it should start.
        let positions = partitions.iter().filter_map(|it| Some((it, raw(*self.positions.get(it)?))));
        let sought = consumer.seek_partitions(list(positions)?, self.kafka.params.patience);
        let sought = sought.map_err(|error| unreachable(&error))?;
        sought.elements().iter().try_for_each(|it| it.error()).map_err(|error| unreachable(&error))
    }

    fn commit(&mut self, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError> {
        let consumer = self.consumer()?;
        if commits.is_empty() {
            return Ok(());
        }
        if commits.iter().any(|(partition, _)| !self.positions.contains_key(partition)) {
            return Err(LogError::Fenced(self.group.clone()));
        }
        commit(consumer, &self.group, commits)
    }
}

fn commit(
    consumer: &BaseConsumer<MemberContext>,
    group: &str,
    commits: &[(TopicPartition, Commit)],
) -> Result<(), LogError> {
    let offsets = list(commits.iter().map(|(partition, commit)| (partition, raw(commit.offset))))?;
    for (element, (_, commit)) in offsets.elements().iter_mut().zip(commits) {
        element.set_metadata(&commit.metadata);
    }
    consumer.commit(&offsets, CommitMode::Sync).map_err(|error| match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::FencedInstanceId,
        ) => LogError::Fenced(group.to_owned()),
        Some(RDKafkaErrorCode::OffsetMetadataTooLarge) => LogError::Refused(error.to_string()),
        _ => unreachable(&error),
    })
}

impl Drop for KafkaMember {
    fn drop(&mut self) {
        let Some(consumer) = self.consumer.take() else { return };
        let owned: Vec<_> = self.positions.keys().cloned().collect();
        let commits = if owned.is_empty() { Vec::new() } else { self.assignment.revoked(&owned) };
        self.changes.leaving.store(true, Ordering::Relaxed);
        // Partitions that were on their way are answered for, so that the group need not wait.
        let mut gone: BTreeSet<TopicPartition> = owned.into_iter().collect();
        for change in std::mem::take(&mut *lock(&self.changes.waiting)) {
            let (Change::Take(partitions) | Change::Give { partitions, .. }) = change;
            gone.extend(partitions);
        }
        let group = self.group.clone();
        let_go(move || {
            if !commits.is_empty()
                && let Err(error) = commit(&consumer, &group, &commits)
            {
                tracing::warn!(group, %error, "could not commit while leaving; the next owner repeats");
            }
            if let Ok(gone) = list(gone.iter().map(|partition| (partition, Offset::Invalid)))
                && let Err(error) = consumer.incremental_unassign(&gone)
            {
                tracing::debug!(group, %error, "could not let partitions go while leaving");
            }
            drop(consumer);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_properties_are_refused_by_name() {
        for (name, expected) in [
            ("acks", "the log refused: property `acks`: tidings sets it; leave it out"),
            ("no.such.property", "the log refused: Client config error: No such configuration property"),
        ] {
            let params = KafkaParams {
                brokers: "127.0.0.1:1".to_owned(),
                linger: Duration::ZERO,
                patience: Duration::from_secs(1),
                properties: BTreeMap::from([(name.to_owned(), "1".to_owned())]),
            };
            let error = KafkaLog::open(params).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn settings_that_lose_records_are_named() {
        let cases = [
            ("unclean.leader.election.enable", "true", "unclean.leader.election.enable is true"),
            ("retention.bytes", "1000", "retention.bytes is 1000"),
            ("cleanup.policy", "compact,delete", "cleanup.policy is compact,delete"),
            ("max.message.bytes", "1000", "max.message.bytes is 1000"),
            ("retention.bytes", "-1", ""),
        ];
        for (name, value, expected) in cases {
            let settings = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let found = own_weaknesses("t", &settings).join("\n");
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{name}={value}: {found}");
        }
    }

    #[test]
    fn what_we_ask_for_is_what_we_read_back() {
        for retention in [
            Retention::For(Duration::from_secs(691_200)),
            Retention::Forever,
            Retention::Compacted(Duration::from_secs(691_200)),
        ] {
            let topic = TopicSpec { name: "t".to_owned(), partitions: 1, retention, replication: 3, min_insync: 2 };
            let settings = settings_for(&topic).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            assert_eq!(retention_of(&settings), retention);
            assert_eq!(own_weaknesses("t", &settings), Vec::<String>::new());
        }
    }
}
