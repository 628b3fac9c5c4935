//! Reading as a member of a group, and what groups committed.
//!
//! Members are consumers of their own. They use `cooperative-sticky`: a member that joins takes partitions from others,
//! and those that stay where they are never stop. Partitions come and go between polls, not within librdkafka's
//! callback: an error there could be told to nobody.
//!
//! A member that has a name ([`Instance`](super::Instance)) and dies is followed at once by the one that comes back under it; who leaves
//! of its own accord says so, because otherwise its partitions would wait for it. librdkafka lets a static member leave
//! only where it unsubscribes, and tells nobody when that is done: the group is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::instance::Seat;
use super::{
    Kafka, MOVE_PAUSE, Quiet, consumer, is_missing, let_go, list, lock, partitions_of, raw, record_bytes, record_of,
    unreachable, unsigned,
};
use crate::log::{Assignment, Commit, GroupReader, LogError, READ_BYTES_MAX, Record, TopicPartition};

/// How often a group is asked whether it knows that a member has left, and how long it is waited in between: for some
/// two seconds in all, a fraction of the session that its partitions would wait for otherwise.
const LEAVE_ASKS_MAX: u32 = 40;
/// The pause between two such asks.
const LEAVE_PAUSE: Duration = Duration::from_millis(50);
/// How long one answer may take: where brokers are away, nobody waits for them here.
const LEAVE_ANSWER_MAX: Duration = Duration::from_secs(1);

impl Kafka {
    pub(super) fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError> {
        self.exists(partition)?;
        let consumer = {
            let mut groups = lock(&self.groups);
            match groups.get(group) {
                Some(consumer) => Arc::clone(consumer),
                None => {
                    let made = consumer(&self.params, Some(group), false).create_with_context(Quiet);
                    let made = Arc::new(made.map_err(|error| LogError::Refused(error.to_string()))?);
                    groups.insert(group.to_owned(), Arc::clone(&made));
                    made
                }
            }
        };
        let mut commits = self.commits(&consumer, std::slice::from_ref(partition))?;
        Ok(commits.pop().and_then(|(_, commit)| commit))
    }

    /// What the consumer's group committed for `partitions`. The group's coordinator may be on the
    /// move, or still loading: it is asked again.
    pub(super) fn commits<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        partitions: &[TopicPartition],
    ) -> Result<Vec<(TopicPartition, Option<Commit>)>, LogError> {
        let mut pauses_left = self.params.patience.as_millis() / MOVE_PAUSE.as_millis();
        loop {
            let asked = list(partitions.iter().map(|partition| (partition, Offset::Invalid)))?;
            match consumer.committed_offsets(asked, self.params.patience) {
                Ok(found) => return commits_of(&found),
                Err(error) if pauses_left == 0 || !is_moving(error.rdkafka_error_code()) => {
                    return Err(unreachable(&error));
                }
                Err(_) => {}
            }
            pauses_left -= 1;
            std::thread::sleep(MOVE_PAUSE);
        }
    }
}

/// What the group wants of a member.
enum Change {
    Take(Vec<TopicPartition>),
    Give { partitions: Vec<TopicPartition>, lost: bool },
}

#[derive(Default)]
struct Changes {
    waiting: Mutex<Vec<Change>>,
    leaving: AtomicBool,
}

#[derive(Clone, Default)]
struct MemberContext {
    changes: Arc<Changes>,
}

impl ClientContext for MemberContext {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka group member");
    }
}

impl ConsumerContext for MemberContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = partitions_of(list);
        let leaving = self.changes.leaving.load(Ordering::Relaxed);
        let done = match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS if !leaving => {
                lock(&self.changes.waiting).push(Change::Take(partitions));
                Ok(())
            }
            _ if !leaving => {
                lock(&self.changes.waiting).push(Change::Give { partitions, lost: consumer.assignment_lost() });
                Ok(())
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => take_nothing(consumer),
            _ => give_back(consumer, &partitions),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "could not answer the group while leaving it");
        }
    }
}

/// The answer of a member that leaves to partitions that come.
fn take_nothing(consumer: &BaseConsumer<MemberContext>) -> Result<(), KafkaError> {
    consumer.incremental_assign(&TopicPartitionList::new())
}

/// Lets go what it has of these: the group may name partitions that were never taken, and librdkafka refuses to give
/// back what it does not have.
fn give_back(consumer: &BaseConsumer<MemberContext>, partitions: &[TopicPartition]) -> Result<(), KafkaError> {
    let mut mine = consumer.assignment()?;
    let had: BTreeSet<TopicPartition> = partitions_of(&mine).into_iter().collect();
    if !had.iter().all(|partition| partitions.contains(partition)) {
        mine = TopicPartitionList::new();
        for partition in partitions.iter().filter(|partition| had.contains(partition)) {
            mine.add_partition(&partition.topic, i32::try_from(partition.partition).unwrap_or(0));
        }
    }
    consumer.incremental_unassign(&mine)
}

