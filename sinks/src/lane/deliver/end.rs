//! How a leg ends: with the last of its deliveries, or because there is nobody to send to. Where none was held, the
//! next channel's turn comes.

use std::sync::PoisonError;

use tidings_schemas::channel::Priority;
use tidings_schemas::ids::LegId;
use tidings_schemas::lane::{LaneRecord, ReturnCause, Returned};
use tidings_schemas::lifecycle::{Row, State};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use super::{Deliverer, Desk, Ended, Leg};
use crate::lane::{rows, wire};
use crate::ledger::{Bucket, Entry, Key, Note, Phase};
use crate::log::Append;

impl Deliverer {
    /// Nobody to send to: the next fallback, or the end.
    pub(super) async fn unreachable(&self, desk: &Desk, leg: &Leg) {
        let now = self.now();
        let record = &leg.record;
        let expired = leg.is_expired(now);
        let follow = if expired { None } else { self.fallback(leg, now) };
        let (state, reason) = match &follow {
            _ if expired => (State::Expired, Reason::Expired),
            Some(_) if !leg.is_critical() => (State::Returned, Reason::Unreachable),
            _ => (State::Suppressed, Reason::Unreachable),
        };
        let mut said = vec![rows::of_leg(record, &[state], Some(reason), now)];
        let (new_leg, follow) = follow.unwrap_or_default();
        said.extend(new_leg);
        self.say(desk, said, follow).await;
        leg.ticket.settle();
    }

    /// What goes out when every address failed: back to `route`, or, critical, on to the next lane.
    fn fallback(&self, leg: &Leg, now: Instant) -> Option<(Vec<Row>, Vec<Append>)> {
        let record = &leg.record;
        let (next, rest) = record.fallback_channels.split_first()?;
        if !leg.is_critical() {
            let returned = Returned { cause: ReturnCause::Undeliverable, leg: record.clone() };
            let to = self.to(&self.parts.topics.returned(), &record.user);
            return Some((Vec::new(), vec![wire::returned(to, &returned)]));
        }
        let topic = self.parts.topics.lane(*next, Priority::Critical);
        if !self.partitions.contains_key(&topic) {
            tracing::warn!(%topic, "a critical fallback has no lane; it ends here");
            return None;
        }
        let mut onward = LaneRecord {
            channel: *next,
            leg: LegId::new(record.notification, next.as_str(), record.replay),
            fallback_channels: rest.to_vec(),
            only_address: None,
            ..record.clone()
        };
        onward.struck.push((record.channel, Reason::Undeliverable));
        let row = rows::of_leg(&onward, &[State::Created, State::Queued], None, now);
        Some((vec![row], vec![wire::leg(self.to(&topic, &record.user), &onward, None)]))
    }

    /// One delivery of a leg ended; with the last one the leg does.
    pub(super) async fn finish(&self, desk: &Desk, leg: &Leg, ended: Ended) {
        let failed = {
            let mut open = leg.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.held |= ended == Ended::Held;
            open.left = open.left.saturating_sub(1);
            if open.left > 0 {
                return;
            }
            !open.held
        };
        let now = self.now();
        if failed && !leg.is_expired(now) && !leg.record.fallback_channels.is_empty() {
            match self.siblings_failed(desk, leg).await {
                None => return,
                Some(false) => {}
                Some(true) => {
                    let (said, follow) = self.fallback(leg, now).unwrap_or_default();
                    self.say(desk, said, follow).await;
                }
            }
        }
        leg.ticket.settle();
    }

    /// Whether the deliveries that this retry record's leg had beside it all failed. `None`: abandoned.
    async fn siblings_failed(&self, desk: &Desk, leg: &Leg) -> Option<bool> {
        let Some(retry) = leg.retry.as_ref().filter(|retry| !retry.siblings.is_empty()) else { return Some(true) };
        let keys: Vec<_> = retry.siblings.iter().map(|it| Key { delivery: *it, bucket: Bucket::Own }).collect();
        let entries = self.entries(desk, &keys).await?;
        // One that is not known any more ended long ago; a fallback that late would be a second message.
        let failed = |entry: &Option<Entry>| match entry.as_ref().map(|entry| &entry.newest().phase) {
            Some(Phase::Dead { note }) => ended(true, note) == Ended::Failed,
            _ => false,
        };
        Some(entries.iter().all(failed))
    }
}

/// A failure that another channel could make good; what the user or the clock decided is none.
pub(super) fn ended(dead: bool, note: &Note) -> Ended {
    let decided =
        matches!(note.reason, Some(Reason::OptedOut | Reason::LegalStop | Reason::NoConsent | Reason::Expired));
    if dead && !decided { Ended::Failed } else { Ended::Held }
}
