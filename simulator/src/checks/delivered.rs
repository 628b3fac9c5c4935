//! What must hold of deliver once everything has come to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{DeliveryId, LegId, NotificationId};
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, Stage, State, Unit};
use tidings_schemas::profile::Profile;
use tidings_schemas::time::Instant;
use tidings_sinks::lane::wire::{self, Read};
use tidings_sinks::ledger::OWN_KEPT;
use tidings_sinks::log::Record;
use tidings_sinks::record::fates::{Fate, Fates};

use super::{Broken, Seen, Verdict, broken};
use crate::deliver::outside::Called;
use crate::run::{Simulation, is_lane};
use crate::workload::PROFILES;

/// How long before a call a wish may come that the call does not heed: the way from the last look to the call.
const HEEDED_WITHIN: Duration = Duration::from_secs(2);

/// How long after a freeze what was in a process's hands is excused.
const AFTER_A_FREEZE: Duration = Duration::from_secs(60);

/// What a first call may take beyond two polls where nothing that concerns it is unwell: other records of its own
/// lane, a ledger's patience, a batch.
const CALLED_WITHIN: Duration = Duration::from_secs(6);

/// How long a provider's gate may stay shut behind trouble.
const GATE_MAX: Duration = Duration::from_secs(600);

/// A record of a lane, with when it was appended.
struct Laid {
    record: LaneRecord,
    at: Instant,
}

/// Deliver's side of a run.
pub(super) struct Delivered {
    laid: Vec<Laid>,
    called: Vec<Called>,
    rows: BTreeMap<DeliveryId, Vec<Row>>,
    /// When the ledger lost everything.
    losses: Vec<Instant>,
}

impl Delivered {
    pub(super) fn of(simulation: &Simulation, seen: &Seen) -> Result<Self, Broken> {
        let mut laid = Vec::new();
        for (_, records) in seen.history.iter().filter(|(partition, _)| is_lane(&partition.topic)) {
            for record in records {
                let read = wire::read(record).map_err(|what| Broken { promise: "lost", what })?;
                if let Read::Leg { record: leg, .. } = read {
                    laid.push(Laid { record: *leg, at: record.timestamp });
                }
            }
        }
        let mut rows: BTreeMap<DeliveryId, Vec<Row>> = BTreeMap::new();
        for row in seen.rows.values().filter(|row| row.unit == Unit::Delivery) {
            rows.entry(row.delivery).or_default().push(row.clone());
        }
        Ok(Self { laid, called: simulation.deliver.outside.called(), rows, losses: simulation.deliver.outside.lost() })
    }

    fn received(&self) -> BTreeMap<DeliveryId, Vec<&Called>> {
        let mut received: BTreeMap<DeliveryId, Vec<&Called>> = BTreeMap::new();
        for called in self.called.iter().filter(|called| called.received) {
            received.entry(called.delivery).or_default().push(called);
        }
        received
    }

    /// What the record says of a delivery, for a person.
    fn story(&self, delivery: DeliveryId) -> String {
        let mut lines = Vec::new();
        let mut rows: Vec<&Row> = self.rows.get(&delivery).into_iter().flatten().collect();
        rows.sort_by_key(|row| (row.attempt, row.at));
        for row in rows {
            let Row { at, attempt, states, reason, code, message_id, leg, caused_by, .. } = row;
            lines.push(format!(
                "  row {at} attempt {attempt} {states:?} {reason:?} `{code}` `{message_id}` {leg} {caused_by}"
            ));
        }
        for called in self.called.iter().filter(|called| called.delivery == delivery) {
            lines.push(format!("  call {} by p{}, received {}", called.at, called.process, called.received));
        }
        lines.join("\n")
    }
}

/// Whether a provider said that it has it.
fn is_accepted(row: &Row) -> bool {
    row.states.contains(&State::Delivered) || !row.message_id.is_empty()
}

