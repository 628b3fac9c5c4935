//! What must hold once everything has come to rest: one function per promise, named after it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use tidings_operators::harness::chain::Block;
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::harness::output::{EpochOutput, To};
use tidings_operators::ingest::{Path, ingest};
use tidings_operators::script;
use tidings_pipeline::cutlog::{Counted, CutBody, Entry};
use tidings_schemas::block::{Block as RowBlock, Kind};
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::{HEADER_EPOCH, HEADER_EVENT, HEADER_MARK, HEADER_ORDINAL, LaneRecord};
use tidings_schemas::lifecycle::{Row, Stage, State, Unit};
use tidings_schemas::topics::Topics;
use tidings_sinks::lane::wire::{self, Read};
use tidings_sinks::log::{Record, TopicPartition};
use tidings_sinks::record::CheckedBlock;
use tidings_sinks::record::fates::{Fate, Fates};

use self::delivered::Delivered;
use crate::oracle::{self, End, Oracle, Told};
use crate::run::{Simulation, at, is_lane};
use crate::workload::EVENTS;

/// A promise that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The check that noticed.
    pub promise: &'static str,
    /// What it saw.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.what)
    }
}

mod delivered;

type Verdict = Result<(), Broken>;

fn broken(promise: &'static str, what: impl Into<String>) -> Verdict {
    Err(Broken { promise, what: what.into() })
}

/// Every check.
///
/// # Errors
/// The first promise that is broken.
pub fn all(simulation: &Simulation) -> Verdict {
    let seen = Seen::of(simulation)?;
    let fates = Fates::of(seen.rows.values());
    decided_right(simulation, &seen)?;
    liveness(simulation, &seen, &fates)?;
    decided_twice(simulation, &seen)?;
    identical_output(&seen)?;
    consent(simulation, &seen)?;
    lost(&seen, &fates)?;
    conservation(&seen, &fates)?;
    if !simulation.options.deliver.runs {
        return Ok(());
    }
    recorded(simulation, &seen)?;
    let delivered = Delivered::of(simulation, &seen)?;
    delivered::duplicate_without_unknown(&delivered)?;
    delivered::lost(&delivered, &seen, &fates)?;
    delivered::consent(&delivered, &seen)?;
    delivered::critical_waited(simulation, &delivered)?;
    delivered::isolation(simulation, &delivered)
}

/// What there is to look at.
struct Seen {
    counted: Counted,
    /// What a plain recomputation says.
    recomputed: Vec<EpochOutput>,
    /// Records by partition, with those that no reader sees.
    history: BTreeMap<TopicPartition, Vec<Record>>,
    hidden: BTreeSet<(TopicPartition, u64)>,
    rows: BTreeMap<[u8; 16], Row>,
    closed: BTreeMap<u64, u64>,
}

impl Seen {
    fn of(simulation: &Simulation) -> Result<Self, Broken> {
        let wrong = |what: String| Broken { promise: "identical_output", what };
        let counted = simulation.counted().map_err(|error| wrong(error.to_string()))?;
        let (history, hidden) = {
            let nature = simulation.world.nature();
            // Compaction hid what had been read before; what never was there stays hidden.
            let gaps = nature.hidden.iter().filter(|(partition, _)| *partition.topic == *EVENTS).cloned().collect();
            (nature.history.clone(), gaps)
        };
        let mut seen =
            Self { counted, recomputed: Vec::new(), history, hidden, rows: BTreeMap::new(), closed: BTreeMap::new() };
        seen.recomputed = seen.recompute(simulation).map_err(wrong)?;
        seen.read_rows().map_err(wrong)?;
        Ok(seen)
    }

