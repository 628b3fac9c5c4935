//! An ordered table of bytes on this machine: what the embedded ledger, directory and inbox stand on,
//! and what their tests replace by memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A key and its new value; absent takes the key away.
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

/// A key and its value.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// Why the table did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store at `{place}` failed: {cause}; check the disk and its free space")]
pub(crate) struct TableError {
    place: String,
    cause: String,
}

/// An ordered table.
pub(crate) trait Table: Send + Sync + 'static {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, TableError>;
    /// Keys and values from `from` to before `to`, in order, at most `max`.
    fn scan(&self, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Pair>, TableError>;
    /// All of it or none; returns once it is as durable as the table promises. The last change of a key holds.
    fn write(&self, changes: Vec<Change>) -> Result<(), TableError>;
}

/// In memory, for tests and for views that are loaded anew at each start.
#[derive(Debug, Default)]
pub(crate) struct MemoryTable(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl MemoryTable {
    /// Forgets everything, as a store that was lost.
    #[cfg(test)]
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Table for MemoryTable {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Pair>, TableError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let range = map.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)));
        Ok(range.take(max).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn write(&self, changes: Vec<Change>) -> Result<(), TableError> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in changes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }
}

/// In a folder; every write is synced.
pub(crate) struct FolderTable {
    database: fjall::Database,
    keyspace: fjall::Keyspace,
    place: String,
}

impl FolderTable {
    /// Opens or creates the table in `folder`.
    pub(crate) fn open(folder: &Path) -> Result<Self, TableError> {
        let place = folder.display().to_string();
        let failed = |error: fjall::Error| TableError { place: place.clone(), cause: error.to_string() };
        let database = fjall::Database::builder(folder).open().map_err(failed)?;
        let keyspace = database.keyspace("table", fjall::KeyspaceCreateOptions::default).map_err(failed)?;
        Ok(Self { database, keyspace, place })
    }

    fn failed(&self, error: fjall::Error) -> TableError {
        TableError { place: self.place.clone(), cause: error.to_string() }
    }
}

impl Table for FolderTable {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        Ok(self.keyspace.get(key).map_err(|error| self.failed(error))?.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Pair>, TableError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for guard in self.keyspace.range(from..to).take(max) {
            let (key, value) = guard.into_inner().map_err(|error| self.failed(error))?;
            found.push((key.to_vec(), value.to_vec()));
        }
        Ok(found)
    }

    fn write(&self, changes: Vec<Change>) -> Result<(), TableError> {
        // Within one batch of the store equal keys would meet under one sequence number: the last one holds.
        let changes: BTreeMap<_, _> = changes.into_iter().collect();
        let mut batch = self.database.batch().durability(Some(fjall::PersistMode::SyncAll));
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.keyspace, key, value),
                None => batch.remove(&self.keyspace, key),
            }
        }
        batch.commit().map_err(|error| self.failed(error))
    }
}
