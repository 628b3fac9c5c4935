//! What a checked topology is: pure data, in four parts.
//!
//! [`Topology`] is the wiring and [`Policies`](tidings_schemas::policy::Policies) the rules: both
//! decide what is said, so both have canonical bytes and a hash that every cut names, and both are
//! stored by that hash for recovery. [`Deployment`] says where logs, stores and providers are: it
//! may hold secrets and differs between machines, so it is never stored, hashed or printed.
//! [`Test`]s run in virtual time.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidings_operators::params::SideInput;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::event::Event;
use tidings_schemas::policy::Policies;
use tidings_schemas::profile::{Address, Profile};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::Topics;
use tidings_schemas::units::{Period, Rate, Share};
use tidings_sinks::record::clickhouse::ClickHouseParams;

use super::diagnostic::Span;

/// The version of the language that this build reads.
pub const VERSION: u32 = 1;

/// A topology that was checked, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The wiring.
    pub topology: Topology,
    /// The rules: the built-in ones, overridden by the file's.
    pub policies: Policies,
    /// Where everything is.
    pub deployment: Deployment,
    /// The file's own tests.
    pub tests: Vec<Test>,
}

/// The wiring: sources, operators, sinks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// The version of the language.
    pub version: u32,
    /// The prefix of all topics between stages.
    pub topic_prefix: String,
    /// The sources in the order written; the index is a source's number in ordinals.
    pub sources: Vec<Source>,
    /// The operators in topological order; the index is an operator's number in ordinals.
    pub operators: Vec<Operator>,
    /// The sinks by channel.
    pub sinks: BTreeMap<Channel, Sink>,
}

/// Where a source reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A topic of the log.
    Topic(String),
    /// A file with one JSON object a line.
    File(PathBuf),
    /// Standard input, one JSON object a line.
    Stdin,
}

/// What a source is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Events for the dataflow.
    Events,
    /// Events for the critical path beside it.
    Critical,
    /// What deliver gives back.
    Returned,
    /// What is known about users.
    SideInput(SideInput),
}

/// What happens to top-level keys that an event does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownFields {
    /// The record is rejected.
    #[default]
    Refuse,
    /// They move into `data`.
    Data,
}

/// How a source's records are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// JSON; a CloudEvents envelope is recognised.
    #[default]
    Json,
    /// CloudEvents only, structured or binary.
    CloudEvents,
}

/// One source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name: events' ids hash it.
    pub name: String,
    /// Where it reads.
    pub place: Place,
    /// What it is for.
    pub role: Role,
    /// Its guaranteed share of each epoch's budget.
    pub at_least: Share,
    /// What happens to keys that an event does not have.
    pub unknown_fields: UnknownFields,
    /// How its records are written.
    pub format: Format,
}

/// What an operator or sink reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A source, by name.
    Source(String),
    /// An operator, by id.
    Operator(String),
}

impl Input {
    /// The name or id.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Source(name) | Self::Operator(name) => name,
        }
    }
}

/// One operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// For ever: state hangs on it.
    pub id: String,
    /// Its kind, a name of the registry.
    pub kind: String,
    /// What it reads, in the order written; the index is the port.
    pub inputs: Vec<Input>,
    /// The condition under which it takes an item; otherwise the item passes untouched.
    pub when: Option<String>,
    /// The parameters as its kind writes them, defaults included.
    pub params: Value,
}

/// One sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    /// The operators it reads.
    pub inputs: Vec<String>,
    /// Who carries.
    pub providers: Providers,
    /// The folder of its templates.
    pub templates: Option<PathBuf>,
    /// At most so many over all users, in each process that delivers; what exceeds it waits in the lane.
    pub cap: Option<Rate>,
}

/// Who carries a channel's deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Providers {
    /// One after the other: the next one is for failover.
    InOrder(Vec<String>),
    /// By the address's platform, each in order.
    ByPlatform(BTreeMap<String, Vec<String>>),
}

