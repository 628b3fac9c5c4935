//! The record: lifecycle rows from blocks that lie in a log into a real ClickHouse, by the production
//! writers, one and as many as a process has, and what a notification takes on its disk.
//!
//! The rows are those that decide says of the workload, epoch by epoch, in blocks as egress makes them. They
//! wait in a log in memory, so that nothing is measured but the writers and the server. The clock starts
//! with the writers and stops when the last block is committed; the database is then asked whether each row
//! is there, once, and whether every epoch is complete. What it takes on disk is asked once parts are merged.
//!
//! A database of its own is made, and dropped whatever happened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use tidings_operators::harness::chain::Block as Arriving;
use tidings_operators::ingest::{Path, ingest};
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_schemas::block::Block;
use tidings_schemas::lifecycle::Stage;
use tidings_sinks::log::memory::MemoryLog;
use tidings_sinks::log::{Append, Elapsed, Log, Retention, TopicPartition, TopicSpec};
use tidings_sinks::record::clickhouse::{ClickHouse, ClickHouseParams};
use tidings_sinks::record::writer::{RecordCounts, RecordParams, RecordWriter, run_all};
use tokio_util::sync::CancellationToken;

use crate::setup::Setup;
use crate::workload::{Size, Workload};

/// What a record is made of: a million rows, which lie in memory as blocks of 330 MB.
pub const FULL: Size = Size { events: 400_000, users: 131_072, per_epoch: 20_000 };

/// Partitions of the lifecycle topic.
const PARTITIONS: u32 = 4;

const TOPIC: &str = "notifications.lifecycle";
const DLQ: &str = "notifications.dlq";

/// How long the last batches wait for more: all of it lies there, so that the others are full at once.
const WAIT: Duration = Duration::from_millis(100);

/// The longest that the writers may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// What decide said of a workload, as the log has it.
pub struct Decided {
    /// Partition and block, in the order in which they are appended.
    blocks: Vec<(u32, Bytes)>,
    /// Rows in them.
    pub rows: u64,
    /// Epochs that they are of.
    epochs: u64,
}

/// What a run did.
#[derive(Debug)]
pub struct Run {
    /// From the writer's start until everything is committed.
    pub elapsed: Duration,
    /// Rows that were written.
    pub rows: u64,
    /// Notifications that they speak of and that were handed to a lane.
    pub notifications: u64,
    /// Bytes of the table's parts on disk, once they are merged: columns, primary key and indices.
    pub disk_bytes: u64,
    /// What each column and all `indices` take of it, the largest first.
    pub columns: Vec<(String, u64)>,
}

/// Lets one worker decide the workload.
///
/// # Errors
/// When the wiring makes no chain.
pub fn decide(setup: &Setup, workload: &Workload) -> Result<Decided> {
    let mut chain = setup.wiring.chain(Path::Decide)?;
    let mut ends = BTreeMap::new();
    let mut decided = Decided { blocks: Vec::new(), rows: 0, epochs: workload.cuts.len() as u64 };
    for cut in &workload.cuts {
        let mut arriving = Vec::new();
        for (lot, end) in &cut.ends {
            let end = usize::try_from(*end)?;
            let from = ends.insert(*lot, end).unwrap_or(0);
            let (source, records) = (&setup.wiring.sources[usize::from(lot.source)], &workload.records[lot][from..end]);
            let records = records.iter().map(|record| ingest(source, *lot, record, &cut.rules, Path::Decide)).collect();
            arriving.push(Arriving { lot: *lot, target: 0, records });
        }
        let rows = chain.epoch(cut.epoch, cut.now, &cut.rules, arriving).rows;
        decided.rows += rows.len() as u64;
        decided.blocks.extend(rows.blocks(Stage::Decide, cut.epoch, PARTITIONS));
        decided.blocks.push((0, Block::closed(cut.epoch, rows.len() as u64).into()));
    }
    Ok(decided)
}

/// Writes what was decided into a database of its own on the server at `url`, by so many writers.
///
/// # Errors
/// When log, writer or server fail, or a row is not in the record once.
pub fn run(decided: &Decided, url: &str, writers: usize) -> Result<Run> {
    let clock = Arc::new(SystemClock::default());
    let server = ClickHouseParams::new(url, "default");
    let database = format!("tidings_bench_{}_{}", clock.wall().0, std::process::id());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = Server { runtime, params: server };
    server.ask(&format!("CREATE DATABASE {database}"))?;
    let params = ClickHouseParams::new(url, &database);
    let run = write(decided, &params, writers, &server, &clock);
    let dropped = server.ask(&format!("DROP DATABASE {database} SYNC"));
    let run = run?;
    dropped?;
    Ok(run)
}

