//! The ledger in a folder: one machine, every batch synced before it is answered.

use std::path::Path;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use tidings_schemas::time::Instant;

use super::table::TableLedger;
use super::{Claim, Claimed, Entry, Incarnation, Key, Ledger, LedgerError, Settle};
use crate::log::TopicPartition;
use crate::table::FolderTable;

/// A ledger in a folder of this machine. One process opens it at a time.
#[derive(Clone)]
pub struct EmbeddedLedger(Arc<TableLedger<FolderTable>>);

impl EmbeddedLedger {
    /// Opens or creates the ledger in `folder`.
    ///
    /// # Errors
    /// When the folder cannot be opened, or another process has it.
    pub fn open(folder: &Path) -> Result<Self, LedgerError> {
        let table = FolderTable::open(folder).map_err(|error| LedgerError::Unreachable(error.to_string()))?;
        Ok(Self(Arc::new(TableLedger::new(table))))
    }

    /// Runs `work` on a thread that may wait for the disk.
    async fn on_disk<R: Send + 'static>(
        &self,
        work: impl FnOnce(&TableLedger<FolderTable>) -> Result<R, LedgerError> + Send + 'static,
    ) -> Result<R, LedgerError> {
        let table = self.0.clone();
        tokio::task::spawn_blocking(move || work(&table))
            .await
            .unwrap_or_else(|error| Err(LedgerError::Ambiguous(error.to_string())))
    }
}

impl Ledger for EmbeddedLedger {
    fn incarnation(&self, now: Instant) -> BoxFuture<'_, Result<Incarnation, LedgerError>> {
        self.on_disk(move |table| table.incarnation(now)).boxed()
    }

    fn claim<'a>(
        &'a self,
        incarnation: &'a Incarnation,
        claims: &'a [Claim],
        now: Instant,
    ) -> BoxFuture<'a, Result<Vec<Claimed>, LedgerError>> {
        let (incarnation, claims) = (incarnation.clone(), claims.to_vec());
        self.on_disk(move |table| table.claim(&incarnation, &claims, now)).boxed()
    }

    fn settle<'a>(
        &'a self,
        incarnation: &'a Incarnation,
        settles: &'a [Settle],
        now: Instant,
    ) -> BoxFuture<'a, Result<Vec<bool>, LedgerError>> {
        let (incarnation, settles) = (incarnation.clone(), settles.to_vec());
        self.on_disk(move |table| table.settle(&incarnation, &settles, now)).boxed()
    }

    fn look<'a>(
        &'a self,
        incarnation: &'a Incarnation,
        keys: &'a [Key],
    ) -> BoxFuture<'a, Result<Vec<Option<Entry>>, LedgerError>> {
        let (incarnation, keys) = (incarnation.clone(), keys.to_vec());
        self.on_disk(move |table| table.look(&incarnation, &keys)).boxed()
    }

    fn passed<'a>(
        &'a self,
        incarnation: &'a Incarnation,
        lane: &'a TopicPartition,
        said_through: u64,
        now: Instant,
    ) -> BoxFuture<'a, Result<(), LedgerError>> {
        let (incarnation, lane) = (incarnation.clone(), lane.clone());
        self.on_disk(move |table| table.passed(&incarnation, &lane, said_through, now)).boxed()
    }
}
