//! Side inputs on one worker: what is known of each user at the end of the epoch under way.
//!
//! Checkpointed state like any other. It advances only at the start of an epoch, through what the
//! cut admitted, so no operator ever sees two epochs of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use tidings_schemas::ids::{key_group, placement};
use tidings_schemas::profile::{Address, Profile};

use super::table::{Image, StateKey};
use crate::keyed::Known;

/// The operator id under which side inputs stand in checkpoints. No operator can have it: ids of the
/// topology are words.
pub const PROFILES: &str = "~profiles";

const VERSION: u8 = 1;

/// What is known of every user of this worker who is not all defaults.
#[derive(Default)]
pub(crate) struct Profiles {
    users: HashMap<Arc<str>, Known>,
    /// What this epoch changed: the user, and what was known before.
    changed: BTreeMap<Arc<str>, Known>,
    /// What is known of everybody else.
    defaults: Known,
}

impl Profiles {
    pub(crate) fn get(&self, user: &str) -> &Known {
        self.users.get(user).unwrap_or(&self.defaults)
    }

    pub(crate) fn set_profile(&mut self, user: &Arc<str>, profile: Profile) {
        let known = self.touch(user);
        known.profile = Arc::new(profile);
    }

    pub(crate) fn set_address(&mut self, user: &Arc<str>, address_id: &str, address: Option<&Address>) {
        let known = self.touch(user);
        Arc::make_mut(&mut known.reachability).apply(address_id, address);
    }

    fn touch(&mut self, user: &Arc<str>) -> &mut Known {
        let known = self.users.entry(Arc::clone(user)).or_default();
        self.changed.entry(Arc::clone(user)).or_insert_with(|| known.clone());
        known
    }

    /// Users whose knowledge is not what it was, with what it was, in order.
    pub(crate) fn changed(&self) -> Vec<(Arc<str>, Known)> {
        let differs = |(user, old): &(&Arc<str>, &Known)| self.users.get(*user) != Some(*old);
        self.changed.iter().filter(differs).map(|(user, old)| (Arc::clone(user), old.clone())).collect()
    }

    pub(crate) fn drain_dirty(&mut self, mut image: impl FnMut(StateKey, Image)) {
        for (user, _) in std::mem::take(&mut self.changed) {
            let known = self.users.get(&user).filter(|known| **known != Known::default());
            let head = known.map(|known| {
                let parts = (&*known.profile, &*known.reachability);
                (VERSION, postcard::to_stdvec(&parts).unwrap_or_default())
            });
            if head.is_none() {
                self.users.remove(&user);
            }
            let group = key_group(placement(&user));
            image(StateKey { group, user, subkey: None }, Image { head, body: Some(None), timers: Vec::new() });
        }
    }

    pub(crate) fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String> {
        let Some((version, bytes)) = &image.head else { return Ok(()) };
        if *version != VERSION {
            return Err(format!("a profile of version {version}, this build reads version {VERSION} only"));
        }
        let (profile, reachability) =
            postcard::from_bytes(bytes).map_err(|error| format!("a profile's bytes do not fit: {error}"))?;
        let known = Known { profile: Arc::new(profile), reachability: Arc::new(reachability) };
        self.users.insert(Arc::clone(&key.user), known);
        Ok(())
    }
}
