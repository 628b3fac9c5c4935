//! One generation: its parts, what it hears of them, and how it ends.

mod checkpoints;
mod cuts;
mod replay;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, Select, Sender, bounded};
use tidings_operators::harness::aside::Killed;
use tidings_operators::harness::dataflow::{Command, Report};
use tidings_operators::harness::dropped::{DropCount, MayDrop};
use tidings_operators::harness::feed::{Extent, Lot};
use tidings_operators::harness::output::EpochOutput;
use tidings_operators::harness::pulse::Pulse;
use tidings_schemas::time::Instant;
use tidings_sinks::log::TopicPartition;

use crate::checkpoint::Manifest;
use crate::cutlog::{CutLog, Entry, Hash, MarkAt, Named};
use crate::runtime::crew::{Crew, Ground, Manned, Next, Post, ToRead, WakerSlot, hear};
use crate::runtime::crumbs::Careful;
use crate::runtime::egress::{Egress, Say, Spoken, present};
use crate::runtime::keeper::{Keep, Keeper, Kept, Merger};
use crate::runtime::plan::Plan;
use crate::runtime::recovery::Start;
use crate::runtime::sources;
use crate::runtime::watch::Watched;

pub(crate) use self::cuts::command_channel;

use self::cuts::{UNKEPT_MAX, UNSAID_MAX, Unsaid};
use super::scribe::{Logged, Scribe};
use super::{Care, DecideError, Surroundings};

/// What the keeper is told beside deltas, and deltas of epochs that are open when it is full.
const KEEP_BESIDE: usize = 16;

/// What may wait for egress: epochs, and marks, of which one follows each time that something was said.
const SAY_MAX: usize = 2 * UNSAID_MAX as usize;

/// How long the coordinator waits for something that it cannot go on without, before it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long a graceful stop waits for what was decided to be said and kept.
const STOP_MAX: Duration = Duration::from_secs(30);

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
pub(super) struct Generation<'a> {
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
    /// Whether too much waits to be said, and to be kept.
    full: (bool, bool),
    digest: Option<(u64, u64)>,
    /// Epochs are replayed: what one says is compared before it is handed over.
    replaying: bool,
    uncompared: Option<EpochOutput>,
    /// Where each partition, and time, stood at the end of the last finished epoch.
    finished_ends: BTreeMap<Lot, u64>,
    finished_now: Instant,
    said_through: u64,
    unsaid: Unsaid,
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
    pub(super) fn begin(
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
        crew.hands().part("cut-log", Box::new(scribe)).map_err(DecideError::Worker)?;
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
        crew.hands().part("egress", Box::new(egress)).map_err(DecideError::Worker)?;
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
        crew.hands().part("keeper", Box::new(keeper)).map_err(DecideError::Worker)?;
        let merger = Merger { checkpoints: around.checkpoints.clone(), generation, inbox: merges, outbox: of_merger };
        crew.hands().part("merger", Box::new(merger)).map_err(DecideError::Worker)?;

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
            full: (false, false),
            digest: None,
            uncompared: None,
            replaying: false,
            finished_ends: ends,
            finished_now: manifest.now,
            said_through: start.said_through.max(epoch),
            unsaid: Unsaid::default(),
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

    pub(super) fn with(mut self, care: Care) -> Self {
        (self.may_set_aside, self.condemned) = (care.may_set_aside, care.condemned);
        self
    }

    /// Replays, reads side inputs to their end, and then runs until it is told to stop; with `drain`
    /// only until a checkpoint stands at the end of the log.
    /// Says whether it ended because another process wants to leave.
    pub(super) async fn run(mut self, drain: bool) -> Result<bool, DecideError> {
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
        self.around.status.set_ready(true);
        while !self.around.stop.load(Ordering::Relaxed) && !self.crew.is_left() {
            if self.may_cut() && self.should_cut() {
                let now = self.stream_time()?;
                self.cut(now, |_| true);
            }
            self.wait(self.until_next()).await?;
            self.count_waits();
            self.periodic();
        }
        self.around.status.set_ready(false);
        let is_left = self.crew.is_left();
        self.stop().await?;
        Ok(is_left)
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
            self.crew.hands().wait(&mut channels, span)
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
                self.unsaid.said_through(self.said_through);
                self.around.status.set_said_through(self.said_through);
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

    fn send_entry(&self, entry: Entry) {
        if let Some(entries) = &self.entries {
            let _ = entries.send(entry);
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

/// The next message, if there is one; `who` sends them.
fn heard<T>(inbox: &Receiver<T>, who: &str) -> Result<Option<T>, DecideError> {
    match hear(inbox, Duration::ZERO) {
        Ok(message) => Ok(Some(message)),
        Err(Next::Ended) => Err(DecideError::Worker(format!("{who} ended"))),
        Err(_) => Ok(None),
    }
}
