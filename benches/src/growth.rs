//! How decide throughput grows: one axis at a time from one base point, from bytes in memory with checkpoints off.
//!
//! The base is one worker, 131,072 users, four partitions of each events topic, all priorities, and no object that is
//! hotter than Zipf's law makes it. Each other point differs from it in one thing:
//! - *workers*: two.
//! - *users*: from 2¹⁴ to 2²⁴, the powers of two next above 10⁴, 10⁶ and 10⁷ (the base is the one above 10⁵). A user is
//!   the key that state is kept by. Only users whom an event names have a profile and addresses, because the others are
//!   in no table: how many that are is told with the figure, and is what grows in memory.
//! - *partitions* of each events topic: 16 and 64.
//! - *priorities*: only events of one source, so that nothing is read before anything else.
//! - *hot*: the share of events, in thousandths, that are about one object of one user, who is one worker's.
//!
//! All points have the same number of events. Two workers must answer what one answers; a point must answer the same
//! each time, and another answer than the base, because a point that changes nothing measures nothing. Users differ by
//! whom events name, partitions by where records lie: their answers are others, too.

use anyhow::{Result, ensure};

use crate::decide;
use crate::setup::Setup;
use crate::workload::{Shape, Size, Workload};

/// Users of the base point.
pub const USERS: u64 = 1 << 17;

/// A point that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Axis and place on it.
    pub name: &'static str,
    /// Worker threads.
    pub workers: usize,
    /// Users whom events may name.
    pub users: u64,
    /// What else differs.
    pub shape: Shape,
}

/// The base point and those that differ from it, the base first.
#[must_use]
pub fn points() -> Vec<Point> {
    let shape = Shape { partitions: Some(4), source: None, hot_permille: 0, only_named: true };
    let base = Point { name: "base", workers: 1, users: USERS, shape };
    let shaped = |name, shape| Point { name, shape, ..base };
    vec![
        base,
        Point { name: "2 workers", workers: 2, ..base },
        Point { name: "users 16,384", users: 1 << 14, ..base },
        Point { name: "users 1,048,576", users: 1 << 20, ..base },
        Point { name: "users 16,777,216", users: 1 << 24, ..base },
        shaped("partitions 16", Shape { partitions: Some(16), ..shape }),
        shaped("partitions 64", Shape { partitions: Some(64), ..shape }),
        shaped("only high", Shape { source: Some("high"), ..shape }),
        shaped("only medium", Shape { source: Some("medium"), ..shape }),
        shaped("only low", Shape { source: Some("low"), ..shape }),
        shaped("hot 10 %", Shape { hot_permille: 100, ..shape }),
        shaped("hot 50 %", Shape { hot_permille: 500, ..shape }),
        shaped("hot 95 %", Shape { hot_permille: 950, ..shape }),
    ]
}

/// What a point was measured at.
#[derive(Debug)]
pub struct Measured {
    /// Events a second, of each repetition.
    pub rates: Vec<f64>,
    /// Names the answer.
    pub hash: u64,
    /// Users whom an event names.
    pub named: u64,
    /// Lifecycle rows.
    pub rows: u64,
}

/// Measures one point. `base` is the answer of the base point, where it is known.
///
/// # Errors
/// When the engine fails, or answers otherwise than it must.
pub fn run(setup: &Setup, size: Size, point: &Point, repetitions: u32, base: Option<u64>) -> Result<Measured> {
    let workload = Workload::shaped(setup, Size { users: point.users, ..size }, &point.shape)?;
    let mut answer = None;
    let (mut rates, mut rows) = (Vec::new(), 0);
    for _ in 0..repetitions {
        let run = decide::run(setup, &workload, point.workers, None)?;
        let before = *answer.get_or_insert(run.hash);
        let Point { name, .. } = point;
        ensure!(before == run.hash, "{name}: answered {:016x}, before it was {before:016x}", run.hash);
        ensure!(run.rows >= workload.events, "{name}: {} rows of {} events", run.rows, workload.events);
        rates.push(workload.events as f64 / run.elapsed.as_secs_f64());
        rows = run.rows;
    }
    let hash = answer.unwrap_or_default();
    if let Some(base) = base {
        let same = point.workers > 1;
        let Point { name, .. } = point;
        ensure!((hash == base) == same, "{name}: answered {hash:016x}, and the base point {base:016x}");
    }
    Ok(Measured { rates, hash, named: workload.named, rows })
}
