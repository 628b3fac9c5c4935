//! What a seed draws before anything runs: the topology, the size of things, and how much goes wrong.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tidings_operators::registry::Wiring;
use tidings_operators::script;
use tidings_schemas::channel::Channel;
use tidings_schemas::units::Period;

use crate::choices::Rng;
use crate::oracle::{NotModelled, Records, Source, Topology, Written};

/// How often things go wrong, in a million: of appends, of puts, of steps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// An append is refused, and nothing of it happened.
    pub unreachable: u64,
    /// An append happened and its acknowledgement is lost.
    pub lost_ack: u64,
    /// The first records of an append happened, and nobody is told.
    pub torn: u64,
    /// An append seems lost and happens later.
    pub late: u64,
    /// The process dies before, in or after an append.
    pub dies_appending: u64,
    /// The process dies before or after an object is put.
    pub dies_putting: u64,
    /// An object is not put.
    pub put_fails: u64,
    /// An object is put, and nobody is told.
    pub put_lost: u64,
    /// A read fails for a moment.
    pub read_fails: u64,
    /// A process is killed between two steps.
    pub killed: u64,
    /// A process stands still for a while, and another one takes over.
    pub frozen: u64,
    /// One part of a process stands still for a while.
    pub stalled: u64,
    /// The wall clock is set wrong, or right again.
    pub clock_jumps: u64,
    /// The newest checkpoint rots.
    pub damaged: u64,
    /// What a kept checkpoint covers is compacted and given up.
    pub trimmed: u64,
}

/// How often things go wrong for deliver, in a million: of calls, of questions, of steps.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeliverFaults {
    /// Faults that strike at most, beside those of the log and of providers' answers.
    pub at_most: u64,
    /// A process is killed between two steps.
    pub killed: u64,
    /// A process stands still for a while, and another one takes over.
    pub frozen: u64,
    /// Its group believes everybody dead.
    pub evicted: u64,
    /// A process dies while it asks the ledger.
    pub dies: u64,
    /// The ledger restarts with all keys gone.
    pub ledger_lost: u64,
    /// The ledger cannot be reached for a while.
    pub ledger_away: u64,
    /// The ledger's answer is lost.
    pub ledger_unheard: u64,
    /// The ledger takes its time.
    pub ledger_slow: u64,
    /// The directory cannot be reached for a while.
    pub directory_away: u64,
    /// A provider has a bad day.
    pub bad_day: u64,
    /// Accepted, then timed out.
    pub lost_answer: u64,
    /// Not accepted, and no answer.
    pub hangs: u64,
    /// To be tried again.
    pub busy: u64,
    /// An answer that leaves open whether it was carried out.
    pub maybe: u64,
    /// Refused for good.
    pub refuses: u64,
    /// The address is dead.
    pub invalid: u64,
    /// The process dies during the call.
    pub dies_calling: u64,
    /// ClickHouse cannot be reached for a while.
    pub record_away: u64,
    /// An insert happens, and nobody is told.
    pub record_unheard: u64,
    /// The record's writer dies before or after an insert.
    pub record_dies: u64,
}

/// What the seed drew for deliver.
#[derive(Clone, Debug)]
pub struct DeliverOptions {
    /// Whether it runs at all.
    pub runs: bool,
    /// Records in flight, a lane.
    pub records_max: usize,
    /// Records that are looked up together.
    pub batch_max: usize,
    /// Calls in one request, where a provider takes several.
    pub call_batch_max: usize,
    /// Time between two polls that bring nothing.
    pub poll_wait: Duration,
    /// How often things go wrong.
    pub faults: DeliverFaults,
}

