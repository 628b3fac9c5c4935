//! Scenario scripts: an operator's specification as lines that run.
//!
//! ```text
//! # Promise 6: an opt-out reaches work that is already parked.
//! chain route, quiet_hours
//! addresses u1 push
//! profile u1 {"time_zone":"Europe/Berlin","quiet_hours":{"from":"22:00","to":"07:00"}}
//! at 2026-03-28 23:10 Europe/Berlin
//! event u1 like bob photo7       -> leg push deferred+parked until 2026-03-29 07:00
//! ```
//! A line does one thing in one epoch; what follows `->` must be among what the epoch said, in any
//! order, separated by ` ; `. `-> nothing` means that neither a lane record nor a row was said.
//! [`check`] runs a script on one worker without timely: operators don't know the difference.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidings_schemas::channel::{Channel, ChannelSet};
use tidings_schemas::event::Event;
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, Unit};
use tidings_schemas::policy::{CategoryPolicy, Limits, Policies, QuietRule, QuietRules, TypePolicy};
use tidings_schemas::profile::{MinuteOfDay, Profile, Reachability};
use tidings_schemas::time::Instant;

use crate::calendar::{Calendar, Fold};
use crate::harness::chain::{Block, Chain};
use crate::harness::feed::{Lot, RawRecord};
use crate::harness::output::{EpochOutput, To};
use crate::ingest::{Body, Path, Source, SourceKind, ingest};
use crate::item::Item;
use crate::keyed::Known;
use crate::registry::{Input, Wired, Wiring};
use crate::rules::Rules;

/// The rules that scripts run under: the policies of the model's topology.
///
/// # Panics
/// Never: the policies are constant.
#[must_use]
pub fn rules() -> Rules {
    rules_of(&policies(), Duration::ZERO)
}

/// Rules of these policies, with a provider for every channel but webhook.
///
/// # Panics
/// When a policy's expression does not compile.
#[must_use]
pub fn rules_of(policies: &Policies, spread: Duration) -> Rules {
    let provided: ChannelSet = [Channel::Push, Channel::Email, Channel::Sms, Channel::InApp].into_iter().collect();
    Rules::new(policies, provided, spread, Calendar::bundled()).expect("the script's policies compile")
}

/// The policies that scripts run under.
#[must_use]
pub fn policies() -> Policies {
    use tidings_schemas::channel::Priority::{Critical, High, Low, Medium};
    let of = |category: &str, priority| TypePolicy {
        category: Some(category.to_owned()),
        priority: Some(priority),
        ..TypePolicy::default()
    };
    let mut types = BTreeMap::new();
    types.insert("verification_code".to_owned(), TypePolicy { limits: Limits::Exempt, ..of("security", Critical) });
    types.insert(
        "order_shipped".to_owned(),
        TypePolicy { dedup_key: Some("data.order_id".to_owned()), ..of("transactional", High) },
    );
    types.insert(
        "like".to_owned(),
        TypePolicy { channels: Some(vec![Channel::Push, Channel::Email]), ..of("social", Medium) },
    );
    types.insert("marketing_campaign".to_owned(), of("marketing", Low));
    types.insert("default".to_owned(), of("other", Medium));
    let defer = |channel| (channel, QuietRule::Defer);
    let mut medium: BTreeMap<_, _> = [Channel::Push, Channel::Sms, Channel::Email].map(defer).into();
    medium.insert(Channel::InApp, QuietRule::Silent);
    let quiet_hours = [
        (High, QuietRules::All(QuietRule::InApp)),
        (Medium, QuietRules::ByChannel(medium)),
        (Low, QuietRules::All(QuietRule::Defer)),
    ];
    let consent = CategoryPolicy { needs_consent: vec![Channel::Sms], ..CategoryPolicy::default() };
    let sms = CategoryPolicy { sms_when_critical: true, ..CategoryPolicy::default() };
    let categories = [("marketing".to_owned(), consent), ("security".to_owned(), sms)];
    Policies { types, categories: categories.into(), quiet_hours: quiet_hours.into() }
}

