//! Reads lanes or retry topics as a member of a group: steps 1 and 8 of the lane's protocol.
//!
//! A reader keeps a bounded number of records in flight. What it polled beyond that, and retry records
//! that are not due, it holds, and the partitions they came from are not fetched meanwhile; others are. So
//! no delay of a retry topic waits behind another, and nothing is read that nobody has room for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::deliver::{Deliverer, Desk, Leg};
use super::metrics::LaneMetrics;
use super::outbox::Outbox;
use super::progress::{Progress, Sign};
use super::wire::{self, DeadLetter, Read};
use super::{LaneError, Limits};
use crate::ledger::{Incarnation, Turns};
use crate::log::{Assignment, Commit, GroupReader, LogError, Record, TopicPartition, aside};
use crate::troubles::Troubles;

/// Pause after an error of the log that passes by itself.
const BACKOFF: Duration = Duration::from_millis(200);

/// One reader of one channel: a lane, or the retry topics of a class.
pub struct LaneReader {
    /// Who delivers.
    pub deliverer: Arc<Deliverer>,
    /// The group that remembers how far it came.
    pub group: String,
    /// What it reads.
    pub topics: Vec<String>,
    /// How much at a time.
    pub limits: Limits,
    /// What it did.
    pub metrics: Arc<LaneMetrics>,
}

/// A record that was read and not handed on yet.
struct Held {
    offset: u64,
    bytes: usize,
    due: Instant,
    believed: Incarnation,
    work: Work,
}

enum Work {
    Leg { record: Box<tidings_schemas::lane::LaneRecord>, epoch: Option<u64>, retry: Option<wire::Retry> },
    Unreadable { raw: String, detail: String },
}

struct Partition {
    /// Absent until the loop has seen the assignment.
    progress: Option<Progress>,
    commit: Option<Commit>,
    /// What was polled before that: taken in by `welcome`, however often it fails first.
    unseen: Vec<Record>,
    held: VecDeque<Held>,
    flying: usize,
    paused: bool,
    leaving: CancellationToken,
    /// Tells assignments of one partition apart.
    term: u64,
}

#[derive(Default)]
struct State {
    partitions: BTreeMap<TopicPartition, Partition>,
    in_flight: usize,
    in_flight_bytes: usize,
    terms: u64,
    /// The reader is gone: nobody settles anything any more.
    closed: bool,
}

/// What the loop, the tickets and the group's callbacks share.
struct Shared {
    state: Mutex<State>,
    freed: Notify,
    landed: Condvar,
    metrics: Arc<LaneMetrics>,
    drain_max: Duration,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to settle one record, once. Dropped unsettled, the record is read again by the next owner.
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    partition: TopicPartition,
    offset: u64,
    bytes: usize,
    term: u64,
    leaving: CancellationToken,
}

impl Ticket {
    /// Everything that the record asked for is durable.
    pub(crate) fn settle(&self) {
        let mut state = self.shared.state();
        if let Some(partition) = state.partitions.get_mut(&self.partition).filter(|it| it.term == self.term)
            && let Some(progress) = &mut partition.progress
        {
            progress.settled(self.offset);
        }
    }

    /// Whether a commit names `incarnation`, so that the record may be called under it. None: the partition is
    /// someone else's.
    pub(crate) fn is_named(&self, incarnation: &Incarnation) -> Option<bool> {
        let state = self.shared.state();
        let partition = state.partitions.get(&self.partition).filter(|it| it.term == self.term)?;
        Some(partition.progress.as_ref().is_some_and(|progress| progress.names(incarnation)))
    }

    /// Resolves when the partition is about to be someone else's.
    pub(crate) async fn leaving(&self) {
        self.leaving.cancelled().await;
    }

    /// Where the record stands, for people.
    pub(crate) fn place(&self) -> String {
        format!("{}@{}", self.partition, self.offset)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.in_flight -= 1;
        state.in_flight_bytes -= self.bytes;
        if let Some(partition) = state.partitions.get_mut(&self.partition).filter(|it| it.term == self.term) {
            partition.flying -= 1;
        }
        self.shared.metrics.in_flight.store(state.in_flight as u64, Ordering::Relaxed);
        self.shared.metrics.in_flight_bytes.store(state.in_flight_bytes as u64, Ordering::Relaxed);
        drop(state);
        self.shared.freed.notify_one();
        self.shared.landed.notify_all();
    }
}