impl DeliverOptions {
    fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0071_D195_DE11_0000);
        let rng = &mut rng;
        let some = |rng: &mut Rng, most: u64| if rng.chance(450_000) { rng.below(most) } else { 0 };
        let faults = DeliverFaults {
            at_most: *rng.one(&[0, 2, 6, 20, 60]),
            killed: some(rng, 20_000),
            frozen: some(rng, 20_000),
            evicted: some(rng, 5_000),
            dies: some(rng, 60_000),
            ledger_lost: some(rng, 10_000),
            ledger_away: some(rng, 10_000),
            ledger_unheard: some(rng, 60_000),
            ledger_slow: some(rng, 60_000),
            directory_away: some(rng, 10_000),
            bad_day: some(rng, 20_000),
            lost_answer: some(rng, 150_000),
            hangs: some(rng, 100_000),
            busy: some(rng, 200_000),
            maybe: some(rng, 100_000),
            refuses: some(rng, 60_000),
            invalid: some(rng, 40_000),
            dies_calling: some(rng, 40_000),
            record_away: some(rng, 40_000),
            record_unheard: some(rng, 200_000),
            record_dies: some(rng, 200_000),
        };
        Self {
            runs: true,
            records_max: *rng.one(&[1, 4, 50, 2_000]),
            batch_max: *rng.one(&[1, 3, 20, 500]),
            call_batch_max: *rng.one(&[1, 3, 50]),
            poll_wait: Duration::from_millis(*rng.one(&[500, 2_000, 10_000])),
            faults,
        }
    }
}

/// An operator as `script::straight` takes it.
pub type Wired = (&'static str, Value, Option<&'static str>);

/// What the seed drew.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Operators, from the top down.
    pub operators: Vec<Wired>,
    /// Spread of the morning's release.
    pub spread: Duration,
    /// Partitions of the events topic.
    pub event_partitions: u32,
    /// Partitions of each lane.
    pub lane_partitions: u32,
    /// Partitions of the profiles topic.
    pub profile_partitions: u32,
    /// Most workers of a generation.
    pub workers_max: u64,
    /// Users.
    pub users: u64,
    /// Batches of records, spread over the hours.
    pub batches: u64,
    /// Records in a batch, at most.
    pub batch_max: u64,
    /// How long the world lasts.
    pub hours: u64,
    /// Shortest time between cuts.
    pub epoch_min: Duration,
    /// Longest time between cuts.
    pub idle_max: Duration,
    /// Time between checkpoints.
    pub checkpoint_every: Duration,
    /// Faults that strike at most.
    pub faults_max: u64,
    /// Generations that may be alive at once.
    pub alive_max: usize,
    /// How often.
    pub faults: Faults,
    /// What deliver is like.
    pub deliver: DeliverOptions,
}

impl Options {
    /// The options of `seed`.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0071_D196_5000_0000);
        let rng = &mut rng;
        // Some seeds know no faults of a kind, so that others are not drowned by them.
        let some = |rng: &mut Rng, most: u64| if rng.chance(450_000) { rng.below(most) } else { 0 };
        let faults = Faults {
            unreachable: some(rng, 60_000),
            lost_ack: some(rng, 40_000),
            torn: some(rng, 40_000),
            late: some(rng, 15_000),
            dies_appending: some(rng, 40_000),
            dies_putting: some(rng, 100_000),
            put_fails: some(rng, 100_000),
            put_lost: some(rng, 100_000),
            read_fails: some(rng, 5_000),
            killed: some(rng, 300),
            frozen: some(rng, 200),
            stalled: some(rng, 400),
            clock_jumps: some(rng, 100),
            damaged: some(rng, 400_000),
            trimmed: some(rng, 300),
        };
        let operators = operators(rng);
        Self {
            seed,
            spread: spread(&operators),
            operators,
            event_partitions: u32::try_from(rng.between(1, 4)).unwrap_or(1),
            lane_partitions: u32::try_from(rng.between(1, 3)).unwrap_or(1),
            profile_partitions: u32::try_from(rng.between(1, 2)).unwrap_or(1),
            workers_max: rng.between(1, 4),
            users: rng.between(1, 16),
            batches: rng.between(2, 24),
            batch_max: *rng.one(&[3, 10, 40, 90]),
            hours: rng.between(1, 30),
            epoch_min: Duration::from_millis(*rng.one(&[1, 20, 200])),
            idle_max: Duration::from_secs(*rng.one(&[1_200, 3_600, 14_400])),
            checkpoint_every: Duration::from_millis(*rng.one(&[20, 1_000, 60_000, 1_200_000])),
            faults_max: *rng.one(&[0, 1, 3, 10, 25]),
            alive_max: usize::try_from(rng.between(1, 4)).unwrap_or(1),
            faults,
            deliver: DeliverOptions::draw(seed),
        }
    }

    /// Operators and sources.
    #[must_use]
    pub fn wiring(&self) -> Wiring {
        script::straight(&self.operators)
    }

    /// What the operators mean to the oracle.
    ///
    /// # Panics
    /// Never: all that is drawn is modelled.
    #[must_use]
    pub fn modelled(&self) -> Topology {
        modelled(&self.operators).expect("the oracle models all that is drawn")
    }
}