    /// The records of a partition that a reader sees.
    fn records<'a>(&'a self, partition: &TopicPartition, range: Range<u64>) -> impl Iterator<Item = &'a Record> + 'a {
        let hidden = (partition.clone(), range.start)..(partition.clone(), range.end);
        let hidden: BTreeSet<u64> = self.hidden.range(hidden).map(|(_, offset)| *offset).collect();
        let records = self.history.get(partition).map(Vec::as_slice).unwrap_or_default();
        let first = records.partition_point(|record| record.offset < range.start);
        let records = records[first..].iter().take_while(move |record| record.offset < range.end);
        records.filter(move |record| !hidden.contains(&record.offset))
    }

    /// What a fresh chain on one worker says along the logged cuts.
    fn recompute(&self, simulation: &Simulation) -> Result<Vec<EpochOutput>, String> {
        let mut chain = simulation.options.wiring().chain(Path::Decide).map_err(|error| error.to_string())?;
        let sources = script::sources();
        let mut outputs = Vec::new();
        let mut from = BTreeMap::new();
        for (_, cut) in &self.counted.cuts {
            let block = |(lot, records): (Lot, Vec<&Record>)| {
                let arrived = records.into_iter().cloned().map(|Record { offset, key, value, headers, timestamp }| {
                    let raw = RawRecord { offset, key, value, headers, timestamp };
                    ingest(&sources[usize::from(lot.source)], lot, &raw, &simulation.rules, Path::Decide)
                });
                Block { lot, target: 0, records: arrived.collect() }
            };
            let blocks = self.admitted(simulation, cut, &mut from).into_iter().map(block).collect();
            let mut output = chain.epoch(cut.epoch, cut.now, &simulation.rules, blocks);
            output.canonical();
            outputs.push(output);
        }
        Ok(outputs)
    }

    /// What a cut admits, by partition; `from` is where the one before it ended.
    fn admitted(
        &self,
        simulation: &Simulation,
        cut: &CutBody,
        from: &mut BTreeMap<Lot, u64>,
    ) -> Vec<(Lot, Vec<&Record>)> {
        let sources = script::sources();
        let mut admitted = Vec::new();
        for (number, (topic, partitions, _)) in simulation.sources().iter().enumerate() {
            for partition in 0..*partitions {
                let end = cut.ends.get(&*sources[number].id).and_then(|ends| ends.get(&partition));
                let Some(end) = end else { continue };
                let lot = Lot { source: u16::try_from(number).unwrap_or(u16::MAX), partition };
                let start = from.insert(lot, end.end).unwrap_or(0);
                let records = self.records(&at(topic, partition), start..end.end).collect();
                admitted.push((lot, records));
            }
        }
        admitted
    }

    /// Events that the critical path took over: what becomes of them, it says.
    fn handed_over(&self) -> BTreeSet<EventId> {
        let said = self.recomputed.iter().flat_map(|output| &output.said);
        let handed = said.filter_map(|said| match &said.to {
            To::HandOver(_, event, _) => Some(*event),
            To::Lane(..) | To::Dlq(_) => None,
        });
        handed.collect()
    }

    /// What was said of a unit and of what it became part of, in order, in a few words each.
    fn about<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = String> + 'a {
        let same = |it: &Row| it.event == row.event || (row.unit == Unit::Leg && it.leg == row.leg);
        // With what came together with it, one way or the other.
        let mut others: BTreeSet<String> =
            self.rows.values().filter(|it| same(it)).map(|it| it.caused_by.clone()).collect();
        others.remove("");
        others.insert(row.event.to_string());
        let near = |it: &&Row| same(it) || others.contains(&it.caused_by) || others.contains(&it.event.to_string());
        let mut rows: Vec<&Row> = self.rows.values().filter(near).collect();
        rows.sort_by_key(|row| (row.epoch, row.at));
        rows.into_iter().map(|row| {
            let Row { epoch, at, unit, event, leg, states, operator, until, reason, caused_by, .. } = row;
            format!("  {epoch} {at} {unit:?} {event} {leg} {states:?} {operator} {until:?} {reason:?} {caused_by}")
        })
    }

    fn read_rows(&mut self) -> Result<(), String> {
        let topic = Topics::default().lifecycle();
        let blocks = self.history.iter().filter(|(partition, _)| *partition.topic == *topic);
        for record in blocks.flat_map(|(_, records)| records) {
            let value = record.value.as_deref().unwrap_or_default();
            let block = RowBlock::decode_header(value).map_err(|error| error.to_string())?;
            if block.header.kind == Kind::Closed {
                self.closed.insert(block.header.epoch, block.header.rows);
                continue;
            }
            for row in block.decode_rows().map_err(|error| error.to_string())? {
                // Deliver says again what it met, when it met it.
                if let Some(before) = self.rows.insert(row.row_id.0, row.clone())
                    && before != row
                    && row.stage == Stage::Decide
                {
                    return Err(format!("one row id, two rows: {before:?} and {row:?}"));
                }
            }
        }
        Ok(())
    }
}

fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    record.header(name).and_then(|value| std::str::from_utf8(value).ok())
}

/// Where a record was decided: its epoch and its place in it.
fn decided(record: &Record) -> Option<(u64, String)> {
    let epoch = header(record, HEADER_EPOCH)?.parse().ok()?;
    Some((epoch, header(record, HEADER_ORDINAL)?.to_owned()))
}

/// All that decide wrote but rows: lanes, dead letters, hand-overs.
fn outputs(seen: &Seen) -> impl Iterator<Item = (&TopicPartition, &Record)> {
    let records = seen.history.iter().flat_map(|(partition, records)| records.iter().map(move |it| (partition, it)));
    records.filter(|(_, record)| record.header(HEADER_MARK).is_none() && record.header(HEADER_ORDINAL).is_some())
}

/// Everything that was ever said is what a plain recomputation along the logged cuts says: byte for
/// byte, nothing missing, nothing else.
fn identical_output(seen: &Seen) -> Verdict {
    const PROMISE: &str = "identical_output";
    let topics = Topics::default();
    let topic = |to: &To| match to {
        To::Lane(channel, priority) => topics.lane(*channel, *priority),
        To::HandOver(priority, ..) => topics.events(*priority),
        To::Dlq(_) => topics.dlq(),
    };
    let mut expected: BTreeMap<(u64, String), (String, &Bytes)> = BTreeMap::new();
    for output in &seen.recomputed {
        for said in &output.said {
            expected.insert((output.epoch, said.ordinal.to_string()), (topic(&said.to), &said.value));
        }
    }
    let mut said = BTreeSet::new();
    for (partition, record) in outputs(seen) {
        let Some(key) = decided(record) else {
            return broken(PROMISE, format!("{partition}: a record without a name"));
        };
        match expected.get(&key) {
            None => return broken(PROMISE, format!("{partition}: {key:?} was said, and no cut justifies it")),
            Some((topic, value)) if **topic != *partition.topic || Some(*value) != record.value.as_ref() => {
                return broken(PROMISE, format!("{partition}: {key:?} was said in another way than a recomputation"));
            }
            Some(_) => drop(said.insert(key)),
        }
    }
    if let Some(missing) = expected.keys().find(|key| !said.contains(*key)) {
        return broken(PROMISE, format!("{missing:?} was never said"));
    }
    let mut rows = 0;
    for output in &seen.recomputed {
        rows += output.rows.len();
        for row in output.rows.decode() {
            match seen.rows.get(&row.row_id.0) {
                Some(written) if *written == row => {}
                Some(written) => return broken(PROMISE, format!("a row differs: {written:?}, recomputed {row:?}")),
                None => return broken(PROMISE, format!("epoch {}: a row is missing: {row:?}", output.epoch)),
            }
        }
        if seen.closed.get(&output.epoch) != Some(&(output.rows.len() as u64)) {
            return broken(PROMISE, format!("epoch {} is not closed as it should be", output.epoch));
        }
    }
    let written = seen.rows.values().filter(|row| row.stage == Stage::Decide).count();
    if rows != written {
        return broken(PROMISE, format!("{written} rows were written, {rows} are justified"));
    }
    Ok(())
}

