//! `tidings tail`: what is decided, as it is decided.

use std::io::BufRead as _;
use std::net::SocketAddr;

use anyhow::bail;
use serde_json::Value;

use super::client::Client;
use super::{Exit, Shell};

/// Follow events and what is decided about them.
#[derive(clap::Args)]
pub(crate) struct Tail {
    /// Only this user's.
    #[arg(long)]
    user: Option<String>,
    /// Only this type.
    #[arg(long = "type")]
    event_type: Option<String>,
    /// Ends after so many lines.
    #[arg(long, value_name = "LINES")]
    limit: Option<usize>,
    /// Where the process listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7878")]
    admin: SocketAddr,
}

impl Tail {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        let mut answer = Client { admin: self.admin }.follow("/api/stream")?;
        if answer.status != 200 {
            bail!("{} answers {}", self.admin, answer.status);
        }
        let (mut line, mut kind, mut said) = (String::new(), String::new(), 0);
        while self.limit.is_none_or(|limit| said < limit) && answer.body.read_line(&mut line)? > 0 {
            let text = line.trim_end();
            if let Some(name) = text.strip_prefix("event:") {
                name.trim().clone_into(&mut kind);
            } else if let Some(data) = text.strip_prefix("data:").filter(|_| kind == "event") {
                let event: Value = serde_json::from_str(data.trim())?;
                if self.wants(&event) {
                    said += 1;
                    if shell.json { shell.data(format_args!("{event}\n"))? } else { shell.data(told(&event))? }
                }
            }
            line.clear();
        }
        Ok(Exit::Ok)
    }

    fn wants(&self, event: &Value) -> bool {
        let is = |field: &str, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| event[field].as_str() == Some(wanted))
        };
        is("user", &self.user) && is("type", &self.event_type)
    }
}

/// One event in a line.
fn told(event: &Value) -> String {
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    let end = event["end"]["text"].as_str().or(event["end"]["word"].as_str()).unwrap_or_default();
    format!("{}  {}  {}  {end}\n", text("id"), text("user"), text("title"))
}
