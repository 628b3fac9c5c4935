//! The state of one operator on one worker: entries in hashed sub-tables, their users beside them.
//!
//! An entry is found by the hash of its user and subkey: a call for one of a user's ten thousand keys
//! touches none of the others, and a hot user makes no table big. A user lists its entries, for
//! operators that walk them. What an epoch touched is marked where it lies;
//! `Table::drain_dirty` writes its images.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashTable;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::ids::{KeyGroup, key_group, placement};
use tidings_schemas::time::Instant;

use super::buffers::Buffers;
use super::delta::{put_body_kept, put_body_set, put_key, put_state, put_timers};
use super::slab::{Place, Slab, Tag};
use super::stage::Store;
use super::timers::{Due, OfEntry, Timer, Timers, first_of_groups};
use crate::keyed::{Body, Keeps, Operator, State, Subkey, TimerId};
use crate::short::Short;

/// Sub-tables of one index: growing one moves a 256th of all keys, and stalls for as long.
const SUB_TABLES: usize = 256;

/// A user as tables find it.
#[derive(Clone, Copy, Debug)]
pub struct UserKey<'a> {
    pub(crate) name: &'a Arc<str>,
    /// [`placement`] of the name: hashed once per record, and asked for everywhere.
    pub(crate) placement: u64,
}

impl<'a> UserKey<'a> {
    pub(crate) fn of(name: &'a Arc<str>) -> Self {
        Self { name, placement: placement(name) }
    }

    /// The placement's top bits say which worker has the user; here all bits must differ.
    pub(crate) const fn hash(placement: u64) -> u64 {
        placement.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn entry_hash(placement: u64, subkey: &[u8]) -> u64 {
        xxhash_rust::xxh3::xxh3_64_with_seed(subkey, placement)
    }
}

/// How an operator's bodies lie here.
type Kept<O> = <<O as Operator>::Body as Body>::Kept;

/// What most names and keys fit into, in place.
type Name = Short<22>;

/// One entry of one user.
struct Entry<O: Operator> {
    user: Place,
    /// Its place among the user's entries.
    number: u32,
    subkey: Name,
    timers: OfEntry,
    head: Option<O::Entry>,
    body: Option<Kept<O>>,
    dirty: bool,
    body_dirty: bool,
}

impl<O: Operator> Entry<O> {
    fn is_gone(&self) -> bool {
        self.head.is_none() && self.body.is_none() && self.timers.as_slice().is_empty()
    }

    fn timer(&self, id: TimerId) -> Option<&Timer> {
        self.timers.as_slice().iter().find(|timer| timer.id == id)
    }

    fn timer_mut(&mut self, id: TimerId) -> Option<&mut Timer> {
        self.timers.as_mut_slice().iter_mut().find(|timer| timer.id == id)
    }
}

/// A user with state. The name lies here: to compare it takes no look elsewhere.
struct User<O: Operator> {
    name: Name,
    placement: u64,
    entries: SmallVec<[Place; 4]>,
    state: Option<O::User>,
    dirty: bool,
}

impl<O: Operator> User<O> {
    fn is(&self, user: UserKey<'_>) -> bool {
        self.placement == user.placement && *self.name == *user.name.as_bytes()
    }

    fn name(&self) -> &str {
        std::str::from_utf8(&self.name).unwrap_or_default()
    }
}

/// From hashes to places. What is in it knows its hash's lower half: so growing looks at no entry, and of
/// two that hash to one place, seldom both are looked at.
struct Index(Vec<HashTable<(u32, Place)>>);

impl Index {
    fn new() -> Self {
        Self((0..SUB_TABLES).map(|_| HashTable::new()).collect())
    }

    /// The sub-tables' own bits are others than those that decide which it is.
    const fn sub(hash: u64) -> usize {
        (hash >> 56) as usize % SUB_TABLES
    }

    const fn lower(hash: u64) -> u32 {
        hash as u32
    }

