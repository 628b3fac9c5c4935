//! Attempts → rows: MODEL §5's table, as a pure function of what the ledger holds.

use tidings_schemas::channel::Channel;
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::ids::DeliveryId;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, Stage, State, Unit};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use crate::ledger::{Attempt, Entry, Note, Phase};

/// Whether the provider's acceptance is all that the channel will ever say.
const fn acceptance_counts(channel: Channel) -> bool {
    match channel {
        Channel::Push | Channel::InApp | Channel::Webhook => true,
        Channel::Email | Channel::Sms => false,
    }
}

/// The states of one attempt. `called_before`: whether an earlier attempt of the delivery may have called.
pub(crate) fn states(channel: Channel, attempt: &Attempt, called_before: bool) -> Vec<State> {
    let mut states = Vec::new();
    if attempt.number == 1 {
        states.push(State::Created);
    }
    let mut say = |condition: bool, said: &[State]| {
        if condition {
            states.extend_from_slice(said);
        }
    };
    match &attempt.phase {
        // Only lost ones are written: their lease ran out.
        Phase::Pending { .. } => {
            say(!called_before, &[State::Sent]);
            say(true, &[State::Retry, State::Unknown]);
        }
        Phase::Scheduled { note, .. } => {
            say(!called_before, &[State::Rendered, State::Sent]);
            say(true, &[State::Retry]);
            say(note.unknown, &[State::Unknown]);
        }
        Phase::Sent { note } => {
            say(!called_before, &[State::Rendered, State::Sent]);
            say(acceptance_counts(channel), &[State::Delivered]);
            say(note.unknown, &[State::Unknown]);
        }
        Phase::Dead { note } => {
            let ended = match note.reason {
                _ if note.called || called_before => &[State::Failed][..],
                Some(Reason::Expired) => &[State::Expired],
                // Never called and nothing held it back: the dead-letter queue is its fate.
                _ if note.dlq => &[],
                _ => &[State::Suppressed],
            };
            say(note.called && !called_before, &[State::Rendered, State::Sent]);
            say(true, ended);
            say(note.unknown, &[State::Unknown]);
            say(note.dlq, &[State::Dlq]);
        }
    }
    states
}

/// Whether an attempt may have called.
fn called(attempt: &Attempt) -> bool {
    match &attempt.phase {
        Phase::Pending { .. } => true,
        Phase::Scheduled { note, .. } | Phase::Sent { note } | Phase::Dead { note } => note.called,
    }
}

/// The rows of all attempts above `said`, except of a newest one that is still pending. Attempts that the
/// ledger lost, before those that it has or between them, are said as lost leases.
pub(crate) fn of_entry(record: &LaneRecord, delivery: DeliveryId, entry: &Entry, said: u32, now: Instant) -> Vec<Row> {
    let attempts = entry.attempts();
    let (mut rows, mut before, mut next) = (Vec::new(), false, 1);
    for (index, attempt) in attempts.iter().enumerate() {
        for number in next..attempt.number {
            if number > said {
                let lost = Attempt { number, phase: Phase::Pending { owner: "-".into(), lease_until: now } };
                let row = of_attempt(record, delivery, &lost, before);
                let (reason, caused_by) = (Some(Reason::LedgerUnreachable), "ledger lost".into());
                rows.push(Row { reason, caused_by, ..row }.sealed());
            }
            before = true;
        }
        next = attempt.number + 1;
        let pending = matches!(attempt.phase, Phase::Pending { .. });
        let open = pending && (index + 1 == attempts.len() || deliberate::has(Bug::LostLeaseNotSaid));
        if attempt.number > said && !open {
            rows.push(of_attempt(record, delivery, attempt, before));
        }
        before |= called(attempt);
    }
    rows
}

/// The row of a call that is about to be made without the ledger: nobody will know of it if this process dies, nor
/// that there was a delivery, should its leg have ended by the time that it is read again.
pub(crate) fn of_doubt(record: &LaneRecord, delivery: DeliveryId, attempt: u32, now: Instant) -> Row {
    Row {
        at: now,
        states: if attempt == 1 { vec![State::Created, State::Unknown] } else { vec![State::Unknown] },
        unit: Unit::Delivery,
        delivery,
        reason: Some(Reason::LedgerUnreachable),
        attempt,
        ..of_record(record)
    }
    .sealed()
}

