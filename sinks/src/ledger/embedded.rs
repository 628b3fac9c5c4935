//! The ledger in a folder: one machine, every batch synced before it is answered.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
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

#[async_trait]
impl Ledger for EmbeddedLedger {
    async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
        self.on_disk(move |table| table.incarnation(now)).await
    }

    async fn claim(
        &self,
        incarnation: &Incarnation,
        claims: &[Claim],
        now: Instant,
    ) -> Result<Vec<Claimed>, LedgerError> {
        let (incarnation, claims) = (incarnation.clone(), claims.to_vec());
        self.on_disk(move |table| table.claim(&incarnation, &claims, now)).await
    }

    async fn settle(
        &self,
        incarnation: &Incarnation,
        settles: &[Settle],
        now: Instant,
    ) -> Result<Vec<bool>, LedgerError> {
        let (incarnation, settles) = (incarnation.clone(), settles.to_vec());
        self.on_disk(move |table| table.settle(&incarnation, &settles, now)).await
    }

    async fn look(&self, incarnation: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        let (incarnation, keys) = (incarnation.clone(), keys.to_vec());
        self.on_disk(move |table| table.look(&incarnation, &keys)).await
    }

    async fn passed(
        &self,
        incarnation: &Incarnation,
        lane: &TopicPartition,
        said_through: u64,
        now: Instant,
    ) -> Result<(), LedgerError> {
        let (incarnation, lane) = (incarnation.clone(), lane.clone());
        self.on_disk(move |table| table.passed(&incarnation, &lane, said_through, now)).await
    }
}
