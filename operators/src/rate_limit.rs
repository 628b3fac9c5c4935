//! `rate_limit`: exact sliding windows per user, several levels at once. Overflow is not dropped: it
//! merges ("Alice and 42 others") and leaves when budget frees and quiet hours allow.
//!
//! A level counts per channel, type or category, or several of them together; a user's own cap is one
//! more level, and the smaller holds. Only what leaves is counted, on the channel on which it leaves;
//! silent copies and exempt types neither are limited nor count. What happens to overflow is the
//! type's policy: merge (medium and low), go to in-app (high), take the next candidate, wait, or end.
//!
//! ```text
//! push 2/h
//! 10:00  like bob photo1     -> leaves
//! 10:01  like alice photo2   -> leaves
//! 10:02  like carol photo3   -> parked until 11:00
//! 10:03  like dave photo3    -> merged
//! 11:00                      -> one leg: carol and dave
//! ```
//! Keeps, per level and value, the instants of the last `max` sends within the window; and one item
//! per (channel, tenant, type) that waits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use smallvec::SmallVec;
use tidings_schemas::channel::Channel;
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::lifecycle::State as Did;
use tidings_schemas::policy::{Limits, Overflow};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_schemas::units::Rate;

use crate::item::Item;
use crate::keyed::{Cx, Known, Operator, State, Subkey, Table, TimerId};
use crate::params::{Mistake, Names, Position, Report, Step, key};
use crate::parked::{self, PlaceV1, Places};
use crate::quiet::Verdict;

/// A counter is forgotten when its newest send has left the window.
const FORGET: TimerId = TimerId(0);
/// What waits tries to leave.
const TRY: TimerId = TimerId(1);

/// The key of a rate that holds for values that are not named.
const OTHER: &str = "other";

/// What a level counts per.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// The channel on which it leaves.
    Channel,
    /// The type.
    Type,
    /// The category.
    Category,
}

/// One level: what it counts per, and a rate for each value of the first of them.
#[derive(Clone, Debug, Serialize)]
pub struct Level {
    /// What it counts per.
    pub per: Vec<Per>,
    /// Rates like `push: 10/h`, by the value of `per`'s first; `other` for the rest.
    #[serde(flatten)]
    pub rates: BTreeMap<String, Rate>,
}

impl Level {
    /// The rate that holds for this value of what it counts per first.
    fn rate(&self, value: &str) -> Option<Rate> {
        self.rates.get(value).or_else(|| self.rates.get(OTHER)).copied()
    }

    fn check(&self, index: usize, report: &mut Report<'_>) {
        let at = |last: Step| [key("levels"), Step::Index(index), last];
        let Some(first) = self.per.first() else {
            let expected = "one or more of `channel`, `type` and `category`";
            report.finding(Mistake::InvalidValue, &at(key("per")), "a level that counts per nothing", expected);
            return;
        };
        if self.rates.is_empty() {
            let expected = "one, like `push: 30/h`";
            report.finding(Mistake::InvalidValue, &at(key("per")), "a level without rates", expected);
        }
        let channels = || Channel::ALL.iter().map(|channel| channel.as_str().to_owned()).collect();
        let of_policies = |pick: fn(&Names) -> &BTreeSet<String>| report.names().map(|names| pick(names).clone());
        // Without policies at hand their names can't be wrong.
        let (what, mistake, known): (_, _, Option<BTreeSet<String>>) = match first {
            Per::Channel => ("channel", Mistake::UnknownChannel, Some(channels())),
            Per::Type => ("type", Mistake::UnknownType, of_policies(|names| &names.types)),
            Per::Category => ("category", Mistake::UnknownCategory, of_policies(|names| &names.categories)),
        };
        for (name, rate) in &self.rates {
            if let Some(known) = known.as_ref().filter(|known| name != OTHER && !known.contains(name)) {
                let expected = match known.len() {
                    // Few enough to be read.
                    0..=8 => {
                        let named = known.iter().filter(|name| *name != OTHER).map(|name| format!("`{name}`"));
                        format!("{} or `{OTHER}`", named.collect::<Vec<_>>().join(", "))
                    }
                    _ => format!("a {what} of `policies`, or `{OTHER}`"),
                };
                let path = at(Step::KeyItself(name.clone()));
                let found = format!("unknown {what} `{name}`");
                let finding = report.finding(mistake, &path, found, expected);
                finding.wrong = Some((name.clone(), known.iter().cloned().collect()));
            }
            if rate.max == 0 {
                let found = format!("the limit `{rate}` lets nothing through");
                report.finding(Mistake::ZeroLimit, &at(key(name)), found, "1 or more");
            }
            if rate.per.0.is_zero() {
                let found = format!("the limit `{rate}` has a window of no length");
                report.finding(Mistake::ZeroWindow, &at(key(name)), found, "a rate like `10/h`");
            }
        }
    }
}

