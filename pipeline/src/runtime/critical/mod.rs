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
//! default channels; what was read counts at once. An address is taken for granted ([`Known::assumed`](tidings_operators::keyed::Known::assumed))
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

mod member;
mod progress;
mod recorder;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tidings_operators::harness::feed::Lot;
use tidings_operators::ingest::{Source, SourceKind};
use tidings_operators::registry::{Input, Wired, Wiring, WiringError};
use tidings_operators::rules::Rules;
use tidings_sinks::log::{Log, LogError, TopicPartition};

use self::member::Member;
use self::view::{Follower, View};
use super::clock::Clock;
use super::coordinator::Observer;
use super::egress::Outlets;
use super::plan::SourcePlan;

/// Records that share an append. They stand in the log already, so that none waits for another to
/// come; more would let the first wait for the last to be decided.
pub const RECORDS_MAX: usize = 64;

/// Bytes that may wait to be recorded: some ten thousand codes, enough to sit out a change of leaders in
/// the topics of step 4. Beyond it the member stops reading until the recorder gets on; what waits is
/// repeated after a crash, and must fit into memory.
pub const UNRECORDED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long a poll waits while nothing is to be committed; also how long a stop takes at most.
const WAIT: Duration = Duration::from_millis(100);

/// The first pause after a failed call; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(10);

/// The longest pause between two tries of one call.
const RETRY_MAX: Duration = Duration::from_secs(1);

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
