//! The coordinator: makes cuts, and lets nothing be said too early. Steps are numbered as in the
//! module above.
//!
//! A run is one generation after another; what one is about is told in its own room: cuts, replay,
//! checkpoints.

mod generation;
mod scribe;

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tidings_operators::calendar::Calendar;
use tidings_operators::harness::aside::Killed;
use tidings_operators::harness::chain::RestoreError;
use tidings_schemas::lifecycle::Row;
use tidings_schemas::time::Instant;
use tidings_sinks::log::{Log, LogError};

pub(crate) use self::generation::command_channel;

use self::generation::Generation;
use super::clock::Clock;
use super::crew::{Crew, Threads};
use super::crumbs::{Crumbs, Last};
use super::egress::PresentError;
use super::news::News;
use super::plan::Plan;
use super::recovery::{StartError, start};
use super::sources::SourcesError;
use super::watch::Pulses;
use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::cutlog::{CutLog, CutLogError};

/// Sees what is said, as it is said: the console, `tail`, `emit`.
pub trait Observer: Send + Sync {
    /// Rows of an epoch whose cut is durable.
    fn rows(&self, rows: &[Row]);
}

/// Where a run stands, for whoever asks.
#[derive(Debug, Default)]
pub struct Status {
    /// The last epoch that was cut.
    pub epoch: AtomicU64,
    /// Everything up to this epoch was said.
    pub said_through: AtomicU64,
    /// The newest checkpoint that counts.
    pub checkpoint: AtomicU64,
    /// Epochs that were replayed at the start.
    pub replayed: AtomicU64,
    /// Generations that began.
    pub generations: AtomicU64,
    /// Source records that were cut.
    pub records: AtomicU64,
    /// Profiles are loaded, decisions are made.
    pub ready: AtomicBool,
    /// Calls that killed their operators and were set aside.
    pub set_aside: AtomicU64,
    /// Checkpoints that could not be written.
    pub checkpoint_failures: AtomicU64,
    /// Keys of state, as of the last finished epoch.
    pub keys: AtomicU64,
    /// How often cuts had to wait because too many epochs waited to be said.
    pub unsaid_waits: AtomicU64,
    /// How often cuts had to wait because too many deltas waited for the keeper.
    pub unkept_waits: AtomicU64,
    /// Whom it waits for before it can begin; empty if for nobody.
    pub waits: Mutex<String>,
    /// The steps of the generation that runs.
    pub pulses: Pulses,
    /// Told when it gets ready or is so no longer, at each cut, after what was said, and at each checkpoint.
    pub news: News,
}

