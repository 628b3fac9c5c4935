//! Runs a topology's own `tests:` in virtual time, on the chains that `run` would start.
//!
//! A step moves the clock to its `at`, with an epoch at every deadline on the way; then each of its
//! inputs comes in, in an epoch of its own, by the source that its priority belongs to; what one path
//! hands to the other arrives there at once. Then the expectations are held against what was said.
//!
//! What happened to a unit is the newest of its rows. A unit that is parked is parked until something
//! else happens; everything else must have happened since the step before. What happened to an event
//! is what happened to itself, or to its legs where it went on alone (MODEL §5).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tidings_operators::calendar::Calendar;
use tidings_operators::harness::chain::{Block, Chain};
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::harness::output::{EpochOutput, Said, To};
use tidings_operators::ingest::{Path, Source as Incoming, SourceKind, ingest};
use tidings_operators::rules::Rules;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::event::Event;
use tidings_schemas::ids::{EventId, GroupId, LegId, NotificationId};
use tidings_schemas::lane::{HEADER_EVENT, LaneRecord};
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use super::config::{Config, Expectation, Expected, Fate, Moment, Test, TestInput, TestStep};
use super::diagnostic::{Source as SourceText, Span};
use crate::assemble::{AssembleError, Assembly, Half};
use crate::runtime::plan::SourcePlan;

/// Epochs between two steps. A chain that needs more sets timers for the past, over and over.
const EPOCHS_MAX: u32 = 100_000;

/// How one test went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TestReport {
    /// The scenario.
    pub name: String,
    /// Where it stands, from 1.
    pub line: usize,
    /// What did not hold; empty for a test that passed.
    pub failures: Vec<Failure>,
}

/// An expectation that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Where it stands, from 1.
    pub line: usize,
    /// The same, in characters.
    pub column: usize,
    /// The step's time, as written.
    pub at: String,
    /// What was expected.
    pub expected: String,
    /// What was the case.
    pub found: String,
    /// What was said since the step before, one line each.
    pub said: Vec<String>,
}

impl TestReport {
    /// Whether everything held.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Runs all tests of `config`, whose text is `source`.
///
/// # Errors
/// When the topology makes no chains: it was not checked.
pub fn run_tests(config: &Config, source: &SourceText, calendar: &Calendar) -> Result<Vec<TestReport>, AssembleError> {
    let none = BTreeMap::new();
    let assembly = Assembly::new(&config.topology, &config.policies, calendar.clone(), &none)?;
    config.tests.iter().map(|test| run_test(test, &assembly, source, calendar)).collect()
}

fn run_test(
    test: &Test,
    assembly: &Assembly,
    source: &SourceText,
    calendar: &Calendar,
) -> Result<TestReport, AssembleError> {
    let (line, _) = source.line_and_column(test.span.start);
    let mut failures = Vec::new();
    let mut world = World::new(assembly, calendar)?;
    if let Some(first) = test.steps.first() {
        world.now = first.at.at;
    }
    let profiles = test.profiles.iter().cloned().map(|profile| TestInput::Profile(Box::new(profile)));
    let addresses = test.addresses.iter().cloned().map(|address| TestInput::Address(Box::new(address)));
    profiles.chain(addresses).for_each(|input| world.input(&input));
    for step in &test.steps {
        world.step(step);
        for expectation in &step.expect {
            let Err((expected, found)) = world.holds(expectation) else { continue };
            let (line, column) = source.line_and_column(expectation.span.start);
            let said = world.said.clone();
            failures.push(Failure { line, column, at: step.at.written.clone(), expected, found, said });
        }
        if let Some(found) = world.stuck.take() {
            let Span { start, .. } = step.span;
            let ((line, column), at) = (source.line_and_column(start), step.at.written.clone());
            let expected = "the chain to come to rest".to_owned();
            failures.push(Failure { line, column, at, expected, found, said: Vec::new() });
            break;
        }
    }
    Ok(TestReport { name: test.name.clone(), line, failures })
}

/// One of the two chains, and how far its sources have come.
struct Side<'a> {
    path: Path,
    chain: Chain,
    sources: &'a [Incoming],
    plans: &'a [SourcePlan],
    offsets: Vec<u64>,
}

impl<'a> Side<'a> {
    fn new(path: Path, half: &'a Half) -> Result<Self, AssembleError> {
        let sources = &half.wiring.sources;
        let chain = half.wiring.chain(path)?;
        Ok(Self { path, chain, sources, plans: &half.sources, offsets: vec![0; sources.len()] })
    }

