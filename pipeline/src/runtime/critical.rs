//! The critical path: beside the dataflow, on threads of its own, one record at a time.
//!
//! # Cast
//! A *member* of the group `PREFIX.critical` reads the critical events, decides each record with a chain of
//! its own (`validate`, `preferences`, `route`: the same operator code as in decide) and appends lane
//! records. Its *recorder*, a second thread, writes all that nobody waits for: rows, dead letters and
//! hand-overs. *Followers*, a thread per partition, keep the *view*: profiles and addresses, straight
//! from their topics. Members share nothing with the dataflow but topics; the logs that they are
//! given should be handles of their own too, `lanes` with a producer that does not linger.
//!
//! # Protocol
//! 1. The member takes in the records that stand in the log, [`RECORDS_MAX`] at most. It never waits
//!    for more of them.
//! 2. Each is decided by itself, upon what the view has of its user now. A record that kills an
//!    operator becomes a dead letter.
//! 3. Their lane records are appended, without generation, epoch or ordinal. Here latency ends.
//! 4. The recorder appends hand-overs (under their own event id), dead letters and lifecycle blocks.
//! 5. The member commits what step 4 is done with: when nothing waits to be decided, 50 ms after the
//!    last record; under load once a second.
//!
//! # What is not known
//! Nobody waits for the view. Of whom nothing was read yet has the default profile, and so the type's
//! default channels; what was read counts at once. An address is taken for granted ([`Known::assumed`])
//! on every channel while addresses are not read to their high watermark and for whoever has none
//! there, because a code is often the first thing that is sent to a new address; and on the channels
//! that the producer named. Deliver holds the addresses: it ends such a leg `unreachable`, and checks
//! legal stops once more.
//!
//! # Invariants
//! - An offset is committed only after everything that its record and all before it in the partition
//!   said was acknowledged.
//! - What a repeat says has the same ids: the notification hashes the intent, a row what it says, and
//!   both take their times from the log. So the delivery ledger absorbs repeated lane records, the
//!   record repeated rows, `dedup` repeated hand-overs.
//! - An append is made again, in place, until the log has it: a partition's order is kept.
//! - Trouble with the topics of step 4 holds up no lane record before [`UNRECORDED_BYTES_MAX`] wait.
//!
//! # If it dies at step n
//! 1, 2. Nothing happened. 3. Some lane records are there; the next owner says them again. 4. All of
//! them are; they are said again, the rows too. 5. The same.
//!
//! # Not promised
//! That a repeat decides alike: profile, rules or expiry may have moved in between, and then legs of
//! both decisions are there. That a user's opt-out is known the moment it was given: the view follows
//! its topics and no cut.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use tidings_operators::harness::chain::Chain;
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::harness::output::{EpochOutput, To};
use tidings_operators::ingest::{Body, Path, Source, SourceKind, ingest, reject};
use tidings_operators::item::Item;
use tidings_operators::keyed::Known;
use tidings_operators::registry::{Input, Wired, Wiring, WiringError};
use tidings_operators::rules::Rules;
use tidings_schemas::channel::ChannelSet;
use tidings_schemas::ids::{KEY_GROUPS, key_group, placement};
use tidings_schemas::lane::HEADER_EVENT;
use tidings_schemas::lifecycle::Stage;
use tidings_schemas::reason::Reason;
use tidings_schemas::rows::Rows;
use tidings_schemas::time::Instant;
use tidings_sinks::log::{Append, Assignment, Commit, GroupReader, Log, LogError, Record, TopicPartition};

use super::clock::{Clock, SystemClock};
use super::coordinator::Observer;
use super::egress::Outlets;
use super::feeds::raw;
use super::plan::SourcePlan;

/// Records that share an append. They stand in the log already, so that none waits for another to
/// come; more would let the first wait for the last to be decided.
pub const RECORDS_MAX: usize = 64;

/// Bytes that may wait to be recorded: some ten thousand codes, enough to sit out a change of leaders in
/// the topics of step 4. Beyond it the member stops reading until the recorder gets on; what waits is
/// repeated after a crash, and must fit into memory.
pub const UNRECORDED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Batches that may wait to be recorded; the bound of bytes or this one, whichever is met first.
const UNRECORDED_MAX: usize = 16_384;

