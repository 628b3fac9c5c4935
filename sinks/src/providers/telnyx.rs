//! Telnyx, messages of API version 2.
//!
//! * **Authentication**: an API key as bearer token.
//! * **Batching**: none; many requests at once.
//! * **Quotas**: an account sends 50 messages a second, a long code outside the US one in ten seconds: give the provider a
//!   `rate` of the sender's own.
//! * **Idempotency**: `Idempotency-Key`, the delivery's id: every attempt carries the same, so that a repeat of what was
//!   accepted is not sent again.
//! * **An ambiguous answer** (timeout, reset): the message may have been sent; the repeat carries the same key.
//! * **Text**: as with Twilio: look-alikes are replaced where that makes the text GSM-7, a text of more than `segments_max`
//!   segments is cut short and ends in `...`.
//! * **Not done**: media, group messages, `send_at`.
//!
//! Source: Telnyx's OpenAPI description and "API error codes", read November 2026. Codes are strings.
//!
//! | answer | outcome |
//! |---|---|
//! | 200 | accepted, `data.id` |
//! | 10011, 40318, 429 | retryable, `Retry-After` |
//! | 10007 10008, 5xx | retryable: the key keeps a repeat from being sent twice |
//! | 10002 10016 40310 40001 40012 | invalid address |
//! | 40300 | invalid address: it sent STOP |
//! | 40301 40302 40304 40009 10015 | permanent |
//! | 10009 10010 20002 20006 20012–20017 20100 40305 40306 40308 40333 40100 40010 40150, 401, 403 | paused |
//! | else | by status: see `http::by_status` |

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request};
use reqwest::{Client, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidings_schemas::channel::Channel;
use tidings_schemas::time::Instant;

use super::http::{self as wire, Answer, ClientOptions};
use super::{BuildError, Call, Context, Provider, ProviderKind, WallClock, sms};
use crate::outcome::{Code, Outcome};

const NAME: &str = "telnyx";
const ENDPOINT: &str = "https://api.telnyx.com";
const JSON: &str = "application/json";

/// The line of the registry.
pub(super) const KIND: ProviderKind = ProviderKind {
    name: NAME,
    channel: Channel::Sms,
    schema: || schemars::schema_for!(TelnyxParams),
    make: |params, context| Ok(Box::new(Telnyx::new(super::params(NAME, params)?, context)?) as Box<dyn Provider>),
};

/// Parameters of `telnyx`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelnyxParams {
    /// Where requests are sent to.
    #[serde(default = "endpoint")]
    pub endpoint: String,
    /// Certificates (PEM) to trust beside the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// A file with the API key, `KEY…`.
    pub key_file: PathBuf,
    /// The sender: a number, a short code or a name. Either this or `messaging_profile_id`, or both.
    #[serde(default)]
    pub from: Option<String>,
    /// The messaging profile, which chooses the sender where `from` does not.
    #[serde(default)]
    pub messaging_profile_id: Option<String>,
    /// Where Telnyx says what became of a message; `delivery` and `notification` are added to its query.
    #[serde(default)]
    pub webhook_url: Option<String>,
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

/// What every request is built of besides the calls.
struct Sender {
    url: String,
    authorization: HeaderValue,
    from: Option<String>,
    messaging_profile_id: Option<String>,
    webhook_url: Option<Url>,
    segments_max: usize,
}

impl Sender {
    /// The request for `call`, if it can be sent.
    fn build_request(&self, call: &Call) -> Result<Request<Bytes>, Outcome> {
        let (to, text) = sms::check(call, self.segments_max)?;
        let mut body = json!({ "to": to, "text": text, "type": "SMS", "encoding": "auto" });
        let mut put = |name: &str, value: Option<Value>| {
            if let (Some(body), Some(value)) = (body.as_object_mut(), value) {
                body.insert(name.to_owned(), value);
            }
        };
        put("from", self.from.clone().map(Value::from));
        put("messaging_profile_id", self.messaging_profile_id.clone().map(Value::from));
        put("webhook_url", self.webhook_url.as_ref().map(|url| sms::callback(url, call).as_str().into()));
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(CONTENT_TYPE, JSON)
            .header(AUTHORIZATION, self.authorization.clone())
            .header("idempotency-key", call.delivery.to_string())
            .body(body.to_string().into());
        request.map_err(|error| {
            Outcome::paused(Code::ours("bad_request"), format!("a request that HTTP refuses: {error}"))
        })
    }
}

/// The first error's code in an answer that is no 200; zero where there is none.
fn refused_code(body: &[u8]) -> u32 {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let code = &body["errors"][0]["code"];
    code.as_str().and_then(|code| code.parse().ok()).or_else(|| u32::try_from(code.as_u64()?).ok()).unwrap_or(0)
}

/// What an answer that is no 200 means.
fn classify(status: u16, refused: u32, after: Option<Duration>) -> Outcome {
    let code = Code::new(status, if refused == 0 { String::new() } else { refused.to_string() });
    match (refused, status) {
        (10007 | 10008 | 10011 | 40318, _) | (_, 429 | 500..=599) => Outcome::retryable(code, after),
        (10002 | 10016 | 40310, _) => Outcome::invalid_address(code, "it is no number that exists"),
        (40001 | 40012, _) => Outcome::invalid_address(code, "the number takes no text messages"),
        (40300, _) => Outcome::invalid_address(code, "the person sent STOP to this sender"),
        (40301 | 40302 | 40304 | 40009 | 10015, _) => Outcome::permanent(code, "Telnyx refuses the message"),
        (40305 | 40306 | 40308, _) => Outcome::paused(code, "the sender is not this account's: check `from`"),
        (20100 | 40333, _) => Outcome::paused(code, "the account has no credit left, or its limit is reached"),
        (40100 | 40010 | 40150, _) => Outcome::paused(code, "the sender is not registered for this traffic"),
        (10010 | 20012..=20017, _) => Outcome::paused(code, "the account may not send: see its mails to you"),
        (10009 | 20002 | 20006, _) | (_, 401) => Outcome::paused(code, "Telnyx refuses the API key: check `key_file`"),
        _ => wire::by_status(code, after),
    }
}

struct Telnyx {
    sender: Sender,
    request_timeout: Duration,
    wall_clock: WallClock,
    client: Client,
}

impl Telnyx {
    fn new(params: TelnyxParams, context: &Context) -> Result<Self, BuildError> {
        let error = |problem| BuildError { provider: NAME, problem };
        if params.from.is_none() && params.messaging_profile_id.is_none() {
            return Err(error("expected `from`, `messaging_profile_id`, or both".to_owned()));
        }
        let segments_max = sms::segments_max(params.segments_max).map_err(error)?;
        let webhook_url = params.webhook_url.as_deref().map(|text| sms::callback_url("webhook_url", text)).transpose();
        let key = context.read(NAME, "key_file", &params.key_file)?;
        let bearer = format!("Bearer {}", String::from_utf8_lossy(&key).trim());
        let mut authorization = HeaderValue::from_str(&bearer)
            .map_err(|_| error("`key_file`: expected one line of printable characters".to_owned()))?;
        authorization.set_sensitive(true);
        let request_timeout = Duration::from_secs(params.timeout_seconds);
        let options = ClientOptions::new(NAME, context, params.ca_file.as_ref(), request_timeout)?;
        let endpoint = wire::endpoint(NAME, "endpoint", &params.endpoint)?;
        Ok(Self {
            sender: Sender {
                url: format!("{endpoint}/v2/messages"),
                authorization,
                from: params.from,
                messaging_profile_id: params.messaging_profile_id,
                webhook_url: webhook_url.map_err(error)?,
                segments_max,
            },
            client: options.client().map_err(|problem| error(format!("no HTTP client: {problem}; check `ca_file`")))?,
            request_timeout,
            wall_clock: context.wall_clock.clone(),
        })
    }

    async fn send(&self, call: &Call) -> Outcome {
        let request = match self.sender.build_request(call) {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
        match wire::call(&self.client, request).await {
            Err(outcome) => outcome,
            Ok(Answer { status: 200, body, .. }) => {
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let id = body["data"]["id"].as_str().map_or_else(|| call.delivery.to_string(), str::to_owned);
                Outcome::accepted(Code::new(200, ""), id)
            }
            Ok(Answer { status, headers, body }) => {
                classify(status, refused_code(&body), wire::retry_after(&headers, (self.wall_clock)()))
            }
        }
    }
}

#[async_trait]
impl Provider for Telnyx {
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

    async fn deliver(&self, calls: &[Call], _now: Instant) -> Vec<Outcome> {
        join_all(calls.iter().map(|call| self.send(call))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::samples::{Clock, World, context, deliver_one, sms};
    use crate::render::Content;
    use crate::simulated::{Fault, Faults, Rule};

    const TO: &str = "+14155552671";

    fn params(world: &World) -> Value {
        json!({
            "endpoint": world.simulated.endpoints().telnyx, "ca_file": world.files.ca, "key_file": world.files.telnyx,
            "from": "+14155550100", "webhook_url": "https://n.example.com/webhooks/telnyx", "timeout_seconds": 60,
        })
    }

    fn script(rules: impl IntoIterator<Item = Rule>) -> Faults {
        Faults { latency_ms: 0, rules: rules.into_iter().collect() }
    }

    #[test]
    fn answers_mean_what_the_table_says() {
        for (status, numbers, word) in [
            (429, &[0, 10011][..], "retryable"),
            (400, &[40318, 10007, 10008], "retryable"),
            (500, &[0], "retryable"),
            (503, &[0], "retryable"),
            (422, &[10002, 10016, 40310], "invalid_address"),
            (400, &[40001, 40012, 40300], "invalid_address"),
            (400, &[40301, 40302, 40304, 40009, 10015, 99999], "permanent"),
            (401, &[0, 10009], "paused"),
            (403, &[0, 10010, 20012, 20013, 20014, 20015, 20016, 20017], "paused"),
            (400, &[20002, 20006, 20100, 40305, 40306, 40308, 40333, 40100, 40010, 40150], "paused"),
            (302, &[0], "paused"),
        ] {
            for number in numbers {
                let outcome = classify(status, *number, None);
                assert_eq!((outcome.word(), outcome.code().status), (word, Some(status)), "{status} {number}");
            }
        }
        let busy = classify(429, 10011, Some(Duration::from_secs(4)));
        assert_eq!(busy, Outcome::retryable(Code::new(429, "10011"), Some(Duration::from_secs(4))));
        assert_eq!(
            [&br#"{"errors":[{"code":"40310"}]}"#[..], br#"{"errors":[{"code":7}]}"#, b"<html>"].map(refused_code),
            [40310, 7, 0]
        );
    }

    #[tokio::test]
    async fn a_message_arrives_and_a_repeat_of_it_is_not_sent_again() {
        let world = World::start().await;
        let telnyx = world.provider("telnyx", params(&world));
        let call = sms(TO, "It’s 50 % & \"more\"");
        let outcome = deliver_one(&*telnyx, &call).await;
        let messages = world.simulated.messages();
        assert_eq!(outcome, Outcome::accepted(Code::new(200, ""), messages[0].provider_id.clone()));
        let Content::Sms(content) = &messages[0].content else { panic!("a text message") };
        assert_eq!((content.text.as_str(), messages[0].address.as_str()), ("It's 50 % & \"more\"", TO));
        assert_eq!(messages[0].delivery, Some(call.delivery.to_string()));
        assert_eq!(messages[0].notification, Some(call.notification.to_string()));
        assert_eq!(deliver_one(&*telnyx, &call).await, outcome, "the same message, by its key");
        assert_eq!(world.simulated.messages().len(), 1);
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn refusals_and_silence_arrive_as_outcomes() {
        let world = World::start().await;
        let telnyx = world.provider("telnyx", params(&world));
        let mut number = 0;
        let mut said = async |rule: Fault| {
            world.simulated.set_faults(script([Rule::always("telnyx", rule)]));
            number += 1;
            let outcome = deliver_one(&*telnyx, &sms(&format!("{TO}{number}"), "hi")).await;
            format!("{} {}", outcome.word(), outcome.code())
        };
        let answer = |status, reason: &str| Fault::Answer { status, reason: reason.to_owned() };
        assert_eq!(said(Fault::InvalidAddress { since: None }).await, "invalid_address 422 40310");
        assert_eq!(said(answer(400, "40300")).await, "invalid_address 400 40300");
        assert_eq!(said(answer(403, "20100")).await, "paused 403 20100");
        assert_eq!(said(Fault::ServerError { status: 503 }).await, "retryable 503 10007");
        assert_eq!(said(Fault::TooManyRequests { retry_after: Some("9".to_owned()) }).await, "retryable 429 10011");
        assert_eq!(said(Fault::Reset).await, "unknown connection_reset");
        world.simulated.set_faults(Faults::default());

        std::fs::write(&world.files.telnyx, "wrong").unwrap();
        let outcome = deliver_one(&*world.provider("telnyx", params(&world)), &sms(TO, "hi")).await;
        assert_eq!((outcome.word(), outcome.code().to_string().as_str()), ("paused", "401 10009"));
        world.simulated.shutdown().await;
    }

    #[test]
    fn parameters_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "KEY\n").unwrap();
        let context = context(folder.path().to_owned(), &Clock::new());
        let kind = super::super::kind("telnyx").unwrap();
        let error = |more: Value| {
            let mut params = json!({ "key_file": "key" });
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            kind.build(params, &context).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(error(json!({ "from": "App" })), "");
        assert!(error(json!({})).ends_with("expected `from`, `messaging_profile_id`, or both"));
        assert!(error(json!({ "from": "App", "segments_max": 0 })).contains("expected 1 to 10, found 0"));
        assert!(error(json!({ "from": "App", "webhook_url": "n" })).contains("`webhook_url`"));
        assert!(error(json!({ "from": "App", "key_file": "none" })).contains("`key_file`"));
    }
}
