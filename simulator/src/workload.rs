//! What producers and users do: a few hours of them, in batches.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tidings_schemas::time::Instant;
use tidings_sinks::log::{Append, TopicPartition};

use crate::choices::Rng;
use crate::options::Options;

/// Events.
pub const EVENTS: &str = "in.events";
/// Legs that come back.
pub const RETURNED: &str = "notifications.returned";
/// Profiles.
pub const PROFILES: &str = "notifications.preferences";
/// Addresses.
pub const ADDRESSES: &str = "notifications.addresses";

/// Marks a record that is there only so that its offset is used up: a transaction's marker, a record
/// that was compacted. No reader ever sees it.
pub const GAP: &str = "sim-gap";

/// Records that arrive at one moment.
#[derive(Clone, Debug)]
pub struct Batch {
    /// When.
    pub at: Instant,
    /// What.
    pub records: Vec<Append>,
}

/// The day on which the world begins: the night before the clocks change in Europe.
pub const START: &str = "2026-03-28T19:00:00Z";

/// The batches of a world, in order.
#[must_use]
pub fn batches(options: &Options) -> Vec<Batch> {
    let mut rng = Rng::new(options.seed ^ 0x0057_0421_0AD0_0000);
    let start: Instant = START.parse().unwrap_or_default();
    let minutes = options.hours * 60;
    let mut times: Vec<u64> = (0..options.batches).map(|_| rng.below(minutes)).collect();
    times.sort_unstable();
    let mut people = People { options, number: 0, past: Vec::new() };
    let mut batches = Vec::new();
    for (place, minute) in times.into_iter().enumerate() {
        let at = start.after(Duration::from_secs(minute * 60));
        let mut records = Vec::new();
        if place == 0 {
            for user in 0..options.users {
                if rng.chance(800_000) {
                    records.push(people.profile(&mut rng, user));
                }
                for channel in ["push", "email", "sms"] {
                    if rng.chance(700_000) {
                        records.push(address(user, channel, true));
                    }
                }
            }
        }
        for _ in 0..rng.between(1, options.batch_max) {
            records.push(people.record(&mut rng, at));
            if rng.chance(30_000) {
                let mut gap = people.event_record(0, &mut rng, String::new());
                gap.headers.push((GAP.to_owned(), Bytes::new()));
                records.push(gap);
            }
        }
        batches.push(Batch { at, records });
    }
    batches
}

struct People<'a> {
    options: &'a Options,
    number: u64,
    /// (id, user, type, cancel key) of events so far.
    past: Vec<Value>,
}

fn append(topic: &str, partition: u32, key: String, value: Option<String>) -> Append {
    let to = TopicPartition { topic: topic.into(), partition };
    Append { to, key: Some(key.into()), value: value.map(Bytes::from), headers: Vec::new() }
}

fn address(user: u64, channel: &str, live: bool) -> Append {
    let value = json!({"user_id": format!("u{user}"), "address_id": channel, "channel": channel, "address": "x"});
    append(ADDRESSES, 0, format!("u{user}/{channel}"), live.then(|| value.to_string()))
}

