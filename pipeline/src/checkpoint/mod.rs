//! Checkpoints: the state at an epoch's end, so that a start replays seconds and not weeks.
//!
//! # Cast
//! A *chunk* holds the images that changed between two checkpoints, sorted by (operator, key group,
//! user, subkey). A *manifest* names the chunks that together are the state at its epoch, and where
//! each source stood. A *blob* is anything named by its content: topologies, tz data.
//!
//! # Protocol
//! 1. Every epoch hands over its delta; deltas merge in memory until the next checkpoint is due.
//! 2. The merged delta becomes a chunk, the chunk's name goes into a manifest; both are put create-only.
//! 3. The coordinator appends `checkpoint {name, epoch}` to the cut log once cut e is durable and every
//!    writer has had the outputs up to e acknowledged. Only then it counts.
//! 4. When chunks have grown past the base, a manifest's chunks are merged into one, beside the stream.
//! 5. What lies below the second-newest counted checkpoint, and no kept manifest names, is deleted.
//!
//! # Invariants
//! - Objects are never written twice: names carry generation and epoch.
//! - Only names that were read from a counted manifest, or that this generation wrote and had
//!   acknowledged, are deleted. Nothing is ever deleted because a listing shows it.
//!
//! # If it dies at step n
//! 1. Nothing durable is lost: the deltas come again by replay.
//! 2. A chunk or manifest without its entry in the log is never read. It stays as garbage of a few
//!    megabytes; a later generation has other names.
//! 3. The same; the newest counted checkpoint is an older one, and more is replayed.
//! 4. The merged chunk is named by nobody yet.
//! 5. Deleting again what is gone is no error.
//!
//! # Not promised
//! That the newest checkpoint is readable: recovery falls back to the second-newest, which is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use tidings_operators::harness::delta::{Delta, Pending};
use tidings_operators::harness::table::{Image, StateKey};
use tidings_schemas::codec::{frame, unframe};
use tidings_schemas::time::Instant;

use crate::cutlog::Hash;

const VERSION: u8 = 1;

/// Chunks beyond the base that a manifest names before they are merged into one.
const CHUNKS_MAX: usize = 16;

/// What a manifest says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The epoch at whose end the state was.
    pub epoch: u64,
    /// Its stream time.
    pub now: Instant,
    /// Where each source's partitions stood.
    pub ends: BTreeMap<String, BTreeMap<u32, u64>>,
    /// The topology under which it was written.
    pub topology: Hash,
    /// The tz data.
    pub calendar: Hash,
    /// The rules: a start under others judges again what is parked.
    pub rules: Hash,
    /// The newest mark of each lane partition.
    pub marks: BTreeMap<(String, u32), u64>,
    /// Chunks, oldest first; a newer image lies upon an older one.
    pub chunks: Vec<String>,
}

/// Why a checkpoint or blob cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The store.
    #[error("checkpoint store, object `{name}`: {source}")]
    Store {
        /// The object.
        name: String,
        /// What the store says.
        source: object_store::Error,
    },
    /// The object's bytes.
    #[error("checkpoint store, object `{name}`: {problem}")]
    Damaged {
        /// The object.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

impl CheckpointError {
    /// Whether what was written may be there all the same. Objects are create-only and named by
    /// generation and epoch, so that writing again does no harm.
    #[must_use]
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Store { .. })
    }
}

/// The store of checkpoints and blobs. Calls block: they are made from threads of their own.
#[derive(Clone)]
pub struct Checkpoints {
    store: Arc<dyn ObjectStore>,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl Checkpoints {
    /// Checkpoints in `store`.
    ///
    /// # Errors
    /// When the runtime for the store's calls cannot be started.
    pub fn new(store: Arc<dyn ObjectStore>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self::on(store, Arc::new(runtime)))
    }

    /// Checkpoints in `store`, whose calls run on `runtime`.
    #[must_use]
    pub const fn on(store: Arc<dyn ObjectStore>, runtime: Arc<tokio::runtime::Runtime>) -> Self {
        Self { store, runtime }
    }