pub(super) struct KafkaMember {
    kafka: Arc<Kafka>,
    consumer: Option<BaseConsumer<MemberContext>>,
    changes: Arc<Changes>,
    group: String,
    assignment: Arc<dyn Assignment>,
    /// What it owns, and the next offset of each.
    positions: BTreeMap<TopicPartition, u64>,
    /// Its name in the group, where it has one.
    seat: Option<Seat>,
    /// Waits for the next poll, because this one had records.
    error: Option<LogError>,
    fenced: bool,
}

impl KafkaMember {
    pub(super) fn join(
        kafka: Arc<Kafka>,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Self, LogError> {
        for topic in topics {
            kafka.partitions(topic, 1)?;
        }
        let context = MemberContext::default();
        let changes = Arc::clone(&context.changes);
        let seat = kafka.params.instance.as_ref().and_then(|instance| instance.seat(group));
        let mut config = consumer(&kafka.params, Some(group), false);
        if let Some(seat) = &seat {
            config.set("group.instance.id", seat.name()).set("client.id", seat.name());
        }
        let made = config.create_with_context(context);
        let consumer: BaseConsumer<MemberContext> = made.map_err(|error| LogError::Refused(error.to_string()))?;
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&names).map_err(|error| LogError::Refused(error.to_string()))?;
        let (group, positions) = (group.to_owned(), BTreeMap::new());
        let (consumer, error, fenced) = (Some(consumer), None, false);
        Ok(Self { kafka, consumer, changes, group, assignment, positions, seat, error, fenced })
    }

    fn consumer(&self) -> Result<&BaseConsumer<MemberContext>, LogError> {
        match &self.consumer {
            Some(consumer) if !self.fenced => Ok(consumer),
            _ => Err(LogError::Fenced(self.group.clone())),
        }
    }

    /// Takes and gives what the group wants, in its order. What fails is tried again by the next poll.
    fn settle(&mut self) -> Result<(), LogError> {
        loop {
            let change = {
                let mut waiting = lock(&self.changes.waiting);
                if waiting.is_empty() {
                    return Ok(());
                }
                waiting.remove(0)
            };
            match change {
                Change::Take(partitions) => {
                    if let Err(error) = self.take(&partitions) {
                        lock(&self.changes.waiting).insert(0, Change::Take(partitions));
                        return Err(error);
                    }
                }
                Change::Give { partitions, lost: false } => self.give(&partitions)?,
                Change::Give { lost: true, .. } => {
                    self.lose();
                    return Err(LogError::Fenced(self.group.clone()));
                }
            }
        }
    }

    fn take(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let consumer = self.consumer()?;
        if partitions.is_empty() {
            return consumer.incremental_assign(&TopicPartitionList::new()).map_err(|error| unreachable(&error));
        }
        let commits = self.kafka.commits(consumer, partitions)?;
        let mut positions = Vec::new();
        for (partition, commit) in &commits {
            let from = match commit {
                Some(commit) => commit.offset,
                None => self.kafka.range(partition)?.start,
            };
            positions.push((partition.clone(), from));
        }
        let starts = list(positions.iter().map(|(partition, from)| (partition, raw(*from))))?;
        consumer.incremental_assign(&starts).map_err(|error| unreachable(&error))?;
        self.positions.extend(positions);
        self.assignment.assigned(&commits);
        Ok(())
    }

    /// A commit that fails here costs repeats, not records: the partitions go either way.
    fn give(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let owned: Vec<_> = partitions.iter().filter(|it| self.positions.contains_key(*it)).cloned().collect();
        let commits = if owned.is_empty() { Vec::new() } else { self.assignment.revoked(&owned) };
        let committed = self.commit(&commits);
        for partition in &owned {
            self.positions.remove(partition);
        }
        let gone = list(partitions.iter().map(|partition| (partition, Offset::Invalid)))?;
        self.consumer()?.incremental_unassign(&gone).map_err(|error| unreachable(&error))?;
        committed
    }

    /// The group gave everything away: nothing can be committed any more.
    fn lose(&mut self) {
        self.fenced = true;
        let lost: Vec<_> = std::mem::take(&mut self.positions).into_keys().collect();
        if !lost.is_empty() {
            self.assignment.revoked(&lost);
        }
    }

