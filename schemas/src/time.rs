//! Instants: milliseconds since the epoch, UTC. RFC 3339 in JSON, a number inside.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An instant in milliseconds UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub i64);

impl Instant {
    /// The last instant that RFC 3339 can write; used as "never".
    pub const NEVER: Self = Self(253_402_207_200_999);

    /// This instant `span` later; saturates.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This instant `span` earlier; saturates.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time from `earlier` to `self`, zero if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The UTC day, as days since the epoch.
    #[must_use]
    pub const fn day(self) -> i64 {
        self.0.div_euclid(86_400_000)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A producer's clock may show anything; what is written must be read again all the same.
        let last = if self.0 < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        fmt::Display::fmt(&jiff::Timestamp::from_millisecond(self.0).unwrap_or(last), f)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an RFC 3339 time like `2026-03-28T22:10:00Z`, found `{found}`")]
pub struct InvalidInstant {
    found: String,
}

impl FromStr for Instant {
    type Err = InvalidInstant;
    fn from_str(text: &str) -> Result<Self, InvalidInstant> {
        let instant: jiff::Timestamp = text.parse().map_err(|_| InvalidInstant { found: text.to_owned() })?;
        Ok(Self(instant.as_millisecond()))
    }
}

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            text.parse().map_err(de::Error::custom)
        } else {
            i64::deserialize(deserializer).map(Self)
        }
    }
}

impl schemars::JsonSchema for Instant {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Instant".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "date-time" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_survive_text() {
        let text = "2026-03-28T22:10:00.123Z";
        let instant: Instant = text.parse().unwrap();
        assert_eq!(instant.to_string(), text);
        assert_eq!(serde_json::to_string(&instant).unwrap(), format!("\"{text}\""));
        assert_eq!(Instant(-1).day(), -1);
    }

    #[test]
    fn every_instant_can_be_read_again() {
        assert_eq!(Instant::NEVER.0, jiff::Timestamp::MAX.as_millisecond());
        assert_eq!(Instant::NEVER.to_string().parse(), Ok(Instant::NEVER));
        assert_eq!(Instant(i64::MAX).to_string().parse(), Ok(Instant::NEVER));
        let first: Instant = Instant(i64::MIN).to_string().parse().unwrap();
        assert_eq!(first.to_string(), Instant(i64::MIN).to_string());
    }

    #[test]
    fn an_offset_is_taken_into_account() {
        let instant: Instant = "2026-03-28T23:10:00+01:00".parse().unwrap();
        assert_eq!(instant.to_string(), "2026-03-28T22:10:00Z");
    }
}
