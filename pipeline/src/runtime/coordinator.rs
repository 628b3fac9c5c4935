//! The coordinator: makes cuts, and lets nothing be said too early. Steps are numbered as in the
//! module above.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use crossbeam_channel::{Receiver, Select, Sender, bounded};
use tidings_operators::calendar::Calendar;
use tidings_operators::harness::aside::Killed;
use tidings_operators::harness::chain::RestoreError;
use tidings_operators::harness::dataflow::{Command, Cut, Report};
use tidings_operators::harness::dropped::{DropCount, MayDrop};
use tidings_operators::harness::feed::{Extent, Lot};
use tidings_operators::harness::output::EpochOutput;
use tidings_operators::harness::pulse::Pulse;
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::lifecycle::Row;
use tidings_schemas::time::Instant;
use tidings_sinks::log::{Log, LogError, TopicPartition};

use super::clock::Clock;
use super::crew::{Crew, Ground, Manned, Next, Part, Post, Threads, ToRead, WakerSlot, hear};
use super::crumbs::{Careful, Crumbs, Last};
use super::egress::{Egress, PresentError, Say, Spoken, present};
use super::keeper::{Keep, Keeper, Kept, Merger};
use super::plan::Plan;
use super::recovery::{Start, StartError, start};
use super::sources::{self, SourcesError};
use super::watch::{Pulses, Watched};
use crate::checkpoint::{CheckpointError, Checkpoints, Manifest};
use crate::cutlog::{CutBody, CutLog, CutLogError, End, Entry, Hash, MarkAt, Named, SkipAt};

/// Epochs that may be open at once: released, and not yet finished. A slow log or worker lengthens
/// epochs instead of adding to them.
const OPEN_MAX: u64 = 2;

/// Finished epochs that may wait to be said. Beyond it no cut is made: the log keeps the input.
const UNSAID_MAX: u64 = 256;

/// Deltas that may wait for the keeper. Beyond it no cut is made, so that a slow disk lengthens epochs
/// and holds nobody up in the middle of one.
const UNKEPT_MAX: usize = 64;

/// What the keeper is told beside deltas, and deltas of epochs that are open when it is full.
const KEEP_BESIDE: usize = 16;

/// What may wait for egress: epochs, and marks, of which one follows each time that something was said.
const SAY_MAX: usize = 2 * UNSAID_MAX as usize;

/// How long the coordinator waits for room before it looks again: nobody tells it.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(50);

/// How long the coordinator waits for something that it cannot go on without, before it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Marks are written this often.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// Stream time may run ahead of monotonic time by this much; a larger step must agree with the log's
/// own time.
const STEP_MAX: Duration = Duration::from_secs(1);

/// How far the log's time and the wall clock may differ when a step is checked.
const AGREE_WITHIN: Duration = Duration::from_secs(60);

/// How long a graceful stop waits for what was decided to be said and kept.
const STOP_MAX: Duration = Duration::from_secs(30);

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
    /// Whom it waits for before it can begin; empty if for nobody.
    pub waits: Mutex<String>,
    /// The steps of the generation that runs.
    pub pulses: Pulses,
}