// By hand, because serde's `flatten` reads everything twice and loses the place of a fault.
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

/// Parameters of `rate_limit`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitParams {
    /// Levels; all of them hold.
    pub levels: Vec<Level>,
}

/// Instants of sends, oldest first. Most counters of most users know one or two.
type Sends = SmallVec<[Instant; 3]>;

/// A counter, or a place where a leg waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryV1 {
    /// Instants of the last sends, oldest first.
    Sends(Sends),
    /// A leg waits here.
    Place(PlaceV1),
}

impl Default for EntryV1 {
    fn default() -> Self {
        Self::Sends(Sends::new())
    }
}
impl State for EntryV1 {}

impl Places for RateLimit {
    fn place(entry: &EntryV1) -> Option<&PlaceV1> {
        match entry {
            EntryV1::Place(place) => Some(place),
            EntryV1::Sends(_) => None,
        }
    }
    fn entry(place: PlaceV1) -> EntryV1 {
        EntryV1::Place(place)
    }
}

/// The operator.
pub struct RateLimit {
    limits: Vec<Limit>,
}

/// A level, with what can be said of it before a leg comes.
struct Limit {
    level: Level,
    /// Of a level whose rates are channels': the beginning of the counter's name, and the rate, by channel.
    by_channel: Option<Vec<Option<(Subkey, Rate)>>>,
}

impl Limit {
    fn new(level: Level) -> Self {
        let by_channel = (level.per.first() == Some(&Per::Channel)).then(|| {
            let of_channel =
                |channel: &Channel| Some((counter(Per::Channel, channel.as_str()), level.rate(channel.as_str())?));
            Channel::ALL.iter().map(of_channel).collect()
        });
        Self { level, by_channel }
    }
}

/// The beginning of a counter's name: short, so that the usual ones need no memory of their own.
fn counter(per: Per, value: &str) -> Subkey {
    let mut counter = Subkey::of(&["l"]);
    count_per(&mut counter, per, value);
    counter
}

fn count_per(counter: &mut Subkey, per: Per, value: &str) {
    counter.push(match per {
        Per::Channel => "c",
        Per::Type => "t",
        Per::Category => "g",
    });
    counter.push(value);
}

/// A rate that holds for one leg, and where its sends are counted.
struct Held {
    counter: Subkey,
    rate: Rate,
}

/// As many as the usual levels and a cap.
type AllHeld = SmallVec<[Held; 5]>;

impl Operator for RateLimit {
    const KIND: &'static str = "rate_limit";
    const POSITION: Position = Position::Legs;
    type Params = RateLimitParams;
    type User = ();
    type Entry = EntryV1;
    type Body = Option<Box<Item>>;
    type Store = Table<Self>;

    fn check(params: &RateLimitParams, report: &mut Report<'_>) {
        for (index, level) in params.levels.iter().enumerate() {
            level.check(index, report);
        }
    }

