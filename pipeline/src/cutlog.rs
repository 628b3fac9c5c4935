//! The cut log: how far each partition was read and what time it was. The only source of truth.
//!
//! # Cast
//! A *generation* is one run of the decide stage; its name is the offset of its own [`Entry::Begin`],
//! so that nobody chooses a number. A *cut* ends an epoch. A *checkpoint* counts once it stands here.
//!
//! # Protocol
//! 1. A starter appends `begin` ([`CutLog::begin`]), and only then reads the log up to it
//!    ([`CutLog::counted`]).
//! 2. One append is outstanding. Acknowledged at exactly the previous offset plus one, it is durable;
//!    at any other offset somebody else writes, and the generation ends ([`CutLog::attempt`]).
//! 3. In doubt, the writer reads that offset: exactly the bytes sent, acknowledged; other bytes, the
//!    generation ends; nothing, it sends the same bytes again.
//! 4. Reading is one function for everybody ([`read`]). A record counts only if no record of a later
//!    generation stands before it in what is left of the log. A cut counts only as the epoch after
//!    the last counted one: the first wins, a repeat is ignored, a gap is an error. The newest
//!    checkpoint is the counted one of the highest epoch, not the last in the log.
//!
//! 5. A *skip* names a call that killed its operator; it stands behind the cut of its epoch, whose outputs
//!    nobody said before.
//!
//! # Invariants
//! - Two generations never both have a cut of one epoch counted.
//! - What counts never stops counting: trimming removes only cuts that a kept checkpoint covers.
//!
//! # If it dies at step n
//! 1. A `begin` without followers fences older generations and nothing else.
//! 2. An append whose acknowledgement was lost is found by the next starter: it counts, and its epoch
//!    is replayed. One that never landed was never said: no epoch runs before its cut is durable.
//! 3. The same bytes twice are one cut and an ignored repeat.
//!
//! # Not promised
//! That a fenced generation learns of it at once. It may go on deciding; it can only repeat what was
//! said, because its next cut does not count and no epoch runs before its cut counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidings_operators::harness::aside::Skip;
use tidings_schemas::codec::{frame, unframe};
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::time::Instant;
use tidings_sinks::log::{Append, Log, LogError, TopicPartition};

/// The version of the entries' encoding.
const VERSION: u8 = 1;

/// Names a stored object by its content.
pub type Hash = [u8; 32];

/// What a cut says of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The epoch's end: records below it are cut.
    pub end: u64,
    /// Records since the last cut.
    pub records: u64,
    /// Wrapping sum of their checksums.
    pub checksum: u64,
}

/// The newest mark of a lane partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkAt {
    /// The lane's topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Where the mark stands.
    pub offset: u64,
}

/// What ends an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutBody {
    /// The epoch.
    pub epoch: u64,
    /// Stream time.
    pub now: Instant,
    /// Changed partitions, by source id.
    pub ends: BTreeMap<String, BTreeMap<u32, End>>,
    /// The topology, policies included, stored by this hash.
    pub topology: Hash,
    /// The tz data, stored by this hash.
    pub calendar: Hash,
    /// The build that decides.
    pub build: Hash,
    /// Every output up to this epoch was acknowledged.
    pub said_through: u64,
    /// The newest marks, where they changed since the last cut.
    pub marks: Vec<MarkAt>,
    /// The last epoch that was finished when this cut was made, and the digest of what it said.
    pub finished: Option<(u64, u64)>,
}

/// A call that killed its operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkipAt {
    /// The epoch, of which nothing was said with it.
    pub epoch: u64,
    /// What is left out whenever that epoch runs.
    pub skip: Skip,
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A generation begins; its name is this record's offset.
    Begin {
        /// Tells one starter's bytes from another's.
        nonce: u128,
    },
    /// An epoch ends.
    Cut {
        /// Whose cut.
        generation: u64,
        /// What it says.
        cut: CutBody,
    },
    /// A checkpoint is complete.
    Checkpoint {
        /// Whose.
        generation: u64,
        /// The object that names its chunks.
        name: String,
        /// The epoch at whose end it was taken; every output up to it was acknowledged.
        epoch: u64,
    },
    /// A call is left out of an epoch, for ever. It stands behind that epoch's cut.
    Skip {
        /// Whose.
        generation: u64,
        /// Which call.
        skip: SkipAt,
    },
}

