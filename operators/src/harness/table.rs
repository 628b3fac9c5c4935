//! The state of one operator on one worker: entries, found by the hash of their user and subkey.
//!
//! A call for one of a user's ten thousand keys touches none of the others, and a hot user makes no table big. What
//! an epoch touches is awake until its end, when `Table::drain_dirty` writes its image and lays it down again, as
//! little more than the image's bytes: beside those an entry has sixteen bytes and a slot of an index. The
//! entries of a user form a ring without a clasp, for operators that walk them.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::ids::{KeyGroup, key_group, placement};
use tidings_schemas::time::Instant;

use super::buffers::Buffers;
use super::delta::{put_body_kept, put_body_set, put_bytes, put_key, put_state, put_timers};
use super::entry::{Asleep, Awake, ELSEWHERE, Held, Parked, put_lags};
use super::index::Index;
use super::shelves::{Shelves, Spot};
use super::slab::{NOWHERE, Place, Slab};
use super::stage::Store;
use super::timers::{Due, OfEntry, Timer, Timers, first_of_groups};
use super::users::Users;
use crate::keyed::{Operator, State, Subkey, TimerId};
use crate::short::Short;

/// Beyond this a body lies in memory as operators see it: one that gathers, event after event, would be read and
/// written whole for each of them.
const SLEEPS_BYTES_MAX: usize = 1024;

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
}

fn hash(placement: u64, subkey: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(subkey, placement)
}

/// What always lies there of an entry: whose it is, its neighbours among the user's entries, and where the rest is.
struct Slot {
    user: Place,
    after: Place,
    before: Place,
    lies: Lies,
}

/// Where an entry lies: in a cell, or in the list of those that are awake.
#[derive(Clone, Copy)]
struct Lies(NonZeroU32);

enum Where {
    Awake(usize),
    Asleep(Spot),
}

impl Lies {
    const AWAKE: NonZeroU32 = NonZeroU32::MIN.saturating_add(i32::MAX as u32);

    /// Two billion entries that one epoch touches are more than a cut admits.
    fn awake(number: usize) -> Self {
        Self(Self::AWAKE | number as u32)
    }

    const fn asleep(spot: Spot) -> Self {
        Self(spot.number())
    }

    fn place(self) -> Where {
        match NonZeroU32::new(self.0.get() & !Self::AWAKE.get()) {
            Some(number) if self.0 < Self::AWAKE => Where::Asleep(Spot::numbered(number)),
            number => Where::Awake(number.map_or(0, NonZeroU32::get) as usize),
        }
    }
}

/// Entries by place.
struct Entries<O: Operator> {
    slots: Slab<Slot>,
    cells: Shelves,
    awake: Vec<Awake<O>>,
}

