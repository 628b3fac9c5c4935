//! One night of six people in five zones, the same for the same seed.
//!
//! It begins on 28 March 2026 at 23:20 in Berlin, the night in which Europe's clocks go forward. The
//! first hour is a script: every fate that an event can meet, met by somebody with a name. Random
//! likes, comments and messages go on beside it until the morning, so that there is something to
//! aggregate, to limit and to release at 07:00.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};
use tidings_schemas::channel::Priority;
use tidings_schemas::time::Instant;

/// When it begins: 23:20 in Berlin.
pub const BEGINS_AT: Instant = Instant(1_774_736_400_000);
/// Until everybody in Europe was woken: 07:40 in Berlin, after the night that lost an hour.
pub const LASTS: Duration = Duration::from_secs(7 * 3600 + 20 * 60);

/// Distinct people of the burst: "Alice and 42 others".
const BURST_PEOPLE: usize = 43;

/// What a producer does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Writes a record to the events topic of this priority.
    Event {
        /// Which topic.
        topic: Priority,
        /// The record's key: the user.
        key: String,
        /// The record.
        value: Vec<u8>,
    },
    /// Writes a profile.
    Profile {
        /// Whose: the record's key.
        user: String,
        /// The record.
        value: Vec<u8>,
    },
    /// Writes an address.
    Address {
        /// The record's key: user and address.
        key: String,
        /// The record.
        value: Vec<u8>,
    },
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// When, on the demo's clock.
    pub at: Instant,
    /// What it shows, in a line; empty for what needs no words.
    pub caption: String,
    /// What is done.
    pub action: Action,
}

/// The acts, in order of time.
#[derive(Clone, Debug)]
pub struct Workload {
    acts: VecDeque<Act>,
}

struct Person {
    user: &'static str,
    caption: &'static str,
    profile: fn() -> Value,
    /// (address id, platform); `mail` is an e-mail address.
    addresses: &'static [(&'static str, &'static str)],
}

const PEOPLE: [Person; 6] = [
    Person {
        user: "mia",
        caption: "Mia lives in Berlin, where it is 23:20; she sleeps from 22:00 to 07:00 and reads German",
        profile: || {
            json!({"user_id": "mia", "time_zone": "Europe/Berlin", "locale": "de",
                   "quiet_hours": {"from": "22:00", "to": "07:00"}})
        },
        addresses: &[("phone", "ios"), ("mail", "")],
    },
    Person {
        user: "john",
        caption: "John lives in London, is quiet from 23:00, and wants no marketing by e-mail",
        profile: || {
            json!({"user_id": "john", "time_zone": "Europe/London", "quiet_hours": {"from": "23:00", "to": "07:00"},
                   "categories": {"marketing": {"email": false}}})
        },
        addresses: &[("phone", "android"), ("mail", "")],
    },
    Person {
        user: "nora",
        caption: "Nora lives in New York, where the evening has just begun; she has a phone and a tablet",
        profile: || json!({"user_id": "nora", "time_zone": "America/New_York", "quiet_hours": {"from": "22:00", "to": "07:30"}}),
        addresses: &[("phone", "ios"), ("tablet", "android"), ("mail", "")],
    },
    Person {
        user: "ravi",
        caption: "Ravi lives in Kolkata, sleeps until 06:30, and has text messages switched off",
        profile: || {
            json!({"user_id": "ravi", "time_zone": "Asia/Kolkata", "quiet_hours": {"from": "22:00", "to": "06:30"},
                   "channels": {"sms": false}})
        },
        addresses: &[("phone", "android")],
    },
    Person {
        user: "ken",
        caption: "Ken lives in Tokyo, where it is morning already",
        profile: || json!({"user_id": "ken", "time_zone": "Asia/Tokyo", "quiet_hours": {"from": "23:00", "to": "07:00"}}),
        addresses: &[("phone", "ios")],
    },
    Person {
        user: "sofia",
        caption: "Sofia lives in New York too, has no quiet hours, and reads e-mail only",
        profile: || json!({"user_id": "sofia", "time_zone": "America/New_York"}),
        addresses: &[("mail", "")],
    },
];

