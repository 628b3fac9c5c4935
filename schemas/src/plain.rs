//! Reads the events that producers write all day without building a tree: known keys, each once, and
//! `data` of any kind, brought into its canonical text.
//!
//! What it does not understand, and whatever is wrong, it leaves to [`Event::from_json`], which knows
//! every shape and says what is wrong where. So this reader only accepts what that one accepts, and
//! reads the same.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

use crate::channel::{Channel, Op, Priority};
use crate::event::{Actor, Event, ID_BYTES_MAX, KEY_BYTES_MAX, Object, RECORD_BYTES_MAX, each_once, normal_type};
use crate::json::specials;
use crate::time::Instant;

/// Levels of objects and lists within one value of `data` that are read here. serde_json reads 127,
/// and a text that it could not read again must not come of this.
const DEPTH_MAX: usize = 64;

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
    pub data: String,
    pub dedup_key: Option<Cow<'a, str>>,
    pub channels: Option<Vec<Channel>>,
    pub fallback_channels: Option<Vec<Channel>>,
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
            data: serde_json::to_string(&event.data).unwrap_or_default(),
            dedup_key: event.dedup_key.map(Cow::Owned),
            channels: event.channels,
            fallback_channels: event.fallback_channels,
            priority: event.priority,
            template_id: event.template_id.map(Cow::Owned),
            scheduled_at: event.scheduled_at,
            expires_at: event.expires_at,
            cancel_key: event.cancel_key.map(Cow::Owned),
            op: Some(event.op),
        }
    }
}

impl<'a> PlainEvent<'a> {
    /// Reads `record`; none where it takes the general reader.
    #[must_use]
    pub fn read(record: &'a [u8]) -> Option<Self> {
        if record.len() > RECORD_BYTES_MAX {
            return None;
        }
        let mut scan = Scan { text: std::str::from_utf8(record).ok()?, at: 0 };
        let (mut event, mut seen) = (Self::default(), 0_u32);
        scan.object(|scan, key| {
            let field = 1
                << match key {
                    "id" => scan.or_null(Scan::string).map(|id| (event.id = id, 0).1),
                    "type" => scan.string().map(|name| (event.event_type = name, 1).1),
                    "user_id" => scan.string().map(|user| (event.user_id = user, 2).1),
                    "tenant" => scan.string().map(|tenant| (event.tenant = tenant, 3).1),
                    "time" => scan.or_null(Scan::instant).map(|time| (event.time = time, 4).1),
                    "actor" => scan.or_null(Scan::actor).map(|actor| (event.actor = actor, 5).1),
                    "object" => scan.or_null(Scan::thing).map(|object| (event.object = object, 6).1),
                    "data" => scan.data().map(|data| (event.data = data, 7).1),
                    "dedup_key" => scan.or_null(Scan::string).map(|key| (event.dedup_key = key, 8).1),
                    "channels" => scan.or_null(Scan::channels).map(|channels| (event.channels = channels, 9).1),
                    "fallback_channels" => {
                        scan.or_null(Scan::channels).map(|channels| (event.fallback_channels = channels, 10).1)
                    }
                    "priority" => scan.or_null(Scan::word).map(|priority| (event.priority = priority, 11).1),
                    "template_id" => scan.or_null(Scan::string).map(|id| (event.template_id = id, 12).1),
                    "scheduled_at" => scan.or_null(Scan::instant).map(|at| (event.scheduled_at = at, 13).1),
                    "expires_at" => scan.or_null(Scan::instant).map(|at| (event.expires_at = at, 14).1),
                    "cancel_key" => scan.or_null(Scan::string).map(|key| (event.cancel_key = key, 15).1),
                    "op" => scan.word().map(|op| (event.op = Some(op), 16).1),
                    _ => None,
                }?;
            let again = seen & field != 0;
            seen |= field;
            (!again).then_some(())
        })?;
        if seen & (1 << 7) == 0 {
            event.data.push_str("{}");
        }
        (scan.ends() && event.fits()).then(|| event.normal())
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
            && !self.channels.as_ref().is_some_and(Vec::is_empty)
    }

    /// What [`Event::checked`] makes of an event that fits.
    fn normal(mut self) -> Self {
        if self.event_type.bytes().any(|byte| matches!(byte, b'.' | b'-' | b' ' | b'A'..=b'Z')) {
            self.event_type = Cow::Owned(normal_type(&self.event_type));
        }
        [&mut self.channels, &mut self.fallback_channels].into_iter().flatten().for_each(each_once);
        self
    }
}

