//! The protocol of an append.
//!
//! The producer is idempotent, waits for all in-sync copies and is not transactional. librdkafka's own
//! timeout is off, because it drops single records and goes on with the next ones; instead
//! 1. a call puts its records into the producer's queue, in order, waiting while it is full;
//! 2. it waits for all delivery reports, at most `KafkaParams::patience`;
//! 3. then, or when a record fails, it throws the producer with everything in it away, so that
//!    nothing follows a record that failed. Other calls under way fail with it, as ambiguous. The
//!    next append makes a new producer.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders, Timestamp};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};

use super::{BATCH_BYTES_MAX, GOODBYE_MAX, Kafka, base, is_missing, let_go, lock, unsigned};
use crate::log::{Append, LogError, RECORD_BYTES_MAX};

/// How long a full producer queue is left to drain before it is tried again.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);

impl Kafka {
    pub(super) fn producer(&self) -> Result<Arc<ThreadedProducer<Reports>>, LogError> {
        let mut kept = lock(&self.producer);
        if let Some(producer) = &*kept {
            return Ok(Arc::clone(producer));
        }
        let mut config = base(&self.params);
        config.set("acks", "all");
        config.set("enable.idempotence", "true");
        config.set("enable.gapless.guarantee", "true");
        config.set("message.timeout.ms", "0");
        config.set("linger.ms", self.params.linger.as_millis().to_string());
        if !self.params.properties.contains_key("message.max.bytes") {
            config.set("message.max.bytes", BATCH_BYTES_MAX.to_string());
        }
        let reports = Reports { broker_time: Arc::clone(&self.broker_time) };
        let made: Result<ThreadedProducer<Reports>, _> = config.create_with_context(reports);
        let producer = Arc::new(made.map_err(|error| LogError::Refused(error.to_string()))?);
        *kept = Some(Arc::clone(&producer));
        Ok(producer)
    }

    /// Step 3: everything in `producer` fails, and nobody uses it again.
    fn discard(&self, producer: &Arc<ThreadedProducer<Reports>>) {
        let mut kept = lock(&self.producer);
        if kept.as_ref().is_some_and(|it| Arc::ptr_eq(it, producer)) {
            *kept = None;
        }
        drop(kept);
        producer.purge(PurgeConfig::default().queue().inflight());
    }

    pub(super) fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        for record in records {
            let bytes = record.bytes();
            if bytes > RECORD_BYTES_MAX {
                return Err(LogError::TooLarge { partition: record.to.clone(), bytes });
            }
            self.exists(&record.to)?;
        }
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let producer = self.producer()?;
        let answers = Answers { left: 0, offsets: vec![None; records.len()], failed: Vec::new() };
        let call = Arc::new(Call { answers: Mutex::new(answers), done: Condvar::new() });
        // Steps 1 and 2.
        let queued = self.enqueue(&producer, &call, records);
        let waiting = |answers: &mut Answers| answers.left > 0 && answers.failed.is_empty();
        let (answers, waited) = (call.done.wait_timeout_while(lock(&call.answers), self.params.patience, waiting))
            .unwrap_or_else(PoisonError::into_inner);
        if queued.is_ok() && answers.left == 0 && answers.failed.is_empty() {
            return Ok(answers.offsets.iter().copied().flatten().collect());
        }
        drop(answers);
        // Step 3. Purging answers for all records that are left.
        self.discard(&producer);
        let purging = |answers: &mut Answers| answers.left > 0;
        let (answers, _) = (call.done.wait_timeout_while(lock(&call.answers), GOODBYE_MAX, purging))
            .unwrap_or_else(PoisonError::into_inner);
        let answer = failure(records, &answers, queued.err(), waited.timed_out(), self.params.patience);
        drop(answers);
        // The last call that uses it lets it go.
        if let Some(producer) = Arc::into_inner(producer) {
            let_go(move || drop(producer));
        }
        Err(answer)
    }

    /// Step 1. After an error no further record of the call is in the queue.
    fn enqueue(
        &self,
        producer: &ThreadedProducer<Reports>,
        call: &Arc<Call>,
        records: &[Append],
    ) -> Result<(), RDKafkaErrorCode> {
        let mut pauses_left = self.params.patience.as_millis() / QUEUE_FULL_PAUSE.as_millis();
        for (index, record) in records.iter().enumerate() {
            let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
            for (name, value) in &record.headers {
                headers = headers.insert(Header { key: name, value: Some(value.as_ref()) });
            }
            let ticket = Box::new(Ticket { call: Arc::clone(call), index });
            let mut message = BaseRecord::<[u8], [u8], _>::with_opaque_to(&record.to.topic, ticket).headers(headers);
            message.partition = i32::try_from(record.to.partition).ok();
            (message.key, message.payload) = (record.key.as_deref(), record.value.as_deref());
            lock(&call.answers).left += 1;
            while let Err((error, back)) = producer.send(message) {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                if code != RDKafkaErrorCode::QueueFull || pauses_left == 0 {
                    lock(&call.answers).left -= 1;
                    return Err(code);
                }
                pauses_left -= 1;
                producer.poll(QUEUE_FULL_PAUSE);
                message = back;
            }
        }
        Ok(())
    }
}

