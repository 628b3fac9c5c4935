//! Apple's provider API as its documentation describes it: what it checks, in that order, and how it
//! refuses.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tidings_schemas::channel::Channel;
use tidings_schemas::time::Instant;

use super::server::{self, Reply};
use super::{Arrival, Fault, Listener, Shared, SimulatedError};
use crate::render::{Content, Push};

/// Largest payload.
const PAYLOAD_BYTES_MAX: usize = 4096;
/// Longest collapse id.
const COLLAPSE_ID_BYTES_MAX: usize = 64;
/// How old a provider token may be.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(3600);
const PUSH_TYPES: [&str; 4] = ["alert", "background", "voip", "liveactivity"];

/// The public half of Apple's key.
pub(super) fn public_key(p8: &str) -> Result<Vec<u8>, SimulatedError> {
    let error = |error: String| SimulatedError::Key("apns.p8", error);
    let der = PrivatePkcs8KeyDer::from_pem_slice(p8.as_bytes()).map_err(|e| error(e.to_string()))?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &SystemRandom::new())
        .map_err(|e| error(e.to_string()))?;
    Ok(pair.public_key().as_ref().to_vec())
}

pub(super) fn handle(shared: &Shared, which: Listener, request: &Request<Bytes>) -> (Duration, Reply) {
    let token = match check(shared, request) {
        Ok(token) => token,
        Err((status, reason)) => {
            return (Duration::ZERO, refuse(shared, request.headers(), status, json!({ "reason": reason })));
        }
    };
    let no_wait = |reply| (Duration::ZERO, reply);
    let refuse = |status, body| no_wait(refuse(shared, request.headers(), status, body));
    match shared.strike(which, Some(token), true) {
        None => no_wait(accept(shared, which, token, request)),
        Some(Fault::Slow { ms }) => (Duration::from_millis(ms), accept(shared, which, token, request)),
        Some(Fault::GoAway) => no_wait(server::retire(accept(shared, which, token, request))),
        Some(Fault::NoAnswer) => {
            accept(shared, which, token, request);
            no_wait(Reply::Never)
        }
        Some(Fault::Reset) => {
            accept(shared, which, token, request);
            no_wait(Reply::Reset)
        }
        Some(Fault::Refuse) => no_wait(Reply::Refuse),
        Some(Fault::TooManyRequests { retry_after }) => {
            let (wait, reply) = refuse(429, json!({ "reason": "TooManyRequests" }));
            (wait, super::with_retry_after(reply, retry_after.as_deref()))
        }
        Some(Fault::ServerError { status }) => {
            let reason = if status == 503 { "ServiceUnavailable" } else { "InternalServerError" };
            refuse(status, json!({ "reason": reason }))
        }
        Some(Fault::InvalidAddress { since }) => {
            let since: Instant = since.unwrap_or_else(|| shared.now());
            refuse(410, json!({ "reason": "Unregistered", "timestamp": since.0 }))
        }
        Some(Fault::Answer { status, reason }) => refuse(status, json!({ "reason": reason })),
    }
}

/// The device token, or the refusal.
fn check<'a>(shared: &Shared, request: &'a Request<Bytes>) -> Result<&'a str, (u16, &'static str)> {
    let headers = request.headers();
    if request.method() != Method::POST {
        return Err((405, "MethodNotAllowed"));
    }
    let token = request.uri().path().strip_prefix("/3/device/").ok_or((404, "BadPath"))?;
    if token.is_empty() {
        return Err((400, "MissingDeviceToken"));
    }
    authenticate(shared, headers)?;
    match text(headers, "apns-topic") {
        None => return Err((400, "MissingTopic")),
        Some(topic) if topic != shared.config.apns_topic => return Err((400, "TopicDisallowed")),
        Some(_) => {}
    }
    if !text(headers, "apns-push-type").is_some_and(|kind| PUSH_TYPES.contains(&kind)) {
        return Err((400, "InvalidPushType"));
    }
    if text(headers, "apns-priority").is_some_and(|priority| !["1", "5", "10"].contains(&priority)) {
        return Err((400, "BadPriority"));
    }
    if text(headers, "apns-expiration").is_some_and(|at| at.parse::<u64>().is_err()) {
        return Err((400, "BadExpirationDate"));
    }
    if text(headers, "apns-collapse-id").is_some_and(|id| id.len() > COLLAPSE_ID_BYTES_MAX) {
        return Err((400, "BadCollapseId"));
    }
    if text(headers, "apns-id").is_some_and(|id| !is_uuid(id)) {
        return Err((400, "BadMessageId"));
    }
    if request.body().is_empty() {
        return Err((400, "PayloadEmpty"));
    }
    if request.body().len() > PAYLOAD_BYTES_MAX {
        return Err((413, "PayloadTooLarge"));
    }
    if token.len() % 2 != 0 || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err((400, "BadDeviceToken"));
    }
    Ok(token)
}

