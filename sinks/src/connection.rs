//! A connection to Redis: made with the first call, remade when it breaks, every wait bounded.

use std::sync::OnceLock;
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{RedisError, RedisResult};

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Where a Redis is, and the connection to it.
pub(crate) struct Connection {
    client: redis::Client,
    answer_max: Duration,
    manager: OnceLock<ConnectionManager>,
}

impl Connection {
    /// A connection to `url` whose answers may take `answer_max`. Needs no runtime: nothing happens yet.
    pub(crate) fn new(url: &str, answer_max: Duration) -> Result<Self, String> {
        let client = redis::Client::open(url)
            .map_err(|error: RedisError| format!("`{url}`: {error}; expected a URL like `redis://127.0.0.1:6379`"))?;
        Ok(Self { client, answer_max, manager: OnceLock::new() })
    }

    /// The connection; calls on clones share it and run side by side.
    pub(crate) fn get(&self) -> RedisResult<ConnectionManager> {
        if let Some(manager) = self.manager.get() {
            return Ok(manager.clone());
        }
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(self.answer_max))
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_number_of_retries(1);
        let manager = ConnectionManager::new_lazy_with_config(self.client.clone(), config)?;
        Ok(self.manager.get_or_init(|| manager).clone())
    }
}
