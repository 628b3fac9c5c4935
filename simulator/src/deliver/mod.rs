//! The deliver stage: production's lane readers, deliverers, ledger protocol, retry and dead-letter topics,
//! over the simulated log and what [`outside`] of them fails.
//!
//! Each process has a tokio runtime of its own, on this thread, whose clock is the world's: time passes in it
//! only where it is stepped, and a process that is not stepped is frozen, timers and all. A dead one is
//! dropped at whatever point each of its tasks had reached.

pub mod outside;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidings_operators::script;
use tidings_schemas::channel::Channel;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::topics::Topics;
use tidings_sinks::lane::{
    Choice, Deliverer, LaneError, LaneMetrics, LaneReader, Limits, Line, Parts, Render, Unrendered,
};
use tidings_sinks::log::{Log, TopicPartition};
use tidings_sinks::render::{Content, InApp};
use tidings_sinks::retry::Schedule;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::checks::Broken;
use crate::log::{Life, ProcessLog, World};
use crate::options::Options;
use outside::{Caller, Outside, ProcessDirectory, ProcessLedger, ProcessProvider};

/// The channels that have a provider.
pub const CHANNELS: [Channel; 4] = [Channel::Push, Channel::Email, Channel::Sms, Channel::InApp];

/// Processes of this stage are numbered from here.
const FIRST: u64 = 1_000;

/// Most rounds of a step that takes no time: each lets one task go on.
const ROUNDS_MAX: u64 = 30;

/// A process that was not stepped for longer stood still.
const LATE: Duration = Duration::from_millis(300);

/// About so many steps a process goes on that another one was started for.
const ZOMBIE_STEPS: u64 = 60;

struct Plain;

impl Render for Plain {
    fn render(&self, leg: &LaneRecord) -> Result<Content, Unrendered> {
        Ok(match leg.channel {
            Channel::InApp => Content::InApp(InApp::default()),
            _ => Content::Push(Box::default()),
        })
    }
}

type Ended = Result<(), LaneError>;

struct Process {
    caller: Arc<Caller>,
    tasks: JoinSet<Ended>,
    runtime: tokio::runtime::Runtime,
    /// How far its clock is.
    stands: Duration,
    /// It had something to do when it stopped there.
    open: bool,
    /// It stands still until then.
    frozen_until: Duration,
    /// Another one was started in its place.
    replaced: bool,
}

impl Process {
    fn life(&self) -> &Arc<Life> {
        &self.caller.life
    }
}

/// The stage.
pub struct Deliver {
    /// What its processes stand on.
    pub outside: Arc<Outside>,
    world: Arc<World>,
    limits: Limits,
    batch_max: usize,
    alive_max: usize,
    /// Groups with the partitions that they read.
    lines: Vec<(String, Vec<TopicPartition>)>,
    processes: Vec<Process>,
    born: u64,
    start_at: Duration,
    /// Whether anything is left to be read, and as of which change of the world.
    open: (u64, bool),
    healed: bool,
}

impl Deliver {
    /// The stage of a world; nothing runs yet.
    #[must_use]
    pub fn new(world: &Arc<World>, options: &Options, partitions: &[(String, u32)]) -> Self {
        let topics = Topics::default();
        let of = |topic: &str| partitions.iter().find(|(name, _)| name == topic).map_or(0, |(_, count)| *count);
        let lines = CHANNELS.iter().flat_map(|channel| Line::all().into_iter().map(move |line| (*channel, line)));
        let lines = lines.map(|(channel, line)| {
            let read = line.topics(&topics, channel);
            let read = read.iter().flat_map(|topic| {
                (0..of(topic)).map(|partition| TopicPartition { topic: topic.as_str().into(), partition })
            });
            (line.group(&topics, channel), read.collect())
        });
        let limits = Limits {
            records_max: options.deliver.records_max,
            batch_max: options.deliver.batch_max,
            poll_wait: options.deliver.poll_wait,
            ..Limits::default()
        };
        Self {
            outside: Outside::new(Arc::clone(world), options.seed, options.deliver.faults),
            world: Arc::clone(world),
            limits,
            batch_max: options.deliver.call_batch_max,
            alive_max: options.alive_max,
            lines: lines.collect(),
            processes: Vec::new(),
            born: FIRST,
            start_at: Duration::ZERO,
            open: (u64::MAX, false),
            healed: false,
        }
    }

    /// Whether a record of a lane or retry topic is not settled.
    pub fn is_open(&mut self) -> bool {
        let touched = self.world.nature().touched;
        if self.open.0 != touched {
            let unread = |(group, all): &(String, Vec<TopicPartition>)| {
                all.iter().any(|partition| self.unread(group, partition).is_some())
            };
            let open = self.lines.iter().any(unread);
            self.open = (touched, open);
        }
        self.open.1
    }

    /// Whether a process could go on now, and has something to do.
    pub fn wants(&mut self) -> bool {
        let now = self.world.time.elapsed();
        self.is_open() && self.processes.iter().any(|process| process.frozen_until <= now)
    }

