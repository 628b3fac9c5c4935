//! What a user's quiet hours say about one channel now: one pure function, because what waited for
//! budget must ask again. `quiet_hours` and `rate_limit` both use it.

use std::time::Duration;

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::policy::QuietRule;
use tidings_schemas::profile::Profile;
use tidings_schemas::time::Instant;

use crate::calendar::Zone;
use crate::rules::Rules;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes through.
    Pass,
    /// Goes through without sound or badge.
    Silent,
    /// Waits.
    Defer {
        /// When the window ends: what a person is told.
        until: Instant,
        /// When this user's turn comes: the end plus the user's share of the spread, so that a
        /// morning is no stampede.
        release: Instant,
    },
    /// Must not go this way now; only the in-app leg remains.
    InApp,
}

/// The user's zone, UTC where none is set or the calendar does not know it.
#[must_use]
pub fn zone<'a>(profile: &Profile, rules: &'a Rules) -> &'a Zone {
    let calendar = &rules.calendar;
    profile.time_zone.as_deref().and_then(|name| calendar.zone(name)).unwrap_or_else(|| calendar.utc())
}

/// What `profile`'s quiet hours say about `channel` at `priority`, at `now`, for the user of `placement`.
#[must_use]
pub fn verdict(
    placement: u64,
    profile: &Profile,
    rules: &Rules,
    priority: Priority,
    channel: Channel,
    now: Instant,
) -> Verdict {
    let rule = rules.quiet(priority, channel);
    let (Some(hours), false) = (profile.quiet_hours, rule == QuietRule::Pass) else { return Verdict::Pass };
    let Some(window) = zone(profile, rules).quiet_window(hours, now) else { return Verdict::Pass };
    match rule {
        QuietRule::Pass => Verdict::Pass,
        QuietRule::Silent => Verdict::Silent,
        QuietRule::InApp => Verdict::InApp,
        QuietRule::Defer => {
            Verdict::Defer { until: window.end, release: window.end.after(share(placement, rules.spread)) }
        }
    }
}

/// The earliest start of a quiet window after `now`.
#[must_use]
pub fn next_start(profile: &Profile, rules: &Rules, now: Instant) -> Option<Instant> {
    profile.quiet_hours.and_then(|hours| zone(profile, rules).next_quiet_start(hours, now))
}

/// The user's share of a spread: by the hash of the user, so that it is the same every morning.
fn share(placement: u64, spread: Duration) -> Duration {
    let span = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(if span == 0 { 0 } else { placement % span })
}
