//! One process: the stages that it runs, from a checked topology to running threads and tasks, and
//! back to a clean end.
//!
//! # Cast
//! *Decide* and *critical* are threads ([`crate::runtime`]); *deliver* is tasks, one reader per lane, those
//! of critical lanes on threads of their own (`deliver.rs`); *record* is a thread. A *tail* follows what they say into the console. They meet only through the
//! log, so that any of them can stop, crash or run elsewhere.
//!
//! # Invariants
//! - A stage that ends by itself ends the process: whoever supervises it starts it again.
//! - A stage in which somebody stands still ends the process as well (`watchdog.rs`).
//! - Where decide is shared by several processes ([`crate::runtime::cluster`]), process 0 runs whatever stages it is
//!   told to, and the others nothing but their workers.
//! - Stop reaches the stages in the order in which work flows: sources first, the record last, so
//!   that what was decided is delivered and recorded as far as it goes within the bound.

mod deliver;
mod give_way;
mod instance;
mod providers;
mod tail;
mod templates;
mod watchdog;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tidings_operators::calendar::Calendar;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::event::Event;
use tidings_schemas::ids::{EventId, lane_partition};
use tidings_schemas::topics::Topics;
use tidings_sinks::lane::LaneMetrics;
use tidings_sinks::log::{Append, Clock as SinkClock, Elapsed, Log, TopicPartition};
use tidings_sinks::record::clickhouse::ClickHouse;
use tidings_sinks::record::files::Files;
use tidings_sinks::record::writer::{RecordCounts, RecordParams, RecordWriter, run_all};
use tidings_sinks::tasks::Tasks;
use tokio_util::sync::CancellationToken;

use self::deliver::CriticalRuntime;
pub use self::give_way::give_way;
use self::instance::{Named, named};
use self::watchdog::Watching;
use crate::assemble::{self, RunSettings};
use crate::checkpoint::Checkpoints;
use crate::console::{Console, Emit, Health, Inbox, Parts as ConsoleParts};
use crate::runtime::clock::{Clock, SystemClock};
use crate::runtime::cluster::{self, Head, Share};
use crate::runtime::coordinator::{self, Status, Surroundings};
use crate::runtime::critical::{Critical, CriticalPlan, CriticalStatus, CriticalSurroundings};
use crate::runtime::crumbs::Crumbs;
use crate::runtime::plan::Plan;
use crate::sources::file::FileFeeder;
use crate::topology::{Config, Log as LogPlace, Place, Record as RecordPlace};

pub use templates::TemplateStatus;

/// How long an append of outputs may wait for company. Kafka sends a batch sooner when it is full.
const LINGER: Duration = Duration::from_millis(2);

/// How long calls of Kafka wait for the brokers: longer than an election of a leader takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a stop waits for calls under way. Providers answer within a second, as a rule; a supervisor waits for
/// half a minute. Beyond it the outcome of a call is unknown.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// How long a stop waits for the record to have what was said: long enough for one that keeps up. What it
/// has not is in the log.
const RECORD_MAX: Duration = Duration::from_secs(2);

/// How long delivering and recording what was decided may take where that is asked for.
const FINISH_MAX: Duration = Duration::from_secs(20);

