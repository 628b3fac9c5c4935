//! What state changed: the newest image of each key that was touched, in the bytes in which checkpoints
//! keep it.
//!
//! A worker writes an epoch's images one after the other into a *page* of each operator, as it finds them, and
//! nobody looks into a page before a checkpoint is due: then [`Pending`] puts the pages since the last one
//! in key order and upon each other, once, and what comes out is the checkpoint's chunk. So a changed key
//! costs its bytes, and no memory of its own.
//!
//! An image is [`StateKey`] and [`Image`], one after the other, as postcard writes them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tidings_schemas::ids::{KEY_GROUPS, KeyGroup};
use tidings_schemas::time::Instant;

use super::spread::Spread;
use super::table::{Image, StateKey};
use crate::keyed::{Subkey, TimerId};

/// The operator's id, and the key within its state.
pub type Key = (Arc<str>, StateKey);

/// Bytes of images that are gathered before they are put upon each other, though no checkpoint is due: what
/// is superseded takes no more memory than this, or than what is not. A second of a flood, or less.
const RECENT_BYTES_MAX: usize = 64 << 20;

/// Images of one operator, one after the other.
#[derive(Clone)]
struct Page {
    operator: Arc<str>,
    images: usize,
    bytes: Bytes,
}

/// Images of changed keys.
#[derive(Clone, Default)]
pub struct Delta(Vec<Page>);

impl Delta {
    /// Nothing changed.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds what one operator changed: so many images.
    pub(crate) fn push(&mut self, operator: &Arc<str>, images: usize, bytes: Bytes) {
        if images > 0 {
            self.0.push(Page { operator: Arc::clone(operator), images, bytes });
        }
    }

    /// Adds what another worker changed: none of its keys is here.
    pub fn join(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Images: as many as keys, where each key was added once.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|page| page.images).sum()
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

