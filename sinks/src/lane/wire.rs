//! How legs, marks and what follows from them stand in the log: JSON bodies, words in headers.
//!
//! Header numbers are decimal text, legible with kcat. A mark is a frame (version, JSON, crc32c).

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidings_schemas::codec;
use tidings_schemas::ids::{DeliveryId, lane_partition};
use tidings_schemas::lane::{
    HEADER_DUE, HEADER_EPOCH, HEADER_GENERATION, HEADER_MARK, HEADER_ORDINAL, LaneRecord, Mark, Returned,
};
use tidings_schemas::profile::Address;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use crate::ledger::Incarnation;
use crate::log::{Append, Headers, Record, TopicPartition};

/// Header of a retry record: the attempts that were made.
pub const HEADER_ATTEMPT: &str = "attempt";
/// Header of a retry record: the leg's other deliveries, a JSON list. The fallback hangs on all of them.
pub const HEADER_SIBLINGS: &str = "siblings";
/// Header of a retry record: the ledger's word under which the last attempt was claimed.
pub const HEADER_LEDGER: &str = "ledger";
/// Headers of a dead letter, for filters that don't parse bodies.
pub const HEADER_REASON: &str = "reason";
/// The provider of a dead letter.
pub const HEADER_PROVIDER: &str = "provider";

const MARK_VERSION: u8 = 1;

/// What a record of a lane or retry topic is.
#[derive(Clone, Debug, PartialEq)]
pub enum Read {
    /// A mark.
    Mark(Mark),
    /// A leg.
    Leg {
        /// The leg.
        record: Box<LaneRecord>,
        /// The epoch that decided it; none on the critical path.
        epoch: Option<u64>,
        /// What is said beside it in a retry topic.
        retry: Option<Retry>,
    },
}

/// What a retry record says beside its leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// When the next attempt is due.
    pub due: Instant,
    /// Which attempt that is.
    pub attempt: u32,
    /// Deliveries of the same leg to its other addresses.
    pub siblings: Vec<DeliveryId>,
    /// The ledger's word under which the last attempt was claimed. None: a critical call went out without it,
    /// and was said to be `unknown`.
    pub under: Option<Incarnation>,
}

/// A delivery that was given up, as it stands in the dead-letter queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Which delivery; absent where the record could not be read.
    pub delivery: Option<DeliveryId>,
    /// The leg, limited to the address that failed; absent where it could not be read.
    pub leg: Option<LaneRecord>,
    /// The record's bytes where it could not be read, lossy.
    pub raw: Option<String>,
    /// Where the record stood.
    pub from: String,
    /// Who was asked last.
    pub provider: String,
    /// The provider's own code.
    pub code: String,
    /// Why it was given up.
    pub reason: Reason,
    /// In words.
    pub detail: String,
    /// Attempts that were made.
    pub attempts: u32,
    /// Whether one of them may have been carried out: a replay needs `--resend-unknown`.
    pub unknown: bool,
    /// When.
    pub at: Instant,
}

fn body<T: Serialize>(value: &T) -> Option<Bytes> {
    // Plain structs with string keys: serde_json has no way to fail on them.
    serde_json::to_vec(value).ok().map(Bytes::from)
}

fn number(name: &str, value: u64) -> (String, Bytes) {
    (name.to_owned(), value.to_string().into())
}

/// The place of `user` in `topic`, which has `partitions`.
#[must_use]
pub fn place(topic: &str, user: &str, partitions: u32) -> TopicPartition {
    TopicPartition { topic: topic.into(), partition: lane_partition(user, partitions.max(1)) }
}

/// A lane record: `epoch` is (generation, epoch, ordinal), absent on the critical path.
#[must_use]
pub fn leg(to: TopicPartition, record: &LaneRecord, epoch: Option<(u64, u64, &[u8])>) -> Append {
    let mut headers = Headers::new();
    if let Some((g, e, ordinal)) = epoch {
        headers.push(number(HEADER_GENERATION, g));
        headers.push(number(HEADER_EPOCH, e));
        headers.push((HEADER_ORDINAL.to_owned(), Bytes::copy_from_slice(ordinal)));
    }
    Append { to, key: Some(record.user.clone().into()), value: body(record), headers }
}

/// A mark.
#[must_use]
pub fn mark(to: TopicPartition, mark: Mark) -> Append {
    let json = body(&mark).unwrap_or_default();
    let headers = vec![(HEADER_MARK.to_owned(), Bytes::new())];
    Append { to, key: None, value: Some(codec::frame(MARK_VERSION, &json).into()), headers }
}

/// A leg that waits in a retry topic.
pub(crate) fn retry(to: TopicPartition, record: &LaneRecord, retry: &Retry) -> Append {
    let mut headers = vec![
        (HEADER_DUE.to_owned(), retry.due.to_string().into()),
        number(HEADER_ATTEMPT, u64::from(retry.attempt)),
        (HEADER_SIBLINGS.to_owned(), body(&retry.siblings).unwrap_or_default()),
    ];
    headers.extend(retry.under.as_ref().map(|word| (HEADER_LEDGER.to_owned(), word.0.to_string().into())));
    Append { to, key: Some(record.user.clone().into()), value: body(record), headers }
}

/// A leg that goes back to decide.
pub(crate) fn returned(to: TopicPartition, returned: &Returned) -> Append {
    Append { to, key: Some(returned.leg.user.clone().into()), value: body(returned), headers: Headers::new() }
}

