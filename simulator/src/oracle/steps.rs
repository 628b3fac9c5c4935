//! One step per kind of operator, in the order of the chain: what it keeps, and what it decides of a
//! thing that comes, of a deadline that passed, of a user whose profile changed.

use std::collections::BTreeMap;
use std::time::Duration;

use tidings_schemas::channel::{Channel, Op, Priority};
use tidings_schemas::ids::{EventId, GroupId, IdHasher, LegId};
use tidings_schemas::lane::ReturnCause;
use tidings_schemas::policy::{Limits, Overflow};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use super::consent::{Known, Verdict, candidates, closed, verdict};
use super::places::{Due, Key, Place, Places};
use super::thing::{Member, Thing, policy_of};
use super::told::{Fate, Told, Unit};
use super::topology::{By, Gathering, Kind, Level, Per};
use super::{Rules, Slips};

/// What a step sees of the epoch, and where it puts what it decides.
pub(super) struct Now<'a> {
    pub(super) at: Instant,
    pub(super) epoch: u64,
    /// The operator's id.
    pub(super) id: &'a str,
    pub(super) rules: &'a Rules,
    pub(super) known: &'a Known,
    pub(super) slips: Slips,
    pub(super) told: &'a mut Told,
    /// What goes on to the next operator.
    pub(super) out: Vec<Thing>,
}

impl Now<'_> {
    pub(super) fn member(&mut self, member: &Member, fate: Fate) {
        self.told.fate(Unit::Event(member.event), fate);
    }

    pub(super) fn events(&mut self, thing: &Thing, fate: &Fate) {
        for member in &thing.members {
            self.member(member, fate.clone());
        }
    }

    pub(super) fn leg(&mut self, thing: &Thing, fate: Fate) {
        let events = thing.members.iter().map(|member| member.event).collect();
        self.told.set_out.push((thing.leg.unwrap_or_default(), events, thing.silent));
        self.told.fate(Unit::Leg(thing.leg.unwrap_or_default()), fate);
    }

    pub(super) fn due(&self, at: Instant) -> Due {
        Due { at, set_in: self.epoch }
    }

    fn verdict(&self, thing: &Thing, channel: Channel) -> Verdict {
        verdict(&thing.user, thing.priority, channel, self.known, self.rules, self.at)
    }
}

/// What a control does to the events that it takes out.
pub(super) fn taken(control: &Thing) -> Fate {
    if control.op == Op::Cancel { Fate::Cancelled } else { Fate::Retracted }
}

/// An open window.
struct Window {
    opened_at: Instant,
    due: Due,
    group: GroupId,
    /// What it gathered so far; nothing after a leading item.
    thing: Option<Thing>,
}

/// A held event.
struct Held {
    due: Due,
    thing: Thing,
}

/// An operator with all it keeps, by user and subkey.
pub(super) enum Station {
    /// Events that were handed over.
    Validate(BTreeMap<Key, Due>),
    Dedup(std::time::Duration, BTreeMap<Key, (EventId, Due)>),
    Schedule(BTreeMap<Key, HeldBox>),
    Preferences,
    Aggregate(Gathering, BTreeMap<Key, WindowBox>),
    Route,
    Quiet(Places),
    Limits(Vec<Level>, Places, Sends),
}

pub(super) struct HeldBox(Box<Held>);
pub(super) struct WindowBox(Box<Window>);

/// The instants of sends, by user and counter.
type Sends = BTreeMap<(String, Vec<String>), Vec<Instant>>;

impl Station {
    pub(super) fn new(kind: &Kind) -> Self {
        match kind {
            Kind::Validate => Self::Validate(BTreeMap::new()),
            Kind::Dedup { window } => Self::Dedup(window.0, BTreeMap::new()),
            Kind::Schedule => Self::Schedule(BTreeMap::new()),
            Kind::Preferences => Self::Preferences,
            Kind::Aggregate(gathering) => Self::Aggregate(gathering.clone(), BTreeMap::new()),
            Kind::Route => Self::Route,
            Kind::QuietHours => Self::Quiet(Places::new()),
            Kind::RateLimit { levels } => Self::Limits(levels.clone(), Places::new(), Sends::new()),
        }
    }

