//! The protocol over an ordered table on this machine: what the embedded and the in-memory ledger share.
//!
//! Keys: `b` lane `0` bucket number `delivery` for entries in buckets, `o` delivery for those on their
//! own, `x` instant `what` for what goes at that instant, `i` for the incarnation. One lock orders the
//! batches; what is due to go is swept with the next [`TableLedger::passed`].

use std::sync::{Mutex, PoisonError};

use tidings_schemas::time::Instant;

use super::{
    Attempt, Bucket, Claim, Claimed, Entry, Incarnation, Key, LedgerError, PASSED_KEPT, Phase, Settle, bucket_number,
    buckets_passed, own_until,
};
use crate::log::TopicPartition;
use crate::table::{Change, Table};

const INCARNATION: &[u8] = b"i";

/// A ledger over `T`.
pub(super) struct TableLedger<T> {
    table: T,
    lock: Mutex<()>,
}

impl<T: Table> TableLedger<T> {
    pub(super) const fn new(table: T) -> Self {
        Self { table, lock: Mutex::new(()) }
    }

    #[cfg(test)]
    pub(super) const fn table(&self) -> &T {
        &self.table
    }

    pub(super) fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(word) = self.get(INCARNATION)? {
            return Ok(Incarnation(word.into()));
        }
        let founded = Incarnation::new("", now);
        self.write(vec![(INCARNATION.to_vec(), Some(founded.0.as_bytes().to_vec()))])?;
        Ok(founded)
    }

    pub(super) fn claim(&self, by: &Incarnation, claims: &[Claim], now: Instant) -> Result<Vec<Claimed>, LedgerError> {
        self.change(by, |changes| {
            let mut answers = Vec::with_capacity(claims.len());
            for claim in claims {
                let (home, found) = self.find(&claim.key, changes)?;
                let (before, mut attempts) = match found {
                    None => (claim.attempts_before, Vec::new()),
                    Some(entry) => {
                        let newest = entry.newest();
                        let free = match &newest.phase {
                            Phase::Pending { owner, .. } if *owner == claim.owner => {
                                answers.push(Claimed::Granted(entry));
                                continue;
                            }
                            Phase::Pending { lease_until: until, .. } | Phase::Scheduled { due: until, .. } => {
                                *until <= now
                            }
                            Phase::Sent { .. } | Phase::Dead { .. } => false,
                        };
                        if !free {
                            answers.push(Claimed::Met(entry));
                            continue;
                        }
                        (newest.number.max(claim.attempts_before), entry.0)
                    }
                };
                let phase = Phase::Pending { owner: claim.owner.clone(), lease_until: claim.lease_until };
                attempts.push(Attempt { number: before + 1, phase });
                let entry = Entry(attempts);
                changes.push((home, Some(entry.text().into_bytes())));
                answers.push(Claimed::Granted(entry));
            }
            Ok(answers)
        })
    }

    pub(super) fn settle(&self, by: &Incarnation, settles: &[Settle], now: Instant) -> Result<Vec<bool>, LedgerError> {
        self.change(by, |changes| {
            let mut answers = Vec::with_capacity(settles.len());
            for settle in settles {
                let (home, found) = self.find(&settle.key, changes)?;
                let mut attempts = match found {
                    None if settle.refound => Vec::new(),
                    None => {
                        answers.push(false);
                        continue;
                    }
                    Some(entry) => {
                        let newest = entry.newest();
                        let own = matches!(&newest.phase, Phase::Pending { owner, .. } if *owner == settle.owner);
                        if !own {
                            answers.push(settle.attempt.as_ref() == Some(newest));
                            continue;
                        }
                        let mut attempts = entry.0;
                        attempts.pop();
                        attempts
                    }
                };
                attempts.extend(settle.attempt.clone());
                if attempts.is_empty() {
                    changes.push((home, None));
                    answers.push(true);
                    continue;
                }
                let own = own_key(&settle.key);
                let home = if settle.keep && home != own {
                    changes.push((home, None));
                    own.clone()
                } else {
                    home
                };
                let entry = Entry(attempts);
                if home == own && entry.is_settled() {
                    changes.push((expiry_key(own_until(now), &own), Some(Vec::new())));
                }
                changes.push((home, Some(entry.text().into_bytes())));
                answers.push(true);
            }
            Ok(answers)
        })
    }

    pub(super) fn look(&self, by: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        self.change(by, |changes| keys.iter().map(|key| self.find(key, changes).map(|(_, entry)| entry)).collect())
    }

    pub(super) fn passed(
        &self,
        by: &Incarnation,
        lane: &TopicPartition,
        said_through: u64,
        now: Instant,
    ) -> Result<(), LedgerError> {
        self.change(by, |changes| {
            // A bucket is marked as going once: its own first key says which ones there are.
            let (mut from, to) = (bucket_key(lane, 0), bucket_key(lane, buckets_passed(said_through)));
            while let Some((key, _)) = self.table.scan(&from, &to, 1).map_err(unreachable)?.pop() {
                let bucket = key[..to.len()].to_vec();
                let going = going_key(&bucket);
                if self.table.get(&going).map_err(unreachable)?.is_none() {
                    changes.push((expiry_key(now.after(PASSED_KEPT), &bucket), Some(Vec::new())));
                    changes.push((going, Some(Vec::new())));
                }
                from = successor(&bucket);
            }
            let due = expiry_key(Instant(now.0 + 1), b"");
            for (expiry, _) in self.table.scan(b"x", &due, SWEPT_MAX).map_err(unreachable)? {
                let what = &expiry[9..];
                for (key, _) in self.table.scan(what, &successor(what), usize::MAX).map_err(unreachable)? {
                    changes.push((key, None));
                }
                changes.push((going_key(what), None));
                changes.push((expiry, None));
            }
            Ok(())
        })
    }

    /// Runs `decide` under the lock and writes what it wants changed in one atomic, durable write.
    fn change<R>(
        &self,
        by: &Incarnation,
        decide: impl FnOnce(&mut Vec<Change>) -> Result<R, LedgerError>,
    ) -> Result<R, LedgerError> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if self.get(INCARNATION)?.as_deref() != Some(&*by.0) {
            return Err(LedgerError::Lost);
        }
        let mut changes = Vec::new();
        let answer = decide(&mut changes)?;
        if !changes.is_empty() {
            self.write(changes)?;
        }
        Ok(answer)
    }

    /// The entry, where it is or where it belongs; sees what this batch is about to change.
    fn find(&self, key: &Key, changes: &[Change]) -> Result<(Vec<u8>, Option<Entry>), LedgerError> {
        let own = own_key(key);
        let home = match &key.bucket {
            Bucket::Lane { lane, epoch } => {
                let mut home = bucket_key(lane, bucket_number(*epoch));
                home.extend_from_slice(&key.delivery.0);
                home
            }
            Bucket::Own => own.clone(),
        };
        for place in [&home, &own] {
            let text = match changes.iter().rev().find(|(changed, _)| changed == place) {
                Some((_, value)) => value.clone().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
                None => self.get(place)?,
            };
            if let Some(text) = text {
                return Ok((place.clone(), Some(Entry::parse(&text)?)));
            }
        }
        Ok((home, None))
    }

    fn get(&self, key: &[u8]) -> Result<Option<String>, LedgerError> {
        let bytes = self.table.get(key).map_err(unreachable)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn write(&self, changes: Vec<Change>) -> Result<(), LedgerError> {
        self.table.write(changes).map_err(|error| LedgerError::Ambiguous(error.to_string()))
    }
}

/// Dates swept in one go: the rest waits for the next mark, so that no commit waits for a long sweep.
const SWEPT_MAX: usize = 256;

fn unreachable(error: crate::table::TableError) -> LedgerError {
    LedgerError::Unreachable(error.to_string())
}

fn own_key(key: &Key) -> Vec<u8> {
    [b"o", &key.delivery.0[..]].concat()
}

fn bucket_key(lane: &TopicPartition, number: u64) -> Vec<u8> {
    [b"b", lane.to_string().as_bytes(), b"\0", &number.to_be_bytes()].concat()
}

fn going_key(bucket: &[u8]) -> Vec<u8> {
    [b"g", bucket].concat()
}

fn expiry_key(at: Instant, what: &[u8]) -> Vec<u8> {
    [b"x", &at.0.unsigned_abs().to_be_bytes()[..], what].concat()
}

/// The first key that does not start with `prefix`.
fn successor(prefix: &[u8]) -> Vec<u8> {
    let mut next = prefix.to_vec();
    while let Some(last) = next.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            break;
        }
        next.pop();
    }
    next
}
