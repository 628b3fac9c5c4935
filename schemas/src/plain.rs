//! Reads the events that producers write all day without building a tree: known keys, each once, and
//! `data` of any kind, brought into its canonical text.
//!
//! What it does not understand, and whatever is wrong, it leaves to [`Event::from_json`], which knows
//! every shape and says what is wrong where. So this reader only accepts what that one accepts, and
//! reads the same.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::Range;

use serde::de::DeserializeOwned;
use smallvec::SmallVec;
use smol_str::SmolStr;

use crate::channel::{Channel, Op, Priority};
use crate::event::{Actor, Event, ID_BYTES_MAX, KEY_BYTES_MAX, Object, RECORD_BYTES_MAX, normal_type};
use crate::json::{first_eight, first_quote, is_plain, specials, specials_of_sixteen};
use crate::time::Instant;

/// Levels of objects and lists within one value of `data` that are read here. serde_json reads 127,
/// and a text that it could not read again must not come of this.
const DEPTH_MAX: usize = 64;

/// Channels in order. There are few enough to lie in place.
pub type Channels = SmallVec<[Channel; 8]>;

/// An event whose texts are the record's own where they can be. Its fields are [`Event`]'s.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of `Event`")]
pub struct PlainEvent<'a> {
    pub id: Option<Cow<'a, str>>,
    pub event_type: Cow<'a, str>,
    pub user_id: Cow<'a, str>,
    pub tenant: Cow<'a, str>,
    pub time: Option<Instant>,
    pub actor: Option<Actor>,
    pub object: Option<Object>,
    /// A JSON object as text: keys in order, no space, one way to write each value.
    pub data: Cow<'a, str>,
    pub dedup_key: Option<Cow<'a, str>>,
    pub channels: Option<Channels>,
    pub fallback_channels: Option<Channels>,
    pub priority: Option<Priority>,
    pub template_id: Option<Cow<'a, str>>,
    pub scheduled_at: Option<Instant>,
    pub expires_at: Option<Instant>,
    pub cancel_key: Option<Cow<'a, str>>,
    /// Absent is `notify`.
    pub op: Option<Op>,
}

impl From<Event> for PlainEvent<'_> {
    fn from(event: Event) -> Self {
        Self {
            id: event.id.map(Cow::Owned),
            event_type: Cow::Owned(event.event_type),
            user_id: Cow::Owned(event.user_id),
            tenant: Cow::Owned(event.tenant),
            time: event.time,
            actor: event.actor,
            object: event.object,
            // A map of texts to values is something that JSON can hold.
            data: Cow::Owned(serde_json::to_string(&event.data).unwrap_or_default()),
            dedup_key: event.dedup_key.map(Cow::Owned),
            channels: event.channels.map(Channels::from),
            fallback_channels: event.fallback_channels.map(Channels::from),
            priority: event.priority,
            template_id: event.template_id.map(Cow::Owned),
            scheduled_at: event.scheduled_at,
            expires_at: event.expires_at,
            cancel_key: event.cancel_key.map(Cow::Owned),
            op: Some(event.op),
        }
    }
}

/// A key of at most seven bytes with its closing quote, as one word.
const fn beginning(key: &str) -> u64 {
    let (mut word, mut place) = ((b'"' as u64) << (8 * key.len()), 0);
    while place < key.len() {
        word |= (key.as_bytes()[place] as u64) << (8 * place);
        place += 1;
    }
    word
}

const ID: u64 = beginning("id");
const TYPE: u64 = beginning("type");
const USER_ID: u64 = beginning("user_id");
const TENANT: u64 = beginning("tenant");
const TIME: u64 = beginning("time");
const ACTOR: u64 = beginning("actor");
const OBJECT: u64 = beginning("object");
const DATA: u64 = beginning("data");
const OP: u64 = beginning("op");
const NAME: u64 = beginning("name");
const KIND: u64 = beginning("kind");

