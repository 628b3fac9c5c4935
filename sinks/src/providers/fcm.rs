//! Firebase Cloud Messaging, HTTP v1.
//!
//! * **Authentication**: an OAuth 2 access token that a service account's signed assertion (RS256)
//!   buys at `token_uri`; kept until five minutes before it expires, bought once however many wait.
//! * **Batching**: none, one request per device; many run at once as streams of a few connections
//!   (about 100 each).
//! * **Quotas**: 600,000 messages a minute and project; per device 240 a minute. Both are 429.
//! * **Idempotency**: none. The same `tag` makes a repeat replace the first copy on the screen.
//! * **An ambiguous answer** (timeout, reset): may have been shown, so the outcome says `maybe_sent`.
//!   What fails while a token is bought was certainly not sent.
//! * **Not done**: topics and conditions (they are no deliveries to one address); there are no receipts.
//!
//! Source: Google's discovery document of FCM v1, revision 2026-10-23, and "FCM error codes", read
//! November 2026. The decision is by `details[].errorCode`, then `status`, then the HTTP status:
//!
//! | status | errorCode or status | outcome |
//! |---|---|---|
//! | 200 | | accepted, `name` |
//! | 400 | `INVALID_ARGUMENT` about the token alone | invalid address |
//! | 400 | `INVALID_ARGUMENT` else | permanent |
//! | 401 | `THIRD_PARTY_AUTH_ERROR` | paused: Apple's or the web push key is missing in the project |
//! | 401 | `UNAUTHENTICATED` | once more with a new access token, then paused |
//! | 403 | `SENDER_ID_MISMATCH` | invalid address: the token is another project's |
//! | 403 | `PERMISSION_DENIED` | paused |
//! | 404 | `UNREGISTERED` | invalid address |
//! | 404 | `NOT_FOUND` | paused: no such project |
//! | 429 | `QUOTA_EXCEEDED` `RESOURCE_EXHAUSTED` | retryable, `Retry-After` or 60 s |
//! | 500 | `INTERNAL` | retryable, 10 s |
//! | 502 | HTML | retryable, 10 s |
//! | 503 | `UNAVAILABLE` | retryable, `Retry-After` or 10 s |
//! | else | unknown reasons | by status: see `http::by_status` |
//! | token endpoint | 429, 5xx, no answer | retryable, never `maybe_sent` |
//! | token endpoint | else (`invalid_grant`, `invalid_client`) | paused |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request};
use reqwest::Client;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::time::Instant;
use tokio::sync::Mutex;

use super::http::{self as wire, Answer, ClientOptions, Pool};
use super::jwt::Signer;
use super::{BuildError, Call, Context, Provider, ProviderKind, WallClock};
use crate::outcome::{Code, Outcome};
use crate::render::{Content, Push};

const NAME: &str = "fcm";
/// Google's endpoint.
const ENDPOINT: &str = "https://fcm.googleapis.com";
/// What an access token is asked for: messaging and nothing else.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// The longest life that an assertion may have, in seconds.
const ASSERTION_SECONDS: i64 = 3600;
/// How long before its end an access token is replaced, so that none expires on its way.
const TOKEN_MARGIN: Duration = Duration::from_secs(300);
/// For how long a failure to buy a token answers for everyone who waits: without it a thousand calls
/// would ask one after the other.
const TOKEN_FAILURE_LIFE: Duration = Duration::from_secs(1);
/// Google's wait after 429 without `Retry-After`.
const QUOTA_PAUSE: Duration = Duration::from_secs(60);
/// Google's least wait after 500 and 503.
const ERROR_PAUSE: Duration = Duration::from_secs(10);
/// The longest time that FCM keeps a message.
const TTL_MAX: Duration = Duration::from_secs(2_419_200);
/// FCM ends connections that idle for four minutes; ours end before, so that no call meets the end.
const IDLE: Duration = Duration::from_secs(200);
/// Finds a dead connection while calls wait on it. Not while idle: FCM answers `too_many_pings`.
const PING: Duration = Duration::from_secs(30);
/// The longest analytics label.
const LABEL_BYTES_MAX: usize = 50;

/// The line of the registry.
pub(super) const KIND: ProviderKind = ProviderKind {
    name: NAME,
    channel: Channel::Push,
    schema: || schemars::schema_for!(FcmParams),
    make: |params, context| Ok(Box::new(Fcm::new(super::params(NAME, params)?, context)?) as Box<dyn Provider>),
};

/// Parameters of `fcm`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FcmParams {
    /// Where messages are sent to.
    #[serde(default = "endpoint")]
    pub endpoint: String,
    /// Certificates (PEM) to trust beside the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The service account, the JSON file from Google. Its `token_uri` is where access tokens are bought.
    pub credentials_file: PathBuf,
    /// The project; the service account's own where absent.
    #[serde(default)]
    pub project_id: Option<String>,
    /// What addresses are: `token` (registration tokens; FCM takes installation ids there too) or
    /// `fid` (installation ids alone).
    #[serde(default)]
    pub target: Target,
    /// How long FCM keeps a message whose event and template do not say, in seconds.
    #[serde(default = "ttl_seconds")]
    pub ttl_seconds: u64,
    /// Connections; each carries about a hundred messages at once.
    #[serde(default = "connections")]
    pub connections: usize,
    /// How long one call may take, in seconds; FCM's own limit inside is 10.
    #[serde(default = "timeout_seconds")]
    pub timeout_seconds: u64,
}

