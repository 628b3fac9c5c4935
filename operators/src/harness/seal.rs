//! One row per unit and epoch: what operators said of it, in the order in which it happened.

use tidings_schemas::lifecycle::{Row, Stage as Writer, State as Did, Unit};
use tidings_schemas::time::Instant;

use super::ordinal::Ordinal;
use crate::ingest::Path;
use crate::keyed::{Cause, Draft};

/// One row per unit: what happened to it within the epoch, in order, under one instant.
pub(crate) fn seal(epoch: u64, now: Instant, path: Path, drafts: Vec<(Ordinal, Draft)>) -> Vec<Row> {
    // Places are sorted, not drafts, which are large.
    let mut drafts: Vec<_> = drafts.into_iter().map(Some).collect();
    let mut places: Vec<usize> = (0..drafts.len()).collect();
    let name = |place: &usize| drafts[*place].as_ref().map(|(ordinal, draft)| (draft.unit, unit_id(draft), ordinal));
    places.sort_by(|one, two| name(one).cmp(&name(two)));
    let unit = |place: &usize| drafts[*place].as_ref().map(|(_, draft)| (draft.unit, unit_id(draft)));
    let ends: Vec<usize> = places.chunk_by(|one, two| unit(one) == unit(two)).map(<[usize]>::len).collect();
    let mut places = places.into_iter();
    let mut rows = Vec::with_capacity(ends.len());
    for count in ends {
        let of_unit = places.by_ref().take(count).filter_map(|place| drafts[place].take());
        rows.extend(seal_unit(epoch, now, path, of_unit.map(|(_, draft)| draft)));
    }
    rows
}

const fn unit_id(draft: &Draft) -> [u8; 16] {
    match draft.unit {
        Unit::Event => draft.about.event.0,
        Unit::Leg | Unit::Delivery => draft.about.leg.0,
    }
}

fn seal_unit(epoch: u64, now: Instant, path: Path, drafts: impl Iterator<Item = Draft>) -> Option<Row> {
    let mut sealed: Option<Row> = None;
    for draft in drafts {
        let about = draft.about;
        let caused_by = match draft.cause {
            Cause::Event(event) if event == about.event => String::new(),
            Cause::Event(event) => event.to_string(),
            Cause::Timer => "timer".to_owned(),
            Cause::Profile => "profile".to_owned(),
            Cause::Rules => "rules".to_owned(),
            Cause::Words(words) => words,
        };
        let row = Row {
            row_id: Default::default(),
            day: 0,
            at: now,
            epoch,
            stage: match path {
                Path::Decide => Writer::Decide,
                Path::Critical => Writer::Critical,
            },
            states: draft.did.into_vec(),
            unit: draft.unit,
            event: about.event,
            intent: about.intent,
            notification: about.notification,
            group: about.group,
            leg: about.leg,
            silent: about.silent,
            delivery: Default::default(),
            user: about.user.to_string(),
            tenant: about.tenant.to_string(),
            event_type: about.event_type.to_string(),
            category: about.category.to_string(),
            priority: about.priority,
            channel: about.channel,
            provider: String::new(),
            code: String::new(),
            message_id: String::new(),
            operator: draft.operator.to_string(),
            reason: draft.reason,
            attempt: 0,
            until: draft.until,
            cost_microdollars: 0,
            created_at: about.created_at,
            ready_at: about.ready_at,
            caused_by,
        };
        sealed = Some(match sealed {
            None => row,
            // The newest draft speaks; what it is silent about stays as it was.
            Some(mut older) => {
                let mut states = std::mem::take(&mut older.states);
                states.extend(row.states.iter().copied().filter(|state| *state != Did::Created));
                Row {
                    states,
                    channel: row.channel.or(older.channel),
                    reason: row.reason.or(older.reason),
                    until: row.until,
                    created_at: older.created_at,
                    group: if row.group == Default::default() { older.group } else { row.group },
                    caused_by: if row.caused_by.is_empty() { older.caused_by } else { row.caused_by },
                    ..row
                }
            }
        });
    }
    sealed.map(Row::sealed)
}