    /// The next instant at which something happens here by itself, if nobody is stepped.
    pub fn next_event(&mut self) -> Option<Duration> {
        let now = self.world.time.elapsed();
        let open = self.is_open();
        let thaws = self.processes.iter().map(|process| process.frozen_until);
        thaws.chain([self.start_at]).filter(|at| open && *at > now).min()
    }

    /// Keeps one process running that nobody replaced, where there is something to do.
    pub fn supervise(&mut self) {
        let now = self.world.time.elapsed();
        if self.processes.iter().any(|process| !process.replaced) || now < self.start_at || !self.is_open() {
            return;
        }
        if self.processes.len() >= self.alive_max.max(1) {
            self.bury(0, "is killed by its supervisor");
        }
        // Whoever stands still is no member any more.
        if self.processes.iter().any(|process| process.frozen_until > now) {
            self.lines.iter().for_each(|(group, _)| self.world.evict(group));
        }
        self.start();
        self.start_at = now + Duration::from_millis(self.outside.below(5_000));
    }

    fn start(&mut self) {
        let life = Life::new(self.born);
        self.born += 1;
        let truth = self.world.time.truth();
        let caller = Arc::new(Caller { life, steady: Mutex::new((truth, truth)) });
        let log: Arc<dyn Log> = Arc::new(ProcessLog { world: Arc::clone(&self.world), life: Arc::clone(&caller.life) });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            // Between two rounds of a step every task is where one poll has brought it.
            .event_interval(1)
            .build()
            .expect("a runtime of one thread");
        let mut tasks = JoinSet::new();
        for channel in CHANNELS {
            // As in production, what is critical shares nothing with the rest.
            for critical in [true, false] {
                let is_critical = |line: &Line| {
                    matches!(
                        line,
                        Line::Lane(tidings_schemas::channel::Priority::Critical)
                            | Line::Retry(tidings_schemas::topics::RetryClass::Critical)
                    )
                };
                let lines: Vec<Line> = Line::all().into_iter().filter(|line| is_critical(line) == critical).collect();
                let parts = self.parts(channel, &log, &caller, critical);
                tasks.spawn_on(serve(channel, parts, lines, self.limits.clone()), runtime.handle());
            }
        }
        self.world.trace(|| format!("p{} starts to deliver", caller.life.number));
        for process in &mut self.processes {
            process.replaced = true;
        }
        let stands = self.world.time.elapsed();
        self.processes.push(Process {
            caller,
            tasks,
            runtime,
            stands,
            open: false,
            frozen_until: Duration::ZERO,
            replaced: false,
        });
    }

    fn parts(&self, channel: Channel, log: &Arc<dyn Log>, caller: &Arc<Caller>, critical: bool) -> Parts {
        let outside = || Arc::clone(&self.outside);
        let provider = ProcessProvider {
            outside: outside(),
            caller: Arc::clone(caller),
            channel,
            batch_max: if channel == Channel::Email { self.batch_max } else { 1 },
        };
        let (clock, time) = (Arc::clone(&self.world.time), Arc::clone(&self.world.time));
        let half = if critical { "-critical" } else { "" };
        Parts {
            channel,
            topics: Topics::default(),
            log: Arc::clone(log),
            ledger: Arc::new(ProcessLedger { outside: outside(), caller: Arc::clone(caller) }),
            directory: Arc::new(ProcessDirectory { outside: outside() }),
            render: Arc::new(Plain),
            providers: Choice::List(vec![Arc::new(provider)]),
            cap: None,
            schedule: Schedule::default(),
            categories: script::policies().categories,
            clock: Arc::new(move || tidings_pipeline::runtime::clock::Clock::wall(&*clock)),
            elapsed: Arc::new(move || time.elapsed()),
            speed: 1,
            process: format!("p{}{half}", caller.life.number).into(),
        }
    }