struct Callbacks(Arc<Shared>);

impl Assignment for Callbacks {
    fn assigned(&self, partitions: &[(TopicPartition, Option<Commit>)]) {
        let mut state = self.0.state();
        for (partition, commit) in partitions {
            state.terms += 1;
            let new = Partition {
                progress: None,
                commit: commit.clone(),
                unseen: Vec::new(),
                held: VecDeque::new(),
                flying: 0,
                paused: false,
                leaving: CancellationToken::new(),
                term: state.terms,
            };
            state.partitions.insert(partition.clone(), new);
        }
    }

    fn revoked(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, Commit)> {
        let mut state = self.0.state();
        for partition in partitions {
            if let Some(it) = state.partitions.get_mut(partition) {
                it.held.clear();
                it.leaving.cancel();
            }
        }
        // What waits gives up at once; what is called is waited for.
        let flying = |state: &mut State| {
            !state.closed && partitions.iter().any(|it| state.partitions.get(it).is_some_and(|it| it.flying > 0))
        };
        let waited = self.0.landed.wait_timeout_while(state, self.0.drain_max, flying);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            tracing::warn!("partitions were given up with calls under way; their outcome may become unknown");
        }
        let leaving = partitions.iter().filter_map(|partition| {
            let mut it = state.partitions.remove(partition)?;
            Some((partition.clone(), it.progress.as_mut()?.commit()))
        });
        leaving.collect()
    }
}

/// Closes what the callbacks share when the reader ends, however it ends.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.landed.notify_all();
    }
}

impl LaneReader {
    /// Reads and delivers until `stop`; then lets what is in flight land within
    /// [`Limits::drain_max`], commits and leaves the group.
    ///
    /// # Errors
    /// When a topic is missing, an offset is out of range, or the log is damaged: never to be passed over.
    pub async fn run(self, stop: CancellationToken) -> Result<(), LaneError> {
        while !stop.is_cancelled() {
            match self.member(&stop).await {
                Err(LaneError::Log(LogError::Fenced(group))) => {
                    tracing::warn!(group, "no member of the group any more; joins again");
                }
                Err(LaneError::Log(error)) if error.is_transient() => {
                    tracing::warn!(%error, group = self.group, "a lane waits for the log");
                    tokio::select! { () = tokio::time::sleep(BACKOFF) => {}, () = stop.cancelled() => {} }
                }
                ended => return ended,
            }
        }
        Ok(())
    }

