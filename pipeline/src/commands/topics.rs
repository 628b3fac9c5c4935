//! `tidings topics`: the topics that a topology needs, made or compared.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use tidings_operators::calendar::Calendar;
use tidings_pipeline::assemble::{open_log, topics};
use tidings_pipeline::runtime::clock::{Clock as _, SystemClock};
use tidings_pipeline::topology::Config;
use tidings_sinks::log::Log;

use super::{Exit, Shell, count};

/// How long a person waits for brokers that may not be there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Create the topics that a topology needs, or compare them with what is there.
#[derive(clap::Args)]
pub(crate) struct Topics {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Create what is missing; an existing topic stays as it is.
    Create(Which),
    /// Say which topic is missing or weaker than it must be: what `run` would refuse.
    Check(Which),
}

#[derive(clap::Args)]
struct Which {
    /// The topology.
    #[arg(short, long = "config", value_name = "FILE")]
    config: PathBuf,
}

impl Topics {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        let (which, create) = match self.action {
            Action::Create(which) => (which, true),
            Action::Check(which) => (which, false),
        };
        let config = shell.load(&which.config, &Calendar::bundled())?.config;
        let clock = SystemClock::default();
        let log = open_log(&config.deployment.log, None, Duration::ZERO, PATIENCE, Arc::new(move || clock.wall()))?;
        let created = if create { create_missing(&*log, &config)? } else { Vec::new() };
        let weak = log.weaknesses(&topics(&config))?;
        if shell.json {
            shell.json(&json!({ "ok": weak.is_empty(), "created": created, "weak": weak }))?;
        } else {
            for name in &created {
                shell.data(format_args!("created {name}\n"))?;
            }
            for weakness in &weak {
                shell.data(format_args!("{weakness}\n"))?;
            }
        }
        let all = count(topics(&config).len(), "topic");
        shell.talk(format_args!("{all}, {} created, {}", created.len(), count(weak.len(), "finding")));
        Ok(if weak.is_empty() { Exit::Ok } else { Exit::Findings })
    }
}

/// Creates the topics that are not there; returns their names.
fn create_missing(log: &dyn Log, config: &Config) -> anyhow::Result<Vec<String>> {
    let mut wanted = topics(config);
    let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
    let there = log.describe(&names)?;
    wanted.retain(|topic| there.iter().all(|it| it.name != topic.name));
    log.create(&wanted)?;
    Ok(wanted.into_iter().map(|topic| topic.name).collect())
}
