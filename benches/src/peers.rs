//! The same keyed job on tidings and on Flink: each event once by its id, then who did what to one object within five
//! minutes, said as one. Both read the same files, or the same Kafka topic; both take checkpoints every few seconds;
//! their answers are compared before a time counts.
//!
//! From files, time is what the events say, so that every window closes and the answers are the same, group by group. A run
//! is timed from its first event to its last answer in a file.
//!
//! From Kafka, time is the machine's, as it is in tidings' production, and the run is shorter than a window: what is
//! compared is how many events were known already and how many were gathered. It is timed until all that was read is
//! durable in tidings, and until the last event is processed in Flink.
//!
//! What is not the same: tidings also validates every event, keeps what a template needs of it, and writes a row of the
//! record for each; Flink's job reads only what it needs and writes only its answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path as Folder, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use serde::Deserialize;
use tidings_operators::harness::dataflow::Cut;
use tidings_operators::harness::feed::{Feed, Lot, RawRecord};
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_schemas::ids::lane_partition;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::time::Instant;

use crate::decide::{self, Input};
use crate::setup::Setup;
use crate::workload::{Dice, HEAD, NAMES, REPEATS_WITHIN, Workload, name_of};

/// The topology of the job.
const TOPOLOGY: &str = include_str!("../peers/topology.yaml");

/// Files, and partitions of the topic: one for each of two cores. A subtask of Flink reads one file after the other, and
/// time within it must not step back.
pub const PARTITIONS: u32 = 2;

/// Stream time of the events in the files.
const SPAN: Duration = Duration::from_secs(3600);

/// After it every window is closed.
const WINDOW: Duration = Duration::from_secs(300);

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Events, repeats included.
    pub events: u64,
    /// Users: at least twice [`HEAD`].
    pub users: u64,
    /// Events that have the same time, which is an epoch of tidings.
    pub per_epoch: u64,
}

impl Size {
    /// What a record is made of.
    pub const FULL: Self = Self { events: 2_000_000, users: 262_144, per_epoch: 20_000 };
    /// What a test runs, and `--quick`.
    pub const QUICK: Self = Self { events: 20_000, users: 2 * HEAD, per_epoch: 1_000 };
}

/// The topology of the job, as tidings runs it.
///
/// # Errors
/// When it is refused.
pub fn setup() -> Result<Setup> {
    Setup::of("benches/peers/topology.yaml", TOPOLOGY)
}

/// The events, in files and in memory, and how tidings cuts them.
pub struct Made {
    /// One file for each partition, one event a line.
    pub files: PathBuf,
    /// The same as a log's records.
    pub workload: Workload,
}

