//! What the console remembers: the newest events with their rows, who the people are, and in which
//! order things changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tidings_operators::calendar::Calendar;
use tidings_schemas::channel::Channel;
use tidings_schemas::event::Event;
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_schemas::profile::Profile;
use tidings_schemas::time::Instant;
use tidings_sinks::record::fates::{Fates, Sum};

use crate::explain::rows::{Query, Rows, event_of};
use crate::explain::{Context, Story, explain, title};

/// Events kept, the newest: about 10 KB each with their rows, so 20 MB. Beyond it the oldest is
/// forgotten, rows and all; the page says so, and `explain` asks the record.
pub const EVENTS_KEPT_MAX: usize = 2_000;
/// People kept: whose profile came last. Of others local time is not known, and told in UTC.
pub const PEOPLE_KEPT_MAX: usize = 500;
/// Rows kept of one event: five attempts on every device of a person are a tenth of it. Beyond it
/// the newest are left out of the story.
const ROWS_OF_EVENT_MAX: usize = 500;
/// Events of one user that a story looks at, the newest: a group holds no more people than this on
/// a page.
const STORY_EVENTS_MAX: usize = 400;
/// Profile changes kept for the page.
const ACTS_KEPT_MAX: usize = 200;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// An event came, or something happened to it.
    Event(EventId),
    /// A person's profile changed.
    Act(u64),
}

#[derive(Default)]
struct Kept {
    place: u64,
    version: u64,
    at: Instant,
    user: String,
    written: Option<Event>,
    raw: Option<String>,
    caption: Option<String>,
    rows: Vec<Row>,
    lanes: Vec<LaneRecord>,
}

/// A change of a person's profile, as the page shows it among the events.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Act {
    pub(super) act: u64,
    pub(super) at: Instant,
    pub(super) user: String,
    pub(super) text: String,
}

/// An event as a list shows it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    pub(super) id: String,
    pub(super) place: u64,
    pub(super) caption: Option<String>,
    pub(super) raw: Option<String>,
    #[serde(flatten)]
    pub(super) story: Option<Story>,
    /// Before any row: what the event says of itself.
    pub(super) untold: Option<Untold>,
}

/// An event of which no row has come yet.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Untold {
    title: String,
    user: String,
    at: Instant,
}

/// A person.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Person {
    user: String,
    zone: String,
    local: String,
    quiet: bool,
    quiet_hours: Option<String>,
    locale: Option<String>,
    off: Vec<String>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Extent {
    pub(super) seen: u64,
    pub(super) kept: usize,
    pub(super) kept_max: usize,
}

#[derive(Default)]
pub(super) struct Memory {
    type_channels: BTreeMap<String, Vec<Channel>>,
    version: u64,
    seen: u64,
    events: BTreeMap<EventId, Kept>,
    by_place: BTreeMap<u64, EventId>,
    by_user: BTreeMap<String, BTreeSet<(u64, EventId)>>,
    by_id: BTreeMap<[u8; 16], BTreeSet<EventId>>,
    changes: BTreeMap<u64, Change>,
    acts: BTreeMap<u64, Act>,
    people: BTreeMap<String, (u64, Profile)>,
    by_age: BTreeMap<u64, String>,
}

impl Memory {
    pub(super) fn new(type_channels: BTreeMap<String, Vec<Channel>>) -> Self {
        Self { type_channels, ..Self::default() }
    }

    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn event(&mut self, id: EventId, at: Instant, value: &[u8], caption: Option<&str>) {
        let written = Event::from_json(value, true).ok();
        let raw = written.is_none().then(|| String::from_utf8_lossy(value).chars().take(500).collect());
        let user = written.as_ref().map(|event| event.user_id.clone()).unwrap_or_default();
        let kept = self.keep(id, at, &user);
        kept.written = written.or(kept.written.take());
        kept.raw = raw;
        kept.caption = caption.map(str::to_owned);
        self.changed(id);
    }

