//! Feeds from a log: one thread per partition reads ahead into a bounded channel; the engine takes
//! from the channel and never waits for the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use tidings_operators::harness::dataflow::Waker;
use tidings_operators::harness::feed::{Feed, RawRecord};
use tidings_sinks::log::{Log, LogError, Record, TopicPartition};

/// Batches that wait between the reading thread and the engine: enough that neither waits for the
/// other, few enough that a slow epoch holds back the log and not the memory.
const BATCHES_MAX: usize = 4;

/// Records per batch.
const RECORDS_MAX: usize = 4_096;

/// How long one read waits; also how long a stop takes at most.
const WAIT: Duration = Duration::from_millis(100);

/// The longest pause between two tries while the log cannot be reached.
const RETRY_MAX: Duration = Duration::from_secs(2);

struct Batch {
    records: Vec<RawRecord>,
    position: u64,
}

/// A partition's feed, to be given to a worker.
struct LogFeed {
    batches: Receiver<Result<Batch, String>>,
    open: std::vec::IntoIter<RawRecord>,
    /// The position once the open batch is used up.
    end: u64,
    position: u64,
}

impl Feed for LogFeed {
    fn poll(&mut self, records_max: usize, out: &mut Vec<RawRecord>) -> Result<u64, String> {
        let mut room = records_max;
        while room > 0 {
            match self.open.next() {
                Some(record) => {
                    self.position = record.offset + 1;
                    out.push(record);
                    room -= 1;
                }
                None => {
                    self.position = self.position.max(self.end);
                    match self.batches.try_recv() {
                        Ok(batch) => {
                            let Batch { records, position } = batch?;
                            (self.open, self.end) = (records.into_iter(), position);
                        }
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return Err("its reader has ended".to_owned()),
                    }
                }
            }
        }
        if self.open.len() == 0 {
            self.position = self.position.max(self.end);
        }
        Ok(self.position)
    }
}

/// Threads that read partitions; they end when this is dropped.
#[derive(Default)]
pub(crate) struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// Starts reading `partition` at `from`. `waker` is filled in once the worker runs.
    pub(crate) fn feed(
        &mut self,
        log: &Arc<dyn Log>,
        partition: TopicPartition,
        from: u64,
        waker: Arc<std::sync::OnceLock<Waker>>,
    ) -> Result<Box<dyn Feed>, LogError> {
        let reader = log.reader(&partition, from)?;
        let (sender, batches) = bounded(BATCHES_MAX);
        let stop = Arc::clone(&self.stop);
        let name = format!("read-{partition}");
        let spawned = std::thread::Builder::new().name(name).spawn(move || read(reader, &sender, &stop, &waker));
        self.threads.push(spawned.map_err(|error| LogError::Store(format!("no thread for {partition}: {error}")))?);
        Ok(Box::new(LogFeed { batches, open: Vec::new().into_iter(), end: from, position: from }))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn read(
    mut reader: Box<dyn tidings_sinks::log::Reader>,
    sender: &Sender<Result<Batch, String>>,
    stop: &AtomicBool,
    waker: &std::sync::OnceLock<Waker>,
) {
    let mut position = None;
    let mut pause = WAIT;
    while !stop.load(Ordering::Relaxed) {
        let batch = match reader.poll(RECORDS_MAX, WAIT) {
            Ok(batch) => {
                pause = WAIT;
                batch
            }
            // The log is away: what was read stays, what comes waits.
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "a source cannot be read; trying again");
                std::thread::sleep(pause);
                pause = (pause * 2).min(RETRY_MAX);
                continue;
            }
            Err(error) => {
                let _ = sender.send(Err(error.to_string()));
                break;
            }
        };
        if batch.records.is_empty() && position == Some(batch.position) {
            continue;
        }
        position = Some(batch.position);
        let records = batch.records.into_iter().map(raw).collect();
        let mut full = Ok(Batch { records, position: batch.position });
        // Bounded waits, so that a stop is heard while nobody takes.
        while let Err(error) = sender.send_timeout(full, WAIT) {
            match error {
                crossbeam_channel::SendTimeoutError::Timeout(back) if !stop.load(Ordering::Relaxed) => full = back,
                _ => return,
            }
        }
        if let Some(waker) = waker.get() {
            waker();
        }
    }
}

/// A log's record as the engine takes it.
pub(crate) fn raw(record: Record) -> RawRecord {
    let Record { offset, key, value, headers, timestamp } = record;
    RawRecord { offset, key, value, headers, timestamp }
}
