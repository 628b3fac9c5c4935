//! The fuzz targets of `fuzz/targets.rs`, driven without a fuzzer: each corpus as it is, and mutations of it,
//! drawn from a seed, so that a failure is the same everywhere. `fuzz/README.md` says how to hunt longer.

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use targets::Target;

/// Mutations of one target in a usual run: a second or two.
const ROUNDS: u64 = 6_000;

/// A topology is read a hundred times as slowly as an event.
const ROUNDS_OF_TOPOLOGIES: u64 = 400;

const BYTES_MAX: usize = 16 * 1024;

/// What parsers stumble over.
const TOKENS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b":",
    b",",
    b"null",
    b"true",
    b"-",
    b"0",
    b"-0",
    b"1e999",
    b"1e-999",
    b".",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\xf0\x9f\x98\x80",
    b"\xe2\x80\xae",
    b"9999-12-31T23:59:59Z",
    b"-262143-01-01T00:00:00Z",
    b"2026-03-29T02:30:00",
    b"((((((((((((((((",
    b"[[[[[[[[[[[[[[[[",
    b"not ",
    b" and ",
    b" in [",
    b"data.",
    b"has(",
    b"${",
    b"}",
    b"&a ",
    b"*a",
    b"<<: ",
    b"- ",
    b"\n  ",
    b"\t",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x10",
    b"\x00\x00\x00\x00",
];

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides.max(1)
    }
}

fn mutated(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut data = corpus[dice.roll(corpus.len())].clone();
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(data.len() + 1);
        let end = (at + dice.roll(24)).min(data.len());
        match dice.roll(9) {
            0 if at < data.len() => data[at] ^= 1 << dice.roll(8),
            1 if at < data.len() => data[at] = u8::try_from(dice.roll(256)).unwrap(),
            2 => drop(data.drain(at..end)),
            3 => {
                let part = data[at..end].to_vec();
                data.splice(at..at, part.repeat(1 + dice.roll(60)));
            }
            4 => {
                let other = &corpus[dice.roll(corpus.len())];
                let from = dice.roll(other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
            5 => data.truncate(at),
            6 => drop(data.splice(at..end, TOKENS[dice.roll(TOKENS.len())].iter().copied())),
            _ => drop(data.splice(at..at, TOKENS[dice.roll(TOKENS.len())].repeat(1 + dice.roll(8)))),
        }
    }
    data.truncate(BYTES_MAX);
    data
}

#[expect(clippy::disallowed_methods, reason = "whoever hunts says how long and from where")]
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target.name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.display().to_string(), std::fs::read(file).unwrap())).collect()
}

fn hunt(name: &str) {
    let target = targets::TARGETS.iter().find(|target| target.name == name).unwrap();
    // What kills the whole process can be read here.
    let last = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-last"));
    let run = |what: &str, data: &[u8]| {
        std::fs::write(&last, data).unwrap();
        if catch_unwind(AssertUnwindSafe(|| (target.run)(data))).is_err() {
            panic!(
                "target `{name}` died of {what}, which stands in {}: {:?}",
                last.display(),
                String::from_utf8_lossy(data)
            );
        }
    };
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "the corpus of `{name}` is empty");
    for (file, data) in &corpus {
        run(file, data);
    }
    let corpus: Vec<Vec<u8>> = corpus.into_iter().map(|(_, data)| data).collect();
    let (usual, seed) = (if name == "topology" { ROUNDS_OF_TOPOLOGIES } else { ROUNDS }, asked("TIDINGS_FUZZ_SEED"));
    let mut dice = Dice(seed.unwrap_or(1));
    for round in 0..asked("TIDINGS_FUZZ_ROUNDS").unwrap_or(usual) {
        let data = mutated(&mut dice, &corpus);
        run(&format!("round {round} of seed {}", seed.unwrap_or(1)), &data);
    }
}

macro_rules! hunts {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            hunt(stringify!($name));
        })*

        #[test]
        fn every_target_is_hunted() {
            let hunted = [$(stringify!($name)),*];
            assert!(targets::TARGETS.iter().all(|target| hunted.contains(&target.name)));
        }
    };
}

hunts![event, cloudevent, side_input, lane, when, topology, state, cut_log, block];
