//! Process 0's side: a crew of which some live elsewhere. The coordinator does not know which.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Select, Sender};
use tidings_operators::harness::aside::Killed;
use tidings_operators::harness::cluster::Seat;
use tidings_operators::harness::dataflow::{Command, Report};
use tidings_operators::harness::dropped::MayDrop;
use tidings_schemas::ids::KeyGroup;

use super::switch::{Control, Switch, Taking};
use super::wire::{CutOnWire, Down, Gathered, LotToRead, PAGE_BYTES, Up};
use super::{Share, hello};
use crate::runtime::coordinator::{DecideError, Surroundings};
use crate::runtime::crew::{Crew, Ground, Hands, Manned, Post, Threads, ToRead, prepare};
use crate::runtime::plan::Plan;

/// How often it is looked whether everybody is there, and whether a stop was asked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Process 0 of a run: where the others call, for as long as it lives.
pub struct Head {
    share: Share,
    switch: Switch,
}

impl Head {
    /// Takes calls on `listener` from processes that run what `plan` says.
    ///
    /// # Errors
    /// When the listener cannot be used.
    pub fn open(share: Share, plan: &Plan, listener: TcpListener) -> io::Result<Arc<Self>> {
        let taking = Taking { ours: hello(&share, plan), silence: share.silence };
        Ok(Arc::new(Self { switch: Switch::open(listener, Some(taking))?, share }))
    }

    /// A crew for one generation.
    #[must_use]
    pub fn crew(self: &Arc<Self>) -> Box<dyn Crew> {
        Box::new(Everybody {
            threads: Threads::default(),
            pumps: Vec::new(),
            head: Arc::clone(self),
            lines: BTreeMap::new(),
            fate: Arc::default(),
        })
    }
}

/// What is heard of the others while a generation runs.
#[derive(Default)]
struct Fate {
    lost: OnceLock<String>,
    is_left: AtomicBool,
}

/// The crew of all processes. Its own threads end before those that listen to the others.
struct Everybody {
    threads: Threads,
    pumps: Vec<JoinHandle<()>>,
    head: Arc<Head>,
    /// Lines to the others, until the generation runs.
    lines: BTreeMap<u16, Control>,
    fate: Arc<Fate>,
}

/// The workers of another process, as the coordinator's posts know them.
struct Elsewhere {
    process: u16,
    commands: Vec<Receiver<Command>>,
    reports: Sender<Report>,
}

impl Everybody {
    /// Tells a process what its workers are to do, and gives them their state.
    fn assign(&self, line: &Control, posts: &[Post], ground: &Ground<'_>) -> Result<(), String> {
        let number = |worker: usize| u16::try_from(worker).unwrap_or(u16::MAX);
        let to_read = |to_read: &ToRead| {
            let ToRead { lot, at, from, rank, at_least_permille } = to_read.clone();
            LotToRead { lot, topic: at.topic.to_string(), from, rank, at_least_permille }
        };
        let workers = posts.iter().map(|post| (number(post.number), post.lots.iter().map(to_read).collect())).collect();
        let restored = ground.state.map(|(_, rules)| rules);
        let may_drop = match ground.may_drop {
            MayDrop::Named(named) => Some(named.clone()),
            MayDrop::Again => None,
        };
        line.say(Down::Welcome { generation: ground.generation, workers, restored, may_drop })?;
        if let Some((state, _)) = ground.state {
            let theirs = |group: KeyGroup| posts.iter().any(|post| post.number == group.worker(ground.peers));
            state.chunks(PAGE_BYTES, theirs).try_for_each(|chunk| line.say(Down::State(chunk)))?;
        }
        line.say(Down::Loaded)
    }
}

/// Waits until a process holds its state.
fn loaded(process: u16, line: &Control) -> Result<(), DecideError> {
    match line.inbox().recv() {
        Ok(Up::Loaded) => Ok(()),
        Ok(Up::Failed(worker, problem)) => Err(DecideError::Worker(format!("worker {worker}: {problem}"))),
        Ok(_) => Err(lost(process, "it leaves before it began")),
        Err(_) => Err(lost(process, &line.ended().unwrap_or_default())),
    }
}

fn lost(process: u16, how: &str) -> DecideError {
    DecideError::Lost { why: gone(process, how), careful: false }
}

fn gone(process: u16, how: &str) -> String {
    format!("process {process} is gone: {how}")
}

impl Crew for Everybody {
    fn hands(&mut self) -> &mut dyn Hands {
        &mut self.threads
    }

    fn gather(&mut self, around: &Surroundings) -> Result<bool, DecideError> {
        let mut told = Vec::new();
        while !around.stop.load(Ordering::Relaxed) {
            match self.head.switch.controls(self.head.share.processes(), LOOK_EVERY) {
                Ok(lines) => {
                    around.status.wait_for("");
                    self.lines = lines;
                    return Ok(true);
                }
                Err(missing) if missing != told => {
                    let of = |process: &u16| {
                        let host = self.head.share.hosts.get(usize::from(*process)).map_or("?", String::as_str);
                        format!("process {process} ({host})")
                    };
                    let names: Vec<String> = missing.iter().map(of).collect();
                    let words = format!("waits for {}", names.join(" and "));
                    tracing::warn!("decide {words}");
                    around.status.wait_for(&words);
                    told = missing;
                }
                Err(_) => {}
            }
        }
        Ok(false)
    }

    fn here(&self, _: usize) -> usize {
        self.head.share.workers
    }