/// What an address is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A registration token.
    #[default]
    Token,
    /// A Firebase installation id.
    Fid,
}

fn endpoint() -> String {
    ENDPOINT.to_owned()
}

const fn ttl_seconds() -> u64 {
    86_400
}

const fn connections() -> usize {
    2
}

const fn timeout_seconds() -> u64 {
    15
}

/// The part of a service account's file that matters.
#[derive(Deserialize)]
struct ServiceAccount {
    project_id: String,
    private_key_id: String,
    private_key: String,
    client_email: String,
    #[serde(default = "token_uri")]
    token_uri: String,
}

fn token_uri() -> String {
    "https://oauth2.googleapis.com/token".to_owned()
}

#[derive(Serialize)]
struct Send<'a> {
    message: Message<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fid: Option<&'a str>,
    notification: Notification<'a>,
    data: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    android: Option<Android<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    apns: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    webpush: Option<serde_json::Value>,
    fcm_options: Options,
}

#[derive(Serialize)]
struct Notification<'a> {
    title: &'a str,
    body: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
}

#[derive(Serialize)]
struct Android<'a> {
    priority: &'static str,
    ttl: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    collapse_key: Option<&'a str>,
    notification: AndroidNotification<'a>,
}

#[derive(Serialize)]
struct AndroidNotification<'a> {
    tag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    click_action: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icon: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    color: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notification_count: Option<u32>,
}

#[derive(Serialize)]
struct Options {
    analytics_label: String,
}

#[derive(Deserialize)]
struct Accepted {
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Refused {
    #[serde(default)]
    error: Refusal,
}

/// What stands in `error`.
#[derive(Clone, Debug, Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    status: Option<Reason>,
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Vec<Detail>,
}

/// One of `details`: which fields it has depends on its `@type`, their order varies.
#[derive(Clone, Debug, Default, Deserialize)]
struct Detail {
    #[serde(default, rename = "errorCode")]
    error_code: Option<Reason>,
    #[serde(default, rename = "fieldViolations")]
    field_violations: Vec<FieldViolation>,
}

#[derive(Clone, Debug, Deserialize)]
struct FieldViolation {
    #[serde(default)]
    field: String,
}

/// Error codes of FCM and statuses of Google's APIs, one vocabulary. Open.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Reason {
    InvalidArgument,
    ThirdPartyAuthError,
    Unauthenticated,
    SenderIdMismatch,
    PermissionDenied,
    Unregistered,
    NotFound,
    QuotaExceeded,
    ResourceExhausted,
    Internal,
    Unavailable,
    #[serde(untagged)]
    Other(String),
}

impl Reason {
    fn text(&self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(text)) => wire::bounded(&text),
            _ => String::new(),
        }
    }
}

impl Refusal {
    fn read(body: &[u8]) -> Self {
        // A proxy's HTML page is no reason; the status decides.
        serde_json::from_slice::<Refused>(body).unwrap_or_default().error
    }

    /// FCM's own code, else the status of Google's APIs.
    fn reason(&self) -> Option<&Reason> {
        self.details.iter().find_map(|detail| detail.error_code.as_ref()).or(self.status.as_ref())
    }

    /// Whether the token, and nothing else, is at fault.
    fn is_about_the_token(&self) -> bool {
        let mut fields = self.details.iter().flat_map(|detail| &detail.field_violations).peekable();
        if fields.peek().is_none() {
            return self.message.contains("not a valid FCM registration token");
        }
        fields.all(|violation| matches!(violation.field.as_str(), "message.token" | "message.fid"))
    }
}

/// The request that carries `call`, or the outcome of a call that cannot be made.
fn build_request(sender: &Sender, access_token: &str, call: &Call, now: Instant) -> Result<Request<Bytes>, Outcome> {
    let Content::Push(push) = &call.content else {
        return Err(Outcome::permanent(Code::ours("wrong_content"), "expected the content of a push"));
    };
    if call.address.address.is_empty() {
        return Err(Outcome::invalid_address(
            Code::ours("not_a_token"),
            "expected a registration token, found nothing",
        ));
    }
    let message = Send { message: message(sender, call, push, now) };
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}/v1/projects/{}/messages:send", sender.endpoint, sender.project))
        .header(AUTHORIZATION, format!("Bearer {access_token}"))
        .header(CONTENT_TYPE, "application/json")
        // Texts and numbers always serialize.
        .body(Bytes::from(serde_json::to_vec(&message).unwrap_or_default()));
    let mut request = request
        .map_err(|error| Outcome::paused(Code::ours("bad_request"), format!("a header that HTTP refuses: {error}")))?;
    if let Some(authorization) = request.headers_mut().get_mut(AUTHORIZATION) {
        authorization.set_sensitive(true);
    }
    Ok(request)
}

