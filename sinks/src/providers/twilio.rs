//! Twilio's Programmable Messaging.
//!
//! * **Authentication**: Basic, an API key's SID and secret, or the account's SID and auth token.
//! * **Batching**: none; many requests at once, on HTTP/2 or several connections.
//! * **Quotas**: Twilio queues for up to ten hours what a sender cannot send yet, and says 201 all the same: give the
//!   provider a `rate` of the sender's own (a US long code sends one segment a second). 429 is about concurrency.
//! * **Idempotency**: none. The status callback's address carries our ids, so that repeats can be told apart.
//! * **An ambiguous answer** (timeout, reset, 5xx): the message may have been sent.
//! * **Text**: what looks alike is replaced where that makes the text GSM-7; a text of more than `segments_max`
//!   segments is cut short and ends in `...`.
//! * **Not done**: media, content templates, the bulk API (beta).
//!
//! Source: Twilio's OpenAPI description and "Error and Warning Dictionary", read November 2026.
//!
//! | answer | outcome |
//! |---|---|
//! | 201 | accepted, `sid` |
//! | 14107 63017 21611 | retryable, 5 min or `Retry-After` |
//! | 429, 20429 else | retryable, `Retry-After`; never processed |
//! | 5xx | unknown: the message may have been sent |
//! | 21211 21217 21614 21635 | invalid address |
//! | 21610 | invalid address: it sent STOP |
//! | 21408 21612 | permanent: no route |
//! | 21602 21617 21619 21620 21623 | permanent: the message |
//! | 21212 21606 21608 21659 21660 21703 21704 | paused: the sender |
//! | 10001 20003 20005 20006 30002 90010, 401, 403, 404 | paused: the account |
//! | else | by status: see `http::by_status` |

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request};
use reqwest::{Client, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_schemas::channel::Channel;
use tidings_schemas::time::Instant;

use super::http::{self as wire, Answer, ClientOptions};
use super::{BuildError, Call, Context, Provider, ProviderKind, WallClock, sms};
use crate::outcome::{Code, Outcome};

const NAME: &str = "twilio";
const ENDPOINT: &str = "https://api.twilio.com";
const FORM: &str = "application/x-www-form-urlencoded";
/// Bounds of `ValidityPeriod`, in seconds: five and less Twilio advises against.
const VALIDITY_SECONDS: (u64, u64) = (6, 36_000);
/// A sender's queue, or an account's limit, is full: neither empties within seconds.
const QUEUE_PAUSE: Duration = Duration::from_secs(300);

/// The line of the registry.
pub(super) const KIND: ProviderKind = ProviderKind {
    name: NAME,
    channel: Channel::Sms,
    schema: || schemars::schema_for!(TwilioParams),
    make: |params, context| Ok(Box::new(Twilio::new(super::params(NAME, params)?, context)?) as Box<dyn Provider>),
};

/// Parameters of `twilio`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TwilioParams {
    /// Where requests are sent to; regions have their own.
    #[serde(default = "endpoint")]
    pub endpoint: String,
    /// Certificates (PEM) to trust beside the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The account, `AC…`.
    pub account_sid: String,
    /// The API key, `SK…`; where absent the secret is the account's auth token.
    #[serde(default)]
    pub key_sid: Option<String>,
    /// A file with the API key's secret, or the account's auth token.
    pub secret_file: PathBuf,
    /// The sender: a number, a short code or a name. Either this or `messaging_service_sid`.
    #[serde(default)]
    pub from: Option<String>,
    /// The messaging service, `MG…`, that chooses the sender.
    #[serde(default)]
    pub messaging_service_sid: Option<String>,
    /// Where Twilio says what became of a message; `delivery` and `notification` are added to its query.
    #[serde(default)]
    pub status_callback: Option<String>,
    /// Most segments of a message, 1 to 10; a longer text is cut short.
    #[serde(default = "sms::segments_default")]
    pub segments_max: usize,
    /// How long one request may take, in seconds.
    #[serde(default = "sms::timeout_seconds")]
    pub timeout_seconds: u64,
}

fn endpoint() -> String {
    ENDPOINT.to_owned()
}

