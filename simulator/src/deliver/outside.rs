//! What deliver stands on and what outlives its processes: a ledger that is lost now and then, a directory,
//! and providers with good and bad days. All of them fail when the seed says so, and note what they saw.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::pending;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{DeliveryId, NotificationId};
use tidings_schemas::profile::{Address, Profile};
use tidings_schemas::time::Instant;
use tidings_sinks::directory::{Change, Directory, DirectoryError, Known, Listed, Position};
use tidings_sinks::ledger::{Claim, Claimed, Entry, Incarnation, Key, Ledger, LedgerError, MemoryLedger, Settle};
use tidings_sinks::log::TopicPartition;
use tidings_sinks::outcome::{Code, Outcome};
use tidings_sinks::providers::{Call, Provider};

use crate::choices::Rng;
use crate::log::{Life, World};
use crate::options::DeliverFaults;
use crate::workload::{ADDRESSES, PROFILES};

/// How long a provider may take for an answer.
pub const CALL_MAX: Duration = Duration::from_secs(5);

/// One call for one delivery, as the provider saw it.
#[derive(Clone, Debug)]
pub struct Called {
    /// Which.
    pub delivery: DeliveryId,
    /// What it is part of.
    pub notification: NotificationId,
    /// Whom it is for.
    pub user: String,
    /// On which channel.
    pub channel: Channel,
    /// How urgent.
    pub priority: Priority,
    /// When the call was made.
    pub at: Instant,
    /// Whether the provider has the message.
    pub received: bool,
    /// By which process.
    pub process: u64,
    /// Since when the process had not stood still, and when it had begun to.
    pub steady: (Instant, Instant),
    /// When anything last failed that this call shares with other lanes: log, ledger, directory.
    pub shared_trouble: Option<Instant>,
    /// When its own provider was last unwell.
    pub own_trouble: Option<Instant>,
}

/// A provider's day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// Nobody answers.
    Hangs,
    /// It asks to come back later.
    Busy,
    /// It refuses our credentials.
    Paused,
    /// It takes its time.
    Slow,
}

/// What is known of everybody, straight from the topics.
#[derive(Default)]
struct People {
    read: BTreeMap<TopicPartition, usize>,
    profiles: BTreeMap<String, Profile>,
    addresses: BTreeMap<String, BTreeMap<String, Listed>>,
}

struct State {
    rng: Rng,
    faults: DeliverFaults,
    left: u64,
    ledger: Arc<MemoryLedger>,
    ledger_away: Duration,
    directory_away: Duration,
    weather: BTreeMap<Channel, (Duration, Weather)>,
    own_trouble: BTreeMap<(Channel, bool), Instant>,
    shared_trouble: Option<Instant>,
    ledger_trouble: Option<Instant>,
    called: Vec<Called>,
    lost: Vec<Instant>,
    people: People,
}

/// All of it.
pub struct Outside {
    /// The world.
    pub world: Arc<World>,
    state: Mutex<State>,
}

/// A process as the outside knows it.
pub struct Caller {
    /// Its life.
    pub life: Arc<Life>,
    /// Since when it did not stand still, and when it had begun to.
    pub steady: Mutex<(Instant, Instant)>,
}