    /// The images, in key order once they were put upon each other.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Image)> {
        self.lying(|_| true).map(|(operator, lying)| ((Arc::clone(operator), lying.key()), lying.image()))
    }

    /// Those of which `worker`, one of so many, has the users.
    pub fn of_worker(&self, worker: usize, workers: usize) -> impl Iterator<Item = (Key, Image)> {
        let mine = self.lying(move |lying| lying.group.worker(workers) == worker);
        mine.map(|(operator, lying)| ((Arc::clone(operator), lying.key()), lying.image()))
    }

    fn lying(&self, is: impl Fn(&Lying<'_>) -> bool) -> impl Iterator<Item = (&Arc<str>, Lying<'_>)> {
        let pages = self.0.iter().flat_map(|page| Images(&page.bytes).map(|lying| (&page.operator, lying)));
        pages.filter(move |(_, lying)| is(lying))
    }

    /// The same without keys of which nothing is left: where no older image lies below.
    #[must_use]
    pub fn without_gone(&self) -> Self {
        let kept = |page: &Page| {
            let (mut images, mut bytes) = (0, Vec::with_capacity(page.bytes.len()));
            for lying in Images(&page.bytes).filter(|lying| !lying.is_gone()) {
                bytes.extend_from_slice(lying.all);
                images += 1;
            }
            Page { operator: Arc::clone(&page.operator), images, bytes: bytes.into() }
        };
        Self(self.0.iter().map(kept).filter(|page| page.images > 0).collect())
    }

    /// Appends them as a checkpoint's chunk holds them: a list of (operator, key, image), as postcard writes it.
    /// They must have been put upon each other.
    pub fn put_chunk(&self, chunk: &mut Vec<u8>) {
        put_number(chunk, self.len() as u64);
        for (operator, lying) in self.lying(|_| true) {
            put_bytes(chunk, operator.as_bytes());
            chunk.extend_from_slice(lying.all);
        }
    }

    /// About the bytes of [`Self::put_chunk`].
    #[must_use]
    pub fn chunk_bytes(&self) -> usize {
        16 + self.0.iter().map(|page| page.bytes.len() + page.images * (page.operator.len() + 2)).sum::<usize>()
    }

    /// Images of the groups that `is` says, in chunks of about so many bytes: for whoever carries them elsewhere. They
    /// are in no particular order.
    pub fn chunks(&self, bytes_max: usize, is: impl Fn(KeyGroup) -> bool) -> impl Iterator<Item = Vec<u8>> {
        let mut images = self.lying(move |lying| is(lying.group)).peekable();
        std::iter::from_fn(move || {
            let (mut count, mut bytes) = (0, Vec::new());
            while bytes.len() < bytes_max
                && let Some((operator, lying)) = images.next()
            {
                put_bytes(&mut bytes, operator.as_bytes());
                bytes.extend_from_slice(lying.all);
                count += 1;
            }
            (count > 0).then(|| {
                let mut chunk = Vec::with_capacity(bytes.len() + 10);
                put_number(&mut chunk, count);
                chunk.extend_from_slice(&bytes);
                chunk
            })
        })
    }

    /// Reads a chunk back.
    ///
    /// # Errors
    /// When these are no images.
    pub fn from_chunk(chunk: &[u8]) -> Result<Self, String> {
        let mut rest = Rest(chunk);
        let damaged = || "the bytes are no list of images".to_owned();
        let images = rest.number().ok_or_else(damaged)?;
        let mut pages: Vec<(&str, usize, Vec<u8>)> = Vec::new();
        for _ in 0..images {
            let operator = rest.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or_else(damaged)?;
            let lying = rest.lying().filter(Lying::is_sound).ok_or_else(damaged)?;
            if pages.last().is_none_or(|(last, ..)| *last != operator) {
                pages.push((operator, 0, Vec::new()));
            }
            if let Some((_, images, bytes)) = pages.last_mut() {
                *images += 1;
                bytes.extend_from_slice(lying.all);
            }
        }
        let page = |(operator, images, bytes): (&str, usize, Vec<u8>)| Page {
            operator: operator.into(),
            images,
            bytes: bytes.into(),
        };
        Ok(Self(pages.into_iter().map(page).collect()))
    }

    /// Images of any order, each key's from the oldest to the newest: in key order, and upon each other.
    fn settled<'a>(pages: impl Iterator<Item = (&'a Arc<str>, &'a [u8])>) -> Self {
        let mut by_operator: BTreeMap<&Arc<str>, Vec<&[u8]>> = BTreeMap::new();
        pages.for_each(|(operator, bytes)| by_operator.entry(operator).or_default().push(bytes));
        let mut room = Room::default();
        let page = |(operator, pages): (&Arc<str>, Vec<&[u8]>)| {
            let (images, bytes) = room.settle(&pages);
            Page { operator: Arc::clone(operator), images, bytes: bytes.into() }
        };
        Self(by_operator.into_iter().map(page).collect())
    }
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Two deltas are equal if they say the same, whatever the order in which it lies.
impl PartialEq for Delta {
    fn eq(&self, other: &Self) -> bool {
        let settled = |delta: &Self| Self::settled(delta.0.iter().map(|page| (&page.operator, &*page.bytes)));
        let (one, two) = (settled(self), settled(other));
        one.lying(|_| true)
            .map(|(operator, lying)| (operator, lying.all))
            .eq(two.lying(|_| true).map(|(operator, lying)| (operator, lying.all)))
    }
}

impl Eq for Delta {}

impl FromIterator<(Key, Image)> for Delta {
    fn from_iter<I: IntoIterator<Item = (Key, Image)>>(images: I) -> Self {
        let mut pages: BTreeMap<Arc<str>, Vec<u8>> = BTreeMap::new();
        for ((operator, key), image) in images {
            put_image(pages.entry(operator).or_default(), &key, &image);
        }
        Self::settled(pages.iter().map(|(operator, bytes)| (operator, &**bytes)))
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
    /// What came since then, copied out of its pages, which are filled again meanwhile.
    recent: BTreeMap<Arc<str>, Vec<u8>>,
}

impl Pending {
    /// Adds the next one.
    pub fn add(&mut self, newer: Delta) {
        for page in newer.0 {
            match self.recent.get_mut(&page.operator) {
                Some(recent) => recent.extend_from_slice(&page.bytes),
                None => drop(self.recent.insert(page.operator, page.bytes.to_vec())),
            }
        }
        let recent: usize = self.recent.values().map(Vec::len).sum();
        let settled: usize = self.settled.0.iter().map(|page| page.bytes.len()).sum();
        if recent > settled.max(RECENT_BYTES_MAX) {
            self.settle();
        }
    }

