//! `log_line`: text messages as lines of JSON in a file, for a machine on which nobody has a phone.
//!
//! The example of CONTRIBUTING.md, "Add a provider". As a part of the house this file is
//! `sinks/src/providers/log_line.rs`, says `super::` where it says `tidings_sinks::providers::` here,
//! has a `KIND` instead of `main`, and is registered by a `pub mod` line and one entry of `kinds!` in
//! `mod.rs` beside it. Run it: `cargo run -p tidings-sinks --example add_a_provider -- FILE`.
//!
//! - Authentication: none. Quotas: the disk's.
//! - Batching: the messages of one `deliver` are one append and one sync.
//! - Idempotency: none; a line names its delivery, so that whoever reads the file can tell a repeat.
//! - An ambiguous answer (the write or the sync failed): some or all of the lines may be there.
//! - Not done: rotation. Move the file away; the next call makes a new one.
//!
//! | answer of the disk | outcome |
//! |---|---|
//! | written and synced | accepted(delivery) |
//! | opening: no such folder, no permission, read-only | paused |
//! | opening: anything else | retryable, certainly not written |
//! | writing or syncing failed | retryable, `maybe_sent` |
//! | the call carries no text message | permanent |

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{DeliveryId, NotificationId};
use tidings_schemas::profile::Address;
use tidings_schemas::time::Instant;
use tidings_sinks::outcome::{Code, Outcome};
use tidings_sinks::providers::{Call, Provider};
use tidings_sinks::render::{Content, Sms};

const NAME: &str = "log_line";
/// Messages of one append. More would save syncs and make more of them ambiguous when one fails.
const BATCH_MAX: usize = 100;
/// How long one append and sync may take: what a busy local disk needs, many times over. A call that
/// takes longer is `unknown` to the lane.
const TIMEOUT: Duration = Duration::from_secs(5);

// In the house, the line that the registry reads:
//
// pub(super) const KIND: ProviderKind = ProviderKind {
//     name: NAME,
//     channel: Channel::Sms,
//     schema: || schemars::schema_for!(LogLineParams),
//     make: |params, context| {
//         let params: LogLineParams = super::params(NAME, params)?;
//         Ok(Box::new(LogLine { file: context.path(&params.file) }) as Box<dyn Provider>)
//     },
// };

/// Parameters of `log_line`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLineParams {
    /// The file to append to; it is made where it is absent, its folder is not.
    pub file: PathBuf,
}

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    delivery: String,
    user: &'a str,
    to: &'a str,
    text: &'a str,
}

/// What was under way when the disk refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Open,
    Write,
}

/// A call's line, or what is to be said of a call that has none.
fn build_line(call: &Call) -> Result<String, Outcome> {
    let Content::Sms(Sms { text }) = &call.content else {
        let remedy = "log_line takes text messages only; check the template's channel";
        return Err(Outcome::permanent(Code::ours("wrong_content"), remedy));
    };
    let line = Line { delivery: call.delivery.to_string(), user: &call.user, to: &call.address.address, text };
    serde_json::to_string(&line).map_err(|error| Outcome::permanent(Code::ours("not_json"), error.to_string()))
}

/// The table above.
fn classify(step: Step, kind: ErrorKind) -> Outcome {
    let code = Code::ours(kind.to_string());
    match (step, kind) {
        (Step::Open, ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            Outcome::paused(code, "the file cannot be opened; make its folder, and let tidings write there")
        }
        (Step::Open, _) => Outcome::retryable(code, None),
        (Step::Write, _) => Outcome::unknown(code),
    }
}

/// The provider.
pub struct LogLine {
    file: PathBuf,
}

#[async_trait]
impl Provider for LogLine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn channel(&self) -> Channel {
        Channel::Sms
    }

    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn timeout(&self) -> Duration {
        TIMEOUT
    }

    async fn deliver(&self, calls: &[Call], _: Instant) -> Vec<Outcome> {
        let lines: Vec<_> = calls.iter().map(build_line).collect();
        let text: String = lines.iter().flatten().map(|line| format!("{line}\n")).collect();
        let file = self.file.clone();
        let appended = tokio::task::spawn_blocking(move || append(&file, &text)).await;
        // A write that broke off may have left any part of the lines.
        let appended = appended.unwrap_or(Err((Step::Write, ErrorKind::Other)));
        let outcome = |(call, line): (&Call, Result<String, Outcome>)| match (line, appended) {
            (Err(refused), _) => refused,
            (Ok(_), Ok(())) => Outcome::accepted(Code::ours("written"), call.delivery.to_string()),
            (Ok(_), Err((step, kind))) => classify(step, kind),
        };
        calls.iter().zip(lines).map(outcome).collect()
    }
}

fn append(file: &Path, text: &str) -> Result<(), (Step, ErrorKind)> {
    let opened: io::Result<File> = OpenOptions::new().append(true).create(true).open(file);
    let mut file = opened.map_err(|error| (Step::Open, error.kind()))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
    written.map_err(|error| (Step::Write, error.kind()))
}

/// Carries one message as a lane would, and says what came of it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let file = std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("messages.ndjson"), PathBuf::from);
    let call = Call {
        delivery: DeliveryId([1; 16]),
        notification: NotificationId([2; 16]),
        user: "u1".to_owned(),
        address: Address::live("u1", "phone", Channel::Sms, "+4915112345678"),
        content: Content::Sms(Sms { text: "4711 is your code".to_owned() }),
        collapse_key: None,
        expires_at: None,
        priority: Priority::Critical,
        category: "security".to_owned(),
    };
    let provider = LogLine { file: file.clone() };
    for outcome in provider.deliver(&[call], Instant(0)).await {
        writeln!(io::stdout(), "{}: {} ({})", file.display(), outcome.word(), outcome.code())?;
    }
    Ok(())
}
