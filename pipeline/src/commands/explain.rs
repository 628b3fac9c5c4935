//! `tidings explain`: the whole story of an event, in words that a support person understands.

use std::net::SocketAddr;

use anyhow::bail;
use serde_json::Value;

use super::client::{Client, escaped};
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
}

impl Explain {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
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
            _ => bail!("{}", message(&body)),
        }
    }
}

/// The words of a refusal.
fn message(body: &str) -> String {
    let parsed = serde_json::from_str::<Value>(body).ok();
    parsed.and_then(|body| body["error"].as_str().map(str::to_owned)).unwrap_or_else(|| body.trim_end().to_owned())
}
