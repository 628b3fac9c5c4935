//! The console over HTTP, fed with the demo's night.
#![allow(
    clippy::disallowed_methods,
    reason = "the server's task is joined at each test's end; the page to look at takes its port from outside"
)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use support::{Seen, night};
use tidings_pipeline::console::{Console, Emit, Health, Inbox, Parts};
use tidings_pipeline::demo::workload::BEGINS_AT;
use tidings_pipeline::explain::record::{ClickHouseRows, Older, OlderError};
use tidings_pipeline::explain::rows::{Query, Rows as _};
use tidings_schemas::channel::Channel;
use tidings_schemas::ids::EventId;
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_schemas::time::Instant;
use tidings_sinks::record::clickhouse::ClickHouseParams;
use tidings_sinks::record::index::RecordIndex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What stands behind a console under test.
#[derive(Default)]
struct World {
    messages: std::sync::Mutex<Vec<Value>>,
    console: std::sync::OnceLock<Console>,
    broken: AtomicBool,
    now: AtomicI64,
}

/// A log whose decider answers at once.
impl Emit for World {
    fn emit(&self, event: Vec<u8>) -> BoxFuture<'_, Result<EventId, String>> {
        Box::pin(async move {
            if self.broken.load(Ordering::SeqCst) {
                return Err("the log cannot be reached".to_owned());
            }
            let id = EventId::new("emitted", 0, event.len() as u64);
            let console = self.console.get().expect("a console");
            console.observe_event(id, BEGINS_AT, &event, None);
            let row = Row {
                states: vec![State::Created, State::Validated, State::Suppressed],
                reason: Some(tidings_schemas::reason::Reason::NothingToRetract),
                event: id,
                user: "mia".to_owned(),
                created_at: BEGINS_AT,
                at: BEGINS_AT,
                ..Row::default()
            };
            console.observe_rows(&[row.sealed()]);
            Ok(id)
        })
    }
}

impl Inbox for World {
    fn messages(&self) -> BoxFuture<'_, Result<Value, String>> {
        let newest_first: Vec<_> = self.messages.lock().expect("messages").iter().rev().cloned().collect();
        Box::pin(async move { Ok(Value::Array(newest_first)) })
    }
}

impl Health for World {
    fn not_ready(&self) -> Option<String> {
        self.broken.load(Ordering::SeqCst).then(|| "the log cannot be reached".to_owned())
    }
    fn metrics(&self) -> String {
        "tidings_events_total 1\n".to_owned()
    }
}

struct Served {
    world: Arc<World>,
    console: Console,
    address: SocketAddr,
    closing: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

const GRAPH: &str = include_str!("support/graph.svg");

impl Served {
    async fn new(port: u16) -> Self {
        Self::with(port, None).await
    }

    async fn with(port: u16, older: Option<Arc<dyn Older>>) -> Self {
        let world = Arc::new(World::default());
        world.now.store(BEGINS_AT.0, Ordering::SeqCst);
        let clock = Arc::clone(&world);
        let console = Console::new(Parts {
            emit: Arc::clone(&world) as _,
            inbox: Arc::clone(&world) as _,
            health: Arc::clone(&world) as _,
            clock: Arc::new(move || Instant(clock.now.load(Ordering::SeqCst))),
            speed: 60,
            type_channels: [("like".to_owned(), vec![Channel::Push, Channel::Email])].into(),
            graph_svg: GRAPH.to_owned(),
            older,
        });
        drop(world.console.set(console.clone()));
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let closing = CancellationToken::new();
        let served = console.clone();
        let token = closing.clone();
        let server = tokio::spawn(async move { served.serve(listener, token).await });
        Self { world, console, address, closing, server }
    }

    fn play(&self, minutes: u64) {
        let until = BEGINS_AT.after(Duration::from_secs(minutes * 60));
        night(1, until, |seen| self.see(seen));
        self.world.now.store(until.0, Ordering::SeqCst);
    }

