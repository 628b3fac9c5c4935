//! One seed, from its options to the verdict: who moves next, what goes wrong, and when it is over.
//!
//! First the faults strike while the hours of the workload pass (safety). Then they stop, what stood
//! still goes on, and everything must be decided, said and kept (liveness).

mod by_hand;
mod trouble;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use object_store::memory::InMemory;
use tidings_operators::harness::dataflow::Transport;
use tidings_operators::rules::Rules;
use tidings_operators::script;
use tidings_pipeline::checkpoint::Checkpoints;
use tidings_pipeline::cutlog::{self, CutLogError, Entry};
use tidings_pipeline::runtime::coordinator::{DecideError, Status, Surroundings, decide};
use tidings_pipeline::runtime::crew::Crew;
use tidings_pipeline::runtime::egress::Outlets;
use tidings_pipeline::runtime::plan::{Plan, SourcePlan};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::time::Instant;
use tidings_schemas::topics::{RetryClass, RetryDelay, Topics};
use tidings_sinks::log::{Log, Retention, TopicPartition, TopicSpec};

use crate::checks::{self, Broken};
use crate::choices::Rng;
use crate::clock::Time;
use crate::crew::{Actor, SimulatedCrew, Stage};
use crate::critical::CriticalPath;
use crate::deliver::Deliver;
use crate::log::{CUTS, Fate, Life, Nature, ProcessLog, World};
use crate::options::Options;
use crate::record::Record;
use crate::store::ProcessStore;
use crate::workload::{ADDRESSES, Batch, EVENTS, PROFILES, RETURNED, START, batches};

/// Steps in a row in which nothing became durable and nobody could wait for time to pass: the longest replay of what
/// is drawn, with slow parts, takes a tenth of them. What turns in a circle and writes nothing is found by it.
const STILL_MAX: u64 = 400_000;

/// Cuts in a row that took nothing, while nothing was said and nothing came in. What wakes again and again for nothing
/// is found by it, long before the world's last hour: where epochs are short, that is tens of millions of steps away.
/// Timers that end in silence make such cuts too, a few for each record that ever came: of three hundred seeds none had
/// more than 207 of them in a row, and each run of many seeds says the most that it met.
const IDLE_CUTS_MAX: u64 = 10_000;

/// How long after the world's last hour decide may take to stop, once it looks up from its longest wait: the
/// supervisor's longest pause, a replay and the last checkpoint, some times over. What turns in a circle and writes is
/// found by it.
const STOPPED_WITHIN: Duration = Duration::from_secs(2 * 3_600);

/// No world comes near: it only ends what neither of the others sees.
const STEPS_MAX: u64 = 50_000_000;

/// A process that ends within this time has the supervisor wait longer before it starts the next one.
const SHORT_LIFE: Duration = Duration::from_secs(600);

/// Partitions of rows.
const LIFECYCLE_PARTITIONS: u32 = 2;

/// How often, in a million, a step of the world is a record writer's life.
const RECORD_STEPS: u64 = 1_000;

/// How often, in a million, a step of the world is deliver's while it has something to do.
const DELIVER_STEPS: u64 = 50_000;

/// The longest that deliver goes on by itself while decide has something to do too.
const DELIVER_SPAN_MAX: Duration = Duration::from_millis(20);

/// How often, in a million, a slow actor lets its turn pass.
const SLOW: u64 = 970_000;

/// How long everything that is left may take in the end: the longest retry, some times over.
const DELIVERED_WITHIN: Duration = Duration::from_secs(6 * 3_600);

/// How long the world goes on after the last batch, so that nights and windows end.
const AFTERWARDS: Duration = Duration::from_secs(26 * 3_600);

/// What a run came to.
pub struct Outcome {
    /// What was drawn.
    pub options: Options,
    /// The promise that was broken.
    pub broken: Option<Broken>,
    /// What happened, if it was asked for.
    pub trace: Vec<String>,
    /// Steps that were made.
    pub steps: u64,
    /// Durable writes: appends and puts.
    pub writes: u64,
    /// Epochs that count.
    pub epochs: usize,
    /// Lane records that were said.
    pub said: usize,
    /// Generations that began.
    pub generations: usize,
    /// Most cuts in a row that took nothing, while nothing was said and nothing came in.
    pub idle_cuts: u64,
    /// What went wrong, how often.
    pub struck: BTreeMap<&'static str, u64>,
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, bug: Option<Bug>, with_trace: bool) -> Outcome {
    run_with(Options::draw(seed), BTreeMap::new(), bug, with_trace)
}

