//! What is known about a user: the profile and the addresses, both from compacted topics.
//!
//! A profile record is always the *whole* profile; `null` (a tombstone) means all defaults. A user
//! who never set anything costs nothing.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::channel::{Channel, ChannelSet};
use crate::time::Instant;
use crate::units::Period;

/// A wall-clock minute of the day, written `HH:MM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MinuteOfDay(pub u16);

impl std::fmt::Display for MinuteOfDay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl std::str::FromStr for MinuteOfDay {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("expected a time of day like `22:00`, found `{text}`");
        let (hour, minute) = text.split_once(':').ok_or_else(invalid)?;
        if hour.is_empty() || hour.len() > 2 || minute.len() != 2 {
            return Err(invalid());
        }
        let (hour, minute): (u16, u16) = (hour.parse().map_err(|_| invalid())?, minute.parse().map_err(|_| invalid())?);
        if hour > 23 || minute > 59 { Err(invalid()) } else { Ok(Self(hour * 60 + minute)) }
    }
}

impl Serialize for MinuteOfDay {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for MinuteOfDay {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            u16::deserialize(deserializer).map(Self)
        }
    }
}

impl JsonSchema for MinuteOfDay {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MinuteOfDay".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^([01]?[0-9]|2[0-3]):[0-5][0-9]$" })
    }
}

/// A daily window in the user's local time; the end is exclusive. Equal ends are no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuietHours {
    /// First quiet minute.
    pub from: MinuteOfDay,
    /// First minute that is not quiet any more.
    pub to: MinuteOfDay,
}

/// A recorded consent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    /// For which channel.
    pub channel: Channel,
    /// For which category.
    pub category: String,
    /// Where it was given.
    pub source: String,
    /// When.
    pub at: Instant,
}

/// A legal stop: nothing passes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// On which channel.
    pub channel: Channel,
    /// What it came from (`STOP`, a complaint).
    pub source: String,
    /// When.
    pub at: Instant,
}

/// A user's own cap; the smaller of it and the policy's holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cap {
    /// For one category; all where absent.
    #[serde(default)]
    pub category: Option<String>,
    /// For one type; all where absent.
    #[serde(default, rename = "type")]
    pub event_type: Option<String>,
    /// For one channel; all where absent.
    #[serde(default)]
    pub channel: Option<Channel>,
    /// At most so many …
    pub max: u32,
    /// … in any span of this length, a duration like `1d`.
    pub per: Period,
}

/// How often a digest goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Digest {
    /// No digest.
    Realtime,
    /// Once an hour.
    Hourly,
    /// Once a day, at `digest_at` local time.
    Daily,
}

/// Which channels are on or off; a channel that is not named has its default.
pub type Switches = BTreeMap<Channel, bool>;

/// A user's whole profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The user; must equal the record's key where given.
    #[serde(default)]
    pub user_id: Option<String>,
    /// IANA zone; UTC where absent.
    #[serde(default)]
    pub time_zone: Option<String>,
    /// Locale like `pt_BR`.
    #[serde(default)]
    pub locale: Option<String>,
    /// The quiet window.
    #[serde(default)]
    pub quiet_hours: Option<QuietHours>,
    /// Switches of whole channels.
    #[serde(default)]
    pub channels: Switches,
    /// Switches per category.
    #[serde(default)]
    pub categories: BTreeMap<String, Switches>,
    /// Switches per type.
    #[serde(default)]
    pub types: BTreeMap<String, Switches>,
    /// The user's own order of channels, best first.
    #[serde(default)]
    pub channel_order: Option<Vec<Channel>>,
    /// How often a digest goes out.
    #[serde(default)]
    pub digest: Option<Digest>,
    /// When a daily digest goes out.
    #[serde(default)]
    pub digest_at: Option<MinuteOfDay>,
    /// Recorded consents.
    #[serde(default)]
    pub consents: Vec<Consent>,
    /// Legal stops.
    #[serde(default)]
    pub stops: Vec<Stop>,
    /// The user's own caps.
    #[serde(default)]
    pub caps: Vec<Cap>,
}

impl Profile {
    /// Reads a profile record's value; absent or `null` is the default profile.
    ///
    /// # Errors
    /// When the bytes are not a profile: the message names the field.
    pub fn from_json(bytes: Option<&[u8]>) -> Result<Self, serde_json::Error> {
        match bytes {
            None => Ok(Self::default()),
            Some(bytes) => Ok(serde_json::from_slice::<Option<Self>>(bytes)?.unwrap_or_default()),
        }
    }
}

/// Whether an address may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AddressStatus {
    /// May be used.
    #[default]
    Live,
    /// The provider said it is dead.
    Invalid,
    /// Bounced, complained or stopped.
    Suppressed,
}

