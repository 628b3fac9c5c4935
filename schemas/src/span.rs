//! Spans and rates as people write them: `5m`, `24h`, `10/h`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of absolute time, written `500ms`, `30s`, `5m`, `24h`, `7d` (a day is 24 hours).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(pub Duration);

const UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

/// Why a text is not a span or a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found `{found}`")]
pub struct InvalidSpan {
    expected: &'static str,
    found: String,
}

fn unit_ms(unit: &str) -> Option<u64> {
    UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms)
}

impl FromStr for Span {
    type Err = InvalidSpan;
    fn from_str(text: &str) -> Result<Self, InvalidSpan> {
        let invalid = || InvalidSpan { expected: "a duration like `5m`, `24h` or `500ms`", found: text.to_owned() };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| invalid())?;
        let ms = unit_ms(&text[digits..]).and_then(|unit| number.checked_mul(unit)).ok_or_else(invalid)?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (name, unit) =
            UNITS[..5].iter().rev().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit)).unwrap_or(&("ms", 1));
        write!(f, "{}{name}", ms / unit)
    }
}

/// At most so many in any span of this length, written `10/h`, `5/d` or `3/15m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate {
    /// At most so many …
    pub max: u32,
    /// … in any span of this length.
    pub per: Span,
}

impl FromStr for Rate {
    type Err = InvalidSpan;
    fn from_str(text: &str) -> Result<Self, InvalidSpan> {
        let invalid = || InvalidSpan { expected: "a rate like `10/h` or `3/15m`", found: text.to_owned() };
        let (max, per) = text.split_once('/').ok_or_else(invalid)?;
        let max = max.parse().map_err(|_| invalid())?;
        let per = match unit_ms(per) {
            Some(ms) => Span(Duration::from_millis(ms)),
            None => per.parse().map_err(|_| invalid())?,
        };
        if per.0.is_zero() { Err(invalid()) } else { Ok(Self { max, per }) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.max, self.per)
    }
}

macro_rules! as_text {
    ($name:ident, $pattern:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}
as_text!(Span, "^[0-9]+(ms|s|m|h|d|w)$");
as_text!(Rate, "^[0-9]+/[0-9]*(ms|s|m|h|d|w)$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_rates_round_trip() {
        for text in ["500ms", "30s", "5m", "24h", "0ms", "36h"] {
            let span: Span = text.parse().unwrap();
            let again: Span = span.to_string().parse().unwrap();
            assert_eq!(span, again, "{text}");
        }
        assert_eq!("24h".parse::<Span>().unwrap().to_string(), "1d");
        assert_eq!("10/h".parse::<Rate>().unwrap().to_string(), "10/1h");
        assert_eq!("3/15m".parse::<Rate>().unwrap().per.0, Duration::from_secs(900));
    }

    #[test]
    fn wrong_texts_are_named() {
        for text in ["5", "m", "5x", "-1s", ""] {
            let error = text.parse::<Span>().unwrap_err().to_string();
            assert_eq!(error, format!("expected a duration like `5m`, `24h` or `500ms`, found `{text}`"));
        }
        assert!("10".parse::<Rate>().is_err() && "1/0s".parse::<Rate>().is_err());
    }
}
