//! The engine on timely: sources, one exchange, the chain. The only file that knows timely's API.
//!
//! Step numbers are those of the module above. Traps met, each with its way out: `for_each` keeps
//! every sender's order and `for_each_stamp` does not; initial capabilities sit at the minimum time
//! and must be let go; a record without a time may arrive behind the frontier, so none is ever sent.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use tidings_schemas::ids::key_group;
use tidings_schemas::time::Instant;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator as _;
use timely::dataflow::operators::generic::operator::source;
use timely::{CommunicationConfig, Config, WorkerConfig};

use super::chain::{Block, Chain};
use super::feed::{Extent, Feed, Lot, RawRecord};
use super::output::EpochOutput;
use crate::ingest::{Path, Source, ingest};
use crate::rules::Rules;

/// Records that one worker reads ahead of the cut. Beyond it feeds are not polled: the log waits,
/// not the memory. A few epochs' worth at a million events a second and two workers.
pub const READ_AHEAD_MAX: usize = 32_768;

/// Records in one block: large enough to pay for the exchange, small enough to stay in the cache.
const BLOCK_MAX: usize = 512;

/// Records polled from one feed in one go: fuel, so that a flood on one partition does not keep the
/// worker from its commands.
const POLL_MAX: usize = 4_096;

/// How long an idle worker sleeps if nothing wakes it. Wakers do; this is for what has none.
const PARK: Duration = Duration::from_millis(10);

/// What ends an epoch, as far as workers need to know it.
#[derive(Debug)]
pub struct Cut {
    /// The epoch that it ends.
    pub epoch: u64,
    /// Stream time.
    pub now: Instant,
    /// Policies and calendar.
    pub rules: Arc<Rules>,
    /// Where each partition's epoch ends; one that is not named did not advance.
    pub ends: BTreeMap<Lot, u64>,
}

/// What the host tells a worker.
#[derive(Clone, Debug)]
pub enum Command {
    /// Release epoch e up to the cut. Cuts come without gaps.
    Release(Arc<Cut>),
    /// Let go: the dataflow ends once everything released is done.
    Stop,
}

/// Wakes a worker: call it after giving it a command or filling a feed.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// What a worker tells the host.
pub enum Report {
    /// It runs, and can be woken.
    Ready(usize, Waker),
    /// How far its feeds have come: a cut may end there. Records and checksums are totals since the
    /// worker started, so that the difference of two reports is what a cut between them says.
    Ahead(usize, Vec<(Lot, Extent)>),
    /// An epoch is done.
    Done(usize, Box<EpochOutput>),
    /// It cannot go on.
    Failed(usize, String),
}

/// A partition that a worker reads, and from where.
pub struct Assigned {
    /// Which.
    pub lot: Lot,
    /// The first offset that was not cut yet.
    pub from: u64,
    /// The reader, which stands there.
    pub feed: Box<dyn Feed>,
    /// Sources of a smaller rank are read first …
    pub rank: u8,
    /// … but this share of the read-ahead is this partition's in any case, in thousandths.
    pub at_least_permille: u16,
}

/// Everything that one worker needs.
pub struct WorkerIo {
    /// Its operators, restored.
    pub chain: Chain,
    /// Its partitions.
    pub assigned: Vec<Assigned>,
    /// From the host.
    pub commands: Receiver<Command>,
    /// To the host. Bounded: a host that does not listen stops the workers.
    pub reports: Sender<Report>,
}

/// How workers talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// They hand over memory.
    Memory,
    /// They serialise as they would between processes.
    Serialising,
}

/// Workers under way.
pub struct Running {
    guards: timely::communication::WorkerGuards<()>,
}

impl Running {
    /// Waits until all workers have ended.
    ///
    /// # Errors
    /// When a worker died: what it said.
    pub fn join(self) -> Result<(), String> {
        self.guards.join().into_iter().collect()
    }
}

/// Starts the workers.
///
/// # Errors
/// When timely cannot start them.
pub fn start(workers: Vec<WorkerIo>, sources: Vec<Source>, transport: Transport) -> Result<Running, String> {
    let communication = match (workers.len(), transport) {
        (count, Transport::Memory) => CommunicationConfig::Process(count),
        (count, Transport::Serialising) => CommunicationConfig::ProcessBinary(count),
    };
    let config = Config { communication, worker: WorkerConfig::default() };
    let sources: Arc<[Source]> = sources.into();
    let workers: Mutex<Vec<Option<WorkerIo>>> = Mutex::new(workers.into_iter().map(Some).collect());
    let guards = timely::execute(config, move |worker| {
        let index = worker.index();
        let io = workers.lock().ok().and_then(|mut workers| workers.get_mut(index).and_then(Option::take));
        // Timely calls this once per index, so that the worker's part is there.
        let Some(io) = io else { return };
        run(worker, io, Arc::clone(&sources));
    })?;
    Ok(Running { guards })
}

