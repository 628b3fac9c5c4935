//! SES v2: signature, `SendEmail` and `SendBulkEmail` with inline templates, and how they refuse.
//!
//! Templates are read as the strictest reader would: `{{x}}` escapes HTML, `{{{x}}}` is raw, and what
//! is put in is not read again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tidings_schemas::channel::Channel;
use tidings_schemas::time::Instant;

use super::server::{self, Reply};
use super::{Arrival, Fault, Listener, Shared};
use crate::providers::sigv4::{self, Credentials, Post};
use crate::render::{Content, Email};

const ENTRIES_MAX: usize = 50;
const HEADERS_MAX: usize = 15;
const HEADER_CHARS_MAX: usize = 995;
/// How far a clock may be off.
const SKEW: Duration = Duration::from_secs(300);

/// A refusal: status, type, message.
type Refusal = (u16, String, String);

fn refusal(status: u16, kind: &str, message: &str) -> Refusal {
    (status, kind.to_owned(), message.to_owned())
}

pub(super) fn handle(shared: &Shared, request: &Request<Bytes>) -> (Duration, Reply) {
    let mut wait = Duration::ZERO;
    let reply =
        answer(shared, request, &mut wait).unwrap_or_else(|(status, kind, message)| refuse(status, &kind, &message));
    (wait, reply)
}

fn answer(shared: &Shared, request: &Request<Bytes>, wait: &mut Duration) -> Result<Reply, Refusal> {
    let bulk = match (request.method(), request.uri().path()) {
        (&Method::POST, "/v2/email/outbound-bulk-emails") => true,
        (&Method::POST, "/v2/email/outbound-emails") => false,
        _ => return Err(refusal(404, "UnknownOperationException", "The requested operation is not recognized.")),
    };
    authenticate(shared, request)?;
    let body: Value = serde_json::from_slice(request.body())
        .map_err(|_| refusal(400, "SerializationException", "Unexpected token in the request body"))?;
    let mails = if bulk { bulk_mails(&body)? } else { vec![single_mail(&body)?] };
    // What strikes the request as a whole, before what strikes single mails.
    let addresses = mails.iter().map(|mail| mail.address.as_str());
    let faults: Vec<_> = addresses.map(|address| shared.strike(Listener::Ses, Some(address), false)).collect();
    let whole = shared.strike(Listener::Ses, None, true).or_else(|| {
        let on_the_wire = |fault: &&Fault| is_on_the_wire(fault);
        faults.iter().flatten().find(on_the_wire).cloned()
    });
    let (mut fate, mut retires) = (None, false);
    match whole {
        None => {}
        Some(Fault::Slow { ms }) => *wait = Duration::from_millis(ms),
        Some(Fault::GoAway) => retires = true,
        Some(Fault::NoAnswer) => fate = Some(Reply::Never),
        Some(Fault::Reset) => fate = Some(Reply::Reset),
        Some(Fault::Refuse) => return Ok(Reply::Refuse),
        Some(Fault::TooManyRequests { retry_after }) => {
            let reply = refuse(429, "TooManyRequestsException", "Maximum sending rate exceeded.");
            return Ok(super::with_retry_after(reply, retry_after.as_deref()));
        }
        Some(Fault::ServerError { status }) => {
            return Err(refusal(status, "InternalServerErrorException", "The request processing has failed."));
        }
        Some(Fault::InvalidAddress { .. }) => return Err(refusal(400, "BadRequestException", "Illegal address")),
        Some(Fault::Answer { status, reason }) => return Err(refusal(status, &reason, "As scripted.")),
    }
    let mut results = Vec::new();
    for (mail, fault) in mails.into_iter().zip(faults) {
        let (status, error) = match fault {
            None | Some(Fault::Slow { .. } | Fault::GoAway | Fault::NoAnswer | Fault::Reset | Fault::Refuse) => {
                let id = accept(shared, mail);
                results.push(json!({ "Status": "SUCCESS", "MessageId": id }));
                continue;
            }
            Some(Fault::InvalidAddress { .. }) => ("INVALID_PARAMETER".to_owned(), "Illegal address"),
            Some(Fault::TooManyRequests { .. }) => ("ACCOUNT_THROTTLED".to_owned(), "Maximum sending rate exceeded."),
            Some(Fault::ServerError { .. }) => ("TRANSIENT_FAILURE".to_owned(), "Try again."),
            Some(Fault::Answer { reason, .. }) => (reason, "As scripted."),
        };
        if !bulk {
            return Err(single_refusal(&status, error));
        }
        results.push(json!({ "Status": status, "Error": error }));
    }
    if let Some(fate) = fate {
        return Ok(fate);
    }
    let body = if bulk {
        json!({ "BulkEmailEntryResults": results })
    } else {
        json!({ "MessageId": results.first().map_or(&Value::Null, |result| &result["MessageId"]) })
    };
    let reply = respond(200, &body);
    Ok(if retires { server::retire(reply) } else { reply })
}

