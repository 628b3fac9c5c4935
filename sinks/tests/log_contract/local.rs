//! What only the logs on one machine have: a clock that the test turns, and a process that is killed with the log in it.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tidings_schemas::time::Instant;
use tidings_sinks::log::embedded::EmbeddedLog;
use tidings_sinks::log::memory::MemoryLog;
use tidings_sinks::log::{Append, Clock, Commit, Log, LogError, Record, Retention, TopicSpec};

use crate::{Ears, LONG, World, append, at, given, noon, settle, text, texts, to_end};

#[test]
fn a_killed_process_leaves_every_acknowledged_record_in_the_embedded_log() {
    // The process to be killed is this test again.
    if let Some(directory) = given("TIDINGS_TEST_DIRECTORY") {
        return append_until_killed(directory.as_ref());
    }
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "local::a_killed_process_leaves_every_acknowledged_record_in_the_embedded_log",
            "--nocapture",
        ])
        .env("TIDINGS_TEST_DIRECTORY", directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let acknowledged = |line: String| line.strip_prefix("acknowledged ").map(|it| it.parse::<u64>().unwrap());
    let mut lines = lines.map(Result::unwrap).filter_map(acknowledged);
    assert_eq!(lines.by_ref().take(50).count(), 50);

    let taken = EmbeddedLog::open(directory.path(), noon()).err().unwrap().to_string();
    assert!(taken.contains("belongs to another running process; stop it, or choose another directory"), "{taken}");

    child.kill().unwrap();
    let last = lines.last().unwrap();
    child.wait().unwrap();
    let log = EmbeddedLog::open(directory.path(), noon()).unwrap();
    let (records, end) = to_end(&mut *log.reader(&at("t", 0), 5).unwrap());
    assert!(end > last, "{last} was acknowledged, the end is {end}");
    let expected: Vec<String> = (5..end).map(|offset| format!("record {offset}")).collect();
    assert_eq!(records.iter().map(text).collect::<Vec<_>>(), expected);
    assert_eq!(log.range(&at("t", 0)).unwrap(), 5..end);
    let committed = log.committed("g", &at("t", 0)).unwrap();
    assert_eq!(committed, Some(Commit { offset: 3, metadata: "m".to_owned() }));
    assert_eq!(append(&log, &at("t", 0), &["on"]), [end]);
}

/// Says of each record that it was acknowledged, until somebody ends this.
fn append_until_killed(directory: &std::path::Path) {
    let log = EmbeddedLog::open(directory, noon()).unwrap();
    log.create(&[TopicSpec::one_copy("t", 1, Retention::Forever)]).unwrap();
    let partition = at("t", 0);
    let mut said = std::io::stdout();
    for offset in 0_u64.. {
        append(&log, &partition, &[&format!("record {offset}")]);
        if offset == 10 {
            log.trim(&partition, 5).unwrap();
            let ears = Arc::new(Ears::default());
            let mut member = log.join("g", &["t".to_owned()], ears.clone()).unwrap();
            settle(&mut [(&mut *member, &ears)], || ears.owned().len() == 1);
            member.commit(&[(partition.clone(), Commit { offset: 3, metadata: "m".to_owned() })]).unwrap();
            ears.read_to.lock().unwrap().clear();
        }
        writeln!(said, "acknowledged {offset}").unwrap();
    }
}

/// The logs on one machine with a clock that the test turns.
fn turned(then: impl Fn(&World, &AtomicI64)) {
    for embedded in [false, true] {
        let now = Arc::new(AtomicI64::new(0));
        let hand = Arc::clone(&now);
        let clock: Clock = Arc::new(move || Instant(hand.load(Ordering::Relaxed)));
        let world = World::new(|directory| match embedded {
            true => Arc::new(EmbeddedLog::open(directory, clock).unwrap()),
            false => Arc::new(MemoryLog::new(clock).unwrap()),
        });
        then(&world, &now);
    }
}

