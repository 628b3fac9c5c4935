//! The directory on this machine: in a folder, or in memory and loaded anew at each start.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
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

#[async_trait]
impl Directory for EmbeddedDirectory {
    async fn look(&self, channel: Channel, users: &[&str]) -> Result<Vec<Known>, DirectoryError> {
        let users = owned(users);
        self.on_disk(move |table| table.look(channel, &users)).await
    }

    async fn apply(&self, changes: &[Change], positions: &[Position]) -> Result<(), DirectoryError> {
        let (changes, positions) = (changes.to_vec(), positions.to_vec());
        self.on_disk(move |table| table.apply(&changes, &positions)).await
    }

    async fn positions(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, DirectoryError> {
        let partitions = partitions.to_vec();
        self.on_disk(move |table| table.positions(&partitions)).await
    }

    async fn loaded(&self) -> Result<(), DirectoryError> {
        self.on_disk(TableDirectory::loaded).await
    }
}

/// A directory in memory.
pub struct MemoryDirectory(TableDirectory<MemoryTable>);

impl Default for MemoryDirectory {
    fn default() -> Self {
        Self(TableDirectory(MemoryTable::default()))
    }
}

#[async_trait]
impl Directory for MemoryDirectory {
    async fn look(&self, channel: Channel, users: &[&str]) -> Result<Vec<Known>, DirectoryError> {
        self.0.look(channel, &owned(users))
    }

    async fn apply(&self, changes: &[Change], positions: &[Position]) -> Result<(), DirectoryError> {
        self.0.apply(changes, positions)
    }

    async fn positions(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, DirectoryError> {
        self.0.positions(partitions)
    }

    async fn loaded(&self) -> Result<(), DirectoryError> {
        self.0.loaded()
    }
}

fn owned(users: &[&str]) -> Vec<String> {
    users.iter().map(|user| (*user).to_owned()).collect()
}
