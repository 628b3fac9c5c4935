//! The state of one operator on one worker: a table per key group, users within, entries below.
//!
//! Tables are per key group so that checkpoints are written and dealt out by group, and so that no
//! table grows large. A user's entries are ordered by subkey, so that walking them needs no sort.
//! What an epoch touched is marked where it lies; `Table::drain_dirty` turns the marks into images.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tidings_schemas::ids::{KEY_GROUPS, KeyGroup, key_group, placement};
use tidings_schemas::time::Instant;

use crate::deliberate::{self, Bug};
use crate::keyed::{Operator, State, Subkey, TimerId};

/// One entry of one user.
struct Entry<O: Operator> {
    head: Option<O::Entry>,
    body: Option<O::Body>,
    /// (id, due, epoch in which it was set).
    timers: SmallVec<[(TimerId, Instant, u64); 1]>,
    dirty: bool,
    body_dirty: bool,
}

impl<O: Operator> Default for Entry<O> {
    fn default() -> Self {
        Self { head: None, body: None, timers: SmallVec::new(), dirty: false, body_dirty: false }
    }
}

impl<O: Operator> Entry<O> {
    fn is_gone(&self) -> bool {
        self.head.is_none() && self.body.is_none() && self.timers.is_empty()
    }
}

/// All state of one user within one operator.
pub(crate) struct UserSlot<O: Operator> {
    user: Option<O::User>,
    user_dirty: bool,
    entries: BTreeMap<Subkey, Entry<O>>,
    /// Subkeys touched in this epoch; empty means that nothing of the user is dirty.
    touched: Vec<Subkey>,
    /// Whether the table has noted that the user is dirty.
    noted: bool,
}

impl<O: Operator> Default for UserSlot<O> {
    fn default() -> Self {
        Self { user: None, user_dirty: false, entries: BTreeMap::new(), touched: Vec::new(), noted: false }
    }
}

impl<O: Operator> UserSlot<O> {
    pub(crate) fn user(&self) -> Option<&O::User> {
        self.user.as_ref()
    }

    pub(crate) fn user_mut(&mut self) -> &mut O::User {
        self.user_dirty = true;
        self.user.get_or_insert_default()
    }

    pub(crate) fn clear_user(&mut self) {
        self.user_dirty |= self.user.take().is_some();
    }

    pub(crate) fn head(&self, subkey: &Subkey) -> Option<&O::Entry> {
        self.entries.get(subkey).and_then(|entry| entry.head.as_ref())
    }

    /// Whether a call was the first of the epoch to leave anything to be written.
    pub(crate) fn turned_dirty(&self) -> bool {
        !self.noted && (self.user_dirty || !self.touched.is_empty())
    }

    fn touch(&mut self, subkey: &Subkey) -> &mut Entry<O> {
        let entry = self.entries.entry(subkey.clone()).or_default();
        if !entry.dirty {
            entry.dirty = true;
            self.touched.push(subkey.clone());
        }
        entry
    }

    pub(crate) fn head_mut(&mut self, subkey: &Subkey) -> &mut O::Entry {
        self.touch(subkey).head.get_or_insert_default()
    }

    pub(crate) fn body(&self, subkey: &Subkey) -> Option<&O::Body> {
        self.entries.get(subkey).and_then(|entry| entry.body.as_ref())
    }

    /// Takes the body out of an entry, which stays. Costs nothing where there is none.
    pub(crate) fn take_body(&mut self, subkey: &Subkey) -> Option<O::Body> {
        self.entries.get(subkey)?.body.as_ref()?;
        let entry = self.touch(subkey);
        entry.body_dirty = true;
        entry.body.take()
    }

    pub(crate) fn set_body(&mut self, subkey: &Subkey, body: O::Body) {
        let entry = self.touch(subkey);
        entry.body = Some(body);
        entry.body_dirty = true;
    }

    /// Removes the entry; its timers must have been taken out of the index before.
    pub(crate) fn remove(&mut self, subkey: &Subkey) -> Option<(O::Entry, O::Body)> {
        self.entries.get(subkey)?;
        let entry = self.touch(subkey);
        entry.timers.clear();
        entry.body_dirty = true;
        match (entry.head.take(), entry.body.take()) {
            (None, None) => None,
            (head, body) => Some((head.unwrap_or_default(), body.unwrap_or_default())),
        }
    }

    pub(crate) fn subkeys(&self) -> Vec<Subkey> {
        self.entries.iter().filter(|(_, entry)| !entry.is_gone()).map(|(subkey, _)| subkey.clone()).collect()
    }

    pub(crate) fn timers_of(&self, subkey: &Subkey) -> SmallVec<[(TimerId, Instant); 1]> {
        self.entries
            .get(subkey)
            .map(|entry| entry.timers.iter().map(|(id, at, _)| (*id, *at)).collect())
            .unwrap_or_default()
    }

