//! Every way in which up to three generations of very small worlds come between each other.
//!
//! # Cast
//! A *tiny world* has one user, one partition of everything and one worker; what is written to it comes when nobody
//! has anything to do. Of the *generations* one moves, the others stand still or are dead. Whenever the one that moves
//! has done something that others can see, or seen something that others do, is a *point*; at it nothing happens, or an
//! [`Act`]: it is killed, in the midst of its next append too, or stands still, and the next generation starts; one
//! that stands still moves in its place; side inputs are compacted up to the newest checkpoint.
//!
//! # Search
//! A *schedule* names acts and the points at which they happen. All schedules of no act, of one, of two, … are run, up
//! to a number of acts, each to its end: the one that moves comes to rest, side inputs are compacted up to the newest
//! checkpoint, whoever stood still goes on, then everything is stopped in good order and must be decided, said and kept. That is all crash points, slow starters,
//! zombies and compactions, in all orders, within that number.
//!
//! What two schedules have in common is not run twice: where the log, the store, and what each living generation has
//! seen so far are the same, so is all that can follow. A hash of these names a state, and of the schedules that come
//! to one state only the first goes on.
//!
//! # Not searched
//! The order in which one generation's own parts take turns, which is the seeds' to draw; and what more acts could do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tidings_schemas::deliberate::Bug;
use tidings_schemas::time::Instant;
use tidings_sinks::log::Append;

use crate::checks::Broken;
use crate::log::{Fate, digest};
use crate::options::{DeliverOptions, Faults, Options, Wired};
use crate::run::{Simulation, at, put};
use crate::workload::{ADDRESSES, Batch, EVENTS, PROFILES, START};

/// Generations that a schedule may have started, the first one among them.
const GENERATIONS: u64 = 3;

/// Steps that one world may take: some hundred times what it needs.
const STEPS_MAX: u64 = 200_000;

/// Whoever has nothing to do for so long has come to rest.
const REST: Duration = Duration::from_secs(3_600);

/// The longest time between two cuts: longer than rest.
const IDLE: Duration = Duration::from_secs(100 * 3_600);

/// The worlds' names: see [`tiny`].
pub const WORLDS: [&str; 3] = ["wishes", "window", "repeats"];

/// What happens at a point, beside nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Whoever moves is killed, and the next generation starts.
    Killed,
    /// Whoever moves dies in the midst of its next append, after the first record of several.
    Torn,
    /// Whoever moves stands still, and the next generation starts.
    Stands,
    /// The generation of this number, which stood still, moves; whoever moved stands still.
    Wakes(u64),
    /// Side inputs are compacted up to the newest checkpoint.
    Compacted,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("killed"),
            Self::Torn => f.write_str("dies in its next append"),
            Self::Stands => f.write_str("stands still"),
            Self::Wakes(number) => write!(f, "p{number} wakes"),
            Self::Compacted => f.write_str("compacted"),
        }
    }
}

/// Acts, and the points at which they happen.
pub type Schedule = Vec<(usize, Act)>;

/// A point as a run came by it.
#[derive(Clone, Debug)]
struct Point {
    /// Names the state of everything.
    state: u64,
    /// Who stands still.
    standing: Vec<u64>,
    /// Whether the next generation may start.
    starts: bool,
    /// Whether what follows is an append of several records.
    wide: bool,
    /// Whether there is anything to compact.
    compacts: bool,
}

impl Point {
    fn acts(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.starts {
            acts.extend([Act::Killed, Act::Stands]);
            acts.extend(self.wide.then_some(Act::Torn));
        }
        acts.extend(self.standing.iter().map(|number| Act::Wakes(*number)));
        acts.extend(self.compacts.then_some(Act::Compacted));
        acts
    }
}

/// What a run came to.
struct Ran {
    /// How many points it came by, and they, where they are asked for.
    came_by: usize,
    points: Vec<Point>,
    broken: Option<Broken>,
    trace: Vec<String>,
}

/// What a search came to.
#[derive(Debug, Default)]
pub struct Searched {
    /// Schedules that were run.
    pub runs: usize,
    /// Schedules that were not, because another one comes to the state in which their last act happens.
    pub same: usize,
    /// Points in all of them.
    pub points: usize,
    /// The first schedule that breaks a promise.
    pub broken: Option<(Schedule, Broken)>,
}