fn message<'a>(sender: &Sender, call: &'a Call, push: &'a Push, now: Instant) -> Message<'a> {
    let platform = call.address.platform.as_deref();
    let target = Some(call.address.address.as_str());
    let (token, fid) = match sender.target {
        Target::Token => (target, None),
        Target::Fid => (None, target),
    };
    let mut data: BTreeMap<_, _> = push.custom.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    data.insert("notification_id", call.notification.to_string());
    data.insert("delivery_id", call.delivery.to_string());
    data.extend(push.action_url.clone().map(|url| ("action_url", url)));
    Message {
        token,
        fid,
        notification: Notification { title: &push.title, body: &push.body, image: push.image_url.as_deref() },
        android: (!matches!(platform, Some("ios" | "web"))).then(|| Android {
            priority: if call.priority == Priority::Low { "normal" } else { "high" },
            ttl: format!("{}s", sender.ttl(call, push, now).as_secs()),
            // Only where asked for: FCM keeps four keys per device and throttles collapsible messages.
            collapse_key: call.collapse_key(push),
            notification: AndroidNotification {
                tag: tag(call, push),
                channel_id: push.channel_id.as_deref(),
                click_action: push.click_action.as_deref(),
                icon: push.icon.as_deref(),
                color: push.color.as_deref(),
                sound: push.sound.as_deref(),
                notification_count: push.badge,
            },
        }),
        apns: (platform == Some("ios")).then(|| apns(sender, call, push, now)),
        webpush: (platform == Some("web")).then(|| webpush(sender, call, push, now)),
        data,
        fcm_options: Options { analytics_label: label(&call.category) },
    }
}

/// What replaces an earlier copy on the screen.
fn tag(call: &Call, push: &Push) -> String {
    call.collapse_key(push).map_or_else(|| call.notification.to_string(), str::to_owned)
}

/// What Apple is told, where the device is Apple's.
fn apns(sender: &Sender, call: &Call, push: &Push, now: Instant) -> serde_json::Value {
    let mut aps = super::apns::aps(call, push);
    // Title and body come from the notification; only a subtitle has no place there.
    aps.alert = aps.alert.filter(|_| push.subtitle.is_some());
    json!({
        "headers": {
            "apns-collapse-id": super::apns::collapse_id(&tag(call, push)),
            "apns-expiration": now.after(sender.ttl(call, push, now)).0.div_euclid(1000).to_string(),
            "apns-priority": if call.priority == Priority::Low { "5" } else { "10" },
        },
        "payload": { "aps": aps },
    })
}

/// What the browser's push service is told, where the device is a browser.
fn webpush(sender: &Sender, call: &Call, push: &Push, now: Instant) -> serde_json::Value {
    let mut webpush = json!({
        "headers": {
            "TTL": sender.ttl(call, push, now).as_secs().to_string(),
            "Urgency": if call.priority == Priority::Low { "low" } else { "high" },
        },
        "notification": { "tag": tag(call, push) },
    });
    if let Some(icon) = push.icon.as_deref() {
        webpush["notification"]["icon"] = icon.into();
    }
    // FCM refuses a link that is not https.
    if let Some(link) = push.action_url.as_deref().filter(|url| url.starts_with("https://")) {
        webpush["fcm_options"] = json!({ "link": link });
    }
    webpush
}

/// The category as a label of FCM's statistics: letters, digits and `-_.~%`, at most fifty.
fn label(category: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.~%".contains(c) { c } else { '_' };
    let label: String = category.chars().map(plain).take(LABEL_BYTES_MAX).collect();
    if label.is_empty() { "none".to_owned() } else { label }
}

/// What a refusal means. `after` is the answer's `Retry-After`.
fn classify(status: u16, refusal: &Refusal, after: Option<Duration>) -> Outcome {
    let reason = refusal.reason();
    let code = Code::new(status, reason.map(Reason::text).unwrap_or_default());
    match reason {
        Some(Reason::Unregistered) => Outcome::invalid_address(code, "the app was removed or the token replaced"),
        Some(Reason::SenderIdMismatch) => Outcome::invalid_address(code, "the token is another project's"),
        Some(Reason::InvalidArgument) if refusal.is_about_the_token() => {
            Outcome::invalid_address(code, "FCM does not know the token")
        }
        Some(Reason::InvalidArgument) => {
            let reason = format!("FCM refuses the message: {}", wire::bounded(&refusal.message));
            Outcome::permanent(code, reason)
        }
        Some(Reason::ThirdPartyAuthError) => {
            Outcome::paused(code, "Apple's or the web push key of the project is missing or wrong: set it in Firebase")
        }
        Some(Reason::Unauthenticated) => {
            Outcome::paused(code, "FCM refuses a new access token: check the service account and this machine's clock")
        }
        Some(Reason::PermissionDenied) => {
            Outcome::paused(code, "the service account may not send: enable the FCM API and grant it the role")
        }
        Some(Reason::NotFound) => Outcome::paused(code, "no such project: check `project_id`"),
        Some(Reason::QuotaExceeded | Reason::ResourceExhausted) => {
            Outcome::retryable(code, Some(after.unwrap_or(QUOTA_PAUSE)))
        }
        Some(Reason::Internal | Reason::Unavailable) => Outcome::retryable(code, Some(after.unwrap_or(ERROR_PAUSE))),
        Some(Reason::Other(_)) | None => wire::by_status(code, after.or((status >= 500).then_some(ERROR_PAUSE))),
    }
}

/// What a refusal of the token endpoint means.
fn classify_token(answer: &Answer, now: Instant) -> Outcome {
    #[derive(Default, Deserialize)]
    struct Error {
        #[serde(default)]
        error: String,
    }
    let error = serde_json::from_slice::<Error>(&answer.body).unwrap_or_default().error;
    let code = Code::new(answer.status, wire::bounded(&error));
    match answer.status {
        429 | 500..=599 => Outcome::retryable(code, wire::retry_after(&answer.headers, now).or(Some(ERROR_PAUSE))),
        _ => Outcome::paused(code, "no access token: check the service account's key and this machine's clock"),
    }
}

