//! Memory stays bounded: the whole decide stage over an embedded log, fed at the highest rate that it takes, while every
//! bound is hit.
//!
//! Windows and limits are short (`benches/soak/topology.yaml`), so that what was kept is forgotten all the time. One
//! object in ten events gathers more members than are kept. Now and then the lanes and the record take nothing until so
//! many epochs wait to be said that no further one is cut, and then the checkpoint store takes nothing until so many
//! deltas wait; the sources' read-ahead runs full behind them. What is older than a span is given up in the log, as
//! retention would, but at the rate at which it is written.
//!
//! Samples are taken of the process, the state and the disk. They are judged once the first fifth is left out: in the
//! second half of the others neither memory nor disk may reach more than a stated share above what they reached in the
//! first, and the middle of memory neither. A bound that was not hit proves nothing: it is an error, too, and so is an
//! event that is not in the record.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path as Folder;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use serde::Serialize;
use tidings_pipeline::checkpoint::Checkpoints;
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_pipeline::runtime::coordinator::{Observer, Status, Surroundings, run as run_stage};
use tidings_schemas::ids::lane_partition;
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_sinks::log::embedded::EmbeddedLog;
use tidings_sinks::log::{Append, Log, TopicPartition};

use crate::memory::resident_bytes;
use crate::setup::Setup;
use crate::slow::{SlowLog, SlowStore, Valve};
use crate::through_log::{create, plan};
use crate::workload::{Dice, NAMES, name_of};

/// The topology, with `WINDOW` for each span.
const TOPOLOGY: &str = include_str!("../soak/topology.yaml");

/// Sends within a window, as the topology says it.
const LIMIT: u64 = 10;

/// Partitions of the events' topic.
const EVENT_PARTITIONS: u32 = 4;

/// Records of one append.
const BATCH: u64 = 1_000;

/// The same where the feeder is throttled: epochs are as short then as they can be.
const BATCH_THROTTLED: u64 = 20;

/// Users who are told, beside those below.
const USERS: u64 = 1 << 17;

/// How many of the latest events may be repeated.
const RECENT: usize = 4_096;

/// One event in so many goes to each of the two users below. A quarter of the others are comments, and five in a hundred
/// are repeats.
const MARKED: u64 = 100;

/// Gets one and the same event again and again: it passes once a window.
const AGAIN: &str = "again";

/// Gets more comments than the limit lets through.
const LIMITED: &str = "limited";

/// How much longer a hold lasts once its bound was hit: nothing is cut, and the read-ahead runs full.
const HOLD_ON: Duration = Duration::from_secs(3);

/// How long a hold may last. A bound that is not hit by then is not hit.
const HOLD_MAX: Duration = Duration::from_secs(120);

/// How often the soak looks around.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One part in so many of the samples comes from warming up.
const WARM_UP: usize = 5;

/// How long what was fed may take to be said in the end.
const DRAIN_MAX: Duration = Duration::from_secs(300);

/// How long it lasts, and in what steps.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// How long it is fed.
    pub length: Duration,
    /// Each window and limit.
    pub window: Duration,
    /// How long the log keeps what was written.
    pub kept: Duration,
    /// How long nothing is held up between two holds.
    pub between_holds: Duration,
    /// How long a hold goes on at the full rate, before the feeder is throttled until the bound is hit.
    pub held_at_full_rate: Duration,
    /// Events that are written and not cut. More than the read-ahead of all partitions and workers holds, so that the
    /// log holds the rest.
    pub backlog_max: u64,
    /// One event in so many is about the hot object.
    pub hot: u64,
    /// Between two samples.
    pub sample_every: Duration,
    /// Between two checkpoints.
    pub checkpoint_every: Duration,
    /// How much may grow; nothing is said of a run that is too short to come to rest.
    pub granted: Option<Granted>,
}

/// How many hundredths more the second half may take than the first.
#[derive(Clone, Copy, Debug)]
pub struct Granted {
    /// Of memory.
    pub memory_percent: u64,
    /// Of the disk, where a log-structured store tidies up when it sees fit.
    pub disk_percent: u64,
}

