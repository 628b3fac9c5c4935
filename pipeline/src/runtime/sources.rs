//! Whether the sources still hold what a start needs of them: asked before anything is read.
//!
//! The cut log says how far each partition was read. Against that a partition may have lost records that
//! nobody decided yet (retention shorter than the outage), may end before what was read (the topic was
//! recreated), may hold something else there (recreated and filled again), or may be new (partitions were
//! added). Nothing of it is skipped: the start is refused with what is missing and what can be done.
//!
//! # Not promised
//! That another topic in the place of one is noticed when no cut that is left read a record of it. What a
//! replay reads is compared record by record all the same (recovery's step 5).

use std::collections::BTreeMap;
use std::time::Duration;

use tidings_operators::harness::feed::Extent;
use tidings_sinks::log::{Log, LogError, TopicPartition};

use super::feeds::raw;
use super::plan::{Plan, SourcePlan};
use super::recovery::Start;
use crate::cutlog::End;

/// How long one read of records that are known to be there may wait.
const READ_WAIT: Duration = Duration::from_secs(1);

/// Reads that bring nothing, after which a partition is said not to answer.
const READS_MAX: u32 = 30;

/// Why sources cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// What was read is not there any more, or something else is.
    #[error("the sources are not what was read so far; nothing was started, and nothing is skipped:\n  {}", .0.join("\n  "))]
    Changed(Vec<String>),
}

/// How far one source was read, by the checkpoint and by the cuts beyond it.
#[derive(Default)]
struct Reached {
    /// Where each partition stands in the checkpoint.
    stood: BTreeMap<u32, u64>,
    /// Where the last cut that is to be replayed ends each partition.
    cut: BTreeMap<u32, u64>,
}

impl Reached {
    fn of(source: &str, start: &Start) -> Self {
        let stood = start.checkpoint.as_ref().and_then(|(_, manifest)| manifest.ends.get(source)).cloned();
        let ends = start.cuts.iter().filter_map(|cut| cut.ends.get(source)).flatten();
        Self { stood: stood.unwrap_or_default(), cut: ends.map(|(partition, end)| (*partition, end.end)).collect() }
    }

    /// How many partitions the topic had, as a checkpoint says it; a cut names only those that it advanced.
    fn partitions(&self) -> u32 {
        self.stood.keys().max().map_or(0, |highest| highest + 1)
    }

    /// How many it had at least.
    fn partitions_min(&self) -> u32 {
        self.cut.keys().max().map_or(0, |highest| highest + 1).max(self.partitions())
    }
}

/// Refuses sources of which something is missing.
///
/// # Errors
/// When the log cannot be reached, or the sources changed: the message names each partition.
pub(crate) fn check(log: &dyn Log, plan: &Plan, start: &Start) -> Result<(), SourcesError> {
    let mut changed = Vec::new();
    for source in &plan.sources {
        let reached = Reached::of(&source.id, start);
        let known = reached.partitions();
        changed.extend(of_count(source, known, reached.partitions_min()));
        for partition in 0..source.partitions {
            let at = TopicPartition { topic: source.topic.as_str().into(), partition };
            let range = log.range(&at)?;
            let problem = of_range(&reached, known, partition, &range);
            let problem = match problem {
                None if !reached.cut.contains_key(&partition) && !source.side_input => {
                    of_content(log, &at, &range, start.decided.get(&(source.id.clone(), partition)))?
                }
                problem => problem,
            };
            changed.extend(problem.map(|problem| format!("source `{}`, {at}: {problem}", source.id)));
        }
    }
    if changed.is_empty() { Ok(()) } else { Err(SourcesError::Changed(changed)) }
}

/// Partitions that came or went.
fn of_count(source: &SourcePlan, known: u32, known_min: u32) -> Option<String> {
    let SourcePlan { id, topic, partitions, side_input, .. } = source;
    if known_min > *partitions {
        return Some(format!(
            "source `{id}`, {topic}: it has {partitions} partitions, and {known_min} were read: the topic was recreated; \
             restore it as it was, or give the source a new name, under which it is read from its beginning"
        ));
    }
    if known > 0 && known < *partitions {
        if *side_input {
            return Some(format!(
                "source `{id}`, {topic}: it has {partitions} partitions, and had {known}: a user's older record may \
                 stand in another partition than the newer one, and would win where all is read again; write every \
                 record into a new topic of {partitions} partitions, and name that one in `sources` under a new name"
            ));
        }
        tracing::warn!(
            source = id,
            topic,
            from = known,
            to = partitions,
            "partitions were added; they are read from their first record, and the order of a user's events holds \
             from now on"
        );
    }
    None
}

