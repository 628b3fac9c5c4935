//! The watchdog: ends a generation in which somebody stands still.
//!
//! It watches that steps are made, not how long an epoch takes: the coordinator counts each time that it has
//! waited, a worker each turn of its loop and each wave down its chain. Both wait for at most a second at a
//! time, so that an idle one counts as well. Who makes no step for the limit is in an endless loop, in a
//! call that never returns, or was not run at all; nobody within the process can end it alone, because its
//! state is in the middle of an epoch. So the whole process is ended at once, and recovery does what it does
//! after every crash.
//!
//! A process that was itself frozen (SIGSTOP, a paused machine) is ended as well once it awakes: the gap
//! between two looks tells it. What its other threads do before that look is harmless, as with every zombie: their
//! cuts do not count, and the ledger refuses their settlements.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidings_operators::harness::pulse::Pulse;

/// How long somebody may make no step where nothing else is said. The longest step that is bounded is a call to Kafka,
/// which waits 30 s for brokers that are away: twice that is no step any more. Beyond it the process ends, and
/// starts again from its newest checkpoint.
pub const STILL_MAX: Duration = Duration::from_secs(60);

/// Looks within the limit: a standstill is noticed at most a tenth of the limit late.
const LOOKS: u32 = 10;

/// How often it looks at most: no limit needs more, and whoever waits for a sign of life hears one as often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whom the watchdog watches: the parts of the generation that runs.
#[derive(Clone, Debug, Default)]
pub struct Pulses(Arc<Mutex<BTreeMap<String, Pulse>>>);

impl Pulses {
    /// Watches a generation's parts until what is returned is dropped.
    pub(crate) fn watch(&self, parts: impl IntoIterator<Item = (String, Pulse)>) -> Watched {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = parts.into_iter().collect();
        Watched(self.clone())
    }

    /// How many steps each part has made.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().map(|(name, pulse)| (name.clone(), pulse.count())).collect()
    }
}

/// A generation is watched for as long as this lives.
pub(crate) struct Watched(Pulses);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// What the watchdog remembers from look to look.
#[derive(Debug)]
pub struct Watchdog {
    limit: Duration,
    looked: Option<Duration>,
    /// Each part's count, and since when it is that.
    seen: BTreeMap<String, (u64, Duration)>,
}

impl Watchdog {
    /// One that bears a standstill for `limit`.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self { limit, looked: None, seen: BTreeMap::new() }
    }

    /// How long to wait between two looks.
    #[must_use]
    pub fn pause(&self) -> Duration {
        (self.limit / LOOKS).min(LOOK_EVERY)
    }

    /// Looks at `counts`; `now` is time since an arbitrary start that never steps. Says what stands still.
    pub fn look(&mut self, now: Duration, counts: &BTreeMap<String, u64>) -> Option<String> {
        if let Some(gap) = self.looked.replace(now).map(|looked| now.saturating_sub(looked))
            && gap >= self.limit
        {
            return Some(format!("this process was frozen for {gap:.0?}"));
        }
        self.seen.retain(|name, _| counts.contains_key(name));
        for (name, count) in counts {
            let (seen, since) = self.seen.entry(name.clone()).or_insert((*count, now));
            if seen != count {
                (*seen, *since) = (*count, now);
            }
            let still = now.saturating_sub(*since);
            if still >= self.limit {
                return Some(format!("{name} made no step for {still:.0?}"));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at these seconds and counts, one after the other; what each look says.
    fn looks(limit: u64, at: &[(u64, &[(&str, u64)])]) -> Vec<Option<String>> {
        let mut watchdog = Watchdog::new(Duration::from_secs(limit));
        let counts = |parts: &[(&str, u64)]| parts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        at.iter().map(|(now, parts)| watchdog.look(Duration::from_secs(*now), &counts(parts))).collect()
    }

    #[test]
    fn whoever_makes_steps_may_take_as_long_as_it_takes() {
        let said = looks(5, &[(0, &[("worker 0", 1)]), (4, &[("worker 0", 2)]), (8, &[("worker 0", 3)])]);
        assert_eq!(said, [None, None, None]);
    }

    #[test]
    fn whoever_makes_none_is_named() {
        let at = |now, count| (now, [("coordinator", count), ("worker 1", 7)]);
        let looked = [at(0, 1), at(2, 2), at(4, 3), at(5, 4)];
        let looked: Vec<(u64, &[(&str, u64)])> = looked.iter().map(|(now, parts)| (*now, &parts[..])).collect();
        let said = looks(5, &looked);
        assert_eq!(said[..3], [None, None, None]);
        assert_eq!(said[3].as_deref(), Some("worker 1 made no step for 5s"));
    }

    #[test]
    fn a_new_generation_begins_anew() {
        let said = looks(5, &[(0, &[("worker 0", 9)]), (4, &[]), (8, &[("worker 0", 9)]), (12, &[("worker 0", 9)])]);
        assert_eq!(said, [None, None, None, None]);
    }

    #[test]
    fn an_awakened_process_is_frozen_whatever_its_threads_did_meanwhile() {
        let said = looks(5, &[(0, &[("worker 0", 1)]), (9, &[("worker 0", 99)])]);
        assert_eq!(said[1].as_deref(), Some("this process was frozen for 9s"));
    }

    #[test]
    fn it_looks_often_enough_for_small_limits_and_not_more_often_than_once_a_second_for_large_ones() {
        assert_eq!(Watchdog::new(Duration::from_secs(2)).pause(), Duration::from_millis(200));
        assert_eq!(Watchdog::new(STILL_MAX).pause(), Duration::from_secs(1));
    }
}
