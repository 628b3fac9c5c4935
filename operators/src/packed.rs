//! Items as bytes, by hand: those that serde and postcard make of them. Every item that is parked is written once
//! and most are read once, and a field costs a few instructions here, and a hundred there.
//!
//! What is written is an optional item, because that is what operators park. What cannot be read here is left
//! to postcard, which says what is wrong; so this reads nothing that postcard would not, and the same.

use std::sync::Arc;

use smallvec::{Array, SmallVec};
use smol_str::SmolStr;
use tidings_schemas::channel::{Channel, Op, Priority};
use tidings_schemas::event::{Actor, Object};
use tidings_schemas::ids::{DedupKey, EventId, GroupId, IntentId, LegId, NotificationId};
use tidings_schemas::lane::ReturnCause;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use crate::item::{Content, Folded, Item, Member, Page, Subject};

/// Appends an item's bytes.
pub(crate) fn put(item: Option<&Item>, to: &mut Vec<u8>) {
    put_option(to, item, put_item);
}

/// Reads what [`put`] wrote. `None`: these are not the bytes of an item, or not as they are written here.
pub(crate) fn read(bytes: &[u8]) -> Option<Option<Box<Item>>> {
    let mut rest = Rest(bytes);
    let item = rest.option(|rest| rest.item().map(Box::new))?;
    rest.0.is_empty().then_some(item)
}

// Fields stand in the order of their structs. Each is taken apart whole, so that a new field does not compile until it
// is written here.

fn put_item(to: &mut Vec<u8>, item: &Item) {
    let Item {
        page,
        op,
        priority,
        notification,
        group,
        object,
        members,
        folded,
        channels,
        fallback,
        time,
        created_at,
        ready_at,
        scheduled_at,
        expires_at,
        candidates,
        struck,
        leg,
        silent,
        counted,
        returns,
        returned,
        replay,
        matched,
    } = item;
    put_page(to, page);
    to.extend_from_slice(&[*op as u8, *priority as u8]);
    put_ids(to, [&notification.0, &group.0]);
    put_option(to, object.as_deref(), |to, Object { id, kind }| {
        put_text(to, id);
        put_option(to, kind.as_deref(), put_text);
    });
    put_list(to, members, |to, member| put_member(to, member));
    let Folded { count, actors, hash } = folded;
    put_number(to, *count);
    put_number(to, *actors);
    to.extend_from_slice(hash);
    put_channels(to, channels);
    put_channels(to, fallback);
    [time, created_at, ready_at].into_iter().for_each(|at| put_instant(to, *at));
    put_option(to, *scheduled_at, put_instant);
    put_option(to, *expires_at, put_instant);
    put_channels(to, candidates);
    put_list(to, struck, |to, (channel, reason)| to.extend_from_slice(&[*channel as u8, *reason as u8]));
    put_option(to, leg.as_ref(), |to, leg| put_ids(to, [&leg.0]));
    to.extend_from_slice(&[u8::from(*silent), u8::from(*counted)]);
    put_number(to, u64::from(*returns));
    put_option(to, *returned, |to, cause| to.push(cause as u8));
    put_number(to, u64::from(*replay));
    put_number(to, *matched);
}

fn put_page(to: &mut Vec<u8>, page: &Page) {
    let Page { user, tenant, event_type, category, dedup_key, producer_key, producer_id, only_address } = page;
    [&**user, tenant, event_type, category].into_iter().for_each(|text| put_text(to, text));
    put_ids(to, [&dedup_key.0]);
    for text in [producer_key, producer_id, only_address] {
        put_option(to, text.as_deref(), put_text);
    }
}

fn put_member(to: &mut Vec<u8>, member: &Member) {
    let Member { event, intent, intent_by_id, cancel_key, actor, subject, content, created_at, expires_at } = member;
    put_ids(to, [&event.0, &intent.0, &intent_by_id.0]);
    put_option(to, cancel_key.as_deref(), put_text);
    put_option(to, actor.as_ref(), |to, Actor { id, name }| {
        put_text(to, id);
        put_option(to, name.as_deref(), put_text);
    });
    put_option(to, subject.as_deref(), |to, Subject { event_type, category, object }| {
        put_text(to, event_type);
        put_text(to, category);
        put_option(to, object.as_deref(), put_object);
    });
    let Content { data, template_id } = content;
    put_text(to, data);
    put_option(to, template_id.as_deref(), put_text);
    put_instant(to, *created_at);
    put_option(to, *expires_at, put_instant);
}

fn put_object(to: &mut Vec<u8>, Object { id, kind }: &Object) {
    put_text(to, id);
    put_option(to, kind.as_deref(), put_text);
}

/// Ids, each behind its length.
#[inline]
fn put_ids<const COUNT: usize>(to: &mut Vec<u8>, ids: [&[u8; 16]; COUNT]) {
    let mut bytes = [[16; 17]; COUNT];
    bytes.iter_mut().zip(ids).for_each(|(bytes, id)| bytes[1..].copy_from_slice(id));
    to.extend_from_slice(bytes.as_flattened());
}