    /// What is due at `now`, as (deadline, user, subkey).
    pub(super) fn due(&self, now: Instant, epoch: u64) -> Vec<(Instant, Key)> {
        let all: Vec<(&Key, Due)> = match self {
            Self::Preferences | Self::Route => Vec::new(),
            Self::Validate(here) => here.iter().map(|(key, due)| (key, *due)).collect(),
            Self::Dedup(_, seen) => seen.iter().map(|(key, (_, due))| (key, *due)).collect(),
            Self::Schedule(held) => held.iter().map(|(key, held)| (key, held.0.due)).collect(),
            Self::Aggregate(_, windows) => windows.iter().map(|(key, window)| (key, window.0.due)).collect(),
            Self::Quiet(places) | Self::Limits(_, places, _) => {
                places.iter().map(|(key, place)| (key, place.due)).collect()
            }
        };
        // What was set in this epoch is due in the next one at the earliest.
        let due = all.into_iter().filter(|(_, due)| due.at <= now && due.set_in != epoch);
        let mut due: Vec<_> = due.map(|(key, due)| (due.at, key.clone())).collect();
        due.sort();
        due
    }

    /// Who has legs that wait here.
    pub(super) fn waiting(&self) -> Vec<String> {
        match self {
            Self::Quiet(places) | Self::Limits(_, places, _) => places.keys().map(|key| key.0.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// The earliest deadline.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let far = Instant(i64::MAX);
        self.due(far, u64::MAX).first().map(|(at, _)| *at)
    }

    /// A deadline passed.
    pub(super) fn timer(&mut self, now: &mut Now<'_>, at: Instant, key: &Key) {
        match self {
            Self::Preferences | Self::Route => {}
            Self::Validate(here) => drop(here.remove(key)),
            Self::Dedup(_, seen) => drop(seen.remove(key)),
            Self::Schedule(held) => {
                if let Some(HeldBox(held)) = held.remove(key) {
                    release_scheduled(now, held.thing);
                }
            }
            Self::Aggregate(_, windows) => {
                if let Some(WindowBox(window)) = windows.remove(key) {
                    close(now, key, *window);
                }
            }
            Self::Quiet(places) => {
                let still_due = |place: &Place| place.due.at == at && place.due.set_in != now.epoch;
                if places.get(key).is_some_and(still_due)
                    && let Some(place) = places.remove(key)
                    && let Some(place) = super::places::fresh(now, place)
                {
                    judge_quiet(places, now, place.thing.clone(), Some((key, place)));
                }
            }
            Self::Limits(levels, places, sends) => {
                let still_due = |place: &Place| place.due.at == at && place.due.set_in != now.epoch;
                if places.get(key).is_some_and(still_due) {
                    release_limited(levels, places, sends, now, &key.0);
                }
            }
        }
    }

    /// A user's profile or addresses changed.
    pub(super) fn changed(&mut self, now: &mut Now<'_>, user: &str) {
        match self {
            Self::Quiet(places) => {
                for key in keys_of(places, user) {
                    judge_again(places, now, &key);
                }
            }
            Self::Limits(levels, places, sends) => {
                for key in keys_of(places, user) {
                    limit_again(levels, places, sends, now, &key);
                }
                release_limited(levels, places, sends, now, user);
            }
            _ => {}
        }
    }

    /// A thing came.
    pub(super) fn take(&mut self, now: &mut Now<'_>, mut thing: Thing) {
        match self {
            Self::Validate(here) => {
                if thing.handed_over {
                    let key = (thing.user.clone(), thing.first_event().0.to_vec());
                    let until = now.due(now.at.after(Duration::from_secs(24 * 3600)));
                    // The second copy of an event is no event, and opens nothing.
                    if here.contains_key(&key) {
                        return;
                    }
                    here.insert(key, until);
                }
                validate(now, thing);
            }
            Self::Dedup(window, seen) => {
                let subkey = if thing.returned.is_some() { return_key(&thing) } else { thing.key.0 };
                let key = (thing.user.clone(), subkey.to_vec());
                match seen.get(&key) {
                    // The same record handed over twice, or the same return said twice: no event of its own.
                    Some((first, _)) if *first == thing.first_event() => {}
                    Some(_) => now.events(&thing, &Fate::Deduplicated),
                    None => {
                        seen.insert(key, (thing.first_event(), now.due(now.at.after(*window))));
                        now.out.push(thing);
                    }
                }
            }
            Self::Schedule(held) => {
                if thing.is_control() {
                    for key in keys_of(held, &thing.user) {
                        if held[&key].0.thing.members.iter().any(|member| thing.means(member))
                            && let Some(HeldBox(out)) = held.remove(&key)
                        {
                            now.events(&out.thing, &taken(&thing));
                            thing.matched += 1;
                        }
                    }
                    return now.out.push(thing);
                }
                if thing.is_expired(now.at) {
                    return now.events(&thing, &Fate::Expired);
                }
                match thing.scheduled_at.filter(|at| *at > now.at) {
                    None => now.out.push(thing),
                    Some(at) => {
                        now.events(&thing, &Fate::Parked { until: Some(at), reason: None });
                        let key = (thing.user.clone(), thing.first_event().0.to_vec());
                        held.insert(key, HeldBox(Box::new(Held { due: now.due(at), thing })));
                    }
                }
            }
            Self::Preferences => {
                if !thing.is_control() && thing.returned.is_none() {
                    (thing.candidates, thing.struck) = candidates(&thing, now.known, now.rules);
                }
                now.out.push(thing);
            }
            Self::Aggregate(gathering, windows) => gather(gathering, windows, now, thing),
            Self::Route => route(now, thing),
            Self::Quiet(places) => {
                if thing.is_control() {
                    places_part(places, now, &mut thing);
                    now.out.push(thing);
                } else if thing.silent {
                    now.out.push(thing);
                } else {
                    judge_quiet(places, now, thing, None);
                }
            }
            Self::Limits(levels, places, sends) => {
                if thing.is_control() {
                    places_part(places, now, &mut thing);
                    now.out.push(thing);
                } else if unlimited(now, &thing) {
                    now.out.push(thing);
                } else {
                    limit(levels, places, sends, now, thing, true);
                }
            }
        }
    }
}

fn keys_of<T>(all: &BTreeMap<Key, T>, user: &str) -> Vec<Key> {
    all.keys().filter(|key| key.0 == user).cloned().collect()
}

fn places_part(places: &mut Places, now: &mut Now<'_>, control: &mut Thing) {
    if now.slips.forgets_retractions && control.op == Op::Retract {
        return;
    }
    super::places::part(places, now, control);
}

// ---- validate -------------------------------------------------------------------------------------

fn validate(now: &mut Now<'_>, mut thing: Thing) {
    let waits = thing.scheduled_at.is_some_and(|at| at > now.at);
    if thing.priority == Priority::Critical && !thing.is_control() && !waits {
        now.told.handed_over.push((Priority::Critical, thing.first_event()));
    } else {
        now.events(&thing, &Fate::Open);
        thing.matched = 0;
        now.out.push(thing);
    }
}

// ---- dedup ----------------------------------------------------------------------------------------

fn return_key(thing: &Thing) -> [u8; 16] {
    // Only equality matters: (notification, channel, address, replay, number of the return).
    let mut hasher = IdHasher::new("the oracle's returns");
    hasher.field(&thing.notification.0).text(thing.channel().map_or("", Channel::as_str));
    hasher.text(thing.only_address.as_deref().unwrap_or("")).number(u64::from(thing.replay));
    hasher.number(u64::from(thing.returns));
    hasher.finish()
}

// ---- schedule -------------------------------------------------------------------------------------

fn release_scheduled(now: &mut Now<'_>, mut thing: Thing) {
    if thing.is_expired(now.at) {
        return now.events(&thing, &Fate::Expired);
    }
    thing.scheduled_at = None;
    thing.ready_at = now.at;
    if thing.priority == Priority::Critical {
        now.told.handed_over.push((Priority::Critical, thing.first_event()));
    } else {
        now.out.push(thing);
    }
}

// ---- aggregate ------------------------------------------------------------------------------------

fn fields(fields: &[&str]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.bytes().chain([0])).collect()
}

fn window_key(gathering: &Gathering, thing: &Thing) -> Key {
    let words = |channels: &[Channel]| channels.iter().map(|one| one.as_str()).collect::<Vec<_>>().join(",");
    let (channels, fallback) = (words(&thing.channels), words(&thing.fallback));
    let mut all = vec![thing.tenant.as_str(), &channels, &fallback];
    all.extend(gathering.by.iter().map(|by| match by {
        By::Type => thing.event_type.as_str(),
        By::Category => thing.category.as_str(),
        By::Object => thing.object_id().unwrap_or(""),
    }));
    (thing.user.clone(), fields(&all))
}

fn gather(gathering: &Gathering, windows: &mut BTreeMap<Key, WindowBox>, now: &mut Now<'_>, mut thing: Thing) {
    if thing.is_control() {
        if !now.slips.forgets_retractions || thing.op == Op::Cancel {
            take_out_of_windows(windows, now, &mut thing);
        }
        return now.out.push(thing);
    }
    if thing.returned.is_some() || !gathering.priorities.contains(&thing.priority) {
        return now.out.push(thing);
    }
    let key = window_key(gathering, &thing);
    let Some(WindowBox(window)) = windows.get_mut(&key) else {
        let group = GroupId::new(now.id, &thing.user, &key.1, thing.first_event());
        let due = now.due(now.at.after(gathering.window.0));
        let mut window = Window { opened_at: now.at, due, group, thing: None };
        if gathering.leading {
            now.out.push(thing);
        } else {
            now.events(&thing, &Fate::Parked { until: Some(due.at), reason: None });
            window.thing = Some(thing);
        }
        windows.insert(key, WindowBox(Box::new(window)));
        return;
    };
    if let Some(most) = gathering.sliding_max {
        window.due = now.due(now.at.after(gathering.window.0).min(window.opened_at.after(most.0)));
    }
    now.events(&thing, &Fate::Parked { until: Some(window.due.at), reason: None });
    match &mut window.thing {
        None => window.thing = Some(thing),
        Some(gathered) => {
            for folded in gathered.join(thing) {
                now.member(&folded, Fate::Merged([window.group].into()));
            }
        }
    }
    let enough = window.thing.as_ref().is_some_and(|gathered| gathered.actors_count() >= gathering.threshold);
    if enough && let Some(WindowBox(window)) = windows.remove(&key) {
        close(now, &key, *window);
    }
}

/// Says what a window gathered.
fn close(now: &mut Now<'_>, key: &Key, window: Window) {
    let Some(mut thing) = window.thing else { return };
    let at = now.at;
    for member in thing.part(|member| member.expires_at.is_some_and(|expires| expires <= at)) {
        now.member(&member, Fate::Expired);
    }
    if thing.members.is_empty() {
        return;
    }
    thing.ready_at = now.at;
    if thing.activities() == 1 {
        // One event alone is what it was when it came.
        let event = thing.first_event();
        thing.notification = tidings_schemas::ids::NotificationId::of_one(&thing.user, event);
    } else {
        thing.notification = thing.formed(now.id, &key.1);
        thing.group = window.group;
        now.events(&thing, &Fate::Merged([window.group].into()));
    }
    now.out.push(thing);
}

fn take_out_of_windows(windows: &mut BTreeMap<Key, WindowBox>, now: &mut Now<'_>, control: &mut Thing) {
    for key in keys_of(windows, &control.user) {
        let Some(WindowBox(window)) = windows.get_mut(&key) else { continue };
        let Some(thing) = &mut window.thing else { continue };
        let gone = thing.part(|member| control.means(member));
        for member in &gone {
            now.member(member, taken(control));
        }
        control.matched += gone.len() as u64;
        if thing.members.is_empty() {
            windows.remove(&key);
        }
    }
}

// ---- route ----------------------------------------------------------------------------------------

fn leg_towards(thing: &Thing, channel: Channel) -> Thing {
    Thing { leg: Some(LegId::new(thing.notification, channel.as_str(), thing.replay)), ..thing.clone() }
}

fn set_out(now: &mut Now<'_>, leg: Thing) {
    now.leg(&leg, Fate::Open);
    now.out.push(leg);
}

fn route(now: &mut Now<'_>, thing: Thing) {
    if thing.is_control() {
        return now.out.push(thing);
    }
    if let Some(cause) = thing.returned {
        return came_back(now, thing, cause);
    }
    let (mut open, mut shut) = candidates(&thing, now.known, now.rules);
    let explicit = !thing.channels.is_empty();
    let everywhere = explicit || thing.priority == Priority::Critical;
    let in_app_speaks = if everywhere {
        open.contains(&Channel::InApp) || thing.channels.contains(&Channel::InApp)
    } else {
        open.first() == Some(&Channel::InApp)
    };
    let keeps_copy = thing.priority != Priority::Low
        && !in_app_speaks
        && closed(&thing, Channel::InApp, now.known, now.rules).is_none();
    if everywhere {
        let mut fallback = thing.fallback.clone();
        for channel in &open {
            let fallback = std::mem::take(&mut fallback);
            let leg = leg_towards(&thing, *channel);
            set_out(now, Thing { candidates: vec![*channel], struck: Vec::new(), fallback, ..leg });
        }
        if !explicit {
            shut.truncate(usize::from(open.is_empty()));
        }
        for (channel, reason) in shut {
            now.leg(&leg_towards(&thing, channel), Fate::Suppressed(Some(reason)));
        }
    } else {
        let calm = |channel: &Channel| matches!(channel, Channel::Email | Channel::InApp);
        if thing.priority == Priority::Low && open.iter().any(calm) {
            shut.extend(open.iter().filter(|channel| !calm(channel)).map(|channel| (*channel, Reason::Policy)));
            open.retain(calm);
        }
        if keeps_copy {
            open.retain(|channel| *channel != Channel::InApp);
        }
        if let Some(first) = open.first() {
            let leg = leg_towards(&thing, *first);
            set_out(now, Thing { candidates: open, struck: shut, ..leg });
        } else if let Some((channel, reason)) = shut.first() {
            now.leg(&leg_towards(&thing, *channel), Fate::Suppressed(Some(*reason)));
        } else if !keeps_copy {
            now.leg(&leg_towards(&thing, Channel::InApp), Fate::Suppressed(Some(Reason::Policy)));
        }
    }
    if keeps_copy {
        let leg = Some(LegId::new(thing.notification, "silent", thing.replay));
        let copy = Thing { leg, silent: true, candidates: vec![Channel::InApp], ..thing };
        set_out(now, Thing { struck: Vec::new(), fallback: Vec::new(), ..copy });
    }
}

fn came_back(now: &mut Now<'_>, mut thing: Thing, cause: ReturnCause) {
    if thing.is_expired(now.at) {
        return now.leg(&thing, Fate::Expired);
    }
    thing.ready_at = now.at;
    let channel = thing.channel().unwrap_or(Channel::InApp);
    let shut = closed(&thing, channel, now.known, now.rules);
    match cause {
        ReturnCause::Stale => match shut {
            None => {
                now.leg(&thing, Fate::Returned);
                now.out.push(thing);
            }
            Some(reason) => now.leg(&thing, Fate::Suppressed(Some(reason))),
        },
        ReturnCause::Undeliverable => {
            let mut struck = thing.struck.clone();
            struck.push((channel, Reason::Undeliverable));
            let mut rest = thing.fallback.clone();
            while !rest.is_empty() {
                let next = rest.remove(0);
                if let Some(reason) = closed(&thing, next, now.known, now.rules) {
                    struck.push((next, reason));
                    continue;
                }
                now.leg(&thing, Fate::FailedOver);
                let leg = leg_towards(&thing, next);
                let leg = Thing { candidates: vec![next], struck, fallback: rest, counted: false, ..leg };
                return set_out(now, Thing { returned: None, ..leg });
            }
            now.leg(&thing, Fate::Suppressed(Some(Reason::Undeliverable)));
        }
        ReturnCause::Replay => {
            let leg = leg_towards(&thing, channel);
            match shut {
                None => set_out(now, leg),
                Some(reason) => now.leg(&leg, Fate::Suppressed(Some(reason))),
            }
        }
    }
}

// ---- quiet hours ----------------------------------------------------------------------------------

fn quiet_place(thing: &Thing, channel: Channel) -> Key {
    let subkey = match &thing.object {
        // What deliver gave back is that leg alone.
        Some(object) if thing.returns == 0 => fields(&[channel.as_str(), &thing.tenant, &thing.event_type, &object.id]),
        _ => thing.leg.unwrap_or_default().0.to_vec(),
    };
    (thing.user.clone(), subkey)
}

/// In quiet hours only the in-app candidate remains, if there is one.
fn keep_in_app(thing: &mut Thing, reason: Reason) {
    let others = thing.candidates.iter().filter(|channel| **channel != Channel::InApp);
    thing.struck.extend(others.map(|channel| (*channel, reason)));
    thing.candidates.retain(|channel| *channel == Channel::InApp);
}

/// Judges a leg's first candidate. `waited`: the place it was taken out of, with its key.
fn judge_quiet(places: &mut Places, now: &mut Now<'_>, mut thing: Thing, waited: Option<(&Key, Place)>) {
    let Some(channel) = thing.channel() else { return };
    let verdict = now.verdict(&thing, channel);
    if verdict == Verdict::Inbox {
        let before = thing.clone();
        keep_in_app(&mut thing, Reason::QuietHours);
        return match thing.channel() {
            Some(_) => judge_quiet(places, now, thing, waited),
            None => now.leg(&before, Fate::Suppressed(Some(Reason::QuietHours))),
        };
    }
    thing.silent |= verdict == Verdict::Silent;
    let leaving = |now: &mut Now<'_>, thing: Thing| match waited.clone() {
        None => thing,
        Some((key, place)) => super::places::leave(now, key, Place { thing, ..place }),
    };
    let Verdict::Wait(until, turn) = verdict else {
        let thing = leaving(now, thing);
        return now.out.push(thing);
    };
    let key = quiet_place(&thing, channel);
    match &waited {
        Some((stood, place)) if **stood == key => {
            if place.until != until {
                now.leg(&thing, Fate::Parked { until: Some(until), reason: Some(Reason::QuietHours) });
            }
            places.insert(key, Place { thing, until, due: now.due(turn), ..place.clone() });
        }
        _ => {
            let thing = leaving(now, thing);
            wait(places, now, &key, thing, until, turn, Reason::QuietHours);
        }
    }
}

