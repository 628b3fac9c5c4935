//! The simulated log: the one in memory, with a memory of everything, failing when the seed says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidings_pipeline::cutlog::Entry;
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::lane::{HEADER_EPOCH, HEADER_MARK};
use tidings_schemas::time::Instant;
use tidings_sinks::log::memory::MemoryLog;
use tidings_sinks::log::{
    Append, Assignment, Batch, Commit, GroupReader, Log, LogError, Reader, Record, TopicPartition, TopicSpec,
};

use xxhash_rust::xxh3::Xxh3;

use crate::choices::Rng;
use crate::clock::Time;
use crate::options::Faults;
use crate::workload::GAP;

/// How many times likelier a process dies at an append that is seldom made: it is to be met as often as others.
const SELDOM: u64 = 10;

/// The topic of rows.
const ROWS: &str = "notifications.lifecycle";

/// The cut log's topic.
pub const CUTS: &str = "notifications.cuts";

/// What nature has in store for those who write.
pub struct Nature {
    /// Where every choice comes from.
    pub rng: Rng,
    /// How often things go wrong; nothing, once the faults are over.
    pub faults: Faults,
    /// Faults that may still strike.
    pub left: u64,
    /// What went wrong so far.
    pub struck: BTreeMap<&'static str, u64>,
    /// What happened, for a person to read; none where nobody reads.
    pub trace: Option<Vec<String>>,
    /// Everything that was ever appended.
    pub history: BTreeMap<TopicPartition, Vec<Record>>,
    /// Appends that will land later.
    pub late: VecDeque<Vec<Append>>,
    /// Records that were compacted.
    pub hidden: BTreeSet<(TopicPartition, u64)>,
    /// Where side inputs ended when each generation began.
    pub begun: BTreeMap<u64, BTreeMap<TopicPartition, u64>>,
    /// Durable writes so far: appends and puts.
    pub writes: u64,
    /// How the writes of these numbers go, whatever the seed says.
    pub script: BTreeMap<u64, Fate>,
    /// Feeds give all that there is: somebody asks whether anything is left to be done.
    pub eager: bool,
    /// A process that the script freezes.
    pub frozen: Option<u64>,
    /// How often anything was appended or committed.
    pub touched: u64,
    /// When the log last failed somebody.
    pub failed_at: Option<Instant>,
    /// Cuts in a row that took nothing, while nothing was said and nothing came in.
    pub idle_cuts: u64,
    /// The most that there were.
    pub idle_cuts_most: u64,
    /// Nothing is drawn where somebody reads, and what follows is kept.
    pub plain: bool,
    /// How often a process did what others can see, or saw what others do.
    pub observed: u64,
    /// Names all that was written and given up.
    pub content: u64,
    /// The newest append was of several records.
    pub wide: bool,
    /// Checkpoints that the cut log names.
    pub counted: u64,
}

/// How a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It happens.
    Done,
    /// It happens, and the process stands still for a while: the next one finds a zombie.
    Frozen,
    /// Refused, nothing happened.
    Unreachable,
    /// The first so many happened, and nobody is told.
    Torn(usize),
    /// It seems lost and happens later.
    Late,
    /// The process dies after the first so many.
    Dies(usize),
}

impl Fate {
    /// The same for an append of `count` records.
    fn within(self, count: usize) -> Self {
        match self {
            Self::Torn(first) => Self::Torn(first.min(count)),
            Self::Dies(first) => Self::Dies(first.min(count)),
            other => other,
        }
    }
}

/// The world that outlives its processes.
pub struct World {
    /// Everybody's time.
    pub time: Arc<Time>,
    inner: MemoryLog,
    nature: Mutex<Nature>,
    side_inputs: Vec<TopicPartition>,
}

impl World {
    /// A world with these topics.
    ///
    /// # Errors
    /// When the log cannot be made.
    pub fn new(
        time: Arc<Time>,
        nature: Nature,
        topics: &[TopicSpec],
        side_inputs: Vec<TopicPartition>,
    ) -> Result<Arc<Self>, LogError> {
        let clock = Arc::clone(&time);
        let inner = MemoryLog::new(Arc::new(move || clock.truth()))?;
        inner.create(topics)?;
        Ok(Arc::new(Self { time, inner, nature: Mutex::new(nature), side_inputs }))
    }

