//! JSON lines from a file or from standard input into a topic, for development:
//! `sources: { medium: { file: events.jsonl } }`.
//!
//! Each line becomes one record, as it is: what is wrong with it, `validate` says. The record's key and
//! partition come from the line's `user_id`, so one user's order holds; a line without one goes
//! to partition 0. Blank lines are passed over.
//!
//! # Protocol
//! 1. A *batch* of lines is read, and appended in one call. Each record says in its headers where in
//!    the file it stands (`file`, `line`, `bytes`) and where its batch began (`batch`).
//! 2. Only when it was acknowledged is the next batch read.
//!
//! # If it dies at step n
//! The records themselves remember how far the file was fed, so that there is no second write that
//! could be lost. Whoever starts reads the topic: all batches before the newest one are whole, and of
//! the newest each partition has the lines up to the last one there, since an append keeps order within
//! a partition. It goes on at the newest batch's beginning and passes over what is there. An
//! append whose outcome is unknown is looked up in the same way before it is repeated.
//!
//! # Not promised
//! The memory is as long as the topic's: a file fed before the topic's retention is fed again. Standard
//! input cannot be read twice: lines that a dead process had read and not appended are gone. An
//! append that lands after it was looked up, and repeated, is there twice.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tidings_schemas::event::RECORD_BYTES_MAX;
use tidings_schemas::ids::lane_partition;
use tidings_sinks::log::{Append, Log, LogError, Record, TopicPartition};

/// The header with the file's name.
pub const FILE: &str = "file";
/// The header with the line's number, counted from 1.
pub const LINE: &str = "line";
/// The header with the line's place in the file: first byte and the byte behind its end, `120-240`.
pub const BYTES: &str = "bytes";
/// The header with the first byte and line of the batch, `120/4`.
pub const BATCH: &str = "batch";

/// Most lines of a batch: enough that a sync to the disk costs little per line, few enough that a
/// repeat after a crash is short.
const BATCH_LINES_MAX: usize = 500;
/// Bytes after which a batch is full, so that memory stays bounded whatever the lines.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes that are kept of a line: one more than an event may have, so that `validate` rejects it
/// for its size; the rest of the line is passed over.
const LINE_BYTES_MAX: usize = RECORD_BYTES_MAX + 1;
/// How long a look at the topic waits for one answer.
const LOOK_WAIT: Duration = Duration::from_secs(10);
/// Records of one answer.
const LOOK_RECORDS_MAX: usize = 1_000;

/// Why a file was not fed.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The log did not take it.
    #[error("cannot feed `{name}` into topic `{topic}`")]
    Log {
        /// The file.
        name: String,
        /// The topic.
        topic: String,
        /// Why.
        source: LogError,
    },
    /// The file cannot be read.
    #[error("cannot read `{name}`")]
    Read {
        /// The file.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The file is not the one that was fed before.
    #[error("`{name}` was fed up to byte {fed} and changed since: {how}; give the new content a name of its own")]
    Changed {
        /// The file.
        name: String,
        /// How far it was fed.
        fed: u64,
        /// What was expected and what was found.
        how: String,
    },
}

impl FeedError {
    /// Whether the same call may succeed later without anyone doing anything.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Log { source, .. } if source.is_transient())
    }
}

/// What a feeder did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines appended.
    pub appended: u64,
    /// Lines that were there already.
    pub passed: u64,
    /// Blank lines.
    pub blank: u64,
    /// Appended lines without a readable `user_id`; `validate` will reject them.
    pub unaddressed: u64,
}

/// A line and its place.
struct Line {
    text: Bytes,
    from: u64,
    /// Behind its newline.
    to: u64,
    number: u64,
}

enum Input {
    File(BufReader<File>),
    Stream(Box<dyn BufRead + Send>),
}

