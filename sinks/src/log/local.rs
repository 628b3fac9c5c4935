//! The log on one machine, over any [`Store`]: offsets, readers that block, groups, lazy retention.
//!
//! # Protocol of an append
//! 1. One at a time: offsets are given and the records handed to the store, so that order in the
//!    store is order of offsets.
//! 2. Whoever finds no sync under way that covers its records makes one for everybody who wrote so
//!    far; the others wait for it.
//! 3. Only then do readers see the records.
//!
//! # If it dies at step n
//! After 1 the records may be there when the log is opened again, though nobody was told: the append
//! was ambiguous. After 2 they are there.
//!
//! A write or sync that fails breaks the log until it is opened again, because nobody can say what
//! the disk holds then.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidings_schemas::time::Instant;

use super::groups::{Duty, Group, MemberId};
use super::{
    Append, Assignment, Batch, Clock, Commit, GroupReader, LogError, RECORD_BYTES_MAX, Reader, Record, Retention,
    TopicPartition, TopicSpec, all_weaknesses,
};

/// Least time between two rounds of giving up old records; a round runs inside an append.
const ROUND_EVERY: Duration = Duration::from_secs(1);
/// Most records given up per partition and round, so that no append waits long for it; the rest
/// goes in the next rounds, which do not wait then: one runs in each append until nothing is left.
const ROUND_RECORDS_MAX: usize = 1_000;

/// A record with the place it was given.
pub(super) struct Placed<'a> {
    pub(super) append: &'a Append,
    pub(super) offset: u64,
    pub(super) timestamp: Instant,
    /// Set in a compacted topic: until when a superseded record stays.
    pub(super) superseded_until: Option<Instant>,
}

/// A topic with the range of each of its partitions.
pub(super) struct Found {
    pub(super) spec: TopicSpec,
    pub(super) ranges: Vec<Range<u64>>,
}

