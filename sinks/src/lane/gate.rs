//! Who may call a provider that paused: nobody, but a probe now and then.
//!
//! Credentials, configuration, billing: every call would fail, and none says anything about the message.
//! So deliveries wait before they claim an attempt; one of them goes ahead after 1 s, 2 s, … 60 s,
//! and the first that is answered otherwise opens the gate for all. Waits are measured by time that never steps.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidings_schemas::time::Instant;
use tokio::sync::Notify;

/// The first wait; doubled with every probe that finds the provider still paused.
const PROBE_FIRST: Duration = Duration::from_secs(1);
/// The longest wait: a repaired key is noticed a minute later at most.
const PROBE_MAX: Duration = Duration::from_secs(60);

/// Why a provider is not called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paused {
    /// In the provider's table's words.
    pub reason: String,
    /// Since when.
    pub since: Instant,
    probe_at: Duration,
    backoff: Duration,
}

/// The gate before one provider.
#[derive(Default)]
pub(crate) struct Gate {
    paused: Mutex<Option<Paused>>,
    opened: Notify,
}

impl Gate {
    /// Whether a call may go now; if not, until when to wait. Whoever is let through a closed gate is its probe.
    pub(crate) fn enter(&self, now: Duration) -> Result<(), Duration> {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *paused {
            None => Ok(()),
            Some(it) if it.probe_at <= now => {
                it.backoff = (it.backoff * 2).min(PROBE_MAX);
                it.probe_at = now + it.backoff;
                Ok(())
            }
            Some(it) => Err(it.probe_at),
        }
    }

    /// The provider says that it is paused, at `since` of the clock; whether that is news.
    pub(crate) fn close(&self, reason: &str, since: Instant, now: Duration) -> bool {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *paused {
            Some(it) => {
                reason.clone_into(&mut it.reason);
                false
            }
            None => {
                *paused = Some(Paused {
                    reason: reason.to_owned(),
                    since,
                    probe_at: now + PROBE_FIRST,
                    backoff: PROBE_FIRST,
                });
                true
            }
        }
    }

    /// The provider answered otherwise.
    pub(crate) fn open(&self) {
        if self.paused.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            self.opened.notify_waiters();
        }
    }

    /// Waits until the gate was opened.
    pub(crate) async fn opened(&self) {
        let opened = self.opened.notified();
        if self.state().is_some() {
            opened.await;
        }
    }

    /// Why it is closed, if it is.
    pub(crate) fn state(&self) -> Option<Paused> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_probe_goes_at_a_time_and_later_each_time() {
        let gate = Gate::default();
        let (ms, close) = (Duration::from_millis, |at| gate.close("bad key", Instant(0), Duration::from_millis(at)));
        assert_eq!(gate.enter(ms(0)), Ok(()));
        assert_eq!((close(0), close(1)), (true, false));
        let cases =
            [(999, Err(1000)), (1000, Ok(())), (1001, Err(3000)), (3000, Ok(())), (6999, Err(7000)), (7000, Ok(()))];
        for (now, expected) in cases {
            assert_eq!(gate.enter(ms(now)), expected.map_err(ms), "at {now}");
        }
        gate.open();
        assert_eq!((gate.enter(ms(7001)), gate.state()), (Ok(()), None));
    }
}
