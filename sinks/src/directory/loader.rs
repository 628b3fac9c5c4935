//! Follows the compacted topics into the view.
//!
//! The view's position stands beside what was loaded, so a restart goes on where the view is, a view
//! that was lost starts over, and several processes may load one view: they write the same. A record that
//! is no address or profile is skipped with a warning; decide rejects it in the open.

use std::sync::Arc;
use std::time::Duration;

use tidings_schemas::profile::{Address, Profile};
use tidings_schemas::topics::Topics;
use tokio_util::sync::CancellationToken;

use super::{Change, Directory, DirectoryError, Listed, Position};
use crate::log::{Log, LogError, Reader, Record, TopicPartition};

/// Records per poll and per write into the view.
const BATCH_RECORDS: usize = 1000;
/// Pause after a round that brought nothing. An opt-out is seen this much later at most.
const IDLE: Duration = Duration::from_millis(20);
/// Pause after an error.
const BACKOFF: Duration = Duration::from_millis(500);
/// Rounds between two looks at whether the view is still the one that was written.
const ROUNDS_PER_CHECK: u32 = 50;

/// Why the loader ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoaderError {
    /// The log.
    #[error("the directory cannot follow its topics: {0}")]
    Log(#[from] LogError),
    /// The view.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Follows addresses and profiles into a directory.
pub struct Loader {
    log: Arc<dyn Log>,
    directory: Arc<dyn Directory>,
    addresses: String,
    preferences: String,
}

struct Followed {
    partition: TopicPartition,
    reader: Box<dyn Reader>,
    position: u64,
    /// The end when the view began to be loaded.
    target: u64,
}

impl Loader {
    /// A loader of the topics of one installation.
    #[must_use]
    pub fn new(log: Arc<dyn Log>, directory: Arc<dyn Directory>, topics: &Topics) -> Self {
        Self { log, directory, addresses: topics.addresses(), preferences: topics.preferences() }
    }

    /// Runs until `stop`. Errors that pass by themselves are waited out.
    ///
    /// # Errors
    /// When a topic is missing or was trimmed below the view's position.
    pub async fn run(self, stop: CancellationToken) -> Result<(), LoaderError> {
        while !stop.is_cancelled() {
            match self.follow(&stop).await {
                Err(LoaderError::Log(error)) if error.is_transient() => tracing::warn!(%error, "the directory waits"),
                Err(LoaderError::Directory(error)) => tracing::warn!(%error, "the directory waits"),
                Err(error) => return Err(error),
                Ok(()) => continue,
            }
            tokio::select! { () = tokio::time::sleep(BACKOFF) => {}, () = stop.cancelled() => {} }
        }
        Ok(())
    }

    /// Follows from where the view stands; returns when it was lost or it is time to stop.
    async fn follow(&self, stop: &CancellationToken) -> Result<(), LoaderError> {
        let mut followed = self.open().await?;
        let partitions: Vec<_> = followed.iter().map(|it| it.partition.clone()).collect();
        let mut loaded = false;
        let mut rounds: u32 = 0;
        while !stop.is_cancelled() {
            let mut any = false;
            for index in 0..followed.len() {
                let (mut it, batch) = poll(followed.swap_remove(index)).await?;
                any |= !batch.records.is_empty();
                let changes: Vec<_> =
                    batch.records.iter().filter_map(|record| self.change(&it.partition, record)).collect();
                if batch.position != it.position {
                    it.position = batch.position;
                    self.directory.apply(&changes, &[(it.partition.clone(), it.position)]).await?;
                }
                // `swap_remove` moved the last one here; put them back in their order.
                followed.push(it);
                let last = followed.len() - 1;
                followed.swap(index, last);
            }
            if !loaded && followed.iter().all(|it| it.position >= it.target) {
                // Positions are written even of empty topics: what lost them is noticed.
                let positions: Vec<Position> = followed.iter().map(|it| (it.partition.clone(), it.position)).collect();
                self.directory.apply(&[], &positions).await?;
                self.directory.loaded().await?;
                loaded = true;
            }
            rounds = rounds.wrapping_add(1);
            if loaded && rounds.is_multiple_of(ROUNDS_PER_CHECK) && self.is_lost(partitions.clone()).await? {
                tracing::warn!("the directory's view was lost and is loaded anew");
                return Ok(());
            }
            if !any {
                tokio::select! { () = tokio::time::sleep(IDLE) => {}, () = stop.cancelled() => {} }
            }
        }
        Ok(())
    }

    async fn open(&self) -> Result<Vec<Followed>, LoaderError> {
        let names = [self.addresses.clone(), self.preferences.clone()];
        let topics = self.log.describe(&names)?;
        if let Some(missing) = names.iter().find(|name| !topics.iter().any(|topic| topic.name == **name)) {
            return Err(LogError::MissingTopic(missing.clone()).into());
        }
        let mut partitions = Vec::new();
        for topic in topics {
            let name: Arc<str> = topic.name.into();
            partitions.extend((0..topic.partitions).map(|partition| TopicPartition { topic: name.clone(), partition }));
        }
        let positions = self.directory.positions(&partitions).await?;
        let mut followed = Vec::new();
        for (partition, position) in partitions.into_iter().zip(positions) {
            let range = self.log.range(&partition)?;
            let position = position.unwrap_or(range.start);
            let reader = self.log.reader(&partition, position)?;
            followed.push(Followed { partition, reader, position, target: range.end });
        }
        Ok(followed)
    }

    async fn is_lost(&self, partitions: Vec<TopicPartition>) -> Result<bool, LoaderError> {
        let positions = self.directory.positions(&partitions).await?;
        Ok(positions.iter().any(Option::is_none))
    }

    fn change(&self, partition: &TopicPartition, record: &Record) -> Option<Change> {
        let change = if *partition.topic == *self.addresses {
            address_change(partition.partition, record)
        } else {
            profile_change(record)
        };
        change
            .inspect_err(|error| {
                tracing::warn!(%partition, offset = record.offset, error, "a record is skipped by the directory");
            })
            .ok()
    }
}

async fn poll(mut it: Followed) -> Result<(Followed, crate::log::Batch), LoaderError> {
    let polled = tokio::task::spawn_blocking(move || {
        let batch = it.reader.poll(BATCH_RECORDS, Duration::ZERO);
        (it, batch)
    });
    let (it, batch) = polled.await.map_err(|error| LogError::Unreachable(error.to_string()))?;
    Ok((it, batch?))
}

fn key(record: &Record) -> Result<&str, String> {
    let key = record.key.as_deref().ok_or("it has no key")?;
    std::str::from_utf8(key).map_err(|error| format!("its key is not text: {error}"))
}

fn address_change(partition: u32, record: &Record) -> Result<Change, String> {
    let Some(value) = &record.value else {
        let (user, address_id) = key(record)?.rsplit_once('/').ok_or("its key is not `user/address`")?;
        return Ok(Change::Address { user: user.to_owned(), address_id: address_id.to_owned(), listed: None });
    };
    let address: Address = serde_json::from_slice(value).map_err(|error| error.to_string())?;
    let (user, address_id) = (address.user_id.clone(), address.address_id.clone());
    Ok(Change::Address { user, address_id, listed: Some(Box::new(Listed { address, partition })) })
}

fn profile_change(record: &Record) -> Result<Change, String> {
    let user = key(record)?.to_owned();
    let profile = Profile::from_json(record.value.as_deref()).map_err(|error| error.to_string())?;
    let profile = (profile != Profile::default()).then(|| Box::new(profile));
    Ok(Change::Profile { user, profile })
}
