//! The tidings pipeline: topology, sources, checkpoints, runtime and commands.

pub mod assemble;
pub mod checkpoint;
pub mod cutlog;
pub mod runtime;

pub mod sources;

pub mod topology;

pub mod explain;

pub mod console;

pub mod demo;
