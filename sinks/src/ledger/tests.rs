//! The protocol, case by case, against every implementation: memory, a folder, and a real Redis where
//! `TIDINGS_TEST_REDIS` names one or `redis-server` is installed.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

const T0: Instant = Instant(1_774_000_000_000);

fn later(ms: i64) -> Instant {
    Instant(T0.0 + ms)
}

fn lane() -> TopicPartition {
    TopicPartition { topic: "notifications.push.medium".into(), partition: 3 }
}

fn key(n: u8) -> Key {
    Key { delivery: DeliveryId([n; 16]), bucket: Bucket::Lane { lane: lane(), epoch: 5 } }
}

fn own(n: u8) -> Key {
    Key { bucket: Bucket::Own, ..key(n) }
}

fn claim(key: Key, owner: &str, lease_ms: i64) -> Claim {
    Claim { key, owner: owner.into(), lease_until: later(lease_ms), attempts_before: 0 }
}

fn note() -> Note {
    Note { at: T0, called: true, provider: "apns".into(), code: "503 ServiceUnavailable".into(), ..Note::default() }
}

fn settle(key: Key, owner: &str, number: u32, phase: Phase) -> Settle {
    Settle { key, owner: owner.into(), attempt: Some(Attempt { number, phase }), keep: false, refound: false }
}

/// `P`, `W`, `S` or `D` and the number of each attempt, oldest first; `+` where it was granted.
fn shape(claimed: &Claimed) -> String {
    let (sign, entry) = match claimed {
        Claimed::Granted(entry) => ("+", entry),
        Claimed::Met(entry) => ("", entry),
    };
    let lines: Vec<_> = entry
        .attempts()
        .iter()
        .map(|attempt| attempt.line().chars().filter(|c| *c != ' ').take(2).collect::<String>())
        .collect();
    format!("{sign}{}", lines.join(" "))
}

async fn claim_one(ledger: &dyn Ledger, by: &Incarnation, claim: Claim, now: Instant) -> String {
    let answers = ledger.claim(by, &[claim], now).await.unwrap();
    shape(&answers[0])
}

