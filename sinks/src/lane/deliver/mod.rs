//! A leg on its way: steps 2 to 7 of the lane's protocol.
//!
//! A batch of legs is one task that works through *steps*; each step returns further ones. Steps run
//! side by side, so a slow provider, a wait or a lost lease holds up nothing but its own deliveries.
//!
//! Here is what goes through the steps, and how one leads to the next. The steps are the rooms: [`addresses`] (2),
//! [`admit`] and [`claim`] (3), [`call`] (4 and 5), [`settle`] (6 and 7), [`end`] for a leg whose deliveries are
//! over. Ledger and directory are waited for in [`asking`].

mod addresses;
mod admit;
mod asking;
mod call;
mod claim;
mod end;
mod parts;
mod settle;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
pub use parts::{Choice, Parts, Render, Unrendered};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::DeliveryId;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::Row;
use tidings_schemas::profile::Profile;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::{RetryClass, RetryDelay};
use tokio_util::sync::CancellationToken;

use super::LaneError;
use super::gate::{Gate, Paused};
use super::metrics::LaneMetrics;
use super::outbox::Outbox;
use super::pace::Turn;
use super::reader::Ticket;
use super::wire::{self, DeadLetter, Retry};
use crate::directory::Listed;
use crate::ledger::{Entry, Incarnation, Key, LedgerError, Phase, Settle, Turns};
use crate::log::{Append, TopicPartition, aside};
use crate::providers::Provider;
use crate::render::Content;
use crate::troubles::Troubles;

/// How long a start waits for the ledger's word, and to hear that it is set up wrongly: critical messages wait with it.
const OPENED_WITHIN: Duration = Duration::from_secs(2);
/// How long the ledger is asked to take what became of a critical call. Until it has it, a repeat of the event
/// would wait for the lease and be sent again; beyond it, attempts of an outage would pile up in memory.
const CRITICAL_SETTLE_MAX: Duration = Duration::from_secs(60);

/// A trouble, as it is said.
const LEDGER_MISSES: &str = "the ledger misses critical attempts: a repeat of them would be sent again";

/// Delivers one channel's legs.
pub struct Deliverer {
    parts: Parts,
    partitions: BTreeMap<String, u32>,
    gates: BTreeMap<&'static str, Gate>,
    incarnation: RwLock<Incarnation>,
    claims: AtomicU64,
}

/// What one lane's legs share.
pub(crate) struct Desk {
    pub(crate) outbox: Outbox,
    pub(crate) ledger: Turns,
    pub(crate) troubles: Troubles,
    pub(crate) metrics: Arc<LaneMetrics>,
    /// Waits end when this is cancelled; what waited is abandoned and read again by the next owner.
    pub(crate) draining: CancellationToken,
}

/// A leg that was read and is not settled.
pub(crate) struct Leg {
    pub(crate) record: LaneRecord,
    /// The lane partition and epoch, where it has one.
    pub(crate) epoch: Option<(TopicPartition, u64)>,
    /// The ledger's incarnation that it was read under.
    pub(crate) believed: Incarnation,
    pub(crate) retry: Option<Retry>,
    pub(crate) ticket: Ticket,
    pub(crate) open: Mutex<Open>,
}

/// What became of a leg's deliveries so far.
#[derive(Debug, Default)]
pub(crate) struct Open {
    /// All of them, for the retry records' siblings.
    deliveries: Vec<DeliveryId>,
    left: usize,
    /// One was sent, waits elsewhere or is not wanted: no fallback.
    held: bool,
}

impl Leg {
    fn is_critical(&self) -> bool {
        self.record.priority == Priority::Critical
    }

    fn is_expired(&self, now: Instant) -> bool {
        self.record.expires_at.is_some_and(|at| at <= now)
    }
}

