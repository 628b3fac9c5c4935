//! Says what lasts once, not once for each message that meets it.
//!
//! A ledger that is away is met by every delivery of a lane, thousands of times a second. So a trouble is
//! said when it begins, every ten seconds with a count while it lasts, and with a count when it is over.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidings_schemas::time::Instant;

/// How often a trouble that lasts is said again: seldom enough to be read, often enough to be believed.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How long it must not have been met to be over. Calls run side by side: one that fares well between
/// others that don't is no end yet.
const OVER_AFTER: Duration = Duration::from_secs(1);

/// The troubles of one lane, or of one store.
pub(crate) struct Troubles {
    place: String,
    lasting: Mutex<BTreeMap<&'static str, Lasting>>,
}

struct Lasting {
    times: u64,
    newest: Instant,
    said: Instant,
}

/// What is worth saying of a trouble.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Begins,
    /// Met so often since it began.
    Lasts(u64),
}

impl Troubles {
    pub(crate) fn new(place: &str) -> Self {
        Self { place: place.to_owned(), lasting: Mutex::default() }
    }

    /// `what` is so, because of `error`.
    pub(crate) fn met(&self, what: &'static str, error: &dyn Display, now: Instant) {
        match self.note(what, now) {
            Some(Said::Begins) => tracing::warn!(place = self.place, %error, "{what}"),
            Some(Said::Lasts(times)) => tracing::warn!(place = self.place, times, %error, "still: {what}"),
            None => {}
        }
    }

    /// A call fared well: none of `what` is so any more, unless others still meet it.
    pub(crate) fn over(&self, what: &[&'static str], now: Instant) {
        for what in what {
            if let Some(times) = self.ended(what, now) {
                tracing::warn!(place = self.place, times, "no more: {what}");
            }
        }
    }

    fn note(&self, what: &'static str, now: Instant) -> Option<Said> {
        let mut lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(it) = lasting.get_mut(what) else {
            lasting.insert(what, Lasting { times: 1, newest: now, said: now });
            return Some(Said::Begins);
        };
        it.times += 1;
        it.newest = now;
        (now.since(it.said) >= AGAIN_AFTER).then(|| {
            it.said = now;
            Said::Lasts(it.times)
        })
    }

    fn ended(&self, what: &str, now: Instant) -> Option<u64> {
        let mut lasting = self.lasting.lock().unwrap_or_else(PoisonError::into_inner);
        lasting.get(what).filter(|it| now.since(it.newest) >= OVER_AFTER)?;
        lasting.remove(what).map(|it| it.times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_said_when_it_begins_every_ten_seconds_and_when_it_is_over() {
        let troubles = Troubles::new("push.low");
        let away = |at| troubles.note("away", Instant(at));
        let well = |at| troubles.ended("away", Instant(at));
        assert_eq!((well(0), away(0)), (None, Some(Said::Begins)));
        for at in 1..10_000 {
            assert_eq!((away(at), well(at)), (None, None), "at {at}");
        }
        assert_eq!(away(10_000), Some(Said::Lasts(10_001)));
        assert_eq!((away(19_999), away(20_000)), (None, Some(Said::Lasts(10_003))));
        assert_eq!((well(20_999), well(21_000), well(30_000)), (None, Some(10_003), None));
        // Another one is not the same one, and a new one begins anew.
        assert_eq!(troubles.note("slow", Instant(30_000)), Some(Said::Begins));
        assert_eq!(away(30_001), Some(Said::Begins));
    }
}