/// What the records of one append came to.
struct Call {
    answers: Mutex<Answers>,
    done: Condvar,
}

struct Answers {
    left: usize,
    offsets: Vec<Option<u64>>,
    failed: Vec<(usize, RDKafkaErrorCode)>,
}

pub(super) struct Ticket {
    call: Arc<Call>,
    index: usize,
}

pub(super) struct Reports {
    pub(super) broker_time: Arc<AtomicI64>,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka producer");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let mut answers = lock(&ticket.call.answers);
        answers.left -= 1;
        match result {
            Ok(message) => {
                answers.offsets[ticket.index] = Some(unsigned(message.offset()));
                if let Timestamp::LogAppendTime(time) = message.timestamp() {
                    self.broker_time.fetch_max(time, Ordering::Relaxed);
                }
            }
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                answers.failed.push((ticket.index, code));
            }
        }
        if answers.left == 0 || !answers.failed.is_empty() {
            ticket.call.done.notify_all();
        }
    }
}

/// What the call answers that did not get all of its records through.
fn failure(
    records: &[Append],
    answers: &Answers,
    queued: Option<RDKafkaErrorCode>,
    timed_out: bool,
    patience: Duration,
) -> LogError {
    let definite = |code: &RDKafkaErrorCode| {
        matches!(code, RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::TopicAuthorizationFailed)
            || is_missing(*code)
    };
    let none_there = answers.left == 0 && answers.offsets.iter().all(Option::is_none);
    let all_refused = none_there && !timed_out && answers.failed.iter().all(|(_, code)| definite(code));
    let first = answers.failed.iter().min_by_key(|(index, _)| *index).copied();
    match (first, queued) {
        (Some((index, code)), _) if all_refused => refusal(&records[index], code),
        (None, Some(code)) if all_refused => refusal(&records[0], code),
        _ if timed_out => LogError::Ambiguous(format!("no answer within {} ms", patience.as_millis())),
        (Some((_, code)), _) | (None, Some(code)) => LogError::Ambiguous(code.to_string()),
        (None, None) => LogError::Ambiguous("a record without a report".to_owned()),
    }
}

fn refusal(record: &Append, code: RDKafkaErrorCode) -> LogError {
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge => {
            LogError::TooLarge { partition: record.to.clone(), bytes: record.bytes() }
        }
        RDKafkaErrorCode::TopicAuthorizationFailed => LogError::Refused(format!("append to {}: {code}", record.to)),
        code if is_missing(code) => LogError::MissingTopic(record.to.to_string()),
        // A queue that stayed full, or a producer that is done for: nothing went out.
        code => LogError::Unreachable(code.to_string()),
    }
}
