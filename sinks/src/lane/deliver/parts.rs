//! What a channel's deliveries need: where things are, who makes the text, who carries it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidings_schemas::channel::Channel;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::policy::CategoryPolicy;
use tidings_schemas::profile::Address;
use tidings_schemas::reason::Reason;
use tidings_schemas::topics::Topics;

use crate::directory::Directory;
use crate::lane::Pace;
use crate::ledger::Ledger;
use crate::log::{Clock, Elapsed, Log};
use crate::providers::Provider;
use crate::render::Content;
use crate::retry::Schedule;

/// What a channel's deliveries need.
#[derive(Clone)]
pub struct Parts {
    /// The channel.
    pub channel: Channel,
    /// Names of the topics.
    pub topics: Topics,
    /// Where lanes, rows and all that follows are.
    pub log: Arc<dyn Log>,
    /// What is known about attempts.
    pub ledger: Arc<dyn Ledger>,
    /// Where users can be reached.
    pub directory: Arc<dyn Directory>,
    /// Who makes the text.
    pub render: Arc<dyn Render>,
    /// Who carries it.
    pub providers: Choice,
    /// How many deliveries the channel makes; what exceeds it waits in the lane.
    pub cap: Option<Arc<Pace>>,
    /// How often it is tried.
    pub schedule: Schedule,
    /// What categories may pass.
    pub categories: BTreeMap<String, CategoryPolicy>,
    /// What time it is, for freshness, expiry, retries and rows.
    pub clock: Clock,
    /// The same clock's time since some start, for intervals.
    pub elapsed: Elapsed,
    /// How many times faster than the machine's time that clock runs: once, but for a demo's. Calls and so
    /// their leases take the machine's time: that many times as long on the clock.
    pub speed: u32,
    /// A word that no other process, dead or alive, uses: claims are made under it.
    pub process: Arc<str>,
}

/// Makes the text of a leg.
pub trait Render: Send + Sync {
    /// What `leg` says on its channel.
    ///
    /// # Errors
    /// When no template fits, or it could not be rendered; final until someone changes a template.
    fn render(&self, leg: &LaneRecord) -> Result<Content, Unrendered>;
}

/// Why a leg has no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unrendered {
    /// For the row.
    pub reason: Reason,
    /// For the dead letter: place, expectation and remedy.
    pub detail: String,
}

/// Which provider carries what.
#[derive(Clone)]
pub enum Choice {
    /// By the address's platform.
    ByPlatform(BTreeMap<String, Arc<dyn Provider>>),
    /// The first one; the others are for failover.
    List(Vec<Arc<dyn Provider>>),
}

impl Choice {
    pub(super) fn all(&self) -> Vec<&Arc<dyn Provider>> {
        match self {
            Self::ByPlatform(by) => by.values().collect(),
            Self::List(list) => list.iter().collect(),
        }
    }

    /// The provider for `address`: the one that it names, else the one of its platform.
    pub(super) fn of(&self, address: &Address) -> Option<&Arc<dyn Provider>> {
        if let Some(name) = &address.provider {
            return self.all().into_iter().find(|provider| provider.name() == name);
        }
        match self {
            Self::ByPlatform(by) => address.platform.as_ref().and_then(|platform| by.get(platform)),
            Self::List(list) => list.first(),
        }
    }
}