    /// Sets a timer; returns when its predecessor was due.
    pub(crate) fn set_timer(&mut self, subkey: &Subkey, id: TimerId, at: Instant, epoch: u64) -> Option<Instant> {
        let entry = self.touch(subkey);
        if let Some(timer) = entry.timers.iter_mut().find(|(timer, _, _)| *timer == id) {
            let before = timer.1;
            *timer = (id, at, epoch);
            Some(before)
        } else {
            entry.timers.push((id, at, epoch));
            None
        }
    }

    pub(crate) fn clear_timer(&mut self, subkey: &Subkey, id: TimerId) -> Option<Instant> {
        let place = self.entries.get(subkey)?.timers.iter().position(|(timer, _, _)| *timer == id)?;
        Some(self.touch(subkey).timers.remove(place).1)
    }

    /// The epoch in which the timer was set, if it still stands at `at`.
    pub(crate) fn timer_set_in(&self, subkey: &Subkey, id: TimerId, at: Instant) -> Option<u64> {
        let timers = &self.entries.get(subkey)?.timers;
        timers.iter().find(|(timer, due, _)| *timer == id && *due == at).map(|(_, _, epoch)| *epoch)
    }

    fn is_gone(&self) -> bool {
        self.user.is_none() && !self.user_dirty && self.touched.is_empty() && self.entries.is_empty()
    }

    pub(crate) fn has_entries(&self) -> bool {
        !self.entries.is_empty() || self.user.is_some()
    }
}

/// (due, user, subkey, id): the order in which timers fire.
pub(crate) type TimerKey = (Instant, Arc<str>, Subkey, TimerId);

/// Timers of one operator on one worker: ordered per key group, with the groups ordered by their
/// earliest, so that nothing is walked that is not due.
#[derive(Default)]
pub(crate) struct TimerIndex {
    groups: BTreeMap<KeyGroup, BTreeSet<TimerKey>>,
    next: BTreeSet<(Instant, KeyGroup)>,
}

impl TimerIndex {
    pub(crate) fn insert(&mut self, at: Instant, user: &Arc<str>, subkey: &Subkey, id: TimerId) {
        let group = key_group(placement(user));
        let timers = self.groups.entry(group).or_default();
        let before = timers.first().map(|(due, ..)| *due);
        timers.insert((at, Arc::clone(user), subkey.clone(), id));
        self.reindex(group, before);
    }

    pub(crate) fn remove(&mut self, at: Instant, user: &Arc<str>, subkey: &Subkey, id: TimerId) {
        let group = key_group(placement(user));
        let Some(timers) = self.groups.get_mut(&group) else { return };
        let before = timers.first().map(|(due, ..)| *due);
        timers.remove(&(at, Arc::clone(user), subkey.clone(), id));
        self.reindex(group, before);
    }

    fn reindex(&mut self, group: KeyGroup, before: Option<Instant>) {
        let after = self.groups.get(&group).and_then(|timers| timers.first()).map(|(due, ..)| *due);
        if before != after {
            if let Some(at) = before {
                self.next.remove(&(at, group));
            }
            match after {
                Some(at) => drop(self.next.insert((at, group))),
                None => drop(self.groups.remove(&group)),
            }
        }
    }

    /// The earliest deadline.
    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.next.first().map(|(at, _)| *at)
    }

    /// What is due at `now`, per key group in order, at most `per_group` of each. The index is left
    /// as it is: whoever fires a timer takes it out.
    pub(crate) fn due(&self, now: Instant, per_group: usize) -> Vec<TimerKey> {
        let mut groups: Vec<_> = self.next.iter().take_while(|(at, _)| *at <= now).map(|(_, group)| *group).collect();
        groups.sort_unstable();
        let of_group = |group| {
            let timers = self.groups.get(&group).into_iter().flatten();
            timers.take_while(move |(at, ..)| *at <= now).take(per_group).cloned()
        };
        groups.into_iter().flat_map(of_group).collect()
    }
}

/// What a key was at an epoch's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The head: version and bytes; absent where there is none.
    pub head: Option<(u8, Vec<u8>)>,
    /// The body, where this epoch set it: version and bytes, or removed. `None` keeps the older one.
    pub body: Option<Option<(u8, Vec<u8>)>>,
    /// Its timers.
    pub timers: Vec<(TimerId, Instant)>,
}

impl Image {
    /// Whether the key is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.head.is_none() && self.timers.is_empty() && matches!(self.body, Some(None))
    }

    /// This image upon the `older` one: a body that was not set stays.
    #[must_use]
    pub fn upon(mut self, older: Option<Self>) -> Self {
        if self.body.is_none() {
            self.body = older.and_then(|older| older.body);
        }
        self
    }
}

/// A key within an operator's state: key group, user, and the subkey (none for the user's own).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StateKey {
    /// The key group.
    pub group: KeyGroup,
    /// The user.
    pub user: Arc<str>,
    /// The subkey; none for the state of the user as a whole.
    pub subkey: Option<Subkey>,
}

