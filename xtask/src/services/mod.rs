//! Real Kafka, Redis and ClickHouse for tests and benches on a machine without a container engine.
//!
//! # Layout of a folder of services (`target/services`, or `--dir`)
//! - `env`: the endpoints, `KEY=VALUE`; exists exactly while `up` has succeeded and `down` has not run;
//! - `lock`: held by the one command that changes this folder;
//! - `SERVICE/{pid,ports,log,data}`: `pid` names the process *and when it started*, so that a number that the system
//!   gave to someone else is never killed; `ports` are kept over restarts, so that endpoints outlive a crash.
//!
//! What is downloaded lies in `target/services/cache`, whatever the folder: a second `up` needs no network.
//! Each service is one file here, with one line in [`all`]. They keep their data until `down --wipe`.

#![expect(clippy::disallowed_methods, reason = "how long to wait for a real service is real time")]

mod clickhouse;
mod kafka;
mod process;
mod redis;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::workspace::Workspace;
use crate::{Refusal, packages};
use process::Process;

/// How often a starting or ending service is asked. Short against the fastest of them (Redis, 20 ms).
const POLL: Duration = Duration::from_millis(50);
/// How long one answer may take: they are on loopback, and a frozen one must not freeze us.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long a service may take from start to first answer. Kafka needs 3 s alone and 20 s on a machine under full
/// load; beyond this `up` fails and shows the end of the log.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a service may take to end after SIGTERM. Kafka hands over and flushes, up to a few seconds; beyond this
/// it gets SIGKILL, which all three survive without loss of what they acknowledged to disk.
const STOP_MAX: Duration = Duration::from_secs(15);

/// What one kind of service knows about itself. Bringing it up and down is the same for all.
trait Service {
    /// Its folder's name, and what people call it.
    fn name(&self) -> &'static str;
    /// The key of its endpoint in the `env` file.
    fn key(&self) -> &'static str;
    /// What its clients are given.
    fn endpoint(&self, port: u16) -> String;
    /// How many ports it listens on; the first is its clients'.
    fn ports(&self) -> usize;
    /// Gets its program, if it is not there.
    fn install(&self, tools: &Tools) -> Result<()>;
    /// Writes its configuration and returns the command that runs it in the foreground.
    fn prepare(&self, tools: &Tools, home: &Home) -> Result<Command>;
    /// Asks it something that only a working service answers; an open port is too early.
    fn ask(&self, port: u16) -> Result<()>;
}

/// Where programs come from that are no system packages.
struct Tools {
    /// What was downloaded.
    cache: PathBuf,
    /// What cargo built.
    target: PathBuf,
}

/// Where one service lives.
struct Home {
    folder: PathBuf,
    ports: Vec<u16>,
}

impl Home {
    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }
}

/// A service's state, as `status` tells it.
enum State {
    Down,
    Silent(Process, String),
    Up(Process),
}

/// Where a running set of services can be reached.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints(Vec<(&'static str, String)>);

impl Endpoints {
    /// The names under which tests and benches look for them.
    pub(crate) fn test_variables(&self) -> impl Iterator<Item = (String, &str)> {
        self.0.iter().map(|(key, endpoint)| (test_variable(key), endpoint.as_str()))
    }
}

fn test_variable(key: &str) -> String {
    format!("TIDINGS_TEST_{key}")
}

/// Whether the environment names services to be used instead of ours: all of them, or it does not count.
pub(crate) fn named_by_environment() -> bool {
    all().iter().all(|service| std::env::var_os(test_variable(service.key())).is_some())
}

/// A folder of services.
pub(crate) struct Services {
    folder: PathBuf,
    tools: Tools,
}

fn all() -> [Box<dyn Service>; 3] {
    [Box::new(kafka::Kafka), Box::new(redis::Redis), Box::new(clickhouse::ClickHouse)]
}

