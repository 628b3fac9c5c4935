//! One zone: from an instant to what its wall clock shows, and back.
//!
//! The way there is always unique. The way back is not: a wall time that the clock shows twice
//! (an *overlap*, when it is put back) has two instants, and [`Fold`] says which is meant; one that
//! it never shows (a *gap*, when it is put forward) is moved on by the gap's length, as RFC 5545,
//! Python and jiff do.

use std::fmt;
use std::sync::Arc;

use tidings_schemas::profile::MinuteOfDay;
use tidings_schemas::time::Instant;

use super::CalendarError;

pub(super) const MINUTE: i64 = 60_000;
pub(super) const DAY: i64 = 1_440 * MINUTE;

/// Wall clocks are nowhere further from UTC than this (TZif: −25 h to +26 h).
const OFFSET_MAX: i64 = 26 * 60 * MINUTE;

/// 2100-01-01 in UTC. Zones whose clocks are changed every year have rules without an end; tables
/// need one. Later instants keep the offset that holds here: an hour off in half of the zones' year,
/// 70 years ahead, for rules that change every few years.
const TABLE_END: i64 = 47_482 * DAY;

/// A zone of a [`Calendar`](super::Calendar). Cloning is cheap.
#[derive(Clone)]
pub struct Zone {
    pub(super) name: Arc<str>,
    table: Arc<Table>,
}

/// The spans in which a zone's offset is one number, by their starts. The first starts before all time.
pub(super) struct Table {
    starts: Vec<i64>,
    /// East of UTC, in milliseconds.
    offsets: Vec<i64>,
}

/// A span of one offset; the end is exclusive.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) offset: i64,
}

/// What a wall clock shows at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// The local date, as days since 1970-01-01.
    pub day: i64,
    /// The minute of that day.
    pub minute: MinuteOfDay,
    /// The second of that minute.
    pub second: u8,
    /// The millisecond of that second.
    pub millisecond: u16,
}

/// Which of its two instants an overlapping wall time means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// The first time that the clock shows it.
    Earlier,
    /// The second time.
    Later,
}

impl LocalTime {
    /// The day of the week as ISO 8601 numbers it: 1 is Monday, 7 Sunday.
    #[must_use]
    pub fn weekday(&self) -> u8 {
        // 1970-01-01 was a Thursday.
        u8::try_from((self.day + 3).rem_euclid(7) + 1).unwrap_or(1)
    }
}

impl Zone {
    pub(super) fn new(name: &str, table: Arc<Table>) -> Self {
        Self { name: name.into(), table }
    }

