//! A lifecycle block: all rows that one stage wrote for one partition in one epoch, as one log record.
//!
//! A row is encoded once, at its source, in ClickHouse's RowBinary with the columns in the table's
//! order; the record writer checks the block's checksum and forwards the bytes. A block lives in the
//! log for days and may meet a younger or older table, so:
//!
//! - words (states, reasons, channels, …) travel as words, into `LowCardinality(String)`, not as
//!   numbers of an `Enum8`: a word that a younger build adds must not stop the record, and no number
//!   needs to stay stable for ever. Inside the table a word is one byte either way, and on the wire
//!   compression takes what is left.
//! - ids travel as their sixteen bytes, into `FixedString(16)`, so that `lower(hex(id))` is the id's
//!   text without its prefix, and bytes sort in the table as they do here.
//!
//! ```text
//! frame (codec): version u8 │ kind u8 │ stage u8 │ epoch u64 │ rows u64 │ rows in RowBinary │ crc32c u32
//! ```
//!
//! Numbers are little-endian. A block of kind *closed* carries no rows: it says that an epoch is
//! complete and how many rows all its blocks hold.

use crate::channel::{Channel, Priority};
use crate::codec::{self, FrameError};
use crate::ids::{DeliveryId, EventId, GroupId, IntentId, LegId, NotificationId, RowId};
use crate::lifecycle::{Row, RowOf, Stage, State, Unit};
use crate::reason::Reason;
use crate::time::Instant;
use std::str::FromStr;

/// The version of header, columns and their order. A new column is a new version and a migration.
pub const VERSION: u8 = 1;

/// The table's columns as a block has them: name and ClickHouse type.
pub const COLUMNS: &[(&str, &str)] = &[
    ("row_id", "FixedString(16)"),
    ("day", "Date"),
    ("at", "DateTime64(3, 'UTC')"),
    ("epoch", "UInt64"),
    ("stage", "LowCardinality(String)"),
    ("states", "Array(LowCardinality(String))"),
    ("unit", "LowCardinality(String)"),
    ("event", "FixedString(16)"),
    ("intent", "FixedString(16)"),
    ("notification", "FixedString(16)"),
    ("group", "FixedString(16)"),
    ("leg", "FixedString(16)"),
    ("silent", "Bool"),
    ("delivery", "FixedString(16)"),
    ("user", "String"),
    ("tenant", "LowCardinality(String)"),
    ("type", "LowCardinality(String)"),
    ("category", "LowCardinality(String)"),
    ("priority", "LowCardinality(String)"),
    ("channel", "LowCardinality(String)"),
    ("provider", "LowCardinality(String)"),
    ("code", "LowCardinality(String)"),
    ("message_id", "String"),
    ("operator", "LowCardinality(String)"),
    ("reason", "LowCardinality(String)"),
    ("attempt", "UInt32"),
    ("until", "Nullable(DateTime64(3, 'UTC'))"),
    ("cost_microdollars", "UInt64"),
    ("created_at", "DateTime64(3, 'UTC')"),
    ("ready_at", "Nullable(DateTime64(3, 'UTC'))"),
    ("caused_by", "String"),
];

/// Kind, stage, epoch, rows.
const HEADER_BYTES: usize = 1 + 1 + 8 + 8;

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rows.
    Rows,
    /// The word that an epoch's rows are all said.
    Closed,
}

/// What a block says before its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Rows, or the end of an epoch.
    pub kind: Kind,
    /// Who wrote it.
    pub stage: Stage,
    /// The epoch; zero outside decide.
    pub epoch: u64,
    /// How many rows follow; of a closed epoch, how many rows all its blocks hold together.
    pub rows: u64,
}

/// A block whose checksum was found right. Its rows are still bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// What it says of itself.
    pub header: Header,
    /// The rows in RowBinary.
    pub rows: &'a [u8],
    /// The checksum of the whole: with stage and epoch it tells blocks apart.
    pub checksum: u32,
}

