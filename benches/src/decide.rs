//! Decide throughput from bytes in memory: the engine with the whole chain of the example topology.
//!
//! The host does what the coordinator does with an epoch (join, order, digest), and two threads do what
//! egress and keeper do: rows become lifecycle blocks; deltas merge, and every [`CHECKPOINT_EPOCHS`]
//! become a checkpoint in a folder, with fsync. Not in it: the cut log's append, which hides behind the
//! work of the next epoch, and the log's own reading and writing; `decide_embedded` and `decide_kafka`
//! have them.
//!
//! The clock starts when every profile is loaded and stops when the last block is encoded and, with
//! checkpoints, the last one is on the disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path as Folder;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use crossbeam_channel::{Receiver, Sender, bounded};
use tidings_operators::harness::dataflow::{Assigned, Command, Cut, Report, Transport, Waker, WorkerIo, start};
use tidings_operators::harness::delta::{Delta, Pending};
use tidings_operators::harness::feed::{Feed, Lot, RawRecord};
use tidings_operators::harness::output::{EpochOutput, To};
use tidings_operators::ingest::Path;
use tidings_pipeline::checkpoint::{Checkpoints, Manifest};
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_schemas::lifecycle::Stage;

use crate::setup::Setup;
use crate::workload::Workload;

/// Epochs that may be open at once, as in the coordinator.
const OPEN_MAX: usize = 2;

/// Epochs between two checkpoints: half a million events at full size.
pub const CHECKPOINT_EPOCHS: u64 = 25;

/// Partitions of the lifecycle topic.
const PARTITIONS: u32 = 4;

/// Epochs that wait for the threads behind the host.
const WAITING_MAX: usize = 16;

/// What a run did.
#[derive(Debug)]
pub struct Run {
    /// From the first cut of events to the last byte.
    pub elapsed: Duration,
    /// Names everything that was said, epoch by epoch.
    pub hash: u64,
    /// Lane records, hand-overs and dead letters.
    pub said: u64,
    /// Lifecycle rows.
    pub rows: u64,
    /// Bytes of the lifecycle blocks.
    pub block_bytes: u64,
    /// The last checkpoint, where they were on.
    pub checkpoint: Option<Manifest>,
    /// Keys in all epochs' deltas of events.
    pub images: u64,
}

/// What a run reads, and when.
pub struct Input<'a> {
    /// The first cut admits the side inputs, the others the events.
    pub cuts: &'a [Arc<Cut>],
    /// What is read of each partition.
    pub feeds: Vec<(Lot, Box<dyn Feed>)>,
    /// Where the records that go to lanes are written, a line each.
    pub answers: Option<File>,
}

/// Gives records that lie in memory.
struct InMemory {
    records: Arc<[RawRecord]>,
    next: usize,
}

impl Feed for InMemory {
    fn poll(&mut self, records_max: usize, out: &mut Vec<RawRecord>) -> Result<u64, String> {
        let end = (self.next + records_max).min(self.records.len());
        out.extend_from_slice(&self.records[self.next..end]);
        self.next = end;
        Ok(end as u64)
    }
}

/// Runs the workload on this many workers; with `checkpoints`, into that folder.
///
/// # Errors
/// When the engine or the store fails.
pub fn run(setup: &Setup, workload: &Workload, workers: usize, checkpoints: Option<&Folder>) -> Result<Run> {
    let feed = |(lot, records): (&Lot, &Arc<[RawRecord]>)| -> (Lot, Box<dyn Feed>) {
        (*lot, Box::new(InMemory { records: Arc::clone(records), next: 0 }))
    };
    let feeds = workload.records.iter().map(feed).collect();
    run_over(setup, Input { cuts: &workload.cuts, feeds, answers: None }, workers, checkpoints)
}

