//! The seeded simulator.
//!
//! One process, one thread, one seed. The decide stage's own code runs: intakes, chains, coordinator,
//! cut log, egress, keeper, recovery; what it stands on (log, object store, clock, threads) is
//! simulated, and fails when the seed says so. In reading order: where every choice comes from
//! ([`choices`]), what a seed draws ([`options`], [`workload`]), what the stage stands on ([`clock`],
//! [`log`], [`store`], [`crew`]), how it all moves ([`run`], [`exhaustive`]), and what must hold in the end
//! ([`checks`], and [`oracle`], which decides for itself).

pub mod choices;

pub mod options;
pub mod workload;

pub mod clock;
pub mod crew;
pub mod critical;
pub mod deliver;
pub mod log;
pub mod store;

pub mod oracle;

pub mod checks;
pub mod run;

pub mod exhaustive;