/// Batches that the recorder writes with one append.
const BATCHES_MAX: usize = 64;

/// How long a poll waits while nothing is to be committed; also how long a stop takes at most.
const WAIT: Duration = Duration::from_millis(100);

/// How long after the last record its offset is committed.
const COMMIT_AFTER: Duration = Duration::from_millis(50);

/// A commit is a round trip during which nothing is decided. Under load it is made this often only.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// The first pause after a failed call; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(10);

/// The longest pause between two tries of one call.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How long a partition that is given up waits for its rows. Beyond it the next owner repeats more.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Records that a follower takes in at once.
const FOLLOWED_MAX: usize = 1_024;

/// Upper bounds of latency's buckets in milliseconds; the last bucket has none.
pub const LATENCY_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000];

/// What the critical path needs to know.
#[derive(Clone)]
pub struct CriticalPlan {
    /// Sources and operators: see [`wiring`].
    pub wiring: Wiring,
    /// How each source of the wiring is read, by number. Events are consumed by the group, profiles
    /// and addresses are followed.
    pub sources: Vec<SourcePlan>,
    /// Policies and calendar.
    pub rules: Arc<Rules>,
    /// Topics that are written.
    pub outlets: Outlets,
    /// Members of the group within this process. One is enough for thousands of records a second.
    pub members: usize,
}

/// What it needs beside its plan.
#[derive(Clone)]
pub struct CriticalSurroundings {
    /// Events, profiles and addresses; rows, dead letters and hand-overs.
    pub log: Arc<dyn Log>,
    /// The lanes: a handle of its own, whose producer does not linger.
    pub lanes: Arc<dyn Log>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Set to stop gracefully.
    pub stop: Arc<AtomicBool>,
    /// Where it stands.
    pub status: Arc<CriticalStatus>,
    /// Sees what was recorded.
    pub observer: Option<Arc<dyn Observer>>,
}

/// Where the critical path stands, for whoever asks.
#[derive(Debug, Default)]
pub struct CriticalStatus {
    /// A member reads. Does not depend on profiles.
    pub ready: AtomicBool,
    /// Partitions of events that are read here.
    pub partitions: AtomicU64,
    /// Records that were decided, repeats included.
    pub handled: AtomicU64,
    /// Of them: those that belong to the dataflow.
    pub handed_over: AtomicU64,
    /// Of them: those that became dead letters.
    pub rejected: AtomicU64,
    /// Partitions of profiles that are not read to their high watermark yet.
    pub profiles_behind: AtomicU64,
    /// Partitions of addresses that are not read to their high watermark yet.
    pub addresses_behind: AtomicU64,
    /// Appends that failed and were made again.
    pub retries: AtomicU64,
    /// From a record's timestamp to the acknowledgement of its lane records.
    pub latency: Latency,
}

/// A histogram of durations over [`LATENCY_MS`].
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; LATENCY_MS.len() + 1],
    sum_ms: AtomicU64,
}

impl Latency {
    fn observe(&self, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = LATENCY_MS.iter().position(|bound| ms <= *bound).unwrap_or(LATENCY_MS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// How many fell between each bound and the one before; the last ones lie beyond all bounds.
    #[must_use]
    pub fn counts(&self) -> [u64; LATENCY_MS.len() + 1] {
        std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed))
    }

    /// All of them together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_millis(self.sum_ms.load(Ordering::Relaxed))
    }
}

/// Why the critical path ended. Nothing is lost by it.
#[derive(Debug, thiserror::Error)]
pub enum CriticalError {
    /// The wiring makes no chain.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// The log refuses for good.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A thread could not be started, or ended.
    #[error("critical path: {0}")]
    Thread(String),
}

