//! What happens when in a round: the seed draws it, before anything runs, so that it can be drawn again.

use std::ops::Range;
use std::time::Duration;

use crate::workload::Random;

/// Events come in pieces, for this long from the start on: some before anything is up, some after.
const WRITING: u64 = 8_000;
const PIECES: usize = 16;
/// The first strike comes within this time: from before the first epoch to after the last event.
const FIRST_WITHIN: usize = 10_000;

/// What the watchdog bears in rounds with a frozen process.
pub(crate) const WATCHDOG_MS: u64 = 10_000;

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
}

impl Fault {
    pub(crate) const ALL: [(&str, Self); 6] = [
        ("sigkill", Self::Sigkill),
        ("sigstop", Self::Sigstop),
        ("broker", Self::Broker),
        ("redis", Self::Redis),
        ("clickhouse", Self::ClickHouse),
        ("disk", Self::Disk),
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
    /// SIGKILL to the process.
    Kill,
    /// Starts it again.
    Run,
    /// SIGSTOP to the process.
    Freeze,
    /// SIGCONT to whoever is frozen.
    Awake,
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
}

impl Step {
    /// As a report shows it; writing is no news.
    pub(crate) fn shown(&self) -> Option<String> {
        Some(match self {
            Self::Write(_) => return None,
            Self::Kill => "SIGKILL".to_owned(),
            Self::Run => "started".to_owned(),
            Self::Freeze => "SIGSTOP".to_owned(),
            Self::Awake => "SIGCONT".to_owned(),
            Self::Replace => "another started beside it".to_owned(),
            Self::Down(service) => format!("{service} killed"),
            Self::Up(service) => format!("{service} started"),
            Self::Flush => "redis emptied".to_owned(),
            Self::Fill => "disk full".to_owned(),
            Self::Free => "disk freed".to_owned(),
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

pub(crate) fn draw(fault: Fault, random: &mut Random, events: usize) -> Timeline {
    // Nobody is frozen before there is somebody.
    let from_start = random.below(4) == 0 && fault != Fault::Sigstop;
    let mut supervised = false;
    let mut drawn: Vec<(u64, Step)> = Vec::new();
    for piece in 0..PIECES {
        let range = events * piece / PIECES..events * (piece + 1) / PIECES;
        drawn.push((WRITING * piece as u64 / PIECES as u64, Step::Write(range)));
    }
    let mut within = |below: usize| random.below(below) as u64;
    let mut at = within(FIRST_WITHIN);
    let mut add = |at: u64, step| drawn.push((at, step));
    match fault {
        Fault::Sigkill => {
            for _ in 0..=within(3) {
                add(at, Step::Kill);
                at += within(1_500);
                add(at, Step::Run);
                at += 200 + within(6_000);
            }
        }
        Fault::Sigstop => {
            add(at, Step::Freeze);
            match within(4) {
                0 => add(at + 500 + within(5_000), Step::Awake),
                1 => add(at + WATCHDOG_MS + 1_000 + within(5_000), Step::Awake),
                2 => supervised = true,
                _ => {
                    at += within(8_000);
                    add(at, Step::Replace);
                    add(at + 1_000 + within(10_000), Step::Awake);
                }
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
                        add(at, Step::Kill);
                        add(at, Step::Flush);
                        at += within(1_500);
                        add(at, Step::Run);
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
                add(killed, Step::Kill);
                add(killed + within(1_000), Step::Run);
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
