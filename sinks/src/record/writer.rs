//! The writer: a consumer group that carries lifecycle blocks from the log into the record's store.
//!
//! It follows the protocol of [`super`]. While the store cannot be reached, the writer stops fetching
//! (the log waits, nothing is lost), stays in its group, and tries the same batch again, less and
//! less often up to a bound. A block that is none goes to the DLQ with its raw bytes and is counted;
//! it never holds up the others.
//!
//! Calls block: give [`RecordWriter::run`] a thread of its own. Several writers of one group share
//! the partitions, in one process ([`run_all`]) or many.

use std::collections::{BTreeMap, VecDeque};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{CheckedBlock, RecordBatch, RecordStore, StoreError};
use crate::log::{Append, Assignment, Commit, Elapsed, GroupReader, Log, LogError, TopicPartition};

/// Most records of one poll. Blocks hold hundreds of rows; the log itself bounds a poll's bytes.
const POLL_RECORDS_MAX: usize = 256;
/// Longest wait in a poll, and so the longest until a stop is noticed.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// First pause after a failure; it doubles up to [`RecordParams::backoff_max`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// What announces a batch's end in a commit's metadata.
const ANNOUNCED: &str = "end=";

/// How the writer gathers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordParams {
    /// The lifecycle topic.
    pub topic: String,
    /// Where blocks go that are none.
    pub dlq: String,
    /// The consumer group.
    pub group: String,
    /// Rows after which a batch is written: ClickHouse likes few large inserts, and 100,000 rows are
    /// about a second of one partition's share at full load. A batch ends with the block that passes it.
    pub rows_max: u64,
    /// Bytes after which a batch is written; with one poll of the log it bounds a partition's memory.
    pub bytes_max: usize,
    /// How long the first block of a batch waits for more: what a view may lag behind.
    pub wait: Duration,
    /// Longest pause between two tries. A store that comes back is used at most this much later.
    pub backoff_max: Duration,
}

impl RecordParams {
    /// The default gathering for `topic`, with faulty blocks going to `dlq`.
    #[must_use]
    pub fn new(topic: &str, dlq: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            dlq: dlq.to_owned(),
            group: format!("{topic}.record"),
            rows_max: 100_000,
            bytes_max: 16 * 1024 * 1024,
            wait: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
        }
    }
}

/// What the writer did so far.
#[derive(Debug, Default)]
pub struct RecordCounts {
    /// Records gathered from the log, also those that another writer wrote in the end.
    pub fetched: AtomicU64,
    /// Rows given to the store, repeats of a batch not counted.
    pub rows: AtomicU64,
    /// Blocks.
    pub blocks: AtomicU64,
    /// Bytes of rows.
    pub bytes: AtomicU64,
    /// Batches.
    pub batches: AtomicU64,
    /// Tries that failed: store, log or DLQ.
    pub failures: AtomicU64,
    /// Blocks that were none and went to the DLQ.
    pub poisoned: AtomicU64,
    /// Writers that have stopped fetching because the store (or log) fails.
    pub stalled: AtomicU64,
}

/// Why the writer ended other than by being stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The log fails in a way that waiting does not mend.
    #[error("the record's writer: {0}")]
    Log(#[from] LogError),
    /// The DLQ topic has no partitions.
    #[error("topic `{0}` does not exist; create it with `tidings topics create`")]
    NoDlq(String),
}

/// Carries blocks from the log into a store.
pub struct RecordWriter<S> {
    log: Arc<dyn Log>,
    store: S,
    params: RecordParams,
    elapsed: Elapsed,
    counts: Arc<RecordCounts>,
}

impl<S: RecordStore> RecordWriter<S> {
    /// A writer from `log` into `store`; `elapsed` times batches and pauses.
    #[must_use]
    pub fn new(log: Arc<dyn Log>, store: S, params: RecordParams, elapsed: Elapsed) -> Self {
        Self { log, store, params, elapsed, counts: Arc::default() }
    }

    /// Counts into `counts`, as others may.
    #[must_use]
    pub fn counting(self, counts: Arc<RecordCounts>) -> Self {
        Self { counts, ..self }
    }

    /// What it does, to be watched while it runs.
    #[must_use]
    pub fn counts(&self) -> Arc<RecordCounts> {
        Arc::clone(&self.counts)
    }