    /// Checkpoints in a folder of this machine, which is made where it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn in_folder(folder: &std::path::Path) -> Result<Self, String> {
        let place = |error: &dyn std::fmt::Display| format!("checkpoints in {}: {error}", folder.display());
        std::fs::create_dir_all(folder).map_err(|error| place(&error))?;
        let store = object_store::local::LocalFileSystem::new_with_prefix(folder).map_err(|error| place(&error))?;
        // Without it a checkpoint could count before it is on the disk.
        Self::new(Arc::new(store.with_fsync(true))).map_err(|error| place(&error))
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), CheckpointError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = Path::from(name);
        let put = self.store.put_opts(&path, bytes.into(), options);
        match self.runtime.block_on(put) {
            // The same name means the same content: a repeat after a lost answer.
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(source) => Err(CheckpointError::Store { name: name.to_owned(), source }),
        }
    }

    fn get(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let path = Path::from(name);
        let read = async { self.store.get(&path).await?.bytes().await };
        let bytes = self.runtime.block_on(read);
        bytes.map(|bytes| bytes.to_vec()).map_err(|source| CheckpointError::Store { name: name.to_owned(), source })
    }

    fn decode<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, CheckpointError> {
        let bytes = self.get(name)?;
        let damaged = |problem: String| CheckpointError::Damaged { name: name.to_owned(), problem };
        let body = unframe(VERSION, &bytes).map_err(|error| damaged(error.to_string()))?;
        postcard::from_bytes(body).map_err(|error| damaged(error.to_string()))
    }

    /// Stores what is named by its content; must come before a cut names it.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Hash, CheckpointError> {
        let hash = *blake3::hash(bytes).as_bytes();
        self.put(&blob_name(&hash), bytes.to_vec())?;
        Ok(hash)
    }

    /// What is named by its content.
    ///
    /// # Errors
    /// When it is not there, or not what its name says.
    pub fn blob(&self, hash: &Hash) -> Result<Vec<u8>, CheckpointError> {
        let name = blob_name(hash);
        let bytes = self.get(&name)?;
        if blake3::hash(&bytes).as_bytes() != hash {
            return Err(CheckpointError::Damaged { name, problem: "the content does not match the name".to_owned() });
        }
        Ok(bytes)
    }

    /// Step 2: writes `delta` as a chunk upon `base`, and the manifest; returns its name and content.
    ///
    /// # Errors
    /// When the store cannot be written, or a chunk that is to be merged cannot be read.
    pub fn write(
        &self,
        generation: u64,
        mut manifest: Manifest,
        delta: &Delta,
    ) -> Result<(String, Manifest), CheckpointError> {
        let name = format!("{generation:020}-{:020}", manifest.epoch);
        if !delta.is_empty() {
            let chunk = format!("chunks/{name}");
            self.put(&chunk, encode(delta))?;
            manifest.chunks.push(chunk);
        }
        if manifest.chunks.len() > CHUNKS_MAX {
            // Step 4. A removed key has no image below it any more, so that it can go.
            let mut whole = self.merged(&manifest.chunks)?;
            whole.retain(|_, image| !image.is_gone());
            let chunk = format!("chunks/{name}-whole");
            self.put(&chunk, encode(&whole))?;
            manifest.chunks = vec![chunk];
        }
        let manifest_name = format!("manifests/{name}");
        let bytes = frame(VERSION, &postcard::to_stdvec(&manifest).unwrap_or_default());
        self.put(&manifest_name, bytes)?;
        Ok((manifest_name, manifest))
    }

    /// The manifest of this name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn manifest(&self, name: &str) -> Result<Manifest, CheckpointError> {
        self.decode(name)
    }

    /// The state that a manifest names.
    ///
    /// # Errors
    /// When a chunk cannot be read.
    pub fn state(&self, manifest: &Manifest) -> Result<Delta, CheckpointError> {
        let mut state = self.merged(&manifest.chunks)?;
        state.retain(|_, image| !image.is_gone());
        Ok(state)
    }

    fn merged(&self, chunks: &[String]) -> Result<Delta, CheckpointError> {
        let mut state = Pending::default();
        for chunk in chunks {
            let images: Vec<(Arc<str>, StateKey, Image)> = self.decode(chunk)?;
            state.add(images.into_iter().map(|(operator, key, image)| ((operator, key), image)).collect());
        }
        Ok(state.into_delta())
    }

    /// Step 5: deletes a manifest that is not kept any more, and its chunks that no kept one names.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn delete(&self, name: &str, manifest: &Manifest, kept: &[&Manifest]) -> Result<(), CheckpointError> {
        let kept: BTreeSet<&String> = kept.iter().flat_map(|manifest| &manifest.chunks).collect();
        for chunk in manifest.chunks.iter().filter(|chunk| !kept.contains(chunk)) {
            self.remove(chunk)?;
        }
        self.remove(name)
    }

    fn remove(&self, name: &str) -> Result<(), CheckpointError> {
        match self.runtime.block_on(self.store.delete(&Path::from(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(CheckpointError::Store { name: name.to_owned(), source }),
        }
    }
}

fn blob_name(hash: &Hash) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("blobs/{hex}")
}