    pub(super) fn row(&mut self, row: &Row) {
        // What is left of the story of a forgotten event would be told wrongly.
        let opens = row.unit == Unit::Event && row.states.contains(&State::Created);
        if !opens && !self.events.contains_key(&row.event) && self.forgets() {
            return;
        }
        let kept = self.keep(row.event, row.created_at, &row.user);
        if kept.rows.len() >= ROWS_OF_EVENT_MAX || kept.rows.iter().any(|known| known.row_id == row.row_id) {
            return;
        }
        kept.rows.push(row.clone());
        let ids = [row.intent.0, row.notification.0, row.group.0, row.leg.0, row.delivery.0];
        for named in ids.into_iter().filter(|named| *named != [0; 16]) {
            self.by_id.entry(named).or_default().insert(row.event);
        }
        self.changed(row.event);
        if row.unit != Unit::Event {
            let told: Vec<EventId> = self.by_id.get(&row.notification.0).into_iter().flatten().copied().collect();
            told.into_iter().for_each(|event| self.changed(event));
        }
    }

    pub(super) fn lane(&mut self, record: &LaneRecord) {
        if let Some(kept) = self.events.get_mut(&record.event).filter(|kept| kept.lanes.len() < ROWS_OF_EVENT_MAX) {
            kept.lanes.push(record.clone());
        }
    }

