//! The lane as a whole: a log, a ledger and a directory in memory, a provider that follows a script, and a
//! clock that tokio moves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tidings_schemas::block::Block;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{DeliveryId, EventId, LegId, NotificationId, lane_partition};
use tidings_schemas::lane::{LaneRecord, Mark, ReturnCause, Returned};
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_schemas::profile::{Address, AddressStatus, Profile};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::Topics;
use tidings_schemas::units::Rate;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::wire::DeadLetter;
use super::*;
use crate::directory::{Change, Directory, Listed, MemoryDirectory};
use crate::ledger::{Claim, Claimed, Entry, Incarnation, Key, Ledger, MemoryLedger, Settle};
use crate::log::memory::{CrashPoint, MemoryLog};
use crate::log::{
    Append, Assignment, Clock, Commit, Elapsed, GroupReader, Log, Reader, Record, Retention, TopicPartition, TopicSpec,
};
use crate::outcome::{Code, Outcome};
use crate::providers::paced::Paced;
use crate::providers::{Call, Provider};
use crate::render::{Content, InApp};
use crate::retry::Schedule;

const T0: Instant = Instant(1_774_000_000_000);
const CALL_MAX: Duration = Duration::from_secs(5);

/// What a call is answered with.
#[derive(Clone)]
enum Answer {
    Is(Outcome),
    After(Duration, Outcome),
    Never,
}

fn ok() -> Answer {
    Answer::Is(Outcome::accepted(Code::new(200, ""), "id"))
}

fn busy() -> Answer {
    Answer::Is(Outcome::retryable(Code::new(503, "ServiceUnavailable"), None))
}

/// Answers by user, one after the other, the last one for ever; accepts from users it was told nothing about.
#[derive(Default)]
struct Scripted {
    script: Mutex<BTreeMap<String, VecDeque<Answer>>>,
    calls: Mutex<Vec<(String, DeliveryId, Instant)>>,
    accepted: Mutex<Vec<DeliveryId>>,
}

impl Scripted {
    fn set(&self, user: &str, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().insert(user.to_owned(), answers.into_iter().collect());
    }

    fn answer(&self, call: &Call, now: Instant) -> Answer {
        self.calls.lock().unwrap().push((call.user.clone(), call.delivery, now));
        let mut script = self.script.lock().unwrap();
        let Some(answers) = script.get_mut(&call.user) else { return ok() };
        if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() }
    }

    /// How often `user` has it.
    fn has(&self, user: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        let own: BTreeSet<_> = calls.iter().filter(|call| call.0 == user).map(|call| call.1).collect();
        self.accepted.lock().unwrap().iter().filter(|delivery| own.contains(*delivery)).count()
    }

    /// When `user` was called, in milliseconds since the start.
    fn times(&self, user: &str) -> Vec<i64> {
        self.calls.lock().unwrap().iter().filter(|call| call.0 == user).map(|call| call.2.0 - T0.0).collect()
    }
}

struct Line1 {
    provider: Arc<Scripted>,
    channel: Channel,
    crash: Arc<Crash>,
}

#[async_trait]
impl Provider for Line1 {
    fn name(&self) -> &'static str {
        "scripted"
    }
    fn channel(&self) -> Channel {
        self.channel
    }
    fn batch_max(&self) -> usize {
        1
    }
    fn timeout(&self) -> Duration {
        CALL_MAX
    }
    async fn deliver(&self, calls: &[Call], now: Instant) -> Vec<Outcome> {
        self.crash.point().await;
        let mut outcomes = Vec::new();
        for call in calls {
            let outcome = match self.provider.answer(call, now) {
                Answer::Is(outcome) => outcome,
                Answer::After(wait, outcome) => {
                    tokio::time::sleep(wait).await;
                    outcome
                }
                Answer::Never => std::future::pending().await,
            };
            if matches!(outcome, Outcome::Accepted { .. }) {
                self.provider.accepted.lock().unwrap().push(call.delivery);
            }
            outcomes.push(outcome);
        }
        self.crash.point().await;
        outcomes
    }
}

struct Plain;

impl Render for Plain {
    fn render(&self, leg: &LaneRecord) -> Result<Content, Unrendered> {
        if leg.template_id.as_deref() == Some("broken") {
            return Err(Unrendered { reason: Reason::RenderFailed, detail: "line 1".to_owned() });
        }
        Ok(match leg.channel {
            Channel::InApp => Content::InApp(InApp::default()),
            _ => Content::Push(Box::default()),
        })
    }
}

/// Dies at its n-th point: whatever the process does from then on has no effect and gets no answer.
struct Crash {
    left: AtomicI64,
    dead: AtomicBool,
    /// So many times the log does not say how far a partition goes.
    rangeless: AtomicI64,
    /// So many times the ledger takes no claim.
    claimless: AtomicI64,
    /// So many times the ledger does not say its word.
    wordless: AtomicI64,
}

impl Crash {
    fn never() -> Arc<Self> {
        Self::at(i64::MAX)
    }

    fn at(n: i64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicI64::new(n),
            dead: AtomicBool::new(false),
            rangeless: AtomicI64::new(0),
            claimless: AtomicI64::new(0),
            wordless: AtomicI64::new(0),
        })
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Counts one point; says whether the process is dead.
    fn strikes(&self) -> bool {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.dead.store(true, Ordering::SeqCst);
        }
        self.is_dead()
    }

    async fn point(&self) {
        if self.strikes() {
            std::future::pending::<()>().await;
        }
    }
}

struct CrashingLedger(Arc<dyn Ledger>, Arc<Crash>);

impl CrashingLedger {
    async fn effect<R>(&self, effect: impl Future<Output = R>) -> R {
        self.1.point().await;
        let answer = effect.await;
        self.1.point().await;
        answer
    }
}

#[async_trait]
impl Ledger for CrashingLedger {
    async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
        if self.1.wordless.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Err(LedgerError::Unreachable("not yet".to_owned()));
        }
        self.0.incarnation(now).await
    }
    async fn claim(&self, by: &Incarnation, claims: &[Claim], now: Instant) -> Result<Vec<Claimed>, LedgerError> {
        if self.1.claimless.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Err(LedgerError::Unreachable("busy".to_owned()));
        }
        self.effect(self.0.claim(by, claims, now)).await
    }
    async fn settle(&self, by: &Incarnation, settles: &[Settle], now: Instant) -> Result<Vec<bool>, LedgerError> {
        self.effect(self.0.settle(by, settles, now)).await
    }
    async fn look(&self, by: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        self.effect(self.0.look(by, keys)).await
    }
    async fn passed(
        &self,
        by: &Incarnation,
        lane: &TopicPartition,
        through: u64,
        now: Instant,
    ) -> Result<(), LedgerError> {
        self.effect(self.0.passed(by, lane, through, now)).await
    }
}

struct CrashingLog(MemoryLog, Arc<Crash>);

impl CrashingLog {
    fn effect<R>(crash: &Crash, effect: impl FnOnce() -> Result<R, LogError>) -> Result<R, LogError> {
        if crash.strikes() {
            return Err(LogError::Unreachable("dead".to_owned()));
        }
        let answer = effect();
        if crash.strikes() { Err(LogError::Ambiguous("dead".to_owned())) } else { answer }
    }
}

