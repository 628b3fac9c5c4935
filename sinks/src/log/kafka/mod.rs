//! The log on Kafka, over librdkafka.
//!
//! What is appended, topics, readers of single partitions and members of groups have a file each.
//!
//! # Not promised
//! [`Log::time`] is the broker's time of the newest record that was appended here to a topic with
//! `LogAppendTime` (topics kept for ever get it when we create them; the cut log is one). Kafka has
//! no request that asks for the time.

mod append;
mod instance;
mod member;
mod reader;
mod topics;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::admin::AdminClient;
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _};
use rdkafka::producer::ThreadedProducer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tidings_schemas::time::Instant;

use self::append::Reports;
pub use self::instance::Instance;
use self::member::KafkaMember;
use self::reader::{KafkaReader, Shared};
use self::topics::own_weaknesses;
use super::{
    Append, Assignment, Commit, GroupReader, Log, LogError, RECORD_BYTES_MAX, Reader, Record, TopicPartition,
    TopicSpec, bytes_of,
};

/// How long a client that is let go may take to say goodbye. `rd_kafka_destroy` was seen to hang;
/// beyond this it is left behind with a warning, and the process may exit.
const GOODBYE_MAX: Duration = Duration::from_secs(10);
/// How long a new topic's leaders or a group's coordinator are left to settle before they are
/// asked for again.
const MOVE_PAUSE: Duration = Duration::from_millis(50);
/// Room for a batch's own bytes around the largest record.
const BATCH_BYTES_MAX: usize = RECORD_BYTES_MAX + 64 * 1024;

/// Properties that this module's promises rest on; nobody else sets them.
const RESERVED: [&str; 17] = [
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
    "group.instance.id",
    "isolation.level",
    "linger.ms",
    "message.timeout.ms",
    "partition.assignment.strategy",
    "request.required.acks",
    "transactional.id",
];

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
    /// What this process's members of groups are called, so that they have their partitions back at once after a crash.
    pub instance: Option<Arc<Instance>>,
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
        // The least that brokers grant by default: how long the partitions of a process wait that never comes back.
        ("session.timeout.ms", "6000"),
        ("heartbeat.interval.ms", "1000"),
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

impl Kafka {
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

    /// What a broker means that knows no such offset. A broker that has just started again may say it of one that is
    /// there: then this is none, and because librdkafka reads that partition no further, it must be told to.
    fn outside(&self, partition: &TopicPartition, offset: u64) -> Option<LogError> {
        match self.out_of_range(partition, offset) {
            LogError::OutOfRange { oldest, end, .. } if (oldest..=end).contains(&offset) => {
                tracing::warn!(%partition, offset, oldest, end, "a broker said that it has no such offset, and has it");
                None
            }
            error => Some(error),
        }
    }
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

const fn is_missing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownPartition
    )
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
                instance: None,
                properties: BTreeMap::from([(name.to_owned(), "1".to_owned())]),
            };
            let error = KafkaLog::open(params).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
