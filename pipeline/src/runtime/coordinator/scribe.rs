//! Who appends to the cut log.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::cutlog::{CutLog, CutLogError, Entry, Named};
use crate::runtime::crew::{Next, Part, hear};

/// A cut on its way into the log.
pub(super) enum Logged {
    Cut(u64, u64),
    Checkpoint(Named),
    Skip,
    Failed(CutLogError),
}

/// Appends to the cut log, one entry at a time.
pub(super) struct Scribe {
    pub(super) cutlog: CutLog,
    /// The entry that is under way.
    pub(super) entry: Option<Entry>,
    pub(super) inbox: Receiver<Entry>,
    pub(super) outbox: Sender<Logged>,
}

impl Part for Scribe {
    fn step(&mut self, patience: Duration) -> Next {
        let entry = match self.entry.take().map_or_else(|| hear(&self.inbox, patience), Ok) {
            Ok(entry) => entry,
            Err(next) => return next,
        };
        let logged = match (self.cutlog.attempt(&entry), &entry) {
            (Ok(None), _) => {
                self.entry = Some(entry);
                return Next::Again;
            }
            (Ok(Some(offset)), Entry::Cut { cut, .. }) => Logged::Cut(cut.epoch, offset),
            (Ok(Some(_)), Entry::Checkpoint { name, epoch, .. }) => {
                Logged::Checkpoint(Named { name: name.clone(), epoch: *epoch })
            }
            (Ok(Some(_)), Entry::Skip { .. }) => Logged::Skip,
            (Ok(Some(_)), Entry::Begin { .. }) => return Next::Again,
            (Err(error), _) => Logged::Failed(error),
        };
        let failed = matches!(logged, Logged::Failed(_));
        if self.outbox.send(logged).is_err() || failed { Next::Ended } else { Next::Again }
    }
}