    fn settle(&mut self) {
        if self.recent.values().all(Vec::is_empty) {
            return;
        }
        let settled = self.settled.0.iter().map(|page| (&page.operator, &*page.bytes));
        let recent = self.recent.iter().map(|(operator, bytes)| (operator, &**bytes));
        self.settled = Delta::settled(settled.chain(recent));
        self.recent.values_mut().for_each(Vec::clear);
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

    /// Forgets them, and keeps the room of what is recent.
    pub fn clear(&mut self) {
        self.settled.clear();
        self.recent.values_mut().for_each(Vec::clear);
    }
}

/// Where an image lies, what nearly always decides its place in key order, and where the rest of its key is.
#[derive(Clone, Copy, Debug)]
struct Place {
    group: KeyGroup,
    /// The beginning of the user's name.
    first: u64,
    page: u32,
    start: usize,
    length: u32,
    /// From the start.
    user: (u32, u32),
    subkey: Option<(u32, u32)>,
}

/// Room for putting images in order.
#[derive(Default)]
struct Room {
    places: Vec<Place>,
    spread: Spread<Place>,
}

impl Room {
    /// Pages from the oldest to the newest become one: how many images, and their bytes.
    fn settle(&mut self, pages: &[&[u8]]) -> (usize, Vec<u8>) {
        self.places.clear();
        for (number, page) in (0..).zip(pages) {
            let mut start = 0;
            for lying in Images(page) {
                let (mut first, name) = ([0; 8], lying.user);
                let length = name.len().min(8);
                first[..length].copy_from_slice(&name[..length]);
                let length = lying.all.len();
                let from = |part: &[u8]| part.as_ptr() as usize - lying.all.as_ptr() as usize;
                // An image of four gigabytes is more than a body of bounded members holds.
                let part = |part: &[u8]| (from(part) as u32, (from(part) + part.len()) as u32);
                self.places.push(Place {
                    group: lying.group,
                    first: u64::from_be_bytes(first),
                    page: number,
                    start,
                    length: length as u32,
                    user: part(lying.user),
                    subkey: lying.subkey.map(part),
                });
                start += length;
            }
        }
        let all = |place: &Place| &pages[place.page as usize][place.start..place.start + place.length as usize];
        let key = |place: &Place| {
            let (all, part) = (all(place), |(start, end): (u32, u32)| start as usize..end as usize);
            (&all[part(place.user)], place.subkey.map(|subkey| &all[part(subkey)]))
        };
        let by_key = |one: &Place, two: &Place| {
            let beginning = (one.group, one.first).cmp(&(two.group, two.first));
            let age = || (one.page, one.start).cmp(&(two.page, two.start));
            beginning.then_with(|| key(one).cmp(&key(two))).then_with(age)
        };
        self.spread.sort(&mut self.places, |place| usize::from(place.group.0), by_key);
        let (mut images, mut bytes) = (0, Vec::with_capacity(pages.iter().map(|page| page.len()).sum()));
        let same = |one: &Place, two: &Place| (one.group, one.first) == (two.group, two.first) && key(one) == key(two);
        for of_key in self.places.chunk_by(same) {
            images += 1;
            if let [only] = of_key {
                bytes.extend_from_slice(all(only));
                continue;
            }
            let lying = || of_key.iter().rev().filter_map(|place| Rest(all(place)).lying());
            let Some(newest) = lying().next() else { continue };
            match lying().find(|older| !older.keeps_body()).filter(|_| newest.keeps_body()) {
                None => bytes.extend_from_slice(newest.all),
                // A body that was not set stays.
                Some(older) => {
                    let head = newest.all.len() - newest.body.len() - newest.timers.len();
                    bytes.extend_from_slice(&newest.all[..head]);
                    bytes.extend_from_slice(older.body);
                    bytes.extend_from_slice(newest.timers);
                }
            }
        }
        (images, bytes)
    }
}

/// The images of a page.
struct Images<'a>(&'a [u8]);

impl<'a> Iterator for Images<'a> {
    type Item = Lying<'a>;

    #[inline]
    fn next(&mut self) -> Option<Lying<'a>> {
        let mut rest = Rest(self.0);
        let lying = rest.lying();
        self.0 = rest.0;
        lying
    }
}

/// An image as it lies in a page, in parts.
#[derive(Clone, Copy)]
struct Lying<'a> {
    group: KeyGroup,
    user: &'a [u8],
    subkey: Option<&'a [u8]>,
    head: Option<(u8, &'a [u8])>,
    /// With what says whether it is there.
    body: &'a [u8],
    timers: &'a [u8],
    all: &'a [u8],
}

