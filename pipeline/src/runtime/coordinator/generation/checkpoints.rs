//! Steps 5 and 6: marks and checkpoints, and what need not be kept any more.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidings_schemas::deliberate::{self, Bug};
use tidings_sinks::log::TopicPartition;

use crate::checkpoint::Manifest;
use crate::cutlog::{Entry, Named};
use crate::runtime::egress::Say;
use crate::runtime::keeper::{Keep, Kept};

use super::{Generation, LOOK_AGAIN};
use crate::runtime::coordinator::DecideError;

/// Marks are written this often.
const MARK_EVERY: Duration = Duration::from_secs(1);

impl Generation<'_> {
    /// Steps 5 and 6, when they are due.
    pub(super) fn periodic(&mut self) {
        let elapsed = self.around.clock.elapsed();
        let since = |at: Duration| self.around.clock.real(elapsed.saturating_sub(at));
        if since(self.marked_at) >= MARK_EVERY && self.said_through > self.marked {
            (self.marked_at, self.marked) = (elapsed, self.said_through);
            if let Some(say) = &self.say {
                let _ = say.send(Say::Mark(self.said_through));
            }
        }
        let due = since(self.checkpoint_at) >= self.plan.checkpoint_every;
        if due && self.changed && !self.busy_with_checkpoint() {
            self.write_checkpoint();
        }
        self.log_checkpoint();
    }

    /// Writes a checkpoint of all that was decided, and waits until it counts.
    pub(super) async fn checkpoint_now(&mut self) -> Result<(), DecideError> {
        if self.last == 0 {
            return Ok(());
        }
        while self.finished < self.last || self.said_through < self.last {
            self.wait(LOOK_AGAIN).await?;
            self.periodic();
        }
        while self.busy_with_checkpoint() {
            self.wait(LOOK_AGAIN).await?;
            self.periodic();
        }
        if self.start.checkpoint.as_ref().is_some_and(|(_, manifest)| manifest.epoch == self.last) {
            return Ok(());
        }
        let failures = self.around.status.checkpoint_failures.load(Ordering::Relaxed);
        self.write_checkpoint();
        while self.busy_with_checkpoint() {
            self.wait(LOOK_AGAIN).await?;
            self.log_checkpoint();
            if self.around.status.checkpoint_failures.load(Ordering::Relaxed) > failures {
                return Err(DecideError::Worker("a checkpoint is needed here and could not be written".to_owned()));
            }
        }
        Ok(())
    }

    const fn busy_with_checkpoint(&self) -> bool {
        self.writing.is_some() || self.written.is_some() || self.logging.is_some()
    }

    /// Step 6, first half: the keeper writes what it has.
    fn write_checkpoint(&mut self) {
        self.checkpoint_at = self.around.clock.elapsed();
        self.changed = false;
        let mut ends: BTreeMap<String, BTreeMap<u32, u64>> = BTreeMap::new();
        for (lot, end) in &self.finished_ends {
            let source = self.plan.sources[usize::from(lot.source)].id.clone();
            ends.entry(source).or_default().insert(lot.partition, *end);
        }
        let manifest = Manifest {
            epoch: self.finished,
            now: self.finished_now,
            ends,
            topology: self.hashes.0,
            calendar: self.hashes.1,
            rules: self.plan.rules.hash,
            marks: self.marks.clone(),
            chunks: Vec::new(),
        };
        self.writing = Some(self.finished);
        if let Some(keep) = &self.keep {
            let _ = keep.send(Keep::Write(Box::new(manifest)));
        }
    }

    pub(super) fn on_kept(&mut self, kept: Kept) {
        self.writing = None;
        match kept {
            Kept::Written(name, manifest) => {
                self.written = Some((Named { name, epoch: manifest.epoch }, *manifest));
                self.log_checkpoint();
            }
            Kept::Failed(error) => {
                tracing::error!(%error, "a checkpoint could not be written; the replay grows until one can");
                self.around.status.checkpoint_failures.fetch_add(1, Ordering::Relaxed);
                self.changed = true;
            }
        }
    }

    /// Step 6, second half: it counts once all of it was said.
    fn log_checkpoint(&mut self) {
        let said = |epoch| epoch <= self.said_through || deliberate::has(Bug::CheckpointBeforeSaid);
        let due = |(named, _): &(Named, Manifest)| said(named.epoch);
        if self.logging.is_none() && self.written.as_ref().is_some_and(due) {
            let Some((named, manifest)) = self.written.take() else { return };
            let (name, epoch) = (named.name.clone(), named.epoch);
            self.logging = Some((named, manifest));
            self.send_entry(Entry::Checkpoint { generation: self.generation_log, name, epoch });
        }
    }

    pub(super) fn on_checkpoint(&mut self, named: Named) {
        let Some(newest) = self.logging.take().filter(|(logging, _)| *logging == named) else { return };
        self.around.status.set_checkpoint(named.epoch);
        let second = self.start.checkpoint.replace(newest);
        let third = std::mem::replace(&mut self.start.second, second);
        let kept: Vec<_> =
            [&self.start.checkpoint, &self.start.second].into_iter().flatten().map(|(_, kept)| kept.clone()).collect();
        if let (Some((name, manifest)), Some(keep)) = (third, &self.keep) {
            let _ = keep.send(Keep::Delete(name.name, Box::new(manifest), kept));
        }
        // Once both are this generation's, what earlier ones left is older, but for an epoch or two that they
        // ran ahead of the log: so it is looked for again, less and less often.
        self.checkpoints += 1;
        if self.checkpoints > 1
            && self.checkpoints.is_power_of_two()
            && let (Some(newest), Some(second), Some(keep)) = (&self.start.checkpoint, &self.start.second, &self.keep)
        {
            let of = |(named, manifest): &(Named, Manifest)| (named.name.clone(), manifest.clone());
            let _ = keep.send(Keep::Sweep(vec![of(newest), of(second)]));
        }
        // Cuts up to the second-newest checkpoint's epoch are not needed by anybody any more. By epoch,
        // never by place: a checkpoint's own place says nothing.
        let newest = deliberate::has(Bug::DeletedBelowTheNewest);
        if let Some((second, _)) = if newest { &self.start.checkpoint } else { &self.start.second } {
            let keep = self.start.offsets.split_off(&(second.epoch + 1));
            let trimmed = std::mem::replace(&mut self.start.offsets, keep);
            if let Some((_, last)) = trimmed.last_key_value() {
                self.send_trim(*last + 1);
            }
        }
    }

    fn send_trim(&self, before: u64) {
        let cuts = TopicPartition { topic: self.plan.outlets.topics.cuts().into(), partition: 0 };
        if let Err(error) = self.around.log.trim(&cuts, before) {
            tracing::warn!(%error, "the cut log could not be trimmed; it is longer than it needs to be");
        }
    }
}
