//! The log on one machine's disk: a directory with a store of fjall, owned by one process.
//!
//! An append returns once its records are synced to the disk; appends that come together share a
//! sync. What was acknowledged survives a kill and a power cut.
//!
//! # Layout
//! Numbers in keys are big endian, so that order of bytes is order of numbers. A *place* is topic
//! number (4 bytes) and partition (4). Values are a version byte and postcard.
//!
//! | keyspace | key | value |
//! |---|---|---|
//! | `topics` | name | number, partitions, retention |
//! | `records` | place, offset (8) | time, key, value, headers |
//! | `ends` | place | oldest offset, least next offset |
//! | `commits` | length of group (2), group, place | offset, metadata |
//! | `newest` | place, record key | offset; compacted topics only |
//! | `superseded` | until (8), place, offset (8) | the record key of a tombstone, else nothing |

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use serde::{Deserialize, Serialize};
use tidings_schemas::time::Instant;

use super::local::{Found, Local, Placed, Store};
use super::{
    Append, Assignment, Clock, Commit, GroupReader, Log, LogError, READ_BYTES_MAX, Reader, Record, Retention,
    TopicPartition, TopicSpec,
};

/// The version of every value's encoding.
const VERSION: u8 = 1;
/// Records given up in one write, so that a large trim holds no more than this in memory.
const TRIM_RECORDS_MAX: usize = 10_000;

/// A log in a directory.
#[derive(Clone)]
pub struct EmbeddedLog {
    local: Arc<Local<Disk>>,
}

impl EmbeddedLog {
    /// Opens the log in `directory`, or makes a new one there. Records are stamped with `clock`.
    ///
    /// # Errors
    /// When another process (or another log of this one) has the directory, or it cannot be read or
    /// written.
    pub fn open(directory: &Path, clock: Clock) -> Result<Self, LogError> {
        Ok(Self { local: Local::open(Disk::open(directory)?, clock)? })
    }
}

impl Log for EmbeddedLog {
    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        self.local.append(records)
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

#[derive(Serialize, Deserialize)]
struct TopicV1 {
    number: u32,
    partitions: u32,
    retention: RetentionV1,
}

#[derive(Serialize, Deserialize)]
enum RetentionV1 {
    ForMillis(u64),
    Forever,
    CompactedMillis(u64),
}

#[derive(Serialize, Deserialize)]
struct RecordV1<'a> {
    timestamp: Instant,
    #[serde(borrow)]
    key: Option<&'a [u8]>,
    #[serde(borrow)]
    value: Option<&'a [u8]>,
    #[serde(borrow)]
    headers: Vec<(&'a str, &'a [u8])>,
}

#[derive(Default, Serialize, Deserialize)]
struct EndsV1 {
    oldest: u64,
    /// Beyond the records that are there: the newest ones may have been given up.
    next_min: u64,
}

#[derive(Serialize, Deserialize)]
struct CommitV1<'a> {
    offset: u64,
    metadata: &'a str,
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, LogError> {
    postcard::to_extend(value, vec![VERSION]).map_err(|error| LogError::Store(format!("cannot encode: {error}")))
}

fn decode<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, LogError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            postcard::from_bytes(body).map_err(|error| LogError::Store(format!("damaged {what}: {error}")))
        }
        Some((version, _)) => Err(LogError::Store(format!("{what} of version {version}, this build reads {VERSION}"))),
        None => Err(LogError::Store(format!("damaged {what}: empty"))),
    }
}

fn store(error: fjall::Error) -> LogError {
    LogError::Store(error.to_string())
}

fn record_of(offset: u64, bytes: &[u8]) -> Result<Record, LogError> {
    let RecordV1 { timestamp, key, value, headers } = decode("record", bytes)?;
    let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), Bytes::copy_from_slice(value))).collect();
    let (key, value) = (key.map(Bytes::copy_from_slice), value.map(Bytes::copy_from_slice));
    Ok(Record { offset, key, value, headers, timestamp })
}

/// A place: topic number and partition.
type Place = [u8; 8];

fn at(place: Place, offset: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&place);
    key[8..].copy_from_slice(&offset.to_be_bytes());
    key
}