impl Status {
    pub(crate) fn wait_for(&self, whom: &str) {
        whom.clone_into(&mut self.waits.lock().unwrap_or_else(PoisonError::into_inner));
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
                around.status.ready.store(false, Ordering::Relaxed);
                tracing::warn!(why, "the generation is over; the next one begins once all processes are there");
                if around.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                // Whether it died of a call, only a death of this process can tell.
                care.alone = careful;
            }
            Err(DecideError::SetAside(killed)) => {
                around.status.ready.store(false, Ordering::Relaxed);
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
    poll_fn(|_| crew.pause()).await;
    let counted = cutlog.counted()?;
    poll_fn(|_| crew.pause()).await;
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

/// A cut on its way into the log.
enum Logged {
    Cut(u64, u64),
    Checkpoint(Named),
    Skip,
    Failed(CutLogError),
}

/// An epoch that is cut, and not yet released.
struct Held {
    epoch: u64,
    now: Instant,
    ends: BTreeMap<Lot, u64>,
}

struct Epoch {
    output: EpochOutput,
    ends: BTreeMap<Lot, u64>,
    workers: usize,
}

/// One generation under way.
struct Generation<'a> {
    plan: &'a Plan,
    around: &'a Surroundings,
    hashes: (Hash, Hash),
    commands: Vec<Sender<Command>>,
    wakers: Vec<WakerSlot>,
    reports: Receiver<Report>,
    entries: Option<Sender<Entry>>,
    logged: Receiver<Logged>,
    say: Option<Sender<Say>>,
    spoken: Receiver<Spoken>,
    keep: Option<Sender<Keep>>,
    kept: Receiver<Kept>,
    /// Let go before the crew: its threads end in their own time.
    _watched: Watched,
    /// The last field that listens to the channels above: they are closed when it is dropped.
    crew: Box<dyn Crew>,
    pulse: Pulse,
    start: Start,

    /// How far the feeds have come, as totals since the workers started.
    ahead: BTreeMap<Lot, Extent>,
    /// What the cuts of this generation have taken of those totals.
    cut: BTreeMap<Lot, Extent>,
    /// Where each partition was cut.
    ends: BTreeMap<Lot, u64>,
    last: u64,
    now: Instant,
    /// Clock's elapsed time when the last cut was made.
    cut_at: Duration,
    /// What waits for its cut to be durable.
    unlogged: Option<Held>,
    open: BTreeMap<u64, Epoch>,
    finished: u64,
    digest: Option<(u64, u64)>,
    /// Epochs are replayed: what one says is compared before it is handed over.
    replaying: bool,
    uncompared: Option<EpochOutput>,
    /// Where each partition, and time, stood at the end of the last finished epoch.
    finished_ends: BTreeMap<Lot, u64>,
    finished_now: Instant,
    said_through: u64,
    next_timer: Option<Instant>,
    marked_at: Duration,
    marked: u64,
    /// Marks that no cut names yet.
    new_marks: Vec<MarkAt>,
    marks: BTreeMap<(String, u32), u64>,
    checkpoint_at: Duration,
    /// Epoch of the checkpoint that is being written.
    writing: Option<u64>,
    /// Written, and waiting to be said and logged.
    written: Option<(Named, Manifest)>,
    logging: Option<(Named, Manifest)>,
    /// Whether what kills may be left out, and what did and is being logged.
    may_set_aside: bool,
    killed: Option<Box<Killed>>,
    /// What whole processes died of, and who hears of calls while epochs are replayed with care.
    condemned: Option<Box<Killed>>,
    careful: Option<Careful>,
    /// Whether anything changed since the last checkpoint.
    changed: bool,
    /// How many checkpoints of this generation counted.
    checkpoints: u64,
    generation_log: u64,
}

impl<'a> Generation<'a> {
    /// Loads state onto workers and starts every part.
    fn begin(
        plan: &'a Plan,
        around: &'a Surroundings,
        mut crew: Box<dyn Crew>,
        cutlog: CutLog,
        mut start: Start,
    ) -> Result<Self, DecideError> {
        sources::check(&*around.log, plan, &start)?;
        let topology = around.checkpoints.put_blob(&plan.topology)?;
        let calendar = around.checkpoints.put_blob(plan.rules.calendar.bytes())?;
        let generation = cutlog.generation();
        around.status.generations.fetch_add(1, Ordering::Relaxed);
        let manifest = start.checkpoint.as_ref().map(|(_, manifest)| manifest.clone()).unwrap_or_default();
        let last = start.last;
        let present = present(&*around.log, &plan.outlets, &start.marks, start.said_through, last)?;

        let (report, reports) = bounded(1024);
        let wakers: Vec<WakerSlot> = (0..plan.workers).map(|_| Arc::default()).collect();
        let mut lots: Vec<Vec<ToRead>> = (0..plan.workers).map(|_| Vec::new()).collect();
        let mut ends = BTreeMap::new();
        let mut place = 0;
        for (number, source) in plan.sources.iter().enumerate() {
            for partition in 0..source.partitions {
                let lot = Lot { source: u16::try_from(number).unwrap_or(u16::MAX), partition };
                let at = TopicPartition { topic: source.topic.as_str().into(), partition };
                let stood = manifest.ends.get(&source.id).and_then(|ends| ends.get(&partition)).copied();
                let from = match stood {
                    Some(end) => end,
                    None => around.log.range(&at)?.start,
                };
                // Side inputs before all: a start waits for them while events fill the read-ahead.
                let rank = if source.side_input { 0 } else { source.rank.saturating_add(1) };
                let at_least_permille = source.at_least_permille;
                lots[place % plan.workers].push(ToRead { lot, at, from, rank, at_least_permille });
                ends.insert(lot, from);
                place += 1;
            }
        }
        // Cuts of this very topology upon this state: what it lacks was dropped by whoever made them.
        let again = start.cuts.first().is_some_and(|cut| cut.topology == topology);
        let may_drop = if again { MayDrop::Again } else { MayDrop::Named(around.may_drop.clone()) };
        let mut commands = Vec::new();
        let mut posts = Vec::new();
        for (number, lots) in lots.into_iter().enumerate() {
            let (command, inbox) = command_channel();
            commands.push(command);
            let (reports, waker) = (report.clone(), Arc::clone(&wakers[number]));
            posts.push(Post { number, lots, commands: inbox, reports, waker });
        }
        drop(report);
        let state = start.checkpoint.is_some().then_some((&start.state, manifest.rules));
        let (log, wiring, peers, transport) = (&around.log, &plan.wiring, plan.workers, plan.transport);
        let ground = Ground { generation, log, wiring, peers, state, may_drop: &may_drop, transport };
        let Manned { pulses: workers, dropped } = crew.man(posts, &ground)?;
        start.state.clear();
        for (operator, DropCount { entries, parked }) in dropped {
            tracing::warn!(%operator, entries, parked, "state is dropped; what was parked in it is recorded as lost");
        }
        let pulse = Pulse::default();
        let pulses = [("the coordinator".to_owned(), pulse.clone())].into_iter().chain(workers);

        let (entries, inbox) = bounded(8);
        let (outbox, logged) = bounded(8);
        let scribe = Scribe { cutlog, entry: None, inbox, outbox };
        crew.part("cut-log", Box::new(scribe)).map_err(DecideError::Worker)?;
        let (say, inbox) = bounded(SAY_MAX);
        let (outbox, spoken) = bounded(SAY_MAX);
        let egress = Egress {
            log: Arc::clone(&around.log),
            outlets: plan.outlets.clone(),
            generation,
            present,
            inbox,
            outbox,
            written: Default::default(),
            doing: None,
        };
        crew.part("egress", Box::new(egress)).map_err(DecideError::Worker)?;
        let (keep, inbox) = bounded(UNKEPT_MAX + KEEP_BESIDE);
        let (outbox, kept) = bounded(KEEP_BESIDE);
        let (merger, merges) = bounded(1);
        let (of_merger, merged) = bounded(1);
        let keeper = Keeper {
            checkpoints: around.checkpoints.clone(),
            generation,
            chunks: manifest.chunks.clone(),
            pending: Default::default(),
            inbox,
            outbox,
            merger,
            merged,
            merging: false,
        };
        crew.part("keeper", Box::new(keeper)).map_err(DecideError::Worker)?;
        let merger = Merger { checkpoints: around.checkpoints.clone(), generation, inbox: merges, outbox: of_merger };
        crew.part("merger", Box::new(merger)).map_err(DecideError::Worker)?;

        let elapsed = around.clock.elapsed();
        let epoch = manifest.epoch;
        Ok(Self {
            plan,
            around,
            hashes: (topology, calendar),
            commands,
            wakers,
            reports,
            entries: Some(entries),
            logged,
            say: Some(say),
            spoken,
            keep: Some(keep),
            kept,
            _watched: around.status.pulses.watch(pulses),
            crew,
            pulse,
            ahead: BTreeMap::new(),
            cut: BTreeMap::new(),
            ends: ends.clone(),
            last: epoch,
            now: manifest.now,
            cut_at: elapsed,
            unlogged: None,
            open: BTreeMap::new(),
            finished: epoch,
            digest: None,
            uncompared: None,
            replaying: false,
            finished_ends: ends,
            finished_now: manifest.now,
            said_through: start.said_through.max(epoch),
            next_timer: None,
            marked_at: elapsed,
            marked: start.said_through,
            new_marks: Vec::new(),
            marks: start.marks.clone(),
            checkpoint_at: elapsed,
            writing: None,
            written: None,
            logging: None,
            may_set_aside: true,
            killed: None,
            condemned: None,
            careful: None,
            changed: false,
            checkpoints: 0,
            generation_log: generation,
            start,
        })
    }

