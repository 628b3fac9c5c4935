//! A log that stands before another one and differs from it in a few calls: one that dies, is slow, or remembers.

use std::ops::Range;
use std::sync::Arc;

use tidings_schemas::time::Instant;

use super::{Append, Assignment, Commit, GroupReader, Log, LogError, Reader, TopicPartition, TopicSpec};

/// A log before another one: what it does not say itself, it passes on. The errors are [`Log`]'s.
#[expect(clippy::missing_errors_doc, reason = "every call is that of `Log`, where its errors are told")]
pub trait Through: Send + Sync {
    /// What is behind it, unless it cannot be reached from here.
    fn behind(&self) -> Result<&dyn Log, LogError>;

    /// As [`Log::append`].
    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        self.behind()?.append(records)
    }

    /// As [`Log::reader`].
    fn reader(&self, partition: &TopicPartition, from: u64) -> Result<Box<dyn Reader>, LogError> {
        self.behind()?.reader(partition, from)
    }

    /// As [`Log::range`].
    fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError> {
        self.behind()?.range(partition)
    }

    /// As [`Log::join`].
    fn join(
        &self,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Box<dyn GroupReader>, LogError> {
        self.behind()?.join(group, topics, assignment)
    }
}

// Whether a call waits is not passed on: what stands between may wait where the log does not.
impl<T: Through> Log for T {
    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        Through::append(self, records)
    }

    fn reader(&self, partition: &TopicPartition, from: u64) -> Result<Box<dyn Reader>, LogError> {
        Through::reader(self, partition, from)
    }

    fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError> {
        Through::range(self, partition)
    }

    fn describe(&self, names: &[String]) -> Result<Vec<TopicSpec>, LogError> {
        self.behind()?.describe(names)
    }

    fn create(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        self.behind()?.create(topics)
    }

    fn trim(&self, partition: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.behind()?.trim(partition, before)
    }

    fn join(
        &self,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Box<dyn GroupReader>, LogError> {
        Through::join(self, group, topics, assignment)
    }

    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError> {
        self.behind()?.committed(group, partition)
    }

    fn time(&self) -> Result<Instant, LogError> {
        self.behind()?.time()
    }
}
