//! The writer, killed and cut off at each step: nothing lost, nothing twice.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;

use tidings_schemas::block::Block;
use tidings_schemas::lifecycle::Stage;
use tidings_sinks::log::Log;
use tidings_sinks::record::clickhouse::ClickHouseParams;
use tidings_sinks::record::files::Files;
use tidings_sinks::record::writer::{RecordCounts, RecordError, RecordParams, RecordWriter, run_all};
use tidings_sinks::record::{RecordBatch, RecordStore, StoreError};
use tokio_util::sync::CancellationToken;

use crate::support::{
    DLQ, Database, append, committed, elapsed, given, log, params, partition, rows_block, skipped, until,
};

/// A writer on a thread.
pub(crate) struct Running {
    stop: CancellationToken,
    pub(crate) counts: Arc<RecordCounts>,
    thread: JoinHandle<Result<(), RecordError>>,
}

impl Running {
    pub(crate) fn start(
        log: &(impl Log + Clone + 'static),
        store: impl RecordStore + 'static,
        params: RecordParams,
    ) -> Self {
        let writer = RecordWriter::new(Arc::new(log.clone()), store, params, elapsed());
        let (stop, counts) = (CancellationToken::new(), writer.counts());
        let token = stop.clone();
        Self { stop, counts, thread: std::thread::spawn(move || writer.run(&token)) }
    }

    pub(crate) fn stop(self) {
        self.stop.cancel();
        self.thread.join().unwrap().unwrap();
    }

    pub(crate) fn dies(self) {
        assert!(self.thread.join().is_err(), "expected to be killed");
    }
}

/// Kills its thread before or after the batch is written.
pub(crate) struct Dies<S> {
    pub(crate) store: S,
    pub(crate) after: bool,
}

impl<S: RecordStore> RecordStore for Dies<S> {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), StoreError> {
        if self.after {
            self.store.write(batch)?;
        }
        panic!("killed {} the insert", if self.after { "after" } else { "before" });
    }
}

pub(crate) fn exactly(database: &Database, rows: u64) {
    assert_eq!(database.value("SELECT count() FROM lifecycle"), rows.to_string(), "as inserted, without FINAL");
    assert_eq!(database.value("SELECT uniqExact(row_id) FROM lifecycle"), rows.to_string());
    assert_eq!(database.value("SELECT sum(sent) FROM delivery_rate"), rows.to_string());
}

#[test]
fn killed_between_announcing_and_inserting_or_between_inserting_and_committing() {
    for after in [false, true] {
        let Some(database) = Database::ready(if after { "killed_after" } else { "killed_before" }) else { return };
        let log = log(1);
        append(&log, 0, rows_block(0, 100));
        append(&log, 0, rows_block(100, 150));
        Running::start(&log, Dies { store: database.store(), after }, params()).dies();
        let left = committed(&log, 0);
        assert_eq!((left.offset, left.metadata.as_str()), (0, "end=2"));
        assert_eq!(database.value("SELECT count() FROM lifecycle"), if after { "150" } else { "0" });

        // What came meanwhile belongs to the next batch, whatever the next writer's own bounds are.
        append(&log, 0, rows_block(150, 175));
        let next = Running::start(&log, database.store(), RecordParams { rows_max: 1, ..params() });
        until("all is committed", || committed(&log, 0).offset == 3);
        assert_eq!(next.counts.batches.load(Ordering::Relaxed), 2);
        next.stop();
        exactly(&database, 175);
        assert_eq!(committed(&log, 0).metadata, "");
    }
}

#[test]
fn a_record_that_is_no_block_goes_to_the_dlq_and_holds_nothing_up() {
    let Some(database) = Database::ready("poison") else { return };
    let log = log(1);
    let mut torn = rows_block(10, 20);
    torn[40] ^= 1;
    // Its checksum is right, its rows are not.
    let mut lies = Block::encode(Stage::Deliver, 0, &[]);
    lies.truncate(lies.len() - 4);
    lies.extend_from_slice(b"no row at all");
    let lies = tidings_schemas::codec::frame(1, &lies[1..]);
    for value in [rows_block(0, 10), torn.clone(), lies.clone(), rows_block(20, 30)] {
        append(&log, 0, value);
    }
    let writer = Running::start(&log, database.store(), params());
    until("all is committed", || committed(&log, 0).offset == 4);
    // Counted after the commit.
    until("two are counted", || writer.counts.poisoned.load(Ordering::Relaxed) == 2);
    writer.stop();
    exactly(&database, 20);
    let mut dlq = log.reader(&tidings_sinks::log::TopicPartition { topic: DLQ.into(), partition: 0 }, 0).unwrap();
    let dead = dlq.poll(10, std::time::Duration::ZERO).unwrap().records;
    let values: Vec<_> = dead.iter().map(|record| record.value.clone().unwrap().to_vec()).collect();
    assert_eq!(values, [torn, lies]);
    assert_eq!(dead[0].header("offset").unwrap(), "1");
    let reason = String::from_utf8(dead[0].header("reason").unwrap().to_vec()).unwrap();
    assert!(reason.ends_with("the bytes are torn or damaged"), "{reason}");
}

