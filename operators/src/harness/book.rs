//! A wave's book: where each item on its way stands in the epoch, and what set it in motion.
//!
//! An item takes a hop with every operator that it passes, and its ordinal is the list of them. Written out for each
//! item at each hop, ordinals were copied more often than items; so an item carries a number in the book, where each hop
//! names the one before it, and only who writes an ordinal down or compares two that are not on one way has its bytes.
//!
//! The book is also what a panic leaves behind: it knows whose call is under way.

use std::cmp::Ordering;

use super::aside::{Place, came_from};
use super::ordinal::{HOP_BYTES, Ordinal, hop_bytes};
use crate::keyed::Cause;

/// Hops that are written out at once: the longest chain of the operators there are has fewer.
const HOPS_AT_ONCE: usize = 12;

/// A place in an epoch, by its number in the book of the wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot(u32);

impl Spot {
    /// Before what set a wave in motion.
    const NONE: Self = Self(u32::MAX);
}

/// What set items in motion.
#[derive(Debug)]
struct Root {
    ordinal: Ordinal,
    cause: Cause,
}

/// One step on the way of an item; of a root, none.
#[derive(Clone, Copy, Debug)]
struct Hop {
    before: Spot,
    root: u32,
    bytes: [u8; HOP_BYTES],
}

/// The places of one wave.
#[derive(Debug, Default)]
pub(crate) struct Book {
    roots: Vec<Root>,
    hops: Vec<Hop>,
    /// The call under way: its place, and its operator's number.
    under_way: Option<(Spot, Option<usize>)>,
}

