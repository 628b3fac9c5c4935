//! Calls that take the whole process along: the processes are children, and this is who starts them again.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tidings_pipeline::checkpoint::Checkpoints;
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_pipeline::runtime::coordinator::{Observer, Status, Surroundings, run};
use tidings_pipeline::runtime::crumbs::Crumbs;
use tidings_pipeline::runtime::watch::Watchdog;
use tidings_schemas::block::{Block, Kind};
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_schemas::reason::Reason;
use tidings_sinks::log::embedded::EmbeddedLog;
use tidings_sinks::log::{Append, Log, TopicPartition};

use crate::child::Killed;
use crate::world::{World, create_topics};

const FOLDER: &str = "TIDINGS_TEST_DEATHS";

/// How long a child's watchdog bears a standstill. A step is a few milliseconds' work, so that a slow machine is not
/// taken for one that stands still.
const STILL: Duration = Duration::from_secs(10);

/// How long a child may take to come to its end, one way or the other: a healthy one takes a second or two.
const END_MAX: Duration = Duration::from_secs(300);

/// One in ordinary work, one in a replay among its neighbours, two alone.
const DEATHS_MAX: usize = 4;

/// Events of the workload: some before and behind what kills, of several people.
const EVENTS: usize = 40;

#[expect(clippy::disallowed_methods, reason = "where a child's folder is comes from its parent")]
fn folder() -> Option<String> {
    std::env::var(FOLDER).ok()
}

fn open(folder: &Path) -> (Arc<dyn Log>, Arc<SystemClock>) {
    let clock = Arc::new(SystemClock::default());
    let stamp = Arc::clone(&clock);
    (Arc::new(EmbeddedLog::open(&folder.join("log"), Arc::new(move || stamp.wall())).unwrap()), clock)
}

fn write(folder: &Path, kills: &str) {
    let (log, _) = open(folder);
    create_topics(&*log);
    let event = |number: usize| {
        let (user, object) = (number % 6, if number == EVENTS / 2 { kills } else { "photo" });
        let json = format!(r#"{{"id":"e{number}","type":"comment","user_id":"u{user}","object":{{"id":"{object}"}}}}"#);
        let to = TopicPartition { topic: "in.events".into(), partition: u32::try_from(user % 3).unwrap() };
        Append { to, key: Some(format!("u{user}").into()), value: Some(json.into()), headers: vec![] }
    };
    log.append(&(0..EVENTS).map(event).collect::<Vec<_>>()).unwrap();
}

/// Tells of each epoch.
struct Epochs(SyncSender<()>);

impl Observer for Epochs {
    fn rows(&self, _: &[Row]) {
        // Where one is told of already, this one is seen with it.
        let _ = self.0.try_send(());
    }
}

/// What a child does: decides until all of it was said.
#[test]
fn a_child_decides() {
    let Some(folder) = folder() else { return };
    let folder = Path::new(&folder);
    let (log, clock) = open(folder);
    let checkpoints = folder.join("checkpoints");
    let (tell, epochs) = sync_channel(1);
    let around = Surroundings {
        log,
        checkpoints: Checkpoints::in_folder(&checkpoints).unwrap(),
        clock,
        stop: Arc::new(AtomicBool::new(false)),
        status: Arc::new(Status::default()),
        observer: Some(Arc::new(Epochs(tell))),
        older: Arc::new(|_, _| Err("there is one topology".to_owned())),
        accept_divergence: false,
        may_drop: Default::default(),
        crumbs: Some(Crumbs::in_folder(&checkpoints)),
    };
    let plan = World::poisoned(false).plan_of_poison(2);
    let (stop, status) = (Arc::clone(&around.stop), Arc::clone(&around.status));
    let _watched = watch(&status);
    let decides = std::thread::spawn(move || run(&plan, &around));
    // What it decides takes an epoch or two; idle ones follow.
    let mut cut = None;
    let mut all = || {
        let said = status.said_through.load(Ordering::Relaxed);
        let is_under_way = status.ready.load(Ordering::Relaxed) && said > 5;
        is_under_way && said >= *cut.get_or_insert_with(|| status.epoch.load(Ordering::Relaxed))
    };
    // Nobody tells of epochs any more once it has ended.
    while !all() && epochs.recv().is_ok() {}
    stop.store(true, Ordering::Relaxed);
    decides.join().unwrap().unwrap();
}

/// Ends the process when a part of it stands still, until what it returns is let go of.
fn watch(status: &Arc<Status>) -> SyncSender<()> {
    let (status, clock) = (Arc::clone(status), SystemClock::default());
    let (watched, over) = sync_channel(0);
    std::thread::spawn(move || {
        let mut watchdog = Watchdog::new(STILL);
        while over.recv_timeout(watchdog.pause()) == Err(RecvTimeoutError::Timeout) {
            if watchdog.look(clock.elapsed(), &status.pulses.counts()).is_some() {
                std::process::abort();
            }
        }
    });
    watched
}

/// Starts a child; says whether it came to its end alive.
fn lives(folder: &Path) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["deaths::a_child_decides", "--exact"]).env(FOLDER, folder);
    let mut child = Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let (runs, end) = sync_channel::<()>(0);
    child.at_its_end(move || drop(runs));
    assert_eq!(end.recv_timeout(END_MAX), Err(RecvTimeoutError::Disconnected), "it neither decides nor dies");
    child.0.wait().unwrap().success()
}