/// Feeds one file, or standard input, into one topic.
pub struct FileFeeder {
    log: Arc<dyn Log>,
    topic: Arc<str>,
    partitions: u32,
    name: String,
    input: Input,
    /// The next byte.
    position: u64,
    /// The first byte of the unfinished line, and what there is of it.
    line_from: u64,
    partial: Vec<u8>,
    /// The number of the last line.
    line: u64,
    /// What of the newest batches is in the topic: the byte behind the last line of each partition.
    fed: BTreeMap<u32, u64>,
    /// A batch that was read and not acknowledged.
    batch: Vec<Line>,
    /// Whether the outcome of the last append is unknown.
    unsure: bool,
    counts: Counts,
}

/// What the topic says about a file.
#[derive(Default)]
struct Memory {
    fed: BTreeMap<u32, u64>,
    /// The newest batch's first byte, and the number of the line before.
    batch: (u64, u64),
    /// The line that ends last.
    last: Option<(u64, u64, Bytes)>,
}

impl FileFeeder {
    /// A feeder that goes on where an earlier one for the same path stopped.
    ///
    /// # Errors
    /// When the file cannot be read or is not the one that was fed, or the topic cannot be read.
    pub fn open(log: Arc<dyn Log>, topic: &str, path: &Path) -> Result<Self, FeedError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| FeedError::Read { name: name.clone(), source })?;
        let mut feeder = Self::new(log, topic, name, Input::File(BufReader::new(file)))?;
        let memory = feeder.look()?;
        feeder.check(&memory)?;
        feeder.seek(memory.batch.0)?;
        (feeder.position, feeder.line_from) = (memory.batch.0, memory.batch.0);
        (feeder.line, feeder.fed) = (memory.batch.1, memory.fed);
        Ok(feeder)
    }

    /// A feeder for a stream that cannot be read twice, as standard input. `name` must be another one
    /// in each run, since it tells this run's records from those of others.
    ///
    /// # Errors
    /// When the topic is missing or the log cannot be reached.
    pub fn of_stream(
        log: Arc<dyn Log>,
        topic: &str,
        name: &str,
        stream: Box<dyn BufRead + Send>,
    ) -> Result<Self, FeedError> {
        Self::new(log, topic, name.to_owned(), Input::Stream(stream))
    }

    fn new(log: Arc<dyn Log>, topic: &str, name: String, input: Input) -> Result<Self, FeedError> {
        let failed = |source| FeedError::Log { name: name.clone(), topic: topic.to_owned(), source };
        let found = log.describe(&[topic.to_owned()]).map_err(failed)?;
        let spec = found.first().ok_or_else(|| failed(LogError::MissingTopic(topic.to_owned())))?;
        let (partitions, topic, counts) = (spec.partitions, topic.into(), Counts::default());
        let (fed, batch, partial) = (BTreeMap::new(), Vec::new(), Vec::new());
        Ok(Self {
            log,
            topic,
            partitions,
            name,
            input,
            position: 0,
            line_from: 0,
            line: 0,
            partial,
            fed,
            batch,
            unsure: false,
            counts,
        })
    }

    /// What was done so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Feeds up to the end. There `wait` is asked, which returns whether to look for more (having
    /// waited a while) or to finish; an unfinished last line counts only when it finishes. After a
    /// transient error it may be called again and goes on.
    ///
    /// # Errors
    /// When the log does not take a batch, or the file cannot be read or has become shorter.
    pub fn run(&mut self, mut wait: impl FnMut() -> bool) -> Result<Counts, FeedError> {
        let mut finish = false;
        loop {
            self.append()?;
            if self.read(finish)? > 0 {
                continue;
            }
            if finish {
                return Ok(self.counts);
            }
            finish = !wait();
            self.grown()?;
        }
    }

    /// Step 2, for the batch at hand.
    fn append(&mut self) -> Result<(), FeedError> {
        let Some(first) = self.batch.first() else { return Ok(()) };
        let batch = format!("{}/{}", first.from, first.number);
        if self.unsure {
            self.fed = self.look()?.fed;
            self.unsure = false;
        }
        let mut records = Vec::with_capacity(self.batch.len());
        let (mut fed, mut counts) = (self.fed.clone(), self.counts);
        for line in &self.batch {
            let user = user_of(&line.text);
            let partition = user.as_deref().map_or(0, |user| lane_partition(user, self.partitions));
            let fed = fed.entry(partition).or_default();
            if line.to <= *fed {
                counts.passed += 1;
                continue;
            }
            *fed = line.to;
            counts.appended += 1;
            counts.unaddressed += u64::from(user.is_none());
            records.push(Append {
                to: TopicPartition { topic: Arc::clone(&self.topic), partition },
                key: user.map(|user| Bytes::copy_from_slice(user.as_bytes())),
                value: Some(line.text.clone()),
                headers: vec![
                    (FILE.to_owned(), Bytes::copy_from_slice(self.name.as_bytes())),
                    (LINE.to_owned(), line.number.to_string().into()),
                    (BYTES.to_owned(), format!("{}-{}", line.from, line.to).into()),
                    (BATCH.to_owned(), batch.clone().into()),
                ],
            });
        }
        if let Err(source) = self.log.append(&records) {
            self.unsure = true;
            return Err(self.failed(source));
        }
        (self.fed, self.counts) = (fed, counts);
        self.batch.clear();
        Ok(())
    }

    /// Step 1: the next batch; how many lines it has. The last line may lack its newline where
    /// `to_end`.
    fn read(&mut self, to_end: bool) -> Result<usize, FeedError> {
        let mut bytes = 0;
        while self.batch.len() < BATCH_LINES_MAX && bytes < BATCH_BYTES_MAX {
            let reader: &mut dyn BufRead = match &mut self.input {
                Input::File(file) => file,
                Input::Stream(stream) => stream,
            };
            let (length, whole) = read_line(reader, &mut self.partial).map_err(|source| self.unread(source))?;
            self.position += length;
            let ended = whole || (to_end && self.position > self.line_from);
            if !ended {
                break;
            }
            let from = std::mem::replace(&mut self.line_from, self.position);
            self.line += 1;
            let mut text = std::mem::take(&mut self.partial);
            text.truncate(text.trim_ascii_end().len());
            if text.is_empty() {
                self.counts.blank += 1;
                continue;
            }
            bytes += text.len();
            self.batch.push(Line { text: text.into(), from, to: self.position, number: self.line });
        }
        Ok(self.batch.len())
    }

    /// What the topic remembers of this file.
    fn look(&self) -> Result<Memory, FeedError> {
        let mut memory = Memory::default();
        for partition in 0..self.partitions {
            let of = TopicPartition { topic: Arc::clone(&self.topic), partition };
            let range = self.log.range(&of).map_err(|source| self.failed(source))?;
            let mut reader = self.log.reader(&of, range.start).map_err(|source| self.failed(source))?;
            let mut position = range.start;
            while position < range.end {
                let batch = reader.poll(LOOK_RECORDS_MAX, LOOK_WAIT).map_err(|source| self.failed(source))?;
                position = batch.position;
                for record in &batch.records {
                    memory.note(&self.name, partition, record);
                }
            }
        }
        Ok(memory)
    }

    /// The last line that was fed must stand where it stood.
    fn check(&mut self, memory: &Memory) -> Result<(), FeedError> {
        let Some((from, to, text)) = &memory.last else { return Ok(()) };
        self.seek(*from)?;
        let Input::File(file) = &mut self.input else { return Ok(()) };
        let (mut found, length) = (Vec::new(), to.saturating_sub(*from));
        let read = file.take(length).read_to_end(&mut found);
        let read = read.map_err(|source| self.unread(source))?;
        let changed = |how: String| FeedError::Changed { name: self.name.clone(), fed: *to, how };
        if (read as u64) < length {
            return Err(changed(format!("it ends at byte {}", from + read as u64)));
        }
        found.truncate(LINE_BYTES_MAX);
        if found.trim_ascii_end() != text {
            return Err(changed(format!("bytes {from} to {to} are not the line that was fed")));
        }
        Ok(())
    }

    fn seek(&mut self, to: u64) -> Result<(), FeedError> {
        match &mut self.input {
            Input::File(file) => file.seek(SeekFrom::Start(to)).map(drop).map_err(|source| self.unread(source)),
            Input::Stream(_) => Ok(()),
        }
    }

    /// A file that is followed only grows.
    fn grown(&self) -> Result<(), FeedError> {
        let Input::File(file) = &self.input else { return Ok(()) };
        let length = file.get_ref().metadata().map_err(|source| self.unread(source))?.len();
        if length < self.position {
            let (name, fed) = (self.name.clone(), self.position);
            return Err(FeedError::Changed { name, fed, how: format!("it has {length} bytes now") });
        }
        Ok(())
    }

    fn failed(&self, source: LogError) -> FeedError {
        FeedError::Log { name: self.name.clone(), topic: self.topic.to_string(), source }
    }

    fn unread(&self, source: io::Error) -> FeedError {
        FeedError::Read { name: self.name.clone(), source }
    }
}

