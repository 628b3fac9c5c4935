//! A log and a checkpoint store that can be held up, and what passes through them.
//!
//! Held up is what the decide stage says (lanes, the record) and what it keeps; never its cuts, because without them no
//! epoch would come to wait. What is held up waits, and is carried out once the hold is over.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use tidings_operators::item::MEMBERS_MAX;
use tidings_pipeline::runtime::clock::{Clock, SystemClock};
use tidings_schemas::lane::LaneRecord;
use tidings_sinks::log::through::Through;
use tidings_sinks::log::{Append, Batch, Log, LogError, Reader, TopicPartition};

/// How often whoever is held up looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A reader that had records and asks for more so much later waited for room. Longer than a busy machine keeps a
/// thread from running.
const NO_ROOM: Duration = Duration::from_millis(500);

/// Fewer bytes than a lane record of [`MEMBERS_MAX`] members has.
const LARGE_BYTES: usize = 16 * 1024;

/// What is held up, and what was seen.
#[derive(Debug, Default)]
pub(crate) struct Valve {
    /// Lanes and the record take nothing.
    pub(crate) says_nothing: AtomicBool,
    /// The checkpoint store takes nothing.
    pub(crate) keeps_nothing: AtomicBool,
    /// How often a reader had to wait for room in the read-ahead.
    pub(crate) no_room: AtomicU64,
    /// Lane records that stand for more events than they have members.
    pub(crate) folded: AtomicU64,
    /// How far each partition was read.
    pub(crate) read: Mutex<BTreeMap<TopicPartition, u64>>,
}

impl Valve {
    fn pass(hold: &AtomicBool) {
        while hold.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// A log through a valve.
pub(crate) struct SlowLog {
    /// What it is kept in.
    pub(crate) inner: Arc<dyn Log>,
    /// The valve.
    pub(crate) valve: Arc<Valve>,
    /// The topic of cuts.
    pub(crate) cuts: String,
}

impl SlowLog {
    fn look(&self, record: &Append) {
        let large = |value: &&Bytes| value.len() >= LARGE_BYTES && value.first() == Some(&b'{');
        let Some(value) = record.value.as_ref().filter(large) else { return };
        // What is no lane record is none of ours.
        let Ok(lane) = serde_json::from_slice::<LaneRecord>(value) else { return };
        if lane.members.len() == MEMBERS_MAX && lane.activities > MEMBERS_MAX as u64 {
            self.valve.folded.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Through for SlowLog {
    fn behind(&self) -> Result<&dyn Log, LogError> {
        Ok(&*self.inner)
    }

    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        if records.iter().any(|record| *record.to.topic != *self.cuts) {
            Valve::pass(&self.valve.says_nothing);
        }
        records.iter().for_each(|record| self.look(record));
        self.inner.append(records)
    }

    fn reader(&self, partition: &TopicPartition, from: u64) -> Result<Box<dyn Reader>, LogError> {
        let (inner, valve) = (self.inner.reader(partition, from)?, Arc::clone(&self.valve));
        let clock = SystemClock::default();
        Ok(Box::new(Watched { inner, valve, partition: partition.clone(), clock, had_records: None }))
    }
}

/// A reader whose steps are noted.
struct Watched {
    inner: Box<dyn Reader>,
    valve: Arc<Valve>,
    partition: TopicPartition,
    clock: SystemClock,
    /// When it last brought records.
    had_records: Option<Duration>,
}

impl Reader for Watched {
    fn poll(&mut self, records_max: usize, wait: Duration) -> Result<Batch, LogError> {
        if self.had_records.is_some_and(|at| self.clock.elapsed() - at >= NO_ROOM) {
            self.valve.no_room.fetch_add(1, Ordering::Relaxed);
        }
        let batch = self.inner.poll(records_max, wait)?;
        self.had_records = (!batch.records.is_empty()).then(|| self.clock.elapsed());
        let mut read = self.valve.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.insert(self.partition.clone(), batch.position);
        Ok(batch)
    }
}

/// A checkpoint store through a valve.
#[derive(Debug)]
pub(crate) struct SlowStore {
    /// What it is kept in.
    pub(crate) inner: Arc<dyn ObjectStore>,
    /// The valve.
    pub(crate) valve: Arc<Valve>,
}

impl fmt::Display for SlowStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlowStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for SlowStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        while self.valve.keeps_nothing.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.inner.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
