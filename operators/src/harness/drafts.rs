//! One row per unit and epoch: what operators said of it, in the order in which it happened.
//!
//! What operators say are *drafts*. They gather for one wave down the chain, while all of it lies in
//! the cache; at the wave's end those of one unit are folded into its row ([`Drafts::settle`]), which is
//! encoded and named there and then. A unit that a later wave of the epoch speaks of again is read
//! back, folded and encoded anew; that is rare. Waves follow each other in the order of the day, so
//! only drafts of one wave have to be put in order.
//!
//! All of it lies in a few buffers that epochs share: nothing here is allocated per draft or row.

use std::cmp::Ordering;
use std::sync::Arc;

use hashbrown::HashTable;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{EventId, GroupId, IntentId, LegId, NotificationId};
use tidings_schemas::lifecycle::{RowOf, Stage as Writer, State as Did, Unit};
use tidings_schemas::reason::Reason;
use tidings_schemas::rows::{Place, Rows, decode, put};
use tidings_schemas::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::book::{Book, Speaker, Spot};
use super::buffers::Buffers;
use super::spread::Spread;
use crate::ingest::Path;
use crate::item::{Page, Subject};
use crate::keyed::{About, Cause};

/// Behind the last draft of a unit.
const NONE: usize = usize::MAX;

/// Names a call from which drafts come, within its wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call(usize);

/// What happened to one unit, without what the epoch fills in. Words and states stand in shared buffers.
#[derive(Debug)]
struct Draft {
    next: usize,
    call: Call,
    states: Span,
    reason: Option<Reason>,
    until: Option<Instant>,
    page: Arc<Page>,
    subject: Option<Arc<Subject>>,
    event: EventId,
    intent: IntentId,
    notification: NotificationId,
    group: GroupId,
    leg: LegId,
    silent: bool,
    priority: Option<Priority>,
    channel: Option<Channel>,
    created_at: Instant,
    ready_at: Option<Instant>,
    caused_by: Span,
}

/// A call, and what its drafts have in common.
#[derive(Debug)]
struct OfCall {
    speaker: Speaker,
    name: Span,
    /// Of its user.
    placement: u64,
}

/// A part of a shared buffer.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// From `start` to the end of what is `length` long now. Four gigabytes of one wave's texts would be
    /// of fifty million drafts.
    fn until(start: usize, length: usize) -> Self {
        let bounded = |place| u32::try_from(place).unwrap_or(u32::MAX);
        Self { start: bounded(start), end: bounded(length) }
    }

    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A unit that this epoch speaks of.
#[derive(Clone, Copy, Debug)]
struct Told {
    place: Place,
    /// The digest of its bytes.
    digest: u64,
    /// Its drafts of the wave under way.
    first: usize,
    last: usize,
}

/// The rows of one epoch under construction.
#[derive(Debug, Default)]
pub(crate) struct Drafts {
    epoch: u64,
    now: Instant,
    stage: Writer,
    /// The wave under way.
    pub(crate) book: Book,
    calls: Vec<OfCall>,
    drafts: Vec<Draft>,
    texts: String,
    /// The operator that spoke last.
    operator: Span,
    states: Vec<Did>,
    touched: Vec<usize>,
    /// The epoch.
    by_unit: HashTable<usize>,
    units: Vec<Told>,
    bytes: Vec<u8>,
    buffers: Buffers,
    /// Room for one unit's drafts and states.
    of_unit: Vec<usize>,
    did: Vec<Did>,
    /// Room for putting the epoch's units in order.
    order: Vec<(u64, u32)>,
    spread: Spread<(u64, u32)>,
}

impl Drafts {
    /// Begins an epoch.
    pub(crate) fn begin(&mut self, epoch: u64, now: Instant, path: Path) {
        (self.epoch, self.now) = (epoch, now);
        self.stage = match path {
            Path::Decide => Writer::Decide,
            Path::Critical => Writer::Critical,
        };
    }

    /// A call of the operator with this number and name, at this place of the epoch, for a user of this placement; no
    /// number is the chain's end.
    pub(crate) fn call(&mut self, spot: Spot, operator: Option<usize>, name: &str, placement: u64) -> Call {
        let operator = operator.map(|number| u16::try_from(number).unwrap_or(u16::MAX));
        // Calls of one operator come one after the other.
        if self.texts[self.operator.range()] != *name {
            self.operator = text(&mut self.texts, name);
        }
        self.calls.push(OfCall { speaker: Speaker { spot, operator }, name: self.operator, placement });
        Call(self.calls.len() - 1)
    }

