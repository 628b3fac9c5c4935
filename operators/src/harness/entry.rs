//! An entry of a table in its two forms: *awake*, as operators see it, in an epoch that touches it; and *asleep*, as
//! the bytes of its image, at all other times. A table holds a million that sleep for a few thousand that are awake.
//!
//! An entry sleeps as its image has it from the subkey on: subkey, head, body, timers. Behind that stands by how much
//! each timer was moved since it was put into a list.

use super::delta::{Rest, put_number};
use super::shelves::Spot;
use super::slab::Place;
use super::timers::{OfEntry, Timer};
use crate::keyed::{Operator, Subkey, TimerId};

/// An entry that this epoch touched.
pub(crate) struct Awake<O: Operator> {
    pub(crate) place: Place,
    /// Of its user.
    pub(crate) placement: u64,
    /// Where it slept, if it did: the body that was not touched still lies there.
    pub(crate) slept: Option<Spot>,
    pub(crate) subkey: Subkey,
    pub(crate) timers: OfEntry,
    pub(crate) head: Option<O::Entry>,
    pub(crate) body: Held<O::Body>,
}

/// The body of an entry that is awake.
pub(crate) enum Held<B> {
    /// Not touched, and whether there is one.
    Untouched(bool),
    /// Set or taken out.
    Set(Option<B>),
}

impl<O: Operator> Awake<O> {
    pub(crate) fn is_gone(&self) -> bool {
        let empty = matches!(self.body, Held::Untouched(false) | Held::Set(None));
        empty && self.head.is_none() && self.timers.as_slice().is_empty()
    }

    pub(crate) fn timer_mut(&mut self, id: TimerId) -> Option<&mut Timer> {
        self.timers.as_mut_slice().iter_mut().find(|timer| timer.id == id)
    }
}

/// The body of an entry that sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked<'a> {
    Nothing,
    /// It is too large to sleep, and lies elsewhere.
    Elsewhere,
    Bytes(&'a [u8]),
}

/// Stands for the body of an entry that lies elsewhere; no image has it.
pub(crate) const ELSEWHERE: u8 = 2;

/// An entry that sleeps.
#[derive(Clone, Copy)]
pub(crate) struct Asleep<'a> {
    pub(crate) subkey: &'a [u8],
    pub(crate) head: Option<&'a [u8]>,
    pub(crate) body: Parked<'a>,
    /// From the body on, and from the timers on.
    body_on: &'a [u8],
    timers_on: &'a [u8],
}

impl<'a> Asleep<'a> {
    /// The subkey, with which an entry begins.
    #[inline]
    pub(crate) fn subkey_of(cell: &'a [u8]) -> Option<&'a [u8]> {
        Rest(cell).bytes()
    }

    #[inline]
    pub(crate) fn read(cell: &'a [u8]) -> Option<Self> {
        let mut rest = Rest(cell);
        let subkey = rest.bytes()?;
        let head = rest.state()?;
        let body_on = rest.0;
        let body = match rest.byte()? {
            0 => Parked::Nothing,
            ELSEWHERE => Parked::Elsewhere,
            _ => rest.state()?.map_or(Parked::Nothing, Parked::Bytes),
        };
        Some(Self { subkey, head, body, body_on, timers_on: rest.0 })
    }

    /// The body as it lies.
    pub(crate) fn body_bytes(&self) -> &'a [u8] {
        &self.body_on[..self.body_on.len() - self.timers_on.len()]
    }

    #[inline]
    pub(crate) fn timers(&self) -> OfEntry {
        let (mut timers, mut rest) = (OfEntry::default(), Rest(self.timers_on));
        for _ in 0..rest.number().unwrap_or(0) {
            let Some((id, at)) = rest.timer() else { break };
            timers.push(Timer { at, listed: at, id, is_fresh: false });
        }
        for timer in timers.as_mut_slice() {
            timer.listed.0 -= rest.number().unwrap_or(0).cast_signed();
        }
        timers
    }

