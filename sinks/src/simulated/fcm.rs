//! Google's token endpoint and FCM v1: what they check and how they refuse.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tidings_schemas::channel::Channel;
use tidings_schemas::time::Instant;

use super::server::{self, Reply};
use super::{Arrival, Fault, Listener, Shared, SimulatedError, keys};
use crate::render::{Content, Push};

/// Scopes that may send; an assertion may ask for several.
const SCOPES: [&str; 2] =
    ["https://www.googleapis.com/auth/firebase.messaging", "https://www.googleapis.com/auth/cloud-platform"];
/// How long an access token lives, in seconds, as Google's do.
const TOKEN_SECONDS: u64 = 3599;
/// Largest message, its JSON as a whole: a little more than the 4096 bytes that FCM grants its parts.
const MESSAGE_BYTES_MAX: usize = 6 * 1024;
/// How far a clock may be off, in seconds.
const SKEW_SECONDS: i64 = 300;

/// The public half of the service account's key.
pub(super) fn public_key() -> Result<Vec<u8>, SimulatedError> {
    let error = |error: String| SimulatedError::Key("fcm.json", error);
    let pem = keys::service_account_key().as_bytes();
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|e| error(e.to_string()))?;
    let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|e| error(e.to_string()))?;
    Ok(pair.public_key().as_ref().to_vec())
}

pub(super) fn handle(shared: &Shared, request: &Request<Bytes>) -> (Duration, Reply) {
    let no_wait = |reply| (Duration::ZERO, reply);
    if request.uri().path() == "/token" {
        return no_wait(token(shared, request));
    }
    let message = match check(shared, request) {
        Ok(message) => message,
        Err(refusal) => return no_wait(refusal),
    };
    let address = target(&message).unwrap_or_default();
    match shared.strike(Listener::Fcm, Some(&address), true) {
        None => no_wait(accept(shared, &address, &message)),
        Some(Fault::Slow { ms }) => (Duration::from_millis(ms), accept(shared, &address, &message)),
        Some(Fault::GoAway) => no_wait(server::retire(accept(shared, &address, &message))),
        Some(Fault::NoAnswer) => {
            accept(shared, &address, &message);
            no_wait(Reply::Never)
        }
        Some(Fault::Reset) => {
            accept(shared, &address, &message);
            no_wait(Reply::Reset)
        }
        Some(Fault::Refuse) => no_wait(Reply::Refuse),
        Some(Fault::TooManyRequests { retry_after }) => {
            let reply = refuse(429, "RESOURCE_EXHAUSTED", Some("QUOTA_EXCEEDED"), "Quota exceeded.");
            no_wait(super::with_retry_after(reply, retry_after.as_deref()))
        }
        Some(Fault::ServerError { status: 500 }) => {
            no_wait(refuse(500, "INTERNAL", Some("INTERNAL"), "Internal error encountered."))
        }
        Some(Fault::ServerError { status: 503 }) => {
            no_wait(refuse(503, "UNAVAILABLE", Some("UNAVAILABLE"), "The service is currently unavailable."))
        }
        Some(Fault::ServerError { status }) => {
            let page = "<!DOCTYPE html><html><title>Error (Server Error)</title></html>";
            no_wait(respond(status, "text/html; charset=UTF-8", page.into()))
        }
        Some(Fault::InvalidAddress { .. }) => {
            no_wait(refuse(404, "NOT_FOUND", Some("UNREGISTERED"), "Requested entity was not found."))
        }
        Some(Fault::Answer { status, reason }) => {
            let word = match status {
                400 => "INVALID_ARGUMENT",
                401 => "UNAUTHENTICATED",
                403 => "PERMISSION_DENIED",
                404 => "NOT_FOUND",
                429 => "RESOURCE_EXHAUSTED",
                503 => "UNAVAILABLE",
                _ => "INTERNAL",
            };
            no_wait(refuse(status, word, (reason != word).then_some(&reason), "As scripted."))
        }
    }
}

