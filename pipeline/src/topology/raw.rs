//! The shape of the file as it is written: first pass. Nothing here means anything yet.
//!
//! What depends on a kind (operators, providers) is only captured, to be read with the kind's own
//! type; what may fail alone is [`Lenient`].

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};
use tidings_operators::params::SideInput;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::policy::{CategoryPolicy, QuietRules, TypePolicy};
use tidings_schemas::profile::MinuteOfDay;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_schemas::units::{Period, Rate, Share};

use super::config::{Format, UnknownFields};
use super::decode::{At, Captured, Lenient, Named, OneOrMany, Pairs};

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a topology, which begins with `version: 1`")]
pub(super) struct File {
    #[serde(rename = "$schema")]
    pub(super) _schema: Option<de::IgnoredAny>,
    pub(super) version: Option<Lenient<At<u32>>>,
    pub(super) topics: Option<Lenient<Topics>>,
    pub(super) log: Option<Lenient<Log>>,
    pub(super) checkpoints: Option<Lenient<Checkpoints>>,
    pub(super) ledger: Option<Lenient<Store>>,
    pub(super) directory: Option<Lenient<Store>>,
    pub(super) record: Option<Lenient<Record>>,
    pub(super) sources: Option<Lenient<Named<Lenient<Source>>>>,
    pub(super) operators: Option<Lenient<Vec<Captured>>>,
    pub(super) sinks: Option<Lenient<Named<Lenient<Sink>>>>,
    pub(super) providers: Option<Lenient<Named<Captured>>>,
    pub(super) policies: Option<Lenient<Policies>>,
    pub(super) tests: Option<Lenient<Vec<Lenient<Test>>>>,
}

/// The topics between stages.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Topics {
    /// What all names start with; `notifications` where absent.
    #[schemars(with = "Option<String>")]
    pub(super) prefix: Option<At<String>>,
    /// Copies of each partition; 3 where absent, on one machine 1.
    #[schemars(with = "Option<u16>")]
    pub(super) replication: Option<At<u16>>,
    /// Partitions by priority; 24, 12, 8 and 4 where absent, on one machine 4, 4, 2 and 2. What has no
    /// priority has as many as `medium`.
    #[schemars(with = "Option<BTreeMap<Priority, u32>>")]
    pub(super) partitions: Option<Pairs<Priority, At<u32>>>,
}

/// The durable log.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Log {
    /// Kafka.
    Kafka(Kafka),
    /// On this machine.
    Embedded(Folder),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Kafka {
    /// `host:port`, several with commas.
    #[schemars(with = "String")]
    pub(super) brokers: At<String>,
    /// librdkafka's own settings, passed through.
    #[serde(default)]
    pub(super) properties: BTreeMap<String, Property>,
}

/// librdkafka takes texts; YAML writes some of them as numbers or switches.
pub(super) struct Property(pub(super) String);