/// What a process runs, and how.
pub struct Settings {
    /// Stages; all of them if empty.
    pub stages: Vec<Stage>,
    /// How decide runs. Its workers are those of all processes.
    pub run: RunSettings,
    /// This process's share of decide, where several have one.
    pub cluster: Option<Cluster>,
    /// What this process is called in its groups, if it is not the machine's name and a number.
    pub instance: Option<String>,
    /// Where the console and the control API listen; none serves neither.
    pub admin: Option<SocketAddr>,
    /// What time it is, for decisions and deliveries.
    pub clock: Arc<dyn Clock>,
    /// How many times faster than the wall it runs.
    pub speed: u32,
    /// What time it is, for credentials.
    pub wall: SinkClock,
    /// The topology's folder: relative paths start here.
    pub folder: PathBuf,
    /// A certificate (PEM) to trust beside the system's.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// What people received, for the console.
    pub inbox: Arc<dyn Inbox>,
    /// The picture of the topology.
    pub graph_svg: String,
    /// Creates missing topics: development and demo.
    pub create_topics: bool,
    /// Goes on although another build decided what is to be replayed.
    pub accept_divergence: bool,
    /// Operators that the topology has no longer, whose state may be dropped: what they hold is lost.
    pub may_drop: BTreeSet<String>,
    /// How long somebody in decide may make no step before the process is ended.
    pub still_max: Duration,
    /// Whether a supervisor listens on stdout for signs of life.
    pub supervised: bool,
}

/// How a process finds the others.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Which one it is, and where they are.
    pub share: Share,
    /// Where this one listens: `address:port`.
    pub bind: String,
}

/// A stage of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// The dataflow.
    Decide,
    /// The critical path.
    Critical,
    /// The lanes.
    Deliver,
    /// The record.
    Record,
}

/// Where the stages stand.
#[derive(Clone, Default)]
pub struct Standing {
    /// Decide.
    pub decide: Arc<Status>,
    /// The critical path.
    pub critical: Arc<CriticalStatus>,
    /// Deliver, by channel and line.
    pub lanes: Arc<std::sync::Mutex<BTreeMap<String, Arc<LaneMetrics>>>>,
    /// Templates.
    pub templates: Arc<TemplateStatus>,
    /// Rows written.
    pub record: Arc<RecordCounts>,
    /// Whether decide runs here.
    decides: bool,
}

