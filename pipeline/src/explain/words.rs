//! Every state and every reason in words that a support person understands. Exhaustive matches: a
//! state or reason that is added to the vocabulary does not compile until it has its sentence.

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::lifecycle::{State, Unit};
use tidings_schemas::reason::Reason;

/// What a sentence is about.
#[derive(Clone, Copy, Debug)]
pub struct Matter<'a> {
    /// What it happened to.
    pub unit: Unit,
    /// On which channel, where one is known.
    pub channel: Option<Channel>,
    /// The category, empty if not known.
    pub category: &'a str,
    /// Who carries it, empty if not known.
    pub provider: &'a str,
    /// Until when, as local time.
    pub until: Option<&'a str>,
}

/// One sentence: what happened and why, without any of the record's own words.
#[must_use]
pub fn sentence(state: State, reason: Option<Reason>, matter: Matter<'_>) -> String {
    let what = what(state, matter);
    match reason.filter(|reason| !says_it_already(state, *reason)) {
        None => format!("{what}."),
        Some(reason) => format!("{what}: {}.", why(reason, matter)),
    }
}

/// A channel as people call it.
#[must_use]
pub const fn channel(channel: Channel) -> &'static str {
    match channel {
        Channel::Push => "push",
        Channel::Email => "e-mail",
        Channel::Sms => "text message",
        Channel::InApp => "the inbox in the app",
        Channel::Webhook => "webhook",
    }
}

/// The channel as the way something takes: `by push`, `in the app's inbox`.
#[must_use]
pub const fn by(channel: Channel) -> &'static str {
    match channel {
        Channel::Push => "by push",
        Channel::Email => "by e-mail",
        Channel::Sms => "by text message",
        Channel::InApp => "in the app's inbox",
        Channel::Webhook => "by webhook",
    }
}

/// A provider as people call it.
#[must_use]
pub fn provider(name: &str) -> &str {
    match name {
        "" => "the provider",
        "apns" | "apns_sandbox" => "Apple's APNs",
        "fcm" => "Google's FCM",
        "ses" => "Amazon SES",
        "telnyx" => "Telnyx",
        "twilio" => "Twilio",
        "inbox" => "the app's inbox",
        other => other,
    }
}

/// A priority as part of a sentence.
#[must_use]
pub const fn priority(priority: Priority) -> &'static str {
    match priority {
        Priority::Critical => "critical",
        Priority::High => "high",
        Priority::Medium => "medium",
        Priority::Low => "low",
    }
}

/// What happened, without a full stop.
fn what(state: State, matter: Matter<'_>) -> String {
    let by = matter.channel.map_or(String::new(), |channel| format!(" {}", by(channel)));
    let until = matter.until.map_or(String::new(), |until| format!(" until {until}"));
    let provider = provider(matter.provider);
    match state {
        State::Created => match matter.unit {
            Unit::Event => "The event was accepted".to_owned(),
            Unit::Leg => format!("A notification{by} was formed"),
            Unit::Delivery => format!("A message{by} to one address was prepared"),
        },
        State::Validated => "The event is complete and well formed".to_owned(),
        State::Rejected => "The record was refused and put among the dead letters".to_owned(),
        State::Deduplicated => "It was left out, because it repeats an earlier event".to_owned(),
        State::Scheduled => format!("It waits{until}, as its producer asked"),
        State::Cancelled => "Its producer cancelled it".to_owned(),
        State::Retracted => "It was taken back by whoever did it".to_owned(),
        State::PreferenceChecked => "The user's preferences were looked up".to_owned(),
        State::Suppressed => format!("It is not sent{by}"),
        State::Merged => "It is told together with others".to_owned(),
        State::Parked => match matter.unit {
            Unit::Event => format!("It waits{until} for others like it, to be told together"),
            Unit::Leg | Unit::Delivery => format!("It waits{until}"),
        },
        State::Deferred => format!("It is not sent{by} at once, and waits{until}"),
        State::RateLimited => format!("It is not sent{by} at once, and waits{until} for room"),
        State::Digested => "It was put into the user's digest".to_owned(),
        State::Returned => format!("It came back without having been sent{by}, to be judged anew"),
        State::Rendered => "Its text was made".to_owned(),
        State::Queued => format!("It was handed over to be sent{by}"),
        State::Sent => format!("It was given to {provider}"),
        State::Delivered => arrived(matter.channel, provider),
        State::Failed => format!("It could not be delivered{by}"),
        State::Retry => format!("{} did not take it, and it is tried again", capital(provider)),
        State::Unknown => "Whether it arrived is not known; it may have arrived twice".to_owned(),
        State::Dlq => "It was put among the dead letters, from where it can be sent again".to_owned(),
        State::Expired => "It came too late to be worth telling".to_owned(),
        State::Escalated => format!("Nobody confirmed it, and it went on to the next channel{by}"),
        State::FailedOver => "Another way was taken instead".to_owned(),
        State::Bounced => "The mail came back".to_owned(),
        State::Complained => "The person complained about it".to_owned(),
        State::Opened => "The person opened it".to_owned(),
        State::Clicked => "The person followed it".to_owned(),
        State::Dismissed => "The person put it away".to_owned(),
        State::Unsubscribed => "The person opted out through it".to_owned(),
        State::Lost => "It was given up".to_owned(),
        State::Closed => "The record of this moment is complete".to_owned(),
    }
}