/// Buys access tokens and keeps the current one.
struct AccessTokens {
    signer: Signer,
    key_id: String,
    email: String,
    token_uri: String,
    client: Client,
    wall_clock: WallClock,
    state: Mutex<TokenState>,
}

#[derive(Default)]
struct TokenState {
    token: Option<(String, Instant)>,
    failed: Option<(Outcome, Instant)>,
}

#[derive(Deserialize)]
struct Bought {
    access_token: String,
    expires_in: u64,
}

impl AccessTokens {
    /// A token that is not `stale` and does not expire soon. Whoever comes first buys it under the
    /// lock, the others wait for the same one.
    async fn get(&self, stale: Option<&str>) -> Result<String, Outcome> {
        let mut state = self.state.lock().await;
        let now = (self.wall_clock)();
        if let Some((token, expires_at)) = &state.token
            && now.after(TOKEN_MARGIN) < *expires_at
            && stale != Some(token)
        {
            return Ok(token.clone());
        }
        if let Some((outcome, at)) = &state.failed
            // A later one was before the clock was set back.
            && *at <= now
            && now.since(*at) < TOKEN_FAILURE_LIFE
        {
            return Err(outcome.clone());
        }
        match self.buy(now).await {
            Ok((token, expires_at)) => {
                *state = TokenState { token: Some((token.clone(), expires_at)), failed: None };
                Ok(token)
            }
            Err(outcome) => {
                // From now, not from before the wait for the answer.
                state.failed = Some((outcome.clone(), (self.wall_clock)()));
                Err(outcome)
            }
        }
    }

    async fn buy(&self, now: Instant) -> Result<(String, Instant), Outcome> {
        let issued = now.0.div_euclid(1000);
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": self.key_id });
        let claims = json!({
            "iss": self.email, "scope": SCOPE, "aud": self.token_uri,
            "iat": issued, "exp": issued + ASSERTION_SECONDS,
        });
        let Some(assertion) = self.signer.sign(&header, &claims) else {
            return Err(Outcome::paused(Code::ours("no_token"), "the system gave no randomness to sign with"));
        };
        // A JWT has no character that a form would have to escape; of the grant's name, the colons.
        let form = format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}");
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.token_uri)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::from(form))
            .map_err(|error| Outcome::paused(Code::ours("bad_request"), format!("`token_uri`: {error}")))?;
        let answer = wire::call(&self.client, request).await.map_err(|outcome| match outcome {
            // Whatever became of the token, the message has not left.
            Outcome::Retryable { after, code, .. } => Outcome::retryable(code, after),
            other => other,
        })?;
        if answer.status != 200 {
            return Err(classify_token(&answer, now));
        }
        let bought: Bought = serde_json::from_slice(&answer.body).map_err(|_| {
            Outcome::paused(Code::new(200, "no_access_token"), "not an answer of a token endpoint: check `token_uri`")
        })?;
        Ok((bought.access_token, now.after(Duration::from_secs(bought.expires_in))))
    }
}

/// What a request is built of besides the call.
struct Sender {
    endpoint: String,
    project: String,
    target: Target,
    ttl: Duration,
}

impl Sender {
    /// How long FCM keeps the message: until it expires, else as long as its template says, else the topology; at
    /// most FCM's own span.
    fn ttl(&self, call: &Call, push: &Push, now: Instant) -> Duration {
        let of_template = push.ttl_s.map(|seconds| Duration::from_secs(seconds.into()));
        let ttl = call.expires_at.map(|at| at.since(now)).or(of_template);
        ttl.unwrap_or(self.ttl).min(TTL_MAX)
    }
}

struct Fcm {
    sender: Sender,
    request_timeout: Duration,
    wall_clock: WallClock,
    pool: Pool,
    tokens: AccessTokens,
}

