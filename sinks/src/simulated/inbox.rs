//! The inbox: what arrived, as JSON for programs and as a page for people.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the page, with `/app.js` and `/style.css`; nothing comes from elsewhere |
//! | `GET /api/messages?user=&channel=&provider=&after=` | messages, newest first; `x-accepted` counts all |
//! | `GET /api/messages/{seq}/html` | one mail's HTML, alone in a sandbox |
//! | `GET /api/counts?after=&limit=` | what was counted since the start, by listener and address: a page, and `next` to go on `after` |
//! | `GET /api/traffic` | the same by listener alone: small, however many addresses there are |
//! | `GET /api/faults`, `POST /api/faults` | the script of faults; a new one replaces it |
//! | `POST /api/users` | whose addresses these are, `{"address": "user"}` |
//!
//! Mails and pushes are written by strangers. The page puts them in as text, never as markup; a
//! mail's HTML is served under a policy of its own that runs no script and loads nothing. A change
//! must come as JSON, which another site's form or script cannot send.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use reqwest::Url;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::server::{Reply, plain};
use super::{Faults, Message, Received, Shared};
use crate::render::Content;

/// Addresses of one answer: a megabyte or two.
const COUNTED_MAX: usize = 1_000;

const PAGE: &str = include_str!("page/index.html");
const SCRIPT: &str = include_str!("page/app.js");
const STYLE: &str = include_str!("page/style.css");

const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                           frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// A mail may have its own style and pictures that it carries, and nothing else.
const MAIL_POLICY: &str =
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'";

pub(super) fn handle(shared: &Shared, request: &Request<Bytes>) -> Reply {
    route(shared, request).into()
}

fn route(shared: &Shared, request: &Request<Bytes>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::GET, "/") => file("text/html; charset=utf-8", PAGE_POLICY, PAGE),
        (&Method::GET, "/app.js") => file("text/javascript; charset=utf-8", PAGE_POLICY, SCRIPT),
        (&Method::GET, "/style.css") => file("text/css; charset=utf-8", PAGE_POLICY, STYLE),
        (&Method::GET, "/api/messages") => messages(shared, request),
        (&Method::GET, "/api/counts") => counts(shared, request),
        (&Method::GET, "/api/traffic") => json(&shared.state().counts.providers),
        (&Method::GET, "/api/faults") => json(&shared.state().script.faults),
        (&Method::POST, "/api/faults") => change(request, |faults: Faults| shared.set_faults(faults)),
        (&Method::POST, "/api/users") => {
            change(request, |users: BTreeMap<String, String>| shared.state().users.extend(users))
        }
        (&Method::GET, _) => mail(shared, path).unwrap_or_else(|| plain(StatusCode::NOT_FOUND, "no such page")),
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "expected GET, or POST to /api/faults or /api/users"),
    }
}

/// The parameters that have a value.
fn query(request: &Request<Bytes>) -> BTreeMap<String, String> {
    let query = request.uri().query().unwrap_or_default();
    let Ok(url) = Url::parse(&format!("http://inbox/?{query}")) else { return BTreeMap::new() };
    url.query_pairs().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key.into(), value.into())).collect()
}

/// A page of the counts: an address has all that it ever received, so that all of them at once are as long
/// as the run was.
fn counts(shared: &Shared, request: &Request<Bytes>) -> Response<Full<Bytes>> {
    let wanted = query(request);
    let limit = match wanted.get("limit").map(|limit| limit.parse::<usize>()) {
        None => COUNTED_MAX,
        Some(Ok(limit)) if limit > 0 => limit.min(COUNTED_MAX),
        Some(_) => return plain(StatusCode::BAD_REQUEST, "`limit`: expected a number above 0"),
    };
    let from = wanted.get("after").map_or(Bound::Unbounded, Bound::Excluded);
    // Written once the listeners may go on.
    let (providers, addresses, next) = {
        let counts = &shared.state().counts;
        let mut rest = counts.addresses.range::<String, _>((from, Bound::Unbounded));
        let page: BTreeMap<String, Received> =
            rest.by_ref().take(limit).map(|(address, received)| (address.clone(), received.clone())).collect();
        let next = rest.next().and_then(|_| page.keys().next_back().cloned());
        (counts.providers.clone(), page, next)
    };
    json(&serde_json::json!({ "providers": providers, "addresses": addresses, "next": next }))
}