#[derive(Deserialize)]
struct Created {
    sid: String,
}

/// An error's body.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    code: u32,
}

/// What every request is built of besides the calls.
struct Sender {
    url: String,
    authorization: HeaderValue,
    /// `From` or `MessagingServiceSid`.
    from: (&'static str, String),
    status_callback: Option<Url>,
    segments_max: usize,
}

impl Sender {
    /// The request for `call`, if it can be sent. `now` is the clock of `expires_at`.
    fn build_request(&self, call: &Call, now: Instant) -> Result<Request<Bytes>, Outcome> {
        let (to, text) = sms::check(call, self.segments_max)?;
        let (from, sender) = &self.from;
        let mut form = Form::default();
        form.put("To", to).put(from, sender).put("Body", &text);
        if let Some(callback) = &self.status_callback {
            form.put("StatusCallback", sms::callback(callback, call).as_str());
        }
        if let Some(expires_at) = call.expires_at {
            let (least, most) = VALIDITY_SECONDS;
            form.put("ValidityPeriod", &expires_at.since(now).as_secs().clamp(least, most).to_string());
        }
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(CONTENT_TYPE, FORM)
            .header(AUTHORIZATION, self.authorization.clone())
            .body(form.encoded());
        request.map_err(|error| {
            Outcome::paused(Code::ours("bad_request"), format!("a request that HTTP refuses: {error}"))
        })
    }
}

/// A form, encoded as browsers do.
#[derive(Default)]
struct Form(Vec<(String, String)>);

impl Form {
    fn put(&mut self, name: &str, value: &str) -> &mut Self {
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }

