//! What of the cut operators read beside events and profiles: policies and the calendar.
//!
//! Rules are immutable; a change is a new value, named by its hashes in a cut. So a replay reads
//! what the first run read.

use std::sync::Arc;
use std::time::Duration;

use tidings_schemas::channel::{Channel, ChannelSet, Priority};
use tidings_schemas::policy::{CategoryPolicy, Limits, Overflow, Policies, QuietRule, QuietRules, TypePolicy};

use hashbrown::HashTable;
use smol_str::SmolStr;
use xxhash_rust::xxh3::xxh3_64;

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

/// Values by name. They are asked for several times for each event: so by the name's hash, and not by comparing it
/// with one after the other.
#[derive(Clone, Debug)]
struct Named<T>(HashTable<(Box<str>, T)>);

impl<T> Named<T> {
    fn get(&self, name: &str) -> Option<&T> {
        self.0.find(xxh3_64(name.as_bytes()), |(other, _)| **other == *name).map(|(_, value)| value)
    }
}

/// Names are different ones.
impl<'a, T> FromIterator<(&'a String, T)> for Named<T> {
    fn from_iter<I: IntoIterator<Item = (&'a String, T)>>(values: I) -> Self {
        let (mut named, hash) = (HashTable::new(), |(name, _): &(Box<str>, T)| xxh3_64(name.as_bytes()));
        for (name, value) in values {
            named.insert_unique(xxh3_64(name.as_bytes()), (name.as_str().into(), value), hash);
        }
        Self(named)
    }
}

/// Policies and calendar of a cut.
#[derive(Clone, Debug)]
pub struct Rules {
    types: Named<Arc<TypeRule>>,
    default_type: Arc<TypeRule>,
    categories: Named<CategoryPolicy>,
    /// By priority and channel.
    quiet: [[QuietRule; Channel::ALL.len()]; Priority::ALL.len()],
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
        let rules = policies.types.iter().map(|(name, policy)| Ok((name, Arc::new(rule(name, policy, default)?))));
        let types = rules.collect::<Result<_, InvalidPolicy>>()?;
        let default_type = Arc::new(rule("default", default, default)?);
        let mut hasher = blake3_of(policies);
        hasher.update(&calendar.hash());
        hasher.update(&provided.iter().map(|channel| channel as u8).collect::<Vec<_>>());
        hasher.update(&spread.as_millis().to_le_bytes());
        let hash = *hasher.finalize().as_bytes();
        let categories = policies.categories.iter().map(|(name, policy)| (name, policy.clone())).collect();
        let mut quiet = [[QuietRule::Pass; Channel::ALL.len()]; Priority::ALL.len()];
        for (priority, rules) in &policies.quiet_hours {
            Channel::ALL
                .iter()
                .for_each(|channel| quiet[*priority as usize][*channel as usize] = quiet_rule(rules, *channel));
        }
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
    pub const fn quiet(&self, priority: Priority, channel: Channel) -> QuietRule {
        self.quiet[priority as usize][channel as usize]
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

/// What a priority's quiet rules say of one channel.
fn quiet_rule(rules: &QuietRules, channel: Channel) -> QuietRule {
    match rules {
        QuietRules::All(QuietRule::Pass) => QuietRule::Pass,
        // The inbox disturbs nobody: where a rule speaks of all channels, it stays open, silently.
        QuietRules::All(_) if channel == Channel::InApp => QuietRule::Silent,
        QuietRules::All(rule) => *rule,
        QuietRules::ByChannel(rules) => rules.get(&channel).copied().unwrap_or(QuietRule::Pass),
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