impl Lying<'_> {
    const fn keeps_body(&self) -> bool {
        matches!(self.body, [0, ..])
    }

    fn is_gone(&self) -> bool {
        self.head.is_none() && *self.timers == [0] && !matches!(self.body, [1, 1, ..])
    }

    /// Whether what pages of ours always hold is so: names are text, groups are in range.
    fn is_sound(&self) -> bool {
        self.group.0 < KEY_GROUPS && std::str::from_utf8(self.user).is_ok()
    }

    fn key(&self) -> StateKey {
        let user = std::str::from_utf8(self.user).unwrap_or_default();
        StateKey { group: self.group, user: user.into(), subkey: self.subkey.map(Subkey::from_bytes) }
    }

    fn image(&self) -> Image {
        let mut body = Rest(self.body);
        let body = body.option().flatten().map(|()| body.option().flatten().and_then(|()| body.versioned()));
        let mut timers = Rest(self.timers);
        let count = timers.number().unwrap_or(0);
        Image {
            head: self.head.map(|(version, bytes)| (version, bytes.into())),
            body: body.map(|body| body.map(|(version, bytes)| (version, bytes.to_vec()))),
            timers: (0..count).filter_map(|_| timers.timer()).collect(),
        }
    }
}

/// What is left of bytes that were put one after the other.
pub(crate) struct Rest<'a>(pub(crate) &'a [u8]);

