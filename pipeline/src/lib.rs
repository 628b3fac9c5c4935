//! The tidings pipeline: topology, sources, checkpoints, runtime and commands.
//!
//! In reading order: what an operator writes ([`topology`], [`assemble`]), what a run stands on
//! ([`cutlog`], [`checkpoint`], [`sources`]), the run itself ([`runtime`], [`process`]), and what
//! people see of it ([`explain`], [`console`], [`demo`]).

pub mod topology;

pub mod assemble;

pub mod checkpoint;
pub mod cutlog;
pub mod sources;

pub mod process;
pub mod runtime;

pub mod console;
pub mod demo;
pub mod explain;
