//! The directory: where a user can be reached and what they refuse, as it stands right before a call.
//!
//! The compacted topics of addresses and profiles are the truth; this is a view of them that can be
//! asked quickly. [`Loader`] follows the topics. Nobody writes here else: what providers answer about an
//! address is produced to the topic and comes back through the loader.
//!
//! A view that is not loaded, or was lost, answers [`DirectoryError::NotLoaded`] instead of "no such user": a
//! lane then waits rather than losing a message for want of an address.

mod embedded;
mod loader;
mod redis;
mod table;

use async_trait::async_trait;
use tidings_schemas::channel::Channel;
use tidings_schemas::profile::{Address, AddressStatus, Profile};

pub use embedded::{EmbeddedDirectory, MemoryDirectory};
pub use loader::{Loader, LoaderError};
pub use redis::RedisDirectory;

use crate::log::TopicPartition;

/// An address and the partition of the addresses topic that its newest record stands in: whoever writes
/// about it writes there, or compaction would keep both.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Listed {
    /// The address.
    pub address: Address,
    /// Where its record stands.
    pub partition: u32,
}

impl Listed {
    /// Whether it may be used.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.address.status == AddressStatus::Live
    }
}

/// What is known about a user on one channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Addresses in the order of their ids, dead ones too.
    pub addresses: Vec<Listed>,
    /// The profile.
    pub profile: Profile,
}

/// A change that the loader read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An address is as it says, or gone.
    Address {
        /// Whose.
        user: String,
        /// Which.
        address_id: String,
        /// As it is now.
        listed: Option<Box<Listed>>,
    },
    /// A profile is as it says; absent is all defaults.
    Profile {
        /// Whose.
        user: String,
        /// As it is now.
        profile: Option<Box<Profile>>,
    },
}

/// How far the view has come in one partition.
pub type Position = (TopicPartition, u64);

/// A directory.
#[async_trait]
pub trait Directory: Send + Sync {
    /// What is known about each of `users` on `channel`, in order.
    async fn look(&self, channel: Channel, users: &[&str]) -> Result<Vec<Known>, DirectoryError>;

    /// Takes changes in, in order, and remembers `positions` with them, all or nothing.
    async fn apply(&self, changes: &[Change], positions: &[Position]) -> Result<(), DirectoryError>;

    /// How far the view has come in each of `partitions`.
    async fn positions(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, DirectoryError>;

    /// Says that the view has everything there was when it was loaded: from here on it answers.
    async fn loaded(&self) -> Result<(), DirectoryError>;
}

/// Why the directory does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// The loader has not come to the end of the topics yet, or the view was lost.
    #[error(
        "the directory is not loaded yet; it answers once the addresses and preferences topics were read to the end"
    )]
    NotLoaded,
    /// The store cannot be reached.
    #[error("the directory cannot be reached: {0}")]
    Unreachable(String),
    /// An entry is not one of ours.
    #[error("the directory holds something else than an address or profile for user `{user}`: {cause}")]
    Damaged {
        /// The user.
        user: String,
        /// What is wrong.
        cause: String,
    },
}

#[cfg(test)]
mod tests;
