//! `aggregate`: what happens to one object within a window is said once: "John and 5 others".
//!
//! A window opens at the first event and flushes after `window`, or at once when `threshold` distinct
//! people have come together. A retraction takes its actor out; an emptied window says nothing. High
//! priority does not wait for company, unless the parameters say so.
//!
//! ```text
//! 10:00  bob likes photo7     -> parked until 10:05
//! 10:02  alice likes photo7   -> parked until 10:05
//! 10:03  bob takes it back    -> retracted
//! 10:05                       -> alice (one event: not merged)
//! ```
//! Keeps one item per (tenant, type, object) and window: at most `MEMBERS_MAX` members, the rest
//! counted. A window keeps its deadline when a parameter changes.

use std::borrow::Cow;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_schemas::channel::{Op, Priority};
use tidings_schemas::ids::{GroupId, NotificationId};
use tidings_schemas::lifecycle::State as Did;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_schemas::units::Period;

use crate::item::Item;
use crate::keyed::{Cx, Operator, State, Subkey, Table, TimerId};
use crate::params::{Mistake, Report, key};

const FLUSH: TimerId = TimerId(0);

/// What a window is kept by, beside the user and the tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum By {
    /// The event's type.
    #[serde(rename = "type")]
    Type,
    /// The event's category.
    #[serde(rename = "category")]
    Category,
    /// The object it was done to.
    #[serde(rename = "object.id")]
    Object,
}

/// Parameters of `aggregate`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AggregateParams {
    /// What a window is kept by. Default `[type, object.id]`.
    #[serde(default = "by_type_and_object")]
    pub by: Vec<By>,
    /// How long a window stays open. Default 5m.
    #[serde(default = "five_minutes")]
    pub window: Period,
    /// Distinct actors that flush at once. Default 10.
    #[serde(default = "ten")]
    pub threshold: u64,
    /// Each event moves the deadline to `window` from now, but never beyond this from the opening.
    #[serde(default)]
    pub sliding_max: Option<Period>,
    /// The first event is said at once; what follows within the window is gathered. Default false.
    #[serde(default)]
    pub leading: bool,
    /// Priorities that are gathered. Default medium and low.
    #[serde(default = "medium_and_low")]
    pub priorities: Vec<Priority>,
}

fn by_type_and_object() -> Vec<By> {
    vec![By::Type, By::Object]
}

fn five_minutes() -> Period {
    Period(Duration::from_secs(300))
}

const fn ten() -> u64 {
    10
}

fn medium_and_low() -> Vec<Priority> {
    vec![Priority::Medium, Priority::Low]
}

/// An open window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowV1 {
    opened_at: Instant,
    group: GroupId,
}
impl State for WindowV1 {}

/// The operator.
pub struct Aggregate {
    params: AggregateParams,
}

impl Operator for Aggregate {
    const KIND: &'static str = "aggregate";
    const MERGES: bool = true;
    type Params = AggregateParams;
    type User = ();
    type Entry = WindowV1;
    type Body = Option<Box<Item>>;
    type Store = Table<Self>;

    fn check(params: &AggregateParams, report: &mut Report<'_>) {
        report.positive("window", params.window.0);
        if params.threshold < 2 {
            let found = format!("a threshold of {}: each event would be said alone", params.threshold);
            report.finding(Mistake::LowThreshold, &[key("threshold")], found, "2 or more distinct actors");
        }
        if let Some(most) = params.sliding_max.filter(|most| *most < params.window) {
            let found = format!("a maximum of {most} below the window of {}", params.window);
            let expected = format!("`{}` or more", params.window);
            report.finding(Mistake::InvalidValue, &[key("sliding_max")], found, expected);
        }
    }

    fn new(params: AggregateParams) -> Self {
        Self { params }
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, mut item: Box<Item>) {
        if item.is_control() {
            retract(cx, &mut item);
            return cx.emit(0, item);
        }
        if item.returned.is_some() || !self.params.priorities.contains(&item.priority) {
            return cx.emit(0, item);
        }
        let subkey = self.subkey(&item);
        let Some(window) = cx.entry(&subkey).map(Cow::into_owned) else { return self.open(cx, &subkey, item) };
        let deadline = self.slide(cx, &subkey, &window);
        let mut gathered = match cx.take_body(&subkey).flatten() {
            None => item.clone(),
            Some(mut gathered) => {
                for member in gathered.absorb((*item).clone()) {
                    // Folded: counted in the text, and no longer retractable, so its story ends here.
                    let mut about = (*gathered).clone();
                    about.group = window.group;
                    cx.record_member(&about, &member, &[Did::Merged], Some(Reason::Merged), None);
                }
                gathered
            }
        };
        gathered.group = window.group;
        if gathered.actors_count() >= self.params.threshold {
            cx.record_events(&item, &[Did::Parked], None, deadline);
            cx.remove(&subkey);
            return flush(cx, &subkey, gathered);
        }
        cx.record_events(&item, &[Did::Parked], None, deadline);
        cx.set_body(&subkey, Some(gathered));
    }

