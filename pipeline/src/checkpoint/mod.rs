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
//! 4. When there are more than a few chunks, the newest of them are merged into one ([`Checkpoints::merge`]),
//!    by a part of its own, while checkpoints go on; a later manifest names it in their place. Chunks grow
//!    older and larger: each merge takes those that are not much larger than what lies upon them, so that
//!    an image is rewritten a few times and not with every merge.
//! 5. When a checkpoint counts, the third-newest is deleted: its manifest, and its chunks that no kept one
//!    names ([`Checkpoints::delete`]).
//! 6. A few times in a generation, what earlier ones left behind when they died is deleted
//!    ([`Checkpoints::sweep`]): objects of epochs before the second-newest counted checkpoint, of earlier
//!    generations, that no kept manifest names.
//!
//! # Invariants
//! - Objects are never written twice: names carry generation and epoch.
//! - Each object says whether it is whole: chunks and manifests by a checksum, blobs by their name.
//! - Nothing is deleted because a listing shows it, but by its epoch: a generation that still writes, or
//!   that starts from what is kept, names nothing older than that but what the kept manifests name.
//!
//! # If it dies at step n
//! 1. Nothing durable is lost: the deltas come again by replay.
//! 2. A chunk or manifest without its entry in the log is never read. It stays as garbage of a few
//!    megabytes; a later generation has other names.
//! 3. The same; the newest counted checkpoint is an older one, and more is replayed.
//! 4. The merged chunk is named by nobody yet, and stays as garbage until step 6.
//! 5. What is left is garbage until step 6. Deleting again what is gone is no error.
//! 6. The next generation does it.
//!
//! # Not promised
//! That the newest checkpoint is readable: recovery falls back to the second-newest, which is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use tidings_operators::harness::delta::{Delta, Pending};
use tidings_schemas::codec::{frame, frame_with, unframe};
use tidings_schemas::time::Instant;

use crate::cutlog::Hash;

const VERSION: u8 = 1;

/// Chunks that a manifest names before the newest are merged. A start reads each of them once.
pub(crate) const CHUNKS_MERGED_AT: usize = 8;

/// Chunks that a merge takes at least.
const MERGED_MIN: usize = 4;

/// A merge takes an older chunk too if it is at most so many times as large as all that lies upon it.
const MERGED_RATIO: u64 = 2;