fn run(worker: &mut timely::worker::Worker, io: WorkerIo, sources: Arc<[Source]>) {
    let (index, peers) = (worker.index(), worker.peers());
    let WorkerIo { mut chain, assigned, commands, reports } = io;
    // Cuts under way on this worker: put in by the source before it lets go of the epoch, taken out by
    // the chain, which cannot see the frontier pass before.
    let under_way: Rc<RefCell<VecDeque<UnderWay>>> = Rc::default();
    worker.dataflow::<u64, _, _>(|scope| {
        let cuts = Rc::clone(&under_way);
        let to_host = reports.clone();
        let blocks = source(scope, "source", |capability, info| {
            let waker = scope.worker().sync_activator_for(info.address.to_vec());
            let waker: Waker = Arc::new(move || {
                // An error says that the worker has ended, which is no news to whoever wakes it.
                let _ = waker.activate();
            });
            let again = scope.activator_for(info.address);
            let _ = to_host.send(Report::Ready(index, waker));
            let mut intake = Intake::new(index, peers, sources, assigned, commands, to_host);
            let mut capability = Some(capability);
            move |output| {
                let Some(held) = capability.as_mut() else { return };
                match intake.step() {
                    Step::Idle => {}
                    Step::Again => again.activate(),
                    Step::Release(done, blocks) => {
                        let epoch = done.cut.epoch;
                        // Epochs need not start at zero: a recovery goes on where the log ends.
                        held.downgrade(&epoch);
                        cuts.borrow_mut().push_back(done);
                        let mut session = output.session(&*held);
                        for block in blocks {
                            session.give(block);
                        }
                        drop(session);
                        held.downgrade(&(epoch + 1));
                        again.activate();
                    }
                    Step::Stop => capability = None,
                }
            }
        })
        .container::<Vec<Block>>();

        let mut stash: BTreeMap<u64, Vec<Block>> = BTreeMap::new();
        let by_target = Exchange::new(|block: &Block| u64::from(block.target));
        blocks.sink(by_target, "chain", move |(input, frontier)| {
            input.for_each(|time, blocks| {
                // Nothing of ours is sent without a time.
                let Some(epoch) = time.least().copied() else { return };
                stash.entry(epoch).or_default().append(blocks);
            });
            loop {
                let next = under_way.borrow().front().map(|under_way| under_way.cut.epoch);
                let Some(epoch) = next.filter(|epoch| !frontier.less_equal(epoch)) else { break };
                let Some(UnderWay { cut, read }) = under_way.borrow_mut().pop_front() else { break };
                let blocks = stash.remove(&epoch).unwrap_or_default();
                let mut output = chain.epoch(epoch, cut.now, &cut.rules, blocks);
                output.read = read;
                if reports.send(Report::Done(index, Box::new(output))).is_err() {
                    // The host is gone; what is not said is replayed by the next generation.
                    break;
                }
            }
        });
    });
    while worker.has_dataflows() {
        worker.step_or_park(Some(PARK));
    }
}

/// A cut that a worker has released, and what it read for it.
struct UnderWay {
    cut: Arc<Cut>,
    read: BTreeMap<Lot, Extent>,
}

enum Step {
    Idle,
    Again,
    Release(UnderWay, Vec<Block>),
    Stop,
}

/// One partition on its way in.
struct Inlet {
    assigned: Assigned,
    /// Records with their checksums.
    buffer: VecDeque<(RawRecord, u64)>,
    /// Every record below it is in the buffer, or was cut, or does not exist.
    position: u64,
    /// All that was polled since the start.
    total: Extent,
}

/// The source operator's own part: polls, waits for cuts, makes blocks. Knows nothing of timely.
struct Intake {
    worker: usize,
    peers: usize,
    sources: Arc<[Source]>,
    inlets: Vec<Inlet>,
    commands: Receiver<Command>,
    reports: Sender<Report>,
    waiting: VecDeque<Arc<Cut>>,
    stopping: bool,
    scratch: Vec<RawRecord>,
}

impl Intake {
    fn new(
        worker: usize,
        peers: usize,
        sources: Arc<[Source]>,
        assigned: Vec<Assigned>,
        commands: Receiver<Command>,
        reports: Sender<Report>,
    ) -> Self {
        let inlet = |assigned: Assigned| {
            let position = assigned.from;
            Inlet { assigned, buffer: VecDeque::new(), position, total: Extent::default() }
        };
        let mut inlets: Vec<_> = assigned.into_iter().map(inlet).collect();
        inlets.sort_by_key(|inlet| (inlet.assigned.rank, inlet.assigned.lot));
        let (waiting, scratch) = (VecDeque::new(), Vec::new());
        Self { worker, peers, sources, inlets, commands, reports, waiting, stopping: false, scratch }
    }

