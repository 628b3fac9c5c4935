//! The side of the processes beside process 0: they call it, offer their workers, and do what it says, generation
//! after generation.

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use tidings_operators::harness::chain::Chain;
use tidings_operators::harness::cluster::Seat;
use tidings_operators::harness::dataflow::{Assigned, Command, Report, WorkerIo};
use tidings_operators::harness::delta::Delta;
use tidings_operators::harness::dropped::MayDrop;
use tidings_operators::ingest::Path;
use tidings_sinks::log::{Log, TopicPartition};

use super::line::Line;
use super::switch::Switch;
use super::wire::{Answer, Down, LotToRead, Opening, Up, read_opening, up, write_opening};
use super::{Share, hello};
use crate::runtime::clock::Clock;
use crate::runtime::coordinator::{Status, command_channel};
use crate::runtime::crew::{Hands as _, Threads, WakerSlot};
use crate::runtime::plan::Plan;

/// The pause before process 0 is called again, and the longest one: doubled from call to call. A process that comes
/// back is heard within moments, and a network that comes and goes makes no generation more often than that.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A generation that lived for so long is no sign of trouble: the next pause is the shortest again.
const LIVED: Duration = Duration::from_secs(10);

/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How often it is looked whether a stop was asked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a process that is told to stop waits for its generation to end in good order: what a stop may take there
/// (30 s), and a margin. Beyond it the others find out, and replay.
const LEAVE_WITHIN: Duration = Duration::from_secs(40);

/// Reports that wait to be sent.
const REPORTS_MAX: usize = 1024;

/// What a process needs beside its plan.
pub struct Around {
    /// Where sources are read.
    pub log: Arc<dyn Log>,
    /// Measures pauses.
    pub clock: Arc<dyn Clock>,
    /// Set to stop gracefully.
    pub stop: Arc<AtomicBool>,
    /// Where it stands.
    pub status: Arc<Status>,
}

/// Why a process cannot be part of a run.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// Process 0 does not take it.
    #[error("{0}")]
    Refused(String),
    /// The listener.
    #[error("data connections cannot be taken: {0}")]
    Listen(#[from] io::Error),
}

/// How one generation, or one try at it, was over.
enum Over {
    Refused(String),
    Lost(String),
    Stopped,
}

impl From<String> for Over {
    fn from(how: String) -> Self {
        Self::Lost(how)
    }
}

type Call = Line<Up, Down>;

/// Offers this process's workers to process 0 until it is told to stop. `listener` is where processes of higher
/// numbers connect.
///
/// # Errors
/// When process 0 refuses this process: the message says what differs.
pub fn serve(share: &Share, plan: &Plan, around: &Around, listener: TcpListener) -> Result<(), MemberError> {
    let switch = Switch::open(listener, None)?;
    let mut pause = PAUSE.0;
    while !around.stop.load(Ordering::Relaxed) {
        let began = around.clock.elapsed();
        around.status.wait_for(&format!("waits for process 0 ({})", share.hosts.first().map_or("?", String::as_str)));
        let over = term(share, plan, around, &switch);
        around.status.set_ready(false);
        match over {
            Over::Refused(why) => return Err(MemberError::Refused(why)),
            Over::Stopped => return Ok(()),
            Over::Lost(how) => {
                if around.clock.real(around.clock.elapsed().saturating_sub(began)) >= LIVED {
                    pause = PAUSE.0;
                }
                tracing::warn!(how, again_after = ?pause, "no generation with process 0");
            }
        }
        let mut left = pause;
        while !left.is_zero() && !around.stop.load(Ordering::Relaxed) {
            let piece = left.min(LOOK_EVERY);
            std::thread::sleep(piece);
            left -= piece;
        }
        pause = (pause * 2).min(PAUSE.1);
    }
    Ok(())
}

/// Calls a process at one of the addresses that its name has.
fn connect(host: &str) -> Result<TcpStream, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{host} cannot be reached: {error}");
    let mut last = failed(&"it has no address");
    for address in host.to_socket_addrs().map_err(|error| failed(&error))? {
        match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = failed(&error),
        }
    }
    Err(last)
}

/// Says who calls and what for, and waits for an answer.
fn call(share: &Share, host: &str, opening: &Opening) -> Result<TcpStream, Over> {
    let mut stream = connect(host)?;
    let failed = |error: &dyn std::fmt::Display| Over::Lost(format!("{host} does not answer: {error}"));
    stream.set_nodelay(true).map_err(|error| failed(&error))?;
    stream.set_read_timeout(Some(share.silence)).map_err(|error| failed(&error))?;
    stream.set_write_timeout(Some(share.silence)).map_err(|error| failed(&error))?;
    write_opening(&mut stream, opening).map_err(|error| failed(&error))?;
    match read_opening(&mut stream).map_err(|error| failed(&error))? {
        Ok(Answer::Taken) => Ok(stream),
        Ok(Answer::Refused(why)) => Err(Over::Refused(why)),
        Err(version) => Err(Over::Refused(format!(
            "{host} speaks version {version} of the protocol between processes: start the same program in each"
        ))),
    }
}

