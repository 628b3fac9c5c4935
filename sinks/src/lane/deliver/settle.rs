//! Steps 6 and 7: an attempt is settled in the ledger, its rows are said, then what follows from them. What stands
//! in the ledger already is said again, and what follows from it done again.

use std::sync::PoisonError;

use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::profile::{Address, AddressStatus};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::{RetryClass, RetryDelay};

use super::asking::{BACKOFF, patiently};
use super::end::ended;
use super::{Deliverer, Delivery, Desk, Ended, Granted, Met, Step, Verdict};
use crate::directory::Listed;
use crate::lane::rows;
use crate::lane::wire::{self, DeadLetter, Retry};
use crate::ledger::{Attempt, Incarnation, Ledger, LedgerError, Note, Phase, Settle};
use crate::log::{Append, TopicPartition};
use crate::retry::{Schedule, Wait};

const SETTLEMENTS_WAIT: &str = "settlements wait for the ledger";

impl Deliverer {
    /// What stands in the ledger already is said again, and what follows from it done again. A critical repeat
    /// leaves both to the lane record that it stands for: that one is read again until it was seen to its end,
    /// and tells of itself.
    pub(super) async fn meet(&self, desk: &Desk, met: Met) -> Option<Step> {
        let now = self.now();
        let Met { mut delivery, entry, under } = met;
        let attempt = entry.newest().clone();
        let leg = delivery.leg.clone();
        let origin = attempt.phase.note().and_then(|note| note.origin);
        if leg.is_critical() && origin.is_some_and(|origin| origin != leg.record.event) {
            self.finish(desk, &leg, Ended::Held).await;
            return None;
        }
        match attempt.phase {
            Phase::Pending { .. } if deliberate::has(Bug::ClaimTakenAsSent) => {
                self.finish(desk, &leg, Ended::Held).await;
            }
            Phase::Pending { lease_until, .. } => {
                let at = self.will_be(lease_until);
                return Some(Step::Again { at, gate: None, delivery: Box::new(delivery) });
            }
            Phase::Scheduled { due, .. } => match Schedule::resume(attempt.number, due, now) {
                Wait::Memory => {
                    delivery.known = attempt.number;
                    let at = self.will_be(due);
                    return Some(Step::Again { at, gate: None, delivery: Box::new(delivery) });
                }
                Wait::Topic(delay) => {
                    let said = rows::of_entry(&leg.record, delivery.key.delivery, &entry, delivery.said, now);
                    // What may have been called under an earlier word still may.
                    let under = if leg.believed.is_lost(&under) { &leg.believed } else { &under };
                    let retry = self.retry(&delivery, attempt.number, Some(under), delay, now);
                    self.say(desk, said, vec![retry]).await;
                    self.finish(desk, &leg, Ended::Held).await;
                }
            },
            Phase::Sent { note } | Phase::Dead { note } => {
                let dead = matches!(entry.newest().phase, Phase::Dead { .. });
                let said = rows::of_entry(&leg.record, delivery.key.delivery, &entry, delivery.said, now);
                let follow = if dead { self.obituary(&delivery, attempt.number, &note, "").await } else { Vec::new() };
                self.say(desk, said, follow).await;
                self.finish(desk, &leg, ended(dead, &note)).await;
            }
        }
        None
    }

    /// Steps 6 and 7: the ledger in one trip, then rows, then what follows from them.
    pub(super) async fn close(&self, desk: &Desk, verdicts: Vec<Verdict>) -> Vec<Step> {
        if verdicts.is_empty() {
            return Vec::new();
        }
        let now = self.now();
        let critical = verdicts.iter().all(|it| it.granted.delivery.leg.is_critical());
        let settles: Vec<_> = verdicts.iter().map(|it| (self.settlement(it), it.granted.under.clone())).collect();
        let (mut steps, mut said, mut follow, mut finished) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let kept = match self.settle(desk, settles.clone(), critical).await {
            Some(kept) => kept,
            None if critical => {
                // Nobody waits for it: the ledger is told behind them.
                steps.push(Step::Settle(settles));
                vec![true; verdicts.len()]
            }
            None => return Vec::new(),
        };
        for (Verdict { granted, phase, detail }, kept) in verdicts.into_iter().zip(kept) {
            let kept = kept || granted.under.is_none();
            let Granted { mut delivery, entry, under, .. } = granted;
            let number = entry.newest().number;
            delivery.fresh = false;
            if !kept {
                // The lease ran out under us: whoever has it now says what became of it.
                steps.push(Step::Again { at: self.elapsed(), gate: None, delivery: Box::new(delivery) });
                continue;
            }
            let Some(phase) = phase else {
                // Nothing was called, so nothing is said; older attempts are with the next outcome.
                let gate = self.provider(&delivery).map(|it| it.name());
                steps.push(Step::Again { at: self.elapsed(), gate, delivery: Box::new(delivery) });
                continue;
            };
            let leg = delivery.leg.clone();
            let entry = entry.ended(phase.clone());
            said.extend(rows::of_entry(&leg.record, delivery.key.delivery, &entry, delivery.said, now));
            (delivery.known, delivery.said) = (number, number);
            match phase {
                Phase::Scheduled { due, .. } => match Schedule::resume(number, due, now) {
                    Wait::Memory => {
                        let at = self.will_be(due);
                        steps.push(Step::Again { at, gate: None, delivery: Box::new(delivery) });
                    }
                    Wait::Topic(delay) => {
                        follow.push(self.retry(&delivery, number, under.as_ref(), delay, now));
                        finished.push((leg, Ended::Held));
                    }
                },
                Phase::Dead { note } => {
                    follow.extend(self.obituary(&delivery, number, &note, &detail).await);
                    finished.push((leg, ended(true, &note)));
                }
                Phase::Sent { .. } | Phase::Pending { .. } => finished.push((leg, Ended::Held)),
            }
        }
        self.say(desk, said, follow).await;
        for (leg, ended) in finished {
            self.finish(desk, &leg, ended).await;
        }
        steps
    }

