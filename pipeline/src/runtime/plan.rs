//! What a generation runs: the topology as the engine needs it, with everything that cuts name.

use std::sync::Arc;
use std::time::Duration;

use tidings_operators::harness::dataflow::Transport;
use tidings_operators::registry::Wiring;
use tidings_operators::rules::Rules;

use super::egress::Outlets;
use crate::cutlog::Hash;

/// A source as the runtime reads it; its number is its place in the wiring's sources.
#[derive(Clone, Debug)]
pub struct SourcePlan {
    /// Its id.
    pub id: String,
    /// Its topic.
    pub topic: String,
    /// How many partitions the topic has.
    pub partitions: u32,
    /// Sources of a smaller rank are read first, and side inputs before them all.
    pub rank: u8,
    /// Its guaranteed share of each worker's read-ahead, in thousandths.
    pub at_least_permille: u16,
    /// Profiles or addresses: read to the end before anything is decided.
    pub side_input: bool,
}

/// Everything that one run of the decide stage needs to know.
#[derive(Clone)]
pub struct Plan {
    /// Operators and sources.
    pub wiring: Wiring,
    /// How each source is read, by number.
    pub sources: Vec<SourcePlan>,
    /// Policies and calendar.
    pub rules: Arc<Rules>,
    /// The topology's canonical bytes: stored, and named by hash in every cut.
    pub topology: Arc<[u8]>,
    /// The build that decides.
    pub build: Hash,
    /// Topics that are written.
    pub outlets: Outlets,
    /// Worker threads.
    pub workers: usize,
    /// How workers talk.
    pub transport: Transport,
    /// Shortest time between two cuts.
    pub epoch_min: Duration,
    /// Longest time between two cuts, so that stream time and the record move on.
    pub idle_max: Duration,
    /// Longest time between two checkpoints while anything changes.
    pub checkpoint_every: Duration,
}

impl Plan {
    /// Names the topology.
    #[must_use]
    pub fn topology_hash(&self) -> Hash {
        *blake3::hash(&self.topology).as_bytes()
    }
}
