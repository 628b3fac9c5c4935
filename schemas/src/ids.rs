//! Ids: 128 bits of BLAKE3 over length-prefixed fields, as text a prefix and 32 hex digits.
//!
//! An id names *what* something is made of, never who made it or when: no worker, generation or
//! clock goes in. So a replay, on any number of workers, arrives at the same ids, and a consumer
//! can tell a repeat from news.
//!
//! Placement is kept apart from identity: [`placement`] hashes the user alone, with a version tag,
//! and the top ten bits are the [`KeyGroup`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Number of key groups: the unit of state placement. Fixed for ever, because checkpoints of any
/// age are dealt out by it; 1024 leaves every worker of a large cluster several groups.
pub const KEY_GROUPS: u16 = 1024;

/// Bytes of fields that an [`IdHasher`] holds without an allocation: every id but those of many
/// members.
const INLINE_BYTES: usize = 192;

/// A field up to this length has a prefix of one byte. BLAKE3 works in blocks of 64 bytes: short prefixes
/// keep the ids of a usual event within one.
const SHORT_MAX: usize = 0xfe;

/// Stands before the eight bytes of a longer field's length.
const LONG: u8 = 0xff;

/// Hashes length-prefixed fields into 128 bits. Length prefixes make field borders unambiguous:
/// `("ab", "c")` and `("a", "bc")` differ.
///
/// Fields are collected and hashed in one go, which is several times cheaper than one by one.
#[derive(Clone)]
pub struct IdHasher {
    inline: [u8; INLINE_BYTES],
    length: usize,
    /// All fields, once they are too many.
    spilled: Vec<u8>,
}

impl IdHasher {
    /// Starts a hash whose first field is `domain`, so that ids of different kinds never meet.
    #[must_use]
    #[inline]
    pub fn new(domain: &str) -> Self {
        let mut hasher = Self { inline: [0; INLINE_BYTES], length: 0, spilled: Vec::new() };
        hasher.field(domain.as_bytes());
        hasher
    }

    /// Adds one field.
    #[inline]
    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        let between = self.length + 1;
        let end = between + bytes.len();
        match self.inline.get_mut(self.length..end) {
            Some([length, field @ ..]) if bytes.len() <= SHORT_MAX && self.spilled.is_empty() => {
                *length = bytes.len() as u8;
                field.copy_from_slice(bytes);
                self.length = end;
            }
            _ => self.spill(bytes),
        }
        self
    }

    #[cold]
    fn spill(&mut self, bytes: &[u8]) {
        if self.spilled.is_empty() {
            self.spilled.extend_from_slice(&self.inline[..self.length]);
        }
        if bytes.len() <= SHORT_MAX {
            self.spilled.push(bytes.len() as u8);
        } else {
            self.spilled.push(LONG);
            self.spilled.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        }
        self.spilled.extend_from_slice(bytes);
    }

    /// Adds one text field.
    #[inline]
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.field(text.as_bytes())
    }

    /// Adds one number, eight bytes little-endian.
    #[inline]
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.field(&number.to_le_bytes())
    }

    fn fields(&self) -> &[u8] {
        if self.spilled.is_empty() { &self.inline[..self.length] } else { &self.spilled[..] }
    }

    /// The first 128 bits of the hash.
    #[must_use]
    pub fn finish(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out.copy_from_slice(&blake3::hash(self.fields()).as_bytes()[..16]);
        out
    }
}

/// Four bytes as eight lower-case hex digits, all at once.
const fn hex_of_four(bytes: [u8; 4]) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut word = u32::from_be_bytes(bytes) as u64;
    // Apart: halves, bytes, and at last a digit in each byte.
    word = (word | word << 16) & 0x0000_ffff_0000_ffff;
    word = (word | word << 8) & 0x00ff_00ff_00ff_00ff;
    word = (word | word << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    // Six more than nine is sixteen, which shows in the next four bits.
    let letters = (word + 6 * ONES) >> 4 & ONES;
    (word + b'0' as u64 * ONES + (b'a' - b'0' - 10) as u64 * letters).to_be_bytes()
}

/// Sixteen bytes as lower-case hex digits.
pub(crate) const fn hex(bytes: &[u8; 16]) -> [u8; 32] {
    let (fours, _) = bytes.as_chunks::<4>();
    let mut digits = [0; 32];
    let (eights, _) = digits.as_chunks_mut::<8>();
    [eights[0], eights[1], eights[2], eights[3]] =
        [hex_of_four(fours[0]), hex_of_four(fours[1]), hex_of_four(fours[2]), hex_of_four(fours[3])];
    digits
}

