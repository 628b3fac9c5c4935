//! What outlives a process, and a process in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tidings_schemas::block::Block;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{EventId, LegId, NotificationId};
use tidings_schemas::lane::{LaneRecord, Mark};
use tidings_schemas::lifecycle::{Row, Unit};
use tidings_schemas::profile::{Address, AddressStatus, Profile};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::Topics;
use tidings_schemas::units::Rate;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::crash::{Crash, CrashingLedger, CrashingLog};
use super::provider::{Scripted, ScriptedLine};
use super::{T0, limits};
use crate::directory::{Change, Directory, Listed, MemoryDirectory};
use crate::lane::{
    Choice, Deliverer, LaneError, LaneMetrics, LaneReader, Limits, Line, Pace, Parts, Render, Unrendered, samples, wire,
};
use crate::ledger::{Ledger, MemoryLedger};
use crate::log::memory::MemoryLog;
use crate::log::{Append, Clock, Elapsed, Log, Record, Retention, TopicPartition, TopicSpec};
use crate::providers::Provider;
use crate::providers::paced::Paced;
use crate::render::{Content, InApp};
use crate::retry::Schedule;

/// What outlives a process.
pub(super) struct World {
    pub(super) log: MemoryLog,
    pub(super) ledger: Arc<MemoryLedger>,
    pub(super) directory: Arc<MemoryDirectory>,
    pub(super) provider: Arc<Scripted>,
    pub(super) clock: Clock,
    pub(super) elapsed: Elapsed,
    /// How much that clock is ahead of the right one.
    pub(super) ahead_ms: Arc<AtomicI64>,
    /// How many times faster than tokio's time it runs.
    speed: u32,
    pub(super) topics: Topics,
    channel: Channel,
    pub(super) rate: Option<Rate>,
    pub(super) cap: Option<Rate>,
}

impl World {
    pub(super) async fn new(channel: Channel) -> Self {
        Self::of(channel, 1, 1).await
    }

    pub(super) async fn of(channel: Channel, partitions: u32, speed: u32) -> Self {
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

    pub(super) async fn device(&self, user: &str, id: &str) -> Address {
        let token = format!("token-{id}");
        let address = Address { platform: Some("ios".into()), ..Address::live(user, id, self.channel, &token) };
        let listed = Some(Box::new(Listed { address: address.clone(), partition: 0 }));
        let change = Change::Address { user: user.into(), address_id: id.into(), listed };
        self.directory.apply(&[change], &[]).await.unwrap();
        address
    }

    /// The address is not live any more.
    pub(super) async fn strike(&self, address: Address) {
        let (user, address_id) = (address.user_id.clone(), address.address_id.clone());
        let address = Address { status: AddressStatus::Invalid, ..address };
        let listed = Some(Box::new(Listed { address, partition: 0 }));
        self.directory.apply(&[Change::Address { user, address_id, listed }], &[]).await.unwrap();
    }

    pub(super) async fn profile(&self, user: &str, json: &str) {
        let profile = Some(Box::new(Profile::from_json(Some(json.as_bytes())).unwrap()));
        self.directory.apply(&[Change::Profile { user: user.into(), profile }], &[]).await.unwrap();
    }

    pub(super) fn leg(&self, user: &str, priority: Priority) -> LaneRecord {
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

    pub(super) fn lane(&self, priority: Priority) -> TopicPartition {
        TopicPartition { topic: self.topics.lane(self.channel, priority).into(), partition: 0 }
    }

    pub(super) fn say(&self, record: &LaneRecord, epoch: Option<u64>) {
        let epoch = epoch.map(|epoch| (1, epoch, &b"o"[..]));
        let topic = self.lane(record.priority).topic;
        let to = wire::place(&topic, &record.user, u32::try_from(self.partitions_of(&topic).len()).unwrap());
        self.log.append(&[wire::leg(to, record, epoch)]).unwrap();
    }

    /// What stands in `topic` stands there once more.
    pub(super) fn again(&self, topic: &str) {
        let to = self.partitions_of(topic).remove(0);
        let append = |Record { key, value, headers, .. }| Append { to: to.clone(), key, value, headers };
        let records: Vec<_> = self.records(topic).into_iter().map(append).collect();
        self.log.append(&records).unwrap();
    }

    pub(super) fn mark(&self, priority: Priority, said_through: u64) {
        self.log.append(&[wire::mark(self.lane(priority), Mark { g: 1, said_through })]).unwrap();
    }

    pub(super) async fn start(&self, lines: &[Line], crash: Arc<Crash>, name: &str, limits: Limits) -> Process {
        let ledger = Arc::new(CrashingLedger(self.ledger.clone(), crash.clone()));
        self.run(ledger, lines, crash, name, limits).await
    }

    pub(super) async fn start_with(&self, ledger: Arc<dyn Ledger>, lines: &[Line]) -> Process {
        self.run(ledger, lines, Crash::never(), "p", limits()).await
    }

    pub(super) async fn run(
        &self,
        ledger: Arc<dyn Ledger>,
        lines: &[Line],
        crash: Arc<Crash>,
        name: &str,
        limits: Limits,
    ) -> Process {
        let provider: Arc<dyn Provider> =
            Arc::new(ScriptedLine { provider: self.provider.clone(), channel: self.channel, crash: crash.clone() });
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
    pub(super) async fn kill(&self, mut process: Process) {
        process.crash.dead.store(true, Ordering::SeqCst);
        for line in Line::all() {
            self.log.evict(&line.group(&Topics::default(), self.channel));
        }
        process.tasks.shutdown().await;
    }

    pub(super) fn records(&self, topic: &str) -> Vec<Record> {
        let read = |it: TopicPartition| self.log.reader(&it, 0).unwrap().poll(100_000, Duration::ZERO).unwrap().records;
        self.partitions_of(topic).into_iter().flat_map(read).collect()
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        let blocks = self.records(&self.topics.lifecycle());
        let rows =
            |record: &Record| Block::decode_header(record.value.as_ref().unwrap()).unwrap().decode_rows().unwrap();
        blocks.iter().flat_map(rows).collect()
    }

    /// States and reason of each distinct row about `user`, in order.
    pub(super) fn said(&self, user: &str) -> Vec<String> {
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
    pub(super) fn created(&self, user: &str) -> BTreeSet<Instant> {
        self.rows().into_iter().filter(|row| row.user == user).map(|row| row.created_at).collect()
    }

    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, topic: &str) -> Vec<T> {
        self.records(topic).iter().map(|it| serde_json::from_slice(it.value.as_ref().unwrap()).unwrap()).collect()
    }

    pub(super) fn partitions_of(&self, topic: &str) -> Vec<TopicPartition> {
        let count = self.log.describe(&[topic.to_owned()]).unwrap()[0].partitions;
        (0..count).map(|partition| TopicPartition { topic: topic.into(), partition }).collect()
    }

    /// Everything read and settled, in lanes and retry topics.
    pub(super) fn is_done(&self, lines: &[Line]) -> bool {
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

    pub(super) async fn done(&self, lines: &[Line]) {
        self.until(|| self.is_done(lines)).await;
    }

    /// Lets (virtual) time pass until `condition` holds.
    pub(super) async fn until(&self, condition: impl Fn() -> bool) {
        for _ in 0..200_000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it never came; rows: {:#?}", self.rows());
    }
}

pub(super) struct Process {
    pub(super) deliverer: Arc<Deliverer>,
    tasks: JoinSet<Result<(), LaneError>>,
    stop: CancellationToken,
    pub(super) metrics: Vec<Arc<LaneMetrics>>,
    pub(super) crash: Arc<Crash>,
}

impl Process {
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
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