/// `cargo xtask services up|down|kill NAME|start NAME|status [--dir DIR] [--wipe]`
pub(crate) fn command(arguments: &[&str]) -> Result<ExitCode> {
    let usage = |message: String| anyhow::Error::from(Refusal::Usage(message));
    let Some((action, mut rest)) = arguments.split_first() else {
        return Err(usage("services: say up, down, kill, start or status".to_owned()));
    };
    let (mut folder, mut wipe, mut one) = (None, false, None);
    if let ("kill" | "start", Some((name, after))) = (*action, rest.split_first()) {
        (one, rest) = (Some(*name), after);
    }
    while let Some((option, after)) = rest.split_first() {
        rest = match (*option, after.split_first()) {
            ("--dir", Some((value, after))) => {
                folder = Some(std::path::absolute(value).with_context(|| format!("--dir {value}"))?);
                after
            }
            ("--dir", None) => return Err(usage("services: --dir needs a folder".to_owned())),
            ("--wipe", _) if *action == "down" => {
                wipe = true;
                after
            }
            (unknown, _) => return Err(usage(format!("services {action}: unknown option `{unknown}`"))),
        };
    }
    let workspace = Workspace::load()?;
    let folder = folder.unwrap_or_else(|| workspace.target.join("services"));
    let services = Services::new(&workspace, folder);
    match *action {
        "up" => {
            services.up()?;
            print!("{}", services.env_text()?);
            Ok(ExitCode::SUCCESS)
        }
        "down" => services.down(wipe).map(|()| ExitCode::SUCCESS),
        "kill" | "start" => {
            let known = || all().map(|service| service.name()).join(", ");
            let name = one.ok_or_else(|| usage(format!("services {action}: say which of {}", known())))?;
            let mut all = all().into_iter();
            let service = all.find(|service| service.name() == name);
            let unknown = || usage(format!("services {action}: unknown service `{name}`; there are {}", known()));
            let service = service.ok_or_else(unknown)?;
            if *action == "kill" {
                services.kill(&*service)?
            } else {
                services.start_again(&*service)?
            }
            Ok(ExitCode::SUCCESS)
        }
        "status" => services.status(),
        unknown => Err(usage(format!("services: unknown action `{unknown}`; say up, down, kill, start or status"))),
    }
}

impl Services {
    /// The services in `folder`, up or not.
    pub(crate) fn new(workspace: &Workspace, folder: PathBuf) -> Self {
        let target = workspace.target.clone();
        Services { folder, tools: Tools { cache: target.join("services/cache"), target } }
    }

    /// Starts what is down and waits until all answer. What is up already stays as it is.
    pub(crate) fn up(&self) -> Result<Endpoints> {
        if container_engine_answers() {
            eprintln!("a container engine answers here: `docker compose up` runs the whole set from official images");
        }
        packages::ensure(packages::SERVICES, "`cargo xtask services up`")?;
        let _lock = self.lock()?;
        // Before any is started: a download must not count as a slow start, nor a failed one leave half a set.
        for service in all() {
            service.install(&self.tools)?;
        }
        let mut started = Vec::new();
        for service in all() {
            let mut home = self.home(&*service)?;
            match state(&*service, &home) {
                State::Up(process) => {
                    eprintln!(
                        "{} is up already, process {}, {}",
                        service.name(),
                        process.id(),
                        service.endpoint(home.ports[0])
                    );
                }
                State::Silent(process, reason) => bail!(
                    "{} runs as process {} but does not answer ({reason}); see {}, or end it with \
                     `cargo xtask services down`",
                    service.name(),
                    process.id(),
                    home.folder.join("log").display()
                ),
                State::Down => {
                    claim_ports(&mut home, service.ports())?;
                    let process = self.start(&*service, &home)?;
                    started.push((service, home, process, Instant::now()));
                }
            }
        }
        while !started.is_empty() {
            let mut waiting = Vec::new();
            for (service, home, process, since) in started {
                if !answers(&*service, &home, &process, since)? {
                    waiting.push((service, home, process, since));
                }
            }
            started = waiting;
            sleep(POLL);
        }
        fs::write(self.folder.join("env"), self.env_text()?).context("cannot write the endpoints")?;
        self.endpoints()
    }

