//! A world in which nobody draws anything: whoever calls says who moves. Interleavings are searched through this.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidings_operators::script;
use tidings_schemas::time::Instant;

use super::{Simulation, at};
use crate::checks::Broken;
use crate::options::Options;
use crate::workload::{Batch, START};

impl Simulation {
    /// A world that nobody draws anything in: whoever calls says who moves. These batches come to it.
    pub(crate) fn of(options: Options, batches: Vec<Batch>, with_trace: bool) -> Self {
        let mut simulation = Self::new(options, with_trace);
        simulation.batches = batches.into_iter();
        simulation.next_batch = simulation.batches.next();
        simulation.world.nature().plain = true;
        simulation
    }

    /// The processes that live, oldest first.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.processes.iter().map(|process| process.life.number).collect()
    }

    /// How many processes there were.
    pub(crate) const fn born(&self) -> u64 {
        self.born
    }

    /// Batches that have not come yet.
    pub(crate) fn to_come(&self) -> usize {
        self.batches.len() + usize::from(self.next_batch.is_some())
    }

    fn place_of(&self, number: u64) -> Option<usize> {
        self.processes.iter().position(|process| process.life.number == number)
    }

    /// Kills a process.
    pub(crate) fn kill(&mut self, number: u64) {
        if let Some(place) = self.place_of(number) {
            self.processes.remove(place).life.end();
        }
    }

    /// Whether a process's run is over.
    pub(crate) fn has_ended(&self, number: u64) -> bool {
        self.place_of(number).is_none_or(|place| self.processes[place].run.is_none())
    }

    /// How many actors a process has; none if it is gone.
    pub(crate) fn actors_of(&self, number: u64) -> Option<usize> {
        Some(self.processes[self.place_of(number)?].stage.borrow().actors().len())
    }

    /// Steps one actor of a process; says whether it did anything.
    pub(crate) fn step_of(&mut self, number: u64, actor: usize) -> Result<bool, Broken> {
        let Some(place) = self.place_of(number) else { return Ok(false) };
        let actor = self.processes[place].stage.borrow().actors().get(actor).copied();
        actor.map_or(Ok(false), |actor| self.step(place, actor))
    }

    /// A process has nothing to do: the next batch comes, or time passes until there is something, if that is within
    /// `patience`. Says whether.
    pub(crate) fn goes_on_within(&mut self, number: u64, patience: Duration) -> bool {
        let now = self.now();
        let own = self.place_of(number).and_then(|place| self.processes[place].stage.borrow().next());
        let start: Instant = START.parse().unwrap_or_default();
        let batch = self.next_batch.as_ref().map(|batch| batch.at.since(start));
        let Some(next) = own.into_iter().filter(|at| *at > now && *at - now <= patience).chain(batch).min() else {
            return false;
        };
        self.world.time.pass(next.saturating_sub(now));
        self.feed();
        true
    }

    /// Tells a process to stop.
    pub(crate) fn tell_to_stop(&mut self, number: u64) {
        if let Some(place) = self.place_of(number) {
            self.stopping = Some(number);
            self.processes[place].stop.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the process that was told to stop has.
    pub(crate) const fn is_done(&self) -> bool {
        self.done
    }

    /// Compacts side inputs up to the newest checkpoint.
    pub(crate) fn compact_to_newest(&self) {
        let Ok(counted) = self.counted() else { return };
        let newest = counted.checkpoints.values().next_back().and_then(|named| self.manifest(&named.name));
        let (Some(newest), sources) = (newest, script::sources()) else { return };
        for (number, (topic, partitions, side_input)) in self.sources().into_iter().enumerate() {
            for partition in (0..partitions).filter(|_| side_input) {
                let end = newest.ends.get(&*sources[number].id).and_then(|ends| ends.get(&partition));
                if let Some(end) = end {
                    self.compact(&at(topic, partition), *end);
                }
            }
        }
    }
}