    /// Notes what happened to one unit. `words` say by what, where it is not by what the call is for.
    pub(crate) fn add(
        &mut self,
        call: Call,
        unit: Unit,
        about: &About<'_>,
        did: &[Did],
        reason: Option<Reason>,
        until: Option<Instant>,
        words: Option<&str>,
    ) {
        let id = match unit {
            Unit::Event => about.event.0,
            Unit::Leg | Unit::Delivery => about.leg.0,
        };
        let units = &mut self.units;
        let same = |told: &usize| units[*told].place.unit == (unit, id);
        let told = match self.by_unit.find(id_hash(&id), same) {
            Some(told) => *told,
            None => {
                let place = Place { unit: (unit, id), placement: self.calls[call.0].placement, bytes: (0, 0) };
                units.push(Told { place, digest: 0, first: NONE, last: NONE });
                let told = units.len() - 1;
                self.by_unit.insert_unique(id_hash(&id), told, |told| id_hash(&units[*told].place.unit.1));
                told
            }
        };
        let texts = &mut self.texts;
        let caused_by = match (words, self.book.cause(self.calls[call.0].speaker.spot)) {
            (Some(words), _) => text(texts, words),
            (None, Cause::Event(event) | Cause::HandedOver(event)) if *event == about.event => Span::default(),
            (None, Cause::Event(event) | Cause::HandedOver(event)) => text(texts, event.text().as_str()),
            (None, Cause::Timer) => text(texts, "timer"),
            (None, Cause::Profile) => text(texts, "profile"),
            (None, Cause::Rules) => text(texts, "rules"),
            (None, Cause::Words(words)) => text(texts, words),
        };
        let states = Span::until(self.states.len(), self.states.len() + did.len());
        // One or two: not worth a call that copies.
        did.iter().for_each(|did| self.states.push(*did));
        let number = self.drafts.len();
        self.drafts.push(Draft {
            next: NONE,
            call,
            states,
            reason,
            until,
            page: Arc::clone(about.page),
            subject: about.subject.map(Arc::clone),
            event: about.event,
            intent: about.intent,
            notification: about.notification,
            group: about.group,
            leg: about.leg,
            silent: about.silent,
            priority: about.priority,
            channel: about.channel,
            created_at: about.created_at,
            ready_at: about.ready_at,
            caused_by,
        });
        let unit = &mut self.units[told];
        if unit.first == NONE {
            unit.first = number;
            self.touched.push(told);
        } else {
            self.drafts[unit.last].next = number;
        }
        unit.last = number;
    }

    /// Ends a wave: what it said becomes rows.
    pub(crate) fn settle(&mut self) {
        for place in 0..self.touched.len() {
            self.fold(self.touched[place]);
        }
        self.touched.clear();
        self.book.clear();
        self.calls.clear();
        self.drafts.clear();
        self.texts.clear();
        self.operator = Span::default();
        self.states.clear();
    }