    /// The endpoints, if all services are up.
    pub(crate) fn running(&self) -> Result<Option<Endpoints>> {
        for service in all() {
            if !matches!(state(&*service, &self.home(&*service)?), State::Up(_)) {
                return Ok(None);
            }
        }
        self.endpoints().map(Some)
    }

    /// Ends the recorded processes and no others; `wipe` removes their data as well.
    pub(crate) fn down(&self, wipe: bool) -> Result<()> {
        if !self.folder.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        remove_file(&self.folder.join("env"))?;
        let mut ending = Vec::new();
        for service in all() {
            let home = self.home(&*service)?;
            if let Some(process) = Process::recorded(&home.folder.join("pid")) {
                process.ask_to_end();
                ending.push((service, home, process));
            }
        }
        let since = Instant::now();
        let mut killed = false;
        while !ending.is_empty() {
            if !killed && since.elapsed() > STOP_MAX {
                for (service, _, process) in &ending {
                    eprintln!("{} ignores SIGTERM and is killed", service.name());
                    process.kill();
                }
                killed = true;
            }
            for (service, home, _) in ending.extract_if(.., |(_, _, process)| !process.is_alive()) {
                remove_file(&home.folder.join("pid"))?;
                eprintln!("{} ended after {:.1} s", service.name(), since.elapsed().as_secs_f64());
            }
            sleep(POLL);
        }
        if wipe {
            for service in all() {
                let folder = self.folder.join(service.name());
                if folder.exists() {
                    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
                }
            }
        }
        Ok(())
    }

    /// Starts one of them that is down, on its port and data, and waits until it answers. It was there before, so
    /// that nothing has to be installed, and whoever builds something at the same time holds nothing up.
    fn start_again(&self, service: &dyn Service) -> Result<()> {
        let _lock = self.lock()?;
        let home = self.home(service)?;
        if home.ports.is_empty() {
            bail!("{} was never started; `cargo xtask services up` does that", service.name());
        }
        if let State::Up(_) = state(service, &home) {
            return Ok(());
        }
        // Its clients know no other; what is left of the killed one may still hold them for a moment.
        let since = Instant::now();
        while home.ports.iter().any(|port| TcpListener::bind(loopback(*port)).is_err()) {
            if since.elapsed() > STOP_MAX {
                bail!("a port of {:?}, on which {} listened, is taken", home.ports, service.name());
            }
            sleep(POLL);
        }
        let (process, since) = (self.start(service, &home)?, Instant::now());
        while !answers(service, &home, &process, since)? {
            sleep(POLL);
        }
        Ok(())
    }

    /// SIGKILL to one of them, as a power cut would; it can be started again on what is left of its data.
    fn kill(&self, service: &dyn Service) -> Result<()> {
        let _lock = self.lock()?;
        let home = self.home(service)?;
        let pid = home.folder.join("pid");
        let process = Process::recorded(&pid).with_context(|| format!("{} is not up", service.name()))?;
        process.kill();
        let since = Instant::now();
        while process.is_alive() {
            if since.elapsed() > STOP_MAX {
                bail!("{}, process {}, does not end", service.name(), process.id());
            }
            sleep(POLL);
        }
        remove_file(&pid)
    }

