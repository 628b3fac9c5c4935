//! The loader against its golden errors, the example topologies, and thousands of broken ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tidings_operators::calendar::Calendar;
use tidings_pipeline::topology::{
    Code, FixedEnvironment, Loaded, Loader, OperatorKinds, ProviderKinds, Refused, Role, SourceText, Store, Topology,
    canonical_policies, default_policies, dot, mermaid, policies_from_canonical, schema, svg,
};

/// Everything a [`Loader`] borrows.
struct Bench {
    operators: OperatorKinds,
    providers: ProviderKinds,
    calendar: Calendar,
    environment: FixedEnvironment,
}

impl Bench {
    fn new() -> Self {
        let variables = [("TIDINGS_HOST", "kafka.internal"), ("SECRET_COUNT", "s3cr3t"), ("TEN", "10"), ("EMPTY", "")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let files = [("keys/id", "KEYFROMFILE\n")].map(|(path, text)| (path.to_owned(), text.to_owned()));
        Self {
            operators: OperatorKinds::standard(),
            providers: ProviderKinds::standard(),
            calendar: Calendar::bundled(),
            environment: FixedEnvironment { variables: variables.into(), files: files.into() },
        }
    }

    fn check(&self, name: &str, text: &str) -> Result<Loaded, Box<Refused>> {
        let loader = Loader {
            operators: &self.operators,
            providers: &self.providers,
            calendar: &self.calendar,
            environment: &self.environment,
        };
        loader.check(SourceText::new(name, text))
    }
}

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(folder(path)).unwrap()
}

/// Compares with a golden file, or writes it where `UPDATE_EXPECT` is set.
#[expect(clippy::disallowed_methods, reason = "who runs the test says whether golden files are rewritten")]
fn expect(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(actual, expected, "{} differs; UPDATE_EXPECT=1 rewrites it", path.display());
}

/// The cases by name: each a topology in full, with one fault where its name does not say otherwise.
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
        expect(&folder(&format!("tests/topology_golden/{name}.mmd")), &mermaid(topology, &bench.operators));
        expect(&folder(&format!("tests/topology_golden/{name}.dot")), &dot(topology, &bench.operators));
        expect(&folder(&format!("tests/topology_golden/{name}.svg")), &svg(topology, &bench.operators));
    }
}

#[test]
fn programs_read_the_same_findings_as_json() {
    let refused =
        Bench::new().check("many_at_once.yaml", &read("tests/topology_errors/many_at_once.yaml")).unwrap_err();
    let json = serde_json::to_string_pretty(&refused.to_json()).unwrap();
    expect(&folder("tests/topology_errors/many_at_once.json"), &(json + "\n"));
}

#[test]
fn what_comes_from_outside_is_used_and_never_shown() {
    let mut bench = Bench::new();
    bench.environment.variables.insert("PASSWORD".to_owned(), "hunter2: \n- {x".to_owned());
    let text = read("../examples/small.yaml").replace(
        "sources:",
        "ledger: { redis: \"redis://:${PASSWORD}@db\" }\ndirectory: { redis: \"$${PASSWORD}${EMPTY:-x}\" }\nsources:",
    );
    let text = text.replace("window: 5m", "threshold: \"${TEN}\"").replace("./keys/fcm.json", "\"${file:keys/id}\"");
    let config = bench.check("secret.yaml", &text).unwrap().config;
    let Store::Redis(ledger) = &config.deployment.ledger else { panic!("not Redis") };
    assert_eq!(ledger.get(), "redis://:hunter2: \n- {x@db", "a value never changes the document around it");
    let Store::Redis(directory) = &config.deployment.directory else { panic!("not Redis") };
    assert_eq!(directory.get(), "${PASSWORD}x");
    assert_eq!(config.topology.operator("aggregate").unwrap().params["threshold"], 10);
    assert_eq!(config.deployment.providers["fcm"].params.get()["credentials_file"], "KEYFROMFILE");
    let everything = format!("{config:?}{}", String::from_utf8(config.topology.canonical()).unwrap());
    assert!(!everything.contains("hunter2") && !everything.contains("KEYFROMFILE"));
    for place in [
        "version: 1",
        "window: 24h",
        "side_input: profile",
        "channels: [push]",
        "user_id: u1",
        "at: \"2026-06-01 12:00 Europe/Berlin\"",
        "input: dedup",
        "kind: route",
        "30/h",
    ] {
        let key = place.split(": ").next().unwrap();
        let wrong = match place {
            "30/h" => "${PASSWORD}".to_owned(),
            _ => format!("{key}: \"${{PASSWORD}}\""),
        };
        let text = read("../examples/small.yaml").replace(place, &wrong);
        let said = match bench.check("secret.yaml", &text) {
            Err(refused) => refused.render(false) + &refused.to_json().to_string(),
            Ok(loaded) => format!("{loaded:?}").replace(loaded.source.text(), ""),
        };
        assert!(!said.contains("hunter2") || place == "user_id: u1", "{place}: {said}");
    }
}

