//! The log in memory, with crash points.
//!
//! Clones are the same log: give one to each "process" of a test, drop them to kill it, keep them
//! for a zombie. A crash point is armed once and strikes once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidings_schemas::time::Instant;

use super::local::{Found, Local, Placed, Store};
use super::{
    Append, Assignment, Clock, Commit, GroupReader, Log, LogError, READ_BYTES_MAX, Reader, Record, TopicPartition,
    TopicSpec, bytes_of,
};

/// How an append fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    /// Before it happened: [`LogError::Unreachable`].
    Before,
    /// After the first so many of its records happened: [`LogError::Ambiguous`].
    Torn(usize),
    /// After it happened, the acknowledgement is lost: [`LogError::Ambiguous`].
    LostAck,
    /// It seems lost ([`LogError::Ambiguous`]) and happens when [`MemoryLog::land`] is called.
    Late,
}

struct Armed {
    point: CrashPoint,
    topic: Option<String>,
    /// How many appends until it strikes.
    left: u64,
}

#[derive(Default)]
struct Faults {
    armed: Vec<Armed>,
    late: Vec<Vec<Append>>,
}

/// A log in memory.
#[derive(Clone)]
pub struct MemoryLog {
    local: Arc<Local<Memory>>,
    faults: Arc<Mutex<Faults>>,
}

impl MemoryLog {
    /// An empty log whose records are stamped with `clock`.
    ///
    /// # Errors
    /// Never; the signature is that of every log.
    pub fn new(clock: Clock) -> Result<Self, LogError> {
        Ok(Self { local: Local::open(Memory::default(), clock)?, faults: Arc::default() })
    }

    /// Makes the `n`-th append from now (1 is the next one) fail at `point`.
    pub fn fail_at(&self, point: CrashPoint, n: u64) {
        self.faults().armed.push(Armed { point, topic: None, left: n });
    }

    /// Makes the `n`-th append from now that has a record for `topic` fail at `point`.
    pub fn fail_topic_at(&self, topic: &str, point: CrashPoint, n: u64) {
        self.faults().armed.push(Armed { point, topic: Some(topic.to_owned()), left: n });
    }

    /// Lets the appends that are late happen, oldest first; says how many there were.
    ///
    /// # Errors
    /// When a topic is missing.
    pub fn land(&self) -> Result<usize, LogError> {
        let late = std::mem::take(&mut self.faults().late);
        for records in &late {
            self.local.append(records)?;
        }
        Ok(late.len())
    }

    /// Declares every member of `group` dead, as a broker does with members that stopped polling:
    /// they are fenced, and their partitions are free.
    pub fn evict(&self, group: &str) {
        self.local.evict(group);
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an append, and says which crash point it meets.
    fn strike(&self, records: &[Append]) -> Option<CrashPoint> {
        let mut faults = self.faults();
        for armed in &mut faults.armed {
            let counts = armed.topic.as_ref().is_none_or(|topic| records.iter().any(|it| *it.to.topic == **topic));
            armed.left = armed.left.saturating_sub(u64::from(counts));
        }
        let index = faults.armed.iter().position(|armed| armed.left == 0)?;
        let point = faults.armed.remove(index).point;
        if point == CrashPoint::Late {
            faults.late.push(records.to_vec());
        }
        Some(point)
    }
}

impl Log for MemoryLog {
    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        let ambiguous = |what: &str| Err(LogError::Ambiguous(format!("crash point: {what}")));
        match self.strike(records) {
            None => self.local.append(records),
            Some(CrashPoint::Before) => Err(LogError::Unreachable("crash point: before the append".to_owned())),
            Some(CrashPoint::Torn(count)) => {
                self.local.append(&records[..count.min(records.len())])?;
                ambiguous("torn append")
            }
            Some(CrashPoint::LostAck) => {
                self.local.append(records)?;
                ambiguous("lost acknowledgement")
            }
            Some(CrashPoint::Late) => ambiguous("late append"),
        }
    }

