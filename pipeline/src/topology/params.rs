//! The parameters of the operators and providers of this build, and what makes them sensible.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use tidings_schemas::channel::Channel;
use tidings_schemas::units::{Period, Rate};

use super::config::SideInput::{Profile, Reachability};
use super::diagnostic::{Code, one_of};
use super::kinds::{Context, OperatorKinds, Params, Position, ProviderKinds, Report};
use super::tree::Step;

/// The operators of this build.
#[must_use]
pub fn operators() -> OperatorKinds {
    OperatorKinds::default()
        .with::<Nothing>("validate", Position::First, &[])
        .with::<Dedup>("dedup", Position::Items, &[])
        .with::<Nothing>("schedule", Position::Items, &[])
        .with::<Nothing>("preferences", Position::Items, &[Profile, Reachability])
        .with::<Aggregate>("aggregate", Position::Items, &[])
        .with::<Nothing>("route", Position::Route, &[Profile, Reachability])
        .with::<QuietHours>("quiet_hours", Position::Legs, &[Profile])
        .with::<RateLimit>("rate_limit", Position::Legs, &[])
}

/// The providers of this build.
#[must_use]
pub fn providers() -> ProviderKinds {
    ProviderKinds::default()
        .with::<Apns>("apns", &[Channel::Push])
        .with::<Fcm>("fcm", &[Channel::Push])
        .with::<Ses>("ses", &[Channel::Email])
        .with::<Nothing>("inbox", &[Channel::InApp])
}

/// No parameters.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Params for Nothing {}

fn key(name: &str) -> Step {
    Step::Key(name.to_owned())
}

fn positive(report: &mut Report<'_>, name: &str, window: Period) {
    if window.0.is_zero() {
        let found = format!("`{name}` of no length");
        report.finding(&[key(name)], Code::ZeroWindow, found, "a duration of at least 1ms, like `5m`");
    }
}

/// `dedup`: the first within the window passes.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Dedup {
    /// How long a repeat is recognised.
    #[serde(default = "day")]
    window: Period,
}

const fn day() -> Period {
    Period(Duration::from_secs(86_400))
}

impl Params for Dedup {
    fn check(&self, _: &Context, report: &mut Report<'_>) {
        positive(report, "window", self.window);
    }
}

/// `aggregate`: many events on one thing become one notification, "Alice and 42 others".
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Aggregate {
    /// What events must have in common: `type`, `category`, `object.id`, `object.kind`, `actor.id`, `data.x`.
    #[serde(default = "by_type_and_object")]
    by: Vec<String>,
    /// How long a window stays open.
    #[serde(default = "five_minutes")]
    window: Period,
    /// How many distinct actors flush it at once.
    #[serde(default = "ten")]
    threshold: u32,
    /// Each event moves the end on, up to a maximum.
    #[serde(default)]
    sliding: Option<Sliding>,
    /// Whether the first event is said at once and only the rest is collected.
    #[serde(default)]
    leading: bool,
}

/// A window that moves on with each event.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sliding {
    /// The longest that a window may stay open; without it a busy one would never flush.
    max: Period,
}

fn by_type_and_object() -> Vec<String> {
    vec!["type".to_owned(), "object.id".to_owned()]
}

const fn five_minutes() -> Period {
    Period(Duration::from_secs(300))
}

const fn ten() -> u32 {
    10
}

const GROUPINGS: [&str; 5] = ["type", "category", "object.id", "object.kind", "actor.id"];

impl Params for Aggregate {
    fn check(&self, _: &Context, report: &mut Report<'_>) {
        positive(report, "window", self.window);
        if self.threshold < 2 {
            report.finding(
                &[key("threshold")],
                Code::LowThreshold,
                format!("a threshold of {}: each event would be said alone", self.threshold),
                "2 or more distinct actors",
            );
        }
        if let Some(sliding) = &self.sliding
            && sliding.max < self.window
        {
            report.finding(
                &[key("sliding"), key("max")],
                Code::InvalidValue,
                format!("a maximum of {} below the window of {}", sliding.max, self.window),
                format!("{} or more", self.window),
            );
        }
        for (index, word) in self.by.iter().enumerate() {
            if !GROUPINGS.contains(&word.as_str()) && !is_data_path(word) {
                let expected = format!("{}, or a path like `data.order_id`", one_of(GROUPINGS));
                let path = [key("by"), Step::Index(index)];
                report.unknown(&path, Code::UnknownWord, "grouping", word, expected, GROUPINGS);
            }
        }
    }
}

/// Whether `text` is `data.` and a dotted path of names.
fn is_data_path(text: &str) -> bool {
    text.strip_prefix("data.").is_some_and(|path| {
        path.split('.').all(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
    })
}

/// `quiet_hours`: holds what would disturb the user's night.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct QuietHours {
    /// Over how long the morning's release is spread, instead of a stampede at 07:00.
    #[serde(default = "half_an_hour")]
    spread: Period,
}

const fn half_an_hour() -> Period {
    Period(Duration::from_secs(1_800))
}

/// Longest spread; a release later than that is another morning than the user's.
const SPREAD_MAX: Duration = Duration::from_secs(4 * 3_600);

impl Params for QuietHours {
    fn check(&self, _: &Context, report: &mut Report<'_>) {
        if self.spread.0 > SPREAD_MAX {
            let found = format!("a spread of {}", self.spread);
            report.finding(&[key("spread")], Code::InvalidValue, found, "at most `4h`");
        }
    }
}

/// `rate_limit`: several exact sliding windows at once.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RateLimit {
    /// All of them hold.
    levels: Vec<Level>,
}

/// What a level counts apart. The keys of its rates name the last of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Per {
    Channel,
    Type,
    Category,
}