/// Runs with these options; `script` says how the writes of these numbers go, whatever the seed says.
#[must_use]
pub fn run_with(options: Options, script: BTreeMap<u64, Fate>, bug: Option<Bug>, with_trace: bool) -> Outcome {
    put(bug);
    let mut simulation = Simulation::new(options, with_trace);
    simulation.world.nature().script = script;
    let broken = simulation.live().and_then(|()| {
        put(None);
        checks::all(&simulation)
    });
    put(None);
    simulation.processes.clear();
    let epochs = simulation.counted().map_or(0, |counted| counted.cuts.len());
    let nature = simulation.world.nature();
    Outcome {
        options: simulation.options.clone(),
        broken: broken.err(),
        trace: nature.trace.clone().unwrap_or_default(),
        steps: simulation.steps,
        writes: nature.writes,
        epochs,
        said: nature.history.iter().filter(|(at, _)| is_lane(&at.topic)).map(|(_, records)| records.len()).sum(),
        generations: nature.begun.len(),
        idle_cuts: nature.idle_cuts_most,
        struck: nature.struck.clone(),
    }
}

#[cfg(feature = "deliberate-bugs")]
pub(crate) fn put(bug: Option<Bug>) {
    deliberate::put(bug);
}

#[cfg(not(feature = "deliberate-bugs"))]
pub(crate) fn put(bug: Option<Bug>) {
    // A build without them has none to put in; `main` refuses to be asked.
    debug_assert!(bug.is_none_or(|bug| !deliberate::has(bug)));
}

/// Whether a topic is a lane.
#[must_use]
pub fn is_lane(topic: &str) -> bool {
    let topics = Topics::default();
    Channel::ALL.iter().any(|channel| Priority::ALL.iter().any(|priority| topics.lane(*channel, *priority) == topic))
}

/// A run under way.
pub struct Simulation {
    /// What was drawn.
    pub options: Options,
    /// What outlives processes.
    pub world: Arc<World>,
    /// Policies.
    pub rules: Arc<Rules>,
    store: Arc<InMemory>,
    runtime: Arc<tokio::runtime::Runtime>,
    batches: std::vec::IntoIter<Batch>,
    next_batch: Option<Batch>,
    processes: Vec<Process>,
    born: u64,
    /// When the supervisor starts the next process.
    start_at: Duration,
    /// The epoch of the checkpoint that rotted last.
    damaged: u64,
    /// Processes in a row whose life was short.
    failed: u32,
    steps: u64,
    /// Durable writes, and the step at which there was last a new one or time was let pass.
    wrote: u64,
    moved_at: u64,
    healed: bool,
    end: Instant,
    /// The last process was told to stop.
    stopping: Option<u64>,
    /// And has.
    done: bool,
    critical: CriticalPath,
    /// What comes behind the lanes.
    pub deliver: Deliver,
    /// Where rows end up.
    pub record: Record,
}

type Ended = Result<(), DecideError>;

/// A process: one run of the stage.
struct Process {
    life: Arc<Life>,
    run: Option<Pin<Box<dyn Future<Output = Ended>>>>,
    stage: Rc<RefCell<Stage>>,
    stop: Arc<AtomicBool>,
    status: Arc<Status>,
    /// It stands still until then.
    frozen_until: Duration,
    /// One of its actors stands still until then.
    stalled: Option<(Actor, Duration)>,
    /// Which kinds of its actors are slow, a bit each.
    slow: u64,
    started: Duration,
    /// Another one was started in its place.
    replaced: bool,
}