/// Stands between writer and server, and cuts the line.
struct Line {
    port: u16,
    is_cut: Arc<AtomicBool>,
    lose_answers: Arc<AtomicU64>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Line {
    fn to(url: &str) -> Self {
        let server = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self {
            port: listener.local_addr().unwrap().port(),
            is_cut: Arc::default(),
            lose_answers: Arc::default(),
            open: Arc::default(),
        };
        let (is_cut, lose, open) = (line.is_cut.clone(), line.lose_answers.clone(), line.open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                let server = TcpStream::connect(&server).unwrap();
                open.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut up_from, &mut up_to));
                let (mut from, mut to, lose) = (server, client, lose.clone());
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(count @ 1..) = from.read(&mut buffer) {
                        // The server did it; nobody hears of it.
                        let lost = lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                        if lost.is_ok() || to.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
                });
            }
        });
        line
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}

#[test]
fn a_server_out_of_reach_for_a_while_and_answers_that_get_lost() {
    let Some(database) = Database::ready("unreachable") else { return };
    let line = Line::to(&database.params.url);
    let url = format!("http://127.0.0.1:{}", line.port);
    let store =
        tidings_sinks::record::clickhouse::ClickHouse::new(&ClickHouseParams { url, ..database.params.clone() });
    let log = log(2);
    for n in 0..10 {
        append(&log, n % 2, rows_block(u64::from(n) * 10, u64::from(n) * 10 + 10));
    }
    line.lose_answers.store(2, Ordering::SeqCst);
    let writer = Running::start(&log, store.unwrap(), RecordParams { rows_max: 20, ..params() });
    until("the first rows are committed", || committed(&log, 0).offset == 5 && committed(&log, 1).offset == 5);
    assert!(writer.counts.failures.load(Ordering::Relaxed) >= 2, "lost answers were noticed");

    line.cut();
    for n in 10..30 {
        append(&log, n % 2, rows_block(u64::from(n) * 10, u64::from(n) * 10 + 10));
    }
    let before = writer.counts.failures.load(Ordering::Relaxed);
    until("it stands still", || writer.counts.failures.load(Ordering::Relaxed) > before + 3);
    assert_eq!(writer.counts.stalled.load(Ordering::Relaxed), 1);
    assert_eq!(committed(&log, 0).offset, 5);

    line.mend();
    until("all is committed", || committed(&log, 0).offset == 15 && committed(&log, 1).offset == 15);
    assert_eq!(writer.counts.stalled.load(Ordering::Relaxed), 0);
    writer.stop();
    exactly(&database, 300);
}

#[test]
fn a_stop_writes_what_was_gathered() {
    let Some(database) = Database::ready("stopped") else { return };
    let log = log(1);
    append(&log, 0, rows_block(0, 10));
    let patient = RecordParams { wait: std::time::Duration::from_secs(3600), rows_max: 15, ..params() };
    let writer = Running::start(&log, database.store(), patient);
    append(&log, 0, rows_block(10, 20));
    until("the first batch is full", || committed(&log, 0).offset == 2);
    append(&log, 0, rows_block(20, 25));
    until("the last block is gathered", || writer.counts.fetched.load(Ordering::Relaxed) == 3);
    assert_eq!(committed(&log, 0).offset, 2);
    writer.stop();
    assert_eq!(committed(&log, 0).offset, 3);
    assert_eq!(database.value("SELECT count() FROM lifecycle"), "25");
}

// Ranges are fixed before they are written, so files of the same batch meet whoever writes them.
#[test]
fn writers_come_and_go_and_are_thrown_out() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::new(folder.path());
    let log = log(4);
    let mut rows = 0;
    let mut say = || {
        for to in 0..4 {
            append(&log, to, rows_block(rows, rows + 10));
            rows += 10;
        }
    };
    let written = |offset: u64| (0..4).all(|of| committed(&log, of).offset == offset);
    let first = Running::start(&log, files.clone(), params());
    say();
    until("the first writes all", || written(1));
    let second = Running::start(&log, files.clone(), params());
    (0..5).for_each(|_| say());
    until("both write", || written(6) && second.counts.fetched.load(Ordering::Relaxed) > 0);
    log.evict(&params().group);
    (0..5).for_each(|_| say());
    until("both joined again", || written(11));
    first.stop();
    say();
    until("the second writes all", || written(12));
    second.stop();
    let all: Vec<_> = (files.row_files().unwrap().iter()).flat_map(|path| Files::rows(path).unwrap()).collect();
    let distinct: BTreeSet<_> = all.iter().map(|row| row.row_id).collect();
    assert_eq!((all.len(), distinct.len()), (480, 480), "nothing twice, nothing lost");
}