/// People who like and comment, and never are told anything.
const FRIENDS: [&str; 12] =
    ["Alice", "Bob", "Carol", "Dave", "Eve", "Frank", "Grace", "Heidi", "Ivan", "Judy", "Mallory", "Niaj"];

impl Workload {
    /// The night of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut night = Night { acts: Vec::new(), random: Random(seed), sent: 0 };
        night.people();
        night.script();
        night.chatter();
        let mut acts = night.acts;
        // What happens at one instant happens as it was written.
        acts.sort_by_key(|act| act.at);
        Self { acts: acts.into() }
    }
}

impl Iterator for Workload {
    type Item = Act;

    fn next(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.acts.len(), Some(self.acts.len()))
    }
}

struct Night {
    acts: Vec<Act>,
    random: Random,
    sent: u64,
}

/// `minutes` and seconds after the beginning.
fn after(minutes: u64, seconds: u64) -> Instant {
    BEGINS_AT.after(Duration::from_secs(minutes * 60 + seconds))
}

impl Night {
    fn people(&mut self) {
        for (number, person) in PEOPLE.iter().enumerate() {
            for (id, platform) in person.addresses {
                let value = address(person.user, id, platform, number);
                let action = Action::Address { key: format!("{}/{id}", person.user), value: bytes(&value) };
                self.acts.push(Act { at: BEGINS_AT, caption: String::new(), action });
            }
            self.profile(BEGINS_AT, person.user, (person.profile)(), person.caption);
        }
    }

    fn profile(&mut self, at: Instant, user: &str, profile: Value, caption: &str) {
        let action = Action::Profile { user: user.to_owned(), value: bytes(&profile) };
        self.acts.push(Act { at, caption: caption.to_owned(), action });
    }

    fn event(&mut self, at: Instant, topic: Priority, user: &str, event: Value, caption: &str) {
        let action = Action::Event { topic, key: user.to_owned(), value: bytes(&event) };
        self.acts.push(Act { at, caption: caption.to_owned(), action });
    }

    fn id(&mut self, kind: &str) -> String {
        self.sent += 1;
        format!("{kind}-{}", self.sent)
    }

    /// Someone likes something of `user`'s.
    fn like(&mut self, at: Instant, user: &str, actor: &str, photo: &str, caption: &str) {
        let id = self.id("like");
        let event = json!({"id": id, "type": "like", "user_id": user, "actor": actor_of(actor),
                           "object": {"id": photo, "kind": "photo"}});
        self.event(at, Priority::Medium, user, event, caption);
    }

    fn comment(&mut self, at: Instant, user: &str, actor: &str, photo: &str, text: &str, caption: &str) {
        let id = self.id("comment");
        let event = json!({"id": id, "type": "comment_reply", "user_id": user, "actor": actor_of(actor),
                           "object": {"id": photo, "kind": "photo"}, "data": {"text": text}});
        self.event(at, Priority::Medium, user, event, caption);
    }

    /// The first hours: each fate, met by somebody.
    fn script(&mut self) {
        self.a_photo_at_night();
        self.orders();
        self.a_code_at_half_past_eleven();
        self.reminders();
        self.a_campaign();
        self.changed_minds();
        self.a_burst();
        let broken = br#"{"type": "like", "user_id": "mia", "actor": {"id": "bob""#.to_vec();
        let action = Action::Event { topic: Priority::Medium, key: "mia".to_owned(), value: broken };
        let caption =
            "A producer breaks off in the middle of a record: it goes to the dead letters, and the stream goes on";
        self.acts.push(Act { at: after(5, 0), caption: caption.to_owned(), action });
    }

