//! Who reads, decides and says: steps 1 to 3 and 5.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};
use tidings_operators::harness::chain::Chain;
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::harness::output::{EpochOutput, To};
use tidings_operators::ingest::{Body, Path, ingest, reject};
use tidings_operators::keyed::Known;
use tidings_operators::registry::WiringError;
use tidings_schemas::lane;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_sinks::log::{Append, Assignment, GroupReader, LogError, Record, TopicPartition};

use super::progress::{Progress, Shares};
use super::recorder::{Recorder, Told, Writer};
use super::view::View;
use super::{CriticalError, CriticalPlan, CriticalSurroundings, Pause, RECORDS_MAX, WAIT, spawn};
use crate::runtime::clock::{Clock, SystemClock};
use crate::runtime::feeds::raw;

/// How long after the last record its offset is committed.
const COMMIT_AFTER: Duration = Duration::from_millis(50);

/// A commit is a round trip during which nothing is decided. Under load it is made this often only.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// Batches that may wait to be recorded; the bound of bytes or this one, whichever is met first.
const UNRECORDED_MAX: usize = 16_384;

/// Says on its way out, whatever the reason, that everyone should end.
struct EndsAll(Arc<AtomicBool>);

impl Drop for EndsAll {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads, decides and says: steps 1 to 3 and 5.
pub(super) struct Member {
    plan: Arc<CriticalPlan>,
    events: BTreeMap<String, u16>,
    around: CriticalSurroundings,
    view: Arc<View>,
    chain: Chain,
    lanes: Writer,
    progress: Arc<Progress>,
}

/// Why a member stopped reading.
enum Halt {
    /// It was told to, or everyone ends.
    Stopped,
    /// It is no member any more: it joins again.
    Fenced,
}

impl Member {
    pub(super) fn new(
        plan: &Arc<CriticalPlan>,
        around: &CriticalSurroundings,
        view: &Arc<View>,
        ended: &Arc<AtomicBool>,
    ) -> Result<Self, CriticalError> {
        let lanes = Writer {
            log: Arc::clone(&around.lanes),
            status: Arc::clone(&around.status),
            stop: Arc::clone(&around.stop),
            ended: Arc::clone(ended),
        };
        Ok(Self {
            plan: Arc::clone(plan),
            events: plan.events(),
            around: around.clone(),
            view: Arc::clone(view),
            chain: plan.wiring.chain(Path::Critical)?,
            lanes,
            progress: Arc::default(),
        })
    }