    fn source_of(&self, kind: SourceKind) -> Option<usize> {
        self.sources.iter().position(|source| source.kind == kind)
    }

    /// The source that a producer of events of `priority` writes to: the first of its rank, else the
    /// first that there is.
    fn source_for(&self, priority: Priority) -> Option<usize> {
        let is_events = |number: &usize| matches!(self.sources[*number].kind, SourceKind::Events { .. });
        let rank = 1 + priority as u8;
        let mut numbers = (0..self.sources.len()).filter(is_events);
        let first = numbers.clone().next();
        numbers.find(|number| self.plans[*number].rank == rank).or(first)
    }
}

/// What a row says about a unit's fate.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Happened {
    Queued,
    Parked(Option<Instant>),
    Suppressed(Option<Reason>),
    Rejected(Option<Reason>),
    Merged,
    Deduplicated,
    Retracted,
    Cancelled,
    Expired,
}

impl Happened {
    fn of(row: &Row) -> Option<Self> {
        row.states.iter().rev().find_map(|state| {
            Some(match state {
                State::Queued => Self::Queued,
                State::Parked => Self::Parked(row.until),
                State::Suppressed => Self::Suppressed(row.reason),
                State::Rejected => Self::Rejected(row.reason),
                State::Merged => Self::Merged,
                State::Deduplicated => Self::Deduplicated,
                State::Retracted => Self::Retracted,
                State::Cancelled => Self::Cancelled,
                State::Expired => Self::Expired,
                _ => return None,
            })
        })
    }

    fn is(&self, fate: &Fate) -> bool {
        match (self, fate) {
            (Self::Queued, Fate::Queued)
            | (Self::Parked(_), Fate::Parked)
            | (Self::Merged, Fate::Merged)
            | (Self::Deduplicated, Fate::Deduplicated)
            | (Self::Retracted, Fate::Retracted)
            | (Self::Cancelled, Fate::Cancelled)
            | (Self::Expired, Fate::Expired) => true,
            (Self::Parked(until), Fate::ParkedUntil(moment)) => *until == Some(moment.at),
            (Self::Suppressed(reason), Fate::Suppressed(wanted)) | (Self::Rejected(reason), Fate::Rejected(wanted)) => {
                *reason == Some(*wanted)
            }
            _ => false,
        }
    }
}

/// The newest of what happened to a unit.
#[derive(Clone, Debug)]
struct Newest {
    epoch: u64,
    at: Instant,
    happened: Happened,
}

/// A leg's story.
#[derive(Clone, Debug)]
struct Leg {
    channel: Option<Channel>,
    silent: bool,
    event: EventId,
    event_type: String,
    notification: NotificationId,
    group: GroupId,
    members: BTreeSet<EventId>,
    /// Actors and activities, once it is queued.
    told: Option<(u64, u64)>,
    newest: Option<Newest>,
}

/// An event's story.
#[derive(Clone, Debug, Default)]
struct Story {
    event_type: String,
    /// What it was part of.
    notifications: BTreeSet<NotificationId>,
    groups: BTreeSet<GroupId>,
    newest: Option<Newest>,
}

/// A test under way.
struct World<'a> {
    decide: Side<'a>,
    critical: Option<Side<'a>>,
    rules: Arc<Rules>,
    calendar: &'a Calendar,
    now: Instant,
    epoch: u64,
    /// The last epoch of the step before.
    before: u64,
    /// Producers' ids and the newest record of each.
    by_id: BTreeMap<String, EventId>,
    /// Records by number, and their producers' ids.
    names: BTreeMap<EventId, (usize, String)>,
    events: BTreeMap<EventId, Story>,
    legs: BTreeMap<LegId, Leg>,
    /// Channels on which something was queued since the step before.
    sent: Vec<(Channel, String)>,
    /// What was said since the step before.
    said: Vec<String>,
    /// The zone that times are shown in: the step's.
    zone: String,
    stuck: Option<String>,
}

impl<'a> World<'a> {
    fn new(assembly: &'a Assembly, calendar: &'a Calendar) -> Result<Self, AssembleError> {
        Ok(Self {
            decide: Side::new(Path::Decide, &assembly.decide)?,
            critical: assembly.critical.as_ref().map(|half| Side::new(Path::Critical, half)).transpose()?,
            rules: Arc::clone(&assembly.rules),
            calendar,
            now: Instant(0),
            epoch: 0,
            before: 0,
            by_id: BTreeMap::new(),
            names: BTreeMap::new(),
            events: BTreeMap::new(),
            legs: BTreeMap::new(),
            sent: Vec::new(),
            said: Vec::new(),
            zone: "UTC".to_owned(),
            stuck: None,
        })
    }