    fn encoded(&self) -> Bytes {
        // A query is encoded as a form is.
        let mut url = Url::parse("form:").ok();
        if let Some(url) = &mut url {
            url.query_pairs_mut().extend_pairs(&self.0);
        }
        url.as_ref().and_then(Url::query).unwrap_or_default().to_owned().into()
    }
}

/// What an answer that is no 201 means.
fn classify(status: u16, refusal: &Refusal, after: Option<Duration>) -> Outcome {
    let code = Code::new(status, if refusal.code == 0 { String::new() } else { refusal.code.to_string() });
    match (refusal.code, status) {
        (14107 | 63017 | 21611, _) => Outcome::retryable(code, Some(after.unwrap_or(QUEUE_PAUSE))),
        (20429, _) | (_, 429) => Outcome::retryable(code, after),
        (_, 500..=599) => Outcome::unknown(code),
        (21211 | 21217, _) => Outcome::invalid_address(code, "it is no number that exists"),
        (21614 | 21635, _) => Outcome::invalid_address(code, "the number takes no text messages"),
        (21610, _) => Outcome::invalid_address(code, "the person sent STOP to this sender"),
        (21408, _) => Outcome::permanent(code, "the account may not send to that country: allow it at Twilio"),
        (21612, _) => Outcome::permanent(code, "this sender reaches no such number: give another one"),
        (21602 | 21617 | 21619 | 21620 | 21623, _) => Outcome::permanent(code, "Twilio refuses the message's content"),
        (21608, _) => Outcome::paused(code, "a trial account sends to verified numbers only"),
        (21212 | 21606 | 21659 | 21660, _) => Outcome::paused(code, "the sender is not this account's: check `from`"),
        (21703 | 21704, _) => Outcome::paused(code, "the messaging service has no sender: add one at Twilio"),
        (20003, _) | (_, 401) => Outcome::paused(code, "Twilio refuses the credentials: check `secret_file`"),
        (10001 | 20005 | 20006 | 30002 | 90010, _) => {
            Outcome::paused(code, "the account is not active, suspended or out of funds")
        }
        (_, 404) => Outcome::paused(code, "no such account: check `account_sid` and `endpoint`"),
        _ => wire::by_status(code, after),
    }
}

struct Twilio {
    sender: Sender,
    request_timeout: Duration,
    wall_clock: WallClock,
    client: Client,
}

impl Twilio {
    fn new(params: TwilioParams, context: &Context) -> Result<Self, BuildError> {
        let error = |problem| BuildError { provider: NAME, problem };
        let is_sid = |sid: &str, kind: &str| {
            sid.len() == 34 && sid.starts_with(kind) && sid.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        if !is_sid(&params.account_sid, "AC") {
            let found = &params.account_sid;
            return Err(error(format!("`account_sid`: expected `AC` and 32 more, found `{found}`")));
        }
        let from = match (params.from, params.messaging_service_sid) {
            (Some(from), None) => ("From", from),
            (None, Some(service)) if is_sid(&service, "MG") => ("MessagingServiceSid", service),
            (None, Some(service)) => {
                return Err(error(format!("`messaging_service_sid`: expected `MG` and 32 more, found `{service}`")));
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(error("expected either `from` or `messaging_service_sid`".to_owned()));
            }
        };
        let segments_max = sms::segments_max(params.segments_max).map_err(error)?;
        let callback = params.status_callback.as_deref().map(|text| sms::callback_url("status_callback", text));
        let secret = context.read(NAME, "secret_file", &params.secret_file)?;
        let secret = String::from_utf8_lossy(&secret).trim().to_owned();
        let user = params.key_sid.as_deref().unwrap_or(&params.account_sid);
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{secret}")));
        let mut authorization = HeaderValue::from_str(&basic)
            .map_err(|_| error("`secret_file`: expected one line of printable characters".to_owned()))?;
        authorization.set_sensitive(true);
        let request_timeout = Duration::from_secs(params.timeout_seconds);
        let options = ClientOptions::new(NAME, context, params.ca_file.as_ref(), request_timeout)?;
        let endpoint = wire::endpoint(NAME, "endpoint", &params.endpoint)?;
        Ok(Self {
            sender: Sender {
                url: format!("{endpoint}/2010-04-01/Accounts/{}/Messages.json", params.account_sid),
                authorization,
                from,
                status_callback: callback.transpose().map_err(error)?,
                segments_max,
            },
            client: options.client().map_err(|problem| error(format!("no HTTP client: {problem}; check `ca_file`")))?,
            request_timeout,
            wall_clock: context.wall_clock.clone(),
        })
    }

    async fn send(&self, call: &Call, now: Instant) -> Outcome {
        let request = match self.sender.build_request(call, now) {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
        match wire::call(&self.client, request).await {
            Err(outcome) => outcome,
            Ok(Answer { status: 201, body, .. }) => {
                let id = serde_json::from_slice::<Created>(&body).map(|created| created.sid);
                Outcome::accepted(Code::new(201, ""), id.unwrap_or_else(|_| call.delivery.to_string()))
            }
            Ok(Answer { status, headers, body }) => {
                // A proxy's page is no refusal of Twilio's; then the status alone speaks.
                let refusal = serde_json::from_slice(&body).unwrap_or_default();
                classify(status, &refusal, wire::retry_after(&headers, (self.wall_clock)()))
            }
        }
    }
}

#[async_trait]
impl Provider for Twilio {
    fn name(&self) -> &'static str {
        NAME
    }

    fn channel(&self) -> Channel {
        Channel::Sms
    }

    fn batch_max(&self) -> usize {
        1
    }

    fn timeout(&self) -> Duration {
        self.request_timeout
    }

    async fn deliver(&self, calls: &[Call], now: Instant) -> Vec<Outcome> {
        join_all(calls.iter().map(|call| self.send(call, now))).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::providers::samples::{Clock, NOW, World, context, deliver_one, sms};
    use crate::render::{Content, Sms};
    use crate::simulated::{Fault, Faults, Rule};

    const TO: &str = "+14155552671";

    fn params(world: &World) -> Value {
        json!({
            "endpoint": world.simulated.endpoints().twilio, "ca_file": world.files.ca,
            "account_sid": "AC00000000000000000000000000000001", "secret_file": world.files.twilio,
            "from": "+14155550100", "status_callback": "https://n.example.com/webhooks/twilio?by=us", "timeout_seconds": 60,
        })
    }

    fn script(rules: impl IntoIterator<Item = Rule>) -> Faults {
        Faults { latency_ms: 0, rules: rules.into_iter().collect() }
    }

    #[test]
    fn answers_mean_what_the_table_says() {
        for (status, number, after, word, wait) in [
            (429, 20429, None, "retryable", None),
            (429, 20429, Some(7), "retryable", Some(7)),
            (429, 0, Some(7), "retryable", Some(7)),
            (429, 14107, None, "retryable", Some(300)),
            (400, 63017, None, "retryable", Some(300)),
            (429, 21611, Some(60), "retryable", Some(60)),
            (500, 20500, None, "unknown", None),
            (502, 0, None, "unknown", None),
            (503, 20503, None, "unknown", None),
            (504, 0, None, "unknown", None),
            (401, 20003, None, "paused", None),
            (401, 0, None, "paused", None),
            (403, 20006, None, "paused", None),
            (403, 0, None, "paused", None),
            (404, 20404, None, "paused", None),
            (400, 10001, None, "paused", None),
            (400, 20005, None, "paused", None),
            (400, 90010, None, "paused", None),
            (400, 30002, None, "paused", None),
            (400, 21211, None, "invalid_address", None),
            (400, 21614, None, "invalid_address", None),
            (400, 21635, None, "invalid_address", None),
            (400, 21217, None, "invalid_address", None),
            (400, 21610, None, "invalid_address", None),
            (400, 21408, None, "permanent", None),
            (400, 21612, None, "permanent", None),
            (400, 21606, None, "paused", None),
            (400, 21212, None, "paused", None),
            (400, 21659, None, "paused", None),
            (400, 21660, None, "paused", None),
            (400, 21703, None, "paused", None),
            (400, 21704, None, "paused", None),
            (400, 21608, None, "paused", None),
            (400, 21602, None, "permanent", None),
            (400, 21617, None, "permanent", None),
            (400, 21619, None, "permanent", None),
            (400, 21620, None, "permanent", None),
            (400, 21623, None, "permanent", None),
            (400, 99999, None, "permanent", None),
            (302, 0, None, "paused", None),
        ] {
            let outcome = classify(status, &Refusal { code: number }, after.map(Duration::from_secs));
            let waits = match &outcome {
                Outcome::Retryable { after, .. } => after.map(|after| after.as_secs()),
                _ => None,
            };
            assert_eq!((outcome.word(), waits), (word, wait), "{status} {number}");
            assert_eq!(outcome.code().status, Some(status));
        }
    }

    #[tokio::test]
    async fn a_message_arrives_as_it_was_written_and_its_callback_knows_whose_it_is() {
        let world = World::start().await;
        let twilio = world.provider("twilio", params(&world));
        let call = Call { expires_at: Some(NOW.after(Duration::from_secs(90))), ..sms(TO, "It’s 50 % & more + you") };
        let outcome = deliver_one(&*twilio, &call).await;
        let messages = world.simulated.messages();
        assert_eq!(outcome, Outcome::accepted(Code::new(201, ""), messages[0].provider_id.clone()));
        let Content::Sms(content) = &messages[0].content else { panic!("a text message") };
        assert_eq!((content.text.as_str(), messages[0].address.as_str()), ("It's 50 % & more + you", TO));
        assert_eq!(messages[0].delivery, Some(call.delivery.to_string()));
        assert_eq!(messages[0].notification, Some(call.notification.to_string()));
        let headers = &messages[0].headers;
        assert_eq!((headers["From"].as_str(), headers["ValidityPeriod"].as_str()), ("+14155550100", "90"));
        assert!(headers["StatusCallback"].starts_with("https://n.example.com/webhooks/twilio?by=us&delivery="));
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn what_cannot_be_sent_never_leaves() {
        let world = World::start().await;
        let twilio = world.provider("twilio", params(&world));
        let mail = Call { content: crate::providers::samples::email("a@b").content, ..sms(TO, "") };
        for (call, word, reason) in [
            (sms("nobody", "hi"), "invalid_address", "not_a_number"),
            (sms(TO, " \n"), "permanent", "no_text"),
            (mail, "permanent", "wrong_content"),
        ] {
            let outcome = deliver_one(&*twilio, &call).await;
            assert_eq!((outcome.word(), outcome.code()), (word, &Code::ours(reason)));
        }
        assert!(!world.simulated.counts().providers.contains_key("twilio"));
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn a_text_that_is_too_long_is_cut_to_its_segments() {
        let world = World::start().await;
        let mut params = params(&world);
        params["segments_max"] = json!(2);
        let twilio = world.provider("twilio", params);
        assert_eq!(deliver_one(&*twilio, &sms(TO, &"long ".repeat(200))).await.word(), "accepted");
        let Content::Sms(Sms { text }) = &world.simulated.messages()[0].content else { panic!("a text message") };
        assert!(text.len() <= 306 && text.ends_with("..."), "{text}");
        assert_eq!(world.simulated.messages()[0].headers["Segments"], "2");
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn refusals_and_silence_arrive_as_outcomes() {
        let world = World::start().await;
        let twilio = world.provider("twilio", params(&world));
        let said = async |rule: Fault| {
            world.simulated.set_faults(script([Rule::always("twilio", rule)]));
            let outcome = deliver_one(&*twilio, &sms(TO, "hi")).await;
            format!("{} {}", outcome.word(), outcome.code())
        };
        let answer = |status, reason: &str| Fault::Answer { status, reason: reason.to_owned() };
        assert_eq!(said(Fault::InvalidAddress { since: None }).await, "invalid_address 400 21211");
        assert_eq!(said(answer(400, "21610")).await, "invalid_address 400 21610");
        assert_eq!(said(answer(400, "21408")).await, "permanent 400 21408");
        assert_eq!(said(answer(400, "21606")).await, "paused 400 21606");
        assert_eq!(said(Fault::ServerError { status: 503 }).await, "unknown 503 20503");
        assert_eq!(said(Fault::Reset).await, "unknown connection_reset");
        assert_eq!(world.simulated.counts().providers["twilio"].accepted, 1, "before the reset");
        let busy = Fault::TooManyRequests { retry_after: Some("9".to_owned()) };
        world.simulated.set_faults(script([Rule::always("twilio", busy)]));
        let outcome = deliver_one(&*twilio, &sms(TO, "hi")).await;
        assert_eq!(outcome, Outcome::retryable(Code::new(429, "20429"), Some(Duration::from_secs(9))));
        world.simulated.set_faults(script([Rule::always("twilio", Fault::NoAnswer)]));
        let mut impatient = params(&world);
        impatient["timeout_seconds"] = json!(1);
        let outcome = deliver_one(&*world.provider("twilio", impatient), &sms(TO, "hi")).await;
        assert_eq!(outcome, Outcome::unknown(Code::ours("timeout")));
        world.simulated.set_faults(Faults::default());

        let mut other = params(&world);
        other["account_sid"] = json!("AC00000000000000000000000000000002");
        assert_eq!(deliver_one(&*world.provider("twilio", other), &sms(TO, "hi")).await.word(), "paused");
        std::fs::write(&world.files.twilio, "wrong").unwrap();
        let outcome = deliver_one(&*world.provider("twilio", params(&world)), &sms(TO, "hi")).await;
        assert_eq!((outcome.word(), outcome.code().to_string().as_str()), ("paused", "401 20003"));
        world.simulated.shutdown().await;
    }

    #[test]
    fn parameters_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "s\n").unwrap();
        let context = context(folder.path().to_owned(), &Clock::new());
        let kind = super::super::kind("twilio").unwrap();
        let error = |more: Value| {
            let mut params = json!({ "account_sid": "AC00000000000000000000000000000001", "secret_file": "secret" });
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            kind.build(params, &context).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(error(json!({ "from": "App" })), "");
        assert!(error(json!({})).ends_with("expected either `from` or `messaging_service_sid`"));
        assert!(error(json!({ "messaging_service_sid": "x" })).contains("expected `MG` and 32 more, found `x`"));
        assert!(
            error(json!({ "from": "App", "account_sid": "AC1" })).contains("expected `AC` and 32 more, found `AC1`")
        );
        assert!(error(json!({ "from": "App", "segments_max": 11 })).contains("expected 1 to 10, found 11"));
        assert!(error(json!({ "from": "App", "status_callback": "https://a_b.c/" })).contains("no underscore"));
        assert!(error(json!({ "from": "App", "secret_file": "none" })).contains("`secret_file`"));
    }
}
