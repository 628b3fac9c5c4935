//! Values that keep their place: what timers, indexes and lists of dirty keys point at.
//!
//! A place is four bytes and stays valid while its value lives; a vacated place is filled again, so whoever may
//! hold one for longer asks whether the value is still the one that is meant. Values lie in chunks, so that
//! growing never moves what is there.

/// Values in one chunk: growing costs one chunk, not a copy of all.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 10;

/// Where a value lies.
pub(crate) type Place = u32;

/// No place: four billion values of one operator on one worker are more than its memory holds.
pub(crate) const NOWHERE: Place = Place::MAX;

pub(crate) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<Place>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: Vec::new() }
    }
}

const fn split(place: Place) -> (usize, usize) {
    ((place >> CHUNK_BITS) as usize, place as usize & (CHUNK - 1))
}

impl<T> Slab<T> {
    #[inline]
    pub(crate) fn get(&self, place: Place) -> Option<&T> {
        let (chunk, at) = split(place);
        self.chunks.get(chunk)?.get(at)?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        self.slot_mut(place)?.as_mut()
    }

    fn slot_mut(&mut self, place: Place) -> Option<&mut Option<T>> {
        let (chunk, at) = split(place);
        self.chunks.get_mut(chunk)?.get_mut(at)
    }

    pub(crate) fn insert(&mut self, value: T) -> Place {
        if let Some(place) = self.free.pop() {
            if let Some(slot) = self.slot_mut(place) {
                *slot = Some(value);
            }
            return place;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let chunks = self.chunks.len();
        let chunk = &mut self.chunks[chunks - 1];
        chunk.push(Some(value));
        ((chunks - 1) << CHUNK_BITS | (chunk.len() - 1)) as Place
    }

    pub(crate) fn remove(&mut self, place: Place) -> Option<T> {
        let value = self.slot_mut(place)?.take()?;
        self.free.push(place);
        Some(value)
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        let before_last = self.chunks.len().saturating_sub(1) * CHUNK;
        before_last + self.chunks.last().map_or(0, Vec::len) - self.free.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_stays_its_values_and_is_filled_again() {
        let mut slab = Slab::default();
        let places: Vec<_> = (0..3000).map(|number| slab.insert(number)).collect();
        assert_eq!(slab.get_mut(places[2000]), Some(&mut 2000));
        assert_eq!(slab.remove(places[2000]), Some(2000));
        assert_eq!((slab.get(places[2000]), slab.iter().count(), slab.len()), (None, 2999, 2999));
        assert_eq!(slab.remove(places[2000]), None);
        assert_eq!(slab.insert(7), places[2000]);
        assert_eq!(slab.get(places[2000]), Some(&7));
        assert_eq!(slab.get(places[1999]), Some(&1999));
        assert_eq!(slab.get(9999), None);
        assert_eq!(slab.get(NOWHERE), None);
    }
}