impl Size {
    /// What a test runs, and `--quick`: every bound is hit, and only that is judged, because so short a run takes up
    /// memory and disk to its end.
    pub const QUICK: Self = Self {
        length: Duration::from_secs(10),
        window: Duration::from_secs(2),
        kept: Duration::from_secs(3),
        between_holds: Duration::from_secs(3),
        held_at_full_rate: Duration::ZERO,
        backlog_max: 20_000,
        hot: 2,
        sample_every: Duration::from_millis(250),
        checkpoint_every: Duration::from_secs(1),
        granted: None,
    };

    /// What a record is made of, in so many minutes.
    #[must_use]
    pub const fn minutes(minutes: u64) -> Self {
        Self {
            length: Duration::from_secs(60 * minutes),
            window: Duration::from_secs(10),
            kept: Duration::from_secs(20),
            between_holds: Duration::from_secs(10),
            held_at_full_rate: Duration::from_secs(20),
            backlog_max: 200_000,
            hot: 10,
            sample_every: Duration::from_secs(2),
            checkpoint_every: Duration::from_secs(5),
            granted: Some(Granted { memory_percent: 10, disk_percent: 50 }),
        }
    }
}

/// What was so at one time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    /// Since the first event.
    pub seconds: f64,
    /// What the process holds in memory.
    pub resident_bytes: u64,
    /// Keys of state.
    pub keys: u64,
    /// Events that were cut.
    pub events: u64,
    /// Events that were written, and not cut.
    pub backlog: u64,
    /// Epochs that were cut, and not said.
    pub unsaid: u64,
    /// What log and checkpoints take on the disk.
    pub disk_bytes: u64,
}

/// What a soak came to.
#[derive(Debug)]
pub struct Run {
    /// The curve.
    pub samples: Vec<Sample>,
    /// How often each bound was hit.
    pub bounds: BTreeMap<&'static str, u64>,
    /// Events that were fed, and are in the record.
    pub events: u64,
    /// From the first event until the last was said.
    pub elapsed: Duration,
}

/// Counts rows.
#[derive(Default)]
struct Count {
    created: AtomicU64,
    repeats: AtomicU64,
    again: AtomicU64,
    limited: AtomicU64,
    sent: AtomicU64,
}

impl Observer for Count {
    fn rows(&self, rows: &[Row]) {
        let count = |counter: &AtomicU64, is: &dyn Fn(&Row) -> bool| {
            counter.fetch_add(rows.iter().filter(|row| is(row)).count() as u64, Ordering::Relaxed);
        };
        let has = |row: &Row, state| row.states.contains(&state);
        let event = |row: &Row| row.unit == Unit::Event && has(row, State::Created);
        count(&self.created, &event);
        count(&self.repeats, &|row| has(row, State::Deduplicated));
        count(&self.again, &|row| row.user == AGAIN && event(row) && !has(row, State::Deduplicated));
        count(&self.limited, &|row| has(row, State::RateLimited));
        count(&self.sent, &|row| row.user == LIMITED && row.unit == Unit::Leg && has(row, State::Queued));
    }
}

