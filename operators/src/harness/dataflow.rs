//! The engine on timely: sources, one exchange, the chain. This file and [`super::cluster`], which connects several
//! processes, are the only ones that know timely's API; what a worker does at each end of the exchange is
//! [`super::worker`]'s.
//!
//! Step numbers are those of the module above. Traps met, each with its way out: `for_each` keeps
//! every sender's order and `for_each_stamp` does not; initial capabilities sit at the minimum time
//! and must be let go; a record without a time may arrive behind the frontier, so none is ever sent.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use tidings_schemas::time::Instant;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator as _;
use timely::dataflow::operators::generic::operator::source;
use timely::{CommunicationConfig, Config, WorkerConfig};

use super::aside::{Crumbs, Killed, Skip};
use super::chain::{Block, Chain};
use super::cluster::{self, Ending};
use super::feed::{Extent, Feed, Lot};
use super::output::EpochOutput;
use super::worker::{Epochs, Intake, Step};
use crate::ingest::Source;
use crate::rules::Rules;

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
    /// Calls that killed their operator in an earlier run of this epoch: they are not made.
    pub skips: Arc<[Skip]>,
    /// Who hears of each call before it is made; nobody in ordinary work.
    pub crumbs: Option<Arc<dyn Crumbs>>,
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
    /// A call killed its operator, and it cannot go on.
    Killed(usize, Box<Killed>),
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
    /// Where others of theirs live in other processes: how they end, and timely's threads.
    others: Option<(Arc<Ending>, Box<dyn Any + Send>)>,
}

impl Running {
    pub(super) fn of_several(
        guards: timely::communication::WorkerGuards<()>,
        ending: Arc<Ending>,
        threads: Box<dyn Any + Send>,
    ) -> Self {
        Self { guards, others: Some((ending, threads)) }
    }

    /// Waits until all workers have ended. Where some live in other processes, it ends those of this one: nobody
    /// knows whether the others will.
    ///
    /// # Errors
    /// When a worker died: what it said.
    pub fn join(self) -> Result<(), String> {
        if let Some((ending, _)) = &self.others {
            ending.abort();
        }
        let ended: Result<(), String> = self.guards.join().into_iter().collect();
        let closed = self.others.map_or(Ok(()), |(ending, threads)| cluster::close(&ending, threads));
        ended.and(closed)
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
        run(worker, io, Arc::clone(&sources), &AtomicBool::new(false));
    })?;
    Ok(Running { guards, others: None })
}

/// A worker, until its dataflow is done; with `abort` it gives it up where it stands.
pub(super) fn run(worker: &mut timely::worker::Worker, io: WorkerIo, sources: Arc<[Source]>, abort: &AtomicBool) {
    let (index, peers) = (worker.index(), worker.peers());
    let WorkerIo { chain, assigned, commands, reports } = io;
    let pulse = chain.pulse();
    // Its cuts are put in by the source before it lets go of the epoch, and taken out by the chain, which
    // cannot see the frontier pass before.
    let epochs = Rc::new(RefCell::new(Epochs::new(index, chain, reports.clone())));
    worker.dataflow::<u64, _, _>(|scope| {
        let cuts = Rc::clone(&epochs);
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
                    Step::Release(released, blocks) => {
                        let epoch = released.epoch();
                        // Epochs need not start at zero: a recovery goes on where the log ends.
                        held.downgrade(&epoch);
                        cuts.borrow_mut().begin(released);
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

        let by_target = Exchange::new(|block: &Block| u64::from(block.target));
        blocks.sink(by_target, "chain", move |(input, frontier)| {
            let mut epochs = epochs.borrow_mut();
            input.for_each(|time, blocks| {
                // Nothing of ours is sent without a time.
                let Some(epoch) = time.least().copied() else { return };
                epochs.take(epoch, blocks);
            });
            while epochs.step(|epoch| !frontier.less_equal(&epoch)) {}
        });
    });
    while worker.has_dataflows() {
        pulse.beat();
        if abort.load(Ordering::Relaxed) {
            return worker.installed_dataflows().into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow));
        }
        worker.step_or_park(Some(PARK));
    }
}
