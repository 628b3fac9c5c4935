//! The seeded simulator.
//!
//! One process, one thread, one seed. Production's own code runs: of decide the intakes, chains, coordinator,
//! cut log, egress, keeper and recovery; of deliver the lane readers, deliverers, the ledger's protocol, retry
//! and dead-letter topics; of record the writer. What they stand on (log, object store, clock, threads, ledger,
//! directory, providers, ClickHouse) is simulated, and fails when the seed says so. In reading order: where
//! every choice comes from ([`choices`]), what a seed draws ([`options`], [`workload`]), what the stages stand
//! on ([`clock`], [`log`], [`store`], [`crew`]), what comes behind and beside decide ([`deliver`], [`record`],
//! [`critical`]), how it all moves ([`run`], [`exhaustive`],
//! [`interleave`]), and what must hold in the end ([`checks`], and
//! [`oracle`], which decides for itself).

pub mod choices;

pub mod options;
pub mod workload;

pub mod clock;
pub mod crew;
pub mod log;
pub mod store;

pub mod critical;
pub mod deliver;
pub mod record;

pub mod oracle;

pub mod checks;
pub mod run;

pub mod exhaustive;
pub mod interleave;
