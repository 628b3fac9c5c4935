//! The same promises where workers live in several processes: here threads with nothing in common but sockets and
//! the log. Processes that are killed and frozen for real are in `tests/end_to_end/cluster.rs`.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tidings_pipeline::runtime::clock::SystemClock;
use tidings_pipeline::runtime::cluster::{Around, Head, MemberError, Share, serve};
use tidings_pipeline::runtime::coordinator::{DecideError, Status, Surroundings, run_on};
use tidings_pipeline::runtime::crew::{Crew, Ground, Hands, Manned, Post};
use tidings_pipeline::runtime::crumbs::Crumbs;
use tidings_pipeline::runtime::plan::Plan;
use tidings_sinks::log::Log;

use crate::dying::{Death, Moment};
use crate::proxy::{Network, Proxy};
use crate::world::{Decides, World};

/// How long a process may be silent: long enough for a machine that is out of breath.
const SILENCE: Duration = Duration::from_secs(3);

/// Something that happens to the network between process 0 and the others, once so many slices were fed; it heals
/// when process 0 has noticed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disturbance {
    pub(crate) slices: usize,
    pub(crate) network: Network,
}

/// Several processes.
pub(crate) struct Cluster {
    pub(crate) processes: usize,
    /// Workers of each.
    pub(crate) workers: usize,
    pub(crate) disturbances: Vec<Disturbance>,
    /// Process 1 is told to stop, and started again, once so many slices were fed.
    pub(crate) leaves_at: Option<usize>,
    /// The first generation loses somebody once it replays with care.
    flaky: Option<Watched>,
}

impl Cluster {
    fn of(processes: usize, workers: usize) -> Self {
        Self { processes, workers, disturbances: Vec::new(), leaves_at: None, flaky: None }
    }
}

/// A process beside process 0.
struct Member {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), MemberError>>,
}

impl Member {
    fn start(share: Share, plan: Plan, log: Arc<dyn Log>) -> Self {
        let stop: Arc<AtomicBool> = Arc::default();
        let clock = Arc::new(SystemClock::default());
        let around = Around { log, clock, stop: Arc::clone(&stop), status: Arc::default() };
        let listener = TcpListener::bind(&share.hosts[usize::from(share.process)]).unwrap();
        let thread = std::thread::spawn(move || serve(&share, &plan, &around, listener));
        Self { stop, thread }
    }

    fn end(self) -> Result<(), MemberError> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The processes of one life of process 0.
pub(crate) struct Processes {
    proxy: Proxy,
    members: Vec<(Share, Member)>,
    plan: Plan,
    log: Arc<dyn Log>,
    waiting: Vec<Disturbance>,
    is_disturbed: bool,
    leaves_at: Option<usize>,
}

/// How many workers each generation had, and where a careful replay leaves crumbs.
#[derive(Clone)]
struct Watched {
    workers: Arc<Mutex<Vec<usize>>>,
    crumb: PathBuf,
}

/// A crew that is watched, and of which the first loses somebody.
struct Flaky {
    crew: Box<dyn Crew>,
    watched: Watched,
}

impl Crew for Flaky {
    fn hands(&mut self) -> &mut dyn Hands {
        self.crew.hands()
    }

    fn gather(&mut self, around: &Surroundings) -> Result<bool, DecideError> {
        self.crew.gather(around)
    }

    fn here(&self, workers: usize) -> usize {
        self.crew.here(workers)
    }

    fn man(&mut self, posts: Vec<Post>, ground: &Ground<'_>) -> Result<Manned, DecideError> {
        self.watched.workers.lock().unwrap().push(posts.len());
        self.crew.man(posts, ground)
    }

