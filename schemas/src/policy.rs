//! Policies as the operators use them: what a type is, who may raise it, which limits and which
//! quiet rules hold. Read from the topology, stored by hash, named in every cut.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::channel::{Channel, Priority};

/// Whether limits hold for a type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limits {
    /// They hold.
    #[default]
    Apply,
    /// They don't, and nothing is counted.
    Exempt,
}

/// What happens to what exceeds a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// Waits and merges into "N others"; leaves when budget frees. Strikes nothing.
    Merge,
    /// This leg ends; the in-app leg remains.
    InApp,
    /// Strikes the channel and goes on to the next candidate.
    Next,
    /// Waits unmerged.
    Defer,
    /// Ends.
    Drop,
}

/// What quiet hours do to one channel at one priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuietRule {
    /// Goes through.
    Pass,
    /// Waits for the window's end.
    Defer,
    /// This leg ends; only the in-app leg remains.
    InApp,
    /// Goes through without sound or badge (in-app only).
    Silent,
}

/// A quiet rule per priority: one for all channels, or per channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum QuietRules {
    /// One rule for every channel; in-app stays silent where the rule is to defer.
    All(QuietRule),
    /// By channel; a channel that is not named passes.
    ByChannel(BTreeMap<Channel, QuietRule>),
}

/// By hand, so that a wrong word is reported as such: serde's untagged enums only say that nothing fits.
impl<'de> Deserialize<'de> for QuietRules {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = QuietRules;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a rule like `defer`, or one per channel like `{ push: defer, in_app: silent }`")
            }
            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<QuietRules, E> {
                QuietRule::deserialize(serde::de::value::StrDeserializer::new(word)).map(QuietRules::All)
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<QuietRules, A::Error> {
                let mut rules = BTreeMap::new();
                while let Some((channel, rule)) = map.next_entry()? {
                    rules.insert(channel, rule);
                }
                Ok(QuietRules::ByChannel(rules))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What one type of event is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TypePolicy {
    /// Its category; the default type's where absent.
    #[serde(default)]
    pub category: Option<String>,
    /// Its priority; the default type's where absent.
    #[serde(default)]
    pub priority: Option<Priority>,
    /// Channels in order of preference; the priority's default where absent.
    #[serde(default)]
    pub channels: Option<Vec<Channel>>,
    /// Channels to try when delivery fails for good.
    #[serde(default)]
    pub fallback_channels: Option<Vec<Channel>>,
    /// An expression like `data.order_id` whose value makes two events the same wish.
    #[serde(default)]
    pub dedup_key: Option<String>,
    /// Whether user limits hold.
    #[serde(default)]
    pub limits: Limits,
    /// What happens to what exceeds a limit; by priority where absent.
    #[serde(default)]
    pub overflow: Option<Overflow>,
    /// Whether a producer may raise the priority above the type's.
    #[serde(default)]
    pub may_raise: bool,
    /// The template; the type's name where absent.
    #[serde(default)]
    pub template_id: Option<String>,
}

/// What a category may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CategoryPolicy {
    /// Passes a user's category and type switches (never a legal stop, a channel switched off or an
    /// address that isn't there).
    #[serde(default)]
    pub passes_opt_out: bool,
    /// Channels that need a recorded consent.
    #[serde(default)]
    pub needs_consent: Vec<Channel>,
    /// Channels that this category must not use at critical priority unless named here; the seeds
    /// allow SMS for security only.
    #[serde(default)]
    pub sms_when_critical: bool,
}

/// All policies of a topology.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// By type; `default` for the rest.
    #[serde(default)]
    pub types: BTreeMap<String, TypePolicy>,
    /// By category.
    #[serde(default)]
    pub categories: BTreeMap<String, CategoryPolicy>,
    /// By priority.
    #[serde(default)]
    pub quiet_hours: BTreeMap<Priority, QuietRules>,
}
