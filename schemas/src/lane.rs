//! The contract between decide and deliver: lane records and marks.
//!
//! A lane record is JSON, legible with kcat; its headers `g` (generation), `e` (epoch) and
//! `ordinal` let a reader drop repeats of an epoch that a mark has passed. Records of the critical
//! path have none of the three.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::channel::{Channel, Priority};
use crate::event::Object;
use crate::ids::{EventId, GroupId, LegId, NotificationId, hex};
use crate::json;
use crate::reason::Reason;
use crate::time::{Instant, InstantTexts};

/// Header: the generation that wrote the record.
pub const HEADER_GENERATION: &str = "g";
/// Header: the epoch whose output it is.
pub const HEADER_EPOCH: &str = "e";
/// Header: its place within the epoch.
pub const HEADER_ORDINAL: &str = "ordinal";
/// Header: the record is a [`Mark`].
pub const HEADER_MARK: &str = "mark";
/// Header: the event id that a handed-over record keeps.
pub const HEADER_EVENT: &str = "event";
/// Header: when the event of a handed-over record was accepted, RFC 3339. The record's own timestamp says when
/// it was handed over, and after a crash that may happen twice.
pub const HEADER_ACCEPTED: &str = "accepted";
/// Header: when a record of a retry topic is due, RFC 3339.
pub const HEADER_DUE: &str = "due";

/// The headers of a record that hands `event` over between the two paths.
#[must_use]
pub fn handed_over(event: EventId, accepted: Instant) -> [(String, Bytes); 2] {
    let header = |name: &str, text: String| (name.to_owned(), Bytes::from(text));
    [header(HEADER_EVENT, event.to_string()), header(HEADER_ACCEPTED, accepted.to_string())]
}

/// The version that [`LaneRecord::v`] has today.
pub const LANE_VERSION: u8 = 1;

/// What the producer asked for, kept for the way back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Explicit channels, all of them used.
    #[serde(default)]
    pub channels: Vec<Channel>,
    /// Channels to try one after the other when delivery fails for good.
    #[serde(default)]
    pub fallback: Vec<Channel>,
}

/// One notification on its way to one channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneRecord {
    /// Format version.
    pub v: u8,
    /// What is said.
    pub notification: NotificationId,
    /// The leg.
    pub leg: LegId,
    /// The group it came from, zero if it was never merged.
    pub group: GroupId,
    /// The first event; the only one of a notification of one.
    pub event: EventId,
    /// Who is told.
    pub user: String,
    /// The tenant.
    pub tenant: String,
    /// The type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The category.
    pub category: String,
    /// The priority.
    pub priority: Priority,
    /// The channel.
    pub channel: Channel,
    /// In-app without a badge.
    pub silent: bool,
    /// The template, where the producer or the policy names one.
    #[serde(default)]
    pub template_id: Option<String>,
    /// The user's locale.
    #[serde(default)]
    pub locale: Option<String>,
    /// Variables for the text.
    #[serde(default)]
    pub data: BTreeMap<String, serde_json::Value>,
    /// The first actors' names.
    #[serde(default)]
    pub actors: Vec<String>,
    /// Distinct actors.
    pub actors_count: u64,
    /// Events merged.
    pub activities: u64,
    /// To what it was done, where all members agree.
    #[serde(default)]
    pub object: Option<Object>,
    /// Ids of the members that are kept.
    #[serde(default)]
    pub members: Vec<EventId>,
    /// What the producer asked for.
    #[serde(default)]
    pub request: Request,
    /// Candidates that were struck, with reason.
    #[serde(default)]
    pub struck: Vec<(Channel, Reason)>,
    /// How often it came back.
    pub returns: u32,
    /// When the oldest member was accepted.
    pub created_at: Instant,
    /// When it was last released.
    pub ready_at: Instant,
    /// Not after this.
    #[serde(default)]
    pub expires_at: Option<Instant>,
    /// Beyond this decide must judge it again.
    pub fresh_until: Instant,
    /// Channels to try next when all addresses failed; on the first leg only.
    #[serde(default)]
    pub fallback_channels: Vec<Channel>,
    /// Which replay of the notification this is.
    pub replay: u32,
    /// Only to this address.
    #[serde(default)]
    pub only_address: Option<String>,
}

