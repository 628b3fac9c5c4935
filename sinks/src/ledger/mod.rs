//! The ledger: what is known about each delivery's attempts, so that a repeat is told from news.
//!
//! # Cast
//! An *entry* is named by its delivery and holds its *attempts*, one line each. The *newest* attempt
//! is in one of four phases: *pending* (an *owner* holds a *lease* and may be calling), *scheduled*
//! (called, due again), *sent*, *dead*. An *owner* is one life of one delivery in one process: a name
//! that nobody else uses. Entries live in *buckets*, one per lane partition and [`BUCKET_EPOCHS`]
//! epochs, or on their own. The *incarnation* is a word that the store was founded with; a store
//! that lost its entries lost it too.
//!
//! # Protocol
//! 1. *Claim*, before the call: no entry, a scheduled one that is due, or a pending one whose lease ran
//!    out becomes `pending(owner, lease)` with the next attempt's number. Everything else is *met*: the
//!    caller is told what stands there and changes nothing.
//! 2. The call, shorter than the lease.
//! 3. *Settle*, after the call: the owner's own pending attempt becomes scheduled, sent or dead, or is
//!    *released* (no call was made after all). An attempt that is not the owner's any more stays as it
//!    is, and the owner claims again to learn what became of it.
//! 4. Rows and follow-up records, which the entry's attempts say word for word. Whoever meets an entry
//!    says them again: a crash may have come between 3 and 4.
//! 5. *Passed*, after a commit: the buckets of epochs that a mark behind the committed offset has passed
//!    expire after [`PASSED_KEPT`].
//!
//! Claims and settlements are compare-and-set, one round trip per batch. Each call names the
//! incarnation it believes in and is refused by another one ([`LedgerError::Lost`]).
//!
//! # Invariants
//! - At most one owner is between 1 and 3 of a delivery, as long as clocks agree to
//!   [`LEASE_MARGIN`] and no process is frozen for longer than its lease.
//! - An attempt that was claimed is never forgotten: it stays in the entry's lines until the entry goes.
//! - An entry that is not settled never expires with its bucket: its lane record is not committed, or
//!   it has left the bucket ([`Settle::keep`]).
//!
//! # If it dies at step n
//! After 1 or 2: the lease runs out, the next owner claims the next attempt, and the line of the one
//! before stays `pending`: its row says `unknown`. After 3 or in 4: the lane record was not settled, is
//! read again, meets the entry and says 4 again. After 4: the same, and every row is an exact repeat.
//! After 5: marks come again; buckets that nobody passes go by [`ENTRY_KEPT_MAX`].
//!
//! # Not promised
//! No exactly-once: no provider here offers it. A store that loses single writes without losing its
//! incarnation (asynchronous replication and a failover, a memory limit that evicts) can lead to a second
//! send that nobody notices; so eviction is refused at start, and a failover should be a planned one.

mod embedded;
mod memory;
mod redis;
mod table;
mod turns;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tidings_schemas::ids::{DeliveryId, EventId, IdHasher};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use crate::log::TopicPartition;
pub use embedded::EmbeddedLedger;
pub use memory::MemoryLedger;
pub use redis::RedisLedger;
pub(crate) use turns::Turns;

/// Epochs that share a bucket. A mark comes once a second, about 50 epochs; buckets of single epochs
/// would be fifty times as many names for entries that expire together.
pub const BUCKET_EPOCHS: u64 = 64;
/// How long a bucket stays after its epochs were passed: beyond it a reader that was frozen with an old
/// lane record in its hand would find no entry.
pub const PASSED_KEPT: Duration = Duration::from_secs(3600);
/// How long an entry on its own stays after the end of the UTC hour in which it was settled: as long as
/// a producer's repeat of a critical event is looked for, and longer than any retry topic holds a record.
pub const OWN_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long anything stays at most: a day more than the lanes' retention of 8 days, after which nobody
/// can ask for it. It bounds what is left behind by partitions that no reader passes any more.
pub const ENTRY_KEPT_MAX: Duration = Duration::from_secs(9 * 24 * 3600);
/// What a lease adds to the call's timeout: differences between clocks, and the way to the ledger.
pub const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// The word that the store was founded with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub Arc<str>);

impl Incarnation {
    /// A word that nobody founded a store with before, neither this process, whose own word is `nonce`, nor another:
    /// a question that was asked before a loss may arrive after it.
    pub(crate) fn new(nonce: &str, now: Instant) -> Self {
        static FOUNDED: AtomicU64 = AtomicU64::new(0);
        let mut hasher = IdHasher::new("incarnation");
        hasher.text(nonce).number(now.0.unsigned_abs()).number(FOUNDED.fetch_add(1, Ordering::Relaxed));
        Self(format!("{:032x}", u128::from_be_bytes(hasher.finish())).into())
    }

