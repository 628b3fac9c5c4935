//! The ledger in memory: for tests, and for a run that keeps nothing.

use futures_util::future::{BoxFuture, FutureExt, ready};
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

impl Ledger for MemoryLedger {
    fn incarnation(&self, now: Instant) -> BoxFuture<'_, Result<Incarnation, LedgerError>> {
        ready(self.0.incarnation(now)).boxed()
    }

    fn claim<'a>(
        &'a self,
        incarnation: &'a Incarnation,
        claims: &'a [Claim],
        now: Instant,
    ) -> BoxFuture<'a, Result<Vec<Claimed>, LedgerError>> {
        ready(self.0.claim(incarnation, claims, now)).boxed()
    }

    fn settle<'a>(
        &'a self,
        incarnation: &'a Incarnation,
        settles: &'a [Settle],
        now: Instant,
    ) -> BoxFuture<'a, Result<Vec<bool>, LedgerError>> {
        ready(self.0.settle(incarnation, settles, now)).boxed()
    }

    fn look<'a>(
        &'a self,
        incarnation: &'a Incarnation,
        keys: &'a [Key],
    ) -> BoxFuture<'a, Result<Vec<Option<Entry>>, LedgerError>> {
        ready(self.0.look(incarnation, keys)).boxed()
    }

    fn passed<'a>(
        &'a self,
        incarnation: &'a Incarnation,
        lane: &'a TopicPartition,
        said_through: u64,
        now: Instant,
    ) -> BoxFuture<'a, Result<(), LedgerError>> {
        ready(self.0.passed(incarnation, lane, said_through, now)).boxed()
    }
}
