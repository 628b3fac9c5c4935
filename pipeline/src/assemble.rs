//! From a checked topology to what runs: chains, plans, topics.
//!
//! Two chains come out of one topology. The *decide* chain has every operator; its sources are those
//! of the file without the critical ones, numbered in the order written. The *critical* chain beside
//! it has `validate`, `preferences` and `route` alone, over the critical sources and the side inputs.
//!
//! What decides is stored as one canonical text of topology and policies, by its hash; [`older`]
//! makes a plan of it again, so that cuts of an older topology are drained by that topology.
//!
//! *Invariant:* equal canonical bytes and equal tz data give equal wirings and equal rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings_operators::calendar::Calendar;
use tidings_operators::harness::dataflow::Transport;
use tidings_operators::ingest::{Path, Source as Incoming, SourceKind};
use tidings_operators::params::SideInput;
use tidings_operators::registry::{Input as From, Wired, Wiring, WiringError};
use tidings_operators::rules::{InvalidPolicy, Rules};
use tidings_schemas::channel::Priority;
use tidings_schemas::policy::Policies;
use tidings_schemas::topics::{RetryClass, RetryDelay};
use tidings_schemas::units::Period;
use tidings_sinks::log::embedded::EmbeddedLog;
use tidings_sinks::log::kafka::{Instance, KafkaLog, KafkaParams};
use tidings_sinks::log::{Clock, Log, LogError, Retention, TopicSpec};

use crate::cutlog::Hash;
use crate::runtime::critical::{CriticalPlan, wiring as critical_wiring};
use crate::runtime::egress::Outlets;
use crate::runtime::plan::{Plan, SourcePlan};
use crate::topology::{Config, Input, Log as LogPlace, Place, Role, Source, TopicSettings, Topology, UnknownFields};

const DAY: Duration = Duration::from_secs(86_400);

/// How long everything but dead letters is kept: longer than the longest outage that must lose nothing
/// (seven days).
const KEPT: Duration = Duration::from_secs(8 * 86_400);

/// Why a stored or checked topology makes no plan.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A wiring makes no chain.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// A policy does not compile.
    #[error(transparent)]
    Policy(#[from] InvalidPolicy),
    /// The bytes are not what this build stores.
    #[error("the stored topology cannot be read by this build: {0}; drain it with the build that wrote it")]
    Stored(serde_json::Error),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// There is more of something than the engine numbers.
    #[error("{0}")]
    TooMany(String),
}

/// One chain and how its sources are read.
#[derive(Clone, Debug)]
pub struct Half {
    /// Sources and operators.
    pub wiring: Wiring,
    /// The topic of each source, its rank and its share, by the wiring's number.
    pub sources: Vec<SourcePlan>,
}

/// What a topology decides with.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// The dataflow.
    pub decide: Half,
    /// The chain beside it; none where no source is critical.
    pub critical: Option<Half>,
    /// Policies, providers and calendar.
    pub rules: Arc<Rules>,
    /// Canonical bytes of topology and policies.
    pub canonical: Arc<[u8]>,
}

/// What is stored under a topology's hash.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    policies: Policies,
    topology: Topology,
}