/// Why bytes are not a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The frame around it.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Shorter than a header.
    #[error("a block's header has {HEADER_BYTES} bytes, found {0}")]
    Header(usize),
    /// A kind or stage that this build does not know.
    #[error("unknown {what} {found} in a block's header: it was written by a younger build")]
    Unknown {
        /// Kind or stage.
        what: &'static str,
        /// The number.
        found: u8,
    },
    /// A row that can't be read.
    #[error("row {row}, column `{column}`: {problem}")]
    Row {
        /// Which row, from 0.
        row: u64,
        /// Which column.
        column: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Bytes after the last row.
    #[error("{bytes} bytes follow the last of {rows} rows")]
    Trailing {
        /// How many bytes.
        bytes: usize,
        /// How many rows the header names.
        rows: u64,
    },
}

impl<'a> Block<'a> {
    /// A block of `rows`.
    #[must_use]
    pub fn encode(stage: Stage, epoch: u64, rows: &[Row]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(rows.len() * ROW_BYTES);
        rows.iter().for_each(|row| put(&mut bytes, row));
        Self::of_encoded(stage, epoch, rows.len() as u64, bytes.len(), std::iter::once(&bytes[..]))
    }

    /// A block of `count` rows that are encoded already and take `bytes` bytes together.
    #[must_use]
    pub fn of_encoded<'b>(
        stage: Stage,
        epoch: u64,
        count: u64,
        bytes: usize,
        rows: impl Iterator<Item = &'b [u8]>,
    ) -> Vec<u8> {
        codec::frame_with(VERSION, HEADER_BYTES + bytes, |body| {
            put_header(body, Header { kind: Kind::Rows, stage, epoch, rows: count });
            rows.for_each(|row| body.extend_from_slice(row));
        })
    }

    /// The word that decide's `epoch` is complete: its blocks hold `rows` rows together. Appended once
    /// all of them are acknowledged.
    #[must_use]
    pub fn closed(epoch: u64, rows: u64) -> Vec<u8> {
        let mut body = Vec::with_capacity(HEADER_BYTES);
        put_header(&mut body, Header { kind: Kind::Closed, stage: Stage::Decide, epoch, rows });
        codec::frame(VERSION, &body)
    }

    /// The header and the rows' bytes, once the checksum was found right. Reads no row.
    ///
    /// # Errors
    /// When the bytes are damaged, or a younger build's.
    pub fn decode_header(bytes: &'a [u8]) -> Result<Self, BlockError> {
        let body = codec::unframe(VERSION, bytes)?;
        let (header, rows) = body.split_at_checked(HEADER_BYTES).ok_or(BlockError::Header(body.len()))?;
        let kind = match header[0] {
            0 => Kind::Rows,
            1 => Kind::Closed,
            found => return Err(BlockError::Unknown { what: "kind", found }),
        };
        let stage = match header[1] {
            0 => Stage::Decide,
            1 => Stage::Critical,
            2 => Stage::Deliver,
            found => return Err(BlockError::Unknown { what: "stage", found }),
        };
        let number = |at: usize| header[at..].first_chunk().copied().map_or(0, u64::from_le_bytes);
        let checksum = bytes.last_chunk().copied().map_or(0, u32::from_le_bytes);
        Ok(Self { header: Header { kind, stage, epoch: number(2), rows: number(10) }, rows, checksum })
    }

    /// All rows, read in full.
    ///
    /// # Errors
    /// When a row can't be read, or bytes are left over.
    pub fn decode_rows(&self) -> Result<Vec<Row>, BlockError> {
        let count = if self.header.kind == Kind::Rows { self.header.rows } else { 0 };
        let mut from = Cursor { rest: self.rows, row: 0, column: "" };
        let mut rows = Vec::new();
        for row in 0..count {
            from.row = row;
            rows.push(take_row(&mut from)?);
        }
        if !from.rest.is_empty() {
            return Err(BlockError::Trailing { bytes: from.rest.len(), rows: count });
        }
        Ok(rows)
    }
}

/// Rows that stand one after the other to the end: what a query for [`COLUMNS`] answers in RowBinary.
///
/// # Errors
/// When a row can't be read.
pub fn decode_table(bytes: &[u8]) -> Result<Vec<Row>, BlockError> {
    let mut from = Cursor { rest: bytes, row: 0, column: "" };
    let mut rows = Vec::new();
    while !from.rest.is_empty() {
        rows.push(take_row(&mut from)?);
        from.row += 1;
    }
    Ok(rows)
}

