//! Where events come from when no producer writes them into the log.

pub mod file;