/// What the engine said of an epoch, in the oracle's form.
///
/// # Errors
/// When a lane record is none, or lies in another's lane.
pub fn told(output: &EpochOutput) -> Result<Told, String> {
    let mut told = Told::default();
    for said in &output.said {
        match &said.to {
            To::Lane(channel, priority) => {
                let lane: LaneRecord = serde_json::from_slice(&said.value).map_err(|error| error.to_string())?;
                if (lane.channel, lane.priority) != (*channel, *priority) {
                    return Err(format!("the leg {} lies in the lane {channel} {priority}", lane.leg));
                }
                told.lanes.push(lane);
            }
            To::HandOver(priority, event, _) => told.handed_over.push((*priority, *event)),
            To::Dlq(reason) => *told.letters.entry(*reason).or_default() += 1,
        }
    }
    output.rows.decode().iter().for_each(|row| told.row(row));
    Ok(told)
}

/// What was decided along the logged cuts is what the oracle decides along them.
fn decided_right(simulation: &Simulation, seen: &Seen) -> Verdict {
    const PROMISE: &str = "decided_right";
    let mut oracle = Oracle::new(simulation.options.modelled(), script::policies());
    let mut from = BTreeMap::new();
    for ((_, cut), output) in seen.counted.cuts.iter().zip(&seen.recomputed) {
        let record = |lot: Lot, record: &Record| oracle::Record {
            source: usize::from(lot.source),
            partition: lot.partition,
            offset: record.offset,
            key: record.key.clone(),
            value: record.value.clone(),
            headers: record.headers.clone(),
            timestamp: record.timestamp,
        };
        let admitted = seen.admitted(simulation, cut, &mut from);
        let records: Vec<_> =
            admitted.into_iter().flat_map(|(lot, all)| all.into_iter().map(move |it| record(lot, it))).collect();
        let expected = match oracle.epoch(cut.epoch, cut.now, &records) {
            Ok(expected) => expected,
            Err(reason) => {
                // From here on it has no opinion.
                simulation.world.trace(|| format!("epoch {}: {reason}", cut.epoch));
                return Ok(());
            }
        };
        let found = told(output).map_err(|what| Broken { promise: PROMISE, what })?;
        if let Some(difference) = expected.difference(&found) {
            return broken(PROMISE, format!("epoch {} at {}: {difference}", cut.epoch, cut.now));
        }
    }
    let rows = || seen.rows.values().filter(|row| row.stage == Stage::Decide);
    let fates = Fates::of(rows());
    let mut opened: BTreeMap<EventId, usize> = BTreeMap::new();
    for row in rows().filter(|row| row.unit == Unit::Event && row.states.contains(&State::Created)) {
        *opened.entry(row.event).or_default() += 1;
    }
    // One that was handed over again after the dedup window has two stories under one name.
    for (event, _) in opened.into_iter().filter(|(_, times)| *times == 1) {
        let (expected, found) = (oracle.end(event).map(End::as_str), fates.event(event).map(Fate::as_str));
        if expected != found {
            let story = oracle.describe(event);
            return broken(PROMISE, format!("the end of {event}: expected {expected:?}, found {found:?}; {story}"));
        }
    }
    Ok(())
}

