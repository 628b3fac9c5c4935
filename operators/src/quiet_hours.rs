//! `quiet_hours`: a join of the legs with the user's window, zone and rules.
//!
//! Per channel and priority a leg passes, waits for the window's end, goes on as the in-app leg
//! alone, or goes silently. What waits is judged again the moment the profile, an address or the
//! rules change: re-timed, released, or ended where the user opted out. What accumulates for one
//! object leaves merged, and the morning's release is spread over `spread`.
//!
//! ```text
//! profile u1: quiet 22:00-07:00 Europe/Berlin
//! 23:10  like bob photo7     -> parked until 07:00
//! 23:20  like alice photo7   -> merged
//! 07:00 + share of spread    -> one leg: bob and alice
//! ```
//! Keeps one item per (channel, tenant, type, object) that waits; a leg without an object waits alone.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_schemas::channel::Channel;
use tidings_schemas::lifecycle::State as Did;
use tidings_schemas::reason::Reason;
use tidings_schemas::units::Period;

use crate::item::Item;
use crate::keyed::{Cx, Known, Operator, Subkey, Table, TimerId};
use crate::params::{Mistake, Position, Report, SideInput, key};
use crate::parked::{self, PlaceV1, Places};
use crate::quiet::Verdict;

const RELEASE: TimerId = TimerId(0);

/// Longest spread. A release later than that is another part of the day than the user's morning.
const SPREAD_MAX: Duration = Duration::from_secs(4 * 3_600);

/// Parameters of `quiet_hours`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuietHoursParams {
    /// A window's end releases its users one after the other over this span, at most 4h. Default 0s:
    /// all at once.
    #[serde(default = "nothing")]
    pub spread: Period,
}

fn nothing() -> Period {
    Period(Duration::ZERO)
}

/// The operator. The spread is part of the rules, because limits ask the same verdict.
pub struct QuietHours;

impl Places for QuietHours {
    fn place(entry: &PlaceV1) -> Option<&PlaceV1> {
        Some(entry)
    }
    fn entry(place: PlaceV1) -> PlaceV1 {
        place
    }
}

impl Operator for QuietHours {
    const KIND: &'static str = "quiet_hours";
    const POSITION: Position = Position::Legs;
    const JOINS: &'static [SideInput] = &[SideInput::Profile];
    type Params = QuietHoursParams;
    type User = ();
    type Entry = PlaceV1;
    type Body = Option<Box<Item>>;
    type Store = Table<Self>;

    fn check(params: &QuietHoursParams, report: &mut Report<'_>) {
        if params.spread.0 > SPREAD_MAX {
            let found = format!("a spread of {}", params.spread);
            report.finding(Mistake::InvalidValue, &[key("spread")], found, "at most `4h`");
        }
    }

    fn new(_: QuietHoursParams) -> Self {
        Self
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, mut item: Box<Item>) {
        if item.is_control() {
            parked::retract(cx, &mut item);
            return cx.emit(0, item);
        }
        if item.leg.is_none() || item.silent {
            return cx.emit(0, item);
        }
        judge(cx, item, None);
    }

    fn on_timer(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, _: TimerId) {
        if let Some((place, item)) = parked::take(cx, subkey) {
            judge(cx, item, Some((subkey, place)));
        }
    }

    fn on_profile(&self, cx: &mut Cx<'_, Self>, _: &Known) {
        judge_all(cx);
    }

    fn on_rules(&self, cx: &mut Cx<'_, Self>) {
        judge_all(cx);
    }
}

/// Judges everything that waits again.
fn judge_all(cx: &mut Cx<'_, QuietHours>) {
    for subkey in cx.subkeys() {
        let Some((place, mut item)) = parked::take(cx, &subkey) else { continue };
        if parked::still_wanted(cx, &mut item) {
            judge(cx, item, Some((&subkey, place)));
        }
    }
}

/// Judges a leg's first candidate. `waited`: where it stood before.
fn judge(cx: &mut Cx<'_, QuietHours>, mut item: Box<Item>, waited: Option<(&Subkey, PlaceV1)>) {
    let Some(channel) = item.channel() else { return };
    match cx.verdict(&item, channel) {
        Verdict::Pass => leave(cx, item, waited),
        Verdict::Silent => {
            item.silent = true;
            leave(cx, item, waited);
        }
        Verdict::InApp => {
            if !item.candidates.contains(&Channel::InApp) {
                return parked::end(cx, &item, channel, Reason::QuietHours);
            }
            for candidate in item.candidates.clone().into_iter().filter(|candidate| *candidate != Channel::InApp) {
                item.strike(candidate, Reason::QuietHours);
            }
            judge(cx, item, waited);
        }
        Verdict::Defer { until, release } => {
            let subkey = place_of(&item, channel);
            match waited {
                Some((stood, place)) if *stood == subkey => {
                    // Judged again, and nothing is new: it stays where it was, silently.
                    if place.until != until {
                        cx.record_leg(&item, &[Did::Deferred, Did::Parked], Some(Reason::QuietHours), Some(until));
                    }
                    *cx.entry_mut(&subkey) = PlaceV1 { until, ..place };
                    cx.set_body(&subkey, Some(item));
                    cx.set_timer(&subkey, RELEASE, release);
                }
                waited => {
                    let item = match waited {
                        Some((stood, place)) => parked::leaving(cx, stood, &place, item),
                        None => item,
                    };
                    // Who joins puts nobody's turn off: where the next window begins before the spread of the last
                    // one is over, the turn of its own is a day later.
                    let due = cx.timer(&subkey, RELEASE).map_or(release, |due| due.min(release));
                    parked::park(cx, &subkey, item, until, &[Did::Deferred, Did::Parked], Reason::QuietHours);
                    cx.set_timer(&subkey, RELEASE, due);
                }
            }
        }
    }
}

fn leave(cx: &mut Cx<'_, QuietHours>, item: Box<Item>, waited: Option<(&Subkey, PlaceV1)>) {
    let item = match waited {
        None => item,
        Some((subkey, place)) => parked::leaving(cx, subkey, &place, item),
    };
    cx.emit(0, item);
}

/// Where a leg waits: with its like where it speaks of an object, alone where it does not, or where
/// deliver gave it back.
fn place_of(item: &Item, channel: Channel) -> Subkey {
    match item.object.as_ref().filter(|_| item.returns == 0) {
        Some(object) => Subkey::of(&[channel.as_str(), &item.tenant, &item.event_type, &object.id]),
        None => Subkey::from(&item.leg.unwrap_or_default().0),
    }
}
