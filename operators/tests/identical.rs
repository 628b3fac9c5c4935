//! Promise 8 within the engine: the same cuts give the same output, byte for byte, on 1, 2 and 4
//! workers, over shared memory, serialised, and over sockets between several processes, with any fuel; and after
//! restoring from deltas onto another number of workers in the middle.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::bounded;
use tidings_operators::harness::chain::{Block, Chain};
use tidings_operators::harness::cluster::{Seat, start_in};
use tidings_operators::harness::dataflow::{Assigned, Command, Cut, Report, Running, Transport, WorkerIo, start};
use tidings_operators::harness::delta::{Delta, Pending};
use tidings_operators::harness::feed::{Feed, Lot, RawRecord};
use tidings_operators::harness::output::EpochOutput;
use tidings_operators::ingest::{Path, ingest};
use tidings_operators::registry::Wiring;
use tidings_operators::rules::Rules;
use tidings_operators::script;
use tidings_schemas::lifecycle::State;
use tidings_schemas::time::Instant;

const EPOCHS: u64 = 60;
const USERS: u64 = 40;

/// A small generator with a seed: tests must say the same thing every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn wiring() -> Wiring {
    let limits = serde_json::json!({"levels": [
        {"per": ["channel", "type"], "push": "3/h", "other": "5/h"}, {"per": ["category"], "marketing": "1/d"}]});
    script::straight(&[
        ("validate", serde_json::json!({}), None),
        ("dedup", serde_json::json!({"window": "2h"}), None),
        ("schedule", serde_json::json!({}), None),
        ("preferences", serde_json::json!({}), None),
        ("aggregate", serde_json::json!({"window": "5m", "threshold": 4}), Some(r#"category == "social""#)),
        ("route", serde_json::json!({}), None),
        ("quiet_hours", serde_json::json!({"spread": "10m"}), None),
        ("rate_limit", limits, None),
    ])
}

type Input = BTreeMap<Lot, Vec<RawRecord>>;

/// Events of all kinds in three partitions, profiles and addresses; and cuts that end anywhere.
fn input(seed: u64, rules: &Arc<Rules>) -> (Input, Vec<Arc<Cut>>) {
    let mut dice = Dice(seed);
    let mut input = Input::new();
    let mut cuts = Vec::new();
    let mut now: Instant = "2026-03-28T20:00:00Z".parse().unwrap();
    let mut number = 0;
    for epoch in 1..=EPOCHS {
        now = now.after(Duration::from_secs(dice.roll(1500)));
        for _ in 0..dice.roll(60) {
            number += 1;
            let (lot, key, value) = record(&mut dice, number, now);
            // Offsets have gaps, as after compaction.
            let records = input.entry(lot).or_default();
            let offset = records.last().map_or(0, |last: &RawRecord| last.offset + 1) + u64::from(dice.roll(9) == 0);
            let headers = Vec::new();
            records.push(RawRecord { offset, key: Some(key.into()), value, headers, timestamp: now });
        }
        let end = |(lot, records): (&Lot, &Vec<RawRecord>)| (*lot, records.last().map_or(0, |last| last.offset + 1));
        let ends = input.iter().map(end).collect();
        cuts.push(Arc::new(Cut { epoch, now, rules: Arc::clone(rules), ends, skips: Arc::default(), crumbs: None }));
    }
    (input, cuts)
}

fn record(dice: &mut Dice, number: u64, now: Instant) -> (Lot, String, Option<Bytes>) {
    let user = format!("u{}", dice.roll(USERS));
    let lot = |source, partition| Lot { source, partition };
    let zones = ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Africa/Cairo", "Pacific/Auckland"];
    let zone = zones[usize::try_from(dice.roll(5)).unwrap()];
    let json = match dice.roll(20) {
        0 => {
            let off = ["", r#","types":{"like":{"push":false}}"#, r#","channels":{"email":false}"#];
            let off = off[usize::try_from(dice.roll(3)).unwrap()];
            let quiet = r#""quiet_hours":{"from":"22:00","to":"07:00"}"#;
            let profile = format!(r#"{{"time_zone":"{zone}",{quiet}{off}}}"#);
            return (lot(2, 0), user, Some(profile.into()));
        }
        1 => return (lot(2, 0), user, None),
        2 | 3 => {
            let channel = if dice.roll(2) == 0 { "push" } else { "email" };
            let key = format!("{user}/{channel}");
            let address =
                format!(r#"{{"user_id":"{user}","address_id":"{channel}","channel":"{channel}","address":"x"}}"#);
            return (lot(3, 0), key, (dice.roll(6) > 0).then(|| address.into()));
        }
        4 => r#"{"user_id": "broken"#.to_owned(),
        5 => format!(r#"{{"id":"m{number}","type":"marketing_campaign","user_id":"{user}"}}"#),
        6 => format!(
            r#"{{"id":"o{number}","type":"order_shipped","user_id":"{user}","data":{{"order_id":{}}}}}"#,
            dice.roll(50)
        ),
        7 => {
            let at = now.after(Duration::from_secs(dice.roll(7200)));
            format!(
                r#"{{"id":"s{}","type":"like","user_id":"{user}","scheduled_at":"{at}","cancel_key":"k{}"}}"#,
                number,
                dice.roll(9)
            )
        }
        8 => format!(
            r#"{{"id":"c{number}","type":"like","user_id":"{user}","op":"cancel","cancel_key":"k{}"}}"#,
            dice.roll(9)
        ),
        9 => format!(r#"{{"id":"v{number}","type":"verification_code","user_id":"{user}"}}"#),
        kind => {
            let op = if kind == 10 { "retract" } else { "notify" };
            let (actor, object) = (dice.roll(9), dice.roll(4));
            let id = if dice.roll(9) == 0 { 7 } else { number };
            let actor = format!(r#""actor":{{"id":"a{actor}"}},"object":{{"id":"p{object}"}}"#);
            format!(r#"{{"id":"l{id}","type":"like","user_id":"{user}","op":"{op}",{actor}}}"#)
        }
    };
    (lot(0, u32::try_from(dice.roll(3)).unwrap()), user, Some(json.into()))
}

/// Gives records in portions that a seed draws.
struct Portions {
    records: std::vec::IntoIter<RawRecord>,
    end: u64,
    dice: Dice,
}

impl Feed for Portions {
    fn poll(&mut self, records_max: usize, out: &mut Vec<RawRecord>) -> Result<u64, String> {
        let portion = usize::try_from(self.dice.roll(40)).unwrap().min(records_max);
        out.extend(self.records.by_ref().take(portion));
        Ok(self.records.as_slice().first().map_or(self.end, |next| next.offset))
    }
}

/// How workers meet.
#[derive(Clone, Copy, Debug)]
enum Meet {
    /// In one process.
    In(Transport),
    /// In so many, which are threads of this one that have nothing in common but sockets.
    Over(usize),
}

/// Starts workers in so many processes, as many in each.
fn start_over(processes: usize, mut workers: Vec<WorkerIo>) -> Vec<Running> {
    let each = workers.len() / processes;
    let mut links: Vec<Vec<Option<TcpStream>>> = Vec::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for _ in 0..processes {
        let mut own = Vec::new();
        for others in &mut links {
            own.push(Some(TcpStream::connect(listener.local_addr().unwrap()).unwrap()));
            others.push(Some(listener.accept().unwrap().0));
        }
        own.push(None);
        links.push(own);
    }
    let start = |(process, links)| {
        // Whoever ends first closes its side.
        let seat = Seat { process, links, broken: Arc::new(|_| {}) };
        start_in(workers.drain(..each).collect(), script::sources(), seat).unwrap()
    };
    links.into_iter().enumerate().map(start).collect()
}

/// Runs `cuts` on `count` workers; `state` and `from` say where an earlier run stopped.
fn run(
    count: usize,
    meet: Meet,
    input: &Input,
    cuts: &[Arc<Cut>],
    state: &Delta,
    from: &BTreeMap<Lot, u64>,
    fuel: u64,
) -> Vec<EpochOutput> {
    let wiring = wiring();
    let (report, reports) = bounded(64);
    let mut commands = Vec::new();
    let mut workers = Vec::new();
    for worker in 0..count {
        // Every cut and the stop are sent before the first is waited for.
        let (command, inbox) = bounded(cuts.len() + 1);
        commands.push(command);
        let mine = input.iter().enumerate().filter(|(place, _)| place % count == worker);
        let assigned = mine.map(|(_, (lot, records))| {
            let from = from.get(lot).copied().unwrap_or(0);
            let rest: Vec<_> = records.iter().filter(|record| record.offset >= from).cloned().collect();
            let end = records.last().map_or(0, |last| last.offset + 1);
            let feed = Portions { records: rest.into_iter(), end, dice: Dice(fuel + u64::from(lot.partition)) };
            Assigned { lot: *lot, from, feed: Box::new(feed), rank: 0, at_least_permille: 0 }
        });
        let mut chain = wiring.chain(Path::Decide).unwrap();
        restore(&mut chain, state, worker, count, cuts[0].rules.hash);
        workers.push(WorkerIo { chain, assigned: assigned.collect(), commands: inbox, reports: report.clone() });
    }
    drop(report);
    let running = match meet {
        Meet::In(transport) => vec![start(workers, script::sources(), transport).unwrap()],
        Meet::Over(processes) => start_over(processes, workers),
    };
    for command in &commands {
        for cut in cuts {
            command.send(Command::Release(Arc::clone(cut))).unwrap();
        }
        command.send(Command::Stop).unwrap();
    }
    let mut outputs: BTreeMap<u64, EpochOutput> = BTreeMap::new();
    for report in reports {
        match report {
            Report::Ready(_, waker) => waker(),
            Report::Ahead(..) => {}
            Report::Killed(worker, killed) => panic!("worker {worker}: {killed:?}"),
            Report::Done(_, output) => match outputs.get_mut(&output.epoch) {
                None => drop(outputs.insert(output.epoch, *output)),
                Some(all) => all.join(*output),
            },
            Report::Failed(worker, problem) => panic!("worker {worker}: {problem}"),
        }
    }
    running.into_iter().for_each(|running| running.join().unwrap());
    let mut outputs: Vec<_> = outputs.into_values().collect();
    outputs.iter_mut().for_each(EpochOutput::canonical);
    outputs
}

fn restore(chain: &mut Chain, state: &Delta, worker: usize, count: usize, rules: [u8; 32]) {
    let mine = state.of_worker(worker, count);
    if !state.is_empty() {
        chain.restore(mine, rules).unwrap();
    }
}

fn assert_same(name: &str, one: &[EpochOutput], two: &[EpochOutput]) {
    assert_eq!(one.len(), two.len(), "{name}: epochs");
    for (one, two) in one.iter().zip(two) {
        let epoch = one.epoch;
        for (one, two) in one.said.iter().zip(&two.said) {
            assert_eq!(one, two, "{name}: epoch {epoch} says something else");
        }
        assert_eq!(one.said.len(), two.said.len(), "{name}: epoch {epoch} says more or less");
        for (one, two) in one.rows.decode().iter().zip(&two.rows.decode()) {
            assert_eq!(one, two, "{name}: epoch {epoch} has another row");
        }
        assert_eq!(one.rows.len(), two.rows.len(), "{name}: epoch {epoch} has more or fewer rows");
        assert_eq!(one.delta, two.delta, "{name}: epoch {epoch} leaves other state");
        assert_eq!(one.read, two.read, "{name}: epoch {epoch} read something else");
        assert_eq!(one.digest, two.digest, "{name}: epoch {epoch} has another digest");
    }
}

#[test]
fn any_number_of_workers_says_the_same() {
    let rules = Arc::new(script::rules_of(&script::policies(), Duration::from_secs(600)));
    for seed in 0..4 {
        let (input, cuts) = input(seed, &rules);
        let (state, from) = (Delta::new(), BTreeMap::new());
        let reference = run(1, Meet::In(Transport::Memory), &input, &cuts, &state, &from, 1);
        let said: usize = reference.iter().map(|output| output.said.len()).sum();
        assert!(said > 200, "seed {seed}: only {said} outputs, which proves little");
        for (count, meet, fuel) in [
            (1, Meet::In(Transport::Memory), 9),
            (2, Meet::In(Transport::Memory), 2),
            (4, Meet::In(Transport::Memory), 3),
            (2, Meet::In(Transport::Serialising), 4),
            (2, Meet::Over(2), 5),
            (4, Meet::Over(2), 2),
            (3, Meet::Over(3), 3),
        ] {
            let other = run(count, meet, &input, &cuts, &state, &from, fuel);
            assert_same(&format!("seed {seed}, {count} workers, {meet:?}"), &reference, &other);
        }
    }
}

#[test]
fn a_restore_onto_any_number_of_workers_goes_on_as_if_nothing_had_happened() {
    let rules = Arc::new(script::rules_of(&script::policies(), Duration::from_secs(600)));
    for seed in 10..14 {
        let (input, cuts) = input(seed, &rules);
        let (nothing, start) = (Delta::new(), BTreeMap::new());
        let reference = run(2, Meet::In(Transport::Memory), &input, &cuts, &nothing, &start, 1);
        let middle = usize::try_from(EPOCHS / 3 + seed).unwrap();
        let mut state = Pending::default();
        reference[..middle].iter().for_each(|output| state.add(output.delta.clone()));
        let state = state.into_delta().without_gone();
        let from = cuts[middle - 1].ends.clone();
        for count in [1, 3, 4] {
            let rest = run(count, Meet::In(Transport::Memory), &input, &cuts[middle..], &state, &from, 5);
            assert_same(&format!("seed {seed}, restored onto {count}"), &reference[middle..], &rest);
        }
    }
}

/// Two operators have something due for one user at once; whoever else is on the worker, and whether
/// the condition of an operator below takes theirs, must not change who of the two gets the budget.
#[test]
fn who_shares_a_worker_decides_nothing() {
    let rules = script::rules_of(&script::policies(), Duration::ZERO);
    let wiring = script::straight(&[
        ("validate", serde_json::json!({}), None),
        ("schedule", serde_json::json!({}), None),
        ("preferences", serde_json::json!({}), None),
        ("aggregate", serde_json::json!({"window": "7m"}), Some(r#"category == "social""#)),
        ("route", serde_json::json!({}), None),
        ("quiet_hours", serde_json::json!({}), Some(r#"user_id == "other""#)),
        ("rate_limit", serde_json::json!({"levels": [{"per": ["channel"], "push": "1/h"}]}), None),
    ]);
    let at = |minute: u64| "2026-03-01T10:00:00Z".parse::<Instant>().unwrap().after(Duration::from_secs(minute * 60));
    let said_of = |users: &[&str]| {
        let mut chain = wiring.chain(Path::Decide).unwrap();
        let block = |source: u16, number: u64, key: &str, json: String| {
            let lot = Lot { source, partition: u32::try_from(number).unwrap() };
            let (key, value) = (Some(Bytes::from(key.to_owned())), Some(Bytes::from(json)));
            let record = RawRecord { offset: 0, key, value, headers: Vec::new(), timestamp: at(0) };
            let arrived = ingest(&wiring.sources[usize::from(source)], lot, &record, &rules, Path::Decide);
            Block { lot, target: 0, records: vec![arrived] }
        };
        let mut blocks = Vec::new();
        for (number, user) in (0..).step_by(3).zip(users) {
            let push = format!(r#"{{"user_id":"{user}","address_id":"p","channel":"push","address":"x"}}"#);
            let later = format!(r#"{{"user_id":"{user}","type":"news","scheduled_at":"{}"}}"#, at(5));
            let like = format!(r#"{{"user_id":"{user}","type":"like"}}"#);
            blocks.push(block(3, number, &format!("{user}/p"), push));
            blocks.push(block(0, number + 1, user, later));
            blocks.push(block(0, number + 2, user, like));
        }
        let mut said = chain.epoch(1, at(0), &rules, blocks).rows;
        // Both are due now, the schedule's first; aggregate's own comes before what came from above.
        said.append(chain.epoch(2, at(10), &rules, Vec::new()).rows);
        let mut said = said.decode();
        said.retain(|row| row.user == "u1" && row.channel == Some(tidings_schemas::channel::Channel::Push));
        said
    };
    let alone = said_of(&["u1"]);
    let queued: Vec<_> = alone.iter().filter(|row| row.states.contains(&State::Queued)).collect();
    assert_eq!(queued.iter().map(|row| row.event_type.as_str()).collect::<Vec<_>>(), ["like"]);
    assert_eq!(said_of(&["u1", "other"]), alone);
}
