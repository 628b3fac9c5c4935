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

/// Most bytes of an instant's text within the years 0 to 9999: `2026-03-28T22:10:00.123Z`.
const TEXT_BYTES: usize = 24;

/// Milliseconds of a day.
const DAY: i64 = 86_400_000;

impl Instant {
    /// Appends the text of an instant, as `Display` writes it.
    pub fn put(self, to: &mut Vec<u8>) {
        let mut text = [0; TEXT_BYTES];
        match self.common(&mut text) {
            Some(length) => to.extend_from_slice(&text[..length]),
            None => to.extend_from_slice(self.any().as_bytes()),
        }
    }

    /// Writes the text of an instant of the years 1970 to 9999, which nearly all are; returns its length.
    fn common(self, text: &mut [u8; TEXT_BYTES]) -> Option<usize> {
        // The last second is jiff's: `NEVER` has more digits than milliseconds.
        if !(0..Self::NEVER.0 - 1_000).contains(&self.0) {
            return None;
        }
        let (days, rest) = (u32::try_from(self.0 / DAY).ok()?, u32::try_from(self.0 % DAY).ok()?);
        // Proleptic Gregorian days counted from a first of March, so that the leap day comes last.
        let days = days + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march = (5 * of_year + 2) / 153;
        let (day, month) = (of_year - (153 * march + 2) / 5 + 1, if march < 10 { march + 3 } else { march - 9 });
        let year = 400 * era + year_of_era + u32::from(month <= 2);
        let (seconds, millis) = (rest / 1_000, rest % 1_000);
        text.copy_from_slice(b"0000-00-00T00:00:00.000Z");
        let mut put = |at: usize, number: u32| {
            text[at] += (number / 10) as u8;
            text[at + 1] += (number % 10) as u8;
        };
        put(0, year / 100);
        put(2, year % 100);
        put(5, month);
        put(8, day);
        put(11, seconds / 3_600);
        put(14, seconds / 60 % 60);
        put(17, seconds % 60);
        if millis == 0 {
            text[19] = b'Z';
            return Some(20);
        }
        put(20, millis / 10);
        text[22] += (millis % 10) as u8;
        // No zeros at the end.
        let digits = text[20..23].iter().rposition(|digit| *digit != b'0')? + 1;
        text[20 + digits] = b'Z';
        Some(21 + digits)
    }