impl Outside {
    /// Everything well, nobody known.
    #[must_use]
    pub fn new(world: Arc<World>, seed: u64, faults: DeliverFaults) -> Arc<Self> {
        let state = State {
            rng: Rng::new(seed ^ 0x0000_DE11_7E12_0000),
            left: faults.at_most,
            faults,
            ledger: Arc::default(),
            ledger_away: Duration::ZERO,
            directory_away: Duration::ZERO,
            weather: BTreeMap::new(),
            own_trouble: BTreeMap::new(),
            shared_trouble: None,
            ledger_trouble: None,
            called: Vec::new(),
            lost: Vec::new(),
            people: People::default(),
        };
        Arc::new(Self { world, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every call that was made.
    #[must_use]
    pub fn called(&self) -> Vec<Called> {
        self.state().called.clone()
    }

    /// When the ledger lost everything.
    #[must_use]
    pub fn lost(&self) -> Vec<Instant> {
        self.state().lost.clone()
    }

    /// A number below `count`.
    pub fn below(&self, count: u64) -> u64 {
        self.state().rng.below(count)
    }

    /// Whether a fault of this rate strikes now.
    pub fn strikes(&self, name: &'static str, per_million: impl FnOnce(&DeliverFaults) -> u64) -> bool {
        let mut state = self.state();
        let rate = per_million(&state.faults);
        let strikes = state.left > 0 && state.rng.chance(rate);
        if strikes {
            state.left -= 1;
            *self.world.nature().struck.entry(name).or_default() += 1;
        }
        strikes
    }

    /// Something that lanes share is unwell.
    pub fn troubled(&self) {
        self.state().shared_trouble = Some(self.world.time.truth());
    }

    /// The ledger is: only what is critical does without.
    fn ledger_troubled(&self) {
        self.state().ledger_trouble = Some(self.world.time.truth());
    }

    /// What goes wrong with nobody's doing: the ledger goes away or loses everything, a provider's bad day begins.
    pub fn trouble(&self) {
        let now = self.world.time.elapsed();
        if self.strikes("ledger lost", |it| it.ledger_lost) {
            self.state().ledger = Arc::default();
            self.state().lost.push(self.world.time.truth());
            self.ledger_troubled();
            self.world.trace(|| "the ledger restarts with all keys gone".to_owned());
        }
        if self.strikes("ledger away", |it| it.ledger_away) {
            let span = Duration::from_millis(*self.state().rng.one(&[200, 3_000, 40_000, 1_200_000]));
            self.state().ledger_away = now + span;
            self.world.trace(|| format!("the ledger is away for {span:?}"));
        }
        if self.strikes("directory away", |it| it.directory_away) {
            let span = Duration::from_millis(*self.state().rng.one(&[200, 3_000, 60_000]));
            self.state().directory_away = now + span;
            self.world.trace(|| format!("the directory is away for {span:?}"));
        }
        if self.strikes("bad day of a provider", |it| it.bad_day) {
            let mut state = self.state();
            let channel = *state.rng.one(&super::CHANNELS);
            let weather = *state.rng.one(&[Weather::Hangs, Weather::Busy, Weather::Paused, Weather::Slow]);
            let span = Duration::from_secs(*state.rng.one(&[2, 60, 600, 1_800]));
            state.weather.insert(channel, (now + span, weather));
            drop(state);
            self.world.trace(|| format!("{channel}'s provider has a bad day of {span:?}: {weather:?}"));
        }
    }

    /// Faults stop.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults = DeliverFaults::default();
        state.weather.clear();
        state.ledger_away = Duration::ZERO;
        state.directory_away = Duration::ZERO;
    }

    /// What is known of `user` now.
    #[must_use]
    pub fn known(&self, user: &str) -> (Profile, Vec<Listed>) {
        let mut state = self.state();
        state.people.catch_up(&self.world);
        let profile = state.people.profiles.get(user).cloned().unwrap_or_default();
        let addresses = state.people.addresses.get(user).map(|all| all.values().cloned().collect());
        (profile, addresses.unwrap_or_default())
    }
}

impl People {
    fn catch_up(&mut self, world: &World) {
        let nature = world.nature();
        for (partition, records) in &nature.history {
            if ![PROFILES, ADDRESSES].contains(&&*partition.topic) {
                continue;
            }
            let read = self.read.entry(partition.clone()).or_default();
            for record in &records[*read..] {
                let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
                if &*partition.topic == PROFILES {
                    if let Ok(profile) = Profile::from_json(record.value.as_deref()) {
                        self.profiles.insert(key, profile);
                    }
                    continue;
                }
                let Some((user, address_id)) = key.split_once('/') else { continue };
                let addresses = self.addresses.entry(user.to_owned()).or_default();
                match record.value.as_deref().map(serde_json::from_slice::<Address>) {
                    None => drop(addresses.remove(address_id)),
                    Some(Ok(address)) => {
                        addresses.insert(address_id.to_owned(), Listed { address, partition: partition.partition });
                    }
                    Some(Err(_)) => {}
                }
            }
            *read = records.len();
        }
    }
}

/// The directory as one process sees it.
pub struct ProcessDirectory {
    /// What outlives it.
    pub outside: Arc<Outside>,
}

#[async_trait]
impl Directory for ProcessDirectory {
    async fn look(&self, channel: Channel, users: &[&str]) -> Result<Vec<Known>, DirectoryError> {
        if self.outside.world.time.elapsed() < self.outside.state().directory_away {
            self.outside.troubled();
            return Err(DirectoryError::Unreachable("simulated".to_owned()));
        }
        let known = users.iter().map(|user| {
            let (profile, mut addresses) = self.outside.known(user);
            addresses.retain(|listed| listed.address.channel == channel);
            Known { addresses, profile }
        });
        Ok(known.collect())
    }

    async fn apply(&self, _: &[Change], _: &[Position]) -> Result<(), DirectoryError> {
        Ok(())
    }

    async fn positions(&self, all: &[TopicPartition]) -> Result<Vec<Option<u64>>, DirectoryError> {
        Ok(vec![None; all.len()])
    }

    async fn loaded(&self) -> Result<(), DirectoryError> {
        Ok(())
    }
}

/// The ledger as one process sees it.
pub struct ProcessLedger {
    /// What outlives it.
    pub outside: Arc<Outside>,
    /// Who asks.
    pub caller: Arc<Caller>,
}

/// How a question to the ledger goes.
enum Way {
    Well,
    Unreachable,
    /// It happens, or does not, and nobody is told.
    Unheard {
        happens: bool,
    },
    /// The process dies, before or after.
    Dies {
        happens: bool,
    },
}

impl ProcessLedger {
    async fn way(&self) -> Way {
        let outside = &self.outside;
        let alive = || !self.caller.life.is_over();
        if !alive() {
            return pending().await;
        }
        if outside.world.time.elapsed() < outside.state().ledger_away {
            outside.ledger_troubled();
            // Refused at once, or after a while.
            let wait = *outside.state().rng.one(&[0, 5, 400]);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            return Way::Unreachable;
        }
        let happens = outside.state().rng.chance(500_000);
        if outside.strikes("unheard ledger", |it| it.ledger_unheard) {
            outside.ledger_troubled();
            let wait = *outside.state().rng.one(&[1, 400, 3_000]);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            return if alive() { Way::Unheard { happens } } else { pending().await };
        }
        if outside.strikes("slow ledger", |it| it.ledger_slow) {
            outside.ledger_troubled();
            let wait = *outside.state().rng.one(&[50, 1_000, 20_000]);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            return if alive() { Way::Well } else { pending().await };
        }
        if outside.strikes("death at the ledger", |it| it.dies) {
            return Way::Dies { happens };
        }
        Way::Well
    }

    async fn ask<R>(
        &self,
        name: &str,
        question: impl AsyncFnOnce(&MemoryLedger) -> Result<R, LedgerError>,
    ) -> Result<R, LedgerError> {
        let (way, number) = (self.way().await, self.caller.life.number);
        let ledger = Arc::clone(&self.outside.state().ledger);
        match way {
            Way::Well => question(&ledger).await,
            Way::Unreachable => Err(LedgerError::Unreachable("simulated".to_owned())),
            Way::Unheard { happens } => {
                self.outside.world.trace(|| format!("p{number} hears nothing of its {name}, done {happens}"));
                if happens {
                    question(&ledger).await?;
                }
                Err(LedgerError::Ambiguous("simulated".to_owned()))
            }
            Way::Dies { happens } => {
                self.outside.world.trace(|| format!("p{number} dies at its {name}, done {happens}"));
                if happens {
                    question(&ledger).await?;
                }
                self.caller.life.end();
                pending().await
            }
        }
    }
}

#[async_trait]
impl Ledger for ProcessLedger {
    async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
        self.ask("incarnation", async |it| it.incarnation(now).await).await
    }

    async fn claim(
        &self,
        incarnation: &Incarnation,
        claims: &[Claim],
        now: Instant,
    ) -> Result<Vec<Claimed>, LedgerError> {
        self.ask("claim", async |it| it.claim(incarnation, claims, now).await).await
    }

    async fn settle(
        &self,
        incarnation: &Incarnation,
        settles: &[Settle],
        now: Instant,
    ) -> Result<Vec<bool>, LedgerError> {
        self.ask("settlement", async |it| it.settle(incarnation, settles, now).await).await
    }

    async fn look(&self, incarnation: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        self.ask("look", async |it| it.look(incarnation, keys).await).await
    }

    async fn passed(
        &self,
        incarnation: &Incarnation,
        lane: &TopicPartition,
        said_through: u64,
        now: Instant,
    ) -> Result<(), LedgerError> {
        self.ask("passing", async |it| it.passed(incarnation, lane, said_through, now).await).await
    }
}

/// A channel's provider as one process sees it.
pub struct ProcessProvider {
    /// What outlives it.
    pub outside: Arc<Outside>,
    /// Who calls.
    pub caller: Arc<Caller>,
    /// The channel.
    pub channel: Channel,
    /// Most calls in one request.
    pub batch_max: usize,
}

/// What a provider does with one message.
struct Answer {
    received: bool,
    /// None: nobody answers.
    outcome: Option<Outcome>,
    /// The process dies before it hears of it.
    dies: bool,
}

impl Answer {
    fn heard(received: bool, outcome: Outcome) -> Self {
        Self { received, outcome: Some(outcome), dies: false }
    }
}

fn accepted() -> Answer {
    Answer::heard(true, Outcome::accepted(Code::new(200, ""), "id"))
}

impl Outside {
    /// How long a request takes, and what becomes of each of its messages.
    fn answer(&self, channel: Channel, critical: bool, count: usize) -> (Duration, Vec<Answer>) {
        let now = self.world.time.elapsed();
        let truth = self.world.time.truth();
        let mut state = self.state();
        let weather = state.weather.get(&channel).filter(|(until, _)| *until > now).map(|(_, weather)| *weather);
        let unwell = |state: &mut State| state.own_trouble.insert((channel, critical), truth);
        let mut latency = Duration::from_millis(state.rng.below(60));
        let mut answers = Vec::new();
        for _ in 0..count {
            let faults = state.faults;
            let rates = [
                faults.lost_answer,
                faults.hangs,
                faults.busy,
                faults.maybe,
                faults.refuses,
                faults.invalid,
                faults.dies_calling,
            ];
            let drawn = rates.iter().position(|rate| state.rng.chance(*rate));
            if weather.is_some() || drawn.is_some() {
                unwell(&mut state);
            }
            let received = state.rng.chance(500_000);
            let after = *state.rng.one(&[None, Some(2), Some(30), Some(600)]);
            let busy = Outcome::retryable(Code::new(503, "Busy"), after.map(Duration::from_secs));
            answers.push(match (weather, drawn) {
                (Some(Weather::Hangs), _) => Answer { received, outcome: None, dies: false },
                (Some(Weather::Busy), _) => Answer::heard(false, busy),
                (Some(Weather::Paused), _) => {
                    Answer::heard(false, Outcome::paused(Code::new(401, "Unauthorized"), "the key is wrong"))
                }
                // It was carried out, and its answer is lost.
                (_, Some(0)) => Answer { received: true, outcome: None, dies: false },
                (_, Some(1)) => Answer { received: false, outcome: None, dies: false },
                (_, Some(2)) => Answer::heard(false, busy),
                (_, Some(3)) => Answer::heard(received, Outcome::unknown(Code::new(500, "Internal"))),
                (_, Some(4)) => Answer::heard(false, Outcome::permanent(Code::new(400, "Refused"), "it is refused")),
                (_, Some(5)) => {
                    Answer::heard(false, Outcome::invalid_address(Code::new(410, "Gone"), "nobody lives there"))
                }
                (_, Some(_)) => Answer { received, outcome: None, dies: true },
                (Some(Weather::Slow), None) => {
                    latency = Duration::from_millis(state.rng.between(500, 6_000));
                    accepted()
                }
                (None, None) => accepted(),
            });
        }
        (latency, answers)
    }
}

#[async_trait]
impl Provider for ProcessProvider {
    fn name(&self) -> &'static str {
        match self.channel {
            Channel::Push => "push-provider",
            Channel::Email => "email-provider",
            Channel::Sms => "sms-provider",
            Channel::InApp => "inbox",
            Channel::Webhook => "webhook-provider",
        }
    }

