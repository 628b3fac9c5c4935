//! What goes wrong, and its end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use tidings_operators::script;
use tidings_pipeline::checkpoint::{Checkpoints, Manifest};
use tidings_sinks::log::TopicPartition;

use super::{Simulation, at};
use crate::log::{Nature, digest};
use crate::options::Faults;

impl Simulation {
    /// What goes wrong between two steps.
    pub(super) fn trouble(&mut self) {
        let now = self.now();
        let mut nature = self.world.nature();
        let Nature { faults, .. } = *nature;
        let Faults { killed, frozen, stalled, clock_jumps, damaged, trimmed, .. } = faults;
        if !nature.late.is_empty() && nature.rng.chance(20_000) {
            drop(nature);
            return self.world.land();
        }
        let place = nature.rng.place(self.processes.len());
        if self.processes.is_empty() {
            return;
        }
        if nature.strikes("kill", killed) {
            let newest = nature.begun.keys().next_back().copied();
            drop(nature);
            let process = self.processes.remove(place);
            process.life.end();
            self.world.trace(|| format!("p{} is killed", process.life.number));
            // What rots is noticed at a start: whoever goes on would name it in further checkpoints, and then both
            // that are kept hang on one object, which nothing survives.
            if self.world.nature().rng.chance(damaged) && process.life.generation() == newest {
                self.damage();
            }
        } else if nature.strikes("freeze", frozen) {
            let most = *nature.rng.one(&[10, 1_000, 30_000, 3_600_000]);
            let span = Duration::from_millis(nature.rng.between(1, most));
            drop(nature);
            self.freeze(place, span);
        } else if nature.strikes("stall", stalled) {
            let span = Duration::from_millis(nature.rng.between(1, 20_000));
            drop(nature);
            let actors = self.processes[place].stage.borrow().actors();
            let actor = *self.world.nature().rng.one(&actors);
            self.processes[place].stalled = Some((actor, now + span));
            self.world.trace(|| format!("p{place}'s {actor:?} stands still for {span:?}"));
        } else if nature.strikes("clock jump", clock_jumps) {
            let by = *nature.rng.one(&[0, 500, -500, 30_000, -30_000, 600_000, -600_000, 7_200_000, -7_200_000]);
            drop(nature);
            self.world.time.set_wrong(by);
            self.world.trace(|| format!("the wall clock is wrong by {by} ms"));
        } else if nature.strikes("trim", trimmed) {
            drop(nature);
            self.trim();
        }
    }

    pub(super) fn freeze(&mut self, place: usize, span: Duration) {
        let now = self.now();
        let process = &mut self.processes[place];
        process.frozen_until = now + span;
        // The supervisor thinks that it is gone.
        process.replaced = true;
        let number = process.life.number;
        self.world.trace(|| format!("p{number} is frozen for {span:?}"));
    }

    /// The newest checkpoint rots, if another one that has not is kept beside it.
    fn damage(&mut self) {
        let Ok(counted) = self.counted() else { return };
        let mut newest = counted.checkpoints.values().rev();
        let (Some(newest), Some(second)) = (newest.next(), newest.next()) else { return };
        if second.epoch <= self.damaged || newest.epoch <= self.damaged {
            return;
        }
        let (Some(manifest), Some(kept)) = (self.manifest(&newest.name), self.manifest(&second.name)) else { return };
        let chunk = manifest.chunks.last().filter(|chunk| !kept.chunks.contains(chunk));
        let name = match chunk {
            Some(chunk) if self.world.nature().rng.chance(500_000) => chunk.clone(),
            _ => newest.name.clone(),
        };
        self.damaged = newest.epoch;
        let path = ObjectPath::from(name.as_str());
        let rot = self.store.put(&path, bytes::Bytes::from_static(b"\x01torn").into());
        let _ = self.runtime.block_on(rot);
        let mut nature = self.world.nature();
        *nature.struck.entry("damage").or_default() += 1;
        nature.say(&self.world.time, || format!("{name} rots"));
    }

    pub(super) fn manifest(&self, name: &str) -> Option<Manifest> {
        let store = Arc::<InMemory>::clone(&self.store);
        Checkpoints::on(store, Arc::clone(&self.runtime)).manifest(name).ok()
    }

    /// Compacts, and gives up, what the second-newest checkpoint covers: nobody may need it.
    fn trim(&mut self) {
        let Ok(counted) = self.counted() else { return };
        let mut kept = counted.checkpoints.values().rev().filter_map(|named| self.manifest(&named.name));
        let (Some(_), Some(second)) = (kept.next(), kept.next()) else { return };
        let sources = script::sources();
        for (number, (topic, partitions, side_input)) in self.sources().into_iter().enumerate() {
            for partition in 0..partitions {
                let end = second.ends.get(&*sources[number].id).and_then(|ends| ends.get(&partition)).copied();
                let (Some(end), partition) = (end, at(topic, partition)) else { continue };
                if side_input {
                    self.compact(&partition, end);
                } else if self.world.nature().rng.chance(500_000) {
                    let _ = self.world.trim(&partition, end);
                    self.world.trace(|| format!("{partition} is given up below {end}"));
                }
            }
        }
    }

    pub(super) fn compact(&self, partition: &TopicPartition, below: u64) {
        let mut nature = self.world.nature();
        let Some(records) = nature.history.get(partition) else { return };
        let mut newest = BTreeMap::new();
        for record in records {
            newest.insert(record.key.clone(), record.offset);
        }
        let gone = records.iter().filter(|record| record.offset < below && newest[&record.key] != record.offset);
        let gone: Vec<_> = gone.map(|record| (partition.clone(), record.offset)).collect();
        nature.content = gone.iter().fold(nature.content, |sum, (at, offset)| {
            sum.wrapping_add(digest(&[b"gone", at.topic.as_bytes(), &offset.to_le_bytes()]))
        });
        nature.hidden.extend(gone);
        nature.say(&self.world.time, || format!("{partition} is compacted below {below}"));
    }

    /// Faults stop; what stood still goes on.
    pub(super) fn heal(&mut self) {
        self.healed = true;
        self.deliver.heal();
        self.record.heal();
        self.world.time.set_wrong(0);
        let now = self.now();
        for process in &mut self.processes {
            process.frozen_until = now.min(process.frozen_until);
            process.stalled = None;
        }
        let late = {
            let mut nature = self.world.nature();
            nature.faults = Faults::default();
            nature.say(&self.world.time, || "faults stop".to_owned());
            nature.late.len()
        };
        for _ in 0..late {
            self.world.land();
        }
    }
}
