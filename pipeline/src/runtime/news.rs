//! Waiting for something to be so, without asking again and again.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::clock::{Clock as _, SystemClock};

/// Wakes whoever waits for something to be so.
#[derive(Debug, Default)]
pub struct News {
    told: Mutex<u64>,
    changed: Condvar,
}

impl News {
    /// Something may be so now.
    pub fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// Asks `so` now and at each piece of news, until it is so; false when it did not come so within `patience`.
    pub fn until(&self, patience: Duration, mut so: impl FnMut() -> bool) -> bool {
        let clock = SystemClock::default();
        loop {
            // Not held while `so` is asked: who tells must not wait for who listens.
            let seen = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if so() {
                return true;
            }
            let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let left = patience.saturating_sub(clock.elapsed());
            let waited = self.changed.wait_timeout_while(told, left, |told| *told == seen);
            if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
                return false;
            }
        }
    }
}