    const fn spread(lower: u32) -> u64 {
        (lower as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn find(&self, hash: u64, is: impl Fn(Place) -> bool) -> Option<Place> {
        let lower = Self::lower(hash);
        let found = self.0[Self::sub(hash)].find(Self::spread(lower), |(own, place)| *own == lower && is(*place));
        found.map(|(_, place)| *place)
    }

    fn insert(&mut self, hash: u64, place: Place) {
        let lower = Self::lower(hash);
        self.0[Self::sub(hash)].insert_unique(Self::spread(lower), (lower, place), |(lower, _)| Self::spread(*lower));
    }

    fn remove(&mut self, hash: u64, place: Place) {
        let lower = Self::lower(hash);
        if let Ok(found) = self.0[Self::sub(hash)].find_entry(Self::spread(lower), |(_, other)| *other == place) {
            found.remove();
        }
    }
}

/// A head's bytes: most are few.
pub type HeadBytes = Short<46>;

/// What a key was at an epoch's end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The head: version and bytes; absent where there is none.
    pub head: Option<(u8, HeadBytes)>,
    /// The body, where this epoch set it: version and bytes, or removed. `None` keeps the older one.
    pub body: Option<Option<(u8, Vec<u8>)>>,
    /// Its timers.
    pub timers: SmallVec<[(TimerId, Instant); 1]>,
}

impl Image {
    /// Whether nothing is left of the key, where no older image lies below this one.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.head.is_none() && self.timers.is_empty() && !matches!(self.body, Some(Some(_)))
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

/// The state of one operator on one worker: entries of any kind, with any timers.
pub struct Table<O: Operator> {
    user_index: Index,
    users: Slab<User<O>>,
    entry_index: Index,
    entries: Slab<Entry<O>>,
    /// Users whose own state was touched in this epoch, each once.
    dirty_users: Vec<Place>,
    /// Entries touched in this epoch, each once.
    dirty: Vec<Place>,
    /// Images of what was touched, and those of earlier epochs.
    page: Vec<u8>,
    pages: Buffers,
    timers: Timers,
    /// The entry that was found last: a call asks for one several times.
    last: Cell<Place>,
}

impl<O: Operator> Default for Table<O> {
    fn default() -> Self {
        Self {
            user_index: Index::new(),
            users: Slab::default(),
            entry_index: Index::new(),
            entries: Slab::default(),
            dirty_users: Vec::new(),
            dirty: Vec::new(),
            page: Vec::new(),
            pages: Buffers::default(),
            timers: Timers::default(),
            last: Cell::new(0),
        }
    }
}

impl<O: Operator> Table<O> {
    fn find_user(&self, user: UserKey<'_>) -> Option<Place> {
        let is = |place| self.users.get(place).is_some_and(|known| known.is(user));
        self.user_index.find(UserKey::hash(user.placement), is)
    }

    fn find(&self, user: UserKey<'_>, subkey: &Subkey) -> Option<Place> {
        let of_user = |place| self.users.get(place).is_some_and(|known| known.is(user));
        let is = |place| {
            let is = |entry: &Entry<O>| *entry.subkey == *subkey.bytes() && of_user(entry.user);
            self.entries.get(place).is_some_and(is)
        };
        if is(self.last.get()) {
            return Some(self.last.get());
        }
        let found = self.entry_index.find(UserKey::entry_hash(user.placement, subkey.bytes()), is);
        found.into_iter().for_each(|place| self.last.set(place));
        found
    }

    fn entry(&self, user: UserKey<'_>, subkey: &Subkey) -> Option<&Entry<O>> {
        self.entries.get(self.find(user, subkey)?)
    }

    fn make_user(&mut self, user: UserKey<'_>) -> Place {
        if let Some(place) = self.find_user(user) {
            return place;
        }
        let (name, entries) = (Name::from_slice(user.name.as_bytes()), SmallVec::new());
        let place = self.users.insert(User { name, placement: user.placement, state: None, dirty: false, entries });
        self.user_index.insert(UserKey::hash(user.placement), place);
        place
    }

