//! Why something was not said: every reason that decide and deliver can give, in one place.
//!
//! Providers' own codes are open and stand beside the reason in a row's `code`.

use serde::{Deserialize, Serialize};

use crate::channel::{UnknownWord, vocabulary};
use schemars::JsonSchema;
use std::{fmt, str::FromStr};

vocabulary!(
    /// Why a unit ended without being delivered, or was struck on one channel.
    Reason, "reason", {
        /// The user switched the channel, category or type off.
        OptedOut = "opted_out",
        /// A legal stop (STOP, complaint) stands against the channel.
        LegalStop = "legal_stop",
        /// The channel needs a recorded consent and there is none.
        NoConsent = "no_consent",
        /// The user has no live address on the channel.
        Unreachable = "unreachable",
        /// The topology has no provider for the channel.
        NoProvider = "no_provider",
        /// The user's quiet hours, where the policy does not defer.
        QuietHours = "quiet_hours",
        /// A limit was reached, where the policy does not merge or wait.
        RateLimited = "rate_limited",
        /// The policy does not use this channel at this priority.
        Policy = "policy",
        /// `expires_at` passed.
        Expired = "expired",
        /// A retraction found nothing that it could take out.
        NothingToRetract = "nothing_to_retract",
        /// A cancellation found nothing that it could take back.
        NothingToCancel = "nothing_to_cancel",
        /// Every actor was taken out again.
        Retracted = "retracted",
        /// The producer took it back.
        Cancelled = "cancelled",
        /// The same wish was seen before.
        Duplicate = "duplicate",
        /// Said as part of another notification.
        Merged = "merged",
        /// The payload is not JSON.
        InvalidJson = "invalid_json",
        /// The payload is JSON, but not an event.
        InvalidEvent = "invalid_event",
        /// The record is too large.
        TooLarge = "too_large",
        /// The record killed its operator and was set aside.
        Panicked = "panicked",
        /// No template fits the type, channel and locale.
        NoTemplate = "no_template",
        /// The template has no text in the user's language and must not use another.
        NoLocale = "no_locale",
        /// The template could not be rendered.
        RenderFailed = "render_failed",
        /// Its `fresh_until` passed before it could be sent.
        Stale = "stale",
        /// Every address of the channel failed for good.
        Undeliverable = "undeliverable",
        /// The provider says the address is dead.
        InvalidAddress = "invalid_address",
        /// The provider refuses this message for good.
        Refused = "refused",
        /// The last attempt failed.
        AttemptsExhausted = "attempts_exhausted",
        /// The lease of an earlier attempt ran out: it may have been sent.
        LeaseExpired = "lease_expired",
        /// Sent although the ledger could not be reached.
        LedgerUnreachable = "ledger_unreachable",
        /// Given up by an operator's `--allow-dropped-state`.
        AcceptedLoss = "accepted_loss",
    }
);