/// One user, one partition of everything, one worker, and a checkpoint after every change.
///
/// In `wishes` each batch changes the profile that the event beside it is decided by; in `window` two events become
/// one in a window that a timer ends; in `repeats` an event comes twice, and is taken back in the end.
#[must_use]
pub fn tiny(world: &str) -> (Options, Vec<Batch>) {
    let aggregate = json!({"window": "30s", "threshold": 5, "leading": false, "sliding_max": Value::Null});
    let all: [Wired; 5] = [
        ("validate", json!({}), None),
        ("dedup", json!({"window": "10m"}), None),
        ("preferences", json!({}), None),
        ("aggregate", aggregate, None),
        ("route", json!({}), None),
    ];
    let without = match world {
        "wishes" => ["dedup", "aggregate"],
        "window" => ["dedup", "dedup"],
        _ => ["aggregate", "aggregate"],
    };
    let operators = all.into_iter().filter(|(kind, ..)| !without.contains(kind)).collect();
    let options = Options {
        seed: 0,
        operators,
        spread: Duration::ZERO,
        event_partitions: 1,
        lane_partitions: 1,
        profile_partitions: 1,
        workers_max: 1,
        users: 1,
        batches: 0,
        batch_max: 0,
        hours: 1,
        epoch_min: Duration::from_millis(1),
        idle_max: IDLE,
        checkpoint_every: Duration::from_millis(1),
        faults_max: 0,
        alive_max: 8,
        faults: Faults::default(),
        deliver: DeliverOptions { runs: false, ..Options::draw(0).deliver },
    };
    let append = |topic: &str, key: &str, value: Value| Append {
        to: at(topic, 0),
        key: Some(key.to_owned().into()),
        value: Some(value.to_string().into()),
        headers: Vec::new(),
    };
    let address = |channel: &str| {
        let value = json!({"user_id": "u0", "address_id": channel, "channel": channel, "address": "x"});
        append(ADDRESSES, &format!("u0/{channel}"), value)
    };
    let wish = |push: bool| append(PROFILES, "u0", json!({"time_zone": "UTC", "types": {"like": {"push": push}}}));
    let like = |id: &str, actor: &str| {
        let (actor, object) = (json!({"id": actor}), json!({"id": "p0"}));
        json!({"id": id, "type": "like", "user_id": "u0", "actor": actor, "object": object})
    };
    let event = |event: Value| append(EVENTS, "u0", event);
    let mut back = like("e1", "a1");
    back["op"] = json!("retract");
    let batches = match world {
        "wishes" => vec![
            vec![address("push"), address("email"), wish(true)],
            vec![wish(false), event(like("e1", "a1"))],
            vec![wish(true), event(like("e2", "a2"))],
        ],
        "window" => vec![vec![address("push"), wish(true), event(like("e1", "a1"))], vec![event(like("e2", "a2"))]],
        _ => {
            vec![vec![address("push"), event(like("e1", "a1"))], vec![wish(true), event(like("e1", "a1")), event(back)]]
        }
    };
    let start: Instant = START.parse().unwrap_or_default();
    let batches = batches.into_iter().enumerate().map(|(place, records)| {
        let after = Duration::from_secs(10 * u64::try_from(place).unwrap_or(0));
        Batch { at: start.after(after), records }
    });
    (options, batches.collect())
}

/// So many schedules of up to `acts` acts there are at least in each world: fewer mean that points or acts got lost.
#[must_use]
pub const fn floor(acts: usize) -> usize {
    match acts {
        0 => 1,
        1 => 50,
        2 => 2_000,
        _ => 40_000,
    }
}

/// Runs all schedules of up to `acts_max` acts in `world`.
#[must_use]
pub fn search(world: &str, acts_max: usize, bug: Option<Bug>) -> Searched {
    let mut searched = Searched::default();
    let mut states = BTreeSet::new();
    let mut level: Vec<Schedule> = vec![Vec::new()];
    for acts in 0..=acts_max {
        let ran = run_all(world, &level, bug, acts < acts_max);
        let mut next = Vec::new();
        for (schedule, ran) in level.into_iter().zip(ran) {
            searched.runs += 1;
            searched.points += ran.came_by;
            if let Some(broken) = ran.broken {
                searched.broken = Some((schedule, broken));
                return searched;
            }
            // A further act comes later than the last one, or at the same point: then it is another's.
            let from = schedule.last().map_or(0, |(point, _)| point + 1);
            for (place, point) in ran.points.iter().enumerate().skip(from) {
                for act in point.acts() {
                    if !states.insert((point.state, act)) {
                        searched.same += 1;
                        continue;
                    }
                    next.push(schedule.iter().copied().chain([(place, act)]).collect());
                }
            }
        }
        level = next;
    }
    searched
}

