//! The runner of a topology's own tests: the examples pass, and what fails says why.

use std::path::Path;

use tidings_operators::calendar::Calendar;
use tidings_pipeline::topology::{
    FixedEnvironment, Loaded, Loader, OperatorKinds, ProviderKinds, SourceText, TestReport, run_tests,
};

fn example(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)).unwrap()
}

fn run(text: &str) -> Vec<TestReport> {
    let (operators, providers) = (OperatorKinds::standard(), ProviderKinds::standard());
    let (calendar, environment) = (Calendar::bundled(), FixedEnvironment::default());
    let loader =
        Loader { operators: &operators, providers: &providers, calendar: &calendar, environment: &environment };
    let loaded = loader.check(SourceText::new("test.yaml", text));
    let Loaded { config, source, .. } = loaded.unwrap_or_else(|refused| panic!("{}", refused.render(false)));
    run_tests(&config, &source, &calendar).unwrap()
}

#[test]
fn the_tests_of_the_examples_pass() {
    for (name, count) in [("topology.yaml", 12), ("small.yaml", 1)] {
        let reports = run(&example(name));
        for report in &reports {
            assert!(report.passed(), "{name}: {report:#?}");
        }
        assert_eq!(reports.len(), count, "{name}");
    }
}

/// The example with one thing changed in its only test.
fn failing(from: &str, to: &str) -> (String, String, Vec<String>) {
    let text = example("small.yaml");
    assert!(text.contains(from), "{from}");
    let report = run(&text.replace(from, to)).remove(0);
    let [failure] = report.failures.as_slice() else { panic!("{report:#?}") };
    assert_eq!((report.line, failure.line), (35, 43), "it says where it stands");
    assert_eq!(failure.at, "2026-06-01 12:06 Europe/Berlin");
    (failure.expected.clone(), failure.found.clone(), failure.said.clone())
}

#[test]
fn what_fails_says_what_was_expected_what_was_found_and_what_was_said() {
    const FLUSHED: &str = "2026-06-01 12:05 Europe/Berlin";
    let (expected, found, said) = failing("actors: 2", "actors: 3");
    assert_eq!(expected, "leg push of a like queued, telling about 3 actors");
    assert_eq!(found, format!("queued at {FLUSHED}, telling about 2 actors and 2 activities"));
    assert_eq!(
        said,
        [
            format!("{FLUSHED}  event e1: merged"),
            format!("{FLUSHED}  event e2: merged"),
            format!("{FLUSHED}  leg push of e1: created, queued"),
            format!("{FLUSHED}  silent leg in_app of e1: created, queued"),
        ]
    );
    for (to, expected, found) in [
        (
            "{ event: e1, leg: push, parked: true }",
            "leg push of event e1 parked",
            "queued at 2026-06-01 12:05 Europe/Berlin, telling about 2 actors and 2 activities",
        ),
        ("{ event: e2, leg: email, queued: true }", "leg email of event e2 queued", "nothing happened to it"),
        (
            "{ event: e2, suppressed: opted_out }",
            "event e2 suppressed (opted_out)",
            "merged at 2026-06-01 12:05 Europe/Berlin",
        ),
        ("{ nothing_sent: true, except: in_app }", "nothing sent but on in_app", "push: like (e1, e2)"),
    ] {
        let (said_expected, said_found, _) = failing("{ type: like, leg: push, queued: true, actors: 2 }", to);
        assert_eq!((said_expected.as_str(), said_found.as_str()), (expected, found));
    }
}

#[test]
fn what_happened_in_an_earlier_step_is_not_taken_for_now() {
    let text = example("small.yaml")
        + "      - at: \"2026-06-01 13:00 Europe/Berlin\"\n        expect: [{ event: e1, leg: push, queued: true }]\n";
    let report = run(&text).remove(0);
    let found: Vec<&str> = report.failures.iter().map(|failure| failure.found.as_str()).collect();
    let before = "queued at 2026-06-01 12:05 Europe/Berlin, telling about 2 actors and 2 activities, before this step";
    assert_eq!(found, [before]);
}

#[test]
fn the_two_paths_hand_over_what_is_not_theirs() {
    // The producer asks for less than the type has a right to: policy decides. A scheduled code waits in
    // the dataflow and is handed over when it is due.
    let tests = r#"
  - name: a scheduled code
    given: { addresses: [{ user_id: u1, channel: push, platform: ios }] }
    steps:
      - at: "2026-06-01T12:00:00Z"
        event: { id: s1, type: verification_code, user_id: u1, scheduled_at: "2026-06-01T13:00:00Z" }
        expect: [{ event: s1, parked_until: "2026-06-01T13:00:00Z" }, { nothing_sent: true }]
      - at: "2026-06-01T13:00:00Z"
        expect: [{ event: s1, leg: push, queued: true }]
"#;
    let report = run(&(example("topology.yaml") + tests)).pop().unwrap();
    assert!(report.passed(), "{report:#?}");
    let unread =
        example("topology.yaml").replace("  critical: { topic: notifications.events.critical, path: critical }\n", "");
    let report = run(&(unread + tests)).pop().unwrap();
    let said = &report.failures[0].said;
    let line = "2026-06-01 13:00 UTC  event s1: handed over as critical, which no source here reads";
    assert!(said.iter().any(|said| said == line), "{said:#?}");
}
