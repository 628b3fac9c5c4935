//! When a delivery is tried again: at 0, after 1 s + ≤0.5, 4 s + ≤2, 16 s + ≤8, 60 s + ≤30, then it is
//! given up.
//!
//! Only the first retry waits in memory. The others wait in retry topics of a constant delay each (5 s,
//! 20 s, 90 s, every one within its step's range), so that a topic is in due order and a stuck delivery
//! holds no lane back. A provider's `Retry-After` is a floor; what exceeds the longest topic goes round
//! it again, which burns no attempt.

use std::collections::BTreeMap;
use std::time::Duration;

use tidings_schemas::channel::Priority;
use tidings_schemas::ids::{DeliveryId, IdHasher};
use tidings_schemas::time::Instant;
use tidings_schemas::topics::RetryDelay;

/// The least wait before each retry, first to last; beyond the last one the last one holds.
const STEPS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(16), Duration::from_secs(60)];
/// What is added at most, as a share of the least wait: one half.
const JITTER_DIVISOR: u64 = 2;
/// The longest wait in memory. Longer ones would hold the lane's commit back; a crash reads everything
/// again from there.
pub const MEMORY_MAX: Duration = Duration::from_secs(2);
/// Attempts before a delivery is given up, unless configured.
pub const ATTEMPTS_MAX: u32 = 5;

/// Where a delivery waits for its next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// In this process.
    Memory,
    /// In a retry topic.
    Topic(RetryDelay),
}

/// What follows a retryable outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Again, not before `due`.
    Again {
        /// When.
        due: Instant,
        /// Where it waits.
        wait: Wait,
    },
    /// No further attempt.
    GiveUp,
}

/// How often a delivery is tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Attempts in all, by priority; [`ATTEMPTS_MAX`] where a priority is not named.
    pub attempts: BTreeMap<Priority, u32>,
}

impl Schedule {
    /// Attempts in all at `priority`, at least one.
    #[must_use]
    pub fn attempts(&self, priority: Priority) -> u32 {
        self.attempts.get(&priority).copied().unwrap_or(ATTEMPTS_MAX).max(1)
    }

    /// What follows attempt `attempt` of `delivery`, which failed at `now`; the provider asked to wait
    /// for `after`.
    #[must_use]
    pub fn next(
        &self,
        delivery: DeliveryId,
        attempt: u32,
        priority: Priority,
        after: Option<Duration>,
        now: Instant,
    ) -> Next {
        if attempt >= self.attempts(priority) {
            return Next::GiveUp;
        }
        let step = STEPS[(attempt.max(1) as usize - 1).min(STEPS.len() - 1)];
        let floor = after.unwrap_or_default();
        if attempt == 1 {
            let wait = (step + jitter(delivery, attempt, step)).max(floor);
            if wait <= MEMORY_MAX {
                return Next::Again { due: now.after(wait), wait: Wait::Memory };
            }
        }
        let wait = step.max(floor);
        let delay = topic(wait);
        Next::Again { due: now.after(wait.max(delay.duration())), wait: Wait::Topic(delay) }
    }

    /// Where a delivery waits that is found scheduled for `due` at `now`.
    #[must_use]
    pub fn resume(attempt: u32, due: Instant, now: Instant) -> Wait {
        let left = due.since(now);
        if attempt == 1 && left <= MEMORY_MAX { Wait::Memory } else { Wait::Topic(topic(left)) }
    }
}

/// The shortest topic that waits long enough; the longest one where none does.
fn topic(wait: Duration) -> RetryDelay {
    RetryDelay::ALL.into_iter().find(|delay| delay.duration() >= wait).unwrap_or(RetryDelay::Minutes15)
}

/// Spreads deliveries that failed together, the same way on every machine.
fn jitter(delivery: DeliveryId, attempt: u32, step: Duration) -> Duration {
    let mut hasher = IdHasher::new("retry");
    hasher.field(&delivery.0).number(u64::from(attempt));
    let hash = hasher.finish();
    let word = u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
    let most = u64::try_from(step.as_millis()).unwrap_or(u64::MAX) / JITTER_DIVISOR;
    Duration::from_millis(word % (most + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(attempt: u32, after_s: Option<u64>) -> (u64, String) {
        let schedule = Schedule { attempts: BTreeMap::from([(Priority::Low, 2)]) };
        let after = after_s.map(Duration::from_secs);
        match schedule.next(DeliveryId([7; 16]), attempt, Priority::High, after, Instant(0)) {
            Next::GiveUp => (0, "give up".to_owned()),
            Next::Again { due, wait: Wait::Memory } => (due.since(Instant(0)).as_secs(), "memory".to_owned()),
            Next::Again { due, wait: Wait::Topic(delay) } => (due.since(Instant(0)).as_secs(), delay.to_string()),
        }
    }

    #[test]
    fn each_step_waits_where_the_design_says() {
        let cases = [
            (1, None, (1, "memory")),
            (1, Some(0), (1, "memory")),
            (1, Some(2), (2, "memory")),
            (1, Some(10), (20, "20s")),
            (2, None, (5, "5s")),
            (2, Some(30), (90, "90s")),
            (3, None, (20, "20s")),
            (4, None, (90, "90s")),
            (4, Some(600), (900, "15m")),
            (2, Some(3600), (3600, "15m")),
            (5, None, (0, "give up")),
            (5, Some(1), (0, "give up")),
        ];
        for (attempt, after, (secs, place)) in cases {
            assert_eq!(next(attempt, after), (secs, place.to_owned()), "attempt {attempt}, after {after:?}");
        }
    }

    #[test]
    fn topics_lie_within_the_range_of_their_step() {
        for (step, delay) in STEPS[1..].iter().zip(RetryDelay::ALL) {
            assert!(delay.duration() >= *step && delay.duration() <= *step + *step / 2, "{delay}");
        }
    }

    #[test]
    fn jitter_is_bounded_stable_and_spreads() {
        let waits: Vec<_> = (0..64).map(|n| jitter(DeliveryId([n; 16]), 1, STEPS[0])).collect();
        assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(500)));
        assert_eq!(waits[9], jitter(DeliveryId([9; 16]), 1, STEPS[0]));
        assert!(waits.iter().collect::<std::collections::BTreeSet<_>>().len() > 40);
    }

    #[test]
    fn attempts_are_configured_by_priority() {
        let schedule = Schedule { attempts: BTreeMap::from([(Priority::Low, 2), (Priority::High, 0)]) };
        assert_eq!([schedule.attempts(Priority::Low), schedule.attempts(Priority::High)], [2, 1]);
        assert_eq!(schedule.next(DeliveryId([0; 16]), 2, Priority::Low, None, Instant(0)), Next::GiveUp);
    }
}
