//! Everything between a decision and a person: logs, lanes, ledger, providers, the record.

pub mod log;

pub mod record;

pub mod render;
