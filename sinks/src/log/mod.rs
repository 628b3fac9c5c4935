//! The log: what every stage reads from and says things into.
//!
//! # Cast
//! A *topic* has partitions; a partition is a sequence of records with growing offsets. Offsets may
//! have gaps (compaction, transaction markers, trimming), so nobody waits to *see* an offset: a
//! reader's *position* says how far it has come. A *group* shares the partitions of its topics among
//! its members and remembers a committed offset and a word of metadata for each.
//!
//! # Invariants
//! - [`Log::append`] returns when every record is as durable as the log promises, records of one call
//!   and one partition keep their order, and nothing of the call follows a record that failed.
//! - An error that [`LogError::is_ambiguous`] says that the records may or may not be there. Whoever
//!   must know reads the log.
//! - A read below the oldest offset is an error ([`LogError::OutOfRange`]), never a silent reset.
//!
//! Calls block; the async side reaches them from threads of its own.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_schemas::time::Instant;

pub mod embedded;
mod groups;
pub mod kafka;
mod local;
pub mod memory;
pub mod through;

/// What time it is: the logs on one machine stamp their records with it.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Time since an arbitrary start. Other than what a [`Clock`] shows it never steps: what happens every so often, or
/// so long after something else, is measured by it. A wall clock that is set back by two hours would hold it up for
/// two hours.
pub type Elapsed = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Most bytes of one record, key, value and headers together. A block of an epoch's rows is the
/// largest thing that is appended, and its writer splits at a quarter of this; beyond it an append
/// is [`LogError::TooLarge`].
pub const RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes after which a poll returns what it has, so that memory stays bounded whatever
/// `records_max` says: a poll holds at most this and one more record.
const READ_BYTES_MAX: usize = RECORD_BYTES_MAX;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// Names and values beside a record.
pub type Headers = Vec<(String, Bytes)>;

/// A record to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// Where to.
    pub to: TopicPartition,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; absent is a tombstone.
    pub value: Option<Bytes>,
    /// Names and values beside it.
    pub headers: Headers,
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: u64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; absent is a tombstone.
    pub value: Option<Bytes>,
    /// Names and values beside it.
    pub headers: Headers,
    /// When the producer or the log says it was written.
    pub timestamp: Instant,
}

impl Record {
    /// The value of the header `name`, the last one where there are several.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

impl Append {
    /// Key, value and headers, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        bytes_of(self.key.as_ref(), self.value.as_ref(), &self.headers)
    }
}

fn bytes_of(key: Option<&Bytes>, value: Option<&Bytes>, headers: &Headers) -> usize {
    let headers: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    key.map_or(0, Bytes::len) + value.map_or(0, Bytes::len) + headers
}

/// What one poll of a [`Reader`] brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The records, in offset order.
    pub records: Vec<Record>,
    /// Every record below this offset was delivered (or does not exist). Grows even where the last
    /// offsets hold no record.
    pub position: u64,
    /// Whether the position was the partition's end when the poll returned.
    pub at_end: bool,
}

/// Reads one partition from an offset on.
pub trait Reader: Send {
    /// Up to `records_max` further records; waits at most `wait` for the first. A poll that learns
    /// that the position has become the end says so at once, with or without records; the next
    /// one waits.
    ///
    /// # Errors
    /// When the log cannot be reached, or the position is out of range.
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Batch, LogError>;
}

/// A committed position of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The next offset to read.
    pub offset: u64,
    /// A word of our own: the highest mark seen, the end of a batch under way.
    pub metadata: String,
}

/// Hears of partitions that come and go. Called from within [`GroupReader::poll`].
pub trait Assignment: Send + Sync {
    /// These partitions are now ours, each with what the group last committed for it.
    fn assigned(&self, partitions: &[(TopicPartition, Option<Commit>)]);
    /// These are about to be someone else's: settle what is in flight and commit before returning.
    /// Returns what to commit.
    fn revoked(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, Commit)>;
}

/// A member of a consumer group. Dropping it leaves the group: its partitions are revoked first,
/// and what [`Assignment::revoked`] returns is committed.
///
/// After [`LogError::Fenced`] it is no member any more: its partitions were revoked, nothing of them
/// could be committed, and whoever wants to go on drops it and joins again.
pub trait GroupReader: Send {
    /// Up to `records_max` further records of any assigned partition that is not paused; waits at
    /// most `wait`.
    ///
    /// # Errors
    /// When the log cannot be reached, a position is out of range, or the member is no longer in
    /// the group.
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, LogError>;