/// The critical chain over `sources`: every source of events feeds `validate`, `preferences`, `route`.
/// Nothing else of a topology holds for it: no parameters, no conditions, nothing that waits.
#[must_use]
pub fn wiring(sources: Vec<Source>) -> Wiring {
    let events = |(number, source): (usize, &Source)| match source.kind {
        SourceKind::Events { .. } => Some(Input::Source(number)),
        SourceKind::Returned | SourceKind::Profiles | SourceKind::Addresses => None,
    };
    let mut inputs: Vec<Input> = sources.iter().enumerate().filter_map(events).collect();
    let mut operators = Vec::new();
    for (number, kind) in ["validate", "preferences", "route"].into_iter().enumerate() {
        operators.push(Wired {
            id: Arc::from(kind),
            kind: kind.to_owned(),
            params: serde_json::json!({}),
            when: None,
            inputs: std::mem::replace(&mut inputs, vec![Input::Operator(number)]),
            to_lanes: kind == "route",
        });
    }
    Wiring { sources, operators, more: &[] }
}

/// The critical path, running.
pub struct Critical {
    members: Vec<JoinHandle<Result<(), CriticalError>>>,
    followers: Vec<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
}

impl Critical {
    /// Starts every thread. Waits for nothing: a log that is away is tried again.
    ///
    /// # Errors
    /// When the wiring makes no chain, or a thread cannot be started.
    pub fn start(plan: CriticalPlan, around: CriticalSurroundings) -> Result<Self, CriticalError> {
        let plan = Arc::new(plan);
        let view = Arc::new(View::new(Arc::clone(&around.status)));
        let mut critical = Self { members: Vec::new(), followers: Vec::new(), ended: Arc::default() };
        for (lot, at) in plan.partitions_of(|kind| matches!(kind, SourceKind::Profiles | SourceKind::Addresses)) {
            let source = plan.wiring.sources[usize::from(lot.source)].clone();
            view.behind(source.kind).fetch_add(1, Ordering::Relaxed);
            let follower = Follower {
                log: Arc::clone(&around.log),
                at,
                source,
                lot,
                rules: Arc::clone(&plan.rules),
                view: Arc::clone(&view),
                ended: Arc::clone(&critical.ended),
            };
            critical.followers.push(spawn(format!("critical-view-{}", follower.at), move || follower.run())?);
        }
        for number in 0..plan.members.max(1) {
            let member = Member::new(&plan, &around, &view, &critical.ended)?;
            critical.members.push(spawn(format!("critical-{number}"), move || member.run(number))?);
        }
        Ok(critical)
    }

    /// Whether a member has ended by itself.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.members.iter().any(JoinHandle::is_finished)
    }

    /// Waits until the path was stopped, or cannot go on.
    ///
    /// # Errors
    /// When it cannot go on; every thread has ended then.
    pub fn join(mut self) -> Result<(), CriticalError> {
        let mut result = Ok(());
        for member in self.members.drain(..) {
            let ended = member.join().unwrap_or_else(|_| Err(CriticalError::Thread("a member panicked".to_owned())));
            result = result.and(ended);
        }
        result
    }
}

impl Drop for Critical {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for member in self.members.drain(..) {
            // Nobody asks any more why it ended.
            let _ = member.join();
        }
        for follower in self.followers.drain(..) {
            let _ = follower.join();
        }
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, CriticalError> {
    let spawned = std::thread::Builder::new().name(name.clone()).spawn(run);
    spawned.map_err(|error| CriticalError::Thread(format!("no thread for {name}: {error}")))
}

impl CriticalPlan {
    /// Every partition of the sources of some kinds.
    fn partitions_of(&self, wanted: impl Fn(SourceKind) -> bool) -> Vec<(Lot, TopicPartition)> {
        let mut all = Vec::new();
        for ((number, source), plan) in (0..).zip(&self.wiring.sources).zip(&self.sources) {
            let topic: Arc<str> = plan.topic.as_str().into();
            let count = if wanted(source.kind) { plan.partitions } else { 0 };
            let at = |partition| TopicPartition { topic: Arc::clone(&topic), partition };
            all.extend((0..count).map(|partition| (Lot { source: number, partition }, at(partition))));
        }
        all
    }