    fn with(mut self, care: Care) -> Self {
        (self.may_set_aside, self.condemned) = (care.may_set_aside, care.condemned);
        self
    }

    /// Replays, reads side inputs to their end, and then runs until it is told to stop; with `drain`
    /// only until a checkpoint stands at the end of the log.
    /// Says whether it ended because another process wants to leave.
    async fn run(mut self, drain: bool) -> Result<bool, DecideError> {
        self.leave_condemned_out().await?;
        self.replay().await?;
        if !drain {
            self.load_side_inputs().await?;
        }
        self.checkpoint_now().await?;
        if drain {
            self.stop().await?;
            return Ok(false);
        }
        self.around.status.ready.store(true, Ordering::Relaxed);
        while !self.around.stop.load(Ordering::Relaxed) && !self.crew.is_left() {
            if self.may_cut() && self.should_cut() {
                let now = self.stream_time()?;
                self.cut(now, |_| true);
            }
            self.wait(self.until_next()).await?;
            self.periodic();
        }
        self.around.status.ready.store(false, Ordering::Relaxed);
        let is_left = self.crew.is_left();
        self.stop().await?;
        Ok(is_left)
    }

    /// What two processes died of is left out, if it is still to come. Does not return then.
    async fn leave_condemned_out(&mut self) -> Result<(), DecideError> {
        let Some(killed) = self.condemned.take() else { return Ok(()) };
        let known = self.start.skips.get(&killed.epoch).is_some_and(|skips| skips.contains(&killed.skip));
        if known || !self.start.cuts.iter().any(|cut| cut.epoch == killed.epoch) {
            return Ok(());
        }
        self.on_killed(killed)?;
        loop {
            self.wait(LOOK_AGAIN).await?;
        }
    }

    /// Whether nothing of an epoch was said by anybody: then what it does may kill.
    fn may_kill(&self, epoch: u64) -> bool {
        epoch > self.said_through && !self.start.digests.contains_key(&epoch)
    }

