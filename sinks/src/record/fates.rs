//! Where everything went: three sums, each unit in exactly one fate.
//!
//! The same rules as the views of `schemas/migrations/003_fates.sql` and `004_last_word.sql`, over rows
//! in memory: what `explain` and the demo show where there is no ClickHouse. A test holds the two together.

use std::collections::{BTreeMap, BTreeSet};

use tidings_schemas::ids::{DeliveryId, EventId, GroupId, LegId, NotificationId, RowId};
use tidings_schemas::lifecycle::{Row, Stage, State, Unit};
use tidings_schemas::time::Instant;

/// What became of a unit. Events, legs and deliveries each use some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// No event, or set aside.
    Rejected,
    /// A repeat.
    Deduplicated,
    /// Its actor was taken out.
    Retracted,
    /// Taken back.
    Cancelled,
    /// Too late.
    Expired,
    /// Not said, with a reason.
    Suppressed,
    /// Said as part of another.
    Merged,
    /// Waits, whatever for.
    Parked,
    /// Said.
    Notified,
    /// Given up by an operator's word.
    Lost,
    /// A leg handed to its lane.
    Queued,
    /// A leg on its way back to be judged anew.
    Returned,
    /// Arrived.
    Delivered,
    /// Ended without arriving.
    Failed,
    /// Given up, and kept for a replay.
    DeadLettered,
    /// May have arrived.
    Unknown,
    /// Neither arrived nor ended.
    InFlight,
    /// Created and then not heard of: a fault.
    Unaccounted,
}

impl Fate {
    /// Its word in tables.
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
            Self::Lost => "lost",
            Self::Queued => "queued",
            Self::Returned => "returned",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::DeadLettered => "dead_lettered",
            Self::Unknown => "unknown",
            Self::InFlight => "in_flight",
            Self::Unaccounted => "unaccounted",
        }
    }

    /// The fates of events, in the order of the sum.
    pub const OF_EVENTS: &'static [Self] = &[
        Self::Rejected,
        Self::Deduplicated,
        Self::Retracted,
        Self::Cancelled,
        Self::Expired,
        Self::Suppressed,
        Self::Merged,
        Self::Parked,
        Self::Notified,
        Self::Lost,
    ];

    /// The fates of legs, in the order of the sum.
    pub const OF_LEGS: &'static [Self] = &[
        Self::Queued,
        Self::Merged,
        Self::Suppressed,
        Self::Expired,
        Self::Cancelled,
        Self::Retracted,
        Self::Parked,
        Self::Returned,
    ];

    /// The fates of deliveries, in the order of the sum.
    pub const OF_DELIVERIES: &'static [Self] = &[
        Self::Delivered,
        Self::Failed,
        Self::Suppressed,
        Self::Expired,
        Self::DeadLettered,
        Self::Unknown,
        Self::InFlight,
    ];

    /// The fate that `state` is for an event or a leg, if it is one of `fates`.
    fn of_state(state: State, fates: &[Self]) -> Option<Self> {
        let fate = match state {
            State::Rejected => Self::Rejected,
            State::Deduplicated => Self::Deduplicated,
            State::Retracted => Self::Retracted,
            State::Cancelled => Self::Cancelled,
            State::Expired => Self::Expired,
            State::Suppressed => Self::Suppressed,
            State::Merged => Self::Merged,
            State::Parked | State::Deferred | State::RateLimited | State::Digested | State::Scheduled => Self::Parked,
            State::Lost => Self::Lost,
            State::Queued => Self::Queued,
            State::Returned => Self::Returned,
            State::Created
            | State::Validated
            | State::PreferenceChecked
            | State::Rendered
            | State::Sent
            | State::Delivered
            | State::Failed
            | State::Retry
            | State::Unknown
            | State::Dlq
            | State::Escalated
            | State::FailedOver
            | State::Bounced
            | State::Complained
            | State::Opened
            | State::Clicked
            | State::Dismissed
            | State::Unsubscribed
            | State::Closed => return None,
        };
        fates.contains(&fate).then_some(fate)
    }
}

/// One of the three sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Of what.
    pub unit: Unit,
    /// How many were created.
    pub created: u64,
    /// How many met each fate, in the order of the sum.
    pub fates: Vec<(Fate, u64)>,
    /// How many were created and not heard of again.
    pub unaccounted: u64,
    /// How many were heard of and never created.
    pub orphans: u64,
}

