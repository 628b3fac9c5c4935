//! An installation of its own on the real services: a prefix for topics, groups and keys, a database,
//! a folder; and the binary as child processes in it.
#![allow(dead_code, reason = "each program takes what it needs")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::Value;
use tidings_schemas::ids::lane_partition;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::Topics;
use tidings_sinks::log::kafka::{KafkaLog, KafkaParams};
use tidings_sinks::log::{Append, Log, Record, TopicPartition};

use crate::child::Killed;
use crate::workload::{To, Written};

/// How long something may take that is waited for, where nothing else is said.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How long a question may take that is asked again anyway. A ClickHouse that was killed, or is out of breath, now and
/// then takes a connection and says nothing for minutes.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Partitions by priority, so that few files make a topic and several members still share one.
const PARTITIONS: &str = "{ critical: 2, high: 2, medium: 2, low: 1 }";
/// Lines of a child's talk that a failure shows, from its beginning and from its end.
const SAID_LINES: usize = 40;
/// Records per append.
const CHUNK: usize = 500;

#[expect(clippy::disallowed_methods, reason = "where the real services are comes from outside")]
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[expect(clippy::disallowed_methods, reason = "real servers keep real time: the tests' one clock")]
pub(crate) fn now() -> Instant {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Instant(i64::try_from(since.as_millis()).unwrap())
}

/// Where the real services are.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) kafka: String,
    pub(crate) redis: String,
    pub(crate) clickhouse: String,
}

impl Services {
    /// What the environment names; says loudly where it names nothing.
    pub(crate) fn given(test: &str) -> Option<Self> {
        let given = |name: &str| {
            environment(name).or_else(|| {
                // Past the harness's capture: a run without services must not look like one with them.
                let said = format!("SKIPPED {test}: set {name} to run it against real services");
                let _ = writeln!(std::io::stderr(), "{said}");
                None
            })
        };
        Some(Self {
            kafka: given("TIDINGS_TEST_KAFKA")?,
            redis: given("TIDINGS_TEST_REDIS")?,
            clickhouse: given("TIDINGS_TEST_CLICKHOUSE")?,
        })
    }
}

/// An installation.
pub(crate) struct World {
    pub(crate) services: Services,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) topics: Topics,
    pub(crate) database: String,
    pub(crate) log: KafkaLog,
    http: Http,
    /// The variables of the topology.
    variables: BTreeMap<&'static str, String>,
}

impl World {
    /// An empty installation for `test`; none where the environment names no services.
    pub(crate) fn new(test: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let services = Services::given(test)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("e2e_{}_{}_{number}", now().0, std::process::id());
        let (linger, patience) = (Duration::from_millis(5), Duration::from_secs(30));
        let brokers = services.kafka.clone();
        let log =
            KafkaLog::open(KafkaParams { brokers, linger, patience, instance: None, properties: BTreeMap::new() })
                .unwrap();
        let mut world = Self {
            folder: tempfile::tempdir().unwrap(),
            topics: Topics::new(&name),
            http: Http::new(),
            log,
            database: name.clone(),
            variables: BTreeMap::new(),
            services,
        };
        let server = world.services.clickhouse.clone();
        world.http.post(&server, &format!("CREATE DATABASE {name}")).unwrap();
        world.variables.insert("KAFKA", world.services.kafka.clone());
        world.variables.insert("REDIS", world.services.redis.clone());
        world.set("CLICKHOUSE", format!("{server}/?database={name}"));
        world.write_topology(|text| text);
        Some(world)
    }