#[inline]
fn put_number(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// Signed numbers are written so that small ones are short.
#[inline]
fn put_instant(to: &mut Vec<u8>, at: Instant) {
    put_number(to, (at.0 << 1 ^ at.0 >> 63).cast_unsigned());
}

#[inline]
fn put_text(to: &mut Vec<u8>, text: &str) {
    put_number(to, text.len() as u64);
    to.extend_from_slice(text.as_bytes());
}

fn put_channels(to: &mut Vec<u8>, channels: &[Channel]) {
    put_list(to, channels, |to, channel| to.push(*channel as u8));
}

#[inline]
fn put_option<T>(to: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    to.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(to, value);
    }
}

#[inline]
fn put_list<T>(to: &mut Vec<u8>, list: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    put_number(to, list.len() as u64);
    list.iter().for_each(|value| put(to, value));
}

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn item(&mut self) -> Option<Item> {
        Some(Item {
            page: Arc::new(self.page()?),
            op: self.word(Op::ALL)?,
            priority: self.word(Priority::ALL)?,
            notification: NotificationId(self.id()?),
            group: GroupId(self.id()?),
            object: self.option(|rest| rest.object().map(Arc::new))?,
            members: self.list(|rest| rest.member().map(Arc::new))?,
            folded: Folded { count: self.number()?, actors: self.number()?, hash: self.array()? },
            channels: self.list(Self::channel)?,
            fallback: self.list(Self::channel)?,
            time: self.instant()?,
            created_at: self.instant()?,
            ready_at: self.instant()?,
            scheduled_at: self.option(Self::instant)?,
            expires_at: self.option(Self::instant)?,
            candidates: self.list(Self::channel)?,
            struck: self.list(|rest| Some((rest.channel()?, rest.word(Reason::ALL)?)))?,
            leg: self.option(|rest| rest.id().map(LegId))?,
            silent: self.flag()?,
            counted: self.flag()?,
            returns: self.number()?.try_into().ok()?,
            returned: self.option(|rest| rest.word(&RETURN_CAUSES))?,
            replay: self.number()?.try_into().ok()?,
            matched: self.number()?,
        })
    }

    fn page(&mut self) -> Option<Page> {
        Some(Page {
            user: self.text()?.into(),
            tenant: self.short()?,
            event_type: self.short()?,
            category: self.short()?,
            dedup_key: DedupKey(self.id()?),
            producer_key: self.option(Self::short)?,
            producer_id: self.option(Self::short)?,
            only_address: self.option(Self::short)?,
        })
    }

    fn member(&mut self) -> Option<Member> {
        Some(Member {
            event: EventId(self.id()?),
            intent: IntentId(self.id()?),
            intent_by_id: IntentId(self.id()?),
            cancel_key: self.option(Self::short)?,
            actor: self.option(|rest| Some(Actor { id: rest.short()?, name: rest.option(Self::short)? }))?,
            subject: self.option(|rest| rest.subject().map(Arc::new))?,
            content: Content { data: self.text()?.into(), template_id: self.option(Self::short)? },
            created_at: self.instant()?,
            expires_at: self.option(Self::instant)?,
        })
    }

    fn subject(&mut self) -> Option<Subject> {
        let (event_type, category) = (self.short()?, self.short()?);
        Some(Subject { event_type, category, object: self.option(|rest| rest.object().map(Arc::new))? })
    }

    fn object(&mut self) -> Option<Object> {
        Some(Object { id: self.short()?, kind: self.option(Self::short)? })
    }

    fn channel(&mut self) -> Option<Channel> {
        self.word(Channel::ALL)
    }

    #[inline]
    fn array<const COUNT: usize>(&mut self) -> Option<[u8; COUNT]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    #[inline]
    fn id(&mut self) -> Option<[u8; 16]> {
        let [16] = self.array()? else { return None };
        self.array()
    }

    #[inline]
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let [byte] = self.array()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        // The tenth byte has room for one bit.
        let [last @ (0 | 1)] = self.array()? else { return None };
        Some(number | u64::from(last) << 63)
    }

    #[inline]
    fn instant(&mut self) -> Option<Instant> {
        let number = self.number()?;
        Some(Instant((number >> 1).cast_signed() ^ -(number & 1).cast_signed()))
    }

    #[inline]
    fn flag(&mut self) -> Option<bool> {
        match self.array()? {
            [0] => Some(false),
            [1] => Some(true),
            [_] => None,
        }
    }

    /// A word of a vocabulary, by its place there.
    #[inline]
    fn word<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        all.get(usize::try_from(self.number()?).ok()?).copied()
    }

    #[inline]
    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    fn short(&mut self) -> Option<SmolStr> {
        self.text().map(SmolStr::new)
    }

    #[inline]
    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        Some(if self.flag()? { Some(read(self)?) } else { None })
    }

    #[inline]
    fn list<A: Array>(&mut self, read: impl Fn(&mut Self) -> Option<A::Item>) -> Option<SmallVec<A>> {
        let mut list = SmallVec::new();
        for _ in 0..self.number()? {
            list.push(read(self)?);
        }
        Some(list)
    }
}

