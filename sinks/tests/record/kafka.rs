//! The writer between a real Kafka and a real ClickHouse.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tidings_sinks::log::kafka::{KafkaLog, KafkaParams};
use tidings_sinks::log::{Append, Commit, Log, Retention, TopicPartition, TopicSpec};
use tidings_sinks::record::writer::RecordParams;

use crate::support::{Database, given, params, rows_block, skipped, until};
use crate::writer::{Dies, Running, exactly};

#[test]
fn from_kafka_into_clickhouse_through_two_deaths_and_a_handover() {
    let Some(brokers) = given("TIDINGS_TEST_KAFKA") else {
        return skipped("from_kafka_into_clickhouse", "TIDINGS_TEST_KAFKA");
    };
    let Some(database) = Database::ready("from_kafka") else { return };
    let (linger, patience) = (Duration::ZERO, Duration::from_secs(10));
    // A member that died is missed after six seconds, not after the default of 45.
    let properties = BTreeMap::from([("session.timeout.ms".to_owned(), "6000".to_owned())]);
    let log = KafkaLog::open(KafkaParams { brokers, linger, patience, instance: None, properties }).unwrap();
    let named = |what: &str| format!("{}.{what}", database.params.database);
    let params = RecordParams { topic: named("lifecycle"), dlq: named("dlq"), group: named("record"), ..params() };
    let spec = |name, partitions| TopicSpec::one_copy(name, partitions, Retention::Forever);
    log.create(&[spec(&params.topic, 2), spec(&params.dlq, 1)]).unwrap();
    let partition = |partition| TopicPartition { topic: params.topic.as_str().into(), partition };
    let committed = |of| log.committed(&params.group, &partition(of)).unwrap().unwrap_or_default();
    let mut rows = 0;
    let mut say = |blocks: u32| {
        for n in 0..blocks * 2 {
            let value = Some(Bytes::from(rows_block(rows, rows + 10)));
            rows += 10;
            log.append(&[Append { to: partition(n % 2), key: None, value, headers: Vec::new() }]).unwrap();
        }
    };

    say(3);
    for after in [false, true] {
        Running::start(&log, Dies { store: database.store(), after }, params.clone()).dies();
    }
    let announced = |commit: &Commit| commit.offset == 0 && commit.metadata.starts_with("end=");
    assert!([0, 1].iter().any(|of| announced(&committed(*of))), "{:?} {:?}", committed(0), committed(1));
    let first = Running::start(&log, database.store(), params.clone());
    until("the first writes all", || committed(0).offset == 3 && committed(1).offset == 3);
    let second = Running::start(&log, database.store(), params.clone());
    let mut blocks = 3;
    until("the second has its share", || {
        say(1);
        blocks += 1;
        second.counts.batches.load(Ordering::Relaxed) > 0
    });
    first.stop();
    say(2);
    blocks += 2;
    until("all is committed", || committed(0).offset == blocks && committed(1).offset == blocks);
    second.stop();
    exactly(&database, blocks * 20);
}
