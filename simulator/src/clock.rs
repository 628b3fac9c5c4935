//! The simulated clock: it moves when the world says so, and a wall clock may be set wrong.

use std::future::Future;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidings_pipeline::runtime::clock::Clock;
use tidings_schemas::time::Instant;

/// Everybody's time.
#[derive(Debug)]
pub struct Time {
    start: Instant,
    elapsed_us: AtomicU64,
    wrong_ms: AtomicI64,
    /// While a runtime leads: where its clock stood at an elapsed time.
    led: Mutex<Option<(tokio::time::Instant, Duration)>>,
}

impl Time {
    /// Time that begins at `start`.
    #[must_use]
    pub fn new(start: Instant) -> Arc<Self> {
        Arc::new(Self { start, elapsed_us: AtomicU64::new(0), wrong_ms: AtomicI64::new(0), led: Mutex::default() })
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        if let Some((since, stood)) = *self.led.lock().unwrap_or_else(PoisonError::into_inner) {
            return stood + (runtimes() - since);
        }
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

    /// Runs `ahead` on a runtime whose paused clock stands at `stands`; meanwhile time is what that clock
    /// shows, and afterwards where it came to.
    pub fn led(&self, runtime: &tokio::runtime::Runtime, stands: Duration, ahead: impl Future<Output = ()>) {
        runtime.block_on(async {
            *self.led.lock().unwrap_or_else(PoisonError::into_inner) = Some((runtimes(), stands));
            ahead.await;
            let elapsed = self.elapsed();
            *self.led.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.elapsed_us.fetch_max(u64::try_from(elapsed.as_micros()).unwrap_or(0), Ordering::Relaxed);
        });
    }

    /// Sets the wall clock wrong by so much, or right again.
    pub fn set_wrong(&self, by_ms: i64) {
        self.wrong_ms.store(by_ms, Ordering::Relaxed);
    }
}

/// What the runtime's paused clock shows.
#[expect(clippy::disallowed_methods, reason = "the simulator moves it: it is no clock of the machine")]
fn runtimes() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

impl Clock for Time {
    fn wall(&self) -> Instant {
        Instant(self.truth().0 + self.wrong_ms.load(Ordering::Relaxed))
    }

    fn elapsed(&self) -> Duration {
        Self::elapsed(self)
    }
}