/// A running process.
pub struct Process {
    /// Where the stages stand.
    pub standing: Standing,
    /// The console.
    pub console: Console,
    /// Where it listens.
    pub admin: Option<SocketAddr>,
    /// The log that it works on.
    pub log: Arc<dyn Log>,
    /// Takes events in.
    pub emit: Arc<Emitter>,
    stop: Arc<AtomicBool>,
    threads: Vec<(&'static str, JoinHandle<anyhow::Result<()>>)>,
    critical: Option<Critical>,
    tasks: Tasks,
    record_stop: CancellationToken,
    watch_stop: Arc<AtomicBool>,
    /// Its name is its own as long as this is there.
    _named: Named,
    /// Last: what runs on it has ended by then.
    critical_runtime: CriticalRuntime,
}

impl Process {
    /// Starts the stages.
    ///
    /// # Errors
    /// When something that the topology names cannot be used: the message says what and why.
    pub async fn start(config: &Config, settings: Settings) -> anyhow::Result<Self> {
        let standing = Standing { decides: decides(&settings), ..Standing::default() };
        let mut threads = Vec::new();
        let watch_stop = Arc::new(AtomicBool::new(false));
        let watching = Watching {
            pulses: standing.decide.pulses.clone(),
            limit: settings.still_max,
            clock: Arc::new(SystemClock::default()),
            stop: Arc::clone(&watch_stop),
            supervised: settings.supervised,
        };
        // First of all: whoever supervises hears from it while the start waits for services.
        threads.push(("watchdog", spawn("watchdog", move || watching.run())?));
        let deployment = &config.deployment;
        let runs = |stage| settings.stages.is_empty() || settings.stages.contains(&stage);
        let stamp = Arc::clone(&settings.clock);
        let clock: SinkClock = Arc::new(move || stamp.wall());
        let topics = config.topology.topics();
        let named = match &deployment.log {
            LogPlace::Kafka { .. } => {
                named(settings.instance.as_deref(), &topics.group("process"), &std::env::temp_dir())
            }
            // It has one owner, which holds its lock.
            LogPlace::Embedded { .. } => Named::default(),
        };
        let log = open(deployment.log.clone(), &named, LINGER, Arc::clone(&clock)).await?;
        let created = (settings.create_topics, Arc::clone(&log), assemble::topics(config), config.clone());
        let partitions = blocking(move || {
            let (create, log, topics, config) = created;
            if create {
                log.create(&topics).context("topics cannot be created")?;
            }
            assemble::check_topics(&*log, &config)?;
            Ok(assemble::partitions(&*log, &config)?)
        })
        .await?;
        let calendar = Calendar::bundled();
        let (plan, assembly) = assemble::plan(config, calendar, partitions.clone(), &settings.run)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Tasks::default();

        let emit = Arc::new(Emitter {
            log: Arc::clone(&log),
            topics: topics.clone(),
            partitions: partitions.clone(),
            sources: config
                .topology
                .sources
                .iter()
                .map(|source| (assemble::topic_of(&config.topology, source), source.name.clone()))
                .collect(),
            rules: Arc::clone(&assembly.rules),
        });
        let record = deployment.record.clone();
        let instant = Arc::clone(&settings.clock);
        let console = Console::new(ConsoleParts {
            emit: Arc::clone(&emit) as Arc<dyn Emit>,
            inbox: Arc::clone(&settings.inbox),
            health: Arc::new(standing.clone()),
            clock: Arc::new(move || instant.wall()),
            speed: settings.speed,
            type_channels: type_channels(config),
            graph_svg: settings.graph_svg.clone(),
            older: Some(crate::explain::record::older(&record)),
        });
        let tail = tail::Tail::open(&log, config, &partitions, console.clone())?;
        let tail_stop = Arc::clone(&stop);
        threads.push(("tail", spawn("tail", move || tail.run(&tail_stop))?));

        let record_stop = CancellationToken::new();
        if runs(Stage::Record) {
            let writer_stop = record_stop.clone();
            let (log, clock) = (Arc::clone(&log), Arc::clone(&settings.clock));
            let elapsed: Elapsed = Arc::new(move || clock.elapsed());
            let params = record_params(&topics);
            let counts = Arc::clone(&standing.record);
            let run = move || -> anyhow::Result<()> {
                match record {
                    RecordPlace::Files(folder) => {
                        let writer = RecordWriter::new(log, Files::new(folder), params, elapsed);
                        Ok(writer.counting(counts).run(&writer_stop)?)
                    }
                    RecordPlace::ClickHouse(server) => {
                        migrate(&ClickHouse::new(server.get())?, &writer_stop);
                        let writer = || {
                            let store = ClickHouse::new(server.get())?;
                            let writer =
                                RecordWriter::new(Arc::clone(&log), store, params.clone(), Arc::clone(&elapsed));
                            Ok(writer.counting(Arc::clone(&counts)))
                        };
                        let writers = (0..RECORD_WRITERS).map(|_| writer()).collect::<anyhow::Result<_>>()?;
                        Ok(run_all(writers, &writer_stop)?)
                    }
                }
            };
            threads.push(("record", spawn("record", run)?));
        }
        let critical_runtime = CriticalRuntime::start()?;
        if runs(Stage::Deliver) {
            let (settings, topics, log, named) = (&settings, &topics, &log, &named);
            let (clock, standing) = (&clock, &standing);
            let start = deliver::Start { config, settings, topics, log, named, clock, standing };
            start.run(&critical_runtime, &mut tasks).await?;
        }
        let mut critical = None;
        if runs(Stage::Critical)
            && let Some(half) = &assembly.critical
        {
            let own = critical_runtime.log(&log, &deployment.log, &named, LINGER, &clock).await?;
            let lanes = critical_runtime.log(&log, &deployment.log, &named, Duration::ZERO, &clock).await?;
            let plan = CriticalPlan {
                wiring: half.wiring.clone(),
                sources: half.sources.clone(),
                rules: Arc::clone(&assembly.rules),
                outlets: plan.outlets.clone(),
                members: 1,
            };
            let around = CriticalSurroundings {
                log: own,
                lanes,
                clock: Arc::clone(&settings.clock),
                stop: Arc::clone(&stop),
                status: Arc::clone(&standing.critical),
                observer: None,
            };
            critical = Some(Critical::start(plan, around)?);
        }
        if runs(Stage::Decide) {
            let standing = (&standing.decide, &stop, &log);
            let run = decide(config, &settings, plan, standing, &mut threads)?;
            threads.push(("decide", spawn("decide", run)?));
        }
        let admin = serve(&console, settings.admin, &mut tasks).await?;
        Ok(Self {
            _named: named,
            standing,
            console,
            admin,
            log,
            emit,
            stop,
            threads,
            critical,
            tasks,
            record_stop,
            watch_stop,
            critical_runtime,
        })
    }