    pub(crate) fn set(&mut self, variable: &'static str, value: String) {
        self.variables.insert(variable, value);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The shipped topology, in this installation and with a window that a test can wait for.
    pub(crate) fn write_topology(&self, change: impl FnOnce(String) -> String) {
        let shipped = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/topology.yaml");
        let shipped = std::fs::read_to_string(shipped).unwrap();
        let (shipped, _tests) = shipped.split_once("\ntests:").unwrap();
        let prefix = &self.database;
        let mut text = shipped.to_owned();
        // The example's own line makes place for this run's.
        if let Some(start) = text.find("\ntopics: {") {
            let end = text[start + 1..].find('\n').map_or(text.len(), |end| start + 1 + end);
            text.replace_range(start..end, "");
        }
        for (from, to) in [
            ("notifications.", format!("{prefix}.")),
            (
                "version: 1\n",
                format!("version: 1\ntopics: {{ prefix: {prefix}, replication: 1, partitions: {PARTITIONS} }}\n"),
            ),
            // A member that was killed is missed after six seconds, not after Kafka's default of 45.
            ("127.0.0.1:9092}\"", "127.0.0.1:9092}\", properties: { session.timeout.ms: 6000 }".to_owned()),
            ("every: 5s", "every: 2s".to_owned()),
            ("window: 5m", "window: 5s".to_owned()),
            // What is stored in a folder has one owner: a second process beside a first one takes another.
            ("inbox: {}", "inbox: { folder: \"${INBOX:-./data/inbox}\" }".to_owned()),
        ] {
            assert!(text.contains(from), "the shipped topology has no `{from}` any more");
            text = text.replace(from, &to);
        }
        std::fs::write(self.path("topology.yaml"), change(text)).unwrap();
    }

    /// The binary, in this installation's folder and environment.
    pub(crate) fn tidings(&self, arguments: &[&str]) -> Command {
        let built = || env!("CARGO_BIN_EXE_tidings").to_owned();
        let mut command = Command::new(environment("TIDINGS_TEST_BINARY").unwrap_or_else(built));
        command.current_dir(self.folder.path()).args(arguments).env_clear().envs(&self.variables);
        command
    }

    pub(crate) fn create_topics(&self) {
        let output = self.tidings(&["topics", "create", "-c", "topology.yaml"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// `tidings providers` on free ports; the topology's variables name them from now on.
    pub(crate) fn providers(&mut self) -> Providers {
        let ports = ["--apns", "--apns-sandbox", "--fcm", "--ses", "--telnyx", "--twilio", "--inbox"];
        let free = ports.into_iter().flat_map(|port| [port, "0"]);
        let mut command = self.tidings(&["providers", "--json", "--keys", "keys"]);
        let mut child = command.args(free).stdout(Stdio::piped()).spawn().unwrap();
        // A pretty-printed object: it ends with the first line that is a lone brace.
        let mut text = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            text += &line;
            if line == "}" {
                break;
            }
        }
        let endpoints: Value = serde_json::from_str(&text).unwrap();
        let endpoint = |name: &str| endpoints[name].as_str().unwrap().to_owned();
        for (variable, name) in [("APNS", "apns"), ("FCM", "fcm"), ("SES", "ses")] {
            self.set(variable, endpoint(name));
        }
        Providers { child: Killed(child), inbox: endpoint("inbox") }
    }

    /// `tidings run`, until its console is there.
    pub(crate) fn run(&self) -> Running {
        Running::start(self.run_command())
    }

    /// `tidings run` on two workers.
    pub(crate) fn run_command(&self) -> Command {
        self.run_with(&["--workers", "2"])
    }

    /// `tidings run` as one of two processes with one worker each. `hosts` is where both are, as this one sees it, and
    /// `bind` where it listens.
    pub(crate) fn share_command(&self, process: &str, hosts: &[SocketAddr; 2], bind: SocketAddr) -> Command {
        let hosts = hosts.map(|host| host.to_string()).join(",");
        let bind = bind.to_string();
        self.run_with(&["--processes", "2", "--process", process, "--hosts", &hosts, "--bind", &bind])
    }

    fn run_with(&self, more: &[&str]) -> Command {
        let log = "warn,tidings_pipeline::process=info,tidings_pipeline::runtime=info";
        let run = ["run", "--log", log, "-c", "topology.yaml", "--admin", "127.0.0.1:0", "--ca", "keys/ca.pem"];
        self.tidings(&[&run, more].concat())
    }

    /// Appends as producers do, to the partition of each record's user.
    pub(crate) fn write(&self, records: &[Written]) {
        let mut counts = BTreeMap::new();
        let appends: Vec<Append> = records
            .iter()
            .map(|written| {
                let topic = match written.to {
                    To::Events(priority) => self.topics.events(priority),
                    To::Profiles => self.topics.preferences(),
                    To::Addresses => self.topics.addresses(),
                };
                let partitions = *counts.entry(topic.clone()).or_insert_with(|| self.partitions(&topic));
                let user = written.key.split('/').next().unwrap();
                Append {
                    to: TopicPartition { partition: lane_partition(user, partitions), topic: topic.into() },
                    key: Some(Bytes::copy_from_slice(written.key.as_bytes())),
                    value: Some(Bytes::copy_from_slice(&written.value)),
                    headers: Vec::new(),
                }
            })
            .collect();
        for chunk in appends.chunks(CHUNK) {
            self.log.append(chunk).unwrap();
        }
    }

    pub(crate) fn partitions(&self, topic: &str) -> u32 {
        self.log.describe(&[topic.to_owned()]).unwrap().first().unwrap_or_else(|| panic!("no topic {topic}")).partitions
    }

    /// All records of a topic, partition by partition.
    pub(crate) fn read(&self, topic: &str) -> Vec<(u32, Record)> {
        let mut records = Vec::new();
        for partition in 0..self.partitions(topic) {
            let at = TopicPartition { topic: topic.into(), partition };
            let range = self.log.range(&at).unwrap();
            let mut reader = self.log.reader(&at, range.start).unwrap();
            let mut position = range.start;
            while position < range.end {
                let batch = reader.poll(1000, Duration::from_millis(200)).unwrap();
                position = batch.position;
                records.extend(batch.records.into_iter().map(|record| (partition, record)));
            }
        }
        records
    }

    /// ClickHouse's answer in this installation's database, lines of values; for who can ask again.
    pub(crate) fn try_ask(&self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        self.ask_within(sql, ASKED_AGAIN_AFTER)
    }

    fn ask_within(&self, sql: &str, patience: Duration) -> Result<Vec<Vec<String>>, String> {
        let url = format!("{}/?database={}", self.services.clickhouse, self.database);
        let request = self.http.client.post(&url).body(sql.to_owned()).timeout(patience);
        let text = self.http.send(request)?;
        Ok(text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
    }

    pub(crate) fn ask(&self, sql: &str) -> Vec<Vec<String>> {
        self.ask_within(sql, PATIENCE).unwrap_or_else(|error| panic!("{sql}\n{error}"))
    }

    /// The one number that `sql` asks for.
    pub(crate) fn number(&self, sql: &str) -> u64 {
        let answer = self.ask(sql);
        answer[0][0].parse().unwrap_or_else(|_| panic!("{sql}\n{answer:?}"))
    }

    pub(crate) fn get(&self, url: &str) -> Result<String, String> {
        self.http.get(url)
    }

    /// As [`Self::get`], of somebody who may not answer at all.
    pub(crate) fn get_within(&self, url: &str, patience: Duration) -> Result<String, String> {
        self.http.send(self.http.client.get(url).timeout(patience))
    }

    pub(crate) fn post_json(&self, url: &str, body: &Value) {
        self.http.post_json(url, body).unwrap();
    }

    /// What the providers counted.
    pub(crate) fn counts(&self, providers: &Providers) -> Value {
        let place = format!("{}/api/counts", providers.inbox);
        let mut url = place.clone();
        let mut addresses = serde_json::Map::new();
        loop {
            let mut page: Value = serde_json::from_str(&self.get(&url).unwrap()).unwrap();
            addresses.append(page["addresses"].as_object_mut().unwrap());
            match page["next"].as_str() {
                Some(next) => url = reqwest::Url::parse_with_params(&place, [("after", next)]).unwrap().to_string(),
                None => {
                    page["addresses"] = Value::Object(addresses);
                    return page;
                }
            }
        }
    }

    /// One of the numbers at `/metrics`, summed over its labels; none where nobody answers.
    pub(crate) fn metric(&self, running: &Running, name: &str) -> Option<u64> {
        let text = self.get(&format!("{}/metrics", running.console()?)).ok()?;
        let values = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        Some(values.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.http.post(&self.services.clickhouse, &format!("DROP DATABASE {} SYNC", self.database));
    }
}

/// An address of this machine where nobody listens.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub(crate) struct Providers {
    /// Held for its end.
    child: Killed,
    pub(crate) inbox: String,
}

/// What is heard of a process.
#[derive(Default)]
pub(crate) struct Heard {
    /// What it said on stderr so far.
    pub(crate) said: String,
    /// How it ended is to be asked.
    pub(crate) has_ended: bool,
}

impl Heard {
    /// Where its console is. The newest: a supervised process says it each time that it starts.
    fn console(&self) -> Option<String> {
        let (_, rest) = self.said.rsplit_once("metrics at ").filter(|(_, rest)| rest.contains('\n'))?;
        rest.lines().next().map(str::to_owned)
    }

    /// Of much, the beginning and the end.
    fn shown(&self) -> String {
        let lines: Vec<&str> = self.said.lines().collect();
        let (head, tail) =
            (lines.len().min(SAID_LINES), lines.len().saturating_sub(SAID_LINES).max(SAID_LINES.min(lines.len())));
        let left_out = if tail > head { format!("\n… {} lines …\n", tail - head) } else { "\n".to_owned() };
        lines[..head].join("\n") + &left_out + &lines[tail..].join("\n") + "\n"
    }
}

/// Wakes whoever waits to hear of a process.
#[derive(Default)]
struct Ear {
    heard: Mutex<Heard>,
    news: Condvar,
}

impl Ear {
    fn hears(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.heard.lock().unwrap());
        self.news.notify_all();
    }
}

/// `tidings run`.
pub(crate) struct Running {
    child: Killed,
    ear: Arc<Ear>,
}

impl Running {
    /// Starts it.
    pub(crate) fn spawn(command: Command) -> Self {
        Self::spawn_for(command, None)
    }

    /// Starts it; at its end, it is told.
    pub(crate) fn spawn_for(mut command: Command, told: Option<SyncSender<()>>) -> Self {
        let mut child = Killed(command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        let ear = Arc::<Ear>::default();
        let (mut pipe, says) = (child.0.stderr.take().unwrap(), Arc::clone(&ear));
        // Ends with the child.
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = pipe.read(&mut piece) {
                says.hears(|heard| heard.said.push_str(&String::from_utf8_lossy(&piece[..read])));
            }
        });
        let ends = Arc::clone(&ear);
        child.at_its_end(move || {
            ends.hears(|heard| heard.has_ended = true);
            // Whoever was told of another and did not look yet will see both.
            if let Some(told) = told {
                let _ = told.try_send(());
            }
        });
        Self { child, ear }
    }

    /// Starts it and waits until it says where its console is.
    pub(crate) fn start(command: Command) -> Self {
        let running = Self::spawn(command);
        running.up();
        running
    }

    /// Waits until it says where its console is.
    pub(crate) fn up(&self) {
        self.until("it says where its console is", |heard| heard.has_ended || heard.console().is_some());
        assert!(self.console().is_some(), "it ended:\n{}", self.said());
    }

    /// Waits until what is heard of it makes it so.
    pub(crate) fn until(&self, what: &str, so: impl Fn(&Heard) -> bool) {
        let heard = self.ear.heard.lock().unwrap();
        let (heard, waited) = self.ear.news.wait_timeout_while(heard, PATIENCE, |heard| !so(heard)).unwrap();
        let shown = heard.shown();
        drop(heard);
        assert!(!waited.timed_out(), "waited for {PATIENCE:?}: {what}\n{shown}");
    }

    /// Waits until it ends by itself.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.until("it ends", |heard| heard.has_ended);
        self.child.0.wait().unwrap()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.0.try_wait().unwrap()
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child.0)
    }