/// Records that are gone, by their offsets.
fn of_range(reached: &Reached, known: u32, partition: u32, range: &std::ops::Range<u64>) -> Option<String> {
    let std::ops::Range { start: oldest, end } = *range;
    let stood = reached.stood.get(&partition).copied();
    let cut = reached.cut.get(&partition).copied();
    let read = cut.or(stood).unwrap_or(0);
    if read > end {
        return Some(format!(
            "its end is {end}, and it was read up to {read}: the topic was recreated or truncated; restore it, or \
             give the source a new name, under which it is read from its beginning"
        ));
    }
    // Of a partition that was there and is in no checkpoint the replay itself says what is missing.
    let from = stood.or_else(|| (known > 0 && cut.is_none()).then_some(0))?;
    if from >= oldest {
        return None;
    }
    match cut {
        Some(cut) if cut > from => Some(format!(
            "records {from}..{cut} are to be replayed, and those below {oldest} were given up: its retention is \
             shorter than this outage; restore them, and keep the topic longer than the longest outage"
        )),
        _ => Some(format!(
            "records {from}..{oldest} were given up before anything was decided upon them: its retention is shorter \
             than this outage; restore them, or give the source a new name, under which it is read from {oldest} on \
             without them, and keep the topic longer than the longest outage"
        )),
    }
}