/// Whether a fault that is meant for one mail strikes the request that carries it.
const fn is_on_the_wire(fault: &Fault) -> bool {
    matches!(fault, Fault::Slow { .. } | Fault::GoAway | Fault::NoAnswer | Fault::Reset | Fault::Refuse)
}

/// How `SendEmail` says what `SendBulkEmail` says by an entry's status.
fn single_refusal(status: &str, error: &str) -> Refusal {
    match status {
        "INVALID_PARAMETER" => refusal(400, "BadRequestException", error),
        "ACCOUNT_THROTTLED" => refusal(429, "TooManyRequestsException", error),
        "TRANSIENT_FAILURE" => refusal(500, "InternalServerErrorException", error),
        "MESSAGE_REJECTED" => refusal(400, "MessageRejected", error),
        other => refusal(400, other, error),
    }
}

/// Checks the signature over exactly what arrived.
fn authenticate(shared: &Shared, request: &Request<Bytes>) -> Result<(), Refusal> {
    let headers = request.headers();
    let missing = || refusal(403, "MissingAuthenticationTokenException", "Missing Authentication Token");
    let authorization = text(headers, AUTHORIZATION.as_str()).ok_or_else(missing)?;
    let date = text(headers, "x-amz-date").ok_or_else(missing)?;
    let credential = authorization.strip_prefix("AWS4-HMAC-SHA256 Credential=").ok_or_else(missing)?;
    let scope: Vec<_> = credential.split([',', '/']).take(5).collect();
    let &[key, day, region, service, "aws4_request"] = scope.as_slice() else { return Err(missing()) };
    if key != shared.ses_credentials.access_key_id {
        let message = "The security token included in the request is invalid.";
        return Err(refusal(403, "UnrecognizedClientException", message));
    }
    let invalid = |message: &str| refusal(403, "InvalidSignatureException", message);
    if region != shared.config.ses_region || service != "ses" || !date.starts_with(day) {
        return Err(invalid("Credential should be scoped to a valid region and service."));
    }
    let at = timestamp(date).ok_or_else(|| invalid("Date must be in ISO-8601 'basic format'."))?;
    let now = shared.now();
    if now.since(at) > SKEW || at.since(now) > SKEW {
        return Err(invalid("Signature expired: it is now another time."));
    }
    let host = request.uri().authority().map(http::uri::Authority::as_str).or_else(|| text(headers, HOST.as_str()));
    // Any session token will do, but it must be signed.
    let session_token = text(headers, "x-amz-security-token").map(str::to_owned);
    let expected = sigv4::sign(
        &Credentials { session_token, ..shared.ses_credentials.clone() },
        &Post {
            region,
            service,
            host: host.unwrap_or_default(),
            path: request.uri().path(),
            content_type: text(headers, CONTENT_TYPE.as_str()).unwrap_or_default(),
            body: request.body(),
            at,
        },
    );
    if expected.authorization != authorization {
        let message = "The request signature we calculated does not match the signature you provided.";
        return Err(refusal(403, "SignatureDoesNotMatch", message));
    }
    Ok(())
}

/// The instant of `20260102T030405Z`.
fn timestamp(date: &str) -> Option<Instant> {
    let part = |from: usize, to: usize| date.get(from..to);
    let (day, time) = ((part(0, 4)?, part(4, 6)?, part(6, 8)?), (part(9, 11)?, part(11, 13)?, part(13, 15)?));
    format!("{}-{}-{}T{}:{}:{}Z", day.0, day.1, day.2, time.0, time.1, time.2).parse().ok()
}

/// A mail, before it is accepted.
struct Mail {
    address: String,
    from: String,
    email: Email,
    headers: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
}

fn single_mail(body: &Value) -> Result<Mail, Refusal> {
    let simple = &body["Content"]["Simple"];
    let data = |part: &Value| part["Data"].as_str().unwrap_or_default().to_owned();
    if !simple["Subject"]["Data"].is_string() || !simple["Body"].is_object() {
        return Err(refusal(400, "BadRequestException", "Content.Simple must have a Subject and a Body."));
    }
    Ok(Mail {
        address: address(&body["Destination"])?,
        from: from(body)?,
        email: Email {
            subject: data(&simple["Subject"]),
            html: simple["Body"]["Html"]["Data"].as_str().map(str::to_owned),
            text: data(&simple["Body"]["Text"]),
        },
        headers: named(&simple["Headers"])?,
        tags: named(&body["EmailTags"])?,
    })
}

