//! What comes into the engine: records of a source's partitions, and how far they were read.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::time::Instant;

/// A record as a log or a file gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// Its place in the partition.
    pub offset: u64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; absent is a tombstone.
    pub value: Option<Bytes>,
    /// Names and values beside it.
    pub headers: Vec<(String, Bytes)>,
    /// The log's timestamp.
    pub timestamp: Instant,
}

impl RawRecord {
    /// The value of the header `name`.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// What a cut's checksum adds up: a hash of offset, key and value.
    #[must_use]
    pub fn checksum(&self) -> u64 {
        use xxhash_rust::xxh3::xxh3_64;
        // Absent and empty differ: no bytes have a hash, and it is not zero.
        let part = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, |bytes| xxh3_64(bytes));
        let mut parts = [0; 24];
        for (place, part) in [self.offset, part(&self.key), part(&self.value)].into_iter().enumerate() {
            parts[place * 8..][..8].copy_from_slice(&part.to_le_bytes());
        }
        xxh3_64(&parts)
    }
}

/// One partition of one source, as the topology numbers sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lot {
    /// The source's number in the topology.
    pub source: u16,
    /// The partition.
    pub partition: u32,
}

/// How far a partition was read within one epoch, and what was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Every record below it was read (or does not exist).
    pub end: u64,
    /// Records between the last epoch's end and this one.
    pub records: u64,
    /// Wrapping sum of their checksums.
    pub checksum: u64,
}

impl Extent {
    /// Counts one more record, of this checksum.
    pub fn count(&mut self, checksum: u64) {
        if !deliberate::has(Bug::UncountedCuts) {
            self.records += 1;
            self.checksum = self.checksum.wrapping_add(checksum);
        }
    }
}

/// Reads one partition. Never blocks: what waits for the log is somebody else's thread.
pub trait Feed: Send {
    /// Appends at most `records_max` further records to `out` and returns the position: every
    /// record below it was delivered or does not exist.
    ///
    /// # Errors
    /// When the partition cannot be read on: the generation ends.
    fn poll(&mut self, records_max: usize, out: &mut Vec<RawRecord>) -> Result<u64, String>;
}
