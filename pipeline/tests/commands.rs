//! The command line from outside: each case spawns the binary and compares what it says, where, and
//! with which exit code. Data is on stdout, talk on stderr.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs `tidings` in `folder`, in an environment in which nothing is set.
fn tidings(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.current_dir(folder).args(arguments).env_clear().envs(variables.iter().copied());
    command.output().unwrap()
}

/// A folder with the examples, a topology that is wrong, one with a test that fails, and one that is embedded.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let read = |path: &str| std::fs::read_to_string(here(path)).unwrap();
    let small = read("../examples/small.yaml");
    put("topology.yaml", &read("../examples/topology.yaml"));
    put("small.yaml", &small);
    put("wrong.yaml", &small.replace("kind: dedup", "kind: deduplicate").replace("30/h", "30/x"));
    put("failing.yaml", &small.replace("actors: 2", "actors: 3"));
    put("unused.yaml", &small.replace("  inbox: {}", "  inbox: {}\n  other: { kind: inbox }"));
    put(
        "away.yaml",
        &small.replace(
            "embedded: { path: ./data }",
            "kafka: { brokers: \"127.0.0.1:1\" } }\ncheckpoints: { to: ./c }\nrecord: { files: ./r",
        ),
    );
    folder
}

/// `name`: of the golden file. The first line repeats the command, so that the file reads by itself.
#[expect(clippy::disallowed_methods, reason = "who runs the test says whether golden files are rewritten")]
fn case(folder: &Path, name: &str, arguments: &[&str]) {
    let output = tidings(folder, arguments, &[]);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let actual = format!(
        "$ tidings {}\nexit {}\n── stdout\n{}── stderr\n{}",
        arguments.join(" "),
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    );
    let path = here("tests/commands").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{} differs; UPDATE_EXPECT=1 rewrites it", path.display());
}

#[test]
fn state_of_an_operator_that_is_there_is_not_dropped() {
    let folder = folder();
    let output = tidings(folder.path(), &["run", "-c", "small.yaml", "--allow-dropped-state", "dedup"], &[]);
    assert_eq!(output.status.code(), Some(64));
    let said =
        "error: --allow-dropped-state: the topology has operator `dedup`; only what it has no longer is dropped\n";
    assert_eq!(String::from_utf8(output.stderr).unwrap(), said);
}

#[test]
fn shares_of_a_run_that_cannot_be_are_refused_before_anything_starts() {
    let folder = folder();
    let hosts = "--hosts=a:1,b:1";
    for (arguments, code, words) in [
        (&["--processes=2"][..], 64, "--hosts has 0 addresses, --processes says 2: name one for each, in order"),
        (&["--processes=2", "--process=2", hosts], 64, "--process 2: numbers begin with 0, so that the last one is 1"),
        (
            &["--process=1"],
            64,
            "--process, --hosts and --bind are about several processes: say how many with --processes",
        ),
        (&["--processes=2", "--process=1", "--stage=deliver", hosts], 64, "a process other than 0 runs decide only"),
        (
            &["--processes=2", "--stage=deliver", hosts],
            64,
            "--processes is about decide, which is not among the stages",
        ),
        (
            &["--processes=2", hosts],
            78,
            "an embedded log belongs to one process: with --processes the topology's log must be Kafka",
        ),
    ] {
        let output = tidings(folder.path(), &[&["run", "-c", "small.yaml"], arguments].concat(), &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(words), "{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    }
}

#[test]
fn every_command_says_what_its_golden_file_says() {
    let folder = folder();
    for (name, arguments) in [
        ("help", &["--help"][..]),
        ("check_ok", &["check", "topology.yaml"]),
        ("check_ok_json", &["check", "small.yaml", "--json"]),
        ("check_findings", &["check", "wrong.yaml"]),
        ("check_findings_json", &["--json", "check", "wrong.yaml"]),
        ("check_no_file", &["check", "nowhere.yaml"]),
        ("graph_mermaid", &["graph", "small.yaml"]),
        ("graph_of_what_is_wrong", &["graph", "wrong.yaml"]),
        ("test_ok", &["test", "topology.yaml"]),
        ("test_one", &["test", "topology.yaml", "opt-out"]),
        ("test_failed", &["test", "failing.yaml"]),
        ("test_failed_json", &["test", "failing.yaml", "--json"]),
        ("test_failed_junit", &["test", "failing.yaml", "--junit"]),
        ("usage", &["grpah", "small.yaml"]),
        ("usage_log_filter", &["check", "small.yaml", "--log", "tidings=loud"]),
    ] {
        case(folder.path(), name, arguments);
    }
}

#[test]
fn topics_are_missing_then_created_then_right() {
    let folder = folder();
    let said = |arguments: &[&str]| {
        let output = tidings(folder.path(), arguments, &[]);
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, before) = said(&["topics", "check", "-c", "small.yaml"]);
    assert_eq!(code, 1);
    let missing = "topic `notifications.cuts` does not exist; create it with `tidings topics create`\n";
    assert!(before.contains(missing), "{before}");
    let (code, created) = said(&["topics", "create", "-c", "small.yaml"]);
    assert_eq!((code, created.lines().count()), (0, before.lines().count()));
    assert!(created.contains("created notifications.push.critical\n"), "{created}");
    assert_eq!(said(&["topics", "check", "-c", "small.yaml"]), (0, String::new()));
    let (code, again) = said(&["topics", "create", "-c", "small.yaml", "--json"]);
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!((code, again), (0, serde_json::json!({ "ok": true, "created": [], "weak": [] })));
}

#[test]
fn svg_and_schema_are_those_of_the_library() {
    let folder = folder();
    let said = |arguments: &[&str]| String::from_utf8(tidings(folder.path(), arguments, &[]).stdout).unwrap();
    let golden = |name: &str| std::fs::read_to_string(here("tests/topology_golden").join(name)).unwrap();
    assert_eq!(said(&["graph", "topology.yaml", "--format", "svg"]), golden("topology.svg"));
    assert_eq!(said(&["graph", "topology.yaml", "--format", "dot"]), golden("topology.dot"));
    assert_eq!(said(&["schema"]), golden("schema.json"));
}

#[test]
fn completions_know_every_command() {
    let folder = folder();
    for shell in ["bash", "zsh", "fish"] {
        let output = tidings(folder.path(), &["completions", shell], &[]);
        let script = String::from_utf8(output.stdout).unwrap();
        for command in ["check", "graph", "schema", "test", "topics"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn colours_are_for_terminals_only() {
    let folder = folder();
    for variables in [&[][..], &[("NO_COLOR", "1")], &[("TERM", "xterm-256color")]] {
        let output = tidings(folder.path(), &["check", "wrong.yaml"], variables);
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{variables:?}");
    }
}

#[test]
fn a_warning_is_shown_and_does_not_refuse() {
    let folder = folder();
    let output = tidings(folder.path(), &["check", "unused.yaml"], &[]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("warning[unused_provider]: no sink uses the provider `other`\n"), "{said}");
    assert!(said.ends_with("unused.yaml: ok, 7 operators, 2 sinks, 1 test\n"), "{said}");
    // Who asked for something else hears of it on stderr.
    let output = tidings(folder.path(), &["graph", "unused.yaml"], &[]);
    assert!(output.stdout.starts_with(b"flowchart TD\n"));
    assert!(output.stderr.starts_with(b"warning[unused_provider]"));
}

#[test]
fn a_log_that_is_away_is_69_and_named() {
    let folder = folder();
    let output = tidings(folder.path(), &["topics", "check", "-c", "away.yaml"], &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("error: the log cannot be reached: "), "{said}");
}
