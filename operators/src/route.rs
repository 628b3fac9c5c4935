//! `route`: the final choice among the candidates, by priority; an item becomes legs.
//!
//! Critical items and explicit `channels` go everywhere they may, one leg per channel. All others
//! make one leg with its candidates in order, of which the first is taken unless something strikes
//! it; low priority keeps to e-mail and in-app where it can. Critical to medium also leave a silent
//! copy in the inbox. An item that may go nowhere still makes a leg, and ends there with the reason.
//!
//! ```text
//! like (push, email)             -> leg push [push, email]; leg in_app, silent
//! order, channels [push, email]  -> leg push; leg email; leg in_app, silent
//! like, everything off           -> leg push, suppressed (opted_out)
//! ```
//! What deliver gives back enters here as that leg alone: a stale one is judged anew, an undeliverable
//! one takes its next fallback as a new leg. Keeps nothing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smallvec::smallvec;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::LegId;
use tidings_schemas::lane::ReturnCause;
use tidings_schemas::lifecycle::State as Did;
use tidings_schemas::reason::Reason;

use crate::candidates::{Asked, Candidates, closed};
use crate::item::Item;
use crate::keyed::{Cx, Operator, Table};
use crate::params::{Position, SideInput};

/// `route` has no parameters.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteParams {}

/// The operator.
pub struct Route;

impl Operator for Route {
    const KIND: &'static str = "route";
    const POSITION: Position = Position::Route;
    const JOINS: &'static [SideInput] = &[SideInput::Profile, SideInput::Reachability];
    type Params = RouteParams;
    type User = ();
    type Entry = ();
    type Body = ();
    type Store = Table<Self>;

    fn new(_: RouteParams) -> Self {
        Self
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, item: Box<Item>) {
        if item.is_control() {
            return cx.emit(0, item);
        }
        if let Some(cause) = item.returned {
            return came_back(cx, item, cause);
        }
        // What was gathered or scheduled asks again: the profile may have changed since.
        let asked = Asked::of(&item, cx.known(), cx.rules());
        let answer = asked.candidates();
        let everywhere = item.priority == Priority::Critical || !item.channels.is_empty();
        let inbox = silent_copy(&asked, &item, &answer);
        if everywhere {
            each_channel(cx, item, answer);
        } else {
            best_channel(cx, item, answer, inbox.is_some());
        }
        if let Some(copy) = inbox {
            leave(cx, copy);
        }
    }
}

/// One leg per channel; the fallback rides on the first.
fn each_channel(cx: &mut Cx<'_, Route>, mut item: Box<Item>, answer: Candidates) {
    let explicit = !item.channels.is_empty();
    let Candidates { open, closed } = answer;
    // What the producer asked for by name ends by name; of a default only the first does, and only
    // if nothing else could be used.
    let ends = if explicit { closed.len() } else { usize::from(open.is_empty()) }.min(closed.len());
    let mut fallback = std::mem::take(&mut item.fallback);
    // The last leg is the item itself.
    let mut legs = std::iter::repeat_n(item, open.len() + ends);
    for (channel, item) in open.iter().zip(&mut legs) {
        let mut leg = leg_of(item, *channel);
        leg.candidates = smallvec![*channel];
        leg.struck.clear();
        leg.fallback = std::mem::take(&mut fallback);
        leave(cx, leg);
    }
    for ((channel, reason), item) in closed.into_iter().zip(legs) {
        suppress(cx, leg_of(item, channel), channel, reason);
    }
}

/// One leg with its candidates in order.
fn best_channel(cx: &mut Cx<'_, Route>, mut item: Box<Item>, mut answer: Candidates, copied: bool) {
    if item.priority == Priority::Low {
        let calm = |channel: &Channel| matches!(channel, Channel::Email | Channel::InApp);
        if answer.open.iter().any(calm) {
            let loud: Vec<_> = answer.open.iter().copied().filter(|channel| !calm(channel)).collect();
            answer.open.retain(|channel| calm(channel));
            answer.closed.extend(loud.into_iter().map(|channel| (channel, Reason::Policy)));
        }
    }
    if copied {
        // The silent copy is the in-app leg; this one must not become a second.
        answer.open.retain(|channel| *channel != Channel::InApp);
    }
    match answer.open.first() {
        Some(first) => {
            let mut leg = leg_of(item, *first);
            leg.candidates = answer.open;
            leg.struck = answer.closed;
            leave(cx, leg);
        }
        None => {
            item.candidates.clear();
            // A type whose channels are all closed, or a user with the inbox alone.
            let closed = answer.closed.first().copied();
            if let Some((channel, reason)) = closed.or((!copied).then_some((Channel::InApp, Reason::Policy))) {
                suppress(cx, leg_of(item, channel), channel, reason);
            }
        }
    }
}