    /// Nature itself.
    pub fn nature(&self) -> MutexGuard<'_, Nature> {
        self.nature.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happened, where somebody reads it.
    pub fn trace(&self, words: impl FnOnce() -> String) {
        self.nature().say(&self.time, words);
    }

    /// Appends what comes from outside of every process.
    ///
    /// # Errors
    /// When a topic is missing.
    pub fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        let offsets = self.inner.append(records)?;
        let timestamp = self.time.truth();
        let mut nature = self.nature();
        nature.touched += 1;
        nature.idle_cuts = if records.iter().all(says_nothing) {
            nature.idle_cuts + u64::from(records.iter().any(|record| &*record.to.topic == CUTS))
        } else {
            0
        };
        nature.idle_cuts_most = nature.idle_cuts_most.max(nature.idle_cuts);
        for (append, offset) in records.iter().zip(&offsets) {
            let Append { to, key, value, headers } = append.clone();
            if headers.iter().any(|(name, _)| name == GAP) {
                nature.hidden.insert((to.clone(), *offset));
            }
            if nature.plain {
                let (key, value) = (key.as_deref().unwrap_or_default(), value.as_deref().unwrap_or_default());
                let headers = headers.iter().flat_map(|(name, value)| [name.as_bytes(), value]);
                let place = [to.topic.as_bytes(), &offset.to_le_bytes(), key, value];
                let record: Vec<&[u8]> = place.into_iter().chain(headers).collect();
                nature.content = nature.content.wrapping_add(digest(&record));
            }
            let record = Record { offset: *offset, key, value, headers, timestamp };
            nature.history.entry(to).or_default().push(record);
        }
        Ok(offsets)
    }

    /// Lets the oldest append that is late happen.
    pub fn land(&self) {
        let Some(records) = self.nature().late.pop_front() else { return };
        let landed = self.append(&records);
        self.trace(|| format!("late: {} lands at {landed:?}", describe(&records)));
    }

    /// What a group last committed for a partition.
    #[must_use]
    pub fn committed(&self, group: &str, partition: &TopicPartition) -> Option<Commit> {
        self.inner.committed(group, partition).ok().flatten()
    }

    /// Declares every member of a group dead, as a broker does with those that stopped polling.
    pub fn evict(&self, group: &str) {
        self.inner.evict(group);
    }

    /// What is left of a partition.
    ///
    /// # Errors
    /// When the topic is missing.
    pub fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError> {
        self.inner.range(partition)
    }

    /// Gives up a partition's records below `before`.
    ///
    /// # Errors
    /// When the topic is missing.
    pub fn trim(&self, partition: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.inner.trim(partition, before)
    }
}

impl Nature {
    /// Notes what happened, where somebody reads it.
    pub fn say(&mut self, time: &Time, words: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{} {}", time.truth(), words()));
        }
    }

    /// Whether the log fails somebody now, at this rate.
    fn fails(&mut self, time: &Time, name: &'static str, per_million: u64) -> bool {
        let fails = self.strikes(name, per_million);
        if fails {
            self.failed_at = Some(time.truth());
        }
        fails
    }

    /// Whether a fault of this rate strikes now.
    pub fn strikes(&mut self, name: &'static str, per_million: u64) -> bool {
        let strikes = self.left > 0 && self.rng.chance(per_million);
        if strikes {
            self.left -= 1;
            *self.struck.entry(name).or_default() += 1;
        }
        strikes
    }

    fn fate(&mut self, count: usize, seldom: bool) -> Fate {
        self.writes += 1;
        if let Some(fate) = self.script.get(&self.writes) {
            *self.struck.entry("script").or_default() += 1;
            return fate.within(count);
        }
        let faults = self.faults;
        if self.strikes("refused append", faults.unreachable) {
            Fate::Unreachable
        } else if self.strikes("lost acknowledgement", faults.lost_ack) {
            Fate::Torn(count)
        } else if self.strikes("torn append", faults.torn) {
            Fate::Torn(self.rng.place(count))
        } else if self.strikes("late append", faults.late) {
            Fate::Late
        } else if self.strikes("death at an append", faults.dies_appending * if seldom { SELDOM } else { 1 }) {
            // Before, after, and anywhere in between.
            let torn = self.rng.place(count + 1);
            Fate::Dies(*self.rng.one(&[0, count, torn]))
        } else {
            Fate::Done
        }
    }
}

