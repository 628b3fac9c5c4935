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
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Lane records.
    pub lanes: Vec<LaneRecord>,
    /// Events handed to the path of this priority.
    pub handed_over: Vec<(Priority, EventId)>,
    /// Dead letters, by reason.
    pub letters: BTreeMap<Reason, u64>,
    /// The last fate of each unit that the epoch touched.
    pub fates: BTreeMap<Unit, Fate>,
    /// Legs that set out, with their events and whether they are silent: not compared, for the sum.
    pub(super) set_out: Vec<(LegId, Vec<EventId>, bool)>,
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
                // What an event once was for a reason, it may wait for another.
                State::Parked => {
                    Fate::Parked { until: row.until, reason: row.reason.filter(|_| row.unit == RowUnit::Leg) }
                }
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

    /// The first thing in which `found` differs from this, in words. None: they agree. Order within an
    /// epoch is no promise of lanes, and is not compared.
    #[must_use]
    pub fn difference(&self, found: &Self) -> Option<Difference> {
        let differs = |what: String, expected: String, found: String| Some(Difference { what, expected, found });
        let (lanes, found_lanes) = (by_leg(&self.lanes), by_leg(&found.lanes));
        for leg in lanes.keys().chain(found_lanes.keys()) {
            let (one, two) = (lanes.get(leg), found_lanes.get(leg));
            if one != two {
                let text = |side: Option<&Vec<&LaneRecord>>| {
                    side.map_or_else(|| "nothing".to_owned(), |all| serde_json::to_string(all).unwrap_or_default())
                };
                return differs(format!("the lane record of {leg}"), text(one), text(two));
            }
        }
        let sorted = |all: &[(Priority, EventId)]| all.iter().copied().collect::<BTreeSet<_>>();
        let (handed, found_handed) = (sorted(&self.handed_over), sorted(&found.handed_over));
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

/// Lane records by their leg: one each, unless a return and its leg meet in an epoch.
fn by_leg(lanes: &[LaneRecord]) -> BTreeMap<LegId, Vec<&LaneRecord>> {
    let mut by_leg: BTreeMap<LegId, Vec<&LaneRecord>> = BTreeMap::new();
    for lane in lanes {
        by_leg.entry(lane.leg).or_default().push(lane);
    }
    by_leg
}

/// What became of an event in the end, or so far: promise 7's sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// No event.
    Rejected,
    /// A repeat.
    Deduplicated,
    /// Its actor was taken out, or it took one out.
    Retracted,
    /// Taken back, or it took something back.
    Cancelled,
    /// Too late.
    Expired,
    /// Not said, for ever.
    Suppressed,
    /// Said as part of another.
    Merged,
    /// Waits.
    Parked,
    /// Said.
    Notified,
}

impl End {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Deduplicated => "deduplicated",
            Self::Retracted => "retracted",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Suppressed => "suppressed",
            Self::Merged => "merged",
            Self::Parked => "parked",
            Self::Notified => "notified",
        }
    }

    const fn of(fate: &Fate) -> Option<Self> {
        Some(match fate {
            Fate::Rejected(_) => Self::Rejected,
            Fate::Deduplicated => Self::Deduplicated,
            Fate::Retracted => Self::Retracted,
            Fate::Cancelled => Self::Cancelled,
            Fate::Expired => Self::Expired,
            Fate::Suppressed(_) | Fate::FailedOver => Self::Suppressed,
            Fate::Merged(_) => Self::Merged,
            Fate::Parked { .. } | Fate::Returned => Self::Parked,
            Fate::Queued => Self::Notified,
            Fate::Open => return None,
        })
    }
}

/// All that was told, one fate a unit.
#[derive(Clone, Debug, Default)]
pub(super) struct Story {
    fates: BTreeMap<Unit, Fate>,
    /// The legs of each event, in the order in which they set out.
    legs: BTreeMap<EventId, Vec<(LegId, bool)>>,
}

impl Story {
    pub(super) fn add(&mut self, told: &Told) {
        for (unit, fate) in &told.fates {
            if *fate != Fate::Open || !self.fates.contains_key(unit) {
                self.fates.insert(*unit, fate.clone());
            }
        }
        for (leg, events, silent) in &told.set_out {
            for event in events {
                let legs = self.legs.entry(*event).or_default();
                match legs.iter_mut().find(|(known, _)| known == leg) {
                    // In-app that was asked for may turn silent at night.
                    Some((_, known)) => *known |= silent,
                    None => legs.push((*leg, *silent)),
                }
            }
        }
    }

    /// What is known of an event and its legs, in words.
    pub(super) fn describe(&self, event: EventId) -> String {
        let mut text = format!("{:?}", self.fates.get(&Unit::Event(event)));
        for (leg, silent) in self.legs.get(&event).into_iter().flatten() {
            let _ = write!(text, "; {leg} silent {silent} {:?}", self.fates.get(&Unit::Leg(*leg)));
        }
        text
    }

    /// MODEL §5: its own end; else a spoken leg queued, one parked, one merged, the silent one queued;
    /// else what its first leg came to.
    pub(super) fn end(&self, event: EventId) -> Option<End> {
        let own = End::of(self.fates.get(&Unit::Event(event))?);
        if let Some(end) = own.filter(|end| *end != End::Parked) {
            return Some(end);
        }
        let legs = self.legs.get(&event).map_or(&[][..], Vec::as_slice);
        let ends: Vec<_> = legs.iter().map(|(leg, silent)| (self.fates.get(&Unit::Leg(*leg)), silent)).collect();
        let ends: Vec<_> = ends.iter().filter_map(|(fate, silent)| Some((End::of((*fate)?)?, **silent))).collect();
        let order =
            [(End::Notified, Some(false)), (End::Parked, None), (End::Merged, None), (End::Notified, Some(true))];
        let is = |(end, silent): &(End, Option<bool>)| {
            ends.iter().any(|(other, quiet)| other == end && silent.is_none_or(|silent| silent == *quiet))
        };
        let first = ends.iter().find(|(_, silent)| !silent).or(ends.first());
        order.iter().find(|one| is(one)).map(|(end, _)| *end).or(first.map(|(end, _)| *end)).or(own)
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
