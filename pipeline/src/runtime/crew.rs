//! What a generation's parts run on: threads of this machine, or whoever steps them by hand.
//!
//! The coordinator is an `async fn` that waits in one place only, and every other part does one thing
//! per step. So the same code runs on threads, which block, and in the simulator, where one thread
//! steps the parts of several generations in an order that a seed draws.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Select, TryRecvError};
use tidings_operators::harness::dataflow::{Running, Transport, Waker, WorkerIo, start as start_workers};
use tidings_operators::harness::feed::Feed;
use tidings_operators::ingest::Source;
use tidings_sinks::log::{Log, LogError, TopicPartition};

use super::feeds::Readers;

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

/// Everything of one generation but its coordinator. Dropping it ends all of it.
pub trait Crew {
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

/// A thread for each part; dropping it waits for them. Channels to them are to be closed before.
#[derive(Default)]
pub(crate) struct Threads {
    wakers: Vec<WakerSlot>,
    running: Option<Running>,
    joins: Vec<JoinHandle<()>>,
    readers: Readers,
    ended: Arc<AtomicBool>,
}

impl Crew for Threads {
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