    fn step(&mut self, step: &TestStep) {
        self.before = self.epoch;
        self.sent.clear();
        self.said.clear();
        self.zone = zone_of(&step.at).unwrap_or("UTC").to_owned();
        self.advance(step.at.at);
        for input in &step.inputs {
            self.input(input);
        }
        // A timer that an input set for this instant is due in the next epoch.
        self.advance(step.at.at);
    }

    /// Moves the clock, with an epoch at every deadline on the way.
    fn advance(&mut self, to: Instant) {
        let mut epochs = 0;
        while let Some(due) = self.decide.chain.next_timer().filter(|due| *due <= to) {
            self.now = self.now.max(due);
            self.run(Path::Decide, Vec::new());
            epochs += 1;
            if epochs == EPOCHS_MAX {
                self.stuck = Some(format!("a timer of {} is due again after {EPOCHS_MAX} epochs", self.clock(due)));
                return;
            }
        }
        self.now = self.now.max(to);
    }

    fn input(&mut self, input: &TestInput) {
        match input {
            TestInput::Profile(profile) => {
                let user = profile.user_id.clone().unwrap_or_default();
                let value = serde_json::to_vec(profile).unwrap_or_default();
                self.side_input(SourceKind::Profiles, &user, &value);
            }
            TestInput::Address(address) => {
                let key = format!("{}/{}", address.user_id, address.address_id);
                let value = serde_json::to_vec(address).unwrap_or_default();
                self.side_input(SourceKind::Addresses, &key, &value);
            }
            TestInput::Event(event) => self.event(event),
        }
    }

    fn side_input(&mut self, kind: SourceKind, key: &str, value: &[u8]) {
        for path in [Path::Decide, Path::Critical] {
            let source = self.side(path).and_then(|side| side.source_of(kind));
            if let Some(source) = source {
                self.record(path, source, key, value, None);
            }
        }
    }

    fn event(&mut self, event: &Event) {
        let priority = event.priority.unwrap_or(self.rules.of_type(&event.event_type).priority);
        // Where its producer would write it. What is wrong about that is `validate`'s to mend.
        let critical = priority == Priority::Critical && event.scheduled_at.is_none();
        let way = |world: &Self, path| world.side(path).and_then(|side| side.source_for(priority));
        let paths = if critical { [Path::Critical, Path::Decide] } else { [Path::Decide, Path::Critical] };
        let place = paths.into_iter().find_map(|path| Some((path, way(self, path)?)));
        let Some((path, source)) = place else { return };
        let Some(side) = self.side(path) else { return };
        let id = EventId::new(&side.sources[source].id, 0, side.offsets[source]);
        let name = event.id.clone().unwrap_or_else(|| format!("{} {}", event.event_type, self.names.len() + 1));
        self.by_id.insert(name.clone(), id);
        self.names.insert(id, (self.names.len(), name));
        let value = serde_json::to_vec(event).unwrap_or_default();
        self.record(path, source, &event.user_id, &value, None);
    }

