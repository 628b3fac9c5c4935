//! Amazon SES, API version 2.
//!
//! * **Authentication**: Signature Version 4 with an access key, service `ses`; clocks may differ by
//!   five minutes.
//! * **Batching**: `SendBulkEmail`, up to 50 mails in one request, each with its own outcome. Every
//!   recipient gets its own text: the template is nothing but three raw substitutions, and what they
//!   are replaced by is not read as a template again. A mail alone, one without a text or HTML part,
//!   and one too large for a substitution go by `SendEmail`.
//! * **Quotas**: recipients per second and per day, per account. Refused mails are dropped, not queued;
//!   there is no `Retry-After`.
//! * **Idempotency**: none. Tags carry our ids, so that events and repeats can be told apart.
//! * **An ambiguous answer** (timeout, reset): all mails of the request may have been sent.
//! * **One bad mail** that makes SES refuse a whole request as malformed takes nobody with it: then
//!   each goes alone.
//! * **Not done**: attachments, SES's own templates and subscription management.
//!
//! Source: the service model of SES v2 and "Using templates to send personalized email", read
//! November 2026. SES writes its own Message-ID.
//!
//! | answer | outcome |
//! |---|---|
//! | 200, entry `SUCCESS` | accepted, `MessageId` |
//! | entry `MESSAGE_REJECTED` `INVALID_PARAMETER` | permanent; as 400 below where the text says why |
//! | entry `TRANSIENT_FAILURE` `FAILED` | retryable, this mail only |
//! | entry `ACCOUNT_THROTTLED` | retryable, 1 s |
//! | entry `ACCOUNT_DAILY_QUOTA_EXCEEDED` | retryable, 10 min |
//! | entry `MAIL_FROM_DOMAIN_NOT_VERIFIED` `CONFIGURATION_SET_NOT_FOUND` `TEMPLATE_NOT_FOUND` `ACCOUNT_SUSPENDED` `ACCOUNT_SENDING_PAUSED` `CONFIGURATION_SET_SENDING_PAUSED` `INVALID_SENDING_POOL_NAME` | paused |
//! | entry with another status | retryable |
//! | `TooManyRequestsException` `ThrottlingException` `Throttling` | retryable, 1 s; "Daily message quota" 10 min |
//! | `LimitExceededException` | retryable, 60 s |
//! | 400 `MessageRejected`, "not verified" | paused: the identity or the sandbox |
//! | 400 `MessageRejected` else | permanent |
//! | 400 `BadRequestException` about an address | invalid address |
//! | 400 `BadRequestException` else, 413 | permanent |
//! | `AccountSuspendedException` `SendingPausedException` `MailFromDomainNotVerifiedException`, 404 `NotFoundException` | paused |
//! | 403 `ExpiredTokenException` | once more if the credentials have changed, then paused |
//! | 403 else | paused |
//! | 500, 503 | retryable |
//! | else | by status: see `http::by_status` |

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request};
use reqwest::Client;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidings_schemas::channel::Channel;
use tidings_schemas::time::Instant;

use super::http::{self as wire, Answer, ClientOptions};
use super::sigv4::{self, Credentials, Post};
use super::unsubscribe::{Unsubscribe, UnsubscribeParams};
use super::{BuildError, Call, Context, Environment, Provider, ProviderKind, WallClock};
use crate::outcome::{Code, Outcome};
use crate::render::{Content, Email};

const NAME: &str = "ses";
/// The name that signatures are for; not the `email` of the host.
const SERVICE: &str = "ses";
/// Most mails of one `SendBulkEmail`.
const ENTRIES_MAX: usize = 50;
/// Longest data of one entry's substitutions; a longer mail goes alone.
const TEMPLATE_DATA_BYTES_MAX: usize = 262_144;
/// Longest value of a tag.
const TAG_BYTES_MAX: usize = 256;
/// AWS counts recipients per second.
const RATE_PAUSE: Duration = Duration::from_secs(1);
/// The daily quota is a sliding one: some of it frees every few minutes.
const DAILY_QUOTA_PAUSE: Duration = Duration::from_secs(600);
/// A limit of the account that is not about the rate.
const LIMIT_PAUSE: Duration = Duration::from_secs(60);
const BULK_PATH: &str = "/v2/email/outbound-bulk-emails";
const SINGLE_PATH: &str = "/v2/email/outbound-emails";
const JSON: &str = "application/json";

/// The line of the registry.
pub(super) const KIND: ProviderKind = ProviderKind {
    name: NAME,
    channel: Channel::Email,
    schema: || schemars::schema_for!(SesParams),
    make: |params, context| Ok(Box::new(Ses::new(super::params(NAME, params)?, context)?) as Box<dyn Provider>),
};

/// Parameters of `ses`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SesParams {
    /// Where requests are sent to; the region's own endpoint where absent.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Certificates (PEM) to trust beside the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The AWS region.
    pub region: String,
    /// The sender, `Name <address>`; a verified identity. ASCII: encode other names by RFC 2047.
    pub from: String,
    /// Where answers go.
    #[serde(default)]
    pub reply_to: Vec<String>,
    /// The configuration set; without one there are no delivery events.
    #[serde(default)]
    pub configuration_set: Option<String>,
    /// AWS credentials, the INI file of the AWS tools, read again when they expire. Where absent, the
    /// environment's `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// The section of the credentials file.
    #[serde(default = "profile")]
    pub profile: String,
    /// Whether several mails go in one request; else each by its own `SendEmail`.
    #[serde(default = "bulk")]
    pub bulk: bool,
    /// One-click unsubscription, for promotional mail.
    #[serde(default)]
    pub unsubscribe: Option<UnsubscribeParams>,
    /// How long one request may take, in seconds.
    #[serde(default = "timeout_seconds")]
    pub timeout_seconds: u64,
}

fn profile() -> String {
    "default".to_owned()
}

const fn bulk() -> bool {
    true
}

