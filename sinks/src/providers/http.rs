//! What the HTTP providers share: endpoints, client options with their reasons, a pool of HTTP/2
//! connections, how an answer is read and what a failed call means.
//!
//! The one question after a failed call is whether the request may have been carried out. *Certainly
//! not*: no connection came about, or the server refused the stream (`REFUSED_STREAM`, or a GOAWAY
//! whose last stream id lies below it). Everything else, a timeout above all, is *maybe*.

use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use reqwest::{Certificate, Client, Url};
use tidings_schemas::time::Instant;

use super::{BuildError, Context};
use crate::outcome::{Code, Outcome};

/// Longest part of an answer that is read: errors are JSON of some hundred bytes, but a proxy's HTML
/// page may stand in for it. The rest is left unread.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Longest `Retry-After` that is believed; beyond it one hour is taken.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// How long a connection may take to come about; past it another attempt does better.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest reason of a provider that is kept for the record.
const REASON_CHARS_MAX: usize = 200;

/// What differs between providers' clients, with the reason in each provider's constants.
#[derive(Clone, Debug)]
pub(crate) struct ClientOptions {
    /// The whole call, from queueing for a stream to the last byte.
    pub(crate) timeout: Duration,
    /// HTTP/2 from the first byte: calls at a cold start share one connection instead of racing.
    pub(crate) http2_only: bool,
    /// How long an idle connection is kept.
    pub(crate) idle: Duration,
    /// How often a connection is pinged, and whether also while idle.
    pub(crate) ping: Option<(Duration, bool)>,
    roots: Vec<Certificate>,
}

impl ClientOptions {
    /// Options with the roots of `context` and of `ca_file`.
    pub(crate) fn new(
        provider: &'static str,
        context: &Context,
        ca_file: Option<&PathBuf>,
        timeout: Duration,
    ) -> Result<Self, BuildError> {
        let mut pems: Vec<_> = context.extra_ca_pem.iter().map(|pem| ("the extra certificates", pem.clone())).collect();
        if let Some(path) = ca_file {
            pems.push(("`ca_file`", context.read(provider, "ca_file", path)?));
        }
        let mut roots = Vec::new();
        for (place, pem) in pems {
            // A file without any certificate reads as none: that must not pass for trust.
            match Certificate::from_pem_bundle(&pem) {
                Ok(bundle) if !bundle.is_empty() => roots.extend(bundle),
                Ok(_) | Err(_) => {
                    let problem = format!("{place}: expected certificates in PEM form, found something else");
                    return Err(BuildError { provider, problem });
                }
            }
        }
        Ok(Self { timeout, http2_only: false, idle: Duration::from_secs(90), ping: None, roots })
    }

    /// A client, and with it (once it is used) one HTTP/2 connection per origin.
    pub(crate) fn client(&self) -> Result<Client, reqwest::Error> {
        // One crypto library in the build. Fails where the process has chosen one already: then that one holds.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .user_agent(concat!("tidings/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(self.timeout)
            .pool_idle_timeout(self.idle)
            // A redirect would carry credentials and message to wherever it points.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            // Proxies come from the topology, not from the environment of whoever started the process.
            .no_proxy()
            .tls_certs_merge(self.roots.iter().cloned());
        if self.http2_only {
            builder = builder.http2_prior_knowledge();
        }
        if let Some((interval, while_idle)) = self.ping {
            builder = builder
                .http2_keep_alive_interval(interval)
                .http2_keep_alive_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_while_idle(while_idle);
        }
        builder.build()
    }
}

/// Several clients for one origin, used in turn; hyper queues for streams itself.
pub(crate) struct Pool {
    options: ClientOptions,
    slots: Vec<Mutex<(usize, Client)>>,
    next: AtomicUsize,
}

/// A client of a pool, and which one it is.
pub(crate) struct Picked {
    slot: usize,
    generation: usize,
    pub(crate) client: Client,
}

impl Pool {
    /// A pool of `connections` clients.
    pub(crate) fn new(provider: &'static str, options: ClientOptions, connections: usize) -> Result<Self, BuildError> {
        let slots = (0..connections.max(1))
            .map(|_| options.client().map(|client| Mutex::new((0, client))))
            .collect::<Result<_, _>>()
            .map_err(|error| BuildError { provider, problem: format!("no HTTP client: {}", chain(&error)) })?;
        Ok(Self { options, slots, next: AtomicUsize::new(0) })
    }

    /// The next client in turn.
    pub(crate) fn pick(&self) -> Picked {
        let slot = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        let held = self.slots[slot].lock().unwrap_or_else(PoisonError::into_inner);
        Picked { slot, generation: held.0, client: held.1.clone() }
    }

    /// Puts a new connection in the place of `picked`, unless someone has already. Calls that run on
    /// the old one end there.
    pub(crate) fn renew(&self, picked: &Picked) {
        let mut held = self.slots[picked.slot].lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 == picked.generation
            && let Ok(client) = self.options.client()
        {
            *held = (picked.generation + 1, client);
        }
    }
}

/// An answer, its body read up to a bound.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Makes one call. The error is what a call without an answer means.
pub(crate) async fn call(client: &Client, request: http::Request<Bytes>) -> Result<Answer, Outcome> {
    let request = reqwest::Request::try_from(request)
        .map_err(|error| Outcome::permanent(Code::ours("bad_request"), format!("not a request: {}", chain(&error))))?;
    let mut response = client.execute(request).await.map_err(|error| failed(&error))?;
    let mut body = BytesMut::new();
    while body.len() < ANSWER_BYTES_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            // A status without its body: the status is worth more than the failure, the table decides.
            Err(_) if !response.status().is_success() => break,
            Err(error) => return Err(failed(&error)),
        }
    }
    Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), body: body.freeze() })
}

