//! A process that dies at its n-th point, between any two of its effects, and a log and a ledger that have such points.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tidings_schemas::time::Instant;

use crate::ledger::{Claim, Claimed, Entry, Incarnation, Key, Ledger, LedgerError, Settle};
use crate::log::memory::MemoryLog;
use crate::log::through::Through;
use crate::log::{Append, Assignment, Commit, GroupReader, Log, LogError, Record, TopicPartition};

/// Dies at its n-th point: whatever the process does from then on has no effect and gets no answer.
pub(super) struct Crash {
    left: AtomicI64,
    pub(super) dead: AtomicBool,
    /// So many times the log does not say how far a partition goes.
    pub(super) rangeless: AtomicI64,
    /// So many times the ledger takes no claim.
    pub(super) claimless: AtomicI64,
    /// So many times the ledger does not say its word.
    pub(super) wordless: AtomicI64,
}

impl Crash {
    pub(super) fn never() -> Arc<Self> {
        Self::at(i64::MAX)
    }

    pub(super) fn at(n: i64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicI64::new(n),
            dead: AtomicBool::new(false),
            rangeless: AtomicI64::new(0),
            claimless: AtomicI64::new(0),
            wordless: AtomicI64::new(0),
        })
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Counts one point; says whether the process is dead.
    pub(super) fn strikes(&self) -> bool {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.dead.store(true, Ordering::SeqCst);
        }
        self.is_dead()
    }

    pub(super) async fn point(&self) {
        if self.strikes() {
            std::future::pending::<()>().await;
        }
    }
}

pub(super) struct CrashingLedger(pub(super) Arc<dyn Ledger>, pub(super) Arc<Crash>);

impl CrashingLedger {
    async fn effect<R>(&self, effect: impl Future<Output = R>) -> R {
        self.1.point().await;
        let answer = effect.await;
        self.1.point().await;
        answer
    }
}

#[async_trait]
impl Ledger for CrashingLedger {
    async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
        if self.1.wordless.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Err(LedgerError::Unreachable("not yet".to_owned()));
        }
        self.0.incarnation(now).await
    }
    async fn claim(&self, by: &Incarnation, claims: &[Claim], now: Instant) -> Result<Vec<Claimed>, LedgerError> {
        if self.1.claimless.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Err(LedgerError::Unreachable("busy".to_owned()));
        }
        self.effect(self.0.claim(by, claims, now)).await
    }
    async fn settle(&self, by: &Incarnation, settles: &[Settle], now: Instant) -> Result<Vec<bool>, LedgerError> {
        self.effect(self.0.settle(by, settles, now)).await
    }
    async fn look(&self, by: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        self.effect(self.0.look(by, keys)).await
    }
    async fn passed(
        &self,
        by: &Incarnation,
        lane: &TopicPartition,
        through: u64,
        now: Instant,
    ) -> Result<(), LedgerError> {
        self.effect(self.0.passed(by, lane, through, now)).await
    }
}

pub(super) struct CrashingLog(pub(super) MemoryLog, pub(super) Arc<Crash>);

impl CrashingLog {
    fn effect<R>(crash: &Crash, effect: impl FnOnce() -> Result<R, LogError>) -> Result<R, LogError> {
        if crash.strikes() {
            return Err(LogError::Unreachable("dead".to_owned()));
        }
        let answer = effect();
        if crash.strikes() { Err(LogError::Ambiguous("dead".to_owned())) } else { answer }
    }
}

impl Through for CrashingLog {
    fn behind(&self) -> Result<&dyn Log, LogError> {
        Ok(&self.0)
    }
    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        Self::effect(&self.1, || self.0.append(records))
    }
    fn range(&self, partition: &TopicPartition) -> Result<std::ops::Range<u64>, LogError> {
        if self.1.rangeless.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Err(LogError::Unreachable("busy".to_owned()));
        }
        self.0.range(partition)
    }
    fn join(
        &self,
        group: &str,
        topics: &[String],
        assignment: Arc<dyn Assignment>,
    ) -> Result<Box<dyn GroupReader>, LogError> {
        Ok(Box::new(CrashingMember(self.0.join(group, topics, assignment)?, self.1.clone())))
    }
}

struct CrashingMember(Box<dyn GroupReader>, Arc<Crash>);

impl GroupReader for CrashingMember {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, LogError> {
        if self.1.is_dead() {
            return Ok(Vec::new());
        }
        self.0.poll(records_max, wait)
    }
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.0.pause(partitions)
    }
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.0.resume(partitions)
    }
    fn commit(&mut self, commits: &[(TopicPartition, Commit)]) -> Result<(), LogError> {
        CrashingLog::effect(&self.1, || self.0.commit(commits))
    }
}