    pub(super) fn profile(&mut self, user: &str, profile: &Profile, at: Instant, caption: Option<&str>) {
        self.version += 1;
        if let Some((age, _)) = self.people.insert(user.to_owned(), (self.version, profile.clone())) {
            self.by_age.remove(&age);
        }
        self.by_age.insert(self.version, user.to_owned());
        if self.people.len() > PEOPLE_KEPT_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.people.remove(&oldest);
        }
        if let Some(text) = caption {
            let act = Act { act: self.version, at, user: user.to_owned(), text: text.to_owned() };
            self.acts.insert(self.version, act);
            self.changes.insert(self.version, Change::Act(self.version));
            if self.acts.len() > ACTS_KEPT_MAX
                && let Some((act, _)) = self.acts.pop_first()
            {
                self.changes.remove(&act);
            }
        }
    }

    /// What changed after `since`, oldest first, at most `most`: and the version up to which that is.
    pub(super) fn changes(&self, since: u64, most: usize) -> Vec<(u64, Change)> {
        let after = self.changes.range(since.saturating_add(1)..);
        after.take(most).map(|(version, change)| (*version, *change)).collect()
    }

    pub(super) fn extent(&self) -> Extent {
        Extent { seen: self.seen, kept: self.events.len(), kept_max: EVENTS_KEPT_MAX }
    }

    pub(super) fn acts(&self) -> Vec<Act> {
        self.acts.values().rev().cloned().collect()
    }

    pub(super) fn act(&self, act: u64) -> Option<Act> {
        self.acts.get(&act).cloned()
    }

    /// The newest events, newest first.
    pub(super) fn lines(&self, most: usize) -> Vec<Line> {
        self.by_place.values().rev().take(most).filter_map(|id| self.line(*id)).collect()
    }

    pub(super) fn line(&self, id: EventId) -> Option<Line> {
        let kept = self.events.get(&id)?;
        let story = self.story(id);
        let untold = story.is_none().then(|| Untold {
            title: kept.written.as_ref().map_or_else(|| "a record".to_owned(), title),
            user: kept.user.clone(),
            at: kept.at,
        });
        Some(Line {
            id: id.to_string(),
            place: kept.place,
            caption: kept.caption.clone(),
            raw: kept.raw.clone(),
            story,
            untold,
        })
    }

    pub(super) fn story(&self, id: EventId) -> Option<Story> {
        let kept = self.events.get(&id)?;
        let context = self.context(&kept.user);
        explain(self.rows_of(&kept.user, id), id, &context)
    }

    /// The story that `query` asks for; `None` where the memory has not seen its beginning.
    pub(super) fn story_of(&self, query: &Query) -> Option<Story> {
        let id = self.asked(query)?;
        let opens = |row: &Row| row.unit == Unit::Event && row.states.contains(&State::Created);
        self.events.get(&id)?.rows.iter().any(opens).then(|| self.story(id))?
    }

    /// The same from `older` rows as well: those of the record, which lags behind the memory.
    pub(super) fn story_with(&self, mut older: Vec<Row>, query: &Query) -> Option<Story> {
        let known = match older.first() {
            Some(row) => Query::Own { tenant: String::new(), user: row.user.clone(), id: String::new() },
            None => query.clone(),
        };
        older.extend(self.find(&known));
        let id = event_of(&older, query)?;
        let user = &older.iter().find(|row| row.event == id)?.user;
        explain(&older, id, &self.context(user))
    }

    fn asked(&self, query: &Query) -> Option<EventId> {
        if let Query::Own { user, id, tenant } = query {
            let own = |kept: &&Kept| {
                kept.written.as_ref().is_some_and(|event| event.id.as_ref() == Some(id) && event.tenant == *tenant)
            };
            let events = self.by_user.get(user)?.iter();
            let found = events.clone().find(|(_, event)| self.events.get(event).as_ref().is_some_and(own));
            if let Some((_, event)) = found {
                return Some(*event);
            }
        }
        event_of(&self.find(query), query)
    }

    /// Every kept unit's fate.
    pub(super) fn fates(&self) -> (Fates, [Sum; 3]) {
        let fates = Fates::of(self.events.values().flat_map(|kept| &kept.rows));
        let sums = fates.sums();
        (fates, sums)
    }

    /// Why what was suppressed was, with how many units each.
    pub(super) fn reasons(&self) -> BTreeMap<(&'static str, &'static str), usize> {
        let mut units: BTreeMap<(&str, &str), BTreeSet<[u8; 16]>> = BTreeMap::new();
        for row in self.events.values().flat_map(|kept| &kept.rows) {
            if let (true, Some(reason)) = (row.states.contains(&State::Suppressed), row.reason) {
                units.entry((row.unit.as_str(), reason.as_str())).or_default().insert(row.unit_id());
            }
        }
        units.into_iter().map(|(key, units)| (key, units.len())).collect()
    }

    pub(super) fn people(&self, now: Instant) -> Vec<Person> {
        let calendar = Calendar::bundled();
        let person = |(user, (_, profile)): (&String, &(u64, Profile))| {
            let zone = profile.time_zone.as_deref().and_then(|name| calendar.zone(name)).unwrap_or(calendar.utc());
            let off = |name: String, switches: &BTreeMap<Channel, bool>| {
                let off = switches
                    .iter()
                    .filter(|(_, on)| !**on)
                    .map(|(channel, _)| crate::explain::words::channel(*channel));
                off.map(|channel| if name.is_empty() { channel.to_owned() } else { format!("{channel} for {name}") })
                    .collect::<Vec<_>>()
            };
            let mut all_off = off(String::new(), &profile.channels);
            profile
                .categories
                .iter()
                .chain(&profile.types)
                .for_each(|(name, of)| all_off.extend(off(crate::explain::words::spaced(name), of)));
            Person {
                user: user.clone(),
                zone: zone.name().to_owned(),
                local: zone.local(now).minute.to_string(),
                quiet: profile.quiet_hours.is_some_and(|hours| zone.quiet_window(hours, now).is_some()),
                quiet_hours: profile.quiet_hours.map(|hours| format!("{}–{}", hours.from, hours.to)),
                locale: profile.locale.clone(),
                off: all_off,
            }
        };
        self.people.iter().map(person).collect()
    }

    fn context(&self, user: &str) -> Context {
        let profile = self.people.get(user).map(|(_, profile)| profile.clone());
        let zone_name = profile.as_ref().and_then(|profile| profile.time_zone.clone());
        let zone = zone_name.and_then(|name| Calendar::bundled().zone(&name).cloned());
        let mut context = Context { zone, profile, type_channels: self.type_channels.clone(), ..Context::default() };
        for (_, event) in self.newest_of(user) {
            if let Some(kept) = self.events.get(event) {
                context.events.extend(kept.written.clone().map(|written| (*event, written)));
                kept.lanes.iter().for_each(|lane| context.observe_lane(lane));
            }
        }
        context
    }

    fn newest_of(&self, user: &str) -> impl Iterator<Item = &(u64, EventId)> {
        self.by_user.get(user).into_iter().flat_map(|events| events.iter().rev().take(STORY_EVENTS_MAX))
    }

    fn rows_of<'a>(&'a self, user: &'a str, id: EventId) -> impl Iterator<Item = &'a Row> {
        let own = self.events.get(&id).into_iter();
        own.chain(self.newest_of(user).filter_map(|(_, event)| self.events.get(event))).flat_map(|kept| &kept.rows)
    }

    fn forgets(&self) -> bool {
        self.seen > self.events.len() as u64
    }

    /// The place where `id` is kept, made where it is new.
    fn keep(&mut self, id: EventId, at: Instant, user: &str) -> &mut Kept {
        if !self.events.contains_key(&id) {
            if self.events.len() >= EVENTS_KEPT_MAX {
                self.forget_oldest();
            }
            self.seen += 1;
            self.by_place.insert(self.seen, id);
        }
        let kept = self.events.entry(id).or_insert_with(|| Kept { place: self.seen, at, ..Kept::default() });
        if kept.user.is_empty() && !user.is_empty() {
            user.clone_into(&mut kept.user);
            self.by_user.entry(user.to_owned()).or_default().insert((kept.place, id));
        }
        kept
    }

    fn forget_oldest(&mut self) {
        let Some((place, id)) = self.by_place.pop_first() else { return };
        let Some(kept) = self.events.remove(&id) else { return };
        self.changes.remove(&kept.version);
        if let Some(events) = self.by_user.get_mut(&kept.user) {
            events.remove(&(place, id));
            if events.is_empty() {
                self.by_user.remove(&kept.user);
            }
        }
        for row in &kept.rows {
            for named in [row.intent.0, row.notification.0, row.group.0, row.leg.0, row.delivery.0] {
                if let Some(events) = self.by_id.get_mut(&named) {
                    events.remove(&id);
                    if events.is_empty() {
                        self.by_id.remove(&named);
                    }
                }
            }
        }
    }

    fn changed(&mut self, id: EventId) {
        if let Some(kept) = self.events.get_mut(&id) {
            self.version += 1;
            self.changes.remove(&kept.version);
            kept.version = self.version;
            self.changes.insert(self.version, Change::Event(id));
        }
    }
}