impl Log for CrashingLog {
    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        Self::effect(&self.1, || self.0.append(records))
    }
    fn reader(&self, partition: &TopicPartition, from: u64) -> Result<Box<dyn Reader>, LogError> {
        self.0.reader(partition, from)
    }
    fn range(&self, partition: &TopicPartition) -> Result<std::ops::Range<u64>, LogError> {
        if self.1.rangeless.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Err(LogError::Unreachable("busy".to_owned()));
        }
        self.0.range(partition)
    }
    fn describe(&self, names: &[String]) -> Result<Vec<TopicSpec>, LogError> {
        self.0.describe(names)
    }
    fn create(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        self.0.create(topics)
    }
    fn trim(&self, partition: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.0.trim(partition, before)
    }
    fn join(
        &self,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Box<dyn GroupReader>, LogError> {
        Ok(Box::new(CrashingMember(self.0.join(group, topics, assignment)?, self.1.clone())))
    }
    fn committed(&self, group: &str, partition: &TopicPartition) -> Result<Option<Commit>, LogError> {
        self.0.committed(group, partition)
    }
    fn time(&self) -> Result<Instant, LogError> {
        self.0.time()
    }
}

struct CrashingMember(Box<dyn GroupReader>, Arc<Crash>);

impl GroupReader for CrashingMember {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, LogError> {
        if self.1.is_dead() {
            return Ok(Vec::new());
        }
        self.0.poll(records_max, wait)
    }
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.0.pause(partitions)
    }
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.0.resume(partitions)
    }
    fn commit(&mut self, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError> {
        CrashingLog::effect(&self.1, || self.0.commit(commits))
    }
}

/// What outlives a process.
struct World {
    log: MemoryLog,
    ledger: Arc<MemoryLedger>,
    directory: Arc<MemoryDirectory>,
    provider: Arc<Scripted>,
    clock: Clock,
    elapsed: Elapsed,
    /// How much that clock is ahead of the right one.
    ahead_ms: Arc<AtomicI64>,
    /// How many times faster than tokio's time it runs.
    speed: u32,
    topics: Topics,
    channel: Channel,
    rate: Option<Rate>,
    cap: Option<Rate>,
}

impl World {
    async fn new(channel: Channel) -> Self {
        Self::of(channel, 1, 1).await
    }

    async fn of(channel: Channel, partitions: u32, speed: u32) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the test's one clock, which tokio moves")]
        let start = tokio::time::Instant::now();
        let elapsed: Elapsed = Arc::new(move || start.elapsed() * speed);
        let ahead_ms = Arc::<AtomicI64>::default();
        let (right, ahead) = (elapsed.clone(), ahead_ms.clone());
        let clock: Clock = Arc::new(move || Instant(T0.after(right()).0 + ahead.load(Ordering::Relaxed)));
        let log = MemoryLog::new(clock.clone()).unwrap();
        let topics = Topics::default();
        let mut names = vec![topics.lifecycle(), topics.returned(), topics.dlq(), topics.addresses()];
        names.extend(Line::all().into_iter().flat_map(|line| line.topics(&topics, channel)));
        names.push(topics.lane(Channel::Sms, Priority::Critical));
        let spec =
            |name: String| TopicSpec { name, partitions, retention: Retention::Forever, replication: 1, min_insync: 1 };
        log.create(&names.into_iter().map(spec).collect::<Vec<_>>()).unwrap();
        let world = Self {
            log,
            ledger: Arc::default(),
            directory: Arc::default(),
            provider: Arc::default(),
            clock,
            elapsed,
            ahead_ms,
            speed,
            topics,
            channel,
            rate: None,
            cap: None,
        };
        world.directory.loaded().await.unwrap();
        world
    }

    async fn device(&self, user: &str, id: &str) -> Address {
        let address = Address {
            user_id: user.into(),
            address_id: id.into(),
            channel: self.channel,
            provider: None,
            platform: Some("ios".into()),
            address: format!("token-{id}"),
            environment: None,
            registered_at: None,
            last_seen_at: None,
            status: AddressStatus::Live,
            reason: None,
        };
        let listed = Some(Box::new(Listed { address: address.clone(), partition: 0 }));
        let change = Change::Address { user: user.into(), address_id: id.into(), listed };
        self.directory.apply(&[change], &[]).await.unwrap();
        address
    }

    async fn profile(&self, user: &str, json: &str) {
        let profile = Some(Box::new(Profile::from_json(Some(json.as_bytes())).unwrap()));
        self.directory.apply(&[Change::Profile { user: user.into(), profile }], &[]).await.unwrap();
    }

    fn leg(&self, user: &str, priority: Priority) -> LaneRecord {
        let event = EventId::new(user, 0, 0);
        let notification = NotificationId::new("validate", user, b"", &mut [event]);
        LaneRecord {
            notification,
            leg: LegId::new(notification, self.channel.as_str(), 0),
            event,
            user: user.into(),
            created_at: T0,
            ready_at: T0,
            ..samples::leg(self.channel, priority)
        }
    }

    fn lane(&self, priority: Priority) -> TopicPartition {
        TopicPartition { topic: self.topics.lane(self.channel, priority).into(), partition: 0 }
    }

    fn say(&self, record: &LaneRecord, epoch: Option<u64>) {
        let epoch = epoch.map(|epoch| (1, epoch, &b"o"[..]));
        let topic = self.lane(record.priority).topic;
        let to = wire::place(&topic, &record.user, u32::try_from(self.partitions_of(&topic).len()).unwrap());
        self.log.append(&[wire::leg(to, record, epoch)]).unwrap();
    }

    fn mark(&self, priority: Priority, said_through: u64) {
        self.log.append(&[wire::mark(self.lane(priority), Mark { g: 1, said_through })]).unwrap();
    }

    async fn start(&self, lines: &[Line], crash: Arc<Crash>, name: &str, limits: Limits) -> Process {
        let ledger = Arc::new(CrashingLedger(self.ledger.clone(), crash.clone()));
        self.run(ledger, lines, crash, name, limits).await
    }

    async fn start_with(&self, ledger: Arc<dyn Ledger>, lines: &[Line]) -> Process {
        self.run(ledger, lines, Crash::never(), "p", limits()).await
    }

    async fn run(
        &self,
        ledger: Arc<dyn Ledger>,
        lines: &[Line],
        crash: Arc<Crash>,
        name: &str,
        limits: Limits,
    ) -> Process {
        let provider: Arc<dyn Provider> =
            Arc::new(Line1 { provider: self.provider.clone(), channel: self.channel, crash: crash.clone() });
        let provider = match self.rate {
            Some(rate) => Arc::new(Paced::new(provider, Arc::new(Pace::new(rate)))),
            None => provider,
        };
        let parts = Parts {
            channel: self.channel,
            topics: self.topics.clone(),
            log: Arc::new(CrashingLog(self.log.clone(), crash.clone())),
            ledger,
            directory: self.directory.clone(),
            render: Arc::new(Plain),
            providers: Choice::List(vec![provider]),
            cap: self.cap.map(|rate| Arc::new(Pace::new(rate))),
            schedule: Schedule::default(),
            categories: BTreeMap::new(),
            clock: self.clock.clone(),
            elapsed: self.elapsed.clone(),
            speed: self.speed,
            process: name.into(),
        };
        let deliverer = Arc::new(Deliverer::open(parts).await.unwrap());
        let stop = CancellationToken::new();
        let (mut tasks, mut metrics) = (JoinSet::new(), Vec::new());
        for line in lines {
            let reader = LaneReader {
                deliverer: deliverer.clone(),
                group: line.group(&Topics::default(), self.channel),
                topics: line.topics(&self.topics, self.channel),
                limits: limits.clone(),
                metrics: Arc::default(),
            };
            metrics.push(reader.metrics.clone());
            tasks.spawn(reader.run(stop.clone()));
        }
        Process { deliverer, tasks, stop, metrics, crash }
    }

    /// Kills a process as SIGKILL would: no last commit, no leaving.
    async fn kill(&self, mut process: Process) {
        process.crash.dead.store(true, Ordering::SeqCst);
        for line in Line::all() {
            self.log.evict(&line.group(&Topics::default(), self.channel));
        }
        process.tasks.shutdown().await;
    }

    fn records(&self, topic: &str) -> Vec<Record> {
        let read = |it: TopicPartition| self.log.reader(&it, 0).unwrap().poll(100_000, Duration::ZERO).unwrap().records;
        self.partitions_of(topic).into_iter().flat_map(read).collect()
    }

    fn rows(&self) -> Vec<Row> {
        let blocks = self.records(&self.topics.lifecycle());
        let rows =
            |record: &Record| Block::decode_header(record.value.as_ref().unwrap()).unwrap().decode_rows().unwrap();
        blocks.iter().flat_map(rows).collect()
    }

    /// States and reason of each distinct row about `user`, in order.
    fn said(&self, user: &str) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let rows = self.rows().into_iter().filter(|row| row.user == user && seen.insert(row.row_id));
        rows.map(|row| {
            let states: Vec<_> = row.states.iter().map(|state| state.as_str()).collect();
            let unit = if row.unit == Unit::Leg { "leg: " } else { "" };
            format!("{unit}{} {}", states.join(" "), row.reason.map_or("", Reason::as_str)).trim_end().to_owned()
        })
        .collect()
    }

    /// What the rows about a user give as the unit's creation.
    fn created(&self, user: &str) -> BTreeSet<Instant> {
        self.rows().into_iter().filter(|row| row.user == user).map(|row| row.created_at).collect()
    }

    fn json<T: serde::de::DeserializeOwned>(&self, topic: &str) -> Vec<T> {
        self.records(topic).iter().map(|it| serde_json::from_slice(it.value.as_ref().unwrap()).unwrap()).collect()
    }

    fn partitions_of(&self, topic: &str) -> Vec<TopicPartition> {
        let count = self.log.describe(&[topic.to_owned()]).unwrap()[0].partitions;
        (0..count).map(|partition| TopicPartition { topic: topic.into(), partition }).collect()
    }

    /// Everything read and settled, in lanes and retry topics.
    fn is_done(&self, lines: &[Line]) -> bool {
        lines.iter().all(|line| {
            let topics = line.topics(&self.topics, self.channel);
            topics.iter().flat_map(|topic| self.partitions_of(topic)).all(|partition| {
                let end = self.log.range(&partition).unwrap().end;
                self.log
                    .committed(&line.group(&Topics::default(), self.channel), &partition)
                    .unwrap()
                    .map_or(0, |it| it.offset)
                    == end
            })
        })
    }

    async fn done(&self, lines: &[Line]) {
        self.until(|| self.is_done(lines)).await;
    }

    /// Lets (virtual) time pass until `condition` holds.
    async fn until(&self, condition: impl Fn() -> bool) {
        for _ in 0..200_000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it never came; rows: {:#?}", self.rows());
    }
}