/// A checkpoint that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The object that names its chunks.
    pub name: String,
    /// Its epoch.
    pub epoch: u64,
}

/// What the log says, to whoever reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Counted cuts, without gaps, each with its offset.
    pub cuts: Vec<(u64, CutBody)>,
    /// Counted checkpoints by epoch and offset: of one epoch there is another where the first could not be
    /// read.
    pub checkpoints: BTreeMap<(u64, u64), Named>,
    /// Calls that are left out, by epoch.
    pub skips: BTreeMap<u64, Vec<Skip>>,
    /// The highest generation that wrote anything.
    pub generation: Option<u64>,
    /// The highest epoch of which everything was said.
    pub said_through: u64,
    /// Whether the log was trimmed: then a checkpoint must be found.
    pub trimmed: bool,
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CutLogError {
    /// A later generation writes: this one ends, quietly.
    #[error("another run of this pipeline has taken over (generation {0}); this one ends")]
    Superseded(u64),
    /// The log itself.
    #[error("the cut log: {0}")]
    Log(#[from] LogError),
    /// An entry's bytes.
    #[error("the cut log at offset {offset}: {problem}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What.
        problem: String,
    },
    /// A counted cut does not follow the last one.
    #[error("the cut log has a gap: epoch {found} at offset {offset} follows epoch {last}")]
    Gap {
        /// Where.
        offset: u64,
        /// The epoch there.
        found: u64,
        /// The epoch before.
        last: u64,
    },
}

impl Entry {
    /// The entry's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        frame(VERSION, &postcard::to_stdvec(self).unwrap_or_default())
    }

    /// The entry of these bytes.
    ///
    /// # Errors
    /// When the bytes are damaged or of another version.
    pub fn decode(offset: u64, bytes: &[u8]) -> Result<Self, CutLogError> {
        let damaged = |problem: String| CutLogError::Damaged { offset, problem };
        let body = unframe(VERSION, bytes).map_err(|error| damaged(error.to_string()))?;
        postcard::from_bytes(body).map_err(|error| damaged(error.to_string()))
    }

    const fn generation(&self, offset: u64) -> u64 {
        match self {
            Self::Begin { .. } => offset,
            Self::Cut { generation, .. } | Self::Checkpoint { generation, .. } | Self::Skip { generation, .. } => {
                *generation
            }
        }
    }
}

/// Step 4, for everybody: what counts among `entries`, which are all that is left of the log.
///
/// A trimmed log may begin with cuts of generations that were superseded: what fenced them was given up, they were
/// not, because they lay behind the last cut that was. Their epochs are then among those given up: whoever fenced
/// them went on from at least as far. So where a younger generation leaves a gap in a trimmed log, what came before
/// it is dropped: nobody needs it. That nothing is missing which somebody needs is for the checkpoint to say, which
/// must reach up to the first cut that is left.
///
/// # Errors
/// When a counted cut leaves a gap.
pub fn read(entries: impl IntoIterator<Item = (u64, Entry)>, trimmed: bool) -> Result<Counted, CutLogError> {
    let mut counted = Counted { trimmed, ..Counted::default() };
    let mut cut_by = 0;
    for (offset, entry) in entries {
        let generation = entry.generation(offset);
        if counted.generation.is_some_and(|highest| generation < highest) {
            continue;
        }
        counted.generation = Some(generation);
        match entry {
            Entry::Begin { .. } => {}
            Entry::Cut { cut, .. } => {
                // A checkpoint stands behind its epoch's cut: what follows it and is no younger is a repeat that came
                // late, even where trimming took what it repeats.
                if counted.checkpoints.last_key_value().is_some_and(|((named, _), _)| cut.epoch <= *named) {
                    continue;
                }
                let last = counted.cuts.last().map(|(_, last)| last.epoch);
                match last {
                    Some(last) if cut.epoch <= last => continue,
                    Some(last) if cut.epoch > last + 1 => {
                        if !trimmed || generation == cut_by {
                            return Err(CutLogError::Gap { offset, found: cut.epoch, last });
                        }
                        counted.cuts.clear();
                    }
                    _ => {}
                }
                cut_by = generation;
                counted.said_through = counted.said_through.max(cut.said_through);
                counted.cuts.push((offset, cut));
            }
            Entry::Skip { skip: SkipAt { epoch, skip }, .. } => {
                let skips = counted.skips.entry(epoch).or_default();
                // Two workers may die of one call, in two runs.
                if !skips.contains(&skip) {
                    skips.push(skip);
                }
            }
            Entry::Checkpoint { name, epoch, .. } => {
                counted.said_through = counted.said_through.max(epoch);
                counted.checkpoints.insert((epoch, offset), Named { name, epoch });
            }
        }
    }
    Ok(counted)
}

