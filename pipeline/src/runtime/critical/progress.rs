//! How far the partitions of a member are, and who hears of the group's changes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidings_sinks::log::{Assignment, Commit, TopicPartition};

use super::{CriticalStatus, UNRECORDED_BYTES_MAX, WAIT};

/// How long a partition that is given up waits for its rows. Beyond it the next owner repeats more.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// How far a partition was handled, recorded and committed.
#[derive(Clone, Copy, Default)]
pub(super) struct Stand {
    pub(super) handled: u64,
    pub(super) recorded: u64,
    pub(super) committed: u64,
}

/// The partitions of one member.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) stands: Mutex<Stands>,
    pub(super) recorded: Condvar,
}

#[derive(Default)]
pub(super) struct Stands {
    pub(super) partitions: BTreeMap<TopicPartition, Stand>,
    /// What the recorder was told and has not written.
    pub(super) unrecorded_bytes: usize,
    /// The recorder has ended: nothing more will be recorded.
    pub(super) closed: bool,
}

impl Progress {
    pub(super) fn stands(&self) -> MutexGuard<'_, Stands> {
        self.stands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn move_on(&self, through: &Through, change: impl Fn(&mut Stand, u64)) {
        let mut stands = self.stands();
        for (partition, offset) in through {
            if let Some(stand) = stands.partitions.get_mut(partition) {
                change(stand, *offset);
            }
        }
    }

    /// Waits, at most [`WAIT`], while too much is unrecorded; whether it still is.
    pub(super) fn crowded(&self) -> bool {
        let crowded = |stands: &mut Stands| !stands.closed && stands.unrecorded_bytes > UNRECORDED_BYTES_MAX;
        let waited = self.recorded.wait_timeout_while(self.stands(), WAIT, crowded);
        waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// What can be committed now.
    pub(super) fn due(&self) -> Vec<(TopicPartition, Commit)> {
        commits(self.stands().partitions.iter())
    }

    /// Whether something was handled and not committed.
    pub(super) fn uncommitted(&self) -> bool {
        self.stands().partitions.values().any(|stand| stand.handled > stand.committed)
    }
}

fn commits<'a>(stands: impl Iterator<Item = (&'a TopicPartition, &'a Stand)>) -> Vec<(TopicPartition, Commit)> {
    let due = stands.filter(|(_, stand)| stand.recorded > stand.committed);
    due.map(|(at, stand)| (at.clone(), Commit { offset: stand.recorded, metadata: String::new() })).collect()
}

/// Partitions, and the offset behind the last record of each.
pub(super) type Through = BTreeMap<TopicPartition, u64>;

/// Hears of the group's changes for one member.
pub(super) struct Shares {
    pub(super) progress: Arc<Progress>,
    pub(super) status: Arc<CriticalStatus>,
}

impl Assignment for Shares {
    fn assigned(&self, partitions: &[(TopicPartition, Option<Commit>)]) {
        let mut stands = self.progress.stands();
        for (partition, commit) in partitions {
            let offset = commit.as_ref().map_or(0, |commit| commit.offset);
            let stand = Stand { handled: offset, recorded: offset, committed: offset };
            stands.partitions.insert(partition.clone(), stand);
        }
        self.status.partitions.fetch_add(partitions.len() as u64, Ordering::Relaxed);
    }

    fn revoked(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, Commit)> {
        let unrecorded = |stands: &mut Stands| {
            let open = |stand: &Stand| stand.handled > stand.recorded;
            !stands.closed && partitions.iter().any(|it| stands.partitions.get(it).is_some_and(open))
        };
        let waited = self.progress.recorded.wait_timeout_while(self.progress.stands(), SETTLE_MAX, unrecorded);
        let (mut stands, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let given = partitions.iter().filter_map(|it| stands.partitions.remove_entry(it)).collect::<Vec<_>>();
        self.status.partitions.fetch_sub(given.len() as u64, Ordering::Relaxed);
        commits(given.iter().map(|(at, stand)| (at, stand)))
    }
}
