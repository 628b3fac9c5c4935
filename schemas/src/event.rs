//! What producers send: one JSON object a record.
//!
//! Required are `user_id` and `type`; everything else has a default. Unknown top-level keys are
//! refused with the nearest known name, or moved to `data` where the source says so.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::channel::{Channel, ChannelSet, Op, Priority};
use crate::time::Instant;

/// Longest id (`id`, `user_id`, `tenant`, actor and object ids), in bytes.
/// Beyond it the record is rejected: ids are hashed and stored, never cut.
pub const ID_BYTES_MAX: usize = 128;
/// Longest dedup or cancel key, in bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Largest record, in bytes; a push carries 4 KiB, a mail's variables seldom more than this.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;

/// A person or thing that did something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    /// Identity: *distinct* actors are counted by it.
    pub id: SmolStr,
    /// What texts call it; the id where absent.
    #[serde(default)]
    pub name: Option<SmolStr>,
}

/// What something was done to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Identity: windows are per object.
    pub id: SmolStr,
    /// What kind of thing it is.
    #[serde(default)]
    pub kind: Option<SmolStr>,
}

/// An event as a producer writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// The producer's own id; the event id where absent.
    #[serde(default)]
    pub id: Option<String>,
    /// What happened, lower snake case (`ORDER_SHIPPED` and `order.shipped` become `order_shipped`).
    #[serde(rename = "type")]
    pub event_type: String,
    /// Who is to be told.
    pub user_id: String,
    /// The tenant, empty where there is one only.
    #[serde(default)]
    pub tenant: String,
    /// When it happened; the log's timestamp where absent.
    #[serde(default)]
    pub time: Option<Instant>,
    /// Who did it.
    #[serde(default)]
    pub actor: Option<Actor>,
    /// To what.
    #[serde(default)]
    pub object: Option<Object>,
    /// Variables for texts and expressions.
    #[serde(default)]
    pub data: BTreeMap<String, serde_json::Value>,
    /// What makes two events the same wish; see the type's policy for the default.
    #[serde(default)]
    pub dedup_key: Option<String>,
    /// Channels to use, all of them; the type's default where absent.
    #[serde(default)]
    pub channels: Option<Vec<Channel>>,
    /// Channels to use one after the other when delivery fails for good.
    #[serde(default)]
    pub fallback_channels: Option<Vec<Channel>>,
    /// A priority other than the type's: lower is honoured, higher needs the type's permission.
    #[serde(default)]
    pub priority: Option<Priority>,
    /// The template; the type's where absent.
    #[serde(default)]
    pub template_id: Option<String>,
    /// Not before this.
    #[serde(default)]
    pub scheduled_at: Option<Instant>,
    /// Not after this.
    #[serde(default)]
    pub expires_at: Option<Instant>,
    /// What a later `cancel` names.
    #[serde(default)]
    pub cancel_key: Option<String>,
    /// What is asked for.
    #[serde(default = "notify")]
    pub op: Op,
}

const fn notify() -> Op {
    Op::Notify
}

/// Why a record is not an event. `Display` names place, expectation and remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvent {
    /// Not JSON at all.
    #[error("not JSON: {0}")]
    Json(String),
    /// JSON, but not of the shape.
    #[error("not an event: {0}")]
    Shape(String),
    /// A field's value is out of bounds.
    #[error("field `{field}`: {problem}")]
    Field {
        /// The field's path.
        field: &'static str,
        /// Expectation and what was found.
        problem: String,
    },
    /// Larger than [`RECORD_BYTES_MAX`].
    #[error("record of {0} bytes, the most is {RECORD_BYTES_MAX}; put large content behind a link in `data`")]
    TooLarge(usize),
}

/// Top-level keys of an event: what a near miss is compared with.
pub const EVENT_KEYS: [&str; 17] = [
    "id",
    "type",
    "user_id",
    "tenant",
    "time",
    "actor",
    "object",
    "data",
    "dedup_key",
    "channels",
    "fallback_channels",
    "priority",
    "template_id",
    "scheduled_at",
    "expires_at",
    "cancel_key",
    "op",
];

