//! What a lane did so far, as plain counters: whoever serves metrics reads them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tidings_schemas::lifecycle::{Row, State};

use crate::log::TopicPartition;

/// How far a partition has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// The offset that is read next.
    pub position: u64,
    /// The offset that was committed last.
    pub committed: u64,
    /// Records read and not settled.
    pub open: u64,
}

/// Counters of one lane reader.
#[derive(Debug, Default)]
pub struct LaneMetrics {
    /// Lane records in flight now.
    pub in_flight: AtomicU64,
    /// Their bytes.
    pub in_flight_bytes: AtomicU64,
    /// Waits for a token of a provider's rate or a channel's cap.
    pub paced: AtomicU64,
    /// Provider calls made.
    pub calls: AtomicU64,
    /// Deliveries that arrived, as far as the provider's acceptance says so.
    pub delivered: AtomicU64,
    /// Deliveries that ended without arriving.
    pub failed: AtomicU64,
    /// Attempts that will be repeated.
    pub retries: AtomicU64,
    /// Attempts whose end is not known.
    pub unknown: AtomicU64,
    /// Deliveries and legs that are not wanted any more.
    pub suppressed: AtomicU64,
    /// Deliveries and legs that came too late.
    pub expired: AtomicU64,
    /// Deliveries put into the dead-letter queue.
    pub dead_lettered: AtomicU64,
    /// Legs given back to decide.
    pub returned: AtomicU64,
    /// Records dropped because a mark had passed their epoch.
    pub repeats: AtomicU64,
    /// Records that could not be read.
    pub unreadable: AtomicU64,
    /// How far each partition has come.
    pub(crate) reached: Mutex<BTreeMap<TopicPartition, Reached>>,
}

impl LaneMetrics {
    /// How far each assigned partition has come.
    #[must_use]
    pub fn reached(&self) -> BTreeMap<TopicPartition, Reached> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts what rows say.
    pub(crate) fn count(&self, rows: &[Row]) {
        for state in rows.iter().flat_map(|row| &row.states) {
            let counter = match state {
                State::Delivered => &self.delivered,
                State::Failed => &self.failed,
                State::Retry => &self.retries,
                State::Unknown => &self.unknown,
                State::Suppressed => &self.suppressed,
                State::Expired => &self.expired,
                State::Dlq => &self.dead_lettered,
                State::Returned => &self.returned,
                _ => continue,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}
