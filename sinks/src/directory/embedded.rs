//! The directory on this machine: in a folder, or in memory and loaded anew at each start.

use std::path::Path;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, ready};
use tidings_schemas::channel::Channel;

use super::table::TableDirectory;
use super::{Change, Directory, DirectoryError, Known, Position};
use crate::log::TopicPartition;
use crate::table::{FolderTable, MemoryTable};

/// A directory in a folder. One process opens it at a time.
#[derive(Clone)]
pub struct EmbeddedDirectory(Arc<TableDirectory<FolderTable>>);

impl EmbeddedDirectory {
    /// Opens or creates the directory in `folder`.
    ///
    /// # Errors
    /// When the folder cannot be opened, or another process has it.
    pub fn open(folder: &Path) -> Result<Self, DirectoryError> {
        let table = FolderTable::open(folder).map_err(|error| DirectoryError::Unreachable(error.to_string()))?;
        Ok(Self(Arc::new(TableDirectory(table))))
    }

    async fn on_disk<R: Send + 'static>(
        &self,
        work: impl FnOnce(&TableDirectory<FolderTable>) -> Result<R, DirectoryError> + Send + 'static,
    ) -> Result<R, DirectoryError> {
        let table = self.0.clone();
        tokio::task::spawn_blocking(move || work(&table))
            .await
            .unwrap_or_else(|error| Err(DirectoryError::Unreachable(error.to_string())))
    }
}

impl Directory for EmbeddedDirectory {
    fn look<'a>(&'a self, channel: Channel, users: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Known>, DirectoryError>> {
        let users = owned(users);
        self.on_disk(move |table| table.look(channel, &users)).boxed()
    }

    fn apply<'a>(
        &'a self,
        changes: &'a [Change],
        positions: &'a [Position],
    ) -> BoxFuture<'a, Result<(), DirectoryError>> {
        let (changes, positions) = (changes.to_vec(), positions.to_vec());
        self.on_disk(move |table| table.apply(&changes, &positions)).boxed()
    }

    fn positions<'a>(
        &'a self,
        partitions: &'a [TopicPartition],
    ) -> BoxFuture<'a, Result<Vec<Option<u64>>, DirectoryError>> {
        let partitions = partitions.to_vec();
        self.on_disk(move |table| table.positions(&partitions)).boxed()
    }

    fn loaded(&self) -> BoxFuture<'_, Result<(), DirectoryError>> {
        self.on_disk(TableDirectory::loaded).boxed()
    }
}

/// A directory in memory.
pub struct MemoryDirectory(TableDirectory<MemoryTable>);

impl Default for MemoryDirectory {
    fn default() -> Self {
        Self(TableDirectory(MemoryTable::default()))
    }
}

impl Directory for MemoryDirectory {
    fn look<'a>(&'a self, channel: Channel, users: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Known>, DirectoryError>> {
        ready(self.0.look(channel, &owned(users))).boxed()
    }

    fn apply<'a>(
        &'a self,
        changes: &'a [Change],
        positions: &'a [Position],
    ) -> BoxFuture<'a, Result<(), DirectoryError>> {
        ready(self.0.apply(changes, positions)).boxed()
    }

    fn positions<'a>(
        &'a self,
        partitions: &'a [TopicPartition],
    ) -> BoxFuture<'a, Result<Vec<Option<u64>>, DirectoryError>> {
        ready(self.0.positions(partitions)).boxed()
    }

    fn loaded(&self) -> BoxFuture<'_, Result<(), DirectoryError>> {
        ready(self.0.loaded()).boxed()
    }
}

fn owned(users: &[&str]) -> Vec<String> {
    users.iter().map(|user| (*user).to_owned()).collect()
}