    pub(super) fn run(mut self, number: usize) -> Result<(), CriticalError> {
        let _ends_all = EndsAll(Arc::clone(&self.lanes.ended));
        let (told, inbox) = bounded(UNRECORDED_MAX);
        let recorder = Recorder {
            writer: Writer { log: Arc::clone(&self.around.log), ..self.lanes.clone() },
            outlets: self.plan.outlets.clone(),
            observer: self.around.observer.clone(),
            inbox,
            progress: Arc::clone(&self.progress),
        };
        let recorder = spawn(format!("critical-{number}-rows"), move || recorder.run())?;
        let read = loop {
            match self.member(&told) {
                Ok(Halt::Fenced) => tracing::warn!("no longer a member of the group of critical events; joining again"),
                Ok(Halt::Stopped) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        drop(told);
        let recorded = recorder.join().unwrap_or_else(|_| Err(LogError::Store("the recorder panicked".to_owned())));
        read.and(recorded.map_err(CriticalError::Log))
    }

    /// One membership, from joining to leaving. Leaving commits what was recorded.
    fn member(&mut self, told: &Sender<Told>) -> Result<Halt, CriticalError> {
        let Some(mut reader) = self.join()? else { return Ok(Halt::Stopped) };
        // Real time, however fast the clock of decisions runs: it paces round trips.
        let pace = SystemClock::default();
        let mut committed_at = pace.elapsed();
        let mut pause = Pause::new();
        while !self.lanes.halted() {
            if self.progress.crowded() {
                continue;
            }
            // Step 1.
            let wait = if self.progress.uncommitted() { COMMIT_AFTER } else { WAIT };
            let records = match reader.poll(RECORDS_MAX, wait) {
                Ok(records) => records,
                Err(LogError::Fenced(_)) => return Ok(Halt::Fenced),
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "critical events cannot be read; trying again");
                    pause.wait();
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            pause = Pause::new();
            self.around.status.ready.store(true, Ordering::Relaxed);
            let idle = records.is_empty();
            if !idle && !self.say(records, told)? {
                break;
            }
            // Step 5.
            if idle || pace.elapsed().saturating_sub(committed_at) >= COMMIT_EVERY {
                committed_at = pace.elapsed();
                match self.commit(&mut *reader) {
                    Ok(()) => {}
                    Err(LogError::Fenced(_)) => return Ok(Halt::Fenced),
                    Err(error) if error.is_transient() => {
                        tracing::warn!(%error, "critical offsets cannot be committed; trying again");
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(Halt::Stopped)
    }

    /// A membership; none when the path was stopped first.
    fn join(&self) -> Result<Option<Box<dyn GroupReader>>, CriticalError> {
        let topics: Vec<String> = self.events.keys().cloned().collect();
        let group = self.plan.outlets.topics.group("critical");
        let shares = Shares { progress: Arc::clone(&self.progress), status: Arc::clone(&self.around.status) };
        let shares: Arc<dyn Assignment> = Arc::new(shares);
        let mut pause = Pause::new();
        while !self.lanes.halted() {
            match self.around.log.join(&group, &topics, Arc::clone(&shares)) {
                Ok(reader) => return Ok(Some(reader)),
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "the group of critical events cannot be joined; trying again");
                    pause.wait();
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Steps 2 and 3; false when the path was stopped before all of it was said.
    fn say(&mut self, records: Vec<(TopicPartition, Record)>, told: &Sender<Told>) -> Result<bool, CriticalError> {
        let status = Arc::clone(&self.around.status);
        let handled = records.len() as u64;
        let (mut handed_over, mut rejected) = (0, 0);
        let (mut lanes, mut batch, mut accepted) = (Vec::new(), Told::default(), Vec::new());
        for (from, record) in records {
            let source = self.events.get(&*from.topic).copied().unwrap_or_default();
            let lot = Lot { source, partition: from.partition };
            let record = raw(record);
            batch.through.insert(from, record.offset + 1);
            let EpochOutput { said, rows, .. } = self.decide(lot, &record)?;
            batch.rows.append(rows);
            if said.iter().any(|said| matches!(said.to, To::Lane(..))) {
                accepted.push(record.timestamp);
            }
            for said in said {
                let to = self.plan.outlets.place(&said);
                let key = (!said.user.is_empty()).then(|| Bytes::copy_from_slice(said.user.as_bytes()));
                let mut append = Append { to, key, value: Some(said.value), headers: Vec::new() };
                match said.to {
                    To::Lane(..) => lanes.push(append),
                    To::HandOver(_, event, at) => {
                        handed_over += 1;
                        append.headers.extend(lane::handed_over(event, at));
                        batch.appends.push(append);
                    }
                    To::Dlq(_) => {
                        rejected += 1;
                        batch.appends.push(append);
                    }
                }
            }
        }
        if !self.lanes.append(&lanes)? {
            return Ok(false);
        }
        let now = self.around.clock.wall();
        accepted.iter().for_each(|at: &Instant| status.latency.observe(now.since(*at)));
        status.handed_over.fetch_add(handed_over, Ordering::Relaxed);
        status.rejected.fetch_add(rejected, Ordering::Relaxed);
        status.handled.fetch_add(handled, Ordering::Relaxed);
        self.progress.move_on(&batch.through, |stand, offset| stand.handled = offset);
        self.progress.stands().unrecorded_bytes += batch.bytes();
        // A recorder that has ended says itself why.
        Ok(told.send(batch).is_ok())
    }

    fn decide(&mut self, lot: Lot, record: &RawRecord) -> Result<EpochOutput, WiringError> {
        let Self { plan, chain, view, around, .. } = self;
        let source = &plan.wiring.sources[usize::from(lot.source)];
        let now = around.clock.wall();
        set_aside(plan, chain, now, lot, record, |chain| {
            let arrived = ingest(source, lot, record, &plan.rules, Path::Critical);
            let known = match &arrived.body {
                Body::Item(item) => view.known(item),
                Body::Profile { .. } | Body::Address { .. } | Body::Rejected(_) => Known::default(),
            };
            chain.single(now, &plan.rules, lot, arrived, known)
        })
    }

    fn commit(&self, reader: &mut dyn GroupReader) -> Result<(), LogError> {
        let due = self.progress.due();
        reader.commit(&due)?;
        let through = due.into_iter().map(|(partition, commit)| (partition, commit.offset)).collect();
        self.progress.move_on(&through, |stand, offset| stand.committed = offset);
        Ok(())
    }
}

/// What `decide` says, or, where it panics, that the record was set aside.
fn set_aside(
    plan: &CriticalPlan,
    chain: &mut Chain,
    now: Instant,
    lot: Lot,
    record: &RawRecord,
    decide: impl FnOnce(&mut Chain) -> EpochOutput,
) -> Result<EpochOutput, WiringError> {
    if let Ok(output) = catch_unwind(AssertUnwindSafe(|| decide(chain))) {
        return Ok(output);
    }
    // What the panic left behind in the chain is not to be met by the next record.
    *chain = plan.wiring.chain(Path::Critical)?;
    let source = &plan.wiring.sources[usize::from(lot.source)];
    let problem = "the record killed an operator; it was set aside, and the stream went on".to_owned();
    let arrived = reject(source, lot, record, Reason::Panicked, problem);
    Ok(chain.single(now, &plan.rules, lot, arrived, Known::default()))
}

#[cfg(test)]
mod tests {
    use tidings_operators::ingest::{Source, SourceKind};
    use tidings_operators::script;
    use tidings_schemas::ids::EventId;
    use tidings_schemas::topics::Topics;

    use super::super::wiring;
    use super::*;
    use crate::runtime::egress::Outlets;

    #[test]
    fn a_record_that_kills_an_operator_is_set_aside() {
        let source = Source { id: "critical".into(), kind: SourceKind::Events { unknown_to_data: false } };
        let plan = CriticalPlan {
            wiring: wiring(vec![source]),
            sources: Vec::new(),
            rules: Arc::new(script::rules()),
            outlets: Outlets { topics: Topics::default(), partitions: BTreeMap::new() },
            members: 1,
        };
        let mut chain = plan.wiring.chain(Path::Critical).unwrap();
        let value = Some(Bytes::from_static(b"{}"));
        let record = RawRecord { offset: 7, key: None, value, headers: Vec::new(), timestamp: Instant(1) };
        let lot = Lot { source: 0, partition: 3 };
        let output = set_aside(&plan, &mut chain, Instant(2), lot, &record, |_| panic!("an operator died")).unwrap();
        assert!(matches!(output.said[..], [ref said] if said.to == To::Dlq(Reason::Panicked)));
        let [row] = &output.rows.decode()[..] else { panic!("one row") };
        let event = EventId::new("critical", 3, 7);
        assert_eq!((row.event, row.reason, row.epoch), (event, Some(Reason::Panicked), 0));
    }
}