/// A place in a text. Every method answers `None` where the text does not go on as expected, or in
/// a way that is left to the general reader.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    fn takes(&mut self, byte: u8) -> bool {
        let takes = self.peek() == Some(byte);
        self.at += usize::from(takes);
        takes
    }

    fn ends(&mut self) -> bool {
        self.peek().is_none()
    }

    /// The text up to the closing quote, whose opening one is passed; none if it holds anything else
    /// than characters that stand for themselves.
    fn verbatim(&self) -> Option<&'a str> {
        let bytes = &self.text.as_bytes()[self.at..];
        let (words, rest) = bytes.as_chunks::<8>();
        let in_word = |(number, word): (usize, &[u8; 8])| match specials(*word) {
            0 => None,
            found => Some(8 * number + found.trailing_zeros() as usize / 8),
        };
        let in_rest = || rest.iter().position(|byte| specials([*byte; 8]) != 0).map(|place| 8 * words.len() + place);
        let end = words.iter().enumerate().find_map(in_word).or_else(in_rest)?;
        (bytes[end] == b'"').then(|| &self.text[self.at..self.at + end])
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        let start = self.at;
        if !self.takes(b'"') {
            return None;
        }
        if let Some(text) = self.verbatim() {
            self.at += text.len() + 1;
            return Some(Cow::Borrowed(text));
        }
        self.at = start;
        self.general().map(Cow::Owned)
    }

    /// A value as serde_json reads it.
    fn general<T: DeserializeOwned>(&mut self) -> Option<T> {
        let mut values = serde_json::Deserializer::from_str(&self.text[self.at..]).into_iter();
        let value = values.next()?.ok()?;
        self.at += values.byte_offset();
        Some(value)
    }

    fn or_null<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.peek() == Some(b'n') {
            return self.literal("null").map(|_| None);
        }
        read(self).map(Some)
    }

    fn literal(&mut self, literal: &'static str) -> Option<&'static str> {
        let found = self.text[self.at..].starts_with(literal);
        self.at += if found { literal.len() } else { 0 };
        found.then_some(literal)
    }

    /// An object: `each` is called with its keys, and reads the values.
    fn object(&mut self, mut each: impl FnMut(&mut Self, &'a str) -> Option<()>) -> Option<()> {
        if !self.takes(b'{') {
            return None;
        }
        if self.takes(b'}') {
            return Some(());
        }
        loop {
            if !self.takes(b'"') {
                return None;
            }
            let key = self.verbatim()?;
            self.at += key.len() + 1;
            if !self.takes(b':') {
                return None;
            }
            each(self, key)?;
            if self.takes(b'}') {
                return Some(());
            }
            if !self.takes(b',') {
                return None;
            }
        }
    }

    fn instant(&mut self) -> Option<Instant> {
        self.string()?.parse().ok()
    }

    fn word<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.string()?.parse().ok()
    }

    fn channels(&mut self) -> Option<Vec<Channel>> {
        let mut channels = Vec::new();
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

    /// An identity and one more text, under the key `more`.
    fn pair(&mut self, more: &str) -> Option<(String, Option<String>)> {
        let (mut id, mut other) = (None, None);
        self.object(|scan, key| match key {
            "id" if id.is_none() => scan.string().map(|text| id = Some(text.into_owned())),
            key if key == more && other.is_none() => {
                scan.or_null(Self::string).map(|text| other = Some(text.map(Cow::into_owned)))
            }
            _ => None,
        })?;
        Some((id?, other.flatten()))
    }

    fn actor(&mut self) -> Option<Actor> {
        self.pair("name").map(|(id, name)| Actor { id, name })
    }

    fn thing(&mut self) -> Option<Object> {
        self.pair("kind").map(|(id, kind)| Object { id, kind })
    }

    /// `data` in canonical form.
    fn data(&mut self) -> Option<String> {
        let start = self.at;
        let mut members: Vec<(&str, Cow<'a, str>)> = Vec::with_capacity(8);
        self.object(|scan, key| scan.value().map(|value| members.push((key, value))))?;
        if !members.is_sorted_by_key(|(key, _)| *key) {
            members.sort_by_key(|(key, _)| *key);
        }
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
        let first = self.peek()?;
        let start = self.at;
        let end = match first {
            b'"' => {
                self.at += 1;
                self.verbatim().map(|text| self.at + text.len() + 1)
            }
            b't' => self.literal("true").map(|_| self.at),
            b'f' => self.literal("false").map(|_| self.at),
            b'n' => self.literal("null").map(|_| self.at),
            b'0'..=b'9' => self.integer(),
            _ => None,
        };
        if let Some(end) = end {
            self.at = end;
            return Some(Cow::Borrowed(&self.text[start..end]));
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
