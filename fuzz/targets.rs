//! What is fuzzed: everything that reads bytes from outside or from a disk, as plain functions.
//!
//! A target must not panic, whatever it is given, and checks what must hold of what it accepts. Two drivers
//! run them: `pipeline/tests/fuzz.rs`, on any toolchain, for seconds, in every test run; and `cargo fuzz`
//! (see `fuzz/README.md`), guided by coverage, for as long as one likes. Both start from `fuzz/corpus/`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tidings_operators::calendar::Calendar;
use tidings_operators::harness::delta::Delta;
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::harness::table::{Image, StateKey};
use tidings_operators::ingest::{Body, Path, Source, SourceKind, ingest};
use tidings_operators::registry::Wiring;
use tidings_operators::rules::Rules;
use tidings_operators::script;
use tidings_operators::when::{self, Count, Facts, Text, Value};
use tidings_pipeline::cutlog::{self, Entry};
use tidings_pipeline::topology::{FixedEnvironment, Loader, OperatorKinds, ProviderKinds, SourceText, Topology};
use tidings_schemas::block::{Block, Kind};
use tidings_schemas::channel::{Channel, Op, Priority};
use tidings_schemas::cloudevents;
use tidings_schemas::codec::frame;
use tidings_schemas::lane::{LaneRecord, Returned};
use tidings_schemas::plain::PlainEvent;
use tidings_schemas::time::Instant;
use tidings_sinks::lane::wire::{self, Read};
use tidings_sinks::log::Record;

/// A target, by the name of its corpus.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&[u8]),
}

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "event", run: event },
    Target { name: "cloudevent", run: cloudevent },
    Target { name: "side_input", run: side_input },
    Target { name: "lane", run: lane },
    Target { name: "when", run: when },
    Target { name: "topology", run: topology },
    Target { name: "state", run: state },
    Target { name: "cut_log", run: cut_log },
    Target { name: "block", run: block },
];

/// What costs time to make, once per thread.
struct Room {
    rules: Rules,
    calendar: Calendar,
    wiring: Wiring,
    operators: OperatorKinds,
    providers: ProviderKinds,
}

thread_local! {
    static ROOM: Room = Room {
        rules: script::rules_of(&script::policies(), std::time::Duration::ZERO),
        calendar: Calendar::bundled(),
        wiring: script::straight(&[
            ("validate", serde_json::json!({}), None),
            ("dedup", serde_json::json!({"window": "24h"}), None),
            ("schedule", serde_json::json!({}), None),
            ("preferences", serde_json::json!({}), None),
            ("aggregate", serde_json::json!({}), None),
            ("route", serde_json::json!({}), None),
            ("quiet_hours", serde_json::json!({}), None),
            ("rate_limit", serde_json::json!({"levels": [{"per": ["type"], "push": "2/h"}]}), None),
        ]),
        operators: OperatorKinds::standard(),
        providers: ProviderKinds::standard(),
    };
}

fn record(key: Option<&[u8]>, value: &[u8], headers: Vec<(String, Bytes)>) -> RawRecord {
    let (key, value) = (key.map(Bytes::copy_from_slice), Some(Bytes::copy_from_slice(value)));
    RawRecord { offset: 7, key, value, headers, timestamp: Instant(1_774_735_200_000) }
}

/// Reads a record as decide does. What is refused has a dead letter, which is JSON.
fn read(kind: SourceKind, record: &RawRecord) -> Body {
    let (source, lot) = (Source { id: "in".into(), kind }, Lot { source: 0, partition: 3 });
    let arrived = ROOM.with(|room| ingest(&source, lot, record, &room.rules, Path::Decide));
    if let Body::Rejected(rejected) = &arrived.body {
        let letter: serde_json::Value =
            serde_json::from_slice(&rejected.letter(Path::Decide)).expect("a letter is JSON");
        assert!(letter["problem"].as_str().is_some_and(|problem| !problem.is_empty()), "{letter}");
    }
    arrived.body
}

/// An event as a producer writes it. The short way through the parser and the long one agree.
fn event(data: &[u8]) {
    if let Some(mut short) = PlainEvent::read(data) {
        short.op.get_or_insert(Op::Notify);
        let long = cloudevents::parse_record(&[], None, data, false).map(PlainEvent::from);
        assert_eq!(long.ok(), Some(short), "the two readers differ");
    }
    for unknown_to_data in [false, true] {
        read(SourceKind::Events { unknown_to_data }, &record(Some(b"u1"), data, Vec::new()));
    }
}

/// A CloudEvent in either mode: lines `name: value` up to an empty one are headers.
fn cloudevent(data: &[u8]) {
    let (mut headers, mut rest) = (Vec::new(), data);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        let text = String::from_utf8_lossy(line);
        let Some((name, value)) = text.split_once(": ").filter(|_| headers.len() < 16) else { break };
        headers.push((name.to_owned(), Bytes::copy_from_slice(value.as_bytes())));
        rest = after;
    }
    for unknown_to_data in [false, true] {
        read(SourceKind::Events { unknown_to_data }, &record(None, rest, headers.clone()));
    }
}

