//! The simulated clock: it moves when the world says so, and a wall clock may be set wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tidings_pipeline::runtime::clock::Clock;
use tidings_schemas::time::Instant;

/// Everybody's time.
#[derive(Debug)]
pub struct Time {
    start: Instant,
    elapsed_us: AtomicU64,
    wrong_ms: AtomicI64,
}

impl Time {
    /// Time that begins at `start`.
    #[must_use]
    pub fn new(start: Instant) -> Arc<Self> {
        Arc::new(Self { start, elapsed_us: AtomicU64::new(0), wrong_ms: AtomicI64::new(0) })
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.elapsed_us.load(Ordering::Relaxed))
    }

    /// What a clock that is right shows.
    #[must_use]
    pub fn truth(&self) -> Instant {
        self.start.after(self.elapsed())
    }

    /// Moves on.
    pub fn pass(&self, span: Duration) {
        self.elapsed_us.fetch_add(u64::try_from(span.as_micros()).unwrap_or(0), Ordering::Relaxed);
    }

    /// Sets the wall clock wrong by so much, or right again.
    pub fn set_wrong(&self, by_ms: i64) {
        self.wrong_ms.store(by_ms, Ordering::Relaxed);
    }
}

impl Clock for Time {
    fn wall(&self) -> Instant {
        Instant(self.truth().0 + self.wrong_ms.load(Ordering::Relaxed))
    }

    fn elapsed(&self) -> Duration {
        Self::elapsed(self)
    }
}