    /// Before the store ever answered: it says nothing about a loss.
    #[must_use]
    pub fn unheard() -> Self {
        Self("".into())
    }

    /// Whether what was read under this one may have been called, now that the store is `now`.
    #[must_use]
    pub fn is_lost(&self, now: &Self) -> bool {
        self != now && *self != Self::unheard()
    }
}

/// Where a new entry is put. It is found wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bucket {
    /// With the others of this lane partition and epoch, gone with them.
    Lane {
        /// The partition whose record it came from.
        lane: TopicPartition,
        /// The record's epoch.
        epoch: u64,
    },
    /// On its own: critical ones, retries, and legs whose fallback depends on all their deliveries.
    Own,
}

/// Names an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The delivery.
    pub delivery: DeliveryId,
    /// Where it lives.
    pub bucket: Bucket,
}

/// What came of an attempt: all that its row says and that the lane record does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When it was known.
    pub at: Instant,
    /// Whether the provider was called.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub called: bool,
    /// Whether it may have been sent although the provider did not say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
    /// Whether it went to the dead-letter queue.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dlq: bool,
    /// Why it was not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Who was asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub provider: String,
    /// The provider's own code.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// The provider's id of the message.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message_id: String,
    /// Of a critical delivery: the event whose lane record it was made for. A producer's repeat has the same
    /// ids and another event; what became of the delivery is not for it to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<EventId>,
}

/// Where an attempt stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// An owner may be calling.
    Pending {
        /// Who.
        owner: Arc<str>,
        /// Until when nobody else may.
        lease_until: Instant,
    },
    /// Called without success; again at `due`.
    Scheduled {
        /// Not before this.
        due: Instant,
        /// What came of it.
        note: Note,
    },
    /// The provider has it.
    Sent {
        /// What came of it.
        note: Note,
    },
    /// It ended.
    Dead {
        /// What came of it.
        note: Note,
    },
}

impl Phase {
    /// What came of it, where something did.
    pub(crate) const fn note(&self) -> Option<&Note> {
        match self {
            Self::Pending { .. } => None,
            Self::Scheduled { note, .. } | Self::Sent { note } | Self::Dead { note } => Some(note),
        }
    }

    /// The same, made for `origin`.
    pub(crate) fn of(mut self, origin: Option<EventId>) -> Self {
        match &mut self {
            Self::Pending { .. } => {}
            Self::Scheduled { note, .. } | Self::Sent { note } | Self::Dead { note } => note.origin = origin,
        }
        self
    }
}

/// One attempt of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// Where it stands.
    pub phase: Phase,
}

/// All that the ledger knows about a delivery: its attempts, oldest first, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry(Vec<Attempt>);

impl Entry {
    /// The attempts, oldest first.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        &self.0
    }

    /// The attempt that counts.
    #[must_use]
    pub fn newest(&self) -> &Attempt {
        // An entry is never empty: `parse` refuses it and nothing takes a line away.
        &self.0[self.0.len() - 1]
    }

    /// An entry of one attempt.
    pub(crate) fn of(attempt: Attempt) -> Self {
        Self(vec![attempt])
    }

    /// The entry with its newest attempt in `phase`.
    pub(crate) fn ended(mut self, phase: Phase) -> Self {
        if let Some(newest) = self.0.last_mut() {
            newest.phase = phase;
        }
        self
    }

    /// Whether it ended.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self.newest().phase, Phase::Sent { .. } | Phase::Dead { .. })
    }

    /// Its text in the store: a line per attempt, newest first, of phase, number, instant, owner and note.
    /// Durable: a change is a migration.
    fn text(&self) -> String {
        self.0.iter().rev().map(Attempt::line).collect::<Vec<_>>().join("\n")
    }

    fn parse(text: &str) -> Result<Self, LedgerError> {
        let mut attempts = text.lines().map(Attempt::parse).collect::<Result<Vec<_>, _>>()?;
        attempts.reverse();
        if attempts.is_empty() { Err(LedgerError::Damaged(String::new())) } else { Ok(Self(attempts)) }
    }
}

impl Attempt {
    fn line(&self) -> String {
        let (letter, at, owner, note) = match &self.phase {
            Phase::Pending { owner, lease_until } => ('P', *lease_until, &**owner, None),
            Phase::Scheduled { due, note } => ('W', *due, "-", Some(note)),
            Phase::Sent { note } => ('S', note.at, "-", Some(note)),
            Phase::Dead { note } => ('D', note.at, "-", Some(note)),
        };
        let note = note.and_then(|note| serde_json::to_string(note).ok()).unwrap_or_default();
        format!("{letter} {} {} {owner} {note}", self.number, at.0).trim_end().to_owned()
    }