    fn make(&mut self, user: UserKey<'_>, subkey: &Subkey) -> Place {
        if let Some(place) = self.find(user, subkey) {
            return place;
        }
        let of = self.make_user(user);
        let siblings = self.users.get(of).map_or(0, |user| user.entries.len());
        let place = self.entries.insert(Entry {
            user: of,
            // As many as places: fewer than four billion.
            number: u32::try_from(siblings).unwrap_or(u32::MAX),
            subkey: Name::from_slice(subkey.bytes()),
            timers: OfEntry::default(),
            head: None,
            body: None,
            dirty: false,
            body_dirty: false,
        });
        if let Some(user) = self.users.get_mut(of) {
            user.entries.push(place);
        }
        self.entry_index.insert(UserKey::entry_hash(user.placement, subkey.bytes()), place);
        self.last.set(place);
        place
    }

    /// The entry, made where it is absent, marked as touched.
    fn touch(&mut self, user: UserKey<'_>, subkey: &Subkey) -> (Place, &mut Entry<O>) {
        let place = self.make(user, subkey);
        (place, self.mark(place).expect("an entry that was made or found just now"))
    }

    fn mark(&mut self, place: Place) -> Option<&mut Entry<O>> {
        let entry = self.entries.get_mut(place)?;
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(place);
        }
        Some(entry)
    }

    pub(crate) fn user(&self, user: UserKey<'_>) -> Option<&O::User> {
        self.users.get(self.find_user(user)?)?.state.as_ref()
    }

    pub(crate) fn user_mut(&mut self, user: UserKey<'_>) -> &mut O::User {
        let place = self.make_user(user);
        self.mark_user(place).expect("a user that was made or found just now").state.get_or_insert_default()
    }

    fn mark_user(&mut self, place: Place) -> Option<&mut User<O>> {
        let user = self.users.get_mut(place)?;
        if !user.dirty {
            user.dirty = true;
            self.dirty_users.push(place);
        }
        Some(user)
    }

    pub(crate) fn head(&self, user: UserKey<'_>, subkey: &Subkey) -> Option<&O::Entry> {
        self.entry(user, subkey)?.head.as_ref()
    }

    pub(crate) fn head_mut(&mut self, user: UserKey<'_>, subkey: &Subkey) -> &mut O::Entry {
        self.touch(user, subkey).1.head.get_or_insert_default()
    }

