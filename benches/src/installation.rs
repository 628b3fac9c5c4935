//! An installation under measurement: `tidings run` as a process with all stages on real Kafka, Redis and ClickHouse,
//! simulated providers over HTTP/2 with TLS, and probes.
//!
//! *Probes* are events for users of their own, so that a device token names a probe. All of it is one machine: mails
//! that are no probes go to a second set of simulated providers, which gives way to what is measured; elsewhere it would
//! be other machines.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use rustix::process::{Pid, Signal};
use serde_json::json;
use tidings_pipeline::process::give_way;
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_schemas::channel::Priority;
use tidings_schemas::ids::lane_partition;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::Topics;
use tidings_sinks::log::kafka::{KafkaLog, KafkaParams};
use tidings_sinks::log::{Append, Log, TopicPartition};
use tidings_sinks::simulated::{Config, Simulated};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// The topology, but for what [`topology`] changes.
const TOPOLOGY: &str = include_str!("../../examples/topology.yaml");
/// Partitions of every topic but the cut log.
const PARTITIONS: u32 = 2;
/// Records per append of the flood and of addresses.
pub(crate) const CHUNK: usize = 1_000;
/// Probes of each priority before anything is measured: connections come about, caches fill.
pub(crate) const WARM_UP_PROBES: u32 = 20;
/// How long anything may take that is waited for: a minute beyond which something is broken, not slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at what is waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// The two priorities that are measured.
pub(crate) const MEASURED: [Priority; 2] = [Priority::Critical, Priority::High];

/// Where the real services are.
#[derive(Clone, Debug)]
pub struct Services {
    /// `host:port` of Kafka.
    pub kafka: String,
    /// The URL of Redis.
    pub redis: String,
    /// The URL of ClickHouse.
    pub clickhouse: String,
}

/// The installation.
pub(crate) struct Installation {
    tidings: PathBuf,
    pub(crate) services: Services,
    pub(crate) clock: Arc<SystemClock>,
    name: String,
    folder: tempfile::TempDir,
    pub(crate) topics: Topics,
    pub(crate) log: Arc<dyn Log>,
    /// Sends probes.
    runtime: Runtime,
    /// What receives probes, on a runtime of its own.
    pub(crate) receiving: (Runtime, Simulated),
    /// What receives the flood.
    swamped: (Runtime, Simulated),
}

/// `tidings run`; it does not outlive the bench.
pub(crate) struct Running {
    pub(crate) child: Child,
    console: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already where all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A user who receives one message.
pub(crate) struct Probe {
    pub(crate) priority: Priority,
    pub(crate) user: String,
    pub(crate) token: String,
}

/// Milliseconds of every probe.
#[derive(Debug, Default)]
pub struct Latencies {
    /// From its append to the provider's acceptance, by priority.
    pub arrived: BTreeMap<Priority, Vec<f64>>,
    /// From its append to Kafka's acknowledgement.
    pub acknowledged: Vec<f64>,
}

/// Measures on an installation with the binary `tidings` on `services`, which are left without its database.
pub(crate) fn with<T>(
    tidings: &Path,
    services: &Services,
    messages_max: usize,
    measure: impl FnOnce(&Installation) -> Result<T>,
) -> Result<T> {
    ensure!(tidings.is_file(), "{} is not there; `cargo build --bin tidings` makes it", tidings.display());
    let clock = Arc::new(SystemClock::default());
    let name = format!("bench_{}_{}", clock.wall().0, std::process::id());
    let installation = Installation::new(tidings, services, messages_max, clock, &name)?;
    ask(&services.clickhouse, "POST", "/", &format!("CREATE DATABASE {name}"))?;
    let measured = installation.prepare().and_then(|()| measure(&installation));
    let dropped = ask(&services.clickhouse, "POST", "/", &format!("DROP DATABASE {name} SYNC"));
    let measured = measured?;
    dropped?;
    Ok(measured)
}

impl Installation {
    /// A fresh one, whose simulated providers keep so many messages to probes.
    fn new(
        tidings: &Path,
        services: &Services,
        messages_max: usize,
        clock: Arc<SystemClock>,
        name: &str,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let simulated = |messages_max, begin: fn()| -> Result<(Runtime, Simulated)> {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).on_thread_start(begin).enable_all().build()?;
            let wall = Arc::clone(&clock);
            let config = Config::new(Arc::new(move || wall.wall()));
            let config = Config { keys: Some(folder.path().join("keys")), messages_max, ..config };
            let simulated = runtime.block_on(Simulated::start(config))?;
            Ok((runtime, simulated))
        };
        // What stands for other machines must not slow the probes' own down.
        let (receiving, swamped) = (simulated(messages_max, || ())?, simulated(100, give_way)?);
        // Probes are on their way alone; the flood is filled in by the other handle.
        let log = kafka(services, Duration::ZERO)?;
        Ok(Self {
            tidings: tidings.to_owned(),
            services: services.clone(),
            clock,
            name: name.to_owned(),
            folder,
            topics: Topics::new(name),
            log,
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?,
            receiving,
            swamped,
        })
    }

