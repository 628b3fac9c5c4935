//! Processes that stand still: who notices, and that nothing comes of it.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tidings_schemas::channel::Priority;

use crate::mistakes::{RUN, events, recorded};
use crate::world::{PATIENCE, Running, World, until};

/// What tests bear: long enough for a machine that is out of breath, short enough to wait for.
const WATCHDOG: [&str; 2] = ["--watchdog", "10s"];

fn run(world: &World, more: &[&str]) -> Running {
    Running::spawn(world.tidings(&[&RUN[..], &WATCHDOG, more].concat()))
}

/// The child of a supervisor, the newest.
fn child(said: &str) -> Option<Pid> {
    let (_, rest) = said.rsplit_once("started as process ")?;
    Pid::from_raw(rest.lines().next()?.parse().ok()?)
}

#[test]
fn a_process_that_was_frozen_ends_when_it_awakes() {
    let Some(mut world) = World::new("a_process_that_was_frozen_ends_when_it_awakes") else { return };
    world.create_topics();
    let _providers = world.providers();
    let mut running = run(&world, &[]);
    running.up();
    let console = running.console().unwrap();
    kill_process(running.pid(), Signal::STOP).unwrap();
    let frozen = world.get_within(&console, Duration::from_secs(12));
    assert!(frozen.is_err(), "{frozen:?}");
    kill_process(running.pid(), Signal::CONT).unwrap();
    let status = running.end();
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()));
    assert!(running.said().contains("this process was frozen for 1"), "{}", running.said());
}

#[test]
fn a_supervisor_replaces_what_is_killed_and_what_is_frozen() {
    let Some(mut world) = World::new("a_supervisor_replaces_what_is_killed_and_what_is_frozen") else { return };
    world.create_topics();
    let _providers = world.providers();
    world.write(&events(100));
    let running = run(&world, &["--supervise"]);
    until("events are recorded", PATIENCE, || running.said(), || recorded(&world, 100));
    for (signal, events_before) in [(Signal::KILL, 100), (Signal::STOP, 200)] {
        let before = child(&running.said()).unwrap();
        kill_process(before, signal).unwrap();
        running.until("another is started", |heard| child(&heard.said).is_some_and(|child| child != before));
        assert!(test_kill_process(before).is_err(), "{before:?} still lives");
        world.write(&events(events_before + 100)[events_before..]);
        let all = events_before as u64 + 100;
        until("new events are recorded", PATIENCE, || running.said(), || recorded(&world, all));
    }
    assert!(running.said().contains("the process gave no sign of life for 12s and was killed"), "{}", running.said());
    let last = child(&running.said()).unwrap();
    let (status, said) = running.stop();
    assert!(status.success(), "{status}\n{said}");
    assert!(test_kill_process(last).is_err(), "it left its child behind\n{said}");
    assert_eq!(world.number("SELECT count() FROM event_fates"), 300);
}

#[test]
fn a_process_whose_supervisor_is_gone_stops() {
    let Some(mut world) = World::new("a_process_whose_supervisor_is_gone_stops") else { return };
    world.create_topics();
    let _providers = world.providers();
    let running = run(&world, &["--supervise"]);
    running.up();
    let child = child(&running.said()).unwrap();
    running.kill();
    until("the child is gone", PATIENCE, String::new, || test_kill_process(child).is_err());
}

#[test]
fn a_supervisor_ends_with_a_process_that_is_refused() {
    let Some(mut world) = World::new("a_supervisor_ends_with_a_process_that_is_refused") else { return };
    let _providers = world.providers();
    let mut running = run(&world, &["--supervise"]);
    let status = running.end();
    assert_eq!(status.code(), Some(78), "{}", running.said());
    let missing = format!("topic `{}` does not exist", world.topics.events(Priority::High));
    assert!(running.said().contains(&missing), "{}", running.said());
}
