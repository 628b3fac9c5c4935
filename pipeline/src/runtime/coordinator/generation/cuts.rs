//! Steps 2 to 4: when a cut is made, what it takes, and what becomes of its epoch.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tidings_operators::harness::dataflow::{Command, Cut};
use tidings_operators::harness::feed::{Extent, Lot};
use tidings_operators::harness::output::EpochOutput;
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::time::Instant;
use tidings_sinks::log::LogError;

use crate::cutlog::{CutBody, End, Entry};
use crate::runtime::crumbs::Careful;
use crate::runtime::egress::Say;
use crate::runtime::keeper::Keep;

use super::{Epoch, Generation, Held};
use crate::runtime::coordinator::DecideError;

/// Epochs that may be open at once: cut, and not yet finished. A slow log or worker lengthens
/// epochs instead of adding to them.
const OPEN_MAX: u64 = 2;

/// Finished epochs that may wait to be said. Beyond it no cut is made: the log keeps the input.
pub(super) const UNSAID_MAX: u64 = 256;

/// Bytes that finished epochs may wait to be said: as many epochs of a flood are more than memory should hold.
pub(super) const UNSAID_BYTES_MAX: usize = 256 << 20;

/// Deltas that may wait for the keeper. Beyond it no cut is made, so that a slow disk lengthens epochs
/// and holds nobody up in the middle of one.
pub(super) const UNKEPT_MAX: usize = 64;

/// How long the coordinator waits for room before it looks again: nobody tells it.
pub(super) const LOOK_FOR_ROOM: Duration = Duration::from_millis(50);

/// Stream time may run ahead of monotonic time by this much; a larger step must agree with the log's
/// own time.
const STEP_MAX: Duration = Duration::from_secs(1);

/// How far the log's time and the wall clock may differ when a step is checked.
const AGREE_WITHIN: Duration = Duration::from_secs(60);