    fn new(params: RateLimitParams) -> Self {
        Self { limits: params.levels.into_iter().map(Limit::new).collect() }
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, mut item: Box<Item>) {
        if item.is_control() {
            parked::retract(cx, &mut item);
            return cx.emit(0, item);
        }
        let exempt = cx.rules().of_type(&item.event_type).limits == Limits::Exempt;
        if item.leg.is_none() || item.silent || item.counted || exempt {
            return cx.emit(0, item);
        }
        // `quiet_hours` has judged its first candidate.
        self.judge(cx, item, true);
    }

    fn on_timer(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, timer: TimerId) {
        match timer {
            FORGET => drop(cx.remove(subkey)),
            _ => self.release(cx),
        }
    }

    fn on_profile(&self, cx: &mut Cx<'_, Self>, _: &Known) {
        self.judge_all(cx);
    }

    fn on_rules(&self, cx: &mut Cx<'_, Self>) {
        self.judge_all(cx);
    }
}

impl RateLimit {
    /// Judges a leg that just came: its first candidate, then the next, as the policy says. `asked`:
    /// whether quiet hours were asked about the first; about the others nobody was.
    fn judge(&self, cx: &mut Cx<'_, Self>, mut item: Box<Item>, mut asked: bool) {
        let mut last = None;
        while let Some(channel) = item.channel() {
            let held = self.held(cx, &item, channel);
            let verdict = if asked { Verdict::Pass } else { cx.verdict(&item, channel) };
            (asked, last) = (false, Some((channel, Reason::RateLimited)));
            if is_closed(&held) {
                item.strike(channel, Reason::RateLimited);
                continue;
            }
            let overflow = cx.rules().overflow(&item.event_type, item.priority);
            let place = place_of(&item, channel, overflow);
            match verdict {
                Verdict::Pass => {}
                Verdict::Silent => {
                    item.silent = true;
                    return cx.emit(0, item);
                }
                Verdict::Defer { until, release } => {
                    let did = [Did::Deferred, Did::Parked];
                    return wait(cx, &place, item, (until, release), &did, Reason::QuietHours);
                }
                Verdict::InApp => {
                    only_in_app(&mut item, channel, Reason::QuietHours);
                    last = Some((channel, Reason::QuietHours));
                    continue;
                }
            }
            // It joins what waits, rather than overtake it.
            let waiting = overflow == Overflow::Merge && cx.entry(&place).is_some();
            let free = match free_at(cx, &held) {
                None if !waiting => {
                    count(cx, &held);
                    item.counted = true;
                    return cx.emit(0, item);
                }
                free => free.unwrap_or_else(|| cx.now()),
            };
            match overflow {
                Overflow::Merge | Overflow::Defer => {
                    let did = [Did::RateLimited, Did::Parked];
                    return wait(cx, &place, item, (free, free), &did, Reason::RateLimited);
                }
                Overflow::Drop => return parked::end(cx, &item, channel, Reason::RateLimited),
                Overflow::Next => item.strike(channel, Reason::RateLimited),
                Overflow::InApp => only_in_app(&mut item, channel, Reason::RateLimited),
            }
        }
        if let Some((channel, reason)) = last {
            parked::end(cx, &item, channel, reason);
        }
    }

    /// Lets leave what can, oldest first; sets the timers of what cannot.
    fn release(&self, cx: &mut Cx<'_, Self>) {
        let mut places: Vec<(Instant, Subkey)> = Vec::new();
        for subkey in cx.subkeys() {
            if let Some(place) = cx.entry(&subkey).as_deref().and_then(Self::place) {
                places.push((place.since, subkey));
            }
        }
        places.sort_unstable();
        for (_, subkey) in places {
            let Some((place, item)) = parked::take(cx, &subkey) else { continue };
            self.release_one(cx, &subkey, place, item);
        }
    }

