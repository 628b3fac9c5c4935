//! A round under way: does what the timeline says, keeps the process running as a supervisor would, waits
//! until nothing is to come, and checks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::checks::{self, Stopwatch};
use crate::proxy::{Network, Proxy};
use crate::timeline::{Fault, Layout, Step, WATCHDOG_MS, draw};
use crate::workload::{Random, Workload, Written};
use crate::world::{Providers, Running, World, free_address, now};

/// How long everything may take to settle after the last step. A delivery that fails four times waits 81 s and
/// jitter between its attempts; the rest is for a busy machine.
const SETTLED_WITHIN: Duration = Duration::from_secs(300);
/// How long a process that ended by itself is left alone before it is started again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// The disk that can be filled: checkpoints of a round need a tenth of it.
const DISK: &str = "size=32m";

/// What a round is asked to do.
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) fault: Fault,
    pub(crate) layout: Layout,
    pub(crate) seed: u64,
    pub(crate) events: usize,
    /// The program that kills and starts services …
    pub(crate) xtask: PathBuf,
    /// … in this folder.
    pub(crate) services: PathBuf,
}

/// A round. Processes end before the disk under them goes, and that before the folder in which it lies.
pub(crate) struct Round {
    asked: Asked,
    clock: Stopwatch,
    /// The one process, or process 0 of two.
    running: Option<Running>,
    /// Process 1 of two, and how they meet.
    other: Option<Running>,
    between: Option<Between>,
    /// Was frozen, and another one runs beside it.
    zombie: Option<Running>,
    /// Something comes here when a process ends.
    ends: (SyncSender<()>, Receiver<()>),
    supervised: bool,
    providers: Providers,
    disk: Option<Disk>,
    world: World,
    /// How processes ended that nobody ended.
    ended: Vec<String>,
    /// What processes said that are over.
    said: Vec<String>,
    /// What was done, and when.
    done: Vec<String>,
}