    /// Whether this consumer can do nothing any more, whatever is asked of it: then it must be joined again. librdkafka
    /// says so once, in a poll, and every other call only fails from then on: whoever tried those again would do so
    /// for ever.
    fn fatal(&self) -> Option<LogError> {
        let (code, reason) = self.consumer.as_ref()?.client().fatal_error()?;
        tracing::warn!(group = self.group, ?code, reason, "this member of the group is none any more");
        if let Some(seat) = self.seat.as_ref().filter(|_| code == RDKafkaErrorCode::FencedInstanceId) {
            seat.refuse();
        }
        Some(LogError::Fenced(self.group.clone()))
    }

    /// What an error that librdkafka handed out means; `None` where it goes on by itself.
    fn error_of(&mut self, error: &KafkaError) -> Option<LogError> {
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation,
            ) => {
                // It does not say whose offset: the one that lies outside of its partition's range, if one does.
                let outside = self.positions.iter().find_map(|(partition, at)| self.kafka.outside(partition, *at));
                outside.or_else(|| self.seek(self.positions.keys()).err())
            }
            Some(RDKafkaErrorCode::PollExceeded | RDKafkaErrorCode::FencedInstanceId | RDKafkaErrorCode::Fatal) => {
                let fenced = self.fatal().unwrap_or_else(|| LogError::Fenced(self.group.clone()));
                self.lose();
                Some(fenced)
            }
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::NodeUpdate,
            ) => {
                tracing::debug!(%error, group = self.group, "a broker went away");
                None
            }
            Some(code) if is_missing(code) => Some(LogError::MissingTopic(error.to_string())),
            _ => Some(unreachable(error)),
        }
    }

    /// Reads these on from their positions.
    fn seek<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) -> Result<(), LogError> {
        let positions: Vec<_> =
            partitions.into_iter().filter_map(|it| Some((it, raw(*self.positions.get(it)?)))).collect();
        if positions.is_empty() {
            // librdkafka takes a seek of nothing for a mistake.
            return Ok(());
        }
        let sought = self.consumer()?.seek_partitions(list(positions)?, self.kafka.params.patience);
        let sought = sought.map_err(|error| unreachable(&error))?;
        sought.elements().iter().try_for_each(|it| it.error()).map_err(|error| unreachable(&error))
    }

    fn owned(&self, partitions: &[TopicPartition]) -> Result<TopicPartitionList, LogError> {
        if let Some(other) = partitions.iter().find(|partition| !self.positions.contains_key(*partition)) {
            return Err(LogError::Refused(format!("{other} is not assigned to this member")));
        }
        list(partitions.iter().map(|partition| (partition, Offset::Invalid)))
    }
}

impl GroupReader for KafkaMember {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, LogError> {
        self.consumer()?;
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        // Asked before the group's wishes are met: each of them would fail, poll for poll.
        if let Some(fenced) = self.fatal() {
            self.lose();
            return Err(fenced);
        }
        self.settle()?;
        let (mut found, mut bytes, mut wait) = (Vec::new(), 0, wait);
        let mut down = None;
        let mut names: BTreeSet<Arc<str>> = self.positions.keys().map(|it| Arc::clone(&it.topic)).collect();
        while found.len() < records_max && bytes < READ_BYTES_MAX {
            let next = match self.consumer()?.poll(wait) {
                None => break,
                Some(Ok(message)) => Ok((message.topic().to_owned(), message.partition(), record_of(&message))),
                Some(Err(error)) => Err(error),
            };
            wait = Duration::ZERO;
            match next {
                Ok((topic, partition, record)) => {
                    let topic = names.get(topic.as_str()).cloned().unwrap_or_else(|| topic.into());
                    names.insert(Arc::clone(&topic));
                    bytes += record_bytes(&record);
                    let partition = u32::try_from(partition).unwrap_or(0);
                    found.push((TopicPartition { topic, partition }, record));
                }
                // One for each try of an outage, hundreds of them: whoever took them one by one, and paused after each,
                // would not read for minutes after the brokers are back.
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) => {
                    down = Some(unreachable(&error));
                }
                Err(error) => {
                    if let Some(error) = self.error_of(&error) {
                        self.error = Some(error);
                        break;
                    }
                }
            }
        }
        // What was given away meanwhile is its next owner's.
        let settled = self.settle();
        found.retain(|(partition, _)| self.positions.contains_key(partition));
        for (partition, record) in &found {
            self.positions.insert(partition.clone(), record.offset + 1);
        }
        match (settled, found.is_empty()) {
            (Err(error), true) => return Err(error),
            (Err(error), false) => self.error = Some(error),
            (Ok(()), true) => {
                if let Some(error) = self.error.take().or(down) {
                    return Err(error);
                }
            }
            (Ok(()), false) => {}
        }
        Ok(found)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let list = self.owned(partitions)?;
        self.consumer()?.pause(&list).map_err(|error| LogError::Refused(error.to_string()))
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        if partitions.is_empty() {
            return Ok(());
        }
        let asked = self.owned(partitions)?;
        let consumer = self.consumer()?;
        consumer.resume(&asked).map_err(|error| LogError::Refused(error.to_string()))?;
        // A partition that was paused before its first record forgets where it should start.
        self.seek(partitions)
    }

    fn commit(&mut self, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError> {
        let consumer = self.consumer()?;
        if commits.is_empty() {
            return Ok(());
        }
        if commits.iter().any(|(partition, _)| !self.positions.contains_key(partition)) {
            return Err(LogError::Fenced(self.group.clone()));
        }
        commit(consumer, &self.group, commits).map_err(|error| self.fatal().unwrap_or(error))
    }
}

