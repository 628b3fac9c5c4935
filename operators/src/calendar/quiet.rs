//! Quiet hours on a wall clock that is put back and forward.
//!
//! Whether it is quiet *now* is asked of the wall clock, which always has one answer: from the first
//! quiet minute up to, not including, the last. Only the release needs the way back from wall time to
//! an instant: the **end** is the last instant at which the clock shows it (in an overlap the second
//! one; in a gap it is moved on by the gap's length), the **start** the first instant at which the
//! clock shows it or has jumped past it. So a window may be 8 h or 10 h long by its user's 9 h.
//!
//! ```text
//! 22:00–01:30, New York, clock put back at 02:00:   22:00 ▓▓▓▓▓▓ 01:30 ░░ 02:00→01:00 ▓▓ 01:30
//! ```
//!
//! What this decides where a boundary lies in the hour that is repeated or skipped, once a year:
//! - ░ is inside the window, but the clock shows no quiet time. What arrives there passes at once;
//!   what was deferred before waits for ▓ to pass too, so that one window releases once.
//! - An end in a gap (02:30, clock put forward from 02:00 to 03:00) releases at 03:30, though what
//!   arrives from 03:00 on passes.
//! - A window that lies wholly in a gap does not happen on that date. If an end that was moved on
//!   falls into the next window (of more than 22 h), the release is that one's end.

use tidings_schemas::profile::{MinuteOfDay, QuietHours};
use tidings_schemas::time::Instant;

use super::zone::{DAY, Fold, MINUTE, Zone, minute_of};

/// A quiet window as instants; the end is exclusive, and is when deferred work is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first quiet instant.
    pub start: Instant,
    /// The release: the clock shows no quiet time then, and this window does not come back.
    pub end: Instant,
}

impl Zone {
    /// Whether the wall clock shows a quiet time at `now`.
    #[must_use]
    pub fn is_quiet(&self, hours: QuietHours, now: Instant) -> bool {
        contains(hours, minute_of(self.wall(now)))
    }

    /// The window that `now` lies in, if the wall clock shows a quiet time. `start ≤ now < end`.
    #[must_use]
    pub fn quiet_window(&self, hours: QuietHours, now: Instant) -> Option<Window> {
        let (start, mut end) = self.window_of_wall(hours, now)?;
        // Each step is a later end. It is seldom a step at all, see above.
        while let Some((_, later)) = self.window_of_wall(hours, end).filter(|(_, later)| *later > end) {
            end = later;
        }
        Some(Window { start, end })
    }

    /// The first instant after `now` at which the wall clock turns quiet; none without a window.
    #[must_use]
    pub fn next_quiet_start(&self, hours: QuietHours, now: Instant) -> Option<Instant> {
        if hours.from == hours.to {
            return None;
        }
        self.spans_from(now.0).find_map(|span| {
            // A jump into a quiet time.
            let jumped = Instant(span.start);
            if jumped > now && self.is_quiet(hours, jumped) && !self.is_quiet(hours, Instant(span.start - 1)) {
                return Some(jumped);
            }
            let after = span.start.max(now.0);
            let since = after.saturating_add(span.offset).saturating_sub(i64::from(hours.from.0) * MINUTE);
            let start = after.checked_add(DAY - since.rem_euclid(DAY))?;
            (start < span.end).then_some(Instant(start))
        })
    }

    fn window_of_wall(&self, hours: QuietHours, now: Instant) -> Option<(Instant, Instant)> {
        let local = self.local(now);
        if !contains(hours, local.minute) {
            return None;
        }
        let overnight = hours.from > hours.to;
        let started = if overnight && local.minute < hours.from { local.day.saturating_sub(1) } else { local.day };
        let ends = if overnight { started.saturating_add(1) } else { started };
        Some((self.first_at_or_past(started, hours.from), self.instant(ends, hours.to, Fold::Later)))
    }
}

