//! A count of steps: what a watchdog looks at. Whoever works counts, whoever watches compares; how long
//! an epoch takes is nobody's business, as long as steps are made in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The steps of one thread. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// A step was made.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were made.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
