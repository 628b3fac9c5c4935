//! Every bench, small: it runs, its answer is right, and the same for any number of workers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidings_benches::setup::Setup;
use tidings_benches::workload::{Size, Workload};
use tidings_benches::{
    Services, decide, first_send, growth, instructions, memory, p0_latency, peers, record, restore, soak, through_log,
};
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_schemas::time::Instant;
use tidings_sinks::log::Log;
use tidings_sinks::log::memory::MemoryLog;

fn quick() -> (Setup, Workload) {
    let setup = Setup::example().unwrap();
    let workload = Workload::new(&setup, Size::QUICK).unwrap();
    (setup, workload)
}

#[test]
fn the_workload_is_what_its_description_says() {
    let (_, workload) = quick();
    let mean = workload.event_bytes / workload.events;
    assert!((280..=420).contains(&mean), "an event has {mean} bytes");
}

#[test]
fn decide_from_memory_answers_the_same_with_one_worker_and_two_with_checkpoints_and_without() {
    let (setup, workload) = quick();
    let folder = tempfile::tempdir().unwrap();
    let one = decide::run(&setup, &workload, 1, None).unwrap();
    let two = decide::run(&setup, &workload, 2, None).unwrap();
    let kept = decide::run(&setup, &workload, 2, Some(folder.path())).unwrap();
    assert_eq!(one.hash, two.hash, "{one:?}\n{two:?}");
    assert_eq!(one.hash, kept.hash);
    assert!(one.said > workload.events / 2 && one.rows > workload.events, "{one:?}");
}

#[test]
fn growth_answers_the_same_each_time_and_at_each_point_what_it_must() {
    let setup = Setup::example().unwrap();
    let points = growth::points();
    let size = Size::QUICK;
    let base = growth::run(&setup, size, &points[0], 2, None).unwrap();
    let named: BTreeMap<&str, u64> = points[1..]
        .iter()
        .map(|point| (point.name, growth::run(&setup, size, point, 1, Some(base.hash)).unwrap().named))
        .collect();
    assert!(named["users 16,384"] < base.named && base.named < named["users 16,777,216"], "{base:?}, {named:?}");
    assert!(named["hot 95 %"] < base.named / 10, "{base:?}, {named:?}");
    assert_eq!((named["2 workers"], named["partitions 64"]), (base.named, base.named));
}

#[test]
fn what_is_counted_by_part_answers_what_a_worker_answers() {
    let (setup, workload) = quick();
    let counted = instructions::decide(&setup, &workload).unwrap();
    let run = decide::run(&setup, &workload, 1, None).unwrap();
    assert_eq!((counted.hash, counted.said, counted.rows), (run.hash, run.said, run.rows));
    assert_eq!(counted.images, run.images);
}

#[test]
fn a_restore_puts_the_same_state_back_onto_one_worker_and_onto_two() {
    let (setup, workload) = quick();
    let folder = tempfile::tempdir().unwrap();
    let decided = decide::run(&setup, &workload, 1, Some(folder.path())).unwrap();
    let manifest = decided.checkpoint.unwrap();
    let one = restore::run(&setup, folder.path(), &manifest, 1).unwrap();
    let two = restore::run(&setup, folder.path(), &manifest, 2).unwrap();
    assert!(one.keys > workload.events, "{one:?}");
    assert_eq!((one.keys, one.hash), (two.keys, two.hash));
}

#[test]
fn the_whole_stage_gives_every_event_its_row() {
    let (setup, workload) = quick();
    for workers in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let clock = SystemClock::default();
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new(Arc::new(move || clock.wall())).unwrap());
        through_log::run(&setup, &workload, workers, &log, "bench", folder.path()).unwrap();
    }
}

#[test]
fn a_soak_hits_every_bound_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut told = 0;
    let size = soak::Size::QUICK;
    let run = soak::run(size, 2, folder.path(), |_| {
        told += 1;
        Ok(())
    });
    let run = run.unwrap();
    run.judge(size).unwrap();
    assert_eq!(run.samples.len(), told);
    assert!(run.samples.iter().any(|sample| sample.keys > 0 && sample.backlog > 0), "{:?}", run.samples);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "where the real services are comes from outside")]
fn every_row_is_in_the_record_once() {
    let Ok(clickhouse) = std::env::var("TIDINGS_TEST_CLICKHOUSE") else {
        let said = "SKIPPED every_row_is_in_the_record_once: set TIDINGS_TEST_CLICKHOUSE";
        let _ = writeln!(std::io::stderr(), "{said}");
        return;
    };
    let (setup, workload) = quick();
    let decided = record::decide(&setup, &workload).unwrap();
    assert_eq!(decided.rows, decide::run(&setup, &workload, 1, None).unwrap().rows);
    // The run itself refuses a row that is missing or there twice, and an epoch that is not complete.
    let run = record::run(&decided, &clickhouse, 2).unwrap();
    assert_eq!(run.rows, decided.rows);
    assert!(run.notifications > workload.events / 2, "{run:?}");
    let columns: u64 = run.columns.iter().map(|(_, bytes)| bytes).sum();
    assert!(columns > 0 && columns <= run.disk_bytes, "{run:?}");
}