    /// What stands behind the timers.
    fn lags(&self) -> &'a [u8] {
        let mut rest = Rest(self.timers_on);
        for _ in 0..rest.number().unwrap_or(0) {
            rest.timer();
        }
        rest.0
    }

    /// How many bytes of the cell stand before the lags.
    pub(crate) fn before_lags(&self, cell: &[u8]) -> usize {
        cell.len() - self.lags().len()
    }
}

impl<'a> Rest<'a> {
    fn state(&mut self) -> Option<Option<&'a [u8]>> {
        match self.option()? {
            None => Some(None),
            Some(()) => Some(Some(self.versioned()?.1)),
        }
    }
}

/// Writes by how much each timer was moved since it was put into a list: the less, the shorter.
pub(crate) fn put_lags(bytes: &mut Vec<u8>, timers: &[Timer]) {
    timers.iter().for_each(|timer| put_number(bytes, (timer.at.0 - timer.listed.0).cast_unsigned()));
}

#[cfg(test)]
mod tests {
    use super::super::delta::{put_body_kept, put_body_set, put_key, put_state, put_timers};
    use super::*;
    use tidings_schemas::ids::KeyGroup;
    use tidings_schemas::time::Instant;

    #[test]
    fn an_entry_sleeps_as_its_image_whatever_lies_behind_it() {
        let timer =
            |id, at, listed| Timer { at: Instant(at), listed: Instant(listed), id: TimerId(id), is_fresh: false };
        let long = [7; 300];
        for (subkey, head, body, timers) in [
            (&b""[..], None, Parked::Nothing, vec![]),
            (b"a", Some(&b""[..]), Parked::Elsewhere, vec![timer(1, 5, 5)]),
            (&long, Some(&long), Parked::Bytes(&long), vec![timer(1, -5, -70_000_000_000), timer(2, i64::MAX, 9)]),
            (b"b", Some(&long[..1]), Parked::Bytes(b""), vec![timer(255, 1_780_000_000_000, 1_770_000_000_000)]),
        ] {
            let mut page = vec![9, 9];
            let put = |bytes: &'static [u8]| move |page: &mut Vec<u8>| page.extend_from_slice(bytes);
            let start = put_key(&mut page, KeyGroup(700), b"user", Some(subkey));
            put_state(&mut page, 1, head.map(|head| |page: &mut Vec<u8>| page.extend_from_slice(head)));
            let body_start = page.len();
            match body {
                Parked::Nothing => put_body_kept(&mut page),
                Parked::Elsewhere => page.push(ELSEWHERE),
                Parked::Bytes(bytes) => {
                    put_body_set(&mut page);
                    put_state(&mut page, 1, Some(|page: &mut Vec<u8>| page.extend_from_slice(bytes)));
                }
            }
            let body_bytes = page[body_start..].to_vec();
            put_timers(&mut page, timers.iter().map(|timer| (timer.id, timer.at)));
            let before_lags = page.len() - start;
            put_lags(&mut page, &timers);
            let length = page.len() - start;
            put(&[0xff; 3])(&mut page);
            let cell = &page[start..];
            let asleep = Asleep::read(cell).unwrap();
            assert_eq!((asleep.subkey, asleep.head, asleep.body), (subkey, head, body));
            assert_eq!((asleep.body_bytes(), asleep.before_lags(cell)), (&body_bytes[..], before_lags));
            assert_eq!(Asleep::subkey_of(cell), Some(subkey));
            let said = |timer: &Timer| (timer.id, timer.at, timer.listed);
            assert!(asleep.timers().as_slice().iter().map(said).eq(timers.iter().map(said)));
            let mut lags = Vec::new();
            let moved: Vec<_> = timers.iter().map(|timer| Timer { listed: timer.at, ..*timer }).collect();
            put_lags(&mut lags, &moved);
            assert!(before_lags + lags.len() <= length);
        }
    }
}
