//! The inbox: what in-app messages are stored in. Stored is delivered; there is no provider to lose it.
//!
//! - Authentication: none. Quotas: none. Batching: none needed, every entry is one write.
//! - Idempotency: an entry's key is (user, notification). Storing it again changes nothing, so an
//!   ambiguous answer is repaired by asking again: nobody sees it twice.
//! - Where: a folder of this machine (default `./data/inbox`), or Redis, one hash per user.
//!
//! | answer of the store | outcome |
//! |---|---|
//! | stored, or was there already | accepted(notification) |
//! | unreachable, timed out | retryable, `maybe_sent` false: a repeat is harmless |
//! | the call carries no in-app content | permanent |

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::{AsyncCommands, RedisResult};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_schemas::channel::Channel;
use tidings_schemas::ids::NotificationId;
use tidings_schemas::time::Instant;

use super::{BuildError, Call, Context, Provider, ProviderKind};
use crate::connection::Connection;
use crate::outcome::{Code, Outcome};
use crate::render::{Content, InApp};
use crate::table::{FolderTable, MemoryTable, Table};
use crate::troubles::Troubles;

const NAME: &str = "inbox";
const SILENT: &str = "the inbox does not answer";
/// How long one write may take: a local disk's fsync or a Redis round trip, with room for a bad moment.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The line of the registry.
pub(super) const KIND: ProviderKind = ProviderKind {
    name: NAME,
    channel: Channel::InApp,
    schema: || schemars::schema_for!(InboxParams),
    make: |params, context| Ok(Box::new(Inbox::build(super::params(NAME, params)?, context)?) as Box<dyn Provider>),
};

/// Parameters of `inbox`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InboxParams {
    /// A folder of this machine.
    #[serde(default = "default_folder")]
    pub folder: PathBuf,
    /// A Redis URL; then no folder is used.
    #[serde(default)]
    pub redis: Option<String>,
}

fn default_folder() -> PathBuf {
    "data/inbox".into()
}

/// One message in a user's inbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which notification it is.
    pub notification: NotificationId,
    /// What it shows.
    pub content: InApp,
    /// The category.
    pub category: String,
    /// When it was stored first.
    pub stored_at: Instant,
    /// Not to be shown after this.
    pub expires_at: Option<Instant>,
}

enum Store {
    Table(Arc<dyn Table>),
    Redis { connection: Connection, prefix: String },
}

/// Users' inboxes.
pub struct Inbox {
    store: Store,
    troubles: Troubles,
}

impl Inbox {
    fn of(store: Store) -> Self {
        Self { store, troubles: Troubles::new(NAME) }
    }

    fn build(params: InboxParams, context: &Context) -> Result<Self, BuildError> {
        let problem = |problem: String| BuildError { provider: NAME, problem };
        match &params.redis {
            Some(url) => Self::redis(url, NAME).map_err(|error| problem(format!("`redis` {error}"))),
            None => Self::open(&context.folder.join(&params.folder)).map_err(problem),
        }
    }

    /// Inboxes in a folder. One process opens it at a time.
    ///
    /// # Errors
    /// When the folder cannot be opened, in words.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let table = FolderTable::open(folder).map_err(|error| error.to_string())?;
        Ok(Self::of(Store::Table(Arc::new(table))))
    }

    /// Inboxes in Redis at `url`, under `prefix`.
    ///
    /// # Errors
    /// When the URL is not one, in words.
    pub fn redis(url: &str, prefix: &str) -> Result<Self, String> {
        let connection = Connection::new(url, TIMEOUT)?;
        Ok(Self::of(Store::Redis { connection, prefix: prefix.to_owned() }))
    }

    /// Inboxes that are gone with the process.
    #[must_use]
    pub fn memory() -> Self {
        Self::of(Store::Table(Arc::new(MemoryTable::default())))
    }

    /// What `user` has, newest first.
    ///
    /// # Errors
    /// When the store cannot be reached, in words.
    pub async fn entries(&self, user: &str) -> Result<Vec<Entry>, String> {
        let found: Vec<Vec<u8>> = match &self.store {
            Store::Table(table) => {
                let (table, from, to) =
                    (table.clone(), [user.as_bytes(), b"\0"].concat(), [user.as_bytes(), b"\x01"].concat());
                let found = blocking(move || table.scan(&from, &to, usize::MAX).map_err(|error| error.to_string()));
                found.await?.into_iter().map(|(_, value)| value).collect()
            }
            Store::Redis { connection, prefix } => {
                let found = async { connection.get()?.hvals(format!("{prefix}:{user}")).await };
                found.await.map_err(|error: redis::RedisError| error.to_string())?
            }
        };
        let mut entries: Vec<Entry> = found
            .iter()
            .map(|json| serde_json::from_slice(json))
            .collect::<Result<_, _>>()
            .map_err(|it| it.to_string())?;
        entries.sort_by_key(|entry| std::cmp::Reverse((entry.stored_at, entry.notification)));
        Ok(entries)
    }

    /// Stores `json` under (user, notification) unless it is there.
    async fn put(&self, user: &str, notification: NotificationId, json: Vec<u8>) -> Result<(), String> {
        match &self.store {
            Store::Table(table) => {
                let (table, key) = (table.clone(), [user.as_bytes(), b"\0", &notification.0].concat());
                let put = move || match table.get(&key).map_err(|error| error.to_string())? {
                    Some(_) => Ok(()),
                    None => table.write(vec![(key, Some(json))]).map_err(|error| error.to_string()),
                };
                blocking(put).await
            }
            Store::Redis { connection, prefix } => {
                let put = async {
                    let name = format!("{prefix}:{user}");
                    let stored: RedisResult<bool> =
                        connection.get()?.hset_nx(name, notification.to_string(), json).await;
                    stored
                };
                put.await.map(|_| ()).map_err(|error| error.to_string())
            }
        }
    }

    async fn store(&self, call: &Call, now: Instant) -> Outcome {
        let Content::InApp(content) = &call.content else {
            return Outcome::permanent(
                Code::ours("wrong_content"),
                "the inbox takes in-app content only; check the template's channel",
            );
        };
        let entry = Entry {
            notification: call.notification,
            content: content.clone(),
            category: call.category.clone(),
            stored_at: now,
            expires_at: call.expires_at,
        };
        let stored = match serde_json::to_vec(&entry) {
            Ok(json) => self.put(&call.user, call.notification, json).await,
            Err(error) => Err(error.to_string()),
        };
        match stored {
            Ok(()) => {
                self.troubles.over(&[SILENT], now);
                Outcome::accepted(Code::ours("stored"), call.notification.to_string())
            }
            Err(error) => {
                self.troubles.met(SILENT, &error, now);
                Outcome::retryable(Code::ours("store_unreachable"), None)
            }
        }
    }
}

