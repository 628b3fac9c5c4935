//! SQL and Rust say the same about the same rows.

use std::collections::BTreeSet;
use std::time::Duration;

use tidings_schemas::block::{Block, Kind};
use tidings_schemas::channel::Channel;
use tidings_schemas::ids::{DeliveryId, EventId, GroupId, LegId, NotificationId};
use tidings_schemas::lifecycle::{Row, Stage, State, Unit};
use tidings_schemas::time::Instant;
use tidings_sinks::record::RecordStore;
use tidings_sinks::record::fates::Fate;
use tidings_sinks::record::files::EpochLine;
use tidings_sinks::record::index::RecordIndex;

use crate::support::{Database, batch, now};

/// xorshift64*: the same rows for the same seed, on any machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn id(&mut self, kinds: u8, of: u64) -> [u8; 16] {
        let mut id = [kinds; 16];
        id[8] = u8::try_from(self.roll(of)).unwrap() + 1;
        id
    }
}

/// Rows that no stage would write: any states on any unit, in any order of time, with repeats.
fn rows(dice: &mut Dice, start: Instant, count: u64) -> Vec<Row> {
    (0..count)
        .map(|_| {
            let unit = Unit::ALL[usize::try_from(dice.roll(3)).unwrap()];
            let stage = Stage::ALL[usize::try_from(dice.roll(3)).unwrap()];
            let mut states: Vec<State> = (0..dice.roll(3) + 1)
                .map(|_| State::ALL[usize::try_from(dice.roll(State::ALL.len() as u64)).unwrap()])
                .collect();
            if dice.roll(2) == 0 {
                states.insert(0, State::Created);
            }
            let event = EventId(dice.id(1, 60));
            let leg = dice.id(2, 80);
            let at = start.after(Duration::from_millis(dice.roll(40)));
            Row {
                at,
                epoch: if stage == Stage::Decide { dice.roll(6) + 1 } else { 0 },
                stage,
                states,
                unit,
                event,
                notification: NotificationId(leg),
                group: if dice.roll(3) == 0 { GroupId(dice.id(4, 5)) } else { GroupId::default() },
                leg: if unit == Unit::Event { LegId::default() } else { LegId(leg) },
                silent: unit == Unit::Leg && leg[8].is_multiple_of(3),
                delivery: if unit == Unit::Delivery { DeliveryId(dice.id(3, 80)) } else { DeliveryId::default() },
                user: "u1".to_owned(),
                channel: Some(Channel::Push),
                created_at: start,
                ..Row::default()
            }
            .sealed()
        })
        .collect()
}

/// Pairs of events on the critical path, of which the second may repeat the first one's notification.
fn repeats(dice: &mut Dice, start: Instant, pairs: u8) -> Vec<Row> {
    let mut rows = Vec::new();
    for pair in 0..pairs {
        let (first, again) = (EventId([100 + 2 * pair; 16]), EventId([101 + 2 * pair; 16]));
        let notification = NotificationId([100 + pair; 16]);
        let stage = if dice.roll(5) == 0 { Stage::Deliver } else { Stage::Critical };
        let base = Row { stage, user: "u1".to_owned(), created_at: start, ..Row::default() };
        for (event, at) in [(first, start), (again, start.after(Duration::from_millis(dice.roll(20) + 1)))] {
            let named = if dice.roll(5) == 0 { NotificationId::default() } else { notification };
            let states = vec![State::Created, State::Validated];
            rows.push(Row { unit: Unit::Event, event, notification: named, states, at, ..base.clone() }.sealed());
            if dice.roll(5) == 0 {
                let state = [State::Parked, State::Suppressed, State::Expired][usize::try_from(dice.roll(3)).unwrap()];
                rows.push(Row { unit: Unit::Event, event, states: vec![state], at, ..base.clone() }.sealed());
            }
            // The second one's leg is the first one's.
            if dice.roll(4) > 0 {
                let (leg, channel) = (LegId(notification.0), Some(Channel::Push));
                let states = if dice.roll(5) == 0 { vec![State::Queued] } else { vec![State::Created, State::Queued] };
                let row = Row { unit: Unit::Leg, event, notification, leg, channel, states, at, ..base.clone() };
                rows.push(row.sealed());
            }
        }
    }
    rows
}