    /// Stops fetching these partitions, and no others.
    ///
    /// # Errors
    /// When a partition is not assigned.
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError>;

    /// Fetches these partitions again, from where they stopped.
    ///
    /// # Errors
    /// When a partition is not assigned.
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError>;

    /// Commits positions; returns when the log has them.
    ///
    /// # Errors
    /// When the log cannot be reached or the member is no longer in the group.
    fn commit(&mut self, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError>;
}

/// How a topic is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// For this long.
    For(Duration),
    /// For ever (or until it is trimmed).
    Forever,
    /// The newest record of each key; superseded ones and tombstones stay at least this long.
    Compacted(Duration),
}

impl Retention {
    /// What goes wrong where a topic is kept less well, and Kafka's settings for it.
    const fn why(self) -> &'static str {
        match self {
            Self::For(_) => {
                "after a longer outage nobody could read on; set cleanup.policy to delete and raise retention.ms"
            }
            Self::Forever => "it is the only source of truth; set cleanup.policy to delete and retention.ms to -1",
            Self::Compacted(_) => {
                "a replay must meet the records that were read; set cleanup.policy to compact and raise \
                 min.compaction.lag.ms and delete.retention.ms"
            }
        }
    }
}

impl std::fmt::Display for Retention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::For(span) => write!(f, "for {} s", span.as_secs()),
            Self::Forever => f.write_str("for ever"),
            Self::Compacted(lag) => write!(f, "compacted after {} s", lag.as_secs()),
        }
    }
}

/// A topic as it should be, or as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: u32,
    /// How it is kept.
    pub retention: Retention,
    /// Copies of each partition; a log on one machine has one.
    pub replication: u16,
    /// Copies that must have a record before it counts as appended.
    pub min_insync: u16,
}

impl TopicSpec {
    /// A topic of which there is one copy, as on one machine.
    pub fn one_copy(name: impl Into<String>, partitions: u32, retention: Retention) -> Self {
        Self { name: name.into(), partitions, retention, replication: 1, min_insync: 1 }
    }
}

/// A durable log.
pub trait Log: Send + Sync {
    /// Whether a call may wait: for a disk, a network, the first record of a poll. One that never does is
    /// called in place by the async side, which then makes the pauses itself.
    fn waits(&self) -> bool {
        true
    }

    /// Appends records, in order, and returns their offsets once all are durable.
    ///
    /// # Errors
    /// When a record could not be appended; see [`LogError::is_ambiguous`].
    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError>;

    /// A reader of `partition` that starts at `from`.
    ///
    /// # Errors
    /// When the topic is missing or the log cannot be reached.
    fn reader(&self, partition: &TopicPartition, from: u64) -> Result<Box<dyn Reader>, LogError>;

    /// Oldest offset that can be read and the offset that the next record will get.
    ///
    /// # Errors
    /// When the topic is missing or the log cannot be reached.
    fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError>;

    /// The topics that exist among `names`, as they are.
    ///
    /// # Errors
    /// When the log cannot be reached.
    fn describe(&self, names: &[String]) -> Result<Vec<TopicSpec>, LogError>;

    /// Creates the topics that do not exist yet; an existing one stays as it is.
    ///
    /// # Errors
    /// When a topic could not be created.
    fn create(&self, topics: &[TopicSpec]) -> Result<(), LogError>;

    /// In what the log is weaker than `wanted`, in words for whoever has to mend it; nothing where it
    /// is as good or better. A missing topic is a weakness.
    ///
    /// # Errors
    /// When the log cannot be reached.
    fn weaknesses(&self, wanted: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
        Ok(all_weaknesses(&self.describe(&names)?, wanted))
    }

    /// Gives up the records of `partition` below `before`.
    ///
    /// # Errors
    /// When the log cannot be reached.
    fn trim(&self, partition: &TopicPartition, before: u64) -> Result<(), LogError>;