fn arrived(channel: Option<Channel>, provider: &str) -> String {
    match channel {
        Some(Channel::Push) | None => format!("{} accepted it", capital(provider)),
        Some(Channel::Email) => "The mail was delivered".to_owned(),
        Some(Channel::Sms) => "The text message was delivered".to_owned(),
        Some(Channel::InApp) => "It lies in the app's inbox".to_owned(),
        Some(Channel::Webhook) => "The user's endpoint took it".to_owned(),
    }
}

/// Why, as a clause.
#[must_use]
pub fn why(reason: Reason, matter: Matter<'_>) -> String {
    let on = matter.channel.map_or("this channel", channel);
    let messages = if matter.category.is_empty() { "such".to_owned() } else { spaced(matter.category) };
    let until = matter.until.map_or(String::new(), |until| format!(" until {until}"));
    match reason {
        Reason::OptedOut => match matter.channel {
            Some(channel) => format!("the user does not want {messages} messages {}", by(channel)),
            None => format!("the user does not want {messages} messages"),
        },
        Reason::LegalStop => format!("a legal stop (a STOP reply or a complaint) stands against {on}"),
        Reason::NoConsent => {
            format!("{messages} messages over {on} need the user's recorded consent, and there is none")
        }
        Reason::Unreachable => match matter.channel {
            Some(Channel::Push) => "the user has no device that takes push".to_owned(),
            Some(Channel::Email) => "no e-mail address of the user is known".to_owned(),
            Some(Channel::Sms) => "no phone number of the user is known".to_owned(),
            Some(Channel::InApp | Channel::Webhook) | None => format!("the user has no live address for {on}"),
        },
        Reason::NoProvider => format!("nobody carries {on} here"),
        Reason::QuietHours => format!("it is quiet for the user{until}"),
        Reason::RateLimited => match matter.channel {
            Some(channel) => format!("the user has had as much {} as the limits allow", by(channel)),
            None => "the user has had as much as the limits allow".to_owned(),
        },
        Reason::Policy => format!("{on} is not used for messages of this priority"),
        Reason::Expired => "the time up to which it was worth telling had passed".to_owned(),
        Reason::NothingToRetract => "there was nothing left that could be taken back".to_owned(),
        Reason::NothingToCancel => "there was nothing left that could be cancelled".to_owned(),
        Reason::Retracted => "whoever did it took it back".to_owned(),
        Reason::Cancelled => "its producer cancelled it".to_owned(),
        Reason::Duplicate => "the same wish was met before".to_owned(),
        Reason::Merged => "it became part of one notification about several events".to_owned(),
        Reason::InvalidJson => "it is not JSON".to_owned(),
        Reason::InvalidEvent => "it does not have the shape of an event".to_owned(),
        Reason::TooLarge => "it is larger than a record may be".to_owned(),
        Reason::Panicked => "it made the program fail, and was set aside so that the rest goes on".to_owned(),
        Reason::NoTemplate => format!("there is no text template for it on {on}"),
        Reason::NoLocale => "there is no text in the user's language".to_owned(),
        Reason::RenderFailed => "its text could not be made from the template".to_owned(),
        Reason::Stale => "it had waited so long that the decision had to be taken again".to_owned(),
        Reason::Undeliverable => format!("none of the user's addresses for {on} took it"),
        Reason::InvalidAddress => "the provider says that the address no longer exists".to_owned(),
        Reason::Refused => "the provider refuses this message for good".to_owned(),
        Reason::AttemptsExhausted => "the last of several attempts failed".to_owned(),
        Reason::LeaseExpired => "whoever was sending it stopped in the middle, and another took over".to_owned(),
        Reason::LedgerUnreachable => {
            "the book of what was sent could not be reached, and it was too important to wait".to_owned()
        }
        Reason::AcceptedLoss => {
            "what held it was taken out of the topology, and its state dropped by an operator's word".to_owned()
        }
    }
}