    /// Waits until a stage ends by itself; says which, and why.
    pub async fn ended(&mut self) -> anyhow::Error {
        let mut look = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                ended = self.tasks.ended() => match ended {
                    Some(ended) => {
                        let why = ended.error.unwrap_or_else(|| "it ended by itself".to_owned());
                        return anyhow!("{}: {why}", ended.name);
                    }
                    None => std::future::pending().await,
                },
                _ = look.tick() => {
                    if let Some(place) = self.threads.iter().position(|(_, thread)| thread.is_finished()) {
                        let (name, thread) = self.threads.swap_remove(place);
                        match thread.join() {
                            Ok(Ok(())) if name == "feed" => {}
                            Ok(Ok(())) => return anyhow!("{name}: it ended by itself"),
                            Ok(Err(error)) => return error.context(name),
                            Err(_) => return anyhow!("{name}: it panicked"),
                        }
                    }
                    if let Some(critical) = self.critical.take_if(|critical| critical.is_finished()) {
                        let ended = blocking(move || Ok(critical.join()?)).await;
                        return ended.err().unwrap_or_else(|| anyhow!("critical: it ended by itself"));
                    }
                }
            }
        }
    }

    /// Stops in the order in which work flows: nothing is decided any more, then nothing is sent, then nothing is
    /// recorded. It takes what calls under way need: what waits in a lane or for a date is read again by the
    /// next owner.
    ///
    /// # Errors
    /// When a stage ended with an error.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.end(Duration::ZERO).await
    }

    /// Stops as [`Process::stop`] does, but first delivers and records what was decided, within a bound:
    /// for a process whose log goes with it.
    ///
    /// # Errors
    /// When a stage ended with an error.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.end(FINISH_MAX).await
    }

    async fn end(self, finish: Duration) -> anyhow::Result<()> {
        let Self {
            stop, threads, critical, tasks, record_stop, watch_stop, log, standing, emit, critical_runtime, ..
        } = self;
        stop.store(true, Ordering::Relaxed);
        let (watchdog, threads): (Vec<_>, Vec<_>) = threads.into_iter().partition(|(name, _)| *name == "watchdog");
        let (record, others): (Vec<_>, Vec<_>) = threads.into_iter().partition(|(name, _)| *name == "record");
        let deciding = blocking(move || {
            if let Some(critical) = critical {
                critical.join()?;
            }
            join(others)
        });
        let decided = deciding.await;
        tracing::info!("nothing is decided any more");
        if !finish.is_zero() {
            let left = wait_for(finish, || lanes_unread(&*log, &standing)).await;
            tracing::info!(?left, "the lanes are read");
        }
        let (failed, in_time) = tasks.stop(DRAIN_MAX).await;
        drop(critical_runtime);
        tracing::info!(in_time, "deliveries have ended");
        if !record.is_empty() {
            let left = wait_for(finish.max(RECORD_MAX), || record_unread(&*log, &emit)).await;
            tracing::info!(?left, "the record is read");
        }
        record_stop.cancel();
        let recorded = blocking(move || join(record)).await;
        watch_stop.store(true, Ordering::Relaxed);
        let watched = blocking(move || join(watchdog)).await;
        decided?;
        recorded?;
        watched?;
        match failed.into_iter().next() {
            Some(ended) => Err(anyhow!("{}: {}", ended.name, ended.error.unwrap_or_default())),
            None => Ok(()),
        }
    }
}

