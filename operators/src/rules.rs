//! What of the cut operators read beside events and profiles: policies and the calendar.
//!
//! Rules are immutable; a change is a new value, named by its hashes in a cut. So a replay reads
//! what the first run read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidings_schemas::channel::{Channel, ChannelSet, Priority};
use tidings_schemas::policy::{CategoryPolicy, Limits, Overflow, Policies, QuietRule, QuietRules, TypePolicy};

use smol_str::SmolStr;

use crate::calendar::Calendar;
use crate::when::ValueExpr;

/// Everything about one type, with defaults filled in.
#[derive(Clone, Debug)]
pub struct TypeRule {
    /// Its category.
    pub category: SmolStr,
    /// Its priority.
    pub priority: Priority,
    /// Its channels in order of preference, where the policy says.
    pub channels: Option<Vec<Channel>>,
    /// Channels to try when delivery fails for good.
    pub fallback: Vec<Channel>,
    /// What makes two events the same wish, where the policy says.
    pub dedup_key: Option<ValueExpr>,
    /// Whether user limits hold.
    pub limits: Limits,
    /// What happens beyond a limit, where the policy says.
    pub overflow: Option<Overflow>,
    /// Whether a producer may raise the priority.
    pub may_raise: bool,
    /// The template, where the policy says.
    pub template_id: Option<SmolStr>,
}

/// Rules by name. Every event asks for its own several times, and names differ in their first eight bytes,
/// nearly always: a word says more at once than a comparison of texts.
#[derive(Clone, Debug)]
struct Types(
    /// In order of the names, with their beginnings.
    Vec<(u64, Box<str>, Arc<TypeRule>)>,
);

impl Types {
    fn get(&self, name: &str) -> Option<&Arc<TypeRule>> {
        let word = beginning(name);
        let from = self.0.partition_point(|(other, ..)| *other < word);
        let alike = self.0.get(from..)?.iter().take_while(|(other, ..)| *other == word);
        alike.into_iter().find(|(_, other, _)| **other == *name).map(|(.., rule)| rule)
    }
}

/// The first eight bytes of a name, filled up with zeros, in the order in which names compare.
fn beginning(name: &str) -> u64 {
    match name.as_bytes().first_chunk() {
        Some(eight) => u64::from_be_bytes(*eight),
        None => name.bytes().chain(std::iter::repeat(0)).take(8).fold(0, |word, byte| word << 8 | u64::from(byte)),
    }
}

/// Policies and calendar of a cut.
#[derive(Clone, Debug)]
pub struct Rules {
    types: Types,
    default_type: Arc<TypeRule>,
    categories: BTreeMap<String, CategoryPolicy>,
    quiet: BTreeMap<Priority, QuietRules>,
    /// Channels that have a provider.
    pub provided: ChannelSet,
    /// The release at a quiet window's end is spread over this.
    pub spread: Duration,
    /// Local time.
    pub calendar: Calendar,
    /// Names policies, providers and tz data together; a change of it is a change of rules.
    pub hash: [u8; 32],
}

/// Why policies cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy of type `{event_type}`: {problem}")]
pub struct InvalidPolicy {
    /// The type.
    pub event_type: String,
    /// What is wrong, and the remedy.
    pub problem: String,
}

impl Rules {
    /// The rules of `policies`, with `provided` channels and `calendar`.
    ///
    /// # Errors
    /// When an expression of a type's policy does not compile.
    pub fn new(
        policies: &Policies,
        provided: ChannelSet,
        spread: Duration,
        calendar: Calendar,
    ) -> Result<Self, InvalidPolicy> {
        let fallback = TypePolicy::default();
        let default = policies.types.get("default").unwrap_or(&fallback);
        let types = policies
            .types
            .iter()
            .map(|(name, policy)| Ok((beginning(name), name.as_str().into(), Arc::new(rule(name, policy, default)?))));
        let types = Types(types.collect::<Result<_, _>>()?);
        let default_type = Arc::new(rule("default", default, default)?);
        let mut hasher = blake3_of(policies);
        hasher.update(&calendar.hash());
        hasher.update(&provided.iter().map(|channel| channel as u8).collect::<Vec<_>>());
        hasher.update(&spread.as_millis().to_le_bytes());
        let hash = *hasher.finalize().as_bytes();
        let (categories, quiet) = (policies.categories.clone(), policies.quiet_hours.clone());
        Ok(Self { types, default_type, categories, quiet, provided, spread, calendar, hash })
    }