    /// Numbers of the sources of events, by topic.
    fn events(&self) -> BTreeMap<String, u16> {
        let events = |((number, source), plan): ((u16, &Source), &SourcePlan)| {
            matches!(source.kind, SourceKind::Events { .. }).then(|| (plan.topic.clone(), number))
        };
        (0..).zip(&self.wiring.sources).zip(&self.sources).filter_map(events).collect()
    }
}

/// Doubling pauses.
struct Pause(Duration);

impl Pause {
    const fn new() -> Self {
        Self(RETRY_MIN)
    }

    fn wait(&mut self) {
        std::thread::sleep(self.0);
        self.0 = (self.0 * 2).min(RETRY_MAX);
    }
}

/// What was read of profiles and addresses so far. A lock per key group, held for one look or one
/// insertion, so that loading millions of profiles holds up nobody.
struct View {
    users: Vec<RwLock<BTreeMap<Arc<str>, Known>>>,
    status: Arc<CriticalStatus>,
}

impl View {
    fn new(status: Arc<CriticalStatus>) -> Self {
        Self { users: (0..KEY_GROUPS).map(|_| RwLock::default()).collect(), status }
    }

    fn group(&self, user: &str) -> &RwLock<BTreeMap<Arc<str>, Known>> {
        &self.users[usize::from(key_group(placement(user)).0)]
    }

    /// Partitions of this kind of side input that are not read to their high watermark yet.
    fn behind(&self, kind: SourceKind) -> &AtomicU64 {
        match kind {
            SourceKind::Profiles => &self.status.profiles_behind,
            _ => &self.status.addresses_behind,
        }
    }

    /// What `item` is decided upon.
    fn known(&self, item: &Item) -> Known {
        let users = self.group(&item.user).read().unwrap_or_else(PoisonError::into_inner);
        let mut known = users.get(&item.user).cloned().unwrap_or_default();
        drop(users);
        let behind = self.status.addresses_behind.load(Ordering::Relaxed) > 0;
        known.assumed = if behind || known.reachability.is_empty() {
            ChannelSet::ALL
        } else {
            item.channels.iter().copied().collect()
        };
        known
    }

    fn change(&self, user: &Arc<str>, change: impl FnOnce(&mut Known)) {
        let mut users = self.group(user).write().unwrap_or_else(PoisonError::into_inner);
        let known = users.entry(Arc::clone(user)).or_default();
        change(known);
        if *known == Known::default() {
            users.remove(user);
        }
    }

    fn take_in(&self, body: Body) {
        match body {
            Body::Profile { user, profile } => self.change(&user, |known| known.profile = (*profile).into()),
            Body::Address { user, address_id, address } => self.change(&user, |known| {
                Arc::make_mut(&mut known.reachability).apply(&address_id, address.as_deref());
            }),
            // Decide reads the same record, and says so.
            Body::Rejected(_) | Body::Item(_) => {}
        }
    }
}

/// Reads one partition of profiles or addresses into the view, from the oldest record on.
struct Follower {
    log: Arc<dyn Log>,
    at: TopicPartition,
    source: Source,
    lot: Lot,
    rules: Arc<Rules>,
    view: Arc<View>,
    ended: Arc<AtomicBool>,
}

impl Follower {
    fn run(self) {
        let mut pause = Pause::new();
        let mut behind = true;
        while !self.ended.load(Ordering::Relaxed) {
            if let Err(error) = self.follow(&mut pause, &mut behind) {
                // A compacted topic can be read again from its oldest record whatever happened.
                tracing::warn!(partition = %self.at, %error, "cannot follow; nobody waits for it, trying again");
                pause.wait();
            }
        }
    }

