//! Everything between a decision and a person: logs, lanes, ledger, providers, the record.

mod table;

pub mod ledger;
pub mod log;
pub mod outcome;
pub mod providers;
pub mod simulated;
