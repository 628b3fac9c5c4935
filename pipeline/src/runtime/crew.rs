//! What a generation's parts run on: threads of this machine, or whoever steps them by hand.
//!
//! The coordinator is an `async fn` that waits in one place only, and every other part does one thing
//! per step. So the same code runs on threads, which block, and in the simulator, where one thread
//! steps the parts of several generations in an order that a seed draws.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Select, Sender, TryRecvError};
use tidings_operators::harness::cluster::{Seat, start_in};
use tidings_operators::harness::dataflow::{
    Assigned, Command, Report, Running, Transport, Waker, WorkerIo, start as start_workers,
};
use tidings_operators::harness::delta::Delta;
use tidings_operators::harness::dropped::{DropCount, MayDrop};
use tidings_operators::harness::feed::{Feed, Lot};
use tidings_operators::harness::pulse::Pulse;
use tidings_operators::ingest::{Path, Source};
use tidings_operators::registry::Wiring;
use tidings_sinks::log::{Log, LogError, TopicPartition};

use super::coordinator::{DecideError, Surroundings};
use super::feeds::Readers;
use crate::cutlog::Hash;

/// How long a thread waits for a message before it looks again. What ends it is its channel's end,
/// so that this is only for a channel whose end is never let go.
const PATIENCE: Duration = Duration::from_secs(60);

/// A part of a generation that takes messages and does one thing at a time.
pub trait Part: Send {
    /// Goes on with what it is at, or takes the next message, for which it waits at most `patience`.
    fn step(&mut self, patience: Duration) -> Next;
}

/// What a part wants after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// To go on.
    Again,
    /// A message; none came.
    Idle,
    /// To try again after this time.
    Later(Duration),
    /// Nothing any more.
    Ended,
}

/// The next message, for which it waits at most `patience`.
pub(crate) fn hear<T>(inbox: &Receiver<T>, patience: Duration) -> Result<T, Next> {
    if patience.is_zero() {
        inbox.try_recv().map_err(|error| match error {
            TryRecvError::Empty => Next::Idle,
            TryRecvError::Disconnected => Next::Ended,
        })
    } else {
        inbox.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => Next::Idle,
            RecvTimeoutError::Disconnected => Next::Ended,
        })
    }
}

/// Where workers' wakers are put once they run.
pub type WakerSlot = Arc<OnceLock<Waker>>;

/// A partition that a worker is to read.
#[derive(Clone, Debug)]
pub struct ToRead {
    /// Its number.
    pub lot: Lot,
    /// Its name.
    pub at: TopicPartition,
    /// The first offset that was not cut yet.
    pub from: u64,
    /// Sources of a smaller rank are read first …
    pub rank: u8,
    /// … but this share of the read-ahead is this partition's in any case, in thousandths.
    pub at_least_permille: u16,
}

/// What one worker of a generation is to do, wherever it lives.
pub struct Post {
    /// The worker's number.
    pub number: usize,
    /// What it reads.
    pub lots: Vec<ToRead>,
    /// From the coordinator. Every worker is told the same.
    pub commands: Receiver<Command>,
    /// To the coordinator.
    pub reports: Sender<Report>,
    /// Where its waker is put.
    pub waker: WakerSlot,
}

/// What the workers of a generation start from.
pub struct Ground<'a> {
    /// The generation.
    pub generation: u64,
    /// Where sources are read.
    pub log: &'a Arc<dyn Log>,
    /// Operators and sources.
    pub wiring: &'a Wiring,
    /// How many workers there are.
    pub peers: usize,
    /// The state of all of them, and the rules under which it was written; none where nothing was decided yet.
    pub state: Option<(&'a Delta, Hash)>,
    /// Whose state may be dropped.
    pub may_drop: &'a MayDrop,
    /// How workers of one process talk.
    pub transport: Transport,
}

/// Workers that are at their posts.
#[derive(Default)]
pub struct Manned {
    /// Those of them whom this process watches.
    pub pulses: Vec<(String, Pulse)>,
    /// State that was dropped, by operator.
    pub dropped: BTreeMap<Arc<str>, DropCount>,
}

/// Feeds and restored chains for posts of this process.
///
/// # Errors
/// When a partition cannot be read, or the state does not fit.
pub(crate) fn prepare(
    hands: &mut dyn Hands,
    posts: Vec<Post>,
    ground: &Ground<'_>,
) -> Result<(Vec<WorkerIo>, Vec<WakerSlot>, Manned), DecideError> {
    let (mut workers, mut wakers, mut manned) = (Vec::new(), Vec::new(), Manned::default());
    for Post { number, lots, commands, reports, waker } in posts {
        let mut assigned = Vec::with_capacity(lots.len());
        for ToRead { lot, at, from, rank, at_least_permille } in lots {
            let feed = hands.feed(ground.log, at, from, Arc::clone(&waker))?;
            assigned.push(Assigned { lot, from, feed, rank, at_least_permille });
        }
        let chain = ground.wiring.chain(Path::Decide);
        let mut chain = chain.map_err(|error| DecideError::Worker(error.to_string()))?;
        if let Some((state, rules)) = ground.state {
            chain.restore_but(state.of_worker(number, ground.peers), rules, ground.may_drop)?;
            for (operator, count) in chain.dropped() {
                let sum = manned.dropped.entry(operator).or_default();
                sum.entries += count.entries;
                sum.parked += count.parked;
            }
        }
        manned.pulses.push((format!("worker {number}"), chain.pulse()));
        workers.push(WorkerIo { chain, assigned, commands, reports });
        wakers.push(waker);
    }
    Ok((workers, wakers, manned))
}