    fn lost(&self) -> Option<String> {
        let is_first = self.watched.workers.lock().unwrap().len() == 1;
        (is_first && self.watched.crumb.exists()).then(|| "process 1 is gone: it was closed".to_owned())
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Processes {
    /// Starts all others; beside them, what process 0 does with `plan`.
    pub(crate) fn start(cluster: &Cluster, plan: Plan, around: Surroundings, log: Arc<dyn Log>) -> (Self, Decides) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::before(listener.local_addr().unwrap());
        let mut hosts = vec![proxy.address.to_string()];
        hosts.extend((1..cluster.processes).map(|_| free().to_string()));
        let share = |process: usize| Share {
            process: u16::try_from(process).unwrap(),
            hosts: hosts.clone(),
            workers: cluster.workers,
            silence: SILENCE,
        };
        let plan = Plan { workers: cluster.workers * cluster.processes, ..plan };
        let start = |process| {
            let share = share(process);
            (share.clone(), Member::start(share, plan.clone(), Arc::clone(&log)))
        };
        let members = (1..cluster.processes).map(start).collect();
        let head = Head::open(share(0), &plan, listener).unwrap();
        let (own, flaky) = (plan.clone(), cluster.flaky.clone());
        let hire = move || match &flaky {
            None => head.crew(),
            Some(watched) => Box::new(Flaky { crew: head.crew(), watched: watched.clone() }),
        };
        let decides = Box::new(move || run_on(&own, &around, hire));
        let (waiting, leaves_at) = (cluster.disturbances.clone(), cluster.leaves_at);
        (Self { proxy, members, plan, log, waiting, is_disturbed: false, leaves_at }, decides)
    }

    /// Does what is due after so many slices; says whether something is under way.
    pub(crate) fn disturb(&mut self, slices: usize, head: &Status) -> bool {
        let is_ready = head.ready.load(Ordering::Relaxed);
        if self.is_disturbed && !is_ready {
            self.proxy.set(Network::Heals);
            self.is_disturbed = false;
        }
        if let Some(at) = self.waiting.iter().position(|due| due.slices <= slices && is_ready && !self.is_disturbed) {
            self.proxy.set(self.waiting.remove(at).network);
            self.is_disturbed = true;
        }
        if self.leaves_at.take_if(|at| *at <= slices).is_some() {
            let (share, member) = self.members.remove(0);
            member.end().unwrap();
            let again = Member::start(share.clone(), self.plan.clone(), Arc::clone(&self.log));
            self.members.push((share, again));
        }
        self.is_disturbed
    }

    /// Ends what is left.
    pub(crate) fn end(self) {
        for (_, member) in self.members {
            member.end().unwrap();
        }
    }
}

#[test]
fn several_processes_say_what_one_would() {
    for (processes, workers) in [(2, 1), (2, 2), (3, 1)] {
        let mut world = World::new();
        world.cluster = Some(Cluster::of(processes, workers));
        assert!(!world.run(None, 0));
        world.compare(&format!("{processes} processes of {workers} workers"));
    }
}

#[test]
fn a_network_that_is_cut_or_falls_silent_costs_a_generation_and_nothing_else() {
    for network in [Network::IsCut, Network::FallsSilent] {
        let mut world = World::new();
        let disturbances = [2, 5].map(|slices| Disturbance { slices, network }).to_vec();
        world.cluster = Some(Cluster { disturbances, ..Cluster::of(2, 1) });
        assert!(!world.run(None, 0));
        assert!(world.generations() >= 3, "{network:?}: {} generations", world.generations());
        world.compare(&format!("{network:?}"));
    }
}

#[test]
fn process_0_dies_and_the_others_stay() {
    let at = |topic: &str, nth, moment| Death::Append { topic: topic.to_owned(), nth, moment };
    for deaths in [
        vec![at("notifications.cuts", 1, Moment::After)],
        vec![at("notifications.cuts", 6, Moment::Before), at("notifications.cuts", 9, Moment::After)],
        vec![at("notifications.lifecycle", 3, Moment::Torn(1)), Death::Checkpoint { nth: 2, moment: Moment::After }],
    ] {
        let name = format!("{deaths:?}");
        let mut world = World::new();
        world.cluster = Some(Cluster::of(2, 1));
        for death in deaths {
            assert!(world.run(Some(death), 0), "{name}: a death did not happen, so nothing was proved");
        }
        assert!(!world.run(None, 0));
        // The rest of the night in one process of two workers, upon what several left.
        world.compare(&name);
    }
}

#[test]
fn state_goes_from_one_process_to_several_and_back() {
    let mut world = World::new();
    world.pause_after(3);
    assert!(!world.run(None, 2));
    world.cluster = Some(Cluster::of(2, 1));
    world.pause_after(6);
    assert!(!world.run(None, 0));
    world.cluster = Some(Cluster::of(3, 2));
    world.pause_after(9);
    assert!(!world.run(None, 0));
    world.cluster = None;
    world.go_on();
    assert!(!world.run(None, 1));
    world.compare("1x2, 2x1, 3x2, 1x1");
}

#[test]
fn a_process_that_is_told_to_stop_leaves_nothing_to_be_replayed() {
    let mut world = World::new();
    world.cluster = Some(Cluster { leaves_at: Some(5), ..Cluster::of(2, 1) });
    assert!(!world.run(None, 0));
    assert_eq!((world.generations(), world.replayed), (2, 0));
    world.compare("process 1 left and came back");
}

#[test]
fn what_kills_its_operator_elsewhere_is_set_aside() {
    let mut world = World::poisoned(false);
    world.cluster = Some(Cluster::of(2, 1));
    assert!(!world.run(None, 0));
    world.compare("poison, 2x1");
    assert_eq!(crate::killed(&world).len(), 5);
}

// The death may have been a call's: whoever replays alone leaves a crumb.
#[test]
fn what_is_replayed_after_a_process_died_of_it_is_replayed_by_process_0_alone() {
    let mut world = World::new();
    let death = Death::Append { topic: "notifications.lifecycle".to_owned(), nth: 4, moment: Moment::Before };
    assert!(world.run(Some(death), 2));
    let folder = tempfile::tempdir().unwrap();
    world.crumbs = Some(Crumbs::in_folder(folder.path()));
    let watched = Watched { workers: Arc::default(), crumb: folder.path().join("crumb") };
    world.cluster = Some(Cluster { flaky: Some(watched.clone()), ..Cluster::of(2, 1) });
    assert!(!world.run(None, 0));
    assert_eq!(*watched.workers.lock().unwrap(), [2, 1, 2]);
    world.compare("lost in the middle of a replay");
}

#[test]
fn what_two_older_topologies_decided_is_drained_by_process_0_alone() {
    let mut world = World::new();
    world.cluster = Some(Cluster::of(2, 1));
    world.pause_after(3);
    assert!(!world.run(None, 0));
    world.take_out(crate::GONE, crate::GONE);
    let death = Death::Append { topic: "notifications.cuts".to_owned(), nth: 4, moment: Moment::After };
    assert!(world.run(Some(death), 0));
    world.damage_newest_manifest();
    assert!(!world.run(None, 0));
    world.compare("damaged between two topologies");
}