/// A lane record in borrowed parts: what decide writes. Its bytes are those of the [`LaneRecord`] of the
/// same parts.
#[derive(Clone, Copy, Debug)]
pub struct LaneRef<'a> {
    /// What is said.
    pub notification: NotificationId,
    /// The leg.
    pub leg: LegId,
    /// The group it came from, zero if it was never merged.
    pub group: GroupId,
    /// The first event.
    pub event: EventId,
    /// Who is told.
    pub user: &'a str,
    /// The tenant.
    pub tenant: &'a str,
    /// The type.
    pub event_type: &'a str,
    /// The category.
    pub category: &'a str,
    /// The priority.
    pub priority: Priority,
    /// The channel.
    pub channel: Channel,
    /// In-app without a badge.
    pub silent: bool,
    /// The template, if one is named.
    pub template_id: Option<&'a str>,
    /// The user's locale.
    pub locale: Option<&'a str>,
    /// Variables: a JSON object without spaces, its keys in order; empty for none.
    pub data: &'a str,
    /// The first actors' names.
    pub actors: &'a [&'a str],
    /// Distinct actors.
    pub actors_count: u64,
    /// Events merged.
    pub activities: u64,
    /// To what it was done.
    pub object: Option<&'a Object>,
    /// Ids of the members that are kept.
    pub members: &'a [EventId],
    /// Explicit channels.
    pub channels: &'a [Channel],
    /// Channels to try when delivery fails for good.
    pub fallback: &'a [Channel],
    /// Candidates that were struck, with reason.
    pub struck: &'a [(Channel, Reason)],
    /// How often it came back.
    pub returns: u32,
    /// When the oldest member was accepted.
    pub created_at: Instant,
    /// When it was last released.
    pub ready_at: Instant,
    /// Not after this.
    pub expires_at: Option<Instant>,
    /// Beyond this decide must judge it again.
    pub fresh_until: Instant,
    /// Which replay of the notification this is.
    pub replay: u32,
    /// Only to this address.
    pub only_address: Option<&'a str>,
}

/// What a record of common length takes beside its data: room is made for so many at a time.
const RECORD_BYTES: usize = 1_024;

/// Texts that the records of an epoch repeat: instants, and what stands between user and data, which is the
/// same for all records of one type on one channel. Copying is several times cheaper than writing.
#[derive(Clone, Debug, Default)]
pub struct LaneTexts {
    instants: InstantTexts,
    phrases: Vec<Phrase>,
}

/// What stands between user and data, and what it was made of.
#[derive(Clone, Debug, Default)]
struct Phrase {
    tenant: String,
    event_type: String,
    category: String,
    /// Priority, channel, silent.
    words: Option<(Priority, Channel, bool)>,
    template_id: Option<String>,
    locale: Option<String>,
    text: Vec<u8>,
}

impl LaneTexts {
    /// Several times as many as types on channels, because those that meet in one place take turns.
    const PHRASES: usize = 512;

