//! What producers write, the same for the same seed: people in five zones with and without quiet
//! hours, and a mix of everything that an event can be. It counts what it knows the end of.

use serde_json::{Value, json};
use tidings_operators::calendar::Calendar;
use tidings_schemas::channel::Priority;
use tidings_schemas::time::Instant;

const ZONES: [&str; 5] = ["Europe/Berlin", "Europe/London", "America/New_York", "Asia/Kolkata", "Asia/Tokyo"];
/// Events per person: enough to meet some of the hourly limits.
const EVENTS_PER_USER: usize = 25;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// Where a record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Events(Priority),
    Profiles,
    Addresses,
}

#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) to: To,
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
}

/// What the record must say in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) events: u64,
    pub(crate) rejected: u64,
    pub(crate) deduplicated: u64,
    pub(crate) cancelled: u64,
}

pub(crate) struct Workload {
    /// Profiles and addresses, before anything happens.
    pub(crate) people: Vec<Written>,
    /// Events, with changes of profiles between them.
    pub(crate) stream: Vec<Written>,
    pub(crate) expected: Expected,
}

/// How a person sleeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sleep {
    /// No quiet hours.
    Never,
    /// Until long after the test.
    Now,
    /// Until the profile changes in the middle of the stream.
    UntilChanged,
    /// Not now.
    Later,
}

struct Making {
    random: Random,
    now: Instant,
    calendar: Calendar,
    stream: Vec<Written>,
    expected: Expected,
    /// The newest like of each person, to be taken back.
    liked: Vec<Option<(String, String)>>,
    /// The newest record of each person on the topic of high priority, to be repeated.
    repeatable: Vec<Option<Vec<u8>>>,
    /// The cancel key of each person's newest scheduled event.
    scheduled: Vec<Option<String>>,
}

impl Workload {
    /// `events` records of events, as of `now`.
    pub(crate) fn new(seed: u64, events: usize, now: Instant) -> Self {
        let users = (events / EVENTS_PER_USER).max(40);
        let mut making = Making {
            random: Random(seed),
            now,
            calendar: Calendar::bundled(),
            stream: Vec::with_capacity(events + users),
            expected: Expected { events: events as u64, ..Expected::default() },
            liked: vec![None; users],
            repeatable: vec![None; users],
            scheduled: vec![None; users],
        };
        let mut people = Vec::new();
        for user in 0..users {
            people.push(making.profile(user, sleep_of(user), false));
            people.extend(addresses(user));
        }
        for number in 0..events {
            let user = making.random.below(users);
            making.event(number, user);
            // A quarter of the people changes something while events come in.
            if number > events / 3 && number % (3 * EVENTS_PER_USER).max(1) == 0 {
                let user = making.random.below(users);
                let (sleep, opted_out) =
                    if sleep_of(user) == Sleep::UntilChanged { (Sleep::Never, false) } else { (sleep_of(user), true) };
                let written = making.profile(user, sleep, opted_out);
                making.stream.push(written);
            }
        }
        // Whoever sleeps until the profile changes is woken now.
        for user in (0..users).filter(|user| sleep_of(*user) == Sleep::UntilChanged) {
            let written = making.profile(user, Sleep::Never, false);
            making.stream.push(written);
        }
        Self { people, stream: making.stream, expected: making.expected }
    }
}

fn sleep_of(user: usize) -> Sleep {
    // Not in step with the zones: every zone has all of them.
    match user / ZONES.len() % 4 {
        0 => Sleep::Never,
        1 => Sleep::Now,
        2 => Sleep::UntilChanged,
        _ => Sleep::Later,
    }
}

fn name(user: usize) -> String {
    format!("user{user:05}")
}

/// Phones of two kinds, a mail address for two of three; one of twenty can't be reached at all.
fn addresses(user: usize) -> Vec<Written> {
    let mut all = Vec::new();
    let mut add = |id: &str, rest: Value| {
        let mut address = json!({ "user_id": name(user), "address_id": id });
        address.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        all.push(Written {
            to: To::Addresses,
            key: format!("{}/{id}", name(user)),
            value: address.to_string().into_bytes(),
        });
    };
    if user % 20 == 19 {
        return Vec::new();
    }
    if user.is_multiple_of(2) {
        let token = format!("{user:064x}");
        add("phone", json!({ "channel": "push", "platform": "ios", "address": token, "environment": "production" }));
    }
    if user % 2 == 1 || user.is_multiple_of(10) {
        let token = format!("e2e-{user}:APA91b{user:032x}");
        add("tablet", json!({ "channel": "push", "platform": "android", "address": token }));
    }
    if !user.is_multiple_of(3) {
        add("mail", json!({ "channel": "email", "address": format!("{}@example.com", name(user)) }));
    }
    all
}

