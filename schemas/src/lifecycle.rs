//! The record: one row says what happened to one unit at one instant, and why.
//!
//! A row's id is derived from what it says (never from time, worker or generation), so that an
//! exact repeat is the same row. What happened to one unit within one epoch has one instant and is
//! one row: `states` is a list, in the order in which it happened.

use serde::{Deserialize, Serialize};

use crate::channel::{Channel, Priority, UnknownWord, vocabulary};
use crate::ids::{DeliveryId, EventId, GroupId, IdHasher, IntentId, LegId, NotificationId, RowId};
use crate::reason::Reason;
use crate::time::Instant;
use schemars::JsonSchema;
use std::{fmt, str::FromStr};

vocabulary!(
    /// What a row is about.
    Unit, "unit", {
        /// One accepted record.
        Event = "event",
        /// One notification on its way to one channel.
        Leg = "leg",
        /// One notification on one channel to one address.
        Delivery = "delivery",
    }
);

vocabulary!(
    /// What happened. `created` opens every unit.
    State, "state", {
        /// The unit exists from here on.
        Created = "created",
        /// The event fits the schema.
        Validated = "validated",
        /// The record is no event, or was set aside.
        Rejected = "rejected",
        /// A repeat of an earlier event.
        Deduplicated = "deduplicated",
        /// Waits for its time.
        Scheduled = "scheduled",
        /// Taken back by the producer.
        Cancelled = "cancelled",
        /// An actor was taken out.
        Retracted = "retracted",
        /// The profile was joined and candidates found.
        PreferenceChecked = "preference_checked",
        /// Not said, for ever, with a reason.
        Suppressed = "suppressed",
        /// Said as part of another notification.
        Merged = "merged",
        /// Held in state until a deadline or a trigger.
        Parked = "parked",
        /// Parked because of quiet hours.
        Deferred = "deferred",
        /// Parked or struck because of a limit.
        RateLimited = "rate_limited",
        /// Collected into a digest.
        Digested = "digested",
        /// Came back from deliver, or went back to decide.
        Returned = "returned",
        /// The text was made.
        Rendered = "rendered",
        /// Handed to a lane.
        Queued = "queued",
        /// A first call was made.
        Sent = "sent",
        /// Arrived, as far as the channel can say.
        Delivered = "delivered",
        /// Ended without arriving.
        Failed = "failed",
        /// Will be tried again.
        Retry = "retry",
        /// May have been sent twice, or not at all: an attempt's end is not known.
        Unknown = "unknown",
        /// Put into the dead-letter queue.
        Dlq = "dlq",
        /// Too late.
        Expired = "expired",
        /// Went on to the next rung.
        Escalated = "escalated",
        /// Went on to another provider.
        FailedOver = "failed_over",
        /// The mail came back.
        Bounced = "bounced",
        /// The person complained.
        Complained = "complained",
        /// The person opened it.
        Opened = "opened",
        /// The person acted on it.
        Clicked = "clicked",
        /// The person put it away.
        Dismissed = "dismissed",
        /// The person opted out through it.
        Unsubscribed = "unsubscribed",
        /// Given up by an operator's explicit word.
        Lost = "lost",
        /// The epoch's record is complete.
        Closed = "closed",
    }
);

vocabulary!(
    /// Which stage wrote a row.
    Stage, "stage", {
        /// The dataflow.
        Decide = "decide",
        /// The critical path.
        Critical = "critical",
        /// The lane readers.
        Deliver = "deliver",
    }
);

/// One line of the record, owned: for those who read it.
pub type Row = RowOf<String, Vec<State>>;

/// One line of the record, borrowed from what it speaks of: for those who write it.
pub type RowRef<'a> = RowOf<&'a str, &'a [State]>;

