//! Telnyx's messages: a bearer key, JSON, idempotency keys, and how it refuses.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use reqwest::Url;
use serde_json::{Value, json};
use tidings_schemas::channel::Channel;

use super::server::{self, Reply};
use super::{Arrival, Fault, Listener, Shared};
use crate::providers::sms::{self, Encoding};
use crate::render::{Content, Sms};

/// A refusal: status, Telnyx's number, title.
type Refusal = (u16, u32, &'static str);

pub(super) fn handle(shared: &Shared, request: &Request<Bytes>) -> (Duration, Reply) {
    let mut wait = Duration::ZERO;
    let reply = answer(shared, request, &mut wait).unwrap_or_else(refuse);
    (wait, reply)
}

fn answer(shared: &Shared, request: &Request<Bytes>, wait: &mut Duration) -> Result<Reply, Refusal> {
    let bearer = format!("Bearer {}", shared.telnyx_key);
    if request.headers().get(AUTHORIZATION).is_none_or(|given| given != bearer.as_str()) {
        return Err((401, 10009, "Authentication failed"));
    }
    if request.method() != Method::POST || request.uri().path() != "/v2/messages" {
        return Err((404, 10005, "Resource not found"));
    }
    let body: Value = serde_json::from_slice(request.body()).map_err(|_| (400, 10015, "Bad request"))?;
    let field = |name: &str| body[name].as_str().unwrap_or_default();
    let (to, text) = (field("to"), field("text"));
    if !sms::is_number(to) {
        return Err((422, 40310, "Invalid 'to' address"));
    }
    if field("from").is_empty() && field("messaging_profile_id").is_empty() {
        return Err((400, 40305, "Invalid 'from' address"));
    }
    if text.is_empty() {
        return Err((400, 40302, "Message too large or empty"));
    }
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
    let (mut fate, mut retires) = (None, false);
    match shared.strike(Listener::Telnyx, Some(to), true) {
        None => {}
        Some(Fault::Slow { ms }) => *wait = Duration::from_millis(ms),
        Some(Fault::GoAway) => retires = true,
        Some(Fault::NoAnswer) => fate = Some(Reply::Never),
        Some(Fault::Reset) => fate = Some(Reply::Reset),
        Some(Fault::Refuse) => return Ok(Reply::Refuse),
        Some(Fault::TooManyRequests { retry_after }) => {
            return Ok(super::with_retry_after(refuse((429, 10011, "Too many requests")), retry_after.as_deref()));
        }
        Some(Fault::ServerError { status }) => return Err((status, 10007, "Unexpected error")),
        Some(Fault::InvalidAddress { .. }) => return Err((422, 40310, "Invalid 'to' address")),
        Some(Fault::Answer { status, reason }) => {
            return Err((status, reason.parse().unwrap_or_default(), "As scripted"));
        }
    }
    let before = key.as_ref().and_then(|key| shared.state().idempotent.get(key).cloned());
    let id = before.unwrap_or_else(|| accept(shared, key, to, text, field("from"), field("webhook_url")));
    if let Some(fate) = fate {
        return Ok(fate);
    }
    let (encoding, parts) = sms::segments(text);
    let encoding = if encoding == Encoding::Gsm7 { "GSM-7" } else { "UCS-2" };
    let to = json!([{ "phone_number": to, "status": "queued" }]);
    let data = json!({
        "id": id, "record_type": "message", "to": to, "parts": parts, "encoding": encoding, "errors": [],
    });
    let reply = respond(200, &json!({ "data": data }));
    Ok(if retires { server::retire(reply) } else { reply })
}

/// Takes the message over; its id.
fn accept(shared: &Shared, key: Option<String>, to: &str, text: &str, from: &str, webhook: &str) -> String {
    let id = format!("00000000-0000-4000-8000-{:012x}", shared.number());
    if let Some(key) = key {
        shared.state().idempotent.insert(key, id.clone());
    }
    let webhook = Url::parse(webhook).ok();
    let named = |name: &str| {
        let pair = webhook.as_ref()?.query_pairs().find(|(found, _)| found == name)?;
        Some(pair.1.into_owned())
    };
    shared.accept(
        Listener::Telnyx,
        Arrival {
            channel: Channel::Sms,
            address: to.to_owned(),
            notification: named("notification"),
            delivery: named("delivery"),
            provider_id: id.clone(),
            collapse_key: None,
            headers: [("From".to_owned(), from.to_owned())].into(),
            content: Content::Sms(Sms { text: text.to_owned() }),
        },
    );
    id
}

fn refuse((status, code, title): Refusal) -> Reply {
    respond(status, &json!({ "errors": [{ "code": code.to_string(), "title": title, "detail": title }] }))
}

fn respond(status: u16, body: &Value) -> Reply {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.into()
}