    pub(crate) fn body(&self, user: UserKey<'_>, subkey: &Subkey) -> Option<Cow<'_, O::Body>> {
        self.entry(user, subkey)?.body.as_ref().map(Keeps::look)
    }

    /// Takes the body out of an entry, which stays. Costs nothing where there is none.
    pub(crate) fn take_body(&mut self, user: UserKey<'_>, subkey: &Subkey) -> Option<O::Body> {
        let place = self.find(user, subkey)?;
        self.entries.get(place)?.body.as_ref()?;
        let entry = self.mark(place)?;
        entry.body_dirty = true;
        entry.body.take().map(Keeps::take)
    }

    pub(crate) fn set_body(&mut self, user: UserKey<'_>, subkey: &Subkey, body: O::Body) {
        let (_, entry) = self.touch(user, subkey);
        entry.body = Some(Keeps::keep(body));
        entry.body_dirty = true;
    }

    /// Removes the entry and its timers. It lies there, empty, until its image was made.
    pub(crate) fn remove(&mut self, user: UserKey<'_>, subkey: &Subkey) -> Option<(O::Entry, O::Body)> {
        let place = self.find(user, subkey)?;
        let entry = self.mark(place)?;
        entry.timers = OfEntry::default();
        entry.body_dirty = true;
        match (entry.head.take(), entry.body.take().map(Keeps::take)) {
            (None, None) => None,
            (head, body) => Some((head.unwrap_or_default(), body.unwrap_or_default())),
        }
    }

    pub(crate) fn timer(&self, user: UserKey<'_>, subkey: &Subkey, id: TimerId) -> Option<Instant> {
        self.entry(user, subkey)?.timer(id).map(|timer| timer.at)
    }

    pub(crate) fn set_timer(&mut self, user: UserKey<'_>, subkey: &Subkey, id: TimerId, at: Instant) {
        let (place, entry) = self.touch(user, subkey);
        let listed = match entry.timer_mut(id) {
            Some(timer) => {
                (timer.at, timer.is_fresh) = (at, true);
                let listed = timer.is_listed && timer.listed <= at;
                if !listed {
                    (timer.listed, timer.is_listed) = (at, true);
                }
                listed
            }
            None => {
                entry.timers.push(Timer { at, listed: at, id, is_listed: true, is_fresh: true });
                false
            }
        };
        if !listed {
            self.timers.list(at, self.entries.tag(place), id);
        }
    }

    pub(crate) fn clear_timer(&mut self, user: UserKey<'_>, subkey: &Subkey, id: TimerId) {
        let Some(place) = self.find(user, subkey) else { return };
        if self.entries.get(place).is_some_and(|entry| entry.timer(id).is_some())
            && let Some(entry) = self.mark(place)
        {
            entry.timers.remove(id);
        }
    }

    /// Whether the timer that the list of `at` names is due then. One that was moved to later goes into its list.
    fn stands(&mut self, at: Instant, tag: Tag, id: TimerId) -> bool {
        let Some(timer) = self.entries.tagged_mut(tag).and_then(|entry| entry.timer_mut(id)) else { return false };
        if !timer.is_listed || timer.listed != at {
            return false;
        }
        let moved = timer.at;
        if moved > at {
            timer.listed = moved;
            self.timers.list(moved, tag, id);
        }
        moved == at
    }

    /// Finds the earliest deadline; what stands in a list no more is dropped on the way.
    fn look_ahead(&mut self) {
        let mut next = None;
        while let Some((at, mut list)) = self.timers.pop(Instant(i64::MAX)) {
            while let Some((tag, id)) = list.pop() {
                if self.stands(at, tag, id) {
                    list.push((tag, id));
                    next = Some(at);
                    break;
                }
            }
            if next.is_some() {
                self.timers.put_back(at, list);
                break;
            }
        }
        let mut overdue = std::mem::take(&mut self.timers.overdue);
        overdue.retain(|due| self.stands(due.at, due.entry, due.id));
        let waits = overdue.iter().map(|due| due.at).min();
        self.timers.overdue = overdue;
        self.timers.next = [next, waits].into_iter().flatten().min();
    }

    fn drop_entry(&mut self, place: Place) {
        let Some(entry) = self.entries.remove(place) else { return };
        let Some(user) = self.users.get_mut(entry.user) else { return };
        self.entry_index.remove(UserKey::entry_hash(user.placement, &entry.subkey), place);
        let number = entry.number as usize;
        user.entries.swap_remove(number);
        if let Some(moved) = user.entries.get(number).and_then(|moved| self.entries.get_mut(*moved)) {
            moved.number = entry.number;
        }
    }

    fn drop_user_if_gone(&mut self, place: Place) {
        let gone = |user: &User<O>| user.state.is_none() && !user.dirty && user.entries.is_empty();
        if self.users.get(place).is_some_and(gone)
            && let Some(user) = self.users.remove(place)
        {
            self.user_index.remove(UserKey::hash(user.placement), place);
        }
    }
}

impl<O: Operator> Store<O> for Table<O> {
    fn due(&mut self, now: Instant, per_group: usize) -> Vec<Due> {
        let mut due = std::mem::take(&mut self.timers.overdue);
        due.retain(|due| self.stands(due.at, due.entry, due.id));
        while let Some((at, list)) = self.timers.pop(now) {
            for (tag, id) in list {
                if self.stands(at, tag, id)
                    && let Some(entry) = self.entries.get(tag.place)
                    && let Some(user) = self.users.get(entry.user)
                {
                    let (group, subkey) = (key_group(user.placement), Subkey::from_bytes(&entry.subkey));
                    due.push(Due { group, at, user: user.name().into(), subkey, id, entry: tag });
                }
            }
        }
        let (due, overdue) = first_of_groups(due, per_group);
        self.timers.overdue = overdue;
        for Due { entry, id, .. } in &due {
            if let Some(timer) = self.entries.tagged_mut(*entry).and_then(|entry| entry.timer_mut(*id)) {
                timer.is_listed = false;
            }
        }
        due
    }

