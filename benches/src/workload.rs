//! The workload: raw records as producers would write them, and the cuts that admit them.
//!
//! Events are JSON of about 300 bytes. Users follow Zipf's law with exponent 1, whose head is cut off at
//! rank [`HEAD`], because no person is told the sixteenth part of everything. Five events in a hundred are a
//! producer's repeats. Each event asks for one channel: push 50, e-mail 30, in-app 15, text message 5 in a
//! hundred (SEEDS G75). An hour of stream time passes while all of them arrive; it starts in Berlin's
//! evening, so that quiet hours begin in the middle.
//!
//! The same size gives the same bytes, always.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use tidings_operators::harness::dataflow::Cut;
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_schemas::ids::lane_partition;
use tidings_schemas::time::Instant;

use crate::setup::Setup;

/// The rank at which Zipf's law starts: the busiest user gets about 1 event in 800.
pub const HEAD: u64 = 64;

/// Partitions of each events topic, and of each side input.
const EVENT_PARTITIONS: [(&str, u32); 3] = [("high", 2), ("medium", 4), ("low", 2)];
const SIDE_PARTITIONS: u32 = 2;

/// Stream time that passes while the events arrive.
const SPAN: Duration = Duration::from_secs(3600);

/// Epochs after the last event, in which open windows close.
const TAIL_EPOCHS: u64 = 5;

/// How far back a repeat reaches, in events.
pub(crate) const REPEATS_WITHIN: usize = 4096;

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Events, repeats included.
    pub events: u64,
    /// Users: at least twice [`HEAD`], rounded down to a power of two times it.
    pub users: u64,
    /// Events in one epoch.
    pub per_epoch: u64,
}

impl Size {
    /// What a test runs, and `--quick`.
    pub const QUICK: Self = Self { events: 4_000, users: 1_024, per_epoch: 250 };
    /// What a record is made of. 20,000 events are a 20 ms epoch at a million a second.
    pub const FULL: Self = Self { events: 1_000_000, users: 262_144, per_epoch: 20_000 };
}

/// In what a workload differs from the one that is described above.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// Partitions of each events topic, instead of four of the one in the middle and two of the others.
    pub partitions: Option<u32>,
    /// The only source of events, instead of all.
    pub source: Option<&'static str>,
    /// So many events in a thousand are about one object of one user.
    pub hot_permille: u64,
    /// Only users whom an event names have a profile and addresses: of many users, most are told nothing.
    pub only_named: bool,
}

/// A small generator with a seed.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    /// A user by Zipf's law in whole numbers: every octave of ranks gets the same share.
    pub(crate) fn user(&mut self, users: u64) -> u64 {
        let octaves = u64::from((users / HEAD).ilog2());
        let first = HEAD << self.roll(octaves);
        first + self.roll(first)
    }
}

/// Records by partition, and what admits them.
pub struct Workload {
    /// All records, in offset order.
    pub records: BTreeMap<Lot, Arc<[RawRecord]>>,
    /// The first cut admits the side inputs, the others the events.
    pub cuts: Vec<Arc<Cut>>,
    /// How many events there are, repeats included.
    pub events: u64,
    /// Their bytes.
    pub event_bytes: u64,
    /// Users whom an event names.
    pub named: u64,
}

/// Types in thousandths, with the source that carries them.
const TYPES: [(u64, &str, &str); 8] = [
    (400, "like", "medium"),
    (80, "new_follower", "medium"),
    (120, "comment_reply", "medium"),
    (180, "new_message", "high"),
    (70, "order_shipped", "high"),
    (50, "marketing_campaign", "low"),
    (70, "recommendation", "low"),
    (30, "weekly_digest", "low"),
];
const CHANNELS: [(u64, &str); 4] = [(500, "push"), (300, "email"), (150, "in_app"), (50, "sms")];
const ZONES: [&str; 5] = ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Africa/Cairo", "America/Sao_Paulo"];
pub(crate) const NAMES: [&str; 8] = [
    "Ada Byron",
    "Bob Stone",
    "Chidi Anagonye",
    "Dana Scully",
    "Eve Moneypenny",
    "Fatou Diop",
    "Gus Fring",
    "Hana Sato",
];

/// The entry into whose share of 1,000 `roll` falls.
fn drawn<T: Copy>(table: &[T], share: impl Fn(&T) -> u64, roll: u64) -> T {
    let mut sum = 0;
    let hit = |entry: &&T| {
        sum += share(entry);
        roll < sum
    };
    table.iter().find(hit).copied().unwrap_or(table[0])
}

struct Making {
    dice: Dice,
    records: BTreeMap<Lot, Vec<RawRecord>>,
    named: BTreeSet<u64>,
}

impl Making {
    fn push(&mut self, lot: Lot, key: String, value: Bytes, timestamp: Instant) {
        let records = self.records.entry(lot).or_default();
        let offset = records.len() as u64;
        records.push(RawRecord { offset, key: Some(key.into()), value: Some(value), headers: Vec::new(), timestamp });
    }

    fn ends(&self) -> BTreeMap<Lot, u64> {
        self.records.iter().map(|(lot, records)| (*lot, records.len() as u64)).collect()
    }