/// What a call without an answer means.
fn failed(error: &reqwest::Error) -> Outcome {
    if error.is_builder() {
        return Outcome::permanent(Code::ours("bad_request"), format!("not a request: {}", chain(error)));
    }
    if error.is_connect() {
        return Outcome::retryable(Code::ours("connect"), None);
    }
    if refused(error) {
        return Outcome::retryable(Code::ours("refused_stream"), Some(Duration::ZERO));
    }
    // A request that still waited for a stream when its connection retired ends here, too: hyper does
    // not say whether it had begun.
    Outcome::unknown(Code::ours(if error.is_timeout() { "timeout" } else { "connection_reset" }))
}

/// Whether the server said that it did not process the request.
fn refused(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (**error).source()).any(|error| {
        // The stream's own error is a remote GOAWAY only where the last stream id lies below it.
        error.downcast_ref::<h2::Error>().is_some_and(|error| {
            error.is_remote()
                && (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)
                    || error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
        })
    })
}

/// An error with its causes, without the URL (a device token stands in it).
fn chain(error: &dyn Error) -> String {
    let causes: Vec<_> =
        std::iter::successors(error.source(), |error| (**error).source()).map(ToString::to_string).collect();
    if causes.is_empty() { "the builder refused it".to_owned() } else { causes.join(": ") }
}

/// `Retry-After`, in seconds or as a date, at most [`RETRY_AFTER_MAX`]; a date that is past is zero.
pub(crate) fn retry_after(headers: &HeaderMap, now: Instant) -> Option<Duration> {
    let value = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
            Instant(date.as_millisecond()).since(now)
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// What a status means whose reason no table knows: providers add reasons without notice.
pub(crate) fn by_status(code: Code, after: Option<Duration>) -> Outcome {
    match code.status {
        Some(408 | 409 | 425 | 429 | 500..=599) => Outcome::retryable(code, after),
        Some(400 | 404..=407 | 410..=428) => Outcome::permanent(code, "the provider refuses this message"),
        Some(401..=403) => Outcome::paused(code, "the provider refuses us: check credentials and account"),
        _ => Outcome::paused(code, "not an answer of this provider: check the endpoint"),
    }
}

/// A provider's reason for the record: one line, bounded, whatever was in the body.
pub(crate) fn bounded(reason: &str) -> String {
    reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_CHARS_MAX).collect()
}

/// An endpoint without its closing slash: https, or http to this machine alone (credentials and
/// messages go there).
pub(crate) fn endpoint(provider: &'static str, field: &'static str, text: &str) -> Result<String, BuildError> {
    let wrong = |found: &str| BuildError {
        provider,
        problem: format!("`{field}`: expected an address like `https://host:port`, found {found}"),
    };
    let url = Url::parse(text).map_err(|error| wrong(&format!("`{text}` ({error})")))?;
    let loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match url.scheme() {
        "https" => Ok(text.trim_end_matches('/').to_owned()),
        "http" if loopback => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err(wrong(&format!("`{text}`, which is not encrypted"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_an_hour() {
        let now: Instant = "2026-01-02T03:04:05Z".parse().unwrap();
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        for (value, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("86400", Some(3600)),
            ("Fri, 02 Jan 2026 03:05:05 GMT", Some(60)),
            ("Fri, 02 Jan 2026 03:00:00 GMT", Some(0)),
            ("Mon, 02 Jan 2028 03:00:00 GMT", None), // the weekday is wrong: not a date
            ("soon", None),
        ] {
            assert_eq!(of(value), seconds, "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn a_file_without_certificates_is_no_root_of_trust() {
        let mut context = crate::providers::samples::context(PathBuf::new(), &crate::providers::samples::Clock::new());
        context.extra_ca_pem = Some(b"hello".to_vec());
        let error = ClientOptions::new("ses", &context, None, CONNECT_TIMEOUT).unwrap_err().to_string();
        let expected =
            "provider `ses`: the extra certificates: expected certificates in PEM form, found something else";
        assert_eq!(error, expected);
    }

    #[test]
    fn endpoints_are_encrypted_unless_they_are_this_machine() {
        assert_eq!(endpoint("ses", "endpoint", "https://a.example/").unwrap(), "https://a.example");
        assert_eq!(endpoint("ses", "endpoint", "http://127.0.0.1:4579").unwrap(), "http://127.0.0.1:4579");
        let error = endpoint("ses", "endpoint", "http://a.example").unwrap_err().to_string();
        let expected = "provider `ses`: `endpoint`: expected an address like `https://host:port`, found \
                        `http://a.example`, which is not encrypted";
        assert_eq!(error, expected);
    }

    #[test]
    fn an_unknown_reason_is_judged_by_its_status() {
        for (status, word) in [
            (400, "permanent"),
            (404, "permanent"),
            (405, "permanent"),
            (413, "permanent"),
            (422, "permanent"),
            (401, "paused"),
            (403, "paused"),
            (408, "retryable"),
            (409, "retryable"),
            (425, "retryable"),
            (429, "retryable"),
            (500, "retryable"),
            (599, "retryable"),
            (302, "paused"),
        ] {
            assert_eq!(by_status(Code::new(status, "NewReason"), None).word(), word, "{status}");
        }
    }

    #[test]
    fn a_reason_is_one_bounded_line() {
        assert_eq!(bounded("a\r\nb"), "a  b");
        assert_eq!(bounded(&"x".repeat(1000)).len(), REASON_CHARS_MAX);
    }
}
