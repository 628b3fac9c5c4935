//! The oracle: what the decide stage must decide, said again in the plainest way that is right.
//!
//! One thread, one map per operator, every deadline found by looking at all of them. It shares no code
//! with `operators` (a test below says so); it was written from the specification, and where the two
//! differ, the specification says who is wrong. It takes what a cut admitted and says what must be
//! said: [`Oracle::epoch`].
//!
//! # Decisions
//! Where the specification is silent, the engine's choice is one legitimate choice. Those that the
//! oracle follows:
//! - Subkeys, which ids hash, are the fields of the key in order, each ended by a zero byte; a leg that
//!   waits alone has its leg id as the subkey. What deliver gave back always waits alone.
//! - A type without channels has push, email, in_app at high and medium priority; email, in_app at low.
//! - `schedule` checks expiry of whatever passes it; an operator that lets go, or judges again what it
//!   holds, of each member by itself. A group is too late when all of it is.
//! - An event that a window gathered alone keeps the name that it came with; what is left of a place
//!   gets the place's, and is no group if it is one.
//! - Type and category of a group are its newest member's, as its content is; its priority is the most
//!   urgent that ever joined; its object is what all agree on.
//! - `in_app` as a quiet rule or as overflow goes on with the in-app candidate, where there is one.
//! - A candidate that a limit or an opt-out brought to the front asks the quiet hours; the first one, at
//!   `rate_limit`, does not ask again what `quiet_hours` has just answered.
//! - Whoever waits already is joined, not overtaken, even if there is budget; both are tried at once.
//! - A user's cap counts from when it is set. A cap of zero is an opt-out by another name.
//! - A leg that failed over is suppressed (undeliverable), and so its event is what the next one is.
//!
//! # Not modelled
//! The critical path (what is handed to it is only named), chains that branch, `digest`, `escalate` and
//! `fan_out`, comparisons by order in `when`, dedup keys that are fractions, and who goes first when more
//! timers of one key group are due than an epoch may fire. Each is refused by [`NotModelled`].

mod condition;
mod consent;
mod places;
mod steps;
mod thing;
mod told;
mod topology;
mod wall;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidings_schemas::channel::Op;
use tidings_schemas::cloudevents;
use tidings_schemas::event::InvalidEvent;
use tidings_schemas::ids::{EventId, key_group, placement};
use tidings_schemas::lane::{HEADER_EVENT, LANE_VERSION, LaneRecord, Request, Returned};
use tidings_schemas::policy::Policies;
use tidings_schemas::profile::{Address, Profile};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use consent::{Known, fresh_until};
use steps::{Now, Station};
use thing::Thing;
use told::Story;
pub use told::{Difference, End, Fate, Told, Unit};
pub use topology::{NotModelled, Records, Source, Topology, Written};

/// The engine fires at most so many of an operator's timers per key group and epoch and leaves the
/// rest due. The oracle does not model who goes first, and says so where it comes to that.
const DUE_PER_GROUP_MAX: usize = 256;

/// Deliberate mistakes, for tests that a comparison would notice them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slips {
    /// A send is counted twice.
    pub counts_twice: bool,
    /// Retractions take nothing out.
    pub forgets_retractions: bool,
    /// A changed profile does not reach what is parked.
    pub forgets_the_parked: bool,
    /// What was due before an epoch's side inputs is released before they are heard.
    pub timers_first: bool,
}

/// What a decision depends on beside events and profiles.
struct Rules {
    topology: Topology,
    policies: Policies,
}

/// One record of a source.
#[derive(Clone, Debug)]
pub struct Record {
    /// The source, as numbered in the topology.
    pub source: usize,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// Headers.
    pub headers: Vec<(String, Bytes)>,
    /// When the log took it.
    pub timestamp: Instant,
}

/// The model, with all that it remembers.
pub struct Oracle {
    rules: Rules,
    slips: Slips,
    stations: Vec<Station>,
    users: BTreeMap<String, Known>,
    /// The policies changed since the last epoch.
    changed: bool,
    story: Story,
}

