//! The critical path on the log in memory: it waits for nothing, and a crash at any step loses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tidings_operators::ingest::{Source, SourceKind};
use tidings_operators::rules::Rules;
use tidings_operators::script;
use tidings_pipeline::runtime::clock::Clock;
use tidings_pipeline::runtime::coordinator::Observer;
use tidings_pipeline::runtime::critical::{
    Critical, CriticalError, CriticalPlan, CriticalStatus, CriticalSurroundings, wiring,
};
use tidings_pipeline::runtime::egress::Outlets;
use tidings_pipeline::runtime::news::News;
use tidings_pipeline::runtime::plan::SourcePlan;
use tidings_schemas::block::Block;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, Stage, Unit};
use tidings_schemas::policy::TypePolicy;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::Topics;
use tidings_sinks::log::memory::{CrashPoint, MemoryLog};
use tidings_sinks::log::through::Through;
use tidings_sinks::log::{
    Append, Assignment, Batch, Commit, GroupReader, Headers, Log, LogError, Reader, Record, Retention, TopicPartition,
    TopicSpec,
};
use tidings_sinks::record::fates::{Fate, Fates, Sum};

const GROUP: &str = "notifications.critical";
const EVENTS: &str = "notifications.events.critical";
const HIGH: &str = "notifications.events.high";
const PROFILES: &str = "notifications.preferences";
const ADDRESSES: &str = "notifications.addresses";
const LIFECYCLE: &str = "notifications.lifecycle";
const DLQ: &str = "notifications.dlq";
const PUSH: &str = "notifications.push.critical";

/// When the log takes records, and when the path looks at its clock.
const ACCEPTED: Instant = Instant(1_774_735_800_000);
const DECIDED: Instant = Instant(1_774_735_800_007);

struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn wall(&self) -> Instant {
        Instant(self.0.load(Ordering::Relaxed))
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

/// How long something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process's handle of the log: it can die, topics can be stuck, and it knows what was touched. It tells when the
/// path has done something at its log, or is about to wait there: what it did before can be seen then.
#[derive(Clone)]
struct Handle {
    log: MemoryLog,
    process: Arc<Process>,
    news: Arc<News>,
}

#[derive(Default)]
struct Process {
    /// Dies with the first append that fails.
    mortal: bool,
    dead: AtomicBool,
    /// Dies in a commit: before it, or after it and before its acknowledgement.
    dies_in_commit: Option<CrashPoint>,
    /// Side inputs that never bring anything.
    stuck: bool,
    touched: Mutex<BTreeSet<String>>,
    /// While closed, appends wait.
    gate: Option<Arc<(Mutex<bool>, Condvar)>>,
}

impl Process {
    fn alive(&self) -> Result<(), LogError> {
        match self.dead.load(Ordering::SeqCst) {
            true => Err(LogError::Unreachable("the process is dead".to_owned())),
            false => Ok(()),
        }
    }

    fn die(&self) -> LogError {
        self.dead.store(true, Ordering::SeqCst);
        LogError::Unreachable("the process died".to_owned())
    }

    fn touch(&self, topic: &str) {
        self.touched.lock().unwrap().insert(topic.to_owned());
    }
}

impl Through for Handle {
    fn behind(&self) -> Result<&dyn Log, LogError> {
        Ok(&self.log)
    }

    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        self.process.alive()?;
        records.iter().for_each(|record| self.process.touch(&record.to.topic));
        if let Some(gate) = &self.process.gate {
            drop(gate.1.wait_while(gate.0.lock().unwrap(), |open| !*open).unwrap());
        }
        let appended = self.log.append(records);
        if appended.is_err() && self.process.mortal {
            self.process.die();
        }
        self.news.tell();
        appended
    }

    fn reader(&self, partition: &TopicPartition, from: u64) -> Result<Box<dyn Reader>, LogError> {
        self.process.alive()?;
        self.process.touch(&partition.topic);
        if self.process.stuck {
            return Ok(Box::new(Stuck(from)));
        }
        Ok(Box::new(Follower { reader: self.log.reader(partition, from)?, news: Arc::clone(&self.news) }))
    }

    fn range(&self, partition: &TopicPartition) -> Result<Range<u64>, LogError> {
        self.process.alive()?;
        self.log.range(partition)
    }

    fn join(
        &self,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Box<dyn GroupReader>, LogError> {
        self.process.alive()?;
        topics.iter().for_each(|topic| self.process.touch(topic));
        let handle = self.clone();
        let assignment = Arc::new(MortalAssignment { assignment, handle: handle.clone() });
        Ok(Box::new(MortalMember { member: self.log.join(group, topics, assignment)?, handle }))
    }
}

struct Stuck(u64);

impl Reader for Stuck {
    fn poll(&mut self, _: usize, wait: Duration) -> Result<Batch, LogError> {
        std::thread::park_timeout(wait);
        Ok(Batch { records: Vec::new(), position: self.0, at_end: false })
    }
}

struct Follower {
    reader: Box<dyn Reader>,
    news: Arc<News>,
}

impl Reader for Follower {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Batch, LogError> {
        self.news.tell();
        self.reader.poll(records_max, wait)
    }
}

struct MortalAssignment {
    assignment: Arc<dyn Assignment>,
    handle: Handle,
}

impl Assignment for MortalAssignment {
    fn assigned(&self, partitions: &[(TopicPartition, Option<Commit>)]) {
        self.assignment.assigned(partitions);
        self.handle.news.tell();
    }

    fn revoked(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, Commit)> {
        let commits = self.assignment.revoked(partitions);
        if self.handle.process.alive().is_ok() { commits } else { Vec::new() }
    }
}

struct MortalMember {
    member: Box<dyn GroupReader>,
    handle: Handle,
}

impl GroupReader for MortalMember {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, LogError> {
        self.handle.process.alive()?;
        self.handle.news.tell();
        self.member.poll(records_max, wait)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.member.pause(partitions)
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.member.resume(partitions)
    }

    fn commit(&mut self, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError> {
        let Handle { process, news, .. } = &self.handle;
        process.alive()?;
        let committed = match process.dies_in_commit.filter(|_| !commits.is_empty()) {
            None => self.member.commit(commits),
            Some(CrashPoint::LostAck) => self.member.commit(commits).and(Err(process.die())),
            Some(_) => Err(process.die()),
        };
        news.tell();
        committed
    }
}

/// The log that outlives processes.
struct World {
    log: MemoryLog,
    news: Arc<News>,
}

impl World {
    fn new() -> Self {
        let log = MemoryLog::new(Arc::new(|| ACCEPTED)).unwrap();
        let topics = Topics::default();
        let mut names = vec![HIGH.to_owned(), LIFECYCLE.to_owned(), DLQ.to_owned()];
        names.extend(Channel::ALL.iter().map(|channel| topics.lane(*channel, Priority::Critical)));
        names.extend([topics.events(Priority::Low), topics.lane(Channel::Push, Priority::Low)]);
        let mut specs: Vec<_> =
            names.into_iter().map(|name| TopicSpec::one_copy(name, 1, Retention::Forever)).collect();
        specs.push(TopicSpec::one_copy(EVENTS, 2, Retention::Forever));
        let compacted = Retention::Compacted(Duration::from_secs(86_400));
        specs.extend([PROFILES, ADDRESSES].map(|name| TopicSpec::one_copy(name, 2, compacted)));
        log.create(&specs).unwrap();
        Self { log, news: Arc::default() }
    }

    fn until(&self, what: &str, so: impl FnMut() -> bool) {
        assert!(self.news.until(PATIENCE, so), "not within {PATIENCE:?}: {what}");
    }

    fn write(&self, topic: &str, partition: u32, key: &str, value: &str, headers: Headers) {
        let to = TopicPartition { topic: topic.into(), partition };
        let (key, value) = (Some(Bytes::from(key.to_owned())), Some(Bytes::from(value.to_owned())));
        self.log.append(&[Append { to, key, value, headers }]).unwrap();
    }

    /// An event for partition 0 of the critical topic.
    fn event(&self, json: &str) {
        self.write(EVENTS, 0, "u1", json, Vec::new());
    }

    fn code(&self, id: &str) {
        self.event(&format!(r#"{{"id":"{id}","type":"verification_code","user_id":"u1"}}"#));
    }

    fn address(&self, channel: Channel) {
        let json = format!(r#"{{"user_id":"u1","address_id":"{channel}","channel":"{channel}","address":"x"}}"#);
        self.write(ADDRESSES, 1, &format!("u1/{channel}"), &json, Vec::new());
    }

    fn profile(&self, json: &str) {
        self.write(PROFILES, 1, "u1", json, Vec::new());
    }

    fn read(&self, topic: &str) -> Vec<Record> {
        let at = TopicPartition { topic: topic.into(), partition: 0 };
        self.log.reader(&at, 0).unwrap().poll(10_000, Duration::ZERO).unwrap().records
    }

    fn lanes(&self) -> Vec<(Channel, Record)> {
        let topics = Topics::default();
        let of = |channel: &Channel| {
            let records = self.read(&topics.lane(*channel, Priority::Critical));
            records.into_iter().map(|record| (*channel, record)).collect::<Vec<_>>()
        };
        Channel::ALL.iter().flat_map(of).collect()
    }

    /// `push email`: the channels on which something was said, `:silent` behind a silent copy.
    fn spoken(&self) -> String {
        let text = |(channel, record): &(Channel, Record)| {
            let silent = if leg(record).silent { ":silent" } else { "" };
            format!("{channel}{silent}")
        };
        self.lanes().iter().map(text).collect::<Vec<_>>().join(" ")
    }

    fn rows(&self) -> Vec<Row> {
        let rows = |record: &Record| {
            let block = Block::decode_header(record.value.as_ref().unwrap()).unwrap();
            assert_eq!((block.header.stage, block.header.epoch), (Stage::Critical, 0));
            block.decode_rows().unwrap()
        };
        self.read(LIFECYCLE).iter().flat_map(rows).collect()
    }

    /// `leg push created+queued`, in the order of the record; each row id once.
    fn story(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let rows = self.rows();
        let rows = rows.iter().filter(|row| seen.insert(row.row_id));
        let text = |row: &Row| {
            let states: Vec<_> = row.states.iter().map(|state| state.as_str()).collect();
            let channel = row.channel.map_or("", Channel::as_str);
            let reason = row.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
            let unit = if row.unit == Unit::Event { "event" } else { "leg" };
            format!("{unit} {channel} {}{reason}", states.join("+")).replace("  ", " ")
        };
        rows.map(text).collect()
    }

    fn committed(&self) -> u64 {
        let at = TopicPartition { topic: EVENTS.into(), partition: 0 };
        self.log.committed(GROUP, &at).unwrap().map_or(0, |commit| commit.offset)
    }

    fn end(&self) -> u64 {
        self.log.range(&TopicPartition { topic: EVENTS.into(), partition: 0 }).unwrap().end
    }

    fn handle(&self, process: &Arc<Process>) -> Arc<Handle> {
        let (log, process, news) = (self.log.clone(), Arc::clone(process), Arc::clone(&self.news));
        Arc::new(Handle { log, process, news })
    }

    fn start(&self, process: Process) -> Running {
        self.start_with(process, Process::default())
    }

    /// With a process for the lanes' handle of its own.
    fn start_with(&self, process: Process, lanes: Process) -> Running {
        let (process, lanes) = (Arc::new(process), Arc::new(lanes));
        let around = CriticalSurroundings {
            log: self.handle(&process),
            lanes: self.handle(&lanes),
            clock: Arc::new(TestClock(AtomicI64::new(DECIDED.0))),
            stop: Arc::default(),
            status: Arc::default(),
            observer: None,
        };
        Running::of(plan(), around, process)
    }
}

struct Running {
    critical: Critical,
    stop: Arc<AtomicBool>,
    status: Arc<CriticalStatus>,
    process: Arc<Process>,
}

impl Running {
    fn of(plan: CriticalPlan, around: CriticalSurroundings, process: Arc<Process>) -> Self {
        let (stop, status) = (Arc::clone(&around.stop), Arc::clone(&around.status));
        Self { critical: Critical::start(plan, around).unwrap(), stop, status, process }
    }

    fn followed(&self) -> bool {
        let behind = [&self.status.profiles_behind, &self.status.addresses_behind];
        behind.iter().all(|behind| behind.load(Ordering::Relaxed) == 0)
    }

    fn stop(self) -> Result<(), CriticalError> {
        self.stop.store(true, Ordering::Relaxed);
        self.critical.join()
    }
}

fn leg(record: &Record) -> LaneRecord {
    serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()
}

fn rules() -> Rules {
    let mut policies = script::policies();
    let payment = TypePolicy {
        category: Some("transactional".to_owned()),
        priority: Some(Priority::Critical),
        ..TypePolicy::default()
    };
    policies.types.insert("payment_failed".to_owned(), payment);
    script::rules_of(&policies, Duration::ZERO)
}

fn plan() -> CriticalPlan {
    let source = |id: &str, kind| Source { id: id.into(), kind };
    let sources = vec![
        source("critical", SourceKind::Events { unknown_to_data: false }),
        source("profiles", SourceKind::Profiles),
        source("addresses", SourceKind::Addresses),
    ];
    let read = |id: &str, topic: &str, side_input| SourcePlan {
        id: id.to_owned(),
        topic: topic.to_owned(),
        partitions: 2,
        rank: 0,
        at_least_permille: 0,
        side_input,
    };
    CriticalPlan {
        wiring: wiring(sources),
        sources: vec![
            read("critical", EVENTS, false),
            read("profiles", PROFILES, true),
            read("addresses", ADDRESSES, true),
        ],
        rules: Arc::new(rules()),
        outlets: Outlets { topics: Topics::default(), partitions: BTreeMap::new() },
        members: 1,
    }
}

#[test]
fn a_code_leaves_at_once_though_side_inputs_are_stuck() {
    let world = World::new();
    world.profile(r#"{"channels":{"push":false}}"#);
    world.address(Channel::Email);
    let running = world.start(Process { stuck: true, ..Process::default() });
    world.code("c1");
    world.until("it is committed", || world.committed() == 1);
    assert!(!running.followed() && running.status.ready.load(Ordering::Relaxed));
    // Of whom nothing is known gets it on the type's default channels; SMS, because it is security's.
    assert_eq!(world.spoken(), "push email sms in_app");
    for (_, record) in world.lanes() {
        assert_eq!(record.headers, [], "critical lanes have no generations, epochs or ordinals");
        assert_eq!(record.key.as_deref(), Some(&b"u1"[..]));
        let leg = leg(&record);
        assert_eq!((leg.created_at, leg.ready_at, leg.fresh_until), (ACCEPTED, ACCEPTED, Instant::NEVER));
    }
    let mut story = world.story();
    story.sort();
    let leg = |channel: &str| format!("leg {channel} created+queued");
    let mut told = vec!["event created+validated+preference_checked".to_owned()];
    told.extend(["email", "in_app", "push", "sms"].map(leg));
    assert_eq!(story, told);
    for row in world.rows() {
        let seen = (row.epoch, row.stage, row.created_at, row.at, row.event);
        assert_eq!(seen, (0, Stage::Critical, ACCEPTED, DECIDED, EventId::new("critical", 0, 0)));
    }
    // Seven milliseconds lie between five and ten.
    assert_eq!(running.status.latency.counts()[..5], [0, 0, 0, 1, 0]);
    assert_eq!(running.status.latency.sum(), Duration::from_millis(7));
    running.stop().unwrap();
}

#[test]
fn what_is_known_of_a_user_is_honoured() {
    let stop = r#"{"stops":[{"channel":"sms","source":"STOP","at":"2026-01-01T00:00:00Z"}]}"#;
    let all = [Channel::Push, Channel::Email, Channel::Sms];
    let table: [(&str, &str, &[Channel], &str, &str); 9] = [
        ("nothing is known", "null", &[], r#""type":"verification_code""#, "push email sms in_app"),
        ("SMS is for security", "null", &all, r#""type":"payment_failed""#, "push email in_app"),
        (
            "a channel switched off",
            r#"{"channels":{"push":false}}"#,
            &all,
            r#""type":"verification_code""#,
            "email sms in_app",
        ),
        (
            "switched off without addresses",
            r#"{"channels":{"push":false}}"#,
            &[],
            r#""type":"verification_code""#,
            "email sms in_app",
        ),
        ("a legal stop", stop, &all, r#""type":"verification_code""#, "push email in_app"),
        (
            "an opt-out of the category",
            r#"{"categories":{"security":{"email":false}}}"#,
            &all,
            r#""type":"verification_code""#,
            "push sms in_app",
        ),
        ("one address", "null", &[Channel::Email], r#""type":"verification_code""#, "email in_app"),
        (
            "an address that is too new",
            "null",
            &[Channel::Push],
            r#""type":"verification_code","channels":["sms"]"#,
            "sms in_app:silent",
        ),
        (
            "a stop on what was asked for",
            stop,
            &[Channel::Push],
            r#""type":"verification_code","channels":["sms"]"#,
            "in_app:silent",
        ),
    ];
    for (what, profile, addresses, event, expected) in table {
        let world = World::new();
        world.profile(profile);
        addresses.iter().for_each(|channel| world.address(*channel));
        let running = world.start(Process::default());
        world.until("side inputs are read", || running.followed());
        world.event(&format!(r#"{{"id":"c1","user_id":"u1",{event}}}"#));
        world.until("it is committed", || world.committed() == 1);
        assert_eq!(world.spoken(), expected, "{what}");
        running.stop().unwrap();
    }
}

#[test]
fn a_changed_profile_holds_for_the_next_record() {
    let world = World::new();
    let running = world.start(Process::default());
    world.until("side inputs are read", || running.followed());
    world.profile(r#"{"channels":{"push":false,"email":false,"sms":false}}"#);
    // Nobody says when a follower has seen it: ask with further codes.
    let mut asked = 0;
    world.until("a code goes to the inbox alone", || {
        let before = world.lanes().len();
        world.code(&format!("c{asked}"));
        asked += 1;
        world.until("it is committed", || world.committed() == asked);
        world.lanes().len() == before + 1
    });
    running.stop().unwrap();
}

#[test]
fn what_does_not_belong_goes_where_it_does() {
    let world = World::new();
    let running = world.start(Process::default());
    world.event(r#"{"id":"l1","type":"like","user_id":"u1","actor":{"id":"bob"}}"#);
    world.event(r#"{"id":"s1","dedup_key":"k1","type":"verification_code","user_id":"u1","scheduled_at":"2030-01-01T00:00:00Z"}"#);
    world.event(r#"{"id":"s1","type":"verification_code","user_id":"u1","op":"cancel"}"#);
    world.event(r#"{"type":"verification_code"}"#);
    let kept = EventId::new("high", 0, 42);
    let from_decide = vec![("event".to_owned(), Bytes::from(kept.to_string()))];
    world.write(EVENTS, 0, "u1", r#"{"type":"verification_code","user_id":"u1"}"#, from_decide);
    world.until("all is committed", || world.committed() == 5);

    let handed: Vec<_> = world.read(HIGH);
    let header = |record: &Record| String::from_utf8(record.header("event").unwrap().to_vec()).unwrap();
    let expected: Vec<_> = (0..3).map(|offset| EventId::new("critical", 0, offset).to_string()).collect();
    assert_eq!(handed.iter().map(header).collect::<Vec<_>>(), expected);
    let scheduled: serde_json::Value = serde_json::from_slice(handed[1].value.as_ref().unwrap()).unwrap();
    assert_eq!(scheduled["scheduled_at"], "2030-01-01T00:00:00Z");
    // Both stay, because a cancel may name either.
    assert_eq!((&scheduled["id"], &scheduled["dedup_key"]), (&"s1".into(), &"k1".into()));

    let [letter] = &world.read(DLQ)[..] else { panic!("one dead letter") };
    let letter: serde_json::Value = serde_json::from_slice(letter.value.as_ref().unwrap()).unwrap();
    assert_eq!((&letter["stage"], &letter["offset"]), (&"critical".into(), &3.into()));

    // The other path tells the story of what was handed over; the rejected one and the one that came
    // from there are told here, the latter under the id that it had.
    let events: Vec<_> = world.rows().into_iter().filter(|row| row.unit == Unit::Event).collect();
    assert_eq!(events.iter().map(|row| row.event).collect::<BTreeSet<_>>(), {
        BTreeSet::from([EventId::new("critical", 0, 3), kept])
    });
    assert!(world.story().contains(&"event created+rejected (invalid_event)".to_owned()));
    let counts = [&running.status.handled, &running.status.handed_over, &running.status.rejected];
    assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [5, 3, 1]);
    running.stop().unwrap();
}

#[test]
fn a_producers_repeat_is_the_same_notification_and_another_event() {
    let world = World::new();
    let running = world.start(Process::default());
    world.code("c1");
    world.code("c1");
    world.until("both are committed", || world.committed() == 2);
    let pushed = world.read(PUSH);
    let legs = [leg(&pushed[0]), leg(&pushed[1])];
    assert_eq!((legs[0].notification, legs[0].leg), (legs[1].notification, legs[1].leg));
    assert_ne!(legs[0].event, legs[1].event);
    // So the record can tell what became of the second: both name the notification, and the first has its legs.
    let rows = world.rows();
    let fates = Fates::of(rows.iter());
    assert_eq!(legs.map(|leg| fates.event(leg.event)), [Some(Fate::Notified), Some(Fate::Deduplicated)]);
    assert!(fates.sums().iter().all(Sum::adds_up), "{:?}", fates.sums());
    running.stop().unwrap();
}

/// What has to be there in the end, whatever crashed: nothing lost, and repeats are exact.
fn nothing_is_lost(world: &World, what: &str) {
    let mut distinct: BTreeMap<_, BTreeSet<Bytes>> = BTreeMap::new();
    for (channel, record) in world.lanes() {
        let said = leg(&record);
        distinct.entry((said.notification, said.leg, channel)).or_default().insert(record.value.unwrap());
    }
    assert_eq!(distinct.len(), 8, "{what}: two codes on four channels");
    assert!(distinct.values().all(|values| values.len() == 1), "{what}: a repeat is the same record");
    let mut story = world.story();
    story.sort();
    let expected = [
        "event created+rejected (invalid_json)",
        "event created+validated+preference_checked",
        "event created+validated+preference_checked",
        "leg email created+queued",
        "leg email created+queued",
        "leg in_app created+queued",
        "leg in_app created+queued",
        "leg push created+queued",
        "leg push created+queued",
        "leg sms created+queued",
        "leg sms created+queued",
    ];
    assert_eq!(story, expected, "{what}");
    let of = |topic: &str| world.read(topic).into_iter().map(|it| (it.headers, it.value)).collect::<Vec<_>>();
    let (handed, letters) = (of(HIGH), of(DLQ));
    assert!(!handed.is_empty() && handed.iter().all(|it| *it == handed[0]), "{what}: one event id");
    assert!(!letters.is_empty() && letters.iter().all(|it| *it == letters[0]), "{what}: one dead letter");
}

#[test]
fn a_crash_at_any_step_loses_nothing() {
    use CrashPoint::{Before, LostAck, Torn};
    /// What dies, the process, the lanes' process, and where the log crashes.
    type Case = (String, Process, Process, Option<(&'static str, CrashPoint)>);
    let mut table: Vec<Case> = Vec::new();
    let mortal = || Process { mortal: true, ..Process::default() };
    for point in [Before, Torn(0), Torn(1), Torn(3), LostAck] {
        table.push((format!("step 3, {point:?}"), Process::default(), mortal(), Some((PUSH, point))));
        table.push((format!("step 4, {point:?}"), mortal(), Process::default(), Some((LIFECYCLE, point))));
    }
    for point in [Before, LostAck] {
        let dies = Process { dies_in_commit: Some(point), ..Process::default() };
        table.push((format!("step 5, {point:?}"), dies, Process::default(), None));
    }
    for (what, process, lanes, armed) in table {
        let world = World::new();
        world.code("c1");
        world.event(r#"{"id":"l1","type":"like","user_id":"u1"}"#);
        world.event("not json at all, of user u1");
        world.code("c2");
        if let Some((topic, point)) = armed {
            world.log.fail_topic_at(topic, point, 1);
        }
        let lanes = Arc::new(lanes);
        let process = Arc::new(process);
        let around = CriticalSurroundings {
            log: world.handle(&process),
            lanes: world.handle(&lanes),
            clock: Arc::new(TestClock(AtomicI64::new(DECIDED.0))),
            stop: Arc::default(),
            status: Arc::default(),
            observer: None,
        };
        let first = Running::of(plan(), around, Arc::clone(&process));
        world.until(&what, || process.alive().is_err() || lanes.alive().is_err());
        // A dead process says nothing more, with either handle.
        process.die();
        lanes.die();
        first.stop().unwrap();
        let committed = world.committed();
        assert_eq!(committed > 0, what == "step 5, LostAck", "{what}: committed {committed}");
        world.log.evict(GROUP);

        let second = world.start(Process::default());
        world.until(&what, || world.committed() == world.end());
        nothing_is_lost(&world, &what);
        second.stop().unwrap();
    }
}

#[test]
fn a_log_that_is_away_is_tried_again_and_order_is_kept() {
    let world = World::new();
    for nth in 1..=3 {
        world.log.fail_topic_at(PUSH, CrashPoint::Before, nth);
        world.log.fail_topic_at(LIFECYCLE, CrashPoint::Torn(1), nth);
    }
    world.log.fail_topic_at(PUSH, CrashPoint::LostAck, 4);
    let running = world.start(Process::default());
    let ids: Vec<String> = (0..20).map(|number| format!("c{number}")).collect();
    ids.iter().for_each(|id| world.code(id));
    world.until("all is committed", || world.committed() == 20);
    let mut events: Vec<_> = world.read(PUSH).iter().map(|record| leg(record).event).collect();
    assert!(events.len() > 20, "a lost acknowledgement repeats what was said");
    // Without repeats, every event stands where its first record stood.
    let mut seen = BTreeSet::new();
    events.retain(|event| seen.insert(*event));
    assert_eq!(events, (0..20).map(|offset| EventId::new("critical", 0, offset)).collect::<Vec<_>>());
    assert!(running.status.retries.load(Ordering::Relaxed) >= 7);
    running.stop().unwrap();
}

#[test]
fn rows_that_cannot_be_written_hold_up_no_lane_record() {
    let world = World::new();
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let running = world.start(Process { gate: Some(Arc::clone(&gate)), ..Process::default() });
    for number in 1..=20 {
        world.code(&format!("c{number}"));
        world.until("it is in its lane", || world.read(PUSH).len() == number);
    }
    assert_eq!((world.committed(), world.rows().len()), (0, 0), "what has no rows yet is not committed");
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    world.until("all is committed", || world.committed() == 20);
    assert_eq!(world.rows().len(), 20 * 5);
    running.stop().unwrap();
}

#[test]
fn a_flood_of_low_priority_shares_nothing_with_it() {
    let world = World::new();
    let running = world.start(Process::default());
    for number in 0..1_000 {
        let event = format!(r#"{{"id":"m{number}","type":"marketing_campaign","user_id":"u1"}}"#);
        world.write("notifications.events.low", 0, "u1", &event, Vec::new());
        world.write("notifications.push.low", 0, "u1", "{}", Vec::new());
    }
    world.code("c1");
    world.until("it is committed", || world.committed() == 1);
    // It stands behind nothing of the flood: it reads and writes no topic of another priority.
    let touched = running.process.touched.lock().unwrap().clone();
    assert_eq!(touched, [ADDRESSES, EVENTS, LIFECYCLE, PROFILES].map(str::to_owned).into());
    running.stop().unwrap();
}

#[test]
fn a_member_that_was_evicted_joins_again() {
    let world = World::new();
    let running = world.start(Process::default());
    world.code("c1");
    world.until("it is committed", || world.committed() == 1);
    world.log.evict(GROUP);
    world.code("c2");
    world.until("the next is committed", || world.committed() == 2);
    assert_eq!(running.status.partitions.load(Ordering::Relaxed), 2);
    running.stop().unwrap();
}

#[test]
fn a_graceful_stop_commits_and_leaves_nothing_to_repeat() {
    let world = World::new();
    let running = world.start(Process::default());
    for number in 1..=100 {
        world.code(&format!("c{number}"));
    }
    world.until("all is said", || world.read(PUSH).len() == 100);
    running.stop().unwrap();
    assert_eq!(world.committed(), 100);
    let again = world.start(Process::default());
    world.code("c101");
    world.until("it is committed", || world.committed() == 101);
    assert_eq!(world.read(PUSH).len(), 101);
    again.stop().unwrap();
}

#[test]
fn two_members_share_the_partitions_and_the_observer_sees_all_rows() {
    #[derive(Default)]
    struct Seen(Mutex<usize>);
    impl Observer for Seen {
        fn rows(&self, rows: &[Row]) {
            *self.0.lock().unwrap() += rows.len();
        }
    }
    let world = World::new();
    let seen = Arc::new(Seen::default());
    let around = CriticalSurroundings {
        log: world.handle(&Arc::default()),
        lanes: world.handle(&Arc::default()),
        clock: Arc::new(TestClock(AtomicI64::new(DECIDED.0))),
        stop: Arc::default(),
        status: Arc::default(),
        observer: Some(Arc::clone(&seen) as Arc<dyn Observer>),
    };
    let running = Running::of(CriticalPlan { members: 2, ..plan() }, around, Arc::default());
    world.until("both partitions are read", || running.status.partitions.load(Ordering::Relaxed) == 2);
    for partition in [0, 1] {
        let user = format!("u{partition}");
        let event = format!(r#"{{"type":"verification_code","user_id":"{user}"}}"#);
        world.write(EVENTS, partition, &user, &event, Vec::new());
    }
    world.until("all rows are seen", || *seen.0.lock().unwrap() == 10);
    assert_eq!(world.read(PUSH).len(), 2);
    running.stop().unwrap();
}

#[test]
fn a_missing_topic_ends_it_with_an_error() {
    let world = World::new();
    let mut plan = plan();
    plan.sources[0].topic = "notifications.events.urgent".to_owned();
    let around = CriticalSurroundings {
        log: Arc::new(world.log.clone()),
        lanes: Arc::new(world.log.clone()),
        clock: Arc::new(TestClock(AtomicI64::new(DECIDED.0))),
        stop: Arc::default(),
        status: Arc::default(),
        observer: None,
    };
    let error = Critical::start(plan, around).unwrap().join().unwrap_err().to_string();
    assert_eq!(error, "topic `notifications.events.urgent` does not exist; create it with `tidings topics create`");
}
