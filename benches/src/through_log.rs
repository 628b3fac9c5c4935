//! Decide throughput through a log: the whole stage as `tidings run` runs it. Lanes, lifecycle blocks,
//! cuts and checkpoints are written and durable.
//!
//! Stream time is the machine's, because the brokers' time must agree with it: windows of minutes stay
//! open, and who sleeps depends on the hour. Cuts follow the clock too, so two runs do not say the same; the answer that is checked is that every
//! event has its row in the record, once. The clock starts when the side inputs are loaded and the first
//! event is cut, and stops when everything that was cut is said.

use std::collections::BTreeMap;
use std::path::Path as Folder;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tidings_operators::harness::dataflow::Transport;
use tidings_pipeline::checkpoint::Checkpoints;
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_pipeline::runtime::coordinator::{Observer, Status, Surroundings, run as run_stage};
use tidings_pipeline::runtime::egress::Outlets;
use tidings_pipeline::runtime::plan::{Plan, SourcePlan};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_schemas::topics::Topics;
use tidings_sinks::log::{Append, Log, Retention, TopicPartition, TopicSpec};

use crate::setup::Setup;
use crate::workload::Workload;

/// Records per append while the log is filled.
const FILL: usize = 2_000;

/// Partitions of every topic that is written.
const PARTITIONS: u32 = 4;

/// The longest that a run may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a run did.
#[derive(Debug)]
pub struct Run {
    /// From the first cut of events until everything was said.
    pub elapsed: Duration,
    /// Filling the log beforehand.
    pub filled_in: Duration,
    /// Epochs.
    pub epochs: u64,
    /// Events that wait in a window, or did.
    pub parked: u64,
    /// Events that were known already.
    pub repeats: u64,
}

/// Counts what the answer is checked by.
#[derive(Default)]
struct Count {
    created: AtomicU64,
    parked: AtomicU64,
    repeats: AtomicU64,
}

impl Observer for Count {
    fn rows(&self, rows: &[Row]) {
        let counts =
            [(State::Created, &self.created), (State::Parked, &self.parked), (State::Deduplicated, &self.repeats)];
        for (state, count) in counts {
            let events = rows.iter().filter(|row| row.unit == Unit::Event && row.states.contains(&state));
            count.fetch_add(events.count() as u64, Ordering::Relaxed);
        }
    }
}

/// Fills `log` with the workload under topics that begin with `prefix`, and runs the stage over it.
///
/// # Errors
/// When the log or the stage fails, or an event has no row.
pub fn run(
    setup: &Setup,
    workload: &Workload,
    workers: usize,
    log: &Arc<dyn Log>,
    prefix: &str,
    checkpoints: &Folder,
) -> Result<Run> {
    let machine = SystemClock::default();
    let of = |number| workload.records.keys().filter(move |lot| lot.source == number);
    let partitions = |number| of(number).map(|lot| lot.partition + 1).max().unwrap_or(1);
    let plan = plan(setup, partitions, workers, prefix);
    create(log, &plan)?;
    let filling = machine.elapsed();
    fill(log, &plan, workload)?;
    let filled_in = machine.elapsed() - filling;

    let status = Arc::new(Status::default());
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(Count::default());
    let around = Surroundings {
        crumbs: None,
        log: Arc::clone(log),
        checkpoints: Checkpoints::in_folder(checkpoints).map_err(|problem| anyhow!(problem))?,
        clock: Arc::new(SystemClock::default()),
        stop: Arc::clone(&stop),
        status: Arc::clone(&status),
        observer: Some(Arc::<Count>::clone(&count)),
        older: Arc::new(|_, _| Err("a bench has one topology".to_owned())),
        accept_divergence: false,
        may_drop: std::collections::BTreeSet::new(),
    };
    let total: u64 = workload.records.values().map(|records| records.len() as u64).sum();
    let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
    let (started, ended) = std::thread::scope(|scope| {
        let stage = scope.spawn(|| run_stage(&plan, &around));
        let began = machine.elapsed();
        let until = |done: &dyn Fn() -> bool| {
            while !done() && !stage.is_finished() && machine.elapsed() - began < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
            }
            machine.elapsed()
        };
        let started = until(&|| status.ready.load(Ordering::Relaxed));
        let ended = until(&|| load(&status.records) >= total && load(&status.said_through) >= load(&status.epoch));
        stop.store(true, Ordering::Relaxed);
        stage.join().map_err(|_| anyhow!("the stage died"))??;
        Ok::<_, anyhow::Error>((started, ended))
    })?;
    let created = load(&count.created);
    ensure!(created == workload.events, "{} events went in, the record has {created} of them", workload.events);
    let (parked, repeats) = (load(&count.parked), load(&count.repeats));
    Ok(Run { elapsed: ended - started, filled_in, epochs: load(&status.epoch), parked, repeats })
}