const fn timeout_seconds() -> u64 {
    30
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BulkResults {
    bulk_email_entry_results: Vec<EntryResult>,
}

/// What came of one entry. The status is an open vocabulary.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct EntryResult {
    status: String,
    error: Option<String>,
    message_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SingleResult {
    message_id: String,
}

/// An AWS error: its type from the header or the body, its message in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Refusal {
    kind: String,
    message: String,
}

impl Refusal {
    fn read(answer: &Answer) -> Self {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let text = |keys: &[&str]| keys.iter().find_map(|key| body[*key].as_str()).unwrap_or_default().to_owned();
        let header = answer.headers.get("x-amzn-errortype").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let kind = header.unwrap_or_else(|| text(&["__type", "code", "Code"]));
        // `Name:http://…` in the header, `namespace#Name` in the body.
        let kind = kind.split(':').next().unwrap_or_default();
        let kind = kind.rsplit('#').next().unwrap_or_default().to_owned();
        Self { kind, message: text(&["message", "Message"]) }
    }
}

/// What every request is built of besides the calls.
struct Sender {
    from: String,
    reply_to: Vec<String>,
    configuration_set: Option<String>,
    unsubscribe: Option<Unsubscribe>,
}

/// A mail that may be sent: what [`check`] lets through.
#[derive(Clone, Copy)]
struct Mail<'a> {
    call: &'a Call,
    email: &'a Email,
}

/// The mail of `call`, or the outcome of one that cannot be sent.
fn check(call: &Call) -> Result<Mail<'_>, Outcome> {
    let Content::Email(email) = &call.content else {
        return Err(Outcome::permanent(Code::ours("wrong_content"), "expected the content of a mail"));
    };
    let address = &call.address.address;
    let parts = address.rsplit_once('@').filter(|(local, domain)| !local.is_empty() && !domain.is_empty());
    if parts.is_none() || !address.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>,;\"".contains(&byte)) {
        let reason = "expected one plain mail address in ASCII; SES takes no other";
        return Err(Outcome::invalid_address(Code::ours("not_an_address"), reason));
    }
    if email.subject.contains(['\r', '\n']) {
        return Err(Outcome::permanent(
            Code::ours("bad_subject"),
            "the subject has a line break: correct the template",
        ));
    }
    let mail = Mail { call, email };
    if mail.html().is_none() && mail.text().is_none() {
        return Err(Outcome::permanent(
            Code::ours("no_body"),
            "the mail has neither HTML nor text: correct the template",
        ));
    }
    Ok(mail)
}

impl<'a> Mail<'a> {
    /// The HTML part; an empty one is none.
    fn html(self) -> Option<&'a str> {
        self.email.html.as_deref().filter(|html| !html.is_empty())
    }

    /// The text part; an empty one is none.
    fn text(self) -> Option<&'a str> {
        Some(self.email.text.as_str()).filter(|text| !text.is_empty())
    }
}

impl Sender {
    fn tags(&self, mail: Mail<'_>) -> Value {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
        let tag = |name: &str, value: &str| {
            let value: String = value.chars().map(plain).take(TAG_BYTES_MAX).collect();
            json!({ "Name": name, "Value": if value.is_empty() { "none" } else { &value } })
        };
        json!([
            tag("delivery_id", &mail.call.delivery.to_string()),
            tag("notification_id", &mail.call.notification.to_string()),
            tag("category", &mail.call.category),
        ])
    }

    fn headers(&self, mail: Mail<'_>) -> Value {
        let mut headers = vec![
            ("X-Notification-ID", mail.call.notification.to_string()),
            ("Auto-Submitted", "auto-generated".to_owned()),
        ];
        headers.extend(self.unsubscribe.iter().flat_map(|unsubscribe| unsubscribe.headers(mail.call)));
        headers.into_iter().map(|(name, value)| json!({ "Name": name, "Value": value })).collect()
    }

    fn common(&self) -> serde_json::Map<String, Value> {
        let mut body = serde_json::Map::new();
        body.insert("FromEmailAddress".to_owned(), self.from.clone().into());
        if !self.reply_to.is_empty() {
            body.insert("ReplyToAddresses".to_owned(), self.reply_to.clone().into());
        }
        body.extend(self.configuration_set.clone().map(|set| ("ConfigurationSetName".to_owned(), set.into())));
        body
    }

    /// The body of `SendEmail`.
    fn single(&self, mail: Mail<'_>) -> Value {
        let utf8 = |text: &str| json!({ "Data": text, "Charset": "UTF-8" });
        let mut parts = serde_json::Map::new();
        for (name, part) in [("Html", mail.html()), ("Text", mail.text())] {
            parts.extend(part.map(|part| (name.to_owned(), utf8(part))));
        }
        let mut body = self.common();
        body.insert("Destination".to_owned(), json!({ "ToAddresses": [mail.call.address.address] }));
        body.insert("EmailTags".to_owned(), self.tags(mail));
        let simple = json!({ "Subject": utf8(&mail.email.subject), "Body": parts, "Headers": self.headers(mail) });
        body.insert("Content".to_owned(), json!({ "Simple": simple }));
        body.into()
    }

