//! The ledger in memory: for tests, and for a run that keeps nothing.

use async_trait::async_trait;
use tidings_schemas::time::Instant;

use super::table::TableLedger;
use super::{Claim, Claimed, Entry, Incarnation, Key, Ledger, LedgerError, Settle};
use crate::log::TopicPartition;
use crate::table::MemoryTable;

/// A ledger that is gone with its process.
pub struct MemoryLedger(TableLedger<MemoryTable>);

impl Default for MemoryLedger {
    fn default() -> Self {
        Self(TableLedger::new(MemoryTable::default()))
    }
}

impl MemoryLedger {
    /// Loses everything, the incarnation too.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.0.table().clear();
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
        self.0.incarnation(now)
    }

    async fn claim(
        &self,
        incarnation: &Incarnation,
        claims: &[Claim],
        now: Instant,
    ) -> Result<Vec<Claimed>, LedgerError> {
        self.0.claim(incarnation, claims, now)
    }

    async fn settle(
        &self,
        incarnation: &Incarnation,
        settles: &[Settle],
        now: Instant,
    ) -> Result<Vec<bool>, LedgerError> {
        self.0.settle(incarnation, settles, now)
    }

    async fn look(&self, incarnation: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        self.0.look(incarnation, keys)
    }

    async fn passed(
        &self,
        incarnation: &Incarnation,
        lane: &TopicPartition,
        said_through: u64,
        now: Instant,
    ) -> Result<(), LedgerError> {
        self.0.passed(incarnation, lane, said_through, now)
    }
}