    fn channel(&self) -> Channel {
        self.channel
    }

    fn batch_max(&self) -> usize {
        self.batch_max
    }

    fn timeout(&self) -> Duration {
        CALL_MAX
    }

    async fn deliver(&self, calls: &[Call], _: Instant) -> Vec<Outcome> {
        let Self { outside, caller, channel, .. } = self;
        if caller.life.is_over() {
            return pending().await;
        }
        let number = caller.life.number;
        let critical = calls.iter().all(|call| call.priority == Priority::Critical);
        let first = {
            let (at, steady) =
                (outside.world.time.truth(), *caller.steady.lock().unwrap_or_else(PoisonError::into_inner));
            let log_trouble = outside.world.nature().failed_at;
            let mut state = outside.state();
            let first = state.called.len();
            let own_trouble = state.own_trouble.get(&(*channel, critical)).copied();
            let ledger_trouble = state.ledger_trouble.filter(|_| !critical);
            let shared_trouble = state.shared_trouble.max(ledger_trouble).max(log_trouble);
            state.called.extend(calls.iter().map(|call| Called {
                delivery: call.delivery,
                notification: call.notification,
                user: call.user.clone(),
                channel: *channel,
                priority: call.priority,
                at,
                received: false,
                process: number,
                steady,
                shared_trouble,
                own_trouble,
            }));
            first
        };
        let (latency, answers) = outside.answer(*channel, critical, calls.len());
        tokio::time::sleep(latency).await;
        if caller.life.is_over() {
            return pending().await;
        }
        let (mut outcomes, mut silent) = (Vec::new(), false);
        for ((place, call), Answer { received, outcome, dies }) in calls.iter().enumerate().zip(answers) {
            outside.state().called[first + place].received = received;
            outside.world.trace(|| {
                let word = outcome.as_ref().map_or("silence", Outcome::word);
                let got = if received { "received" } else { "not received" };
                let end = if dies { ", and it dies" } else { "" };
                format!("p{number} calls {channel} for {}: {got}, {word}{end}", call.delivery)
            });
            if dies {
                caller.life.end();
                return pending().await;
            }
            silent |= outcome.is_none();
            outcomes.extend(outcome);
        }
        if silent { pending().await } else { outcomes }
    }
}
