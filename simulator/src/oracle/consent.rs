//! Which channels may carry a thing, best first, and what a user's quiet hours say.

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::placement;
use tidings_schemas::policy::{CategoryPolicy, QuietRule, QuietRules};
use tidings_schemas::profile::{Profile, Reachability};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use super::thing::{Thing, policy_of};
use super::{Rules, wall};

/// What is known of a user.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Known {
    pub(super) profile: Profile,
    pub(super) addresses: Reachability,
}

fn category<'a>(rules: &'a Rules, name: &str) -> Option<&'a CategoryPolicy> {
    rules.policies.categories.get(name)
}

/// The channels in question, best first: the producer's, in the producer's order; else the type's, or
/// what the priority is worth, in the user's order.
fn wanted(thing: &Thing, known: &Known, rules: &Rules) -> Vec<Channel> {
    let mut channels = thing.channels.clone();
    if channels.is_empty() {
        channels = policy_of(&rules.policies, &thing.event_type).channels.unwrap_or_else(|| match thing.priority {
            Priority::Critical if category(rules, &thing.category).is_some_and(|policy| policy.sms_when_critical) => {
                vec![Channel::Push, Channel::Email, Channel::Sms, Channel::InApp]
            }
            Priority::Critical | Priority::High | Priority::Medium => {
                vec![Channel::Push, Channel::Email, Channel::InApp]
            }
            Priority::Low => vec![Channel::Email, Channel::InApp],
        });
        if let Some(order) = &known.profile.channel_order {
            let mut sorted: Vec<Channel> = order.iter().copied().filter(|one| channels.contains(one)).collect();
            sorted.extend(channels.iter().copied().filter(|one| !order.contains(one)));
            channels = sorted;
        }
    }
    // One leg a channel: naming it twice does not say it twice.
    let mut once = Vec::new();
    for channel in channels {
        if !once.contains(&channel) {
            once.push(channel);
        }
    }
    once
}

/// Legal stop > channel off > type > category > consent > provider > address.
pub(super) fn closed(thing: &Thing, channel: Channel, known: &Known, rules: &Rules) -> Option<Reason> {
    let profile = &known.profile;
    let policy = category(rules, &thing.category).cloned().unwrap_or_default();
    let by_type = profile.types.get(&thing.event_type).and_then(|switches| switches.get(&channel).copied());
    let by_category = profile.categories.get(&thing.category).and_then(|switches| switches.get(&channel).copied());
    let consented =
        |consent: &tidings_schemas::profile::Consent| consent.channel == channel && consent.category == thing.category;
    if profile.stops.iter().any(|stop| stop.channel == channel) {
        Some(Reason::LegalStop)
    } else if profile.channels.get(&channel) == Some(&false)
        || (!policy.passes_opt_out && !by_type.or(by_category).unwrap_or(true))
    {
        Some(Reason::OptedOut)
    } else if policy.needs_consent.contains(&channel) && !profile.consents.iter().any(consented) {
        Some(Reason::NoConsent)
    } else if !rules.topology.provided.contains(channel) {
        Some(Reason::NoProvider)
    } else if channel != Channel::InApp && !known.addresses.iter().any(|(_, served)| served == channel) {
        Some(Reason::Unreachable)
    } else {
        None
    }
}

/// What may carry the thing, best first; and what may not, with the reason.
pub(super) fn candidates(thing: &Thing, known: &Known, rules: &Rules) -> (Vec<Channel>, Vec<(Channel, Reason)>) {
    let (mut open, mut shut) = (Vec::new(), Vec::new());
    for channel in wanted(thing, known, rules) {
        match closed(thing, channel, known, rules) {
            None => open.push(channel),
            Some(reason) => shut.push((channel, reason)),
        }
    }
    (open, shut)
}

fn rule(rules: &Rules, priority: Priority, channel: Channel) -> QuietRule {
    match rules.policies.quiet_hours.get(&priority) {
        None => QuietRule::Pass,
        Some(QuietRules::ByChannel(by_channel)) => by_channel.get(&channel).copied().unwrap_or(QuietRule::Pass),
        // A rule for all channels leaves the inbox open, silently.
        Some(QuietRules::All(rule)) if channel == Channel::InApp && *rule != QuietRule::Pass => QuietRule::Silent,
        Some(QuietRules::All(rule)) => *rule,
    }
}

/// What quiet hours say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Silent,
    /// Until the window's end, as a person is told; and when this user's turn comes.
    Wait(Instant, Instant),
    Inbox,
}

pub(super) fn verdict(
    user: &str,
    priority: Priority,
    channel: Channel,
    known: &Known,
    rules: &Rules,
    now: Instant,
) -> Verdict {
    let zone = wall::zone(known.profile.time_zone.as_deref());
    let end = known.profile.quiet_hours.and_then(|hours| wall::quiet_end(&zone, hours, now));
    let Some(end) = end else { return Verdict::Pass };
    match rule(rules, priority, channel) {
        QuietRule::Pass => Verdict::Pass,
        QuietRule::Silent => Verdict::Silent,
        QuietRule::InApp => Verdict::Inbox,
        QuietRule::Defer => {
            let spread = u64::try_from(rules.topology.spread.0.as_millis()).unwrap_or(u64::MAX);
            let share = if spread == 0 { 0 } else { placement(user) % spread };
            Verdict::Wait(end, end.after(std::time::Duration::from_millis(share)))
        }
    }
}

/// Until when a decision holds: its expiry, the next quiet start that would hold it, ten minutes.
pub(super) fn fresh_until(thing: &Thing, channel: Channel, known: &Known, rules: &Rules, now: Instant) -> Instant {
    if thing.priority == Priority::Critical {
        return thing.expires_at().unwrap_or(Instant::NEVER);
    }
    let mut until = now.after(std::time::Duration::from_secs(600));
    if let Some(expiry) = thing.expires_at() {
        until = until.min(expiry);
    }
    if matches!(rule(rules, thing.priority, channel), QuietRule::Defer | QuietRule::InApp)
        && let Some(hours) = known.profile.quiet_hours
    {
        let zone = wall::zone(known.profile.time_zone.as_deref());
        until = wall::quiet_start(&zone, hours, now, until).unwrap_or(until);
    }
    until
}
