//! One run of decide in two real processes: killed, frozen, refused, stopped.

use std::net::SocketAddr;
use std::process::Command;

use rustix::process::{Signal, kill_process};

use crate::checks::decisions_were_taken_once;
use crate::mistakes::{events, recorded};
use crate::world::{PATIENCE, Running, World, free_address, until};

/// What tests bear: long enough for a machine that is out of breath, short enough to wait for. Process 0 bears more, so
/// that once it misses another, that one has stood still for longer than its own watchdog bears.
const WATCHDOGS: [(&str, &str); 2] = [("0", "15s"), ("1", "10s")];

fn share(world: &World, process: &str, hosts: &[SocketAddr; 2]) -> Command {
    let own = hosts[process.parse::<usize>().unwrap()];
    let mut command = world.share_command(process, hosts, own);
    let (_, watchdog) = WATCHDOGS.into_iter().find(|(number, _)| *number == process).unwrap();
    command.args(["--watchdog", watchdog]);
    command
}

fn up(world: &World, process: &str, hosts: &[SocketAddr; 2]) -> Running {
    Running::start(share(world, process, hosts))
}

/// Waits for a process that ends by itself; its exit code, and what it said.
fn ended(mut running: Running) -> (Option<i32>, String) {
    (running.end().code(), running.said())
}

#[test]
fn two_processes_decide_together_and_whichever_is_killed_or_frozen_comes_back() {
    let name = "two_processes_decide_together_and_whichever_is_killed_or_frozen_comes_back";
    let Some(mut world) = World::new(name) else { return };
    world.create_topics();
    let _providers = world.providers();
    let hosts = [free_address(), free_address()];
    world.write(&events(100));
    let mut zero = up(&world, "0", &hosts);
    let readyz = format!("{}/readyz", zero.console().unwrap());
    let not_ready = || world.get(&readyz).err().unwrap_or_default();
    let waits = format!("decide waits for process 1 ({})", hosts[1]);
    until("it says whom it waits for", PATIENCE, not_ready, || not_ready().contains(&waits));
    let mut one = up(&world, "1", &hosts);
    let all = |zero: &Running, one: &Running, count: u64| {
        let said = || format!("process 0:\n{}\nprocess 1:\n{}", zero.said(), one.said());
        until(&format!("{count} events are recorded"), PATIENCE, said, || recorded(&world, count));
    };
    all(&zero, &one, 100);
    let generations = |zero: &Running| world.metric(zero, "tidings_generations_total").unwrap();
    assert_eq!(generations(&zero), 1);

    one.kill();
    world.write(&events(200)[100..]);
    one = up(&world, "1", &hosts);
    all(&zero, &one, 200);
    assert!(generations(&zero) >= 2);

    zero.kill();
    world.write(&events(300)[200..]);
    zero = up(&world, "0", &hosts);
    all(&zero, &one, 300);

    let before = generations(&zero);
    kill_process(one.pid(), Signal::STOP).unwrap();
    world.write(&events(400)[300..]);
    zero.until("process 0 misses it", |heard| heard.said.contains("process 1 is gone: silence"));
    kill_process(one.pid(), Signal::CONT).unwrap();
    let (_, said) = ended(one);
    assert!(said.contains("this process was frozen for 1"), "{said}");
    one = up(&world, "1", &hosts);
    all(&zero, &one, 400);
    assert!(generations(&zero) > before);

    let (status, said) = zero.stop();
    assert!(status.success(), "{status}\n{said}");
    let (status, said) = one.stop();
    assert!(status.success(), "{status}\n{said}");
    decisions_were_taken_once(&world);
    assert_eq!(world.number("SELECT count() FROM event_fates"), 400);
    assert_eq!(world.number("SELECT countIf(NOT adds_up) FROM fates"), 0);
}

#[test]
fn a_process_that_leaves_in_good_order_leaves_nothing_to_be_replayed() {
    let Some(mut world) = World::new("a_process_that_leaves_in_good_order_leaves_nothing_to_be_replayed") else {
        return;
    };
    world.create_topics();
    let _providers = world.providers();
    let hosts = [free_address(), free_address()];
    world.write(&events(100));
    let zero = up(&world, "0", &hosts);
    let one = up(&world, "1", &hosts);
    until("events are recorded", PATIENCE, || zero.said(), || recorded(&world, 100));
    let (status, said) = one.stop();
    assert!(status.success(), "{status}\n{said}");
    let one = up(&world, "1", &hosts);
    world.write(&events(200)[100..]);
    until("more events are recorded", PATIENCE, || zero.said(), || recorded(&world, 200));
    let metric = |name| world.metric(&zero, name).unwrap();
    assert_eq!((metric("tidings_generations_total"), metric("tidings_replayed_epochs_total")), (2, 0));
    for process in [zero, one] {
        let (status, said) = process.stop();
        assert!(status.success(), "{status}\n{said}");
    }
    decisions_were_taken_once(&world);
}

#[test]
fn a_process_of_another_topology_is_refused_and_told_what_differs() {
    let Some(mut world) = World::new("a_process_of_another_topology_is_refused_and_told_what_differs") else { return };
    world.create_topics();
    let _providers = world.providers();
    let hosts = [free_address(), free_address()];
    let zero = up(&world, "0", &hosts);
    world.write_topology(|text| text.replace("window: 5s", "window: 6s"));
    let (code, said) = ended(Running::spawn(share(&world, "1", &hosts)));
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("process 1 cannot work with process 0: its topology is "), "{said}");
    assert!(said.contains("give both the same files and variables"), "{said}");
    let mut two_workers = share(&world, "1", &hosts);
    two_workers.args(["--workers", "2"]);
    let (code, said) = ended(Running::spawn(two_workers));
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("it runs with --workers 2, process 0 with --workers 1; its topology is "), "{said}");
    // Nobody is worse off for it.
    world.write_topology(|text| text);
    world.write(&events(10));
    let one = up(&world, "1", &hosts);
    until("events are recorded", PATIENCE, || zero.said(), || recorded(&world, 10));
    drop((zero, one));
}
