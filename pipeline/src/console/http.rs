//! The console over HTTP.
//!
//! | request | answer |
//! |---|---|
//! | `GET /`, `/app.js`, `/style.css`, `/icon.svg` | the page; nothing comes from elsewhere |
//! | `GET /api/events?limit=` | the newest events with what became of them, and the version that this is |
//! | `GET /api/stream?since=` | what changed since then, as server-sent events `event`, `act`, `resync` |
//! | `POST /api/events?wait=5s` | appends an event; says its id, and after `wait` what was decided |
//! | `GET /api/explain/{id}?user=&tenant=` | a story; `text/plain` where that is asked for |
//! | `GET /api/fates` | the three sums |
//! | `GET /api/now` | stream time, and the people with their local time |
//! | `GET /api/messages` | what people received |
//! | `GET /api/graph.svg` | the topology's picture |
//! | `GET /healthz`, `/readyz`, `/metrics` | for probes and Prometheus |

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query as Parameters, Request, State};
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tidings_schemas::event::{Event, RECORD_BYTES_MAX};
use tidings_schemas::ids::EventId;
use tidings_schemas::units::Period;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Console;
use super::memory::Change;
use crate::explain::Colour;
use crate::explain::rows::Query;

const PAGE: &str = include_str!("page/index.html");
const SCRIPT: &str = include_str!("page/app.js");
const ICON: &str = include_str!("page/icon.svg");
const STYLE: &str = include_str!("page/style.css");

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The picture has styles of its own, and needs nothing else.
const PICTURE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

/// Events of a list where none is asked for: what a page shows without scrolling for ever.
const LIST_DEFAULT: usize = 300;
/// Changes written at once: beyond it the next batch follows.
const STREAM_BATCH: usize = 50;
/// A connection further behind than this is told to load the list anew, which is cheaper.
const RESYNC_BEHIND: usize = 500;
/// Between two batches: faster than eyes, and what changes twice meanwhile is told once.
const STREAM_EVERY: Duration = Duration::from_millis(100);
/// Longest wait for a decision: windows of minutes are not waited out over HTTP.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Server {
    console: Console,
    closing: CancellationToken,
    /// Tells versions of one run from those of another.
    run: i64,
}

impl Console {
    /// Serves on `listener` until `closing`; then streams end and requests under way are answered.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(&self, listener: TcpListener, closing: CancellationToken) -> std::io::Result<()> {
        let router = self.router(closing.clone());
        axum::serve(listener, router).with_graceful_shutdown(closing.cancelled_owned()).await
    }

    fn router(&self, closing: CancellationToken) -> Router {
        let run = (self.0.parts.clock)().0;
        let server = Server { console: self.clone(), closing, run };
        let guarded = Router::new()
            .route("/", get(|| async { file("text/html; charset=utf-8", PAGE) }))
            .route("/app.js", get(|| async { file("text/javascript; charset=utf-8", SCRIPT) }))
            .route("/style.css", get(|| async { file("text/css; charset=utf-8", STYLE) }))
            .route("/icon.svg", get(|| async { file("image/svg+xml", ICON) }))
            .route("/api/events", get(events).post(emit))
            .route("/api/stream", get(follow))
            .route("/api/explain/{id}", get(story))
            .route("/api/fates", get(fates))
            .route("/api/now", get(now))
            .route("/api/messages", get(messages))
            .route("/api/graph.svg", get(graph))
            .layer(middleware::from_fn(named_locally));
        guarded
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .layer(DefaultBodyLimit::max(RECORD_BYTES_MAX))
            .layer(middleware::from_fn(headers))
            .with_state(server)
    }
}

fn file(content_type: &'static str, body: &'static str) -> Response {
    ([(CONTENT_TYPE, content_type)], body).into_response()
}

fn problem(status: StatusCode, text: impl Into<String>) -> Response {
    (status, Json(json!({ "error": text.into() }))).into_response()
}

/// Refuses requests that name this host otherwise than by an address or `localhost`: another site's
/// name that was made to point here.
async fn named_locally(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    if name == "localhost" || name.parse::<IpAddr>().is_ok() {
        return next.run(request).await;
    }
    let text = format!("expected to be called localhost or by address, found host `{host}`; open http://127.0.0.1");
    problem(StatusCode::FORBIDDEN, text)
}

