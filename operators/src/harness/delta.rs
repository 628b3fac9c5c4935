//! What state changed: the newest image of each key that was touched.
//!
//! A delta is a list in key order, because it is made in that order, read in that order, and put upon
//! another by walking both. [`Pending`] gathers the deltas between two checkpoints.

use std::sync::Arc;

use super::table::{Image, StateKey};

/// The operator's id, and the key within its state.
pub type Key = (Arc<str>, StateKey);

/// Images in key order, each key once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta(Vec<(Key, Image)>);

impl Delta {
    /// Nothing changed.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Images that are in key order already, each key once.
    #[must_use]
    pub fn in_order(images: Vec<(Key, Image)>) -> Self {
        debug_assert!(images.windows(2).all(|two| two[0].0 < two[1].0), "images out of order");
        Self(images)
    }

    /// Images in the order in which they came to be: of one key, the newer lies upon the older.
    fn settled(mut images: Vec<(Key, Image)>) -> Self {
        // Stable, and linear where there are only a few lists, each in order.
        images.sort_by(|(one, _), (two, _)| one.cmp(two));
        if images.windows(2).all(|two| two[0].0 != two[1].0) {
            return Self(images);
        }
        let mut settled: Vec<(Key, Image)> = Vec::with_capacity(images.len());
        for (key, image) in images {
            match settled.last_mut().filter(|(last, _)| *last == key) {
                Some((_, older)) => *older = image.upon(Some(std::mem::take(older))),
                None => settled.push((key, image)),
            }
        }
        Self(settled)
    }

    /// Adds what another worker changed: none of its keys is here.
    pub fn join(&mut self, mut other: Self) {
        if self.0.is_empty() {
            return *self = other;
        }
        self.0.append(&mut other.0);
        *self = Self::settled(std::mem::take(&mut self.0));
    }

    /// Keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }

    /// The images in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Image)> {
        self.0.iter().map(|(key, image)| (key, image))
    }

    /// Keeps only keys and images that `keeps` says.
    pub fn retain(&mut self, mut keeps: impl FnMut(&Key, &Image) -> bool) {
        self.0.retain(|(key, image)| keeps(key, image));
    }
}

impl FromIterator<(Key, Image)> for Delta {
    fn from_iter<I: IntoIterator<Item = (Key, Image)>>(images: I) -> Self {
        Self::settled(images.into_iter().collect())
    }
}

impl<const COUNT: usize> From<[(Key, Image); COUNT]> for Delta {
    fn from(images: [(Key, Image); COUNT]) -> Self {
        images.into_iter().collect()
    }
}

/// Deltas of epochs one after the other, which are to become one.
#[derive(Debug, Default)]
pub struct Pending {
    settled: Delta,
    recent: Vec<Delta>,
}

impl Pending {
    /// Adds the next one. They are put upon each other when as many images have come as there are:
    /// so each is moved a few times at most, and memory holds at most twice what is needed.
    pub fn add(&mut self, newer: Delta) {
        if newer.is_empty() {
            return;
        }
        self.recent.push(newer);
        if self.recent.iter().map(Delta::len).sum::<usize>() > self.settled.len().max(1 << 16) {
            self.settle();
        }
    }

    fn settle(&mut self) {
        if self.recent.is_empty() {
            return;
        }
        let mut images = std::mem::take(&mut self.settled.0);
        images.reserve_exact(self.recent.iter().map(Delta::len).sum());
        self.recent.iter_mut().for_each(|newer| images.append(&mut newer.0));
        self.recent.clear();
        self.settled = Delta::settled(images);
    }

    /// All of them as one.
    pub fn delta(&mut self) -> &Delta {
        self.settle();
        &self.settled
    }

    /// All of them as one, by value.
    #[must_use]
    pub fn into_delta(mut self) -> Delta {
        self.settle();
        self.settled
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::HeadBytes;
    use super::*;
    use tidings_schemas::ids::KeyGroup;

    fn of(images: &[(&str, Option<u8>, Option<u8>)]) -> Delta {
        let key = |user: &str| (Arc::from("o"), StateKey { group: KeyGroup(0), user: user.into(), subkey: None });
        let image = |head: &Option<u8>, body: &Option<u8>| Image {
            head: head.map(|byte| (1, HeadBytes::from_slice(&[byte]))),
            body: body.map(|byte| Some((1, vec![byte]))),
            ..Image::default()
        };
        images.iter().map(|(user, head, body)| (key(user), image(head, body))).collect()
    }

    #[test]
    fn a_newer_image_lies_upon_the_older_and_a_body_that_was_not_set_stays() {
        let mut pending = Pending::default();
        pending.add(of(&[("b", Some(1), Some(1)), ("a", Some(1), None)]));
        pending.add(of(&[("b", Some(2), None), ("c", None, Some(2))]));
        pending.add(of(&[("c", Some(3), None)]));
        let merged = of(&[("a", Some(1), None), ("b", Some(2), Some(1)), ("c", Some(3), Some(2))]);
        assert_eq!(pending.delta(), &merged);
        pending.add(of(&[("a", None, None)]));
        let merged = of(&[("a", None, None), ("b", Some(2), Some(1)), ("c", Some(3), Some(2))]);
        assert_eq!(pending.into_delta(), merged);
    }
}
