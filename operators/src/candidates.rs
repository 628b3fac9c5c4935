//! Which channels may carry an item, best first: one pure function, because what waited must ask
//! again. `preferences` asks it, `route` asks it, and everything parked asks it when the profile or
//! the rules change.
//!
//! Precedence: legal stop > channel switched off > type × channel > category × channel > default.
//! A policy may let a category pass the last two (`passes_opt_out`); nothing passes the first two,
//! nor an address that isn't there. Where a category needs a recorded consent for a channel, its
//! absence is as good as an opt-out. An address that isn't known may be taken for granted
//! ([`Known::assumed`]): the critical path does so where it would have to wait to know better.

use smallvec::smallvec;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::policy::CategoryPolicy;
use tidings_schemas::profile::{Consent, Switches};
use tidings_schemas::reason::Reason;

use crate::item::{Channels, Item, Struck};
use crate::keyed::Known;
use crate::rules::Rules;

/// The answer: what may carry the item, best first, and what may not and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Channels that may, best first.
    pub open: Channels,
    /// Channels that may not, with reason.
    pub closed: Struck,
}

/// The candidates of `item` for a user of whom `known` is known.
#[must_use]
pub fn candidates(item: &Item, known: &Known, rules: &Rules) -> Candidates {
    Asked::of(item, known, rules).candidates()
}

/// Why `channel` must not carry `item`, if it must not.
#[must_use]
pub fn closed(item: &Item, channel: Channel, known: &Known, rules: &Rules) -> Option<Reason> {
    Asked::of(item, known, rules).closed(channel)
}

/// The question, with what profile and policy say of the item's type and category: looked up once for all channels.
pub(crate) struct Asked<'a> {
    item: &'a Item,
    known: &'a Known,
    rules: &'a Rules,
    policy: Option<&'a CategoryPolicy>,
    of_type: Option<&'a Switches>,
    of_category: Option<&'a Switches>,
}

impl<'a> Asked<'a> {
    pub(crate) fn of(item: &'a Item, known: &'a Known, rules: &'a Rules) -> Self {
        let profile = &known.profile;
        let of_type = profile.types.get(&*item.event_type);
        let of_category = profile.categories.get(&*item.category);
        Self { item, known, rules, policy: rules.of_category(&item.category), of_type, of_category }
    }

    /// As [`candidates`].
    pub(crate) fn candidates(&self) -> Candidates {
        let mut answer = Candidates::default();
        let of_type;
        // A channel that the producer named stays in the producer's order.
        let wanted = if self.item.channels.is_empty() {
            of_type = self.of_type();
            &of_type
        } else {
            &self.item.channels
        };
        for channel in wanted {
            match self.closed(*channel) {
                None => answer.open.push(*channel),
                Some(reason) => answer.closed.push((*channel, reason)),
            }
        }
        answer
    }

    /// As [`closed`].
    pub(crate) fn closed(&self, channel: Channel) -> Option<Reason> {
        let Known { profile, reachability, assumed } = self.known;
        if profile.stops.iter().any(|stop| stop.channel == channel) {
            return Some(Reason::LegalStop);
        }
        if profile.channels.get(&channel) == Some(&false) {
            return Some(Reason::OptedOut);
        }
        let switch = |switches: Option<&Switches>| switches.and_then(|switches| switches.get(&channel)).copied();
        let passes = self.policy.is_some_and(|policy| policy.passes_opt_out);
        if !passes && switch(self.of_type).or(switch(self.of_category)) == Some(false) {
            return Some(Reason::OptedOut);
        }
        if self.policy.is_some_and(|policy| policy.needs_consent.contains(&channel)) {
            let consented = |consent: &Consent| consent.channel == channel && consent.category == *self.item.category;
            if !profile.consents.iter().any(consented) {
                return Some(Reason::NoConsent);
            }
        }
        if !self.rules.provided.contains(channel) {
            return Some(Reason::NoProvider);
        }
        if !reachability.channels().contains(channel) && !assumed.contains(channel) {
            return Some(Reason::Unreachable);
        }
        None
    }

