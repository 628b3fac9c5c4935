//! Says rows and follow-up records, durably, many deliveries' at once.
//!
//! Rows first, and only once they are in the log what follows from them: so a retry record that exists
//! proves that its rows do. What the log refuses is said again until it is taken; the lane record it
//! belongs to is not settled before. Repeats are harmless: rows are named by what they say, retry records
//! meet the ledger, returned legs meet `dedup`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidings_schemas::block::Block;
use tidings_schemas::lifecycle::{Row, Stage};
use tokio::sync::oneshot;

use crate::log::{Append, Headers, Log, LogError, TopicPartition, aside};

/// Rows in one block at most: some hundred kilobytes, well below what a log takes in one record.
const BLOCK_ROWS_MAX: usize = 512;
/// First and longest pause after an append that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

struct Letter {
    rows: Vec<Row>,
    follow: Vec<Append>,
    said: oneshot::Sender<()>,
}

/// Where one lane's rows and follow-up records go.
pub(crate) struct Outbox {
    log: Arc<dyn Log>,
    lifecycle: TopicPartition,
    letters: Mutex<Vec<Letter>>,
    turn: tokio::sync::Mutex<()>,
}

impl Outbox {
    pub(crate) fn new(log: Arc<dyn Log>, lifecycle: TopicPartition) -> Self {
        Self { log, lifecycle, letters: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Returns once rows and follow-up records are in the log.
    pub(crate) async fn say(&self, rows: Vec<Row>, follow: Vec<Append>) {
        if rows.is_empty() && follow.is_empty() {
            return;
        }
        let (said, mut told) = oneshot::channel();
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).push(Letter { rows, follow, said });
        // Whoever has the turn says everybody's; the others find theirs said.
        let _turn = self.turn.lock().await;
        if told.try_recv().is_ok() {
            return;
        }
        let letters = std::mem::take(&mut *self.letters.lock().unwrap_or_else(PoisonError::into_inner));
        let rows: Vec<&[Row]> = letters.iter().map(|letter| &letter.rows[..]).collect();
        let rows = rows.concat();
        let blocks = rows.chunks(BLOCK_ROWS_MAX).map(|rows| Append {
            to: self.lifecycle.clone(),
            key: None,
            value: Some(Block::encode(Stage::Deliver, 0, rows).into()),
            headers: Headers::new(),
        });
        self.append(blocks.collect()).await;
        self.append(letters.iter().flat_map(|letter| letter.follow.clone()).collect()).await;
        for letter in letters {
            // Nobody waits any more where the delivery was abandoned.
            let _ = letter.said.send(());
        }
    }

    async fn append(&self, records: Vec<Append>) {
        if records.is_empty() {
            return;
        }
        let records = Arc::new(records);
        let mut pause = BACKOFF.0;
        loop {
            let (log, batch) = (self.log.clone(), records.clone());
            let appended = aside(log.waits(), move || log.append(&batch)).await;
            let error = match appended {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => error,
                Err(error) => LogError::Ambiguous(error.to_string()),
            };
            if error.is_transient() {
                tracing::warn!(%error, "rows and follow-up records wait for the log");
            } else {
                tracing::error!(%error, lifecycle = %self.lifecycle, "the log refuses rows or follow-up records; the lane stands still");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }
}