impl Simulation {
    fn new(options: Options, with_trace: bool) -> Self {
        let start: Instant = START.parse().unwrap_or_default();
        let time = Time::new(start);
        let nature = Nature {
            rng: Rng::new(options.seed),
            faults: options.faults,
            left: options.faults_max,
            struck: BTreeMap::new(),
            trace: with_trace.then(Vec::new),
            history: BTreeMap::new(),
            late: Default::default(),
            hidden: Default::default(),
            begun: BTreeMap::new(),
            writes: 0,
            script: BTreeMap::new(),
            eager: false,
            frozen: None,
            touched: 0,
            failed_at: None,
            idle_cuts: 0,
            idle_cuts_most: 0,
            plain: false,
            observed: 0,
            content: 0,
            wide: false,
            counted: 0,
        };
        let spec = |(name, partitions): (String, u32)| TopicSpec {
            name,
            partitions,
            retention: Retention::Forever,
            replication: 1,
            min_insync: 1,
        };
        let partitions = topics(&options);
        let topics: Vec<_> = partitions.iter().cloned().map(spec).collect();
        let profiles = (0..options.profile_partitions).map(|partition| at(PROFILES, partition));
        let side_inputs = profiles.chain([at(ADDRESSES, 0)]).collect();
        let world = World::new(time, nature, &topics, side_inputs).expect("the simulated log takes any topic");
        let mut batches = batches(&options).into_iter();
        let next_batch = batches.next();
        let hours = Duration::from_secs(options.hours * 3_600);
        let rules = Arc::new(script::rules_of(&script::policies(), options.spread));
        let deliver = Deliver::new(&world, &options, &partitions);
        Self {
            critical: CriticalPath::new(&rules, &partitions),
            record: Record::new(&world, &deliver.outside, LIFECYCLE_PARTITIONS),
            deliver,
            rules,
            world,
            store: Arc::new(InMemory::new()),
            runtime: Arc::new(tokio::runtime::Builder::new_current_thread().build().expect("a runtime of one thread")),
            batches,
            next_batch,
            processes: Vec::new(),
            born: 0,
            start_at: Duration::ZERO,
            damaged: 0,
            failed: 0,
            steps: 0,
            wrote: 0,
            moved_at: 0,
            healed: false,
            stopping: None,
            done: false,
            end: start.after(hours).after(AFTERWARDS),
            options,
        }
    }