/// Chunks that became one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// These, which follow each other.
    pub of: Vec<String>,
    /// Stand in this one.
    pub into: String,
}

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
    /// When the store cannot be written.
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
        let manifest_name = format!("manifests/{name}");
        let bytes = frame(VERSION, &postcard::to_stdvec(&manifest).unwrap_or_default());
        self.put(&manifest_name, bytes)?;
        Ok((manifest_name, manifest))
    }

    /// Step 4: merges the newest of `chunks`, which a manifest of `generation` and `epoch` names; none
    /// while `goes_on` says no. Whoever merges has one merge under way.
    ///
    /// # Errors
    /// When a chunk cannot be read, or the store cannot be written.
    pub fn merge(
        &self,
        generation: u64,
        epoch: u64,
        chunks: &[String],
        goes_on: impl Fn() -> bool,
    ) -> Result<Option<Merged>, CheckpointError> {
        let mut sizes = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            sizes.push(self.size(chunk)?);
        }
        let first = merged_from(&sizes);
        let mut images = Pending::default();
        for chunk in &chunks[first..] {
            if !goes_on() {
                return Ok(None);
            }
            images.add(self.chunk(chunk)?);
        }
        let mut images = images.into_delta();
        if first == 0 {
            // Nothing lies below: what is gone leaves no trace.
            images = images.without_gone();
        }
        let into = format!("chunks/{generation:020}-{epoch:020}-merged");
        self.put(&into, encode(&images))?;
        Ok(Some(Merged { of: chunks[first..].to_vec(), into }))
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
        let chunks: Vec<Delta> = manifest.chunks.iter().map(|chunk| self.chunk(chunk)).collect::<Result<_, _>>()?;
        Ok(Delta::merged(&chunks))
    }

    fn chunk(&self, name: &str) -> Result<Delta, CheckpointError> {
        let bytes = self.get(name)?;
        let damaged = |problem: String| CheckpointError::Damaged { name: name.to_owned(), problem };
        let body = unframe(VERSION, &bytes).map_err(|error| damaged(error.to_string()))?;
        Delta::from_chunk(body).map_err(damaged)
    }

    fn size(&self, name: &str) -> Result<u64, CheckpointError> {
        let head = self.runtime.block_on(self.store.head(&Path::from(name)));
        head.map(|head| head.size).map_err(|source| CheckpointError::Store { name: name.to_owned(), source })
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

    /// Step 6: deletes what generations before `generation` left of epochs before the older of `kept`,
    /// which are the two newest checkpoints that count, by name; says how many objects.
    ///
    /// # Errors
    /// When the store cannot be listed or written.
    pub fn sweep(&self, generation: u64, kept: &[(String, Manifest)]) -> Result<usize, CheckpointError> {
        let Some(oldest) = kept.iter().map(|(_, manifest)| manifest.epoch).min() else { return Ok(0) };
        let chunks = kept.iter().flat_map(|(_, manifest)| &manifest.chunks);
        let needed: BTreeSet<&String> = kept.iter().map(|(name, _)| name).chain(chunks).collect();
        let mut swept = 0;
        for folder in ["chunks", "manifests"] {
            let listed = self.runtime.block_on(self.store.list_with_delimiter(Some(&Path::from(folder))));
            let listed = listed.map_err(|source| CheckpointError::Store { name: folder.to_owned(), source })?;
            for name in listed.objects.into_iter().map(|object| object.location.to_string()) {
                let left = made_by(&name).is_some_and(|(by, epoch)| by < generation && epoch < oldest);
                if left && !needed.contains(&name) {
                    self.remove(&name)?;
                    swept += 1;
                }
            }
        }
        Ok(swept)
    }

    fn remove(&self, name: &str) -> Result<(), CheckpointError> {
        match self.runtime.block_on(self.store.delete(&Path::from(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(CheckpointError::Store { name: name.to_owned(), source }),
        }
    }
}

/// The generation and the epoch that a chunk's or manifest's name carries.
fn made_by(name: &str) -> Option<(u64, u64)> {
    let mut parts = name.rsplit('/').next()?.split('-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The first of the chunks that a merge takes, by their sizes: it takes all from there on.
fn merged_from(sizes: &[u64]) -> usize {
    let (mut first, mut sum) = (sizes.len(), 0);
    while first > 0 && (sizes.len() - first < MERGED_MIN || sizes[first - 1] <= MERGED_RATIO * sum) {
        first -= 1;
        sum += sizes[first];
    }
    first
}

fn blob_name(hash: &Hash) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("blobs/{hex}")
}

fn encode(delta: &Delta) -> Vec<u8> {
    frame_with(VERSION, delta.chunk_bytes(), |chunk| delta.put_chunk(chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidings_operators::harness::table::{Image, StateKey};
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
            if manifest.chunks.len() > CHUNKS_MERGED_AT {
                let Merged { of, into } = checkpoints.merge(0, epoch, &manifest.chunks, || true).unwrap().unwrap();
                assert!(of.len() >= MERGED_MIN && manifest.chunks.ends_with(&of));
                manifest.chunks.truncate(manifest.chunks.len() - of.len());
                manifest.chunks.push(into);
            }
        }
        assert_eq!(checkpoints.merge(0, 41, &manifest.chunks, || false).unwrap(), None, "a stop is heard");
        let state = checkpoints.state(&manifest).unwrap();
        let head = |image: &Image| image.head.as_ref().map(|(version, bytes)| (*version, bytes.to_vec()));
        let heads: Vec<_> = state.iter().map(|((_, key), image)| (key.user.to_string(), head(&image))).collect();
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
    fn a_merge_takes_what_is_not_much_larger_than_what_lies_upon_it() {
        for (sizes, first) in [
            (&[1, 1, 1, 1][..], 0),
            (&[900, 100, 40, 1, 1, 1, 1], 3),
            (&[900, 100, 40, 20, 9, 1, 1, 1, 1], 5),
            (&[900, 100, 18, 8, 1, 1, 1, 1], 2),
            (&[500, 200, 90, 30, 10, 10, 5, 5], 0),
            (&[2], 0),
            (&[], 0),
        ] {
            assert_eq!(merged_from(sizes), first, "{sizes:?}");
        }
    }

    #[test]
    fn what_dead_generations_left_is_swept_by_epoch_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::in_folder(folder.path()).unwrap();
        let write = |generation, epoch, upon: &Manifest| {
            let manifest = Manifest { epoch, chunks: upon.chunks.clone(), ..Manifest::default() };
            checkpoints.write(generation, manifest, &Delta::from([(key("a"), image(1))])).unwrap()
        };
        let nothing = Manifest::default();
        let (kept_base, base) = write(1, 2, &nothing);
        // Dead before it counted; merged and not named; of the epoch that is kept, and of a later one.
        let (dead, _) = write(1, 4, &base);
        checkpoints.merge(1, 4, &base.chunks, || true).unwrap();
        let (second, older) = write(3, 5, &base);
        let (_, same) = write(2, 5, &nothing);
        let (ahead, _) = write(2, 8, &nothing);
        // This generation's own, and what is of no name that we give.
        let (own, _) = write(9, 3, &nothing);
        std::fs::write(folder.path().join("chunks/readme"), "mine").unwrap();
        let (newest, newer) = write(9, 7, &older);
        let kept = [(newest.clone(), newer.clone()), (second.clone(), older.clone())];
        assert_eq!(
            checkpoints.sweep(9, &kept).unwrap(),
            4,
            "the first manifest, the dead one, its chunk, the merged one"
        );
        assert_eq!(checkpoints.sweep(9, &kept).unwrap(), 0);
        for gone in [&kept_base, &dead] {
            assert!(checkpoints.manifest(gone).is_err(), "{gone}");
        }
        for there in [&second, &ahead, &own, &newest] {
            assert!(checkpoints.manifest(there).is_ok(), "{there}");
        }
        for manifest in [&newer, &older, &same] {
            assert_eq!(checkpoints.state(manifest).unwrap().len(), 1);
        }
        assert!(folder.path().join("chunks/readme").exists());
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
        let delta = Delta::from([(key("a"), image(1))]);
        let (name, manifest) = checkpoints.write(0, Manifest { epoch: 1, ..Manifest::default() }, &delta).unwrap();
        let chunk = &manifest.chunks[0];
        let mut bytes = std::fs::read(folder.path().join(chunk)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(folder.path().join(chunk), bytes).unwrap();
        let error = checkpoints.state(&manifest).unwrap_err().to_string();
        assert!(error.starts_with(&format!("checkpoint store, object `{chunk}`: checksum")), "{error}");
        std::fs::remove_file(folder.path().join(chunk)).unwrap();
        let error = checkpoints.state(&manifest).unwrap_err().to_string();
        assert!(error.starts_with(&format!("checkpoint store, object `{chunk}`: ")), "{error}");
        std::fs::write(folder.path().join(&name), b"").unwrap();
        let error = checkpoints.manifest(&name).unwrap_err().to_string();
        assert!(error.starts_with(&format!("checkpoint store, object `{name}`: ")), "{error}");
    }
}