/// Runs it in `folder`; `each` hears of every sample as it is taken.
///
/// # Errors
/// When the stage or the log fails, or an event has no row.
pub fn run(size: Size, workers: usize, folder: &Folder, mut each: impl FnMut(&Sample) -> Result<()>) -> Result<Run> {
    let window = format!("{}ms", size.window.as_millis());
    let setup = Setup::of("benches/soak/topology.yaml", &TOPOLOGY.replace("WINDOW", &window))?;
    let events = setup.source("events")?;
    let partitions = |source| if source == events { EVENT_PARTITIONS } else { 1 };
    let mut plan = plan(&setup, partitions, workers, "soak");
    plan.checkpoint_every = size.checkpoint_every;
    let clock = Arc::new(SystemClock::default());
    let wall = Arc::clone(&clock);
    let inner: Arc<dyn Log> = Arc::new(EmbeddedLog::open(&folder.join("log"), Arc::new(move || wall.wall()))?);
    create(&inner, &plan)?;
    let valve = Arc::new(Valve::default());
    let kept = folder.join("checkpoints");
    std::fs::create_dir_all(&kept)?;
    let store = object_store::local::LocalFileSystem::new_with_prefix(&kept)?.with_fsync(true);
    let store = SlowStore { inner: Arc::new(store), valve: Arc::clone(&valve) };
    let (status, count) = (Arc::new(Status::default()), Arc::new(Count::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let cuts = plan.outlets.topics.cuts();
    let around = Surroundings {
        crumbs: None,
        log: Arc::new(SlowLog { inner: Arc::clone(&inner), valve: Arc::clone(&valve), cuts }),
        checkpoints: Checkpoints::new(Arc::new(store))?,
        clock: Arc::<SystemClock>::clone(&clock),
        stop: Arc::clone(&stop),
        status: Arc::clone(&status),
        observer: Some(Arc::<Count>::clone(&count)),
        older: Arc::new(|_, _| Err("a bench has one topology".to_owned())),
        accept_divergence: false,
        may_drop: std::collections::BTreeSet::new(),
    };
    let retained = plan.outlets.partitions.iter().flat_map(|(topic, partitions)| {
        let topic: Arc<str> = topic.as_str().into();
        (0..*partitions).map(move |partition| TopicPartition { topic: Arc::clone(&topic), partition })
    });
    let topic: Arc<str> = plan.sources[usize::from(events)].topic.as_str().into();
    let (fed, feeding, throttled) = (AtomicU64::new(0), AtomicBool::new(true), AtomicBool::new(false));
    let mut world = World {
        size,
        folder,
        log: &*inner,
        clock: &clock,
        status: &status,
        valve: &valve,
        fed: &fed,
        throttled: &throttled,
        begun: Duration::ZERO,
        hold: Hold::default(),
        retained: retained.map(|partition| (partition, 0)).collect(),
        ends: VecDeque::new(),
        trimmed: 0,
        samples: Vec::new(),
    };
    let watched = std::thread::scope(|scope| {
        let stage = scope.spawn(|| run_stage(&plan, &around));
        let feeder = Feeder { size, log: &*inner, topic: &topic, status: &status, throttled: &throttled, fed: &fed };
        let feeder = scope.spawn(|| feeder.feed(&feeding));
        let watched = world.watch(&feeding, &|| stage.is_finished() || feeder.is_finished(), &mut each);
        // Whatever came of it, nobody is held up any longer.
        feeding.store(false, Ordering::Relaxed);
        valve.says_nothing.store(false, Ordering::Relaxed);
        valve.keeps_nothing.store(false, Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        feeder.join().map_err(|_| anyhow!("the feeder died"))??;
        stage.join().map_err(|_| anyhow!("the stage died"))??;
        watched
    });
    let elapsed = watched?;
    let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
    let (fed, created) = (load(&fed), load(&count.created));
    ensure!(created == fed, "{fed} events went in, the record has {created} of them");
    let bounds = BTreeMap::from([
        ("the window of dedup: repeats", load(&count.repeats)),
        ("the window of dedup: the same event again after it", load(&count.again).saturating_sub(1)),
        ("the limit: legs that wait", load(&count.limited)),
        ("the limit: legs that leave in a later window", load(&count.sent).saturating_sub(LIMIT)),
        ("MEMBERS_MAX: lane records with members folded", load(&valve.folded)),
        ("UNSAID_MAX: cuts that waited", load(&status.unsaid_waits)),
        ("UNKEPT_MAX: cuts that waited", load(&status.unkept_waits)),
        ("the read-ahead: readers that waited", load(&valve.no_room)),
        ("retention: records given up", world.trimmed),
        ("checkpoints: epoch of the newest", load(&status.checkpoint)),
    ]);
    Ok(Run { samples: world.samples, bounds, events: fed, elapsed })
}

impl Run {
    /// Says what was not bounded, or was not put to the test.
    ///
    /// # Errors
    /// When memory or disk grew by more than `size` grants, or a bound was not hit.
    pub fn judge(&self, size: Size) -> Result<()> {
        let missed: Vec<&str> = self.bounds.iter().filter(|(_, hits)| **hits == 0).map(|(name, _)| *name).collect();
        ensure!(missed.is_empty(), "not put to the test, because it was not hit: {}", missed.join("; "));
        let Some(granted) = size.granted else { return Ok(()) };
        let judged = &self.samples[self.samples.len() / WARM_UP..];
        let (first, second) = judged.split_at(judged.len() / 2);
        let memory = |sample: &Sample| sample.resident_bytes;
        grown("memory at its highest", largest(first, memory), largest(second, memory), granted.memory_percent)?;
        grown("memory in the middle", middle(first, memory), middle(second, memory), granted.memory_percent)?;
        let disk = |sample: &Sample| sample.disk_bytes;
        grown("the disk at its fullest", largest(first, disk), largest(second, disk), granted.disk_percent)
    }
}

fn largest(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    samples.iter().map(of).max().unwrap_or_default()
}

fn middle(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(of).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn grown(what: &str, first: u64, second: u64, percent: u64) -> Result<()> {
    ensure!(first > 0, "{what}: there are too few samples to judge by");
    let granted = first + first / 100 * percent;
    ensure!(
        second <= granted,
        "{what}: {second} bytes in the second half, {first} in the first, and {percent} % more are granted"
    );
    Ok(())
}

/// What is held up, turn by turn.
#[derive(Default)]
struct Hold {
    /// How many there were.
    ended: u64,
    /// Since when one lasts, and what its bound's counter said then.
    since: Option<(Duration, u64)>,
    /// Since when its bound is hit.
    hit: Option<Duration>,
    /// When the last one ended.
    at: Duration,
}

/// All that the soak looks at and turns.
struct World<'a> {
    size: Size,
    folder: &'a Folder,
    log: &'a dyn Log,
    clock: &'a SystemClock,
    status: &'a Status,
    valve: &'a Valve,
    fed: &'a AtomicU64,
    throttled: &'a AtomicBool,
    begun: Duration,
    hold: Hold,
    /// What is given up after a span, and up to where it was.
    retained: Vec<(TopicPartition, u64)>,
    /// Where each of these ended, and when.
    ends: VecDeque<(Duration, Vec<u64>)>,
    trimmed: u64,
    samples: Vec<Sample>,
}

impl World<'_> {
    fn now(&self) -> Duration {
        self.clock.elapsed() - self.begun
    }

    /// Looks on until the time is over, both holds were there, and all that was fed is said; returns how long it took.
    fn watch(
        &mut self,
        feeding: &AtomicBool,
        is_over: &dyn Fn() -> bool,
        each: &mut dyn FnMut(&Sample) -> Result<()>,
    ) -> Result<Duration> {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        while !self.status.ready.load(Ordering::Relaxed) {
            ensure!(!is_over(), "it ended before it began");
            std::thread::sleep(LOOK_EVERY);
        }
        self.begun = self.clock.elapsed();
        let mut done_at = None;
        loop {
            std::thread::sleep(LOOK_EVERY);
            let now = self.now();
            if done_at.is_none() {
                // Why it ended is what joining it says.
                ensure!(!is_over(), "it ended before its time");
                self.hold(now);
                if now >= self.size.length && self.hold.ended >= 2 && self.hold.since.is_none() {
                    feeding.store(false, Ordering::Relaxed);
                    done_at = Some(now);
                }
            }
            if self
                .samples
                .last()
                .is_none_or(|last| now.as_secs_f64() - last.seconds >= self.size.sample_every.as_secs_f64())
            {
                let sample = self.sample(now)?;
                each(&sample)?;
                self.samples.push(sample);
                self.retain(now)?;
            }
            let Some(done_at) = done_at else { continue };
            if load(&self.status.records) >= load(self.fed)
                && load(&self.status.said_through) >= load(&self.status.epoch)
            {
                return Ok(now);
            }
            ensure!(now - done_at < DRAIN_MAX, "what was fed was not said within {DRAIN_MAX:?}");
        }
    }

    /// Begins or ends a hold: lanes and record, and then the checkpoint store.
    fn hold(&mut self, now: Duration) {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let (gate, waits) = if self.hold.ended.is_multiple_of(2) {
            (&self.valve.says_nothing, load(&self.status.unsaid_waits))
        } else {
            (&self.valve.keeps_nothing, load(&self.status.unkept_waits))
        };
        match (self.hold.since, self.hold.hit) {
            (None, _)
                if now - self.hold.at >= self.size.between_holds && (now < self.size.length || self.hold.ended < 2) =>
            {
                self.hold.since = Some((now, waits));
                gate.store(true, Ordering::Relaxed);
            }
            (Some((_, waits_before)), None) if waits > waits_before => self.hold.hit = Some(now),
            (Some((since, _)), hit) => {
                let slow = hit.is_none() && now - since >= self.size.held_at_full_rate;
                self.throttled.store(slow, Ordering::Relaxed);
                let seen = hit.is_some_and(|hit| now - hit >= HOLD_ON);
                if seen || now - since >= HOLD_MAX {
                    gate.store(false, Ordering::Relaxed);
                    self.throttled.store(false, Ordering::Relaxed);
                    self.hold = Hold { ended: self.hold.ended + 1, at: now, ..Hold::default() };
                }
            }
            (None, _) => {}
        }
    }

    fn sample(&self, now: Duration) -> Result<Sample> {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let events = load(&self.status.records);
        Ok(Sample {
            seconds: now.as_secs_f64(),
            resident_bytes: resident_bytes()?,
            keys: load(&self.status.keys),
            events,
            backlog: load(self.fed).saturating_sub(events),
            unsaid: load(&self.status.epoch).saturating_sub(load(&self.status.said_through)),
            disk_bytes: disk_bytes(self.folder)?,
        })
    }

    /// Gives up what was written before the span, as far as it was read.
    fn retain(&mut self, now: Duration) -> Result<()> {
        let ends = self.retained.iter().map(|(partition, _)| Ok(self.log.range(partition)?.end));
        let ends = ends.collect::<Result<Vec<u64>>>()?;
        self.ends.push_back((now, ends));
        let Some((_, ends)) = self.ends.pop_front_if(|(at, _)| now - *at >= self.size.kept) else { return Ok(()) };
        let read = self.valve.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for ((partition, given_up), end) in self.retained.iter_mut().zip(ends) {
            let before = read.get(partition).map_or(end, |read| end.min(*read));
            if before > *given_up {
                self.log.trim(partition, before)?;
                self.trimmed += before - *given_up;
                *given_up = before;
            }
        }
        Ok(())
    }
}

/// What the files in a folder take. One that goes meanwhile takes nothing.
fn disk_bytes(folder: &Folder) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let Ok(about) = entry.metadata() else { continue };
        // The kernel counts in blocks of 512 bytes, whatever the file system's are.
        bytes += if about.is_dir() { disk_bytes(&entry.path()).unwrap_or(0) } else { about.blocks() * 512 };
    }
    Ok(bytes)
}