/// The canonical bytes of all that decides: keys sorted, no white space, defaults filled in.
#[must_use]
pub fn canonical(topology: &Topology, policies: &Policies) -> Vec<u8> {
    // Both parts are canonical, so the whole is.
    let policies = crate::topology::canonical_policies(policies);
    [br#"{"policies":"#, policies.as_slice(), br#","topology":"#, &topology.canonical(), b"}"].concat()
}

impl Assembly {
    /// Both chains and the rules of a topology. Partitions of sources are those in `partitions`, by
    /// topic; a topic that is not there has one.
    ///
    /// # Errors
    /// When the topology was not checked.
    pub fn new(
        topology: &Topology,
        policies: &Policies,
        calendar: Calendar,
        partitions: &BTreeMap<String, u32>,
    ) -> Result<Self, AssembleError> {
        let provided = topology.sinks.keys().copied().collect();
        let rules = Rules::new(policies, provided, spread(topology), calendar)?;
        let decide =
            Half { wiring: decide(topology)?, sources: plans(topology, partitions, |role| role != Role::Critical) };
        let has_critical = topology.sources.iter().any(|source| source.role == Role::Critical);
        let critical = has_critical.then(|| Half {
            wiring: critical(topology),
            sources: plans(topology, partitions, |role| matches!(role, Role::Critical | Role::SideInput(_))),
        });
        // A wiring is a description; whether it makes a chain is known once it made one.
        decide.wiring.chain(Path::Decide)?;
        if let Some(half) = &critical {
            half.wiring.chain(Path::Critical)?;
        }
        Ok(Self { decide, critical, rules: Arc::new(rules), canonical: canonical(topology, policies).into() })
    }
}

/// The span of the morning's release: `quiet_hours`' own, because limits ask the same verdict.
fn spread(topology: &Topology) -> Duration {
    let spreads = topology.operators.iter().filter(|operator| operator.kind == "quiet_hours");
    let parse = |value: &serde_json::Value| value.as_str().and_then(|text| text.parse::<Period>().ok());
    spreads
        .filter_map(|operator| operator.params.get("spread").and_then(parse))
        .map(|span| span.0)
        .max()
        .unwrap_or_default()
}

fn incoming(source: &Source) -> Incoming {
    let kind = match source.role {
        Role::Events | Role::Critical => {
            SourceKind::Events { unknown_to_data: source.unknown_fields == UnknownFields::Data }
        }
        Role::Returned => SourceKind::Returned,
        Role::SideInput(SideInput::Profile) => SourceKind::Profiles,
        Role::SideInput(SideInput::Reachability) => SourceKind::Addresses,
    };
    Incoming { id: source.name.as_str().into(), kind }
}

/// The topic that a source is read from. Files and standard input are fed into topics of their own.
#[must_use]
pub fn topic_of(topology: &Topology, source: &Source) -> String {
    match &source.place {
        Place::Topic(topic) => topic.clone(),
        Place::File(_) | Place::Stdin => format!("{}.lines.{}", topology.topic_prefix, source.name),
    }
}

/// The priority that a source is read with: the last word of its topic's or its own name, where that
/// is one; else medium. It orders reading; what an event's priority is, policy says.
fn priority_of(source: &Source) -> Priority {
    let last = |text: &str| text.rsplit('.').next().and_then(|word| word.parse().ok());
    let named = match &source.place {
        Place::Topic(topic) => last(topic),
        Place::File(_) | Place::Stdin => None,
    };
    match source.role {
        Role::Critical => Priority::Critical,
        Role::Returned => Priority::High,
        Role::Events | Role::SideInput(_) => named.or_else(|| last(&source.name)).unwrap_or(Priority::Medium),
    }
}

fn plans(topology: &Topology, partitions: &BTreeMap<String, u32>, takes: impl Fn(Role) -> bool) -> Vec<SourcePlan> {
    let plan = |source: &Source| {
        let topic = topic_of(topology, source);
        let side_input = matches!(source.role, Role::SideInput(_));
        SourcePlan {
            id: source.name.clone(),
            partitions: partitions.get(&topic).copied().unwrap_or(1),
            topic,
            // Whoever joins users must know them first.
            rank: if side_input { 0 } else { 1 + priority_of(source) as u8 },
            at_least_permille: u16::from(source.at_least.0) * 10,
            side_input,
        }
    };
    topology.sources.iter().filter(|source| takes(source.role)).map(plan).collect()
}

fn decide(topology: &Topology) -> Result<Wiring, AssembleError> {
    let taken: Vec<&Source> = topology.sources.iter().filter(|source| source.role != Role::Critical).collect();
    if taken.len() > usize::from(u16::MAX) {
        return Err(AssembleError::TooMany(format!("{} sources, at most {} can be numbered", taken.len(), u16::MAX)));
    }
    let sunk: BTreeSet<&str> = topology.sinks.values().flat_map(|sink| &sink.inputs).map(String::as_str).collect();
    let mut operators = Vec::with_capacity(topology.operators.len());
    for operator in &topology.operators {
        let mut inputs = Vec::with_capacity(operator.inputs.len());
        for input in &operator.inputs {
            let (place, from): (_, fn(usize) -> From) = match input {
                Input::Source(name) => (taken.iter().position(|source| source.name == *name), From::Source),
                Input::Operator(id) => (topology.operators.iter().position(|other| other.id == *id), From::Operator),
            };
            let problem = || WiringError {
                operator: operator.id.clone(),
                problem: format!("nothing is called `{}`", input.name()),
            };
            inputs.push(from(place.ok_or_else(problem)?));
        }
        operators.push(Wired {
            id: operator.id.as_str().into(),
            kind: operator.kind.clone(),
            params: operator.params.clone(),
            when: operator.when.clone(),
            inputs,
            to_lanes: sunk.contains(operator.id.as_str()),
        });
    }
    Ok(Wiring { sources: taken.into_iter().map(incoming).collect(), operators, more: &[] })
}

/// The critical chain, over the critical sources and the side inputs.
fn critical(topology: &Topology) -> Wiring {
    let taken = topology.sources.iter().filter(|source| matches!(source.role, Role::Critical | Role::SideInput(_)));
    critical_wiring(taken.map(incoming).collect())
}

/// How a run runs: what no topology says and no decision depends on.
#[derive(Clone, Debug)]
pub struct RunSettings {
    /// The build that decides.
    pub build: Hash,
    /// Worker threads.
    pub workers: usize,
    /// How workers talk.
    pub transport: Transport,
    /// Shortest time between two cuts.
    pub epoch_min: Duration,
    /// Longest time between two cuts.
    pub idle_max: Duration,
    /// Longest time between two checkpoints while anything changes.
    pub checkpoint_every: Duration,
}

fn plan_of(
    topology: &Topology,
    assembly: &Assembly,
    partitions: BTreeMap<String, u32>,
    settings: &RunSettings,
) -> Plan {
    Plan {
        wiring: assembly.decide.wiring.clone(),
        sources: assembly.decide.sources.clone(),
        rules: Arc::clone(&assembly.rules),
        topology: Arc::clone(&assembly.canonical),
        build: settings.build,
        outlets: Outlets { topics: topology.topics(), partitions },
        workers: settings.workers,
        transport: settings.transport,
        epoch_min: settings.epoch_min,
        idle_max: settings.idle_max,
        checkpoint_every: settings.checkpoint_every,
    }
}

/// What the decide stage runs, and the assembly that it is made of. `partitions` as [`partitions`]
/// says them.
///
/// # Errors
/// When the topology was not checked.
pub fn plan(
    config: &Config,
    calendar: Calendar,
    partitions: BTreeMap<String, u32>,
    settings: &RunSettings,
) -> Result<(Plan, Assembly), AssembleError> {
    let assembly = Assembly::new(&config.topology, &config.policies, calendar, &partitions)?;
    Ok((plan_of(&config.topology, &assembly, partitions, settings), assembly))
}

/// What runs beside the dataflow; none where no source is critical. `members` share its partitions.
#[must_use]
pub fn critical_plan(plan: &Plan, assembly: &Assembly, members: usize) -> Option<CriticalPlan> {
    let half = assembly.critical.as_ref()?;
    let (wiring, sources) = (half.wiring.clone(), half.sources.clone());
    Some(CriticalPlan { wiring, sources, rules: Arc::clone(&plan.rules), outlets: plan.outlets.clone(), members })
}

/// The plan of stored canonical bytes: what an older topology's cuts are drained with. It may read and
/// write topics that the newer one does not know, so that `log` is asked for its own.
///
/// # Errors
/// When the bytes are not a topology of this build, one of its parts no longer exists, or the log cannot
/// be reached.
pub fn older(stored: &[u8], calendar: Calendar, log: &dyn Log, settings: &RunSettings) -> Result<Plan, AssembleError> {
    let Stored { policies, topology } = serde_json::from_slice(stored).map_err(AssembleError::Stored)?;
    // Only the names count: how many partitions there are, the log says.
    let topics = topics_of(&topology, &TopicSettings::standard(false));
    let names: Vec<String> = topics.into_iter().map(|topic| topic.name).collect();
    let partitions = log.describe(&names)?.into_iter().map(|topic| (topic.name, topic.partitions)).collect();
    let assembly = Assembly::new(&topology, &policies, calendar, &partitions)?;
    Ok(plan_of(&topology, &assembly, partitions, settings))
}

/// Every topic that a topology needs, as it should be kept (MODEL §4).
#[must_use]
pub fn topics(config: &Config) -> Vec<TopicSpec> {
    topics_of(&config.topology, &config.deployment.topics)
}

fn topics_of(topology: &Topology, settings: &TopicSettings) -> Vec<TopicSpec> {
    let names = topology.topics();
    let mut all: BTreeMap<String, TopicSpec> = BTreeMap::new();
    let mut add = |name: String, partitions: u32, retention: Retention| {
        // All but one copy: one may be away, and what was acknowledged is still there twice.
        let (replication, min_insync) = (settings.replication, settings.replication.saturating_sub(1).max(1));
        let spec = TopicSpec { name: name.clone(), partitions, retention, replication, min_insync };
        all.entry(name).or_insert(spec);
    };
    let of = |priority| settings.partitions.get(&priority).copied().unwrap_or(1);
    let medium = of(Priority::Medium);
    for source in &topology.sources {
        let (partitions, retention) = match source.role {
            Role::SideInput(_) => (medium, Retention::Compacted(KEPT)),
            Role::Returned => (medium, Retention::For(KEPT)),
            Role::Events | Role::Critical => (of(priority_of(source)), Retention::For(KEPT)),
        };
        add(topic_of(topology, source), partitions, retention);
    }
    // What the two paths hand to each other.
    for priority in [Priority::Critical, Priority::High] {
        add(names.events(priority), of(priority), Retention::For(KEPT));
    }
    for channel in topology.sinks.keys() {
        for priority in Priority::ALL {
            add(names.lane(*channel, *priority), of(*priority), Retention::For(KEPT));
        }
        // Few wait at any time: a retry topic needs order in due time, not many readers.
        for (class, delay) in RetryClass::ALL.iter().flat_map(|class| RetryDelay::ALL.map(|delay| (*class, delay))) {
            add(names.retry(*channel, class, delay), of(Priority::Low), Retention::For(KEPT));
        }
    }
    add(names.preferences(), medium, Retention::Compacted(KEPT));
    add(names.addresses(), medium, Retention::Compacted(KEPT));
    add(names.returned(), medium, Retention::For(KEPT));
    add(names.dlq(), medium, Retention::For(30 * DAY));
    add(names.lifecycle(), medium, Retention::For(KEPT));
    add(names.cuts(), 1, Retention::Forever);
    all.into_values().collect()
}

/// How many partitions each topic of the topology has.
///
/// # Errors
/// When the log cannot be reached.
pub fn partitions(log: &dyn Log, config: &Config) -> Result<BTreeMap<String, u32>, LogError> {
    let names: Vec<String> = topics(config).into_iter().map(|topic| topic.name).collect();
    Ok(log.describe(&names)?.into_iter().map(|topic| (topic.name, topic.partitions)).collect())
}

/// Topics that are missing or weaker than they must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the log does not keep what the topology needs:\n  {}", .0.join("\n  "))]
pub struct WeakTopics(pub Vec<String>);

/// Why topics are not as they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicsError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The topics.
    #[error(transparent)]
    Weak(#[from] WeakTopics),
}

/// Refuses a missing topic or a weaker setting, naming each: what `run` asks before it starts.
///
/// # Errors
/// When the log cannot be reached, or is weaker than it must be.
pub fn check_topics(log: &dyn Log, config: &Config) -> Result<(), TopicsError> {
    let weak = log.weaknesses(&topics(config))?;
    if weak.is_empty() { Ok(()) } else { Err(WeakTopics(weak).into()) }
}

/// How long calls of a run wait for Kafka's brokers: longer than an election of a leader takes.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Opens the log that the deployment names. `instance`: what the process is called in its groups; `linger`: how long a
/// record may wait for company; `patience`: how long a call waits for brokers. `clock` stamps records of an embedded log; Kafka has
/// its own.
///
/// # Errors
/// When it cannot be opened or its settings are refused.
pub fn open_log(
    place: &LogPlace,
    instance: Option<Arc<Instance>>,
    linger: Duration,
    patience: Duration,
    clock: Clock,
) -> Result<Arc<dyn Log>, LogError> {
    Ok(match place {
        LogPlace::Embedded { path } => Arc::new(EmbeddedLog::open(&path.join("log"), clock)?),
        LogPlace::Kafka { brokers, properties } => Arc::new(KafkaLog::open(KafkaParams {
            brokers: brokers.get().clone(),
            linger,
            patience,
            instance,
            properties: properties.get().clone(),
        })?),
    })
}
