//! `cargo xtask bench [NAME] [--json]`: runs the benches and prints their figures.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use tidings_benches::figure::{Figure, Place, table};
use tidings_benches::peers::{self, Flink};
use tidings_benches::setup::Setup;
use tidings_benches::workload::{Size, Workload};
use tidings_benches::{
    Services, decide, first_send, growth, instructions, memory, p0_latency, record, restore, soak, through_log,
};
use tidings_pipeline::process::RECORD_WRITERS;
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
    /// How long `soak` lasts.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// What `instructions` lets callgrind run.
    #[arg(long, hide = true)]
    counted: bool,
    /// The same of `one_more_operator`: the chain with it.
    #[arg(long, hide = true)]
    one_more: bool,
    /// What `memory` starts a process for.
    #[arg(long, hide = true)]
    kind: Option<memory::Kind>,
    /// A Kafka for `decide_kafka`, `host:port`. Topics of its own are made there, and kept for a day.
    #[arg(long, env = "TIDINGS_TEST_KAFKA")]
    kafka: Option<String>,
    /// Where Maven built Flink's job, for `peers`.
    #[arg(long, hide = true, env = "TIDINGS_PEERS_FLINK")]
    flink: Option<PathBuf>,
    /// A Redis for `p0_latency`, which needs Kafka and ClickHouse, too.
    #[arg(long, env = "TIDINGS_TEST_REDIS")]
    redis: Option<String>,
    /// A ClickHouse for `p0_latency`. A database of its own is made there, and dropped.
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
    /// How decide throughput grows with workers, users, partitions, priorities and hot objects, one axis at a time.
    /// Its users are its own.
    Growth,
    /// Instructions an event, by part, counted by callgrind; measured once, because every run counts the same.
    /// Its size is its own.
    Instructions,
    /// Instructions an event that one more stateful operator in the chain costs, counted likewise: a second
    /// `dedup` behind the first, which keeps a key of every event and hands it on.
    OneMoreOperator,
    /// Bytes of a worker's memory that a key of state takes, by operator; measured once. Its size is its own.
    Memory,
    /// Seconds until a checkpoint stands in the workers' tables.
    Restore,
    /// Lifecycle rows into ClickHouse, and what a notification takes there. Its size is its own unless one is named.
    Record,
    /// Milliseconds from Kafka to the provider, with a flood of the lowest priority and without. Needs
    /// the binary `tidings` beside this one; measured once, whatever `--repetitions` says.
    P0Latency,
    /// Seconds from a SIGKILL to the first send after it, with two million keys of state. Needs the binary `tidings`
    /// beside this one.
    FirstSend,
    /// The whole stage at its highest rate for `--minutes`, with every bound hit: samples, and whether memory stayed
    /// bounded. Runs only where it is named.
    Soak,
    /// The same job on Flink, with state on the heap and in RocksDB: from files, and from Kafka where there is one.
    Peers,
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
                        let params =
                            KafkaParams { brokers: brokers.clone(), linger, patience, instance: None, properties };
                        Ok(Arc::new(KafkaLog::open(params)?))
                    })
                })
            }
            Bench::Growth => self.growth(),
            Bench::Instructions => self.instructions(),
            Bench::OneMoreOperator => self.one_more_operator(),
            Bench::Memory => self.memory(),
            Bench::Restore => self.restore(&self.workload()?, &workers),
            Bench::Record => self.record(),
            Bench::P0Latency => self.p0_latency(),
            Bench::FirstSend => self.first_send(),
            Bench::Soak if self.arguments.name.is_none() => Ok(()),
            Bench::Soak => self.soak(),
            Bench::Peers => self.peers(),
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

    fn growth(&mut self) -> Result<()> {
        let mut base = None;
        for point in growth::points() {
            let measured = growth::run(&self.setup, self.size, &point, self.repetitions(), base)?;
            let answer = Some(measured.hash);
            base = base.or(answer);
            self.figure(format!("growth, {}", point.name), "events/s", &measured.rates, answer)?;
            if point.name == "base" || point.name.starts_with("users") {
                let name = format!("growth, {}: named by events", point.name);
                self.figure(name, "users", &[measured.named as f64], answer)?;
            }
        }
        Ok(())
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

    fn one_more_operator(&mut self) -> Result<()> {
        if std::process::Command::new("valgrind").arg("--version").output().is_err() {
            let said = "one_more_operator was NOT measured: there is no valgrind (Debian: apt-get install valgrind)\n";
            std::io::stderr().write_all(said.as_bytes())?;
            return Ok(());
        }
        let workload = Workload::new(&self.setup, instructions::SIZE)?;
        let more = self.setup.with_one_more()?;
        if self.arguments.counted {
            let setup = if self.arguments.one_more { &more } else { &self.setup };
            return instructions::decide(setup, &workload).map(drop);
        }
        let (without, with) = (instructions::decide(&self.setup, &workload)?, instructions::decide(&more, &workload)?);
        let same = (without.said, without.rows) == (with.said, with.rows);
        ensure!(same && with.images > without.images, "one more operator decides otherwise: {without:?}, {with:?}");
        let folder = tempfile::tempdir()?;
        let per_event = |count: u64| count as f64 / workload.events as f64;
        for part in [instructions::PARTS[1], instructions::PARTS[4]] {
            let count = |more: bool| {
                let mut program = std::process::Command::new(std::env::current_exe()?);
                program.args(["one_more_operator", "--counted"]);
                if more {
                    program.arg("--one-more");
                }
                instructions::count(&mut program, part, folder.path())
            };
            let (with, without) = (count(true)?, count(false)?);
            let name = format!("one more operator, {}", part.name);
            self.figure(name, "per event", &[per_event(with) - per_event(without)], None)?;
        }
        let keys = per_event(with.images - without.images);
        self.figure("one more operator, changed keys".to_owned(), "per event", &[keys], Some(with.hash))
    }

    fn memory(&mut self) -> Result<()> {
        let keys = if self.arguments.quick { 50_000 } else { memory::KEYS };
        if let Some(kind) = self.arguments.kind {
            let bytes = memory::measure(kind, keys)?;
            return Ok(writeln!(std::io::stdout(), "{bytes}")?);
        }
        for kind in memory::Kind::ALL {
            let mut program = std::process::Command::new(std::env::current_exe()?);
            program.args(["memory", "--kind", kind.name()]);
            if self.arguments.quick {
                program.arg("--quick");
            }
            let bytes = memory::measure_apart(&mut program)?;
            self.figure(format!("memory, {}", kind.name()), "bytes/key", &[bytes], None)?;
        }
        Ok(())
    }

    /// The real services that are named, and what the environment calls `tidings`; says so where one is missing.
    fn services(&self, bench: &str) -> Result<Option<(Services, PathBuf)>> {
        let Arguments { kafka, redis, clickhouse, .. } = &self.arguments;
        let (Some(kafka), Some(redis), Some(clickhouse)) = (kafka.clone(), redis.clone(), clickhouse.clone()) else {
            let said = format!(
                "{bench} was NOT measured: it needs Kafka, Redis and ClickHouse; `cargo xtask bench` starts them\n"
            );
            std::io::stderr().write_all(said.as_bytes())?;
            return Ok(None);
        };
        let tidings = std::env::current_exe()?.with_file_name("tidings");
        Ok(Some((Services { kafka, redis, clickhouse }, tidings)))
    }

    fn first_send(&mut self) -> Result<()> {
        let Some((services, tidings)) = self.services("first_send")? else { return Ok(()) };
        let mut size = if self.arguments.quick { first_send::Size::QUICK } else { first_send::Size::FULL };
        size.keys = self.arguments.events.unwrap_or(size.keys);
        let sends = first_send::run(&tidings, &services, size, self.arguments.workers.unwrap_or(2))?;
        for (priority, seconds) in &sends {
            self.figure(format!("first_send, {priority} after SIGKILL"), "s", seconds, None)?;
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
        let counts = [1, RECORD_WRITERS];
        let mut by_count: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        // In turns, so that what else the machine does meets all alike.
        for writers in (0..self.repetitions()).flat_map(|_| counts) {
            by_count.entry(writers).or_default().push(record::run(&decided, &clickhouse, writers)?);
        }
        for (writers, runs) in &by_count {
            let written: Vec<_> = runs.iter().map(|run| per_second(run.rows, run.elapsed)).collect();
            self.figure(format!("record, rows into ClickHouse, {writers} writers"), "rows/s", &written, None)?;
        }
        let runs: Vec<_> = by_count.into_values().flatten().collect();
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
        let Some((services, tidings)) = self.services("p0_latency")? else { return Ok(()) };
        let quick = self.arguments.quick;
        let size = if quick { p0_latency::Size::QUICK } else { p0_latency::Size::FULL };
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

    /// Tells the curve sample by sample, whatever `--json` says: twenty minutes are long.
    fn soak(&mut self) -> Result<()> {
        let size = if self.arguments.quick { soak::Size::QUICK } else { soak::Size::minutes(self.arguments.minutes) };
        let folder = tempfile::tempdir()?;
        let run = soak::run(size, self.arguments.workers.unwrap_or(2), folder.path(), |sample| {
            let mut line = serde_json::to_vec(sample)?;
            line.push(b'\n');
            Ok(std::io::stdout().write_all(&line)?)
        })?;
        self.figure("soak, decided".to_owned(), "events/s", &[per_second(run.events, run.elapsed)], None)?;
        let of =
            |value: fn(&soak::Sample) -> u64| run.samples.iter().map(|sample| value(sample) as f64).collect::<Vec<_>>();
        self.figure("soak, memory".to_owned(), "bytes", &of(|sample| sample.resident_bytes), None)?;
        self.figure("soak, state".to_owned(), "keys", &of(|sample| sample.keys), None)?;
        self.figure("soak, disk".to_owned(), "bytes", &of(|sample| sample.disk_bytes), None)?;
        for (bound, hits) in &run.bounds {
            self.figure(format!("soak, {bound}"), "", &[*hits as f64], None)?;
        }
        run.judge(size)
    }

    /// One round warms up and is not counted: the Java machine compiles what runs often. Within a round all run one after
    /// the other, so that a busy neighbour is busy for each of them.
    fn peers(&mut self) -> Result<()> {
        let Some(built) = self.arguments.flink.clone() else {
            let said = "peers was NOT measured: `cargo xtask bench peers` builds Flink's job first\n";
            std::io::stderr().write_all(said.as_bytes())?;
            return Ok(());
        };
        let mut size = if self.arguments.quick { peers::Size::QUICK } else { peers::Size::FULL };
        size.events = self.arguments.events.unwrap_or(size.events);
        size.users = self.arguments.users.unwrap_or(size.users);
        let workers = self.arguments.workers.unwrap_or(2);
        let setup = peers::setup()?;
        let folder = tempfile::tempdir()?;
        let made = peers::make(&setup, size, folder.path())?;
        let mut flink = Flink::start(&built)?;
        let mut rates: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut note = |round: u32, name: String, elapsed: Duration| {
            if round > 0 {
                rates.entry(name).or_default().push(per_second(size.events, elapsed));
            }
        };
        let mut answer = None;
        for round in 0..=self.repetitions() {
            let own = tempfile::tempdir()?;
            let (elapsed, ours) = peers::tidings_from_files(&setup, &made, workers, own.path())?;
            answer = Some(peers::hash(&ours));
            note(round, "peers, files, tidings".to_owned(), elapsed);
            for state in [peers::State::Hashmap, peers::State::Rocksdb] {
                let own = tempfile::tempdir()?;
                let (elapsed, _) = flink.run(state, &peers::From::Files(&made.files), own.path(), workers)?;
                peers::agree(&ours, &Flink::answers(own.path())?)?;
                note(round, format!("peers, files, Flink {}", state.name()), elapsed);
            }
            let Some(brokers) = self.arguments.kafka.clone() else { continue };
            let own = tempfile::tempdir()?;
            let (linger, patience) = (Duration::from_millis(5), Duration::from_secs(60));
            let properties = Default::default();
            let params = KafkaParams { brokers: brokers.clone(), linger, patience, instance: None, properties };
            let log: Arc<dyn Log> = Arc::new(KafkaLog::open(params)?);
            let prefix = format!("peers-{}-{}-{round}", SystemClock::default().wall().0, std::process::id());
            let run = through_log::run(&setup, &made.workload, workers, &log, &prefix, own.path())?;
            note(round, "peers, Kafka, tidings".to_owned(), run.elapsed);
            let topic = format!("{prefix}.events.medium");
            for state in [peers::State::Hashmap, peers::State::Rocksdb] {
                let own = tempfile::tempdir()?;
                let from = peers::From::Kafka(&brokers, &topic);
                let (elapsed, report) = flink.run(state, &from, own.path(), workers)?;
                ensure!(
                    (report.repeats, report.gathered) == (run.repeats, run.parked),
                    "tidings knew {} events and gathered {}, Flink says {report:?}",
                    run.repeats,
                    run.parked
                );
                note(round, format!("peers, Kafka, Flink {}", state.name()), elapsed);
            }
        }
        let ratios: Vec<(String, Vec<f64>)> = rates
            .iter()
            .filter_map(|(name, theirs)| {
                let (job, peer) = name.split_once(", Flink ")?;
                let ours = rates.get(&format!("{job}, tidings"))?;
                let ratio = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
                Some((format!("{job}, tidings against Flink {peer}"), ratio))
            })
            .collect();
        for (name, values) in &rates {
            let answer = answer.filter(|_| name.contains("files"));
            self.figure(name.clone(), "events/s", values, answer)?;
        }
        ratios.iter().try_for_each(|(name, values)| self.figure(name.clone(), "times", values, None))
    }

    fn restore(&mut self, workload: &Workload, workers: &[usize]) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let decided = decide::run(&self.setup, workload, 1, Some(folder.path()))?;
        let manifest = decided.checkpoint.context("a run with checkpoints leaves one")?;
        let mut answer = None;
        for workers in workers {
            let (mut values, mut reading) = (Vec::new(), Vec::new());
            for _ in 0..self.repetitions() {
                let run = restore::run(&self.setup, folder.path(), &manifest, *workers)?;
                let before = *answer.get_or_insert(run.hash);
                ensure!(before == run.hash, "{workers} workers read {:016x}, before it was {before:016x}", run.hash);
                let a_million = |span: Duration| span.as_secs_f64() * 1e6 / run.keys as f64;
                values.push(a_million(run.elapsed));
                reading.push(a_million(run.read));
            }
            self.figure(format!("restore, {workers} workers"), "s/million keys", &values, answer)?;
            self.figure(format!("restore, {workers} workers: reading"), "s/million keys", &reading, answer)?;
        }
        Ok(())
    }
}