    /// Its topology and topics.
    fn prepare(&self) -> Result<()> {
        std::fs::write(self.folder.path().join("topology.yaml"), topology(&self.name)?)?;
        let created = self.command(&["topics", "create", "-c", "topology.yaml"]).output()?;
        ensure!(created.status.success(), "topics: {}", String::from_utf8_lossy(&created.stderr));
        Ok(())
    }

    /// `tidings` with these arguments, in the installation's folder.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tidings);
        let (receiving, swamped) = (self.receiving.1.endpoints(), self.swamped.1.endpoints());
        command.current_dir(self.folder.path()).args(arguments).env_clear().envs([
            ("KAFKA", self.services.kafka.clone()),
            ("REDIS", self.services.redis.clone()),
            ("CLICKHOUSE", format!("{}/?database={}", self.services.clickhouse, self.name)),
            ("APNS", receiving.apns.clone()),
            ("FCM", swamped.fcm.clone()),
            ("SES", swamped.ses.clone()),
        ]);
        command
    }

    /// Probes of both priorities, in turn.
    pub(crate) fn probes(phase: &str, count: u32) -> Vec<Probe> {
        let of = |number: u32| {
            MEASURED.map(|priority| {
                let user = format!("{phase}-{priority}-{number}");
                let token = blake3::hash(user.as_bytes()).to_hex().to_string();
                Probe { priority, user, token }
            })
        };
        (0..count).flat_map(of).collect()
    }

    /// Appends the addresses of all.
    /// Those of probes, and a mail address for each of these users.
    pub(crate) fn introduce<'a>(
        &self,
        probes: impl Iterator<Item = &'a Probe>,
        mails: impl Iterator<Item = String>,
    ) -> Result<()> {
        let phone = |probe: &Probe| {
            let address = json!({ "user_id": probe.user, "address_id": "phone", "channel": "push", "platform": "ios",
                "address": probe.token, "environment": "production" });
            (probe.user.clone(), address)
        };
        let mail = |user: String| {
            let address = json!({ "user_id": user, "address_id": "mail", "channel": "email",
                "address": format!("{user}@example.com") });
            (user, address)
        };
        let topic = self.topics.addresses();
        let appends: Vec<_> = (probes.map(phone).chain(mails.map(mail)))
            .map(|(user, address)| {
                let key = format!("{user}/{}", address["address_id"].as_str().unwrap_or_default());
                Append {
                    to: place(&topic, &user),
                    key: Some(key.into()),
                    value: Some(address.to_string().into()),
                    headers: Vec::new(),
                }
            })
            .collect();
        appends.chunks(CHUNK).try_for_each(|chunk| self.log.append(chunk).map(drop))?;
        Ok(())
    }

    pub(crate) fn start(&self, workers: usize) -> Result<Running> {
        let said = self.folder.path().join("said");
        let workers = workers.to_string();
        let arguments = ["run", "-c", "topology.yaml", "--log", "warn,tidings_pipeline::process=info"];
        let mut command = self.command(&arguments);
        command.args(["--workers", workers.as_str(), "--admin", "127.0.0.1:0", "--ca", "keys/ca.pem"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&said)?).spawn()?;
        let mut running = Running { child, console: String::new() };
        let give_up = self.clock.elapsed() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(&said)?;
            if let Some((_, rest)) = text.split_once("metrics at ").filter(|(_, rest)| rest.contains('\n')) {
                running.console = rest.lines().next().unwrap_or_default().to_owned();
                return Ok(running);
            }
            ensure!(running.child.try_wait()?.is_none(), "`tidings run` ended:\n{text}");
            ensure!(self.clock.elapsed() < give_up, "`tidings run` does not start:\n{text}");
            std::thread::sleep(LOOK);
        }
    }

    /// SIGTERM, and its end.
    pub(crate) fn end(&self, running: &mut Running) -> Result<()> {
        rustix::process::kill_process(Pid::from_child(&running.child), Signal::TERM)?;
        let give_up = self.clock.elapsed() + PATIENCE;
        loop {
            if let Some(status) = running.child.try_wait()? {
                ensure!(status.success(), "`tidings run` ended with {status}:\n{}", self.said());
                return Ok(());
            }
            ensure!(self.clock.elapsed() < give_up, "`tidings run` does not stop:\n{}", self.said());
            std::thread::sleep(LOOK);
        }
    }

    /// The end of what `tidings run` said.
    pub(crate) fn said(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("said")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("({} lines)\n{}", lines.len(), lines[lines.len().saturating_sub(40)..].join("\n"))
    }

    pub(crate) fn probed(&self, running: &Running, probes: &[Probe], spacing: Duration) -> Result<Latencies> {
        self.probed_while(running, probes, spacing, || Ok(()))
    }

    /// Sends probes at their times and waits for all of them; `look` is called all the while.
    pub(crate) fn probed_while(
        &self,
        running: &Running,
        probes: &[Probe],
        spacing: Duration,
        look: impl Fn() -> Result<()>,
    ) -> Result<Latencies> {
        let sending = self.send(probes, spacing);
        let sending = self.runtime.spawn(sending);
        let last = spacing * u32::try_from(probes.len() / MEASURED.len())?;
        let give_up = self.clock.elapsed() + last + PATIENCE;
        let ours: BTreeMap<&str, usize> = (0..).zip(probes).map(|(place, it)| (it.token.as_str(), place)).collect();
        while self.receiving.1.messages().iter().filter(|it| ours.contains_key(it.address.as_str())).count()
            < probes.len()
        {
            look()?;
            if self.clock.elapsed() > give_up {
                let metrics = self.metrics(running).unwrap_or_default();
                self.arrived(probes.iter()).with_context(|| format!("{}\n{metrics}", self.said()))?;
            }
            std::thread::sleep(LOOK * 5);
        }
        let sent = self.runtime.block_on(sending)??;
        self.arrived(probes.iter())?;
        let acknowledged = sent.iter().map(|(at, ack)| ack.since(*at).as_secs_f64() * 1e3).collect();
        let mut arrived: BTreeMap<Priority, Vec<f64>> = BTreeMap::new();
        for message in self.receiving.1.messages() {
            let Some(place) = ours.get(message.address.as_str()) else { continue };
            let (sent_at, arrived_at) = (sent[*place].0, message.at);
            ensure!(sent_at <= arrived_at, "probe {} arrived before it was sent", probes[*place].user);
            arrived.entry(probes[*place].priority).or_default().push(arrived_at.since(sent_at).as_secs_f64() * 1e3);
        }
        Ok(Latencies { arrived, acknowledged })
    }

    /// Sends each at its time, however long the ones before take; when each was, and was acknowledged.
    fn send(
        &self,
        probes: &[Probe],
        spacing: Duration,
    ) -> impl Future<Output = Result<Vec<(Instant, Instant)>>> + Send + use<> {
        let appends: Vec<Append> = probes.iter().map(|probe| self.event(probe)).collect();
        let (log, clock) = (Arc::clone(&self.log), Arc::clone(&self.clock));
        async move {
            let mut sent = vec![(Instant(0), Instant(0)); appends.len()];
            let mut sending = JoinSet::new();
            let mut tick = tokio::time::interval(spacing / MEASURED.len() as u32);
            for (place, append) in appends.into_iter().enumerate() {
                tick.tick().await;
                let (log, clock) = (Arc::clone(&log), Arc::clone(&clock));
                sending.spawn_blocking(move || {
                    let at = clock.wall();
                    log.append(&[append]).map(|_| (place, (at, clock.wall())))
                });
            }
            while let Some(done) = sending.join_next().await {
                let (place, times) = done??;
                sent[place] = times;
            }
            Ok(sent)
        }
    }

    pub(crate) fn event(&self, probe: &Probe) -> Append {
        let (user, id) = (&probe.user, format!("probe-{}", probe.user));
        let event = match probe.priority {
            Priority::Critical => {
                json!({ "id": id, "type": "verification_code", "user_id": user, "data": { "code": "123456" } })
            }
            _ => json!({ "id": id, "type": "new_message", "user_id": user,
                "actor": { "id": "eve", "name": "Eve" }, "data": { "text": "hello" } }),
        };
        Append {
            to: place(&self.topics.events(probe.priority), user),
            key: Some(Bytes::copy_from_slice(user.as_bytes())),
            value: Some(event.to_string().into()),
            headers: Vec::new(),
        }
    }

    /// Every probe exactly once.
    pub(crate) fn arrived<'a>(&self, probes: impl Iterator<Item = &'a Probe>) -> Result<()> {
        let mut times: BTreeMap<String, u32> = BTreeMap::new();
        for message in self.receiving.1.messages() {
            *times.entry(message.address).or_default() += 1;
        }
        let wrong: Vec<String> = probes
            .map(|probe| (probe, times.get(&probe.token).copied().unwrap_or(0)))
            .filter(|(_, times)| *times != 1)
            .map(|(probe, times)| format!("{} {times} times", probe.user))
            .collect();
        if let Some(first) = wrong.first() {
            bail!("{} probes did not arrive exactly once; the first of them: {first}", wrong.len());
        }
        Ok(())
    }

    pub(crate) fn metrics(&self, running: &Running) -> Result<String> {
        let answer = ask(&running.console, "GET", "/metrics", "");
        answer.with_context(|| format!("`tidings run` does not answer; it said:\n{}", self.said()))
    }

    /// Source records that decide has cut.
    pub(crate) fn decided(&self, running: &Running) -> Result<u64> {
        Ok(sum(&self.metrics(running)?, |labels| labels == "tidings_source_records_total"))
    }
}