impl Status {
    pub(crate) fn wait_for(&self, whom: &str) {
        whom.clone_into(&mut self.waits.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn set_ready(&self, is_ready: bool) {
        self.ready.store(is_ready, Ordering::Relaxed);
        self.news.tell();
    }

    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
        self.news.tell();
    }

    pub(crate) fn set_said_through(&self, epoch: u64) {
        self.said_through.store(epoch, Ordering::Relaxed);
        self.news.tell();
    }

    pub(crate) fn set_checkpoint(&self, epoch: u64) {
        self.checkpoint.store(epoch, Ordering::Relaxed);
        self.news.tell();
    }
}

/// What a run needs beside its plan.
#[derive(Clone)]
pub struct Surroundings {
    /// Sources, lanes, cuts.
    pub log: Arc<dyn Log>,
    /// Checkpoints and blobs.
    pub checkpoints: Checkpoints,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Set to stop gracefully.
    pub stop: Arc<AtomicBool>,
    /// Where it stands.
    pub status: Arc<Status>,
    /// Sees what is said.
    pub observer: Option<Arc<dyn Observer>>,
    /// Makes the plan of a topology that was stored: an older one drains before a newer one starts.
    pub older: Planner,
    /// Goes on although another build decided what is to be replayed.
    pub accept_divergence: bool,
    /// Operators that the topology has no longer, whose state may be dropped.
    pub may_drop: BTreeSet<String>,
    /// Where a process that dies of a call leaves word; nowhere where nobody starts it again.
    pub crumbs: Option<Crumbs>,
}

/// From the stored bytes of a topology to its plan, or to why it has none.
pub type Planner = Arc<dyn Fn(&[u8], Calendar) -> Result<Plan, String> + Send + Sync>;

/// Why a run ended.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// The start was refused.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The cut log: superseded, or away for too long.
    #[error(transparent)]
    CutLog(#[from] CutLogError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The sources.
    #[error(transparent)]
    Sources(SourcesError),
    /// The lanes.
    #[error(transparent)]
    Lanes(#[from] PresentError),
    /// The checkpoint store.
    #[error(transparent)]
    Store(#[from] CheckpointError),
    /// The state does not fit the topology.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A replay did not say what the first run said.
    #[error("epoch {epoch} cannot be replayed: {problem}; nothing of it was said by this run")]
    Mismatch {
        /// The epoch.
        epoch: u64,
        /// What differs, and how.
        problem: String,
    },
    /// The clock stepped and the log does not agree.
    #[error(
        "the clock stepped from {last} to {wall}, and the log's own time is {log}: set the clock right and start again"
    )]
    Clock {
        /// Stream time before.
        last: Instant,
        /// What the wall clock shows.
        wall: Instant,
        /// What the log says.
        log: Instant,
    },
    /// A call killed its operator, and it was logged that it is left out: the next generation goes on.
    #[error("a call of epoch {} is left out from now on: {}", .0.epoch, .0.skip.problem)]
    SetAside(Box<Killed>),
    /// A call killed its operator, and cannot be left out.
    #[error("{what} of epoch {epoch} cannot be left out, because {why}: {problem}")]
    Killed {
        /// The record, timer or change.
        what: String,
        /// Its epoch.
        epoch: u64,
        /// Why not, and what to do.
        why: &'static str,
        /// Who died of it.
        problem: String,
    },
    /// A worker or thread ended.
    #[error("{0}")]
    Worker(String),
    /// Another process of this run is gone: the next generation begins once it is there again.
    #[error("{why}")]
    Lost {
        /// Which, and how.
        why: String,
        /// Whether epochs were replayed that may kill.
        careful: bool,
    },
}

/// Calls that may kill their operators within [`SET_ASIDE_WITHIN`] and be left out. Each costs a start from
/// the newest checkpoint, a second or so in which nothing but critical is decided; where more of them
/// die it is not the records that are ill. Beyond it the run ends with the last of them.
const SET_ASIDE_MAX: usize = 32;

/// The time of which [`SET_ASIDE_MAX`] speaks.
const SET_ASIDE_WITHIN: Duration = Duration::from_secs(3600);

impl From<SourcesError> for DecideError {
    fn from(error: SourcesError) -> Self {
        match error {
            SourcesError::Log(error) => Self::Log(error),
            changed @ SourcesError::Changed(_) => Self::Sources(changed),
        }
    }
}

/// Runs the decide stage until it is told to stop. An older topology's cuts are drained first.
///
/// # Errors
/// When the run cannot start or go on; nothing is lost by it.
pub fn run(plan: &Plan, around: &Surroundings) -> Result<(), DecideError> {
    run_on(plan, around, || Box::new(Threads::default()))
}

/// The same, on threads of several processes: those that `hire` knows.
///
/// # Errors
/// As [`run`].
pub fn run_on(plan: &Plan, around: &Surroundings, hire: impl Fn() -> Box<dyn Crew>) -> Result<(), DecideError> {
    let mut decide = std::pin::pin!(decide(plan, around, hire));
    loop {
        // Threads block where they wait, so that this is over the first time.
        if let Poll::Ready(ended) = decide.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
            return ended;
        }
    }
}