    fn follow(&self, pause: &mut Pause, behind: &mut bool) -> Result<(), LogError> {
        let range = self.log.range(&self.at)?;
        let mut reader = self.log.reader(&self.at, range.start)?;
        let mut position = range.start;
        while !self.ended.load(Ordering::Relaxed) {
            if *behind && position >= range.end {
                *behind = false;
                self.view.behind(self.source.kind).fetch_sub(1, Ordering::Relaxed);
            }
            let batch = match reader.poll(FOLLOWED_MAX, WAIT) {
                Ok(batch) => batch,
                Err(error) if error.is_transient() => {
                    pause.wait();
                    continue;
                }
                Err(error) => return Err(error),
            };
            *pause = Pause::new();
            position = batch.position;
            for record in batch.records {
                let arrived = ingest(&self.source, self.lot, &raw(record), &self.rules, Path::Critical);
                self.view.take_in(arrived.body);
            }
        }
        Ok(())
    }
}

/// How far a partition was handled, recorded and committed.
#[derive(Clone, Copy, Default)]
struct Stand {
    handled: u64,
    recorded: u64,
    committed: u64,
}

/// The partitions of one member.
#[derive(Default)]
struct Progress {
    stands: Mutex<Stands>,
    recorded: Condvar,
}

#[derive(Default)]
struct Stands {
    partitions: BTreeMap<TopicPartition, Stand>,
    /// What the recorder was told and has not written.
    unrecorded_bytes: usize,
    /// The recorder has ended: nothing more will be recorded.
    closed: bool,
}

impl Progress {
    fn stands(&self) -> MutexGuard<'_, Stands> {
        self.stands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_on(&self, through: &Through, change: impl Fn(&mut Stand, u64)) {
        let mut stands = self.stands();
        for (partition, offset) in through {
            if let Some(stand) = stands.partitions.get_mut(partition) {
                change(stand, *offset);
            }
        }
    }

    /// Waits, at most [`WAIT`], while too much is unrecorded; whether it still is.
    fn crowded(&self) -> bool {
        let crowded = |stands: &mut Stands| !stands.closed && stands.unrecorded_bytes > UNRECORDED_BYTES_MAX;
        let waited = self.recorded.wait_timeout_while(self.stands(), WAIT, crowded);
        waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// What can be committed now.
    fn due(&self) -> Vec<(TopicPartition, Commit)> {
        commits(self.stands().partitions.iter())
    }

    /// Whether something was handled and not committed.
    fn uncommitted(&self) -> bool {
        self.stands().partitions.values().any(|stand| stand.handled > stand.committed)
    }
}

fn commits<'a>(stands: impl Iterator<Item = (&'a TopicPartition, &'a Stand)>) -> Vec<(TopicPartition, Commit)> {
    let due = stands.filter(|(_, stand)| stand.recorded > stand.committed);
    due.map(|(at, stand)| (at.clone(), Commit { offset: stand.recorded, metadata: String::new() })).collect()
}

/// Partitions, and the offset behind the last record of each.
type Through = BTreeMap<TopicPartition, u64>;

/// Hears of the group's changes for one member.
struct Shares {
    progress: Arc<Progress>,
    status: Arc<CriticalStatus>,
}

impl Assignment for Shares {
    fn assigned(&self, partitions: &[(TopicPartition, Option<Commit>)]) {
        let mut stands = self.progress.stands();
        for (partition, commit) in partitions {
            let offset = commit.as_ref().map_or(0, |commit| commit.offset);
            let stand = Stand { handled: offset, recorded: offset, committed: offset };
            stands.partitions.insert(partition.clone(), stand);
        }
        self.status.partitions.fetch_add(partitions.len() as u64, Ordering::Relaxed);
    }