/// Decide, as a thread runs it: all of it, or one process's share.
fn decide(
    config: &Config,
    settings: &Settings,
    plan: Plan,
    (status, stop, log): (&Arc<Status>, &Arc<AtomicBool>, &Arc<dyn Log>),
    threads: &mut Vec<(&'static str, JoinHandle<anyhow::Result<()>>)>,
) -> anyhow::Result<Box<dyn FnOnce() -> anyhow::Result<()> + Send>> {
    let (log, clock) = (Arc::clone(log), Arc::clone(&settings.clock));
    let (stop, status) = (Arc::clone(stop), Arc::clone(status));
    let listen = |bind: &String| {
        let listener = TcpListener::bind(bind);
        listener.with_context(|| format!("other processes cannot be heard on {bind}; name another address with --bind"))
    };
    let head = match &settings.cluster {
        Some(Cluster { share, bind }) if share.process > 0 => {
            let (share, listener) = (share.clone(), listen(bind)?);
            let around = cluster::Around { log, clock, stop, status };
            return Ok(Box::new(move || Ok(cluster::serve(&share, &plan, &around, listener)?)));
        }
        Some(Cluster { share, bind }) => Some((share.clone(), listen(bind)?)),
        None => None,
    };
    feed_files(config, &settings.folder, &log, &stop, threads)?;
    let folder = settings.folder.join(&config.deployment.checkpoints.to);
    let older = {
        let (run, log) = (settings.run.clone(), Arc::clone(&log));
        move |bytes: &[u8], calendar| assemble::older(bytes, calendar, &*log, &run).map_err(|error| error.to_string())
    };
    let checkpoints = Checkpoints::in_folder(&folder);
    let around = Surroundings {
        crumbs: Some(Crumbs::in_folder(&folder)),
        log,
        checkpoints: checkpoints.map_err(|problem| anyhow!(problem))?,
        clock,
        stop,
        status,
        observer: None,
        older: Arc::new(older),
        accept_divergence: settings.accept_divergence,
        may_drop: settings.may_drop.clone(),
    };
    Ok(match head {
        None => Box::new(move || Ok(coordinator::run(&plan, &around)?)),
        // In decide's own thread, so that those that it starts give way as it does.
        Some((share, listener)) => Box::new(move || {
            let head = Head::open(share, &plan, listener)?;
            Ok(coordinator::run_on(&plan, &around, || head.crew())?)
        }),
    })
}

/// Whether decide is among the stages that are run.
fn decides(settings: &Settings) -> bool {
    settings.stages.is_empty() || settings.stages.contains(&Stage::Decide)
}

/// Asks until nothing is left, at most so long; what is left then.
async fn wait_for(at_most: Duration, mut left: impl FnMut() -> Vec<String>) -> Vec<String> {
    let mut look = tokio::time::interval(Duration::from_millis(50));
    let mut newest = Vec::new();
    let all = async {
        loop {
            newest = left();
            if newest.is_empty() {
                return;
            }
            look.tick().await;
        }
    };
    let _ = tokio::time::timeout(at_most, all).await;
    newest
}

/// Of the lanes that are read here, what is not settled.
fn lanes_unread(log: &dyn Log, standing: &Standing) -> Vec<String> {
    let Ok(lanes) = standing.lanes.lock() else { return Vec::new() };
    let lanes = lanes.iter().filter(|(group, _)| !group.contains("retry"));
    let unread = |(partition, reached): (TopicPartition, tidings_sinks::lane::Reached)| {
        let end = log.range(&partition).map_or(0, |range| range.end);
        let is_read = reached.open == 0 && reached.position >= end;
        (!is_read).then(|| format!("{partition}: read to {} of {end}, {} open", reached.position, reached.open))
    };
    lanes.flat_map(|(_, lane)| lane.reached()).filter_map(unread).collect()
}

/// Of what was said, what the record does not have.
fn record_unread(log: &dyn Log, emit: &Emitter) -> Vec<String> {
    let RecordParams { topic, group, .. } = record_params(&emit.topics);
    let count = emit.partitions.get(&topic).copied().unwrap_or(1);
    let unread = |partition| {
        let at = TopicPartition { topic: topic.as_str().into(), partition };
        let end = log.range(&at).map_or(0, |range| range.end);
        let committed = log.committed(&group, &at).ok().flatten().map_or(0, |commit| commit.offset);
        (committed < end).then(|| format!("{at}: recorded to {committed} of {end}"))
    };
    (0..count).filter_map(unread).collect()
}

/// How the record of one installation is written.
/// Writers of the record into ClickHouse, which reads the rows of one insert on one thread.
pub const RECORD_WRITERS: usize = 2;

fn record_params(topics: &Topics) -> RecordParams {
    RecordParams { group: topics.group("record"), ..RecordParams::new(&topics.lifecycle(), &topics.dlq()) }
}

/// Channels of the types that name their own, for stories.
pub fn type_channels(config: &Config) -> BTreeMap<String, Vec<Channel>> {
    let named =
        config.policies.types.iter().filter_map(|(name, policy)| Some((name.clone(), policy.channels.clone()?)));
    named.collect()
}

fn join(threads: Vec<(&'static str, JoinHandle<anyhow::Result<()>>)>) -> anyhow::Result<()> {
    let mut first = Ok(());
    for (name, thread) in threads {
        let ended = thread.join().unwrap_or_else(|_| Err(anyhow!("it panicked"))).context(name);
        first = first.and(ended);
    }
    first
}

fn spawn(
    name: &'static str,
    body: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let body = move || {
        give_way();
        body()
    };
    Ok(std::thread::Builder::new().name(name.to_owned()).spawn(body)?)
}

/// Runs what blocks beside the tasks.
async fn blocking<T: Send + 'static>(body: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(body).await?
}

async fn open(place: LogPlace, named: &Named, linger: Duration, clock: SinkClock) -> anyhow::Result<Arc<dyn Log>> {
    let instance = named.instance.clone();
    blocking(move || Ok(assemble::open_log(&place, instance, linger, PATIENCE, clock)?)).await
}

/// Brings ClickHouse's schema up to date; while it is away the log keeps the rows.
fn migrate(store: &ClickHouse, stop: &CancellationToken) {
    let mut pause = Duration::from_millis(200);
    while !stop.is_cancelled() {
        match store.migrate() {
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "ClickHouse's schema cannot be brought up to date; the log keeps the rows");
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        }
    }
}