/// The same, on a crew of the caller's for each generation.
///
/// # Errors
/// As [`run`].
pub async fn decide(plan: &Plan, around: &Surroundings, hire: impl Fn() -> Box<dyn Crew>) -> Result<(), DecideError> {
    let mut set_aside: Vec<Duration> = Vec::new();
    let last = around.crumbs.as_ref().map_or(Last::Nothing, Crumbs::last);
    let mut care = Care { alone: last != Last::Nothing, ..Care::default() };
    if let Last::Condemned(killed) = last {
        care.condemned = Some(killed);
    }
    loop {
        let now = around.clock.elapsed();
        set_aside.retain(|at| around.clock.real(now.saturating_sub(*at)) < SET_ASIDE_WITHIN);
        care.may_set_aside = set_aside.len() < SET_ASIDE_MAX;
        let ended = generation(plan, around, hire(), std::mem::take(&mut care)).await;
        // However it ended, nobody died of a call.
        if let Some(crumbs) = &around.crumbs {
            crumbs.clear();
        }
        match ended {
            Ok(Ended::Stopped) => return Ok(()),
            Ok(Ended::Left) if around.stop.load(Ordering::Relaxed) => return Ok(()),
            Ok(Ended::Drained | Ended::Left) => {}
            Err(DecideError::Lost { why, careful }) => {
                around.status.set_ready(false);
                tracing::warn!(why, "the generation is over; the next one begins once all processes are there");
                if around.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                // Whether it died of a call, only a death of this process can tell.
                care.alone = careful;
            }
            Err(DecideError::SetAside(killed)) => {
                around.status.set_ready(false);
                around.status.set_aside.fetch_add(1, Ordering::Relaxed);
                set_aside.push(around.clock.elapsed());
                tracing::error!(
                    epoch = killed.epoch,
                    what = described(&killed, plan),
                    problem = killed.skip.problem,
                    "it is left out from now on and goes to the dead letters; starting again without it"
                );
            }
            Err(error) => return Err(error),
        }
    }
}

/// What a generation must take care of, because of how earlier ones ended.
#[derive(Default)]
struct Care {
    /// Whether what kills may be left out.
    may_set_aside: bool,
    /// Whether it replays on one worker, and ends then.
    alone: bool,
    /// What whole processes died of.
    condemned: Option<Box<Killed>>,
}

/// What became of a generation that ended as it should.
enum Ended {
    /// It was told to.
    Stopped,
    /// It replayed what it was for: cuts of an older topology, or of a process that died.
    Drained,
    /// Another process of this run wanted to leave.
    Left,
}

/// One generation, from its begin to its end.
async fn generation(
    plan: &Plan,
    around: &Surroundings,
    mut crew: Box<dyn Crew>,
    care: Care,
) -> Result<Ended, DecideError> {
    if !care.alone && !crew.gather(around)? {
        return Ok(Ended::Stopped);
    }
    let nonce = nonce(&*around.clock);
    let cutlog = CutLog::begin(Arc::clone(&around.log), &plan.outlets.topics.cuts(), nonce)?;
    poll_fn(|_| crew.hands().pause()).await;
    let counted = cutlog.counted()?;
    poll_fn(|_| crew.hands().pause()).await;
    let mut begun = start(counted, &around.checkpoints)?;
    let mut plan = plan.clone();
    let older = begun.must_drain(&plan, around.accept_divergence)?;
    if let Some((topology, calendar)) = older {
        tracing::info!(
            epochs = begun.cuts.len(),
            of = begun.last,
            "what an older topology decided is drained by that one first"
        );
        let bytes = around.checkpoints.blob(&topology)?;
        let calendar = Calendar::from_bytes(around.checkpoints.blob(&calendar)?.into());
        let older = calendar.map_err(|error| error.to_string()).and_then(|calendar| (around.older)(&bytes, calendar));
        plan = older.map_err(|problem| DecideError::Worker(format!("the older topology: {problem}")))?;
        plan.topology = bytes.into();
    }
    if care.alone {
        plan.workers = 1;
    } else if older.is_some() {
        // Processes agree on this topology, not on an older one: what it decided is drained by this process.
        plan.workers = crew.here(plan.workers);
    }
    let drain = care.alone || older.is_some();
    let is_left = Generation::begin(&plan, around, crew, cutlog, begun)?.with(care).run(drain).await?;
    Ok(match (drain, is_left) {
        (true, _) => Ended::Drained,
        (false, true) => Ended::Left,
        (false, false) => Ended::Stopped,
    })
}

/// What killed, in words.
fn described(killed: &Killed, plan: &Plan) -> String {
    match killed.skip.record() {
        Some((lot, offset)) => {
            let source = plan.sources.get(usize::from(lot.source));
            let topic = source.map_or("?", |source| source.topic.as_str());
            format!("the record at offset {offset} of {topic}/{}", lot.partition)
        }
        None => "what a timer, a profile or changed rules set in motion".to_owned(),
    }
}

/// Tells one starter from another: wall clock and monotonic clock together, and where this is.
fn nonce(clock: &dyn Clock) -> u128 {
    let wall = u128::from(clock.wall().0.cast_unsigned());
    wall << 64 | u128::from(std::process::id()) << 32 | u128::from(clock.elapsed().subsec_nanos())
}