    /// Ends them when the command is interrupted: nobody must have to clean up after it.
    pub(crate) fn end_on_signal(self) -> Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                if let Err(error) = self.down(true) {
                    eprintln!("{error:#}");
                }
                std::process::exit(128 + signal);
            }
        });
        Ok(())
    }

    fn status(&self) -> Result<ExitCode> {
        println!("{:<12} {:<10} {:>8}  {:<26} log", "service", "state", "process", "endpoint");
        let mut healthy = true;
        for service in all() {
            let home = self.home(&*service)?;
            let (word, process) = match state(&*service, &home) {
                State::Up(process) => ("up", process.id().to_string()),
                State::Silent(process, reason) => {
                    eprintln!("{} does not answer: {reason}", service.name());
                    ("silent", process.id().to_string())
                }
                State::Down => ("down", "-".to_owned()),
            };
            healthy &= word == "up";
            let endpoint = home.ports.first().map_or_else(|| "-".to_owned(), |port| service.endpoint(*port));
            let log = home.folder.join("log");
            println!("{:<12} {word:<10} {process:>8}  {endpoint:<26} {}", service.name(), log.display());
        }
        Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn start(&self, service: &dyn Service, home: &Home) -> Result<Process> {
        fs::create_dir_all(home.data()).with_context(|| format!("cannot create {}", home.data().display()))?;
        let mut command = service.prepare(&self.tools, home)?;
        Process::start(&mut command, &home.folder).with_context(|| format!("cannot start {}", service.name()))
    }

    fn home(&self, service: &dyn Service) -> Result<Home> {
        let folder = self.folder.join(service.name());
        let ports = match fs::read_to_string(folder.join("ports")) {
            Ok(text) => text
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()
                .with_context(|| format!("{} holds no port numbers; remove it", folder.join("ports").display()))?,
            Err(_) => Vec::new(),
        };
        Ok(Home { folder, ports })
    }

    fn endpoints(&self) -> Result<Endpoints> {
        let mut endpoints = Vec::new();
        for service in all() {
            let home = self.home(&*service)?;
            let port = *home.ports.first().with_context(|| format!("{} was never started", service.name()))?;
            endpoints.push((service.key(), service.endpoint(port)));
        }
        Ok(Endpoints(endpoints))
    }

    fn env_text(&self) -> Result<String> {
        Ok(self.endpoints()?.0.iter().map(|(key, endpoint)| format!("{key}={endpoint}\n")).collect())
    }

    /// Two commands at once would start a service twice.
    fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot create {}", self.folder.display()))?;
        let path = self.folder.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("waiting for another `cargo xtask services` on {}", self.folder.display());
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }
}

fn state(service: &dyn Service, home: &Home) -> State {
    match (Process::recorded(&home.folder.join("pid")), home.ports.first()) {
        (Some(process), Some(port)) => match service.ask(*port) {
            Ok(()) => State::Up(process),
            Err(error) => State::Silent(process, reason(&error)),
        },
        _ => State::Down,
    }
}

/// A read that runs out of time says so in the system's words, which nobody understands.
fn reason(error: &anyhow::Error) -> String {
    match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => format!("no word within {} s", ANSWER_MAX.as_secs()),
        _ => format!("{error:#}"),
    }
}

/// Whether a starting service is ready; an error when it never will be.
fn answers(service: &dyn Service, home: &Home, process: &Process, since: Instant) -> Result<bool> {
    let log = home.folder.join("log");
    let answer = service.ask(home.ports[0]);
    if !process.is_alive() {
        bail!("{} ended while starting; the end of {}:\n{}", service.name(), log.display(), tail(&log));
    }
    match answer {
        Ok(()) => {
            let endpoint = service.endpoint(home.ports[0]);
            eprintln!("{} answers on {endpoint} after {:.1} s", service.name(), since.elapsed().as_secs_f64());
            Ok(true)
        }
        Err(_) if since.elapsed() < START_MAX => Ok(false),
        Err(silence) => bail!(
            "{} does not answer after {} s ({silence:#}); the end of {}:\n{}",
            service.name(),
            START_MAX.as_secs(),
            log.display(),
            tail(&log)
        ),
    }
}

