//! What the path knows of users, and who reads it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tidings_operators::harness::feed::Lot;
use tidings_operators::ingest::{Body, Path, Source, SourceKind, ingest};
use tidings_operators::item::Item;
use tidings_operators::keyed::Known;
use tidings_operators::rules::Rules;
use tidings_schemas::channel::ChannelSet;
use tidings_schemas::ids::{KEY_GROUPS, key_group, placement};
use tidings_sinks::log::{Log, LogError, TopicPartition};

use super::{CriticalStatus, Pause, WAIT};
use crate::runtime::feeds::raw;

/// Records that a follower takes in at once.
const FOLLOWED_MAX: usize = 1_024;

/// What was read of profiles and addresses so far. A lock per key group, held for one look or one
/// insertion, so that loading millions of profiles holds up nobody.
pub(super) struct View {
    users: Vec<RwLock<BTreeMap<Arc<str>, Known>>>,
    status: Arc<CriticalStatus>,
}

impl View {
    pub(super) fn new(status: Arc<CriticalStatus>) -> Self {
        Self { users: (0..KEY_GROUPS).map(|_| RwLock::default()).collect(), status }
    }

    fn group(&self, user: &str) -> &RwLock<BTreeMap<Arc<str>, Known>> {
        &self.users[usize::from(key_group(placement(user)).0)]
    }

    /// Partitions of this kind of side input that are not read to their high watermark yet.
    pub(super) fn behind(&self, kind: SourceKind) -> &AtomicU64 {
        match kind {
            SourceKind::Profiles => &self.status.profiles_behind,
            _ => &self.status.addresses_behind,
        }
    }

    /// What `item` is decided upon.
    pub(super) fn known(&self, item: &Item) -> Known {
        let users = self.group(&item.user).read().unwrap_or_else(PoisonError::into_inner);
        let mut known = users.get(&item.user).cloned().unwrap_or_default();
        drop(users);
        let behind = self.status.addresses_behind.load(Ordering::Relaxed) > 0;
        known.assumed = if behind || known.reachability.is_empty() {
            ChannelSet::ALL
        } else {
            item.channels.iter().copied().collect()
        };
        known
    }

    fn change(&self, user: &Arc<str>, change: impl FnOnce(&mut Known)) {
        let mut users = self.group(user).write().unwrap_or_else(PoisonError::into_inner);
        let known = users.entry(Arc::clone(user)).or_default();
        change(known);
        if *known == Known::default() {
            users.remove(user);
        }
    }

    fn take_in(&self, body: Body) {
        match body {
            Body::Profile { user, profile } => self.change(&user, |known| known.profile = (*profile).into()),
            Body::Address { user, address_id, address } => self.change(&user, |known| {
                Arc::make_mut(&mut known.reachability).apply(&address_id, address.as_deref());
            }),
            // Decide reads the same record, and says so.
            Body::Rejected(_) | Body::Item(_) => {}
        }
    }
}

/// Reads one partition of profiles or addresses into the view, from the oldest record on.
pub(super) struct Follower {
    pub(super) log: Arc<dyn Log>,
    pub(super) at: TopicPartition,
    pub(super) source: Source,
    pub(super) lot: Lot,
    pub(super) rules: Arc<Rules>,
    pub(super) view: Arc<View>,
    pub(super) ended: Arc<AtomicBool>,
}

impl Follower {
    pub(super) fn run(self) {
        let mut pause = Pause::new();
        let mut behind = true;
        while !self.ended.load(Ordering::Relaxed) {
            if let Err(error) = self.follow(&mut pause, &mut behind) {
                // A compacted topic can be read again from its oldest record whatever happened.
                tracing::warn!(partition = %self.at, %error, "cannot follow; nobody waits for it, trying again");
                pause.wait();
            }
        }
    }

    fn follow(&self, pause: &mut Pause, behind: &mut bool) -> Result<(), LogError> {
        let range = self.log.range(&self.at)?;
        let mut reader = self.log.reader(&self.at, range.start)?;
        let mut position = range.start;
        while !self.ended.load(Ordering::Relaxed) {
            if *behind && position >= range.end {
                *behind = false;
                self.view.behind(self.source.kind).fetch_sub(1, Ordering::Relaxed);
            }
            let batch = match reader.poll(FOLLOWED_MAX, WAIT) {
                Ok(batch) => batch,
                Err(error) if error.is_transient() => {
                    pause.wait();
                    continue;
                }
                Err(error) => return Err(error),
            };
            *pause = Pause::new();
            position = batch.position;
            for record in batch.records {
                let arrived = ingest(&self.source, self.lot, &raw(record), &self.rules, Path::Critical);
                self.view.take_in(arrived.body);
            }
        }
        Ok(())
    }
}