/// Runs what `input` gives on this many workers; with `checkpoints`, into that folder.
///
/// # Errors
/// When the engine, a feed, the store or the file of answers fails.
pub fn run_over(setup: &Setup, input: Input<'_>, workers: usize, checkpoints: Option<&Folder>) -> Result<Run> {
    let Input { cuts, feeds, answers } = input;
    let checkpoints = checkpoints.map(Checkpoints::in_folder).transpose().map_err(|problem| anyhow!(problem))?;
    let (report, reports) = bounded(1024);
    let mut commands = Vec::new();
    let mut ios = Vec::new();
    let mut shares: Vec<Vec<(Lot, Box<dyn Feed>)>> = (0..workers).map(|_| Vec::new()).collect();
    for (place, feed) in feeds.into_iter().enumerate() {
        shares[place % workers].push(feed);
    }
    for share in shares {
        let (command, inbox) = bounded(OPEN_MAX + 2);
        commands.push(command);
        let assigned = share.into_iter().map(|(lot, feed)| {
            let source = &setup.sources[usize::from(lot.source)];
            let (rank, at_least_permille) = (source.rank, source.at_least_permille);
            Assigned { lot, from: 0, feed, rank, at_least_permille }
        });
        let chain = setup.wiring.chain(Path::Decide)?;
        ios.push(WorkerIo { chain, assigned: assigned.collect(), commands: inbox, reports: report.clone() });
    }
    drop(report);
    let running = start(ios, setup.wiring.sources.clone(), Transport::Memory).map_err(|problem| anyhow!(problem))?;

    let (say, said) = bounded::<EpochOutput>(WAITING_MAX);
    let (keep, kept) = bounded::<Keep>(WAITING_MAX);
    let (wrote, written) = bounded::<()>(1);
    let clock = SystemClock::default();
    let host = Host { commands, wakers: BTreeMap::new(), reports, workers };
    let run = std::thread::scope(|scope| {
        let egress = scope.spawn(move || encode(&said, answers));
        let keeper = checkpoints.as_ref().map(|checkpoints| scope.spawn(move || keeper(checkpoints, &kept, &wrote)));
        let keep = keeper.is_some().then_some(keep);
        let driven = host.drive(cuts, &clock, say, keep.as_ref(), &written);
        drop(keep);
        let block_bytes = egress.join().map_err(|_| anyhow!("the encoding thread died"))??;
        let checkpoint = match keeper {
            Some(keeper) => Some(keeper.join().map_err(|_| anyhow!("the keeper died"))??),
            None => None,
        };
        let (started, run) = driven?;
        Ok::<_, anyhow::Error>(Run { elapsed: clock.elapsed() - started, block_bytes, checkpoint, ..run })
    })?;
    running.join().map_err(|problem| anyhow!(problem))?;
    Ok(run)
}

/// What the keeper is told.
enum Keep {
    Delta(Delta),
    /// All that was told so far becomes a checkpoint of this epoch.
    Write(u64),
}

fn keeper(checkpoints: &Checkpoints, inbox: &Receiver<Keep>, wrote: &Sender<()>) -> Result<Manifest> {
    let mut pending = Pending::default();
    let mut manifest = Manifest::default();
    while let Ok(keep) = inbox.recv() {
        match keep {
            Keep::Delta(delta) => pending.add(delta),
            Keep::Write(epoch) => {
                manifest.epoch = epoch;
                manifest = checkpoints.write(0, manifest, pending.delta())?.1;
                pending.clear();
                // Only the first one is waited for.
                let _ = wrote.try_send(());
            }
        }
    }
    Ok(manifest)
}

fn encode(said: &Receiver<EpochOutput>, answers: Option<File>) -> Result<u64> {
    let mut bytes = 0;
    let mut answers = answers.map(BufWriter::new);
    while let Ok(output) = said.recv() {
        let blocks = output.rows.blocks(Stage::Decide, output.epoch, PARTITIONS);
        bytes += blocks.iter().map(|(_, block)| block.len() as u64).sum::<u64>();
        let Some(answers) = &mut answers else { continue };
        for said in output.said.iter().filter(|said| matches!(said.to, To::Lane(..))) {
            answers.write_all(&said.value)?;
            answers.write_all(b"\n")?;
        }
    }
    if let Some(answers) = &mut answers {
        answers.flush()?;
    }
    Ok(bytes)
}