pub(crate) fn kafka(services: &Services, linger: Duration) -> Result<Arc<dyn Log>> {
    let (brokers, properties) = (services.kafka.clone(), BTreeMap::new());
    Ok(Arc::new(KafkaLog::open(KafkaParams { brokers, linger, patience: PATIENCE, instance: None, properties })?))
}

/// One plain request to `http://HOST:PORT`, and the answer's body.
fn ask(server: &str, method: &str, path: &str, body: &str) -> Result<String> {
    let host = server.strip_prefix("http://").with_context(|| format!("`{server}` is no `http://host:port`"))?;
    let mut stream = TcpStream::connect(host).with_context(|| server.to_owned())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, text) = answer.split_once("\r\n\r\n").with_context(|| format!("{server}{path}: `{answer}`"))?;
    let is_good = head.lines().next().is_some_and(|status| status.contains(" 200"));
    ensure!(is_good, "{method} {server}{path} {body}: {head}\n{text}");
    Ok(text.to_owned())
}

pub(crate) fn flood_user(number: u32) -> String {
    format!("flood-{number}")
}

pub(crate) fn place(topic: &str, user: &str) -> TopicPartition {
    TopicPartition { partition: lane_partition(user, PARTITIONS), topic: topic.into() }
}

/// The sum of a metric's values over those of its labels that are wanted.
pub(crate) fn sum(metrics: &str, wanted: impl Fn(&str) -> bool) -> u64 {
    let values = metrics.lines().filter_map(|line| line.rsplit_once(' ')).filter(|(labels, _)| wanted(labels));
    values.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
}

