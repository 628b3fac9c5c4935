//! Wall clocks, read from the same file of zones as the engine's calendar, by other means: every
//! question is put to jiff, minute by minute where need be. Slow, and plain.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::tz::TimeZone;
use tidings_schemas::profile::QuietHours;
use tidings_schemas::time::Instant;

/// The release that the operators bundle. Its layout stands in `operators/data/README.md`'s packer:
/// a header of 24 bytes, an index of (name, place, length), TZif files.
static BUNDLED: &[u8] = include_bytes!("../../../operators/data/tzdata-2026f.bin");

const MINUTE: i64 = 60_000;

static ZONES: LazyLock<BTreeMap<String, TimeZone>> = LazyLock::new(|| read(BUNDLED).unwrap_or_default());

/// The zone of this name; UTC where there is none.
pub(super) fn zone(name: Option<&str>) -> TimeZone {
    name.and_then(|name| ZONES.get(name)).cloned().unwrap_or(TimeZone::UTC)
}

fn read(file: &'static [u8]) -> Option<BTreeMap<String, TimeZone>> {
    let number = |at: usize| -> Option<usize> {
        usize::try_from(u32::from_be_bytes(file.get(at..at + 4)?.try_into().ok()?)).ok()
    };
    let (index, data) = (number(12)?, number(16)?);
    let mut zones = BTreeMap::new();
    for entry in (index..data).step_by(52) {
        let name = std::str::from_utf8(file.get(entry..entry + 40)?).ok()?.trim_end_matches('\0');
        let (place, length) = (number(entry + 40)?, number(entry + 44)?);
        let zone = TimeZone::tzif(name, file.get(data + place..data + place + length)?).ok()?;
        zones.insert(name.to_owned(), zone);
    }
    Some(zones)
}

fn shown(zone: &TimeZone, at: Instant) -> Option<jiff::civil::DateTime> {
    Some(zone.to_datetime(jiff::Timestamp::from_millisecond(at.0).ok()?))
}

fn minute_of(time: jiff::civil::DateTime) -> u16 {
    u16::from(time.hour().unsigned_abs()) * 60 + u16::from(time.minute().unsigned_abs())
}

/// Whether the wall clock shows a quiet minute.
pub(super) fn is_quiet(zone: &TimeZone, hours: QuietHours, at: Instant) -> bool {
    let Some(minute) = shown(zone, at).map(minute_of) else { return false };
    let (from, to) = (hours.from.0, hours.to.0);
    if from <= to { from <= minute && minute < to } else { minute >= from || minute < to }
}

/// When the window that `at` lies in ends: the last instant at which the clock shows the end, moved
/// on by the gap where it never shows it. None where it is not quiet.
pub(super) fn quiet_end(zone: &TimeZone, hours: QuietHours, at: Instant) -> Option<Instant> {
    let mut end = None;
    let mut at = at;
    while is_quiet(zone, hours, at) {
        let now = shown(zone, at)?;
        let tomorrow = hours.from > hours.to && minute_of(now) >= hours.from.0;
        let date = if tomorrow { now.date().tomorrow().ok()? } else { now.date() };
        let (hour, minute) = (i8::try_from(hours.to.0 / 60).ok()?, i8::try_from(hours.to.0 % 60).ok()?);
        let later = zone.to_ambiguous_timestamp(date.at(hour, minute, 0, 0)).later().ok()?;
        let later = Instant(later.as_millisecond());
        if end.is_some_and(|end| later <= end) {
            break;
        }
        (end, at) = (Some(later), later);
    }
    end
}

/// The first instant after `at` and not after `last` at which the wall clock turns quiet.
pub(super) fn quiet_start(zone: &TimeZone, hours: QuietHours, at: Instant, last: Instant) -> Option<Instant> {
    let first = at.0.div_euclid(MINUTE) + 1;
    (first..=last.0.div_euclid(MINUTE))
        .map(|minute| Instant(minute * MINUTE))
        .find(|start| is_quiet(zone, hours, *start) && !is_quiet(zone, hours, Instant(start.0 - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Instant {
        text.parse().unwrap()
    }

    #[test]
    fn nights_are_as_long_as_the_clock_makes_them() {
        assert_eq!(ZONES.len(), 598);
        let night = |from: &str, to: &str| QuietHours { from: from.parse().unwrap(), to: to.parse().unwrap() };
        for (zone, from, to, now, end) in [
            ("America/New_York", "22:00", "07:00", "2026-03-08T09:00:00Z", Some("2026-03-08T11:00:00Z")),
            ("America/New_York", "22:00", "07:00", "2026-11-01T02:00:00Z", Some("2026-11-01T12:00:00Z")),
            ("America/New_York", "22:00", "07:00", "2026-11-01T12:00:00Z", None),
            // An end in the hour that is repeated: the second one.
            ("America/New_York", "22:00", "01:30", "2026-11-01T04:00:00Z", Some("2026-11-01T06:30:00Z")),
            // An end in the hour that is skipped: moved on.
            ("America/New_York", "22:00", "02:30", "2026-03-08T06:00:00Z", Some("2026-03-08T07:30:00Z")),
            ("Asia/Kolkata", "13:00", "15:00", "2026-06-01T07:30:00Z", Some("2026-06-01T09:30:00Z")),
            ("Nowhere/Land", "13:00", "15:00", "2026-06-01T14:59:59.999Z", Some("2026-06-01T15:00:00Z")),
        ] {
            let found = quiet_end(&super::zone(Some(zone)), night(from, to), at(now));
            assert_eq!(found, end.map(at), "{zone} {from}-{to} at {now}");
        }
        let berlin = zone(Some("Europe/Berlin"));
        let start = |last| quiet_start(&berlin, night("22:00", "07:00"), at("2026-03-29T19:51:00Z"), at(last));
        assert_eq!(start("2026-03-29T20:01:00Z"), Some(at("2026-03-29T20:00:00Z")));
        assert_eq!(start("2026-03-29T19:59:59Z"), None);
    }
}
