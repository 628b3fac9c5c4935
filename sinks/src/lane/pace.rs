//! How fast deliveries may go: a token bucket per provider (`rate`) or channel (`cap`).
//!
//! Deliveries take a token each before they are claimed. Who finds none waits in the lane, nothing is
//! dropped: the tokens to come belong to those who wait, by priority and then in the order in which they
//! asked. Critical ones never wait: they take a token that is not there yet, and the others wait for it the
//! longer. A tenth of a bucket is kept for them, so that a burst of theirs does not exceed the rate.
//!
//! Not promised: that several processes together keep to it. Each keeps to it by itself.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidings_schemas::channel::Priority;
use tidings_schemas::units::Rate;

/// A bucket holds what comes in this time, and one token at least: enough for a batch, and far less
/// than what a provider counts in.
const BURST: Duration = Duration::from_secs(1);
/// The part of a bucket that only critical deliveries take: one in so many.
const RESERVE: i128 = 10;

/// A bucket, shared by all who are to keep to the rate together.
pub struct Pace {
    rate: Rate,
    /// Tokens that critical ones took since the book was last opened: they wait for nobody's lock.
    owed: AtomicI64,
    book: Mutex<Book>,
}

/// Tokens are counted in parts: a token has as many as the rate's span has milliseconds, so that each
/// millisecond brings `rate.max` of them, without fractions.
struct Book {
    parts: i128,
    /// When it was last opened; tokens come by time that never steps.
    at: Option<Duration>,
    next: u64,
    waiting: BTreeSet<(Priority, u64)>,
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pace({})", self.rate)
    }
}

/// A place among those who wait; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    pace: Arc<Pace>,
    key: (Priority, u64),
}

impl Turn {
    /// Whether it is a place in this bucket's line.
    pub(crate) fn is_of(&self, pace: &Arc<Pace>) -> bool {
        Arc::ptr_eq(&self.pace, pace)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pace.book().waiting.remove(&self.key);
    }
}

