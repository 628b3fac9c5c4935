//! Instructions an event costs, by part: what can be compared where clocks tell of the neighbours.
//!
//! One thread does what a worker does, cut by cut, without timely; callgrind counts what happens within
//! one part, in a process of its own for each. [`Part`] says what they are. Side inputs are not counted,
//! nor is the making of the workload; growing tables are, as they are at every start.

use std::collections::BTreeMap;
use std::path::Path as File;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tidings_operators::harness::chain::{Block, Chain};
use tidings_operators::harness::dataflow::Cut;
use tidings_operators::harness::delta::{Delta, Pending};
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::harness::output::EpochOutput;
use tidings_operators::ingest::{Arrived, Path, Source, ingest};
use tidings_operators::rules::Rules;
use tidings_schemas::lifecycle::Stage;

use crate::setup::Setup;
use crate::workload::{Size, Workload};

/// What is counted: enough epochs for tables and buffers to find their size, few enough for callgrind,
/// under which everything takes fifty times as long.
pub const SIZE: Size = Size { events: 8_000, users: 2_048, per_epoch: 400 };

/// Partitions of the lifecycle topic.
const PARTITIONS: u32 = 4;

/// A part of the work, named by the function that is counted.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its name in the figures.
    pub name: &'static str,
    function: &'static str,
}

/// The parts. A worker does the first two, the host, egress and the keeper one each.
pub const PARTS: [Part; 5] = [
    Part { name: "reading records", function: "part_of_reading" },
    Part { name: "the epoch through the chain", function: "part_of_deciding" },
    Part { name: "joining what workers said", function: "part_of_joining" },
    Part { name: "rows into blocks", function: "part_of_saying" },
    Part { name: "deltas onto each other", function: "part_of_keeping" },
];

#[inline(never)]
fn part_of_reading(source: &Source, lot: Lot, records: &[RawRecord], rules: &Rules) -> Vec<Arrived> {
    records.iter().map(|record| ingest(source, lot, record, rules, Path::Decide)).collect()
}

#[inline(never)]
fn part_of_deciding(chain: &mut Chain, cut: &Cut, blocks: Vec<Block>) -> EpochOutput {
    chain.epoch(cut.epoch, cut.now, &cut.rules, blocks)
}

#[inline(never)]
fn part_of_joining(output: EpochOutput) -> EpochOutput {
    let mut joined = EpochOutput { epoch: output.epoch, now: output.now, ..EpochOutput::default() };
    joined.join(output);
    joined.canonical();
    joined
}

#[inline(never)]
fn part_of_saying(output: &EpochOutput) -> usize {
    output.rows.blocks(Stage::Decide, output.epoch, PARTITIONS).len()
}

#[inline(never)]
fn part_of_keeping(pending: &mut Pending, delta: Delta, last: bool) -> usize {
    pending.add(delta);
    if last { pending.delta().len() } else { 0 }
}

/// What one event came to, on average.
#[derive(Clone, Copy, Debug)]
pub struct Decided {
    /// Names everything that was said, as in `decide_memory`.
    pub hash: u64,
    /// Lane records, hand-overs and dead letters.
    pub said: u64,
    /// Lifecycle rows.
    pub rows: u64,
    /// Keys whose state changed.
    pub images: u64,
}

/// Decides the workload, part by part.
///
/// # Errors
/// When the wiring makes no chain.
pub fn decide(setup: &Setup, workload: &Workload) -> Result<Decided> {
    let mut chain = setup.wiring.chain(Path::Decide)?;
    let mut ends: BTreeMap<Lot, usize> = BTreeMap::new();
    let mut pending = Pending::default();
    let mut decided = Decided { hash: 0, said: 0, rows: 0, images: 0 };
    for cut in &workload.cuts {
        let side_inputs = cut.epoch == 1;
        let mut blocks = Vec::new();
        for (lot, end) in &cut.ends {
            let end = usize::try_from(*end)?;
            let from = ends.insert(*lot, end).unwrap_or(0);
            let (source, records) = (&setup.wiring.sources[usize::from(lot.source)], &workload.records[lot][from..end]);
            let records = match side_inputs {
                true => records.iter().map(|record| ingest(source, *lot, record, &cut.rules, Path::Decide)).collect(),
                false => part_of_reading(source, *lot, records, &cut.rules),
            };
            blocks.push(Block { lot: *lot, target: 0, records });
        }
        if side_inputs {
            let output = chain.epoch(cut.epoch, cut.now, &cut.rules, blocks);
            decided.hash = output.digest;
            continue;
        }
        let output = part_of_deciding(&mut chain, cut, blocks);
        let mut output = part_of_joining(output);
        decided.hash = decided.hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(output.digest);
        decided.said += output.said.len() as u64;
        decided.rows += output.rows.len() as u64;
        decided.images += output.delta.len() as u64;
        let blocks = part_of_saying(&output);
        ensure!(blocks > 0 || output.rows.is_empty(), "rows without a block");
        let last = cut.epoch == workload.cuts.len() as u64;
        part_of_keeping(&mut pending, std::mem::take(&mut output.delta), last);
    }
    Ok(decided)
}

/// Lets callgrind run `program` (which is to [`decide`] and nothing else) and count one part of it.
///
/// # Errors
/// When callgrind fails, or counts nothing: `program` then has no symbols.
pub fn count(program: &mut Command, part: Part, folder: &File) -> Result<u64> {
    let file = folder.join(part.function);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--collect-atstart=no"]);
    valgrind.arg(format!("--toggle-collect=*{}*", part.function));
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    valgrind.arg(program.get_program()).args(program.get_args());
    let output = valgrind.output().context("cannot start valgrind")?;
    if !output.status.success() {
        bail!("callgrind failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let counted = std::fs::read_to_string(&file)?;
    let total = counted.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    total.filter(|total| *total > 0).with_context(|| format!("nothing was counted in {}", part.function))
}