    /// The body of `SendBulkEmail`. Three braces substitute raw: two would escape `&` in a subject
    /// where the renderer thinks of HTML.
    fn bulk(&self, mails: &[Mail<'_>]) -> Value {
        let template = json!({ "Subject": "{{{s}}}", "Html": "{{{h}}}", "Text": "{{{t}}}" });
        let entries = mails.iter().map(|mail| {
            json!({
                "Destination": { "ToAddresses": [mail.call.address.address] },
                "ReplacementTags": self.tags(*mail),
                "ReplacementHeaders": self.headers(*mail),
                "ReplacementEmailContent": {
                    "ReplacementTemplate": { "ReplacementTemplateData": template_data(mail.email) },
                },
            })
        });
        let mut body = self.common();
        let default = json!({ "Template": { "TemplateContent": template, "TemplateData": "{}" } });
        body.insert("DefaultContent".to_owned(), default);
        body.insert("BulkEmailEntries".to_owned(), entries.collect());
        body.into()
    }
}

/// What the substitutions are replaced by: JSON in a JSON string.
fn template_data(email: &Email) -> String {
    json!({ "s": email.subject, "h": email.html, "t": email.text }).to_string()
}

/// Whether a mail can be one of many.
fn fits_bulk(mail: Mail<'_>) -> bool {
    mail.html().is_some() && mail.text().is_some() && template_data(mail.email).len() <= TEMPLATE_DATA_BYTES_MAX
}

/// The signed request for `body`.
fn build_request(
    endpoint: &str,
    path: &str,
    region: &str,
    credentials: &Credentials,
    body: &Value,
    at: Instant,
) -> Result<Request<Bytes>, Outcome> {
    let body = Bytes::from(body.to_string());
    let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
    let post = Post { region, service: SERVICE, host, path, content_type: JSON, body: &body, at };
    let signature = sigv4::sign(credentials, &post);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("{endpoint}{path}"))
        .header(CONTENT_TYPE, JSON)
        .header("x-amz-date", signature.date)
        .header(AUTHORIZATION, signature.authorization);
    if let Some(token) = &credentials.session_token {
        request = request.header("x-amz-security-token", token);
    }
    let mut request = request
        .body(body)
        .map_err(|error| Outcome::paused(Code::ours("bad_request"), format!("a header that HTTP refuses: {error}")))?;
    for name in ["authorization", "x-amz-security-token"] {
        if let Some(value) = request.headers_mut().get_mut(name) {
            HeaderValue::set_sensitive(value, true);
        }
    }
    Ok(request)
}

/// What a refusal of a whole request means.
fn classify(status: u16, refusal: &Refusal) -> Outcome {
    let code = Code::new(status, wire::bounded(&refusal.kind));
    match refusal.kind.as_str() {
        "TooManyRequestsException" | "ThrottlingException" | "Throttling" => {
            let daily = refusal.message.contains("Daily message quota");
            Outcome::retryable(code, Some(if daily { DAILY_QUOTA_PAUSE } else { RATE_PAUSE }))
        }
        "LimitExceededException" => Outcome::retryable(code, Some(LIMIT_PAUSE)),
        "MessageRejected" | "BadRequestException" => refused_mail(code, &refusal.message),
        "AccountSuspendedException" => Outcome::paused(code, "AWS suspended the account: see its mails to you"),
        "SendingPausedException" => Outcome::paused(code, "sending is paused for the account or configuration set"),
        "MailFromDomainNotVerifiedException" => Outcome::paused(code, "the MAIL FROM domain is not verified"),
        "NotFoundException" => Outcome::paused(code, "no such configuration set: check `configuration_set`"),
        "SignatureDoesNotMatch" | "InvalidSignatureException" => {
            Outcome::paused(code, "AWS refuses the signature: check the secret key, `region` and this machine's clock")
        }
        "RequestTimeTooSkewed" => Outcome::paused(code, "this machine's clock is off by more than five minutes"),
        "UnrecognizedClientException" => Outcome::paused(code, "AWS does not know the access key"),
        "ExpiredTokenException" => Outcome::paused(code, "the credentials expired: renew them"),
        "AccessDeniedException" => Outcome::paused(code, "the access key may not send: allow ses:SendEmail"),
        _ => wire::by_status(code, None),
    }
}

/// What a refused mail's text says about the cause: the sender, the address, or the mail.
fn refused_mail(code: Code, message: &str) -> Outcome {
    const ADDRESS: [&str; 8] = [
        "Illegal address",
        "Invalid email address",
        "Missing final '@domain'",
        "Local address contains",
        "User name is missing",
        "Domain contains",
        "Domain starts with dot",
        "Domain ends with dot",
    ];
    if message.contains("not verified") {
        return Outcome::paused(code, "the sender is not verified, or the account is in the sandbox");
    }
    if ADDRESS.iter().any(|text| message.contains(text)) {
        return Outcome::invalid_address(code, "SES cannot read the address");
    }
    // SES repeats addresses in its texts; they don't belong into records and logs.
    let words = message.split_whitespace().map(|word| if word.contains('@') { "…" } else { word });
    let message = wire::bounded(&words.collect::<Vec<_>>().join(" "));
    Outcome::permanent(code, format!("SES refuses the mail: {message}"))
}

/// What came of one entry of a bulk request.
fn classify_entry(result: &EntryResult, call: &Call) -> Outcome {
    let code = Code::new(200, wire::bounded(&result.status));
    match result.status.as_str() {
        "SUCCESS" => {
            let id = result.message_id.clone();
            Outcome::accepted(Code::new(200, ""), id.unwrap_or_else(|| call.delivery.to_string()))
        }
        "MESSAGE_REJECTED" | "INVALID_PARAMETER" => refused_mail(code, result.error.as_deref().unwrap_or_default()),
        "ACCOUNT_THROTTLED" => Outcome::retryable(code, Some(RATE_PAUSE)),
        "ACCOUNT_DAILY_QUOTA_EXCEEDED" => Outcome::retryable(code, Some(DAILY_QUOTA_PAUSE)),
        "MAIL_FROM_DOMAIN_NOT_VERIFIED" => Outcome::paused(code, "the MAIL FROM domain is not verified"),
        "CONFIGURATION_SET_NOT_FOUND" => Outcome::paused(code, "no such configuration set: check `configuration_set`"),
        "TEMPLATE_NOT_FOUND" => Outcome::paused(code, "SES misses a template although the request carries it"),
        "ACCOUNT_SUSPENDED" => Outcome::paused(code, "AWS suspended the account: see its mails to you"),
        "ACCOUNT_SENDING_PAUSED" | "CONFIGURATION_SET_SENDING_PAUSED" => {
            Outcome::paused(code, "sending is paused for the account or configuration set")
        }
        "INVALID_SENDING_POOL_NAME" => Outcome::paused(code, "the configuration set names no pool of senders"),
        // TRANSIENT_FAILURE, FAILED, and whatever comes: the entry was not sent.
        _ => Outcome::retryable(code, None),
    }
}