fn bulk_mails(body: &Value) -> Result<Vec<Mail>, Refusal> {
    let bad = |message: &str| refusal(400, "BadRequestException", message);
    let entries = body["BulkEmailEntries"].as_array().ok_or_else(|| bad("BulkEmailEntries must not be null"))?;
    if entries.is_empty() || entries.len() > ENTRIES_MAX {
        return Err(bad("BulkEmailEntries must have between 1 and 50 members"));
    }
    let template = &body["DefaultContent"]["Template"];
    let data = |data: &Value| -> Result<BTreeMap<String, Value>, Refusal> {
        serde_json::from_str(data.as_str().unwrap_or("{}")).map_err(|_| bad("TemplateData is not valid JSON"))
    };
    let defaults = data(&template["TemplateData"])?;
    let part = |name: &str| template["TemplateContent"][name].as_str();
    let (Some(subject), Some(html), Some(text)) = (part("Subject"), part("Html"), part("Text")) else {
        return Err(bad("TemplateContent must have a Subject, an Html and a Text part"));
    };
    let mail = |entry: &Value| -> Result<Mail, Refusal> {
        let mut variables = defaults.clone();
        variables.extend(data(&entry["ReplacementEmailContent"]["ReplacementTemplate"]["ReplacementTemplateData"])?);
        let render = |template| render(template, &variables);
        Ok(Mail {
            address: address(&entry["Destination"])?,
            from: from(body)?,
            email: Email { subject: render(subject), html: Some(render(html)), text: render(text) },
            headers: named(&entry["ReplacementHeaders"])?,
            tags: named(&entry["ReplacementTags"])?,
        })
    };
    entries.iter().map(mail).collect()
}

fn from(body: &Value) -> Result<String, Refusal> {
    let missing = || refusal(400, "BadRequestException", "FromEmailAddress must be specified");
    body["FromEmailAddress"].as_str().filter(|from| from.contains('@')).map(str::to_owned).ok_or_else(missing)
}

fn address(destination: &Value) -> Result<String, Refusal> {
    let illegal = |message| refusal(400, "BadRequestException", message);
    let addresses = destination["ToAddresses"].as_array().filter(|addresses| addresses.len() == 1);
    let address =
        addresses.and_then(|addresses| addresses[0].as_str()).ok_or_else(|| illegal("One recipient a mail."))?;
    if !address.contains('@') {
        return Err(illegal("Missing final '@domain'"));
    }
    Ok(address.to_owned())
}

/// A list of `Name` and `Value`: headers or tags.
fn named(list: &Value) -> Result<BTreeMap<String, String>, Refusal> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    let wrong = || refusal(400, "BadRequestException", "Invalid header or tag name or value");
    if list.len() > HEADERS_MAX {
        return Err(wrong());
    }
    let pair = |pair: &Value| {
        let (name, value) = (pair["Name"].as_str()?, pair["Value"].as_str()?);
        let printable = value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && value.len() <= HEADER_CHARS_MAX;
        (printable && !value.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    list.iter().map(|each| pair(each).ok_or_else(wrong)).collect()
}

/// Puts variables into a template, once.
fn render(template: &str, variables: &BTreeMap<String, Value>) -> String {
    let value = |name: &str| variables.get(name.trim()).and_then(Value::as_str).unwrap_or_default();
    let mut out = String::new();
    let mut rest = template;
    while let Some(start) = rest.find("{{") {
        let (before, tail) = rest.split_at(start);
        let raw = tail.starts_with("{{{");
        let (open, close) = if raw { (3, "}}}") } else { (2, "}}") };
        let Some(end) = tail[open..].find(close) else { break };
        out.push_str(before);
        let value = value(&tail[open..open + end]);
        if raw {
            out.push_str(value)
        } else {
            out.push_str(&escape(value))
        }
        rest = &tail[open + end + close.len()..];
    }
    out + rest
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#x27;")
}

fn accept(shared: &Shared, mail: Mail) -> String {
    let number = shared.number();
    let id = format!("{number:016x}-simulated-000000");
    let mut headers = mail.headers;
    headers.insert("From".to_owned(), mail.from);
    shared.accept(
        Listener::Ses,
        Arrival {
            channel: Channel::Email,
            address: mail.address,
            notification: mail.tags.get("notification_id").cloned(),
            delivery: mail.tags.get("delivery_id").cloned(),
            provider_id: id.clone(),
            collapse_key: None,
            headers,
            content: Content::Email(mail.email),
        },
    );
    id
}

fn refuse(status: u16, kind: &str, message: &str) -> Reply {
    let mut reply = respond(status, &json!({ "message": message }));
    if let (Reply::Answer(response), Ok(kind)) = (&mut reply, HeaderValue::from_str(kind)) {
        response.headers_mut().insert("x-amzn-errortype", kind);
    }
    reply
}

fn respond(status: u16, body: &Value) -> Reply {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.into()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_put_in_once_and_escaped_between_two_braces() {
        let variables = [("a".to_owned(), json!("<{{b}}> & {{{c}}}")), ("b".to_owned(), json!("never"))].into();
        assert_eq!(render("x {{{a}}} y", &variables), "x <{{b}}> & {{{c}}} y");
        assert_eq!(render("{{a}}|{{none}}|{{", &variables), "&lt;{{b}}&gt; &amp; {{{c}}}||{{");
    }
}