/// Every leg in a lane comes to an end, every delivery too; and what is said to have arrived has.
pub(super) fn lost(delivered: &Delivered, seen: &Seen, fates: &Fates) -> Verdict {
    const PROMISE: &str = "lost";
    // Two legs that end up on one channel, a silent one and one that was turned away elsewhere, are one delivery.
    let heard: BTreeSet<(NotificationId, Channel)> = (delivered.rows.values())
        .filter_map(|rows| rows.first().and_then(|row| Some((row.notification, row.channel?))))
        .collect();
    let ended: BTreeSet<(LegId, &str)> = (seen.rows.values())
        .filter(|row| row.unit == Unit::Leg && row.stage == Stage::Deliver)
        .filter(|row| row.states.iter().any(|it| matches!(it, State::Expired | State::Suppressed | State::Returned)))
        .map(|row| (row.leg, row.caused_by.as_str()))
        .collect();
    for Laid { record, at } in &delivered.laid {
        let cause = if record.returns == 0 { String::new() } else { format!("return {}", record.returns) };
        if !heard.contains(&(record.notification, record.channel)) && !ended.contains(&(record.leg, cause.as_str())) {
            let what =
                format!("laid at {at}, and never heard of: {}", serde_json::to_string(record).unwrap_or_default());
            let about = seen.rows.values().filter(|row| row.notification == record.notification);
            let about =
                about.map(|row| format!("  {} {:?} {:?} {} {}", row.at, row.unit, row.states, row.leg, row.caused_by));
            return broken(PROMISE, format!("{what}\n{}", about.collect::<Vec<_>>().join("\n")));
        }
    }
    let received = delivered.received();
    for (delivery, rows) in &delivered.rows {
        // Acceptance is all that a channel without receipts ever says.
        let accepted = rows.iter().any(is_accepted);
        let open = matches!(fates.delivery(*delivery), None | Some(Fate::InFlight));
        if open && !accepted {
            return broken(PROMISE, format!("{delivery} has no end:\n{}", delivered.story(*delivery)));
        }
        if accepted && !received.contains_key(delivery) {
            let story = delivered.story(*delivery);
            return broken(PROMISE, format!("{delivery} is said to be sent, and nobody has it:\n{story}"));
        }
    }
    Ok(())
}

/// Whether a critical delivery was received again because its producer repeated the event after the ledger, which
/// alone would have known, had lost everything, or a day and more later: there it is a message like any other.
fn is_repeated(delivered: &Delivered, received: &[&Called]) -> bool {
    received.windows(2).all(|pair| {
        let asked_since = |forgotten: Instant| {
            delivered.laid.iter().any(|laid| {
                let of_it = laid.record.notification == pair[1].notification && laid.record.channel == pair[1].channel;
                of_it && laid.at >= forgotten && laid.at <= pair[1].at
            })
        };
        let lost = delivered.losses.iter().copied().find(|lost| *lost >= pair[0].at && *lost <= pair[1].at);
        let day_over = Some(pair[0].at.after(OWN_KEPT)).filter(|over| *over <= pair[1].at);
        pair[1].priority == Priority::Critical && lost.into_iter().chain(day_over).any(asked_since)
    })
}

/// Nobody gets a message twice, unless the record says that it is not known.
pub(super) fn duplicate_without_unknown(delivered: &Delivered) -> Verdict {
    for (delivery, received) in delivered.received() {
        // The inbox keeps one entry of a notification, however often it is stored.
        if received.iter().all(|called| called.channel == Channel::InApp) {
            continue;
        }
        let unknown =
            || delivered.rows.get(&delivery).into_iter().flatten().any(|row| row.states.contains(&State::Unknown));
        if received.len() > 1 && !unknown() && !is_repeated(delivered, &received) {
            let story = delivered.story(delivery);
            let what = format!("{delivery} was received {} times, and no row says unknown:\n{story}", received.len());
            return broken("duplicate_without_unknown", what);
        }
    }
    Ok(())
}

/// Whether `profile` lets nothing of this through, said as plainly as it can be.
fn refuses(profile: &Profile, channel: Channel, record: &LaneRecord) -> bool {
    let stopped = profile.stops.iter().any(|stop| stop.channel == channel);
    let off = profile.channels.get(&channel) == Some(&false);
    if stopped || off || record.priority == Priority::Critical {
        return stopped || off;
    }
    match profile.types.get(&record.event_type).and_then(|switches| switches.get(&channel)) {
        Some(on) => !on,
        None => profile.categories.get(&record.category).and_then(|it| it.get(&channel)) == Some(&false),
    }
}