impl Sum {
    /// Whether every unit that was created is in exactly one fate, and no other is.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        self.created == self.fates.iter().map(|(_, units)| units).sum::<u64>() && self.orphans == 0
    }

    fn of(unit: Unit, fates: &[Fate], units: impl Iterator<Item = (bool, Fate)>) -> Self {
        let (mut counts, mut created, mut orphans) = (BTreeMap::new(), 0, 0);
        for (is_created, fate) in units {
            if is_created {
                created += 1;
                *counts.entry(fate).or_insert(0) += 1;
            } else {
                orphans += 1;
            }
        }
        let fates = fates.iter().map(|fate| (*fate, counts.get(fate).copied().unwrap_or(0))).collect();
        Self { unit, created, fates, unaccounted: counts.get(&Fate::Unaccounted).copied().unwrap_or(0), orphans }
    }
}

/// The fate of every unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    events: BTreeMap<EventId, (bool, Fate)>,
    legs: BTreeMap<LegId, LegFate>,
    deliveries: BTreeMap<DeliveryId, (bool, Fate)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LegFate {
    is_created: bool,
    by_decider: bool,
    fate: Fate,
}

/// When something was said, so that the last word counts: by time, then stage, then epoch (epochs
/// may share an instant), then row id.
type Said = (Instant, Stage, u64, RowId);

fn said(row: &Row) -> Said {
    (row.at, row.stage, row.epoch, row.row_id)
}

/// The last fate of a unit so far.
fn note(last: &mut Option<(Said, Fate)>, row: &Row, fates: &[Fate]) {
    let fate = row.states.iter().rev().find_map(|state| Fate::of_state(*state, fates));
    if let Some(fate) = fate
        && last.is_none_or(|(before, _)| before <= said(row))
    {
        *last = Some((said(row), fate));
    }
}

/// The row that created a leg.
struct Opened {
    said: (Instant, RowId),
    event: EventId,
    notification: NotificationId,
    group: GroupId,
}

#[derive(Default)]
struct Leg {
    opened: Option<Opened>,
    by_decider: bool,
    silent: bool,
    last: Option<(Said, Fate)>,
}

impl Leg {
    fn fate(&self) -> Fate {
        self.last.map_or(Fate::Unaccounted, |(_, fate)| fate)
    }
}

#[derive(Default)]
struct Event {
    is_created: bool,
    /// By its rows on the critical path.
    notifications: BTreeSet<NotificationId>,
    last: Option<(Said, Fate)>,
}

impl Fates {
    /// The fates that `rows` tell of: each row once, in any order, decide's up to the newest closed
    /// epoch.
    pub fn of<'a>(rows: impl Iterator<Item = &'a Row>) -> Self {
        let mut events: BTreeMap<EventId, Event> = BTreeMap::new();
        let mut legs: BTreeMap<LegId, Leg> = BTreeMap::new();
        let mut deliveries: BTreeMap<DeliveryId, Vec<State>> = BTreeMap::new();
        for row in rows {
            let opens = row.states.contains(&State::Created);
            match row.unit {
                Unit::Event => {
                    let event = events.entry(row.event).or_default();
                    event.is_created |= opens;
                    if row.stage == Stage::Critical && row.notification != NotificationId::default() {
                        event.notifications.insert(row.notification);
                    }
                    note(&mut event.last, row, Fate::OF_EVENTS);
                }
                Unit::Leg => {
                    let leg = legs.entry(row.leg).or_default();
                    leg.by_decider |= row.stage != Stage::Deliver;
                    leg.silent |= row.silent;
                    let said = (row.at, row.row_id);
                    if opens && leg.opened.as_ref().is_none_or(|before| said < before.said) {
                        let (event, notification, group) = (row.event, row.notification, row.group);
                        leg.opened = Some(Opened { said, event, notification, group });
                    }
                    note(&mut leg.last, row, Fate::OF_LEGS);
                }
                Unit::Delivery => deliveries.entry(row.delivery).or_default().extend(&row.states),
            }
        }
        let mut of_event: BTreeMap<EventId, Vec<(&LegId, &Leg)>> = BTreeMap::new();
        let mut carried: BTreeSet<NotificationId> = BTreeSet::new();
        for (id, leg) in &legs {
            if let Some(opened) = &leg.opened {
                of_event.entry(opened.event).or_default().push((id, leg));
                carried.insert(opened.notification);
            }
        }
        let none = Vec::new();
        let events = (events.iter())
            .map(|(id, event)| {
                let legs = of_event.get(id).unwrap_or(&none);
                (*id, (event.is_created, event_fate(event, legs, &carried)))
            })
            .collect();
        let legs = (legs.iter())
            .map(|(id, leg)| {
                (*id, LegFate { is_created: leg.opened.is_some(), by_decider: leg.by_decider, fate: leg.fate() })
            })
            .collect();
        let deliveries = (deliveries.into_iter())
            .map(|(id, states)| (id, (states.contains(&State::Created), delivery_fate(&states))))
            .collect();
        Self { events, legs, deliveries }
    }

    /// The three sums: events, legs, deliveries.
    #[must_use]
    pub fn sums(&self) -> [Sum; 3] {
        // A leg that only deliver has spoken of yet waits for its epoch to close.
        let legs = self.legs.values().filter(|leg| leg.is_created || leg.by_decider);
        [
            Sum::of(Unit::Event, Fate::OF_EVENTS, self.events.values().copied()),
            Sum::of(Unit::Leg, Fate::OF_LEGS, legs.map(|leg| (leg.is_created, leg.fate))),
            Sum::of(Unit::Delivery, Fate::OF_DELIVERIES, self.deliveries.values().copied()),
        ]
    }

    /// The fate of an event, if it was created.
    #[must_use]
    pub fn event(&self, id: EventId) -> Option<Fate> {
        self.events.get(&id).filter(|(created, _)| *created).map(|(_, fate)| *fate)
    }

    /// The fate of a leg, if it was created.
    #[must_use]
    pub fn leg(&self, id: LegId) -> Option<Fate> {
        self.legs.get(&id).filter(|leg| leg.is_created).map(|leg| leg.fate)
    }

    /// The fate of a delivery, if it was created.
    #[must_use]
    pub fn delivery(&self, id: DeliveryId) -> Option<Fate> {
        self.deliveries.get(&id).filter(|(created, _)| *created).map(|(_, fate)| *fate)
    }
}

