//! Everything between a decision and a person: logs, lanes, ledger, providers, the record.
//!
//! In reading order: the log that stages meet in; what a provider call can come to, the providers,
//! and servers that speak like them; what deliver keeps; the lanes; the record.

pub mod log;

pub mod outcome;
pub mod providers;
pub mod simulated;

pub mod render;

pub mod consent;
pub mod directory;
pub mod ledger;

pub mod lane;
pub mod retry;

pub mod record;

pub mod tasks;

mod connection;
mod table;
mod troubles;