/// Nothing is sent to who had refused it before the call.
pub(super) fn consent(delivered: &Delivered, seen: &Seen) -> Verdict {
    let records: BTreeMap<(NotificationId, Channel), &LaneRecord> =
        delivered.laid.iter().map(|laid| ((laid.record.notification, laid.record.channel), &laid.record)).collect();
    for called in &delivered.called {
        let Some(record) = records.get(&(called.notification, called.channel)) else {
            return broken("consent", format!("{} was called, and no lane asked for it", called.delivery));
        };
        let (since, stood) = called.steady;
        let looked = if called.at < since.after(AFTER_A_FREEZE) { stood.min(called.at) } else { called.at };
        let heard = looked.before(HEEDED_WITHIN);
        let profiles = seen.history.iter().filter(|(partition, _)| &*partition.topic == PROFILES);
        let own = profiles.flat_map(|(_, records)| records);
        let own = own.filter(|it| it.timestamp <= called.at && it.key.as_deref() == Some(called.user.as_bytes()));
        let own: Vec<_> = own.collect();
        // What held when it was looked up, or has come since: all of it says no.
        let first = own.iter().rposition(|it| it.timestamp <= heard);
        let Some(first) = first else { continue };
        let no = |it: &&Record| {
            Profile::from_json(it.value.as_deref()).is_ok_and(|profile| refuses(&profile, called.channel, record))
        };
        if own[first..].iter().all(no) {
            let story = delivered.story(called.delivery);
            let (user, channel, at) = (&called.user, called.channel, called.at);
            let what =
                format!("{user} had refused {channel} at {}, and was called at {at}:\n{story}", own[first].timestamp);
            return broken("consent", what);
        }
    }
    Ok(())
}

/// How late first calls are, for those that `concerns` and that nothing of their own held up.
fn late(
    simulation: &Simulation,
    delivered: &Delivered,
    promise: &'static str,
    concerns: impl Fn(&Called) -> bool,
) -> Verdict {
    // Where few may be in flight a lane waits for its own records.
    if simulation.options.deliver.records_max < 50 {
        return Ok(());
    }
    let most = simulation.options.deliver.poll_wait * 2 + CALLED_WITHIN;
    let mut laid: BTreeMap<(NotificationId, Channel), Vec<Instant>> = BTreeMap::new();
    for Laid { record, at } in &delivered.laid {
        laid.entry((record.notification, record.channel)).or_default().push(*at);
    }
    let mut seen = BTreeSet::new();
    for called in delivered.called.iter().filter(|called| concerns(called)) {
        // Once laid, once called: what came back or was laid again has another story.
        let laid = laid.get(&(called.notification, called.channel)).map(Vec::as_slice).unwrap_or_default();
        let (first, [at]) = (seen.insert(called.delivery), laid) else { continue };
        let unwell = |trouble: Option<Instant>| trouble.is_some_and(|it| it.after(GATE_MAX) > *at);
        // Somebody who had claimed it died or was thrown out: its lease is waited for.
        let waited = delivered.rows.get(&called.delivery).into_iter().flatten();
        let waited = waited.flat_map(|row| &row.states).any(|state| *state == State::Unknown);
        if !first || waited || unwell(called.shared_trouble) || unwell(called.own_trouble) {
            continue;
        }
        let from = (*at).max(called.steady.0);
        if called.at > from.after(most) {
            let what = format!("{} was laid at {at} and called only at {}", called.delivery, called.at);
            return broken(promise, format!("{what}:\n{}", delivered.story(called.delivery)));
        }
    }
    Ok(())
}

/// Critical is called at once, whatever other lanes, their providers and the ledger do.
pub(super) fn critical_waited(simulation: &Simulation, delivered: &Delivered) -> Verdict {
    late(simulation, delivered, "critical_waited", |called| called.priority == Priority::Critical)
}

/// A lane whose own provider is well does not feel another's bad day.
pub(super) fn isolation(simulation: &Simulation, delivered: &Delivered) -> Verdict {
    late(simulation, delivered, "isolation", |called| called.priority != Priority::Critical)
}
