//! What time it is: the only module that asks the machine.
//!
//! Decisions never read it: the coordinator turns it into stream time, one instant per epoch, and
//! logs that. The demo's clock runs faster than the wall; credentials and leases use the real one.

use std::time::Duration;

use tidings_schemas::time::Instant;

/// A source of time.
pub trait Clock: Send + Sync {
    /// What a wall clock shows. May step in either direction.
    fn wall(&self) -> Instant;
    /// Time since an arbitrary start. Never steps.
    fn elapsed(&self) -> Duration;
    /// How much of the machine's own time `span` takes: what a thread may sleep for it.
    fn real(&self, span: Duration) -> Duration {
        span
    }
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl Default for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one module that asks the machine")]
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one module that asks the machine")]
    fn wall(&self) -> Instant {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Instant(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that starts at an instant of its own and runs `speed` times as fast as the machine's.
#[derive(Debug)]
pub struct ScaledClock {
    machine: SystemClock,
    start: Instant,
    speed: u32,
}

impl ScaledClock {
    /// A clock that shows `start` now.
    #[must_use]
    pub fn new(start: Instant, speed: u32) -> Self {
        Self { machine: SystemClock::default(), start, speed: speed.max(1) }
    }
}

impl Clock for ScaledClock {
    fn wall(&self) -> Instant {
        self.start.after(self.elapsed())
    }

    fn elapsed(&self) -> Duration {
        self.machine.elapsed() * self.speed
    }

    fn real(&self, span: Duration) -> Duration {
        span / self.speed
    }
}
