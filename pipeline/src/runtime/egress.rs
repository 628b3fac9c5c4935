//! What an epoch says, written: lane records, hand-overs, dead letters, lifecycle blocks, marks.
//!
//! One part writes in the order of epochs. It is given an epoch only once its cut is durable, and
//! reports it said only once every record was acknowledged. An append that fails is made again,
//! whole, until it succeeds or the generation ends: a repeat carries the same epoch and ordinal, and
//! readers drop what a mark has passed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use tidings_operators::harness::output::{EpochOutput, Said, To};
use tidings_schemas::block::Block;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{lane_partition, put_hex};
use tidings_schemas::lane::{HEADER_EPOCH, HEADER_GENERATION, HEADER_ORDINAL, Mark, handed_over};
use tidings_schemas::lifecycle::Stage;
use tidings_schemas::rows::Rows;
use tidings_schemas::topics::Topics;
use tidings_sinks::lane::wire;
use tidings_sinks::log::{Append, Headers, Log, LogError, TopicPartition};

use super::crew::{Next, Part, hear};
use crate::cutlog::MarkAt;

/// Epochs that are written with one append. More is no faster, and a failure repeats all of them.
const EPOCHS_MAX: usize = 32;

/// The shortest and the longest pause between two tries of one append.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Which records of unsaid epochs already stand in the lanes: found by recovery.
pub(crate) type Present = BTreeSet<(u64, Vec<u8>)>;

/// What the writer is told.
pub(crate) enum Say {
    /// An epoch's outputs; its cut is durable.
    Epoch(Box<EpochOutput>),
    /// A mark for every lane partition that was written since the last one.
    Mark(u64),
}

/// What the writer reports.
pub(crate) enum Spoken {
    /// Everything up to this epoch was acknowledged.
    Through(u64),
    /// Where the marks stand.
    Marked(Vec<MarkAt>),
    /// The log refuses for good.
    Failed(LogError),
}

/// Topics and how many partitions each has.
#[derive(Clone, Debug)]
pub struct Outlets {
    /// Their names.
    pub topics: Topics,
    /// Partitions by topic.
    pub partitions: BTreeMap<String, u32>,
}

impl Outlets {
    fn partition(&self, topic: Arc<str>, user: &str) -> TopicPartition {
        let count = self.partitions.get(&*topic).copied().unwrap_or(1).max(1);
        TopicPartition { partition: lane_partition(user, count), topic }
    }

    /// Where an output goes.
    #[must_use]
    pub fn place(&self, said: &Said) -> TopicPartition {
        let topic = match said.to {
            To::Lane(channel, priority) => self.topics.lane(channel, priority),
            To::HandOver(priority, ..) => self.topics.events(priority),
            To::Dlq(_) => self.topics.dlq(),
        };
        self.partition(topic.into(), &said.user)
    }

    /// Every lane partition.
    pub(crate) fn lanes(&self) -> Vec<TopicPartition> {
        let mut lanes = Vec::new();
        for channel in Channel::ALL {
            for priority in Priority::ALL.iter().filter(|priority| **priority != Priority::Critical) {
                let topic = self.topics.lane(*channel, *priority);
                let count = self.partitions.get(&topic).copied().unwrap_or(0);
                let topic: Arc<str> = topic.into();
                lanes.extend((0..count).map(|partition| TopicPartition { topic: Arc::clone(&topic), partition }));
            }
        }
        lanes
    }

    /// The lifecycle blocks of rows: one per partition, none larger than the log takes.
    pub(crate) fn blocks(&self, stage: Stage, epoch: u64, rows: &Rows) -> Vec<Append> {
        let topic = self.topics.lifecycle();
        let count = self.partitions.get(&topic).copied().unwrap_or(1);
        let topic: Arc<str> = topic.into();
        let block = |(partition, value)| Append {
            to: TopicPartition { topic: Arc::clone(&topic), partition },
            key: None,
            value: Some(value),
            headers: Vec::new(),
        };
        rows.blocks(stage, epoch, count).into_iter().map(block).collect()
    }
}

/// The writer of one generation.
pub(crate) struct Egress {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) outlets: Outlets,
    pub(crate) generation: u64,
    pub(crate) present: Present,
    pub(crate) inbox: Receiver<Say>,
    pub(crate) outbox: Sender<Spoken>,
    /// Lane partitions that were written since the last mark.
    pub(crate) written: BTreeSet<TopicPartition>,
    pub(crate) doing: Option<Doing>,
}

