//! Local times as the story tells them: `22:10` on the day on which it began, `07:12 on 29 Mar` later.

use tidings_operators::calendar::{Calendar, Zone};
use tidings_schemas::time::Instant;

/// A user's wall clock, and the day on which a story begins.
#[derive(Clone, Debug)]
pub struct WallClock {
    zone: Zone,
    first_day: Option<i64>,
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl WallClock {
    /// The clock of `zone`, UTC where none is known.
    #[must_use]
    pub fn new(zone: Option<&Zone>) -> Self {
        Self { zone: zone.cloned().unwrap_or_else(|| Calendar::bundled().utc().clone()), first_day: None }
    }

    /// The same, for a story that begins at `first`: times of that day are told without a date.
    #[must_use]
    pub fn from(mut self, first: Instant) -> Self {
        self.first_day = Some(self.zone.local(first).day);
        self
    }

    /// What the clock shows at `at`, as part of a sentence: `07:00`, or `07:00 on 29 Mar` on another day.
    #[must_use]
    pub fn text(&self, at: Instant) -> String {
        let minute = self.zone.local(at).minute;
        self.other_day(at).map_or_else(|| minute.to_string(), |day| format!("{minute} on {day}"))
    }

    /// The same at the beginning of a line: `29 Mar 07:00`.
    #[must_use]
    pub fn column(&self, at: Instant) -> String {
        let minute = self.zone.local(at).minute;
        self.other_day(at).map_or_else(|| minute.to_string(), |day| format!("{day} {minute}"))
    }

    fn other_day(&self, at: Instant) -> Option<String> {
        let local = self.zone.local(at);
        if self.first_day == Some(local.day) {
            return None;
        }
        let Ok(days) = jiff::Span::new().try_days(local.day) else { return Some("a far day".to_owned()) };
        let date = jiff::civil::date(1970, 1, 1).saturating_add(days);
        let month = usize::try_from(date.month() - 1).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"");
        Some(format!("{} {month}", date.day()))
    }

    /// The zone as people call it: its city, or UTC.
    #[must_use]
    pub fn place(&self) -> String {
        match self.zone.name() {
            "UTC" => "UTC".to_owned(),
            name => name.rsplit('/').next().unwrap_or(name).replace('_', " "),
        }
    }

    /// The zone's own name.
    #[must_use]
    pub fn zone(&self) -> &str {
        self.zone.name()
    }
}
