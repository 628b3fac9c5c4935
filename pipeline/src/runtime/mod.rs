//! The decide stage at run time: log the cut, replay the rest.
//!
//! # Cast
//! The *coordinator* makes cuts and knows what is durable, finished and said. *Workers* are the
//! engine's. The *keeper* writes checkpoints, *egress* writes what epochs say, *readers* read sources
//! ahead. One coordinator, one keeper and one egress per generation; [`crew`] says what they run on.
//!
//! # Protocol
//! An epoch, step by step:
//! 1. Readers read ahead; workers report how far.
//! 2. The coordinator appends cut e at the reported positions to the cut log, never with an earlier one
//!    unacknowledged, and broadcasts it once it is durable. Meanwhile the workers run epoch e - 1.
//! 3. Workers run epoch e.
//! 4. Once every worker has finished e, egress writes its outputs. Everything up to `said_through` was
//!    acknowledged.
//! 5. Once a second a mark says so in every lane partition that was written.
//! 6. Every few seconds the keeper writes a checkpoint of a finished epoch; its entry is appended
//!    once that epoch was said. Cuts below the second-newest are trimmed.
//!
//! Recovery ([`recovery`]): begin, load, replay the logged cuts, compare, say what is missing, read
//! side inputs to their end, checkpoint, go on.
//!
//! # Invariants
//! - Nothing of an epoch is run before its cut is durable: whatever a worker says, changes or dies of
//!   can be replayed. Nothing of a replayed one is said before its counts and digest were compared.
//! - A checkpoint that counts says that everything up to its epoch was said.
//!
//! # If it dies at step n
//! 1. Nothing happened. 2. The cut counts or does not; if it does, the epoch is replayed. 3. The
//!    same. 4. Some records of e are in the lanes: recovery reads the lanes from their marks, and adds
//!    what is missing. 5. The next generation reads more of the lanes. 6. The next generation replays
//!    more cuts.
//!
//! Critical events pass none of these steps: [`critical`] stands beside them.
//!
//! # Not promised
//! That a broken disk or a log that stays away lets it go on: epochs wait for their cuts and are bounded, and
//! the log keeps the input.

pub mod clock;
pub mod cluster;
pub mod coordinator;
pub mod crew;
pub mod critical;
pub mod crumbs;
pub mod egress;
pub(crate) mod feeds;
pub(crate) mod keeper;
pub mod news;
pub mod plan;
pub mod recovery;
pub(crate) mod sources;
pub mod watch;