impl<'a> Rest<'a> {
    #[inline]
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    #[inline]
    pub(crate) fn number(&mut self) -> Option<u64> {
        let first = self.byte()?;
        // Most numbers are small.
        if first < 0x80 {
            return Some(first.into());
        }
        let mut number = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    #[inline]
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Whether something is there.
    #[inline]
    pub(crate) fn option(&mut self) -> Option<Option<()>> {
        match self.byte()? {
            0 => Some(None),
            1 => Some(Some(())),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn versioned(&mut self) -> Option<(u8, &'a [u8])> {
        Some((self.byte()?, self.bytes()?))
    }

    pub(crate) fn timer(&mut self) -> Option<(TimerId, Instant)> {
        let (id, at) = (self.byte()?, self.number()?);
        // Signed numbers are written so that small ones are short.
        Some((TimerId(id), Instant((at >> 1).cast_signed() ^ -(at & 1).cast_signed())))
    }

    #[inline]
    fn lying(&mut self) -> Option<Lying<'a>> {
        let all = self.0;
        let group = KeyGroup(u16::try_from(self.number()?).ok()?);
        let user = self.bytes()?;
        let subkey = match self.option()? {
            None => None,
            Some(()) => Some(self.bytes()?),
        };
        let head = match self.option()? {
            None => None,
            Some(()) => Some(self.versioned()?),
        };
        let body = self.0;
        if self.option()?.is_some() && self.option()?.is_some() {
            self.versioned()?;
        }
        let body = &body[..body.len() - self.0.len()];
        let timers = self.0;
        for _ in 0..self.number()? {
            self.timer()?;
        }
        let timers = &timers[..timers.len() - self.0.len()];
        Some(Lying { group, user, subkey, head, body, timers, all: &all[..all.len() - self.0.len()] })
    }
}

#[inline]
pub(crate) fn put_number(page: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        page.push(number as u8 | 0x80);
        number >>= 7;
    }
    page.push(number as u8);
}

#[inline]
pub(crate) fn put_bytes(page: &mut Vec<u8>, bytes: &[u8]) {
    put_number(page, bytes.len() as u64);
    page.extend_from_slice(bytes);
}

/// Appends a key: an image begins with it. Returns where the subkey stands now.
#[inline]
pub(crate) fn put_key(page: &mut Vec<u8>, group: KeyGroup, user: &[u8], subkey: Option<&[u8]>) -> usize {
    put_number(page, u64::from(group.0));
    put_bytes(page, user);
    page.push(u8::from(subkey.is_some()));
    let start = page.len();
    subkey.into_iter().for_each(|subkey| put_bytes(page, subkey));
    start
}

/// Appends a head, or what a body holds where it was set: nothing, or a version and what `state` appends. Returns how
/// many bytes that was.
#[inline]
pub(crate) fn put_state(page: &mut Vec<u8>, version: u8, state: Option<impl FnOnce(&mut Vec<u8>)>) -> usize {
    let Some(state) = state else {
        page.push(0);
        return 0;
    };
    page.extend_from_slice(&[1, version, 0]);
    let start = page.len();
    state(page);
    let length = page.len() - start;
    if length < 0x80 {
        page[start - 1] = length as u8;
        return length;
    }
    // A length of more bytes than the one that was left for it: what follows moves up.
    let more = length.ilog2() as usize / 7;
    page.resize(start + length + more, 0);
    page.copy_within(start..start + length, start + more);
    for place in 0..=more {
        let last = if place == more { 0 } else { 0x80 };
        page[start - 1 + place] = (length >> (7 * place)) as u8 & 0x7f | last;
    }
    length
}

/// Appends that a body was not set: an older one stays.
pub(crate) fn put_body_kept(page: &mut Vec<u8>) {
    page.push(0);
}

/// Appends that a body was set: [`put_state`] follows.
pub(crate) fn put_body_set(page: &mut Vec<u8>) {
    page.push(1);
}

/// Appends timers: an image ends with them.
#[inline]
pub(crate) fn put_timers(page: &mut Vec<u8>, timers: impl ExactSizeIterator<Item = (TimerId, Instant)>) {
    put_number(page, timers.len() as u64);
    for (TimerId(id), Instant(at)) in timers {
        page.push(id);
        put_number(page, ((at << 1) ^ (at >> 63)).cast_unsigned());
    }
}

/// Appends an image.
pub(crate) fn put_image(page: &mut Vec<u8>, key: &StateKey, image: &Image) {
    let StateKey { group, user, subkey } = key;
    put_key(page, *group, user.as_bytes(), subkey.as_ref().map(|subkey| subkey.bytes()));
    let put = |page: &mut Vec<u8>, state: Option<(u8, &[u8])>| {
        let bytes = state.map(|(_, bytes)| move |page: &mut Vec<u8>| page.extend_from_slice(bytes));
        put_state(page, state.map_or(0, |(version, _)| version), bytes);
    };
    put(page, image.head.as_ref().map(|(version, bytes)| (*version, &**bytes)));
    match &image.body {
        None => put_body_kept(page),
        Some(body) => {
            put_body_set(page);
            put(page, body.as_ref().map(|(version, bytes)| (*version, &**bytes)));
        }
    }
    put_timers(page, image.timers.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::super::table::HeadBytes;
    use super::*;

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
        assert_eq!(pending.delta(), &merged);
        pending.clear();
        assert!(pending.delta().is_empty());
        pending.add(of(&[("a", Some(4), None)]));
        assert_eq!(pending.into_delta(), of(&[("a", Some(4), None)]));
    }

    #[test]
    fn images_lie_as_postcard_writes_them_and_come_back_in_key_order() {
        let long = vec![7; 300];
        let mut images = Vec::new();
        for (number, user) in ["ana", "ana-maria", "ünal", "ana", ""].into_iter().enumerate() {
            for group in [0, 127, 128, 1023] {
                let subkey = (number < 3).then(|| Subkey::of(&[user, "x"]));
                let key = StateKey { group: KeyGroup(group), user: user.into(), subkey };
                let timer = |number: usize| (TimerId(number as u8), Instant(number as i64 * -70_000_000_000));
                let image = Image {
                    head: (number != 1).then(|| (9, HeadBytes::from_slice(&long[..number * 60]))),
                    body: [None, Some(None), Some(Some((3, long.clone())))][number % 3].clone(),
                    timers: (0..number).map(timer).collect(),
                };
                images.push(((Arc::<str>::from(["b", "a"][number / 4]), key), image));
            }
        }
        let delta: Delta = images.iter().cloned().collect();
        images.sort_by(|(one, _), (two, _)| one.cmp(two));
        assert_eq!(delta.iter().collect::<Vec<_>>(), images);
        let flat: Vec<_> = images.iter().map(|((operator, key), image)| (operator, key, image)).collect();
        let (mut chunk, written) = (Vec::new(), postcard::to_stdvec(&flat).unwrap());
        delta.put_chunk(&mut chunk);
        assert_eq!(chunk, written);
        assert!(chunk.len() <= delta.chunk_bytes());
        assert_eq!(Delta::from_chunk(&chunk).unwrap(), delta);
        for length in 0..chunk.len() {
            assert!(Delta::from_chunk(&chunk[..length]).is_err(), "the first {length} bytes");
        }
        let gone = images.iter().filter(|(_, image)| !image.is_gone()).cloned().collect::<Vec<_>>();
        assert_eq!(delta.without_gone().iter().collect::<Vec<_>>(), gone);
        let halves = (0..2).map(|worker| delta.of_worker(worker, 2).count()).collect::<Vec<_>>();
        assert_eq!(halves, [images.len() * 3 / 4, images.len() / 4]);
    }
}