/// What would have made the difference; `None` where nothing obvious would.
#[must_use]
pub fn hint(reason: Reason, matter: Matter<'_>) -> Option<String> {
    let on = matter.channel.map_or("this channel", channel);
    let text = match reason {
        Reason::OptedOut => format!("If the user switches {on} on again, the next one can take it."),
        Reason::LegalStop => {
            format!("Only the user can lift the stop on {on} (by a START reply or in the preferences).")
        }
        Reason::NoConsent => format!("With a recorded consent for {on}, the next one can take it."),
        Reason::Unreachable => match matter.channel {
            Some(Channel::Push) => "Once the app registers a device, push is possible again.".to_owned(),
            Some(_) | None => format!("Once an address for {on} is known, it is possible again."),
        },
        Reason::NoProvider => format!("The topology names no provider for {on}; add one below `sinks`."),
        Reason::QuietHours => "Outside the quiet hours it would have gone out at once.".to_owned(),
        Reason::RateLimited => "Later, or with a higher limit, it would have gone out.".to_owned(),
        Reason::Policy => "A type's `channels` in the topology would allow it.".to_owned(),
        Reason::Expired => "A later `expires_at` would have let it through.".to_owned(),
        Reason::NothingToRetract | Reason::NothingToCancel => {
            "Had it come before the notification was sent, it would have stopped it.".to_owned()
        }
        Reason::Duplicate => "With an id (or deduplication key) of its own it would have counted as news.".to_owned(),
        Reason::InvalidJson | Reason::InvalidEvent | Reason::TooLarge => {
            "The producer can correct the record and send it again; the dead letters keep its bytes.".to_owned()
        }
        Reason::NoTemplate | Reason::NoLocale | Reason::RenderFailed => {
            "With a template that fits, it can be sent again from the dead letters.".to_owned()
        }
        Reason::Undeliverable | Reason::InvalidAddress => {
            format!("A new address for {on}, or a fallback channel, would have reached the user.")
        }
        Reason::Refused | Reason::AttemptsExhausted | Reason::Panicked => {
            "It can be sent again from the dead letters.".to_owned()
        }
        Reason::Retracted
        | Reason::Cancelled
        | Reason::Merged
        | Reason::Stale
        | Reason::LeaseExpired
        | Reason::LedgerUnreachable
        | Reason::AcceptedLoss => return None,
    };
    Some(text)
}

/// Where the reason repeats what the state has said.
fn says_it_already(state: State, reason: Reason) -> bool {
    matches!(
        (state, reason),
        (State::Deduplicated, Reason::Duplicate)
            | (State::Merged, Reason::Merged)
            | (State::Retracted, Reason::Retracted)
            | (State::Cancelled, Reason::Cancelled)
            | (State::Expired, Reason::Expired)
            | (State::Returned | State::Queued | State::Sent | State::Delivered, Reason::Stale)
    )
}

/// A word of the record's as people write it.
#[must_use]
pub fn spaced(word: &str) -> String {
    word.replace('_', " ")
}

/// With a capital first letter.
#[must_use]
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// `Alice`, `Alice and Bob`, `Alice, Bob and Carol`.
#[must_use]
pub fn list(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_reason_makes_a_sentence_without_names_of_the_code() {
        let units = [Unit::Event, Unit::Leg, Unit::Delivery];
        let channels: Vec<_> = Channel::ALL.iter().copied().map(Some).chain([None]).collect();
        let mut told = std::collections::BTreeSet::new();
        for state in State::ALL {
            for reason in Reason::ALL.iter().copied().map(Some).chain([None]) {
                for unit in units {
                    for channel in &channels {
                        let matter = Matter {
                            unit,
                            channel: *channel,
                            category: "order_updates",
                            provider: "apns",
                            until: Some("07:00"),
                        };
                        let text = sentence(*state, reason, matter);
                        assert!(text.ends_with('.') && !text.contains(".."), "{text}");
                        assert!(text.starts_with(|c: char| c.is_uppercase()), "{text}");
                        assert!(!text.contains('_') && !text.contains("  ") && !text.contains("::"), "{text}");
                        for debug in [format!("{state:?}("), format!("{reason:?}"), "None".into(), "Some".into()] {
                            assert!(!text.contains(&debug), "{text}");
                        }
                        told.insert((*state, reason, text));
                    }
                }
                if let Some(reason) = reason {
                    let matter = Matter { unit: Unit::Leg, channel: None, category: "", provider: "", until: None };
                    let hint = hint(reason, matter).unwrap_or_default();
                    assert!(!hint.contains("  ") && hint.is_empty() == hint.trim().is_empty(), "{hint}");
                }
            }
        }
        // No state borrows another's words.
        let plain: std::collections::BTreeSet<_> =
            told.iter().filter(|(_, reason, _)| reason.is_none()).map(|(state, _, text)| (text, state)).collect();
        let texts: std::collections::BTreeSet<_> = plain.iter().map(|(text, _)| text).collect();
        assert_eq!(texts.len(), plain.len());
    }

    #[test]
    fn reasons_are_told_apart() {
        let matter =
            Matter { unit: Unit::Leg, channel: Some(Channel::Push), category: "social", provider: "", until: None };
        let clauses: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| why(*reason, matter)).collect();
        assert_eq!(clauses.len(), Reason::ALL.len());
    }
}