/// Reads one row and nothing else.
pub(crate) fn decode_row(bytes: &[u8]) -> Result<Row, BlockError> {
    let mut from = Cursor { rest: bytes, row: 0, column: "" };
    let row = take_row(&mut from)?;
    match from.rest.len() {
        0 => Ok(row),
        bytes => Err(BlockError::Trailing { bytes, rows: 1 }),
    }
}

fn put_header(to: &mut Vec<u8>, header: Header) {
    to.push(match header.kind {
        Kind::Rows => 0,
        Kind::Closed => 1,
    });
    to.push(match header.stage {
        Stage::Decide => 0,
        Stage::Critical => 1,
        Stage::Deliver => 2,
    });
    to.extend_from_slice(&header.epoch.to_le_bytes());
    to.extend_from_slice(&header.rows.to_le_bytes());
}

/// What a row of common length takes: room is made for so many at a time.
const ROW_BYTES: usize = 512;

/// A word of a vocabulary as a column: its length and its letters, in an array of one size, because
/// copying a known size is several times cheaper than copying a short text.
#[derive(Clone, Copy)]
pub(crate) struct Word {
    bytes: [u8; Word::BYTES],
    length: usize,
}

impl Word {
    /// The length's byte, and the longest word of all vocabularies with some room.
    const BYTES: usize = 24;

    /// The column that holds nothing.
    const NONE: Self = Self::of("");

    /// The column of `word`. A longer one does not compile, because vocabularies are constants.
    pub(crate) const fn of(word: &str) -> Self {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = word.len() as u8;
        let mut place = 0;
        while place < word.len() {
            bytes[place + 1] = word.as_bytes()[place];
            place += 1;
        }
        Self { bytes, length: word.len() + 1 }
    }

    #[inline]
    fn put(&self, to: &mut Vec<u8>) {
        let end = to.len() + self.length;
        to.extend_from_slice(&self.bytes);
        to.truncate(end);
    }
}

macro_rules! columns {
    ($($name:ident),*) => {$(
        impl $name {
            const fn column(self) -> &'static Word {
                const WORDS: [Word; $name::ALL.len()] = {
                    let mut words = [Word::NONE; $name::ALL.len()];
                    let mut place = 0;
                    while place < words.len() {
                        words[$name::ALL[place] as usize] = Word::of($name::ALL[place].as_str());
                        place += 1;
                    }
                    words
                };
                &WORDS[self as usize]
            }
        }
    )*};
}
columns!(Stage, State, Unit, Priority, Channel, Reason);

/// Appends a row.
pub(crate) fn put<T: AsRef<str>, S: AsRef<[State]>>(to: &mut Vec<u8>, row: &RowOf<T, S>) {
    to.reserve(ROW_BYTES);
    // ClickHouse's Date holds 1970 to 2149; the nearest day it can hold stands for any other.
    let day = u16::try_from(row.day).unwrap_or(if row.day < 0 { 0 } else { u16::MAX });
    let mut first = [0; 16 + 2 + 8 + 8];
    first[..16].copy_from_slice(&row.row_id.0);
    first[16..18].copy_from_slice(&day.to_le_bytes());
    first[18..26].copy_from_slice(&row.at.0.to_le_bytes());
    first[26..].copy_from_slice(&row.epoch.to_le_bytes());
    to.extend_from_slice(&first);
    row.stage.column().put(to);
    let states = row.states.as_ref();
    put_length(to, states.len());
    states.iter().for_each(|state| state.column().put(to));
    row.unit.column().put(to);
    let mut ids = [0; 5 * 16 + 1 + 16];
    ids[..16].copy_from_slice(&row.event.0);
    ids[16..32].copy_from_slice(&row.intent.0);
    ids[32..48].copy_from_slice(&row.notification.0);
    ids[48..64].copy_from_slice(&row.group.0);
    ids[64..80].copy_from_slice(&row.leg.0);
    ids[80] = u8::from(row.silent);
    ids[81..].copy_from_slice(&row.delivery.0);
    to.extend_from_slice(&ids);
    put_text(to, row.user.as_ref());
    put_text(to, row.tenant.as_ref());
    put_text(to, row.event_type.as_ref());
    put_text(to, row.category.as_ref());
    row.priority.map_or(&Word::NONE, Priority::column).put(to);
    row.channel.map_or(&Word::NONE, Channel::column).put(to);
    put_text(to, row.provider.as_ref());
    put_text(to, row.code.as_ref());
    put_text(to, row.message_id.as_ref());
    put_text(to, row.operator.as_ref());
    row.reason.map_or(&Word::NONE, Reason::column).put(to);
    to.extend_from_slice(&row.attempt.to_le_bytes());
    put_optional(to, row.until);
    let mut numbers = [0; 8 + 8];
    numbers[..8].copy_from_slice(&row.cost_microdollars.to_le_bytes());
    numbers[8..].copy_from_slice(&row.created_at.0.to_le_bytes());
    to.extend_from_slice(&numbers);
    put_optional(to, row.ready_at);
    put_text(to, row.caused_by.as_ref());
}