fn number(bytes: &[u8]) -> Result<u64, LogError> {
    let bytes = bytes.try_into().map_err(|_| LogError::Store("damaged key".to_owned()))?;
    Ok(u64::from_be_bytes(bytes))
}

/// Time as an unsigned number in the same order.
fn until(instant: Instant) -> [u8; 8] {
    (instant.0.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

struct Disk {
    directory: PathBuf,
    db: Database,
    topics: Keyspace,
    records: Keyspace,
    ends: Keyspace,
    commits: Keyspace,
    newest: Keyspace,
    superseded: Keyspace,
    numbers: Mutex<BTreeMap<String, u32>>,
}

impl Disk {
    fn open(directory: &Path) -> Result<Self, LogError> {
        let named = |error: fjall::Error| {
            let directory = directory.display();
            match error {
                fjall::Error::Locked => LogError::Store(format!(
                    "directory `{directory}` belongs to another running process; stop it, or choose another directory"
                )),
                error => LogError::Store(format!("cannot open directory `{directory}`: {error}")),
            }
        };
        let db = Database::builder(directory).open().map_err(named)?;
        let keyspace = |name| db.keyspace(name, KeyspaceCreateOptions::default).map_err(named);
        let (topics, records, ends) = (keyspace("topics")?, keyspace("records")?, keyspace("ends")?);
        let (commits, newest, superseded) = (keyspace("commits")?, keyspace("newest")?, keyspace("superseded")?);
        let (directory, numbers) = (directory.to_owned(), Mutex::default());
        Ok(Self { directory, db, topics, records, ends, commits, newest, superseded, numbers })
    }

    fn numbers(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, partition: &TopicPartition) -> Result<Place, LogError> {
        let number = self.numbers().get(&*partition.topic).copied();
        let number = number.ok_or_else(|| LogError::MissingTopic(partition.to_string()))?;
        Ok(place(number, partition.partition))
    }

    fn ends(&self, place: Place) -> Result<EndsV1, LogError> {
        match self.ends.get(place).map_err(store)? {
            Some(bytes) => decode("ends of a partition", &bytes),
            None => Ok(EndsV1::default()),
        }
    }

    /// What is there of a partition.
    fn found(&self, place: Place) -> Result<Range<u64>, LogError> {
        let EndsV1 { oldest, next_min } = self.ends(place)?;
        let behind_last = match self.records.prefix(place).next_back() {
            Some(last) => number(&last.key().map_err(store)?[8..])? + 1,
            None => 0,
        };
        Ok(oldest..behind_last.max(next_min).max(oldest))
    }

    /// Remembers which record of a compacted topic the new one supersedes.
    fn supersede<'a>(
        &self,
        batch: &mut OwnedWriteBatch,
        written: &mut HashMap<(Place, &'a [u8]), u64>,
        place: Place,
        placed: &Placed<'a>,
        until_then: Instant,
    ) -> Result<(), LogError> {
        let Some(key) = &placed.append.key else { return Ok(()) };
        let name = [place.as_slice(), key].concat();
        let older = match written.insert((place, key), placed.offset) {
            Some(older) => Some(older),
            None => self.newest.get(&name).map_err(store)?.map(|bytes| number(&bytes)).transpose()?,
        };
        let gone = |offset: u64| [until(until_then).as_slice(), &at(place, offset)].concat();
        if let Some(older) = older {
            batch.insert(&self.superseded, gone(older), Vec::new());
        }
        if placed.append.value.is_none() {
            batch.insert(&self.superseded, gone(placed.offset), key.to_vec());
        }
        batch.insert(&self.newest, name, placed.offset.to_be_bytes().to_vec());
        Ok(())
    }
}

fn place(number: u32, partition: u32) -> Place {
    let mut place = [0; 8];
    place[..4].copy_from_slice(&number.to_be_bytes());
    place[4..].copy_from_slice(&partition.to_be_bytes());
    place
}

fn commit_key(group: &str, place: Place) -> Result<Vec<u8>, LogError> {
    let length = u16::try_from(group.len());
    let length = length.map_err(|_| LogError::Refused(format!("a group's name of {} bytes", group.len())))?;
    Ok([length.to_be_bytes().as_slice(), group.as_bytes(), &place].concat())
}

impl Store for Disk {
    fn topics(&self) -> Result<Vec<Found>, LogError> {
        let mut topics = Vec::new();
        for entry in self.topics.iter() {
            let (name, bytes) = entry.into_inner().map_err(store)?;
            let name = String::from_utf8_lossy(&name).into_owned();
            let TopicV1 { number, partitions, retention } = decode("topic", &bytes)?;
            let retention = match retention {
                RetentionV1::ForMillis(span) => Retention::For(Duration::from_millis(span)),
                RetentionV1::Forever => Retention::Forever,
                RetentionV1::CompactedMillis(lag) => Retention::Compacted(Duration::from_millis(lag)),
            };
            let ranges =
                (0..partitions).map(|partition| self.found(place(number, partition))).collect::<Result<_, _>>()?;
            self.numbers().insert(name.clone(), number);
            let spec = TopicSpec::one_copy(name, partitions, retention);
            topics.push(Found { spec, ranges });
        }
        Ok(topics)
    }

    fn write_topics(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        let mut batch = self.db.batch();
        let mut numbers = self.numbers();
        for spec in topics {
            let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            let retention = match spec.retention {
                Retention::For(span) => RetentionV1::ForMillis(millis(span)),
                Retention::Forever => RetentionV1::Forever,
                Retention::Compacted(lag) => RetentionV1::CompactedMillis(millis(lag)),
            };
            let number = numbers.values().max().map_or(0, |number| number + 1);
            numbers.insert(spec.name.clone(), number);
            let topic = TopicV1 { number, partitions: spec.partitions, retention };
            batch.insert(&self.topics, spec.name.as_bytes(), encode(&topic)?);
        }
        batch.commit().map_err(store)
    }

    fn write(&self, records: &[Placed<'_>]) -> Result<(), LogError> {
        let mut batch = self.db.batch();
        let mut written = HashMap::new();
        for placed in records {
            let Append { to, key, value, headers } = placed.append;
            let place = self.place(to)?;
            let record = RecordV1 {
                timestamp: placed.timestamp,
                key: key.as_deref(),
                value: value.as_deref(),
                headers: headers.iter().map(|(name, value)| (name.as_str(), value.as_ref())).collect(),
            };
            batch.insert(&self.records, at(place, placed.offset), encode(&record)?);
            if let Some(until) = placed.superseded_until {
                self.supersede(&mut batch, &mut written, place, placed, until)?;
            }
        }
        batch.commit().map_err(store)
    }

    fn write_commits(&self, group: &str, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError> {
        let mut batch = self.db.batch();
        for (partition, Commit { offset, metadata }) in commits {
            let commit = CommitV1 { offset: *offset, metadata };
            batch.insert(&self.commits, commit_key(group, self.place(partition)?)?, encode(&commit)?);
        }
        batch.commit().map_err(store)
    }

    fn sync(&self) -> Result<(), LogError> {
        let directory = self.directory.display();
        (self.db.persist(PersistMode::SyncAll))
            .map_err(|error| LogError::Store(format!("cannot sync directory `{directory}`: {error}")))
    }

    fn read(
        &self,
        partition: &TopicPartition,
        range: Range<u64>,
        records_max: usize,
    ) -> Result<(Vec<Record>, u64), LogError> {
        let place = self.place(partition)?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        for entry in self.records.range(at(place, range.start)..at(place, range.end)) {
            let (key, value) = entry.into_inner().map_err(store)?;
            let offset = number(&key[8..])?;
            if records.len() >= records_max || bytes >= READ_BYTES_MAX {
                return Ok((records, offset));
            }
            bytes += value.len();
            records.push(record_of(offset, &value)?);
        }
        Ok((records, range.end))
    }

    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError> {
        let found = self.commits.get(commit_key(group, self.place(partition)?)?).map_err(store)?;
        let Some(bytes) = found else { return Ok(None) };
        let CommitV1 { offset, metadata } = decode("commit", &bytes)?;
        Ok(Some(Commit { offset, metadata: metadata.to_owned() }))
    }

    fn trim(&self, partition: &TopicPartition, range: Range<u64>) -> Result<(), LogError> {
        let place = self.place(partition)?;
        let mut from = range.start;
        while from < range.end {
            let mut batch = self.db.batch();
            let mut entries = self.records.range(at(place, from)..at(place, range.end));
            for entry in entries.by_ref().take(TRIM_RECORDS_MAX) {
                let key = entry.key().map_err(store)?;
                from = number(&key[8..])? + 1;
                batch.remove(&self.records, key);
            }
            if entries.next().is_none() {
                from = range.end;
            }
            let EndsV1 { next_min, .. } = self.ends(place)?;
            batch.insert(&self.ends, place, encode(&EndsV1 { oldest: from, next_min })?);
            batch.commit().map_err(store)?;
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
        let place = self.place(partition)?;
        let entries = self.records.range(at(place, range.start)..at(place, range.end));
        for (seen, entry) in entries.enumerate() {
            let (key, value) = entry.into_inner().map_err(store)?;
            let RecordV1 { timestamp, .. } = decode("record", &value)?;
            if timestamp >= instant || seen >= records_max {
                return Ok((number(&key[8..])?, Some(timestamp)));
            }
        }
        Ok((range.end, None))
    }

    fn compact(&self, now: Instant, records_max: usize) -> Result<bool, LogError> {
        let mut batch = self.db.batch();
        // The key's last byte is an offset's: a time behind `now` has a greater prefix.
        let due = self.superseded.range(..until(now.after(Duration::from_millis(1))));
        let mut next_min: BTreeMap<Place, u64> = BTreeMap::new();
        let mut seen = 0;
        for entry in due.take(records_max) {
            seen += 1;
            let (key, record_key) = entry.into_inner().map_err(store)?;
            let bad = || LogError::Store("damaged key of a superseded record".to_owned());
            let place: Place = key.get(8..16).and_then(|place| place.try_into().ok()).ok_or_else(bad)?;
            let offset = number(key.get(16..).ok_or_else(bad)?)?;
            batch.remove(&self.records, at(place, offset));
            if !record_key.is_empty() {
                let name = [place.as_slice(), &record_key].concat();
                if self.newest.get(&name).map_err(store)?.as_deref() == Some(offset.to_be_bytes().as_slice()) {
                    batch.remove(&self.newest, name);
                }
                let least = next_min.entry(place).or_default();
                *least = (*least).max(offset + 1);
            }
            batch.remove(&self.superseded, key);
        }
        for (place, least) in next_min {
            let EndsV1 { oldest, next_min } = self.ends(place)?;
            batch.insert(&self.ends, place, encode(&EndsV1 { oldest, next_min: next_min.max(least) })?);
        }
        batch.commit().map_err(store)?;
        Ok(seen == records_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_bytes() {
        let record = RecordV1 {
            timestamp: Instant(-2),
            key: Some(b"u1"),
            value: None,
            headers: vec![("g", b"\x07".as_slice()), ("due", b"".as_slice())],
        };
        let topic = TopicV1 { number: 3, partitions: 24, retention: RetentionV1::CompactedMillis(1_000) };
        let cases = [
            (encode(&record), vec![1, 3, 1, 2, b'u', b'1', 0, 2, 1, b'g', 1, 7, 3, b'd', b'u', b'e', 0]),
            (encode(&topic), vec![1, 3, 24, 2, 0xe8, 7]),
            (encode(&EndsV1 { oldest: 5, next_min: 300 }), vec![1, 5, 0xac, 2]),
            (encode(&CommitV1 { offset: 9, metadata: "m" }), vec![1, 9, 1, b'm']),
            (commit_key("g", place(1, 2)), vec![0, 1, b'g', 0, 0, 0, 1, 0, 0, 0, 2]),
        ];
        for (bytes, golden) in cases {
            assert_eq!(bytes.unwrap(), golden);
        }
    }

    #[test]
    fn order_of_times_is_order_of_bytes() {
        let times = [i64::MIN, -1, 0, 1, i64::MAX].map(|millis| until(Instant(millis)));
        assert!(times.is_sorted());
    }

    #[test]
    fn a_value_of_another_version_is_refused() {
        let error = decode::<EndsV1>("ends of a partition", &[2, 0, 0]).err().unwrap();
        assert_eq!(error.to_string(), "the log's store failed: ends of a partition of version 2, this build reads 1");
    }
}