struct Process {
    deliverer: Arc<Deliverer>,
    tasks: JoinSet<Result<(), LaneError>>,
    stop: CancellationToken,
    metrics: Vec<Arc<LaneMetrics>>,
    crash: Arc<Crash>,
}

impl Process {
    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}

fn limits() -> Limits {
    Limits {
        poll_wait: Duration::ZERO,
        idle: Duration::from_millis(50),
        commit_every: Duration::ZERO,
        ..Limits::default()
    }
}

const MEDIUM: [Line; 2] = [Line::Lane(Priority::Medium), Line::Retry(tidings_schemas::topics::RetryClass::Normal)];

#[tokio::test(start_paused = true)]
async fn killed_at_any_step_nothing_is_lost_and_every_duplicate_is_an_unknown() {
    let mut crashes = 0;
    for point in 0.. {
        let world = World::new(Channel::Push).await;
        for (user, device) in [("u1", "a"), ("u1", "b"), ("u2", "c"), ("u3", "d"), ("u4", "e")] {
            world.device(user, device).await;
        }
        world.provider.set("u2", [busy(), ok()]);
        world.provider.set("u3", [busy(), busy(), ok()]);
        world.provider.set("u4", [Answer::Is(Outcome::permanent(Code::new(400, "BadPath"), "a bug"))]);
        for user in ["u1", "u2", "u3", "u4"] {
            let fallback_channels = if user == "u4" { vec![Channel::Email] } else { Vec::new() };
            world.say(&LaneRecord { fallback_channels, ..world.leg(user, Priority::Medium) }, Some(1));
        }
        world.mark(Priority::Medium, 1);

        let first = world.start(&MEDIUM, Crash::at(point), "first", limits()).await;
        world.until(|| first.crash.is_dead() || world.is_done(&MEDIUM)).await;
        let crashed = first.crash.is_dead();
        world.kill(first).await;
        let second = world.start(&MEDIUM, Crash::never(), "second", limits()).await;
        world.done(&MEDIUM).await;
        second.stop().await;

        // Promise 1: nothing is lost. Promise 3: a duplicate has an unknown. Every row repeats itself exactly.
        let rows = world.rows();
        let mut distinct = BTreeMap::new();
        for row in &rows {
            let states = distinct.entry(row.row_id).or_insert_with(|| row.states.clone());
            assert_eq!(states, &row.states, "point {point}: two rows under one id");
        }
        let deliveries: BTreeSet<_> =
            rows.iter().filter(|row| row.unit == Unit::Delivery).map(|row| row.delivery).collect();
        assert_eq!(deliveries.len(), 5, "point {point}");
        let accepted = world.provider.accepted.lock().unwrap().clone();
        for delivery in deliveries {
            let mut seen = BTreeSet::new();
            let own: Vec<_> = rows.iter().filter(|row| row.delivery == delivery && seen.insert(row.row_id)).collect();
            let count = |state| own.iter().filter(|row| row.states.contains(&state)).count();
            let unknown = count(State::Unknown) > 0;
            let times = accepted.iter().filter(|it| **it == delivery).count();
            assert_eq!((count(State::Created), count(State::Sent)), (1, 1), "point {point}: {own:#?}");
            if own[0].user == "u4" {
                assert_eq!((count(State::Failed), count(State::Dlq), times), (1, 1, 0), "point {point}: {own:#?}");
            } else {
                assert_eq!((count(State::Delivered), times > 0), (1, true), "point {point}: {own:#?}");
                assert!(times == 1 || unknown, "point {point}: sent {times} times, and nobody says so: {own:#?}");
            }
            // No crash, no unknown.
            assert!(crashed || !unknown, "point {point}: {own:#?}");
        }
        let returned: BTreeSet<_> =
            world.json::<Returned>(&world.topics.returned()).iter().map(|it| it.leg.leg).collect();
        let dead: BTreeSet<_> = world.json::<DeadLetter>(&world.topics.dlq()).iter().map(|it| it.delivery).collect();
        assert_eq!((returned.len(), dead.len()), (1, 1), "point {point}");
        crashes += i32::from(crashed);
        if !crashed {
            break;
        }
    }
    assert!(crashes > 30, "only {crashes} points were met");
}

