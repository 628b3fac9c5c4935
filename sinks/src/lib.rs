//! Everything between a decision and a person: logs, lanes, ledger, providers, the record.

mod connection;
mod table;
pub mod tasks;

pub mod log;

pub mod consent;
pub mod directory;
pub mod lane;
pub mod ledger;
pub mod retry;

pub mod render;

pub mod record;

pub mod outcome;
pub mod providers;
pub mod simulated;