/// Sources that are files or standard input are fed into topics of their own.
fn feed_files(
    config: &Config,
    folder: &Path,
    log: &Arc<dyn Log>,
    stop: &Arc<AtomicBool>,
    threads: &mut Vec<(&'static str, JoinHandle<anyhow::Result<()>>)>,
) -> anyhow::Result<()> {
    for source in &config.topology.sources {
        let topic = assemble::topic_of(&config.topology, source);
        let mut feeder = match &source.place {
            Place::Topic(_) => continue,
            Place::File(path) => FileFeeder::open(Arc::clone(log), &topic, &folder.join(path))?,
            Place::Stdin => {
                let stream = Box::new(std::io::BufReader::new(std::io::stdin()));
                FileFeeder::of_stream(Arc::clone(log), &topic, &format!("stdin-{}", std::process::id()), stream)?
            }
        };
        let stop = Arc::clone(stop);
        let run = move || {
            let wait = || {
                std::thread::sleep(Duration::from_millis(100));
                !stop.load(Ordering::Relaxed)
            };
            feeder.run(wait)?;
            Ok(())
        };
        threads.push(("feed", spawn("feed", run)?));
    }
    Ok(())
}

async fn serve(console: &Console, admin: Option<SocketAddr>, tasks: &mut Tasks) -> anyhow::Result<Option<SocketAddr>> {
    let Some(address) = admin else { return Ok(None) };
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("the console cannot listen on {address}; name another address with --admin"))?;
    let bound = listener.local_addr()?;
    let (console, stopping) = (console.clone(), tasks.stopping());
    tasks.spawn("console", async move { console.serve(listener, stopping).await });
    Ok(Some(bound))
}

