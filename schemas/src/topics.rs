//! Names of the topics between stages, of the groups that read them, and of what is kept in stores
//! beside them. One prefix names an installation: two of them share brokers and stores and never meet.

use std::fmt;

use crate::channel::{Channel, Priority};

/// The default prefix of every topic.
pub const PREFIX: &str = "notifications";

/// The retry class of a priority: each has its own topics, so that critical retries never queue
/// behind bulk ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RetryClass {
    /// P0.
    Critical,
    /// P1 and P2.
    Normal,
    /// P3 and campaigns.
    Bulk,
}

impl RetryClass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Critical, Self::Normal, Self::Bulk];

    /// The class of `priority`.
    #[must_use]
    pub const fn of(priority: Priority) -> Self {
        match priority {
            Priority::Critical => Self::Critical,
            Priority::High | Priority::Medium => Self::Normal,
            Priority::Low => Self::Bulk,
        }
    }
}

impl fmt::Display for RetryClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Critical => "critical",
            Self::Normal => "normal",
            Self::Bulk => "bulk",
        })
    }
}

/// The constant delay of a retry topic: its records are in due order because all wait alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RetryDelay {
    /// Second retry: 4 s + ≤2 s.
    Seconds5,
    /// Third retry: 16 s + ≤8 s.
    Seconds20,
    /// Fourth retry: 60 s + ≤30 s.
    Seconds90,
    /// A long `Retry-After`.
    Minutes15,
}

impl RetryDelay {
    /// All of them, shortest first.
    pub const ALL: [Self; 4] = [Self::Seconds5, Self::Seconds20, Self::Seconds90, Self::Minutes15];

    /// How long a record waits.
    #[must_use]
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_secs(match self {
            Self::Seconds5 => 5,
            Self::Seconds20 => 20,
            Self::Seconds90 => 90,
            Self::Minutes15 => 900,
        })
    }
}

impl fmt::Display for RetryDelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seconds5 => "5s",
            Self::Seconds20 => "20s",
            Self::Seconds90 => "90s",
            Self::Minutes15 => "15m",
        })
    }
}

/// The topics of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    prefix: String,
}

impl Default for Topics {
    fn default() -> Self {
        Self::new(PREFIX)
    }
}

impl Topics {
    /// Topics that start with `prefix`.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The consumer group of the readers that do `what`.
    #[must_use]
    pub fn group(&self, what: &str) -> String {
        format!("{}.{what}", self.prefix)
    }

    /// What the keys of `what` start with in a store that installations may share.
    #[must_use]
    pub fn store(&self, what: &str) -> String {
        format!("tidings:{}:{what}", self.prefix)
    }

    /// Where producers write events of `priority`.
    #[must_use]
    pub fn events(&self, priority: Priority) -> String {
        format!("{}.events.{priority}", self.prefix)
    }

    /// Profiles, compacted, keyed by user.
    #[must_use]
    pub fn preferences(&self) -> String {
        format!("{}.preferences", self.prefix)
    }

    /// Addresses, compacted, keyed by user and address.
    #[must_use]
    pub fn addresses(&self) -> String {
        format!("{}.addresses", self.prefix)
    }

    /// The lane between deciding and delivering for one channel and priority.
    #[must_use]
    pub fn lane(&self, channel: Channel, priority: Priority) -> String {
        format!("{}.{channel}.{priority}", self.prefix)
    }

    /// Where a delivery waits for a later attempt.
    #[must_use]
    pub fn retry(&self, channel: Channel, class: RetryClass, delay: RetryDelay) -> String {
        format!("{}.{channel}.retry.{class}.{delay}", self.prefix)
    }

    /// What deliver gives back to decide.
    #[must_use]
    pub fn returned(&self) -> String {
        format!("{}.returned", self.prefix)
    }

    /// What was given up.
    #[must_use]
    pub fn dlq(&self) -> String {
        format!("{}.dlq", self.prefix)
    }

    /// The cut log.
    #[must_use]
    pub fn cuts(&self) -> String {
        format!("{}.cuts", self.prefix)
    }

    /// Rows on their way into the record.
    #[must_use]
    pub fn lifecycle(&self) -> String {
        format!("{}.lifecycle", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_installations_share_no_name() {
        let (one, other) = (Topics::default(), Topics::new("staging"));
        assert_eq!(
            (one.group("record"), one.store("ledger")),
            ("notifications.record".into(), "tidings:notifications:ledger".into())
        );
        assert_ne!((one.group("record"), one.store("ledger")), (other.group("record"), other.store("ledger")));
    }

    #[test]
    fn names_are_the_documented_ones() {
        let topics = Topics::default();
        let names = [
            topics.events(Priority::Critical),
            topics.lane(Channel::InApp, Priority::Low),
            topics.retry(Channel::Push, RetryClass::of(Priority::High), RetryDelay::Seconds90),
            topics.cuts(),
        ];
        assert_eq!(
            names.join(" "),
            "notifications.events.critical notifications.in_app.low notifications.push.retry.normal.90s notifications.cuts"
        );
    }
}
