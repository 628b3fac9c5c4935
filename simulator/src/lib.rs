//! The seeded simulator.

pub mod oracle;