#[derive(Clone)]
struct Delivery {
    leg: Arc<Leg>,
    key: Key,
    address_id: String,
    /// As the directory has it now.
    listed: Option<Listed>,
    profile: Arc<Profile>,
    /// When the directory said so, by what intervals are measured by.
    looked: Duration,
    /// Attempts that are known.
    known: u32,
    /// Attempts whose rows are in the log.
    said: u32,
    /// Never granted here: what the ledger lost may have been called.
    fresh: bool,
    /// Its places in the lines before rates, while it waits there.
    turns: Vec<Arc<Turn>>,
}

struct Granted {
    delivery: Delivery,
    owner: Arc<str>,
    /// With the pending attempt last.
    entry: Entry,
    /// The incarnation that the ledger granted it under; none where it does not know of it.
    under: Option<Incarnation>,
}

/// What was to be claimed, and stands in the ledger already.
struct Met {
    delivery: Delivery,
    entry: Entry,
    /// The incarnation that it stands in.
    under: Incarnation,
}

enum Step {
    Begin(Vec<Arc<Leg>>),
    Again {
        /// By what intervals are measured by.
        at: Duration,
        gate: Option<&'static str>,
        delivery: Box<Delivery>,
    },
    Call {
        provider: Arc<dyn Provider>,
        granted: Vec<(Granted, Content)>,
    },
    /// Said and done, but for the ledger.
    Settle(Vec<(Settle, Option<Incarnation>)>),
}

/// How a delivery's part in its leg ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Sent, not wanted, or it waits in a retry topic: no fallback because of it.
    Held,
    /// Failed for good.
    Failed,
}

/// What becomes of a granted attempt.
struct Verdict {
    granted: Granted,
    /// Absent: released, the provider is paused.
    phase: Option<Phase>,
    /// In words, for the dead letter.
    detail: String,
}