    fn reader(&self, partition: &TopicPartition, from: u64) -> Result<Box<dyn Reader>, LogError> {
        Ok(Box::new(self.local.reader(partition, from)?))
    }

    fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError> {
        self.local.range(partition)
    }

    fn describe(&self, names: &[String]) -> Result<Vec<TopicSpec>, LogError> {
        Ok(self.local.describe(names))
    }

    fn weaknesses(&self, wanted: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        Ok(self.local.weaknesses(wanted))
    }

    fn create(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        self.local.create(topics)
    }

    fn trim(&self, partition: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.local.trim(partition, before)
    }

    fn join(
        &self,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Box<dyn GroupReader>, LogError> {
        Ok(Box::new(self.local.join(group, topics, assignment)?))
    }

    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError> {
        self.local.committed(group, partition)
    }

    fn time(&self) -> Result<Instant, LogError> {
        Ok(self.local.time())
    }
}

/// One partition's records.
#[derive(Default)]
struct Partition {
    records: BTreeMap<u64, Record>,
    /// The newest offset of each key; kept for compacted topics only.
    newest: BTreeMap<bytes::Bytes, u64>,
    /// Superseded records and tombstones, and until when they stay.
    superseded: BTreeMap<(Instant, u64), Option<bytes::Bytes>>,
}

/// What the log in memory is kept in.
#[derive(Default)]
pub(super) struct Memory {
    partitions: Mutex<BTreeMap<TopicPartition, Partition>>,
    commits: Mutex<BTreeMap<(String, TopicPartition), Commit>>,
}

impl Memory {
    fn partitions(&self) -> MutexGuard<'_, BTreeMap<TopicPartition, Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commits(&self) -> MutexGuard<'_, BTreeMap<(String, TopicPartition), Commit>> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Partition {
    fn insert(&mut self, placed: &Placed<'_>) {
        let Append { key, value, headers, .. } = placed.append;
        let Placed { offset, timestamp, .. } = *placed;
        let (key, value, headers) = (key.clone(), value.clone(), headers.clone());
        if let (Some(until), Some(key)) = (placed.superseded_until, &key) {
            if let Some(older) = self.newest.insert(key.clone(), offset) {
                self.superseded.insert((until, older), None);
            }
            if value.is_none() {
                self.superseded.insert((until, offset), Some(key.clone()));
            }
        }
        self.records.insert(offset, Record { offset, key, value, headers, timestamp });
    }

    /// Whether there may be more.
    fn compact(&mut self, now: Instant, records_max: usize) -> bool {
        for _ in 0..records_max {
            let Some(entry) = self.superseded.first_entry().filter(|entry| entry.key().0 <= now) else { return false };
            let ((_, offset), tombstone) = entry.remove_entry();
            self.records.remove(&offset);
            if let Some(key) = tombstone
                && self.newest.get(&key) == Some(&offset)
            {
                self.newest.remove(&key);
            }
        }
        true
    }
}

impl Store for Memory {
    fn topics(&self) -> Result<Vec<Found>, LogError> {
        Ok(Vec::new())
    }

    fn write_topics(&self, _: &[TopicSpec]) -> Result<(), LogError> {
        Ok(())
    }