/// A `like` as `validate` would hand it on.
///
/// # Panics
/// Never: the event is well formed.
#[must_use]
pub fn like(user: &str, actor: &str, object: &str, number: u64) -> Item {
    let json = format!(
        r#"{{"id":"like-{number}","type":"like","user_id":"{user}","actor":{{"id":"{actor}"}},"object":{{"id":"{object}"}}}}"#
    );
    item(&json, number)
}

/// An event of any type, adjusted by `change`.
///
/// # Panics
/// Never: the event is well formed.
#[must_use]
pub fn typed(user: &str, event_type: &str, number: u64, change: impl FnOnce(&mut Item)) -> Item {
    let json = format!(r#"{{"id":"e-{number}","type":"{event_type}","user_id":"{user}"}}"#);
    let mut item = item(&json, number);
    change(&mut item);
    item
}

fn item(json: &str, number: u64) -> Item {
    let source = Source { id: "test".into(), kind: SourceKind::Events { unknown_to_data: false } };
    let record = RawRecord {
        offset: number,
        key: None,
        value: Some(Bytes::from(json.to_owned())),
        headers: Vec::new(),
        timestamp: Instant(i64::try_from(number).unwrap_or(0)),
    };
    match ingest(&source, Lot { source: 0, partition: 0 }, &record, &rules(), Path::Decide).body {
        Body::Item(item) => *item,
        other => panic!("not an event: {other:?}"),
    }
}

/// What is known of a user with this profile and an address on each of `channels`.
///
/// # Panics
/// When the profile is not one.
#[must_use]
pub fn known(profile: &str, channels: &[Channel]) -> Known {
    let profile = Profile::from_json(Some(profile.as_bytes())).expect("a profile");
    let mut reachability = Reachability::default();
    for channel in channels {
        reachability.apply(channel.as_str(), Some(&address("u", *channel)));
    }
    Known { profile: Arc::new(profile), reachability: Arc::new(reachability), ..Known::default() }
}

fn address(user: &str, channel: Channel) -> tidings_schemas::profile::Address {
    let json = serde_json::json!({"user_id": user, "address_id": channel, "channel": channel, "address": "x"});
    serde_json::from_value(json).expect("an address")
}

/// Sources of a scripted chain, by number.
const EVENTS: u16 = 0;
const RETURNED: u16 = 1;
const PROFILES: u16 = 2;
const ADDRESSES: u16 = 3;

/// The sources of a scripted chain.
#[must_use]
pub fn sources() -> Vec<Source> {
    let source = |id: &str, kind| Source { id: id.into(), kind };
    vec![
        source("events", SourceKind::Events { unknown_to_data: false }),
        source("returned", SourceKind::Returned),
        source("profiles", SourceKind::Profiles),
        source("addresses", SourceKind::Addresses),
    ]
}

/// A straight chain of these operators, each `(id = kind, parameters, when)`.
#[must_use]
pub fn straight(operators: &[(&str, serde_json::Value, Option<&str>)]) -> Wiring {
    let mut wired: Vec<Wired> = Vec::new();
    for (number, (kind, params, when)) in operators.iter().enumerate() {
        let mut inputs = vec![if number == 0 { Input::Source(0) } else { Input::Operator(number - 1) }];
        // What deliver gives back enters where the model says: beside the events into `dedup`, or at
        // the top of a chain that has none.
        let enters = operators.iter().position(|(kind, ..)| *kind == "dedup").unwrap_or(0);
        if number == enters {
            inputs.push(Input::Source(usize::from(RETURNED)));
        }
        wired.push(Wired {
            id: Arc::from(*kind),
            kind: (*kind).to_owned(),
            params: params.clone(),
            when: when.map(str::to_owned),
            inputs,
            to_lanes: number + 1 == operators.len(),
        });
    }
    Wiring { sources: sources(), operators: wired, more: &[] }
}

/// A script under way: a chain on one worker, a clock, offsets.
pub struct Scenario {
    chain: Chain,
    path: Path,
    sources: Vec<Source>,
    rules: Rules,
    epoch: u64,
    now: Instant,
    offsets: BTreeMap<u16, u64>,
    zone: String,
    names: BTreeMap<String, EventId>,
    events: BTreeMap<String, (EventId, Event)>,
    last_lane: Option<LaneRecord>,
}

impl Scenario {
    /// A scenario over `wiring` under `rules`, at 2026-01-01 00:00 UTC.
    ///
    /// # Panics
    /// When the wiring makes no chain.
    #[must_use]
    pub fn new(wiring: &Wiring, rules: Rules) -> Self {
        Self::on(Path::Decide, wiring, rules)
    }

    /// The same on one of the two paths.
    ///
    /// # Panics
    /// When the wiring makes no chain.
    #[must_use]
    pub fn on(path: Path, wiring: &Wiring, rules: Rules) -> Self {
        let chain = wiring.chain(path).expect("the script's chain");
        let now = "2026-01-01T00:00:00Z".parse().expect("an instant");
        Self {
            chain,
            path,
            sources: wiring.sources.clone(),
            rules,
            epoch: 0,
            now,
            offsets: BTreeMap::new(),
            zone: "UTC".to_owned(),
            names: BTreeMap::new(),
            events: BTreeMap::new(),
            last_lane: None,
        }
    }

    /// Runs one epoch with one record, or with none.
    pub fn step(&mut self, source: u16, key: &str, value: Option<String>) -> EpochOutput {
        let offset = self.offsets.entry(source).or_default();
        let record = RawRecord {
            offset: *offset,
            key: Some(Bytes::from(key.to_owned())),
            value: value.map(Bytes::from),
            headers: Vec::new(),
            timestamp: self.now,
        };
        *offset += 1;
        let lot = Lot { source, partition: 0 };
        let arrived = ingest(&self.sources[usize::from(source)], lot, &record, &self.rules, self.path);
        self.run(vec![Block { lot, target: 0, records: vec![arrived] }])
    }

    fn run(&mut self, blocks: Vec<Block>) -> EpochOutput {
        self.epoch += 1;
        self.chain.epoch(self.epoch, self.now, &self.rules, blocks)
    }

    /// Moves the clock to `at`, with an epoch at every deadline on the way; what they said, joined.
    pub fn advance(&mut self, at: Instant) -> EpochOutput {
        let mut all = EpochOutput::default();
        while let Some(due) = self.chain.next_timer().filter(|due| *due <= at) {
            self.now = self.now.max(due);
            let output = self.run(Vec::new());
            all.join(output);
        }
        self.now = self.now.max(at);
        all
    }
}

/// Runs a script and compares what it says with what it expects.
///
/// # Panics
/// When a line does not say what it should: the message shows the line and all that was said.
pub fn check(script: &str) {
    play(script, |number, line, expected, running, output| {
        let said = running.describe(&output);
        if let Some(expected) = expected {
            let wanted: Vec<_> =
                if expected == "nothing" { Vec::new() } else { expected.split(" ; ").map(str::trim).collect() };
            let missing: Vec<_> = wanted.iter().filter(|want| !said.iter().any(|said| said == *want)).collect();
            let wrong = !missing.is_empty() || (wanted.is_empty() && !said.is_empty());
            assert!(!wrong, "line {number}: {line}\nmissing: {missing:?}\nsaid:\n  {}", said.join("\n  "));
        }
    });
}

/// What a script said, all epochs together: for tests of those who read the record.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Rows, in the order of the epochs.
    pub rows: Vec<Row>,
    /// Lane records.
    pub lanes: Vec<LaneRecord>,
    /// The events of the script, by the names that it gives them.
    pub events: BTreeMap<String, (EventId, Event)>,
}

