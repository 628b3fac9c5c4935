//! The keeper of state: merges the epochs' deltas and writes checkpoints, as a part of its own, so that
//! a slow or full disk holds nothing up. Chunks are merged by a second part, the *merger*, because a large
//! state takes longer to rewrite than the stream can wait for the next checkpoint.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use tidings_operators::harness::delta::{Delta, Pending};

use super::crew::{Next, Part, hear};
use crate::checkpoint::{CHUNKS_MERGED_AT, CheckpointError, Checkpoints, Manifest, Merged};

/// What the keeper is told.
pub(crate) enum Keep {
    /// What an epoch changed. Epochs come in order.
    Delta(Delta),
    /// All that was told so far is the state of this manifest's epoch: write it upon the last one.
    Write(Box<Manifest>),
    /// A checkpoint that is not kept any more, and those that are.
    Delete(String, Box<Manifest>, Vec<Manifest>),
    /// What earlier generations left behind: these two are kept.
    Sweep(Vec<(String, Manifest)>),
}

/// What the keeper reports.
pub(crate) enum Kept {
    /// A manifest was written, under this name.
    Written(String, Box<Manifest>),
    /// It could not be written; what changed is kept in memory, and goes into the next one.
    Failed(CheckpointError),
}

/// The keeper of one generation.
pub(crate) struct Keeper {
    pub(crate) checkpoints: Checkpoints,
    pub(crate) generation: u64,
    /// Chunks that the newest manifest names.
    pub(crate) chunks: Vec<String>,
    /// What changed since then.
    pub(crate) pending: Pending,
    pub(crate) inbox: Receiver<Keep>,
    pub(crate) outbox: Sender<Kept>,
    /// To and from the merger; whether it is at work.
    pub(crate) merger: Sender<Merge>,
    pub(crate) merged: Receiver<Result<Option<Merged>, CheckpointError>>,
    pub(crate) merging: bool,
}

/// Chunks of a manifest of this epoch, which have become many.
pub(crate) struct Merge {
    epoch: u64,
    chunks: Vec<String>,
}

/// Merges chunks of one generation, one merge at a time.
pub(crate) struct Merger {
    pub(crate) checkpoints: Checkpoints,
    pub(crate) generation: u64,
    pub(crate) inbox: Receiver<Merge>,
    pub(crate) outbox: Sender<Result<Option<Merged>, CheckpointError>>,
}

impl Part for Merger {
    fn step(&mut self, patience: Duration) -> Next {
        let Merge { epoch, chunks } = match hear(&self.inbox, patience) {
            Ok(merge) => merge,
            Err(next) => return next,
        };
        // Nothing more comes while one is under way, but the end.
        let goes_on = || !matches!(self.inbox.try_recv(), Err(TryRecvError::Disconnected));
        let merged = self.checkpoints.merge(self.generation, epoch, &chunks, goes_on);
        if self.outbox.send(merged).is_ok() { Next::Again } else { Next::Ended }
    }
}

impl Part for Keeper {
    fn step(&mut self, patience: Duration) -> Next {
        let keep = match hear(&self.inbox, patience) {
            Ok(keep) => keep,
            Err(next) => return next,
        };
        match keep {
            Keep::Delta(delta) => self.pending.add(delta),
            Keep::Write(manifest) => {
                let kept = self.write(*manifest);
                if self.outbox.send(kept).is_err() {
                    return Next::Ended;
                }
            }
            Keep::Delete(name, manifest, kept) => {
                let kept: Vec<_> = kept.iter().collect();
                if let Err(error) = self.checkpoints.delete(&name, &manifest, &kept) {
                    // Garbage costs disk, not correctness.
                    tracing::warn!(%error, "a checkpoint that is not needed any more could not be deleted");
                }
            }
            Keep::Sweep(kept) => match self.checkpoints.sweep(self.generation, &kept) {
                Ok(0) => {}
                Ok(objects) => {
                    tracing::info!(objects, "what died with earlier runs was deleted from the checkpoint store")
                }
                Err(error) => tracing::warn!(%error, "what died with earlier runs could not be deleted"),
            },
        }
        Next::Again
    }
}

impl Keeper {
    /// Puts a merged chunk in the place of those that it is made of.
    fn take_merged(&mut self) {
        let Ok(merged) = self.merged.try_recv() else { return };
        self.merging = false;
        match merged {
            Ok(Some(Merged { of, into })) => {
                if let Some(place) = self.chunks.windows(of.len()).position(|chunks| *chunks == *of) {
                    self.chunks.splice(place..place + of.len(), [into]);
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "chunks could not be merged; the next start reads more of them");
            }
        }
    }

    fn write(&mut self, mut manifest: Manifest) -> Kept {
        self.take_merged();
        manifest.chunks.clone_from(&self.chunks);
        match self.checkpoints.write(self.generation, manifest, self.pending.delta()) {
            Ok((name, written)) => {
                self.pending.clear();
                self.chunks.clone_from(&written.chunks);
                if !self.merging && self.chunks.len() > CHUNKS_MERGED_AT {
                    let merge = Merge { epoch: written.epoch, chunks: self.chunks.clone() };
                    self.merging = self.merger.send(merge).is_ok();
                }
                Kept::Written(name, Box::new(written))
            }
            Err(error) => Kept::Failed(error),
        }
    }
}