async fn the_protocol(ledger: &dyn Ledger) {
    let by = &ledger.incarnation(T0).await.unwrap();
    assert_eq!(&ledger.incarnation(later(1)).await.unwrap(), by, "founded once");

    // Two owners race: one is granted, the other waits; a repeat of the granted claim is the same claim.
    assert_eq!(claim_one(ledger, by, claim(key(1), "a", 1000), T0).await, "+P1");
    assert_eq!(claim_one(ledger, by, claim(key(1), "b", 1000), later(1)).await, "P1");
    assert_eq!(claim_one(ledger, by, claim(key(1), "a", 1000), later(2)).await, "+P1");
    // A lease that ran out is taken over; the line of the lost attempt stays. The old owner comes too late.
    assert_eq!(claim_one(ledger, by, claim(key(1), "b", 3000), later(1000)).await, "+P1 P2");
    let late = settle(key(1), "a", 1, Phase::Sent { note: note() });
    assert_eq!(ledger.settle(by, &[late], later(1100)).await.unwrap(), [false]);
    let sent = settle(key(1), "b", 2, Phase::Sent { note: note() });
    assert_eq!(ledger.settle(by, std::slice::from_ref(&sent), later(1200)).await.unwrap(), [true]);
    assert_eq!(ledger.settle(by, &[sent], later(1200)).await.unwrap(), [true], "a repeat is no loss");
    assert_eq!(claim_one(ledger, by, claim(key(1), "c", 9000), later(5000)).await, "P1 S2");

    // Scheduled: met before it is due, claimed after; it moves out of its bucket and is found both ways.
    assert_eq!(claim_one(ledger, by, claim(key(2), "a", 1000), T0).await, "+P1");
    let scheduled =
        Settle { keep: true, ..settle(key(2), "a", 1, Phase::Scheduled { due: later(5000), note: note() }) };
    assert_eq!(ledger.settle(by, &[scheduled], T0).await.unwrap(), [true]);
    assert_eq!(claim_one(ledger, by, claim(key(2), "b", 9000), later(4999)).await, "W1");
    assert_eq!(claim_one(ledger, by, claim(own(2), "b", 9000), later(5000)).await, "+W1 P2");
    // Released: the attempt is taken back and the one before stands again.
    let release = Settle { attempt: None, ..settle(own(2), "b", 2, Phase::Sent { note: note() }) };
    assert_eq!(ledger.settle(by, &[release], later(5001)).await.unwrap(), [true]);
    assert_eq!(claim_one(ledger, by, claim(own(2), "c", 9000), later(5002)).await, "+W1 P2");
    let dead = settle(own(2), "c", 2, Phase::Dead { note: Note { reason: Some(Reason::Refused), ..note() } });
    assert_eq!(ledger.settle(by, &[dead], later(5003)).await.unwrap(), [true]);
    let found = ledger.look(by, &[key(2), key(9)]).await.unwrap();
    let Phase::Dead { note } = &found[0].as_ref().unwrap().newest().phase else { panic!("{found:?}") };
    assert_eq!((note.reason, &*note.code, &found[1]), (Some(Reason::Refused), "503 ServiceUnavailable", &None));

    // Released before any call: nothing stands there.
    assert_eq!(claim_one(ledger, by, claim(key(3), "a", 1000), T0).await, "+P1");
    let release = Settle { attempt: None, ..settle(key(3), "a", 1, Phase::Sent { note: note.clone() }) };
    assert_eq!(ledger.settle(by, &[release], T0).await.unwrap(), [true]);
    assert_eq!(ledger.look(by, &[key(3)]).await.unwrap(), [None]);

    // A retry record whose entry is gone goes on counting.
    let counted = Claim { attempts_before: 3, ..claim(own(4), "a", 1000) };
    assert_eq!(claim_one(ledger, by, counted, T0).await, "+P4");
    // So does one whose entry never heard of the last attempt: its rows were said, and are not these.
    assert_eq!(claim_one(ledger, by, claim(own(8), "a", 1000), T0).await, "+P1");
    let counted = Claim { attempts_before: 2, ..claim(own(8), "b", 2000) };
    assert_eq!(claim_one(ledger, by, counted, later(1000)).await, "+P1 P3");

    // A batch answers in order, one delivery met twice in it is granted once.
    let batch = [claim(key(5), "a", 1000), claim(key(1), "a", 1000), claim(key(5), "b", 1000)];
    let answers = ledger.claim(by, &batch, T0).await.unwrap();
    assert_eq!(answers.iter().map(shape).collect::<Vec<_>>(), ["+P1", "P1 S2", "P1"]);

    // Another incarnation changes nothing.
    let other = Incarnation("another".into());
    assert_eq!(ledger.claim(&other, &[claim(key(6), "a", 1)], T0).await, Err(LedgerError::Lost));
    assert_eq!(ledger.look(by, &[key(6)]).await.unwrap(), [None]);
}

/// Promise 3's small print: after a loss the calls that were under way are told, and can be written anew.
async fn a_loss_is_noticed(ledger: &dyn Ledger, lose: impl AsyncFnOnce()) {
    let by = ledger.incarnation(T0).await.unwrap();
    assert_eq!(claim_one(ledger, &by, claim(key(7), "a", 60_000), T0).await, "+P1");
    lose().await;
    let sent = settle(key(7), "a", 1, Phase::Sent { note: note() });
    // The first answers after a restart may be those of a broken connection.
    let error = loop {
        match ledger.settle(&by, std::slice::from_ref(&sent), later(10)).await {
            Err(error) if error.is_ambiguous() || matches!(error, LedgerError::Unreachable(_)) => {}
            other => break other.unwrap_err(),
        }
    };
    assert_eq!(error, LedgerError::Lost);
    let anew = ledger.incarnation(later(11)).await.unwrap();
    assert_ne!(anew, by);
    assert_eq!(ledger.settle(&anew, std::slice::from_ref(&sent), later(12)).await.unwrap(), [false]);
    assert_eq!(ledger.settle(&anew, &[Settle { refound: true, ..sent }], later(12)).await.unwrap(), [true]);
    assert_eq!(claim_one(ledger, &anew, claim(key(7), "b", 60_000), later(13)).await, "S1");
}

