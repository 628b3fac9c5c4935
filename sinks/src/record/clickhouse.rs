//! The record in ClickHouse: migrations, and batches as deduplicated inserts.
//!
//! An insert carries the batch's name as `insert_deduplication_token`. The table remembers tokens
//! (`non_replicated_deduplication_window`), so the same batch again is the same insert; and a
//! materialized view behind it is filled by the repeat if the first try died before it was.
//! Rows go first, then the list of blocks, so that an epoch never looks complete before it is.

use std::time::Duration;

use bytes::Bytes;
use clickhouse::Client;
use clickhouse::error::Error;
use reqwest::Url;
use tidings_schemas::block::{COLUMNS, Kind};
use tidings_schemas::lifecycle::Stage;
use tidings_schemas::migrations::{MIGRATIONS, Migration};
use tokio::runtime::{Builder, Runtime};

use super::{RecordBatch, RecordStore, StoreError};

/// Longest wait for a piece to be sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for an insert's answer. Shorter than a group waits for its members to poll (5 min).
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes sent at a time.
const PIECE_BYTES: usize = 1024 * 1024;

/// How to reach the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClickHouseParams {
    /// `http://127.0.0.1:8123`.
    pub url: String,
    /// The database, which must exist.
    pub database: String,
    /// The user, empty for the default one.
    pub user: String,
    /// The password.
    pub password: String,
}

impl ClickHouseParams {
    /// The default user in `database` at `url`.
    #[must_use]
    pub fn new(url: &str, database: &str) -> Self {
        Self { url: url.to_owned(), database: database.to_owned(), user: String::new(), password: String::new() }
    }

    /// What `http://user:password@host:8123/?database=name` says. The database is `default` where none
    /// is named.
    ///
    /// # Errors
    /// When it is no such URL: what is wrong, without the URL, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self, InvalidUrl> {
        let mut url = Url::parse(url).map_err(|error| InvalidUrl(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InvalidUrl(format!("it speaks `{}`", url.scheme())));
        }
        let mut database = "default".to_owned();
        for (key, value) in url.query_pairs() {
            match &*key {
                "database" if !value.is_empty() => database = value.into_owned(),
                "database" => return Err(InvalidUrl("its database has no name".to_owned())),
                other => return Err(InvalidUrl(format!("it asks for `{other}`"))),
            }
        }
        // The client names user and password in headers; text that was escaped for a URL is not escaped there.
        let unescaped = |text: &str| match Url::parse(&format!("http://h/?t={}", text.replace('+', "%2B"))) {
            Ok(url) => url.query_pairs().next().map_or_else(String::new, |(_, value)| value.into_owned()),
            Err(_) => text.to_owned(),
        };
        let (user, password) = (unescaped(url.username()), unescaped(url.password().unwrap_or_default()));
        url.set_query(None);
        // Only a URL without a host cannot take them, and that was refused.
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        Ok(Self { url: url.as_str().trim_end_matches('/').to_owned(), database, user, password })
    }

    /// A client for queries.
    #[must_use]
    pub fn client(&self) -> Client {
        let client = Client::default().with_url(&self.url).with_database(&self.database);
        let client = if self.user.is_empty() { client } else { client.with_user(&self.user) };
        if self.password.is_empty() { client } else { client.with_password(&self.password) }
    }
}

/// A text that is no address of ClickHouse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no address of ClickHouse: {0}; expected one like `http://127.0.0.1:8123/?database=default`")]
pub struct InvalidUrl(pub String);

/// Why a store or its schema could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The server.
    #[error("cannot reach ClickHouse at {url}: {source}")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// What happened.
        source: Error,
    },
    /// A step failed.
    #[error("migration {version:03}_{name}: {source}")]
    Failed {
        /// The step.
        version: u32,
        /// Its name.
        name: String,
        /// What the server says.
        source: Error,
    },
    /// An applied step's file says something else now.
    #[error(
        "migration {version:03}_{name} was applied with checksum {applied} and has {found} now; an applied migration \
         never changes: undo the edit and add a new file"
    )]
    Changed {
        /// The step.
        version: u32,
        /// Its name.
        name: String,
        /// What was applied.
        applied: String,
        /// What this build has.
        found: String,
    },
    /// No runtime for the client.
    #[error("cannot start a runtime for the ClickHouse client: {0}")]
    Runtime(#[from] std::io::Error),
}

/// A store in ClickHouse.
pub struct ClickHouse {
    runtime: Runtime,
    client: Client,
    url: String,
}

