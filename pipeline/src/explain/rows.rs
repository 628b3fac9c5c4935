//! Where stories get their rows: whatever can find all rows of the user whom an id belongs to.

use tidings_schemas::ids::{EventId, IntentId};
use tidings_schemas::lifecycle::{Row, Unit};
use tidings_sinks::record::index::RecordIndex;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// An id of the system's own: event, notification, intent, group, leg or delivery.
    Id(String),
    /// The producer's id, deduplication key or the value of its type's expression, with the user.
    Own {
        /// The tenant, empty where there is one only.
        tenant: String,
        /// The user.
        user: String,
        /// The producer's id.
        id: String,
    },
}

impl Query {
    /// Reads what a person typed: an id of the system's own, or the producer's where a user is given.
    ///
    /// # Errors
    /// When it is neither; the message says what would be.
    pub fn parse(text: &str, tenant: &str, user: Option<&str>) -> Result<Self, InvalidQuery> {
        let (prefix, digits) = text.split_at_checked(2).unwrap_or(("", text));
        let is_own_id = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_own_id && ["e_", "n_", "i_", "g_", "l_", "d_"].contains(&prefix) {
            return Ok(Self::Id(text.to_owned()));
        }
        match user {
            Some(user) => Ok(Self::Own { tenant: tenant.to_owned(), user: user.to_owned(), id: text.to_owned() }),
            None => Err(InvalidQuery { found: text.to_owned() }),
        }
    }
}

/// Why a text is no query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected an id like `e_` (also `n_`, `i_`, `g_`, `l_`, `d_`) and 32 hex digits, found `{found}`; for a producer's own id give the user as well"
)]
pub struct InvalidQuery {
    found: String,
}

/// Finds rows.
pub trait Rows {
    /// All rows of the user to whom the query's rows belong, the query's own among them, in any order.
    /// Empty where the query is not known.
    fn find(&self, query: &Query) -> Vec<Row>;
}

impl Rows for RecordIndex {
    fn find(&self, query: &Query) -> Vec<Row> {
        let user = match query {
            Query::Id(id) => self.history(id).ok().and_then(|rows| rows.first().map(|row| row.user.clone())),
            Query::Own { user, .. } => Some(user.clone()),
        };
        user.map_or_else(Vec::new, |user| self.of_user(&user).into_iter().cloned().collect())
    }
}

/// The event that a query is about: the one named, or the first of the notification, group, leg or
/// delivery. `rows` are what [`Rows::find`] found.
#[must_use]
pub fn event_of(rows: &[Row], query: &Query) -> Option<EventId> {
    let events = || rows.iter().filter(|row| row.unit == Unit::Event);
    let first = |wanted: &dyn Fn(&Row) -> bool| {
        events().filter(|row| wanted(row)).min_by_key(|row| (row.created_at, row.event)).map(|row| row.event)
    };
    match query {
        Query::Id(id) => {
            if let Ok(event) = id.parse::<EventId>() {
                return first(&|row| row.event == event);
            }
            if let Some(event) = first(&|row| {
                id == &row.intent.to_string() || id == &row.notification.to_string() || id == &row.group.to_string()
            }) {
                return Some(event);
            }
            let unit = rows.iter().find(|row| {
                [row.leg.to_string(), row.delivery.to_string(), row.notification.to_string(), row.group.to_string()]
                    .contains(id)
            })?;
            first(&|row| row.notification == unit.notification).or_else(|| first(&|row| row.event == unit.event))
        }
        Query::Own { tenant, user, id } => {
            let plain = IntentId::new(tenant, user, None, id);
            // The first of the wish: its repeats carry the same intent.
            first(&|row| {
                row.user == *user
                    && (row.intent == plain || row.intent == IntentId::new(tenant, user, Some(&row.event_type), id))
            })
        }
    }
}