/// What sets a wave off, beside what comes in from above.
enum Trigger<'a> {
    Nothing,
    Changed(&'a BTreeSet<String>),
    Timers,
}

impl Oracle {
    /// An oracle that has seen nothing yet.
    #[must_use]
    pub fn new(topology: Topology, policies: Policies) -> Self {
        let stations = topology.steps.iter().map(|step| Station::new(&step.kind)).collect();
        let rules = Rules { topology, policies };
        Self {
            rules,
            slips: Slips::default(),
            stations,
            users: BTreeMap::new(),
            changed: false,
            story: Story::default(),
        }
    }

    /// The same with deliberate mistakes.
    #[must_use]
    pub fn with(mut self, slips: Slips) -> Self {
        self.slips = slips;
        self
    }

    /// Other policies hold from the next epoch on.
    pub fn change(&mut self, policies: Policies) {
        self.changed |= self.rules.policies != policies;
        self.rules.policies = policies;
    }

    /// The earliest deadline.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.stations.iter().filter_map(Station::next_due).min()
    }

    /// What epoch `number`, whose cut says that it is `now`, must say of `records`.
    ///
    /// # Errors
    /// When something in it is not modelled.
    pub fn epoch(&mut self, number: u64, now: Instant, records: &[Record]) -> Result<Told, NotModelled> {
        let mut told = Told::default();
        let mut records: Vec<&Record> = records.iter().collect();
        records.sort_by_key(|record| (record.source, record.partition, record.offset));
        let (side, records): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| {
            matches!(
                self.rules.topology.sources.get(record.source).map(|source| source.records),
                Some(Records::Profiles | Records::Addresses)
            )
        });
        // 1. Side inputs, as a wave from the end of the epoch before to the end of this one.
        let before = self.users.clone();
        for record in side {
            if self.side_input(record).is_none() {
                *told.letters.entry(Reason::InvalidEvent).or_default() += 1;
            }
        }
        let nobody = Known::default();
        let changed = |user: &&String| before.get(*user).unwrap_or(&nobody) != &self.users[*user];
        let changed: BTreeSet<String> = self.users.keys().filter(changed).cloned().collect();
        if self.slips.timers_first {
            let after = std::mem::replace(&mut self.users, before);
            self.wave(number, now, &mut told, &Trigger::Timers, None)?;
            self.users = after;
        }
        if !self.slips.forgets_the_parked {
            self.wave(number, now, &mut told, &Trigger::Changed(&changed), None)?;
        }
        if std::mem::take(&mut self.changed) {
            let waiting = self.stations.iter().flat_map(Station::waiting).collect();
            self.wave(number, now, &mut told, &Trigger::Changed(&waiting), None)?;
        }
        // 2. Due timers, as a wave down the chain.
        self.wave(number, now, &mut told, &Trigger::Timers, None)?;
        // 3. Records by (source, partition, offset), each down the whole chain.
        for record in records {
            if let Some(arrival) = self.parse(record, &mut told)? {
                self.wave(number, now, &mut told, &Trigger::Nothing, Some(arrival))?;
            }
        }
        self.story.add(&told, now);
        Ok(told)
    }

    /// What became of an event, as of the newest epoch. None: it was never heard of here.
    #[must_use]
    pub fn end(&self, event: EventId) -> Option<End> {
        self.story.end(event)
    }

    /// What is known of an event and its legs, for a person who looks into a difference.
    #[must_use]
    pub fn describe(&self, event: EventId) -> String {
        self.story.describe(event)
    }

    /// Takes in a profile or an address; None where it is neither.
    fn side_input(&mut self, record: &Record) -> Option<()> {
        let key = std::str::from_utf8(record.key.as_deref()?).ok()?;
        if self.rules.topology.sources.get(record.source)?.records == Records::Profiles {
            let profile = Profile::from_json(record.value.as_deref()).ok()?;
            if key.is_empty() || profile.user_id.as_deref().is_some_and(|user| user != key) {
                return None;
            }
            self.users.entry(key.to_owned()).or_default().profile = profile;
        } else {
            let (user, address_id) = key.split_once('/')?;
            let address: Option<Address> = match record.value.as_deref() {
                None => None,
                Some(json) => serde_json::from_slice(json).ok()?,
            };
            self.users.entry(user.to_owned()).or_default().addresses.apply(address_id, address.as_ref());
        }
        Some(())
    }

    /// Reads a record of events or returns: where it enters, and as what. None: it is a dead letter.
    fn parse(&self, record: &Record, told: &mut Told) -> Result<Option<(usize, Thing)>, NotModelled> {
        let Some(source) = self.rules.topology.sources.get(record.source) else { return Ok(None) };
        let header = record.headers.iter().find(|(name, _)| name == HEADER_EVENT);
        let kept = header.and_then(|(_, bytes)| std::str::from_utf8(bytes).ok()?.parse::<EventId>().ok());
        let id = kept.unwrap_or_else(|| EventId::new(&source.id, record.partition, record.offset));
        let parsed = match source.records {
            Records::Returned => {
                let returned = serde_json::from_slice::<Returned>(record.value.as_deref().unwrap_or_default()).ok();
                match returned.filter(|returned| !returned.leg.members.is_empty()) {
                    Some(returned) => return Ok(Some((self.rules.topology.returned_at, Thing::of_return(returned)))),
                    None => {
                        *told.letters.entry(Reason::InvalidEvent).or_default() += 1;
                        return Ok(None);
                    }
                }
            }
            Records::Events { unknown_to_data } => match &record.value {
                None => Err(Reason::InvalidEvent),
                Some(value) => {
                    let content_type = record.headers.iter().find(|(name, _)| name == "content-type");
                    let content_type = content_type.and_then(|(_, bytes)| std::str::from_utf8(bytes).ok());
                    cloudevents::parse_record(&record.headers, content_type, value, unknown_to_data).map_err(|error| {
                        match error {
                            InvalidEvent::Json(_) => Reason::InvalidJson,
                            InvalidEvent::TooLarge(_) => Reason::TooLarge,
                            InvalidEvent::Shape(_) | InvalidEvent::Field { .. } => Reason::InvalidEvent,
                        }
                    })
                }
            },
            Records::Profiles | Records::Addresses => return Ok(None),
        };
        match parsed {
            Ok(event) => {
                let thing = Thing::of_event(event, id, record.timestamp, &self.rules.policies);
                let mut thing = thing.map_err(|problem| NotModelled { place: format!("event {id}"), problem })?;
                thing.handed_over = kept.is_some();
                Ok(Some((0, thing)))
            }
            Err(reason) => {
                *told.letters.entry(reason).or_default() += 1;
                told.fate(Unit::Event(id), Fate::Rejected(Some(reason)));
                Ok(None)
            }
        }
    }

    /// One wave down the chain: each operator first does its own, then takes what came from above.
    fn wave(
        &mut self,
        epoch: u64,
        at: Instant,
        told: &mut Told,
        trigger: &Trigger<'_>,
        arrival: Option<(usize, Thing)>,
    ) -> Result<(), NotModelled> {
        let (enters, arrived) = arrival.map_or((usize::MAX, None), |(place, thing)| (place, Some(thing)));
        let mut arrived = arrived;
        let mut above: Vec<Thing> = Vec::new();
        let nobody = Known::default();
        for (number, station) in self.stations.iter_mut().enumerate() {
            let step = &self.rules.topology.steps[number];
            if enters == number {
                above.extend(arrived.take());
            }
            let mut below: Vec<Thing> = Vec::new();
            let mut act = |user: &str, act: &mut dyn FnMut(&mut Station, &mut Now<'_>)| {
                let known = self.users.get(user).unwrap_or(&nobody);
                let (rules, slips) = (&self.rules, self.slips);
                let mut now = Now { at, epoch, id: &step.id, rules, known, slips, told: &mut *told, out: Vec::new() };
                act(station, &mut now);
                below.append(&mut now.out);
            };
            match trigger {
                Trigger::Nothing => {}
                Trigger::Changed(users) => {
                    for user in *users {
                        act(user, &mut |station, now| station.changed(now, user));
                    }
                }
                Trigger::Timers => {
                    let mut due = Vec::new();
                    act("", &mut |station, _| due = station.due(at, epoch));
                    let mut per_group: BTreeMap<_, usize> = BTreeMap::new();
                    for (deadline, key) in due {
                        let count = per_group.entry(key_group(placement(&key.0))).or_default();
                        *count += 1;
                        // Half of it: counters have timers too, which the oracle does without.
                        if *count > DUE_PER_GROUP_MAX / 2 {
                            let problem = "more timers of one key group are due at once than an epoch may fire";
                            return Err(NotModelled { place: step.id.clone(), problem: problem.to_owned() });
                        }
                        act(&key.0, &mut |station, now| station.timer(now, deadline, &key));
                    }
                }
            }
            for thing in above {
                let taken = thing.is_control() || step.when.as_ref().is_none_or(|when| when.holds(&thing));
                let user = thing.user.clone();
                let mut thing = Some(thing);
                act(&user, &mut |station, now| match thing.take() {
                    Some(thing) if taken => station.take(now, thing),
                    passes => now.out.extend(passes),
                });
            }
            above = below;
        }
        for thing in above {
            let known = self.users.get(&thing.user).unwrap_or(&nobody);
            end(told, &self.rules, known, at, thing);
        }
        Ok(())
    }
}