fn messages(shared: &Shared, request: &Request<Bytes>) -> Response<Full<Bytes>> {
    let wanted = query(request);
    let after = match wanted.get("after").map(|after| after.parse::<u64>()) {
        None => 0,
        Some(Ok(after)) => after,
        Some(Err(_)) => return plain(StatusCode::BAD_REQUEST, "`after`: expected a message's `seq`"),
    };
    let is = |key: &str, found: &str| wanted.get(key).is_none_or(|wanted| wanted == found);
    let state = shared.state();
    let messages: Vec<Message> = (state.listed())
        .filter(|message| message.seq > after)
        .filter(|message| is("channel", message.channel.as_str()) && is("provider", message.provider))
        .filter(|message| is("user", &message.address) || message.user.as_deref().is_some_and(|user| is("user", user)))
        .collect();
    let mut response = json(&messages);
    response.headers_mut().insert("x-accepted", HeaderValue::from(state.accepted));
    response
}

/// The HTML of `/api/messages/{seq}/html`.
fn mail(shared: &Shared, path: &str) -> Option<Response<Full<Bytes>>> {
    let seq: u64 = path.strip_prefix("/api/messages/")?.strip_suffix("/html")?.parse().ok()?;
    let state = shared.state();
    match &state.messages.iter().find(|message| message.seq == seq)?.content {
        Content::Email(email) => Some(file("text/html; charset=utf-8", MAIL_POLICY, email.html.clone()?)),
        Content::Push(_) | Content::Sms(_) | Content::InApp(_) => None,
    }
}

/// Carries out a change that came as JSON.
fn change<T: DeserializeOwned>(request: &Request<Bytes>, apply: impl FnOnce(T)) -> Response<Full<Bytes>> {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.split(';').next().map(str::trim) != Some("application/json") {
        return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected content-type application/json");
    }
    match serde_json::from_slice(request.body()) {
        Ok(value) => {
            apply(value);
            json(&serde_json::json!({ "ok": true }))
        }
        Err(error) => {
            let mut response = json(&serde_json::json!({ "error": error.to_string() }));
            *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
            response
        }
    }
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    // Maps with text keys, texts and numbers always serialize.
    file("application/json", PAGE_POLICY, serde_json::to_vec(value).unwrap_or_default())
}