    fn step(&mut self) -> Step {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Release(cut)) => self.waiting.push_back(cut),
                Ok(Command::Stop) => {
                    self.stopping = true;
                    break;
                }
                // The host let go without a word: nobody waits for what is open.
                Err(TryRecvError::Disconnected) if !self.stopping => return Step::Stop,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => break,
            }
        }
        match self.advance() {
            Ok(step) => step,
            Err(problem) => {
                let _ = self.reports.send(Report::Failed(self.worker, problem));
                Step::Stop
            }
        }
    }

    fn advance(&mut self) -> Result<Step, String> {
        let Some(cut) = self.waiting.front().cloned() else {
            if self.stopping {
                return Ok(Step::Stop);
            }
            return self.read_ahead();
        };
        let mut short = false;
        for place in 0..self.inlets.len() {
            let inlet = &self.inlets[place];
            // An end is passed by position, not by seeing a record: offsets may have gaps.
            if cut.ends.get(&inlet.assigned.lot).is_some_and(|end| inlet.position < *end) {
                self.poll(place, POLL_MAX)?;
                let inlet = &self.inlets[place];
                short |= cut.ends.get(&inlet.assigned.lot).is_some_and(|end| inlet.position < *end);
            }
        }
        if short {
            return Ok(Step::Again);
        }
        self.waiting.pop_front();
        let (read, blocks) = self.release(&cut);
        Ok(Step::Release(UnderWay { cut, read }, blocks))
    }

    /// Step 1: strict preference with a guaranteed minimum. The most urgent source may fill the whole
    /// read-ahead; each of the others gets at least its share.
    fn read_ahead(&mut self) -> Result<Step, String> {
        let mut ahead = Vec::new();
        let mut full = false;
        for place in 0..self.inlets.len() {
            let total: usize = self.inlets.iter().map(|inlet| inlet.buffer.len()).sum();
            let inlet = &self.inlets[place];
            let share = READ_AHEAD_MAX * usize::from(inlet.assigned.at_least_permille) / 1000;
            let room = READ_AHEAD_MAX.saturating_sub(total).max(share.saturating_sub(inlet.buffer.len()));
            let before = inlet.position;
            if room > 0 {
                full |= self.poll(place, room.min(POLL_MAX))? == POLL_MAX;
            }
            let inlet = &self.inlets[place];
            if inlet.position > before {
                ahead.push((inlet.assigned.lot, Extent { end: inlet.position, ..inlet.total }));
            }
        }
        if !ahead.is_empty() {
            let _ = self.reports.send(Report::Ahead(self.worker, ahead));
        }
        Ok(if full { Step::Again } else { Step::Idle })
    }

    fn poll(&mut self, place: usize, records_max: usize) -> Result<usize, String> {
        let inlet = &mut self.inlets[place];
        let position = inlet.assigned.feed.poll(records_max, &mut self.scratch).map_err(|problem| {
            let Lot { source, partition } = inlet.assigned.lot;
            let source = self.sources.get(usize::from(source)).map_or("?", |source| &*source.id);
            format!("source `{source}`, partition {partition}: {problem}")
        })?;
        let count = self.scratch.len();
        for record in self.scratch.drain(..) {
            let checksum = record.checksum();
            inlet.total.records += 1;
            inlet.total.checksum = inlet.total.checksum.wrapping_add(checksum);
            inlet.buffer.push_back((record, checksum));
        }
        inlet.position = inlet.position.max(position);
        Ok(count)
    }

    /// Step 2: what the cut admits, parsed under its rules, in blocks of one partition for one worker.
    fn release(&mut self, cut: &Cut) -> (BTreeMap<Lot, Extent>, Vec<Block>) {
        let mut read = BTreeMap::new();
        let mut blocks = Vec::new();
        for inlet in &mut self.inlets {
            let lot = inlet.assigned.lot;
            let Some(end) = cut.ends.get(&lot).copied() else { continue };
            let Some(source) = self.sources.get(usize::from(lot.source)) else { continue };
            let mut extent = Extent { end, ..Extent::default() };
            let mut open: Vec<Vec<_>> = (0..self.peers).map(|_| Vec::new()).collect();
            while let Some((record, checksum)) = inlet.buffer.pop_front_if(|(record, _)| record.offset < end) {
                extent.records += 1;
                extent.checksum = extent.checksum.wrapping_add(checksum);
                let arrived = ingest(source, lot, &record, &cut.rules, Path::Decide);
                let target = key_group(arrived.placement()).worker(self.peers);
                open[target].push(arrived);
                if open[target].len() == BLOCK_MAX {
                    let records = std::mem::take(&mut open[target]);
                    blocks.push(Block { lot, target: u32::try_from(target).unwrap_or(0), records });
                }
            }
            for (target, records) in open.into_iter().enumerate().filter(|(_, records)| !records.is_empty()) {
                blocks.push(Block { lot, target: u32::try_from(target).unwrap_or(0), records });
            }
            read.insert(lot, extent);
        }
        (read, blocks)
    }
}
