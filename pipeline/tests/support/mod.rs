//! The demo's night on the real chain, one worker, with deliveries whose rows are written as deliver
//! writes them: what a console and the last words are fed with.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tidings_operators::harness::output::{EpochOutput, To};
use tidings_operators::ingest::Path;
use tidings_operators::script::{Scenario, rules_of, straight};
use tidings_pipeline::demo::workload::{Action, Workload};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{DeliveryId, EventId};
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, Stage, State, Unit};
use tidings_schemas::policy::Policies;
use tidings_schemas::profile::{Address, Profile};
use tidings_schemas::time::Instant;

/// What happens, as a runtime would observe it.
pub(crate) enum Seen {
    Event { id: EventId, at: Instant, value: Vec<u8>, caption: String },
    Profile { user: String, profile: Box<Profile>, at: Instant, caption: String },
    Rows(Vec<Row>),
    Lane(Box<LaneRecord>),
    Message(Value),
}

/// The policies of the example topology.
fn policies() -> Policies {
    serde_json::from_value(json!({
        "types": {
            "verification_code": { "category": "security", "priority": "critical", "limits": "exempt" },
            "new_message": { "category": "social", "priority": "high" },
            "order_shipped": { "category": "transactional", "priority": "high", "dedup_key": "data.order_id" },
            "like": { "category": "social", "priority": "medium", "channels": ["push", "email"] },
            "new_follower": { "category": "social", "priority": "medium" },
            "comment_reply": { "category": "social", "priority": "medium" },
            "marketing_campaign": { "category": "marketing", "priority": "low" },
            "default": { "category": "other", "priority": "medium" },
        },
        "categories": { "security": { "passes_opt_out": true }, "transactional": { "passes_opt_out": true } },
        "quiet_hours": {
            "high": "in_app",
            "medium": { "push": "defer", "sms": "defer", "email": "defer", "in_app": "silent" },
            "low": "defer",
        },
    }))
    .expect("policies")
}