/// Appends events to the topic of their priority, as a producer would.
pub struct Emitter {
    log: Arc<dyn Log>,
    topics: Topics,
    partitions: BTreeMap<String, u32>,
    /// Source ids by topic: an event id names its source.
    sources: BTreeMap<String, String>,
    rules: Arc<tidings_operators::rules::Rules>,
}

impl Emitter {
    /// Where an event of `priority` for `user` goes.
    #[must_use]
    pub fn place(&self, priority: Priority, user: &str) -> TopicPartition {
        let topic = self.topics.events(priority);
        let count = self.partitions.get(&topic).copied().unwrap_or(1);
        TopicPartition { partition: lane_partition(user, count), topic: topic.into() }
    }

    /// Appends a record to a topic, keyed by `key`; blocks.
    ///
    /// # Errors
    /// When the log does not take it.
    pub fn append(&self, topic: &str, key: &str, value: Option<Vec<u8>>) -> Result<(TopicPartition, u64), String> {
        let count = self.partitions.get(topic).copied().unwrap_or(1);
        let user = key.split_once('/').map_or(key, |(user, _)| user);
        let to = TopicPartition { topic: topic.into(), partition: lane_partition(user, count) };
        let key = Some(Bytes::copy_from_slice(key.as_bytes()));
        let append = Append { to: to.clone(), key, value: value.map(Bytes::from), headers: Vec::new() };
        let offsets = self.log.append(&[append]).map_err(|error| error.to_string())?;
        Ok((to, offsets.first().copied().unwrap_or_default()))
    }

    /// The topic of the events of `priority`.
    #[must_use]
    pub fn events(&self, priority: Priority) -> String {
        self.topics.events(priority)
    }

    /// The topics' names.
    #[must_use]
    pub const fn topics(&self) -> &Topics {
        &self.topics
    }

    /// The event that stands at `offset` of `at`.
    #[must_use]
    pub fn event_at(&self, at: &TopicPartition, offset: u64) -> EventId {
        let source = self.sources.get(&*at.topic).map_or(&*at.topic, String::as_str);
        EventId::new(source, at.partition, offset)
    }
}

impl Emit for Emitter {
    fn emit(&self, event: Vec<u8>) -> BoxFuture<'_, Result<EventId, String>> {
        Box::pin(async move {
            let parsed = Event::from_json(&event, false).map_err(|error| error.to_string())?;
            let rule = self.rules.of_type(&parsed.event_type);
            let asked = parsed.priority.filter(|asked| *asked > rule.priority || rule.may_raise);
            let to = self.place(asked.unwrap_or(rule.priority), &parsed.user_id);
            let key = Some(Bytes::from(parsed.user_id.into_bytes()));
            let append = Append { to: to.clone(), key, value: Some(event.into()), headers: Vec::new() };
            let log = Arc::clone(&self.log);
            let appended = tokio::task::spawn_blocking(move || log.append(&[append])).await;
            let offsets = appended.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            Ok(self.event_at(&to, offsets.first().copied().unwrap_or_default()))
        })
    }
}

impl Health for Standing {
    fn not_ready(&self) -> Option<String> {
        if !self.decides || self.decide.ready.load(Ordering::Relaxed) {
            return None;
        }
        let waits = self.decide.waits.lock().map(|waits| waits.clone()).unwrap_or_default();
        Some(if waits.is_empty() {
            "preferences are not loaded to their high watermark yet".to_owned()
        } else {
            format!("decide {waits}")
        })
    }

