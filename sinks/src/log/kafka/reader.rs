//! Reading one partition.
//!
//! Readers share a consumer, each with a queue of its own (`PartitionEOF` names no topic, so a shared queue could not
//! tell whose end was reached). An end is a fact of one fetch: a position moves over a gap at the end (compacted
//! records, transaction markers) only where an end of partition is seen *after* the watermark was asked.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::Offset;

use super::{Kafka, Quiet, consumer, is_missing, list, lock, native, raw, record_bytes, record_of, unreachable};
use crate::log::{Batch, LogError, READ_BYTES_MAX, Reader, Record, TopicPartition};

impl Kafka {
    /// A shared consumer in which `partition` has no reader yet.
    pub(super) fn shared(&self, partition: &TopicPartition) -> Result<Arc<Shared>, LogError> {
        let mut desks = lock(&self.desks);
        if let Some(free) = desks.iter().find(|desk| lock(&desk.taken).insert(partition.clone())) {
            return Ok(Arc::clone(free));
        }
        // The group's name is needed to assign; nobody joins it and nothing is committed.
        let made = consumer(&self.params, Some("tidings-readers"), true).create_with_context(Quiet);
        let consumer = Arc::new(made.map_err(|error| LogError::Refused(error.to_string()))?);
        let taken = Mutex::new(BTreeSet::from([partition.clone()]));
        let desk = Arc::new(Shared { consumer, taken, down: AtomicBool::new(false) });
        desks.push(Arc::clone(&desk));
        Ok(desk)
    }
}

/// A consumer that readers share.
pub(super) struct Shared {
    consumer: Arc<BaseConsumer<Quiet>>,
    taken: Mutex<BTreeSet<TopicPartition>>,
    /// Whether all brokers were gone when last heard.
    down: AtomicBool,
}

pub(super) struct KafkaReader {
    kafka: Arc<Kafka>,
    shared: Arc<Shared>,
    partition: TopicPartition,
    native: i32,
    queue: Option<PartitionQueue<Quiet>>,
    position: u64,
    /// Asked before an end that is still to come: then the position is at least this.
    end_min: Option<u64>,
    /// Whether the position is the true end's whenever an end is seen: so after one that was
    /// confirmed, as long as records follow without a gap.
    exact: bool,
    /// Waits for the next poll, because this one had records.
    error: Option<LogError>,
}

impl KafkaReader {
    pub(super) fn new(
        kafka: Arc<Kafka>,
        shared: Arc<Shared>,
        partition: TopicPartition,
        from: u64,
    ) -> Result<Self, LogError> {
        let native = native(partition.partition)?;
        // The queue is split off before the partition is assigned: librdkafka then keeps its hands off.
        let queue = shared.consumer.split_partition_queue(&partition.topic, native);
        let start = list([(&partition, raw(from))])?;
        let (position, end_min, exact, error) = (from, None, false, None);
        let reader = Self { kafka, shared, partition, native, queue, position, end_min, exact, error };
        (reader.shared.consumer.incremental_assign(&start)).map_err(|error| LogError::Refused(error.to_string()))?;
        Ok(reader)
    }

    /// What the next message or event of this partition says; nothing within `wait` is `None`.
    fn next(&mut self, wait: Duration) -> Result<Option<News>, LogError> {
        let Some(queue) = &self.queue else { return Err(LogError::MissingTopic(self.partition.to_string())) };
        let news = match queue.poll(wait) {
            None => return Ok(None),
            Some(Ok(message)) => News::Record(record_of(&message)),
            Some(Err(KafkaError::PartitionEOF(_))) => News::End,
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::LogTruncation,
                ) => {
                    return match self.kafka.outside(&self.partition, self.position) {
                        Some(error) => Err(error),
                        None => self.seek().map(|()| None),
                    };
                }
                Some(code) if is_missing(code) => return Err(LogError::MissingTopic(self.partition.to_string())),
                _ => return Err(unreachable(&error)),
            },
        };
        self.shared.down.store(false, Ordering::Relaxed);
        Ok(Some(news))
    }

    /// Reads on from the position.
    fn seek(&self) -> Result<(), LogError> {
        let (topic, to) = (&self.partition.topic, raw(self.position));
        let sought = self.shared.consumer.seek(topic, self.native, to, self.kafka.params.patience);
        sought.map_err(|error| unreachable(&error))
    }

    /// An end was seen; whether it is the position's.
    fn confirm(&mut self) -> Result<bool, LogError> {
        if let Some(end) = self.end_min.take() {
            // Nothing lies between the position and an end seen later.
            self.position = self.position.max(end);
            return Ok(true);
        }
        if self.exact {
            return Ok(true);
        }
        let end = self.kafka.range(&self.partition)?.end;
        if end <= self.position {
            self.exact = true;
            return Ok(true);
        }
        // Records came since, or the end holds none: another end, or a record, will tell.
        (self.shared.consumer)
            .seek(&self.partition.topic, self.native, raw(self.position), self.kafka.params.patience)
            .map_err(|error| unreachable(&error))?;
        self.end_min = Some(end);
        Ok(false)
    }

    /// Serves the shared consumer's own events, and asks a broker where all seemed gone.
    fn reachable(&self) -> Result<(), LogError> {
        while let Some(event) = self.shared.consumer.poll(Duration::ZERO) {
            match event {
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) => {
                    self.shared.down.store(true, Ordering::Relaxed);
                }
                Err(error) => tracing::debug!(%error, "kafka readers"),
                Ok(stray) => {
                    let (topic, partition) = (stray.topic(), stray.partition());
                    return Err(LogError::Store(format!("a record of {topic}/{partition} left its queue")));
                }
            }
        }
        if self.shared.down.load(Ordering::Relaxed) {
            self.kafka.range(&self.partition)?;
            self.shared.down.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}

enum News {
    Record(Record),
    End,
}

impl KafkaReader {
    /// Fills `batch` until it is full, at the end, or `wait` is over.
    fn fill(&mut self, batch: &mut Batch, records_max: usize, mut wait: Duration) -> Result<(), LogError> {
        let mut bytes = 0;
        while batch.records.len() < records_max && bytes < READ_BYTES_MAX && !batch.at_end {
            match self.next(wait)? {
                Some(News::Record(record)) if record.offset < self.position => {}
                Some(News::Record(record)) => {
                    self.exact &= record.offset == self.position;
                    self.end_min = self.end_min.filter(|end| record.offset + 1 < *end);
                    self.position = record.offset + 1;
                    bytes += record_bytes(&record);
                    batch.records.push(record);
                    wait = Duration::ZERO;
                }
                Some(News::End) => batch.at_end = self.confirm()?,
                None => break,
            }
        }
        if batch.records.is_empty() && !batch.at_end { self.reachable() } else { Ok(()) }
    }
}

impl Reader for KafkaReader {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Batch, LogError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let mut batch = Batch::default();
        if let Err(error) = self.fill(&mut batch, records_max, wait) {
            if batch.records.is_empty() {
                return Err(error);
            }
            self.error = Some(error);
        }
        batch.position = self.position;
        Ok(batch)
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.queue = None;
        if let Ok(mine) = list([(&self.partition, Offset::Invalid)])
            && let Err(error) = self.shared.consumer.incremental_unassign(&mine)
        {
            tracing::warn!(partition = %self.partition, %error, "could not let a partition go");
        }
        lock(&self.shared.taken).remove(&self.partition);
    }
}
