//! Random lives: a topology, policies and the epochs of some days, drawn from one seed; and the
//! comparison of the engine with the oracle along them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tidings_operators::calendar::Calendar;
use tidings_operators::harness::chain::Block;
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::ingest::{Path, ingest};
use tidings_operators::registry::Wiring;
use tidings_operators::rules::Rules;
use tidings_operators::script;
use tidings_schemas::channel::{Channel, ChannelSet, Priority};
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::{HEADER_EVENT, LaneRecord};
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_schemas::policy::{Limits, Overflow, Policies, QuietRule, QuietRules, TypePolicy};
use tidings_schemas::time::Instant;
use tidings_schemas::units::Period;
use tidings_simulator::checks::told;
use tidings_simulator::options::modelled;
use tidings_simulator::oracle::{End, Oracle, Record, Slips, Topology};
use tidings_sinks::record::fates::{Fate, Fates};

const EPOCHS: u64 = 90;
const USERS: u64 = 5;

/// How far down the chain a life goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Dedup,
    Schedule,
    Aggregate,
    Quiet,
    Limits,
    /// Every operator, any of them left out; conditions; returns; hand-overs; policies that change.
    Whole,
    /// One user whom a thousand people like: groups beyond the bound of what they keep.
    Crowd,
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // splitmix64: every seed starts elsewhere.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.roll(all.len() as u64)).unwrap()].clone()
    }

    fn some<T: Clone>(&mut self, all: &[T]) -> Vec<T> {
        let count = self.roll(all.len() as u64) + 1;
        (0..count).map(|_| self.pick(all)).collect()
    }
}

pub(crate) struct Life {
    pub seed: u64,
    stage: Stage,
    operators: Vec<(&'static str, Value, Option<&'static str>)>,
    spread: Duration,
    policies: Policies,
    /// Other policies, and the epoch from which they hold.
    later: Option<(u64, Policies)>,
    /// By how much the oracle's windows are too long.
    slower: Duration,
    handed_over: Vec<Drawn>,
    /// How many of them came in earlier epochs: within one, a copy's `validated` hides until when the
    /// event is parked.
    settled: usize,
    dice: Dice,
}

/// Sources by number, as `script::sources` has them.
const SOURCES: [&str; 4] = ["events", "returned", "profiles", "addresses"];

