//! Policies: the built-in ones, and what the file says instead.

use std::collections::BTreeSet;

use tidings_operators::when;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::policy::{Policies, QuietRule, QuietRules, TypePolicy};

use super::super::decode::Lenient;
use super::super::diagnostic::{Code, Span, TopologyError, one_of};
use super::super::{defaults, raw};
use super::Check;
use tidings_operators::params::Step;

impl Check<'_> {
    pub(super) fn policies(&self, policies: Option<Lenient<raw::Policies>>) -> Policies {
        let mut all = defaults::policies();
        let Some(Lenient(Some(file))) = policies else { return all };
        for (name, Lenient(category)) in file.categories.into_iter().flat_map(|all| all.0) {
            self.name(&name, "a category");
            // What could not be read keeps its name, so that its users are not reported too.
            all.categories.insert(name.value, category.unwrap_or_default());
        }
        for (name, Lenient(policy)) in file.types.into_iter().flat_map(|all| all.0) {
            self.name(&name, "a type");
            if let Some(policy) = &policy {
                self.type_policy(&name.value, policy, &all);
            }
            all.types.insert(name.value, policy.unwrap_or_default());
        }
        for (priority, Lenient(rules)) in file.quiet_hours.into_iter().flat_map(|all| all.0) {
            let Some(rules) = rules else { continue };
            self.quiet_rules(priority.value, &rules);
            all.quiet_hours.insert(priority.value, rules);
        }
        all
    }

    fn type_policy(&self, name: &str, policy: &TypePolicy, all: &Policies) {
        let span = |key: &str| self.span(&["policies", "types", name, key]);
        if let Some(category) = &policy.category
            && !all.categories.contains_key(category)
        {
            let names = || all.categories.keys().map(String::as_str);
            let found = format!("no category is called `{category}`");
            let finding = TopologyError::new(Code::UnknownCategory, span("category"), found, one_of(names()));
            let hint = format!("a category of your own is one line: `{category}: {{}}` in `policies.categories`");
            self.report(finding.nearest(category, names()).hint(hint));
        }
        if let Some(key) = &policy.dedup_key
            && let Err(error) = when::compile_value(key)
            && let Some(node) = self.node(&["policies", "types", name, "dedup_key"])
        {
            self.expression(node, key, error);
        }
        for (key, channels) in [("channels", &policy.channels), ("fallback_channels", &policy.fallback_channels)] {
            let Some(channels) = channels else { continue };
            let mut seen = BTreeSet::new();
            if channels.is_empty() {
                let expected = "at least one, or no such key for the priority's default";
                self.report(TopologyError::new(Code::InvalidValue, span(key), "a list of no channels", expected));
            }
            for (index, channel) in channels.iter().enumerate().filter(|(_, channel)| !seen.insert(**channel)) {
                let path = ["policies", "types", name, key].map(|key| Step::Key(key.to_owned()));
                let path = [&path[..], &[Step::Index(index)]].concat();
                let at = self.document.span_at(self.document.root, &path);
                let found = format!("`{channel}` stands twice");
                self.report(TopologyError::new(Code::InvalidValue, at, found, "each channel once"));
            }
        }
    }

    fn quiet_rules(&self, priority: Priority, rules: &QuietRules) {
        let base = ["policies", "quiet_hours", priority.as_str()];
        let holds = match rules {
            QuietRules::All(rule) => *rule != QuietRule::Pass,
            QuietRules::ByChannel(map) => map.values().any(|rule| *rule != QuietRule::Pass),
        };
        if priority == Priority::Critical && holds {
            let found = "critical notifications would wait for the morning";
            let finding = TopologyError::new(Code::CriticalWaits, self.span(&base), found, "`pass`, or no such key");
            self.report(finding.hint("critical never waits; give what may wait the priority `high`"));
            return;
        }
        let silent: Vec<Span> = match rules {
            QuietRules::All(QuietRule::Silent) => vec![self.span(&base)],
            QuietRules::All(_) => Vec::new(),
            QuietRules::ByChannel(map) => map
                .iter()
                .filter(|(channel, rule)| **rule == QuietRule::Silent && **channel != Channel::InApp)
                .map(|(channel, _)| self.span(&[base[0], base[1], base[2], channel.as_str()]))
                .collect(),
        };
        for span in silent {
            let found = "only the in-app channel can be silent";
            self.report(TopologyError::new(Code::InvalidValue, span, found, "`pass`, `defer` or `in_app`"));
        }
    }
}
