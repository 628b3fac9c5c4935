//! What a worker does at each end of the exchange: [`Intake`] before it, [`Epochs`] behind it. Neither
//! knows of timely, threads or time: whoever drives them, timely or the simulator, runs the same code.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use tidings_schemas::ids::key_group;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use super::aside::{Crumb, Died, caught};
use super::chain::{Block, Chain};
use super::dataflow::{Assigned, Command, Cut, Report};
use super::feed::{Extent, Lot, RawRecord};
use super::ordinal::Ordinal;
use crate::ingest::{Path, Source, ingest, reject};

/// Records that one worker reads ahead of the cut. Beyond it feeds are not polled: the log waits,
/// not the memory. A few epochs' worth at a million events a second and two workers.
pub const READ_AHEAD_MAX: usize = 32_768;

/// Records that it reads ahead however slow it is: what an epoch costs beside its records must be paid by some.
const READ_AHEAD_MIN: usize = 512;

/// How long an epoch should take under a flood. An urgent record waits for the epochs that are open when
/// it comes, so two or three times as long; below it the cost of an epoch itself begins to show.
const EPOCH_AIM: Duration = Duration::from_millis(40);

/// Records in one block: large enough to pay for the exchange, small enough to stay in the cache.
const BLOCK_MAX: usize = 512;

/// Records polled from one feed in one go: fuel, so that a flood on one partition does not keep the
/// worker from its commands.
const POLL_MAX: usize = 4_096;

/// A cut that a worker has released, and what it read for it.
pub struct Released {
    cut: Arc<Cut>,
    read: BTreeMap<Lot, Extent>,
}

impl Released {
    /// The epoch that the cut ends.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.cut.epoch
    }
}

/// What an intake did.
pub enum Step {
    /// Nothing is there to be done.
    Idle,
    /// There is more to do.
    Again,
    /// An epoch is released: these are its blocks, and no others of this worker.
    Release(Released, Vec<Block>),
    /// It was told to stop, or cannot go on.
    Stop,
}

/// One partition on its way in.
struct Inlet {
    assigned: Assigned,
    /// Records with their checksums.
    buffer: VecDeque<(RawRecord, u64)>,
    /// Every record below it is in the buffer, or was cut, or does not exist.
    position: u64,
    /// The position that the host knows. What a replay polls beyond its cut was told to nobody yet.
    reported: u64,
    /// All that was polled since the start.
    total: Extent,
}

/// Before the exchange: polls, waits for cuts, makes blocks.
pub struct Intake {
    worker: usize,
    peers: usize,
    sources: Arc<[Source]>,
    inlets: Vec<Inlet>,
    commands: Receiver<Command>,
    reports: Sender<Report>,
    waiting: VecDeque<Arc<Cut>>,
    stopping: bool,
    scratch: Vec<RawRecord>,
    pace: Pace,
}

/// How much is read ahead: about what is decided in [`EPOCH_AIM`], judged by the stream time between two
/// cuts. It decides how large epochs are, never what they say.
struct Pace {
    room: usize,
    cut_at: Option<Instant>,
}

impl Pace {
    /// `records` were released by a cut at `now`. A single epoch that was held up (a checkpoint, a slow append)
    /// halves the room at most.
    fn cut(&mut self, records: usize, now: Instant) {
        if let Some(before) = self.cut_at.replace(now) {
            let took = now.since(before).as_millis().max(1);
            let fits = usize::try_from(records as u128 * EPOCH_AIM.as_millis() / took).unwrap_or(READ_AHEAD_MAX);
            self.room = fits.clamp(self.room / 2, self.room * 2).clamp(READ_AHEAD_MIN, READ_AHEAD_MAX);
        }
    }
}

impl Intake {
    /// The intake of worker number `worker` among `peers`.
    #[must_use]
    pub fn new(
        worker: usize,
        peers: usize,
        sources: Arc<[Source]>,
        assigned: Vec<Assigned>,
        commands: Receiver<Command>,
        reports: Sender<Report>,
    ) -> Self {
        let inlet = |assigned: Assigned| {
            let position = assigned.from;
            Inlet { assigned, buffer: VecDeque::new(), position, total: Extent::default(), reported: position }
        };
        let mut inlets: Vec<_> = assigned.into_iter().map(inlet).collect();
        inlets.sort_by_key(|inlet| (inlet.assigned.rank, inlet.assigned.lot));
        let (waiting, scratch) = (VecDeque::new(), Vec::new());
        let pace = Pace { room: READ_AHEAD_MIN, cut_at: None };
        Self { worker, peers, sources, inlets, commands, reports, waiting, stopping: false, scratch, pace }
    }

