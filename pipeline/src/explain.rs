//! The whole story of one event, in words that a support person understands: a pure function of rows.
//!
//! Rows of a user go in, in any order and more than needed; the story takes its event's own, those of
//! the notifications that the event became part of (a merge names the new one), and of their legs and
//! deliveries. What rows don't hold (who did it to what, the user's zone, which candidates a leg lost
//! on its way) comes from a [`Context`], and the story is told without it where it is not known.

pub mod rows;
mod time;
mod view;
pub mod words;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tidings_operators::calendar::Zone;
use tidings_schemas::channel::{Channel, Op, Priority};
use tidings_schemas::event::Event;
use tidings_schemas::ids::{EventId, GroupId, LegId, NotificationId};
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_schemas::profile::Profile;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_sinks::record::fates::{Fate, Fates};

pub use time::WallClock;
pub use view::Colour;
use words::Matter;

/// Names that a story lists before it says "and N more".
const NAMES_TOLD_MAX: usize = 3;

/// What is known beside the rows.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Events as their producers wrote them.
    pub events: BTreeMap<EventId, Event>,
    /// The user's zone; UTC where none is known.
    pub zone: Option<Zone>,
    /// The user's profile as it is now.
    pub profile: Option<Profile>,
    /// Candidates that legs lost, with reason.
    pub struck: BTreeMap<LegId, Vec<(Channel, Reason)>>,
}

impl Context {
    /// Takes from a lane record what its rows do not say.
    pub fn observe_lane(&mut self, record: &LaneRecord) {
        if !record.struck.is_empty() {
            self.struck.insert(record.leg, record.struck.clone());
        }
    }
}

/// How an end is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    /// The user was told.
    Good,
    /// Not decided, or on its way.
    Open,
    /// Waits for its time.
    Waiting,
    /// Not said, and rightly so: never shown as a failure.
    Quiet,
    /// Something went wrong.
    Bad,
}

/// What became of the event, in a word and in a clause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    /// The fate's word: one of the sum's, or `accepted` before any decision.
    pub word: String,
    /// The same for people.
    pub text: String,
    /// How to take it.
    pub tone: Tone,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// When.
    pub at: Instant,
    /// When, on the user's wall clock.
    pub local: String,
    /// What and why.
    pub text: String,
    /// The operator or stage that did it.
    pub by: String,
    /// How to take it.
    pub tone: Tone,
}

/// What became of the event on one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChannelEnd {
    /// The channel.
    pub channel: Channel,
    /// Whether it is the silent copy in the inbox.
    pub silent: bool,
    /// What became of it.
    #[serde(flatten)]
    pub end: End,
}

/// Ids by which the record knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ids {
    /// The event.
    pub event: String,
    /// What a producer or caller holds.
    pub intent: Option<String>,
    /// The producer's own id.
    pub own: Option<String>,
    /// The notifications that it became part of, the last one last.
    pub notifications: Vec<String>,
    /// The group.
    pub group: Option<String>,
    /// Legs.
    pub legs: Vec<String>,
    /// Deliveries.
    pub deliveries: Vec<String>,
}

/// The story of one event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Story {
    /// All of it in a sentence or two.
    pub headline: String,
    /// What the event is, like `Bob's like of photo7`.
    pub title: String,
    /// What became of it.
    pub end: End,
    /// Who was to be told.
    pub user: String,
    /// The zone of all local times.
    pub zone: String,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Its category.
    pub category: String,
    /// Its priority.
    pub priority: Option<Priority>,
    /// When it was accepted.
    pub at: Instant,
    /// The same on the user's wall clock.
    pub local: String,
    /// What happened, in order.
    pub steps: Vec<Step>,
    /// What was decided not to do, and why.
    pub not_done: Vec<String>,
    /// What became of it on each channel.
    pub channels: Vec<ChannelEnd>,
    /// What would have made the difference.
    pub hints: Vec<String>,
    /// Events told in the same notification, this one included.
    pub told_together: usize,
    /// The ids.
    pub ids: Ids,
}

/// The story of `event`. `None`: the rows do not know it.
#[must_use]
pub fn explain<'a>(rows: impl IntoIterator<Item = &'a Row>, event: EventId, context: &Context) -> Option<Story> {
    Some(Teller::new(rows, event, context)?.story())
}

/// The rows of one event's story, sorted and sifted.
struct Teller<'a, 'c> {
    event: EventId,
    context: &'c Context,
    own: Vec<&'a Row>,
    legs: Vec<&'a Row>,
    deliveries: Vec<&'a Row>,
    /// In the order in which the event became part of them.
    notifications: Vec<NotificationId>,
    companions: BTreeSet<EventId>,
    /// How what it joined was waiting.
    joined: Option<&'a Row>,
    fate: Fate,
    clock: WallClock,
}