    async fn member(&self, stop: &CancellationToken) -> Result<(), LaneError> {
        let log = self.deliverer.parts().log.clone();
        let waits = log.waits();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            freed: Notify::new(),
            landed: Condvar::new(),
            metrics: self.metrics.clone(),
            // Where polls are made in place, nothing would land while one of them waits.
            drain_max: if waits { self.limits.drain_max } else { Duration::ZERO },
        });
        let draining = CancellationToken::new();
        let desk = Arc::new(Desk {
            outbox: Outbox::new(log.clone(), self.deliverer.lifecycle(&self.group)),
            ledger: Turns::new(self.deliverer.parts().ledger.clone()),
            troubles: Troubles::new(&self.group),
            metrics: self.metrics.clone(),
            draining: draining.clone(),
        });
        let (group, topics, callbacks) = (self.group.clone(), self.topics.clone(), Callbacks(shared.clone()));
        let joined = aside(waits, move || log.join(&group, &topics, Arc::new(callbacks))).await;
        let mut member = Member { reader: Some(joined.map_err(LaneError::task)??), waits };
        // Declared after the member and before the tasks: tasks end first, then nobody waits for them.
        let _closing = Closing(shared.clone());
        let mut tasks = JoinSet::new();
        let mut committed = self.deliverer.elapsed();
        let mut ended = Ok(());
        while ended.is_ok() && !stop.is_cancelled() {
            ended = self.turn(&shared, &desk, &mut member, &mut tasks, &mut committed, stop).await;
            if let Err(LaneError::Log(error)) = &ended
                && error.is_transient()
            {
                tracing::warn!(%error, group = self.group, "a lane waits for the log");
                tokio::select! { () = tokio::time::sleep(BACKOFF) => {}, () = stop.cancelled() => {} }
                ended = Ok(());
            }
        }
        draining.cancel();
        let landed = async {
            while let Some(ended) = tasks.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, group = self.group, "a batch of deliveries died");
                }
            }
        };
        if tokio::time::timeout(self.limits.drain_max, landed).await.is_err() {
            tracing::warn!(group = self.group, "stopped with calls under way; their outcome may become unknown");
        }
        tasks.shutdown().await;
        ended?;
        self.commit(&shared, &mut member).await
    }

    /// Once around: new partitions, what there is room for, what may be fetched, what is settled, what is new.
    async fn turn(
        &self,
        shared: &Arc<Shared>,
        desk: &Arc<Desk>,
        member: &mut Member,
        tasks: &mut JoinSet<()>,
        committed: &mut Duration,
        stop: &CancellationToken,
    ) -> Result<(), LaneError> {
        self.welcome(shared, member).await?;
        self.rename(shared, member).await?;
        while let Some(ended) = tasks.try_join_next() {
            ended.map_err(LaneError::task)?;
        }
        let batch = self.admit(shared);
        if !batch.is_empty() {
            let (deliverer, desk) = (self.deliverer.clone(), desk.clone());
            tasks.spawn(async move { deliver(&deliverer, &desk, batch).await });
        }
        self.flow(shared, member).await?;
        let now = self.deliverer.elapsed();
        if now.saturating_sub(*committed) >= self.deliverer.clocked(self.limits.commit_every) {
            *committed = now;
            self.commit(shared, member).await?;
        }
        self.read(shared, member, stop).await
    }

    /// New partitions: where they go on, and what the ledger's loss means for them. The start is committed at
    /// once, so that the next owner knows under which incarnation this one read.
    async fn welcome(&self, shared: &Shared, member: &mut Member) -> Result<(), LaneError> {
        let new: Vec<_> = (shared.state().partitions.iter())
            .filter(|(_, it)| it.progress.is_none())
            .map(|(partition, it)| (partition.clone(), it.commit.clone()))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let log = self.deliverer.parts().log.clone();
        let asked = new.iter().map(|(partition, _)| partition.clone()).collect::<Vec<_>>();
        let ranges = aside(log.waits(), move || {
            asked.iter().map(|partition| log.range(partition)).collect::<Result<Vec<_>, _>>()
        });
        let ranges = ranges.await.map_err(LaneError::task)??;
        let (incarnation, now) = (self.deliverer.incarnation(), self.deliverer.now());
        for ((partition, commit), range) in new.into_iter().zip(ranges) {
            let progress = Progress::resume(commit.as_ref(), range.start, range.end, incarnation.clone(), now);
            if let Some(it) = shared.state().partitions.get_mut(&partition) {
                it.progress = Some(progress);
                for record in std::mem::take(&mut it.unseen) {
                    self.take(it, record, &incarnation);
                }
            }
        }
        self.commit(shared, member).await
    }

    /// The ledger's word, committed before anything is called under it: after a crash and a loss in one moment the
    /// next owner would know neither that there was another ledger nor what it had seen.
    async fn rename(&self, shared: &Shared, member: &mut Member) -> Result<(), LaneError> {
        let (incarnation, now) = (self.deliverer.incarnation(), self.deliverer.now());
        let mut unnamed = false;
        for progress in shared.state().partitions.values_mut().filter_map(|it| it.progress.as_mut()) {
            progress.refounded(incarnation.clone(), now);
            unnamed |= !progress.names(&incarnation);
        }
        if unnamed { self.commit(shared, member).await } else { Ok(()) }
    }

    /// What is due and there is room for, in offset order of each partition.
    fn admit(&self, shared: &Arc<Shared>) -> Vec<(Work, Admitted)> {
        let (now, incarnation) = (self.deliverer.now(), self.deliverer.incarnation());
        let mut state = shared.state();
        let state = &mut *state;
        let mut batch = Vec::new();
        let named = |it: &Partition| it.progress.as_ref().is_some_and(|progress| progress.names(&incarnation));
        for (partition, it) in state.partitions.iter_mut().filter(|(_, it)| named(it)) {
            while let Some(held) = it.held.front().filter(|held| held.due <= now) {
                // One record always goes, or a large one would never.
                let room = state.in_flight < self.limits.records_max
                    && (state.in_flight == 0 || state.in_flight_bytes + held.bytes <= self.limits.bytes_max);
                if !room || batch.len() == self.limits.batch_max {
                    break;
                }
                let Some(held) = it.held.pop_front() else { break };
                it.flying += 1;
                state.in_flight += 1;
                state.in_flight_bytes += held.bytes;
                let ticket = Ticket {
                    shared: shared.clone(),
                    partition: partition.clone(),
                    offset: held.offset,
                    bytes: held.bytes,
                    term: it.term,
                    leaving: it.leaving.clone(),
                };
                batch.push((held.work, Admitted { ticket, believed: held.believed }));
            }
        }
        self.metrics.in_flight.store(state.in_flight as u64, Ordering::Relaxed);
        self.metrics.in_flight_bytes.store(state.in_flight_bytes as u64, Ordering::Relaxed);
        batch
    }

    /// Partitions with held records are not fetched; the others are.
    async fn flow(&self, shared: &Shared, member: &mut Member) -> Result<(), LaneError> {
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        for (partition, it) in &mut shared.state().partitions {
            let full = !it.held.is_empty();
            if full != it.paused {
                it.paused = full;
                if full { &mut pause } else { &mut resume }.push(partition.clone());
            }
        }
        if pause.is_empty() && resume.is_empty() {
            return Ok(());
        }
        member.call(move |reader| reader.pause(&pause).and_then(|()| reader.resume(&resume))).await
    }

    /// Step 8: what is settled, with the marks below it; then the ledger may forget.
    async fn commit(&self, shared: &Shared, member: &mut Member) -> Result<(), LaneError> {
        let mut commits = Vec::new();
        {
            let mut state = shared.state();
            let mut reached = self.metrics.reached.lock().unwrap_or_else(PoisonError::into_inner);
            reached.retain(|partition, _| state.partitions.contains_key(partition));
            for (partition, it) in &mut state.partitions {
                let Some(progress) = &mut it.progress else { continue };
                reached.insert(partition.clone(), progress.reached());
                commits.extend(progress.news().map(|commit| (partition.clone(), commit)));
            }
        }
        if commits.is_empty() {
            return Ok(());
        }
        let asked = commits.clone();
        member.call(move |reader| reader.commit(&asked)).await?;
        let mut passed = Vec::new();
        for (partition, commit) in commits {
            if let Some(progress) = shared.state().partitions.get_mut(&partition).and_then(|it| it.progress.as_mut()) {
                passed.extend(progress.committed(commit).map(|mark| (partition, mark)));
            }
        }
        let (ledger, incarnation) = (&self.deliverer.parts().ledger, self.deliverer.incarnation());
        for (partition, mark) in passed {
            // The next mark passes these buckets too.
            if let Err(error) = ledger.passed(&incarnation, &partition, mark, self.deliverer.now()).await {
                tracing::warn!(%error, %partition, "buckets of the ledger stay until the next mark");
                break;
            }
        }
        Ok(())
    }

    /// Step 1: polls what there is room for, and takes it in.
    async fn read(&self, shared: &Shared, member: &mut Member, stop: &CancellationToken) -> Result<(), LaneError> {
        let now = self.deliverer.now();
        let (room, next_due, open) = {
            let state = shared.state();
            let held = || state.partitions.values().filter_map(|it| it.held.front());
            let room = self.limits.records_max.saturating_sub(state.in_flight);
            let room = if state.in_flight_bytes >= self.limits.bytes_max { 0 } else { room };
            let due = held().map(|held| held.due).filter(|due| *due > now).min();
            (room, due, held().next().is_none())
        };
        let due = next_due.map(|due| self.deliverer.sleep_until(due, now));
        let due = due.map_or(self.limits.poll_wait, |due| due.min(self.limits.poll_wait));
        let mut wait = due;
        if room == 0 || !open {
            // Somebody waits in memory: a landing or a due date is what comes next, not a record.
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = shared.freed.notified() => {}
                () = tokio::time::sleep(due.max(self.limits.idle)) => {}
            }
            wait = Duration::ZERO;
        }
        // Polls even without room, so that the group sees a living member; paused partitions bring nothing.
        let records_max = room.clamp(1, self.limits.batch_max);
        let records = member.call(move |reader| reader.poll(records_max, wait)).await?;
        if records.is_empty() && (wait.is_zero() || !member.waits) && room > 0 && open {
            let idle = wait.max(self.limits.idle);
            tokio::select! { () = tokio::time::sleep(idle) => {}, () = stop.cancelled() => {} }
        }
        let incarnation = self.deliverer.incarnation();
        let mut unseen = false;
        {
            let mut state = shared.state();
            for (partition, record) in records {
                let Some(it) = state.partitions.get_mut(&partition) else { continue };
                if it.progress.is_none() {
                    // Assigned within this very poll.
                    it.unseen.push(record);
                    unseen = true;
                    continue;
                }
                self.take(it, record, &incarnation);
            }
        }
        if unseen {
            self.welcome(shared, member).await?;
        }
        Ok(())
    }

    fn take(&self, it: &mut Partition, record: Record, incarnation: &Incarnation) {
        let Some(progress) = &mut it.progress else { return };
        progress.refounded(incarnation.clone(), self.deliverer.now());
        let bytes = bytes(&record);
        let (mut due, mut sign) = (Instant(0), Sign::Attempt(None));
        let work = match wire::read(&record) {
            Ok(Read::Mark(mark)) => {
                progress.marked(record.offset, mark.said_through);
                return;
            }
            Ok(Read::Leg { epoch: Some(epoch), .. }) if progress.is_repeat(epoch) => {
                progress.passed(record.offset);
                self.metrics.repeats.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(Read::Leg { record, epoch, retry }) => {
                due = retry.as_ref().map_or(due, |retry| retry.due);
                sign = match (epoch, &retry) {
                    (Some(epoch), _) => Sign::Epoch(epoch),
                    (None, None) => Sign::Event(record.created_at),
                    (None, Some(retry)) => Sign::Attempt(retry.under.clone()),
                };
                Work::Leg { record, epoch, retry }
            }
            Err(detail) => {
                let raw = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
                Work::Unreadable { raw, detail }
            }
        };
        let believed = progress.took(record.offset, &sign);
        it.held.push_back(Held { offset: record.offset, bytes, due, believed, work });
    }
}