    fn fires(&mut self, due: &Due) -> bool {
        let timer = self.entries.tagged_mut(due.entry).and_then(|entry| entry.timer_mut(due.id));
        let Some(timer) = timer.filter(|timer| timer.at == due.at) else { return false };
        if timer.is_fresh {
            if !timer.is_listed {
                (timer.listed, timer.is_listed) = (due.at, true);
                self.timers.list(due.at, due.entry, due.id);
            }
            return false;
        }
        true
    }

    fn keys(&self) -> usize {
        self.users.len() + self.entries.len()
    }

    fn fire(&mut self, due: &Due) {
        self.clear_timer(UserKey::of(&due.user), &due.subkey, due.id);
    }

    fn next_timer(&self) -> Option<Instant> {
        self.timers.next
    }

    fn take_out(&mut self, user: UserKey<'_>, subkey: &Subkey) -> Option<O::Body> {
        self.remove(user, subkey).map(|(_, body)| body)
    }

    fn clear_user(&mut self, user: UserKey<'_>) {
        let Some(place) = self.find_user(user) else { return };
        if self.users.get(place).is_some_and(|user| user.state.is_some())
            && let Some(user) = self.mark_user(place)
        {
            user.state = None;
        }
    }

    fn subkeys(&self, user: UserKey<'_>) -> Vec<Subkey> {
        let places = self.find_user(user).and_then(|place| self.users.get(place)).map(|user| &*user.entries);
        let entries = places.unwrap_or_default().iter().filter_map(|place| self.entries.get(*place));
        let there = entries.filter(|entry| !entry.is_gone());
        let mut subkeys: Vec<_> = there.map(|entry| Subkey::from_bytes(&entry.subkey)).collect();
        subkeys.sort_unstable();
        subkeys
    }

    fn has_entries(&self, user: UserKey<'_>) -> bool {
        self.find_user(user).is_some()
    }

    fn user_names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.users.iter().map(|user| Arc::from(user.name())).collect();
        names.sort_unstable();
        names
    }

    fn drain_dirty(&mut self) -> (usize, Bytes) {
        if deliberate::has(Bug::ForgottenDirtyKey) && self.dirty.len() > 1 {
            self.dirty.pop();
        }
        let mut images = 0;
        let (mut dirty_users, mut dirty) = (std::mem::take(&mut self.dirty_users), std::mem::take(&mut self.dirty));
        for place in dirty_users.drain(..) {
            let Some(user) = self.users.get_mut(place) else { continue };
            user.dirty = false;
            images += 1;
            let page = &mut self.page;
            put_key(page, key_group(user.placement), &user.name, None);
            put_state(
                page,
                O::User::VERSION,
                user.state.as_ref().map(|state| |page: &mut Vec<u8>| encode(state, page)),
            );
            put_body_set(page);
            put_state(page, 0, None::<fn(&mut Vec<u8>)>);
            put_timers(page, [].into_iter());
            self.drop_user_if_gone(place);
        }
        for place in dirty.drain(..) {
            let Some(entry) = self.entries.get_mut(place) else { continue };
            let Some(user) = self.users.get(entry.user) else { continue };
            entry.dirty = false;
            images += 1;
            // Of what is gone the image says so, whatever went last: an older one may have a body.
            let gone = entry.is_gone();
            let set = std::mem::take(&mut entry.body_dirty) || gone;
            let page = &mut self.page;
            put_key(page, key_group(user.placement), &user.name, Some(&entry.subkey));
            put_state(page, O::Entry::VERSION, entry.head.as_ref().map(|head| |page: &mut Vec<u8>| encode(head, page)));
            if set {
                put_body_set(page);
                let body = entry.body.as_mut().map(|body| {
                    |page: &mut Vec<u8>| {
                        let start = page.len();
                        encode(&*body.look(), page);
                        body.sleep(&page[start..]);
                    }
                });
                put_state(page, O::Body::VERSION, body);
            } else {
                put_body_kept(page);
            }
            put_timers(page, entry.timers.as_slice().iter().map(|timer| (timer.id, timer.at)));
            entry.timers.as_mut_slice().iter_mut().for_each(|timer| timer.is_fresh = false);
            if gone {
                let user = entry.user;
                self.drop_entry(place);
                self.drop_user_if_gone(user);
            }
        }
        (self.dirty_users, self.dirty) = (dirty_users, dirty);
        self.look_ahead();
        (images, self.pages.exchange(&mut self.page))
    }

    fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String> {
        let user = UserKey::of(&key.user);
        let head = image.head.as_ref();
        let Some(subkey) = &key.subkey else {
            let state = head.map(|(version, bytes)| decode(*version, bytes)).transpose()?;
            let place = self.make_user(user);
            if let Some(user) = self.users.get_mut(place) {
                user.state = state;
            }
            return Ok(());
        };
        let head = head.map(|(version, bytes)| decode(*version, bytes)).transpose()?;
        let body = match &image.body {
            Some(Some((version, bytes))) => {
                let mut body: Kept<O> = Keeps::keep(decode(*version, bytes)?);
                if *version == O::Body::VERSION {
                    body.sleep(bytes);
                }
                Some(body)
            }
            Some(None) | None => None,
        };
        let place = self.make(user, subkey);
        let tag = self.entries.tag(place);
        let Some(entry) = self.entries.get_mut(place) else { return Ok(()) };
        (entry.head, entry.body) = (head, body);
        entry.timers = OfEntry::default();
        for (id, at) in &image.timers {
            entry.timers.push(Timer { at: *at, listed: *at, id: *id, is_listed: true, is_fresh: false });
            if !deliberate::has(Bug::TimerLostOnRestore) {
                self.timers.list(*at, tag, *id);
                self.timers.next = Some(self.timers.next.map_or(*at, |next| next.min(*at)));
            }
        }
        Ok(())
    }
}

/// Bytes that are appended as they come.
struct Append<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Append<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Appends a state's bytes.
pub(crate) fn encode<S: State>(state: &S, bytes: &mut Vec<u8>) {
    state.put(bytes);
}

/// Appends the bytes that serde and postcard make of a state.
pub(crate) fn put_by_serde<S: State>(state: &S, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    // Serialising into memory fails only for types that do not know their length; none of ours.
    if postcard::serialize_with_flavor(state, Append(bytes)).is_err() {
        bytes.truncate(start);
    }
}

pub(crate) fn decode<S: State>(version: u8, bytes: &[u8]) -> Result<S, String> {
    if version == S::VERSION { S::read(bytes) } else { S::migrate(version, bytes) }
}

/// Reads what [`put_by_serde`] wrote.
pub(crate) fn read_by_serde<S: State>(bytes: &[u8]) -> Result<S, String> {
    let version = S::VERSION;
    postcard::from_bytes(bytes).map_err(|error| format!("state bytes do not fit version {version}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyed::Sleeper;
    use crate::schedule::Schedule;

    const ID: TimerId = TimerId(0);

    /// Fires what is due at `now` in the next epoch; the keys, in order.
    fn fired(table: &mut Table<Schedule>, now: i64, per_group: usize) -> String {
        table.drain_dirty();
        fires(table, now, per_group)
    }

    /// The same in the epoch that is under way.
    fn fires(table: &mut Table<Schedule>, now: i64, per_group: usize) -> String {
        let mut keys = String::new();
        for due in table.due(Instant(now), per_group) {
            if table.fires(&due) {
                table.clear_timer(UserKey::of(&due.user), &due.subkey, due.id);
                keys.push_str(std::str::from_utf8(due.subkey.bytes()).unwrap().trim_end_matches('\0'));
            }
        }
        table.drain_dirty();
        keys
    }

    #[test]
    fn a_timer_fires_once_when_it_was_last_set_to() {
        let (mut table, name) = (Table::<Schedule>::default(), Arc::from("u1"));
        let user = UserKey::of(&name);
        for (key, at) in [("a", 10), ("b", 10), ("c", 20), ("d", 30), ("e", 40), ("a", 25), ("d", 15), ("e", 12)] {
            table.set_timer(user, &Subkey::of(&[key]), ID, Instant(at));
        }
        table.clear_timer(user, &Subkey::of(&["b"]), ID);
        table.set_timer(user, &Subkey::of(&["e"]), ID, Instant(40));
        assert_eq!(fired(&mut table, 9, 9), "");
        assert_eq!(table.next_timer(), Some(Instant(15)), "neither what was moved nor what was taken back");
        assert_eq!(fired(&mut table, 15, 9), "d");
        assert_eq!(fired(&mut table, 30, 9), "ca");
        assert_eq!(table.next_timer(), Some(Instant(40)));
        assert_eq!(fired(&mut table, 99, 9), "e");
        assert_eq!((fired(&mut table, 99, 9).as_str(), table.next_timer()), ("", None));
        assert!(!table.has_entries(user), "what is empty is forgotten");
    }

    #[test]
    fn what_is_parked_lies_as_its_bytes_unless_they_are_many() {
        let (mut table, name) = (Table::<Schedule>::default(), Arc::from("u1"));
        let user = UserKey::of(&name);
        let mut large = crate::script::like("u1", "bob", "photo", 2);
        large.members.iter_mut().for_each(|member| Arc::make_mut(member).content.data = "x".repeat(5_000).into());
        for (item, sleeps) in [(crate::script::like("u1", "bob", "photo", 1), true), (large, false)] {
            let (key, item) = (Subkey::from(&item.first_event().0), Some(Box::new(item)));
            table.set_body(user, &key, item.clone());
            let asleep = |table: &Table<Schedule>| {
                matches!(table.entry(user, &key).and_then(|entry| entry.body.as_ref()), Some(Sleeper::Asleep(_)))
            };
            assert!(!asleep(&table), "the epoch that parks it may ask for it again");
            table.drain_dirty();
            assert_eq!(asleep(&table), sleeps);
            assert_eq!(table.body(user, &key).map(Cow::into_owned), Some(item.clone()));
            assert_eq!(table.take_body(user, &key), Some(item));
        }
    }

    #[test]
    fn an_entry_that_was_only_a_timer_is_gone_once_that_is_taken_back() {
        let (mut table, name) = (Table::<Schedule>::default(), Arc::from("u1"));
        let (user, key) = (UserKey::of(&name), Subkey::of(&["a"]));
        table.set_timer(user, &key, ID, Instant(10));
        let mut state = super::super::delta::Pending::default();
        let mut drain = |table: &mut Table<Schedule>| {
            let (images, page) = table.drain_dirty();
            let mut delta = super::super::delta::Delta::new();
            delta.push(&Arc::from("o"), images, page);
            state.add(delta);
            state.delta().iter().map(|(_, image)| image.is_gone()).collect::<Vec<_>>()
        };
        assert_eq!(drain(&mut table), [false]);
        table.clear_timer(user, &key, ID);
        assert_eq!(drain(&mut table), [true]);
        assert!(!table.has_entries(user));
    }

    #[test]
    fn a_timer_set_for_the_past_fires_in_the_next_epoch() {
        let (mut table, name) = (Table::<Schedule>::default(), Arc::from("u1"));
        table.set_timer(UserKey::of(&name), &Subkey::of(&["a"]), ID, Instant(5));
        assert_eq!(fires(&mut table, 10, 9), "");
        assert_eq!(table.next_timer(), Some(Instant(5)));
        assert_eq!((fired(&mut table, 10, 9), fired(&mut table, 10, 9)), ("a".to_owned(), String::new()));
    }

    #[test]
    fn what_is_beyond_a_groups_bound_stays_due_unless_it_is_taken_back() {
        let (mut table, name) = (Table::<Schedule>::default(), Arc::from("u1"));
        let user = UserKey::of(&name);
        for key in ["f", "e", "d", "c", "b", "a"] {
            table.set_timer(user, &Subkey::of(&[key]), ID, Instant(5));
        }
        assert_eq!(fired(&mut table, 10, 2), "ab");
        assert_eq!(table.next_timer(), Some(Instant(5)));
        table.clear_timer(user, &Subkey::of(&["c"]), ID);
        table.set_timer(user, &Subkey::of(&["d"]), ID, Instant(11));
        table.set_timer(user, &Subkey::of(&["z"]), ID, Instant(4));
        assert_eq!(fired(&mut table, 10, 2), "ze");
        assert_eq!(fired(&mut table, 10, 2), "f");
        assert_eq!(fired(&mut table, 11, 2), "d");
        assert_eq!(table.next_timer(), None);
    }
}
