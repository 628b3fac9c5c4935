//! Asking the directory and the ledger until they answer. Critical ones don't wait for a ledger that is slow.

use std::future::Future;
use std::sync::PoisonError;
use std::time::Duration;

use tidings_schemas::lane::LaneRecord;

use super::{Deliverer, Delivery, Desk};
use crate::directory::Known;
use crate::ledger::{Entry, Key, Ledger, LedgerError};

/// How long a critical message waits for the ledger before it goes out without it.
pub(super) const CRITICAL_LEDGER_WAIT: Duration = Duration::from_millis(300);
/// First and longest pause when ledger or directory don't answer.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Troubles, as they are said.
pub(super) const CLAIMS_WAIT: &str = "a lane waits for the ledger";
const DIRECTORY_WAITS: &str = "a lane waits for the directory";

impl Deliverer {
    /// What the directory knows about each leg's user; asks until it answers. `None`: abandoned.
    pub(super) async fn look(&self, desk: &Desk, records: &[&LaneRecord]) -> Option<Vec<Known>> {
        let users: Vec<_> = records.iter().map(|record| record.user.as_str()).collect();
        let mut pause = BACKOFF.0;
        loop {
            match self.parts.directory.look(self.parts.channel, &users).await {
                Ok(known) => {
                    desk.troubles.over(&[DIRECTORY_WAITS], self.now());
                    return Some(known);
                }
                Err(error) => desk.troubles.met(DIRECTORY_WAITS, &error, self.now()),
            }
            pause = self.pause(desk, pause).await?;
        }
    }

    /// What the ledger knows; asks until it answers. `None`: abandoned.
    pub(super) async fn entries(&self, desk: &Desk, keys: &[Key]) -> Option<Vec<Option<Entry>>> {
        let mut pause = BACKOFF.0;
        loop {
            let error = match desk.ledger.look(&self.incarnation(), keys).await {
                Ok(entries) => return Some(entries),
                Err(LedgerError::Lost) => match self.refound(false).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            desk.troubles.met(CLAIMS_WAIT, &error, self.now());
            pause = self.pause(desk, pause).await?;
        }
    }

    /// For each whether it was called before; or may have been, where the ledger was lost that it would stand in.
    /// `None`: abandoned.
    pub(super) async fn called_before(&self, desk: &Desk, deliveries: &[Delivery]) -> Option<Vec<bool>> {
        let keys: Vec<_> = deliveries.iter().map(|it| it.key.clone()).collect();
        let entries = self.entries(desk, &keys).await?;
        let incarnation = self.incarnation();
        let called = |(it, entry): (&Delivery, Option<Entry>)| entry.is_some() || it.leg.believed.is_lost(&incarnation);
        Some(deliveries.iter().zip(entries).map(called).collect())
    }

    /// The ledger was lost, or is heard for the first time: learns its incarnation.
    pub(super) async fn refound(&self, critical: bool) -> Result<(), LedgerError> {
        let incarnation = patiently(critical, self.parts.ledger.incarnation(self.now())).await?;
        let mut known = self.incarnation.write().unwrap_or_else(PoisonError::into_inner);
        if known.is_lost(&incarnation) {
            tracing::error!("the ledger was lost; what was in flight is recorded as unknown");
        }
        *known = incarnation;
        Ok(())
    }

    /// Waits, and says how long to wait next time. `None`: it is time to stop.
    pub(super) async fn pause(&self, desk: &Desk, pause: Duration) -> Option<Duration> {
        tokio::select! {
            biased;
            () = desk.draining.cancelled() => None,
            () = tokio::time::sleep(pause) => Some((pause * 2).min(BACKOFF.1)),
        }
    }
}

/// Critical ones don't wait for a ledger that is slow.
pub(super) async fn patiently<T>(
    critical: bool,
    asked: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    if !critical {
        return asked.await;
    }
    tokio::time::timeout(CRITICAL_LEDGER_WAIT, asked)
        .await
        .unwrap_or_else(|_| Err(LedgerError::Ambiguous(format!("no answer within {CRITICAL_LEDGER_WAIT:?}"))))
}