struct Admitted {
    ticket: Ticket,
    believed: Incarnation,
}

/// A batch: dead letters for what cannot be read, the rest is delivered.
async fn deliver(deliverer: &Deliverer, desk: &Desk, batch: Vec<(Work, Admitted)>) {
    let mut legs = Vec::with_capacity(batch.len());
    for (work, Admitted { ticket, believed }) in batch {
        match work {
            Work::Leg { record, epoch, retry } => {
                let epoch = epoch.map(|epoch| (ticket.partition.clone(), epoch));
                legs.push(Leg { record: *record, epoch, believed, retry, ticket, open: Mutex::default() });
            }
            Work::Unreadable { raw, detail } => {
                tracing::error!(place = ticket.place(), detail, "a lane record cannot be read");
                desk.metrics.unreadable.fetch_add(1, Ordering::Relaxed);
                let letter = DeadLetter {
                    delivery: None,
                    leg: None,
                    raw: Some(raw),
                    from: ticket.place(),
                    provider: String::new(),
                    code: String::new(),
                    reason: Reason::InvalidJson,
                    detail,
                    attempts: 0,
                    unknown: false,
                    at: deliverer.now(),
                };
                desk.outbox.say(Vec::new(), vec![deliverer.unreadable(&letter)]).await;
                ticket.settle();
            }
        }
    }
    deliverer.deliver(desk, legs).await;
}

/// The member, away while a thread makes its call.
struct Member {
    reader: Option<Box<dyn GroupReader>>,
    /// Whether its calls may wait.
    waits: bool,
}

impl Member {
    async fn call<R: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut dyn GroupReader) -> Result<R, LogError> + Send + 'static,
    ) -> Result<R, LaneError> {
        let Some(mut reader) = self.reader.take() else {
            return Err(LogError::Fenced("the reader was lost in an earlier call".to_owned()).into());
        };
        let called = aside(self.waits, move || {
            let answer = work(&mut *reader);
            (reader, answer)
        });
        let (reader, answer) = called.await.map_err(LaneError::task)?;
        self.reader = Some(reader);
        Ok(answer?)
    }
}

fn bytes(record: &Record) -> usize {
    let Record { key, value, headers, .. } = record;
    let headers: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    key.as_ref().map_or(0, bytes::Bytes::len) + value.as_ref().map_or(0, bytes::Bytes::len) + headers
}
