//! What happens when in a round: the seed draws it, before anything runs, so that it can be drawn again.

use std::ops::Range;
use std::time::Duration;

use crate::proxy::Network;
use crate::workload::Random;

/// Events come in pieces, for this long from the start on: some before anything is up, some after.
const WRITING: u64 = 8_000;
const PIECES: usize = 16;
/// The first strike comes within this time: from before the first epoch to after the last event.
const FIRST_WITHIN: usize = 10_000;

/// What the watchdog bears in rounds with a process that is frozen or cannot be heard.
pub(crate) const WATCHDOG_MS: u64 = 10_000;

/// How decide is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One process of two workers.
    OneByTwo,
    /// Two processes of one worker each, with a network between them.
    TwoByOne,
}

impl Layout {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "1x2" => Some(Self::OneByTwo),
            "2x1" => Some(Self::TwoByOne),
            _ => None,
        }
    }

    pub(crate) const fn processes(self) -> usize {
        match self {
            Self::OneByTwo => 1,
            Self::TwoByOne => 2,
        }
    }
}

/// What a round is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed, up to three times.
    Sigkill,
    /// The process is frozen: for a moment, for longer than its watchdog bears, under a supervisor, or while
    /// another one takes over from it.
    Sigstop,
    /// The broker is killed and started again.
    Broker,
    /// Redis forgets everything: emptied, killed, or emptied while nobody runs.
    Redis,
    /// ClickHouse is killed and is away for up to a minute.
    ClickHouse,
    /// The disk under the checkpoints is full; sometimes the process is killed meanwhile.
    Disk,
    /// The network between two processes is cut, or falls silent: for a moment, or for longer than they bear.
    Network,
}

impl Fault {
    pub(crate) const ALL: [(&str, Self); 7] = [
        ("sigkill", Self::Sigkill),
        ("sigstop", Self::Sigstop),
        ("broker", Self::Broker),
        ("redis", Self::Redis),
        ("clickhouse", Self::ClickHouse),
        ("disk", Self::Disk),
        ("network", Self::Network),
    ];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, fault)| *fault)
    }
}