    /// Lets one of the processes that may go on do so for `span`.
    ///
    /// # Errors
    /// When one ends as it must not.
    pub fn step(&mut self, span: Duration) -> Result<(), Broken> {
        let now = self.world.time.elapsed();
        let awake: Vec<usize> =
            (0..self.processes.len()).filter(|place| self.processes[*place].frozen_until <= now).collect();
        if awake.is_empty() {
            return Ok(());
        }
        let place = awake[usize::try_from(self.outside.below(awake.len() as u64)).unwrap_or(0)];
        if self.processes[place].replaced && self.outside.below(ZOMBIE_STEPS) == 0 {
            self.bury(place, "is found and killed by its supervisor");
            return Ok(());
        }
        // While one goes on the others stand still: not for long.
        let span = if awake.len() > 1 { span.min(LATE) } else { span };
        let rounds = if span.is_zero() { self.outside.below(ROUNDS_MAX) + 1 } else { 0 };
        let process = &mut self.processes[place];
        let behind = now.saturating_sub(process.stands);
        if behind > LATE && process.open {
            let truth = self.world.time.truth();
            *process.caller.steady.lock().unwrap_or_else(PoisonError::into_inner) = (truth, truth.before(behind));
        }
        let ahead = async move {
            if !behind.is_zero() {
                tokio::time::advance(behind).await;
            }
            for _ in 0..rounds {
                tokio::task::yield_now().await;
            }
            if !span.is_zero() {
                tokio::time::sleep(span).await;
            }
        };
        self.world.time.led(&process.runtime, process.stands, ahead);
        process.stands = self.world.time.elapsed();
        let open = self.is_open();
        let process = &mut self.processes[place];
        process.open = open;
        let life = Arc::clone(process.life());
        let ended = process.tasks.try_join_next();
        if life.is_over() {
            self.bury(place, "is dead");
            return Ok(());
        }
        let Some(ended) = ended else { return Ok(()) };
        let words = match ended {
            Ok(Err(LaneError::Log(error))) if error.is_transient() && !self.healed => {
                // It found no log at its start.
                self.bury(place, "ends: its log cannot be reached");
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Ok(Ok(())) => "a reader ended although nobody asked it to".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(Broken { promise: "liveness", what: format!("p{} cannot go on delivering: {words}", life.number) })
    }

    fn bury(&mut self, place: usize, how: &str) {
        let process = self.processes.remove(place);
        process.life().end();
        self.world.trace(|| format!("p{} {how}", process.life().number));
    }

    /// What goes wrong between two steps.
    pub fn trouble(&mut self) {
        self.outside.trouble();
        if self.processes.is_empty() {
            return;
        }
        let place = usize::try_from(self.outside.below(self.processes.len() as u64)).unwrap_or(0);
        if self.outside.strikes("kill of a deliverer", |it| it.killed) {
            self.bury(place, "is killed");
        } else if self.outside.strikes("freeze of a deliverer", |it| it.frozen) {
            let most = [50, 4_000, 20_000, 120_000][usize::try_from(self.outside.below(4)).unwrap_or(0)];
            self.freeze(place, Duration::from_millis(1 + self.outside.below(most)));
        } else if self.outside.strikes("eviction", |it| it.evicted) {
            self.lines.iter().for_each(|(group, _)| self.world.evict(group));
            self.outside.troubled();
            self.world.trace(|| "all readers of lanes are thrown out of their groups".to_owned());
        }
    }

    fn freeze(&mut self, place: usize, span: Duration) {
        let (now, truth) = (self.world.time.elapsed(), self.world.time.truth());
        let process = &mut self.processes[place];
        process.frozen_until = process.frozen_until.max(now + span);
        process.replaced = true;
        *process.caller.steady.lock().unwrap_or_else(PoisonError::into_inner) = (truth.after(span), truth);
        let number = process.life().number;
        self.world.trace(|| format!("p{number} is frozen for {span:?}"));
    }

    /// Faults stop; what stood still goes on.
    pub fn heal(&mut self) {
        self.healed = true;
        self.outside.heal();
        let now = self.world.time.elapsed();
        for process in &mut self.processes {
            process.frozen_until = now.min(process.frozen_until);
        }
    }

    /// Everybody is gone.
    pub fn end(&mut self) {
        while !self.processes.is_empty() {
            self.bury(0, "is not needed any more");
        }
    }

    /// Who runs, and what is not settled, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        let runs = self.processes.iter().map(|it| format!("p{} until {:?}", it.life().number, it.frozen_until));
        let unread = self.lines.iter().flat_map(|(group, all)| all.iter().filter_map(|at| self.unread(group, at)));
        runs.chain(unread).collect::<Vec<_>>().join("; ")
    }

    /// How far a partition was settled, where that is not to its end.
    fn unread(&self, group: &str, partition: &TopicPartition) -> Option<String> {
        let end = self.world.range(partition).map_or(0, |range| range.end);
        let settled = self.world.committed(group, partition).map_or(0, |commit| commit.offset);
        (settled < end).then(|| format!("{partition} is settled to {settled} of {end}"))
    }
}

/// One half of a channel: its deliverer, and a reader for each of its lines.
async fn serve(channel: Channel, parts: Parts, lines: Vec<Line>, limits: Limits) -> Ended {
    let topics = parts.topics.clone();
    let deliverer = Arc::new(Deliverer::open(parts).await?);
    let mut readers = JoinSet::new();
    for line in lines {
        let reader = LaneReader {
            deliverer: Arc::clone(&deliverer),
            group: line.group(&topics, channel),
            topics: line.topics(&topics, channel),
            limits: limits.clone(),
            metrics: Arc::<LaneMetrics>::default(),
        };
        readers.spawn(reader.run(CancellationToken::new()));
    }
    match readers.join_next().await {
        Some(Ok(ended)) => ended,
        Some(Err(error)) => Err(LaneError::Task(error.to_string())),
        None => Ok(()),
    }
}