    fn a_photo_at_night(&mut self) {
        self.like(
            after(0, 10),
            "mia",
            "John",
            "photo7",
            "John likes Mia's photo; she sleeps, so it can wait until 07:00",
        );
        self.comment(after(1, 0), "mia", "Alice", "photo7", "wo war das?", "Alice comments on it");
        self.like(after(1, 20), "mia", "Alice", "photo7", "Alice likes it too: the two will be told together");
        self.like(after(1, 50), "mia", "Bob", "photo7", "");
        self.like(after(2, 10), "mia", "Dave", "photo7", "Dave likes it …");
        let id = self.id("unlike");
        let unlike = json!({"id": id, "type": "like", "op": "retract", "user_id": "mia", "actor": actor_of("Dave"),
                            "object": {"id": "photo7", "kind": "photo"}});
        self.event(after(3, 10), Priority::Medium, "mia", unlike, "… and takes it back: nobody will hear of it");
        for (minute, friend) in [(31, "Carol"), (64, "Eve"), (102, "Frank")] {
            self.like(after(minute, 0), "mia", friend, "photo7", "");
        }
        let sale = json!({"id": "sale-1", "type": "flash_sale", "priority": "low", "user_id": "mia",
                          "expires_at": after(100, 0).to_string()});
        let caption = "A flash sale until 1 o'clock: when Mia wakes up it is over, and she is not told";
        self.event(after(26, 0), Priority::Low, "mia", sale, caption);
        let unlike = json!({"id": "unlike-eve", "type": "like", "op": "retract", "user_id": "mia",
                            "actor": actor_of("Eve"), "object": {"id": "photo9", "kind": "photo"}});
        let caption = "Eve takes back a like that she never gave: there is nothing to retract, and the record says so";
        self.event(after(28, 0), Priority::Medium, "mia", unlike, caption);
    }

    fn orders(&mut self) {
        let order = |id: &str, user: &str, order: &str| json!({"id": id, "type": "order_shipped", "user_id": user, "data": {"order_id": order, "carrier": "DHL"}});
        let captions = [
            "Nora's order is shipped: high priority, at once, on all her devices",
            "The shop's queue delivers the same event again: left out as a repeat",
            "And once more, under a new id: the order's number gives it away",
        ];
        for ((minute, id), caption) in
            [(1, "order-4412"), (3, "order-4412"), (4, "order-4412-retry")].into_iter().zip(captions)
        {
            self.event(after(minute, 30), Priority::High, "nora", order(id, "nora", "4412"), caption);
        }
        let caption = "Mia's order too, but she sleeps: at high priority it goes to the inbox only, silently";
        self.event(after(2, 40), Priority::High, "mia", order("order-4413", "mia", "4413"), caption);
        let message = json!({"id": "message-1", "type": "new_message", "user_id": "ken", "actor": actor_of("Alice"),
                             "data": {"text": "lunch?"}});
        self.event(after(4, 0), Priority::High, "ken", message, "Alice writes to Ken, who is awake: push, at once");
    }

    fn a_code_at_half_past_eleven(&mut self) {
        let code = json!({"id": "code-1", "type": "verification_code", "user_id": "mia", "data": {"code": "482913"},
                          "expires_at": after(20, 0).to_string()});
        let caption = "23:30: a one-time code for Mia. Critical: no quiet hours, no window, no limit";
        self.event(after(10, 0), Priority::Critical, "mia", code.clone(), caption);
        self.event(
            after(10, 8),
            Priority::Critical,
            "mia",
            code,
            "The login service repeats itself: the ledger knows it",
        );
    }