enum Form<'a, O: Operator> {
    Awake(&'a Awake<O>),
    Asleep(Asleep<'a>),
}

impl<O: Operator> Entries<O> {
    fn subkey(&self, slot: &Slot) -> Option<&[u8]> {
        match slot.lies.place() {
            Where::Awake(number) => self.awake.get(number).map(|awake| awake.subkey.bytes()),
            Where::Asleep(spot) => Asleep::subkey_of(self.cells.get(spot)),
        }
    }

    fn is(&self, users: &Users, place: Place, user: &[u8], subkey: &[u8]) -> bool {
        let is = |slot: &Slot| self.subkey(slot) == Some(subkey) && users.name(slot.user) == Some(user);
        self.slots.get(place).is_some_and(is)
    }

    fn hash(&self, users: &Users, place: Place) -> u64 {
        let slot = self.slots.get(place);
        let hashed = slot.and_then(|slot| Some(hash(placement(users.text(slot.user)?), self.subkey(slot)?)));
        hashed.unwrap_or_default()
    }

    fn timers(&self, place: Place) -> OfEntry {
        match self.form(place) {
            Some(Form::Awake(awake)) => awake.timers.clone(),
            Some(Form::Asleep(asleep)) => asleep.timers(),
            None => OfEntry::default(),
        }
    }

    fn form(&self, place: Place) -> Option<Form<'_, O>> {
        match self.slots.get(place)?.lies.place() {
            Where::Awake(number) => self.awake.get(number).map(Form::Awake),
            Where::Asleep(spot) => Asleep::read(self.cells.get(spot)).map(Form::Asleep),
        }
    }

    /// The entry, awake from now on: its number among those that are.
    fn wake(&mut self, place: Place, placement: u64) -> Option<usize> {
        let slot = self.slots.get_mut(place)?;
        match slot.lies.place() {
            Where::Awake(number) => Some(number),
            Where::Asleep(spot) => {
                let asleep = Asleep::read(self.cells.get(spot))?;
                let (subkey, head) = (Subkey::from_bytes(asleep.subkey), asleep.head.map(awaken));
                let (body, timers) = (Held::Untouched(asleep.body != Parked::Nothing), asleep.timers());
                slot.lies = Lies::awake(self.awake.len());
                self.awake.push(Awake { place, placement, slept: Some(spot), subkey, timers, head, body });
                Some(self.awake.len() - 1)
            }
        }
    }

    /// The entry that slept in this cell.
    fn slept(&self, spot: Option<Spot>) -> Option<Asleep<'_>> {
        Asleep::read(self.cells.get(spot?))
    }

    /// Lays an entry down that slept in that cell before.
    fn lay(&mut self, place: Place, slept: Option<Spot>, parts: &[&[u8]]) {
        let spot = match slept {
            Some(spot) => self.cells.change(spot, parts),
            None => self.cells.put(parts),
        };
        self.slots.get_mut(place).into_iter().for_each(|slot| slot.lies = Lies::asleep(spot));
    }

    /// The timer was put into the list of the instant at which it is due.
    fn listed(&mut self, place: Place, id: TimerId) {
        match self.slots.get(place).map(|slot| slot.lies.place()) {
            Some(Where::Awake(number)) => {
                let timer = self.awake.get_mut(number).and_then(|awake| awake.timer_mut(id));
                timer.into_iter().for_each(|timer| timer.listed = timer.at);
            }
            Some(Where::Asleep(spot)) => {
                let cell = self.cells.get(spot);
                let Some(asleep) = Asleep::read(cell) else { return };
                let (start, mut timers, mut lags) = (asleep.before_lags(cell), asleep.timers(), Vec::new());
                let timer = timers.as_mut_slice().iter_mut().find(|timer| timer.id == id);
                timer.into_iter().for_each(|timer| timer.listed = timer.at);
                put_lags(&mut lags, timers.as_slice());
                self.cells.get_mut(spot)[start..start + lags.len()].copy_from_slice(&lags);
            }
            None => {}
        }
    }
}

/// What this build put to sleep.
fn awaken<S: State>(bytes: &[u8]) -> S {
    decode(S::VERSION, bytes).expect("bytes that were written by this build, from a state")
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
    /// Each with the first of its entries.
    users: Users,
    /// What is kept of users as a whole.
    states: BTreeMap<Place, O::User>,
    index: Index,
    entries: Entries<O>,
    /// Bodies that are too large to sleep.
    large: BTreeMap<Place, O::Body>,
    /// Users whose own state was touched in this epoch.
    dirty_users: BTreeSet<Place>,
    /// Images of what was touched, and those of earlier epochs.
    page: Vec<u8>,
    pages: Buffers,
    /// Room for what an image does not have of an entry that falls asleep: a body that stays, and how far its timers
    /// were moved.
    kept: Vec<u8>,
    moved: Vec<u8>,
    timers: Timers,
    /// The entry that was found last: a call asks for one several times.
    last: Cell<Place>,
}

impl<O: Operator> Default for Table<O> {
    fn default() -> Self {
        Self {
            users: Users::default(),
            states: BTreeMap::new(),
            index: Index::default(),
            entries: Entries { slots: Slab::default(), cells: Shelves::default(), awake: Vec::new() },
            large: BTreeMap::new(),
            dirty_users: BTreeSet::new(),
            page: Vec::new(),
            pages: Buffers::default(),
            kept: Vec::new(),
            moved: Vec::new(),
            timers: Timers::default(),
            last: Cell::new(0),
        }
    }
}

