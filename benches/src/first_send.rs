//! How long nobody is told anything after a SIGKILL: from the kill to the first message that was decided and sent after
//! it, with millions of keys of state to be restored.
//!
//! A process with all stages is killed in the middle of nothing in particular and started again at once, as a supervisor
//! would. Two probes are appended right after the kill: one of priority `critical`, which needs no state, and one of `high`,
//! which the restored state decides. Their time runs from the kill to the moment at which the simulated provider counted
//! them. The state: each event of the load leaves its dedup key; nobody is sent anything for it, because its users have no
//! address of its channel, so that no lane has a backlog.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tidings_pipeline::runtime::clock::Clock as _;
use tidings_schemas::channel::Priority;
use tidings_sinks::log::Append;

use crate::installation::{
    self, CHUNK, Installation, LOOK, PATIENCE, Probe, Running, Services, WARM_UP_PROBES, flood_user, kafka, place, sum,
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Events of the load, and with it keys of state at least.
    pub keys: u64,
    /// Kills.
    pub kills: u32,
}

impl Size {
    /// Two million keys, five kills.
    pub const FULL: Self = Self { keys: 2_000_000, kills: 5 };
    /// Seconds: shows that it works, not how fast it is.
    pub const QUICK: Self = Self { keys: 10_000, kills: 1 };
}

/// Users of the load.
const USERS: u64 = 100_000;

/// How long the load may take to be decided.
const LOADED_WITHIN: Duration = Duration::from_secs(600);

/// Seconds from each kill to the first send, by priority.
pub type FirstSends = BTreeMap<Priority, Vec<f64>>;

/// Measures with the binary `tidings`, on `services`, which are left without this run's database.
///
/// # Errors
/// When a service or the process fails, or a probe does not arrive.
pub fn run(tidings: &Path, services: &Services, size: Size, workers: usize) -> Result<FirstSends> {
    installation::with(tidings, services, 1_000, |bench| measure(bench, size, workers))
}

fn measure(bench: &Installation, size: Size, workers: usize) -> Result<FirstSends> {
    let warm = Installation::probes("warm", WARM_UP_PROBES);
    let probes: Vec<Vec<Probe>> =
        (0..size.kills).map(|kill| Installation::probes(&format!("kill-{kill}"), 1)).collect();
    bench.introduce(warm.iter().chain(probes.iter().flatten()), std::iter::empty())?;
    let mut running = bench.start(workers)?;
    bench.probed(&running, &warm, LOOK)?;
    load(bench, &running, size.keys)?;
    let mut sends = FirstSends::new();
    for probes in &probes {
        let killed = bench.clock.wall();
        running.child.kill()?;
        running.child.wait()?;
        bench.log.append(&probes.iter().map(|probe| bench.event(probe)).collect::<Vec<_>>())?;
        running = bench.start(workers)?;
        let give_up = bench.clock.elapsed() + PATIENCE;
        for probe in probes {
            let sent = loop {
                let message = bench.receiving.1.messages().into_iter().find(|it| it.address == probe.token);
                if let Some(message) = message {
                    break message.at;
                }
                if bench.clock.elapsed() > give_up {
                    bail!("{} was not sent within {PATIENCE:?} of the kill:\n{}", probe.user, bench.said());
                }
                std::thread::sleep(LOOK);
            };
            sends.entry(probe.priority).or_default().push(sent.since(killed).as_secs_f64());
        }
        settled(bench, &running)?;
    }
    bench.end(&mut running)?;
    Ok(sends)
}

/// Appends the load, and waits until it is decided and in a checkpoint.
fn load(bench: &Installation, running: &Running, keys: u64) -> Result<()> {
    let log = kafka(&bench.services, Duration::from_millis(5))?;
    let before = bench.decided(running)?;
    let topic = bench.topics.events(Priority::Low);
    for first in (0..keys).step_by(CHUNK) {
        let event = |number: u64| {
            let user = flood_user(u32::try_from(number % USERS).unwrap_or_default());
            let event = json!({ "id": format!("load{number}"), "type": "recommendation", "user_id": user,
                "channels": ["email"], "object": { "id": format!("book{number}") } });
            Append {
                to: place(&topic, &user),
                key: Some(user.into()),
                value: Some(event.to_string().into()),
                headers: Vec::new(),
            }
        };
        log.append(&(first..keys.min(first + CHUNK as u64)).map(event).collect::<Vec<_>>())?;
    }
    let give_up = bench.clock.elapsed() + LOADED_WITHIN;
    while bench.decided(running)? < before + keys {
        ensure!(bench.clock.elapsed() < give_up, "the load is not decided:\n{}", bench.said());
        std::thread::sleep(LOOK);
    }
    settled(bench, running)
}

/// Waits for a checkpoint of all that is decided by now.
fn settled(bench: &Installation, running: &Running) -> Result<()> {
    let value = |name: &str| Ok::<_, anyhow::Error>(sum(&bench.metrics(running)?, |labels| labels == name));
    let epoch = value("tidings_epoch")?;
    let give_up = bench.clock.elapsed() + PATIENCE;
    while value("tidings_checkpoint_epoch")? < epoch {
        ensure!(bench.clock.elapsed() < give_up, "there is no checkpoint:\n{}", bench.said());
        std::thread::sleep(LOOK);
    }
    Ok(())
}
