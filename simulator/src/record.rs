//! The record stage: production's writer over the simulated log, into a store that is away now and then, or
//! takes a batch and loses the acknowledgement.
//!
//! A writer lives for a few turns, gathers, writes what it has and leaves, or dies at any of its steps; the
//! next one goes on with what was announced. What counts in the end is the store: every block of the log once,
//! and a batch of one name the same each time it comes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidings_schemas::topics::Topics;
use tidings_sinks::log::TopicPartition;
use tidings_sinks::record::writer::{RecordError, RecordParams, RecordWriter};
use tidings_sinks::record::{RecordBatch, RecordStore, StoreError};
use tokio_util::sync::CancellationToken;

use crate::checks::Broken;
use crate::deliver::outside::Outside;
use crate::log::{Life, ProcessLog, World};
use crate::run::at;

/// Writers are numbered from here.
const FIRST: u64 = 2_000;

/// Most looks at the clock of one writer's life.
const TURNS_MAX: u64 = 12;

/// Blocks by the offset at which they stood, of each batch.
type Stored = BTreeMap<String, Vec<(TopicPartition, u64, Bytes)>>;

#[derive(Default)]
struct Shelf {
    batches: Stored,
    away_until: Duration,
    /// A batch that came again as another one.
    other: Option<String>,
}

/// The stage.
pub struct Record {
    world: Arc<World>,
    outside: Arc<Outside>,
    shelf: Arc<Mutex<Shelf>>,
    params: RecordParams,
    partitions: Vec<TopicPartition>,
    born: u64,
    healed: bool,
}

impl Record {
    /// The stage of a world with so many partitions of rows.
    #[must_use]
    pub fn new(world: &Arc<World>, outside: &Arc<Outside>, partitions: u32) -> Self {
        let topics = Topics::default();
        let params = RecordParams {
            // Small batches: what ends them is to be met often.
            rows_max: 1 + outside.below(60),
            wait: Duration::from_millis(outside.below(3_000)),
            ..RecordParams::new(&topics.lifecycle(), &topics.dlq())
        };
        Self {
            world: Arc::clone(world),
            outside: Arc::clone(outside),
            shelf: Arc::default(),
            params,
            partitions: (0..partitions).map(|partition| at(&topics.lifecycle(), partition)).collect(),
            born: FIRST,
            healed: false,
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a block is not written.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.partitions.iter().any(|partition| {
            let end = self.world.range(partition).map_or(0, |range| range.end);
            let committed = self.world.committed(&self.params.group, partition).map_or(0, |commit| commit.offset);
            committed < end
        })
    }

    /// One writer's life.
    ///
    /// # Errors
    /// When it ends as it must not.
    pub fn step(&mut self) -> Result<(), Broken> {
        if self.outside.strikes("ClickHouse away", |it| it.record_away) {
            let span = Duration::from_secs([1, 60, 3_600][usize::try_from(self.outside.below(3)).unwrap_or(0)]);
            self.shelf().away_until = self.world.time.elapsed() + span;
            self.world.trace(|| format!("ClickHouse is away for {span:?}"));
        }
        let life = Life::new(self.born);
        self.born += 1;
        let log = Arc::new(ProcessLog { world: Arc::clone(&self.world), life: Arc::clone(&life) });
        let (shelf, outside) = (Arc::clone(&self.shelf), Arc::clone(&self.outside));
        let store = Store { world: Arc::clone(&self.world), outside, shelf, life: Arc::clone(&life) };
        let (stop, time) = (CancellationToken::new(), Arc::clone(&self.world.time));
        let (left, told) = (AtomicU64::new(1 + self.outside.below(TURNS_MAX)), stop.clone());
        let elapsed = move || {
            // Its life is as long as it looks at the clock.
            if left.fetch_sub(1, Ordering::Relaxed) <= 1 {
                told.cancel();
            }
            time.elapsed()
        };
        let ended = RecordWriter::new(log, store, self.params.clone(), Arc::new(elapsed)).run(&stop);
        match ended {
            Ok(()) => Ok(()),
            Err(_) if life.is_over() => {
                self.world.trace(|| format!("p{} is dead", life.number));
                Ok(())
            }
            Err(RecordError::Log(error)) if error.is_transient() && !self.healed => Ok(()),
            Err(error) => Err(Broken { promise: "liveness", what: format!("the record cannot go on: {error}") }),
        }
    }

    /// Faults stop.
    pub fn heal(&mut self) {
        self.healed = true;
        self.shelf().away_until = Duration::ZERO;
    }

    /// What the store has: each block's bytes by where it stood.
    ///
    /// # Errors
    /// When a batch of one name came twice and was not the same, or a block is there twice.
    pub fn stored(&self) -> Result<BTreeMap<(TopicPartition, u64), Bytes>, String> {
        let shelf = self.shelf();
        if let Some(name) = &shelf.other {
            return Err(format!("the batch {name} came twice and was not the same"));
        }
        let mut stored = BTreeMap::new();
        for (name, blocks) in &shelf.batches {
            for (partition, offset, rows) in blocks {
                if stored.insert((partition.clone(), *offset), rows.clone()).is_some() {
                    return Err(format!("the block at {offset} of {partition} is in {name} and in another batch"));
                }
            }
        }
        Ok(stored)
    }
}

/// The store as one writer sees it.
struct Store {
    world: Arc<World>,
    outside: Arc<Outside>,
    shelf: Arc<Mutex<Shelf>>,
    life: Arc<Life>,
}

impl RecordStore for Store {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), StoreError> {
        let gone = |words: &str| Err(StoreError::Unreachable(words.to_owned()));
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        if self.life.is_over() || self.world.time.elapsed() < shelf.away_until {
            return gone("simulated");
        }
        let (dies, before) =
            (self.outside.strikes("death at an insert", |it| it.record_dies), self.outside.below(2) == 0);
        if dies {
            self.life.end();
        }
        let (number, name) = (self.life.number, batch.name());
        self.world.trace(|| {
            let end = match (dies, before) {
                (true, true) => ", and dies before",
                (true, false) => ", and dies after",
                (false, _) => "",
            };
            format!("p{number} inserts {name}, {} blocks{end}", batch.blocks.len())
        });
        if dies && before {
            return gone("dead");
        }
        let blocks = batch.blocks.iter().map(|block| (batch.partition.clone(), block.offset, block.rows.clone()));
        let blocks: Vec<_> = blocks.collect();
        // What was written under this name is not written again.
        match shelf.batches.get(&name) {
            Some(there) if *there != blocks => shelf.other = Some(name),
            Some(_) => {}
            None => drop(shelf.batches.insert(name, blocks)),
        }
        let unheard = dies || self.outside.strikes("unheard insert", |it| it.record_unheard);
        if unheard { gone("no answer") } else { Ok(()) }
    }
}