// A store that two writers can only have written to at once: each batch waits until both are at theirs.
#[derive(Clone)]
struct Together(Arc<Barrier>, Files);

impl RecordStore for Together {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), StoreError> {
        self.0.wait();
        self.1.write(batch)
    }
}

#[test]
fn writers_of_one_process_write_at_once_and_end_together() {
    let folder = tempfile::tempdir().unwrap();
    let log = log(2);
    for to in 0..2_u32 {
        append(&log, to, rows_block(u64::from(to) * 10, u64::from(to) * 10 + 10));
    }
    let store = Together(Arc::new(Barrier::new(2)), Files::new(folder.path()));
    let counts = Arc::<RecordCounts>::default();
    let writer = || {
        let writer = RecordWriter::new(Arc::new(log.clone()), store.clone(), params(), elapsed());
        writer.counting(Arc::clone(&counts))
    };
    let writers = vec![writer(), writer()];
    let stop = CancellationToken::new();
    let ended = std::thread::scope(|scope| {
        let all = scope.spawn(|| run_all(writers, &stop));
        until("both write", || (0..2).all(|of| committed(&log, of).offset == 1));
        assert_eq!((counts.rows.load(Ordering::Relaxed), counts.stalled.load(Ordering::Relaxed)), (20, 0));
        stop.cancel();
        all.join().unwrap()
    });
    assert_eq!(ended, Ok(()));

    // One cannot begin, so the other is not left behind.
    let lost = RecordParams { dlq: "nowhere".to_owned(), ..params() };
    let lost = RecordWriter::new(Arc::new(log.clone()), store.clone(), lost, elapsed());
    assert!(run_all(vec![writer(), lost], &CancellationToken::new()).is_err());
}

#[test]
fn a_group_without_a_commit_begins_at_the_oldest_record() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::new(folder.path());
    let log = log(1);
    (0..3).for_each(|n| append(&log, 0, rows_block(n, n + 1)));
    log.trim(&partition(0), 2).unwrap();
    Running::start(&log, Dies { store: files.clone(), after: false }, params()).dies();
    assert_eq!((committed(&log, 0).offset, committed(&log, 0).metadata.as_str()), (2, "end=3"));
    let writer = Running::start(&log, files, params());
    until("it is written", || committed(&log, 0).offset == 3);
    writer.stop();
}

/// A server of our own, to be killed.
struct Server {
    command: String,
    port: u16,
    data: tempfile::TempDir,
    child: Child,
}

impl Server {
    fn start(command: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = tempfile::tempdir().unwrap();
        let child = Self::launch(command, port, &data);
        let server = Self { command: command.to_owned(), port, data, child };
        server.answers();
        server
    }

    fn launch(command: &str, port: u16, data: &tempfile::TempDir) -> Child {
        let command = command.replace("{data}", data.path().to_str().unwrap()).replace("{port}", &port.to_string());
        let mut words = command.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn answers(&self) {
        until("ClickHouse answers", || {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
            let _ = stream.write_all(b"GET /ping HTTP/1.0\r\n\r\n");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).is_ok_and(|_| answer.contains("Ok."))
        });
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::launch(&self.command, self.port, &self.data);
        self.answers();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

#[test]
fn clickhouse_killed_in_the_middle_again_and_again() {
    const LAUNCH: &str = "TIDINGS_TEST_CLICKHOUSE_LAUNCH";
    let Some(command) = given(LAUNCH) else { return skipped("clickhouse_killed_in_the_middle", LAUNCH) };
    let mut server = Server::start(&command);
    let database = Database::on(&server.url(), "sigkill");
    database.store().migrate().unwrap();
    let log = log(2);
    let writer = Running::start(&log, database.store(), RecordParams { rows_max: 5_000, ..params() });
    let (mut rows, mut blocks) = (0, 0);
    for round in 1..=3_u32 {
        for n in 0..40 {
            append(&log, n % 2, rows_block(rows, rows + 1_000));
            rows += 1_000;
        }
        blocks += 20;
        // Under way, not done: killed while it inserts.
        let batches = u64::from(round - 1) * 8 + 2;
        until("inserts are under way", || writer.counts.batches.load(Ordering::Relaxed) >= batches);
        server.kill();
        let failures = writer.counts.failures.load(Ordering::Relaxed);
        until("it is noticed", || {
            writer.counts.failures.load(Ordering::Relaxed) > failures + 1 || committed(&log, 0).offset == blocks
        });
        server.restart();
        until("all is committed", || committed(&log, 0).offset == blocks && committed(&log, 1).offset == blocks);
    }
    writer.stop();
    assert_eq!(database.value("SELECT uniqExact(row_id) FROM lifecycle"), rows.to_string());
    assert_eq!(database.value("SELECT count() FROM lifecycle FINAL"), rows.to_string());
    assert_eq!(database.value("SELECT sum(sent) FROM delivery_rate"), rows.to_string());
    drop(database);
}