    fn side(&self, path: Path) -> Option<&Side<'a>> {
        match path {
            Path::Decide => Some(&self.decide),
            Path::Critical => self.critical.as_ref(),
        }
    }

    /// One record, in an epoch of its own.
    fn record(&mut self, path: Path, source: usize, key: &str, value: &[u8], event: Option<EventId>) {
        let (now, rules) = (self.now, Arc::clone(&self.rules));
        let side = match path {
            Path::Decide => Some(&mut self.decide),
            Path::Critical => self.critical.as_mut(),
        };
        let Some(side) = side else { return };
        let record = RawRecord {
            offset: side.offsets[source],
            key: Some(Bytes::copy_from_slice(key.as_bytes())),
            value: Some(Bytes::copy_from_slice(value)),
            headers: event.map(|event| (HEADER_EVENT.to_owned(), Bytes::from(event.to_string()))).into_iter().collect(),
            timestamp: now,
        };
        side.offsets[source] += 1;
        let lot = Lot { source: u16::try_from(source).unwrap_or(u16::MAX), partition: 0 };
        let arrived = ingest(&side.sources[source], lot, &record, &rules, path);
        self.run(path, vec![Block { lot, target: 0, records: vec![arrived] }]);
    }

    fn run(&mut self, path: Path, blocks: Vec<Block>) {
        self.epoch += 1;
        let (epoch, now, rules) = (self.epoch, self.now, Arc::clone(&self.rules));
        let side = match path {
            Path::Decide => Some(&mut self.decide),
            Path::Critical => self.critical.as_mut(),
        };
        let Some(side) = side else { return };
        debug_assert!(side.path == path);
        let output = side.chain.epoch(epoch, now, &rules, blocks);
        self.hear(&output);
        for Said { to, user, value, .. } in output.said {
            let To::HandOver(priority, event, _) = to else { continue };
            let path = if priority == Priority::Critical { Path::Critical } else { Path::Decide };
            let source = self.side(path).and_then(|side| side.source_for(priority));
            match source {
                Some(source) => self.record(path, source, &user, &value, Some(event)),
                None => {
                    let (at, name) = (self.clock(self.now), self.name(event));
                    self.said
                        .push(format!("{at}  event {name}: handed over as {priority}, which no source here reads"));
                }
            }
        }
    }

    // ── what was said ───────────────────────────────────────────────────────────────────────────

    fn hear(&mut self, output: &EpochOutput) {
        // Rows come in the order of their ids; a person expects the order of events.
        let place =
            |row: &&Row| (row.unit, self.names.get(&row.event).map(|(number, _)| *number), row.silent, row.channel);
        let rows = output.rows.decode();
        let mut rows: Vec<&Row> = rows.iter().collect();
        rows.sort_by_key(place);
        for row in rows {
            let newest = Happened::of(row).map(|happened| Newest { epoch: self.epoch, at: row.at, happened });
            match row.unit {
                Unit::Event => {
                    let story = self.events.entry(row.event).or_default();
                    story.event_type.clone_from(&row.event_type);
                    story.notifications.insert(row.notification);
                    story.groups.extend((row.group != GroupId::default()).then_some(row.group));
                    story.newest = newest.or(story.newest.take());
                }
                Unit::Leg | Unit::Delivery => {
                    let older = self.legs.remove(&row.leg);
                    let leg = Leg {
                        channel: row.channel.or(older.as_ref().and_then(|leg| leg.channel)),
                        silent: row.silent,
                        event: row.event,
                        event_type: row.event_type.clone(),
                        notification: row.notification,
                        group: row.group,
                        members: older.as_ref().map(|leg| leg.members.clone()).unwrap_or_default(),
                        told: older.as_ref().and_then(|leg| leg.told),
                        newest: newest.or_else(|| older.and_then(|leg| leg.newest)),
                    };
                    self.legs.insert(row.leg, leg);
                }
            }
            let line = self.describe(row);
            self.said.push(line);
        }
        for said in &output.said {
            let To::Lane(channel, _) = said.to else { continue };
            let Ok(record) = serde_json::from_slice::<LaneRecord>(&said.value) else { continue };
            if let Some(leg) = self.legs.get_mut(&record.leg) {
                leg.members.extend(record.members.iter().copied());
                leg.told = Some((record.actors_count, record.activities));
            }
            let names: Vec<String> = record.members.iter().map(|event| self.name(*event)).collect();
            self.sent.push((channel, format!("{} ({})", record.event_type, names.join(", "))));
        }
    }

    fn name(&self, event: EventId) -> String {
        self.names.get(&event).map_or_else(|| event.to_string(), |(_, name)| name.clone())
    }

    /// A row as a line: `23:15 leg push of e1: deferred, parked until 2026-03-29 07:00 Europe/Berlin (quiet_hours)`.
    fn describe(&self, row: &Row) -> String {
        use fmt::Write as _;
        let mut line = format!("{}  ", self.clock(row.at));
        let _ = match row.unit {
            Unit::Event => write!(line, "event {}:", self.name(row.event)),
            Unit::Leg | Unit::Delivery => {
                let silent = if row.silent { "silent " } else { "" };
                let channel = row.channel.map_or("-", Channel::as_str);
                write!(line, "{silent}leg {channel} of {}:", self.name(row.event))
            }
        };
        let states: Vec<&str> = row.states.iter().map(|state| state.as_str()).collect();
        let _ = write!(line, " {}", states.join(", "));
        if let Some(until) = row.until {
            let _ = write!(line, " until {}", self.clock(until));
        }
        // `merged (merged)` would say nothing twice.
        let told = |reason: &Reason| states.contains(&reason.as_str());
        if let Some(reason) = row.reason.filter(|reason| !told(reason)) {
            let _ = write!(line, " ({reason})");
        }
        line
    }

    /// An instant in the step's zone.
    fn clock(&self, at: Instant) -> String {
        let zone = self.calendar.zone(&self.zone).unwrap_or_else(|| self.calendar.utc());
        let local = zone.local(at);
        let day = tidings_schemas::lifecycle::DayText(local.day);
        let seconds = at.0.rem_euclid(60_000);
        let mut text = format!("{day} {}", local.minute);
        if seconds > 0 {
            text.push_str(&format!(":{:02}", seconds / 1_000));
            if seconds % 1_000 > 0 {
                text.push_str(&format!(".{:03}", seconds % 1_000));
            }
        }
        format!("{text} {}", self.zone)
    }

    // ── what was expected ───────────────────────────────────────────────────────────────────────

    /// Whether it holds; else what was expected and what was found.
    fn holds(&self, expectation: &Expectation) -> Result<(), (String, String)> {
        match &expectation.expected {
            Expected::NothingSent { except } => {
                let wrong: Vec<String> = self
                    .sent
                    .iter()
                    .filter(|(channel, _)| !except.contains(channel))
                    .map(|(channel, what)| format!("{channel}: {what}"))
                    .collect();
                let but: Vec<&str> = except.iter().map(|channel| channel.as_str()).collect();
                let but = if but.is_empty() { String::new() } else { format!(" but on {}", but.join(", ")) };
                match wrong.is_empty() {
                    true => Ok(()),
                    false => Err((format!("nothing sent{but}"), wrong.join("; "))),
                }
            }
            Expected::Fate { event, event_type, leg, fate, actors, activities } => {
                let what = Selected { event: event.as_deref(), event_type: event_type.as_deref(), leg: *leg };
                let counts = (*actors, *activities);
                let found = self.select(&what);
                if found.iter().any(|one| self.matches(one, fate, counts)) {
                    return Ok(());
                }
                let expected = format!("{what} {}{}", self.fate(fate), counted(counts));
                let found: Vec<String> = found.iter().map(|one| self.found(one)).collect();
                let nothing = || "nothing happened to it".to_owned();
                Err((expected, if found.is_empty() { nothing() } else { found.join("; ") }))
            }
        }
    }

    fn matches(&self, (newest, told): &(Newest, Option<(u64, u64)>), fate: &Fate, counts: Counts) -> bool {
        let lasts = matches!(newest.happened, Happened::Parked(_));
        let counts_hold = match (counts, told) {
            ((None, None), _) => true,
            (_, None) => false,
            ((actors, activities), Some((people, events))) => {
                actors.is_none_or(|actors| u64::from(actors) == *people)
                    && activities.is_none_or(|activities| u64::from(activities) == *events)
            }
        };
        newest.happened.is(fate) && (lasts || newest.epoch > self.before) && counts_hold
    }

    /// The newest of what happened to whatever is selected, with what it told once it was queued.
    fn select(&self, what: &Selected<'_>) -> Vec<(Newest, Option<(u64, u64)>)> {
        let of_leg = |leg: &Leg| Some((leg.newest.clone()?, leg.told));
        match (what.event, what.leg) {
            (Some(id), channel) => {
                let Some(event) = self.by_id.get(id) else { return Vec::new() };
                match channel {
                    Some(_) => self.leg_of(*event, channel).and_then(of_leg).into_iter().collect(),
                    None => self.event_fate(*event).into_iter().collect(),
                }
            }
            (None, Some(channel)) => {
                let legs = self.legs.values().filter(|leg| leg.channel == Some(channel));
                let legs = legs.filter(|leg| Some(leg.event_type.as_str()) == what.event_type);
                legs.filter_map(of_leg).collect()
            }
            (None, None) => {
                let events = self.events.iter();
                let events = events.filter(|(_, story)| Some(story.event_type.as_str()) == what.event_type);
                events.filter_map(|(event, _)| self.event_fate(*event)).collect()
            }
        }
    }

    fn legs_of(&self, event: EventId) -> impl Iterator<Item = &Leg> {
        let story = self.events.get(&event);
        self.legs.values().filter(move |leg| {
            let joined = story.is_some_and(|story| {
                story.notifications.contains(&leg.notification) || story.groups.contains(&leg.group)
            });
            leg.event == event || leg.members.contains(&event) || joined
        })
    }

    /// The leg on which the event is now: of those on the channel the one that was last heard of; one
    /// that merged into another gives way to it, and a silent one to one that is not.
    fn leg_of(&self, event: EventId, channel: Option<Channel>) -> Option<&Leg> {
        let legs = self.legs_of(event).filter(|leg| leg.channel == channel && leg.newest.is_some());
        legs.max_by_key(|leg| {
            let newest = leg.newest.as_ref().map(|newest| (newest.epoch, newest.happened != Happened::Merged));
            (newest, !leg.silent)
        })
    }

    /// What happened to an event: to itself, or to its legs where it went on alone.
    fn event_fate(&self, event: EventId) -> Option<(Newest, Option<(u64, u64)>)> {
        let own = self.events.get(&event).and_then(|story| story.newest.clone());
        if let Some(newest) = own.as_ref().filter(|newest| !matches!(newest.happened, Happened::Parked(_))) {
            return Some((newest.clone(), None));
        }
        // MODEL §5: one that tells counts before one that waits, and a silent one last.
        let order = |leg: &&Leg| {
            let rank = match leg.newest.as_ref().map(|newest| &newest.happened) {
                Some(Happened::Queued) if !leg.silent => 0,
                Some(Happened::Parked(_)) => 1,
                Some(Happened::Merged) => 2,
                Some(Happened::Queued) => 3,
                _ => 4,
            };
            (rank, leg.silent)
        };
        let leg = self.legs_of(event).filter(|leg| leg.newest.is_some()).min_by_key(order);
        match leg {
            Some(leg) => Some((leg.newest.clone()?, leg.told)),
            None => own.map(|newest| (newest, None)),
        }
    }

    fn fate(&self, fate: &Fate) -> String {
        match fate {
            Fate::Queued => "queued".to_owned(),
            Fate::Parked => "parked".to_owned(),
            Fate::ParkedUntil(moment) => format!("parked until {}", self.clock(moment.at)),
            Fate::Suppressed(reason) => format!("suppressed ({reason})"),
            Fate::Rejected(reason) => format!("rejected ({reason})"),
            Fate::Merged => "merged".to_owned(),
            Fate::Deduplicated => "deduplicated".to_owned(),
            Fate::Retracted => "retracted".to_owned(),
            Fate::Cancelled => "cancelled".to_owned(),
            Fate::Expired => "expired".to_owned(),
        }
    }

    fn found(&self, (newest, told): &(Newest, Option<(u64, u64)>)) -> String {
        let reason = |reason: &Option<Reason>| reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        let text = match &newest.happened {
            Happened::Queued => "queued".to_owned(),
            Happened::Parked(None) => "parked".to_owned(),
            Happened::Parked(Some(until)) => format!("parked until {}", self.clock(*until)),
            Happened::Suppressed(why) => format!("suppressed{}", reason(why)),
            Happened::Rejected(why) => format!("rejected{}", reason(why)),
            Happened::Merged => "merged".to_owned(),
            Happened::Deduplicated => "deduplicated".to_owned(),
            Happened::Retracted => "retracted".to_owned(),
            Happened::Cancelled => "cancelled".to_owned(),
            Happened::Expired => "expired".to_owned(),
        };
        let told =
            told.map(|(actors, activities)| format!(", telling about {actors} actors and {activities} activities"));
        let earlier = if newest.epoch > self.before { "" } else { ", before this step" };
        format!("{text} at {}{}{earlier}", self.clock(newest.at), told.unwrap_or_default())
    }
}

/// Actors and activities that are expected.
type Counts = (Option<u32>, Option<u32>);

fn counted((actors, activities): Counts) -> String {
    let actors = actors.map(|count| format!("{count} actors"));
    let activities = activities.map(|count| format!("{count} activities"));
    let both: Vec<String> = actors.into_iter().chain(activities).collect();
    if both.is_empty() { String::new() } else { format!(", telling about {}", both.join(" and ")) }
}

/// What an expectation is about.
struct Selected<'a> {
    event: Option<&'a str>,
    event_type: Option<&'a str>,
    leg: Option<Channel>,
}

impl fmt::Display for Selected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(channel) = self.leg {
            write!(f, "leg {channel} of ")?;
        }
        match (self.event, self.event_type) {
            (Some(event), _) => write!(f, "event {event}"),
            (None, Some(event_type)) => write!(f, "a {event_type}"),
            (None, None) => f.write_str("anything"),
        }
    }
}

/// The zone in which a moment is written.
fn zone_of(moment: &Moment) -> Option<&str> {
    moment.written.split_whitespace().last().filter(|word| word.contains('/'))
}
