//! The chain's end: a leg becomes a lane record, a control item says what it found.
//!
//! A lane record carries what rendering needs and until when the decision holds: `fresh_until` is
//! the earliest of expiry, the user's next quiet start and ten minutes. Whoever finds it stale gives
//! it back, and it is judged anew.

use std::time::Duration;

use tidings_schemas::channel::{Channel, Op, Priority};
use tidings_schemas::event::Actor;
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::{LaneRef, LaneTexts};
use tidings_schemas::lifecycle::{State as Did, Unit};
use tidings_schemas::policy::QuietRule;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use crate::harness::book::Spot;
use crate::harness::drafts::Drafts;
use crate::harness::output::To;
use crate::item::Item;
use crate::keyed::{About, Known};
use crate::quiet;
use crate::rules::Rules;

/// A decision older than this is judged anew: quiet hours, limits and opt-outs may have moved. Short
/// against a window, long against a provider's hiccup.
pub const FRESH_FOR: Duration = Duration::from_secs(600);

/// The operator that rows of the chain's end name.
const OPERATOR: &str = "lanes";

/// The chain's end, for one item.
pub(crate) struct End<'a> {
    pub(crate) now: Instant,
    pub(crate) known: &'a Known,
    pub(crate) rules: &'a Rules,
    pub(crate) spot: Spot,
    /// Of the item's user.
    pub(crate) placement: u64,
    pub(crate) drafts: &'a mut Drafts,
    pub(crate) texts: &'a mut LaneTexts,
}

impl End<'_> {
    /// What the item says: its record's place, with the record appended to `value`, and rows.
    pub(crate) fn of(&mut self, item: &Item, value: &mut Vec<u8>) -> Option<To> {
        if item.is_control() {
            let (did, reason) = match (item.op, item.matched) {
                (Op::Retract, 0) => (Did::Suppressed, Reason::NothingToRetract),
                (Op::Cancel, 0) => (Did::Suppressed, Reason::NothingToCancel),
                (Op::Cancel, _) => (Did::Cancelled, Reason::Cancelled),
                (Op::Retract | Op::Notify, _) => (Did::Retracted, Reason::Retracted),
            };
            self.record(Unit::Event, &[About::member(item, item.newest())], did, Some(reason));
            return None;
        }
        let Some(channel) = item.channel().filter(|_| item.leg.is_some()) else {
            // No `route` made a leg of it: the loader refuses such a topology; say it all the same.
            let about: Vec<_> = item.members.iter().map(|member| About::member(item, member)).collect();
            self.record(Unit::Event, &about, Did::Suppressed, Some(Reason::Policy));
            return None;
        };
        // A group is too late when all of it is: whoever expired before left where it was released.
        if item.latest_expiry().is_some_and(|at| at <= self.now) {
            self.record(Unit::Leg, &[About::leg(item)], Did::Expired, Some(Reason::Expired));
            return None;
        }
        self.record(Unit::Leg, &[About::leg(item)], Did::Queued, None);
        self.put(item, channel, value);
        Some(To::Lane(channel, item.priority))
    }

    fn record(&mut self, unit: Unit, about: &[About<'_>], did: Did, reason: Option<Reason>) {
        let call = self.drafts.call(self.spot, None, OPERATOR, self.placement);
        for about in about {
            self.drafts.add(call, unit, about, &[did], reason, None, None);
        }
    }

    /// Appends the lane record of a leg.
    fn put(&mut self, item: &Item, channel: Channel, value: &mut Vec<u8>) {
        let newest = item.newest();
        // Most items are of one member: no need to gather anything, nor to look who is distinct.
        let alone = item.members.len() == 1 && item.folded.count == 0;
        let (names, several_actors, several): (Vec<String>, Vec<&str>, Vec<EventId>);
        let own_name = newest.actor.as_ref().map(|Actor { id, name }| name.as_deref().unwrap_or(id));
        let (actors, members) = if alone {
            (own_name.as_slice(), std::slice::from_ref(&newest.event))
        } else {
            names = item.actor_names();
            several_actors = names.iter().map(String::as_str).collect();
            several = item.members.iter().map(|member| member.event).collect();
            (&several_actors[..], &several[..])
        };
        let record = LaneRef {
            notification: item.notification,
            leg: item.leg.unwrap_or_default(),
            group: item.group,
            event: item.first_event(),
            user: &item.user,
            tenant: &item.tenant,
            event_type: &item.event_type,
            category: &item.category,
            priority: item.priority,
            channel,
            silent: item.silent,
            template_id: newest.content.template_id.as_deref(),
            locale: self.known.profile.locale.as_deref(),
            data: &newest.content.data,
            actors,
            actors_count: if alone { actors.len() as u64 } else { item.actors_count() },
            activities: item.activities(),
            object: item.object.as_deref(),
            members,
            channels: &item.channels,
            fallback: &item.fallback,
            struck: &item.struck,
            returns: item.returns,
            created_at: item.created_at,
            ready_at: item.ready_at,
            expires_at: item.latest_expiry(),
            fresh_until: fresh_until(item, channel, self.now, self.known, self.rules),
            replay: item.replay,
            only_address: item.only_address.as_deref(),
        };
        record.put(value, self.texts);
    }
}

fn fresh_until(item: &Item, channel: Channel, now: Instant, known: &Known, rules: &Rules) -> Instant {
    if item.priority == Priority::Critical {
        return item.latest_expiry().unwrap_or(Instant::NEVER);
    }
    let quiet = match rules.quiet(item.priority, channel) {
        QuietRule::Pass | QuietRule::Silent => None,
        QuietRule::Defer | QuietRule::InApp => quiet::next_start(&known.profile, rules, now),
    };
    [item.latest_expiry(), quiet].into_iter().flatten().fold(now.after(FRESH_FOR), Instant::min)
}

/// A hand-over between the two paths: the event as its producer wrote it, under its own event id, is
/// appended to `value`.
pub(crate) fn hand_over(item: &Item, to: Priority, value: &mut Vec<u8>) -> To {
    let mut event = item.to_event();
    if to == Priority::Critical {
        event.scheduled_at = None;
    }
    // An event has only types that JSON can hold.
    let _ = serde_json::to_writer(value, &event);
    To::HandOver(to, item.first_event(), item.created_at)
}
