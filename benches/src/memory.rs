//! Bytes that a key of state takes in a worker's memory, operator by operator.
//!
//! What the process holds (`/proc/self/statm`) is read before and after a million keys were made by ordinary
//! epochs through a chain of that operator, and what it needs to be reached: tables, indexes, timers, users, and
//! what the allocator wastes are all in it. The first epochs come before the first reading, so that buffers
//! and tables of a constant size are not. Each kind is measured in a process of its own, because memory that one
//! gave back the next would be given.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tidings_operators::harness::chain::Block;
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::ingest::{Path, ingest};
use tidings_operators::script;
use tidings_schemas::time::Instant;

/// Keys whose memory is measured.
pub const KEYS: u64 = 1_000_000;

/// Keys that are made before.
const KEYS_BEFORE: u64 = 20_000;

/// Records of one epoch.
const PER_EPOCH: u64 = 10_000;

/// Keys of one user, where a user has several.
const KEYS_OF_USER: u64 = 8;

/// Sends that a counter of a limit of ten remembers.
const SENDS: u64 = 3;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// A wish that `dedup` remembers: eight of a user.
    Dedup,
    /// A counter of `rate_limit`, one of a user, that remembers three sends of ten.
    RateLimit,
    /// An open window of `aggregate` with one event of some 300 bytes of JSON: eight of a user.
    Aggregate,
    /// A user with a profile that says nothing.
    DefaultProfile,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Dedup, Self::RateLimit, Self::Aggregate, Self::DefaultProfile];

    /// The name in the figures, and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dedup => "dedup",
            Self::RateLimit => "rate_limit",
            Self::Aggregate => "aggregate",
            Self::DefaultProfile => "default_profile",
        }
    }

    fn operators(self) -> Vec<(&'static str, Value, Option<&'static str>)> {
        match self {
            Self::Dedup => vec![("dedup", json!({}), None)],
            Self::RateLimit => vec![
                ("preferences", json!({}), None),
                ("route", json!({}), None),
                ("rate_limit", json!({"levels": [{"per": ["channel"], "in_app": "10/h"}]}), None),
            ],
            Self::Aggregate => vec![("aggregate", json!({}), None)],
            Self::DefaultProfile => vec![("preferences", json!({}), None)],
        }
    }

    /// Records that make one key.
    const fn records_of_key(self) -> u64 {
        if matches!(self, Self::RateLimit) { SENDS } else { 1 }
    }

    /// The source's number, the record's key, and its value.
    fn record(self, key: u64, again: u64) -> (u16, String, String) {
        let user = match self {
            Self::Dedup | Self::Aggregate => format!("u{:07}", key / KEYS_OF_USER),
            Self::RateLimit | Self::DefaultProfile => format!("u{key:07}"),
        };
        let value = match self {
            Self::Dedup | Self::Aggregate => format!(
                r#"{{"id":"e{key:010}","type":"like","user_id":"{user}","actor":{{"id":"u{key:07}","name":"Ada Byron"}},"object":{{"id":"o{key:08}","kind":"photo"}},"data":{{"order_id":"n{key:09}","url":"https://example.com/o/{key:08}","image":"https://cdn.example.com/{key:08}/t.jpg"}}}}"#
            ),
            Self::RateLimit => {
                format!(r#"{{"id":"e{key}-{again}","type":"like","user_id":"{user}","channels":["in_app"]}}"#)
            }
            Self::DefaultProfile => return (2, user, "{}".to_owned()),
        };
        (0, user, value)
    }
}

/// Bytes that this process holds in memory.
pub(crate) fn resident_bytes() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("only Linux says what a process holds")?;
    let pages: u64 = statm.split(' ').nth(1).context("no resident pages in /proc/self/statm")?.parse()?;
    // The kernel counts in pages of four kilobytes on every machine that this is built for.
    Ok(pages * 4096)
}

/// Makes the keys, in this process; returns the bytes of each.
///
/// # Errors
/// When the operators do not keep a key for each.
pub fn measure(kind: Kind, keys: u64) -> Result<f64> {
    let wiring = script::straight(&kind.operators());
    let rules = Arc::new(script::rules());
    let mut chain = wiring.chain(Path::Decide)?;
    let now: Instant = "2026-06-01T12:00:00Z".parse()?;
    let (mut epoch, mut images) = (0, 0);
    let mut make = |keys: std::ops::Range<u64>| {
        for again in 0..kind.records_of_key() {
            let mut next = keys.start;
            while next < keys.end {
                let end = keys.end.min(next + PER_EPOCH);
                epoch += 1;
                let mut block = None;
                for key in next..end {
                    let (source, name, value) = kind.record(key, again);
                    let lot = Lot { source, partition: 0 };
                    let offset = key * kind.records_of_key() + again;
                    let (key, value) = (Some(name.into()), Some(value.into()));
                    let record = RawRecord { offset, key, value, headers: Vec::new(), timestamp: now };
                    let arrived = ingest(&wiring.sources[usize::from(source)], lot, &record, &rules, Path::Decide);
                    let block: &mut Block = block.get_or_insert_with(|| Block { lot, target: 0, records: Vec::new() });
                    block.records.push(arrived);
                }
                let output = chain.epoch(epoch, now, &rules, block.into_iter().collect());
                images += output.delta.len() as u64;
                next = end;
            }
        }
    };
    make(0..KEYS_BEFORE);
    let before = resident_bytes()?;
    make(KEYS_BEFORE..KEYS_BEFORE + keys);
    let after = resident_bytes()?;
    ensure!(images == (KEYS_BEFORE + keys) * kind.records_of_key(), "{images} images of {keys} keys");
    // Timers stand: none of these keys is forgotten within the hour.
    let quiet = chain.next_timer().is_none_or(|at| at > now);
    ensure!(quiet && now.after(Duration::from_secs(1)) > now, "a key is due already");
    drop(chain);
    Ok(after.saturating_sub(before) as f64 / keys as f64)
}

/// Measures in a process of its own: `program` is to print what [`measure`] returns.
///
/// # Errors
/// When it does not.
pub fn measure_apart(program: &mut std::process::Command) -> Result<f64> {
    let output = program.output().context("cannot start the measuring process")?;
    if !output.status.success() {
        bail!("the measuring process failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8_lossy(&output.stdout).trim().parse().context("the measuring process printed no number")
}