    /// Runs until `stop`, then writes what it has gathered (once: what the store doesn't take then
    /// stays in the log) and leaves the group. Blocks its thread.
    ///
    /// # Errors
    /// When the log fails for good: a missing topic, records that were given up before they were read.
    pub fn run(mut self, stop: &CancellationToken) -> Result<(), RecordError> {
        let dlq_partitions = (self.log.describe(std::slice::from_ref(&self.params.dlq))?.first())
            .map(|spec| spec.partitions)
            .filter(|partitions| *partitions > 0)
            .ok_or_else(|| RecordError::NoDlq(self.params.dlq.clone()))?;
        while !stop.is_cancelled() {
            let changes = Arc::new(Changes::default());
            let reader = self.log.join(
                &self.params.group,
                std::slice::from_ref(&self.params.topic),
                Arc::clone(&changes) as Arc<dyn Assignment>,
            )?;
            let member =
                Member { writer: &mut self, reader, changes, owned: BTreeMap::new(), pause: None, dlq_partitions };
            match member.run(stop) {
                // Someone else has the partitions: what was announced is theirs to write. Join anew.
                Err(LogError::Fenced(_)) => {}
                other => return other.map_err(RecordError::from),
            }
        }
        Ok(())
    }
}

/// Runs writers of one group, each on a thread of its own, until `stop`. Where one ends for good the others are
/// stopped as well. Blocks.
///
/// # Errors
/// What one of them ended with.
///
/// # Panics
/// When one of them panics.
pub fn run_all<S: RecordStore>(writers: Vec<RecordWriter<S>>, stop: &CancellationToken) -> Result<(), RecordError> {
    let stop = stop.child_token();
    std::thread::scope(|scope| {
        let run = |writer: RecordWriter<S>| {
            let stop = stop.clone();
            scope.spawn(move || {
                let _others = stop.clone().drop_guard();
                writer.run(&stop)
            })
        };
        let running: Vec<_> = writers.into_iter().map(run).collect();
        let ended = running.into_iter().map(|writer| writer.join().unwrap_or_else(|died| resume_unwind(died)));
        // All of them are waited for.
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

/// What the group did, since the last look.
#[derive(Default)]
struct Changes(Mutex<Vec<Change>>);

enum Change {
    Gained(TopicPartition, Option<Commit>),
    Lost(TopicPartition),
}

impl Changes {
    fn push(&self, changes: impl Iterator<Item = Change>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(changes);
    }

    fn take(&self) -> Vec<Change> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Assignment for Changes {
    fn assigned(&self, partitions: &[(TopicPartition, Option<Commit>)]) {
        self.push(partitions.iter().map(|(it, commit)| Change::Gained(it.clone(), commit.clone())));
    }

    // Called within a poll, when no write is under way: what is gathered was never said and is read
    // again by the next owner; what was committed last already says all there is to say.
    fn revoked(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, Commit)> {
        self.push(partitions.iter().cloned().map(Change::Lost));
        Vec::new()
    }
}

/// A record that waits to be written.
struct Waiting {
    offset: u64,
    value: Bytes,
    block: Result<CheckedBlock, String>,
}

/// A partition that is ours.
struct Owned {
    /// The committed offset: where the next batch begins. Where nothing was committed yet, the first
    /// record that comes, which need not be offset 0.
    from: Option<u64>,
    /// The next batch's end, once it is announced.
    announced: Option<u64>,
    waiting: VecDeque<Waiting>,
    /// Since when the first of them waits.
    since: Duration,
}

impl Owned {
    fn new(commit: Option<&Commit>) -> Self {
        let announced = |commit: &Commit| commit.metadata.strip_prefix(ANNOUNCED).and_then(|end| end.parse().ok());
        Self {
            from: commit.map(|commit| commit.offset),
            announced: commit.and_then(|commit| announced(commit).filter(|end| *end > commit.offset)),
            waiting: VecDeque::new(),
            since: Duration::ZERO,
        }
    }

    /// Where the batch ends that should be written now, if one should.
    fn due(&self, params: &RecordParams, now: Duration, flush: bool) -> Option<u64> {
        let newest = self.waiting.back()?.offset + 1;
        if let Some(end) = self.announced {
            return (newest >= end).then_some(end);
        }
        let (mut rows, mut bytes) = (0, 0);
        for waiting in &self.waiting {
            rows += waiting.block.as_ref().map_or(0, CheckedBlock::row_count);
            bytes += waiting.value.len();
            if rows >= params.rows_max || bytes >= params.bytes_max {
                return Some(waiting.offset + 1);
            }
        }
        (flush || now.saturating_sub(self.since) >= params.wait).then_some(newest)
    }
}

struct Pause {
    until: Duration,
    backoff: Duration,
    stalled: Stalled,
}

/// Counts as one that stands still.
struct Stalled(Arc<RecordCounts>);

impl Stalled {
    fn new(counts: &Arc<RecordCounts>) -> Self {
        counts.stalled.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.0.stalled.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One membership in the group.
struct Member<'a, S> {
    writer: &'a mut RecordWriter<S>,
    reader: Box<dyn GroupReader>,
    changes: Arc<Changes>,
    owned: BTreeMap<TopicPartition, Owned>,
    /// Set while something fails: nothing is fetched until it goes well again.
    pause: Option<Pause>,
    dlq_partitions: u32,
}

/// Whether to go on after a failure that waiting may mend.
enum Failure {
    Waits(String),
    Ends(LogError),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        if error.is_transient() { Self::Waits(error.to_string()) } else { Self::Ends(error) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Waits(error.to_string())
    }
}

impl<S: RecordStore> Member<'_, S> {
    fn run(mut self, stop: &CancellationToken) -> Result<(), LogError> {
        loop {
            let stopping = stop.is_cancelled();
            if !stopping {
                match self.poll() {
                    Ok(()) => {}
                    Err(error) if error.is_transient() => {
                        self.failed(&error.to_string())?;
                        std::thread::sleep(POLL_WAIT);
                    }
                    Err(error) => return Err(error),
                }
            }
            let now = (self.writer.elapsed)();
            if stopping || self.pause.as_ref().is_none_or(|pause| pause.until <= now) {
                match self.write_due(stopping) {
                    Ok(()) => self.went_well()?,
                    Err(Failure::Ends(error)) => return Err(error),
                    Err(Failure::Waits(problem)) if stopping => {
                        tracing::warn!(problem, "stopped with gathered rows unwritten: they stay in the log");
                    }
                    Err(Failure::Waits(problem)) => self.failed(&problem)?,
                }
            }
            if stopping {
                return Ok(());
            }
        }
    }

    fn poll(&mut self) -> Result<(), LogError> {
        let polled = self.reader.poll(POLL_RECORDS_MAX, POLL_WAIT);
        let now = (self.writer.elapsed)();
        // A poll that fails may have given partitions away all the same.
        for change in self.changes.take() {
            match change {
                Change::Gained(partition, commit) => {
                    if self.pause.is_some() {
                        self.reader.pause(std::slice::from_ref(&partition))?;
                    }
                    self.owned.insert(partition, Owned::new(commit.as_ref()));
                }
                Change::Lost(partition) => {
                    self.owned.remove(&partition);
                }
            }
        }
        for (partition, record) in polled? {
            let Some(owned) = self.owned.get_mut(&partition) else { continue };
            let from = *owned.from.get_or_insert(record.offset);
            if record.offset < owned.waiting.back().map_or(from, |last| last.offset + 1) {
                continue;
            }
            if owned.waiting.is_empty() {
                owned.since = now;
            }
            let value = record.value.unwrap_or_default();
            let block = CheckedBlock::check(record.offset, &value).map_err(|error| error.to_string());
            self.writer.counts.fetched.fetch_add(1, Ordering::Relaxed);
            owned.waiting.push_back(Waiting { offset: record.offset, value, block });
        }
        Ok(())
    }

    fn write_due(&mut self, flush: bool) -> Result<(), Failure> {
        let partitions: Vec<TopicPartition> = self.owned.keys().cloned().collect();
        for partition in partitions {
            while let Some(owned) = self.owned.get(&partition) {
                let now = (self.writer.elapsed)();
                let Some(end) = owned.due(&self.writer.params, now, flush) else { break };
                self.write(&partition, end)?;
            }
        }
        Ok(())
    }

    /// Steps 2 to 4 for the batch of `partition` that ends at `end`.
    fn write(&mut self, partition: &TopicPartition, end: u64) -> Result<(), Failure> {
        let Some(owned) = self.owned.get_mut(partition) else { return Ok(()) };
        let Some(from) = owned.from else { return Ok(()) };
        // 2. Fix the range before anyone hears of it.
        if owned.announced != Some(end) {
            let announce = Commit { offset: from, metadata: format!("{ANNOUNCED}{end}") };
            self.reader.commit(&[(partition.clone(), announce)])?;
            owned.announced = Some(end);
        }
        // 3. Give it to the store, and then what is no block to the DLQ.
        let mut batch = RecordBatch { partition: partition.clone(), range: from..end, blocks: Vec::new() };
        let mut poisoned = Vec::new();
        for waiting in owned.waiting.iter().take_while(|waiting| waiting.offset < end) {
            match &waiting.block {
                Ok(block) => batch.blocks.push(block.clone()),
                Err(reason) => {
                    poisoned.push(dead(partition, waiting, reason, &self.writer.params.dlq, self.dlq_partitions))
                }
            }
        }
        if let Err(error) = self.writer.store.write(&batch) {
            // A refusal may be one block's fault: its checksum is right and its rows are not.
            if matches!(error, StoreError::Refused(_)) {
                for waiting in owned.waiting.iter_mut().take_while(|waiting| waiting.offset < end) {
                    let unreadable = waiting.block.as_ref().ok().and_then(|block| block.block().decode_rows().err());
                    if let Some(reason) = unreadable {
                        waiting.block = Err(reason.to_string());
                    }
                }
            }
            return Err(error.into());
        }
        if !poisoned.is_empty() {
            self.writer.log.append(&poisoned)?;
        }
        // 4. It is written: go on behind it.
        self.reader.commit(&[(partition.clone(), Commit { offset: end, metadata: String::new() })])?;
        owned.waiting.retain(|waiting| waiting.offset >= end);
        owned.from = Some(end);
        owned.announced = None;
        owned.since = (self.writer.elapsed)();
        let counts = &self.writer.counts;
        let add = |to: &AtomicU64, n: u64| to.fetch_add(n, Ordering::Relaxed);
        add(&counts.batches, 1);
        add(&counts.poisoned, poisoned.len() as u64);
        add(&counts.blocks, batch.blocks.len() as u64);
        add(&counts.rows, batch.blocks.iter().map(CheckedBlock::row_count).sum());
        add(&counts.bytes, batch.blocks.iter().map(|block| block.rows.len() as u64).sum());
        for append in &poisoned {
            tracing::error!(%partition, bytes = append.bytes(), "a lifecycle record is no block and went to the DLQ");
        }
        Ok(())
    }

    fn failed(&mut self, problem: &str) -> Result<(), LogError> {
        self.writer.counts.failures.fetch_add(1, Ordering::Relaxed);
        let (backoff, stalled) = match self.pause.take() {
            None => {
                self.reader.pause(&self.partitions())?;
                (BACKOFF_MIN, Stalled::new(&self.writer.counts))
            }
            Some(pause) => ((pause.backoff * 2).min(self.writer.params.backoff_max), pause.stalled),
        };
        tracing::warn!(problem, ?backoff, "the record stands still; the log keeps its rows");
        self.pause = Some(Pause { until: (self.writer.elapsed)() + backoff, backoff, stalled });
        Ok(())
    }

    fn went_well(&mut self) -> Result<(), LogError> {
        if self.pause.take().is_some() {
            self.reader.resume(&self.partitions())?;
            tracing::info!("the record goes on");
        }
        Ok(())
    }

    fn partitions(&self) -> Vec<TopicPartition> {
        self.owned.keys().cloned().collect()
    }
}

/// What the DLQ gets: the raw bytes, and where they stood and why they are no block.
fn dead(partition: &TopicPartition, waiting: &Waiting, reason: &str, dlq: &str, dlq_partitions: u32) -> Append {
    let header = |name: &str, value: String| (name.to_owned(), Bytes::from(value));
    Append {
        to: TopicPartition { topic: dlq.into(), partition: partition.partition % dlq_partitions },
        key: None,
        value: Some(waiting.value.clone()),
        headers: vec![
            header("stage", "record".to_owned()),
            header("reason", reason.to_owned()),
            header("topic", partition.topic.to_string()),
            header("partition", partition.partition.to_string()),
            header("offset", waiting.offset.to_string()),
        ],
    }
}