    fn reminders(&mut self) {
        let dentist = json!({"id": "reminder-1", "type": "reminder", "user_id": "sofia",
                             "scheduled_at": after(38, 0).to_string(), "data": {"text": "dentist at 9"}});
        self.event(after(6, 0), Priority::Medium, "sofia", dentist, "A reminder for Sofia, in 32 minutes");
        let flight = json!({"id": "reminder-2", "type": "reminder", "user_id": "ken", "cancel_key": "flight-NH203",
                            "scheduled_at": after(30, 0).to_string(), "data": {"text": "check in for NH203"}});
        self.event(after(6, 20), Priority::Medium, "ken", flight, "And one for Ken's flight …");
        let cancel = json!({"id": "cancel-1", "type": "reminder", "op": "cancel", "user_id": "ken",
                            "cancel_key": "flight-NH203"});
        self.event(
            after(15, 0),
            Priority::Medium,
            "ken",
            cancel,
            "… which is cancelled in time, and so is the reminder",
        );
    }

    fn a_campaign(&mut self) {
        for (place, person) in PEOPLE.iter().enumerate() {
            let (headline, message) = match person.user {
                "mia" => ("Frühlingsangebot", "20 % Rabatt bis Sonntag."),
                _ => ("Spring sale", "20 % off until Sunday."),
            };
            let campaign = json!({"id": format!("spring-{}", person.user), "type": "marketing_campaign",
                                  "user_id": person.user, "data": {"headline": headline, "message": message}});
            let caption = match person.user {
                "mia" => "A campaign for everybody. It is night at Mia's: her mail waits for the morning",
                "john" => "John wants no marketing by e-mail: it lies in his inbox instead",
                "sofia" => "Sofia is awake: her mail goes out at once",
                _ => "",
            };
            let at = after(12, 4 * u64::try_from(place).unwrap_or(0));
            self.event(at, Priority::Low, person.user, campaign, caption);
        }
    }

    /// Profiles that change while something waits.
    fn changed_minds(&mut self) {
        self.comment(
            after(20, 0),
            "ravi",
            "Judy",
            "photo3",
            "call me",
            "Judy comments on Ravi's photo; in Kolkata it is the middle of the night",
        );
        let moved = json!({"user_id": "ravi", "time_zone": "America/New_York",
                           "quiet_hours": {"from": "22:00", "to": "06:30"}, "channels": {"sms": false}});
        let caption = "Ravi's phone says he has landed in New York, where it is evening: what waited for his morning goes out now";
        self.profile(after(33, 0), "ravi", moved, caption);

        self.like(
            after(41, 10),
            "john",
            "Alice",
            "photo1",
            "Alice likes John's photo just after 23:00 in London: it waits",
        );
        self.like(after(42, 0), "john", "Grace", "photo1", "");
        let no_social = json!({"user_id": "john", "time_zone": "Europe/London",
                               "quiet_hours": {"from": "23:00", "to": "07:00"},
                               "categories": {"marketing": {"email": false}, "social": {"push": false, "email": false}}});
        let caption = "John switches social push and mail off: that reaches even what is waiting already";
        self.profile(after(52, 0), "john", no_social, caption);
        self.like(after(56, 0), "john", "Eve", "photo2", "");
    }

    /// Ten likes use the hour's budget up; 43 more are merged into one.
    fn a_burst(&mut self) {
        for photo in 1..=10 {
            let caption = if photo == 1 { "Nora's exhibition opens: ten of her photos are liked" } else { "" };
            let friend = FRIENDS[photo % FRIENDS.len()];
            self.like(
                after(7, 3 * u64::try_from(photo).unwrap_or(0)),
                "nora",
                friend,
                &format!("print{photo}"),
                caption,
            );
        }
        for number in 0..BURST_PEOPLE {
            let caption = match number {
                0 => {
                    "It is shared: 43 people like the next ones. Ten pushes an hour are the limit, so they are merged …"
                }
                42 => "… into one: “Alice and 42 others”, as soon as there is room",
                _ => "",
            };
            let name = FRIENDS.get(number).map_or_else(|| format!("Guest {}", number + 1), |name| (*name).to_owned());
            let photo = format!("print{}", 11 + number % 6);
            let at = after(13, 0).after(Duration::from_millis(u64::try_from(number).unwrap_or(0) * 2_500));
            self.like(at, "nora", &name, &photo, caption);
        }
    }

