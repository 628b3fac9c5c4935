//! What was decided not to do, why, and what would have made the difference.

use std::collections::{BTreeMap, BTreeSet};

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::lifecycle::{Row, State};
use tidings_schemas::reason::Reason;

use super::words::Matter;
use super::{Teller, Tone, matter, struck, why_not, words};

impl Teller<'_, '_> {
    pub(super) fn not_by(&self, channel: Channel, reason: Reason, row: &Row) -> String {
        let matter = Matter { channel: Some(channel), ..matter(row, None) };
        format!("not {}: {}", words::by(channel), why_not(reason, row, matter))
    }

    pub(super) fn not_done(&self) -> Vec<String> {
        let mut said: Vec<String> = Vec::new();
        let mut struck_channels = BTreeSet::new();
        let mut say = |text: String| {
            let text = format!("{}.", words::capital(&text));
            if !said.contains(&text) {
                said.push(text);
            }
        };
        for row in &self.own {
            for (channel, reason) in struck(row).unwrap_or_default() {
                struck_channels.insert(channel);
                say(self.not_by(channel, reason, row));
            }
        }
        let used: BTreeSet<Channel> = self
            .legs
            .iter()
            .filter(|row| row.states.contains(&State::Queued) && !row.silent)
            .filter_map(|row| row.channel)
            .collect();
        for row in self.legs.iter().filter(|row| !row.silent) {
            if let (true, Some(channel), Some(reason)) =
                (row.states.contains(&State::Suppressed), row.channel, row.reason)
            {
                struck_channels.insert(channel);
                say(self.not_by(channel, reason, row));
            }
            for (channel, reason) in self.context.struck.get(&row.leg).into_iter().flatten() {
                struck_channels.insert(*channel);
                say(self.not_by(*channel, *reason, row));
            }
        }
        if self.own.iter().any(|row| row.priority == Some(Priority::Critical)) && !used.is_empty() {
            say("nothing held it back: what is critical passes quiet hours, limits and gathering".to_owned());
        }
        let only = used.first().filter(|_| used.len() == 1);
        if let Some(others) = only.and_then(|channel| self.unused(*channel, &struck_channels)) {
            say(others);
        }
        said
    }

    /// Which other channels would have done, and why `channel` alone was used; `None` where nobody asks.
    pub(super) fn unused(&self, channel: Channel, struck: &BTreeSet<Channel>) -> Option<String> {
        let explicit = self.context.events.get(&self.event).is_some_and(|event| event.channels.is_some());
        let row = self.own.iter().find(|row| row.priority.is_some()).filter(|_| !explicit)?;
        let priority = row.priority?;
        let usual = [Channel::Push, Channel::Email];
        let wanted = self.context.type_channels.get(&row.event_type).map_or(&usual[..], Vec::as_slice);
        let others = wanted.iter().filter(|other| **other != channel && !struck.contains(other));
        let others: Vec<String> = others.map(|other| words::channel(*other).to_owned()).collect();
        if others.is_empty() {
            return None;
        }
        let were = if others.len() == 1 { "was" } else { "were" };
        let others = words::list(&others);
        Some(match priority {
            Priority::Critical => return None,
            Priority::Low => format!("{others} {were} not used: at low priority it is e-mail or the inbox in the app"),
            Priority::High | Priority::Medium => format!(
                "{others} {were} not used: at {} priority one channel is enough, and {} came first",
                words::priority(priority),
                words::channel(channel)
            ),
        })
    }

    pub(super) fn hints(&self) -> Vec<String> {
        let mut hints: Vec<String> = Vec::new();
        let mut reasons: Vec<(Reason, Option<Channel>, &Row)> = Vec::new();
        for row in self.own.iter().chain(&self.legs).chain(&self.deliveries) {
            let struck = struck(row).unwrap_or_default();
            reasons.extend(struck.into_iter().map(|(channel, reason)| (reason, Some(channel), *row)));
            let ends = row.states.iter().any(|state| {
                matches!(
                    state,
                    State::Suppressed
                        | State::Rejected
                        | State::Deduplicated
                        | State::Expired
                        | State::Failed
                        | State::Dlq
                )
            });
            if let (true, Some(reason)) = (ends, row.reason) {
                reasons.push((reason, row.channel, *row));
            }
        }
        reasons.extend(self.repeats.and(self.own.last()).map(|row| (Reason::Duplicate, None, *row)));
        let arrived = self.channels().iter().any(|channel| !channel.silent && channel.end.tone == Tone::Good);
        // Where the user was told, an address that is missing elsewhere made no difference.
        reasons.retain(|(reason, ..)| !(arrived && *reason == Reason::Unreachable));
        for (reason, channel, row) in reasons {
            let matter = Matter { channel, ..matter(row, None) };
            let switched = channel.filter(|_| reason == Reason::OptedOut).and_then(|channel| self.switch(channel, row));
            if let Some(hint) = switched.or_else(|| words::hint(reason, matter))
                && !hints.contains(&hint)
            {
                hints.push(hint);
            }
        }
        hints
    }

    /// Which of the user's switches is off, as the profile stands now.
    pub(super) fn switch(&self, channel: Channel, row: &Row) -> Option<String> {
        let profile = self.context.profile.as_ref()?;
        let off = |switches: Option<&BTreeMap<Channel, bool>>| switches.and_then(|of| of.get(&channel)) == Some(&false);
        let name = words::channel(channel);
        let what = if off(Some(&profile.channels)) {
            format!("{name} off altogether")
        } else if off(profile.types.get(&row.event_type)) {
            format!("{name} off for “{}”", words::spaced(&row.event_type))
        } else if off(profile.categories.get(&row.category)) {
            format!("{name} off for {} messages", words::spaced(&row.category))
        } else {
            return None;
        };
        Some(format!("The user switched {what}; switched on again, the next one can take it."))
    }
}
