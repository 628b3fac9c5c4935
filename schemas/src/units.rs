//! Quantities as people write them in YAML: `5m`, `64KiB`, `10/h`, `20%`.
//!
//! Each reads strictly, says what it expected when it can't, and writes itself back in one normal
//! form, so that two spellings of one value hash alike.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time: `500ms`, `30s`, `5m`, `24h`, `1d`, or several together (`1h30m`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

/// A number of bytes: `512B`, `64KiB`, `10MiB`, `1GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// At most so many in any span of a length: `10/h`, `1/d`, `5/10m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate {
    /// At most so many …
    pub max: u32,
    /// … in any span of this length.
    pub per: Period,
}

/// A share in whole percent: `20%`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(pub u8);

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found `{found}`")]
pub struct InvalidUnit {
    /// What would do.
    pub expected: &'static str,
    /// What stands there.
    pub found: String,
}

const PERIOD: &str = "a duration like `500ms`, `30s`, `5m`, `24h` or `1d`";
const SIZE: &str = "a size like `512B`, `64KiB` or `10MiB`";
const RATE: &str = "a rate like `10/h`, `1/d` or `5/10m`";
const SHARE: &str = "a share like `20%`, at most `100%`";

const PERIOD_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Splits `12h30m` after the first number and its unit. A number without digits or beyond u64 is none.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let letters = text[digits..].find(|c: char| !c.is_ascii_alphabetic()).map_or(text.len(), |at| digits + at);
    Some((text[..digits].parse().ok()?, &text[digits..letters], &text[letters..]))
}

impl FromStr for Period {
    type Err = InvalidUnit;
    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        let invalid = || InvalidUnit { expected: PERIOD, found: text.to_owned() };
        let (mut rest, mut total_ms, mut last_unit_ms) = (text, 0u64, u64::MAX);
        while !rest.is_empty() {
            let (number, unit, after) = number_and_unit(rest).ok_or_else(invalid)?;
            let (_, unit_ms) = PERIOD_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
            // Units fall from left to right, each at most once: `5m2m` is a slip, not seven minutes.
            if *unit_ms >= last_unit_ms {
                return Err(invalid());
            }
            last_unit_ms = *unit_ms;
            total_ms = number.checked_mul(*unit_ms).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(invalid)?;
            rest = after;
        }
        if text.is_empty() { Err(invalid()) } else { Ok(Self(Duration::from_millis(total_ms))) }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (name, unit_ms) in PERIOD_UNITS {
            let whole = rest / u128::from(unit_ms);
            rest %= u128::from(unit_ms);
            if whole > 0 {
                write!(f, "{whole}{name}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Size {
    type Err = InvalidUnit;
    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        let invalid = || InvalidUnit { expected: SIZE, found: text.to_owned() };
        let (number, unit, rest) = number_and_unit(text).ok_or_else(invalid)?;
        let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit && rest.is_empty()).ok_or_else(invalid)?;
        number.checked_mul(*bytes).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, bytes) = SIZE_UNITS.into_iter().find(|(_, bytes)| self.0.is_multiple_of(*bytes)).unwrap_or(("B", 1));
        if self.0 == 0 { f.write_str("0B") } else { write!(f, "{}{name}", self.0 / bytes) }
    }
}

impl FromStr for Rate {
    type Err = InvalidUnit;
    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        let invalid = || InvalidUnit { expected: RATE, found: text.to_owned() };
        let (max, per) = text.split_once('/').ok_or_else(invalid)?;
        if max.starts_with('+') {
            return Err(invalid());
        }
        let max = max.parse().map_err(|_| invalid())?;
        let per = if per.starts_with(|c: char| c.is_ascii_digit()) { per.parse() } else { format!("1{per}").parse() };
        Ok(Self { max, per: per.map_err(|_| invalid())? })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = self.per.to_string();
        let short = per.strip_prefix('1').filter(|rest| rest.chars().all(char::is_alphabetic));
        write!(f, "{}/{}", self.max, short.unwrap_or(&per))
    }
}

impl FromStr for Share {
    type Err = InvalidUnit;
    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        let percent = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        match percent.and_then(|digits| digits.parse().ok()) {
            Some(percent @ 0..=100) => Ok(Self(percent)),
            _ => Err(InvalidUnit { expected: SHARE, found: text.to_owned() }),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

macro_rules! as_text {
    ($($name:ident, $expected:ident, $pattern:literal;)*) => { $(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": $expected, "pattern": $pattern })
            }
        }
    )* };
}

as_text! {
    Period, PERIOD, r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";
    Size, SIZE, r"^[0-9]+(B|KiB|MiB|GiB)$";
    Rate, RATE, r"^[0-9]+/[0-9dhms]+$";
    Share, SHARE, r"^(100|[0-9]{1,2})%$";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_spelling_has_one_normal_form() {
        for (text, normal) in
            [("500ms", "500ms"), ("90s", "1m30s"), ("24h", "1d"), ("1h30m", "1h30m"), ("0s", "0s"), ("36h", "1d12h")]
        {
            assert_eq!(text.parse::<Period>().unwrap().to_string(), normal);
        }
        for (text, normal) in [("65536B", "64KiB"), ("64KiB", "64KiB"), ("1024MiB", "1GiB"), ("0B", "0B")] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), normal);
        }
        for (text, normal) in [("10/h", "10/h"), ("1/d", "1/d"), ("5/10m", "5/10m"), ("5/60m", "5/h"), ("3/24h", "3/d")]
        {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), normal);
        }
        assert_eq!("20%".parse::<Share>().unwrap(), Share(20));
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "5", "m", "5 m", "5M", "-5m", "5m2m", "2m5h", "99999999999999999999d", "1.5h", "5µ"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        for text in ["", "64", "64KB", "64kib", "1MiB1KiB", "99999999999GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        for text in ["", "10", "/h", "10/", "10/x", "-1/h", "+1/h", "10 / h"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        for text in ["", "%", "20", "101%", "-1%", "+5%", "300%"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
        assert_eq!(
            "5x".parse::<Period>().unwrap_err().to_string(),
            "expected a duration like `500ms`, `30s`, `5m`, `24h` or `1d`, found `5x`"
        );
    }
}