impl Deliverer {
    /// Makes the deliverer of a channel; founds the ledger where nobody did. A ledger that does not answer yet
    /// stops nobody from starting: critical messages don't need it, the others wait.
    ///
    /// # Errors
    /// When a topic that it writes to is missing, or the ledger is set up in a way that loses entries.
    pub async fn open(parts: Parts) -> Result<Self, LaneError> {
        let topics = &parts.topics;
        let mut names = vec![topics.lifecycle(), topics.returned(), topics.dlq(), topics.addresses()];
        for class in RetryClass::ALL {
            names.extend(RetryDelay::ALL.map(|delay| topics.retry(parts.channel, class, delay)));
        }
        names.extend(Channel::ALL.iter().map(|channel| topics.lane(*channel, Priority::Critical)));
        let (log, asked) = (parts.log.clone(), names.clone());
        let found = aside(log.waits(), move || log.describe(&asked)).await.map_err(LaneError::task)??;
        let partitions: BTreeMap<_, _> = found.into_iter().map(|topic| (topic.name, topic.partitions)).collect();
        // Only channels of the topology have lanes: the rest of the critical ones may be missing.
        let needed = names.len() - Channel::ALL.len();
        if let Some(missing) = names[..needed].iter().find(|name| !partitions.contains_key(*name)) {
            return Err(crate::log::LogError::MissingTopic(missing.clone()).into());
        }
        let asked = tokio::time::timeout(OPENED_WITHIN, parts.ledger.incarnation((parts.clock)()));
        let late = |_| Err(LedgerError::Ambiguous(format!("no answer within {OPENED_WITHIN:?}")));
        let incarnation = match asked.await.unwrap_or_else(late) {
            Ok(incarnation) => incarnation,
            Err(error @ LedgerError::Refused(_)) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, channel = %parts.channel, "starts without the ledger");
                Incarnation::unheard()
            }
        };
        let gates = parts.providers.all().into_iter().map(|provider| (provider.name(), Gate::default())).collect();
        Ok(Self { parts, partitions, gates, incarnation: RwLock::new(incarnation), claims: AtomicU64::new(0) })
    }

    /// The providers that paused, and why: the channel stands still for their addresses.
    pub fn paused(&self) -> BTreeMap<&'static str, Paused> {
        self.gates.iter().filter_map(|(name, gate)| gate.state().map(|paused| (*name, paused))).collect()
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Who carries it.
    fn provider(&self, delivery: &Delivery) -> Option<&Arc<dyn Provider>> {
        delivery.listed.as_ref().and_then(|it| self.parts.providers.of(&it.address))
    }

    pub(crate) fn now(&self) -> Instant {
        (self.parts.clock)()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        (self.parts.elapsed)()
    }

    /// When it will be `at`, by what intervals are measured by, if the clock is not set meanwhile.
    fn will_be(&self, at: Instant) -> Duration {
        self.elapsed() + at.since(self.now())
    }

    /// How long on the clock what takes `span` of the machine's time: a call, or what a provider asks for.
    pub(crate) fn clocked(&self, span: Duration) -> Duration {
        span * self.parts.speed.max(1)
    }

    /// How long to sleep until the clock, which shows `now`, shows `at`.
    pub(crate) fn sleep_until(&self, at: Instant, now: Instant) -> Duration {
        at.since(now) / self.parts.speed.max(1)
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the rows of `partition` go: its own number, so that a lane's blocks keep their order.
    pub(crate) fn lifecycle(&self, lane: &str) -> TopicPartition {
        let topic = self.parts.topics.lifecycle();
        let count = self.partitions.get(&topic).copied().unwrap_or(1);
        wire::place(&topic, lane, count)
    }

    fn to(&self, topic: &str, user: &str) -> TopicPartition {
        wire::place(topic, user, self.partitions.get(topic).copied().unwrap_or(1))
    }

    /// The dead letter of a record that cannot be read: nobody knows whose it is.
    pub(crate) fn unreadable(&self, letter: &DeadLetter) -> Append {
        wire::dead_letter(self.to(&self.parts.topics.dlq(), ""), "", letter)
    }

    /// Works through a batch of legs until each is settled or abandoned.
    pub(crate) async fn deliver(&self, desk: &Desk, legs: Vec<Leg>) {
        let mut running = FuturesUnordered::new();
        running.push(self.step(desk, Step::Begin(legs.into_iter().map(Arc::new).collect())).boxed());
        while let Some(steps) = running.next().await {
            for step in steps {
                running.push(self.step(desk, step).boxed());
            }
        }
    }

    async fn step(&self, desk: &Desk, step: Step) -> Vec<Step> {
        match step {
            Step::Begin(legs) => self.begin(desk, legs).await,
            Step::Again { at, gate, delivery } => self.again(desk, at, gate, *delivery).await,
            Step::Call { provider, granted } => self.call(desk, &provider, granted).await,
            Step::Settle(settles) => {
                let settled = self.settle(desk, settles, false);
                if !matches!(tokio::time::timeout(CRITICAL_SETTLE_MAX, settled).await, Ok(Some(_))) {
                    let error = format!("not taken within {CRITICAL_SETTLE_MAX:?}, or before a stop");
                    desk.troubles.met(LEDGER_MISSES, &error, self.now());
                }
                Vec::new()
            }
        }
    }

    /// Waits until `at`, or until the gate that holds it is opened; then as at first, by what the directory says now.
    async fn again(&self, desk: &Desk, at: Duration, gate: Option<&'static str>, delivery: Delivery) -> Vec<Step> {
        let opened = async {
            match gate.and_then(|name| self.gates.get(name)) {
                Some(gate) => gate.opened().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = desk.draining.cancelled() => return Vec::new(),
            () = delivery.leg.ticket.leaving() => return Vec::new(),
            () = opened => {}
            () = tokio::time::sleep(at.saturating_sub(self.elapsed()) / self.parts.speed.max(1)) => {}
        }
        let Some(known) = self.look(desk, &[&delivery.leg.record]).await else { return Vec::new() };
        let delivery = match known.first() {
            Some(known) => delivery.refreshed(known, self.elapsed()),
            None => delivery,
        };
        self.admit(desk, vec![delivery]).await
    }

    async fn say(&self, desk: &Desk, rows: Vec<Row>, follow: Vec<Append>) {
        desk.metrics.count(&rows);
        desk.outbox.say(rows, follow).await;
    }
}
