//! The simulated object store: the one in memory, as one process sees it.
//!
//! A put is there or it is not: the folder on a disk stages and renames, S3 takes an object whole. So
//! a torn put is one that did not happen; rot is the world's own doing.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::log::{Fate, Life, World, digest};

/// The store as one process sees it.
pub struct ProcessStore {
    /// What outlives it.
    pub inner: Arc<InMemory>,
    /// The world.
    pub world: Arc<World>,
    /// The process.
    pub life: Arc<Life>,
}

impl fmt::Debug for ProcessStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ProcessStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated store")
    }
}

fn fails(why: &'static str) -> Error {
    Error::Generic { store: "simulated", source: why.into() }
}

impl ProcessStore {
    fn alive(&self) -> Result<()> {
        if self.life.is_over() { Err(fails("this process is dead")) } else { Ok(()) }
    }
}

#[async_trait]
impl ObjectStore for ProcessStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.alive()?;
        let (fails_before, dies, after) = {
            let mut nature = self.world.nature();
            nature.writes += 1;
            nature.observed += 1;
            let writes = nature.writes;
            let scripted = nature.script.get(&writes).copied();
            if scripted.is_some() {
                *nature.struck.entry("script").or_default() += 1;
            }
            let faults = nature.faults;
            let before = nature.strikes("failed put", faults.put_fails);
            let lost = !before && nature.strikes("lost answer of a put", faults.put_lost);
            let dies = !before && !lost && nature.strikes("death at a put", faults.dies_putting);
            let after = lost || (dies && nature.rng.chance(500_000));
            match scripted {
                None => (before || (dies && !after), dies, after),
                Some(Fate::Done) => (false, false, false),
                Some(Fate::Frozen) => {
                    nature.frozen = Some(self.life.number);
                    (false, false, false)
                }
                Some(Fate::Unreachable | Fate::Late) => (true, false, false),
                Some(Fate::Torn(_)) => (false, false, true),
                Some(Fate::Dies(0)) => (true, true, false),
                Some(Fate::Dies(_)) => (false, true, true),
            }
        };
        let number = self.life.number;
        if dies {
            self.life.end();
            self.world.trace(|| format!("p{number} dies {} it puts {at}", if after { "after" } else { "before" }));
        }
        if fails_before {
            return Err(fails("not put"));
        }
        if self.world.nature().plain {
            let bytes = bytes::Bytes::from(payload.clone());
            let mut nature = self.world.nature();
            nature.content = nature.content.wrapping_add(digest(&[b"put", at.as_ref().as_bytes(), &bytes]));
        }
        let done = self.inner.put_opts(at, payload, options).await;
        self.world.trace(|| format!("p{number} puts {at}{}", if after { " and is not told" } else { "" }));
        if after { Err(fails("not told")) } else { done }
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.alive()?;
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.alive()?;
        self.world.nature().observed += 1;
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if self.life.is_over() {
            return Box::pin(futures_util::stream::iter([Err(fails("this process is dead"))]));
        }
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.alive()?;
        self.inner.copy_opts(from, to, options).await
    }
}
