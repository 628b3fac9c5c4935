//! `tidings emit`: one event from flags; waits, and prints what was decided and how to do it with kcat.

use std::net::SocketAddr;

use anyhow::{anyhow, bail};
use serde_json::{Map, Value, json};
use tidings_schemas::units::Period;

use super::client::Client;
use super::{Exit, Shell};

/// Emit one event, wait, and say what was decided.
#[derive(clap::Args)]
pub(crate) struct Emit {
    /// The event's type, like `order_shipped`.
    #[arg(value_name = "TYPE")]
    event_type: String,
    /// Who is to be told.
    #[arg(long)]
    user: String,
    /// A field: `actor=bob`, `object=photo7`, `data.order_id=4412`, `priority=low`; JSON where it is JSON.
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    fields: Vec<String>,
    /// How long to wait for a decision.
    #[arg(long, default_value = "5s")]
    wait: Period,
    /// Where the process listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7878")]
    admin: SocketAddr,
}

impl Emit {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        let event = self.event()?;
        let body = serde_json::to_vec(&event)?;
        let client = Client { admin: self.admin };
        let (status, answer) = client.post(&format!("/api/events?wait={}", self.wait), &body)?;
        let answer: Value = serde_json::from_str(&answer)?;
        if status >= 400 {
            bail!("{}", answer["error"].as_str().unwrap_or("the event was refused"));
        }
        if shell.json {
            shell.json(&answer)?;
        } else {
            let id = answer["event"].as_str().ok_or_else(|| anyhow!("the answer names no event"))?;
            let (_, story) = client.get(&format!("/api/explain/{id}"), "text/plain")?;
            shell.data(story)?;
            let text = serde_json::to_string(&event)?.replace('\'', r"'\''");
            let user = &self.user;
            shell.talk(format_args!(
                "with kcat: echo '{text}' | kcat -P -b \"$KAFKA\" -t notifications.events.medium -k {user}\n\
                 with curl: curl -H 'content-type: application/json' -d '{text}' http://{}/api/events",
                self.admin
            ));
        }
        Ok(if answer["decided"] == json!(true) { Exit::Ok } else { Exit::TryAgain })
    }

    fn event(&self) -> anyhow::Result<Value> {
        let mut event = Map::new();
        event.insert("type".to_owned(), json!(self.event_type));
        event.insert("user_id".to_owned(), json!(self.user));
        for field in &self.fields {
            let (path, text) =
                field.split_once('=').ok_or_else(|| anyhow!("--set expects FIELD=VALUE, found `{field}`"))?;
            let value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
            let value = match (path, value) {
                // A person or thing by its id alone.
                ("actor" | "object", Value::String(id)) => json!({ "id": id }),
                (_, value) => value,
            };
            put(&mut event, path, value)?;
        }
        Ok(Value::Object(event))
    }
}

fn put(into: &mut Map<String, Value>, path: &str, value: Value) -> anyhow::Result<()> {
    match path.split_once('.') {
        None => drop(into.insert(path.to_owned(), value)),
        Some((first, rest)) => {
            let below = into.entry(first).or_insert_with(|| json!({}));
            let below = below.as_object_mut().ok_or_else(|| anyhow!("--set `{path}`: `{first}` is no object"))?;
            put(below, rest, value)?;
        }
    }
    Ok(())
}