/// The profile changed: what may not go any more ends, the rest is judged again.
fn judge_again(places: &mut Places, now: &mut Now<'_>, key: &Key) {
    let Some(place) = places.remove(key) else { return };
    let Some(mut place) = super::places::fresh(now, place) else { return };
    if super::places::strike_closed(now, &mut place.thing) {
        judge_quiet(places, now, place.thing.clone(), Some((key, place)));
    }
}

// ---- limits ---------------------------------------------------------------------------------------

/// A rate that holds for a leg, and where its sends are counted.
struct Rate {
    counter: Vec<String>,
    max: usize,
    per: std::time::Duration,
}

fn rates(levels: &[Level], now: &Now<'_>, thing: &Thing, channel: Channel) -> Vec<Rate> {
    let mut held = Vec::new();
    let value = |per: Per| match per {
        Per::Channel => channel.as_str().to_owned(),
        Per::Type => thing.event_type.clone(),
        Per::Category => thing.category.clone(),
    };
    for (number, level) in levels.iter().enumerate() {
        let Some(first) = level.per.first() else { continue };
        let Some(rate) = level.rates.get(&value(*first)).or_else(|| level.rates.get("other")) else { continue };
        let mut counter = vec![format!("level {number}")];
        counter.extend(level.per.iter().map(|per| value(*per)));
        held.push(Rate { counter, max: rate.max as usize, per: rate.per.0 });
    }
    for cap in &now.known.profile.caps {
        let holds = cap.category.as_ref().is_none_or(|category| *category == thing.category)
            && cap.event_type.as_ref().is_none_or(|event_type| *event_type == thing.event_type)
            && cap.channel.is_none_or(|only| only == channel);
        if holds {
            let counter = vec![
                "cap".to_owned(),
                cap.category.clone().unwrap_or_default(),
                cap.event_type.clone().unwrap_or_default(),
                cap.channel.map(|only| only.to_string()).unwrap_or_default(),
                cap.per.to_string(),
            ];
            held.push(Rate { counter, max: cap.max as usize, per: cap.per.0 });
        }
    }
    held
}

