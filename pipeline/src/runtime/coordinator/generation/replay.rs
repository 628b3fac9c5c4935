//! Recovery's steps 4 to 7: what the log says once more, and whom a call killed.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use tidings_operators::harness::aside::Killed;
use tidings_operators::harness::feed::{Extent, Lot};
use tidings_operators::harness::output::EpochOutput;
use tidings_sinks::log::TopicPartition;

use crate::cutlog::{Entry, SkipAt};
use crate::runtime::crumbs::Careful;

use super::cuts::LOOK_FOR_ROOM;
use super::{Generation, Held, LOOK_AGAIN};
use crate::runtime::coordinator::{DecideError, described};

impl Generation<'_> {
    /// What two processes died of is left out, if it is still to come. Does not return then.
    pub(super) async fn leave_condemned_out(&mut self) -> Result<(), DecideError> {
        let Some(killed) = self.condemned.take() else { return Ok(()) };
        let known = self.start.skips.get(&killed.epoch).is_some_and(|skips| skips.contains(&killed.skip));
        if known || !self.start.cuts.iter().any(|cut| cut.epoch == killed.epoch) {
            return Ok(());
        }
        self.on_killed(killed)?;
        loop {
            self.wait(LOOK_AGAIN).await?;
        }
    }

    /// Whether nothing of an epoch was said by anybody: then what it does may kill.
    fn may_kill(&self, epoch: u64) -> bool {
        epoch > self.said_through && !self.start.digests.contains_key(&epoch)
    }

    /// A call killed its operator: it is logged that it is left out, behind its epoch's cut, of which
    /// nothing can have been said. Then this generation ends, and the next one runs the epoch without it.
    pub(super) fn on_killed(&mut self, killed: Box<Killed>) -> Result<(), DecideError> {
        let epoch = killed.epoch;
        let why = if !self.may_kill(epoch) {
            Some("an earlier run decided that epoch with it: start the build that did, on a machine that is sound")
        } else if !self.may_set_aside {
            Some(
                "too many died of theirs within the last hour: mend what kills (`it killed` says where), or start \
                 again to set further ones aside",
            )
        } else {
            None
        };
        if let Some(why) = why {
            let (what, problem) = (described(&killed, self.plan), killed.skip.problem);
            return Err(DecideError::Killed { what, epoch, why, problem });
        }
        // Of two that died the first is enough: the other dies again.
        if self.killed.is_none() {
            let skip = SkipAt { epoch, skip: killed.skip.clone() };
            self.send_entry(Entry::Skip { generation: self.generation_log, skip });
            self.killed = Some(killed);
        }
        Ok(())
    }

    /// Recovery's steps 4 to 6: the logged cuts again, compared before anything of them is said.
    pub(super) async fn replay(&mut self) -> Result<(), DecideError> {
        self.replaying = true;
        let cuts = std::mem::take(&mut self.start.cuts);
        if let Some(last) = cuts.last() {
            tracing::info!(from = cuts[0].epoch, to = last.epoch, generation = self.generation_log, "replaying");
        }
        for cut in cuts {
            let mut expected = BTreeMap::new();
            for (number, source) in self.plan.sources.iter().enumerate() {
                for (partition, end) in cut.ends.get(&source.id).into_iter().flatten() {
                    let lot = Lot { source: u16::try_from(number).unwrap_or(u16::MAX), partition: *partition };
                    expected.insert(lot, Extent { end: end.end, records: end.records, checksum: end.checksum });
                }
            }
            while !self.has_room() {
                self.wait(LOOK_FOR_ROOM).await?;
            }
            self.last = cut.epoch;
            self.now = cut.now;
            self.take(&expected);
            if self.careful.is_none()
                && self.may_kill(cut.epoch)
                && let Some(crumbs) = &self.around.crumbs
            {
                self.careful = crumbs.careful().inspect_err(|error| tracing::warn!(%error, "no crumbs")).ok();
            }
            let ends = expected.iter().map(|(lot, extent)| (*lot, extent.end)).collect();
            self.release(Held { epoch: cut.epoch, now: cut.now, ends });
            while self.finished < cut.epoch {
                self.wait(LOOK_AGAIN).await?;
            }
            self.careful.iter().for_each(Careful::passed);
            let Some(output) = self.uncompared.take() else { continue };
            compare(&output, &expected, self.start.digests.get(&cut.epoch).copied())?;
            self.around.status.replayed.fetch_add(1, Ordering::Relaxed);
            // What was said is said to nobody.
            if cut.epoch > self.said_through {
                self.hand_over(output);
            }
        }
        self.replaying = false;
        self.careful = None;
        if let Some(crumbs) = &self.around.crumbs {
            crumbs.clear();
        }
        Ok(())
    }

    /// Recovery's step 7: side inputs alone, up to where they ended when this began. Stream time
    /// stands still, so that nothing new falls due meanwhile.
    pub(super) async fn load_side_inputs(&mut self) -> Result<(), DecideError> {
        if self.last == 0 {
            self.now = self.around.clock.wall();
        }
        let mut marks = BTreeMap::new();
        for (number, source) in self.plan.sources.iter().enumerate().filter(|(_, source)| source.side_input) {
            for partition in 0..source.partitions {
                let at = TopicPartition { topic: source.topic.as_str().into(), partition };
                let lot = Lot { source: u16::try_from(number).unwrap_or(u16::MAX), partition };
                marks.insert(lot, self.around.log.range(&at)?.end);
            }
        }
        let short = |this: &Self| marks.iter().any(|(lot, mark)| this.ends.get(lot).copied().unwrap_or(0) < *mark);
        while short(self) {
            let grown = |this: &Self| marks.keys().any(|lot| this.grown(*lot));
            while !(self.may_cut() && grown(self)) {
                self.wait(LOOK_AGAIN).await?;
            }
            let now = self.now;
            self.cut(now, |lot| marks.contains_key(&lot));
        }
        while self.finished < self.last {
            self.wait(LOOK_AGAIN).await?;
        }
        Ok(())
    }
}

/// Recovery's step 5: what a replayed epoch read and said must be what the log says of it.
fn compare(output: &EpochOutput, expected: &BTreeMap<Lot, Extent>, digest: Option<u64>) -> Result<(), DecideError> {
    let mismatch = |problem: String| DecideError::Mismatch { epoch: output.epoch, problem };
    for (lot, expected) in expected {
        let read = output.read.get(lot).copied().unwrap_or_default();
        if read != *expected {
            return Err(mismatch(format!(
                "source {} partition {} has {} records with checksum {:016x} up to offset {}, the cut says {} with {:016x}: \
                 records were given up (retention, compaction) or changed",
                lot.source,
                lot.partition,
                read.records,
                read.checksum,
                expected.end,
                expected.records,
                expected.checksum
            )));
        }
    }
    let said = output.digest;
    match digest {
        Some(digest) if digest != said => {
            Err(mismatch(format!("it says {said:016x}, the first run said {digest:016x}")))
        }
        _ => Ok(()),
    }
}