    /// Recovery's steps 4 to 6: the logged cuts again, compared before anything of them is said.
    async fn replay(&mut self) -> Result<(), DecideError> {
        self.replaying = true;
        let cuts = std::mem::take(&mut self.start.cuts);
        if let Some(last) = cuts.last() {
            tracing::info!(from = cuts[0].epoch, to = last.epoch, generation = self.generation_log, "replaying");
        }
        for cut in cuts {
            let mut expected = BTreeMap::new();
            for (number, source) in self.plan.sources.iter().enumerate() {
                for (partition, end) in cut.ends.get(&source.id).into_iter().flatten() {
                    let lot = Lot { source: u16::try_from(number).unwrap_or(u16::MAX), partition: *partition };
                    expected.insert(lot, Extent { end: end.end, records: end.records, checksum: end.checksum });
                }
            }
            while !self.has_room() {
                self.wait(LOOK_FOR_ROOM).await?;
            }
            self.last = cut.epoch;
            self.now = cut.now;
            self.take(&expected);
            if self.careful.is_none()
                && self.may_kill(cut.epoch)
                && let Some(crumbs) = &self.around.crumbs
            {
                self.careful = crumbs.careful().inspect_err(|error| tracing::warn!(%error, "no crumbs")).ok();
            }
            let ends = expected.iter().map(|(lot, extent)| (*lot, extent.end)).collect();
            self.release(Held { epoch: cut.epoch, now: cut.now, ends });
            while self.finished < cut.epoch {
                self.wait(LOOK_AGAIN).await?;
            }
            self.careful.iter().for_each(Careful::passed);
            let Some(output) = self.uncompared.take() else { continue };
            compare(&output, &expected, self.start.digests.get(&cut.epoch).copied())?;
            self.around.status.replayed.fetch_add(1, Ordering::Relaxed);
            // What was said is said to nobody.
            if cut.epoch > self.said_through {
                self.hand_over(output);
            }
        }
        self.replaying = false;
        self.careful = None;
        if let Some(crumbs) = &self.around.crumbs {
            crumbs.clear();
        }
        Ok(())
    }

    /// Recovery's step 7: side inputs alone, up to where they ended when this began. Stream time
    /// stands still, so that nothing new falls due meanwhile.
    async fn load_side_inputs(&mut self) -> Result<(), DecideError> {
        if self.last == 0 {
            self.now = self.around.clock.wall();
        }
        let mut marks = BTreeMap::new();
        for (number, source) in self.plan.sources.iter().enumerate().filter(|(_, source)| source.side_input) {
            for partition in 0..source.partitions {
                let at = TopicPartition { topic: source.topic.as_str().into(), partition };
                let lot = Lot { source: u16::try_from(number).unwrap_or(u16::MAX), partition };
                marks.insert(lot, self.around.log.range(&at)?.end);
            }
        }
        let short = |this: &Self| marks.iter().any(|(lot, mark)| this.ends.get(lot).copied().unwrap_or(0) < *mark);
        while short(self) {
            let grown = |this: &Self| marks.keys().any(|lot| this.grown(*lot));
            while !(self.may_cut() && grown(self)) {
                self.wait(LOOK_AGAIN).await?;
            }
            let now = self.now;
            self.cut(now, |lot| marks.contains_key(&lot));
        }
        while self.finished < self.last {
            self.wait(LOOK_AGAIN).await?;
        }
        Ok(())
    }

    /// Writes a checkpoint of all that was decided, and waits until it counts.
    async fn checkpoint_now(&mut self) -> Result<(), DecideError> {
        if self.last == 0 {
            return Ok(());
        }
        while self.finished < self.last || self.said_through < self.last {
            self.wait(LOOK_AGAIN).await?;
            self.periodic();
        }
        while self.busy_with_checkpoint() {
            self.wait(LOOK_AGAIN).await?;
            self.periodic();
        }
        if self.start.checkpoint.as_ref().is_some_and(|(_, manifest)| manifest.epoch == self.last) {
            return Ok(());
        }
        let failures = self.around.status.checkpoint_failures.load(Ordering::Relaxed);
        self.write_checkpoint();
        while self.busy_with_checkpoint() {
            self.wait(LOOK_AGAIN).await?;
            self.log_checkpoint();
            if self.around.status.checkpoint_failures.load(Ordering::Relaxed) > failures {
                return Err(DecideError::Worker("a checkpoint is needed here and could not be written".to_owned()));
            }
        }
        Ok(())
    }

    const fn busy_with_checkpoint(&self) -> bool {
        self.writing.is_some() || self.written.is_some() || self.logging.is_some()
    }

    /// Whether the partition has come further than its last cut.
    fn grown(&self, lot: Lot) -> bool {
        let end = self.ends.get(&lot).copied().unwrap_or(0);
        self.ahead.get(&lot).is_some_and(|ahead| ahead.end > end)
    }

    fn may_cut(&self) -> bool {
        self.unlogged.is_none() && self.last - self.finished < OPEN_MAX && self.has_room()
    }

