//! The names under which a process's members of groups are known again.
//!
//! A member without a name that dies keeps its partitions until its session is over: seconds in which nobody reads
//! them, not even the process that was started in its place. Kafka gives a *static* member's partitions at once to
//! whoever comes back under its name (KIP-345). So a name must never be two processes' at the same time: the broker
//! would throw each out in turn. Who gives the name sees to that; where it happens all the same, members join without
//! names from then on, and say so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;

/// A process's name, and the seats that its members take in each group.
#[derive(Debug)]
pub struct Instance {
    name: String,
    taken: Mutex<BTreeMap<String, BTreeSet<u32>>>,
    /// Whether somebody else goes by this name.
    shared: AtomicBool,
}

/// One member's name in its group; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    instance: Arc<Instance>,
    group: String,
    number: u32,
}

impl Instance {
    /// A process that nobody else is called like, and that has the same name after a crash.
    #[must_use]
    pub fn new(name: String) -> Self {
        Self { name, taken: Mutex::default(), shared: AtomicBool::new(false) }
    }

    /// The lowest free seat in `group`; none where names do not work.
    pub(super) fn seat(self: &Arc<Self>, group: &str) -> Option<Seat> {
        if self.shared.load(Ordering::Relaxed) {
            return None;
        }
        let mut taken = lock(&self.taken);
        let taken = taken.entry(group.to_owned()).or_default();
        let number = (0..).find(|number| !taken.contains(number))?;
        taken.insert(number);
        Some(Seat { instance: Arc::clone(self), group: group.to_owned(), number })
    }
}

impl Seat {
    /// `group.instance.id`.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.instance.name, self.number)
    }

    /// Somebody else came under this name.
    pub(super) fn refuse(&self) {
        if !self.instance.shared.swap(true, Ordering::Relaxed) {
            tracing::error!(
                instance = self.instance.name,
                "another process has this name in the group `{}`: give each process one of its own with `--instance`; this \
                 one goes on without a name, so its partitions wait for the end of its session when it dies",
                self.group
            );
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(taken) = lock(&self.instance.taken).get_mut(&self.group) {
            taken.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_one_group_sit_apart_and_the_next_one_takes_the_first_free_seat() {
        let instance = Arc::new(Instance::new("host-0".to_owned()));
        let named = |group: &str| instance.seat(group).map(|seat| (seat.name(), seat));
        let (first, seat) = named("a").unwrap();
        let (second, other) = named("a").unwrap();
        let (elsewhere, _) = named("b").unwrap();
        assert_eq!([&first, &second, &elsewhere], ["host-0-0", "host-0-1", "host-0-0"]);
        drop(seat);
        assert_eq!(named("a").unwrap().0, "host-0-0");
        other.refuse();
        assert!(named("a").is_none(), "a name that somebody else has is not used again");
    }
}
