//! A log and a store that die at a chosen moment, together.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use tidings_pipeline::cutlog::Entry;
use tidings_schemas::lane::HEADER_MARK;
use tidings_sinks::log::through::Through;
use tidings_sinks::log::{Append, Log, LogError, TopicPartition};

/// Before or after something happened, or in the middle of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    /// After the first so many records of the append.
    Torn(usize),
    After,
}

/// When to die.
#[derive(Clone, Debug)]
pub(crate) enum Death {
    /// At the n-th append that has a record for the topic.
    Append { topic: String, nth: u64, moment: Moment },
    /// At the n-th append of marks.
    Mark { nth: u64, moment: Moment },
    /// At the n-th checkpoint entry of the cut log.
    Checkpoint { nth: u64, moment: Moment },
    /// At the n-th entry of the cut log that leaves a call out.
    Skip { nth: u64, moment: Moment },
    /// At the n-th object put below a prefix.
    Put { prefix: String, nth: u64, moment: Moment },
}

/// One process's hold on the world: lost at its death.
pub(crate) struct Life {
    death: Option<Death>,
    seen: AtomicU64,
    dead: AtomicBool,
}

impl Life {
    pub(crate) fn new(death: Option<Death>) -> Arc<Self> {
        Arc::new(Self { death, seen: AtomicU64::new(0), dead: AtomicBool::new(false) })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn strikes(&self, concerns: bool, nth: u64) -> bool {
        concerns && self.seen.fetch_add(1, Ordering::SeqCst) + 1 == nth
    }

    fn moment(&self, records: &[Append]) -> Option<Moment> {
        match self.death.as_ref()? {
            Death::Append { topic, nth, moment } => {
                let concerns = records.iter().any(|record| *record.to.topic == **topic);
                self.strikes(concerns, *nth).then_some(*moment)
            }
            Death::Mark { nth, moment } => {
                let concerns = records.iter().any(|record| record.headers.iter().any(|(name, _)| name == HEADER_MARK));
                self.strikes(concerns, *nth).then_some(*moment)
            }
            Death::Checkpoint { nth, moment } => {
                let is_checkpoint = |record: &Append| {
                    let bytes = record.value.as_deref().unwrap_or_default();
                    *record.to.topic == *"notifications.cuts"
                        && matches!(Entry::decode(0, bytes), Ok(Entry::Checkpoint { .. }))
                };
                self.strikes(records.iter().any(is_checkpoint), *nth).then_some(*moment)
            }
            Death::Skip { nth, moment } => {
                let is_skip = |record: &Append| {
                    let bytes = record.value.as_deref().unwrap_or_default();
                    *record.to.topic == *"notifications.cuts"
                        && matches!(Entry::decode(0, bytes), Ok(Entry::Skip { .. }))
                };
                self.strikes(records.iter().any(is_skip), *nth).then_some(*moment)
            }
            Death::Put { .. } => None,
        }
    }
}

fn gone() -> LogError {
    LogError::Refused("this process is dead".to_owned())
}

/// The log as one process sees it.
pub(crate) struct DyingLog {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) life: Arc<Life>,
}

impl Through for DyingLog {
    fn behind(&self) -> Result<&dyn Log, LogError> {
        if self.life.is_dead() { Err(gone()) } else { Ok(&*self.log) }
    }

    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        let log = self.behind()?;
        match self.life.moment(records) {
            None => log.append(records),
            Some(moment) => {
                self.life.dead.store(true, Ordering::SeqCst);
                let count = match moment {
                    Moment::Before => 0,
                    Moment::Torn(count) => count.min(records.len()),
                    Moment::After => records.len(),
                };
                log.append(&records[..count])?;
                Err(gone())
            }
        }
    }
}

/// Remembers every entry of the cut log, trimmed or not.
pub(crate) struct Witness {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) cuts: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
}

impl Through for Witness {
    fn behind(&self) -> Result<&dyn Log, LogError> {
        Ok(&*self.log)
    }

    fn append(&self, records: &[Append]) -> Result<Vec<u64>, LogError> {
        let appended = self.log.append(records);
        let partition = TopicPartition { topic: "notifications.cuts".into(), partition: 0 };
        if records.iter().any(|record| record.to == partition) {
            // Asked of the log, because an acknowledgement may be lost.
            let range = self.log.range(&partition)?;
            let seen = self.cuts.lock().unwrap().last_key_value().map_or(0, |(offset, _)| offset + 1);
            let mut position = range.start.max(seen);
            let mut reader = self.log.reader(&partition, position)?;
            while position < range.end {
                let batch = reader.poll(1000, std::time::Duration::from_millis(10))?;
                position = batch.position;
                let mut cuts = self.cuts.lock().unwrap();
                cuts.extend(batch.records.into_iter().map(|record| (record.offset, record.value.unwrap().to_vec())));
            }
        }
        appended
    }
}

/// The store as one process sees it.
pub(crate) struct DyingStore {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) life: Arc<Life>,
}

impl fmt::Debug for DyingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DyingStore")
    }
}

impl fmt::Display for DyingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DyingStore")
    }
}

impl DyingStore {
    fn alive(&self) -> object_store::Result<()> {
        if self.life.is_dead() {
            return Err(object_store::Error::Generic { store: "dying", source: "this process is dead".into() });
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for DyingStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.alive()?;
        if let Some(Death::Put { prefix, nth, moment }) = &self.life.death
            && self.life.strikes(at.as_ref().starts_with(prefix.as_str()), *nth)
        {
            self.life.dead.store(true, Ordering::SeqCst);
            if *moment != Moment::Before {
                self.store.put_opts(at, payload, options).await?;
            }
            return Err(object_store::Error::Generic { store: "dying", source: "this process is dead".into() });
        }
        self.store.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.alive()?;
        self.store.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.alive()?;
        self.store.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.alive()?;
        self.store.copy_opts(from, to, options).await
    }
}