// A length is LEB128: seven bits a byte, the lowest first, the top bit on all but the last.
#[inline]
fn put_length(to: &mut Vec<u8>, length: usize) {
    let mut rest = length;
    while rest >= 0x80 {
        to.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    to.push(rest as u8);
}

#[inline]
fn put_text(to: &mut Vec<u8>, text: &str) {
    put_length(to, text.len());
    if !text.is_empty() {
        to.extend_from_slice(text.as_bytes());
    }
}

fn put_optional(to: &mut Vec<u8>, instant: Option<Instant>) {
    match instant {
        None => to.push(1),
        Some(instant) => {
            to.push(0);
            to.extend_from_slice(&instant.0.to_le_bytes());
        }
    }
}

fn take_row(from: &mut Cursor<'_>) -> Result<Row, BlockError> {
    Ok(Row {
        row_id: RowId(from.array("row_id")?),
        day: i64::from(u16::from_le_bytes(from.array("day")?)),
        at: from.instant("at")?,
        epoch: u64::from_le_bytes(from.array("epoch")?),
        stage: from.word("stage")?,
        states: {
            let count = from.length("states")?;
            (0..count).map(|_| from.word::<State>("states")).collect::<Result<_, _>>()?
        },
        unit: from.word::<Unit>("unit")?,
        event: EventId(from.array("event")?),
        intent: IntentId(from.array("intent")?),
        notification: NotificationId(from.array("notification")?),
        group: GroupId(from.array("group")?),
        leg: LegId(from.array("leg")?),
        silent: from.array::<1>("silent")?[0] != 0,
        delivery: DeliveryId(from.array("delivery")?),
        user: from.text("user")?.to_owned(),
        tenant: from.text("tenant")?.to_owned(),
        event_type: from.text("type")?.to_owned(),
        category: from.text("category")?.to_owned(),
        priority: from.optional_word("priority")?,
        channel: from.optional_word("channel")?,
        provider: from.text("provider")?.to_owned(),
        code: from.text("code")?.to_owned(),
        message_id: from.text("message_id")?.to_owned(),
        operator: from.text("operator")?.to_owned(),
        reason: from.optional_word("reason")?,
        attempt: u32::from_le_bytes(from.array("attempt")?),
        until: from.optional_instant("until")?,
        cost_microdollars: u64::from_le_bytes(from.array("cost_microdollars")?),
        created_at: from.instant("created_at")?,
        ready_at: from.optional_instant("ready_at")?,
        caused_by: from.text("caused_by")?.to_owned(),
    })
}

struct Cursor<'a> {
    rest: &'a [u8],
    row: u64,
    column: &'static str,
}

impl<'a> Cursor<'a> {
    fn problem(&self, problem: impl Into<String>) -> BlockError {
        BlockError::Row { row: self.row, column: self.column, problem: problem.into() }
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], BlockError> {
        let Some((head, tail)) = self.rest.split_at_checked(count) else {
            return Err(self.problem(format!("expected {count} bytes, found {}", self.rest.len())));
        };
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, column: &'static str) -> Result<[u8; N], BlockError> {
        self.column = column;
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    fn length(&mut self, column: &'static str) -> Result<usize, BlockError> {
        self.column = column;
        let mut length = 0_usize;
        for shift in (0..).step_by(7).take(5) {
            let byte = self.bytes(1)?[0];
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(length);
            }
        }
        Err(self.problem("a length of more than 5 bytes"))
    }

