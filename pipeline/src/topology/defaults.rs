//! The policies that hold where a topology says nothing: the seeds' table of types and the design's
//! categories and quiet hours. A topology overrides them entry by entry.
//!
//! | seed 002 | here |
//! |---|---|
//! | `high`: codes, alerts, resets, failed payments | `critical`, exempt from limits (seed 002 lets them "bypass rate limits") |
//! | `medium`, about the user's own business: messages, orders | `high` |
//! | `medium`, social: followers, replies | `medium` |
//! | `low`: campaigns, digests, recommendations | `low` |
//! | anything else → `medium` | `default` |

use std::collections::BTreeMap;

use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::policy::{CategoryPolicy, Limits, Policies, QuietRule, QuietRules, TypePolicy};

/// Type, category, priority, limits, as seed 002's `PRIORITY_MAP` and exempt list say them.
const TYPES: [(&str, &str, Priority, Limits); 12] = [
    ("verification_code", "security", Priority::Critical, Limits::Exempt),
    ("security_alert", "security", Priority::Critical, Limits::Exempt),
    ("password_reset", "security", Priority::Critical, Limits::Exempt),
    ("payment_failed", "transactional", Priority::Critical, Limits::Exempt),
    ("new_message", "social", Priority::High, Limits::Apply),
    ("order_shipped", "transactional", Priority::High, Limits::Apply),
    ("new_follower", "social", Priority::Medium, Limits::Apply),
    ("comment_reply", "social", Priority::Medium, Limits::Apply),
    ("marketing_campaign", "marketing", Priority::Low, Limits::Apply),
    ("weekly_digest", "digest", Priority::Low, Limits::Apply),
    ("recommendation", "marketing", Priority::Low, Limits::Apply),
    ("default", "other", Priority::Medium, Limits::Apply),
];

/// The built-in policies.
#[must_use]
pub fn policies() -> Policies {
    let types = TYPES.iter().map(|(name, category, priority, limits)| {
        let policy = TypePolicy {
            category: Some((*category).to_owned()),
            priority: Some(*priority),
            limits: *limits,
            ..TypePolicy::default()
        };
        ((*name).to_owned(), policy)
    });
    let category = |passes_opt_out, needs_consent: &[Channel], sms_when_critical| CategoryPolicy {
        passes_opt_out,
        needs_consent: needs_consent.to_vec(),
        sms_when_critical,
    };
    let categories = [
        ("security", category(true, &[], true)),
        ("transactional", category(true, &[], false)),
        ("social", category(false, &[], false)),
        ("marketing", category(false, &[Channel::Sms], false)),
        ("digest", category(false, &[], false)),
        ("other", category(false, &[], false)),
    ];
    // A webhook wakes nobody: what is not named passes.
    let night = [
        (Channel::Push, QuietRule::Defer),
        (Channel::Sms, QuietRule::Defer),
        (Channel::Email, QuietRule::Defer),
        (Channel::InApp, QuietRule::Silent),
    ];
    Policies {
        types: types.collect(),
        categories: categories.into_iter().map(|(name, policy)| (name.to_owned(), policy)).collect(),
        quiet_hours: BTreeMap::from([
            (Priority::High, QuietRules::All(QuietRule::InApp)),
            (Priority::Medium, QuietRules::ByChannel(night.into())),
            (Priority::Low, QuietRules::All(QuietRule::Defer)),
        ]),
    }
}
