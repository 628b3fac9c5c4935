//! The engine: runs any operators on any number of workers, the same way every time.
//!
//! # Cast
//! A *cut* ends an epoch: it says how far each partition is read, what time it is, and under which
//! rules. A *worker* is a thread of timely with every operator of the chain and the state of its key
//! groups. A *feed* reads one partition. The *host* (the `pipeline` crate) makes cuts, and takes what
//! epochs say; it never names timely.
//!
//! # Protocol
//! Timely's time is the epoch's number.
//! 1. Each worker polls its feeds ahead of the cut, within a bound, and reports how far they came.
//! 2. The host broadcasts a cut. Each worker reads its feeds up to the cut's ends (a replay reads
//!    what it has not yet), parses under the cut's rules, and sends blocks of one partition to the
//!    worker that owns the users, at time e; then it lets go of e.
//! 3. When timely's frontier says that nobody can send at e any more, each worker runs e through the
//!    whole chain in canonical order ([`chain`]) and hands the host the epoch's output and delta.
//!
//! # Invariants
//! - Epoch e sees nothing of e + 1: blocks are stashed by time, epochs run one after the other.
//! - One exchange: after it, all operators of a user run on one worker, one after the other.
//! - What a worker says of an epoch is a function of the cut and of the state before it. Fuel, batch
//!   size, number of workers and arrival order decide nothing.
//! - A timer set during e for an instant not after its stream time fires in e + 1, once.
//!
//! # If it dies at step n
//! Nothing here is durable. The host replays the logged cuts through the same steps, from the newest
//! checkpoint; see `tidings_pipeline`'s recovery.
//!
//! # Not promised
//! That an epoch is short. Whoever wants latency cuts often; whoever floods one user makes that
//! user's worker the slowest.

pub mod aside;
pub(crate) mod book;
pub(crate) mod buffers;
pub mod chain;
pub mod cluster;
pub mod dataflow;
pub mod delta;
pub(crate) mod drafts;
pub mod dropped;
pub(crate) mod entry;
pub mod feed;
pub(crate) mod index;
pub mod notes;
pub mod ordinal;
pub mod output;
pub(crate) mod profiles;
pub mod pulse;
pub(crate) mod saying;
pub(crate) mod shelves;
pub(crate) mod slab;
pub(crate) mod spread;
pub(crate) mod stage;
pub mod table;
pub(crate) mod timers;
pub(crate) mod users;
pub mod worker;

pub use profiles::PROFILES;
pub use stage::DUE_PER_GROUP_MAX;