/// Nothing is said twice in different ways, and a reader that follows the marks sees each record
/// once, but where the log left a writer in doubt or an older generation went on.
fn decided_twice(simulation: &Simulation, seen: &Seen) -> Verdict {
    const PROMISE: &str = "decided_twice";
    let mut bytes: BTreeMap<(u64, String), Option<&Bytes>> = BTreeMap::new();
    for (partition, record) in outputs(seen) {
        let Some(key) = decided(record) else { continue };
        if let Some(before) = bytes.insert(key.clone(), record.value.as_ref())
            && before != record.value.as_ref()
        {
            return broken(PROMISE, format!("{partition}: {key:?} was said in two ways"));
        }
    }
    let mut legs: BTreeMap<_, (u64, String)> = BTreeMap::new();
    let doubt = [
        "script",
        "lost acknowledgement",
        "torn append",
        "late append",
        "freeze",
        "stall",
        "kill",
        "death at an append",
    ];
    let doubtful = simulation.disturbed(&doubt) || simulation.options.alive_max > 1;
    for (partition, records) in seen.history.iter().filter(|(partition, _)| is_lane(&partition.topic)) {
        let (mut through, mut passed) = (0, BTreeSet::new());
        for record in records {
            let read = wire::read(record).map_err(|error| Broken { promise: PROMISE, what: error })?;
            let leg = match read {
                Read::Mark(mark) => {
                    through = through.max(mark.said_through);
                    continue;
                }
                // What came back is judged anew.
                Read::Leg { record, .. } => (record.leg, record.returns, record.replay, record.only_address),
            };
            let Some(key) = decided(record) else { continue };
            if key.0 <= through && passed.contains(&key) {
                continue;
            }
            if key.0 <= through {
                return broken(
                    PROMISE,
                    format!("{partition}: {key:?} came only after the mark {through}, and is dropped"),
                );
            }
            if !passed.insert(key.clone()) && !doubtful {
                return broken(PROMISE, format!("{partition}: {key:?} passes a reader twice"));
            }
            // Deliver may give a leg back twice; `dedup` takes it once, where there is one.
            let absorbed = leg.1 == 0 || simulation.options.operators.iter().any(|(kind, ..)| *kind == "dedup");
            if let Some(before) = legs.insert(leg.clone(), key.clone())
                && before != key
                && absorbed
            {
                return broken(PROMISE, format!("leg {leg:?} was decided at {before:?} and at {key:?}"));
            }
        }
    }
    Ok(())
}

/// Every accepted record has a fate.
fn lost(seen: &Seen, fates: &Fates) -> Verdict {
    let handed = seen.handed_over();
    for partition in seen.history.keys().filter(|partition| *partition.topic == *EVENTS) {
        for record in seen.records(partition, 0..u64::MAX).filter(|record| record.header(HEADER_EVENT).is_none()) {
            let event = EventId::new(&script::sources()[0].id, partition.partition, record.offset);
            match fates.event(event) {
                None if handed.contains(&event) => {}
                None => return broken("lost", format!("{partition} at {}: event {event} has no fate", record.offset)),
                Some(Fate::Unaccounted) => {
                    return broken("lost", format!("{partition} at {}: event {event} is unaccounted", record.offset));
                }
                Some(_) => {}
            }
        }
    }
    Ok(())
}

/// The sums of events and of legs close.
fn conservation(seen: &Seen, fates: &Fates) -> Verdict {
    for sum in fates.sums() {
        if !sum.adds_up() || sum.unaccounted > 0 {
            let fate = |row: &Row| match row.unit {
                Unit::Event => fates.event(row.event),
                Unit::Leg => fates.leg(row.leg),
                Unit::Delivery => fates.delivery(row.delivery),
            };
            let odd = |row: &&Row| row.unit == sum.unit && matches!(fate(row), None | Some(Fate::Unaccounted));
            let about: Vec<String> = seen.rows.values().find(odd).into_iter().flat_map(|row| seen.about(row)).collect();
            return broken("conservation", format!("{sum:?}\n{}", about.join("\n")));
        }
    }
    Ok(())
}

/// The record has every block of the log, once, as it was written.
fn recorded(simulation: &Simulation, seen: &Seen) -> Verdict {
    const PROMISE: &str = "conservation";
    let stored = simulation.record.stored().map_err(|what| Broken { promise: PROMISE, what })?;
    let topic = Topics::default().lifecycle();
    let mut blocks = 0;
    for (partition, records) in seen.history.iter().filter(|(partition, _)| *partition.topic == *topic) {
        for record in records {
            let value = record.value.clone().unwrap_or_default();
            let block = CheckedBlock::check(record.offset, &value);
            let block = block.map_err(|error| Broken { promise: PROMISE, what: error.to_string() })?;
            blocks += 1;
            if stored.get(&(partition.clone(), record.offset)) != Some(&block.rows) {
                let what =
                    format!("the block at {} of {partition} is not in the record as it was written", record.offset);
                return broken(PROMISE, what);
            }
        }
    }
    match stored.len() == blocks {
        true => Ok(()),
        false => broken(PROMISE, format!("the record has {} blocks of {blocks}", stored.len())),
    }
}