/// An append that is made until the log has it.
pub(crate) struct Doing {
    appends: Vec<Append>,
    what: What,
    pause: Duration,
}

/// What is reported once the log has it.
enum What {
    /// Outputs through this epoch, after which marks may be due.
    Outputs { through: Option<u64>, mark: Option<u64> },
    /// Marks in these partitions.
    Marks(Vec<TopicPartition>),
}

impl Part for Egress {
    fn step(&mut self, patience: Duration) -> Next {
        let doing = match self.doing.take() {
            Some(doing) => doing,
            None => match self.gather(patience) {
                Ok(doing) => doing,
                Err(next) => return next,
            },
        };
        let offsets = match doing.appends.is_empty() {
            true => Ok(Vec::new()),
            false => self.log.append(&doing.appends),
        };
        match offsets {
            Ok(offsets) => self.done(doing.what, offsets),
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "outputs cannot be written; nothing is lost, trying again");
                let pause = doing.pause;
                self.doing = Some(Doing { pause: (pause * 2).min(RETRY_MAX), ..doing });
                Next::Later(pause)
            }
            Err(error) => {
                let _ = self.outbox.send(Spoken::Failed(error));
                Next::Ended
            }
        }
    }
}

impl Egress {
    /// What is there to be said, as one append.
    fn gather(&mut self, patience: Duration) -> Result<Doing, Next> {
        let first = hear(&self.inbox, patience)?;
        let mut said: Vec<Say> = vec![first];
        said.extend(self.inbox.try_iter().take(EPOCHS_MAX - 1));
        let (mut appends, mut through, mut mark) = (Vec::new(), None, None);
        let mut written = std::mem::take(&mut self.written);
        for say in said {
            match say {
                Say::Epoch(output) => {
                    through = Some(output.epoch);
                    self.epoch(*output, &mut appends, &mut written);
                }
                Say::Mark(epoch) => mark = Some(epoch),
            }
        }
        self.written = written;
        Ok(Doing { appends, what: What::Outputs { through, mark }, pause: RETRY_MIN })
    }

    /// The log has it.
    fn done(&mut self, what: What, offsets: Vec<u64>) -> Next {
        let spoken = match what {
            What::Outputs { through, mark } => {
                if let Some(said_through) = mark {
                    let partitions: Vec<_> = std::mem::take(&mut self.written).into_iter().collect();
                    let mark = Mark { g: self.generation, said_through };
                    let appends = partitions.iter().map(|to| wire::mark(to.clone(), mark)).collect();
                    self.doing = Some(Doing { appends, what: What::Marks(partitions), pause: RETRY_MIN });
                }
                through.map(Spoken::Through)
            }
            What::Marks(partitions) => {
                let at = |(to, offset): (TopicPartition, u64)| MarkAt {
                    topic: to.topic.to_string(),
                    partition: to.partition,
                    offset,
                };
                Some(Spoken::Marked(partitions.into_iter().zip(offsets).map(at).collect()))
            }
        };
        let heard = spoken.is_none_or(|spoken| self.outbox.send(spoken).is_ok());
        if heard { Next::Again } else { Next::Ended }
    }