/// Sells an access token for a signed assertion.
fn token(shared: &Shared, request: &Request<Bytes>) -> Reply {
    let refuse = |status, error: &str, description: &str| {
        respond(
            status,
            "application/json",
            json!({ "error": error, "error_description": description }).to_string().into(),
        )
    };
    if let Some(fault) = shared.strike(Listener::FcmToken, None, true) {
        return match fault {
            Fault::NoAnswer => Reply::Never,
            Fault::Reset => Reply::Reset,
            Fault::Refuse => Reply::Refuse,
            Fault::TooManyRequests { retry_after } => {
                super::with_retry_after(refuse(429, "rate_limit_exceeded", "Too many requests"), retry_after.as_deref())
            }
            Fault::ServerError { status } => refuse(status, "internal_failure", "Internal error"),
            Fault::Answer { status, reason } => refuse(status, &reason, "As scripted"),
            Fault::Slow { .. } | Fault::GoAway | Fault::InvalidAddress { .. } => {
                refuse(400, "invalid_grant", "As scripted")
            }
        };
    }
    if request.method() != Method::POST {
        return refuse(405, "invalid_request", "Method not allowed");
    }
    let form = String::from_utf8_lossy(request.body());
    let field = |name: &str| form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    if field("grant_type") != Some("urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer") {
        return refuse(400, "unsupported_grant_type", "Invalid grant_type");
    }
    match assertion(shared, field("assertion").unwrap_or_default()) {
        Err(description) => refuse(400, "invalid_grant", description),
        Ok(()) => {
            let expires_at = shared.now().after(Duration::from_secs(TOKEN_SECONDS));
            let mut state = shared.state();
            state.access_tokens_sold += 1;
            let token = format!("ya29.simulated-{}", state.access_tokens_sold);
            state.access_tokens.insert(token.clone(), expires_at);
            let body = json!({ "access_token": token, "expires_in": TOKEN_SECONDS, "token_type": "Bearer" });
            respond(200, "application/json; charset=UTF-8", body.to_string().into())
        }
    }
}

/// Checks an assertion: form, signature, issuer, audience, scope, times.
fn assertion(shared: &Shared, jwt: &str) -> Result<(), &'static str> {
    let malformed = "Invalid JWT: Token must be a short-lived token";
    let (message, signature) = jwt.rsplit_once('.').ok_or(malformed)?;
    let (header, claims) = message.split_once('.').ok_or(malformed)?;
    let json = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
    let (header, claims) = (json(header).ok_or(malformed)?, json(claims).ok_or(malformed)?);
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| malformed)?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &shared.fcm_public_key)
        .verify(message.as_bytes(), &signature)
        .map_err(|_| "Invalid JWT Signature.")?;
    if header["alg"] != "RS256" {
        return Err("Invalid JWT: expected RS256");
    }
    if claims["iss"] != keys::service_account_email(&shared.config.fcm_project).as_str() {
        return Err("Invalid grant: account not found");
    }
    let audience = claims["aud"].as_str().is_some_and(|audience| audience.ends_with("/token"));
    let mut scopes = claims["scope"].as_str().unwrap_or_default().split_whitespace();
    if !audience || !scopes.any(|scope| SCOPES.contains(&scope)) {
        return Err("Invalid JWT: audience or scope");
    }
    let (issued, expires) = (claims["iat"].as_i64().ok_or(malformed)?, claims["exp"].as_i64().ok_or(malformed)?);
    let now = shared.now().0.div_euclid(1000);
    if (now - issued).abs() > SKEW_SECONDS || expires <= now || expires - issued > 3600 {
        Err(malformed)
    } else {
        Ok(())
    }
}

/// The message, or the refusal.
fn check(shared: &Shared, request: &Request<Bytes>) -> Result<Value, Reply> {
    let project =
        request.uri().path().strip_prefix("/v1/projects/").and_then(|path| path.strip_suffix("/messages:send"));
    let (Some(project), &Method::POST) = (project, request.method()) else {
        return Err(respond(
            404,
            "text/html; charset=UTF-8",
            "<!DOCTYPE html><html><title>Error 404</title></html>".into(),
        ));
    };
    let bearer = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let live =
        bearer.and_then(|token| shared.state().access_tokens.get(token).copied()).is_some_and(|at| at > shared.now());
    if !live {
        let message = "Request had invalid authentication credentials. Expected OAuth 2 access token.";
        return Err(refuse(401, "UNAUTHENTICATED", None, message));
    }
    if project != shared.config.fcm_project {
        return Err(refuse(404, "NOT_FOUND", None, "Requested entity was not found."));
    }
    let invalid = |field: &str, description: &str| {
        let details = json!([
            { "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": "INVALID_ARGUMENT" },
            { "@type": "type.googleapis.com/google.rpc.BadRequest",
              "fieldViolations": [{ "field": field, "description": description }] },
        ]);
        refuse_with(400, "INVALID_ARGUMENT", description, details)
    };
    let body: Value =
        serde_json::from_slice(request.body()).map_err(|_| invalid("", "Invalid JSON payload received."))?;
    let message = &body["message"];
    if request.body().len() > MESSAGE_BYTES_MAX {
        return Err(refuse_with(400, "INVALID_ARGUMENT", "Message is too big", json!([])));
    }
    let targets = ["token", "fid", "topic", "condition"].iter().filter(|kind| message[**kind].is_string()).count();
    if targets != 1 {
        return Err(invalid("message", "Exactly one of fid, token, topic or condition is required"));
    }
    for (key, value) in message["data"].as_object().into_iter().flatten() {
        let reserved = matches!(key.as_str(), "from" | "message_type") || key.starts_with("google.");
        if reserved || key.starts_with("gcm.notification.") || !value.is_string() {
            return Err(invalid("message.data", "Invalid data payload key"));
        }
    }
    let ttl = &message["android"]["ttl"];
    let seconds = ttl.as_str().and_then(|ttl| ttl.strip_suffix('s')?.parse::<u64>().ok());
    if !ttl.is_null() && seconds.is_none_or(|seconds| seconds > 2_419_200) {
        return Err(invalid("message.android.ttl", "TTL must be non-negative and at most four weeks"));
    }
    Ok(body)
}