/// Waits for the next word of process 0.
fn hear(line: &Call, stop: &AtomicBool) -> Result<Down, Over> {
    loop {
        match line.inbox().recv_timeout(LOOK_EVERY) {
            Ok(down) => return Ok(down),
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => return Err(Over::Stopped),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Over::Lost(ended(line))),
        }
    }
}

/// Messages come in one order.
fn astray() -> Over {
    Over::Lost("process 0 said something that does not come here".to_owned())
}

fn ended(line: &Call) -> String {
    format!("process 0 is gone: {}", line.ended().unwrap_or_default())
}

/// One generation, from the call to its end.
fn term(share: &Share, plan: &Plan, around: &Around, switch: &Switch) -> Over {
    match generation(share, plan, around, switch) {
        Ok(over) | Err(over) => over,
    }
}

/// Workers of this process that are being made.
struct Making {
    chain: Chain,
    commands: Sender<Command>,
    inbox: Receiver<Command>,
    waker: WakerSlot,
    assigned: Vec<Assigned>,
}

fn generation(share: &Share, plan: &Plan, around: &Around, switch: &Switch) -> Result<Over, Over> {
    let Some(head) = share.hosts.first() else { return Err(Over::Lost("--hosts names nobody".to_owned())) };
    let stream = call(share, head, &Opening::Control(hello(share, plan)))?;
    // Dropped from below: reports close before threads end, and the line last of all.
    let line: Call = Line::new(stream, share.silence, "process 0")?;
    let mut threads = Threads::default();
    let (generation, posts, restored, may_drop) = match hear(&line, &around.stop)? {
        Down::Welcome { generation, workers, restored, may_drop } => (generation, workers, restored, may_drop),
        _ => return Err(astray()),
    };
    tracing::info!(generation, "a generation begins");
    let may_drop = may_drop.map_or(MayDrop::Again, MayDrop::Named);
    let peers = share.workers * usize::from(share.processes());
    let mut making: BTreeMap<usize, Making> = BTreeMap::new();
    let fails = |worker: usize, problem: String| {
        let said = line.say(Up::Failed(u16::try_from(worker).unwrap_or(u16::MAX), problem.clone()));
        Over::Lost(said.err().unwrap_or(problem))
    };
    for (number, lots) in posts {
        let number = usize::from(number);
        let mut chain = plan.wiring.chain(Path::Decide).map_err(|error| fails(number, error.to_string()))?;
        if let Some(rules) = restored {
            chain
                .restore_but(std::iter::empty(), rules, &may_drop)
                .map_err(|error| fails(number, error.to_string()))?;
        }
        let (waker, mut assigned) = (WakerSlot::default(), Vec::new());
        for LotToRead { lot, topic, from, rank, at_least_permille } in lots {
            let at = TopicPartition { topic: topic.into(), partition: lot.partition };
            let feed = threads.feed(&around.log, at, from, Arc::clone(&waker));
            let feed = feed.map_err(|error| fails(number, error.to_string()))?;
            assigned.push(Assigned { lot, from, feed, rank, at_least_permille });
        }
        let (commands, inbox) = command_channel();
        making.insert(number, Making { chain, commands, inbox, waker, assigned });
    }
    loop {
        match hear(&line, &around.stop)? {
            Down::State(chunk) => {
                let rules = restored.unwrap_or_default();
                let state = Delta::from_chunk(&chunk).map_err(Over::Lost)?;
                for (number, Making { chain, .. }) in &mut making {
                    let restored = chain.restore_but(state.of_worker(*number, peers), rules, &may_drop);
                    restored.map_err(|error| fails(*number, error.to_string()))?;
                }
            }
            Down::Loaded => break,
            _ => return Err(astray()),
        }
    }
    for (operator, count) in making.values().flat_map(|worker| worker.chain.dropped()) {
        let (entries, parked) = (count.entries, count.parked);
        tracing::warn!(%operator, entries, parked, "state is dropped; what was parked in it is recorded as lost");
    }
    line.say(Up::Loaded)?;
    match hear(&line, &around.stop)? {
        Down::Start => {}
        _ => return Err(astray()),
    }

    let links = links(share, switch, &line, generation, &around.stop)?;
    let (report, reports) = bounded::<Report>(REPORTS_MAX);
    let (mut workers, mut wakers, mut commands, mut pulses) = (Vec::new(), BTreeMap::new(), Vec::new(), Vec::new());
    for (number, Making { chain, commands: command, inbox, waker, assigned }) in making {
        pulses.push((format!("worker {number}"), chain.pulse()));
        workers.push(WorkerIo { chain, assigned, commands: inbox, reports: report.clone() });
        wakers.insert(number, waker);
        commands.push(command);
    }
    drop(report);
    let broken: Arc<OnceLock<String>> = Arc::default();
    let breaks = Arc::clone(&broken);
    let hears = move |how| {
        let _ = breaks.set(how);
    };
    let seat = Seat { process: usize::from(share.process), links, broken: Arc::new(hears) };
    let slots: Vec<WakerSlot> = wakers.values().cloned().collect();
    threads.seated(workers, &slots, plan.wiring.sources.clone(), seat)?;
    let _watched = around.status.pulses.watch(pulses);
    around.status.wait_for("");
    around.status.set_ready(true);
    around.status.generations.fetch_add(1, Ordering::Relaxed);

    let wake = || slots.iter().filter_map(|slot| slot.get()).for_each(|waker| waker());
    let tell = |command: &Command| {
        commands.iter().for_each(|to| {
            let _ = to.send(command.clone());
        });
        wake();
    };
    let mut leaving: Option<Duration> = None;
    loop {
        select! {
            recv(line.inbox()) -> down => match down {
                Ok(Down::Release(cut)) => {
                    let cut = cut.cut(Arc::clone(&plan.rules));
                    around.status.set_epoch(cut.epoch);
                    tell(&Command::Release(Arc::new(cut)));
                }
                Ok(Down::Stop) => tell(&Command::Stop),
                Ok(_) => return Err(astray()),
                Err(_) if leaving.is_some() => return Ok(Over::Stopped),
                Err(_) => return Err(Over::Lost(ended(&line))),
            },
            recv(reports) -> report => match report {
                Ok(Report::Ready(worker, waker)) => {
                    // Feeds may have been filled, and cuts sent, before the worker could be woken.
                    if let Some(slot) = wakers.get(&worker) {
                        let _ = slot.set(Arc::clone(&waker));
                    }
                    waker();
                }
                Ok(report) => up(report, |up| line.say(up))?,
                // Told to stop, and done: the line's end comes next.
                Err(_) => match line.inbox().recv() {
                    Ok(_) => {}
                    Err(_) if leaving.is_some() => return Ok(Over::Stopped),
                    Err(_) => return Err(Over::Lost(ended(&line))),
                },
            },
            default(LOOK_EVERY) => {}
        }
        // Workers that have ended, because they were told to or because a link broke, are no news.
        if let Some(how) = broken.get() {
            return if leaving.is_some() { Ok(Over::Stopped) } else { Err(Over::Lost(how.clone())) };
        }
        if around.stop.load(Ordering::Relaxed) {
            let now = around.clock.elapsed();
            match leaving {
                None => {
                    line.say(Up::Leaving)?;
                    leaving = Some(now);
                }
                Some(since) if around.clock.real(now.saturating_sub(since)) > LEAVE_WITHIN => return Ok(Over::Stopped),
                Some(_) => {}
            }
        }
    }
}

