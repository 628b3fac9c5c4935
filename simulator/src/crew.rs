//! What a simulated generation runs on: its parts and workers, each stepped when the world says so.
//!
//! The cluster has as many intakes and chains as workers. Blocks travel between them one by one, in
//! any order but each sender's own; an epoch is complete at a chain when every intake has released it
//! and nothing of it is under way. That is what timely promises, and all that the engine relies on.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crossbeam_channel::Select;
use tidings_operators::harness::chain::Block;
use tidings_operators::harness::dataflow::{Report, Transport, WorkerIo};
use tidings_operators::harness::feed::{Feed, RawRecord};
use tidings_operators::harness::worker::{Epochs, Intake, Step};
use tidings_operators::ingest::Source;
use tidings_pipeline::runtime::crew::{Crew, Hands, Next, Part, WakerSlot};
use tidings_sinks::log::{Log, LogError, Reader, Record, TopicPartition};

use crate::log::{Life, World};

/// Reports that may wait for the coordinator before workers are not stepped any more: production's
/// channel would block them there.
const REPORTS_MAX: usize = 500;

struct SteppedPart {
    part: Box<dyn Part>,
    not_before: Duration,
    ended: bool,
}

/// One worker.
struct Worker {
    intake: Option<Intake>,
    epochs: Epochs,
    /// The highest epoch that its intake has released.
    released: u64,
    /// Blocks on their way to this worker's chain, by sender.
    wires: Vec<VecDeque<(u64, Block)>>,
    reports: crossbeam_channel::Sender<Report>,
}

/// One generation's parts.
pub struct Stage {
    world: Arc<World>,
    parts: Vec<SteppedPart>,
    workers: Vec<Worker>,
    /// Until when the coordinator waits, while it does.
    waits: Option<Duration>,
    /// It stands still between two steps of recovery.
    paused: bool,
    /// How often the coordinator was let go on.
    woken: u64,
    /// Something moved since then: there may be a message for it.
    moved: bool,
}

/// Something that can be stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The coordinator.
    Coordinator,
    /// A part: cut log, egress, keeper.
    Part(usize),
    /// A worker's side before the exchange.
    Intake(usize),
    /// The exchange, at one worker.
    Wire(usize),
    /// A worker's side behind the exchange.
    Chain(usize),
}

impl Actor {
    /// Its kind: parts are one each, workers' sides are alike.
    #[must_use]
    pub const fn kind(self) -> usize {
        match self {
            Self::Coordinator => 0,
            Self::Intake(_) => 1,
            Self::Wire(_) => 2,
            Self::Chain(_) => 3,
            Self::Part(place) => 4 + place,
        }
    }
}

impl Stage {
    /// A stage on which nothing runs yet.
    #[must_use]
    pub fn new(world: Arc<World>) -> Rc<RefCell<Self>> {
        let (parts, workers) = (Vec::new(), Vec::new());
        Rc::new(RefCell::new(Self { world, parts, workers, waits: None, paused: false, woken: 0, moved: false }))
    }

    /// Everything that can be stepped.
    #[must_use]
    pub fn actors(&self) -> Vec<Actor> {
        let mut actors = vec![Actor::Coordinator];
        actors.extend((0..self.parts.len()).map(Actor::Part));
        for worker in 0..self.workers.len() {
            actors.extend([Actor::Intake(worker), Actor::Wire(worker), Actor::Chain(worker)]);
        }
        actors
    }

    /// How often the coordinator was let go on.
    #[must_use]
    pub const fn woken(&self) -> u64 {
        self.woken
    }