fn target(body: &Value) -> Option<String> {
    let message = &body["message"];
    ["token", "fid", "topic", "condition"].iter().find_map(|kind| message[*kind].as_str()).map(str::to_owned)
}

fn accept(shared: &Shared, address: &str, body: &Value) -> Reply {
    let message = &body["message"];
    let (shown, data, android) = (&message["notification"], &message["data"], &message["android"]);
    let (aps, browser) = (&message["apns"]["payload"]["aps"], &message["webpush"]["notification"]);
    let string = |value: &Value| value.as_str().map(str::to_owned);
    let at: Instant = shared.now();
    let number = shared.number();
    let name = format!("projects/{}/messages/0:{}%{number:016x}", shared.config.fcm_project, at.0 * 1000);
    let content = Content::Push(Box::new(Push {
        title: string(&shown["title"]).unwrap_or_default(),
        subtitle: string(&aps["alert"]["subtitle"]),
        body: string(&shown["body"]).unwrap_or_default(),
        image_url: string(&shown["image"]),
        action_url: string(&data["action_url"]),
        badge: (android["notification"]["notification_count"].as_u64())
            .or_else(|| aps["badge"].as_u64())
            .and_then(|badge| badge.try_into().ok()),
        sound: string(&android["notification"]["sound"]).or_else(|| string(&aps["sound"])),
        category: string(&aps["category"]),
        thread_id: string(&aps["thread-id"]),
        interruption_level: string(&aps["interruption-level"]),
        mutable_content: aps["mutable-content"] == 1,
        channel_id: string(&android["notification"]["channel_id"]),
        icon: string(&android["notification"]["icon"]).or_else(|| string(&browser["icon"])),
        color: string(&android["notification"]["color"]),
        click_action: string(&android["notification"]["click_action"]),
        custom: (data.as_object().into_iter().flatten())
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
        ..Push::default()
    }));
    let headers = [("priority", &android["priority"]), ("ttl", &android["ttl"])];
    shared.accept(
        Listener::Fcm,
        Arrival {
            channel: Channel::Push,
            address: address.to_owned(),
            notification: string(&data["notification_id"]),
            delivery: string(&data["delivery_id"]),
            provider_id: name.clone(),
            collapse_key: string(&android["notification"]["tag"])
                .or_else(|| string(&message["apns"]["headers"]["apns-collapse-id"]))
                .or_else(|| string(&browser["tag"])),
            headers: headers.iter().filter_map(|(name, value)| Some(((*name).to_owned(), string(value)?))).collect(),
            content,
        },
    );
    respond(200, "application/json; charset=UTF-8", json!({ "name": name }).to_string().into())
}

fn refuse(status: u16, word: &str, error_code: Option<&str>, message: &str) -> Reply {
    let details = error_code
        .map(|code| json!([{ "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code }]));
    refuse_with(status, word, message, details.unwrap_or_else(|| json!([])))
}

fn refuse_with(status: u16, word: &str, message: &str, details: Value) -> Reply {
    let mut error = json!({ "code": status, "message": message, "status": word });
    if details.as_array().is_some_and(|details| !details.is_empty()) {
        error["details"] = details;
    }
    respond(status, "application/json; charset=UTF-8", json!({ "error": error }).to_string().into())
}

fn respond(status: u16, content_type: &'static str, body: Bytes) -> Reply {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.into()
}