impl Fcm {
    fn new(params: FcmParams, context: &Context) -> Result<Self, BuildError> {
        let error = |problem| BuildError { provider: NAME, problem };
        let file = context.read(NAME, "credentials_file", &params.credentials_file)?;
        let account: ServiceAccount = serde_json::from_slice(&file).map_err(|problem| {
            error(format!("`credentials_file`: {problem}; expected a service account's JSON file from Google"))
        })?;
        let signer = Signer::rs256(account.private_key.as_bytes())
            .map_err(|problem| error(format!("`credentials_file`: `private_key`: {problem}")))?;
        let project = params.project_id.unwrap_or(account.project_id);
        if project.is_empty() || !project.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(error(format!("`project_id`: expected letters, digits and `-`, found `{project}`")));
        }
        let timeout = Duration::from_secs(params.timeout_seconds);
        let mut options = ClientOptions::new(NAME, context, params.ca_file.as_ref(), timeout)?;
        let client =
            options.client().map_err(|problem| error(format!("no HTTP client: {problem}; check `ca_file`")))?;
        options.http2_only = true;
        options.idle = IDLE;
        options.ping = Some((PING, false));
        Ok(Self {
            sender: Sender {
                endpoint: wire::endpoint(NAME, "endpoint", &params.endpoint)?,
                project,
                target: params.target,
                ttl: Duration::from_secs(params.ttl_seconds),
            },
            request_timeout: timeout,
            wall_clock: context.wall_clock.clone(),
            pool: Pool::new(NAME, options, params.connections)?,
            tokens: AccessTokens {
                signer,
                key_id: account.private_key_id,
                email: account.client_email,
                token_uri: wire::endpoint(NAME, "token_uri", &account.token_uri)?,
                client,
                wall_clock: context.wall_clock.clone(),
                state: Mutex::default(),
            },
        })
    }

    async fn deliver_one(&self, call: &Call, now: Instant) -> Outcome {
        match self.try_twice(call, now).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    /// An access token, within the time of one call: whoever holds the lock may be waiting itself.
    async fn token(&self, stale: Option<&str>) -> Result<String, Outcome> {
        let late = |_| Outcome::retryable(Code::ours("timeout"), None);
        tokio::time::timeout(self.request_timeout, self.tokens.get(stale)).await.map_err(late)?
    }

    async fn try_twice(&self, call: &Call, now: Instant) -> Result<Outcome, Outcome> {
        let token = self.token(None).await?;
        let picked = self.pool.pick();
        let answer = match wire::call(&picked.client, build_request(&self.sender, &token, call, now)?).await {
            Err(Outcome::Retryable { after: Some(Duration::ZERO), maybe_sent: false, .. }) => {
                self.pool.renew(&picked);
                wire::call(&self.pool.pick().client, build_request(&self.sender, &token, call, now)?).await?
            }
            Err(outcome) => return Err(outcome),
            Ok(answer) => {
                let refusal = Refusal::read(&answer.body);
                let unauthenticated = matches!(refusal.reason(), Some(Reason::Unauthenticated) | None);
                if answer.status == 401 && unauthenticated {
                    let token = self.token(Some(&token)).await?;
                    wire::call(&self.pool.pick().client, build_request(&self.sender, &token, call, now)?).await?
                } else {
                    answer
                }
            }
        };
        Ok(self.outcome(&answer, call))
    }

    fn outcome(&self, answer: &Answer, call: &Call) -> Outcome {
        if (200..300).contains(&answer.status) {
            // Accepted is accepted, also where the name cannot be read.
            let name = serde_json::from_slice::<Accepted>(&answer.body).map(|accepted| accepted.name);
            return Outcome::accepted(Code::new(answer.status, ""), name.unwrap_or_else(|_| call.delivery.to_string()));
        }
        let after = wire::retry_after(&answer.headers, (self.wall_clock)());
        classify(answer.status, &Refusal::read(&answer.body), after)
    }
}