/// Where credentials come from.
struct CredentialSource {
    file: Option<PathBuf>,
    profile: String,
    environment: Environment,
    current: Mutex<Credentials>,
}

impl CredentialSource {
    fn new(params: &SesParams, context: &Context) -> Result<Self, BuildError> {
        let file = params.credentials_file.as_deref().map(|path| context.path(path));
        let environment = context.environment.clone();
        let current = load(file.as_ref(), &params.profile, &environment)
            .map_err(|problem| BuildError { provider: NAME, problem })?;
        Ok(Self { file, profile: params.profile.clone(), environment, current: Mutex::new(current) })
    }

    fn current(&self) -> Credentials {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The credentials that have come since `stale`, if any have.
    fn renewed(&self, stale: &Credentials) -> Option<Credentials> {
        let loaded = load(self.file.as_ref(), &self.profile, &self.environment).ok()?;
        if loaded == *stale {
            return None;
        }
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = loaded.clone();
        Some(loaded)
    }
}

fn load(file: Option<&PathBuf>, profile: &str, environment: &Environment) -> Result<Credentials, String> {
    let Some(path) = file else {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let (Some(access_key_id), Some(secret_access_key)) =
            (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"))
        else {
            return Err("no credentials: give `credentials_file`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                .to_owned());
        };
        return Ok(Credentials { access_key_id, secret_access_key, session_token: variable("AWS_SESSION_TOKEN") });
    };
    let wrong = |problem: String| format!("`credentials_file` {}: {problem}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let section: Vec<_> = text
        .lines()
        .map(str::trim)
        .skip_while(|line| {
            line.strip_prefix('[').and_then(|line| line.strip_suffix(']')).map(str::trim) != Some(profile)
        })
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('=').map(|(key, value)| (key.trim(), value.trim().to_owned())))
        .collect();
    let value = |key: &str| section.iter().find(|(found, _)| *found == key).map(|(_, value)| value.clone());
    let expect = |key: &str| value(key).ok_or_else(|| wrong(format!("expected `{key} = …` in section [{profile}]")));
    Ok(Credentials {
        access_key_id: expect("aws_access_key_id")?,
        secret_access_key: expect("aws_secret_access_key")?,
        session_token: value("aws_session_token"),
    })
}

struct Ses {
    endpoint: String,
    region: String,
    sender: Sender,
    bulk: bool,
    request_timeout: Duration,
    wall_clock: WallClock,
    client: Client,
    credentials: CredentialSource,
}

impl Ses {
    fn new(params: SesParams, context: &Context) -> Result<Self, BuildError> {
        let error = |problem| BuildError { provider: NAME, problem };
        let region_is_plain = params.region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if params.region.is_empty() || !region_is_plain {
            return Err(error(format!("`region`: expected a name like `us-east-1`, found `{}`", params.region)));
        }
        let printable = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !params.from.contains('@') || !printable(&params.from) {
            let found = &params.from;
            return Err(error(format!(
                "`from`: expected `Name <address>` in ASCII, found `{found}`; encode other names"
            )));
        }
        let endpoint =
            params.endpoint.clone().unwrap_or_else(|| format!("https://email.{}.amazonaws.com", params.region));
        let request_timeout = Duration::from_secs(params.timeout_seconds);
        let options = ClientOptions::new(NAME, context, params.ca_file.as_ref(), request_timeout)?;
        Ok(Self {
            endpoint: wire::endpoint(NAME, "endpoint", &endpoint)?,
            credentials: CredentialSource::new(&params, context)?,
            client: options.client().map_err(|problem| error(format!("no HTTP client: {problem}; check `ca_file`")))?,
            sender: Sender {
                from: params.from,
                reply_to: params.reply_to,
                configuration_set: params.configuration_set,
                unsubscribe: (params.unsubscribe)
                    .map(|unsubscribe| Unsubscribe::new(NAME, unsubscribe, context))
                    .transpose()?,
            },
            region: params.region,
            bulk: params.bulk,
            request_timeout,
            wall_clock: context.wall_clock.clone(),
        })
    }

    /// Makes one request, once more if the credentials expired and new ones are there.
    async fn exchange(&self, path: &str, body: &Value) -> Result<Answer, Outcome> {
        let credentials = self.credentials.current();
        let answer = self.request(path, body, &credentials).await?;
        if answer.status != 403 || Refusal::read(&answer).kind != "ExpiredTokenException" {
            return Ok(answer);
        }
        match self.credentials.renewed(&credentials) {
            Some(renewed) => self.request(path, body, &renewed).await,
            None => Ok(answer),
        }
    }

    async fn request(&self, path: &str, body: &Value, credentials: &Credentials) -> Result<Answer, Outcome> {
        let at = (self.wall_clock)();
        let request = build_request(&self.endpoint, path, &self.region, credentials, body, at)?;
        wire::call(&self.client, request).await
    }

    async fn send_single(&self, mail: Mail<'_>) -> Outcome {
        match self.exchange(SINGLE_PATH, &self.sender.single(mail)).await {
            Err(outcome) => outcome,
            Ok(answer) if answer.status == 200 => {
                let id = serde_json::from_slice::<SingleResult>(&answer.body).map(|result| result.message_id);
                Outcome::accepted(Code::new(200, ""), id.unwrap_or_else(|_| mail.call.delivery.to_string()))
            }
            Ok(answer) => classify(answer.status, &Refusal::read(&answer)),
        }
    }

    async fn send_bulk(&self, mails: &[Mail<'_>]) -> Vec<Outcome> {
        let whole = match self.exchange(BULK_PATH, &self.sender.bulk(mails)).await {
            Err(outcome) => outcome,
            Ok(answer) if answer.status == 200 => return bulk_outcomes(&answer, mails),
            Ok(answer) => classify(answer.status, &Refusal::read(&answer)),
        };
        match whole {
            Outcome::Permanent { .. } | Outcome::InvalidAddress { .. } => {
                join_all(mails.iter().map(|mail| self.send_single(*mail))).await
            }
            whole => vec![whole; mails.len()],
        }
    }

    async fn send(&self, mails: &[Mail<'_>]) -> Vec<Outcome> {
        match mails {
            [mail] => vec![self.send_single(*mail).await],
            mails => self.send_bulk(mails).await,
        }
    }
}

/// The entries' outcomes, in order. SES took the request over: an entry that it does not mention may
/// have been sent.
fn bulk_outcomes(answer: &Answer, mails: &[Mail<'_>]) -> Vec<Outcome> {
    let results = serde_json::from_slice::<BulkResults>(&answer.body).map(|body| body.bulk_email_entry_results);
    let mut results = results.unwrap_or_default().into_iter();
    let outcome = |mail: &Mail<'_>| match results.next() {
        Some(result) => classify_entry(&result, mail.call),
        None => Outcome::unknown(Code::new(200, "no_entry_result")),
    };
    mails.iter().map(outcome).collect()
}

#[async_trait]
impl Provider for Ses {
    fn name(&self) -> &'static str {
        NAME
    }

    fn channel(&self) -> Channel {
        Channel::Email
    }

    fn batch_max(&self) -> usize {
        if self.bulk { ENTRIES_MAX } else { 1 }
    }

    fn timeout(&self) -> Duration {
        self.request_timeout * 4 // a bulk request and the single ones after it, each with renewed credentials
    }

    async fn deliver(&self, calls: &[Call], _now: Instant) -> Vec<Outcome> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; calls.len()];
        let (mut many, mut alone) = (Vec::new(), Vec::new());
        for (index, call) in calls.iter().enumerate() {
            match check(call) {
                Err(outcome) => outcomes[index] = Some(outcome),
                Ok(mail) if self.bulk && fits_bulk(mail) => many.push((index, mail)),
                Ok(mail) => alone.push((index, mail)),
            }
        }
        let requests = many.chunks(ENTRIES_MAX).chain(alone.chunks(1)).map(|chunk| async move {
            let mails: Vec<_> = chunk.iter().map(|(_, mail)| *mail).collect();
            chunk.iter().map(|(index, _)| *index).zip(self.send(&mails).await).collect::<Vec<_>>()
        });
        for (index, outcome) in join_all(requests).await.into_iter().flatten() {
            outcomes[index] = Some(outcome);
        }
        // Every index stands in one of the three.
        let unknown = || Outcome::unknown(Code::ours("no_outcome"));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(unknown)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::providers::samples::{Clock, NOW, World, context, deliver_one, email};
    use crate::providers::unsubscribe::UnsubscribeSecret;
    use crate::simulated::{Fault, Faults, Message, Rule};

    const TO: &str = "b@example.com";
    const SECRET: &[u8] = b"0123456789abcdef";

    fn sender() -> Sender {
        Sender {
            from: "App <no-reply@example.com>".to_owned(),
            reply_to: Vec::new(),
            configuration_set: Some("tx".to_owned()),
            unsubscribe: None,
        }
    }

    #[test]
    fn one_mail_is_what_aws_documents() {
        let call = email(TO);
        let Content::Email(content) = &call.content else { panic!("a mail") };
        let (notification, delivery) = (call.notification.to_string(), call.delivery.to_string());
        let utf8 = |text: &str| json!({ "Data": text, "Charset": "UTF-8" });
        let golden = json!({
            "FromEmailAddress": "App <no-reply@example.com>",
            "ConfigurationSetName": "tx",
            "Destination": { "ToAddresses": [TO] },
            "EmailTags": [
                { "Name": "delivery_id", "Value": delivery },
                { "Name": "notification_id", "Value": notification },
                { "Name": "category", "Value": "social" },
            ],
            "Content": { "Simple": {
                "Subject": utf8(&content.subject),
                "Body": { "Html": utf8(content.html.as_deref().unwrap()), "Text": utf8(&content.text) },
                "Headers": [
                    { "Name": "X-Notification-ID", "Value": notification },
                    { "Name": "Auto-Submitted", "Value": "auto-generated" },
                ],
            } },
        });
        assert_eq!(sender().single(check(&call).unwrap()), golden);
    }

    #[test]
    fn a_mail_without_html_has_a_text_part_alone() {
        let mut call = email(TO);
        let Content::Email(content) = &mut call.content else { panic!("a mail") };
        content.html = None;
        content.text = "It's here".to_owned();
        let body = sender().single(check(&call).unwrap());
        let parts = json!({ "Text": { "Data": "It's here", "Charset": "UTF-8" } });
        assert_eq!(body["Content"]["Simple"]["Body"], parts);
    }

    #[test]
    fn every_entry_of_many_carries_its_own_text_tags_and_headers() {
        let calls = [email(TO), email("c@example.com")];
        let mails: Vec<_> = calls.iter().map(|call| check(call).unwrap()).collect();
        let body = sender().bulk(&mails);
        let template = json!({ "Subject": "{{{s}}}", "Html": "{{{h}}}", "Text": "{{{t}}}" });
        assert_eq!(body["DefaultContent"]["Template"]["TemplateContent"], template);
        let entry = &body["BulkEmailEntries"][1];
        assert_eq!(entry["Destination"], json!({ "ToAddresses": ["c@example.com"] }));
        assert_eq!(entry["ReplacementTags"][0]["Value"], json!(calls[1].delivery.to_string()));
        assert_eq!(entry["ReplacementHeaders"][0]["Value"], json!(calls[1].notification.to_string()));
        let data = entry["ReplacementEmailContent"]["ReplacementTemplate"]["ReplacementTemplateData"].as_str().unwrap();
        let Content::Email(content) = &calls[1].content else { panic!("a mail") };
        let expected = json!({ "s": content.subject, "h": content.html, "t": content.text });
        assert_eq!(serde_json::from_str::<Value>(data).unwrap(), expected);
    }

    #[test]
    fn mails_that_cannot_be_sent_are_outcomes() {
        let word = |call: &Call| check(call).map_or_else(|outcome| outcome.word(), |_| "sent");
        for address in
            ["", "b", "b@", "@example.com", "b@example.com,c@example.com", "b@ex ample", "b\r\n@a", "bé@example.com"]
        {
            assert_eq!(word(&email(address)), "invalid_address", "{address}");
        }
        let with = |change: fn(&mut Email)| {
            let mut call = email(TO);
            let Content::Email(content) = &mut call.content else { panic!("a mail") };
            change(content);
            call
        };
        assert_eq!(word(&with(|mail| mail.subject = "a\r\nBcc: x@example.com".to_owned())), "permanent");
        assert_eq!(word(&with(|mail| *mail = Email { subject: "s".to_owned(), ..Email::default() })), "permanent");
        assert!(!fits_bulk(check(&with(|mail| mail.html = None)).unwrap()));
        assert!(!fits_bulk(check(&with(|mail| mail.html = Some(String::new()))).unwrap()));
        assert!(!fits_bulk(check(&with(|mail| mail.text = "x".repeat(TEMPLATE_DATA_BYTES_MAX))).unwrap()));
        assert!(fits_bulk(check(&email(TO)).unwrap()));
    }

    fn waits(outcome: &Outcome) -> Option<u64> {
        match outcome {
            Outcome::Retryable { after, .. } => after.map(|after| after.as_secs()),
            _ => None,
        }
    }

    // One row of the header's table per line.
    #[test]
    fn refusals_mean_what_the_table_says() {
        let rate = "Maximum sending rate exceeded.";
        let unverified = "Email address is not verified. The following identities failed the check: b@example.com";
        for (status, kind, message, word, after) in [
            (429, "TooManyRequestsException", rate, "retryable", Some(1)),
            (400, "ThrottlingException", rate, "retryable", Some(1)),
            (400, "Throttling", rate, "retryable", Some(1)),
            (400, "ThrottlingException", "Daily message quota exceeded.", "retryable", Some(600)),
            (400, "LimitExceededException", "", "retryable", Some(60)),
            (400, "MessageRejected", unverified, "paused", None),
            (400, "MessageRejected", "bad content", "permanent", None),
            (400, "BadRequestException", "Illegal address", "invalid_address", None),
            (400, "BadRequestException", "Missing final '@domain'", "invalid_address", None),
            (400, "BadRequestException", "something else", "permanent", None),
            (400, "AccountSuspendedException", "", "paused", None),
            (400, "SendingPausedException", "", "paused", None),
            (400, "MailFromDomainNotVerifiedException", "", "paused", None),
            (404, "NotFoundException", "", "paused", None),
            (403, "SignatureDoesNotMatch", "", "paused", None),
            (403, "InvalidSignatureException", "", "paused", None),
            (403, "UnrecognizedClientException", "", "paused", None),
            (403, "ExpiredTokenException", "", "paused", None),
            (403, "AccessDeniedException", "", "paused", None),
            (403, "RequestTimeTooSkewed", "", "paused", None),
            (403, "SomethingNew", "", "paused", None),
            (413, "", "", "permanent", None),
            (500, "InternalServiceErrorException", "", "retryable", None),
            (503, "ServiceUnavailable", "", "retryable", None),
        ] {
            let outcome = classify(status, &Refusal { kind: kind.to_owned(), message: message.to_owned() });
            assert_eq!((outcome.word(), waits(&outcome)), (word, after), "{status} {kind} {message}");
            assert_eq!(outcome.code(), &Code::new(status, kind));
        }
    }

    #[test]
    fn entries_mean_what_the_table_says() {
        for (status, error, word, after) in [
            ("SUCCESS", None, "accepted", None),
            ("MESSAGE_REJECTED", None, "permanent", None),
            ("MESSAGE_REJECTED", Some("Email address is not verified."), "paused", None),
            ("INVALID_PARAMETER", None, "permanent", None),
            ("INVALID_PARAMETER", Some("Illegal address"), "invalid_address", None),
            ("TRANSIENT_FAILURE", None, "retryable", None),
            ("FAILED", None, "retryable", None),
            ("ACCOUNT_THROTTLED", None, "retryable", Some(1)),
            ("ACCOUNT_DAILY_QUOTA_EXCEEDED", None, "retryable", Some(600)),
            ("MAIL_FROM_DOMAIN_NOT_VERIFIED", None, "paused", None),
            ("CONFIGURATION_SET_NOT_FOUND", None, "paused", None),
            ("TEMPLATE_NOT_FOUND", None, "paused", None),
            ("ACCOUNT_SUSPENDED", None, "paused", None),
            ("ACCOUNT_SENDING_PAUSED", None, "paused", None),
            ("CONFIGURATION_SET_SENDING_PAUSED", None, "paused", None),
            ("INVALID_SENDING_POOL_NAME", None, "paused", None),
            ("SOMETHING_NEW", None, "retryable", None),
        ] {
            let result = EntryResult { status: status.to_owned(), error: error.map(str::to_owned), message_id: None };
            let outcome = classify_entry(&result, &email(TO));
            assert_eq!((outcome.word(), waits(&outcome)), (word, after), "{status} {error:?}");
        }
    }

    #[test]
    fn a_reason_never_repeats_an_address() {
        let refusal =
            Refusal { kind: "MessageRejected".to_owned(), message: "Spam from <b@example.com> seen".to_owned() };
        let Outcome::Permanent { reason, .. } = classify(400, &refusal) else { panic!("permanent") };
        assert_eq!(reason, "SES refuses the mail: Spam from … seen");
    }

    #[test]
    fn an_error_is_read_from_header_or_body() {
        let answer = |header: Option<&'static str>, body: &'static str| {
            let mut headers = http::HeaderMap::new();
            headers.extend(
                header.map(|kind| (http::HeaderName::from_static("x-amzn-errortype"), HeaderValue::from_static(kind))),
            );
            Refusal::read(&Answer { status: 400, headers, body: Bytes::from_static(body.as_bytes()) })
        };
        let expected = |message: &str| Refusal { kind: "MessageRejected".to_owned(), message: message.to_owned() };
        assert_eq!(answer(Some("MessageRejected:http://internal/"), r#"{"message":"m"}"#), expected("m"));
        assert_eq!(answer(None, r#"{"__type":"com.amazonaws.ses#MessageRejected","Message":"m"}"#), expected("m"));
        assert_eq!(answer(None, r#"{"code":"MessageRejected"}"#), expected(""));
        assert_eq!(answer(None, "<html>"), Refusal::default());
    }

    #[test]
    fn credentials_come_from_a_section_of_the_file_or_from_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        let text = "[other]\naws_access_key_id = X\n\n[mail]\naws_access_key_id=A\naws_secret_access_key = s=e\naws_session_token = t\n";
        std::fs::write(&path, text).unwrap();
        let environment = |pairs: &'static [(&str, &str)]| -> Environment {
            Arc::new(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        let empty = environment(&[]);
        let read = |profile: &str| load(Some(&path), profile, &empty);
        let credentials = read("mail").unwrap();
        assert_eq!((credentials.access_key_id.as_str(), credentials.secret_access_key.as_str()), ("A", "s=e"));
        assert_eq!(credentials.session_token.as_deref(), Some("t"));
        let error = |credentials: Result<Credentials, String>| credentials.err().unwrap();
        assert!(error(read("other")).ends_with("expected `aws_secret_access_key = …` in section [other]"));
        assert!(error(read("none")).ends_with("expected `aws_access_key_id = …` in section [none]"));
        let set = environment(&[("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S"), ("AWS_SESSION_TOKEN", "")]);
        assert_eq!(load(None, "default", &set).ok().unwrap().session_token, None);
        assert!(error(load(None, "default", &empty)).starts_with("no credentials: give `credentials_file`"));
    }

    #[test]
    fn parameters_are_checked() {
        let context = context(std::env::temp_dir(), &Clock::new());
        let kind = super::super::kind("ses").unwrap();
        let error = |params: Value| kind.build(params, &context).err().unwrap().to_string();
        assert!(
            error(json!({ "region": "us east", "from": "a@b" })).contains("`region`: expected a name like `us-east-1`")
        );
        assert!(error(json!({ "region": "us-east-1", "from": "Größe <a@b>" })).contains("encode other names"));
        assert!(error(json!({ "region": "us-east-1", "from": "a@b" })).contains("no credentials"));
    }

    fn params(world: &World) -> Value {
        json!({
            "endpoint": world.simulated.endpoints().ses, "ca_file": world.files.ca, "region": "us-east-1",
            "credentials_file": world.files.ses, "from": "App <no-reply@example.com>", "timeout_seconds": 60,
        })
    }

    /// For calls that must time out.
    fn impatient(world: &World) -> Value {
        let mut params = params(world);
        params["timeout_seconds"] = json!(1);
        params
    }

    fn script(rules: impl IntoIterator<Item = Rule>) -> Faults {
        Faults { latency_ms: 0, rules: rules.into_iter().collect() }
    }

    fn answer(status: u16, reason: &str) -> Rule {
        Rule::always("ses", Fault::Answer { status, reason: reason.to_owned() })
    }

    fn calls(count: usize) -> Vec<Call> {
        (0..count).map(|user| email(&format!("u{user}@example.com"))).collect()
    }

    #[tokio::test]
    async fn fifty_mails_go_in_one_request_and_one_that_fails_fails_alone() {
        let world = World::start().await;
        let ses = world.provider("ses", params(&world));
        world.simulated.set_faults(script([
            answer(200, "TRANSIENT_FAILURE").at("u7@example.com"),
            Rule::always("ses", Fault::InvalidAddress { since: None }).at("u9@example.com"),
        ]));
        let outcomes = ses.deliver(&calls(ses.batch_max()), NOW).await;
        assert_eq!(outcomes.len(), 50);
        for (user, outcome) in outcomes.iter().enumerate() {
            let expected = match user {
                7 => "retryable",
                9 => "invalid_address",
                _ => "accepted",
            };
            assert_eq!(outcome.word(), expected, "{user}");
        }
        let traffic = &world.simulated.counts().providers["ses"];
        assert_eq!((traffic.requests, traffic.accepted), (1, 48));
        let ids: std::collections::BTreeSet<_> =
            world.simulated.messages().into_iter().map(|message| message.provider_id).collect();
        assert_eq!(ids.len(), 48);
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn braces_quotes_and_ampersands_reach_every_reader_as_they_were_written() {
        let world = World::start().await;
        let ses = world.provider("ses", params(&world));
        let mails = calls(2);
        assert!(ses.deliver(&mails, NOW).await.iter().all(|outcome| outcome.word() == "accepted"));
        assert_eq!(deliver_one(&*ses, &mails[0]).await.word(), "accepted");
        let messages = world.simulated.messages();
        assert_eq!(messages.len(), 3, "two in bulk, one alone");
        assert!(messages.iter().all(|message| message.content == mails[0].content));
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn more_than_fifty_mails_and_mails_that_fit_no_bulk_take_several_requests() {
        let world = World::start().await;
        let ses = world.provider("ses", params(&world));
        let mut mails = calls(60);
        let Content::Email(content) = &mut mails[3].content else { panic!("a mail") };
        content.html = None;
        mails[5].address.address = "nobody".to_owned();
        let outcomes = ses.deliver(&mails, NOW).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.word() == "accepted").count(), 59);
        assert_eq!(outcomes[5].word(), "invalid_address");
        assert_eq!(world.simulated.counts().providers["ses"].requests, 3, "fifty, eight, one");
        let plain = world.simulated.messages().into_iter().filter(|it| it.address == mails[3].address.address);
        assert_eq!(
            plain.map(|it| it.content).collect::<Vec<_>>(),
            [mails[3].content.clone()],
            "text alone stays alone"
        );
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn accepted_then_timed_out_is_maybe_sent_for_every_mail_of_the_request() {
        let world = World::start().await;
        let ses = world.provider("ses", impatient(&world));
        world.simulated.set_faults(script([Rule::always("ses", Fault::NoAnswer).times(1)]));
        let outcomes = ses.deliver(&calls(3), NOW).await;
        assert_eq!(outcomes, vec![Outcome::unknown(Code::ours("timeout")); 3]);
        assert_eq!(world.simulated.counts().providers["ses"].accepted, 3);
        world.simulated.set_faults(script([Rule::always("ses", Fault::Reset).times(1)]));
        assert_eq!(deliver_one(&*ses, &email(TO)).await, Outcome::unknown(Code::ours("connection_reset")));
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn a_bulk_that_ses_cannot_read_is_sent_mail_by_mail() {
        let world = World::start().await;
        let ses = world.provider("ses", params(&world));
        world.simulated.set_faults(script([
            answer(400, "BadRequestException").times(1),
            answer(400, "MESSAGE_REJECTED").at("u1@example.com"),
        ]));
        let words: Vec<_> = ses.deliver(&calls(3), NOW).await.iter().map(Outcome::word).collect();
        assert_eq!(words, ["accepted", "permanent", "accepted"]);
        assert_eq!(world.simulated.counts().providers["ses"].requests, 4);
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn real_refusals_arrive_as_outcomes() {
        let world = World::start().await;
        let code = |outcome: Outcome| (outcome.word(), outcome.code().to_string());
        let ses = world.provider("ses", params(&world));
        world.simulated.set_faults(script([Rule::always("ses", Fault::TooManyRequests { retry_after: None })]));
        assert_eq!(
            code(deliver_one(&*ses, &email(TO)).await),
            ("retryable", "429 TooManyRequestsException".to_owned())
        );
        world.simulated.set_faults(script([Rule::always("ses", Fault::ServerError { status: 503 })]));
        let outcomes = ses.deliver(&calls(2), NOW).await;
        assert!(outcomes.iter().all(|outcome| outcome.word() == "retryable"), "{outcomes:?}");
        world.simulated.set_faults(Faults::default());

        let ini = world.files.ses.clone();
        let good = std::fs::read_to_string(&ini).unwrap();
        std::fs::write(&ini, good.replace("secret_access_key = ", "secret_access_key = x")).unwrap();
        let wrong = world.provider("ses", params(&world));
        assert_eq!(code(deliver_one(&*wrong, &email(TO)).await), ("paused", "403 SignatureDoesNotMatch".to_owned()));

        let mut other = params(&world);
        other["region"] = json!("eu-west-1");
        let elsewhere = world.provider("ses", other);
        assert_eq!(code(deliver_one(&*elsewhere, &email(TO)).await).0, "paused");
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn expired_credentials_are_read_again_and_tried_once() {
        let world = World::start().await;
        let ses = world.provider("ses", params(&world));
        let requests = || world.simulated.counts().providers["ses"].requests;
        world.simulated.set_faults(script([answer(403, "ExpiredTokenException").times(2)]));
        assert_eq!(deliver_one(&*ses, &email(TO)).await.code().to_string(), "403 ExpiredTokenException");
        assert_eq!(requests(), 1, "nothing changed: not tried again");
        let text = std::fs::read_to_string(&world.files.ses).unwrap();
        std::fs::write(&world.files.ses, format!("{text}aws_session_token = new\n")).unwrap();
        assert_eq!(deliver_one(&*ses, &email(TO)).await.word(), "accepted");
        assert_eq!(requests(), 3, "new credentials: tried once more");
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn promotional_mail_can_be_unsubscribed_from_with_one_click() {
        let world = World::start().await;
        let secret = world.files.ses.with_file_name("unsubscribe.key");
        std::fs::write(&secret, SECRET).unwrap();
        let mut params = params(&world);
        let url = "https://n.example.com/u/";
        params["unsubscribe"] = json!({ "url": url, "mailto": "unsub@example.com", "secret_file": secret });
        let ses = world.provider("ses", params);
        let mut mails = calls(2);
        mails[1].category = "marketing".to_owned();
        assert!(ses.deliver(&mails, NOW).await.iter().all(|outcome| outcome.word() == "accepted"));
        let messages = world.simulated.messages();
        let of =
            |address: &str| -> Message { messages.iter().find(|message| message.address == address).cloned().unwrap() };
        assert!(!of("u0@example.com").headers.contains_key("List-Unsubscribe"), "nobody unsubscribes from receipts");
        let headers = of("u1@example.com").headers;
        assert_eq!(headers["List-Unsubscribe-Post"], "List-Unsubscribe=One-Click");
        let (link, mailto) = headers["List-Unsubscribe"].split_once(", ").unwrap();
        let token = link.strip_prefix(&format!("<{url}")).and_then(|link| link.strip_suffix('>')).unwrap();
        assert_eq!(UnsubscribeSecret::new(SECRET).read(token), Some(("u1".to_owned(), "marketing".to_owned())));
        assert_eq!(mailto, format!("<mailto:unsub@example.com?subject={token}>"));
        world.simulated.shutdown().await;
    }
}