impl<'a, 'c> Teller<'a, 'c> {
    fn new(rows: impl IntoIterator<Item = &'a Row>, event: EventId, context: &'c Context) -> Option<Self> {
        let mut once = BTreeSet::new();
        let mut sorted: Vec<&Row> = rows.into_iter().filter(|row| once.insert(row.row_id)).collect();
        sorted.sort_by_key(|row| (row.at, row.epoch, row.unit, row.attempt, row.row_id));
        let own: Vec<&Row> =
            sorted.iter().copied().filter(|row| row.unit == Unit::Event && row.event == event).collect();
        let first = *own.first()?;
        // What its group does after it left is not its story any more.
        let left = own.iter().find(|row| row.states.iter().any(|state| ends_membership(*state))).map(|row| row.at);
        let in_time = |row: &&Row| left.is_none_or(|left| row.at <= left);
        let mut notifications: Vec<NotificationId> = Vec::new();
        let note = |notifications: &mut Vec<NotificationId>, id: NotificationId| {
            if id != NotificationId::default() && !notifications.contains(&id) {
                notifications.push(id);
            }
        };
        // A row by which it left names the notification that it was in by then, which others share.
        let stays = |row: &&&Row| !row.states.iter().any(|state| ends_membership(*state)) || row.states.contains(&State::Created);
        own.iter().filter(stays).for_each(|row| note(&mut notifications, row.notification));
        let mut seen = 0;
        while seen < notifications.len() {
            let from = notifications[seen];
            seen += 1;
            let merged = sorted.iter().filter(|row| row.unit == Unit::Leg && row.notification == from);
            for row in merged.filter(|row| row.states.contains(&State::Merged)).filter(in_time_ref(&in_time)) {
                if let Ok(into) = row.caused_by.parse() {
                    note(&mut notifications, into);
                }
            }
        }
        let of = |unit| {
            let told = |row: &&Row| row.unit == unit && notifications.contains(&row.notification) && in_time(row);
            sorted.iter().copied().filter(told).collect::<Vec<_>>()
        };
        let (legs, deliveries) = (of(Unit::Leg), of(Unit::Delivery));
        let last = notifications.last().copied().unwrap_or_default();
        let group = own.iter().rev().map(|row| row.group).find(|group| *group != GroupId::default());
        let shares = |row: &Row| {
            (row.notification == last && last != NotificationId::default()) || group.is_some_and(|group| group == row.group)
        };
        let companions = match left {
            Some(_) => BTreeSet::new(),
            None => {
                let events = sorted.iter().filter(|row| row.unit == Unit::Event && row.event != event);
                let gone: BTreeSet<EventId> = events
                    .clone()
                    .filter(|row| row.states.iter().any(|state| ends_membership(*state)))
                    .map(|row| row.event)
                    .collect();
                let together = events.filter(|row| row.states.contains(&State::Merged) && shares(row));
                together.map(|row| row.event).filter(|other| !gone.contains(other)).collect()
            }
        };
        let joined = own.iter().find(|row| row.states.contains(&State::Merged)).and_then(|join| {
            let waits = |row: &&&Row| {
                row.unit == Unit::Leg
                    && row.operator == join.operator
                    && row.event_type == join.event_type
                    && row.at <= join.at
                    && !notifications[..notifications.len().saturating_sub(1)].contains(&row.notification)
                    && row.states.iter().any(|state| matches!(state, State::Deferred | State::RateLimited))
            };
            sorted.iter().rev().find(waits).copied()
        });
        let told = own.iter().chain(&legs).chain(&deliveries).copied();
        let fate = Fates::of(told).event(event).unwrap_or(Fate::Unaccounted);
        let clock = WallClock::new(context.zone.as_ref()).from(first.created_at);
        Some(Self { event, context, own, legs, deliveries, notifications, companions, joined, fate, clock })
    }

    fn story(&self) -> Story {
        let first = self.own[0];
        // A row that names type and priority: the first one may come from a rejected record.
        let facts = self.own.iter().find(|row| !row.event_type.is_empty()).copied().unwrap_or(first);
        let channels = self.channels();
        let end = self.end(&channels);
        let title = self.title();
        Story {
            headline: self.headline(&title, &channels),
            title,
            end,
            user: first.user.clone(),
            zone: self.clock.zone().to_owned(),
            event_type: facts.event_type.clone(),
            category: facts.category.clone(),
            priority: facts.priority,
            at: first.created_at,
            local: self.clock.text(first.created_at),
            steps: self.steps(),
            not_done: self.not_done(),
            channels,
            hints: self.hints(),
            told_together: self.companions.len() + 1,
            ids: self.ids(),
        }
    }

    fn title(&self) -> String {
        let known = self.context.events.get(&self.event);
        match (known, self.own.iter().find(|row| !row.event_type.is_empty())) {
            (Some(event), _) => title(event),
            (None, Some(row)) => format!("the “{}” event", words::spaced(&row.event_type)),
            (None, None) => "a record".to_owned(),
        }
    }

    // What happened, in order.

    fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut rows: Vec<&Row> = self.own.iter().chain(&self.legs).chain(&self.deliveries).copied().collect();
        rows.sort_by_key(|row| (row.at, row.epoch, row.unit, row.silent, row.attempt, row.row_id));
        let last_merge = self.own.iter().rev().find(|row| row.states.contains(&State::Merged)).map(|row| row.row_id);
        for row in rows {
            for (text, tone) in self.tell(row, last_merge == Some(row.row_id)) {
                let local = self.clock.column(row.at);
                let repeats = steps.iter().any(|step| step.text == text && step.local == local);
                if !text.is_empty() && !repeats {
                    let by = if row.operator.is_empty() { row.stage.as_str().to_owned() } else { row.operator.clone() };
                    steps.push(Step { at: row.at, local, text, by, tone });
                }
            }
        }
        steps
    }

    /// What one row tells, a sentence for each state that says something.
    fn tell(&self, row: &Row, is_last_merge: bool) -> Vec<(String, Tone)> {
        let until = row.until.map(|until| self.clock.text(until));
        let matter = matter(row, until.as_deref());
        let is_first = row.unit == Unit::Event && row.states.contains(&State::Created);
        let mut told = Vec::new();
        if is_first && !row.states.contains(&State::Rejected) {
            told.push((format!("{} was accepted.", words::capital(&self.title())), Tone::Open));
        }
        if row.silent && row.states.contains(&State::Queued) {
            told.push(("A silent copy goes to the app's inbox, without sound or badge.".to_owned(), Tone::Open));
            return told;
        }
        for state in telling(row) {
            let text = match (state, row.unit) {
                (State::Merged, Unit::Event) => match self.joined.filter(|_| self.is_join(row)) {
                    Some(joined) => self.joins(joined),
                    None if is_last_merge => format!("Put together with {} into one notification.", self.others()),
                    None => continue,
                },
                // Its event says so.
                (State::Merged, Unit::Leg) if self.own.iter().any(|row| row.states.contains(&State::Merged)) => continue,
                (State::Rejected, _) if !row.caused_by.is_empty() => {
                    format!("{} {}.", words::sentence(state, row.reason, matter), words::capital(&row.caused_by))
                }
                (State::Deduplicated, _) => format!("{}{}", words::sentence(state, row.reason, matter), self.original(row)),
                (State::Deferred, _) => match &until {
                    Some(until) => format!("Not sent at once: it is quiet for the user until {until}. It waits until then."),
                    None => words::sentence(state, row.reason, matter),
                },
                (State::RateLimited, _) => match &until {
                    Some(until) => format!(
                        "Not sent at once: {}. It waits for room until {until}, and is told together with what else comes.",
                        words::why(Reason::RateLimited, matter)
                    ),
                    None => words::sentence(state, row.reason, matter),
                },
                (State::Suppressed, Unit::Event) => words::sentence(state, row.reason, Matter { channel: None, ..matter }),
                (State::Suppressed, _) => match row.reason {
                    Some(reason) => format!("Not sent{}: {}.", by_channel(row), why_not(reason, row, matter)),
                    None => words::sentence(state, None, matter),
                },
                (State::Queued, _) if self.spread(row).is_some() => format!(
                    "Released {} after the quiet hours ended (a morning's messages are spread out), and handed over to be sent{}.",
                    self.spread(row).unwrap_or_default(),
                    by_channel(row)
                ),
                (State::Queued, _) if self.waited(row) => format!("Released, and handed over to be sent{}.", by_channel(row)),
                (State::Queued, _) => words::sentence(state, None, matter),
                (State::Retracted | State::Cancelled, Unit::Event) => self.taken_back(state, row, matter),
                (State::FailedOver, _) => format!(
                    "{} Another channel takes its place.",
                    words::sentence(State::Returned, row.reason, matter)
                ),
                (State::Sent, _) if row.channel == Some(Channel::InApp) => continue,
                (State::Delivered, _) if row.states.contains(&State::Sent) && row.channel != Some(Channel::InApp) => continue,
                (State::Dlq, _) if row.states.contains(&State::Failed) => words::sentence(state, None, matter),
                (State::Sent | State::Delivered | State::Failed | State::Retry, _) => self.call(state, row, matter),
                _ => words::sentence(state, row.reason, matter),
            };
            let tone = if row.states.contains(&State::Delivered) { Tone::Good } else { tone_of(state) };
            let because = match (row.unit, row.caused_by.as_str()) {
                (Unit::Leg, "profile") => "The user's profile or addresses changed. ",
                (Unit::Leg, "rules") => "The policies changed. ",
                _ => "",
            };
            told.push((format!("{because}{text}"), tone));
        }
        told
    }

    /// What came of a call, with the provider's own answer.
    fn call(&self, state: State, row: &Row, matter: Matter<'_>) -> String {
        let answer = if row.code.is_empty() { String::new() } else { format!(" Its answer: {}.", row.code) };
        let provider = words::provider(&row.provider);
        match state {
            State::Sent if row.states.contains(&State::Delivered) => format!("Given to {provider}, which accepted it."),
            State::Sent => format!("Given to {provider}{}.", by_channel(row)),
            State::Delivered => words::sentence(state, None, matter),
            State::Retry => {
                let until = matter.until.map_or(String::new(), |until| format!(" at {until}"));
                format!("{} did not take it; attempt {} follows{until}.{answer}", words::capital(provider), row.attempt + 1)
            }
            _ => format!("{}{answer}", words::sentence(state, row.reason, matter)),
        }
    }

    fn taken_back(&self, state: State, row: &Row, matter: Matter<'_>) -> String {
        let by = row.caused_by.parse::<EventId>().ok().and_then(|id| self.context.events.get(&id));
        // A control item's own row has no other cause than itself.
        if self.is_control() || row.caused_by.is_empty() {
            return match state {
                State::Cancelled => "What it names was cancelled before the user was told.".to_owned(),
                _ => "What it names was taken back before the user was told.".to_owned(),
            };
        }
        match by.and_then(|event| event.actor.as_ref()) {
            Some(actor) => {
                let name = actor.name.as_ref().unwrap_or(&actor.id);
                format!("{name} took it back before the user was told.")
            }
            None => words::sentence(state, row.reason, matter),
        }
    }

    fn original(&self, row: &Row) -> String {
        let Some(original) = row.caused_by.strip_prefix("repeats ") else { return String::new() };
        format!(" The first was {original}.")
    }

    /// Whether the leg of `row` waited before.
    fn waited(&self, row: &Row) -> bool {
        let waits = |other: &&Row| other.at < row.at && other.states.iter().any(|state| is_waiting(*state));
        self.joined.is_some() || self.legs.iter().chain(&self.own).copied().any(|other| waits(&other))
    }

    /// How long after the end of the quiet hours a leg that waited for it was released.
    fn spread(&self, row: &Row) -> Option<String> {
        let waits = |other: &&&Row| {
            other.at < row.at && other.reason == Some(Reason::QuietHours) && other.states.iter().any(|state| is_waiting(*state))
        };
        let waited = self.legs.iter().rev().find(waits).copied().or(self.joined.filter(|row| waits(&&&**row)))?;
        let minutes = (row.at.0 - waited.until?.0) / 60_000;
        // A later release had other causes.
        (1..=180).contains(&minutes).then(|| format!("{minutes} minute{}", if minutes == 1 { "" } else { "s" }))
    }

    /// Whether `row` joined others that waited, rather than left with them.
    fn is_join(&self, row: &Row) -> bool {
        self.own.iter().find(|row| row.states.contains(&State::Merged)).is_some_and(|first| first.row_id == row.row_id)
    }

    /// That it joined what waits, and how long that does.
    fn joins(&self, joined: &Row) -> String {
        let until = joined.until.map_or(String::new(), |until| format!(" until {}", self.clock.text(until)));
        let why = joined.reason.map_or(String::new(), |reason| format!(", because {}", words::why(reason, matter(joined, None))));
        format!("Not sent at once: it joined others that wait{until}{why}.")
    }

    /// With whom it is told: `Alice's`, `Alice's and Carol's`, `Alice's, Bob's, Carol's and 40 more`.
    fn others(&self) -> String {
        let own = self.actor(self.event);
        let mut names: Vec<String> = Vec::new();
        for other in &self.companions {
            if let Some(name) = self.actor(*other).filter(|name| own.as_ref() != Some(name)) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        let count = self.companions.len();
        if names.is_empty() {
            return match count {
                0 => "others like it".to_owned(),
                1 => "one other event".to_owned(),
                _ => format!("{count} other events"),
            };
        }
        names.sort();
        let most = if names.len() == NAMES_TOLD_MAX + 1 { names.len() } else { NAMES_TOLD_MAX };
        let more = names.len().saturating_sub(most);
        names.truncate(most);
        let mut words: Vec<String> = names.into_iter().map(|name| format!("{name}'s")).collect();
        if more > 0 {
            words.push(format!("{more} more people's"));
        }
        words::list(&words)
    }

    fn actor(&self, event: EventId) -> Option<String> {
        let actor = self.context.events.get(&event)?.actor.as_ref()?;
        Some(actor.name.clone().unwrap_or_else(|| actor.id.clone()))
    }

    // What was not done.

    fn not_by(&self, channel: Channel, reason: Reason, row: &Row) -> String {
        let matter = Matter { channel: Some(channel), ..matter(row, None) };
        format!("not {}: {}", words::by(channel), why_not(reason, row, matter))
    }

    fn not_done(&self) -> Vec<String> {
        let mut said: Vec<String> = Vec::new();
        let mut struck_channels = BTreeSet::new();
        let mut say = |text: String| {
            let text = format!("{}.", words::capital(&text));
            if !said.contains(&text) {
                said.push(text);
            }
        };
        for row in &self.own {
            for (channel, reason) in struck(row).unwrap_or_default() {
                struck_channels.insert(channel);
                say(self.not_by(channel, reason, row));
            }
        }
        let used: BTreeSet<Channel> = self
            .legs
            .iter()
            .filter(|row| row.states.contains(&State::Queued) && !row.silent)
            .filter_map(|row| row.channel)
            .collect();
        for row in self.legs.iter().filter(|row| !row.silent) {
            if let (true, Some(channel), Some(reason)) = (row.states.contains(&State::Suppressed), row.channel, row.reason)
            {
                struck_channels.insert(channel);
                say(self.not_by(channel, reason, row));
            }
            for (channel, reason) in self.context.struck.get(&row.leg).into_iter().flatten() {
                struck_channels.insert(*channel);
                say(self.not_by(*channel, *reason, row));
            }
        }
        if self.own.iter().any(|row| row.priority == Some(Priority::Critical)) && !used.is_empty() {
            say("nothing held it back: what is critical passes quiet hours, limits and gathering".to_owned());
        }
        let explicit = self.context.events.get(&self.event).is_some_and(|event| event.channels.is_some());
        let priority = self.own.iter().find_map(|row| row.priority);
        if let (1, false, Some(channel), Some(priority)) = (used.len(), explicit, used.first(), priority) {
            if priority != Priority::Critical {
                let others: Vec<String> = [Channel::Push, Channel::Email]
                    .into_iter()
                    .filter(|other| other != channel && !struck_channels.contains(other))
                    .map(|other| words::channel(other).to_owned())
                    .collect();
                if !others.is_empty() {
                    let were = if others.len() == 1 { "was" } else { "were" };
                    say(format!(
                        "{} {were} not used: at {} priority one channel is enough, and {} came first",
                        words::list(&others),
                        words::priority(priority),
                        words::channel(*channel)
                    ));
                }
            }
        }
        said
    }

    // What would have made the difference.

    fn hints(&self) -> Vec<String> {
        let mut hints: Vec<String> = Vec::new();
        let mut reasons: Vec<(Reason, Option<Channel>, &Row)> = Vec::new();
        for row in self.own.iter().chain(&self.legs).chain(&self.deliveries) {
            let struck = struck(row).unwrap_or_default();
            reasons.extend(struck.into_iter().map(|(channel, reason)| (reason, Some(channel), *row)));
            let ends = row.states.iter().any(|state| {
                matches!(
                    state,
                    State::Suppressed | State::Rejected | State::Deduplicated | State::Expired | State::Failed | State::Dlq
                )
            });
            if let (true, Some(reason)) = (ends, row.reason) {
                reasons.push((reason, row.channel, *row));
            }
        }
        let arrived = self.channels().iter().any(|channel| !channel.silent && channel.end.tone == Tone::Good);
        // Where the user was told, an address that is missing elsewhere made no difference.
        reasons.retain(|(reason, ..)| !(arrived && *reason == Reason::Unreachable));
        for (reason, channel, row) in reasons {
            let matter = Matter { channel, ..matter(row, None) };
            let switched = channel.filter(|_| reason == Reason::OptedOut).and_then(|channel| self.switch(channel, row));
            if let Some(hint) = switched.or_else(|| words::hint(reason, matter)) {
                if !hints.contains(&hint) {
                    hints.push(hint);
                }
            }
        }
        hints
    }

    /// Which of the user's switches is off, as the profile stands now.
    fn switch(&self, channel: Channel, row: &Row) -> Option<String> {
        let profile = self.context.profile.as_ref()?;
        let off = |switches: Option<&BTreeMap<Channel, bool>>| switches.and_then(|of| of.get(&channel)) == Some(&false);
        let name = words::channel(channel);
        let what = if off(Some(&profile.channels)) {
            format!("{name} off altogether")
        } else if off(profile.types.get(&row.event_type)) {
            format!("{name} off for “{}”", words::spaced(&row.event_type))
        } else if off(profile.categories.get(&row.category)) {
            format!("{name} off for {} messages", words::spaced(&row.category))
        } else {
            return None;
        };
        Some(format!("The user switched {what}; switched on again, the next one can take it."))
    }

    // What became of it.

    fn channels(&self) -> Vec<ChannelEnd> {
        let mut legs: BTreeMap<(bool, LegId), Vec<&Row>> = BTreeMap::new();
        for row in &self.legs {
            legs.entry((row.silent, row.leg)).or_default().push(row);
        }
        let mut ends: Vec<(Instant, ChannelEnd, bool)> = Vec::new();
        for ((silent, _), rows) in legs {
            let Some(last) = rows.last().copied() else { continue };
            let Some(channel) = rows.iter().rev().find_map(|row| row.channel) else { continue };
            let merged = last.states.contains(&State::Merged);
            let end = self.leg_end(last, channel);
            ends.push((rows[0].at, ChannelEnd { channel, silent, end }, merged));
        }
        let any_left = ends.iter().any(|(_, end, merged)| !merged && !end.silent);
        ends.retain(|(_, _, merged)| !(*merged && any_left));
        ends.sort_by_key(|(at, end, _)| (end.silent, *at, end.channel));
        let mut ends: Vec<ChannelEnd> = ends.into_iter().map(|(_, end, _)| end).collect();
        ends.dedup();
        ends
    }

    fn leg_end(&self, last: &Row, channel: Channel) -> End {
        let by_delivery: Vec<&Row> = self
            .deliveries
            .iter()
            .copied()
            .filter(|row| row.notification == last.notification && row.channel == Some(channel))
            .collect();
        let until = last.until.map(|until| self.clock.text(until));
        let matter = matter(last, until.as_deref());
        let fate = Fates::of([last].into_iter()).sums()[1].fates.iter().find(|(_, units)| *units == 1).map(|(fate, _)| *fate);
        let fate = fate.or_else(|| last_fate(last));
        match fate {
            Some(Fate::Queued) if !by_delivery.is_empty() => self.delivery_end(&by_delivery, channel),
            Some(Fate::Queued) => end("queued", "on its way", Tone::Open),
            Some(Fate::Parked) => {
                let why = last.reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, Matter { until: None, ..matter })));
                let until = until.as_deref().map_or(String::new(), |until| format!(" until {until}"));
                end("parked", &format!("waits{until}{why}"), Tone::Waiting)
            }
            Some(Fate::Suppressed) => {
                let why = last.reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, matter)));
                end("suppressed", &format!("not sent{why}"), Tone::Quiet)
            }
            Some(Fate::Merged) => match self.joined.and_then(|joined| Some((joined, joined.until?))) {
                // Nothing of the group has left yet, or its leg would stand here.
                Some((joined, until)) => {
                    let why = joined.reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, matter)));
                    end("merged", &format!("waits with others until {}{why}", self.clock.text(until)), Tone::Waiting)
                }
                None => end("merged", "told together with others", Tone::Quiet),
            },
            Some(Fate::Expired) => end("expired", "came too late", Tone::Quiet),
            Some(Fate::Cancelled) => end("cancelled", "cancelled", Tone::Quiet),
            Some(Fate::Retracted) => end("retracted", "taken back", Tone::Quiet),
            Some(Fate::Returned) => end("returned", "is judged anew", Tone::Open),
            _ => end("created", "on its way", Tone::Open),
        }
    }

    fn delivery_end(&self, rows: &[&Row], channel: Channel) -> End {
        let mut by_id: BTreeMap<_, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            by_id.entry(row.delivery).or_default().push(row);
        }
        let has = |rows: &[&Row], state: State| rows.iter().any(|row| row.states.contains(&state));
        let providers: BTreeSet<&str> = rows.iter().map(|row| row.provider.as_str()).filter(|name| !name.is_empty()).collect();
        let providers: Vec<String> = providers.into_iter().map(|name| words::provider(name).to_owned()).collect();
        let provider = if providers.is_empty() { words::provider("").to_owned() } else { words::list(&providers) };
        let at = |state: State| {
            rows.iter().find(|row| row.states.contains(&state)).map_or(String::new(), |row| format!(" at {}", self.clock.text(row.at)))
        };
        let count = by_id.values().filter(|rows| has(rows, State::Delivered)).count();
        let reason = rows.iter().rev().find_map(|row| row.reason);
        let matter = Matter { channel: Some(channel), ..matter(rows[rows.len() - 1], None) };
        let why = reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, matter)));
        if count > 0 {
            let devices = if count > 1 { format!(" on {count} addresses") } else { String::new() };
            let took = match channel {
                Channel::InApp => String::new(),
                Channel::Push | Channel::Email | Channel::Sms | Channel::Webhook => format!(" ({provider} accepted it)"),
            };
            end("delivered", &format!("delivered{}{devices}{took}", at(State::Delivered)), Tone::Good)
        } else if has(rows, State::Unknown) {
            let given_up = if has(rows, State::Failed) { format!(", and was given up later{why}") } else { String::new() };
            end("unknown", &format!("may have arrived (the provider's answer was lost){given_up}"), Tone::Bad)
        } else if has(rows, State::Dlq) || has(rows, State::Failed) {
            let word = if has(rows, State::Dlq) { "dead_lettered" } else { "failed" };
            end(word, &format!("could not be delivered{why}"), Tone::Bad)
        } else if has(rows, State::Suppressed) {
            end("suppressed", &format!("not sent{why}"), Tone::Quiet)
        } else if has(rows, State::Expired) {
            end("expired", "came too late", Tone::Quiet)
        } else if has(rows, State::Sent) {
            end("in_flight", &format!("given to {provider}"), Tone::Open)
        } else {
            end("in_flight", "on its way", Tone::Open)
        }
    }

    fn end(&self, channels: &[ChannelEnd]) -> End {
        let loud = channels.iter().find(|channel| !channel.silent);
        let own_reason = self.own.iter().rev().find_map(|row| row.reason);
        match self.fate {
            Fate::Rejected => end("rejected", "refused", Tone::Bad),
            Fate::Deduplicated => end("deduplicated", "a repeat, left out", Tone::Quiet),
            Fate::Retracted => end("retracted", "taken back", Tone::Quiet),
            Fate::Cancelled => end("cancelled", "cancelled", Tone::Quiet),
            Fate::Expired => end("expired", "came too late", Tone::Quiet),
            Fate::Lost => end("lost", "given up by an operator", Tone::Bad),
            Fate::Suppressed => {
                let reason = own_reason.filter(|_| self.legs.is_empty()).or_else(|| self.legs.iter().rev().find_map(|row| row.reason));
                let text = reason.map_or("not sent".to_owned(), |reason| format!("not sent ({})", words::spaced(reason.as_str())));
                end("suppressed", &text, Tone::Quiet)
            }
            Fate::Parked => {
                let until = self.own.iter().chain(&self.legs).filter(|row| !row.silent).max_by_key(|row| row.at).and_then(|row| row.until);
                let until = until.map_or(String::new(), |until| format!(" until {}", self.clock.text(until)));
                end("parked", &format!("waits{until}"), Tone::Waiting)
            }
            Fate::Merged => {
                let tone = loud.map_or(Tone::Waiting, |channel| channel.end.tone);
                let with = format!("with {} other{}", self.companions.len(), plural(self.companions.len()));
                let text = match loud {
                    Some(channel) if tone == Tone::Good => format!("told {with}, {}", words::by(channel.channel)),
                    Some(channel) if tone == Tone::Waiting => {
                        // The clause up to the reason; times have colons of their own.
                        let waits = channel.end.text.split(": ").next().unwrap_or_default();
                        format!("{with}, {}", waits.replacen("waits with others", "waits", 1))
                    }
                    Some(channel) if tone == Tone::Open => format!("{with}, {}", channel.end.text),
                    Some(channel) => format!("{with}, {} {}", words::channel(channel.channel), words::spaced(&channel.end.word)),
                    None => with,
                };
                end("merged", &text, tone)
            }
            Fate::Notified => match loud.or(channels.first()) {
                Some(channel) if channel.end.tone == Tone::Good || channel.end.tone == Tone::Bad => {
                    end("notified", &format!("{} {}", words::channel(channel.channel), words::spaced(&channel.end.word)), channel.end.tone)
                }
                Some(channel) if !channel.silent && channel.end.word != "suppressed" => {
                    end("notified", &format!("{} on its way", words::channel(channel.channel)), Tone::Open)
                }
                _ => end("notified", "in the app's inbox only", Tone::Quiet),
            },
            Fate::Queued
            | Fate::Returned
            | Fate::Delivered
            | Fate::Failed
            | Fate::DeadLettered
            | Fate::Unknown
            | Fate::InFlight
            | Fate::Unaccounted => end("accepted", "accepted, being decided", Tone::Open),
        }
    }

    fn headline(&self, title: &str, channels: &[ChannelEnd]) -> String {
        let first = self.own[0];
        let when = format!("({}, in {})", self.clock.text(first.created_at), self.clock.place());
        let when = if self.clock.place() == "UTC" { format!("({} UTC)", self.clock.text(first.created_at)) } else { when };
        format!("{} {when} {}", words::capital(title), self.outcome(channels))
    }

    /// What became of the event, as the rest of a sentence that begins with it.
    fn outcome(&self, channels: &[ChannelEnd]) -> String {
        let reason = self.own.iter().rev().find_map(|row| row.reason);
        let facts = matter(self.own[self.own.len() - 1], None);
        match self.fate {
            Fate::Rejected => {
                let why = reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, facts)));
                return format!("was refused and put among the dead letters{why}.");
            }
            Fate::Deduplicated => return "repeats an earlier event and was left out.".to_owned(),
            Fate::Retracted if self.is_control() => {
                return "was carried out: what it names was taken back before the user was told.".to_owned();
            }
            Fate::Cancelled if self.is_control() => {
                return "was carried out: what it names was cancelled before the user was told.".to_owned();
            }
            Fate::Retracted => return "was taken back before the user was told of it.".to_owned(),
            Fate::Cancelled => return "was cancelled before the user was told of it.".to_owned(),
            Fate::Expired => return "was not told: when its time came, it was too late.".to_owned(),
            Fate::Lost => return "was given up by an operator's explicit word.".to_owned(),
            _ => {}
        }
        let mut clauses: Vec<String> = Vec::new();
        if let Some(why) = self.first_wait() {
            clauses.push(why);
        }
        let loud: Vec<&ChannelEnd> = channels.iter().filter(|channel| !channel.silent).collect();
        let arrived: Vec<&&ChannelEnd> = loud.iter().filter(|channel| channel.end.tone == Tone::Good).collect();
        let together = match (self.fate, self.companions.is_empty()) {
            (Fate::Merged, false) => format!("told together with {}", self.others()),
            (Fate::Merged, true) => "told together with others".to_owned(),
            _ => "told".to_owned(),
        };
        if !arrived.is_empty() {
            let ways: Vec<String> = arrived
                .iter()
                .map(|channel| format!("{} {}", words::by(channel.channel), channel.end.text.trim_start_matches("delivered").trim()))
                .map(|way| way.trim().to_owned())
                .collect();
            clauses.push(format!("it was {together} {}", words::list(&ways)));
        } else if let Some(channel) = loud.iter().find(|channel| channel.end.tone == Tone::Bad) {
            clauses.push(format!("{}: it {}", words::by(channel.channel), channel.end.text).replacen("by ", "went wrong by ", 1));
        } else if let Some(channel) = loud.iter().find(|channel| channel.end.tone == Tone::Waiting) {
            let among = if self.fate == Fate::Merged { format!(", to be {together}") } else { String::new() };
            if clauses.is_empty() {
                clauses.push(format!("{}{among}", channel.end.text));
            } else {
                clauses.push(format!("it still {}{among}", channel.end.text));
            }
        } else if let Some(channel) = loud.iter().find(|channel| channel.end.tone == Tone::Open) {
            clauses.push(format!("it is on its way {}, {together}", words::by(channel.channel)).replace(", told.", ".").trim_end_matches(", told").to_owned());
        } else if let Some(channel) = loud.first() {
            clauses.push(match channel.end.text.strip_prefix("not sent") {
                Some(why) => format!("was not told {}{why}", words::by(channel.channel)),
                None => format!("{} it {}", words::by(channel.channel), channel.end.text),
            });
        } else if self.fate == Fate::Suppressed {
            let why = reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, facts)));
            let what = if self.is_control() { "had no effect" } else { "was not told" };
            clauses.push(format!("{what}{why}"));
        } else if self.fate == Fate::Merged {
            clauses.push(format!("is to be {together}"));
        }
        if channels.iter().any(|channel| channel.silent && channel.end.tone == Tone::Good) && arrived.is_empty() {
            clauses.push("a silent copy lies in the app's inbox".to_owned());
        }
        if clauses.is_empty() {
            return "was accepted; nothing has been decided yet.".to_owned();
        }
        if clauses.len() == 1 && clauses[0].starts_with("by ") {
            clauses[0].insert_str(0, "was not told: ");
        }
        if !clauses[0].starts_with("had ") && !clauses[0].starts_with("was ") && !clauses[0].starts_with("is ") && !clauses[0].starts_with("wait") {
            // The sentence's subject is the event already.
            clauses[0] = clauses[0].trim_start_matches("it ").to_owned();
        }
        format!("{}.", clauses.join("; "))
    }

    fn is_control(&self) -> bool {
        self.context.events.get(&self.event).is_some_and(|event| event.op != Op::Notify)
    }

    /// Why it was not said at once, of whatever held it first and long.
    fn first_wait(&self) -> Option<String> {
        let over = |row: &Row, until: Instant| {
            self.own.iter().chain(&self.legs).any(|later| later.at >= until && later.at > row.at)
                || self.own.iter().chain(&self.legs).any(|later| later.at > row.at && later.states.contains(&State::Queued))
        };
        let waits = |row: &&&Row| row.states.iter().any(|state| is_waiting(*state)) && row.until.is_some();
        if let Some(row) = self.legs.iter().find(waits) {
            let until = row.until?;
            if !over(row, until) {
                return None;
            }
            let until = self.clock.text(until);
            return Some(match row.reason {
                Some(Reason::QuietHours) => match self.legs.iter().find(|later| later.at > row.at && later.caused_by == "profile") {
                    Some(change) => format!(
                        "was not sent at once, because it was quiet; at {} the user's profile changed",
                        self.clock.text(change.at)
                    ),
                    None => format!("was not sent at once: it was quiet until {until}"),
                },
                Some(Reason::RateLimited) => "was not sent at once: a limit was reached".to_owned(),
                _ => format!("waited until {until}"),
            });
        }
        if let Some((joined, until)) = self.joined.and_then(|row| Some((row, row.until?))) {
            return Some(match joined.reason {
                Some(Reason::QuietHours) if over(joined, until) => {
                    format!("was not sent at once: it was quiet until {}", self.clock.text(until))
                }
                Some(Reason::RateLimited) if over(joined, until) => "was not sent at once: a limit was reached".to_owned(),
                reason => {
                    let why = reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, matter(joined, None))));
                    format!("waits until {}{why}", self.clock.text(until))
                }
            });
        }
        let row = self.own.iter().find(|row| row.states.contains(&State::Scheduled))?;
        let until = row.until?;
        Some(if over(row, until) {
            format!("waited until {}, as its producer asked", self.clock.text(until))
        } else {
            format!("waits until {}, as its producer asked", self.clock.text(until))
        })
    }

    fn ids(&self) -> Ids {
        let texts = |mut ids: Vec<String>| {
            let mut seen = BTreeSet::new();
            ids.retain(|id| seen.insert(id.clone()));
            ids
        };
        let intent = self.own.iter().map(|row| row.intent).find(|intent| *intent != Default::default());
        let group = self.own.iter().rev().map(|row| row.group).find(|group| *group != GroupId::default());
        Ids {
            event: self.event.to_string(),
            intent: intent.map(|intent| intent.to_string()),
            own: self.context.events.get(&self.event).and_then(|event| event.id.clone()),
            notifications: self.notifications.iter().map(ToString::to_string).collect(),
            group: group.map(|group| group.to_string()),
            legs: texts(self.legs.iter().map(|row| row.leg.to_string()).collect()),
            deliveries: texts(self.deliveries.iter().map(|row| row.delivery.to_string()).collect()),
        }
    }
}