/// Whether the last records that were decided upon are still what they were, as far as they are there.
fn of_content(
    log: &dyn Log,
    at: &TopicPartition,
    range: &std::ops::Range<u64>,
    decided: Option<&(u64, End)>,
) -> Result<Option<String>, LogError> {
    let Some((from, expected)) = decided.filter(|(from, _)| *from >= range.start) else { return Ok(None) };
    let (mut reader, mut position) = (log.reader(at, *from)?, *from);
    let (mut read, mut idle) = (Extent::default(), 0);
    while position < expected.end {
        let batch = reader.poll(4_096, READ_WAIT)?;
        idle = if batch.position > position { 0 } else { idle + 1 };
        if idle == READS_MAX {
            return Err(LogError::Unreachable(format!("{at} brings nothing from offset {position} on")));
        }
        position = batch.position;
        for record in batch.records.into_iter().filter(|record| record.offset < expected.end) {
            read.count(raw(record).checksum());
        }
    }
    let Extent { records, checksum, .. } = read;
    Ok(((records, checksum) != (expected.records, expected.checksum)).then(|| {
        format!(
            "records {from}..{} are not those that were decided upon ({records} with checksum {checksum:016x}, expected \
             {} with {:016x}): the topic was recreated and filled again; restore it, or give the source a new name, \
             under which it is read from its beginning",
            expected.end, expected.records, expected.checksum
        )
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidings_operators::harness::dataflow::Transport;
    use tidings_operators::script;
    use tidings_schemas::time::Instant;
    use tidings_schemas::topics::Topics;
    use tidings_sinks::log::memory::MemoryLog;
    use tidings_sinks::log::{Append, Retention, TopicSpec};

    use super::*;
    use crate::checkpoint::Manifest;
    use crate::cutlog::{CutBody, Named};
    use crate::runtime::egress::Outlets;
    use crate::runtime::recovery;

    /// A topic `t` of partitions with so many records, of which the first ones were given up.
    fn log(partitions: &[(u64, u64)], text: &str) -> MemoryLog {
        let log = MemoryLog::new(Arc::new(|| Instant(0))).unwrap();
        let count = u32::try_from(partitions.len()).unwrap();
        log.create(&[TopicSpec::one_copy("t", count, Retention::Forever)]).unwrap();
        for (partition, (oldest, end)) in (0..).zip(partitions) {
            let to = TopicPartition { topic: "t".into(), partition };
            let value = |number| Some(format!("{text}{number}").into());
            let append = |number| Append { to: to.clone(), key: None, value: value(number), headers: Vec::new() };
            log.append(&(0..*end).map(append).collect::<Vec<_>>()).unwrap();
            log.trim(&to, *oldest).unwrap();
        }
        log
    }

    fn plan(partitions: u32, side_input: bool) -> Plan {
        let (id, topic) = ("high".to_owned(), "t".to_owned());
        Plan {
            wiring: script::straight(&[("validate", serde_json::json!({}), None)]),
            sources: vec![SourcePlan { id, topic, partitions, rank: 0, at_least_permille: 0, side_input }],
            rules: Arc::new(script::rules_of(&script::policies(), Duration::ZERO)),
            topology: Arc::from(*b"t"),
            build: [0; 32],
            outlets: Outlets { topics: Topics::default(), partitions: BTreeMap::new() },
            workers: 1,
            transport: Transport::Memory,
            epoch_min: Duration::ZERO,
            idle_max: Duration::ZERO,
            checkpoint_every: Duration::ZERO,
        }
    }

    fn ends<T: Copy>(ends: &[T]) -> BTreeMap<String, BTreeMap<u32, T>> {
        BTreeMap::from([("high".to_owned(), (0..).zip(ends.iter().copied()).collect())])
    }

    /// A start from a checkpoint where partitions stood at `stood`, with a cut that ends them at `cut`.
    fn start(stood: &[u64], cut: &[u64]) -> Start {
        let (name, epoch) = ("m".to_owned(), 7);
        let manifest = Manifest { epoch, ends: ends(stood), ..Manifest::default() };
        let cut: Vec<End> = cut.iter().map(|end| End { end: *end, ..End::default() }).collect();
        let cut = CutBody { epoch: 8, ends: ends(&cut), ..CutBody::default() };
        Start { checkpoint: Some((Named { name, epoch }, manifest)), cuts: vec![cut], ..Start::empty() }
    }

    #[test]
    fn what_the_sources_lack_is_said_in_full() {
        let (no, yes) = (false, true);
        // Stood, cut beyond it, and oldest..end of each partition; a side input or not.
        type Case<'a> = (&'a [u64], &'a [u64], &'a [(u64, u64)], bool, &'a str);
        let cases: [Case<'_>; 13] = [
            (&[], &[], &[(3, 9)], no, ""),
            (&[], &[5], &[(3, 9)], no, ""),
            // A crash before the first checkpoint: the cut names what it advanced.
            (&[], &[5], &[(0, 9), (0, 4)], yes, ""),
            (&[5, 5], &[], &[(5, 9), (0, 5)], no, ""),
            (&[5], &[7], &[(5, 9)], no, ""),
            (&[5], &[], &[(0, 9), (0, 4)], no, ""),
            (
                &[5],
                &[7],
                &[(6, 9)],
                no,
                "source `high`, t/0: records 5..7 are to be replayed, and those below 6 were given up: its retention is \
                 shorter than this outage; restore them, and keep the topic longer than the longest outage",
            ),
            (
                &[5],
                &[],
                &[(6, 9)],
                no,
                "source `high`, t/0: records 5..6 were given up before anything was decided upon them: its retention is \
                 shorter than this outage; restore them, or give the source a new name, under which it is read from 6 \
                 on without them, and keep the topic longer than the longest outage",
            ),
            (
                &[5],
                &[],
                &[(0, 9), (2, 4)],
                no,
                "source `high`, t/1: records 0..2 were given up before anything was decided upon them: its retention is \
                 shorter than this outage; restore them, or give the source a new name, under which it is read from 2 \
                 on without them, and keep the topic longer than the longest outage",
            ),
            (
                &[5],
                &[],
                &[(0, 3)],
                no,
                "source `high`, t/0: its end is 3, and it was read up to 5: the topic was recreated or truncated; \
                 restore it, or give the source a new name, under which it is read from its beginning",
            ),
            (
                &[],
                &[5],
                &[(0, 3)],
                yes,
                "source `high`, t/0: its end is 3, and it was read up to 5: the topic was recreated or truncated; \
                 restore it, or give the source a new name, under which it is read from its beginning",
            ),
            (
                &[5, 0],
                &[],
                &[(0, 9)],
                no,
                "source `high`, t: it has 1 partitions, and 2 were read: the topic was recreated; restore it as it was, \
                 or give the source a new name, under which it is read from its beginning",
            ),
            (
                &[5],
                &[],
                &[(0, 9), (0, 0)],
                yes,
                "source `high`, t: it has 2 partitions, and had 1: a user's older record may stand in another partition \
                 than the newer one, and would win where all is read again; write every record into a new topic of 2 \
                 partitions, and name that one in `sources` under a new name",
            ),
        ];
        for (stood, cut, partitions, side_input, expected) in cases {
            let plan = plan(u32::try_from(partitions.len()).unwrap(), side_input);
            let checked = check(&log(partitions, "r"), &plan, &start(stood, cut));
            let said = checked.err().map(|error| error.to_string()).unwrap_or_default();
            let head = "the sources are not what was read so far; nothing was started, and nothing is skipped:\n  ";
            let expected = if expected.is_empty() { String::new() } else { format!("{head}{expected}") };
            assert_eq!(said, expected, "{stood:?} {cut:?} {partitions:?}");
        }
    }

    #[test]
    fn a_topic_that_was_recreated_and_filled_again_is_told_from_the_one_that_was_read() {
        let checksum = |text: &str| {
            let log = log(&[(0, 6)], text);
            let at = TopicPartition { topic: "t".into(), partition: 0 };
            let records = log.reader(&at, 4).unwrap().poll(9, READ_WAIT).unwrap().records;
            records.into_iter().fold(0_u64, |sum, record| sum.wrapping_add(raw(record).checksum()))
        };
        let cut = |epoch, end, checksum| {
            let end = End { end, records: 2, checksum };
            (epoch, CutBody { epoch, ends: ends(&[end]), ..CutBody::default() })
        };
        let cuts = vec![cut(1, 4, 0), cut(2, 6, checksum("r"))];
        let mut start = start(&[6], &[]);
        start.decided = recovery::decided(&cuts, 2, None);
        check(&log(&[(0, 9)], "r"), &plan(1, false), &start).unwrap();
        // What was given up since cannot be compared, and nobody needs it.
        check(&log(&[(6, 9)], "s"), &plan(1, false), &start).unwrap();
        let error = check(&log(&[(0, 9)], "s"), &plan(1, false), &start).unwrap_err().to_string();
        let expected = format!(
            "source `high`, t/0: records 4..6 are not those that were decided upon (2 with checksum {:016x}, expected 2 \
             with {:016x}): the topic was recreated and filled again; restore it, or give the source a new name, under \
             which it is read from its beginning",
            checksum("s"),
            checksum("r")
        );
        assert!(error.ends_with(&expected), "{error}");
    }
}