impl Rows for Memory {
    fn find(&self, query: &Query) -> Vec<Row> {
        let user = match query {
            Query::Own { user, .. } => Some(user.as_str()),
            Query::Id(text) => {
                let named = text.parse::<EventId>().ok().or_else(|| {
                    let digits = u128::from_str_radix(text.get(2..)?, 16).ok()?;
                    self.by_id.get(&digits.to_be_bytes())?.first().copied()
                });
                named.and_then(|event| self.events.get(&event)).map(|kept| kept.user.as_str())
            }
        };
        // A record that names no user is known by its event id alone.
        let alone = match query {
            Query::Id(text) => text.parse::<EventId>().ok(),
            Query::Own { .. } => None,
        };
        let rows = user.map(|user| self.newest_of(user)).into_iter().flatten().map(|(_, event)| *event).chain(alone);
        let events: BTreeSet<EventId> = rows.collect();
        events.iter().filter_map(|event| self.events.get(event)).flat_map(|kept| kept.rows.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> EventId {
        EventId::new("s", 0, number)
    }

    fn row(number: u64, states: &[State]) -> Row {
        Row {
            states: states.to_vec(),
            event: id(number),
            user: "u1".to_owned(),
            at: Instant(i64::try_from(number).unwrap_or(0)),
            ..Row::default()
        }
        .sealed()
    }

    #[test]
    fn the_oldest_event_is_forgotten_with_all_that_names_it() {
        let mut memory = Memory::default();
        let most = EVENTS_KEPT_MAX as u64;
        (0..most + 10).for_each(|number| memory.row(&row(number, &[State::Created])));
        assert_eq!((memory.extent().seen, memory.extent().kept), (most + 10, EVENTS_KEPT_MAX));
        assert!(memory.line(id(9)).is_none() && memory.line(id(10)).is_some());
        // What comes late for a forgotten event does not make a new one of it.
        memory.row(&row(3, &[State::Merged]));
        assert!(memory.line(id(3)).is_none());
        assert_eq!(memory.changes.len(), EVENTS_KEPT_MAX);
        assert!(memory.fates().1.iter().all(|sum| sum.orphans == 0));
    }

    #[test]
    fn an_event_that_changes_often_is_one_change() {
        let mut memory = Memory::default();
        memory.event(id(1), Instant(1), br#"{"user_id":"u1","type":"like"}"#, None);
        memory.row(&row(1, &[State::Created]));
        memory.row(&row(1, &[State::Parked]));
        memory.row(&row(1, &[State::Parked]));
        assert_eq!(memory.changes(0, 10), [(3, Change::Event(id(1)))]);
        assert_eq!(memory.changes(3, 10), []);
    }
}
