//! Every crash point of very small worlds, alone and in pairs.
//!
//! A small world is run once without a fault to count its durable writes. Then each write goes wrong
//! in each way: refused, torn, unheard, late, the process dying before, in and after it, or standing
//! still behind it while the next generation starts (and then going on as a zombie). Then each pair
//! of writes, so that up to three generations meet. Interleavings of what lies between two writes are
//! drawn from a few seeds. The bound on runs is said; what lies beyond it was not searched.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checks::Broken;
use crate::log::Fate;
use crate::options::{DeliverOptions, Faults, Options};
use crate::run::run_with;

/// The ways in which one write goes wrong.
pub const WAYS: [Fate; 8] = [
    Fate::Dies(0),
    Fate::Dies(1),
    Fate::Dies(usize::MAX),
    Fate::Torn(1),
    Fate::Torn(usize::MAX),
    Fate::Unreachable,
    Fate::Late,
    Fate::Frozen,
];

/// The second fault hits one of so many writes after the first: a whole recovery and an epoch or two.
const BEYOND: u64 = 16;

/// What a search came to.
#[derive(Debug, Default)]
pub struct Searched {
    /// Worlds that were run.
    pub runs: u64,
    /// Runs that there are in all.
    pub all: u64,
    /// The world, the script and the promise that it broke.
    pub broken: Option<(u64, BTreeMap<u64, Fate>, Broken)>,
}

/// The small world of `seed`: one or two workers, a few epochs.
#[must_use]
pub fn small(seed: u64) -> Options {
    let drawn = Options::draw(seed);
    Options {
        spread: Duration::ZERO,
        event_partitions: 2,
        lane_partitions: 1,
        profile_partitions: 1,
        workers_max: 2,
        users: 2,
        batches: 2,
        batch_max: 4,
        hours: 1,
        epoch_min: Duration::from_millis(1),
        idle_max: Duration::from_secs(100 * 3_600),
        checkpoint_every: Duration::from_millis(1),
        faults_max: 0,
        alive_max: 3,
        faults: Faults::default(),
        // Its writes would be most of them; what it does about them is the seeds' to find.
        deliver: DeliverOptions { runs: false, ..drawn.deliver.clone() },
        ..drawn
    }
}

/// Searches the small worlds of `seeds`: all single faults, and of the pairs up to `runs_max` a world.
#[must_use]
pub fn search(seeds: std::ops::Range<u64>, runs_max: usize) -> Searched {
    let mut searched = Searched::default();
    for seed in seeds {
        let writes = run_with(small(seed), BTreeMap::new(), None, false).writes;
        let first = || (1..=writes).flat_map(|write| WAYS.map(|way| (write, way)));
        let single: Vec<_> = first().map(|(write, way)| BTreeMap::from([(write, way)])).collect();
        // A second fault hits what comes after the first: the recovery, and what follows it.
        let pair = first().flat_map(|(write, way)| {
            let second = (write + 1..=write + BEYOND).flat_map(|later| WAYS.map(|again| (later, again)));
            second.map(move |second| BTreeMap::from([(write, way), second]))
        });
        let pair: Vec<_> = pair.collect();
        searched.all += (single.len() + pair.len()) as u64;
        // Pairs are thinned evenly where they are too many.
        let thin = pair.len() / runs_max.max(1) + 1;
        for script in single.into_iter().chain(pair.into_iter().step_by(thin)) {
            searched.runs += 1;
            if let Some(broken) = run_with(small(seed), script.clone(), None, false).broken {
                searched.broken = Some((seed, script, broken));
                return searched;
            }
        }
    }
    searched
}
