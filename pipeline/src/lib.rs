//! The tidings pipeline: topology, sources, checkpoints, runtime and commands.

pub mod checkpoint;
pub mod cutlog;
pub mod runtime;

pub mod sources;

pub mod topology;