/// Writes events as fast as they are cut.
struct Feeder<'a> {
    size: Size,
    log: &'a dyn Log,
    topic: &'a Arc<str>,
    status: &'a Status,
    throttled: &'a AtomicBool,
    fed: &'a AtomicU64,
}

impl Feeder<'_> {
    /// Goes on until it is told to stop.
    fn feed(self, feeding: &AtomicBool) -> Result<()> {
        let mut making = Making { dice: Dice(76), recent: VecDeque::new(), hot: self.size.hot };
        let mut number = 0;
        while feeding.load(Ordering::Relaxed) {
            let backlog = number - self.status.records.load(Ordering::Relaxed).min(number);
            let throttled = self.throttled.load(Ordering::Relaxed);
            let (batch, most) = if throttled { (BATCH_THROTTLED, 1) } else { (BATCH, self.size.backlog_max) };
            if !self.status.ready.load(Ordering::Relaxed) || backlog >= most {
                std::thread::sleep(LOOK_EVERY);
                continue;
            }
            let append = |number| {
                let (user, value) = making.event(number);
                let partition = lane_partition(&user, EVENT_PARTITIONS);
                let to = TopicPartition { topic: Arc::clone(self.topic), partition };
                Append { to, key: Some(user.into()), value: Some(value), headers: Vec::new() }
            };
            let records: Vec<Append> = (number..number + batch).map(append).collect();
            self.log.append(&records)?;
            number += batch;
            self.fed.store(number, Ordering::Relaxed);
        }
        Ok(())
    }
}