    /// Its IANA name, as it was asked for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the two are one zone under two names.
    #[must_use]
    pub fn shares_rules(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.table, &other.table)
    }

    /// What the wall clock shows at `at`.
    #[must_use]
    pub fn local(&self, at: Instant) -> LocalTime {
        let wall = self.wall(at);
        let of_day = wall.rem_euclid(DAY);
        LocalTime {
            day: wall.div_euclid(DAY),
            minute: minute_of(wall),
            second: u8::try_from(of_day % MINUTE / 1_000).unwrap_or(0),
            millisecond: u16::try_from(of_day % 1_000).unwrap_or(0),
        }
    }

    /// The instant at which the wall clock shows `minute` of the local date `day` (days since
    /// 1970-01-01). In an overlap `fold` decides; a time in a gap is moved on by the gap's length.
    #[must_use]
    pub fn instant(&self, day: i64, minute: MinuteOfDay, fold: Fold) -> Instant {
        let wall = wall_of(day, minute);
        let showing = || self.spans_about(wall).filter(|span| span.contains(wall.saturating_sub(span.offset)));
        let shown = match fold {
            Fold::Earlier => showing().next(),
            Fold::Later => showing().last(),
        };
        // In a gap no span shows it, and the clock as it was before the gap decides.
        let before = || self.spans_about(wall).filter(|span| wall.saturating_sub(span.offset) >= span.end).last();
        let offset = shown.or_else(before).map_or(0, |span| span.offset);
        Instant(wall.saturating_sub(offset))
    }

    /// The next instant after `now` at which the wall clock shows `minute`: once on each local date,
    /// the first time in an overlap and moved on in a gap. The daily rhythm of digests.
    #[must_use]
    pub fn next_local(&self, minute: MinuteOfDay, now: Instant) -> Instant {
        let today = self.local(now).day;
        // From yesterday: a time in a gap before midnight is moved on into today.
        let mut days = today.saturating_sub(1)..=today.saturating_add(2);
        days.find_map(|day| Some(self.instant(day, minute, Fold::Earlier)).filter(|at| *at > now))
            .unwrap_or(Instant::NEVER)
    }

    /// The first instant at which the wall clock shows `minute` of `day` or anything later: in a gap, its end.
    pub(super) fn first_at_or_past(&self, day: i64, minute: MinuteOfDay) -> Instant {
        let wall = wall_of(day, minute);
        let reaching = |span: &Span| wall.saturating_sub(span.offset) < span.end;
        let first = self.spans_about(wall).find(reaching);
        Instant(first.map_or(wall, |span| wall.saturating_sub(span.offset).max(span.start)))
    }

    /// The wall clock as milliseconds since its own 1970-01-01 00:00.
    pub(super) fn wall(&self, at: Instant) -> i64 {
        at.0.saturating_add(self.table.offsets[self.table.find(at.0)])
    }

    /// The spans from the one that contains `at`, in order.
    pub(super) fn spans_from(&self, at: i64) -> impl Iterator<Item = Span> {
        (self.table.find(at)..self.table.starts.len()).map(|place| self.table.span(place))
    }

    /// The spans whose instants may show `wall`, or stand right before a gap that swallows it.
    fn spans_about(&self, wall: i64) -> impl Iterator<Item = Span> {
        self.spans_from(wall.saturating_sub(OFFSET_MAX))
            .take_while(move |span| span.start <= wall.saturating_add(OFFSET_MAX))
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zone({})", self.name)
    }
}

impl Span {
    fn contains(&self, at: i64) -> bool {
        self.start <= at && at < self.end
    }
}

impl Table {
    /// Reads a TZif file, and unrolls its rule without an end up to [`TABLE_END`].
    pub(super) fn from_tzif(name: &str, file: &[u8]) -> Result<Self, CalendarError> {
        let zone = jiff::tz::TimeZone::tzif(name, file)
            .map_err(|error| CalendarError::Zone { zone: name.to_owned(), reason: error.to_string() })?;
        let milliseconds = |offset: jiff::tz::Offset| i64::from(offset.seconds()) * 1_000;
        let mut table =
            Self { starts: vec![i64::MIN], offsets: vec![milliseconds(zone.to_offset(jiff::Timestamp::MIN))] };
        for transition in zone.following(jiff::Timestamp::MIN) {
            let start = transition.timestamp().as_millisecond();
            if start >= TABLE_END {
                break;
            }
            // Some transitions change only the zone's abbreviation.
            let offset = milliseconds(transition.offset());
            if table.offsets.last() != Some(&offset) {
                table.starts.push(start);
                table.offsets.push(offset);
            }
        }
        Ok(table)
    }

    fn find(&self, at: i64) -> usize {
        // The first start is the smallest number there is.
        self.starts.partition_point(|start| *start <= at) - 1
    }

    fn span(&self, place: usize) -> Span {
        let end = self.starts.get(place + 1).copied().unwrap_or(i64::MAX);
        Span { start: self.starts[place], end, offset: self.offsets[place] }
    }
}

pub(super) fn minute_of(wall: i64) -> MinuteOfDay {
    MinuteOfDay(u16::try_from(wall.rem_euclid(DAY) / MINUTE).unwrap_or(0))
}