impl Round {
    pub(crate) fn new(asked: Asked) -> Self {
        let clock = Stopwatch::start(format!("{}, seed {}, {} events", asked.name, asked.seed, asked.events));
        let mut world = World::new(&asked.name).expect("the services are not named");
        world.create_topics();
        let providers = world.providers();
        world.post_json(&format!("{}/api/faults", providers.inbox), &checks::faults());
        let disk = (asked.fault == Fault::Disk).then(|| Disk::mount(world.path("data/checkpoints")));
        let between = (asked.layout == Layout::TwoByOne).then(Between::new);
        Self {
            asked,
            clock,
            running: None,
            other: None,
            between,
            zombie: None,
            ends: sync_channel(1),
            supervised: false,
            providers,
            disk,
            world,
            ended: Vec::new(),
            said: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Runs it; panics with what is wrong. The round as JSON.
    pub(crate) fn run(mut self) -> Value {
        let Workload { people, stream, expected } = Workload::new(self.asked.seed, self.asked.events, now());
        let timeline =
            draw(self.asked.fault, self.asked.layout, &mut Random(self.asked.seed ^ 0x6b69_6c6c), stream.len());
        self.supervised = timeline.supervised;
        self.world.write(&people);
        (0..self.asked.layout.processes()).for_each(|process| self.start(process));
        if !timeline.from_start {
            self.running.as_ref().unwrap().up();
        }
        let begun = self.clock.elapsed();
        self.clock.lap("the timeline begins");
        for (at, step) in timeline.steps {
            self.tend(begun + at);
            self.step(step, &stream, begun);
        }
        self.settle(expected);
        let mut running = self.running.take().unwrap();
        let metric = |name| self.world.metric(&running, name).unwrap_or(0);
        let (replayed, unkept) = (metric("tidings_replayed_epochs_total"), metric("tidings_checkpoint_failures_total"));
        assert!(running.ended().is_none(), "it ended after all was settled:\n{}", running.said());
        if let Some(mut zombie) = self.zombie.take() {
            zombie.end();
            let said = zombie.said();
            let why = reason(&said);
            self.clock.lap(&format!("the one that was replaced ended by itself, {why}"));
            self.ended.push(format!("the replaced one: {why}"));
        }
        for running in [Some(running), self.other.take()].into_iter().flatten() {
            let (status, said) = running.stop();
            assert!(status.success(), "{status}\n{said}");
            self.said.push(said);
        }
        self.clock.lap("stopped");

        checks::fates_add_up(&self.world, expected, &self.clock);
        checks::decisions_were_taken_once(&self.world);
        let received = checks::providers_and_record_agree(&self.world, &self.providers, &self.clock);
        if matches!(self.asked.fault, Fault::Sigkill | Fault::Redis | Fault::ClickHouse | Fault::Network) {
            assert!(self.ended.is_empty(), "nothing but a kill should have ended it: {:#?}", self.ended);
        }
        self.clock.lap("adds up");
        json!({
            "fault": self.asked.name, "processes": self.asked.layout.processes(), "seed": self.asked.seed, "events": self.asked.events,
            "seconds": self.clock.elapsed().as_secs(), "steps": self.done, "ended": self.ended,
            "replayed": replayed, "unkept": unkept,
            "received_once": received.once, "received_again": received.again, "unknown": received.unknown,
        })
    }

    fn start(&mut self, process: usize) {
        let mut command = match &self.between {
            None => self.world.run_command(),
            Some(between) => between.command(&self.world, process),
        };
        if matches!(self.asked.fault, Fault::Sigstop | Fault::Network) {
            command.arg("--watchdog").arg(format!("{WATCHDOG_MS}ms"));
        }
        if self.supervised {
            command.arg("--supervise");
        }
        let told = self.ends.0.clone();
        *self.slot(process) = Some(Running::spawn_for(command, Some(told)));
    }

    fn slot(&mut self, process: usize) -> &mut Option<Running> {
        if process == 0 { &mut self.running } else { &mut self.other }
    }

    /// Waits until the clock shows `until`, and keeps processes running meanwhile, as a supervisor would. None is still to
    /// be started again when it returns.
    fn tend(&mut self, until: Duration) {
        let mut again = BTreeMap::new();
        self.note_ends(&mut again);
        loop {
            let now = self.clock.elapsed();
            let Some(next) = again.values().copied().chain((now < until).then_some(until)).min() else { return };
            // Whether somebody ended or a time has come: both are looked at.
            let _ = self.ends.1.recv_timeout(next.saturating_sub(now));
            let now = self.clock.elapsed();
            again.retain(|process, at| {
                let is_due = *at <= now;
                if is_due {
                    self.start(*process);
                }
                !is_due
            });
            // Who ends later is the next call's, or this one might never return.
            if now < until {
                self.note_ends(&mut again);
            }
        }
    }

    /// Notes which processes ended by themselves, and when they are to be started again. `None` is one that was killed and
    /// is to stay so.
    fn note_ends(&mut self, again: &mut BTreeMap<usize, Duration>) {
        for process in 0..self.asked.layout.processes() {
            let Some(running) = self.slot(process).as_mut().filter(|_| !again.contains_key(&process)) else { continue };
            let Some(status) = running.ended() else { continue };
            let said = running.said();
            let what = format!("{status}: {}", reason(&said));
            self.clock.lap(&format!("process {process} ended by itself, {what}"));
            self.ended.push(what);
            self.said.push(said);
            again.insert(process, self.clock.elapsed() + AGAIN_AFTER);
        }
    }

    fn step(&mut self, step: Step, stream: &[Written], begun: Duration) {
        let again = matches!(step, Step::Fill) && self.done.last().is_some_and(|done| done.ends_with("disk full"));
        if let Some(shown) = step.shown(self.asked.layout).filter(|_| !again) {
            let shown = format!("{:.1} s {shown}", (self.clock.elapsed() - begun).as_secs_f64());
            self.clock.lap(&shown);
            self.done.push(shown);
        }
        match step {
            Step::Write(range) => self.world.write(&stream[range]),
            Step::Kill(process) => {
                if let Some(running) = self.slot(process).take() {
                    self.said.push(running.said());
                    running.kill();
                }
            }
            Step::Run(process) => self.start(process),
            Step::Freeze(process) => kill_process(self.worker(process), Signal::STOP).unwrap(),
            Step::Awake(process) => {
                let pid = self.zombie.as_ref().map(Running::pid);
                let pid = pid.unwrap_or_else(|| self.slot(process).as_ref().unwrap().pid());
                kill_process(pid, Signal::CONT).unwrap();
            }
            Step::Replace => {
                self.zombie = self.running.take();
                self.world.set("INBOX", "./data/another-inbox".to_owned());
                self.start(0);
            }
            Step::Network(network) => self.between.as_ref().unwrap().proxy.set(network),
            Step::Down(service) => self.services(&["kill", service]),
            Step::Up(service) => self.services(&["start", service]),
            Step::Flush => flush(&self.world.services.redis),
            Step::Fill => self.disk.as_ref().unwrap().fill(),
            Step::Free => self.disk.as_ref().unwrap().free(),
        }
    }

    /// The process that does the work: a supervisor's child, or the one that runs.
    fn worker(&mut self, process: usize) -> Pid {
        let supervised = self.supervised;
        let running = self.slot(process).as_ref().unwrap();
        if !supervised {
            return running.pid();
        }
        let said = running.said();
        let (_, child) = said.rsplit_once("started as process ").expect("a supervisor says whom it started");
        Pid::from_raw(child.lines().next().unwrap().parse().unwrap()).unwrap()
    }

    /// `cargo xtask services …`
    fn services(&self, arguments: &[&str]) {
        let mut command = Command::new(&self.asked.xtask);
        command.arg("services").args(arguments).arg("--dir").arg(&self.asked.services);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Waits until nothing is to come, which ClickHouse is asked again and again, and keeps processes running meanwhile.
    #[expect(clippy::disallowed_methods, reason = "how long to wait for a real server is real time")]
    fn settle(&mut self, expected: crate::workload::Expected) {
        let since = std::time::Instant::now();
        let mut pause = Duration::ZERO;
        let mut left = String::new();
        loop {
            self.tend(self.clock.elapsed() + pause);
            pause = (pause * 2).clamp(Duration::from_millis(200), Duration::from_secs(1));
            // One answer, not all: the first is the cheapest, and others follow from it.
            let Some(open) = checks::unsettled(&self.world, expected).next() else { break };
            if open != left {
                self.clock.lap(open.trim_end());
                left = open;
            }
            let running = self.running.as_ref().unwrap();
            let story = || checks::story(&self.world, running, expected);
            assert!(since.elapsed() < SETTLED_WITHIN, "not settled after {SETTLED_WITHIN:?}\n{}", story());
        }
        self.running.as_ref().unwrap().up();
        self.clock.lap("settled");
    }
}

impl Drop for Round {
    /// Whoever has to find out what went wrong needs what the processes said.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.said.extend([&self.running, &self.other].into_iter().flatten().map(Running::said));
            for (number, said) in self.said.iter().enumerate() {
                eprintln!("process {number} said:\n{said}");
            }
        }
    }
}

/// Where two processes of one run are, and the network between them.
struct Between {
    own: [SocketAddr; 2],
    /// Before process 0: process 1 calls it, and nobody calls process 1.
    proxy: Proxy,
}

impl Between {
    fn new() -> Self {
        let own = [free_address(), free_address()];
        let proxy = Proxy::before(own[0]);
        proxy.set(Network::Heals);
        Self { own, proxy }
    }