    fn on_timer(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, _: TimerId) {
        if let Some((_, Some(item))) = cx.remove(subkey) {
            flush(cx, subkey, item);
        }
    }
}

impl Aggregate {
    /// Events with channels or a fallback of their own are gathered among their like only: merging
    /// must not send anything where its producer did not want it.
    fn subkey(&self, item: &Item) -> Subkey {
        let mut subkey = Subkey::of(&[&item.tenant]);
        subkey.push_list(item.channels.iter().map(|channel| channel.as_str()));
        subkey.push_list(item.fallback.iter().map(|channel| channel.as_str()));
        for by in &self.params.by {
            subkey.push(match by {
                By::Type => &item.event_type,
                By::Category => &item.category,
                By::Object => item.object.as_ref().map_or("", |object| &object.id),
            });
        }
        subkey
    }

    fn open(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, item: Box<Item>) {
        let deadline = cx.now().after(self.params.window.0);
        let group = GroupId::new(cx.operator(), cx.user_id(), subkey.bytes(), item.first_event());
        *cx.entry_mut(subkey) = WindowV1 { opened_at: cx.now(), group };
        cx.set_timer(subkey, FLUSH, deadline);
        if self.params.leading {
            return cx.emit(0, item);
        }
        cx.record_events(&item, &[Did::Parked], None, Some(deadline));
        cx.set_body(subkey, Some(item));
    }

    /// Moves a sliding window's deadline; returns when it closes.
    fn slide(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, window: &WindowV1) -> Option<Instant> {
        if let Some(most) = self.params.sliding_max {
            let deadline = cx.now().after(self.params.window.0).min(window.opened_at.after(most.0));
            cx.set_timer(subkey, FLUSH, deadline);
        }
        cx.timer(subkey, FLUSH)
    }
}

/// Says what a window gathered: nothing if nothing is left, a single event as it came, more as one
/// notification that names them all.
fn flush(cx: &mut Cx<'_, Aggregate>, subkey: &Subkey, mut item: Box<Item>) {
    for member in item.take_out_expired(cx.now()) {
        cx.record_member(&item, &member, &[Did::Expired], Some(Reason::Expired), None);
    }
    if item.members.is_empty() {
        return;
    }
    item.ready_at = cx.now();
    if item.activities() == 1 {
        // A notification of one keeps the name that its event came with, which need not be the one that
        // opened the window; it never was a group.
        item.notification = NotificationId::of_one(&item.user, item.first_event());
        item.group = GroupId::default();
    } else {
        item.notification = item.formed_id(cx.operator(), subkey.bytes());
        cx.record_events(&item, &[Did::Merged], Some(Reason::Merged), None);
    }
    cx.emit(0, item);
}

fn retract(cx: &mut Cx<'_, Aggregate>, control: &mut Item) {
    let (did, reason) = match control.op {
        Op::Cancel => (Did::Cancelled, Reason::Cancelled),
        Op::Retract | Op::Notify => (Did::Retracted, Reason::Retracted),
    };
    for subkey in cx.subkeys() {
        let named = |item: &Item| item.members.iter().any(|member| control.names(item, member));
        let Some(Some(item)) = cx.body(&subkey).filter(|body| body.as_deref().is_some_and(named)).map(Cow::into_owned)
        else {
            continue;
        };
        let mut item = item;
        let out = item.take_out(control);
        if out.is_empty() {
            continue;
        }
        for member in &out {
            cx.record_member(&item, member, &[did], Some(reason), None);
        }
        control.matched += out.len() as u64;
        if item.members.is_empty() && item.folded.count == 0 {
            cx.remove(&subkey);
        } else {
            cx.set_body(&subkey, Some(item));
        }
    }
}