/// Connections to all other processes: those of lower numbers are called, those of higher ones call.
fn links(
    share: &Share,
    switch: &Switch,
    line: &Call,
    generation: u64,
    stop: &AtomicBool,
) -> Result<Vec<Option<TcpStream>>, Over> {
    switch.begin(generation);
    let mut links = Vec::new();
    for process in 0..share.processes() {
        if process == share.process {
            links.push(None);
        } else if process < share.process {
            let host = share.hosts.get(usize::from(process)).map_or("", String::as_str);
            let link = match call(share, host, &Opening::Data { generation, from: share.process }) {
                // A generation that is over is a matter of a moment: process 0 is called again.
                Err(Over::Refused(why)) => return Err(Over::Lost(why)),
                link => link?,
            };
            let failed = |error: io::Error| Over::Lost(error.to_string());
            link.set_read_timeout(None).map_err(failed)?;
            link.set_write_timeout(None).map_err(failed)?;
            links.push(Some(link));
        } else {
            let link = loop {
                if let Some(link) = switch.data(process, generation, LOOK_EVERY) {
                    break link;
                }
                if line.ended().is_some() {
                    return Err(Over::Lost(ended(line)));
                }
                if stop.load(Ordering::Relaxed) {
                    return Err(Over::Stopped);
                }
            };
            links.push(Some(link));
        }
    }
    Ok(links)
}