/// No generation decides an event before the side inputs are loaded as far as they went when it began.
fn consent(simulation: &Simulation, seen: &Seen) -> Verdict {
    let sources = script::sources();
    let begun = simulation.world.nature().begun.clone();
    let offsets: BTreeMap<u64, u64> = simulation
        .entries()
        .into_iter()
        .filter_map(|(offset, entry)| match entry {
            Entry::Cut { generation, .. } => Some((offset, generation)),
            _ => None,
        })
        .collect();
    let mut ends: BTreeMap<TopicPartition, u64> = BTreeMap::new();
    for (offset, cut) in &seen.counted.cuts {
        let mut events = false;
        for (number, (topic, partitions, side_input)) in simulation.sources().iter().enumerate() {
            for partition in 0..*partitions {
                let end = cut.ends.get(&*sources[number].id).and_then(|ends| ends.get(&partition));
                if let Some(end) = end {
                    events |= !side_input;
                    ends.insert(at(topic, partition), end.end);
                }
            }
        }
        let marks = offsets.get(offset).and_then(|generation| begun.get(generation));
        for (partition, mark) in marks.into_iter().flatten().filter(|_| events) {
            let end = ends.get(partition).copied().unwrap_or(0);
            if end < *mark {
                let epoch = cut.epoch;
                return broken("consent", format!("epoch {epoch} decides with {partition} read to {end} of {mark}"));
            }
        }
    }
    Ok(())
}

/// Everything that came in was cut, said and kept, and nothing waits beyond its time.
fn liveness(simulation: &Simulation, seen: &Seen, fates: &Fates) -> Verdict {
    const PROMISE: &str = "liveness";
    let sources = script::sources();
    let Some((_, last)) = seen.counted.cuts.last() else { return broken(PROMISE, "nothing was ever cut") };
    for (number, (topic, partitions, _)) in simulation.sources().iter().enumerate() {
        for partition in 0..*partitions {
            let end = (seen.counted.cuts.iter().rev())
                .find_map(|(_, cut)| cut.ends.get(&*sources[number].id)?.get(&partition))
                .map_or(0, |end| end.end);
            let partition = at(topic, partition);
            let there = simulation.world.range(&partition).map_or(0, |range| range.end);
            if end < there {
                return broken(PROMISE, format!("{partition} was cut to {end} of {there}"));
            }
        }
    }
    let kept = seen.counted.checkpoints.last_key_value().map_or(0, |((epoch, _), _)| *epoch);
    if kept < last.epoch || seen.counted.said_through < last.epoch {
        let said = seen.counted.said_through;
        return broken(PROMISE, format!("epoch {} was the last, {said} was said and {kept} kept", last.epoch));
    }
    let mut waits: BTreeMap<(Unit, [u8; 16]), &Row> = BTreeMap::new();
    for row in seen.rows.values() {
        let newest = waits.entry((row.unit, row.unit_id())).or_insert(row);
        if (newest.epoch, newest.at) <= (row.epoch, row.at) {
            *newest = row;
        }
    }
    let overdue = |row: &&&Row| row.until.is_some_and(|until| until.after(simulation.options.idle_max * 2) < last.now);
    // An event that has become a leg waits as long as the leg does.
    let handed = seen.handed_over();
    let legs: BTreeSet<EventId> = seen.rows.values().filter(|row| row.unit == Unit::Leg).map(|row| row.event).collect();
    let parked = |row: &&&Row| match row.unit {
        Unit::Event => {
            fates.event(row.event) == Some(Fate::Parked) && !legs.contains(&row.event) && !handed.contains(&row.event)
        }
        Unit::Leg | Unit::Delivery => fates.leg(row.leg) == Some(Fate::Parked),
    };
    if let Some(row) = waits.values().filter(parked).find(overdue) {
        let about: Vec<String> = seen.about(row).collect();
        return broken(PROMISE, format!("at {} this waits beyond its time:\n{}", last.now, about.join("\n")));
    }
    Ok(())
}
