//! The tidings pipeline: topology, sources, checkpoints, runtime and commands.

pub mod explain;

pub mod console;

pub mod demo;