    fn metrics(&self) -> String {
        metrics(self)
    }
}

/// Metrics in Prometheus' text format: base units, `_total` for counters, no user labels.
fn metrics(standing: &Standing) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut put = |name: &str, kind: &str, help: &str, labels: &str, value: u64| {
        if !text.contains(&format!("# TYPE {name} ")) {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        let _ = writeln!(text, "{name}{labels} {value}");
    };
    let of = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
    let decide = &standing.decide;
    put("tidings_epoch", "gauge", "The last epoch that was cut.", "", of(&decide.epoch));
    put("tidings_said_through_epoch", "gauge", "Everything up to this epoch was said.", "", of(&decide.said_through));
    put("tidings_checkpoint_epoch", "gauge", "The newest checkpoint that counts.", "", of(&decide.checkpoint));
    put("tidings_replayed_epochs_total", "counter", "Epochs replayed since the start.", "", of(&decide.replayed));
    put("tidings_source_records_total", "counter", "Source records cut since the start.", "", of(&decide.records));
    let failures = of(&decide.checkpoint_failures);
    put("tidings_checkpoint_failures_total", "counter", "Checkpoints that could not be written.", "", failures);
    put("tidings_state_keys", "gauge", "Users and keys of users with state, of all operators.", "", of(&decide.keys));
    for (bound, waits) in [("unsaid", &decide.unsaid_waits), ("unkept", &decide.unkept_waits)] {
        let labels = format!("{{bound=\"{bound}\"}}");
        let help = "Times that no epoch was cut because too much waited to be written.";
        put("tidings_cut_waits_total", "counter", help, &labels, of(waits));
    }
    let set_aside = of(&decide.set_aside);
    put("tidings_set_aside_total", "counter", "Calls that killed their operator and are left out.", "", set_aside);
    let generations = of(&decide.generations);
    put("tidings_generations_total", "counter", "Generations of decide since the start.", "", generations);
    let critical = &standing.critical;
    put("tidings_critical_records_total", "counter", "Records of the critical path.", "", of(&critical.handled));
    let templates = &standing.templates;
    put("tidings_template_reloads_total", "counter", "Changed templates taken into use.", "", of(&templates.reloads));
    put("tidings_template_problems", "gauge", "What keeps templates unused.", "", of(&templates.problems));
    let Ok(lanes) = standing.lanes.lock() else { return text };
    for (group, lane) in lanes.iter() {
        let labels = format!("{{group=\"{group}\"}}");
        put("tidings_lane_in_flight", "gauge", "Lane records in flight.", &labels, of(&lane.in_flight));
    }
    for (group, lane) in lanes.iter() {
        let labels = format!("{{group=\"{group}\"}}");
        let help = "Waits for a token of a provider's rate or a channel's cap.";
        put("tidings_delivery_paced_total", "counter", help, &labels, of(&lane.paced));
    }
    for (group, lane) in lanes.iter() {
        for (status, value) in [("success", &lane.delivered), ("failed", &lane.failed)] {
            let labels = format!("{{group=\"{group}\",status=\"{status}\"}}");
            let help = "Deliveries that ended, by how.";
            put("tidings_delivery_total", "counter", help, &labels, of(value));
        }
    }
    for (group, lane) in lanes.iter() {
        let labels = format!("{{group=\"{group}\"}}");
        put("tidings_delivery_retries_total", "counter", "Attempts that are repeated.", &labels, of(&lane.retries));
    }
    for (group, lane) in lanes.iter() {
        let labels = format!("{{group=\"{group}\"}}");
        put(
            "tidings_delivery_unknown_total",
            "counter",
            "Attempts whose end is not known.",
            &labels,
            of(&lane.unknown),
        );
    }
    for (group, lane) in lanes.iter() {
        let labels = format!("{{group=\"{group}\"}}");
        put("tidings_dead_letters_total", "counter", "Deliveries given up.", &labels, of(&lane.dead_lettered));
    }
    text
}