impl<'a> PlainEvent<'a> {
    /// Reads `record`; none where it takes the general reader.
    #[must_use]
    pub fn read(record: &'a [u8]) -> Option<Self> {
        if record.len() > RECORD_BYTES_MAX {
            return None;
        }
        let mut scan = Scan { text: std::str::from_utf8(record).ok()?, at: 0 };
        let mut event = Self { data: Cow::Borrowed("{}"), ..Self::default() };
        let mut seen = 0_u32;
        scan.object(|scan, key| {
            let field = match key.beginning {
                ID => (event.id = scan.or_null(Scan::string)?, 0).1,
                TYPE => (event.event_type = scan.string()?, 1).1,
                USER_ID => (event.user_id = scan.string()?, 2).1,
                TENANT => (event.tenant = scan.string()?, 3).1,
                TIME => (event.time = scan.or_null(Scan::instant)?, 4).1,
                ACTOR => (event.actor = scan.or_null(Scan::actor)?, 5).1,
                OBJECT => (event.object = scan.or_null(Scan::thing)?, 6).1,
                DATA => (event.data = scan.data()?, 7).1,
                OP => (event.op = Some(scan.word()?), 8).1,
                _ => match scan.text.get(key.range())? {
                    "dedup_key" => (event.dedup_key = scan.or_null(Scan::string)?, 9).1,
                    "channels" => (event.channels = scan.or_null(Scan::channels)?, 10).1,
                    "fallback_channels" => (event.fallback_channels = scan.or_null(Scan::channels)?, 11).1,
                    "priority" => (event.priority = scan.or_null(Scan::word)?, 12).1,
                    "template_id" => (event.template_id = scan.or_null(Scan::string)?, 13).1,
                    "scheduled_at" => (event.scheduled_at = scan.or_null(Scan::instant)?, 14).1,
                    "expires_at" => (event.expires_at = scan.or_null(Scan::instant)?, 15).1,
                    "cancel_key" => (event.cancel_key = scan.or_null(Scan::string)?, 16).1,
                    _ => return None,
                },
            };
            let again = seen & (1 << field) != 0;
            seen |= 1 << field;
            (!again).then_some(())
        })?;
        if !scan.ends() || !event.fits() {
            return None;
        }
        event.put_in_order();
        Some(event)
    }

    /// The bounds of [`Event::checked`].
    fn fits(&self) -> bool {
        let within = |text: &str, most| !text.is_empty() && text.len() <= most;
        let fits = |text: &Option<Cow<'_, str>>, most| text.as_ref().is_none_or(|text| within(text, most));
        within(&self.user_id, ID_BYTES_MAX)
            && within(&self.event_type, ID_BYTES_MAX)
            && self.tenant.len() <= ID_BYTES_MAX
            && fits(&self.id, KEY_BYTES_MAX)
            && fits(&self.dedup_key, KEY_BYTES_MAX)
            && fits(&self.cancel_key, KEY_BYTES_MAX)
            && fits(&self.template_id, ID_BYTES_MAX)
            && self.actor.as_ref().is_none_or(|actor| within(&actor.id, ID_BYTES_MAX))
            && self.object.as_ref().is_none_or(|object| within(&object.id, ID_BYTES_MAX))
            && !self.channels.as_ref().is_some_and(|channels| channels.is_empty())
    }

    /// Does what [`Event::checked`] does to an event that fits.
    fn put_in_order(&mut self) {
        if self.event_type.bytes().any(|byte| matches!(byte, b'.' | b'-' | b' ' | b'A'..=b'Z')) {
            self.event_type = Cow::Owned(normal_type(&self.event_type));
        }
    }
}

/// A key: where it stands. Of one that is short nobody has looked yet whether it holds an escape; but then it is
/// none that is known here.
#[derive(Clone, Copy)]
struct Key {
    start: usize,
    end: usize,
    /// Of a short one, as [`beginning`]; else its first eight bytes.
    beginning: u64,
}

impl Key {
    const fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// A member of `data`.
struct Member<'a> {
    /// Nearly always says the order of two keys.
    beginning: u64,
    key: &'a str,
    all: &'a str,
}

impl Member<'_> {
    #[inline]
    fn by_key(&self, other: &Self) -> Ordering {
        self.beginning.cmp(&other.beginning).then_with(|| self.key.cmp(other.key))
    }
}

