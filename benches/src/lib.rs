//! Benches of tidings: what they run, and how a figure is told.
//!
//! Every bench checks its answer before its time counts, and names it by a hash. The tests of this
//! crate run each bench small, and compare the hash for one worker and two.

pub mod figure;
pub mod setup;
mod slow;
pub mod soak;
pub mod workload;

pub mod decide;
pub mod growth;
mod installation;
pub mod instructions;
pub use installation::Services;
pub mod first_send;
pub mod memory;
pub mod p0_latency;
pub mod peers;
pub mod record;
pub mod through_log;

pub mod restore;