/// Runs each schedule, on all cores; what comes out stands in the same order, and after one that fails some are missing.
fn run_all(world: &str, schedules: &[Schedule], bug: Option<Bug>, with_points: bool) -> Vec<Ran> {
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let done = Mutex::new(Vec::with_capacity(schedules.len()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            // Every schedule before one that fails is run, so that it is the first one that is told of.
            if number >= schedules.len() || failed.load(Ordering::Relaxed) < number {
                return;
            }
            let mut ran = run(world, &schedules[number], bug, false);
            if !with_points {
                ran.points = Vec::new();
            }
            if ran.broken.is_some() {
                failed.fetch_min(number, Ordering::Relaxed);
            }
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, ran));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, ran)| ran).collect()
}

/// The first schedule of up to two acts that `bug` breaks a promise under, and which breaks none without it.
#[must_use]
pub fn catch(bug: Bug) -> Option<(&'static str, Schedule, Broken)> {
    WORLDS.into_iter().find_map(|world| {
        let (schedule, broken) = search(world, 2, Some(bug)).broken?;
        run(world, &schedule, None, false).broken.is_none().then_some((world, schedule, broken))
    })
}

/// What happens under a schedule, for a person to read.
#[must_use]
pub fn trace(world: &str, schedule: &Schedule, bug: Option<Bug>) -> Vec<String> {
    run(world, schedule, bug, true).trace
}

fn run(world: &str, schedule: &Schedule, bug: Option<Bug>, with_trace: bool) -> Ran {
    put(bug);
    let (options, batches) = tiny(world);
    let mut play = Play {
        simulation: Simulation::of(options, batches, with_trace),
        schedule: schedule.iter().copied().collect(),
        points: Vec::new(),
        moving: Vec::new(),
        lived: BTreeMap::new(),
        compacted: 0,
        steps: 0,
    };
    let broken = play.whole().and_then(|()| {
        put(None);
        crate::checks::all(&play.simulation)
    });
    put(None);
    let Play { simulation, points, .. } = play;
    let trace = simulation.world.nature().trace.clone().unwrap_or_default();
    Ran { came_by: points.len(), points, broken: broken.err(), trace }
}

/// A run under way.
struct Play {
    simulation: Simulation,
    schedule: VecDeque<(usize, Act)>,
    points: Vec<Point>,
    /// Who moves, last, and who goes on after it.
    moving: Vec<u64>,
    /// A word for all that each process lived through.
    lived: BTreeMap<u64, u64>,
    /// Checkpoints that the cut log named when side inputs were last compacted.
    compacted: u64,
    steps: u64,
}

/// How somebody's turn ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Somebody else moves.
    Passes,
    /// Nothing is left to be done.
    Rests,
    /// It is gone.
    Ended,
}

impl Play {
    fn whole(&mut self) -> Result<(), Broken> {
        self.moving.push(self.simulation.start());
        // Whoever moved when another one woke goes on after it.
        while let Some(number) = self.moving.last().copied() {
            match self.turn(number)? {
                Turn::Passes => {}
                Turn::Rests if self.moving.len() == 1 => break,
                Turn::Rests | Turn::Ended => self.moving.retain(|it| *it != number),
            }
            if self.moving.is_empty() {
                self.moving.push(self.simulation.start());
            }
        }
        // What is compacted now is gone when whoever stood still goes on.
        self.simulation.compact_to_newest();
        for number in self.simulation.numbers() {
            self.rest(number, REST)?;
        }
        // And somebody must bring all of it to an end.
        for _ in 0..=GENERATIONS {
            let number = self.simulation.numbers().last().copied();
            let number = number.unwrap_or_else(|| self.simulation.start());
            if self.rest(number, REST)? == Turn::Ended {
                continue;
            }
            self.simulation.tell_to_stop(number);
            // Who sleeps hears of it when it awakes.
            self.rest(number, IDLE * 2)?;
            if self.simulation.is_done() {
                return Ok(());
            }
        }
        Err(self.simulation.broken("liveness", "no generation comes to its end".to_owned()))
    }

    /// Lets one go on until it rests or is gone, or until the schedule has somebody else move.
    fn turn(&mut self, number: u64) -> Result<Turn, Broken> {
        let (mut observed, mut cursor) = (None, 0);
        self.resumed(number);
        loop {
            let now = self.simulation.world.nature().observed;
            if observed.replace(now) != Some(now)
                && let Some(turn) = self.point(number)
            {
                return Ok(turn);
            }
            if let Some(turn) = self.step(number, &mut cursor, REST)? {
                return Ok(turn);
            }
        }
    }