#[test]
fn superseded_records_and_tombstones_stay_for_their_lag() {
    turned(|world, now| {
        let partition = at(&world.topic_kept("t", 1, Retention::Compacted(Duration::from_secs(60))), 0);
        let (other, tick) = (at(&world.topic("other", 1), 0), |millis: i64| now.store(millis, Ordering::Relaxed));
        let put = |key: &'static str, value: Option<&'static str>| Append {
            to: partition.clone(),
            key: Some(key.into()),
            value: value.map(Into::into),
            headers: vec![],
        };
        let keys = |records: Vec<Record>| {
            let of = |it: &Record| format!("{}={}", String::from_utf8_lossy(it.key.as_ref().unwrap()), text(it));
            records.iter().map(of).collect::<Vec<_>>().join(" ")
        };
        let all = || {
            append(&*world.log, &other, &["a round runs in an append"]);
            keys(to_end(&mut *world.log.reader(&partition, 0).unwrap()).0)
        };
        world.log.append(&[put("a", Some("1")), put("b", Some("1")), put("a", Some("2"))]).unwrap();
        tick(10_000);
        world.log.append(&[put("b", None), put("a", Some("3"))]).unwrap();
        tick(59_999);
        assert_eq!(all(), "a=1 b=1 a=2 b= a=3");
        tick(61_000);
        assert_eq!(all(), "b=1 a=2 b= a=3", "a=1 was superseded at 0 s");
        tick(70_000);
        assert_eq!(all(), "a=3");
        tick(80_000);
        world.log.append(&[put("a", None)]).unwrap();
        tick(140_000);
        assert_eq!(all(), "");
        assert_eq!(world.log.range(&partition).unwrap(), 0..6, "the end stays where it was");
        assert_eq!(world.log.append(&[put("a", Some("4"))]).unwrap(), [6]);
        assert_eq!(all(), "a=4");
        let keyless = world.log.append(&[Append { key: None, ..put("a", None) }]);
        assert!(matches!(keyless, Err(LogError::Refused(_))), "{keyless:?}");
    });
}

#[test]
fn records_older_than_their_retention_go() {
    turned(|world, now| {
        let partition = at(&world.topic_kept("t", 1, Retention::For(Duration::from_secs(60))), 0);
        for (second, word) in [(0, "a"), (1, "b"), (50, "c")] {
            now.store(second * 1_000, Ordering::Relaxed);
            append(&*world.log, &partition, &[word]);
        }
        now.store(61_000, Ordering::Relaxed);
        append(&*world.log, &partition, &["d"]);
        assert_eq!(world.log.range(&partition).unwrap(), 1..4, "b is as old as it may be");
        now.store(200_000, Ordering::Relaxed);
        append(&*world.log, &partition, &["e"]);
        assert_eq!(world.log.range(&partition).unwrap(), 4..5);
        assert_eq!(texts(&*world.log, &partition, 4), "e");
    });
}

#[test]
fn however_fast_it_grows_a_topic_has_no_more_than_its_retention() {
    turned(|world, now| {
        let minute = Duration::from_secs(60);
        let kept = at(&world.topic_kept("t", 1, Retention::For(minute)), 0);
        let compacted = at(&world.topic_kept("c", 1, Retention::Compacted(minute)), 0);
        let words: Vec<String> = (0..3_500).map(|number| number.to_string()).collect();
        append(&*world.log, &kept, &words.iter().map(String::as_str).collect::<Vec<_>>());
        let put = |word: &String| Append {
            to: compacted.clone(),
            key: Some("key".into()),
            value: Some(word.clone().into()),
            headers: vec![],
        };
        world.log.append(&words.iter().map(put).collect::<Vec<_>>()).unwrap();
        now.store(61_000, Ordering::Relaxed);
        for word in ["a", "b", "c", "d"] {
            append(&*world.log, &kept, &[word]);
        }
        assert_eq!(world.log.range(&kept).unwrap(), 3_500..3_504, "in one instant");
        let (records, _) = to_end(&mut *world.log.reader(&compacted, 0).unwrap());
        assert_eq!(records.iter().map(text).collect::<Vec<_>>(), ["3499"]);
    });
}

#[test]
fn an_evicted_member_commits_nothing() {
    let log = MemoryLog::new(noon()).unwrap();
    let world = World::new(|_| Arc::new(log.clone()));
    let topic = world.topic("t", 1);
    let (partition, group) = (at(&topic, 0), world.group());
    append(&log, &partition, &["a"]);
    let (old_ears, new_ears) = (Arc::new(Ears::default()), Arc::new(Ears::default()));
    let mut old = log.join(&group, std::slice::from_ref(&topic), old_ears.clone()).unwrap();
    assert_eq!(old_ears.hear_until(&mut *old, 1).join(" "), "a");
    log.evict(&group);
    let mut new = log.join(&group, std::slice::from_ref(&topic), new_ears.clone()).unwrap();
    assert_eq!(new_ears.hear_until(&mut *new, 1).join(" "), "a");
    let fenced = LogError::Fenced(group.clone());
    let commit = Commit { offset: 1, metadata: String::new() };
    assert_eq!(old.commit(&[(partition.clone(), commit)]), Err(fenced.clone()));
    assert_eq!(old.poll(1, LONG), Err(fenced));
    assert_eq!((old_ears.revoked.load(Ordering::Relaxed), old_ears.owned().len()), (1, 0));
    drop(old);
    assert_eq!(log.committed(&group, &partition).unwrap(), None);
    assert_eq!(new_ears.owned().len(), 1);
}
