//! Appends, and what nobody waits for: step 4.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Receiver;
use tidings_schemas::lifecycle::Stage;
use tidings_schemas::rows::Rows;
use tidings_sinks::log::{Append, Log, LogError};

use super::progress::{Progress, Through};
use super::{CriticalStatus, Pause};
use crate::runtime::coordinator::Observer;
use crate::runtime::egress::Outlets;

/// Batches that the recorder writes with one append.
const BATCHES_MAX: usize = 64;

/// What a member tells its recorder of one batch.
#[derive(Default)]
pub(super) struct Told {
    pub(super) appends: Vec<Append>,
    pub(super) rows: Rows,
    pub(super) through: Through,
}

impl Told {
    pub(super) fn bytes(&self) -> usize {
        self.appends.iter().map(Append::bytes).sum::<usize>() + self.rows.bytes()
    }
}

/// Appends for one thread.
#[derive(Clone)]
pub(super) struct Writer {
    pub(super) log: Arc<dyn Log>,
    pub(super) status: Arc<CriticalStatus>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) ended: Arc<AtomicBool>,
}

impl Writer {
    pub(super) fn halted(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.ended.load(Ordering::Relaxed)
    }

    /// Appends until the log has it; false when it could not be done before the path was stopped.
    pub(super) fn append(&self, appends: &[Append]) -> Result<bool, LogError> {
        let mut pause = Pause::new();
        while !appends.is_empty() {
            match self.log.append(appends) {
                Ok(_) => break,
                Err(error) if error.is_transient() => {
                    if self.halted() {
                        return Ok(false);
                    }
                    self.status.retries.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, "a critical record cannot be written; nothing is lost, trying again");
                    pause.wait();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Writes what nobody waits for: step 4.
pub(super) struct Recorder {
    pub(super) writer: Writer,
    pub(super) outlets: Outlets,
    pub(super) observer: Option<Arc<dyn Observer>>,
    pub(super) inbox: Receiver<Told>,
    pub(super) progress: Arc<Progress>,
}

impl Recorder {
    pub(super) fn run(self) -> Result<(), LogError> {
        let result = self.record();
        self.progress.stands().closed = true;
        self.progress.recorded.notify_all();
        result
    }

    /// Until the member lets go.
    fn record(&self) -> Result<(), LogError> {
        while let Ok(mut told) = self.inbox.recv() {
            for more in self.inbox.try_iter().take(BATCHES_MAX - 1) {
                told.appends.extend(more.appends);
                told.rows.append(more.rows);
                told.through.extend(more.through);
            }
            let bytes = told.bytes();
            told.appends.extend(self.outlets.blocks(Stage::Critical, 0, &told.rows));
            if !self.writer.append(&told.appends)? {
                return Ok(());
            }
            self.progress.move_on(&told.through, |stand, offset| stand.recorded = stand.recorded.max(offset));
            self.progress.stands().unrecorded_bytes -= bytes;
            self.progress.recorded.notify_all();
            if let Some(observer) = &self.observer {
                observer.rows(&told.rows.decode());
            }
        }
        Ok(())
    }
}
