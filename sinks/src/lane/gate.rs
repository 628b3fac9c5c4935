//! Who may call a provider that paused: nobody, but a probe now and then.
//!
//! Credentials, configuration, billing: every call would fail, and none says anything about the message.
//! So deliveries wait before they claim an attempt; one of them goes ahead after 1 s, 2 s, … 60 s,
//! and the first that is answered otherwise opens the gate for all.

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
    /// When the next probe goes.
    pub probe_at: Instant,
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
    pub(crate) fn enter(&self, now: Instant) -> Result<(), Instant> {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *paused {
            None => Ok(()),
            Some(it) if it.probe_at <= now => {
                it.backoff = (it.backoff * 2).min(PROBE_MAX);
                it.probe_at = now.after(it.backoff);
                Ok(())
            }
            Some(it) => Err(it.probe_at),
        }
    }

    /// The provider says that it is paused; whether that is news.
    pub(crate) fn close(&self, reason: &str, now: Instant) -> bool {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *paused {
            Some(it) => {
                reason.clone_into(&mut it.reason);
                false
            }
            None => {
                *paused = Some(Paused {
                    reason: reason.to_owned(),
                    since: now,
                    probe_at: now.after(PROBE_FIRST),
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
        assert_eq!(gate.enter(Instant(0)), Ok(()));
        assert_eq!((gate.close("bad key", Instant(0)), gate.close("bad key", Instant(1))), (true, false));
        let cases =
            [(999, Err(1000)), (1000, Ok(())), (1001, Err(3000)), (3000, Ok(())), (6999, Err(7000)), (7000, Ok(()))];
        for (now, expected) in cases {
            assert_eq!(gate.enter(Instant(now)), expected.map_err(Instant), "at {now}");
        }
        gate.open();
        assert_eq!((gate.enter(Instant(7001)), gate.state()), (Ok(()), None));
    }
}
