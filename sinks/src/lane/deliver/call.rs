//! Steps 4 and 5: whether it is still wanted, its text, the call, and what came of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::reason::Reason;

use super::{Deliverer, Desk, Granted, Step, Unrendered, Verdict};
use crate::consent;
use crate::lane::rows;
use crate::ledger::{Note, Phase};
use crate::outcome::{Code, Outcome};
use crate::providers::{Call, Provider};
use crate::render::Content;
use crate::retry::Next;

/// Why a delivery ends before its call, and the detail of that.
type Unwanted = Box<(Note, String)>;

impl Deliverer {
    /// Step 4, right before the call: whether it is still wanted, and its text.
    pub(super) fn judge(&self, granted: &Granted) -> Result<(Arc<dyn Provider>, Content), Unwanted> {
        let delivery = &granted.delivery;
        let record = &delivery.leg.record;
        let now = self.now();
        let end = |reason, dlq, detail: &str| {
            let unknown = granted.under.is_none();
            let note = Note { at: now, reason: Some(reason), dlq, unknown, ..Note::default() };
            Err(Box::new((note, detail.to_owned())))
        };
        if granted.entry.newest().number > self.parts.schedule.attempts(record.priority) {
            return end(Reason::AttemptsExhausted, true, "the lease of the last attempt ran out");
        }
        if delivery.leg.is_expired(now) {
            return end(Reason::Expired, false, "");
        }
        if let Some(reason) = consent::objection(record, &delivery.profile, &self.parts.categories)
            && !deliberate::has(Bug::ConsentNotAskedAgain)
        {
            return end(reason, false, "");
        }
        let Some(listed) = delivery.listed.as_ref().filter(|it| it.is_live()) else {
            return end(Reason::Unreachable, false, "");
        };
        let Some(provider) = self.parts.providers.of(&listed.address) else {
            return end(Reason::NoProvider, false, "");
        };
        match self.parts.render.render(record) {
            Ok(content) => Ok((provider.clone(), content)),
            Err(Unrendered { reason, detail }) => end(reason, true, &detail),
        }
    }

    /// Step 5: the call, and what came of it.
    pub(super) async fn call(
        &self,
        desk: &Desk,
        provider: &Arc<dyn Provider>,
        granted: Vec<(Granted, Content)>,
    ) -> Vec<Step> {
        // What no ledger remembers, the record does: were it to die now, the next owner would take the call for
        // a first one.
        let now = self.now();
        let doubts = granted.iter().filter(|(it, _)| it.under.is_none()).map(|(it, _)| {
            rows::of_doubt(&it.delivery.leg.record, it.delivery.key.delivery, it.entry.newest().number, now)
        });
        desk.outbox.say(doubts.collect(), Vec::new()).await;
        let calls: Vec<_> = granted.iter().filter_map(|(it, content)| call(it, content)).collect();
        desk.metrics.calls.fetch_add(calls.len() as u64, Ordering::Relaxed);
        let answer = tokio::time::timeout(provider.timeout(), provider.deliver(&calls, self.now())).await;
        let mut outcomes = answer.unwrap_or_default();
        // Silence is no answer: it may have been carried out.
        outcomes.resize(granted.len(), Outcome::unknown(Code::ours("timeout")));
        let gate = self.gates.get(provider.name());
        if let Some(gate) = gate.filter(|_| !outcomes.iter().any(|it| matches!(it, Outcome::Paused { .. }))) {
            gate.open();
        }
        let mut verdicts = Vec::new();
        for ((granted, _), outcome) in granted.into_iter().zip(outcomes) {
            if let (Outcome::Paused { reason, code }, Some(gate)) = (&outcome, gate)
                && gate.close(reason, self.now(), self.elapsed())
            {
                tracing::error!(provider = provider.name(), %reason, %code, "the provider is paused; its deliveries wait");
            }
            let detail = match &outcome {
                Outcome::Permanent { reason, .. } | Outcome::InvalidAddress { reason, .. } => reason.to_string(),
                _ => String::new(),
            };
            let phase = self.phase(&granted, provider.name(), outcome);
            verdicts.push(Verdict { granted, phase, detail });
        }
        self.close(desk, verdicts).await
    }

    /// MODEL §5: outcome → what the ledger keeps. Absent: released.
    fn phase(&self, granted: &Granted, provider: &str, outcome: Outcome) -> Option<Phase> {
        let now = self.now();
        let (id, number) = (granted.delivery.key.delivery, granted.entry.newest().number);
        let lost = granted.under.is_none().then_some(Reason::LedgerUnreachable);
        let note = Note {
            at: now,
            called: true,
            unknown: granted.under.is_none(),
            reason: lost,
            provider: provider.to_owned(),
            code: outcome.code().to_string(),
            ..Note::default()
        };
        Some(match outcome {
            Outcome::Accepted { provider_id, .. } => Phase::Sent { note: Note { message_id: provider_id, ..note } },
            Outcome::Retryable { after, maybe_sent, .. } => {
                let unknown = note.unknown || maybe_sent;
                let priority = granted.delivery.leg.record.priority;
                let after = after.map(|after| self.clocked(after));
                match self.parts.schedule.next(id, number, priority, after, now) {
                    Next::Again { due, .. } => Phase::Scheduled { due, note: Note { unknown, ..note } },
                    Next::GiveUp => {
                        let reason = Some(Reason::AttemptsExhausted);
                        Phase::Dead { note: Note { unknown, reason, dlq: true, ..note } }
                    }
                }
            }
            Outcome::Permanent { .. } => {
                Phase::Dead { note: Note { reason: Some(Reason::Refused), dlq: true, ..note } }
            }
            Outcome::InvalidAddress { .. } => {
                Phase::Dead { note: Note { reason: Some(Reason::InvalidAddress), ..note } }
            }
            Outcome::Paused { .. } => return None,
        })
    }
}

fn call(granted: &Granted, content: &Content) -> Option<Call> {
    let delivery = &granted.delivery;
    let record = &delivery.leg.record;
    Some(Call {
        delivery: delivery.key.delivery,
        notification: record.notification,
        user: record.user.clone(),
        address: delivery.listed.as_ref()?.address.clone(),
        content: content.clone(),
        collapse_key: None,
        expires_at: record.expires_at,
        priority: record.priority,
        category: record.category.clone(),
    })
}