    /// What goes on besides, until the morning.
    fn chatter(&mut self) {
        let mut at = after(8, 0);
        let end = BEGINS_AT.after(LASTS);
        let texts = ["lovely", "where is this?", "so good", "wow", "see you there", "nice light"];
        loop {
            // Nearly as many a minute at first as people can follow, then fewer.
            let gap = if at < after(75, 0) { 40 + self.random.below(90) } else { 240 + self.random.below(600) };
            at = at.after(Duration::from_secs(gap));
            if at >= end {
                return;
            }
            // Not Mia nor John: theirs is the script's.
            let user = ["nora", "ravi", "ken", "sofia"][self.random.place(4)];
            let friend = FRIENDS[self.random.place(FRIENDS.len())];
            let photo = format!("photo{}", 1 + self.random.below(4));
            match self.random.below(10) {
                0..=5 if user != "nora" => self.like(at, user, friend, &photo, ""),
                6..=7 => {
                    let id = self.id("follow");
                    let event = json!({"id": id, "type": "new_follower", "user_id": user, "actor": actor_of(friend)});
                    self.event(at, Priority::Medium, user, event, "");
                }
                _ => {
                    let text = texts[self.random.place(texts.len())];
                    self.comment(at, user, friend, &photo, text, "");
                }
            }
        }
    }
}

fn actor_of(name: &str) -> Value {
    json!({"id": name.to_lowercase().replace(' ', "-"), "name": name})
}

fn address(user: &str, id: &str, platform: &str, number: usize) -> Value {
    let device = number * 4 + id.len();
    match platform {
        "ios" => json!({"user_id": user, "address_id": id, "channel": "push", "platform": "ios",
                        "address": format!("{device:064x}"), "environment": "production"}),
        "android" => json!({"user_id": user, "address_id": id, "channel": "push", "platform": "android",
                            "address": format!("demo-{user}-{id}:APA91b{device:032x}")}),
        _ => json!({"user_id": user, "address_id": id, "channel": "email", "address": format!("{user}@example.com")}),
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// SplitMix64: a few lines that say the same on every machine for ever.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    fn place(&mut self, most: usize) -> usize {
        usize::try_from(self.below(most as u64)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use tidings_schemas::event::Event;
    use tidings_schemas::profile::{Address, Profile};

    use super::*;

    #[test]
    fn it_begins_at_twenty_past_eleven_in_berlin() {
        assert_eq!(BEGINS_AT.to_string(), "2026-03-28T22:20:00Z");
        assert_eq!(Workload::new(1).next().map(|act| act.at), Some(BEGINS_AT));
    }

    #[test]
    fn a_seed_is_a_night() {
        let night = |seed| Workload::new(seed).collect::<Vec<_>>();
        assert_eq!(night(7), night(7));
        assert_ne!(night(7), night(8));
        assert!(night(7).is_sorted_by_key(|act| act.at));
    }

    #[test]
    fn all_but_one_record_is_what_it_should_be() {
        let mut broken = 0;
        for act in Workload::new(1) {
            match act.action {
                Action::Event { value, key, .. } => match Event::from_json(&value, false) {
                    Ok(event) => assert_eq!(event.user_id, key),
                    Err(_) => broken += 1,
                },
                Action::Profile { user, value } => {
                    let profile = Profile::from_json(Some(&value)).expect("a profile");
                    assert_eq!(profile.user_id.as_deref(), Some(user.as_str()));
                    assert!(
                        tidings_operators::calendar::Calendar::bundled().zone(&profile.time_zone.unwrap()).is_some()
                    );
                }
                Action::Address { key, value } => {
                    let address: Address = serde_json::from_slice(&value).expect("an address");
                    assert_eq!(key, format!("{}/{}", address.user_id, address.address_id));
                }
            }
        }
        assert_eq!(broken, 1);
    }
}