#[test]
fn the_sums_in_rust_and_in_sql_agree_on_any_rows() {
    let Some(database) = Database::ready("agreement") else { return };
    let mut store = database.store();
    let mut offset = 0;
    let mut met = BTreeSet::new();
    let mut derived = 0;
    for seed in 1..=12 {
        for table in ["lifecycle", "lifecycle_blocks"] {
            database.ask(&format!("TRUNCATE TABLE {table}"));
        }
        let (mut dice, mut index) = (Dice(seed * 7_919), RecordIndex::default());
        let start = now();
        let mut rows = rows(&mut dice, start, 60 + seed * 30);
        rows.extend(repeats(&mut dice, start, 30));
        let mut records = Vec::new();
        for epoch in 0..=6 {
            for stage in Stage::ALL {
                let of: Vec<Row> =
                    (rows.iter()).filter(|row| row.epoch == epoch && row.stage == *stage).cloned().collect();
                if *stage == Stage::Decide && epoch > 0 {
                    records.push(Block::encode(*stage, epoch, &of));
                    // Some epochs are never closed, some not complete.
                    if dice.roll(20) > 0 {
                        records.push(Block::closed(epoch, of.len() as u64 + u64::from(dice.roll(20) == 0)));
                    }
                } else if !of.is_empty() {
                    records.push(Block::encode(*stage, epoch, &of));
                }
                // A repeat that was told later or earlier.
                if let Some(row) = of.first() {
                    let at = start.after(Duration::from_millis(dice.roll(60)));
                    records.push(Block::encode(Stage::Deliver, 0, &[Row { at, ..row.clone() }]));
                }
            }
        }
        let batch = batch(offset, &records);
        offset = batch.range.end;
        store.write(&batch).unwrap();
        for block in &batch.blocks {
            block.block().decode_rows().unwrap().into_iter().for_each(|row| index.add(row));
            if block.header.stage == Stage::Decide {
                index.add_epoch(EpochLine {
                    epoch: block.header.epoch,
                    closed: block.header.kind == Kind::Closed,
                    partition: 0,
                    checksum: block.checksum,
                    rows: block.header.rows,
                });
            }
        }
        let closed = index.closed_epoch().map_or("\\N".to_owned(), |epoch| epoch.to_string());
        assert_eq!(database.value("SELECT epoch FROM closed_epoch"), closed, "seed {seed}");
        let fates = index.fates();
        for sum in fates.sums() {
            met.extend(sum.fates.iter().filter(|(_, units)| *units > 0).map(|(fate, _)| (sum.unit, *fate)));
        }
        let mut expected = Vec::new();
        for sum in fates.sums() {
            let mut line = |fate: &str, units: u64| {
                expected.push(format!("{}\t{fate}\t{units}\t{}\t{}", sum.unit, sum.created, sum.adds_up()));
            };
            sum.fates.iter().for_each(|(fate, units)| line(fate.as_str(), *units));
            if sum.unit != Unit::Delivery {
                line("unaccounted", sum.unaccounted);
            }
            line("orphans", sum.orphans);
        }
        expected.sort();
        let asked = database.ask("SELECT unit, fate, units, created, CAST(adds_up, 'Bool') FROM fates");
        assert_eq!(asked, expected, "seed {seed}");
        for line in database.ask("SELECT concat('e_', lower(hex(event))), fate FROM event_fates WHERE is_created") {
            let (event, fate) = line.split_once('\t').unwrap();
            let event = event.parse().unwrap();
            assert_eq!(fates.event(event).unwrap().as_str(), fate, "seed {seed}, {event}");
            let says_so = |row: &Row| row.event == event && row.states.contains(&State::Deduplicated);
            derived += u32::from(fate == Fate::Deduplicated.as_str() && !index.rows().any(says_so));
        }
    }
    assert!(derived > 50, "{derived} repeats were known by the legs of the first");
    let all = [(Unit::Event, Fate::OF_EVENTS), (Unit::Leg, Fate::OF_LEGS), (Unit::Delivery, Fate::OF_DELIVERIES)];
    for (unit, fates) in all {
        assert!(fates.iter().all(|fate| met.contains(&(unit, *fate))), "every fate of a {unit} was met: {met:?}");
    }
}
