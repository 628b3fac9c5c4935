//! Workers of one run of decide in several processes.
//!
//! # Cast
//! *Process 0* has everything that there is one of: the coordinator, the cut log's writer, egress, the keeper, and
//! its own workers ([`Head`]). The *others* have workers only: their share of the sources' partitions, and the state
//! of their key groups ([`serve`]). A *control connection* joins each of them to process 0, a *data connection* each
//! two of them: the workers' exchange, which is timely's. The coordinator does not know where a worker lives.
//!
//! # Protocol
//! A generation, step by step:
//! 1. Every other process calls process 0 and says what it is; one that differs (build, topology, calendar data, the
//!    version of timely, how many processes and workers) is refused, in words that name what differs.
//! 2. Process 0 waits until all are there. Only then it appends `begin`, and reads log and checkpoint.
//! 3. It tells each process its workers, what they read and from where, and sends the state of their key groups. The
//!    others need no checkpoint store.
//! 4. Once all have said that they are loaded, all are told to start. Who has the higher number calls the other for a
//!    data connection, and names the generation: the offset of its `begin`, which nobody had before.
//! 5. Cuts go down, positions and what epochs say come up. An epoch is done once every worker of every process has
//!    said so; process 0 says it to the outside.
//! 6. Whoever is gone, silent for the watchdog's limit, or cut off ends the generation in every process that hears
//!    of it. Nothing is repaired in place: the others call process 0 again, and step 1 follows.
//! 7. A process that is told to stop says so. Process 0 ends the generation with a checkpoint, so that nothing is
//!    replayed, and waits for the next one.
//!
//! # Invariants
//! - Only process 0 speaks to the outside, and only behind its own fence in the cut log. What another process does
//!   after it was given up reaches nobody: its control connection is closed.
//! - No data connection joins two generations.
//! - What another topology decided is drained by process 0 alone, and so is what is replayed after a process died in
//!   the middle of it: that death may have been a call's, and only process 0 leaves a crumb.
//!
//! # If it dies at step n
//! Before step 5 nothing was decided, and the others begin again. In step 5 it is as every death in the middle of an
//! epoch: the next generation replays; process 0 waits for as long as it takes until all are there. What a stop that
//! is cut short leaves (step 7) is replayed.
//!
//! # Not promised
//! That a run goes on without one of its processes: where all must be there, one that stays away stops decide, though
//! neither the critical path nor delivery. That somebody on the network between them is harmless: connections carry no
//! secrets and are neither encrypted nor authenticated, and they carry people's data. Both ports belong on a private
//! network.

mod head;
mod line;
mod member;
mod switch;
mod wire;

use std::time::Duration;

use tidings_operators::harness::cluster::ENGINE;

use self::wire::Hello;
use super::plan::Plan;

pub use head::Head;
pub use member::{Around, MemberError, serve};

/// A process's share of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its number, from 0.
    pub process: u16,
    /// Where each process is called, by number: `host:port`.
    pub hosts: Vec<String>,
    /// Workers of each process.
    pub workers: usize,
    /// How long another process may be silent before it is given up. Its own watchdog bears as much.
    pub silence: Duration,
}

impl Share {
    /// How many processes there are.
    #[must_use]
    pub fn processes(&self) -> u16 {
        u16::try_from(self.hosts.len()).unwrap_or(u16::MAX)
    }
}

fn hello(share: &Share, plan: &Plan) -> Hello {
    Hello {
        process: share.process,
        processes: share.processes(),
        workers: u16::try_from(share.workers).unwrap_or(u16::MAX),
        build: plan.build,
        engine: ENGINE.to_owned(),
        topology: plan.topology_hash(),
        calendar: plan.rules.calendar.hash(),
    }
}