    /// Sources, by number: topic, partitions, whether they are side inputs.
    #[must_use]
    pub fn sources(&self) -> [(&'static str, u32, bool); 4] {
        let Options { event_partitions, profile_partitions, .. } = self.options;
        [
            (EVENTS, event_partitions, false),
            (RETURNED, 1, false),
            (PROFILES, profile_partitions, true),
            (ADDRESSES, 1, true),
        ]
    }

    /// What the cut log says, of all that was ever written to it.
    ///
    /// # Errors
    /// When it does not make sense.
    pub fn counted(&self) -> Result<cutlog::Counted, CutLogError> {
        cutlog::read(self.entries(), false)
    }

    /// All entries of the cut log, given up or not.
    #[must_use]
    pub fn entries(&self) -> Vec<(u64, Entry)> {
        let nature = self.world.nature();
        let records = nature.history.get(&at(CUTS, 0)).map(Vec::as_slice).unwrap_or_default();
        let entry = |record: &tidings_sinks::log::Record| {
            let bytes = record.value.as_deref().unwrap_or_default();
            Some((record.offset, Entry::decode(record.offset, bytes).ok()?))
        };
        records.iter().filter_map(entry).collect()
    }

    fn plan(&self, workers: usize) -> Plan {
        let source = |(number, (topic, partitions, side_input)): (usize, &(&str, u32, bool))| SourcePlan {
            id: script::sources()[number].id.to_string(),
            topic: (*topic).to_owned(),
            partitions: *partitions,
            rank: 0,
            at_least_permille: 0,
            side_input: *side_input,
        };
        let partitions = topics(&self.options).into_iter().collect();
        Plan {
            wiring: self.options.wiring(),
            sources: self.sources().iter().enumerate().map(source).collect(),
            rules: Arc::clone(&self.rules),
            topology: format!("{:?}", self.options.operators).into_bytes().into(),
            build: [7; 32],
            outlets: Outlets { topics: Topics::default(), partitions },
            workers,
            transport: Transport::Memory,
            epoch_min: self.options.epoch_min,
            idle_max: self.options.idle_max,
            checkpoint_every: self.options.checkpoint_every,
        }
    }

    /// Starts the next process; says its number.
    pub(crate) fn start(&mut self) -> u64 {
        let life = Life::new(self.born);
        let number = self.born;
        self.born += 1;
        let workers = self.world.nature().rng.between(1, self.options.workers_max);
        let plan = self.plan(usize::try_from(workers).unwrap_or(1));
        let log: Arc<dyn Log> = Arc::new(ProcessLog { world: Arc::clone(&self.world), life: Arc::clone(&life) });
        life.came(self.world.range(&at(CUTS, 0)).map_or(0, |range| range.end));
        let store =
            ProcessStore { inner: Arc::clone(&self.store), world: Arc::clone(&self.world), life: Arc::clone(&life) };
        let (stop, status) = (Arc::new(AtomicBool::new(false)), Arc::new(Status::default()));
        let around = Surroundings {
            crumbs: None,
            may_drop: Default::default(),
            log,
            checkpoints: Checkpoints::on(Arc::new(store), Arc::clone(&self.runtime)),
            clock: Arc::<Time>::clone(&self.world.time),
            stop: Arc::clone(&stop),
            status: Arc::clone(&status),
            observer: None,
            older: Arc::new(|_, _| Err("a seed has one topology".to_owned())),
            accept_divergence: false,
        };
        let stage = Stage::new(Arc::clone(&self.world));
        let hired = (Rc::clone(&stage), Arc::clone(&life));
        let run = async move {
            let hire = || -> Box<dyn Crew> {
                Box::new(SimulatedCrew { stage: Rc::clone(&hired.0), life: Arc::clone(&hired.1) })
            };
            decide(&plan, &around, hire).await
        };
        // Half of the processes have slow parts, each its own: what is rarely late is never found.
        let slow = {
            let rng = &mut self.world.nature().rng;
            if rng.chance(500_000) { rng.next() & rng.next() } else { 0 }
        };
        self.world.trace(|| format!("p{} starts with {workers} workers", life.number));
        for process in &mut self.processes {
            process.replaced = true;
        }
        self.processes.push(Process {
            life,
            run: Some(Box::pin(run)),
            stage,
            stop,
            status,
            frozen_until: Duration::ZERO,
            stalled: None,
            slow,
            started: self.world.time.elapsed(),
            replaced: false,
        });
        number
    }

    fn now(&self) -> Duration {
        self.world.time.elapsed()
    }

    /// Lives until all is done.
    fn live(&mut self) -> Result<(), Broken> {
        let mut idle = 0;
        while !self.done {
            self.steps += 1;
            self.goes_on()?;
            let pace = self.world.nature().rng.below(400);
            self.world.time.pass(Duration::from_micros(pace));
            self.feed();
            if self.options.deliver.runs {
                self.critical.step(&self.world, &self.deliver.outside);
                self.deliver.supervise();
                // Of so many steps one is deliver's, while it has something to do.
                if self.deliver.wants() && self.world.nature().rng.chance(DELIVER_STEPS) {
                    self.deliver_for(DELIVER_SPAN_MAX)?;
                }
                if self.world.nature().rng.chance(RECORD_STEPS) {
                    self.record.step()?;
                }
            }
            let frozen = self.world.nature().frozen.take();
            if let Some(place) = self.processes.iter().position(|process| Some(process.life.number) == frozen) {
                self.freeze(place, Duration::from_millis(300));
            }
            if !self.healed {
                self.trouble();
            }
            self.supervise();
            if !self.healed && self.next_batch.is_none() && self.world.time.truth() > self.quiet_at() {
                self.heal();
            }
            self.finish();
            let now = self.now();
            let awake: Vec<usize> =
                (0..self.processes.len()).filter(|place| self.processes[*place].frozen_until <= now).collect();
            if awake.is_empty() {
                self.skip()?;
                continue;
            }
            let place = *self.world.nature().rng.one(&awake);
            let actors = self.processes[place].stage.borrow().actors();
            let actor = *self.world.nature().rng.one(&actors);
            if self.processes[place].slow >> actor.kind() & 1 == 1 && self.world.nature().rng.chance(SLOW) {
                continue;
            }
            let progress = self.step(place, actor)?;
            idle = if progress { 0 } else { idle + 1 };
            if idle > 2 * actors.len() {
                idle = 0;
                self.world.nature().eager = true;
                let moved = self.sweep(false)? || self.sweep(true)?;
                self.world.nature().eager = false;
                if !moved && !self.done {
                    self.skip()?;
                }
            }
        }
        self.deliver_all()
    }

    /// Whether it comes to something: what is slow is not stuck.
    fn goes_on(&mut self) -> Result<(), Broken> {
        let (writes, idle_cuts) = {
            let nature = self.world.nature();
            (nature.writes, nature.idle_cuts)
        };
        if writes != self.wrote {
            (self.wrote, self.moved_at) = (writes, self.steps);
        }
        let late = || self.world.time.truth() > self.end.after(self.options.idle_max + STOPPED_WITHIN);
        if self.steps - self.moved_at > STILL_MAX {
            return Err(self.stuck(&format!("{STILL_MAX} steps came to nothing")));
        }
        if idle_cuts > IDLE_CUTS_MAX {
            return Err(self.stuck(&format!("{IDLE_CUTS_MAX} cuts in a row took nothing and said nothing")));
        }
        // Time is looked at now and then: what is late stays so.
        if self.steps > STEPS_MAX || self.steps.is_multiple_of(1_000) && late() {
            return Err(self.stuck("it goes on for ever"));
        }
        Ok(())
    }

    /// Lets deliver go on for a while, at most so long.
    fn deliver_for(&mut self, at_most: Duration) -> Result<(), Broken> {
        if !self.healed {
            self.deliver.trouble();
        }
        let span = *self.world.nature().rng.one(&[0, 0, 1, 7, 90, 1_000, 20_000]);
        self.deliver.step(Duration::from_millis(span).min(at_most))
    }

    /// Nothing is decided any more; what was said is delivered.
    fn deliver_all(&mut self) -> Result<(), Broken> {
        let until = self.now() + DELIVERED_WITHIN;
        while self.options.deliver.runs && self.deliver.is_open() {
            self.critical.step(&self.world, &self.deliver.outside);
            self.deliver.supervise();
            if self.now() > until {
                return Err(self.broken("liveness", format!("deliver goes on for ever: {}", self.deliver.describe())));
            }
            self.world.time.pass(Duration::from_millis(1));
            self.deliver_for(DELIVERED_WITHIN)?;
        }
        self.deliver.end();
        while self.options.deliver.runs && self.record.is_open() {
            if self.now() > until {
                return Err(self.broken("liveness", "the record's writer goes on for ever".to_owned()));
            }
            self.world.time.pass(Duration::from_secs(1));
            self.record.step()?;
        }
        Ok(())
    }

    /// When faults stop: a while after the last batch.
    fn quiet_at(&self) -> Instant {
        let start: Instant = START.parse().unwrap_or_default();
        start.after(Duration::from_secs(self.options.hours * 3_600 + 3 * 3_600))
    }

    /// Steps everything once, what is slow only where nothing else moves; says whether anything moved.
    fn sweep(&mut self, slow_too: bool) -> Result<bool, Broken> {
        let mut moved = false;
        let mut place = 0;
        while place < self.processes.len() {
            if self.processes[place].frozen_until <= self.now() {
                let before = self.processes.len();
                let actors = self.processes[place].stage.borrow().actors();
                for actor in actors {
                    if !slow_too && self.processes[place].slow >> actor.kind() & 1 == 1 {
                        continue;
                    }
                    moved |= self.step(place, actor)?;
                    if self.processes.len() != before {
                        return Ok(true);
                    }
                }
            }
            place += 1;
        }
        Ok(moved)
    }

    /// Steps one actor of one process; says whether it did anything.
    fn step(&mut self, place: usize, actor: Actor) -> Result<bool, Broken> {
        let now = self.now();
        let process = &mut self.processes[place];
        match process.stalled {
            Some((stalled, until)) if stalled == actor && until > now => return Ok(false),
            Some((_, until)) if until <= now => process.stalled = None,
            _ => {}
        }
        let mut moved = false;
        if actor == Actor::Coordinator {
            if let Some(run) = &mut process.run {
                let before = process.stage.borrow().woken();
                let polled = run.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                moved = process.stage.borrow().woken() != before;
                if let Poll::Ready(ended) = polled {
                    moved = true;
                    process.run = None;
                    self.judge(place, ended)?;
                }
            }
        } else if actor_exists(&process.stage.borrow(), actor) {
            moved = process.stage.borrow_mut().step(actor);
        }
        let process = &self.processes[place];
        let over = process.life.is_over() || (process.run.is_none() && process.stage.borrow().has_ended());
        if over {
            let process = self.processes.remove(place);
            if process.life.is_over() {
                self.world.trace(|| format!("p{} is dead", process.life.number));
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Whether a run may end like this.
    fn judge(&mut self, place: usize, ended: Ended) -> Result<(), Broken> {
        let process = &self.processes[place];
        let number = process.life.number;
        let words = match &ended {
            Ok(()) => "well".to_owned(),
            Err(error) => error.to_string(),
        };
        self.world.trace(|| format!("p{number} ends: {words}"));
        self.failed = if self.now() > process.started + SHORT_LIFE { 0 } else { self.failed + 1 };
        let Err(error) = ended else {
            self.done = self.stopping == Some(number);
            return Ok(());
        };
        let generation = process.life.generation();
        let later = self.world.nature().begun.keys().next_back().copied();
        let superseded = generation.is_some_and(|mine| later.is_some_and(|later| later > mine));
        // A starter that another one supersedes may find anything; the dead say nothing.
        if process.life.is_over() || superseded {
            return Ok(());
        }
        // A script's faults know no end.
        let excused = !self.healed || self.disturbed(&["script"]);
        match &error {
            // An older generation's record, or a late one of its own, took the place: whoever does not
            // stand where it expects ends, though it be the newest.
            DecideError::CutLog(CutLogError::Superseded(_))
                if self.born > 1 || self.disturbed(&["late append", "lost acknowledgement", "script"]) =>
            {
                Ok(())
            }
            DecideError::CutLog(CutLogError::Log(error))
            | DecideError::Log(error)
            | DecideError::Lanes(tidings_pipeline::runtime::egress::PresentError::Log(error))
            | DecideError::Start(tidings_pipeline::runtime::recovery::StartError::CutLog(CutLogError::Log(error)))
                if error.is_transient() && excused =>
            {
                Ok(())
            }
            DecideError::Store(error) if error.is_ambiguous() && excused => Ok(()),
            DecideError::Worker(words) if words.contains("checkpoint is needed here") && excused => Ok(()),
            DecideError::Clock { .. } if self.disturbed(&["clock jump"]) && excused => Ok(()),
            DecideError::Mismatch { .. } => Err(self.broken("identical_output", error.to_string())),
            _ => Err(self.broken("liveness", format!("p{number} cannot go on: {error}"))),
        }
    }

    /// Whether one of these faults ever struck.
    #[must_use]
    pub fn disturbed(&self, faults: &[&str]) -> bool {
        let nature = self.world.nature();
        faults.iter().any(|fault| nature.struck.contains_key(fault))
    }

    /// The broken promise.
    #[must_use]
    pub fn broken(&self, promise: &'static str, what: String) -> Broken {
        Broken { promise, what }
    }

    fn stuck(&self, what: &str) -> Broken {
        let processes: Vec<String> = self.processes.iter().map(ToString::to_string).collect();
        let truth = self.world.time.truth();
        self.broken("liveness", format!("{what}, at {truth}: {}", processes.join("; ")))
    }

    /// Producers and users, when it is time.
    fn feed(&mut self) {
        while let Some(batch) = self.next_batch.take_if(|batch| batch.at <= self.world.time.truth()) {
            self.next_batch = self.batches.next();
            self.world.trace(|| format!("{} records come in", batch.records.len()));
            self.world.append(&batch.records).expect("the simulated log has the sources");
        }
    }

    /// Keeps one process running that nobody replaced.
    fn supervise(&mut self) {
        let runs = self.processes.iter().any(|process| !process.replaced && process.run.is_some());
        if runs || self.now() < self.start_at {
            return;
        }
        if self.processes.len() >= self.options.alive_max.max(1) && !self.healed {
            // One more would be one too many: the oldest is killed, as a supervisor does.
            self.processes.remove(0).life.end();
        }
        self.start();
        // A supervisor waits longer each time, up to ten minutes, until one runs.
        let longest = 5_000 << self.failed.min(7);
        let pause = self.world.nature().rng.below(longest);
        self.start_at = self.now() + Duration::from_millis(pause);
    }

    /// Nothing can be done now: time passes until something can.
    fn skip(&mut self) -> Result<(), Broken> {
        let now = self.now();
        self.moved_at = self.steps;
        let of_process = |process: &Process| {
            let frozen = (process.frozen_until > now).then_some(process.frozen_until);
            let stalled = process.stalled.map(|(_, until)| until).filter(|until| *until > now);
            let own = if frozen.is_some() { None } else { process.stage.borrow().next() };
            [frozen, stalled, own].into_iter().flatten().min()
        };
        let start: Instant = START.parse().unwrap_or_default();
        let batch = self.next_batch.as_ref().map(|batch| batch.at.since(start));
        let alone = self.processes.iter().all(|process| process.replaced || process.run.is_none());
        let starts = (alone && self.start_at > now).then_some(self.start_at);
        let next = self.processes.iter().filter_map(of_process).chain(batch).chain(starts).filter(|at| *at > now).min();
        let next = next.into_iter().chain(self.deliver.next_event().filter(|_| self.options.deliver.runs)).min();
        if self.options.deliver.runs && self.deliver.wants() {
            return self.deliver_for(next.map_or(DELIVER_SPAN_MAX, |at| at - now));
        }
        match next {
            Some(at) => {
                self.world.time.pass(at - now);
                Ok(())
            }
            None if alone => Ok(()),
            None => Err(self.stuck("nothing will ever happen again")),
        }
    }

    /// Tells the last process to stop once nothing is left to be waited for.
    fn finish(&mut self) {
        let told = |process: &Process| Some(process.life.number) == self.stopping && !process.replaced;
        if self.processes.iter().any(told) || !self.healed || self.world.time.truth() < self.end {
            return;
        }
        let last = self.processes.iter().find(|process| !process.replaced && process.run.is_some());
        if let Some(last) = last.filter(|last| last.status.ready.load(Ordering::Relaxed)) {
            self.stopping = Some(last.life.number);
            last.stop.store(true, Ordering::Relaxed);
            self.world.trace(|| format!("p{} is told to stop", last.life.number));
        }
    }
}

fn actor_exists(stage: &Stage, actor: Actor) -> bool {
    stage.actors().contains(&actor)
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status { epoch, said_through, .. } = &*self.status;
        let (epoch, said) = (epoch.load(Ordering::Relaxed), said_through.load(Ordering::Relaxed));
        write!(f, "p{} at epoch {epoch}, said through {said}", self.life.number)
    }
}

/// A partition of a topic.
#[must_use]
pub fn at(topic: &str, partition: u32) -> TopicPartition {
    TopicPartition { topic: topic.into(), partition }
}

fn topics(options: &Options) -> Vec<(String, u32)> {
    let topics = Topics::default();
    let mut all = vec![
        (EVENTS.to_owned(), options.event_partitions),
        (RETURNED.to_owned(), 1),
        (PROFILES.to_owned(), options.profile_partitions),
        (ADDRESSES.to_owned(), 1),
    ];
    for channel in Channel::ALL {
        for priority in Priority::ALL {
            all.push((topics.lane(*channel, *priority), options.lane_partitions));
        }
    }
    for channel in Channel::ALL {
        for class in RetryClass::ALL {
            all.extend(RetryDelay::ALL.map(|delay| (topics.retry(*channel, class, delay), 1)));
        }
    }
    all.extend(Priority::ALL.iter().map(|priority| (topics.events(*priority), 1)));
    all.extend([(topics.dlq(), 1), (topics.lifecycle(), LIFECYCLE_PARTITIONS), (topics.cuts(), 1)]);
    all
}