/// The example, in an installation of its own, all stores shared; nobody's limit ends the flood.
fn topology(prefix: &str) -> Result<String> {
    let (text, _tests) = TOPOLOGY.split_once("\ntests:").context("the example topology has tests")?;
    let partitions =
        ["critical", "high", "medium", "low"].map(|priority| format!("{priority}: {PARTITIONS}")).join(", ");
    let mut text = text.to_owned();
    for (from, to) in [
        (
            "topics: { replication: 1 }",
            format!("topics: {{ prefix: {prefix}, replication: 1, partitions: {{ {partitions} }} }}"),
        ),
        ("notifications.", format!("{prefix}.")),
        // A folder has one owner, whose fsyncs everybody waits for; what is measured is a set of machines' store.
        ("inbox: {}", "inbox: { redis: \"${REDIS}\" }".to_owned()),
        ("{ category: marketing, priority: low }", "{ category: marketing, priority: low, limits: exempt }".to_owned()),
    ] {
        ensure!(text.contains(from), "the example topology has no `{from}` any more");
        text = text.replace(from, &to);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_the_labels_that_are_wanted() {
        let metrics = "# HELP a b\na{group=\"x.critical\"} 2\na{group=\"x.low\"} 3\na{group=\"y.critical\"} 4\n";
        assert_eq!(sum(metrics, |labels| labels.starts_with("a{") && labels.contains(".critical\"")), 6);
    }
}