/// The row of one attempt.
pub(crate) fn of_attempt(record: &LaneRecord, delivery: DeliveryId, attempt: &Attempt, before: bool) -> Row {
    let lost;
    let (note, until) = match &attempt.phase {
        Phase::Pending { lease_until, .. } => {
            lost = Note { at: *lease_until, reason: Some(Reason::LeaseExpired), ..Note::default() };
            (&lost, None)
        }
        Phase::Scheduled { due, note } => (note, Some(*due)),
        Phase::Sent { note } | Phase::Dead { note } => (note, None),
    };
    Row {
        at: note.at,
        states: states(record.channel, attempt, before),
        unit: Unit::Delivery,
        delivery,
        provider: note.provider.clone(),
        code: note.code.clone(),
        message_id: note.message_id.clone(),
        reason: note.reason,
        attempt: attempt.number,
        until,
        ..of_record(record)
    }
    .sealed()
}

/// A row about the leg: what ends before there are addresses, and what goes back.
pub(crate) fn of_leg(record: &LaneRecord, states: &[State], reason: Option<Reason>, now: Instant) -> Row {
    Row {
        at: now,
        states: states.to_vec(),
        unit: Unit::Leg,
        reason,
        caused_by: if record.returns == 0 { String::new() } else { format!("return {}", record.returns) },
        ..of_record(record)
    }
    .sealed()
}

fn of_record(record: &LaneRecord) -> Row {
    Row {
        stage: Stage::Deliver,
        event: record.event,
        notification: record.notification,
        group: record.group,
        leg: record.leg,
        silent: record.silent,
        user: record.user.clone(),
        tenant: record.tenant.clone(),
        event_type: record.event_type.clone(),
        category: record.category.clone(),
        priority: Some(record.priority),
        channel: Some(record.channel),
        created_at: record.created_at,
        ready_at: Some(record.ready_at),
        ..Row::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(channel: Channel, number: u32, phase: Phase, before: bool) -> String {
        let states = states(channel, &Attempt { number, phase }, before);
        states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_outcome_writes_the_rows_of_the_table() {
        use Channel::{Email, Push};
        let note = |called, unknown, dlq, reason| Note { called, unknown, dlq, reason, ..Note::default() };
        let sent = |unknown| Phase::Sent { note: note(true, unknown, false, None) };
        let retry = |unknown| Phase::Scheduled { due: Instant(0), note: note(true, unknown, false, None) };
        let dead = |called, unknown, dlq, reason| Phase::Dead { note: note(called, unknown, dlq, Some(reason)) };
        let lost = || Phase::Pending { owner: "o".into(), lease_until: Instant(0) };
        let cases = [
            (Push, 1, sent(false), false, "created rendered sent delivered"),
            (Email, 1, sent(false), false, "created rendered sent"),
            (Email, 2, sent(false), true, ""),
            (Push, 2, sent(false), true, "delivered"),
            (Push, 1, sent(true), false, "created rendered sent delivered unknown"),
            (Push, 1, retry(false), false, "created rendered sent retry"),
            (Push, 1, retry(true), false, "created rendered sent retry unknown"),
            (Push, 3, retry(false), true, "retry"),
            (Push, 1, lost(), false, "created sent retry unknown"),
            (Push, 2, lost(), true, "retry unknown"),
            (Push, 1, dead(true, false, true, Reason::Refused), false, "created rendered sent failed dlq"),
            (Push, 1, dead(true, false, false, Reason::InvalidAddress), false, "created rendered sent failed"),
            (Push, 5, dead(true, true, true, Reason::AttemptsExhausted), true, "failed unknown dlq"),
            (Push, 1, dead(false, false, false, Reason::OptedOut), false, "created suppressed"),
            (Push, 2, dead(false, false, false, Reason::OptedOut), true, "failed"),
            (Push, 1, dead(false, false, false, Reason::Expired), false, "created expired"),
            (Push, 3, dead(false, false, false, Reason::Expired), true, "failed"),
            (Push, 1, dead(false, false, true, Reason::NoTemplate), false, "created dlq"),
        ];
        for (channel, number, phase, before, expected) in cases {
            let label = format!("{channel} attempt {number} {phase:?}");
            assert_eq!(words(channel, number, phase, before), expected, "{label}");
        }
    }
}