/// One device, e-mail address or phone. Key of its record: `user_id/address_id`; a tombstone means
/// that it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// Whose it is.
    pub user_id: String,
    /// Stable while the token rotates: deliveries are named by it.
    pub address_id: String,
    /// Which channel it serves.
    pub channel: Channel,
    /// Which provider; the sink's choice by platform where absent.
    #[serde(default)]
    pub provider: Option<String>,
    /// `ios`, `android`, `web`.
    #[serde(default)]
    pub platform: Option<String>,
    /// The device token, e-mail address or phone number.
    pub address: String,
    /// `production` or `development`, for APNs.
    #[serde(default)]
    pub environment: Option<String>,
    /// When it was registered.
    #[serde(default)]
    pub registered_at: Option<Instant>,
    /// When the app last confirmed it.
    #[serde(default)]
    pub last_seen_at: Option<Instant>,
    /// Whether it may be used.
    #[serde(default)]
    pub status: AddressStatus,
    /// Why not.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Address {
    /// A live one of which nothing more is known.
    #[must_use]
    pub fn live(user_id: &str, address_id: &str, channel: Channel, address: &str) -> Self {
        Self {
            user_id: user_id.to_owned(),
            address_id: address_id.to_owned(),
            channel,
            provider: None,
            platform: None,
            address: address.to_owned(),
            environment: None,
            registered_at: None,
            last_seen_at: None,
            status: AddressStatus::Live,
            reason: None,
        }
    }
}

/// On which channels a user has at least one live address. In-app needs none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, Channel>", into = "BTreeMap<String, Channel>")]
pub struct Reachability {
    addresses: BTreeMap<String, Channel>,
    /// Their channels: asked for several times an event.
    channels: ChannelSet,
}

impl From<BTreeMap<String, Channel>> for Reachability {
    fn from(addresses: BTreeMap<String, Channel>) -> Self {
        let channels = addresses.values().copied().collect();
        Self { addresses, channels }
    }
}

impl From<Reachability> for BTreeMap<String, Channel> {
    fn from(reachability: Reachability) -> Self {
        reachability.addresses
    }
}

impl Reachability {
    /// Takes in one address record (`None`: the address is gone). Returns whether anything changed.
    pub fn apply(&mut self, address_id: &str, address: Option<&Address>) -> bool {
        let changed = match address.filter(|address| address.status == AddressStatus::Live) {
            Some(address) => self.addresses.insert(address_id.to_owned(), address.channel) != Some(address.channel),
            None => self.addresses.remove(address_id).is_some(),
        };
        self.channels = self.addresses.values().copied().collect();
        changed
    }

    /// The channels that can be used; in-app always.
    #[must_use]
    pub const fn channels(&self) -> ChannelSet {
        let mut channels = self.channels;
        channels.insert(Channel::InApp);
        channels
    }

    /// The live addresses as (address id, channel), in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Channel)> {
        self.addresses.iter().map(|(id, channel)| (id.as_str(), *channel))
    }

    /// Whether the user has no live address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_models_example_is_read_whole() {
        let json = r#"{"user_id":"u1","time_zone":"Europe/Berlin","locale":"de","quiet_hours":{"from":"22:00","to":"07:00"},"channels":{"sms":false},
 "categories":{"social":{"push":false}},"types":{"like":{"email":false}},"channel_order":["push","email"],"digest":"daily","digest_at":"08:00",
 "consents":[{"channel":"sms","category":"marketing","source":"form","at":"2026-01-02T00:00:00Z"}],"stops":[{"channel":"sms","source":"STOP","at":"2026-01-03T00:00:00Z"}],
 "caps":[{"category":"marketing","max":1,"per":"1d"}]}"#;
        let profile = Profile::from_json(Some(json.as_bytes())).unwrap();
        assert_eq!(profile.quiet_hours.unwrap().to, MinuteOfDay(7 * 60));
        assert!(!profile.categories["social"][&Channel::Push]);
    }

    #[test]
    fn absent_and_null_are_the_default() {
        assert_eq!(Profile::from_json(None).unwrap(), Profile::default());
        assert_eq!(Profile::from_json(Some(b"null")).unwrap(), Profile::default());
    }

    #[test]
    fn a_wrong_time_of_day_is_named() {
        let error = Profile::from_json(Some(br#"{"quiet_hours":{"from":"24:00","to":"07:00"}}"#)).unwrap_err();
        assert!(error.to_string().contains("expected a time of day like `22:00`, found `24:00`"), "{error}");
    }

    #[test]
    fn reachability_follows_the_addresses() {
        let address = |status| Address {
            user_id: "u".into(),
            address_id: "phone".into(),
            channel: Channel::Push,
            provider: None,
            platform: Some("ios".into()),
            address: "abc".into(),
            environment: None,
            registered_at: None,
            last_seen_at: None,
            status,
            reason: None,
        };
        let mut reach = Reachability::default();
        assert!(reach.apply("phone", Some(&address(AddressStatus::Live))));
        assert!(!reach.apply("phone", Some(&address(AddressStatus::Live))));
        assert!(reach.channels().contains(Channel::Push));
        assert!(reach.apply("phone", Some(&address(AddressStatus::Invalid))));
        assert_eq!(reach.channels().iter().collect::<Vec<_>>(), [Channel::InApp]);
    }
}
