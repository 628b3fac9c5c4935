//! A database to oneself, rows to put into it, and a log to write from.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clickhouse::Client;
use tidings_schemas::block::Block;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{DeliveryId, EventId, LegId, NotificationId};
use tidings_schemas::lifecycle::{Row, Stage, State, Unit};
use tidings_schemas::time::Instant;
use tidings_sinks::log::memory::MemoryLog;
use tidings_sinks::log::{Append, Clock, Commit, Elapsed, Log, Retention, TopicPartition, TopicSpec};
use tidings_sinks::record::clickhouse::{ClickHouse, ClickHouseParams};
use tidings_sinks::record::writer::RecordParams;
use tidings_sinks::record::{CheckedBlock, RecordBatch};

pub(crate) const TOPIC: &str = "notifications.lifecycle";
pub(crate) const DLQ: &str = "notifications.dlq";
/// How long something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the environment says of the real services.
#[expect(clippy::disallowed_methods, reason = "where the real services are comes from outside")]
pub(crate) fn given(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

pub(crate) fn skipped(test: &str, variable: &str) {
    // Past the harness's capture: a run without a server must not look like one with it.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: set {variable} to run it against a real server");
}

#[expect(clippy::disallowed_methods, reason = "real servers keep real time: the tests' one clock")]
pub(crate) fn now() -> Instant {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Instant(i64::try_from(since.as_millis()).unwrap())
}

pub(crate) fn clock() -> Clock {
    Arc::new(now)
}

pub(crate) fn elapsed() -> Elapsed {
    let since = now();
    Arc::new(move || now().since(since))
}

/// A database of its own on a real server.
pub(crate) struct Database {
    runtime: tokio::runtime::Runtime,
    client: Client,
    pub(crate) params: ClickHouseParams,
}

impl Database {
    /// An empty database for `test` on the server that the environment names.
    pub(crate) fn empty(test: &str) -> Option<Self> {
        let Some(url) = given("TIDINGS_TEST_CLICKHOUSE") else {
            skipped(test, "TIDINGS_TEST_CLICKHOUSE");
            return None;
        };
        Some(Self::on(&url, test))
    }

    pub(crate) fn on(url: &str, test: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let name = format!("tidings_{test}_{}", std::process::id());
        let server = ClickHouseParams::new(url, "default").client();
        let make = format!("CREATE DATABASE {name}");
        runtime.block_on(server.query(&make).execute()).unwrap();
        let params = ClickHouseParams::new(url, &name);
        Self { runtime, client: params.client(), params }
    }

    /// With the schema.
    pub(crate) fn ready(test: &str) -> Option<Self> {
        let database = Self::empty(test)?;
        database.store().migrate().unwrap();
        Some(database)
    }

    pub(crate) fn store(&self) -> ClickHouse {
        ClickHouse::new(&self.params).unwrap()
    }

    /// The answer to `sql`, tabs between values, lines sorted where the query has no order.
    pub(crate) fn ask(&self, sql: &str) -> Vec<String> {
        let asked = async { self.client.query_raw(sql).fetch_bytes("TSV")?.collect().await };
        let bytes = self.runtime.block_on(asked).unwrap_or_else(|error| panic!("{sql}\n{error}"));
        let mut lines: Vec<String> = String::from_utf8(bytes.to_vec()).unwrap().lines().map(str::to_owned).collect();
        if !sql.contains("ORDER BY") {
            lines.sort();
        }
        lines
    }

    /// The one value that `sql` asks for.
    pub(crate) fn value(&self, sql: &str) -> String {
        self.ask(sql).join("\n")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let remove = format!("DROP DATABASE {} SYNC", self.params.database);
        let _ = self.runtime.block_on(self.client.query(&remove).execute());
    }
}

pub(crate) fn partition(partition: u32) -> TopicPartition {
    TopicPartition { topic: TOPIC.into(), partition }
}

/// A batch as the writer would make it of these records.
pub(crate) fn batch(from: u64, records: &[Vec<u8>]) -> RecordBatch {
    let offsets = from..from + records.len() as u64;
    let check = |(offset, bytes): (u64, &Vec<u8>)| CheckedBlock::check(offset, &Bytes::copy_from_slice(bytes)).unwrap();
    RecordBatch { partition: partition(0), blocks: offsets.clone().zip(records).map(check).collect(), range: offsets }
}

/// What deliver says of delivery `n` on `channel`.
pub(crate) fn delivery(n: u64, channel: Channel, states: &[State], at: Instant) -> Row {
    let event = EventId::new("high", 0, n);
    let notification = NotificationId::new("validate", &format!("u{n}"), b"", &mut [event]);
    Row {
        at,
        stage: Stage::Deliver,
        states: states.to_vec(),
        unit: Unit::Delivery,
        event,
        notification,
        leg: LegId::new(notification, channel.as_str(), 0),
        delivery: DeliveryId::new(notification, channel.as_str(), "address", 0),
        user: format!("u{n}"),
        event_type: "order_shipped".to_owned(),
        category: "transactional".to_owned(),
        priority: Some(Priority::High),
        channel: Some(channel),
        provider: format!("{channel}_provider"),
        attempt: 1,
        created_at: at,
        ..Row::default()
    }
    .sealed()
}

/// A log with the writer's topics: `partitions` of lifecycle blocks, one of the DLQ.
pub(crate) fn log(partitions: u32) -> MemoryLog {
    let log = MemoryLog::new(clock()).unwrap();
    let spec = |name, partitions| TopicSpec::one_copy(name, partitions, Retention::Forever);
    log.create(&[spec(TOPIC, partitions), spec(DLQ, 1)]).unwrap();
    log
}

pub(crate) fn append(log: &MemoryLog, to: u32, value: Vec<u8>) {
    let append = Append { to: partition(to), key: None, value: Some(Bytes::from(value)), headers: Vec::new() };
    log.append(&[append]).unwrap();
}

/// A block of deliver with rows `from..to`, one delivery each.
pub(crate) fn rows_block(from: u64, to: u64) -> Vec<u8> {
    let at = now();
    let rows: Vec<Row> =
        (from..to).map(|n| delivery(n, Channel::Push, &[State::Created, State::Sent, State::Delivered], at)).collect();
    Block::encode(Stage::Deliver, 0, &rows)
}

pub(crate) fn params() -> RecordParams {
    let wait = Duration::from_millis(20);
    RecordParams { wait, backoff_max: Duration::from_millis(200), ..RecordParams::new(TOPIC, DLQ) }
}

pub(crate) fn committed(log: &MemoryLog, of: u32) -> Commit {
    log.committed(&params().group, &partition(of)).unwrap().unwrap_or_default()
}

/// Asks `done` again and again until it is so.
#[expect(clippy::disallowed_methods, reason = "how long to wait for a real server is real time")]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited for {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