fn write(
    decided: &Decided,
    params: &ClickHouseParams,
    writers: usize,
    server: &Server,
    clock: &Arc<SystemClock>,
) -> Result<Run> {
    let log = filled(decided, clock)?;
    let store = ClickHouse::new(params)?;
    store.migrate()?;
    // The workload's day is a fixed one, which the table would let go of.
    server.ask(&format!("ALTER TABLE {}.lifecycle REMOVE TTL", params.database))?;
    let machine = Arc::clone(clock);
    let (counts, stop) = (Arc::<RecordCounts>::default(), CancellationToken::new());
    let (log, elapsed): (Arc<dyn Log>, Elapsed) = (Arc::new(log), Arc::new(move || machine.elapsed()));
    let writer = || {
        let (log, store) = (Arc::clone(&log), ClickHouse::new(params)?);
        let params = RecordParams { wait: WAIT, ..RecordParams::new(TOPIC, DLQ) };
        let writer = RecordWriter::new(log, store, params, Arc::clone(&elapsed));
        Ok(writer.counting(Arc::clone(&counts)))
    };
    let writers = (0..writers).map(|_| writer()).collect::<Result<_>>()?;
    let started = clock.elapsed();
    let elapsed = std::thread::scope(|scope| {
        let writing = scope.spawn(|| run_all(writers, &stop));
        while !writing.is_finished() && counts.blocks.load(Ordering::Relaxed) < decided.blocks.len() as u64 {
            if clock.elapsed() - started > PATIENCE {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.cancel();
        writing.join().map_err(|_| anyhow!("the writer died"))??;
        Ok::<_, anyhow::Error>(clock.elapsed() - started)
    })?;
    let (blocks, rows) = (counts.blocks.load(Ordering::Relaxed), counts.rows.load(Ordering::Relaxed));
    ensure!(
        (blocks, rows) == (decided.blocks.len() as u64, decided.rows),
        "{counts:?} of {} blocks",
        decided.blocks.len()
    );

    let of = |what: &str| server.number(&format!("SELECT {what} FROM {}.lifecycle", params.database));
    let (found, distinct) = (of("count()")?, of("uniqExact(row_id)")?);
    ensure!(
        (found, distinct) == (rows, rows),
        "{rows} rows were written, {found} are there, {distinct} of them differ"
    );
    let closed = server.number(&format!("SELECT epoch FROM {}.closed_epoch", params.database))?;
    ensure!(closed == decided.epochs, "{} epochs were decided, {closed} are complete", decided.epochs);
    let notifications = of("uniqExactIf(notification, unit = 'leg' AND has(states, 'queued'))")?;

    server.ask(&format!("OPTIMIZE TABLE {}.lifecycle FINAL", params.database))?;
    let parts = format!("active AND database = '{}' AND table = 'lifecycle'", params.database);
    let disk_bytes = server.number(&format!("SELECT sum(bytes_on_disk) FROM system.parts WHERE {parts}"))?;
    let columns = server.ask(&format!(
        "SELECT name, sum(size) AS bytes FROM \
         (SELECT column AS name, column_bytes_on_disk AS size FROM system.parts_columns WHERE {parts} \
         UNION ALL SELECT 'indices' AS name, secondary_indices_compressed_bytes + secondary_indices_marks_bytes AS size \
         FROM system.parts WHERE {parts}) GROUP BY name ORDER BY bytes DESC, name"
    ))?;
    let columns = columns.lines().filter_map(|line| line.split_once('\t'));
    let columns = columns.map(|(name, bytes)| Ok((name.to_owned(), bytes.parse()?))).collect::<Result<_>>()?;
    Ok(Run { elapsed, rows, notifications, disk_bytes, columns })
}

/// A log that holds the blocks.
fn filled(decided: &Decided, clock: &Arc<SystemClock>) -> Result<MemoryLog> {
    let machine = Arc::clone(clock);
    let log = MemoryLog::new(Arc::new(move || machine.wall()))?;
    let spec = |name, partitions| TopicSpec::one_copy(name, partitions, Retention::Forever);
    log.create(&[spec(TOPIC, PARTITIONS), spec(DLQ, 1)])?;
    let topic: Arc<str> = TOPIC.into();
    for (partition, block) in &decided.blocks {
        let to = TopicPartition { topic: Arc::clone(&topic), partition: *partition };
        log.append(&[Append { to, key: None, value: Some(block.clone()), headers: Vec::new() }])?;
    }
    Ok(log)
}

/// A ClickHouse that is asked.
struct Server {
    runtime: tokio::runtime::Runtime,
    params: ClickHouseParams,
}

impl Server {
    /// The answer to `sql`, tabs between values.
    fn ask(&self, sql: &str) -> Result<String> {
        let client = self.params.client();
        let asked = async { client.query_raw(sql).fetch_bytes("TSV")?.collect().await };
        let bytes = self.runtime.block_on(asked).with_context(|| sql.to_owned())?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }

    fn number(&self, sql: &str) -> Result<u64> {
        let answer = self.ask(sql)?;
        answer.parse().with_context(|| format!("{sql}: `{answer}` is no number"))
    }
}
