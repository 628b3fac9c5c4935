//! The directory's contract against every implementation, and the loader against the log in memory.

use std::sync::Arc;

use tidings_schemas::time::Instant;
use tidings_schemas::topics::Topics;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::lane::wire;
use crate::ledger::tests::test_redis;
use crate::log::memory::MemoryLog;
use crate::log::{Append, Log, Retention, TopicSpec};

fn address(user: &str, id: &str, channel: Channel) -> Address {
    Address::live(user, id, channel, &format!("{user}-{id}"))
}

fn listed(user: &str, id: &str, channel: Channel) -> Change {
    let listed = Some(Box::new(Listed { address: address(user, id, channel), partition: 2 }));
    Change::Address { user: user.into(), address_id: id.into(), listed }
}

async fn ids(directory: &dyn Directory, channel: Channel, user: &str) -> Vec<String> {
    let known = directory.look(channel, &["nobody", user]).await.unwrap();
    assert_eq!(known[0], Known::default());
    known[1].addresses.iter().map(|it| it.address.address_id.clone()).collect()
}

async fn the_contract(directory: &dyn Directory) {
    let partition = TopicPartition { topic: "notifications.addresses".into(), partition: 2 };
    assert_eq!(directory.look(Channel::Push, &["u1"]).await, Err(DirectoryError::NotLoaded));
    let profile = Profile { locale: Some("de".into()), ..Profile::default() };
    let changes = [
        listed("u1", "b", Channel::Push),
        listed("u1", "a", Channel::Push),
        listed("u1", "m", Channel::Email),
        listed("u10", "x", Channel::Push),
        Change::Profile { user: "u1".into(), profile: Some(Box::new(profile.clone())) },
    ];
    directory.apply(&changes, &[(partition.clone(), 7)]).await.unwrap();
    directory.loaded().await.unwrap();
    assert_eq!(ids(directory, Channel::Push, "u1").await, ["a", "b"]);
    assert_eq!(ids(directory, Channel::Email, "u1").await, ["m"]);
    let known = directory.look(Channel::Push, &["u1"]).await.unwrap().remove(0);
    assert_eq!((known.profile, known.addresses[0].partition), (profile, 2));
    let other = TopicPartition { partition: 3, ..partition.clone() };
    assert_eq!(directory.positions(&[partition, other]).await.unwrap(), [Some(7), None]);
    let gone = Change::Address { user: "u1".into(), address_id: "a".into(), listed: None };
    directory.apply(&[gone, Change::Profile { user: "u1".into(), profile: None }], &[]).await.unwrap();
    assert_eq!(ids(directory, Channel::Push, "u1").await, ["b"]);
    assert_eq!(directory.look(Channel::Push, &["u1"]).await.unwrap()[0].profile, Profile::default());
}

#[tokio::test]
async fn every_directory_keeps_the_contract() {
    the_contract(&MemoryDirectory::default()).await;
    let folder = tempfile::tempdir().unwrap();
    the_contract(&EmbeddedDirectory::open(folder.path()).unwrap()).await;
    let reopened = EmbeddedDirectory::open(folder.path()).unwrap();
    assert_eq!(ids(&reopened, Channel::Push, "u1").await, ["b"]);
    if let Some((url, prefix, _own)) = test_redis() {
        the_contract(&RedisDirectory::new(&url, &prefix).unwrap()).await;
    }
}

/// A directory that tells when the loader has changed it.
struct Told {
    directory: Box<dyn Directory>,
    changed: Notify,
}

impl Told {
    fn new(directory: impl Directory + 'static) -> Arc<Self> {
        Arc::new(Self { directory: Box::new(directory), changed: Notify::new() })
    }

    async fn until(&self, users: &[&str], condition: impl Fn(&[Known]) -> bool) {
        loop {
            let changed = self.changed.notified();
            if self.look(Channel::Push, users).await.is_ok_and(|known| condition(&known)) {
                return;
            }
            changed.await;
        }
    }
}