/// The log, as one generation writes it.
pub struct CutLog {
    log: Arc<dyn Log>,
    partition: TopicPartition,
    generation: u64,
    next: u64,
    /// How often the append under way was in doubt, and whether it is now.
    doubts: u32,
    in_doubt: bool,
}

/// How often an append in doubt is asked for and sent again before the generation gives up. With the
/// log's own time-outs this is minutes: longer than a leader election.
const DOUBTS_MAX: u32 = 30;

/// How long a starter waits for records that it knows to be there.
const READ_WAIT: Duration = Duration::from_secs(1);

impl CutLog {
    /// Step 1, first half: begins a generation.
    ///
    /// # Errors
    /// When the log cannot be written.
    pub fn begin(log: Arc<dyn Log>, topic: &str, nonce: u128) -> Result<Self, CutLogError> {
        let partition = TopicPartition { topic: topic.into(), partition: 0 };
        let bytes = Entry::Begin { nonce }.encode();
        let generation = append_anywhere(&*log, &partition, &bytes)?;
        Ok(Self { log, partition, generation, next: generation + 1, doubts: 0, in_doubt: false })
    }

    /// Step 1, second half: reads the log up to this generation's begin.
    ///
    /// # Errors
    /// When the log cannot be read, or does not make sense.
    pub fn counted(&self) -> Result<Counted, CutLogError> {
        let entries = entries(&*self.log, &self.partition, self.generation)?;
        let trimmed = self.log.range(&self.partition)?.start > 0;
        read(entries, trimmed)
    }

