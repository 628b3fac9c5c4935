//! Side inputs on one worker: what is known of each user at the end of the epoch under way.
//!
//! Checkpointed state like any other. It advances only at the start of an epoch, through what the
//! cut admitted, so no operator ever sees two epochs of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashTable;
use tidings_schemas::ids::key_group;
use tidings_schemas::profile::{Address, Profile};

use super::delta::put_image;
use super::table::{HeadBytes, Image, StateKey, UserKey};
use crate::keyed::{Known, newer_version};

/// The operator id under which side inputs stand in checkpoints. No operator can have it: ids of the
/// topology are words.
pub const PROFILES: &str = "~profiles";

const VERSION: u8 = 1;

/// What is known of every user of this worker who is not all defaults.
#[derive(Default)]
pub(crate) struct Profiles {
    users: HashTable<OfUser>,
    /// What this epoch changed: the user, and what was known before.
    changed: BTreeMap<Arc<str>, Known>,
    /// What is known of everybody else.
    defaults: Known,
}

/// What is known of one user.
struct OfUser {
    name: Arc<str>,
    placement: u64,
    known: Known,
}

impl OfUser {
    fn hash(&self) -> u64 {
        UserKey::hash(self.placement)
    }

    fn is(&self, user: UserKey<'_>) -> bool {
        self.placement == user.placement && self.name == *user.name
    }
}

impl Profiles {
    pub(crate) fn get(&self, user: UserKey<'_>) -> &Known {
        self.find(user).unwrap_or(&self.defaults)
    }

    fn find(&self, user: UserKey<'_>) -> Option<&Known> {
        self.users.find(UserKey::hash(user.placement), |other| other.is(user)).map(|found| &found.known)
    }

    fn find_or_insert(&mut self, user: UserKey<'_>) -> &mut Known {
        let hash = UserKey::hash(user.placement);
        let entry = self.users.entry(hash, |other| other.is(user), OfUser::hash);
        let absent = || OfUser { name: Arc::clone(user.name), placement: user.placement, known: Known::default() };
        &mut entry.or_insert_with(absent).into_mut().known
    }

    pub(crate) fn set_profile(&mut self, user: &Arc<str>, profile: Profile) {
        let known = self.touch(user);
        known.profile = Arc::new(profile);
    }

    pub(crate) fn set_address(&mut self, user: &Arc<str>, address_id: &str, address: Option<&Address>) {
        let known = self.touch(user);
        Arc::make_mut(&mut known.reachability).apply(address_id, address);
    }

    /// Nothing is known but this, of one user.
    pub(crate) fn only(user: &Arc<str>, known: Known) -> Self {
        let mut profiles = Self::default();
        *profiles.find_or_insert(UserKey::of(user)) = known;
        profiles
    }

    fn touch(&mut self, user: &Arc<str>) -> &mut Known {
        let of_user = UserKey::of(user);
        if !self.changed.contains_key(user) {
            let before = self.get(of_user).clone();
            self.changed.insert(Arc::clone(user), before);
        }
        self.find_or_insert(of_user)
    }

    /// Users whose knowledge is not what it was, with what it was, in order.
    pub(crate) fn changed(&self) -> Vec<(Arc<str>, Known)> {
        let differs = |(user, old): &(&Arc<str>, &Known)| self.find(UserKey::of(user)) != Some(*old);
        self.changed.iter().filter(differs).map(|(user, old)| (Arc::clone(user), old.clone())).collect()
    }

    /// Images of whom this epoch changed, and how many.
    pub(crate) fn drain_dirty(&mut self) -> (usize, Bytes) {
        let (mut page, changed) = (Vec::new(), std::mem::take(&mut self.changed));
        for user in changed.keys() {
            let of_user = UserKey::of(user);
            let known = self.find(of_user).filter(|known| **known != Known::default());
            let head = known.map(|known| postcard::to_stdvec(&(&*known.profile, &*known.reachability)));
            if head.is_none()
                && let Ok(found) = self.users.find_entry(UserKey::hash(of_user.placement), |other| other.is(of_user))
            {
                found.remove();
            }
            let head = head.map(|head| (VERSION, HeadBytes::from_slice(&head.unwrap_or_default())));
            let key = StateKey { group: key_group(of_user.placement), user: Arc::clone(user), subkey: None };
            put_image(&mut page, &key, &Image { head, body: Some(None), ..Image::default() });
        }
        (changed.len(), page.into())
    }

    pub(crate) fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String> {
        let Some((version, bytes)) = &image.head else { return Ok(()) };
        if *version != VERSION {
            return Err(newer_version(*version, VERSION));
        }
        let (profile, reachability) =
            postcard::from_bytes(bytes).map_err(|error| format!("a profile's bytes do not fit: {error}"))?;
        let (profile, reachability) = (Arc::new(profile), Arc::new(reachability));
        let known = Known { profile, reachability, ..Known::default() };
        *self.find_or_insert(UserKey::of(&key.user)) = known;
        Ok(())
    }
}
