//! Every bench, small: it runs, its answer is right, and the same for any number of workers.

use std::io::Write as _;
use std::sync::Arc;

use tidings_benches::setup::Setup;
use tidings_benches::workload::{Size, Workload};
use tidings_benches::{decide, instructions, p0_latency, record, restore, through_log};
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
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
    let run = record::run(&decided, &clickhouse).unwrap();
    assert_eq!(run.rows, decided.rows);
    assert!(run.notifications > workload.events / 2, "{run:?}");
    let columns: u64 = run.columns.iter().map(|(_, bytes)| bytes).sum();
    assert!(columns > 0 && columns <= run.disk_bytes, "{run:?}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "where the real services are comes from outside")]
fn every_probe_arrives_once_under_a_flood() {
    let given = |name: &str| std::env::var(name).ok();
    let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("tidings");
    let named = (given("TIDINGS_TEST_KAFKA"), given("TIDINGS_TEST_REDIS"), given("TIDINGS_TEST_CLICKHOUSE"));
    let (true, (Some(kafka), Some(redis), Some(clickhouse))) = (binary.is_file(), named) else {
        // Past the harness's capture: a run without services must not look like one with them.
        let said = "SKIPPED every_probe_arrives_once_under_a_flood: set TIDINGS_TEST_KAFKA, TIDINGS_TEST_REDIS and \
                    TIDINGS_TEST_CLICKHOUSE, and build the binary `tidings`";
        let _ = writeln!(std::io::stderr(), "{said}");
        return;
    };
    let services = p0_latency::Services { kafka, redis, clickhouse };
    let run = p0_latency::run(&binary, &services, p0_latency::Size::QUICK, 2).unwrap();
    let sizes: Vec<usize> = run.quiet.arrived.values().chain(run.flooded.arrived.values()).map(Vec::len).collect();
    assert_eq!(sizes, [p0_latency::Size::QUICK.probes as usize; 4]);
    assert!(run.flood_per_second > 0.0, "{run:?}");
}