/// Checks the provider token: form, key, team, signature, age.
fn authenticate(shared: &Shared, headers: &HeaderMap) -> Result<(), (u16, &'static str)> {
    let invalid = (403, "InvalidProviderToken");
    let jwt = text(headers, AUTHORIZATION.as_str()).ok_or((403, "MissingProviderToken"))?;
    let jwt = jwt.strip_prefix("bearer ").or_else(|| jwt.strip_prefix("Bearer ")).ok_or(invalid)?;
    let (message, signature) = jwt.rsplit_once('.').ok_or(invalid)?;
    let (header, claims) = message.split_once('.').ok_or(invalid)?;
    let json = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
    let (header, claims) = (json(header).ok_or(invalid)?, json(claims).ok_or(invalid)?);
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| invalid)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &shared.apns_public_key)
        .verify(message.as_bytes(), &signature)
        .map_err(|_| invalid)?;
    if header["alg"] != "ES256" || header["kid"] != shared.config.apns_key_id.as_str() {
        return Err(invalid);
    }
    if claims["iss"] != shared.config.apns_team_id.as_str() {
        return Err(invalid);
    }
    let issued = Instant(claims["iat"].as_i64().ok_or(invalid)?.saturating_mul(1000));
    if shared.now().since(issued) > TOKEN_AGE_MAX { Err((403, "ExpiredProviderToken")) } else { Ok(()) }
}

fn accept(shared: &Shared, which: Listener, token: &str, request: &Request<Bytes>) -> Reply {
    let headers = request.headers();
    let payload: Value = serde_json::from_slice(request.body()).unwrap_or_default();
    let string = |value: &Value| value.as_str().map(str::to_owned);
    let (aps, alert) = (&payload["aps"], &payload["aps"]["alert"]);
    let id = apns_id(shared, headers);
    let content = Content::Push(Box::new(Push {
        title: string(&alert["title"]).unwrap_or_default(),
        subtitle: string(&alert["subtitle"]),
        body: string(&alert["body"]).or_else(|| string(alert)).unwrap_or_default(),
        image_url: string(&payload["image_url"]),
        action_url: string(&payload["action_url"]),
        badge: aps["badge"].as_u64().and_then(|badge| badge.try_into().ok()),
        sound: string(&aps["sound"]),
        category: string(&aps["category"]),
        thread_id: string(&aps["thread-id"]),
        interruption_level: string(&aps["interruption-level"]),
        mutable_content: aps["mutable-content"] == 1,
        custom: (payload.as_object().into_iter().flatten())
            .filter(|(key, _)| key.as_str() != "aps")
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
        ..Push::default()
    }));
    let shown = ["apns-topic", "apns-priority", "apns-expiration", "apns-push-type"];
    shared.accept(
        which,
        Arrival {
            channel: Channel::Push,
            address: token.to_owned(),
            notification: string(&payload["notification_id"]),
            delivery: string(&payload["delivery_id"]),
            provider_id: id.clone(),
            collapse_key: text(headers, "apns-collapse-id").map(str::to_owned),
            headers: shown
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), text(headers, name)?.to_owned())))
                .collect(),
            content,
        },
    );
    respond(&id, 200, Bytes::new()).into()
}

fn refuse(shared: &Shared, headers: &HeaderMap, status: u16, body: Value) -> Reply {
    let mut response = respond(&apns_id(shared, headers), status, body.to_string().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.into()
}

fn respond(id: &str, status: u16, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert("apns-id", id);
    }
    response
}

/// The caller's id, echoed, or a new one.
fn apns_id(shared: &Shared, headers: &HeaderMap) -> String {
    let made = || format!("00000000-0000-4000-8000-{:012x}", shared.number());
    text(headers, "apns-id").map_or_else(made, str::to_owned)
}

fn is_uuid(id: &str) -> bool {
    id.len() == 36
        && id.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