#[async_trait]
impl Provider for Fcm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn channel(&self) -> Channel {
        Channel::Push
    }

    fn batch_max(&self) -> usize {
        1
    }

    fn timeout(&self) -> Duration {
        self.request_timeout * 4 // a token and a request, twice
    }

    async fn deliver(&self, calls: &[Call], now: Instant) -> Vec<Outcome> {
        join_all(calls.iter().map(move |call| self.deliver_one(call, now))).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::providers::samples::{NOW, World, deliver_one, push};
    use crate::simulated::{Fault, Faults, Rule};

    const TOKEN: &str = "dQw4w9WgXcQ:APA91bHPRgkF3JUikC4ENAHEeMrd41Zxv3hVZjC9KtT8OvPVGJ-hQMRKRrZuJAEcl7B338qju59zJMjw2DELjzEvxwYv7hH5Ynpc1ODQ0aT4U4OFEeco8ohsN5PjL1iC2dNtk2BAokeMCg2ZXKqpc8FXKmhX94kIxQ";

    fn sender() -> Sender {
        Sender {
            endpoint: "https://a.example".to_owned(),
            project: "example".to_owned(),
            target: Target::Token,
            ttl: Duration::from_secs(86_400),
        }
    }

    fn message_of(sender: &Sender, call: &Call) -> Value {
        let request = build_request(sender, "secret", call, NOW).unwrap();
        let mut body: Value = serde_json::from_slice(request.body()).unwrap();
        body["message"].take()
    }

    #[test]
    fn the_request_is_what_google_documents() {
        let call = push(TOKEN);
        let request = build_request(&sender(), "secret", &call, NOW).unwrap();
        assert_eq!(request.uri(), "https://a.example/v1/projects/example/messages:send");
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer secret");
        assert!(request.headers()[AUTHORIZATION].is_sensitive());
        let golden = json!({
            "token": TOKEN,
            "notification": { "title": "Bob and 3 others", "body": "liked „photo 7“" },
            "data": {
                "notification_id": call.notification.to_string(),
                "delivery_id": call.delivery.to_string(),
                "action_url": "app://photo/7",
            },
            "android": {
                "priority": "high",
                "ttl": "86400s",
                "notification": { "tag": call.notification.to_string(), "sound": "default" },
            },
            "fcm_options": { "analytics_label": "social" },
        });
        assert_eq!(message_of(&sender(), &call), golden);
    }

    #[test]
    fn each_platform_gets_its_own_block() {
        let on = |platform: &str| {
            let mut call = push(TOKEN);
            call.address.platform = Some(platform.to_owned());
            call.collapse_key = Some("like:photo7".to_owned());
            call.expires_at = Some(NOW.after(Duration::from_secs(300)));
            let Content::Push(push) = &mut call.content else { panic!("a push") };
            push.channel_id = Some("social".to_owned());
            push.color = Some("#ff8800".to_owned());
            push.click_action = Some("OPEN".to_owned());
            push.badge = Some(3);
            push.icon = Some("heart".to_owned());
            push.thread_id = Some("like".to_owned());
            push.interruption_level = Some("passive".to_owned());
            push.mutable_content = true;
            push.action_url = Some("https://a.example/7".to_owned());
            message_of(&sender(), &call)
        };
        let android = on("android")["android"].clone();
        let notification = json!({
            "tag": "like:photo7", "channel_id": "social", "click_action": "OPEN", "icon": "heart", "color": "#ff8800",
            "sound": "default", "notification_count": 3,
        });
        assert_eq!(
            android,
            json!({ "priority": "high", "ttl": "300s", "collapse_key": "like:photo7", "notification": notification })
        );
        let ios = on("ios");
        let headers =
            json!({ "apns-collapse-id": "like:photo7", "apns-expiration": "1767323345", "apns-priority": "10" });
        let aps = json!({
            "badge": 3, "sound": "default", "thread-id": "like", "mutable-content": 1, "interruption-level": "passive",
        });
        assert_eq!(ios["apns"], json!({ "headers": headers, "payload": { "aps": aps } }));
        assert!(ios["android"].is_null());
        let web = json!({
            "headers": { "TTL": "300", "Urgency": "high" },
            "notification": { "tag": "like:photo7", "icon": "heart" },
            "fcm_options": { "link": "https://a.example/7" },
        });
        assert_eq!(on("web")["webpush"], web);
    }

    #[test]
    fn a_message_lives_until_it_expires_and_never_longer_than_fcm_keeps_it() {
        let minute = Duration::from_secs(60);
        for (expires_at, ttl_s, expected) in [
            (None, None, 86_400),
            (None, Some(300), 300),
            (None, Some(0), 0),
            (Some(NOW.after(minute)), Some(300), 60),
            (Some(NOW.before(minute)), None, 0),
            (Some(Instant::NEVER), None, 2_419_200),
        ] {
            let push_for = Push { ttl_s, ..Push::default() };
            let call = Call { expires_at, ..push(TOKEN) };
            let ttl = sender().ttl(&call, &push_for, NOW).as_secs();
            assert_eq!(ttl, expected, "{expires_at:?} {ttl_s:?}");
        }
    }

    #[test]
    fn a_template_collapses_where_the_call_says_nothing() {
        let mut call = push(TOKEN);
        let Content::Push(push) = &mut call.content else { panic!("a push") };
        (push.collapse_key, push.ttl_s) = (Some("like-photo7".to_owned()), Some(300));
        push.subtitle = Some("Photos".to_owned());
        let android = &message_of(&sender(), &call)["android"];
        let found = (&android["collapse_key"], &android["notification"]["tag"], &android["ttl"]);
        assert_eq!(found, (&json!("like-photo7"), &json!("like-photo7"), &json!("300s")));
        call.address.platform = Some("ios".to_owned());
        let apns = &message_of(&sender(), &call)["apns"];
        let found = (&apns["headers"]["apns-collapse-id"], &apns["headers"]["apns-expiration"]);
        assert_eq!(found, (&json!("like-photo7"), &json!("1767323345")));
        let alert = json!({ "title": "Bob and 3 others", "subtitle": "Photos", "body": "liked „photo 7“" });
        assert_eq!(apns["payload"]["aps"]["alert"], alert, "a subtitle has no place in the notification");
    }

    #[test]
    fn installation_ids_and_labels_have_their_own_form() {
        let by_fid = Sender { target: Target::Fid, ..sender() };
        let message = message_of(&by_fid, &push("fid1"));
        assert_eq!((&message["fid"], &message["token"]), (&json!("fid1"), &Value::Null));
        for (category, expected) in [("social", "social"), ("für alle", "f_r_alle"), ("", "none")] {
            assert_eq!(label(category), expected);
        }
        assert_eq!(label(&"x".repeat(99)).len(), LABEL_BYTES_MAX);
    }

    fn error(status: &str, code: Option<&str>, field: Option<&str>, message: &str) -> Vec<u8> {
        let mut details = Vec::new();
        details.extend(field.map(|field| json!({ "@type": "…BadRequest", "fieldViolations": [{ "field": field }] })));
        details.extend(code.map(|code| json!({ "@type": "…FcmError", "errorCode": code })));
        json!({ "error": { "code": 0, "status": status, "message": message, "details": details } }).to_string().into()
    }

    // One row of the header's table per line.
    #[test]
    fn answers_mean_what_the_table_says() {
        let bad = "INVALID_ARGUMENT";
        let stale = "The registration token is not a valid FCM registration token";
        for (http, body, word, after, code) in [
            (400, error(bad, Some(bad), Some("message.token"), ""), "invalid_address", None, "400 INVALID_ARGUMENT"),
            (400, error(bad, Some(bad), Some("message.fid"), ""), "invalid_address", None, "400 INVALID_ARGUMENT"),
            (400, error(bad, Some(bad), None, stale), "invalid_address", None, "400 INVALID_ARGUMENT"),
            (400, error(bad, Some(bad), Some("message.data"), stale), "permanent", None, "400 INVALID_ARGUMENT"),
            (400, error(bad, None, None, "Message is too big"), "permanent", None, "400 INVALID_ARGUMENT"),
            (
                401,
                error("UNAUTHENTICATED", Some("THIRD_PARTY_AUTH_ERROR"), None, ""),
                "paused",
                None,
                "401 THIRD_PARTY_AUTH_ERROR",
            ),
            (401, error("UNAUTHENTICATED", None, None, ""), "paused", None, "401 UNAUTHENTICATED"),
            (
                403,
                error("PERMISSION_DENIED", Some("SENDER_ID_MISMATCH"), None, ""),
                "invalid_address",
                None,
                "403 SENDER_ID_MISMATCH",
            ),
            (403, error("PERMISSION_DENIED", None, None, ""), "paused", None, "403 PERMISSION_DENIED"),
            (404, error("NOT_FOUND", Some("UNREGISTERED"), None, ""), "invalid_address", None, "404 UNREGISTERED"),
            (404, error("NOT_FOUND", None, None, ""), "paused", None, "404 NOT_FOUND"),
            (
                429,
                error("RESOURCE_EXHAUSTED", Some("QUOTA_EXCEEDED"), None, ""),
                "retryable",
                Some(60),
                "429 QUOTA_EXCEEDED",
            ),
            (429, error("RESOURCE_EXHAUSTED", None, None, ""), "retryable", Some(60), "429 RESOURCE_EXHAUSTED"),
            (500, error("INTERNAL", Some("INTERNAL"), None, ""), "retryable", Some(10), "500 INTERNAL"),
            (502, b"<!DOCTYPE html>".to_vec(), "retryable", Some(10), "502"),
            (503, error("UNAVAILABLE", Some("UNAVAILABLE"), None, ""), "retryable", Some(10), "503 UNAVAILABLE"),
            (400, error(bad, Some("SOMETHING_NEW"), None, ""), "permanent", None, "400 SOMETHING_NEW"),
            (403, error("SOMETHING_NEW", None, None, ""), "paused", None, "403 SOMETHING_NEW"),
            (599, error("SOMETHING_NEW", None, None, ""), "retryable", Some(10), "599 SOMETHING_NEW"),
        ] {
            let outcome = classify(http, &Refusal::read(&body), None);
            assert_eq!((outcome.word(), outcome.code().to_string().as_str()), (word, code));
            let waits = match outcome {
                Outcome::Retryable { after, .. } => after.map(|after| after.as_secs()),
                _ => None,
            };
            assert_eq!(waits, after, "{code}");
        }
        let quota = Refusal::read(&error("RESOURCE_EXHAUSTED", Some("QUOTA_EXCEEDED"), None, ""));
        let after = Some(Duration::from_secs(7));
        assert_eq!(classify(429, &quota, after), Outcome::retryable(Code::new(429, "QUOTA_EXCEEDED"), after));
    }

    fn params(world: &World) -> Value {
        json!({
            "endpoint": world.simulated.endpoints().fcm, "ca_file": world.files.ca, "credentials_file": world.files.fcm,
            "connections": 1, "timeout_seconds": 60,
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

    fn answer(provider: &str, status: u16, reason: &str) -> Rule {
        Rule::always(provider, Fault::Answer { status, reason: reason.to_owned() })
    }

    #[tokio::test]
    async fn two_hundred_messages_share_one_connection_and_one_access_token() {
        let world = World::start().await;
        let fcm = world.provider("fcm", params(&world));
        let calls: Vec<_> = (0..200).map(|device| push(&format!("{TOKEN}{device}"))).collect();
        let outcomes = fcm.deliver(&calls, NOW).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.word() == "accepted").count(), 200);
        let counts = world.simulated.counts();
        // One connection for messages, one to the token endpoint.
        assert_eq!((counts.providers["fcm"].connections, counts.providers["fcm"].accepted), (2, 200));
        assert_eq!(world.simulated.access_tokens_sold(), 1);
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn an_access_token_is_replaced_before_it_expires_and_once_when_it_is_refused() {
        let world = World::start().await;
        let fcm = world.provider("fcm", params(&world));
        for (minutes, sold) in [(0, 1), (54, 1), (2, 2)] {
            world.clock.pass(Duration::from_secs(minutes * 60));
            assert_eq!(deliver_one(&*fcm, &push(TOKEN)).await.word(), "accepted");
            assert_eq!(world.simulated.access_tokens_sold(), sold, "after {minutes} more minutes");
        }
        world.simulated.revoke_access_tokens();
        let calls: Vec<_> = (0..20).map(|device| push(&format!("{TOKEN}{device}"))).collect();
        assert!(fcm.deliver(&calls, NOW).await.iter().all(|outcome| outcome.word() == "accepted"));
        assert_eq!(world.simulated.access_tokens_sold(), 3, "bought once for all twenty");
        world.simulated.set_faults(script([answer("fcm", 401, "UNAUTHENTICATED")]));
        let refused = deliver_one(&*fcm, &push(TOKEN)).await;
        assert_eq!((refused.word(), refused.code().to_string().as_str()), ("paused", "401 UNAUTHENTICATED"));
        world.simulated.set_faults(script([answer("fcm", 401, "THIRD_PARTY_AUTH_ERROR")]));
        let sold = world.simulated.access_tokens_sold();
        assert_eq!(deliver_one(&*fcm, &push(TOKEN)).await.code().to_string(), "401 THIRD_PARTY_AUTH_ERROR");
        assert_eq!(world.simulated.access_tokens_sold(), sold, "our token is not at fault");
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn without_an_access_token_nothing_was_sent() {
        let world = World::start().await;
        for (fault, word, code) in [
            (Fault::NoAnswer, "retryable", "timeout"),
            (Fault::Reset, "retryable", "connection_reset"),
            (Fault::ServerError { status: 503 }, "retryable", "503 internal_failure"),
            (Fault::TooManyRequests { retry_after: None }, "retryable", "429 rate_limit_exceeded"),
            (Fault::Answer { status: 400, reason: "invalid_grant".to_owned() }, "paused", "400 invalid_grant"),
            (Fault::Answer { status: 401, reason: "invalid_client".to_owned() }, "paused", "401 invalid_client"),
        ] {
            world.simulated.set_faults(script([Rule::always("fcm_token", fault)]));
            let outcome = deliver_one(&*world.provider("fcm", impatient(&world)), &push(TOKEN)).await;
            assert_eq!((outcome.word(), outcome.code().to_string().as_str()), (word, code));
        }
        assert_eq!(world.simulated.counts().addresses.len(), 0);
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn a_failure_to_buy_a_token_answers_for_all_who_wait_and_is_soon_forgotten() {
        let world = World::start().await;
        let fcm = world.provider("fcm", params(&world));
        world.simulated.set_faults(script([answer("fcm_token", 500, "internal_failure")]));
        let calls: Vec<_> = (0..50).map(|device| push(&format!("{TOKEN}{device}"))).collect();
        assert!(fcm.deliver(&calls, NOW).await.iter().all(|outcome| outcome.word() == "retryable"));
        assert_eq!(world.simulated.counts().providers["fcm"].requests, 1);
        world.simulated.set_faults(Faults::default());
        world.clock.pass(TOKEN_FAILURE_LIFE);
        assert_eq!(deliver_one(&*fcm, &push(TOKEN)).await.word(), "accepted");
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn a_failure_is_forgotten_when_the_clock_is_set_back() {
        let world = World::start().await;
        let fcm = world.provider("fcm", params(&world));
        world.simulated.set_faults(script([answer("fcm_token", 500, "internal_failure")]));
        assert_eq!(deliver_one(&*fcm, &push(TOKEN)).await.word(), "retryable");
        world.simulated.set_faults(Faults::default());
        assert_eq!(deliver_one(&*fcm, &push(TOKEN)).await.word(), "retryable", "it answers for who comes next");
        world.clock.back(Duration::from_secs(3600));
        assert_eq!(deliver_one(&*fcm, &push(TOKEN)).await.word(), "accepted");
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn accepted_then_timed_out_is_maybe_sent_and_the_repeat_has_the_same_tag() {
        let world = World::start().await;
        let fcm = world.provider("fcm", impatient(&world));
        world.simulated.set_faults(script([Rule::always("fcm", Fault::NoAnswer).times(1)]));
        assert_eq!(deliver_one(&*fcm, &push(TOKEN)).await, Outcome::unknown(Code::ours("timeout")));
        assert_eq!(deliver_one(&*fcm, &push(TOKEN)).await.word(), "accepted");
        let messages = world.simulated.messages();
        assert_eq!((messages[0].copy, messages[1].copy), (2, 1));
        assert_eq!(messages[0].collapse_key, messages[1].collapse_key);
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn real_answers_arrive_as_outcomes() {
        let world = World::start().await;
        let fcm = world.provider("fcm", params(&world));
        world.simulated.set_faults(script([
            Rule::always("fcm", Fault::InvalidAddress { since: None }).at("dead"),
            Rule::always(
                "fcm",
                Fault::TooManyRequests { retry_after: Some("Fri, 02 Jan 2026 03:04:35 GMT".to_owned()) },
            )
            .at("busy"),
            Rule::always("fcm", Fault::ServerError { status: 502 }).at("html"),
            Rule::always("fcm", Fault::Reset).at("torn"),
            Rule::always("fcm", Fault::Refuse).at("refused"),
            answer("fcm", 403, "SENDER_ID_MISMATCH").at("foreign"),
        ]));
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (token, expected) in [
            ("busy", Outcome::retryable(Code::new(429, "QUOTA_EXCEEDED"), seconds(30))),
            ("html", Outcome::retryable(Code::new(502, ""), seconds(10))),
            ("torn", Outcome::unknown(Code::ours("connection_reset"))),
            ("refused", Outcome::retryable(Code::ours("refused_stream"), seconds(0))),
        ] {
            assert_eq!(deliver_one(&*fcm, &push(token)).await, expected, "{token}");
        }
        assert_eq!(deliver_one(&*fcm, &push("dead")).await.code().to_string(), "404 UNREGISTERED");
        assert_eq!(deliver_one(&*fcm, &push("foreign")).await.code().to_string(), "403 SENDER_ID_MISMATCH");
        let mut reserved = push(TOKEN);
        let Content::Push(content) = &mut reserved.content else { panic!("a push") };
        content.custom.insert("from".to_owned(), "me".to_owned());
        assert_eq!(deliver_one(&*fcm, &reserved).await.word(), "permanent");
        let mut other = params(&world);
        other["project_id"] = json!("another");
        assert_eq!(deliver_one(&*world.provider("fcm", other), &push(TOKEN)).await.code().to_string(), "404 NOT_FOUND");
        world.simulated.shutdown().await;
    }
}
