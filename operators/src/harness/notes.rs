//! State that is written once and forgotten at its deadline: the second layout, for operators that remember much
//! and change nothing of it.
//!
//! A *note* is a row of fixed size: its id of sixteen bytes, its head, and its user by place. Beside it there is
//! one slot of an index, five bytes, and nothing else:
//! - No deadline. Notes of one epoch that were made for one span are due together, and rows are given in
//!   order of place; so a deadline names *runs* of rows, as a rule one for all of an epoch.
//! - No list of a user's notes: who asks for them, which only a call that would kill does, looks at all rows.
//! - No hash. An id is hashed together with its user's place, and both lie in the row.
//!
//! A row lives in one of three ways. *Live*: its note is found. *Gone*: the note went in this epoch; the row
//! stays, because the epoch's images name it. *Void*: nothing finds it, and it waits until it may be filled
//! again. That it may from the end of the epoch in which its deadline came: so a run names the notes that it was
//! made for or void rows, and never another's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::ids::{key_group, placement};
use tidings_schemas::time::Instant;

use super::buffers::Buffers;
use super::delta::{put_body_kept, put_body_set, put_key, put_state, put_timers};
use super::index::Index;
use super::slab::Place;
use super::stage::Store;
use super::table::{Image, StateKey, UserKey, decode, encode};
use super::timers::{Due, first_of_groups};
use super::users::Users;
use crate::keyed::{Operator, State, Subkey, TimerId};

/// What a note is found by, within its user.
pub type NoteId = [u8; 16];

/// The timer that forgets a note, as images and ordinals name it.
const FORGET: TimerId = TimerId(0);

/// Rows in one chunk: growing costs one chunk, not a copy of all.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 10;

/// Whose a row is, by place. A billion users of one operator on one worker are more than its memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner(u32);

impl Owner {
    const GONE: u32 = 1 << 31;
    const NOBODY: Self = Self(u32::MAX);

    const fn user(self) -> Place {
        self.0 & !Self::GONE
    }

    const fn gone(self) -> Self {
        Self(self.0 | Self::GONE)
    }

    const fn is_live(self) -> bool {
        self.0 & Self::GONE == 0
    }
}

struct Row<E> {
    id: NoteId,
    head: E,
    owner: Owner,
}

/// Rows by place. Places are filled in order, round and round: what was made together lies together, and
/// so it does when it goes.
struct Rows<E> {
    chunks: Vec<Vec<Row<E>>>,
    /// Places that may be filled: where a run of them begins, and where it ends.
    free: BTreeMap<Place, Place>,
    /// The run that is being filled.
    filling: Range<Place>,
}

impl<E> Default for Rows<E> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: BTreeMap::new(), filling: 0..0 }
    }
}

const fn split(place: Place) -> (usize, usize) {
    ((place >> CHUNK_BITS) as usize, place as usize & (CHUNK - 1))
}

impl<E> Rows<E> {
    fn get(&self, place: Place) -> Option<&Row<E>> {
        let (chunk, at) = split(place);
        self.chunks.get(chunk)?.get(at)
    }

    fn get_mut(&mut self, place: Place) -> Option<&mut Row<E>> {
        let (chunk, at) = split(place);
        self.chunks.get_mut(chunk)?.get_mut(at)
    }

    fn live(&self, place: Place) -> Option<&Row<E>> {
        self.get(place).filter(|row| row.owner.is_live())
    }

    fn iter(&self) -> impl Iterator<Item = &Row<E>> {
        self.chunks.iter().flatten()
    }

