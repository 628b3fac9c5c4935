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
    for (name, count) in [("topology.yaml", 11), ("small.yaml", 1)] {
        let reports = run(&example(name));
        for report in &reports {
            assert!(report.passed(), "{name}: {report:#?}");
        }
        assert_eq!(reports.len(), count, "{name}");
    }
}