/// As many as a wave has: it would take a hundred gigabytes to have more.
fn bounded(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Book {
    /// A place that nothing led to but `cause`.
    pub(crate) fn root(&mut self, ordinal: Ordinal, cause: Cause) -> Spot {
        let root = bounded(self.roots.len());
        self.roots.push(Root { ordinal, cause });
        self.add(Hop { before: Spot::NONE, root, bytes: [0; HOP_BYTES] })
    }

    /// The place of emission `index` of operator `operator` on `port`, caused by `before`.
    #[inline]
    pub(crate) fn hop(&mut self, before: Spot, operator: usize, port: u8, index: usize) -> Spot {
        self.add(Hop { before, root: self.at(before).root, bytes: hop_bytes(operator, port, index) })
    }

    #[inline]
    fn add(&mut self, hop: Hop) -> Spot {
        self.hops.push(hop);
        Spot(bounded(self.hops.len() - 1))
    }

    fn at(&self, spot: Spot) -> &Hop {
        &self.hops[spot.0 as usize]
    }

    fn root_of(&self, spot: Spot) -> &Root {
        &self.roots[self.at(spot).root as usize]
    }

    /// What set in motion what stands there.
    pub(crate) fn cause(&self, spot: Spot) -> &Cause {
        &self.root_of(spot).cause
    }

    /// The place written out.
    pub(crate) fn ordinal(&self, spot: Spot) -> Ordinal {
        // From the last hop to the first, as each names the one before it; the first of a very long way by themselves.
        let mut bytes = [0; HOPS_AT_ONCE * HOP_BYTES];
        let (mut start, mut at) = (bytes.len(), spot);
        while self.at(at).before != Spot::NONE && start > 0 {
            let hop = self.at(at);
            bytes[start - HOP_BYTES..start].copy_from_slice(&hop.bytes);
            (start, at) = (start - HOP_BYTES, hop.before);
        }
        let before = self.at(at).before;
        let beginning = if before == Spot::NONE { self.root_of(at).ordinal.clone() } else { self.ordinal(at) };
        beginning.followed_by(&bytes[start..])
    }

    /// Compares two places as their ordinals compare.
    pub(crate) fn cmp(&self, one: Spot, two: Spot) -> Ordering {
        let of_roots = [one, two].map(|spot| self.root_of(spot).ordinal.bytes());
        let both = of_roots[0].len().min(of_roots[1].len());
        // Records' roots are of one length: they decide, unless they are the same.
        of_roots[0][..both].cmp(&of_roots[1][..both]).then_with(|| self.ordinal(one).cmp(&self.ordinal(two)))
    }

    /// Compares two calls in the order of the day: a call's rows stand before everything that it sets in motion.
    pub(crate) fn cmp_calls(&self, one: &Speaker, two: &Speaker) -> Ordering {
        // Nearly always the second call is for what the first one handed on.
        if let Some(hop) = self.hop_from(one.spot, two.spot) {
            return one.behind(&[]).cmp(&one.behind(&hop.bytes));
        }
        let ordinals = [one, two].map(|speaker| self.ordinal(speaker.spot));
        let [first, second] = ordinals.each_ref().map(|ordinal| ordinal.bytes());
        let both = first.len().min(second.len());
        first[..both].cmp(&second[..both]).then_with(|| one.behind(&first[both..]).cmp(&two.behind(&second[both..])))
    }

    /// The first hop on the way from one place to another, if one leads to the other.
    fn hop_from(&self, one: Spot, two: Spot) -> Option<&Hop> {
        let mut hop = self.at(two);
        // Who comes later has the higher number.
        while hop.before != Spot::NONE && hop.before > one {
            hop = self.at(hop.before);
        }
        (hop.before == one).then_some(hop)
    }

    /// A call of the operator with this number is made there; none is the chain's end.
    #[inline]
    pub(crate) const fn enter(&mut self, spot: Spot, operator: Option<usize>) {
        self.under_way = Some((spot, operator));
    }

    /// It came back.
    #[inline]
    pub(crate) const fn leave(&mut self) {
        self.under_way = None;
    }

    /// The wave is over.
    pub(crate) fn clear(&mut self) {
        self.roots.clear();
        self.hops.clear();
    }
}

/// A call that did not come back panicked.
impl Drop for Book {
    fn drop(&mut self) {
        if let Some((spot, operator)) = self.under_way {
            came_from(Place { ordinal: self.ordinal(spot), operator });
        }
    }
}

/// A place in the epoch, and the operator that speaks there; none at the chain's end.
#[derive(Debug)]
pub(crate) struct Speaker {
    pub(crate) spot: Spot,
    pub(crate) operator: Option<u16>,
}

impl Speaker {
    /// What its rows are put in order by, beside another's whose ordinal has `rest` less: the next hop's operator and
    /// port. The operator's own hop has port 0, the chain's end has none.
    fn behind(&self, rest: &[u8]) -> (usize, [u8; 3]) {
        match (rest, self.operator) {
            ([one, two, port, ..], _) => (3, [*one, *two, *port]),
            (_, Some(number)) => (3, [(number >> 8) as u8, number as u8, 0]),
            (_, None) => (0, [0; 3]),
        }
    }
}

#[cfg(test)]
mod tests {
    use tidings_schemas::time::Instant;

    use super::super::feed::Lot;
    use super::*;
    use crate::keyed::{Subkey, TimerId};

    /// Places of all kinds, and on each the calls of several operators; with their ordinals, written out at each hop.
    fn wave() -> (Book, Vec<(Speaker, Ordinal)>) {
        let mut book = Book::default();
        let timer = |subkey: &[&str]| Ordinal::timer(Instant(5), "u", &Subkey::of(subkey), TimerId(0));
        let record = |offset| Ordinal::record(Lot { source: 1, partition: 0 }, offset);
        // The second timer's beginning is all of the first.
        let roots = [Ordinal::default(), timer(&[]), timer(&["", "a"]), record(1), record(2), Ordinal::profile("u")];
        let mut spots: Vec<_> = roots.map(|root| (book.root(root.clone(), Cause::Timer), root)).into();
        for number in 0..60 {
            let (before, ordinal) = spots[number * 7 % spots.len()].clone();
            let (operator, port, index) = (number % 3, (number % 2) as u8, number % 4 / 2);
            spots.push((book.hop(before, operator, port, index), ordinal.hop(operator, port, index)));
        }
        // A way that is longer than what is written out at once.
        for _ in 0..2 * HOPS_AT_ONCE {
            let (before, ordinal) = spots[spots.len() - 1].clone();
            spots.push((book.hop(before, 1, 1, 0), ordinal.hop(1, 1, 0)));
        }
        let calls = spots.into_iter().flat_map(|(spot, ordinal)| {
            [None, Some(0), Some(1), Some(300)].map(|operator| (Speaker { spot, operator }, ordinal.clone()))
        });
        (book, calls.collect())
    }

    #[test]
    fn places_and_calls_compare_as_their_ordinals_do() {
        let (book, calls) = wave();
        for (one, first) in &calls {
            assert_eq!(book.ordinal(one.spot), *first);
            for (two, second) in &calls {
                assert_eq!(book.cmp(one.spot, two.spot), first.cmp(second), "{first} {second}");
                // What both begin with decides nothing; behind it the next hop does, or the operator that speaks.
                let both = first.bytes().len().min(second.bytes().len());
                let [(before, rest), (other, others)] = [first, second].map(|it| it.bytes().split_at(both));
                let expected = before.cmp(other).then_with(|| one.behind(rest).cmp(&two.behind(others)));
                assert_eq!(
                    book.cmp_calls(one, two),
                    expected,
                    "{first} {:?} {second} {:?}",
                    one.operator,
                    two.operator
                );
            }
        }
    }
}
