//! The whole story of one event, in words that a support person understands: a pure function of rows.
//!
//! Rows of a user go in, in any order and more than needed; the story takes its event's own, those of
//! the notifications that the event became part of (a merge names the new one), and of their legs and
//! deliveries. What rows don't hold (who did it to what, the user's zone, which candidates a leg lost
//! on its way) comes from a [`Context`], and the story is told without it where it is not known.

mod ends;
pub mod record;
pub mod rows;
mod steps;
mod time;
mod undone;
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
    /// Channels of the types that name their own in the policies.
    pub type_channels: BTreeMap<String, Vec<Channel>>,
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
    /// Until when that waits by its newest word: it may have been put off since.
    joined_until: Option<Instant>,
    /// On the critical path: a leg of the event that it repeats.
    repeats: Option<&'a Row>,
    fate: Fate,
    clock: WallClock,
}

impl<'a, 'c> Teller<'a, 'c> {
    fn new(rows: impl IntoIterator<Item = &'a Row>, event: EventId, context: &'c Context) -> Option<Self> {
        let mut once = BTreeSet::new();
        let mut sorted: Vec<&Row> = rows.into_iter().collect();
        sorted.sort_by_key(|row| (row.at, row.epoch, row.unit, row.attempt, row.row_id));
        // Of exact repeats the earliest stays, as in the record.
        sorted.retain(|row| once.insert(row.row_id));
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
        let stays = |row: &&&Row| {
            !row.states.iter().any(|state| ends_membership(*state)) || row.states.contains(&State::Created)
        };
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
        let (mut legs, mut deliveries) = (of(Unit::Leg), of(Unit::Delivery));
        let last = notifications.last().copied().unwrap_or_default();
        let group = own.iter().rev().map(|row| row.group).find(|group| *group != GroupId::default());
        let shares = |row: &Row| {
            (row.notification == last && last != NotificationId::default())
                || group.is_some_and(|group| group == row.group)
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
        let joined_until = joined.and_then(|joined| {
            let waits = |row: &&&Row| {
                row.unit == Unit::Leg && row.leg == joined.leg && row.until.is_some() && row.at >= joined.at
            };
            sorted.iter().rev().find(waits).and_then(|row| row.until)
        });
        let told = own.iter().chain(&legs).chain(&deliveries).copied();
        let fate = Fates::of(told).event(event).unwrap_or(Fate::Unaccounted);
        let mut repeats = None;
        if fate == Fate::Deduplicated && left.is_none() {
            // What became of the notification is the first one's story.
            repeats = legs.iter().copied().find(|row| row.states.contains(&State::Created));
            (legs, deliveries) = (Vec::new(), Vec::new());
        }
        let clock = WallClock::new(context.zone.as_ref()).from(first.created_at);
        Some(Self {
            event,
            context,
            own,
            legs,
            deliveries,
            notifications,
            companions,
            joined,
            joined_until,
            repeats,
            fate,
            clock,
        })
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
        self.title_of(self.event)
    }

    /// What `event` is: this one, or one that it repeats.
    fn title_of(&self, event: EventId) -> String {
        let known = self.context.events.get(&event);
        match (known, self.own.iter().find(|row| !row.event_type.is_empty())) {
            (Some(event), _) => title(event),
            (None, Some(row)) => format!("the “{}” event", words::spaced(&row.event_type)),
            (None, None) => "a record".to_owned(),
        }
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