fn commit(
    consumer: &BaseConsumer<MemberContext>,
    group: &str,
    commits: &[(TopicPartition, Commit)],
) -> Result<(), LogError> {
    let offsets = list(commits.iter().map(|(partition, commit)| (partition, raw(commit.offset))))?;
    for (element, (_, commit)) in offsets.elements().iter_mut().zip(commits) {
        element.set_metadata(&commit.metadata);
    }
    consumer.commit(&offsets, CommitMode::Sync).map_err(|error| match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::FencedInstanceId,
        ) => LogError::Fenced(group.to_owned()),
        Some(RDKafkaErrorCode::OffsetMetadataTooLarge) => LogError::Refused(error.to_string()),
        _ => unreachable(&error),
    })
}

/// Leaves the group for good under a name, and waits until the group knows.
fn leave(consumer: &BaseConsumer<MemberContext>, group: &str, seat: &Seat) {
    consumer.unsubscribe();
    let name = seat.name();
    for _ in 0..LEAVE_ASKS_MAX {
        // Serves the callback that gives the last partitions back.
        if let Some(Err(error)) = consumer.poll(LEAVE_PAUSE) {
            tracing::debug!(group, %error, "while leaving");
        }
        let sits = |found: rdkafka::groups::GroupList| {
            found.groups().iter().flat_map(|group| group.members()).any(|member| member.client_id() == name)
        };
        match consumer.fetch_group_list(Some(group), LEAVE_ANSWER_MAX).map(sits) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(group, %error, "nobody says whether this member has left");
                return;
            }
        }
    }
    tracing::warn!(group, name, "the group still has this member: its partitions wait for the end of its session");
}

impl Drop for KafkaMember {
    fn drop(&mut self) {
        let Some(consumer) = self.consumer.take() else { return };
        let owned: Vec<_> = self.positions.keys().cloned().collect();
        let commits = if owned.is_empty() { Vec::new() } else { self.assignment.revoked(&owned) };
        self.changes.leaving.store(true, Ordering::Relaxed);
        let waiting = std::mem::take(&mut *lock(&self.changes.waiting));
        let (group, seat) = (self.group.clone(), self.seat.take());
        let_go(move || {
            if !commits.is_empty()
                && let Err(error) = commit(&consumer, &group, &commits)
            {
                tracing::warn!(group, %error, "could not commit while leaving; the next owner repeats");
            }
            // The group waits for an answer to what it wanted; what is left it asks for when the member leaves.
            for change in waiting {
                let answered = match change {
                    Change::Take(_) => take_nothing(&consumer),
                    Change::Give { partitions, .. } => give_back(&consumer, &partitions),
                };
                if let Err(error) = answered {
                    tracing::debug!(group, %error, "could not answer the group while leaving");
                }
            }
            if let Some(seat) = &seat {
                leave(&consumer, &group, seat);
            }
            drop(consumer);
            // Nobody takes the seat before its member is gone.
            drop(seat);
        });
    }
}

const fn is_moving(code: Option<RDKafkaErrorCode>) -> bool {
    matches!(
        code,
        Some(
            RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::WaitingForCoordinator
        )
    )
}

fn commits_of(list: &TopicPartitionList) -> Result<Vec<(TopicPartition, Option<Commit>)>, LogError> {
    let mut commits = Vec::new();
    for (partition, element) in partitions_of(list).into_iter().zip(list.elements()) {
        element.error().map_err(|error| unreachable(&error))?;
        let commit = match element.offset() {
            Offset::Offset(offset) => {
                Some(Commit { offset: unsigned(offset), metadata: element.metadata().to_owned() })
            }
            _ => None,
        };
        commits.push((partition, commit));
    }
    Ok(commits)
}