/// Appends `bytes` as lower-case hex digits.
pub fn put_hex(to: &mut Vec<u8>, bytes: &[u8]) {
    let (fours, rest) = bytes.as_chunks::<4>();
    fours.iter().for_each(|four| to.extend_from_slice(&hex_of_four(*four)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    to.extend_from_slice(&hex_of_four(last)[..2 * rest.len()]);
}

/// Bytes of an id's text: a prefix of two, and 32 hex digits.
pub const ID_TEXT_BYTES: usize = 34;

/// An id as text.
#[derive(Clone, Copy)]
pub struct IdText([u8; ID_TEXT_BYTES]);

impl IdText {
    /// The text.
    #[must_use]
    pub const fn as_str(&self) -> &str {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text,
            Err(_) => "",
        }
    }

    /// The text's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

const fn id_text(prefix: &str, bytes: &[u8; 16]) -> [u8; ID_TEXT_BYTES] {
    let prefix = prefix.as_bytes();
    let mut text = [0; ID_TEXT_BYTES];
    let (before, digits) = text.split_at_mut(2);
    before.copy_from_slice(prefix);
    digits.copy_from_slice(&hex(bytes));
    text
}

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected `{prefix}` and 32 hex digits, found `{found}`")]
pub struct InvalidId {
    prefix: &'static str,
    found: String,
}

fn parse_hex(prefix: &'static str, text: &str) -> Result<[u8; 16], InvalidId> {
    let invalid = || InvalidId { prefix, found: text.to_owned() };
    let digits = text.strip_prefix(prefix).ok_or_else(invalid)?.as_bytes();
    if digits.len() != 32 {
        return Err(invalid());
    }
    let mut out = [0; 16];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = (pair[0] as char).to_digit(16).ok_or_else(invalid)?;
        let low = (pair[1] as char).to_digit(16).ok_or_else(invalid)?;
        *byte = u8::try_from(high * 16 + low).map_err(|_| invalid())?;
    }
    Ok(out)
}

/// Reads the sixteen bytes of an id: in one go, which sixteen numbers one after the other are not.
struct IdBytes;

impl de::Visitor<'_> for IdBytes {
    type Value = [u8; 16];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the sixteen bytes of an id")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<[u8; 16], E> {
        bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// What its text starts with.
            pub const PREFIX: &'static str = $prefix;

            /// The id of the fields put into `hasher`.
            #[must_use]
            pub fn of(hasher: &IdHasher) -> Self {
                Self(hasher.finish())
            }

            /// Its text, made without an allocation.
            #[must_use]
            pub const fn text(&self) -> IdText {
                IdText(id_text($prefix, &self.0))
            }

            /// The sixteen bytes as one number, big-endian: what its text shows.
            #[must_use]
            pub const fn as_u128(self) -> u128 {
                u128::from_be_bytes(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.text().as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse_hex($prefix, text).map(Self)
            }
        }

        // Text for people (JSON), sixteen bytes between workers and in state.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(self.text().as_str())
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                    text.parse().map_err(de::Error::custom)
                } else {
                    deserializer.deserialize_bytes(IdBytes).map(Self)
                }
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": concat!("^", $prefix, "[0-9a-f]{32}$") })
            }
        }
    };
}

id!(
    /// The hash of (tenant, operation, type, key): what makes two records the same wish.
    DedupKey, "k_"
);
id!(
    /// One user and one wish, whatever the operation: what a producer holds to cancel or explain.
    IntentId, "i_"
);
id!(
    /// One accepted record: (source, partition, offset). A producer's repeat has its own.
    EventId, "e_"
);
id!(
    /// What the system decided to say to one user; one id however many channels carry it.
    NotificationId, "n_"
);
id!(
    /// One notification on its way to one channel, before addresses.
    LegId, "l_"
);
id!(
    /// One notification on one channel to one address.
    DeliveryId, "d_"
);
id!(
    /// A window or overflow that gathers events, named by its opening event.
    GroupId, "g_"
);
id!(
    /// One line of the record, named by what it says.
    RowId, "r_"
);