#[test]
fn the_wiring_is_what_the_example_says() {
    let loaded = Bench::new().check("topology.yaml", &read("../examples/topology.yaml")).unwrap();
    let topology = &loaded.config.topology;
    let chain: Vec<&str> = topology.operators.iter().map(|operator| operator.id.as_str()).collect();
    assert_eq!(
        chain,
        ["validate", "dedup", "schedule", "preferences", "aggregate", "route", "quiet_hours", "rate_limit"]
    );
    let ports: Vec<&str> = topology.operator("dedup").unwrap().inputs.iter().map(|input| input.name()).collect();
    assert_eq!(ports, ["validate", "returned"], "ports are numbered in the order written");
    assert_eq!(topology.source("critical").unwrap().role, Role::Critical);
    assert_eq!(topology.operator("aggregate").unwrap().params["window"], "5m");
    assert_eq!(loaded.config.tests.len(), 12);
    let new_york = &loaded.config.tests[3].steps[0].at;
    assert_eq!(new_york.at.to_string(), "2026-11-01T02:00:00Z", "tests are written in local time");
}

#[test]
fn operators_come_in_topological_order_however_they_are_written() {
    let (bench, text) = (Bench::new(), read("../examples/small.yaml"));
    let (head, rest) = text.split_once("operators:\n").unwrap();
    let (list, tail) = rest.split_once("\nsinks:").unwrap();
    let mut lines: Vec<&str> = list.lines().collect();
    lines.reverse();
    let turned = format!("{head}operators:\n{}\n\nsinks:{tail}", lines.join("\n"));
    let hash = |text: &str| bench.check("small.yaml", text).unwrap().config.topology.hash();
    assert_eq!(hash(&turned), hash(&text));
}

#[test]
fn the_built_in_policies_are_the_tables_of_the_example() {
    let mut policies = Bench::new().check("topology.yaml", &read("../examples/topology.yaml")).unwrap().config.policies;
    policies.types.remove("like");
    policies.types.get_mut("order_shipped").unwrap().dedup_key = None;
    assert_eq!(policies, default_policies());
}

#[test]
fn canonical_bytes_are_golden_and_read_back() {
    let loaded = Bench::new().check("small.yaml", &read("../examples/small.yaml")).unwrap();
    let topology = &loaded.config.topology;
    let bytes = topology.canonical();
    expect(&folder("tests/topology_golden/small.canonical.json"), &(String::from_utf8(bytes.clone()).unwrap() + "\n"));
    assert_eq!(&Topology::from_canonical(&bytes).unwrap(), topology);
    assert_eq!(topology.hash().to_string(), "8ef983ce7a67f3b7651c8fe1d2d5b0b3cfd0c896596077d5a359065153d7cde8");
    let bytes = canonical_policies(&loaded.config.policies);
    assert_eq!(policies_from_canonical(&bytes).unwrap(), loaded.config.policies);
    assert!(Topology::from_canonical(&bytes).is_err());
}

#[test]
fn what_does_not_decide_does_not_change_the_hash() {
    let (bench, text) = (Bench::new(), read("../examples/small.yaml"));
    let hash = |from: &str, to: &str| {
        assert!(text.contains(from));
        bench.check("small.yaml", &text.replace(from, to)).unwrap().config.topology.hash()
    };
    let before = hash("version", "version");
    assert_eq!(hash("./data }", "/elsewhere }"), before);
    assert_eq!(hash("127.0.0.1:2443", "fcm.googleapis.com"), before);
    assert_eq!(hash("window: 5m", "window: 300s"), before, "two spellings of one value");
    assert_ne!(hash("window: 5m", "window: 6m"), before);
    assert_ne!(hash("30/h", "31/h"), before);
}

#[test]
fn the_schema_is_golden_and_knows_every_key_of_the_examples() {
    let bench = Bench::new();
    let schema = schema(&bench.operators, &bench.providers);
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    expect(&folder("tests/topology_golden/schema.json"), &text);
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    let mut known = BTreeSet::new();
    keys(&schema, &mut known);
    // Names that users choose, and data of events.
    let free = ["data", "sources", "types", "categories", "levels", "providers"];
    for name in ["topology.yaml", "small.yaml"] {
        let example: serde_json::Value = serde_saphyr::from_str(&read(&format!("../examples/{name}"))).unwrap();
        let mut used = BTreeSet::new();
        keys_below(&example, &free, &mut used);
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{name} uses {unknown:?}, which the schema does not know");
    }
}

