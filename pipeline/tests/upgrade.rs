//! State of earlier versions is read, and decides as it did.
//!
//! `tests/state/N` holds what a build of state version N wrote in the middle of a night: a checkpoint
//! (chunk and manifest), and what it said from there on to the next noon. Each is restored by this build,
//! which must say the same. The folder of the newest version is also compared with what this build writes,
//! byte for byte, so that no encoding changes unnoticed.
//!
//! After a deliberate change of an encoding: raise the state's `VERSION` and give it a `migrate`, count
//! [`NEWEST`] up, and make the new folder, which is the one that this command writes:
//! `UPDATE_EXPECT=1 cargo test -p tidings-pipeline --test upgrade`. Older folders stay as they are; before the
//! first release the newest may be made anew instead.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidings_operators::harness::PROFILES;
use tidings_operators::harness::chain::{Block, Chain};
use tidings_operators::harness::delta::{Delta, Pending};
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::harness::output::{EpochOutput, To};
use tidings_operators::ingest::{Path, ingest};
use tidings_operators::item::Item;
use tidings_operators::keyed::{Cx, Operator, State, Subkey, Table};
use tidings_operators::registry::{OperatorKind, Wiring};
use tidings_operators::rules::Rules;
use tidings_operators::script;
use tidings_pipeline::checkpoint::{Checkpoints, Manifest};
use tidings_schemas::time::Instant;

/// The newest state version of which there is a folder.
const NEWEST: u32 = 1;

/// The night: it begins, a checkpoint is taken, it is over.
const EVENING: &str = "2026-03-28T21:00:00Z";
const NIGHT: &str = "2026-03-28T23:30:00Z";
const NOON: &str = "2026-03-29T14:00:00Z";

const STEP: Duration = Duration::from_secs(60);