impl DedupKey {
    /// The key of `value` under (tenant, op); `type_name` is given where the value comes from the
    /// type's own expression, so that two types that use `data.order_id` don't meet.
    #[must_use]
    pub fn new(tenant: &str, op: &str, type_name: Option<&str>, value: &str) -> Self {
        let mut hasher = IdHasher::new("dedup");
        hasher.text(tenant).text(op).text(type_name.unwrap_or("")).text(value);
        Self::of(&hasher)
    }
}

impl IntentId {
    /// The intent of (tenant, user) and the fields of the dedup key without the operation.
    #[must_use]
    pub fn new(tenant: &str, user: &str, type_name: Option<&str>, value: &str) -> Self {
        let mut hasher = IdHasher::new("intent");
        hasher.text(tenant).text(user).text(type_name.unwrap_or("")).text(value);
        Self::of(&hasher)
    }
}

impl EventId {
    /// The event at `offset` of `partition` of `source` (the source's id in the topology).
    #[must_use]
    pub fn new(source: &str, partition: u32, offset: u64) -> Self {
        let mut hasher = IdHasher::new("event");
        hasher.text(source).number(u64::from(partition)).number(offset);
        Self::of(&hasher)
    }
}

impl NotificationId {
    /// The notification that operator `operator` formed for (user, subkey) of `events`, in any
    /// order. Passing an item on keeps its id; any change of membership makes a new one.
    #[must_use]
    pub fn new(operator: &str, user: &str, subkey: &[u8], events: &mut [EventId]) -> Self {
        events.sort_unstable();
        let mut hasher = IdHasher::new("notification");
        hasher.text(operator).text(user).field(subkey).number(events.len() as u64);
        for event in events.iter() {
            hasher.field(&event.0);
        }
        Self::of(&hasher)
    }

    /// The notification of one event, as `validate` forms it.
    #[must_use]
    pub fn of_one(user: &str, event: EventId) -> Self {
        Self::new("validate", user, b"", &mut [event])
    }

    /// As [`NotificationId::new`] for a group that has folded members: `folded` is their running
    /// hash, so that the name still covers all of them.
    #[must_use]
    pub fn with_folded(operator: &str, user: &str, subkey: &[u8], events: &mut [EventId], folded: &[u8; 16]) -> Self {
        let whole = Self::new(operator, user, subkey, events);
        let mut hasher = IdHasher::new("notification-folded");
        hasher.field(&whole.0).field(folded);
        Self::of(&hasher)
    }

    /// On the critical path: the intent alone, so that a producer's repeat meets the same ledger
    /// entries.
    #[must_use]
    pub fn critical(intent: IntentId) -> Self {
        let mut hasher = IdHasher::new("notification");
        hasher.text("critical").field(&intent.0);
        Self::of(&hasher)
    }
}

impl LegId {
    /// The leg of `notification` towards `first` (its first candidate, or `silent`).
    #[must_use]
    pub fn new(notification: NotificationId, first: &str, replay: u32) -> Self {
        let mut hasher = IdHasher::new("leg");
        hasher.field(&notification.0).text(first).number(u64::from(replay));
        Self::of(&hasher)
    }
}

impl DeliveryId {
    /// The delivery of `notification` on `channel` to the address `address_id`.
    #[must_use]
    pub fn new(notification: NotificationId, channel: &str, address_id: &str, replay: u32) -> Self {
        let mut hasher = IdHasher::new("delivery");
        hasher.field(&notification.0).text(channel).text(address_id).number(u64::from(replay));
        Self::of(&hasher)
    }
}

impl GroupId {
    /// The group that `operator` opened for (user, subkey) with the event `opening`.
    #[must_use]
    pub fn new(operator: &str, user: &str, subkey: &[u8], opening: EventId) -> Self {
        let mut hasher = IdHasher::new("group");
        hasher.text(operator).text(user).field(subkey).field(&opening.0);
        Self::of(&hasher)
    }
}

/// One of [`KEY_GROUPS`] hash ranges of the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct KeyGroup(pub u16);

impl KeyGroup {
    /// The worker of `peers` that owns this group.
    #[must_use]
    pub fn worker(self, peers: usize) -> usize {
        usize::from(self.0) * peers / usize::from(KEY_GROUPS)
    }
}

