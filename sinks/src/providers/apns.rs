//! Apple Push Notification service, by its HTTP/2 provider API.
//!
//! * **Authentication**: a JWT (ES256) signed with the team's key, one for all connections, minted
//!   every 45 minutes: Apple refuses tokens older than 60 and new ones more often than every 20.
//! * **Batching**: none, one request per device; many run at once as streams of a few warm connections.
//! * **Quotas**: not published. Too many to one device is 429; many 4xx make Apple slow the connection.
//! * **Idempotency**: none. `apns-id` (made of the delivery id) only correlates; the collapse id makes
//!   a repeat replace the first copy on the screen.
//! * **An ambiguous answer** (timeout, reset): may have been shown, so the outcome says `maybe_sent`.
//!   A refused stream was certainly not processed and is tried once more at once.
//! * **Not done**: VoIP, Live Activities and broadcast channels; there are no receipts.
//!
//! Source: Apple's "Sending notification requests to APNs" and "Handling notification responses",
//! read November 2026.
//!
//! | status | reason | outcome |
//! |---|---|---|
//! | 200 | | accepted, `apns-id` |
//! | 400 | `BadDeviceToken` | once to the other environment where the address's is not known, then invalid address |
//! | 400 | `DeviceTokenNotForTopic` | permanent: this app is not that token's; the token lives on |
//! | 400 | `BadTopic` `MissingTopic` `TopicDisallowed` | paused |
//! | 400 | `IdleTimeout` | once more on a new connection, then retryable |
//! | 400 | others | permanent |
//! | 403 | `ExpiredProviderToken` | once more with a new token if ours is over 20 min old, then paused (clocks) |
//! | 403 | `UnrelatedKeyIdInToken` | once more on a new connection, then paused |
//! | 403 | others | paused |
//! | 404 `BadPath`, 405 `MethodNotAllowed`, 413 `PayloadTooLarge` | | permanent |
//! | 410 | `Unregistered` `ExpiredToken` | invalid address, if last confirmed no later than `timestamp`; else retryable |
//! | 429 | `TooManyRequests` | retryable, 10 s: this device only |
//! | 429 | `TooManyProviderTokenUpdates` | paused; no token is minted for 20 min |
//! | 500 | `InternalServerError` | retryable |
//! | 503 | `ServiceUnavailable` `Shutdown` | retryable, and a new connection |
//! | else | unknown reasons | by status: see `http::by_status` |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request};
use ring::digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::DeliveryId;
use tidings_schemas::profile::Address;
use tidings_schemas::time::Instant;

use super::http::{self as wire, Answer, ClientOptions, Pool};
use super::jwt::Signer;
use super::{BuildError, Call, Context, Provider, ProviderKind, WallClock};
use crate::outcome::{Code, Outcome};
use crate::render::{Content, Push};

const NAME: &str = "apns";
/// Apple's production environment.
const PRODUCTION: &str = "https://api.push.apple.com";
/// Apple's development environment, for apps signed for development.
const DEVELOPMENT: &str = "https://api.sandbox.push.apple.com";
/// Largest payload Apple takes; beyond it the message is refused here, without a call.
const PAYLOAD_BYTES_MAX: usize = 4096;
/// Longest collapse id Apple takes; a longer key is hashed.
const COLLAPSE_ID_BYTES_MAX: usize = 64;
/// How long one token is used: between Apple's 20 and 60 minutes, far from both.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(45 * 60);
/// Apple answers `TooManyProviderTokenUpdates` to new tokens more often than this.
const TOKEN_AGE_MIN: Duration = Duration::from_secs(20 * 60);
const _: () = assert!(TOKEN_AGE_MIN.as_secs() < TOKEN_AGE_MAX.as_secs() && TOKEN_AGE_MAX.as_secs() < 3600);
/// Least pause for one device after 429; Apple names no number, 10 s is where field reports start.
const DEVICE_PAUSE: Duration = Duration::from_secs(10);
/// Apple asks to keep connections for hours to days.
const IDLE: Duration = Duration::from_secs(24 * 3600);
/// Finds a dead connection before a push does. Apple allows pings, hourly when idle is its own example.
const PING: Duration = Duration::from_secs(300);

/// The line of the registry.
pub(super) const KIND: ProviderKind = ProviderKind {
    name: NAME,
    channel: Channel::Push,
    schema: || schemars::schema_for!(ApnsParams),
    make: |params, context| Ok(Box::new(Apns::new(super::params(NAME, params)?, context)?) as Box<dyn Provider>),
};

/// Parameters of `apns`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApnsParams {
    /// Where production tokens are sent to.
    #[serde(default = "production")]
    pub endpoint: String,
    /// Where development tokens are sent to. Apple's own beside Apple's own `endpoint`; with any
    /// other `endpoint` that one, so that nothing leaves for Apple unasked.
    #[serde(default)]
    pub sandbox_endpoint: Option<String>,
    /// Certificates (PEM) to trust beside the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The team's private key, the `.p8` file from Apple.
    pub key_file: PathBuf,
    /// The key's ten-character id.
    pub key_id: String,
    /// The team's ten-character id.
    pub team_id: String,
    /// The app's bundle id.
    pub topic: String,
    /// Connections per environment; each carries up to about a thousand pushes at once.
    #[serde(default = "connections")]
    pub connections: usize,
    /// How long one call may take, in seconds.
    #[serde(default = "timeout_seconds")]
    pub timeout_seconds: u64,
    /// How long to wait after a 5xx, in seconds: Apple advises 900. The lane's own, shorter steps where absent.
    #[serde(default)]
    pub server_error_retry_seconds: Option<u64>,
}

fn production() -> String {
    PRODUCTION.to_owned()
}

const fn connections() -> usize {
    2
}

