//! A world that outlives its processes: a log, a store, a workload, a clock; and the comparison of
//! all that was ever said with a plain recomputation along the logged cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use tidings_operators::harness::aside::Skip;
use tidings_operators::harness::chain::Block;
use tidings_operators::harness::dataflow::Transport;
use tidings_operators::harness::delta::Pending;
use tidings_operators::harness::dropped::MayDrop;
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::harness::output::{EpochOutput, To};
use tidings_operators::ingest::{Path, ingest, reject};
use tidings_operators::registry::{Input, Wired, Wiring};
use tidings_operators::rules::Rules;
use tidings_operators::script;
use tidings_pipeline::checkpoint::Checkpoints;
use tidings_pipeline::cutlog::{self, Entry};
use tidings_pipeline::runtime::clock::{Clock, ScaledClock};
use tidings_pipeline::runtime::coordinator::{DecideError, Status, Surroundings, run};
use tidings_pipeline::runtime::crumbs::Crumbs;
use tidings_pipeline::runtime::egress::Outlets;
use tidings_pipeline::runtime::plan::{Plan, SourcePlan};
use tidings_schemas::block::{Block as RowBlock, Kind};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::lane::{HEADER_EPOCH, HEADER_MARK, HEADER_ORDINAL};
use tidings_schemas::lifecycle::Row;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::Topics;
use tidings_sinks::log::memory::{CrashPoint, MemoryLog};
use tidings_sinks::log::{Append, Log, Record, Retention, TopicPartition, TopicSpec};

use crate::cluster::{Cluster, Processes};
use crate::dying::{Death, DyingLog, DyingStore, Life, Witness};
use crate::poison;

const SOURCES: [(&str, u32, bool); 4] =
    [("in.events", 3, false), ("in.returned", 1, false), ("in.profiles", 1, true), ("in.addresses", 1, true)];

/// Slices in which the workload is fed; each is cut before the next is fed.
const SLICES: usize = 12;

/// Eleven hours of the world in a second of ours: the night is over before one gets tired.
const SPEED: u32 = 40_000;

/// How long a process may take until it dies or has said everything.
const PATIENCE: Duration = Duration::from_secs(300);

/// Windows, limits and the night have ended by then.
const NOON: &str = "2026-03-29T14:00:00Z";

/// What a process does until it ends.
pub(crate) type Decides = Box<dyn FnOnce() -> Result<(), DecideError> + Send>;

/// A fast clock, which may be set forward while nobody runs.
struct WorldClock {
    runs: ScaledClock,
    ahead: Mutex<Duration>,
}

impl WorldClock {
    fn pass(&self, span: Duration) {
        *self.ahead.lock().unwrap() += span;
    }
}

impl Clock for WorldClock {
    fn wall(&self) -> Instant {
        self.runs.wall().after(*self.ahead.lock().unwrap())
    }

    fn elapsed(&self) -> Duration {
        self.runs.elapsed() + *self.ahead.lock().unwrap()
    }

    fn real(&self, span: Duration) -> Duration {
        self.runs.real(span)
    }
}

pub(crate) struct World {
    log: MemoryLog,
    witnessed: Arc<dyn Log>,
    cuts: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
    store: Arc<InMemory>,
    clock: Arc<WorldClock>,
    rules: Arc<Rules>,
    slices: Vec<Vec<Append>>,
    fed: usize,
    /// How far the cuts were looked through, and where they end.
    looked: u64,
    cut_ends: BTreeMap<(String, u32), u64>,
    /// Slices after which a run stops; all of them, and noon, if none.
    slices_max: Option<usize>,
    /// Operators that were taken out of the topology.
    gone: &'static [&'static str],
    /// Those of them whose state may be dropped.
    may_drop: BTreeSet<String>,
    /// Whether an operator that some events kill stands in the chain.
    poisoned: bool,
    /// Runs to come are several processes.
    pub(crate) cluster: Option<Cluster>,
    /// Epochs that the last run replayed.
    pub(crate) replayed: u64,
    /// Where a process that dies of a call leaves word.
    pub(crate) crumbs: Option<Crumbs>,
}

