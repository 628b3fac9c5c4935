//! The keeper of state: merges the epochs' deltas and writes checkpoints, as a part of its own, so that
//! a slow or full disk holds nothing up.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use tidings_operators::harness::delta::{Delta, Pending};

use super::crew::{Next, Part, hear};
use crate::checkpoint::{CheckpointError, Checkpoints, Manifest};

/// What the keeper is told.
pub(crate) enum Keep {
    /// What an epoch changed. Epochs come in order.
    Delta(Delta),
    /// All that was told so far is the state of this manifest's epoch: write it upon the last one.
    Write(Box<Manifest>),
    /// A checkpoint that is not kept any more, and those that are.
    Delete(String, Box<Manifest>, Vec<Manifest>),
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
        }
        Next::Again
    }
}

impl Keeper {
    fn write(&mut self, mut manifest: Manifest) -> Kept {
        manifest.chunks.clone_from(&self.chunks);
        match self.checkpoints.write(self.generation, manifest, self.pending.delta()) {
            Ok((name, written)) => {
                self.pending.clear();
                self.chunks.clone_from(&written.chunks);
                Kept::Written(name, Box::new(written))
            }
            Err(error) => Kept::Failed(error),
        }
    }
}