    fn see(&self, seen: Seen) {
        let words = |caption: String| Some(caption).filter(|caption| !caption.is_empty());
        match seen {
            Seen::Event { id, at, value, caption } => {
                self.console.observe_event(id, at, &value, words(caption).as_deref());
            }
            Seen::Profile { user, profile, at, caption } => {
                self.console.observe_profile(&user, &profile, at, words(caption).as_deref());
            }
            Seen::Rows(rows) => self.console.observe_rows(&rows),
            Seen::Lane(lane) => self.console.observe_lane(&lane),
            Seen::Message(message) => self.world.messages.lock().expect("messages").push(message),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = client().get(self.url(path)).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }

    async fn post(&self, path: &str, content_type: &str, body: &str) -> (u16, Value) {
        let request = client().post(self.url(path)).header("content-type", content_type).body(body.to_owned());
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }

    async fn end(self) {
        self.closing.cancel();
        self.server.await.expect("no panic").expect("a served console");
    }
}

fn client() -> reqwest::Client {
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::new()
}

/// A record that has what it was given.
struct Written(RecordIndex);

impl Older for Written {
    fn find(&self, query: &Query) -> BoxFuture<'_, Result<Vec<Row>, OlderError>> {
        let rows = self.0.find(query);
        Box::pin(async move { Ok(rows) })
    }
}

#[tokio::test]
async fn after_a_restart_the_record_tells_what_the_process_has_not_seen() {
    let mut all = RecordIndex::default();
    night(1, BEGINS_AT.after(Duration::from_secs(130 * 60)), |seen| {
        if let Seen::Rows(rows) = seen {
            rows.into_iter().for_each(|row| all.add(row));
        }
    });
    // Of a group in the record the new process sees how it ends.
    let merged = |row: &&Row| row.unit == Unit::Event && row.states == [State::Merged];
    let event = all.rows().find(merged).expect("a merge").clone();
    let at = event.at.after(Duration::from_secs(1));
    let later = Row { states: vec![State::Retracted], at, epoch: event.epoch + 1, ..event.clone() }.sealed();
    let served = Served::with(0, Some(Arc::new(Written(all)))).await;
    let path = format!("/api/explain/{}", event.event);
    let (status, before) = served.get(&path).await;
    assert_eq!(status, 200);
    served.console.observe_rows(&[later]);
    let (status, story) = served.get(&path).await;
    assert_eq!((status, &story["end"]["word"]), (200, &json!("retracted")));
    assert_eq!(story["steps"][0], before["steps"][0], "how it began");
    served.end().await;

    let nowhere = ClickHouseRows::new(&ClickHouseParams::new("http://127.0.0.1:1", "default"));
    let served = Served::with(0, Some(Arc::new(nowhere))).await;
    let (status, said) = served.get(&path).await;
    let said = said["error"].as_str().expect("an error");
    assert!(status == 503 && said.starts_with("the record's ClickHouse at http://127.0.0.1:1 cannot be"), "{said}");
    // What it has seen from the beginning it tells without the record.
    let opened = Row { states: vec![State::Created], ..event.clone() }.sealed();
    served.console.observe_rows(&[opened]);
    assert_eq!(served.get(&path).await.0, 200);
    served.end().await;
}

#[tokio::test]
async fn the_list_the_sums_and_a_story() {
    let served = Served::new(0).await;
    served.play(130);
    let (status, list) = served.get("/api/events?limit=500").await;
    assert_eq!(status, 200);
    let events = list["events"].as_array().expect("events");
    let of = |title: &str| events.iter().find(|line| line["title"] == title).expect("an event");
    let like = of("John's like of photo7");
    assert_eq!((&like["end"]["word"], &like["end"]["tone"]), (&json!("merged"), &json!("waiting")));
    assert_eq!(like["end"]["text"], "with 2 others, waits until 07:00 on 29 Mar");
    assert!(events.iter().any(|line| line["raw"].as_str().is_some_and(|raw| raw.starts_with("{\"type\": \"like\""))));
    assert!(list["acts"].as_array().expect("acts").iter().any(|act| act["user"] == "ravi"));

    let (_, fates) = served.get("/api/fates").await;
    for sum in fates["sums"].as_array().expect("sums") {
        assert_eq!(sum["adds_up"], true, "{sum}");
    }
    // By event, by notification, and by the producer's own id.
    for id in [like["id"].as_str(), like["ids"]["notifications"][0].as_str(), like["ids"]["intent"].as_str()] {
        let (status, story) = served.get(&format!("/api/explain/{}", id.expect("an id"))).await;
        assert_eq!((status, &story["ids"]["event"]), (200, &like["id"]));
    }
    let (_, story) = served.get("/api/explain/like-1?user=mia").await;
    assert_eq!(story["ids"]["event"], like["id"]);
    let plain = client().get(served.url("/api/explain/like-1?user=mia")).header("accept", "text/plain");
    let text = plain.send().await.expect("an answer").text().await.expect("text");
    assert!(text.starts_with("John's like of photo7 (23:20, in Berlin) waits until 07:00"), "{text}");

    let (status, error) = served.get("/api/explain/e_00000000000000000000000000000000").await;
    assert_eq!(status, 404, "{error}");
    let (status, error) = served.get("/api/explain/like-1").await;
    assert_eq!(status, 400);
    assert!(error["error"].as_str().is_some_and(|text| text.contains("give the user as well")), "{error}");

    let (_, now) = served.get("/api/now").await;
    let mia = now["people"].as_array().expect("people").iter().find(|person| person["user"] == "mia").expect("mia");
    assert_eq!((&mia["quiet"], &mia["local"], &mia["locale"]), (&json!(true), &json!("01:30"), &json!("de")));
    assert!(served.get("/api/messages").await.1.as_array().is_some_and(|messages| messages.len() > 20));
    served.end().await;
}

#[tokio::test]
async fn an_event_is_sent_and_its_decision_awaited() {
    let served = Served::new(0).await;
    let like =
        r#"{"type":"like","user_id":"mia","actor":{"id":"eve","name":"Eve"},"object":{"id":"p"},"op":"retract"}"#;
    let (status, answer) = served.post("/api/events", "application/json", like).await;
    assert_eq!(status, 202);
    assert!(answer["event"].as_str().is_some_and(|id| id.starts_with("e_")));
    let (status, answer) = served.post("/api/events?wait=5s", "application/json", like).await;
    assert_eq!((status, &answer["decided"]), (200, &json!(true)));
    assert_eq!(answer["story"]["end"]["word"], "suppressed");

    let table = [
        ("/api/events", "text/plain", like, 415, "expected content-type application/json"),
        ("/api/events?wait=soon", "application/json", like, 400, "`wait`"),
        ("/api/events", "application/json", "{", 422, "not JSON"),
        ("/api/events", "application/json", r#"{"type":"like","user":"mia"}"#, 422, "unknown field `user`"),
    ];
    for (path, content_type, body, expected, words) in table {
        let (status, answer) = served.post(path, content_type, body).await;
        assert_eq!(status, expected, "{path} {body}");
        assert!(answer["error"].as_str().is_some_and(|text| text.contains(words)), "{answer}");
    }
    served.world.broken.store(true, Ordering::SeqCst);
    let (status, answer) = served.post("/api/events", "application/json", like).await;
    assert_eq!((status, &answer["error"]), (503, &json!("the event was not taken: the log cannot be reached")));
    let ready = client().get(served.url("/readyz")).send().await.expect("an answer");
    assert_eq!(
        (ready.status().as_u16(), ready.text().await.expect("text")),
        (503, "the log cannot be reached\n".into())
    );
    served.end().await;
}

/// Reads server-sent events until `enough`.
async fn read(answer: reqwest::Response, enough: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    let mut body = answer.bytes_stream();
    while !enough(&text) {
        let chunk = tokio::time::timeout(Duration::from_secs(10), body.next()).await.expect("in time");
        match chunk {
            Some(chunk) => text.push_str(&String::from_utf8_lossy(&chunk.expect("a chunk"))),
            None => break,
        }
    }
    text
}

#[tokio::test]
async fn the_stream_goes_on_where_it_was_left() {
    let served = Served::new(0).await;
    served.play(4);
    let (_, list) = served.get("/api/events").await;
    let version = list["version"].as_str().expect("a version").to_owned();
    let stream = client().get(served.url(&format!("/api/stream?since={version}"))).send().await.expect("a stream");
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let like = r#"{"type":"like","user_id":"mia","op":"retract"}"#;
    served.post("/api/events", "application/json", like).await;
    let text = read(stream, |text| text.contains("nothing left")).await;
    assert!(text.contains("event: event\n") && !text.contains("John's like"), "{text}");
    let last = text.lines().rev().find_map(|line| line.strip_prefix("id: ")).expect("an id").to_owned();

    // What came while the connection was away is told when it returns, and nothing else.
    served.post("/api/events", "application/json", r#"{"type":"comment","user_id":"mia","op":"retract"}"#).await;
    let again = client().get(served.url("/api/stream")).header("last-event-id", last).send().await.expect("a stream");
    let text = read(again, |text| text.contains("\n\n")).await;
    assert!(text.contains("retraction of the comment") && !text.contains("retraction of the like"), "{text}");

    // Another run's version, none at all, and one too far behind: the list has to be loaded anew.
    for number in 0..600 {
        let id = EventId::new("flood", 0, number);
        served.console.observe_event(id, BEGINS_AT, br#"{"type":"like","user_id":"mia"}"#, None);
    }
    for since in ["7-1", "", &version] {
        let path = format!("/api/stream?since={since}");
        let stream = client().get(served.url(&path)).send().await.expect("a stream");
        let text = read(stream, |text| text.contains("\n\n")).await;
        assert!(text.starts_with("event: resync\n"), "{since}: {text}");
    }
    // An open stream does not keep the server from ending.
    let open = client().get(served.url("/api/stream")).send().await.expect("a stream");
    served.end().await;
    drop(open);
}

#[tokio::test]
async fn the_page_is_whole_and_locked_down() {
    let served = Served::new(0).await;
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
    ] {
        let answer = client().get(served.url(path)).send().await.expect("an answer");
        assert_eq!(answer.headers()["content-type"], content_type);
        let policy = answer.headers()["content-security-policy"].to_str().expect("text").to_owned();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        let text = answer.text().await.expect("text");
        assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("innerHTML"), "{path}");
    }
    // A name that another site pointed here is refused; probes are not, whatever they call us.
    let foreign =
        client().get(served.url("/api/events")).header("host", "evil.example").send().await.expect("an answer");
    assert_eq!(foreign.status().as_u16(), 403);
    for path in ["/healthz", "/readyz", "/metrics"] {
        let probe = client().get(served.url(path)).header("host", "tidings:7878").send().await.expect("an answer");
        assert_eq!(probe.status().as_u16(), 200, "{path}");
    }
    let graph = client().get(served.url("/api/graph.svg")).send().await.expect("an answer");
    assert_eq!(graph.headers()["content-type"], "image/svg+xml");
    served.end().await;
}