/// Flink's answers are compared with tidings' in the bench itself, where there is a Java; here with a count by hand.
#[test]
fn the_peers_job_says_what_counting_by_hand_says() {
    let (setup, folder) = (peers::setup().unwrap(), tempfile::tempdir().unwrap());
    let made = peers::make(&setup, peers::Size::QUICK, folder.path()).unwrap();
    let (_, answers) = peers::tidings_from_files(&setup, &made, 2, folder.path()).unwrap();

    let mut known = BTreeSet::new();
    let mut open: BTreeMap<_, (Instant, u64, BTreeSet<String>)> = BTreeMap::new();
    let mut counted = Vec::new();
    for record in made.workload.records.values().flat_map(|records| records.iter()) {
        let event: serde_json::Value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        let text = |place: &str| event.pointer(place).unwrap().as_str().unwrap().to_owned();
        if !known.insert(text("/id")) {
            continue;
        }
        let group = (text("/user_id"), text("/type"), text("/object/id"));
        let now: Instant = text("/time").parse().unwrap();
        if open.get(&group).is_some_and(|(opened, ..)| now >= opened.after(Duration::from_secs(300))) {
            counted.push((group.clone(), open.remove(&group).unwrap()));
        }
        let (_, activities, actors) = open.entry(group).or_insert((now, 0, BTreeSet::new()));
        *activities += 1;
        actors.insert(text("/actor/id"));
    }
    counted.extend(open);
    let said = |((user, event_type, object), (_, activities, actors)): (_, (_, u64, BTreeSet<String>))| {
        (user, event_type, object, activities, actors.len() as u64)
    };
    let mut counted: peers::Answers = counted.into_iter().map(said).collect();
    counted.sort();
    peers::agree(&answers, &counted).unwrap();
    assert!(counted.iter().any(|(.., actors)| *actors > 5), "no group is worth a sentence");
}

/// Where the real services and the binary are; without them says so, past the harness's capture: a run without services
/// must not look like one with them.
#[expect(clippy::disallowed_methods, reason = "where the real services are comes from outside")]
fn installed(test: &str) -> Option<(Services, PathBuf)> {
    let given = |name: &str| std::env::var(name).ok();
    let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("tidings");
    let named = (given("TIDINGS_TEST_KAFKA"), given("TIDINGS_TEST_REDIS"), given("TIDINGS_TEST_CLICKHOUSE"));
    let (true, (Some(kafka), Some(redis), Some(clickhouse))) = (binary.is_file(), named) else {
        let said =
            "set TIDINGS_TEST_KAFKA, TIDINGS_TEST_REDIS and TIDINGS_TEST_CLICKHOUSE, and build the binary `tidings`";
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {said}");
        return None;
    };
    Some((Services { kafka, redis, clickhouse }, binary))
}

#[test]
fn a_message_after_a_kill_is_sent_by_the_process_that_follows() {
    let Some((services, binary)) = installed("a_message_after_a_kill_is_sent_by_the_process_that_follows") else {
        return;
    };
    let sends = first_send::run(&binary, &services, first_send::Size::QUICK, 2).unwrap();
    assert_eq!(sends.values().map(Vec::len).collect::<Vec<_>>(), [1, 1], "{sends:?}");
}

#[test]
fn every_probe_arrives_once_under_a_flood() {
    let Some((services, binary)) = installed("every_probe_arrives_once_under_a_flood") else { return };
    let run = p0_latency::run(&binary, &services, p0_latency::Size::QUICK, 2).unwrap();
    let sizes: Vec<usize> = run.quiet.arrived.values().chain(run.flooded.arrived.values()).map(Vec::len).collect();
    assert_eq!(sizes, [p0_latency::Size::QUICK.probes as usize; 4]);
    assert!(run.flood_per_second > 0.0, "{run:?}");
}

#[test]
fn one_more_operator_decides_the_same_and_keeps_a_key_of_every_event_that_passes() {
    let (setup, workload) = quick();
    let without = instructions::decide(&setup, &workload).unwrap();
    let with = instructions::decide(&setup.with_one_more().unwrap(), &workload).unwrap();
    assert_eq!((with.said, with.rows), (without.said, without.rows));
    assert!(with.images > without.images + workload.events / 2, "{with:?}, {without:?}");
}

#[test]
fn a_key_takes_memory_and_a_profile_that_says_nothing_takes_none() {
    for kind in memory::Kind::ALL {
        // Tests share their process: only that the keys are made, and none too many, can be told.
        let bytes = memory::measure(kind, 2_000).unwrap();
        assert!(bytes < 100_000.0, "{kind:?}: {bytes}");
    }
}