/// The plan of a run whose sources have so many partitions each.
pub(crate) fn plan(setup: &Setup, partitions: impl Fn(u16) -> u32, workers: usize, prefix: &str) -> Plan {
    let topics = Topics::new(prefix);
    let own = |topic: &str| topic.split_once('.').map_or(topic.to_owned(), |(_, rest)| format!("{prefix}.{rest}"));
    let source = |(number, source): (u16, &crate::setup::Read)| SourcePlan {
        id: source.name.clone(),
        topic: own(&source.topic),
        partitions: partitions(number),
        rank: source.rank,
        at_least_permille: source.at_least_permille,
        side_input: source.side_input,
    };
    let sources: Vec<SourcePlan> = (0..).zip(&setup.sources).map(source).collect();
    let mut written: BTreeMap<String, u32> = BTreeMap::new();
    for channel in Channel::ALL {
        for priority in Priority::ALL {
            written.insert(topics.lane(*channel, *priority), PARTITIONS);
        }
    }
    written.extend([topics.lifecycle(), topics.dlq()].map(|topic| (topic, PARTITIONS)));
    written.extend(sources.iter().map(|source| (source.topic.clone(), source.partitions)));
    Plan {
        wiring: setup.wiring.clone(),
        sources,
        rules: Arc::clone(&setup.rules),
        topology: Arc::clone(&setup.topology),
        build: [0; 32],
        outlets: Outlets { topics, partitions: written },
        workers,
        transport: Transport::Memory,
        epoch_min: Duration::from_millis(20),
        idle_max: Duration::from_secs(1),
        checkpoint_every: Duration::from_secs(5),
    }
}

/// Makes the plan's topics.
pub(crate) fn create(log: &Arc<dyn Log>, plan: &Plan) -> Result<()> {
    let day = Duration::from_secs(24 * 3600);
    let side: Vec<&String> =
        plan.sources.iter().filter(|source| source.side_input).map(|source| &source.topic).collect();
    let mut specs = vec![TopicSpec::one_copy(plan.outlets.topics.cuts(), 1, Retention::Forever)];
    for (name, partitions) in &plan.outlets.partitions {
        let retention = if side.contains(&name) { Retention::Compacted(day) } else { Retention::For(day) };
        specs.push(TopicSpec::one_copy(name, *partitions, retention));
    }
    Ok(log.create(&specs)?)
}

fn fill(log: &Arc<dyn Log>, plan: &Plan, workload: &Workload) -> Result<()> {
    for (lot, records) in &workload.records {
        let source = plan.sources.get(usize::from(lot.source)).context("a source of the workload")?;
        let to = TopicPartition { topic: source.topic.as_str().into(), partition: lot.partition };
        for records in records.chunks(FILL) {
            let append = |record: &tidings_operators::harness::feed::RawRecord| Append {
                to: to.clone(),
                key: record.key.clone(),
                value: record.value.clone(),
                headers: Vec::new(),
            };
            log.append(&records.iter().map(append).collect::<Vec<_>>())?;
        }
    }
    Ok(())
}