fn file(content_type: &'static str, policy: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    let headers: [(HeaderName, &'static str); 5] = [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, policy),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
    ];
    response.headers_mut().extend(headers.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

#[cfg(test)]
mod tests {
    use reqwest::Client;
    use serde_json::{Value, json};

    use super::*;
    use crate::providers::samples::{NOW, World, deliver_one, email, push};
    use crate::simulated::{Config, Fault, KeyFiles, Rule, Simulated};

    fn client() -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::builder().no_proxy().build().unwrap()
    }

    fn params(world: &World) -> (Value, Value) {
        let endpoints = world.simulated.endpoints();
        let ca = &world.files.ca;
        (
            json!({ "endpoint": endpoints.apns, "ca_file": ca, "key_file": world.files.apns, "key_id": "ABC1234567",
                "team_id": "DEF1234567", "topic": "com.example.app" }),
            json!({ "endpoint": endpoints.ses, "ca_file": ca, "region": "us-east-1", "from": "App <a@example.com>",
                "credentials_file": world.files.ses }),
        )
    }

    #[tokio::test]
    async fn what_arrived_is_listed_newest_first_and_by_person_channel_and_provider() {
        let world = World::start().await;
        let (apns, ses) = params(&world);
        let (apns, ses) = (world.provider("apns", apns), world.provider("ses", ses));
        deliver_one(&*apns, &push("aa")).await;
        deliver_one(&*ses, &email("eve@example.com")).await;
        deliver_one(&*apns, &push("bb")).await;
        let (client, inbox) = (client(), world.simulated.endpoints().inbox.clone());
        let users = json!({ "aa": "ada", "eve@example.com": "eve" });
        client.post(format!("{inbox}/api/users")).json(&users).send().await.unwrap().error_for_status().unwrap();
        for (query, expected) in [
            ("", json!(["bb", "eve@example.com", "aa"])),
            ("?user=ada", json!(["aa"])),
            ("?user=eve%40example.com", json!(["eve@example.com"])),
            ("?channel=push", json!(["bb", "aa"])),
            ("?provider=ses", json!(["eve@example.com"])),
            ("?after=2", json!(["bb"])),
            ("?user=nobody", json!([])),
        ] {
            let answer = client.get(format!("{inbox}/api/messages{query}")).send().await.unwrap();
            assert_eq!(answer.headers()["x-accepted"], "3");
            let messages: Vec<Value> = answer.json().await.unwrap();
            let addresses: Value = messages.iter().map(|message| message["address"].clone()).collect();
            assert_eq!(addresses, expected, "{query}");
        }
        let counts: Value = client.get(format!("{inbox}/api/counts")).send().await.unwrap().json().await.unwrap();
        assert_eq!(counts["addresses"]["aa"]["notifications"][push("aa").notification.to_string()], json!(1));
        assert_eq!(counts["providers"]["apns"]["accepted"], json!(2));
        let traffic: Value = client.get(format!("{inbox}/api/traffic")).send().await.unwrap().json().await.unwrap();
        assert_eq!(traffic, counts["providers"]);
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn faults_are_switched_at_run_time_and_only_by_json() {
        let world = World::start().await;
        let apns = world.provider("apns", params(&world).0);
        let (client, faults) = (client(), format!("{}/api/faults", world.simulated.endpoints().inbox));
        let script = r#"{"rules":[{"provider":"apns","fault":{"kind":"server_error","status":500}}]}"#;
        let post = |content_type: &'static str, body: &'static str| {
            client.post(&faults).header(CONTENT_TYPE, content_type).body(body).send()
        };
        // What another site's form can send.
        assert_eq!(post("text/plain", script).await.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(deliver_one(&*apns, &push("aa")).await.word(), "accepted");
        let wrong = post("application/json", r#"{"rulez":[]}"#).await.unwrap();
        assert_eq!(wrong.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert!(wrong.text().await.unwrap().contains("unknown field `rulez`, expected `latency_ms` or `rules`"));
        assert!(post("application/json", script).await.unwrap().status().is_success());
        assert_eq!(deliver_one(&*apns, &push("aa")).await.code().to_string(), "500 InternalServerError");
        let said: Value = client.get(&faults).send().await.unwrap().json().await.unwrap();
        assert_eq!(said["rules"][0]["fault"]["kind"], json!("server_error"));
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn the_page_loads_nothing_from_elsewhere_and_a_mail_stays_in_its_sandbox() {
        let world = World::start().await;
        let ses = world.provider("ses", params(&world).1);
        let mut hostile = email("eve@example.com");
        hostile.content = Content::Email(crate::render::Email {
            subject: "</title><script>alert(1)</script>".to_owned(),
            html: Some("<script>alert(1)</script><img src=x onerror=alert(1)>".to_owned()),
            text: "t".to_owned(),
        });
        deliver_one(&*ses, &hostile).await;
        let (client, inbox) = (client(), world.simulated.endpoints().inbox.clone());
        let get = |path: &str| client.get(format!("{inbox}{path}")).send();
        for (path, content_type) in [("/", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css")] {
            let answer = get(path).await.unwrap();
            assert!(answer.headers()[CONTENT_TYPE].to_str().unwrap().starts_with(content_type));
            assert_eq!(answer.headers()[CONTENT_SECURITY_POLICY], PAGE_POLICY);
            let text = answer.text().await.unwrap();
            for forbidden in
                ["http://", "https://", "innerHTML", "insertAdjacentHTML", " onclick=", " style=", "@import", "url("]
            {
                assert!(!text.contains(forbidden), "{path}: {forbidden}");
            }
        }
        let mail = get("/api/messages/1/html").await.unwrap();
        assert!(mail.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("sandbox; default-src 'none'"));
        assert!(mail.text().await.unwrap().contains("<script>"), "as it is: the policy and the frame disarm it");
        let listed = get("/api/messages").await.unwrap();
        assert_eq!(listed.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(listed.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
        for (path, status) in [("/api/messages/9/html", 404), ("/none", 404), ("/api/messages?after=x", 400)] {
            assert_eq!(get(path).await.unwrap().status().as_u16(), status, "{path}");
        }
        assert_eq!(client.delete(&inbox).send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn old_messages_leave_the_list_but_not_the_counts() {
        let clock: crate::providers::WallClock = std::sync::Arc::new(|| NOW);
        let simulated = Simulated::start(Config { messages_max: 2, ..Config::new(clock) }).await.unwrap();
        for address in ["a", "b", "c"] {
            let arrival = super::super::Arrival {
                channel: tidings_schemas::channel::Channel::Sms,
                address: address.to_owned(),
                notification: None,
                delivery: None,
                provider_id: String::new(),
                collapse_key: None,
                headers: BTreeMap::new(),
                content: Content::Sms(crate::render::Sms { text: "hi".to_owned() }),
            };
            simulated.shared.accept(super::super::Listener::Fcm, arrival);
        }
        let addresses: Vec<_> = simulated.messages().into_iter().map(|message| message.address).collect();
        assert_eq!((addresses, simulated.counts().addresses.len()), (vec!["c".to_owned(), "b".to_owned()], 3));
        // Page by page; the last one says that it is the last.
        let (client, inbox) = (client(), simulated.endpoints().inbox.clone());
        let page = |query: &str| client.get(format!("{inbox}/api/counts?{query}")).send();
        for (query, addresses, next) in [
            ("limit=2", json!(["a", "b"]), json!("b")),
            ("limit=2&after=b", json!(["c"]), Value::Null),
            ("limit=3", json!(["a", "b", "c"]), Value::Null),
            ("after=z", json!([]), Value::Null),
        ] {
            let counts: Value = page(query).await.unwrap().json().await.unwrap();
            let found: Value = counts["addresses"].as_object().unwrap().keys().cloned().collect();
            assert_eq!((&found, &counts["next"]), (&addresses, &next), "{query}");
            assert_eq!(counts["providers"]["fcm"]["accepted"], json!(3), "{query}");
        }
        assert_eq!(page("limit=0").await.unwrap().status(), StatusCode::BAD_REQUEST);
        simulated.shutdown().await;
    }

    #[tokio::test]
    async fn keys_in_a_folder_outlive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let clock: crate::providers::WallClock = std::sync::Arc::new(|| NOW);
        let config = Config { keys: Some(folder.path().to_owned()), ..Config::new(clock) };
        let first = Simulated::start(config.clone()).await.unwrap();
        let (ca, p8) = (first.ca_pem().to_owned(), first.keys().apns_p8.clone());
        first.shutdown().await;
        let again = Simulated::start(config).await.unwrap();
        assert_eq!((again.ca_pem(), &again.keys().apns_p8), (ca.as_str(), &p8));
        // A client that trusts the first certificate reaches the second start.
        let world = World::start().await;
        let (mut apns, files) = (params(&world).0, KeyFiles::of(folder.path()));
        apns["endpoint"] = json!(again.endpoints().apns);
        (apns["ca_file"], apns["key_file"]) = (json!(files.ca), json!(files.apns));
        assert_eq!(deliver_one(&*world.provider("apns", apns), &push("aa")).await.word(), "accepted");
        again.shutdown().await;
        world.simulated.shutdown().await;
    }

    #[tokio::test]
    async fn shutdown_does_not_wait_for_calls_that_are_never_answered() {
        let world = World::start().await;
        let mut apns = params(&world).0;
        apns["timeout_seconds"] = json!(3600);
        let apns = world.provider("apns", apns);
        let never = Rule::always("apns", Fault::NoAnswer);
        world.simulated.set_faults(Faults { latency_ms: 0, rules: vec![never] });
        let call = push("aa");
        let (outcome, ()) = tokio::join!(deliver_one(&*apns, &call), async {
            while world.simulated.messages().is_empty() {
                tokio::task::yield_now().await;
            }
            world.simulated.shutdown().await;
        });
        assert_eq!(outcome.word(), "unknown");
    }
}
