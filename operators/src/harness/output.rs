//! What an epoch says to the outside: lane records, hand-overs, dead letters, rows; and what it
//! leaves in state.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{EventId, KeyGroup};
use tidings_schemas::reason::Reason;
use tidings_schemas::rows::Rows;
use tidings_schemas::time::Instant;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::delta::Delta;
use super::feed::{Extent, Lot};
use super::ordinal::Ordinal;
use crate::short::Short;

/// Where an output goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum To {
    /// The lane of a channel and priority.
    Lane(Channel, Priority),
    /// The other path: the events topic of this priority; the record keeps its event id and its instant.
    HandOver(Priority, EventId, Instant),
    /// The dead-letter queue.
    Dlq(Reason),
}

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The key group of its user.
    pub group: KeyGroup,
    /// Its place in the epoch.
    pub ordinal: Ordinal,
    /// Where it goes.
    pub to: To,
    /// Its user: the key of the record. Empty for a record that names none.
    pub user: Arc<str>,
    /// The record.
    pub value: Bytes,
}

impl To {
    /// The digest of an output that goes here: it covers every byte that is written.
    pub(crate) fn digest(&self, ordinal: &Ordinal, user: &str, value: &[u8]) -> u64 {
        let mut head = Short::<191>::from_slice(&(ordinal.bytes().len() as u64).to_le_bytes());
        head.push(ordinal.bytes());
        match self {
            Self::Lane(channel, priority) => head.push(&[0, *channel as u8, *priority as u8]),
            Self::HandOver(priority, event, accepted) => {
                head.push(&[1, *priority as u8]);
                head.push(&event.0);
                head.push(&accepted.0.to_le_bytes());
            }
            Self::Dlq(reason) => head.push(&[2, *reason as u8]),
        }
        head.push(user.as_bytes());
        xxh3_64_with_seed(&head, xxh3_64(value))
    }
}

/// All that one worker has to say of one epoch.
#[derive(Clone, Debug, Default)]
pub struct EpochOutput {
    /// The epoch.
    pub epoch: u64,
    /// Its instant.
    pub now: Instant,
    /// Lane records, hand-overs and dead letters, in the order in which they were decided.
    pub said: Vec<Said>,
    /// What happened, one row per unit.
    pub rows: Rows,
    /// Digest of all that was said: a wrapping sum, so that workers add up in any order.
    pub digest: u64,
    /// What the state changed.
    pub delta: Delta,
    /// Users and keys of users of which the operators keep state, each operator's for itself.
    pub keys: u64,
    /// The earliest deadline that the worker knows.
    pub next_timer: Option<Instant>,
    /// What was read of each partition that this worker reads.
    pub read: BTreeMap<Lot, Extent>,
}

impl EpochOutput {
    /// Adds what another worker has to say of the same epoch.
    pub fn join(&mut self, other: Self) {
        // Workers own ranges of groups: in this order the parts follow each other.
        let before = other.said.first().zip(self.said.first()).is_some_and(|(one, two)| one.group < two.group);
        let behind = if before { std::mem::replace(&mut self.said, other.said) } else { other.said };
        self.said.extend(behind);
        self.rows.append(other.rows);
        self.digest = self.digest.wrapping_add(other.digest);
        self.delta.join(other.delta);
        self.keys += other.keys;
        self.next_timer = match (self.next_timer, other.next_timer) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        self.read.extend(other.read);
    }

    /// About the bytes of what is to be said.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let said = |said: &Said| size_of::<Said>() + said.value.len();
        self.said.iter().map(said).sum::<usize>() + self.rows.bytes()
    }

    /// Sorts by (key group, ordinal): the order in which two runs are compared.
    pub fn canonical(&mut self) {
        self.said.sort_by(|one, two| (one.group, &one.ordinal).cmp(&(two.group, &two.ordinal)));
        self.rows.sort();
    }
}