    fn epoch(&mut self, output: EpochOutput, appends: &mut Vec<Append>, written: &mut BTreeSet<TopicPartition>) {
        let EpochOutput { epoch, said, rows, .. } = output;
        // What the records share is made once: names of topics, two headers, one buffer of keys and ordinals.
        let (generation, number) = (Bytes::from(self.generation.to_string()), Bytes::from(epoch.to_string()));
        let mut texts = Vec::new();
        let of_record = |said: &Said| {
            let start = texts.len();
            texts.extend_from_slice(said.user.as_bytes());
            let ordinal = texts.len();
            put_hex(&mut texts, said.ordinal.bytes());
            (start..ordinal, ordinal..texts.len())
        };
        let places: Vec<_> = said.iter().map(of_record).collect();
        let texts = Bytes::from(texts);
        let mut topics: BTreeMap<(Channel, Priority), Arc<str>> = BTreeMap::new();
        let mut lanes = BTreeSet::new();
        for (said, (key, ordinal)) in said.into_iter().zip(places) {
            let to = match said.to {
                To::Lane(channel, priority) => {
                    if !self.present.is_empty() && self.present.contains(&(epoch, said.ordinal.bytes().to_vec())) {
                        continue;
                    }
                    let topic = topics.entry((channel, priority));
                    let topic = topic.or_insert_with(|| self.outlets.topics.lane(channel, priority).into());
                    let to = self.outlets.partition(Arc::clone(topic), &said.user);
                    lanes.insert((channel, priority, to.partition));
                    to
                }
                To::HandOver(..) | To::Dlq(_) => self.outlets.place(&said),
            };
            let mut headers: Headers = vec![
                (HEADER_GENERATION.to_owned(), generation.clone()),
                (HEADER_EPOCH.to_owned(), number.clone()),
                (HEADER_ORDINAL.to_owned(), texts.slice(ordinal)),
            ];
            if let To::HandOver(_, event, accepted) = said.to {
                headers.extend(handed_over(event, accepted));
            }
            let key = (!said.user.is_empty()).then(|| texts.slice(key));
            appends.push(Append { to, key, value: Some(said.value), headers });
        }
        let lane = |(channel, priority, partition)| {
            topics.get(&(channel, priority)).map(|topic| TopicPartition { topic: Arc::clone(topic), partition })
        };
        written.extend(lanes.into_iter().filter_map(lane));
        let count = rows.len() as u64;
        appends.extend(self.outlets.blocks(Stage::Decide, epoch, &rows));
        // The epoch's record is complete with this one, in whatever order partitions are read.
        let to = TopicPartition { topic: self.outlets.topics.lifecycle().into(), partition: 0 };
        appends.push(Append { to, key: None, value: Some(Block::closed(epoch, count).into()), headers: Vec::new() });
    }
}

/// Recovery's step 6: which records of epochs after `said_through` stand in the lanes already, from
/// the newest marks on. An epoch beyond `last` means that the cut log lost its end.
pub(crate) fn present(
    log: &dyn Log,
    outlets: &Outlets,
    marks: &BTreeMap<(String, u32), u64>,
    said_through: u64,
    last: u64,
) -> Result<Present, PresentError> {
    let mut present = Present::new();
    // All readers are opened before the first is asked: each waits for a broker's answer that is under way, and
    // so they wait for the same one.
    let mut opened = Vec::new();
    for partition in outlets.lanes() {
        let range = log.range(&partition)?;
        let marked = marks.get(&(partition.topic.to_string(), partition.partition)).copied();
        if let Some(marked) = marked.filter(|marked| *marked >= range.end) {
            // What it held is lost to deliver, whoever decides; what is not said yet is said again below.
            tracing::error!(
                lane = %partition, end = range.end, mark = marked,
                "the lane ends before a mark that stood in it: its topic was recreated, and what deliver had not \
                 settled is gone with it"
            );
        }
        // The mark itself says nothing more.
        let position = marked.map_or(0, |marked| marked + 1).max(range.start);
        if position < range.end {
            let reader = log.reader(&partition, position)?;
            opened.push((partition, reader, position, range.end));
        }
    }
    for (partition, mut reader, mut position, end) in opened {
        while position < end {
            let batch = reader.poll(4_096, Duration::from_millis(500))?;
            for record in &batch.records {
                let text = |name| record.header(name).and_then(|value| std::str::from_utf8(value).ok());
                let epoch = text(HEADER_EPOCH).and_then(|epoch| epoch.parse::<u64>().ok());
                let Some((epoch, ordinal)) = epoch.zip(text(HEADER_ORDINAL)) else { continue };
                if epoch > last {
                    return Err(PresentError::Beyond { partition, offset: record.offset, epoch, last });
                }
                if epoch > said_through {
                    present.insert((epoch, bytes_of(ordinal)));
                }
            }
            position = batch.position;
        }
    }
    Ok(present)
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
    hex.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// Why the lanes cannot be compared with the cut log.
#[derive(Debug, thiserror::Error)]
pub enum PresentError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A lane speaks of an epoch that the cut log does not have.
    #[error(
        "{partition} at offset {offset} speaks of epoch {epoch}, but the cut log ends with epoch {last}: \
         the cut log was truncated; restore it"
    )]
    Beyond {
        /// The lane.
        partition: TopicPartition,
        /// Where.
        offset: u64,
        /// What it speaks of.
        epoch: u64,
        /// Where the cut log ends.
        last: u64,
    },
}