/// What a log on one machine is kept in. Calls that write come one at a time.
pub(super) trait Store: Send + Sync + 'static {
    /// Every topic that is there.
    fn topics(&self) -> Result<Vec<Found>, LogError>;
    fn write_topics(&self, topics: &[TopicSpec]) -> Result<(), LogError>;
    /// All of the records or none; durable after the next [`Store::sync`].
    fn write(&self, records: &[Placed<'_>]) -> Result<(), LogError>;
    fn write_commits(&self, group: &str, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError>;
    fn sync(&self) -> Result<(), LogError>;
    /// Records of `range`, and the position behind them: the range's end unless `records_max` or the
    /// store's own bound on bytes cut it short.
    fn read(
        &self,
        partition: &TopicPartition,
        range: Range<u64>,
        records_max: usize,
    ) -> Result<(Vec<Record>, u64), LogError>;
    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError>;
    /// Gives up records of `range`, remembers that `range.end` is the oldest offset.
    fn trim(&self, partition: &TopicPartition, range: Range<u64>) -> Result<(), LogError>;
    /// The first record of `range` that is not older than `instant`, its offset and time, looking at no
    /// more than `records_max`; beyond them the next one, beyond the last one the range's end.
    fn first_since(
        &self,
        partition: &TopicPartition,
        range: Range<u64>,
        instant: Instant,
        records_max: usize,
    ) -> Result<(u64, Option<Instant>), LogError>;
    /// Gives up to `records_max` superseded records whose time has come; whether there may be more of them.
    fn compact(&self, now: Instant, records_max: usize) -> Result<bool, LogError>;
}

struct Topic {
    spec: TopicSpec,
    name: Arc<str>,
    partitions: Vec<Ends>,
}

impl Topic {
    fn partition(&self, partition: u32) -> TopicPartition {
        TopicPartition { topic: Arc::clone(&self.name), partition }
    }
}

struct Ends {
    oldest: u64,
    /// What readers see.
    end: u64,
    /// What the next record gets.
    next: u64,
    /// No record is too old before this; asked again then.
    young_until: Instant,
}

impl Ends {
    const fn of(range: Range<u64>) -> Self {
        Self { oldest: range.start, end: range.end, next: range.end, young_until: Instant(i64::MIN) }
    }
}

#[derive(Default)]
struct State {
    topics: BTreeMap<Arc<str>, Topic>,
    groups: BTreeMap<String, Group>,
    /// How many writes the store was given.
    written: u64,
    /// New ends of partitions that wait for a sync, in the order of the writes.
    unseen: Vec<(TopicPartition, u64)>,
    round_at: Instant,
    broken: Option<String>,
}

/// See the module.
pub(super) struct Local<S> {
    store: S,
    clock: Clock,
    turn: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
    /// How many writes are durable. Held while syncing.
    synced: Mutex<u64>,
}

impl<S: Store> Local<S> {
    pub(super) fn open(store: S, clock: Clock) -> Result<Arc<Self>, LogError> {
        let mut state = State::default();
        for Found { spec, ranges } in store.topics()? {
            let name: Arc<str> = spec.name.as_str().into();
            let partitions = ranges.into_iter().map(Ends::of).collect();
            state.topics.insert(Arc::clone(&name), Topic { spec, name, partitions });
        }
        let (turn, state, changed, synced) = (Mutex::new(()), Mutex::new(state), Condvar::new(), Mutex::new(0));
        Ok(Arc::new(Self { store, clock, turn, state, changed, synced }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever holds it writes; nobody else's write comes between its looking and its writing.
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a write and makes it known, or breaks the log where it failed.
    fn wrote(&self, done: Result<(), LogError>, known: impl FnOnce(&mut State)) -> Result<u64, LogError> {
        let mut state = self.state();
        if let Err(error) = done {
            let why = state.broken.insert(why(error)).clone();
            self.changed.notify_all();
            return Err(LogError::Ambiguous(why));
        }
        known(&mut state);
        state.written += 1;
        Ok(state.written)
    }

    pub(super) fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        if let Some(large) = records.iter().find(|record| record.bytes() > RECORD_BYTES_MAX) {
            return Err(LogError::TooLarge { partition: large.to.clone(), bytes: large.bytes() });
        }
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let now = (self.clock)();
        // Step 1.
        let turn = self.turn();
        let placed = self.state().place(records, now)?;
        let offsets = placed.iter().map(|record| record.offset).collect();
        let write = self.wrote(self.store.write(&placed), |state| {
            for Placed { append, offset, .. } in &placed {
                state.advance(&append.to, |ends| ends.next = offset + 1);
                state.unseen.push((append.to.clone(), offset + 1));
            }
        })?;
        drop(turn);
        self.sync(write)?;
        self.give_up_old(now);
        Ok(offsets)
    }

    /// Steps 2 and 3 for the writes up to `write`.
    fn sync(&self, write: u64) -> Result<(), LogError> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced >= write {
            return Ok(());
        }
        let (written, unseen) = {
            let mut state = self.state();
            if let Some(why) = &state.broken {
                return Err(LogError::Ambiguous(why.clone()));
            }
            (state.written, std::mem::take(&mut state.unseen))
        };
        let done = self.store.sync();
        let mut state = self.state();
        if let Err(error) = done {
            let why = state.broken.insert(why(error)).clone();
            self.changed.notify_all();
            return Err(LogError::Ambiguous(why));
        }
        for (partition, end) in unseen {
            state.advance(&partition, |ends| ends.end = end);
        }
        *synced = written;
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// A round of retention and compaction, where one is due. Its failure breaks the log, but is
    /// not the append's.
    fn give_up_old(&self, now: Instant) {
        let _turn = self.turn();
        {
            let mut state = self.state();
            if now < state.round_at || state.broken.is_some() {
                return;
            }
            state.round_at = now.after(ROUND_EVERY);
        }
        let more = self.expire(now).and_then(|more| Ok(more | self.store.compact(now, ROUND_RECORDS_MAX)?));
        let (more, done) = more.map_or_else(|error| (false, Err(error)), |more| (more, Ok(())));
        let known = |state: &mut State| {
            if more {
                state.round_at = now;
            }
        };
        if let Err(error) = self.wrote(done, known) {
            tracing::error!(%error, "could not give up old records; the log takes no more until it is opened again");
        }
    }

    /// Gives up what is older than its topic keeps it; whether there is more of it.
    fn expire(&self, now: Instant) -> Result<bool, LogError> {
        let due: Vec<(TopicPartition, Range<u64>, Duration)> = {
            let state = self.state();
            let of = |topic: &Topic| {
                let Retention::For(span) = topic.spec.retention else { return Vec::new() };
                let old = |ends: &Ends| ends.oldest < ends.end && ends.young_until <= now;
                let due = (0..).zip(&topic.partitions).filter(|(_, ends)| old(ends));
                due.map(|(index, ends)| (topic.partition(index), ends.oldest..ends.end, span)).collect()
            };
            state.topics.values().flat_map(of).collect()
        };
        let mut more = false;
        for (partition, range, span) in due {
            let (kept, time) =
                self.store.first_since(&partition, range.clone(), now.before(span), ROUND_RECORDS_MAX)?;
            self.state().advance(&partition, |ends| {
                ends.oldest = kept;
                ends.young_until = time.map_or(now, |time| time.after(span));
            });
            if kept > range.start {
                self.store.trim(&partition, range.start..kept)?;
            }
            more |= time.is_some_and(|time| time.after(span) < now);
        }
        Ok(more)
    }

    pub(super) fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError> {
        self.state().range(partition)
    }

    pub(super) fn describe(&self, names: &[String]) -> Vec<TopicSpec> {
        let state = self.state();
        names.iter().filter_map(|name| state.topics.get(name.as_str())).map(|topic| topic.spec.clone()).collect()
    }

    /// One machine has one copy, whatever is asked for.
    pub(super) fn weaknesses(&self, wanted: &[TopicSpec]) -> Vec<String> {
        let single = |topic: &TopicSpec| TopicSpec { replication: 1, min_insync: 1, ..topic.clone() };
        let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
        all_weaknesses(&self.describe(&names), &wanted.iter().map(single).collect::<Vec<_>>())
    }

    pub(super) fn create(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        let turn = self.turn();
        let mut missing: Vec<TopicSpec> = Vec::new();
        for spec in topics {
            if spec.partitions == 0 {
                return Err(LogError::Refused(format!("topic `{}` needs at least one partition", spec.name)));
            }
            let state = self.state();
            state.usable()?;
            let known = state.topics.contains_key(spec.name.as_str());
            if !known && !missing.iter().any(|it| it.name == spec.name) {
                // One machine has one copy, whatever is asked for.
                missing.push(TopicSpec { replication: 1, min_insync: 1, ..spec.clone() });
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let write = self.wrote(self.store.write_topics(&missing), |state| {
            for spec in missing.iter().cloned() {
                let name: Arc<str> = spec.name.as_str().into();
                let partitions = (0..spec.partitions).map(|_| Ends::of(0..0)).collect();
                state.topics.insert(Arc::clone(&name), Topic { spec, name, partitions });
            }
            state.deal();
        })?;
        drop(turn);
        self.changed.notify_all();
        self.sync(write)
    }

    pub(super) fn trim(&self, partition: &TopicPartition, before: u64) -> Result<(), LogError> {
        let turn = self.turn();
        let Range { start: oldest, end } = {
            let state = self.state();
            state.usable()?;
            state.range(partition)?
        };
        if before > end {
            return Err(LogError::OutOfRange { partition: partition.clone(), offset: before, oldest, end });
        }
        if before <= oldest {
            return Ok(());
        }
        // Readers hear of it first, so that none takes the gap for the log's own.
        self.state().advance(partition, |ends| ends.oldest = before);
        let write = self.wrote(self.store.trim(partition, oldest..before), |_| ())?;
        drop(turn);
        self.changed.notify_all();
        self.sync(write)
    }

    pub(super) fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError> {
        self.state().range(partition)?;
        self.store.committed(group, partition)
    }

    pub(super) fn time(&self) -> Instant {
        (self.clock)()
    }

    pub(super) fn reader(self: &Arc<Self>, partition: &TopicPartition, from: u64) -> Result<LocalReader<S>, LogError> {
        self.state().range(partition)?;
        Ok(LocalReader { log: Arc::clone(self), partition: partition.clone(), position: from, at_end: false })
    }

    pub(super) fn join(
        self: &Arc<Self>,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<LocalMember<S>, LogError> {
        let mut state = self.state();
        if let Some(missing) = topics.iter().find(|topic| !state.topics.contains_key(topic.as_str())) {
            return Err(LogError::MissingTopic(missing.clone()));
        }
        let partitions = state.partitions();
        let member =
            state.groups.entry(group.to_owned()).or_default().join(topics.iter().cloned().collect(), &partitions);
        drop(state);
        self.changed.notify_all();
        Ok(LocalMember {
            log: Arc::clone(self),
            group: group.to_owned(),
            member,
            assignment,
            positions: BTreeMap::new(),
            paused: BTreeSet::new(),
            turn: 0,
        })
    }

    /// Declares every member of `group` dead, as a broker does with members that stopped polling.
    pub(super) fn evict(&self, group: &str) {
        let _turn = self.turn();
        let mut state = self.state();
        let partitions = state.partitions();
        if let Some(group) = state.groups.get_mut(group) {
            for member in group.members() {
                group.leave(member, &partitions);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// What is there from `position` on; the range is looked at again afterwards, because records
    /// may be given up while they are read.
    fn read(&self, partition: &TopicPartition, position: u64, records_max: usize) -> Result<Batch, LogError> {
        let Range { start: oldest, end } = self.state().range(partition)?;
        let out_of_range =
            |oldest, end| LogError::OutOfRange { partition: partition.clone(), offset: position, oldest, end };
        if position < oldest || position > end {
            return Err(out_of_range(oldest, end));
        }
        let (records, position) = self.store.read(partition, position..end, records_max)?;
        let Range { start: oldest, end } = self.state().range(partition)?;
        if records.first().map_or(position, |first| first.offset) < oldest {
            return Err(out_of_range(oldest, end));
        }
        Ok(Batch { records, position, at_end: position == end })
    }
}

/// The store's words, without those of the error around them.
fn why(error: LogError) -> String {
    match error {
        LogError::Store(why) => why,
        error => error.to_string(),
    }
}

impl State {
    fn usable(&self) -> Result<(), LogError> {
        match &self.broken {
            None => Ok(()),
            Some(why) => Err(LogError::Store(format!("{why}; open the log again"))),
        }
    }

    fn ends(&self, partition: &TopicPartition) -> Option<&Ends> {
        self.topics.get(&partition.topic)?.partitions.get(usize::try_from(partition.partition).ok()?)
    }

    fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError> {
        let ends = self.ends(partition).ok_or_else(|| LogError::MissingTopic(partition.to_string()))?;
        Ok(ends.oldest..ends.end)
    }

    /// Topics are never removed, so a partition that was there still is.
    fn advance(&mut self, partition: &TopicPartition, change: impl FnOnce(&mut Ends)) {
        let topic = self.topics.get_mut(&partition.topic);
        let index = usize::try_from(partition.partition).ok();
        if let Some(ends) = topic.zip(index).and_then(|(topic, index)| topic.partitions.get_mut(index)) {
            change(ends);
        }
    }

    fn place<'a>(&self, records: &'a [Append], timestamp: Instant) -> Result<Vec<Placed<'a>>, LogError> {
        self.usable()?;
        let mut next: BTreeMap<&TopicPartition, u64> = BTreeMap::new();
        let mut placed = Vec::with_capacity(records.len());
        for append in records {
            let first = self.ends(&append.to).ok_or_else(|| LogError::MissingTopic(append.to.to_string()))?.next;
            let superseded_until = match self.topics.get(&append.to.topic).map(|topic| topic.spec.retention) {
                Some(Retention::Compacted(_)) if append.key.is_none() => {
                    let why = format!("a record without a key for the compacted topic `{}`", append.to.topic);
                    return Err(LogError::Refused(why));
                }
                Some(Retention::Compacted(lag)) => Some(timestamp.after(lag)),
                _ => None,
            };
            let next = next.entry(&append.to).or_insert(first);
            placed.push(Placed { append, offset: *next, timestamp, superseded_until });
            *next += 1;
        }
        Ok(placed)
    }

    fn partitions(&self) -> Vec<TopicPartition> {
        let of = |topic: &Topic| (0..topic.spec.partitions).map(|index| topic.partition(index)).collect::<Vec<_>>();
        self.topics.values().flat_map(of).collect()
    }

    fn deal(&mut self) {
        let partitions = self.partitions();
        for group in self.groups.values_mut() {
            group.deal(&partitions);
        }
    }
}

/// Reads one partition.
pub(super) struct LocalReader<S> {
    log: Arc<Local<S>>,
    partition: TopicPartition,
    position: u64,
    /// Whether it was said that the position is the end.
    at_end: bool,
}

impl<S: Store> Reader for LocalReader<S> {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Batch, LogError> {
        let (position, at_end) = (self.position, self.at_end);
        let idle = |state: &mut State| {
            at_end
                && state.broken.is_none()
                && state.ends(&self.partition).is_some_and(|ends| ends.end == position && ends.oldest <= position)
        };
        let state = self.log.state();
        let (state, _) =
            (self.log.changed.wait_timeout_while(state, wait, idle)).unwrap_or_else(PoisonError::into_inner);
        state.usable()?;
        drop(state);
        let batch = self.log.read(&self.partition, self.position, records_max)?;
        (self.position, self.at_end) = (batch.position, batch.at_end);
        Ok(batch)
    }
}

/// A member of a group.
pub(super) struct LocalMember<S: Store> {
    log: Arc<Local<S>>,
    group: String,
    member: MemberId,
    assignment: Arc<dyn Assignment>,
    /// What it owns, and how far it has read.
    positions: BTreeMap<TopicPartition, u64>,
    paused: BTreeSet<TopicPartition>,
    /// Where the next poll starts, so that no partition starves.
    turn: usize,
}

impl<S: Store> LocalMember<S> {
    fn fenced(&self) -> LogError {
        LogError::Fenced(self.group.clone())
    }

    /// Gives up and takes over partitions as the group wants it.
    fn settle(&mut self) -> Result<(), LogError> {
        loop {
            let duty = {
                let state = self.log.state();
                state.usable()?;
                match state.groups.get(&self.group) {
                    Some(group) if group.has(self.member) => group.duty(self.member),
                    _ => {
                        drop(state);
                        self.lose();
                        return Err(self.fenced());
                    }
                }
            };
            if duty.is_empty() {
                return Ok(());
            }
            self.give(&duty.give)?;
            self.take(duty)?;
        }
    }

    fn give(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        if partitions.is_empty() {
            return Ok(());
        }
        let commits = self.assignment.revoked(partitions);
        let committed = self.commit(&commits);
        for partition in partitions {
            self.positions.remove(partition);
            self.paused.remove(partition);
        }
        if let Some(group) = self.log.state().groups.get_mut(&self.group) {
            group.gave(self.member, partitions);
        }
        self.log.changed.notify_all();
        committed
    }

    fn take(&mut self, duty: Duty) -> Result<(), LogError> {
        let taken = {
            // Asked again: meanwhile someone may have joined.
            let mut state = self.log.state();
            let Some(group) = state.groups.get_mut(&self.group) else { return Ok(()) };
            let free = group.duty(self.member).take;
            let taken: Vec<_> = duty.take.into_iter().filter(|partition| free.contains(partition)).collect();
            group.took(self.member, &taken);
            taken
        };
        if taken.is_empty() {
            return Ok(());
        }
        let mut assigned = Vec::with_capacity(taken.len());
        for partition in taken {
            let commit = self.log.committed(&self.group, &partition)?;
            let from = match &commit {
                Some(commit) => commit.offset,
                None => self.log.range(&partition)?.start,
            };
            self.positions.insert(partition.clone(), from);
            assigned.push((partition, commit));
        }
        self.assignment.assigned(&assigned);
        Ok(())
    }

    /// Someone else may have them by now: nothing can be committed any more.
    fn lose(&mut self) {
        let lost: Vec<_> = std::mem::take(&mut self.positions).into_keys().collect();
        self.paused.clear();
        if !lost.is_empty() {
            self.assignment.revoked(&lost);
        }
    }

    fn fetch(&mut self, records_max: usize) -> Result<Vec<(TopicPartition, Record)>, LogError> {
        let readable: Vec<_> = self.positions.keys().filter(|it| !self.paused.contains(*it)).cloned().collect();
        let mut found = Vec::new();
        self.turn = self.turn.wrapping_add(1);
        for index in 0..readable.len() {
            let partition = &readable[(self.turn + index) % readable.len()];
            let Some(position) = self.positions.get_mut(partition) else { continue };
            let batch = match self.log.read(partition, *position, records_max - found.len()) {
                Ok(batch) => batch,
                Err(error) if found.is_empty() => return Err(error),
                // Said when this partition's turn comes first; what was found must not be lost.
                Err(_) => break,
            };
            *position = batch.position;
            found.extend(batch.records.into_iter().map(|record| (partition.clone(), record)));
            if found.len() >= records_max {
                break;
            }
        }
        Ok(found)
    }

    fn owned(&self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        match partitions.iter().find(|partition| !self.positions.contains_key(*partition)) {
            None => Ok(()),
            Some(other) => Err(LogError::Refused(format!("{other} is not assigned to this member"))),
        }
    }
}

impl<S: Store> GroupReader for LocalMember<S> {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, LogError> {
        self.settle()?;
        let found = self.fetch(records_max)?;
        if !found.is_empty() || wait.is_zero() {
            return Ok(found);
        }
        let idle = |state: &mut State| {
            let group = state.groups.get(&self.group);
            let steady = group.is_some_and(|it| it.has(self.member) && it.duty(self.member).is_empty());
            let news = |(partition, position): (&TopicPartition, &u64)| {
                !self.paused.contains(partition) && state.ends(partition).is_some_and(|ends| ends.end != *position)
            };
            steady && state.broken.is_none() && !self.positions.iter().any(news)
        };
        let state = self.log.state();
        drop(self.log.changed.wait_timeout_while(state, wait, idle).unwrap_or_else(PoisonError::into_inner));
        self.settle()?;
        self.fetch(records_max)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.owned(partitions)?;
        self.paused.extend(partitions.iter().cloned());
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.owned(partitions)?;
        self.paused.retain(|partition| !partitions.contains(partition));
        Ok(())
    }

    fn commit(&mut self, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError> {
        if commits.is_empty() {
            return Ok(());
        }
        let turn = self.log.turn();
        {
            let state = self.log.state();
            state.usable()?;
            let group = state.groups.get(&self.group);
            if !commits.iter().all(|(partition, _)| group.is_some_and(|it| it.owns(self.member, partition))) {
                return Err(self.fenced());
            }
        }
        let write = self.log.wrote(self.log.store.write_commits(&self.group, commits), |_| ())?;
        drop(turn);
        self.log.sync(write)
    }
}

impl<S: Store> Drop for LocalMember<S> {
    fn drop(&mut self) {
        let member = self.log.state().groups.get(&self.group).is_some_and(|group| group.has(self.member));
        if !member {
            return self.lose();
        }
        let owned: Vec<_> = self.positions.keys().cloned().collect();
        if let Err(error) = self.give(&owned) {
            tracing::warn!(group = self.group, %error, "could not commit while leaving; the next owner repeats");
        }
        let mut state = self.log.state();
        let partitions = state.partitions();
        if let Some(group) = state.groups.get_mut(&self.group) {
            group.leave(self.member, &partitions);
        }
        drop(state);
        self.log.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::memory::Memory;
    use super::*;

    /// A store that tells of its writes, and whose syncs wait to be let through.
    struct Gated {
        memory: Memory,
        wrote: mpsc::SyncSender<()>,
        began: mpsc::SyncSender<()>,
        gate: Mutex<mpsc::Receiver<Result<(), LogError>>>,
    }

    impl Store for Gated {
        fn topics(&self) -> Result<Vec<Found>, LogError> {
            let spec = TopicSpec::one_copy("t", 1, Retention::Forever);
            Ok(vec![Found { spec, ranges: std::iter::once(0..0).collect() }])
        }
        fn write_topics(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
            self.memory.write_topics(topics)
        }
        fn write(&self, records: &[Placed<'_>]) -> Result<(), LogError> {
            self.wrote.send(()).unwrap();
            self.memory.write(records)
        }
        fn write_commits(&self, group: &str, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError> {
            self.memory.write_commits(group, commits)
        }
        fn sync(&self) -> Result<(), LogError> {
            self.began.send(()).unwrap();
            self.gate.lock().unwrap().recv().unwrap()
        }
        fn read(&self, of: &TopicPartition, range: Range<u64>, most: usize) -> Result<(Vec<Record>, u64), LogError> {
            self.memory.read(of, range, most)
        }
        fn committed(&self, group: &str, of: &TopicPartition) -> Result<Option<Commit>, LogError> {
            self.memory.committed(group, of)
        }
        fn trim(&self, of: &TopicPartition, range: Range<u64>) -> Result<(), LogError> {
            self.memory.trim(of, range)
        }
        fn first_since(
            &self,
            of: &TopicPartition,
            range: Range<u64>,
            instant: Instant,
            most: usize,
        ) -> Result<(u64, Option<Instant>), LogError> {
            self.memory.first_since(of, range, instant, most)
        }
        fn compact(&self, now: Instant, most: usize) -> Result<bool, LogError> {
            self.memory.compact(now, most)
        }
    }

    fn of() -> TopicPartition {
        TopicPartition { topic: "t".into(), partition: 0 }
    }

    type Gate = mpsc::SyncSender<Result<(), LogError>>;

    /// The log, its writes, its syncs, and how each of them ends.
    fn gated() -> (Arc<Local<Gated>>, mpsc::Receiver<()>, mpsc::Receiver<()>, Gate) {
        let ((wrote, written), (began, begun)) = (mpsc::sync_channel(9), mpsc::sync_channel(9));
        let (open, gate) = mpsc::sync_channel(9);
        let store = Gated { memory: Memory::default(), wrote, began, gate: Mutex::new(gate) };
        (Local::open(store, Arc::new(|| Instant(0))).unwrap(), written, begun, open)
    }

    fn append(log: &Local<Gated>) -> Result<Vec<u64>, LogError> {
        log.append(&[Append { to: of(), key: None, value: None, headers: Vec::new() }])
    }

    #[test]
    fn appends_that_come_during_a_sync_share_the_next_one() {
        let (log, written, begun, open) = gated();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| append(&log));
            begun.recv().unwrap();
            let others = [0; 5].map(|_| scope.spawn(|| append(&log)));
            (0..6).for_each(|_| written.recv_timeout(Duration::from_secs(30)).expect("six appends write"));
            // Whoever writes has its turn until the log knows of it.
            drop(log.turn());
            assert_eq!(log.range(&of()).unwrap(), 0..0, "nobody sees what is not durable");
            open.send(Ok(())).unwrap();
            assert_eq!(first.join().unwrap().unwrap(), [0]);
            begun.recv().unwrap();
            assert_eq!(log.range(&of()).unwrap(), 0..1);
            open.send(Ok(())).unwrap();
            let mut offsets: Vec<u64> = others.into_iter().flat_map(|it| it.join().unwrap().unwrap()).collect();
            offsets.sort_unstable();
            assert_eq!(offsets, [1, 2, 3, 4, 5]);
        });
        assert!(begun.try_recv().is_err(), "six appends, two syncs");
    }

    #[test]
    fn a_sync_that_fails_breaks_the_log() {
        let (log, _written, _begun, open) = gated();
        open.send(Err(LogError::Store("disk full".to_owned()))).unwrap();
        assert!(append(&log).unwrap_err().is_ambiguous());
        let again = append(&log).unwrap_err();
        let expected = "the log's store failed: disk full; open the log again";
        assert_eq!(again.to_string(), expected);
        let read = log.reader(&of(), 0).unwrap().poll(1, Duration::from_secs(9));
        assert_eq!(read.unwrap_err(), again);
    }
}
