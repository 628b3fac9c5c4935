//! Step 3, before the claim: what is late goes back or ends; the rest takes a token of its rates and passes its
//! provider's gate. What was claimed is judged and called.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tidings_schemas::lane::{LaneRecord, ReturnCause, Returned};
use tidings_schemas::lifecycle::State;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use super::claim::Asked;
use super::{Deliverer, Delivery, Desk, Ended, Granted, Leg, Step, Verdict};
use crate::lane::pace::Pace;
use crate::lane::{rows, wire};
use crate::ledger::{Attempt, Note, Phase};
use crate::providers::Provider;
use crate::render::Content;

/// Granted deliveries with their texts, by their provider's name.
type Calls = BTreeMap<&'static str, (Arc<dyn Provider>, Vec<(Granted, Content)>)>;

impl Deliverer {
    /// Step 3: what is late goes back or ends, what may be called is claimed in one trip. Once it is time to
    /// stop nothing is begun: the next owner reads it again.
    pub(super) async fn admit(&self, desk: &Desk, deliveries: Vec<Delivery>) -> Vec<Step> {
        if desk.draining.is_cancelled() {
            return Vec::new();
        }
        let punctual = self.punctual(desk, deliveries).await;
        let (admitted, mut steps) = self.enter(desk, punctual);
        let (critical, others): (Vec<_>, Vec<_>) = admitted.into_iter().partition(|it| it.leg.is_critical());
        let mut verdicts = Vec::new();
        let mut calls = Calls::new();
        for batch in [critical, others] {
            let Some(claimed) = self.claim(desk, batch).await else { continue };
            let Some(claimed) = self.refreshed(desk, claimed).await else { continue };
            for claimed in claimed {
                let granted = match claimed {
                    Asked::Granted(granted) => granted,
                    Asked::Met(met) => {
                        self.give_back(&met.delivery);
                        steps.extend(self.meet(desk, met).await);
                        continue;
                    }
                };
                match self.judge(&granted) {
                    Ok((provider, content)) => {
                        let slot = calls.entry(provider.name()).or_insert_with(|| (provider.clone(), Vec::new()));
                        slot.1.push((granted, content));
                    }
                    Err(ended) => {
                        let (note, detail) = *ended;
                        self.give_back(&granted.delivery);
                        verdicts.push(Verdict { granted, phase: Some(Phase::Dead { note }), detail });
                    }
                }
            }
        }
        steps.extend(batches(calls));
        steps.extend(self.close(desk, verdicts).await);
        steps
    }

    /// Those that have a token of every rate and whose provider's gate is open; for the others a later step.
    fn enter(&self, desk: &Desk, deliveries: Vec<Delivery>) -> (Vec<Delivery>, Vec<Step>) {
        let (mut admitted, mut steps) = (Vec::new(), Vec::new());
        for mut delivery in deliveries {
            if let Err(at) = self.take_token(&mut delivery) {
                desk.metrics.paced.fetch_add(1, Ordering::Relaxed);
                steps.push(Step::Again { at, gate: None, delivery: Box::new(delivery) });
                continue;
            }
            let name = self.provider(&delivery).map(|provider| provider.name());
            match name.and_then(|name| self.gates.get(name)).map_or(Ok(()), |gate| gate.enter(self.elapsed())) {
                Ok(()) => admitted.push(delivery),
                Err(at) => {
                    self.give_back(&delivery);
                    steps.push(Step::Again { at, gate: name, delivery: Box::new(delivery) });
                }
            }
        }
        (admitted, steps)
    }

    /// The rates that a delivery keeps to: its provider's, and the channel's.
    fn paces(&self, delivery: &Delivery) -> impl Iterator<Item = &Arc<Pace>> {
        self.provider(delivery).and_then(|provider| provider.pace()).into_iter().chain(&self.parts.cap)
    }