fn rows(log: &dyn Log) -> Vec<Row> {
    let mut rows = std::collections::BTreeMap::new();
    for partition in 0..2 {
        let at = TopicPartition { topic: "notifications.lifecycle".into(), partition };
        let end = log.range(&at).unwrap().end;
        let (mut reader, mut position) = (log.reader(&at, 0).unwrap(), 0);
        while position < end {
            let batch = reader.poll(1_000, Duration::from_millis(100)).unwrap();
            position = batch.position;
            for record in batch.records {
                let value = record.value.unwrap();
                let block = Block::decode_header(&value).unwrap();
                if block.header.kind == Kind::Rows {
                    rows.extend(block.decode_rows().unwrap().into_iter().map(|row| (row.row_id, row)));
                }
            }
        }
    }
    rows.into_values().collect()
}

#[test]
fn what_takes_the_process_along_is_set_aside_after_two_deaths_at_one_place() {
    // One ends the process, the other is ended by the watchdog.
    for kills in ["fatal_poison", "endless_poison"] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), kills);
        let mut deaths = 0;
        while !lives(folder.path()) {
            deaths += 1;
            assert!(deaths <= DEATHS_MAX, "{kills}: a crash loop");
        }
        // In ordinary work, in a replay with its neighbours, and twice alone; the first two may fall together.
        assert!(deaths >= 2, "{kills}: only {deaths} deaths");
        let (log, _) = open(folder.path());
        let rows = rows(&*log);
        let events: Vec<&Row> = rows.iter().filter(|row| row.unit == Unit::Event).collect();
        let created = events.iter().filter(|row| row.states.contains(&State::Created)).count();
        assert_eq!(created, EVENTS, "{kills}: every event has its story");
        let aside: Vec<&&Row> = events.iter().filter(|row| row.states.contains(&State::Rejected)).collect();
        assert!(aside.len() == 1 && aside[0].reason == Some(Reason::Panicked), "{kills}: {aside:?}");
        let letters = TopicPartition { topic: "notifications.dlq".into(), partition: 0 };
        let letter = log.reader(&letters, 0).unwrap().poll(9, Duration::from_millis(100)).unwrap().records.remove(0);
        let letter = String::from_utf8(letter.value.unwrap().to_vec()).unwrap();
        assert!(letter.contains(kills) && letter.contains("it killed the whole process twice"), "{letter}");
    }
}