impl Providers {
    /// Every provider that is named.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let lists: Vec<&Vec<String>> = match self {
            Self::InOrder(list) => vec![list],
            Self::ByPlatform(map) => map.values().collect(),
        };
        lists.into_iter().flatten().map(String::as_str)
    }
}

/// Why bytes are not a topology or policies.
#[derive(Debug, thiserror::Error)]
#[error("stored {what} can't be read by this build: {source}")]
pub struct InvalidCanonical {
    what: &'static str,
    source: serde_json::Error,
}

/// A BLAKE3 hash of canonical bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// The hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Canonical JSON: no white space, keys sorted by their bytes, integers only as integers.
fn canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                canonical(item, out);
            }
            out.push(b']');
        }
        Value::Object(map) => {
            let sorted: BTreeMap<&str, &Value> = map.iter().map(|(key, value)| (key.as_str(), value)).collect();
            out.push(b'{');
            for (index, (key, value)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(Value::from(key).to_string().as_bytes());
                out.push(b':');
                canonical(value, out);
            }
            out.push(b'}');
        }
        scalar => out.extend_from_slice(scalar.to_string().as_bytes()),
    }
}

fn canonical_bytes<T: Serialize>(what: &T) -> Vec<u8> {
    let mut out = Vec::new();
    // Keys are texts throughout, so this conversion can't fail; `null` would not read back.
    canonical(&serde_json::to_value(what).unwrap_or_default(), &mut out);
    out
}

impl Topology {
    /// The bytes that are stored under [`hash`](Self::hash).
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        canonical_bytes(self)
    }

    /// Reads stored bytes back.
    ///
    /// # Errors
    /// When they are not a topology of this build.
    pub fn from_canonical(bytes: &[u8]) -> Result<Self, InvalidCanonical> {
        serde_json::from_slice(bytes).map_err(|source| InvalidCanonical { what: "topology", source })
    }

    /// Names the wiring. Cuts name it together with the policies: `assemble::canonical`.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(&self.canonical())
    }

    /// The topics between stages.
    #[must_use]
    pub fn topics(&self) -> Topics {
        Topics::new(&self.topic_prefix)
    }

    /// The source of this name.
    #[must_use]
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.name == name)
    }

    /// The operator of this id.
    #[must_use]
    pub fn operator(&self, id: &str) -> Option<&Operator> {
        self.operators.iter().find(|operator| operator.id == id)
    }
}

/// The bytes under which policies are stored.
#[must_use]
pub fn canonical_policies(policies: &Policies) -> Vec<u8> {
    canonical_bytes(policies)
}

/// Reads stored policies back.
///
/// # Errors
/// When the bytes are not policies of this build.
pub fn policies_from_canonical(bytes: &[u8]) -> Result<Policies, InvalidCanonical> {
    serde_json::from_slice(bytes).map_err(|source| InvalidCanonical { what: "policies", source })
}

/// A value that may be a secret: nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Private<T>(T);

impl<T> Private<T> {
    /// Hides `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for whoever connects with it.
    #[must_use]
    pub const fn get(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Private<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Where everything is.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// The durable log.
    pub log: Log,
    /// How the topics between stages are kept.
    pub topics: TopicSettings,
    /// Where checkpoints go.
    pub checkpoints: Checkpoints,
    /// The delivery ledger.
    pub ledger: Store,
    /// The view of addresses that deliver reads.
    pub directory: Store,
    /// Where rows go.
    pub record: Record,
    /// The providers by name.
    pub providers: BTreeMap<String, Provider>,
}

/// The durable log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Log {
    /// Kafka.
    Kafka {
        /// `host:port`, several with commas.
        brokers: Private<String>,
        /// librdkafka's own settings, passed through.
        properties: Private<BTreeMap<String, String>>,
    },
    /// On this machine.
    Embedded {
        /// Its folder.
        path: PathBuf,
    },
}

/// How the topics between stages are kept: `topics create` makes them so, `run` refuses less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Copies of each partition. All but one of them must have a record before it counts.
    pub replication: u16,
    /// Partitions by priority.
    pub partitions: BTreeMap<Priority, u32>,
}