#[async_trait]
impl Provider for Inbox {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_one_owner(&self) -> bool {
        matches!(self.store, Store::Table(_))
    }

    fn channel(&self) -> Channel {
        Channel::InApp
    }

    fn batch_max(&self) -> usize {
        1
    }

    fn timeout(&self) -> Duration {
        TIMEOUT * 2 // a connection that has to be made, and the write
    }

    async fn deliver(&self, calls: &[Call], now: Instant) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(calls.len());
        for call in calls {
            outcomes.push(self.store(call, now).await);
        }
        outcomes
    }
}

async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R, String> + Send + 'static) -> Result<R, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

#[cfg(test)]
mod tests {
    use tidings_schemas::channel::Priority;
    use tidings_schemas::ids::DeliveryId;
    use tidings_schemas::profile::Address;

    use super::*;
    use crate::ledger::tests::test_redis;

    fn call(user: &str, n: u8) -> Call {
        Call {
            delivery: DeliveryId([n; 16]),
            notification: NotificationId([n; 16]),
            user: user.to_owned(),
            address: Address::live(user, user, Channel::InApp, user),
            content: Content::InApp(InApp { title: format!("title {n}"), ..InApp::default() }),
            collapse_key: None,
            expires_at: None,
            priority: Priority::Medium,
            category: "social".to_owned(),
        }
    }

    async fn stores_once(inbox: &Inbox) {
        let calls = [call("u1", 1), call("u2", 2), call("u1", 3)];
        let outcomes = inbox.deliver(&calls, Instant(10)).await;
        assert_eq!(outcomes[0], Outcome::accepted(Code::ours("stored"), NotificationId([1; 16]).to_string()));
        inbox.deliver(&calls[..1], Instant(99)).await;
        let titles =
            |entries: Vec<Entry>| entries.into_iter().map(|it| (it.content.title, it.stored_at.0)).collect::<Vec<_>>();
        let expected = [("title 3".to_owned(), 10), ("title 1".to_owned(), 10)];
        assert_eq!(titles(inbox.entries("u1").await.unwrap()), expected);
        assert_eq!(inbox.entries("u").await.unwrap(), []);
    }

    #[tokio::test]
    async fn an_entry_is_stored_once_wherever_it_is_stored() {
        stores_once(&Inbox::memory()).await;
        let folder = tempfile::tempdir().unwrap();
        stores_once(&Inbox::open(folder.path()).unwrap()).await;
        if let Some((url, prefix, _own)) = test_redis() {
            stores_once(&Inbox::redis(&url, &prefix).unwrap()).await;
        }
    }

    #[tokio::test]
    async fn a_store_that_is_down_is_retryable_and_foreign_content_is_refused() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let inbox = Inbox::redis(&format!("redis://127.0.0.1:{port}"), "t").unwrap();
        let outcome = inbox.deliver(&[call("u1", 1)], Instant(0)).await.remove(0);
        assert_eq!(outcome, Outcome::retryable(Code::ours("store_unreachable"), None));
        let mail = Call { content: Content::Sms(Default::default()), ..call("u1", 1) };
        let outcome = Inbox::memory().deliver(&[mail], Instant(0)).await.remove(0);
        assert_eq!(outcome.word(), "permanent");
    }
}
