//! `tidings explain`: the whole story of an event, in words that a support person understands.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::Value;
use tidings_operators::calendar::Calendar;
use tidings_pipeline::explain::record::older;
use tidings_pipeline::explain::rows::{Query, event_of};
use tidings_pipeline::explain::{Colour, Context, explain};
use tidings_pipeline::process::type_channels;

use super::client::{Client, escaped};
use super::run::runtime;
use super::{Exit, Shell};

/// Explain what became of an event, and why.
#[derive(clap::Args)]
pub(crate) struct Explain {
    /// An id: `e_`, `n_`, `i_`, `g_`, `l_`, `d_` and 32 hex digits, or the producer's own with --user.
    id: String,
    /// Whose event it is: needed for a producer's own id.
    #[arg(long)]
    user: Option<String>,
    /// The tenant, where there are several.
    #[arg(long, default_value = "")]
    tenant: String,
    /// Where the process listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7878")]
    admin: SocketAddr,
    /// A topology whose record is read instead of asking a process: when none runs. What only a process
    /// knows (who did it, the user's zone) is not told then.
    #[arg(short, long, value_name = "FILE", conflicts_with = "admin")]
    config: Option<PathBuf>,
}

impl Explain {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        match &self.config {
            Some(config) => self.tell_from_record(shell, config),
            None => self.ask_process(shell),
        }
    }

    fn tell_from_record(&self, shell: &Shell, config: &Path) -> anyhow::Result<Exit> {
        let query = Query::parse(&self.id, &self.tenant, self.user.as_deref())?;
        let config = shell.load(config, &Calendar::bundled())?.config;
        let record = older(&config.deployment.record);
        let rows = runtime()?.block_on(record.find(&query))?;
        let context = Context { type_channels: type_channels(&config), ..Context::default() };
        let Some(story) = event_of(&rows, &query).and_then(|event| explain(&rows, event, &context)) else {
            shell.talk(format_args!("nothing is known of `{}` in the record", self.id));
            return Ok(Exit::Findings);
        };
        if shell.json {
            shell.json(&story)?;
        } else {
            shell.data(story.text(if shell.styled() { Colour::On } else { Colour::Off }) + "\n")?;
        }
        Ok(Exit::Ok)
    }

    fn ask_process(self, shell: &Shell) -> anyhow::Result<Exit> {
        let mut path = format!("/api/explain/{}?tenant={}", escaped(&self.id), escaped(&self.tenant));
        if let Some(user) = &self.user {
            path += &format!("&user={}", escaped(user));
        }
        let accept = if shell.json { "application/json" } else { "text/plain" };
        let (status, body) = Client { admin: self.admin }.get(&path, accept)?;
        match status {
            200 => shell.data(body).map(|()| Exit::Ok),
            404 => {
                shell.talk(message(&body));
                Ok(Exit::Findings)
            }
            503 => {
                shell.talk(format_args!("error: {}", message(&body)));
                Ok(Exit::Unreachable)
            }
            _ => bail!("{}", message(&body)),
        }
    }
}

/// The words of a refusal.
fn message(body: &str) -> String {
    let parsed = serde_json::from_str::<Value>(body).ok();
    parsed.and_then(|body| body["error"].as_str().map(str::to_owned)).unwrap_or_else(|| body.trim_end().to_owned())
}