    fn revoked(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, Commit)> {
        let unrecorded = |stands: &mut Stands| {
            let open = |stand: &Stand| stand.handled > stand.recorded;
            !stands.closed && partitions.iter().any(|it| stands.partitions.get(it).is_some_and(open))
        };
        let waited = self.progress.recorded.wait_timeout_while(self.progress.stands(), SETTLE_MAX, unrecorded);
        let (mut stands, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let given = partitions.iter().filter_map(|it| stands.partitions.remove_entry(it)).collect::<Vec<_>>();
        self.status.partitions.fetch_sub(given.len() as u64, Ordering::Relaxed);
        commits(given.iter().map(|(at, stand)| (at, stand)))
    }
}

/// What a member tells its recorder of one batch.
#[derive(Default)]
struct Told {
    appends: Vec<Append>,
    rows: Rows,
    through: Through,
}

impl Told {
    fn bytes(&self) -> usize {
        self.appends.iter().map(Append::bytes).sum::<usize>() + self.rows.bytes()
    }
}

/// Appends for one thread.
#[derive(Clone)]
struct Writer {
    log: Arc<dyn Log>,
    status: Arc<CriticalStatus>,
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Writer {
    fn halted(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.ended.load(Ordering::Relaxed)
    }

    /// Appends until the log has it; false when it could not be done before the path was stopped.
    fn append(&self, appends: &[Append]) -> Result<bool, LogError> {
        let mut pause = Pause::new();
        while !appends.is_empty() {
            match self.log.append(appends) {
                Ok(_) => break,
                Err(error) if error.is_transient() => {
                    if self.halted() {
                        return Ok(false);
                    }
                    self.status.retries.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, "a critical record cannot be written; nothing is lost, trying again");
                    pause.wait();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Writes what nobody waits for: step 4.
struct Recorder {
    writer: Writer,
    outlets: Outlets,
    observer: Option<Arc<dyn Observer>>,
    inbox: Receiver<Told>,
    progress: Arc<Progress>,
}

impl Recorder {
    fn run(self) -> Result<(), LogError> {
        let result = self.record();
        self.progress.stands().closed = true;
        self.progress.recorded.notify_all();
        result
    }

    /// Until the member lets go.
    fn record(&self) -> Result<(), LogError> {
        while let Ok(mut told) = self.inbox.recv() {
            for more in self.inbox.try_iter().take(BATCHES_MAX - 1) {
                told.appends.extend(more.appends);
                told.rows.append(more.rows);
                told.through.extend(more.through);
            }
            let bytes = told.bytes();
            told.appends.extend(self.outlets.blocks(Stage::Critical, 0, &told.rows));
            if !self.writer.append(&told.appends)? {
                return Ok(());
            }
            self.progress.move_on(&told.through, |stand, offset| stand.recorded = stand.recorded.max(offset));
            self.progress.stands().unrecorded_bytes -= bytes;
            self.progress.recorded.notify_all();
            if let Some(observer) = &self.observer {
                observer.rows(&told.rows.decode());
            }
        }
        Ok(())
    }
}

/// Says on its way out, whatever the reason, that everyone should end.
struct EndsAll(Arc<AtomicBool>);

impl Drop for EndsAll {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads, decides and says: steps 1 to 3 and 5.
struct Member {
    plan: Arc<CriticalPlan>,
    events: BTreeMap<String, u16>,
    around: CriticalSurroundings,
    view: Arc<View>,
    chain: Chain,
    lanes: Writer,
    progress: Arc<Progress>,
}

/// Why a member stopped reading.
enum Halt {
    /// It was told to, or everyone ends.
    Stopped,
    /// It is no member any more: it joins again.
    Fenced,
}

impl Member {
    fn new(
        plan: &Arc<CriticalPlan>,
        around: &CriticalSurroundings,
        view: &Arc<View>,
        ended: &Arc<AtomicBool>,
    ) -> Result<Self, CriticalError> {
        let lanes = Writer {
            log: Arc::clone(&around.lanes),
            status: Arc::clone(&around.status),
            stop: Arc::clone(&around.stop),
            ended: Arc::clone(ended),
        };
        Ok(Self {
            plan: Arc::clone(plan),
            events: plan.events(),
            around: around.clone(),
            view: Arc::clone(view),
            chain: plan.wiring.chain(Path::Critical)?,
            lanes,
            progress: Arc::default(),
        })
    }

    fn run(mut self, number: usize) -> Result<(), CriticalError> {
        let _ends_all = EndsAll(Arc::clone(&self.lanes.ended));
        let (told, inbox) = bounded(UNRECORDED_MAX);
        let recorder = Recorder {
            writer: Writer { log: Arc::clone(&self.around.log), ..self.lanes.clone() },
            outlets: self.plan.outlets.clone(),
            observer: self.around.observer.clone(),
            inbox,
            progress: Arc::clone(&self.progress),
        };
        let recorder = spawn(format!("critical-{number}-rows"), move || recorder.run())?;
        let read = loop {
            match self.member(&told) {
                Ok(Halt::Fenced) => tracing::warn!("no longer a member of the group of critical events; joining again"),
                Ok(Halt::Stopped) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        drop(told);
        let recorded = recorder.join().unwrap_or_else(|_| Err(LogError::Store("the recorder panicked".to_owned())));
        read.and(recorded.map_err(CriticalError::Log))
    }

    /// One membership, from joining to leaving. Leaving commits what was recorded.
    fn member(&mut self, told: &Sender<Told>) -> Result<Halt, CriticalError> {
        let Some(mut reader) = self.join()? else { return Ok(Halt::Stopped) };
        // Real time, however fast the clock of decisions runs: it paces round trips.
        let pace = SystemClock::default();
        let mut committed_at = pace.elapsed();
        let mut pause = Pause::new();
        while !self.lanes.halted() {
            if self.progress.crowded() {
                continue;
            }
            // Step 1.
            let wait = if self.progress.uncommitted() { COMMIT_AFTER } else { WAIT };
            let records = match reader.poll(RECORDS_MAX, wait) {
                Ok(records) => records,
                Err(LogError::Fenced(_)) => return Ok(Halt::Fenced),
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "critical events cannot be read; trying again");
                    pause.wait();
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            pause = Pause::new();
            self.around.status.ready.store(true, Ordering::Relaxed);
            let idle = records.is_empty();
            if !idle && !self.say(records, told)? {
                break;
            }
            // Step 5.
            if idle || pace.elapsed().saturating_sub(committed_at) >= COMMIT_EVERY {
                committed_at = pace.elapsed();
                match self.commit(&mut *reader) {
                    Ok(()) => {}
                    Err(LogError::Fenced(_)) => return Ok(Halt::Fenced),
                    Err(error) if error.is_transient() => {
                        tracing::warn!(%error, "critical offsets cannot be committed; trying again");
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(Halt::Stopped)
    }

    /// A membership; none when the path was stopped first.
    fn join(&self) -> Result<Option<Box<dyn GroupReader>>, CriticalError> {
        let topics: Vec<String> = self.events.keys().cloned().collect();
        let group = self.plan.outlets.topics.group("critical");
        let shares = Shares { progress: Arc::clone(&self.progress), status: Arc::clone(&self.around.status) };
        let shares: Arc<dyn Assignment> = Arc::new(shares);
        let mut pause = Pause::new();
        while !self.lanes.halted() {
            match self.around.log.join(&group, &topics, Arc::clone(&shares)) {
                Ok(reader) => return Ok(Some(reader)),
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "the group of critical events cannot be joined; trying again");
                    pause.wait();
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Steps 2 and 3; false when the path was stopped before all of it was said.
    fn say(&mut self, records: Vec<(TopicPartition, Record)>, told: &Sender<Told>) -> Result<bool, CriticalError> {
        let status = Arc::clone(&self.around.status);
        let handled = records.len() as u64;
        let (mut handed_over, mut rejected) = (0, 0);
        let (mut lanes, mut batch, mut accepted) = (Vec::new(), Told::default(), Vec::new());
        for (from, record) in records {
            let source = self.events.get(&*from.topic).copied().unwrap_or_default();
            let lot = Lot { source, partition: from.partition };
            let record = raw(record);
            batch.through.insert(from, record.offset + 1);
            let EpochOutput { said, rows, .. } = self.decide(lot, &record)?;
            batch.rows.append(rows);
            if said.iter().any(|said| matches!(said.to, To::Lane(..))) {
                accepted.push(record.timestamp);
            }
            for said in said {
                let to = self.plan.outlets.place(&said);
                let key = (!said.user.is_empty()).then(|| Bytes::copy_from_slice(said.user.as_bytes()));
                let mut append = Append { to, key, value: Some(said.value), headers: Vec::new() };
                match said.to {
                    To::Lane(..) => lanes.push(append),
                    To::HandOver(_, event) => {
                        handed_over += 1;
                        append.headers.push((HEADER_EVENT.to_owned(), Bytes::from(event.to_string())));
                        batch.appends.push(append);
                    }
                    To::Dlq(_) => {
                        rejected += 1;
                        batch.appends.push(append);
                    }
                }
            }
        }
        if !self.lanes.append(&lanes)? {
            return Ok(false);
        }
        let now = self.around.clock.wall();
        accepted.iter().for_each(|at: &Instant| status.latency.observe(now.since(*at)));
        status.handed_over.fetch_add(handed_over, Ordering::Relaxed);
        status.rejected.fetch_add(rejected, Ordering::Relaxed);
        status.handled.fetch_add(handled, Ordering::Relaxed);
        self.progress.move_on(&batch.through, |stand, offset| stand.handled = offset);
        self.progress.stands().unrecorded_bytes += batch.bytes();
        // A recorder that has ended says itself why.
        Ok(told.send(batch).is_ok())
    }

    fn decide(&mut self, lot: Lot, record: &RawRecord) -> Result<EpochOutput, WiringError> {
        let Self { plan, chain, view, around, .. } = self;
        let source = &plan.wiring.sources[usize::from(lot.source)];
        let now = around.clock.wall();
        set_aside(plan, chain, now, lot, record, |chain| {
            let arrived = ingest(source, lot, record, &plan.rules, Path::Critical);
            let known = match &arrived.body {
                Body::Item(item) => view.known(item),
                Body::Profile { .. } | Body::Address { .. } | Body::Rejected(_) => Known::default(),
            };
            chain.single(now, &plan.rules, lot, arrived, known)
        })
    }

    fn commit(&self, reader: &mut dyn GroupReader) -> Result<(), LogError> {
        let due = self.progress.due();
        reader.commit(&due)?;
        let through = due.into_iter().map(|(partition, commit)| (partition, commit.offset)).collect();
        self.progress.move_on(&through, |stand, offset| stand.committed = offset);
        Ok(())
    }
}

/// What `decide` says, or, where it panics, that the record was set aside.
fn set_aside(
    plan: &CriticalPlan,
    chain: &mut Chain,
    now: Instant,
    lot: Lot,
    record: &RawRecord,
    decide: impl FnOnce(&mut Chain) -> EpochOutput,
) -> Result<EpochOutput, WiringError> {
    if let Ok(output) = catch_unwind(AssertUnwindSafe(|| decide(chain))) {
        return Ok(output);
    }
    // What the panic left behind in the chain is not to be met by the next record.
    *chain = plan.wiring.chain(Path::Critical)?;
    let source = &plan.wiring.sources[usize::from(lot.source)];
    let problem = "the record killed an operator; it was set aside, and the stream went on".to_owned();
    let arrived = reject(source, lot, record, Reason::Panicked, problem);
    Ok(chain.single(now, &plan.rules, lot, arrived, Known::default()))
}

#[cfg(test)]
mod tests {
    use tidings_operators::script;
    use tidings_schemas::ids::EventId;
    use tidings_schemas::topics::Topics;

    use super::*;

    #[test]
    fn a_record_that_kills_an_operator_is_set_aside() {
        let source = Source { id: "critical".into(), kind: SourceKind::Events { unknown_to_data: false } };
        let plan = CriticalPlan {
            wiring: wiring(vec![source]),
            sources: Vec::new(),
            rules: Arc::new(script::rules()),
            outlets: Outlets { topics: Topics::default(), partitions: BTreeMap::new() },
            members: 1,
        };
        let mut chain = plan.wiring.chain(Path::Critical).unwrap();
        let value = Some(Bytes::from_static(b"{}"));
        let record = RawRecord { offset: 7, key: None, value, headers: Vec::new(), timestamp: Instant(1) };
        let lot = Lot { source: 0, partition: 3 };
        let output = set_aside(&plan, &mut chain, Instant(2), lot, &record, |_| panic!("an operator died")).unwrap();
        assert!(matches!(output.said[..], [ref said] if said.to == To::Dlq(Reason::Panicked)));
        let [row] = &output.rows.decode()[..] else { panic!("one row") };
        let event = EventId::new("critical", 3, 7);
        assert_eq!((row.event, row.reason, row.epoch), (event, Some(Reason::Panicked), 0));
    }
}
