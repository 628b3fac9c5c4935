//! The record in ClickHouse, read back for one person: what `explain` tells from.
//!
//! Two steps: an id says whose it is (each kind of id has a bloom index), then that person's rows are
//! read, which the table's order keeps together. What is read is bounded by rows and by time, because
//! somebody waits for it.

use std::time::Duration;

use clickhouse::Client;
use clickhouse::error::Error;
use tidings_schemas::block::{self, BlockError, COLUMNS};
use tidings_schemas::ids::{DeliveryId, EventId, GroupId, IntentId, LegId, NotificationId};
use tidings_schemas::lifecycle::Row;
use tidings_schemas::time::Instant;

use super::clickhouse::ClickHouseParams;

/// Rows of one person that are read, those nearest in time to what is asked for: about 10 MB. Beyond
/// it the story does not know what else was said to that person weeks before or after.
pub const HISTORY_ROWS_MAX: usize = 20_000;
/// Longest wait for an answer: shorter than a person's patience and than that of the command line,
/// which waits 30 s for the process that asks.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why the record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// No answer.
    #[error("the record's ClickHouse at {url} cannot be reached: {problem}")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// What happened.
        problem: String,
    },
    /// An answer that is none.
    #[error("the record's ClickHouse at {url} refused to be read: {problem}")]
    Refused {
        /// Where it is.
        url: String,
        /// What it says.
        problem: String,
    },
    /// Rows that this build cannot read.
    #[error("the record's ClickHouse at {url} holds rows that cannot be read: {source}")]
    Damaged {
        /// Where it is.
        url: String,
        /// What is wrong.
        source: BlockError,
    },
}

/// Whom an id belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The person; empty for a record that names none.
    pub user: String,
    /// The event of the oldest row that has the id.
    pub event: EventId,
    /// When its unit was made.
    pub created_at: Instant,
}

/// Reads the record in ClickHouse.
#[derive(Clone)]
pub struct History {
    client: Client,
    url: String,
}

impl History {
    /// A reader; reaches nothing yet.
    #[must_use]
    pub fn new(params: &ClickHouseParams) -> Self {
        let seconds = PATIENCE.as_secs().to_string();
        Self { client: params.client().with_setting("max_execution_time", seconds), url: params.url.clone() }
    }

    /// Whom `id` (an event's, intent's, notification's, group's, leg's or delivery's) belongs to; `None`
    /// if the record does not know it, or it is no such id.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn owner(&self, id: &str) -> Result<Option<Owner>, HistoryError> {
        let Some((prefix, digits)) = id.split_at_checked(2) else { return Ok(None) };
        let column = match prefix {
            EventId::PREFIX => "event",
            IntentId::PREFIX => "intent",
            NotificationId::PREFIX => "notification",
            GroupId::PREFIX => "group",
            LegId::PREFIX => "leg",
            DeliveryId::PREFIX => "delivery",
            _ => return Ok(None),
        };
        let asked = self.client.query(&format!("{OWNER} WHERE `{column}` = unhex(?) {OLDEST}")).bind(digits);
        self.one(asked).await
    }

    /// The oldest row of `user` that carries one of `intents`.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn owner_of_intents(&self, user: &str, intents: &[IntentId]) -> Result<Option<Owner>, HistoryError> {
        let digits: Vec<String> = intents.iter().map(|id| id.to_string().split_off(IntentId::PREFIX.len())).collect();
        let sql = format!("{OWNER} WHERE user = ? AND lower(hex(intent)) IN ? {OLDEST}");
        self.one(self.client.query(&sql).bind(user).bind(digits)).await
    }

    /// The types of all that was said about `user`.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn types(&self, user: &str) -> Result<Vec<String>, HistoryError> {
        let sql = "SELECT DISTINCT CAST(type, 'String') FROM lifecycle WHERE user = ?";
        self.answer(self.client.query(sql).bind(user).fetch_all::<String>()).await
    }

    /// The rows around what `owner` has: of a person all of them, up to [`HISTORY_ROWS_MAX`]; of a
    /// record that names nobody its own.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn rows(&self, owner: &Owner) -> Result<Vec<Row>, HistoryError> {
        let columns: Vec<String> = COLUMNS.iter().map(|(name, _)| format!("`{name}`")).collect();
        let (named, alone) = (&owner.user, owner.event.to_string().split_off(EventId::PREFIX.len()));
        let sql = format!(
            "SELECT {} FROM lifecycle WHERE user = ? AND (user != '' OR event = unhex(?)) \
             ORDER BY abs(toUnixTimestamp64Milli(at) - ?), row_id LIMIT {HISTORY_ROWS_MAX}",
            columns.join(", ")
        );
        let asked = self.client.query(&sql).bind(named).bind(alone).bind(owner.created_at.0);
        let bytes = self.answer(async { asked.fetch_bytes("RowBinary")?.collect().await }).await?;
        block::decode_table(&bytes).map_err(|source| HistoryError::Damaged { url: self.url.clone(), source })
    }

    async fn one(&self, asked: clickhouse::query::Query) -> Result<Option<Owner>, HistoryError> {
        let found = self.answer(asked.fetch_optional::<(String, String, i64)>()).await?;
        Ok(found.and_then(|(user, event, created_at)| {
            let event = format!("{}{event}", EventId::PREFIX).parse().ok()?;
            Some(Owner { user, event, created_at: Instant(created_at) })
        }))
    }

    async fn answer<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Result<T, HistoryError> {
        let url = self.url.clone();
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Error::BadResponse(problem))) => Err(HistoryError::Refused { url, problem }),
            Ok(Err(error)) => {
                let causes: Vec<String> =
                    std::iter::successors(Some(&error as &dyn std::error::Error), |it| it.source())
                        .map(ToString::to_string)
                        .collect();
                Err(HistoryError::Unreachable { url, problem: causes.join(": ") })
            }
            Err(_) => Err(HistoryError::Unreachable { url, problem: format!("no answer within {PATIENCE:?}") }),
        }
    }
}

const OWNER: &str = "SELECT user, lower(hex(event)), toUnixTimestamp64Milli(created_at) FROM lifecycle";
const OLDEST: &str = "ORDER BY created_at, at, row_id LIMIT 1";