    /// Reads the text of an instant of the years 1970 to 9998, to the second or to the millisecond, as nearly all
    /// are written; none where it takes the general reader.
    fn read_common(text: &str) -> Option<Self> {
        let number = |digits: &[u8]| {
            let digit = |byte: &u8| Some(u32::from(byte.wrapping_sub(b'0'))).filter(|digit| *digit < 10);
            digits.iter().try_fold(0, |number, byte| Some(10 * number + digit(byte)?))
        };
        let (to_second, rest) = text.as_bytes().split_first_chunk::<19>()?;
        let [y, e, a, r, b'-', m, o, b'-', d, t, b'T', h, u, b':', n, i, b':', s, c] = *to_second else { return None };
        let millis = match rest {
            b"Z" => 0,
            [b'.', millis @ .., b'Z'] if millis.len() == 3 => number(millis)?,
            _ => return None,
        };
        let (year, month, day) = (number(&[y, e, a, r])?, number(&[m, o])?, number(&[d, t])?);
        let (hour, minute, second) = (number(&[h, u])?, number(&[n, i])?, number(&[s, c])?);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let last = match month {
            2 => 28 + u32::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let in_range = (1970..=9998).contains(&year) && (1..=12).contains(&month) && (1..=last).contains(&day);
        if !in_range || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        // As in `common`, the year begins with March.
        let (year, march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let (era, year_of_era) = (year / 400, year % 400);
        let of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + (153 * march + 2) / 5 + day - 1;
        let days = i64::from(146_097 * era + of_era) - 719_468;
        let of_day = i64::from((60 * (60 * hour + minute) + second) * 1_000 + millis);
        Some(Self(days * DAY + of_day))
    }

    fn any(self) -> String {
        // A producer's clock may show anything; what is written must be read again all the same.
        let last = if self.0 < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        jiff::Timestamp::from_millisecond(self.0).unwrap_or(last).to_string()
    }
}

/// The texts of a few instants that were written last: an epoch's records say the same ones over and
/// over, and copying is several times cheaper than writing.
#[derive(Clone, Debug)]
pub struct InstantTexts {
    last: [(Instant, [u8; TEXT_BYTES], usize); Self::KEPT],
    next: usize,
}

impl Default for InstantTexts {
    fn default() -> Self {
        Self { last: [(Instant(0), *b"1970-01-01T00:00:00Z....", 20); Self::KEPT], next: 0 }
    }
}

impl InstantTexts {
    /// Now, ten minutes later, and two more.
    const KEPT: usize = 4;

    /// Appends the text of an instant, as [`Instant::put`].
    pub fn put(&mut self, instant: Instant, to: &mut Vec<u8>) {
        if let Some((_, text, length)) = self.last.iter().find(|(known, ..)| *known == instant) {
            let end = to.len() + length;
            to.extend_from_slice(text);
            return to.truncate(end);
        }
        let mut text = [0; TEXT_BYTES];
        match instant.common(&mut text) {
            Some(length) => {
                to.extend_from_slice(&text[..length]);
                self.last[self.next] = (instant, text, length);
                self.next = (self.next + 1) % Self::KEPT;
            }
            None => to.extend_from_slice(instant.any().as_bytes()),
        }
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; TEXT_BYTES];
        match self.common(&mut text).and_then(|length| std::str::from_utf8(&text[..length]).ok()) {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.any()),
        }
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
        if let Some(instant) = Self::read_common(text) {
            return Ok(instant);
        }
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

    // jiff is the oracle of what is written by hand.
    #[test]
    fn every_text_is_as_jiff_writes_it() {
        let days = (0..2_932_890).step_by(17).map(|day| day * DAY + day % DAY);
        let edges = [0, 1, 10, 100, 120, 999, 1_000, -1, -DAY, Instant::NEVER.0, Instant::NEVER.0 + 1];
        let leap = ["2000-02-29", "2024-02-29", "2024-12-31", "2100-02-28", "2100-03-01"];
        let leap = leap.map(|day| format!("{day}T23:59:59.999Z").parse::<Instant>().unwrap().0);
        let mut texts = InstantTexts::default();
        for millis in days.chain(edges).chain(leap) {
            let mut put = Vec::new();
            Instant(millis).put(&mut put);
            assert_eq!(String::from_utf8(put).unwrap(), Instant(millis).any());
            for instant in [Instant(millis), Instant(0), Instant(millis)] {
                let mut put = Vec::new();
                texts.put(instant, &mut put);
                assert_eq!(String::from_utf8(put).unwrap(), instant.any());
            }
            assert_eq!(Instant(millis).to_string(), Instant(millis).any());
        }
    }

    // jiff is the oracle here too.
    #[test]
    fn every_text_is_read_as_jiff_reads_it() {
        let read_by_jiff = |text: &str| text.parse::<jiff::Timestamp>().ok().map(|instant| instant.as_millisecond());
        let check = |text: &str| assert_eq!(text.parse::<Instant>().ok().map(|it| it.0), read_by_jiff(text), "{text}");
        for day in (0..2_932_531).step_by(17) {
            check(&Instant(day * DAY + day % DAY).to_string());
            check(&Instant(day * DAY + 86_399_999).to_string());
        }
        let sound = "2024-02-29T23:59:59.999Z";
        for place in 0..sound.len() {
            check(&sound[..place]);
            for byte in b' '..=b'~' {
                let mut text = sound.as_bytes().to_vec();
                text[place] = byte;
                check(std::str::from_utf8(&text).unwrap());
                check(&format!("{}Z", std::str::from_utf8(&text[..19]).unwrap()));
            }
        }
        for month in 0..14 {
            for day in 0..33 {
                for year in [1900, 1969, 1970, 2000, 2023, 2024, 2100, 9998, 9999] {
                    check(&format!("{year}-{month:02}-{day:02}T00:00:00Z"));
                }
            }
        }
        for text in
            ["2026-03-28T24:00:00Z", "2026-03-28T23:59:60Z", "2026-03-28T22:10:00.1Z", "2026-03-28T22:10:00.123456Z"]
        {
            check(text);
        }
    }

    #[test]
    fn an_offset_is_taken_into_account() {
        let instant: Instant = "2026-03-28T23:10:00+01:00".parse().unwrap();
        assert_eq!(instant.to_string(), "2026-03-28T22:10:00Z");
    }
}