    fn text(&mut self, column: &'static str) -> Result<&'a str, BlockError> {
        let length = self.length(column)?;
        let bytes = self.bytes(length)?;
        std::str::from_utf8(bytes).map_err(|_| self.problem("the text is not UTF-8"))
    }

    fn word<T: FromStr<Err: std::fmt::Display>>(&mut self, column: &'static str) -> Result<T, BlockError> {
        self.text(column)?.parse().map_err(|error: T::Err| self.problem(error.to_string()))
    }

    fn optional_word<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        column: &'static str,
    ) -> Result<Option<T>, BlockError> {
        match self.text(column)? {
            "" => Ok(None),
            word => word.parse().map(Some).map_err(|error: T::Err| self.problem(error.to_string())),
        }
    }

    fn instant(&mut self, column: &'static str) -> Result<Instant, BlockError> {
        self.array(column).map(|bytes| Instant(i64::from_le_bytes(bytes)))
    }

    fn optional_instant(&mut self, column: &'static str) -> Result<Option<Instant>, BlockError> {
        match self.array::<1>(column)?[0] {
            0 => self.instant(column).map(Some),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Row {
        let event = EventId::new("high", 3, 42);
        let notification = NotificationId::new("validate", "u1", b"", &mut [event]);
        Row {
            at: Instant(1_774_735_800_123),
            epoch: 7,
            states: vec![State::Created, State::Queued],
            unit: Unit::Leg,
            event,
            intent: IntentId::new("", "u1", None, "like-77"),
            notification,
            leg: LegId::new(notification, "push", 0),
            silent: true,
            user: "u1".to_owned(),
            event_type: "like".to_owned(),
            category: "social".to_owned(),
            priority: Some(Priority::Medium),
            channel: Some(Channel::Push),
            operator: "route".to_owned(),
            reason: Some(Reason::QuietHours),
            attempt: 2,
            until: Some(Instant(1_774_760_400_000)),
            cost_microdollars: 7_900,
            created_at: Instant(1_774_735_800_000),
            caused_by: "event".to_owned(),
            ..Row::default()
        }
        .sealed()
    }

    // Golden: blocks lie in the log for days. A change here is a new version and a migration.
    #[test]
    fn a_block_has_golden_bytes() {
        insta::assert_snapshot!(hex(&Block::encode(Stage::Decide, 7, &[sample()])));
        assert_eq!(hex(&Block::closed(7, 300)), "01010007000000000000002c010000000000006f2218d0");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn damage_is_named_before_any_row_is_read() {
        let whole = Block::encode(Stage::Deliver, 0, &[sample()]);
        let mut torn = whole.clone();
        torn[60] ^= 1;
        assert!(matches!(Block::decode_header(&torn), Err(BlockError::Frame(FrameError::Checksum { .. }))));
        let cut = Block::decode_header(&whole).map(|block| Block { rows: &block.rows[..90], ..block }).unwrap();
        let error = cut.decode_rows().unwrap_err().to_string();
        assert_eq!(error, "row 0, column `intent`: expected 16 bytes, found 13");
        let alien = codec::frame(VERSION, &[9; HEADER_BYTES]);
        let error = Block::decode_header(&alien).unwrap_err().to_string();
        assert_eq!(error, "unknown kind 9 in a block's header: it was written by a younger build");
    }

    #[test]
    fn a_row_reads_the_same_as_json() {
        let json = serde_json::to_string(&sample()).unwrap();
        assert!(json.contains(r#""day":"2026-03-28""#) && json.contains(r#""type":"like""#), "{json}");
        assert_eq!(serde_json::from_str::<Row>(&json).unwrap(), sample());
    }

    proptest! {
        #[test]
        fn any_rows_survive_a_block(
            users in prop::collection::vec(".{0,200}", 0..5),
            (epoch, attempt, day) in (any::<u64>(), any::<u32>(), 0_i64..60_000),
        ) {
            let rows: Vec<Row> = users.into_iter().map(|user| Row {
                user, epoch, attempt, created_at: Instant(day * 86_400_000), ready_at: Some(Instant(day)), ..sample()
            }.sealed()).collect();
            let bytes = Block::encode(Stage::Decide, epoch, &rows);
            let block = Block::decode_header(&bytes).unwrap();
            prop_assert_eq!(block.header, Header { kind: Kind::Rows, stage: Stage::Decide, epoch, rows: rows.len() as u64 });
            prop_assert_eq!(block.decode_rows().unwrap(), rows);
        }
    }
}