impl Event {
    /// Reads an event from JSON. With `unknown_to_data`, unknown top-level keys move into `data`.
    ///
    /// # Errors
    /// When the bytes are not JSON, not an event, or a field is out of bounds.
    pub fn from_json(bytes: &[u8], unknown_to_data: bool) -> Result<Self, InvalidEvent> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(InvalidEvent::TooLarge(bytes.len()));
        }
        if unknown_to_data {
            return Self::from_map(serde_json::from_slice(bytes).map_err(shape)?, true);
        }
        serde_json::from_slice::<Self>(bytes).map_err(shape)?.checked()
    }

    /// As [`Self::from_json`], from an object already read.
    pub(crate) fn from_map(
        mut map: serde_json::Map<String, serde_json::Value>,
        unknown_to_data: bool,
    ) -> Result<Self, InvalidEvent> {
        let unknown = |key: &&String| unknown_to_data && !EVENT_KEYS.contains(&key.as_str());
        let unknown: Vec<_> = map.keys().filter(unknown).cloned().collect();
        if !unknown.is_empty() {
            let mut data = match map.remove("data") {
                None | Some(serde_json::Value::Null) => serde_json::Map::new(),
                Some(serde_json::Value::Object(data)) => data,
                Some(_) => return Err(InvalidEvent::Shape("`data` must be an object".to_owned())),
            };
            for key in unknown {
                if let Some(value) = map.remove(&key) {
                    data.entry(key).or_insert(value);
                }
            }
            map.insert("data".to_owned(), serde_json::Value::Object(data));
        }
        serde_json::from_value::<Self>(serde_json::Value::Object(map)).map_err(shape)?.checked()
    }

    /// The event with its type in normal form and every channel named once, once every bound holds.
    ///
    /// # Errors
    /// When a field is empty where it must not be, or longer than its bound.
    pub fn checked(mut self) -> Result<Self, InvalidEvent> {
        bounded("user_id", &self.user_id, 1, ID_BYTES_MAX)?;
        bounded("type", &self.event_type, 1, ID_BYTES_MAX)?;
        bounded("tenant", &self.tenant, 0, ID_BYTES_MAX)?;
        for (field, value, most) in [
            ("id", &self.id, KEY_BYTES_MAX),
            ("dedup_key", &self.dedup_key, KEY_BYTES_MAX),
            ("cancel_key", &self.cancel_key, KEY_BYTES_MAX),
            ("template_id", &self.template_id, ID_BYTES_MAX),
        ] {
            if let Some(value) = value {
                bounded(field, value, 1, most)?;
            }
        }
        if let Some(actor) = &self.actor {
            bounded("actor.id", &actor.id, 1, ID_BYTES_MAX)?;
        }
        if let Some(object) = &self.object {
            bounded("object.id", &object.id, 1, ID_BYTES_MAX)?;
        }
        if self.channels.as_ref().is_some_and(Vec::is_empty) {
            let problem = "expected at least one channel, found an empty list; leave it out for the type's default";
            return Err(InvalidEvent::Field { field: "channels", problem: problem.to_owned() });
        }
        self.event_type = normal_type(&self.event_type);
        for channels in [&mut self.channels, &mut self.fallback_channels].into_iter().flatten() {
            each_once(channels);
        }
        Ok(self)
    }
}

/// A channel that is named twice is one channel: a second leg to it would bear the first one's id.
pub(crate) fn each_once(channels: &mut Vec<Channel>) {
    let mut seen = ChannelSet::default();
    channels.retain(|channel| {
        let new = !seen.contains(*channel);
        seen.insert(*channel);
        new
    });
}