fn in_time_ref<'a, 'b>(in_time: &'b impl Fn(&&'a Row) -> bool) -> impl Fn(&&&'a Row) -> bool + 'b {
    move |row| in_time(row)
}

/// What an event is, like `Bob's like of photo7`.
#[must_use]
pub fn title(event: &Event) -> String {
    let kind = words::spaced(&event.event_type);
    let noun = match event.op {
        Op::Notify if event.event_type == "new_follower" => "follow".to_owned(),
        Op::Notify if event.actor.is_none() => format!("“{kind}” event"),
        Op::Notify => kind,
        Op::Retract => format!("retraction of the {kind}"),
        Op::Cancel => format!("cancellation of the “{kind}” event"),
    };
    let subject = match &event.actor {
        Some(actor) => format!("{}'s {noun}", actor.name.as_ref().unwrap_or(&actor.id)),
        None => format!("the {noun}"),
    };
    match &event.object {
        Some(object) => {
            let link = if event.event_type.starts_with("comment") { "on" } else { "of" };
            format!("{subject} {link} {}", object.id)
        }
        None => subject,
    }
}

fn matter<'a>(row: &'a Row, until: Option<&'a str>) -> Matter<'a> {
    Matter { unit: row.unit, channel: row.channel, category: &row.category, provider: &row.provider, until }
}

/// Why a channel was not used; in quiet hours the policy says so together with the clock.
fn why_not(reason: Reason, row: &Row, matter: Matter<'_>) -> String {
    let why = words::why(reason, matter);
    match (reason, row.priority) {
        (Reason::QuietHours, Some(priority)) => {
            format!("{why}, and at {} priority only the app's inbox is used then", words::priority(priority))
        }
        (Reason::RateLimited, Some(Priority::High)) => {
            format!("{why}, and at high priority only the app's inbox is used then")
        }
        _ => why,
    }
}

fn by_channel(row: &Row) -> String {
    row.channel.map_or(String::new(), |channel| format!(" {}", words::by(channel)))
}

/// The channels that a row of `preferences` says may not be used.
fn struck(row: &Row) -> Option<Vec<(Channel, Reason)>> {
    let words = row.caused_by.strip_prefix("not ").filter(|_| row.states.contains(&State::PreferenceChecked))?;
    let one = |word: &str| {
        let (channel, reason) = word.strip_suffix(')')?.split_once(" (")?;
        Some((channel.parse().ok()?, reason.parse().ok()?))
    };
    words.split(", ").map(one).collect()
}

/// The states of a row that say something which no other state of the row says better.
fn telling(row: &Row) -> Vec<State> {
    let has = |state: State| row.states.contains(&state);
    let waits_by_name = has(State::Deferred) || has(State::RateLimited) || has(State::Scheduled);
    let ends = row.states.iter().any(|state| !matches!(state, State::Created | State::Rendered));
    let mut told = row.states.clone();
    told.dedup();
    told.retain(|state| match state {
        State::Validated | State::PreferenceChecked | State::Closed => false,
        State::Created => row.unit != Unit::Event && !ends,
        State::Rendered => !ends,
        State::Parked => !waits_by_name && !has(State::Merged),
        // Waits that were over within the same instant are no waits.
        State::Deferred | State::RateLimited | State::Scheduled => !has(State::Queued),
        State::Returned => !has(State::FailedOver),
        State::Dlq => true,
        State::Sent => !has(State::Retry),
        _ => true,
    });
    told
}

const fn is_waiting(state: State) -> bool {
    matches!(state, State::Parked | State::Deferred | State::RateLimited | State::Scheduled | State::Digested)
}

/// Whether an event leaves its notification by `state`.
const fn ends_membership(state: State) -> bool {
    matches!(
        state,
        State::Retracted | State::Cancelled | State::Expired | State::Rejected | State::Deduplicated | State::Lost
    )
}

fn last_fate(row: &Row) -> Option<Fate> {
    row.states.iter().rev().find_map(|state| match state {
        State::Queued => Some(Fate::Queued),
        State::Merged => Some(Fate::Merged),
        State::Suppressed => Some(Fate::Suppressed),
        State::Expired => Some(Fate::Expired),
        State::Cancelled => Some(Fate::Cancelled),
        State::Retracted => Some(Fate::Retracted),
        State::Parked | State::Deferred | State::RateLimited | State::Scheduled | State::Digested => Some(Fate::Parked),
        State::Returned => Some(Fate::Returned),
        _ => None,
    })
}

const fn tone_of(state: State) -> Tone {
    match state {
        State::Delivered | State::Opened | State::Clicked => Tone::Good,
        State::Parked | State::Deferred | State::RateLimited | State::Scheduled | State::Digested => Tone::Waiting,
        State::Rejected
        | State::Failed
        | State::Retry
        | State::Unknown
        | State::Dlq
        | State::Bounced
        | State::Complained
        | State::Lost => Tone::Bad,
        State::Created
        | State::Validated
        | State::PreferenceChecked
        | State::Rendered
        | State::Queued
        | State::Sent
        | State::Returned
        | State::Escalated
        | State::FailedOver
        | State::Closed => Tone::Open,
        State::Deduplicated
        | State::Cancelled
        | State::Retracted
        | State::Suppressed
        | State::Merged
        | State::Expired
        | State::Dismissed
        | State::Unsubscribed => Tone::Quiet,
    }
}

fn end(word: &str, text: &str, tone: Tone) -> End {
    End { word: word.to_owned(), text: text.to_owned(), tone }
}

const fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
