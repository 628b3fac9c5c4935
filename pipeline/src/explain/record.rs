//! What a process has not seen itself: rows of the record, wherever it is kept.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use tidings_schemas::ids::IntentId;
use tidings_schemas::lifecycle::Row;
use tidings_sinks::record::clickhouse::ClickHouseParams;
use tidings_sinks::record::files::{Files, FilesError};
use tidings_sinks::record::history::{History, HistoryError};
use tidings_sinks::record::index::RecordIndex;

use super::rows::{Query, Rows};
use crate::topology::Record;

/// Why the record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum OlderError {
    /// ClickHouse.
    #[error(transparent)]
    ClickHouse(#[from] HistoryError),
    /// Files.
    #[error("the record's files cannot be read: {0}")]
    Files(#[from] FilesError),
    /// The reader panicked.
    #[error("reading the record's files failed: {0}")]
    Reader(#[from] tokio::task::JoinError),
}

/// Finds rows in the record.
pub trait Older: Send + Sync {
    /// What [`Rows::find`] finds, from the record; a large record answers with the rows nearest in time.
    fn find(&self, query: &Query) -> BoxFuture<'_, Result<Vec<Row>, OlderError>>;
}

/// The record that a topology names.
#[must_use]
pub fn older(record: &Record) -> Arc<dyn Older> {
    match record {
        Record::Files(folder) => Arc::new(FileRows::new(folder)),
        Record::ClickHouse(server) => Arc::new(ClickHouseRows::new(server.get())),
    }
}

/// A record in files: read whole at the first question, and what is new at each further one.
struct FileRows {
    files: Files,
    index: Arc<Mutex<RecordIndex>>,
}

impl FileRows {
    fn new(folder: &Path) -> Self {
        Self { files: Files::new(folder), index: Arc::default() }
    }
}

impl Older for FileRows {
    fn find(&self, query: &Query) -> BoxFuture<'_, Result<Vec<Row>, OlderError>> {
        let (files, index, query) = (self.files.clone(), Arc::clone(&self.index), query.clone());
        let read = move || {
            // An index that a panic left behind has whole rows, and misses those of one file at most.
            let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
            index.refresh(&files)?;
            Ok(index.find(&query))
        };
        Box::pin(async move { tokio::task::spawn_blocking(read).await? })
    }
}

/// A record in ClickHouse.
pub struct ClickHouseRows(History);

impl ClickHouseRows {
    /// Reaches nothing yet.
    #[must_use]
    pub fn new(params: &ClickHouseParams) -> Self {
        Self(History::new(params))
    }
}

impl Older for ClickHouseRows {
    fn find(&self, query: &Query) -> BoxFuture<'_, Result<Vec<Row>, OlderError>> {
        let query = query.clone();
        Box::pin(async move {
            let owner = match &query {
                Query::Id(id) => self.0.owner(id).await?,
                Query::Own { tenant, user, id } => {
                    // An intent hashes the type where the type has an expression of its own.
                    let types = self.0.types(user).await?;
                    let of_type = |of: Option<&str>| IntentId::new(tenant, user, of, id);
                    let intents: Vec<IntentId> =
                        types.iter().map(|of| of_type(Some(of))).chain([of_type(None)]).collect();
                    self.0.owner_of_intents(user, &intents).await?
                }
            };
            match owner {
                Some(owner) => Ok(self.0.rows(&owner).await?),
                None => Ok(Vec::new()),
            }
        })
    }
}