/// One level: what is counted apart, and a rate per name.
#[derive(Debug, Serialize)]
struct Level {
    per: Vec<Per>,
    #[serde(flatten)]
    rates: BTreeMap<String, Rate>,
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> de::Visitor<'de> for Keys {
            type Value = Level;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a level like `{ per: [channel], push: 30/h }`")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Level, A::Error> {
                let (mut per, mut rates) = (None, BTreeMap::new());
                while let Some(name) = map.next_key::<String>()? {
                    if name == "per" {
                        per = Some(map.next_value()?);
                    } else {
                        rates.insert(name, map.next_value()?);
                    }
                }
                Ok(Level { per: per.ok_or_else(|| de::Error::missing_field("per"))?, rates })
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

impl JsonSchema for Level {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Level".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> schemars::Schema {
        let per = generator.subschema_for::<Vec<Per>>();
        let rate = generator.subschema_for::<Rate>();
        json_schema!({
            "type": "object",
            "description": "What is counted apart, and a rate per channel, type or category; `other` is the rest.",
            "properties": { "per": per },
            "required": ["per"],
            "additionalProperties": rate,
        })
    }
}

impl Params for RateLimit {
    fn check(&self, context: &Context, report: &mut Report<'_>) {
        for (index, level) in self.levels.iter().enumerate() {
            let at = |last: Step| [key("levels"), Step::Index(index), last];
            // `[channel, type]` has a rate per channel, which holds for each type apart.
            let (what, code, names): (_, _, Vec<&str>) = match level.per.as_slice() {
                [Per::Channel] | [Per::Channel, Per::Type | Per::Category] => {
                    ("channel", Code::UnknownChannel, Channel::ALL.iter().map(|channel| channel.as_str()).collect())
                }
                [Per::Type] => ("type", Code::UnknownType, context.types.iter().map(String::as_str).collect()),
                [Per::Category] => {
                    ("category", Code::UnknownCategory, context.categories.iter().map(String::as_str).collect())
                }
                _ => {
                    let expected = "`[channel]`, `[type]`, `[category]`, `[channel, type]` or `[channel, category]`";
                    report.finding(&at(key("per")), Code::InvalidValue, "a level that counts nothing known", expected);
                    continue;
                }
            };
            if level.rates.is_empty() {
                report.finding(&at(key("per")), Code::InvalidValue, "a level without rates", "one, like `push: 30/h`");
            }
            for (name, rate) in &level.rates {
                if name != "other" && !names.contains(&name.as_str()) {
                    let named = names.iter().copied().filter(|name| *name != "other");
                    let expected = match names.len() {
                        0..=8 => one_of(named.chain(["other"])),
                        _ => format!("a {what} of `policies`, or `other`"),
                    };
                    let path = at(Step::KeyItself(name.clone()));
                    report.unknown(&path, code, what, name, expected, names.iter().copied());
                }
                if rate.max == 0 {
                    let found = format!("the limit `{rate}` lets nothing through");
                    report.finding(&at(key(name)), Code::ZeroLimit, found, "1 or more");
                }
                if rate.per.0.is_zero() {
                    let found = format!("the limit `{rate}` has a window of no length");
                    report.finding(&at(key(name)), Code::ZeroWindow, found, "a rate like `10/h`");
                }
            }
        }
    }
}

/// `apns`: Apple's push service, by token.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Apns {
    /// Another address than Apple's.
    #[serde(default)]
    endpoint: Option<String>,
    /// The signing key, a `.p8` file.
    key_file: String,
    /// The key's id.
    key_id: String,
    /// The team's id.
    team_id: String,
    /// The app's bundle id.
    topic: String,
    /// At most so many calls; the provider's own quota where absent.
    #[serde(default)]
    rate: Option<Rate>,
}

impl Params for Apns {
    fn check(&self, _: &Context, report: &mut Report<'_>) {
        reachable(report, self.endpoint.as_deref(), self.rate);
    }
}

/// `fcm`: Firebase, HTTP v1.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Fcm {
    /// Another address than Google's.
    #[serde(default)]
    endpoint: Option<String>,
    /// The service account's key, a JSON file.
    credentials_file: String,
    /// At most so many calls; the provider's own quota where absent.
    #[serde(default)]
    rate: Option<Rate>,
}

impl Params for Fcm {
    fn check(&self, _: &Context, report: &mut Report<'_>) {
        reachable(report, self.endpoint.as_deref(), self.rate);
    }
}

/// `ses`: Amazon's mail service, API v2.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Ses {
    /// Another address than Amazon's.
    #[serde(default)]
    endpoint: Option<String>,
    /// The region.
    region: String,
    /// The sender, like `App <no-reply@example.com>`.
    from: String,
    /// At most so many calls; the provider's own quota where absent.
    #[serde(default)]
    rate: Option<Rate>,
}

impl Params for Ses {
    fn check(&self, _: &Context, report: &mut Report<'_>) {
        reachable(report, self.endpoint.as_deref(), self.rate);
        if !self.from.contains('@') {
            let found = "a sender without an address";
            report.finding(&[key("from")], Code::InvalidValue, found, "one like `App <no-reply@example.com>`");
        }
    }
}

fn reachable(report: &mut Report<'_>, endpoint: Option<&str>, rate: Option<Rate>) {
    if endpoint.is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://")) {
        let found = "an endpoint without a scheme";
        report.finding(&[key("endpoint")], Code::InvalidValue, found, "an address like `https://host:port`");
    }
    if let Some(rate) = rate.filter(|rate| rate.max == 0 || rate.per.0.is_zero()) {
        let found = format!("the rate `{rate}` lets nothing through");
        report.finding(&[key("rate")], Code::ZeroLimit, found, "a rate like `600000/m`");
    }
}
