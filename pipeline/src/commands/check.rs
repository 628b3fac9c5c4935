//! `tidings check`: whether `run` would start with a topology; all findings in one run.

use std::path::PathBuf;

use serde_json::json;
use tidings_operators::calendar::Calendar;
use tidings_pipeline::assemble::Assembly;
use tidings_pipeline::topology::{ContentHash, LoadError, Loaded};

use super::{Exit, Shell, count, load};

/// Check a topology: everything that is wrong with it, with line and column.
#[derive(clap::Args)]
pub(crate) struct Check {
    /// The topology.
    file: PathBuf,
}

impl Check {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        let calendar = Calendar::bundled();
        let Loaded { config, source, warnings } = match load(&self.file, &calendar) {
            Ok(loaded) => loaded,
            Err(LoadError::Refused(refused)) => {
                match shell.json {
                    true => shell.json(&json!({ "ok": false, "findings": refused.to_json() }))?,
                    false => shell.data(refused.render(shell.styled()))?,
                }
                return Ok(Exit::Findings);
            }
            Err(error) => return Err(error.into()),
        };
        // One loader, and what it lets pass must make chains: `check` passes exactly when `run` starts.
        let assembly = Assembly::new(&config.topology, &config.policies, calendar, &Default::default())?;
        let (operators, sinks, tests) =
            (config.topology.operators.len(), config.topology.sinks.len(), config.tests.len());
        if shell.json {
            shell.json(&json!({
                "ok": true,
                "findings": source.to_json(&warnings),
                "hash": ContentHash::of(&assembly.canonical).to_string(),
                "sources": config.topology.sources.len(),
                "operators": operators,
                "sinks": sinks,
                "tests": tests,
            }))?;
        } else {
            shell.data(source.render(&warnings, shell.styled()))?;
            let counts = [count(operators, "operator"), count(sinks, "sink"), count(tests, "test")].join(", ");
            shell.data(format_args!("{}: ok, {counts}\n", source.name()))?;
        }
        Ok(Exit::Ok)
    }
}
