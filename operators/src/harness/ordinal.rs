//! Ordinals: where something stands in an epoch. Bytes that compare in the order in which a user's
//! day is decided: side inputs, then timers, then records; and below each, hop by hop.
//!
//! Ordinals are names and checks, never sort keys of the hot path: blocks read partition after
//! partition *are* in order. Only an epoch's few rows per unit are sorted by them.

use std::fmt;

use serde::{Deserialize, Serialize};
use tidings_schemas::time::Instant;

use super::feed::Lot;
use crate::keyed::{Subkey, TimerId};
use crate::short::Short;

/// A place in an epoch.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Ordinal(Short<INLINE_BYTES>);

/// What an ordinal holds without an allocation; a longer one costs one.
const INLINE_BYTES: usize = 78;
/// A record's own ordinal: class, source, partition, offset.
const RECORD_BYTES: usize = 1 + 2 + 4 + 8;
/// One hop: operator, port, index.
pub(crate) const HOP_BYTES: usize = 2 + 1 + 4;
/// The longest chain of the operators there are.
const HOPS: usize = 8;
const _: () = assert!(RECORD_BYTES + HOPS * HOP_BYTES <= INLINE_BYTES);

impl fmt::Debug for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Ordinal {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A changed profile: class 0.
    #[must_use]
    pub fn profile(user: &str) -> Self {
        Self::side_input(user, 0)
    }

    /// Changed rules: class 0, after the profile.
    #[must_use]
    pub fn rules(user: &str) -> Self {
        Self::side_input(user, 1)
    }

    fn side_input(user: &str, kind: u8) -> Self {
        let mut ordinal = Self::default();
        ordinal.0.push(&[0]);
        ordinal.0.push(user.as_bytes());
        ordinal.0.push(&[kind]);
        ordinal
    }

    /// A due timer: class 1.
    #[must_use]
    pub fn timer(due: Instant, user: &str, subkey: &Subkey, id: TimerId) -> Self {
        let mut ordinal = Self::default();
        ordinal.0.push(&[1]);
        // Flipping the sign bit makes signed numbers compare as bytes.
        ordinal.0.push(&(due.0.cast_unsigned() ^ (1 << 63)).to_be_bytes());
        ordinal.0.push(user.as_bytes());
        ordinal.0.push(&[0]);
        ordinal.0.push(subkey.bytes());
        ordinal.0.push(&[id.0]);
        ordinal
    }

    /// A source record: class 2.
    #[must_use]
    pub fn record(lot: Lot, offset: u64) -> Self {
        let mut place = [2; RECORD_BYTES];
        place[1..3].copy_from_slice(&lot.source.to_be_bytes());
        place[3..7].copy_from_slice(&lot.partition.to_be_bytes());
        place[7..].copy_from_slice(&offset.to_be_bytes());
        Self(Short::from_slice(&place))
    }

    /// The source record that this is the place of, or that set it in motion.
    #[must_use]
    pub fn as_record(&self) -> Option<(Lot, u64)> {
        let bytes = self.0.get(..RECORD_BYTES).filter(|bytes| bytes[0] == 2)?;
        let source = u16::from_be_bytes(bytes[1..3].try_into().ok()?);
        let partition = u32::from_be_bytes(bytes[3..7].try_into().ok()?);
        Some((Lot { source, partition }, u64::from_be_bytes(bytes[7..].try_into().ok()?)))
    }

    /// The place of emission `index` of operator `operator` on `port`, caused by this.
    #[must_use]
    #[inline]
    pub fn hop(&self, operator: usize, port: u8, index: usize) -> Self {
        self.clone().followed_by(&hop_bytes(operator, port, index))
    }

    /// The place to which these hops lead from this one.
    #[must_use]
    pub(crate) fn followed_by(mut self, hops: &[u8]) -> Self {
        self.0.push(hops);
        self
    }
}

/// One hop.
#[inline]
pub(crate) fn hop_bytes(operator: usize, port: u8, index: usize) -> [u8; HOP_BYTES] {
    let [one, two] = u16::try_from(operator).unwrap_or(u16::MAX).to_be_bytes();
    let [three, four, five, six] = u32::try_from(index).unwrap_or(u32::MAX).to_be_bytes();
    [one, two, port, three, four, five, six]
}

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_compare_in_the_order_of_the_day() {
        let lot = Lot { source: 0, partition: 1 };
        let subkey = Subkey::of(&["like"]);
        let order = [
            Ordinal::profile("a"),
            Ordinal::rules("a"),
            Ordinal::profile("b"),
            Ordinal::timer(Instant(-5), "b", &subkey, TimerId(0)),
            Ordinal::timer(Instant(7), "a", &subkey, TimerId(0)),
            Ordinal::timer(Instant(7), "a", &subkey, TimerId(1)),
            Ordinal::record(lot, 2),
            Ordinal::record(lot, 2).hop(3, 0, 0),
            Ordinal::record(lot, 2).hop(3, 0, 1),
            Ordinal::record(lot, 300),
            Ordinal::record(Lot { source: 1, partition: 0 }, 0),
        ];
        assert!(order.is_sorted());
    }
}
