//! The local console: a page on which one watches events arrive, sees what is decided, and asks why.
//!
//! # Cast
//! The runtime *observes*: it hands over events, rows, lane records and profiles as they come. A
//! *memory* keeps the newest of them, bounded. The *server* answers the page and the command line.
//!
//! # Invariants
//! - Observing never waits: it copies into the memory under a short lock. What nobody looks at costs
//!   no more than that, because stories are told when somebody asks.
//! - A connection holds no queue. It asks the memory what changed since the version that it has; a
//!   slow one gets each event once, in its newest state, and one too far behind is told to `resync`.
//! - Memory is bounded by [`EVENTS_KEPT_MAX`]; the page says how many were seen and how many are kept.
//!
//! It listens on loopback and has no login: requests must name it by an address or `localhost` (a
//! name could be pointed here by another site), and changes must come as JSON (which another site's
//! form cannot send).

mod http;
mod memory;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tidings_schemas::channel::Channel;
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::Row;
use tidings_schemas::profile::Profile;
use tidings_schemas::time::Instant;
use tokio::sync::watch;

use crate::explain::record::Older;
use memory::Memory;
pub use memory::{EVENTS_KEPT_MAX, PEOPLE_KEPT_MAX};

/// Appends an event to the log.
pub trait Emit: Send + Sync {
    /// Appends `event`, a JSON object that fits the schema, to the topic of its priority; says which
    /// event it became.
    fn emit(&self, event: Vec<u8>) -> BoxFuture<'_, Result<EventId, String>>;
}

/// What people received: the simulated providers' inbox.
pub trait Inbox: Send + Sync {
    /// The newest messages as a JSON array, in the shape of the simulated providers'.
    fn messages(&self) -> BoxFuture<'_, Result<serde_json::Value, String>>;
}

/// Whether the runtime can do its work.
pub trait Health: Send + Sync {
    /// Why it is not ready, if it is not.
    fn not_ready(&self) -> Option<String>;
    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// What a console is built with.
pub struct Parts {
    /// Takes events in.
    pub emit: Arc<dyn Emit>,
    /// Shows what people received.
    pub inbox: Arc<dyn Inbox>,
    /// Says how the runtime is.
    pub health: Arc<dyn Health>,
    /// Stream time.
    pub clock: Arc<dyn Fn() -> Instant + Send + Sync>,
    /// How many times faster than the wall clock it runs.
    pub speed: u32,
    /// Channels of the types that name their own in the policies.
    pub type_channels: BTreeMap<String, Vec<Channel>>,
    /// The picture of the topology.
    pub graph_svg: String,
    /// The record: rows that the memory has forgotten or never saw; none where absent.
    pub older: Option<Arc<dyn Older>>,
}

/// The console. Cloning is cheap; all clones are one.
#[derive(Clone)]
pub struct Console(Arc<Shared>);

struct Shared {
    parts: Parts,
    memory: Mutex<Memory>,
    /// The memory's version: who waits for changes waits here.
    version: watch::Sender<u64>,
}

impl Console {
    /// A console that has seen nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let memory = Memory::new(parts.type_channels.clone());
        Self(Arc::new(Shared { parts, memory: Mutex::new(memory), version: watch::Sender::new(0) }))
    }

    /// A record arrived among the events, whatever it holds. `caption` says in a line what it shows.
    pub fn observe_event(&self, id: EventId, at: Instant, value: &[u8], caption: Option<&str>) {
        self.change(|memory| memory.event(id, at, value, caption));
    }

    /// Rows were written.
    pub fn observe_rows(&self, rows: &[Row]) {
        self.change(|memory| rows.iter().for_each(|row| memory.row(row)));
    }

    /// A leg was handed to its lane.
    pub fn observe_lane(&self, record: &LaneRecord) {
        self.change(|memory| memory.lane(record));
    }

    /// A profile changed; `caption` says in a line how.
    pub fn observe_profile(&self, user: &str, profile: &Profile, at: Instant, caption: Option<&str>) {
        self.change(|memory| memory.profile(user, profile, at, caption));
    }

    fn change(&self, change: impl FnOnce(&mut Memory)) {
        let version = {
            let mut memory = self.memory();
            change(&mut memory);
            memory.version()
        };
        self.0.version.send_replace(version);
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Every change leaves the memory whole, or the program dies with it.
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