/// The normal form of a type's name: lower snake case. `order.shipped`, `ORDER_SHIPPED` and
/// `order-shipped` are one type.
#[must_use]
pub fn normal_type(name: &str) -> String {
    name.chars().map(|c| if matches!(c, '.' | '-' | ' ') { '_' } else { c.to_ascii_lowercase() }).collect()
}

fn bounded(field: &'static str, value: &str, least: usize, most: usize) -> Result<(), InvalidEvent> {
    if value.len() < least {
        return Err(InvalidEvent::Field { field, problem: "expected a text, found an empty one".to_owned() });
    }
    if value.len() > most {
        let problem = format!("expected at most {most} bytes, found {}", value.len());
        return Err(InvalidEvent::Field { field, problem });
    }
    Ok(())
}

pub(crate) fn shape(error: serde_json::Error) -> InvalidEvent {
    match error.classify() {
        serde_json::error::Category::Data => InvalidEvent::Shape(error.to_string()),
        _ => InvalidEvent::Json(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        Event::from_json(json.as_bytes(), false).unwrap_err().to_string()
    }

    #[test]
    fn two_fields_are_enough() {
        let event = Event::from_json(br#"{"user_id":"u1","type":"order.shipped"}"#, false).unwrap();
        assert_eq!((event.event_type.as_str(), event.op), ("order_shipped", Op::Notify));
    }

    #[test]
    fn the_models_example_is_read_whole() {
        let json = r#"{"id":"like-77","type":"like","user_id":"u1","tenant":"","time":"2026-03-28T22:10:00Z",
            "actor":{"id":"bob","name":"Bob"},"object":{"id":"photo7","kind":"photo"},"data":{"album":"x"},
            "dedup_key":null,"channels":null,"fallback_channels":null,"priority":null,"template_id":null,
            "scheduled_at":null,"expires_at":null,"cancel_key":null,"op":"notify"}"#;
        let event = Event::from_json(json.as_bytes(), false).unwrap();
        assert_eq!(event.actor.unwrap().name.as_deref(), Some("Bob"));
    }

    #[test]
    fn faults_name_place_and_expectation() {
        assert!(error("{").starts_with("not JSON: EOF"));
        assert!(error(r#"{"type":"x"}"#).contains("missing field `user_id`"));
        assert!(
            error(r#"{"type":"x","user_id":"u","chanels":[]}"#).contains("unknown field `chanels`, expected one of")
        );
        assert!(error(r#"{"type":"x","user_id":""}"#).contains("field `user_id`: expected a text"));
        assert!(error(r#"{"type":"x","user_id":"u","channels":[]}"#).contains("at least one channel"));
        assert!(error(r#"{"type":"x","user_id":"u","channels":["fax"]}"#).contains("unknown variant `fax`"));
    }

    #[test]
    fn a_channel_named_twice_is_one_channel() {
        let json =
            br#"{"type":"x","user_id":"u","channels":["sms","push","sms"],"fallback_channels":["email","email"]}"#;
        let event = Event::from_json(json, false).unwrap();
        assert_eq!(event.channels.unwrap(), [Channel::Sms, Channel::Push]);
        assert_eq!(event.fallback_channels.unwrap(), [Channel::Email]);
    }

    #[test]
    fn unknown_keys_move_to_data_where_the_source_says_so() {
        let json = br#"{"type":"order_shipped","user_id":"u","order_id":"4412","data":{"eta":"Tue"}}"#;
        let event = Event::from_json(json, true).unwrap();
        assert_eq!(event.data.keys().collect::<Vec<_>>(), ["eta", "order_id"]);
    }

    #[test]
    fn the_list_of_keys_is_the_struct() {
        let event = Event::from_json(br#"{"user_id":"u1","type":"t"}"#, false).unwrap();
        let value = serde_json::to_value(&event).unwrap();
        let mut keys: Vec<_> = EVENT_KEYS.to_vec();
        keys.sort_unstable();
        assert_eq!(value.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>(), keys);
    }
}