    /// Whether what an epoch says and changes can be handed over without waiting.
    fn has_room(&self) -> bool {
        self.finished.saturating_sub(self.said_through) < UNSAID_MAX
            && self.keep.as_ref().is_none_or(|keep| keep.len() < UNKEPT_MAX)
    }

    fn should_cut(&self) -> bool {
        let since = self.around.clock.real(self.around.clock.elapsed().saturating_sub(self.cut_at));
        if since < self.plan.epoch_min {
            return false;
        }
        let due = self.next_timer.is_some_and(|at| at <= self.around.clock.wall().max(self.now));
        since >= self.plan.idle_max || due || self.ahead.keys().any(|lot| self.grown(*lot))
    }

    /// How long nothing needs to be done if nothing happens.
    fn until_next(&self) -> Duration {
        let since = self.around.clock.real(self.around.clock.elapsed().saturating_sub(self.cut_at));
        let short = self.plan.epoch_min.saturating_sub(since);
        if !self.may_cut() {
            return LOOK_FOR_ROOM;
        }
        if self.ahead.keys().any(|lot| self.grown(*lot)) {
            return short;
        }
        let due = self.next_timer.map(|at| self.around.clock.real(at.since(self.around.clock.wall())));
        let idle = self.plan.idle_max.saturating_sub(since);
        due.map_or(idle, |due| due.min(idle)).max(short)
    }