/// Where services listen: below the ports that Linux gives to connections that ask for none (32768 and up). Among
/// those, clients of a service that was killed, who try its port again and again on this machine, would sooner or later
/// be given that very port for their own end, be connected with themselves, and keep the service from coming back.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Keeps the recorded ports while they are free, so that clients find a restarted service again.
fn claim_ports(home: &mut Home, count: usize) -> Result<()> {
    let kept = home.ports.len() == count && home.ports.iter().all(|port| TcpListener::bind(loopback(*port)).is_ok());
    if !kept {
        // Each service and each command begins elsewhere, because what was found free is not taken before the service
        // itself listens. All are held at once, or one would be found twice.
        let mix = |sum: usize, byte: &u8| sum.wrapping_mul(31).wrapping_add(usize::from(*byte));
        let seed = usize::try_from(std::process::id()).unwrap_or_default();
        let first = home.folder.as_os_str().as_encoded_bytes().iter().fold(seed, mix) % PORTS.len();
        let all = PORTS.cycle().skip(first).take(PORTS.len());
        let held: Vec<TcpListener> =
            all.filter_map(|port| TcpListener::bind(loopback(port)).ok()).take(count).collect();
        if held.len() < count {
            bail!("no {count} free ports within {PORTS:?}");
        }
        home.ports =
            held.iter().map(|held| held.local_addr().map(|address| address.port())).collect::<Result<_, _>>()?;
    }
    fs::create_dir_all(&home.folder).with_context(|| format!("cannot create {}", home.folder.display()))?;
    let text: Vec<String> = home.ports.iter().map(u16::to_string).collect();
    fs::write(home.folder.join("ports"), text.join(" ")).context("cannot record the ports")
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A connection on which nothing can take longer than [`ANSWER_MAX`].
fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&loopback(port), ANSWER_MAX).context("no connection")?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    Ok(stream)
}

/// Sends one line-based request and returns what comes back, up to the first `until`.
fn exchange(port: u16, request: &str, until: &str) -> Result<String> {
    let mut stream = connect(port)?;
    stream.write_all(request.as_bytes()).context("no request accepted")?;
    let (mut answer, mut chunk) = (String::new(), [0; 512]);
    while !answer.contains(until) {
        match stream.read(&mut chunk).context("no answer")? {
            0 => break,
            read => answer.push_str(&String::from_utf8_lossy(&chunk[..read])),
        }
    }
    Ok(answer)
}

/// Downloads into a folder of the cache, whole or not at all: `fill` works on a folder beside it.
fn download(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    eprintln!("downloading into {}", folder.display());
    fill(&partial)?;
    fs::rename(&partial, folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn container_engine_answers() -> bool {
    packages::on_path("docker")
        && Command::new("docker")
            .arg("info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_recorded_port_is_kept_and_a_taken_one_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut home = Home { folder: folder.path().to_owned(), ports: Vec::new() };
        claim_ports(&mut home, 2).expect("ports");
        let first = home.ports.clone();
        assert_ne!(first[0], first[1]);
        claim_ports(&mut home, 2).expect("ports");
        assert_eq!(home.ports, first);
        let _taken = TcpListener::bind(loopback(first[0])).expect("the port is free");
        claim_ports(&mut home, 2).expect("ports");
        assert_ne!(home.ports[0], first[0]);
        let recorded = fs::read_to_string(folder.path().join("ports")).expect("a record");
        assert_eq!(recorded, format!("{} {}", home.ports[0], home.ports[1]));
    }

    #[test]
    fn a_download_that_fails_half_way_leaves_nothing_and_can_be_repeated() {
        let cache = tempfile::tempdir().expect("a folder");
        let folder = cache.path().join("thing-1.0");
        let failed = download(&folder, |partial| {
            fs::write(partial.join("half"), "")?;
            bail!("the line broke")
        });
        assert!(failed.is_err() && !folder.exists());
        download(&folder, |partial| Ok(fs::write(partial.join("whole"), "")?)).expect("the second try");
        assert!(folder.join("whole").exists() && !folder.join("half").exists());
        download(&folder, |_| bail!("must not run")).expect("the cache is used");
    }

    #[test]
    fn an_open_port_that_says_nothing_is_not_an_answer() {
        let listener = TcpListener::bind(loopback(0)).expect("a port");
        let port = listener.local_addr().expect("its number").port();
        // Accepts and closes, as a broker does that is not ready.
        let closes = std::thread::spawn(move || {
            for _ in 0..3 {
                drop(listener.accept());
            }
        });
        for service in all() {
            assert!(service.ask(port).is_err(), "{} was taken for ready", service.name());
        }
        closes.join().expect("the listener ends");
    }
}