struct Host {
    commands: Vec<Sender<Command>>,
    wakers: BTreeMap<usize, Waker>,
    reports: Receiver<Report>,
    workers: usize,
}

impl Host {
    /// Releases every cut; returns when the clock started, and what was said.
    fn drive(
        mut self,
        cuts: &[Arc<Cut>],
        clock: &dyn Clock,
        say: Sender<EpochOutput>,
        keep: Option<&Sender<Keep>>,
        written: &Receiver<()>,
    ) -> Result<(Duration, Run)> {
        let mut run =
            Run { elapsed: Duration::ZERO, hash: 0, said: 0, rows: 0, block_bytes: 0, checkpoint: None, images: 0 };
        let last = cuts.len() as u64;
        let mut cuts = cuts.iter();
        let mut open: BTreeMap<u64, (EpochOutput, usize)> = BTreeMap::new();
        let mut started = None;
        let first = cuts.next().context("a workload has cuts")?;
        while self.wakers.len() < self.workers {
            self.hear(&mut open)?;
        }
        self.release(first, &mut open);
        loop {
            while started.is_some() && open.len() < OPEN_MAX {
                let Some(cut) = cuts.next() else { break };
                self.release(cut, &mut open);
            }
            if open.is_empty() {
                break;
            }
            self.hear(&mut open)?;
            while let Some(entry) = open.first_entry().filter(|entry| entry.get().1 == self.workers) {
                let (mut output, _) = entry.remove();
                let epoch = output.epoch;
                output.canonical();
                run.hash = run.hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(output.digest);
                run.said += output.said.len() as u64;
                run.rows += output.rows.len() as u64;
                let delta = std::mem::take(&mut output.delta);
                run.images += if started.is_some() { delta.len() as u64 } else { 0 };
                if let Some(keep) = keep {
                    let write = epoch % CHECKPOINT_EPOCHS == 1 || epoch == last;
                    let kept =
                        keep.send(Keep::Delta(delta)).is_ok() && (!write || keep.send(Keep::Write(epoch)).is_ok());
                    // Why it ended is what joining it says.
                    ensure!(kept, "the keeper ended");
                }
                say.send(output).context("the encoding thread ended")?;
                if started.is_none() {
                    if keep.is_some() {
                        written.recv().context("the keeper ended")?;
                    }
                    started = Some(clock.elapsed());
                }
            }
        }
        for command in &self.commands {
            let _ = command.send(Command::Stop);
        }
        self.wakers.values().for_each(|waker| waker());
        Ok((started.unwrap_or_default(), run))
    }

    fn release(&self, cut: &Arc<Cut>, open: &mut BTreeMap<u64, (EpochOutput, usize)>) {
        let output = EpochOutput { epoch: cut.epoch, now: cut.now, ..EpochOutput::default() };
        open.insert(cut.epoch, (output, 0));
        for command in &self.commands {
            // A worker that ended says so by itself.
            let _ = command.send(Command::Release(Arc::clone(cut)));
        }
        self.wakers.values().for_each(|waker| waker());
    }

    fn hear(&mut self, open: &mut BTreeMap<u64, (EpochOutput, usize)>) -> Result<()> {
        match self.reports.recv().context("the workers ended")? {
            Report::Ready(worker, waker) => drop(self.wakers.insert(worker, waker)),
            Report::Ahead(..) => {}
            Report::Done(_, output) => {
                let (joined, workers) = open.get_mut(&output.epoch).context("an epoch that was not released")?;
                joined.join(*output);
                *workers += 1;
            }
            Report::Killed(worker, killed) => bail!("worker {worker}: {}", killed.skip.problem),
            Report::Failed(worker, problem) => bail!("worker {worker}: {problem}"),
        }
        Ok(())
    }
}