    /// The next stream time: the wall clock, never going back, never far ahead of monotonic time.
    fn stream_time(&self) -> Result<Instant, DecideError> {
        let wall = self.around.clock.wall();
        let elapsed = self.around.clock.elapsed().saturating_sub(self.cut_at);
        if wall <= self.now.after(elapsed + STEP_MAX) {
            return Ok(wall.max(self.now));
        }
        match self.around.log.time() {
            Ok(log) if wall.since(log) <= AGREE_WITHIN && log.since(wall) <= AGREE_WITHIN => Ok(wall),
            Ok(log) => Err(DecideError::Clock { last: self.now, wall, log }),
            // A log without a time of its own can't disagree; say that nobody checked.
            Err(LogError::Refused(why)) => {
                tracing::warn!(%wall, last = %self.now, %why, "the clock stepped, and the log has no time to compare with");
                Ok(wall)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Step 2: cuts at the reported positions of the partitions that `which` admits. The epoch is held until its cut
    /// is durable: whatever a worker does, and dies of, can be replayed.
    fn cut(&mut self, now: Instant, which: impl Fn(Lot) -> bool) {
        let mut extents = BTreeMap::new();
        for (lot, ahead) in self.ahead.iter().filter(|(lot, _)| which(**lot) && self.grown(**lot)) {
            let taken = self.cut.get(lot).copied().unwrap_or_default();
            let records = ahead.records - taken.records;
            let checksum = ahead.checksum.wrapping_sub(taken.checksum);
            extents.insert(*lot, Extent { end: ahead.end, records, checksum });
        }
        self.last += 1;
        self.now = now;
        self.cut_at = self.around.clock.elapsed();
        let mut ends: BTreeMap<String, BTreeMap<u32, End>> = BTreeMap::new();
        for (lot, Extent { end, records, checksum }) in &extents {
            let source = &self.plan.sources[usize::from(lot.source)];
            let end = End { end: *end, records: *records, checksum: *checksum };
            ends.entry(source.id.clone()).or_default().insert(lot.partition, end);
            self.around.status.records.fetch_add(*records, Ordering::Relaxed);
        }
        self.take(&extents);
        let cut = CutBody {
            epoch: self.last,
            now,
            ends,
            topology: self.hashes.0,
            calendar: self.hashes.1,
            build: self.plan.build,
            said_through: self.said_through,
            marks: std::mem::take(&mut self.new_marks),
            finished: self.digest,
        };
        self.send_entry(Entry::Cut { generation: self.generation_log, cut });
        let ends = extents.iter().map(|(lot, extent)| (*lot, extent.end)).collect();
        self.unlogged = Some(Held { epoch: self.last, now, ends });
        if deliberate::has(Bug::SaidBeforeTheCut) {
            self.release_held();
        }
        self.around.status.epoch.store(self.last, Ordering::Relaxed);
    }

    /// Notes what a cut takes.
    fn take(&mut self, extents: &BTreeMap<Lot, Extent>) {
        for (lot, extent) in extents {
            let taken = self.cut.entry(*lot).or_default();
            taken.records += extent.records;
            taken.checksum = taken.checksum.wrapping_add(extent.checksum);
            self.ends.insert(*lot, extent.end);
        }
    }

    fn release_held(&mut self) {
        if let Some(held) = self.unlogged.take() {
            self.release(held);
        }
    }

    fn release(&mut self, Held { epoch, now, ends }: Held) {
        let output = EpochOutput { epoch, now, ..EpochOutput::default() };
        self.open.insert(epoch, Epoch { output, ends: ends.clone(), workers: 0 });
        let crumbs = self.careful.as_ref().map(Careful::watch);
        let skips = self.start.skips.get(&epoch).map(|skips| skips.as_slice().into()).unwrap_or_default();
        let cut = Arc::new(Cut { epoch, now, rules: Arc::clone(&self.plan.rules), ends, skips, crumbs });
        for (command, waker) in self.commands.iter().zip(&self.wakers) {
            let _ = command.send(Command::Release(Arc::clone(&cut)));
            if let Some(waker) = waker.get() {
                waker();
            }
        }
    }

    fn send_entry(&self, entry: Entry) {
        if let Some(entries) = &self.entries {
            let _ = entries.send(entry);
        }
    }

    /// Waits for whatever comes first, at most `span`, and takes everything that is there.
    async fn wait(&mut self, span: Duration) -> Result<(), DecideError> {
        self.pulse.beat();
        poll_fn(|_| {
            let mut channels = Select::new();
            channels.recv(&self.reports);
            channels.recv(&self.logged);
            channels.recv(&self.spoken);
            channels.recv(&self.kept);
            self.crew.wait(&mut channels, span)
        })
        .await;
        if let Some(why) = self.crew.lost() {
            return Err(DecideError::Lost { why, careful: self.careful.is_some() });
        }
        while let Some(report) = heard(&self.reports, "the workers")? {
            self.on_report(report)?;
        }
        while let Some(logged) = heard(&self.logged, "the cut log's writer")? {
            self.on_logged(logged)?;
        }
        while let Some(spoken) = heard(&self.spoken, "the outputs' writer")? {
            self.on_spoken(spoken)?;
        }
        while let Some(kept) = heard(&self.kept, "the keeper")? {
            self.on_kept(kept);
        }
        Ok(())
    }

    fn on_report(&mut self, report: Report) -> Result<(), DecideError> {
        match report {
            Report::Ready(worker, waker) => {
                // Feeds may have been filled, and cuts sent, before the worker could be woken. It is put
                // in place first: whoever fills a feed from here on wakes it.
                let _ = self.wakers[worker].set(Arc::clone(&waker));
                waker();
            }
            Report::Ahead(_, ahead) => self.ahead.extend(ahead),
            Report::Done(_, output) => self.on_done(*output),
            Report::Killed(_, killed) => self.on_killed(killed)?,
            Report::Failed(worker, problem) => {
                return Err(DecideError::Worker(format!("worker {worker}: {problem}")));
            }
        }
        Ok(())
    }

    /// A call killed its operator: it is logged that it is left out, behind its epoch's cut, of which
    /// nothing can have been said. Then this generation ends, and the next one runs the epoch without it.
    fn on_killed(&mut self, killed: Box<Killed>) -> Result<(), DecideError> {
        let epoch = killed.epoch;
        let why = if !self.may_kill(epoch) {
            Some("an earlier run decided that epoch with it: start the build that did, on a machine that is sound")
        } else if !self.may_set_aside {
            Some(
                "too many died of theirs within the last hour: mend what kills (`it killed` says where), or start \
                 again to set further ones aside",
            )
        } else {
            None
        };
        if let Some(why) = why {
            let (what, problem) = (described(&killed, self.plan), killed.skip.problem);
            return Err(DecideError::Killed { what, epoch, why, problem });
        }
        // Of two that died the first is enough: the other dies again.
        if self.killed.is_none() {
            let skip = SkipAt { epoch, skip: killed.skip.clone() };
            self.send_entry(Entry::Skip { generation: self.generation_log, skip });
            self.killed = Some(killed);
        }
        Ok(())
    }

    /// Step 3: a worker has finished an epoch.
    fn on_done(&mut self, output: EpochOutput) {
        let epoch = output.epoch;
        let Some(open) = self.open.get_mut(&epoch) else { return };
        open.output.join(output);
        open.workers += 1;
        if open.workers < self.plan.workers {
            return;
        }
        let Some(Epoch { mut output, ends, .. }) = self.open.remove(&epoch) else { return };
        output.canonical();
        self.finished = epoch;
        self.finished_now = output.now;
        self.finished_ends.extend(ends);
        self.next_timer = output.next_timer;
        self.digest = Some((epoch, output.digest));
        let delta = std::mem::take(&mut output.delta);
        self.changed |= !delta.is_empty();
        if let Some(keep) = &self.keep {
            let _ = keep.send(Keep::Delta(delta));
        }
        if self.replaying {
            self.uncompared = Some(output);
        } else {
            self.hand_over(output);
        }
    }

    /// Step 4: hands egress what an epoch says. Its cut is durable, otherwise nothing would have run.
    fn hand_over(&self, output: EpochOutput) {
        if let Some(observer) = &self.around.observer {
            observer.rows(&output.rows.decode());
        }
        if let Some(say) = &self.say {
            let _ = say.send(Say::Epoch(Box::new(output)));
        }
    }

    fn on_logged(&mut self, logged: Logged) -> Result<(), DecideError> {
        match logged {
            Logged::Cut(epoch, offset) => {
                self.start.offsets.insert(epoch, offset);
                self.release_held();
            }
            Logged::Checkpoint(named) => self.on_checkpoint(named),
            Logged::Skip => {
                if let Some(killed) = self.killed.take() {
                    return Err(DecideError::SetAside(killed));
                }
            }
            Logged::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn on_spoken(&mut self, spoken: Spoken) -> Result<(), DecideError> {
        match spoken {
            Spoken::Through(epoch) => {
                self.said_through = self.said_through.max(epoch);
                self.around.status.said_through.store(self.said_through, Ordering::Relaxed);
            }
            Spoken::Marked(marks) => {
                for mark in &marks {
                    self.marks.insert((mark.topic.clone(), mark.partition), mark.offset);
                }
                self.new_marks.extend(marks);
            }
            Spoken::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Steps 5 and 6, when they are due.
    fn periodic(&mut self) {
        let elapsed = self.around.clock.elapsed();
        let since = |at: Duration| self.around.clock.real(elapsed.saturating_sub(at));
        if since(self.marked_at) >= MARK_EVERY && self.said_through > self.marked {
            (self.marked_at, self.marked) = (elapsed, self.said_through);
            if let Some(say) = &self.say {
                let _ = say.send(Say::Mark(self.said_through));
            }
        }
        let due = since(self.checkpoint_at) >= self.plan.checkpoint_every;
        if due && self.changed && !self.busy_with_checkpoint() {
            self.write_checkpoint();
        }
        self.log_checkpoint();
    }

    /// Step 6, first half: the keeper writes what it has.
    fn write_checkpoint(&mut self) {
        self.checkpoint_at = self.around.clock.elapsed();
        self.changed = false;
        let mut ends: BTreeMap<String, BTreeMap<u32, u64>> = BTreeMap::new();
        for (lot, end) in &self.finished_ends {
            let source = self.plan.sources[usize::from(lot.source)].id.clone();
            ends.entry(source).or_default().insert(lot.partition, *end);
        }
        let manifest = Manifest {
            epoch: self.finished,
            now: self.finished_now,
            ends,
            topology: self.hashes.0,
            calendar: self.hashes.1,
            rules: self.plan.rules.hash,
            marks: self.marks.clone(),
            chunks: Vec::new(),
        };
        self.writing = Some(self.finished);
        if let Some(keep) = &self.keep {
            let _ = keep.send(Keep::Write(Box::new(manifest)));
        }
    }

    fn on_kept(&mut self, kept: Kept) {
        self.writing = None;
        match kept {
            Kept::Written(name, manifest) => {
                self.written = Some((Named { name, epoch: manifest.epoch }, *manifest));
                self.log_checkpoint();
            }
            Kept::Failed(error) => {
                tracing::error!(%error, "a checkpoint could not be written; the replay grows until one can");
                self.around.status.checkpoint_failures.fetch_add(1, Ordering::Relaxed);
                self.changed = true;
            }
        }
    }

    /// Step 6, second half: it counts once all of it was said.
    fn log_checkpoint(&mut self) {
        let said = |epoch| epoch <= self.said_through || deliberate::has(Bug::CheckpointBeforeSaid);
        let due = |(named, _): &(Named, Manifest)| said(named.epoch);
        if self.logging.is_none() && self.written.as_ref().is_some_and(due) {
            let Some((named, manifest)) = self.written.take() else { return };
            let (name, epoch) = (named.name.clone(), named.epoch);
            self.logging = Some((named, manifest));
            self.send_entry(Entry::Checkpoint { generation: self.generation_log, name, epoch });
        }
    }

    fn on_checkpoint(&mut self, named: Named) {
        let Some(newest) = self.logging.take().filter(|(logging, _)| *logging == named) else { return };
        self.around.status.checkpoint.store(named.epoch, Ordering::Relaxed);
        let second = self.start.checkpoint.replace(newest);
        let third = std::mem::replace(&mut self.start.second, second);
        let kept: Vec<_> =
            [&self.start.checkpoint, &self.start.second].into_iter().flatten().map(|(_, kept)| kept.clone()).collect();
        if let (Some((name, manifest)), Some(keep)) = (third, &self.keep) {
            let _ = keep.send(Keep::Delete(name.name, Box::new(manifest), kept));
        }
        // Once both are this generation's, what earlier ones left is older, but for an epoch or two that they
        // ran ahead of the log: so it is looked for again, less and less often.
        self.checkpoints += 1;
        if self.checkpoints > 1
            && self.checkpoints.is_power_of_two()
            && let (Some(newest), Some(second), Some(keep)) = (&self.start.checkpoint, &self.start.second, &self.keep)
        {
            let of = |(named, manifest): &(Named, Manifest)| (named.name.clone(), manifest.clone());
            let _ = keep.send(Keep::Sweep(vec![of(newest), of(second)]));
        }
        // Cuts up to the second-newest checkpoint's epoch are not needed by anybody any more. By epoch,
        // never by place: a checkpoint's own place says nothing.
        let newest = deliberate::has(Bug::DeletedBelowTheNewest);
        if let Some((second, _)) = if newest { &self.start.checkpoint } else { &self.start.second } {
            let keep = self.start.offsets.split_off(&(second.epoch + 1));
            let trimmed = std::mem::replace(&mut self.start.offsets, keep);
            if let Some((_, last)) = trimmed.last_key_value() {
                self.send_trim(*last + 1);
            }
        }
    }

    fn send_trim(&self, before: u64) {
        let cuts = TopicPartition { topic: self.plan.outlets.topics.cuts().into(), partition: 0 };
        if let Err(error) = self.around.log.trim(&cuts, before) {
            tracing::warn!(%error, "the cut log could not be trimmed; it is longer than it needs to be");
        }
    }

    /// Ends gracefully: what is open finishes, is said and kept.
    async fn stop(mut self) -> Result<(), DecideError> {
        let began = self.around.clock.elapsed();
        // In real time: a clock that runs faster makes no disk faster.
        let in_time = |this: &Self| {
            let clock = &this.around.clock;
            clock.real(clock.elapsed().saturating_sub(began)) < STOP_MAX
        };
        while (self.finished < self.last || self.unlogged.is_some() || self.said_through < self.last) && in_time(&self)
        {
            self.wait(Duration::from_millis(50)).await?;
        }
        if self.said_through >= self.last && in_time(&self) {
            self.checkpoint_now().await?;
        }
        for (command, waker) in self.commands.iter().zip(&self.wakers) {
            let _ = command.send(Command::Stop);
            if let Some(waker) = waker.get() {
                waker();
            }
        }
        (self.entries, self.say, self.keep) = (None, None, None);
        self.commands.clear();
        Ok(())
    }
}

impl Drop for Generation<'_> {
    /// Wakes every worker, so that it hears that nobody commands it any more. One that was never heard of says
    /// that it is ready before it looks for commands: either its word is here, or it finds out by itself.
    fn drop(&mut self) {
        self.commands.clear();
        for report in self.reports.try_iter() {
            if let Report::Ready(_, waker) = report {
                waker();
            }
        }
    }
}

/// Recovery's step 5: what a replayed epoch read and said must be what the log says of it.
fn compare(output: &EpochOutput, expected: &BTreeMap<Lot, Extent>, digest: Option<u64>) -> Result<(), DecideError> {
    let mismatch = |problem: String| DecideError::Mismatch { epoch: output.epoch, problem };
    for (lot, expected) in expected {
        let read = output.read.get(lot).copied().unwrap_or_default();
        if read != *expected {
            return Err(mismatch(format!(
                "source {} partition {} has {} records with checksum {:016x} up to offset {}, the cut says {} with {:016x}: \
                 records were given up (retention, compaction) or changed",
                lot.source,
                lot.partition,
                read.records,
                read.checksum,
                expected.end,
                expected.records,
                expected.checksum
            )));
        }
    }
    let said = output.digest;
    match digest {
        Some(digest) if digest != said => {
            Err(mismatch(format!("it says {said:016x}, the first run said {digest:016x}")))
        }
        _ => Ok(()),
    }
}

/// Commands are few: at most the open epochs and a stop.
pub(crate) fn command_channel() -> (Sender<Command>, Receiver<Command>) {
    bounded(usize::try_from(OPEN_MAX).unwrap_or(2) + 2)
}

/// Appends to the cut log, one entry at a time.
struct Scribe {
    cutlog: CutLog,
    /// The entry that is under way.
    entry: Option<Entry>,
    inbox: Receiver<Entry>,
    outbox: Sender<Logged>,
}

impl Part for Scribe {
    fn step(&mut self, patience: Duration) -> Next {
        let entry = match self.entry.take().map_or_else(|| hear(&self.inbox, patience), Ok) {
            Ok(entry) => entry,
            Err(next) => return next,
        };
        let logged = match (self.cutlog.attempt(&entry), &entry) {
            (Ok(None), _) => {
                self.entry = Some(entry);
                return Next::Again;
            }
            (Ok(Some(offset)), Entry::Cut { cut, .. }) => Logged::Cut(cut.epoch, offset),
            (Ok(Some(_)), Entry::Checkpoint { name, epoch, .. }) => {
                Logged::Checkpoint(Named { name: name.clone(), epoch: *epoch })
            }
            (Ok(Some(_)), Entry::Skip { .. }) => Logged::Skip,
            (Ok(Some(_)), Entry::Begin { .. }) => return Next::Again,
            (Err(error), _) => Logged::Failed(error),
        };
        let failed = matches!(logged, Logged::Failed(_));
        if self.outbox.send(logged).is_err() || failed { Next::Ended } else { Next::Again }
    }
}

/// The next message, if there is one; `who` sends them.
fn heard<T>(inbox: &Receiver<T>, who: &str) -> Result<Option<T>, DecideError> {
    match hear(inbox, Duration::ZERO) {
        Ok(message) => Ok(Some(message)),
        Err(Next::Ended) => Err(DecideError::Worker(format!("{who} ended"))),
        Err(_) => Ok(None),
    }
}