impl Memory {
    fn note(&mut self, name: &str, partition: u32, record: &Record) {
        let text = |header| record.header(header).and_then(|value| std::str::from_utf8(value).ok());
        let numbers = |header, between| {
            let (first, second) = text(header)?.split_once(between)?;
            Some((first.parse::<u64>().ok()?, second.parse::<u64>().ok()?))
        };
        if text(FILE) != Some(name) {
            return;
        }
        // A record with the file's name and other headers is not ours.
        let (Some((from, to)), Some(batch)) = (numbers(BYTES, '-'), numbers(BATCH, '/')) else { return };
        let fed = self.fed.entry(partition).or_default();
        *fed = to.max(*fed);
        self.batch = self.batch.max((batch.0, batch.1.saturating_sub(1)));
        if self.last.as_ref().is_none_or(|(_, last, _)| *last < to) {
            self.last = Some((from, to, record.value.clone().unwrap_or_default()));
        }
    }
}

/// Reads on to the next newline or to the end, into `line`; how many bytes, and whether the
/// newline came. Of a line that is too long the beginning is kept.
fn read_line(reader: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<(u64, bool)> {
    let mut length = 0;
    loop {
        let bytes = match reader.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if bytes.is_empty() {
            return Ok((length, false));
        }
        let newline = bytes.iter().position(|byte| *byte == b'\n');
        let taken = newline.map_or(bytes.len(), |index| index + 1);
        let room = LINE_BYTES_MAX.saturating_sub(line.len());
        line.extend_from_slice(&bytes[..taken.min(room)]);
        reader.consume(taken);
        length += taken as u64;
        if newline.is_some() {
            return Ok((length, true));
        }
    }
}

/// Whose line it is, without reading the rest of it: `user_id`, or the `subject` of a CloudEvent.
fn user_of(line: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Addressed<'a> {
        #[serde(borrow, default)]
        user_id: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        subject: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        specversion: Option<Cow<'a, str>>,
    }
    let line: Addressed<'_> = serde_json::from_slice(line).ok()?;
    let cloud_event = line.specversion.and(line.subject);
    line.user_id.or(cloud_event).filter(|user| !user.is_empty()).map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tidings_schemas::time::Instant;
    use tidings_sinks::log::memory::{CrashPoint, MemoryLog};
    use tidings_sinks::log::{Retention, TopicSpec};

    use super::*;

    const TOPIC: &str = "notifications.events.medium";

    fn log() -> MemoryLog {
        let log = MemoryLog::new(Arc::new(|| Instant(0))).unwrap();
        log.create(&[TopicSpec::one_copy(TOPIC, 4, Retention::Forever)]).unwrap();
        log
    }

    fn open(log: &MemoryLog, path: &Path) -> FileFeeder {
        FileFeeder::open(Arc::new(log.clone()), TOPIC, path).unwrap()
    }

    fn run(log: &MemoryLog, path: &Path) -> Counts {
        open(log, path).run(|| false).unwrap()
    }

    fn records(log: &MemoryLog) -> Vec<(u32, Record)> {
        let mut all = Vec::new();
        for partition in 0..4 {
            let mut reader = log.reader(&TopicPartition { topic: TOPIC.into(), partition }, 0).unwrap();
            let batch = reader.poll(100_000, Duration::ZERO).unwrap();
            assert!(batch.at_end);
            all.extend(batch.records.into_iter().map(|record| (partition, record)));
        }
        all
    }

    /// Numbers of the lines that are there, sorted: a repeat shows.
    fn lines(log: &MemoryLog) -> Vec<u64> {
        let number = |record: &Record| String::from_utf8_lossy(record.header(LINE).unwrap()).parse().unwrap();
        let mut lines: Vec<u64> = records(log).iter().map(|(_, record)| number(record)).collect();
        lines.sort_unstable();
        lines
    }

    fn events(count: u64) -> String {
        let of = |index: u64| format!("{{\"user_id\":\"u{}\",\"type\":\"like\",\"id\":\"e{index}\"}}\n", index % 7);
        (1..=count).map(of).collect()
    }

    fn file(content: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file
    }

    #[test]
    fn lines_become_records_as_they_are() {
        let log = log();
        let content =
            "{\"user_id\":\"u1\",\"type\":\"like\"}\r\n\n{broken\n{\"specversion\":\"1.0\",\"subject\":\"u2\"}";
        let file = file(content);
        let counts = run(&log, file.path());
        assert_eq!(counts, Counts { appended: 3, passed: 0, blank: 1, unaddressed: 1 });
        let name = file.path().display().to_string();
        let mut seen: Vec<_> = records(&log)
            .into_iter()
            .map(|(partition, record)| {
                let text = |bytes: Option<&Bytes>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
                assert_eq!(text(record.header(FILE)), name);
                let key = record.key.as_ref().map_or("-".to_owned(), |key| text(Some(key)));
                let headers = [LINE, BYTES, BATCH].map(|header| text(record.header(header))).join(" ");
                format!("{headers} {key} {partition} {}", text(record.value.as_ref()))
            })
            .collect();
        seen.sort();
        let [one, two] = ["u1", "u2"].map(|user| lane_partition(user, 4));
        let expected = [
            format!("1 0-32 0/1 u1 {one} {{\"user_id\":\"u1\",\"type\":\"like\"}}"),
            "3 33-41 0/1 - 0 {broken".to_owned(),
            format!("4 41-77 41/4 u2 {two} {{\"specversion\":\"1.0\",\"subject\":\"u2\"}}"),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_file_is_fed_once_across_restarts_and_grows() {
        let log = log();
        let mut file = file(&events(1_200));
        assert_eq!(run(&log, file.path()).appended, 1_200);
        let again = run(&log, file.path());
        assert_eq!((again.appended, again.passed), (0, 200), "only the newest batch is looked at again");
        file.write_all(events(3).as_bytes()).unwrap();
        assert_eq!(run(&log, file.path()).appended, 3);
        assert_eq!(lines(&log), (1..=1_203).collect::<Vec<_>>());
    }

    #[test]
    fn every_crash_leaves_each_line_once() {
        for at in 1..=3 {
            for point in [CrashPoint::Before, CrashPoint::Torn(0), CrashPoint::Torn(77), CrashPoint::LostAck] {
                for restart in [false, true] {
                    let (log, file) = (log(), file(&events(1_200)));
                    log.fail_at(point, at);
                    let mut feeder = open(&log, file.path());
                    let error = feeder.run(|| false).unwrap_err();
                    assert!(error.is_transient(), "{error}");
                    if restart {
                        feeder = open(&log, file.path());
                    }
                    feeder.run(|| false).unwrap();
                    assert_eq!(lines(&log), (1..=1_200).collect::<Vec<_>>(), "{point:?} at {at}, restart: {restart}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_followed_waits_for_whole_lines() {
        let (log, mut file) = (log(), file("{\"user_id\":\"u1\"}\n{\"user_id\""));
        let mut feeder = open(&log, file.path());
        let mut seen = Vec::new();
        let counts = feeder
            .run(|| {
                seen.push(lines(&log));
                match seen.len() {
                    1 => file.write_all(b":\"u2\"}").unwrap(),
                    2 => file.write_all(b"\n{\"user_id\":\"u3\"}").unwrap(),
                    3 => {}
                    _ => return false,
                }
                true
            })
            .unwrap();
        assert_eq!(seen, [vec![1], vec![1], vec![1, 2], vec![1, 2]]);
        assert_eq!((counts.appended, lines(&log)), (3, vec![1, 2, 3]));
        let values: Vec<_> = records(&log).into_iter().filter_map(|(_, record)| record.value).collect();
        assert!(values.contains(&Bytes::from_static(b"{\"user_id\":\"u2\"}")), "{values:?}");
    }

    #[test]
    fn a_file_that_changed_is_not_guessed_at() {
        let log = log();
        let mut fed = file(&events(3));
        run(&log, fed.path());
        let name = fed.path().display().to_string();
        let length = events(3).len();
        let said = |log: &MemoryLog, path: &Path| {
            FileFeeder::open(Arc::new(log.clone()), TOPIC, path).err().unwrap().to_string().replace(&name, "F")
        };
        let last = length - events(3).lines().last().unwrap().len() - 1;
        fed.as_file().set_len(last as u64 + 4).unwrap();
        let remedy = "give the new content a name of its own";
        assert_eq!(
            said(&log, fed.path()),
            format!("`F` was fed up to byte {length} and changed since: it ends at byte {}; {remedy}", last + 4)
        );
        fed.as_file().set_len(0).unwrap();
        fed.seek(SeekFrom::Start(0)).unwrap();
        fed.write_all(events(3).replace('e', "E").as_bytes()).unwrap();
        let how = format!("bytes {last} to {length} are not the line that was fed");
        assert_eq!(
            said(&log, fed.path()),
            format!("`F` was fed up to byte {length} and changed since: {how}; {remedy}")
        );
    }

    #[test]
    fn a_stream_goes_on_after_an_append_of_unknown_outcome() {
        let log = log();
        log.fail_at(CrashPoint::Torn(5), 1);
        let stream = Box::new(io::Cursor::new(events(20)));
        let mut feeder = FileFeeder::of_stream(Arc::new(log.clone()), TOPIC, "stdin of run 1", stream).unwrap();
        assert!(feeder.run(|| false).unwrap_err().is_transient());
        let counts = feeder.run(|| false).unwrap();
        assert_eq!((counts.appended, counts.passed), (15, 5));
        assert_eq!(lines(&log), (1..=20).collect::<Vec<_>>());
    }

    #[test]
    fn a_line_too_long_keeps_its_beginning_for_validate_to_reject() {
        let (log, file) = (log(), file(&format!("{}\n{}", "x".repeat(RECORD_BYTES_MAX * 2), events(1))));
        assert_eq!(run(&log, file.path()).appended, 2);
        assert_eq!(run(&log, file.path()).passed, 2);
        let longest = records(&log).iter().map(|(_, record)| record.value.as_ref().unwrap().len()).max();
        assert_eq!(longest, Some(RECORD_BYTES_MAX + 1));
    }
}