/// One thing that is done to the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Events are appended: these of the workload's stream.
    Write(Range<usize>),
    /// SIGKILL to the process of this number.
    Kill(usize),
    /// Starts it again.
    Run(usize),
    /// SIGSTOP to the process.
    Freeze(usize),
    /// SIGCONT to whoever is frozen, or to the process.
    Awake(usize),
    /// Starts another process beside the frozen one.
    Replace,
    /// SIGKILL to a service.
    Down(&'static str),
    /// Starts a service that is down.
    Up(&'static str),
    /// Empties Redis.
    Flush,
    /// Fills what is left of the disk.
    Fill,
    /// Gives the disk's space back.
    Free,
    /// The network between two processes does this from now on.
    Network(Network),
}

impl Step {
    /// As a report shows it; writing is no news.
    pub(crate) fn shown(&self, layout: Layout) -> Option<String> {
        let of = |what: &str, process: &usize| match layout {
            Layout::OneByTwo => what.to_owned(),
            Layout::TwoByOne => format!("{what} process {process}"),
        };
        Some(match self {
            Self::Write(_) => return None,
            Self::Kill(process) => of("SIGKILL", process),
            Self::Run(process) => of("started", process),
            Self::Freeze(process) => of("SIGSTOP", process),
            Self::Awake(process) => of("SIGCONT", process),
            Self::Replace => "another started beside it".to_owned(),
            Self::Down(service) => format!("{service} killed"),
            Self::Up(service) => format!("{service} started"),
            Self::Flush => "redis emptied".to_owned(),
            Self::Fill => "disk full".to_owned(),
            Self::Free => "disk freed".to_owned(),
            Self::Network(Network::Heals) => "network heals".to_owned(),
            Self::Network(Network::FallsSilent) => "network silent".to_owned(),
            Self::Network(Network::IsCut) => "network cut".to_owned(),
        })
    }
}

/// All that happens in a round, in order, each at its time.
pub(crate) struct Timeline {
    /// Time runs from the process's start on, so that strikes meet a recovery, and not from when it is up.
    pub(crate) from_start: bool,
    /// The process is run by its own supervisor.
    pub(crate) supervised: bool,
    pub(crate) steps: Vec<(Duration, Step)>,
}

pub(crate) fn draw(fault: Fault, layout: Layout, random: &mut Random, events: usize) -> Timeline {
    // Nobody is frozen before there is somebody.
    let from_start = random.below(4) == 0 && !matches!(fault, Fault::Sigstop | Fault::Network);
    let mut supervised = false;
    let mut drawn: Vec<(u64, Step)> = Vec::new();
    for piece in 0..PIECES {
        let range = events * piece / PIECES..events * (piece + 1) / PIECES;
        drawn.push((WRITING * piece as u64 / PIECES as u64, Step::Write(range)));
    }
    let mut within = |below: usize| random.below(below) as u64;
    let mut at = within(FIRST_WITHIN);
    let mut add = |at: u64, step| drawn.push((at, step));
    // Whom it strikes, where there is a choice.
    let whom = |within: &mut dyn FnMut(usize) -> u64| match layout.processes() {
        1 => 0,
        processes => usize::try_from(within(processes)).unwrap_or_default(),
    };
    match fault {
        Fault::Sigkill => {
            for _ in 0..=within(3) {
                let process = whom(&mut within);
                add(at, Step::Kill(process));
                at += within(1_500);
                add(at, Step::Run(process));
                at += 200 + within(6_000);
            }
        }
        Fault::Sigstop => {
            let process = whom(&mut within);
            add(at, Step::Freeze(process));
            // Of several processes none is replaced while it is frozen: it holds its port.
            match within(if layout.processes() == 1 { 4 } else { 3 }) {
                0 => add(at + 500 + within(5_000), Step::Awake(process)),
                1 => add(at + WATCHDOG_MS + 1_000 + within(5_000), Step::Awake(process)),
                2 => supervised = true,
                _ => {
                    at += within(8_000);
                    add(at, Step::Replace);
                    add(at + 1_000 + within(10_000), Step::Awake(process));
                }
            }
        }
        Fault::Network => {
            for _ in 0..=within(2) {
                let network = if within(2) == 0 { Network::IsCut } else { Network::FallsSilent };
                add(at, Step::Network(network));
                at += match within(2) {
                    0 => within(5_000),
                    _ => WATCHDOG_MS + 1_000 + within(5_000),
                };
                add(at, Step::Network(Network::Heals));
                at += 1_000 + within(6_000);
            }
        }
        Fault::Broker => {
            for _ in 0..=within(2) {
                add(at, Step::Down("kafka"));
                at += within(6_000);
                add(at, Step::Up("kafka"));
                at += 1_000 + within(6_000);
            }
        }
        Fault::Redis => {
            for _ in 0..=within(2) {
                match within(3) {
                    0 => add(at, Step::Flush),
                    1 => {
                        add(at, Step::Down("redis"));
                        at += within(5_000);
                        add(at, Step::Up("redis"));
                    }
                    _ => {
                        // Process 0 is the one that delivers.
                        add(at, Step::Kill(0));
                        add(at, Step::Flush);
                        at += within(1_500);
                        add(at, Step::Run(0));
                    }
                }
                at += 1_000 + within(5_000);
            }
        }
        Fault::ClickHouse => {
            add(at, Step::Down("clickhouse"));
            add(at + 5_000 + within(55_001), Step::Up("clickhouse"));
        }
        Fault::Disk => {
            let freed = at + 3_000 + within(12_000);
            // What checkpoints give up meanwhile is taken as well.
            for again in (at..freed).step_by(500) {
                add(again, Step::Fill);
            }
            if within(2) == 0 {
                let killed = at + 2_000 + within(1_000);
                let process = whom(&mut within);
                add(killed, Step::Kill(process));
                add(killed + within(1_000), Step::Run(process));
            }
            add(freed, Step::Free);
        }
    }
    // Nobody can append to a broker that is away: its producers come back with it.
    drawn.sort_by_key(|(at, _)| *at);
    let (mut steps, mut held, mut is_away) = (Vec::new(), Vec::new(), false);
    for (at, step) in drawn {
        match &step {
            Step::Write(_) if is_away => {
                held.push(step);
                continue;
            }
            Step::Down("kafka") => is_away = true,
            Step::Up("kafka") => is_away = false,
            _ => {}
        }
        steps.push((Duration::from_millis(at), step));
        if !is_away {
            steps.extend(held.drain(..).map(|step| (Duration::from_millis(at), step)));
        }
    }
    Timeline { from_start, supervised, steps }
}
