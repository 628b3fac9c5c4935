//! From hashes to places, in slots of five bytes: the place, and seven bits of the hash. So who grows it says the
//! hash of each.

use hashbrown::HashTable;

use super::slab::Place;

/// Sub-tables: growing one moves about a 256th of all places, and stalls for as long.
const SUB_TABLES: usize = 256;

pub(crate) struct Index(Vec<HashTable<Place>>);

impl Default for Index {
    fn default() -> Self {
        Self((0..SUB_TABLES).map(|_| HashTable::new()).collect())
    }
}

impl Index {
    /// Which sub-table: by other bits than those that it uses itself. The last has twice the share of the first, and
    /// those between them lie between: so they double one after the other, not all in the same epoch,
    /// and what they keep free is at any time about the same.
    const fn sub(hash: u64) -> usize {
        let share = hash >> 32 & 0xffff;
        ((share * ((4 << 16) - share) / 3) >> 24) as usize
    }

    pub(crate) fn find(&self, hash: u64, is: impl Fn(Place) -> bool) -> Option<Place> {
        self.0[Self::sub(hash)].find(hash, |place| is(*place)).copied()
    }

    pub(crate) fn insert(&mut self, hash: u64, place: Place, hash_of: impl Fn(Place) -> u64) {
        self.0[Self::sub(hash)].insert_unique(hash, place, |place| hash_of(*place));
    }

    pub(crate) fn remove(&mut self, hash: u64, place: Place) {
        if let Ok(found) = self.0[Self::sub(hash)].find_entry(hash, |other| *other == place) {
            found.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_tables_have_unequal_shares_of_all_places() {
        let mut shares = [0_u32; SUB_TABLES];
        (0..1 << 16).for_each(|share| shares[Index::sub(share << 32)] += 1);
        let (first, last) = (shares[0], shares[SUB_TABLES - 1]);
        assert!(shares.iter().all(|share| (first - 1..=last + 1).contains(share)), "{shares:?}");
        assert!((2 * first).abs_diff(last) < 8, "{first} and {last}");
    }
}