    /// The rule of a type.
    #[must_use]
    pub fn of_type(&self, event_type: &str) -> &Arc<TypeRule> {
        self.types.get(event_type).unwrap_or(&self.default_type)
    }

    /// The policy of a category.
    #[must_use]
    pub fn of_category(&self, category: &str) -> Option<&CategoryPolicy> {
        self.categories.get(category)
    }

    /// What quiet hours do to `channel` at `priority`.
    #[must_use]
    pub fn quiet(&self, priority: Priority, channel: Channel) -> QuietRule {
        // The inbox disturbs nobody: where a rule speaks of all channels, it stays open, silently.
        match self.quiet.get(&priority) {
            None => QuietRule::Pass,
            Some(QuietRules::All(QuietRule::Pass)) => QuietRule::Pass,
            Some(QuietRules::All(_)) if channel == Channel::InApp => QuietRule::Silent,
            Some(QuietRules::All(rule)) => *rule,
            Some(QuietRules::ByChannel(rules)) => rules.get(&channel).copied().unwrap_or(QuietRule::Pass),
        }
    }

    /// What happens to an item of this type and priority beyond a limit.
    #[must_use]
    pub fn overflow(&self, event_type: &str, priority: Priority) -> Overflow {
        self.of_type(event_type).overflow.unwrap_or(match priority {
            Priority::Critical | Priority::High => Overflow::InApp,
            Priority::Medium | Priority::Low => Overflow::Merge,
        })
    }
}

fn blake3_of(policies: &Policies) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    // Maps of `Policies` are ordered, so that equal policies have equal bytes.
    hasher.update(&serde_json::to_vec(policies).unwrap_or_default());
    hasher
}

fn rule(name: &str, policy: &TypePolicy, default: &TypePolicy) -> Result<TypeRule, InvalidPolicy> {
    let dedup_key = match &policy.dedup_key {
        None => None,
        Some(text) => Some(crate::when::compile_value(text).map_err(|error| InvalidPolicy {
            event_type: name.to_owned(),
            problem: format!("`dedup_key`: {error}"),
        })?),
    };
    Ok(TypeRule {
        category: policy.category.as_deref().or(default.category.as_deref()).unwrap_or("other").into(),
        priority: policy.priority.or(default.priority).unwrap_or(Priority::Medium),
        channels: policy.channels.clone(),
        fallback: policy.fallback_channels.clone().unwrap_or_default(),
        dedup_key,
        limits: policy.limits,
        overflow: policy.overflow,
        may_raise: policy.may_raise,
        template_id: policy.template_id.as_deref().map(SmolStr::new),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_its_name_and_no_other() {
        let names = ["", "a", "ab", "abcdefgh", "abcdefghi", "abcdefghj", "b\0", "like", "new_follower", "new_follows"];
        let types =
            names.iter().map(|name| ((*name).to_owned(), TypePolicy { may_raise: true, ..TypePolicy::default() }));
        let policies = Policies { types: types.collect(), ..Policies::default() };
        let rules = Rules::new(&policies, ChannelSet::ALL, Duration::ZERO, Calendar::bundled()).unwrap();
        assert!(names.iter().all(|name| rules.of_type(name).may_raise));
        for name in ["abc", "abcdefg", "abcdefgh\0", "abcdefghijk", "b", "b\0\0", "lik", "zz"] {
            assert!(!rules.of_type(name).may_raise, "{name}");
        }
    }
}