impl TopicSettings {
    /// What holds where the file says nothing (MODEL §4); `one_machine`: an embedded log.
    #[must_use]
    pub fn standard(one_machine: bool) -> Self {
        let counts = if one_machine { [4, 4, 2, 2] } else { [24, 12, 8, 4] };
        let partitions = Priority::ALL.iter().copied().zip(counts).collect();
        Self { replication: if one_machine { 1 } else { 3 }, partitions }
    }
}

/// Where checkpoints go, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// A folder or an object store's address.
    pub to: String,
    /// The time between two.
    pub every: Period,
}

/// A key-value store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// Redis.
    Redis(Private<String>),
    /// On this machine.
    Embedded {
        /// Its folder.
        path: PathBuf,
    },
}

/// Where rows go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// ClickHouse, by HTTP.
    ClickHouse(Private<ClickHouseParams>),
    /// Files in a folder.
    Files(PathBuf),
}

/// One configured provider.
#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    /// Its kind, a name of the registry.
    pub kind: String,
    /// Its parameters.
    pub params: Private<Value>,
    /// At most so many deliveries, in each process that delivers; what exceeds it waits in the lane, critical
    /// ones do not. Only the provider's own answers limit it where absent.
    pub rate: Option<Rate>,
}

/// An instant of a test, and how it is written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The instant, by the calendar of this build.
    pub at: Instant,
    /// As written: `2026-03-28 23:10 Europe/Berlin`, or RFC 3339.
    pub written: String,
}

/// One test: what is known at its start, then steps in virtual time.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    /// The scenario.
    pub name: String,
    /// Where it stands.
    pub span: Span,
    /// Profiles that are loaded before the first step.
    pub profiles: Vec<Profile>,
    /// Addresses that are loaded before the first step.
    pub addresses: Vec<Address>,
    /// The steps, none before its predecessor.
    pub steps: Vec<TestStep>,
}

/// One step: the clock moves to `at` (what falls due on the way happens), then the inputs come in,
/// then the expectations are held against everything since the step before.
#[derive(Clone, Debug, PartialEq)]
pub struct TestStep {
    /// When.
    pub at: Moment,
    /// Where it stands.
    pub span: Span,
    /// What comes in, in this order.
    pub inputs: Vec<TestInput>,
    /// What must hold.
    pub expect: Vec<Expectation>,
}

/// What comes in at a step.
#[derive(Clone, Debug, PartialEq)]
pub enum TestInput {
    /// A user's whole profile.
    Profile(Box<Profile>),
    /// An address.
    Address(Box<Address>),
    /// An event; `op` makes it a retraction or a cancellation.
    Event(Box<Event>),
}

/// One expectation and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    /// Where it stands.
    pub span: Span,
    /// What must hold.
    pub expected: Expected,
}

/// What must hold since the step before.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// No leg was queued, except on these channels.
    NothingSent {
        /// Where something may be.
        except: Vec<Channel>,
    },
    /// Exactly this happened to what is selected, as the newest of what happened to it.
    Fate {
        /// The producer's id of the event; of a merge, one of its members.
        event: Option<String>,
        /// The type.
        event_type: Option<String>,
        /// The leg; without it the event itself is meant.
        leg: Option<Channel>,
        /// What happened.
        fate: Fate,
        /// How many distinct people it tells about.
        actors: Option<u32>,
        /// How many events it tells about.
        activities: Option<u32>,
    },
}

/// What happened to an event or leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Handed to its lane.
    Queued,
    /// Held, whatever the deadline.
    Parked,
    /// Held until then; a spread does not count.
    ParkedUntil(Moment),
    /// Not said, for this reason.
    Suppressed(Reason),
    /// No event, for this reason.
    Rejected(Reason),
    /// Said as part of another.
    Merged,
    /// A repeat.
    Deduplicated,
    /// An actor was taken out, or everything.
    Retracted,
    /// Taken back.
    Cancelled,
    /// Too late.
    Expired,
}