    fn release_one(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, place: PlaceV1, mut item: Box<Item>) {
        let Some(channel) = item.channel() else { return };
        let held = self.held(cx, &item, channel);
        let waits = matches!(cx.rules().overflow(&item.event_type, item.priority), Overflow::Merge | Overflow::Defer);
        // What waited for budget must ask the clock again.
        let verdict = cx.verdict(&item, channel);
        let (until, at) = match (verdict, free_at(cx, &held)) {
            // A cap of zero ends the wait; so does what the policy does with overflow, where it waited
            // for the morning.
            _ if is_closed(&held) => {
                let item = parked::leaving(cx, subkey, &place, item);
                return self.judge(cx, item, true);
            }
            (Verdict::Pass, Some(_)) if !waits => {
                let item = parked::leaving(cx, subkey, &place, item);
                return self.judge(cx, item, true);
            }
            (Verdict::Pass, None) => {
                let mut item = parked::leaving(cx, subkey, &place, item);
                count(cx, &held);
                item.counted = true;
                return cx.emit(0, item);
            }
            (Verdict::Silent, _) => {
                item.silent = true;
                let item = parked::leaving(cx, subkey, &place, item);
                return cx.emit(0, item);
            }
            (Verdict::InApp, _) => {
                if !item.candidates.contains(&Channel::InApp) {
                    return parked::end(cx, &item, channel, Reason::QuietHours);
                }
                only_in_app(&mut item, channel, Reason::QuietHours);
                let item = parked::leaving(cx, subkey, &place, item);
                return self.judge(cx, item, false);
            }
            (Verdict::Defer { until, release }, _) => (until, release),
            (Verdict::Pass, Some(at)) => (at, at),
        };
        if until != place.until {
            cx.record_leg(&item, &[Did::Parked], Some(Reason::RateLimited), Some(until));
        }
        *cx.entry_mut(subkey) = EntryV1::Place(PlaceV1 { until, ..place });
        cx.set_body(subkey, Some(item));
        cx.set_timer(subkey, TRY, at);
    }

    /// The profile or the rules changed: ends what is not wanted any more, moves what lost its first
    /// candidate, and lets leave what may.
    fn judge_all(&self, cx: &mut Cx<'_, Self>) {
        for subkey in cx.subkeys() {
            if cx.entry(&subkey).as_deref().and_then(Self::place).is_none() {
                continue;
            }
            let Some((place, mut item)) = parked::take(cx, &subkey) else { continue };
            let before = item.channel();
            if !parked::still_wanted(cx, &mut item) {
                continue;
            }
            if item.channel() == before {
                *cx.entry_mut(&subkey) = EntryV1::Place(place);
                cx.set_body(&subkey, Some(item));
            } else {
                let item = parked::leaving(cx, &subkey, &place, item);
                self.judge(cx, item, false);
            }
        }
        self.release(cx);
    }

    /// The rates that hold for `item` on `channel`.
    fn held(&self, cx: &Cx<'_, Self>, item: &Item, channel: Channel) -> AllHeld {
        let mut held = AllHeld::new();
        for Limit { level, by_channel } in &self.limits {
            let value = |per: Per| match per {
                Per::Channel => channel.as_str(),
                Per::Type => &*item.event_type,
                Per::Category => &*item.category,
            };
            let Some((first, others)) = level.per.split_first() else { continue };
            let begun = match by_channel {
                Some(channels) => channels.get(channel as usize).cloned().flatten(),
                None => level.rate(value(*first)).map(|rate| (counter(*first, value(*first)), rate)),
            };
            let Some((mut counter, rate)) = begun else { continue };
            others.iter().for_each(|per| count_per(&mut counter, *per, value(*per)));
            held.push(Held { counter, rate });
        }
        for cap in &cx.known().profile.caps {
            let fits = cap.category.as_deref().is_none_or(|category| category == &*item.category)
                && cap.event_type.as_deref().is_none_or(|event_type| event_type == &*item.event_type)
                && cap.channel.is_none_or(|other| other == channel);
            if !fits {
                continue;
            }
            let per = cap.per.to_string();
            let fields = [
                "cap",
                cap.category.as_deref().unwrap_or(""),
                cap.event_type.as_deref().unwrap_or(""),
                cap.channel.map_or("", Channel::as_str),
                &per,
            ];
            held.push(Held { counter: Subkey::of(&fields), rate: Rate { max: cap.max, per: cap.per } });
        }
        held
    }
}