    fn write(&self, records: &[Placed<'_>]) -> Result<(), LogError> {
        let mut partitions = self.partitions();
        for placed in records {
            partitions.entry(placed.append.to.clone()).or_default().insert(placed);
        }
        Ok(())
    }

    fn write_commits(&self, group: &str, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError> {
        let mut kept = self.commits();
        for (partition, commit) in commits {
            kept.insert((group.to_owned(), partition.clone()), commit.clone());
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), LogError> {
        Ok(())
    }

    fn read(
        &self,
        partition: &TopicPartition,
        range: Range<u64>,
        records_max: usize,
    ) -> Result<(Vec<Record>, u64), LogError> {
        let partitions = self.partitions();
        let (mut records, mut bytes) = (Vec::new(), 0);
        for record in partitions.get(partition).into_iter().flat_map(|it| it.records.range(range.clone())) {
            if records.len() >= records_max || bytes >= READ_BYTES_MAX {
                return Ok((records, *record.0));
            }
            bytes += bytes_of(record.1.key.as_ref(), record.1.value.as_ref(), &record.1.headers);
            records.push(record.1.clone());
        }
        Ok((records, range.end))
    }

    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError> {
        Ok(self.commits().get(&(group.to_owned(), partition.clone())).cloned())
    }

    fn trim(&self, partition: &TopicPartition, range: Range<u64>) -> Result<(), LogError> {
        if let Some(partition) = self.partitions().get_mut(partition) {
            partition.records = partition.records.split_off(&range.end);
        }
        Ok(())
    }

    fn first_since(
        &self,
        partition: &TopicPartition,
        range: Range<u64>,
        instant: Instant,
        records_max: usize,
    ) -> Result<(u64, Option<Instant>), LogError> {
        let partitions = self.partitions();
        let Some(partition) = partitions.get(partition) else { return Ok((range.start, None)) };
        let mut records = partition.records.range(range.clone());
        let kept = records.by_ref().take(records_max).find(|(_, record)| record.timestamp >= instant);
        let kept = kept.or_else(|| records.next());
        Ok(kept.map_or((range.end, None), |(offset, record)| (*offset, Some(record.timestamp))))
    }

    fn compact(&self, now: Instant, records_max: usize) -> Result<bool, LogError> {
        let mut more = false;
        for partition in self.partitions().values_mut() {
            more |= partition.compact(now, records_max);
        }
        Ok(more)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Retention;
    use super::*;

    fn log() -> MemoryLog {
        let log = MemoryLog::new(Arc::new(|| Instant(0))).unwrap();
        log.create(&["a", "b"].map(|name| TopicSpec::one_copy(name, 1, Retention::Forever))).unwrap();
        log
    }

    fn at(topic: &str) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition: 0 }
    }

    fn say(log: &MemoryLog, topic: &str, values: &[&'static str]) -> String {
        let append = |value: &&'static str| Append {
            to: at(topic),
            key: None,
            value: Some((*value).into()),
            headers: Vec::new(),
        };
        match log.append(&values.iter().map(append).collect::<Vec<_>>()) {
            Ok(offsets) => format!("{offsets:?}"),
            Err(LogError::Unreachable(_)) => "unreachable".to_owned(),
            Err(error) => format!("ambiguous {}", error.is_ambiguous()),
        }
    }

    fn hear(log: &MemoryLog, topic: &str) -> String {
        let batch = log.reader(&at(topic), 0).unwrap().poll(100, Duration::ZERO).unwrap();
        assert!(batch.at_end);
        let text = |record: &Record| String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap();
        batch.records.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_crash_point_leaves_what_it_says() {
        let cases = [
            (CrashPoint::Before, "unreachable", "x z", "x z"),
            (CrashPoint::Torn(1), "ambiguous true", "x y1 z", "x y1 z"),
            (CrashPoint::LostAck, "ambiguous true", "x y1 y2 z", "x y1 y2 z"),
            (CrashPoint::Late, "ambiguous true", "x z", "x z y1 y2"),
        ];
        for (point, answer, before, after) in cases {
            let log = log();
            log.fail_at(point, 2);
            assert_eq!(say(&log, "a", &["x"]), "[0]");
            assert_eq!(say(&log.clone(), "a", &["y1", "y2"]), answer, "{point:?}");
            say(&log, "a", &["z"]);
            assert_eq!(hear(&log, "a"), before, "{point:?}");
            log.land().unwrap();
            assert_eq!(hear(&log, "a"), after, "{point:?}");
        }
    }

    #[test]
    fn a_crash_point_of_a_topic_counts_that_topic_only() {
        let log = log();
        log.fail_topic_at("b", CrashPoint::Before, 2);
        let answers = ["a", "b", "a", "b", "b"].map(|topic| say(&log, topic, &["x"]));
        assert_eq!(answers.join(" "), "[0] [0] [1] unreachable [1]");
    }
}