    fn man(&mut self, mut posts: Vec<Post>, ground: &Ground<'_>) -> Result<Manned, DecideError> {
        let (here, generation) = (self.head.share.workers, ground.generation);
        if posts.len() <= here {
            // Nobody else is needed: they hear it, and come again.
            self.lines.clear();
            return self.threads.man(posts, ground);
        }
        let mut lines = std::mem::take(&mut self.lines);
        self.head.switch.begin(generation);
        let mut others = posts.split_off(here);
        for (process, line) in &lines {
            let posts = others.get(here * (usize::from(*process) - 1)..).and_then(|rest| rest.get(..here));
            let posts = posts.ok_or_else(|| DecideError::Worker("a process without workers".to_owned()))?;
            self.assign(line, posts, ground).map_err(|how| lost(*process, &how))?;
        }
        let (workers, wakers, manned) = prepare(&mut self.threads, posts, ground)?;
        lines.iter().try_for_each(|(process, line)| loaded(*process, line))?;
        for (process, line) in &lines {
            line.say(Down::Start).map_err(|how| lost(*process, &how))?;
        }
        let mut links = vec![None];
        for (process, line) in &lines {
            let link = loop {
                if let Some(link) = self.head.switch.data(*process, generation, LOOK_EVERY) {
                    break link;
                }
                if let Some(how) = line.ended() {
                    return Err(lost(*process, &how));
                }
            };
            links.push(Some(link));
        }
        let fate = Arc::clone(&self.fate);
        // Any report makes the coordinator look.
        let nudge = others.first().map(|post| post.reports.clone());
        let broken = move |how| {
            if fate.lost.set(how).is_ok() {
                nudge.iter().for_each(look);
            }
        };
        let seat = Seat { process: 0, links, broken: Arc::new(broken) };
        let sources = ground.wiring.sources.clone();
        self.threads.seated(workers, &wakers, sources, seat).map_err(DecideError::Worker)?;
        while let Some((process, line)) = lines.pop_first() {
            let theirs: Vec<Post> = others.drain(..here.min(others.len())).collect();
            let Some(reports) = theirs.first().map(|post| post.reports.clone()) else { continue };
            let commands = theirs.into_iter().map(|post| post.commands).collect();
            let (fate, elsewhere) = (Arc::clone(&self.fate), Elsewhere { process, commands, reports });
            let thread = std::thread::Builder::new().name(format!("process {process}"));
            let spawned = thread.spawn(move || pump(&line, &elsewhere, &fate));
            self.pumps.push(spawned.map_err(|error| DecideError::Worker(format!("no thread: {error}")))?);
        }
        Ok(manned)
    }

    fn lost(&self) -> Option<String> {
        self.fate.lost.get().cloned()
    }

    fn is_left(&self) -> bool {
        self.fate.is_left.load(Ordering::Relaxed)
    }
}

impl Drop for Everybody {
    fn drop(&mut self) {
        // Commands are closed by now, so that pumps end, and close their lines.
        for pump in self.pumps.drain(..) {
            let _ = pump.join();
        }
    }
}

/// Makes the coordinator look up from its wait.
fn look(reports: &Sender<Report>) {
    let _ = reports.try_send(Report::Ahead(0, Vec::new()));
}

/// Carries commands to another process and its reports back, until the generation or the line ends.
fn pump(line: &Control, elsewhere: &Elsewhere, fate: &Fate) {
    let Elsewhere { process, commands, reports } = elsewhere;
    let mut gathered = Gathered::default();
    let mut channels = Select::new();
    let up = channels.recv(line.inbox());
    let places: Vec<usize> = commands.iter().map(|command| channels.recv(command)).collect();
    let ended = loop {
        let ready = channels.select();
        if ready.index() == up {
            let report = match ready.recv(line.inbox()) {
                Ok(up) => report(up, &mut gathered, fate, reports),
                Err(_) => break line.ended().unwrap_or_default(),
            };
            match report {
                Ok(None) => {}
                Ok(Some(report)) => {
                    if reports.send(report).is_err() {
                        return;
                    }
                }
                Err(how) => break how,
            }
            continue;
        }
        let Some(place) = places.iter().position(|place| *place == ready.index()) else { return };
        let Ok(command) = ready.recv(&commands[place]) else { return };
        // All of them are told the same: the first one's is passed on.
        if place > 0 {
            continue;
        }
        let down = match command {
            Command::Release(cut) => Down::Release(CutOnWire::new(&cut)),
            Command::Stop => Down::Stop,
        };
        if let Err(how) = line.say(down) {
            break how;
        }
    };
    if fate.lost.set(gone(*process, &ended)).is_ok() {
        look(reports);
    }
}

/// What the coordinator hears of a message.
fn report(up: Up, gathered: &mut Gathered, fate: &Fate, reports: &Sender<Report>) -> Result<Option<Report>, String> {
    Ok(Some(match up {
        Up::Loaded => return Ok(None),
        Up::Page(worker, page) => {
            gathered.page(worker, page).map_err(|error| error.to_string())?;
            return Ok(None);
        }
        Up::Done(worker, rest) => Report::Done(usize::from(worker), Box::new(gathered.done(worker, rest))),
        Up::Ahead(worker, ahead) => Report::Ahead(usize::from(worker), ahead),
        Up::Killed { worker, epoch, skip } => Report::Killed(usize::from(worker), Box::new(Killed { epoch, skip })),
        Up::Failed(worker, problem) => Report::Failed(usize::from(worker), problem),
        Up::Leaving => {
            fate.is_left.store(true, Ordering::Relaxed);
            look(reports);
            return Ok(None);
        }
    }))
}
