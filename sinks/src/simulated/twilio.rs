//! Twilio's messages: Basic authentication, forms, and how it refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use reqwest::Url;
use serde_json::{Value, json};
use tidings_schemas::channel::Channel;

use super::server::{self, Reply};
use super::{Arrival, Fault, Listener, Shared};
use crate::providers::sms;
use crate::render::{Content, Sms};

/// A refusal: status, Twilio's number, message.
type Refusal = (u16, u32, String);

fn refusal(status: u16, code: u32, message: &str) -> Refusal {
    (status, code, message.to_owned())
}

pub(super) fn handle(shared: &Shared, request: &Request<Bytes>) -> (Duration, Reply) {
    let mut wait = Duration::ZERO;
    let reply =
        answer(shared, request, &mut wait).unwrap_or_else(|(status, code, message)| refuse(status, code, &message));
    (wait, reply)
}

fn answer(shared: &Shared, request: &Request<Bytes>, wait: &mut Duration) -> Result<Reply, Refusal> {
    let place = format!("/2010-04-01/Accounts/{}/Messages.json", shared.config.twilio_account_sid);
    authenticate(shared, request)?;
    if request.method() != Method::POST || request.uri().path() != place {
        return Err(refusal(404, 20404, "The requested resource was not found"));
    }
    let form = form(request)?;
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let to = field("To");
    if !sms::is_number(to) {
        return Err(refusal(400, 21211, "The 'To' number is not a valid phone number."));
    }
    if field("From").is_empty() == field("MessagingServiceSid").is_empty() {
        return Err(refusal(400, 21603, "A 'From' phone number is required."));
    }
    if field("Body").is_empty() {
        return Err(refusal(400, 21602, "Message body is required."));
    }
    if field("Body").chars().count() > 1600 {
        return Err(refusal(400, 21617, "The concatenated message body exceeds the 1600 character limit."));
    }
    if form
        .get("ValidityPeriod")
        .is_some_and(|text| !text.parse().is_ok_and(|seconds: u64| (1..=36_000).contains(&seconds)))
    {
        return Err(refusal(400, 21620, "Invalid ValidityPeriod."));
    }
    let mut retires = false;
    let mut fate = None;
    match shared.strike(Listener::Twilio, Some(to), true) {
        None => {}
        Some(Fault::Slow { ms }) => *wait = Duration::from_millis(ms),
        Some(Fault::GoAway) => retires = true,
        Some(Fault::NoAnswer) => fate = Some(Reply::Never),
        Some(Fault::Reset) => fate = Some(Reply::Reset),
        Some(Fault::Refuse) => return Ok(Reply::Refuse),
        Some(Fault::TooManyRequests { retry_after }) => {
            let reply = refuse(429, 20429, "Too Many Requests");
            return Ok(super::with_retry_after(reply, retry_after.as_deref()));
        }
        Some(Fault::ServerError { status }) => {
            return Err(refusal(status, 20_000 + u32::from(status), "An internal server error has occurred"));
        }
        Some(Fault::InvalidAddress { .. }) => {
            return Err(refusal(400, 21211, "The 'To' number is not a valid phone number."));
        }
        Some(Fault::Answer { status, reason }) => {
            return Err((status, reason.parse().unwrap_or_default(), "As scripted.".to_owned()));
        }
    }
    let (sid, segments) = accept(shared, &form);
    if let Some(fate) = fate {
        return Ok(fate);
    }
    let body = json!({
        "sid": sid, "status": "queued", "num_segments": segments.to_string(), "to": to, "error_code": null, "price": null,
    });
    let reply = respond(201, &body);
    Ok(if retires { server::retire(reply) } else { reply })
}

fn authenticate(shared: &Shared, request: &Request<Bytes>) -> Result<(), Refusal> {
    let user = &shared.config.twilio_account_sid;
    let expected = format!("Basic {}", STANDARD.encode(format!("{user}:{}", shared.twilio_token)));
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if given == Some(expected.as_str()) { Ok(()) } else { Err(refusal(401, 20003, "Authenticate")) }
}

fn form(request: &Request<Bytes>) -> Result<BTreeMap<String, String>, Refusal> {
    let is_form = request.headers().get(CONTENT_TYPE).is_some_and(|it| it == "application/x-www-form-urlencoded");
    let text = std::str::from_utf8(request.body()).ok().filter(|_| is_form);
    let url = text.and_then(|text| Url::parse(&format!("form:?{text}")).ok());
    let url = url.ok_or_else(|| refusal(400, 20001, "Bad request"))?;
    Ok(url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
}

/// Takes the message over; its id, and in how many segments it goes.
fn accept(shared: &Shared, form: &BTreeMap<String, String>) -> (String, usize) {
    let text = form["Body"].clone();
    let (_, segments) = sms::segments(&text);
    let sid = format!("SM{:032x}", shared.number());
    let seen = ["From", "MessagingServiceSid", "StatusCallback", "ValidityPeriod"];
    let seen = seen.into_iter().filter_map(|name| Some((name.to_owned(), form.get(name)?.clone())));
    let callback = form.get("StatusCallback").and_then(|callback| Url::parse(callback).ok());
    let named = |name: &str| {
        let pair = callback.as_ref()?.query_pairs().find(|(found, _)| found == name)?;
        Some(pair.1.into_owned())
    };
    shared.accept(
        Listener::Twilio,
        Arrival {
            channel: Channel::Sms,
            address: form["To"].clone(),
            notification: named("notification"),
            delivery: named("delivery"),
            provider_id: sid.clone(),
            collapse_key: None,
            headers: seen.chain([("Segments".to_owned(), segments.to_string())]).collect(),
            content: Content::Sms(Sms { text }),
        },
    );
    (sid, segments)
}

fn refuse(status: u16, code: u32, message: &str) -> Reply {
    let more = format!("https://www.twilio.com/docs/errors/{code}");
    respond(status, &json!({ "code": code, "message": message, "more_info": more, "status": status }))
}

fn respond(status: u16, body: &Value) -> Reply {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.into()
}
