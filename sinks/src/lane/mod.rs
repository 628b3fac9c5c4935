//! The lanes: from the durable queue between deciding and delivering to a provider's answer.
//!
//! # Cast
//! A *lane* is a topic, one per channel and priority; *marks* in it say which epochs were said. A *retry
//! topic* holds deliveries that wait for a later attempt. A [`LaneReader`] reads one lane, or the retry topics
//! of one class, as a member of a group; the [`Deliverer`] of the channel takes its *legs* apart into
//! *deliveries* and sees each to an end. The *ledger* remembers attempts, the *directory* knows addresses and
//! refusals, the *outbox* writes rows and what follows from them.
//!
//! # Protocol
//! 1. Poll. Marks are remembered; records of epochs that a mark has passed are repeats and dropped. What
//!    exceeds the bounds in flight, or is not due, is held, and its partition not fetched.
//! 2. Look up addresses and profile; a leg becomes one delivery per live address, and per address that was called,
//!    or may have been, and died since.
//! 3. What is stale goes back, what is expired ends; unless it was called before: then it is seen to its end
//!    here. The rest waits at its provider's gate and for a token of its rates, then is *claimed* in the ledger,
//!    under a word of it that a commit of the record's partition names.
//! 4. Judge once more, by the profile of step 2: legal stops, opt-outs, expiry. Render.
//! 5. Call the provider, for less time than the lease. A critical call that the ledger does not know of is said
//!    to be `unknown` first, durably.
//! 6. *Settle* in the ledger.
//! 7. Rows; then what follows: a retry record, which names the ledger's word that its attempt was claimed under, a
//!    dead letter, an invalid address, a returned leg.
//! 8. Commit up to the first record that is not settled, with the highest mark below it. Then the ledger
//!    forgets what that mark passed.
//!
//! # Invariants
//! - A record is settled only when its deliveries' ledger entries, rows and follow-up records are durable.
//! - A delivery that was met in the ledger is never called again; what it said is said again.
//! - Only a first retry waits in memory; every later one has left the lane.
//! - Each lane has its own reader, bounds, outbox and turn at the ledger: a slow ledger slows a lane and is
//!   asked by it once at a time. Critical ones share nothing with others where whoever puts them together
//!   gives them a deliverer of their own.
//!
//! # If it dies at step n
//! Before 3: nothing happened. Between 3 and 6: the lease runs out, the next owner claims the next attempt and
//! the one before is `unknown`. Without the ledger the next owner calls again, and 5 has said `unknown` before.
//! There is no other way to a second send. If the ledger is lost in the same moment, the commit says under which
//! word was called, and the attempt before is `unknown`. In or after 6: the record is read
//! again, meets the entry, and 7 is repeated word for word. After 8: nothing is left to do.
//!
//! # Not promised
//! Order between two deliveries of one user once one of them is retried. A retried delivery that quiet hours
//! overtake goes out: it was called, so it ends here. What became of a call whose address was removed from the
//! directory, not only struck, before the next owner came: nothing knows of that delivery any more.

mod deliver;
mod gate;
mod metrics;
mod outbox;
mod pace;
mod progress;
mod reader;
mod rows;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
mod text;
pub mod wire;

use std::time::Duration;

pub use deliver::{Choice, Deliverer, Parts, Render, Unrendered};
pub use gate::Paused;
pub use metrics::{LaneMetrics, Reached};
pub use pace::Pace;
pub use reader::LaneReader;
pub use text::Texts;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::topics::{RetryClass, RetryDelay, Topics};

use crate::ledger::LedgerError;
use crate::log::LogError;

/// How much a lane does at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records in flight. Enough to keep a provider's connections busy through a slow answer; beyond it
    /// the lane is not fetched, and its lag grows.
    pub records_max: usize,
    /// Bytes in flight: what bounds memory where records are large. Beyond it as with `records_max`.
    pub bytes_max: usize,
    /// Records that are looked up, claimed and called together.
    pub batch_max: usize,
    /// The longest wait of one poll; also how late a stop or a commit may be noticed.
    pub poll_wait: Duration,
    /// Pause after a poll that did not wait and brought nothing.
    pub idle: Duration,
    /// The least time between two commits: each is a round trip, and what it saves is repeats after a crash.
    pub commit_every: Duration,
    /// How long calls under way may take when a partition goes or the process stops. Beyond it they are left:
    /// their leases run out and their outcome is `unknown`.
    pub drain_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            records_max: 2000,
            bytes_max: 64 * 1024 * 1024,
            batch_max: 500,
            poll_wait: Duration::from_millis(100),
            idle: Duration::from_millis(5),
            commit_every: Duration::from_millis(250),
            drain_max: Duration::from_secs(30),
        }
    }
}

/// What one reader of a channel reads: each of these is a [`LaneReader`] of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The lane of a priority.
    Lane(Priority),
    /// The retry topics of a class.
    Retry(RetryClass),
}

impl Line {
    /// All of a channel's.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let lanes = Priority::ALL.iter().map(|priority| Self::Lane(*priority));
        lanes.chain(RetryClass::ALL.map(Self::Retry)).collect()
    }

    /// The topics that it reads.
    #[must_use]
    pub fn topics(self, topics: &Topics, channel: Channel) -> Vec<String> {
        match self {
            Self::Lane(priority) => vec![topics.lane(channel, priority)],
            Self::Retry(class) => RetryDelay::ALL.map(|delay| topics.retry(channel, class, delay)).to_vec(),
        }
    }

    /// Its group: one per line, so that a rebalance of one leaves the others alone.
    #[must_use]
    pub fn group(self, topics: &Topics, channel: Channel) -> String {
        match self {
            Self::Lane(priority) => topics.group(&format!("deliver.{channel}.{priority}")),
            Self::Retry(class) => topics.group(&format!("deliver.{channel}.retry.{class}")),
        }
    }
}

/// Why a lane stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A task of the lane died.
    #[error("a task of the lane died: {0}; its records are read again after a restart")]
    Task(String),
}

impl LaneError {
    pub(crate) fn task(error: tokio::task::JoinError) -> Self {
        Self::Task(error.to_string())
    }
}