/// A dead letter; its key is the user.
pub(crate) fn dead_letter(to: TopicPartition, user: &str, letter: &DeadLetter) -> Append {
    let headers = vec![
        (HEADER_REASON.to_owned(), letter.reason.as_str().into()),
        (HEADER_PROVIDER.to_owned(), letter.provider.clone().into()),
    ];
    Append { to, key: Some(user.to_owned().into()), value: body(letter), headers }
}

/// An address, under its key `user/address`.
#[must_use]
pub fn address(to: TopicPartition, address: &Address) -> Append {
    let key = format!("{}/{}", address.user_id, address.address_id);
    Append { to, key: Some(key.into()), value: body(address), headers: Headers::new() }
}

/// What `record` says.
///
/// # Errors
/// In words, what it should be and is not.
pub fn read(record: &Record) -> Result<Read, String> {
    let value = record.value.as_deref().unwrap_or_default();
    if record.header(HEADER_MARK).is_some() {
        let json = codec::unframe(MARK_VERSION, value).map_err(|error| format!("a mark: {error}"))?;
        return serde_json::from_slice(json).map(Read::Mark).map_err(|error| format!("a mark: {error}"));
    }
    let leg: LaneRecord = serde_json::from_slice(value).map_err(|error| format!("a lane record: {error}"))?;
    let due = record.header(HEADER_DUE).is_some();
    let retry = due.then(|| read_retry(record)).transpose()?;
    Ok(Read::Leg { record: Box::new(leg), epoch: parsed(record, HEADER_EPOCH)?, retry })
}

fn read_retry(record: &Record) -> Result<Retry, String> {
    let missing = |name: &str| format!("a retry record: header `{name}` is missing");
    let siblings = record.header(HEADER_SIBLINGS).ok_or_else(|| missing(HEADER_SIBLINGS))?;
    Ok(Retry {
        due: parsed(record, HEADER_DUE)?.ok_or_else(|| missing(HEADER_DUE))?,
        attempt: parsed(record, HEADER_ATTEMPT)?.ok_or_else(|| missing(HEADER_ATTEMPT))?,
        siblings: serde_json::from_slice(siblings).map_err(|error| format!("header `{HEADER_SIBLINGS}`: {error}"))?,
        under: parsed::<String>(record, HEADER_LEDGER)?.map(|word| Incarnation(word.into())),
    })
}

fn parsed<T: std::str::FromStr>(record: &Record, name: &str) -> Result<Option<T>, String> {
    let Some(bytes) = record.header(name) else { return Ok(None) };
    let text = String::from_utf8_lossy(bytes);
    text.parse().map(Some).map_err(|_| format!("header `{name}`: `{text}` is not what it should be"))
}

#[cfg(test)]
mod tests {
    use tidings_schemas::channel::{Channel, Priority};

    use super::*;
    use crate::lane::samples;

    fn read_back(append: Append) -> Result<Read, String> {
        let Append { key, value, headers, .. } = append;
        read(&Record { offset: 0, key, value, headers, timestamp: Instant(0) })
    }

    fn to() -> TopicPartition {
        place("notifications.push.medium", "u1", 8)
    }

    #[test]
    fn a_mark_has_golden_bytes() {
        let append = mark(to(), Mark { g: 7, said_through: 41 });
        assert_eq!(append.value.as_deref(), Some(&b"\x01{\"g\":7,\"said_through\":41}\xdc\xc2\x1f\x60"[..]));
        assert_eq!(read_back(append), Ok(Read::Mark(Mark { g: 7, said_through: 41 })));
    }

    #[test]
    fn legs_and_retries_are_read_as_written() {
        let record = Box::new(samples::leg(Channel::Push, Priority::Medium));
        let written = leg(to(), &record, Some((7, 42, b"o")));
        assert_eq!(written.headers[1], ("e".to_owned(), Bytes::from_static(b"42")));
        assert_eq!(read_back(written), Ok(Read::Leg { record: record.clone(), epoch: Some(42), retry: None }));
        assert_eq!(
            read_back(leg(to(), &record, None)),
            Ok(Read::Leg { record: record.clone(), epoch: None, retry: None })
        );
        for under in [None, Some(Incarnation("a".into()))] {
            let again = Retry { due: Instant(5000), attempt: 2, siblings: vec![DeliveryId([1; 16])], under };
            let found = read_back(retry(to(), &record, &again));
            assert_eq!(found, Ok(Read::Leg { record: record.clone(), epoch: None, retry: Some(again) }));
        }
    }

    #[test]
    fn a_retry_has_golden_headers() {
        let siblings = vec![DeliveryId([1; 16])];
        let again = Retry { due: Instant(5000), attempt: 2, siblings, under: Some(Incarnation("a".into())) };
        let headers = retry(to(), &samples::leg(Channel::Push, Priority::Medium), &again).headers;
        let golden = [
            ("due", "1970-01-01T00:00:05Z"),
            ("attempt", "2"),
            ("siblings", r#"["d_01010101010101010101010101010101"]"#),
            ("ledger", "a"),
        ];
        assert_eq!(headers, golden.map(|(name, value)| (name.to_owned(), Bytes::from(value))));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let wrong = Append { to: to(), key: None, value: Some("{}".into()), headers: Headers::new() };
        let error = read_back(wrong).unwrap_err();
        assert!(error.starts_with("a lane record: missing field"), "{error}");
    }
}