/// Runs a script for what it says.
///
/// # Panics
/// When a line is none.
#[must_use]
pub fn tell(script: &str) -> Told {
    let mut told = Told::default();
    play(script, |_, _, _, running, output| {
        running.describe(&output);
        for said in &output.said {
            if matches!(said.to, To::Lane(..)) {
                told.lanes.push(serde_json::from_slice(&said.value).expect("a lane record"));
            }
        }
        told.rows.extend(output.rows.decode());
        told.events.clone_from(&running.events);
    });
    told
}

/// Runs a script line by line: number, line, what is expected, and what the epoch said.
fn play(script: &str, mut each: impl FnMut(usize, &str, Option<&str>, &mut Scenario, EpochOutput)) {
    let mut scenario: Option<Scenario> = None;
    let mut spread = Duration::ZERO;
    for (number, line) in script.lines().enumerate() {
        let line = line.split_once('#').map_or(line, |(code, _)| code).trim();
        if line.is_empty() {
            continue;
        }
        let (command, expected) =
            line.split_once("->").map_or((line, None), |(one, two)| (one.trim(), Some(two.trim())));
        if let Some(text) = command.strip_prefix("spread ") {
            spread = text.parse::<tidings_schemas::units::Period>().expect("a span").0;
            continue;
        }
        if let Some(operators) = command.strip_prefix("chain ") {
            let operators: Vec<_> = operators.split(" | ").map(operator).collect();
            let borrowed: Vec<_> =
                operators.iter().map(|(kind, params, when)| (kind.as_str(), params.clone(), when.as_deref())).collect();
            scenario = Some(Scenario::new(&straight(&borrowed), rules_of(&policies(), spread)));
            continue;
        }
        let running = scenario.as_mut().unwrap_or_else(|| panic!("line {}: `chain` comes first", number + 1));
        let output = act(running, command);
        each(number + 1, line, expected, running, output);
    }
}

