//! The loader against its golden errors, the example topologies, and thousands of broken ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tidings_pipeline::topology::{
    Code, FixedEnvironment, Loaded, Loader, OperatorKinds, ProviderKinds, Refused, SourceText, WhenProblem,
    dot, mermaid, standard_operators, standard_providers, svg,
};

/// Everything a [`Loader`] borrows.
struct Bench {
    operators: OperatorKinds,
    providers: ProviderKinds,
    zones: Vec<&'static str>,
    environment: FixedEnvironment,
}

impl Bench {
    fn new() -> Self {
        let variables = [("TIDINGS_HOST", "kafka.internal"), ("SECRET_COUNT", "s3cr3t"), ("TEN", "10"), ("EMPTY", "")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let files = [("keys/id", "KEYFROMFILE\n")].map(|(path, text)| (path.to_owned(), text.to_owned()));
        Self {
            operators: standard_operators(),
            providers: standard_providers(),
            zones: chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()).collect(),
            environment: FixedEnvironment { variables: variables.into(), files: files.into() },
        }
    }

    fn check(&self, name: &str, text: &str) -> Result<Loaded, Box<Refused>> {
        let loader = Loader {
            operators: &self.operators,
            providers: &self.providers,
            when: &when,
            zones: &self.zones,
            environment: &self.environment,
        };
        loader.check(SourceText::new(name, text))
    }
}

/// As much of a condition's compiler as the loader's own tests need: names must be known.
fn when(text: &str) -> Result<(), WhenProblem> {
    const NAMES: [&str; 8] = ["user_id", "type", "category", "priority", "channel", "tenant", "actors", "activities"];
    let word = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
    if NAMES.contains(&word) {
        return Ok(());
    }
    Err(WhenProblem {
        at: 0..word.len(),
        found: format!("unknown name `{word}`"),
        expected: "a field of an item".to_owned(),
        nearest: tidings_pipeline::topology::nearest(word, NAMES).map(str::to_owned),
    })
}

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(folder(path)).unwrap()
}

/// Compares with a golden file, or writes it where `UPDATE_EXPECT` is set.
fn expect(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(actual, expected, "{} differs; UPDATE_EXPECT=1 rewrites it", path.display());
}

/// Each case is written in full or as a patch of `base.yaml`: lines `--- old`, `+++ new`.
fn cases() -> BTreeMap<String, PathBuf> {
    std::fs::read_dir(folder("tests/topology_errors"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .collect()
}

#[test]
fn every_fault_is_reported_as_its_golden_message_says() {
    let bench = Bench::new();
    for (name, path) in cases() {
        let text = std::fs::read_to_string(&path).unwrap();
        let rendered = match bench.check(&format!("{name}.yaml"), &text) {
            Err(refused) => refused.render(false),
            Ok(loaded) => loaded.source.render(&loaded.warnings, false),
        };
        expect(&path.with_extension("stderr"), &rendered);
    }
}

#[test]
fn every_code_has_a_case_that_is_named_after_it() {
    let (bench, mut found) = (Bench::new(), BTreeSet::new());
    for (name, path) in cases() {
        let text = std::fs::read_to_string(&path).unwrap();
        let findings = match bench.check(&name, &text) {
            Err(refused) => refused.findings,
            Ok(loaded) => loaded.warnings,
        };
        let codes: BTreeSet<&str> = findings.iter().map(|finding| finding.code.as_str()).collect();
        assert!(
            codes.iter().any(|code| name.starts_with(code)) || name == "many_at_once",
            "{name} shows {codes:?}, none of which it is named after"
        );
        found.extend(codes);
    }
    let missing: Vec<_> = Code::ALL.iter().filter(|code| !found.contains(code.as_str())).collect();
    assert!(missing.is_empty(), "no case in tests/topology_errors shows {missing:?}");
}

#[test]
fn the_example_topologies_are_right() {
    let bench = Bench::new();
    for name in ["topology.yaml", "small.yaml"] {
        match bench.check(name, &read(&format!("../examples/{name}"))) {
            Ok(loaded) => assert!(loaded.warnings.is_empty(), "{}", loaded.source.render(&loaded.warnings, false)),
            Err(refused) => panic!("{}", refused.render(false)),
        }
    }
}

#[test]
fn the_pictures_of_the_examples_are_golden() {
    let bench = Bench::new();
    for name in ["topology", "small"] {
        let loaded = bench.check(name, &read(&format!("../examples/{name}.yaml"))).unwrap();
        let topology = &loaded.config.topology;
        expect(&folder(&format!("tests/topology_graphs/{name}.mmd")), &mermaid(topology, &bench.operators));
        expect(&folder(&format!("tests/topology_graphs/{name}.dot")), &dot(topology, &bench.operators));
        expect(&folder(&format!("tests/topology_graphs/{name}.svg")), &svg(topology, &bench.operators));
    }
}