    /// Takes a token of every rate, or none and says when to ask again.
    fn take_token(&self, delivery: &mut Delivery) -> Result<(), Duration> {
        let (now, priority) = (self.elapsed(), delivery.leg.record.priority);
        let mut turns = std::mem::take(&mut delivery.turns);
        let mut taken: Vec<&Arc<Pace>> = Vec::new();
        let paces: Vec<Arc<Pace>> = self.paces(delivery).cloned().collect();
        for pace in &paces {
            let turn = turns.iter().position(|turn| turn.is_of(pace)).map(|place| turns.swap_remove(place));
            match pace.enter(priority, turn, now) {
                Ok(()) => taken.push(pace),
                Err((at, turn)) => {
                    taken.into_iter().for_each(|pace| pace.give_back(priority));
                    turns.push(turn);
                    delivery.turns = turns;
                    return Err(at);
                }
            }
        }
        Ok(())
    }

    /// Gives the tokens of a delivery back that is not called after all.
    fn give_back(&self, delivery: &Delivery) {
        self.paces(delivery).for_each(|pace| pace.give_back(delivery.leg.record.priority));
    }

    /// Those that are in time, or were called already: those have to be seen to their end here. So have those that may
    /// have been: where the ledger was lost that it would stand in.
    async fn punctual(&self, desk: &Desk, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        let now = self.now();
        let late = |it: &Delivery| {
            let stale = !it.leg.is_critical() && it.leg.record.fresh_until <= now;
            it.known == 0 && (it.leg.is_expired(now) || stale)
        };
        let (late, mut punctual): (Vec<_>, Vec<_>) = deliveries.into_iter().partition(late);
        if late.is_empty() {
            return punctual;
        }
        let Some(called) = self.called_before(desk, &late).await else { return punctual };
        // By leg, and not by what it is made of: a repeat in the same batch is a record of its own, to be settled.
        let mut uncalled = Vec::<(Arc<Leg>, Vec<Delivery>)>::new();
        for (delivery, called) in late.into_iter().zip(called) {
            if called {
                punctual.push(delivery);
            } else {
                match uncalled.last_mut().filter(|(leg, _)| Arc::ptr_eq(leg, &delivery.leg)) {
                    Some((_, together)) => together.push(delivery),
                    None => uncalled.push((delivery.leg.clone(), vec![delivery])),
                }
            }
        }
        for (leg, deliveries) in uncalled {
            self.too_late(desk, &leg, &deliveries, now).await;
        }
        punctual
    }

    /// Ends or gives back deliveries that were never called: the leg as a whole where none was.
    async fn too_late(&self, desk: &Desk, leg: &Leg, deliveries: &[Delivery], now: Instant) {
        let record = &leg.record;
        let whole = leg.open.lock().unwrap_or_else(PoisonError::into_inner).deliveries.len() == deliveries.len();
        let (mut said, mut follow) = (Vec::new(), Vec::new());
        let to = self.to(&self.parts.topics.returned(), &record.user);
        let back = |leg: LaneRecord| wire::returned(to.clone(), &Returned { cause: ReturnCause::Stale, leg });
        match (leg.is_expired(now), whole) {
            (true, true) => said.push(rows::of_leg(record, &[State::Expired], Some(Reason::Expired), now)),
            (true, false) => {
                let note = Note { at: now, reason: Some(Reason::Expired), ..Note::default() };
                let attempt = Attempt { number: 1, phase: Phase::Dead { note } };
                said.extend(deliveries.iter().map(|it| rows::of_attempt(record, it.key.delivery, &attempt, false)));
            }
            (false, true) => {
                said.push(rows::of_leg(record, &[State::Returned], Some(Reason::Stale), now));
                follow.push(back(record.clone()));
            }
            (false, false) => follow.extend(
                deliveries
                    .iter()
                    .map(|it| back(LaneRecord { only_address: Some(it.address_id.clone()), ..record.clone() })),
            ),
        }
        self.say(desk, said, follow).await;
        for _ in deliveries {
            self.finish(desk, leg, Ended::Held).await;
        }
    }
}

/// As many in one call as each provider takes.
fn batches(calls: Calls) -> Vec<Step> {
    let mut steps = Vec::new();
    for (provider, mut granted) in calls.into_values() {
        let most = provider.batch_max().max(1);
        while !granted.is_empty() {
            let rest = granted.split_off(most.min(granted.len()));
            steps.push(Step::Call { provider: provider.clone(), granted: std::mem::replace(&mut granted, rest) });
        }
    }
    steps
}