    fn insert(&mut self, row: Row<E>) -> Place {
        if self.filling.is_empty()
            && let Some(start) =
                self.free.range(self.filling.end..).next().or(self.free.iter().next()).map(|run| *run.0)
            && let Some(end) = self.free.remove(&start)
        {
            self.filling = start..end;
        }
        if let Some(place) = self.filling.next() {
            if let Some(old) = self.get_mut(place) {
                *old = row;
            }
            return place;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let chunks = self.chunks.len();
        let chunk = &mut self.chunks[chunks - 1];
        chunk.push(row);
        // Four billion notes of one operator on one worker are more than its memory holds.
        ((chunks - 1) << CHUNK_BITS | (chunk.len() - 1)) as Place
    }

    /// These places may be filled again.
    fn free(&mut self, places: &mut Vec<Place>) {
        places.sort_unstable();
        for Range { start, end } in places.chunk_by(|one, two| one + 1 == *two).filter_map(run_of) {
            let end = self.free.remove(&end).unwrap_or(end);
            match self.free.range_mut(..start).next_back().filter(|(_, before)| **before == start) {
                Some((_, before)) => *before = end,
                None => drop(self.free.insert(start, end)),
            }
        }
        places.clear();
    }
}

fn run_of(places: &[Place]) -> Option<Range<Place>> {
    Some(*places.first()?..*places.last()? + 1)
}

/// A note that this epoch made.
struct Made {
    place: Place,
    at: Option<Instant>,
    /// Whether one of the same id went in the same epoch.
    again: bool,
}

/// Runs of rows. Nearly all deadlines have one.
type Runs = SmallVec<[Range<Place>; 2]>;

/// The state of one operator on one worker, in notes.
pub struct Notes<O: Operator> {
    rows: Rows<O::Entry>,
    index: Index,
    /// Each with how many notes it has: live ones, and those that went in this epoch.
    users: Users,
    /// How many there are; what went in this epoch counts.
    count: usize,
    deadlines: BTreeMap<Instant, Runs>,
    /// What was due and had to wait for the next epoch, in order.
    overdue: Vec<Due>,
    /// The earliest deadline, as of the end of the last epoch.
    next: Option<Instant>,
    /// What this epoch made, what went in it, and the rows whose deadline came in it.
    made: Vec<Made>,
    gone: Vec<Place>,
    ended: Vec<Place>,
    /// Images of what was made and of what went, and those of earlier epochs.
    page: Vec<u8>,
    pages: Buffers,
}

impl<O: Operator> Default for Notes<O> {
    fn default() -> Self {
        Self {
            rows: Rows::default(),
            index: Index::default(),
            users: Users::default(),
            count: 0,
            deadlines: BTreeMap::new(),
            overdue: Vec::new(),
            next: None,
            made: Vec::new(),
            gone: Vec::new(),
            ended: Vec::new(),
            page: Vec::new(),
            pages: Buffers::default(),
        }
    }
}

fn hash(user: Place, id: &NoteId) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(id, u64::from(user))
}

impl<O: Operator> Notes<O> {
    /// Finds what is live, and what went in this epoch.
    fn find(&self, of: Place, id: &NoteId) -> Option<Place> {
        let is = |place| self.rows.get(place).is_some_and(|row| row.id == *id && row.owner.user() == of);
        self.index.find(hash(of, id), is)
    }

    /// The head of a note.
    pub(crate) fn head(&self, user: UserKey<'_>, id: &NoteId) -> Option<&O::Entry> {
        let place = self.find(self.users.find(user)?, id)?;
        self.rows.live(place).map(|row| &row.head)
    }

    /// Makes a note, to be forgotten at `at`, which is later than now.
    pub(crate) fn make(&mut self, user: UserKey<'_>, id: &NoteId, head: O::Entry, at: Instant) {
        let of = self.users.make(user, 0);
        let mut again = false;
        if let Some(old) = self.find(of, id) {
            again = self.rows.live(old).is_none();
            self.void(old);
        }
        let place = self.put(of, id, head, Some(at));
        self.made.push(Made { place, at: Some(at), again });
    }

    /// Puts a note that nobody finds into a row.
    fn put(&mut self, of: Place, id: &NoteId, head: O::Entry, at: Option<Instant>) -> Place {
        let place = self.rows.insert(Row { id: *id, head, owner: Owner(of) });
        self.count += 1;
        let hash_of = |place| self.rows.get(place).map_or(0, |row| hash(row.owner.user(), &row.id));
        self.index.insert(hash(of, id), place, hash_of);
        if let Some(notes) = self.users.number_mut(of) {
            *notes += 1;
        }
        if let Some(at) = at {
            let runs = self.deadlines.entry(at).or_default();
            match runs.last_mut() {
                Some(run) if run.end == place => run.end += 1,
                _ => runs.push(place..place + 1),
            }
        }
        place
    }

    /// Nothing finds the row any more; returns its user.
    fn void(&mut self, place: Place) -> Option<Place> {
        let row = self.rows.get_mut(place)?;
        let of = row.owner.user();
        row.owner = Owner::NOBODY;
        self.count -= 1;
        self.index.remove(hash(of, &row.id), place);
        *self.users.number_mut(of)? -= 1;
        Some(of)
    }

    fn drop_user_if_gone(&mut self, place: Place) {
        if self.users.number(place) == Some(0) {
            self.users.remove(place);
        }
    }