impl<O: Operator> Table<O> {
    fn find(&self, user: UserKey<'_>, subkey: &Subkey) -> Option<Place> {
        let is = |place| self.entries.is(&self.users, place, user.name.as_bytes(), subkey.bytes());
        if is(self.last.get()) {
            return Some(self.last.get());
        }
        let found = self.index.find(hash(user.placement, subkey.bytes()), is);
        found.into_iter().for_each(|place| self.last.set(place));
        found
    }

    fn form(&self, user: UserKey<'_>, subkey: &Subkey) -> Option<Form<'_, O>> {
        self.entries.form(self.find(user, subkey)?)
    }

    /// The entry, made where it is absent, awake until the epoch's end.
    fn touch(&mut self, user: UserKey<'_>, subkey: &Subkey) -> &mut Awake<O> {
        let place = match self.find(user, subkey) {
            Some(place) => place,
            None => self.make(user, subkey),
        };
        let number = self.entries.wake(place, user.placement).expect("an entry that was made or found just now");
        &mut self.entries.awake[number]
    }

    /// Makes an entry that is not there, first of its user's.
    fn make(&mut self, user: UserKey<'_>, subkey: &Subkey) -> Place {
        let of = self.users.make(user, NOWHERE);
        let after = self.users.number(of).unwrap_or(NOWHERE);
        let lies = Lies::awake(self.entries.awake.len());
        let place = self.entries.slots.insert(Slot { user: of, after, before: NOWHERE, lies });
        self.entries.awake.push(Awake {
            place,
            placement: user.placement,
            slept: None,
            subkey: subkey.clone(),
            timers: OfEntry::default(),
            head: None,
            body: Held::Untouched(false),
        });
        self.link(of, NOWHERE, place);
        self.link(of, place, after);
        let hash_of = |place| self.entries.hash(&self.users, place);
        self.index.insert(hash(user.placement, subkey.bytes()), place, hash_of);
        self.last.set(place);
        place
    }

    /// Of the user's entries `after` follows `before`.
    fn link(&mut self, of: Place, before: Place, after: Place) {
        match self.entries.slots.get_mut(before) {
            Some(slot) => slot.after = after,
            None => self.users.number_mut(of).into_iter().for_each(|first| *first = after),
        }
        self.entries.slots.get_mut(after).into_iter().for_each(|slot| slot.before = before);
    }

    fn drop_entry(&mut self, awake: &Awake<O>) {
        let Some(slot) = self.entries.slots.remove(awake.place) else { return };
        awake.slept.into_iter().for_each(|spot| self.entries.cells.free(spot));
        self.large.remove(&awake.place);
        self.index.remove(hash(awake.placement, awake.subkey.bytes()), awake.place);
        self.link(slot.user, slot.before, slot.after);
        self.drop_user_if_gone(slot.user);
    }

    fn drop_user_if_gone(&mut self, of: Place) {
        let is_empty = self.users.number(of) == Some(NOWHERE);
        if is_empty && !self.states.contains_key(&of) && !self.dirty_users.contains(&of) {
            self.users.remove(of);
        }
    }

    pub(crate) fn user(&self, user: UserKey<'_>) -> Option<&O::User> {
        self.states.get(&self.users.find(user)?)
    }

    pub(crate) fn user_mut(&mut self, user: UserKey<'_>) -> &mut O::User {
        let of = self.users.make(user, NOWHERE);
        self.dirty_users.insert(of);
        self.states.entry(of).or_default()
    }

    pub(crate) fn head(&self, user: UserKey<'_>, subkey: &Subkey) -> Option<Cow<'_, O::Entry>> {
        match self.form(user, subkey)? {
            Form::Awake(awake) => awake.head.as_ref().map(Cow::Borrowed),
            Form::Asleep(asleep) => asleep.head.map(|bytes| Cow::Owned(awaken(bytes))),
        }
    }

    pub(crate) fn head_mut(&mut self, user: UserKey<'_>, subkey: &Subkey) -> &mut O::Entry {
        self.touch(user, subkey).head.get_or_insert_default()
    }

    pub(crate) fn body(&self, user: UserKey<'_>, subkey: &Subkey) -> Option<Cow<'_, O::Body>> {
        let place = self.find(user, subkey)?;
        let parked = match self.entries.form(place)? {
            Form::Awake(Awake { body: Held::Set(body), .. }) => return body.as_ref().map(Cow::Borrowed),
            Form::Awake(awake) => self.entries.slept(awake.slept)?.body,
            Form::Asleep(asleep) => asleep.body,
        };
        match parked {
            Parked::Nothing => None,
            Parked::Elsewhere => self.large.get(&place).map(Cow::Borrowed),
            Parked::Bytes(bytes) => Some(Cow::Owned(awaken(bytes))),
        }
    }

    /// Takes the body out of an entry, which stays. Costs nothing where there is none.
    pub(crate) fn take_body(&mut self, user: UserKey<'_>, subkey: &Subkey) -> Option<O::Body> {
        let place = self.find(user, subkey)?;
        match self.entries.form(place)? {
            Form::Awake(Awake { body: Held::Set(None) | Held::Untouched(false), .. })
            | Form::Asleep(Asleep { body: Parked::Nothing, .. }) => None,
            _ => {
                let number = self.entries.wake(place, user.placement)?;
                self.empty(number)
            }
        }
    }

    /// Takes the body out of an entry that is awake.
    fn empty(&mut self, number: usize) -> Option<O::Body> {
        let awake = &mut self.entries.awake[number];
        let (place, slept) = (awake.place, awake.slept);
        match std::mem::replace(&mut awake.body, Held::Set(None)) {
            Held::Set(body) => body,
            Held::Untouched(_) => match self.entries.slept(slept)?.body {
                Parked::Nothing => None,
                Parked::Elsewhere => self.large.remove(&place),
                Parked::Bytes(bytes) => Some(awaken(bytes)),
            },
        }
    }

    pub(crate) fn set_body(&mut self, user: UserKey<'_>, subkey: &Subkey, body: O::Body) {
        self.touch(user, subkey).body = Held::Set(Some(body));
    }

    /// Removes the entry and its timers. It lies there, empty, until its image was made.
    pub(crate) fn remove(&mut self, user: UserKey<'_>, subkey: &Subkey) -> Option<(O::Entry, O::Body)> {
        let place = self.find(user, subkey)?;
        let number = self.entries.wake(place, user.placement)?;
        let body = self.empty(number);
        let awake = &mut self.entries.awake[number];
        awake.timers = OfEntry::default();
        match (awake.head.take(), body) {
            (None, None) => None,
            (head, body) => Some((head.unwrap_or_default(), body.unwrap_or_default())),
        }
    }

    pub(crate) fn timer(&self, user: UserKey<'_>, subkey: &Subkey, id: TimerId) -> Option<Instant> {
        self.timer_at(self.find(user, subkey)?, id).map(|timer| timer.at)
    }

    fn timer_at(&self, place: Place, id: TimerId) -> Option<Timer> {
        self.entries.timers(place).as_slice().iter().copied().find(|timer| timer.id == id)
    }

    pub(crate) fn set_timer(&mut self, user: UserKey<'_>, subkey: &Subkey, id: TimerId, at: Instant) {
        let due_until = self.timers.due_until;
        let awake = self.touch(user, subkey);
        let place = awake.place;
        match awake.timer_mut(id) {
            Some(timer) => {
                (timer.at, timer.is_fresh) = (at, true);
                if timer.listed <= at && timer.listed > due_until {
                    return;
                }
                timer.listed = at;
            }
            None => awake.timers.push(Timer { at, listed: at, id, is_fresh: true }),
        }
        self.timers.list(at, place);
    }

    pub(crate) fn clear_timer(&mut self, user: UserKey<'_>, subkey: &Subkey, id: TimerId) {
        let Some(place) = self.find(user, subkey).filter(|place| self.timer_at(*place, id).is_some()) else { return };
        if let Some(number) = self.entries.wake(place, user.placement) {
            self.entries.awake[number].timers.remove(id);
        }
    }

    /// Whether a timer of the entry at `place` is due at `at`, in whose list that stands. One that was moved to later goes
    /// into its list.
    fn stands(&mut self, at: Instant, place: Place, timer: &Timer) -> bool {
        if timer.listed != at {
            return false;
        }
        if timer.at > at {
            self.entries.listed(place, timer.id);
            self.timers.list(timer.at, place);
        }
        timer.at == at
    }

    /// Whether what was due and had to wait is due still.
    fn waits(&mut self, due: &Due) -> bool {
        let timer = if self.is_of(due) { self.timer_at(due.entry, due.id) } else { None };
        timer.is_some_and(|timer| self.stands(due.at, due.entry, &timer))
    }

    /// Whether there is still the entry in its place that was due, and no other.
    fn is_of(&self, due: &Due) -> bool {
        self.entries.is(&self.users, due.entry, due.user.as_bytes(), due.subkey.bytes())
    }

    /// Finds the earliest deadline; what stands in a list no more is dropped on the way.
    fn look_ahead(&mut self) {
        let mut next = None;
        while next.is_none()
            && let Some((at, mut list)) = self.timers.pop()
        {
            while next.is_none()
                && let Some(place) = list.pop()
            {
                for timer in self.entries.timers(place).as_slice() {
                    if self.stands(at, place, timer) {
                        next = Some(at);
                    }
                }
                if next.is_some() {
                    list.push(place);
                }
            }
            if next.is_some() {
                self.timers.put_back(at, list);
            }
        }
        let mut overdue = std::mem::take(&mut self.timers.overdue);
        overdue.retain(|due| self.waits(due));
        let waits = overdue.iter().map(|due| due.at).min();
        self.timers.overdue = overdue;
        self.timers.next = [next, waits].into_iter().flatten().min();
    }

    /// Lays an entry down that this epoch touched, and whose image was written.
    fn lay(&mut self, awake: Awake<O>, written: &Written) {
        let Written { start, body, body_bytes, timers } = written;
        let place = awake.place;
        self.moved.clear();
        self.kept.clear();
        put_lags(&mut self.moved, awake.timers.as_slice());
        let mut body = &self.page[*body..*timers];
        match awake.body {
            Held::Untouched(false) => {}
            Held::Untouched(true) => {
                let slept = self.entries.slept(awake.slept);
                self.kept.extend_from_slice(slept.map_or(&[0], |asleep| asleep.body_bytes()));
                body = &self.kept;
            }
            Held::Set(set) => {
                self.large.remove(&place);
                if let Some(set) = set.filter(|_| *body_bytes > SLEEPS_BYTES_MAX) {
                    self.large.insert(place, set);
                    body = &[ELSEWHERE];
                }
            }
        }
        let parts = [&self.page[*start..written.body], body, &self.page[*timers..], &self.moved];
        self.entries.lay(place, awake.slept, &parts);
    }
}

/// Where in the page an image was written last: its subkey, its body and its timers, with which it ends.
struct Written {
    start: usize,
    body: usize,
    /// Of the body itself.
    body_bytes: usize,
    timers: usize,
}

impl<O: Operator> Store<O> for Table<O> {
    fn due(&mut self, now: Instant, per_group: usize) -> Vec<Due> {
        let mut due = std::mem::take(&mut self.timers.overdue);
        due.retain(|due| self.waits(due));
        while let Some((at, list)) = self.timers.pop_due(now) {
            for place in list {
                for timer in self.entries.timers(place).as_slice() {
                    if !self.stands(at, place, timer) {
                        continue;
                    }
                    let Some(slot) = self.entries.slots.get(place) else { continue };
                    let (Some(user), Some(subkey)) = (self.users.text(slot.user), self.entries.subkey(slot)) else {
                        continue;
                    };
                    let (group, subkey) = (key_group(placement(user)), Subkey::from_bytes(subkey));
                    due.push(Due { group, at, user: user.into(), subkey, id: timer.id, entry: place });
                }
            }
        }
        let (due, overdue) = first_of_groups(due, per_group);
        self.timers.overdue = overdue;
        due
    }

    fn fires(&mut self, due: &Due) -> bool {
        let timer = if self.is_of(due) { self.timer_at(due.entry, due.id) } else { None };
        let Some(timer) = timer.filter(|timer| timer.at == due.at) else { return false };
        if timer.is_fresh {
            self.entries.listed(due.entry, due.id);
            self.timers.list(due.at, due.entry);
        }
        !timer.is_fresh
    }

    fn keys(&self) -> usize {
        self.users.len() + self.entries.slots.len()
    }

    fn fire(&mut self, due: &Due) {
        if let Some(number) = self.entries.wake(due.entry, placement(&due.user)) {
            self.entries.awake[number].timers.remove(due.id);
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        self.timers.next
    }

    fn take_out(&mut self, user: UserKey<'_>, subkey: &Subkey) -> Option<O::Body> {
        self.remove(user, subkey).map(|(_, body)| body)
    }

    fn clear_user(&mut self, user: UserKey<'_>) {
        if let Some(of) = self.users.find(user)
            && self.states.remove(&of).is_some()
        {
            self.dirty_users.insert(of);
        }
    }

    fn subkeys(&self, user: UserKey<'_>) -> Vec<Subkey> {
        let mut subkeys = Vec::new();
        let mut next = self.users.find(user).and_then(|of| self.users.number(of));
        while let Some((place, slot)) = next.and_then(|place| Some((place, self.entries.slots.get(place)?))) {
            match self.entries.form(place) {
                Some(Form::Awake(awake)) if awake.is_gone() => {}
                Some(Form::Awake(awake)) => subkeys.push(awake.subkey.clone()),
                Some(Form::Asleep(asleep)) => subkeys.push(Subkey::from_bytes(asleep.subkey)),
                None => {}
            }
            next = Some(slot.after);
        }
        subkeys.sort_unstable();
        subkeys
    }

    fn has_entries(&self, user: UserKey<'_>) -> bool {
        self.users.find(user).is_some()
    }

    fn user_names(&self) -> Vec<Arc<str>> {
        self.users.in_order()
    }

    fn drain_dirty(&mut self) -> (usize, Bytes) {
        let mut images = 0;
        for of in std::mem::take(&mut self.dirty_users) {
            let Some(name) = self.users.text(of) else { continue };
            images += 1;
            let page = &mut self.page;
            put_key(page, key_group(placement(name)), name.as_bytes(), None);
            let state = self.states.get(&of).map(|state| |page: &mut Vec<u8>| encode(state, page));
            put_state(page, O::User::VERSION, state);
            put_body_set(page);
            put_state(page, 0, None::<fn(&mut Vec<u8>)>);
            put_timers(page, [].into_iter());
            self.drop_user_if_gone(of);
        }
        let mut awake = std::mem::take(&mut self.entries.awake);
        let forgotten = (deliberate::has(Bug::ForgottenDirtyKey) && awake.len() > 1).then(|| awake.len() - 1);
        for (number, awake) in awake.drain(..).enumerate() {
            let Some(name) = self.entries.slots.get(awake.place).and_then(|slot| self.users.name(slot.user)) else {
                continue;
            };
            // Of what is gone the image says so, whatever went last: an older one may have a body.
            let gone = awake.is_gone();
            let page = &mut self.page;
            let image = page.len();
            let start = put_key(page, key_group(awake.placement), name, Some(awake.subkey.bytes()));
            let head = awake.head.as_ref().map(|head| |page: &mut Vec<u8>| encode(head, page));
            put_state(page, O::Entry::VERSION, head);
            let body = page.len();
            let body_bytes = match &awake.body {
                Held::Untouched(_) if !gone => {
                    put_body_kept(page);
                    0
                }
                Held::Set(Some(body)) => {
                    put_body_set(page);
                    put_state(page, O::Body::VERSION, Some(|page: &mut Vec<u8>| encode(body, page)))
                }
                Held::Untouched(_) | Held::Set(None) => {
                    put_body_set(page);
                    put_state(page, 0, None::<fn(&mut Vec<u8>)>)
                }
            };
            let timers = page.len();
            put_timers(page, awake.timers.as_slice().iter().map(|timer| (timer.id, timer.at)));
            if gone {
                self.drop_entry(&awake);
            } else {
                self.lay(awake, &Written { start, body, body_bytes, timers });
            }
            if forgotten == Some(number) {
                self.page.truncate(image);
            } else {
                images += 1;
            }
        }
        self.entries.awake = awake;
        self.look_ahead();
        (images, self.pages.exchange(&mut self.page))
    }

    fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String> {
        let user = UserKey::of(&key.user);
        let head = image.head.as_ref();
        let Some(subkey) = &key.subkey else {
            let state = head.map(|(version, bytes)| decode(*version, bytes)).transpose()?;
            let of = self.users.make(user, NOWHERE);
            match state {
                Some(state) => drop(self.states.insert(of, state)),
                None => drop(self.states.remove(&of)),
            }
            return Ok(());
        };
        // Between epochs the page is empty, and nobody is awake but who is put back here.
        let body = image.body.iter().flatten().next().map(|(version, bytes)| (*version, &**bytes));
        let page = &mut self.page;
        page.clear();
        put_bytes(page, subkey.bytes());
        let (head, _) = put_back(page, head.map(|(version, bytes)| (*version, &**bytes)))?;
        let body_start = page.len();
        put_body_set(page);
        let (body, body_bytes) = put_back(page, body)?;
        let timers = page.len();
        put_timers(page, image.timers.iter().copied());
        let awake = self.touch(user, subkey);
        let place = awake.place;
        (awake.head, awake.body, awake.timers) = (head, Held::Set(body), OfEntry::default());
        for (id, at) in &image.timers {
            awake.timers.push(Timer { at: *at, listed: *at, id: *id, is_fresh: false });
        }
        if !deliberate::has(Bug::TimerLostOnRestore) {
            for (_, at) in &image.timers {
                self.timers.list(*at, place);
                self.timers.next = Some(self.timers.next.map_or(*at, |next| next.min(*at)));
            }
        }
        if let Some(awake) = self.entries.awake.pop() {
            self.lay(awake, &Written { start: 0, body: body_start, body_bytes, timers });
        }
        self.page.clear();
        Ok(())
    }
}

/// Reads a state of any version, and appends it as this build writes it; returns how many bytes the state itself has.
fn put_back<S: State>(page: &mut Vec<u8>, state: Option<(u8, &[u8])>) -> Result<(Option<S>, usize), String> {
    let read: Option<S> = state.map(|(version, bytes)| decode(version, bytes)).transpose()?;
    let bytes = state.filter(|(version, _)| *version == S::VERSION).map(|(_, bytes)| bytes);
    let put = |state: &S, page: &mut Vec<u8>| match bytes {
        Some(bytes) => page.extend_from_slice(bytes),
        None => encode(state, page),
    };
    let length = put_state(page, S::VERSION, read.as_ref().map(|state| |page: &mut Vec<u8>| put(state, page)));
    Ok((read, length))
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
        match bytes {
            // Most numbers are small.
            [byte] => self.0.push(*byte),
            _ => self.0.extend_from_slice(bytes),
        }
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
            let asleep = |table: &Table<Schedule>| match table.form(user, &key) {
                Some(Form::Asleep(asleep)) => Some(matches!(asleep.body, Parked::Bytes(_))),
                _ => None,
            };
            assert_eq!(asleep(&table), None, "the epoch that parks it may ask for it again");
            table.drain_dirty();
            assert_eq!(asleep(&table), Some(sleeps));
            assert_eq!(table.body(user, &key).map(Cow::into_owned), Some(item.clone()));
            // An epoch that touches something else leaves it where it is.
            table.set_timer(user, &key, ID, Instant(7));
            assert_eq!(table.body(user, &key).map(Cow::into_owned), Some(item.clone()));
            table.drain_dirty();
            assert_eq!(asleep(&table), Some(sleeps));
            assert_eq!(table.take_body(user, &key), Some(item));
            assert_eq!((table.take_body(user, &key), table.large.len()), (None, 0));
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

    /// What an entry is to be: whether it has a head, its body, and when its timers are due.
    #[derive(Default)]
    struct Expected {
        head: bool,
        body: Option<Option<Box<crate::item::Item>>>,
        timers: BTreeMap<TimerId, Instant>,
    }

    /// Numbers that look like chance, the same in every run.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (self.0 >> 33) % bound
        }
    }

    #[test]
    fn entries_that_wake_and_fall_asleep_are_what_a_map_of_them_would_be() {
        let names: Vec<Arc<str>> = (0..3).map(|number| format!("u{number}").into()).collect();
        for seed in 0..4 {
            let (mut table, mut dice, mut expected) = (Table::<Schedule>::default(), Dice(seed), BTreeMap::new());
            let mut fired = 0;
            for epoch in 0..150 {
                let now = Instant(10 * epoch);
                let mut fresh = BTreeSet::new();
                let due: Vec<_> = table.due(now, usize::MAX);
                let is_due = |of: &Expected| of.timers.values().filter(|at| **at <= now).count();
                assert_eq!(due.len(), expected.values().map(is_due).sum::<usize>(), "{now:?}");
                for due in due {
                    let key = (due.user.clone(), due.subkey.clone());
                    let timers = expected.get(&key).map(|of| of.timers.clone()).unwrap_or_default();
                    let fires = timers.get(&due.id) == Some(&due.at) && !fresh.contains(&(key.clone(), due.id));
                    assert_eq!(table.fires(&due), fires);
                    if fires {
                        fired += 1;
                        table.fire(&due);
                        expected.get_mut(&key).unwrap().timers.remove(&due.id);
                        // Another timer of the same wave is set, or goes.
                        let (user, other) = (UserKey::of(&due.user), Subkey::of(&[&dice.below(9).to_string()]));
                        let (id, at) = (TimerId(dice.below(2) as u8), Instant(now.0 + dice.below(40) as i64 - 10));
                        table.set_timer(user, &other, id, at);
                        expected.entry((due.user.clone(), other.clone())).or_default().timers.insert(id, at);
                        fresh.insert(((due.user.clone(), other), id));
                    }
                }
                for _ in 0..dice.below(12) {
                    let name = &names[dice.below(3) as usize];
                    let (user, key) = (UserKey::of(name), Subkey::of(&[&dice.below(9).to_string()]));
                    let of = expected.entry((name.clone(), key.clone())).or_default();
                    let (id, at) = (TimerId(dice.below(2) as u8), Instant(now.0 + dice.below(400) as i64));
                    match dice.below(9) {
                        0 => {
                            let held = (of.head, of.body.is_some()) != (false, false);
                            assert_eq!(
                                table.remove(user, &key).map(|(_, body)| body),
                                held.then(|| of.body.take().flatten())
                            );
                            *of = Expected::default();
                        }
                        1 => assert_eq!(table.take_body(user, &key), of.body.take()),
                        2 | 3 => {
                            let mut item = crate::script::like(name, "bob", "photo", dice.below(99));
                            let text: Arc<str> =
                                "x".repeat([dice.below(40), 1_200][dice.below(2) as usize] as usize).into();
                            item.members
                                .iter_mut()
                                .for_each(|member| Arc::make_mut(member).content.data = text.clone());
                            of.body = Some(Some(Box::new(item)));
                            table.set_body(user, &key, of.body.clone().flatten());
                        }
                        4 => {
                            of.head = true;
                            table.head_mut(user, &key);
                        }
                        5 => {
                            of.timers.remove(&id);
                            table.clear_timer(user, &key, id);
                        }
                        _ => {
                            of.timers.insert(id, at);
                            table.set_timer(user, &key, id, at);
                        }
                    }
                    for ((name, key), of) in &expected {
                        let user = UserKey::of(name);
                        assert_eq!(table.head(user, key).is_some(), of.head);
                        assert_eq!(table.body(user, key).map(Cow::into_owned), of.body);
                        let timers = (0..2).filter_map(|id| Some((TimerId(id), table.timer(user, key, TimerId(id))?)));
                        assert_eq!(timers.collect::<BTreeMap<_, _>>(), of.timers);
                    }
                    expected.retain(|_, of| of.head || of.body.is_some() || !of.timers.is_empty());
                    let keys = expected.keys().filter(|(other, _)| other == name).map(|(_, key)| key.clone());
                    assert_eq!(table.subkeys(user), keys.collect::<Vec<_>>());
                }
                table.drain_dirty();
                expected.retain(|_, of| of.head || of.body.is_some() || !of.timers.is_empty());
                let users: BTreeSet<_> = expected.keys().map(|(name, _)| name).collect();
                assert_eq!(table.keys(), users.len() + expected.len());
                assert_eq!(table.next_timer(), expected.values().flat_map(|of| of.timers.values()).min().copied());
            }
            assert!(fired > 100, "{fired}");
        }
    }
}