    fn side_inputs(&mut self, setup: &Setup, users: impl Iterator<Item = u64>, at: Instant) -> Result<()> {
        let (profiles, addresses) = (setup.source("profiles")?, setup.source("addresses")?);
        for number in users {
            let user = name_of(number);
            let partition = lane_partition(&user, SIDE_PARTITIONS);
            if self.dice.roll(10) < 3 {
                let zone = ZONES[usize::try_from(self.dice.roll(5))?];
                let opted_out = if self.dice.roll(20) == 0 {
                    r#","categories":{"marketing":{"push":false,"email":false}}"#
                } else {
                    ""
                };
                let json =
                    format!(r#"{{"time_zone":"{zone}","quiet_hours":{{"from":"22:00","to":"07:00"}}{opted_out}}}"#);
                self.push(Lot { source: profiles, partition }, user.clone(), json.into(), at);
            }
            for (channel, percent, address) in
                [("push", 85, "a3f09c7715de"), ("email", 70, "someone@example.com"), ("sms", 30, "+4915100000000")]
            {
                if self.dice.roll(100) < percent {
                    let platform = if channel == "push" { r#","platform":"ios""# } else { "" };
                    let json = format!(
                        r#"{{"user_id":"{user}","address_id":"{channel}","channel":"{channel}","address":"{address}"{platform}}}"#
                    );
                    self.push(Lot { source: addresses, partition }, format!("{user}/{channel}"), json.into(), at);
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, number: u64, users: u64, shape: &Shape) -> (&'static str, String, Bytes) {
        let share =
            |entry: &(u64, &str, &str)| if shape.source.is_none_or(|only| only == entry.2) { entry.0 } else { 0 };
        let all = TYPES.iter().map(share).sum();
        let (_, event_type, source) = drawn(&TYPES, share, self.dice.roll(all));
        let (_, channel) = drawn(&CHANNELS, |entry| entry.0, self.dice.roll(1000));
        let (user, object) = if shape.hot_permille > 0 && self.dice.roll(1000) < shape.hot_permille {
            (HEAD, HEAD * 4)
        } else {
            let user = self.dice.user(users);
            (user, user * 4 + self.dice.roll(4))
        };
        self.named.insert(user);
        let actor = self.dice.roll(users);
        let name = NAMES[usize::try_from(actor % 8).unwrap_or(0)];
        let op = if event_type == "like" && self.dice.roll(100) == 0 { "retract" } else { "notify" };
        let user = name_of(user);
        let json = format!(
            r#"{{"id":"e{number:010}","type":"{event_type}","user_id":"{user}","op":"{op}","actor":{{"id":"u{actor:07}","name":"{name}"}},"object":{{"id":"o{object:08}","kind":"photo"}},"channels":["{channel}"],"data":{{"order_id":"n{number:09}","url":"https://example.com/o/{object:08}","image":"https://cdn.example.com/{object:08}/t.jpg"}}}}"#
        );
        (source, user, json.into())
    }
}

pub(crate) fn name_of(user: u64) -> String {
    format!("u{user:07}")
}

impl Workload {
    /// The workload of this size for the topology of `setup`.
    ///
    /// # Errors
    /// When the topology lacks a source that the workload feeds.
    pub fn new(setup: &Setup, size: Size) -> Result<Self> {
        Self::shaped(setup, size, &Shape::default())
    }

    /// The same in another shape.
    ///
    /// # Errors
    /// When the topology lacks a source that the workload feeds, or the shape's only source carries no type.
    pub fn shaped(setup: &Setup, size: Size, shape: &Shape) -> Result<Self> {
        let carries = |only| TYPES.iter().any(|(_, _, source)| *source == only);
        ensure!(shape.source.is_none_or(carries), "no type of the workload is carried by {:?}", shape.source);
        let start: Instant = "2026-06-01T19:30:00Z".parse()?;
        let mut making = Making { dice: Dice(75), records: BTreeMap::new(), named: BTreeSet::new() };
        if !shape.only_named {
            making.side_inputs(setup, 0..size.users, start)?;
        }
        let cut = |epoch, now, ends| {
            Arc::new(Cut { epoch, now, rules: Arc::clone(&setup.rules), ends, skips: Arc::default(), crumbs: None })
        };
        let mut cuts = vec![cut(1, start, making.ends())];

        let mut sources = BTreeMap::new();
        for (name, partitions) in EVENT_PARTITIONS {
            sources.insert(name, (setup.source(name)?, shape.partitions.unwrap_or(partitions)));
        }
        let epochs = size.events.div_ceil(size.per_epoch).max(1);
        let step = SPAN / u32::try_from(epochs)?;
        let mut recent: VecDeque<(&'static str, String, Bytes)> = VecDeque::new();
        let (mut now, mut event_bytes) = (start, 0);
        for number in 0..size.events {
            if number % size.per_epoch == 0 && number > 0 {
                cuts.push(cut(cuts.len() as u64 + 1, now, making.ends()));
            }
            now = start.after(step * u32::try_from(number / size.per_epoch + 1)?);
            let repeat = making.dice.roll(100) < 5 && !recent.is_empty();
            let event = if repeat {
                recent[usize::try_from(making.dice.roll(recent.len() as u64))?].clone()
            } else {
                let event = making.event(number, size.users, shape);
                if recent.len() == REPEATS_WITHIN {
                    recent.pop_front();
                }
                recent.push_back(event.clone());
                event
            };
            let (source, user, value) = event;
            event_bytes += value.len() as u64;
            let (source, partitions) = sources[source];
            making.push(Lot { source, partition: lane_partition(&user, partitions) }, user, value, now);
        }
        for _ in 0..=TAIL_EPOCHS {
            cuts.push(cut(cuts.len() as u64 + 1, now, making.ends()));
            now = now.after(Duration::from_secs(120));
        }
        let named = std::mem::take(&mut making.named);
        if shape.only_named {
            making.side_inputs(setup, named.iter().copied(), start)?;
            let side = [setup.source("profiles")?, setup.source("addresses")?];
            let ends = making.ends().into_iter().filter(|(lot, _)| side.contains(&lot.source)).collect();
            cuts[0] = cut(1, start, ends);
        }
        let records = making.records.into_iter().map(|(lot, records)| (lot, records.into())).collect();
        Ok(Self { records, cuts, events: size.events, event_bytes, named: named.len() as u64 })
    }
}