/// As [`ReturnCause`] declares them.
const RETURN_CAUSES: [ReturnCause; 3] = [ReturnCause::Stale, ReturnCause::Undeliverable, ReturnCause::Replay];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["[a-zé😀]{0,8}", "x{0,200}"]
    }

    fn short() -> impl Strategy<Value = SmolStr> {
        text().prop_map(SmolStr::from)
    }

    fn optional_short() -> impl Strategy<Value = Option<SmolStr>> {
        prop::option::of(short())
    }

    fn instant() -> impl Strategy<Value = Instant> {
        prop_oneof![any::<i64>(), 0_i64..4_102_444_800_000, Just(i64::MIN), Just(-1)].prop_map(Instant)
    }

    fn object() -> impl Strategy<Value = Option<Arc<Object>>> {
        prop::option::of((short(), optional_short()).prop_map(|(id, kind)| Arc::new(Object { id, kind })))
    }

    fn channels<A: Array<Item = Channel>>() -> impl Strategy<Value = SmallVec<A>> {
        prop::collection::vec(prop::sample::select(Channel::ALL), 0..12).prop_map(SmallVec::from_vec)
    }

    fn page() -> impl Strategy<Value = Page> {
        (text(), prop::array::uniform3(short()), any::<[u8; 16]>(), prop::array::uniform3(optional_short())).prop_map(
            |(user, [tenant, event_type, category], key, [producer_key, producer_id, only_address])| Page {
                user: user.into(),
                tenant,
                event_type,
                category,
                dedup_key: DedupKey(key),
                producer_key,
                producer_id,
                only_address,
            },
        )
    }

    fn member() -> impl Strategy<Value = Arc<Member>> {
        let actor = (short(), optional_short()).prop_map(|(id, name)| Actor { id, name });
        let subject = (short(), short(), object());
        let subject = subject.prop_map(|(event_type, category, object)| Subject { event_type, category, object });
        let parts = (
            any::<[[u8; 16]; 3]>(),
            optional_short(),
            prop::option::of(actor),
            prop::option::of(subject.prop_map(Arc::new)),
            (text(), optional_short()),
            (instant(), prop::option::of(instant())),
        );
        parts.prop_map(|(ids, cancel_key, actor, subject, (data, template_id), (created_at, expires_at))| {
            Arc::new(Member {
                event: EventId(ids[0]),
                intent: IntentId(ids[1]),
                intent_by_id: IntentId(ids[2]),
                cancel_key,
                actor,
                subject,
                content: Content { data: data.into(), template_id },
                created_at,
                expires_at,
            })
        })
    }

    fn item() -> impl Strategy<Value = Item> {
        let words = (prop::sample::select(Op::ALL), prop::sample::select(Priority::ALL));
        let struck = (prop::sample::select(Channel::ALL), prop::sample::select(Reason::ALL));
        let parts = (
            (page().prop_map(Arc::new), words, any::<[[u8; 16]; 4]>(), object()),
            (prop::collection::vec(member(), 0..4), any::<[u64; 3]>(), any::<[u32; 2]>()),
            (channels(), channels(), channels(), prop::collection::vec(struck, 0..7)),
            (prop::array::uniform3(instant()), prop::array::uniform2(prop::option::of(instant()))),
            (any::<[bool; 3]>(), prop::option::of(prop::sample::select(&RETURN_CAUSES[..]))),
        );
        parts.prop_map(|(said, of_members, of_channels, instants, (flags, returned))| {
            let (page, (op, priority), ids, object) = said;
            let (members, numbers, small) = of_members;
            let (channels, fallback, candidates, struck) = of_channels;
            let ([time, created_at, ready_at], [scheduled_at, expires_at]) = instants;
            Item {
                page,
                op,
                priority,
                notification: NotificationId(ids[0]),
                group: GroupId(ids[1]),
                object,
                members: members.into(),
                folded: Folded { count: numbers[0], actors: numbers[1], hash: ids[2] },
                channels,
                fallback,
                time,
                created_at,
                ready_at,
                scheduled_at,
                expires_at,
                candidates,
                struck: struck.into(),
                leg: flags[0].then_some(LegId(ids[3])),
                silent: flags[1],
                counted: flags[2],
                returns: small[0],
                returned,
                replay: small[1],
                matched: numbers[2],
            }
        })
    }

    proptest! {
        // Postcard is the oracle of what is written and read by hand.
        #[test]
        fn bytes_by_hand_are_those_of_postcard(item in prop::option::of(item().prop_map(Box::new))) {
            let expected = postcard::to_stdvec(&item).unwrap();
            let mut bytes = b"before".to_vec();
            put(item.as_deref(), &mut bytes);
            prop_assert_eq!(&bytes[6..], &expected);
            prop_assert_eq!(read(&expected), Some(item));
        }

        #[test]
        fn what_is_damaged_is_read_as_postcard_reads_it_or_left_to_it(
            item in item().prop_map(Box::new), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
        ) {
            let mut bytes = postcard::to_stdvec(&Some(item)).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
            if let Some(item) = read(&bytes) {
                prop_assert_eq!(postcard::from_bytes::<Option<Box<Item>>>(&bytes), Ok(item));
            }
        }
    }
}
