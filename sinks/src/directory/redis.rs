//! The directory in Redis: one hash per user, one round trip per batch of users.
//!
//! Names, after a prefix: `u:{user}` with the fields `a:{address id}` and `p`; `o` a hash of positions;
//! `l` once it is loaded. A store that was emptied lost `l` too, and answers nothing until the loader has
//! filled it again.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use redis::{AsyncCommands, RedisError};
use tidings_schemas::channel::Channel;
use tidings_schemas::profile::Profile;

use super::{Change, Directory, DirectoryError, Known, Listed, Position};
use crate::connection::Connection;
use crate::log::TopicPartition;

/// How long an answer may take; beyond it the lane waits and asks again.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A directory in Redis.
pub struct RedisDirectory {
    connection: Connection,
    prefix: String,
}

impl RedisDirectory {
    /// A directory at `url`, its keys under `prefix`. Connects with the first call.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(url: &str, prefix: &str) -> Result<Self, DirectoryError> {
        let connection = Connection::new(url, ANSWER_MAX).map_err(DirectoryError::Unreachable)?;
        Ok(Self { connection, prefix: prefix.to_owned() })
    }

    fn user(&self, user: &str) -> String {
        format!("{}:u:{user}", self.prefix)
    }

    fn name(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }
}

#[async_trait]
impl Directory for RedisDirectory {
    async fn look(&self, channel: Channel, users: &[&str]) -> Result<Vec<Known>, DirectoryError> {
        let mut connection = self.connection.get().map_err(unreachable)?;
        let mut pipe = redis::pipe();
        pipe.exists(self.name("l"));
        for user in users {
            pipe.hgetall(self.user(user));
        }
        let mut answers: Vec<redis::Value> = pipe.query_async(&mut connection).await.map_err(unreachable)?;
        let found = answers.split_off(1);
        let loaded: bool = redis::from_redis_value(answers.swap_remove(0)).map_err(strange)?;
        if !loaded {
            return Err(DirectoryError::NotLoaded);
        }
        users.iter().zip(found).map(|(user, fields)| known(channel, user, fields)).collect()
    }

    async fn apply(&self, changes: &[Change], positions: &[Position]) -> Result<(), DirectoryError> {
        let mut connection = self.connection.get().map_err(unreachable)?;
        let mut pipe = redis::pipe();
        pipe.atomic();
        for change in changes {
            let (user, field, json) = match change {
                Change::Address { user, address_id, listed } => {
                    (user, format!("a:{address_id}"), listed.as_ref().and_then(|it| serde_json::to_string(it).ok()))
                }
                Change::Profile { user, profile } => {
                    (user, "p".to_owned(), profile.as_ref().and_then(|it| serde_json::to_string(it).ok()))
                }
            };
            match json {
                Some(json) => pipe.hset(self.user(user), field, json).ignore(),
                None => pipe.hdel(self.user(user), field).ignore(),
            };
        }
        for (partition, offset) in positions {
            pipe.hset(self.name("o"), partition.to_string(), offset).ignore();
        }
        pipe.query_async::<()>(&mut connection).await.map_err(unreachable)
    }

    async fn positions(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, DirectoryError> {
        let mut connection = self.connection.get().map_err(unreachable)?;
        let known: BTreeMap<String, u64> = connection.hgetall(self.name("o")).await.map_err(unreachable)?;
        Ok(partitions.iter().map(|partition| known.get(&partition.to_string()).copied()).collect())
    }

    async fn loaded(&self) -> Result<(), DirectoryError> {
        let mut connection = self.connection.get().map_err(unreachable)?;
        connection.set::<_, _, ()>(self.name("l"), 1).await.map_err(unreachable)
    }
}

fn known(channel: Channel, user: &str, fields: redis::Value) -> Result<Known, DirectoryError> {
    let damaged =
        |error: serde_json::Error| DirectoryError::Damaged { user: user.to_owned(), cause: error.to_string() };
    let fields: BTreeMap<String, String> = redis::from_redis_value(fields).map_err(strange)?;
    let mut known = Known::default();
    for (field, json) in fields {
        if field == "p" {
            known.profile = Profile::from_json(Some(json.as_bytes())).map_err(damaged)?;
        } else {
            let listed: Listed = serde_json::from_str(&json).map_err(damaged)?;
            if listed.address.channel == channel {
                known.addresses.push(listed);
            }
        }
    }
    Ok(known)
}

fn unreachable(error: RedisError) -> DirectoryError {
    DirectoryError::Unreachable(error.to_string())
}

fn strange(error: redis::ParsingError) -> DirectoryError {
    DirectoryError::Unreachable(format!("an answer that is not one: {error}"))
}