/// When what is `held` may leave: now, or the instant at which every level has budget.
fn free_at(cx: &Cx<'_, RateLimit>, held: &[Held]) -> Option<Instant> {
    let mut free = None;
    for Held { counter, rate } in held {
        let counted = cx.entry(counter);
        let Some(EntryV1::Sends(sends)) = counted.as_deref() else { continue };
        let recent = sends.iter().filter(|at| at.after(rate.per.0) > cx.now()).count();
        let most = usize::try_from(rate.max).unwrap_or(usize::MAX);
        if recent >= most {
            // The send whose leaving the window makes room.
            let opens = sends.len().checked_sub(most.max(1)).and_then(|place| sends.get(place));
            free = free.max(opens.map(|at| at.after(rate.per.0)));
        }
    }
    free
}

/// Counts a send, once on every counter: two levels that count per the same things share one, which
/// remembers as long as the longer of them asks back.
fn count(cx: &mut Cx<'_, RateLimit>, held: &AllHeld) {
    let now = cx.now();
    for (number, Held { counter, .. }) in held.iter().enumerate() {
        if held[..number].iter().any(|earlier| earlier.counter == *counter) {
            continue;
        }
        let sharing = held[number..].iter().filter(|other| other.counter == *counter);
        let span = sharing.map(|other| other.rate.per.0).max().unwrap_or_default();
        if let EntryV1::Sends(sends) = cx.entry_mut(counter) {
            let left = sends.iter().take_while(|at| at.after(span) <= now).count();
            sends.drain(..left);
            sends.push(now);
            if deliberate::has(Bug::CountedTwice) {
                sends.push(now);
            }
        }
        cx.set_timer(counter, FORGET, now.after(span));
    }
}

/// Whether nothing may ever leave: a user's cap of zero is an opt-out by another name, and waiting
/// would never end.
fn is_closed(held: &[Held]) -> bool {
    held.iter().any(|held| held.rate.max == 0)
}

/// Strikes every candidate but in-app; in-app too, if that is the channel which may not be used.
fn only_in_app(item: &mut Item, channel: Channel, reason: Reason) {
    for candidate in item.candidates.clone() {
        if candidate != Channel::InApp || channel == Channel::InApp {
            item.strike(candidate, reason);
        }
    }
}

/// Puts a leg where it waits, until `until` as a person is told, to be tried again at `at`; where
/// others wait already, not later than they.
fn wait(
    cx: &mut Cx<'_, RateLimit>,
    place: &Subkey,
    item: Box<Item>,
    (until, at): (Instant, Instant),
    did: &[Did],
    reason: Reason,
) {
    let due = cx.timer(place, TRY).map_or(at, |due| due.min(at));
    parked::park(cx, place, item, until, did, reason);
    cx.set_timer(place, TRY, due);
}

/// Where a leg waits: with its like where it merges, alone where it does not, or where deliver gave
/// it back.
fn place_of(item: &Item, channel: Channel, overflow: Overflow) -> Subkey {
    match overflow {
        Overflow::Merge if item.returns == 0 => Subkey::of(&["wait", channel.as_str(), &item.tenant, &item.event_type]),
        Overflow::Merge | Overflow::InApp | Overflow::Next | Overflow::Defer | Overflow::Drop => {
            Subkey::from(&item.leg.unwrap_or_default().0)
        }
    }
}