/// When all of `held` have budget: the first instant, from now on, at which fewer than `max` sends
/// lie within the span before it. None: never.
fn free_at(sends: &Sends, user: &str, held: &[Rate], now: Instant) -> Option<Instant> {
    let mut free = now;
    for rate in held {
        if rate.max == 0 {
            return None;
        }
        let sent = sends.get(&(user.to_owned(), rate.counter.clone())).map_or(&[][..], Vec::as_slice);
        let within = sent.iter().filter(|at| at.after(rate.per) > now).count();
        if within >= rate.max {
            // Sends are in order: this one's leaving makes room.
            free = free.max(sent[sent.len() - rate.max].after(rate.per));
        }
    }
    Some(free)
}

fn count(sends: &mut Sends, now: &Now<'_>, user: &str, held: &[Rate]) {
    for rate in held {
        let sent = sends.entry((user.to_owned(), rate.counter.clone())).or_default();
        sent.push(now.at);
        if now.slips.counts_twice {
            sent.push(now.at);
        }
    }
}

fn unlimited(now: &Now<'_>, thing: &Thing) -> bool {
    thing.silent || thing.counted || policy_of(&now.rules.policies, &thing.event_type).limits == Limits::Exempt
}

fn overflow(now: &Now<'_>, thing: &Thing) -> Overflow {
    let policy = policy_of(&now.rules.policies, &thing.event_type).overflow;
    policy.unwrap_or(match thing.priority {
        Priority::Critical | Priority::High => Overflow::InApp,
        Priority::Medium | Priority::Low => Overflow::Merge,
    })
}

