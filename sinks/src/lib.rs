//! Everything between a decision and a person: logs, lanes, ledger, providers, the record.

mod table;

pub mod ledger;
pub mod log;
