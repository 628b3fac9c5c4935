//! The chain's end: a leg becomes a lane record, a control item says what it found.
//!
//! A lane record carries what rendering needs and until when the decision holds: `fresh_until` is
//! the earliest of expiry, the user's next quiet start and ten minutes. Whoever finds it stale gives
//! it back, and it is judged anew.

use std::time::Duration;

use smallvec::smallvec;
use tidings_schemas::channel::{Channel, Op, Priority};
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::{LANE_VERSION, LaneRecord, Request};
use tidings_schemas::lifecycle::{State as Did, Unit};
use tidings_schemas::policy::QuietRule;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use crate::harness::output::To;
use crate::item::Item;
use crate::keyed::{About, Cause, Draft, Known};
use crate::quiet;
use crate::rules::Rules;

/// A decision older than this is judged anew: quiet hours, limits and opt-outs may have moved. Short
/// against a window, long against a provider's hiccup.
pub const FRESH_FOR: Duration = Duration::from_secs(600);

/// The operator that rows of the chain's end name.
const OPERATOR: &str = "lanes";

/// What an item says at the chain's end: a record with its place, if any, and rows.
pub(crate) fn end(
    item: Item,
    now: Instant,
    known: &Known,
    rules: &Rules,
    cause: Cause,
) -> (Option<(To, Vec<u8>)>, Vec<Draft>) {
    let draft = |unit, about, did, reason| Draft {
        unit,
        did: smallvec![did],
        reason,
        until: None,
        about,
        operator: OPERATOR.into(),
        cause: cause.clone(),
    };
    if item.is_control() {
        let (did, reason) = match (item.op, item.matched) {
            (Op::Retract, 0) => (Did::Suppressed, Some(Reason::NothingToRetract)),
            (Op::Cancel, 0) => (Did::Suppressed, Some(Reason::NothingToCancel)),
            (Op::Cancel, _) => (Did::Cancelled, Some(Reason::Cancelled)),
            (Op::Retract | Op::Notify, _) => (Did::Retracted, Some(Reason::Retracted)),
        };
        return (None, vec![draft(Unit::Event, About::member(&item, item.newest()), did, reason)]);
    }
    let Some(channel) = item.channel().filter(|_| item.leg.is_some()) else {
        // No `route` made a leg of it: the loader refuses such a topology; say it all the same.
        let about = |member| About::member(&item, member);
        let rows =
            item.members.iter().map(|member| draft(Unit::Event, about(member), Did::Suppressed, Some(Reason::Policy)));
        return (None, rows.collect());
    };
    if item.expires_at.is_some_and(|at| at <= now) {
        return (None, vec![draft(Unit::Leg, About::leg(&item), Did::Expired, Some(Reason::Expired))]);
    }
    let row = draft(Unit::Leg, About::leg(&item), Did::Queued, None);
    let priority = item.priority;
    let record = record(item, channel, now, known, rules);
    // A lane record has only types that JSON can hold.
    let value = serde_json::to_vec(&record).unwrap_or_default();
    (Some((To::Lane(channel, priority), value)), vec![row])
}

/// The lane record of a leg.
fn record(item: Item, channel: Channel, now: Instant, known: &Known, rules: &Rules) -> LaneRecord {
    let newest = item.newest();
    let fresh_until = fresh_until(&item, channel, now, known, rules);
    LaneRecord {
        v: LANE_VERSION,
        notification: item.notification,
        leg: item.leg.unwrap_or_default(),
        group: item.group,
        event: item.first_event(),
        user: item.user.to_string(),
        tenant: item.tenant.to_string(),
        event_type: item.event_type.to_string(),
        category: item.category.to_string(),
        priority: item.priority,
        channel,
        silent: item.silent,
        template_id: newest.content.template_id.as_deref().map(str::to_owned),
        locale: known.profile.locale.clone(),
        data: serde_json::from_str(&newest.content.data).unwrap_or_default(),
        actors: item.actor_names(),
        actors_count: item.actors_count(),
        activities: item.activities(),
        members: item.members.iter().map(|member| member.event).collect(),
        object: item.object.as_deref().cloned(),
        request: Request { channels: item.channels.to_vec(), fallback: item.fallback.to_vec() },
        struck: item.struck.to_vec(),
        returns: item.returns,
        created_at: item.created_at,
        ready_at: item.ready_at,
        expires_at: item.expires_at,
        fresh_until,
        fallback_channels: item.fallback.to_vec(),
        replay: item.replay,
        only_address: item.only_address.as_deref().map(str::to_owned),
    }
}

fn fresh_until(item: &Item, channel: Channel, now: Instant, known: &Known, rules: &Rules) -> Instant {
    if item.priority == Priority::Critical {
        return item.expires_at.unwrap_or(Instant::NEVER);
    }
    let quiet = match rules.quiet(item.priority, channel) {
        QuietRule::Pass | QuietRule::Silent => None,
        QuietRule::Defer | QuietRule::InApp => quiet::next_start(&known.profile, rules, now),
    };
    [item.expires_at, quiet].into_iter().flatten().fold(now.after(FRESH_FOR), Instant::min)
}

/// A hand-over between the two paths: the event as its producer wrote it, under its own event id.
pub(crate) fn hand_over(mut item: Item, to: Priority) -> (To, Vec<u8>) {
    let event: EventId = item.first_event();
    if to == Priority::Critical {
        item.scheduled_at = None;
    }
    (To::HandOver(to, event), serde_json::to_vec(&item.to_event()).unwrap_or_default())
}
