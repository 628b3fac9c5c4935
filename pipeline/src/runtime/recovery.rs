//! Recovery: what the log and the store say, before anything is read or said.
//!
//! 1. `begin` is appended, and only then the log is read up to it.
//! 2. The newest valid checkpoint is loaded. A trimmed log without one is refused; an untrimmed log
//!    without one starts empty.
//! 3. What the cuts beyond it name (topology, tz data, build) must be what this process has. Cuts of
//!    another topology are drained first, by that one: see [`Start::must_drain`].
//!
//! The replay itself is the coordinator's, because it is the same engine that runs on afterwards.

use std::collections::BTreeMap;

use tidings_operators::harness::aside::Skip;
use tidings_operators::harness::delta::Delta;

use crate::checkpoint::{CheckpointError, Checkpoints, Manifest};
use crate::cutlog::{Counted, CutBody, CutLogError, End, Hash, Named};
use crate::runtime::plan::Plan;

/// Where a generation starts.
#[derive(Debug)]
pub struct Start {
    /// The checkpoint that was loaded, and its content; none starts empty.
    pub checkpoint: Option<(Named, Manifest)>,
    /// The second-newest, which is kept beside it.
    pub second: Option<(Named, Manifest)>,
    /// The state at the checkpoint.
    pub state: Delta,
    /// Cuts to be replayed, each following the one before.
    pub cuts: Vec<CutBody>,
    /// The last epoch that the log has, or the checkpoint's.
    pub last: u64,
    /// Offsets of all counted cuts, for trimming.
    pub offsets: BTreeMap<u64, u64>,
    /// Everything up to this epoch was said.
    pub said_through: u64,
    /// The newest mark of each lane partition.
    pub marks: BTreeMap<(String, u32), u64>,
    /// What earlier runs of the epochs to be replayed said, by digest.
    pub digests: BTreeMap<u64, u64>,
    /// Calls that are left out, by epoch: they killed their operators.
    pub skips: BTreeMap<u64, Vec<Skip>>,
    /// The last records of each partition that the checkpoint holds, where a cut that is left says: from
    /// which offset, and what was there.
    pub decided: BTreeMap<(String, u32), (u64, End)>,
}

/// Why a start is refused.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The cut log.
    #[error(transparent)]
    CutLog(#[from] CutLogError),
    /// The log was trimmed, and no checkpoint can be read.
    #[error(
        "the cut log begins with epoch {first:?}, so a checkpoint must be loaded, but none can be: {}; \
         restore the checkpoint store",
        .problems.join("; ")
    )]
    NoCheckpoint {
        /// The first cut that is left.
        first: Option<u64>,
        /// What was tried.
        problems: Vec<String>,
    },
    /// The cuts do not follow the checkpoint.
    #[error("the newest readable checkpoint is of epoch {checkpoint}, but the cut log goes on with epoch {first}")]
    Hole {
        /// The checkpoint's epoch.
        checkpoint: u64,
        /// The next cut that is there.
        first: u64,
    },
    /// Cuts beyond the checkpoint were made by another build.
    #[error(
        "{cuts} cuts beyond the checkpoint were decided by another build: drain them with that build \
         (run it once more and stop it with SIGTERM), or start with `--accept-divergence`, which marks what differs as duplicates"
    )]
    Build {
        /// How many.
        cuts: usize,
    },
    /// Something that a cut names is not in the store.
    #[error("what the cuts name cannot be read: {0}")]
    Blob(#[from] CheckpointError),
}