    /// The phrase of a record.
    #[inline]
    fn phrase(&mut self, record: &LaneRef<'_>) -> &[u8] {
        // Any place will do, if it is another's for others. Types differ in their length or in how they begin or end.
        let event_type = record.event_type.as_bytes();
        let ends = [event_type.first(), event_type.last()].map(|byte| u64::from(byte.copied().unwrap_or_default()));
        let words = [record.channel as u64, record.priority as u64, u64::from(record.silent), event_type.len() as u64];
        let mixed = words.into_iter().chain(ends).fold(0, |mixed, word| mixed << 8 | word & 0xff);
        let place = (u64::wrapping_mul(mixed, 0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        if self.phrases.is_empty() {
            self.phrases.resize_with(Self::PHRASES, Phrase::default);
        }
        let phrase = &mut self.phrases[place % Self::PHRASES];
        let is_it = phrase.words == Some((record.priority, record.channel, record.silent))
            && phrase.event_type == record.event_type
            && phrase.category == record.category
            && phrase.tenant == record.tenant
            && phrase.template_id.as_deref() == record.template_id
            && phrase.locale.as_deref() == record.locale;
        if !is_it {
            *phrase = Phrase::of(record);
        }
        &phrase.text
    }
}

impl Phrase {
    #[cold]
    fn of(record: &LaneRef<'_>) -> Self {
        let mut text = Vec::new();
        let to = &mut text;
        to.extend_from_slice(br#","tenant":"#);
        json::put_text(to, record.tenant);
        to.extend_from_slice(br#","type":"#);
        json::put_text(to, record.event_type);
        to.extend_from_slice(br#","category":"#);
        json::put_text(to, record.category);
        to.extend_from_slice(br#","priority":"#);
        json::put_word(to, record.priority.as_str());
        to.extend_from_slice(br#","channel":"#);
        json::put_word(to, record.channel.as_str());
        to.extend_from_slice(br#","silent":"#);
        json::put_bool(to, record.silent);
        to.extend_from_slice(br#","template_id":"#);
        json::put_option(to, record.template_id, json::put_text);
        to.extend_from_slice(br#","locale":"#);
        json::put_option(to, record.locale, json::put_text);
        to.extend_from_slice(br#","data":"#);
        Self {
            tenant: record.tenant.to_owned(),
            event_type: record.event_type.to_owned(),
            category: record.category.to_owned(),
            words: Some((record.priority, record.channel, record.silent)),
            template_id: record.template_id.map(str::to_owned),
            locale: record.locale.map(str::to_owned),
            text,
        }
    }
}

/// A record's beginning, which has the same length whatever it says. Few are of a group.
const HEAD: [u8; 199] = *br#"{"v":1,"notification":"n_________________________________","leg":"l_________________________________","group":"g_00000000000000000000000000000000","event":"e_________________________________","user":"#;
const _: () = assert!(LANE_VERSION == 1);

/// Where the digits of an id begin in [`HEAD`].
const fn digits_of(prefix: u8) -> usize {
    let mut place = 0;
    while HEAD[place] != prefix || HEAD[place + 1] != b'_' || HEAD[place - 1] != b'"' {
        place += 1;
    }
    place + 2
}
const NOTIFICATION: usize = digits_of(b'n');
const LEG: usize = digits_of(b'l');
const GROUP: usize = digits_of(b'g');
const EVENT: usize = digits_of(b'e');

impl LaneRef<'_> {
    /// Appends the record as JSON. `texts` are shared by the records of an epoch.
    pub fn put(&self, to: &mut Vec<u8>, texts: &mut LaneTexts) {
        let channel = |to: &mut Vec<u8>, channel: &Channel| json::put_word(to, channel.as_str());
        to.reserve(RECORD_BYTES + self.data.len());
        let mut head = HEAD;
        for (place, id) in [(NOTIFICATION, &self.notification.0), (LEG, &self.leg.0), (EVENT, &self.event.0)] {
            head[place..place + 32].copy_from_slice(&hex(id));
        }
        if self.group != GroupId::default() {
            head[GROUP..GROUP + 32].copy_from_slice(&hex(&self.group.0));
        }
        to.extend_from_slice(&head);
        json::put_text(to, self.user);
        to.extend_from_slice(texts.phrase(self));
        to.extend_from_slice(if self.data.is_empty() { b"{}" } else { self.data.as_bytes() });
        to.extend_from_slice(br#","actors":"#);
        json::put_list(to, self.actors, |to, name| json::put_text(to, name));
        to.extend_from_slice(br#","actors_count":"#);
        json::put_number(to, self.actors_count);
        to.extend_from_slice(br#","activities":"#);
        json::put_number(to, self.activities);
        match self.object {
            None => to.extend_from_slice(br#","object":null,"members":"#),
            Some(object) => {
                to.extend_from_slice(br#","object":{"id":"#);
                json::put_text(to, &object.id);
                to.extend_from_slice(br#","kind":"#);
                json::put_option(to, object.kind.as_deref(), json::put_text);
                to.extend_from_slice(br#"},"members":"#);
            }
        }
        if *self.members == [self.event] {
            to.extend_from_slice(b"[\"");
            to.extend_from_slice(&head[EVENT - 2..EVENT + 32]);
            to.extend_from_slice(b"\"]");
        } else {
            json::put_list(to, self.members, |to, event| json::put_id(to, event.text()));
        }
        to.extend_from_slice(br#","request":{"channels":"#);
        json::put_list(to, self.channels, channel);
        if self.fallback.is_empty() && self.struck.is_empty() {
            to.extend_from_slice(br#","fallback":[]},"struck":[],"returns":"#);
        } else {
            to.extend_from_slice(br#","fallback":"#);
            json::put_list(to, self.fallback, channel);
            to.extend_from_slice(br#"},"struck":"#);
            json::put_list(to, self.struck, |to, (struck, reason)| {
                to.push(b'[');
                channel(to, struck);
                to.push(b',');
                json::put_word(to, reason.as_str());
                to.push(b']');
            });
            to.extend_from_slice(br#","returns":"#);
        }
        json::put_number(to, u64::from(self.returns));
        let instants = &mut texts.instants;
        to.extend_from_slice(br#","created_at":"#);
        json::put_instant(to, self.created_at, instants);
        to.extend_from_slice(br#","ready_at":"#);
        json::put_instant(to, self.ready_at, instants);
        to.extend_from_slice(br#","expires_at":"#);
        json::put_option(to, self.expires_at, |to, at| json::put_instant(to, at, instants));
        to.extend_from_slice(br#","fresh_until":"#);
        json::put_instant(to, self.fresh_until, instants);
        to.extend_from_slice(br#","fallback_channels":"#);
        json::put_list(to, self.fallback, channel);
        to.extend_from_slice(br#","replay":"#);
        json::put_number(to, u64::from(self.replay));
        match self.only_address {
            None => to.extend_from_slice(br#","only_address":null}"#),
            Some(address) => {
                to.extend_from_slice(br#","only_address":"#);
                json::put_text(to, address);
                to.push(b'}');
            }
        }
    }
}

/// Why a leg comes back to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReturnCause {
    /// `fresh_until` passed before it could be sent: the same channel is judged anew.
    Stale,
    /// Every address failed for good: the next fallback.
    Undeliverable,
    /// An operator replays it from the dead-letter queue.
    Replay,
}

/// A record of `notifications.returned`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Returned {
    /// Why.
    pub cause: ReturnCause,
    /// The leg as it was.
    pub leg: LaneRecord,
}

/// Says in a lane partition that every epoch up to `said_through` was said: readers drop records
/// of those epochs that come after it, because they are repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The generation that wrote it.
    pub g: u64,
    /// The highest epoch that was said.
    pub said_through: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The record of the parts: `serde` is the oracle of what is written by hand.
    fn record(parts: &LaneRef<'_>) -> LaneRecord {
        LaneRecord {
            v: LANE_VERSION,
            notification: parts.notification,
            leg: parts.leg,
            group: parts.group,
            event: parts.event,
            user: parts.user.to_owned(),
            tenant: parts.tenant.to_owned(),
            event_type: parts.event_type.to_owned(),
            category: parts.category.to_owned(),
            priority: parts.priority,
            channel: parts.channel,
            silent: parts.silent,
            template_id: parts.template_id.map(str::to_owned),
            locale: parts.locale.map(str::to_owned),
            data: serde_json::from_str(parts.data).unwrap_or_default(),
            actors: parts.actors.iter().map(|name| (*name).to_owned()).collect(),
            actors_count: parts.actors_count,
            activities: parts.activities,
            object: parts.object.cloned(),
            members: parts.members.to_vec(),
            request: Request { channels: parts.channels.to_vec(), fallback: parts.fallback.to_vec() },
            struck: parts.struck.to_vec(),
            returns: parts.returns,
            created_at: parts.created_at,
            ready_at: parts.ready_at,
            expires_at: parts.expires_at,
            fresh_until: parts.fresh_until,
            fallback_channels: parts.fallback.to_vec(),
            replay: parts.replay,
            only_address: parts.only_address.map(str::to_owned),
        }
    }

    proptest! {
        #[test]
        fn bytes_by_hand_are_those_of_serde(
            texts in prop::collection::vec(r#"[a-z"\\\\\u{0}-\u{1f}\u{7f}é😀/]{0,12}"#, 8),
            (numbers, instants) in (any::<[u64; 2]>(), prop::array::uniform4(0_i64..4_102_444_800_000)),
            (replay, count, flag) in (any::<u32>(), 0_usize..3, any::<bool>()),
        ) {
            let event = EventId::new(&texts[0], replay, numbers[0]);
            let notification = NotificationId::new("validate", &texts[0], b"", &mut [event]);
            let object = Object { id: texts[5].as_str().into(), kind: flag.then(|| texts[6].as_str().into()) };
            let data = serde_json::json!({ &texts[1]: [texts[2], null, 1.5], "n": numbers[1] }).to_string();
            let members = [event, EventId::default(), EventId::new("", 0, 1)];
            let parts = LaneRef {
                notification,
                leg: LegId::new(notification, "push", replay),
                group: if flag { GroupId::new(&texts[0], &texts[1], b"", event) } else { GroupId::default() },
                event,
                user: &texts[0],
                tenant: &texts[1],
                event_type: &texts[2],
                category: &texts[3],
                priority: Priority::ALL[count],
                channel: Channel::ALL[count],
                silent: flag,
                template_id: flag.then_some(&texts[4]),
                locale: (!flag).then_some("de-CH"),
                data: if count == 0 { "" } else { &data },
                actors: &[texts[6].as_str(), texts[7].as_str()][..count.min(2)],
                actors_count: numbers[0],
                activities: numbers[1],
                object: (count > 0).then_some(&object),
                members: &members[..count],
                channels: &Channel::ALL[..count],
                fallback: &Channel::ALL[count..],
                struck: &[(Channel::Sms, Reason::NoConsent), (Channel::Push, Reason::OptedOut)][..count.min(2)],
                returns: replay,
                created_at: Instant(instants[0]),
                ready_at: Instant(instants[1]),
                expires_at: flag.then_some(Instant(instants[2])),
                fresh_until: Instant(instants[3]),
                replay,
                only_address: (!flag).then_some(&texts[7]),
            };
            let mut bytes = b"before".to_vec();
            parts.put(&mut bytes, &mut LaneTexts::default());
            let expected = serde_json::to_string(&record(&parts)).unwrap();
            prop_assert_eq!(String::from_utf8(bytes).unwrap(), format!("before{expected}"));
        }
    }
}