/// The text that stands under `key` in an object in canonical form; none where there is none, or where it takes the
/// general reader to know.
#[must_use]
pub fn text_of<'a>(data: &'a str, key: &str) -> Option<&'a str> {
    let mut scan = Scan { text: data, at: 1 };
    loop {
        let found = scan.opens().then(|| scan.verbatim())??;
        if !scan.takes(b':') {
            return None;
        }
        if found == key {
            return scan.opens().then(|| scan.verbatim())?;
        }
        scan.at = scan.dense_value()?;
        if !scan.takes(b',') {
            return None;
        }
    }
}

/// Eight bytes from `at`, filled up with zeros where the text ends.
#[inline(always)]
fn eight(bytes: &[u8], at: usize) -> [u8; 8] {
    match bytes.get(at..).and_then(<[u8]>::first_chunk) {
        Some(word) => *word,
        None => last_eight(bytes, at),
    }
}

#[cold]
fn last_eight(bytes: &[u8], at: usize) -> [u8; 8] {
    std::array::from_fn(|place| bytes.get(at + place).copied().unwrap_or_default())
}

/// A place in a text. Every method answers `None` where the text does not go on as expected, or in
/// a way that is left to the general reader.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    /// The next byte, whatever it is.
    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is no space.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        let byte = self.byte()?;
        if byte > b' ' { Some(byte) } else { self.behind_space() }
    }

    #[cold]
    fn behind_space(&mut self) -> Option<u8> {
        while matches!(self.byte()?, b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
        self.byte()
    }

    #[inline]
    fn takes(&mut self, byte: u8) -> bool {
        let takes = self.peek() == Some(byte);
        self.at += usize::from(takes);
        takes
    }

    fn ends(&mut self) -> bool {
        self.peek().is_none()
    }

    /// An opening quote.
    #[inline]
    fn opens(&mut self) -> bool {
        self.takes(b'"')
    }

    /// The text up to the closing quote, whose opening one is passed, as the closing one is then; none if it
    /// holds anything else than characters that stand for themselves.
    #[inline(always)]
    fn verbatim(&mut self) -> Option<&'a str> {
        let end = self.end_of_text()?;
        let text = self.text.get(self.at..end)?;
        self.at = end + 1;
        Some(text)
    }

    /// Where the closing quote of a text stands whose opening one is passed.
    #[inline(always)]
    fn end_of_text(&self) -> Option<usize> {
        let (bytes, mut at) = (self.text.as_bytes(), self.at);
        while let Some(sixteen) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
            match specials_of_sixteen(*sixteen) {
                0 => at += 16,
                found => {
                    let end = at + found.trailing_zeros() as usize;
                    return (bytes.get(end) == Some(&b'"')).then_some(end);
                }
            }
        }
        self.end_near_end(at)
    }

    /// The same where fewer than sixteen bytes are left.
    #[cold]
    fn end_near_end(&self, from: usize) -> Option<usize> {
        let (bytes, mut at) = (self.text.as_bytes(), from);
        let end = loop {
            // Zeros are not for themselves either: behind the text's end something is always found.
            match specials(eight(bytes, at)) {
                0 => at += 8,
                found => break at + found.trailing_zeros() as usize / 8,
            }
        };
        (bytes.get(end) == Some(&b'"')).then_some(end)
    }

    /// A key, whose opening quote is passed.
    #[inline(always)]
    fn key(&mut self) -> Option<Key> {
        let (start, word) = (self.at, u64::from_le_bytes(eight(self.text.as_bytes(), self.at)));
        let (end, beginning) = match first_quote(word) {
            0 => (self.end_of_text()?, word),
            quote => (start + quote.trailing_zeros() as usize / 8, word & (quote | (quote - 1))),
        };
        self.at = end + 1;
        Some(Key { start, end, beginning })
    }

    #[inline(always)]
    fn string(&mut self) -> Option<Cow<'a, str>> {
        if !self.opens() {
            return None;
        }
        match self.verbatim() {
            Some(text) => Some(Cow::Borrowed(text)),
            None => self.escaped(),
        }
    }

    /// A text that is none of these, whose opening quote is passed.
    #[cold]
    fn escaped(&mut self) -> Option<Cow<'a, str>> {
        self.at -= 1;
        self.general().map(Cow::Owned)
    }

    /// A value as serde_json reads it.
    #[cold]
    fn general<T: DeserializeOwned>(&mut self) -> Option<T> {
        let mut values = serde_json::Deserializer::from_str(&self.text[self.at..]).into_iter();
        let value = values.next()?.ok()?;
        self.at += values.byte_offset();
        Some(value)
    }

    #[inline(always)]
    fn or_null<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.peek() == Some(b'n') {
            return self.literal("null").map(|()| None);
        }
        read(self).map(Some)
    }

    fn literal(&mut self, literal: &'static str) -> Option<()> {
        let found = self.text.as_bytes().get(self.at..)?.starts_with(literal.as_bytes());
        self.at += if found { literal.len() } else { 0 };
        found.then_some(())
    }

    /// An object: `each` is called with its keys, and reads the values.
    #[inline]
    fn object(&mut self, mut each: impl FnMut(&mut Self, Key) -> Option<()>) -> Option<()> {
        if !self.takes(b'{') {
            return None;
        }
        if self.takes(b'}') {
            return Some(());
        }
        loop {
            if !self.opens() {
                return None;
            }
            let key = self.key()?;
            if !self.takes(b':') {
                return None;
            }
            each(self, key)?;
            let next = self.peek()?;
            self.at += 1;
            match next {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    fn instant(&mut self) -> Option<Instant> {
        self.string()?.parse().ok()
    }

    fn word<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.string()?.parse().ok()
    }

    fn channels(&mut self) -> Option<Channels> {
        let mut channels = Channels::new();
        if !self.takes(b'[') {
            return None;
        }
        if self.takes(b']') {
            return Some(channels);
        }
        loop {
            // One that is named twice is one channel, as in `Event`.
            let channel = self.word()?;
            if !channels.contains(&channel) {
                channels.push(channel);
            }
            if self.takes(b']') {
                return Some(channels);
            }
            if !self.takes(b',') {
                return None;
            }
        }
    }

    /// An identity and one more text, under the key that begins with `more`, which is a short one.
    #[inline]
    fn pair(&mut self, more: u64) -> Option<(SmolStr, Option<SmolStr>)> {
        let (mut id, mut other) = (None, None);
        self.object(|scan, key| match key.beginning {
            ID if id.is_none() => scan.string().map(|text| id = Some(short(text))),
            found if found == more && other.is_none() => {
                scan.or_null(Self::string).map(|text| other = Some(text.map(short)))
            }
            _ => None,
        })?;
        Some((id?, other.flatten()))
    }

    fn actor(&mut self) -> Option<Actor> {
        self.pair(NAME).map(|(id, name)| Actor { id, name })
    }

    fn thing(&mut self) -> Option<Object> {
        self.pair(KIND).map(|(id, kind)| Object { id, kind })
    }

    /// `data` in canonical form.
    fn data(&mut self) -> Option<Cow<'a, str>> {
        self.peek()?;
        let start = self.at;
        self.dense_data().or_else(|| {
            self.at = start;
            self.any_data().map(Cow::Owned)
        })
    }

    /// `data` without a space, whose values are texts, whole numbers and words: at most its keys have to be put
    /// in order.
    #[inline]
    fn dense_data(&mut self) -> Option<Cow<'a, str>> {
        let start = self.at;
        let mut members: SmallVec<[Member<'_>; 8]> = SmallVec::new();
        let mut in_order = true;
        if self.byte() != Some(b'{') {
            return None;
        }
        loop {
            self.at += 1;
            let first = self.at;
            if self.byte() != Some(b'"') {
                break;
            }
            self.at += 1;
            let key = self.verbatim()?;
            if self.byte() != Some(b':') {
                return None;
            }
            self.at += 1;
            self.at = self.dense_value()?;
            let member = Member { beginning: first_eight(key), key, all: self.text.get(first..self.at)? };
            in_order &= members.last().is_none_or(|before| before.by_key(&member).is_lt());
            members.push(member);
            if self.byte() != Some(b',') {
                break;
            }
        }
        // No comma stands before the end.
        let closes = self.byte() == Some(b'}') && self.text.as_bytes().get(self.at.wrapping_sub(1)) != Some(&b',');
        self.at += 1;
        let text = self.text.get(start..self.at).filter(|_| closes)?;
        if in_order {
            return Some(Cow::Borrowed(text));
        }
        members.sort_unstable_by(Member::by_key);
        if members.windows(2).any(|two| two[0].by_key(&two[1]).is_eq()) {
            return None;
        }
        let mut sorted = String::with_capacity(text.len());
        for member in &members {
            sorted.push(if sorted.is_empty() { '{' } else { ',' });
            sorted.push_str(member.all);
        }
        sorted.push('}');
        Some(Cow::Owned(sorted))
    }

    /// The end of a value that is written the one way there is.
    #[inline]
    fn dense_value(&mut self) -> Option<usize> {
        match self.byte()? {
            b'"' => {
                self.at += 1;
                self.verbatim().map(|_| self.at)
            }
            b't' => self.literal("true").map(|()| self.at),
            b'f' => self.literal("false").map(|()| self.at),
            b'n' => self.literal("null").map(|()| self.at),
            b'0'..=b'9' => self.integer(),
            _ => None,
        }
    }

    /// Any `data`, in canonical form.
    #[cold]
    fn any_data(&mut self) -> Option<String> {
        let start = self.at;
        let mut members: Vec<(&str, Cow<'a, str>)> = Vec::new();
        self.object(|scan, key| {
            // Escapes would have to be read first.
            let text = scan.text.get(key.range()).filter(|text| is_plain(text.as_bytes()))?;
            scan.value().map(|value| members.push((text, value)))
        })?;
        members.sort_by_key(|(key, _)| *key);
        if members.windows(2).any(|two| two[0].0 == two[1].0) {
            return None;
        }
        let mut text = String::with_capacity(self.at - start);
        for (key, value) in &members {
            text.push_str(if text.is_empty() { "{\"" } else { ",\"" });
            text.push_str(key);
            text.push_str("\":");
            text.push_str(value);
        }
        text.push_str(if text.is_empty() { "{}" } else { "}" });
        Some(text)
    }

    /// A value in canonical form: as it stands where it is so already.
    fn value(&mut self) -> Option<Cow<'a, str>> {
        self.peek()?;
        let start = self.at;
        if let Some(end) = self.dense_value() {
            self.at = end;
            return self.text.get(start..end).map(Cow::Borrowed);
        }
        self.at = start;
        let value: serde_json::Value = self.general()?;
        let levels = self.text[start..self.at].bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
        (levels <= DEPTH_MAX).then(|| Cow::Owned(value.to_string()))
    }

    /// The end of a whole number that is written the one way there is, and is small enough for it.
    fn integer(&self) -> Option<usize> {
        let bytes = &self.text.as_bytes()[self.at..];
        let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let more = matches!(bytes.get(digits), Some(b'.' | b'e' | b'E'));
        (digits <= 18 && !more && (digits == 1 || bytes[0] != b'0')).then_some(self.at + digits)
    }
}

