//! `tidings test`: a topology's own tests, in virtual time.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::json;
use tidings_operators::calendar::Calendar;
use tidings_pipeline::topology::{TestReport, run_tests};

use super::{Exit, Shell, count};

/// Run a topology's own `tests:` in virtual time. Nothing is read or sent.
#[derive(clap::Args)]
pub(crate) struct Test {
    /// The topology.
    file: PathBuf,
    /// Only tests whose name contains this.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Results as JUnit XML, for CI.
    #[arg(long, conflicts_with = "json")]
    junit: bool,
}

impl Test {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        let calendar = Calendar::bundled();
        let mut loaded = shell.load(&self.file, &calendar)?;
        if let Some(name) = &self.name {
            loaded.config.tests.retain(|test| test.name.contains(name.as_str()));
        }
        let reports = run_tests(&loaded.config, &loaded.source, &calendar)?;
        let file = loaded.source.name();
        let failed = reports.iter().filter(|report| !report.passed()).count();
        if shell.json {
            shell.json(&json!({ "file": file, "tests": reports, "failed": failed }))?;
        } else if self.junit {
            shell.data(junit(file, &reports, failed))?;
        } else {
            shell.data(text(file, &reports))?;
        }
        shell.talk(format_args!("{file}: {}, {failed} failed", count(reports.len(), "test")));
        Ok(if failed == 0 { Exit::Ok } else { Exit::Findings })
    }
}

fn text(file: &str, reports: &[TestReport]) -> String {
    let mut out = String::new();
    for report in reports {
        let word = if report.passed() { "ok" } else { "failed" };
        let _ = writeln!(out, "{word:<6}  {file}:{}  {}", report.line, report.name);
        for failure in &report.failures {
            let _ = writeln!(out, "        {file}:{}:{}  at {}", failure.line, failure.column, failure.at);
            let _ = writeln!(out, "          expected  {}", failure.expected);
            let _ = writeln!(out, "          found     {}", failure.found);
            let _ = writeln!(out, "          said since the step before:");
            for line in &failure.said {
                let _ = writeln!(out, "            {line}");
            }
            if failure.said.is_empty() {
                let _ = writeln!(out, "            nothing");
            }
        }
    }
    out
}

fn junit(file: &str, reports: &[TestReport], failed: usize) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let (file, count) = (escape(file), reports.len());
    let _ = writeln!(out, "<testsuite name=\"{file}\" tests=\"{count}\" failures=\"{failed}\">");
    for report in reports {
        let name = escape(&report.name);
        let _ = write!(out, "  <testcase classname=\"{file}\" name=\"{name}\" line=\"{}\">", report.line);
        for failure in &report.failures {
            let message = escape(&format!("expected {}, found {}", failure.expected, failure.found));
            let place = format!("{file}:{}:{}", failure.line, failure.column);
            let said = escape(&failure.said.join("\n"));
            let _ = write!(out, "<failure message=\"{message}\">{place}\n{said}</failure>");
        }
        out.push_str("</testcase>\n");
    }
    out.push_str("</testsuite>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
