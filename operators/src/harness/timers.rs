//! Deadlines of one operator on one worker: a list per instant, in order of the instants.
//!
//! Setting a timer is one push: nearly all of an epoch's timers are a few constant delays from its one instant.
//! The truth about a timer stands in its entry; a list only says where to look, four bytes a timer. So taking a
//! timer back costs nothing here, and moving it to later neither: when its old list is due, it goes into its new one.
//! [`Table`](super::table::Table) does the looking, because it has the entries. A list may name an entry twice, or one
//! that has no such timer any more, or another that took its place: to look there finds what is due, once.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidings_schemas::ids::KeyGroup;
use tidings_schemas::time::Instant;

use super::slab::Place;
use crate::keyed::{Subkey, TimerId};

/// A timer as its entry knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timer {
    pub(crate) at: Instant,
    /// In whose list it was put last; never later than `at`. Lists that were due are no more.
    pub(crate) listed: Instant,
    pub(crate) id: TimerId,
    /// Whether this epoch set it.
    pub(crate) is_fresh: bool,
}

/// The timers of an entry: nearly every one has one, or none.
#[derive(Clone, Debug)]
pub(crate) enum OfEntry {
    /// At most one.
    One(Option<Timer>),
    /// More.
    Many(Box<[Timer]>),
}

impl Default for OfEntry {
    fn default() -> Self {
        Self::One(None)
    }
}

impl OfEntry {
    pub(crate) fn as_slice(&self) -> &[Timer] {
        match self {
            Self::One(timer) => timer.as_slice(),
            Self::Many(timers) => timers,
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [Timer] {
        match self {
            Self::One(timer) => timer.as_mut_slice(),
            Self::Many(timers) => timers,
        }
    }

    pub(crate) fn push(&mut self, timer: Timer) {
        match self {
            Self::One(one) => match one.take() {
                None => *one = Some(timer),
                Some(first) => *self = Self::Many(Box::new([first, timer])),
            },
            Self::Many(timers) => *timers = timers.iter().copied().chain([timer]).collect(),
        }
    }

    pub(crate) fn remove(&mut self, id: TimerId) {
        match self {
            Self::One(timer) => drop(timer.take_if(|timer| timer.id == id)),
            Self::Many(timers) => *timers = timers.iter().copied().filter(|timer| timer.id != id).collect(),
        }
    }
}

/// A timer that is due. They fire in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    pub(crate) group: KeyGroup,
    pub(crate) at: Instant,
    pub(crate) user: Arc<str>,
    pub(crate) subkey: Subkey,
    pub(crate) id: TimerId,
    pub(crate) entry: Place,
}

/// What is due, in order, at most `per_group` of a key group; and what is left for the next epoch, in order.
pub(crate) fn first_of_groups(mut due: Vec<Due>, per_group: usize) -> (Vec<Due>, Vec<Due>) {
    // Stable, because what was left from the last epoch is in order already.
    due.sort();
    due.dedup();
    let (mut group, mut taken) = (None, 0);
    let beyond = |due: &mut Due| {
        if group != Some(due.group) {
            (group, taken) = (Some(due.group), 0);
        }
        taken += 1;
        taken > per_group
    };
    let left = due.extract_if(.., beyond).collect();
    (due, left)
}

/// The lists.
pub(crate) struct Timers {
    lists: BTreeMap<Instant, Vec<Place>>,
    /// Lists up to this instant were taken out, because they were due.
    pub(crate) due_until: Instant,
    /// What was due and had to wait for the next epoch, in order.
    pub(crate) overdue: Vec<Due>,
    /// The earliest deadline, as of the last look.
    pub(crate) next: Option<Instant>,
}

impl Default for Timers {
    fn default() -> Self {
        Self { lists: BTreeMap::new(), due_until: Instant(i64::MIN), overdue: Vec::new(), next: None }
    }
}

impl Timers {
    pub(crate) fn list(&mut self, at: Instant, entry: Place) {
        self.lists.entry(at).or_default().push(entry);
    }

    /// Takes the earliest list out, if it is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, Vec<Place>)> {
        self.due_until = self.due_until.max(now);
        self.lists.first_entry().filter(|list| *list.key() <= now).map(|list| list.remove_entry())
    }

    /// Takes the earliest list out, to look whether anything is due then.
    pub(crate) fn pop(&mut self) -> Option<(Instant, Vec<Place>)> {
        self.lists.pop_first()
    }

    /// Puts a list back of which something still stands.
    pub(crate) fn put_back(&mut self, at: Instant, mut list: Vec<Place>) {
        self.lists.entry(at).or_default().append(&mut list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_with_one_timer_or_none_keeps_no_list() {
        assert_eq!(size_of::<OfEntry>(), 24);
        let timer = |id| Timer { at: Instant(1), listed: Instant(1), id: TimerId(id), is_fresh: true };
        let mut timers = OfEntry::default();
        let ids = |timers: &OfEntry| timers.as_slice().iter().map(|timer| timer.id.0).collect::<Vec<_>>();
        for (push, remove, expected) in
            [(1, 9, &[1][..]), (2, 9, &[1, 2]), (3, 2, &[1, 3]), (4, 1, &[3, 4]), (5, 3, &[4, 5]), (6, 6, &[4, 5])]
        {
            timers.push(timer(push));
            timers.remove(TimerId(remove));
            assert_eq!(ids(&timers), expected);
        }
        let mut one = OfEntry::default();
        one.push(timer(7));
        one.remove(TimerId(7));
        assert!(one.as_mut_slice().is_empty());
    }
}
