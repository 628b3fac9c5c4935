//! How long a critical message takes from Kafka to the provider's acceptance, while a flood of the lowest
//! priority takes all that the machine has; and how long without the flood. High priority goes the same way.
//!
//! Real Kafka, Redis and ClickHouse, `tidings run` as a process with all stages, simulated providers over
//! HTTP/2 with TLS. *Probes* are events for users of their own, so that a device token names a probe; they
//! are sent at fixed times whatever became of the ones before. A probe's time runs from right before its
//! append, at the producer, to the moment at which the simulated APNs counted it, on one clock that shows
//! milliseconds. All of it is one machine: mails of the flood go to a second set of simulated providers, which
//! gives way to what is measured, as the flood's producer does; elsewhere they would be other machines. How
//! long Kafka alone took to acknowledge each probe is measured beside it: a broker that is short of a core shows
//! there, and a probe meets it four times (two appends, two fetches).
//!
//! The flood is events of priority `low`, appended without a pause while no more than [`Size::lead`] of
//! them wait to be decided: so either decide or the producer beside it takes all it can get, until the last
//! probe has arrived. Before a time counts every probe must have arrived exactly once; that is looked at again
//! when the process is gone.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde_json::json;
use tidings_pipeline::process::give_way;
use tidings_pipeline::runtime::clock::Clock as _;
use tidings_schemas::channel::Priority;
use tidings_sinks::log::{Append, Log};

use crate::installation::{
    self, CHUNK, Installation, LOOK, Latencies, PATIENCE, Services, WARM_UP_PROBES, flood_user, kafka, place, sum,
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Probes of each priority in each of the two measurements.
    pub probes: u32,
    /// The time between two probes of one priority.
    pub spacing: Duration,
    /// Events of the flood that wait to be decided at most.
    pub lead: u64,
    /// Users of the flood; every second one has a mail address, the others have an inbox only.
    pub flood_users: u32,
    /// How long the flood runs before it is measured under.
    pub flood_before: Duration,
}

impl Size {
    /// About a minute.
    pub const FULL: Self = Self {
        probes: 750,
        spacing: Duration::from_millis(20),
        lead: 100_000,
        flood_users: 20_000,
        flood_before: Duration::from_secs(5),
    };
    /// Seconds: shows that it works, not how fast it is.
    pub const QUICK: Self = Self {
        probes: 50,
        spacing: Duration::from_millis(20),
        lead: 20_000,
        flood_users: 500,
        flood_before: Duration::from_secs(1),
    };
}

/// What was measured.
#[derive(Debug)]
pub struct Run {
    /// Flood off.
    pub quiet: Latencies,
    /// Under the flood.
    pub flooded: Latencies,
    /// Events of the flood that decide cut per second while probes were measured.
    pub flood_per_second: f64,
    /// Critical attempts whose end was not known: the ledger was not asked, or a call was not answered.
    pub unknown: u64,
    /// From SIGTERM, under the flood's backlog, to the end of the process.
    pub stopped_in: Duration,
}

/// Measures with the binary `tidings`, on `services`, which are left without this run's database.
///
/// # Errors
/// When a service or the process fails, or a probe did not arrive exactly once.
pub fn run(tidings: &Path, services: &Services, size: Size, workers: usize) -> Result<Run> {
    let messages_max = 10 * (size.probes as usize + WARM_UP_PROBES as usize);
    installation::with(tidings, services, messages_max, |bench| Bench { bench, size }.measure(workers))
}

struct Bench<'a> {
    bench: &'a Installation,
    size: Size,
}

impl Bench<'_> {
    fn measure(&self, workers: usize) -> Result<Run> {
        let (bench, Size { probes, spacing, flood_users, .. }) = (self.bench, self.size);
        let phases = [("warm", WARM_UP_PROBES), ("quiet", probes), ("flooded", probes)]
            .map(|(phase, count)| Installation::probes(phase, count));
        let mails = (0..flood_users).filter(|number| number.is_multiple_of(2)).map(flood_user);
        bench.introduce(phases.iter().flatten(), mails)?;
        let mut running = bench.start(workers)?;
        let [warm, quiet, flooded] = &phases;
        // The first ones wait until addresses are loaded and partitions are dealt out.
        bench.probed(&running, warm, spacing)?;
        let mut measured = Run {
            quiet: bench.probed(&running, quiet, spacing)?,
            flooded: Latencies::default(),
            flood_per_second: 0.0,
            unknown: 0,
            stopped_in: Duration::ZERO,
        };
        let flood = kafka(&bench.services, Duration::from_millis(5))?;
        let (over, decided) = (AtomicBool::new(false), AtomicU64::new(bench.decided(&running)?));
        let before = decided.load(Ordering::Relaxed);
        std::thread::scope(|scope| -> Result<()> {
            // Ends with `over`, whatever happens here.
            let _over = Over(&over);
            let flooding = scope.spawn(|| self.flood(&*flood, before, &decided, &over));
            let look = || -> Result<u64> {
                let now = bench.decided(&running)?;
                decided.store(now, Ordering::Relaxed);
                Ok(now)
            };
            let warm = bench.clock.elapsed() + self.size.flood_before;
            while bench.clock.elapsed() < warm || look()? == before {
                look()?;
                std::thread::sleep(LOOK * 5);
                ensure!(bench.clock.elapsed() < warm + PATIENCE, "the flood is not decided");
            }
            let (begun, first) = (bench.clock.elapsed(), look()?);
            measured.flooded = bench.probed_while(&running, flooded, spacing, || look().map(drop))?;
            let elapsed = bench.clock.elapsed() - begun;
            measured.flood_per_second = (look()? - first) as f64 / elapsed.as_secs_f64();
            over.store(true, Ordering::Relaxed);
            flooding.join().map_err(|_| anyhow!("the flood panicked"))?
        })?;
        let metrics = bench.metrics(&running)?;
        measured.unknown = sum(&metrics, |labels| {
            labels.starts_with("tidings_delivery_unknown_total") && labels.contains(".critical\"")
        });
        let asked = bench.clock.elapsed();
        bench.end(&mut running)?;
        measured.stopped_in = bench.clock.elapsed() - asked;
        bench.arrived(phases.iter().flatten())?;
        Ok(measured)
    }

    /// Appends events until it is over.
    fn flood(&self, log: &dyn Log, before: u64, decided: &AtomicU64, over: &AtomicBool) -> Result<()> {
        give_way();
        let topic = self.bench.topics.events(Priority::Low);
        let mut written = 0;
        while !over.load(Ordering::Relaxed) {
            // Probes are among what was decided: that makes the lead smaller than it seems, by hundreds.
            let decided = decided.load(Ordering::Relaxed).saturating_sub(before);
            if decided + self.size.lead <= written {
                std::thread::sleep(LOOK);
                continue;
            }
            let appends: Vec<_> = (0..CHUNK as u64).map(|place| self.drop(&topic, written + place)).collect();
            log.append(&appends)?;
            written += CHUNK as u64;
        }
        Ok(())
    }

    /// One event of the flood.
    fn drop(&self, topic: &str, number: u64) -> Append {
        let user = flood_user(u32::try_from(number % u64::from(self.size.flood_users)).unwrap_or_default());
        let event = json!({ "id": format!("drop{number}"), "type": "recommendation", "user_id": user,
            "object": { "id": format!("book{number}") }, "data": { "item": "Momo" } });
        Append {
            to: place(topic, &user),
            key: Some(user.into()),
            value: Some(event.to_string().into()),
            headers: Vec::new(),
        }
    }
}

/// Sets it on its way out.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