/// Its own end, where it has one; else what became of the legs of the notification that it makes
/// alone (a merged one carries its group from the start).
///
/// The critical path remembers no repeats: a repeat says the legs of the first again (they have the same
/// ids, so the first one's stay) and has none; by its notification, which another's legs carry, it is
/// deduplicated.
fn event_fate(event: &Event, legs: &[(&LegId, &Leg)], carried: &BTreeSet<NotificationId>) -> Fate {
    let own = event.last.map(|(_, fate)| fate);
    if let Some(fate) = own.filter(|fate| *fate != Fate::Parked) {
        return fate;
    }
    let is_alone = |leg: &Leg| leg.opened.as_ref().is_some_and(|opened| opened.group == GroupId::default());
    let any_alone = legs.iter().any(|(_, leg)| is_alone(leg));
    let legs: Vec<_> = legs.iter().filter(|(_, leg)| !any_alone || is_alone(leg)).collect();
    let any = |test: &dyn Fn(&Leg) -> bool| legs.iter().any(|(_, leg)| test(leg));
    let first = legs.iter().min_by_key(|(id, leg)| (leg.silent, leg.opened.as_ref().map(|opened| opened.said.0), **id));
    if any(&|leg| leg.fate() == Fate::Queued && !leg.silent) {
        Fate::Notified
    } else if any(&|leg| matches!(leg.fate(), Fate::Parked | Fate::Returned)) {
        Fate::Parked
    } else if any(&|leg| leg.fate() == Fate::Merged) {
        Fate::Merged
    } else if any(&|leg| leg.fate() == Fate::Queued) {
        Fate::Notified
    } else if let Some((_, leg)) = first {
        leg.fate()
    } else if let Some(parked) = own {
        parked
    } else if event.notifications.is_disjoint(carried) {
        Fate::Unaccounted
    } else {
        Fate::Deduplicated
    }
}