impl Making {
    fn profile(&self, user: usize, sleep: Sleep, opted_out: bool) -> Written {
        let zone = ZONES[user % ZONES.len()];
        let clock = |after: i64| {
            let local = self.calendar.zone(zone).unwrap().local(Instant(self.now.0 + after));
            local.minute.to_string()
        };
        let mut profile = json!({ "user_id": name(user), "time_zone": zone, "locale": "en" });
        match sleep {
            Sleep::Never => {}
            Sleep::Now | Sleep::UntilChanged => {
                profile["quiet_hours"] = json!({ "from": clock(-2 * HOUR), "to": clock(6 * HOUR) });
            }
            Sleep::Later => profile["quiet_hours"] = json!({ "from": clock(9 * HOUR), "to": clock(12 * HOUR) }),
        }
        if opted_out {
            profile["categories"] = json!({ "social": { "push": false, "email": false } });
        }
        Written { to: To::Profiles, key: name(user), value: profile.to_string().into_bytes() }
    }

    fn put(&mut self, priority: Priority, user: usize, value: Vec<u8>) {
        self.stream.push(Written { to: To::Events(priority), key: name(user), value });
    }

    fn event(&mut self, number: usize, user: usize) {
        let friend = self.random.below(40);
        let actor = json!({ "id": format!("friend{friend}"), "name": format!("Friend {friend}") });
        let photo = format!("photo{}", self.random.below(3));
        let event = |kind: &str, rest: Value| {
            let mut event = json!({ "id": format!("e{number}"), "type": kind, "user_id": name(user) });
            event.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            event.to_string().into_bytes()
        };
        let object = json!({ "id": photo, "kind": "photo" });
        match self.random.below(100) {
            0..30 => {
                self.liked[user] = Some((format!("friend{friend}"), photo));
                self.put(Priority::Medium, user, event("like", json!({ "actor": actor, "object": object })));
            }
            30..34 => {
                // Where nobody liked anything yet, somebody takes back what was never given.
                let (friend, photo) = self.liked[user].take().unwrap_or(("nobody".to_owned(), photo));
                let rest = json!({ "op": "retract", "actor": { "id": friend }, "object": { "id": photo } });
                self.put(Priority::Medium, user, event("like", rest));
            }
            34..46 => {
                let rest = json!({ "actor": actor, "object": object, "data": { "text": "lovely" } });
                self.put(Priority::Medium, user, event("comment_reply", rest));
            }
            46..52 => self.put(Priority::Medium, user, event("new_follower", json!({ "actor": actor }))),
            52..64 => {
                let value = event("new_message", json!({ "actor": actor, "data": { "text": "hello" } }));
                self.repeatable[user] = Some(value.clone());
                self.put(Priority::High, user, value);
            }
            64..72 => {
                let value = event("order_shipped", json!({ "data": { "order_id": format!("o{number}") } }));
                self.repeatable[user] = Some(value.clone());
                self.put(Priority::High, user, value);
            }
            72..77 => match self.repeatable[user].clone() {
                Some(value) => {
                    self.expected.deduplicated += 1;
                    self.put(Priority::High, user, value);
                }
                None => self.put(Priority::High, user, event("new_message", json!({ "actor": actor }))),
            },
            77..82 => {
                let code = json!({ "data": { "code": format!("{:06}", self.random.below(1_000_000)) } });
                self.put(Priority::Critical, user, event("verification_code", code));
            }
            82..90 => {
                let sale = json!({ "data": { "headline": "Sale", "message": "Everything must go" } });
                self.put(Priority::Low, user, event("marketing_campaign", sale));
            }
            90..93 => {
                // One of four lacks what its template needs: a dead letter.
                let data = if friend.is_multiple_of(4) { json!({}) } else { json!({ "item": "Momo" }) };
                let book = json!({ "object": { "id": format!("book{number}") }, "data": data });
                self.put(Priority::Low, user, event("recommendation", book));
            }
            93..95 => {
                let soon = json!({ "scheduled_at": Instant(self.now.0 + 20_000).to_string() });
                self.put(Priority::Medium, user, event("reminder", soon));
            }
            95..98 => match self.scheduled[user].take() {
                Some(key) => {
                    self.expected.cancelled += 2;
                    let cancel = json!({ "op": "cancel", "cancel_key": key });
                    self.put(Priority::Medium, user, event("reminder", cancel));
                }
                None => {
                    let key = format!("trip{number}");
                    let rest = json!({ "cancel_key": key, "scheduled_at": Instant(self.now.0 + 5 * HOUR).to_string() });
                    self.scheduled[user] = Some(key);
                    self.put(Priority::Medium, user, event("reminder", rest));
                }
            },
            98 => {
                self.expected.rejected += 1;
                let wrong = match self.random.below(3) {
                    0 => br#"{"type": "like", "user_id": "#.to_vec(),
                    1 => br#"{"type": "like"}"#.to_vec(),
                    _ => event("like", json!({ "colour": "red" })),
                };
                self.put(Priority::Medium, user, wrong);
            }
            // On the wrong topic: each path hands over what belongs to the other.
            _ if friend.is_multiple_of(2) => {
                self.put(Priority::Medium, user, event("security_alert", json!({ "data": { "place": "Oslo" } })));
            }
            _ => {
                let order = json!({ "data": { "order_id": format!("o{number}") } });
                self.put(Priority::Critical, user, event("order_shipped", order));
            }
        }
    }
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((word ^ (word >> 31)) % most as u64).unwrap()
    }
}