/// Steps 2 and 3 for what `counted` says.
///
/// # Errors
/// When the start must be refused: the message says why and what to do.
pub fn start(counted: Counted, checkpoints: &Checkpoints) -> Result<Start, StartError> {
    let mut problems = Vec::new();
    let mut loaded: Option<(Named, Manifest, Delta)> = None;
    let mut second = None;
    for named in counted.checkpoints.into_values().rev() {
        if let Some((newest, ..)) = &loaded {
            // Another one of the same epoch is no second: cuts up to the second's are given up.
            if named.epoch == newest.epoch {
                continue;
            }
            second = checkpoints.manifest(&named.name).ok().map(|manifest| (named, manifest));
            break;
        }
        let read = checkpoints.manifest(&named.name).and_then(|manifest| {
            let state = checkpoints.state(&manifest)?;
            Ok((manifest, state))
        });
        match read {
            Ok((manifest, state)) => loaded = Some((named, manifest, state)),
            Err(error) => {
                tracing::warn!(%error, "a checkpoint cannot be read; trying the one before");
                problems.push(error.to_string());
            }
        }
    }
    let first = counted.cuts.first().map(|(_, cut)| cut.epoch);
    if loaded.is_none() && counted.trimmed {
        return Err(StartError::NoCheckpoint { first, problems });
    }
    if loaded.is_none() && first.is_some_and(|first| first > 1) {
        return Err(StartError::NoCheckpoint { first, problems });
    }
    let epoch = loaded.as_ref().map_or(0, |(_, manifest, _)| manifest.epoch);
    let offsets = counted.cuts.iter().map(|(offset, cut)| (cut.epoch, *offset)).collect();
    let digests = counted.cuts.iter().filter_map(|(_, cut)| cut.finished).collect();
    let mut marks = loaded.as_ref().map(|(_, manifest, _)| manifest.marks.clone()).unwrap_or_default();
    for mark in counted.cuts.iter().flat_map(|(_, cut)| &cut.marks) {
        let newest = marks.entry((mark.topic.clone(), mark.partition)).or_default();
        *newest = mark.offset.max(*newest);
    }
    let decided = decided(&counted.cuts, epoch, second.as_ref().map(|(_, manifest)| manifest));
    let cuts: Vec<_> = counted.cuts.into_iter().map(|(_, cut)| cut).filter(|cut| cut.epoch > epoch).collect();
    if let Some(first) = cuts.first().filter(|first| first.epoch != epoch + 1) {
        return Err(StartError::Hole { checkpoint: epoch, first: first.epoch });
    }
    let last = cuts.last().map_or(epoch, |cut| cut.epoch);
    let (checkpoint, state) = match loaded {
        Some((named, manifest, state)) => (Some((named, manifest)), state),
        None => (None, Delta::new()),
    };
    let (said_through, skips) = (counted.said_through, counted.skips);
    Ok(Start { checkpoint, second, state, cuts, last, offsets, said_through, marks, digests, skips, decided })
}

/// What the last cut up to `epoch` read of each partition, where it is known from which offset on: from
/// another cut that is left, or from the checkpoint `older`.
pub(crate) fn decided(
    cuts: &[(u64, CutBody)],
    epoch: u64,
    older: Option<&Manifest>,
) -> BTreeMap<(String, u32), (u64, End)> {
    let mut ends: BTreeMap<(String, u32), u64> = BTreeMap::new();
    for (source, stood) in older.iter().flat_map(|manifest| &manifest.ends) {
        ends.extend(stood.iter().map(|(partition, end)| ((source.clone(), *partition), *end)));
    }
    let older = older.map_or(0, |manifest| manifest.epoch);
    let mut decided = BTreeMap::new();
    for (_, cut) in cuts.iter().filter(|(_, cut)| cut.epoch > older && cut.epoch <= epoch) {
        for (source, partitions) in &cut.ends {
            for (partition, end) in partitions {
                let place = (source.clone(), *partition);
                if let Some(from) = ends.insert(place.clone(), end.end) {
                    decided.insert(place, (from, *end));
                }
            }
        }
    }
    decided
}

impl Start {
    /// Nothing was decided yet.
    #[cfg(test)]
    pub(crate) fn empty() -> Self {
        Self {
            checkpoint: None,
            second: None,
            state: Delta::new(),
            cuts: Vec::new(),
            last: 0,
            offsets: BTreeMap::new(),
            said_through: 0,
            marks: BTreeMap::new(),
            digests: BTreeMap::new(),
            skips: BTreeMap::new(),
            decided: BTreeMap::new(),
        }
    }

    /// The topology and tz data under which the next cuts were made, if they must be drained before this
    /// process may decide; then only they are left to be replayed. They are drained where they are not
    /// `plan`'s, and where cuts of something else follow: each cut is replayed under its own.
    ///
    /// # Errors
    /// When they were made by another build.
    pub fn must_drain(&mut self, plan: &Plan, accept_divergence: bool) -> Result<Option<(Hash, Hash)>, StartError> {
        if !accept_divergence && self.cuts.iter().any(|cut| cut.build != plan.build) {
            return Err(StartError::Build { cuts: self.cuts.len() });
        }
        let Some(under) = self.cuts.first().map(|cut| (cut.topology, cut.calendar)) else { return Ok(None) };
        let others = self.cuts.iter().position(|cut| (cut.topology, cut.calendar) != under);
        let ours = (plan.topology_hash(), plan.rules.calendar.hash());
        if under == ours && others.is_none() {
            return Ok(None);
        }
        self.cuts.truncate(others.unwrap_or(self.cuts.len()));
        Ok(Some(under))
    }
}
