//! The record in files: the same rows as lines of JSON, one folder a day.
//!
//! ```text
//! record/day=2026-03-28/notifications.lifecycle-0-00…17-00…42.ndjson   rows, the table's columns by name
//! record/epochs/notifications.lifecycle-0-00…17-00…42.ndjson           which epochs are complete
//! ```
//!
//! Lines of JSON, because ClickHouse (`file('record/day=*/*.ndjson', JSONEachRow)`), DuckDB
//! (`SELECT "at", states FROM read_json('record/day=*/*.ndjson')`) and people read them. A file is named by its batch, written
//! beside its place, synced and renamed: after a crash it is there in full or not at all, and the
//! same batch again finds it. A row that its stage said twice is there twice: read distinct `row_id`,
//! as [`super::index`] does.
//!
//! Files are never joined or removed here: delete the folders of days that are no longer wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tidings_schemas::block::Kind;
use tidings_schemas::lifecycle::{DayText, Row, Stage};

use super::{RecordBatch, RecordStore, StoreError};

/// The folder of what says which epochs are complete.
const EPOCHS: &str = "epochs";
const DAY: &str = "day=";

/// One block of decide, or the word that an epoch is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EpochLine {
    /// The epoch.
    pub epoch: u64,
    /// Whether it says that the epoch is complete.
    pub closed: bool,
    /// The log's partition.
    pub partition: u32,
    /// Tells blocks apart.
    pub checksum: u32,
    /// Rows in the block; where closed, of the whole epoch.
    pub rows: u64,
}

/// Why the files can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        source: io::Error,
    },
    /// A line that is no row.
    #[error("{path}:{line}: expected a row of the record: {source}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The folder of a record: a store for the writer, and its reader.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// The record in `root`, which is made when the first batch is written.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The rows' files, oldest day first.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn row_files(&self) -> Result<BTreeSet<PathBuf>, FilesError> {
        let mut files = BTreeSet::new();
        for folder in entries(&self.root)? {
            if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DAY)) {
                files.extend(finished(&folder)?);
            }
        }
        Ok(files)
    }

    /// The files that say which epochs are complete.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn epoch_files(&self) -> Result<BTreeSet<PathBuf>, FilesError> {
        finished(&self.root.join(EPOCHS))
    }

    /// The rows of one file.
    ///
    /// # Errors
    /// When it can't be read, or a line is no row.
    pub fn rows(path: &Path) -> Result<Vec<Row>, FilesError> {
        lines(path)
    }

    /// The lines of one file of epochs.
    ///
    /// # Errors
    /// When it can't be read, or a line is none.
    pub fn epochs(path: &Path) -> Result<Vec<EpochLine>, FilesError> {
        lines(path)
    }

    fn put<T: Serialize>(&self, folder: &str, name: &str, lines: &[T]) -> io::Result<()> {
        let folder = self.root.join(folder);
        let path = folder.join(format!("{name}.ndjson"));
        if path.exists() {
            return Ok(());
        }
        let is_new = !folder.exists();
        fs::create_dir_all(&folder)?;
        if is_new {
            File::open(&self.root)?.sync_all()?;
        }
        let beside = folder.join(format!(".{name}.tmp"));
        let mut file = BufWriter::new(File::create(&beside)?);
        for line in lines {
            serde_json::to_writer(&mut file, line)?;
            file.write_all(b"\n")?;
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(&folder)?.sync_all()
    }
}

impl RecordStore for Files {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), StoreError> {
        let mut days: BTreeMap<i64, Vec<Row>> = BTreeMap::new();
        let mut epochs = Vec::new();
        for block in &batch.blocks {
            let rows = block.block().decode_rows();
            for row in rows.map_err(|error| StoreError::Refused(format!("offset {}: {error}", block.offset)))? {
                days.entry(row.day).or_default().push(row);
            }
            if block.header.stage == Stage::Decide {
                epochs.push(EpochLine {
                    epoch: block.header.epoch,
                    closed: block.header.kind == Kind::Closed,
                    partition: batch.partition.partition,
                    checksum: block.checksum,
                    rows: block.header.rows,
                });
            }
        }
        let name = batch.name();
        let put = || {
            for (day, rows) in &days {
                self.put(&format!("{DAY}{}", DayText(*day)), &name, rows)?;
            }
            // Last, so that an epoch never looks complete before it is.
            if epochs.is_empty() { Ok(()) } else { self.put(EPOCHS, &name, &epochs) }
        };
        put().map_err(|error: io::Error| StoreError::Unreachable(format!("{}: {error}", self.root.display())))
    }
}

/// What is in `folder`; nothing if it doesn't exist.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, FilesError> {
    let failed = |source| FilesError::Io { path: folder.to_owned(), source };
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Files in `folder` that are in their place, not being written.
fn finished(folder: &Path) -> Result<BTreeSet<PathBuf>, FilesError> {
    let is_finished = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "ndjson");
    Ok(entries(folder)?.into_iter().filter(is_finished).collect())
}

fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, FilesError> {
    let failed = |source| FilesError::Io { path: path.to_owned(), source };
    let mut out = Vec::new();
    for (index, line) in BufReader::new(File::open(path).map_err(failed)?).lines().enumerate() {
        let parsed = serde_json::from_str(&line.map_err(failed)?);
        out.push(parsed.map_err(|source| FilesError::Line { path: path.to_owned(), line: index + 1, source })?);
    }
    Ok(out)
}