fn delivery_fate(states: &[State]) -> Fate {
    let ends = [
        (State::Delivered, Fate::Delivered),
        (State::Unknown, Fate::Unknown),
        (State::Dlq, Fate::DeadLettered),
        (State::Failed, Fate::Failed),
        (State::Suppressed, Fate::Suppressed),
        (State::Expired, Fate::Expired),
    ];
    ends.iter().find(|(state, _)| states.contains(state)).map_or(Fate::InFlight, |(_, fate)| *fate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(states: &[State], at: i64) -> Row {
        let event = EventId::new("s", 0, 1);
        Row { states: states.to_vec(), unit: Unit::Event, event, at: Instant(at), ..Row::default() }.sealed()
    }

    fn leg(n: u8, silent: bool, states: &[State], at: i64) -> Row {
        let leg = LegId([n; 16]);
        Row { unit: Unit::Leg, leg, silent, ..event(states, at) }.sealed()
    }

    #[test]
    fn an_event_alone_meets_the_fate_of_its_legs() {
        use State::*;
        let cases: &[(&[Row], Fate)] = &[
            (&[event(&[Created], 1)], Fate::Unaccounted),
            (&[event(&[Created, Parked], 1)], Fate::Parked),
            (&[event(&[Created, Parked], 1), event(&[Merged], 2)], Fate::Merged),
            (&[event(&[Created, Parked], 1), event(&[Merged], 2), event(&[Retracted], 3)], Fate::Retracted),
            (&[event(&[Created], 1), leg(1, false, &[Created, Queued], 1)], Fate::Notified),
            (&[event(&[Created], 1), leg(1, false, &[Created, Deferred], 1)], Fate::Parked),
            (
                &[event(&[Created], 1), leg(1, false, &[Created, Queued], 1), leg(1, false, &[Returned], 2)],
                Fate::Parked,
            ),
            (
                &[event(&[Created], 1), leg(1, false, &[Created, Deferred], 1), leg(2, true, &[Created, Queued], 1)],
                Fate::Parked,
            ),
            (
                &[event(&[Created], 1), leg(1, false, &[Created, Suppressed], 1), leg(2, true, &[Created, Queued], 1)],
                Fate::Notified,
            ),
            (
                &[event(&[Created], 1), leg(9, false, &[Created, Expired], 1), leg(2, true, &[Created, Suppressed], 1)],
                Fate::Expired,
            ),
        ];
        for (index, (rows, expected)) in cases.iter().enumerate() {
            let fates = Fates::of(rows.iter());
            assert_eq!(fates.event(EventId::new("s", 0, 1)), Some(*expected), "case {index}");
            assert_eq!(fates.sums()[0].adds_up(), *expected != Fate::Unaccounted, "case {index}");
        }
    }

    #[test]
    fn a_member_that_lends_its_id_to_a_merge_is_merged_itself() {
        use State::*;
        let group = GroupId([7; 16]);
        let rows = [
            event(&[Created], 1),
            leg(1, false, &[Created, RateLimited], 1),
            leg(1, false, &[Merged], 2),
            Row { group, ..leg(2, false, &[Created, Queued], 2) },
        ];
        assert_eq!(Fates::of(rows.iter()).event(EventId::new("s", 0, 1)), Some(Fate::Merged));
    }

    #[test]
    fn a_repeat_on_the_critical_path_is_known_by_the_legs_of_the_first() {
        use State::*;
        let (first, again) = (EventId::new("s", 0, 1), EventId::new("s", 0, 2));
        let critical = |row: Row, event| {
            let notification = NotificationId([5; 16]);
            Row { stage: Stage::Critical, notification, event, ..row }.sealed()
        };
        let rows = [
            critical(event(&[Created, Validated], 1), first),
            critical(event(&[Created, Validated], 2), again),
            critical(leg(1, false, &[Created, Queued], 1), first),
        ];
        assert_eq!(critical(leg(1, false, &[Created, Queued], 2), again).row_id, rows[2].row_id, "the legs are one");
        let fate_of = |rows: &[Row]| Fates::of(rows.iter()).event(again);
        assert_eq!(Fates::of(rows.iter()).event(first), Some(Fate::Notified));
        assert_eq!(fate_of(&rows), Some(Fate::Deduplicated));
        assert!(Fates::of(rows.iter()).sums()[0].adds_up());
        // Without the first one's legs nobody knows; in decide a repeat says so itself.
        assert_eq!(fate_of(&rows[..2]), Some(Fate::Unaccounted));
        let decided = rows.clone().map(|row| Row { stage: Stage::Decide, ..row });
        assert_eq!(fate_of(&decided), Some(Fate::Unaccounted));
        let parked = critical(event(&[Parked], 3), again);
        assert_eq!(fate_of(&[rows.to_vec(), vec![parked]].concat()), Some(Fate::Parked));
    }

    #[test]
    fn a_unit_that_was_never_created_breaks_its_sum() {
        let sums = Fates::of([event(&[State::Rejected], 1)].iter()).sums();
        assert_eq!((sums[0].created, sums[0].orphans, sums[0].adds_up()), (0, 1, false));
    }
}