impl People<'_> {
    fn record(&mut self, rng: &mut Rng, at: Instant) -> Append {
        let user = rng.below(self.options.users);
        match rng.below(100) {
            0..10 => self.profile(rng, user),
            10..14 => {
                let channel: &str = rng.one::<&str>(&["push", "email", "sms"]);
                address(user, channel, rng.chance(500_000))
            }
            14..16 => {
                let broken = *rng.one(&["{", "null", "{\"type\":\"like\"}"]);
                self.event_record(user, rng, broken.to_owned())
            }
            16..23 if !self.past.is_empty() => {
                // The same again, from whichever producer.
                let past = rng.one(&self.past).clone();
                self.event_of(rng, &past)
            }
            23..31 if !self.past.is_empty() => {
                let mut past = rng.one(&self.past).clone();
                past["op"] = json!(*rng.one(&["retract", "cancel"]));
                if rng.chance(500_000) {
                    self.number += 1;
                    past["id"] = json!(format!("e{}", self.number));
                }
                self.event_of(rng, &past)
            }
            _ => {
                let event = self.event(rng, user, at);
                self.past.push(event.clone());
                self.event_of(rng, &event)
            }
        }
    }

    fn event(&mut self, rng: &mut Rng, user: u64, at: Instant) -> Value {
        self.number += 1;
        let kinds =
            ["like", "like", "like", "like", "order_shipped", "marketing_campaign", "verification_code", "other"];
        let kind = *rng.one(&kinds);
        let mut event = json!({"id": format!("e{}", self.number), "type": kind, "user_id": format!("u{user}")});
        if kind == "like" {
            event["actor"] = json!({"id": format!("a{}", rng.below(7))});
            event["object"] = json!({"id": format!("p{}", rng.below(3))});
        }
        if kind == "order_shipped" {
            event["data"] = json!({"order_id": rng.below(40)});
        }
        let later = |rng: &mut Rng| at.after(Duration::from_secs(rng.below(6 * 3_600)));
        if rng.chance(80_000) {
            event["scheduled_at"] = json!(later(rng));
            event["cancel_key"] = json!(format!("c{}", rng.below(10)));
        }
        if rng.chance(80_000) {
            event["expires_at"] = json!(later(rng));
        }
        if rng.chance(100_000) {
            event["time"] = json!(at.before(Duration::from_secs(rng.below(24 * 3_600))));
        }
        if rng.chance(100_000) {
            event["channels"] = json!([*rng.one(&["push", "email", "sms", "in_app"])]);
        }
        if rng.chance(60_000) {
            event["fallback_channels"] = json!(["email", "in_app"]);
        }
        if rng.chance(60_000) {
            event["priority"] = json!(*rng.one(&["high", "medium", "low"]));
        }
        event
    }

    fn event_of(&self, rng: &mut Rng, event: &Value) -> Append {
        let user = event["user_id"].as_str().and_then(|user| user[1..].parse().ok()).unwrap_or(0);
        self.event_record(user, rng, event.to_string())
    }

    fn event_record(&self, user: u64, rng: &mut Rng, json: String) -> Append {
        let partitions = u64::from(self.options.event_partitions);
        // Now and then a producer places it otherwise.
        let partition = if rng.chance(100_000) { rng.below(partitions) } else { user % partitions };
        append(EVENTS, u32::try_from(partition).unwrap_or(0), format!("u{user}"), Some(json))
    }

    fn profile(&self, rng: &mut Rng, user: u64) -> Append {
        let partition = u32::try_from(user % u64::from(self.options.profile_partitions)).unwrap_or(0);
        if rng.chance(80_000) {
            return append(PROFILES, partition, format!("u{user}"), None);
        }
        let zones = ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland", "UTC"];
        let mut profile = json!({"time_zone": *rng.one(&zones)});
        if rng.chance(600_000) {
            let (from, to) =
                *rng.one(&[("22:00", "07:00"), ("20:30", "02:30"), ("00:00", "23:59"), ("09:00", "17:00")]);
            profile["quiet_hours"] = json!({"from": from, "to": to});
        }
        if rng.chance(250_000) {
            profile["types"] = json!({"like": {*rng.one(&["push", "email"]): rng.chance(300_000)}});
        }
        if rng.chance(150_000) {
            profile["categories"] = json!({*rng.one(&["social", "marketing"]): {"push": false, "email": false}});
        }
        if rng.chance(150_000) {
            profile["channels"] = json!({*rng.one(&["push", "email", "in_app"]): false});
        }
        if rng.chance(100_000) {
            profile["stops"] = json!([{"channel": "sms", "source": "STOP", "at": START}]);
        }
        if rng.chance(150_000) {
            profile["caps"] = json!([{"channel": "push", "max": rng.below(4), "per": "1h"}]);
        }
        append(PROFILES, partition, format!("u{user}"), Some(profile.to_string()))
    }
}