const fn timeout_seconds() -> u64 {
    20
}

/// The payload. Our keys stand beside `aps`, where the app reads them.
#[derive(Serialize)]
struct Payload<'a> {
    aps: Aps<'a>,
    notification_id: String,
    delivery_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    action_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_url: Option<&'a str>,
    #[serde(flatten)]
    custom: BTreeMap<&'a str, &'a str>,
}

/// Keys of the payload that the app's own must not replace.
const PAYLOAD_KEYS: [&str; 5] = ["aps", "notification_id", "delivery_id", "action_url", "image_url"];

/// Apple's own keys, whoever carries them to Apple.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Aps<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) alert: Option<Alert<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    badge: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    category: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mutable_content: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interruption_level: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct Alert<'a> {
    title: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtitle: Option<&'a str>,
    body: &'a str,
}

/// The body of an answer that is not 200.
#[derive(Clone, Debug, Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    reason: Option<Reason>,
    /// With 410: since when Apple knows that the token is dead, in milliseconds.
    #[serde(default)]
    timestamp: Option<i64>,
}

/// Apple's reasons that mean more than their status does. Open: Apple adds some every year.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
enum Reason {
    BadDeviceToken,
    DeviceTokenNotForTopic,
    BadTopic,
    MissingTopic,
    TopicDisallowed,
    IdleTimeout,
    ExpiredProviderToken,
    UnrelatedKeyIdInToken,
    Unregistered,
    ExpiredToken,
    TooManyRequests,
    TooManyProviderTokenUpdates,
    #[serde(untagged)]
    Other(String),
}

impl Reason {
    fn text(&self) -> String {
        match self {
            Self::Other(text) => wire::bounded(text),
            known => format!("{known:?}"),
        }
    }
}

impl Refusal {
    fn read(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_else(|_| Self {
            reason: (!body.is_empty()).then(|| Reason::Other(String::from_utf8_lossy(body).into_owned())),
            timestamp: None,
        })
    }

    fn code(&self, status: u16) -> Code {
        Code::new(status, self.reason.as_ref().map(Reason::text).unwrap_or_default())
    }
}

/// The request that carries `call` to `endpoint`, or the outcome of a call that cannot be made.
fn build_request(endpoint: &str, topic: &str, jwt: &str, call: &Call, now: Instant) -> Result<Request<Bytes>, Outcome> {
    let Content::Push(push) = &call.content else {
        return Err(Outcome::permanent(Code::ours("wrong_content"), "expected the content of a push"));
    };
    let token = &call.address.address;
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Outcome::invalid_address(Code::ours("not_a_token"), "expected a device token in hex digits"));
    }
    let body = payload(call, push);
    if body.len() > PAYLOAD_BYTES_MAX {
        let reason = format!("payload of {} bytes, the most is {PAYLOAD_BYTES_MAX}; shorten the template", body.len());
        return Err(Outcome::permanent(Code::ours("PayloadTooLarge"), reason));
    }
    let collapse_id = call.collapse_key(push).map_or_else(|| call.notification.to_string(), collapse_id);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("{endpoint}/3/device/{token}"))
        .header(AUTHORIZATION, format!("bearer {jwt}"))
        .header(CONTENT_TYPE, "application/json")
        .header("apns-topic", topic)
        .header("apns-push-type", "alert")
        .header("apns-priority", if call.priority == Priority::Low { "5" } else { "10" })
        .header("apns-id", apns_id(call.delivery))
        .header("apns-collapse-id", collapse_id);
    if let Some(expiration) = expiration(call, push, now) {
        request = request.header("apns-expiration", expiration);
    }
    let mut request = request.body(body).map_err(|error| {
        Outcome::permanent(Code::ours("bad_request"), format!("a header that HTTP refuses: {error}"))
    })?;
    if let Some(authorization) = request.headers_mut().get_mut(AUTHORIZATION) {
        authorization.set_sensitive(true); // HPACK must not index it
    }
    Ok(request)
}

fn payload(call: &Call, push: &Push) -> Bytes {
    let payload = Payload {
        aps: aps(call, push),
        notification_id: call.notification.to_string(),
        delivery_id: call.delivery.to_string(),
        action_url: push.action_url.as_deref(),
        image_url: push.image_url.as_deref(),
        custom: (push.custom.iter().map(|(key, value)| (key.as_str(), value.as_str())))
            .filter(|(key, _)| !PAYLOAD_KEYS.contains(key))
            .collect(),
    };
    // Texts and numbers always serialize.
    serde_json::to_vec(&payload).unwrap_or_default().into()
}

/// What Apple shows. A picture needs the app's extension, and critical messages break through unless the template
/// decides otherwise.
pub(super) fn aps<'a>(call: &Call, push: &'a Push) -> Aps<'a> {
    let of_priority = (call.priority == Priority::Critical).then_some("time-sensitive");
    Aps {
        alert: Some(Alert { title: &push.title, subtitle: push.subtitle.as_deref(), body: &push.body }),
        badge: push.badge,
        sound: push.sound.as_deref(),
        category: push.category.as_deref(),
        thread_id: push.thread_id.as_deref(),
        mutable_content: (push.mutable_content || push.image_url.is_some()).then_some(1),
        interruption_level: push.interruption_level.as_deref().or(of_priority),
    }
}

/// Until when Apple keeps it, in seconds since 1970: an instant, not a span. Zero means "do not keep", which only a
/// template says, by a `ttl` of zero.
fn expiration(call: &Call, push: &Push, now: Instant) -> Option<String> {
    let at = match (call.expires_at, push.ttl_s) {
        (Some(expires_at), _) => expires_at,
        (None, Some(0)) => return Some("0".to_owned()),
        (None, Some(seconds)) => now.after(Duration::from_secs(seconds.into())),
        (None, None) => return None,
    };
    Some(at.0.div_euclid(1000).max(1).to_string())
}

