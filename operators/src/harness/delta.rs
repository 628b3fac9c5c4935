//! What state changed: the newest image of each key that was touched, in the bytes in which checkpoints
//! keep it.
//!
//! A worker writes an epoch's images one after the other into a *page* of each operator, as it finds them, and
//! nobody looks into a page before a checkpoint is due: then [`Pending`] puts the pages since the last one
//! in key order and upon each other, once, and what comes out is the checkpoint's chunk. So a changed key
//! costs its bytes, and no memory of its own.
//!
//! An image is [`StateKey`] and [`Image`], one after the other, as postcard writes them.

use std::cmp::Ordering;
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

/// Images from which on operators are settled side by side. Of fewer, threads cost more than they save.
const SIDE_BY_SIDE_MIN: usize = 100_000;

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

    fn bytes(&self) -> usize {
        self.0.iter().map(|page| page.bytes.len()).sum()
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

    /// Pages of any order, each key's images from the oldest to the newest: in key order, and upon each other.
    fn settled<'a>(pages: impl Iterator<Item = &'a Page>) -> Self {
        Self(by_operator(pages).into_iter().map(settled_page).collect())
    }

    /// The state that chunks hold, from the oldest to the newest, without keys of which nothing is left. Of a large one
    /// operators are settled side by side: all that is to start waits for it.
    #[must_use]
    pub fn merged(chunks: &[Self]) -> Self {
        if let [only] = chunks {
            return only.without_gone();
        }
        let settled = if chunks.iter().map(Self::len).sum::<usize>() < SIDE_BY_SIDE_MIN {
            Self::settled(chunks.iter().flat_map(|chunk| &chunk.0))
        } else {
            let operators = by_operator(chunks.iter().flat_map(|chunk| &chunk.0));
            std::thread::scope(|scope| {
                let threads: Vec<_> =
                    operators.into_iter().map(|of_operator| scope.spawn(|| settled_page(of_operator))).collect();
                let settled = |thread: std::thread::ScopedJoinHandle<'_, Page>| match thread.join() {
                    Ok(page) => page,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                Self(threads.into_iter().map(settled).collect())
            })
        };
        settled.without_gone()
    }
}

/// An operator, how many images it has, and its pages.
type OfOperator<'a> = (&'a Arc<str>, (usize, Vec<&'a [u8]>));

fn by_operator<'a>(pages: impl Iterator<Item = &'a Page>) -> BTreeMap<&'a Arc<str>, (usize, Vec<&'a [u8]>)> {
    let mut by_operator: BTreeMap<_, (usize, Vec<&[u8]>)> = BTreeMap::new();
    for page in pages {
        let (images, pages) = by_operator.entry(&page.operator).or_default();
        *images += page.images;
        pages.push(&*page.bytes);
    }
    by_operator
}