struct Making {
    dice: Dice,
    recent: VecDeque<(String, Bytes)>,
    hot: u64,
}

impl Making {
    fn event(&mut self, number: u64) -> (String, Bytes) {
        match number % MARKED {
            1 => return (AGAIN.to_owned(), json(AGAIN, "comment_reply", AGAIN, number, "again")),
            3 => return (LIMITED.to_owned(), json(&format!("e{number}"), "comment_reply", LIMITED, number, "limited")),
            _ => {}
        }
        let roll = self.dice.roll(100);
        if roll < 5 && !self.recent.is_empty() {
            let place = self.dice.roll(self.recent.len() as u64);
            return self.recent[usize::try_from(place).unwrap_or(0)].clone();
        }
        let id = format!("e{number}");
        let event = if number.is_multiple_of(self.hot) {
            ("hot".to_owned(), json(&id, "like", "hot", number, "hot"))
        } else {
            let user = self.dice.user(USERS);
            let object = format!("o{}", user * 4 + self.dice.roll(4));
            let event_type = if roll < 30 { "comment_reply" } else { "like" };
            let user = name_of(user);
            let value = json(&id, event_type, &user, number, &object);
            (user, value)
        };
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(event.clone());
        event
    }
}

fn json(id: &str, event_type: &str, user: &str, actor: u64, object: &str) -> Bytes {
    let name = NAMES[usize::try_from(actor % 8).unwrap_or(0)];
    let json = format!(
        r#"{{"id":"{id}","type":"{event_type}","user_id":"{user}","actor":{{"id":"a{actor}","name":"{name}"}},"object":{{"id":"{object}","kind":"photo"}},"channels":["in_app"],"data":{{"url":"https://example.com/o/{object}","image":"https://cdn.example.com/{object}/t.jpg"}}}}"#
    );
    json.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run whose memory and disk stand at these, sample by sample.
    fn of(memory: &[u64], disk: &[u64], hits: u64) -> Run {
        let sample = |(memory, disk): (&u64, &u64)| Sample {
            resident_bytes: *memory * 1_000,
            disk_bytes: *disk * 1_000,
            ..Sample::default()
        };
        let samples = memory.iter().zip(disk).map(sample).collect();
        Run { samples, bounds: BTreeMap::from([("one", 1), ("two", hits)]), events: 1, elapsed: Duration::ZERO }
    }

    #[test]
    fn what_grows_and_what_was_not_hit_is_named() {
        // The first two of ten are left out; then four are compared with four. Memory may grow by 10 %, disk by 50 %.
        let flat = [1, 2, 100, 100, 100, 100, 100, 100, 100, 100];
        let cases: [(&[u64], &[u64], u64, &str); 6] = [
            (&flat, &flat, 1, ""),
            (&[1, 2, 100, 100, 100, 100, 110, 110, 110, 110], &[1, 2, 90, 100, 90, 90, 150, 90, 90, 90], 1, ""),
            (&[1, 2, 100, 100, 100, 100, 100, 100, 100, 111], &flat, 1, "memory at its highest: 111000"),
            (&[1, 2, 100, 100, 100, 120, 120, 120, 120, 120], &flat, 1, "memory in the middle: 120000"),
            (&flat, &[1, 2, 90, 100, 90, 90, 151, 90, 90, 90], 1, "the disk at its fullest: 151000"),
            (&flat, &flat, 0, "not put to the test, because it was not hit: two"),
        ];
        for (memory, disk, hits, expected) in cases {
            let said = of(memory, disk, hits).judge(Size::minutes(20)).err().map(|error| error.to_string());
            let said = said.unwrap_or_default();
            assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{said}, not {expected}");
        }
    }

    #[test]
    fn a_run_without_samples_is_not_judged_to_be_good() {
        assert!(of(&[], &[], 1).judge(Size::minutes(20)).is_err());
    }
}