/// A profile, an address or a returned leg.
fn side_input(data: &[u8]) {
    read(SourceKind::Profiles, &record(Some(b"u1"), data, Vec::new()));
    read(SourceKind::Addresses, &record(Some(b"u1/a1"), data, Vec::new()));
    if serde_json::from_slice::<Returned>(data).is_ok_and(|returned| !returned.leg.members.is_empty()) {
        assert!(matches!(read(SourceKind::Returned, &record(Some(b"u1"), data, Vec::new())), Body::Item(_)));
    }
}

/// A record of a lane: what is read is written and read again.
fn lane(data: &[u8]) {
    let of = |value: &[u8], headers: &[(&str, &str)]| {
        let headers =
            headers.iter().map(|(name, value)| ((*name).to_owned(), Bytes::copy_from_slice(value.as_bytes())));
        let value = Some(Bytes::copy_from_slice(value));
        wire::read(&Record { offset: 0, key: None, value, headers: headers.collect(), timestamp: Instant(0) })
    };
    let _ = of(data, &[("mark", "1")]);
    let _ = of(&frame(1, data), &[("mark", "1")]);
    let _ = of(data, &[("due", &String::from_utf8_lossy(data)), ("siblings", &String::from_utf8_lossy(data))]);
    if let Ok(Read::Leg { record, .. }) = of(data, &[]) {
        let again = serde_json::to_vec(&*record).expect("a lane record is JSON");
        assert_eq!(serde_json::from_slice::<LaneRecord>(&again).ok().as_ref(), Some(&*record), "a lane record changed");
    }
}

struct SomeFacts(BTreeMap<String, serde_json::Value>);

impl Facts for SomeFacts {
    fn text(&self, _: Text) -> &str {
        "social"
    }
    fn count(&self, _: Count) -> u64 {
        3
    }
    fn priority(&self) -> Priority {
        Priority::Medium
    }
    fn channel(&self) -> Option<Channel> {
        Some(Channel::Push)
    }
    fn time(&self) -> Instant {
        Instant(1_774_735_200_000)
    }
    fn data(&self, path: &[String]) -> Value<'_> {
        Value::at(&self.0, path)
    }
}

/// A condition, and an expression.
fn when(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let facts = SomeFacts(BTreeMap::from([("x".to_owned(), serde_json::json!({"y": [1, "a", 1e300], "z": -0.5}))]));
    match when::compile(text) {
        Ok(condition) => {
            let _ = condition.holds(&facts);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(value) = when::compile_value(text) {
        let _ = value.evaluate(&facts);
    }
}

/// A topology: what is accepted can be stored and read back, what is refused can be shown.
fn topology(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    ROOM.with(|room| {
        let environment = FixedEnvironment::default();
        let Room { operators, providers, calendar, .. } = room;
        let loader = Loader { operators, providers, calendar, environment: &environment };
        match loader.check(SourceText::new("fuzzed.yaml", text)) {
            Ok(loaded) => {
                let topology = &loaded.config.topology;
                let back = Topology::from_canonical(&topology.canonical()).expect("canonical bytes are read back");
                assert_eq!(back, *topology, "a stored topology changed");
            }
            Err(refused) => {
                assert!(!refused.findings.is_empty() && refused.render(false).contains("error["));
            }
        }
    });
}

/// Images of a checkpoint's chunk, behind the checksum: they are restored or refused with their place.
fn state(data: &[u8]) {
    let Ok(images) = postcard::from_bytes::<Vec<(Arc<str>, StateKey, Image)>>(data) else { return };
    let delta: Delta = images.into_iter().map(|(operator, key, image)| ((operator, key), image)).collect();
    ROOM.with(|room| {
        for (key, image) in delta.iter() {
            let mut chain = room.wiring.chain(Path::Decide).expect("the wiring is right");
            if let Err(error) = chain.restore(std::iter::once((key, image)), [0; 32]) {
                assert!(error.to_string().contains('`'), "{error}");
            }
        }
    });
}

/// An entry of the cut log, behind the checksum; and a log of such entries.
fn cut_log(data: &[u8]) {
    let _ = Entry::decode(1, data);
    if let Ok(entry) = Entry::decode(1, &frame(1, data)) {
        assert_eq!(Entry::decode(1, &entry.encode()).ok().as_ref(), Some(&entry), "an entry changed");
        let _ = cutlog::read([(1, entry.clone()), (2, entry)], true);
    }
}

/// A lifecycle block, as it is and behind a checksum.
fn block(data: &[u8]) {
    let framed = data.split_first().map(|(version, body)| frame(*version, body)).unwrap_or_default();
    for bytes in [data, &framed] {
        if let Ok(block) = Block::decode_header(bytes)
            && block.header.kind == Kind::Rows
        {
            let _ = block.decode_rows();
        }
    }
}

/// Runs the target of this name.
#[allow(dead_code, reason = "one of the two drivers calls it")]
pub(crate) fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(data);
}
