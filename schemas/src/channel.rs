//! Channels, priorities and operations: the closed vocabularies of the system.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a word is not in a closed vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} `{found}`, expected one of {expected}")]
pub struct UnknownWord {
    /// The vocabulary.
    pub what: &'static str,
    /// The word.
    pub found: String,
    /// The words that would do.
    pub expected: String,
}

macro_rules! vocabulary {
    ($(#[$doc:meta])* $name:ident, $what:literal, { $($(#[$vdoc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its word in YAML, JSON, topics and tables.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|word| word.as_str() == text).ok_or_else(|| UnknownWord {
                    what: $what,
                    found: text.to_owned(),
                    expected: Self::ALL.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}
pub(crate) use vocabulary;

vocabulary!(
    /// How a person is reached. The order is stable: it is written in checkpoints.
    Channel, "channel", {
        /// A device notification: APNs, FCM, Web Push behind it.
        Push = "push",
        /// E-mail.
        Email = "email",
        /// A text message.
        Sms = "sms",
        /// The inbox in the app; needs no address.
        InApp = "in_app",
        /// A call to the user's own endpoint.
        Webhook = "webhook",
    }
);

vocabulary!(
    /// How urgent; P0 to P3. Smaller is more urgent.
    Priority, "priority", {
        /// P0: never waits, passes nothing that could hold it.
        Critical = "critical",
        /// P1: at once, but respects quiet hours.
        High = "high",
        /// P2: may be merged and limited.
        Medium = "medium",
        /// P3: may wait for the morning.
        Low = "low",
    }
);

vocabulary!(
    /// What a record asks for.
    Op, "op", {
        /// Tell the user.
        Notify = "notify",
        /// Take an actor out again (unlike).
        Retract = "retract",
        /// Take a whole notification back before it is said.
        Cancel = "cancel",
    }
);

/// A set of channels, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChannelSet(u8);

impl ChannelSet {
    /// Every channel.
    pub const ALL: Self = Self((1 << Channel::ALL.len()) - 1);

    /// Whether `channel` is in the set.
    #[must_use]
    pub const fn contains(self, channel: Channel) -> bool {
        self.0 & (1 << channel as u8) != 0
    }

    /// Adds `channel`.
    pub const fn insert(&mut self, channel: Channel) {
        self.0 |= 1 << channel as u8;
    }

    /// Takes `channel` out.
    pub const fn remove(&mut self, channel: Channel) {
        self.0 &= !(1 << channel as u8);
    }

    /// The channels in the set, in their stable order.
    pub fn iter(self) -> impl Iterator<Item = Channel> {
        Channel::ALL.iter().copied().filter(move |channel| self.contains(*channel))
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Channel> for ChannelSet {
    fn from_iter<I: IntoIterator<Item = Channel>>(channels: I) -> Self {
        let mut set = Self::default();
        channels.into_iter().for_each(|channel| set.insert(channel));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_json_agree() {
        for channel in Channel::ALL {
            assert_eq!(serde_json::to_string(channel).unwrap(), format!("\"{channel}\""));
            assert_eq!(channel.as_str().parse(), Ok(*channel));
        }
        let error = "puhs".parse::<Channel>().unwrap_err().to_string();
        assert_eq!(error, "unknown channel `puhs`, expected one of push, email, sms, in_app, webhook");
    }

    #[test]
    fn a_set_keeps_the_stable_order() {
        let set: ChannelSet = [Channel::InApp, Channel::Push].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [Channel::Push, Channel::InApp]);
    }
}