/// One process's life: when it is over, nothing that it does has any effect.
#[derive(Debug)]
pub struct Life {
    /// The process's number.
    pub number: u64,
    dead: AtomicBool,
    /// Its generation plus one; zero before it began.
    generation: AtomicU64,
    /// Where the cut log ended when it came.
    came: AtomicU64,
}

impl Life {
    /// A new life.
    #[must_use]
    pub fn new(number: u64) -> Arc<Self> {
        Arc::new(Self { number, dead: AtomicBool::new(false), generation: AtomicU64::new(0), came: AtomicU64::new(0) })
    }

    /// It comes when the cut log ends there.
    pub fn came(&self, end: u64) {
        self.came.store(end, Ordering::Relaxed);
    }

    /// Ends it.
    pub fn end(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Its generation, once it has begun.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.generation.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// The log as one process sees it.
pub struct ProcessLog {
    /// The world.
    pub world: Arc<World>,
    /// The process.
    pub life: Arc<Life>,
}

fn gone() -> LogError {
    LogError::Refused("this process is dead".to_owned())
}

impl ProcessLog {
    fn alive(&self) -> Result<(), LogError> {
        if self.life.is_over() { Err(gone()) } else { Ok(()) }
    }

    /// Whether a read fails for a moment.
    fn readable(&self) -> Result<(), LogError> {
        self.alive()?;
        let mut nature = self.world.nature();
        let rate = nature.faults.read_fails;
        match nature.fails(&self.world.time, "failed read", rate) {
            true => Err(LogError::Unreachable("simulated".to_owned())),
            false => Ok(()),
        }
    }

    /// The generation's name, as soon as its begin stands in the log, acknowledged or not.
    fn note_begin(&self, records: &[Append], offsets: &[u64]) {
        let begins = records.iter().zip(offsets).filter(|(record, _)| {
            let bytes = record.value.as_deref().unwrap_or_default();
            &*record.to.topic == CUTS && matches!(Entry::decode(0, bytes), Ok(Entry::Begin { .. }))
        });
        for (_, offset) in begins {
            self.life.generation.store(offset + 1, Ordering::Relaxed);
            let ends = self.world.side_inputs.iter().map(|partition| {
                let end = self.world.inner.range(partition).map_or(0, |range| range.end);
                (partition.clone(), end)
            });
            let ends = ends.collect();
            self.world.nature().begun.insert(*offset, ends);
        }
    }
}

/// Whether a checkpoint counts by it: one append among hundreds.
fn counts_a_checkpoint(record: &Append) -> bool {
    let bytes = record.value.as_deref().unwrap_or_default();
    &*record.to.topic == CUTS && matches!(Entry::decode(0, bytes), Ok(Entry::Checkpoint { .. }))
}

/// Whether a record is none that anybody waits for: a cut that takes nothing, rows, a mark.
fn says_nothing(record: &Append) -> bool {
    let bytes = record.value.as_deref().unwrap_or_default();
    let is_mark = || record.headers.iter().any(|(name, _)| name == HEADER_MARK);
    match &*record.to.topic {
        CUTS => !matches!(Entry::decode(0, bytes), Ok(Entry::Cut { cut, .. }) if !cut.ends.is_empty()),
        topic => topic == ROWS || is_mark(),
    }
}

impl Log for ProcessLog {
    fn waits(&self) -> bool {
        false
    }

    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        self.alive()?;
        let fate = {
            let (mut nature, checkpoint) = (self.world.nature(), records.iter().any(counts_a_checkpoint));
            (nature.observed, nature.wide) = (nature.observed + 1, records.len() > 1);
            nature.counted += u64::from(checkpoint);
            nature.fate(records.len(), checkpoint)
        };
        if fate != Fate::Done {
            self.world.nature().failed_at = Some(self.world.time.truth());
        }
        let number = self.life.number;
        let some = |count: usize| -> Result<Vec<u64>, LogError> {
            let offsets = self.world.append(&records[..count])?;
            self.note_begin(&records[..count], &offsets);
            let places = offsets.first().copied();
            let word = if fate == Fate::Done { String::new() } else { format!(" [{fate:?}]") };
            self.world.trace(|| format!("p{number} appends {} at {places:?}{word}", describe(&records[..count])));
            Ok(offsets)
        };
        let ambiguous = || Err(LogError::Ambiguous("simulated".to_owned()));
        match fate {
            Fate::Done => some(records.len()),
            Fate::Frozen => {
                self.world.nature().frozen = Some(number);
                some(records.len())
            }
            Fate::Unreachable => {
                self.world.trace(|| format!("p{number} is refused {}", describe(records)));
                Err(LogError::Unreachable("simulated".to_owned()))
            }
            Fate::Torn(count) => {
                some(count)?;
                ambiguous()
            }
            Fate::Late => {
                self.world.trace(|| format!("p{number} hears nothing of {}, which is late", describe(records)));
                self.world.nature().late.push_back(records.to_vec());
                ambiguous()
            }
            Fate::Dies(count) => {
                some(count)?;
                self.world.trace(|| format!("p{number} dies after {count} of {}", records.len()));
                self.life.end();
                Err(gone())
            }
        }
    }

    fn reader(&self, partition: &TopicPartition, from: u64) -> Result<Box<dyn Reader>, LogError> {
        self.readable()?;
        let inner = self.world.inner.reader(partition, from)?;
        Ok(Box::new(ProcessReader {
            world: Arc::clone(&self.world),
            life: Arc::clone(&self.life),
            partition: partition.clone(),
            inner,
        }))
    }

    fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError> {
        self.readable()?;
        self.world.nature().observed += 1;
        self.world.inner.range(partition)
    }

    fn describe(&self, names: &[String]) -> Result<Vec<TopicSpec>, LogError> {
        self.readable()?;
        self.world.inner.describe(names)
    }

    fn create(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        self.alive()?;
        self.world.inner.create(topics)
    }

    fn trim(&self, partition: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.alive()?;
        self.world.trace(|| format!("p{} trims {partition} below {before}", self.life.number));
        {
            let mut nature = self.world.nature();
            nature.observed += 1;
            let trims = digest(&[b"trim", partition.topic.as_bytes(), &before.to_le_bytes()]);
            nature.content = nature.content.wrapping_add(trims);
        }
        self.world.inner.trim(partition, before)
    }

    fn join(
        &self,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Box<dyn GroupReader>, LogError> {
        self.readable()?;
        let assignment = Arc::new(ProcessAssignment { life: Arc::clone(&self.life), inner: assignment });
        let inner = self.world.inner.join(group, topics, assignment)?;
        let (world, life) = (Arc::clone(&self.world), Arc::clone(&self.life));
        Ok(Box::new(ProcessMember { world, life, inner }))
    }

    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError> {
        self.alive()?;
        self.world.inner.committed(group, partition)
    }

    fn time(&self) -> Result<Instant, LogError> {
        self.readable()?;
        self.world.inner.time()
    }
}

struct ProcessReader {
    world: Arc<World>,
    life: Arc<Life>,
    partition: TopicPartition,
    inner: Box<dyn Reader>,
}

impl Reader for ProcessReader {
    fn poll(&mut self, records_max: usize, _: Duration) -> Result<Batch, LogError> {
        if self.life.is_over() {
            return Err(gone());
        }
        let mut nature = self.world.nature();
        let rate = nature.faults.read_fails;
        if nature.strikes("failed read", rate) {
            return Err(LogError::Unreachable("simulated".to_owned()));
        }
        let mut batch = self.inner.poll(records_max, Duration::ZERO)?;
        nature.observed += u64::from(!batch.records.is_empty());
        // Who reads the log and begins then misses what came in between.
        if deliberate::has(Bug::BegunAfterReading) && &*self.partition.topic == CUTS {
            let unseen = self.life.came.load(Ordering::Relaxed)..self.life.generation().unwrap_or(0);
            batch.records.retain(|record| !unseen.contains(&record.offset));
        }
        if !nature.hidden.is_empty() {
            batch.records.retain(|record| !nature.hidden.contains(&(self.partition.clone(), record.offset)));
        }
        Ok(batch)
    }
}

/// A group's words to one process: the dead commit nothing.
struct ProcessAssignment {
    life: Arc<Life>,
    inner: Arc<dyn Assignment>,
}

impl Assignment for ProcessAssignment {
    fn assigned(&self, partitions: &[(TopicPartition, Option<Commit>)]) {
        self.inner.assigned(partitions);
    }

    fn revoked(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, Commit)> {
        let commits = self.inner.revoked(partitions);
        if self.life.is_over() { Vec::new() } else { commits }
    }
}

struct ProcessMember {
    world: Arc<World>,
    life: Arc<Life>,
    inner: Box<dyn GroupReader>,
}

impl ProcessMember {
    fn fails(&self, name: &'static str) -> Result<(), LogError> {
        if self.life.is_over() {
            return Err(gone());
        }
        let mut nature = self.world.nature();
        let rate = nature.faults.read_fails;
        match nature.fails(&self.world.time, name, rate) {
            true => Err(LogError::Unreachable("simulated".to_owned())),
            false => Ok(()),
        }
    }
}

impl GroupReader for ProcessMember {
    fn poll(&mut self, records_max: usize, _: Duration) -> Result<Vec<(TopicPartition, Record)>, LogError> {
        self.fails("failed read")?;
        self.inner.poll(records_max, Duration::ZERO)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.inner.pause(partitions)
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.inner.resume(partitions)
    }

    fn commit(&mut self, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError> {
        self.fails("failed commit")?;
        self.inner.commit(commits)?;
        self.world.nature().touched += 1;
        // Where everybody starts is no news.
        let moved = commits.iter().filter(|(_, it)| it.offset > 0);
        let moved: Vec<String> = moved.map(|(at, it)| format!("{at}<{}", it.offset)).collect();
        if !moved.is_empty() {
            self.world.trace(|| format!("p{} commits {}", self.life.number, moved.join(" ")));
        }
        self.fails("unheard commit").map_err(|error| match error {
            LogError::Unreachable(words) => LogError::Ambiguous(words),
            other => other,
        })
    }
}

/// A word for these.
pub(crate) fn digest(parts: &[&[u8]]) -> u64 {
    let mut hasher = Xxh3::new();
    for part in parts {
        hasher.update(&part.len().to_le_bytes());
        hasher.update(part);
    }
    hasher.digest()
}

/// What an append is, in a few words.
fn describe(records: &[Append]) -> String {
    let Some(first) = records.first() else { return "nothing".to_owned() };
    if &*first.to.topic == CUTS {
        return match Entry::decode(0, first.value.as_deref().unwrap_or_default()) {
            Ok(Entry::Begin { .. }) => "begin".to_owned(),
            Ok(Entry::Cut { generation, cut }) => {
                let ends: Vec<String> = (cut.ends.iter())
                    .flat_map(|(source, ends)| ends.iter().map(move |(at, end)| format!("{source}/{at}<{}", end.end)))
                    .collect();
                let (epoch, now, said) = (cut.epoch, cut.now, cut.said_through);
                format!("cut {epoch} of g{generation} at {now}, said through {said}, {}", ends.join(" "))
            }
            Ok(Entry::Checkpoint { generation, epoch, .. }) => format!("checkpoint {epoch} of g{generation}"),
            Ok(Entry::Skip { generation, skip }) => format!("skip in {} of g{generation}", skip.epoch),
            Err(error) => error.to_string(),
        };
    }
    let text = |record: &Append, name: &str| {
        let value = record.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value);
        value.map_or_else(String::new, |value| String::from_utf8_lossy(value).into_owned())
    };
    if first.headers.iter().any(|(name, _)| name == HEADER_MARK) {
        return format!("{} marks", records.len());
    }
    if text(first, HEADER_EPOCH).is_empty() {
        let mut topics: BTreeMap<&str, u64> = BTreeMap::new();
        for record in records {
            *topics.entry(&*record.to.topic).or_default() += 1;
        }
        let topics: Vec<String> = topics.iter().map(|(topic, count)| format!("{count} to {topic}")).collect();
        return topics.join(", ");
    }
    let epochs: BTreeSet<String> = records.iter().map(|record| text(record, HEADER_EPOCH)).collect();
    format!("{} outputs of epochs {}", records.len(), epochs.into_iter().collect::<Vec<_>>().join(" "))
}
