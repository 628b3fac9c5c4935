//! Where legs wait, merged where they speak of one thing: what quiet hours and limits share.

use std::collections::BTreeMap;

use tidings_schemas::ids::{GroupId, LegId};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use super::consent::closed;
use super::steps::{Now, taken};
use super::thing::Thing;
use super::told::Fate;

/// A user and a subkey: bytes compare as the engine's do.
pub(super) type Key = (String, Vec<u8>);

/// A deadline, and the epoch that set it: it fires in a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Instant,
    pub(super) set_in: u64,
}

/// A leg that waits.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) thing: Thing,
    pub(super) since: Instant,
    /// As a person was told.
    pub(super) until: Instant,
    pub(super) due: Due,
    /// What others join.
    pub(super) group: GroupId,
    /// The membership is not what the leg came with.
    pub(super) changed: bool,
}

pub(super) type Places = BTreeMap<Key, Place>;

/// Puts a leg into a place; whoever stands there already is joined. The caller says when it is due.
pub(super) fn park(places: &mut Places, now: &mut Now<'_>, key: &Key, thing: Thing, until: Instant, reason: Reason) {
    if let Some(place) = places.get_mut(key) {
        let merged = Fate::Merged([place.group].into());
        now.events(&thing, &merged);
        now.leg(&thing, merged);
        // Whoever is folded was said to be merged when it came.
        place.thing.join(thing);
        place.changed = true;
        return;
    }
    now.leg(&thing, Fate::Parked { until: Some(until), reason: Some(reason) });
    let group = GroupId::new(now.id, &thing.user, &key.1, thing.first_event());
    places.insert(key.clone(), Place { thing, since: now.at, until, due: now.due(until), group, changed: false });
}

/// The place without the members whose time has passed. None: nothing is left of it.
pub(super) fn fresh(now: &mut Now<'_>, mut place: Place) -> Option<Place> {
    let at = now.at;
    let whole = place.thing.clone();
    let gone = place.thing.part(|member| member.expires_at.is_some_and(|expires| expires <= at));
    if place.thing.members.is_empty() {
        now.leg(&whole, Fate::Expired);
        return None;
    }
    for member in &gone {
        now.member(member, Fate::Expired);
    }
    place.changed |= !gone.is_empty();
    Some(place)
}

/// The leg as it leaves its place: under its own name if its membership is what it was, else as a new
/// notification, into which the old leg merges.
pub(super) fn leave(now: &mut Now<'_>, key: &Key, place: Place) -> Thing {
    let Place { mut thing, group, changed, .. } = place;
    thing.ready_at = now.at;
    if changed {
        let merged = Fate::Merged([group].into());
        now.leg(&thing, merged.clone());
        if thing.activities() > 1 {
            now.events(&thing, &merged);
        }
        thing.notification = thing.formed(now.id, &key.1);
        // A notification of one is no group.
        thing.group = if thing.activities() > 1 { group } else { GroupId::default() };
        let channel = thing.channel().map_or("", |channel| channel.as_str());
        let first = if thing.silent { "silent" } else { channel };
        thing.leg = Some(LegId::new(thing.notification, first, thing.replay));
        now.leg(&thing, Fate::Open);
    }
    thing
}

/// Takes out of every place what the control means.
pub(super) fn part(places: &mut Places, now: &mut Now<'_>, control: &mut Thing) {
    let keys: Vec<Key> = places.keys().filter(|key| key.0 == control.user).cloned().collect();
    for key in keys {
        let Some(place) = places.get_mut(&key) else { continue };
        let gone = place.thing.part(|member| control.means(member));
        if gone.is_empty() {
            continue;
        }
        control.matched += gone.len() as u64;
        place.changed = true;
        for member in &gone {
            now.member(member, taken(control));
        }
        if place.thing.members.is_empty()
            && let Some(place) = places.remove(&key)
        {
            now.leg(&place.thing, taken(control));
        }
    }
}

/// Strikes the candidates that are closed by now. `false`: none is left, and the leg has ended.
pub(super) fn strike_closed(now: &mut Now<'_>, thing: &mut Thing) -> bool {
    let mut first = None;
    for channel in thing.candidates.clone() {
        if let Some(reason) = closed(thing, channel, now.known, now.rules) {
            thing.candidates.retain(|candidate| *candidate != channel);
            thing.struck.push((channel, reason));
            first = first.or(Some(reason));
        }
    }
    if thing.candidates.is_empty() {
        now.leg(thing, Fate::Suppressed(first));
    }
    !thing.candidates.is_empty()
}
