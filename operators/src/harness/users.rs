//! The users of whom one operator on one worker keeps anything: a place for each name, so that what is kept names
//! its user in four bytes. Beside the name lies a number, which means what who keeps it says.

use std::cell::Cell;
use std::sync::Arc;

use tidings_schemas::ids::placement;

use super::delta::{Rest, put_number};
use super::index::Index;
use super::shelves::{Shelves, Spot};
use super::slab::{Place, Slab};
use super::table::UserKey;

struct User {
    name: Spot,
    number: u32,
}

#[derive(Default)]
pub(crate) struct Users {
    users: Slab<User>,
    names: Shelves,
    index: Index,
    /// Who was found last: a call asks for one several times.
    last: Cell<Place>,
    /// Room for a name's length.
    length: Vec<u8>,
}

fn name<'a>(users: &Slab<User>, names: &'a Shelves, place: Place) -> Option<&'a [u8]> {
    Rest(names.get(users.get(place)?.name)).bytes()
}

/// Names are text, because they were made of it.
fn text(name: &[u8]) -> &str {
    std::str::from_utf8(name).unwrap_or_default()
}

impl Users {
    pub(crate) fn find(&self, user: UserKey<'_>) -> Option<Place> {
        let is = |place| self.name(place) == Some(user.name.as_bytes());
        if is(self.last.get()) {
            return Some(self.last.get());
        }
        let found = self.index.find(UserKey::hash(user.placement), is);
        found.into_iter().for_each(|place| self.last.set(place));
        found
    }

    /// The user, made with this number where there is none.
    pub(crate) fn make(&mut self, user: UserKey<'_>, number: u32) -> Place {
        if let Some(place) = self.find(user) {
            return place;
        }
        self.length.clear();
        put_number(&mut self.length, user.name.len() as u64);
        let name = self.names.put(&[&self.length, user.name.as_bytes()]);
        let place = self.users.insert(User { name, number });
        let (users, names) = (&self.users, &self.names);
        let hash_of = |place| self::name(users, names, place).map_or(0, |name| UserKey::hash(placement(text(name))));
        self.index.insert(UserKey::hash(user.placement), place, hash_of);
        self.last.set(place);
        place
    }

    pub(crate) fn remove(&mut self, place: Place) {
        let Some(hash) = self.text(place).map(|name| UserKey::hash(placement(name))) else { return };
        self.index.remove(hash, place);
        if let Some(user) = self.users.remove(place) {
            self.names.free(user.name);
        }
    }

    /// The bytes of a name.
    #[inline]
    pub(crate) fn name(&self, place: Place) -> Option<&[u8]> {
        name(&self.users, &self.names, place)
    }

    /// The name.
    pub(crate) fn text(&self, place: Place) -> Option<&str> {
        self.name(place).map(text)
    }

    /// The number.
    pub(crate) fn number(&self, place: Place) -> Option<u32> {
        self.users.get(place).map(|user| user.number)
    }

    /// The number, to be changed.
    pub(crate) fn number_mut(&mut self, place: Place) -> Option<&mut u32> {
        self.users.get_mut(place).map(|user| &mut user.number)
    }

    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }

    /// All names, in order.
    pub(crate) fn in_order(&self) -> Vec<Arc<str>> {
        let bytes = self.users.iter().filter_map(|user| Rest(self.names.get(user.name)).bytes());
        let mut names: Vec<Arc<str>> = bytes.map(|name| text(name).into()).collect();
        names.sort_unstable();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_until_it_goes_whatever_the_length_of_its_name() {
        assert_eq!(size_of::<Option<User>>(), 8);
        let names: Vec<Arc<str>> =
            (0..3000).map(|number| "n".repeat(number % 130 + 1) + &number.to_string()).map(Arc::from).collect();
        let mut users = Users::default();
        for round in 0..2 {
            let places: Vec<_> =
                (0..).zip(&names).map(|(number, name)| users.make(UserKey::of(name), number)).collect();
            for ((number, name), place) in (0..).zip(&names).zip(&places) {
                assert_eq!(users.make(UserKey::of(name), 0), *place, "round {round}");
                assert_eq!((users.text(*place), users.number(*place)), (Some(&**name), Some(number)));
            }
            assert_eq!((users.len(), users.in_order().len()), (3000, 3000));
            places.iter().for_each(|place| users.remove(*place));
            assert!(names.iter().all(|name| users.find(UserKey::of(name)).is_none()));
        }
        assert_eq!(users.len(), 0);
    }
}
