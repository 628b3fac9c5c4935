//! The record in memory: the rows of a record in files, found by any of their ids.
//!
//! For `explain`, and for the demo's table of fates. It holds all rows it was given, about 1 KB each:
//! meant for what one machine says in a few days, not for what ClickHouse is there for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tidings_schemas::ids::{DeliveryId, EventId, GroupId, IntentId, InvalidId, LegId, NotificationId, RowId};
use tidings_schemas::lifecycle::{Row, Stage, Unit};

use super::fates::Fates;
use super::files::{EpochLine, Files, FilesError};

/// Rows by their ids. A repeated row is there once, as it was told first.
#[derive(Debug, Default)]
pub struct RecordIndex {
    rows: BTreeMap<RowId, Row>,
    /// Ids of all kinds: they are hashes with the kind inside, so kinds never meet.
    by_id: BTreeMap<[u8; 16], BTreeSet<RowId>>,
    by_user: BTreeMap<String, BTreeSet<RowId>>,
    epochs: BTreeSet<EpochLine>,
    read: BTreeSet<PathBuf>,
}

impl RecordIndex {
    /// Adds what was written to `files` since the last call. Returns how many rows are new.
    ///
    /// # Errors
    /// When a file can't be read; the others stay unread for the next call.
    pub fn refresh(&mut self, files: &Files) -> Result<usize, FilesError> {
        // Epochs first: a file of rows that comes meanwhile belongs to an epoch not yet seen complete.
        for path in files.epoch_files()?.difference(&self.read.clone()) {
            self.epochs.extend(Files::epochs(path)?);
            self.read.insert(path.clone());
        }
        let before = self.rows.len();
        for path in files.row_files()?.difference(&self.read.clone()) {
            Files::rows(path)?.into_iter().for_each(|row| self.add(row));
            self.read.insert(path.clone());
        }
        Ok(self.rows.len() - before)
    }

    /// Adds one row.
    pub fn add(&mut self, row: Row) {
        let id = row.row_id;
        if self.rows.get(&id).is_some_and(|known| known.at <= row.at) {
            return;
        }
        let ids = [row.event.0, row.intent.0, row.notification.0, row.group.0, row.leg.0, row.delivery.0, row.row_id.0];
        for named in ids.into_iter().filter(|named| *named != [0; 16]) {
            self.by_id.entry(named).or_default().insert(id);
        }
        self.by_user.entry(row.user.clone()).or_default().insert(id);
        self.rows.insert(id, row);
    }

    /// Adds what a block of decide says about its epoch.
    pub fn add_epoch(&mut self, line: EpochLine) {
        self.epochs.insert(line);
    }

    /// All rows, by row id.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// The newest epoch up to which nothing is missing.
    #[must_use]
    pub fn closed_epoch(&self) -> Option<u64> {
        let mut epochs: BTreeMap<u64, (Option<u64>, u64)> = BTreeMap::new();
        for line in &self.epochs {
            let (closed, found) = epochs.entry(line.epoch).or_default();
            if line.closed { *closed = (*closed).max(Some(line.rows)) } else { *found += line.rows }
        }
        let mut newest: Option<u64> = None;
        for (epoch, (closed, found)) in epochs {
            let follows = newest.is_none_or(|newest| epoch == newest + 1);
            if !follows || closed.is_none_or(|expected| found < expected) {
                break;
            }
            newest = Some(epoch);
        }
        newest
    }

    /// Every unit's fate, as of the newest closed epoch.
    #[must_use]
    pub fn fates(&self) -> Fates {
        let closed = self.closed_epoch();
        let counts = |row: &&Row| row.stage != Stage::Decide || closed.is_some_and(|closed| row.epoch <= closed);
        Fates::of(self.rows.values().filter(counts))
    }

    /// Where it went and why: what the record says of the event, intent, notification, group, leg or
    /// delivery `id`, and of the legs and deliveries that came of it, in order.
    ///
    /// # Errors
    /// When `id` is not the text of an id.
    pub fn history(&self, id: &str) -> Result<Vec<&Row>, InvalidId> {
        let wanted = match id.get(..2) {
            Some(IntentId::PREFIX) => id.parse::<IntentId>()?.0,
            Some(NotificationId::PREFIX) => id.parse::<NotificationId>()?.0,
            Some(GroupId::PREFIX) => id.parse::<GroupId>()?.0,
            Some(LegId::PREFIX) => id.parse::<LegId>()?.0,
            Some(DeliveryId::PREFIX) => id.parse::<DeliveryId>()?.0,
            _ => id.parse::<EventId>()?.0,
        };
        let hits: Vec<&Row> = self.named(wanted).collect();
        let mut related: BTreeSet<RowId> = hits.iter().map(|row| row.row_id).collect();
        for row in hits {
            for came_of_it in [row.notification.0, row.group.0].into_iter().filter(|named| *named != [0; 16]) {
                related.extend(self.named(came_of_it).filter(|row| row.unit != Unit::Event).map(|row| row.row_id));
            }
        }
        Ok(self.in_order(&related))
    }

    /// All that the record says of a user, in order.
    #[must_use]
    pub fn of_user(&self, user: &str) -> Vec<&Row> {
        self.by_user.get(user).map_or_else(Vec::new, |rows| self.in_order(rows))
    }

    fn named(&self, id: [u8; 16]) -> impl Iterator<Item = &Row> {
        self.by_id.get(&id).into_iter().flatten().filter_map(|row| self.rows.get(row))
    }

    fn in_order(&self, ids: &BTreeSet<RowId>) -> Vec<&Row> {
        let mut rows: Vec<&Row> = ids.iter().filter_map(|id| self.rows.get(id)).collect();
        rows.sort_by_key(|row| (row.at, row.stage, row.unit, row.attempt, row.row_id));
        rows
    }
}