fn short(text: Cow<'_, str>) -> SmolStr {
    SmolStr::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the general reader makes of the record, if it takes it.
    fn general(record: &str) -> Option<PlainEvent<'static>> {
        Event::from_json(record.as_bytes(), false).ok().map(PlainEvent::from)
    }

    fn plain(record: &str) -> Option<PlainEvent<'_>> {
        PlainEvent::read(record.as_bytes()).map(|event| PlainEvent { op: event.op.or(Some(Op::Notify)), ..event })
    }

    #[test]
    fn what_both_readers_take_they_read_alike() {
        for record in [
            r#"{"user_id":"u1","type":"order.shipped"}"#,
            r#" { "type" : "LIKE" , "user_id" : "u1", "id":null, "tenant":"t" } "#,
            r#"{"id":"like-77","type":"like","user_id":"u1","tenant":"","time":"2026-03-28T22:10:00Z",
                "actor":{"id":"bob","name":"Bob \"B\" \u00fc"},"object":{"kind":"photo","id":"photo7"},"data":{"album":"x"},
                "dedup_key":null,"channels":["push","in_app","push"],"fallback_channels":[],"priority":"low","template_id":"t",
                "scheduled_at":"2026-03-28T22:10:00+01:00","expires_at":null,"cancel_key":"c","op":"retract"}"#,
            r#"{"type":"t","user_id":"ü","data":{"z":1,"a":"x","m":{"y":[1, 2.50],"x":null},"b":true,"n":-0,"e":1e3}}"#,
            r#"{"type":"t","user_id":"u","data":{ "a" : 0 , "b" : false , "c" : null, "d":12345678901234567890 }}"#,
            r#"{"type":"t","user_id":"u","data":{"a":"\n","é":"é","":1}}"#,
            r#"{"type":"t","user_id":"u","actor":{"name":null,"id":"a"},"data":{}}"#,
            r#"{"type":"t","user_id":"u","channels":["sms","push","sms"],"fallback_channels":["email","email"]}"#,
        ] {
            let read = plain(record);
            assert!(read.is_some(), "{record}");
            assert_eq!(read, general(record), "{record}");
        }
    }

    #[test]
    fn a_text_of_data_is_found_by_its_key_where_it_stands_for_itself() {
        for (data, key, text) in [
            (r#"{"a":"x","b":"y"}"#, "b", Some("y")),
            (r#"{"a":1,"b":"","c":true}"#, "b", Some("")),
            (r#"{"a":"x"}"#, "b", None),
            (r#"{}"#, "a", None),
            (r#"{"a":7}"#, "a", None),
            (r#"{"a":"\n"}"#, "a", None),
            (r#"{"\n":"x","z":"y"}"#, "z", None),
            (r#"{"a":{"b":"x"},"b":"y"}"#, "b", None),
            (r#"{"ab":"x","a":"y"}"#, "a", Some("y")),
        ] {
            assert_eq!(text_of(data, key), text, "{data}");
        }
    }

    #[test]
    fn what_is_wrong_or_of_another_shape_is_left_to_the_general_reader() {
        let long = format!(r#"{{"type":"t","user_id":"{}"}}"#, "u".repeat(ID_BYTES_MAX + 1));
        let deep = format!(r#"{{"type":"t","user_id":"u","data":{{"a":{}{}}}}}"#, "[".repeat(100), "]".repeat(100));
        for record in [
            "",
            "{",
            "[]",
            "null",
            r#"{"type":"t"}"#,
            r#"{"type":"t","user_id":""}"#,
            r#"{"type":"t","user_id":"u"} x"#,
            r#"{"type":"t","user_id":"u",}"#,
            r#"{"type":"t","user_id":"u","type":"t"}"#,
            r#"{"type":"t","user_id":"u","specversion":"1.0"}"#,
            r#"{"type":"t","user_id":"u","\u0069d":"x"}"#,
            r#"{"type":"t","user_id":"u","channels":[]}"#,
            r#"{"type":"t","user_id":"u","channels":["fax"]}"#,
            r#"{"type":"t","user_id":"u","op":null}"#,
            r#"{"type":"t","user_id":"u","tenant":null}"#,
            r#"{"type":"t","user_id":"u","data":null}"#,
            r#"{"type":"t","user_id":"u","data":{"a":1,"a":2}}"#,
            r#"{"type":"t","user_id":"u","data":{"a":01}}"#,
            r#"{"type":"t","user_id":"u","data":{"a":nul}}"#,
            r#"{"type":"t","user_id":"u","data":{"a":1}"#,
            r#"{"type":"t","user_id":"u","actor":{"name":"x"}}"#,
            r#"{"type":"t","user_id":"u","actor":{"id":"x","id":"y"}}"#,
            "{\"type\":\"t\",\"user_id\":\"u\n\"}",
            &long,
            &deep,
        ] {
            assert_eq!(plain(record), None, "{record}");
        }
        assert_eq!(PlainEvent::read(b"{\"type\":\"\xff\",\"user_id\":\"u\"}"), None);
    }
}