/// Makes the events, and writes them into `folder`.
///
/// # Errors
/// When the folder cannot be written.
pub fn make(setup: &Setup, size: Size, folder: &Folder) -> Result<Made> {
    let (source, start) = (setup.source("events")?, "2026-06-01T19:30:00Z".parse::<Instant>()?);
    let files = folder.join("events");
    fs::create_dir(&files)?;
    let mut writers = (0..PARTITIONS)
        .map(|partition| Ok(BufWriter::new(File::create(files.join(format!("{partition}.jsonl")))?)))
        .collect::<Result<Vec<_>>>()?;
    let mut records: BTreeMap<Lot, Vec<RawRecord>> =
        (0..PARTITIONS).map(|partition| (Lot { source, partition }, Vec::new())).collect();
    for side in ["profiles", "addresses"] {
        records.insert(Lot { source: setup.source(side)?, partition: 0 }, Vec::new());
    }
    let ends = |records: &BTreeMap<Lot, Vec<RawRecord>>| -> BTreeMap<Lot, u64> {
        records.iter().map(|(lot, records)| (*lot, records.len() as u64)).collect()
    };
    let mut cuts = Vec::new();
    let mut cut = |now, ends| {
        let epoch = cuts.len() as u64 + 1;
        let rules = Arc::clone(&setup.rules);
        cuts.push(Arc::new(Cut { epoch, now, rules, ends, skips: Arc::default(), crumbs: None }));
    };
    cut(start, ends(&records));

    let mut dice = Dice(76);
    let mut recent: VecDeque<(u64, String)> = VecDeque::new();
    let step = SPAN / u32::try_from(size.events.div_ceil(size.per_epoch).max(1))?;
    let (mut now, mut event_bytes, mut named) = (start, 0, BTreeSet::new());
    for number in 0..size.events {
        let epoch = u32::try_from(number / size.per_epoch)?;
        if number % size.per_epoch == 0 && number > 0 {
            cut(now, ends(&records));
        }
        now = start.after(step * (epoch + 1));
        let repeat = dice.roll(100) < 5 && !recent.is_empty();
        let (user, before_time) = if repeat {
            recent[usize::try_from(dice.roll(recent.len() as u64))?].clone()
        } else {
            let made = event(&mut dice, number, size.users);
            if recent.len() == REPEATS_WITHIN {
                recent.pop_front();
            }
            recent.push_back(made.clone());
            made
        };
        named.insert(user);
        let user = name_of(user);
        let partition = lane_partition(&user, PARTITIONS);
        let value = Bytes::from(format!(r#"{before_time},"time":"{now}"}}"#));
        let writer = writers.get_mut(partition as usize).context("a partition has a file")?;
        writer.write_all(&value)?;
        writer.write_all(b"\n")?;
        event_bytes += value.len() as u64;
        let records = records.entry(Lot { source, partition }).or_default();
        let offset = records.len() as u64;
        records.push(RawRecord {
            offset,
            key: Some(user.into()),
            value: Some(value),
            headers: Vec::new(),
            timestamp: now,
        });
    }
    cut(now, ends(&records));
    cut(now.after(2 * WINDOW), ends(&records));
    writers.iter_mut().try_for_each(Write::flush)?;
    let records = records.into_iter().map(|(lot, records)| (lot, records.into())).collect();
    let named = named.len() as u64;
    Ok(Made { files, workload: Workload { records, cuts, events: size.events, event_bytes, named } })
}

/// An event up to its time, and its user.
fn event(dice: &mut Dice, number: u64, users: u64) -> (u64, String) {
    let user = dice.user(users);
    let (object, actor) = (user * 4 + dice.roll(4), dice.roll(users));
    let name = NAMES[usize::try_from(actor % 8).unwrap_or(0)];
    let event_type = if dice.roll(5) == 0 { "comment_reply" } else { "like" };
    let text = format!(
        r#"{{"id":"e{number:010}","type":"{event_type}","user_id":"{}","actor":{{"id":"u{actor:07}","name":"{name}"}},"object":{{"id":"o{object:08}","kind":"photo"}},"data":{{"url":"https://example.com/o/{object:08}","image":"https://cdn.example.com/{object:08}/t.jpg"}}"#,
        name_of(user)
    );
    (user, text)
}

/// Reads a file's lines as the records of a partition.
struct Lines {
    file: BufReader<File>,
    offset: u64,
}

impl Feed for Lines {
    fn poll(&mut self, records_max: usize, out: &mut Vec<RawRecord>) -> Result<u64, String> {
        for _ in 0..records_max {
            let mut line = Vec::new();
            if self.file.read_until(b'\n', &mut line).map_err(|error| error.to_string())? == 0 {
                break;
            }
            line.pop();
            let (value, timestamp) = (Some(line.into()), Instant::default());
            out.push(RawRecord { offset: self.offset, key: None, value, headers: Vec::new(), timestamp });
            self.offset += 1;
        }
        Ok(self.offset)
    }
}

/// A partition without records.
struct Empty;

impl Feed for Empty {
    fn poll(&mut self, _: usize, _: &mut Vec<RawRecord>) -> Result<u64, String> {
        Ok(0)
    }
}

/// What was said of each group, in order: user, type, object, activities, actors.
pub type Answers = Vec<(String, String, String, u64, u64)>;

/// tidings from the files, on this many workers; its own folder takes checkpoints and answers.
///
/// # Errors
/// When the engine fails.
pub fn tidings_from_files(setup: &Setup, made: &Made, workers: usize, folder: &Folder) -> Result<(Duration, Answers)> {
    let answers = folder.join("answers");
    let mut feeds: Vec<(Lot, Box<dyn Feed>)> = Vec::new();
    let events = setup.source("events")?;
    for lot in made.workload.records.keys() {
        let feed: Box<dyn Feed> = if lot.source == events {
            let file = File::open(made.files.join(format!("{}.jsonl", lot.partition)))?;
            Box::new(Lines { file: BufReader::with_capacity(1 << 20, file), offset: 0 })
        } else {
            Box::new(Empty)
        };
        feeds.push((*lot, feed));
    }
    let input = Input { cuts: &made.workload.cuts, feeds, answers: Some(File::create(&answers)?) };
    let clock = SystemClock::default();
    decide::run_over(setup, input, workers, Some(&folder.join("checkpoints")))?;
    let elapsed = clock.elapsed();

    let mut said = Vec::new();
    for line in BufReader::new(File::open(&answers)?).lines() {
        let record: LaneRecord = serde_json::from_str(&line?)?;
        let object = record.object.context("an event of this job has an object")?.id;
        said.push((record.user, record.event_type, object.to_string(), record.activities, record.actors_count));
    }
    said.sort();
    Ok((elapsed, said))
}

/// Where Flink keeps its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// On Java's heap.
    Hashmap,
    /// In RocksDB, with incremental checkpoints.
    Rocksdb,
}

impl State {
    /// As Flink names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hashmap => "hashmap",
            Self::Rocksdb => "rocksdb",
        }
    }
}