    /// Whether every part has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.parts.iter().all(|part| part.ended)
    }

    /// The next instant at which anything here wants to go on by itself.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        let now = self.world.time.elapsed();
        let parts = self.parts.iter().filter(|part| !part.ended).map(|part| part.not_before);
        parts.chain(self.waits).filter(|at| *at > now).min()
    }

    /// Steps anything but the coordinator; says whether it did anything.
    pub fn step(&mut self, actor: Actor) -> bool {
        let moved = match actor {
            Actor::Coordinator => false,
            Actor::Part(place) => self.step_part(place),
            Actor::Intake(place) => self.step_intake(place),
            Actor::Wire(place) => self.deliver(place),
            Actor::Chain(place) => self.run_epoch(place),
        };
        self.moved |= moved;
        moved
    }

    fn step_part(&mut self, place: usize) -> bool {
        let now = self.world.time.elapsed();
        let part = &mut self.parts[place];
        if part.ended || part.not_before > now {
            return false;
        }
        match part.part.step(Duration::ZERO) {
            Next::Again => true,
            Next::Idle => false,
            Next::Later(pause) => {
                part.not_before = now + pause;
                true
            }
            Next::Ended => {
                part.ended = true;
                true
            }
        }
    }

    fn step_intake(&mut self, place: usize) -> bool {
        let worker = &mut self.workers[place];
        if worker.reports.len() > REPORTS_MAX {
            return false;
        }
        let reports = worker.reports.len();
        let Some(intake) = worker.intake.as_mut() else { return false };
        match intake.step() {
            Step::Idle => worker.reports.len() != reports,
            Step::Again => true,
            Step::Release(released, blocks) => {
                let epoch = released.epoch();
                worker.released = epoch;
                worker.epochs.begin(released);
                for block in blocks {
                    let target = usize::try_from(block.target).unwrap_or(0);
                    self.workers[target].wires[place].push_back((epoch, block));
                }
                true
            }
            Step::Stop => {
                worker.intake = None;
                true
            }
        }
    }

    /// One block arrives, of any sender.
    fn deliver(&mut self, place: usize) -> bool {
        let worker = &mut self.workers[place];
        let senders: Vec<usize> = (0..worker.wires.len()).filter(|from| !worker.wires[*from].is_empty()).collect();
        if senders.is_empty() {
            return false;
        }
        let from = *self.world.nature().rng.one(&senders);
        let Some((epoch, block)) = worker.wires[from].pop_front() else { return false };
        worker.epochs.take(epoch, &mut vec![block]);
        true
    }

    fn run_epoch(&mut self, place: usize) -> bool {
        let released = self.workers.iter().map(|worker| worker.released).min().unwrap_or(0);
        let worker = &mut self.workers[place];
        if worker.reports.len() > REPORTS_MAX {
            return false;
        }
        let under_way = worker.wires.iter().filter_map(|wire| wire.front()).map(|(epoch, _)| *epoch).min();
        worker.epochs.step(|epoch| epoch <= released && under_way.is_none_or(|open| open > epoch))
    }

    /// Whether the coordinator may go on.
    fn wait(&mut self, span: Duration) -> Poll<()> {
        let now = self.world.time.elapsed();
        let until = *self.waits.get_or_insert(now + span);
        if std::mem::take(&mut self.moved) || until <= now {
            self.waits = None;
            self.woken += 1;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// The hold that one generation has on its stage.
pub struct SimulatedCrew {
    /// The stage.
    pub stage: Rc<RefCell<Stage>>,
    /// The process.
    pub life: Arc<Life>,
}

impl Crew for SimulatedCrew {
    fn hands(&mut self) -> &mut dyn Hands {
        self
    }
}

impl Hands for SimulatedCrew {
    fn feed(
        &mut self,
        log: &Arc<dyn Log>,
        partition: TopicPartition,
        from: u64,
        _: WakerSlot,
    ) -> Result<Box<dyn Feed>, LogError> {
        let reader = log.reader(&partition, from)?;
        let world = Arc::clone(&self.stage.borrow().world);
        Ok(Box::new(SimulatedFeed { world, reader, position: from }))
    }

    fn workers(
        &mut self,
        workers: Vec<WorkerIo>,
        _: &[WakerSlot],
        sources: Vec<Source>,
        _: Transport,
    ) -> Result<(), String> {
        let peers = workers.len();
        let sources: Arc<[Source]> = sources.into();
        let worker = |(index, io): (usize, WorkerIo)| {
            let WorkerIo { chain, assigned, commands, reports } = io;
            Worker {
                intake: Some(Intake::new(index, peers, Arc::clone(&sources), assigned, commands, reports.clone())),
                epochs: Epochs::new(index, chain, reports.clone()),
                released: 0,
                wires: (0..peers).map(|_| VecDeque::new()).collect(),
                reports,
            }
        };
        self.stage.borrow_mut().workers = workers.into_iter().enumerate().map(worker).collect();
        Ok(())
    }

    fn part(&mut self, _: &str, part: Box<dyn Part>) -> Result<(), String> {
        self.stage.borrow_mut().parts.push(SteppedPart { part, not_before: Duration::ZERO, ended: false });
        Ok(())
    }

    fn wait(&mut self, _: &mut Select<'_>, span: Duration) -> Poll<()> {
        // Asking the channels would give the processor away.
        self.stage.borrow_mut().wait(span)
    }

    fn pause(&mut self) -> Poll<()> {
        let mut stage = self.stage.borrow_mut();
        stage.paused = !stage.paused;
        stage.woken += 1;
        if stage.paused { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Drop for SimulatedCrew {
    fn drop(&mut self) {
        // Workers hear that nobody waits for them; parts write what they were told, and end.
        let mut stage = self.stage.borrow_mut();
        stage.workers.clear();
        stage.waits = None;
    }
}

/// A partition as a worker reads it: now more, now less, now nothing.
struct SimulatedFeed {
    world: Arc<World>,
    reader: Box<dyn Reader>,
    position: u64,
}

impl Feed for SimulatedFeed {
    fn poll(&mut self, records_max: usize, out: &mut Vec<RawRecord>) -> Result<u64, String> {
        let most = {
            let mut nature = self.world.nature();
            match if nature.plain { 3 } else { nature.rng.below(4) } {
                0 if !nature.eager => return Ok(self.position),
                1 => usize::try_from(nature.rng.between(1, 8)).unwrap_or(1),
                _ => records_max,
            }
        };
        match self.reader.poll(most.min(records_max), Duration::ZERO) {
            Ok(batch) => {
                out.extend(batch.records.into_iter().map(|record| {
                    let Record { offset, key, value, headers, timestamp } = record;
                    RawRecord { offset, key, value, headers, timestamp }
                }));
                self.position = batch.position;
                Ok(self.position)
            }
            Err(error) if error.is_transient() => Ok(self.position),
            Err(error) => Err(error.to_string()),
        }
    }
}