    /// Does the next thing. Never blocks, as long as the host takes reports.
    pub fn step(&mut self) -> Step {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Release(cut)) => self.waiting.push_back(cut),
                Ok(Command::Stop) => {
                    self.stopping = true;
                    break;
                }
                // The host let go without a word: nobody waits for what is open.
                Err(TryRecvError::Disconnected) if !self.stopping => return Step::Stop,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => break,
            }
        }
        match self.advance() {
            Ok(step) => step,
            Err(problem) => {
                let _ = self.reports.send(Report::Failed(self.worker, problem));
                Step::Stop
            }
        }
    }

    fn advance(&mut self) -> Result<Step, String> {
        let Some(cut) = self.waiting.front().cloned() else {
            if self.stopping {
                return Ok(Step::Stop);
            }
            return self.read_ahead();
        };
        let mut short = false;
        for place in 0..self.inlets.len() {
            let inlet = &self.inlets[place];
            // An end is passed by position, not by seeing a record: offsets may have gaps.
            if cut.ends.get(&inlet.assigned.lot).is_some_and(|end| inlet.position < *end) {
                self.poll(place, POLL_MAX)?;
                let inlet = &self.inlets[place];
                short |= cut.ends.get(&inlet.assigned.lot).is_some_and(|end| inlet.position < *end);
            }
        }
        if short {
            return Ok(Step::Again);
        }
        self.waiting.pop_front();
        let (read, blocks) = match caught(|| self.release(&cut)) {
            Ok(released) => released,
            Err(died) => {
                let _ = self.reports.send(killed(self.worker, *died, cut.epoch, |_| None));
                return Ok(Step::Stop);
            }
        };
        let records: u64 = read.values().map(|extent| extent.records).sum();
        self.pace.cut(usize::try_from(records).unwrap_or(READ_AHEAD_MAX), cut.now);
        Ok(Step::Release(Released { cut, read }, blocks))
    }

    /// Step 1: strict preference with a guaranteed minimum. The most urgent source may fill the whole
    /// read-ahead, whatever the others hold; each of the others gets at least its share. So a worker holds a
    /// full read-ahead of each rank at most.
    fn read_ahead(&mut self) -> Result<Step, String> {
        let mut ahead = Vec::new();
        let mut full = false;
        for place in 0..self.inlets.len() {
            let inlet = &self.inlets[place];
            // What is less urgent takes no room: it may wait for a cut that comes only after this one's.
            let as_urgent = self.inlets.iter().filter(|it| it.assigned.rank <= inlet.assigned.rank);
            let total: usize = as_urgent.map(|inlet| inlet.buffer.len()).sum();
            let share = self.pace.room * usize::from(inlet.assigned.at_least_permille) / 1000;
            let room = self.pace.room.saturating_sub(total).max(share.saturating_sub(inlet.buffer.len()));
            if room > 0 {
                full |= self.poll(place, room.min(POLL_MAX))? == POLL_MAX;
            }
            // What a replay polled beyond its cut is news as well.
            let inlet = &mut self.inlets[place];
            if inlet.position > inlet.reported {
                inlet.reported = inlet.position;
                ahead.push((inlet.assigned.lot, Extent { end: inlet.position, ..inlet.total }));
            }
        }
        if !ahead.is_empty() {
            let _ = self.reports.send(Report::Ahead(self.worker, ahead));
        }
        Ok(if full { Step::Again } else { Step::Idle })
    }

    fn poll(&mut self, place: usize, records_max: usize) -> Result<usize, String> {
        let inlet = &mut self.inlets[place];
        let position = inlet.assigned.feed.poll(records_max, &mut self.scratch).map_err(|problem| {
            let Lot { source, partition } = inlet.assigned.lot;
            let source = self.sources.get(usize::from(source)).map_or("?", |source| &*source.id);
            format!("source `{source}`, partition {partition}: {problem}")
        })?;
        let count = self.scratch.len();
        for record in self.scratch.drain(..) {
            let checksum = record.checksum();
            inlet.total.count(checksum);
            inlet.buffer.push_back((record, checksum));
        }
        inlet.position = inlet.position.max(position);
        Ok(count)
    }

    /// Step 2: what the cut admits, parsed under its rules, in blocks of one partition for one worker.
    fn release(&mut self, cut: &Cut) -> (BTreeMap<Lot, Extent>, Vec<Block>) {
        let mut read = BTreeMap::new();
        let mut blocks = Vec::new();
        for inlet in &mut self.inlets {
            let lot = inlet.assigned.lot;
            let Some(end) = cut.ends.get(&lot).copied() else { continue };
            let Some(source) = self.sources.get(usize::from(lot.source)) else { continue };
            let mut extent = Extent { end, ..Extent::default() };
            let mut open: Vec<Vec<_>> = (0..self.peers).map(|_| Vec::new()).collect();
            while let Some((record, checksum)) = inlet.buffer.pop_front_if(|(record, _)| record.offset < end) {
                extent.count(checksum);
                let skip = cut.skips.iter().find(|skip| skip.record() == Some((lot, record.offset)));
                let arrived = match skip {
                    None => {
                        if let Some(crumbs) = &cut.crumbs {
                            crumbs.at(cut.epoch, &Ordinal::record(lot, record.offset), None);
                        }
                        let crumb = Crumb(lot, record.offset);
                        let arrived = ingest(source, lot, &record, &cut.rules, Path::Decide);
                        crumb.survived();
                        arrived
                    }
                    Some(skip) => reject(source, lot, &record, Reason::Panicked, skip.problem.clone()),
                };
                let target = key_group(arrived.placement()).worker(self.peers);
                open[target].push(arrived);
                if open[target].len() == BLOCK_MAX {
                    let records = std::mem::take(&mut open[target]);
                    blocks.push(Block { lot, target: u32::try_from(target).unwrap_or(0), records });
                }
            }
            for (target, records) in open.into_iter().enumerate().filter(|(_, records)| !records.is_empty()) {
                blocks.push(Block { lot, target: u32::try_from(target).unwrap_or(0), records });
            }
            read.insert(lot, extent);
        }
        (read, blocks)
    }
}