/// What Flink reads.
pub enum From<'a> {
    /// The folder of files.
    Files(&'a Folder),
    /// Brokers and topic.
    Kafka(&'a str, &'a str),
}

/// What Flink says of a run.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Report {
    nanos: u64,
    /// Events that were known already.
    pub repeats: u64,
    /// Events that came into a window.
    pub gathered: u64,
}

/// A Java machine that runs the job again and again, so that later runs find warm code.
pub struct Flink {
    child: Child,
    requests: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Flink {
    /// Starts it from what Maven built.
    ///
    /// # Errors
    /// When there is no Java.
    pub fn start(built: &Folder) -> Result<Self> {
        let classes = format!("{}:{}", built.join("peers-flink-1.jar").display(), built.join("dependency/*").display());
        let mut command = Command::new("java");
        command.args(["-Xms4g", "-Xmx4g", "--add-opens=java.base/java.util=ALL-UNNAMED"]);
        command.args(["--add-opens=java.base/java.lang=ALL-UNNAMED", "-cp", &classes, "tidings.peers.Main"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start java")?;
        let requests = child.stdin.take().context("a child has an input")?;
        let reports = BufReader::new(child.stdout.take().context("a child has an output")?);
        Ok(Self { child, requests, reports })
    }

    /// Runs the job once; `folder` takes checkpoints and answers.
    ///
    /// # Errors
    /// When the job fails: Flink's own words are on standard error.
    pub fn run(
        &mut self,
        state: State,
        from: &From<'_>,
        folder: &Folder,
        parallelism: usize,
    ) -> Result<(Duration, Report)> {
        let from = match from {
            From::Files(files) => format!("file {}", files.display()),
            From::Kafka(brokers, topic) => format!("kafka {brokers}/{topic}"),
        };
        let (answers, checkpoints) = (folder.display(), folder.join("checkpoints"));
        writeln!(self.requests, "{} {from} {answers} {} {parallelism}", state.name(), checkpoints.display())?;
        self.requests.flush()?;
        let mut line = String::new();
        if self.reports.read_line(&mut line)? == 0 {
            bail!("Flink ended: what it said is above");
        }
        let report: Report = serde_json::from_str(&line).with_context(|| format!("Flink said `{}`", line.trim()))?;
        Ok((Duration::from_nanos(report.nanos), report))
    }

    /// The job's answers in `folder`, in order.
    ///
    /// # Errors
    /// When a line is not an answer.
    pub fn answers(folder: &Folder) -> Result<Answers> {
        let mut said = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with("answers-") {
                continue;
            }
            for line in BufReader::new(File::open(entry.path())?).lines() {
                let line = line?;
                let parts: Vec<&str> = line.splitn(6, ' ').collect();
                let [user, event_type, object, activities, actors, _] = parts[..] else {
                    bail!("not an answer: {line}")
                };
                said.push((user.into(), event_type.into(), object.into(), activities.parse()?, actors.parse()?));
            }
        }
        said.sort();
        Ok(said)
    }
}

impl Drop for Flink {
    fn drop(&mut self) {
        // It ends by itself when its input does; a job that hangs must not outlive the bench.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Names answers.
#[must_use]
pub fn hash(answers: &Answers) -> u64 {
    let digest = blake3::hash(format!("{answers:?}").as_bytes());
    digest.as_bytes()[..8].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// Refuses answers that differ, with the first difference, and answers that say nothing.
///
/// # Errors
/// When they differ.
pub fn agree(tidings: &Answers, peer: &Answers) -> Result<()> {
    ensure!(!tidings.is_empty(), "tidings said nothing");
    let differing = tidings.iter().zip(peer).find(|(ours, theirs)| ours != theirs);
    if let Some((ours, theirs)) = differing {
        bail!("the answers differ: tidings says {ours:?}, its peer {theirs:?}");
    }
    ensure!(tidings.len() == peer.len(), "tidings says {} groups, its peer {}", tidings.len(), peer.len());
    Ok(())
}
