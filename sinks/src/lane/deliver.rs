//! A leg on its way: steps 2 to 7 of the lane's protocol.
//!
//! A batch of legs is one task that works through *steps*; each step returns further ones. Steps run
//! side by side, so a slow provider, a wait or a lost lease holds up nothing but its own deliveries.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::ids::{DeliveryId, LegId};
use tidings_schemas::lane::{LaneRecord, ReturnCause, Returned};
use tidings_schemas::lifecycle::{Row, State};
use tidings_schemas::policy::CategoryPolicy;
use tidings_schemas::profile::{Address, AddressStatus, Profile};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_schemas::topics::{RetryClass, RetryDelay, Topics};
use tokio_util::sync::CancellationToken;

use super::gate::{Gate, Paused};
use super::metrics::LaneMetrics;
use super::outbox::Outbox;
use super::pace::{Pace, Turn};
use super::reader::Ticket;
use super::wire::{self, DeadLetter, Retry};
use super::{LaneError, rows};
use crate::consent;
use crate::directory::{Directory, Known, Listed};
use crate::ledger::{
    Attempt, Bucket, Claim, Claimed, Entry, Incarnation, Key, LEASE_MARGIN, Ledger, LedgerError, Note, Phase, Settle,
    Turns,
};
use crate::log::{Append, Clock, Elapsed, Log, TopicPartition, aside};
use crate::outcome::{Code, Outcome};
use crate::providers::{Call, Provider};
use crate::render::Content;
use crate::retry::{Next, Schedule, Wait};
use crate::troubles::Troubles;

/// How long a critical message waits for the ledger before it goes out without it.
const CRITICAL_LEDGER_WAIT: Duration = Duration::from_millis(300);
/// How long a start waits for the ledger's word, and to hear that it is set up wrongly: critical messages wait with it.
const OPENED_WITHIN: Duration = Duration::from_secs(2);
/// How long the ledger is asked to take what became of a critical call. Until it has it, a repeat of the event
/// would wait for the lease and be sent again; beyond it, attempts of an outage would pile up in memory.
const CRITICAL_SETTLE_MAX: Duration = Duration::from_secs(60);
/// How old what the directory said may be when it is judged before a call. Claims come at once where the ledger
/// is well; where they had to wait for it, whoever opted out meanwhile is asked again.
const LOOKED_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether a commit names the ledger's new word. The reader's next turn makes one.
const LOOK_FOR_NAME: Duration = Duration::from_millis(20);
/// First and longest pause when ledger or directory don't answer.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Troubles, as they are said.
const CLAIMS_WAIT: &str = "a lane waits for the ledger";
const SETTLEMENTS_WAIT: &str = "settlements wait for the ledger";
const WITHOUT_LEDGER: &str = "critical messages go out without the ledger";
const LEDGER_MISSES: &str = "the ledger misses critical attempts: a repeat of them would be sent again";
const DIRECTORY_WAITS: &str = "a lane waits for the directory";

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
    fn all(&self) -> Vec<&Arc<dyn Provider>> {
        match self {
            Self::ByPlatform(by) => by.values().collect(),
            Self::List(list) => list.iter().collect(),
        }
    }

    /// The provider for `address`: the one that it names, else the one of its platform.
    fn of(&self, address: &Address) -> Option<&Arc<dyn Provider>> {
        if let Some(name) = &address.provider {
            return self.all().into_iter().find(|provider| provider.name() == name);
        }
        match self {
            Self::ByPlatform(by) => address.platform.as_ref().and_then(|platform| by.get(platform)),
            Self::List(list) => list.first(),
        }
    }
}

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

/// Why a delivery ends before its call, and the detail of that.
type Unwanted = Box<(Note, String)>;

/// A delivery that was to be claimed, and what came of it.
type Asked = (Delivery, Result<Granted, Entry>);