fn wiring() -> Wiring {
    let limits = json!({"levels": [{"per": ["channel", "type"], "push": "2/d", "other": "5/h"}]});
    script::straight(&[
        ("validate", json!({}), None),
        ("dedup", json!({"window": "24h"}), None),
        ("schedule", json!({}), None),
        ("preferences", json!({}), None),
        ("aggregate", json!({"window": "3h", "threshold": 4}), Some(r#"category == "social" and type != "comment""#)),
        ("route", json!({}), None),
        ("quiet_hours", json!({"spread": "10m"}), None),
        ("rate_limit", limits, None),
    ])
}

fn rules() -> Rules {
    script::rules_of(&script::policies(), Duration::from_secs(600))
}

/// Key, value and source (0 events, 2 profiles, 3 addresses), in order.
fn workload() -> Vec<(u16, String, String)> {
    let mut records = Vec::new();
    for (user, zone) in [("ana", "Europe/Berlin"), ("bo", "America/New_York"), ("cy", "Asia/Kolkata")] {
        let profile = format!(
            r#"{{"time_zone":"{zone}","quiet_hours":{{"from":"22:00","to":"07:00"}},"locale":"de","channel_order":["push","email"]}}"#
        );
        records.push((2, user.to_owned(), profile));
        for channel in ["push", "email"] {
            let address = json!({"user_id": user, "address_id": channel, "channel": channel, "address": "x"});
            records.push((3, format!("{user}/{channel}"), address.to_string()));
        }
        let event = |id: &str, kind: &str, more: serde_json::Value| {
            let mut event = json!({"id": format!("{user}-{id}"), "type": kind, "user_id": user});
            event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            (0, user.to_owned(), event.to_string())
        };
        let actor = |name: &str| json!({"id": name, "name": name});
        // Parked in a window, quiet hours, a limit, for a date; and a repeat.
        for (id, name) in [("w1", "eve"), ("w2", "fay")] {
            records.push(event(id, "like", json!({"actor": actor(name), "object": {"id": "photo"}, "data": {"n": 7}})));
        }
        for number in 0..4 {
            let id = format!("c{number}");
            let more = json!({"actor": actor("gil"), "object": {"id": id}, "expires_at": "2026-03-30T00:00:00Z"});
            records.push(event(&id, "comment", more));
        }
        let more = json!({"object": {"id": "later"}, "scheduled_at": "2026-03-29T09:00:00Z", "cancel_key": "k"});
        records.push(event("s1", "like", more));
        records.push(event("w1", "like", json!({"actor": actor("eve"), "object": {"id": "photo"}})));
    }
    records
}

fn epoch(chain: &mut Chain, number: u64, now: Instant, records: Vec<(u16, RawRecord)>) -> EpochOutput {
    let (sources, rules) = (script::sources(), rules());
    let mut blocks: BTreeMap<u16, Block> = BTreeMap::new();
    for (source, record) in records {
        let lot = Lot { source, partition: 0 };
        let arrived = ingest(&sources[usize::from(source)], lot, &record, &rules, Path::Decide);
        blocks.entry(source).or_insert_with(|| Block { lot, target: 0, records: Vec::new() }).records.push(arrived);
    }
    let mut output = chain.epoch(number, now, &rules, blocks.into_values().collect());
    output.canonical();
    output
}

fn instant(text: &str) -> Instant {
    text.parse().unwrap()
}

/// Lines of what epochs from `from` to `to` say, minute by minute.
fn run(chain: &mut Chain, from: Instant, to: Instant) -> (Vec<String>, Pending, u64) {
    let (mut lines, mut state) = (Vec::new(), Pending::default());
    let (mut now, mut number) = (from, from.since(instant(EVENING)).as_secs() / 60);
    while now < to {
        (now, number) = (now.after(STEP), number + 1);
        let mut output = epoch(chain, number, now, Vec::new());
        state.add(std::mem::take(&mut output.delta));
        for said in &output.said {
            let To::Lane(channel, priority) = &said.to else { panic!("{:?}", said.to) };
            let text = std::str::from_utf8(&said.value).unwrap();
            lines.push(format!("{now} {}.{} {text}", channel.as_str(), priority.as_str()));
        }
    }
    (lines, state, number)
}

/// The night up to the checkpoint: its epoch and state; and what follows, by the same chain.
fn night() -> (u64, Delta, Vec<String>) {
    let mut chain = wiring().chain(Path::Decide).unwrap();
    let record = |(offset, (source, key, value)): (usize, (u16, String, String))| {
        let (offset, headers) = (offset as u64, Vec::new());
        let timestamp = instant(EVENING);
        (source, RawRecord { offset, key: Some(key.into()), value: Some(value.into()), headers, timestamp })
    };
    let mut state = Pending::default();
    // Side inputs alone, as a start does.
    let (side, events): (Vec<_>, Vec<_>) = workload().into_iter().enumerate().map(record).partition(|it| it.0 > 1);
    state.add(epoch(&mut chain, 0, instant(EVENING), side).delta);
    state.add(epoch(&mut chain, 0, instant(EVENING), events).delta);
    let (_, later, number) = run(&mut chain, instant(EVENING), instant(NIGHT));
    state.add(later.into_delta());
    let (lines, ..) = run(&mut chain, instant(NIGHT), instant(NOON));
    let state = state.into_delta().without_gone();
    (number, state, lines)
}

fn folder(version: u32) -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/state/{version}"))
}

const MANIFEST: &str = "manifests/00000000000000000000-00000000000000000150";

/// Writes a checkpoint of the night into `folder`.
fn write(folder: &FilePath, epoch: u64, state: &Delta) {
    let manifest = Manifest { epoch, now: instant(NIGHT), rules: rules().hash, ..Manifest::default() };
    let (name, _) = Checkpoints::in_folder(folder).unwrap().write(0, manifest, state).unwrap();
    assert_eq!(name, MANIFEST);
}

fn files(folder: &FilePath) -> BTreeMap<String, Vec<u8>> {
    let below = |part: &str| std::fs::read_dir(folder.join(part)).unwrap().map(|file| file.unwrap().path());
    let read = |path: PathBuf| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap());
    ["chunks", "manifests"]
        .into_iter()
        .flat_map(|part| below(part).map(move |path| (part, path)))
        .map(|(part, path)| {
            let (name, bytes) = read(path);
            (format!("{part}/{name}"), bytes)
        })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "whoever runs the test says that the newest folder is to be made")]
fn makes_anew() -> bool {
    std::env::var("UPDATE_EXPECT").is_ok()
}

#[test]
fn state_of_every_version_is_restored_and_decides_as_it_did() {
    let (number, state, lines) = night();
    let held: BTreeSet<String> = state.iter().map(|((operator, _), _)| operator.to_string()).collect();
    let operators = ["aggregate", "dedup", "quiet_hours", "rate_limit", "schedule", PROFILES];
    assert_eq!(held, operators.into_iter().map(str::to_owned).collect(), "each operator with state holds some");
    assert!(lines.len() > 12, "only {} lane records after the checkpoint, which proves little", lines.len());
    if makes_anew() {
        let _ = std::fs::remove_dir_all(folder(NEWEST));
        write(&folder(NEWEST), number, &state);
        std::fs::write(folder(NEWEST).join("said.txt"), lines.join("\n") + "\n").unwrap();
    }
    for version in 1..=NEWEST {
        let checkpoints = Checkpoints::in_folder(&folder(version)).unwrap();
        let manifest = checkpoints.manifest(MANIFEST).unwrap();
        let restored = checkpoints.state(&manifest).unwrap();
        // Another number of workers than one shares it out.
        let mut said = Vec::new();
        for worker in 0..3 {
            let mut chain = wiring().chain(Path::Decide).unwrap();
            let mine = restored.of_worker(worker, 3);
            chain.restore(mine, manifest.rules).unwrap_or_else(|error| panic!("version {version}: {error}"));
            said.extend(run(&mut chain, manifest.now, instant(NOON)).0);
        }
        said.sort();
        let golden = std::fs::read_to_string(folder(version).join("said.txt")).unwrap();
        let mut golden: Vec<&str> = golden.lines().collect();
        golden.sort_unstable();
        assert_eq!(said, golden, "version {version}");
    }
    let written = tempfile::tempdir().unwrap();
    write(written.path(), number, &state);
    let differ: Vec<String> = (files(written.path()).into_iter())
        .filter(|(name, bytes)| std::fs::read(folder(NEWEST).join(name)).ok().as_ref() != Some(bytes))
        .map(|(name, _)| name)
        .collect();
    assert!(
        differ.is_empty(),
        "this build writes other bytes than version {NEWEST} did ({differ:?}): what it decides or how it encodes state \
         changed; see the head of this file"
    );
}