    fn command(&self, world: &World, process: usize) -> Command {
        let hosts = [self.proxy.address, self.own[1]];
        world.share_command(&process.to_string(), &hosts, self.own[process])
    }
}

/// The error that a process ended with.
fn reason(said: &str) -> &str {
    said.lines().rev().find(|line| line.starts_with("error")).unwrap_or("it did not say why")
}

/// FLUSHALL, without a client of our own.
fn flush(redis: &str) {
    let mut stream = TcpStream::connect(redis.trim_start_matches("redis://")).unwrap();
    stream.write_all(b"FLUSHALL\r\n").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+OK\r\n");
}

/// A file system of a few megabytes.
struct Disk(PathBuf);

impl Disk {
    fn mount(place: PathBuf) -> Self {
        std::fs::create_dir_all(&place).unwrap();
        system("mount", &["-t", "tmpfs", "-o", DISK, "tidings-kill"], &place);
        Self(place)
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        // Whole pages first, then what is left of the last one.
        for piece in [&[0_u8; 4096][..], &[0]] {
            loop {
                match file.write(piece) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        system("umount", &["--lazy"], &self.0);
    }
}

fn system(program: &str, arguments: &[&str], place: &Path) {
    let output = Command::new(program).args(arguments).arg(place).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}; root may mount", place.display());
}
