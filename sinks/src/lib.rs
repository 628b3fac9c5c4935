//! Everything between a decision and a person: logs, lanes, ledger, providers, the record.

pub mod log;

pub mod render;

pub mod record;

pub mod outcome;
pub mod providers;
pub mod simulated;
