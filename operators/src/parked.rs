//! Legs that wait, merged where they speak of one thing: what `quiet_hours` and `rate_limit` share.
//!
//! A *place* holds one leg; another that speaks of the same thing joins it and ends as `merged` into
//! the place's group at once. When the place empties, what is in it leaves under its own name if its
//! membership is still what it was, and otherwise as a new notification, into which the first leg
//! merges too. Retractions, cancellations and expiries take members out on the way.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tidings_schemas::channel::Op;
use tidings_schemas::ids::{GroupId, LegId};
use tidings_schemas::lifecycle::{State as Did, Unit};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use crate::candidates::closed;
use crate::item::Item;
use crate::keyed::{About, Cx, Operator, State, Subkey, Table};

/// What a place knows beside the leg in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceV1 {
    /// Since when it is taken: the oldest leaves first.
    pub since: Instant,
    /// Until when, as a person was told.
    pub until: Instant,
    /// The group that others join.
    pub group: GroupId,
    /// Whether the membership is not what the leg came with.
    pub changed: bool,
}
impl State for PlaceV1 {}

/// State for operators whose entries are places and counters of their own.
pub trait Places: Operator<Body = Option<Box<Item>>, Store = Table<Self>> {
    /// The place in an entry's head.
    fn place(entry: &Self::Entry) -> Option<&PlaceV1>;
    /// An entry that is this place.
    fn entry(place: PlaceV1) -> Self::Entry;
}

/// Puts `item` into the place `subkey`, with a row that says until when and which states.
pub(crate) fn park<O: Places>(
    cx: &mut Cx<'_, O>,
    subkey: &Subkey,
    item: Box<Item>,
    until: Instant,
    did: &[Did],
    reason: Reason,
) {
    let place = cx.entry(subkey).as_deref().and_then(O::place).cloned();
    let waiting = cx.take_body(subkey).flatten();
    let (Some(mut place), Some(mut waiting)) = (place, waiting) else {
        let group = GroupId::new(cx.operator(), cx.user_id(), subkey.bytes(), item.first_event());
        cx.record_leg(&item, did, Some(reason), Some(until));
        *cx.entry_mut(subkey) = O::entry(PlaceV1 { since: cx.now(), until, group, changed: false });
        return cx.set_body(subkey, Some(item));
    };
    // The newcomer's leg ends here; its events end in the group.
    let mut joins = item;
    joins.group = place.group;
    cx.record_leg(&joins, &[Did::Merged], Some(Reason::Merged), None);
    cx.record_events(&joins, &[Did::Merged], Some(Reason::Merged), None);
    drop(waiting.absorb(*joins));
    place.changed = true;
    *cx.entry_mut(subkey) = O::entry(place);
    cx.set_body(subkey, Some(waiting));
}

/// Takes the leg out of the place `subkey`, without those whose time has passed. `None`: nothing is
/// left of it; the rows are written.
pub(crate) fn take<O: Places>(cx: &mut Cx<'_, O>, subkey: &Subkey) -> Option<(PlaceV1, Box<Item>)> {
    let place = cx.entry(subkey).as_deref().and_then(O::place).cloned()?;
    let (_, Some(mut item)) = cx.remove(subkey)? else { return None };
    let created_at = item.created_at;
    let expired = item.take_out_expired(cx.now());
    if expired.is_empty() {
        return Some((place, item));
    }
    let late = Item { members: expired, created_at, ..(*item).clone() };
    if item.members.is_empty() {
        cx.record_leg(&late, &[Did::Expired], Some(Reason::Expired), None);
        return None;
    }
    cx.record_events(&late, &[Did::Expired], Some(Reason::Expired), None);
    Some((PlaceV1 { changed: true, ..place }, item))
}

/// The leg as it leaves: under its own name, or as the new notification that its members make.
pub(crate) fn leaving<O: Places>(
    cx: &mut Cx<'_, O>,
    subkey: &Subkey,
    place: &PlaceV1,
    mut item: Box<Item>,
) -> Box<Item> {
    item.ready_at = cx.now();
    if !place.changed {
        return item;
    }
    let mut old = item.clone();
    old.group = place.group;
    item.notification = item.formed_id(cx.operator(), subkey.bytes());
    // A notification of one is no group: its event is said, not merged.
    item.group = if item.activities() > 1 { place.group } else { GroupId::default() };
    let first = if item.silent { "silent" } else { item.channel().map_or("", |channel| channel.as_str()) };
    item.leg = Some(LegId::new(item.notification, first, item.replay));
    // Its events that came with the first leg join the group; a second row of the others is the same.
    if item.activities() > 1 {
        cx.record_events(&item, &[Did::Merged], Some(Reason::Merged), None);
    }
    let mut about = About::leg(&old);
    about.event = item.first_event();
    cx.record_caused(Unit::Leg, about, &[Did::Merged], Some(Reason::Merged), item.notification.text().as_str());
    cx.record_leg(&item, &[Did::Created], None, None);
    item
}

/// Takes out of every place what the control item names.
pub(crate) fn retract<O: Places>(cx: &mut Cx<'_, O>, control: &mut Item) {
    let (did, reason) = match control.op {
        Op::Cancel => (Did::Cancelled, Reason::Cancelled),
        Op::Retract | Op::Notify => (Did::Retracted, Reason::Retracted),
    };
    for subkey in cx.subkeys() {
        let Some(place) = cx.entry(&subkey).as_deref().and_then(O::place).cloned() else { continue };
        let named = |item: &Item| item.members.iter().any(|member| control.names(item, member));
        let Some(Some(item)) = cx.body(&subkey).filter(|body| body.as_deref().is_some_and(named)).map(Cow::into_owned)
        else {
            continue;
        };
        let (before, mut item) = (item.clone(), item);
        let out = item.take_out(control);
        if out.is_empty() {
            continue;
        }
        for member in &out {
            cx.record_member(&before, member, &[did], Some(reason), None);
        }
        control.matched += out.len() as u64;
        if item.members.is_empty() {
            cx.record_leg(&before, &[did], Some(reason), None);
            cx.remove(&subkey);
        } else {
            *cx.entry_mut(&subkey) = O::entry(PlaceV1 { changed: true, ..place });
            cx.set_body(&subkey, Some(item));
        }
    }
}

/// Strikes the candidates that the profile or the rules closed meanwhile. `false`: none is left; the
/// leg has ended, and its row says why.
pub(crate) fn still_wanted<O: Operator>(cx: &mut Cx<'_, O>, item: &mut Item) -> bool {
    let mut last = None;
    for channel in item.candidates.clone() {
        if let Some(reason) = closed(item, channel, cx.known(), cx.rules()) {
            last = last.or(Some((channel, reason)));
            item.strike(channel, reason);
        }
    }
    match (item.candidates.is_empty(), last) {
        (true, Some((channel, reason))) => {
            end(cx, item, channel, reason);
            false
        }
        _ => true,
    }
}

/// Ends a leg that `channel` was to carry.
pub(crate) fn end<O: Operator>(
    cx: &mut Cx<'_, O>,
    item: &Item,
    channel: tidings_schemas::channel::Channel,
    reason: Reason,
) {
    let about = About { channel: Some(channel), ..About::leg(item) };
    cx.record_about(Unit::Leg, about, &[Did::Suppressed], Some(reason));
}