/// One line of the record. Columns stand in this order in the table ([`crate::block::COLUMNS`]) and
/// in a block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowOf<T, S> {
    /// Derived from what the row says.
    pub row_id: RowId,
    /// The UTC day of the unit's `created_at`, so that all rows of a unit meet in one partition.
    /// Days since the epoch; `2026-03-28` as text.
    #[serde(with = "day_text")]
    pub day: i64,
    /// When it happened: stream time in decide, the wall clock elsewhere.
    pub at: Instant,
    /// The epoch; zero outside decide.
    pub epoch: u64,
    /// Who wrote it.
    pub stage: Stage,
    /// What happened, in order.
    pub states: S,
    /// What it happened to.
    pub unit: Unit,
    /// The event: of an event's row, and of others the first member.
    pub event: EventId,
    /// The intent of an event, so that `explain` finds what a producer or caller holds; zero on rows
    /// of other units.
    pub intent: IntentId,
    /// The notification, zero while there is none.
    pub notification: NotificationId,
    /// The group it was merged into or came from, zero if none.
    pub group: GroupId,
    /// The leg, zero while there is none.
    pub leg: LegId,
    /// On every row of a silent in-app leg: the sum of events counts such a leg last.
    pub silent: bool,
    /// The delivery, zero while there is none.
    pub delivery: DeliveryId,
    /// Who is to be told.
    pub user: T,
    /// The tenant.
    pub tenant: T,
    /// The type.
    #[serde(rename = "type")]
    pub event_type: T,
    /// The category.
    pub category: T,
    /// The priority.
    pub priority: Option<Priority>,
    /// The channel.
    pub channel: Option<Channel>,
    /// The provider.
    pub provider: T,
    /// The provider's own code: status and reason.
    pub code: T,
    /// The provider's id of the message.
    pub message_id: T,
    /// The operator's id in the topology.
    pub operator: T,
    /// Why.
    pub reason: Option<Reason>,
    /// Which attempt, from 1; zero where there is none.
    pub attempt: u32,
    /// Until when it is parked or put off.
    pub until: Option<Instant>,
    /// What it cost, in millionths of a US dollar.
    pub cost_microdollars: u64,
    /// When the unit's oldest event was accepted.
    pub created_at: Instant,
    /// When it was last released.
    pub ready_at: Option<Instant>,
    /// What caused it: an event, a profile change, a timer; in words for `explain`.
    pub caused_by: T,
}

impl Default for Stage {
    /// The dataflow.
    fn default() -> Self {
        Self::Decide
    }
}

impl<T: Default, S: Default> Default for RowOf<T, S> {
    /// A row that says nothing yet: no states, an event's, written by decide. For `..Row::default()`.
    fn default() -> Self {
        Self {
            row_id: RowId::default(),
            day: 0,
            at: Instant(0),
            epoch: 0,
            stage: Stage::Decide,
            states: S::default(),
            unit: Unit::Event,
            event: EventId::default(),
            intent: IntentId::default(),
            notification: NotificationId::default(),
            group: GroupId::default(),
            leg: LegId::default(),
            silent: false,
            delivery: DeliveryId::default(),
            user: T::default(),
            tenant: T::default(),
            event_type: T::default(),
            category: T::default(),
            priority: None,
            channel: None,
            provider: T::default(),
            code: T::default(),
            message_id: T::default(),
            operator: T::default(),
            reason: None,
            attempt: 0,
            until: None,
            cost_microdollars: 0,
            created_at: Instant(0),
            ready_at: None,
            caused_by: T::default(),
        }
    }
}

/// Days since the epoch as `2026-03-28` in JSON, as a number elsewhere.
mod day_text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(day: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&super::DayText(*day))
        } else {
            serializer.serialize_i64(*day)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        if !deserializer.is_human_readable() {
            return i64::deserialize(deserializer);
        }
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let midnight: super::Instant = format!("{text}T00:00:00Z").parse().map_err(de::Error::custom)?;
        Ok(midnight.day())
    }
}

/// A day (since the epoch) that displays as `2026-03-28`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DayText(pub i64);

impl fmt::Display for DayText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let midnight = Instant(self.0.saturating_mul(86_400_000)).to_string();
        f.write_str(midnight.split('T').next().unwrap_or_default())
    }
}

impl<T, S> RowOf<T, S> {
    /// The unit's own id as bytes.
    #[must_use]
    pub const fn unit_id(&self) -> [u8; 16] {
        match self.unit {
            Unit::Event => self.event.0,
            Unit::Leg => self.leg.0,
            Unit::Delivery => self.delivery.0,
        }
    }
}

/// More states than a row usually has.
const STATES_IN_PLACE: usize = 16;

impl<T: AsRef<str>, S: AsRef<[State]>> RowOf<T, S> {
    /// The row with `row_id` and `day` derived from the rest: the last step of making one.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.seal();
        self
    }

    /// The same in place.
    pub fn seal(&mut self) {
        self.day = self.created_at.day();
        let mut hasher = IdHasher::new("row");
        hasher.field(&self.unit_id()).number(if self.stage == Stage::Decide { self.epoch } else { 0 });
        // Words as their places in the vocabularies, which only grow at their ends.
        let reason = self.reason.map_or(u8::MAX, |reason| reason as u8);
        let mut words = [0; 6 + STATES_IN_PLACE];
        (words[0], words[1]) = (self.unit as u8, reason);
        words[2..6].copy_from_slice(&self.attempt.to_le_bytes());
        let states = self.states.as_ref();
        if states.len() <= STATES_IN_PLACE {
            words[6..].iter_mut().zip(states).for_each(|(word, state)| *word = *state as u8);
            hasher.field(&words[..6 + states.len()]);
        } else {
            let states = states.iter().map(|state| *state as u8);
            hasher.field(&words[..6].iter().copied().chain(states).collect::<Vec<_>>());
        }
        hasher.text(self.caused_by.as_ref());
        self.row_id = RowId(hasher.finish());
    }
}