/// `kind` or `kind {json}` or `kind when expression`.
fn operator(text: &str) -> (String, serde_json::Value, Option<String>) {
    let (text, when) =
        text.split_once(" when ").map_or((text, None), |(text, when)| (text, Some(when.trim().to_owned())));
    let (kind, params) = text.trim().split_once(' ').unwrap_or((text.trim(), "{}"));
    (kind.to_owned(), serde_json::from_str(params).expect("parameters in JSON"), when)
}

fn act(scenario: &mut Scenario, command: &str) -> EpochOutput {
    let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
    match verb {
        "at" => {
            let at = scenario.instant(rest);
            scenario.advance(at)
        }
        "addresses" => {
            let mut words = rest.split_whitespace();
            let user = words.next().expect("a user").to_owned();
            let mut all = EpochOutput::default();
            for word in words {
                let (gone, word) = word.strip_prefix('!').map_or((false, word), |word| (true, word));
                let channel: Channel = word.parse().expect("a channel");
                let value = (!gone).then(|| serde_json::to_string(&address(&user, channel)).expect("an address"));
                all.join(scenario.step(ADDRESSES, &format!("{user}/{channel}"), value));
            }
            all
        }
        "profile" => {
            let (user, json) = rest.split_once(' ').expect("a user and a profile");
            scenario.step(PROFILES, user, Some(json.to_owned()))
        }
        // event NAME USER TYPE [ACTOR [OBJECT]] [json of further fields]
        "event" | "retract" | "cancel" => {
            let (words, json) =
                rest.split_once('{').map_or((rest, None), |(words, json)| (words, Some(format!("{{{json}"))));
            let words: Vec<_> = words.split_whitespace().collect();
            let mut event = serde_json::json!({
                "id": words[0], "user_id": words[1], "type": words[2], "op": if verb == "event" { "notify" } else { verb },
            });
            if let Some(actor) = words.get(3).filter(|actor| **actor != "-") {
                event["actor"] = serde_json::json!({ "id": actor });
            }
            if let Some(object) = words.get(4) {
                event["object"] = serde_json::json!({ "id": object });
            }
            let more: serde_json::Map<String, serde_json::Value> =
                json.map(|json| serde_json::from_str(&json).expect("further fields in JSON")).unwrap_or_default();
            for (key, value) in more {
                event[key] = value;
            }
            let offset = scenario.offsets.get(&EVENTS).copied().unwrap_or(0);
            let id = EventId::new("events", 0, offset);
            scenario.names.insert(words[0].to_owned(), id);
            if let Ok(written) = Event::from_json(event.to_string().as_bytes(), false) {
                scenario.events.insert(words[0].to_owned(), (id, written));
            }
            scenario.step(EVENTS, words[1], Some(event.to_string()))
        }
        "raw" => scenario.step(EVENTS, "", Some(rest.to_owned())),
        // Gives the last lane record back.
        "returned" => {
            let leg = scenario.last_lane.clone().expect("a lane record before");
            let returned = serde_json::json!({ "cause": rest.trim(), "leg": leg });
            scenario.step(RETURNED, &leg.user.clone(), Some(returned.to_string()))
        }
        "tick" => scenario.run(Vec::new()),
        other => panic!("unknown command `{other}`"),
    }
}