    /// Folds one unit's drafts of this wave into its row: the newest speaks, and what it is silent about
    /// stays as it was.
    fn fold(&mut self, told: usize) {
        let Told { place, first, .. } = self.units[told];
        self.order(first);
        let of_unit = || self.of_unit.iter().map(|number| &self.drafts[*number]);
        let (Some(oldest), Some(newest)) = (of_unit().next(), of_unit().next_back()) else { return };

        // What an earlier wave said of it.
        let older = (place.bytes.1 > 0).then(|| decode(&self.bytes[place.bytes.0..place.bytes.1]));
        let (mut channel, mut reason, mut group, mut caused_by) = (None, None, GroupId::default(), "");
        let mut until = older.as_ref().and_then(|row| row.until);
        self.did.clear();
        if let Some(older) = &older {
            (channel, reason, group, caused_by) = (older.channel, older.reason, older.group, &older.caused_by);
            self.did.extend_from_slice(&older.states);
        }
        for draft in of_unit() {
            channel = draft.channel.or(channel);
            reason = draft.reason.or(reason);
            if draft.group != GroupId::default() {
                group = draft.group;
            }
            if draft.caused_by.start < draft.caused_by.end {
                caused_by = &self.texts[draft.caused_by.range()];
            }
            let did = &self.states[draft.states.range()];
            // A second copy of an event opens a story that is under way: it still waits for what it waited.
            if !did.iter().all(|did| matches!(did, Did::Created | Did::Validated)) {
                until = draft.until;
            }
            let opened = !self.did.is_empty();
            for did in did {
                if !opened || *did != Did::Created {
                    self.did.push(*did);
                }
            }
        }
        let text = |span: Span| &self.texts[span.range()];
        let page = &newest.page;
        let (event_type, category) = match &newest.subject {
            Some(subject) => (&subject.event_type, &subject.category),
            None => (&page.event_type, &page.category),
        };
        let mut row = RowOf {
            row_id: Default::default(),
            day: 0,
            at: self.now,
            epoch: self.epoch,
            stage: self.stage,
            states: &self.did[..],
            unit: place.unit.0,
            event: newest.event,
            intent: newest.intent,
            notification: newest.notification,
            group,
            leg: newest.leg,
            silent: newest.silent,
            delivery: Default::default(),
            user: &*page.user,
            tenant: &*page.tenant,
            event_type,
            category,
            priority: newest.priority,
            channel,
            provider: "",
            code: "",
            message_id: "",
            operator: text(self.calls[newest.call.0].name),
            reason,
            attempt: 0,
            until,
            cost_microdollars: 0,
            created_at: older.as_ref().map_or(oldest.created_at, |row| row.created_at),
            ready_at: newest.ready_at,
            caused_by,
        };
        row.seal();
        let place = put(&mut self.bytes, &row, place.placement);
        let digest = xxh3_64(&self.bytes[place.bytes.0..place.bytes.1]);
        self.units[told] = Told { place, digest, first: NONE, last: NONE };
    }

    /// Gathers the drafts that hang on `first` in `of_unit`, in the order of the day. They nearly always
    /// come in it.
    fn order(&mut self, first: usize) {
        self.of_unit.clear();
        let (mut next, mut sorted, mut before) = (first, true, None);
        while let Some(draft) = self.drafts.get(next) {
            let call = draft.call;
            let late = |before: Call| before != call && self.in_order(before, call).is_gt();
            sorted &= !before.is_some_and(late);
            before = Some(call);
            self.of_unit.push(next);
            next = draft.next;
        }
        if !sorted {
            let mut of_unit = std::mem::take(&mut self.of_unit);
            let call = |number: &usize| self.drafts[*number].call;
            of_unit.sort_by(|one, two| self.in_order(call(one), call(two)));
            self.of_unit = of_unit;
        }
    }

    fn in_order(&self, one: Call, two: Call) -> Ordering {
        self.book.cmp_calls(&self.calls[one.0].speaker, &self.calls[two.0].speaker)
    }

    /// Ends the epoch: its rows, ordered by unit, and the sum of their digests.
    pub(crate) fn finish(&mut self) -> (Rows, u64) {
        self.settle();
        self.by_unit.clear();
        // Ids are hashes: their beginnings all but decide, and are small.
        let beginning = |told: &Told| (told.place.unit.0 as u64) << 62 | id_hash(&told.place.unit.1).swap_bytes() >> 2;
        self.order.clear();
        self.order.extend(self.units.iter().map(beginning).zip(0..));
        let unit = |number: u32| self.units[number as usize].place.unit;
        let by_unit = |(one, first): &(u64, u32), (two, second): &(u64, u32)| {
            one.cmp(two).then_with(|| unit(*first).cmp(&unit(*second)))
        };
        self.spread.sort(&mut self.order, |(beginning, _)| (beginning >> 54) as usize, by_unit);
        let digest = self.units.iter().fold(0_u64, |sum, told| sum.wrapping_add(told.digest));
        let bytes = self.buffers.exchange(&mut self.bytes);
        let rows = Rows::new(bytes, self.order.iter().map(|(_, number)| self.units[*number as usize].place));
        self.units.clear();
        (rows, digest)
    }
}

/// Appends `text` to `texts`.
fn text(texts: &mut String, text: &str) -> Span {
    let start = texts.len();
    texts.push_str(text);
    Span::until(start, texts.len())
}

// `Drafts::finish` has two bits for a unit.
const _: () = assert!(Unit::ALL.len() <= 4);

/// Ids are hashes already.
fn id_hash(id: &[u8; 16]) -> u64 {
    id.first_chunk().copied().map_or(0, u64::from_le_bytes)
}