/// The wiring with an operator that some events kill.
fn poisoned() -> Wiring {
    let mut wiring = wiring();
    let above = wiring.operators.iter().position(|operator| operator.kind == "schedule").unwrap();
    let place = above + 1;
    for input in wiring.operators[place..].iter_mut().flat_map(|operator| &mut operator.inputs) {
        if let Input::Operator(number) = input {
            *number += 1;
        }
    }
    let (kind, params) = ("poison".to_owned(), serde_json::json!({}));
    // It stands behind `schedule`, so that a timer's wave can bring it something.
    let inputs = vec![Input::Operator(above)];
    let wired = Wired { id: kind.as_str().into(), kind, params, when: None, inputs, to_lanes: false };
    wiring.operators.insert(place, wired);
    Wiring { more: poison::KINDS, ..wiring }
}

fn wiring() -> Wiring {
    let limits = serde_json::json!({"levels": [{"per": ["channel", "type"], "push": "3/h", "other": "5/h"}]});
    script::straight(&[
        ("validate", serde_json::json!({}), None),
        ("dedup", serde_json::json!({"window": "24h"}), None),
        ("schedule", serde_json::json!({}), None),
        ("preferences", serde_json::json!({}), None),
        ("aggregate", serde_json::json!({"window": "5m", "threshold": 4}), Some(r#"category == "social""#)),
        ("route", serde_json::json!({}), None),
        ("quiet_hours", serde_json::json!({"spread": "10m"}), None),
        ("rate_limit", limits, None),
    ])
}

/// The wiring without operators of these kinds.
fn without(kinds: &[&str]) -> Wiring {
    let mut wiring = wiring();
    for kind in kinds {
        let gone = wiring.operators.iter().position(|operator| operator.kind == *kind).unwrap();
        wiring.operators.remove(gone);
        for operator in &mut wiring.operators[gone..] {
            for input in &mut operator.inputs {
                if let Input::Operator(number) = input {
                    *number -= usize::from(*number >= gone);
                }
            }
        }
    }
    wiring
}

/// Names a topology.
fn topology_bytes(wiring: &Wiring) -> Vec<u8> {
    wiring.operators.iter().flat_map(|operator| operator.kind.bytes().chain([b'\n'])).collect()
}

fn topics() -> Vec<(String, u32)> {
    let topics = Topics::default();
    let mut all: Vec<(String, u32)> = SOURCES.iter().map(|(topic, count, _)| ((*topic).to_owned(), *count)).collect();
    for channel in Channel::ALL {
        for priority in Priority::ALL {
            all.push((topics.lane(*channel, *priority), 2));
        }
    }
    all.extend(Priority::ALL.iter().map(|priority| (topics.events(*priority), 1)));
    all.extend([(topics.dlq(), 1), (topics.lifecycle(), 2), (topics.cuts(), 1)]);
    all
}

pub(crate) fn create_topics(log: &dyn Log) {
    let spec = |(name, partitions)| TopicSpec::one_copy(name, partitions, Retention::Forever);
    log.create(&topics().into_iter().map(spec).collect::<Vec<_>>()).unwrap();
}

impl World {
    pub(crate) fn new() -> Self {
        let runs = ScaledClock::new("2026-03-28T21:00:00Z".parse().unwrap(), SPEED);
        let clock = Arc::new(WorldClock { runs, ahead: Mutex::default() });
        let stamp = Arc::clone(&clock);
        let log = MemoryLog::new(Arc::new(move || stamp.wall())).unwrap();
        create_topics(&log);
        let cuts: Arc<Mutex<BTreeMap<u64, Vec<u8>>>> = Arc::default();
        let witnessed: Arc<dyn Log> = Arc::new(Witness { log: Arc::new(log.clone()), cuts: Arc::clone(&cuts) });
        let rules = Arc::new(script::rules_of(&script::policies(), Duration::from_secs(600)));
        let store = Arc::new(InMemory::new());
        Self {
            log,
            witnessed,
            cuts,
            store,
            clock,
            rules,
            slices: workload(),
            fed: 0,
            looked: 0,
            cut_ends: BTreeMap::new(),
            slices_max: None,
            gone: &[],
            may_drop: BTreeSet::new(),
            poisoned: false,
            cluster: None,
            replayed: 0,
            crumbs: None,
        }
    }

    /// A world with an operator that some events kill, and such events; `everywhere`, many of them.
    pub(crate) fn poisoned(everywhere: bool) -> Self {
        let mut world = Self { poisoned: true, ..Self::new() };
        let event = |slice: &mut Vec<Append>, user: usize, json: String| {
            let to = TopicPartition { topic: "in.events".into(), partition: u32::try_from(user % 3).unwrap() };
            let json = format!(r#"{{"type":"like","user_id":"u{user}",{json}}}"#);
            // In the middle of others, which must not feel it.
            let append = Append { to, key: Some(format!("u{user}").into()), value: Some(json.into()), headers: vec![] };
            slice.insert(slice.len() / 2, append);
        };
        let slices = &mut world.slices;
        // Two at once, for two workers; one that comes with a timer; one that a look kills; one that an
        // operator above lets go.
        event(&mut slices[2], 3, r#""id":"x1","object":{"id":"poison"}"#.to_owned());
        event(&mut slices[2], 7, r#""id":"x2","object":{"id":"poison"}"#.to_owned());
        event(&mut slices[3], 4, r#""id":"x3","object":{"id":"slow_poison"}"#.to_owned());
        event(&mut slices[4], 6, r#""id":"x4","object":{"id":"shy_poison"}"#.to_owned());
        let later = r#""id":"x5","object":{"id":"poison"},"scheduled_at":"2026-03-29T09:00:00Z""#;
        event(&mut slices[4], 8, later.to_owned());
        let profile = r#"{"time_zone":"Europe/Berlin","types":{"like":{"push":false}}}"#;
        let to = TopicPartition { topic: "in.profiles".into(), partition: 0 };
        slices[6].push(Append { to, key: Some("u6".into()), value: Some(profile.into()), headers: vec![] });
        if everywhere {
            for number in 0..40 {
                event(&mut slices[8], number % 12, format!(r#""id":"y{number}","object":{{"id":"poison"}}"#));
            }
        }
        world
    }

    /// Nothing runs until the clock shows `until`, while producers write so many events, of which half are
    /// too late by then. When it runs again.
    pub(crate) fn stay_down(&mut self, until: &str, events: usize) -> Instant {
        let until: Instant = until.parse().unwrap();
        let event = |number: usize| {
            let (user, expires) =
                (number % 12, if number.is_multiple_of(2) { r#","expires_at":"2026-03-29T10:00:00Z""# } else { "" });
            let json =
                format!(r#"{{"id":"d{number}","type":"like","user_id":"u{user}","object":{{"id":"d"}}{expires}}}"#);
            let to = TopicPartition { topic: "in.events".into(), partition: u32::try_from(user % 3).unwrap() };
            Append { to, key: Some(format!("u{user}").into()), value: Some(json.into()), headers: vec![] }
        };
        self.log.append(&(0..events).map(event).collect::<Vec<_>>()).unwrap();
        self.clock.pass(until.since(self.clock.wall()));
        self.clock.wall()
    }

    /// How many records each cut took since then.
    pub(crate) fn records_per_cut(&self, since: Instant) -> Vec<u64> {
        let records = |cut: &cutlog::CutBody| cut.ends.values().flat_map(BTreeMap::values).map(|end| end.records).sum();
        let cuts = self.counted().cuts.into_iter().map(|(_, cut)| cut).filter(|cut| cut.now >= since);
        cuts.map(|cut| records(&cut)).collect()
    }

    /// The plan of a chain with an operator that some events kill.
    pub(crate) fn plan_of_poison(&self, workers: usize) -> Plan {
        let pace = Duration::from_secs(1);
        Plan { checkpoint_every: pace, ..self.plan(workers, poisoned()) }
    }

    fn wired(&self) -> Wiring {
        if self.poisoned { poisoned() } else { without(self.gone) }
    }

    /// Runs to come stop gracefully once `slices` of the workload were cut.
    pub(crate) fn pause_after(&mut self, slices: usize) {
        self.slices_max = Some(slices);
    }

    /// Runs to come go on to the end.
    pub(crate) fn go_on(&mut self) {
        self.slices_max = None;
    }

    /// Runs to come have no operators of these kinds, and may drop the state of some of them.
    pub(crate) fn take_out(&mut self, gone: &'static [&'static str], may_drop: &[&str]) {
        self.slices_max = None;
        self.gone = gone;
        self.may_drop = may_drop.iter().map(|kind| (*kind).to_owned()).collect();
    }

    fn plan(&self, workers: usize, wiring: Wiring) -> Plan {
        let source = |(number, (topic, partitions, side_input)): (usize, &(&str, u32, bool))| SourcePlan {
            id: script::sources()[number].id.to_string(),
            topic: (*topic).to_owned(),
            partitions: *partitions,
            rank: 0,
            at_least_permille: 0,
            side_input: *side_input,
        };
        Plan {
            topology: topology_bytes(&wiring).into(),
            wiring,
            sources: SOURCES.iter().enumerate().map(source).collect(),
            rules: Arc::clone(&self.rules),
            build: [7; 32],
            outlets: Outlets { topics: Topics::default(), partitions: topics().into_iter().collect() },
            workers,
            transport: Transport::Memory,
            epoch_min: Duration::from_millis(5),
            idle_max: Duration::from_millis(25),
            checkpoint_every: Duration::from_millis(80),
        }
    }

    fn surroundings(&self, life: &Arc<Life>) -> Surroundings {
        let store = DyingStore { store: Arc::clone(&self.store) as Arc<dyn ObjectStore>, life: Arc::clone(life) };
        Surroundings {
            crumbs: self.crumbs.clone(),
            log: Arc::new(DyingLog { log: Arc::clone(&self.witnessed), life: Arc::clone(life) }),
            checkpoints: Checkpoints::new(Arc::new(store)).unwrap(),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            stop: Arc::new(AtomicBool::new(false)),
            status: Arc::new(Status::default()),
            observer: None,
            older: {
                let full = self.plan(1, wiring());
                let known = move |bytes: &[u8]| (*bytes == *full.topology).then(|| full.clone());
                Arc::new(move |bytes, _| known(bytes).ok_or_else(|| "the test has one older topology".to_owned()))
            },
            accept_divergence: false,
            may_drop: self.may_drop.clone(),
        }
    }

    /// Runs one process until it dies or has cut all there is, several checkpoints long; says whether
    /// it died.
    pub(crate) fn run(&mut self, death: Option<Death>, workers: usize) -> bool {
        let (died, ended) = self.live(death, workers);
        if !died {
            ended.unwrap();
        }
        died
    }

    /// The same; how it ended beside it.
    pub(crate) fn live(&mut self, death: Option<Death>, workers: usize) -> (bool, Result<(), DecideError>) {
        // However slow the machine is, there is a checkpoint to die in while there is still something to be said.
        let paced = matches!(death, Some(Death::Put { .. } | Death::Checkpoint { .. }));
        let life = Life::new(death);
        let around = self.surroundings(&life);
        let plan = self.plan(workers, self.wired());
        let (stop, status) = (Arc::clone(&around.stop), Arc::clone(&around.status));
        let (decides, mut processes): (Decides, _) = match &self.cluster {
            None => (Box::new(move || run(&plan, &around)), None),
            Some(cluster) => {
                let (others, head) = Processes::start(cluster, plan, around, Arc::clone(&self.witnessed));
                (head, Some(others))
            }
        };
        let (is_over, news) = (Arc::<AtomicBool>::default(), Arc::clone(&status));
        let ends = Arc::clone(&is_over);
        let process = std::thread::spawn(move || {
            let ended = decides();
            ends.store(true, Ordering::Relaxed);
            news.news.tell();
            ended
        });
        let noon = NOON.parse().unwrap();
        let (mut over, mut fed_at) = (None, None);
        let mut look = || {
            if life.is_dead() || is_over.load(Ordering::Relaxed) {
                return true;
            }
            let epoch = status.epoch.load(Ordering::Relaxed);
            let checkpoint = Some(status.checkpoint.load(Ordering::Relaxed));
            let disturbed = processes.as_mut().is_some_and(|others| others.disturb(self.fed, &status));
            if disturbed || !status.ready.load(Ordering::Relaxed) || !self.caught_up() {
                // Something of it is still to come.
            } else if self.slices_max == Some(self.fed) {
                stop.store(true, Ordering::Relaxed);
            } else if paced && fed_at == checkpoint && self.fed < self.slices.len() {
                // What was fed last is to be in a checkpoint first.
            } else if self.fed < self.slices.len() {
                fed_at = checkpoint;
                self.log.append(&self.slices[self.fed]).unwrap();
                self.fed += 1;
            } else if self.clock.wall() > noon && epoch > *over.get_or_insert(epoch) + 10 {
                stop.store(true, Ordering::Relaxed);
            }
            false
        };
        assert!(status.news.until(PATIENCE, &mut look), "it did not end within {PATIENCE:?}");
        let ended = process.join().unwrap();
        if let Some(others) = processes {
            others.end();
        }
        self.replayed = status.replayed.load(Ordering::Relaxed);
        (life.is_dead(), ended)
    }

    /// Whether everything fed so far was cut by somebody. Reads on where it stopped the last time:
    /// dead generations write no more cuts, so that any cut will do.
    fn caught_up(&mut self) -> bool {
        let news: Vec<_> = {
            let cuts = self.cuts.lock().unwrap();
            cuts.range(self.looked..).map(|(offset, bytes)| (*offset, bytes.clone())).collect()
        };
        for (offset, bytes) in news {
            self.looked = offset + 1;
            let Entry::Cut { cut, .. } = Entry::decode(offset, &bytes).unwrap() else { continue };
            for (source, partitions) in cut.ends {
                for (partition, end) in partitions {
                    self.cut_ends.insert((source.clone(), partition), end.end);
                }
            }
        }
        let sources = script::sources();
        SOURCES.iter().zip(&sources).all(|((topic, partitions, _), source)| {
            (0..*partitions).all(|partition| {
                let at = TopicPartition { topic: (*topic).into(), partition };
                let cut = self.cut_ends.get(&(source.id.to_string(), partition)).copied().unwrap_or(0);
                self.log.range(&at).unwrap().end == cut
            })
        })
    }

    /// How many generations began.
    pub(crate) fn generations(&self) -> usize {
        let cuts = self.cuts.lock().unwrap();
        let is_begin =
            |(offset, bytes): (&u64, &Vec<u8>)| matches!(Entry::decode(*offset, bytes), Ok(Entry::Begin { .. }));
        cuts.iter().filter(|entry| is_begin(*entry)).count()
    }

    fn counted(&self) -> cutlog::Counted {
        let entries: Vec<_> = self.cuts.lock().unwrap().clone().into_iter().collect();
        let entries = entries.into_iter().map(|(offset, bytes)| (offset, Entry::decode(offset, &bytes).unwrap()));
        cutlog::read(entries, false).unwrap()
    }

    pub(crate) fn lose_acknowledgement(&self, topic: &str, nth: u64) {
        self.log.fail_topic_at(topic, CrashPoint::LostAck, nth);
    }

    /// The names of all checkpoints that count, the newest last.
    fn manifests(&self) -> Vec<String> {
        let entries: Vec<_> = self.cuts.lock().unwrap().clone().into_iter().collect();
        let entries = entries.into_iter().map(|(offset, bytes)| (offset, Entry::decode(offset, &bytes).unwrap()));
        let counted = cutlog::read(entries, false).unwrap();
        counted.checkpoints.into_values().map(|named| named.name).collect()
    }

    fn damage(&self, name: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let path = ObjectPath::from(name);
        runtime.block_on(self.store.put(&path, Bytes::from_static(b"\x01torn").into())).unwrap();
    }

    pub(crate) fn damage_newest_manifest(&self) {
        self.damage(self.manifests().last().unwrap());
    }

    /// Damages the chunk that only the newest checkpoint names; its name.
    pub(crate) fn damage_newest_chunk(&self) -> String {
        let checkpoints = Checkpoints::new(Arc::clone(&self.store) as Arc<dyn ObjectStore>).unwrap();
        let manifests = self.manifests();
        let [.., second, newest] = &manifests[..] else { panic!("two checkpoints are needed") };
        let second = checkpoints.manifest(second).unwrap().chunks;
        let own = checkpoints.manifest(newest).unwrap().chunks.into_iter().find(|chunk| !second.contains(chunk));
        let own = own.expect("the newest checkpoint holds nothing of its own");
        self.damage(&own);
        own
    }

    /// Every object below a prefix, in order.
    pub(crate) fn objects(&self, prefix: &str) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let path = ObjectPath::from(prefix);
        let listed = runtime.block_on(self.store.list_with_delimiter(Some(&path))).unwrap();
        let mut names: Vec<String> = listed.objects.into_iter().map(|object| object.location.to_string()).collect();
        names.sort();
        names
    }

    /// Objects that the two newest checkpoints need, in order: manifests and chunks.
    pub(crate) fn needed(&self) -> (Vec<String>, Vec<String>) {
        let checkpoints = Checkpoints::new(Arc::clone(&self.store) as Arc<dyn ObjectStore>).unwrap();
        let manifests = self.manifests().split_off(self.manifests().len() - 2);
        let chunks: BTreeSet<String> =
            manifests.iter().flat_map(|name| checkpoints.manifest(name).unwrap().chunks).collect();
        (manifests, chunks.into_iter().collect())
    }

    /// Starts a topology that lacks operators.
    pub(crate) fn start_without(&self, kinds: &[&str]) -> Result<(), String> {
        let plan = self.plan(1, without(kinds));
        let around = self.surroundings(&Life::new(None));
        around.stop.store(true, Ordering::Relaxed);
        run(&plan, &around).map_err(|error| error.to_string())
    }

    /// The operators whose state the newest checkpoint holds.
    pub(crate) fn operators_with_state(&self) -> BTreeSet<String> {
        let entries: Vec<_> = self.cuts.lock().unwrap().clone().into_iter().collect();
        let entries = entries.into_iter().map(|(offset, bytes)| (offset, Entry::decode(offset, &bytes).unwrap()));
        let counted = cutlog::read(entries, false).unwrap();
        let (_, newest) = counted.checkpoints.last_key_value().unwrap();
        let checkpoints = Checkpoints::new(Arc::clone(&self.store) as Arc<dyn ObjectStore>).unwrap();
        let state = checkpoints.state(&checkpoints.manifest(&newest.name).unwrap()).unwrap();
        state.iter().map(|((operator, _), _)| operator.to_string()).collect()
    }

    /// Every row, once.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = BTreeMap::new();
        for record in (0..2).flat_map(|partition| self.records("notifications.lifecycle", partition)) {
            let value = record.value.unwrap();
            for row in RowBlock::decode_header(&value).unwrap().decode_rows().unwrap() {
                rows.insert(row.row_id, row);
            }
        }
        rows.into_values().collect()
    }

    /// Every dead letter, once.
    pub(crate) fn dead_letters(&self) -> BTreeSet<Bytes> {
        self.records("notifications.dlq", 0).into_iter().map(|record| record.value.unwrap()).collect()
    }

    fn records(&self, topic: &str, partition: u32) -> Vec<Record> {
        let partition = TopicPartition { topic: topic.into(), partition };
        let range = self.log.range(&partition).unwrap();
        let mut reader = self.log.reader(&partition, range.start).unwrap();
        let (mut records, mut position) = (Vec::new(), range.start);
        while position < range.end {
            let batch = reader.poll(10_000, Duration::from_millis(10)).unwrap();
            position = batch.position;
            records.extend(batch.records);
        }
        records
    }

    /// What a plain recomputation along the logged cuts says, on one chain, without timely.
    fn recomputed(&self) -> Vec<EpochOutput> {
        let wiring = if self.poisoned { poisoned() } else { wiring() };
        let mut chain = wiring.chain(Path::Decide).unwrap();
        let (mut topology, mut state) = (blake3::hash(&topology_bytes(&wiring)), Pending::default());
        let cutlog::Counted { cuts, skips, .. } = self.counted();
        let sources = script::sources();
        let mut outputs = Vec::new();
        let mut from: BTreeMap<(usize, u32), u64> = BTreeMap::new();
        for (_, cut) in cuts {
            let skips: Arc<[Skip]> = skips.get(&cut.epoch).cloned().unwrap_or_default().into();
            let mut blocks = Vec::new();
            for (number, (topic, partitions, _)) in SOURCES.iter().enumerate() {
                for partition in 0..*partitions {
                    let end = cut.ends.get(&*sources[number].id).and_then(|ends| ends.get(&partition));
                    let Some(end) = end else { continue };
                    let start = from.insert((number, partition), end.end).unwrap_or(0);
                    let lot = Lot { source: u16::try_from(number).unwrap(), partition };
                    let records = self.records(topic, partition).into_iter();
                    let records = records.filter(|record| record.offset >= start && record.offset < end.end);
                    let arrived = records.map(|Record { offset, key, value, headers, timestamp }| {
                        let raw = RawRecord { offset, key, value, headers, timestamp };
                        match skips.iter().find(|skip| skip.record() == Some((lot, offset))) {
                            None => ingest(&sources[number], lot, &raw, &self.rules, Path::Decide),
                            Some(skip) => reject(&sources[number], lot, &raw, Reason::Panicked, skip.problem.clone()),
                        }
                    });
                    blocks.push(Block { lot, target: 0, records: arrived.collect() });
                }
            }
            if blake3::Hash::from(cut.topology) != topology {
                // From here on the other topology, upon the state of the one before.
                let wiring = without(self.gone);
                topology = blake3::hash(&topology_bytes(&wiring));
                chain = wiring.chain(Path::Decide).unwrap();
                let restored = state.delta().without_gone();
                chain.restore_but(restored.iter(), self.rules.hash, &MayDrop::Again).unwrap();
            }
            chain.leave_out(&skips);
            let mut output = chain.epoch(cut.epoch, cut.now, &self.rules, blocks);
            output.canonical();
            state.add(std::mem::take(&mut output.delta));
            outputs.push(output);
        }
        outputs
    }

    /// Everything that was ever said, against the recomputation.
    pub(crate) fn compare(&self, name: &str) {
        let outputs = self.recomputed();
        let mut expected: BTreeMap<(u64, String), Bytes> = BTreeMap::new();
        for output in &outputs {
            for said in output.said.iter().filter(|said| matches!(said.to, To::Lane(..))) {
                expected.insert((output.epoch, said.ordinal.to_string()), said.value.clone());
            }
        }
        assert!(expected.len() > 40, "{name}: only {} lane records, which proves little", expected.len());
        let mut said: BTreeMap<(u64, String), Bytes> = BTreeMap::new();
        let mut twice = Vec::new();
        let lanes = topics().into_iter().filter(|(topic, _)| {
            Channel::ALL.iter().any(|channel| {
                Priority::ALL.iter().any(|priority| *topic == Topics::default().lane(*channel, *priority))
            })
        });
        for (topic, partitions) in lanes {
            for record in (0..partitions).flat_map(|partition| self.records(&topic, partition)) {
                if record.header(HEADER_MARK).is_some() {
                    continue;
                }
                let text = |name| String::from_utf8(record.header(name).unwrap().to_vec()).unwrap();
                let key = (text(HEADER_EPOCH).parse().unwrap(), text(HEADER_ORDINAL));
                if let Some(before) = said.insert(key.clone(), record.value.clone().unwrap()) {
                    assert_eq!(Some(before), record.value, "{name}: {key:?} was said in two ways");
                    twice.push(key);
                }
            }
        }
        for (key, value) in &expected {
            assert_eq!(said.get(key), Some(value), "{name}: {key:?} was lost, or said differently");
        }
        for key in said.keys() {
            assert!(expected.contains_key(key), "{name}: {key:?} was said, and no cut justifies it");
        }
        assert!(twice.is_empty(), "{name}: said twice: {twice:?}");
        // Dead letters may be repeated, word for word.
        let letters = outputs.iter().flat_map(|output| &output.said).filter(|said| matches!(said.to, To::Dlq(_)));
        let expected: BTreeSet<Bytes> = letters.map(|said| said.value.clone()).collect();
        assert_eq!(self.dead_letters(), expected, "{name}: dead letters");
        self.compare_rows(name, &outputs);
    }

    /// Rows may be written again; an exact repeat is one row.
    fn compare_rows(&self, name: &str, outputs: &[EpochOutput]) {
        let mut written: BTreeMap<[u8; 16], Row> = BTreeMap::new();
        let mut closed: BTreeMap<u64, u64> = BTreeMap::new();
        for record in (0..2).flat_map(|partition| self.records("notifications.lifecycle", partition)) {
            let value = record.value.unwrap();
            let block = RowBlock::decode_header(&value).unwrap();
            match block.header.kind {
                Kind::Closed => drop(closed.insert(block.header.epoch, block.header.rows)),
                Kind::Rows => {
                    for row in block.decode_rows().unwrap() {
                        if let Some(before) = written.insert(row.row_id.0, row.clone()) {
                            assert_eq!(before, row, "{name}: one row id, two rows");
                        }
                    }
                }
            }
        }
        let mut expected = 0;
        for row in outputs.iter().flat_map(|output| output.rows.decode()) {
            expected += 1;
            assert_eq!(written.get(&row.row_id.0), Some(&row), "{name}: a row was lost, or differs");
        }
        assert_eq!(written.len(), expected, "{name}: rows that no cut justifies");
        for output in outputs {
            assert_eq!(
                closed.get(&output.epoch),
                Some(&(output.rows.len() as u64)),
                "{name}: epoch {} not closed",
                output.epoch
            );
        }
    }
}

/// A night of a dozen people, in slices.
fn workload() -> Vec<Vec<Append>> {
    let append = |topic: &str, partition: u32, key: String, value: String| Append {
        to: TopicPartition { topic: topic.into(), partition },
        key: Some(key.into()),
        value: Some(value.into()),
        headers: Vec::new(),
    };
    let mut slices: Vec<Vec<Append>> = vec![Vec::new(); SLICES];
    for user in 0..12 {
        let id = format!("u{user}");
        let zone = ["Europe/Berlin", "America/New_York", "Asia/Kolkata"][user % 3];
        let profile = format!(r#"{{"time_zone":"{zone}","quiet_hours":{{"from":"22:00","to":"07:00"}}}}"#);
        slices[0].push(append("in.profiles", 0, id.clone(), profile));
        let address = format!(r#"{{"user_id":"{id}","address_id":"push","channel":"push","address":"x"}}"#);
        slices[0].push(append("in.addresses", 0, format!("{id}/push"), address));
    }
    let mut number = 0;
    for (place, slice) in slices.iter_mut().enumerate() {
        for user in 0..12 {
            let id = format!("u{user}");
            for _ in 0..(user + place) % 4 {
                number += 1;
                let op = if number % 17 == 0 { "retract" } else { "notify" };
                let dedup = if number % 11 == 0 { 5 } else { number };
                let (actor, object) = (number % 5, number % 3);
                let json = format!(
                    r#"{{"id":"l{dedup}","type":"like","user_id":"{id}","op":"{op}","actor":{{"id":"a{actor}"}},"object":{{"id":"p{object}"}}}}"#
                );
                slice.push(append("in.events", u32::try_from(user % 3).unwrap(), id.clone(), json));
            }
        }
        let opt_out = r#"{"time_zone":"Europe/Berlin","types":{"like":{"push":false}}}"#;
        if place % 4 == 3 {
            slice.push(append("in.profiles", 0, format!("u{place}"), opt_out.to_owned()));
        }
        let later = format!(
            r#"{{"id":"s{place}","type":"like","user_id":"u1","object":{{"id":"s"}},"scheduled_at":"2026-03-29T1{}:00:00Z"}}"#,
            place % 3
        );
        slice.push(append("in.events", 1, "u1".to_owned(), later));
        slice.push(append("in.events", 0, "broken".to_owned(), "{".to_owned()));
    }
    slices
}