fn wall_of(day: i64, minute: MinuteOfDay) -> i64 {
    day.saturating_mul(DAY).saturating_add(i64::from(minute.0) * MINUTE)
}

#[cfg(test)]
pub(super) mod tests {
    use chrono::{Offset, TimeZone};
    use proptest::prelude::*;

    use super::super::Calendar;
    use super::*;

    pub(in super::super) fn zone(name: &str) -> Zone {
        Calendar::bundled().zone(name).unwrap_or_else(|| panic!("no zone {name}")).clone()
    }

    pub(in super::super) fn utc(text: &str) -> Instant {
        text.parse().unwrap()
    }

    /// `2026-03-08 02:30` as day and minute.
    fn civil(text: &str) -> (i64, MinuteOfDay) {
        let (date, minute) = text.split_once(' ').unwrap();
        let day = utc(&format!("{date}T00:00:00Z")).day();
        (day, minute.parse().unwrap())
    }

    fn instants(zone_name: &str, local: &str) -> [String; 2] {
        let (day, minute) = civil(local);
        [Fold::Earlier, Fold::Later].map(|fold| zone(zone_name).instant(day, minute, fold).to_string())
    }

    /// Any zone at any millisecond of 2024 to 2037, every second time within hours of a change of its clock.
    pub(in super::super) fn zones_and_instants() -> impl Strategy<Value = (Zone, Instant)> {
        let calendar = Calendar::bundled();
        let names: Vec<String> = calendar.names().map(str::to_owned).collect();
        let span = utc("2024-01-01T00:00:00Z").0..utc("2038-01-01T00:00:00Z").0;
        (prop::sample::select(names), span, any::<bool>(), -6 * 60 * MINUTE..6 * 60 * MINUTE).prop_map(
            move |(name, at, near_change, distance)| {
                let zone = calendar.zone(&name).unwrap().clone();
                let end = zone.spans_from(at).next().map_or(i64::MAX, |span| span.end);
                (zone, Instant(if near_change && end < TABLE_END { end + distance } else { at }))
            },
        )
    }