fn limited_place(thing: &Thing, channel: Channel, overflow: Overflow) -> Key {
    let subkey = match overflow {
        Overflow::Merge if thing.returns == 0 => fields(&["wait", channel.as_str(), &thing.tenant, &thing.event_type]),
        _ => thing.leg.unwrap_or_default().0.to_vec(),
    };
    (thing.user.clone(), subkey)
}

/// Judges a leg candidate by candidate. `asked`: quiet hours were asked about the first.
fn limit(
    levels: &[Level],
    places: &mut Places,
    sends: &mut Sends,
    now: &mut Now<'_>,
    mut thing: Thing,
    mut asked: bool,
) {
    let user = thing.user.clone();
    let mut why = Reason::RateLimited;
    while let Some(channel) = thing.channel() {
        why = Reason::RateLimited;
        let verdict = if asked { Verdict::Pass } else { now.verdict(&thing, channel) };
        asked = false;
        let held = rates(levels, now, &thing, channel);
        let policy = overflow(now, &thing);
        let key = limited_place(&thing, channel, policy);
        let free = free_at(sends, &user, &held, now.at);
        let joins = policy == Overflow::Merge && places.contains_key(&key);
        match (verdict, free, policy) {
            // A cap of zero is an opt-out by another name.
            (_, None, _) => strike(&mut thing, channel, why),
            (Verdict::Silent, ..) => {
                thing.silent = true;
                return now.out.push(thing);
            }
            (Verdict::Wait(until, turn), ..) => {
                return wait(places, now, &key, thing, until, turn, Reason::QuietHours);
            }
            (Verdict::Inbox, ..) => {
                why = Reason::QuietHours;
                keep_in_app(&mut thing, why);
            }
            (Verdict::Pass, Some(free), _) if free == now.at && !joins => {
                count(sends, now, &user, &held);
                thing.counted = true;
                return now.out.push(thing);
            }
            (Verdict::Pass, Some(free), Overflow::Merge | Overflow::Defer) => {
                return wait(places, now, &key, thing, free, free, why);
            }
            (Verdict::Pass, _, Overflow::InApp) if channel == Channel::InApp => break,
            (Verdict::Pass, _, Overflow::InApp) => keep_in_app(&mut thing, why),
            (Verdict::Pass, _, Overflow::Next) => strike(&mut thing, channel, why),
            (Verdict::Pass, _, Overflow::Drop) => break,
        }
    }
    now.leg(&thing, Fate::Suppressed(Some(why)));
}