    /// Joins `group` to read `topics`; `assignment` hears of partitions that come and go.
    ///
    /// # Errors
    /// When a topic is missing or the log cannot be reached.
    fn join(
        &self,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Box<dyn GroupReader>, LogError>;

    /// What `group` last committed for `partition`.
    ///
    /// # Errors
    /// When the log cannot be reached.
    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError>;

    /// The log's own time, where it has one: what a stepped wall clock must agree with. It may stand
    /// still until the next append.
    ///
    /// # Errors
    /// When the log cannot be reached.
    fn time(&self) -> Result<Instant, LogError>;
}

/// Makes a call to a log, on a thread of its own where it may wait.
pub(crate) async fn aside<R: Send + 'static>(
    waits: bool,
    call: impl FnOnce() -> R + Send + 'static,
) -> Result<R, tokio::task::JoinError> {
    if waits { tokio::task::spawn_blocking(call).await } else { Ok(call()) }
}

/// In what `have` is weaker than `want`, in words; nothing where it is as good or better.
#[must_use]
pub fn weaknesses(have: &TopicSpec, want: &TopicSpec) -> Vec<String> {
    let mut found = Vec::new();
    let name = &want.name;
    if have.partitions != want.partitions {
        found.push(format!(
            "topic `{name}` has {} partitions, expected {}; records are placed by their count",
            have.partitions, want.partitions
        ));
    }
    let weaker = match (have.retention, want.retention) {
        (Retention::Compacted(have), Retention::Compacted(want)) => have < want,
        (Retention::Forever, Retention::For(_) | Retention::Forever) => false,
        (Retention::For(have), Retention::For(want)) => have < want,
        (_, Retention::Compacted(_)) | (Retention::For(_) | Retention::Compacted(_), _) => true,
    };
    if weaker {
        let (have, want, why) = (have.retention, want.retention, want.retention.why());
        found.push(format!("topic `{name}` is kept {have}, expected {want}; {why}"));
    }
    if have.replication < want.replication {
        let (have, want) = (have.replication, want.replication);
        found.push(format!("topic `{name}` has replication factor {have}, expected {want}"));
    }
    if have.min_insync < want.min_insync {
        let (have, want) = (have.min_insync, want.min_insync);
        found.push(format!("topic `{name}` acknowledges with {have} copies (min.insync.replicas), expected {want}"));
    }
    found
}

fn all_weaknesses(have: &[TopicSpec], wanted: &[TopicSpec]) -> Vec<String> {
    let of = |want: &TopicSpec| match have.iter().find(|have| have.name == want.name) {
        Some(have) => weaknesses(have, want),
        None => vec![LogError::MissingTopic(want.name.clone()).to_string()],
    };
    wanted.iter().flat_map(of).collect()
}

/// Why the log did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// It cannot be reached, or refuses for a while. Nothing was appended.
    #[error("the log cannot be reached: {0}")]
    Unreachable(String),
    /// The append may or may not have happened.
    #[error("the log did not answer in time: {0}; the records may or may not be there")]
    Ambiguous(String),
    /// There is no such topic or partition.
    #[error("topic `{0}` does not exist; create it with `tidings topics create`")]
    MissingTopic(String),
    /// The offset is older than the oldest kept, or beyond the end.
    #[error(
        "offset {offset} of {partition} is out of range {oldest}..{end}: records were given up before they were read"
    )]
    OutOfRange {
        /// The partition.
        partition: TopicPartition,
        /// Where the reader stood.
        offset: u64,
        /// The oldest offset that can be read.
        oldest: u64,
        /// The end.
        end: u64,
    },
    /// The record is larger than the log takes.
    #[error("a record for {partition} has {bytes} bytes, more than the log takes")]
    TooLarge {
        /// The partition.
        partition: TopicPartition,
        /// Key, value and headers.
        bytes: usize,
    },
    /// The store below is full or damaged.
    #[error("the log's store failed: {0}")]
    Store(String),
    /// The group gave the partition to someone else.
    #[error("no longer a member of group `{0}`")]
    Fenced(String),
    /// A setting or a call that the log does not accept.
    #[error("the log refused: {0}")]
    Refused(String),
}

impl LogError {
    /// Whether what was asked for may have happened all the same.
    #[must_use]
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Ambiguous(_))
    }

    /// Whether the same call may succeed later without anyone doing anything.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Ambiguous(_))
    }
}