/// The state of one operator on one worker.
pub(crate) struct Table<O: Operator> {
    groups: Vec<HashMap<Arc<str>, UserSlot<O>>>,
    /// Users touched in this epoch, each once.
    dirty: Vec<(KeyGroup, Arc<str>)>,
    pub(crate) timers: TimerIndex,
    /// What a call for a user without state works on. It moves into the table once something is in it,
    /// so that operators that keep nothing cost no insertion.
    spare: UserSlot<O>,
}

impl<O: Operator> Table<O> {
    pub(crate) fn new() -> Self {
        let groups = (0..KEY_GROUPS).map(|_| HashMap::new()).collect();
        Self { groups, dirty: Vec::new(), timers: TimerIndex::default(), spare: UserSlot::default() }
    }

    /// The user's slot and the timers, for one call. [`Table::settle`] follows where the slot
    /// [turned dirty](UserSlot::turned_dirty); a slot that did not is what it was.
    pub(crate) fn slot(&mut self, user: &Arc<str>) -> (&mut UserSlot<O>, &mut TimerIndex) {
        let group = usize::from(key_group(placement(user)).0);
        let slot = self.groups[group].get_mut(user).unwrap_or(&mut self.spare);
        (slot, &mut self.timers)
    }

    pub(crate) fn peek(&self, user: &str) -> Option<&UserSlot<O>> {
        self.groups[usize::from(key_group(placement(user)).0)].get(user)
    }

    /// Notes that a call left something to be written.
    pub(crate) fn settle(&mut self, user: &Arc<str>) {
        let group = key_group(placement(user));
        let users = &mut self.groups[usize::from(group.0)];
        if self.spare.turned_dirty() {
            users.insert(Arc::clone(user), std::mem::take(&mut self.spare));
        }
        if let Some(slot) = users.get_mut(user) {
            slot.noted = true;
            self.dirty.push((group, Arc::clone(user)));
        }
    }

    /// Users with state, in order.
    pub(crate) fn users(&self) -> Vec<Arc<str>> {
        let mut users: Vec<_> = self.groups.iter().flat_map(|group| group.keys().cloned()).collect();
        users.sort_unstable();
        users
    }

    /// Images of all that this epoch touched, in key order; the marks are taken off.
    pub(crate) fn drain_dirty(&mut self, mut image: impl FnMut(StateKey, Image)) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        if deliberate::has(Bug::ForgottenDirtyKey) && dirty.len() > 1 {
            dirty.pop();
        }
        for (group, user) in dirty {
            let users = &mut self.groups[usize::from(group.0)];
            let Some(slot) = users.get_mut(&user) else { continue };
            slot.noted = false;
            if std::mem::take(&mut slot.user_dirty) {
                let head = slot.user.as_ref().map(encode);
                let body = Some(None);
                image(
                    StateKey { group, user: Arc::clone(&user), subkey: None },
                    Image { head, body, timers: Vec::new() },
                );
            }
            let mut touched = std::mem::take(&mut slot.touched);
            touched.sort_unstable();
            for subkey in touched {
                let Some(entry) = slot.entries.get_mut(&subkey) else { continue };
                entry.dirty = false;
                let set = std::mem::take(&mut entry.body_dirty);
                let out = Image {
                    head: entry.head.as_ref().map(encode),
                    body: set.then(|| entry.body.as_ref().map(encode)),
                    timers: entry.timers.iter().map(|(id, at, _)| (*id, *at)).collect(),
                };
                if entry.is_gone() {
                    slot.entries.remove(&subkey);
                }
                image(StateKey { group, user: Arc::clone(&user), subkey: Some(subkey) }, out);
            }
            if slot.is_gone() {
                users.remove(&user);
            }
        }
    }

    /// Puts an image back.
    pub(crate) fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String> {
        let slot = self.groups[usize::from(key.group.0)].entry(Arc::clone(&key.user)).or_default();
        let Some(subkey) = &key.subkey else {
            slot.user = image.head.as_ref().map(|(version, bytes)| decode(*version, bytes)).transpose()?;
            return Ok(());
        };
        let mut entry = Entry::<O> {
            head: image.head.as_ref().map(|(version, bytes)| decode(*version, bytes)).transpose()?,
            ..Entry::default()
        };
        if let Some(Some((version, bytes))) = &image.body {
            entry.body = Some(decode(*version, bytes)?);
        }
        for (id, at) in &image.timers {
            entry.timers.push((*id, *at, 0));
            if !deliberate::has(Bug::TimerLostOnRestore) {
                self.timers.insert(*at, &key.user, subkey, *id);
            }
        }
        slot.entries.insert(subkey.clone(), entry);
        Ok(())
    }
}

fn encode<S: State>(state: &S) -> (u8, Vec<u8>) {
    // Serialising into memory fails only for types that do not know their length; none of ours.
    (S::VERSION, postcard::to_stdvec(state).unwrap_or_default())
}

fn decode<S: State>(version: u8, bytes: &[u8]) -> Result<S, String> {
    if version == S::VERSION {
        postcard::from_bytes(bytes).map_err(|error| format!("state bytes do not fit version {version}: {error}"))
    } else {
        S::migrate(version, bytes)
    }
}