fn contains(hours: QuietHours, minute: MinuteOfDay) -> bool {
    if hours.from <= hours.to {
        hours.from <= minute && minute < hours.to
    } else {
        hours.from <= minute || minute < hours.to
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::zone::tests::{utc, zone, zones_and_instants};
    use super::*;

    fn hours(text: &str) -> QuietHours {
        let (from, to) = text.split_once('-').unwrap();
        QuietHours { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    fn window(zone_name: &str, quiet: &str, now: &str) -> Option<(String, String)> {
        let window = zone(zone_name).quiet_window(hours(quiet), utc(now))?;
        Some((window.start.to_string(), window.end.to_string()))
    }

    #[test]
    fn a_window_is_as_long_as_its_night() {
        for (name, quiet, now, start, end) in [
            ("America/New_York", "22:00-07:00", "2026-03-06T12:00:00-05:00", "", ""),
            // 9 h, 8 h, 10 h.
            ("America/New_York", "22:00-07:00", "2026-03-07T03:00:00Z", "2026-03-07T03:00:00Z", "2026-03-07T12:00:00Z"),
            ("America/New_York", "22:00-07:00", "2026-03-08T09:00:00Z", "2026-03-08T03:00:00Z", "2026-03-08T11:00:00Z"),
            ("America/New_York", "22:00-07:00", "2026-11-01T05:59:00Z", "2026-11-01T02:00:00Z", "2026-11-01T12:00:00Z"),
            // Both ends: the first minute is quiet, the last is not.
            ("Europe/Berlin", "22:00-07:00", "2026-03-28T20:59:59.999Z", "", ""),
            ("Europe/Berlin", "22:00-07:00", "2026-03-28T21:00:00Z", "2026-03-28T21:00:00Z", "2026-03-29T05:00:00Z"),
            (
                "Europe/Berlin",
                "22:00-07:00",
                "2026-03-29T04:59:59.999Z",
                "2026-03-28T21:00:00Z",
                "2026-03-29T05:00:00Z",
            ),
            ("Europe/Berlin", "22:00-07:00", "2026-03-29T05:00:00Z", "", ""),
            // On one day; to midnight; from midnight; none.
            ("Asia/Kolkata", "13:00-15:00", "2026-07-01T08:00:00Z", "2026-07-01T07:30:00Z", "2026-07-01T09:30:00Z"),
            ("Asia/Kolkata", "13:00-15:00", "2026-07-01T09:30:00Z", "", ""),
            ("Asia/Kolkata", "21:00-00:00", "2026-07-01T18:00:00Z", "2026-07-01T15:30:00Z", "2026-07-01T18:30:00Z"),
            ("Asia/Kolkata", "00:00-06:00", "2026-07-01T18:30:00Z", "2026-07-01T18:30:00Z", "2026-07-02T00:30:00Z"),
            ("Asia/Kolkata", "08:00-08:00", "2026-07-01T02:30:00Z", "", ""),
            // The law of 2026: no clock is put back in Vancouver.
            (
                "America/Vancouver",
                "22:00-07:00",
                "2026-11-22T06:00:00Z",
                "2026-11-22T05:00:00Z",
                "2026-11-22T14:00:00Z",
            ),
        ] {
            let expected = (!start.is_empty()).then(|| (start.to_owned(), end.to_owned()));
            assert_eq!(window(name, quiet, now), expected, "{name} {quiet} {now}");
        }
    }

    #[test]
    fn a_boundary_in_the_repeated_hour_means_its_first_start_and_its_last_end() {
        // New York, 2026-11-01: 01:00 to 02:00 is shown from 05:00Z and again from 06:00Z.
        let ends = |now| window("America/New_York", "22:00-01:30", now).map(|window| window.1);
        assert_eq!(ends("2026-11-01T05:29:00Z").as_deref(), Some("2026-11-01T06:30:00Z"));
        assert_eq!(ends("2026-11-01T05:30:00Z"), None);
        assert_eq!(ends("2026-11-01T06:00:00Z").as_deref(), Some("2026-11-01T06:30:00Z"));
        assert_eq!(ends("2026-11-01T06:30:00Z"), None);
        let starts = |now| window("America/New_York", "01:30-07:00", now).map(|window| window.0);
        assert_eq!(starts("2026-11-01T05:45:00Z").as_deref(), Some("2026-11-01T05:30:00Z"));
        assert_eq!(starts("2026-11-01T06:15:00Z"), None);
        assert_eq!(starts("2026-11-01T06:45:00Z").as_deref(), Some("2026-11-01T05:30:00Z"));
        // Santiago repeats the hour before midnight.
        let santiago = window("America/Santiago", "23:30-07:00", "2026-04-05T03:40:00Z").unwrap();
        assert_eq!(santiago, ("2026-04-05T02:30:00Z".to_owned(), "2026-04-05T11:00:00Z".to_owned()));
    }

    #[test]
    fn a_boundary_in_the_skipped_hour_starts_at_once_and_ends_moved_on() {
        // New York, 2026-03-08: 02:00 becomes 03:00 at 07:00Z.
        let new_york = |quiet, now| window("America/New_York", quiet, now);
        let of = |start: &str, end: &str| Some((start.to_owned(), end.to_owned()));
        let moved_on = of("2026-03-08T03:00:00Z", "2026-03-08T07:30:00Z");
        assert_eq!(new_york("22:00-02:30", "2026-03-08T06:59:00Z"), moved_on);
        assert_eq!(new_york("22:00-02:30", "2026-03-08T07:00:00Z"), None);
        let at_once = of("2026-03-08T07:00:00Z", "2026-03-08T11:00:00Z");
        assert_eq!(new_york("02:30-07:00", "2026-03-08T07:00:00Z"), at_once);
        assert_eq!(new_york("02:15-02:45", "2026-03-08T07:00:00Z"), None);
        // Moved on into the next window: that one's end.
        assert_eq!(new_york("03:00-02:30", "2026-03-08T06:00:00Z").unwrap().1, "2026-03-09T06:30:00Z");
    }

    #[test]
    fn the_next_start_is_when_the_clock_turns_quiet() {
        for (name, quiet, now, expected) in [
            ("Europe/Berlin", "22:00-07:00", "2026-03-28T12:00:00Z", Some("2026-03-28T21:00:00Z")),
            ("Europe/Berlin", "22:00-07:00", "2026-03-28T21:00:00Z", Some("2026-03-29T20:00:00Z")),
            ("Europe/Berlin", "22:00-07:00", "2026-03-29T01:00:00Z", Some("2026-03-29T20:00:00Z")),
            ("Europe/Berlin", "07:00-07:00", "2026-03-29T01:00:00Z", None),
            ("Asia/Kolkata", "13:00-15:00", "2026-07-01T09:30:00Z", Some("2026-07-02T07:30:00Z")),
            ("America/New_York", "02:30-07:00", "2026-03-08T06:00:00Z", Some("2026-03-08T07:00:00Z")),
            ("America/New_York", "01:30-07:00", "2026-11-01T05:00:00Z", Some("2026-11-01T05:30:00Z")),
            ("America/New_York", "01:30-07:00", "2026-11-01T06:10:00Z", Some("2026-11-01T06:30:00Z")),
            // Put back into the window that had just ended.
            ("America/New_York", "22:00-01:30", "2026-11-01T05:40:00Z", Some("2026-11-01T06:00:00Z")),
            ("UTC", "22:00-07:00", "+262142-12-31T23:59:59Z", None),
        ] {
            let now = now.parse().unwrap_or(Instant(i64::MAX));
            assert_eq!(zone(name).next_quiet_start(hours(quiet), now), expected.map(utc), "{name} {quiet} {now}");
        }
    }

    fn any_hours() -> impl Strategy<Value = QuietHours> {
        (0..1_440u16, 0..1_440u16).prop_map(|(from, to)| QuietHours { from: MinuteOfDay(from), to: MinuteOfDay(to) })
    }

    /// Whether a change of the clock explains that `at` is not what its window says: no further from
    /// the change than the clock was moved.
    fn beside_a_change(zone: &Zone, at: Instant) -> bool {
        let spans: Vec<_> = zone.spans_from(at.0 - 2 * DAY).take_while(|span| span.start <= at.0 + 2 * DAY).collect();
        spans.windows(2).any(|pair| (pair[1].start - at.0).abs() <= (pair[1].offset - pair[0].offset).abs())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn a_window_contains_its_now_and_is_over_at_its_end((zone, now) in zones_and_instants(), hours in any_hours()) {
            let window = zone.quiet_window(hours, now);
            prop_assert_eq!(window.is_some(), zone.is_quiet(hours, now));
            let Some(Window { start, end }) = window else { return Ok(()) };
            prop_assert!(start <= now && now < end, "{:?} {}: {}..{}", zone, now, start, end);
            prop_assert!(zone.is_quiet(hours, start) && !zone.is_quiet(hours, end));
            prop_assert!(end.0 - start.0 <= 2 * DAY);
            for at in (start.0..end.0).step_by(7 * 60_000).chain([end.0 - 1]).map(Instant) {
                prop_assert!(zone.is_quiet(hours, at) || beside_a_change(&zone, at), "{:?} {}", zone, at);
            }
            // Released is released: only the next date's window makes it quiet again.
            let next = zone.next_quiet_start(hours, end).unwrap();
            prop_assert!(zone.local(next).day > zone.local(now).day || zone.local(next).minute >= hours.from);
        }

        #[test]
        fn it_is_not_quiet_before_the_next_start((zone, now) in zones_and_instants(), hours in any_hours()) {
            let next = zone.next_quiet_start(hours, now);
            prop_assert_eq!(next.is_some(), hours.from != hours.to);
            let Some(next) = next else { return Ok(()) };
            prop_assert!(now < next && zone.is_quiet(hours, next) && !zone.is_quiet(hours, Instant(next.0 - 1)));
            let mut quiet = zone.is_quiet(hours, now);
            for at in (now.0 + 1..next.0).step_by(60_000).map(Instant) {
                let turned = zone.is_quiet(hours, at);
                prop_assert!(quiet || !turned, "{:?} turns quiet at {}, before {}", zone, at, next);
                quiet = turned;
            }
        }
    }
}
