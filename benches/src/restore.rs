//! Restore: from the newest checkpoint in a folder to workers that can go on, as recovery does it.

use std::path::Path as Folder;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use tidings_operators::harness::chain::Chain;
use tidings_operators::harness::dataflow::Transport;
use tidings_operators::harness::dropped::MayDrop;
use tidings_pipeline::checkpoint::{Checkpoints, Manifest};
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_pipeline::runtime::crew::{Ground, chains};
use tidings_schemas::ids::IdHasher;
use tidings_schemas::time::Instant;
use tidings_sinks::log::Log;
use tidings_sinks::log::memory::MemoryLog;

use crate::setup::Setup;

/// What a restore did.
#[derive(Debug)]
pub struct Run {
    /// Reading chunks, merging them, and putting every image back.
    pub elapsed: Duration,
    /// Reading and merging alone.
    pub read: Duration,
    /// Keys in the state.
    pub keys: u64,
    /// Names the state.
    pub hash: u64,
}

/// Restores the state of `manifest` onto this many workers.
///
/// # Errors
/// When the checkpoint cannot be read, or its state does not fit.
pub fn run(setup: &Setup, folder: &Folder, manifest: &Manifest, workers: usize) -> Result<Run> {
    let checkpoints = Checkpoints::in_folder(folder).map_err(|problem| anyhow!(problem))?;
    let clock = SystemClock::default();
    let started = clock.elapsed();
    let state = checkpoints.state(manifest)?;
    let read = clock.elapsed() - started;
    let log: Arc<dyn Log> = Arc::new(MemoryLog::new(Arc::new(|| Instant(0)))?);
    let ground = Ground {
        generation: 0,
        log: &log,
        wiring: &setup.wiring,
        peers: workers,
        state: Some((&state, setup.rules.hash)),
        may_drop: &MayDrop::default(),
        transport: Transport::Memory,
    };
    let chains = chains(&(0..workers).collect::<Vec<_>>(), &ground)?;
    let elapsed = clock.elapsed() - started;

    let earliest = state.iter().flat_map(|(_, image)| image.timers).map(|(_, at)| at).min();
    let restored = chains.iter().filter_map(Chain::next_timer).min();
    ensure!(earliest == restored, "the state's first timer is due at {earliest:?}, the workers' at {restored:?}");
    let mut hasher = IdHasher::new("bench.state");
    for entry in state.iter() {
        hasher.field(&postcard::to_stdvec(&entry)?);
    }
    let hash = u64::from_le_bytes(hasher.finish().first_chunk().copied().unwrap_or_default());
    Ok(Run { elapsed, read, keys: state.len() as u64, hash })
}