impl Life {
    /// Everything that a seed decides before the first record.
    pub(crate) fn draw(stage: Stage, seed: u64) -> Self {
        let mut dice = Dice(seed ^ ((stage as u64) << 32));
        let mut operators: Vec<(&str, Value, Option<&str>)> = vec![("validate", json!({}), None)];
        if stage == Stage::Crowd {
            return Self::crowd(dice, seed);
        }
        let all = stage == Stage::Whole;
        let leave_out = |dice: &mut Dice| all && dice.one_in(6);
        if !leave_out(&mut dice) {
            operators.push(("dedup", json!({"window": dice.pick(&["24h", "2h", "10m"])}), None));
        }
        if stage >= Stage::Schedule && !leave_out(&mut dice) {
            operators.push(("schedule", json!({}), None));
        }
        if !leave_out(&mut dice) {
            operators.push(("preferences", json!({}), None));
        }
        if stage >= Stage::Aggregate && !leave_out(&mut dice) {
            let mut params = json!({"window": dice.pick(&["5m", "30m", "2h"]), "threshold": dice.roll(5) + 2});
            if dice.one_in(3) {
                params["sliding_max"] = json!("3h");
            }
            if dice.one_in(4) {
                params["leading"] = json!(true);
            }
            if dice.one_in(4) {
                params["by"] = dice.pick(&[json!(["type"]), json!(["category", "object.id"]), json!(["category"])]);
            }
            if dice.one_in(5) {
                params["priorities"] = json!(["high", "medium", "low"]);
            }
            let when = dice.pick(&[
                None,
                Some(r#"category == "social" and priority in ["medium", "low"]"#),
                Some(r#"has(data.order_id) or type != "order_shipped""#),
            ]);
            operators.push(("aggregate", params, when));
        }
        operators.push(("route", json!({}), None));
        let spread = dice.pick(&[0, 0, 1800, 4 * 3600]);
        let mut spread_holds = 0;
        if stage >= Stage::Quiet && !leave_out(&mut dice) {
            let when = if all { dice.pick(&[None, None, Some(r#"type != "comment""#)]) } else { None };
            spread_holds = spread;
            operators.push(("quiet_hours", json!({"spread": format!("{spread}s")}), when));
        }
        if stage >= Stage::Limits && !leave_out(&mut dice) {
            let mut rate = |most: u64| format!("{}/{}", dice.roll(most) + 1, dice.pick(&["10m", "h", "3h", "d"]));
            let levels = json!([
                {"per": ["channel", "type"], "push": rate(4), "email": rate(3), "other": rate(5)},
                {"per": ["channel"], "push": rate(6), "in_app": rate(9)},
                {"per": ["channel"], "push": rate(12)},
                {"per": ["category"], "marketing": rate(2)},
                {"per": ["type"], "comment": rate(3)},
            ]);
            let when = if all { dice.pick(&[None, None, Some(r#"channel != "email""#)]) } else { None };
            operators.push(("rate_limit", json!({"levels": levels}), when));
        }
        let drawn = policies(&mut dice);
        let later = (all && dice.one_in(2)).then(|| (dice.roll(EPOCHS), policies(&mut dice)));
        let spread = Duration::from_secs(spread_holds);
        Self {
            seed,
            stage,
            operators,
            spread,
            policies: drawn,
            later,
            slower: Duration::ZERO,
            handed_over: Vec::new(),
            settled: 0,
            dice,
        }
    }

    fn crowd(mut dice: Dice, seed: u64) -> Self {
        let level = dice.pick(&["1/d", "2/d"]);
        let mut operators = vec![("validate", json!({}), None), ("preferences", json!({}), None)];
        if dice.one_in(2) {
            operators.push(("aggregate", json!({"window": "3h", "threshold": 5000}), None));
        }
        operators.push(("route", json!({}), None));
        if dice.one_in(2) {
            operators.push(("quiet_hours", json!({}), None));
        }
        operators.push(("rate_limit", json!({"levels": [{"per": ["channel"], "push": level}]}), None));
        let (stage, policies) = (Stage::Crowd, script::policies());
        let (spread, slower) = (Duration::ZERO, Duration::ZERO);
        Self {
            seed,
            stage,
            operators,
            spread,
            policies,
            later: None,
            slower,
            handed_over: Vec::new(),
            settled: 0,
            dice,
        }
    }

    /// The same life, in which the oracle believes that windows are longer by this.
    pub(crate) fn slower(mut self, by: Duration) -> Self {
        self.slower = by;
        self
    }

    fn wiring(&self) -> Wiring {
        script::straight(&self.operators)
    }

    fn topology(&self) -> Topology {
        let mut operators = self.operators.clone();
        for window in operators.iter_mut().filter_map(|(_, params, _)| params.get_mut("window")) {
            let right: Period = window.as_str().and_then(|text| text.parse().ok()).expect("a window");
            *window = json!(Period(right.0 + self.slower));
        }
        modelled(&operators).expect("the oracle models all that is drawn")
    }
}

fn provided() -> ChannelSet {
    [Channel::Push, Channel::Email, Channel::Sms, Channel::InApp].into_iter().collect()
}

fn policies(dice: &mut Dice) -> Policies {
    let mut policies = script::policies();
    let comment = TypePolicy {
        category: Some("social".to_owned()),
        priority: Some(dice.pick(&[Priority::Medium, Priority::High])),
        channels: Some(dice.pick(&[
            vec![Channel::Push, Channel::InApp],
            vec![Channel::Push, Channel::Email, Channel::Sms],
            vec![Channel::Email],
            vec![Channel::InApp, Channel::Push],
        ])),
        fallback_channels: dice.pick(&[None, Some(vec![Channel::Sms, Channel::Email])]),
        overflow: dice.pick(&[
            None,
            Some(Overflow::Next),
            Some(Overflow::Defer),
            Some(Overflow::Drop),
            Some(Overflow::InApp),
            Some(Overflow::Merge),
        ]),
        may_raise: dice.one_in(3),
        limits: if dice.one_in(6) { Limits::Exempt } else { Limits::Apply },
        template_id: Some("comments".to_owned()),
        ..TypePolicy::default()
    };
    policies.types.insert("comment".to_owned(), comment);
    if dice.one_in(3) {
        policies.categories.entry("transactional".to_owned()).or_default().passes_opt_out = true;
    }
    if dice.one_in(3) {
        policies.quiet_hours.insert(Priority::High, QuietRules::All(QuietRule::Defer));
    }
    if dice.one_in(4) {
        policies.quiet_hours.insert(Priority::Low, QuietRules::All(QuietRule::InApp));
    }
    policies
}

const ZONES: [&str; 6] =
    ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Africa/Cairo", "Australia/Lord_Howe", "Nowhere/Land"];

/// A record before it has an offset: source, partition, key, value, and the event id that it keeps.
type Drawn = (u16, u32, String, Option<String>, Option<EventId>);

impl Life {
    /// One record. `said` are lane records that deliver may give back.
    fn record(&mut self, number: u64, now: Instant, said: &[LaneRecord]) -> Drawn {
        let stage = self.stage;
        let dice = &mut self.dice;
        if stage == Stage::Crowd {
            return liked(dice, number);
        }
        let user = format!("u{}", dice.roll(USERS));
        match dice.roll(24) {
            0 | 1 => return (2, 0, user, profile(dice), None),
            2 | 3 => {
                let (channel, name) = dice.pick(&[("push", "phone"), ("push", "tablet"), ("email", "m"), ("sms", "p")]);
                let status = dice.pick(&["live", "live", "live", "invalid"]);
                let address =
                    json!({"user_id": user, "address_id": name, "channel": channel, "address": "x", "status": status});
                return (3, 0, format!("{user}/{name}"), (!dice.one_in(6)).then(|| address.to_string()), None);
            }
            4 if dice.one_in(3) => {
                let wrong = dice.pick(&[
                    r#"{"user_id": "broken"#,
                    r#"{"user_id":"u1"}"#,
                    r#"{"user_id":"u1","type":"like","channels":[]}"#,
                    r#"{"user_id":"u1","type":"like","colour":"red"}"#,
                ]);
                return (0, 0, user, Some(wrong.to_owned()), None);
            }
            5..8 if stage == Stage::Whole && !said.is_empty() => {
                let leg = dice.pick(&said[said.len().saturating_sub(12)..]);
                let cause = dice.pick(&["stale", "stale", "undeliverable", "replay"]);
                let mut leg = leg;
                if cause == "replay" {
                    leg.replay += 1;
                    leg.only_address = Some("phone".to_owned());
                }
                return (1, 0, leg.user.clone(), Some(json!({"cause": cause, "leg": leg}).to_string()), None);
            }
            // What was handed over from the other path may come twice: its event id says so.
            8 if self.settled > 0 => {
                self.settled -= 1;
                return self.handed_over.remove(usize::try_from(dice.roll(self.settled as u64 + 1)).unwrap());
            }
            _ => {}
        }
        let kind = dice.pick(&[
            "like",
            "like",
            "like",
            "like",
            "comment",
            "comment",
            "order_shipped",
            "marketing_campaign",
            "other.kind",
            "verification_code",
        ]);
        let op = if stage < Stage::Schedule { 9 } else { dice.roll(10) };
        let op = ["retract", "retract", "cancel"].get(usize::try_from(op).unwrap()).copied().unwrap_or("notify");
        let id = if dice.one_in(5) { number.saturating_sub(dice.roll(12)) } else { number };
        let mut event = json!({"id": format!("e{id}"), "type": kind, "user_id": user, "op": op});
        if kind == "like" || kind == "comment" && !dice.one_in(3) {
            let actor = dice.roll(5);
            event["actor"] = json!({"id": format!("a{actor}")});
            if actor > 2 {
                event["actor"]["name"] = json!(format!("Actor {actor}"));
            }
            if !dice.one_in(6) {
                event["object"] = json!({"id": format!("o{}", dice.roll(2))});
            }
        }
        if kind == "order_shipped" && !dice.one_in(4) {
            let order = dice.roll(40);
            event["data"] = dice.pick(&[
                json!({"order_id": order}),
                json!({"order_id": order.to_string()}),
                json!({"order_id": null}),
                json!({"order_id": {"nested": 1}}),
            ]);
        } else if dice.one_in(3) {
            event["data"] = json!({"n": number});
        }
        if dice.one_in(10) {
            let channels = dice.some(&["push", "email", "sms", "in_app"]);
            event["channels"] = json!(channels);
        }
        if dice.one_in(10) {
            event["fallback_channels"] = json!(dice.some(&["email", "sms", "in_app"]));
        }
        if dice.one_in(10) {
            event["priority"] = json!(dice.pick(&["critical", "high", "medium", "low"]));
        }
        if dice.one_in(12) {
            event["tenant"] = json!("t");
        }
        if dice.one_in(15) {
            event["dedup_key"] = json!(format!("d{}", dice.roll(9)));
        }
        let soon =
            |dice: &mut Dice| now.after(Duration::from_secs(dice.roll(6 * 3600))).before(Duration::from_secs(600));
        if stage >= Stage::Schedule {
            if dice.one_in(8) {
                event["scheduled_at"] = json!(soon(dice).to_string());
            }
            if dice.one_in(8) {
                event["expires_at"] = json!(soon(dice).to_string());
            }
            if dice.one_in(4) {
                event["cancel_key"] = json!(format!("k{}", dice.roll(6)));
            }
            if op == "cancel" && dice.one_in(2) {
                event["id"] = json!(format!("e{}", number.saturating_sub(dice.roll(60))));
            }
        }
        if dice.one_in(40) {
            event.as_object_mut().unwrap().remove("id");
        }
        let kept = (self.operators[1].1["window"] == "24h" && stage == Stage::Whole && dice.one_in(12))
            .then(|| EventId::new("other path", 0, number));
        let drawn = (0, u32::try_from(dice.roll(3)).unwrap(), user, Some(event.to_string()), kept);
        if kept.is_some() {
            self.handed_over.push(drawn.clone());
        }
        drawn
    }
}

fn liked(dice: &mut Dice, number: u64) -> Drawn {
    let actor = dice.roll(900);
    let mut like =
        json!({"id": format!("e{number}"), "type": "like", "user_id": "u0", "actor": {"id": format!("a{actor}")}});
    if dice.one_in(30) {
        like["op"] = json!(dice.pick(&["retract", "cancel"]));
    }
    if !dice.one_in(300) {
        like["object"] = json!({"id": "o"});
    }
    if dice.one_in(100) {
        like["expires_at"] = json!("2026-03-28T20:00:00Z");
    }
    if number == 1 {
        let phone = json!({"user_id": "u0", "address_id": "p", "channel": "push", "address": "x"});
        return (3, 0, "u0/p".to_owned(), Some(phone.to_string()), None);
    }
    (0, 0, "u0".to_owned(), Some(like.to_string()), None)
}

fn profile(dice: &mut Dice) -> Option<String> {
    if dice.one_in(8) {
        return None;
    }
    if dice.one_in(12) {
        return Some(r#"{"time_zone": 7}"#.to_owned());
    }
    let mut profile = json!({"time_zone": dice.pick(&ZONES)});
    if !dice.one_in(4) {
        let (from, to) = dice.pick(&[
            ("22:00", "07:00"),
            ("22:00", "07:00"),
            ("23:30", "02:30"),
            ("13:00", "15:00"),
            ("01:30", "01:45"),
            ("00:00", "00:00"),
            ("20:00", "19:00"),
            ("01:10", "00:50"),
        ]);
        profile["quiet_hours"] = json!({"from": from, "to": to});
    }
    if dice.one_in(3) {
        profile["types"] = json!({dice.pick(&["like", "comment"]): {dice.pick(&["push", "email"]): dice.one_in(3)}});
    }
    if dice.one_in(4) {
        profile["categories"] =
            json!({dice.pick(&["social", "marketing", "transactional"]): {"push": false, "email": dice.one_in(2)}});
    }
    if dice.one_in(5) {
        profile["channels"] = json!({dice.pick(&["push", "email", "in_app", "sms"]): false});
    }
    if dice.one_in(5) {
        profile["channel_order"] =
            json!(dice.pick(&[vec!["email", "push"], vec!["in_app"], vec!["sms", "in_app", "email"]]));
    }
    if dice.one_in(4) {
        let mut cap = json!({"max": dice.roll(4), "per": dice.pick(&["1h", "1d"])});
        if !dice.one_in(3) {
            cap["category"] = json!(dice.pick(&["social", "marketing"]));
        }
        if dice.one_in(3) {
            cap["type"] = json!("like");
        }
        if dice.one_in(3) {
            cap["channel"] = json!(dice.pick(&["push", "email"]));
        }
        profile["caps"] = json!([cap]);
    }
    if dice.one_in(10) {
        profile["stops"] =
            json!([{"channel": dice.pick(&["sms", "email"]), "source": "STOP", "at": "2026-01-01T00:00:00Z"}]);
    }
    if dice.one_in(6) {
        profile["consents"] =
            json!([{"channel": "sms", "category": "marketing", "source": "f", "at": "2026-01-01T00:00:00Z"}]);
    }
    if dice.one_in(4) {
        profile["locale"] = json!("de");
    }
    Some(profile.to_string())
}

/// What a life was made of, for tests that it was one.
#[derive(Debug, Default)]
pub(crate) struct Lived {
    pub lanes: usize,
    pub fates: BTreeMap<String, usize>,
}

impl Lived {
    pub(crate) fn add(&mut self, other: &Self) {
        self.lanes += other.lanes;
        for (fate, count) in &other.fates {
            *self.fates.entry(fate.clone()).or_default() += count;
        }
    }
}

/// Runs engine and oracle through a life. The first difference, with all that led to it; None: they
/// agree to the end.
pub(crate) fn check(mut life: Life, slips: Slips) -> Result<Lived, String> {
    let wiring = life.wiring();
    let compiled = |policies: &Policies| {
        Rules::new(policies, provided(), life.spread, Calendar::bundled()).expect("policies compile")
    };
    let mut rules = compiled(&life.policies);
    let later = life.later.clone().map(|(epoch, policies)| (epoch, compiled(&policies), policies));
    let (epochs, per_epoch) = if life.stage == Stage::Crowd { (14, 260) } else { (EPOCHS, 9) };
    let mut chain = wiring.chain(Path::Decide).expect("a chain");
    let mut oracle = Oracle::new(life.topology(), life.policies.clone()).with(slips);
    let mut offsets: BTreeMap<Lot, u64> = BTreeMap::new();
    let mut history: BTreeMap<String, String> = BTreeMap::new();
    let mut lived = Lived::default();
    let mut said: Vec<LaneRecord> = Vec::new();
    let mut rows: Vec<Row> = Vec::new();
    let mut number = 0;
    // The nights in which clocks change: Berlin and Cairo in spring, New York in autumn.
    let nights = ["2026-03-28T18:00:00Z", "2026-03-08T00:00:00Z", "2026-10-31T20:00:00Z", "2026-06-01T20:00:00Z"];
    let mut now: Instant = life.dice.pick(&nights).parse().expect("an instant");
    for epoch in 1..=epochs {
        // Mostly seconds, sometimes hours, sometimes exactly the next deadline.
        now = match life.dice.roll(8) {
            0 => now.after(Duration::from_secs(life.dice.roll(6 * 3600))),
            1 | 2 => chain.next_timer().map_or(now, |due| due.max(now)),
            _ => now.after(Duration::from_millis(life.dice.roll(400_000))),
        };
        if let Some((_, compiled, policies)) = later.as_ref().filter(|(from, ..)| *from == epoch) {
            rules = compiled.clone();
            oracle.change(policies.clone());
        }
        life.settled = life.handed_over.len();
        let mut blocks: BTreeMap<Lot, Vec<RawRecord>> = BTreeMap::new();
        for _ in 0..life.dice.roll(per_epoch) {
            number += 1;
            let (source, partition, key, value, kept) = life.record(number, now, &said);
            let lot = Lot { source, partition };
            let offset = offsets.entry(lot).or_default();
            let owner = key.split('/').next().unwrap_or_default().to_owned();
            let line = history.entry(owner).or_default();
            let _ = writeln!(
                line,
                "  {epoch} {now} {}/{partition}@{offset} {}",
                SOURCES[usize::from(source)],
                value.as_deref().unwrap_or("(gone)")
            );
            blocks.entry(lot).or_default().push(RawRecord {
                offset: *offset,
                key: Some(Bytes::from(key)),
                value: value.map(Bytes::from),
                headers: kept.map(|id| (HEADER_EVENT.to_owned(), Bytes::from(id.to_string()))).into_iter().collect(),
                timestamp: now.before(Duration::from_millis(life.dice.roll(50))),
            });
            *offset += 1;
        }
        let record = |lot: &Lot, raw: &RawRecord| Record {
            source: usize::from(lot.source),
            partition: lot.partition,
            offset: raw.offset,
            key: raw.key.clone(),
            value: raw.value.clone(),
            headers: raw.headers.clone(),
            timestamp: raw.timestamp,
        };
        let records: Vec<_> = blocks.iter().flat_map(|(lot, all)| all.iter().map(|raw| record(lot, raw))).collect();
        let expected = oracle.epoch(epoch, now, &records).map_err(|error| format!("seed {}: {error}", life.seed))?;
        let read = |(lot, records): (Lot, Vec<RawRecord>)| {
            let source = &wiring.sources[usize::from(lot.source)];
            let read = |record: &RawRecord| ingest(source, lot, record, &rules, Path::Decide);
            Block { lot, target: 0, records: records.iter().map(read).collect() }
        };
        let output = chain.epoch(epoch, now, &rules, blocks.into_iter().map(read).collect());
        let found = told(&output).expect("lane records");
        if let Some(difference) = expected.difference(&found) {
            let rows = output.rows.decode();
            let users: BTreeSet<_> = rows.iter().map(|row| row.user.clone()).collect();
            let mut text = format!("{:?}, seed {}, epoch {epoch}, {now}: {difference}\n", life.stage, life.seed);
            let _ = writeln!(
                text,
                "operators: {:?}\npolicy of comment: {:?}",
                life.operators,
                life.policies.types.get("comment")
            );
            let _ = writeln!(text, "quiet hours: {:?}; changed at {:?}", life.policies.quiet_hours, life.later);
            for row in &rows {
                let _ = writeln!(
                    text,
                    "row {} {:?} {:?} {:?} until {:?} leg {} event {} by {} cause {}",
                    row.user,
                    row.unit,
                    row.states,
                    row.reason,
                    row.until,
                    row.leg,
                    row.event,
                    row.operator,
                    row.caused_by
                );
            }
            for (user, line) in history.iter().filter(|(user, _)| users.contains(*user)) {
                let _ = write!(text, "{user}\n{line}");
            }
            return Err(text);
        }
        lived.lanes += found.lanes.len();
        for fate in found.fates.values() {
            let name = format!("{fate:?}");
            let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned();
            *lived.fates.entry(name).or_default() += 1;
        }
        said.extend(found.lanes);
        rows.extend(output.rows.decode());
    }
    adds_up(&oracle, &rows).map_err(|problem| format!("{:?}, seed {}: {problem}", life.stage, life.seed))?;
    Ok(lived)
}

/// Promise 7: each unit in exactly one fate; and the record derives for each event what the oracle says.
fn adds_up(oracle: &Oracle, rows: &[Row]) -> Result<(), String> {
    let fates = Fates::of(rows.iter());
    for sum in fates.sums() {
        if !sum.adds_up() || sum.unaccounted > 0 {
            return Err(format!("a sum does not add up: {sum:?}"));
        }
    }
    let mut opened: BTreeMap<EventId, usize> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.unit == Unit::Event && row.states.contains(&State::Created)) {
        *opened.entry(row.event).or_default() += 1;
    }
    // One that was handed over again after the dedup window has two stories under one name.
    for (event, _) in opened.into_iter().filter(|(_, times)| *times == 1) {
        let (expected, found) = (oracle.end(event).map(End::as_str), fates.event(event).map(Fate::as_str));
        if expected != found {
            let rows: Vec<_> = rows.iter().filter(|row| row.event == event).collect();
            let rows: Vec<_> = rows
                .iter()
                .map(|row| {
                    format!("  {} {:?} {} {:?} {} {}", row.epoch, row.unit, row.leg, row.states, row.group, row.silent)
                })
                .collect();
            return Err(format!(
                "the end of {event}\n  expected: {expected:?}\n  found:    {found:?}\n{}\n  oracle: {}",
                rows.join("\n"),
                oracle.describe(event)
            ));
        }
    }
    Ok(())
}
