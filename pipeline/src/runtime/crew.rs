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
use tidings_operators::harness::chain::Chain;
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

/// Images from which on workers are restored side by side. Of fewer, a thread costs more than it saves.
const SIDE_BY_SIDE_MIN: usize = 100_000;

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

/// Chains of these workers, restored from the ground's state: of a large one each on a thread of its own, which finds
/// its worker's images by itself.
///
/// # Errors
/// When the state does not fit.
pub fn chains(numbers: &[usize], ground: &Ground<'_>) -> Result<Vec<Chain>, DecideError> {
    let restored = |number: usize| -> Result<Chain, DecideError> {
        let chain = ground.wiring.chain(Path::Decide);
        let mut chain = chain.map_err(|error| DecideError::Worker(error.to_string()))?;
        if let Some((state, rules)) = ground.state {
            chain.restore_but(state.of_worker(number, ground.peers), rules, ground.may_drop)?;
        }
        Ok(chain)
    };
    if ground.state.is_none_or(|(state, _)| state.len() < SIDE_BY_SIDE_MIN) {
        return numbers.iter().map(|number| restored(*number)).collect();
    }
    std::thread::scope(|scope| {
        let restored = &restored;
        let threads: Vec<_> = numbers.iter().map(|number| scope.spawn(move || restored(*number))).collect();
        let died = |_| Err(DecideError::Worker("a thread that restored a worker's state panicked".to_owned()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(died)).collect()
    })
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
    let numbers: Vec<usize> = posts.iter().map(|post| post.number).collect();
    for (Post { number, lots, commands, reports, waker }, chain) in posts.into_iter().zip(chains(&numbers, ground)?) {
        let mut assigned = Vec::with_capacity(lots.len());
        for ToRead { lot, at, from, rank, at_least_permille } in lots {
            let feed = hands.feed(ground.log, at, from, Arc::clone(&waker))?;
            assigned.push(Assigned { lot, from, feed, rank, at_least_permille });
        }
        for (operator, count) in chain.dropped() {
            let sum = manned.dropped.entry(operator).or_default();
            sum.entries += count.entries;
            sum.parked += count.parked;
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

#[cfg(test)]
mod tests {
    use tidings_operators::harness::table::{HeadBytes, Image, StateKey};
    use tidings_operators::keyed::{Subkey, TimerId};
    use tidings_operators::script;
    use tidings_schemas::ids::{EventId, key_group, placement};
    use tidings_schemas::time::Instant;
    use tidings_sinks::log::memory::MemoryLog;

    use super::*;

    /// What `dedup` remembers of so many events, one a user.
    fn remembered(count: usize) -> Delta {
        let image = |number: usize| {
            let (user, id) = (format!("u{number}"), EventId::new("high", 0, number as u64));
            let group = key_group(placement(&user));
            let key = StateKey { group, user: user.into(), subkey: Some(Subkey::from(&id.0)) };
            let head = Some((1, HeadBytes::from_slice(&[16; 17])));
            let timers = [(TimerId(0), Instant(1_000 + number as i64))].into_iter().collect();
            (("dedup".into(), key), Image { head, body: Some(None), timers })
        };
        (0..count).map(image).collect()
    }

    #[test]
    fn a_large_state_is_restored_side_by_side_and_every_worker_has_its_own() {
        let state = remembered(SIDE_BY_SIDE_MIN + 1);
        let wiring = script::straight(&[("dedup", serde_json::json!({"window": "24h"}), None)]);
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new(Arc::new(|| Instant(0))).unwrap());
        let may_drop = MayDrop::default();
        let ground = |state| Ground {
            generation: 1,
            log: &log,
            wiring: &wiring,
            peers: 3,
            state: Some((state, [0; 32])),
            may_drop: &may_drop,
            transport: Transport::Memory,
        };
        let rules = script::rules();
        let restored = chains(&[0, 2], &ground(&state)).unwrap();
        for (number, mut chain) in [0, 2].into_iter().zip(restored) {
            let mine = state.of_worker(number, 3).count() as u64;
            let earliest = state.of_worker(number, 3).flat_map(|(_, image)| image.timers).map(|(_, at)| at).min();
            assert_eq!(chain.next_timer(), earliest);
            // Each key has a user of its own, and users count too.
            let keys = chain.epoch(1, Instant(1), &rules, Vec::new()).keys;
            assert!(mine > 10_000 && keys == 2 * mine, "worker {number}: {keys} keys of {mine} images");
        }
        let mut damaged = state.clone();
        damaged.join(
            std::iter::once((("nobody".into(), StateKey::clone(&state.iter().next().unwrap().0.1)), Image::default()))
                .collect(),
        );
        let error = chains(&[0, 1, 2], &ground(&damaged)).err().unwrap().to_string();
        assert!(error.contains("nobody"), "{error}");
    }
}
