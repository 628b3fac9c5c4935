//! Sorts what a hash spreads evenly: dealt into buckets by the hash's first bits, and each bucket sorted
//! by itself. Costs a few instructions an element, whatever their number, where a sort of all of them
//! compares each with sixteen others.

use std::cmp::Ordering;

use tidings_schemas::ids::KEY_GROUPS;

/// As many as key groups: what is sorted by group has a group in each.
pub(crate) const BUCKETS: usize = KEY_GROUPS as usize;

/// Fewer than this are sorted as they are: there would be more buckets than elements.
const FEW: usize = BUCKETS / 4;

/// Room for one sort after the other.
#[derive(Debug)]
pub(crate) struct Spread<T> {
    dealt: Vec<T>,
    ends: Vec<u32>,
}

impl<T> Default for Spread<T> {
    fn default() -> Self {
        Self { dealt: Vec::new(), ends: Vec::new() }
    }
}

impl<T: Copy> Spread<T> {
    /// Sorts `items` by bucket (smaller than [`BUCKETS`]), within one by `compare`: which must agree with the
    /// buckets, and find no two alike.
    pub(crate) fn sort(
        &mut self,
        items: &mut Vec<T>,
        bucket: impl Fn(&T) -> usize,
        mut compare: impl FnMut(&T, &T) -> Ordering,
    ) {
        if items.len() < FEW {
            return items.sort_unstable_by(compare);
        }
        self.ends.clear();
        self.ends.resize(BUCKETS, 0);
        items.iter().for_each(|item| self.ends[bucket(item)] += 1);
        let mut end = 0;
        for count in &mut self.ends {
            end += *count;
            // Where the bucket begins, until it is filled.
            *count = end - *count;
        }
        self.dealt.clone_from(items);
        for item in items.iter() {
            let place = &mut self.ends[bucket(item)];
            self.dealt[*place as usize] = *item;
            *place += 1;
        }
        std::mem::swap(items, &mut self.dealt);
        let mut start = 0;
        for end in &self.ends {
            let end = *end as usize;
            if end - start > 1 {
                items[start..end].sort_unstable_by(&mut compare);
            }
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_change_nothing_about_the_order() {
        for count in [0, 1, FEW - 1, FEW, 10_000] {
            let mut items: Vec<u64> =
                (0..count as u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            let mut sorted = items.clone();
            sorted.sort_unstable();
            Spread::default().sort(&mut items, |item| (item >> 54) as usize, u64::cmp);
            assert_eq!(items, sorted, "{count}");
        }
    }
}
