//! What came of one provider call. Data, never an `Err`: nothing else leaves an adapter.
//!
//! An outcome says what to *do* next; beside it stands the provider's own [`Code`], word for word,
//! for the record and for people. Which answer means which outcome is a table in each provider's
//! file. [`MassInvalidationGuard`] stands behind every adapter: thousands of dead devices at once
//! are a wrong key or project far more often than thousands of dead devices.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The provider's own answer: HTTP status and reason, as it gave them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// The HTTP status; absent where there was no answer.
    pub status: Option<u16>,
    /// The provider's word (`Unregistered`, `QUOTA_EXCEEDED`), or ours where it gave none (`timeout`).
    pub reason: String,
}

impl Code {
    /// The answer `status` with the provider's word `reason`.
    #[must_use]
    pub fn new(status: u16, reason: impl Into<String>) -> Self {
        Self { status: Some(status), reason: reason.into() }
    }

    /// No answer, or none was asked for: `reason` is our word.
    #[must_use]
    pub fn ours(reason: impl Into<String>) -> Self {
        Self { status: None, reason: reason.into() }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, self.reason.as_str()) {
            (Some(status), "") => write!(f, "{status}"),
            (Some(status), reason) => write!(f, "{status} {reason}"),
            (None, reason) => f.write_str(reason),
        }
    }
}

/// A sentence about cause and remedy: most are constants of a provider's table.
pub type Sentence = Cow<'static, str>;

/// What came of one call for one delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The provider took it over. Never sent again.
    Accepted {
        /// The provider's id of the message.
        provider_id: String,
        /// The provider's own answer.
        code: Code,
    },
    /// May succeed later.
    Retryable {
        /// Not before this long; the lane's own backoff where absent.
        after: Option<Duration>,
        /// Whether the request may have been carried out all the same.
        maybe_sent: bool,
        /// The provider's own answer.
        code: Code,
    },
    /// This message can never succeed; the address is not to blame.
    Permanent {
        /// Cause and remedy.
        reason: Sentence,
        /// The provider's own answer.
        code: Code,
    },
    /// The address is dead or refuses us; as [`Outcome::Permanent`], and the address is struck.
    InvalidAddress {
        /// Cause.
        reason: Sentence,
        /// The provider's own answer.
        code: Code,
    },
    /// Credentials, configuration, billing: the channel stops, no attempt is burnt.
    Paused {
        /// Cause and remedy.
        reason: Sentence,
        /// The provider's own answer.
        code: Code,
    },
}

impl Outcome {
    /// Taken over under `provider_id`.
    #[must_use]
    pub fn accepted(code: Code, provider_id: impl Into<String>) -> Self {
        Self::Accepted { provider_id: provider_id.into(), code }
    }

    /// Certainly not carried out; may succeed after `after`.
    #[must_use]
    pub const fn retryable(code: Code, after: Option<Duration>) -> Self {
        Self::Retryable { after, maybe_sent: false, code }
    }

    /// No answer to a request that may have left: it may have been carried out.
    #[must_use]
    pub const fn unknown(code: Code) -> Self {
        Self::Retryable { after: None, maybe_sent: true, code }
    }

    /// Never to succeed.
    #[must_use]
    pub fn permanent(code: Code, reason: impl Into<Sentence>) -> Self {
        Self::Permanent { reason: reason.into(), code }
    }

    /// Never to succeed, and the address is struck.
    #[must_use]
    pub fn invalid_address(code: Code, reason: impl Into<Sentence>) -> Self {
        Self::InvalidAddress { reason: reason.into(), code }
    }

    /// The channel stops.
    #[must_use]
    pub fn paused(code: Code, reason: impl Into<Sentence>) -> Self {
        Self::Paused { reason: reason.into(), code }
    }

    /// The provider's own answer.
    #[must_use]
    pub const fn code(&self) -> &Code {
        match self {
            Self::Accepted { code, .. }
            | Self::Retryable { code, .. }
            | Self::Permanent { code, .. }
            | Self::InvalidAddress { code, .. }
            | Self::Paused { code, .. } => code,
        }
    }

    /// One word for metrics and logs.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Retryable { maybe_sent: false, .. } => "retryable",
            Self::Retryable { maybe_sent: true, .. } => "unknown",
            Self::Permanent { .. } => "permanent",
            Self::InvalidAddress { .. } => "invalid_address",
            Self::Paused { .. } => "paused",
        }
    }
}