    fn parse(line: &str) -> Result<Self, LedgerError> {
        let damaged = || LedgerError::Damaged(line.to_owned());
        let mut words = line.splitn(5, ' ');
        let (letter, number, at, owner) = (
            words.next().ok_or_else(damaged)?,
            words.next().and_then(|word| word.parse().ok()).ok_or_else(damaged)?,
            words.next().and_then(|word| word.parse().ok()).map(Instant).ok_or_else(damaged)?,
            words.next().ok_or_else(damaged)?,
        );
        let note = || -> Result<Note, LedgerError> {
            serde_json::from_str(line.splitn(5, ' ').nth(4).unwrap_or("")).map_err(|_| damaged())
        };
        let phase = match letter {
            "P" => Phase::Pending { owner: owner.into(), lease_until: at },
            "W" => Phase::Scheduled { due: at, note: note()? },
            "S" => Phase::Sent { note: note()? },
            "D" => Phase::Dead { note: note()? },
            _ => return Err(damaged()),
        };
        Ok(Self { number, phase })
    }
}

/// Asks for the next attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The delivery.
    pub key: Key,
    /// Who asks; asking again under the same name is the same claim.
    pub owner: Arc<str>,
    /// Until when nobody else may.
    pub lease_until: Instant,
    /// Attempts that are known from elsewhere (a retry record): the entry may be gone, or know of fewer,
    /// because a critical message was called while the ledger was away.
    pub attempts_before: u32,
}

/// The answer to a [`Claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The newest attempt is the asker's.
    Granted(Entry),
    /// This stands there; nothing was changed.
    Met(Entry),
}

/// Ends an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// The delivery.
    pub key: Key,
    /// Who claimed it.
    pub owner: Arc<str>,
    /// What became of the attempt; absent: no call was made, the claim is taken back.
    pub attempt: Option<Attempt>,
    /// Leaves its bucket, so that it stays whatever becomes of the lane record.
    pub keep: bool,
    /// The store was lost since the claim: an absent entry is written anew.
    pub refound: bool,
}

/// A ledger.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// The store's incarnation; founds it where there is none.
    async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError>;

    /// Step 1, for a batch: an answer for each claim, in order.
    async fn claim(
        &self,
        incarnation: &Incarnation,
        claims: &[Claim],
        now: Instant,
    ) -> Result<Vec<Claimed>, LedgerError>;

    /// Step 3, for a batch: for each whether the attempt was still the owner's.
    async fn settle(
        &self,
        incarnation: &Incarnation,
        settles: &[Settle],
        now: Instant,
    ) -> Result<Vec<bool>, LedgerError>;

    /// What stands there, without touching it.
    async fn look(&self, incarnation: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError>;

    /// Step 5: the commit of `lane` stands behind a mark of `said_through`.
    async fn passed(
        &self,
        incarnation: &Incarnation,
        lane: &TopicPartition,
        said_through: u64,
        now: Instant,
    ) -> Result<(), LedgerError>;
}

/// Why the ledger did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be reached; nothing was changed.
    #[error("the ledger cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer; the change may or may not have happened.
    #[error("the ledger did not answer: {0}; the change may or may not have happened")]
    Ambiguous(String),
    /// It is another incarnation: everything before was lost. Nothing was changed.
    #[error("the ledger was emptied or replaced: what was in flight is unknown")]
    Lost,
    /// An entry is not one of ours.
    #[error("the ledger holds `{0}` where an attempt is expected; another program writes under its prefix")]
    Damaged(String),
    /// It is set up in a way that would lose entries.
    #[error("the ledger was refused: {0}")]
    Refused(String),
}

impl LedgerError {
    /// Whether what was asked for may have happened all the same. Asking again is safe: claims and
    /// settlements of one owner repeat themselves.
    #[must_use]
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Ambiguous(_))
    }
}

/// The bucket's number within its lane partition.
const fn bucket_number(epoch: u64) -> u64 {
    epoch / BUCKET_EPOCHS
}

/// One more than the last bucket whose epochs are all at or below `said_through`.
const fn buckets_passed(said_through: u64) -> u64 {
    (said_through + 1) / BUCKET_EPOCHS
}

/// When an entry on its own goes, settled at `now`: by UTC hour, so that a restart finds few dates.
fn own_until(now: Instant) -> Instant {
    const HOUR_MS: i64 = 3_600_000;
    Instant((now.0.div_euclid(HOUR_MS) + 1) * HOUR_MS).after(OWN_KEPT)
}

#[cfg(test)]
pub(crate) mod tests;