    /// This generation's name.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Steps 2 and 3: sends `entry` or, in doubt, looks for it; returns its offset once it is durable,
    /// and nothing while that is to be tried again with the same entry.
    ///
    /// # Errors
    /// When another generation writes, or the log does not answer for too long.
    pub fn attempt(&mut self, entry: &Entry) -> Result<Option<u64>, CutLogError> {
        let bytes = entry.encode();
        if self.in_doubt {
            self.in_doubt = false;
            return match self.look(&bytes)? {
                Some(true) => Ok(Some(self.durable())),
                Some(false) => Err(CutLogError::Superseded(self.next)),
                None if self.doubts == DOUBTS_MAX => {
                    let why = "an append stayed in doubt for too long".to_owned();
                    Err(CutLogError::Log(LogError::Unreachable(why)))
                }
                None => Ok(None),
            };
        }
        match self.log.append(&[append_of(&self.partition, &bytes)]) {
            Ok(offsets) if offsets.first() == Some(&self.next) => Ok(Some(self.durable())),
            Ok(offsets) if deliberate::has(Bug::UnfencedZombie) => {
                self.next = offsets.first().copied().unwrap_or(self.next);
                Ok(Some(self.durable()))
            }
            Ok(offsets) => Err(CutLogError::Superseded(offsets.first().copied().unwrap_or(self.next))),
            Err(error) if error.is_transient() => {
                self.in_doubt = true;
                self.doubts += 1;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    const fn durable(&mut self) -> u64 {
        self.doubts = 0;
        self.next += 1;
        self.next - 1
    }

    /// Whether the next offset holds exactly these bytes; none while it holds nothing, or cannot be
    /// asked.
    fn look(&self, bytes: &[u8]) -> Result<Option<bool>, CutLogError> {
        let found = self.log.reader(&self.partition, self.next).and_then(|mut reader| reader.poll(1, READ_WAIT));
        match found {
            Ok(batch) => Ok(batch.records.first().map(|record| record.value.as_deref() == Some(bytes))),
            Err(error) if error.is_transient() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives up the log below `offset`.
    ///
    /// # Errors
    /// When the log cannot be reached.
    pub fn trim(&self, offset: u64) -> Result<(), CutLogError> {
        Ok(self.log.trim(&self.partition, offset)?)
    }
}

fn append_of(partition: &TopicPartition, bytes: &[u8]) -> Append {
    Append { to: partition.clone(), key: None, value: Some(Bytes::copy_from_slice(bytes)), headers: Vec::new() }
}

/// Appends `bytes` wherever the log's end is; the nonce in them finds them again.
fn append_anywhere(log: &dyn Log, partition: &TopicPartition, bytes: &[u8]) -> Result<u64, CutLogError> {
    match log.append(&[append_of(partition, bytes)]) {
        Ok(offsets) => Ok(offsets.first().copied().unwrap_or_default()),
        // A `begin` in doubt is simply begun again: two of them fence the same generations.
        Err(error) if error.is_ambiguous() => {
            let offsets = log.append(&[append_of(partition, bytes)])?;
            Ok(offsets.first().copied().unwrap_or_default())
        }
        Err(error) => Err(error.into()),
    }
}

/// All entries that are left, up to and including `last`.
fn entries(log: &dyn Log, partition: &TopicPartition, last: u64) -> Result<Vec<(u64, Entry)>, CutLogError> {
    let start = log.range(partition)?.start;
    let mut reader = log.reader(partition, start)?;
    let mut entries = Vec::new();
    let mut position = start;
    while position <= last {
        let batch = reader.poll(4096, READ_WAIT)?;
        for record in batch.records.into_iter().filter(|record| record.offset <= last) {
            let bytes = record.value.unwrap_or_default();
            entries.push((record.offset, Entry::decode(record.offset, &bytes)?));
        }
        position = batch.position;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use tidings_operators::harness::feed::Lot;
    use tidings_operators::harness::ordinal::Ordinal;

    use super::*;

    fn cut(generation: u64, epoch: u64) -> Entry {
        Entry::Cut { generation, cut: CutBody { epoch, said_through: epoch.saturating_sub(2), ..CutBody::default() } }
    }

    fn checkpoint(generation: u64, epoch: u64) -> Entry {
        Entry::Checkpoint { generation, name: format!("c{epoch}"), epoch }
    }

    fn epochs(entries: Vec<(u64, Entry)>) -> Result<Vec<u64>, CutLogError> {
        Ok(read(entries, false)?.cuts.iter().map(|(_, cut)| cut.epoch).collect())
    }

    #[test]
    fn a_record_counts_unless_a_later_generation_stands_before_it() {
        let begin = Entry::Begin { nonce: 0 };
        // Generation 0 goes on for a while after generation 3 began: its cut 3 does not count, the
        // new generation's does.
        let log = vec![(0, begin.clone()), (1, cut(0, 1)), (2, cut(0, 2)), (3, begin), (4, cut(0, 3)), (5, cut(3, 3))];
        let counted = read(log, false).unwrap();
        assert_eq!(counted.cuts.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [1, 2, 5]);
        assert_eq!(counted.generation, Some(3));
    }

    #[test]
    fn a_trimmed_begin_still_fences_by_the_records_that_name_it() {
        // The begin of generation 7 is gone; its cut is not.
        let log = vec![(8, cut(7, 5)), (9, cut(2, 6)), (10, cut(7, 6))];
        assert_eq!(epochs(log).unwrap(), [5, 6]);
        assert_eq!(read(vec![(8, cut(7, 5)), (9, checkpoint(2, 9))], true).unwrap().checkpoints.len(), 0);
    }

    #[test]
    fn a_zombie_whose_fence_was_trimmed_is_dropped_by_the_gap_that_it_makes() {
        // Generation 7 began at 7 and cut 5 and 6; its zombies' cuts lay behind those, and everything before was
        // given up.
        let log = |after| vec![(9, cut(2, 4)), (10, cut(3, 5)), (12, cut(after, 7)), (13, cut(after, 8))];
        let epochs = |log, trimmed| {
            let counted = read(log, trimmed)?;
            Ok::<Vec<u64>, CutLogError>(counted.cuts.iter().map(|(_, cut)| cut.epoch).collect())
        };
        assert_eq!(epochs(log(11), true).unwrap(), [7, 8]);
        assert!(epochs(log(11), false).is_err(), "nothing was given up, so that something is missing");
        assert!(epochs(log(3), true).is_err(), "a generation leaves no gap in what it says itself");
    }

    #[test]
    fn a_repeat_that_came_late_is_known_by_the_checkpoint_before_it_where_its_first_was_trimmed() {
        // Cut 5 was in doubt and said again; its first sending landed behind the checkpoint. Cuts up to 6 were given up.
        let log = |checkpoint| vec![(9, checkpoint), (10, cut(2, 5)), (11, cut(2, 7)), (12, cut(2, 8))];
        let epochs = |log, trimmed| {
            let counted = read(log, trimmed)?;
            Ok::<Vec<u64>, CutLogError>(counted.cuts.iter().map(|(_, cut)| cut.epoch).collect())
        };
        assert_eq!(epochs(log(checkpoint(2, 6)), true).unwrap(), [7, 8]);
        assert!(epochs(log(checkpoint(2, 4)), true).is_err(), "cut 6 is missing");
    }

    #[test]
    fn repeats_are_ignored_and_gaps_are_errors() {
        assert_eq!(epochs(vec![(1, cut(0, 1)), (2, cut(0, 1)), (3, cut(0, 2))]).unwrap(), [1, 2]);
        let error = epochs(vec![(1, cut(0, 1)), (2, cut(0, 3))]).unwrap_err().to_string();
        assert_eq!(error, "the cut log has a gap: epoch 3 at offset 2 follows epoch 1");
    }

    #[test]
    fn the_newest_checkpoint_is_the_highest_not_the_last() {
        let log = vec![(1, cut(0, 1)), (2, cut(0, 2)), (3, checkpoint(0, 2)), (4, checkpoint(0, 1))];
        let counted = read(log, false).unwrap();
        assert_eq!(counted.checkpoints.last_key_value().map(|((epoch, _), _)| *epoch), Some(2));
        assert_eq!(counted.said_through, 2);
    }

    #[test]
    fn entries_have_golden_bytes() {
        let entry = Entry::Checkpoint { generation: 7, name: "7-42".to_owned(), epoch: 42 };
        let hex: String = entry.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "010207".to_owned() + "04372d3432" + "2a" + &hex[hex.len() - 8..]);
        assert_eq!(Entry::decode(0, &entry.encode()).unwrap(), entry);
        let skip = Skip {
            ordinal: Ordinal::record(Lot { source: 1, partition: 2 }, 300),
            operator: None,
            problem: "it".to_owned(),
        };
        let entry = Entry::Skip { generation: 7, skip: SkipAt { epoch: 42, skip } };
        let hex: String = entry.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        let ordinal = "0f02000100000002000000000000012c";
        assert_eq!(hex, "0103072a".to_owned() + ordinal + "00" + "026974" + &hex[hex.len() - 8..]);
        assert_eq!(Entry::decode(0, &entry.encode()).unwrap(), entry);
        let error = Entry::decode(9, b"\x01nonsense").unwrap_err().to_string();
        assert!(error.starts_with("the cut log at offset 9: checksum"), "{error}");
    }
}