fn settled_page((operator, (images, pages)): OfOperator<'_>) -> Page {
    let (images, bytes) = settle(&pages, images);
    Page { operator: Arc::clone(operator), images, bytes: bytes.into() }
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Two deltas are equal if they say the same, whatever the order in which it lies.
impl PartialEq for Delta {
    fn eq(&self, other: &Self) -> bool {
        let settled = |delta: &Self| Self::settled(delta.0.iter());
        let (one, two) = (settled(self), settled(other));
        one.lying(|_| true)
            .map(|(operator, lying)| (operator, lying.all))
            .eq(two.lying(|_| true).map(|(operator, lying)| (operator, lying.all)))
    }
}

impl Eq for Delta {}

impl FromIterator<(Key, Image)> for Delta {
    fn from_iter<I: IntoIterator<Item = (Key, Image)>>(images: I) -> Self {
        let mut pages: BTreeMap<Arc<str>, (usize, Vec<u8>)> = BTreeMap::new();
        for ((operator, key), image) in images {
            let (images, page) = pages.entry(operator).or_default();
            put_image(page, &key, &image);
            *images += 1;
        }
        let page = |(operator, (images, bytes)): (_, (_, Vec<u8>))| Page { operator, images, bytes: bytes.into() };
        Self::settled(pages.into_iter().map(page).collect::<Vec<_>>().iter())
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
    /// What came since then: the workers' own pages, which they fill again once these are settled.
    recent: Delta,
    recent_bytes: usize,
}

impl Pending {
    /// Adds the next one.
    pub fn add(&mut self, newer: Delta) {
        self.recent_bytes += newer.bytes();
        self.recent.join(newer);
        if self.recent_bytes > self.settled.bytes().max(RECENT_BYTES_MAX) {
            self.settle();
        }
    }

    fn settle(&mut self) {
        if !self.recent.is_empty() {
            self.settled = Delta::settled(self.settled.0.iter().chain(&self.recent.0));
            self.forget_recent();
        }
    }

    fn forget_recent(&mut self) {
        self.recent.0.clear();
        self.recent_bytes = 0;
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
        self.settled.clear();
        self.forget_recent();
    }
}

/// Where an image lies, what nearly always decides its place in key order, and where the rest of its key is.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The first eight bytes of the user's name; and the next eight, or where there are none the first of the
    /// subkey. Filled up with zeros.
    beginning: (u64, u64),
    start: usize,
    page: u32,
    length: u32,
    /// From the start.
    user: (u32, u32),
    subkey: Option<(u32, u32)>,
    group: KeyGroup,
    keeps_body: bool,
}

impl Place {
    #[inline(always)]
    fn of(page: u32, start: usize, lying: &Lying<'_>) -> Self {
        let all = lying.all;
        // An image of four gigabytes is more than a body of bounded members holds.
        let part = |part: &[u8]| {
            let from = part.as_ptr() as usize - all.as_ptr() as usize;
            (from as u32, (from + part.len()) as u32)
        };
        let (user, subkey) = (part(lying.user), lying.subkey.map(part));
        let first = |(from, to): (u32, u32)| first_eight(all, from as usize, to as usize);
        let second = if user.1 - user.0 > 8 { first((user.0 + 8, user.1)) } else { subkey.map_or(0, first) };
        Self {
            beginning: (first(user), second),
            start,
            page,
            length: all.len() as u32,
            user,
            subkey,
            group: lying.group,
            keeps_body: lying.keeps_body(),
        }
    }

    fn all<'a>(&self, pages: &[&'a [u8]]) -> &'a [u8] {
        self.part(pages, (0, self.length))
    }

    fn part<'a>(&self, pages: &[&'a [u8]], (from, to): (u32, u32)) -> &'a [u8] {
        &pages[self.page as usize][self.start + from as usize..self.start + to as usize]
    }

    /// Bytes of the user's name.
    const fn name(&self) -> u32 {
        self.user.1 - self.user.0
    }

    /// In key order.
    #[inline(always)]
    fn by_key(&self, other: &Self, pages: &[&[u8]]) -> Ordering {
        if self.group != other.group {
            return self.group.cmp(&other.group);
        }
        let (one, two) = (self.beginning, other.beginning);
        if one.0 != two.0 {
            return one.0.cmp(&two.0);
        }
        // The second words are about the same part of the key, and all before it is alike.
        if one.1 != two.1 && self.name() == other.name() {
            return one.1.cmp(&two.1);
        }
        self.by_rest_of_key(other, pages)
    }

    #[inline(never)]
    fn by_rest_of_key(&self, other: &Self, pages: &[&[u8]]) -> Ordering {
        if self.name() != other.name() || self.name() > 8 {
            let by_user = self.part(pages, self.user).cmp(other.part(pages, other.user));
            if by_user.is_ne() {
                return by_user;
            }
        }
        match (self.subkey, other.subkey) {
            (Some(one), Some(two)) => self.part(pages, one).cmp(other.part(pages, two)),
            (one, two) => one.is_some().cmp(&two.is_some()),
        }
    }
}

/// The first eight bytes from `from` to `to`, filled up with zeros, in the order in which bytes compare.
#[inline(always)]
fn first_eight(all: &[u8], from: usize, to: usize) -> u64 {
    let length = to - from;
    match all.get(from..).and_then(<[u8]>::first_chunk) {
        Some(eight) if length >= 8 => u64::from_be_bytes(*eight),
        Some(eight) if length > 0 => u64::from_be_bytes(*eight) & u64::MAX << (64 - 8 * length),
        _ => last_eight(all, from, to),
    }
}

#[cold]
fn last_eight(all: &[u8], from: usize, to: usize) -> u64 {
    let byte = |place: usize| if from + place < to { all[from + place] } else { 0 };
    u64::from_be_bytes(std::array::from_fn(byte))
}

/// Pages of one operator, from the oldest to the newest, become one: how many images, and their bytes.
fn settle(pages: &[&[u8]], images: usize) -> (usize, Vec<u8>) {
    let mut places = Vec::with_capacity(images);
    for (number, page) in (0..).zip(pages) {
        let mut start = 0;
        for lying in Images(page) {
            places.push(Place::of(number, start, &lying));
            start += lying.all.len();
        }
    }
    // Places are in order of age.
    let mut order: Vec<u32> = (0..places.len() as u32).collect();
    let place = |number: &u32| &places[*number as usize];
    let by_key = |one: &u32, two: &u32| place(one).by_key(place(two), pages).then(one.cmp(two));
    Spread::default().sort(&mut order, |number| usize::from(place(number).group.0), by_key);
    let (mut images, mut bytes) = (0, Vec::with_capacity(pages.iter().map(|page| page.len()).sum()));
    for of_key in order.chunk_by(|one, two| place(one).by_key(place(two), pages).is_eq()) {
        let Some((newest, older)) = of_key.split_last() else { continue };
        let newest = place(newest);
        images += 1;
        // A body that was not set stays.
        let set = older.iter().map(place).rfind(|older| newest.keeps_body && !older.keeps_body);
        let lying = |place: &Place| Rest(place.all(pages)).lying();
        match set.and_then(|older| Some((lying(newest)?, lying(older)?))) {
            None => bytes.extend_from_slice(newest.all(pages)),
            Some((newest, older)) => {
                let head = newest.all.len() - newest.body.len() - newest.timers.len();
                bytes.extend_from_slice(&newest.all[..head]);
                bytes.extend_from_slice(older.body);
                bytes.extend_from_slice(newest.timers);
            }
        }
    }
    (images, bytes)
}