impl Pace {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let book = Book { parts: 0, at: None, next: 0, waiting: BTreeSet::new() };
        let pace = Self { rate, owed: AtomicI64::new(0), book: Mutex::new(book) };
        pace.book().parts = pace.room();
        pace
    }

    /// Takes a token; where there is none for this one, says when to ask again, and its place in the line.
    pub(crate) fn enter(
        self: &Arc<Self>,
        priority: Priority,
        turn: Option<Arc<Turn>>,
        now: Duration,
    ) -> Result<(), (Duration, Arc<Turn>)> {
        if priority == Priority::Critical {
            self.owed.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let mut book = self.book();
        let since = book.at.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        book.at = book.at.max(Some(now));
        let grown = i128::try_from(since.as_millis()).unwrap_or(i128::MAX).saturating_mul(i128::from(self.rate.max));
        book.parts = book.parts.saturating_add(grown).min(self.room());
        book.parts -= i128::from(self.owed.swap(0, Ordering::Relaxed)).saturating_mul(self.token());
        let before = match &turn {
            Some(turn) => book.waiting.range(..turn.key).count(),
            None => book.waiting.range(..=(priority, u64::MAX)).count(),
        };
        let needed = (i128::try_from(before).unwrap_or(i128::MAX).saturating_add(1)).saturating_mul(self.token());
        let missing = needed + self.reserve() - book.parts;
        if missing <= 0 {
            book.parts -= self.token();
            if let Some(turn) = &turn {
                book.waiting.remove(&turn.key);
            }
            // Not while the book is held: a turn's end wants it too.
            drop(book);
            return Ok(());
        }
        let most = i128::from(self.rate.max).max(1);
        let wait = u64::try_from(missing.div_euclid(most) + i128::from(missing % most > 0)).unwrap_or(u64::MAX);
        let at = now.saturating_add(Duration::from_millis(wait));
        let turn = turn.unwrap_or_else(|| {
            let key = (priority, book.next);
            book.next += 1;
            book.waiting.insert(key);
            Arc::new(Turn { pace: Arc::clone(self), key })
        });
        Err((at, turn))
    }

    /// Gives a token back that was not used.
    pub(crate) fn give_back(&self, priority: Priority) {
        if priority == Priority::Critical {
            self.owed.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let mut book = self.book();
        book.parts = (book.parts + self.token()).min(self.room());
    }

    fn token(&self) -> i128 {
        i128::try_from(self.rate.per.0.as_millis()).unwrap_or(i128::MAX).max(1)
    }

    fn room(&self) -> i128 {
        let burst = i128::from(self.rate.max).saturating_mul(i128::try_from(BURST.as_millis()).unwrap_or(i128::MAX));
        burst.max(self.token())
    }

    /// Whole tokens, so that a slow rate's only one is not kept from everybody.
    fn reserve(&self) -> i128 {
        self.room() / self.token() / RESERVE * self.token()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A few numbers, changed together or not at all.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn pace(rate: &str) -> Arc<Pace> {
        Arc::new(Pace::new(rate.parse().unwrap()))
    }

    /// Asks at `now`: `0` goes, another number waits so many milliseconds.
    fn ask(pace: &Arc<Pace>, priority: Priority, turns: &mut Vec<Arc<Turn>>, now: u64) -> u128 {
        match pace.enter(priority, None, ms(now)) {
            Ok(()) => 0,
            Err((at, turn)) => {
                turns.push(turn);
                (at - ms(now)).as_millis()
            }
        }
    }

    #[test]
    fn tokens_come_evenly_and_belong_to_those_who_wait() {
        use Priority::{Critical, High, Low, Medium};
        let (pace, mut turns) = (pace("120/m"), Vec::new());
        // Two a second: the bucket holds two.
        let asked = [(Low, 0), (Low, 0), (Low, 500), (Low, 1000), (Medium, 500), (High, 500), (Low, 2500)];
        for (priority, expected) in asked {
            assert_eq!(ask(&pace, priority, &mut turns, 1000), expected, "{priority}");
        }
        // Critical takes what is not there, and the others wait for it.
        assert_eq!(ask(&pace, Critical, &mut turns, 1000), 0);
        assert_eq!(ask(&pace, High, &mut turns, 1000), 1500);
        // At 2.0 s one has come that is not owed: it is the first of the high ones'.
        let at = |place: usize, now| pace.enter(turns[place].key.0, Some(Arc::clone(&turns[place])), ms(now));
        assert_eq!(at(0, 2000).unwrap_err().0, ms(3500), "the oldest low one has three before it");
        assert!(at(3, 2000).is_ok());
    }

    #[test]
    fn a_turn_that_is_dropped_holds_nobody_up_and_a_token_comes_back() {
        let (pace, mut turns) = (pace("1/s"), Vec::new());
        for expected in [0, 1000, 2000] {
            assert_eq!(ask(&pace, Priority::Low, &mut turns, 0), expected);
        }
        turns.remove(0);
        assert_eq!(pace.enter(Priority::Low, Some(turns[0].clone()), ms(500)).unwrap_err().0, ms(1000));
        pace.give_back(Priority::Low);
        assert!(pace.enter(Priority::Low, Some(turns.remove(0)), ms(500)).is_ok());
        assert!(pace.book().waiting.is_empty());
    }

    #[test]
    fn a_reserve_is_kept_and_rates_are_exact_over_long_spans() {
        let (pace, mut turns) = (pace("6000/m"), Vec::new());
        let went = (0..100).filter(|_| ask(&pace, Priority::High, &mut turns, 0) == 0).count();
        assert_eq!(went, 90);
        turns.clear();
        let mut went = 0;
        for at in 1..=60_000 {
            went += i32::from(ask(&pace, Priority::High, &mut turns, at) == 0);
            turns.clear();
        }
        assert_eq!(went, 6000);
    }

    #[test]
    fn rates_of_any_size_are_counted() {
        for rate in ["1/d", "4000000000/s", "1/1000d", "500000/h"] {
            let pace = pace(rate);
            assert!(pace.enter(Priority::Low, None, Duration::ZERO).is_ok(), "{rate}");
            assert!(pace.enter(Priority::Low, None, Duration::MAX).is_ok(), "{rate}");
        }
    }
}
