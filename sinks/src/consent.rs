//! The last word before a call: whether the user still wants this, by the newest profile.
//!
//! Decide asked the same when it formed the leg; what changed while it waited in a lane is caught here.
//! Precedence: legal stop > channel off > type × channel > category × channel. Critical messages
//! and categories whose policy says so pass the last two, nothing passes the first two.

use std::collections::BTreeMap;

use tidings_schemas::channel::Priority;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::policy::CategoryPolicy;
use tidings_schemas::profile::Profile;
use tidings_schemas::reason::Reason;

/// Why `record` must not be sent to the owner of `profile`, if so.
#[must_use]
pub fn objection(
    record: &LaneRecord,
    profile: &Profile,
    categories: &BTreeMap<String, CategoryPolicy>,
) -> Option<Reason> {
    let channel = record.channel;
    if profile.stops.iter().any(|stop| stop.channel == channel) {
        return Some(Reason::LegalStop);
    }
    if profile.channels.get(&channel) == Some(&false) {
        return Some(Reason::OptedOut);
    }
    let policy = categories.get(&record.category);
    if record.priority == Priority::Critical || policy.is_some_and(|policy| policy.passes_opt_out) {
        return None;
    }
    let by_type = profile.types.get(&record.event_type).and_then(|switches| switches.get(&channel));
    let by_category = profile.categories.get(&record.category).and_then(|switches| switches.get(&channel));
    if by_type.or(by_category) == Some(&false) {
        return Some(Reason::OptedOut);
    }
    let needed = policy.is_some_and(|policy| policy.needs_consent.contains(&channel));
    let given =
        |consent: &tidings_schemas::profile::Consent| consent.channel == channel && consent.category == record.category;
    (needed && !profile.consents.iter().any(given)).then_some(Reason::NoConsent)
}

#[cfg(test)]
mod tests {
    use tidings_schemas::channel::Channel;

    use super::*;
    use crate::lane::samples;

    #[test]
    fn precedence_case_by_case() {
        use Priority::{Critical, Medium};
        let stop = r#"{"stops":[{"channel":"sms","source":"STOP","at":"2026-01-03T00:00:00Z"}]}"#;
        let consent =
            r#"{"consents":[{"channel":"sms","category":"marketing","source":"form","at":"2026-01-03T00:00:00Z"}]}"#;
        let cases = [
            ("{}", Medium, "social", None),
            (stop, Critical, "security", Some(Reason::LegalStop)),
            (r#"{"channels":{"sms":false}}"#, Critical, "security", Some(Reason::OptedOut)),
            (r#"{"channels":{"push":false}}"#, Medium, "social", None),
            (r#"{"categories":{"social":{"sms":false}}}"#, Medium, "social", Some(Reason::OptedOut)),
            (r#"{"categories":{"social":{"sms":false}}}"#, Critical, "social", None),
            (r#"{"categories":{"security":{"sms":false}}}"#, Medium, "security", None),
            (r#"{"categories":{"social":{"sms":false}},"types":{"like":{"sms":true}}}"#, Medium, "social", None),
            (r#"{"types":{"like":{"sms":false}}}"#, Medium, "social", Some(Reason::OptedOut)),
            ("{}", Medium, "marketing", Some(Reason::NoConsent)),
            (consent, Medium, "marketing", None),
        ];
        let categories = BTreeMap::from([
            ("security".to_owned(), CategoryPolicy { passes_opt_out: true, ..CategoryPolicy::default() }),
            ("marketing".to_owned(), CategoryPolicy { needs_consent: vec![Channel::Sms], ..CategoryPolicy::default() }),
        ]);
        for (profile, priority, category, expected) in cases {
            let record = LaneRecord { category: category.to_owned(), ..samples::leg(Channel::Sms, priority) };
            let profile = Profile::from_json(Some(profile.as_bytes())).unwrap();
            assert_eq!(objection(&record, &profile, &categories), expected, "{profile:?} {priority} {category}");
        }
    }
}
