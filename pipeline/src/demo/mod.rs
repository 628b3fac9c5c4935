//! The demo: people and events that show in minutes what tidings does in a night, and the words that
//! it ends with.

pub mod closing;
pub mod workload;