/// The chain's end: a leg becomes a lane record, a control says what it found.
fn end(told: &mut Told, rules: &Rules, known: &Known, now: Instant, thing: Thing) {
    if thing.is_control() {
        let fate = match (thing.op, thing.matched) {
            (Op::Cancel, 0) => Fate::Suppressed(Some(Reason::NothingToCancel)),
            (Op::Cancel, _) => Fate::Cancelled,
            (Op::Retract | Op::Notify, 0) => Fate::Suppressed(Some(Reason::NothingToRetract)),
            (Op::Retract | Op::Notify, _) => Fate::Retracted,
        };
        return told.fate(Unit::Event(thing.first_event()), fate);
    }
    let (Some(leg), Some(channel), Some(newest)) = (thing.leg, thing.channel(), thing.members.last().cloned()) else {
        return;
    };
    if thing.is_expired(now) {
        return told.fate(Unit::Leg(leg), Fate::Expired);
    }
    told.fate(Unit::Leg(leg), Fate::Queued);
    told.set_out.push((leg, thing.members.iter().map(|member| member.event).collect(), thing.silent));
    let names = thing.actors().into_iter().take(3);
    let actors = names.map(|actor| actor.name.as_ref().unwrap_or(&actor.id).to_string()).collect();
    told.lanes.push(LaneRecord {
        v: LANE_VERSION,
        notification: thing.notification,
        leg,
        group: thing.group,
        event: thing.first_event(),
        channel,
        silent: thing.silent,
        template_id: newest.template_id,
        locale: known.profile.locale.clone(),
        data: newest.data,
        actors,
        actors_count: thing.actors_count(),
        activities: thing.activities(),
        members: thing.members.iter().map(|member| member.event).collect(),
        request: Request { channels: thing.channels.clone(), fallback: thing.fallback.clone() },
        struck: thing.struck.clone(),
        returns: thing.returns,
        created_at: thing.created_at,
        ready_at: thing.ready_at,
        expires_at: thing.expires_at(),
        fresh_until: fresh_until(&thing, channel, known, rules, now),
        fallback_channels: thing.fallback,
        replay: thing.replay,
        only_address: thing.only_address,
        priority: thing.priority,
        user: thing.user,
        tenant: thing.tenant,
        event_type: thing.event_type,
        category: thing.category,
        object: thing.object,
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_shares_no_code_with_the_operators() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/oracle");
        let name = ["tidings", "operators::"].join("_");
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            for line in std::fs::read_to_string(&path).unwrap().lines() {
                // The loader's own word for a side input is part of the configuration's type.
                let allowed = line.contains("params::SideInput");
                assert!(allowed || !line.contains(&name), "{}: {line}", path.display());
            }
        }
    }
}
