//! State of operators that a topology no longer has, dropped by an operator's explicit word.
//!
//! What was parked in it is said `lost`, in the first epoch upon the restored state: so it is part of
//! that epoch's outputs like any decision, and a replay says it again. The same epoch's delta takes the
//! images out, so that the next checkpoint holds them no longer. Counters and memories of repeats go
//! without a word: they are no units.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidings_schemas::ids::placement;
use tidings_schemas::lifecycle::{State as Did, Unit};
use tidings_schemas::reason::Reason;

use super::delta::Delta;
use super::drafts::Drafts;
use super::ordinal::Ordinal;
use super::table::{Image, StateKey, decode};
use crate::item::Item;
use crate::keyed::{About, Cause};

/// Of which operators state may be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MayDrop {
    /// These.
    Named(BTreeSet<String>),
    /// All that the chain does not have: it was dropped before, and this is the replay.
    Again,
}

impl Default for MayDrop {
    fn default() -> Self {
        Self::Named(BTreeSet::new())
    }
}

impl MayDrop {
    pub(crate) fn allows(&self, operator: &str) -> bool {
        match self {
            Self::Named(named) => named.contains(operator),
            Self::Again => true,
        }
    }
}

/// What was dropped at a restore, until the first epoch says so.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    keys: BTreeSet<(Arc<str>, StateKey)>,
    parked: Vec<(Arc<str>, Item)>,
}

/// How much of one operator's state was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCount {
    /// Entries, parked work among them.
    pub entries: usize,
    /// Parked events and legs.
    pub parked: usize,
}

impl Dropped {
    /// Takes an image that belongs to nobody; what an operator parks is an item.
    pub(crate) fn take(&mut self, operator: &Arc<str>, key: &StateKey, image: &Image) -> Result<(), String> {
        let body = image.body.as_ref().and_then(Option::as_ref).filter(|(_, bytes)| !bytes.is_empty());
        if let Some((version, bytes)) = body
            && let Some(item) = decode::<Option<Box<Item>>>(*version, bytes)?
        {
            self.parked.push((Arc::clone(operator), *item));
        }
        self.keys.insert((Arc::clone(operator), key.clone()));
        Ok(())
    }

    pub(crate) fn count(&self) -> BTreeMap<Arc<str>, DropCount> {
        let mut counts: BTreeMap<Arc<str>, DropCount> = BTreeMap::new();
        self.keys.iter().for_each(|(operator, _)| counts.entry(Arc::clone(operator)).or_default().entries += 1);
        self.parked.iter().for_each(|(operator, _)| counts.entry(Arc::clone(operator)).or_default().parked += 1);
        counts
    }

    /// Says what was parked, before everything else of the epoch; what takes the images out of the state.
    pub(crate) fn say(self, drafts: &mut Drafts) -> Delta {
        if self.keys.is_empty() {
            return Delta::new();
        }
        let cause = Cause::Words("the topology has this operator no longer".to_owned());
        let spot = drafts.book.root(Ordinal::default(), cause);
        let reason = Some(Reason::AcceptedLoss);
        for (operator, item) in &self.parked {
            let call = drafts.call(spot, None, operator, placement(&item.user));
            // Whether the event of a leg was told on another one is not known here: the leg ends as
            // suppressed, and the event's fate follows from its legs.
            if item.leg.is_some() {
                let did = [Did::Lost, Did::Suppressed];
                drafts.add(call, Unit::Leg, &About::leg(item), &did, reason, None, None);
                continue;
            }
            for member in &item.members {
                let about = About::member(item, member);
                drafts.add(call, Unit::Event, &about, &[Did::Lost], reason, None, None);
            }
        }
        drafts.settle();
        let gone = Image { body: Some(None), ..Image::default() };
        self.keys.into_iter().map(|key| (key, gone.clone())).collect()
    }
}