/// Behind the exchange: blocks wait for their epoch to be complete, and epochs run one after the
/// other through the chain.
pub struct Epochs {
    worker: usize,
    chain: Chain,
    /// Cuts that this worker has released and not run.
    released: VecDeque<Released>,
    stash: BTreeMap<u64, Vec<Block>>,
    reports: Sender<Report>,
    /// A call killed an operator: what its state is now nobody knows.
    dead: bool,
}

impl Epochs {
    /// The epochs of worker number `worker`.
    #[must_use]
    pub fn new(worker: usize, chain: Chain, reports: Sender<Report>) -> Self {
        Self { worker, chain, released: VecDeque::new(), stash: BTreeMap::new(), reports, dead: false }
    }

    /// This worker's own intake has released an epoch.
    pub fn begin(&mut self, released: Released) {
        self.released.push_back(released);
    }

    /// Blocks of an epoch arrived, one sender's in the order in which they were sent.
    pub fn take(&mut self, epoch: u64, blocks: &mut Vec<Block>) {
        self.stash.entry(epoch).or_default().append(blocks);
    }

    /// Runs the next epoch if it is `complete`: every intake has released it and every block of it
    /// arrived. Says whether it did.
    pub fn step(&mut self, complete: impl Fn(u64) -> bool) -> bool {
        if self.dead || !self.released.front().is_some_and(|released| complete(released.epoch())) {
            return false;
        }
        let Some(Released { cut, read }) = self.released.pop_front() else { return false };
        let blocks = self.stash.remove(&cut.epoch).unwrap_or_default();
        self.chain.leave_out(&cut.skips);
        self.chain.tell(cut.crumbs.clone());
        let mut output = match caught(|| self.chain.epoch(cut.epoch, cut.now, &cut.rules, blocks)) {
            Ok(output) => output,
            Err(died) => {
                self.dead = true;
                let name = |number| self.chain.operators().nth(number).cloned();
                let _ = self.reports.send(killed(self.worker, *died, cut.epoch, name));
                return false;
            }
        };
        output.read = read;
        // Without a host, what is not said is replayed by the next generation.
        self.reports.send(Report::Done(self.worker, Box::new(output))).is_ok()
    }
}