#[async_trait]
impl Directory for Told {
    async fn look(&self, channel: Channel, users: &[&str]) -> Result<Vec<Known>, DirectoryError> {
        self.directory.look(channel, users).await
    }
    async fn apply(&self, changes: &[Change], positions: &[Position]) -> Result<(), DirectoryError> {
        let applied = self.directory.apply(changes, positions).await;
        self.changed.notify_waiters();
        applied
    }
    async fn positions(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<u64>>, DirectoryError> {
        self.directory.positions(partitions).await
    }
    async fn loaded(&self) -> Result<(), DirectoryError> {
        let loaded = self.directory.loaded().await;
        self.changed.notify_waiters();
        loaded
    }
}

struct Loading {
    log: MemoryLog,
    topics: Topics,
    stop: CancellationToken,
}

impl Loading {
    fn new() -> Self {
        let log = MemoryLog::new(Arc::new(|| Instant(0))).unwrap();
        let topics = Topics::default();
        let names = [topics.addresses(), topics.preferences()];
        log.create(&names.map(|name| TopicSpec::one_copy(name, 2, Retention::Forever))).unwrap();
        Self { log, topics, stop: CancellationToken::new() }
    }

    fn address(&self, user: &str, id: &str) {
        let topic = self.topics.addresses();
        let written = wire::address(wire::place(&topic, user, 2), &address(user, id, Channel::Push));
        self.log.append(&[written]).unwrap();
    }

    fn start(&self, directory: Arc<dyn Directory>) -> tokio::task::JoinSet<Result<(), LoaderError>> {
        let loader = Loader::new(Arc::new(self.log.clone()), directory, &self.topics);
        let mut running = tokio::task::JoinSet::new();
        running.spawn(loader.run(self.stop.clone()));
        running
    }
}

#[tokio::test(start_paused = true)]
async fn the_loader_answers_only_once_it_is_at_the_end_and_follows_from_there() {
    let world = Loading::new();
    let directory = Told::new(MemoryDirectory::default());
    for user in ["u1", "u2", "u3"] {
        world.address(user, "phone");
    }
    let preferences = world.topics.preferences();
    let preference = |value: &'static str| Append {
        to: wire::place(&preferences, "u1", 2),
        key: Some("u1".into()),
        value: Some(value.into()),
        headers: Vec::new(),
    };
    world.log.append(&[preference("not a profile"), preference(r#"{"locale":"de"}"#)]).unwrap();
    let mut running = world.start(directory.clone());
    // Whenever it answers at all, it knows everything that was there.
    directory.until(&["u1", "u2", "u3"], |_| true).await;
    let known = directory.look(Channel::Push, &["u1", "u2", "u3"]).await.unwrap();
    assert!(known.iter().all(|it| it.addresses.len() == 1) && known[0].profile.locale.as_deref() == Some("de"));
    // An opt-out and a tombstone come through.
    world.log.append(&[preference(r#"{"channels":{"push":false}}"#)]).unwrap();
    let gone = Append {
        value: None,
        ..wire::address(wire::place(&world.topics.addresses(), "u2", 2), &address("u2", "phone", Channel::Push))
    };
    world.log.append(&[gone]).unwrap();
    directory.until(&["u1", "u2"], |it| !it[0].profile.channels.is_empty() && it[1].addresses.is_empty()).await;
    world.stop.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_view_that_was_emptied_is_loaded_anew_and_answers_nothing_meanwhile() {
    let Some(own) = crate::ledger::tests::OwnRedis::start() else { return };
    let world = Loading::new();
    world.address("u1", "phone");
    let directory = Told::new(RedisDirectory::new(&own.url(), "t").unwrap());
    let mut running = world.start(directory.clone());
    directory.until(&["u1"], |known| known[0].addresses.len() == 1).await;
    let mut connection = ::redis::Client::open(own.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    ::redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
    assert_eq!(directory.look(Channel::Push, &["u1"]).await, Err(DirectoryError::NotLoaded));
    directory.until(&["u1"], |known| known[0].addresses.len() == 1).await;
    world.stop.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();
}