    /// Notes a point, and does what the schedule says.
    fn point(&mut self, number: u64) -> Option<Turn> {
        let place = self.points.len();
        let standing = self.simulation.numbers().into_iter().filter(|it| *it != number).collect();
        let (wide, counted) = {
            let mut nature = self.simulation.world.nature();
            (std::mem::take(&mut nature.wide), nature.counted)
        };
        if let Some(last) = self.points.last_mut() {
            last.wide = wide;
        }
        let starts = self.moving.len() == 1 && self.simulation.born() < GENERATIONS;
        let compacts = counted > self.compacted;
        let own = self.lived.entry(number).or_default();
        *own = digest(&[b"point", &own.to_le_bytes()]);
        let state = self.state();
        self.points.push(Point { state, standing, starts, wide: false, compacts });
        let (_, act) = self.schedule.pop_front_if(|(at, _)| *at == place)?;
        self.simulation.world.trace(|| format!("point {place}: p{number}: {act}"));
        match act {
            Act::Compacted => {
                self.compacted = counted;
                self.simulation.compact_to_newest();
                None
            }
            Act::Torn => {
                let mut nature = self.simulation.world.nature();
                let next = nature.writes + 1;
                nature.script.insert(next, Fate::Dies(1));
                None
            }
            Act::Killed => {
                self.simulation.kill(number);
                Some(Turn::Ended)
            }
            Act::Stands => {
                self.moving.retain(|it| *it != number);
                let next = self.simulation.start();
                self.moving.push(next);
                Some(Turn::Passes)
            }
            Act::Wakes(other) => {
                self.moving.retain(|it| *it != other);
                self.moving.push(other);
                Some(Turn::Passes)
            }
        }
    }

    /// Names the state of everything: what was written, what time it is and what is to come, who moves, and what each
    /// that lives has lived through.
    fn state(&self) -> u64 {
        let mut words = vec![self.simulation.to_come() as u64, self.simulation.born(), self.compacted];
        {
            let nature = self.simulation.world.nature();
            // A death in the next append.
            words.extend([nature.content, u64::from(nature.script.keys().any(|write| *write > nature.writes))]);
        }
        words.push(u64::try_from(self.simulation.world.time.elapsed().as_micros()).unwrap_or(u64::MAX));
        words.extend(&self.moving);
        words.push(u64::MAX);
        for number in self.simulation.numbers() {
            words.extend([number, self.lived.get(&number).copied().unwrap_or(0)]);
        }
        let words: Vec<[u8; 8]> = words.into_iter().map(u64::to_le_bytes).collect();
        digest(&words.iter().map(|word| &word[..]).collect::<Vec<_>>())
    }

    /// What one does from here on follows from what it lived through, and from what it finds now.
    fn resumed(&mut self, number: u64) {
        let (content, compacted) = (self.simulation.world.nature().content, self.compacted);
        let now = u64::try_from(self.simulation.world.time.elapsed().as_micros()).unwrap_or(u64::MAX);
        let own = self.lived.entry(number).or_default();
        let words = [*own, content, compacted, now].map(u64::to_le_bytes);
        *own = digest(&words.each_ref().map(|word| &word[..]));
    }

    /// Steps one after the other of somebody's actors, until others could see or be seen; says when it rests or is gone.
    fn step(&mut self, number: u64, cursor: &mut usize, patience: Duration) -> Result<Option<Turn>, Broken> {
        let before = self.simulation.world.nature().observed;
        let (mut still, mut moved) = (0, false);
        self.simulation.world.nature().eager = true;
        loop {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err(self.simulation.broken("liveness", format!("{STEPS_MAX} steps come to no end")));
            }
            let Some(actors) = self.simulation.actors_of(number) else { return Ok(Some(Turn::Ended)) };
            if still >= actors {
                break;
            }
            *cursor = (*cursor + 1) % actors;
            let step = self.simulation.step_of(number, *cursor)?;
            (still, moved) = (if step { 0 } else { still + 1 }, moved | step);
            if self.simulation.world.nature().observed != before {
                return Ok(None);
            }
        }
        if moved || self.simulation.goes_on_within(number, patience) {
            return Ok(None);
        }
        // What it had been told is written.
        if self.simulation.has_ended(number) {
            self.simulation.kill(number);
            return Ok(Some(Turn::Ended));
        }
        Ok(Some(Turn::Rests))
    }

    /// Lets one go on until it has nothing to do for `patience` or is gone.
    fn rest(&mut self, number: u64, patience: Duration) -> Result<Turn, Broken> {
        let mut cursor = 0;
        loop {
            if let Some(turn) = self.step(number, &mut cursor, patience)? {
                return Ok(turn);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_the_same_world_each_time() {
        let schedule = vec![(20, Act::Stands), (30, Act::Wakes(0)), (40, Act::Compacted)];
        let (one, two) = (trace("wishes", &schedule, None), trace("wishes", &schedule, None));
        assert!(one.iter().any(|line| line.contains("p1")), "nobody stood still: {one:#?}");
        assert_eq!(one, two);
    }
}