/// What the host is told of a panic.
fn killed(worker: usize, died: Died, epoch: u64, name: impl Fn(usize) -> Option<Arc<str>>) -> Report {
    match died.killed(epoch, name) {
        Ok(killed) => Report::Killed(worker, Box::new(killed)),
        Err(problem) => Report::Failed(worker, problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::feed::Feed;
    use crate::ingest::SourceKind;

    /// A partition whose records all come with the first poll, as many as are asked for.
    struct Log(std::ops::Range<u64>);

    impl Feed for Log {
        fn poll(&mut self, records_max: usize, out: &mut Vec<RawRecord>) -> Result<u64, String> {
            let timestamp = Instant(0);
            let record = |offset| RawRecord { offset, key: None, value: None, headers: Vec::new(), timestamp };
            out.extend(self.0.by_ref().take(records_max).map(record));
            Ok(self.0.start)
        }
    }

    /// A log whose first fetch comes later.
    struct Late(Log, bool);

    impl Feed for Late {
        fn poll(&mut self, records_max: usize, out: &mut Vec<RawRecord>) -> Result<u64, String> {
            if std::mem::take(&mut self.1) { Ok(0) } else { self.0.poll(records_max, out) }
        }
    }

    // Events are not cut before side inputs are read to their end.
    #[test]
    fn events_that_fill_the_read_ahead_leave_side_inputs_their_room() {
        let lots = [0, 1].map(|source| Lot { source, partition: 0 });
        let (command, commands) = crossbeam_channel::bounded(1);
        let (reports, reported) = crossbeam_channel::bounded(1);
        let source = |id: &str, kind| Source { id: id.into(), kind };
        let events = SourceKind::Events { unknown_to_data: false };
        let sources = Arc::from([source("profiles", SourceKind::Profiles), source("high", events)]);
        let assigned = |lot, feed, rank| Assigned { lot, from: 0, feed, rank, at_least_permille: 0 };
        let feeds: [Box<dyn Feed>; 2] = [Box::new(Late(Log(0..5_000), true)), Box::new(Log(0..1_000_000))];
        let [profiles, high] = feeds;
        let assigned = vec![assigned(lots[0], profiles, 0), assigned(lots[1], high, 1)];
        let mut intake = Intake::new(0, 1, sources, assigned, commands, reports);
        let rules = Arc::new(crate::script::rules());
        let (mut read, mut epoch) = (0, 0);
        while read < 5_000 {
            intake.step();
            let Ok(Report::Ahead(0, ahead)) = reported.try_recv() else { panic!("stuck at {read}") };
            let Some((_, extent)) = ahead.iter().find(|(lot, _)| *lot == lots[0]) else { continue };
            (read, epoch) = (extent.end, epoch + 1);
            let (now, ends) = (Instant(20 * i64::try_from(epoch).unwrap()), BTreeMap::from([(lots[0], read)]));
            let cut = Cut { epoch, now, rules: Arc::clone(&rules), ends, skips: Arc::default(), crumbs: None };
            command.send(Command::Release(Arc::new(cut))).unwrap();
            assert!(matches!(intake.step(), Step::Release(..)));
        }
    }

    #[test]
    fn an_epoch_has_what_is_decided_in_forty_milliseconds() {
        let mut pace = Pace { room: READ_AHEAD_MIN, cut_at: None };
        let mut now = Instant(0);
        pace.cut(512, now);
        // (records of the cut, milliseconds since the one before, what may be read ahead now)
        for (records, took, room) in [
            (512, 20, 1_024),
            (1_024, 20, 2_048),
            (2_048, 80, 1_024), // as fast as it was found to be
            (1_024, 41, 999),   // near enough to the aim
            (999, 5_000, 512),  // held up once: halved, and no less than the least
            (512, 0, 1_024),    // two cuts of one instant
            (32_768, 1, 2_048),
            (0, 1_000, 1_024), // nothing came
            (0, 1_000, 512),
        ] {
            now = Instant(now.0 + took);
            pace.cut(records, now);
            assert_eq!(pace.room, room, "after {records} records in {took} ms");
        }
        for _ in 0..10 {
            now = Instant(now.0 + 20);
            pace.cut(1_000_000, now);
        }
        assert_eq!(pace.room, READ_AHEAD_MAX);
    }

    // After a crash nothing may have to come in for what waits behind the logged cuts to be seen.
    #[test]
    fn what_a_replay_read_beyond_its_cut_is_reported_once_it_is_over() {
        let lot = Lot { source: 0, partition: 0 };
        let (command, commands) = crossbeam_channel::bounded(1);
        let (reports, reported) = crossbeam_channel::bounded(1);
        let sources = Arc::from([Source { id: "high".into(), kind: SourceKind::Events { unknown_to_data: false } }]);
        let assigned = Assigned { lot, from: 0, feed: Box::new(Log(0..5)), rank: 1, at_least_permille: 0 };
        let mut intake = Intake::new(0, 1, sources, vec![assigned], commands, reports);
        let rules = Arc::new(crate::script::rules());
        let cut = Cut {
            epoch: 1,
            now: Instant(0),
            rules,
            ends: BTreeMap::from([(lot, 2)]),
            skips: Arc::default(),
            crumbs: None,
        };
        command.send(Command::Release(Arc::new(cut))).unwrap();
        assert!(matches!(intake.step(), Step::Release(..)));
        assert!(reported.try_recv().is_err(), "a replayed cut is no news");
        assert!(matches!(intake.step(), Step::Idle));
        let Ok(Report::Ahead(0, ahead)) = reported.try_recv() else { panic!("nothing was reported") };
        assert_eq!(
            ahead.iter().map(|(lot, extent)| (*lot, extent.end, extent.records)).collect::<Vec<_>>(),
            [(lot, 5, 5)]
        );
        intake.step();
        assert!(reported.try_recv().is_err(), "it is reported once");
    }
}
