//! What an epoch says, in the form in which oracle and engine are compared: lane records whole,
//! hand-overs and dead letters by name, and of each unit that the epoch touched its last fate.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use tidings_schemas::channel::Priority;
use tidings_schemas::ids::{EventId, GroupId, LegId};
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, State, Unit as RowUnit};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

/// What a fate is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// One accepted record.
    Event(EventId),
    /// One notification on its way to one channel.
    Leg(LegId),
}

/// What became of a unit, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It exists, and nothing has ended or held it.
    Open,
    /// It waits.
    Parked {
        /// Until when, as a person is told.
        until: Option<Instant>,
        /// Why, for a leg.
        reason: Option<Reason>,
    },
    /// No event.
    Rejected(Option<Reason>),
    /// A repeat.
    Deduplicated,
    /// Its actor was taken out, or it took one out.
    Retracted,
    /// Taken back, or it took something back.
    Cancelled,
    /// Too late.
    Expired,
    /// Not said, for ever.
    Suppressed(Option<Reason>),
    /// Said as part of one of these groups; a row names the last.
    Merged(BTreeSet<GroupId>),
    /// In a lane.
    Queued,
    /// Came back; not judged to an end.
    Returned,
    /// Ended in the leg of the next channel.
    FailedOver,
}

impl Fate {
    fn agrees(&self, found: &Self) -> bool {
        match (self, found) {
            (Self::Merged(any), Self::Merged(one)) => one.is_subset(any),
            (expected, found) => expected == found,
        }
    }
}

/// What one epoch says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Lane records.
    pub lanes: Vec<LaneRecord>,
    /// Events handed to the path of this priority.
    pub handed_over: Vec<(Priority, EventId)>,
    /// Dead letters, by reason.
    pub letters: BTreeMap<Reason, u64>,
    /// The last fate of each unit that the epoch touched.
    pub fates: BTreeMap<Unit, Fate>,
}

impl Told {
    pub(super) fn fate(&mut self, unit: Unit, fate: Fate) {
        match (self.fates.get_mut(&unit), &fate) {
            (Some(Fate::Merged(groups)), Fate::Merged(more)) => groups.extend(more),
            (Some(_), Fate::Open) => {}
            _ => drop(self.fates.insert(unit, fate)),
        }
    }

    /// Takes in a row of the engine's record.
    pub fn row(&mut self, row: &Row) {
        let unit = match row.unit {
            RowUnit::Event => Unit::Event(row.event),
            RowUnit::Leg => Unit::Leg(row.leg),
            RowUnit::Delivery => return,
        };
        let mut fate = Fate::Open;
        for state in &row.states {
            fate = match state {
                State::Parked => Fate::Parked { until: row.until, reason: row.reason },
                State::Rejected => Fate::Rejected(row.reason),
                State::Deduplicated => Fate::Deduplicated,
                State::Retracted => Fate::Retracted,
                State::Cancelled => Fate::Cancelled,
                State::Expired => Fate::Expired,
                State::Suppressed => Fate::Suppressed(row.reason),
                State::Merged => Fate::Merged([row.group].into()),
                State::Queued => Fate::Queued,
                State::Returned => Fate::Returned,
                State::FailedOver => Fate::FailedOver,
                _ => continue,
            };
        }
        self.fate(unit, fate);
    }

    /// Puts everything whose order within an epoch is no promise into one order.
    fn sorted(&self) -> (Vec<(LegId, String)>, Vec<(Priority, EventId)>) {
        let shown = |lane: &LaneRecord| (lane.leg, serde_json::to_string(lane).unwrap_or_default());
        let mut lanes: Vec<_> = self.lanes.iter().map(shown).collect();
        let mut handed_over = self.handed_over.clone();
        lanes.sort();
        handed_over.sort();
        (lanes, handed_over)
    }

    /// The first thing in which `found` differs from this, in words. None: they agree.
    #[must_use]
    pub fn difference(&self, found: &Self) -> Option<Difference> {
        let ((lanes, handed), (found_lanes, found_handed)) = (self.sorted(), found.sorted());
        let none = || "nothing".to_owned();
        let differs = |what: String, expected: String, found: String| Some(Difference { what, expected, found });
        for pair in 0..lanes.len().max(found_lanes.len()) {
            let (one, two) = (lanes.get(pair), found_lanes.get(pair));
            if one != two {
                // The lesser leg is the one that the other side lacks.
                let (one, two) = match (one, two) {
                    (Some(one), Some(two)) if one.0 < two.0 => (Some(one), None),
                    (Some(one), Some(two)) if one.0 > two.0 => (None, Some(two)),
                    both => both,
                };
                let leg = one.or(two).map(|(leg, _)| leg.to_string()).unwrap_or_default();
                let text = |side: Option<&(LegId, String)>| side.map_or_else(none, |(_, json)| json.clone());
                return differs(format!("the lane record of {leg}"), text(one), text(two));
            }
        }
        if handed != found_handed {
            return differs("hand-overs".to_owned(), format!("{handed:?}"), format!("{found_handed:?}"));
        }
        if self.letters != found.letters {
            return differs("dead letters".to_owned(), format!("{:?}", self.letters), format!("{:?}", found.letters));
        }
        let units: BTreeSet<_> = self.fates.keys().chain(found.fates.keys()).collect();
        for unit in units {
            // Having said nothing new of a unit is as good as leaving it open.
            let (one, two) =
                (self.fates.get(unit).unwrap_or(&Fate::Open), found.fates.get(unit).unwrap_or(&Fate::Open));
            if !one.agrees(two) {
                return differs(format!("the fate of {unit:?}"), format!("{one:?}"), format!("{two:?}"));
            }
        }
        None
    }
}

/// A difference between what the oracle expects and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Of what.
    pub what: String,
    /// What the oracle says.
    pub expected: String,
    /// What the engine said.
    pub found: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        writeln!(text, "{}", self.what)?;
        writeln!(text, "  expected: {}", self.expected)?;
        write!(text, "  found:    {}", self.found)?;
        f.write_str(&text)
    }
}
