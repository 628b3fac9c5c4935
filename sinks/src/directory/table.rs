//! The directory over an ordered table on this machine: what the embedded and the in-memory one share.
//!
//! Keys: `a` user `0` address id, `p` user, `o` partition for positions, `l` once it is loaded.

use tidings_schemas::channel::Channel;
use tidings_schemas::profile::Profile;

use super::{Change, DirectoryError, Known, Listed, Position};
use crate::log::TopicPartition;
use crate::table::{Change as TableChange, Table, TableError};

const LOADED: &[u8] = b"l";

pub(super) struct TableDirectory<T>(pub(super) T);

impl<T: Table> TableDirectory<T> {
    pub(super) fn look(&self, channel: Channel, users: &[String]) -> Result<Vec<Known>, DirectoryError> {
        if self.0.get(LOADED).map_err(unreachable)?.is_none() {
            return Err(DirectoryError::NotLoaded);
        }
        users.iter().map(|user| self.look_up(channel, user)).collect()
    }

    fn look_up(&self, channel: Channel, user: &str) -> Result<Known, DirectoryError> {
        let damaged =
            |error: serde_json::Error| DirectoryError::Damaged { user: user.to_owned(), cause: error.to_string() };
        let (from, to) = (address_key(user, ""), [b"a", user.as_bytes(), b"\x01"].concat());
        let mut known = Known::default();
        for (_, value) in self.0.scan(&from, &to, usize::MAX).map_err(unreachable)? {
            let listed: Listed = serde_json::from_slice(&value).map_err(damaged)?;
            if listed.address.channel == channel {
                known.addresses.push(listed);
            }
        }
        if let Some(value) = self.0.get(&profile_key(user)).map_err(unreachable)? {
            known.profile = Profile::from_json(Some(&value)).map_err(damaged)?;
        }
        Ok(known)
    }

    pub(super) fn apply(&self, changes: &[Change], positions: &[Position]) -> Result<(), DirectoryError> {
        let entry = |change: &Change| match change {
            Change::Address { user, address_id, listed } => {
                (address_key(user, address_id), listed.as_ref().and_then(|listed| serde_json::to_vec(listed).ok()))
            }
            Change::Profile { user, profile } => {
                (profile_key(user), profile.as_ref().and_then(|profile| serde_json::to_vec(profile).ok()))
            }
        };
        let positions =
            positions.iter().map(|(partition, offset)| (position_key(partition), Some(offset.to_be_bytes().to_vec())));
        let changes: Vec<TableChange> = changes.iter().map(entry).chain(positions).collect();
        self.0.write(changes).map_err(unreachable)
    }

    pub(super) fn positions(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, DirectoryError> {
        let position = |partition| {
            let value = self.0.get(&position_key(partition)).map_err(unreachable)?;
            Ok(value.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes))
        };
        partitions.iter().map(position).collect()
    }

    pub(super) fn loaded(&self) -> Result<(), DirectoryError> {
        self.0.write(vec![(LOADED.to_vec(), Some(Vec::new()))]).map_err(unreachable)
    }
}

fn unreachable(error: TableError) -> DirectoryError {
    DirectoryError::Unreachable(error.to_string())
}

fn address_key(user: &str, address_id: &str) -> Vec<u8> {
    [b"a", user.as_bytes(), b"\0", address_id.as_bytes()].concat()
}

fn profile_key(user: &str) -> Vec<u8> {
    [b"p", user.as_bytes()].concat()
}

fn position_key(partition: &TopicPartition) -> Vec<u8> {
    [b"o", partition.to_string().as_bytes()].concat()
}