/// The delivery id as a canonical UUID (version 8: the other bits are ours).
fn apns_id(delivery: DeliveryId) -> String {
    let mut bytes = delivery.0;
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A collapse key that fits; one that is too long or not plain is hashed to as many hex digits as fit.
pub(super) fn collapse_id(key: &str) -> String {
    if (1..=COLLAPSE_ID_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return key.to_owned();
    }
    let hash = digest::digest(&digest::SHA256, key.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a refusal means. `after` is what the answer or the topology says about waiting.
fn classify(status: u16, refusal: &Refusal, address: &Address, after: Option<Duration>) -> Outcome {
    let code = refusal.code(status);
    match &refusal.reason {
        Some(Reason::BadDeviceToken) => Outcome::invalid_address(code, "Apple does not know the token"),
        Some(Reason::DeviceTokenNotForTopic) => {
            Outcome::permanent(code, "the token belongs to another app: check `topic` and the registration")
        }
        Some(Reason::BadTopic | Reason::MissingTopic | Reason::TopicDisallowed) => {
            Outcome::paused(code, "Apple refuses the topic: check `topic` and what the key is allowed")
        }
        Some(Reason::IdleTimeout) => Outcome::retryable(code, Some(Duration::ZERO)),
        Some(Reason::ExpiredProviderToken) => {
            Outcome::paused(code, "Apple calls a fresh token expired: check this machine's clock")
        }
        Some(Reason::UnrelatedKeyIdInToken) => {
            Outcome::paused(code, "the connection carries tokens of another key: check `key_id`")
        }
        Some(Reason::Unregistered | Reason::ExpiredToken) => {
            let confirmed = address.registered_at.max(address.last_seen_at);
            match (refusal.timestamp, confirmed) {
                // The app confirmed the token after Apple last saw it dead: Apple's news is old.
                (Some(dead_since), Some(confirmed)) if confirmed > Instant(dead_since) => {
                    Outcome::retryable(code, after)
                }
                _ => Outcome::invalid_address(code, "the app was removed or the token replaced"),
            }
        }
        Some(Reason::TooManyRequests) => Outcome::retryable(code, Some(after.unwrap_or_default().max(DEVICE_PAUSE))),
        Some(Reason::TooManyProviderTokenUpdates) => {
            Outcome::paused(code, "Apple saw too many new tokens: does another process sign with the same key?")
        }
        Some(Reason::Other(_)) | None => wire::by_status(code, after),
    }
}

/// What one immediate second try would change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SecondTry {
    NewToken,
    NewConnection,
    OtherEnvironment,
}

/// Whether the first try cannot count and what the second would change.
fn second_try(refusal: &Refusal, address: &Address, token_age: Duration) -> Option<SecondTry> {
    match refusal.reason.as_ref()? {
        Reason::ExpiredProviderToken if token_age >= TOKEN_AGE_MIN => Some(SecondTry::NewToken),
        Reason::IdleTimeout | Reason::UnrelatedKeyIdInToken => Some(SecondTry::NewConnection),
        Reason::BadDeviceToken if address.environment.is_none() => Some(SecondTry::OtherEnvironment),
        _ => None,
    }
}

/// The token that all connections share.
struct Tokens {
    signer: Signer,
    key_id: String,
    team_id: String,
    wall_clock: WallClock,
    state: Mutex<TokenState>,
}

#[derive(Default)]
struct TokenState {
    minted: Option<Token>,
    frozen_until: Option<Instant>,
}

#[derive(Clone)]
struct Token {
    jwt: String,
    at: Instant,
}

impl TokenState {
    /// Whether none is minted now. What was frozen by a clock that was set back since is free.
    fn is_frozen(&self, now: Instant) -> bool {
        self.frozen_until.is_some_and(|until| now < until && until.since(now) <= TOKEN_AGE_MIN)
    }
}

impl Tokens {
    /// The current token, minted anew once it is too old, or dated later than it is: then the clock was set back; signing under the lock makes it one for all.
    fn current(&self) -> Result<Token, Outcome> {
        let now = (self.wall_clock)();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let frozen = state.is_frozen(now);
        match &state.minted {
            Some(token) if frozen || (token.at <= now && now.since(token.at) < TOKEN_AGE_MAX) => Ok(token.clone()),
            _ => self.mint(&mut state, now),
        }
    }

    /// A token newer than `stale`, unless minting is frozen.
    fn replace(&self, stale: &Token) -> Result<Token, Outcome> {
        let now = (self.wall_clock)();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let frozen = state.is_frozen(now);
        match &state.minted {
            Some(token) if frozen || token.at != stale.at => Ok(token.clone()),
            _ => self.mint(&mut state, now),
        }
    }

    fn mint(&self, state: &mut TokenState, now: Instant) -> Result<Token, Outcome> {
        let header = json!({ "alg": "ES256", "kid": self.key_id });
        let claims = json!({ "iss": self.team_id, "iat": now.0.div_euclid(1000) });
        let Some(jwt) = self.signer.sign(&header, &claims) else {
            return Err(Outcome::paused(Code::ours("no_token"), "the system gave no randomness to sign with"));
        };
        let token = Token { jwt, at: now };
        state.minted = Some(token.clone());
        Ok(token)
    }

    /// Mints none for a while.
    fn freeze(&self) {
        let until = (self.wall_clock)().after(TOKEN_AGE_MIN);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).frozen_until = Some(until);
    }
}

/// One of Apple's environments.
struct Environment {
    endpoint: String,
    pool: Pool,
}

struct Apns {
    topic: String,
    request_timeout: Duration,
    server_error_retry: Option<Duration>,
    wall_clock: WallClock,
    tokens: Tokens,
    production: Environment,
    /// Absent where it is the same endpoint.
    development: Option<Environment>,
}

impl Apns {
    fn new(params: ApnsParams, context: &Context) -> Result<Self, BuildError> {
        let error = |problem| BuildError { provider: NAME, problem };
        let key = context.read(NAME, "key_file", &params.key_file)?;
        let signer = Signer::es256(&key).map_err(|problem| error(format!("`key_file`: {problem}")))?;
        for (field, value) in [("key_id", &params.key_id), ("team_id", &params.team_id), ("topic", &params.topic)] {
            if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(error(format!("`{field}`: expected letters and digits, found `{value}`")));
            }
        }
        let timeout = Duration::from_secs(params.timeout_seconds);
        let mut options = ClientOptions::new(NAME, context, params.ca_file.as_ref(), timeout)?;
        options.http2_only = true;
        options.idle = IDLE;
        options.ping = Some((PING, true));
        let environment = |field, endpoint: &str| {
            Ok(Environment {
                endpoint: wire::endpoint(NAME, field, endpoint)?,
                pool: Pool::new(NAME, options.clone(), params.connections)?,
            })
        };
        let development = match params.sandbox_endpoint.as_deref() {
            Some(endpoint) if endpoint == params.endpoint => None,
            Some(endpoint) => Some(endpoint),
            None => (params.endpoint == PRODUCTION).then_some(DEVELOPMENT),
        };
        Ok(Self {
            production: environment("endpoint", &params.endpoint)?,
            development: development.map(|endpoint| environment("sandbox_endpoint", endpoint)).transpose()?,
            topic: params.topic,
            request_timeout: timeout,
            server_error_retry: params.server_error_retry_seconds.map(Duration::from_secs),
            wall_clock: context.wall_clock.clone(),
            tokens: Tokens {
                signer,
                key_id: params.key_id,
                team_id: params.team_id,
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

    async fn try_twice(&self, call: &Call, now: Instant) -> Result<Outcome, Outcome> {
        let address = &call.address;
        let other = self.development.as_ref();
        let (first, second) = match (address.environment.as_deref(), other) {
            (Some("development" | "sandbox"), Some(development)) => (development, &self.production),
            (_, Some(development)) => (&self.production, development),
            (_, None) => (&self.production, &self.production),
        };
        let token = self.tokens.current()?;
        let request = build_request(&first.endpoint, &self.topic, &token.jwt, call, now)?;
        let picked = first.pool.pick();
        let answer = match wire::call(&picked.client, request).await {
            Ok(answer) => answer,
            Err(Outcome::Retryable { after: Some(Duration::ZERO), maybe_sent: false, .. }) => {
                first.pool.renew(&picked);
                return self.last_try(first, &token, call, now).await;
            }
            Err(outcome) => return Err(outcome),
        };
        if is_success(answer.status) {
            return Ok(accepted(&answer.headers, call));
        }
        let refusal = Refusal::read(&answer.body);
        if matches!(answer.status, 503) || refusal.reason == Some(Reason::IdleTimeout) {
            first.pool.renew(&picked);
        }
        let outcome = classify(answer.status, &refusal, address, self.after(&answer));
        match second_try(&refusal, address, (self.wall_clock)().since(token.at)) {
            None => {
                if refusal.reason == Some(Reason::TooManyProviderTokenUpdates) {
                    self.tokens.freeze();
                }
                Ok(outcome)
            }
            Some(SecondTry::NewToken) => self.last_try(first, &self.tokens.replace(&token)?, call, now).await,
            Some(SecondTry::NewConnection) => {
                first.pool.renew(&picked);
                self.last_try(first, &token, call, now).await
            }
            Some(SecondTry::OtherEnvironment) if other.is_none() => Ok(outcome),
            Some(SecondTry::OtherEnvironment) => match self.last_try(second, &token, call, now).await? {
                Outcome::Accepted { provider_id, mut code } => {
                    code.reason = "accepted in the development environment".to_owned();
                    Ok(Outcome::Accepted { provider_id, code })
                }
                again @ Outcome::Retryable { .. } => Ok(again),
                // The other environment's refusal is no news about the address: the first answer stands.
                Outcome::Permanent { .. } | Outcome::InvalidAddress { .. } | Outcome::Paused { .. } => Ok(outcome),
            },
        }
    }

    async fn last_try(
        &self,
        environment: &Environment,
        token: &Token,
        call: &Call,
        now: Instant,
    ) -> Result<Outcome, Outcome> {
        let request = build_request(&environment.endpoint, &self.topic, &token.jwt, call, now)?;
        let answer = wire::call(&environment.pool.pick().client, request).await?;
        if is_success(answer.status) {
            return Ok(accepted(&answer.headers, call));
        }
        Ok(classify(answer.status, &Refusal::read(&answer.body), &call.address, self.after(&answer)))
    }

    /// How long to wait: what Apple says, else what the topology says about 5xx.
    fn after(&self, answer: &Answer) -> Option<Duration> {
        let topology = if answer.status >= 500 { self.server_error_retry } else { None };
        wire::retry_after(&answer.headers, (self.wall_clock)()).or(topology)
    }
}

const fn is_success(status: u16) -> bool {
    status >= 200 && status < 300
}

fn accepted(headers: &HeaderMap, call: &Call) -> Outcome {
    let id = headers.get("apns-id").map(HeaderValue::to_str);
    Outcome::accepted(Code::new(200, ""), id.and_then(Result::ok).map_or_else(|| apns_id(call.delivery), str::to_owned))
}

#[async_trait]
impl Provider for Apns {
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
        self.request_timeout * 2
    }

    async fn deliver(&self, calls: &[Call], now: Instant) -> Vec<Outcome> {
        join_all(calls.iter().map(move |call| self.deliver_one(call, now))).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::providers::samples::{Clock, NOW, World, context, deliver_one, push};
    use crate::simulated::{Fault, Faults, Rule};

    const TOKEN: &str = "00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0";

    fn request(call: &Call) -> Request<Bytes> {
        build_request("https://a.example", "com.example.app", "e30.e30.c2ln", call, NOW).unwrap()
    }

    fn body(call: &Call) -> Value {
        serde_json::from_slice(request(call).body()).unwrap()
    }

    fn header<'a>(request: &'a Request<Bytes>, name: &str) -> Option<&'a str> {
        request.headers().get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn the_request_is_what_apple_documents() {
        let mut call = push(TOKEN);
        call.expires_at = Some(NOW.after(Duration::from_millis(300_999)));
        let request = request(&call);
        assert_eq!((request.method(), request.uri().path()), (&Method::POST, format!("/3/device/{TOKEN}").as_str()));
        assert!(request.headers()[AUTHORIZATION].is_sensitive());
        for (name, value) in [
            ("authorization", "bearer e30.e30.c2ln"),
            ("apns-topic", "com.example.app"),
            ("apns-push-type", "alert"),
            ("apns-priority", "10"),
            ("apns-expiration", "1767323345"),
            ("apns-id", apns_id(call.delivery).as_str()),
            ("apns-collapse-id", call.notification.to_string().as_str()),
        ] {
            assert_eq!(header(&request, name), Some(value), "{name}");
        }
        let golden = json!({
            "aps": { "alert": { "title": "Bob and 3 others", "body": "liked „photo 7“" }, "sound": "default" },
            "notification_id": call.notification.to_string(),
            "delivery_id": call.delivery.to_string(),
            "action_url": "app://photo/7",
        });
        assert_eq!(body(&call), golden);
    }

    #[test]
    fn the_presentation_reaches_its_keys_and_custom_keys_replace_none_of_ours() {
        let mut call = push(TOKEN);
        call.priority = Priority::Critical;
        let Content::Push(push) = &mut call.content else { panic!("a push") };
        push.subtitle = Some("Photos".to_owned());
        push.badge = Some(3);
        push.category = Some("LIKE".to_owned());
        push.image_url = Some("https://a.example/i.png".to_owned());
        push.custom = [("aps", "x"), ("delivery_id", "x"), ("album", "7")].map(|(k, v)| (k.into(), v.into())).into();
        let body = body(&call);
        let aps = &body["aps"];
        assert_eq!(
            (&aps["alert"]["subtitle"], &aps["badge"], &aps["category"]),
            (&json!("Photos"), &json!(3), &json!("LIKE"))
        );
        assert_eq!((&aps["mutable-content"], &aps["interruption-level"]), (&json!(1), &json!("time-sensitive")));
        assert_eq!((&body["album"], &body["image_url"]), (&json!("7"), &json!("https://a.example/i.png")));
        assert_eq!(body["delivery_id"], json!(call.delivery.to_string()));
        assert_eq!(header(&request(&push_low()), "apns-priority"), Some("5"));
    }

    #[test]
    fn a_template_groups_collapses_and_times_where_the_call_says_nothing() {
        let mut call = push(TOKEN);
        call.priority = Priority::Critical;
        let Content::Push(push) = &mut call.content else { panic!("a push") };
        push.thread_id = Some("like".to_owned());
        push.interruption_level = Some("passive".to_owned());
        push.mutable_content = true;
        push.collapse_key = Some("like-photo7".to_owned());
        push.ttl_s = Some(300);
        let aps = &body(&call)["aps"];
        for (key, value) in
            [("thread-id", json!("like")), ("interruption-level", json!("passive")), ("mutable-content", json!(1))]
        {
            assert_eq!(aps[key], value, "{key}");
        }
        let (own_key, in_a_minute) = (Some("own".to_owned()), Some(NOW.after(Duration::from_secs(60))));
        for (key, expires_at, ttl_s, collapse_id, expiration) in [
            (None, None, Some(300), "like-photo7", Some("1767323345")),
            (own_key, in_a_minute, Some(300), "own", Some("1767323105")),
            (None, None, Some(0), "like-photo7", Some("0")),
            (None, Some(NOW), Some(0), "like-photo7", Some("1767323045")),
            (None, None, None, "like-photo7", None),
        ] {
            (call.collapse_key, call.expires_at) = (key, expires_at);
            let Content::Push(push) = &mut call.content else { panic!("a push") };
            push.ttl_s = ttl_s;
            let request = request(&call);
            assert_eq!(header(&request, "apns-collapse-id"), Some(collapse_id));
            assert_eq!(header(&request, "apns-expiration"), expiration, "{expires_at:?} {ttl_s:?}");
        }
    }

    fn push_low() -> Call {
        Call { priority: Priority::Low, ..push(TOKEN) }
    }

    #[test]
    fn a_collapse_key_fits_in_64_bytes_whatever_it_is() {
        assert_eq!(collapse_id("like:photo7"), "like:photo7");
        assert_eq!(collapse_id(&"x".repeat(64)), "x".repeat(64));
        for key in ["x".repeat(65), "grüße".to_owned(), "a\r\nb: c".to_owned(), String::new()] {
            let id = collapse_id(&key);
            assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
        }
    }

    #[test]
    fn calls_that_cannot_be_made_are_outcomes() {
        let build = |call: &Call| build_request("https://a.example", "t", "j", call, NOW).unwrap_err();
        assert_eq!(build(&push("../../x")).word(), "invalid_address");
        let mut large = push(TOKEN);
        let Content::Push(content) = &mut large.content else { panic!("a push") };
        content.body = "x".repeat(4096);
        let outcome = build(&large);
        assert_eq!((outcome.word(), outcome.code().reason.as_str()), ("permanent", "PayloadTooLarge"));
    }

    // One row of the header's table per line.
    #[test]
    fn answers_mean_what_the_table_says() {
        let address = push(TOKEN).address;
        for (status, reason, word, after) in [
            (400, "BadDeviceToken", "invalid_address", None),
            (400, "DeviceTokenNotForTopic", "permanent", None),
            (400, "BadTopic", "paused", None),
            (400, "MissingTopic", "paused", None),
            (400, "TopicDisallowed", "paused", None),
            (400, "IdleTimeout", "retryable", Some(0)),
            (400, "BadCollapseId", "permanent", None),
            (400, "BadExpirationDate", "permanent", None),
            (400, "BadMessageId", "permanent", None),
            (400, "BadPriority", "permanent", None),
            (400, "DuplicateHeaders", "permanent", None),
            (400, "InvalidPushType", "permanent", None),
            (400, "PayloadEmpty", "permanent", None),
            (400, "MissingDeviceToken", "permanent", None),
            (400, "SomethingNew", "permanent", None),
            (403, "ExpiredProviderToken", "paused", None),
            (403, "InvalidProviderToken", "paused", None),
            (403, "MissingProviderToken", "paused", None),
            (403, "BadCertificate", "paused", None),
            (403, "BadCertificateEnvironment", "paused", None),
            (403, "BadEnvironmentKeyIdInToken", "paused", None),
            (403, "UnrelatedKeyIdInToken", "paused", None),
            (403, "Forbidden", "paused", None),
            (404, "BadPath", "permanent", None),
            (405, "MethodNotAllowed", "permanent", None),
            (410, "Unregistered", "invalid_address", None),
            (410, "ExpiredToken", "invalid_address", None),
            (413, "PayloadTooLarge", "permanent", None),
            (429, "TooManyRequests", "retryable", Some(10)),
            (429, "TooManyProviderTokenUpdates", "paused", None),
            (429, "SomethingNew", "retryable", None),
            (500, "InternalServerError", "retryable", None),
            (503, "ServiceUnavailable", "retryable", None),
            (503, "Shutdown", "retryable", None),
        ] {
            let refusal = Refusal::read(json!({ "reason": reason }).to_string().as_bytes());
            let outcome = classify(status, &refusal, &address, None);
            assert_eq!(outcome.word(), word, "{status} {reason}");
            assert_eq!(outcome.code(), &Code::new(status, reason));
            let waits = match outcome {
                Outcome::Retryable { after, .. } => after.map(|after| after.as_secs()),
                _ => None,
            };
            assert_eq!(waits, after, "{status} {reason}");
        }
    }

    #[test]
    fn an_answer_that_is_no_json_keeps_its_status_and_its_words() {
        let refusal = Refusal::read(b"<html>Bad\r\nGateway</html>");
        let outcome = classify(502, &refusal, &push(TOKEN).address, None);
        assert_eq!(
            (outcome.word(), outcome.code().to_string().as_str()),
            ("retryable", "502 <html>Bad  Gateway</html>")
        );
        assert_eq!(Refusal::read(b"").code(500).to_string(), "500");
    }

    #[test]
    fn a_token_that_was_confirmed_after_apple_saw_it_dead_lives_on() {
        let hour = Duration::from_secs(3600);
        for (registered, seen, dead_since, word) in [
            (Some(NOW.before(hour)), None, Some(NOW), "invalid_address"),
            (Some(NOW), None, Some(NOW), "invalid_address"),
            (Some(NOW), None, Some(NOW.before(hour)), "retryable"),
            (Some(NOW.before(hour)), Some(NOW.after(hour)), Some(NOW), "retryable"),
            (None, None, Some(NOW), "invalid_address"),
            (Some(NOW), None, None, "invalid_address"),
        ] {
            let address = Address { registered_at: registered, last_seen_at: seen, ..push(TOKEN).address };
            let refusal = Refusal { reason: Some(Reason::Unregistered), timestamp: dead_since.map(|at| at.0) };
            assert_eq!(classify(410, &refusal, &address, None).word(), word, "{registered:?} {seen:?} {dead_since:?}");
        }
    }

    #[test]
    fn a_second_try_is_made_only_where_it_changes_something() {
        let (known, unknown) = (push(TOKEN).address, Address { environment: None, ..push(TOKEN).address });
        let old = TOKEN_AGE_MIN;
        let fresh = TOKEN_AGE_MIN - Duration::from_secs(1);
        for (reason, address, age, expected) in [
            (Reason::ExpiredProviderToken, &known, old, Some(SecondTry::NewToken)),
            (Reason::ExpiredProviderToken, &known, fresh, None),
            (Reason::IdleTimeout, &known, fresh, Some(SecondTry::NewConnection)),
            (Reason::UnrelatedKeyIdInToken, &known, fresh, Some(SecondTry::NewConnection)),
            (Reason::BadDeviceToken, &unknown, fresh, Some(SecondTry::OtherEnvironment)),
            (Reason::BadDeviceToken, &known, fresh, None),
            (Reason::Unregistered, &unknown, old, None),
            (Reason::Other("New".to_owned()), &unknown, old, None),
        ] {
            let refusal = Refusal { reason: Some(reason.clone()), timestamp: None };
            assert_eq!(second_try(&refusal, address, age), expected, "{reason:?}");
        }
    }

    fn params(world: &World) -> Value {
        let endpoints = world.simulated.endpoints();
        json!({
            "endpoint": endpoints.apns, "sandbox_endpoint": endpoints.apns_sandbox, "ca_file": world.files.ca,
            "key_file": world.files.apns, "key_id": "ABC1234567", "team_id": "DEF1234567", "topic": "com.example.app",
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

    #[test]
    fn parameters_are_checked_and_their_errors_say_what_to_do() {
        let context = context(std::env::temp_dir(), &Clock::new());
        let kind = super::super::kind("apns").unwrap();
        let error = |params: Value| kind.build(params, &context).err().unwrap().to_string();
        assert!(
            error(json!({ "key": "x" }))
                .starts_with("provider `apns`: unknown field `key`, expected one of `endpoint`")
        );
        let missing = error(json!({ "key_file": "no.p8", "key_id": "k", "team_id": "t", "topic": "a" }));
        assert!(
            missing.contains("`key_file`") && missing.ends_with("give the path of a file that can be read"),
            "{missing}"
        );
    }

    #[tokio::test]
    async fn two_hundred_pushes_share_one_connection() {
        let world = World::start().await;
        let apns = world.provider("apns", params(&world));
        let calls: Vec<_> = (0..200).map(|device| push(&format!("{device:064x}"))).collect();
        let outcomes = apns.deliver(&calls, NOW).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.word() == "accepted").count(), 200);
        let counts = world.simulated.counts();
        let traffic = &counts.providers["apns"];
        assert_eq!((traffic.connections, traffic.requests, traffic.accepted), (1, 200, 200));
        assert!(
            calls
                .iter()
                .all(|call| counts.addresses[&call.address.address].deliveries[&call.delivery.to_string()] == 1)
        );
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn a_connection_that_retires_in_the_middle_loses_nothing() {
        let world = World::start().await;
        let apns = world.provider("apns", params(&world));
        world.simulated.set_faults(script([Rule::always("apns", Fault::GoAway).every(40).times(4)]));
        let calls: Vec<_> = (0..400).map(|device| push(&format!("{device:064x}"))).collect();
        let outcomes = apns.deliver(&calls, NOW).await;
        let (accepted, repeats): (Vec<_>, Vec<_>) =
            calls.iter().zip(&outcomes).partition(|(_, outcome)| outcome.word() == "accepted");
        assert!(repeats.iter().all(|(_, outcome)| matches!(outcome, Outcome::Retryable { .. })), "{repeats:?}");
        assert!(repeats.len() <= 4, "at most the one call that waited for a stream on each connection: {repeats:?}");
        let repeats: Vec<_> = repeats.into_iter().map(|(call, _)| call.clone()).collect();
        assert!(apns.deliver(&repeats, NOW).await.iter().all(|outcome| outcome.word() == "accepted"));
        let counts = world.simulated.counts();
        assert_eq!(counts.addresses.len(), 400);
        assert!(counts.providers["apns"].connections > 1);
        assert!(accepted.iter().all(|(call, _)| counts.addresses[&call.address.address].messages == 1));
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn accepted_then_timed_out_is_maybe_sent_and_the_repeat_carries_the_same_ids() {
        let world = World::start().await;
        let apns = world.provider("apns", impatient(&world));
        world.simulated.set_faults(script([Rule::always("apns", Fault::NoAnswer).times(1)]));
        let call = push(TOKEN);
        assert_eq!(deliver_one(&*apns, &call).await, Outcome::unknown(Code::ours("timeout")));
        let again = deliver_one(&*apns, &call).await;
        assert_eq!(again, Outcome::accepted(Code::new(200, ""), apns_id(call.delivery)));
        let messages = world.simulated.messages();
        assert_eq!(messages.iter().map(|message| message.copy).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(
            (&messages[0].provider_id, &messages[0].collapse_key),
            (&messages[1].provider_id, &messages[1].collapse_key)
        );
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn an_answer_that_comes_too_late_is_no_answer() {
        let world = World::start().await;
        let apns = world.provider("apns", impatient(&world));
        world.simulated.set_faults(script([Rule::always("apns", Fault::Slow { ms: 60_000 })]));
        assert_eq!(deliver_one(&*apns, &push(TOKEN)).await, Outcome::unknown(Code::ours("timeout")));
        assert_eq!(world.simulated.counts().providers["apns"].accepted, 1);
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn a_torn_connection_is_maybe_sent_and_the_next_push_finds_a_new_one() {
        let world = World::start().await;
        let apns = world.provider("apns", params(&world));
        world.simulated.set_faults(script([Rule::always("apns", Fault::Reset).times(1)]));
        assert_eq!(deliver_one(&*apns, &push(TOKEN)).await, Outcome::unknown(Code::ours("connection_reset")));
        assert_eq!(deliver_one(&*apns, &push(TOKEN)).await.word(), "accepted");
        assert_eq!(world.simulated.counts().providers["apns"].connections, 2);
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn a_refused_stream_was_not_sent_and_neither_was_a_call_without_a_connection() {
        let world = World::start().await;
        let apns = world.provider("apns", params(&world));
        world.simulated.set_faults(script([Rule::always("apns", Fault::Refuse)]));
        let refused = Outcome::retryable(Code::ours("refused_stream"), Some(Duration::ZERO));
        assert_eq!(deliver_one(&*apns, &push(TOKEN)).await, refused);
        assert_eq!(world.simulated.counts().providers["apns"].accepted, 0);
        world.simulated.set_faults(script([Rule::always("apns", Fault::Refuse).times(1)]));
        assert_eq!(deliver_one(&*apns, &push(TOKEN)).await.word(), "accepted", "tried again at once");
        world.simulated.shutdown().await;
        assert_eq!(deliver_one(&*apns, &push("ab")).await, Outcome::retryable(Code::ours("connect"), None));
    }

    #[tokio::test]
    async fn dead_throttled_and_ailing_answers_arrive_as_outcomes() {
        let world = World::start().await;
        let apns = world.provider("apns", params(&world));
        let throttled = Fault::TooManyRequests { retry_after: Some("77".to_owned()) };
        world.simulated.set_faults(script([
            Rule::always("apns", Fault::InvalidAddress { since: None }).at("aa"),
            Rule::always("apns", throttled).at("bb"),
            Rule::always("apns", Fault::ServerError { status: 503 }).at("cc").times(1),
        ]));
        let dead = deliver_one(&*apns, &push("aa")).await;
        assert_eq!((dead.word(), dead.code().to_string().as_str()), ("invalid_address", "410 Unregistered"));
        let code = Code::new(429, "TooManyRequests");
        assert_eq!(deliver_one(&*apns, &push("bb")).await, Outcome::retryable(code, Some(Duration::from_secs(77))));
        let ailing = Outcome::retryable(Code::new(503, "ServiceUnavailable"), None);
        assert_eq!(deliver_one(&*apns, &push("cc")).await, ailing);
        assert_eq!(deliver_one(&*apns, &push("cc")).await.word(), "accepted");
        assert_eq!(world.simulated.counts().providers["apns"].connections, 2, "503 asks for a new connection");
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn a_token_of_unknown_environment_is_tried_in_the_other_one() {
        let world = World::start().await;
        let apns = world.provider("apns", params(&world));
        world.simulated.set_faults(script([
            answer("apns", 400, "BadDeviceToken"),
            answer("apns_sandbox", 400, "BadDeviceToken").at("dd"),
            answer("apns_sandbox", 403, "BadEnvironmentKeyIdInToken").at("ee"),
            Rule::always("apns_sandbox", Fault::ServerError { status: 500 }).at("ff"),
        ]));
        let unknown = |token: &str| {
            let mut call = push(token);
            call.address.environment = None;
            call
        };
        for (call, word, code) in [
            (unknown(TOKEN), "accepted", "200 accepted in the development environment"),
            (push(TOKEN), "invalid_address", "400 BadDeviceToken"), // known to be production: not tried elsewhere
            (unknown("dd"), "invalid_address", "400 BadDeviceToken"),
            (unknown("ee"), "invalid_address", "400 BadDeviceToken"), // the other environment's refusal is no news
            (unknown("ff"), "retryable", "500 InternalServerError"),
        ] {
            let outcome = deliver_one(&*apns, &call).await;
            assert_eq!((outcome.word(), outcome.code().to_string().as_str()), (word, code), "{}", call.address.address);
        }
        let mut development = push("ab");
        development.address.environment = Some("development".to_owned());
        assert_eq!(deliver_one(&*apns, &development).await.code().to_string(), "200");
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn one_token_serves_45_minutes_and_an_expired_one_is_replaced_within_the_call() {
        let world = World::start().await;
        let apns = world.provider("apns", params(&world));
        for minutes in [0, 44, 2, 44, 2] {
            world.clock.pass(Duration::from_secs(minutes * 60));
            assert_eq!(deliver_one(&*apns, &push(TOKEN)).await.word(), "accepted");
        }
        // Fresh: the answer must be about clocks. Twenty minutes old: a new one is tried.
        world.simulated.set_faults(script([answer("apns", 403, "ExpiredProviderToken").times(1)]));
        assert_eq!(deliver_one(&*apns, &push(TOKEN)).await.word(), "paused");
        world.clock.pass(TOKEN_AGE_MIN);
        world.simulated.set_faults(script([answer("apns", 403, "ExpiredProviderToken").times(1)]));
        assert_eq!(deliver_one(&*apns, &push(TOKEN)).await.word(), "accepted");
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn a_key_that_apple_does_not_know_pauses() {
        let world = World::start().await;
        let mut params = params(&world);
        params["key_id"] = json!("NOSUCHKEY0");
        let outcome = deliver_one(&*world.provider("apns", params), &push(TOKEN)).await;
        assert_eq!((outcome.word(), outcome.code().to_string().as_str()), ("paused", "403 InvalidProviderToken"));
        world.simulated.shutdown().await;
    }

    fn tokens(clock: &Clock) -> Tokens {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        Tokens {
            signer: Signer::es256(key.as_bytes()).unwrap(),
            key_id: "k".to_owned(),
            team_id: "t".to_owned(),
            wall_clock: clock.wall(),
            state: Mutex::default(),
        }
    }

    #[test]
    fn a_frozen_mint_keeps_the_old_token() {
        let clock = Clock::new();
        let tokens = tokens(&clock);
        let first = tokens.current().unwrap();
        clock.pass(TOKEN_AGE_MAX - Duration::from_secs(1));
        tokens.freeze();
        clock.pass(Duration::from_secs(60));
        assert_eq!(tokens.current().unwrap().jwt, first.jwt, "frozen");
        assert_eq!(tokens.replace(&first).unwrap().jwt, first.jwt, "frozen");
        clock.pass(TOKEN_AGE_MIN);
        let second = tokens.current().unwrap();
        assert_ne!(second.jwt, first.jwt);
        assert_eq!(tokens.replace(&first).unwrap().jwt, second.jwt, "another call has replaced it already");
    }

    #[test]
    fn a_token_of_a_clock_that_was_set_back_is_not_used_until_that_hour_comes_again() {
        let clock = Clock::new();
        let tokens = tokens(&clock);
        let hours_2 = Duration::from_secs(2 * 3600);
        clock.pass(hours_2);
        let (first, at) = (tokens.current().unwrap(), NOW.after(hours_2));
        tokens.freeze();
        clock.back(hours_2);
        let second = tokens.current().unwrap();
        assert_eq!((first.at, second.at), (at, NOW));
        assert_ne!(second.jwt, first.jwt);
    }
}
