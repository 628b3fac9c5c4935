//! The record in files.

use std::fs;

use tidings_schemas::block::Block;
use tidings_schemas::channel::Channel;
use tidings_schemas::ids::EventId;
use tidings_schemas::lifecycle::{Row, Stage, State};
use tidings_schemas::time::Instant;
use tidings_sinks::record::RecordStore;
use tidings_sinks::record::fates::Fate;
use tidings_sinks::record::files::Files;
use tidings_sinks::record::index::RecordIndex;

use crate::support::{Database, append, batch, committed, delivery, log, params, rows_block, until};
use crate::writer::Running;

const DAY_MS: i64 = 86_400_000;

fn at(text: &str) -> Instant {
    text.parse().unwrap()
}

#[test]
fn rows_lie_by_day_once_whatever_was_left_by_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Files::new(folder.path());
    let friday = delivery(1, Channel::Push, &[State::Created], at("2026-03-27T23:59:59.999Z"));
    let saturday = delivery(2, Channel::Push, &[State::Created], at("2026-03-28T00:00:00Z"));
    let batch = batch(17, &[Block::encode(Stage::Deliver, 0, &[friday.clone(), saturday.clone()])]);
    // A crash left a torn file beside the first day's place.
    let first = folder.path().join("day=2026-03-27");
    fs::create_dir_all(&first).unwrap();
    let name = "notifications.lifecycle-0-00000000000000000017-00000000000000000018";
    fs::write(first.join(format!(".{name}.tmp")), b"{\"row_id\":\"r_").unwrap();

    files.write(&batch).unwrap();
    files.write(&batch).unwrap();
    let found: Vec<String> = (files.row_files().unwrap().iter())
        .map(|path| path.strip_prefix(folder.path()).unwrap().display().to_string())
        .collect();
    assert_eq!(found, [format!("day=2026-03-27/{name}.ndjson"), format!("day=2026-03-28/{name}.ndjson")]);
    let rows: Vec<Row> = files.row_files().unwrap().iter().flat_map(|path| Files::rows(path).unwrap()).collect();
    assert_eq!(rows, [friday, saturday]);
    assert!(fs::read_dir(first).unwrap().count() == 1, "nothing is left beside");
}

// Golden: people and other programs read these lines.
#[test]
fn a_line_has_golden_text() {
    let folder = tempfile::tempdir().unwrap();
    let row = delivery(1, Channel::Push, &[State::Created, State::Sent], at("2026-03-28T22:10:00.123Z"));
    let closed = Block::closed(7, 300);
    Files::new(folder.path()).write(&batch(0, &[Block::encode(Stage::Deliver, 0, &[row]), closed])).unwrap();
    let mut texts = Vec::new();
    for path in Files::new(folder.path()).row_files().unwrap() {
        texts.push(fs::read_to_string(path).unwrap());
    }
    for path in Files::new(folder.path()).epoch_files().unwrap() {
        texts.push(fs::read_to_string(path).unwrap());
    }
    insta::assert_snapshot!(texts.concat());
}

#[test]
fn the_writer_writes_files_and_the_index_follows() {
    let folder = tempfile::tempdir().unwrap();
    let log = log(1);
    append(&log, 0, rows_block(0, 10));
    let writer = Running::start(&log, Files::new(folder.path()), params());
    until("it is written", || committed(&log, 0).offset == 1);
    let (files, mut index) = (Files::new(folder.path()), RecordIndex::default());
    assert_eq!(index.refresh(&files).unwrap(), 10);
    append(&log, 0, rows_block(5, 15));
    until("the rest is written", || committed(&log, 0).offset == 2);
    assert_eq!(index.refresh(&files).unwrap(), 5, "repeats are known");
    assert_eq!(index.refresh(&files).unwrap(), 0);
    writer.stop();
    let deliveries = &index.fates().sums()[2];
    assert_eq!((deliveries.created, deliveries.fates[0], deliveries.adds_up()), (15, (Fate::Delivered, 15), true));
}

#[test]
fn history_leads_from_an_event_through_its_group_to_its_deliveries() {
    use tidings_schemas::ids::GroupId;
    use tidings_schemas::lifecycle::Unit;
    let group = GroupId([7; 16]);
    let mut index = RecordIndex::default();
    let told = delivery(1, Channel::Push, &[State::Created, State::Delivered], Instant(30 * DAY_MS + 9));
    let member = |n: u64| {
        let (event, at) = (EventId::new("high", 0, n), Instant(30 * DAY_MS));
        let states = vec![State::Created, State::Merged];
        Row { event, at, epoch: 1, states, unit: Unit::Event, group, user: "u1".to_owned(), ..Row::default() }.sealed()
    };
    let leg =
        Row { unit: Unit::Leg, stage: Stage::Decide, epoch: 1, group, delivery: Default::default(), ..told.clone() };
    let leg = Row { at: Instant(30 * DAY_MS + 5), states: vec![State::Created, State::Queued], ..leg }.sealed();
    for row in [told.clone(), leg.clone(), member(1), member(2)] {
        index.add(row.clone());
        index.add(row);
    }
    let ids = |rows: Vec<&Row>| rows.iter().map(|row| row.row_id).collect::<Vec<_>>();
    let of_second = index.history(&EventId::new("high", 0, 2).to_string()).unwrap();
    assert_eq!(ids(of_second), [member(2).row_id, leg.row_id]);
    let of_group = index.history(&group.to_string()).unwrap();
    assert_eq!(of_group.len(), 4, "both members, the leg, the delivery");
    assert_eq!(ids(index.of_user("u1")).len(), 4);
    let error = index.history("like-77").unwrap_err().to_string();
    assert_eq!(error, "expected `e_` and 32 hex digits, found `like-77`");
}

#[test]
fn clickhouse_reads_the_files() {
    let Some(database) = Database::empty("files") else { return };
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Row> = (0..3)
        .map(|n| delivery(n, Channel::Email, &[State::Created, State::Sent], at("2026-03-28T22:10:00.123Z")))
        .collect();
    Files::new(folder.path()).write(&batch(0, &[Block::encode(Stage::Deliver, 0, &rows)])).unwrap();
    let path = Files::new(folder.path()).row_files().unwrap().pop_first().unwrap();
    let text = fs::read_to_string(path).unwrap().replace('\\', "\\\\").replace('\'', "\\'");
    let asked = format!(
        "SELECT day, at, states, channel, delivery, until FROM format(JSONEachRow, '{text}') ORDER BY delivery LIMIT 1"
    );
    let first = rows.iter().min_by_key(|row| row.delivery).unwrap().delivery;
    let expected = format!("2026-03-28\t2026-03-28 22:10:00.123000000\t['created','sent']\temail\t{first}\t\\N");
    assert_eq!(database.value(&asked), expected);
}