/// Granted deliveries for one provider, with their texts.
type Calls = (Arc<dyn Provider>, Vec<(Granted, Content)>);

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
            Step::Again { at, gate, delivery } => {
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
                let Some(mut known) = self.look(desk, &[&delivery.leg.record]).await else { return Vec::new() };
                let delivery = known
                    .pop()
                    .map_or_else(|| (*delivery).clone(), |known| delivery.clone().refreshed(&known, self.elapsed()));
                self.admit(desk, vec![delivery]).await
            }
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

    /// Step 2: addresses and profiles of all users at once; a leg becomes a delivery per address.
    async fn begin(&self, desk: &Desk, legs: Vec<Arc<Leg>>) -> Vec<Step> {
        let records: Vec<_> = legs.iter().map(|leg| &leg.record).collect();
        let Some(known) = self.look(desk, &records).await else { return Vec::new() };
        let mut gone = Vec::new();
        let live: Vec<Vec<Delivery>> = legs
            .iter()
            .zip(known)
            .map(|(leg, known)| {
                let (live, dead): (Vec<_>, Vec<_>) = self
                    .deliveries(leg, &known)
                    .into_iter()
                    .partition(|it| leg.retry.is_some() || it.listed.as_ref().is_some_and(Listed::is_live));
                gone.extend(dead);
                live
            })
            .collect();
        let Some(called) = self.called(desk, gone).await else { return Vec::new() };
        let mut called = called.into_iter().peekable();
        let mut deliveries = Vec::new();
        for (leg, mut live) in legs.iter().zip(live) {
            while let Some(it) = called.next_if(|it| Arc::ptr_eq(&it.leg, leg)) {
                live.push(it);
            }
            if live.is_empty() {
                self.unreachable(desk, leg).await;
                continue;
            }
            {
                let mut open = leg.open.lock().unwrap_or_else(PoisonError::into_inner);
                open.deliveries = live.iter().map(|it| it.key.delivery).collect();
                open.left = live.len();
            }
            deliveries.extend(live);
        }
        self.admit(desk, deliveries).await
    }

    /// Those that were called before their address died, in the same order: they still have to be accounted for, whether
    /// or not another address of their user lives. Critical legs wait for no ledger: where it does not answer in time,
    /// all may have been called. `None`: abandoned.
    async fn called(&self, desk: &Desk, gone: Vec<Delivery>) -> Option<Vec<Delivery>> {
        if gone.is_empty() {
            return Some(gone);
        }
        let keys: Vec<_> = gone.iter().map(|it| it.key.clone()).collect();
        let asked = self.entries(desk, &keys);
        let entries = if gone.iter().any(|it| it.leg.is_critical()) {
            match tokio::time::timeout(CRITICAL_LEDGER_WAIT, asked).await {
                Ok(entries) => entries?,
                Err(_) => return Some(gone),
            }
        } else {
            asked.await?
        };
        Some(gone.into_iter().zip(entries).filter_map(|(it, entry)| entry.map(|_| it)).collect())
    }

    fn deliveries(&self, leg: &Arc<Leg>, known: &Known) -> Vec<Delivery> {
        let record = &leg.record;
        let profile = Arc::new(known.profile.clone());
        let mut addresses: Vec<(String, Option<Listed>)> = if record.channel == Channel::InApp {
            vec![(record.user.clone(), Some(inbox_address(&record.user)))]
        } else {
            known.addresses.iter().map(|listed| (listed.address.address_id.clone(), Some(listed.clone()))).collect()
        };
        if let Some(only) = &record.only_address {
            addresses.retain(|(address_id, _)| address_id == only);
            if addresses.is_empty() && leg.retry.is_some() {
                addresses.push((only.clone(), None));
            }
        }
        // Where a fallback hangs on several deliveries, each must be found after the lane record is gone.
        let alone = addresses.len() < 2 || record.fallback_channels.is_empty();
        let bucket = match &leg.epoch {
            Some((lane, epoch)) if alone && !leg.is_critical() && leg.retry.is_none() => {
                Bucket::Lane { lane: lane.clone(), epoch: *epoch }
            }
            _ => Bucket::Own,
        };
        let attempts = leg.retry.as_ref().map_or(0, |retry| retry.attempt);
        let looked = self.elapsed();
        let delivery = |(address_id, listed): (String, Option<Listed>)| Delivery {
            leg: leg.clone(),
            key: Key {
                delivery: DeliveryId::new(record.notification, record.channel.as_str(), &address_id, record.replay),
                bucket: bucket.clone(),
            },
            address_id,
            listed,
            profile: profile.clone(),
            looked,
            known: attempts,
            said: attempts,
            fresh: true,
            turns: Vec::new(),
        };
        addresses.into_iter().map(delivery).collect()
    }

    /// Nobody to send to: the next fallback, or the end.
    async fn unreachable(&self, desk: &Desk, leg: &Leg) {
        let now = self.now();
        let record = &leg.record;
        let expired = leg.is_expired(now);
        let follow = if expired { None } else { self.fallback(leg, now) };
        let (state, reason) = match &follow {
            _ if expired => (State::Expired, Reason::Expired),
            Some(_) if !leg.is_critical() => (State::Returned, Reason::Unreachable),
            _ => (State::Suppressed, Reason::Unreachable),
        };
        let mut said = vec![rows::of_leg(record, &[state], Some(reason), now)];
        let (new_leg, follow) = follow.unwrap_or_default();
        said.extend(new_leg);
        self.say(desk, said, follow).await;
        leg.ticket.settle();
    }

    /// What goes out when every address failed: back to `route`, or, critical, on to the next lane.
    fn fallback(&self, leg: &Leg, now: Instant) -> Option<(Vec<Row>, Vec<Append>)> {
        let record = &leg.record;
        let (next, rest) = record.fallback_channels.split_first()?;
        if !leg.is_critical() {
            let returned = Returned { cause: ReturnCause::Undeliverable, leg: record.clone() };
            let to = self.to(&self.parts.topics.returned(), &record.user);
            return Some((Vec::new(), vec![wire::returned(to, &returned)]));
        }
        let topic = self.parts.topics.lane(*next, Priority::Critical);
        if !self.partitions.contains_key(&topic) {
            tracing::warn!(%topic, "a critical fallback has no lane; it ends here");
            return None;
        }
        let mut onward = LaneRecord {
            channel: *next,
            leg: LegId::new(record.notification, next.as_str(), record.replay),
            fallback_channels: rest.to_vec(),
            only_address: None,
            ..record.clone()
        };
        onward.struck.push((record.channel, Reason::Undeliverable));
        let row = rows::of_leg(&onward, &[State::Created, State::Queued], None, now);
        Some((vec![row], vec![wire::leg(self.to(&topic, &record.user), &onward, None)]))
    }

    /// Step 3: what is late goes back or ends, what may be called is claimed in one trip. Once it is time to
    /// stop nothing is begun: the next owner reads it again.
    async fn admit(&self, desk: &Desk, deliveries: Vec<Delivery>) -> Vec<Step> {
        if desk.draining.is_cancelled() {
            return Vec::new();
        }
        let mut steps = Vec::new();
        let mut admitted = Vec::new();
        for mut delivery in self.punctual(desk, deliveries).await {
            if let Err(at) = self.take_token(&mut delivery) {
                desk.metrics.paced.fetch_add(1, Ordering::Relaxed);
                steps.push(Step::Again { at, gate: None, delivery: Box::new(delivery) });
                continue;
            }
            let provider = delivery.listed.as_ref().and_then(|it| self.parts.providers.of(&it.address));
            let name = provider.map(|provider| provider.name());
            match name.and_then(|name| self.gates.get(name)).map_or(Ok(()), |gate| gate.enter(self.elapsed())) {
                Ok(()) => admitted.push(delivery),
                Err(at) => {
                    self.give_back(&delivery);
                    steps.push(Step::Again { at, gate: name, delivery: Box::new(delivery) });
                }
            }
        }
        let (critical, others): (Vec<_>, Vec<_>) = admitted.into_iter().partition(|it| it.leg.is_critical());
        let mut verdicts = Vec::new();
        let mut calls: BTreeMap<&'static str, Calls> = BTreeMap::new();
        for batch in [critical, others] {
            let Some(claimed) = self.claim(desk, batch).await else { continue };
            let Some(claimed) = self.refreshed(desk, claimed).await else { continue };
            for (delivery, claimed) in claimed {
                let granted = match claimed {
                    Ok(granted) => granted,
                    Err(met) => {
                        self.give_back(&delivery);
                        steps.extend(self.meet(desk, delivery, met).await);
                        continue;
                    }
                };
                match self.judge(&granted) {
                    Ok((provider, content)) => {
                        let slot = calls.entry(provider.name()).or_insert_with(|| (provider.clone(), Vec::new()));
                        slot.1.push((granted, content));
                    }
                    Err(ended) => {
                        let (note, detail) = *ended;
                        self.give_back(&granted.delivery);
                        verdicts.push(Verdict { granted, phase: Some(Phase::Dead { note }), detail });
                    }
                }
            }
        }
        for (provider, mut granted) in calls.into_values() {
            let most = provider.batch_max().max(1);
            while !granted.is_empty() {
                let rest = granted.split_off(most.min(granted.len()));
                steps.push(Step::Call { provider: provider.clone(), granted: std::mem::replace(&mut granted, rest) });
            }
        }
        steps.extend(self.close(desk, verdicts).await);
        steps
    }

    /// The rates that a delivery keeps to: its provider's, and the channel's.
    fn paces(&self, delivery: &Delivery) -> impl Iterator<Item = &Arc<Pace>> {
        let provider = delivery.listed.as_ref().and_then(|it| self.parts.providers.of(&it.address));
        provider.and_then(|provider| provider.pace()).into_iter().chain(&self.parts.cap)
    }

    /// Takes a token of every rate, or none and says when to ask again.
    fn take_token(&self, delivery: &mut Delivery) -> Result<(), Duration> {
        let (now, priority) = (self.elapsed(), delivery.leg.record.priority);
        let mut turns = std::mem::take(&mut delivery.turns);
        let mut taken: Vec<&Arc<Pace>> = Vec::new();
        let paces: Vec<Arc<Pace>> = self.paces(delivery).cloned().collect();
        for pace in &paces {
            let turn = turns.iter().position(|turn| turn.is_of(pace)).map(|place| turns.swap_remove(place));
            match pace.enter(priority, turn, now) {
                Ok(()) => taken.push(pace),
                Err((at, turn)) => {
                    taken.into_iter().for_each(|pace| pace.give_back(priority));
                    turns.push(turn);
                    delivery.turns = turns;
                    return Err(at);
                }
            }
        }
        Ok(())
    }

    /// Gives the tokens of a delivery back that is not called after all.
    fn give_back(&self, delivery: &Delivery) {
        self.paces(delivery).for_each(|pace| pace.give_back(delivery.leg.record.priority));
    }

    /// Those that are in time, or were called already: those have to be seen to their end here. So have those that may
    /// have been: where the ledger was lost that it would stand in.
    async fn punctual(&self, desk: &Desk, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        let now = self.now();
        let late = |it: &Delivery| {
            let stale = !it.leg.is_critical() && it.leg.record.fresh_until <= now;
            it.known == 0 && (it.leg.is_expired(now) || stale)
        };
        let (late, mut punctual): (Vec<_>, Vec<_>) = deliveries.into_iter().partition(late);
        if late.is_empty() {
            return punctual;
        }
        let keys: Vec<_> = late.iter().map(|it| it.key.clone()).collect();
        let Some(entries) = self.entries(desk, &keys).await else { return punctual };
        // By leg, and not by what it is made of: a repeat in the same batch is a record of its own, to be settled.
        let (mut uncalled, incarnation) = (Vec::<(Arc<Leg>, Vec<Delivery>)>::new(), self.incarnation());
        for (delivery, entry) in late.into_iter().zip(entries) {
            if entry.is_some() || delivery.leg.believed.is_lost(&incarnation) {
                punctual.push(delivery);
            } else {
                match uncalled.last_mut().filter(|(leg, _)| Arc::ptr_eq(leg, &delivery.leg)) {
                    Some((_, together)) => together.push(delivery),
                    None => uncalled.push((delivery.leg.clone(), vec![delivery])),
                }
            }
        }
        for (leg, deliveries) in uncalled {
            self.too_late(desk, &leg, &deliveries, now).await;
        }
        punctual
    }

    /// Ends or gives back deliveries that were never called: the leg as a whole where none was.
    async fn too_late(&self, desk: &Desk, leg: &Leg, deliveries: &[Delivery], now: Instant) {
        let record = &leg.record;
        let whole = leg.open.lock().unwrap_or_else(PoisonError::into_inner).deliveries.len() == deliveries.len();
        let (mut said, mut follow) = (Vec::new(), Vec::new());
        let to = self.to(&self.parts.topics.returned(), &record.user);
        let back = |leg: LaneRecord| wire::returned(to.clone(), &Returned { cause: ReturnCause::Stale, leg });
        match (leg.is_expired(now), whole) {
            (true, true) => said.push(rows::of_leg(record, &[State::Expired], Some(Reason::Expired), now)),
            (true, false) => {
                let note = Note { at: now, reason: Some(Reason::Expired), ..Note::default() };
                let attempt = Attempt { number: 1, phase: Phase::Dead { note } };
                said.extend(deliveries.iter().map(|it| rows::of_attempt(record, it.key.delivery, &attempt, false)));
            }
            (false, true) => {
                said.push(rows::of_leg(record, &[State::Returned], Some(Reason::Stale), now));
                follow.push(back(record.clone()));
            }
            (false, false) => follow.extend(
                deliveries
                    .iter()
                    .map(|it| back(LaneRecord { only_address: Some(it.address_id.clone()), ..record.clone() })),
            ),
        }
        self.say(desk, said, follow).await;
        for _ in deliveries {
            self.finish(desk, leg, Ended::Held).await;
        }
    }

    /// An owner's name, the lease and the count, for each; asks until the ledger answers. Critical ones go on
    /// without it. `None`: abandoned.
    async fn claim(&self, desk: &Desk, deliveries: Vec<Delivery>) -> Option<Vec<Asked>> {
        let critical = deliveries.first()?.leg.is_critical();
        let owner = || format!("{}.{}", self.parts.process, self.claims.fetch_add(1, Ordering::Relaxed)).into();
        let mut deliveries: Vec<(Delivery, Arc<str>)> = deliveries.into_iter().map(|it| (it, owner())).collect();
        let (mut pause, mut unnamed) = (BACKOFF.0, Duration::ZERO);
        loop {
            let (now, incarnation) = (self.now(), self.incarnation());
            // Of a partition that is someone else's nothing is begun.
            deliveries.retain(|(it, _)| it.leg.ticket.is_named(&incarnation).is_some());
            deliveries.first()?;
            let named = deliveries.iter().all(|(it, _)| it.leg.ticket.is_named(&incarnation) == Some(true));
            if !named && (!critical || unnamed < CRITICAL_LEDGER_WAIT) {
                unnamed += LOOK_FOR_NAME;
                self.pause(desk, LOOK_FOR_NAME).await?;
                continue;
            }
            let claims: Vec<_> = (deliveries.iter())
                .map(|(it, owner)| Claim {
                    key: it.key.clone(),
                    owner: owner.clone(),
                    lease_until: now.after(self.lease(it)),
                    attempts_before: it.known + u32::from(it.fresh && it.leg.believed.is_lost(&incarnation)),
                })
                .collect();
            let asked = async {
                match named {
                    true => desk.ledger.claim(&incarnation, &claims, now).await,
                    false => Err(LedgerError::Unreachable("no commit names its word".to_owned())),
                }
            };
            let error = match patiently(critical, asked).await {
                Ok(answers) => {
                    desk.troubles.over(&[CLAIMS_WAIT, WITHOUT_LEDGER], now);
                    let joined = deliveries.into_iter().zip(answers);
                    return Some(
                        joined
                            .map(|((delivery, owner), answer)| match answer {
                                Claimed::Granted(entry) => {
                                    let under = Some(incarnation.clone());
                                    (delivery.clone(), Ok(Granted { delivery, owner, entry, under }))
                                }
                                Claimed::Met(entry) => (delivery, Err(entry)),
                            })
                            .collect(),
                    );
                }
                Err(LedgerError::Lost) => match self.refound(critical).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if critical {
                desk.troubles.met(WITHOUT_LEDGER, &error, now);
                return Some(
                    deliveries
                        .into_iter()
                        .map(|(delivery, owner)| {
                            let phase = Phase::Pending { owner: owner.clone(), lease_until: now };
                            let entry = Entry::of(Attempt { number: delivery.known + 1, phase });
                            (delivery.clone(), Ok(Granted { delivery, owner, entry, under: None }))
                        })
                        .collect(),
                );
            }
            desk.troubles.met(CLAIMS_WAIT, &error, now);
            pause = self.pause(desk, pause).await?;
        }
    }

    /// What was claimed, with what the directory says now, where that was long ago. `None`: abandoned.
    async fn refreshed(&self, desk: &Desk, mut claimed: Vec<Asked>) -> Option<Vec<Asked>> {
        let now = self.elapsed();
        let old = |granted: &Granted| now.saturating_sub(granted.delivery.looked) > self.clocked(LOOKED_MAX);
        let granted = claimed.iter_mut().filter_map(|(_, claimed)| claimed.as_mut().ok());
        let mut granted: Vec<&mut Granted> = granted.filter(|granted| old(granted)).collect();
        if granted.is_empty() {
            return Some(claimed);
        }
        let legs: Vec<_> = granted.iter().map(|granted| granted.delivery.leg.clone()).collect();
        let records: Vec<_> = legs.iter().map(|leg| &leg.record).collect();
        let known = self.look(desk, &records).await?;
        for (granted, known) in granted.iter_mut().zip(known) {
            granted.delivery = granted.delivery.clone().refreshed(&known, self.elapsed());
        }
        Some(claimed)
    }

    /// The longest that a call for it may take, and a margin, on the clock.
    fn lease(&self, delivery: &Delivery) -> Duration {
        let provider = delivery.listed.as_ref().and_then(|it| self.parts.providers.of(&it.address));
        self.clocked(provider.map_or(Duration::ZERO, |provider| provider.timeout()) + LEASE_MARGIN)
    }

    /// What stands in the ledger already is said again, and what follows from it done again. A critical repeat
    /// leaves both to the lane record that it stands for: that one is read again until it was seen to its end,
    /// and tells of itself.
    async fn meet(&self, desk: &Desk, mut delivery: Delivery, entry: Entry) -> Option<Step> {
        let now = self.now();
        let attempt = entry.newest().clone();
        let leg = delivery.leg.clone();
        let origin = attempt.phase.note().and_then(|note| note.origin);
        if leg.is_critical() && origin.is_some_and(|origin| origin != leg.record.event) {
            self.finish(desk, &leg, Ended::Held).await;
            return None;
        }
        match attempt.phase {
            Phase::Pending { .. } if deliberate::has(Bug::ClaimTakenAsSent) => {
                self.finish(desk, &leg, Ended::Held).await;
            }
            Phase::Pending { lease_until, .. } => {
                let at = self.will_be(lease_until);
                return Some(Step::Again { at, gate: None, delivery: Box::new(delivery) });
            }
            Phase::Scheduled { due, .. } => match Schedule::resume(attempt.number, due, now) {
                Wait::Memory => {
                    delivery.known = attempt.number;
                    let at = self.will_be(due);
                    return Some(Step::Again { at, gate: None, delivery: Box::new(delivery) });
                }
                Wait::Topic(delay) => {
                    let said = rows::of_entry(&leg.record, delivery.key.delivery, &entry, delivery.said, now);
                    self.say(desk, said, vec![self.retry(&delivery, attempt.number, delay, now)]).await;
                    self.finish(desk, &leg, Ended::Held).await;
                }
            },
            Phase::Sent { note } | Phase::Dead { note } => {
                let dead = matches!(entry.newest().phase, Phase::Dead { .. });
                let said = rows::of_entry(&leg.record, delivery.key.delivery, &entry, delivery.said, now);
                let follow = if dead { self.obituary(&delivery, attempt.number, &note, "").await } else { Vec::new() };
                self.say(desk, said, follow).await;
                self.finish(desk, &leg, ended(dead, &note)).await;
            }
        }
        None
    }

    /// Step 4, right before the call: whether it is still wanted, and its text.
    fn judge(&self, granted: &Granted) -> Result<(Arc<dyn Provider>, Content), Unwanted> {
        let delivery = &granted.delivery;
        let record = &delivery.leg.record;
        let now = self.now();
        let end = |reason, dlq, detail: &str| {
            let unknown = granted.under.is_none();
            let note = Note { at: now, reason: Some(reason), dlq, unknown, ..Note::default() };
            Err(Box::new((note, detail.to_owned())))
        };
        if granted.entry.newest().number > self.parts.schedule.attempts(record.priority) {
            return end(Reason::AttemptsExhausted, true, "the lease of the last attempt ran out");
        }
        if delivery.leg.is_expired(now) {
            return end(Reason::Expired, false, "");
        }
        if let Some(reason) = consent::objection(record, &delivery.profile, &self.parts.categories)
            && !deliberate::has(Bug::ConsentNotAskedAgain)
        {
            return end(reason, false, "");
        }
        let Some(listed) = delivery.listed.as_ref().filter(|it| it.is_live()) else {
            return end(Reason::Unreachable, false, "");
        };
        let Some(provider) = self.parts.providers.of(&listed.address) else {
            return end(Reason::NoProvider, false, "");
        };
        match self.parts.render.render(record) {
            Ok(content) => Ok((provider.clone(), content)),
            Err(Unrendered { reason, detail }) => end(reason, true, &detail),
        }
    }

    /// Step 5: the call, and what came of it.
    async fn call(&self, desk: &Desk, provider: &Arc<dyn Provider>, granted: Vec<(Granted, Content)>) -> Vec<Step> {
        // What no ledger remembers, the record does: were it to die now, the next owner would take the call for
        // a first one.
        let now = self.now();
        let doubts = granted.iter().filter(|(it, _)| it.under.is_none()).map(|(it, _)| {
            rows::of_doubt(&it.delivery.leg.record, it.delivery.key.delivery, it.entry.newest().number, now)
        });
        desk.outbox.say(doubts.collect(), Vec::new()).await;
        let calls: Vec<_> = granted.iter().filter_map(|(it, content)| call(it, content)).collect();
        desk.metrics.calls.fetch_add(calls.len() as u64, Ordering::Relaxed);
        let answer = tokio::time::timeout(provider.timeout(), provider.deliver(&calls, self.now())).await;
        let mut outcomes = answer.unwrap_or_default();
        // Silence is no answer: it may have been carried out.
        outcomes.resize(granted.len(), Outcome::unknown(Code::ours("timeout")));
        let gate = self.gates.get(provider.name());
        if let Some(gate) = gate.filter(|_| !outcomes.iter().any(|it| matches!(it, Outcome::Paused { .. }))) {
            gate.open();
        }
        let mut verdicts = Vec::new();
        for ((granted, _), outcome) in granted.into_iter().zip(outcomes) {
            if let (Outcome::Paused { reason, code }, Some(gate)) = (&outcome, gate)
                && gate.close(reason, self.now(), self.elapsed())
            {
                tracing::error!(provider = provider.name(), %reason, %code, "the provider is paused; its deliveries wait");
            }
            let detail = match &outcome {
                Outcome::Permanent { reason, .. } | Outcome::InvalidAddress { reason, .. } => reason.to_string(),
                _ => String::new(),
            };
            let phase = self.phase(&granted, provider.name(), outcome);
            verdicts.push(Verdict { granted, phase, detail });
        }
        self.close(desk, verdicts).await
    }

    /// MODEL §5: outcome → what the ledger keeps. Absent: released.
    fn phase(&self, granted: &Granted, provider: &str, outcome: Outcome) -> Option<Phase> {
        let now = self.now();
        let (id, number) = (granted.delivery.key.delivery, granted.entry.newest().number);
        let lost = granted.under.is_none().then_some(Reason::LedgerUnreachable);
        let note = Note {
            at: now,
            called: true,
            unknown: granted.under.is_none(),
            reason: lost,
            provider: provider.to_owned(),
            code: outcome.code().to_string(),
            ..Note::default()
        };
        Some(match outcome {
            Outcome::Accepted { provider_id, .. } => Phase::Sent { note: Note { message_id: provider_id, ..note } },
            Outcome::Retryable { after, maybe_sent, .. } => {
                let unknown = note.unknown || maybe_sent;
                let priority = granted.delivery.leg.record.priority;
                let after = after.map(|after| self.clocked(after));
                match self.parts.schedule.next(id, number, priority, after, now) {
                    Next::Again { due, .. } => Phase::Scheduled { due, note: Note { unknown, ..note } },
                    Next::GiveUp => {
                        let reason = Some(Reason::AttemptsExhausted);
                        Phase::Dead { note: Note { unknown, reason, dlq: true, ..note } }
                    }
                }
            }
            Outcome::Permanent { .. } => {
                Phase::Dead { note: Note { reason: Some(Reason::Refused), dlq: true, ..note } }
            }
            Outcome::InvalidAddress { .. } => {
                Phase::Dead { note: Note { reason: Some(Reason::InvalidAddress), ..note } }
            }
            Outcome::Paused { .. } => return None,
        })
    }

    /// Steps 6 and 7: the ledger in one trip, then rows, then what follows from them.
    async fn close(&self, desk: &Desk, verdicts: Vec<Verdict>) -> Vec<Step> {
        if verdicts.is_empty() {
            return Vec::new();
        }
        let now = self.now();
        let critical = verdicts.iter().all(|it| it.granted.delivery.leg.is_critical());
        let settles: Vec<_> = verdicts.iter().map(|it| (self.settlement(it), it.granted.under.clone())).collect();
        let (mut steps, mut said, mut follow, mut finished) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let kept = match self.settle(desk, settles.clone(), critical).await {
            Some(kept) => kept,
            None if critical => {
                // Nobody waits for it: the ledger is told behind them.
                steps.push(Step::Settle(settles));
                vec![true; verdicts.len()]
            }
            None => return Vec::new(),
        };
        for (Verdict { granted, phase, detail }, kept) in verdicts.into_iter().zip(kept) {
            let kept = kept || granted.under.is_none();
            let Granted { mut delivery, entry, .. } = granted;
            let number = entry.newest().number;
            delivery.fresh = false;
            if !kept {
                // The lease ran out under us: whoever has it now says what became of it.
                steps.push(Step::Again { at: self.elapsed(), gate: None, delivery: Box::new(delivery) });
                continue;
            }
            let Some(phase) = phase else {
                // Nothing was called, so nothing is said; older attempts are with the next outcome.
                let provider = delivery.listed.as_ref().and_then(|it| self.parts.providers.of(&it.address));
                let (at, gate) = (self.elapsed(), provider.map(|it| it.name()));
                steps.push(Step::Again { at, gate, delivery: Box::new(delivery) });
                continue;
            };
            let leg = delivery.leg.clone();
            let entry = entry.ended(phase.clone());
            said.extend(rows::of_entry(&leg.record, delivery.key.delivery, &entry, delivery.said, now));
            (delivery.known, delivery.said) = (number, number);
            match phase {
                Phase::Scheduled { due, .. } => match Schedule::resume(number, due, now) {
                    Wait::Memory => {
                        let at = self.will_be(due);
                        steps.push(Step::Again { at, gate: None, delivery: Box::new(delivery) });
                    }
                    Wait::Topic(delay) => {
                        follow.push(self.retry(&delivery, number, delay, now));
                        finished.push((leg, Ended::Held));
                    }
                },
                Phase::Dead { note } => {
                    follow.extend(self.obituary(&delivery, number, &note, &detail).await);
                    finished.push((leg, ended(true, &note)));
                }
                Phase::Sent { .. } | Phase::Pending { .. } => finished.push((leg, Ended::Held)),
            }
        }
        self.say(desk, said, follow).await;
        for (leg, ended) in finished {
            self.finish(desk, &leg, ended).await;
        }
        steps
    }

    /// What the ledger is to keep of a verdict.
    fn settlement(&self, it: &Verdict) -> Settle {
        let number = it.granted.entry.newest().number;
        let leg = &it.granted.delivery.leg;
        let origin = leg.is_critical().then_some(leg.record.event);
        Settle {
            key: it.granted.delivery.key.clone(),
            owner: it.granted.owner.clone(),
            attempt: it.phase.clone().map(|phase| Attempt { number, phase: phase.of(origin) }),
            keep: matches!(&it.phase, Some(Phase::Scheduled { due, .. })
                if Schedule::resume(number, *due, self.now()) != Wait::Memory),
            refound: false,
        }
    }

    /// Settles until the ledger answers: for each whether it was still ours. `None`: abandoned; `once`: it did
    /// not answer in time. What this incarnation did not grant (an earlier one did, or none) is written down all
    /// the same, so that a repeat meets it; whoever heard of the loss first need not have been this one.
    async fn settle(&self, desk: &Desk, settles: Vec<(Settle, Option<Incarnation>)>, once: bool) -> Option<Vec<bool>> {
        let mut pause = BACKOFF.0;
        loop {
            let incarnation = self.incarnation();
            let refound = |(settle, under): &(Settle, Option<Incarnation>)| Settle {
                refound: under.as_ref() != Some(&incarnation),
                ..settle.clone()
            };
            let settles: Vec<Settle> = settles.iter().map(refound).collect();
            let asked = desk.ledger.settle(&incarnation, &settles, self.now());
            let error = match patiently(once, asked).await {
                Ok(kept) => {
                    desk.troubles.over(&[SETTLEMENTS_WAIT], self.now());
                    return Some(kept);
                }
                Err(LedgerError::Lost) => match self.refound(once).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            desk.troubles.met(SETTLEMENTS_WAIT, &error, self.now());
            if once {
                return None;
            }
            pause = self.pause(desk, pause).await?;
        }
    }

    fn retry(&self, delivery: &Delivery, attempt: u32, delay: RetryDelay, now: Instant) -> Append {
        let record = &delivery.leg.record;
        let class = RetryClass::of(record.priority);
        let topic = self.parts.topics.retry(record.channel, class, delay);
        let siblings = match &delivery.leg.retry {
            Some(retry) => retry.siblings.clone(),
            None if record.fallback_channels.is_empty() => Vec::new(),
            None => {
                let open = delivery.leg.open.lock().unwrap_or_else(PoisonError::into_inner);
                open.deliveries.iter().copied().filter(|it| *it != delivery.key.delivery).collect()
            }
        };
        let waits = LaneRecord { only_address: Some(delivery.address_id.clone()), ..record.clone() };
        let retry = Retry { due: now.after(delay.duration()), attempt, siblings };
        wire::retry(self.to(&topic, &record.user), &waits, &retry)
    }

    /// What a death leaves behind: a dead letter, or a word to the addresses topic.
    async fn obituary(&self, delivery: &Delivery, attempts: u32, note: &Note, detail: &str) -> Vec<Append> {
        let record = &delivery.leg.record;
        let mut follow = Vec::new();
        if note.dlq {
            let letter = DeadLetter {
                delivery: Some(delivery.key.delivery),
                leg: Some(LaneRecord { only_address: Some(delivery.address_id.clone()), ..record.clone() }),
                raw: None,
                from: delivery.leg.ticket.place(),
                provider: note.provider.clone(),
                code: note.code.clone(),
                reason: note.reason.unwrap_or(Reason::Refused),
                detail: detail.to_owned(),
                attempts,
                unknown: note.unknown,
                at: note.at,
            };
            follow.push(wire::dead_letter(self.to(&self.parts.topics.dlq(), &record.user), &record.user, &letter));
        }
        if note.reason == Some(Reason::InvalidAddress)
            && let Some(listed) = &delivery.listed
        {
            follow.extend(self.struck(listed, note).await);
        }
        follow
    }

    /// The address as invalid, unless it was renewed since: then the provider spoke of an older one.
    async fn struck(&self, called: &Listed, note: &Note) -> Option<Append> {
        let user = called.address.user_id.as_str();
        let known = self.parts.directory.look(self.parts.channel, &[user]).await.ok().and_then(|mut it| it.pop());
        let now = known.as_ref().map_or(Some(called), |known| {
            known.addresses.iter().find(|it| it.address.address_id == called.address.address_id)
        })?;
        let renewed = now.address.address != called.address.address
            || now.address.registered_at.max(now.address.last_seen_at).is_some_and(|at| at > note.at);
        if renewed || !now.is_live() {
            return None;
        }
        let reason = Some(format!("{}: {}", note.provider, note.code));
        let address = Address { status: AddressStatus::Invalid, reason, ..called.address.clone() };
        let to = TopicPartition { topic: self.parts.topics.addresses().into(), partition: called.partition };
        Some(wire::address(to, &address))
    }

    /// One delivery of a leg ended; with the last one the leg does.
    async fn finish(&self, desk: &Desk, leg: &Leg, ended: Ended) {
        let failed = {
            let mut open = leg.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.held |= ended == Ended::Held;
            open.left = open.left.saturating_sub(1);
            if open.left > 0 {
                return;
            }
            !open.held
        };
        let now = self.now();
        if failed && !leg.is_expired(now) && !leg.record.fallback_channels.is_empty() {
            match self.siblings_failed(desk, leg).await {
                None => return,
                Some(false) => {}
                Some(true) => {
                    let (said, follow) = self.fallback(leg, now).unwrap_or_default();
                    self.say(desk, said, follow).await;
                }
            }
        }
        leg.ticket.settle();
    }

    /// Whether the deliveries that this retry record's leg had beside it all failed. `None`: abandoned.
    async fn siblings_failed(&self, desk: &Desk, leg: &Leg) -> Option<bool> {
        let Some(retry) = leg.retry.as_ref().filter(|retry| !retry.siblings.is_empty()) else { return Some(true) };
        let keys: Vec<_> = retry.siblings.iter().map(|it| Key { delivery: *it, bucket: Bucket::Own }).collect();
        let entries = self.entries(desk, &keys).await?;
        // One that is not known any more ended long ago; a fallback that late would be a second message.
        let failed = |entry: &Option<Entry>| match entry.as_ref().map(|entry| &entry.newest().phase) {
            Some(Phase::Dead { note }) => ended(true, note) == Ended::Failed,
            _ => false,
        };
        Some(entries.iter().all(failed))
    }

    async fn say(&self, desk: &Desk, rows: Vec<Row>, follow: Vec<Append>) {
        desk.metrics.count(&rows);
        desk.outbox.say(rows, follow).await;
    }

    /// What the directory knows about each leg's user; asks until it answers. `None`: abandoned.
    async fn look(&self, desk: &Desk, records: &[&LaneRecord]) -> Option<Vec<Known>> {
        let users: Vec<_> = records.iter().map(|record| record.user.as_str()).collect();
        let mut pause = BACKOFF.0;
        loop {
            match self.parts.directory.look(self.parts.channel, &users).await {
                Ok(known) => {
                    desk.troubles.over(&[DIRECTORY_WAITS], self.now());
                    return Some(known);
                }
                Err(error) => desk.troubles.met(DIRECTORY_WAITS, &error, self.now()),
            }
            pause = self.pause(desk, pause).await?;
        }
    }

    /// What the ledger knows; asks until it answers. `None`: abandoned.
    async fn entries(&self, desk: &Desk, keys: &[Key]) -> Option<Vec<Option<Entry>>> {
        let mut pause = BACKOFF.0;
        loop {
            let error = match desk.ledger.look(&self.incarnation(), keys).await {
                Ok(entries) => return Some(entries),
                Err(LedgerError::Lost) => match self.refound(false).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            desk.troubles.met(CLAIMS_WAIT, &error, self.now());
            pause = self.pause(desk, pause).await?;
        }
    }

    /// The ledger was lost, or is heard for the first time: learns its incarnation.
    async fn refound(&self, critical: bool) -> Result<(), LedgerError> {
        let incarnation = patiently(critical, self.parts.ledger.incarnation(self.now())).await?;
        let mut known = self.incarnation.write().unwrap_or_else(PoisonError::into_inner);
        if known.is_lost(&incarnation) {
            tracing::error!("the ledger was lost; what was in flight is recorded as unknown");
        }
        *known = incarnation;
        Ok(())
    }

    /// Waits, and says how long to wait next time. `None`: it is time to stop.
    async fn pause(&self, desk: &Desk, pause: Duration) -> Option<Duration> {
        tokio::select! {
            biased;
            () = desk.draining.cancelled() => None,
            () = tokio::time::sleep(pause) => Some((pause * 2).min(BACKOFF.1)),
        }
    }
}

impl Delivery {
    fn refreshed(mut self, known: &Known, looked: Duration) -> Self {
        self.looked = looked;
        if self.leg.record.channel != Channel::InApp {
            self.listed = known.addresses.iter().find(|it| it.address.address_id == self.address_id).cloned();
        }
        self.profile = Arc::new(known.profile.clone());
        self
    }
}

/// A failure that another channel could make good; what the user or the clock decided is none.
fn ended(dead: bool, note: &Note) -> Ended {
    let decided =
        matches!(note.reason, Some(Reason::OptedOut | Reason::LegalStop | Reason::NoConsent | Reason::Expired));
    if dead && !decided { Ended::Failed } else { Ended::Held }
}

fn call(granted: &Granted, content: &Content) -> Option<Call> {
    let delivery = &granted.delivery;
    let record = &delivery.leg.record;
    Some(Call {
        delivery: delivery.key.delivery,
        notification: record.notification,
        user: record.user.clone(),
        address: delivery.listed.as_ref()?.address.clone(),
        content: content.clone(),
        collapse_key: None,
        expires_at: record.expires_at,
        priority: record.priority,
        category: record.category.clone(),
    })
}

/// In-app needs no address: the user is one.
fn inbox_address(user: &str) -> Listed {
    let address = Address {
        user_id: user.to_owned(),
        address_id: user.to_owned(),
        channel: Channel::InApp,
        provider: None,
        platform: None,
        address: user.to_owned(),
        environment: None,
        registered_at: None,
        last_seen_at: None,
        status: AddressStatus::Live,
        reason: None,
    };
    Listed { address, partition: 0 }
}

/// Critical ones don't wait for a ledger that is slow.
async fn patiently<T>(critical: bool, asked: impl Future<Output = Result<T, LedgerError>>) -> Result<T, LedgerError> {
    if !critical {
        return asked.await;
    }
    tokio::time::timeout(CRITICAL_LEDGER_WAIT, asked)
        .await
        .unwrap_or_else(|_| Err(LedgerError::Ambiguous(format!("no answer within {CRITICAL_LEDGER_WAIT:?}"))))
}