fn strike(thing: &mut Thing, channel: Channel, reason: Reason) {
    thing.candidates.retain(|candidate| *candidate != channel);
    thing.struck.push((channel, reason));
}

/// Parks a leg; where others wait already, it is tried no later than they are.
fn wait(
    places: &mut Places,
    now: &mut Now<'_>,
    key: &Key,
    thing: Thing,
    until: Instant,
    turn: Instant,
    reason: Reason,
) {
    let turn = places.get(key).map_or(turn, |place| place.due.at.min(turn));
    super::places::park(places, now, key, thing, until, reason);
    let due = now.due(turn);
    if let Some(place) = places.get_mut(key) {
        place.due = due;
    }
}

/// Lets leave what can, oldest first; says anew until when the rest waits.
fn release_limited(levels: &[Level], places: &mut Places, sends: &mut Sends, now: &mut Now<'_>, user: &str) {
    let mut keys = keys_of(places, user);
    keys.sort_by_key(|key| (places[key].since, key.clone()));
    for key in keys {
        let Some(place) = places.remove(&key) else { continue };
        let Some(mut place) = super::places::fresh(now, place) else { continue };
        let Some(channel) = place.thing.channel() else { continue };
        let held = rates(levels, now, &place.thing, channel);
        let patient = matches!(overflow(now, &place.thing), Overflow::Merge | Overflow::Defer);
        let free = free_at(sends, user, &held, now.at);
        let (until, turn) = match now.verdict(&place.thing, channel) {
            // A cap of zero ends the wait.
            _ if free.is_none() => {
                let thing = super::places::leave(now, &key, place);
                limit(levels, places, sends, now, thing, true);
                continue;
            }
            Verdict::Wait(until, turn) => (until, turn),
            Verdict::Inbox => {
                let before = place.thing.clone();
                keep_in_app(&mut place.thing, Reason::QuietHours);
                if place.thing.candidates.is_empty() {
                    now.leg(&before, Fate::Suppressed(Some(Reason::QuietHours)));
                } else {
                    let thing = super::places::leave(now, &key, place);
                    limit(levels, places, sends, now, thing, false);
                }
                continue;
            }
            Verdict::Silent => {
                place.thing.silent = true;
                let thing = super::places::leave(now, &key, place);
                now.out.push(thing);
                continue;
            }
            Verdict::Pass if free == Some(now.at) => {
                let mut thing = super::places::leave(now, &key, place);
                count(sends, now, user, &held);
                thing.counted = true;
                now.out.push(thing);
                continue;
            }
            // It waited for the morning only: the policy says what becomes of overflow.
            Verdict::Pass if !patient => {
                let thing = super::places::leave(now, &key, place);
                limit(levels, places, sends, now, thing, true);
                continue;
            }
            Verdict::Pass => {
                let free = free.unwrap_or(now.at);
                (free, free)
            }
        };
        if place.until != until {
            now.leg(&place.thing, Fate::Parked { until: Some(until), reason: Some(Reason::RateLimited) });
        }
        (place.until, place.due) = (until, now.due(turn));
        places.insert(key, place);
    }
}

fn limit_again(levels: &[Level], places: &mut Places, sends: &mut Sends, now: &mut Now<'_>, key: &Key) {
    let Some(place) = places.remove(key) else { return };
    let Some(mut place) = super::places::fresh(now, place) else { return };
    let first = place.thing.channel();
    if !super::places::strike_closed(now, &mut place.thing) {
        return;
    }
    if place.thing.channel() == first {
        places.insert(key.clone(), place);
    } else {
        let thing = super::places::leave(now, key, place);
        limit(levels, places, sends, now, thing, false);
    }
}