    /// Where its console is, if it said so.
    pub(crate) fn console(&self) -> Option<String> {
        self.ear.heard.lock().unwrap().console()
    }

    /// What it said on stderr so far; of much, the beginning and the end.
    pub(crate) fn said(&self) -> String {
        self.ear.heard.lock().unwrap().shown()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
    }

    /// SIGTERM; waits for its end.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM).unwrap();
        let status = self.end();
        (status, self.said())
    }
}

/// Asks `done` again and again until it is so; `story` says where it stands if it never is. For those who say nothing
/// unasked: ClickHouse, Kafka, what a console serves, another's child.
#[expect(clippy::disallowed_methods, reason = "how long to wait for a real server is real time")]
pub(crate) fn until(what: &str, patience: Duration, story: impl Fn() -> String, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    // What takes long is asked for less and less often: the asking is work for the services as well.
    let mut pause = Duration::from_millis(20);
    while !done() {
        assert!(start.elapsed() < patience, "waited for {patience:?}: {what}\n{}", story());
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Plain HTTP for tests that are not asynchronous themselves.
struct Http {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
}

impl Http {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self {
            runtime,
            client: reqwest::Client::builder()
                .no_proxy()
                // Nobody looks after an idle connection between two questions.
                .pool_max_idle_per_host(0)
                .build()
                .unwrap(),
        }
    }

    fn send(&self, request: reqwest::RequestBuilder) -> Result<String, String> {
        self.runtime.block_on(async {
            let answer = request.send().await.map_err(|error| error.to_string())?;
            let status = answer.status();
            let text = answer.text().await.map_err(|error| error.to_string())?;
            if status.is_success() { Ok(text) } else { Err(format!("{status}: {text}")) }
        })
    }

    fn get(&self, url: &str) -> Result<String, String> {
        self.send(self.client.get(url))
    }

    fn post(&self, url: &str, body: &str) -> Result<String, String> {
        self.send(self.client.post(url).body(body.to_owned()))
    }

    fn post_json(&self, url: &str, body: &Value) -> Result<String, String> {
        self.send(self.client.post(url).json(body))
    }
}