/// What operators of [`script::straight`], between its sources, mean to the oracle.
///
/// # Errors
/// When one of them is not modelled.
pub fn modelled(operators: &[Wired]) -> Result<Topology, NotModelled> {
    let records =
        [Records::Events { unknown_to_data: false }, Records::Returned, Records::Profiles, Records::Addresses];
    let sources = script::sources().into_iter().zip(records);
    let sources = sources.map(|(source, records)| Source { id: source.id.to_string(), records }).collect();
    let written = |(kind, params, when): &Wired| Written {
        id: (*kind).to_owned(),
        kind: (*kind).to_owned(),
        params: params.clone(),
        when: when.map(str::to_owned),
    };
    let written: Vec<_> = operators.iter().map(written).collect();
    let returned_at = written.iter().position(|operator| operator.kind == "dedup").unwrap_or(0);
    let provided = [Channel::Push, Channel::Email, Channel::Sms, Channel::InApp].into_iter().collect();
    Topology::straight(sources, &written, returned_at, provided)
}

/// The spread that the quiet hours are written with.
fn spread(operators: &[Wired]) -> Duration {
    let quiet = operators.iter().find(|(kind, ..)| *kind == "quiet_hours");
    let spread = quiet.and_then(|(_, params, _)| params["spread"].as_str()?.parse::<Period>().ok());
    spread.map_or(Duration::ZERO, |period| period.0)
}

fn operators(rng: &mut Rng) -> Vec<Wired> {
    let window = *rng.one(&["30s", "5m", "1h"]);
    let aggregate = json!({
        "window": window, "threshold": rng.between(2, 6), "leading": rng.chance(250_000),
        "sliding_max": if rng.chance(250_000) { json!("2h") } else { Value::Null },
    });
    let rate = |rng: &mut Rng| format!("{}/{}", rng.between(1, 5), *rng.one(&["m", "h", "d"]));
    let (push, other, all) = (rate(rng), rate(rng), rate(rng));
    let limits = json!({"levels": [{"per": ["channel", "type"], "push": push, "other": other}, {"per": ["category"], "other": all}]});
    let social = rng.chance(500_000).then_some(r#"category == "social""#);
    let mut items: Vec<Wired> = vec![
        ("dedup", json!({"window": *rng.one(&["10m", "24h"])}), None),
        ("schedule", json!({}), None),
        ("preferences", json!({}), None),
        ("aggregate", aggregate, social),
    ];
    let mut legs: Vec<Wired> =
        vec![("quiet_hours", json!({"spread": *rng.one(&["0s", "10m", "1h"])}), None), ("rate_limit", limits, None)];
    // Present or not, in an order that is legal: mostly the usual one.
    items.retain(|_| rng.chance(850_000));
    legs.retain(|_| rng.chance(850_000));
    if rng.chance(300_000) {
        rng.shuffle(&mut items);
        // What is merged is not scheduled again: `aggregate` stays below `schedule`.
        items.sort_by_key(|(kind, ..)| *kind == "aggregate");
        rng.shuffle(&mut legs);
    }
    let mut all: Vec<Wired> = vec![("validate", json!({}), None)];
    all.extend(items);
    all.push(("route", json!({}), None));
    all.extend(legs);
    all
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, users, batches, hours, workers_max, faults_max, faults, .. } = self;
        writeln!(f, "seed {seed}: {users} users, {batches} batches over {hours} h, up to {workers_max} workers")?;
        for (kind, params, when) in &self.operators {
            writeln!(f, "  {kind} {params} {}", when.unwrap_or(""))?;
        }
        let times = (self.epoch_min, self.idle_max, self.checkpoint_every);
        let partitions = (self.event_partitions, self.profile_partitions, self.lane_partitions);
        writeln!(f, "  epoch, idle, checkpoint {times:?}; partitions of events, profiles, lanes {partitions:?}")?;
        writeln!(f, "  up to {faults_max} faults, {} generations at once: {faults:?}", self.alive_max)?;
        write!(f, "  {:?}", self.deliver)
    }
}