    /// The channels of the item's type, or of its priority, in the user's own order.
    fn of_type(&self) -> Channels {
        let mut channels = match &self.rules.of_type(&self.item.event_type).channels {
            Some(channels) => Channels::from_slice(channels),
            None => by_priority(self.item, self.policy),
        };
        if let Some(order) = &self.known.profile.channel_order {
            let place = |channel: &Channel| order.iter().position(|other| other == channel).unwrap_or(order.len());
            channels.sort_by_key(place);
        }
        channels
    }
}

/// A type without channels of its own: what its priority is worth. A text message costs money and
/// attention, so it is for security only, unless type or producer name it.
fn by_priority(item: &Item, policy: Option<&CategoryPolicy>) -> Channels {
    match item.priority {
        Priority::Critical => {
            let sms = policy.is_some_and(|policy| policy.sms_when_critical);
            let mut channels: Channels = smallvec![Channel::Push, Channel::Email, Channel::InApp];
            if sms {
                channels.insert(2, Channel::Sms);
            }
            channels
        }
        Priority::High | Priority::Medium => smallvec![Channel::Push, Channel::Email, Channel::InApp],
        Priority::Low => smallvec![Channel::Email, Channel::InApp],
    }
}

#[cfg(test)]
mod tests {
    use tidings_schemas::channel::ChannelSet;

    use super::*;
    use crate::script;

    fn ask(profile: &str, item: &Item) -> String {
        let answer =
            candidates(item, &script::known(profile, &[Channel::Push, Channel::Email, Channel::Sms]), &script::rules());
        let open: Vec<_> = answer.open.iter().map(|channel| channel.as_str().to_owned()).collect();
        let closed: Vec<_> = answer.closed.iter().map(|(channel, reason)| format!("!{channel}:{reason}")).collect();
        [open, closed].concat().join(" ")
    }

    #[test]
    fn the_precedence_of_preferences() {
        let like = script::like("u1", "bob", "photo7", 1);
        let marketing = script::typed("u1", "marketing_campaign", 1, |item| {
            item.channels = smallvec![Channel::Sms, Channel::Email]
        });
        let table = [
            ("{}", &like, "push email"),
            (r#"{"channels":{"push":false}}"#, &like, "email !push:opted_out"),
            (r#"{"channels":{"push":false},"types":{"like":{"push":true}}}"#, &like, "email !push:opted_out"),
            (r#"{"categories":{"social":{"push":false}}}"#, &like, "email !push:opted_out"),
            (r#"{"categories":{"social":{"push":false}},"types":{"like":{"push":true}}}"#, &like, "push email"),
            (r#"{"categories":{"marketing":{"push":false}}}"#, &like, "push email"),
            (
                r#"{"stops":[{"channel":"push","source":"STOP","at":"2026-01-01T00:00:00Z"}]}"#,
                &like,
                "email !push:legal_stop",
            ),
            (r#"{"channel_order":["email","push"]}"#, &like, "email push"),
            ("{}", &marketing, "email !sms:no_consent"),
            (
                r#"{"consents":[{"channel":"sms","category":"marketing","source":"form","at":"2026-01-01T00:00:00Z"}]}"#,
                &marketing,
                "sms email",
            ),
        ];
        for (profile, item, expected) in table {
            assert_eq!(ask(profile, item), expected, "{profile}");
        }
    }

    #[test]
    fn without_an_address_or_a_provider_there_is_no_candidate() {
        let like = script::like("u1", "bob", "photo7", 1);
        let answer = candidates(&like, &Known::default(), &script::rules());
        assert_eq!(answer.closed[..], [(Channel::Push, Reason::Unreachable), (Channel::Email, Reason::Unreachable)]);
        // The critical path takes for granted what it cannot know; a provider it still needs.
        let assumed = Known { assumed: ChannelSet::ALL, ..Known::default() };
        assert_eq!(candidates(&like, &assumed, &script::rules()).open[..], [Channel::Push, Channel::Email]);
        let webhook = script::typed("u1", "like", 1, |item| item.channels = smallvec![Channel::Webhook]);
        let answer = candidates(&webhook, &assumed, &script::rules());
        assert_eq!(answer.closed[..], [(Channel::Webhook, Reason::NoProvider)]);
    }
}
