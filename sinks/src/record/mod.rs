//! The record: what every stage says happened, from the log into ClickHouse or into files.
//!
//! # Cast
//! *Stages* append lifecycle blocks ([`tidings_schemas::block`]) to `notifications.lifecycle`. The
//! *writer* ([`writer::RecordWriter`]), a consumer group, gathers the blocks of a partition into a
//! *batch* and gives it to a *store*: [`clickhouse::ClickHouse`], or [`files::Files`] where everything
//! is embedded. A store forwards rows, it doesn't interpret them.
//!
//! # Protocol, for each partition
//! 1. Gather blocks from the committed offset on until there are enough rows, bytes or time.
//! 2. Commit the same offset again with the batch's end as metadata: the batch's range is now fixed,
//!    whoever writes it.
//! 3. Give the batch to the store under the name (partition, range).
//! 4. Commit the end, without metadata.
//!
//! # Invariants
//! - A partition's batches have the same ranges whoever writes them and however often: whoever finds
//!   an announced end reads exactly up to it.
//! - A store does the same when it is given the same batch again: in ClickHouse by the insert's
//!   deduplication token, in files by the file's name.
//!
//! # If it dies at step n
//! After 1 nothing happened. After 2 the next owner makes the same batch. After 3 it gives the store the
//! same batch again, which changes nothing. After 4 the next batch begins.
//!
//! # Not promised
//! That a row is in the record once where its *stage* said it twice (a decider that was restarted, a
//! reader of lanes that met an old entry). Such rows have the same row id: the table keeps the
//! earlier one, and every view counts ids or reads with FINAL.

pub mod clickhouse;
pub mod fates;
pub mod files;
pub mod history;
pub mod index;
pub mod writer;

use std::ops::Range;

use bytes::Bytes;
use tidings_schemas::block::{Block, BlockError, Header, Kind};

use crate::log::TopicPartition;

/// A block whose checksum was right, as it lies in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedBlock {
    /// Its offset.
    pub offset: u64,
    /// What it says of itself.
    pub header: Header,
    /// Tells blocks of one epoch and partition apart.
    pub checksum: u32,
    /// Its rows in RowBinary.
    pub rows: Bytes,
}

impl CheckedBlock {
    /// Checks the record `value` at `offset`.
    ///
    /// # Errors
    /// When it is no whole block.
    pub fn check(offset: u64, value: &Bytes) -> Result<Self, BlockError> {
        let block = Block::decode_header(value)?;
        Ok(Self { offset, header: block.header, checksum: block.checksum, rows: value.slice_ref(block.rows) })
    }

    /// The block with its rows still to be read.
    #[must_use]
    pub fn block(&self) -> Block<'_> {
        Block { header: self.header, rows: &self.rows, checksum: self.checksum }
    }

    /// How many rows it carries.
    #[must_use]
    pub fn row_count(&self) -> u64 {
        match self.header.kind {
            Kind::Rows => self.header.rows,
            Kind::Closed => 0,
        }
    }
}

/// What is written at once: the blocks of one partition in a fixed range of offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBatch {
    /// Where they come from.
    pub partition: TopicPartition,
    /// The offsets that it covers.
    pub range: Range<u64>,
    /// The blocks.
    pub blocks: Vec<CheckedBlock>,
}

impl RecordBatch {
    /// Its name: a batch of the same name is the same batch.
    #[must_use]
    pub fn name(&self) -> String {
        let TopicPartition { topic, partition } = &self.partition;
        format!("{topic}-{partition}-{:020}-{:020}", self.range.start, self.range.end)
    }
}

/// Where batches end up. Calls block.
pub trait RecordStore: Send {
    /// Writes `batch`; returns once it is durable. The same batch again changes nothing.
    ///
    /// # Errors
    /// When it may not have been written; the writer gives it again.
    fn write(&mut self, batch: &RecordBatch) -> Result<(), StoreError>;
}

/// Why a batch was not written, or perhaps was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No answer, or a broken connection: the batch may have been written.
    #[error("the record's store cannot be reached: {0}")]
    Unreachable(String),
    /// The store says no: its disk is full, its schema is another, a row cannot be read.
    #[error("the record's store refused a batch: {0}")]
    Refused(String),
}
