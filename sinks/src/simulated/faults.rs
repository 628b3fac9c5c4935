//! Scripted misbehaviour: rules that count requests, so that a script does the same on every run.
//!
//! A rule looks at the requests that match its provider and address and strikes at every `every`-th
//! of them, after the first `after`, at most `times` times. Rules are asked in order; the first that
//! strikes wins, those behind it don't count that request.

use serde::{Deserialize, Serialize};
use tidings_schemas::time::Instant;

/// What the simulated providers do wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Faults {
    /// Every answer takes this long, in milliseconds.
    #[serde(default)]
    pub latency_ms: u64,
    /// The rules, in order.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// When a fault strikes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Only requests to `apns`, `apns_sandbox`, `fcm`, `fcm_token`, `ses`, `telnyx` or `twilio`; all where absent.
    #[serde(default)]
    pub provider: Option<String>,
    /// Only requests for this device token, e-mail address or phone number; all where absent.
    #[serde(default)]
    pub address: Option<String>,
    /// Strikes at every so many-th matching request; 0 never does.
    #[serde(default = "one")]
    pub every: u64,
    /// Lets this many matching requests pass first.
    #[serde(default)]
    pub after: u64,
    /// Strikes at most so many times; without end where absent.
    #[serde(default)]
    pub times: Option<u64>,
    /// What goes wrong.
    pub fault: Fault,
}

const fn one() -> u64 {
    1
}

impl Rule {
    /// `fault` at every request to `provider`.
    #[must_use]
    pub fn always(provider: &str, fault: Fault) -> Self {
        Self { provider: Some(provider.to_owned()), address: None, every: 1, after: 0, times: None, fault }
    }

    /// The same, for `address` alone.
    #[must_use]
    pub fn at(mut self, address: &str) -> Self {
        self.address = Some(address.to_owned());
        self
    }

    /// The same, at most `times` times.
    #[must_use]
    pub const fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// The same, at every `every`-th request only.
    #[must_use]
    pub const fn every(mut self, every: u64) -> Self {
        self.every = every;
        self
    }
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Accepts, and answers after this long.
    Slow {
        /// In milliseconds.
        ms: u64,
    },
    /// Accepts, counts, and never answers: the caller times out after the message was sent.
    NoAnswer,
    /// Accepts, counts, and tears the connection: everything else on it is torn too.
    Reset,
    /// Accepts, answers, and retires the connection (GOAWAY): what runs on it ends well, what comes
    /// next needs another. The real ones do so every hour.
    GoAway,
    /// Refuses the stream: certainly not accepted.
    Refuse,
    /// 429 in the provider's own words.
    TooManyRequests {
        /// `Retry-After`, seconds or a date, sent as it stands here.
        #[serde(default)]
        retry_after: Option<String>,
    },
    /// A 5xx in the provider's own words.
    ServerError {
        /// The status.
        status: u16,
    },
    /// The address is dead.
    InvalidAddress {
        /// Since when the provider knows (APNs); now where absent.
        #[serde(default)]
        since: Option<Instant>,
    },
    /// Any answer, in the provider's own shape.
    Answer {
        /// The status.
        status: u16,
        /// APNs: the reason. FCM: the error code. SES: the error type, or with 200 an entry's status.
        reason: String,
    },
}

/// The rules and what they have counted.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) faults: Faults,
    seen: Vec<(u64, u64)>,
}

impl Script {
    pub(super) fn new(faults: Faults) -> Self {
        Self { seen: vec![(0, 0); faults.rules.len()], faults }
    }

    /// What goes wrong at `provider`: with a request as a whole (rules that name no address), with
    /// what it wants for `address` (rules that name it), or with both at once.
    pub(super) fn strike(&mut self, provider: &str, address: Option<&str>, whole: bool) -> Option<Fault> {
        for (rule, (seen, struck)) in self.faults.rules.iter().zip(&mut self.seen) {
            let matches = rule.provider.as_deref().is_none_or(|wanted| wanted == provider)
                && rule.address.as_deref().map_or(whole, |wanted| Some(wanted) == address);
            if !matches || rule.every == 0 {
                continue;
            }
            *seen += 1;
            let due = *seen > rule.after && (*seen - rule.after) % rule.every == 0;
            if due && rule.times.is_none_or(|times| *struck < times) {
                *struck += 1;
                return Some(rule.fault.clone());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strikes(rule: Rule, requests: u64) -> Vec<u64> {
        let mut script = Script::new(Faults { latency_ms: 0, rules: vec![rule] });
        (1..=requests).filter(|_| script.strike("apns", Some("a"), true).is_some()).collect()
    }

    #[test]
    fn a_rule_counts_and_strikes_at_the_same_requests_on_every_run() {
        let rule = Rule::always("apns", Fault::Refuse);
        assert_eq!(strikes(rule.clone(), 3), [1, 2, 3]);
        assert_eq!(strikes(rule.clone().every(3), 10), [3, 6, 9]);
        assert_eq!(strikes(rule.clone().every(2).times(2), 10), [2, 4]);
        assert_eq!(strikes(Rule { after: 4, ..rule.clone() }, 6), [5, 6]);
        assert_eq!(strikes(rule.clone().at("b"), 6), [0; 0]);
        assert_eq!(strikes(Rule { provider: Some("fcm".to_owned()), ..rule }, 6), [0; 0]);
    }

    #[test]
    fn a_script_is_json_that_a_person_writes() {
        let json =
            r#"{"rules":[{"provider":"fcm","every":10,"fault":{"kind":"too_many_requests","retry_after":"7"}}]}"#;
        let faults: Faults = serde_json::from_str(json).unwrap();
        assert_eq!(faults.rules[0].fault, Fault::TooManyRequests { retry_after: Some("7".to_owned()) });
        let error = serde_json::from_str::<Faults>(r#"{"rules":[{"fault":{"kind":"explode"}}]}"#).unwrap_err();
        assert!(error.to_string().contains("unknown variant `explode`, expected one of `slow`"), "{error}");
    }
}
