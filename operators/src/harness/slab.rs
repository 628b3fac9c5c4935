//! Values that keep their place: what timers, indexes and lists of dirty keys point at.
//!
//! A place is four bytes and stays valid while its value lives; a vacated place is filled again. Values
//! lie in chunks, so that growing never moves what is there. Whoever must know whether the value
//! is still the one it once pointed at keeps the generation too ([`Tag`]).

/// Values in one chunk: growing costs one chunk, not a copy of all.
const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 10;

/// Where a value lies.
pub(crate) type Place = u32;

/// A place, and which of the values that lay there one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tag {
    pub(crate) place: Place,
    generation: u32,
}

impl Tag {
    /// What lies in a place that is not filled again while anybody asks for it.
    pub(crate) const fn only(place: Place) -> Self {
        Self { place, generation: 0 }
    }
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

pub(crate) struct Slab<T> {
    chunks: Vec<Vec<Slot<T>>>,
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
    fn slot(&self, place: Place) -> Option<&Slot<T>> {
        let (chunk, at) = split(place);
        self.chunks.get(chunk)?.get(at)
    }

    fn slot_mut(&mut self, place: Place) -> Option<&mut Slot<T>> {
        let (chunk, at) = split(place);
        self.chunks.get_mut(chunk)?.get_mut(at)
    }

    pub(crate) fn get(&self, place: Place) -> Option<&T> {
        self.slot(place)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        self.slot_mut(place)?.value.as_mut()
    }

    pub(crate) fn insert(&mut self, value: T) -> Place {
        if let Some(place) = self.free.pop() {
            if let Some(slot) = self.slot_mut(place) {
                slot.value = Some(value);
            }
            return place;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let chunks = self.chunks.len();
        let chunk = &mut self.chunks[chunks - 1];
        chunk.push(Slot { generation: 0, value: Some(value) });
        // Four billion values of one operator on one worker are more than its memory holds.
        ((chunks - 1) << CHUNK_BITS | (chunk.len() - 1)) as Place
    }

    pub(crate) fn remove(&mut self, place: Place) -> Option<T> {
        let slot = self.slot_mut(place)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(place);
        Some(value)
    }

    pub(crate) fn tag(&self, place: Place) -> Tag {
        Tag { place, generation: self.slot(place).map_or(0, |slot| slot.generation) }
    }

    /// The value at `tag`, if it is still the same.
    pub(crate) fn tagged_mut(&mut self, tag: Tag) -> Option<&mut T> {
        self.slot_mut(tag.place).filter(|slot| slot.generation == tag.generation)?.value.as_mut()
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        let before_last = self.chunks.len().saturating_sub(1) * CHUNK;
        before_last + self.chunks.last().map_or(0, Vec::len) - self.free.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten().filter_map(|slot| slot.value.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_was_filled_again_is_not_what_its_old_tag_names() {
        let mut slab = Slab::default();
        let places: Vec<_> = (0..3000).map(|number| slab.insert(number)).collect();
        let tag = slab.tag(places[2000]);
        assert_eq!(slab.tagged_mut(tag), Some(&mut 2000));
        assert_eq!(slab.remove(places[2000]), Some(2000));
        assert_eq!((slab.get(places[2000]), slab.iter().count()), (None, 2999));
        assert_eq!(slab.insert(7), places[2000]);
        assert_eq!(slab.tagged_mut(tag), None);
        assert_eq!(slab.get(places[2000]), Some(&7));
        assert_eq!(slab.get(9999), None);
    }
}