    /// Those of them that are live; the others' rows end with this epoch.
    fn live_of(&mut self, mut due: Vec<Due>) -> Vec<Due> {
        due.retain(|due| {
            let is_live = self.rows.live(due.entry).is_some();
            if !is_live {
                self.ended.push(due.entry);
            }
            is_live
        });
        due
    }

    /// Finds the earliest deadline; void rows before it end with this epoch.
    fn look_ahead(&mut self) {
        let mut next = None;
        while let Some(mut first) = self.deadlines.first_entry() {
            let runs = first.get_mut();
            while let Some(run) = runs.first_mut().filter(|run| self.rows.live(run.start).is_none()) {
                self.ended.push(run.start);
                run.start += 1;
                if run.start == run.end {
                    runs.remove(0);
                }
            }
            if !runs.is_empty() {
                next = Some(*first.key());
                break;
            }
            first.remove();
        }
        let overdue = std::mem::take(&mut self.overdue);
        self.overdue = self.live_of(overdue);
        let waits = self.overdue.iter().map(|due| due.at).min();
        self.next = [next, waits].into_iter().flatten().min();
    }
}

impl<O: Operator<User = (), Body = ()>> Store<O> for Notes<O> {
    fn due(&mut self, now: Instant, per_group: usize) -> Vec<Due> {
        let overdue = std::mem::take(&mut self.overdue);
        let mut due = self.live_of(overdue);
        while let Some(first) = self.deadlines.first_entry().filter(|first| *first.key() <= now) {
            let (at, runs) = first.remove_entry();
            for place in runs.into_iter().flatten() {
                let Some(row) = self.rows.live(place) else {
                    self.ended.push(place);
                    continue;
                };
                let Some(user) = self.users.text(row.owner.user()) else { continue };
                let (group, subkey) = (key_group(placement(user)), Subkey::from(&row.id));
                due.push(Due { group, at, user: user.into(), subkey, id: FORGET, entry: place });
            }
        }
        let (due, overdue) = first_of_groups(due, per_group);
        self.overdue = overdue;
        self.ended.extend(due.iter().map(|due| due.entry));
        due
    }

    fn fires(&mut self, due: &Due) -> bool {
        self.rows.live(due.entry).is_some()
    }

    fn keys(&self) -> usize {
        self.users.len() + self.count
    }

    /// A note goes with its timer.
    fn fire(&mut self, due: &Due) {
        self.take_out(UserKey::of(&due.user), &due.subkey);
    }

    fn next_timer(&self) -> Option<Instant> {
        self.next
    }

    fn take_out(&mut self, user: UserKey<'_>, subkey: &Subkey) -> Option<()> {
        let id = subkey.bytes().try_into().ok()?;
        let place = self.find(self.users.find(user)?, id)?;
        let row = self.rows.get_mut(place).filter(|row| row.owner.is_live())?;
        row.owner = row.owner.gone();
        self.gone.push(place);
        Some(())
    }