#[test]
fn lines_have_golden_text() {
    let entry = Entry(vec![
        Attempt { number: 1, phase: Phase::Scheduled { due: later(1), note: Note { unknown: true, ..note() } } },
        Attempt { number: 2, phase: Phase::Pending { owner: "o-1".into(), lease_until: later(2) } },
    ]);
    let golden = "P 2 1774000000002 o-1\nW 1 1774000000001 - {\"at\":\"2026-03-20T09:46:40Z\",\"called\":true,\
                  \"unknown\":true,\"provider\":\"apns\",\"code\":\"503 ServiceUnavailable\"}";
    assert_eq!(entry.text(), golden);
    assert_eq!(Entry::parse(golden), Ok(entry));
    for wrong in ["", "Q 1 2 o", "P one 2 o", "S 1 2 - {"] {
        assert_eq!(Entry::parse(wrong), Err(LedgerError::Damaged(wrong.to_owned())));
    }
}

#[tokio::test]
async fn memory_keeps_the_protocol() {
    the_protocol(&MemoryLedger::default()).await;
    let ledger = MemoryLedger::default();
    a_loss_is_noticed(&ledger, async || ledger.lose()).await;
}

#[tokio::test]
async fn a_folder_keeps_the_protocol_and_its_entries() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = EmbeddedLedger::open(folder.path()).unwrap();
    the_protocol(&ledger).await;
    let by = ledger.incarnation(T0).await.unwrap();
    drop(ledger);
    let ledger = EmbeddedLedger::open(folder.path()).unwrap();
    assert_eq!(ledger.incarnation(later(99)).await.unwrap(), by);
    assert_eq!(claim_one(&ledger, &by, claim(key(1), "z", 9000), later(5000)).await, "P1 S2");
}

#[tokio::test]
async fn a_bucket_goes_an_hour_after_its_mark_was_committed_and_no_other_does() {
    let ledger = MemoryLedger::default();
    let by = ledger.incarnation(T0).await.unwrap();
    let at = |n: u8, epoch| Key { bucket: Bucket::Lane { lane: lane(), epoch }, ..key(n) };
    let other_lane =
        Key { bucket: Bucket::Lane { lane: TopicPartition { partition: 4, ..lane() }, epoch: 1 }, ..key(4) };
    let keys = [at(1, 0), at(2, BUCKET_EPOCHS - 1), at(3, BUCKET_EPOCHS), other_lane, own(5)];
    let claims: Vec<_> = keys.iter().map(|key| claim(key.clone(), "a", 100)).collect();
    ledger.claim(&by, &claims, T0).await.unwrap();
    let sent: Vec<_> = keys.iter().map(|key| settle(key.clone(), "a", 1, Phase::Sent { note: note() })).collect();
    ledger.settle(&by, &sent, T0).await.unwrap();
    let there = async || {
        ledger.look(&by, &keys).await.unwrap().iter().map(|entry| u8::from(entry.is_some())).collect::<Vec<_>>()
    };

    let hour = i64::try_from(PASSED_KEPT.as_millis()).unwrap();
    ledger.passed(&by, &lane(), BUCKET_EPOCHS - 2, T0).await.unwrap();
    ledger.passed(&by, &lane(), BUCKET_EPOCHS - 2, later(2 * hour)).await.unwrap();
    assert_eq!(there().await, [1, 1, 1, 1, 1], "the bucket's last epoch was not passed");
    ledger.passed(&by, &lane(), BUCKET_EPOCHS - 1, T0).await.unwrap();
    ledger.passed(&by, &lane(), BUCKET_EPOCHS + 5, later(hour - 1)).await.unwrap();
    assert_eq!(there().await, [1, 1, 1, 1, 1]);
    ledger.passed(&by, &lane(), BUCKET_EPOCHS + 5, later(hour)).await.unwrap();
    assert_eq!(there().await, [0, 0, 1, 1, 1]);
    ledger.passed(&by, &lane(), BUCKET_EPOCHS + 5, later(23 * hour)).await.unwrap();
    assert_eq!(there().await, [0, 0, 1, 1, 1], "an entry on its own stays for a day");
    ledger.passed(&by, &lane(), BUCKET_EPOCHS + 5, later(26 * hour)).await.unwrap();
    assert_eq!(there().await, [0, 0, 1, 1, 0]);
}