/// The names of all properties in a schema, and of all words that may be keys.
fn keys(schema: &serde_json::Value, out: &mut BTreeSet<String>) {
    match schema {
        serde_json::Value::Array(items) => items.iter().for_each(|item| keys(item, out)),
        serde_json::Value::Object(map) => {
            if let Some(properties) = map.get("properties").and_then(|properties| properties.as_object()) {
                out.extend(properties.keys().cloned());
            }
            for word in map.get("enum").and_then(|words| words.as_array()).into_iter().flatten() {
                out.extend(word.as_str().map(str::to_owned));
            }
            out.extend(map.get("const").and_then(|word| word.as_str()).map(str::to_owned));
            map.values().for_each(|value| keys(value, out));
        }
        _ => {}
    }
}

/// All keys of a document but those directly below a mapping of names.
fn keys_below(value: &serde_json::Value, free: &[&str], out: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| keys_below(item, free, out)),
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                out.insert(key.clone());
                match value {
                    serde_json::Value::Object(named) if free.contains(&key.as_str()) => {
                        named.values().for_each(|value| keys_below(value, free, out));
                    }
                    serde_json::Value::Array(_) if free.contains(&key.as_str()) => {}
                    _ => keys_below(value, free, out),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn a_hostile_document_is_refused_within_bounds() {
    let bench = Bench::new();
    let deep = |open: &str, close: &str| format!("version: 1\nlog: {}1{}\n", open.repeat(50_000), close.repeat(50_000));
    let bomb = (1..30).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, n| {
        let before = format!("*a{}, ", n - 1).repeat(9);
        text + &format!("a{n}: &a{n} [{before}]\n")
    });
    for text in [
        deep("[", "]"),
        deep("{a: ", "}"),
        format!("{}1{}", "{a: ".repeat(60), "}".repeat(60)),
        "- ".repeat(50_000),
        "? ".repeat(50_000),
        bomb,
        "\0".to_owned(),
        "\u{feff}".to_owned(),
    ] {
        assert!(bench.check("hostile.yaml", &text).is_err());
    }
}

/// One change of a text: what a slip of the hand or a bad merge does.
fn mutate(text: &str, (at, kind, other): (usize, u8, usize)) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    let count = lines.len();
    match kind % 8 {
        0 => drop(lines.remove(at % count)),
        1 => lines.swap(at % count, other % count),
        2 => lines.insert(at % count, lines[other % count]),
        3 => lines.truncate(at % count),
        kind => {
            let chars: Vec<char> = text.chars().collect();
            let at = at % chars.len();
            let put =
                ['{', '}', '[', ':', '"', '-', ' ', '0', '*', '&', '!', '$', '\n', 'ü', '\'', '%', '|', '~', '#', '<'];
            let mut out: String = chars[..at].iter().collect();
            if kind % 2 == 0 {
                out.push(put[other % put.len()]);
            }
            let skip = if kind > 5 { 1 + other % 12 } else { usize::from(kind == 5) };
            out.extend(chars.iter().skip(at + skip));
            return out;
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, ..ProptestConfig::default() })]

    /// Whatever stands in the file, the loader answers; what it accepts can be stored and read back;
    /// what it refuses can be shown.
    #[test]
    fn a_mutated_topology_is_accepted_whole_or_refused_with_reasons(
        small in any::<bool>(),
        changes in prop::collection::vec((any::<usize>(), any::<u8>(), any::<usize>()), 1..4),
    ) {
        let mut text = read(if small { "../examples/small.yaml" } else { "../examples/topology.yaml" });
        for change in changes {
            if !text.trim().is_empty() {
                text = mutate(&text, change);
            }
        }
        let bench = Bench::new();
        match bench.check("mutated.yaml", &text) {
            Ok(loaded) => {
                let topology = &loaded.config.topology;
                let back = Topology::from_canonical(&topology.canonical()).unwrap();
                prop_assert_eq!(&back, topology);
                prop_assert_eq!(back.hash(), topology.hash());
                let policies = &loaded.config.policies;
                prop_assert_eq!(&policies_from_canonical(&canonical_policies(policies)).unwrap(), policies);
                prop_assert!(svg(topology, &bench.operators).ends_with("</svg>\n"));
            }
            Err(refused) => {
                prop_assert!(!refused.findings.is_empty());
                prop_assert!(refused.render(false).contains("error["));
                prop_assert_eq!(refused.to_json().as_array().unwrap().len(), refused.findings.len());
            }
        }
    }
}