/// Who does the work of one generation in this process.
pub trait Hands {
    /// Reads `partition` from `from` on; wakes the worker in `waker` when something is there.
    ///
    /// # Errors
    /// When the partition cannot be read.
    fn feed(
        &mut self,
        log: &Arc<dyn Log>,
        partition: TopicPartition,
        from: u64,
        waker: WakerSlot,
    ) -> Result<Box<dyn Feed>, LogError>;

    /// Starts the workers.
    ///
    /// # Errors
    /// When they cannot be started.
    fn workers(
        &mut self,
        workers: Vec<WorkerIo>,
        wakers: &[WakerSlot],
        sources: Vec<Source>,
        transport: Transport,
    ) -> Result<(), String>;

    /// Starts a part.
    ///
    /// # Errors
    /// When it cannot be started.
    fn part(&mut self, name: &str, part: Box<dyn Part>) -> Result<(), String>;

    /// Ready once one of `channels` has something to say, or `span` is over.
    fn wait(&mut self, channels: &mut Select<'_>, span: Duration) -> Poll<()>;

    /// Ready once the coordinator may go on: it stands between two steps of recovery, where another
    /// generation may do anything.
    fn pause(&mut self) -> Poll<()> {
        Poll::Ready(())
    }
}

/// Everything of one generation but its coordinator. Dropping it ends all of it.
pub trait Crew {
    /// Those of them who are in this process.
    fn hands(&mut self) -> &mut dyn Hands;

    /// Waits until everybody is there whom a generation of all workers needs; says whether it came to that, and not
    /// to a stop.
    ///
    /// # Errors
    /// When it will never be.
    fn gather(&mut self, _: &Surroundings) -> Result<bool, DecideError> {
        Ok(true)
    }

    /// How many of so many workers live in this process.
    fn here(&self, workers: usize) -> usize {
        workers
    }

    /// Starts a worker for each post.
    ///
    /// # Errors
    /// When one of them cannot be started.
    fn man(&mut self, posts: Vec<Post>, ground: &Ground<'_>) -> Result<Manned, DecideError> {
        let hands = self.hands();
        let (workers, wakers, manned) = prepare(hands, posts, ground)?;
        let sources = ground.wiring.sources.clone();
        hands.workers(workers, &wakers, sources, ground.transport).map_err(DecideError::Worker)?;
        Ok(manned)
    }

    /// Why this generation cannot go on, because of somebody elsewhere.
    fn lost(&self) -> Option<String> {
        None
    }

    /// Whether somebody elsewhere wants to leave in good order.
    fn is_left(&self) -> bool {
        false
    }
}

/// A thread for each part; dropping it waits for them. Channels to them are to be closed before.
#[derive(Default)]
pub(crate) struct Threads {
    wakers: Vec<WakerSlot>,
    running: Option<Running>,
    joins: Vec<JoinHandle<()>>,
    readers: Readers,
    ended: Arc<AtomicBool>,
}

impl Threads {
    /// Starts workers among those of other processes.
    pub(crate) fn seated(
        &mut self,
        workers: Vec<WorkerIo>,
        wakers: &[WakerSlot],
        sources: Vec<Source>,
        seat: Seat,
    ) -> Result<(), String> {
        self.wakers = wakers.to_vec();
        self.running = Some(start_in(workers, sources, seat)?);
        Ok(())
    }
}

impl Crew for Threads {
    fn hands(&mut self) -> &mut dyn Hands {
        self
    }
}

impl Hands for Threads {
    fn feed(
        &mut self,
        log: &Arc<dyn Log>,
        partition: TopicPartition,
        from: u64,
        waker: WakerSlot,
    ) -> Result<Box<dyn Feed>, LogError> {
        self.readers.feed(log, partition, from, waker)
    }

    fn workers(
        &mut self,
        workers: Vec<WorkerIo>,
        wakers: &[WakerSlot],
        sources: Vec<Source>,
        transport: Transport,
    ) -> Result<(), String> {
        self.wakers = wakers.to_vec();
        self.running = Some(start_workers(workers, sources, transport)?);
        Ok(())
    }

    fn part(&mut self, name: &str, mut part: Box<dyn Part>) -> Result<(), String> {
        let ended = Arc::clone(&self.ended);
        let run = move || {
            loop {
                match part.step(PATIENCE) {
                    Next::Again | Next::Idle => {}
                    // What cannot be done now is the next generation's.
                    Next::Later(_) if ended.load(Ordering::Relaxed) => return,
                    Next::Later(pause) => std::thread::sleep(pause),
                    Next::Ended => return,
                }
            }
        };
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        self.joins.push(spawned.map_err(|error| format!("no thread for {name}: {error}"))?);
        Ok(())
    }

    fn wait(&mut self, channels: &mut Select<'_>, span: Duration) -> Poll<()> {
        // Whether one is ready or the time is over: the coordinator looks at all of them.
        let _ = channels.ready_timeout(span);
        Poll::Ready(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for waker in self.wakers.iter().filter_map(|waker| waker.get()) {
            waker();
        }
        if let Some(running) = self.running.take() {
            // A worker's own end was reported already.
            let _ = running.join();
        }
        for join in self.joins.drain(..) {
            let _ = join.join();
        }
    }
}