/// Where a user's state lives: `xxh3_64` of a version tag and the user id. Durable (checkpoints
/// and lane partitions depend on it), so it is never taken from a library's default hasher.
#[must_use]
pub fn placement(user: &str) -> u64 {
    const TAG: &[u8] = b"tidings-placement-1\0";
    let mut tagged = [0; 128];
    let end = TAG.len() + user.len();
    match tagged.get_mut(..end) {
        // In one go: nearly all ids are short.
        Some(tagged) => {
            tagged[..TAG.len()].copy_from_slice(TAG);
            tagged[TAG.len()..].copy_from_slice(user.as_bytes());
            xxhash_rust::xxh3::xxh3_64(tagged)
        }
        None => xxhash_rust::xxh3::xxh3_64(&[TAG, user.as_bytes()].concat()),
    }
}

/// The key group of a placement: its top ten bits.
#[must_use]
pub const fn key_group(placement: u64) -> KeyGroup {
    KeyGroup((placement >> 54) as u16)
}

/// The partition of a topic that we place ourselves (lanes, returned, receipts).
#[must_use]
pub fn lane_partition(user: &str, partitions: u32) -> u32 {
    u32::try_from(placement(user) % u64::from(partitions)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Golden: ids live in ledgers, checkpoints and tables for ever. A change here is a migration.
    #[test]
    fn ids_have_golden_values() {
        let event = EventId::new("high", 3, 42);
        let intent = IntentId::new("", "u1", None, "like-77");
        let notification = NotificationId::of_one("u1", event);
        let lines = [
            event.to_string(),
            intent.to_string(),
            DedupKey::new("", "notify", Some("order_shipped"), "4412").to_string(),
            notification.to_string(),
            NotificationId::new("aggregate", "u1", b"like", &mut [event]).to_string(),
            NotificationId::critical(intent).to_string(),
            LegId::new(notification, "push", 0).to_string(),
            DeliveryId::new(notification, "push", "phone", 0).to_string(),
            GroupId::new("aggregate", "u1", b"like", event).to_string(),
            format!("{:016x}", placement("u1")),
        ];
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn what_does_not_fit_in_place_is_hashed_the_same() {
        for length in [0, 1, 50, 90, 91, 127, 128, 180, 181, 182, 254, 255, 256, 400, 5_000] {
            let long = "x".repeat(length);
            let mut hasher = IdHasher::new("");
            hasher.text(&long).number(7).text(&long);
            let mut oracle = blake3::Hasher::new();
            for field in [&b""[..], long.as_bytes(), &7_u64.to_le_bytes(), long.as_bytes()] {
                match field.len() {
                    0..=0xfe => oracle.update(&[field.len() as u8]),
                    _ => oracle.update(&[0xff]).update(&(field.len() as u64).to_le_bytes()),
                };
                oracle.update(field);
            }
            assert_eq!(hasher.finish(), oracle.finalize().as_bytes()[..16], "{length}");
            let mut oracle = xxhash_rust::xxh3::Xxh3::new();
            oracle.update(b"tidings-placement-1\0");
            oracle.update(long.as_bytes());
            assert_eq!(placement(&long), oracle.digest(), "{length}");
        }
    }

    #[test]
    fn a_notification_is_named_by_its_members_in_any_order() {
        let (a, b) = (EventId::new("s", 0, 1), EventId::new("s", 0, 2));
        let one = NotificationId::new("aggregate", "u", b"k", &mut [a, b]);
        assert_eq!(one, NotificationId::new("aggregate", "u", b"k", &mut [b, a]));
        assert_ne!(one, NotificationId::new("aggregate", "u", b"k", &mut [a]));
    }

    #[test]
    fn text_round_trips_and_wrong_text_is_named() {
        let event = EventId::new("high", 0, 7);
        assert_eq!(event.to_string().parse::<EventId>(), Ok(event));
        let error = "n_12".parse::<EventId>().unwrap_err().to_string();
        assert_eq!(error, "expected `e_` and 32 hex digits, found `n_12`");
    }

    #[test]
    fn every_key_group_has_a_worker_and_ranges_are_contiguous() {
        for peers in [1, 2, 3, 4, 7] {
            let workers: Vec<_> = (0..KEY_GROUPS).map(|g| KeyGroup(g).worker(peers)).collect();
            assert!(workers.is_sorted());
            assert_eq!((workers[0], *workers.last().unwrap_or(&0)), (0, peers - 1));
        }
    }
}
