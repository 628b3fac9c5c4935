//! `cargo xtask bench [NAME] [--json]`: runs the benches and prints their figures.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use tidings_benches::figure::{Figure, Place, table};
use tidings_benches::setup::Setup;
use tidings_benches::workload::{Size, Workload};
use tidings_benches::{decide, instructions, p0_latency, record, restore, through_log};
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_sinks::log::Log;
use tidings_sinks::log::embedded::EmbeddedLog;
use tidings_sinks::log::kafka::{KafkaLog, KafkaParams};

/// As in `tidings` itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Benchmarks of tidings.
#[derive(Parser)]
#[command(name = "tidings-benches")]
struct Arguments {
    /// Only this bench.
    name: Option<Bench>,
    /// One JSON object a figure.
    #[arg(long)]
    json: bool,
    /// Seconds instead of minutes: shows that it works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// How often each figure is measured.
    #[arg(long, default_value_t = 5)]
    repetitions: u32,
    /// Events of a run instead of a million.
    #[arg(long)]
    events: Option<u64>,
    /// Users instead of 262,144.
    #[arg(long)]
    users: Option<u64>,
    /// Only this many workers, instead of one and then two.
    #[arg(long)]
    workers: Option<usize>,
    /// What `instructions` lets callgrind run.
    #[arg(long, hide = true)]
    counted: bool,
    /// A Kafka for `decide_kafka`, `host:port`. Topics of its own are made there, and kept for a day.
    #[arg(long, env = "TIDINGS_TEST_KAFKA")]
    kafka: Option<String>,
    /// A Redis for `p0_latency`, which needs Kafka and ClickHouse, too.
    #[arg(long, env = "TIDINGS_TEST_REDIS")]
    redis: Option<String>,
    /// A ClickHouse for `record` and `p0_latency`. A database of its own is made there, and dropped.
    #[arg(long, env = "TIDINGS_TEST_CLICKHOUSE")]
    clickhouse: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Bench {
    /// Decide throughput from bytes in memory, checkpoints off.
    DecideMemory,
    /// The same with checkpoints.
    DecideMemoryCheckpoints,
    /// The whole stage over an embedded log.
    DecideEmbedded,
    /// The whole stage over a Kafka.
    DecideKafka,
    /// Instructions an event, by part, counted by callgrind; measured once, because every run counts the same.
    /// Its size is its own.
    Instructions,
    /// Seconds until a checkpoint stands in the workers' tables.
    Restore,
    /// Lifecycle rows into ClickHouse, and what a notification takes there. Its size is its own unless one is named.
    Record,
    /// Milliseconds from Kafka to the provider, with a flood of the lowest priority and without. Needs
    /// the binary `tidings` beside this one; measured once, whatever `--repetitions` says.
    P0Latency,
}

struct Session {
    arguments: Arguments,
    setup: Setup,
    size: Size,
    place: Place,
    figures: Vec<Figure>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut size = if arguments.quick { Size::QUICK } else { Size::FULL };
    size.events = arguments.events.unwrap_or(size.events);
    size.users = arguments.users.unwrap_or(size.users);
    let mut session = Session { setup: Setup::example()?, size, place: Place::here(), figures: Vec::new(), arguments };
    for bench in Bench::value_variants() {
        if session.arguments.name.is_none_or(|name| name == *bench) {
            session.run(*bench)?;
        }
    }
    if !session.arguments.json {
        std::io::stdout().write_all(table(&session.figures).as_bytes())?;
    }
    Ok(())
}

fn per_second(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

impl Session {
    fn run(&mut self, bench: Bench) -> Result<()> {
        let workers = self.arguments.workers.map_or(vec![1, 2], |workers| vec![workers]);
        match bench {
            Bench::DecideMemory => self.decide_memory(&self.workload()?, &workers, false),
            Bench::DecideMemoryCheckpoints => self.decide_memory(&self.workload()?, &workers, true),
            Bench::DecideEmbedded => {
                let workload = self.workload()?;
                workers.iter().try_for_each(|workers| {
                    self.through_log("decide_embedded", &workload, *workers, |folder| {
                        let clock = SystemClock::default();
                        Ok(Arc::new(EmbeddedLog::open(folder, Arc::new(move || clock.wall()))?))
                    })
                })
            }
            Bench::DecideKafka => {
                let Some(brokers) = self.arguments.kafka.clone() else {
                    let said = "decide_kafka was NOT measured: name a Kafka with --kafka or TIDINGS_TEST_KAFKA \
                                (cargo xtask services up starts one)\n";
                    std::io::stderr().write_all(said.as_bytes())?;
                    return Ok(());
                };
                let workload = self.workload()?;
                workers.iter().try_for_each(|workers| {
                    self.through_log("decide_kafka", &workload, *workers, |_| {
                        let (linger, patience) = (Duration::from_millis(5), Duration::from_secs(60));
                        let properties = Default::default();
                        let params = KafkaParams { brokers: brokers.clone(), linger, patience, properties };
                        Ok(Arc::new(KafkaLog::open(params)?))
                    })
                })
            }
            Bench::Instructions => self.instructions(),
            Bench::Restore => self.restore(&self.workload()?, &workers),
            Bench::Record => self.record(),
            Bench::P0Latency => self.p0_latency(),
        }
    }

    fn workload(&self) -> Result<Workload> {
        Workload::new(&self.setup, self.size)
    }

    fn repetitions(&self) -> u32 {
        if self.arguments.quick { 1 } else { self.arguments.repetitions }
    }

    fn figure(&mut self, name: String, unit: &'static str, values: &[f64], result: Option<u64>) -> Result<()> {
        self.tell(Figure::new(name, unit, values, result, &self.place))
    }

    fn tell(&mut self, figure: Figure) -> Result<()> {
        if self.arguments.json {
            let mut line = serde_json::to_vec(&figure)?;
            line.push(b'\n');
            std::io::stdout().write_all(&line)?;
        }
        self.figures.push(figure);
        Ok(())
    }

    fn decide_memory(&mut self, workload: &Workload, workers: &[usize], checkpoints: bool) -> Result<()> {
        let mut answer = None;
        for workers in workers {
            let mut values = Vec::new();
            for _ in 0..self.repetitions() {
                let folder = tempfile::tempdir()?;
                let into = checkpoints.then(|| folder.path());
                let run = decide::run(&self.setup, workload, *workers, into)?;
                let before = *answer.get_or_insert(run.hash);
                ensure!(
                    before == run.hash,
                    "{workers} workers answered {:016x}, before it was {before:016x}",
                    run.hash
                );
                values.push(per_second(workload.events, run.elapsed));
            }
            let name = if checkpoints { "decide_memory, checkpoints" } else { "decide_memory" };
            self.figure(format!("{name}, {workers} workers"), "events/s", &values, answer)?;
        }
        Ok(())
    }

    fn through_log(
        &mut self,
        name: &str,
        workload: &Workload,
        workers: usize,
        open: impl Fn(&std::path::Path) -> Result<Arc<dyn Log>>,
    ) -> Result<()> {
        let mut values = Vec::new();
        for repetition in 0..self.repetitions() {
            let folder = tempfile::tempdir()?;
            let log = open(&folder.path().join("log"))?;
            // Runs must not find each other's topics.
            let prefix = format!("bench-{}-{}-{repetition}", SystemClock::default().wall().0, std::process::id());
            let checkpoints = folder.path().join("checkpoints");
            let run = through_log::run(&self.setup, workload, workers, &log, &prefix, &checkpoints)?;
            values.push(per_second(workload.events, run.elapsed));
        }
        self.figure(format!("{name}, {workers} workers"), "events/s", &values, None)
    }

    fn instructions(&mut self) -> Result<()> {
        if std::process::Command::new("valgrind").arg("--version").output().is_err() {
            let said = "instructions was NOT measured: there is no valgrind (Debian: apt-get install valgrind)\n";
            std::io::stderr().write_all(said.as_bytes())?;
            return Ok(());
        }
        let workload = Workload::new(&self.setup, instructions::SIZE)?;
        let decided = instructions::decide(&self.setup, &workload)?;
        if self.arguments.counted {
            return Ok(());
        }
        let per_event = |count: u64| count as f64 / workload.events as f64;
        for (name, count) in [("lane records", decided.said), ("rows", decided.rows), ("changed keys", decided.images)]
        {
            self.figure(format!("instructions, {name}"), "per event", &[per_event(count)], Some(decided.hash))?;
        }
        let folder = tempfile::tempdir()?;
        for part in instructions::PARTS {
            let mut program = std::process::Command::new(std::env::current_exe()?);
            let total = instructions::count(program.args(["instructions", "--counted"]), part, folder.path())?;
            let name = format!("instructions, {}", part.name);
            self.figure(name, "per event", &[per_event(total)], Some(decided.hash))?;
        }
        Ok(())
    }

    fn record(&mut self) -> Result<()> {
        let Some(clickhouse) = self.arguments.clickhouse.clone() else {
            let said = "record was NOT measured: name a ClickHouse with --clickhouse or TIDINGS_TEST_CLICKHOUSE \
                        (cargo xtask services up starts one)\n";
            std::io::stderr().write_all(said.as_bytes())?;
            return Ok(());
        };
        let Arguments { quick, events, users, .. } = self.arguments;
        let mut size = if quick { Size::QUICK } else { record::FULL };
        size.events = events.unwrap_or(size.events);
        size.users = users.unwrap_or(size.users);
        let decided = record::decide(&self.setup, &Workload::new(&self.setup, size)?)?;
        let runs = (0..self.repetitions()).map(|_| record::run(&decided, &clickhouse)).collect::<Result<Vec<_>>>()?;
        let written: Vec<_> = runs.iter().map(|run| per_second(run.rows, run.elapsed)).collect();
        self.figure("record, rows into ClickHouse".to_owned(), "rows/s", &written, None)?;
        let each = |run: &record::Run, bytes: u64| bytes as f64 / run.notifications as f64;
        let on_disk: Vec<_> = runs.iter().map(|run| each(run, run.disk_bytes)).collect();
        self.figure("record, on disk".to_owned(), "bytes/notification", &on_disk, None)?;
        // Where they go: how parts are merged does not change that much.
        for (name, bytes) in
            runs.last().iter().flat_map(|run| run.columns.iter().map(|(name, bytes)| (name, each(run, *bytes))))
        {
            if bytes >= 1.0 {
                self.figure(format!("record, on disk: {name}"), "bytes/notification", &[bytes], None)?;
            }
        }
        Ok(())
    }

    fn p0_latency(&mut self) -> Result<()> {
        let Arguments { kafka, redis, clickhouse, quick, .. } = &self.arguments;
        let (Some(kafka), Some(redis), Some(clickhouse)) = (kafka.clone(), redis.clone(), clickhouse.clone()) else {
            let said = "p0_latency was NOT measured: it needs Kafka, Redis and ClickHouse; `cargo xtask bench` \
                        starts them\n";
            std::io::stderr().write_all(said.as_bytes())?;
            return Ok(());
        };
        let size = if *quick { p0_latency::Size::QUICK } else { p0_latency::Size::FULL };
        let services = p0_latency::Services { kafka, redis, clickhouse };
        let tidings = std::env::current_exe()?.with_file_name("tidings");
        let run = p0_latency::run(&tidings, &services, size, self.arguments.workers.unwrap_or(2))?;
        for (flood, latencies) in [("without a flood", &run.quiet), ("under a flood", &run.flooded)] {
            for (priority, millis) in &latencies.arrived {
                let name = format!("p0_latency, {priority} {flood}");
                self.tell(Figure::latency(name, millis, &self.place))?;
            }
            let name = format!("p0_latency, Kafka alone {flood}");
            self.tell(Figure::latency(name, &latencies.acknowledged, &self.place))?;
        }
        self.figure("p0_latency, flood decided".to_owned(), "events/s", &[run.flood_per_second], None)?;
        self.figure("p0_latency, critical unknown".to_owned(), "attempts", &[run.unknown as f64], None)?;
        let seconds = run.stopped_in.as_secs_f64();
        self.figure("p0_latency, stop under the flood".to_owned(), "s", &[seconds], None)
    }

    fn restore(&mut self, workload: &Workload, workers: &[usize]) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let decided = decide::run(&self.setup, workload, 1, Some(folder.path()))?;
        let manifest = decided.checkpoint.context("a run with checkpoints leaves one")?;
        let mut answer = None;
        for workers in workers {
            let mut values = Vec::new();
            for _ in 0..self.repetitions() {
                let run = restore::run(&self.setup, folder.path(), &manifest, *workers)?;
                let before = *answer.get_or_insert(run.hash);
                ensure!(before == run.hash, "{workers} workers read {:016x}, before it was {before:016x}", run.hash);
                values.push(run.elapsed.as_secs_f64() * 1e6 / run.keys as f64);
            }
            self.figure(format!("restore, {workers} workers"), "s/million keys", &values, answer)?;
        }
        Ok(())
    }
}
