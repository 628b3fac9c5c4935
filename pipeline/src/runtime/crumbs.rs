//! Where a process died that could not say so: an abort, an endless loop that the watchdog ended, memory
//! that ran out.
//!
//! # Protocol
//! 1. A death in ordinary work leaves nothing behind.
//! 2. The replay of epochs of which nothing was said is *careful*: the place of each call is written into a
//!    file, the *crumb*, before the call is made. Whoever starts next and finds one knows where its
//!    predecessor died, and counts.
//! 3. It replays by itself on one worker, so that the crumb is of the call that kills and not of its
//!    neighbour's, and goes on with all of them once that went well.
//! 4. After two deaths at one place the call is left out, as one that panics is.
//!
//! The file needs no more durability than a process's own death: it is not synced.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidings_operators::harness::aside::{Crumbs as Watch, Killed, Skip};
use tidings_operators::harness::ordinal::Ordinal;
use tidings_schemas::codec::{frame, unframe};

const VERSION: u8 = 1;

/// Deaths at one place after which the call is left out: a machine that fails by itself does not do so twice
/// at the same call.
const DEATHS: u32 = 2;

/// What is kept of the deaths of earlier processes: files of one folder.
#[derive(Clone, Debug)]
pub struct Crumbs {
    folder: PathBuf,
}

/// A call: its epoch, its ordinal, the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    epoch: u64,
    ordinal: Ordinal,
    operator: Option<u16>,
}

/// What the last death says to whoever starts now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// Nobody died in a careful replay.
    Nothing,
    /// Somebody did.
    Died,
    /// Two died of this.
    Condemned(Box<Killed>),
}

impl Crumbs {
    /// Crumbs in this folder, which is there.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn crumb(&self) -> PathBuf {
        self.folder.join("crumb")
    }

    fn deaths(&self) -> PathBuf {
        self.folder.join("deaths")
    }

    /// Takes the crumb of an earlier process up, and counts its death.
    pub(crate) fn last(&self) -> Last {
        let before: Option<(Place, u32)> = read(&self.deaths());
        let crumb: Option<Place> = read(&self.crumb());
        let _ = std::fs::remove_file(self.crumb());
        let Some(place) = crumb else { return if before.is_some() { Last::Died } else { Last::Nothing } };
        let count = 1 + before.filter(|(of, _)| *of == place).map_or(0, |(_, count)| count);
        let Place { epoch, ordinal, operator } = place.clone();
        tracing::warn!(epoch, count, "an earlier process died in the middle of a call; this one replays with care");
        if let Err(error) = std::fs::write(self.deaths(), bytes(&(place, count))) {
            tracing::warn!(%error, "that cannot be noted, so that it is not counted");
        }
        if count < DEATHS {
            return Last::Died;
        }
        let problem = "it killed the whole process twice: an abort, an endless loop, or memory that ran out";
        Last::Condemned(Box::new(Killed { epoch, skip: Skip::of(ordinal, operator, problem.to_owned()) }))
    }

    /// Forgets all deaths: who was careful lived.
    pub(crate) fn clear(&self) {
        for file in [self.crumb(), self.deaths()] {
            if let Err(error) = std::fs::remove_file(&file)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, file = %file.display(), "it cannot be deleted; the next start replays with care");
            }
        }
    }

    /// Writes the places of calls from now on.
    pub(crate) fn careful(&self) -> io::Result<Careful> {
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(self.crumb())?;
        Ok(Careful(Arc::new(Writer(file))))
    }
}

/// A careful replay.
#[derive(Clone, Debug)]
pub(crate) struct Careful(Arc<Writer>);

impl Careful {
    pub(crate) fn watch(&self) -> Arc<dyn Watch> {
        Arc::<Writer>::clone(&self.0)
    }

    /// An epoch is over, and nobody died.
    pub(crate) fn passed(&self) {
        let _ = self.0.0.set_len(0);
    }
}

#[derive(Debug)]
struct Writer(File);

impl Watch for Writer {
    fn at(&self, epoch: u64, ordinal: &Ordinal, operator: Option<usize>) {
        let operator = operator.and_then(|number| u16::try_from(number).ok());
        // Without a crumb there is one death more to count, and nothing else.
        let _ = self.0.write_all_at(&bytes(&Place { epoch, ordinal: ordinal.clone(), operator }), 0);
    }
}

/// Length and frame: what is longer from an earlier write follows behind.
fn bytes(what: &impl Serialize) -> Vec<u8> {
    let frame = frame(VERSION, &postcard::to_stdvec(what).unwrap_or_default());
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], &frame].concat()
}

/// What stands in the file; nothing where there is none, or where it was not written to its end.
fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Option<T> {
    let bytes = std::fs::read(file).ok()?;
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let frame = rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    postcard::from_bytes(unframe(VERSION, frame).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use tidings_operators::harness::feed::Lot;

    use super::*;

    #[test]
    fn two_deaths_at_one_place_condemn_it_and_others_begin_anew() {
        let folder = tempfile::tempdir().unwrap();
        let crumbs = Crumbs::in_folder(folder.path());
        let record = |offset| Ordinal::record(Lot { source: 1, partition: 2 }, offset);
        let dies = |long: bool, offset: u64| {
            let careful = crumbs.careful().unwrap();
            // A longer place before it leaves bytes behind it.
            let before = if long { record(1).hop(1, 1, 1).hop(2, 1, 1) } else { record(1) };
            careful.watch().at(9, &before, Some(3));
            careful.watch().at(9, &record(offset), None);
            crumbs.last()
        };
        assert_eq!(crumbs.last(), Last::Nothing);
        assert_eq!(dies(true, 7), Last::Died);
        // One that is killed before its first call.
        assert_eq!(crumbs.last(), Last::Died);
        assert_eq!(dies(false, 8), Last::Died, "another place");
        let Last::Condemned(killed) = dies(true, 8) else { panic!("two deaths at one place") };
        assert_eq!((killed.epoch, killed.skip.record().unwrap().1), (9, 8));
        crumbs.clear();
        assert_eq!(dies(false, 8), Last::Died, "it begins anew");
        crumbs.clear();
        crumbs.careful().unwrap().watch().at(9, &record(8), None);
        crumbs.careful().unwrap().passed();
        assert_eq!(crumbs.last(), Last::Nothing, "who lived left nothing");
    }
}