impl Generation<'_> {
    /// Whether the partition has come further than its last cut.
    pub(super) fn grown(&self, lot: Lot) -> bool {
        let end = self.ends.get(&lot).copied().unwrap_or(0);
        self.ahead.get(&lot).is_some_and(|ahead| ahead.end > end)
    }

    pub(super) fn may_cut(&self) -> bool {
        self.unlogged.is_none() && self.last - self.finished < OPEN_MAX && self.has_room()
    }

    /// Whether what an epoch says and changes can be handed over without waiting.
    pub(super) fn has_room(&self) -> bool {
        !self.is_unsaid_full() && !self.is_unkept_full()
    }

    fn is_unsaid_full(&self) -> bool {
        self.finished.saturating_sub(self.said_through) >= UNSAID_MAX || self.unsaid.bytes() >= UNSAID_BYTES_MAX
    }

    fn is_unkept_full(&self) -> bool {
        self.keep.as_ref().is_some_and(|keep| keep.len() >= UNKEPT_MAX)
    }

    /// Counts how often a bound begins to hold up the cuts.
    pub(super) fn count_waits(&mut self) {
        let full = (self.is_unsaid_full(), self.is_unkept_full());
        let status = &self.around.status;
        let before = std::mem::replace(&mut self.full, full);
        for (before, now, waits) in [(before.0, full.0, &status.unsaid_waits), (before.1, full.1, &status.unkept_waits)]
        {
            waits.fetch_add(u64::from(now && !before), Ordering::Relaxed);
        }
    }

    pub(super) fn should_cut(&self) -> bool {
        let since = self.around.clock.real(self.around.clock.elapsed().saturating_sub(self.cut_at));
        if since < self.plan.epoch_min {
            return false;
        }
        let due = self.next_timer.is_some_and(|at| at <= self.around.clock.wall().max(self.now));
        since >= self.plan.idle_max || due || self.ahead.keys().any(|lot| self.grown(*lot))
    }

    /// How long nothing needs to be done if nothing happens.
    pub(super) fn until_next(&self) -> Duration {
        let since = self.around.clock.real(self.around.clock.elapsed().saturating_sub(self.cut_at));
        let short = self.plan.epoch_min.saturating_sub(since);
        if !self.may_cut() {
            return LOOK_FOR_ROOM;
        }
        if self.ahead.keys().any(|lot| self.grown(*lot)) {
            return short;
        }
        let due = self.next_timer.map(|at| self.around.clock.real(at.since(self.around.clock.wall())));
        let idle = self.plan.idle_max.saturating_sub(since);
        due.map_or(idle, |due| due.min(idle)).max(short)
    }

    /// The next stream time: the wall clock, never going back, never far ahead of monotonic time.
    pub(super) fn stream_time(&self) -> Result<Instant, DecideError> {
        let wall = self.around.clock.wall();
        let elapsed = self.around.clock.elapsed().saturating_sub(self.cut_at);
        if wall <= self.now.after(elapsed + STEP_MAX) {
            return Ok(wall.max(self.now));
        }
        match self.around.log.time() {
            Ok(log) if wall.since(log) <= AGREE_WITHIN && log.since(wall) <= AGREE_WITHIN => Ok(wall),
            Ok(log) => Err(DecideError::Clock { last: self.now, wall, log }),
            // A log without a time of its own can't disagree; say that nobody checked.
            Err(LogError::Refused(why)) => {
                tracing::warn!(%wall, last = %self.now, %why, "the clock stepped, and the log has no time to compare with");
                Ok(wall)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Step 2: cuts at the reported positions of the partitions that `which` admits. The epoch is held until its cut
    /// is durable: whatever a worker does, and dies of, can be replayed.
    pub(super) fn cut(&mut self, now: Instant, which: impl Fn(Lot) -> bool) {
        let mut extents = BTreeMap::new();
        for (lot, ahead) in self.ahead.iter().filter(|(lot, _)| which(**lot) && self.grown(**lot)) {
            let taken = self.cut.get(lot).copied().unwrap_or_default();
            let records = ahead.records - taken.records;
            let checksum = ahead.checksum.wrapping_sub(taken.checksum);
            extents.insert(*lot, Extent { end: ahead.end, records, checksum });
        }
        self.last += 1;
        self.now = now;
        self.cut_at = self.around.clock.elapsed();
        let mut ends: BTreeMap<String, BTreeMap<u32, End>> = BTreeMap::new();
        for (lot, Extent { end, records, checksum }) in &extents {
            let source = &self.plan.sources[usize::from(lot.source)];
            let end = End { end: *end, records: *records, checksum: *checksum };
            ends.entry(source.id.clone()).or_default().insert(lot.partition, end);
            self.around.status.records.fetch_add(*records, Ordering::Relaxed);
        }
        self.take(&extents);
        let cut = CutBody {
            epoch: self.last,
            now,
            ends,
            topology: self.hashes.0,
            calendar: self.hashes.1,
            build: self.plan.build,
            said_through: self.said_through,
            marks: std::mem::take(&mut self.new_marks),
            finished: self.digest,
        };
        self.send_entry(Entry::Cut { generation: self.generation_log, cut });
        let ends = extents.iter().map(|(lot, extent)| (*lot, extent.end)).collect();
        self.unlogged = Some(Held { epoch: self.last, now, ends });
        if deliberate::has(Bug::SaidBeforeTheCut) {
            self.release_held();
        }
        self.around.status.set_epoch(self.last);
    }

    /// Notes what a cut takes.
    pub(super) fn take(&mut self, extents: &BTreeMap<Lot, Extent>) {
        for (lot, extent) in extents {
            let taken = self.cut.entry(*lot).or_default();
            taken.records += extent.records;
            taken.checksum = taken.checksum.wrapping_add(extent.checksum);
            self.ends.insert(*lot, extent.end);
        }
    }

    pub(super) fn release_held(&mut self) {
        if let Some(held) = self.unlogged.take() {
            self.release(held);
        }
    }

    pub(super) fn release(&mut self, Held { epoch, now, ends }: Held) {
        let output = EpochOutput { epoch, now, ..EpochOutput::default() };
        self.open.insert(epoch, Epoch { output, ends: ends.clone(), workers: 0 });
        let crumbs = self.careful.as_ref().map(Careful::watch);
        let skips = self.start.skips.get(&epoch).map(|skips| skips.as_slice().into()).unwrap_or_default();
        let cut = Arc::new(Cut { epoch, now, rules: Arc::clone(&self.plan.rules), ends, skips, crumbs });
        for (command, waker) in self.commands.iter().zip(&self.wakers) {
            let _ = command.send(Command::Release(Arc::clone(&cut)));
            if let Some(waker) = waker.get() {
                waker();
            }
        }
    }

    /// Step 3: a worker has finished an epoch.
    pub(super) fn on_done(&mut self, output: EpochOutput) {
        let epoch = output.epoch;
        let Some(open) = self.open.get_mut(&epoch) else { return };
        open.output.join(output);
        open.workers += 1;
        if open.workers < self.plan.workers {
            return;
        }
        let Some(Epoch { mut output, ends, .. }) = self.open.remove(&epoch) else { return };
        output.canonical();
        self.finished = epoch;
        self.finished_now = output.now;
        self.finished_ends.extend(ends);
        self.next_timer = output.next_timer;
        self.around.status.keys.store(output.keys, Ordering::Relaxed);
        self.digest = Some((epoch, output.digest));
        let delta = std::mem::take(&mut output.delta);
        self.changed |= !delta.is_empty();
        if let Some(keep) = &self.keep {
            let _ = keep.send(Keep::Delta(delta));
        }
        if self.replaying {
            self.uncompared = Some(output);
        } else {
            self.hand_over(output);
        }
    }

    /// Step 4: hands egress what an epoch says. Its cut is durable, otherwise nothing would have run.
    pub(super) fn hand_over(&mut self, output: EpochOutput) {
        self.unsaid.add(output.epoch, output.bytes());
        if let Some(observer) = &self.around.observer {
            observer.rows(&output.rows.decode());
        }
        if let Some(say) = &self.say {
            let _ = say.send(Say::Epoch(Box::new(output)));
        }
    }
}

/// What was handed over and is not said yet.
#[derive(Default)]
pub(super) struct Unsaid {
    epochs: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Unsaid {
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    fn add(&mut self, epoch: u64, bytes: usize) {
        self.epochs.push_back((epoch, bytes));
        self.bytes += bytes;
    }

    /// Everything up to this epoch was said.
    pub(super) fn said_through(&mut self, through: u64) {
        while let Some((_, bytes)) = self.epochs.pop_front_if(|(epoch, _)| *epoch <= through) {
            self.bytes -= bytes;
        }
    }
}

/// Commands are few: at most the open epochs and a stop.
pub(crate) fn command_channel() -> (Sender<Command>, Receiver<Command>) {
    bounded(usize::try_from(OPEN_MAX).unwrap_or(2) + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_gives_its_bytes_back() {
        let mut unsaid = Unsaid::default();
        for (epoch, bytes) in [(7, 100), (8, 0), (9, 20), (10, 3)] {
            unsaid.add(epoch, bytes);
        }
        let mut left = |through| {
            unsaid.said_through(through);
            unsaid.bytes()
        };
        assert_eq!([6, 7, 9, 9, 20].map(&mut left), [123, 23, 3, 3, 0]);
    }
}