#[test]
fn state_of_an_unknown_version_is_refused_with_its_place() {
    let (_, state, _) = night();
    let refused = |operator: &str| {
        let mut images: Vec<_> = state.iter().map(|(key, image)| (key.clone(), image.clone())).collect();
        images.retain(|((of, key), image)| **of == *operator && &*key.user == "ana" && image.head.is_some());
        let (_, image) = images.first_mut().unwrap();
        image.head.as_mut().unwrap().0 = 9;
        let mut chain = wiring().chain(Path::Decide).unwrap();
        let images: Delta = images.into_iter().collect();
        chain.restore(images.iter(), rules().hash).unwrap_err().to_string()
    };
    assert_eq!(
        refused("dedup"),
        "state of operator `dedup` for user `ana`: it is of version 9, and this build reads version 1 only: start a \
         build that knows version 9"
    );
    assert_eq!(
        refused(PROFILES),
        "state of operator `~profiles` for user `ana`: it is of version 9, and this build reads version 1 only: start a \
         build that knows version 9"
    );
}

/// What the operator `tally` kept once, and what it keeps now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct TallyV1(u16);

impl State for TallyV1 {}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct TallyV2 {
    name: String,
    count: u64,
}

impl State for TallyV2 {
    const VERSION: u8 = 2;

    fn migrate(from: u8, bytes: &[u8]) -> Result<Self, String> {
        match from {
            1 => {
                let TallyV1(count) = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
                Ok(Self { name: "old".to_owned(), count: u64::from(count) })
            }
            from => Err(tidings_operators::keyed::unknown_version::<Self>(from)),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
struct TallyParams {}

struct Tally<S>(std::marker::PhantomData<S>);

/// Counts, and says the count as a change of the notification's name.
trait Count: State {
    fn count(&mut self);
}

impl Count for TallyV1 {
    fn count(&mut self) {
        self.0 += 1;
    }
}

impl Count for TallyV2 {
    fn count(&mut self) {
        self.count += 1;
        self.name.push('+');
    }
}

impl<S: Count> Operator for Tally<S> {
    const KIND: &'static str = "tally";
    type Params = TallyParams;
    type User = S;
    type Entry = S;
    type Body = ();
    type Store = Table<Self>;

    fn new(_: TallyParams) -> Self {
        Self(std::marker::PhantomData)
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, item: Box<Item>) {
        cx.user_mut().count();
        cx.entry_mut(&Subkey::of(&["k"])).count();
        cx.emit(0, item);
    }
}

#[test]
fn an_operator_reads_what_its_older_version_wrote() {
    static OLD: &[OperatorKind] = &[OperatorKind::of::<Tally<TallyV1>>()];
    static NEW: &[OperatorKind] = &[OperatorKind::of::<Tally<TallyV2>>()];
    let chain = |more| {
        let straight = [("validate", json!({}), None), ("tally", json!({}), None), ("route", json!({}), None)];
        Wiring { more, ..script::straight(&straight) }.chain(Path::Decide).unwrap()
    };
    let event = |offset| {
        let value = Some(r#"{"type":"like","user_id":"ana"}"#.into());
        let (key, headers, timestamp) = (Some("ana".into()), Vec::new(), instant(EVENING));
        vec![(0, RawRecord { offset, key, value, headers, timestamp })]
    };
    let mut old = chain(OLD);
    drop(epoch(&mut old, 1, instant(EVENING), event(0)));
    let written = epoch(&mut old, 2, instant(EVENING), event(1)).delta;
    let mut new = chain(NEW);
    new.restore(written.iter(), rules().hash).unwrap();
    let now = epoch(&mut new, 3, instant(EVENING), event(2)).delta;
    let tallies: Vec<(u8, TallyV2)> = now
        .iter()
        .filter(|((operator, _), _)| **operator == *"tally")
        .map(|(_, image)| image.head.unwrap())
        .map(|(version, bytes)| (version, postcard::from_bytes(&bytes).unwrap()))
        .collect();
    let expected = (2, TallyV2 { name: "old+".to_owned(), count: 3 });
    assert_eq!(tallies, [expected.clone(), expected]);
    // The way back is none.
    let error = chain(OLD).restore(now.iter(), rules().hash).unwrap_err().to_string();
    let expected = "state of operator `tally` for user `ana`: it is of version 2, and this build reads version 1 only: \
                    start a build that knows version 2";
    assert_eq!(error, expected);
}