#[tokio::test(start_paused = true)]
async fn a_stuck_delivery_holds_nothing_back_and_ends_in_the_dlq_on_schedule() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.device("u2", "b").await;
    world.provider.set("u1", [busy()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    world.say(&world.leg("u2", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    // The lane is committed past it once its first retry failed.
    world.done(&MEDIUM[..1]).await;
    assert_eq!((world.provider.times("u1").len(), world.provider.times("u2").len()), (2, 1));
    world.until(|| !world.records(&world.topics.dlq()).is_empty()).await;
    world.done(&MEDIUM).await;
    process.stop().await;
    let times = world.provider.times("u1");
    let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // The reader looks every 50 ms.
    let ranges = [(1000, 1600), (5000, 5200), (20_000, 20_200), (90_000, 90_200)];
    assert_eq!(waits.len(), ranges.len(), "{waits:?}");
    assert!(waits.iter().zip(ranges).all(|(wait, (from, to))| (from..to).contains(wait)), "{waits:?}");
    let retry = "retry";
    let expected = ["created rendered sent retry", retry, retry, retry, "failed dlq attempts_exhausted"];
    assert_eq!(world.said("u1"), expected);
    let letters: Vec<DeadLetter> = world.json(&world.topics.dlq());
    assert_eq!((letters[0].attempts, letters[0].unknown, &*letters[0].code), (5, false, "503 ServiceUnavailable"));
}

#[tokio::test(start_paused = true)]
async fn repeats_behind_a_mark_are_dropped_and_others_are_met_in_the_ledger() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    world.mark(Priority::Medium, 1);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.done(&MEDIUM).await;
    assert_eq!(process.metrics[0].repeats.load(Ordering::Relaxed), 1);
    let reached = process.metrics[0].reached();
    process.stop().await;
    assert_eq!(reached[&world.lane(Priority::Medium)].position, 4);
    assert_eq!(world.provider.times("u1").len(), 1);
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
    // The mark stands beside the offset, for the next owner.
    let commit = world
        .log
        .committed(&MEDIUM[0].group(&Topics::default(), Channel::Push), &world.lane(Priority::Medium))
        .unwrap()
        .unwrap();
    assert!(commit.offset == 4 && commit.metadata.starts_with(r#"{"mark":1,"#), "{commit:?}");
}

// Found by the simulator: they were dropped, and the next commit went past them.
#[tokio::test(start_paused = true)]
async fn records_that_come_with_their_partition_outlive_a_log_that_fails_to_say_how_far_it_goes() {
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "a").await;
        world.say(&world.leg(user, Priority::Medium), Some(1));
    }
    let crash = Crash::never();
    crash.rangeless.store(2, Ordering::SeqCst);
    let process = world.start(&MEDIUM, crash, "p", limits()).await;
    world.done(&MEDIUM).await;
    for user in ["u1", "u2"] {
        assert_eq!(world.said(user), ["created rendered sent delivered"], "{user}");
    }
    process.stop().await;
}

// A wish that comes while a claim waits for the ledger is heeded: the profile is looked up again.
#[tokio::test(start_paused = true)]
async fn an_opt_out_during_a_ledgers_outage_reaches_what_waits_to_be_claimed() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let crash = Crash::never();
    crash.claimless.store(10, Ordering::SeqCst);
    let process = world.start(&MEDIUM, crash, "p", limits()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.profile("u1", r#"{"channels":{"push":false}}"#).await;
    world.done(&MEDIUM).await;
    assert_eq!(world.said("u1"), ["created suppressed opted_out"]);
    assert!(world.provider.times("u1").is_empty());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn critical_does_not_feel_a_bulk_lane_that_is_stuck() {
    let world = World::new(Channel::Push).await;
    for n in 0..20 {
        world.device(&format!("bulk{n}"), "d").await;
        world.provider.set(&format!("bulk{n}"), [Answer::Never]);
        world.say(&world.leg(&format!("bulk{n}"), Priority::Low), Some(1));
    }
    world.device("u1", "a").await;
    let lines = [Line::Lane(Priority::Low), Line::Lane(Priority::Critical)];
    let process = world.start(&lines, Crash::never(), "p", Limits { records_max: 4, ..limits() }).await;
    world.until(|| process.metrics[0].in_flight.load(Ordering::Relaxed) == 4).await;
    let asked = (world.clock)();
    world.say(&world.leg("u1", Priority::Critical), None);
    world.until(|| !world.said("u1").is_empty()).await;
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
    let took = world.provider.times("u1")[0] - (asked.0 - T0.0);
    assert!(took <= 60, "{took} ms");
    // The bound holds: no more than four of the bulk are called at a time.
    let before = world.provider.calls.lock().unwrap().iter().filter(|call| call.2 < T0.after(CALL_MAX)).count();
    assert_eq!(before, 4 + 1);
    world.kill(process).await;
}

#[tokio::test(start_paused = true)]
async fn a_rate_and_a_cap_are_kept_to_and_critical_waits_for_neither() {
    for (rate, cap) in [(Some("10/s"), None), (None, Some("600/m")), (Some("10/s"), Some("36000/h")), (None, None)] {
        let mut world = World::new(Channel::Push).await;
        (world.rate, world.cap) = (rate.map(|it| it.parse().unwrap()), cap.map(|it| it.parse().unwrap()));
        let lines = [Priority::Critical, Priority::High, Priority::Low].map(Line::Lane);
        for n in 0..100 {
            let user = format!("low{n}");
            world.device(&user, "phone").await;
            // One of them wants nothing any more: its token is another's.
            if n == 50 {
                world.profile(&user, r#"{"channels":{"push":false}}"#).await;
            }
            world.say(&world.leg(&user, Priority::Low), Some(1));
        }
        let process = world.start(&lines, Crash::never(), "p", limits()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (user, priority) in [("code", Priority::Critical), ("order", Priority::High)] {
            world.device(user, "phone").await;
            world.say(&world.leg(user, priority), (priority != Priority::Critical).then_some(1));
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = world.provider.times("code")[0] - 500;
        assert!(after < 150, "{rate:?} {cap:?}: a critical call after {after} ms");
        tokio::time::sleep(Duration::from_secs(20)).await;
        let mut times: Vec<i64> = world.provider.calls.lock().unwrap().iter().map(|call| call.2.0 - T0.0).collect();
        times.sort_unstable();
        assert_eq!(times.len(), 101, "{rate:?} {cap:?}: nothing is dropped, nothing is called twice");
        let high = world.provider.times("order")[0] - 500;
        let most_in_a_second =
            times.iter().map(|from| times.iter().filter(|at| (*from..from + 1000).contains(at)).count());
        let (last, most) = (times[100], most_in_a_second.max().unwrap());
        if rate.or(cap).is_some() {
            // A second's worth at once, and a second's worth as it comes; a critical one beside them.
            assert!(
                (9_000..10_500).contains(&last) && most <= 21,
                "{rate:?} {cap:?}: {most} in a second, last at {last}"
            );
            assert!(high < 500, "{rate:?} {cap:?}: high goes before what waits, after {high} ms");
            assert!(process.metrics[2].paced.load(Ordering::Relaxed) >= 89);
        } else {
            assert!(last < 1_000 && process.metrics[2].paced.load(Ordering::Relaxed) == 0, "{last}");
        }
        process.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_keeps_its_lease_however_fast_the_clock_runs() {
    for speed in [1, 60, 600, 36_000] {
        let world = World::of(Channel::Push, 1, speed).await;
        world.device("u1", "a").await;
        let accepted = Outcome::accepted(Code::new(200, ""), "id");
        world.provider.set("u1", [Answer::After(CALL_MAX - Duration::from_millis(1), accepted)]);
        let critical = [Line::Lane(Priority::Critical)];
        let process = world.start(&critical, Crash::never(), "p", limits()).await;
        let leg = world.leg("u1", Priority::Critical);
        world.say(&leg, None);
        world.until(|| !world.provider.calls.lock().unwrap().is_empty()).await;
        // A repeat comes while the first is being called, and waits for its lease.
        tokio::time::sleep(CALL_MAX / 2).await;
        world.say(&leg, None);
        world.done(&critical).await;
        process.stop().await;
        assert_eq!(world.said("u1"), ["created rendered sent delivered"], "at {speed} times the machine's time");
        assert_eq!(world.provider.calls.lock().unwrap().len(), 1, "at {speed} times the machine's time");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_takes_what_calls_under_way_need_and_what_waits_is_read_again() {
    let world = World::new(Channel::Push).await;
    for user in ["called", "again", "away", "held1", "held2"] {
        world.device(user, "d").await;
    }
    let accepted = Outcome::accepted(Code::new(200, ""), "id");
    world.provider.set("called", [Answer::After(CALL_MAX / 2, accepted)]);
    world.provider.set("again", [busy(), ok()]);
    world.provider.set("away", [Answer::Never, ok()]);
    for user in ["called", "again", "away"] {
        world.say(&world.leg(user, Priority::Medium), Some(1));
    }
    let process = world.start(&MEDIUM, Crash::never(), "p", Limits { records_max: 3, ..limits() }).await;
    world.until(|| world.provider.times("again").len() == 1).await;
    for user in ["held1", "held2"] {
        world.say(&world.leg(user, Priority::Medium), Some(1));
    }
    world.until(|| process.metrics[0].in_flight.load(Ordering::Relaxed) == 3).await;
    let asked = (world.clock)();
    process.stop().await;
    let took = (world.clock)().since(asked);
    assert!(took <= CALL_MAX, "{took:?}: the longest call takes {CALL_MAX:?}");
    let times = |user: &str| world.provider.times(user).len();
    assert_eq!((times("called"), times("again"), times("held1")), (1, 1, 0), "nothing was begun");
    assert_eq!(world.said("called"), ["created rendered sent delivered"]);
    let process = world.start(&MEDIUM, Crash::never(), "q", limits()).await;
    world.done(&MEDIUM).await;
    process.stop().await;
    for user in ["again", "away", "held1", "held2"] {
        assert!(world.said(user).last().is_some_and(|said| said.contains("delivered")), "{:?}", world.said(user));
    }
    assert_eq!((times("called"), times("again"), times("away"), times("held1")), (1, 2, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_paused_provider_burns_no_attempts_and_an_opt_out_reaches_what_waits_for_it() {
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "d").await;
        world
            .provider
            .set(user, [Answer::Is(Outcome::paused(Code::new(403, "InvalidProviderToken"), "check the key"))]);
        world.say(&world.leg(user, Priority::Medium), Some(1));
    }
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.until(|| world.provider.times("u1").len() + world.provider.times("u2").len() > 5).await;
    assert_eq!(&*process.deliverer.paused()["scripted"].reason, "check the key");
    assert!(world.rows().is_empty(), "no row, no attempt: {:?}", world.rows());
    let calls = world.provider.times("u1").len();
    world.profile("u1", r#"{"categories":{"social":{"push":false}}}"#).await;
    world.provider.set("u2", [ok()]);
    world.done(&MEDIUM).await;
    assert!(process.deliverer.paused().is_empty());
    process.stop().await;
    assert_eq!(world.provider.times("u1").len(), calls);
    assert_eq!(world.said("u1"), ["created suppressed opted_out"]);
    assert_eq!(world.said("u2"), ["created rendered sent delivered"]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_holds_up_no_commit_no_probe_and_no_rate() {
    const HOURS_2: i64 = 2 * 3_600_000;
    let world = World { rate: Some("1/s".parse().unwrap()), ..World::new(Channel::Push).await };
    let paused = Outcome::paused(Code::new(403, "InvalidProviderToken"), "check the key");
    world.provider.set("paused", [Answer::Is(paused), ok()]);
    let say = async |user: &str| {
        world.device(user, "d").await;
        world.say(&LaneRecord { fresh_until: Instant::NEVER, ..world.leg(user, Priority::Medium) }, Some(1));
    };
    world.ahead_ms.store(HOURS_2, Ordering::Relaxed);
    let seldom = Limits { commit_every: Duration::from_millis(250), ..limits() };
    let process = world.start(&MEDIUM, Crash::never(), "p", seldom).await;
    // A commit, a token that was taken, and a gate that closes, all at the wrong hour.
    say("before").await;
    world.done(&MEDIUM).await;
    say("paused").await;
    world.until(|| !process.deliverer.paused().is_empty()).await;
    world.ahead_ms.store(0, Ordering::Relaxed);
    let asked = (world.elapsed)();
    for user in ["after1", "after2"] {
        say(user).await;
    }
    world.done(&MEDIUM).await;
    let took = (world.elapsed)() - asked;
    assert!(took < Duration::from_secs(10), "{took:?}: a probe, three tokens and a commit take seconds");
    process.stop().await;
    for user in ["before", "paused", "after1", "after2"] {
        assert_eq!(world.said(user), ["created rendered sent delivered"], "{user}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_came_too_late_twice_in_one_batch_is_settled_twice() {
    for (expires, said) in [(false, "leg: returned stale"), (true, "leg: expired expired")] {
        let world = World::new(Channel::Push).await;
        let now = (world.clock)();
        world.device("u", "d").await;
        world.device("u", "e").await;
        let leg = LaneRecord { fresh_until: now, ..world.leg("u", Priority::Medium) };
        let leg = LaneRecord { expires_at: expires.then_some(now), ..leg };
        // An append whose acknowledgement was lost is made again.
        world.say(&leg, Some(1));
        world.say(&leg, Some(1));
        let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
        world.done(&MEDIUM).await;
        process.stop().await;
        assert_eq!(world.said("u"), [said]);
        let returned: Vec<Returned> = world.json(&world.topics.returned());
        let whole = returned.iter().filter(|it| it.leg.only_address.is_none()).count();
        assert_eq!((whole, returned.len()), if expires { (0, 0) } else { (2, 2) });
    }
}

#[tokio::test(start_paused = true)]
async fn what_ends_before_a_call_ends_on_the_leg_or_goes_back() {
    let world = World::new(Channel::Push).await;
    let now = (world.clock)();
    for user in ["stale", "expired", "stopped", "broken"] {
        world.device(user, "d").await;
    }
    world.profile("stopped", r#"{"stops":[{"channel":"push","source":"STOP","at":"2026-01-03T00:00:00Z"}]}"#).await;
    let leg = |user: &str| world.leg(user, Priority::Medium);
    world.say(&LaneRecord { fresh_until: now, ..leg("stale") }, Some(1));
    world.say(&LaneRecord { expires_at: Some(now), ..leg("expired") }, Some(1));
    world.say(&leg("stopped"), Some(1));
    world.say(&LaneRecord { template_id: Some("broken".into()), ..leg("broken") }, Some(1));
    world.say(&leg("nowhere"), Some(1));
    world.say(&LaneRecord { fallback_channels: vec![Channel::Email], ..leg("elsewhere") }, Some(1));
    world
        .log
        .append(&[Append { value: Some("{".into()), ..wire::leg(world.lane(Priority::Medium), &leg("x"), None) }])
        .unwrap();
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.done(&MEDIUM).await;
    process.stop().await;
    let cases = [
        ("stale", "leg: returned stale"),
        ("expired", "leg: expired expired"),
        ("stopped", "created suppressed legal_stop"),
        ("broken", "created dlq render_failed"),
        ("nowhere", "leg: suppressed unreachable"),
        ("elsewhere", "leg: returned unreachable"),
    ];
    for (user, expected) in cases {
        assert_eq!(world.said(user), [expected], "{user}");
    }
    assert!(world.provider.calls.lock().unwrap().is_empty());
    let returned: Vec<Returned> = world.json(&world.topics.returned());
    let mut returned: Vec<_> = returned.iter().map(|it| (it.leg.user.as_str(), it.cause)).collect();
    returned.sort_unstable_by_key(|it| it.0);
    assert_eq!(returned, [("elsewhere", ReturnCause::Undeliverable), ("stale", ReturnCause::Stale)]);
    let dead: Vec<DeadLetter> = world.json(&world.topics.dlq());
    let details: BTreeSet<_> = dead.iter().map(|it| (it.reason.as_str(), it.raw.as_deref())).collect();
    assert_eq!(details, BTreeSet::from([("invalid_json", Some("{")), ("render_failed", None)]));
}

#[tokio::test(start_paused = true)]
async fn a_dead_address_goes_to_the_topic_and_the_fallback_waits_for_all_addresses() {
    let invalid = || Answer::Is(Outcome::invalid_address(Code::new(410, "Unregistered"), "gone"));
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.device("u1", "b").await;
    // The first call's address dies at once; the other is tried again and dies in a retry topic.
    world.provider.set("u1", [invalid(), busy(), busy(), invalid()]);
    let leg = LaneRecord { fallback_channels: vec![Channel::Email], ..world.leg("u1", Priority::Medium) };
    world.say(&leg, Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.done(&MEDIUM[..1]).await;
    assert!(world.records(&world.topics.returned()).is_empty(), "one address may still answer");
    world.done(&MEDIUM).await;
    process.stop().await;
    let struck: Vec<Address> = world.json(&world.topics.addresses());
    assert_eq!(struck.iter().map(|it| &*it.address_id).collect::<BTreeSet<_>>(), BTreeSet::from(["a", "b"]));
    assert!(struck.iter().all(|it| it.status == AddressStatus::Invalid && it.reason.as_deref() == Some("scripted: 410 Unregistered")));
    let returned: Vec<Returned> = world.json(&world.topics.returned());
    assert_eq!(returned.iter().map(|it| it.cause).collect::<Vec<_>>(), [ReturnCause::Undeliverable]);
}

/// Found on real services: two phones were called, the process was killed, and one of them was struck by another message's
/// answer. Whoever came next saw the one that lives, and nobody said what had become of the other one's.
#[tokio::test(start_paused = true)]
async fn a_call_to_an_address_that_died_since_is_accounted_for_though_another_lives() {
    let world = World::new(Channel::Push).await;
    let dead = world.device("u1", "a").await;
    world.device("u1", "b").await;
    world.provider.set("u1", [Answer::Never, Answer::Never, ok()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let first = world.start(&MEDIUM, Crash::never(), "first", limits()).await;
    world.until(|| world.provider.times("u1").len() == 2).await;
    world.kill(first).await;
    let address = Address { status: AddressStatus::Invalid, ..dead };
    let listed = Some(Box::new(Listed { address, partition: 0 }));
    let change = Change::Address { user: "u1".into(), address_id: "a".into(), listed };
    world.directory.apply(&[change], &[]).await.unwrap();
    let second = world.start(&MEDIUM, Crash::never(), "second", limits()).await;
    world.done(&MEDIUM).await;
    second.stop().await;
    let lost = "created sent retry unknown lease_expired";
    let mut said = world.said("u1");
    said.sort();
    assert_eq!(said, [lost, lost, "delivered", "failed unreachable"]);
}

#[tokio::test(start_paused = true)]
async fn a_critical_failure_goes_on_to_the_fallbacks_own_lane() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.provider.set("u1", [Answer::Is(Outcome::permanent(Code::new(413, "PayloadTooLarge"), "shorten it"))]);
    let leg = LaneRecord {
        fallback_channels: vec![Channel::Sms, Channel::Email],
        fresh_until: Instant(0),
        ..world.leg("u1", Priority::Critical)
    };
    world.say(&leg, None);
    let lines = [Line::Lane(Priority::Critical)];
    let process = world.start(&lines, Crash::never(), "p", limits()).await;
    world.done(&lines).await;
    process.stop().await;
    let onward: Vec<LaneRecord> = world.json(&world.topics.lane(Channel::Sms, Priority::Critical));
    assert_eq!((onward[0].channel, &onward[0].fallback_channels), (Channel::Sms, &vec![Channel::Email]));
    assert_eq!(world.said("u1"), ["created rendered sent failed dlq refused", "leg: created queued"]);
    assert!(world.records(&world.topics.returned()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_unknown_and_is_tried_again() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.provider.set("u1", [Answer::Never, ok()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.done(&MEDIUM).await;
    assert_eq!(process.metrics[0].unknown.load(Ordering::Relaxed), 1);
    process.stop().await;
    assert_eq!(world.said("u1"), ["created rendered sent retry unknown", "delivered"]);
    assert!(world.provider.times("u1")[1] >= 6000);
}

#[tokio::test(start_paused = true)]
async fn a_lost_ledger_makes_what_was_in_flight_unknown_and_nothing_else() {
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "a").await;
    }
    world.provider.set("u1", [Answer::Never, ok()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let first = world.start(&MEDIUM, Crash::never(), "first", limits()).await;
    world.until(|| !world.provider.times("u1").is_empty()).await;
    world.kill(first).await;
    world.ledger.lose();
    let second = world.start(&MEDIUM, Crash::never(), "second", limits()).await;
    world.done(&MEDIUM).await;
    world.say(&world.leg("u2", Priority::Medium), Some(2));
    world.done(&MEDIUM).await;
    second.stop().await;
    assert_eq!(world.said("u1"), ["created sent retry unknown ledger_unreachable", "delivered"]);
    assert_eq!(world.said("u2"), ["created rendered sent delivered"]);
}

// Found by the simulator: a reader called at once after it had first heard of the ledger, died before it committed, and
// the ledger was lost with it. The next one knew of no other ledger.
#[tokio::test(start_paused = true)]
async fn killed_at_any_step_with_the_ledger_lost_just_then_every_duplicate_is_an_unknown() {
    let critical = [Line::Lane(Priority::Critical), Line::Retry(tidings_schemas::topics::RetryClass::Critical)];
    let (mut crashes, mut doubled) = (0, 0);
    for (lines, priority) in [(&MEDIUM[..], Priority::Medium), (&critical[..], Priority::Critical)] {
        // The ledger may come later than the reader, and go before or after the next one comes.
        for (wordless, after) in [(0, false), (0, true), (1, false), (1, true)] {
            for point in 0.. {
                let world = World::new(Channel::Push).await;
                for user in ["u1", "u2", "u3"] {
                    world.device(user, "a").await;
                }
                world.provider.set("u2", [busy(), ok()]);
                let record =
                    |user| world.say(&world.leg(user, priority), (priority != Priority::Critical).then_some(5));
                record("u1");
                let first = Crash::at(point);
                first.wordless.store(wordless, Ordering::SeqCst);
                let first = world.start(lines, first, "first", limits()).await;
                world.until(|| first.crash.is_dead() || world.is_done(lines)).await;
                record("u2");
                world.until(|| first.crash.is_dead() || world.is_done(lines)).await;
                let crashed = first.crash.is_dead();
                world.kill(first).await;
                if !after {
                    world.ledger.lose();
                }
                let second = world.start(lines, Crash::never(), "second", limits()).await;
                if after {
                    world.ledger.lose();
                }
                world.done(lines).await;
                // Repeats of what was committed before, by whoever had not heard that it was appended.
                ["u1", "u2", "u3"].into_iter().for_each(record);
                world.done(lines).await;
                second.stop().await;

                for user in ["u1", "u2", "u3"] {
                    let times = world.provider.has(user);
                    let (said, place) =
                        (world.said(user), format!("{priority}, wordless {wordless}, after {after}, point {point}"));
                    let unknown = said.iter().any(|row| row.contains("unknown"));
                    assert!(times > 0, "{place}: {user} is lost");
                    assert!(
                        times == 1 || unknown,
                        "{place}: {user} has it {times} times, and nobody says so: {said:?}"
                    );
                    doubled += i32::from(times > 1);
                }
                crashes += i32::from(crashed);
                if !crashed {
                    break;
                }
            }
        }
    }
    assert!(crashes > 60 && doubled > 60, "only {crashes} points were met, and {doubled} duplicates");
}

// Found by `cargo xtask kill`: another lane of the channel learned of the loss first, and the settlement of a call
// that was under way met an empty ledger that it took for its own.
#[tokio::test(start_paused = true)]
async fn a_call_under_way_when_the_ledger_is_lost_is_settled_whoever_hears_of_the_loss() {
    let lines = [Line::Lane(Priority::High), Line::Lane(Priority::Medium)];
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "a").await;
    }
    let accepted = Outcome::accepted(Code::new(200, ""), "id");
    world.provider.set("u1", [Answer::After(CALL_MAX / 2, accepted)]);
    world.say(&world.leg("u1", Priority::High), Some(1));
    let process = world.start(&lines, Crash::never(), "p", limits()).await;
    world.until(|| !world.provider.times("u1").is_empty()).await;
    world.ledger.lose();
    world.say(&world.leg("u2", Priority::Medium), Some(1));
    world.done(&lines).await;
    process.stop().await;
    assert_eq!(world.provider.times("u1").len(), 1, "{:?}", world.said("u1"));
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
}

// Found by `cargo xtask kill`: the critical path had said a message again that it had not committed, and the ledger
// that would have known it was emptied in between.
#[tokio::test(start_paused = true)]
async fn a_critical_repeat_from_before_a_loss_is_an_unknown_and_what_comes_later_is_none() {
    let critical = [Line::Lane(Priority::Critical)];
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "a").await;
    }
    world.say(&world.leg("u1", Priority::Critical), None);
    let first = world.start(&critical, Crash::never(), "first", limits()).await;
    world.done(&critical).await;
    world.kill(first).await;
    world.ledger.lose();
    let second = world.start(&critical, Crash::never(), "second", limits()).await;
    world.until(|| !second.metrics[0].reached().is_empty()).await;
    world.say(&world.leg("u1", Priority::Critical), None);
    let later = Instant(i64::MAX);
    world.say(&LaneRecord { created_at: later, ..world.leg("u2", Priority::Critical) }, None);
    world.done(&critical).await;
    second.stop().await;
    assert_eq!(world.provider.times("u1").len(), 2);
    assert!(world.said("u1").iter().any(|row| row.contains("unknown")), "{:?}", world.said("u1"));
    assert_eq!(world.said("u2"), ["created rendered sent delivered"]);
}

/// A ledger that is down.
struct Down;

#[async_trait]
impl Ledger for Down {
    async fn incarnation(&self, _: Instant) -> Result<Incarnation, LedgerError> {
        Err(LedgerError::Unreachable("down".to_owned()))
    }
    async fn claim(&self, _: &Incarnation, _: &[Claim], _: Instant) -> Result<Vec<Claimed>, LedgerError> {
        Err(LedgerError::Unreachable("down".to_owned()))
    }
    async fn settle(&self, _: &Incarnation, _: &[Settle], _: Instant) -> Result<Vec<bool>, LedgerError> {
        std::future::pending().await
    }
    async fn look(&self, _: &Incarnation, _: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        std::future::pending().await
    }
    async fn passed(&self, _: &Incarnation, _: &TopicPartition, _: u64, _: Instant) -> Result<(), LedgerError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_ledger_critical_goes_out_as_unknown_and_the_rest_waits() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.device("u2", "b").await;
    world.say(&world.leg("u1", Priority::Critical), None);
    world.say(&world.leg("u2", Priority::Medium), Some(1));
    let lines = [Line::Lane(Priority::Critical), Line::Lane(Priority::Medium)];
    let process = world.start_with(Arc::new(Down), &lines).await;
    world.done(&lines[..1]).await;
    let doubt = "created unknown ledger_unreachable";
    assert_eq!(world.said("u1"), [doubt, "created rendered sent delivered unknown ledger_unreachable"]);
    assert!(world.provider.times("u1")[0] <= 400, "{:?}", world.provider.times("u1"));
    assert!(world.provider.times("u2").is_empty());
    process.stop().await;
}

/// A ledger that takes no settlement while it sulks.
struct Sulking(Arc<dyn Ledger>, std::sync::atomic::AtomicBool);

#[async_trait]
impl Ledger for Sulking {
    async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
        self.0.incarnation(now).await
    }
    async fn claim(&self, by: &Incarnation, claims: &[Claim], now: Instant) -> Result<Vec<Claimed>, LedgerError> {
        self.0.claim(by, claims, now).await
    }
    async fn settle(&self, by: &Incarnation, settles: &[Settle], now: Instant) -> Result<Vec<bool>, LedgerError> {
        if self.1.load(Ordering::SeqCst) {
            return Err(LedgerError::Unreachable("sulks".to_owned()));
        }
        self.0.settle(by, settles, now).await
    }
    async fn look(&self, by: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        self.0.look(by, keys).await
    }
    async fn passed(
        &self,
        by: &Incarnation,
        lane: &TopicPartition,
        through: u64,
        now: Instant,
    ) -> Result<(), LedgerError> {
        self.0.passed(by, lane, through, now).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_critical_repeat_leaves_the_telling_to_what_it_repeats() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    world.provider.set("u1", [busy(), ok()]);
    let critical = [Line::Lane(Priority::Critical)];
    let process = world.start(&critical, Crash::never(), "first", limits()).await;
    let code = world.leg("u1", Priority::Critical);
    // The producer says the same again later: another event, the same notification.
    let repeat =
        LaneRecord { event: EventId::new("u1", 0, 1), created_at: T0.after(Duration::from_secs(7)), ..code.clone() };
    for record in [&code, &repeat, &repeat] {
        world.say(record, None);
    }
    world.done(&critical).await;
    world.say(&repeat, None);
    world.done(&critical).await;
    process.stop().await;
    assert_eq!(world.provider.accepted.lock().unwrap().len(), 1);
    assert_eq!(world.said("u1"), ["created rendered sent retry", "delivered"]);
    assert_eq!(world.created("u1"), BTreeSet::from([T0]));
}

#[tokio::test(start_paused = true)]
async fn a_critical_repeat_meets_a_call_that_the_ledger_heard_of_late() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    let critical = [Line::Lane(Priority::Critical)];
    let ledger = Arc::new(Sulking(world.ledger.clone(), true.into()));
    let process = world.start_with(ledger.clone(), &critical).await;
    let code = world.leg("u1", Priority::Critical);
    world.say(&code, None);
    // The message and its rows do not wait for the ledger.
    world.done(&critical).await;
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
    ledger.1.store(false, Ordering::SeqCst);
    world.say(&code, None);
    world.done(&critical).await;
    process.stop().await;
    assert_eq!(world.provider.accepted.lock().unwrap().len(), 1);
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
}

#[tokio::test(start_paused = true)]
async fn killed_without_the_ledger_a_critical_duplicate_is_an_unknown_all_the_same() {
    let critical = [Line::Lane(Priority::Critical)];
    let (mut crashes, mut doubled) = (0, 0);
    for point in 0.. {
        let world = World::new(Channel::Push).await;
        world.device("u1", "a").await;
        world.say(&world.leg("u1", Priority::Critical), None);
        let first = world.run(Arc::new(Down), &critical, Crash::at(point), "first", limits()).await;
        world.until(|| first.crash.is_dead() || world.is_done(&critical)).await;
        let crashed = first.crash.is_dead();
        world.kill(first).await;
        // The ledger is back, and knows nothing of what the first one did.
        let second = world.start(&critical, Crash::never(), "second", limits()).await;
        world.done(&critical).await;
        second.stop().await;

        let said = world.said("u1");
        let times = world.provider.accepted.lock().unwrap().len();
        assert!(times > 0, "point {point}: lost");
        assert!(times == 1 || said.iter().any(|row| row.contains("unknown")), "point {point}: {times} times, {said:?}");
        doubled += i32::from(times > 1);
        crashes += i32::from(crashed);
        if !crashed {
            break;
        }
    }
    assert!(crashes > 3 && doubled > 0, "{crashes} points were met, {doubled} of them sent twice");
}

#[tokio::test(start_paused = true)]
async fn the_inbox_needs_no_address_and_mail_is_not_delivered_by_acceptance() {
    for (channel, expected) in
        [(Channel::InApp, "created rendered sent delivered"), (Channel::Email, "created rendered sent")]
    {
        let world = World::new(channel).await;
        if channel != Channel::InApp {
            world.device("u1", "a").await;
        }
        world.say(&world.leg("u1", Priority::Medium), Some(1));
        let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
        world.done(&MEDIUM).await;
        process.stop().await;
        assert_eq!(world.said("u1"), [expected]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_calls_land_and_commits_them() {
    let world = World::new(Channel::Push).await;
    for user in ["u1", "u2"] {
        world.device(user, "a").await;
    }
    // One call is under way and lands by its timeout, one delivery waits for its first retry and is left.
    world.provider.set("u2", [busy()]);
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    world.say(&world.leg("u2", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.until(|| !world.said("u2").is_empty() && !world.said("u1").is_empty()).await;
    let before = (world.clock)();
    process.stop().await;
    assert!((world.clock)().since(before) < Duration::from_secs(1), "a wait does not hold a stop up");
    let commit = world
        .log
        .committed(&MEDIUM[0].group(&Topics::default(), Channel::Push), &world.lane(Priority::Medium))
        .unwrap();
    assert_eq!(commit.map(|it| it.offset), Some(1), "u2 is read again by the next owner");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_committed_while_the_log_takes_no_rows() {
    let world = World::new(Channel::Push).await;
    world.device("u1", "a").await;
    for n in 1..=6 {
        world.log.fail_topic_at(&world.topics.lifecycle(), CrashPoint::Before, n);
    }
    world.say(&world.leg("u1", Priority::Medium), Some(1));
    let process = world.start(&MEDIUM, Crash::never(), "p", limits()).await;
    world.until(|| !world.provider.accepted.lock().unwrap().is_empty()).await;
    // The sixth refusal comes after 50 + 100 + … + 800 ms.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!world.is_done(&MEDIUM) && world.rows().is_empty());
    world.done(&MEDIUM).await;
    process.stop().await;
    assert_eq!(world.said("u1"), ["created rendered sent delivered"]);
    assert_eq!(world.provider.times("u1").len(), 1);
}

// Real time: the drain waits on a thread of its own.
#[tokio::test]
async fn a_partition_that_goes_is_drained_before_it_is_someone_elses() {
    let world = World::of(Channel::Push, 2, 1).await;
    let users = ["u1", "u2", "u3", "u4", "u5", "u6"];
    let partitions: BTreeSet<_> = users.iter().map(|user| lane_partition(user, 2)).collect();
    assert_eq!(partitions.len(), 2, "both partitions are used");
    for user in users {
        world.device(user, "a").await;
        world
            .provider
            .set(user, [Answer::After(Duration::from_millis(300), Outcome::accepted(Code::new(200, ""), "id"))]);
        world.say(&world.leg(user, Priority::Medium), Some(1));
    }
    let lines = &MEDIUM[..1];
    let first = world.start(lines, Crash::never(), "first", limits()).await;
    world.until(|| world.provider.calls.lock().unwrap().len() == users.len()).await;
    let second = world.start(lines, Crash::never(), "second", limits()).await;
    let taken = world.until(|| second.metrics[0].reached().len() == 1);
    tokio::time::timeout(Duration::from_secs(10), taken).await.unwrap();
    // What the second one takes over was settled and committed by the first.
    assert_eq!(world.provider.accepted.lock().unwrap().len(), users.len());
    world.done(lines).await;
    first.stop().await;
    second.stop().await;
    assert_eq!(world.provider.calls.lock().unwrap().len(), users.len());
    assert!(world.rows().iter().all(|row| !row.states.contains(&State::Unknown)));
}