/// A Redis of the test's own, killed with it.
pub(crate) struct OwnRedis {
    child: Child,
    port: u16,
}

impl OwnRedis {
    pub(crate) fn start() -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Some(Self { child: Self::spawn(port)?, port })
    }

    fn spawn(port: u16) -> Option<Child> {
        let mut child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        // What it says later is heard by nobody, which it does not mind.
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_ready = said.any(|line| line.unwrap().contains("Ready to accept connections"));
        assert!(is_ready, "redis-server on port {port} ended before it took connections");
        Some(child)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills it; what it knew is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = Self::spawn(self.port).unwrap();
    }
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the tests' Redis is, and a prefix of this test's own.
#[expect(clippy::disallowed_methods, reason = "the environment names the tests' services")]
pub(crate) fn test_redis() -> Option<(String, String, Option<OwnRedis>)> {
    static TESTS: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("test-{}-{}", std::process::id(), TESTS.fetch_add(1, Ordering::Relaxed));
    if let Ok(url) = std::env::var("TIDINGS_TEST_REDIS") {
        return Some((url, prefix, None));
    }
    let own = OwnRedis::start();
    if own.is_none() {
        loud_skip();
    }
    own.map(|own| (own.url(), prefix, Some(own)))
}

#[expect(clippy::print_stderr, reason = "a test that did not run must say so")]
fn loud_skip() {
    eprintln!(
        "SKIPPED: no redis-server is installed and TIDINGS_TEST_REDIS is not set; nothing was tested against Redis"
    );
}

#[tokio::test]
async fn redis_keeps_the_protocol() {
    let Some((url, prefix, _own)) = test_redis() else { return };
    the_protocol(&RedisLedger::new(&url, &prefix, "n").unwrap()).await;
}

#[tokio::test]
async fn redis_killed_and_emptied_is_noticed() {
    let Some(mut own) = OwnRedis::start() else { return loud_skip() };
    let ledger = RedisLedger::new(&own.url(), "t", "n").unwrap();
    a_loss_is_noticed(&ledger, async || own.restart()).await;
    own.kill();
    let by = Incarnation("any".into());
    let error = ledger.claim(&by, &[claim(key(1), "a", 1)], T0).await.unwrap_err();
    assert!(matches!(error, LedgerError::Ambiguous(_) | LedgerError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn redis_buckets_expire_whole_and_only_when_passed() {
    let Some((url, prefix, _own)) = test_redis() else { return };
    let ledger = RedisLedger::new(&url, &prefix, "n").unwrap();
    let by = ledger.incarnation(T0).await.unwrap();
    let ahead = Key { bucket: Bucket::Lane { lane: lane(), epoch: BUCKET_EPOCHS }, ..key(2) };
    ledger.claim(&by, &[claim(key(1), "a", 1), claim(ahead, "a", 1)], T0).await.unwrap();
    ledger.passed(&by, &lane(), BUCKET_EPOCHS, T0).await.unwrap();
    let mut connection = ::redis::Client::open(&*url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut ttl = async |number: u64| -> u64 {
        let name = format!("{prefix}:b:{}:{number}", lane());
        ::redis::cmd("PTTL").arg(name).query_async(&mut connection).await.unwrap()
    };
    let (passed, ahead) = (ttl(0).await, ttl(1).await);
    assert!(passed <= 3_600_000 && passed > 3_500_000, "{passed}");
    assert!(ahead > 8 * 86_400_000, "{ahead}");
}

#[tokio::test]
async fn a_redis_that_evicts_is_refused() {
    let Some(own) = OwnRedis::start() else { return loud_skip() };
    let mut connection = ::redis::Client::open(own.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let set =
        ::redis::cmd("CONFIG").arg(&["SET", "maxmemory-policy", "allkeys-lru"]).query_async(&mut connection).await;
    let _: String = set.unwrap();
    let error = RedisLedger::new(&own.url(), "t", "n").unwrap().incarnation(T0).await.unwrap_err();
    assert!(error.to_string().contains("set `noeviction`"), "{error}");
}