/// How many answers the guard looks back on: enough that one bad hour of uninstalls (well below 1 %)
/// never trips it, few enough that a wrong key does within a second of a busy lane.
pub const GUARD_ANSWERS: usize = 1000;
/// Share of dead addresses beyond which nobody believes them, in percent of the answers in the window.
pub const GUARD_SHARE_PERCENT: usize = 5;
/// Least number of dead addresses that can trip the guard: a small lane may meet ten in a row.
pub const GUARD_INVALID_MIN: usize = 50;
const _: () = assert!(GUARD_INVALID_MIN * 100 <= GUARD_ANSWERS * GUARD_SHARE_PERCENT, "a full window could not trip");

/// Turns [`Outcome::InvalidAddress`] into [`Outcome::Paused`] while too many of the last answers
/// were: more than [`GUARD_SHARE_PERCENT`] of the last [`GUARD_ANSWERS`], and at least
/// [`GUARD_INVALID_MIN`]. It lets go by itself once good answers push the bad ones out.
///
/// Only answers about an address or a message count; retries and pauses say nothing about addresses.
#[derive(Clone, Debug, Default)]
pub struct MassInvalidationGuard {
    answers: VecDeque<bool>,
    invalid: usize,
}

impl MassInvalidationGuard {
    /// Takes the outcome in and gives back what may be acted on.
    #[must_use]
    pub fn judge(&mut self, outcome: Outcome) -> Outcome {
        let invalid = match &outcome {
            Outcome::Accepted { .. } | Outcome::Permanent { .. } => false,
            Outcome::InvalidAddress { .. } => true,
            Outcome::Retryable { .. } | Outcome::Paused { .. } => return outcome,
        };
        if self.answers.len() == GUARD_ANSWERS && self.answers.pop_front() == Some(true) {
            self.invalid -= 1;
        }
        self.answers.push_back(invalid);
        self.invalid += usize::from(invalid);
        match outcome {
            Outcome::InvalidAddress { code, .. } if self.tripped() => {
                let reason = format!(
                    "{} of the last {} answers call the address dead; that is more likely a wrong environment, topic, \
                     key or project: check the provider's settings, no address is struck meanwhile",
                    self.invalid,
                    self.answers.len()
                );
                Outcome::Paused { reason: reason.into(), code }
            }
            outcome => outcome,
        }
    }

    /// Whether addresses are not struck at the moment.
    #[must_use]
    pub fn tripped(&self) -> bool {
        self.invalid >= GUARD_INVALID_MIN && self.invalid * 100 > self.answers.len() * GUARD_SHARE_PERCENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead() -> Outcome {
        Outcome::invalid_address(Code::new(410, "Unregistered"), "the app was removed")
    }

    fn good() -> Outcome {
        Outcome::accepted(Code::new(200, ""), "id")
    }

    #[test]
    fn fifty_dead_addresses_in_a_row_pause_and_good_answers_let_go() {
        let mut guard = MassInvalidationGuard::default();
        for _ in 1..GUARD_INVALID_MIN {
            assert_eq!(guard.judge(dead()).word(), "invalid_address");
        }
        let paused = guard.judge(dead());
        assert_eq!((paused.word(), paused.code().to_string().as_str()), ("paused", "410 Unregistered"));
        for _ in 0..GUARD_ANSWERS - GUARD_INVALID_MIN {
            assert_eq!(guard.judge(good()), good());
        }
        assert!(!guard.tripped(), "fifty of a thousand are five percent, not more");
    }

    #[test]
    fn a_steady_trickle_of_uninstalls_never_pauses() {
        let mut guard = MassInvalidationGuard::default();
        for round in 0..10_000 {
            let outcome = if round % 25 == 0 { dead() } else { good() };
            assert_eq!(guard.judge(outcome.clone()), outcome);
        }
    }

    #[test]
    fn retries_and_pauses_do_not_count() {
        let mut guard = MassInvalidationGuard::default();
        for _ in 0..GUARD_INVALID_MIN - 1 {
            let _ = guard.judge(dead());
        }
        for _ in 0..5000 {
            let _ = guard.judge(Outcome::retryable(Code::new(503, "UNAVAILABLE"), None));
            let _ = guard.judge(Outcome::paused(Code::new(403, "Forbidden"), "check the key"));
        }
        assert_eq!(guard.judge(dead()).word(), "paused");
    }
}