impl ClickHouse {
    /// A store over `params`; reaches nothing yet.
    ///
    /// # Errors
    /// When no runtime can be started.
    pub fn new(params: &ClickHouseParams) -> Result<Self, SchemaError> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let client = params
            .client()
            .with_setting("async_insert", "0")
            .with_setting("insert_deduplicate", "1")
            .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1");
        Ok(Self { runtime, client, url: params.url.clone() })
    }

    /// Brings the schema up to date. Returns the steps that were applied now.
    ///
    /// # Errors
    /// When the server can't be reached, a step fails, or an applied step was changed since.
    pub fn migrate(&self) -> Result<Vec<u32>, SchemaError> {
        self.migrate_with(MIGRATIONS)
    }

    /// As [`ClickHouse::migrate`], with steps of the caller's.
    ///
    /// # Errors
    /// As there.
    pub fn migrate_with(&self, migrations: &[Migration]) -> Result<Vec<u32>, SchemaError> {
        self.runtime.block_on(async {
            let unreachable = |source| SchemaError::Unreachable { url: self.url.clone(), source };
            let table = "CREATE TABLE IF NOT EXISTS tidings_migrations (version UInt32, name String, checksum String, \
                         applied_at DateTime64(3, 'UTC') DEFAULT now64(3)) ENGINE = MergeTree ORDER BY version \
                         COMMENT 'steps of the schema, each applied once'";
            self.client.query(table).execute().await.map_err(unreachable)?;
            let applied: Vec<(u32, String)> = (self.client)
                .query("SELECT DISTINCT version, checksum FROM tidings_migrations ORDER BY version")
                .fetch_all()
                .await
                .map_err(unreachable)?;
            let mut now = Vec::new();
            for step in migrations {
                let (version, name, found) = (step.version, step.name.to_owned(), step.checksum());
                if let Some((_, applied)) = applied.iter().find(|(applied, _)| *applied == version) {
                    if *applied != found {
                        return Err(SchemaError::Changed { version, name, applied: applied.clone(), found });
                    }
                    continue;
                }
                let failed = |source| SchemaError::Failed { version, name: step.name.to_owned(), source };
                for statement in step.statements() {
                    self.client.query_raw(&statement).execute().await.map_err(failed)?;
                }
                let insert = "INSERT INTO tidings_migrations (version, name, checksum) VALUES (?, ?, ?)";
                let insert = self.client.query(insert).bind(version).bind(step.name).bind(&found);
                insert.execute().await.map_err(failed)?;
                now.push(version);
            }
            Ok(now)
        })
    }

    async fn insert(&self, sql: &str, token: &str, rows: impl Iterator<Item = &[u8]>) -> Result<(), Error> {
        let mut insert = (self.client.insert_formatted_with(sql))
            .with_setting("insert_deduplication_token", token)
            .with_timeouts(Some(SEND_TIMEOUT), Some(END_TIMEOUT));
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        for bytes in rows {
            piece.extend_from_slice(bytes);
            if piece.len() >= PIECE_BYTES {
                insert.send(Bytes::from(std::mem::replace(&mut piece, Vec::with_capacity(PIECE_BYTES)))).await?;
            }
        }
        if !piece.is_empty() {
            insert.send(Bytes::from(piece)).await?;
        }
        insert.end().await
    }
}

impl RecordStore for ClickHouse {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), StoreError> {
        let columns: Vec<String> = COLUMNS.iter().map(|(name, _)| format!("`{name}`")).collect();
        let sql = format!("INSERT INTO lifecycle ({}) FORMAT RowBinary", columns.join(", "));
        let token = batch.name();
        let listed: Vec<Vec<u8>> = (batch.blocks.iter())
            .filter(|block| block.header.stage == Stage::Decide)
            .map(|block| {
                let mut row = block.header.epoch.to_le_bytes().to_vec();
                row.push(u8::from(block.header.kind == Kind::Closed));
                row.extend_from_slice(&batch.partition.partition.to_le_bytes());
                row.extend_from_slice(&block.checksum.to_le_bytes());
                row.extend_from_slice(&block.header.rows.to_le_bytes());
                row
            })
            .collect();
        let written = self.runtime.block_on(async {
            if batch.blocks.iter().any(|block| block.row_count() > 0) {
                self.insert(&sql, &token, batch.blocks.iter().map(|block| &block.rows[..])).await?;
            }
            if !listed.is_empty() {
                let sql = "INSERT INTO lifecycle_blocks (epoch, closed, partition, checksum, rows) FORMAT RowBinary";
                self.insert(sql, &token, listed.iter().map(Vec::as_slice)).await?;
            }
            Ok(())
        });
        written.map_err(|error| match error {
            Error::BadResponse(answer) => StoreError::Refused(answer),
            other => StoreError::Unreachable(other.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_server_database_and_user() {
        for (url, expected) in [
            ("http://h:8123", Ok(("http://h:8123", "default", "", ""))),
            ("http://h:8123/?database=x", Ok(("http://h:8123", "x", "", ""))),
            ("https://ada:a%40b+c@h/", Ok(("https://h", "default", "ada", "a@b+c"))),
            ("tcp://h:9000", Err("it speaks `tcp`")),
            ("http://h/?databse=x", Err("it asks for `databse`")),
            ("http://h/?database=", Err("its database has no name")),
            ("h:8123/x", Err("it speaks `h`")),
            ("", Err("relative URL without a base")),
        ] {
            let found = ClickHouseParams::from_url(url);
            let found = found.as_ref().map(|it| (&*it.url, &*it.database, &*it.user, &*it.password));
            assert_eq!(found.map_err(|error| error.0.as_str()), expected, "{url}");
        }
    }
}