impl<'de> Deserialize<'de> for Property {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl de::Visitor<'_> for Scalar {
            type Value = Property;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, number or switch")
            }
            fn visit_str<E>(self, text: &str) -> Result<Property, E> {
                Ok(Property(text.to_owned()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Property, E> {
                Ok(Property(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Property, E> {
                Ok(Property(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Property, E> {
                Ok(Property(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Property, E> {
                Ok(Property(value.to_string()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

impl JsonSchema for Property {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Property".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Folder {
    /// A folder of its own.
    pub(super) path: String,
}

/// Where checkpoints go.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Checkpoints {
    /// A folder or an object store's address.
    pub(super) to: Option<String>,
    /// The time between two; `5s` where absent.
    #[schemars(with = "Option<Period>")]
    pub(super) every: Option<At<Period>>,
}

/// A key-value store.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Store {
    /// Redis, by URL.
    Redis(String),
    /// On this machine, beside the log.
    Embedded,
}

/// Where rows go.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// ClickHouse, by its HTTP address: `http://127.0.0.1:8123/?database=default`.
    #[serde(rename = "clickhouse")]
    ClickHouse(#[schemars(with = "String")] At<String>),
    /// Files in a folder.
    Files(String),
}

/// One source.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a source like `{ topic: notifications.events.high }`")]
pub(super) struct Source {
    /// A topic of the log.
    #[schemars(with = "Option<String>")]
    pub(super) topic: Option<At<String>>,
    /// A file with one JSON object a line.
    #[schemars(with = "Option<String>")]
    pub(super) file: Option<At<String>>,
    /// Standard input, one JSON object a line.
    #[schemars(with = "Option<bool>")]
    pub(super) stdin: Option<At<bool>>,
    /// Another path than the dataflow's.
    #[schemars(with = "Option<Path>")]
    pub(super) path: Option<At<Path>>,
    /// What it says about users, where it carries no events.
    #[schemars(with = "Option<SideInput>")]
    pub(super) side_input: Option<At<SideInput>>,
    /// Its guaranteed share of each epoch's budget.
    #[schemars(with = "Option<Share>")]
    pub(super) at_least: Option<At<Share>>,
    /// What happens to top-level keys that an event does not have.
    #[serde(default)]
    pub(super) unknown_fields: UnknownFields,
    /// How its records are written.
    #[serde(default)]
    pub(super) format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Path {
    /// One by one, beside the dataflow.
    Critical,
    /// What deliver gives back.
    Returned,
}

/// One sink.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a sink like `{ input: route, providers: [ses] }`")]
pub(super) struct Sink {
    /// The operators it reads.
    #[schemars(with = "OneOrManyTexts")]
    pub(super) input: OneOrMany<At<String>>,
    /// Providers, in order of failover; or by the address's platform.
    #[schemars(with = "ProvidersSchema")]
    pub(super) providers: At<Providers>,
    /// The folder of its templates; built-in ones where absent.
    pub(super) templates: Option<String>,
    /// At most so many over all users, in each process that delivers; what exceeds it waits in the lane.
    #[schemars(with = "Option<Rate>")]
    pub(super) cap: Option<At<Rate>>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) enum OneOrManyTexts {
    One(String),
    Many(Vec<String>),
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) enum ProvidersSchema {
    InOrder(OneOrManyTexts),
    ByPlatform(BTreeMap<String, OneOrManyTexts>),
}

pub(super) enum Providers {
    One(String),
    InOrder(Vec<At<String>>),
    ByPlatform(Vec<(At<String>, OneOrMany<At<String>>)>),
}

impl<'de> Deserialize<'de> for Providers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Providers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list like `[ses]`, or one by platform like `{ ios: apns, android: fcm }`")
            }
            fn visit_str<E>(self, name: &str) -> Result<Providers, E> {
                Ok(Providers::One(name.to_owned()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Providers, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(Providers::InOrder(all))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Providers, A::Error> {
                let mut map = map;
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Providers::ByPlatform(all))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The rules, which override the built-in ones entry by entry.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Policies {
    /// By type; `default` for the rest.
    #[schemars(with = "Option<BTreeMap<String, TypePolicy>>")]
    pub(super) types: Option<Named<Lenient<TypePolicy>>>,
    /// By category.
    #[schemars(with = "Option<BTreeMap<String, CategoryPolicy>>")]
    pub(super) categories: Option<Named<Lenient<CategoryPolicy>>>,
    /// By priority: `pass`, `defer`, `in_app`, or one per channel.
    #[schemars(with = "Option<BTreeMap<Priority, QuietRules>>")]
    pub(super) quiet_hours: Option<Pairs<Priority, Lenient<QuietRules>>>,
}

/// One test, in virtual time.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a test with `name` and `steps`")]
pub(super) struct Test {
    /// The scenario.
    #[schemars(with = "String")]
    pub(super) name: At<String>,
    /// What is known at the start.
    #[schemars(with = "Option<GivenSchema>")]
    pub(super) given: Option<Given>,
    /// What happens, in order.
    #[schemars(with = "Vec<StepSchema>")]
    pub(super) steps: Vec<Lenient<TestStep>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Given {
    #[serde(default)]
    pub(super) profiles: Vec<Captured>,
    #[serde(default)]
    pub(super) addresses: Vec<Captured>,
}

#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Given")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) struct GivenSchema {
    /// Whole profiles.
    #[serde(default)]
    profiles: Vec<tidings_schemas::profile::Profile>,
    /// Addresses.
    #[serde(default)]
    addresses: Vec<TestAddress>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TestStep {
    pub(super) at: At<Moment>,
    pub(super) profile: Option<Captured>,
    pub(super) profiles: Option<Vec<Captured>>,
    pub(super) address: Option<Captured>,
    pub(super) addresses: Option<Vec<Captured>>,
    pub(super) event: Option<Captured>,
    pub(super) events: Option<Vec<Captured>>,
    #[serde(default)]
    pub(super) expect: Vec<Lenient<At<Expectation>>>,
}

#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Step")]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) struct StepSchema {
    /// When: `2026-03-28 23:10 Europe/Berlin`, or RFC 3339.
    at: String,
    /// A whole profile that comes in.
    profile: Option<tidings_schemas::profile::Profile>,
    /// Several of them.
    profiles: Option<Vec<tidings_schemas::profile::Profile>>,
    /// An address that comes in.
    address: Option<TestAddress>,
    /// Several of them.
    addresses: Option<Vec<TestAddress>>,
    /// An event that comes in.
    event: Option<tidings_schemas::event::Event>,
    /// Several of them.
    events: Option<Vec<tidings_schemas::event::Event>>,
    /// What must hold, about everything since the step before.
    expect: Option<Vec<Expectation>>,
}

/// An address of a test: what the scenario does not care about has a default.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TestAddress {
    /// Whose it is.
    pub(super) user_id: String,
    /// Which channel it serves.
    pub(super) channel: Channel,
    /// `ios`, `android`, `web`.
    pub(super) platform: Option<String>,
    /// Its id; the channel's name where absent.
    pub(super) address_id: Option<String>,
    /// The token, mail address or number; made up where absent.
    pub(super) address: Option<String>,
    /// Which provider; the sink's choice where absent.
    pub(super) provider: Option<String>,
    /// Whether it may be used.
    #[serde(default)]
    pub(super) status: tidings_schemas::profile::AddressStatus,
}

/// One expectation: `nothing_sent`, or what is selected and exactly one fate.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Expectation {
    /// No leg was queued.
    pub(super) nothing_sent: Option<bool>,
    /// Channels where something may be, with `nothing_sent`.
    #[schemars(with = "Option<ChannelsSchema>")]
    pub(super) except: Option<OneOrMany<Channel>>,
    /// The producer's id of an event.
    #[schemars(with = "Option<String>")]
    pub(super) event: Option<At<String>>,
    /// A type, where the event does not matter.
    #[serde(rename = "type")]
    #[schemars(with = "Option<String>")]
    pub(super) event_type: Option<At<String>>,
    /// The leg; without it the event itself is meant.
    pub(super) leg: Option<Channel>,
    /// Handed to its lane.
    pub(super) queued: Option<bool>,
    /// Held, whatever the deadline.
    pub(super) parked: Option<bool>,
    /// Held until then; a spread does not count.
    #[schemars(with = "Option<String>")]
    pub(super) parked_until: Option<At<Moment>>,
    /// Not said, for this reason.
    pub(super) suppressed: Option<Reason>,
    /// No event, for this reason.
    pub(super) rejected: Option<Reason>,
    /// Said as part of another.
    pub(super) merged: Option<bool>,
    /// A repeat.
    pub(super) deduplicated: Option<bool>,
    /// An actor was taken out, or everything.
    pub(super) retracted: Option<bool>,
    /// Taken back.
    pub(super) cancelled: Option<bool>,
    /// Too late.
    pub(super) expired: Option<bool>,
    /// How many distinct people it tells about.
    pub(super) actors: Option<u32>,
    /// How many events it tells about.
    pub(super) activities: Option<u32>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) enum ChannelsSchema {
    One(Channel),
    Many(Vec<Channel>),
}

/// An instant as a test writes it.
#[derive(Clone, Debug)]
pub(super) enum Moment {
    /// Wall-clock time somewhere: days since 1970-01-01, the minute, the second, the zone.
    Local { day: i64, minute: MinuteOfDay, second: u8, zone: String },
    /// RFC 3339.
    Exact(Instant),
}

impl Moment {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(instant) = text.parse() {
            return Some(Self::Exact(instant));
        }
        let (local, zone) = text.rsplit_once(' ')?;
        let read = |format: &str| jiff::civil::DateTime::strptime(format, local).ok();
        let wall = read("%Y-%m-%d %H:%M").or_else(|| read("%Y-%m-%d %H:%M:%S"))?;
        let day = jiff::civil::date(1970, 1, 1).until(wall.date()).ok()?.get_days();
        let minute = i32::from(wall.hour()) * 60 + i32::from(wall.minute());
        Some(Self::Local {
            day: i64::from(day),
            minute: MinuteOfDay(u16::try_from(minute).ok()?),
            second: u8::try_from(wall.second()).ok()?,
            zone: zone.to_owned(),
        })
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Moment;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time like `2026-03-28 23:10 Europe/Berlin` or `2026-03-28T22:10:00Z`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Moment, E> {
                Moment::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