/// The inbox copy that critical to medium leave, unless in-app is asked for or the first choice.
fn silent_copy(asked: &Asked<'_>, item: &Item, answer: &Candidates) -> Option<Box<Item>> {
    let kept = item.priority <= Priority::Medium;
    let spoken = if item.priority == Priority::Critical || !item.channels.is_empty() {
        answer.open.contains(&Channel::InApp) || item.channels.contains(&Channel::InApp)
    } else {
        answer.open.first() == Some(&Channel::InApp)
    };
    if !kept || spoken || asked.closed(Channel::InApp).is_some() {
        return None;
    }
    let mut copy = Box::new(item.clone());
    copy.leg = Some(LegId::new(item.notification, "silent", item.replay));
    copy.candidates = smallvec![Channel::InApp];
    copy.struck.clear();
    copy.fallback.clear();
    copy.silent = true;
    Some(copy)
}

fn leg_of(mut leg: Box<Item>, first: Channel) -> Box<Item> {
    leg.leg = Some(LegId::new(leg.notification, first.as_str(), leg.replay));
    leg
}

fn leave(cx: &mut Cx<'_, Route>, leg: Box<Item>) {
    cx.record_leg(&leg, &[Did::Created], None, None);
    cx.emit(0, leg);
}

fn suppress(cx: &mut Cx<'_, Route>, mut leg: Box<Item>, channel: Channel, reason: Reason) {
    leg.candidates = smallvec![channel];
    cx.record_leg(&leg, &[Did::Created, Did::Suppressed], Some(reason), None);
}

/// A leg that deliver gave back.
fn came_back(cx: &mut Cx<'_, Route>, mut item: Box<Item>, cause: ReturnCause) {
    if item.expires_at.is_some_and(|at| at <= cx.now()) {
        return cx.record_leg(&item, &[Did::Returned, Did::Expired], Some(Reason::Expired), None);
    }
    item.ready_at = cx.now();
    match cause {
        ReturnCause::Stale => {
            let channel = item.channel().unwrap_or(Channel::InApp);
            match closed(&item, channel, cx.known(), cx.rules()) {
                None => {
                    cx.record_leg(&item, &[Did::Returned], Some(Reason::Stale), None);
                    cx.emit(0, item);
                }
                Some(reason) => cx.record_leg(&item, &[Did::Returned, Did::Suppressed], Some(reason), None),
            }
        }
        ReturnCause::Undeliverable => {
            let mut struck = item.struck.clone();
            struck.extend(item.channel().map(|channel| (channel, Reason::Undeliverable)));
            let mut fallback = std::mem::take(&mut item.fallback).into_iter();
            let open = fallback.find(|channel| match closed(&item, *channel, cx.known(), cx.rules()) {
                None => true,
                Some(reason) => {
                    struck.push((*channel, reason));
                    false
                }
            });
            let Some(channel) = open else {
                return cx.record_leg(&item, &[Did::Returned, Did::Suppressed], Some(Reason::Undeliverable), None);
            };
            let next = Box::new(Item {
                leg: Some(LegId::new(item.notification, channel.as_str(), item.replay)),
                candidates: smallvec![channel],
                struck,
                fallback: fallback.collect(),
                counted: false,
                returned: None,
                ..(*item).clone()
            });
            // The leg that failed ends here: `returned` alone would read as if it still came back.
            let did = [Did::Returned, Did::Suppressed, Did::FailedOver];
            cx.record_leg(&item, &did, Some(Reason::Undeliverable), None);
            leave(cx, next);
        }
        ReturnCause::Replay => {
            let channel = item.channel().unwrap_or(Channel::InApp);
            let leg = leg_of(item, channel);
            match closed(&leg, channel, cx.known(), cx.rules()) {
                None => leave(cx, leg),
                Some(reason) => suppress(cx, leg, channel, reason),
            }
        }
    }
}
