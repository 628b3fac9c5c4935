//! The lane as a whole: a log, a ledger and a directory in memory, a provider that follows a script, and a
//! clock that tokio moves.

mod calls;
mod crash;
mod ends;
mod lost_ledger;
mod provider;
mod reading;
mod unknown;
mod without_ledger;
mod world;

use std::time::Duration;

use tidings_schemas::channel::Priority;
use tidings_schemas::time::Instant;

use super::{Limits, Line};

const T0: Instant = Instant(1_774_000_000_000);
const CALL_MAX: Duration = Duration::from_secs(5);

const MEDIUM: [Line; 2] = [Line::Lane(Priority::Medium), Line::Retry(tidings_schemas::topics::RetryClass::Normal)];

fn limits() -> Limits {
    Limits {
        poll_wait: Duration::ZERO,
        idle: Duration::from_millis(50),
        commit_every: Duration::ZERO,
        ..Limits::default()
    }
}