/// Plays the night of `seed` up to `until`.
pub(crate) fn night(seed: u64, until: Instant, mut each: impl FnMut(Seen)) {
    let social = Some(r#"category == "social""#);
    let levels = json!({"levels": [{"per": ["channel", "type"], "push": "10/h", "email": "5/h", "other": "10/h"},
                                   {"per": ["channel"], "push": "30/h"}, {"per": ["category"], "marketing": "5/d"}]});
    let decide = straight(&[
        ("validate", json!({}), None),
        ("dedup", json!({}), None),
        ("schedule", json!({}), None),
        ("preferences", json!({}), None),
        ("aggregate", json!({"window": "5m"}), social),
        ("route", json!({}), None),
        ("quiet_hours", json!({"spread": "30m"}), None),
        ("rate_limit", levels, None),
    ]);
    let mut critical =
        straight(&[("validate", json!({}), None), ("preferences", json!({}), None), ("route", json!({}), None)]);
    critical.sources[0].id = "critical".into();
    let rules = || rules_of(&policies(), Duration::from_secs(1800));
    let mut decide = Scenario::new(&decide, rules());
    let mut critical = Scenario::on(Path::Critical, &critical, rules());
    let mut world = World::default();
    let (mut events, mut codes) = (0, 0);
    for act in Workload::new(seed).take_while(|act| act.at <= until) {
        let due = decide.advance(act.at);
        world.say(due, &mut each);
        critical.advance(act.at);
        match act.action {
            Action::Profile { user, value } => {
                let profile = Profile::from_json(Some(&value)).expect("a profile");
                each(Seen::Profile {
                    user: user.clone(),
                    profile: Box::new(profile),
                    at: act.at,
                    caption: act.caption,
                });
                let value = String::from_utf8(value).ok();
                critical.step(2, &user, value.clone());
                let output = decide.step(2, &user, value);
                world.say(output, &mut each);
            }
            Action::Address { key, value } => {
                let address: Address = serde_json::from_slice(&value).expect("an address");
                world.addresses.entry((address.user_id.clone(), address.channel)).or_default().push(address);
                let value = String::from_utf8(value).ok();
                critical.step(3, &key, value.clone());
                let output = decide.step(3, &key, value);
                world.say(output, &mut each);
            }
            Action::Event { topic, key, value } => {
                let is_critical = topic == Priority::Critical;
                let (chain, source, offset) = if is_critical {
                    (&mut critical, "critical", &mut codes)
                } else {
                    (&mut decide, "events", &mut events)
                };
                let id = EventId::new(source, 0, *offset);
                *offset += 1;
                each(Seen::Event { id, at: act.at, value: value.clone(), caption: act.caption });
                let output = chain.step(0, &key, String::from_utf8(value).ok());
                world.say(output, &mut each);
            }
        }
    }
    let output = decide.advance(until);
    world.say(output, &mut each);
}

#[derive(Default)]
struct World {
    addresses: BTreeMap<(String, Channel), Vec<Address>>,
    /// The ledger: a repeat of a critical event meets what was sent.
    sent: BTreeMap<DeliveryId, EventId>,
    messages: u64,
}

impl World {
    fn say(&mut self, output: EpochOutput, each: &mut impl FnMut(Seen)) {
        let mut rows = output.rows.decode();
        rows.sort_by_key(|row| (row.at, row.epoch, row.unit));
        each(Seen::Rows(rows));
        for said in output.said {
            if matches!(said.to, To::Lane(..)) {
                let lane: LaneRecord = serde_json::from_slice(&said.value).expect("a lane record");
                self.deliver(&lane, each);
                each(Seen::Lane(Box::new(lane)));
            }
        }
    }

    fn deliver(&mut self, lane: &LaneRecord, each: &mut impl FnMut(Seen)) {
        let inbox = Address { address_id: lane.user.clone(), ..sample(&lane.user) };
        let of_channel = self.addresses.get(&(lane.user.clone(), lane.channel)).cloned();
        let addresses = if lane.channel == Channel::InApp { vec![inbox] } else { of_channel.unwrap_or_default() };
        for address in addresses {
            let delivery = DeliveryId::new(lane.notification, lane.channel.as_str(), &address.address_id, 0);
            if let Some(first) = self.sent.insert(delivery, lane.event) {
                self.sent.insert(delivery, first);
                if first != lane.event {
                    each(Seen::Rows(vec![repeat_row(lane, first)]));
                }
                continue;
            }
            let provider = match (lane.channel, address.platform.as_deref()) {
                (Channel::Push, Some("ios")) => "apns",
                (Channel::Push, _) => "fcm",
                (Channel::Email, _) => "ses",
                _ => "inbox",
            };
            let at = lane.ready_at.after(Duration::from_secs(2));
            let sent = [State::Created, State::Rendered, State::Sent];
            let first =
                if lane.channel == Channel::Email { sent.to_vec() } else { [&sent[..], &[State::Delivered]].concat() };
            let mut rows = vec![delivery_row(lane, delivery, provider, at, first)];
            if lane.channel == Channel::Email {
                rows.push(delivery_row(
                    lane,
                    delivery,
                    provider,
                    at.after(Duration::from_secs(20)),
                    vec![State::Delivered],
                ));
            }
            each(Seen::Rows(rows));
            self.messages += 1;
            each(Seen::Message(message(self.messages, lane, &address, provider, at)));
        }
    }
}

/// What whoever finds a critical notification in the ledger says of the event that repeats it.
fn repeat_row(lane: &LaneRecord, first: EventId) -> Row {
    Row {
        at: lane.ready_at.after(Duration::from_secs(2)),
        stage: Stage::Deliver,
        states: vec![State::Deduplicated],
        unit: Unit::Event,
        event: lane.event,
        notification: lane.notification,
        user: lane.user.clone(),
        event_type: lane.event_type.clone(),
        category: lane.category.clone(),
        priority: Some(lane.priority),
        reason: Some(tidings_schemas::reason::Reason::Duplicate),
        caused_by: format!("repeats {first}"),
        created_at: lane.created_at,
        ..Row::default()
    }
    .sealed()
}

fn sample(user: &str) -> Address {
    serde_json::from_value(json!({"user_id": user, "address_id": user, "channel": "in_app", "address": user}))
        .expect("an address")
}

fn delivery_row(lane: &LaneRecord, delivery: DeliveryId, provider: &str, at: Instant, states: Vec<State>) -> Row {
    Row {
        at,
        stage: Stage::Deliver,
        states,
        unit: Unit::Delivery,
        event: lane.event,
        notification: lane.notification,
        group: lane.group,
        leg: lane.leg,
        silent: lane.silent,
        delivery,
        user: lane.user.clone(),
        event_type: lane.event_type.clone(),
        category: lane.category.clone(),
        priority: Some(lane.priority),
        channel: Some(lane.channel),
        provider: provider.to_owned(),
        attempt: 1,
        created_at: lane.created_at,
        ready_at: Some(lane.ready_at),
        ..Row::default()
    }
    .sealed()
}

fn message(seq: u64, lane: &LaneRecord, address: &Address, provider: &str, at: Instant) -> Value {
    let who = match (lane.actors.as_slice(), lane.actors_count) {
        ([], _) => String::new(),
        ([one], _) => one.clone(),
        ([one, two], 2) => format!("{one} and {two}"),
        ([one, ..], count) => format!("{one} and {} others", count - 1),
    };
    let object = lane.object.as_ref().map_or("your photos", |object| object.id.as_str());
    let text = lane.data.get("text").and_then(Value::as_str).unwrap_or_default();
    let (title, body) = match lane.event_type.as_str() {
        "like" => ("New likes".to_owned(), format!("{who} liked {object}")),
        "comment_reply" => (format!("{who} commented on {object}"), text.to_owned()),
        "new_follower" => ("New followers".to_owned(), format!("{who} follow you now")),
        "new_message" => (who, text.to_owned()),
        "order_shipped" => {
            ("Your order is on its way".to_owned(), "Order 4412 left the warehouse with DHL.".to_owned())
        }
        "verification_code" => {
            ("482913 is your code".to_owned(), "It is valid for ten minutes. Never share it.".to_owned())
        }
        "marketing_campaign" => {
            ("Spring is here: 20 % off".to_owned(), "Hello! For one week everything green is 20 % off.".to_owned())
        }
        other => (other.replace('_', " "), text.to_owned()),
    };
    let content = match lane.channel {
        Channel::Push => json!({"push": {"title": title, "body": body}}),
        Channel::Email => json!({"email": {"subject": title, "text": body, "html": ""}}),
        _ => json!({"in_app": {"title": title, "body": body}}),
    };
    json!({"seq": seq, "at": at, "provider": provider, "channel": lane.channel, "user": lane.user,
           "address": address.address, "notification": lane.notification, "content": content, "copy": 1})
}