fn encode(delta: &Delta) -> Vec<u8> {
    let images: Vec<(&Arc<str>, &StateKey, &Image)> =
        delta.iter().map(|((operator, key), image)| (operator, key, image)).collect();
    frame(VERSION, &postcard::to_stdvec(&images).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidings_schemas::ids::KeyGroup;

    fn key(user: &str) -> (Arc<str>, StateKey) {
        (Arc::from("dedup"), StateKey { group: KeyGroup(3), user: Arc::from(user), subkey: None })
    }

    fn image(byte: u8) -> Image {
        Image { head: Some((1, [byte].as_slice().into())), ..Image::default() }
    }

    fn gone() -> Image {
        Image { body: Some(None), ..Image::default() }
    }

    #[test]
    fn newer_chunks_lie_upon_older_ones_and_merge_without_a_trace() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::in_folder(folder.path()).unwrap();
        let mut manifest = Manifest::default();
        for epoch in 1..=40_u64 {
            let user = format!("u{}", epoch % 3);
            let what = if epoch % 7 == 0 { gone() } else { image(u8::try_from(epoch).unwrap()) };
            manifest.epoch = epoch;
            let (name, written) = checkpoints.write(0, manifest, &Delta::from([(key(&user), what)])).unwrap();
            manifest = checkpoints.manifest(&name).unwrap();
            assert_eq!(manifest, written);
            assert!(manifest.chunks.len() <= CHUNKS_MAX);
        }
        let state = checkpoints.state(&manifest).unwrap();
        let head = |image: &Image| image.head.as_ref().map(|(version, bytes)| (*version, bytes.to_vec()));
        let heads: Vec<_> = state.iter().map(|((_, key), image)| (key.user.to_string(), head(image))).collect();
        let expected =
            [("u0", 39), ("u1", 40), ("u2", 38)].map(|(user, byte)| (user.to_owned(), Some((1, vec![byte]))));
        assert_eq!(heads, expected);
    }

    #[test]
    fn what_a_kept_manifest_names_is_not_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::in_folder(folder.path()).unwrap();
        let (one_name, one) = checkpoints
            .write(0, Manifest { epoch: 1, ..Manifest::default() }, &Delta::from([(key("a"), image(1))]))
            .unwrap();
        let (_, two) =
            checkpoints.write(0, Manifest { epoch: 2, ..one.clone() }, &Delta::from([(key("b"), image(2))])).unwrap();
        checkpoints.delete(&one_name, &one, &[&two]).unwrap();
        checkpoints.delete(&one_name, &one, &[&two]).unwrap();
        assert_eq!(checkpoints.state(&two).unwrap().len(), 2);
        assert!(checkpoints.manifest(&one_name).is_err());
    }

    #[test]
    fn damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::in_folder(folder.path()).unwrap();
        let hash = checkpoints.put_blob(b"topology").unwrap();
        assert_eq!(checkpoints.blob(&hash).unwrap(), b"topology");
        std::fs::write(folder.path().join(blob_name(&hash)), b"something else").unwrap();
        let error = checkpoints.blob(&hash).unwrap_err().to_string();
        assert!(error.contains("the content does not match the name"), "{error}");
    }
}