    #[test]
    fn laws_that_changed_after_2025b_hold() {
        // PROVIDERS §10.1: older releases answer wrongly in each line.
        for (name, local, expected) in [
            ("America/Vancouver", "2026-11-21 22:00", ["2026-11-22T05:00:00Z"; 2]),
            ("America/Edmonton", "2027-01-15 07:00", ["2027-01-15T13:00:00Z"; 2]),
            ("America/Inuvik", "2027-01-15 07:00", ["2027-01-15T13:00:00Z"; 2]),
            ("America/Winnipeg", "2026-12-01 07:00", ["2026-12-01T12:00:00Z"; 2]),
            ("Africa/Casablanca", "2026-10-01 07:00", ["2026-10-01T07:00:00Z"; 2]),
            ("Africa/El_Aaiun", "2026-10-01 07:00", ["2026-10-01T07:00:00Z"; 2]),
            ("America/Havana", "2026-11-01 00:30", ["2026-11-01T04:30:00Z"; 2]),
            ("Europe/Chisinau", "2026-03-29 02:30", ["2026-03-29T00:30:00Z"; 2]),
            ("Europe/Chisinau", "2026-03-29 03:30", ["2026-03-29T01:30:00Z"; 2]),
            ("Europe/Chisinau", "2026-10-25 02:30", ["2026-10-24T23:30:00Z"; 2]),
            ("Europe/Chisinau", "2026-10-25 03:30", ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]),
        ] {
            assert_eq!(instants(name, local), expected, "{name} {local}");
        }
    }

    #[test]
    fn wall_times_become_instants() {
        // PROVIDERS §10.3. In a gap both folds are moved on.
        for (name, local, expected) in [
            ("America/New_York", "2026-03-08 02:30", ["2026-03-08T07:30:00Z"; 2]),
            ("America/New_York", "2026-11-01 01:30", ["2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z"]),
            ("Europe/London", "2026-10-25 01:30", ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]),
            ("Europe/London", "2026-03-29 01:30", ["2026-03-29T01:30:00Z"; 2]),
            ("Australia/Lord_Howe", "2026-04-05 01:45", ["2026-04-04T14:45:00Z", "2026-04-04T15:15:00Z"]),
            ("Australia/Lord_Howe", "2026-10-04 02:15", ["2026-10-03T15:45:00Z"; 2]),
            ("Africa/Cairo", "2026-04-24 00:00", ["2026-04-23T22:00:00Z"; 2]),
            ("Africa/Cairo", "2026-10-29 23:30", ["2026-10-29T20:30:00Z", "2026-10-29T21:30:00Z"]),
            ("America/Santiago", "2026-09-06 00:00", ["2026-09-06T04:00:00Z"; 2]),
            ("America/Santiago", "2026-04-04 23:30", ["2026-04-05T02:30:00Z", "2026-04-05T03:30:00Z"]),
            ("Asia/Kolkata", "2026-03-08 02:30", ["2026-03-07T21:00:00Z"; 2]),
            ("Pacific/Apia", "2011-12-30 12:00", ["2011-12-30T22:00:00Z"; 2]),
            ("Asia/Kathmandu", "2026-01-01 00:00", ["2025-12-31T18:15:00Z"; 2]),
            ("Asia/Beirut", "2026-03-29 00:00", ["2026-03-28T22:00:00Z"; 2]),
            ("America/Havana", "2026-03-08 00:00", ["2026-03-08T05:00:00Z"; 2]),
        ] {
            assert_eq!(instants(name, local), expected, "{name} {local}");
        }
    }

    #[test]
    fn clocks_change_when_the_law_says() {
        for (name, changes) in [
            ("America/New_York", ["2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z"]),
            ("Europe/London", ["2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z"]),
            ("Australia/Lord_Howe", ["2026-04-04T15:00:00Z", "2026-10-03T15:30:00Z"]),
            ("Africa/Cairo", ["2026-04-23T22:00:00Z", "2026-10-29T21:00:00Z"]),
            ("America/Santiago", ["2026-04-05T03:00:00Z", "2026-09-06T04:00:00Z"]),
        ] {
            let zone = zone(name);
            let spans = zone.spans_from(utc("2026-01-01T00:00:00Z").0);
            assert_eq!(spans.take(2).map(|span| Instant(span.end).to_string()).collect::<Vec<_>>(), changes, "{name}");
        }
    }

    #[test]
    fn a_wall_clock_shows_date_time_and_weekday() {
        let local = zone("Asia/Kathmandu").local(utc("2025-12-31T18:15:07.008Z"));
        let (day, minute) = civil("2026-01-01 00:00");
        assert_eq!(local, LocalTime { day, minute, second: 7, millisecond: 8 });
        assert_eq!(local.weekday(), 4, "a Thursday");
        assert_eq!(zone("UTC").local(Instant(-1)).weekday(), 3, "1969-12-31 was a Wednesday");
    }

    #[test]
    fn a_daily_time_comes_once_on_each_date() {
        for (name, minute, now, expected) in [
            ("Europe/Berlin", "08:00", "2026-11-21T06:59:59.999Z", "2026-11-21T07:00:00Z"),
            ("Europe/Berlin", "08:00", "2026-11-21T07:00:00Z", "2026-11-22T07:00:00Z"),
            // Shown twice: the first time only.
            ("America/New_York", "01:30", "2026-11-01T05:00:00Z", "2026-11-01T05:30:00Z"),
            ("America/New_York", "01:30", "2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"),
            // Never shown: moved on.
            ("America/New_York", "02:30", "2026-03-08T06:00:00Z", "2026-03-08T07:30:00Z"),
            ("Africa/Cairo", "00:30", "2026-04-23T22:00:00Z", "2026-04-23T22:30:00Z"),
            // 23:30 of the day before, whose last hour was skipped, comes today at 00:30.
            ("America/Nuuk", "23:30", "2026-03-29T01:10:00Z", "2026-03-29T01:30:00Z"),
        ] {
            let next = zone(name).next_local(minute.parse().unwrap(), utc(now));
            assert_eq!(next, utc(expected), "{name} {minute} after {now}");
        }
    }

    #[test]
    fn the_ends_of_time_do_not_overflow() {
        for name in ["UTC", "America/New_York", "Pacific/Kiritimati"] {
            for at in [Instant(i64::MIN), Instant::NEVER] {
                let zone = zone(name);
                let local = zone.local(at);
                let back = zone.instant(local.day, local.minute, Fold::Later);
                assert!(back.0.abs_diff(at.0) < DAY.unsigned_abs() * 2, "{name} {at}");
                assert!(zone.instant(i64::MAX, local.minute, Fold::Earlier).0 > i64::MAX - 2 * DAY);
                assert!(zone.instant(i64::MIN, local.minute, Fold::Earlier).0 < i64::MIN + 2 * DAY);
                assert!(zone.next_local(MinuteOfDay(0), at) > at || at == Instant::NEVER);
            }
        }
    }

    #[test]
    fn chrono_tz_agrees_where_its_release_still_holds() {
        let (from, to) = (utc("2024-01-01T00:00:00Z").0, utc("2025-03-01T00:00:00Z").0);
        // 2026 corrected the hour at which Moldova had changed its clocks since 2022.
        let corrected = ["Europe/Chisinau", "Europe/Tiraspol"];
        let mut compared = 0;
        for oracle in chrono_tz::TZ_VARIANTS.iter().filter(|zone| !corrected.contains(&zone.name())) {
            let zone = zone(oracle.name());
            // A step that drifts through the hours and minutes of the day.
            for at in (from..to).step_by(11 * 3_600_000 + 7 * 60_000) {
                let utc_or_wall = chrono::DateTime::from_timestamp_millis(at).unwrap().naive_utc();
                let offset = i64::from(oracle.offset_from_utc_datetime(&utc_or_wall).fix().local_minus_utc()) * 1_000;
                assert_eq!(zone.wall(Instant(at)) - at, offset, "{oracle} {utc_or_wall}Z");
                let (day, minute) = (at.div_euclid(DAY), minute_of(at));
                let expected = match oracle.from_local_datetime(&utc_or_wall) {
                    chrono::MappedLocalTime::Single(single) => [single; 2],
                    chrono::MappedLocalTime::Ambiguous(earlier, later) => [earlier, later],
                    chrono::MappedLocalTime::None => continue,
                };
                let found = [Fold::Earlier, Fold::Later].map(|fold| zone.instant(day, minute, fold).0);
                assert_eq!(found, expected.map(|at| at.timestamp_millis()), "{oracle} {utc_or_wall}");
                compared += 1;
            }
        }
        assert!(compared > 500_000, "{compared}");
    }

    proptest! {
        #[test]
        fn what_the_clock_shows_leads_back((zone, at) in zones_and_instants()) {
            let local = zone.local(at);
            let within = i64::from(local.second) * 1_000 + i64::from(local.millisecond);
            let back = [Fold::Earlier, Fold::Later].map(|fold| zone.instant(local.day, local.minute, fold).0 + within);
            prop_assert!(back.contains(&at.0), "{zone:?} {at}: {back:?}");
        }

        #[test]
        fn a_daily_time_is_never_later_than_tomorrows((zone, at) in zones_and_instants(), minute in 0..1_440u16) {
            let next = zone.next_local(MinuteOfDay(minute), at);
            prop_assert!(at < next && next.0 - at.0 <= DAY + 2 * 60 * MINUTE, "{zone:?} {at}: {next}");
            prop_assert_eq!(zone.next_local(MinuteOfDay(minute), Instant(next.0 - 1)), next);
        }
    }
}