async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let own_policy = headers.contains_key(CONTENT_SECURITY_POLICY);
    if !own_policy {
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[derive(Deserialize)]
struct List {
    limit: Option<usize>,
}

async fn events(State(server): State<Server>, Parameters(list): Parameters<List>) -> Response {
    let memory = server.console.memory();
    let version = format!("{}-{}", server.run, memory.version());
    let lines = memory.lines(list.limit.unwrap_or(LIST_DEFAULT));
    Json(json!({ "version": version, "extent": memory.extent(), "events": lines, "acts": memory.acts() }))
        .into_response()
}

#[derive(Deserialize)]
struct Since {
    since: Option<String>,
}

/// One connection that follows: where it stands, and what it has yet to be told of this batch.
struct Follower {
    server: Server,
    version: watch::Receiver<u64>,
    since: Option<u64>,
    pending: VecDeque<Sent>,
    paced: bool,
}

async fn follow(State(server): State<Server>, Parameters(since): Parameters<Since>, headers: HeaderMap) -> Response {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned).or(since.since);
    // `None`: it was another run's, or no version at all.
    let since = last.and_then(|last| {
        let (run, version) = last.rsplit_once('-')?;
        (run == server.run.to_string()).then(|| version.parse().ok()).flatten()
    });
    let version = server.console.0.version.subscribe();
    let follower = Follower { server, version, since, pending: VecDeque::new(), paced: false };
    let events = stream::unfold(follower, |mut follower| async move {
        let sent = follower.next().await?;
        Some((Ok::<_, Infallible>(sent), follower))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

impl Follower {
    async fn next(&mut self) -> Option<Sent> {
        loop {
            if let Some(sent) = self.pending.pop_front() {
                return Some(sent);
            }
            let closing = self.server.closing.clone();
            if self.paced {
                tokio::select! {
                    () = closing.cancelled() => return None,
                    () = tokio::time::sleep(STREAM_EVERY) => {}
                }
            }
            self.version.mark_unchanged();
            self.paced = self.gather();
            if !self.paced {
                tokio::select! {
                    () = closing.cancelled() => return None,
                    changed = self.version.changed() => changed.ok()?,
                }
            }
        }
    }

    /// Takes the next batch out of the memory. `false`: there is nothing new.
    fn gather(&mut self) -> bool {
        let run = self.server.run;
        let memory = self.server.console.memory();
        let newest = memory.version();
        let id = |version: u64| format!("{run}-{version}");
        let behind = self.since.filter(|since| *since <= newest).map(|since| memory.changes(since, RESYNC_BEHIND + 1));
        let Some(changes) = behind.filter(|changes| changes.len() <= RESYNC_BEHIND) else {
            self.since = Some(newest);
            self.pending.push_back(Sent::default().event("resync").id(id(newest)).data("{}"));
            return true;
        };
        for (version, change) in changes.into_iter().take(STREAM_BATCH) {
            self.since = Some(version);
            let told = match change {
                Change::Event(event) => memory.line(event).map(|line| ("event", serde_json::to_string(&line))),
                Change::Act(act) => memory.act(act).map(|act| ("act", serde_json::to_string(&act))),
            };
            if let Some((name, Ok(data))) = told {
                self.pending.push_back(Sent::default().event(name).id(id(version)).data(data));
            }
        }
        !self.pending.is_empty()
    }
}

#[derive(Deserialize)]
struct Wait {
    wait: Option<String>,
}

async fn emit(
    State(server): State<Server>,
    Parameters(wait): Parameters<Wait>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.split(';').next().map(str::trim) != Some("application/json") {
        return problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected content-type application/json");
    }
    let wait = match wait.wait.map(|wait| wait.parse::<Period>()).transpose() {
        Ok(wait) => wait.map(|wait| wait.0.min(WAIT_MAX)),
        Err(error) => return problem(StatusCode::BAD_REQUEST, format!("`wait`: {error}")),
    };
    if let Err(error) = Event::from_json(&body, false) {
        return problem(StatusCode::UNPROCESSABLE_ENTITY, error.to_string());
    }
    let event = match server.console.0.parts.emit.emit(body.to_vec()).await {
        Ok(event) => event,
        Err(error) => return problem(StatusCode::SERVICE_UNAVAILABLE, format!("the event was not taken: {error}")),
    };
    let Some(wait) = wait else {
        return (StatusCode::ACCEPTED, Json(json!({ "event": event }))).into_response();
    };
    let decided = tokio::time::timeout(wait, decided(&server, event)).await.is_ok();
    let story = server.console.memory().story(event);
    let status = if decided { StatusCode::OK } else { StatusCode::ACCEPTED };
    (status, Json(json!({ "event": event, "decided": decided, "story": story }))).into_response()
}

/// Returns once something was decided about `event`; waiting in a window is a decision too.
async fn decided(server: &Server, event: EventId) {
    let mut version = server.console.0.version.subscribe();
    loop {
        version.mark_unchanged();
        let story = server.console.memory().story(event);
        if story.is_some_and(|story| story.end.word != "accepted") || version.changed().await.is_err() {
            return;
        }
    }
}

#[derive(Deserialize)]
struct Asked {
    user: Option<String>,
    tenant: Option<String>,
}

async fn story(
    State(server): State<Server>,
    Path(id): Path<String>,
    Parameters(asked): Parameters<Asked>,
    headers: HeaderMap,
) -> Response {
    let tenant = asked.tenant.unwrap_or_default();
    let query = match Query::parse(&id, &tenant, asked.user.as_deref()) {
        Ok(query) => query,
        Err(error) => return problem(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let mut told = server.console.memory().story_of(&query);
    if told.is_none() {
        let older = match &server.console.0.parts.older {
            Some(record) => record.find(&query).await,
            None => Ok(Vec::new()),
        };
        told = match older {
            Ok(rows) => server.console.memory().story_with(rows, &query),
            Err(error) => {
                let text = format!("{error}; this process has not seen the beginning of `{id}` itself");
                return problem(StatusCode::SERVICE_UNAVAILABLE, text);
            }
        };
    }
    let Some(story) = told else {
        let text = format!("nothing is known of `{id}`; it may be older than the record, or not decided yet");
        return problem(StatusCode::NOT_FOUND, text);
    };
    let plain =
        headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept == "text/plain");
    if plain {
        return format!("{}\n", story.text(Colour::Off)).into_response();
    }
    Json(story).into_response()
}

async fn fates(State(server): State<Server>) -> Response {
    let memory = server.console.memory();
    let (_, sums) = memory.fates();
    let sums: Vec<_> = sums
        .iter()
        .map(|sum| {
            let fates: Vec<_> =
                sum.fates.iter().map(|(fate, units)| json!({ "fate": fate.as_str(), "units": units })).collect();
            json!({
                "unit": sum.unit, "created": sum.created, "fates": fates, "unaccounted": sum.unaccounted,
                "orphans": sum.orphans, "adds_up": sum.adds_up(),
            })
        })
        .collect();
    let reasons: Vec<_> = memory
        .reasons()
        .into_iter()
        .map(|((unit, reason), units)| json!({ "unit": unit, "reason": reason, "units": units }))
        .collect();
    Json(json!({ "sums": sums, "suppressed": reasons, "extent": memory.extent() })).into_response()
}

async fn now(State(server): State<Server>) -> Response {
    let parts = &server.console.0.parts;
    let now = (parts.clock)();
    let memory = server.console.memory();
    Json(json!({ "now": now, "speed": parts.speed, "people": memory.people(now), "extent": memory.extent() }))
        .into_response()
}

async fn messages(State(server): State<Server>) -> Response {
    match server.console.0.parts.inbox.messages().await {
        Ok(messages) => Json(messages).into_response(),
        Err(error) => problem(StatusCode::BAD_GATEWAY, error),
    }
}

async fn graph(State(server): State<Server>) -> Response {
    let headers = [(CONTENT_TYPE, "image/svg+xml"), (CONTENT_SECURITY_POLICY, PICTURE_POLICY)];
    (headers, server.console.0.parts.graph_svg.clone()).into_response()
}

async fn ready(State(server): State<Server>) -> Response {
    match server.console.0.parts.health.not_ready() {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(server): State<Server>) -> Response {
    let content_type = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, server.console.0.parts.health.metrics()).into_response()
}