/// The images of a page.
struct Images<'a>(&'a [u8]);

impl<'a> Iterator for Images<'a> {
    type Item = Lying<'a>;

    #[inline(always)]
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
        match self.byte()? {
            byte @ 0..0x80 => Some(u64::from(byte)),
            byte => self.more_of_number(u64::from(byte & 0x7f)),
        }
    }

    #[inline]
    fn more_of_number(&mut self, mut number: u64) -> Option<u64> {
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

    /// Passes a timer.
    #[inline]
    fn pass_timer(&mut self) -> Option<()> {
        // A number ends with the first byte whose top bit is not set; these have six bytes.
        let ends = self.0.first_chunk().map_or(0, |nine: &[u8; 9]| {
            let [_, number @ ..] = nine;
            !u64::from_le_bytes(*number) & 0x8080_8080_8080_8080
        });
        if ends == 0 {
            return self.timer().map(drop);
        }
        self.0 = self.0.get(2 + ends.trailing_zeros() as usize / 8..)?;
        Some(())
    }

    pub(crate) fn timer(&mut self) -> Option<(TimerId, Instant)> {
        let (id, at) = (self.byte()?, self.number()?);
        // Signed numbers are written so that small ones are short.
        Some((TimerId(id), Instant((at >> 1).cast_signed() ^ -(at & 1).cast_signed())))
    }

    #[inline(always)]
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
            self.pass_timer()?;
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
    fn chunks_are_merged_side_by_side_as_they_are_one_after_the_other() {
        // Four chunks, in each of which another third of all keys is gone.
        let chunk = |round: usize| -> Delta {
            let image = |number: usize| {
                let operator = Arc::from(["dedup", "route", "rate_limit"][number % 3]);
                let (group, user) = (KeyGroup((number % 1024) as u16), format!("u{}", number / 2).into());
                let subkey = Some(Subkey::of(&[&(number % 7).to_string()]));
                let byte = (number % 251 + round) as u8;
                let there = !(number + round).is_multiple_of(3);
                let image = Image {
                    head: there.then(|| (1, HeadBytes::from_slice(&[byte]))),
                    body: number.is_multiple_of(5).then(|| there.then(|| (1, vec![byte; 3]))),
                    ..Image::default()
                };
                ((operator, StateKey { group, user, subkey }), image)
            };
            (0..SIDE_BY_SIDE_MIN / 3).filter(|number| number % 4 <= round).map(image).collect()
        };
        let chunks: Vec<Delta> = (0..4).map(chunk).chain([chunk(3)]).collect();
        let mut pending = Pending::default();
        chunks.iter().for_each(|chunk| pending.add(chunk.clone()));
        let expected = pending.into_delta().without_gone();
        assert!(chunks.iter().map(Delta::len).sum::<usize>() > SIDE_BY_SIDE_MIN && expected.len() > 10_000);
        assert_eq!(Delta::merged(&chunks), expected);
        assert_eq!(Delta::merged(&chunks[..1]), chunks[0].without_gone());
        assert_eq!(Delta::merged(&[]), Delta::new());
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

    #[test]
    fn keys_of_any_lengths_come_in_key_order_and_each_once() {
        let users = ["", "a", "a\0", "abcdefgh", "abcdefgh\0", "abcdefghi", "abcdefghij", "abcdefghijklmnopq", "b"];
        let subkeys: [Option<&[u8]>; 9] = [
            None,
            Some(b""),
            Some(b"\0"),
            Some(b"12345678"),
            Some(b"123456789"),
            Some(b"12345678abcdefgh"),
            Some(b"12345678abcdefgi"),
            Some(b"2"),
            Some(b"12345678\0"),
        ];
        let mut keys = Vec::new();
        for (group, user) in users.iter().flat_map(|user| [(0, user), (1, user), (999, user)]) {
            for subkey in subkeys {
                let subkey = subkey.map(Subkey::from_bytes);
                keys.push((Arc::from("o"), StateKey { group: KeyGroup(group), user: (*user).into(), subkey }));
            }
        }
        let image = |number: u8| Image { head: Some((1, HeadBytes::from_slice(&[number]))), ..Image::default() };
        let mut pending = Pending::default();
        for (number, step) in [1, 2, 5, 7].into_iter().enumerate() {
            let shuffled = (0..keys.len()).map(|place| keys[place * step % keys.len()].clone());
            let mut page = Vec::new();
            shuffled.for_each(|(_, key)| put_image(&mut page, &key, &image(number as u8)));
            let mut delta = Delta::new();
            delta.push(&"o".into(), keys.len(), page.into());
            pending.add(delta);
        }
        keys.sort();
        assert!(pending.delta().iter().eq(keys.into_iter().map(|key| (key, image(3)))));
    }
}