    fn clear_user(&mut self, _: UserKey<'_>) {}

    fn subkeys(&self, user: UserKey<'_>) -> Vec<Subkey> {
        let Some(place) = self.users.find(user) else { return Vec::new() };
        let of_user = self.rows.iter().filter(|row| row.owner == Owner(place));
        let mut subkeys: Vec<_> = of_user.map(|row| Subkey::from(&row.id)).collect();
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
        if deliberate::has(Bug::ForgottenDirtyKey) && self.made.len() + self.gone.len() > 1 && self.made.pop().is_none()
        {
            self.gone.pop();
        }
        let mut images = 0;
        let (mut made, mut gone) = (std::mem::take(&mut self.made), std::mem::take(&mut self.gone));
        for Made { place, at, again } in made.drain(..) {
            let Some(row) = self.rows.live(place) else { continue };
            let Some(user) = self.users.text(row.owner.user()) else { continue };
            images += 1;
            let page = &mut self.page;
            put_key(page, key_group(placement(user)), user.as_bytes(), Some(&row.id));
            put_state(page, O::Entry::VERSION, Some(|page: &mut Vec<u8>| encode(&row.head, page)));
            if again {
                // As of all that went in this epoch.
                put_body_set(page);
                put_state(page, 0, None::<fn(&mut Vec<u8>)>);
            } else {
                put_body_kept(page);
            }
            put_timers(page, at.map(|at| (FORGET, at)).into_iter());
        }
        for place in gone.drain(..) {
            let Some(row) = self.rows.get(place).filter(|row| row.owner != Owner::NOBODY) else { continue };
            let Some(user) = self.users.text(row.owner.user()) else { continue };
            images += 1;
            let page = &mut self.page;
            put_key(page, key_group(placement(user)), user.as_bytes(), Some(&row.id));
            put_state(page, O::Entry::VERSION, None::<fn(&mut Vec<u8>)>);
            put_body_set(page);
            put_state(page, 0, None::<fn(&mut Vec<u8>)>);
            put_timers(page, [].into_iter());
            if let Some(user) = self.void(place) {
                self.drop_user_if_gone(user);
            }
        }
        (self.made, self.gone) = (made, gone);
        self.look_ahead();
        // A note whose end no image told stays where it is.
        self.ended.retain(|place| self.rows.get(*place).is_some_and(|row| row.owner == Owner::NOBODY));
        self.rows.free(&mut self.ended);
        (images, self.pages.exchange(&mut self.page))
    }

    fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String> {
        let id = key.subkey.as_ref().and_then(|subkey| subkey.bytes().try_into().ok());
        let head = image.head.as_ref().map(|(version, bytes)| decode(*version, bytes)).transpose()?;
        let at = match image.timers[..] {
            [] => None,
            [(FORGET, at)] => Some(at),
            _ => return Err("it has other timers than the one that forgets it".to_owned()),
        };
        let (Some(id), Some(head), None | Some(None)) = (id, head, &image.body) else {
            return Err("it is no note: an id of sixteen bytes with a head, and no body".to_owned());
        };
        let of = self.users.make(UserKey::of(&key.user), 0);
        if let Some(old) = self.find(of, id) {
            self.void(old);
        }
        let at = at.filter(|_| !deliberate::has(Bug::TimerLostOnRestore));
        self.put(of, id, head, at);
        self.next = [self.next, at].into_iter().flatten().min();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::delta::{Delta, Pending};
    use super::super::table::Table;
    use super::*;
    use crate::dedup::{Dedup, FirstV1};

    /// What a table and notes are asked alike: the table is the specification.
    trait Alike: Store<Dedup> {
        fn add(&mut self, user: UserKey<'_>, id: &NoteId, head: FirstV1, at: Instant);
        fn look(&self, user: UserKey<'_>, id: &NoteId) -> Option<FirstV1>;
    }

    impl Alike for Notes<Dedup> {
        fn add(&mut self, user: UserKey<'_>, id: &NoteId, head: FirstV1, at: Instant) {
            self.make(user, id, head, at);
        }
        fn look(&self, user: UserKey<'_>, id: &NoteId) -> Option<FirstV1> {
            self.head(user, id).cloned()
        }
    }

    impl Alike for Table<Dedup> {
        fn add(&mut self, user: UserKey<'_>, id: &NoteId, head: FirstV1, at: Instant) {
            *self.head_mut(user, &Subkey::from(id)) = head;
            self.set_timer(user, &Subkey::from(id), FORGET, at);
        }
        fn look(&self, user: UserKey<'_>, id: &NoteId) -> Option<FirstV1> {
            self.head(user, &Subkey::from(id)).map(std::borrow::Cow::into_owned)
        }
    }

    /// Numbers that look like chance, the same in every run.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (self.0 >> 33) % bound
        }
    }

    fn id(number: u64) -> NoteId {
        u128::from(number).to_be_bytes()
    }

    /// Some epochs of notes that come, go when they are due or are taken out, and come again; half way everything is
    /// put back from images into a store that is empty. What was said and seen, and what is left.
    fn story<S: Alike>(seed: u64) -> (Vec<String>, Delta) {
        let (mut dice, mut store) = (Dice(seed), S::default());
        let names: Vec<Arc<str>> = (0..5).map(|number| format!("u{number}").into()).collect();
        let (mut said, mut state) = (Vec::new(), Pending::default());
        for epoch in 0..120 {
            let now = Instant(epoch * 10);
            for due in store.due(now, 2) {
                if store.fires(&due) {
                    said.push(format!("{epoch}: {} {:?} due at {}", due.user, due.subkey, due.at.0));
                    if dice.below(8) > 0 {
                        store.fire(&due);
                    }
                    store.take_out(UserKey::of(&due.user), &due.subkey);
                }
            }
            for _ in 0..dice.below(20) {
                let (user, id) = (UserKey::of(&names[dice.below(5) as usize]), id(dice.below(12)));
                let span = if seed < 6 { 70 } else { 1 + dice.below(90) as i64 };
                match dice.below(9) {
                    0 => drop(store.take_out(user, &Subkey::from(&id))),
                    1 => store.clear_user(user),
                    _ if store.look(user, &id).is_some() => said.push(format!("{:?}", store.look(user, &id))),
                    _ => {
                        let first = serde_json::from_str(&format!("\"e_{epoch:032x}\"")).unwrap();
                        store.add(user, &id, first, Instant(now.0 + span));
                    }
                }
                said.push(format!("{:?} {}", store.subkeys(user), store.has_entries(user)));
            }
            let (images, page) = store.drain_dirty();
            let mut delta = Delta::new();
            delta.push(&"dedup".into(), images, page);
            let mut of_epoch = Pending::default();
            of_epoch.add(delta.clone());
            said.push(format!("{:?} {} {:?}", store.next_timer(), store.keys(), store.user_names()));
            said.push(format!("{images} {:?}", of_epoch.delta()));
            state.add(delta);
            if epoch == 60 {
                store = S::default();
                let images = state.delta().without_gone();
                images.iter().for_each(|((_, key), image)| store.restore(&key, &image).unwrap());
                said.push(format!("{:?} {:?}", store.next_timer(), store.user_names()));
            }
        }
        (said, state.into_delta())
    }

    #[test]
    fn notes_say_what_a_table_says_and_leave_the_same_images() {
        for seed in 0..12 {
            let ((notes, left), (table, expected)) = (story::<Notes<Dedup>>(seed), story::<Table<Dedup>>(seed));
            for (place, (one, two)) in notes.iter().zip(&table).enumerate() {
                assert_eq!(one, two, "seed {seed}, saying {place}");
            }
            assert_eq!((notes.len(), left), (table.len(), expected));
        }
    }

    #[test]
    fn a_note_is_a_row_of_36_bytes_and_a_run_of_them_is_due_together() {
        assert_eq!(size_of::<Row<FirstV1>>(), 36);
        let (mut notes, name) = (Notes::<Dedup>::default(), Arc::from("u1"));
        let user = UserKey::of(&name);
        for round in 0..20 {
            let now = Instant(round * 10);
            for due in notes.due(now, usize::MAX) {
                notes.fire(&due);
            }
            notes.drain_dirty();
            (0..3000).for_each(|number| notes.make(user, &id(number), FirstV1::default(), Instant(now.0 + 10)));
            notes.drain_dirty();
            assert!(notes.deadlines.values().all(|runs| runs.len() == 1), "{:?}", notes.deadlines);
            assert_eq!(notes.rows.chunks.len(), 3, "what is void is filled again");
        }
    }

    #[test]
    fn what_is_no_note_is_not_put_back() {
        let key =
            |subkey: Option<Subkey>| StateKey { group: tidings_schemas::ids::KeyGroup(0), user: "u".into(), subkey };
        let head = || Some((1, super::super::table::HeadBytes::from_slice(&[16; 17])));
        let sound = Image { head: head(), body: Some(None), timers: SmallVec::from_elem((FORGET, Instant(5)), 1) };
        let at = |id| (TimerId(id), Instant(5));
        let short = || Some(Subkey::of(&["a"]));
        for (subkey, image, expected) in [
            (Some(Subkey::from(&id(1))), sound.clone(), Ok(())),
            (Some(Subkey::from(&id(1))), Image { timers: SmallVec::new(), ..sound.clone() }, Ok(())),
            (None, sound.clone(), Err("no note")),
            (short(), sound.clone(), Err("no note")),
            (Some(Subkey::from(&id(1))), Image { head: None, ..sound.clone() }, Err("no note")),
            (Some(Subkey::from(&id(1))), Image { body: Some(Some((1, vec![]))), ..sound.clone() }, Err("no note")),
            (
                Some(Subkey::from(&id(1))),
                Image { timers: [at(1)].into_iter().collect(), ..sound.clone() },
                Err("timers"),
            ),
            (
                Some(Subkey::from(&id(1))),
                Image { timers: [at(0), at(0)].into_iter().collect(), ..sound },
                Err("timers"),
            ),
        ] {
            match (Notes::<Dedup>::default().restore(&key(subkey), &image), expected) {
                (Ok(()), Ok(())) => {}
                (Err(said), Err(expected)) => assert!(said.contains(expected), "{said}"),
                (restored, expected) => panic!("{image:?}: {restored:?}, not {expected:?}"),
            }
        }
    }
}