    /// What the ledger is to keep of a verdict.
    fn settlement(&self, it: &Verdict) -> Settle {
        let number = it.granted.entry.newest().number;
        let leg = &it.granted.delivery.leg;
        let origin = leg.is_critical().then_some(leg.record.event);
        Settle {
            key: it.granted.delivery.key.clone(),
            owner: it.granted.owner.clone(),
            attempt: it.phase.clone().map(|phase| Attempt { number, phase: phase.of(origin) }),
            keep: matches!(&it.phase, Some(Phase::Scheduled { due, .. })
                if Schedule::resume(number, *due, self.now()) != Wait::Memory),
            refound: false,
        }
    }

    /// Settles until the ledger answers: for each whether it was still ours. `None`: abandoned; `once`: it did
    /// not answer in time. What this incarnation did not grant (an earlier one did, or none) is written down all
    /// the same, so that a repeat meets it; whoever heard of the loss first need not have been this one.
    pub(super) async fn settle(
        &self,
        desk: &Desk,
        settles: Vec<(Settle, Option<Incarnation>)>,
        once: bool,
    ) -> Option<Vec<bool>> {
        let mut pause = BACKOFF.0;
        loop {
            let incarnation = self.incarnation();
            let refound = |(settle, under): &(Settle, Option<Incarnation>)| Settle {
                refound: under.as_ref() != Some(&incarnation),
                ..settle.clone()
            };
            let settles: Vec<Settle> = settles.iter().map(refound).collect();
            let asked = desk.ledger.settle(&incarnation, &settles, self.now());
            let error = match patiently(once, asked).await {
                Ok(kept) => {
                    desk.troubles.over(&[SETTLEMENTS_WAIT], self.now());
                    return Some(kept);
                }
                Err(LedgerError::Lost) => match self.refound(once).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            desk.troubles.met(SETTLEMENTS_WAIT, &error, self.now());
            if once {
                return None;
            }
            pause = self.pause(desk, pause).await?;
        }
    }

    /// The record of `attempt`, which was claimed under `under`, until the next one is due.
    fn retry(
        &self,
        delivery: &Delivery,
        attempt: u32,
        under: Option<&Incarnation>,
        delay: RetryDelay,
        now: Instant,
    ) -> Append {
        let record = &delivery.leg.record;
        let class = RetryClass::of(record.priority);
        let topic = self.parts.topics.retry(record.channel, class, delay);
        let siblings = match &delivery.leg.retry {
            Some(retry) => retry.siblings.clone(),
            None if record.fallback_channels.is_empty() => Vec::new(),
            None => {
                let open = delivery.leg.open.lock().unwrap_or_else(PoisonError::into_inner);
                open.deliveries.iter().copied().filter(|it| *it != delivery.key.delivery).collect()
            }
        };
        let waits = LaneRecord { only_address: Some(delivery.address_id.clone()), ..record.clone() };
        let retry = Retry { due: now.after(delay.duration()), attempt, siblings, under: under.cloned() };
        wire::retry(self.to(&topic, &record.user), &waits, &retry)
    }

    /// What a death leaves behind: a dead letter, or a word to the addresses topic.
    async fn obituary(&self, delivery: &Delivery, attempts: u32, note: &Note, detail: &str) -> Vec<Append> {
        let record = &delivery.leg.record;
        let mut follow = Vec::new();
        if note.dlq {
            let letter = DeadLetter {
                delivery: Some(delivery.key.delivery),
                leg: Some(LaneRecord { only_address: Some(delivery.address_id.clone()), ..record.clone() }),
                raw: None,
                from: delivery.leg.ticket.place(),
                provider: note.provider.clone(),
                code: note.code.clone(),
                reason: note.reason.unwrap_or(Reason::Refused),
                detail: detail.to_owned(),
                attempts,
                unknown: note.unknown,
                at: note.at,
            };
            follow.push(wire::dead_letter(self.to(&self.parts.topics.dlq(), &record.user), &record.user, &letter));
        }
        if note.reason == Some(Reason::InvalidAddress)
            && let Some(listed) = &delivery.listed
        {
            follow.extend(self.struck(listed, note).await);
        }
        follow
    }

    /// The address as invalid, unless it was renewed since: then the provider spoke of an older one.
    async fn struck(&self, called: &Listed, note: &Note) -> Option<Append> {
        let user = called.address.user_id.as_str();
        let known = self.parts.directory.look(self.parts.channel, &[user]).await.ok().and_then(|mut it| it.pop());
        let now = known.as_ref().map_or(Some(called), |known| {
            known.addresses.iter().find(|it| it.address.address_id == called.address.address_id)
        })?;
        let renewed = now.address.address != called.address.address
            || now.address.registered_at.max(now.address.last_seen_at).is_some_and(|at| at > note.at);
        if renewed || !now.is_live() {
            return None;
        }
        let reason = Some(format!("{}: {}", note.provider, note.code));
        let address = Address { status: AddressStatus::Invalid, reason, ..called.address.clone() };
        let to = TopicPartition { topic: self.parts.topics.addresses().into(), partition: called.partition };
        Some(wire::address(to, &address))
    }
}