impl Scenario {
    /// `2026-03-28 23:10 Europe/Berlin`; date and zone may be left out after the first time.
    fn instant(&mut self, text: &str) -> Instant {
        let mut words: Vec<_> = text.split_whitespace().collect();
        if words.last().is_some_and(|word| word.contains('/') || *word == "UTC") {
            self.zone = words.pop().unwrap_or_default().to_owned();
        }
        let calendar = Calendar::bundled();
        let zone = calendar.zone(&self.zone).unwrap_or_else(|| panic!("unknown zone `{}`", self.zone));
        let (date, time) = match words.as_slice() {
            [date, time] => (Some(*date), *time),
            [time] => (None, *time),
            _ => panic!("not a time: `{text}`"),
        };
        let (minute, seconds) = time
            .rsplit_once(":")
            .filter(|_| time.matches(':').count() == 2)
            .map_or((time, 0), |(minute, seconds)| (minute, seconds.parse::<i64>().expect("seconds")));
        let minute: MinuteOfDay = minute.parse().expect("a time of day");
        let day = date.map_or_else(
            || zone.local(self.now).day,
            |date| {
                let date: jiff::civil::Date = date.parse().expect("a date");
                let epoch = jiff::civil::date(1970, 1, 1);
                i64::from((date - epoch).get_days())
            },
        );
        Instant(zone.instant(day, minute, Fold::Later).0 + seconds * 1000)
    }

    fn local(&self, at: Instant) -> String {
        let calendar = Calendar::bundled();
        let local = calendar.zone(&self.zone).map(|zone| zone.local(at)).expect("the script's zone");
        let date = jiff::civil::date(1970, 1, 1).saturating_add(jiff::Span::new().days(local.day));
        format!("{date} {}", local.minute)
    }

    fn name(&self, event: EventId) -> String {
        let found = self.names.iter().find(|(_, id)| **id == event);
        found.map_or_else(|| event.to_string(), |(name, _)| name.clone())
    }

    /// What an epoch said, a line each: `lane push medium (bob, alice) 2`, `e1 deduplicated (duplicate)`.
    fn describe(&mut self, output: &EpochOutput) -> Vec<String> {
        let mut lines = Vec::new();
        for said in &output.said {
            lines.push(match &said.to {
                To::Lane(channel, priority) => {
                    let record: LaneRecord = serde_json::from_slice(&said.value).expect("a lane record");
                    let silent = if record.silent { " silent" } else { "" };
                    let text = format!(
                        "lane {channel} {priority}{silent} {} actors {} of {}",
                        record.event_type, record.actors_count, record.activities
                    );
                    if !record.silent {
                        self.last_lane = Some(record);
                    }
                    text
                }
                To::HandOver(priority, event) => format!("hand over {} to {priority}", self.name(*event)),
                To::Dlq(reason) => format!("dlq {reason}"),
            });
        }
        for row in output.rows.decode() {
            lines.push(self.describe_row(&row));
        }
        lines
    }

    fn describe_row(&self, row: &Row) -> String {
        let mut line = match row.unit {
            Unit::Event => self.name(row.event),
            Unit::Leg | Unit::Delivery => {
                format!("leg {}", row.channel.map_or("-", Channel::as_str))
            }
        };
        let states: Vec<_> = row.states.iter().map(|state| state.as_str()).collect();
        let _ = write!(line, " {}", states.join("+"));
        if let Some(reason) = row.reason {
            let _ = write!(line, " ({reason})");
        }
        if let Some(until) = row.until {
            let _ = write!(line, " until {}", self.local(until));
        }
        line
    }
}
